#include "train/qat.h"

#include <string.h>

#include "train/device_memory.h"
#include "train/engine.h"
#include "train/qat_internal.h"
#include "train/qat_scales.h"
#include "train/weights_internal.h"

static const struct {
    const char *name;
    FakeGrid grid;
    int bits;
} grids[] = {{"int2", FAKE_INT, 2}, {"int3", FAKE_INT, 3},  {"int4", FAKE_INT, 4},  {"int8", FAKE_INT, 8},
             {"nf4", FAKE_NF4, 0},  {"q4_0", FAKE_Q4_0, 0}, {"q8_0", FAKE_Q8_0, 0}, {"q4_k", FAKE_Q4_K, 0}};

Status qat_options(const Config *config, QatOptions *options, Error *err) {
    memset(options, 0, sizeof *options);
    if (strcmp(config->qat.mode, "none") == 0) return OK;
    options->mode = strcmp(config->qat.mode, "merged") == 0 ? QAT_MERGED : QAT_SEPARATE;
    options->start_step = config->qat.start_step;
    options->ramp_steps = config->qat.ramp_steps;
    options->learn_scales = config->qat.learn_scales;
    options->scales = strcmp(config->qat.scales, "mse") == 0    ? SCALES_MSE
                      : strcmp(config->qat.scales, "gptq") == 0 ? SCALES_BASE
                                                                : SCALES_ABSMAX;
    size_t i = 0;
    while (i < sizeof grids / sizeof *grids && strcmp(grids[i].name, config->qat.weights) != 0)
        i++;
    if (i == sizeof grids / sizeof *grids) FAIL_USAGE("qat.weights: \"%.60s\" is not a grid", config->qat.weights);
    options->grid = (FakeQuant){.grid = grids[i].grid,
                                .bits = grids[i].bits,
                                .symmetric = config->qat.symmetric,
                                .group = grids[i].bits == 8 ? 0 : config->qat.group_size,
                                .scale_type = precision_type(config->precision),
                                .double_quant = config->qat.double_quant,
                                .block_size = 64};
    return OK;
}

Status qat_activations(const Config *config, const ModelConfig *model, ActivationQuant *out, Error *err) {
    *out = model->activations;
    if (strcmp(config->qat.mode, "none") == 0) return OK;
    return activation_quant_parse(config->qat.activations, config->qat.kv_cache, out, err);
}

/* ---- memory ---------------------------------------------------------------------------------------------------------------- */

typedef struct Widest {
    int64_t cols, rank_by_cols, rank, nf4_constants, groups;
    int64_t constants[LAYER_LINEARS]; /* scales of a layer's linears that stay */
    size_t slot_group, workspace, nf4;
    QatDeviceBytes device;
} Widest;

static QuantSpec nf4_spec(const FakeQuant *grid) {
    return (QuantSpec){.format = WEIGHT_NF4, .double_quant = grid->double_quant, .block_size = grid->block_size};
}

static int starts_group(LayerWeight kind) {
    return kind == LAYER_Q || kind == LAYER_O || kind == LAYER_GATE || kind == LAYER_DOWN;
}

LinearShape qat_tile_shape(int64_t rows, int64_t in, int64_t out, DType act) {
    LinearShape shape = {.rows = rows, .in = in, .count = 1};
    shape.linear[0] = (LinearSpec){.out = out, .format = act == DTYPE_F32 ? WEIGHT_F32 : WEIGHT_BF16, .train_weight = 1};
    return shape;
}

static Status measure_nf4(const QatShape *shape, int64_t rows, int64_t cols, Widest *widest, Error *err) {
    QuantSpec spec = nf4_spec(&shape->options.grid);
    Arena count;
    QuantizedTensor tensor;
    arena_count(&count, "one weight");
    TRY(quantized_take(&tensor, &spec, rows, cols, &count, err));
    if (count.used > widest->nf4) widest->nf4 = count.used;
    int64_t constants = quant_nested_constants(&spec, rows, cols);
    if (constants > widest->nf4_constants) widest->nf4_constants = constants;
    return OK;
}

static Status measure_tiles(const QatShape *shape, int64_t rows, int64_t cols, Widest *widest, Error *err) {
    int64_t tiles[2] = {QAT_TILE, rows % QAT_TILE};
    for (int t = 0; t < 2; t++) {
        if (tiles[t] == 0 || tiles[t] > rows) continue;
        LinearShape product = qat_tile_shape(shape->rows, cols, tiles[t], shape->exec.act);
        OpPlan plan;
        TRY(shape->backend->linear_plan(&shape->exec, &product, &plan, err));
        if (plan.backward_workspace > widest->workspace) widest->workspace = plan.backward_workspace;
    }
    return OK;
}

/* Whether dV is wanted: for A and B, or for scales. */
static int forms_gradients(const QatOptions *options) {
    return options->mode == QAT_MERGED || options->learn_scales;
}

static Status measure(const QatShape *shape, Widest *widest, size_t slots[LAYER_LINEARS], Error *err) {
    memset(widest, 0, sizeof *widest);
    TRY(qat_scales_check(&shape->options, shape->model, err));
    if (shape->backend->on_device) TRY(qat_device_check(&shape->options, err));
    for (int kind = 0; kind < LAYER_LINEARS; kind++) {
        int32_t id = weight_id(0, (LayerWeight)kind);
        int64_t rows, cols;
        char name[WEIGHT_NAME_MAX];
        if (!weight_describe(shape->model, id, name, sizeof name, &rows, &cols)) FAIL("the model has no weight %d", (int)id);
        Status status = fake_quant_check(&shape->options.grid, rows, cols, err);
        if (status != OK) {
            error_prefix(err, "qat.weights: %s", name);
            return ERR_USAGE;
        }
        slots[kind] = arena_align((size_t)(rows * cols) * dtype_size(shape->exec.act));
        int64_t groups = cols / (shape->options.grid.group > 0 ? shape->options.grid.group : cols);
        widest->constants[kind] = shape->options.scales != SCALES_ABSMAX ? rows * groups : 0;
        if (shape->backend->on_device) {
            TRY(qat_device_measure(shape, (LayerWeight)kind, rows, cols, &widest->device, err));
            continue;
        }
        if (cols > widest->cols) widest->cols = cols;
        if (shape->options.grid.grid == FAKE_NF4) TRY(measure_nf4(shape, rows, cols, widest, err));
        if (qat_options_keep_scales(&shape->options) && groups > widest->groups) widest->groups = groups;
        if (!forms_gradients(&shape->options)) continue;
        TRY(measure_tiles(shape, rows, cols, widest, err));
        for (int64_t layer = 0; shape->options.mode == QAT_MERGED && layer < shape->model->layers; layer++) {
            int64_t rank = adapter_module(shape->adapter, layer, (LayerWeight)kind)->rank;
            if (rank > widest->rank) widest->rank = rank;
            if (rank * cols > widest->rank_by_cols) widest->rank_by_cols = rank * cols;
        }
    }
    return OK;
}

static Status take_floats(Arena *arena, int64_t count, float **out, Error *err) {
    void *memory;
    TRY(arena_take(arena, (size_t)count * sizeof(float), &memory, err));
    *out = memory;
    return OK;
}

static Status take_slots(Arena *arena, const size_t slots[LAYER_LINEARS], QatMemory *memory, Error *err) {
    size_t group = 0, most = 0, offset[LAYER_LINEARS];
    for (int kind = 0; kind < LAYER_LINEARS; kind++) {
        if (starts_group((LayerWeight)kind)) group = 0;
        offset[kind] = group;
        group += slots[kind];
        if (group > most) most = group;
    }
    void *base;
    TRY(arena_take(arena, most, &base, err));
    for (int kind = 0; kind < LAYER_LINEARS && base != NULL; kind++)
        memory->slot[kind] = (uint8_t *)base + offset[kind];
    return OK;
}

static Status take_worker(const QatShape *shape, const Widest *widest, Arena *arena, QatWorker *worker, Error *err) {
    void *bytes;
    *worker = (QatWorker){0};
    TRY(take_floats(arena, widest->cols, &worker->base, err));
    TRY(take_floats(arena, widest->cols, &worker->delta, err));
    TRY(take_floats(arena, widest->rank, &worker->b, err));
    if (widest->groups > 0) {
        TRY(take_floats(arena, widest->groups, &worker->scales, err));
        TRY(take_floats(arena, widest->groups, &worker->chain, err));
        TRY(take_floats(arena, widest->cols, &worker->slope, err));
    }
    TRY(arena_take(arena, (size_t)widest->cols, &bytes, err));
    worker->mask = bytes;
    return arena_take(arena, fake_quant_scratch(&shape->options.grid, widest->cols), &worker->scratch, err);
}

/* The same walk counts and takes. */
static Status take(const QatShape *shape, const Widest *widest, const size_t slots[LAYER_LINEARS], Arena *arena,
                   QatMemory *memory, Error *err) {
    memset(memory, 0, sizeof *memory);
    void *list;
    TRY(take_slots(arena, slots, memory, err));
    for (int kind = 0; kind < LAYER_LINEARS; kind++) {
        memory->first_kind[kind] = memory->first_layer;
        memory->first_layer += widest->constants[kind];
    }
    if (memory->first_layer > 0) TRY(take_floats(arena, shape->model->layers * memory->first_layer, &memory->first, err));
    if (shape->backend->on_device) return qat_device_take(&widest->device, arena, memory, err);
    TRY(take_floats(arena, QAT_TILE * widest->cols, &memory->tile, err));
    TRY(arena_take(arena, (size_t)shape->exec.threads * sizeof *memory->workers, &list, err));
    memory->workers = list;
    for (int t = 0; t < shape->exec.threads; t++) {
        QatWorker worker;
        TRY(take_worker(shape, widest, arena, &worker, err));
        if (memory->workers != NULL) memory->workers[t] = worker;
    }
    memory->nf4_bytes = widest->nf4;
    if (widest->nf4 > 0) TRY(arena_take(arena, widest->nf4, &memory->nf4, err));
    if (!forms_gradients(&shape->options)) return OK;
    TRY(take_floats(arena, widest->rank_by_cols, &memory->a, err));
    TRY(arena_take(arena, shape->backend->activation_bytes(shape->exec.act, shape->rows, QAT_TILE), &memory->dy, err));
    return arena_take(arena, widest->workspace, &memory->workspace, err);
}

static Status plan(const QatShape *shape, Widest *widest, size_t slots[LAYER_LINEARS], size_t *arena_bytes, Error *err) {
    QatMemory memory;
    Arena count;
    arena_count(&count, "fake quantization");
    TRY(measure(shape, widest, slots, err));
    TRY(take(shape, widest, slots, &count, &memory, err));
    *arena_bytes = count.used;
    return OK;
}

static size_t quantizer_share(const QatShape *shape, const Widest *widest) {
    return shape->options.grid.grid == FAKE_NF4 && !shape->backend->on_device
               ? quantizer_bytes(shape->exec.threads, widest->nf4_constants)
               : 0;
}

Status qat_bytes(const QatShape *shape, size_t *bytes, Error *err) {
    Widest widest;
    size_t slots[LAYER_LINEARS];
    TRY(plan(shape, &widest, slots, bytes, err));
    *bytes += quantizer_share(shape, &widest);
    return OK;
}

/* ---- opening --------------------------------------------------------------------------------------------------------------- */

static Status open_memory(Qat *qat, Error *err) {
    const QatShape *shape = &qat->shape;
    Widest widest;
    size_t slots[LAYER_LINEARS], bytes;
    TRY(plan(shape, &widest, slots, &bytes, err));
    TRY(device_arena_create(&qat->arena, shape->backend, shape->there, "fake quantization", bytes, err));
    TRY(take(shape, &widest, slots, &qat->arena, &qat->memory, err));
    if (shape->backend->on_device) return qat_device_open(qat, err);
    if (shape->options.grid.grid != FAKE_NF4) return OK;
    qat->quantizer_bytes = quantizer_share(shape, &widest);
    return quantizer_create(&qat->quantizer, shape->backend, qat->pool, widest.nf4_constants, err);
}

Status qat_open(Qat **out, const QatShape *shape, ModelWeights *weights, const ParamState *params, Pool *pool, Error *err) {
    Qat *qat = memory_calloc(1, sizeof *qat);
    qat->shape = *shape;
    qat->weights = weights;
    qat->params = params;
    qat->pool = pool;
    qat_set_step(qat, 0);
    Status status = open_memory(qat, err);
    if (status == OK && qat->memory.first != NULL) status = qat_scales_search(qat, err);
    if (status != OK) {
        qat_free(qat);
        qat = NULL;
    }
    *out = qat;
    return status;
}

void qat_free(Qat *qat) {
    if (qat == NULL) return;
    quantizer_free(qat->quantizer);
    device_arena_free(&qat->arena, qat->shape.backend, qat->shape.there);
    memory_free(qat);
}

size_t qat_taken(const Qat *qat) {
    return qat->arena.capacity + qat->quantizer_bytes;
}

void qat_set_step(Qat *qat, int64_t step) {
    int64_t since = step - qat->shape.options.start_step, parts = qat->shape.options.ramp_steps + 1;
    qat->share = since < 0 ? 0.0f : since + 1 >= parts ? 1.0f : (float)((double)(since + 1) / (double)parts);
}

int qat_keeps_scales(const Qat *qat) {
    return qat_options_keep_scales(&qat->shape.options);
}

int qat_active(const Qat *qat) {
    return qat->share > 0.0f;
}

int qat_recording(const Qat *qat) {
    return qat->share >= 1.0f ? 0 : qat->share > 0.0f ? -1 : 1;
}

/* ---- the source ------------------------------------------------------------------------------------------------------------ */

int qat_linear(const Qat *qat, int32_t id, QatLinear *linear) {
    if (!weight_is_linear(id)) return 0;
    int64_t layer = (id - WEIGHT_GLOBALS) / LAYER_WEIGHTS;
    WeightView base = weights_view(qat->weights, id);
    *linear = (QatLinear){.id = id,
                          .kind = (LayerWeight)((id - WEIGHT_GLOBALS) % LAYER_WEIGHTS),
                          .rows = base.rows,
                          .cols = base.cols,
                          .base = base,
                          .theta = -1,
                          .first = -1};
    const FakeQuant *grid = &qat->shape.options.grid;
    if (qat_options_keep_scales(&qat->shape.options)) linear->groups = grid->group > 0 ? base.cols / grid->group : 1;
    if (qat->shape.scales != NULL) linear->theta = qat->shape.scales[layer * LAYER_LINEARS + (int64_t)linear->kind];
    if (qat->memory.first != NULL) linear->first = layer * qat->memory.first_layer + qat->memory.first_kind[linear->kind];
    if (qat->shape.options.mode != QAT_MERGED) return 1;
    const AdapterModule *module = adapter_module(qat->shape.adapter, layer, linear->kind);
    linear->rank = module->rank;
    linear->scale = module->scale;
    linear->a = module->a;
    linear->b = module->b;
    return 1;
}

static Status acquire(void *self, int32_t weight, Pass pass, WeightView *view, Error *err) {
    (void)pass;
    Qat *qat = self;
    QatLinear linear;
    if (!qat_linear(qat, weight, &linear)) {
        *view = weights_view(qat->weights, weight);
        if (view->rows == 0) FAIL("the model has no weight number %d", (int)weight);
        return OK;
    }
    if (qat->shape.backend->on_device) {
        TRY(qat_device_forward(qat, &linear, err));
    } else {
        qat_prepare(qat, &linear);
        TRY(qat_forward(qat, &linear, err));
    }
    *view = (WeightView){.format = qat->shape.exec.act == DTYPE_F32 ? WEIGHT_F32 : WEIGHT_BF16,
                         .rows = linear.rows,
                         .cols = linear.cols,
                         .data = qat->memory.slot[linear.kind]};
    return OK;
}

WeightSource qat_source(Qat *qat) {
    return (WeightSource){.self = qat, .acquire = acquire, .backward = qat_backward};
}
