/* Fake quantization against the real formats: packed bytes and back, to the bit; masks against the formulas. */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "core/philox.h"
#include "quant/fake_quant.h"
#include "quant/ggml.h"
#include "quant/quantize.h"
#include "tests/support/compare.h"

#define COLS 512
#define ROWS 23

static Error error;

/* Normals at several scales, then edges: zeros, constants, one outlier, one sign, ties, tiny and large values. */
static float value_of(int64_t row, int64_t col) {
    uint64_t index = (uint64_t)(row * COLS + col);
    double u = (double)random_uniform(7, RANDOM_WEIGHTS, 0, 2 * index),
           v = (double)random_uniform(7, RANDOM_WEIGHTS, 0, 2 * index + 1);
    float normal = (float)(sqrt(-2.0 * log(1.0 - u)) * cos(6.283185307179586 * v));
    switch (row) {
        case 10: return 0.0f;
        case 11: return -0.0f;
        case 12: return 0.75f;
        case 13: return -0.75f;
        case 14: return col % 64 == 5 ? 1000.0f : normal * 1e-3f;
        case 15: return fabsf(normal);
        case 16: return -fabsf(normal);
        case 17: return (float)(col % 17 - 8) * 0.5f; /* halves of a step */
        case 18: return normal * 1e-30f;
        case 19: return normal * 1e-41f; /* denormal */
        case 20: return col % 2 ? 7.5f : -7.5f;
        case 21: return normal * 1000.0f;
        case 22: return col % 32 == 0 ? normal : 0.0f;
        default: return normal * powf(10.0f, (float)(row - 6));
    }
}

static float input[ROWS * COLS], output[ROWS * COLS], wanted[ROWS * COLS];
static uint8_t mask[ROWS * COLS];

static void fill(void) {
    for (int64_t i = 0; i < ROWS * COLS; i++)
        input[i] = value_of(i / COLS, i % COLS);
}

static void run(const FakeQuant *fake) {
    _Alignas(16) uint8_t scratch[COLS * 4];
    assert_true(fake_quant_scratch(fake, COLS) <= sizeof scratch);
    assert_ok(fake_quant_check(fake, ROWS, COLS, &error), &error);
    for (int64_t r = 0; r < ROWS; r++) {
        float alone[COLS];
        assert_int_equal(fake_quant_row(fake, input + r * COLS, COLS, output + r * COLS, mask + r * COLS, scratch), 0);
        memcpy(alone, input + r * COLS, sizeof alone); /* in place and without a mask: the same */
        assert_int_equal(fake_quant_row(fake, alone, COLS, alone, NULL, scratch), 0);
        assert_memory_equal(alone, output + r * COLS, sizeof alone);
    }
}

static void assert_values(const char *what) {
    for (int64_t i = 0; i < ROWS * COLS; i++)
        if (memcmp(&output[i], &wanted[i], sizeof(float)) != 0)
            fail_msg("%s: row %lld, column %lld: %.9g becomes %.9g, want %.9g", what, (long long)(i / COLS),
                     (long long)(i % COLS), (double)input[i], (double)output[i], (double)wanted[i]);
}

static void test_ggml(void **state) {
    (void)state;
    static const struct {
        FakeGrid grid;
        uint32_t type;
    } cases[] = {{FAKE_Q4_0, GGML_Q4_0}, {FAKE_Q8_0, GGML_Q8_0}, {FAKE_Q4_K, GGML_Q4_K}};
    static uint8_t packed[ROWS * COLS * 2];
    for (int c = 0; c < 3; c++) {
        FakeQuant fake = {.grid = cases[c].grid};
        assert_ok(ggml_quantize(cases[c].type, input, ROWS, COLS, NULL, packed, NULL, &error), &error);
        assert_ok(ggml_dequantize(cases[c].type, packed, ROWS, COLS, wanted, NULL, &error), &error);
        run(&fake);
        assert_values(ggml_type_info(cases[c].type)->name);
    }
}

/* Symmetric int4 with FP32 scales is the stored format INT4. */
static void test_int4_is_the_stored_format(void **state) {
    (void)state;
    Backend backend;
    cpu_backend_reference(&backend);
    for (int group = 32; group <= 128; group *= 2) {
        QuantSpec spec = {.format = WEIGHT_INT4, .block_size = group};
        FakeQuant fake = {.grid = FAKE_INT, .bits = 4, .symmetric = 1, .group = group, .scale_type = DTYPE_F32};
        Quantizer *quantizer;
        QuantizedTensor tensor;
        Arena arena;
        assert_ok(arena_create(&arena, "test", 1 << 20, &error), &error);
        assert_ok(quantized_take(&tensor, &spec, ROWS, COLS, &arena, &error), &error);
        assert_ok(quantizer_create(&quantizer, &backend, NULL, 0, &error), &error);
        assert_ok(quantize_tensor(quantizer, input, DTYPE_F32, &tensor, &error), &error);
        WeightView view = quantized_view(&tensor);
        backend.dequantize(&view, 0, ROWS * COLS, wanted, DTYPE_F32);
        run(&fake);
        assert_values("int4");
        quantizer_free(quantizer);
        arena_free(&arena);
    }
}

/* Codes as unsigned b-bit fields of a little-endian bit stream, as compressed-tensors packs them. */
static void put_bits(uint8_t *stream, int64_t index, int bits, unsigned code) {
    for (int b = 0; b < bits; b++)
        if (code >> b & 1u) stream[(index * bits + b) / 8] |= (uint8_t)(1u << (index * bits + b) % 8);
}

static unsigned get_bits(const uint8_t *stream, int64_t index, int bits) {
    unsigned code = 0;
    for (int b = 0; b < bits; b++)
        code |= (unsigned)(stream[(index * bits + b) / 8] >> (index * bits + b) % 8 & 1) << b;
    return code;
}

static float stored(float scale, DType type) {
    return type == DTYPE_BF16 ? bf16_to_float(bf16_from_float(scale)) : scale;
}

/* Packs one group and reads it back; checks the mask on the way. */
static void group_round_trip(const FakeQuant *fake, const float *x, int64_t count, float *out, const uint8_t *passes) {
    uint8_t stream[COLS] = {0};
    float lo = 0.0f, hi = 0.0f;
    int low = -(1 << (fake->bits - 1)), high = (1 << (fake->bits - 1)) - 1;
    for (int64_t i = 0; i < count; i++) {
        lo = fminf(lo, x[i]);
        hi = fmaxf(hi, x[i]);
    }
    float range = fake->symmetric ? fmaxf(-lo, hi) / ((float)(high - low) / 2.0f) : (hi - lo) / (float)(high - low);
    float scale = stored(range, fake->scale_type);
    if (scale == 0.0f) scale = fake->scale_type == DTYPE_BF16 ? 0.0078125f : FLT_EPSILON;
    float shift = rintf((float)low - lo / scale);
    int zero = fake->symmetric ? 0 : (int)fminf(fmaxf(shift, (float)low), (float)high);
    for (int64_t i = 0; i < count; i++) {
        float exact = x[i] / scale + (float)zero;
        float clamped = fminf(fmaxf(exact, (float)low), (float)high); /* clamp, then round */
        put_bits(stream, i, fake->bits, (unsigned)((int)rintf(clamped) - low));
        assert_int_equal(passes[i], rintf(exact) >= (float)low && rintf(exact) <= (float)high);
    }
    for (int64_t i = 0; i < count; i++)
        out[i] = stored((float)((int)get_bits(stream, i, fake->bits) + low - zero) * scale, fake->scale_type);
}

static void test_integers(void **state) {
    (void)state;
    static const int64_t groups[] = {32, 64, 128, 0};
    for (int bits = 2; bits <= 8; bits++)
        for (int g = 0; g < 4; g++)
            for (int symmetric = 0; symmetric < 2; symmetric++)
                for (int type = 0; type < 2; type++) {
                    FakeQuant fake = {.grid = FAKE_INT,
                                      .bits = bits,
                                      .symmetric = symmetric,
                                      .group = groups[g],
                                      .scale_type = type ? DTYPE_BF16 : DTYPE_F32};
                    int64_t group = groups[g] > 0 ? groups[g] : COLS;
                    run(&fake);
                    for (int64_t at = 0; at < ROWS * COLS; at += group)
                        group_round_trip(&fake, input + at, group, wanted + at, mask + at);
                    assert_values("integers");
                }
}

/* amax / 7.5 maps the greatest positive value to 7.5, which is cut: no gradient; the least one is -8 after rounding. */
static void test_ends_of_int4(void **state) {
    (void)state;
    FakeQuant fake = {.grid = FAKE_INT, .bits = 4, .symmetric = 1, .group = 32, .scale_type = DTYPE_F32};
    float x[32] = {7.5f, -7.5f, 3.0f, 7.4f};
    float out[32];
    uint8_t pass[32];
    assert_int_equal(fake_quant_row(&fake, x, 32, out, pass, NULL), 0);
    assert_true(out[0] == 7.0f && out[1] == -8.0f && out[2] == 3.0f && out[3] == 7.0f);
    assert_true(!pass[0] && pass[1] && pass[2] && pass[3] && pass[4]);
}

/* Q4_0 cuts what rounds to +8; in Q4_K what was cut became the least or the greatest value of its sub-block. */
static void test_ggml_masks(void **state) {
    (void)state;
    float x[32];
    for (int i = 0; i < 32; i++)
        x[i] = (float)i * 0.25f;
    x[0] = -8.0f; /* d = 1: codes of -8 to 7 */
    x[1] = 7.49f;
    x[2] = 7.75f;
    float out[32];
    uint8_t pass[32], block[32];
    FakeQuant fake = {.grid = FAKE_Q4_0};
    assert_int_equal(fake_quant_row(&fake, x, 32, out, pass, block), 0);
    for (int i = 0; i < 32; i++)
        assert_int_equal(pass[i], x[i] < 7.5f);
    assert_false(pass[2]);
    fake.grid = FAKE_Q8_0;
    run(&fake);
    for (int64_t i = 0; i < ROWS * COLS; i++)
        assert_true(mask[i] == 1);
    assert_false(fake_quant_clips(&fake));
    fake.grid = FAKE_Q4_K;
    run(&fake);
    int64_t cut = 0;
    for (int64_t row = 0; row < 10; row++)
        for (int64_t b = 0; b < COLS; b += 32) {
            float least = FLT_MAX, most = -FLT_MAX; /* what a sub-block can hold is at most its 16 levels */
            for (int64_t i = row * COLS + b; i < row * COLS + b + 32; i++) {
                least = fminf(least, output[i]);
                most = fmaxf(most, output[i]);
            }
            for (int64_t i = row * COLS + b; i < row * COLS + b + 32; i++) {
                cut += !mask[i];
                if (!mask[i]) assert_true(output[i] == least || output[i] == most);
            }
        }
    print_message("q4_k: %lld of %d values are cut\n", (long long)cut, 10 * COLS);
    assert_true(cut > 0 && cut < COLS);
}

/* Scales that are given: values and masks by the formula, and the slope against a difference quotient where no code changes. */
static void test_given_scales(void **state) {
    (void)state;
    float x[128], out[128], slope[128], scales[4] = {0.125f, 0.03f, 2.0f, 1.0f}, above[4], below[4], high[128], low[128];
    uint8_t pass[128];
    uint32_t seed = 7;
    for (int i = 0; i < 128; i++) {
        seed = seed * 1664525u + 1013904223u;
        x[i] = ((float)(seed >> 8) / 8388608.0f - 1.0f) * 12.0f * scales[i / 32];
    }
    for (int bits = 2; bits <= 8; bits += 2) {
        FakeQuant fake = {.grid = FAKE_INT, .bits = bits, .symmetric = 1, .group = 32, .scale_type = DTYPE_F32};
        float most = (float)((1 << (bits - 1)) - 1);
        for (int g = 0; g < 4; g++) {
            above[g] = scales[g] * (1.0f + 1.0f / 1024);
            below[g] = scales[g] * (1.0f - 1.0f / 1024);
        }
        assert_int_equal(fake_quant_row_scaled(&fake, x, 128, scales, out, pass, slope), 0);
        assert_int_equal(fake_quant_row_scaled(&fake, x, 128, above, high, NULL, NULL), 0);
        assert_int_equal(fake_quant_row_scaled(&fake, x, 128, below, low, NULL, NULL), 0);
        int clipped = 0, tried = 0;
        for (int i = 0; i < 128; i++) {
            float s = scales[i / 32], q = rintf(x[i] / s), kept = fminf(fmaxf(q, -most - 1), most);
            assert_true(out[i] == kept * s && pass[i] == (q == kept));
            assert_true(slope[i] == (q == kept ? kept - x[i] / s : kept));
            clipped += !pass[i];
            if (rintf(x[i] / above[i / 32]) != q || rintf(x[i] / below[i / 32]) != q) continue;
            /* where the code stays, the value is code * s; the straight-through part adds -x / s inside */
            float quotient = (high[i] - low[i]) / (above[i / 32] - below[i / 32]);
            assert_true(fabsf(quotient - (slope[i] + (pass[i] ? x[i] / s : 0.0f))) <=
                        1e-2f * (1.0f + fabsf(kept))); /* of a step of 2^-9 */
            tried++;
        }
        assert_true(tried > 64 && (bits <= 4 ? clipped > 0 : clipped == 0));
    }
    FakeQuant row = {.grid = FAKE_INT, .bits = 4, .symmetric = 1, .scale_type = DTYPE_BF16};
    assert_int_equal(fake_quant_row_scaled(&row, x, 128, scales, out, pass, NULL), 0);
    assert_true(out[127] == fminf(fmaxf(rintf(x[127] / 0.125f), -8.0f), 7.0f) * 0.125f);
    x[3] = NAN;
    assert_int_equal(fake_quant_row_scaled(&row, x, 128, scales, out, pass, slope), -1);
}

static void test_refusals(void **state) {
    (void)state;
    float x[256] = {0}, out[256];
    _Alignas(16) uint8_t scratch[512];
    const FakeQuant fakes[] = {{.grid = FAKE_INT, .bits = 4, .symmetric = 1, .group = 32, .scale_type = DTYPE_F32},
                               {.grid = FAKE_Q4_0},
                               {.grid = FAKE_Q8_0},
                               {.grid = FAKE_Q4_K}};
    for (int f = 0; f < 4; f++) {
        static const float bad[] = {NAN, INFINITY, -INFINITY};
        for (int b = 0; b < 3; b++) {
            x[77] = bad[b];
            assert_int_equal(fake_quant_row(&fakes[f], x, 256, out, NULL, scratch), -1);
        }
        x[77] = 1e30f;
        assert_int_equal(fake_quant_row(&fakes[f], x, 256, out, NULL, scratch), f == 0 ? 0 : -1); /* 16-bit scales */
        x[77] = 0.0f;
    }
    assert_refused(fake_quant_check(&fakes[0], 4, 48, &error), &error, "groups of 32 do not divide rows of 48");
    assert_refused(fake_quant_check(&fakes[3], 4, 128, &error), &error, "multiple of 256");
    FakeQuant wide = {.grid = FAKE_INT, .bits = 9, .group = 32};
    assert_refused(fake_quant_check(&wide, 4, 64, &error), &error, "2 to 8 bits");
}

int main(void) {
    fill();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ggml),         cmocka_unit_test(test_int4_is_the_stored_format),
        cmocka_unit_test(test_integers),     cmocka_unit_test(test_ends_of_int4),
        cmocka_unit_test(test_ggml_masks),   cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_given_scales),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
