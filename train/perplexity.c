#include "train/perplexity.h"

#include <math.h>

#include "core/memory.h"
#include "core/text.h"
#include "train/signals.h"

typedef struct Windows { /* windows of many documents, collected until a micro-batch is full */
    Engine *engine;
    const Tape *tape;
    BatchBuffer *buffer;
    int64_t tokens, sequences, supervised;
    double *sums; /* of each micro-batch; 0 where another rank has it */
    int64_t count, room;
    EvalResult *result;
} Windows;

/* One rank's signal is one for all; asked once a round of micro-batches. */
static Status stop_if_asked(const Windows *w, Error *err) {
    int64_t stop = signals_pending();
    if (w->count % comm_size(w->engine->comm) != 0) return OK;
    TRY(comm_max(w->engine->comm, &stop, err));
    if (stop == 0) return OK;
    signals_adopt((int)stop);
    return error_set(err, ERR_INTERRUPTED, "interrupted during evaluation");
}

static double *next_sum(Windows *w) {
    if (w->count == w->room) {
        w->room = 2 * w->room + 64;
        w->sums = memory_resize(w->sums, (size_t)w->room * sizeof *w->sums);
    }
    w->sums[w->count] = 0.0;
    return &w->sums[w->count++];
}

/* Micro-batch n is rank n mod N's. */
static Status flush_windows(Windows *w, Error *err) {
    if (w->supervised == 0) { /* nothing, or a last window of one token */
        w->tokens = w->sequences = 0;
        return OK;
    }
    TRY(stop_if_asked(w, err));
    Comm *comm = w->engine->comm;
    int ours = w->count % comm_size(comm) == comm_rank(comm);
    double *sum = next_sum(w);
    w->buffer->starts[w->sequences] = w->tokens;
    Batch batch = {.tokens = w->tokens,
                   .sequences = w->sequences,
                   .starts = w->buffer->starts,
                   .ids = w->buffer->ids,
                   .positions = w->buffer->positions,
                   .samples = w->buffer->samples,
                   .supervised = w->supervised,
                   .rows = w->buffer->rows,
                   .targets = w->buffer->targets};
    TapeRun run = engine_run(w->engine, &batch);
    run.loss_sum = sum;
    if (ours) TRY(tape_run(w->tape, &run, err));
    w->result->tokens += w->supervised;
    w->tokens = w->sequences = w->supervised = 0;
    return OK;
}

/* Tokens [begin, end) of a document as one sequence; those from `fresh` on are scored. */
static void add_window(Windows *w, const int32_t *ids, int64_t begin, int64_t end, int64_t fresh) {
    BatchBuffer *b = w->buffer;
    b->starts[w->sequences++] = w->tokens;
    for (int64_t t = begin; t < end; t++, w->tokens++) {
        b->ids[w->tokens] = ids[t];
        b->positions[w->tokens] = (int32_t)(t - begin);
        b->samples[w->tokens] = 0;
        if (t + 1 == end || t + 1 < fresh) continue; /* row t predicts token t + 1 */
        b->rows[w->supervised] = (int32_t)w->tokens;
        b->targets[w->supervised++] = ids[t + 1];
    }
}

static Status slide(Windows *w, const Dataset *documents, int64_t window, int64_t stride, int64_t rows, Error *err) {
    for (int64_t d = 0; d < documents->count; d++) {
        const int32_t *ids = documents->ids + documents->start[d];
        int64_t length = documents->start[d + 1] - documents->start[d];
        for (int64_t begin = 0, fresh = 1; fresh < length; begin += stride) {
            int64_t end = length - begin < window ? length : begin + window;
            if (w->tokens + end - begin > rows) TRY(flush_windows(w, err));
            add_window(w, ids, begin, end, fresh);
            fresh = end;
        }
    }
    TRY(flush_windows(w, err));
    return comm_sum(w->engine->comm, w->sums, w->count, COMM_F64, COMM_CONTROL, err);
}

Status perplexity_sliding(Engine *engine, const Tape *tape, const Dataset *documents, int64_t window, int64_t stride,
                          int64_t rows, BatchBuffer *buffer, EvalResult *result, Error *err) {
    if (stride < 1 || stride > window || window < 2 || rows < window)
        FAIL("windows: want 1 <= stride <= window, 2 <= window <= rows, got stride %lld, window %lld, rows %lld",
             (long long)stride, (long long)window, (long long)rows);
    double clock = clock_seconds();
    *result = (EvalResult){.loss = NAN};
    Windows w = {.engine = engine, .tape = tape, .buffer = buffer, .result = result};
    double sum = 0.0;
    Status status = slide(&w, documents, window, stride, rows, err);
    for (int64_t i = 0; i < w.count; i++)
        sum += w.sums[i];
    memory_free(w.sums);
    TRY(status);
    if (result->tokens > 0) result->loss = sum / (double)result->tokens;
    result->seconds = clock_seconds() - clock;
    return OK;
}
