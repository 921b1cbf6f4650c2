/* Embedding: rows of the table in any format; its gradient, tied to a head's or not, adds up over equal ids. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "tests/support/compare.h"
#include "tests/support/scope.h"

enum { ROWS = 9, TOKENS = 7, VOCAB = 4, HIDDEN = 96, COUNT = TOKENS * HIDDEN };

typedef struct Case {
    Backend backend;
    EmbedShape shape;
    Exec exec;
    Scope scope;
    Batch batch;
    WeightView table;
    void *y, *dy, *d_table;
} Case;

static void open_case(Case *c, DType act, int threads, WeightFormat format) {
    Error err;
    OpPlan plan;
    *c = (Case){.shape = {ROWS, VOCAB, HIDDEN, 1}};
    cpu_backend_reference(&c->backend);
    c->exec = exec_open(act, threads);
    c->batch = scope_batch(&c->scope, (int64_t[]){TOKENS}, 1, VOCAB);
    assert_ok(c->backend.embed_plan(&c->exec.config, &c->shape, &plan, &err), &err);
    assert_true(plan.saved == 0 && plan.forward_workspace == 0 && plan.backward_workspace == 0);
    c->table = scope_weight(&c->scope, format, VOCAB, HIDDEN, 32, 0);
    c->y = scope_nan(&c->scope, act, ROWS * HIDDEN);
    c->dy = scope_random(&c->scope, act, COUNT, 1.0);
    c->d_table = scope_filled(&c->scope, act == DTYPE_F64 ? DTYPE_F64 : DTYPE_F32, VOCAB * HIDDEN, 0.5);
}

static void run(Case *c) {
    Error err;
    assert_ok(c->backend.embed_forward(&c->exec, &c->shape, &c->batch, &c->table, c->y, &err), &err);
    assert_ok(c->backend.embed_backward(&c->exec, &c->shape, &c->batch, c->dy, c->d_table, NULL, &err), &err);
}

static void close_case(Case *c) {
    size_t size = dtype_size(c->exec.config.act);
    assert_untouched("y", (char *)c->y + COUNT * size, (ROWS - TOKENS) * HIDDEN * size);
    scope_close(&c->scope);
    exec_close(&c->exec);
}

static double objective(void *context) {
    Case *c = context;
    Error err;
    assert_ok(c->backend.embed_forward(&c->exec, &c->shape, &c->batch, &c->table, c->y, &err), &err);
    return dot_f64(c->y, c->dy, COUNT);
}

static void test_gradient(void **state) {
    (void)state;
    Case c;
    open_case(&c, DTYPE_F64, 1, WEIGHT_F64);
    run(&c);
    double *table = (double *)(uintptr_t)c.table.data;
    assert_gradient("d_table", table, VOCAB * HIDDEN, c.d_table, 0.5, objective, &c);
    close_case(&c);
}

static void test_frozen(void **state) {
    (void)state;
    Case c;
    Error err;
    open_case(&c, DTYPE_F32, 1, WEIGHT_F32);
    c.shape.train = 0;
    assert_ok(c.backend.embed_backward(&c.exec, &c.shape, &c.batch, c.dy, NULL, NULL, &err), &err);
    assert_ok(c.backend.embed_forward(&c.exec, &c.shape, &c.batch, &c.table, c.y, &err), &err);
    close_case(&c);
}

static void test_rows_in_every_format(void **state) {
    (void)state;
    for (int format = 0; format < WEIGHT_FORMATS; format++) {
        if (format == WEIGHT_F64) continue;
        Case c;
        open_case(&c, DTYPE_BF16, 1, (WeightFormat)format);
        run(&c);
        for (int64_t t = 0; t < TOKENS; t++) {
            bf16 want[HIDDEN];
            c.backend.dequantize(&c.table, c.batch.ids[t] * HIDDEN, HIDDEN, want, DTYPE_BF16);
            assert_memory_equal((bf16 *)c.y + t * HIDDEN, want, sizeof want);
        }
        close_case(&c);
    }
}

static void test_threads(void **state) {
    (void)state;
    Case one, three;
    open_case(&one, DTYPE_BF16, 1, WEIGHT_BF16);
    open_case(&three, DTYPE_BF16, 3, WEIGHT_BF16);
    run(&one);
    run(&three);
    scope_assert_same(&one.scope, &three.scope);
    close_case(&one);
    close_case(&three);
}

/* Tied weights: embedding and head accumulate into one gradient, each without disturbing the other's part. */
static void test_tied_with_head(void **state) {
    (void)state;
    Case c;
    Error err;
    OpPlan plan;
    double loss = 0.0;
    open_case(&c, DTYPE_F64, 1, WEIGHT_F64);
    HeadShape head = {
        .rows = ROWS, .hidden = HIDDEN, .vocab = VOCAB, .supervised = ROWS, .format = WEIGHT_F64, .train_weight = 1};
    assert_ok(c.backend.head_plan(&c.exec.config, &head, &plan, &err), &err);
    void *workspace = scope_scratch(&c.scope, plan.forward_workspace);
    double *apart = scope_filled(&c.scope, DTYPE_F64, VOCAB * HIDDEN, 0.0);
    run(&c);
    double *together = c.d_table;
    double before[VOCAB * HIDDEN];
    memcpy(before, together, sizeof before);
    for (int i = 0; i < 2; i++) {
        assert_ok(c.backend.head_loss(&c.exec, &head, &c.batch, c.y, &c.table, &loss, NULL, NULL, i == 0 ? together : apart,
                                      workspace, &err),
                  &err);
    }
    for (int i = 0; i < VOCAB * HIDDEN; i++)
        assert_true(together[i] == before[i] + apart[i]);
    close_case(&c);
}

static void test_refusals(void **state) {
    (void)state;
    Case c;
    Error err;
    OpPlan plan;
    open_case(&c, DTYPE_F32, 1, WEIGHT_F32);
    run(&c);
    assert_refused(c.backend.embed_plan(&c.exec.config, &(EmbedShape){1, 0, 4, 0}, &plan, &err), &err, "vocab");
    int32_t ids[TOKENS] = {0, 1, VOCAB};
    c.batch.ids = ids;
    assert_refused(c.backend.embed_forward(&c.exec, &c.shape, &c.batch, &c.table, c.y, &err), &err, "token id");
    ids[2] = -1;
    assert_refused(c.backend.embed_backward(&c.exec, &c.shape, &c.batch, c.dy, c.d_table, NULL, &err), &err, "token id");
    c.table.cols = HIDDEN - 1;
    ids[2] = 0;
    assert_refused(c.backend.embed_forward(&c.exec, &c.shape, &c.batch, &c.table, c.y, &err), &err, "weight");
    close_case(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradient), cmocka_unit_test(test_frozen),         cmocka_unit_test(test_rows_in_every_format),
        cmocka_unit_test(test_threads),  cmocka_unit_test(test_tied_with_head), cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
