#include "train/adapter_gguf.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/file.h"
#include "core/memory.h"
#include "data/gguf_model.h"
#include "train/adapter_internal.h"
#include "train/gguf_names.h"

#define NAME_BYTES (GGUF_WEIGHT_NAME_MAX + 8)

int adapter_is_gguf(const char *path) {
    if (!file_is_folder(path)) return gguf_is_file(path);
    char *config = path_join(path, "adapter_config.json"), *file = path_join(path, ADAPTER_GGUF_FILE);
    int found = !file_exists(config) && gguf_is_file(file);
    memory_free(config);
    memory_free(file);
    return found;
}

static Status open_file(GgufFile **file, const char *path, Error *err) {
    if (!file_is_folder(path)) return gguf_open(file, path, err);
    char *inside = path_join(path, ADAPTER_GGUF_FILE);
    Status status = gguf_open(file, inside, err);
    memory_free(inside);
    return status;
}

/* ---- what the file says of itself -------------------------------------------------------------------------------------------- */

static Status check_text(const GgufFile *file, const char *key, const char *want, Error *err) {
    GgufString text;
    TRY(gguf_get_string(file, key, &text, err));
    if (text.length == strlen(want) && memcmp(text.bytes, want, strlen(want)) == 0) return OK;
    FAIL("%s: %s: want \"%s\", got \"%.*s\"", gguf_path(file), key, want, (int)(text.length < 40 ? text.length : 40),
         text.bytes);
}

static Status check_keys(const GgufFile *file, const ModelConfig *model, double *alpha, Error *err) {
    const char *architecture;
    float value;
    TRY(check_text(file, "general.type", "adapter", err));
    TRY(check_text(file, "adapter.type", "lora", err));
    TRY(gguf_architecture(model, &architecture, err));
    TRY(check_text(file, "general.architecture", architecture, err));
    if (gguf_find(file, "adapter.alora.invocation_tokens") != NULL)
        FAIL("%s: key 'adapter.alora.invocation_tokens' is set, which is not supported", gguf_path(file));
    TRY(gguf_get_f32(file, "adapter.lora.alpha", &value, err));
    if (!(value >= 0.0f && value <= FLT_MAX))
        FAIL("%s: adapter.lora.alpha: want a number from 0 on, got %g", gguf_path(file), (double)value);
    *alpha = (double)value;
    return OK;
}

/* ---- structure --------------------------------------------------------------------------------------------------------------- */

static int tensor_name(const ModelConfig *model, int64_t layer, LayerWeight kind, char which, char name[NAME_BYTES]) {
    char base[GGUF_WEIGHT_NAME_MAX];
    if (!gguf_weight_name(model, weight_id(layer, kind), base)) return 0;
    (void)snprintf(name, NAME_BYTES, "%s.lora_%c", base, which);
    return 1;
}

static Status check_shape(const GgufFile *file, const GgufTensor *tensor, int64_t rows, int64_t cols, Error *err) {
    if (!tensor->type->is_codec) FAIL("%s: %s: type %s is not read here", gguf_path(file), tensor->name, tensor->type->name);
    if (tensor->ne[0] == cols && tensor->ne[1] == rows && tensor->ndim <= 2) return OK;
    FAIL("%s: %s: want [%lld, %lld], got [%lld, %lld]; does the adapter belong to this base model?", gguf_path(file),
         tensor->name, (long long)rows, (long long)cols, (long long)tensor->ne[1], (long long)tensor->ne[0]);
}

static Status read_module(const GgufFile *file, const ModelConfig *model, int64_t layer, LayerWeight kind, double alpha,
                          AdapterModule *module, int64_t *used, Error *err) {
    char name[NAME_BYTES];
    int64_t rows = 0, cols = 0;
    if (!tensor_name(model, layer, kind, 'a', name)) return OK;
    const GgufTensor *a = gguf_tensor_find(file, name);
    (void)tensor_name(model, layer, kind, 'b', name);
    const GgufTensor *b = gguf_tensor_find(file, name);
    if (a == NULL && b == NULL) return OK;
    if (a == NULL || b == NULL) FAIL("%s: %s: lora_a and lora_b must come together, one is missing", gguf_path(file), name);
    (void)weight_describe(model, weight_id(layer, kind), NULL, 0, &rows, &cols);
    int64_t rank = a->ne[1];
    if (rank < 1 || rank > 65536) FAIL("%s: %s: a rank of %lld is not possible", gguf_path(file), a->name, (long long)rank);
    TRY(check_shape(file, a, rank, cols, err));
    TRY(check_shape(file, b, rows, rank, err));
    module->rank = rank;
    module->alpha = alpha > 0.0 ? alpha : (double)rank;
    module->scale = (float)(module->alpha / (double)rank);
    *used += 2;
    return OK;
}

/* The first tensor that is no adapter of a linear of this model, by name. */
static Status refuse_unknown(const GgufFile *file, const ModelConfig *model, Error *err) {
    for (int64_t t = 0; t < gguf_tensor_count(file); t++) {
        const char *name = gguf_tensor(file, t)->name;
        char wanted[NAME_BYTES];
        int known = 0;
        for (int64_t m = 0; m < 2 * model->layers * LAYER_LINEARS && !known; m++)
            known =
                tensor_name(model, m / 2 / LAYER_LINEARS, (LayerWeight)(m / 2 % LAYER_LINEARS), m % 2 ? 'b' : 'a', wanted) &&
                strcmp(name, wanted) == 0;
        if (!known)
            FAIL("%s: tensor %s is not a LoRA matrix of one of this model's linears; it is not supported", gguf_path(file),
                 name);
    }
    return OK;
}

static Status read_structure(Adapter *adapter, const GgufFile *file, const ModelConfig *model, Error *err) {
    double alpha;
    int64_t used = 0;
    TRY(check_keys(file, model, &alpha, err));
    for (int64_t layer = 0; layer < adapter->layers; layer++)
        for (int kind = 0; kind < LAYER_LINEARS; kind++)
            TRY(read_module(file, model, layer, (LayerWeight)kind, alpha, adapter_module(adapter, layer, (LayerWeight)kind),
                            &used, err));
    if (used != gguf_tensor_count(file)) TRY(refuse_unknown(file, model, err));
    if (used == 0) FAIL("%s: holds no LoRA matrix of this model's linears", gguf_path(file));
    return OK;
}

Status adapter_gguf_read(Adapter *adapter, ParamSet *params, const char *path, const ModelConfig *model, Error *err) {
    GgufFile *file;
    memset(adapter, 0, sizeof *adapter);
    TRY(open_file(&file, path, err));
    adapter_reserve(adapter, model);
    Status status = read_structure(adapter, file, model, err);
    gguf_close(file);
    TRY(status);
    adapter_place(adapter, params, model);
    return OK;
}

/* ---- values ------------------------------------------------------------------------------------------------------------------- */

/* Rows in the model's order. */
static Status read_entry(const GgufFile *file, const ParamEntry *entry, const ModelConfig *model, float *out, Error *err) {
    char name[NAME_BYTES];
    int32_t id = weight_id(entry->layer, entry->module);
    int is_b = entry->role == PARAM_LORA_B;
    const GgufTensor *tensor =
        tensor_name(model, entry->layer, entry->module, is_b ? 'b' : 'a', name) ? gguf_tensor_find(file, name) : NULL;
    if (tensor == NULL) FAIL("%s: %s is missing", gguf_path(file), name);
    TRY(check_shape(file, tensor, entry->rows, entry->cols, err));
    int64_t count = entry->rows * entry->cols;
    void *raw = memory_alloc((size_t)tensor->bytes);
    float *values = memory_alloc((size_t)count * sizeof *values);
    Status status = gguf_read(file, tensor, 0, raw, (size_t)tensor->bytes, 0, err);
    if (status == OK) status = ggml_dequantize(tensor->type->type, raw, entry->rows, entry->cols, values, NULL, err);
    for (int64_t i = 0; i < count && status == OK; i++)
        if (!isfinite(values[i]))
            status = error_set(err, ERR_FAILED, "%s: %s: element %lld is NaN or Inf", gguf_path(file), name, (long long)i);
    for (int64_t r = 0; r < entry->rows && status == OK; r++)
        memcpy(out + r * entry->cols, values + (is_b ? gguf_file_row(model, id, r) : r) * entry->cols,
               (size_t)entry->cols * sizeof *out);
    memory_free(values);
    memory_free(raw);
    return status;
}

Status adapter_gguf_values(const ParamSet *params, const char *path, const ModelConfig *model, float *master, Error *err) {
    GgufFile *file;
    int64_t entries = adapter_entries(params);
    TRY(open_file(&file, path, err));
    Status status = OK;
    for (int64_t e = 0; e < entries && status == OK; e++)
        status = read_entry(file, &params->entries[e], model, master + params->entries[e].offset, err);
    if (status == OK && gguf_tensor_count(file) != entries)
        status = error_set(err, ERR_FAILED,
                           "%s: it has %lld matrices and this run wants %lld; lora.target_modules or lora.layers differ", path,
                           (long long)gguf_tensor_count(file), (long long)entries);
    gguf_close(file);
    return status;
}
