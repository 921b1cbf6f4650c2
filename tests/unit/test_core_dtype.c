/* Every 16-bit pattern, every midpoint between neighbours, and the next float on either side of it. */
#include "tests/unit/test_core.h"

#include "core/dtype.h"

static uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* The value of a half by its definition, in double. */
static double half_value(unsigned h) {
    int exponent = (int)(h >> 10 & 31), mantissa = (int)(h & 1023);
    double magnitude = exponent == 0 ? ldexp(mantissa, -24) : ldexp(1024 + mantissa, exponent - 25);
    return h & 0x8000 ? -magnitude : magnitude;
}

static void f16_every_value(void **state) {
    (void)state;
    for (unsigned h = 0; h < 65536; h++) {
        float value = f16_to_float((f16)h);
        if ((h & 0x7FFF) > 0x7C00) {
            assert_true(isnan(value));
            assert_int_equal(f16_from_float(value), h | 0x200); /* the payload stays, the quiet bit is set */
            continue;
        }
        if ((h & 0x7FFF) == 0x7C00)
            assert_true(isinf(value) && (value < 0.0f) == (h >> 15 == 1));
        else
            assert_true((double)value == half_value(h));
        assert_int_equal(bits_of(value) >> 31, h >> 15); /* of zeros too */
        assert_int_equal(f16_from_float(value), h);
    }
}

static void f16_ties_go_to_even(void **state) {
    (void)state;
    for (unsigned h = 0; h < 0x7BFF; h++)
        for (unsigned sign = 0; sign <= 0x8000; sign += 0x8000) {
            float s = sign ? -1.0f : 1.0f;
            float middle = (float)((half_value(h) + half_value(h + 1)) / 2.0); /* one bit more: exact in a float */
            assert_int_equal(f16_from_float(s * middle), sign | (h % 2 == 0 ? h : h + 1));
            assert_int_equal(f16_from_float(s * nextafterf(middle, 0.0f)), sign | h);
            assert_int_equal(f16_from_float(s * nextafterf(middle, INFINITY)), sign | (h + 1));
        }
    assert_int_equal(f16_from_float(nextafterf(65520.0f, 0.0f)), 0x7BFF);
    assert_int_equal(f16_from_float(65520.0f), 0x7C00);
    assert_int_equal(f16_from_float(-INFINITY), 0xFC00);
    assert_int_equal(f16_from_float(0x1p-149f), 0);
}

static void bf16_every_value(void **state) {
    (void)state;
    for (unsigned b = 0; b < 65536; b++) {
        float value = bf16_to_float((bf16)b);
        assert_int_equal(bits_of(value), b << 16);
        if ((b & 0x7FFF) > 0x7F80)
            assert_int_equal(bf16_from_float(value), b | 0x40);
        else
            assert_int_equal(bf16_from_float(value), b);
    }
}

static void bf16_ties_go_to_even(void **state) {
    (void)state;
    for (unsigned b = 0; b < 0x7F80; b++)
        for (unsigned sign = 0; sign <= 0x8000; sign += 0x8000) {
            uint32_t middle = (sign | b) << 16 | 0x8000;
            float at, below, above;
            memcpy(&at, &middle, sizeof at);
            middle--;
            memcpy(&below, &middle, sizeof below);
            middle += 2;
            memcpy(&above, &middle, sizeof above);
            assert_int_equal(bf16_from_float(at), sign | (b % 2 == 0 ? b : b + 1)); /* 0x7F7F rounds up to infinity */
            assert_int_equal(bf16_from_float(below), sign | b);
            assert_int_equal(bf16_from_float(above), sign | (b + 1));
        }
}

/* A NaN whose payload lies in the dropped half must not become infinity. */
static void nan_stays_nan(void **state) {
    (void)state;
    for (int bit = 0; bit < 23; bit++) {
        uint32_t bits = 0x7F800000u | 1u << bit;
        float value;
        memcpy(&value, &bits, sizeof value);
        assert_true(isnan(bf16_round(value)));
        assert_true(isnan(f16_to_float(f16_from_float(value))));
    }
}

static void convert_every_pair(void **state) {
    (void)state;
    const DType types[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16, DTYPE_F64};
    const double values[] = {0.0, -0.0, 1.0, -1.5, 0.25, 384.0, 0x1p-14}; /* exact in all four */
    enum { N = sizeof values / sizeof *values };
    for (size_t a = 0; a < 4; a++)
        for (size_t b = 0; b < 4; b++) {
            uint8_t first[N * 8 + 1], second[N * 8 + 1];
            double back[N];
            memset(first, 0xA5, sizeof first);
            memset(second, 0xA5, sizeof second);
            dtype_convert(first, types[a], values, DTYPE_F64, N);
            dtype_convert(second, types[b], first, types[a], N);
            dtype_convert(back, DTYPE_F64, second, types[b], N);
            assert_memory_equal(back, values, sizeof back); /* bytes: the sign of zero counts */
            assert_int_equal(first[N * dtype_size(types[a])], 0xA5);
            assert_int_equal(second[N * dtype_size(types[b])], 0xA5);
        }
}

static void sizes_and_names(void **state) {
    (void)state;
    assert_int_equal(dtype_size(DTYPE_F8_E5M2), 1);
    assert_int_equal(dtype_size(DTYPE_U64), 8);
    assert_string_equal(dtype_name(DTYPE_BF16), "BF16");
    assert_string_equal(dtype_name(DTYPE_F8_E5M2), "F8_E5M2");
    assert_string_equal(dtype_name(DTYPE_BOOL), "BOOL");
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(f16_every_value),  cmocka_unit_test(f16_ties_go_to_even),
                                       cmocka_unit_test(bf16_every_value), cmocka_unit_test(bf16_ties_go_to_even),
                                       cmocka_unit_test(nan_stays_nan),    cmocka_unit_test(convert_every_pair),
                                       cmocka_unit_test(sizes_and_names)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
