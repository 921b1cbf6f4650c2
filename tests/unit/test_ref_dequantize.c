/* Every weight format decoded by its formula, in ranges that do not start or end at blocks, to every type. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/ggml_formats.h"
#include "tests/support/compare.h"
#include "tests/support/scope.h"

enum { OUT = 9, IN = 96, COUNT = OUT * IN };

/* Bit by bit from the row's stream. */
static float grouped(const WeightView *view, int64_t row, int64_t column) {
    int64_t words = (view->cols * view->bits + 31) / 32, at = row * (view->cols / view->block_size);
    const uint8_t *stream = (const uint8_t *)view->data + row * words * 4;
    int code = 0;
    for (int b = 0; b < view->bits; b++) {
        int64_t bit = column * view->bits + b;
        code |= (stream[bit / 8] >> bit % 8 & 1) << b;
    }
    at += view->group_index != NULL ? view->group_index[column] : column / view->block_size;
    float value = (float)(code - (view->zeros != NULL ? view->zeros[at] : 1 << (view->bits - 1))) * view->scales[at];
    if (view->scale_type == DTYPE_F16) return f16_to_float(f16_from_float(value));
    return view->scale_type == DTYPE_BF16 ? bf16_to_float(bf16_from_float(value)) : value;
}

/* The formulas of kernels/formats.h, element by element. */
static float expected(const WeightView *view, int64_t i) {
    const uint8_t *bytes = view->data;
    float absmax, product;
    switch (view->format) {
        case WEIGHT_NF4:
        case WEIGHT_FP4:
            if (view->nested_codes != NULL) {
                product = view->nested_map[view->nested_codes[i / 32]] * view->nested_absmax[i / 32 / 256];
                absmax = product + view->nested_offset;
            } else {
                absmax = view->scales[i / 32];
            }
            return view->codes[(bytes[i / 2] >> (i % 2 == 0 ? 4 : 0)) & 15] * absmax;
        case WEIGHT_INT8: return (float)((const int8_t *)view->data)[i] * view->scales[i / IN] * 7.874015718698502e-3f;
        case WEIGHT_INT4:
            return (float)(((bytes[i / 2] >> (i % 2 == 0 ? 0 : 4)) & 15) - 8) * view->scales[i / IN * (IN / 32) + i % IN / 32];
        case WEIGHT_GROUPED: return grouped(view, i / IN, i % IN);
        case WEIGHT_GGML: {
            const GgmlBlockQ8_0 *block = (const GgmlBlockQ8_0 *)view->data + i / GGML_BLOCK;
            return (float)block->qs[i % GGML_BLOCK] * f16_to_float(block->d);
        }
        case WEIGHT_BF16: return bf16_to_float(((const bf16 *)view->data)[i]);
        case WEIGHT_F32: return ((const float *)view->data)[i];
        default: return (float)((const double *)view->data)[i]; /* scopes hold values that BF16 has */
    }
}

static void check(WeightFormat format, int nested) {
    static const int64_t ranges[7][2] = {{0, COUNT}, {1, 1}, {31, 2}, {33, 97}, {95, 3}, {COUNT - 1, 1}, {7, 0}};
    Backend backend;
    Scope scope = {0};
    cpu_backend_reference(&backend);
    WeightView view = scope_weight(&scope, format, OUT, IN, 32, nested);
    for (int r = 0; r < 7; r++) {
        int64_t first = ranges[r][0], count = ranges[r][1];
        float *f32 = scope_nan(&scope, DTYPE_F32, count);
        bf16 *half = scope_nan(&scope, DTYPE_BF16, count);
        double *f64 = scope_nan(&scope, DTYPE_F64, count);
        backend.dequantize(&view, first, count, f32, DTYPE_F32);
        backend.dequantize(&view, first, count, half, DTYPE_BF16);
        backend.dequantize(&view, first, count, f64, DTYPE_F64);
        for (int64_t i = 0; i < count; i++) {
            float want = expected(&view, first + i);
            assert_true(f32[i] == want && f64[i] == (double)want);
            assert_int_equal(half[i], bf16_from_float(want));
        }
    }
    scope_close(&scope);
}

static void test_every_format(void **state) {
    (void)state;
    for (int format = 0; format < WEIGHT_FORMATS; format++) {
        check((WeightFormat)format, 0);
        if (format == WEIGHT_NF4 || format == WEIGHT_FP4) check((WeightFormat)format, 1);
    }
}

/* Every number of bits, with and without zero points and an order of columns, scales of every type. */
static void test_grouped(void **state) {
    (void)state;
    static const DType types[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};
    Backend backend;
    cpu_backend_reference(&backend);
    for (int bits = 2; bits <= 8; bits++)
        for (int c = 0; c < 12; c++) {
            enum { ROWS = 3, COLS = 75, GROUP = 25, GROUPS = COLS / GROUP };
            Scope scope = {0};
            size_t bytes = (size_t)(ROWS * grouped_row_bytes(COLS, bits));
            uint8_t *data = scope_bytes(&scope, bytes), *zeros = scope_bytes(&scope, ROWS * GROUPS);
            int32_t *order = scope_bytes(&scope, COLS * sizeof *order);
            for (size_t i = 0; i < bytes; i++)
                data[i] = (uint8_t)scope_draw(&scope, 256);
            for (int i = 0; i < ROWS * GROUPS; i++)
                zeros[i] = (uint8_t)scope_draw(&scope, 1 << bits);
            for (int i = 0; i < COLS; i++)
                order[i] = scope_draw(&scope, GROUPS);
            WeightView view = {.format = WEIGHT_GROUPED,
                               .rows = ROWS,
                               .cols = COLS,
                               .data = data,
                               .scales = scope_random(&scope, DTYPE_F32, ROWS * GROUPS, 0.1),
                               .block_size = GROUP,
                               .bits = bits,
                               .scale_type = types[c / 4],
                               .zeros = c & 1 ? zeros : NULL,
                               .group_index = c & 2 ? order : NULL};
            float *out = scope_nan(&scope, DTYPE_F32, ROWS * COLS);
            backend.dequantize(&view, 0, ROWS * COLS, out, DTYPE_F32);
            for (int64_t i = 0; i < ROWS * COLS; i++)
                assert_true(out[i] == grouped(&view, i / COLS, i % COLS));
            scope_close(&scope);
        }
}

/* Blocks that cross rows, a short last block and an odd number of elements: 5 x 13 in blocks of 32. */
static void test_round_trip_of_odd_shape(void **state) {
    (void)state;
    static const float nf4[16] = NF4_CODES;
    Backend backend;
    Scope scope = {0};
    cpu_backend_reference(&backend);
    const float *x = scope_random(&scope, DTYPE_F32, 65, 1.0);
    uint8_t *codes = scope_bytes(&scope, 33);
    float *absmax = scope_nan(&scope, DTYPE_F32, 3), *out = scope_nan(&scope, DTYPE_F32, 65);
    assert_int_equal(backend.quantize_4bit(WEIGHT_NF4, x, 65, 32, codes, absmax), -1);
    WeightView view = {
        .format = WEIGHT_NF4, .rows = 5, .cols = 13, .data = codes, .scales = absmax, .block_size = 32, .codes = nf4};
    backend.dequantize(&view, 0, 65, out, DTYPE_F32);
    assert_close("round trip", DTYPE_F32, out, x, 65, 0.1520, "half of the widest gap between NF4 codes, 0.3038");
    assert_true(out[64] == x[64]); /* alone in its block */
    scope_close(&scope);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_format),
        cmocka_unit_test(test_grouped),
        cmocka_unit_test(test_round_trip_of_odd_shape),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
