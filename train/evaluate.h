/* Loss over a dataset through an EVAL tape. */
#ifndef NIBBLE_TRAIN_EVALUATE_H
#define NIBBLE_TRAIN_EVALUATE_H

#include "train/batches.h"
#include "train/engine.h"

typedef struct EvalResult {
    double loss;    /* mean nats per supervised token */
    int64_t tokens; /* supervised */
    double seconds;
} EvalResult;

/* Packs the dataset in its own order into windows and sums. Ranks share the windows, and add in the windows' order: the same
 * number for any of them. Stops early, all ranks in the same round, with ERR_INTERRUPTED when a signal is pending. */
Status evaluate(Engine *engine, const Tape *tape, const Dataset *dataset, const PackPlan *plan, BatchBuffer *buffer,
                EvalResult *result, Error *err);

#endif
