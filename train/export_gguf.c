/* A model as one GGUF file: merged in FP32, each row quantized once, one tensor in memory at a time. */
#include "train/export_gguf.h"

#include <string.h>
#include <strings.h>

#include "core/file.h"
#include "core/log.h"
#include "core/memory.h"
#include "data/gguf_tokenizer.h"
#include "train/calibrate.h"
#include "train/model.h"
#include "train/weights.h"

#define ROPE_FREQS "rope_freqs.weight"

/* ---- writing --------------------------------------------------------------------------------------------------------------- */

typedef struct Writer {
    Export *export;
    const ModelConfig *model;
    int32_t *ids; /* by position in the file */
    int32_t count, next;
    float *base, *merged;
    uint8_t *rows; /* encoded: a slab, or a whole tensor whose rows are reordered */
    size_t rows_capacity;
} Writer;

/* A type whose blocks do not fit leaves the mix's. */
static uint32_t embedding_type(const char *name, int64_t cols, uint32_t otherwise) {
    uint32_t type = strcasecmp(name, "F32") == 0    ? GGML_F32
                    : strcasecmp(name, "F16") == 0  ? GGML_F16
                    : strcasecmp(name, "BF16") == 0 ? GGML_BF16
                                                    : GGML_Q8_0;
    return type == GGML_Q8_0 && cols % GGML_BLOCK != 0 ? otherwise : type;
}

Status export_gguf_choose(Export *export, Error *err) {
    const ExportOptions *o = export->options;
    int as_trained =
        export->trained_gguf != NULL && (o->gguf_type == NULL || strcasecmp(o->gguf_type, export->trained_gguf) == 0);
    if (!as_trained) export->embeddings = NULL;
    if (as_trained) TRY(gguf_mix_named(export->trained_gguf, &export->gguf, err));
    if (o->gguf_embeddings != NULL) export->embeddings = o->gguf_embeddings;
    if (as_trained)
        log_info("gguf: the run trained %s with embedding and head in 16 or 32 bits: written as %s, embedding and head as %s",
                 export->trained_gguf, export->trained_gguf, export->embeddings);
    return OK;
}

static Status declare(Writer *w, GgufWriter *writer, int32_t id, Error *err) {
    MergeWeight weight = merge_weight(w->export->merge, id);
    char name[GGUF_WEIGHT_NAME_MAX];
    if (!weight.present || !gguf_weight_name(w->model, id, name)) return OK;
    int64_t ne[2] = {weight.cols, weight.rows};
    int is_vector = weight.file->ndim == 1;
    uint32_t type = gguf_mix_type(w->export->gguf, w->model, id, weight.cols, w->export->calibration != NULL);
    if (w->export->embeddings != NULL && (id == WEIGHT_EMBED || id == WEIGHT_HEAD))
        type = embedding_type(w->export->embeddings, weight.cols, type);
    w->ids[w->count++] = id;
    return gguf_add_tensor(writer, name, type, is_vector ? 1 : 2, ne, err);
}

static Status declare_all(Writer *w, GgufWriter *writer, Error *err) {
    int64_t pairs = w->model->head_dim / 2;
    if (gguf_has_rope_factors(&w->model->rope)) {
        w->ids[w->count++] = -1;
        TRY(gguf_add_tensor(writer, ROPE_FREQS, GGML_F32, 1, &pairs, err));
    }
    for (int32_t id = 0; id < weight_count(w->model); id++)
        TRY(declare(w, writer, id, err));
    return OK;
}

static Status write_factors(const Writer *w, GgufWriter *writer, Error *err) {
    float factors[ROPE_MAX_PAIRS];
    TRY(gguf_rope_factors(w->model, factors, err));
    return gguf_write_bytes(writer, factors, (size_t)(w->model->head_dim / 2) * sizeof *factors, err);
}

static void reserve_rows(Writer *w, size_t bytes) {
    if (bytes <= w->rows_capacity) return;
    memory_free(w->rows);
    w->rows = memory_alloc(bytes);
    w->rows_capacity = bytes;
}

/* In FP32 the values of a bias are reordered; a weight's rows, once they are encoded. */
static Status write_reordered(Writer *w, int32_t id, int64_t rows, size_t row_bytes, GgufWriter *writer, Error *err) {
    int64_t head = w->model->head_dim;
    uint8_t *sorted = memory_alloc((size_t)head * row_bytes);
    Status status = OK;
    for (int64_t first = 0; first < rows && status == OK; first += head) {
        for (int64_t r = 0; r < head; r++)
            memcpy(sorted + (size_t)(gguf_file_row(w->model, id, first + r) - first) * row_bytes,
                   w->rows + (size_t)(first + r) * row_bytes, row_bytes);
        status = gguf_write_bytes(writer, sorted, (size_t)head * row_bytes, err);
    }
    memory_free(sorted);
    return status;
}

static const float *importance_of(const Export *export, int32_t id) {
    return export->calibration != NULL ? calibration_importance(export->calibration, id) : NULL;
}

/* Rows [first, first + count) as they are to stand in the file: copied where the base has that type and nothing is added, else
 * rounded once. */
static Status encode_rows(const Writer *w, int32_t id, const MergeWeight *weight, uint32_t type, int64_t row_bytes,
                          int64_t first, int64_t count, uint8_t *out, Error *err) {
    Merge *merge = w->export->merge;
    if (!weight->adapted && weight->file->ggml == type && ggml_type_info(type)->is_quantized)
        return tensors_read(merge_files(merge), weight->file, (uint64_t)(first * row_bytes), out, (size_t)(count * row_bytes),
                            1, err);
    if (first == 0) TRY(merge_begin(merge, id, err));
    TRY(merge_rows(merge, first, count, w->base, weight->adapted ? w->merged : NULL, err));
    return ggml_quantize(type, weight->adapted ? w->merged : w->base, count, weight->cols, importance_of(w->export, id), out,
                         w->export->pool, err);
}

static Status write_weight(Writer *w, int32_t id, const GgufTensor *tensor, GgufWriter *writer, Error *err) {
    Merge *merge = w->export->merge;
    MergeWeight weight = merge_weight(merge, id);
    int64_t slab = merge_slab_rows(merge, id), row_bytes, all;
    int reordered = gguf_is_permuted(w->model, id);
    TRY(ggml_bytes(tensor->type->type, 1, weight.cols, &row_bytes, err));
    TRY(ggml_bytes(tensor->type->type, reordered ? weight.rows : slab, weight.cols, &all, err));
    reserve_rows(w, (size_t)all);
    for (int64_t first = 0; first < weight.rows; first += slab) {
        int64_t count = weight.rows - first < slab ? weight.rows - first : slab;
        uint8_t *out = w->rows + (reordered ? (size_t)(first * row_bytes) : 0);
        TRY(encode_rows(w, id, &weight, tensor->type->type, row_bytes, first, count, out, err));
        if (!reordered) TRY(gguf_write_bytes(writer, out, (size_t)(count * row_bytes), err));
    }
    if (!reordered) return OK;
    if (weight.rows == 1) return write_reordered(w, id, weight.cols, sizeof(float), writer, err);
    return write_reordered(w, id, weight.rows, (size_t)row_bytes, writer, err);
}

static Status produce(void *context, const GgufTensor *tensor, GgufWriter *writer, Error *err) {
    Writer *w = context;
    int32_t id = w->ids[w->next++];
    TRY(export_interrupted(err));
    w->export->bytes += tensor->bytes;
    if (id < 0) return write_factors(w, writer, err);
    Status status = write_weight(w, id, tensor, writer, err);
    if (status == ERR_FAILED) error_prefix(err, "%s", tensor->name);
    return status;
}

static void take_buffers(Writer *w) {
    int64_t values = 1;
    for (int32_t id = 0; id < weight_count(w->model); id++) {
        MergeWeight weight = merge_weight(w->export->merge, id);
        if (!weight.present) continue;
        int64_t slab = merge_slab_rows(w->export->merge, id) * weight.cols;
        if (slab > values) values = slab;
    }
    w->base = memory_alloc((size_t)values * sizeof(float));
    w->merged = memory_alloc((size_t)values * sizeof(float));
    w->ids = memory_calloc((size_t)weight_count(w->model) + 1, sizeof *w->ids);
}

static const char *last_part(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash != NULL && slash[1] != 0 ? slash + 1 : path;
}

static void warn_of_windows(const ModelConfig *model) {
    for (int64_t layer = 0; layer < model->layers; layer++)
        if (model->window[layer] > 0 && model->window[layer] < model->context) {
            log_warning("llama.cpp attends without this model's sliding window of %lld tokens: longer texts will differ there",
                        (long long)model->window[layer]);
            return;
        }
}

static Status put_tokenizer(GgufWriter *writer, const char *source, const ModelConfig *model, Error *err) {
    Tokenizer *tokenizer;
    if (model->gguf.is_file) return gguf_copy_tokenizer(writer, source, err);
    TRY(tokenizer_open(&tokenizer, source, err));
    int32_t eos = model->eos_count > 0 ? (int32_t)model->eos_ids[0] : -1;
    Status status = gguf_put_tokenizer(writer, tokenizer, source, model->vocab, eos, err);
    tokenizer_close(tokenizer);
    return status;
}

/* nibble's own keys; other readers skip what they do not know. */
static Status put_rounding(GgufWriter *writer, const Export *export, const ModelConfig *model, Error *err) {
    const ActivationQuant *rounding = &export->rounding;
    if (rounding->fixed)
        TRY(gguf_put_array(writer, "nibble.ranges", GGUF_F32, export->ranges, (uint64_t)(model->layers * RANGES_PER_LAYER),
                           err));
    if (rounding->bits > 0) TRY(gguf_put_text(writer, "nibble.activations", activation_quant_inputs(rounding), err));
    if (rounding->kv_bits > 0) TRY(gguf_put_text(writer, "nibble.kv_cache", activation_quant_cache(rounding), err));
    return OK;
}

Status export_gguf_write(Export *export, const char *folder, Error *err) {
    const ModelConfig *model = merge_model(export->merge);
    Writer w = {.export = export, .model = model};
    char *path = path_join(folder, EXPORT_GGUF_FILE);
    GgufWriter *writer = gguf_writer_create(path);
    Status status;
    export->bytes = 0;
    take_buffers(&w);
    TRY_GOTO(gguf_put_model(writer, model, last_part(export->options->out), export->gguf, err));
    TRY_GOTO(put_rounding(writer, export, model, err));
    TRY_GOTO(put_tokenizer(writer, export->options->model, model, err));
    TRY_GOTO(declare_all(&w, writer, err));
    TRY_GOTO(gguf_writer_write(writer, produce, &w, err));
    warn_of_windows(model);
done:
    gguf_writer_free(writer);
    memory_free(path);
    memory_free(w.ids);
    memory_free(w.base);
    memory_free(w.merged);
    memory_free(w.rows);
    return status;
}

/* ---- reading back ---------------------------------------------------------------------------------------------------------- */

typedef struct Reader {
    const Export *export;
    const Merge *merge;
    const ModelConfig *model;
    GgufFile *file;
    Pool *pool;
    uint8_t *row;
    size_t row_capacity;
} Reader;

static Status reader_open(Export *export, const char *folder, void **state, Error *err) {
    Reader *r = memory_calloc(1, sizeof *r);
    char *path = path_join(folder, EXPORT_GGUF_FILE);
    r->export = export;
    r->merge = export->merge;
    r->model = merge_model(export->merge);
    r->pool = export->pool;
    Status status = gguf_open(&r->file, path, err);
    memory_free(path);
    *state = r;
    return status;
}

static void reader_close(void *state) {
    Reader *r = state;
    if (r == NULL) return;
    gguf_close(r->file);
    memory_free(r->row);
    memory_free(r);
}

static Status find(const Reader *r, int32_t id, int64_t cols, const GgufTensor **tensor, int64_t *row_bytes, Error *err) {
    char name[GGUF_WEIGHT_NAME_MAX];
    *tensor = gguf_weight_name(r->model, id, name) ? gguf_tensor_find(r->file, name) : NULL;
    if (*tensor == NULL) FAIL("%s: weight %d is absent", gguf_path(r->file), (int)id);
    return ggml_bytes((*tensor)->type->type, 1, cols, row_bytes, err);
}

static void reserve_row(Reader *r, size_t bytes) {
    if (bytes <= r->row_capacity) return;
    memory_free(r->row);
    r->row = memory_alloc(bytes);
    r->row_capacity = bytes;
}

static Status reader_rows(void *state, int32_t id, int64_t cols, int64_t first, int64_t count, float *out, Error *err) {
    Reader *r = state;
    const GgufTensor *tensor;
    int64_t bytes;
    TRY(find(r, id, cols, &tensor, &bytes, err));
    reserve_row(r, (size_t)(bytes * count));
    int is_bias = tensor->ndim == 1;
    if (!gguf_is_permuted(r->model, id) || is_bias) {
        TRY(gguf_read(r->file, tensor, (uint64_t)(first * bytes), r->row, (size_t)(count * bytes), 0, err));
    } else {
        for (int64_t i = 0; i < count; i++)
            TRY(gguf_read(r->file, tensor, (uint64_t)(gguf_file_row(r->model, id, first + i) * bytes), r->row + i * bytes,
                          (size_t)bytes, 0, err));
    }
    if (!is_bias || !gguf_is_permuted(r->model, id))
        return ggml_dequantize(tensor->type->type, r->row, count, cols, out, r->pool, err);
    for (int64_t c = 0; c < cols; c++)
        memcpy(out + c, r->row + (size_t)gguf_file_row(r->model, id, c) * sizeof(float), sizeof(float));
    return OK;
}

static Status reader_alone(void *state, int32_t id, int64_t cols, int64_t count, const float *base, float *out, Error *err) {
    Reader *r = state;
    const GgufTensor *tensor;
    int64_t bytes;
    TRY(find(r, id, cols, &tensor, &bytes, err));
    if (merge_weight(r->merge, id).file->ggml == tensor->type->type && tensor->type->is_quantized) { /* it would be copied */
        memcpy(out, base, (size_t)(count * cols) * sizeof *out);
        return OK;
    }
    reserve_row(r, (size_t)(bytes * count));
    TRY(ggml_quantize(tensor->type->type, base, count, cols, importance_of(r->export, id), r->row, r->pool, err));
    return ggml_dequantize(tensor->type->type, r->row, count, cols, out, r->pool, err);
}

const ExportReader export_gguf_reader = {reader_open, reader_rows, reader_alone, reader_close};
