/* Attention against the reference: ragged sequences, grouped heads, windows, head sizes around the vectors, the cache. */
#include "tests/unit/test_simd.h"

/* Where pairs are multiplied, probabilities and their gradients are rounded to BF16 too: 2^-9 at most a term. */
static double attention_tolerance(const Backend *simd, DType act) {
    int rounded = act == DTYPE_BF16 && strcmp(simd->variant.attention, "avx512bf16") == 0;
    return reduction_tolerance(act) + (rounded ? 0x1p-9 : 0.0);
}

typedef struct Case {
    DType act;
    int64_t tokens, longest, heads, kv_heads, dim, window;
} Case;

typedef struct Outputs {
    void *o, *dq, *dk, *dv;
    float *lse;
} Outputs;

typedef struct Inputs {
    AttentionShape shape;
    TestBatch batch;
    void *q, *k, *v, *d_o;
    void *o, *lse; /* the reference's: backward of both sides starts from the same */
} Inputs;

static size_t query_bytes(const Case *c) {
    return (size_t)(c->tokens * c->heads * c->dim) * dtype_size(c->act);
}
static size_t key_bytes(const Case *c) {
    return (size_t)(c->tokens * c->kv_heads * c->dim) * dtype_size(c->act);
}

static Inputs make_inputs(const Backend *ref, Random *r, const Case *c) {
    Inputs in = {.shape = {.rows = c->tokens + 3,
                           .heads = c->heads,
                           .kv_heads = c->kv_heads,
                           .head_dim = c->dim,
                           .window = c->window,
                           .scale = 1.0f / sqrtf((float)c->dim)}};
    in.batch = random_batch(r, c->tokens, c->longest, 10);
    in.q = random_values(r, c->act, c->tokens * c->heads * c->dim, 3.0f);
    in.k = random_values(r, c->act, c->tokens * c->kv_heads * c->dim, 3.0f);
    in.v = random_values(r, c->act, c->tokens * c->kv_heads * c->dim, 1.0f);
    in.d_o = random_values(r, c->act, c->tokens * c->heads * c->dim, 1.0f);
    Exec exec = exec_of(c->act, 2);
    OpPlan plan;
    assert_ok(ref->attention_plan(&exec.config, &in.shape, &plan, err));
    void *workspace = buffer(plan.forward_workspace);
    in.lse = buffer(plan.saved);
    in.o = buffer(query_bytes(c));
    assert_ok(ref->attention_forward(&exec, &in.shape, &in.batch.batch, in.q, in.k, in.v, in.o, in.lse, workspace, err));
    free(workspace);
    pool_free(exec.pool);
    return in;
}

static Outputs run(const Backend *backend, const Case *c, const Inputs *in, int threads) {
    Exec exec = exec_of(c->act, threads);
    const Batch *batch = &in->batch.batch;
    OpPlan plan;
    assert_ok(backend->attention_plan(&exec.config, &in->shape, &plan, err));
    void *forward = buffer(plan.forward_workspace), *backward = buffer(plan.backward_workspace);
    Outputs out = {.o = buffer(query_bytes(c)),
                   .dq = buffer(query_bytes(c)),
                   .dk = buffer(key_bytes(c)),
                   .dv = buffer(key_bytes(c)),
                   .lse = buffer(plan.saved)};
    assert_ok(backend->attention_forward(&exec, &in->shape, batch, in->q, in->k, in->v, out.o, out.lse, forward, err));
    assert_ok(backend->attention_backward(&exec, &in->shape, batch, in->q, in->k, in->v, in->o, in->lse, in->d_o, out.dq,
                                          out.dk, out.dv, backward, err));
    free(forward);
    free(backward);
    pool_free(exec.pool);
    return out;
}

static void free_outputs(Outputs *out) {
    free(out->o);
    free(out->dq);
    free(out->dk);
    free(out->dv);
    free(out->lse);
}

/* root mean square of the difference, relative to that of the wanted values or to 0.3, whichever is larger */
static void assert_near(const char *what, DType type, const void *got, const void *want, int64_t count, double tolerance) {
    double difference = 0.0, norm = 0.0;
    for (int64_t i = 0; i < count; i++) {
        double x = value_at(type, got, i), y = value_at(type, want, i);
        difference += (x - y) * (x - y);
        norm += y * y;
    }
    double error = sqrt(difference / (double)count) / fmax(sqrt(norm / (double)count), 0.3);
    if (!(error <= tolerance)) fail_msg("%s: relative error %g > %g", what, error, tolerance);
}

static void check_case(const Backend *ref, const Backend *simd, Random *r, const Case *c) {
    Inputs in = make_inputs(ref, r, c);
    Outputs want = run(ref, c, &in, 2), one = run(simd, c, &in, 1);
    double tolerance = attention_tolerance(simd, c->act);
    int64_t queries = c->tokens * c->heads * c->dim, keys = c->tokens * c->kv_heads * c->dim;
    assert_close("o", c->act, one.o, want.o, queries, tolerance);
    assert_close("lse", DTYPE_F32, one.lse, want.lse, c->tokens * c->heads, REDUCTION_F32);
    /* do v - delta cancels (wholly where a query sees one key): the error is that of the terms, so it is measured against
     * the size that dq and dk have without the cancellation, which is about that of scale * d_o * v * k or q: order 1. */
    double cancelled = c->act == DTYPE_BF16 ? tolerance : 4.0 * tolerance;
    assert_near("dq", c->act, one.dq, want.dq, queries, cancelled);
    assert_near("dk", c->act, one.dk, want.dk, keys, cancelled);
    assert_close("dv", c->act, one.dv, want.dv, keys, tolerance);
    const int threads[] = {2, 3, 8};
    for (size_t i = 0; i < sizeof threads / sizeof *threads; i++) {
        Outputs more = run(simd, c, &in, threads[i]);
        assert_memory_equal(more.o, one.o, query_bytes(c));
        assert_memory_equal(more.lse, one.lse, (size_t)(c->tokens * c->heads) * sizeof(float));
        assert_memory_equal(more.dq, one.dq, query_bytes(c));
        assert_memory_equal(more.dk, one.dk, key_bytes(c));
        assert_memory_equal(more.dv, one.dv, key_bytes(c));
        free_outputs(&more);
    }
    free_outputs(&one);
    free_outputs(&want);
    batch_free(&in.batch);
    void *const parts[] = {in.q, in.k, in.v, in.d_o, in.o, in.lse};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        free(parts[i]);
}

static void shapes(const Backend *ref, const Backend *simd, const char *name) {
    assert_string_equal(simd->variant.attention, name);
    static const int64_t sizes[][6] = {
        /* tokens, longest, heads, kv heads, dim, window */
        {1, 1, 1, 1, 2, 0},       {13, 4, 4, 2, 6, 0},     {97, 97, 2, 1, 16, 0},
        {96, 1000, 3, 3, 18, 0},  {200, 70, 6, 2, 64, 0},  {300, 1000, 2, 1, 80, 33},
        {331, 1000, 4, 1, 34, 0}, {150, 90, 2, 2, 128, 1}, {260, 260, 2, 1, 66, 7},
    };
    Random r = {0};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int act = 0; act < 2; act++) {
            Case c = {
                act ? DTYPE_BF16 : DTYPE_F32, sizes[s][0], sizes[s][1], sizes[s][2], sizes[s][3], sizes[s][4], sizes[s][5]};
            check_case(ref, simd, &r, &c);
        }
}

/* A sequence gives the same bits alone and behind another one. */
static void position_in_batch(const Backend *ref, const Backend *simd, const char *name) {
    (void)ref;
    (void)name;
    enum { ROWS = 150, BEFORE = 37, HEADS = 2, DIM = 32 };
    Random r = {1000000};
    int64_t width = HEADS * DIM;
    float *x[4];
    for (int i = 0; i < 4; i++)
        x[i] = random_values(&r, DTYPE_F32, (BEFORE + ROWS) * width, 1.0f);
    int64_t together[] = {0, BEFORE, BEFORE + ROWS}, alone[] = {0, ROWS};
    Batch both = {.tokens = BEFORE + ROWS, .sequences = 2, .starts = together};
    Batch one = {.tokens = ROWS, .sequences = 1, .starts = alone};
    AttentionShape shape = {.rows = BEFORE + ROWS, .heads = HEADS, .kv_heads = HEADS, .head_dim = DIM, .scale = 0.2f};
    Exec exec = exec_of(DTYPE_F32, 2);
    OpPlan plan;
    assert_ok(simd->attention_plan(&exec.config, &shape, &plan, err));
    void *workspace = buffer(plan.forward_workspace + plan.backward_workspace);
    float *o[2], *lse[2], *d[2][3];
    for (int side = 0; side < 2; side++) {
        int64_t skip_rows = side == 0 ? 0 : BEFORE * width;
        const Batch *batch = side == 0 ? &both : &one;
        size_t bytes = (size_t)((BEFORE + ROWS) * width) * sizeof(float);
        o[side] = buffer(bytes);
        lse[side] = buffer(plan.saved);
        for (int i = 0; i < 3; i++)
            d[side][i] = buffer(bytes);
        assert_ok(simd->attention_forward(&exec, &shape, batch, x[0] + skip_rows, x[1] + skip_rows, x[2] + skip_rows, o[side],
                                          lse[side], workspace, err));
        assert_ok(simd->attention_backward(&exec, &shape, batch, x[0] + skip_rows, x[1] + skip_rows, x[2] + skip_rows, o[side],
                                           lse[side], x[3] + skip_rows, d[side][0], d[side][1], d[side][2], workspace, err));
    }
    assert_memory_equal(o[0] + BEFORE * width, o[1], (size_t)(ROWS * width) * sizeof(float));
    for (int i = 0; i < 3; i++)
        assert_memory_equal(d[0][i] + BEFORE * width, d[1][i], (size_t)(ROWS * width) * sizeof(float));
    for (int i = 0; i < 4; i++)
        free(x[i]);
    for (int side = 0; side < 2; side++) {
        free(o[side]);
        free(lse[side]);
        for (int i = 0; i < 3; i++)
            free(d[side][i]);
    }
    free(workspace);
    pool_free(exec.pool);
}

/* Tokens fed in portions through the cache, as generation does, against the reference doing the same. */
static void cached(const Backend *ref, const Backend *simd, const char *name) {
    (void)name;
    enum { CAPACITY = 140, HEADS = 4, KV = 2, DIM = 24 };
    static const int64_t portions[] = {100, 1, 1, 2, 9, 1, 26};
    for (int act = 0; act < 2; act++)
        for (int64_t window = 0; window <= 17; window += 17) {
            DType type = act ? DTYPE_BF16 : DTYPE_F32;
            Random r = {2000000};
            AttentionShape shape = {
                .rows = CAPACITY, .heads = HEADS, .kv_heads = KV, .head_dim = DIM, .window = window, .scale = 0.3f};
            Exec exec = exec_of(type, 3);
            const Backend *sides[2] = {ref, simd};
            void *keys[2], *values[2], *workspace[2], *o[2];
            size_t bytes = (size_t)(CAPACITY * KV * DIM) * dtype_size(type);
            for (int s = 0; s < 2; s++) {
                OpPlan plan;
                assert_ok(sides[s]->attention_plan(&exec.config, &shape, &plan, err));
                workspace[s] = buffer(plan.forward_workspace);
                keys[s] = buffer(bytes);
                values[s] = buffer(bytes);
                o[s] = buffer((size_t)(CAPACITY * HEADS * DIM) * dtype_size(type));
            }
            int64_t past = 0;
            for (size_t p = 0; p < sizeof portions / sizeof *portions; p++) {
                int64_t n = portions[p], starts[] = {0, n};
                Batch batch = {.tokens = n, .sequences = 1, .starts = starts};
                void *q = random_values(&r, type, n * HEADS * DIM, 2.0f), *k = random_values(&r, type, n * KV * DIM, 2.0f);
                void *v = random_values(&r, type, n * KV * DIM, 1.0f);
                for (int s = 0; s < 2; s++) {
                    KvLayer cache = {keys[s], values[s]};
                    assert_ok(
                        sides[s]->attention_cached(&exec, &shape, &batch, q, k, v, &cache, past, o[s], workspace[s], err));
                }
                assert_close("cached o", type, o[1], o[0], n * HEADS * DIM, attention_tolerance(simd, type));
                past += n;
                assert_memory_equal(keys[0], keys[1], bytes);
                assert_memory_equal(values[0], values[1], bytes);
                free(q);
                free(k);
                free(v);
            }
            for (int s = 0; s < 2; s++) {
                free(workspace[s]);
                free(keys[s]);
                free(values[s]);
                free(o[s]);
            }
            pool_free(exec.pool);
        }
}

/* One row over caches around the stretches of keys, many query heads a key/value head; the same bits for any threads. */
static void cached_row(const Backend *ref, const Backend *simd, const char *name) {
    static const int64_t pasts[] = {0, 14, 15, 16, 127, 128, 129, 300};
    static const int64_t sizes[][4] = {
        {12, 2, 64, 0}, {7, 1, 80, 0}, {6, 6, 18, 130}, {130, 1, 8, 0}}; /* heads, kv, dim, window */
    Random r = {3000000};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int act = 0; act < 2; act++) {
            DType type = act ? DTYPE_BF16 : DTYPE_F32;
            int64_t heads = sizes[i][0], kv = sizes[i][1], dim = sizes[i][2], capacity = 301, starts[] = {0, 1};
            AttentionShape shape = {
                .rows = capacity, .heads = heads, .kv_heads = kv, .head_dim = dim, .window = sizes[i][3], .scale = 0.3f};
            void *keys = random_values(&r, type, capacity * kv * dim, 2.0f), *q = random_values(&r, type, heads * dim, 2.0f);
            void *values = random_values(&r, type, capacity * kv * dim, 1.0f);
            KvLayer cache = {keys, values};
            Batch batch = {.tokens = 1, .sequences = 1, .starts = starts};
            for (size_t p = 0; p < sizeof pasts / sizeof *pasts; p++) {
                static const int threads[] = {1, 1, 2, 8}; /* the first is the reference's */
                size_t bytes = (size_t)(heads * dim) * dtype_size(type), row = (size_t)(pasts[p] * kv * dim) * dtype_size(type);
                void *o[4];
                for (int side = 0; side < 4; side++) {
                    const Backend *backend = side == 0 ? ref : simd;
                    Exec exec = exec_of(type, threads[side]);
                    OpPlan plan;
                    assert_ok(backend->attention_plan(&exec.config, &shape, &plan, err));
                    void *workspace = buffer(plan.forward_workspace);
                    o[side] = buffer(bytes);
                    assert_ok(backend->attention_cached(&exec, &shape, &batch, q, (char *)keys + row, (char *)values + row,
                                                        &cache, pasts[p], o[side], workspace, err));
                    free(workspace);
                    pool_free(exec.pool);
                }
                assert_close(name, type, o[1], o[0], heads * dim, attention_tolerance(simd, type));
                assert_memory_equal(o[1], o[2], bytes);
                assert_memory_equal(o[1], o[3], bytes);
                for (int side = 0; side < 4; side++)
                    free(o[side]);
            }
            free(keys);
            free(values);
            free(q);
        }
}

#define TEST(check)                          \
    static void test_##check(void **state) { \
        (void)state;                         \
        each_product_variant(check);         \
    }
TEST(shapes)
TEST(position_in_batch)
TEST(cached)
TEST(cached_row)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_position_in_batch),
        cmocka_unit_test(test_cached),
        cmocka_unit_test(test_cached_row),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
