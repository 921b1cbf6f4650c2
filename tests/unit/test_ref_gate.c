/* Gated activation against finite differences; threads; rounding; aliasing. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "tests/support/compare.h"
#include "tests/support/scope.h"

enum { ROWS = 9, TOKENS = 7, WIDTH = 5, COUNT = TOKENS * WIDTH };

typedef struct Case {
    Backend backend;
    Exec exec;
    Scope scope;
    Batch batch;
    void *gate, *up, *dy, *y, *d_gate, *d_up;
} Case;

static GateShape shape = {.rows = ROWS, .width = WIDTH}; /* kind: of the test at work */

static void open_case(Case *c, DType act, int threads) {
    Error err;
    OpPlan plan;
    *c = (Case){0};
    cpu_backend_reference(&c->backend);
    c->exec = exec_open(act, threads);
    c->batch = scope_batch(&c->scope, (int64_t[]){TOKENS}, 1, 3);
    assert_ok(c->backend.gate_plan(&c->exec.config, &shape, &plan, &err), &err);
    assert_true(plan.saved == 0 && plan.forward_workspace == 0 && plan.backward_workspace == 0);
    c->gate = scope_random(&c->scope, act, COUNT, 3.0);
    c->up = scope_random(&c->scope, act, COUNT, 1.0);
    c->dy = scope_random(&c->scope, act, COUNT, 1.0);
    c->y = scope_nan(&c->scope, act, ROWS * WIDTH);
    c->d_gate = scope_nan(&c->scope, act, ROWS * WIDTH);
    c->d_up = scope_nan(&c->scope, act, ROWS * WIDTH);
}

static void close_case(Case *c) {
    size_t used = COUNT * dtype_size(c->exec.config.act), rest = (ROWS - TOKENS) * WIDTH * dtype_size(c->exec.config.act);
    assert_untouched("y", (char *)c->y + used, rest);
    scope_close(&c->scope);
    exec_close(&c->exec);
}

static double objective(void *context) {
    Case *c = context;
    Error err;
    assert_ok(c->backend.gate_forward(&c->exec, &shape, &c->batch, c->gate, c->up, c->y, &err), &err);
    return dot_f64(c->y, c->dy, COUNT);
}

static void run(Case *c) {
    Error err;
    assert_ok(c->backend.gate_forward(&c->exec, &shape, &c->batch, c->gate, c->up, c->y, &err), &err);
    assert_ok(c->backend.gate_backward(&c->exec, &shape, &c->batch, c->gate, c->up, c->dy, c->d_gate, c->d_up, &err), &err);
}

static void test_gradients(void **state) {
    (void)state;
    Case c;
    open_case(&c, DTYPE_F64, 1);
    run(&c);
    assert_gradient("d_gate", c.gate, COUNT, c.d_gate, 0.0, objective, &c);
    assert_gradient("d_up", c.up, COUNT, c.d_up, 0.0, objective, &c);
    close_case(&c);
}

static void test_threads_and_rounding(void **state) {
    (void)state;
    Case one, three, exact;
    open_case(&one, DTYPE_BF16, 1);
    open_case(&three, DTYPE_BF16, 3);
    open_case(&exact, DTYPE_F32, 1);
    run(&one);
    run(&three);
    run(&exact);
    scope_assert_same(&one.scope, &three.scope);
    for (int i = 0; i < COUNT; i++) {
        assert_int_equal(((bf16 *)one.y)[i], bf16_from_float(((float *)exact.y)[i]));
        assert_int_equal(((bf16 *)one.d_gate)[i], bf16_from_float(((float *)exact.d_gate)[i]));
    }
    close_case(&one);
    close_case(&three);
    close_case(&exact);
}

static void test_in_place(void **state) {
    (void)state;
    Case c;
    Error err;
    open_case(&c, DTYPE_F32, 1);
    run(&c);
    assert_ok(c.backend.gate_backward(&c.exec, &shape, &c.batch, c.gate, c.up, c.dy, c.gate, c.dy, &err), &err);
    assert_memory_equal(c.gate, c.d_gate, COUNT * sizeof(float));
    assert_memory_equal(c.dy, c.d_up, COUNT * sizeof(float));
    close_case(&c);
}

static void test_extremes(void **state) {
    (void)state;
    Case c;
    open_case(&c, DTYPE_F32, 1);
    ((float *)c.gate)[0] = -1000.0f; /* exp overflows inside the sigmoid: the limit is 0, not NaN */
    ((float *)c.gate)[1] = 1000.0f;
    ((float *)c.gate)[2] = 3e38f; /* squares and cubes overflow: the slope's limits are 1 and 0, not NaN */
    ((float *)c.gate)[3] = -3e38f;
    ((float *)c.up)[2] = ((float *)c.up)[3] = 1.0f;
    run(&c);
    assert_true(((float *)c.y)[0] == 0.0f);
    assert_true(((float *)c.y)[1] == 1000.0f * ((float *)c.up)[1]);
    assert_true(((float *)c.y)[2] == 3e38f && ((float *)c.y)[3] == 0.0f);
    assert_true(((float *)c.d_gate)[2] == ((float *)c.dy)[2] && ((float *)c.d_gate)[3] == 0.0f);
    close_case(&c);
}

static void test_nan_stays(void **state) {
    (void)state;
    Case c;
    open_case(&c, DTYPE_F32, 1);
    ((float *)c.gate)[4] = NAN;
    run(&c);
    assert_true(isnan(((float *)c.y)[4]) && isnan(((float *)c.d_gate)[4]) && isnan(((float *)c.d_up)[4]));
    close_case(&c);
}

/* PyTorch 2.15: F.gelu(torch.tensor(g, dtype=torch.float64), approximate="tanh") */
static void test_gelu_values(void **state) {
    (void)state;
    static const double values[][2] = {
        {-4.0, -7.024594819227126e-05}, {-1.25, -0.13228579703028542}, {-0.5, -0.15428599017485606}, {0.0, 0.0},
        {0.75, 0.5799605551656203},     {1.0, 0.8411919906082768},     {3.5, 3.499383802344626}};
    Case c;
    open_case(&c, DTYPE_F64, 1);
    for (int i = 0; i < (int)(sizeof values / sizeof *values); i++)
        ((double *)c.gate)[i] = values[i][0], ((double *)c.up)[i] = 1.0;
    run(&c);
    for (int i = 0; i < (int)(sizeof values / sizeof *values); i++)
        assert_true(fabs(((double *)c.y)[i] - values[i][1]) <= 1e-15); /* a few roundings of numbers below 4 */
    close_case(&c);
}

static void test_refusals(void **state) {
    (void)state;
    Case c;
    Error err;
    OpPlan plan;
    open_case(&c, DTYPE_F32, 1);
    run(&c);
    assert_refused(c.backend.gate_plan(&c.exec.config, &(GateShape){.rows = 0, .width = 4}, &plan, &err), &err, "rows");
    assert_refused(c.backend.gate_plan(&c.exec.config, &(GateShape){.rows = 4, .width = -1}, &plan, &err), &err, "width");
    assert_refused(c.backend.gate_plan(&(ExecConfig){DTYPE_F16, 1}, &shape, &plan, &err), &err, "F16");
    assert_refused(c.backend.gate_plan(&c.exec.config, &(GateShape){.rows = 4, .width = 4, .kind = (GateKind)7}, &plan, &err),
                   &err, "number 7");
    c.batch.tokens = ROWS + 1;
    assert_refused(c.backend.gate_forward(&c.exec, &shape, &c.batch, c.gate, c.up, c.y, &err), &err, "tokens");
    close_case(&c);
}

static int with_silu(void **state) {
    (void)state;
    shape.kind = GATE_SILU;
    return 0;
}

static int with_gelu(void **state) {
    (void)state;
    shape.kind = GATE_GELU_TANH;
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_gradients, with_silu), cmocka_unit_test_setup(test_threads_and_rounding, with_silu),
        cmocka_unit_test_setup(test_in_place, with_silu),  cmocka_unit_test_setup(test_extremes, with_silu),
        cmocka_unit_test_setup(test_nan_stays, with_silu), cmocka_unit_test_setup(test_refusals, with_silu),
        cmocka_unit_test_setup(test_gradients, with_gelu), cmocka_unit_test_setup(test_threads_and_rounding, with_gelu),
        cmocka_unit_test_setup(test_in_place, with_gelu),  cmocka_unit_test_setup(test_extremes, with_gelu),
        cmocka_unit_test_setup(test_nan_stays, with_gelu), cmocka_unit_test_setup(test_gelu_values, with_gelu),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
