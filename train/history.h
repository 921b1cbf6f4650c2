/* What the report remembers of a run, in memory that does not grow with its length.
 *
 * Steps fall into at most HISTORY_BUCKETS buckets of equal width; when a step lies beyond the last one, the width doubles and
 * neighbours are merged. A bucket keeps the extremes, so that a spike of one step in 100,000 still shows.
 */
#ifndef NIBBLE_TRAIN_HISTORY_H
#define NIBBLE_TRAIN_HISTORY_H

#include <stddef.h>
#include <stdint.h>

#include "core/text.h"
#include "train/metrics.h"

#define HISTORY_BUCKETS 750 /* two points each: 1500 of a curve */
#define HISTORY_EVALS 400
#define HISTORY_FIRST_EVENTS 20
#define HISTORY_LAST_EVENTS 100
#define HISTORY_SAMPLES 32

typedef enum HistoryChannel { HISTORY_LOSS, HISTORY_GRAD_NORM, HISTORY_LR, HISTORY_RATE, HISTORY_CHANNELS } HistoryChannel;

typedef struct HistoryRange { /* of the finite values in a bucket */
    int64_t count;
    double sum, least, most;
} HistoryRange;

typedef struct HistoryBucket {
    int64_t first, last; /* steps; last < first: nothing here */
    HistoryRange range[HISTORY_CHANNELS];
} HistoryBucket;

typedef struct HistoryEval {
    int64_t step;
    double loss;
} HistoryEval;

typedef struct HistoryEvent {
    int64_t step;
    char *text;
} HistoryEvent;

typedef struct HistorySample {
    char *prompt, *wanted, *before, *after; /* all but prompt may be NULL */
} HistorySample;

typedef struct History {
    int64_t width; /* steps of a bucket */
    size_t buckets;
    HistoryBucket bucket[HISTORY_BUCKETS];
    StepRecord last;              /* the newest; step 0: none yet */
    double first_loss, last_loss; /* the finite ones; NaN: none yet */
    int64_t recorded, skipped;    /* steps */
    int64_t tokens, trained_tokens;
    double seconds, eval_seconds;
    HistoryEval eval[HISTORY_EVALS];
    size_t evals;
    int64_t eval_stride, eval_seen; /* one of how many is kept */
    HistoryEval first_eval, best_eval, last_eval;
    HistoryEvent event[HISTORY_FIRST_EVENTS + HISTORY_LAST_EVENTS]; /* the last ones are a ring */
    int64_t events;
    HistorySample sample[HISTORY_SAMPLES];
    size_t samples;
} History;

History *history_create(void);
void history_free(History *history);
void history_add(History *history, const MetricsRecord *record);
/* The k-th kept event in order, k < history_events(); *skipped_before: how many were not kept just before it. */
size_t history_events(const History *history);
const HistoryEvent *history_event(const History *history, size_t k, int64_t *skipped_before);

#endif
