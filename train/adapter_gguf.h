/* An adapter in llama.cpp's LoRA file (export_lora_gguf.c writes them, convert_lora_to_gguf.py of llama.cpp does): the matrices
 * "blk.3.attn_q.weight.lora_a" [rank, in] and "...lora_b" [out, rank], of any type that ggml.h decodes, and one alpha; a module's scale
 * is alpha / rank, or 1 where alpha is 0. Rows of B stand in the order of the weight's (gguf_names.h).
 *
 * Source: llama.cpp (in llama-cpp-python 0.3.36), src/llama-adapter.cpp. Private to the adapter files. */
#ifndef NIBBLE_TRAIN_ADAPTER_GGUF_H
#define NIBBLE_TRAIN_ADAPTER_GGUF_H

#include "train/adapter.h"

#define ADAPTER_GGUF_FILE "adapter.gguf"

/* A GGUF file, or a folder that holds ADAPTER_GGUF_FILE and no adapter_config.json. */
int adapter_is_gguf(const char *path);
/* As adapter_read and adapter_read_values. Refused by name: files of another architecture or kind, matrices of other shapes or of
 * weights that the model does not have as a linear, values that are not finite. */
Status adapter_gguf_read(Adapter *adapter, ParamSet *params, const char *path, const ModelConfig *model, Error *err);
Status adapter_gguf_values(const ParamSet *params, const char *path, const ModelConfig *model, float *master, Error *err);

#endif
