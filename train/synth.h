/* What a model folder with random weights has besides its weights. */
#ifndef NIBBLE_TRAIN_SYNTH_H
#define NIBBLE_TRAIN_SYNTH_H

#include "core/error.h"
#include "data/hf_config.h"

/* Writes tokenizer.json and tokenizer_config.json of a byte-level tokenizer without merges: any text is one id a byte. The
 * model's BOS and EOS keep their ids; the 256 bytes take the least ids that are left. *written 0, and nothing is written, when
 * the vocabulary has no room for them. */
Status synth_tokenizer_write(const char *folder, const ModelConfig *config, int *written, Error *err);

#endif
