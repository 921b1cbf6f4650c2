/* The parts of head + loss around the products, put together with a plain product, against the reference's head_loss. BF16 also by
 * the error of a plain BF16 computation: logits stored in BF16, as a framework's head gives them, the softmax in FP32, its gradient
 * and that of x rounded. The kernels must stay within twice that error against FP32 on the same values. */
#include "tests/cuda_emu/device.h"

typedef struct Run {
    DType act;
    int64_t tokens, hidden, vocab, chunk;
    double spread; /* of the logits */
} Run;

/* logits FP32 [count, vocab] = x [count, hidden] w [vocab, hidden]^T, on the host */
static void product(DType act, const void *x, const void *w, const Run *run, int64_t count, float *logits) {
    for (int64_t j = 0; j < count; j++)
        for (int64_t v = 0; v < run->vocab; v++) {
            double sum = 0.0;
            for (int64_t c = 0; c < run->hidden; c++)
                sum += element_of(act, x, j * run->hidden + c) * element_of(act, w, v * run->hidden + c);
            logits[j * run->vocab + v] = (float)sum;
        }
}

/* in [count, hidden] = dz [count, vocab] w, rows of dz `stride` elements apart */
static void product_back(DType act, const void *dz, int64_t stride, const void *w, const Run *run, int64_t count, void *in) {
    for (int64_t j = 0; j < count; j++)
        for (int64_t c = 0; c < run->hidden; c++) {
            double sum = 0.0;
            for (int64_t v = 0; v < run->vocab; v++)
                sum += element_of(act, dz, j * stride + v) * element_of(act, w, v * run->hidden + c);
            dtype_convert((char *)in + (size_t)(j * run->hidden + c) * dtype_size(act), act, &sum, DTYPE_F64, 1);
        }
}

static const float *widened(Scope *scope, const void *values, int64_t count) {
    float *wide = scope_nan(scope, DTYPE_F32, count);
    dtype_convert(wide, DTYPE_F32, values, DTYPE_BF16, count);
    return wide;
}

/* nll [supervised] and dx [tokens, hidden] */
static void plain(Scope *scope, const Run *run, const Batch *batch, const void *x, const void *w, float *nll, float *dx) {
    float *z = scope_nan(scope, DTYPE_F32, run->vocab);
    for (int64_t i = 0; i < run->tokens * run->hidden; i++)
        dx[i] = 0.0f;
    for (int64_t j = 0; j < batch->supervised; j++) {
        int64_t t = batch->rows[j];
        float most = -INFINITY, sum = 0.0f;
        product(DTYPE_BF16, (const bf16 *)x + t * run->hidden, w, run, 1, z);
        for (int64_t v = 0; v < run->vocab; v++)
            z[v] = bf16_round(z[v]), most = fmaxf(most, z[v]);
        for (int64_t v = 0; v < run->vocab; v++)
            sum += expf(z[v] - most);
        nll[j] = logf(sum) + most - z[batch->targets[j]];
        for (int64_t v = 0; v < run->vocab; v++)
            z[v] = bf16_round(batch->grad_scale * (expf(z[v] - most) / sum - (v == batch->targets[j] ? 1.0f : 0.0f)));
        for (int64_t c = 0; c < run->hidden; c++) {
            double d = 0.0;
            for (int64_t v = 0; v < run->vocab; v++)
                d += (double)z[v] * element_of(DTYPE_BF16, w, v * run->hidden + c);
            dx[t * run->hidden + c] = bf16_round((float)d);
        }
    }
}

static void within_twice(const char *what, const Run *run, const float *got, const float *by_plain, const float *exact,
                         int64_t count) {
    double ours = 0.0, theirs = 0.0;
    for (int64_t i = 0; i < count; i++) {
        ours += ((double)got[i] - (double)exact[i]) * ((double)got[i] - (double)exact[i]);
        theirs += ((double)by_plain[i] - (double)exact[i]) * ((double)by_plain[i] - (double)exact[i]);
    }
    if (!(sqrt(ours) <= 2.0 * sqrt(theirs)))
        fail_msg("%s, vocabulary %lld: error %g, that of plain BF16 is %g", what, (long long)run->vocab, sqrt(ours),
                 sqrt(theirs));
}

/* What came from the device: nll [supervised], dx BF16 [tokens, hidden]. */
static void check_error(Scope *scope, const Run *run, const Batch *batch, const void *x, const void *w, const float *nll,
                        const void *dx) {
    Backend reference;
    Error err = {0};
    OpPlan plan;
    cpu_backend_reference(&reference);
    Exec exec = exec_open(DTYPE_F32, 1);
    int64_t count = run->tokens * run->hidden;
    HeadShape shape = {.rows = run->tokens,
                       .hidden = run->hidden,
                       .vocab = run->vocab,
                       .supervised = batch->supervised,
                       .format = WEIGHT_F32,
                       .need_dx = 1};
    WeightView weight = {
        .format = WEIGHT_F32, .rows = run->vocab, .cols = run->hidden, .data = widened(scope, w, run->vocab * run->hidden)};
    float *exact_nll = scope_nan(scope, DTYPE_F32, batch->supervised), *exact_dx = scope_nan(scope, DTYPE_F32, count);
    float *plain_nll = scope_nan(scope, DTYPE_F32, batch->supervised), *plain_dx = scope_nan(scope, DTYPE_F32, count);
    double loss = 0.0;
    assert_ok(reference.head_plan(&exec.config, &shape, &plan, &err), &err);
    assert_ok(reference.head_loss(&exec, &shape, batch, widened(scope, x, count), &weight, &loss, exact_nll, exact_dx, NULL,
                                  scope_scratch(scope, plan.forward_workspace), &err),
              &err);
    exec_close(&exec);
    plain(scope, run, batch, x, w, plain_nll, plain_dx);
    within_twice("nll", run, nll, plain_nll, exact_nll, run->vocab > 1 ? batch->supervised : 0); /* of one word: 0 */
    within_twice("dx", run, widened(scope, dx, count), plain_dx, exact_dx, count);
}

typedef struct Chunk {
    void *x, *in, *gradient; /* host */
    float *logits;
    void *dev_x, *dev_in, *dev_logits;
} Chunk;

static void run_chunk(const Run *run, const DeviceBatch *batch, int64_t first, Chunk *c, const void *dev_x, const void *weight,
                      float *dev_nll, void *dev_dx) {
    size_t rows = (size_t)(run->chunk * run->hidden) * dtype_size(run->act),
           logits = (size_t)(run->chunk * run->vocab) * sizeof(float);
    assert_cuda(cuda_gather_rows(run->act, batch, first, run->chunk, run->hidden, dev_x, c->dev_x, 0));
    device_read(c->x, c->dev_x, rows);
    product(run->act, c->x, weight, run, run->chunk, c->logits);
    assert_cuda(cudaMemcpy(c->dev_logits, c->logits, logits, cudaMemcpyHostToDevice));
    assert_cuda(cuda_cross_entropy(run->act, batch, first, run->chunk, run->vocab, c->dev_logits, dev_nll, 1, 0));
    device_read(c->gradient, c->dev_logits, logits);
    product_back(run->act, c->gradient, run->act == DTYPE_BF16 ? 2 * run->vocab : run->vocab, weight, run, run->chunk, c->in);
    assert_cuda(cudaMemcpy(c->dev_in, c->in, rows, cudaMemcpyHostToDevice));
    assert_cuda(cuda_scatter_rows(run->act, batch, first, run->chunk, run->hidden, c->dev_in, dev_dx, 0));
}

static void check(const Run *run) {
    Scope scope = {0};
    Device device = {0};
    Backend reference;
    Error err = {0};
    cpu_backend_reference(&reference);
    Exec exec = exec_open(run->act, 1);
    int64_t count = run->tokens * run->hidden, logits = run->chunk * run->vocab;
    Batch batch = scope_batch(&scope, &run->tokens, 1, (int32_t)run->vocab);
    WeightFormat format = run->act == DTYPE_BF16 ? WEIGHT_BF16 : WEIGHT_F32;
    const void *x = scope_random(&scope, run->act, count, run->spread);
    const void *w = scope_random(&scope, run->act, run->vocab * run->hidden, 1.0);
    WeightView weight = {.format = format, .rows = run->vocab, .cols = run->hidden, .data = w};
    HeadShape shape = {.rows = run->tokens,
                       .hidden = run->hidden,
                       .vocab = run->vocab,
                       .supervised = batch.supervised,
                       .format = format,
                       .need_dx = 1};
    OpPlan plan;
    assert_ok(reference.head_plan(&exec.config, &shape, &plan, &err), &err);
    double loss = 1.5, start = 1.5;
    float *nll = scope_nan(&scope, DTYPE_F32, batch.supervised);
    void *dx = scope_nan(&scope, run->act, count);
    assert_ok(reference.head_loss(&exec, &shape, &batch, x, &weight, &loss, nll, dx, NULL,
                                  scope_scratch(&scope, plan.forward_workspace), &err),
              &err);

    Chunk c = {.x = scope_nan(&scope, run->act, run->chunk * run->hidden),
               .in = scope_nan(&scope, run->act, run->chunk * run->hidden),
               .gradient = scope_nan(&scope, DTYPE_F32, logits),
               .logits = scope_nan(&scope, DTYPE_F32, logits),
               .dev_x = device_nan(&device, run->act, run->chunk * run->hidden),
               .dev_in = device_nan(&device, run->act, run->chunk * run->hidden),
               .dev_logits = device_nan(&device, DTYPE_F32, logits)};
    const DeviceBatch *there = device_batch(&device, &batch, 0);
    const void *dev_x = device_in_values(&device, run->act, x, count), *zeros = scope_filled(&scope, run->act, count, 0.0);
    void *dev_dx = device_out(&device, zeros, (size_t)count * dtype_size(run->act));
    float *dev_nll = device_nan(&device, DTYPE_F32, batch.supervised + 3);
    double *dev_loss = device_out(&device, &start, sizeof start), got;
    for (int64_t first = 0; first < batch.supervised; first += run->chunk)
        run_chunk(run, there, first, &c, dev_x, w, dev_nll, dev_dx);
    assert_cuda(cuda_loss_sum(there, batch.supervised, dev_nll, dev_loss, 0));
    device_read(&got, dev_loss, sizeof got);
    device_compare("nll", DTYPE_F32, dev_nll, nll, batch.supervised, 3, 3e-6, "FP32 exponentials and sums");
    assert_close("loss", DTYPE_F64, &got, &loss, 1, 3e-6, "sums of FP32 losses");
    device_compare("dx", run->act, dev_dx, dx, count, 0, run->act == DTYPE_BF16 ? 0x1p-6 : 2e-5,
                   "the gradient of the logits is rounded to BF16, and its product is");
    if (run->act == DTYPE_BF16) {
        float *got_nll = scope_nan(&scope, DTYPE_F32, batch.supervised);
        void *got_dx = scope_nan(&scope, DTYPE_BF16, count);
        device_read(got_nll, dev_nll, (size_t)batch.supervised * sizeof *got_nll);
        device_read(got_dx, dev_dx, (size_t)count * sizeof(bf16));
        check_error(&scope, run, &batch, x, w, got_nll, got_dx);
    }
    exec_close(&exec);
    device_close(&device);
    scope_close(&scope);
}

static void loses(void **state) {
    (void)state;
    static const Run runs[] = {
        {DTYPE_BF16, 1, 8, 1, 1, 1.0},    {DTYPE_BF16, 7, 16, 31, 2, 1.0},  {DTYPE_BF16, 5, 24, 4096, 4, 1.0},
        {DTYPE_BF16, 4, 8, 4097, 3, 1.0}, {DTYPE_BF16, 4, 8, 8192, 3, 0.5}, {DTYPE_BF16, 5, 7, 131, 16, 8.0},
        {DTYPE_BF16, 3, 8, 9004, 2, 0.5}, {DTYPE_F32, 9, 16, 36, 4, 4.0},   {DTYPE_F32, 3, 5, 5003, 2, 1.0},
        {DTYPE_F32, 3, 8, 4100, 2, 1.0},  {DTYPE_BF16, 31, 8, 127, 5, 30.0}};
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++)
        check(&runs[i]);
}

/* Only losses: the logits stay as they are. */
static void check_losses(int64_t tokens, int64_t vocab) {
    Scope scope = {0};
    Device device = {0};
    Batch batch = scope_batch(&scope, &tokens, 1, (int32_t)vocab);
    const float *logits = scope_random(&scope, DTYPE_F32, batch.supervised * vocab, 9.0);
    float *dev_logits = device_out(&device, logits, (size_t)(batch.supervised * vocab) * sizeof(float));
    float *nll = device_nan(&device, DTYPE_F32, batch.supervised), *want = scope_nan(&scope, DTYPE_F32, batch.supervised);
    for (int64_t j = 0; j < batch.supervised; j++) {
        double sum = 0.0;
        for (int64_t v = 0; v < vocab; v++)
            sum += exp((double)logits[j * vocab + v]);
        want[j] = (float)(log(sum) - (double)logits[j * vocab + batch.targets[j]]);
    }
    assert_cuda(
        cuda_cross_entropy(DTYPE_BF16, device_batch(&device, &batch, 0), 0, batch.supervised, vocab, dev_logits, nll, 0, 0));
    device_compare("nll", DTYPE_F32, nll, want, batch.supervised, 0, 3e-6, "FP32 exponentials and sums");
    device_compare("logits", DTYPE_F32, dev_logits, logits, batch.supervised * vocab, 0, 0.0, "not written");
    device_close(&device);
    scope_close(&scope);
}

/* The vocabularies of Llama 2, Llama 3 and Qwen2.5 among them. */
static void evaluates(void **state) {
    (void)state;
    check_losses(5, 260);
    check_losses(4, 32000);
    check_losses(2, 128256);
    check_losses(2, 151936);
}

/* A row that holds NaN has a loss of NaN, wherever it stands; the row beside it does not. */
static void tells_of_nan(void **state) {
    (void)state;
    static const int64_t places[] = {0, 1, 3, 4, 131, 4095, 4096, 5003};
    for (size_t i = 0; i < 2 * sizeof places / sizeof *places; i++) {
        Scope scope = {0};
        Device device = {0};
        int64_t tokens = 3, vocab = i % 2 ? 5004 : 5005;
        Batch batch = scope_batch(&scope, &tokens, 1, (int32_t)vocab);
        assert_true(batch.supervised >= 2);
        float *logits = scope_random(&scope, DTYPE_F32, batch.supervised * vocab, 9.0), nll[2];
        logits[places[i / 2]] = NAN;
        float *dev_logits = device_out(&device, logits, (size_t)(batch.supervised * vocab) * sizeof(float));
        float *dev_nll = device_nan(&device, DTYPE_F32, batch.supervised);
        assert_cuda(cudaMemset(dev_nll, 0, (size_t)batch.supervised * sizeof(float)));
        assert_cuda(cuda_cross_entropy(i < 8 ? DTYPE_BF16 : DTYPE_F32, device_batch(&device, &batch, 0), 0, batch.supervised,
                                       vocab, dev_logits, dev_nll, 0, 0));
        device_read(nll, dev_nll, sizeof nll);
        assert_true(isnan(nll[0]));
        assert_true(nll[1] > 0.0f);
        device_close(&device);
        scope_close(&scope);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(loses), cmocka_unit_test(evaluates), cmocka_unit_test(tells_of_nan)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
