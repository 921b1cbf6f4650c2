/* AdamW against torch.optim.AdamW and against its recursion in double; sums of squares are in test_ref_check.c. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "tests/support/compare.h"
#include "tests/support/scope.h"

/* Made by tests/peers/adamw_golden.py with torch 2.15.0: parameters after each of five steps. */
static const double golden[5][4] = {
    {0.48950000079999995, -1.2387500004000001, 1.9880000002666667, -0.0021953124000000023},
    {0.4796887053545269, -1.2411722855773546, 1.9889476122571175, -0.0088936995341811313},
    {0.48127258679639928, -1.2440876251649795, 1.9892279012120961, -0.016914191165689568},
    {0.48247918656171651, -1.2377730733524412, 1.9871093904401653, -0.020526864772321275},
    {0.47740838462570301, -1.2336749164237215, 1.9888517001475881, -0.023574171492311047},
};
static const float gradients[5][4] = {
    {0.125f, -0.25f, 0.375f, 1.0f},
    {0.0625f, 0.5f, -0.625f, 0.0f},
    {-0.25f, 0.125f, 0.0f, 2.0f},
    {0.0001220703125f, -3.0f, 0.25f, -1.0f},
    {0.75f, 0.75f, -0.75f, 0.0000019073486328125f},
};

static void check_golden(double clip) {
    Backend backend;
    cpu_backend_reference(&backend);
    Exec exec = exec_open(DTYPE_BF16, 1);
    float master[4] = {0.5f, -1.25f, 2.0f, 0.0078125f}, m[4] = {0}, v[4] = {0}, grad[4];
    bf16 copy[4];
    for (int step = 0; step < 5; step++) {
        AdamStep adam = {
            .lr = 1e-2, .beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8, .weight_decay = 0.1, .clip = clip, .step = step + 1};
        for (int i = 0; i < 4; i++)
            grad[i] = gradients[step][i] / (float)clip;
        backend.adamw(&exec, 4, master, m, v, grad, copy, &adam);
        double got[4];
        for (int i = 0; i < 4; i++)
            got[i] = (double)master[i];
        assert_close("parameters", DTYPE_F64, got, golden[step], 4, 3e-7, "five roundings of the state to FP32");
        for (int i = 0; i < 4; i++)
            assert_int_equal(copy[i], bf16_from_float(master[i]));
    }
    exec_close(&exec);
}

static void test_torch(void **state) {
    (void)state;
    check_golden(1.0);
    check_golden(0.5); /* twice the gradients, clipped by a half: exact in binary */
}

typedef struct Case {
    Scope scope;
    float *master, *m, *v, *grad;
    void *copy;
} Case;

static void run(Case *c, DType act, int threads, int64_t count) {
    Backend backend;
    cpu_backend_reference(&backend);
    Exec exec = exec_open(act, threads);
    *c = (Case){0};
    c->master = scope_random(&c->scope, DTYPE_F32, count, 1.0);
    c->m = scope_filled(&c->scope, DTYPE_F32, count, 0.0);
    c->v = scope_filled(&c->scope, DTYPE_F32, count, 0.0);
    c->grad = scope_random(&c->scope, DTYPE_F32, count, 1.0);
    c->copy = scope_nan(&c->scope, act, count);
    for (int step = 1; step <= 3; step++) {
        AdamStep adam = {
            .lr = 1e-3, .beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8, .weight_decay = 0.01, .clip = 0.7, .step = step};
        backend.adamw(&exec, count, c->master, c->m, c->v, c->grad, c->copy, &adam);
    }
    exec_close(&exec);
}

/* The gradient is the same in each of three steps, so m and v have closed forms. */
static void test_recursion(void **state) {
    (void)state;
    enum { COUNT = 5000 };
    Case c, start;
    run(&c, DTYPE_F32, 1, COUNT);
    start = (Case){0};
    float *p0 = scope_random(&start.scope, DTYPE_F32, COUNT, 1.0);
    for (int i = 0; i < COUNT; i++) {
        double g = 0.7 * (double)c.grad[i], p = (double)p0[i];
        double m = g * (1.0 - pow(0.9, 3)), v = g * g * (1.0 - pow(0.95, 3));
        for (int step = 0; step < 3; step++) { /* bias correction cancels: m / (1 - b1^t) = g, v / (1 - b2^t) = g^2 */
            p -= 1e-3 * 0.01 * p;
            p -= 1e-3 * g / (fabs(g) + 1e-8);
        }
        double got[3] = {(double)c.master[i], (double)c.m[i], (double)c.v[i]}, want[3] = {p, m, v};
        assert_close("parameter, m, v", DTYPE_F64, got, want, 3, 5e-7, "three roundings of the state to FP32");
        assert_true(((float *)c.copy)[i] == c.master[i]);
    }
    scope_close(&start.scope);
    scope_close(&c.scope);
}

static void test_threads_and_no_copy(void **state) {
    (void)state;
    Case one, three;
    run(&one, DTYPE_BF16, 1, 10001);
    run(&three, DTYPE_BF16, 3, 10001);
    scope_assert_same(&one.scope, &three.scope);
    Backend backend;
    cpu_backend_reference(&backend);
    Exec exec = exec_open(DTYPE_BF16, 1);
    AdamStep adam = {.lr = 1e-3, .beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8, .weight_decay = 0.01, .clip = 0.7, .step = 4};
    backend.adamw(&exec, 10001, one.master, one.m, one.v, one.grad, one.copy, &adam);
    backend.adamw(&exec, 10001, three.master, three.m, three.v, three.grad, NULL, &adam);
    assert_memory_equal(one.master, three.master, 10001 * sizeof(float));
    exec_close(&exec);
    scope_close(&one.scope);
    scope_close(&three.scope);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_torch),
        cmocka_unit_test(test_recursion),
        cmocka_unit_test(test_threads_and_no_copy),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
