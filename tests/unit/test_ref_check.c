/* Sums of squares, the search for NaN and Inf, layout conversion. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "tests/support/compare.h"
#include "tests/support/scope.h"

static void test_sum_squares(void **state) {
    (void)state;
    Backend backend;
    cpu_backend_reference(&backend);
    Exec one = exec_open(DTYPE_F32, 1), three = exec_open(DTYPE_F32, 3);
    int64_t counts[5] = {0, 1, 63, 65, 10007};
    for (int i = 0; i < 5; i++) {
        Scope scope = {0};
        const float *x = scope_random(&scope, DTYPE_F32, counts[i], 2.0);
        double want = 0.0;
        for (int64_t j = 0; j < counts[i]; j++)
            want += (double)x[j] * (double)x[j];
        double got = backend.sum_squares(&one, counts[i], x);
        assert_close("sum", DTYPE_F64, &got, &want, 1, 1e-13, "doubles added in another grouping");
        double spread = backend.sum_squares(&three, counts[i], x);
        assert_memory_equal(&got, &spread, sizeof got);
        scope_close(&scope);
    }
    exec_close(&one);
    exec_close(&three);
}

static void test_find_nonfinite(void **state) {
    (void)state;
    enum { ROWS = 13, COLUMNS = 77, COUNT = ROWS * COLUMNS };
    DType types[3] = {DTYPE_F32, DTYPE_BF16, DTYPE_F64};
    int64_t places[4] = {0, 100, 500, COUNT - 1};
    float bad[3] = {NAN, INFINITY, -INFINITY};
    Backend backend;
    cpu_backend_reference(&backend);
    for (int type = 0; type < 3; type++) {
        Exec exec = exec_open(types[type], 3);
        Scope scope = {0};
        char *x = scope_random(&scope, types[type], COUNT, 1.0);
        assert_int_equal(backend.find_nonfinite(&exec, x, ROWS, COLUMNS), -1);
        for (int i = 3; i >= 0; i--) { /* later ones stay: the first is the answer */
            dtype_convert(x + (size_t)places[i] * dtype_size(types[type]), types[type], &bad[i % 3], DTYPE_F32, 1);
            assert_int_equal(backend.find_nonfinite(&exec, x, ROWS, COLUMNS), places[i]);
        }
        assert_int_equal(backend.find_nonfinite(&exec, x, 0, COLUMNS), -1);
        scope_close(&scope);
        exec_close(&exec);
    }
}

static void test_layout(void **state) {
    (void)state;
    Backend backend;
    cpu_backend_reference(&backend);
    Exec exec = exec_open(DTYPE_BF16, 1);
    Scope scope = {0};
    assert_int_equal(backend.activation_bytes(DTYPE_BF16, 3, 5), 30);
    assert_int_equal(backend.activation_bytes(DTYPE_F32, INT64_C(1) << 20, INT64_C(1) << 16), UINT64_C(1) << 38);
    const void *rows = scope_random(&scope, DTYPE_BF16, 15, 1.0);
    void *activation = scope_nan(&scope, DTYPE_BF16, 15), *back = scope_nan(&scope, DTYPE_BF16, 15);
    backend.from_rows(&exec, rows, 3, 5, activation);
    backend.to_rows(&exec, activation, 3, 5, back);
    assert_memory_equal(back, rows, 30);
    scope_close(&scope);
    exec_close(&exec);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sum_squares),
        cmocka_unit_test(test_find_nonfinite),
        cmocka_unit_test(test_layout),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
