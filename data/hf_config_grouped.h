/* quantization_config of folders of grouped integers: GPTQ, AWQ, compressed-tensors. */
#ifndef NIBBLE_DATA_HF_CONFIG_GROUPED_H
#define NIBBLE_DATA_HF_CONFIG_GROUPED_H

#include "data/hf_config_fields.h"

/* Whether quant_method names one of them. */
int grouped_config_known(const char *method);
/* Fills in config->prequant and config->grouped; names what is not supported. quant: the quantization_config object. */
Status grouped_config_parse(const ConfigObject *quant, const char *method, ModelConfig *config, Error *err);

#endif
