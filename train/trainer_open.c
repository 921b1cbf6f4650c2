/* From a config to a run that is ready: cheap checks first, weights last. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/log.h"
#include "data/template.h"
#include "train/ceiling.h"
#include "train/device_memory.h"
#include "train/embedding_check.h"
#include "train/run_folder.h"
#include "train/trainer.h"

/* ---- data ------------------------------------------------------------------------------------------------------------------ */

#define FILES_SHOWN 16 /* one line each in the log */

static DatasetOptions dataset_options(const Trainer *trainer, const ModelConfig *model, Pool *pool) {
    const Config *config = &trainer->config;
    DatasetOptions options = {.template_name = config->data.template_name,
                              .max_length = run_max_length(config, model),
                              .open_documents = !config->data.document_eos,
                              .tokenizer = trainer->tokenizer,
                              .eos_id = tokenizer_eos(trainer->tokenizer),
                              .pool = pool};
    if (options.eos_id < 0 && model->eos_count > 0) options.eos_id = (int32_t)model->eos_ids[0];
    options.layout = layout_by_name(config->data.layout);
    static const char *const too_long[] = {"auto", "truncate", "split", "drop"};
    for (int i = TOO_LONG_AUTO; i <= TOO_LONG_DROP; i++)
        if (strcmp(config->data.too_long, too_long[i]) == 0) options.too_long = (TooLong)i;
    if (strcmp(config->data.train_on, "all") == 0) options.train_on = TRAIN_ON_ALL;
    if (strcmp(config->data.train_on, "last") == 0) options.train_on = TRAIN_ON_LAST;
    if (strcmp(config->data.on_error, "skip") == 0) options.on_error = ON_ERROR_SKIP;
    return options;
}

static Status read_cached(const Config *config, DatasetOptions *options, Dataset *out, Error *err) {
    char *root = NULL;
    TRY(dataset_cache_root(options, config->data.cache, &root, err));
    options->cache = root;
    Status status = dataset_read(options, out, err);
    options->cache = NULL;
    memory_free(root);
    return status;
}

/* A built-in chosen by name, for a tokenizer without its control tokens. Once for each template. */
static void warn_of_spelled_ends(const Tokenizer *tokenizer, const Dataset *data) {
    for (int64_t f = 0; f < data->file_count; f++) {
        const char *name = data->files[f].template_name, *end = template_end_token(name);
        int is_known = end == NULL || tokenizer_token_id(tokenizer, end) >= 0;
        for (int64_t before = 0; before < f && !is_known; before++)
            is_known = strcmp(data->files[before].template_name, name) == 0;
        if (!is_known)
            log_warning(
                "data.template: \"%s\" ends its turns with %s, which is no token of this model: it is spelled with several, "
                "and nothing that runs the model stops there by itself; zephyr and llama2 end them with the EOS token",
                name, end);
    }
}

static void log_data(const char *what, const char *path, const Dataset *data) {
    int64_t shown = data->file_count < 2 ? 0 : data->file_count < FILES_SHOWN ? data->file_count : FILES_SHOWN;
    for (int64_t f = 0; f < shown; f++) {
        const DatasetFile *file = &data->files[f];
        log_info("%s: file %s: layout %s, template %s, %lld records, %lld sequences, weight %g", what, file->path,
                 layout_name(file->layout), file->template_name, (long long)file->records, (long long)file->count,
                 file->weight);
    }
    if (data->file_count > FILES_SHOWN) log_info("%s: and %lld more files", what, (long long)(data->file_count - FILES_SHOWN));
    log_info("%s: %s: layout %s, template %s, %lld records, %lld sequences, %lld tokens, %lld trained (%.1f %%), longest %lld",
             what, path, layout_name(data->layout), data->template_name, (long long)data->records, (long long)data->count,
             (long long)data->tokens, (long long)data->trained_tokens,
             data->tokens > 0 ? 100.0 * (double)data->trained_tokens / (double)data->tokens : 0.0, (long long)data->longest);
    if (data->with_tools > 0)
        log_info("%s: %lld records have tools; they are rendered by the model's own chat template", what,
                 (long long)data->with_tools);
    for (int64_t f = 0; f < data->file_count; f++)
        if (data->files[f].count == 0)
            log_warning("%s: nothing in it is trained: none of its %lld records is left", data->files[f].path,
                        (long long)data->files[f].records);
    if (data->skipped_bad > 0) log_warning("%s: %lld bad records were skipped:", path, (long long)data->skipped_bad);
    for (const char *line = data->skipped_bad > 0 ? data->skip_reasons : NULL; line != NULL && *line != 0;) {
        int length = (int)strcspn(line, "\n");
        log_warning("  %.*s", length, line);
        line += length + (line[length] != 0);
    }
    if (data->skipped_untrained > 0)
        log_warning("%s: %lld records were dropped because nothing trained is left in them", path,
                    (long long)data->skipped_untrained);
    if (data->dropped > 0)
        log_warning("%s: %lld records were dropped because they are longer than data.max_length", path,
                    (long long)data->dropped);
    if (data->truncated > 0) log_warning("%s: %lld sequences were cut to data.max_length", path, (long long)data->truncated);
}

static Status open_data(Trainer *trainer, const ModelConfig *model, Pool *pool, Error *err) {
    const Config *config = &trainer->config;
    TRY(tokenizer_open(&trainer->tokenizer, config->model.path, err));
    if (tokenizer_vocab_size(trainer->tokenizer) > model->vocab)
        log_warning("the tokenizer knows %lld tokens and the model %lld; text that uses the others is refused",
                    (long long)tokenizer_vocab_size(trainer->tokenizer), (long long)model->vocab);
    if (config->data.max_length != CONFIG_AUTO && config->data.max_length > model->context)
        log_warning("data.max_length: %lld tokens are more than the model's context of %lld",
                    (long long)config->data.max_length, (long long)model->context);
    DatasetOptions options = dataset_options(trainer, model, pool);
    DatasetSource sources[CONFIG_MAX_PATHS];
    for (int64_t i = 0; i < config->data.path_count; i++)
        sources[i] = (DatasetSource){config->data.path[i].path, config->data.path[i].weight};
    options.sources = sources;
    options.source_count = config->data.path_count;
    Dataset all;
    TRY(read_cached(config, &options, &all, err));
    Text name = {0};
    config_print_paths(config, &name);
    log_data("data", name.data, &all);
    warn_of_spelled_ends(trainer->tokenizer, &all);
    text_free(&name);
    if (config->data.eval_path != NULL) {
        trainer->train_data = all;
        options.path = config->data.eval_path;
        options.sources = NULL;
        TRY(read_cached(config, &options, &trainer->eval_data, err));
        log_data("evaluation data", options.path, &trainer->eval_data);
    } else if (config->data.eval_fraction > 0.0 && all.count > 1) {
        Status status = dataset_split(&all, config->data.eval_fraction, (uint64_t)config->seed, &trainer->train_data,
                                      &trainer->eval_data, err);
        dataset_free(&all);
        TRY(status);
    } else {
        if (config->data.eval_fraction > 0.0)
            log_warning("data.eval_fraction: one sequence is all there is, so none is held out and nothing is evaluated");
        trainer->train_data = all;
    }
    const Dataset *sets[2] = {&trainer->train_data, &trainer->eval_data};
    for (int s = 0; s < 2; s++) {
        int64_t count = 0;
        const int32_t *ids = dataset_used_ids(sets[s], &count);
        for (int64_t t = 0; t < count; t++)
            if (ids[t] < 0 || ids[t] >= model->vocab)
                FAIL(
                    "data.path: token %d is not in the model's vocabulary of %lld; the tokenizer does not belong to this model",
                    ids[t], (long long)model->vocab);
    }
    return OK;
}

static Status open_stream(Trainer *trainer, Error *err) {
    const Config *config = &trainer->config;
    Packing packing = strcmp(config->data.packing, "none") == 0 ? PACKING_NONE : PACKING_BEST_FIT;
    int64_t window = config->train.micro_batch_tokens;
    TRY(batch_stream_open(&trainer->stream, &trainer->train_data, packing, window, (uint64_t)config->seed, 1, err));
    if (trainer->eval_data.count > 0) TRY(pack_epoch(&trainer->eval_plan, &trainer->eval_data, packing, window, 0, 0, 0, err));
    int64_t accumulation = config->train.gradient_accumulation;
    if (config->train.steps > 0) {
        trainer->steps = config->train.steps;
        trainer->total_micro_batches = trainer->steps * accumulation;
    } else {
        TRY(batch_stream_total(&trainer->stream, config->train.epochs, &trainer->total_micro_batches, err));
        trainer->steps = (trainer->total_micro_batches + accumulation - 1) / accumulation;
    }
    log_info("packing: %lld micro-batches an epoch, %.1f %% full; %lld steps of %lld micro-batches",
             (long long)pack_count(trainer->stream.plan), 100.0 * pack_fill(trainer->stream.plan), (long long)trainer->steps,
             (long long)accumulation);
    return OK;
}

Status trainer_open_data(Trainer *trainer, const ModelConfig *model, Pool *pool, Error *err) {
    TRY(open_data(trainer, model, pool, err));
    return open_stream(trainer, err);
}

uint64_t trainer_data_hash(const Trainer *trainer) {
    return trainer->train_data.hash ^ (trainer->eval_data.count > 0 ? trainer->eval_data.hash * 3 : 0);
}

/* ---- memory ---------------------------------------------------------------------------------------------------------------- */

static Status take_buffers(Trainer *trainer, Error *err) {
    const Config *config = &trainer->config;
    int64_t window = config->train.micro_batch_tokens, accumulation = config->train.gradient_accumulation;
    TRY(arena_create(&trainer->buffers, "micro-batches", run_buffer_bytes(config), err));
    TRY(batch_buffer_take(&trainer->batch, &trainer->buffers, window, err));
    void *lists;
    TRY(arena_take(&trainer->buffers, (size_t)(accumulation * window) * sizeof(int64_t), &lists, err));
    trainer->step.sequences = lists;
    trainer->step.begin = memory_calloc((size_t)accumulation + 1, sizeof(int64_t));
    trainer->step.epoch = memory_calloc((size_t)accumulation, sizeof(int64_t));
    trainer->losses = memory_calloc((size_t)accumulation, sizeof(double));
    return replicas_open(&trainer->replicas, trainer->comm, &trainer->engine.params, &trainer->engine.state, accumulation, err);
}

static Status check_equal(const char *what, size_t planned, size_t actual, Error *err) {
    if (planned == actual) return OK;
    FAIL("internal error: the plan says %zu bytes for %s and %zu were taken", planned, what, actual);
}

/* The plan is the arenas, to the byte. */
static Status check_plan(const Trainer *trainer, Error *err) {
    const RunPlan *plan = &trainer->plan;
    const Engine *engine = &trainer->engine;
    TRY(check_equal("what is trained", plan->adapters + plan->optimizer, engine->state.arena.capacity, err));
    TRY(check_equal("activations", plan->activations, engine->arena.capacity, err));
    TRY(check_equal("layers' inputs in host memory", plan->train.stash, engine->stash.capacity, err));
    TRY(check_equal("rope tables", plan->rope, engine->rope.arena.capacity, err));
    TRY(check_equal("micro-batches", plan->buffers, trainer->buffers.capacity, err));
    TRY(check_equal("fake quantization", plan->qat, engine->qat != NULL ? qat_taken(engine->qat) : 0, err));
    if (engine->weights != NULL) {
        TRY(check_equal("the base", plan->weights.arena, weights_bytes(engine->weights), err));
        TRY(check_equal("dequantized layers", plan->weights.dense, weights_dense_bytes(engine->weights), err));
        TRY(check_equal("pinned weights", plan->weights.pinned, weights_pinned_bytes(engine->weights), err));
    }
    return OK;
}

static Status open_tapes(Trainer *trainer, Error *err) {
    Engine *engine = &trainer->engine;
    int64_t window = trainer->config.train.micro_batch_tokens;
    engine->stashed_layers = trainer->plan.stashed_layers;
    TRY(engine_tape(engine, TAPE_TRAIN, trainer->plan.recompute, window, window, 0, &trainer->train_tape, err));
    TRY(engine_tape(engine, TAPE_EVAL, RECOMPUTE_NONE, window, window, 0, &trainer->eval_tape, err));
    if (engine->distill) TRY(engine_teacher_tape(engine, window, &trainer->teacher_tape, err));
    Tape *tapes[4] = {trainer->train_tape, trainer->eval_tape, NULL, trainer->teacher_tape};
    if (trainer->plan.sample_context > 0) {
        int64_t context = trainer->plan.sample_context;
        TRY(generator_create(&trainer->generator, engine, context, context < GENERATE_CHUNK ? context : GENERATE_CHUNK, 1,
                             err));
        tapes[2] = generator_tape(trainer->generator);
    }
    if (engine->distill)
        TRY(device_arena_create(&trainer->teacher, &engine->backend, &engine->exec, "the teacher", trainer->plan.teacher, err));
    return engine_reserve(engine, tapes, 4, window, trainer->plan.max_length, err);
}

/* What the arenas take there, and what is measured beyond them. */
static Status log_device(const Trainer *trainer, Error *err) {
    const Engine *engine = &trainer->engine;
    size_t left, total, taken = engine_device_bytes(engine);
    if (!engine->backend.on_device) return OK;
    if (trainer->generator != NULL) taken += generator_device_bytes(trainer->generator);
    taken += trainer->teacher.capacity;
    TRY(engine->backend.memory_left(&engine->exec, &left, &total, err));
    char planned[32], more[32];
    log_info("on the device: planned and taken %s; %s more for libraries, CUDA's context and other programs",
             format_bytes((double)taken, planned, sizeof planned),
             format_bytes((double)(total - left) - (double)taken, more, sizeof more));
    return OK;
}

/* ---- the whole -------------------------------------------------------------------------------------------------------------- */

static Status open_engine(Trainer *trainer, int threads, Error *err) {
    const Config *config = &trainer->config;
    int full = strcmp(config->method, "full") == 0;
    EngineOptions options = {.model = config->model.path,
                             .act = precision_type(config->precision),
                             .threads = threads,
                             .cpu = getenv("NIBBLE_CPU"),
                             .device = config->device,
                             .method = full ? METHOD_FULL : METHOD_LORA,
                             .random_weights = full && strcmp(config->train.init, "random") == 0,
                             .seed = (uint64_t)config->seed,
                             .config = config,
                             .comm = trainer->comm,
                             .optimizer = 1};
    TRY(weight_options_from_config(config, &options.weights, err));
    options.weights.places = trainer->plan.places;
    TRY(engine_open(&trainer->engine, &options, err));
    char base[32], peak[32];
    if (trainer->engine.weights != NULL)
        log_info("base: %s in memory, most resident so far %s",
                 format_bytes((double)weights_bytes(trainer->engine.weights), base, sizeof base),
                 format_bytes((double)memory_resident_peak(), peak, sizeof peak));
    return OK;
}

static const char *token_text(const Trainer *trainer, int32_t id) {
    const char *text = tokenizer_token(trainer->tokenizer, id);
    return text != NULL ? text : "a token without a name";
}

static Status warn_of_untrained_tokens(const Trainer *trainer, Error *err) {
    if (trainer->engine.weights == NULL) return OK; /* method full trains the embeddings as well */
    WeightView embedding = weights_view(trainer->engine.weights, WEIGHT_EMBED);
    if (embedding.nested_codes != NULL || embedding.scales != NULL)
        return OK; /* packed: other rows than the model has are near each other */
    void *copy;
    int64_t count = 0;
    const int32_t *ids = dataset_used_ids(&trainer->train_data, &count);
    Status status = weights_host_view(trainer->engine.weights, WEIGHT_EMBED, &embedding, &copy, err);
    EmbeddingFaults faults = {.example = -1};
    if (status == OK) faults = embedding_check(&embedding, ids, count);
    memory_free(copy);
    if (faults.example < 0) return status;
    char other[96] = "is near zero";
    if (faults.equal_to >= 0) (void)snprintf(other, sizeof other, "equals that of %.60s", token_text(trainer, faults.equal_to));
    log_warning(
        "%lld of the data's %lld different tokens look untrained in the base, and adapters leave embeddings as they are: "
        "the embedding of %.60s (id %d) %s; a template whose tokens the base knows may suit it better",
        (long long)(faults.zero + faults.equal), (long long)faults.used, token_text(trainer, faults.example),
        (int)faults.example, other);
    return OK;
}

static Status resume_from_checkpoint(Trainer *trainer, ParamState *whole, Error *err) {
    Engine *engine = &trainer->engine;
    CheckpointState fresh = trainer->progress;
    Text skipped = {0};
    int found = 0;
    Status status =
        checkpoint_load(trainer->config.output.path, engine->params.elements, &trainer->progress, whole, &found, &skipped, err);
    for (char *line = skipped.length ? strtok(skipped.data, "\n") : NULL; line != NULL; line = strtok(NULL, "\n"))
        log_warning("%s", line);
    text_free(&skipped);
    TRY(status);
    if (!found) {
        log_info("--resume: no valid checkpoint in %s, starting at step 0", trainer->config.output.path);
        trainer->progress = fresh;
        return OK;
    }
    const CheckpointState *p = &trainer->progress;
    if (p->data_hash != fresh.data_hash)
        FAIL("--resume: the data is not what the checkpoint was made with (files, tokenizer or template changed)");
    if (p->weights_hash != fresh.weights_hash)
        FAIL("--resume: the base model in %s is not the one the checkpoint was made with", trainer->config.model.path);
    if (p->config_hash != fresh.config_hash) FAIL("--resume: the checkpoint belongs to another config");
    params_refresh_copy(&engine->state, &engine->params, engine->exec.config.act);
    TRY(engine_store_params(engine, err));
    if (p->step == 0) trainer->progress = fresh; /* stopped before the first step: the run begins again, with its evaluation */
    log_info("resumed at step %lld of %lld", (long long)p->step, (long long)trainer->steps);
    return OK;
}

/* Rank 0 reads, and gives everybody what it read. */
static Status resume(Trainer *trainer, Error *err) {
    Engine *engine = &trainer->engine;
    ParamState whole;
    replicas_whole_state(trainer->replicas, &engine->state, &whole);
    Status status = comm_rank(trainer->comm) == 0 ? resume_from_checkpoint(trainer, &whole, err) : OK;
    if (status == OK) status = replicas_share_state(trainer->replicas, &whole, &trainer->progress, err);
    replicas_whole_free(&engine->state, &whole);
    TRY(status);
    if (trainer->comm == NULL) return OK;
    params_refresh_copy(&engine->state, &engine->params, engine->exec.config.act);
    return engine_store_params(engine, err);
}

static Status open_state(Trainer *trainer, Error *err) {
    Engine *engine = &trainer->engine;
    trainer->progress = (CheckpointState){.first_eval = NAN,
                                          .best_eval = NAN,
                                          .best_step = -1,
                                          .last_eval = -1,
                                          .data_hash = trainer_data_hash(trainer),
                                          .weights_hash = engine->weights != NULL ? weights_hash(engine->weights) : 0,
                                          .config_hash = run_config_hash(&trainer->config),
                                          .elements = engine->params.elements};
    engine->weights_hash = trainer->progress.weights_hash;
    TRY(trainer_ranks_check(trainer, err));
    return trainer->resume ? resume(trainer, err) : OK;
}

/* One rank of a machine first: what it puts into the token cache the others find there. */
static Status open_data_in_turn(Trainer *trainer, Status status, const ModelConfig *model, Pool *pool, Error *err) {
    int first = comm_local_rank(trainer->comm) == 0;
    TRY(comm_agree(trainer->comm, status, err));
    if (first) status = trainer_open_data(trainer, model, pool, err);
    TRY(comm_agree(trainer->comm, status, err));
    if (!first) status = trainer_open_data(trainer, model, pool, err);
    return comm_agree(trainer->comm, status, err);
}

/* What the machine decided, and why. */
static void log_choices(const Trainer *trainer, int window_was_automatic, size_t limit) {
    const Config *config = &trainer->config;
    char have[32], need[32];
    (void)format_bytes((double)limit, have, sizeof have);
    (void)format_bytes((double)trainer->plan.total, need, sizeof need);
    if (window_was_automatic)
        log_info("train.micro_batch_tokens auto: %lld, so a step has %lld tokens; %s may be taken",
                 (long long)config->train.micro_batch_tokens,
                 (long long)(config->train.micro_batch_tokens * config->train.gradient_accumulation), have);
    if (trainer->plan.choice[0] != 0) log_info("memory: %s of %s: %s", need, have, trainer->plan.choice);
}

/* What is left on the rank that has least, so that all of them choose the same. */
static Status least_of_ranks(Comm *comm, Status status, size_t *bytes, Error *err) {
    int64_t negative = -(int64_t)*bytes;
    TRY(comm_agree(comm, status, err));
    TRY(comm_max(comm, &negative, err));
    *bytes = (size_t)-negative;
    return OK;
}

static Status open_rest(Trainer *trainer, int threads, Error *err) {
    const Config *config = &trainer->config;
    ModelConfig *model = memory_alloc(sizeof *model);
    WeightFacts *facts = NULL;
    Device device = {0};
    Pool *pool = NULL;
    size_t limit = 0;
    int automatic = config->train.micro_batch_tokens == CONFIG_AUTO;
    Error about_weights = {0}; /* said after what is wrong with the config, and before data are read */
    Status found = OK, status = model_config_read(config->model.path, model, err);
    if (status == OK && strcmp(config->method, "full") != 0)
        found = weights_facts(&facts, config->model.path, model, &about_weights);
    if (status == OK) status = device_open(&device, config->device, getenv("NIBBLE_CPU"), err);
    if (status == OK) status = pool_create(&pool, threads, err);
    if (status == OK) status = run_memory_limit(config, &device, &limit, err);
    if (strcmp(config->train.memory, "auto") == 0 && !device.backend.on_device) limit /= (size_t)comm_local_size(trainer->comm);
    int ranks = comm_size(trainer->comm), used = pool_threads(pool);
    size_t least = limit;
    if (automatic) status = least_of_ranks(trainer->comm, status, &least, err);
    if (status == OK) status = run_window_choose(&trainer->config, model, facts, &device.backend, used, ranks, least, err);
    if (status == OK) status = run_plan(config, model, facts, &device.backend, used, ranks, limit, &trainer->plan, err);
    if (status == OK && found != OK) *err = about_weights;
    if (status == OK) status = found;
    if (status == OK) log_choices(trainer, automatic, least);
    status = open_data_in_turn(trainer, status, model, pool, err);
    pool_free(pool);
    device_close(&device);
    weights_facts_free(facts);
    memory_free(model);
    return status;
}

Status trainer_open(Trainer *trainer, const char *config_path, const char *const *overrides, int override_count, int resume,
                    int threads, Error *err) {
    return trainer_open_rank(trainer, NULL, config_path, overrides, override_count, resume, threads, err);
}

/* A run that goes on has the micro-batch that it began with, whatever is free now. */
static Status read_window(Config *config, Error *err) {
    if (config->train.micro_batch_tokens != CONFIG_AUTO) return OK;
    char *path = path_join(config->output.path, "config.json");
    Status status = OK;
    if (file_exists(path)) {
        Config old;
        status = config_load(&old, path, NULL, 0, err);
        if (status == OK) config->train.micro_batch_tokens = old.train.micro_batch_tokens;
        if (status == OK) config_free(&old);
    }
    memory_free(path);
    return status;
}

static Status adopt_window(Comm *comm, Config *config, Error *err) {
    TRY(comm_agree(comm, comm_rank(comm) == 0 ? read_window(config, err) : OK, err));
    return comm_broadcast(comm, COMM_HOST, &config->train.micro_batch_tokens, sizeof config->train.micro_batch_tokens, 0,
                          COMM_CONTROL, err);
}

#define OPENING_S 1800.0 /* at least, for a rank that reads data or weights while others wait */

Status trainer_open_rank(Trainer *trainer, Comm *comm, const char *config_path, const char *const *overrides,
                         int override_count, int resume, int threads, Error *err) {
    memset(trainer, 0, sizeof *trainer);
    trainer->comm = comm;
    trainer->config_path = config_path;
    trainer->resume = resume;
    trainer->gemm_peak = NAN;
    TRY(comm_agree(comm, config_load(&trainer->config, config_path, overrides, override_count, err), err));
    double limit = trainer->config.distributed.timeout_s;
    comm_set_timeout(comm, limit > OPENING_S ? limit : OPENING_S);
    if (resume) TRY(adopt_window(comm, &trainer->config, err));
    TRY(comm_agree(comm, comm_rank(comm) == 0 ? run_folder_check(&trainer->config, resume, err) : OK, err));
    TRY(open_rest(trainer, threads, err));
    TRY(open_engine(trainer, threads, err));
    TRY(comm_attach(comm, trainer->engine.device.context, err));
    TRY(warn_of_untrained_tokens(trainer, err));
    TRY(open_tapes(trainer, err));
    TRY(take_buffers(trainer, err));
    TRY(check_plan(trainer, err));
    TRY(log_device(trainer, err));
    TRY(comm_agree(comm, comm_rank(comm) == 0 ? run_folder_open(&trainer->config, resume, err) : OK, err));
    TRY(trainer_find_ranges(trainer, err));
    TRY(open_state(trainer, err));
    int64_t step = trainer->progress.step; /* an evaluation sees what the last step computed with */
    if (trainer->engine.qat != NULL) qat_set_step(trainer->engine.qat, step > 0 ? step - 1 : 0);
    trainer->gemm_peak = ceiling_gemm(&trainer->engine.backend, &trainer->engine.exec);
    TRY(comm_sum(comm, &trainer->gemm_peak, 1, COMM_F64, COMM_CONTROL, err)); /* measured by all at the same time */
    comm_set_timeout(comm, limit);
    return OK;
}

void trainer_close(Trainer *trainer) {
    generator_free(trainer->generator);
    tape_free(trainer->train_tape);
    tape_free(trainer->eval_tape);
    tape_free(trainer->teacher_tape);
    device_arena_free(&trainer->teacher, &trainer->engine.backend, &trainer->engine.exec);
    pack_free(trainer->eval_plan);
    batch_stream_close(&trainer->stream);
    dataset_free(&trainer->train_data);
    dataset_free(&trainer->eval_data);
    tokenizer_close(trainer->tokenizer);
    memory_free(trainer->step.begin);
    memory_free(trainer->step.epoch);
    memory_free(trainer->losses);
    replicas_free(trainer->replicas);
    arena_free(&trainer->buffers);
    engine_close(&trainer->engine);
    config_free(&trainer->config);
    memset(trainer, 0, sizeof *trainer);
}
