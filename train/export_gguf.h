/* What the parts of the GGUF export share.
 *
 *   gguf_names.c         tensors' names, order of rows
 *   export_gguf_mix.c    types
 *   export_gguf_meta.c   metadata
 *   export_gguf.c        the file, tensor by tensor, and reading it back
 *   export_lora_gguf.c   an adapter alone
 */
#ifndef NIBBLE_TRAIN_EXPORT_GGUF_H
#define NIBBLE_TRAIN_EXPORT_GGUF_H

#include "data/gguf.h"
#include "train/adapter_gguf.h"
#include "train/export.h"
#include "train/export_gguf_mix.h"
#include "train/gguf_names.h"

#define EXPORT_GGUF_FILE GGUF_MODEL_FILE /* in the folder */
#define EXPORT_LORA_GGUF_FILE ADAPTER_GGUF_FILE

Status gguf_put_model(GgufWriter *writer, const ModelConfig *config, const char *name, const GgufMix *mix, Error *err);
/* llama3: what each inverse frequency is divided by; overwrites factors [head_dim / 2] (rope_freqs.weight). */
Status gguf_rope_factors(const ModelConfig *config, float *factors, Error *err);

#endif
