#include "train/qat_scales.h"

#include <stdio.h>
#include <string.h>

#include "core/file.h"
#include "data/safetensors.h"
#include "quant/clip.h"
#include "train/adapter.h"
#include "train/qat_internal.h"
#include "train/weights_internal.h"

Status qat_scale_params(const QatOptions *options, const ModelConfig *model, ParamSet *params, int64_t **offsets, Error *err) {
    *offsets = NULL;
    if (options->mode == QAT_NONE || !options->learn_scales) return OK;
    int64_t count = model->layers * LAYER_LINEARS;
    *offsets = memory_alloc((size_t)count * sizeof **offsets);
    for (int64_t i = 0; i < count; i++) {
        ParamEntry entry = {
            .role = PARAM_SCALE, .layer = i / LAYER_LINEARS, .module = (LayerWeight)(i % LAYER_LINEARS), .weight = -1};
        int64_t cols;
        (void)weight_describe(model, weight_id(entry.layer, entry.module), NULL, 0, &entry.rows, &cols);
        Status status = fake_quant_check(&options->grid, entry.rows, cols, err);
        if (status != OK) {
            error_prefix(err, "qat.weights");
            return ERR_USAGE;
        }
        entry.cols = options->grid.group > 0 ? cols / options->grid.group : 1;
        (*offsets)[i] = params_add(params, entry);
    }
    return OK;
}

void qat_scale_init(const ParamSet *params, float *master) {
    for (int64_t e = adapter_entries(params); e < params->count; e++)
        for (int64_t i = 0; i < params->entries[e].rows * params->entries[e].cols; i++)
            master[params->entries[e].offset + i] = 1.0f;
}

/* ---- searched scales ------------------------------------------------------------------------------------------------------ */

typedef struct Search {
    const Qat *qat;
    const QatLinear *linear;
    WeightView base; /* in host memory */
    float *rows;     /* [threads, cols] */
    float *found;    /* [rows, groups] */
} Search;

static void search_row(void *context, int64_t row, int worker) {
    const Search *search = context;
    const QatLinear *linear = search->linear;
    const FakeQuant *grid = &search->qat->shape.options.grid;
    GroupInt exact = {.bits = grid->bits, .symmetric = 1, .group = grid->group, .scale_type = DTYPE_F32};
    Clip clip = {.method = CLIP_MSE};
    int64_t values = linear->cols / linear->groups;
    float *w = search->rows + worker * linear->cols;
    search->qat->shape.backend->dequantize(&search->base, row * linear->cols, linear->cols, w, DTYPE_F32);
    for (int64_t g = 0; g < linear->groups; g++) {
        uint8_t zero;
        clip_scale(&clip, &exact, w + g * values, values, NULL, &search->found[row * linear->groups + g], &zero, NULL);
    }
}

/* ---- scales of the base --------------------------------------------------------------------------------------------------- */

Status qat_scales_check(const QatOptions *options, const ModelConfig *model, Error *err) {
    if (options->scales != SCALES_BASE) return OK;
    const GroupedConfig *base = &model->grouped;
    if (!prequant_is_grouped(model->prequant))
        FAIL_USAGE(
            "qat.scales gptq: the model is not in groups of integers; make such a folder with nibble export --format gptq or "
            "compressed-tensors, --calibration FILE");
    if (base->zeros || base->ordered || base->bits != options->grid.bits || base->group != options->grid.group)
        FAIL_USAGE(
            "qat.scales gptq: want a model with %d bits in groups of %lld, symmetric, columns in order; it has %d bits in "
            "groups of %lld%s%s",
            options->grid.bits, (long long)options->grid.group, base->bits, (long long)base->group,
            base->zeros ? ", zero points" : "", base->ordered ? ", columns ordered" : "");
    return OK;
}

static Status take_scales(const Search *search, Error *err) {
    const WeightView *base = &search->base;
    const QatLinear *linear = search->linear;
    if (base->format != WEIGHT_GROUPED || base->zeros != NULL || base->group_index != NULL ||
        base->block_size != linear->cols / linear->groups) {
        char name[WEIGHT_NAME_MAX];
        (void)weight_describe(search->qat->shape.model, linear->id, name, sizeof name, NULL, NULL);
        FAIL_USAGE("qat.scales gptq: %s is not in symmetric groups of integers in this model, as other weights are", name);
    }
    memcpy(search->found, base->scales, (size_t)(linear->rows * linear->groups) * sizeof(float));
    return OK;
}

/* Once, by the CPU: a base on a device comes back a weight at a time. */
static Status find_scales(const Qat *qat, const QatLinear *linear, Error *err) {
    const Backend *backend = qat->shape.backend;
    size_t bytes = (size_t)(linear->rows * linear->groups) * sizeof(float);
    Search search = {.qat = qat, .linear = linear, .found = qat->memory.first + linear->first};
    void *copy;
    TRY(weights_host_view(qat->weights, linear->id, &search.base, &copy, err));
    search.rows = memory_alloc((size_t)(pool_threads(qat->pool) * linear->cols) * sizeof *search.rows);
    if (backend->on_device) search.found = memory_alloc(bytes);
    Status status = OK;
    if (qat->shape.options.scales == SCALES_BASE)
        status = take_scales(&search, err);
    else
        pool_run(qat->pool, search_row, &search, linear->rows);
    if (status == OK && backend->on_device)
        status = backend->copy_in(qat->shape.there, qat->memory.first + linear->first, search.found, bytes, err);
    if (backend->on_device) memory_free(search.found);
    memory_free(search.rows);
    memory_free(copy);
    return status;
}

Status qat_scales_search(Qat *qat, Error *err) {
    for (int64_t layer = 0; layer < qat->shape.model->layers; layer++)
        for (int kind = 0; kind < LAYER_LINEARS; kind++) {
            QatLinear linear;
            (void)qat_linear(qat, weight_id(layer, (LayerWeight)kind), &linear);
            TRY(find_scales(qat, &linear, err));
        }
    return OK;
}

/* ---- the file -------------------------------------------------------------------------------------------------------------- */

typedef struct ScaleFile {
    Qat *qat;
    const TensorSpec *specs;
} ScaleFile;

static Status produce(void *context, const TensorSpec *spec, TensorWriter *writer, Error *err) {
    const ScaleFile *file = context;
    int64_t index = spec - file->specs;
    QatLinear linear;
    (void)qat_linear(file->qat, weight_id(index / LAYER_LINEARS, (LayerWeight)(index % LAYER_LINEARS)), &linear);
    if (file->qat->shape.backend->on_device) {
        size_t bytes = (size_t)(linear.rows * linear.groups) * sizeof(float);
        float *scales = memory_alloc(bytes);
        Status status = qat_device_scales(file->qat, &linear, scales, err);
        if (status == OK) status = tensor_write_bytes(writer, scales, bytes, err);
        memory_free(scales);
        return status;
    }
    QatWorker *worker = &file->qat->memory.workers[0];
    for (int64_t row = 0; row < linear.rows; row++) {
        qat_base_row(file->qat, &linear, row, 0);
        TRY(tensor_write_bytes(writer, worker->scales, (size_t)linear.groups * sizeof(float), err));
    }
    return OK;
}

Status qat_scales_write(Qat *qat, const char *folder, Error *err) {
    int64_t count = qat->shape.model->layers * LAYER_LINEARS;
    TensorSpec *specs = memory_calloc((size_t)count, sizeof *specs);
    char(*names)[WEIGHT_NAME_MAX + 8] = memory_alloc((size_t)count * sizeof *names);
    for (int64_t i = 0; i < count; i++) {
        int64_t rows, cols;
        char name[WEIGHT_NAME_MAX];
        int32_t id = weight_id(i / LAYER_LINEARS, (LayerWeight)(i % LAYER_LINEARS));
        QatLinear linear;
        (void)weight_describe(qat->shape.model, id, name, sizeof name, &rows, &cols);
        (void)qat_linear(qat, id, &linear);
        (void)snprintf(names[i], sizeof names[i], "%s_scale", name);
        specs[i] = (TensorSpec){.name = names[i], .dtype = DTYPE_F32, .ndim = 2, .shape = {rows, linear.groups}};
    }
    ScaleFile file = {qat, specs};
    char bits[8], group[24], *path = path_join(folder, QAT_SCALES_FILE);
    (void)snprintf(bits, sizeof bits, "%d", qat->shape.options.grid.bits);
    (void)snprintf(group, sizeof group, "%lld", (long long)qat->shape.options.grid.group);
    const char *const metadata[] = {"bits", bits, "group_size", group, "symmetric", "true", NULL};
    Status status = tensors_write(path, specs, count, metadata, produce, &file, err);
    memory_free(path);
    memory_free(names);
    memory_free(specs);
    return status;
}
