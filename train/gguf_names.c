#include "train/gguf_names.h"

#include <stdio.h>
#include <string.h>

#include "train/weights.h"

static int is_llama(const ModelConfig *config) {
    return strcmp(config->model_type, "llama") == 0 || strcmp(config->model_type, "mistral") == 0;
}

int gguf_has_rope_factors(const RopeConfig *rope) {
    if (rope->type == ROPE_LLAMA3) return 1;
    return rope->type == ROPE_LONGROPE && rope->attention_factor == 1.0 &&
           memcmp(rope->short_factor, rope->long_factor, (size_t)rope->factors * sizeof *rope->short_factor) == 0;
}

static Status check_rope(const RopeConfig *rope, Error *err) {
    static const char *const names[] = {"default", "linear", "dynamic", "llama3", "yarn", "longrope"};
    if (rope->type == ROPE_DYNAMIC || (rope->type == ROPE_LONGROPE && !gguf_has_rope_factors(rope)))
        FAIL("gguf: rope_scaling \"%s\" has no equal in llama.cpp for this architecture; use --format hf", names[rope->type]);
    if (rope->type == ROPE_YARN && (rope->attention_factor != 0.0 || rope->mscale != 0.0 || rope->mscale_all_dim != 0.0 ||
                                    rope->beta_fast != 32.0 || rope->beta_slow != 1.0 || !rope->truncate))
        FAIL(
            "gguf: rope_scaling \"yarn\" is written with beta_fast 32, beta_slow 1, truncate and the usual attention factor "
            "only; use --format hf");
    return OK;
}

Status gguf_architecture(const ModelConfig *config, const char **architecture, Error *err) {
    *architecture = is_llama(config) ? "llama" : config->model_type;
    int is_qwen2 = strcmp(config->model_type, "qwen2") == 0, is_qwen3 = strcmp(config->model_type, "qwen3") == 0;
    if (!is_llama(config) && !is_qwen2 && !is_qwen3)
        FAIL("gguf: want a model_type of llama, mistral, qwen2 or qwen3, got \"%s\"", config->model_type);
    if (config->gelu_gate)
        FAIL("gguf: llama.cpp's %s computes SiLU, the model's hidden_act is GELU; use --format hf", *architecture);
    if ((is_qwen3 && config->qkv_bias) || (!is_llama(config) && (config->o_bias || config->mlp_bias)))
        FAIL("gguf: llama.cpp's %s has no place for these biases (attention_bias, mlp_bias); use --format hf", *architecture);
    if (config->qk_norm != is_qwen3)
        FAIL("gguf: llama.cpp's %s %s norms of Q and K; use --format hf", *architecture, is_qwen3 ? "wants" : "has no");
    return check_rope(&config->rope, err);
}

int gguf_weight_name(const ModelConfig *config, int32_t id, char name[GGUF_WEIGHT_NAME_MAX]) {
    static const char *const globals[WEIGHT_GLOBALS] = {"token_embd.weight", "output_norm.weight", "output.weight"};
    static const char *const layer[LAYER_WEIGHTS] = {
        "attn_q.weight",    "attn_k.weight",      "attn_v.weight",     "attn_output.weight", "ffn_gate.weight",
        "ffn_up.weight",    "ffn_down.weight",    "attn_q.bias",       "attn_k.bias",        "attn_v.bias",
        "attn_output.bias", "ffn_gate.bias",      "ffn_up.bias",       "ffn_down.bias",      "attn_norm.weight",
        "ffn_norm.weight",  "attn_q_norm.weight", "attn_k_norm.weight"};
    char hf[192];
    int64_t rows, cols;
    if (!weight_describe(config, id, hf, sizeof hf, &rows, &cols)) return 0;
    if (id < WEIGHT_GLOBALS)
        (void)snprintf(name, GGUF_WEIGHT_NAME_MAX, "%s", globals[id]);
    else
        (void)snprintf(name, GGUF_WEIGHT_NAME_MAX, "blk.%d.%s", (int)((id - WEIGHT_GLOBALS) / LAYER_WEIGHTS),
                       layer[(id - WEIGHT_GLOBALS) % LAYER_WEIGHTS]);
    return 1;
}

int gguf_is_permuted(const ModelConfig *config, int32_t id) {
    if (!is_llama(config) || id < WEIGHT_GLOBALS) return 0;
    int kind = (id - WEIGHT_GLOBALS) % LAYER_WEIGHTS;
    return kind == LAYER_Q || kind == LAYER_K || kind == LAYER_Q_BIAS || kind == LAYER_K_BIAS;
}

int64_t gguf_file_row(const ModelConfig *config, int32_t id, int64_t row) {
    if (!gguf_is_permuted(config, id)) return row;
    int64_t half = config->head_dim / 2, inside = row % config->head_dim;
    return row - inside + 2 * (inside % half) + inside / half;
}
