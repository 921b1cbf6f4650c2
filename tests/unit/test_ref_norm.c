/* Add + RMSNorm against finite differences, with and without x, d_sum, a trained weight. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "tests/support/compare.h"
#include "tests/support/scope.h"

enum { ROWS = 8, TOKENS = 6, HIDDEN = 70, COUNT = TOKENS * HIDDEN };

typedef struct Case {
    Backend backend;
    NormShape shape;
    Exec exec;
    Scope scope;
    Batch batch;
    void *residual, *x, *weight, *dy, *d_sum;
    void *sum, *y, *saved, *forward_workspace, *backward_workspace, *d_residual, *d_weight;
} Case;

static void open_case(Case *c, DType act, int threads, int has_x, int train, int need_dx) {
    Error err;
    OpPlan plan;
    *c = (Case){0};
    cpu_backend_reference(&c->backend);
    c->shape = (NormShape){ROWS, HIDDEN, 1e-5, has_x, train, need_dx};
    c->exec = exec_open(act, threads);
    c->batch = scope_batch(&c->scope, (int64_t[]){TOKENS}, 1, 3);
    assert_ok(c->backend.norm_plan(&c->exec.config, &c->shape, &plan, &err), &err);
    DType wide = act == DTYPE_F64 ? DTYPE_F64 : DTYPE_F32;
    c->residual = scope_random(&c->scope, act, COUNT, 1.0);
    c->x = has_x ? scope_random(&c->scope, act, COUNT, 1.0) : NULL;
    c->weight = scope_random(&c->scope, act, HIDDEN, 1.0);
    c->dy = scope_random(&c->scope, act, COUNT, 1.0);
    c->d_sum = scope_random(&c->scope, act, COUNT, 1.0);
    c->sum = scope_nan(&c->scope, act, ROWS * HIDDEN);
    c->y = scope_nan(&c->scope, act, ROWS * HIDDEN);
    c->saved = scope_bytes(&c->scope, plan.saved);
    c->forward_workspace = scope_scratch(&c->scope, plan.forward_workspace);
    c->backward_workspace = scope_scratch(&c->scope, plan.backward_workspace);
    c->d_residual = need_dx ? scope_nan(&c->scope, act, ROWS * HIDDEN) : NULL;
    c->d_weight = train ? scope_filled(&c->scope, wide, HIDDEN, 0.5) : NULL;
}

static void forward(Case *c) {
    Error err;
    assert_ok(c->backend.norm_forward(&c->exec, &c->shape, &c->batch, c->residual, c->x, c->weight, c->sum, c->y, c->saved,
                                      c->forward_workspace, &err),
              &err);
}

static void run(Case *c) {
    Error err;
    forward(c);
    const void *sum = c->shape.has_x ? c->sum : c->residual;
    assert_ok(c->backend.norm_backward(&c->exec, &c->shape, &c->batch, sum, c->weight, c->saved, c->dy, c->d_sum, c->d_residual,
                                       c->d_weight, c->backward_workspace, &err),
              &err);
}

static void close_case(Case *c) {
    size_t size = dtype_size(c->exec.config.act), rest = (size_t)(ROWS - TOKENS) * HIDDEN * size;
    assert_untouched("y", (char *)c->y + COUNT * size, rest);
    if (c->d_residual != NULL) assert_untouched("d_residual", (char *)c->d_residual + COUNT * size, rest);
    if (!c->shape.has_x) assert_untouched("sum", c->sum, ROWS * HIDDEN * size);
    scope_close(&c->scope);
    exec_close(&c->exec);
}

/* The sum is an output too: its gradient is d_sum. */
static double objective(void *context) {
    Case *c = context;
    forward(c);
    return dot_f64(c->y, c->dy, COUNT) + dot_f64(c->shape.has_x ? c->sum : c->residual, c->d_sum, COUNT);
}

static void test_gradients(void **state) {
    (void)state;
    for (int has_x = 0; has_x < 2; has_x++) {
        Case c;
        open_case(&c, DTYPE_F64, 1, has_x, 1, 1);
        run(&c);
        assert_gradient("d_residual", c.residual, COUNT, c.d_residual, 0.0, objective, &c);
        if (has_x) assert_gradient("d_x", c.x, COUNT, c.d_residual, 0.0, objective, &c);
        assert_gradient("d_weight", c.weight, HIDDEN, c.d_weight, 0.5, objective, &c);
        close_case(&c);
    }
}

static void test_weight_alone_and_no_d_sum(void **state) {
    (void)state;
    Case whole, weight, plain;
    open_case(&whole, DTYPE_F32, 1, 1, 1, 1);
    open_case(&weight, DTYPE_F32, 1, 1, 1, 0);
    open_case(&plain, DTYPE_F32, 1, 1, 0, 1);
    memset(whole.d_sum, 0, COUNT * sizeof(float));
    plain.d_sum = NULL;
    run(&whole);
    run(&weight);
    run(&plain);
    assert_memory_equal(whole.d_weight, weight.d_weight, HIDDEN * sizeof(float));
    assert_memory_equal(whole.d_residual, plain.d_residual, COUNT * sizeof(float));
    close_case(&whole);
    close_case(&weight);
    close_case(&plain);
}

static void test_threads(void **state) {
    (void)state;
    DType types[2] = {DTYPE_F32, DTYPE_BF16};
    for (int i = 0; i < 2; i++) {
        Case one, three;
        open_case(&one, types[i], 1, 1, 1, 1);
        open_case(&three, types[i], 3, 1, 1, 1);
        run(&one);
        run(&three);
        scope_assert_same(&one.scope, &three.scope);
        close_case(&one);
        close_case(&three);
    }
}

/* The three roundings, spelled out on one row. */
static void test_rounding_order(void **state) {
    (void)state;
    Case c, exact;
    open_case(&c, DTYPE_BF16, 1, 1, 1, 1);
    open_case(&exact, DTYPE_F32, 1, 1, 1, 1);
    run(&c);
    for (int i = 0; i < COUNT; i++) { /* the F32 run starts from the rounded sum, as BF16 does */
        ((float *)exact.residual)[i] = bf16_to_float(((bf16 *)c.sum)[i]);
        float sum = bf16_to_float(((bf16 *)c.residual)[i]) + bf16_to_float(((bf16 *)c.x)[i]);
        assert_int_equal(((bf16 *)c.sum)[i], bf16_from_float(sum));
    }
    memset(exact.x, 0, COUNT * sizeof(float));
    run(&exact);
    for (int t = 0; t < TOKENS; t++) {
        float rstd = ((float *)c.saved)[t];
        assert_true(rstd == ((float *)exact.saved)[t]);
        for (int i = 0; i < HIDDEN; i++) {
            float n = bf16_round(bf16_to_float(((bf16 *)c.sum)[t * HIDDEN + i]) * rstd);
            float y = n * bf16_to_float(((bf16 *)c.weight)[i]);
            assert_int_equal(((bf16 *)c.y)[t * HIDDEN + i], bf16_from_float(y));
        }
    }
    for (int i = 0; i < HIDDEN; i++) {
        double want = 0.0;
        for (int t = 0; t < TOKENS; t++) {
            float n = bf16_round(bf16_to_float(((bf16 *)c.sum)[t * HIDDEN + i]) * ((float *)c.saved)[t]);
            want += (double)bf16_to_float(((bf16 *)c.dy)[t * HIDDEN + i]) * (double)n;
        }
        assert_true(((float *)c.d_weight)[i] == (float)(0.5 + want));
    }
    close_case(&c);
    close_case(&exact);
}

static void test_in_place(void **state) {
    (void)state;
    Case c;
    Error err;
    open_case(&c, DTYPE_F32, 1, 1, 0, 1);
    run(&c);
    assert_ok(c.backend.norm_backward(&c.exec, &c.shape, &c.batch, c.sum, c.weight, c.saved, c.dy, c.d_sum, c.d_sum, NULL,
                                      c.backward_workspace, &err),
              &err);
    assert_memory_equal(c.d_sum, c.d_residual, COUNT * sizeof(float));
    close_case(&c);
}

static void test_refusals(void **state) {
    (void)state;
    Case c;
    Error err;
    OpPlan plan;
    open_case(&c, DTYPE_F32, 1, 0, 0, 1);
    run(&c);
    NormShape bad = c.shape;
    bad.hidden = 0;
    assert_refused(c.backend.norm_plan(&c.exec.config, &bad, &plan, &err), &err, "hidden");
    bad = c.shape;
    bad.epsilon = -1.0;
    assert_refused(c.backend.norm_plan(&c.exec.config, &bad, &plan, &err), &err, "epsilon");
    bad = c.shape;
    bad.rows = bad.hidden = INT64_C(2147483647);
    assert_refused(c.backend.norm_plan(&c.exec.config, &bad, &plan, &err), &err, "memory");
    close_case(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradients), cmocka_unit_test(test_weight_alone_and_no_d_sum),
        cmocka_unit_test(test_threads),   cmocka_unit_test(test_rounding_order),
        cmocka_unit_test(test_in_place),  cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
