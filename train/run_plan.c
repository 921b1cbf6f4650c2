#include "train/run_plan.h"

#include <stdio.h>
#include <string.h>

#include "train/adapter.h"
#include "train/batches.h"
#include "train/engine.h"
#include "train/generate.h"
#include "train/qat.h"
#include "train/qat_scales.h"
#include "train/replicas.h"
#include "train/run_plan_internal.h"

static int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

int64_t run_max_length(const Config *config, const ModelConfig *model) {
    if (config->data.max_length != CONFIG_AUTO) return config->data.max_length;
    int64_t window = config->train.micro_batch_tokens;
    return least(2048, window == CONFIG_AUTO ? model->context : least(model->context, window));
}

/* Of a device's memory: kernels of ours and of cuBLAS are loaded when they run first, and recordings lie there too. */
#define LOADED_LATE ((size_t)256 << 20)
#define LOADED_LATE_PART 32 /* at most, of a small device */

Status run_memory_limit(const Config *config, const Device *device, size_t *bytes, Error *err) {
    *bytes = memory_available();
    if (strcmp(config->train.memory, "auto") == 0 && device != NULL) {
        TRY(device_memory_left(device, bytes, err));
        size_t part = *bytes / LOADED_LATE_PART;
        if (device->backend.on_device) *bytes -= part < LOADED_LATE ? part : LOADED_LATE;
        return OK;
    }
    if (strcmp(config->train.memory, "auto") == 0) return OK;
    uint64_t limit;
    TRY(config_parse_bytes(config->train.memory, &limit, err));
    *bytes = (size_t)limit;
    return OK;
}

size_t run_buffer_bytes(const Config *config) {
    int64_t window = config->train.micro_batch_tokens;
    size_t lists = (size_t)(config->train.gradient_accumulation * window) * sizeof(int64_t);
    return batch_buffer_bytes(window) + arena_align(lists);
}

/* ---- one candidate ------------------------------------------------------------------------------------------------------ */

static Status plan_tape(const PlanInput *in, TapeMode mode, const RunPlan *run, int64_t rows, int64_t cache_rows,
                        TapePlan *plan, Error *err) {
    TapeOptions options = {.backend = in->backend,
                           .exec = {.act = in->act, .threads = in->threads},
                           .mode = mode,
                           .recompute = mode == TAPE_TRAIN ? run->recompute : RECOMPUTE_NONE,
                           .stashed = mode == TAPE_TRAIN ? run->stashed_layers : 0,
                           .rows = rows,
                           .supervised = mode == TAPE_GENERATE ? 1 : rows,
                           .distill = mode == TAPE_TRAIN && strcmp(in->config->train.loss, "distill") == 0,
                           .cache_rows = cache_rows};
    Tape *tape;
    TRY(model_record(&tape, &in->shape, &options, err));
    tape_plan(tape, plan);
    tape_free(tape);
    return OK;
}

static Status plan_qat(const PlanInput *in, RunPlan *plan, Error *err) {
    if (in->shape.qat == QAT_NONE) return OK;
    QatShape shape = {.model = in->model,
                      .adapter = in->shape.adapter,
                      .backend = in->backend,
                      .exec = {.act = in->act, .threads = in->threads},
                      .rows = in->config->train.micro_batch_tokens};
    TRY(qat_options(in->config, &shape.options, err));
    return qat_bytes(&shape, &plan->qat, err);
}

Status plan_candidate(PlanInput *in, RunPlan *plan, Error *err) {
    int64_t window = in->config->train.micro_batch_tokens;
    in->base.places = plan->places;
    if (in->has_base) TRY(weights_plan(in->model, &in->base, in->model->dtype, &plan->weights, err));
    if (in->has_base) weights_formats(in->model, &in->base, in->model->dtype, in->formats);
    TRY(plan_tape(in, TAPE_TRAIN, plan, window, 0, &plan->train, err));
    plan->stashed_layers = plan->train.stashed;
    TRY(plan_tape(in, TAPE_EVAL, plan, window, 0, &plan->eval, err));
    plan->activations = plan->train.arena > plan->eval.arena ? plan->train.arena : plan->eval.arena;
    if (plan->sample_context > 0) {
        TapePlan generate_plan;
        TRY(plan_tape(in, TAPE_GENERATE, plan, least(plan->sample_context, GENERATE_CHUNK), plan->sample_context,
                      &generate_plan, err));
        if (generate_plan.arena > plan->activations) plan->activations = generate_plan.arena;
        plan->cache = generator_bytes(in->model, in->act, plan->sample_context, 1);
    }
    plan->activations = arena_align(plan->activations);
    if (strcmp(in->config->train.loss, "distill") == 0) /* the teacher's tape needs less than the student's */
        plan->teacher = arena_align(in->backend->activation_bytes(in->act, window, in->model->hidden));
    TRY(plan_qat(in, plan, err));
    plan->total = plan->weights.arena + plan->weights.dense + plan->adapters + plan->optimizer + plan->activations + plan->qat +
                  plan->rope + plan->buffers + plan->cache + plan->sums + plan->teacher;
    size_t loading = plan->weights.arena + plan->weights.staging;
    plan->peak = plan->total > loading ? plan->total : loading;
    int full = strcmp(in->config->method, "full") == 0;
    plan->flops_per_token =
        model_flops_per_token(in->model, (double)plan->max_length / 2.0, full, plan->recompute == RECOMPUTE_LAYERS);
    return OK;
}

static Status refuse(const RunPlan *plan, const PlanInput *in, size_t available, Error *err) {
    Text table = {0};
    char need[32], have[32], half[32];
    run_plan_print(plan, &table);
    RunPlan smaller = *plan;
    Config config = *in->config;
    PlanInput other = *in;
    other.config = &config;
    int64_t fits = 0;
    for (int64_t tokens = config.train.micro_batch_tokens / 2; tokens >= 128 && fits == 0; tokens /= 2) {
        config.train.micro_batch_tokens = tokens;
        smaller.buffers = run_buffer_bytes(&config);
        smaller.recompute = RECOMPUTE_LAYERS;
        if (plan_candidate(&other, &smaller, NULL) == OK && smaller.peak <= available) fits = tokens;
    }
    Status status;
    const char *needs = format_bytes((double)plan->peak, need, sizeof need);
    const char *has = format_bytes((double)available, have, sizeof have);
    if (fits != 0)
        status = error_set(err, ERR_FAILED,
                           "this run needs %s and %s are left:\n%swhat would fit: train.recompute=\"layers\" with "
                           "train.micro_batch_tokens=%lld (%s)",
                           needs, has, table.data, (long long)fits, format_bytes((double)smaller.peak, half, sizeof half));
    else
        status = error_set(err, ERR_FAILED,
                           "this run needs %s and %s are left:\n%sno smaller micro-batch fits; take a smaller model, "
                           "quant.type nf4 with double_quant, or a machine with more memory",
                           needs, has, table.data);
    text_free(&table);
    return status;
}

/* ---- the plan --------------------------------------------------------------------------------------------------------------- */

/* What the ranks say to each other in a step: see train/replicas.h and train/weights_shard.h. */
static void plan_ranks(const PlanInput *in, const ParamSet *params, RunPlan *plan) {
    int64_t micro_batches = in->config->train.gradient_accumulation, ranks = in->ranks;
    plan->ranks = in->ranks;
    plan->rounds = (micro_batches + ranks - 1) / ranks;
    if (ranks == 1) return;
    if (!in->backend->on_device) plan->sums = replicas_bytes(params, micro_batches, in->ranks); /* NCCL sums in place */
    plan->sent[COMM_GRADIENTS] = replicas_step_bytes(params, 0, in->ranks);
    plan->sent[COMM_BASE] = weights_step_bytes(&plan->weights, in->model->layers, in->ranks, plan->rounds);
    plan->sent[COMM_TRAINED] = replicas_trained_bytes(params, in->act, in->ranks);
    plan->sent[COMM_CONTROL] = replicas_control_bytes(micro_batches, 0, in->ranks);
}

static Status plan_parameters(PlanInput *in, Adapter *adapter, ParamSet *params, int64_t **offsets, RunPlan *plan, Error *err) {
    const Config *config = in->config;
    if (strcmp(config->method, "full") == 0) {
        TRY(full_params(params, in->model, offsets, err));
        in->shape.weight_gradient = *offsets;
        in->shape.linear = in->shape.dense = in->act == DTYPE_F32 ? WEIGHT_F32 : WEIGHT_BF16;
    } else {
        WeightOptions options;
        TRY(weight_options_from_config(config, &options, err));
        if (config->distributed.shard_base) options.ranks = in->ranks;
        options.facts = in->facts;
        TRY(weights_plan(in->model, &options, in->model->dtype, &plan->weights, err));
        in->has_base = 1;
        in->base = options;
        in->formats = memory_alloc((size_t)weight_count(in->model) * sizeof *in->formats);
        in->shape.formats = in->formats;
        TRY(adapter_create(adapter, params, config, in->model, err));
        in->shape.dense = dense_format(in->act, in->model->dtype);
        in->shape.linear = strcmp(config->method, "lora") == 0 ? in->shape.dense : options.linear;
        in->shape.adapter = adapter;
        QatOptions qat;
        TRY(qat_options(config, &qat, err));
        in->shape.qat = qat.mode;
        TRY(qat_activations(config, in->model, &in->shape.activations, err));
        TRY(qat_scale_params(&qat, in->model, params, offsets, err));
        in->shape.learn_scales = *offsets != NULL;
    }
    if (config->distributed.shard_optimizer) params->ranks = in->ranks;
    plan_ranks(in, params, plan);
    size_t all = params_state_bytes(params, in->act, 1);
    plan->adapters = params_state_bytes(params, in->act, 0);
    plan->optimizer = all - plan->adapters;
    plan->trained = params->trained;
    return OK;
}

static Status make_plan(const Config *config, const ModelConfig *model, const WeightFacts *facts, const Backend *backend,
                        int threads, int ranks, size_t available, HostUse most, RunPlan *plan, int *fits, Error *err) {
    memset(plan, 0, sizeof *plan);
    PlanInput in = {.config = config,
                    .model = model,
                    .facts = facts,
                    .backend = backend,
                    .threads = threads,
                    .ranks = ranks,
                    .shape = {.config = model},
                    .act = precision_type(config->precision)};
    plan->max_length = run_max_length(config, model);
    if (config->train.samples > 0) plan->sample_context = least(model->context, config->train.micro_batch_tokens);
    plan->buffers = run_buffer_bytes(config);
    plan->rope = rope_memory_bytes(model, config->train.micro_batch_tokens);
    Adapter adapter = {0};
    ParamSet params = {0};
    int64_t *offsets = NULL;
    Status status = plan_parameters(&in, &adapter, &params, &offsets, plan, err);
    if (status == OK) status = plan_choose(&in, available, most, plan, err);
    int has_room = available == 0 || plan->peak <= available;
    if (fits != NULL) *fits = has_room;
    if (status == OK && !has_room && fits == NULL) status = refuse(plan, &in, available, err);
    adapter_free(&adapter);
    params_free(&params);
    memory_free(offsets);
    memory_free(in.formats);
    return status;
}

Status run_plan(const Config *config, const ModelConfig *model, const WeightFacts *facts, const Backend *backend, int threads,
                int ranks, size_t available, RunPlan *plan, Error *err) {
    return make_plan(config, model, facts, backend, threads, ranks, available, HOST_WEIGHTS, plan, NULL, err);
}

Status run_plan_choose(const Config *config, const ModelConfig *model, const WeightFacts *facts, const Backend *backend,
                       int threads, int ranks, size_t available, HostUse most, RunPlan *plan, int *fits, Error *err) {
    return make_plan(config, model, facts, backend, threads, ranks, available, most, plan, fits, err);
}

/* ---- train.micro_batch_tokens auto ------------------------------------------------------------------------------------------- */

#define WINDOW_MOST 8192
#define WINDOW_LEAST 256
#define WINDOW_GOOD 2048 /* products of so many rows are as fast as larger ones, so fewer rows are not worth a recomputation */

typedef struct WindowTrial {
    const char *recompute;
    HostUse most;
    int64_t least;
    int automatic; /* tried where train.recompute is auto */
} WindowTrial;

Status run_window_choose(Config *config, const ModelConfig *model, const WeightFacts *facts, const Backend *backend,
                         int threads, int ranks, size_t available, Error *err) {
    static char none[] = "none", light[] = "light", layers[] = "layers", host[] = "host";
    const WindowTrial trials[] = {{none, HOST_EMBEDDING, WINDOW_GOOD, 1},  {light, HOST_EMBEDDING, WINDOW_GOOD, 1},
                                  {none, HOST_EMBEDDING, WINDOW_LEAST, 0}, {light, HOST_EMBEDDING, WINDOW_LEAST, 0},
                                  {layers, HOST_INPUTS, WINDOW_LEAST, 1},  {host, HOST_INPUTS, WINDOW_LEAST, 0},
                                  {none, HOST_WEIGHTS, WINDOW_LEAST, 0},   {light, HOST_WEIGHTS, WINDOW_LEAST, 0},
                                  {layers, HOST_WEIGHTS, WINDOW_LEAST, 1}, {host, HOST_WEIGHTS, WINDOW_LEAST, 0}};
    if (config->train.micro_batch_tokens != CONFIG_AUTO) return OK;
    const char *wanted = config->train.recompute;
    int is_free = strcmp(wanted, "auto") == 0, found = 0;
    int64_t longest = config->data.max_length == CONFIG_AUTO ? 0 : config->data.max_length;
    Config other = *config; /* shares its strings; nothing of it is freed */
    if (config->train.dequantized_layers == CONFIG_AUTO) other.train.dequantized_layers = 0;
    int64_t *window = &other.train.micro_batch_tokens;
    for (size_t t = 0; t < sizeof trials / sizeof *trials && !found; t++) {
        const WindowTrial *trial = &trials[t];
        if (is_free ? !trial->automatic : strcmp(wanted, trial->recompute) != 0) continue;
        other.train.recompute = (char *)(uintptr_t)trial->recompute;
        for (*window = WINDOW_MOST; *window >= trial->least && *window >= longest; *window /= 2) {
            RunPlan plan;
            TRY(run_plan_choose(&other, model, facts, backend, threads, ranks, available, trial->most, &plan, &found, err));
            if (found) break;
        }
    }
    config->train.micro_batch_tokens = found ? *window : longest > WINDOW_LEAST ? longest : WINDOW_LEAST;
    return OK;
}
