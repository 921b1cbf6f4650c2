/* One adapter as a PEFT folder with the smallest config that every PEFT reads, and nothing else in it. */
#include <math.h>
#include <string.h>

#include "core/file.h"
#include "core/memory.h"
#include "data/safetensors.h"
#include "train/adapter_gguf.h"
#include "train/export.h"

/* The type of all its tensors; F32 where they differ, and of a GGUF file's. */
static Status stored_type(const char *folder, DType *type, Error *err) {
    TensorFiles *files;
    *type = DTYPE_F32;
    if (adapter_is_gguf(folder)) return OK;
    TRY(tensors_open(&files, folder, "adapter_model", err));
    *type = tensors_count(files) > 0 ? tensors_get(files, 0)->dtype : DTYPE_F32;
    for (int64_t i = 1; i < tensors_count(files); i++)
        if (tensors_get(files, i)->dtype != *type) *type = DTYPE_F32;
    tensors_close(files);
    return OK;
}

/* What was written, read as an adapter again: every scale and, rounded to its type, every value. */
static Status read_back(Export *export, const char *folder, const ModelConfig *model, const Adapter *adapter,
                        const ParamSet *params, const void *rounded, Error *err) {
    Adapter again = {0};
    ParamSet places = {0};
    float *values = memory_calloc((size_t)params->elements, sizeof *values);
    float *want = memory_calloc((size_t)params->elements, sizeof *want);
    dtype_convert(want, DTYPE_F32, rounded, export->type, params->elements);
    Status status;
    TRY_GOTO(adapter_read(&again, &places, folder, model, err));
    TRY_GOTO(adapter_read_values(&again, &places, folder, model, values, err));
    int same = places.elements == params->elements && memcmp(values, want, (size_t)params->elements * sizeof *values) == 0;
    for (int64_t m = 0; m < adapter->layers * LAYER_LINEARS; m++)
        same &= again.modules[m].rank == adapter->modules[m].rank && again.modules[m].scale == adapter->modules[m].scale;
    if (!same) status = error_set(err, ERR_FAILED, "%s: the adapter that was written reads back differently", folder);
done:
    memory_free(values);
    memory_free(want);
    adapter_free(&again);
    params_free(&places);
    return status;
}

static Status write_values(Export *export, const char *folder, const ModelConfig *model, const Adapter *adapter,
                           const ParamSet *params, const float *values, Error *err) {
    void *rounded = memory_calloc((size_t)params->elements, dtype_size(export->type));
    dtype_convert(rounded, export->type, values, DTYPE_F32, params->elements);
    AdapterInfo info = {.base_model = export->options->model, .dropout = 0.0};
    Status status = adapter_write(adapter, params, folder, model, &info, rounded, export->type, err);
    if (status == OK && !export->options->no_verify) status = read_back(export, folder, model, adapter, params, rounded, err);
    export->bytes = (uint64_t)params->trained * dtype_size(export->type);
    memory_free(rounded);
    return status;
}

Status export_peft_write(Export *export, const char *folder, Error *err) {
    const char *from = export->merging.adapters[0];
    ModelConfig model;
    Adapter adapter = {0};
    ParamSet params = {0};
    float *values = NULL;
    Status status;
    TRY_GOTO(model_config_read(export->options->model, &model, err));
    TRY_GOTO(adapter_read(&adapter, &params, from, &model, err));
    values = memory_calloc((size_t)params.elements, sizeof *values);
    TRY_GOTO(adapter_read_values(&adapter, &params, from, &model, values, err));
    TRY_GOTO(stored_type(from, &export->type, err));
    if (export->options->dtype_given) export->type = export->options->dtype;
    export->adapted = export->linears = params.count / 2;
    TRY_GOTO(write_values(export, folder, &model, &adapter, &params, values, err));
done:
    memory_free(values);
    adapter_free(&adapter);
    params_free(&params);
    return status;
}
