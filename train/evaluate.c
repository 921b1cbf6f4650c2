#include "train/evaluate.h"

#include <math.h>

#include "core/text.h"
#include "train/signals.h"

Status evaluate(Engine *engine, const Tape *tape, const Dataset *dataset, const PackPlan *plan, BatchBuffer *buffer,
                EvalResult *result, Error *err) {
    double begin = clock_seconds(), sum = 0.0;
    *result = (EvalResult){.loss = NAN};
    for (int64_t i = 0; i < pack_count(plan); i++) {
        if (signals_pending()) return error_set(err, ERR_INTERRUPTED, "interrupted during evaluation");
        const int64_t *sequences;
        int64_t count;
        pack_get(plan, i, &sequences, &count);
        Batch batch = {.dropout = 0};
        TRY(batch_fill(&batch, buffer, dataset, sequences, count, 0, err));
        TapeRun run = engine_run(engine, &batch);
        run.loss_sum = &sum;
        TRY(tape_run(tape, &run, err));
        result->tokens += batch.supervised;
    }
    if (result->tokens > 0) result->loss = sum / (double)result->tokens;
    result->seconds = clock_seconds() - begin;
    return OK;
}
