/* A made-up run for the reporter's tests. */
#ifndef NIBBLE_TESTS_UNIT_TEST_REPORTER_H
#define NIBBLE_TESTS_UNIT_TEST_REPORTER_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/file.h"
#include "core/memory.h"
#include "tests/support/compare.h"
#include "train/history.h"
#include "train/metrics.h"
#include "train/report_html.h"
#include "train/reporter.h"

/* Falls like a loss does; every 97th step is bad. */
static inline StepRecord example_step(int64_t step, int64_t steps) {
    double wave = sin(12.9898 * (double)step), t = (double)step / (double)steps;
    int bad = step % 97 == 0;
    return (StepRecord){.step = step,
                        .steps = steps,
                        .loss = bad ? NAN : 1.1 + 1.6 * exp(-6.0 * t) + 0.2 * wave,
                        .grad_norm = bad ? INFINITY : 0.7 + 0.1 * wave,
                        .lr = 2e-4 * (1.0 - t),
                        .tokens = 4096,
                        .trained_tokens = bad ? 0 : 2012,
                        .seconds = 1.0 / 3.0,
                        .tokens_per_second = 1234.5 + 10.0 * wave,
                        .peak_fraction = step % 2 ? 0.61 : NAN,
                        .gflops = 812.25,
                        .resident = (uint64_t)3 << 30,
                        .eta_seconds = (double)(steps - step) / 3.0,
                        .epoch = 2.0 * t,
                        .skipped = bad};
}

static inline ReporterFacts example_facts(void) {
    static const char *const model[] = {"model", "models/<tiny> & \"small\"", NULL};
    static const char *const data[] = {"file", "data.jsonl", "tokens", "123", NULL};
    return (ReporterFacts){.title = "runs/<first>", .config_json = "{\"a\": \"</pre><script>\"}", .model = model, .data = data};
}

#endif
