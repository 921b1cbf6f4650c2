/* A GGUF file as the model folder that it stands for: its config.json, its tensors under their Hugging Face names and in that
 * order of rows, its tokenizer's files.
 *
 *   metadata ── gguf_config_text ──> config.json ──> model_config_parse
 *   tensors  ── gguf_model_open  ──> TensorInfo, rows of Q and K back in place (llama); blocks stay as they are
 *   tokenizer.* ── gguf_tokenizer_files ──> tokenizer.json or tokenizer.model, and tokenizer_config.json
 *
 * Architectures llama, qwen2 and qwen3; anything else, and metadata that would change the computation and is not known, is
 * refused by name. Source: llama.cpp (in llama-cpp-python 0.3.36), src/llama-arch.cpp, src/llama-model.cpp, src/llama-vocab.cpp,
 * convert_hf_to_gguf.py. Covered by tests/unit/test_gguf_model.c and, beside llama.cpp, by tests/peers/gguf_llamacpp.py.
 */
#ifndef NIBBLE_DATA_GGUF_MODEL_H
#define NIBBLE_DATA_GGUF_MODEL_H

#include "core/text.h"
#include "data/gguf.h"
#include "data/hf_config.h"
#include "data/safetensors.h"

/* Whether `path` is a file that begins as GGUF files do, or a folder that holds GGUF_MODEL_FILE, which is one, and no config.json. */
int gguf_is_file(const char *path);

/* The model's config.json. */
Status gguf_config_text(const GgufFile *file, Text *out, Error *err);
/* The config that this text means, with the types of the file's weights. */
Status gguf_config_read(const char *path, ModelConfig *config, Error *err);

#define GGUF_HF_NAME_MAX 96
/* "blk.3.attn_q.weight" -> "model.layers.3.self_attn.q_proj.weight"; 0 for names that are none of these models'. */
int gguf_hf_name(const char *name, char out[GGUF_HF_NAME_MAX]);

/* The tensors. Memory: a TensorInfo and a name each. */
typedef struct GgufModel GgufModel;
Status gguf_model_open(GgufModel **model, const char *path, Error *err);
void gguf_model_close(GgufModel *model); /* NULL is fine */
int64_t gguf_model_count(const GgufModel *model);
const TensorInfo *gguf_model_tensor(const GgufModel *model, int64_t index); /* in file order; rope_freqs is left out */
const char *gguf_model_path(const GgufModel *model);
/* As tensors_read, of tensor `index`: bytes of the rows in their Hugging Face order. Thread-safe. */
Status gguf_model_read(const GgufModel *model, int64_t index, uint64_t offset, void *out, size_t bytes, int drop_cache,
                       Error *err);

/* The tokenizer's files: either json (tokenizer.json, model "gpt2") or model (tokenizer.model, model "llama") has text. */
typedef struct GgufTokenizerFiles {
    Text json, model, config; /* config: tokenizer_config.json with the chat template */
} GgufTokenizerFiles;
Status gguf_tokenizer_files(const GgufFile *file, GgufTokenizerFiles *files, Error *err);
void gguf_tokenizer_files_free(GgufTokenizerFiles *files);

#endif
