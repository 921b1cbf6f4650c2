#include "train/full_model.h"

#include <string.h>

#include "core/file.h"
#include "data/safetensors.h"
#include "train/output_folder.h"

#define NAME_BYTES 256

typedef struct WriteContext {
    const Engine *engine;
    const TensorSpec *specs;
} WriteContext;

static Status produce(void *context, const TensorSpec *spec, TensorWriter *writer, Error *err) {
    const WriteContext *c = context;
    const ParamSet *params = &c->engine->params;
    size_t size = dtype_size(c->engine->exec.config.act);
    for (int64_t e = 0; e < params->count; e++) {
        if (strcmp(c->specs[e].name, spec->name) != 0) continue;
        const ParamEntry *entry = &params->entries[e];
        const uint8_t *values = (const uint8_t *)c->engine->state.copy + (size_t)entry->offset * size;
        return tensor_write_bytes(writer, values, (size_t)(entry->rows * entry->cols) * size, err);
    }
    FAIL("internal error: no values for %s", spec->name);
}

static Status write_weights(const Engine *engine, const char *folder, Error *err) {
    const ParamSet *params = &engine->params;
    TensorSpec *specs = memory_calloc((size_t)params->count, sizeof *specs);
    char(*names)[NAME_BYTES] = memory_alloc((size_t)params->count * sizeof *names);
    for (int64_t e = 0; e < params->count; e++) {
        const ParamEntry *entry = &params->entries[e];
        params_name(params, &engine->model, e, names[e], sizeof names[e]);
        specs[e] = (TensorSpec){.name = names[e], .dtype = engine->exec.config.act};
        int kind = entry->weight >= WEIGHT_GLOBALS ? (entry->weight - WEIGHT_GLOBALS) % LAYER_WEIGHTS : -1;
        int vector = entry->weight == WEIGHT_FINAL_NORM || kind >= LAYER_LINEARS;
        specs[e].ndim = vector ? 1 : 2;
        specs[e].shape[0] = vector ? entry->cols : entry->rows;
        specs[e].shape[1] = vector ? 0 : entry->cols;
    }
    WriteContext context = {engine, specs};
    char *path = path_join(folder, "model.safetensors");
    Status status = tensors_write(path, specs, params->count, NULL, produce, &context, err);
    memory_free(path);
    memory_free(names);
    memory_free(specs);
    return status;
}

typedef struct FullModel {
    const Engine *engine;
    const char *source;
} FullModel;

static Status fill(void *context, const char *folder, Error *err) {
    const FullModel *model = context;
    TRY(write_weights(model->engine, folder, err));
    TRY(output_folder_write_config(model->source, folder, model->engine->exec.config.act, 0, err));
    return output_folder_copy_settings(model->source, folder, err);
}

Status full_model_write(const Engine *engine, const char *source, const char *folder, Error *err) {
    FullModel model = {engine, source};
    Status status = output_folder_write(folder, 1, fill, &model, err);
    if (status != OK) error_prefix(err, "%s", folder);
    return status;
}
