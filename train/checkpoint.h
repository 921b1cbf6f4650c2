/* Checkpoints: RUN/checkpoints/step-N/, complete or not there.
 *
 *   state.json   step, position in the data, counters, hashes of what the run stands on, and the length and XXH3 of every other file
 *   params.zst   master, m, v (FP32, flat, in this order), zstd with its own checksum
 *
 * Written aside as "step-N.tmp-<pid>", every file synced, renamed, the folder synced. A checkpoint that a kill, a full disk or a
 * flipped bit left behind is recognised and skipped with the reason. Input is untrusted: lengths are checked before anything
 * is allocated.
 */
#ifndef NIBBLE_TRAIN_CHECKPOINT_H
#define NIBBLE_TRAIN_CHECKPOINT_H

#include <stdint.h>

#include "core/error.h"
#include "core/text.h"
#include "train/params.h"

typedef struct CheckpointState {
    int64_t step;            /* optimizer steps done */
    int64_t micro_batches;   /* taken from the data so far: where to go on */
    int64_t optimizer_steps; /* AdamW's t: steps that were not skipped */
    int64_t bad_steps;       /* in a row */
    int64_t tokens, trained_tokens;
    double seconds;               /* of training so far */
    double first_eval, best_eval; /* NaN: none yet */
    int64_t best_step;
    int64_t last_eval; /* step of the last evaluation; -1: none yet */
    int64_t complete;  /* 1: the run is over, its adapter and its report are written */
    /* what must be the same for a resume to be exact */
    uint64_t data_hash, weights_hash, config_hash;
    int64_t elements;
} CheckpointState;

/* RUN is the run folder. Fails without touching older checkpoints when the disk is full. */
Status checkpoint_save(const char *run, const CheckpointState *state, const ParamState *params, Error *err);
/* The newest valid checkpoint into *state and params (master, m, v). *found = 0 when there is none. `skipped` receives a line
 * for every newer one that was not used, and why. Leftovers of interrupted saves are removed. */
Status checkpoint_load(const char *run, int64_t elements, CheckpointState *state, ParamState *params, int *found, Text *skipped,
                       Error *err);
/* Removes all but the newest `keep` checkpoints (and `also`, a step number, -1: none). */
Status checkpoint_prune(const char *run, int64_t keep, int64_t also, Error *err);
/* state.json alone of the newest checkpoint that has a readable one; nothing is written or removed. *found = 0: there is none. */
Status checkpoint_peek(const char *run, CheckpointState *state, int *found, Error *err);
/* For `inspect`: reads and verifies state.json of one checkpoint folder; params are checked against it but not kept. */
Status checkpoint_inspect(const char *folder, CheckpointState *state, Error *err);

#endif
