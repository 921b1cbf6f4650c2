/* What a run shows: the live line, metrics.jsonl, TensorBoard events, report.html.
 *
 * On a terminal one line is rewritten in place; otherwise plain lines are printed, to stderr. metrics.jsonl holds one JSON
 * object a record ("kind": "step", "eval", "event", "sample"), appended and flushed; after a resume, records beyond the
 * checkpoint's step are cut off. report.html is one self-contained page (inline SVG and CSS, no scripts), rewritten atomically
 * at evaluations and at the end; a resumed run reads metrics.jsonl first, so that the page shows the whole run.
 */
#ifndef NIBBLE_TRAIN_REPORTER_H
#define NIBBLE_TRAIN_REPORTER_H

#include <stdint.h>

#include "core/error.h"

typedef struct Reporter Reporter; /* NULL: nothing is shown or written, every call is OK (ranks other than 0) */

typedef struct ReporterFacts { /* name/value pairs for the report's tables: the model, the data, the machine */
    const char *title;
    const char *config_json;
    const char *const *model; /* name, value, …, NULL */
    const char *const *data;
    const char *const *machine;
} ReporterFacts;

typedef struct StepRecord {
    int64_t step, steps; /* 1-based; steps in all */
    double loss, grad_norm, lr;
    int64_t tokens, trained_tokens; /* of this step */
    double seconds;                 /* of this step */
    double tokens_per_second;       /* smoothed */
    double peak_fraction;           /* achieved FLOP/s over the machine's measured GEMM peak; NaN: unknown */
    double gflops;
    uint64_t resident; /* bytes */
    double eta_seconds;
    double epoch;
    int skipped; /* a bad step */
} StepRecord;

/* resume_step: records after it are dropped; -1 for a new run. */
Status reporter_open(Reporter **reporter, const char *run, const ReporterFacts *facts, int64_t resume_step, Error *err);
Status reporter_step(Reporter *reporter, const StepRecord *record, Error *err);
Status reporter_eval(Reporter *reporter, int64_t step, double loss, int64_t tokens, double seconds, int is_best, Error *err);
/* A line for people and for metrics.jsonl: resumed, saved, interrupted, bad step. */
Status reporter_event(Reporter *reporter, int64_t step, const char *text, Error *err);
/* A prompt and what the model wrote, before (0) and after (1) training. `wanted` may be NULL. */
Status reporter_sample(Reporter *reporter, int after, const char *prompt, const char *written, const char *wanted, Error *err);
/* Writes report.html and finishes the line. */
Status reporter_close(Reporter *reporter, Error *err);
/* Rewrites report.html now. */
Status reporter_write_html(Reporter *reporter, Error *err);

#endif
