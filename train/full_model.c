#include "train/full_model.h"

#include <cjson/cJSON.h>
#include <stdio.h>
#include <string.h>

#include "core/file.h"
#include "data/safetensors.h"

#define NAME_BYTES 256
#define FILE_LIMIT ((size_t)256 << 20)

/* Files that belong to a model folder beside its weights. */
static const char *const copied[] = {
    "tokenizer.json",         "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
    "generation_config.json", "chat_template.jinja",   "vocab.json",      "merges.txt"};

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

/* config.json of the source with the type that the weights are now stored in; every other key as it was. */
static Status write_config(const Engine *engine, const char *source, const char *folder, Error *err) {
    char *from = path_join(source, "config.json"), *to = path_join(folder, "config.json"), *text = NULL, *printed = NULL;
    size_t length;
    cJSON *json = NULL;
    Status status = file_read(from, (size_t)1 << 20, &text, &length, err);
    if (status == OK) {
        json = cJSON_ParseWithLength(text, length);
        if (!cJSON_IsObject(json)) status = error_set(err, ERR_FAILED, "%s is not a JSON object", from);
    }
    if (status == OK) {
        const char *key = cJSON_HasObjectItem(json, "dtype") ? "dtype" : "torch_dtype";
        cJSON_DeleteItemFromObjectCaseSensitive(json, key);
        cJSON_AddStringToObject(json, key, engine->exec.config.act == DTYPE_F32 ? "float32" : "bfloat16");
        printed = cJSON_Print(json);
        status = file_write_atomic(to, printed, strlen(printed), err);
    }
    cJSON_free(printed);
    cJSON_Delete(json);
    memory_free(text);
    memory_free(from);
    memory_free(to);
    return status;
}

static Status copy_files(const char *source, const char *folder, Error *err) {
    Status status = OK;
    for (size_t i = 0; i < sizeof copied / sizeof copied[0] && status == OK; i++) {
        char *from = path_join(source, copied[i]), *to = path_join(folder, copied[i]), *bytes = NULL;
        size_t length;
        if (file_exists(from)) {
            status = file_read(from, FILE_LIMIT, &bytes, &length, err);
            if (status == OK) status = file_write_atomic(to, bytes, length, err);
        }
        memory_free(bytes);
        memory_free(from);
        memory_free(to);
    }
    return status;
}

Status full_model_write(const Engine *engine, const char *source, const char *folder, Error *err) {
    char *temporary = memory_format("%s.tmp-new", folder);
    Status status = folder_remove(temporary, err);
    if (status == OK) status = folder_create(temporary, err);
    if (status == OK) status = write_weights(engine, temporary, err);
    if (status == OK) status = write_config(engine, source, temporary, err);
    if (status == OK) status = copy_files(source, temporary, err);
    if (status == OK) status = folder_replace(temporary, folder, err);
    if (status != OK) {
        Error ignored;
        (void)folder_remove(temporary, &ignored);
        error_prefix(err, "%s", folder);
    }
    memory_free(temporary);
    return status;
}
