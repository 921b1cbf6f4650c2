/* Numbers, names and shapes of the weights. */
#include <stdio.h>

#include "train/weights_internal.h"

int32_t weight_count(const ModelConfig *config) {
    return WEIGHT_GLOBALS + (int32_t)config->layers * LAYER_WEIGHTS;
}

static int layer_kind(int32_t id) {
    return id < WEIGHT_GLOBALS ? -1 : (id - WEIGHT_GLOBALS) % LAYER_WEIGHTS;
}

int weight_is_linear(int32_t id) {
    int kind = layer_kind(id);
    return kind >= 0 && kind < LAYER_LINEARS;
}

int weight_is_vector(int32_t id) {
    return id == WEIGHT_FINAL_NORM || layer_kind(id) >= LAYER_LINEARS;
}

static const char *const layer_names[LAYER_WEIGHTS] = {
    [LAYER_Q] = "self_attn.q_proj.weight",         [LAYER_K] = "self_attn.k_proj.weight",
    [LAYER_V] = "self_attn.v_proj.weight",         [LAYER_O] = "self_attn.o_proj.weight",
    [LAYER_GATE] = "mlp.gate_proj.weight",         [LAYER_UP] = "mlp.up_proj.weight",
    [LAYER_DOWN] = "mlp.down_proj.weight",         [LAYER_Q_BIAS] = "self_attn.q_proj.bias",
    [LAYER_K_BIAS] = "self_attn.k_proj.bias",      [LAYER_V_BIAS] = "self_attn.v_proj.bias",
    [LAYER_O_BIAS] = "self_attn.o_proj.bias",      [LAYER_GATE_BIAS] = "mlp.gate_proj.bias",
    [LAYER_UP_BIAS] = "mlp.up_proj.bias",          [LAYER_DOWN_BIAS] = "mlp.down_proj.bias",
    [LAYER_INPUT_NORM] = "input_layernorm.weight", [LAYER_POST_NORM] = "post_attention_layernorm.weight",
    [LAYER_Q_NORM] = "self_attn.q_norm.weight",    [LAYER_K_NORM] = "self_attn.k_norm.weight",
};

/* [rows, cols] of a layer's weight; 0 when the model has none. */
static int layer_shape(const ModelConfig *c, LayerWeight kind, int64_t *rows, int64_t *cols) {
    int64_t q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
    *rows = 1;
    switch (kind) {
        case LAYER_Q: *rows = q, *cols = c->hidden; return 1;
        case LAYER_K:
        case LAYER_V: *rows = kv, *cols = c->hidden; return 1;
        case LAYER_O: *rows = c->hidden, *cols = q; return 1;
        case LAYER_GATE:
        case LAYER_UP: *rows = c->intermediate, *cols = c->hidden; return 1;
        case LAYER_DOWN: *rows = c->hidden, *cols = c->intermediate; return 1;
        case LAYER_Q_BIAS: *cols = q; return c->qkv_bias;
        case LAYER_K_BIAS:
        case LAYER_V_BIAS: *cols = kv; return c->qkv_bias;
        case LAYER_O_BIAS: *cols = c->hidden; return c->o_bias;
        case LAYER_GATE_BIAS:
        case LAYER_UP_BIAS: *cols = c->intermediate; return c->mlp_bias;
        case LAYER_DOWN_BIAS: *cols = c->hidden; return c->mlp_bias;
        case LAYER_INPUT_NORM:
        case LAYER_POST_NORM: *cols = c->hidden; return 1;
        case LAYER_Q_NORM:
        case LAYER_K_NORM: *cols = c->head_dim; return c->qk_norm;
        case LAYER_WEIGHTS: break;
    }
    return 0;
}

int weight_describe(const ModelConfig *config, int32_t id, char *name, size_t capacity, int64_t *rows, int64_t *cols) {
    *rows = id == WEIGHT_FINAL_NORM ? 1 : config->vocab;
    *cols = config->hidden;
    switch (id) {
        case WEIGHT_EMBED: (void)snprintf(name, capacity, "model.embed_tokens.weight"); return 1;
        case WEIGHT_FINAL_NORM: (void)snprintf(name, capacity, "model.norm.weight"); return 1;
        case WEIGHT_HEAD: (void)snprintf(name, capacity, "lm_head.weight"); return !config->tied_embeddings;
        default: break;
    }
    int kind = layer_kind(id);
    const char *part = kind < 0 ? NULL : layer_names[kind];
    if (part == NULL) return 0;
    (void)snprintf(name, capacity, "model.layers.%d.%s", (int)((id - WEIGHT_GLOBALS) / LAYER_WEIGHTS), part);
    return layer_shape(config, (LayerWeight)kind, rows, cols);
}
