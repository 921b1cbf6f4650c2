/* Fixed ranges of the linears' inputs (qat.activations int8-static): one scale per input, symmetric, found once before the first step.
 *
 * The model runs over the first micro-batches with its weights as they will be quantized and its activations as they are. Of
 * every input: the greatest magnitude, mean and standard deviation in a first pass, a histogram of magnitudes in a second.
 *   absmax      r = max |x|
 *   percentile  r = the magnitude below which `value` percent lie (linear inside of a bin)
 *   std         r = max(|mean - value * std|, |mean + value * std|), at most max |x|
 *   mse         r = of RANGE_STEPS parts of max |x|, the one with the least squared error of rounding and cutting the histogram
 * scale = r / 127.5, as kernels/ops.h's fake_rows takes it.
 */
#ifndef NIBBLE_TRAIN_QAT_RANGES_H
#define NIBBLE_TRAIN_QAT_RANGES_H

#include "autograd/tape.h"
#include "core/error.h"
#include "core/text.h"

#define RANGE_BINS 4096
#define RANGE_STEPS 100

typedef enum RangeMethod { RANGE_ABSMAX, RANGE_PERCENTILE, RANGE_STD, RANGE_MSE } RangeMethod;

/* "absmax", "percentile", "std", "mse". */
Status range_method_named(const char *name, RangeMethod *method, Error *err);

typedef struct RangeSearch RangeSearch;
RangeSearch *range_search_create(RangeMethod method, double value, int64_t inputs);
void range_search_free(RangeSearch *search); /* NULL is fine */
/* TapeRun.observe, with self = search: counts `x` for input `index`. FP32 or BF16 rows. */
void range_search_observe(void *self, int64_t index, const void *x, DType act, int64_t values);
/* Between the passes: what comes now is the second. */
void range_search_second(RangeSearch *search);
/* scales [inputs] are overwritten; fails, naming the input's number, where nothing finite was seen. */
Status range_search_finish(const RangeSearch *search, float *scales, Error *err);

/* FOLDER/qat_ranges.json, {"nibble_ranges": [...]}: the scales of a run, beside its adapter. */
#define QAT_RANGES_FILE "qat_ranges.json"
Status qat_ranges_write(const char *folder, const float *scales, int64_t count, Error *err);
/* Fails where there are not `count` numbers above 0. */
Status qat_ranges_read(const char *folder, int64_t count, float *scales, Error *err);
/* As a JSON list that reads as the same FP32 numbers. */
void qat_ranges_print(const float *scales, int64_t count, Text *out);

#endif
