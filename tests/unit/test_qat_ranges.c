/* Fixed ranges: each way of finding them against its definition on values that are known. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "core/memory.h"
#include "tests/support/compare.h"
#include "tests/support/scratch.h"
#include "train/qat_ranges.h"

enum { COUNT = 10000 };
static float values[COUNT];
static Error error;

/* 0, 1, ... 9999 over 100, signs alternating, in another order; and in two parts, as micro-batches come. */
static void fill(void) {
    for (int64_t i = 0; i < COUNT; i++) {
        int64_t n = i * 7919 % COUNT;
        values[i] = (float)n / 100.0f * (n % 2 ? -1.0f : 1.0f);
    }
}

static float scale_of(RangeMethod method, double value, const float *x, int64_t count) {
    RangeSearch *search = range_search_create(method, value, 2);
    float scales[2];
    for (int pass = 0; pass < 2; pass++) {
        range_search_observe(search, 1, x, DTYPE_F32, count / 3);
        range_search_observe(search, 1, x + count / 3, DTYPE_F32, count - count / 3);
        range_search_observe(search, 0, x, DTYPE_F32, 1);
        range_search_second(search);
    }
    assert_ok(range_search_finish(search, scales, &error), &error);
    range_search_free(search);
    return scales[1];
}

static void test_methods(void **state) {
    (void)state;
    assert_true(scale_of(RANGE_ABSMAX, 0.0, values, COUNT) == (float)((double)99.99f / 127.5));
    double bin = 99.99 / RANGE_BINS; /* a percentile is known to a bin */
    for (double percent = 50.0; percent <= 100.0; percent += 12.5)
        assert_true(fabs((double)scale_of(RANGE_PERCENTILE, percent, values, COUNT) * 127.5 - percent * 0.9999) <= bin + 0.01);
    double sum = 0.0, squares = 0.0;
    for (int i = 0; i < COUNT; i++) {
        sum += (double)values[i];
        squares += (double)values[i] * (double)values[i];
    }
    double mean = sum / COUNT, deviation = sqrt(squares / COUNT - mean * mean), range = fabs(mean) + 1.5 * deviation;
    assert_true(fabs((double)scale_of(RANGE_STD, 1.5, values, COUNT) * 127.5 / range - 1.0) <= 1e-6); /* an FP32 number */
    assert_true(scale_of(RANGE_STD, 50.0, values, COUNT) == (float)((double)99.99f / 127.5)); /* at most what there is */
}

/* Uniform values are worth no cut; a far outlier among many is. */
static void test_squared_error(void **state) {
    (void)state;
    assert_true((double)scale_of(RANGE_MSE, 0.0, values, COUNT) * 127.5 > 97.0);
    float *some = memory_alloc(sizeof values);
    for (int i = 0; i < COUNT; i++)
        some[i] = values[i] / 100.0f;
    some[77] = 30.0f;
    float kept = scale_of(RANGE_ABSMAX, 0.0, some, COUNT), cut = scale_of(RANGE_MSE, 0.0, some, COUNT);
    double error_kept = 0.0, error_cut = 0.0;
    for (int i = 0; i < COUNT; i++) {
        double v = (double)fabsf(some[i]), k = (double)kept, c = (double)cut;
        error_kept += pow(v - fmin(nearbyint(v / k), 127.0) * k, 2.0);
        error_cut += pow(v - fmin(nearbyint(v / c), 127.0) * c, 2.0);
    }
    assert_true(cut < kept && error_cut < error_kept);
    memory_free(some);
}

static void test_refusals(void **state) {
    (void)state;
    RangeMethod method;
    float scales[2];
    assert_refused(range_method_named("median", &method, &error), &error, "median");
    RangeSearch *search = range_search_create(RANGE_ABSMAX, 0.0, 2);
    range_search_observe(search, 0, values, DTYPE_F32, 10);
    assert_refused(range_search_finish(search, scales, &error), &error, "nothing was run");
    float bad[] = {1.0f, NAN, 2.0f};
    range_search_observe(search, 1, bad, DTYPE_F32, 3);
    assert_refused(range_search_finish(search, scales, &error), &error, "NaN or Inf");
    range_search_free(search);
    float zero = 0.0f;
    search = range_search_create(RANGE_MSE, 0.0, 1); /* an input that is always 0 */
    range_search_observe(search, 0, &zero, DTYPE_F32, 1);
    range_search_second(search);
    range_search_observe(search, 0, &zero, DTYPE_F32, 1);
    assert_ok(range_search_finish(search, scales, &error), &error);
    assert_true(scales[0] == 0x1p-23f);
    range_search_free(search);
}

static void test_file(void **state) {
    (void)state;
    const float scales[] = {0.1f, 1e-20f, 3.4e38f, 0x1.fffffep-3f};
    float read[5];
    assert_ok(qat_ranges_write(scratch_folder(), scales, 4, &error), &error);
    assert_ok(qat_ranges_read(scratch_folder(), 4, read, &error), &error);
    assert_memory_equal(read, scales, sizeof scales);
    assert_refused(qat_ranges_read(scratch_folder(), 5, read, &error), &error, "5 scales");
    assert_refused(qat_ranges_read(scratch_folder(), 3, read, &error), &error, "3 scales");
    static const char *const texts[] = {"",
                                        "[]",
                                        "{}",
                                        "{\"nibble_ranges\": 3}",
                                        "{\"nibble_ranges\": [1, 2, 3, 0]}",
                                        "{\"nibble_ranges\": [1, 2, 3, \"4\"]}",
                                        "{\"nibble_ranges\": [1, 2, 3, 1e99]}"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        scratch_write(QAT_RANGES_FILE, texts[i], strlen(texts[i]));
        assert_refused(qat_ranges_read(scratch_folder(), 4, read, &error), &error, "4 scales");
    }
}

int main(void) {
    fill();
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_methods), cmocka_unit_test(test_squared_error),
                                       cmocka_unit_test(test_refusals), cmocka_unit_test(test_file)};
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
