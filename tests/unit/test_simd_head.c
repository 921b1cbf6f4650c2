/* Head and loss against the reference: chunks, formats, gathered rows, and logits for generation. */
#include "tests/unit/test_simd.h"

typedef struct Case {
    DType act;
    WeightFormat format;
    int64_t tokens, hidden, vocab;
    int need_dx, train, distill;
} Case;

typedef struct Outputs {
    double loss;
    float *nll, *d_weight, *logits;
    void *dx;
} Outputs;

typedef struct Inputs {
    HeadShape shape;
    TestBatch batch;
    TestWeight weight;
    void *x, *teacher;
    float *start;
} Inputs;

static Outputs run(const Backend *backend, const Case *c, const Inputs *in, int threads) {
    Exec exec = exec_of(c->act, threads);
    const Batch *batch = &in->batch.batch;
    OpPlan plan;
    assert_ok(backend->head_plan(&exec.config, &in->shape, &plan, err));
    void *workspace = buffer(plan.forward_workspace);
    Outputs out = {.loss = 1.5};
    out.nll = buffer((size_t)batch->supervised * sizeof(float));
    out.dx = buffer((size_t)(c->tokens * c->hidden) * dtype_size(c->act));
    out.d_weight = copy_of(in->start, (size_t)(c->vocab * c->hidden) * sizeof(float));
    out.logits = buffer((size_t)(batch->supervised * c->vocab) * sizeof(float));
    Batch taught = *batch;
    if (c->distill) taught.teacher = in->teacher;
    batch = &taught;
    assert_ok(backend->head_loss(&exec, &in->shape, batch, in->x, &in->weight.view, &out.loss, out.nll,
                                 c->need_dx ? out.dx : NULL, c->train ? out.d_weight : NULL, workspace, err));
    assert_ok(backend->head_logits(&exec, &in->shape, batch, in->x, &in->weight.view, out.logits, workspace, err));
    free(workspace);
    pool_free(exec.pool);
    return out;
}

static void free_outputs(Outputs *out) {
    free(out->nll);
    free(out->dx);
    free(out->d_weight);
    free(out->logits);
}

static void check_case(const Backend *ref, const Backend *simd, Random *r, const Case *c) {
    Inputs in = {.shape = {.rows = c->tokens,
                           .hidden = c->hidden,
                           .vocab = c->vocab,
                           .supervised = c->tokens,
                           .format = c->format,
                           .need_dx = c->need_dx,
                           .train_weight = c->train,
                           .distill = c->distill}};
    in.batch = random_batch(r, c->tokens, 9, c->vocab);
    in.weight = random_weight(r, c->format, c->vocab, c->hidden, 64, 0);
    in.x = random_values(r, c->act, c->tokens * c->hidden, 2.0f);
    in.teacher = random_values(r, c->act, c->tokens * c->hidden, 2.0f);
    in.start = random_values(r, DTYPE_F32, c->vocab * c->hidden, 1.0f);
    int64_t supervised = in.batch.batch.supervised;
    Outputs want = run(ref, c, &in, 2), one = run(simd, c, &in, 1);
    assert_close("logits", DTYPE_F32, one.logits, want.logits, supervised * c->vocab, REDUCTION_F32);
    /* a divergence is what is left of two logarithms of each word: its error is theirs, however small it is itself */
    double logarithms = c->distill ? 8.0 : 0.0;
    for (int64_t i = 0; i < supervised; i++)
        assert_true(fabs((double)one.nll[i] - (double)want.nll[i]) <= REDUCTION_F32 * (fabs((double)want.nll[i]) + logarithms));
    double apart = fabs(one.loss - want.loss); /* sums of the same terms in double */
    assert_true(apart <= REDUCTION_F32 * (fabs(want.loss) + logarithms * (double)supervised));
    /* in BF16 the pairs' gradient of the logits is rounded first: 2^-9 at most a term, and dx, which is rounded again, may
     * land one ulp (2^-8) away */
    int rounded =
        c->act == DTYPE_BF16 && (strcmp(simd->variant.head, "avx512bf16") == 0 || strncmp(simd->variant.head, "amx", 3) == 0);
    double d_weight = rounded ? 0x1p-9 : REDUCTION_F32, dx = rounded ? 0x1p-8 + 0x1p-9 : reduction_tolerance(c->act);
    if (c->need_dx) assert_close("dx", c->act, one.dx, want.dx, c->tokens * c->hidden, dx);
    assert_close("dW", DTYPE_F32, one.d_weight, want.d_weight, c->vocab * c->hidden, d_weight);
    const int threads[] = {2, 3, 8};
    for (size_t i = 0; i < sizeof threads / sizeof *threads; i++) {
        Outputs more = run(simd, c, &in, threads[i]);
        assert_memory_equal(&more.loss, &one.loss, sizeof one.loss);
        assert_memory_equal(more.nll, one.nll, (size_t)supervised * sizeof(float));
        assert_memory_equal(more.logits, one.logits, (size_t)(supervised * c->vocab) * sizeof(float));
        assert_memory_equal(more.dx, one.dx, (size_t)(c->tokens * c->hidden) * dtype_size(c->act));
        assert_memory_equal(more.d_weight, one.d_weight, (size_t)(c->vocab * c->hidden) * sizeof(float));
        free_outputs(&more);
    }
    free_outputs(&one);
    free_outputs(&want);
    batch_free(&in.batch);
    weight_free(&in.weight);
    free(in.x);
    free(in.teacher);
    free(in.start);
}

static void shapes(const Backend *ref, const Backend *simd, const char *name) {
    assert_string_equal(simd->variant.head, name);
    static const int64_t sizes[][3] = {{1, 1, 2}, {3, 37, 17}, {40, 64, 515}, {29, 71, 1031}};
    static const WeightFormat formats[] = {WEIGHT_F32, WEIGHT_BF16, WEIGHT_NF4};
    Random r = {0};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (size_t f = 0; f < sizeof formats / sizeof *formats; f++)
            for (int act = 0; act < 2; act++) {
                Case c = {.act = act ? DTYPE_BF16 : DTYPE_F32,
                          .format = formats[f],
                          .tokens = sizes[s][0],
                          .hidden = sizes[s][1],
                          .vocab = sizes[s][2],
                          .need_dx = 1,
                          .train = f < 2};
                check_case(ref, simd, &r, &c);
                c.distill = 1;
                check_case(ref, simd, &r, &c);
                c.distill = c.need_dx = c.train = 0; /* evaluation */
                check_case(ref, simd, &r, &c);
            }
}

/* 100003 words: a chunk is 41 rows, so the last of three is short. */
static void chunks(const Backend *ref, const Backend *simd, const char *name) {
    (void)name;
    Random r = {1000000};
    Case c = {.act = DTYPE_BF16, .format = WEIGHT_BF16, .tokens = 150, .hidden = 24, .vocab = 100003, .need_dx = 1, .train = 1};
    check_case(ref, simd, &r, &c);
}

/* A frozen head in a BF16 run: several slabs in each slice of the vocabulary, slices without words, more rows than a chunk, row
 * tiles that are not whole panels. */
static void frozen(const Backend *ref, const Backend *simd, const char *name) {
    (void)name;
    static const int64_t sizes[][3] = {{1, 32, 2}, {70, 96, 4999}, {1100, 32, 1601}, {400, 64, 256}};
    Random r = {2000000};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int quantized = 0; quantized < 2; quantized++) {
            Case c = {.act = DTYPE_BF16,
                      .format = quantized ? WEIGHT_NF4 : WEIGHT_BF16,
                      .tokens = sizes[s][0],
                      .hidden = sizes[s][1],
                      .vocab = sizes[s][2],
                      .need_dx = 1};
            check_case(ref, simd, &r, &c);
        }
}

/* A model that is sure of word 300 of 600 in a BF16 run: the loss and the gradient of the target are differences of near equals. */
static void sure(const Backend *ref, const Backend *simd, const char *name) {
    (void)name;
    enum { HIDDEN = 32, WORDS = 600 };
    bf16 x[2 * HIDDEN], w[WORDS * HIDDEN], dx[2 * HIDDEN], want_dx[2 * HIDDEN];
    for (int i = 0; i < 2 * HIDDEN; i++)
        x[i] = bf16_from_float(i < HIDDEN ? 0.5f : -8.0f);
    for (int i = 0; i < WORDS * HIDDEN; i++)
        w[i] = bf16_from_float(i / HIDDEN == 300 ? 1.0f : (float)(i % 7) * 0.01f);
    int32_t rows[2] = {0, 1}, targets[2] = {300, 300};
    float nll[2], want_nll[2];
    Batch batch = {.tokens = 2, .supervised = 2, .rows = rows, .targets = targets, .grad_scale = 1.0f};
    HeadShape shape = {.rows = 2, .hidden = HIDDEN, .vocab = WORDS, .supervised = 2, .format = WEIGHT_BF16, .need_dx = 1};
    WeightView view = {.format = WEIGHT_BF16, .rows = WORDS, .cols = HIDDEN, .data = w};
    Exec exec = exec_of(DTYPE_BF16, 1);
    const Backend *both[2] = {ref, simd};
    for (int i = 0; i < 2; i++) {
        OpPlan plan;
        double loss = 0.0;
        assert_ok(both[i]->head_plan(&exec.config, &shape, &plan, err));
        void *workspace = buffer(plan.forward_workspace);
        assert_ok(both[i]->head_loss(&exec, &shape, &batch, x, &view, &loss, i ? nll : want_nll, i ? dx : want_dx, NULL,
                                     workspace, err));
        free(workspace);
    }
    for (int j = 0; j < 2; j++) /* FP32 logits of 16 and 256, whose last bit is 2e-6 and 3e-5 */
        assert_true(fabsf(nll[j] - want_nll[j]) <= (j ? 6e-5f : 4e-6f));
    for (int i = 0; i < 2 * HIDDEN; i++) { /* rounded to BF16 twice: two ulps */
        float want = bf16_to_float(want_dx[i]);
        assert_true(fabsf(bf16_to_float(dx[i]) - want) <= fabsf(want) * 0.016f + 1e-9f);
    }
    x[3] = bf16_from_float(NAN);
    OpPlan plan;
    double loss = 0.0;
    assert_ok(simd->head_plan(&exec.config, &shape, &plan, err));
    void *workspace = buffer(plan.forward_workspace);
    assert_ok(simd->head_loss(&exec, &shape, &batch, x, &view, &loss, nll, dx, NULL, workspace, err));
    assert_true(isnan(loss) && isnan(nll[0]) && !isnan(nll[1]));
    free(workspace);
    pool_free(exec.pool);
}

/* A logit far above the others, and far below: the loss is exact at both ends and gradients stay finite. */
static void extremes(const Backend *ref, const Backend *simd, const char *name) {
    (void)ref;
    (void)name;
    float x[2] = {1.0f, 1.0f}, w[3] = {0.0f, 120.0f, -120.0f}, dx[2], nll[2];
    int32_t rows[2] = {0, 1}, targets[2] = {1, 2};
    Batch batch = {.tokens = 2, .supervised = 2, .rows = rows, .targets = targets, .grad_scale = 1.0f};
    HeadShape shape = {.rows = 2, .hidden = 1, .vocab = 3, .supervised = 2, .format = WEIGHT_F32, .need_dx = 1};
    WeightView view = {.format = WEIGHT_F32, .rows = 3, .cols = 1, .data = w};
    Exec exec = exec_of(DTYPE_F32, 1);
    OpPlan plan;
    assert_ok(simd->head_plan(&exec.config, &shape, &plan, err));
    void *workspace = buffer(plan.forward_workspace);
    double loss = 0.0;
    assert_ok(simd->head_loss(&exec, &shape, &batch, x, &view, &loss, nll, dx, NULL, workspace, err));
    assert_true(nll[0] == 0.0f && nll[1] == 240.0f);
    assert_true(dx[0] == 0.0f && dx[1] == 240.0f);
    x[0] = NAN;
    loss = 0.0;
    assert_ok(simd->head_loss(&exec, &shape, &batch, x, &view, &loss, nll, dx, NULL, workspace, err));
    assert_true(isnan(loss) && isnan(nll[0]) && nll[1] == 240.0f);
    free(workspace);
    pool_free(exec.pool);
}

static void refusals(const Backend *ref, const Backend *simd, const char *name) {
    (void)ref;
    (void)name;
    float x[2] = {0}, w[2] = {0};
    int32_t rows[2] = {1, 0}, targets[2] = {0, 0};
    Batch batch = {.tokens = 2, .supervised = 2, .rows = rows, .targets = targets};
    HeadShape shape = {.rows = 2, .hidden = 1, .vocab = 2, .supervised = 2, .format = WEIGHT_F32};
    WeightView view = {.format = WEIGHT_F32, .rows = 2, .cols = 1, .data = w};
    Exec exec = exec_of(DTYPE_F32, 1);
    OpPlan plan;
    Error failure;
    assert_ok(simd->head_plan(&exec.config, &shape, &plan, err));
    void *workspace = buffer(plan.forward_workspace);
    double loss = 0.0;
    assert_int_not_equal(simd->head_loss(&exec, &shape, &batch, x, &view, &loss, NULL, NULL, NULL, workspace, &failure), OK);
    rows[0] = 0;
    rows[1] = 1;
    assert_int_equal(simd->head_loss(&exec, &shape, &batch, x, &view, &loss, NULL, NULL, NULL, workspace, &failure), OK);
    targets[1] = 2;
    assert_int_not_equal(simd->head_loss(&exec, &shape, &batch, x, &view, &loss, NULL, NULL, NULL, workspace, &failure), OK);
    free(workspace);
    pool_free(exec.pool);
}

#define TEST(check)                          \
    static void test_##check(void **state) { \
        (void)state;                         \
        each_tiled_variant(check);           \
    }
TEST(shapes)
TEST(chunks)
TEST(frozen)
TEST(sure)
TEST(extremes)
TEST(refusals)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes), cmocka_unit_test(test_chunks),   cmocka_unit_test(test_frozen),
        cmocka_unit_test(test_sure),   cmocka_unit_test(test_extremes), cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
