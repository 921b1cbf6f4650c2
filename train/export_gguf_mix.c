#include "train/export_gguf_mix.h"

#include <string.h>
#include <strings.h>

#include "quant/ggml.h"
#include "train/weights.h"

/* file_type: the enum llama_ftype. Q3_K, Q4_K, Q5_K: the type everywhere but at the output. */
enum { MIX_Q2_K = 10, MIX_Q3_K_M = 12, MIX_Q4_K_S = 14, MIX_Q4_K_M = 15, MIX_Q5_K_M = 17 };

static const GgufMix mixes[] = {
    {"F32", GGML_F32, 0},
    {"F16", GGML_F16, 1},
    {"BF16", GGML_BF16, 32},
    {"Q8_0", GGML_Q8_0, 7},
    {"Q4_0", GGML_Q4_0, 2},
    {"Q4_1", GGML_Q4_1, 3},
    {"Q5_0", GGML_Q5_0, 8},
    {"Q5_1", GGML_Q5_1, 9},
    {"Q2_K", GGML_Q2_K, MIX_Q2_K},
    {"Q3_K", GGML_Q3_K, 11},
    {"Q4_K", GGML_Q4_K, MIX_Q4_K_S},
    {"Q5_K", GGML_Q5_K, 16},
    {"Q6_K", GGML_Q6_K, 18},
    {"Q3_K_M", GGML_Q3_K, MIX_Q3_K_M},
    {"Q4_K_S", GGML_Q4_K, MIX_Q4_K_S},
    {"Q4_K_M", GGML_Q4_K, MIX_Q4_K_M},
    {"Q5_K_M", GGML_Q5_K, MIX_Q5_K_M},
};

Status gguf_mix_named(const char *name, const GgufMix **mix, Error *err) {
    if (name == NULL) name = "Q4_K_M";
    for (size_t i = 0; i < sizeof mixes / sizeof *mixes; i++)
        if (strcasecmp(name, mixes[i].name) == 0) {
            *mix = &mixes[i];
            return OK;
        }
    FAIL_USAGE(
        "--gguf-type: want F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q3_K_M, Q4_K_S, "
        "Q4_K_M or Q5_K_M, got \"%.40s\"",
        name);
}

static int gets_more_bits(int64_t layer, int64_t layers) {
    return layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2;
}

static uint32_t value_type(const GgufMix *mix, const ModelConfig *config, int64_t layer) {
    uint32_t type = mix->base;
    if (mix->file_type == MIX_Q2_K) type = config->heads / config->kv_heads >= 4 ? GGML_Q4_K : GGML_Q3_K;
    if (mix->file_type == MIX_Q3_K_M) type = layer < 2 ? GGML_Q5_K : GGML_Q4_K;
    if ((mix->file_type == MIX_Q4_K_M || mix->file_type == MIX_Q5_K_M) && gets_more_bits(layer, config->layers))
        type = GGML_Q6_K;
    if (strcmp(mix->name, "Q4_K_S") == 0 && layer < 4) type = GGML_Q5_K;
    /* what llama.cpp calls a 70B model: its attn_v is an eighth of attn_q */
    int is_70b = config->layers == 80 && strcmp(config->model_type, "qwen3") != 0 &&
                 (strcmp(config->model_type, "qwen2") == 0 || config->heads != config->kv_heads);
    return is_70b && (type == GGML_Q3_K || type == GGML_Q4_K) ? GGML_Q5_K : type;
}

static uint32_t down_type(const GgufMix *mix, int64_t layer, int64_t layers, int importance) {
    if (mix->file_type == MIX_Q2_K) return GGML_Q3_K;
    if (mix->file_type == MIX_Q3_K_M) return layer < layers / 16 ? GGML_Q5_K : GGML_Q4_K;
    if (mix->file_type == MIX_Q4_K_M || mix->file_type == MIX_Q5_K_M)
        return gets_more_bits(layer, layers) ? GGML_Q6_K : mix->base;
    if (layer >= layers / 8) return mix->base;
    if (strcmp(mix->name, "Q4_K_S") == 0) return GGML_Q5_K;
    if (importance && mix->base == GGML_Q4_0) return GGML_Q4_1;
    if (importance && mix->base == GGML_Q5_0) return GGML_Q5_1;
    return mix->base;
}

static uint32_t layer_type(const GgufMix *mix, const ModelConfig *config, int32_t id, int importance) {
    int64_t layer = (id - WEIGHT_GLOBALS) / LAYER_WEIGHTS;
    switch ((LayerWeight)((id - WEIGHT_GLOBALS) % LAYER_WEIGHTS)) {
        case LAYER_V: return value_type(mix, config, layer);
        case LAYER_DOWN: return down_type(mix, layer, config->layers, importance);
        case LAYER_O: return mix->file_type == MIX_Q2_K ? GGML_Q3_K : mix->file_type == MIX_Q3_K_M ? GGML_Q4_K : mix->base;
        default: return mix->base;
    }
}

static int fits(uint32_t type, int64_t cols) {
    return cols % ggml_type_info(type)->block == 0;
}

uint32_t gguf_mix_type(const GgufMix *mix, const ModelConfig *config, int32_t id, int64_t cols, int importance) {
    uint32_t type = mix->base;
    int is_vector = id == WEIGHT_FINAL_NORM || (id >= WEIGHT_GLOBALS && (id - WEIGHT_GLOBALS) % LAYER_WEIGHTS >= LAYER_LINEARS);
    if (is_vector) return GGML_F32;
    if (!ggml_type_info(mix->base)->is_quantized) return type;
    if (id == WEIGHT_HEAD || (id == WEIGHT_EMBED && config->tied_embeddings))
        type = !fits(type, cols) || type == GGML_Q8_0 ? GGML_Q8_0 : GGML_Q6_K;
    else if (id >= WEIGHT_GLOBALS)
        type = layer_type(mix, config, id, importance);
    if (!fits(type, cols)) {
        switch (type) {
            case GGML_Q2_K:
            case GGML_Q3_K: type = GGML_Q4_0; break;
            case GGML_Q4_K: type = GGML_Q5_0; break;
            case GGML_Q5_K: type = GGML_Q5_1; break;
            case GGML_Q6_K: type = GGML_Q8_0; break;
            default: break;
        }
    }
    return fits(type, cols) ? type : GGML_F16;
}
