#include "train/history.h"

#include <math.h>
#include <string.h>

#include "core/memory.h"

History *history_create(void) {
    History *history = memory_calloc(1, sizeof *history);
    history->width = history->eval_stride = 1;
    history->first_loss = history->last_loss = NAN;
    history->first_eval.loss = history->best_eval.loss = history->last_eval.loss = NAN;
    return history;
}

void history_free(History *history) {
    if (history == NULL) return;
    for (size_t i = 0; i < HISTORY_FIRST_EVENTS + HISTORY_LAST_EVENTS; i++)
        memory_free(history->event[i].text);
    for (size_t i = 0; i < history->samples; i++) {
        HistorySample *sample = &history->sample[i];
        memory_free(sample->prompt);
        memory_free(sample->wanted);
        memory_free(sample->before);
        memory_free(sample->after);
    }
    memory_free(history);
}

/* ---- steps ------------------------------------------------------------------------------------------------------------------ */

static void range_add(HistoryRange *range, double value) {
    if (!isfinite(value)) return;
    if (range->count == 0 || value < range->least) range->least = value;
    if (range->count == 0 || value > range->most) range->most = value;
    range->count++;
    range->sum += value;
}

static void range_merge(HistoryRange *into, const HistoryRange *from) {
    if (from->count == 0) return;
    if (into->count == 0 || from->least < into->least) into->least = from->least;
    if (into->count == 0 || from->most > into->most) into->most = from->most;
    into->count += from->count;
    into->sum += from->sum;
}

/* into comes before from */
static void bucket_merge(HistoryBucket *into, const HistoryBucket *from) {
    if (from->last < from->first) return;
    if (into->last < into->first) {
        *into = *from;
        return;
    }
    into->last = from->last;
    for (int c = 0; c < HISTORY_CHANNELS; c++)
        range_merge(&into->range[c], &from->range[c]);
}

static const HistoryBucket empty_bucket = {.first = 0, .last = -1};

static void double_width(History *history) {
    size_t half = (history->buckets + 1) / 2;
    for (size_t i = 0; i < half; i++) {
        HistoryBucket merged = history->bucket[2 * i];
        if (2 * i + 1 < history->buckets) bucket_merge(&merged, &history->bucket[2 * i + 1]);
        history->bucket[i] = merged;
    }
    history->buckets = half;
    history->width *= 2;
}

static void add_step(History *history, const StepRecord *record) {
    if (record->step < 1 || record->step <= history->last.step) return; /* curves go forward only */
    while ((record->step - 1) / history->width >= HISTORY_BUCKETS)
        double_width(history);
    size_t index = (size_t)((record->step - 1) / history->width);
    while (history->buckets <= index)
        history->bucket[history->buckets++] = empty_bucket;
    HistoryBucket one = {.first = record->step, .last = record->step};
    const double values[HISTORY_CHANNELS] = {record->loss, record->grad_norm, record->lr, record->tokens_per_second};
    for (int c = 0; c < HISTORY_CHANNELS; c++)
        range_add(&one.range[c], values[c]);
    bucket_merge(&history->bucket[index], &one);
    if (isnan(history->first_loss) && isfinite(record->loss)) history->first_loss = record->loss;
    if (isfinite(record->loss)) history->last_loss = record->loss;
    history->last = *record;
    history->recorded++;
    history->skipped += record->skipped != 0;
    if (isfinite(record->seconds)) history->seconds += record->seconds;
    (void)__builtin_add_overflow(history->tokens, record->tokens, &history->tokens);
    (void)__builtin_add_overflow(history->trained_tokens, record->trained_tokens, &history->trained_tokens);
}

/* ---- everything else -------------------------------------------------------------------------------------------------------- */

static void add_eval(History *history, const StepRecord *record) {
    HistoryEval eval = {record->step, record->loss};
    if (isfinite(record->seconds)) history->eval_seconds += record->seconds;
    history->last_eval = eval;
    if (!isfinite(eval.loss)) return;
    if (isnan(history->first_eval.loss)) history->first_eval = eval;
    if (!(history->best_eval.loss <= eval.loss)) history->best_eval = eval;
    if (history->eval_seen++ % history->eval_stride != 0) return;
    if (history->evals == HISTORY_EVALS) {
        for (size_t i = 0; i < HISTORY_EVALS / 2; i++)
            history->eval[i] = history->eval[2 * i];
        history->evals = HISTORY_EVALS / 2;
        history->eval_stride *= 2;
        if ((history->eval_seen - 1) % history->eval_stride != 0) return;
    }
    history->eval[history->evals++] = eval;
}

static void add_event(History *history, int64_t step, const char *text) {
    int64_t n = history->events++;
    size_t place = n < HISTORY_FIRST_EVENTS ? (size_t)n
                                            : HISTORY_FIRST_EVENTS + (size_t)((n - HISTORY_FIRST_EVENTS) % HISTORY_LAST_EVENTS);
    memory_free(history->event[place].text);
    history->event[place] = (HistoryEvent){step, memory_strdup(text)};
}

static int same_text(const char *a, const char *b) {
    return a == NULL || b == NULL ? a == b : strcmp(a, b) == 0;
}

/* Before and after of one prompt belong together; said again (a run that resumed at its end), the newer answer counts. */
static void add_sample(History *history, const MetricsRecord *record) {
    HistorySample *sample = NULL;
    for (size_t i = 0; i < history->samples && sample == NULL; i++)
        if (strcmp(history->sample[i].prompt, record->prompt) == 0 && same_text(history->sample[i].wanted, record->wanted))
            sample = &history->sample[i];
    if (sample == NULL) {
        if (history->samples == HISTORY_SAMPLES) return;
        sample = &history->sample[history->samples++];
        sample->prompt = memory_strdup(record->prompt);
        sample->wanted = record->wanted != NULL ? memory_strdup(record->wanted) : NULL;
    }
    char **place = record->after ? &sample->after : &sample->before;
    memory_free(*place);
    *place = memory_strdup(record->written);
}

void history_add(History *history, const MetricsRecord *record) {
    switch (record->kind) {
        case METRICS_STEP: add_step(history, &record->step); break;
        case METRICS_EVAL: add_eval(history, &record->step); break;
        case METRICS_EVENT: add_event(history, record->step.step, record->text); break;
        case METRICS_SAMPLE: add_sample(history, record); break;
    }
}

size_t history_events(const History *history) {
    int64_t most = HISTORY_FIRST_EVENTS + HISTORY_LAST_EVENTS;
    return (size_t)(history->events < most ? history->events : most);
}

const HistoryEvent *history_event(const History *history, size_t k, int64_t *skipped_before) {
    *skipped_before = 0;
    if (k < HISTORY_FIRST_EVENTS) return &history->event[k];
    int64_t later = history->events - HISTORY_FIRST_EVENTS,
            lost = later > HISTORY_LAST_EVENTS ? later - HISTORY_LAST_EVENTS : 0;
    if (k == HISTORY_FIRST_EVENTS) *skipped_before = lost;
    int64_t n = lost + (int64_t)(k - HISTORY_FIRST_EVENTS);
    return &history->event[HISTORY_FIRST_EVENTS + n % HISTORY_LAST_EVENTS];
}
