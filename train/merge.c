#include "train/merge.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "train/adapter.h"
#include "train/lora_row.h"
#include "kernels/ggml_formats.h"
#include "train/weights_internal.h"

typedef struct MergeAdapter {
    Adapter adapter;
    ParamSet params;
    float *values;      /* FP32 [params.elements] */
    float **magnitudes; /* DoRA: [layers * LAYER_LINEARS], NULL where a module has none; else NULL */
    double weight;
} MergeAdapter;

typedef struct FileOwner { /* sorted by file */
    const TensorInfo *file;
    int32_t id;
} FileOwner;

struct Merge {
    ModelConfig model;
    const Backend *backend;
    Pool *pool;
    TensorFiles *files;
    int32_t count;
    WeightEntry *entries;
    FileOwner *owners; /* [count] */
    MergeAdapter adapters[MERGE_MAX_ADAPTERS];
    int adapter_count;
    Quantizer *quantizer;
    uint8_t *raw;         /* one slab as the file has it */
    float *base, *merged; /* one slab each, for merge_quantize and requantizing */
    float *deltas;        /* [threads, widest] */
    float *scales;        /* SCB of the INT8 weight at hand */
    int64_t widest;
    /* the weight at hand */
    int32_t id;
    Arena arena; /* its quantized form */
};

/* ---- opening ------------------------------------------------------------------------------------------------------------- */

static int compare_owners(const void *a, const void *b) {
    uintptr_t x = (uintptr_t)((const FileOwner *)a)->file, y = (uintptr_t)((const FileOwner *)b)->file;
    return (x > y) - (x < y);
}

static Status open_base(Merge *merge, const MergeOptions *options, Error *err) {
    TRY(model_config_read(options->model, &merge->model, err));
    TRY(tensors_open(&merge->files, options->model, NULL, err));
    merge->count = weight_count(&merge->model);
    merge->entries = memory_calloc((size_t)merge->count, sizeof *merge->entries);
    WeightOptions weights = {.act = DTYPE_F32, .linear = WEIGHT_F32, .block_size = 64};
    if (options->requantize) {
        weights.linear = options->spec.format;
        weights.double_quant = options->spec.double_quant;
        weights.block_size = options->spec.block_size;
    }
    weights_decide(&merge->model, &weights, merge->model.dtype, merge->entries);
    TRY(weights_check(merge->files, options->model, &merge->model, &weights, merge->entries, err));
    merge->owners = memory_calloc((size_t)merge->count, sizeof *merge->owners);
    for (int32_t id = 0; id < merge->count; id++)
        merge->owners[id] = (FileOwner){merge->entries[id].present ? merge->entries[id].file : NULL, id};
    qsort(merge->owners, (size_t)merge->count, sizeof *merge->owners, compare_owners);
    return OK;
}

static Status open_adapter(Merge *merge, const char *folder, double weight, Error *err) {
    MergeAdapter *a = &merge->adapters[merge->adapter_count++]; /* counted first: merge_close frees what was read */
    a->weight = weight;
    TRY(adapter_read_for_merge(&a->adapter, &a->params, folder, &merge->model, err));
    a->values = memory_calloc((size_t)a->params.elements, sizeof *a->values);
    TRY(adapter_read_values(&a->adapter, &a->params, folder, &merge->model, a->values, err));
    if (!a->adapter.dora) return OK;
    return adapter_read_magnitudes(&a->adapter, folder, &merge->model, &a->magnitudes, err);
}

static Status open_adapters(Merge *merge, const MergeOptions *options, Error *err) {
    if (options->count > MERGE_MAX_ADAPTERS) FAIL("want at most %d adapters, got %d", MERGE_MAX_ADAPTERS, options->count);
    for (int i = 0; i < options->count; i++)
        TRY(open_adapter(merge, options->adapters[i], options->weights[i], err));
    if (!merge_has_dora(merge)) return OK;
    if (options->count > 1 || options->weights[0] != 1.0)
        FAIL("a DoRA adapter scales whole rows and is merged alone, with weight 1; leave the other adapters out");
    return OK;
}

static Status take_buffers(Merge *merge, Error *err) {
    size_t slab = 0;
    int64_t rows = 0, constants = 0;
    for (int32_t id = 0; id < merge->count; id++) {
        const WeightEntry *entry = &merge->entries[id];
        if (!entry->present) continue;
        size_t bytes = (size_t)(merge_slab_rows(merge, id) * entry->cols) * sizeof(float);
        if (bytes > slab) slab = bytes;
        if (entry->cols > merge->widest) merge->widest = entry->cols;
        if (entry->origin == ORIGIN_INT8 && entry->rows > rows) rows = entry->rows;
        if (!weight_is_vector(id)) { /* of any format that merge_quantize may be asked for */
            int64_t most = weight_blocks(entry->rows, entry->cols, 32);
            if (most > constants) constants = most;
        }
    }
    merge->raw = memory_alloc(slab);
    merge->base = memory_alloc(slab);
    merge->merged = memory_alloc(slab);
    merge->deltas = memory_alloc((size_t)pool_threads(merge->pool) * (size_t)merge->widest * sizeof(float));
    merge->scales = memory_alloc((size_t)rows * sizeof(float));
    return quantizer_create(&merge->quantizer, merge->backend, merge->pool, constants, err);
}

Status merge_open(Merge **out, const MergeOptions *options, const Backend *backend, Pool *pool, Error *err) {
    Merge *merge = memory_calloc(1, sizeof *merge);
    Status status;
    *out = NULL;
    merge->backend = backend;
    merge->pool = pool;
    merge->id = -1;
    TRY_GOTO(open_base(merge, options, err));
    TRY_GOTO(open_adapters(merge, options, err));
    TRY_GOTO(take_buffers(merge, err));
    *out = merge;
    return OK;
done:
    merge_close(merge);
    return status;
}

void merge_close(Merge *merge) {
    if (merge == NULL) return;
    for (int i = 0; i < merge->adapter_count; i++) {
        MergeAdapter *a = &merge->adapters[i];
        for (int64_t m = 0; a->magnitudes != NULL && m < merge->model.layers * LAYER_LINEARS; m++)
            memory_free(a->magnitudes[m]);
        memory_free(a->magnitudes);
        memory_free(a->values);
        adapter_free(&a->adapter);
        params_free(&a->params);
    }
    quantizer_free(merge->quantizer);
    arena_free(&merge->arena);
    memory_free(merge->raw);
    memory_free(merge->base);
    memory_free(merge->merged);
    memory_free(merge->deltas);
    memory_free(merge->scales);
    memory_free(merge->owners);
    memory_free(merge->entries);
    tensors_close(merge->files);
    memory_free(merge);
}

/* ---- what there is ------------------------------------------------------------------------------------------------------- */

const ModelConfig *merge_model(const Merge *merge) {
    return &merge->model;
}

const TensorFiles *merge_files(const Merge *merge) {
    return merge->files;
}

int merge_has_dora(const Merge *merge) {
    int has = 0;
    for (int i = 0; i < merge->adapter_count; i++)
        has |= merge->adapters[i].adapter.dora;
    return has;
}

static const AdapterModule *module_of(const MergeAdapter *a, int32_t id) {
    if (!weight_is_linear(id)) return NULL;
    int64_t layer = (id - WEIGHT_GLOBALS) / LAYER_WEIGHTS;
    const AdapterModule *module = adapter_module(&a->adapter, layer, (LayerWeight)((id - WEIGHT_GLOBALS) % LAYER_WEIGHTS));
    return module->rank > 0 ? module : NULL;
}

static int is_adapted(const Merge *merge, int32_t id) {
    for (int i = 0; i < merge->adapter_count; i++)
        if (module_of(&merge->adapters[i], id) != NULL) return 1;
    return 0;
}

MergeWeight merge_weight(const Merge *merge, int32_t id) {
    const WeightEntry *entry = &merge->entries[id];
    if (!entry->present) return (MergeWeight){0};
    int is_quantized = entry->origin != ORIGIN_DENSE && entry->ggml != GGML_F16;
    return (MergeWeight){.present = 1,
                         .rows = entry->rows,
                         .cols = entry->cols,
                         .file = entry->file,
                         .decoded = entry->quantized || is_quantized,
                         .folder_quantized = is_quantized,
                         .adapted = is_adapted(merge, id),
                         .spec = entry->spec};
}

int32_t merge_weight_of(const Merge *merge, const TensorInfo *tensor) {
    FileOwner key = {.file = tensor};
    const FileOwner *owner = bsearch(&key, merge->owners, (size_t)merge->count, sizeof key, compare_owners);
    return owner == NULL ? -1 : owner->id;
}

int64_t merge_slab_rows(const Merge *merge, int32_t id) {
    const WeightEntry *entry = &merge->entries[id];
    int64_t rows = (int64_t)(MERGE_SLAB_BYTES / sizeof(float)) / entry->cols;
    return rows < 1 ? 1 : rows > entry->rows ? entry->rows : rows;
}

/* ---- rows ---------------------------------------------------------------------------------------------------------------- */

typedef struct Rows {
    const Merge *merge;
    const WeightEntry *entry;
    WeightView view; /* rows 0: from raw */
    int64_t first;
    float *base, *merged;
    _Atomic int bad;
} Rows;

static void add_delta(const MergeAdapter *a, const AdapterModule *module, int64_t row, int64_t cols, float *delta, float *x) {
    lora_add_row(a->values + module->b + row * module->rank, a->values + module->a, module->rank, cols,
                 (float)(a->weight * (double)module->scale), delta, x);
}

static void scale_to_norm(float *x, int64_t cols, float wanted) {
    double sum = 0.0;
    for (int64_t c = 0; c < cols; c++)
        sum += (double)x[c] * (double)x[c];
    float factor = wanted / (float)sqrt(sum); /* a row of zeros gives NaN, which is refused by the caller */
    for (int64_t c = 0; c < cols; c++)
        x[c] *= factor;
}

/* Of an entry that is read by rows. */
static size_t file_row_bytes(const WeightEntry *entry) {
    return (size_t)(entry->file->bytes / (uint64_t)entry->rows);
}

static void decode_base(const Rows *job, int64_t item, float *out) {
    const WeightEntry *entry = job->entry;
    int64_t cols = entry->cols;
    if (job->view.rows > 0) {
        job->merge->backend->dequantize(&job->view, (job->first + item) * cols, cols, out, DTYPE_F32);
        return;
    }
    DType type = entry->file->dtype;
    const uint8_t *from = job->merge->raw + (size_t)item * file_row_bytes(entry);
    if (entry->origin == ORIGIN_GGML) {
        WeightView row = {.format = WEIGHT_GGML, .rows = 1, .cols = cols, .data = from, .ggml_type = entry->ggml};
        job->merge->backend->dequantize(&row, 0, cols, out, DTYPE_F32);
        return;
    }
    if (entry->origin != ORIGIN_INT8) {
        dtype_convert(out, DTYPE_F32, from, type, cols);
        return;
    }
    float scale = job->merge->scales[job->first + item];
    for (int64_t c = 0; c < cols; c++)
        out[c] = (float)((const int8_t *)from)[c] * scale * INT8_DECODE;
}

static int row_is_finite(const float *x, int64_t cols) {
    int finite = 1;
    for (int64_t c = 0; c < cols; c++)
        finite &= isfinite(x[c]) != 0;
    return finite;
}

static void row_item(void *context, int64_t item, int worker) {
    Rows *job = context;
    const Merge *merge = job->merge;
    int64_t cols = job->entry->cols, row = job->first + item;
    float *out = job->base + item * cols;
    decode_base(job, item, out);
    if (job->merged != NULL) {
        float *merged = job->merged + item * cols, *delta = merge->deltas + (int64_t)worker * merge->widest;
        memcpy(merged, out, (size_t)cols * sizeof *out);
        for (int i = 0; i < merge->adapter_count; i++) {
            const MergeAdapter *a = &merge->adapters[i];
            const AdapterModule *module = module_of(a, merge->id);
            if (module == NULL) continue;
            add_delta(a, module, row, cols, delta, merged);
            if (a->magnitudes != NULL) scale_to_norm(merged, cols, a->magnitudes[module - a->adapter.modules][row]);
        }
        out = merged;
    }
    if (!row_is_finite(out, cols)) atomic_store(&job->bad, 1);
}

static Status read_raw(Merge *merge, const WeightEntry *entry, int64_t first, int64_t count, Error *err) {
    size_t row_bytes = file_row_bytes(entry);
    return tensors_read(merge->files, entry->file, (uint64_t)first * row_bytes, merge->raw, (size_t)count * row_bytes, 1, err);
}

static Status fill_rows(Merge *merge, WeightView view, int64_t first, int64_t count, float *base, float *merged, Error *err) {
    const WeightEntry *entry = &merge->entries[merge->id];
    if (view.rows == 0) TRY(read_raw(merge, entry, first, count, err));
    Rows job = {.merge = merge, .entry = entry, .view = view, .first = first, .base = base, .merged = merged};
    pool_run(merge->pool, row_item, &job, count);
    if (job.bad) FAIL("%s: rows from %lld on hold NaN or Inf; a weight must be finite", entry->file->name, (long long)first);
    return OK;
}

Status merge_rows(Merge *merge, int64_t first, int64_t count, float *base, float *merged, Error *err) {
    const WeightEntry *entry = &merge->entries[merge->id];
    WeightView view = entry->quantized ? quantized_view(&entry->tensor) : (WeightView){0};
    return fill_rows(merge, view, first, count, base, merged, err);
}

/* ---- quantized bases and results ------------------------------------------------------------------------------------------ */

/* The rows of the file into the run's format. */
static Status requantize(Merge *merge, WeightEntry *entry, Error *err) {
    int64_t rows = merge_slab_rows(merge, merge->id);
    TRY(quantizer_begin(merge->quantizer, &entry->tensor, err));
    for (int64_t first = 0; first < entry->rows; first += rows) {
        int64_t count = entry->rows - first < rows ? entry->rows - first : rows;
        TRY(fill_rows(merge, (WeightView){0}, first, count, merge->base, NULL, err));
        TRY(quantizer_rows(merge->quantizer, merge->base, DTYPE_F32, count, err));
    }
    return quantizer_finish(merge->quantizer, err);
}

Status merge_begin(Merge *merge, int32_t id, Error *err) {
    arena_free(&merge->arena);
    memset(&merge->arena, 0, sizeof merge->arena);
    merge->id = id;
    WeightEntry *entry = &merge->entries[id];
    if (entry->origin == ORIGIN_INT8)
        TRY(tensors_read(merge->files, entry->scales, 0, merge->scales, (size_t)entry->rows * sizeof(float), 1, err));
    if (!entry->quantized) return OK;
    Arena count;
    arena_count(&count, "one weight");
    TRY(quantized_take(&entry->tensor, &entry->spec, entry->rows, entry->cols, &count, err));
    TRY(arena_create(&merge->arena, "one weight", count.used, err));
    TRY(quantized_take(&entry->tensor, &entry->spec, entry->rows, entry->cols, &merge->arena, err));
    PartWork work = {.files = merge->files, .config = &merge->model, .pool = merge->pool, .drop_cache = 1};
    int is_packed = entry->origin == ORIGIN_BNB4 || entry->origin == ORIGIN_GROUPED;
    return is_packed ? weight_read_packed(&work, id, entry, err) : requantize(merge, entry, err);
}

static void copy_tensor(QuantizedTensor *to, const QuantizedTensor *from) {
    memcpy(to->codes, from->codes, from->code_bytes);
    if (from->code_table != NULL) memcpy(to->code_table, from->code_table, 16 * sizeof(float));
    if (from->zeros != NULL) memcpy(to->zeros, from->zeros, (size_t)from->blocks);
    if (from->group_index != NULL) memcpy(to->group_index, from->group_index, (size_t)from->cols * sizeof *from->group_index);
    if (from->nested_codes == NULL) {
        memcpy(to->scales, from->scales, (size_t)from->blocks * sizeof(float));
        return;
    }
    memcpy(to->nested_codes, from->nested_codes, (size_t)from->blocks);
    memcpy(to->nested_absmax, from->nested_absmax, (size_t)from->nested_blocks * sizeof(float));
    memcpy(to->nested_map, from->nested_map, 256 * sizeof(float));
    to->nested_offset = from->nested_offset;
}

Status merge_quantize(Merge *merge, int with_adapters, QuantizedTensor *tensor, Error *err) {
    const WeightEntry *entry = &merge->entries[merge->id];
    int adapted = with_adapters && is_adapted(merge, merge->id);
    if (!adapted && entry->quantized && quant_spec_equal(&entry->spec, &tensor->spec)) {
        copy_tensor(tensor, &entry->tensor);
        return OK;
    }
    int64_t rows = merge_slab_rows(merge, merge->id);
    TRY(quantizer_begin(merge->quantizer, tensor, err));
    for (int64_t first = 0; first < entry->rows; first += rows) {
        int64_t count = entry->rows - first < rows ? entry->rows - first : rows;
        TRY(merge_rows(merge, first, count, merge->base, adapted ? merge->merged : NULL, err));
        TRY(quantizer_rows(merge->quantizer, adapted ? merge->merged : merge->base, DTYPE_F32, count, err));
    }
    return quantizer_finish(merge->quantizer, err);
}
