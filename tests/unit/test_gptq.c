/* GPTQ, AWQ and clipped ranges on random layers, against definitions written out in double. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/memory.h"
#include "core/philox.h"
#include "quant/awq.h"
#include "quant/factor.h"
#include "quant/gptq.h"
#include "tests/support/compare.h"

static Error error;

static float number(uint64_t stream, int64_t i) {
    double u = (double)random_uniform(5, RANDOM_WEIGHTS, stream, 2 * (uint64_t)i);
    double v = (double)random_uniform(5, RANDOM_WEIGHTS, stream, 2 * (uint64_t)i + 1);
    return (float)(sqrt(-2.0 * log(1.0 - u)) * cos(6.283185307179586 * v));
}

/* A layer: weights, and the matrix of inputs that are correlated and of very different sizes, as a model's are. */
typedef struct Layer {
    int64_t rows, cols;
    float *w, *hessian, *mean;
} Layer;

static Layer layer_make(int64_t rows, int64_t cols, int64_t dead) {
    Layer l = {.rows = rows, .cols = cols};
    int64_t tokens = 2 * cols;
    l.w = memory_alloc((size_t)(rows * cols) * sizeof(float));
    l.hessian = aligned_alloc(64, ((size_t)(cols * cols) * sizeof(float) + 63) / 64 * 64);
    l.mean = memory_calloc((size_t)cols, sizeof(float));
    float *x = memory_alloc((size_t)(tokens * cols) * sizeof(float));
    for (int64_t i = 0; i < rows * cols; i++)
        l.w[i] = 0.05f * number(1, i);
    for (int64_t t = 0; t < tokens; t++) {
        float shared = number(2, t);
        for (int64_t c = 0; c < cols; c++) {
            float size = c % 17 == 3 ? 12.0f : 1.0f;
            x[t * cols + c] = c == dead ? 0.0f : size * (number(3, t * cols + c) + 0.7f * shared);
            l.mean[c] += fabsf(x[t * cols + c]) / (float)tokens;
        }
    }
    for (int64_t i = 0; i < cols; i++)
        for (int64_t j = 0; j < cols; j++) {
            double sum = 0.0;
            for (int64_t t = 0; t < tokens; t++)
                sum += (double)x[t * cols + (i > j ? i : j)] * (double)x[t * cols + (i > j ? j : i)];
            l.hessian[i * cols + j] = (float)sum;
        }
    memory_free(x);
    return l;
}

static void layer_free(Layer *l) {
    memory_free(l->w);
    free(l->hessian);
    memory_free(l->mean);
}

/* sum of d H d^T over the rows of w - dequantized, by its definition; s: the weight's columns were multiplied by it (or NULL). */
static double output_error(const Layer *l, const GroupIntTensor *tensor, const float *s) {
    double sum = 0.0, *d = memory_alloc((size_t)l->cols * sizeof *d);
    float *row = memory_alloc((size_t)l->cols * sizeof *row);
    for (int64_t r = 0; r < l->rows; r++) {
        group_int_dequantize_row(tensor, r, row);
        for (int64_t c = 0; c < l->cols; c++)
            d[c] = (double)row[c] / (s != NULL ? (double)s[c] : 1.0) - (double)l->w[r * l->cols + c];
        for (int64_t i = 0; i < l->cols; i++)
            for (int64_t j = 0; j < l->cols; j++)
                sum += d[i] * d[j] * (double)l->hessian[i * l->cols + j];
    }
    memory_free(row);
    memory_free(d);
    return sum;
}

static GroupIntTensor rounded(const Layer *l, const GroupInt *grid) {
    GroupIntTensor t;
    assert_ok(group_int_alloc(&t, grid, l->rows, l->cols, &error), &error);
    for (int64_t r = 0; r < l->rows; r++)
        assert_int_equal(group_int_quantize_row(&t, r, l->w + r * l->cols), 0);
    return t;
}

typedef struct Case {
    GroupInt grid;
    int act_order, static_groups;
    Clip clip;
} Case;

static GroupIntTensor gptq(const Layer *l, const Case *c, double damping, Pool *pool) {
    GptqFactor factor;
    GptqOptions options = {.clip = c->clip, .static_groups = c->static_groups};
    GroupIntTensor t;
    assert_ok(gptq_factor(&factor, l->hessian, l->cols, damping, c->act_order, pool, &error), &error);
    assert_ok(group_int_alloc(&t, &c->grid, l->rows, l->cols, &error), &error);
    assert_ok(gptq_quantize(&factor, &options, l->w, &t, pool, &error), &error);
    gptq_factor_free(&factor);
    return t;
}

/* ---- the factor ------------------------------------------------------------------------------------------------------------ */

static void check_factor(int64_t n) {
    double *h = memory_alloc((size_t)(n * n) * sizeof *h), *u = memory_alloc((size_t)(n * n) * sizeof *u);
    double *one = memory_alloc((size_t)(n * n) * sizeof *one), worst = 0.0;
    Pool *pool = NULL;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j <= i; j++)
            h[i * n + j] = h[j * n + i] = (double)number(9, i * n + j) * 0.3 + (i == j ? (double)n : 0.0);
    memcpy(u, h, (size_t)(n * n) * sizeof *u);
    memcpy(one, h, (size_t)(n * n) * sizeof *u);
    assert_ok(inverse_factor(u, n, NULL, &error), &error);
    assert_ok(pool_create(&pool, 3, &error), &error);
    assert_ok(inverse_factor(one, n, pool, &error), &error);
    assert_memory_equal(u, one, (size_t)(n * n) * sizeof *u);
    pool_free(pool);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) { /* (U^T U h)[i, j] */
            double sum = 0.0;
            if (j < i) assert_true(u[i * n + j] == 0.0);
            one[i * n + j] = 0.0;
            for (int64_t k = 0; k <= (i < j ? i : j); k++)
                sum += u[k * n + i] * u[k * n + j];
            h[i * n + j] += 0.0;
            one[i * n + j] = sum;
        }
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) {
            double sum = i == j ? -1.0 : 0.0;
            for (int64_t k = 0; k < n; k++)
                sum += one[i * n + k] * h[k * n + j];
            if (!(fabs(sum) <= worst)) worst = fabs(sum);
        }
    assert_true(worst <= 1e-12 * (double)n); /* n roundings of 1e-16 a sum, condition number of a few units */
    memory_free(h);
    memory_free(u);
    memory_free(one);
}

static void test_factor(void **state) {
    (void)state;
    static const int64_t sizes[] = {1, 2, 3, 31, 63, 64, 65, 97, 128, 191};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        check_factor(sizes[i]);
    double singular[4] = {1.0, 1.0, 1.0, 1.0};
    assert_refused(inverse_factor(singular, 2, NULL, &error), &error, "not positive definite");
}

static void test_products(void **state) {
    (void)state;
    for (int64_t rows = 1; rows < 10; rows += 4)
        for (int64_t cols = 1; cols < 21; cols += 5) {
            float a[9 * 7], b[7 * 20], c[9 * 20];
            for (int i = 0; i < 9 * 7; i++)
                a[i] = number(21, i);
            for (int i = 0; i < 7 * 20; i++)
                b[i] = number(22, i);
            memset(c, 0, sizeof c);
            subtract_product_f32(rows, cols, 7, a, 7, b, 20, c, 20);
            for (int64_t r = 0; r < 9; r++)
                for (int64_t j = 0; j < 20; j++) {
                    float sum = 0.0f;
                    for (int64_t k = 0; k < 7 && r < rows && j < cols; k++)
                        sum -= a[r * 7 + k] * b[k * 20 + j];
                    assert_true(c[r * 20 + j] == sum); /* one chain in order: equal; what lies beyond is not touched */
                }
        }
}

/* ---- GPTQ ------------------------------------------------------------------------------------------------------------------- */

/* The definition: at every column the inverse of what is left is formed anew (Optimal Brain Quantization in a fixed order),
 * which is what the rows of the Cholesky factor stand for. All in double. */
static void invert(double *a, int64_t n) {
    for (int64_t p = 0; p < n; p++) {
        double pivot = a[p * n + p];
        for (int64_t j = 0; j < n; j++)
            a[p * n + j] /= j == p ? 1.0 : pivot;
        for (int64_t i = 0; i < n; i++) {
            if (i == p) continue;
            for (int64_t j = 0; j < n; j++)
                if (j != p) a[i * n + j] -= a[i * n + p] * a[p * n + j];
            a[i * n + p] /= -pivot;
        }
        a[p * n + p] = 1.0 / pivot;
    }
}

static void naive(const Layer *l, const Case *c, double damping, GroupIntTensor *out) {
    int64_t n = l->cols, group = group_int_columns(&c->grid, n);
    double *h = memory_alloc((size_t)(n * n) * sizeof *h), *w = memory_alloc((size_t)(l->rows * n) * sizeof *w);
    double trace = 0.0;
    int64_t *order = memory_alloc((size_t)n * sizeof *order);
    assert_ok(group_int_alloc(out, &c->grid, l->rows, n, &error), &error);
    for (int64_t i = 0; i < n; i++) { /* stable: insertion */
        int64_t at = i;
        for (; c->act_order && at > 0 && l->hessian[order[at - 1] * n + order[at - 1]] < l->hessian[i * n + i]; at--)
            order[at] = order[at - 1];
        order[at] = i;
        trace += (double)l->hessian[i * n + i];
    }
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++)
            h[i * n + j] = (double)l->hessian[order[i] * n + order[j]] + (i == j ? damping * trace / (double)n : 0.0);
    for (int64_t i = 0; i < l->rows * n; i++)
        w[i] = (double)l->w[i / n * n + order[i % n]];
    if (c->act_order && !c->static_groups && group < n) {
        out->g_idx = memory_alloc((size_t)n * sizeof *out->g_idx);
        for (int64_t i = 0; i < n; i++)
            out->g_idx[order[i]] = (int32_t)(i / group);
    }
    for (int64_t i = 0; i < n; i++) {
        int64_t left = n - i, g = (c->static_groups ? order[i] : i) / group;
        double *inverse = memory_alloc((size_t)(left * left) * sizeof *inverse);
        for (int64_t a = 0; a < left; a++)
            memcpy(inverse + a * left, h + (i + a) * n + i, (size_t)left * sizeof *inverse);
        invert(inverse, left);
        for (int64_t r = 0; r < l->rows; r++) {
            int64_t at = r * out->groups + g;
            uint8_t zero = (uint8_t)(1 << (c->grid.bits - 1));
            if (c->static_groups || i % group == 0) {
                float x[256];
                for (int64_t k = 0; k < group; k++)
                    x[k] = c->static_groups ? l->w[r * n + g * group + k] : (float)w[r * n + i + k];
                group_int_scale_of(&c->grid, x, group, &out->scales[at], &zero);
                if (out->zeros != NULL) out->zeros[at] = zero;
            }
            if (out->zeros != NULL) zero = out->zeros[at];
            uint8_t code = group_int_code(c->grid.bits, (float)w[r * n + i], out->scales[at], zero, NULL);
            out->codes[r * n + order[i]] = code;
            double e = w[r * n + i] - (double)group_int_value(code, out->scales[at], zero, c->grid.scale_type);
            for (int64_t a = 0; a < left; a++)
                w[r * n + i + a] -= e / inverse[0] * inverse[a];
        }
        memory_free(inverse);
    }
    memory_free(order);
    memory_free(w);
    memory_free(h);
}

static const Case cases[] = {
    {.grid = {4, 1, 0, DTYPE_F16}},
    {.grid = {4, 1, 32, DTYPE_F16}},
    {.grid = {3, 0, 64, DTYPE_BF16}},
    {.grid = {4, 0, 96, DTYPE_F32}},
    {.grid = {2, 0, 32, DTYPE_F16}, .act_order = 1},
    {.grid = {3, 1, 64, DTYPE_F32}, .act_order = 1, .static_groups = 1},
    {.grid = {4, 1, 0, DTYPE_F16}, .act_order = 1},
    {.grid = {8, 1, 48, DTYPE_F32}, .act_order = 1},
};
#define CASES (sizeof cases / sizeof *cases)

static void test_definition(void **state) {
    (void)state;
    Layer l = layer_make(24, 192, -1);
    for (size_t i = 0; i < CASES; i++) {
        GroupIntTensor want, got = gptq(&l, &cases[i], 0.01, NULL);
        int64_t same = 0;
        naive(&l, &cases[i], 0.01, &want);
        for (int64_t k = 0; k < l.rows * l.cols; k++)
            same += got.codes[k] == want.codes[k];
        /* FP32 updates move a weight across a border of two codes now and then, and with it what comes after it in the row. */
        assert_true((double)same >= 0.97 * (double)(l.rows * l.cols));
        double ours = output_error(&l, &got, NULL), naives = output_error(&l, &want, NULL);
        assert_true(fabs(ours - naives) <= 0.02 * naives); /* other codes, equally good: 8-bit errors are smallest and worst */
        if (got.g_idx != NULL || want.g_idx != NULL)
            assert_memory_equal(got.g_idx, want.g_idx, (size_t)l.cols * sizeof *got.g_idx);
        group_int_free(&got);
        group_int_free(&want);
    }
    layer_free(&l);
}

static void test_better_than_rounding(void **state) {
    (void)state;
    Layer l = layer_make(40, 192, -1);
    for (size_t i = 0; i < CASES; i++) {
        GroupIntTensor nearest = rounded(&l, &cases[i].grid), got = gptq(&l, &cases[i], 0.01, NULL);
        assert_true(output_error(&l, &got, NULL) < 0.8 * output_error(&l, &nearest, NULL));
        group_int_free(&got);
        group_int_free(&nearest);
    }
    layer_free(&l);
}

static void test_threads(void **state) {
    (void)state;
    Layer l = layer_make(50, 192, 7);
    for (size_t i = 0; i < CASES; i++) {
        GroupIntTensor alone = gptq(&l, &cases[i], 0.01, NULL);
        for (int threads = 2; threads < 9; threads += 3) {
            Pool *pool;
            assert_ok(pool_create(&pool, threads, &error), &error);
            GroupIntTensor many = gptq(&l, &cases[i], 0.01, pool);
            assert_memory_equal(many.codes, alone.codes, (size_t)(l.rows * l.cols));
            assert_memory_equal(many.scales, alone.scales, (size_t)(l.rows * alone.groups) * sizeof(float));
            group_int_free(&many);
            pool_free(pool);
        }
        group_int_free(&alone);
    }
    layer_free(&l);
}

/* A column that no input ever reaches: its weight becomes 0 and the others are as without it. */
static void test_dead_column(void **state) {
    (void)state;
    Layer l = layer_make(8, 64, 5);
    const Case c = {.grid = {4, 1, 0, DTYPE_F32}};
    float row[64];
    GptqFactor factor;
    assert_ok(gptq_factor(&factor, l.hessian, l.cols, 0.01, 0, NULL, &error), &error);
    assert_int_equal(factor.dead, 1);
    gptq_factor_free(&factor);
    GroupIntTensor got = gptq(&l, &c, 0.01, NULL);
    for (int64_t r = 0; r < l.rows; r++) {
        group_int_dequantize_row(&got, r, row);
        assert_true(row[5] == 0.0f);
    }
    GroupIntTensor nearest = rounded(&l, &c.grid);
    assert_true(output_error(&l, &got, NULL) < output_error(&l, &nearest, NULL));
    group_int_free(&nearest);
    group_int_free(&got);
    memset(l.hessian, 0, (size_t)(l.cols * l.cols) * sizeof(float)); /* no input at all: everything is dead */
    got = gptq(&l, &c, 0.01, NULL);
    group_int_dequantize_row(&got, 3, row);
    for (int c0 = 0; c0 < 64; c0++)
        assert_true(row[c0] == 0.0f);
    group_int_free(&got);
    layer_free(&l);
}

/* Without correlations between inputs nothing can be made good: the codes are those of rounding. And much damping means little
 * correlation: the error goes towards rounding's. */
static void test_damping(void **state) {
    (void)state;
    Layer l = layer_make(16, 64, -1);
    const Case c = {.grid = {4, 1, 32, DTYPE_F32}};
    GptqFactor factor;
    assert_refused(gptq_factor(&factor, l.hessian, l.cols, 0.0, 0, NULL, &error), &error, "damping");
    gptq_factor_free(&factor);
    assert_refused(gptq_factor(&factor, l.hessian, l.cols, (double)NAN, 0, NULL, &error), &error, "damping");
    gptq_factor_free(&factor);
    GroupIntTensor little = gptq(&l, &c, 0.001, NULL), much = gptq(&l, &c, 1.0, NULL), nearest = rounded(&l, &c.grid);
    assert_true(output_error(&l, &little, NULL) < output_error(&l, &much, NULL));
    assert_true(output_error(&l, &much, NULL) < output_error(&l, &nearest, NULL));
    for (int64_t i = 0; i < l.cols; i++)
        for (int64_t j = 0; j < l.cols; j++)
            if (i != j) l.hessian[i * l.cols + j] = 0.0f;
    GroupIntTensor apart = gptq(&l, &c, 0.01, NULL);
    assert_memory_equal(apart.codes, nearest.codes, (size_t)(l.rows * l.cols));
    l.hessian[3 * l.cols + 3] = INFINITY;
    assert_refused(gptq_factor(&factor, l.hessian, l.cols, 0.01, 0, NULL, &error), &error, "column 3");
    gptq_factor_free(&factor);
    group_int_free(&little);
    group_int_free(&much);
    group_int_free(&nearest);
    group_int_free(&apart);
    layer_free(&l);
}

static void test_not_finite(void **state) {
    (void)state;
    Layer l = layer_make(20, 64, -1);
    GptqFactor factor;
    GptqOptions options = {0};
    GroupIntTensor t;
    const GroupInt grid = {4, 1, 32, DTYPE_F16};
    assert_ok(gptq_factor(&factor, l.hessian, l.cols, 0.01, 0, NULL, &error), &error);
    assert_ok(group_int_alloc(&t, &grid, l.rows, l.cols, &error), &error);
    l.w[17 * 64 + 9] = 1e6f; /* its scale does not fit 16 bits */
    assert_refused(gptq_quantize(&factor, &options, l.w, &t, NULL, &error), &error, "rows from 16 on");
    gptq_factor_free(&factor);
    group_int_free(&t);
    layer_free(&l);
}

/* ---- clipped ranges ---------------------------------------------------------------------------------------------------------- */

static double plain_error(const Layer *l, const GroupIntTensor *t) {
    double sum = 0.0;
    float row[256];
    for (int64_t r = 0; r < l->rows; r++) {
        group_int_dequantize_row(t, r, row);
        for (int64_t c = 0; c < l->cols; c++)
            sum += ((double)row[c] - (double)l->w[r * l->cols + c]) * ((double)row[c] - (double)l->w[r * l->cols + c]);
    }
    return sum;
}

static GroupIntTensor clipped(const Layer *l, const GroupInt *grid, const Clip *clip, const float *importance) {
    GroupIntTensor t;
    float scratch[256];
    assert_ok(group_int_alloc(&t, grid, l->rows, l->cols, &error), &error);
    for (int64_t r = 0; r < l->rows; r++)
        assert_int_equal(clip_quantize_row(clip, &t, r, l->w + r * l->cols, importance, scratch), 0);
    return t;
}

static void test_clip(void **state) {
    (void)state;
    Layer l = layer_make(20, 128, -1);
    for (int symmetric = 0; symmetric < 2; symmetric++)
        for (int bits = 2; bits < 5; bits++) {
            const GroupInt grid = {bits, symmetric, 64, DTYPE_F32};
            const Clip none = {CLIP_NONE, 0.0}, mse = {CLIP_MSE, 0.0}, all = {CLIP_PERCENTILE, 100.0};
            GroupIntTensor nearest = rounded(&l, &grid), same = clipped(&l, &grid, &none, NULL);
            GroupIntTensor best = clipped(&l, &grid, &mse, NULL), widest = clipped(&l, &grid, &all, NULL);
            assert_memory_equal(nearest.codes, same.codes, (size_t)(l.rows * l.cols));
            assert_memory_equal(nearest.codes, widest.codes, (size_t)(l.rows * l.cols));
            assert_true(plain_error(&l, &best) < plain_error(&l, &nearest));
            for (int64_t i = 0; i < l.rows * best.groups; i++)
                assert_true(best.scales[i] <= nearest.scales[i]);
            group_int_free(&nearest);
            group_int_free(&same);
            group_int_free(&best);
            group_int_free(&widest);
        }
    layer_free(&l);
}

static void test_percentile(void **state) {
    (void)state;
    float x[11], scratch[11], scale;
    uint8_t zero;
    for (int i = 0; i < 11; i++)
        x[i] = (float)((i * 7) % 11) - 3.0f; /* -3 ... 7, stirred */
    const GroupInt symmetric = {4, 1, 0, DTYPE_F32}, asymmetric = {4, 0, 0, DTYPE_F32};
    const Clip clip = {CLIP_PERCENTILE, 85.0}; /* numpy: 5.5 of x, -1.5 from below; 5.5 of |x| */
    clip_scale(&clip, &symmetric, x, 11, NULL, &scale, &zero, scratch);
    assert_true(scale == 5.5f / 7.5f);
    assert_int_equal(zero, 8);
    clip_scale(&clip, &asymmetric, x, 11, NULL, &scale, &zero, scratch);
    assert_true(scale == 7.0f / 15.0f);
    assert_int_equal(zero, 3); /* 8 + RNE(-8 + 1.5 * 15 / 7 = -4.79) */
}

/* ---- AWQ ----------------------------------------------------------------------------------------------------------------------- */

static void check_awq(int threads, int clips, float *s_out, uint8_t *codes_out) {
    Layer l = layer_make(48, 128, 9);
    Layer original = layer_make(48, 128, 9);
    const GroupInt grid = {3, 0, 64, DTYPE_F16};
    Backend backend;
    Exec exec = {.config = {.act = DTYPE_F32, .threads = threads}};
    OutputError *errors;
    AwqFound found;
    float s[128];
    AwqGroup group = {
        .count = 2, .linear = {{l.w, 16}, {l.w + 16 * 128, 32}}, .cols = l.cols, .hessian = l.hessian, .mean_inputs = l.mean};
    assert_ok(pool_create(&exec.pool, threads, &error), &error);
    cpu_backend_reference(&backend);
    assert_ok(output_error_create(&errors, &backend, &exec, l.cols, &error), &error);
    GroupIntTensor nearest = rounded(&l, &grid), t;
    double plain = output_error(&l, &nearest, NULL);
    assert_ok(awq_search(&grid, &group, errors, s, &found, &error), &error);
    assert_true(fabs(found.plain - plain) <= 1e-4 * plain); /* sums of 128 products in FP32 */
    assert_true(found.alpha > 0.0 && found.error < 0.9 * plain);
    awq_scale_columns(&group, s, exec.pool);
    assert_ok(group_int_alloc(&t, &grid, l.rows, l.cols, &error), &error);
    assert_ok(awq_quantize(l.w, l.hessian, clips, &t, exec.pool, &error), &error);
    double got = output_error(&original, &t, s);
    if (!clips) assert_true(fabs(got - found.error) <= 1e-3 * found.error); /* w s rounded once more */
    if (clips) assert_true(got < found.error);
    memcpy(s_out, s, sizeof s);
    memcpy(codes_out, t.codes, 48 * 128);
    output_error_free(errors);
    pool_free(exec.pool);
    group_int_free(&t);
    group_int_free(&nearest);
    layer_free(&l);
    layer_free(&original);
}

static void test_awq(void **state) {
    (void)state;
    static uint8_t codes[2][48 * 128];
    static float s[2][128];
    for (int clips = 0; clips < 2; clips++) {
        check_awq(1, clips, s[0], codes[0]);
        check_awq(4, clips, s[1], codes[1]);
        assert_memory_equal(s[0], s[1], sizeof s[0]);
        assert_memory_equal(codes[0], codes[1], sizeof codes[0]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_factor),     cmocka_unit_test(test_products),
        cmocka_unit_test(test_definition), cmocka_unit_test(test_better_than_rounding),
        cmocka_unit_test(test_threads),    cmocka_unit_test(test_dead_column),
        cmocka_unit_test(test_damping),    cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_clip),       cmocka_unit_test(test_percentile),
        cmocka_unit_test(test_awq),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
