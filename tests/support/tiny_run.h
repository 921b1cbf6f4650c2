/* A run small enough for a unit test: a model of random weights with its tokenizer, 40 ragged prompts with answers, a config. */
#ifndef NIBBLE_TESTS_SUPPORT_TINY_RUN_H
#define NIBBLE_TESTS_SUPPORT_TINY_RUN_H

#include "train/trainer.h"

#define TINY_RUN_OVERRIDES 4

/* cmocka's group setup and teardown: the folder in which all of it lies. */
int tiny_run_prepare(void **state);
int tiny_run_clean(void **state);
/* Opens a new run of 50 steps over an earlier one. overrides: "key=value", up to the first NULL. NULL with a message on a
 * failure; otherwise the caller ends it with trainer_close and memory_free. */
Trainer *tiny_run_open(const char *const overrides[TINY_RUN_OVERRIDES], int threads);

#endif
