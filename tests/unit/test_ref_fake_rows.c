/* Fake quantization of activations against the formula said plainly, value by value. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "tests/support/compare.h"
#include "tests/support/scope.h"

enum { ROWS = 9, TOKENS = 7, COLUMNS = 96, COUNT = TOKENS * COLUMNS };

typedef struct Case {
    Backend backend;
    Exec exec;
    Scope scope;
    Batch batch;
    FakeRowsShape shape;
    void *x, *dy, *y, *dx, *saved, *workspace;
} Case;

static void open_case(Case *c, DType act, int threads, int64_t group, int bits, int symmetric) {
    Error err;
    OpPlan plan;
    *c = (Case){.shape = {.rows = ROWS, .columns = COLUMNS, .group = group, .bits = bits, .symmetric = symmetric}};
    cpu_backend_reference(&c->backend);
    c->exec = exec_open(act, threads);
    c->batch = scope_batch(&c->scope, (int64_t[]){TOKENS}, 1, 3);
    assert_ok(c->backend.fake_rows_plan(&c->exec.config, &c->shape, &plan, &err), &err);
    c->x = scope_random(&c->scope, act, COUNT, 3.0);
    c->dy = scope_random(&c->scope, act, COUNT, 1.0);
    c->y = scope_nan(&c->scope, act, ROWS * COLUMNS);
    c->dx = scope_nan(&c->scope, act, ROWS * COLUMNS);
    c->saved = scope_bytes(&c->scope, plan.saved);
    c->workspace = scope_scratch(&c->scope, plan.forward_workspace);
}

static void close_case(Case *c) {
    size_t element = dtype_size(c->exec.config.act);
    assert_untouched("y", (char *)c->y + COUNT * element, (ROWS - TOKENS) * COLUMNS * element);
    scope_close(&c->scope);
    exec_close(&c->exec);
}

static void run(Case *c) {
    Error err;
    assert_ok(c->backend.fake_rows_forward(&c->exec, &c->shape, &c->batch, c->x, c->y, c->saved, c->workspace, &err), &err);
    assert_ok(c->backend.fake_rows_backward(&c->exec, &c->shape, &c->batch, c->saved, c->dy, c->dx, &err), &err);
}

static float at(const Case *c, const void *values, int64_t i) {
    return c->exec.config.act == DTYPE_F32 ? ((const float *)values)[i] : bf16_to_float(((const bf16 *)values)[i]);
}

/* One group by the formulas of kernels/ops.h. */
static void check_group(const Case *c, int64_t first) {
    float low = -powf(2.0f, (float)(c->shape.bits - 1)), high = -low - 1.0f, least = 0.0f, most = 0.0f, zero = 0.0f;
    for (int64_t i = first; i < first + c->shape.group; i++) {
        least = fminf(least, at(c, c->x, i));
        most = fmaxf(most, at(c, c->x, i));
    }
    float scale = c->shape.symmetric ? fmaxf(-least, most) / ((high - low) / 2.0f) : (most - least) / (high - low);
    if (c->shape.scale > 0.0f) scale = c->shape.scale;
    scale = fmaxf(scale, 0x1p-23f);
    if (!c->shape.symmetric) zero = fminf(fmaxf(low - rintf(least / scale), low), high);
    for (int64_t i = first; i < first + c->shape.group; i++) {
        float u = rintf(at(c, c->x, i) * (1.0f / scale)) + zero;
        float y = (fminf(fmaxf(u, low), high) - zero) * scale;
        float want = c->exec.config.act == DTYPE_F32 ? y : bf16_to_float(bf16_from_float(y));
        assert_true(at(c, c->y, i) == want);
        assert_true(at(c, c->dx, i) == (u >= low && u <= high ? at(c, c->dy, i) : 0.0f));
    }
}

static void check_all(Case *c) {
    for (int64_t first = 0; first < COUNT; first += c->shape.group)
        check_group(c, first);
}

static void test_formula(void **state) {
    (void)state;
    static const DType types[] = {DTYPE_F32, DTYPE_BF16};
    int clamped = 0;
    for (int t = 0; t < 2; t++)
        for (int bits = 2; bits <= 8; bits++)
            for (int symmetric = 0; symmetric < 2; symmetric++)
                for (int64_t group = 8; group <= COLUMNS; group *= group == 8 ? 6 : 2) {
                    Case c;
                    open_case(&c, types[t], 1, group, bits, symmetric);
                    run(&c);
                    check_all(&c);
                    for (int64_t i = 0; i < COUNT; i++)
                        clamped += at(&c, c.dx, i) == 0.0f;
                    close_case(&c);
                }
    assert_true(clamped > 0); /* symmetric ranges cut the largest positive value: masks are exercised */
}

/* One scale for all values: far outside of it, too. */
static void test_fixed_scale(void **state) {
    (void)state;
    static const float scales[] = {0.02f, 1.0f, 1e-20f, 3e30f};
    for (int i = 0; i < 4; i++)
        for (int t = 0; t < 2; t++) {
            Case c;
            open_case(&c, t ? DTYPE_BF16 : DTYPE_F32, 1, COLUMNS, 8, 1);
            c.shape.scale = scales[i];
            run(&c);
            check_all(&c);
            close_case(&c);
        }
}

static void test_edges(void **state) {
    (void)state;
    Case c;
    open_case(&c, DTYPE_F32, 1, 32, 8, 0);
    float *x = c.x;
    memset(x, 0, 32 * sizeof *x); /* a group of zeros */
    for (int i = 32; i < 64; i++)
        x[i] = 1e-30f; /* under the smallest scale */
    for (int i = 64; i < 96; i++)
        x[i] = i == 70 ? 3e38f : i == 71 ? -3e38f : 1.0f; /* hi - lo is more than FP32 holds */
    for (int i = 96; i < 128; i++)
        x[i] = -fabsf(x[i]) - 0.5f; /* all of one sign */
    run(&c);
    for (int i = 0; i < 64; i++)
        assert_true(c.y != NULL && ((float *)c.y)[i] == 0.0f);
    for (int i = 64; i < 96; i++)
        assert_true(isfinite(((float *)c.y)[i]));
    check_group(&c, 96);
    close_case(&c);
}

static void test_not_finite(void **state) {
    (void)state;
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int b = 0; b < 3; b++) {
        Case c;
        open_case(&c, DTYPE_F32, 1, 48, 8, 1);
        ((float *)c.x)[50] = bad[b];
        run(&c);
        for (int64_t i = 0; i < COUNT; i++)
            assert_int_equal(isnan(((float *)c.y)[i]) != 0, i >= 48 && i < 96);
        close_case(&c);
    }
}

static void test_threads(void **state) {
    (void)state;
    Case one, three;
    open_case(&one, DTYPE_BF16, 1, 48, 4, 1);
    open_case(&three, DTYPE_BF16, 3, 48, 4, 1);
    run(&one);
    run(&three);
    scope_assert_same(&one.scope, &three.scope);
    close_case(&one);
    close_case(&three);
}

static void test_off_and_in_place(void **state) {
    (void)state;
    Case c;
    Error err;
    open_case(&c, DTYPE_F32, 1, 48, 4, 1);
    run(&c);
    assert_ok(c.backend.fake_rows_backward(&c.exec, &c.shape, &c.batch, c.saved, c.dy, c.dy, &err), &err);
    assert_memory_equal(c.dy, c.dx, COUNT * sizeof(float));
    c.shape.bits = 0;
    run(&c);
    assert_memory_equal(c.y, c.x, COUNT * sizeof(float));
    assert_memory_equal(c.dx, c.dy, COUNT * sizeof(float));
    close_case(&c);
}

static void test_refusals(void **state) {
    (void)state;
    Case c;
    Error err;
    OpPlan plan;
    open_case(&c, DTYPE_F32, 1, 48, 8, 1);
    run(&c);
    assert_refused(
        c.backend.fake_rows_plan(
            &c.exec.config, &(FakeRowsShape){.rows = 9, .columns = 96, .group = 36, .bits = 8, .symmetric = 1}, &plan, &err),
        &err, "36");
    assert_refused(
        c.backend.fake_rows_plan(
            &c.exec.config, &(FakeRowsShape){.rows = 9, .columns = 96, .group = 48, .bits = 9, .symmetric = 1}, &plan, &err),
        &err, "bits");
    assert_refused(
        c.backend.fake_rows_plan(
            &c.exec.config, &(FakeRowsShape){.rows = 0, .columns = 96, .group = 48, .bits = 8, .symmetric = 1}, &plan, &err),
        &err, "rows");
    c.batch.tokens = ROWS + 1;
    assert_refused(c.backend.fake_rows_backward(&c.exec, &c.shape, &c.batch, c.saved, c.dy, c.dx, &err), &err, "tokens");
    close_case(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_formula),    cmocka_unit_test(test_fixed_scale), cmocka_unit_test(test_edges),
        cmocka_unit_test(test_not_finite), cmocka_unit_test(test_threads),     cmocka_unit_test(test_off_and_in_place),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
