/* Names and row order of a model's weights in GGUF files.
 *
 * Architectures: llama (also Mistral), qwen2, qwen3. llama.cpp rotates adjacent pairs for llama, so there the rows of Q and K (of
 * weights and biases, and of a LoRA's B) stand in another order: within a head of size d, row 2 i + p of the file is row
 * p d / 2 + i here. Source: llama.cpp (in llama-cpp-python 0.3.36), src/llama-arch.cpp, convert_hf_to_gguf.py.
 */
#ifndef NIBBLE_TRAIN_GGUF_NAMES_H
#define NIBBLE_TRAIN_GGUF_NAMES_H

#include "core/error.h"
#include "data/hf_config.h"

#define GGUF_WEIGHT_NAME_MAX 64

/* "llama", "qwen2" or "qwen3"; refuses what llama.cpp would compute differently, by its name. */
Status gguf_architecture(const ModelConfig *config, const char **architecture, Error *err);
/* Whether the frequencies are divided by the values of a tensor rope_freqs.weight. */
int gguf_has_rope_factors(const RopeConfig *rope);
/* The tensor's name of a weight's number ("blk.3.attn_q.weight"); 0 when this model has no such weight. */
int gguf_weight_name(const ModelConfig *config, int32_t id, char name[GGUF_WEIGHT_NAME_MAX]);
/* Whether the rows (of a bias: the values) stand in another order in the file, and where row `row` stands there. */
int gguf_is_permuted(const ModelConfig *config, int32_t id);
int64_t gguf_file_row(const ModelConfig *config, int32_t id, int64_t row);

#endif
