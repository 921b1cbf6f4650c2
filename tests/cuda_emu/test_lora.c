/* The adapters' products on the device against double: each from operands that are given, dropout by the CPU's numbers. */
#include "core/philox.h"
#include "tests/cuda_emu/device.h"

enum { SPARE = 2 };

typedef struct Run {
    DType act;
    int64_t tokens, in;
    int count;
    int64_t out[LINEAR_GROUP_MAX], rank[LINEAR_GROUP_MAX];
    float dropout;
    int bias;
    int64_t gap; /* 0, or columns behind the members' results in one buffer */
} Run;

typedef struct Fixture {
    const Run *run;
    Scope scope;
    Device device;
    Batch batch;
    LinearShape shape;
    const DeviceBatch *there;
} Fixture;

static double kept(const Fixture *f, int i, int64_t t, int64_t feature) {
    const LinearSpec *spec = &f->shape.linear[i];
    if (!f->batch.dropout || !(spec->dropout > 0.0f)) return 1.0;
    int keep = dropout_keep(f->batch.seed, spec->dropout_stream, f->batch.samples[t], (uint32_t)f->batch.positions[t],
                            (uint32_t)feature, dropout_threshold(spec->dropout));
    return keep ? 1.0 / (1.0 - (double)spec->dropout) : 0.0;
}

static void fixture_open(Fixture *f, const Run *run) {
    *f = (Fixture){.run = run};
    int64_t lengths[2] = {run->tokens - run->tokens / 3, run->tokens / 3};
    f->batch = scope_batch(&f->scope, lengths, lengths[1] > 0 ? 2 : 1, 10);
    f->shape = (LinearShape){.rows = run->tokens + SPARE, .in = run->in, .count = run->count, .need_dx = 1};
    for (int i = 0; i < run->count; i++) {
        f->shape.linear[i] = (LinearSpec){.out = run->out[i],
                                          .format = WEIGHT_BF16,
                                          .rank = run->rank[i],
                                          .lora_scale = 0.5f + (float)i,
                                          .dropout = run->dropout,
                                          .dropout_stream = 3u + (uint32_t)i,
                                          .has_bias = run->bias};
    }
    for (int i = 0; run->gap > 0 && i < run->count; i++)
        f->shape.stride += run->out[i];
    f->shape.stride += run->gap;
    f->there = device_batch(&f->device, &f->batch, 0);
}

static void fixture_close(Fixture *f) {
    device_close(&f->device);
    scope_close(&f->scope);
}

/* BF16: one rounding; F32: sums of at most 4,100 products */
static double tolerance(const Fixture *f) {
    return f->run->act == DTYPE_BF16 ? 0x1p-8 : 1e-5;
}
static const char *rounded = "one rounding of the result, which may fall to the neighbour; FP32 sums";
static const char *summed = "FP32 sums; a gradient of s is two BF16 of 16 bits together";

typedef struct Arrays {
    const void *host[LINEAR_GROUP_MAX], *device[LINEAR_GROUP_MAX];
} Arrays;

static Arrays arrays(Fixture *f, DType type, int64_t rows, const int64_t *columns, double scale) {
    Arrays a = {0};
    for (int i = 0; i < f->run->count; i++) {
        int64_t r = rows > 0 ? rows : f->run->out[i], count = r * columns[i];
        a.host[i] = scope_random(&f->scope, type, count, scale);
        if (type == DTYPE_F32) { /* more bits than BF16 has */
            for (int64_t e = 0; e < count; e++)
                ((float *)a.host[i])[e] *= 1.0f + (float)(e % 1000) * 0x1p-17f;
        }
        a.device[i] = device_in_values(&f->device, type, a.host[i], count);
    }
    return a;
}

/* dy of all members, side by side where the run has a gap. */
static Arrays gradients(Fixture *f) {
    const Run *run = f->run;
    Arrays dy = arrays(f, run->act, run->tokens, run->out, 1.0);
    if (run->gap == 0) return dy;
    void *joined = device_nan(&f->device, run->act, run->tokens * f->shape.stride);
    int64_t column = 0;
    for (int i = 0; i < run->count; i++) {
        void *member = device_member(run->act, joined, column);
        device_put(run->act, member, f->shape.stride, dy.host[i], run->tokens, run->out[i]);
        dy.device[i] = member;
        column += run->out[i];
    }
    return dy;
}

static void check_down(Fixture *f) {
    const Run *run = f->run;
    int64_t in[LINEAR_GROUP_MAX] = {run->in, run->in, run->in};
    const void *x = scope_random(&f->scope, run->act, run->tokens * run->in, 1.0);
    Arrays a = {0};
    void *s[LINEAR_GROUP_MAX];
    for (int i = 0; i < run->count; i++) {
        a.host[i] = scope_random(&f->scope, run->act, run->rank[i] * in[i], 1.0);
        a.device[i] = device_in_values(&f->device, run->act, a.host[i], run->rank[i] * in[i]);
        s[i] = device_nan(&f->device, run->act, (run->tokens + SPARE) * run->rank[i]);
    }
    assert_cuda(cuda_lora_down(run->act, f->there, &f->shape, device_in_values(&f->device, run->act, x, run->tokens * run->in),
                               a.device, s, 0));
    for (int i = 0; i < run->count; i++) {
        int64_t rank = run->rank[i];
        double *want = scope_nan(&f->scope, DTYPE_F64, run->tokens * rank);
        for (int64_t t = 0; t < run->tokens; t++)
            for (int64_t r = 0; r < rank; r++) {
                double sum = 0.0;
                for (int64_t c = 0; c < run->in; c++)
                    sum += kept(f, i, t, c) * element_of(run->act, x, t * run->in + c) *
                           element_of(run->act, a.host[i], r * run->in + c);
                want[t * rank + r] = sum;
            }
        void *narrow = scope_nan(&f->scope, run->act, run->tokens * rank);
        dtype_convert(narrow, run->act, want, DTYPE_F64, run->tokens * rank);
        device_compare("s", run->act, s[i], narrow, run->tokens * rank, SPARE * rank, tolerance(f), rounded);
    }
}

static void check_up(Fixture *f) {
    const Run *run = f->run;
    Arrays s = arrays(f, run->act, run->tokens, run->rank, 1.0), b = arrays(f, run->act, 0, run->rank, 1.0);
    int64_t rows = run->tokens + SPARE, stride = f->shape.stride, column = 0;
    void *joined = device_nan(&f->device, run->act, rows * stride);
    for (int i = 0; i < run->count; i++) {
        int64_t out = run->out[i], rank = run->rank[i];
        const void *bias = scope_random(&f->scope, run->act, out, 3.0);
        double *want = scope_nan(&f->scope, DTYPE_F64, run->tokens * out);
        for (int64_t t = 0; t < run->tokens; t++)
            for (int64_t o = 0; o < out; o++) {
                double sum = 0.0;
                for (int64_t r = 0; r < rank; r++)
                    sum += element_of(run->act, s.host[i], t * rank + r) * element_of(run->act, b.host[i], o * rank + r);
                want[t * out + o] =
                    (double)f->shape.linear[i].lora_scale * sum + (run->bias ? element_of(run->act, bias, o) : 0.0);
            }
        void *narrow = scope_nan(&f->scope, run->act, run->tokens * out);
        dtype_convert(narrow, run->act, want, DTYPE_F64, run->tokens * out);
        void *y = stride > 0 ? device_member(run->act, joined, column) : device_nan(&f->device, run->act, rows * out);
        const void *there = run->bias ? device_in_values(&f->device, run->act, bias, out) : NULL;
        assert_cuda(cuda_lora_up(run->act, f->there, rows, &f->shape.linear[i], s.device[i], b.device[i], there, y, stride, 0));
        if (stride > 0) y = device_take(&f->device, run->act, y, stride, rows, out);
        column += out;
        device_compare("y", run->act, y, narrow, run->tokens * out, SPARE * out, tolerance(f), rounded);
    }
    device_is_nan("beside the members", run->act, joined, rows * stride);
}

static void check_ds(Fixture *f) {
    const Run *run = f->run;
    Arrays dy = gradients(f), b = arrays(f, run->act, 0, run->rank, 1.0);
    float *ds[LINEAR_GROUP_MAX];
    for (int i = 0; i < run->count; i++)
        ds[i] = device_nan(&f->device, DTYPE_F32, (run->tokens + SPARE) * run->rank[i]);
    assert_cuda(cuda_lora_ds(run->act, f->there, &f->shape, dy.device, b.device, ds, 0));
    for (int i = 0; i < run->count; i++) {
        int64_t out = run->out[i], rank = run->rank[i];
        float *want = scope_nan(&f->scope, DTYPE_F32, run->tokens * rank);
        for (int64_t t = 0; t < run->tokens; t++)
            for (int64_t r = 0; r < rank; r++) {
                double sum = 0.0;
                for (int64_t o = 0; o < out; o++)
                    sum += element_of(run->act, dy.host[i], t * out + o) * element_of(run->act, b.host[i], o * rank + r);
                want[t * rank + r] = (float)sum;
            }
        device_compare("ds", DTYPE_F32, ds[i], want, run->tokens * rank, SPARE * rank, 1e-5, "FP32 sums of exact products");
    }
}

static void check_dx(Fixture *f) {
    const Run *run = f->run;
    int64_t in[LINEAR_GROUP_MAX] = {run->in, run->in, run->in};
    Arrays ds = arrays(f, DTYPE_F32, run->tokens, run->rank, 1.0), a = {0};
    double *want = scope_filled(&f->scope, DTYPE_F64, run->tokens * run->in, 0.0);
    for (int i = 0; i < run->count; i++) {
        int64_t rank = run->rank[i];
        a.host[i] = scope_random(&f->scope, run->act, rank * in[i], 1.0);
        a.device[i] = device_in_values(&f->device, run->act, a.host[i], rank * in[i]);
        for (int64_t t = 0; t < run->tokens; t++)
            for (int64_t c = 0; c < run->in; c++) {
                double sum = 0.0;
                for (int64_t r = 0; r < rank; r++)
                    sum += (double)((const float *)ds.host[i])[t * rank + r] * element_of(run->act, a.host[i], r * run->in + c);
                want[t * run->in + c] += (double)f->shape.linear[i].lora_scale * kept(f, i, t, c) * sum;
            }
    }
    void *narrow = scope_nan(&f->scope, run->act, run->tokens * run->in);
    dtype_convert(narrow, run->act, want, DTYPE_F64, run->tokens * run->in);
    void *dx = device_nan(&f->device, run->act, (run->tokens + SPARE) * run->in);
    assert_cuda(cuda_lora_dx(run->act, f->there, &f->shape, (const float *const *)ds.device, a.device, dx, 0));
    device_compare("dx", run->act, dx, narrow, run->tokens * run->in, SPARE * run->in, tolerance(f), rounded);
}

static void check_gradients(Fixture *f) {
    const Run *run = f->run;
    Arrays ds = arrays(f, DTYPE_F32, run->tokens, run->rank, 1.0), s = arrays(f, run->act, run->tokens, run->rank, 1.0);
    Arrays dy = gradients(f);
    const void *x = scope_random(&f->scope, run->act, run->tokens * run->in, 1.0);
    float *d_a[LINEAR_GROUP_MAX] = {NULL}, *d_b[LINEAR_GROUP_MAX] = {NULL};
    float *want_a[LINEAR_GROUP_MAX], *want_b[LINEAR_GROUP_MAX];
    for (int i = 0; i < run->count; i++) {
        int64_t rank = run->rank[i], out = run->out[i];
        double scale = (double)f->shape.linear[i].lora_scale;
        want_a[i] = scope_filled(&f->scope, DTYPE_F32, rank * run->in, 0.5);
        want_b[i] = scope_filled(&f->scope, DTYPE_F32, rank * out, 0.5);
        if (i != 1) d_a[i] = device_out(&f->device, want_a[i], (size_t)(rank * run->in) * sizeof(float));
        d_b[i] = device_out(&f->device, want_b[i], (size_t)(rank * out) * sizeof(float));
        for (int64_t r = 0; r < rank; r++) {
            for (int64_t c = 0; c < run->in; c++) {
                double sum = 0.0;
                for (int64_t t = 0; t < run->tokens; t++)
                    sum += (double)((const float *)ds.host[i])[t * rank + r] * kept(f, i, t, c) *
                           element_of(run->act, x, t * run->in + c);
                want_a[i][r * run->in + c] += (float)(scale * sum);
            }
            for (int64_t o = 0; o < out; o++) {
                double sum = 0.0;
                for (int64_t t = 0; t < run->tokens; t++)
                    sum += element_of(run->act, dy.host[i], t * out + o) * element_of(run->act, s.host[i], t * rank + r);
                want_b[i][o * rank + r] += (float)(scale * sum);
            }
        }
    }
    const void *there = device_in_values(&f->device, run->act, x, run->tokens * run->in);
    assert_cuda(cuda_lora_da(run->act, f->there, &f->shape, there, (const float *const *)ds.device, d_a, 0));
    assert_cuda(cuda_lora_db(run->act, f->there, &f->shape, dy.device, s.device, d_b, 0));
    for (int i = 0; i < run->count; i++) {
        if (i != 1) device_compare("dA", DTYPE_F32, d_a[i], want_a[i], run->rank[i] * run->in, 0, 2e-5, summed);
        device_compare("dB", DTYPE_F32, d_b[i], want_b[i], run->rank[i] * run->out[i], 0, 1e-5, summed);
    }
}

static void check(const Run *run) {
    static void (*const parts[])(Fixture *) = {check_down, check_up, check_ds, check_dx, check_gradients};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        Fixture f;
        fixture_open(&f, run);
        parts[i](&f);
        fixture_close(&f);
    }
}

static void multiplies(void **state) {
    (void)state;
    static const Run runs[] = {
        {DTYPE_BF16, 1, 1, 1, {1}, {1}, 0.0f, 0, 0},
        {DTYPE_BF16, 31, 40, 1, {24}, {3}, 0.0f, 1, 0},
        {DTYPE_BF16, 33, 64, 3, {64, 32, 32}, {8, 8, 8}, 0.1f, 1, 0},
        {DTYPE_BF16, 65, 264, 2, {264, 96}, {16, 16}, 0.0f, 0, 0},
        {DTYPE_BF16, 17, 300, 2, {37, 41}, {5, 19}, 0.25f, 0, 0},
        {DTYPE_BF16, 19, 31, 1, {29}, {7}, 0.5f, 0, 0},
        {DTYPE_BF16, 40, 72, 3, {40, 8, 8}, {33, 64, 16}, 0.05f, 0, 0},
        {DTYPE_BF16, 300, 32, 1, {264}, {16}, 0.1f, 0, 0},
        {DTYPE_BF16, 9, 896, 3, {896, 128, 128}, {16, 16, 16}, 0.05f, 1, 0}, /* q, k, v of Qwen2.5 0.5B */
        {DTYPE_BF16, 5, 4096, 1, {1024}, {64}, 0.0f, 0, 0},                  /* k of Llama-3 8B */
        {DTYPE_F32, 7, 19, 2, {11, 5}, {3, 4}, 0.3f, 1, 0},
        {DTYPE_F32, 9, 300, 1, {260}, {9}, 0.0f, 0, 0},
        {DTYPE_BF16, 33, 64, 3, {64, 32, 32}, {8, 8, 8}, 0.1f, 1, 8},
        {DTYPE_BF16, 65, 264, 2, {264, 96}, {16, 16}, 0.0f, 0, 16},
        {DTYPE_BF16, 17, 300, 2, {37, 41}, {5, 19}, 0.25f, 0, 3},
        {DTYPE_BF16, 40, 72, 3, {40, 8, 8}, {33, 64, 16}, 0.05f, 0, 5},
        {DTYPE_BF16, 300, 32, 2, {264, 8}, {16, 16}, 0.1f, 0, 8},
        {DTYPE_F32, 7, 19, 2, {11, 5}, {3, 4}, 0.3f, 1, 1},
        /* narrow weights held in registers: around 128 rows, one to four tiles of ranks, parts of tiles and of 32 columns */
        {DTYPE_BF16, 127, 40, 1, {264}, {16}, 0.0f, 1, 0},
        {DTYPE_BF16, 128, 8, 2, {40, 24}, {4, 20}, 0.0f, 1, 8},
        {DTYPE_BF16, 129, 264, 3, {72, 8, 16}, {16, 12, 16}, 0.0f, 0, 24},
        {DTYPE_BF16, 145, 24, 3, {32, 264, 8}, {32, 8, 16}, 0.0f, 1, 0},
        {DTYPE_BF16, 257, 32, 2, {16, 8}, {64, 0}, 0.0f, 0, 0},
        {DTYPE_BF16, 7, 64, 2, {16, 48}, {48, 36}, 0.0f, 1, 0}, /* more tiles than are held together */
    };
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++)
        check(&runs[i]);
}

/* A member without adapter is skipped; y is its bias, or zero. */
static void does_without_adapters(void **state) {
    (void)state;
    Run run = {DTYPE_BF16, 5, 16, 2, {24, 8}, {0, 0}, 0.0f, 0, 0};
    Fixture f;
    fixture_open(&f, &run);
    const void *none[LINEAR_GROUP_MAX] = {NULL};
    float *grads[LINEAR_GROUP_MAX] = {NULL};
    void *s[LINEAR_GROUP_MAX] = {NULL};
    assert_cuda(cuda_lora_down(DTYPE_BF16, f.there, &f.shape, NULL, none, s, 0));
    assert_cuda(cuda_lora_ds(DTYPE_BF16, f.there, &f.shape, none, none, grads, 0));
    assert_cuda(cuda_lora_da(DTYPE_BF16, f.there, &f.shape, NULL, (const float *const *)grads, grads, 0));
    assert_cuda(cuda_lora_db(DTYPE_BF16, f.there, &f.shape, none, none, grads, 0));
    void *y = device_nan(&f.device, DTYPE_BF16, 7 * 24), *dx = device_nan(&f.device, DTYPE_BF16, 7 * 16);
    const void *zeros = scope_filled(&f.scope, DTYPE_BF16, 5 * 24, 0.0);
    assert_cuda(cuda_lora_up(DTYPE_BF16, f.there, 7, &f.shape.linear[0], NULL, NULL, NULL, y, 0, 0));
    assert_cuda(cuda_lora_dx(DTYPE_BF16, f.there, &f.shape, (const float *const *)grads, none, dx, 0));
    device_compare("y", DTYPE_BF16, y, zeros, 5 * 24, 2 * 24, 0.0, "nothing is added");
    device_compare("dx", DTYPE_BF16, dx, zeros, 5 * 16, 2 * 16, 0.0, "nothing is added");
    fixture_close(&f);
}

/* Evaluation: the batch switches dropout off. */
static void evaluates_without_dropout(void **state) {
    (void)state;
    Run run = {DTYPE_BF16, 12, 40, 1, {16}, {8}, 0.4f, 0, 0};
    Fixture f;
    fixture_open(&f, &run);
    f.batch.dropout = 0;
    f.there = device_batch(&f.device, &f.batch, 0);
    check_down(&f);
    check_dx(&f);
    check_gradients(&f);
    fixture_close(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(multiplies), cmocka_unit_test(does_without_adapters),
                                       cmocka_unit_test(evaluates_without_dropout)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
