/* Training steps on given sequences: a Trainer whose engine, data and order come from the caller, so that what trainer_step
 * does can be compared with another program, or with itself in another arrangement.
 *
 * A batch file is text. A line is one sequence: token ids separated by spaces, "*" after those that are trained. "-" ends a
 * micro-batch, "=" ends an optimizer step (and its last micro-batch).
 *
 * NIBBLE_TEST_DEVICE=emu (or cuda) runs all this on that device, unless a variant of the CPU is asked for (tests/e2e/emu.sh).
 */
#ifndef NIBBLE_TESTS_SUPPORT_REPLAY_H
#define NIBBLE_TESTS_SUPPORT_REPLAY_H

#include "train/trainer.h"

typedef struct ReplayData {
    Dataset data;         /* start, ids, train, count and tokens are filled in */
    int64_t *micro_batch; /* [micro_batches + 1]: first sequence of each */
    int64_t *step;        /* [steps + 1]: first micro-batch of each */
    int64_t micro_batches, steps;
} ReplayData;

/* An empty set; sequences are appended with replay_add, and then a micro-batch or a step is ended. */
void replay_start(ReplayData *data);
void replay_add(ReplayData *data, const int32_t *ids, const uint8_t *train, int64_t count);
void replay_end_micro_batch(ReplayData *data);
void replay_end_step(ReplayData *data);
Status replay_read(ReplayData *data, const char *path, Error *err);
void replay_free(ReplayData *data);

typedef struct ReplayOptions {
    const char *model;
    const char *adapter;          /* PEFT folder to start from, or NULL */
    const char *cpu;              /* forced variant, which then runs on the CPU; or NULL */
    const char *const *overrides; /* of the config; there the schedule is constant and nothing is clipped, if not said here */
    int override_count;
    int threads;
    int frozen; /* no adapter is made: forward only */
} ReplayOptions;

/* The device of this test run, NULL for the CPU. */
const char *replay_device(void);
/* Opens the engine for the config's method and records tapes for the largest micro-batch of data. */
Status replay_open(Trainer *trainer, const ReplayOptions *options, const ReplayData *data, Error *err);
/* One optimizer step on step `step` of the data; gradients, and on a device all parameters, are then in trainer->engine.state. */
Status replay_step(Trainer *trainer, const ReplayData *data, int64_t step, StepResult *result, Error *err);
/* Negative log-likelihoods of micro-batch m's supervised rows, in order; nll has room for all of them. */
Status replay_evaluate(Trainer *trainer, const ReplayData *data, int64_t m, float *nll, double *loss_sum, Error *err);
void replay_close(Trainer *trainer);

#endif
