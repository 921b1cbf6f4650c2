/* A model trained with method full, as a Hugging Face folder. */
#ifndef NIBBLE_TRAIN_FULL_MODEL_H
#define NIBBLE_TRAIN_FULL_MODEL_H

#include "train/engine.h"

/* Writes FOLDER (replacing it): the values that the forward pass uses (type act) as model.safetensors, config.json with that
 * type, and the tokenizer's and generation files of `source`. */
Status full_model_write(const Engine *engine, const char *source, const char *folder, Error *err);

#endif
