/* One adapter as llama.cpp's LoRA file. A file has one alpha and a scale of alpha / rank: modules whose scale is another get theirs
 * folded into B. Source: llama.cpp (in llama-cpp-python 0.3.36), src/llama-adapter.cpp, convert_lora_to_gguf.py. */
#include <stdio.h>
#include <string.h>

#include "core/file.h"
#include "core/memory.h"
#include "train/adapter.h"
#include "train/export_gguf.h"
#include "train/weights.h"

typedef struct Lora {
    Export *export;
    ModelConfig model;
    Adapter adapter;
    ParamSet params;
    float *values;
    double alpha;
} Lora;

/* The scale of the first module with an adapter, as an alpha of its rank. */
static double common_alpha(const Lora *l) {
    for (int64_t m = 0; m < l->adapter.layers * LAYER_LINEARS; m++)
        if (l->adapter.modules[m].rank > 0)
            return (double)(float)((double)l->adapter.modules[m].scale * (double)l->adapter.modules[m].rank);
    return 0.0;
}

static int module_id(const ParamEntry *entry) {
    return weight_id(entry->layer, entry->module);
}

static Status declare(const Lora *l, GgufWriter *writer, Error *err) {
    for (int64_t i = 0; i < l->params.count; i++) {
        const ParamEntry *entry = &l->params.entries[i];
        char base[GGUF_WEIGHT_NAME_MAX], name[GGUF_WEIGHT_NAME_MAX + 8];
        int64_t ne[2] = {entry->cols, entry->rows};
        if (!gguf_weight_name(&l->model, module_id(entry), base)) FAIL("an adapter on a weight that the model does not have");
        (void)snprintf(name, sizeof name, "%s.lora_%c", base, entry->role == PARAM_LORA_A ? 'a' : 'b');
        TRY(gguf_add_tensor(writer, name, GGML_F32, 2, ne, err));
    }
    return OK;
}

/* What the file says of a module, over what it is: 1 for the usual adapter. */
static float folded(const Lora *l, const ParamEntry *entry) {
    const AdapterModule *module = adapter_module(&l->adapter, entry->layer, entry->module);
    return entry->role == PARAM_LORA_B ? (float)((double)module->scale * (double)module->rank / l->alpha) : 1.0f;
}

/* The tensor as it stands in the file. */
static void fill(const Lora *l, const ParamEntry *entry, float *out) {
    const float *values = l->values + entry->offset;
    float factor = folded(l, entry);
    for (int64_t r = 0; r < entry->rows; r++) {
        int64_t to = entry->role == PARAM_LORA_B ? gguf_file_row(&l->model, module_id(entry), r) : r;
        for (int64_t c = 0; c < entry->cols; c++)
            out[to * entry->cols + c] = values[r * entry->cols + c] * factor;
    }
}

typedef struct Produced {
    const Lora *lora;
    int64_t next;
} Produced;

static Status produce(void *context, const GgufTensor *tensor, GgufWriter *writer, Error *err) {
    Produced *p = context;
    const ParamEntry *entry = &p->lora->params.entries[p->next++];
    float *out = memory_alloc((size_t)tensor->bytes);
    fill(p->lora, entry, out);
    p->lora->export->bytes += tensor->bytes;
    Status status = gguf_write_bytes(writer, out, (size_t)tensor->bytes, err);
    memory_free(out);
    return status;
}

/* Every tensor of the file, read again, is what was to be written. */
static Status read_back(const Lora *l, const char *path, Error *err) {
    GgufFile *file = NULL;
    Status status = gguf_open(&file, path, err);
    for (int64_t i = 0; i < l->params.count && status == OK; i++) {
        const GgufTensor *tensor = gguf_tensor(file, i);
        float *want = memory_alloc((size_t)tensor->bytes), *got = memory_alloc((size_t)tensor->bytes);
        fill(l, &l->params.entries[i], want);
        status = gguf_read(file, tensor, 0, got, (size_t)tensor->bytes, 0, err);
        if (status == OK && memcmp(want, got, (size_t)tensor->bytes) != 0)
            status = error_set(err, ERR_FAILED, "%s: %s reads back differently", path, tensor->name);
        memory_free(want);
        memory_free(got);
    }
    gguf_close(file);
    return status;
}

static Status put_keys(const Lora *l, GgufWriter *writer, Error *err) {
    const char *architecture;
    TRY(gguf_architecture(&l->model, &architecture, err));
    TRY(gguf_put_text(writer, "general.architecture", architecture, err));
    TRY(gguf_put_text(writer, "general.type", "adapter", err));
    TRY(gguf_put_u32(writer, "general.file_type", 0, err));
    TRY(gguf_put_text(writer, "adapter.type", "lora", err));
    return gguf_put_f32(writer, "adapter.lora.alpha", (float)l->alpha, err);
}

Status export_lora_gguf_write(Export *export, const char *folder, Error *err) {
    const char *from = export->merging.adapters[0];
    Lora l = {.export = export};
    Produced produced = {.lora = &l};
    char *path = path_join(folder, EXPORT_LORA_GGUF_FILE);
    GgufWriter *writer = gguf_writer_create(path);
    Status status;
    TRY_GOTO(model_config_read(export->options->model, &l.model, err));
    TRY_GOTO(adapter_read(&l.adapter, &l.params, from, &l.model, err));
    l.values = memory_calloc((size_t)l.params.elements, sizeof *l.values);
    TRY_GOTO(adapter_read_values(&l.adapter, &l.params, from, &l.model, l.values, err));
    l.alpha = common_alpha(&l);
    if (!(l.alpha != 0.0)) { /* llama.cpp takes 0 for 1 */
        status = error_set(err, ERR_FAILED, "%s: an alpha of 0 cannot be written as a GGUF adapter", from);
        goto done;
    }
    TRY_GOTO(put_keys(&l, writer, err));
    TRY_GOTO(declare(&l, writer, err));
    export->bytes = 0;
    export->type = DTYPE_F32;
    export->adapted = export->linears = l.params.count / 2;
    TRY_GOTO(gguf_writer_write(writer, produce, &produced, err));
    if (!export->options->no_verify) TRY_GOTO(read_back(&l, path, err));
done:
    gguf_writer_free(writer);
    memory_free(path);
    memory_free(l.values);
    adapter_free(&l.adapter);
    params_free(&l.params);
    return status;
}
