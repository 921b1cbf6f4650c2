/* Which type each tensor of a GGUF file gets, as llama.cpp chooses it.
 *
 * Source: llama.cpp (in llama-cpp-python 0.3.36), src/llama-quant.cpp, llama_tensor_get_type and tensor_type_fallback, for dense
 * models of the llama, qwen2 and qwen3 architectures. Covered by tests/unit/test_gguf_mix.c.
 */
#ifndef NIBBLE_TRAIN_EXPORT_GGUF_MIX_H
#define NIBBLE_TRAIN_EXPORT_GGUF_MIX_H

#include "core/error.h"
#include "data/hf_config.h"

typedef struct GgufMix {
    const char *name;   /* "Q4_K_M" */
    uint32_t base;      /* ggml type of what has no rule of its own */
    uint32_t file_type; /* general.file_type */
} GgufMix;

/* By name, in either case; ERR_USAGE that lists them. NULL name: Q4_K_M. */
Status gguf_mix_named(const char *name, const GgufMix **mix, Error *err);
/* The type of a weight's number with rows of `cols` elements. importance: with importance weights Q4_0 and Q5_0 become Q4_1 and
 * Q5_1 in the first ffn_downs. */
uint32_t gguf_mix_type(const GgufMix *mix, const ModelConfig *config, int32_t id, int64_t cols, int importance);

#endif
