/* What nibble bench measures. Each prints a table, or one JSON object, into *out. */
#ifndef NIBBLE_TRAIN_BENCH_H
#define NIBBLE_TRAIN_BENCH_H

#include <stdint.h>

#include "core/error.h"
#include "core/text.h"

typedef struct BenchOptions {
    const char *kind;
    const char *model, *arch; /* one of them, for `step` and `generate`; else a shape, for `load` a model */
    const char *device;       /* NULL: auto for step and load, cuda for a device's operations */
    const char *head;         /* generate: none or q8_0 */
    int64_t sequences;        /* generate: beside each other */
    const char *const *overrides;
    int override_count;
    int64_t steps, tokens, threads;
    int64_t length; /* of the sequences; 0: the least of 512, the micro-batch and the context */
    int64_t rank;   /* of adapters; 0: the config's for step, none for linear, 16 for optimizer */
    int json;
} BenchOptions;

/* A whole optimizer step on made-up tokens, and its time by kind of operation (bench_step.c). */
Status bench_step(const BenchOptions *options, Text *out, Error *err);

/* Tokens a second of one sequence, or of several beside each other, on the CPU, against the memory's read bandwidth (bench_generate.c). tokens: of the prompt;
 * steps: rounds. */
Status bench_generate(const BenchOptions *options, Text *out, Error *err);

/* The CPU's products with frozen weights, against dense ones and against BF16 weights (bench_linear.c). tokens 0: 512 and 1,024;
 * steps: rounds; rank 0: no adapter. */
Status bench_cpu_linear(const BenchOptions *options, Text *out, Error *err);

/* Of count > 0 values, which it sorts (bench_generate.c). */
double bench_median(double *values, int64_t count);

/* One operation on a device, against the ceilings of the same run (bench_device.c): dequant, gemm, attention, loss, optimizer. */
Status bench_device(const BenchOptions *options, Text *out, Error *err);

/* Seconds from a model's files to weights where they are used, against reading the same files (bench_load.c). */
Status bench_load(const BenchOptions *options, Text *out, Error *err);

#endif
