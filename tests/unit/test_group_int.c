/* Grouped integers: scales and codes against fake quantization, packing against the bits one by one, groups in any order. */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "core/memory.h"
#include "core/philox.h"
#include "quant/fake_quant.h"
#include "quant/group_int.h"
#include "tests/support/compare.h"

#define COLS 256
#define ROWS 12

static Error error;
static float input[ROWS * COLS], output[COLS], wanted[COLS];

static void fill(void) {
    for (int64_t i = 0; i < ROWS * COLS; i++) {
        int64_t row = i / COLS;
        float u = (float)random_uniform(11, RANDOM_WEIGHTS, 0, (uint64_t)i) * 2.0f - 1.0f;
        input[i] = row == 0   ? 0.0f
                   : row == 1 ? 0.75f
                   : row == 2 ? -0.75f
                   : row == 3 ? (i % 64 == 5 ? 1000.0f : u * 1e-3f)
                   : row == 4 ? fabsf(u)
                   : row == 5 ? (float)(i % 17 - 8) * 0.5f
                   : row == 6 ? u * 1e-41f
                   : row == 7 ? u * 1e-6f /* F16 has no such scale */
                              : u * powf(10.0f, (float)(row - 10));
    }
}

/* Every grid: codes and constants decode to what fake quantization gives; quantizing with the scales that were found changes
 * nothing; symmetric values stay where they are when they are quantized again. */
static void test_decodes_to_fake_quantization(void **state) {
    (void)state;
    static const DType types[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};
    static const int64_t groups[] = {32, 64, 128, 0};
    for (int bits = 2; bits <= 8; bits++)
        for (int c = 0; c < 24; c++) {
            GroupInt grid = {.bits = bits, .symmetric = c & 1, .group = groups[c / 2 % 4], .scale_type = types[c / 8]};
            FakeQuant fake = {.grid = FAKE_INT,
                              .bits = bits,
                              .symmetric = grid.symmetric,
                              .group = grid.group,
                              .scale_type = grid.scale_type};
            GroupIntTensor tensor;
            assert_ok(group_int_alloc(&tensor, &grid, ROWS, COLS, &error), &error);
            for (int64_t r = 0; r < ROWS; r++) {
                const float *x = input + r * COLS;
                assert_int_equal(group_int_quantize_row(&tensor, r, x), 0);
                group_int_dequantize_row(&tensor, r, output);
                assert_int_equal(fake_quant_row(&fake, x, COLS, wanted, NULL, NULL), 0);
                assert_memory_equal(output, wanted, sizeof wanted);

                float scales[COLS];
                uint8_t zeros[COLS], codes[COLS];
                const uint8_t *own = tensor.zeros != NULL ? tensor.zeros + r * tensor.groups : NULL;
                assert_int_equal(group_int_scales(&grid, x, COLS, scales, zeros), 0);
                assert_memory_equal(scales, tensor.scales + r * tensor.groups, (size_t)tensor.groups * sizeof *scales);
                if (own != NULL) assert_memory_equal(zeros, own, (size_t)tensor.groups);
                group_int_quantize_given_scales(&grid, x, COLS, scales, own, NULL, codes);
                assert_memory_equal(codes, tensor.codes + r * COLS, COLS);
                if (bits == 8 && grid.scale_type == DTYPE_BF16) continue; /* 255 steps round to half a step */
                group_int_quantize_given_scales(&grid, output, COLS, scales, own, NULL, codes);
                assert_memory_equal(codes, tensor.codes + r * COLS, COLS);
            }
            group_int_free(&tensor);
        }
}

/* With a group for every column that is not its place, a value takes that group's scale and zero. */
static void test_groups_in_any_order(void **state) {
    (void)state;
    GroupInt grid = {.bits = 4, .group = 32, .scale_type = DTYPE_F16};
    GroupIntTensor tensor;
    assert_ok(group_int_alloc(&tensor, &grid, 1, COLS, &error), &error);
    const float *x = input + 9 * COLS;
    assert_int_equal(group_int_quantize_row(&tensor, 0, x), 0);
    tensor.g_idx = memory_alloc(COLS * sizeof *tensor.g_idx);
    for (int64_t c = 0; c < COLS; c++)
        tensor.g_idx[c] = (int32_t)(c * 5 % 8);
    group_int_quantize_given_scales(&grid, x, COLS, tensor.scales, tensor.zeros, tensor.g_idx, tensor.codes);
    group_int_dequantize_row(&tensor, 0, output);
    for (int64_t c = 0; c < COLS; c++) {
        int64_t g = c * 5 % 8;
        uint8_t code = group_int_code(4, x[c], tensor.scales[g], tensor.zeros[g], NULL);
        assert_int_equal(tensor.codes[c], code);
        float value = f16_to_float(f16_from_float((float)(code - tensor.zeros[g]) * tensor.scales[g]));
        assert_memory_equal(&output[c], &value, sizeof value);
    }
    group_int_free(&tensor);
}

static void test_packing(void **state) {
    (void)state;
    for (int bits = 2; bits <= 8; bits++)
        for (int64_t count = 1; count <= 67; count++) {
            uint8_t codes[67], back[67], packed[68], bitwise[68] = {0};
            int64_t bytes = group_int_packed_bytes(bits, count);
            memset(packed, 0xA5, sizeof packed);
            for (int64_t i = 0; i < count; i++) {
                codes[i] = (uint8_t)((uint64_t)(i * 37 + bits * 11) % (1u << bits));
                for (int b = 0; b < bits; b++)
                    if (codes[i] >> b & 1) bitwise[(i * bits + b) / 8] |= (uint8_t)(1u << (i * bits + b) % 8);
            }
            group_int_pack(bits, codes, count, packed);
            assert_memory_equal(packed, bitwise, (size_t)bytes);
            assert_int_equal(packed[bytes], 0xA5);
            group_int_unpack(bits, packed, count, back);
            assert_memory_equal(back, codes, (size_t)count);
        }
}

static void test_refusals(void **state) {
    (void)state;
    GroupInt grid = {.bits = 4, .symmetric = 1, .group = 64, .scale_type = DTYPE_F16};
    GroupIntTensor tensor;
    assert_refused(group_int_check(&grid, 4, 96, &error), &error, "groups of 64 do not divide rows of 96");
    assert_refused(group_int_check(&grid, 0, 64, &error), &error, "[0, 64]");
    assert_refused(group_int_check(&grid, INT64_MAX / 32, 64, &error), &error, "cannot quantize");
    grid.bits = 9;
    assert_refused(group_int_check(&grid, 4, 64, &error), &error, "2 to 8 bits, got 9");
    grid.bits = 4;
    grid.scale_type = DTYPE_I32;
    assert_refused(group_int_check(&grid, 4, 64, &error), &error, "not I32");
    grid.scale_type = DTYPE_F16;
    grid.group = 0;
    assert_ok(group_int_alloc(&tensor, &grid, 1, 64, &error), &error);
    float x[64] = {1.0f};
    x[3] = NAN;
    assert_int_equal(group_int_quantize_row(&tensor, 0, x), -1);
    x[3] = INFINITY;
    assert_int_equal(group_int_quantize_row(&tensor, 0, x), -1);
    x[3] = 65504.0f * 7.6f; /* a scale that F16 cannot hold */
    assert_int_equal(group_int_quantize_row(&tensor, 0, x), -1);
    x[3] = FLT_MAX;
    assert_int_equal(group_int_quantize_row(&tensor, 0, x), -1);
    group_int_free(&tensor);
}

/* What was quantized, by whatever chose the scale, and decoded is left as it is; what never was is not taken for it. */
static void test_finds_its_own_grid(void **state) {
    (void)state;
    static const DType types[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};
    for (int bits = 2; bits <= 8; bits++)
        for (int type = 0; type < 3; type++)
            for (int shrink = 0; shrink < 3; shrink++) { /* 0: to nearest; else a narrower range, as GPTQ or a search chooses */
                GroupInt grid = {.bits = bits, .symmetric = 1, .group = 32, .scale_type = types[type]};
                float x[32], decoded[32], scale, found = 0.0f;
                uint8_t zero, codes[32], again[32], center = (uint8_t)(1 << (bits - 1));
                for (int i = 0; i < 32; i++)
                    x[i] =
                        (random_uniform(17, RANDOM_WEIGHTS, 0, (uint64_t)(((bits * 3 + type) * 3 + shrink) * 32 + i)) - 0.5f) *
                        0.3f;
                assert_false(group_int_found_scale(&grid, x, 32, &found));
                group_int_scale_of(&grid, x, 32, &scale, &zero);
                scale = group_int_round(scale * (1.0f - 0.17f * (float)shrink), types[type]);
                group_int_quantize_given_scale(&grid, x, 32, scale, center, codes);
                for (int i = 0; i < 32; i++)
                    decoded[i] = group_int_value(codes[i], scale, center, types[type]);
                assert_true(group_int_found_scale(&grid, decoded, 32, &found));
                group_int_quantize_given_scale(&grid, decoded, 32, found, center, again);
                for (int i = 0; i < 32; i++)
                    assert_true(group_int_value(again[i], found, center, types[type]) == decoded[i]);
            }
    GroupInt grid = {.bits = 4, .symmetric = 1, .group = 4, .scale_type = DTYPE_F32};
    const float zeros[4] = {0.0f, 0.0f, 0.0f, 0.0f}, bad[4] = {1.0f, NAN, 2.0f, -1.0f};
    float found;
    assert_false(group_int_found_scale(&grid, zeros, 4, &found));
    assert_false(group_int_found_scale(&grid, bad, 4, &found));
}

int main(void) {
    fill();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_decodes_to_fake_quantization),
        cmocka_unit_test(test_groups_in_any_order),
        cmocka_unit_test(test_packing),
        cmocka_unit_test(test_finds_its_own_grid),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
