/* Norm, rope, gate and embedding against the reference. Elementwise results in BF16 may differ by one ulp where FP32 and
 * double arithmetic fall on two sides of a tie; two where one rounding feeds another (norm's n * weight). */
#include "tests/unit/test_simd.h"

static const int64_t widths[] = {1, 7, 8, 15, 16, 17, 31, 64, 131, 515, 1040};
enum { WIDTHS = sizeof widths / sizeof *widths, ROWS = 37, CAPACITY = 39 };
static const int thread_counts[] = {2, 3, 8};
enum { THREAD_COUNTS = 3 };

/* |a - b| <= ulps of b's size, an ulp being 2^-7 of a BF16 or 2^-23 of an F32 value, plus the same of 2^-13 times `scale`
 * for values that come out of a cancellation. */
static void assert_elements(const char *what, DType type, const void *a, const void *b, int64_t count, double ulps,
                            double scale) {
    double ulp = type == DTYPE_BF16 ? 0x1p-7 : 0x1p-23;
    for (int64_t i = 0; i < count; i++) {
        double x = value_at(type, a, i), y = value_at(type, b, i);
        if (!(fabs(x - y) <= ulps * ulp * (fabs(y) + 0x1p-13 * scale) + ulps * 0x1p-23 * scale))
            fail_msg("%s: element %lld: got %.9g, want %.9g", what, (long long)i, x, y);
    }
}

/* ---- norm ------------------------------------------------------------------------------------------------------------- */

typedef struct NormOut {
    void *sum, *y, *dr;
    float *rstd, *dw;
} NormOut;

typedef struct NormIn {
    NormShape shape;
    Batch batch;
    void *residual, *x, *weight, *dy, *d_sum;
    float *dw;
} NormIn;

static NormOut run_norm(const Backend *backend, const NormIn *in, DType act, int threads) {
    Exec exec = exec_of(act, threads);
    OpPlan plan;
    assert_ok(backend->norm_plan(&exec.config, &in->shape, &plan, err));
    size_t bytes = (size_t)(CAPACITY * in->shape.hidden) * dtype_size(act);
    NormOut out = {.sum = buffer(bytes), .y = buffer(bytes), .rstd = buffer(plan.saved)};
    out.dr = copy_of(in->d_sum, bytes); /* in place over d_sum */
    out.dw = copy_of(in->dw, (size_t)in->shape.hidden * sizeof(float));
    assert_ok(backend->norm_forward(&exec, &in->shape, &in->batch, in->residual, in->shape.has_x ? in->x : NULL, in->weight,
                                    out.sum, out.y, out.rstd, NULL, err));
    assert_ok(backend->norm_backward(&exec, &in->shape, &in->batch, in->shape.has_x ? out.sum : in->residual, in->weight,
                                     out.rstd, in->dy, out.dr, out.dr, out.dw, NULL, err));
    pool_free(exec.pool);
    return out;
}

static void free_norm(NormOut *out) {
    free(out->sum);
    free(out->y);
    free(out->dr);
    free(out->rstd);
    free(out->dw);
}

static void norm_case(const Backend *ref, const Backend *simd, Random *r, DType act, int64_t hidden, int has_x) {
    NormIn in = {.shape = {.rows = CAPACITY, .hidden = hidden, .epsilon = 1e-6, .has_x = has_x, .train = 1, .need_dx = 1},
                 .batch = {.tokens = ROWS}};
    int64_t count = CAPACITY * hidden, used = ROWS * hidden;
    in.residual = random_values(r, act, count, 2.0f);
    in.x = random_values(r, act, count, 1.0f);
    in.weight = random_values(r, act, hidden, 1.5f);
    in.dy = random_values(r, act, count, 1.0f);
    in.d_sum = random_values(r, act, count, 1.0f);
    in.dw = random_values(r, DTYPE_F32, hidden, 1.0f);
    NormOut want = run_norm(ref, &in, act, 1), one = run_norm(simd, &in, act, 1);
    assert_elements("rstd", DTYPE_F32, one.rstd, want.rstd, ROWS, 8.0, 0.0); /* a sum of `hidden` FP32 squares, halved */
    if (has_x) assert_memory_equal(one.sum, want.sum, (size_t)used * dtype_size(act));
    assert_elements("y", act, one.y, want.y, used, act == DTYPE_BF16 ? 2.0 : 12.0, 0.0); /* F32: rstd's error and two more */
    /* elementwise on terms of order rstd * dy up to about 10: cancellation leaves ulps of those */
    assert_elements("dr", act, one.dr, want.dr, used, act == DTYPE_BF16 ? 1.5 : 16.0, 16.0);
    assert_close("dw", DTYPE_F32, one.dw, want.dw, hidden,
                 act == DTYPE_BF16 ? REDUCTION_BF16 : REDUCTION_F32); /* n is rounded to BF16 inside */
    for (size_t k = (size_t)used * dtype_size(act); k < (size_t)count * dtype_size(act); k++)
        assert_int_equal(((const uint8_t *)one.y)[k], 0xFF); /* rows beyond the batch: untouched */
    for (int i = 0; i < THREAD_COUNTS; i++) {
        NormOut more = run_norm(simd, &in, act, thread_counts[i]);
        assert_memory_equal(more.y, one.y, (size_t)used * dtype_size(act));
        assert_memory_equal(more.dr, one.dr, (size_t)used * dtype_size(act));
        assert_memory_equal(more.dw, one.dw, (size_t)hidden * sizeof(float));
        free_norm(&more);
    }
    free_norm(&one);
    free_norm(&want);
    void *const parts[] = {in.residual, in.x, in.weight, in.dy, in.d_sum, in.dw};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        free(parts[i]);
}

static void norm(const Backend *ref, const Backend *simd, const char *name) {
    assert_string_equal(simd->variant.norm, name);
    Random r = {0};
    for (int w = 0; w < WIDTHS; w++)
        for (int act = 0; act < 2; act++)
            for (int has_x = 0; has_x < 2; has_x++)
                norm_case(ref, simd, &r, act ? DTYPE_BF16 : DTYPE_F32, widths[w], has_x);
}

/* ---- gate ------------------------------------------------------------------------------------------------------------- */

static void gate(const Backend *ref, const Backend *simd, const char *name) {
    assert_string_equal(simd->variant.gate, name);
    Random r = {0};
    for (int w = 0; w < WIDTHS; w++)
        for (int which = 0; which < 4; which++) {
            int act = which & 1;
            DType type = act ? DTYPE_BF16 : DTYPE_F32;
            int64_t count = ROWS * widths[w];
            size_t bytes = (size_t)count * dtype_size(type);
            GateShape shape = {.rows = ROWS, .width = widths[w], .kind = which & 2 ? GATE_GELU_TANH : GATE_SILU};
            Batch batch = {.tokens = ROWS};
            void *g = random_values(&r, type, count, w % 3 == 0 ? 100.0f : 6.0f), *u = random_values(&r, type, count, 2.0f);
            void *dy = random_values(&r, type, count, 1.0f);
            void *y[2] = {buffer(bytes), buffer(bytes)}, *dg[2] = {copy_of(g, bytes), copy_of(g, bytes)};
            void *du[2] = {copy_of(dy, bytes), copy_of(dy, bytes)};
            for (int s = 0; s < 2; s++) {
                const Backend *backend = s == 0 ? ref : simd;
                Exec exec = exec_of(type, s == 0 ? 1 : 3);
                assert_ok(backend->gate_forward(&exec, &shape, &batch, g, u, y[s], err));
                /* over gate's and dy's own buffers, as the contract allows */
                assert_ok(backend->gate_backward(&exec, &shape, &batch, dg[s], u, du[s], dg[s], du[s], err));
                pool_free(exec.pool);
            }
            /* e^x within 2 ulp, then four roundings; 1 + g (1 - s) cancels where silu is flat: ulps of |u dy| <= 2 */
            double ulps = act ? 1.0 : 8.0;
            /* GELU: z is rounded before its exponential, an error of |z| s (1 - s) ulps of |g u|, |g dy|: below 1 ulp of 2 */
            double floor_of = shape.kind == GATE_SILU ? 1e-30 : 2.0;
            assert_elements("y", type, y[1], y[0], count, ulps, floor_of);
            assert_elements("d_gate", type, dg[1], dg[0], count, ulps, 2.0);
            assert_elements("d_up", type, du[1], du[0], count, ulps, floor_of);
            void *const parts[] = {g, u, dy, y[0], y[1], dg[0], dg[1], du[0], du[1]};
            for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
                free(parts[i]);
        }
}

/* ---- rope ------------------------------------------------------------------------------------------------------------- */

enum { HEADS = 3, KV = 2, TABLE = 20 };

typedef struct RopeOut {
    void *rq, *rk, *dq, *dk;
    float *roots, *dqw, *dkw;
} RopeOut;

typedef struct RopeIn {
    RopeShape shape;
    TestBatch batch;
    RopeTable table;
    void *q, *k, *drq, *drk, *qw, *kw;
    float *start;
} RopeIn;

static RopeOut run_rope(const Backend *backend, const RopeIn *in, DType act, int threads) {
    Exec exec = exec_of(act, threads);
    OpPlan plan;
    assert_ok(backend->rope_plan(&exec.config, &in->shape, &plan, err));
    size_t q_bytes = (size_t)(ROWS * HEADS * in->shape.head_dim) * dtype_size(act);
    size_t k_bytes = (size_t)(ROWS * KV * in->shape.head_dim) * dtype_size(act);
    size_t w_bytes = (size_t)in->shape.head_dim * sizeof(float);
    RopeOut out = {.rq = buffer(q_bytes),
                   .rk = buffer(k_bytes),
                   .dq = copy_of(in->drq, q_bytes), /* in place */
                   .dk = copy_of(in->drk, k_bytes),
                   .roots = buffer(plan.saved),
                   .dqw = copy_of(in->start, w_bytes),
                   .dkw = copy_of(in->start, w_bytes)};
    const Batch *batch = &in->batch.batch;
    assert_ok(backend->rope_forward(&exec, &in->shape, batch, &in->table, in->q, in->k, in->qw, in->kw, out.rq, out.rk,
                                    out.roots, NULL, err));
    int has_norm = in->shape.has_norm;
    assert_ok(backend->rope_backward(&exec, &in->shape, batch, &in->table, has_norm ? in->q : NULL, has_norm ? in->k : NULL,
                                     in->qw, in->kw, out.roots, out.dq, out.dk, out.dq, out.dk, out.dqw, out.dkw, NULL, err));
    pool_free(exec.pool);
    return out;
}

static void free_rope(RopeOut *out) {
    void *const parts[] = {out->rq, out->rk, out->dq, out->dk, out->roots, out->dqw, out->dkw};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        free(parts[i]);
}

static void rope_case(const Backend *ref, const Backend *simd, Random *r, DType act, int64_t dim, int has_norm) {
    RopeIn in = {.shape = {.rows = CAPACITY,
                           .heads = HEADS,
                           .kv_heads = KV,
                           .head_dim = dim,
                           .table_rows = TABLE,
                           .has_norm = has_norm,
                           .train_norm = has_norm,
                           .epsilon = 1e-6}};
    in.batch = random_batch(r, ROWS, 11, 5);
    float *cosine = buffer((size_t)(TABLE * dim / 2) * sizeof(float)),
          *sine = buffer((size_t)(TABLE * dim / 2) * sizeof(float));
    for (int64_t i = 0; i < TABLE * dim / 2; i++) {
        cosine[i] = cosf((float)i);
        sine[i] = sinf((float)i);
    }
    in.table = (RopeTable){cosine, sine};
    in.q = random_values(r, act, ROWS * HEADS * dim, 2.0f);
    in.k = random_values(r, act, ROWS * KV * dim, 2.0f);
    in.drq = random_values(r, act, ROWS * HEADS * dim, 1.0f);
    in.drk = random_values(r, act, ROWS * KV * dim, 1.0f);
    in.qw = random_values(r, act, dim, 1.5f);
    in.kw = random_values(r, act, dim, 1.5f);
    in.start = random_values(r, DTYPE_F32, dim, 1.0f);
    RopeOut want = run_rope(ref, &in, act, 1), one = run_rope(simd, &in, act, 1);
    /* a difference of two products of order 2 (up to 16 behind rstd): ulps of the terms; with a norm its double rounding */
    double ulps = act == DTYPE_BF16 ? (has_norm ? 2.5 : 1.0) : 16.0, scale = has_norm ? 16.0 : 4.0;
    double wide = has_norm && act == DTYPE_BF16 ? 0x1p13 : scale; /* an ulp of normed q or k, not of their rotation */
    assert_elements("rq", act, one.rq, want.rq, ROWS * HEADS * dim, ulps, wide);
    assert_elements("rk", act, one.rk, want.rk, ROWS * KV * dim, ulps, wide);
    assert_elements("dq", act, one.dq, want.dq, ROWS * HEADS * dim, act == DTYPE_BF16 ? 1.5 : 32.0, scale);
    assert_elements("dk", act, one.dk, want.dk, ROWS * KV * dim, act == DTYPE_BF16 ? 1.5 : 32.0, scale);
    if (has_norm) {
        double tolerance = act == DTYPE_BF16 ? REDUCTION_BF16 : REDUCTION_F32;
        assert_close("q weight", DTYPE_F32, one.dqw, want.dqw, dim, tolerance);
        assert_close("k weight", DTYPE_F32, one.dkw, want.dkw, dim, tolerance);
    }
    for (int i = 0; i < THREAD_COUNTS; i++) {
        RopeOut more = run_rope(simd, &in, act, thread_counts[i]);
        assert_memory_equal(more.rq, one.rq, (size_t)(ROWS * HEADS * dim) * dtype_size(act));
        assert_memory_equal(more.dk, one.dk, (size_t)(ROWS * KV * dim) * dtype_size(act));
        assert_memory_equal(more.dqw, one.dqw, (size_t)dim * sizeof(float));
        assert_memory_equal(more.dkw, one.dkw, (size_t)dim * sizeof(float));
        free_rope(&more);
    }
    free_rope(&one);
    free_rope(&want);
    batch_free(&in.batch);
    void *const parts[] = {cosine, sine, in.q, in.k, in.drq, in.drk, in.qw, in.kw, in.start};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        free(parts[i]);
}

static void rope(const Backend *ref, const Backend *simd, const char *name) {
    assert_string_equal(simd->variant.rope, name);
    static const int64_t dims[] = {2, 6, 16, 18, 32, 34, 64, 80, 128};
    Random r = {0};
    for (size_t d = 0; d < sizeof dims / sizeof *dims; d++)
        for (int act = 0; act < 2; act++)
            for (int has_norm = 0; has_norm < 2; has_norm++)
                rope_case(ref, simd, &r, act ? DTYPE_BF16 : DTYPE_F32, dims[d], has_norm);
}

/* ---- embedding -------------------------------------------------------------------------------------------------------- */

/* Both ways exact: a copy with one rounding, and FP32 sums in row order. */
static void embed(const Backend *ref, const Backend *simd, const char *name) {
    (void)name;
    enum { VOCAB = 9 };
    Random r = {0};
    static const WeightFormat formats[] = {WEIGHT_F32, WEIGHT_BF16, WEIGHT_NF4};
    for (int w = 0; w < WIDTHS; w++)
        for (int f = 0; f < 3; f++) {
            DType type = w % 2 ? DTYPE_BF16 : DTYPE_F32;
            int64_t hidden = widths[w];
            EmbedShape shape = {.rows = CAPACITY, .vocab = VOCAB, .hidden = hidden, .train = 1};
            TestBatch batch = random_batch(&r, ROWS, 5, VOCAB);
            TestWeight table = random_weight(&r, formats[f], VOCAB, hidden, 64, 0);
            size_t bytes = (size_t)(ROWS * hidden) * dtype_size(type), table_bytes = (size_t)(VOCAB * hidden) * sizeof(float);
            void *dy = random_values(&r, type, ROWS * hidden, 1.0f), *y[2];
            float *start = random_values(&r, DTYPE_F32, VOCAB * hidden, 1.0f), *d_table[2];
            for (int s = 0; s < 2; s++) {
                const Backend *backend = s == 0 ? ref : simd;
                Exec exec = exec_of(type, s == 0 ? 1 : 3);
                y[s] = buffer(bytes);
                d_table[s] = copy_of(start, table_bytes);
                assert_ok(backend->embed_forward(&exec, &shape, &batch.batch, &table.view, y[s], err));
                assert_ok(backend->embed_backward(&exec, &shape, &batch.batch, dy, d_table[s], NULL, err));
                pool_free(exec.pool);
            }
            assert_memory_equal(y[0], y[1], bytes);
            assert_memory_equal(d_table[0], d_table[1], table_bytes);
            batch_free(&batch);
            weight_free(&table);
            void *const parts[] = {dy, start, y[0], y[1], d_table[0], d_table[1]};
            for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
                free(parts[i]);
        }
}

#define TEST(check)                          \
    static void test_##check(void **state) { \
        (void)state;                         \
        each_variant(check);                 \
    }
TEST(norm)
TEST(gate)
TEST(rope)
TEST(embed)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_norm),
        cmocka_unit_test(test_gate),
        cmocka_unit_test(test_rope),
        cmocka_unit_test(test_embed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
