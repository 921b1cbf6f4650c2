/* The head towards a teacher through the plugin's own entry, against the reference: chunks, edges of vectors and blocks, trained
 * heads, teachers that are far off, and a teacher that is the student. */
#include "kernels/cuda/plugin.h"
#include "tests/cuda_emu/device.h"

extern const DevicePlugin nibble_device_plugin;

typedef struct Run {
    DType act;
    int64_t tokens, hidden, vocab;
    double student, teacher; /* spread of the inputs, and so of the logits; teacher 0: the student's */
    int train;
} Run;

typedef struct Case {
    Scope scope;
    Device device;
    Backend backend, reference;
    Exec exec, there;
    HeadShape shape;
    Batch batch;
    WeightView weight;
    const void *x, *teacher;
    /* by the reference */
    double loss;
    float *nll, *d_weight;
    void *dx;
} Case;

static void case_open(Case *c, const Run *run) {
    Error err = {0};
    OpPlan plan;
    char name[96];
    memset(c, 0, sizeof *c);
    WeightFormat format = run->act == DTYPE_BF16 ? WEIGHT_BF16 : WEIGHT_F32;
    int64_t count = run->tokens * run->hidden, weights = run->vocab * run->hidden;
    c->exec = exec_open(run->act, 1);
    c->there = (Exec){.config = {.act = run->act, .threads = 1}};
    cpu_backend_reference(&c->reference);
    c->backend = c->reference;
    nibble_device_plugin.install(&c->backend);
    assert_ok(nibble_device_plugin.open(0, &c->there.device, name, sizeof name, &err), &err);
    c->batch = scope_batch(&c->scope, &run->tokens, 1, (int32_t)run->vocab);
    c->x = scope_random(&c->scope, run->act, count, run->student);
    c->teacher = run->teacher > 0.0 ? scope_random(&c->scope, run->act, count, run->teacher) : c->x;
    c->weight = (WeightView){
        .format = format, .rows = run->vocab, .cols = run->hidden, .data = scope_random(&c->scope, run->act, weights, 1.0)};
    c->shape = (HeadShape){.rows = run->tokens,
                           .hidden = run->hidden,
                           .vocab = run->vocab,
                           .supervised = c->batch.supervised,
                           .format = format,
                           .need_dx = 1,
                           .train_weight = run->train,
                           .distill = 1};
    c->loss = 1.5;
    c->nll = scope_nan(&c->scope, DTYPE_F32, c->batch.supervised);
    c->dx = scope_nan(&c->scope, run->act, count);
    c->d_weight = scope_filled(&c->scope, DTYPE_F32, weights, 0.25);
    c->batch.teacher = c->teacher;
    assert_ok(c->reference.head_plan(&c->exec.config, &c->shape, &plan, &err), &err);
    assert_ok(c->reference.head_loss(&c->exec, &c->shape, &c->batch, c->x, &c->weight, &c->loss, c->nll, c->dx,
                                     run->train ? c->d_weight : NULL, scope_scratch(&c->scope, plan.forward_workspace), &err),
              &err);
}

static void case_close(Case *c) {
    nibble_device_plugin.close(c->there.device);
    exec_close(&c->exec);
    device_close(&c->device);
    scope_close(&c->scope);
}

static void check(const Run *run) {
    Case c;
    Error err = {0};
    OpPlan plan;
    case_open(&c, run);
    int64_t count = run->tokens * run->hidden, weights = run->vocab * run->hidden;
    assert_ok(c.backend.head_plan(&c.there.config, &c.shape, &plan, &err), &err);
    void *workspace = device_out(&c.device, NULL, plan.forward_workspace);
    void *memory = device_out(&c.device, NULL, c.backend.batch_bytes(run->tokens, c.batch.supervised));
    const void *x = device_in_values(&c.device, run->act, c.x, count);
    void *dx = device_nan(&c.device, run->act, count);
    const float *start = scope_filled(&c.scope, DTYPE_F32, weights, 0.25);
    float *d_weight = device_out(&c.device, start, (size_t)weights * sizeof(float));
    float *nll = scope_nan(&c.scope, DTYPE_F32, c.batch.supervised);
    WeightView weight = device_weight(&c.device, &c.weight);
    double loss = 1.5;
    c.batch.teacher = device_in_values(&c.device, run->act, c.teacher, count);
    assert_cuda(cudaDeviceSynchronize()); /* the plugin's streams do not wait for these copies and fills */
    assert_ok(c.backend.begin(&c.there, &c.batch, run->tokens, c.batch.supervised, 0, 1, memory, &err), &err);
    assert_ok(c.backend.head_loss(&c.there, &c.shape, &c.batch, x, &weight, &loss, nll, dx, run->train ? d_weight : NULL,
                                  workspace, &err),
              &err);
    assert_ok(c.backend.finish(&c.there, &err), &err);
    if (run->teacher == 0.0) {
        for (int64_t j = 0; j < c.batch.supervised; j++)
            assert_true(fabsf(nll[j]) <= 1e-6f); /* the same logits by the same product: differences of 0 */
        device_compare("dx", run->act, dx, scope_filled(&c.scope, run->act, count, 0.0), count, 0, 0.0, "p and q are equal");
        case_close(&c);
        return;
    }
    int rounded = run->act == DTYPE_BF16;
    assert_close("nll", DTYPE_F32, nll, c.nll, c.batch.supervised, rounded ? 3e-5 : 1e-5,
                 "FP32 logits, exponentials and sums; in BF16 runs by the fast exponential");
    assert_close("loss", DTYPE_F64, &loss, &c.loss, 1, 2e-5, "sums of FP32 losses");
    device_compare("dx", run->act, dx, c.dx, count, 0, rounded ? 0x1p-6 : 2e-5,
                   "the gradient of the logits is rounded to BF16, and its product is");
    if (run->train)
        device_compare("d_weight", DTYPE_F32, d_weight, c.d_weight, weights, 0, rounded ? 0x1p-7 : 2e-5,
                       "the gradient of the logits is rounded to BF16");
    case_close(&c);
}

static void distills(void **state) {
    (void)state;
    static const Run runs[] = {
        {DTYPE_BF16, 1, 8, 4, 1.0, 1.0, 0},      {DTYPE_BF16, 7, 16, 31, 1.0, 1.0, 1},
        {DTYPE_BF16, 5, 24, 4096, 1.0, 1.5, 0},  {DTYPE_BF16, 4, 8, 4097, 1.0, 0.5, 0},
        {DTYPE_BF16, 4, 8, 8192, 0.5, 0.5, 0},   {DTYPE_BF16, 3, 8, 9004, 0.5, 1.0, 0},
        {DTYPE_F32, 9, 16, 36, 4.0, 2.0, 1},     {DTYPE_F32, 3, 5, 5003, 1.0, 1.0, 0},
        {DTYPE_F32, 3, 8, 4100, 1.0, 1.0, 0},    {DTYPE_F32, 1700, 8, 12, 1.0, 2.0, 1},
        {DTYPE_BF16, 31, 8, 127, 30.0, 30.0, 0}, {DTYPE_F32, 31, 8, 127, 200.0, 100.0, 1},
        {DTYPE_F32, 9, 16, 132, 3.0, 0.0, 0},    {DTYPE_BF16, 9, 16, 131, 3.0, 0.0, 0},
    };
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++)
        check(&runs[i]);
}

/* A shape without room refuses a teacher, and a NaN in the teacher reaches the loss. */
static void refuses(void **state) {
    (void)state;
    static const Run run = {DTYPE_F32, 5, 8, 40, 1.0, 1.0, 0};
    Case c;
    Error err = {0};
    OpPlan plan;
    double loss = 0.0;
    case_open(&c, &run);
    HeadShape none = c.shape;
    none.distill = 0;
    assert_refused(c.backend.head_loss(&c.there, &none, &c.batch, c.x, &c.weight, &loss, NULL, NULL, NULL, NULL, &err), &err,
                   "no room");
    assert_ok(c.backend.head_plan(&c.there.config, &c.shape, &plan, &err), &err);
    float *bad = scope_random(&c.scope, DTYPE_F32, run.tokens * run.hidden, 1.0);
    bad[c.batch.rows[0] * run.hidden] = NAN;
    void *memory = device_out(&c.device, NULL, c.backend.batch_bytes(run.tokens, c.batch.supervised));
    const void *x = device_in_values(&c.device, DTYPE_F32, c.x, run.tokens * run.hidden);
    void *workspace = device_out(&c.device, NULL, plan.forward_workspace), *dx = device_nan(&c.device, DTYPE_F32, 40);
    WeightView weight = device_weight(&c.device, &c.weight);
    c.batch.teacher = device_in_values(&c.device, DTYPE_F32, bad, run.tokens * run.hidden);
    assert_cuda(cudaDeviceSynchronize());
    assert_ok(c.backend.begin(&c.there, &c.batch, run.tokens, c.batch.supervised, 0, 1, memory, &err), &err);
    assert_ok(c.backend.head_loss(&c.there, &c.shape, &c.batch, x, &weight, &loss, NULL, dx, NULL, workspace, &err), &err);
    assert_ok(c.backend.finish(&c.there, &err), &err);
    assert_true(isnan(loss));
    case_close(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(distills), cmocka_unit_test(refuses)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
