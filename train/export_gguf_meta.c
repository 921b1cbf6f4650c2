/* Metadata of a GGUF file: the architecture's numbers and RoPE, as llama.cpp's loader takes them (types included). */
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "data/gguf_tokenizer.h"
#include "train/export_gguf.h"

typedef struct Meta {
    GgufWriter *writer;
    const char *architecture;
    char key[128];
} Meta;

static const char *key(Meta *m, const char *name) {
    (void)snprintf(m->key, sizeof m->key, "%s.%s", m->architecture, name);
    return m->key;
}

static Status put_count(Meta *m, const char *name, int64_t value, Error *err) {
    if (value < 0 || value > UINT32_MAX) FAIL("gguf: %s: want a 32-bit count, got %lld", name, (long long)value);
    return gguf_put_u32(m->writer, key(m, name), (uint32_t)value, err);
}

static Status put_rope(Meta *m, const ModelConfig *c, Error *err) {
    TRY(gguf_put_f32(m->writer, key(m, "rope.freq_base"), (float)c->rope.theta, err));
    TRY(put_count(m, "rope.dimension_count", c->head_dim, err));
    if (c->rope.type != ROPE_LINEAR && c->rope.type != ROPE_YARN) return OK;
    TRY(gguf_put_text(m->writer, key(m, "rope.scaling.type"), c->rope.type == ROPE_YARN ? "yarn" : "linear", err));
    TRY(gguf_put_f32(m->writer, key(m, "rope.scaling.factor"), (float)c->rope.factor, err));
    if (c->rope.type == ROPE_LINEAR) return OK;
    return put_count(m, "rope.scaling.original_context_length",
                     c->rope.original_context > 0 ? c->rope.original_context : c->context, err);
}

Status gguf_put_model(GgufWriter *writer, const ModelConfig *c, const char *name, const GgufMix *mix, Error *err) {
    Meta m = {.writer = writer};
    TRY(gguf_architecture(c, &m.architecture, err));
    TRY(gguf_put_text(writer, "general.architecture", m.architecture, err));
    TRY(gguf_put_text(writer, "general.type", "model", err));
    TRY(gguf_put_text(writer, "general.name", name, err));
    TRY(gguf_put_u32(writer, "general.file_type", mix->file_type, err));
    TRY(gguf_put_u32(writer, "general.quantization_version", 2, err));
    TRY(put_count(&m, "context_length", c->context, err));
    TRY(put_count(&m, "embedding_length", c->hidden, err));
    TRY(put_count(&m, "block_count", c->layers, err));
    TRY(put_count(&m, "feed_forward_length", c->intermediate, err));
    TRY(put_count(&m, "attention.head_count", c->heads, err));
    TRY(put_count(&m, "attention.head_count_kv", c->kv_heads, err));
    TRY(put_count(&m, "attention.key_length", c->head_dim, err));
    TRY(put_count(&m, "attention.value_length", c->head_dim, err));
    TRY(put_count(&m, "vocab_size", c->vocab, err));
    TRY(gguf_put_f32(writer, key(&m, "attention.layer_norm_rms_epsilon"), (float)c->rms_eps, err));
    return put_rope(&m, c, err);
}

Status gguf_rope_factors(const ModelConfig *c, float *factors, Error *err) {
    double *scaled = memory_calloc((size_t)c->head_dim, sizeof *scaled), *plain = scaled + c->head_dim / 2, attention;
    ModelConfig *unscaled = memory_alloc(sizeof *unscaled);
    *unscaled = *c;
    unscaled->rope.type = ROPE_DEFAULT;
    Status status;
    TRY_GOTO(rope_frequencies(c, c->context, scaled, &attention, err));
    TRY_GOTO(rope_frequencies(unscaled, c->context, plain, &attention, err));
    for (int64_t i = 0; i < c->head_dim / 2; i++)
        factors[i] = (float)(plain[i] / scaled[i]);
done:
    memory_free(unscaled);
    memory_free(scaled);
    return status;
}
