/* ggml's blocks: every byte against ggml's own, worked examples, round trips, and what is refused. */
#include "tests/unit/test_core.h"

#include "core/file.h"
#include "core/memory.h"
#include "core/philox.h"
#include "quant/ggml.h"
#include "quant/ggml_internal.h"
#include "tests/support/compare.h"

/* Made by tests/peers/ggml_blocks.py --golden (its docstring has the layout) with ggml 0.25.3 of llama-cpp-python 0.3.36,
 * compiled without -march and with -ffp-contract=off. */
#define GOLDEN "tests/golden/ggml_blocks.bin"

static const uint32_t codecs[] = {GGML_F32,  GGML_F16,  GGML_BF16, GGML_Q8_0, GGML_Q4_0, GGML_Q4_1, GGML_Q5_0,
                                  GGML_Q5_1, GGML_Q2_K, GGML_Q3_K, GGML_Q4_K, GGML_Q5_K, GGML_Q6_K};
#define CODECS (sizeof codecs / sizeof *codecs)

typedef struct Cursor {
    const char *at, *end;
} Cursor;

static const void *take(Cursor *cursor, size_t bytes) {
    assert_true((size_t)(cursor->end - cursor->at) >= bytes);
    const void *out = cursor->at;
    cursor->at += bytes;
    return out;
}

static float *take_floats(Cursor *cursor, int64_t count) {
    size_t bytes = (size_t)count * sizeof(float);
    return memcpy(memory_alloc(bytes), take(cursor, bytes), bytes);
}

static void check_same(const char *what, const char *type, const void *got, const void *want, size_t bytes) {
    for (size_t i = 0; i < bytes; i++)
        if (((const uint8_t *)got)[i] != ((const uint8_t *)want)[i])
            fail_msg("%s: %s: byte %zu of %zu differs", type, what, i, bytes);
}

static void check_case(Cursor *cursor, const float *x, const float *importance, int32_t rows, int32_t cols, Pool *pool) {
    Error err = {0};
    int32_t head[2];
    int64_t bytes, counted;
    memcpy(head, take(cursor, sizeof head), sizeof head);
    memcpy(&bytes, take(cursor, sizeof bytes), sizeof bytes);
    const GgmlTypeInfo *info = ggml_type_info((uint32_t)head[0]);
    assert_non_null(info);
    assert_ok(ggml_bytes(info->type, rows, cols, &counted, &err), &err);
    assert_int_equal(counted, bytes);
    const void *want = take(cursor, (size_t)bytes);
    float *want_decoded = head[1] ? NULL : take_floats(cursor, rows * cols);
    uint8_t *blocks = memory_alloc((size_t)bytes);
    float *decoded = memory_alloc((size_t)(rows * cols) * sizeof *decoded);
    assert_ok(ggml_quantize(info->type, x, rows, cols, head[1] ? importance : NULL, blocks, pool, &err), &err);
    check_same(head[1] ? "weighted blocks" : "blocks", info->name, blocks, want, (size_t)bytes);
    assert_ok(ggml_dequantize(info->type, blocks, rows, cols, decoded, pool, &err), &err);
    if (want_decoded != NULL)
        check_same("decoded values", info->name, decoded, want_decoded, (size_t)(rows * cols) * sizeof *decoded);
    memory_free(decoded);
    memory_free(blocks);
    memory_free(want_decoded);
}

static void test_golden(void **state) {
    (void)state;
    Error err = {0};
    char *text;
    size_t length;
    Pool *pool;
    assert_ok(pool_create(&pool, 3, &err), &err);
    assert_ok(file_read(GOLDEN, 1 << 20, &text, &length, &err), &err);
    Cursor cursor = {text, text + length};
    assert_memory_equal(take(&cursor, 4), "NGB1", 4);
    int32_t tensors, head[3], compared = 0;
    memcpy(&tensors, take(&cursor, sizeof tensors), sizeof tensors);
    for (int32_t t = 0; t < tensors; t++) {
        memcpy(head, take(&cursor, sizeof head), sizeof head);
        float *x = take_floats(&cursor, head[0] * head[1]), *importance = take_floats(&cursor, head[1]);
        for (int32_t i = 0; i < head[2]; i++, compared++)
            check_case(&cursor, x, importance, head[0], head[1], i % 2 ? pool : NULL);
        memory_free(importance);
        memory_free(x);
    }
    assert_true(cursor.at == cursor.end);
    assert_int_equal(compared, 3 * (3 + 2 * 9)); /* F16, BF16 and Q8_0 have no weighted form */
    memory_free(text);
    pool_free(pool);
}

/* ---- worked examples: x_j = (j - 20) * 0.1 --------------------------------------------------------------------------------- */

static void worked(float x[32]) {
    for (int j = 0; j < 32; j++)
        x[j] = (float)((j - 20) * 0.1);
}

static void test_worked_q4_0(void **state) {
    (void)state;
    static const uint8_t want[18] = {0x00, 0x34, 0x60, 0x70, 0x71, 0x81, 0x82, 0x82, 0x92,
                                     0x93, 0xa3, 0xa4, 0xa4, 0xb4, 0xb5, 0xc5, 0xc6, 0xc6};
    Error err = {0};
    float x[32];
    GgmlBlockQ4_0 block;
    worked(x);
    assert_ok(ggml_quantize(GGML_Q4_0, x, 1, 32, NULL, &block, NULL, &err), &err);
    assert_memory_equal(&block, want, sizeof want);
}

static void test_worked_others(void **state) {
    (void)state;
    static const int8_t q8[32] = {-127, -121, -114, -108, -102, -95, -89, -83, -76, -70, -64, -57, -51, -44, -38, -32,
                                  -25,  -19,  -13,  -6,   0,    6,   13,  19,  25,  32,  38,  44,  51,  57,  64,  70};
    static const uint8_t q5[32] = {0,  1,  2,  2,  3,  4,  5,  6,  6,  7,  8,  9,  10, 10, 11, 12,
                                   13, 14, 14, 15, 16, 17, 18, 18, 19, 20, 21, 22, 22, 23, 24, 25};
    Error err = {0};
    float x[32];
    GgmlBlockQ8_0 q8_0;
    GgmlBlockQ5_0 q5_0;
    GgmlBlockQ4_1 q4_1;
    worked(x);
    assert_ok(ggml_quantize(GGML_Q8_0, x, 1, 32, NULL, &q8_0, NULL, &err), &err);
    assert_int_equal(q8_0.d, 0x2408);
    assert_memory_equal(q8_0.qs, q8, sizeof q8);
    assert_ok(ggml_quantize(GGML_Q5_0, x, 1, 32, NULL, &q5_0, NULL, &err), &err);
    assert_int_equal(q5_0.d, 0x3000);
    for (int j = 0; j < 32; j++) {
        int low = j < 16 ? q5_0.qs[j] & 15 : q5_0.qs[j - 16] >> 4;
        assert_int_equal(low | ((q5_0.qh[j / 8] >> j % 8) & 1) << 4, q5[j]);
    }
    assert_ok(ggml_quantize(GGML_Q4_1, x, 1, 32, NULL, &q4_1, NULL, &err), &err);
    assert_int_equal(q4_1.d, 0x329D);
    assert_int_equal(q4_1.m, 0xC000);
    for (int j = 0; j < 32; j++)
        assert_int_equal(j < 16 ? q4_1.qs[j] & 15 : q4_1.qs[j - 16] >> 4, j / 2);
}

/* Sub-block scales 1 to 8 times 7 and mins 63 minus that, packed by hand as the format's table says. */
static void test_packed_scales(void **state) {
    (void)state;
    GgmlBlockQ4_K block = {.d = 0x3C00, .dmin = 0x3C00}; /* 1.0 */
    Error err = {0};
    float x[256];
    for (int j = 0; j < 8; j++) {
        int scale = 7 * (j + 1), min = 63 - scale;
        if (j < 4) {
            block.scales[j] = (uint8_t)scale;
            block.scales[j + 4] = (uint8_t)min;
        } else {
            block.scales[j + 4] = (uint8_t)((scale & 15) | (min & 15) << 4);
            block.scales[j - 4] = (uint8_t)(block.scales[j - 4] | (scale >> 4) << 6);
            block.scales[j] = (uint8_t)(block.scales[j] | (min >> 4) << 6);
        }
    }
    memset(block.qs, 0x21, sizeof block.qs); /* even sub-blocks hold ones, odd ones twos */
    for (int j = 0; j < 8; j++) {
        int scale, min;
        ggml_scale_min(block.scales, j, &scale, &min);
        assert_int_equal(scale, 7 * (j + 1));
        assert_int_equal(min, 63 - 7 * (j + 1));
    }
    assert_ok(ggml_dequantize(GGML_Q4_K, &block, 1, 256, x, NULL, &err), &err);
    for (int i = 0; i < 256; i++) {
        int scale = 7 * (i / 32 + 1), code = i / 32 % 2 ? 2 : 1;
        assert_true(x[i] == (float)(scale * code - (63 - scale)));
    }
}

/* Every element's bits are its own: one code at a time in a block of zeros changes one value. */
static void test_planes(void **state) {
    (void)state;
    Error err = {0};
    for (size_t t = 0; t < CODECS; t++) {
        const GgmlTypeInfo *info = ggml_type_info(codecs[t]);
        for (int e = 0; e < info->block; e += 3) {
            float x[256] = {0}, decoded[256];
            uint8_t blocks[1024];
            x[e] = -1.0f;
            assert_ok(ggml_quantize(info->type, x, 1, info->block, NULL, blocks, NULL, &err), &err);
            assert_ok(ggml_dequantize(info->type, blocks, 1, info->block, decoded, NULL, &err), &err);
            for (int i = 0; i < info->block; i++) {
                float error = fabsf(decoded[i] - x[i]);
                assert_true(error <= 0.01f); /* one value and zeros are representable but for the 6-bit and 16-bit scales */
            }
        }
    }
}

/* ---- properties ------------------------------------------------------------------------------------------------------------ */

static float *normals(int64_t count, uint64_t stream) {
    float *x = memory_alloc((size_t)count * sizeof *x);
    for (int64_t i = 0; i < count; i++) {
        /* Twelve uniforms: near enough to a normal for a bound with room. */
        float sum = 0.0f;
        for (uint32_t k = 0; k < 12; k++)
            sum += (float)((stream * 2654435761u + (uint64_t)i * 40503u + k * 69069u) * 6364136223846793005u >> 40) * 0x1p-24f;
        x[i] = sum - 6.0f;
    }
    return x;
}

static double relative_rms(const float *x, const float *y, int64_t count) {
    double error = 0.0, power = 0.0;
    for (int64_t i = 0; i < count; i++) {
        error += ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]);
        power += (double)x[i] * (double)x[i];
    }
    return sqrt(error / power);
}

/* Through floats and back: Q4_0 and Q8_0 (and the types without blocks) keep their bytes; the others keep their error. */
static void test_idempotence(void **state) {
    (void)state;
    Error err = {0};
    const int64_t rows = 5, cols = 1024;
    float *x = normals(rows * cols, 1), *once = memory_alloc((size_t)(rows * cols) * 4),
          *twice = memory_alloc((size_t)(rows * cols) * 4);
    /* Bounds: the step over sqrt(12) at about 4 sigma of range in 2^bits levels, doubled. */
    static const double bounds[CODECS] = {0.0, 0.0005, 0.004, 0.01, 0.2, 0.16, 0.1, 0.08, 0.7, 0.4, 0.16, 0.08, 0.05};
    for (size_t t = 0; t < CODECS; t++) {
        int64_t bytes;
        assert_ok(ggml_bytes(codecs[t], rows, cols, &bytes, &err), &err);
        uint8_t *a = memory_alloc((size_t)bytes), *b = memory_alloc((size_t)bytes);
        assert_ok(ggml_quantize(codecs[t], x, rows, cols, NULL, a, NULL, &err), &err);
        assert_ok(ggml_dequantize(codecs[t], a, rows, cols, once, NULL, &err), &err);
        double error = relative_rms(x, once, rows * cols);
        if (!(error <= bounds[t]))
            fail_msg("%s: relative error %g, want at most %g", ggml_type_info(codecs[t])->name, error, bounds[t]);
        assert_ok(ggml_quantize(codecs[t], once, rows, cols, NULL, b, NULL, &err), &err);
        assert_ok(ggml_dequantize(codecs[t], b, rows, cols, twice, NULL, &err), &err);
        error = relative_rms(once, twice, rows * cols);
        if (!(error <= bounds[t])) fail_msg("%s: a second time: %g", ggml_type_info(codecs[t])->name, error);
        if (!ggml_type_info(codecs[t])->is_quantized || codecs[t] == GGML_Q4_0 || codecs[t] == GGML_Q8_0)
            assert_memory_equal(a, b, (size_t)bytes);
        memory_free(a);
        memory_free(b);
    }
    memory_free(x);
    memory_free(once);
    memory_free(twice);
}

/* Slices of rows and numbers of threads change no byte; an importance that is the same everywhere is still another search. */
static void test_slices_and_threads(void **state) {
    (void)state;
    Error err = {0};
    const int64_t rows = 7, cols = 512;
    float *x = normals(rows * cols, 2), *importance = memory_alloc((size_t)cols * 4);
    Pool *pool;
    assert_ok(pool_create(&pool, 4, &err), &err);
    for (int64_t i = 0; i < cols; i++)
        importance[i] = fabsf(x[i]) + 0.01f;
    for (size_t t = 0; t < CODECS; t++)
        for (int weighted = 0; weighted < 2; weighted++) {
            int64_t bytes;
            const float *w = weighted ? importance : NULL;
            assert_ok(ggml_bytes(codecs[t], rows, cols, &bytes, &err), &err);
            uint8_t *a = memory_alloc((size_t)bytes), *b = memory_alloc((size_t)bytes);
            assert_ok(ggml_quantize(codecs[t], x, rows, cols, w, a, NULL, &err), &err);
            assert_ok(ggml_quantize(codecs[t], x, 3, cols, w, b, pool, &err), &err);
            assert_ok(ggml_quantize(codecs[t], x + 3 * cols, rows - 3, cols, w, b + bytes / rows * 3, pool, &err), &err);
            assert_memory_equal(a, b, (size_t)bytes);
            memory_free(a);
            memory_free(b);
        }
    memory_free(x);
    memory_free(importance);
    pool_free(pool);
}

/* ---- refusals -------------------------------------------------------------------------------------------------------------- */

static void test_refused(void **state) {
    (void)state;
    Error err = {0};
    float x[512] = {0}, importance[256];
    uint8_t out[2048];
    int64_t bytes;
    assert_refused(ggml_bytes(GGML_Q4_K, 2, 128, &bytes, &err), &err, "multiple of 256");
    assert_refused(ggml_bytes(GGML_Q8_0, INT64_MAX / 2, 64, &bytes, &err), &err, "too large");
    assert_refused(ggml_bytes(4, 1, 32, &bytes, &err), &err, "not known");
    assert_refused(ggml_quantize(20, x, 1, 32, NULL, out, NULL, &err), &err, "IQ4_NL: is not supported");
    assert_refused(ggml_dequantize(20, out, 1, 32, x, NULL, &err), &err, "IQ4_NL: is not supported");
    x[256 + 5] = NAN;
    assert_refused(ggml_quantize(GGML_Q6_K, x, 2, 256, NULL, out, NULL, &err), &err, "row 1, column 5");
    x[256 + 5] = -INFINITY;
    assert_refused(ggml_quantize(GGML_F16, x, 2, 256, NULL, out, NULL, &err), &err, "row 1, column 5");
    x[256 + 5] = 1e30f; /* beyond any half scale */
    for (size_t t = 0; t < CODECS; t++)
        if (codecs[t] != GGML_F32 && codecs[t] != GGML_BF16)
            assert_refused(ggml_quantize(codecs[t], x, 2, 256, NULL, out, NULL, &err), &err, "row 1: values up to 1e+30");
    x[256 + 5] = 3.4e38f; /* rounds to Inf in 8 bits of mantissa */
    assert_refused(ggml_quantize(GGML_BF16, x, 2, 256, NULL, out, NULL, &err), &err, "row 1");
    x[256 + 5] = 0.0f;
    for (int i = 0; i < 256; i++)
        importance[i] = 1.0f;
    importance[9] = -1.0f;
    assert_refused(ggml_quantize(GGML_Q4_K, x, 2, 256, importance, out, NULL, &err), &err, "importance of column 9");
    importance[9] = NAN;
    assert_refused(ggml_quantize(GGML_Q4_0, x, 2, 256, importance, out, NULL, &err), &err, "importance of column 9");
}

static void test_types(void **state) {
    (void)state;
    assert_ptr_equal(ggml_type_named("q4_k"), ggml_type_info(GGML_Q4_K));
    assert_null(ggml_type_named("q4_k_m"));
    assert_null(ggml_type_info(31)); /* removed from the format */
    for (size_t t = 0; t < CODECS; t++)
        assert_true(ggml_type_info(codecs[t])->is_codec);
    assert_false(ggml_type_info(23)->is_codec);
    assert_int_equal(ggml_nearest(2.5f), 2);
    assert_int_equal(ggml_nearest(-3.5f), -4);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_golden),
                                       cmocka_unit_test(test_worked_q4_0),
                                       cmocka_unit_test(test_worked_others),
                                       cmocka_unit_test(test_packed_scales),
                                       cmocka_unit_test(test_planes),
                                       cmocka_unit_test(test_idempotence),
                                       cmocka_unit_test(test_slices_and_threads),
                                       cmocka_unit_test(test_refused),
                                       cmocka_unit_test(test_types)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
