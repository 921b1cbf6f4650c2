/* A 16- or 32-bit model folder: every tensor of the source under its name; what no adapter touches and no format changes is
 * copied bit for bit. */
#include <stdatomic.h>
#include <string.h>

#include "core/memory.h"
#include "train/export.h"
#include "train/output_folder.h"
#include "train/weights.h"

#define USUAL_SHARD_SIZE 5000 /* million bytes */
#define NAME_MAX_BYTES 192

typedef struct Writer {
    Export *export;
    int64_t count;
    TensorSpec *specs;
    const TensorInfo **sources;
    int32_t *ids;
    char (*names)[NAME_MAX_BYTES]; /* of weights */
    float *base, *merged;
    uint8_t *rounded;
} Writer;

static int is_float(DType type) {
    return type == DTYPE_F32 || type == DTYPE_BF16 || type == DTYPE_F16;
}

/* Constants of a quantized weight are not weights: "X.weight.absmax", "X.SCB", "X.weight_format", "X.weight_scale"; nor are the
 * biases of zeros that folders of grouped integers may have. */
static int is_constant(const Export *export, const TensorInfo *tensor) {
    static const char *const ends[] = {".SCB", ".scales", ".weight_scale", ".bias"};
    size_t length = strlen(tensor->name);
    int grouped = prequant_is_grouped(merge_model(export->merge)->prequant);
    if (!is_float(tensor->dtype) || strstr(tensor->name, ".weight.") != NULL) return 1;
    for (size_t i = 0; i < (grouped ? 4 : 1); i++) {
        size_t end = strlen(ends[i]);
        if (length > end && strcmp(tensor->name + length - end, ends[i]) == 0) return 1;
    }
    return 0;
}

DType export_hf_type(const Export *export, const TensorInfo *tensor, int32_t id) {
    const ExportOptions *o = export->options;
    if (id < 0) return is_constant(export, tensor) ? DTYPE_COUNT : tensor->dtype;
    if (o->format == EXPORT_HF && o->dtype_given) return o->dtype;
    return is_float(tensor->dtype) ? tensor->dtype : merge_model(export->merge)->dtype;
}

static void list_tensors(Writer *w) {
    const TensorFiles *files = merge_files(w->export->merge);
    size_t most = (size_t)tensors_count(files);
    w->specs = memory_calloc(most, sizeof *w->specs);
    w->sources = memory_calloc(most, sizeof *w->sources);
    w->ids = memory_calloc(most, sizeof *w->ids);
    w->names = memory_calloc(most, sizeof *w->names);
    for (int64_t i = 0; i < tensors_count(files); i++) {
        const TensorInfo *tensor = tensors_get(files, i);
        int32_t id = merge_weight_of(w->export->merge, tensor);
        DType type = export_hf_type(w->export, tensor, id);
        if (type == DTYPE_COUNT) continue;
        TensorSpec *spec = &w->specs[w->count];
        *spec = (TensorSpec){.name = tensor->name, .dtype = type, .ndim = tensor->ndim};
        memcpy(spec->shape, tensor->shape, sizeof spec->shape);
        if (id >= 0 && spec->ndim == 2) { /* packed codes have another shape, and may have another name */
            MergeWeight weight = merge_weight(w->export->merge, id);
            int64_t rows, cols;
            if (weight_describe(merge_model(w->export->merge), id, w->names[w->count], NAME_MAX_BYTES, &rows, &cols))
                spec->name = w->names[w->count];
            spec->shape[0] = weight.rows;
            spec->shape[1] = weight.cols;
        }
        w->sources[w->count] = tensor;
        w->ids[w->count++] = id;
        int64_t values = 1;
        for (int d = 0; d < spec->ndim; d++)
            values *= spec->shape[d];
        w->export->bytes += (uint64_t)values * dtype_size(type);
    }
}

static Status copy_tensor(const Writer *w, const TensorInfo *tensor, TensorWriter *writer, Error *err) {
    for (uint64_t at = 0; at < tensor->bytes;) {
        uint64_t rest = tensor->bytes - at;
        size_t count = rest < MERGE_SLAB_BYTES ? (size_t)rest : MERGE_SLAB_BYTES;
        TRY(tensors_read(merge_files(w->export->merge), tensor, at, w->rounded, count, 1, err));
        TRY(tensor_write_bytes(writer, w->rounded, count, err));
        at += count;
    }
    return OK;
}

typedef struct Rounding {
    const float *from;
    uint8_t *to;
    DType type;
    int64_t cols;
    _Atomic int too_large;
} Rounding;

static void round_row(void *context, int64_t row, int worker) {
    Rounding *job = context;
    (void)worker;
    size_t size = dtype_size(job->type);
    const float *from = job->from + row * job->cols;
    uint8_t *to = job->to + (size_t)(row * job->cols) * size;
    dtype_convert(to, job->type, from, DTYPE_F32, job->cols);
    if (job->type == DTYPE_F32) return;
    int infinite = 0;
    for (int64_t c = 0; c < job->cols; c++) {
        uint16_t bits;
        memcpy(&bits, to + 2 * c, 2);
        unsigned mask = job->type == DTYPE_F16 ? 0x7C00u : 0x7F80u;
        infinite |= (bits & mask) == mask;
    }
    if (infinite) atomic_store(&job->too_large, 1);
}

static Status write_merged(Writer *w, int32_t id, const TensorSpec *spec, TensorWriter *writer, Error *err) {
    Merge *merge = w->export->merge;
    MergeWeight weight = merge_weight(merge, id);
    int64_t rows = merge_slab_rows(merge, id);
    TRY(merge_begin(merge, id, err));
    for (int64_t first = 0; first < weight.rows; first += rows) {
        int64_t count = weight.rows - first < rows ? weight.rows - first : rows;
        TRY(merge_rows(merge, first, count, w->base, weight.adapted ? w->merged : NULL, err));
        Rounding job = {
            .from = weight.adapted ? w->merged : w->base, .to = w->rounded, .type = spec->dtype, .cols = weight.cols};
        pool_run(w->export->pool, round_row, &job, count);
        if (job.too_large)
            FAIL("%s: a merged value is too large for %s; try --dtype %s", spec->name, dtype_name(spec->dtype),
                 spec->dtype == DTYPE_F16 ? "bf16" : "f32");
        TRY(tensor_write_bytes(writer, w->rounded, (size_t)(count * weight.cols) * dtype_size(spec->dtype), err));
    }
    return OK;
}

static Status produce(void *context, const TensorSpec *spec, TensorWriter *writer, Error *err) {
    Writer *w = context;
    int64_t index = spec - w->specs;
    int32_t id = w->ids[index];
    TRY(export_interrupted(err));
    if (id < 0) return copy_tensor(w, w->sources[index], writer, err);
    MergeWeight weight = merge_weight(w->export->merge, id);
    if (!weight.adapted && !weight.decoded && spec->dtype == w->sources[index]->dtype)
        return copy_tensor(w, w->sources[index], writer, err);
    return write_merged(w, id, spec, writer, err);
}

uint64_t export_shard_bytes(const Export *export) {
    int64_t size = export->options->shard_size;
    return (uint64_t)(size != 0 ? size : USUAL_SHARD_SIZE) * 1000000;
}

static void take_buffers(Writer *w) {
    size_t values = MERGE_SLAB_BYTES / sizeof(float);
    for (int64_t i = 0; i < w->count; i++) {
        if (w->ids[i] < 0) continue;
        size_t cols = (size_t)merge_weight(w->export->merge, w->ids[i]).cols;
        if (cols > values) values = cols; /* a slab is one row at least */
    }
    w->base = memory_alloc(values * sizeof(float));
    w->merged = memory_alloc(values * sizeof(float));
    w->rounded = memory_alloc(values * sizeof(float));
}

Status export_hf_write(Export *export, const char *folder, Error *err) {
    Writer w = {.export = export};
    export->bytes = 0;
    list_tensors(&w);
    take_buffers(&w);
    const ModelConfig *model = merge_model(export->merge);
    DType type = export->options->format == EXPORT_HF && export->options->dtype_given ? export->options->dtype : model->dtype;
    export->type = type;
    Status status = tensors_write_sharded(folder, NULL, export_shard_bytes(export), w.specs, w.count, produce, &w, err);
    if (status == OK) status = output_folder_write_config(export->options->model, folder, type, 1, err);
    if (status == OK) status = output_folder_copy_settings(export->options->model, folder, err);
    memory_free(w.base);
    memory_free(w.merged);
    memory_free(w.rounded);
    memory_free(w.specs);
    memory_free(w.sources);
    memory_free(w.ids);
    memory_free(w.names);
    return status;
}
