/* A Hugging Face config.json as the arithmetic it means.
 *
 * Supported model_type: llama (Llama 2, 3, 3.1, 3.2, SmolLM, TinyLlama), mistral,
 * qwen2 (Qwen2, Qwen2.5), qwen3 (dense). Anything that would change the
 * computation and is not here is refused by its name; keys that cannot change it
 * are ignored. Both spellings of the RoPE keys are read (rope_theta +
 * rope_scaling, and rope_parameters).
 */
#ifndef NIBBLE_DATA_HF_CONFIG_H
#define NIBBLE_DATA_HF_CONFIG_H

#include <stdint.h>

#include "core/dtype.h"
#include "core/error.h"

typedef enum RopeType { ROPE_DEFAULT, ROPE_LINEAR, ROPE_DYNAMIC, ROPE_LLAMA3, ROPE_YARN, ROPE_LONGROPE } RopeType;

#define ROPE_MAX_PAIRS 256
#define MODEL_MAX_LAYERS 512
#define MODEL_MAX_EOS 8

typedef struct RopeConfig {
    RopeType type;
    double theta;
    double factor, low_freq_factor, high_freq_factor, beta_fast, beta_slow, attention_factor; /* attention_factor 0: derived */
    double mscale, mscale_all_dim;                                                            /* 0: absent */
    int64_t original_context;                                                                 /* 0: absent */
    int truncate; /* yarn: floor and ceil the correction range */
    int factors;  /* longrope: entries in each list */
    float short_factor[ROPE_MAX_PAIRS], long_factor[ROPE_MAX_PAIRS];
} RopeConfig;

typedef enum QuantMethod {
    PREQUANT_NONE,
    PREQUANT_BNB_4BIT,
    PREQUANT_BNB_8BIT,
    PREQUANT_GGUF,
    PREQUANT_GPTQ,
    PREQUANT_AWQ,
    PREQUANT_PACKED,
    PREQUANT_INT_ROWS /* compressed-tensors: pack-quantized, int-quantized */
} QuantMethod;

/* Grouped integers: what quantization_config says of the layers' linears (train/weights_grouped.c has the layouts). */
typedef struct GroupedConfig {
    int bits;
    int64_t group;   /* columns; 0: a row */
    int zeros;       /* groups have zero points; else 2^(bits-1) */
    int ordered;     /* columns belong to groups in any order */
    int zero_offset; /* GPTQ's first checkpoint format: zero points are stored less 1 */
    int int8_activations; /* inputs are rounded to int8 per token: 1 symmetric, 2 with zero points; also in ModelConfig.activations */
} GroupedConfig;

#define GGUF_LINEARS 7 /* of a layer: q, k, v, o, gate, up, down */

/* What the linears' inputs and the keys and values are rounded to, by kernels/ops.h's fake_rows: integers with a scale per token,
 * or per token and key/value head after RoPE. bits 0: not rounded. In a file: nibble's own keys nibble_activations (none, int8,
 * int8-asymmetric, int8-static) and nibble_kv_cache (none, int8, int4), and for int8-static nibble_ranges, a scale for each of the
 * four inputs of each layer's linears; GGUF: nibble.activations, nibble.kv_cache, nibble.ranges. */
typedef struct ActivationQuant {
    int bits, symmetric;
    int fixed;   /* one scale for all tokens of an input */
    int kv_bits; /* symmetric */
} ActivationQuant;
/* From these words; NULL is "none". Refuses others. */
Status activation_quant_parse(const char *activations, const char *kv_cache, ActivationQuant *out, Error *err);
/* The words. */
const char *activation_quant_inputs(const ActivationQuant *quant);
const char *activation_quant_cache(const ActivationQuant *quant);

typedef struct ModelConfig {
    char model_type[32];   /* "llama", "mistral", "qwen2", "qwen3" */
    char architecture[64]; /* "LlamaForCausalLM" … */
    int64_t layers, hidden, intermediate, heads, kv_heads, head_dim, vocab, context;
    double rms_eps;
    RopeConfig rope;
    int qkv_bias, o_bias, mlp_bias; /* whether the projections carry biases */
    int qk_norm;                    /* RMSNorm over head_dim before RoPE (Qwen3) */
    int gelu_gate;                  /* hidden_act is GELU's approximation by tanh; else SiLU */
    int tied_embeddings;
    int64_t window[MODEL_MAX_LAYERS]; /* per layer: 0 full causal, else a query sees itself and window-1 keys before it */
    DType dtype;                      /* torch_dtype / dtype of the file; F32 when absent */
    int64_t bos_id, eos_ids[MODEL_MAX_EOS];
    int eos_count; /* 0 when absent; bos_id -1 when absent */
    QuantMethod prequant;
    int prequant_nf4, prequant_double; /* BNB_4BIT: nf4 (else fp4), double quantization */
    GroupedConfig grouped;             /* GPTQ, AWQ, PACKED, INT_ROWS */
    struct {
        int is_file;             /* the model is a GGUF file; its weights' types (GgmlType): */
        uint8_t embedding, head; /* PREQUANT_GGUF where some linear is quantized */
        uint8_t linear[MODEL_MAX_LAYERS][GGUF_LINEARS];
    } gguf;
    float ranges[4 * MODEL_MAX_LAYERS]; /* activations.fixed: scales */
    ActivationQuant activations;        /* what it was trained with and is to be run with */
    int64_t parameters;                 /* of the whole model, embeddings and tied head counted once */
} ModelConfig;

/* Whether a folder holds grouped integers. */
static inline int prequant_is_grouped(QuantMethod method) {
    return method == PREQUANT_GPTQ || method == PREQUANT_AWQ || method == PREQUANT_PACKED || method == PREQUANT_INT_ROWS;
}

/* Reads FOLDER/config.json, or the file itself when `path` is a file: a config.json, or a GGUF file's metadata. */
Status model_config_read(const char *path, ModelConfig *config, Error *err);
Status model_config_parse(const char *what, const char *text, size_t length, ModelConfig *config, Error *err);

/* Inverse frequencies of the head_dim/2 rotated pairs, in double, and the factor on cos and sin, for a run whose longest
 * sequence is `longest` tokens (dynamic and longrope depend on it). Source: formats and formulas of transformers'
 * modeling_rope_utils. */
Status rope_frequencies(const ModelConfig *config, int64_t longest, double *inverse_frequency, double *attention_factor,
                        Error *err);

#endif
