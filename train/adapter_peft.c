/* Adapters to and from PEFT folders: adapter_model.safetensors. The config is adapter_peft_config.c. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/file.h"
#include "data/safetensors.h"
#include "train/adapter_gguf.h"
#include "train/adapter_internal.h"
#include "train/adapter_peft.h"
#include "train/output_folder.h"

#define NAME_BYTES 256
#define MAGNITUDE ".lora_magnitude_vector" /* DoRA; without ".weight" on disk */

void adapter_tensor_name(const ModelConfig *model, int64_t layer, LayerWeight kind, const char *suffix, char *out,
                         size_t capacity) {
    char weight[NAME_BYTES];
    int64_t rows, cols;
    weight[0] = 0;
    (void)weight_describe(model, weight_id(layer, kind), weight, sizeof weight, &rows, &cols);
    size_t length = strlen(weight), tail = sizeof ".weight" - 1;
    if (length > tail) weight[length - tail] = 0;
    (void)snprintf(out, capacity, "base_model.model.%s%s", weight, suffix);
}

/* ---- reading --------------------------------------------------------------------------------------------------------------- */

static Status check_shape(const TensorInfo *tensor, int64_t rows, int64_t cols, Error *err) {
    if (tensor->ndim == 2 && tensor->shape[0] == rows && tensor->shape[1] == cols) return OK;
    if (tensor->ndim == 2)
        FAIL("%s: want [%lld, %lld], got [%lld, %lld]; does the adapter belong to this base model?", tensor->name,
             (long long)rows, (long long)cols, (long long)tensor->shape[0], (long long)tensor->shape[1]);
    FAIL("%s: want [%lld, %lld], got %d dimensions; does the adapter belong to this base model?", tensor->name, (long long)rows,
         (long long)cols, tensor->ndim);
}

static Status read_module(const TensorFiles *files, const ModelConfig *model, int64_t layer, LayerWeight kind,
                          AdapterModule *module, int64_t *used, Error *err) {
    char name[NAME_BYTES];
    adapter_tensor_name(model, layer, kind, ".lora_A.weight", name, sizeof name);
    const TensorInfo *a = tensors_find(files, name);
    adapter_tensor_name(model, layer, kind, ".lora_B.weight", name, sizeof name);
    const TensorInfo *b = tensors_find(files, name);
    if (a == NULL && b == NULL) return OK;
    if (a == NULL || b == NULL) FAIL("%s: lora_A and lora_B must come together, one is missing", name);
    int64_t rows = 0, cols = 0;
    (void)weight_describe(model, weight_id(layer, kind), NULL, 0, &rows, &cols);
    int64_t rank = a->ndim == 2 ? a->shape[0] : 0;
    if (rank < 1 || rank > 65536) FAIL("%s: a rank of %lld is not possible", a->name, (long long)rank);
    TRY(check_shape(a, rank, cols, err));
    TRY(check_shape(b, rows, rank, err));
    module->rank = rank;
    *used += 2;
    return OK;
}

/* The first tensor that is no adapter of a linear of this model, by name. */
static Status refuse_unknown(const TensorFiles *files, const ModelConfig *model, const Adapter *adapter, Error *err) {
    for (int64_t t = 0; t < tensors_count(files); t++) {
        const char *name = tensors_get(files, t)->name;
        int known = 0;
        for (int64_t layer = 0; layer < adapter->layers && !known; layer++)
            for (int kind = 0; kind < LAYER_LINEARS && !known; kind++) {
                char wanted[NAME_BYTES];
                adapter_tensor_name(model, layer, (LayerWeight)kind, ".lora_A.weight", wanted, sizeof wanted);
                known = strcmp(name, wanted) == 0;
                adapter_tensor_name(model, layer, (LayerWeight)kind, ".lora_B.weight", wanted, sizeof wanted);
                known |= strcmp(name, wanted) == 0;
                adapter_tensor_name(model, layer, (LayerWeight)kind, MAGNITUDE, wanted, sizeof wanted);
                known |= adapter->dora && strcmp(name, wanted) == 0;
            }
        if (!known) FAIL("tensor %s is not a LoRA matrix of one of this model's linears; it is not supported", name);
    }
    return OK;
}

static Status read_structure(Adapter *adapter, const char *folder, const TensorFiles *files, const ModelConfig *model,
                             int dora_is_fine, Error *err) {
    TRY(adapter_config_apply(adapter, folder, model, err)); /* a kind that is refused is named before its tensors look odd */
    if (adapter->dora && !dora_is_fine)
        FAIL(
            "adapter_config.json: use_dora is set, which is not supported; `nibble export --format hf` merges such an adapter");
    int64_t used = 0;
    for (int64_t layer = 0; layer < adapter->layers; layer++)
        for (int kind = 0; kind < LAYER_LINEARS; kind++)
            TRY(read_module(files, model, layer, (LayerWeight)kind, adapter_module(adapter, layer, (LayerWeight)kind), &used,
                            err));
    if (used == 0) FAIL("the folder holds no LoRA matrix of this model's linears");
    if (used != tensors_count(files)) TRY(refuse_unknown(files, model, adapter, err));
    return adapter_config_apply(adapter, folder, model, err);
}

static Status read_folder(Adapter *adapter, ParamSet *params, const char *folder, const ModelConfig *model, int dora_is_fine,
                          Error *err) {
    if (adapter_is_gguf(folder)) return adapter_gguf_read(adapter, params, folder, model, err);
    memset(adapter, 0, sizeof *adapter);
    TensorFiles *files;
    TRY(tensors_open(&files, folder, "adapter_model", err));
    adapter_reserve(adapter, model);
    Status status = read_structure(adapter, folder, files, model, dora_is_fine, err);
    tensors_close(files);
    if (status != OK) {
        error_prefix(err, "%s", folder);
        return status;
    }
    adapter_place(adapter, params, model);
    return OK;
}

Status adapter_read(Adapter *adapter, ParamSet *params, const char *folder, const ModelConfig *model, Error *err) {
    return read_folder(adapter, params, folder, model, 0, err);
}

Status adapter_read_for_merge(Adapter *adapter, ParamSet *params, const char *folder, const ModelConfig *model, Error *err) {
    return read_folder(adapter, params, folder, model, 1, err);
}

static Status read_tensor(const TensorFiles *files, const TensorInfo *tensor, int64_t count, float *out, Error *err) {
    if (tensor->dtype != DTYPE_F32 && tensor->dtype != DTYPE_BF16 && tensor->dtype != DTYPE_F16)
        FAIL("%s: want F32, BF16 or F16, got %s", tensor->name, dtype_name(tensor->dtype));
    void *raw = memory_alloc((size_t)tensor->bytes);
    Status status = tensors_read(files, tensor, 0, raw, (size_t)tensor->bytes, 0, err);
    if (status == OK) dtype_convert(out, DTYPE_F32, raw, tensor->dtype, count);
    memory_free(raw);
    TRY(status);
    for (int64_t i = 0; i < count; i++)
        if (!isfinite(out[i])) FAIL("%s: element %lld is NaN or Inf", tensor->name, (long long)i);
    return OK;
}

static Status read_values(const TensorFiles *files, const char *name, int64_t rows, int64_t cols, float *out, Error *err) {
    const TensorInfo *tensor = tensors_find(files, name);
    if (tensor == NULL) FAIL("%s is missing", name);
    TRY(check_shape(tensor, rows, cols, err));
    return read_tensor(files, tensor, rows * cols, out, err);
}

static Status read_magnitude(const TensorFiles *files, const ModelConfig *model, int64_t layer, LayerWeight kind, float **out,
                             Error *err) {
    char name[NAME_BYTES];
    int64_t rows = 0, cols = 0;
    adapter_tensor_name(model, layer, kind, MAGNITUDE, name, sizeof name);
    (void)weight_describe(model, weight_id(layer, kind), NULL, 0, &rows, &cols);
    const TensorInfo *tensor = tensors_find(files, name);
    if (tensor == NULL) FAIL("%s is missing, and use_dora is set", name);
    if (tensor->ndim != 1 || tensor->shape[0] != rows)
        FAIL("%s: want [%lld], got %d dimensions; does the adapter belong to this base model?", name, (long long)rows,
             tensor->ndim);
    *out = memory_alloc((size_t)rows * sizeof **out);
    return read_tensor(files, tensor, rows, *out, err);
}

Status adapter_read_magnitudes(const Adapter *adapter, const char *folder, const ModelConfig *model, float ***magnitudes,
                               Error *err) {
    TensorFiles *files;
    *magnitudes = memory_calloc((size_t)(adapter->layers * LAYER_LINEARS), sizeof **magnitudes);
    TRY(tensors_open(&files, folder, "adapter_model", err));
    Status status = OK;
    for (int64_t m = 0; m < adapter->layers * LAYER_LINEARS && status == OK; m++)
        if (adapter->modules[m].rank > 0)
            status = read_magnitude(files, model, m / LAYER_LINEARS, (LayerWeight)(m % LAYER_LINEARS), &(*magnitudes)[m], err);
    tensors_close(files);
    if (status != OK) error_prefix(err, "%s", folder);
    return status;
}

Status adapter_read_values(const Adapter *adapter, const ParamSet *params, const char *folder, const ModelConfig *model,
                           float *master, Error *err) {
    if (adapter_is_gguf(folder)) return adapter_gguf_values(params, folder, model, master, err);
    TensorFiles *files;
    TRY(tensors_open(&files, folder, "adapter_model", err));
    Status status = OK;
    int64_t entries = adapter_entries(params);
    for (int64_t e = 0; e < entries && status == OK; e++) {
        const ParamEntry *entry = &params->entries[e];
        char name[NAME_BYTES];
        const char *suffix = entry->role == PARAM_LORA_A ? ".lora_A.weight" : ".lora_B.weight";
        adapter_tensor_name(model, entry->layer, entry->module, suffix, name, sizeof name);
        status = read_values(files, name, entry->rows, entry->cols, master + entry->offset, err);
    }
    int64_t wanted = entries + (adapter->dora ? entries / 2 : 0); /* A and B, and a magnitude, each module */
    if (status == OK && tensors_count(files) != wanted) {
        status = refuse_unknown(files, model, adapter, err);
        if (status == OK)
            status = error_set(err, ERR_FAILED,
                               "it has %lld matrices and this run wants %lld; lora.target_modules or lora.layers differ",
                               (long long)tensors_count(files), (long long)wanted);
    }
    tensors_close(files);
    if (status != OK) error_prefix(err, "%s", folder);
    return status;
}

/* ---- writing ---------------------------------------------------------------------------------------------------------------- */

typedef struct WriteContext {
    const ParamSet *params;
    const TensorSpec *specs;
    const uint8_t *values;
    DType act;
} WriteContext;

static Status produce(void *context, const TensorSpec *spec, TensorWriter *writer, Error *err) {
    const WriteContext *c = context;
    for (int64_t e = 0; e < adapter_entries(c->params); e++) {
        if (strcmp(c->specs[e].name, spec->name) != 0) continue;
        const ParamEntry *entry = &c->params->entries[e];
        size_t size = dtype_size(c->act);
        return tensor_write_bytes(writer, c->values + (size_t)entry->offset * size, (size_t)(entry->rows * entry->cols) * size,
                                  err);
    }
    FAIL("internal error: no values for %s", spec->name);
}

static Status write_tensors(const char *folder, const ParamSet *params, const ModelConfig *model, const void *values, DType act,
                            Error *err) {
    size_t count = (size_t)adapter_entries(params);
    TensorSpec *specs = memory_calloc(count, sizeof *specs);
    char(*names)[NAME_BYTES] = memory_alloc(count * sizeof *names);
    for (size_t e = 0; e < count; e++) {
        const ParamEntry *entry = &params->entries[e];
        const char *suffix = entry->role == PARAM_LORA_A ? ".lora_A.weight" : ".lora_B.weight";
        adapter_tensor_name(model, entry->layer, entry->module, suffix, names[e], sizeof names[e]);
        specs[e] = (TensorSpec){.name = names[e], .dtype = act, .ndim = 2, .shape = {entry->rows, entry->cols}};
    }
    WriteContext context = {params, specs, values, act};
    char *path = path_join(folder, "adapter_model.safetensors");
    Status status = tensors_write(path, specs, (int64_t)count, NULL, produce, &context, err);
    memory_free(path);
    memory_free(names);
    memory_free(specs);
    return status;
}

typedef struct AdapterFolder {
    const Adapter *adapter;
    const ParamSet *params;
    const ModelConfig *model;
    const AdapterInfo *info;
    const void *values;
    DType act;
} AdapterFolder;

static Status fill(void *context, const char *folder, Error *err) {
    const AdapterFolder *c = context;
    TRY(write_tensors(folder, c->params, c->model, c->values, c->act, err));
    if (c->info->extra != NULL) TRY(c->info->extra(c->info->context, folder, err));
    return adapter_config_write(c->adapter, folder, c->info, err);
}

Status adapter_write(const Adapter *adapter, const ParamSet *params, const char *folder, const ModelConfig *model,
                     const AdapterInfo *info, const void *values, DType act, Error *err) {
    AdapterFolder context = {adapter, params, model, info, values, act};
    Status status = output_folder_write(folder, 1, fill, &context, err);
    if (status != OK) error_prefix(err, "%s", folder);
    return status;
}
