#include "train/engine.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/log.h"
#include "core/philox.h"
#include "train/device_memory.h"
#include "train/qat_scales.h"

DType precision_type(const char *precision) {
    return strcmp(precision, "f32") == 0 ? DTYPE_F32 : DTYPE_BF16;
}

WeightFormat dense_format(DType act, DType file) {
    return act == DTYPE_F32 && file != DTYPE_BF16 ? WEIGHT_F32 : WEIGHT_BF16;
}

Status weight_options_from_config(const Config *config, WeightOptions *options, Error *err) {
    *options = (WeightOptions){.act = precision_type(config->precision), .linear = WEIGHT_BF16, .block_size = 64};
    if (strcmp(config->method, "qlora") != 0) return OK;
    static const struct {
        const char *name;
        WeightFormat format;
    } types[] = {{"nf4", WEIGHT_NF4}, {"fp4", WEIGHT_FP4}, {"int8", WEIGHT_INT8}, {"int4", WEIGHT_INT4}};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        if (strcmp(config->quant.type, types[i].name) != 0) continue;
        options->linear = types[i].format;
        options->double_quant = config->quant.double_quant && (types[i].format == WEIGHT_NF4 || types[i].format == WEIGHT_FP4);
        options->block_size = (int32_t)config->quant.block_size;
        return OK;
    }
    FAIL_USAGE("quant.type: want nf4, fp4, int8 or int4, got \"%s\"", config->quant.type);
}

/* ---- method full: every weight is a parameter ------------------------------------------------------------------------- */

Status full_params(ParamSet *set, const ModelConfig *model, int64_t **offsets, Error *err) {
    int32_t count = weight_count(model);
    *offsets = memory_alloc((size_t)count * sizeof **offsets);
    for (int32_t id = 0; id < count; id++) {
        int64_t rows, cols;
        (*offsets)[id] = -1;
        if (id == WEIGHT_HEAD && model->tied_embeddings) continue;
        if (!weight_describe(model, id, NULL, 0, &rows, &cols)) continue;
        if (cols > 0 && rows > INT64_MAX / 64 / cols)
            FAIL("weight %d has too many elements: %lld x %lld", (int)id, (long long)rows, (long long)cols);
        (*offsets)[id] =
            params_add(set, (ParamEntry){.role = PARAM_WEIGHT, .weight = id, .rows = rows, .cols = cols, .decay = rows > 1});
    }
    return OK;
}

static Status full_acquire(void *self, int32_t id, Pass pass, WeightView *view, Error *err) {
    (void)pass;
    const Engine *engine = self;
    int64_t rows, cols;
    if (!weight_describe(&engine->model, id, NULL, 0, &rows, &cols) || engine->weight_gradient[id] < 0)
        FAIL("the model has no weight number %d", (int)id);
    DType act = engine->exec.config.act;
    *view = (WeightView){.format = act == DTYPE_F32 ? WEIGHT_F32 : WEIGHT_BF16,
                         .rows = rows,
                         .cols = cols,
                         .data = params_there(&engine->state, (const uint8_t *)engine->state.copy +
                                                                  (size_t)engine->weight_gradient[id] * dtype_size(act))};
    return OK;
}

/* Normal weights of standard deviation 0.02 (1/sqrt(2 layers) of it where a product ends in the residual stream, as GPT-2),
 * norms 1, biases 0: a function of (seed, weight, element). */
static void draw_weights(Engine *engine, uint64_t seed) {
    for (int64_t e = 0; e < engine->params.count; e++) {
        const ParamEntry *entry = &engine->params.entries[e];
        float *out = engine->state.master + entry->offset;
        int64_t numbers = entry->rows * entry->cols;
        int in_layer = entry->weight >= WEIGHT_GLOBALS;
        int kind = in_layer ? (entry->weight - WEIGHT_GLOBALS) % LAYER_WEIGHTS : -1;
        int vector = entry->rows == 1 && (entry->weight == WEIGHT_FINAL_NORM || kind >= LAYER_LINEARS);
        if (vector) {
            int norm = entry->weight == WEIGHT_FINAL_NORM || kind >= LAYER_INPUT_NORM;
            for (int64_t i = 0; i < numbers; i++)
                out[i] = norm ? 1.0f : 0.0f;
            continue;
        }
        double deviation = 0.02;
        if (kind == LAYER_O || kind == LAYER_DOWN) deviation /= sqrt(2.0 * (double)engine->model.layers);
        for (int64_t i = 0; i < numbers; i++) {
            double u = (double)random_uniform(seed, RANDOM_WEIGHTS, (uint64_t)entry->weight, 2 * (uint64_t)i);
            double v = (double)random_uniform(seed, RANDOM_WEIGHTS, (uint64_t)entry->weight, 2 * (uint64_t)i + 1);
            out[i] = (float)(deviation * sqrt(-2.0 * log(1.0 - u)) * cos(6.283185307179586 * v)); /* Box-Muller */
        }
    }
}

/* The masters start from the folder's weights, which are then dropped. */
static Status copy_weights(Engine *engine, const EngineOptions *options, Error *err) {
    WeightOptions dense = {.act = DTYPE_F32, .linear = WEIGHT_F32, .block_size = 64};
    ModelWeights *weights;
    TRY(weights_load(&weights, options->model, &engine->model, &dense, &engine->backend, engine->pool, err));
    for (int64_t e = 0; e < engine->params.count; e++) {
        const ParamEntry *entry = &engine->params.entries[e];
        WeightView view = weights_view(weights, entry->weight);
        engine->backend.dequantize(&view, 0, entry->rows * entry->cols, engine->state.master + entry->offset, DTYPE_F32);
    }
    weights_free(weights);
    return OK;
}

static void split_optimizer(ParamSet *params, const EngineOptions *options) {
    if (options->config == NULL || !options->config->distributed.shard_optimizer) return;
    params->ranks = comm_size(options->comm);
    params->rank = comm_rank(options->comm);
}

static Status open_full(Engine *engine, const EngineOptions *options, Error *err) {
    TRY(full_params(&engine->params, &engine->model, &engine->weight_gradient, err));
    split_optimizer(&engine->params, options);
    TRY(params_state_create(&engine->state, &engine->params, options->act, options->optimizer, err));
    if (options->random_weights)
        draw_weights(engine, options->seed);
    else
        TRY(copy_weights(engine, options, err));
    params_refresh_copy(&engine->state, &engine->params, options->act);
    engine->source = (WeightSource){.self = engine, .acquire = full_acquire};
    return OK;
}

/* ---- frozen base, with or without adapters ------------------------------------------------------------------------------ */

#define LARGE_BASE ((size_t)1 << 28) /* from here on a sample takes minutes */

/* The model's own fixed ranges, where it is run with such. */
static Status take_ranges(Engine *engine, Error *err) {
    if (!engine->activations.fixed) return OK;
    if (!engine->model.activations.fixed)
        FAIL_USAGE("activations int8-static: the model has no nibble_ranges; only one that was trained so has them");
    size_t bytes = (size_t)(engine->model.layers * RANGES_PER_LAYER) * sizeof *engine->ranges;
    engine->ranges = memory_alloc(bytes);
    memcpy(engine->ranges, engine->model.ranges, bytes);
    return OK;
}

static Status open_qat(Engine *engine, const Config *config, Error *err) {
    QatShape shape = {.model = &engine->model,
                      .adapter = &engine->adapter,
                      .backend = &engine->backend,
                      .exec = engine->exec.config,
                      .there = &engine->exec,
                      .scales = engine->scales,
                      .rows = config->train.micro_batch_tokens};
    TRY(qat_options(config, &shape.options, err));
    TRY(qat_activations(config, &engine->model, &engine->activations, err));
    if (shape.options.mode == QAT_NONE) return take_ranges(engine, err);
    engine->qat_mode = shape.options.mode;
    if (config->train.samples > 0 && weights_bytes(engine->weights) > LARGE_BASE)
        log_warning(
            "qat.mode %s: the report's samples quantize the whole model again for every token; train.samples=0 spares that",
            config->qat.mode);
    TRY(qat_open(&engine->qat, &shape, engine->weights, &engine->state, engine->pool, err));
    engine->source = qat_source(engine->qat);
    return OK;
}

/* lora.init: the same modules, ranks and scales as the config's, or the values would mean something else. */
static Status first_values(Engine *engine, const EngineOptions *options, Error *err) {
    const char *folder = options->config->lora.init;
    if (folder == NULL) {
        adapter_init(&engine->params, options->seed, engine->state.master);
        return OK;
    }
    Adapter other = {0};
    ParamSet params = {0};
    Status status = adapter_read(&other, &params, folder, &engine->model, err);
    for (int64_t m = 0; m < engine->model.layers * LAYER_LINEARS && status == OK; m++)
        if (other.modules[m].rank != engine->adapter.modules[m].rank ||
            other.modules[m].scale != engine->adapter.modules[m].scale)
            status =
                error_set(err, ERR_USAGE,
                          "lora.init: %s has other modules, ranks or scales than lora.target_modules, lora.rank and lora.alpha "
                          "give; make them the same",
                          folder);
    adapter_free(&other);
    params_free(&params);
    TRY(status);
    return adapter_read_values(&engine->adapter, &engine->params, folder, &engine->model, engine->state.master, err);
}

static Status add_scales(Engine *engine, const Config *config, Error *err) {
    QatOptions options;
    TRY(qat_options(config, &options, err));
    return qat_scale_params(&options, &engine->model, &engine->params, &engine->scales, err);
}

static Status open_frozen(Engine *engine, const EngineOptions *options, Error *err) {
    if (options->adapter != NULL)
        TRY(adapter_read(&engine->adapter, &engine->params, options->adapter, &engine->model, err));
    else if (options->method == METHOD_LORA)
        TRY(adapter_create(&engine->adapter, &engine->params, options->config, &engine->model, err));
    if (options->config != NULL) TRY(add_scales(engine, options->config, err));
    WeightOptions stored = options->weights;
    if (engine->backend.on_device) stored.exec = &engine->exec;
    if (options->config != NULL && options->config->distributed.shard_base) {
        stored.ranks = comm_size(options->comm);
        stored.comm = options->comm;
    }
    if (options->random_weights)
        TRY(weights_random(&engine->weights, &engine->model, &stored, &engine->backend, options->seed, err));
    else
        TRY(weights_load(&engine->weights, options->model, &engine->model, &stored, &engine->backend, engine->pool, err));
    if (options->small_head) TRY(weights_quantize_head(engine->weights, engine->pool, err));
    engine->source = engine->base = weights_source(engine->weights);
    engine->distill = options->config != NULL && strcmp(options->config->train.loss, "distill") == 0;
    if (engine->adapter.modules == NULL) return take_ranges(engine, err);
    split_optimizer(&engine->params, options);
    TRY(params_state_create(&engine->state, &engine->params, options->act, options->optimizer, err));
    if (options->adapter != NULL)
        TRY(adapter_read_values(&engine->adapter, &engine->params, options->adapter, &engine->model, engine->state.master,
                                err));
    else
        TRY(first_values(engine, options, err));
    qat_scale_init(&engine->params, engine->state.master);
    params_refresh_copy(&engine->state, &engine->params, options->act);
    return options->config != NULL ? open_qat(engine, options->config, err) : take_ranges(engine, err);
}

static Status check_memory(const Engine *engine, const EngineOptions *options, Error *err) {
    int on_device = engine->backend.on_device;
    size_t left, need = options->needs + (on_device ? 0 : options->needs_beside);
    if (options->needs == 0) return OK;
    TRY(device_memory_left(&engine->device, &left, err));
    if (!on_device) left /= (size_t)comm_local_size(options->comm);
    if (need <= left) return OK;
    char want[32], have[32];
    FAIL("%s: needs %s and %s are left%s; try --quant nf4, or fewer tokens", options->model,
         format_bytes((double)need, want, sizeof want), format_bytes((double)left, have, sizeof have),
         on_device ? " on the device" : "");
}

Status engine_open(Engine *engine, const EngineOptions *options, Error *err) {
    memset(engine, 0, sizeof *engine);
    engine->method = options->method;
    engine->comm = options->comm;
    TRY(model_config_read(options->model, &engine->model, err));
    engine->activations = options->rounding != NULL ? *options->rounding : engine->model.activations;
    TRY(device_open(&engine->device, options->device, options->cpu, err));
    engine->backend = engine->device.backend;
    if (engine->device.reason[0] != 0 && (options->optimizer || !engine->device.absent))
        log_info("device auto: cpu, because %s", engine->device.reason);
    TRY(check_memory(engine, options, err));
    TRY(pool_create(&engine->pool, options->threads, err));
    engine->exec = (Exec){.config = {.act = options->act, .threads = pool_threads(engine->pool)},
                          .pool = engine->pool,
                          .device = engine->device.context};
    int dense_wanted =
        options->method == METHOD_FULL || (options->method == METHOD_LORA && options->weights.linear == WEIGHT_BF16);
    int is_quantized = engine->model.prequant != PREQUANT_NONE && engine->model.prequant != PREQUANT_BNB_8BIT;
    if (is_quantized && dense_wanted)
        FAIL_USAGE("%s is already quantized; method qlora trains on it as it is, and method %s needs the 16-bit model",
                   options->model, options->method == METHOD_FULL ? "full" : "lora");
    if (options->method == METHOD_FULL) return open_full(engine, options, err);
    return open_frozen(engine, options, err);
}

void engine_close(Engine *engine) {
    qat_free(engine->qat);
    weights_free(engine->weights);
    adapter_free(&engine->adapter);
    params_free(&engine->params);
    device_arena_free(&engine->state.mirror, &engine->backend, &engine->exec);
    params_state_free(&engine->state);
    memory_free(engine->weight_gradient);
    memory_free(engine->scales);
    memory_free(engine->ranges);
    device_arena_free(&engine->rope_mirror, &engine->backend, &engine->exec);
    rope_memory_free(&engine->rope);
    device_arena_free(&engine->arena, &engine->backend, &engine->exec);
    pinned_arena_free(&engine->stash, &engine->backend, &engine->exec);
    device_close(&engine->device);
    pool_free(engine->pool);
    memset(engine, 0, sizeof *engine);
}

/* ---- tapes ------------------------------------------------------------------------------------------------------------------ */

ModelShape engine_shape(const Engine *engine) {
    ModelShape shape = {.config = &engine->model, .weight_gradient = engine->weight_gradient};
    if (engine->method == METHOD_FULL) {
        shape.linear = shape.dense = engine->exec.config.act == DTYPE_F32 ? WEIGHT_F32 : WEIGHT_BF16;
    } else {
        shape.linear = weights_linear_format(engine->weights);
        shape.weights = engine->weights;
        shape.dense = weights_view(engine->weights, WEIGHT_EMBED).format;
    }
    if (engine->adapter.modules != NULL) shape.adapter = &engine->adapter;
    shape.qat = engine->qat_mode;
    shape.activations = engine->activations;
    shape.learn_scales = engine->scales != NULL;
    return shape;
}

Status engine_tape(Engine *engine, TapeMode mode, Recompute recompute, int64_t rows, int64_t supervised, int64_t cache_rows,
                   Tape **tape, Error *err) {
    ModelShape shape = engine_shape(engine);
    TapeOptions options = {.backend = &engine->backend,
                           .exec = engine->exec.config,
                           .mode = mode,
                           .recompute = recompute,
                           .stashed = mode == TAPE_TRAIN ? engine->stashed_layers : 0,
                           .rows = rows,
                           .supervised = supervised,
                           .distill = engine->distill && mode == TAPE_TRAIN,
                           .cache_rows = cache_rows};
    return model_record(tape, &shape, &options, err);
}

Status engine_teacher_tape(Engine *engine, int64_t rows, Tape **tape, Error *err) {
    ModelShape shape = engine_shape(engine);
    TapeOptions options = {
        .backend = &engine->backend, .exec = engine->exec.config, .mode = TAPE_EVAL, .rows = rows, .supervised = rows};
    shape.adapter = NULL;
    shape.qat = QAT_NONE;
    shape.activations = (ActivationQuant){0};
    shape.learn_scales = 0;
    return model_record(tape, &shape, &options, err);
}

Status engine_teach(const Engine *engine, const Tape *teacher, const Batch *batch, void *out, Error *err) {
    TapeRun run = engine_run(engine, batch);
    run.weights = &engine->base;
    run.recording = run.unrounded = 0;
    run.final = out;
    return tape_run(teacher, &run, err);
}

Status engine_reserve(Engine *engine, Tape *const *tapes, int count, int64_t positions, int64_t longest, Error *err) {
    size_t bytes = 0, stash = 0;
    for (int i = 0; i < count; i++) {
        TapePlan plan;
        if (tapes[i] == NULL) continue;
        tape_plan(tapes[i], &plan);
        if (plan.arena > bytes) bytes = plan.arena;
        if (plan.stash > stash) stash = plan.stash;
    }
    TRY(rope_memory_create(&engine->rope, &engine->model, positions, longest, err));
    if (engine->weights != NULL) TRY(weights_to_device(engine->weights, &engine->backend, &engine->exec, err));
    TRY(mirror_create(&engine->state.mirror, &engine->state.arena, &engine->backend, &engine->exec, err));
    TRY(mirror_create(&engine->rope_mirror, &engine->rope.arena, &engine->backend, &engine->exec, err));
    if (stash > 0)
        TRY(pinned_arena_create(&engine->stash, &engine->backend, &engine->exec, "layers' inputs in host memory", stash, err));
    return device_arena_create(&engine->arena, &engine->backend, &engine->exec, "activations", bytes, err);
}

Status engine_store_params(Engine *engine, Error *err) {
    return mirror_store(&engine->state.mirror, &engine->state.arena, &engine->backend, &engine->exec, err);
}

Status engine_fetch_params(Engine *engine, Error *err) {
    return mirror_fetch(&engine->state.mirror, &engine->state.arena, &engine->backend, &engine->exec, err);
}

size_t engine_device_bytes(const Engine *engine) {
    if (!engine->backend.on_device) return 0;
    size_t weights = engine->weights != NULL ? weights_device_bytes(engine->weights) : 0;
    if (engine->qat != NULL) weights += qat_taken(engine->qat);
    return weights + engine->state.mirror.capacity + engine->rope_mirror.capacity + engine->arena.capacity;
}

Status engine_clear_gradients(Engine *engine, Error *err) {
    return device_clear(params_there(&engine->state, engine->state.gradient), (size_t)engine->params.elements * sizeof(float),
                        &engine->backend, &engine->exec, err);
}

Status engine_idle_pass(const Engine *engine, Error *err) {
    return weights_idle_pass(engine->weights, 0, NULL, NULL, err);
}

/* Ranks that wait for this one see that it works. */
static Status show_life(void *self, int32_t segment, Pass pass, Error *err) {
    (void)segment, (void)pass, (void)err;
    comm_tick(self);
    return OK;
}

int engine_records(const Engine *engine) {
    return engine->backend.on_device && !weights_are_split(engine->weights);
}

TapeRun engine_run(const Engine *engine, const Batch *batch) {
    comm_tick(engine->comm);
    return (TapeRun){.segment_done = engine->comm != NULL && !engine_records(engine) ? show_life : NULL,
                     .segment_self = engine->comm,
                     .exec = &engine->exec,
                     .batch = batch,
                     .weights = &engine->source,
                     .rope = {mirror_at(&engine->rope_mirror, &engine->rope.arena, engine->rope.table.cosine),
                              mirror_at(&engine->rope_mirror, &engine->rope.arena, engine->rope.table.sine)},
                     .arena = engine->arena.base,
                     .stash = engine->stash.base,
                     .params = params_there(&engine->state, engine->state.copy),
                     .gradients = params_there(&engine->state, engine->state.gradient),
                     .ranges = engine->ranges,
                     .recording = engine->qat != NULL ? qat_recording(engine->qat) : 0,
                     .unrounded = engine->qat != NULL && !qat_active(engine->qat)};
}
