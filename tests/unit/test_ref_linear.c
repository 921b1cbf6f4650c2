/* Linear group against finite differences: every weight format, adapters with dropout, biases, trained weights. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "core/philox.h"
#include "tests/support/compare.h"
#include "tests/support/scope.h"

enum { ROWS = 9, TOKENS = 7, IN = 96, MEMBERS = 3, COUNT = TOKENS * IN };

typedef struct Case {
    Backend backend;
    LinearShape shape;
    Exec exec;
    Scope scope;
    Batch batch;
    LinearOperand operand[MEMBERS];
    LinearGrad grad[MEMBERS];
    void *x, *y[MEMBERS], *dx, *saved, *forward_workspace, *backward_workspace;
    const void *dy[MEMBERS];
} Case;

/* Member 0: adapter with dropout; 1: bias, trained, adapter without dropout; 2: a bare weight. */
static LinearShape shape_of(WeightFormat format) {
    return (LinearShape){.rows = ROWS,
                         .in = IN,
                         .count = MEMBERS,
                         .need_dx = 1,
                         .linear = {{.out = 11,
                                     .format = format,
                                     .rank = 4,
                                     .lora_scale = 2.0f,
                                     .dropout = 0.25f,
                                     .dropout_stream = 5,
                                     .train_weight = 1},
                                    {.out = 3, .format = format, .rank = 2, .lora_scale = 0.5f, .has_bias = 1, .train_bias = 1},
                                    {.out = 5, .format = format, .has_bias = 1}}};
}

static void open_member(Case *c, int i, DType act, int nested) {
    const LinearSpec *spec = &c->shape.linear[i];
    DType wide = act == DTYPE_F64 ? DTYPE_F64 : DTYPE_F32;
    LinearOperand *operand = &c->operand[i];
    operand->weight = scope_weight(&c->scope, spec->format, spec->out, IN, 32, nested);
    if (spec->has_bias) operand->bias = scope_random(&c->scope, act, spec->out, 1.0);
    if (spec->rank > 0) {
        operand->lora_a = scope_random(&c->scope, act, spec->rank * IN, 0.3);
        operand->lora_b = scope_random(&c->scope, act, spec->out * spec->rank, 0.3);
        c->grad[i].lora_a = scope_filled(&c->scope, wide, spec->rank * IN, 0.5);
        c->grad[i].lora_b = scope_filled(&c->scope, wide, spec->out * spec->rank, 0.5);
    }
    if (spec->train_weight) c->grad[i].weight = scope_filled(&c->scope, wide, spec->out * IN, 0.5);
    if (spec->train_bias) c->grad[i].bias = scope_filled(&c->scope, wide, spec->out, 0.5);
    c->dy[i] = scope_random(&c->scope, act, TOKENS * spec->out, 1.0);
    c->y[i] = scope_nan(&c->scope, act, ROWS * spec->out);
}

static void open_case(Case *c, const LinearShape *shape, DType act, int threads, int nested) {
    Error err;
    OpPlan plan;
    *c = (Case){.shape = *shape};
    cpu_backend_reference(&c->backend);
    c->exec = exec_open(act, threads);
    c->batch = scope_batch(&c->scope, (int64_t[]){4, 3}, 2, 3);
    assert_ok(c->backend.linear_plan(&c->exec.config, &c->shape, &plan, &err), &err);
    c->x = scope_random(&c->scope, act, COUNT, 1.0);
    for (int i = 0; i < c->shape.count; i++)
        open_member(c, i, act, nested);
    c->dx = c->shape.need_dx ? scope_nan(&c->scope, act, ROWS * IN) : NULL;
    c->saved = scope_bytes(&c->scope, plan.saved);
    c->forward_workspace = scope_scratch(&c->scope, plan.forward_workspace);
    c->backward_workspace = scope_scratch(&c->scope, plan.backward_workspace);
}

static void forward(Case *c) {
    Error err;
    assert_ok(
        c->backend.linear_forward(&c->exec, &c->shape, &c->batch, c->x, c->operand, c->y, c->saved, c->forward_workspace, &err),
        &err);
}

static void backward(Case *c) {
    Error err;
    assert_ok(c->backend.linear_backward(&c->exec, &c->shape, &c->batch, c->x, c->operand, c->saved, c->dy, c->dx, c->grad,
                                         c->backward_workspace, &err),
              &err);
}

static void close_case(Case *c) {
    size_t size = dtype_size(c->exec.config.act);
    for (int i = 0; i < c->shape.count; i++) {
        size_t row = (size_t)c->shape.linear[i].out * size;
        assert_untouched("y", (char *)c->y[i] + TOKENS * row, (ROWS - TOKENS) * row);
    }
    scope_close(&c->scope);
    exec_close(&c->exec);
}

static double objective(void *context) {
    Case *c = context;
    double sum = 0.0;
    forward(c);
    for (int i = 0; i < c->shape.count; i++)
        sum += dot_f64(c->y[i], c->dy[i], TOKENS * c->shape.linear[i].out);
    return sum;
}

static void check_gradients(Case *c) {
    forward(c);
    backward(c);
    assert_gradient("dx", c->x, COUNT, c->dx, 0.0, objective, c);
    for (int i = 0; i < c->shape.count; i++) {
        const LinearSpec *spec = &c->shape.linear[i];
        if (spec->rank > 0) {
            double *a = (double *)(uintptr_t)c->operand[i].lora_a, *b = (double *)(uintptr_t)c->operand[i].lora_b;
            assert_gradient("dA", a, spec->rank * IN, c->grad[i].lora_a, 0.5, objective, c);
            assert_gradient("dB", b, spec->out * spec->rank, c->grad[i].lora_b, 0.5, objective, c);
        }
        if (spec->train_weight && spec->format == WEIGHT_F64) {
            double *w = (double *)(uintptr_t)c->operand[i].weight.data;
            assert_gradient("dW", w, spec->out * IN, c->grad[i].weight, 0.5, objective, c);
        }
        if (spec->train_bias) {
            double *bias = (double *)(uintptr_t)c->operand[i].bias;
            assert_gradient("dbias", bias, spec->out, c->grad[i].bias, 0.5, objective, c);
        }
    }
}

static void test_gradients_in_every_format(void **state) {
    (void)state;
    for (int format = 0; format < WEIGHT_FORMATS; format++) {
        int four_bit = format == WEIGHT_NF4 || format == WEIGHT_FP4;
        for (int nested = 0; nested <= four_bit; nested++) {
            LinearShape shape = shape_of((WeightFormat)format);
            Case c;
            open_case(&c, &shape, DTYPE_F64, 1, nested);
            check_gradients(&c);
            close_case(&c);
        }
    }
}

static void test_without_dropout_and_without_dx(void **state) {
    (void)state;
    LinearShape shape = shape_of(WEIGHT_F64);
    Case c, without;
    open_case(&c, &shape, DTYPE_F64, 1, 0);
    c.batch.dropout = 0;
    check_gradients(&c);
    shape.need_dx = 0;
    open_case(&without, &shape, DTYPE_F64, 1, 0);
    without.batch.dropout = 0;
    forward(&without);
    backward(&without);
    assert_memory_equal(without.y[0], c.y[0], TOKENS * 11 * sizeof(double));
    for (int i = 0; i < 2; i++) {
        size_t rank = (size_t)shape.linear[i].rank;
        assert_memory_equal(without.grad[i].lora_a, c.grad[i].lora_a, rank * IN * sizeof(double));
    }
    close_case(&c);
    close_case(&without);
}

/* A frozen adapter: its gradients are not asked for. */
static void test_frozen_adapter(void **state) {
    (void)state;
    LinearShape shape = shape_of(WEIGHT_NF4);
    Case c, frozen;
    open_case(&c, &shape, DTYPE_F32, 1, 0);
    open_case(&frozen, &shape, DTYPE_F32, 1, 0);
    frozen.grad[0].lora_a = frozen.grad[0].lora_b = NULL;
    forward(&c);
    backward(&c);
    forward(&frozen);
    backward(&frozen);
    assert_memory_equal(frozen.dx, c.dx, COUNT * sizeof(float));
    close_case(&c);
    close_case(&frozen);
}

/* s is what the mask of core/philox.h says, written out. */
static void test_dropout_mask(void **state) {
    (void)state;
    LinearShape shape = shape_of(WEIGHT_F64);
    Case c;
    open_case(&c, &shape, DTYPE_F64, 1, 0);
    forward(&c);
    const double *x = c.x, *a = c.operand[0].lora_a, *s = c.saved;
    uint32_t threshold = dropout_threshold(0.25f);
    int64_t dropped = 0;
    for (int64_t t = 0; t < TOKENS; t++) {
        for (int64_t r = 0; r < 4; r++) {
            double want = 0.0;
            for (int64_t f = 0; f < IN; f++) {
                int keep =
                    dropout_keep(c.batch.seed, 5, c.batch.samples[t], (uint32_t)c.batch.positions[t], (uint32_t)f, threshold);
                dropped += !keep;
                if (keep) want += x[t * IN + f] / 0.75 * a[r * IN + f];
            }
            assert_close("s", DTYPE_F64, &s[t * 4 + r], &want, 1, 1e-12, "sums of 96 doubles in another order");
        }
    }
    double fraction = (double)dropped / (double)(TOKENS * 4 * IN);
    assert_true(fraction > 0.25 - 0.067 && fraction < 0.25 + 0.067); /* 4 sigma of 672 draws with p = 0.25 */
    close_case(&c);
}

/* Masks belong to samples and positions, so a sequence gives the same rows alone. */
static void test_packed_is_separate(void **state) {
    (void)state;
    LinearShape shape = shape_of(WEIGHT_NF4);
    Case packed, alone;
    open_case(&packed, &shape, DTYPE_F32, 1, 0);
    open_case(&alone, &shape, DTYPE_F32, 1, 0);
    forward(&packed);
    alone.batch = scope_batch_part(&alone.scope, &alone.batch, 1);
    memmove(alone.x, (float *)alone.x + 4 * IN, 3 * IN * sizeof(float));
    forward(&alone);
    assert_memory_equal(alone.y[0], (float *)packed.y[0] + 4 * 11, 3 * 11 * sizeof(float));
    close_case(&packed);
    close_case(&alone);
}

static void test_threads(void **state) {
    (void)state;
    DType types[2] = {DTYPE_F32, DTYPE_BF16};
    LinearShape shape = shape_of(WEIGHT_NF4);
    for (int i = 0; i < 2; i++) {
        Case one, three;
        open_case(&one, &shape, types[i], 1, 1);
        open_case(&three, &shape, types[i], 3, 1);
        forward(&one);
        backward(&one);
        forward(&three);
        backward(&three);
        scope_assert_same(&one.scope, &three.scope);
        close_case(&one);
        close_case(&three);
    }
}

/* Without an adapter there is one rounding: BF16 is the rounded F32 result, for weights that are BF16 themselves. */
static void test_one_rounding(void **state) {
    (void)state;
    LinearShape shape = shape_of(WEIGHT_BF16);
    for (int i = 0; i < MEMBERS; i++)
        shape.linear[i].rank = 0;
    Case half, exact;
    open_case(&half, &shape, DTYPE_BF16, 1, 0);
    open_case(&exact, &shape, DTYPE_F32, 1, 0);
    forward(&half);
    backward(&half);
    forward(&exact);
    backward(&exact);
    for (int i = 0; i < TOKENS * 11; i++)
        assert_int_equal(((bf16 *)half.y[0])[i], bf16_from_float(((float *)exact.y[0])[i]));
    for (int i = 0; i < COUNT; i++)
        assert_int_equal(((bf16 *)half.dx)[i], bf16_from_float(((float *)exact.dx)[i]));
    assert_memory_equal(half.grad[0].weight, exact.grad[0].weight, 11 * IN * sizeof(float));
    close_case(&half);
    close_case(&exact);
}

static void test_refusals(void **state) {
    (void)state;
    LinearShape shape = shape_of(WEIGHT_NF4), bad;
    Case c;
    Error err;
    OpPlan plan;
    open_case(&c, &shape, DTYPE_F32, 1, 0);
    forward(&c);
    bad = shape;
    bad.count = 4;
    assert_refused(c.backend.linear_plan(&c.exec.config, &bad, &plan, &err), &err, "members");
    bad = shape;
    bad.linear[1].dropout = 1.0f;
    assert_refused(c.backend.linear_plan(&c.exec.config, &bad, &plan, &err), &err, "dropout");
    bad = shape;
    bad.linear[0].format = WEIGHT_F64;
    assert_refused(c.backend.linear_plan(&c.exec.config, &bad, &plan, &err), &err, "f64");
    bad = shape;
    bad.linear[0].train_bias = 1;
    assert_refused(c.backend.linear_plan(&c.exec.config, &bad, &plan, &err), &err, "bias");
    bad = shape;
    bad.rows = bad.linear[0].rank = INT64_C(2147483647);
    assert_refused(c.backend.linear_plan(&c.exec.config, &bad, &plan, &err), &err, "memory");
    c.operand[0].weight.block_size = 48;
    assert_refused(
        c.backend.linear_forward(&c.exec, &c.shape, &c.batch, c.x, c.operand, c.y, c.saved, c.forward_workspace, &err), &err,
        "block size");
    close_case(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradients_in_every_format),
        cmocka_unit_test(test_without_dropout_and_without_dx),
        cmocka_unit_test(test_frozen_adapter),
        cmocka_unit_test(test_dropout_mask),
        cmocka_unit_test(test_packed_is_separate),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_one_rounding),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
