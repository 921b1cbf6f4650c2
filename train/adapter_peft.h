/* adapter_config.json, read and written. Private to the adapter files. */
#ifndef NIBBLE_TRAIN_ADAPTER_PEFT_H
#define NIBBLE_TRAIN_ADAPTER_PEFT_H

#include "train/adapter.h"

/* Reads FOLDER/adapter_config.json, sets dora and rslora, and alpha and scale of every module that has a rank: r, lora_alpha, use_rslora,
 * rank_pattern and alpha_pattern (a key matches a module path P when P matches "(.*\.)?key" as a regular expression). Refuses
 * by name what would change the computation. */
Status adapter_config_apply(Adapter *adapter, const char *folder, const ModelConfig *model, Error *err);
/* Writes the smallest set of keys that every PEFT accepts, sorted, indent 2. */
Status adapter_config_write(const Adapter *adapter, const char *folder, const AdapterInfo *info, Error *err);

#endif
