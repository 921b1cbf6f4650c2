/* Shared by adapter.c and adapter_peft*.c. */
#ifndef NIBBLE_TRAIN_ADAPTER_INTERNAL_H
#define NIBBLE_TRAIN_ADAPTER_INTERNAL_H

#include "train/adapter.h"

/* "q_proj" … "down_proj", by LayerWeight. */
extern const char *const adapter_module_names[LAYER_LINEARS];
/* Room for every module of the model, all without an adapter. */
void adapter_reserve(Adapter *adapter, const ModelConfig *model);
/* Gives every module with a rank its offsets. */
void adapter_place(Adapter *adapter, ParamSet *params, const ModelConfig *model);
/* "base_model.model.model.layers.3.self_attn.q_proj" + suffix */
void adapter_tensor_name(const ModelConfig *model, int64_t layer, LayerWeight kind, const char *suffix, char *out,
                         size_t capacity);

#endif
