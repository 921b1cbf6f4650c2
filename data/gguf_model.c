#include "data/gguf_model.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/file.h"
#include "core/memory.h"
#include "data/safetensors_private.h"

static int begins_as_gguf(const char *path) {
    char magic[4];
    struct stat info;
    if (stat(path, &info) != 0 || !S_ISREG(info.st_mode)) return 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    int found = pread(fd, magic, sizeof magic, 0) == (ssize_t)sizeof magic && memcmp(magic, "GGUF", sizeof magic) == 0;
    (void)close(fd);
    return found;
}

int gguf_is_file(const char *path) {
    if (!file_is_folder(path)) return begins_as_gguf(path);
    char *config = path_join(path, "config.json"), *file = path_join(path, GGUF_MODEL_FILE);
    int found = !file_exists(config) && begins_as_gguf(file);
    memory_free(config);
    memory_free(file);
    return found;
}

/* ---- names ----------------------------------------------------------------------------------------------------------------- */

static const struct {
    const char *gguf, *hf;
} global_names[] = {{"token_embd.weight", "model.embed_tokens.weight"},
                    {"output_norm.weight", "model.norm.weight"},
                    {"output.weight", "lm_head.weight"}},
  layer_names[] = {
      {"attn_q", "self_attn.q_proj"},      {"attn_k", "self_attn.k_proj"},     {"attn_v", "self_attn.v_proj"},
      {"attn_output", "self_attn.o_proj"}, {"ffn_gate", "mlp.gate_proj"},      {"ffn_up", "mlp.up_proj"},
      {"ffn_down", "mlp.down_proj"},       {"attn_norm", "input_layernorm"},   {"ffn_norm", "post_attention_layernorm"},
      {"attn_q_norm", "self_attn.q_norm"}, {"attn_k_norm", "self_attn.k_norm"}};

int gguf_hf_name(const char *name, char out[GGUF_HF_NAME_MAX]) {
    for (size_t i = 0; i < sizeof global_names / sizeof *global_names; i++)
        if (strcmp(name, global_names[i].gguf) == 0) {
            (void)snprintf(out, GGUF_HF_NAME_MAX, "%s", global_names[i].hf);
            return 1;
        }
    if (strncmp(name, "blk.", 4) != 0 || name[4] < '0' || name[4] > '9') return 0;
    char *end;
    unsigned long layer = strtoul(name + 4, &end, 10);
    const char *part = end + 1, *suffix = *end == '.' ? strrchr(part, '.') : NULL;
    if (layer >= MODEL_MAX_LAYERS || suffix == NULL || (strcmp(suffix, ".weight") != 0 && strcmp(suffix, ".bias") != 0))
        return 0;
    for (size_t i = 0; i < sizeof layer_names / sizeof *layer_names; i++) {
        if (strlen(layer_names[i].gguf) != (size_t)(suffix - part)) continue;
        if (strncmp(layer_names[i].gguf, part, (size_t)(suffix - part)) != 0) continue;
        (void)snprintf(out, GGUF_HF_NAME_MAX, "model.layers.%lu.%s%s", layer, layer_names[i].hf, suffix);
        return 1;
    }
    return 0;
}

/* ---- tensors --------------------------------------------------------------------------------------------------------------- */

typedef struct ModelTensor {
    TensorInfo info;
    const GgufTensor *source;
    int64_t head; /* rows of a head where they stand in llama's order; 0 where they do not */
    char name[GGUF_HF_NAME_MAX];
} ModelTensor;

struct GgufModel {
    GgufFile *file;
    ModelTensor *tensors;
    int64_t count;
};

static DType plain_type(uint32_t type) {
    return type == GGML_F32 ? DTYPE_F32 : type == GGML_F16 ? DTYPE_F16 : type == GGML_BF16 ? DTYPE_BF16 : DTYPE_U8;
}

static int is_permuted(const char *name) {
    const char *part = strncmp(name, "blk.", 4) == 0 ? strchr(name + 4, '.') : NULL;
    static const char *const parts[] = {".attn_q.weight", ".attn_k.weight", ".attn_q.bias", ".attn_k.bias"};
    for (size_t i = 0; part != NULL && i < sizeof parts / sizeof *parts; i++)
        if (strcmp(part, parts[i]) == 0) return 1;
    return 0;
}

static Status add_tensor(GgufModel *model, const GgufTensor *source, const ModelConfig *config, Error *err) {
    ModelTensor *t = &model->tensors[model->count];
    const char *path = gguf_path(model->file);
    if (!gguf_hf_name(source->name, t->name)) FAIL("%s: tensor '%s': this architecture has no such weight", path, source->name);
    *t = (ModelTensor){.source = source, .info = {.dtype = plain_type(source->type->type), .ndim = source->ndim}};
    (void)gguf_hf_name(source->name, t->name);
    t->info.name = t->name;
    t->info.bytes = source->bytes;
    t->info.offset = source->offset;
    for (int d = 0; d < source->ndim; d++)
        t->info.shape[d] = source->ne[source->ndim - 1 - d];
    if (t->info.dtype == DTYPE_U8) t->info.ggml = source->type->type;
    if (t->info.ggml != 0 && (!source->type->is_codec || source->ndim != 2))
        FAIL("%s: tensor '%s': type %s is not read%s; want F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1 or Q2_K to Q6_K", path,
             source->name, source->type->name, source->ndim != 2 ? " outside of matrices" : "");
    model->count++;
    if (!is_permuted(source->name) || strcmp(config->model_type, "llama") != 0) return OK;
    t->head = config->head_dim;
    if (t->info.shape[0] % t->head != 0)
        FAIL("%s: tensor '%s': want whole heads of %lld rows, got %lld rows", path, source->name, (long long)t->head,
             (long long)t->info.shape[0]);
    return OK;
}

static Status fill(GgufModel *model, const char *path, Error *err) {
    Text text = {0};
    ModelConfig *config = memory_alloc(sizeof *config);
    Status status;
    TRY_GOTO(gguf_open(&model->file, path, err));
    TRY_GOTO(gguf_config_text(model->file, &text, err));
    TRY_GOTO(model_config_parse(path, text.data, text.length, config, err));
    int64_t count = gguf_tensor_count(model->file);
    model->tensors = memory_calloc((size_t)count, sizeof *model->tensors);
    for (int64_t i = 0; i < count; i++) {
        const GgufTensor *source = gguf_tensor(model->file, i);
        if (strcmp(source->name, "rope_freqs.weight") == 0) continue; /* part of the config */
        TRY_GOTO(add_tensor(model, source, config, err));
    }
done:
    memory_free(config);
    text_free(&text);
    return status;
}

Status gguf_model_open(GgufModel **out, const char *path, Error *err) {
    GgufModel *model = memory_calloc(1, sizeof *model);
    Status status = fill(model, path, err);
    *out = status == OK ? model : NULL;
    if (status != OK) gguf_model_close(model);
    return status;
}

void gguf_model_close(GgufModel *model) {
    if (model == NULL) return;
    gguf_close(model->file);
    memory_free(model->tensors);
    memory_free(model);
}

int64_t gguf_model_count(const GgufModel *model) {
    return model->count;
}

const TensorInfo *gguf_model_tensor(const GgufModel *model, int64_t index) {
    return &model->tensors[index].info;
}

const char *gguf_model_path(const GgufModel *model) {
    return gguf_path(model->file);
}

/* A head at a time: all of its rows lie together, in another order. */
static Status read_heads(const GgufModel *model, const ModelTensor *t, uint64_t offset, uint8_t *out, size_t bytes,
                         int drop_cache, Error *err) {
    uint64_t row_bytes = t->info.bytes / (uint64_t)t->info.shape[0], head = (uint64_t)t->head, half = head / 2;
    uint8_t *rows = memory_alloc((size_t)(head * row_bytes));
    Status status = OK;
    for (uint64_t at = offset, end = offset + bytes; at < end && status == OK;) {
        uint64_t first = at / (head * row_bytes) * head;
        status = gguf_read(model->file, t->source, first * row_bytes, rows, (size_t)(head * row_bytes), drop_cache, err);
        for (; status == OK && at < end && at / row_bytes < first + head;) {
            uint64_t inside = at / row_bytes - first, skip = at % row_bytes;
            uint64_t count = row_bytes - skip < end - at ? row_bytes - skip : end - at;
            uint64_t place = 2 * (inside % half) + inside / half;
            memcpy(out + (at - offset), rows + place * row_bytes + skip, (size_t)count);
            at += count;
        }
    }
    memory_free(rows);
    return status;
}

Status gguf_model_read(const GgufModel *model, int64_t index, uint64_t offset, void *out, size_t bytes, int drop_cache,
                       Error *err) {
    const ModelTensor *t = &model->tensors[index];
    if (t->head == 0) return gguf_read(model->file, t->source, offset, out, bytes, drop_cache, err);
    if (offset > t->info.bytes || bytes > t->info.bytes - offset)
        FAIL("%s: tensor '%s': want %zu bytes at %llu of it, got a tensor of %llu bytes", gguf_path(model->file),
             t->source->name, bytes, (unsigned long long)offset, (unsigned long long)t->info.bytes);
    return read_heads(model, t, offset, out, bytes, drop_cache, err);
}
