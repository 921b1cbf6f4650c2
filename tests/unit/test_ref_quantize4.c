/* NF4 and FP4 bytes: vectors, ties, zero and short blocks, subnormal scales, refusals.
 * Equality with bitsandbytes over whole tensors is the business of quant/'s tests. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "tests/support/compare.h"
#include "tests/support/scope.h"

static int64_t quantize(WeightFormat format, const float *x, int64_t values, int64_t block, uint8_t *codes, float *absmax) {
    Backend backend;
    cpu_backend_reference(&backend);
    return backend.quantize_4bit(format, x, values, block, codes, absmax);
}

static unsigned code_of(const uint8_t *codes, int64_t i) {
    return i % 2 == 0 ? codes[i / 2] >> 4 : codes[i / 2] & 15u;
}

/* x_j = (j - 40) / 100: codes computed apart from this code, by the formula of bitsandbytes in FP32. */
static void test_ramp(void **state) {
    (void)state;
    static const uint8_t want[32] = {0x00, 0x00, 0x00, 0x01, 0x11, 0x11, 0x11, 0x11, 0x22, 0x22, 0x22,
                                     0x33, 0x33, 0x34, 0x44, 0x45, 0x55, 0x56, 0x66, 0x67, 0x77, 0x88,
                                     0x89, 0x99, 0x9a, 0xaa, 0xbb, 0xbb, 0xcc, 0xcc, 0xcd, 0xdd};
    float x[64], absmax;
    uint8_t codes[32];
    for (int j = 0; j < 64; j++)
        x[j] = (float)((j - 40) * 0.01);
    assert_int_equal(quantize(WEIGHT_NF4, x, 64, 64, codes, &absmax), -1);
    assert_true(absmax == 0.4f);
    assert_memory_equal(codes, want, sizeof want);
}

/* 69 values in blocks of 32, two full and one short, by the formula of bitsandbytes 0.50.2 (Python "default" backend) run in
 * PyTorch on the CPU. */
static void test_short_tail(void **state) {
    (void)state;
    static const char *const want[2] = {
        "05d7977d19f4d19f4d19f4d18f4c18f4d18f3d08f3d07f3c07f3c07f2c07f2c06f2c07",
        "be206805a63f5a63f5a63f5a63c5a63c5b13c5b13c5b13d5b13d5b93d5b93d4b93d4b0",
    };
    float x[69], absmax[3];
    for (int j = 0; j < 69; j++)
        x[j] = (float)(j * 7919 % 201 - 100) / 64.0f;
    x[3] = 0.0f;
    x[5] = 0.0009765625f;
    x[6] = -0.0009765625f;
    for (int format = 0; format < 2; format++) {
        uint8_t codes[35];
        assert_int_equal(quantize(format == 0 ? WEIGHT_NF4 : WEIGHT_FP4, x, 69, 32, codes, absmax), -1);
        assert_true(absmax[0] == 1.5625f && absmax[1] == 1.359375f && absmax[2] == 1.359375f);
        for (int i = 0; i < 70; i++)
            assert_int_equal("0123456789abcdef"[code_of(codes, i)], want[format][i]);
    }
}

/* A value on a threshold takes the lower code, the next float the higher; absmax 1 makes y = x. */
static void test_ties(void **state) {
    (void)state;
    static const float nf4[15] = NF4_THRESHOLDS, fp4[15] = FP4_THRESHOLDS;
    static const uint8_t order[16] = FP4_ORDER;
    for (int k = 0; k < 15; k++) {
        float x[64] = {1.0f}, absmax;
        uint8_t codes[32];
        x[1] = nf4[k];
        x[2] = nextafterf(nf4[k], 2.0f);
        quantize(WEIGHT_NF4, x, 64, 64, codes, &absmax);
        assert_int_equal(code_of(codes, 1), k);
        assert_int_equal(code_of(codes, 2), k + 1);
        x[1] = fp4[k];
        x[2] = nextafterf(fp4[k], 2.0f);
        quantize(WEIGHT_FP4, x, 64, 64, codes, &absmax);
        assert_int_equal(code_of(codes, 1), order[k]);
        assert_int_equal(code_of(codes, 2), order[k + 1]);
    }
}

/* Two values at a border where the product with the reciprocal and the quotient lie on different sides of it: a full block
 * takes the product, a short one the quotient. Both were found by a search over scales. */
static void test_product_or_quotient(void **state) {
    (void)state;
    float x[32] = {0.046875f, -0x1.d4f74ep-6f, 0x1.e8f0fep-10f}, absmax;
    uint8_t codes[16];
    quantize(WEIGHT_NF4, x, 32, 32, codes, &absmax);
    assert_int_equal(code_of(codes, 1), 1);
    assert_int_equal(code_of(codes, 2), 8);
    quantize(WEIGHT_NF4, x, 30, 32, codes, &absmax);
    assert_int_equal(code_of(codes, 1), 2);
    assert_int_equal(code_of(codes, 2), 7);
}

/* The tables agree with each other: thresholds are the FP32 midpoints of neighbouring values, in ascending order. */
static void test_tables(void **state) {
    (void)state;
    static const float nf4[16] = NF4_CODES, fp4[16] = FP4_CODES, nf4_t[15] = NF4_THRESHOLDS, fp4_t[15] = FP4_THRESHOLDS;
    static const uint8_t order[16] = FP4_ORDER;
    for (int k = 0; k < 15; k++) {
        assert_true(nf4_t[k] == (nf4[k] + nf4[k + 1]) / 2.0f);
        assert_true(fp4_t[k] == (fp4[order[k]] + fp4[order[k + 1]]) / 2.0f);
        assert_true(fp4[order[k]] <= fp4[order[k + 1]]);
    }
}

static void test_zero_and_tiny_blocks(void **state) {
    (void)state;
    for (int format = 0; format < 2; format++) {
        WeightFormat type = format == 0 ? WEIGHT_NF4 : WEIGHT_FP4;
        unsigned zero = format == 0 ? 7 : 0;
        float x[67] = {0}, absmax[3];
        uint8_t codes[34];
        x[40] = 1e-40f; /* subnormal: y = x * 1e38 = 0.01, whatever the block's own absmax */
        assert_int_equal(quantize(type, x, 67, 32, codes, absmax), -1);
        assert_true(absmax[0] == 0.0f && absmax[1] == 1e-40f && absmax[2] == 0.0f);
        for (int i = 0; i < 68; i++) { /* the odd end included: the unused nibble is the code of zero */
            if (i != 40) assert_int_equal(code_of(codes, i), zero);
        }
        assert_int_equal(code_of(codes, 40), format == 0 ? 7 : 1);
        x[66] = 1e-40f; /* a short block: scaled by, and stored as, 1e-38 */
        quantize(type, x, 67, 32, codes, absmax);
        assert_true(absmax[2] == ABSMAX_FLOOR);
    }
}

static void test_refuses_nonfinite(void **state) {
    (void)state;
    float bad[3] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++) {
        float x[100], absmax[4];
        uint8_t codes[50];
        for (int j = 0; j < 100; j++)
            x[j] = 0.5f;
        x[70 + i] = bad[i];
        x[90] = NAN;
        assert_int_equal(quantize(WEIGHT_NF4, x, 100, 32, codes, absmax), 70 + i);
    }
}

/* Parts cut at block borders give the bytes of the whole. */
static void test_parts(void **state) {
    (void)state;
    enum { COUNT = 1000, BLOCK = 64, CUT = 5 * BLOCK };
    Scope scope = {0};
    const float *x = scope_random(&scope, DTYPE_F32, COUNT, 1.0);
    uint8_t *whole = scope_bytes(&scope, COUNT / 2), *parts = scope_bytes(&scope, COUNT / 2);
    float *absmax = scope_nan(&scope, DTYPE_F32, 16), *absmax_parts = scope_nan(&scope, DTYPE_F32, 16);
    quantize(WEIGHT_FP4, x, COUNT, BLOCK, whole, absmax);
    quantize(WEIGHT_FP4, x, CUT, BLOCK, parts, absmax_parts);
    quantize(WEIGHT_FP4, x + CUT, COUNT - CUT, BLOCK, parts + CUT / 2, absmax_parts + 5);
    assert_memory_equal(parts, whole, COUNT / 2);
    assert_memory_equal(absmax_parts, absmax, 16 * sizeof(float));
    scope_close(&scope);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ramp),   cmocka_unit_test(test_short_tail),           cmocka_unit_test(test_ties),
        cmocka_unit_test(test_tables), cmocka_unit_test(test_zero_and_tiny_blocks), cmocka_unit_test(test_refuses_nonfinite),
        cmocka_unit_test(test_parts),  cmocka_unit_test(test_product_or_quotient),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
