/* q/k norm + RoPE against finite differences; the rotation against its definition by complex numbers. */
#include <complex.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "tests/support/compare.h"
#include "tests/support/scope.h"

enum { ROWS = 9, TOKENS = 7, HEADS = 4, KV = 2, DIM = 6, TABLE = 5, Q = HEADS * DIM, K = KV * DIM };

typedef struct Case {
    Backend backend;
    RopeShape shape;
    Exec exec;
    Scope scope;
    Batch batch;
    RopeTable table;
    void *q, *k, *qw, *kw, *rq, *rk, *saved, *forward_workspace, *backward_workspace;
    void *drq, *drk, *dq, *dk, *dqw, *dkw;
} Case;

static void open_case(Case *c, DType act, int threads, int norm) {
    Error err;
    OpPlan plan;
    *c = (Case){.shape = {.rows = ROWS,
                          .heads = HEADS,
                          .kv_heads = KV,
                          .head_dim = DIM,
                          .table_rows = TABLE,
                          .has_norm = norm,
                          .train_norm = norm,
                          .epsilon = 1e-6}};
    cpu_backend_reference(&c->backend);
    c->exec = exec_open(act, threads);
    c->batch = scope_batch(&c->scope, (int64_t[]){5, 2}, 2, 3);
    assert_ok(c->backend.rope_plan(&c->exec.config, &c->shape, &plan, &err), &err);
    float *cosine = scope_nan(&c->scope, DTYPE_F32, TABLE * DIM / 2), *sine = scope_nan(&c->scope, DTYPE_F32, TABLE * DIM / 2);
    for (int p = 0; p < TABLE; p++) {
        for (int i = 0; i < DIM / 2; i++) {
            double angle = p * pow(10.0, -2.0 * i / DIM);
            cosine[p * DIM / 2 + i] = (float)(1.25 * cos(angle)); /* an attention factor */
            sine[p * DIM / 2 + i] = (float)(1.25 * sin(angle));
        }
    }
    c->table = (RopeTable){cosine, sine};
    DType wide = act == DTYPE_F64 ? DTYPE_F64 : DTYPE_F32;
    c->q = scope_random(&c->scope, act, TOKENS * Q, 1.0);
    c->k = scope_random(&c->scope, act, TOKENS * K, 1.0);
    c->qw = norm ? scope_random(&c->scope, act, DIM, 1.0) : NULL;
    c->kw = norm ? scope_random(&c->scope, act, DIM, 1.0) : NULL;
    c->drq = scope_random(&c->scope, act, TOKENS * Q, 1.0);
    c->drk = scope_random(&c->scope, act, TOKENS * K, 1.0);
    c->rq = scope_nan(&c->scope, act, ROWS * Q);
    c->rk = scope_nan(&c->scope, act, ROWS * K);
    c->dq = scope_nan(&c->scope, act, ROWS * Q);
    c->dk = scope_nan(&c->scope, act, ROWS * K);
    c->dqw = norm ? scope_filled(&c->scope, wide, DIM, 0.5) : NULL;
    c->dkw = norm ? scope_filled(&c->scope, wide, DIM, 0.5) : NULL;
    c->saved = scope_bytes(&c->scope, plan.saved);
    c->forward_workspace = scope_scratch(&c->scope, plan.forward_workspace);
    c->backward_workspace = scope_scratch(&c->scope, plan.backward_workspace);
}

static void forward(Case *c) {
    Error err;
    assert_ok(c->backend.rope_forward(&c->exec, &c->shape, &c->batch, &c->table, c->q, c->k, c->qw, c->kw, c->rq, c->rk,
                                      c->saved, c->forward_workspace, &err),
              &err);
}

static void backward(Case *c, void *dq, void *dk) {
    Error err;
    const void *q = c->shape.has_norm ? c->q : NULL, *k = c->shape.has_norm ? c->k : NULL;
    assert_ok(c->backend.rope_backward(&c->exec, &c->shape, &c->batch, &c->table, q, k, c->qw, c->kw, c->saved, c->drq, c->drk,
                                       dq, dk, c->dqw, c->dkw, c->backward_workspace, &err),
              &err);
}

static void close_case(Case *c) {
    size_t size = dtype_size(c->exec.config.act);
    assert_untouched("rq", (char *)c->rq + TOKENS * Q * size, (ROWS - TOKENS) * Q * size);
    assert_untouched("dk", (char *)c->dk + TOKENS * K * size, (ROWS - TOKENS) * K * size);
    scope_close(&c->scope);
    exec_close(&c->exec);
}

static double objective(void *context) {
    Case *c = context;
    forward(c);
    return dot_f64(c->rq, c->drq, TOKENS * Q) + dot_f64(c->rk, c->drk, TOKENS * K);
}

static void test_gradients(void **state) {
    (void)state;
    for (int norm = 0; norm < 2; norm++) {
        Case c;
        open_case(&c, DTYPE_F64, 1, norm);
        forward(&c);
        backward(&c, c.dq, c.dk);
        assert_gradient("dq", c.q, TOKENS * Q, c.dq, 0.0, objective, &c);
        assert_gradient("dk", c.k, TOKENS * K, c.dk, 0.0, objective, &c);
        if (norm) {
            assert_gradient("dq_weight", c.qw, DIM, c.dqw, 0.5, objective, &c);
            assert_gradient("dk_weight", c.kw, DIM, c.dkw, 0.5, objective, &c);
        }
        close_case(&c);
    }
}

static void test_rotation(void **state) {
    (void)state;
    Case c;
    open_case(&c, DTYPE_F64, 1, 0);
    forward(&c);
    for (int64_t t = 0; t < TOKENS; t++) {
        for (int64_t i = 0; i < DIM / 2; i++) { /* head 1 */
            const double *q = (double *)c.q + t * Q + DIM + i, *rq = (double *)c.rq + t * Q + DIM + i;
            double angle = c.batch.positions[t] * pow(10.0, -2.0 * (double)i / DIM);
            double complex want = 1.25 * (q[0] + q[DIM / 2] * I) * cexp(I * angle);
            double parts[2] = {creal(want), cimag(want)}, got[2] = {rq[0], rq[DIM / 2]};
            assert_close("rotated", DTYPE_F64, got, parts, 2, 1e-6, "the table is FP32");
        }
    }
    close_case(&c);
}

static void test_in_place(void **state) {
    (void)state;
    Case c, other;
    open_case(&c, DTYPE_F32, 1, 1);
    open_case(&other, DTYPE_F32, 1, 1);
    forward(&c);
    backward(&c, c.dq, c.dk);
    forward(&other);
    backward(&other, other.drq, other.drk);
    assert_memory_equal(other.drq, c.dq, TOKENS * Q * sizeof(float));
    assert_memory_equal(other.drk, c.dk, TOKENS * K * sizeof(float));
    assert_memory_equal(other.dqw, c.dqw, DIM * sizeof(float));
    close_case(&c);
    close_case(&other);
}

static void test_threads(void **state) {
    (void)state;
    DType types[2] = {DTYPE_F32, DTYPE_BF16};
    for (int i = 0; i < 2; i++) {
        Case one, three;
        open_case(&one, types[i], 1, 1);
        open_case(&three, types[i], 3, 1);
        forward(&one);
        backward(&one, one.dq, one.dk);
        forward(&three);
        backward(&three, three.dq, three.dk);
        scope_assert_same(&one.scope, &three.scope);
        close_case(&one);
        close_case(&three);
    }
}

/* With norm the rows that are rotated are those of the norm entry, bit for bit. */
static void test_norm_is_the_norm_entry(void **state) {
    (void)state;
    Case c, plain;
    Error err;
    open_case(&c, DTYPE_BF16, 1, 1);
    open_case(&plain, DTYPE_BF16, 1, 0);
    NormShape norm = {.rows = TOKENS * HEADS, .hidden = DIM, .epsilon = 1e-6};
    Batch rows = {.tokens = TOKENS * HEADS};
    float saved[TOKENS * HEADS];
    assert_ok(plain.backend.norm_forward(&plain.exec, &norm, &rows, c.q, NULL, c.qw, NULL, plain.q, saved, NULL, &err), &err);
    forward(&c);
    forward(&plain);
    assert_memory_equal(c.rq, plain.rq, TOKENS * Q * sizeof(bf16));
    close_case(&c);
    close_case(&plain);
}

static void test_one_rounding(void **state) {
    (void)state;
    Case half, exact;
    open_case(&half, DTYPE_BF16, 1, 0);
    open_case(&exact, DTYPE_F32, 1, 0);
    forward(&half);
    backward(&half, half.dq, half.dk);
    forward(&exact);
    backward(&exact, exact.dq, exact.dk);
    for (int i = 0; i < TOKENS * Q; i++) {
        assert_int_equal(((bf16 *)half.rq)[i], bf16_from_float(((float *)exact.rq)[i]));
        assert_int_equal(((bf16 *)half.dq)[i], bf16_from_float(((float *)exact.dq)[i]));
    }
    close_case(&half);
    close_case(&exact);
}

static void test_refusals(void **state) {
    (void)state;
    Case c;
    Error err;
    OpPlan plan;
    open_case(&c, DTYPE_F32, 1, 0);
    forward(&c);
    backward(&c, c.dq, c.dk);
    RopeShape bad = c.shape;
    bad.head_dim = 7;
    assert_refused(c.backend.rope_plan(&c.exec.config, &bad, &plan, &err), &err, "even");
    bad = c.shape;
    bad.table_rows = 4;
    assert_refused(
        c.backend.rope_forward(&c.exec, &bad, &c.batch, &c.table, c.q, c.k, NULL, NULL, c.rq, c.rk, NULL, NULL, &err), &err,
        "position");
    close_case(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradients), cmocka_unit_test(test_rotation),     cmocka_unit_test(test_in_place),
        cmocka_unit_test(test_threads),   cmocka_unit_test(test_one_rounding), cmocka_unit_test(test_norm_is_the_norm_entry),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
