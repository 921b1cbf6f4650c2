#include "train/evaluate.h"

#include <math.h>

#include "core/text.h"
#include "train/signals.h"

typedef struct Evaluation {
    Engine *engine;
    const Tape *tape;
    const Dataset *dataset;
    const PackPlan *plan;
    BatchBuffer *buffer;
    double *sums; /* of each window, and the count of tokens at the end */
} Evaluation;

static Status run_window(const Evaluation *e, int64_t window, Error *err) {
    const int64_t *sequences;
    int64_t count;
    pack_get(e->plan, window, &sequences, &count);
    Batch batch = {.dropout = 0};
    TRY(batch_fill(&batch, e->buffer, e->dataset, sequences, count, 0, err));
    TapeRun run = engine_run(e->engine, &batch);
    run.loss_sum = &e->sums[window];
    TRY(tape_run(e->tape, &run, err));
    e->sums[pack_count(e->plan)] += (double)batch.supervised;
    return OK;
}

/* Rank r of N takes windows r, r + N, … */
static Status run_windows(const Evaluation *e, Error *err) {
    Comm *comm = e->engine->comm;
    int64_t windows = pack_count(e->plan), ranks = comm_size(comm);
    for (int64_t first = 0; first < windows; first += ranks) {
        int64_t window = first + comm_rank(comm), stop = signals_pending();
        TRY(comm_max(comm, &stop, err));
        if (stop != 0) {
            signals_adopt((int)stop);
            return error_set(err, ERR_INTERRUPTED, "interrupted during evaluation");
        }
        if (window < windows)
            TRY(run_window(e, window, err));
        else
            TRY(engine_idle_pass(e->engine, err));
    }
    return comm_sum(comm, e->sums, windows + 1, COMM_F64, COMM_CONTROL, err);
}

Status evaluate(Engine *engine, const Tape *tape, const Dataset *dataset, const PackPlan *plan, BatchBuffer *buffer,
                EvalResult *result, Error *err) {
    double begin = clock_seconds(), sum = 0.0;
    *result = (EvalResult){.loss = NAN};
    int64_t windows = pack_count(plan);
    Evaluation e = {.engine = engine, .tape = tape, .dataset = dataset, .plan = plan, .buffer = buffer};
    e.sums = memory_calloc((size_t)windows + 1, sizeof *e.sums);
    Status status = run_windows(&e, err);
    for (int64_t w = 0; w < windows; w++)
        sum += e.sums[w];
    result->tokens = (int64_t)e.sums[windows];
    memory_free(e.sums);
    TRY(status);
    if (result->tokens > 0) result->loss = sum / (double)result->tokens;
    result->seconds = clock_seconds() - begin;
    return OK;
}
