/* Attention on the device. F32 against the reference; BF16 by the error of a plain BF16 computation: scores, weights and their
 * gradients each rounded to BF16 where they would be stored, as a framework without a fused kernel does it. The kernels, which
 * round less, must stay within twice that error (both measured against the FP32 reference on the same values). */
#include "core/memory.h"
#include "tests/cuda_emu/device.h"

enum { SPARE = 5, SEQUENCES_MAX = 4 };

typedef struct Run {
    DType act;
    int64_t lengths[SEQUENCES_MAX];
    int64_t heads, kv_heads, head_dim, window;
} Run;

typedef struct Results {
    void *o, *dq, *dk, *dv;
    float *lse;
} Results;

typedef struct Fixture {
    const Run *run;
    Scope scope;
    Device device;
    Batch batch;
    AttentionShape shape;
    int64_t q_count, kv_count;
    const void *q, *k, *v, *d_o;          /* of type act */
    const float *q32, *k32, *v32, *d_o32; /* the same values */
    Results exact;                        /* F32, by the reference */
} Fixture;

static const float *widened(Fixture *f, const void *values, int64_t count) {
    float *wide = scope_nan(&f->scope, DTYPE_F32, count);
    dtype_convert(wide, DTYPE_F32, values, f->run->act, count);
    return wide;
}

static Results results(Fixture *f, DType type) {
    return (Results){scope_nan(&f->scope, type, f->q_count), scope_nan(&f->scope, type, f->q_count),
                     scope_nan(&f->scope, type, f->kv_count), scope_nan(&f->scope, type, f->kv_count),
                     scope_nan(&f->scope, DTYPE_F32, f->batch.tokens * f->run->heads)};
}

static void fixture_open(Fixture *f, const Run *run) {
    *f = (Fixture){.run = run};
    int64_t sequences = 0;
    while (sequences < SEQUENCES_MAX && run->lengths[sequences] > 0)
        sequences++;
    f->batch = scope_batch(&f->scope, run->lengths, sequences, 10);
    f->shape = (AttentionShape){.rows = f->batch.tokens,
                                .heads = run->heads,
                                .kv_heads = run->kv_heads,
                                .head_dim = run->head_dim,
                                .window = run->window,
                                .scale = 1.0f / sqrtf((float)run->head_dim)};
    f->q_count = f->batch.tokens * run->heads * run->head_dim;
    f->kv_count = f->batch.tokens * run->kv_heads * run->head_dim;
    f->q = scope_random(&f->scope, run->act, f->q_count, 3.0), f->q32 = widened(f, f->q, f->q_count);
    f->k = scope_random(&f->scope, run->act, f->kv_count, 3.0), f->k32 = widened(f, f->k, f->kv_count);
    f->v = scope_random(&f->scope, run->act, f->kv_count, 1.0), f->v32 = widened(f, f->v, f->kv_count);
    f->d_o = scope_random(&f->scope, run->act, f->q_count, 1.0), f->d_o32 = widened(f, f->d_o, f->q_count);
    f->exact = results(f, DTYPE_F32);
    Backend reference;
    Error err = {0};
    OpPlan plan;
    cpu_backend_reference(&reference);
    Exec exec = exec_open(DTYPE_F32, 1);
    assert_ok(reference.attention_plan(&exec.config, &f->shape, &plan, &err), &err);
    void *saved = scope_scratch(&f->scope, plan.saved), *forward = scope_scratch(&f->scope, plan.forward_workspace);
    void *backward = scope_scratch(&f->scope, plan.backward_workspace);
    Results *e = &f->exact;
    assert_ok(reference.attention_forward(&exec, &f->shape, &f->batch, f->q32, f->k32, f->v32, e->o, saved, forward, &err),
              &err);
    memcpy(e->lse, saved, (size_t)(f->batch.tokens * run->heads) * sizeof(float));
    assert_ok(reference.attention_backward(&exec, &f->shape, &f->batch, f->q32, f->k32, f->v32, e->o, saved, f->d_o32, e->dq,
                                           e->dk, e->dv, backward, &err),
              &err);
    exec_close(&exec);
}

static void fixture_close(Fixture *f) {
    device_close(&f->device);
    scope_close(&f->scope);
}

/* One query head's row of a plain computation: weights and the gradients of the scores of its keys, rounded to BF16. */
static int64_t plain_row(const Fixture *f, int64_t t, int64_t head, float *p, float *ds) {
    const Run *run = f->run;
    int64_t dim = run->head_dim, kv = head / (run->heads / run->kv_heads), first = t - f->batch.positions[t];
    if (run->window > 0 && t - run->window + 1 > first) first = t - run->window + 1;
    const float *q = f->q32 + (t * run->heads + head) * dim, *d_o = f->d_o32 + (t * run->heads + head) * dim;
    float most = -INFINITY, sum = 0.0f, delta = 0.0f;
    for (int64_t j = first; j <= t; j++) {
        const float *k = f->k32 + (j * run->kv_heads + kv) * dim, *v = f->v32 + (j * run->kv_heads + kv) * dim;
        float s = 0.0f, dp = 0.0f;
        for (int64_t d = 0; d < dim; d++)
            s += q[d] * k[d], dp += d_o[d] * v[d];
        p[j] = bf16_round(bf16_round(s) * f->shape.scale), ds[j] = bf16_round(dp);
        most = fmaxf(most, p[j]);
    }
    for (int64_t j = first; j <= t; j++)
        sum += expf(p[j] - most);
    for (int64_t j = first; j <= t; j++) {
        p[j] = bf16_round(expf(p[j] - most) / sum);
        delta += p[j] * ds[j];
    }
    for (int64_t j = first; j <= t; j++)
        ds[j] = bf16_round(bf16_round(p[j] * (ds[j] - delta)) * f->shape.scale);
    return first;
}

static void plain(Fixture *f, Results *out) {
    const Run *run = f->run;
    int64_t dim = run->head_dim, tokens = f->batch.tokens;
    *out = results(f, DTYPE_F32);
    float *o = out->o, *dq = out->dq, *dk = out->dk, *dv = out->dv;
    memset(o, 0, (size_t)f->q_count * sizeof(float)), memset(dq, 0, (size_t)f->q_count * sizeof(float));
    memset(dk, 0, (size_t)f->kv_count * sizeof(float)), memset(dv, 0, (size_t)f->kv_count * sizeof(float));
    float *p = scope_nan(&f->scope, DTYPE_F32, tokens), *ds = scope_nan(&f->scope, DTYPE_F32, tokens);
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t head = 0; head < run->heads; head++) {
            int64_t kv = head / (run->heads / run->kv_heads), first = plain_row(f, t, head, p, ds);
            for (int64_t j = first; j <= t; j++)
                for (int64_t d = 0; d < dim; d++) {
                    int64_t query = (t * run->heads + head) * dim + d, key = (j * run->kv_heads + kv) * dim + d;
                    o[query] += p[j] * f->v32[key], dq[query] += ds[j] * f->k32[key];
                    dv[key] += p[j] * f->d_o32[query], dk[key] += ds[j] * f->q32[query];
                }
        }
    for (int64_t i = 0; i < f->q_count; i++)
        o[i] = bf16_round(o[i]), dq[i] = bf16_round(dq[i]);
    for (int64_t i = 0; i < f->kv_count; i++)
        dk[i] = bf16_round(dk[i]), dv[i] = bf16_round(dv[i]);
}

static double distance(const float *got, const float *want, int64_t count) {
    double sum = 0.0;
    for (int64_t i = 0; i < count; i++)
        sum += ((double)got[i] - (double)want[i]) * ((double)got[i] - (double)want[i]);
    return sqrt(sum);
}

static double length(const float *values, int64_t count) {
    double sum = 0.0;
    for (int64_t i = 0; i < count; i++)
        sum += (double)values[i] * (double)values[i];
    return sqrt(sum);
}

/* got BF16 against the plain computation; a result that is nearly zero everywhere (dq of one key) by its roundings */
static void within_twice(const char *what, const Fixture *f, const void *from, const float *plain, const float *exact,
                         int64_t count, int64_t spare) {
    bf16 *got = memory_alloc((size_t)(count + spare) * sizeof(bf16));
    float *wide = memory_alloc((size_t)count * sizeof(float));
    device_read(got, from, (size_t)(count + spare) * sizeof(bf16));
    dtype_convert(wide, DTYPE_F32, got, DTYPE_BF16, count);
    assert_untouched(what, got + count, (size_t)spare * sizeof(bf16));
    double error = distance(wide, exact, count), allowed = 2.0 * distance(plain, exact, count);
    double zero = 0x1p-9 * sqrt((double)count / (double)f->q_count) * length(f->d_o32, f->q_count);
    double limit = allowed > 0x1p-9 * length(exact, count) ? allowed : 0x1p-9 * length(exact, count);
    if (length(exact, count) < zero && limit < zero) limit = zero;
    if (!(error <= limit))
        fail_msg("%s of head size %lld: error %g, twice that of plain BF16 is %g", what, (long long)f->run->head_dim, error,
                 limit);
    memory_free(got);
    memory_free(wide);
}

typedef struct OnDevice {
    const DeviceBatch *batch;
    const void *q, *k, *v, *d_o;
    Results out;
    void *workspace;
} OnDevice;

/* q, k and v side by side, and room for their gradients so, with `gap` columns more. */
typedef struct Joined {
    int64_t stride, rows, width, kv_width;
    void *values, *gradients;
} Joined;

static void join(Fixture *f, OnDevice *d, AttentionShape *shape, Joined *j, int64_t gap) {
    DType act = f->run->act;
    j->width = f->run->heads * f->run->head_dim, j->kv_width = f->run->kv_heads * f->run->head_dim;
    j->stride = j->width + 2 * j->kv_width + gap, j->rows = shape->rows;
    j->values = device_nan(&f->device, act, j->rows * j->stride),
    j->gradients = device_nan(&f->device, act, j->rows * j->stride);
    int64_t k = j->width, v = j->width + j->kv_width;
    device_put(act, j->values, j->stride, f->q, f->batch.tokens, j->width);
    device_put(act, device_member(act, j->values, k), j->stride, f->k, f->batch.tokens, j->kv_width);
    device_put(act, device_member(act, j->values, v), j->stride, f->v, f->batch.tokens, j->kv_width);
    d->q = j->values, d->k = device_member(act, j->values, k), d->v = device_member(act, j->values, v);
    d->out.dq = j->gradients, d->out.dk = device_member(act, j->gradients, k), d->out.dv = device_member(act, j->gradients, v);
    shape->q_stride = shape->k_stride = shape->v_stride = shape->gradient_stride = j->stride;
}

static void part(Fixture *f, OnDevice *d, const Joined *j) {
    DType act = f->run->act;
    d->out.dq = device_take(&f->device, act, d->out.dq, j->stride, j->rows, j->width);
    d->out.dk = device_take(&f->device, act, d->out.dk, j->stride, j->rows, j->kv_width);
    d->out.dv = device_take(&f->device, act, d->out.dv, j->stride, j->rows, j->kv_width);
    device_is_nan("beside the gradients", act, j->gradients, j->rows * j->stride);
}

/* gap: less than 0: everything contiguous */
static OnDevice run_device(Fixture *f, int64_t gap) {
    DType act = f->run->act;
    int64_t tokens = f->batch.tokens, width = f->run->heads * f->run->head_dim, kv_width = f->run->kv_heads * f->run->head_dim;
    AttentionShape shape = f->shape;
    shape.rows = tokens + SPARE;
    size_t lse = (size_t)((tokens + SPARE) * f->run->heads) * sizeof(float);
    OnDevice d = {.batch = device_batch(&f->device, &f->batch, 0),
                  .q = device_in_values(&f->device, act, f->q, f->q_count),
                  .k = device_in_values(&f->device, act, f->k, f->kv_count),
                  .v = device_in_values(&f->device, act, f->v, f->kv_count),
                  .d_o = device_in_values(&f->device, act, f->d_o, f->q_count),
                  .out = {device_nan(&f->device, act, f->q_count + SPARE * width),
                          device_nan(&f->device, act, f->q_count + SPARE * width),
                          device_nan(&f->device, act, f->kv_count + SPARE * kv_width),
                          device_nan(&f->device, act, f->kv_count + SPARE * kv_width), device_out(&f->device, NULL, lse)},
                  .workspace = device_out(&f->device, NULL, cuda_attention_workspace(&shape))};
    Joined joined;
    if (gap >= 0) join(f, &d, &shape, &joined, gap);
    assert_cuda(cuda_attention_forward(act, d.batch, &shape, d.q, d.k, d.v, d.out.o, d.out.lse, 0));
    assert_cuda(cuda_attention_backward(act, d.batch, &shape, d.q, d.k, d.v, d.out.o, d.out.lse, d.d_o, d.out.dq, d.out.dk,
                                        d.out.dv, d.workspace, 0));
    if (gap >= 0) part(f, &d, &joined);
    return d;
}

static void check_joined(const Run *run, int64_t gap) {
    Fixture f;
    fixture_open(&f, run);
    OnDevice d = run_device(&f, gap);
    const Results *e = &f.exact;
    int64_t spare = SPARE * run->heads * run->head_dim, kv_spare = SPARE * run->kv_heads * run->head_dim;
    device_compare("lse", DTYPE_F32, d.out.lse, e->lse, f.batch.tokens * run->heads, SPARE * run->heads, 1e-5, "FP32 sums");
    if (run->act == DTYPE_F32) {
        const char *reason = "FP32 sums of at most 60 keys";
        device_compare("o", DTYPE_F32, d.out.o, e->o, f.q_count, spare, 2e-5, reason);
        device_compare("dq", DTYPE_F32, d.out.dq, e->dq, f.q_count, spare, 2e-5, reason);
        device_compare("dk", DTYPE_F32, d.out.dk, e->dk, f.kv_count, kv_spare, 2e-5, reason);
        device_compare("dv", DTYPE_F32, d.out.dv, e->dv, f.kv_count, kv_spare, 2e-5, reason);
    } else {
        Results p;
        plain(&f, &p);
        within_twice("o", &f, d.out.o, p.o, e->o, f.q_count, spare);
        within_twice("dq", &f, d.out.dq, p.dq, e->dq, f.q_count, spare);
        within_twice("dk", &f, d.out.dk, p.dk, e->dk, f.kv_count, kv_spare);
        within_twice("dv", &f, d.out.dv, p.dv, e->dv, f.kv_count, kv_spare);
    }
    fixture_close(&f);
}

static void check(const Run *run) {
    check_joined(run, -1);
}

/* Tiles are of 64 and 128 queries, of 32 (head sizes above 64) and 64 keys. */
static void attends(void **state) {
    (void)state;
    static const Run runs[] = {
        {DTYPE_BF16, {1}, 1, 1, 8, 0},
        {DTYPE_BF16, {7}, 2, 1, 16, 0},
        {DTYPE_BF16, {31, 1, 32}, 2, 2, 32, 0},
        {DTYPE_BF16, {33}, 4, 2, 40, 0},
        {DTYPE_BF16, {63}, 1, 1, 64, 0},
        {DTYPE_BF16, {64}, 2, 1, 64, 0},
        {DTYPE_BF16, {65}, 3, 1, 64, 0},
        {DTYPE_BF16, {127}, 1, 1, 72, 0},
        {DTYPE_BF16, {128}, 1, 1, 96, 0},
        {DTYPE_BF16, {129}, 2, 1, 128, 0},
        {DTYPE_BF16, {40, 97, 3, 11}, 2, 1, 128, 0},
        {DTYPE_BF16, {70, 71}, 4, 1, 32, 0},
        {DTYPE_BF16, {150}, 1, 1, 64, 17},
        {DTYPE_BF16, {90, 45}, 2, 1, 128, 33},
        {DTYPE_BF16, {20, 60}, 2, 1, 16, 1},
        {DTYPE_BF16, {259}, 1, 1, 32, 128},
    };
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++)
        check(&runs[i]);
}

static void attends_plainly(void **state) {
    (void)state;
    static const Run runs[] = {
        {DTYPE_F32, {1}, 1, 1, 2, 0},        {DTYPE_F32, {33}, 2, 1, 16, 0},   {DTYPE_F32, {5, 31, 2}, 4, 2, 64, 7},
        {DTYPE_F32, {32}, 6, 2, 130, 0},     {DTYPE_F32, {60}, 1, 1, 34, 33},  {DTYPE_BF16, {40}, 2, 1, 20, 0},
        {DTYPE_BF16, {9, 34}, 2, 1, 256, 0}, {DTYPE_BF16, {35}, 1, 1, 512, 0},
    };
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++)
        check(&runs[i]);
}

/* The heads of Llama-3 8B, of Qwen2.5 0.5B, of Phi-3 mini (96 wide); short sequences. */
static void attends_in_real_shapes(void **state) {
    (void)state;
    static const Run runs[] = {
        {DTYPE_BF16, {37}, 32, 8, 128, 0}, {DTYPE_BF16, {19, 30}, 14, 2, 64, 0}, {DTYPE_BF16, {35}, 32, 32, 96, 24}};
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++)
        check(&runs[i]);
}

/* Rows of [q | k | v | gap]. A gap that is no multiple of eight leaves the tensor cores' path to those without it. */
static void attends_side_by_side(void **state) {
    (void)state;
    static const Run runs[] = {
        {DTYPE_BF16, {1}, 1, 1, 8, 0},       {DTYPE_BF16, {33}, 4, 2, 40, 0},      {DTYPE_BF16, {63}, 1, 1, 64, 0},
        {DTYPE_BF16, {65}, 3, 1, 64, 0},     {DTYPE_BF16, {129}, 2, 1, 128, 0},    {DTYPE_BF16, {40, 27, 3, 11}, 2, 1, 96, 17},
        {DTYPE_BF16, {9, 34}, 2, 1, 256, 0}, {DTYPE_F32, {5, 31, 2}, 4, 2, 64, 7}, {DTYPE_F32, {32}, 6, 2, 130, 0}};
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        check_joined(&runs[i], 0);
        check_joined(&runs[i], 6);
    }
    check_joined(&(Run){DTYPE_BF16, {37}, 32, 8, 128, 0}, 0); /* Llama-3 8B */
}

/* Two launches, the same bits; and the same where q, k and v lie side by side. */
static void repeats(void **state) {
    (void)state;
    static const Run run = {DTYPE_BF16, {70, 67}, 4, 2, 64, 0};
    Fixture f;
    fixture_open(&f, &run);
    for (int64_t gap = -1; gap <= 8; gap += 9) {
        OnDevice a = run_device(&f, -1), b = run_device(&f, gap);
        const void *first[] = {a.out.o, a.out.dq, a.out.dk, a.out.dv}, *second[] = {b.out.o, b.out.dq, b.out.dk, b.out.dv};
        for (int i = 0; i < 4; i++) {
            size_t bytes = (size_t)(i < 2 ? f.q_count : f.kv_count) * sizeof(bf16);
            void *x = scope_bytes(&f.scope, bytes), *y = scope_bytes(&f.scope, bytes);
            device_read(x, first[i], bytes);
            device_read(y, second[i], bytes);
            assert_memory_equal(x, y, bytes);
        }
    }
    fixture_close(&f);
}

/* One sequence in parts: each part sees what the cache holds before it. */
static void check_cached(const Run *run, const int64_t *parts, int64_t count, int joined) {
    Fixture f;
    fixture_open(&f, run);
    int64_t width = run->heads * run->head_dim, kv_width = run->kv_heads * run->head_dim, capacity = f.batch.tokens + 9,
            past = 0;
    size_t element = dtype_size(run->act);
    AttentionShape shape = f.shape;
    shape.rows = capacity;
    void *k_cache = device_nan(&f.device, run->act, capacity * kv_width),
         *v_cache = device_nan(&f.device, run->act, capacity * kv_width);
    double tolerance = run->act == DTYPE_BF16 ? 0x1p-6 : 2e-5;
    for (int64_t part = 0; part < count; part++) {
        Batch batch = scope_batch(&f.scope, &parts[part], 1, 10);
        const DeviceBatch *there = device_batch(&f.device, &batch, past);
        int64_t rows = parts[part], q_at = past * width, kv_at = past * kv_width;
        const void *q = device_in(&f.device, (const char *)f.q + (size_t)q_at * element, (size_t)(rows * width) * element);
        const void *k = device_in(&f.device, (const char *)f.k + (size_t)kv_at * element, (size_t)(rows * kv_width) * element);
        const void *v = device_in(&f.device, (const char *)f.v + (size_t)kv_at * element, (size_t)(rows * kv_width) * element);
        void *o = device_nan(&f.device, run->act, (rows + SPARE) * width);
        if (joined) {
            int64_t stride = width + 2 * kv_width;
            uint8_t *values = device_nan(&f.device, run->act, rows * stride);
            device_put(run->act, values, stride, (const char *)f.q + (size_t)q_at * element, rows, width);
            q = values, k = device_member(run->act, values, width), v = device_member(run->act, values, width + kv_width);
            device_put(run->act, (void *)(uintptr_t)k, stride, (const char *)f.k + (size_t)kv_at * element, rows, kv_width);
            device_put(run->act, (void *)(uintptr_t)v, stride, (const char *)f.v + (size_t)kv_at * element, rows, kv_width);
            shape.q_stride = shape.k_stride = shape.v_stride = stride;
        }
        assert_cuda(cuda_cache_append(run->act, there, &shape, rows + SPARE, k, v, k_cache, v_cache, 0));
        assert_cuda(cuda_attention_cached(run->act, there, &shape, rows + SPARE, q, k_cache, v_cache, o, 0));
        void *want = scope_nan(&f.scope, run->act, rows * width);
        dtype_convert(want, run->act, (const float *)f.exact.o + q_at, DTYPE_F32, rows * width);
        device_compare("o", run->act, o, want, rows * width, SPARE * width, tolerance, "weights and results rounded to BF16");
        past += rows;
    }
    device_compare("the cache's keys", run->act, k_cache, f.k, f.kv_count, 9 * kv_width, 0.0, "copies");
    device_compare("the cache's values", run->act, v_cache, f.v, f.kv_count, 9 * kv_width, 0.0, "copies");
    fixture_close(&f);
}

static void attends_to_a_cache(void **state) {
    (void)state;
    static const int64_t parts[] = {33, 1, 1, 66, 1};
    static const Run runs[] = {{DTYPE_BF16, {102}, 2, 1, 64, 0},
                               {DTYPE_BF16, {102}, 2, 2, 128, 40},
                               {DTYPE_F32, {102}, 2, 1, 16, 0},
                               {DTYPE_BF16, {102}, 1, 1, 136, 21}};
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        check_cached(&runs[i], parts, 5, 0);
        check_cached(&runs[i], parts, 5, 1);
    }
}

static void refuses(void **state) {
    (void)state;
    AttentionShape shape = {.rows = 4, .heads = 3, .kv_heads = 2, .head_dim = 64, .scale = 1.0f};
    assert_int_equal(cuda_attention_forward(DTYPE_BF16, NULL, &shape, NULL, NULL, NULL, NULL, NULL, 0), cudaErrorInvalidValue);
    shape.heads = 4, shape.head_dim = CUDA_HEAD_DIM_MAX + 2;
    assert_int_equal(cuda_attention_forward(DTYPE_BF16, NULL, &shape, NULL, NULL, NULL, NULL, NULL, 0), cudaErrorInvalidValue);
    shape.head_dim = 64, shape.q_stride = 255;
    assert_int_equal(cuda_attention_forward(DTYPE_BF16, NULL, &shape, NULL, NULL, NULL, NULL, NULL, 0), cudaErrorInvalidValue);
    shape.head_dim = 5, shape.q_stride = 0;
    assert_int_equal(cuda_attention_forward(DTYPE_F32, NULL, &shape, NULL, NULL, NULL, NULL, NULL, 0), cudaErrorInvalidValue);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(attends),
                                       cmocka_unit_test(attends_plainly),
                                       cmocka_unit_test(attends_in_real_shapes),
                                       cmocka_unit_test(attends_side_by_side),
                                       cmocka_unit_test(repeats),
                                       cmocka_unit_test(attends_to_a_cache),
                                       cmocka_unit_test(refuses)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
