/* Attention against finite differences: ragged packing, windows, grouped heads; cached against uncached. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "tests/support/compare.h"
#include "tests/support/scope.h"

enum { ROWS = 15, TOKENS = 13, HEADS = 4, KV = 2, DIM = 6, Q = HEADS * DIM, K = KV * DIM };

typedef struct Case {
    Backend backend;
    AttentionShape shape;
    Exec exec;
    Scope scope;
    Batch batch;
    void *q, *k, *v, *d_o, *o, *saved, *forward_workspace, *backward_workspace, *dq, *dk, *dv;
} Case;

static void open_case(Case *c, DType act, int threads, int64_t window) {
    Error err;
    OpPlan plan;
    *c = (Case){.shape = {.rows = ROWS, .heads = HEADS, .kv_heads = KV, .head_dim = DIM, .window = window, .scale = 0.75f}};
    cpu_backend_reference(&c->backend);
    c->exec = exec_open(act, threads);
    c->batch = scope_batch(&c->scope, (int64_t[]){1, 7, 2, 3}, 4, 3);
    assert_ok(c->backend.attention_plan(&c->exec.config, &c->shape, &plan, &err), &err);
    c->q = scope_random(&c->scope, act, TOKENS * Q, 1.0);
    c->k = scope_random(&c->scope, act, TOKENS * K, 1.0);
    c->v = scope_random(&c->scope, act, TOKENS * K, 1.0);
    c->d_o = scope_random(&c->scope, act, TOKENS * Q, 1.0);
    c->o = scope_nan(&c->scope, act, ROWS * Q);
    c->dq = scope_nan(&c->scope, act, ROWS * Q);
    c->dk = scope_nan(&c->scope, act, ROWS * K);
    c->dv = scope_nan(&c->scope, act, ROWS * K);
    c->saved = scope_bytes(&c->scope, plan.saved);
    c->forward_workspace = scope_scratch(&c->scope, plan.forward_workspace);
    c->backward_workspace = scope_scratch(&c->scope, plan.backward_workspace);
}

static void forward(Case *c) {
    Error err;
    assert_ok(c->backend.attention_forward(&c->exec, &c->shape, &c->batch, c->q, c->k, c->v, c->o, c->saved,
                                           c->forward_workspace, &err),
              &err);
}

static void backward(Case *c) {
    Error err;
    assert_ok(c->backend.attention_backward(&c->exec, &c->shape, &c->batch, c->q, c->k, c->v, c->o, c->saved, c->d_o, c->dq,
                                            c->dk, c->dv, c->backward_workspace, &err),
              &err);
}

static void close_case(Case *c) {
    size_t size = dtype_size(c->exec.config.act);
    assert_untouched("o", (char *)c->o + TOKENS * Q * size, (ROWS - TOKENS) * Q * size);
    assert_untouched("dk", (char *)c->dk + TOKENS * K * size, (ROWS - TOKENS) * K * size);
    scope_close(&c->scope);
    exec_close(&c->exec);
}

static double objective(void *context) {
    Case *c = context;
    forward(c);
    return dot_f64(c->o, c->d_o, TOKENS * Q);
}

static void test_gradients(void **state) {
    (void)state;
    int64_t windows[3] = {0, 3, 1};
    for (int i = 0; i < 3; i++) {
        Case c;
        open_case(&c, DTYPE_F64, 1, windows[i]);
        forward(&c);
        backward(&c);
        assert_gradient("dv", c.v, TOKENS * K, c.dv, 0.0, objective, &c);
        if (windows[i] != 1) { /* one visible key: the softmax is constant */
            assert_gradient("dq", c.q, TOKENS * Q, c.dq, 0.0, objective, &c);
            assert_gradient("dk", c.k, TOKENS * K, c.dk, 0.0, objective, &c);
        }
        close_case(&c);
    }
}

/* The definition with no care for range or order, one query at a time. */
static void test_definition(void **state) {
    (void)state;
    Case c;
    open_case(&c, DTYPE_F64, 1, 3);
    forward(&c);
    const double *q = c.q, *k = c.k, *v = c.v;
    for (int64_t s = 0; s < c.batch.sequences; s++) {
        for (int64_t i = c.batch.starts[s]; i < c.batch.starts[s + 1]; i++) {
            for (int64_t h = 0; h < HEADS; h++) {
                double want[DIM] = {0}, sum = 0.0;
                for (int64_t j = c.batch.starts[s]; j < c.batch.starts[s + 1]; j++) {
                    if (j > i || j <= i - 3) continue;
                    double p = exp(0.75 * dot_f64(q + i * Q + h * DIM, k + j * K + h / 2 * DIM, DIM));
                    for (int64_t d = 0; d < DIM; d++)
                        want[d] += p * v[j * K + h / 2 * DIM + d];
                    sum += p;
                }
                for (int64_t d = 0; d < DIM; d++)
                    want[d] /= sum;
                assert_close("o", DTYPE_F64, (double *)c.o + i * Q + h * DIM, want, DIM, 1e-13, "doubles in another order");
                double lse = log(sum);
                assert_close("lse", DTYPE_F64, (double *)c.saved + i * HEADS + h, &lse, 1, 1e-13, "doubles in another order");
            }
        }
    }
    close_case(&c);
}

static void test_packed_is_separate(void **state) {
    (void)state;
    Case packed;
    open_case(&packed, DTYPE_F32, 1, 3);
    forward(&packed);
    backward(&packed);
    for (int64_t s = 0; s < packed.batch.sequences; s++) {
        Case alone;
        open_case(&alone, DTYPE_F32, 1, 3);
        int64_t first = alone.batch.starts[s], length = alone.batch.starts[s + 1] - first;
        alone.batch = scope_batch_part(&alone.scope, &alone.batch, s);
        memmove(alone.q, (float *)packed.q + first * Q, (size_t)(length * Q) * sizeof(float));
        memmove(alone.d_o, (float *)packed.d_o + first * Q, (size_t)(length * Q) * sizeof(float));
        memmove(alone.k, (float *)packed.k + first * K, (size_t)(length * K) * sizeof(float));
        memmove(alone.v, (float *)packed.v + first * K, (size_t)(length * K) * sizeof(float));
        forward(&alone);
        backward(&alone);
        assert_memory_equal(alone.o, (float *)packed.o + first * Q, (size_t)(length * Q) * sizeof(float));
        assert_memory_equal(alone.dq, (float *)packed.dq + first * Q, (size_t)(length * Q) * sizeof(float));
        assert_memory_equal(alone.dk, (float *)packed.dk + first * K, (size_t)(length * K) * sizeof(float));
        assert_memory_equal(alone.dv, (float *)packed.dv + first * K, (size_t)(length * K) * sizeof(float));
        close_case(&alone);
    }
    close_case(&packed);
}

/* One sequence: three rows at once, then two, then one by one. */
static void check_cached(DType act, int64_t window) {
    Case c;
    Error err;
    open_case(&c, act, 1, window);
    c.batch.sequences = 1;
    c.batch.starts = (int64_t[]){0, TOKENS};
    forward(&c);
    size_t size = dtype_size(act);
    KvLayer cache = {scope_nan(&c.scope, act, ROWS * K), scope_nan(&c.scope, act, ROWS * K)};
    for (int64_t past = 0, rows = 0; past < TOKENS; past += rows) {
        rows = past == 0 ? 3 : past == 3 ? 2 : 1;
        int64_t starts[2] = {0, rows};
        Batch part = {.tokens = rows, .sequences = 1, .starts = starts};
        char *o = scope_nan(&c.scope, act, rows * Q);
        assert_ok(c.backend.attention_cached(&c.exec, &c.shape, &part, (char *)c.q + (size_t)(past * Q) * size,
                                             (char *)c.k + (size_t)(past * K) * size, (char *)c.v + (size_t)(past * K) * size,
                                             &cache, past, o, c.forward_workspace, &err),
                  &err);
        assert_memory_equal(o, (char *)c.o + (size_t)(past * Q) * size, (size_t)(rows * Q) * size);
    }
    assert_memory_equal(cache.k, c.k, TOKENS * K * size);
    assert_memory_equal(cache.v, c.v, TOKENS * K * size);
    assert_untouched("cache", (char *)cache.k + TOKENS * K * size, (ROWS - TOKENS) * K * size);
    close_case(&c);
}

static void test_cached(void **state) {
    (void)state;
    check_cached(DTYPE_F32, 0);
    check_cached(DTYPE_F32, 4);
    check_cached(DTYPE_BF16, 0);
}

static void test_threads(void **state) {
    (void)state;
    DType types[2] = {DTYPE_F32, DTYPE_BF16};
    for (int i = 0; i < 2; i++) {
        Case one, three;
        open_case(&one, types[i], 1, 3);
        open_case(&three, types[i], 3, 3);
        forward(&one);
        backward(&one);
        forward(&three);
        backward(&three);
        scope_assert_same(&one.scope, &three.scope);
        close_case(&one);
        close_case(&three);
    }
}

static void test_rounding_and_range(void **state) {
    (void)state;
    Case half, exact;
    open_case(&half, DTYPE_BF16, 1, 0);
    open_case(&exact, DTYPE_F32, 1, 0);
    forward(&half);
    forward(&exact);
    for (int i = 0; i < TOKENS * Q; i++)
        assert_int_equal(((bf16 *)half.o)[i], bf16_from_float(((float *)exact.o)[i]));
    assert_memory_equal(half.saved, exact.saved, TOKENS * HEADS * sizeof(float));
    for (int i = 0; i < TOKENS * Q; i++)
        ((float *)exact.q)[i] *= 1e4f; /* exp of the scores overflows */
    forward(&exact);
    for (int i = 0; i < TOKENS * Q; i++)
        assert_true(fabsf(((float *)exact.o)[i]) <= 1.0f);
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
    backward(&c);
    AttentionShape bad = c.shape;
    bad.kv_heads = 3;
    assert_refused(c.backend.attention_plan(&c.exec.config, &bad, &plan, &err), &err, "multiple");
    bad = c.shape;
    bad.window = -1;
    assert_refused(c.backend.attention_plan(&c.exec.config, &bad, &plan, &err), &err, "window");
    bad = c.shape;
    bad.head_dim = 5;
    assert_refused(c.backend.attention_plan(&c.exec.config, &bad, &plan, &err), &err, "even");
    KvLayer cache = {c.k, c.v};
    int64_t starts[2] = {0, 1};
    Batch one = {.tokens = 1, .sequences = 1, .starts = starts};
    assert_refused(c.backend.attention_cached(&c.exec, &c.shape, &one, c.q, c.k, c.v, &cache, ROWS, c.o, NULL, &err), &err,
                   "cache");
    c.batch.starts = (int64_t[]){0, 1, 1, 10, TOKENS};
    assert_refused(
        c.backend.attention_forward(&c.exec, &c.shape, &c.batch, c.q, c.k, c.v, c.o, c.saved, c.forward_workspace, &err), &err,
        "starts");
    close_case(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradients), cmocka_unit_test(test_definition), cmocka_unit_test(test_packed_is_separate),
        cmocka_unit_test(test_cached),    cmocka_unit_test(test_threads),    cmocka_unit_test(test_rounding_and_range),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
