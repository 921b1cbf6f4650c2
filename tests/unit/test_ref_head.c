/* Head + loss against finite differences in every weight format; chunks; supervised rows only. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "tests/support/compare.h"
#include "tests/support/scope.h"

enum { HIDDEN = 96, VOCAB = 11 };

typedef struct Case {
    Backend backend;
    HeadShape shape;
    Exec exec;
    Scope scope;
    Batch batch;
    WeightView weight;
    void *x, *dx, *d_weight, *workspace;
    float *nll;
    double loss;
} Case;

static void open_case(Case *c, DType act, int threads, WeightFormat format, int nested, int64_t tokens, int train) {
    Error err;
    OpPlan plan;
    *c = (Case){0};
    cpu_backend_reference(&c->backend);
    c->exec = exec_open(act, threads);
    c->batch = scope_batch(&c->scope, (int64_t[]){tokens - 3, 3}, 2, VOCAB);
    c->shape = (HeadShape){tokens + 2, HIDDEN, VOCAB, tokens, format, 1, train, 0};
    assert_ok(c->backend.head_plan(&c->exec.config, &c->shape, &plan, &err), &err);
    assert_true(plan.saved == 0 && plan.backward_workspace == 0);
    c->weight = scope_weight(&c->scope, format, VOCAB, HIDDEN, 32, nested);
    c->x = scope_random(&c->scope, act, tokens * HIDDEN, 1.0);
    c->dx = scope_nan(&c->scope, act, (tokens + 2) * HIDDEN);
    if (train) c->d_weight = scope_filled(&c->scope, act == DTYPE_F64 ? DTYPE_F64 : DTYPE_F32, VOCAB * HIDDEN, 0.5);
    c->nll = scope_nan(&c->scope, DTYPE_F32, c->batch.supervised);
    c->workspace = scope_scratch(&c->scope, plan.forward_workspace);
}

static void run(Case *c) {
    Error err;
    c->loss = 2.0;
    assert_ok(c->backend.head_loss(&c->exec, &c->shape, &c->batch, c->x, &c->weight, &c->loss, c->nll, c->dx, c->d_weight,
                                   c->workspace, &err),
              &err);
}

static void close_case(Case *c) {
    size_t row = HIDDEN * dtype_size(c->exec.config.act);
    assert_untouched("dx", (char *)c->dx + (size_t)c->batch.tokens * row, 2 * row);
    scope_close(&c->scope);
    exec_close(&c->exec);
}

/* The loss alone: no gradients are asked for, so none are disturbed. */
static double objective(void *context) {
    Case *c = context;
    Error err;
    double loss = 0.0;
    HeadShape shape = c->shape;
    shape.need_dx = shape.train_weight = 0;
    assert_ok(c->backend.head_loss(&c->exec, &shape, &c->batch, c->x, &c->weight, &loss, NULL, NULL, NULL, c->workspace, &err),
              &err);
    return loss * (double)c->batch.grad_scale;
}

static void test_gradients_in_every_format(void **state) {
    (void)state;
    for (int format = 0; format < WEIGHT_FORMATS; format++) {
        int four_bit = format == WEIGHT_NF4 || format == WEIGHT_FP4;
        for (int nested = 0; nested <= four_bit; nested++) {
            Case c;
            open_case(&c, DTYPE_F64, 1, (WeightFormat)format, nested, 10, format == WEIGHT_F64);
            run(&c);
            double alone = objective(&c);
            assert_true(fabs((c.loss - 2.0) * 0.125 - alone) <= 1e-12 * alone); /* accumulated onto 2 */
            assert_gradient("dx", c.x, 10 * HIDDEN, c.dx, 0.0, objective, &c);
            if (format == WEIGHT_F64) {
                double *w = (double *)(uintptr_t)c.weight.data;
                assert_gradient("dW", w, VOCAB * HIDDEN, c.d_weight, 0.5, objective, &c);
            }
            close_case(&c);
        }
    }
}

/* A teacher's distribution takes the target's place: gradients by differences, and nothing to learn from oneself. */
static void test_teacher(void **state) {
    (void)state;
    Case c;
    Error err;
    OpPlan plan;
    open_case(&c, DTYPE_F64, 1, WEIGHT_F64, 0, 10, 1);
    double *teacher = scope_random(&c.scope, DTYPE_F64, 10 * HIDDEN, 1.0);
    c.batch.teacher = teacher;
    assert_refused(
        c.backend.head_loss(&c.exec, &c.shape, &c.batch, c.x, &c.weight, &c.loss, c.nll, c.dx, c.d_weight, c.workspace, &err),
        &err, "no room");
    c.shape.distill = 1;
    assert_ok(c.backend.head_plan(&c.exec.config, &c.shape, &plan, &err), &err);
    c.workspace = scope_scratch(&c.scope, plan.forward_workspace);
    run(&c);
    for (int64_t j = 0; j < c.batch.supervised; j++)
        assert_true(c.nll[j] > 0.0f);
    assert_gradient("dx", c.x, 10 * HIDDEN, c.dx, 0.0, objective, &c);
    c.batch.teacher = c.x;
    run(&c);
    assert_true(fabs(c.loss - 2.0) <= 1e-12); /* accumulated onto 2: a divergence of 0 in double */
    for (int64_t i = 0; i < 10 * HIDDEN; i++)
        assert_true(fabs(((double *)c.dx)[i]) <= 1e-14);
    close_case(&c);
}

static void test_rows_without_loss(void **state) {
    (void)state;
    Case c;
    open_case(&c, DTYPE_F32, 1, WEIGHT_F32, 0, 10, 1);
    run(&c);
    static const float zeros[HIDDEN];
    for (int64_t t = 1; t < 10; t += 3)
        assert_memory_equal((float *)c.dx + t * HIDDEN, zeros, sizeof zeros);
    c.batch.supervised = 0; /* a micro-batch without any loss */
    run(&c);
    assert_true(c.loss == 2.0);
    for (int64_t t = 0; t < 10; t++)
        assert_memory_equal((float *)c.dx + t * HIDDEN, zeros, sizeof zeros);
    close_case(&c);
}

static void test_logits_and_loss(void **state) {
    (void)state;
    Case c;
    Error err;
    open_case(&c, DTYPE_F32, 1, WEIGHT_NF4, 1, 10, 0);
    run(&c);
    float *logits = scope_nan(&c.scope, DTYPE_F32, c.batch.supervised * VOCAB);
    const int32_t *targets = c.batch.targets;
    c.batch.targets = NULL;
    assert_ok(c.backend.head_logits(&c.exec, &c.shape, &c.batch, c.x, &c.weight, logits, c.workspace, &err), &err);
    c.batch.targets = targets;
    double sum = 2.0;
    for (int64_t j = 0; j < c.batch.supervised; j++) {
        double total = 0.0;
        for (int64_t v = 0; v < VOCAB; v++)
            total += exp((double)logits[j * VOCAB + v]);
        double nll = log(total) - (double)logits[j * VOCAB + c.batch.targets[j]];
        sum += nll;
        double got = (double)c.nll[j];
        assert_close("nll", DTYPE_F64, &got, &nll, 1, 1e-6, "logits and nll were rounded to FP32");
    }
    assert_close("loss", DTYPE_F64, &c.loss, &sum, 1, 1e-6, "logits were rounded to FP32");
    close_case(&c);
}

/* More rows than a chunk: the same as two calls, cut elsewhere than where the chunks are. */
static void test_chunks(void **state) {
    (void)state;
    enum { TOKENS = 1700 };
    assert_int_equal(head_chunk_rows(VOCAB), 1024);
    Case whole, parts;
    open_case(&whole, DTYPE_F32, 1, WEIGHT_F32, 0, TOKENS, 1);
    open_case(&parts, DTYPE_F32, 1, WEIGHT_F32, 0, TOKENS, 1);
    assert_true(whole.batch.supervised > 1024);
    run(&whole);
    Batch batch = parts.batch;
    double loss = 0.0;
    float *dx = scope_filled(&parts.scope, DTYPE_F32, TOKENS * HIDDEN, 0.0);
    for (int64_t first = 0; first < batch.supervised; first += 400) {
        parts.batch.rows = batch.rows + first;
        parts.batch.targets = batch.targets + first;
        parts.batch.supervised = batch.supervised - first < 400 ? batch.supervised - first : 400;
        run(&parts);
        loss += parts.loss - 2.0;
        for (int64_t i = 0; i < TOKENS * HIDDEN; i++)
            dx[i] += ((float *)parts.dx)[i];
    }
    double got = whole.loss - 2.0;
    assert_close("loss", DTYPE_F64, &got, &loss, 1, 1e-12, "doubles added in another grouping");
    assert_memory_equal(dx, whole.dx, TOKENS * HIDDEN * sizeof(float));
    assert_close("dW", DTYPE_F32, whole.d_weight, parts.d_weight, VOCAB * HIDDEN, 5e-7,
                 "FP32 gradients accumulated 2 and 3 times: half an ulp each");
    close_case(&whole);
    close_case(&parts);
}

static void test_threads(void **state) {
    (void)state;
    DType types[2] = {DTYPE_F32, DTYPE_BF16};
    for (int i = 0; i < 2; i++) {
        Case one, three;
        open_case(&one, types[i], 1, WEIGHT_BF16, 0, 10, 1);
        open_case(&three, types[i], 3, WEIGHT_BF16, 0, 10, 1);
        run(&one);
        run(&three);
        assert_true(one.loss == three.loss);
        scope_assert_same(&one.scope, &three.scope);
        close_case(&one);
        close_case(&three);
    }
}

static void test_one_rounding(void **state) {
    (void)state;
    Case half, exact;
    open_case(&half, DTYPE_BF16, 1, WEIGHT_BF16, 0, 10, 1);
    open_case(&exact, DTYPE_F32, 1, WEIGHT_BF16, 0, 10, 1);
    run(&half);
    run(&exact);
    assert_true(half.loss == exact.loss);
    assert_memory_equal(half.d_weight, exact.d_weight, VOCAB * HIDDEN * sizeof(float));
    for (int i = 0; i < 10 * HIDDEN; i++)
        assert_int_equal(((bf16 *)half.dx)[i], bf16_from_float(((float *)exact.dx)[i]));
    close_case(&half);
    close_case(&exact);
}

static void test_refusals(void **state) {
    (void)state;
    Case c;
    Error err;
    OpPlan plan;
    double loss = 0.0;
    open_case(&c, DTYPE_F32, 1, WEIGHT_F32, 0, 10, 0);
    run(&c);
    HeadShape bad = c.shape;
    bad.vocab = 0;
    assert_refused(c.backend.head_plan(&c.exec.config, &bad, &plan, &err), &err, "vocab");
    Batch batch = c.batch;
    batch.targets = (int32_t[]){VOCAB};
    batch.supervised = 1;
    assert_refused(c.backend.head_loss(&c.exec, &c.shape, &batch, c.x, &c.weight, &loss, NULL, c.dx, NULL, c.workspace, &err),
                   &err, "target");
    batch.rows = (int32_t[]){3, 3};
    batch.supervised = 2;
    batch.targets = c.batch.targets;
    assert_refused(c.backend.head_loss(&c.exec, &c.shape, &batch, c.x, &c.weight, &loss, NULL, c.dx, NULL, c.workspace, &err),
                   &err, "row");
    close_case(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradients_in_every_format),
        cmocka_unit_test(test_teacher),
        cmocka_unit_test(test_rows_without_loss),
        cmocka_unit_test(test_logits_and_loss),
        cmocka_unit_test(test_chunks),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_one_rounding),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
