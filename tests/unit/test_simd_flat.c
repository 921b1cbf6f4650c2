/* AdamW, sums, the search for NaN, quantizing and decoding: where the reference's bits are due, bits are compared. */
#include "tests/unit/test_simd.h"

static const int64_t counts[] = {1, 2, 15, 16, 17, 63, 64, 65, 1000, 4096, 4097, 10007};
enum { COUNTS = sizeof counts / sizeof *counts };

static void adamw(const Backend *ref, const Backend *simd, const char *name) {
    assert_string_equal(simd->variant.adamw, name);
    Random r = {0};
    for (int c = 0; c < COUNTS; c++)
        for (int act = 0; act < 3; act++) { /* BF16, F32, no copy */
            DType type = act == 0 ? DTYPE_BF16 : DTYPE_F32;
            int64_t n = counts[c];
            size_t bytes = (size_t)n * sizeof(float), copy_bytes = (size_t)n * dtype_size(type);
            float *grad = random_values(&r, DTYPE_F32, n, 1.0f), *p = random_values(&r, DTYPE_F32, n, 1.0f);
            float *state[2][3];
            void *copy[2];
            AdamStep step = {.lr = 1e-3, .beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8, .weight_decay = 0.01, .clip = 0.7};
            for (int s = 0; s < 2; s++) {
                Exec exec = exec_of(type, s == 0 ? 1 : 3);
                state[s][0] = copy_of(p, bytes);
                state[s][1] = memset(buffer(bytes), 0, bytes);
                state[s][2] = memset(buffer(bytes), 0, bytes);
                copy[s] = buffer(copy_bytes);
                for (step.step = 1; step.step <= 5; step.step++)
                    (s == 0 ? ref : simd)
                        ->adamw(&exec, n, state[s][0], state[s][1], state[s][2], grad, act == 2 ? NULL : copy[s], &step);
                pool_free(exec.pool);
            }
            for (int i = 0; i < 3; i++)
                assert_memory_equal(state[0][i], state[1][i], bytes); /* both in double */
            assert_memory_equal(copy[0], copy[1], copy_bytes);
            free(grad);
            free(p);
            for (int s = 0; s < 2; s++) {
                free(copy[s]);
                for (int i = 0; i < 3; i++)
                    free(state[s][i]);
            }
        }
}

static void sums(const Backend *ref, const Backend *simd, const char *name) {
    (void)name;
    Random r = {0};
    for (int c = 0; c < COUNTS; c++) {
        float *x = random_values(&r, DTYPE_F32, counts[c], 3.0f);
        Exec one = exec_of(DTYPE_F32, 1), three = exec_of(DTYPE_F32, 3);
        double want = ref->sum_squares(&one, counts[c], x), got = simd->sum_squares(&one, counts[c], x);
        assert_true(fabs(got - want) <= 1e-13 * want); /* 10007 positive terms in double, in another order */
        double again = simd->sum_squares(&three, counts[c], x);
        assert_memory_equal(&again, &got, sizeof got);
        pool_free(one.pool);
        pool_free(three.pool);
        free(x);
    }
}

static void nonfinite(const Backend *ref, const Backend *simd, const char *name) {
    (void)ref;
    (void)name;
    Random r = {0};
    for (int c = 0; c < COUNTS; c++)
        for (int act = 0; act < 2; act++) {
            DType type = act ? DTYPE_BF16 : DTYPE_F32;
            int64_t n = counts[c];
            Exec exec = exec_of(type, 2);
            void *x = random_values(&r, type, n, 3e38f);
            assert_int_equal(simd->find_nonfinite(&exec, x, 1, n), -1);
            int64_t at = random_below(&r, n);
            for (int64_t i = at; i < n; i += 7) {
                float bad = i % 3 == 0 ? NAN : i % 3 == 1 ? INFINITY : -INFINITY;
                if (act)
                    ((bf16 *)x)[i] = bf16_from_float(bad);
                else
                    ((float *)x)[i] = bad;
            }
            assert_int_equal(simd->find_nonfinite(&exec, x, 1, n), at);
            free(x);
            pool_free(exec.pool);
        }
}

/* Random values, ties at every threshold and their neighbours, zero and subnormal blocks, tails of any length. */
static void adversary(Random *r, float *x, int64_t count, int64_t block, WeightFormat format) {
    static const float nf4[15] = NF4_THRESHOLDS, fp4[15] = FP4_THRESHOLDS;
    const float *thresholds = format == WEIGHT_NF4 ? nf4 : fp4;
    for (int64_t i = 0; i < count; i++) {
        int64_t kind = i / block % 6;
        float value = random_float(r);
        if (kind == 1) value = i % block == 0 ? 1.0f : thresholds[random_below(r, 15)];
        if (kind == 2) value = i % block == 0 ? -1.0f : nextafterf(thresholds[random_below(r, 15)], value * 9.0f);
        if (kind == 3) value = 0.0f * value;
        if (kind == 4) value *= 1e-39f;
        if (kind == 5) value *= 3e38f;
        x[i] = value;
    }
}

static void quantize(const Backend *ref, const Backend *simd, const char *name) {
    assert_string_equal(simd->variant.quantize, name);
    Random r = {0};
    for (int c = 0; c < COUNTS; c++)
        for (int format = 0; format < 2; format++)
            for (int64_t block = 32; block <= 4096; block *= 2) {
                WeightFormat f = format ? WEIGHT_FP4 : WEIGHT_NF4;
                int64_t n = counts[c], blocks = (n + block - 1) / block;
                float *x = buffer((size_t)n * sizeof *x), *absmax[2];
                uint8_t *codes[2];
                adversary(&r, x, n, block, f);
                for (int s = 0; s < 2; s++) {
                    codes[s] = buffer((size_t)(n + 1) / 2);
                    absmax[s] = buffer((size_t)blocks * sizeof(float));
                    assert_int_equal((s == 0 ? ref : simd)->quantize_4bit(f, x, n, block, codes[s], absmax[s]), -1);
                }
                assert_memory_equal(codes[0], codes[1], (size_t)(n + 1) / 2);
                assert_memory_equal(absmax[0], absmax[1], (size_t)blocks * sizeof(float));
                int64_t bad = random_below(&r, n);
                x[bad] = bad % 2 ? NAN : -INFINITY;
                assert_int_equal(simd->quantize_4bit(f, x, n, block, codes[1], absmax[1]), bad);
                for (int s = 0; s < 2; s++) {
                    free(codes[s]);
                    free(absmax[s]);
                }
                free(x);
            }
}

static void dequantize(const Backend *ref, const Backend *simd, const char *name) {
    (void)name;
    enum { OUT = 23 };
    static const struct {
        WeightFormat format;
        int64_t in;
        int32_t block;
        int nested;
    } cases[] = {
        {WEIGHT_F32, 37, 0, 0},
        {WEIGHT_BF16, 37, 0, 0},
        {WEIGHT_INT8, 37, 0, 0},
        {WEIGHT_INT8, 300, 0, 0},
        {WEIGHT_INT4, 64, 32, 0},
        {WEIGHT_INT4, 384, 128, 0},
        {WEIGHT_NF4, 71, 64, 1},
        {WEIGHT_NF4, 64, 64, 0},
        {WEIGHT_FP4, 33, 32, 1},
        {WEIGHT_FP4, 333, 4096, 0},
        {WEIGHT_GGML, 43, 0, GGML_F16},
        {WEIGHT_GGML, 96, 0, GGML_Q4_0},
        {WEIGHT_GGML, 96, 0, GGML_Q4_1},
        {WEIGHT_GGML, 96, 0, GGML_Q5_0},
        {WEIGHT_GGML, 96, 0, GGML_Q5_1},
        {WEIGHT_GGML, 96, 0, GGML_Q8_0},
        {WEIGHT_GGML, 512, 0, GGML_Q2_K},
        {WEIGHT_GGML, 512, 0, GGML_Q3_K},
        {WEIGHT_GGML, 512, 0, GGML_Q4_K},
        {WEIGHT_GGML, 512, 0, GGML_Q5_K},
        {WEIGHT_GGML, 512, 0, GGML_Q6_K},
        {WEIGHT_GROUPED, 96, 32, 4 + GROUPED_ZEROS + GROUPED_F16},
        {WEIGHT_GROUPED, 43, 43, 4 + GROUPED_BF16},
        {WEIGHT_GROUPED, 256, 128, 4 + GROUPED_ZEROS + GROUPED_ORDERED + GROUPED_F16},
        {WEIGHT_GROUPED, 96, 32, 3 + GROUPED_ZEROS},
        {WEIGHT_GROUPED, 75, 25, 2 + GROUPED_BF16},
        {WEIGHT_GROUPED, 300, 300, 8 + GROUPED_F16},
        {WEIGHT_GROUPED, 256, 64, 8 + GROUPED_ZEROS + GROUPED_ORDERED},
        {WEIGHT_GROUPED, 64, 32, 5 + GROUPED_ORDERED + GROUPED_BF16},
    };
    Random r = {0};
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++)
        for (int act = 0; act < 2; act++) {
            DType type = act ? DTYPE_BF16 : DTYPE_F32;
            int64_t all = OUT * cases[c].in;
            TestWeight w = random_weight(&r, cases[c].format, OUT, cases[c].in, cases[c].block, cases[c].nested);
            for (int repeat = 0; repeat < 40; repeat++) {
                int64_t first = repeat == 0 ? 0 : random_below(&r, all);
                int64_t count = repeat == 0 ? all : 1 + random_below(&r, all - first);
                size_t bytes = (size_t)count * dtype_size(type);
                void *want = buffer(bytes), *got = buffer(bytes);
                ref->dequantize(&w.view, first, count, want, type);
                simd->dequantize(&w.view, first, count, got, type);
                assert_memory_equal(want, got, bytes);
                free(want);
                free(got);
            }
            double wide[2][3];
            ref->dequantize(&w.view, 5, 3, wide[0], DTYPE_F64);
            simd->dequantize(&w.view, 5, 3, wide[1], DTYPE_F64);
            assert_memory_equal(wide[0], wide[1], sizeof wide[0]);
            weight_free(&w);
        }
}

#define TEST(check)                          \
    static void test_##check(void **state) { \
        (void)state;                         \
        each_variant(check);                 \
    }
TEST(adamw)
TEST(sums)
TEST(nonfinite)
TEST(quantize)
TEST(dequantize)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_adamw),    cmocka_unit_test(test_sums),       cmocka_unit_test(test_nonfinite),
        cmocka_unit_test(test_quantize), cmocka_unit_test(test_dequantize),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
