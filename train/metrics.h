/* metrics.jsonl: one JSON object a line.
 *
 *   {"kind":"step","step":1,"steps":300,"loss":2.31,...}       every optimizer step
 *   {"kind":"eval","step":0,"loss":2.4,"tokens":512,...}       held-out loss
 *   {"kind":"event","step":40,"text":"resumed at step 40"}
 *   {"kind":"sample","step":0,"after":false,"prompt":...}      what the model wrote
 *
 * Numbers are printed with as many digits as give the same double back; NaN and infinities become null. Read back as untrusted
 * text: lines have a greatest length, and what is no record is passed over.
 */
#ifndef NIBBLE_TRAIN_METRICS_H
#define NIBBLE_TRAIN_METRICS_H

#include <stddef.h>
#include <stdint.h>

#include "core/error.h"
#include "core/text.h"
#include "train/reporter.h"

#define METRICS_NAME "metrics.jsonl"
#define METRICS_LINE_LIMIT ((size_t)4 << 20)

typedef enum MetricsKind { METRICS_STEP, METRICS_EVAL, METRICS_EVENT, METRICS_SAMPLE } MetricsKind;

typedef struct MetricsRecord {
    MetricsKind kind;
    StepRecord step;                              /* .step is set in every kind; loss, tokens, seconds also in METRICS_EVAL */
    int is_best;                                  /* METRICS_EVAL */
    int after;                                    /* METRICS_SAMPLE */
    const char *text, *prompt, *written, *wanted; /* borrowed; wanted may be NULL */
} MetricsRecord;

/* Appends the record and a line end. */
void metrics_print(const MetricsRecord *record, Text *out);

typedef struct MetricsStrings { /* what the strings of a parsed record point into */
    Text text[4];
} MetricsStrings;

void metrics_strings_free(MetricsStrings *strings);
/* One line, without its end. The record's strings are valid until the next call with the same `strings`. */
Status metrics_parse(const char *line, size_t length, MetricsStrings *strings, MetricsRecord *record, Error *err);

typedef void MetricsVisit(void *context, const MetricsRecord *record);
/* Rewrites the file at path atomically with the records of steps up to resume_step, and visits each of them in order. Lines
 * that are no records (a write that a kill cut short) are dropped and counted in *dropped. No file: nothing happens. */
Status metrics_cut(const char *path, int64_t resume_step, MetricsVisit *visit, void *context, int64_t *dropped, Error *err);

#endif
