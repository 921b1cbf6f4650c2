/* An experiment: arms that are trained, or rounded, under one harness.
 *
 *   {
 *     "config": "base.json",                 the training config that all arms share
 *     "output": "runs/experiment",           a folder a run in it
 *     "seeds": [1, 2, 3],
 *     "learning_rates": [1e-3, 4e-3],        each arm is trained with each; the one with the least mean held-out loss counts
 *     "arms": [
 *       { "name": "bf16", "set": ["method=lora"] },
 *       { "name": "ptq", "rounds": "bf16", "set": ["method=lora", "qat.mode=merged"] },
 *       { "name": "qat", "set": ["method=lora", "qat.mode=merged"], "against": "ptq" }
 *     ]
 *   }
 *
 * "rounds": nothing is trained: the adapter of that arm, same seed and its best learning rate, is merged and quantized, and
 * measured. "against": recovery = (L_against - L) / (L_against - L_rounded), in nats of held-out loss, seed by seed.
 */
#ifndef NIBBLE_TRAIN_COMPARE_H
#define NIBBLE_TRAIN_COMPARE_H

#include <stdint.h>

#include "core/error.h"
#include "core/text.h"

enum { COMPARE_ARMS = 64, COMPARE_SEEDS = 16, COMPARE_RATES = 8, COMPARE_SETTINGS = 16 };

typedef struct CompareArm {
    char *name;
    char *settings[COMPARE_SETTINGS];
    int setting_count;
    int rounds, against;                       /* numbers of earlier arms, -1: none */
    double bits;                               /* a weight of the layers' linears, constants included */
    double loss[COMPARE_SEEDS][COMPARE_RATES]; /* held out, after training; rounding: [seed][0] */
    int best;                                  /* the learning rate that counts */
} CompareArm;

typedef struct Compare {
    char *config, *output;
    int64_t seeds[COMPARE_SEEDS];
    double rates[COMPARE_RATES];
    int seed_count, rate_count, arm_count;
    CompareArm arms[COMPARE_ARMS];
} Compare;

/* Refuses what it does not know, by name. */
Status compare_read(Compare *compare, const char *path, Error *err);
void compare_free(Compare *compare);
/* Trains and measures; what an earlier call has finished is only measured again. */
Status compare_run(Compare *compare, int threads, Error *err);
/* Recovery of an arm with "against" for one seed; NAN where the rounded arm loses nothing. */
double compare_recovery(const Compare *compare, const CompareArm *arm, int seed);
void compare_table(const Compare *compare, Text *out);
void compare_json(const Compare *compare, Text *out);
void compare_html(const Compare *compare, Text *out);

#endif
