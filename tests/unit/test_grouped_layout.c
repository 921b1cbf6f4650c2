/* Layouts of GPTQ, AWQ and compressed-tensors: against the positions of formats' descriptions, one value at a time, and back. */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "core/philox.h"
#include "quant/grouped_layout.h"
#include "tests/support/compare.h"

enum { ROWS = 64, COLS = 96, GROUP = 32, GROUPS = COLS / GROUP };

static Error error;
static uint64_t drawn;

static int draw(int limit) {
    uint32_t block[4];
    random_block(3, RANDOM_TEST, 0, drawn++, block);
    return (int)(block[0] % (uint32_t)limit);
}

typedef struct Made {
    Arena arena;
    QuantizedTensor tensor;
} Made;

static void take(Made *made, const QuantSpec *spec) {
    assert_ok(arena_create(&made->arena, "test", 1 << 20, &error), &error);
    assert_ok(quantized_take(&made->tensor, spec, ROWS, COLS, &made->arena, &error), &error);
    memset(made->arena.base, 0xA5, made->arena.used);
}

/* Random codes, zeros and scales that their type holds. */
static void fill(Made *made) {
    QuantizedTensor *t = &made->tensor;
    uint8_t codes[COLS];
    int64_t stride = grouped_row_bytes(COLS, t->spec.bits);
    for (int64_t r = 0; r < ROWS; r++) {
        for (int c = 0; c < COLS; c++)
            codes[c] = (uint8_t)draw(1 << t->spec.bits);
        memset(t->codes + r * stride, 0, (size_t)stride);
        group_int_pack(t->spec.bits, codes, COLS, t->codes + r * stride);
    }
    for (int64_t i = 0; i < t->blocks; i++) {
        t->scales[i] = (float)(draw(255) + 1) * 0x1p-9f;
        if (t->zeros != NULL) t->zeros[i] = (uint8_t)draw(1 << t->spec.bits);
    }
}

static int code_of(const QuantizedTensor *t, int64_t row, int64_t column) {
    return grouped_code(t->codes + row * grouped_row_bytes(COLS, t->spec.bits), t->spec.bits, column);
}

static uint32_t word_at(const uint8_t *bytes, int64_t index) {
    uint32_t word;
    memcpy(&word, bytes + 4 * index, 4);
    return word;
}

/* Field `index` of b bits in a stream of words that lie `step` words apart. */
static int field(const uint8_t *bytes, int64_t first, int64_t step, int bits, int64_t index) {
    int value = 0;
    for (int b = 0; b < bits; b++) {
        int64_t bit = index * bits + b;
        value |= (int)(word_at(bytes, first + bit / 32 * step) >> bit % 32 & 1) << b;
    }
    return value;
}

/* What the file says of a code or a zero point (less = -1 where the file stores one less). */
static int file_code(GroupedLayout layout, int bits, const uint8_t *lines, int64_t row, int64_t column) {
    static const int order[8] = {0, 4, 1, 5, 2, 6, 3, 7};
    switch (layout) {
        case GROUPED_GPTQ: return field(lines, row, ROWS, bits, column);
        case GROUPED_AWQ: return (int)(word_at(lines, column * (ROWS / 8) + row / 8) >> 4 * order[row % 8] & 15);
        case GROUPED_PACKED: return field(lines, row * ((COLS * bits + 31) / 32), 1, bits, column);
        case GROUPED_INT_ROWS: break;
    }
    return ((const int8_t *)lines)[row * COLS + column] + 128;
}

static int file_zero(GroupedLayout layout, int bits, const uint8_t *zeros, int64_t row, int64_t group) {
    static const int order[8] = {0, 4, 1, 5, 2, 6, 3, 7};
    switch (layout) {
        case GROUPED_GPTQ: return field(zeros, group * (ROWS * bits / 32), 1, bits, row);
        case GROUPED_AWQ: return (int)(word_at(zeros, group * (ROWS / 8) + row / 8) >> 4 * order[row % 8] & 15);
        case GROUPED_PACKED: return field(zeros, group, GROUPS, bits, row);
        case GROUPED_INT_ROWS: break;
    }
    return ((const int8_t *)zeros)[row] + 128;
}

static void check(GroupedLayout layout, const QuantSpec *spec, int stored_less) {
    static uint8_t lines[ROWS * COLS], zeros[ROWS * COLS];
    static uint8_t scales[ROWS * COLS * 4];
    Made made, read;
    take(&made, spec);
    take(&read, spec);
    fill(&made);
    QuantizedTensor *t = &made.tensor;
    assert_ok(grouped_layout_check(layout, spec, ROWS, COLS, &error), &error);
    int64_t count = grouped_lines(layout, t), bytes = grouped_line_bytes(layout, t), groups = t->blocks / ROWS;
    assert_true(count * bytes <= (int64_t)sizeof lines);
    for (int64_t at = 0; at < count; at += 5) /* in pieces */
        grouped_codes_out(layout, t, at, count - at < 5 ? count - at : 5, lines + at * bytes);
    grouped_zeros_out(layout, t, stored_less, zeros);
    grouped_scales_out(layout, t, scales);
    for (int64_t r = 0; r < ROWS; r++) {
        for (int64_t c = 0; c < COLS; c++)
            assert_int_equal(file_code(layout, spec->bits, lines, r, c), code_of(t, r, c));
        for (int64_t g = 0; g < groups; g++) {
            int zero = t->zeros != NULL ? t->zeros[r * groups + g] : 1 << (spec->bits - 1);
            assert_int_equal(file_zero(layout, spec->bits, zeros, r, g), (zero - stored_less) & ((1 << spec->bits) - 1));
            int64_t place = layout == GROUPED_GPTQ || layout == GROUPED_AWQ ? g * ROWS + r : r * groups + g;
            float scale;
            dtype_convert(&scale, DTYPE_F32, scales + (size_t)place * dtype_size(spec->scale_type), spec->scale_type, 1);
            assert_true(scale == t->scales[r * groups + g]);
        }
    }
    int64_t rows = layout == GROUPED_GPTQ || layout == GROUPED_AWQ ? 16 : ROWS;
    for (int64_t at = 0; at < count; at += 7)
        for (int64_t row = 0; row < ROWS; row += rows)
            grouped_codes_in(layout, &read.tensor, at, count - at < 7 ? count - at : 7, lines + at * bytes, row, rows);
    grouped_scales_in(layout, &read.tensor, scales, 0, read.tensor.rows);
    static uint8_t back[ROWS * COLS];
    grouped_zeros_in(layout, &read.tensor, stored_less, zeros, 0, read.tensor.rows, back);
    assert_memory_equal(read.tensor.codes, t->codes, t->code_bytes);
    assert_memory_equal(read.tensor.scales, t->scales, (size_t)t->blocks * sizeof(float));
    for (int64_t i = 0; i < t->blocks; i++)
        assert_int_equal(back[i], t->zeros != NULL ? t->zeros[i] : 1 << (spec->bits - 1));
    arena_free(&made.arena);
    arena_free(&read.arena);
}

static void test_layouts(void **state) {
    (void)state;
    for (int bits = 2; bits <= 8; bits++)
        for (int zeros = 0; zeros < 2; zeros++)
            for (int by_row = 0; by_row < 2; by_row++) {
                QuantSpec spec = {.format = WEIGHT_GROUPED,
                                  .block_size = by_row ? 0 : GROUP,
                                  .bits = bits,
                                  .zeros = zeros,
                                  .scale_type = DTYPE_F16};
                if (bits < 5 || bits == 8) check(GROUPED_GPTQ, &spec, zeros);
                if (bits == 4) check(GROUPED_AWQ, &spec, 0);
                if (bits == 8 && by_row) check(GROUPED_INT_ROWS, &spec, 0);
                if (by_row) continue; /* field() of PACKED's zeros knows GROUPS columns */
                spec.scale_type = bits % 2 ? DTYPE_F32 : DTYPE_BF16;
                check(GROUPED_PACKED, &spec, 0);
            }
}

/* The words that a reader of GPTQ files knows: symmetric zero points in the first and the second format. */
static void test_known_words(void **state) {
    (void)state;
    static const struct {
        int bits;
        uint32_t first, second;
    } cases[] = {{4, 0x77777777u, 0x88888888u}, {8, 0x7F7F7F7Fu, 0x80808080u}, {2, 0x55555555u, 0xAAAAAAAAu}};
    for (int i = 0; i < 3; i++) {
        QuantSpec spec = {.format = WEIGHT_GROUPED, .block_size = GROUP, .bits = cases[i].bits, .scale_type = DTYPE_F16};
        uint8_t bytes[ROWS * GROUPS];
        Made made;
        take(&made, &spec);
        for (int less = 0; less < 2; less++) {
            grouped_zeros_out(GROUPED_GPTQ, &made.tensor, less, bytes);
            for (int64_t w = 0; w < grouped_zero_bytes(GROUPED_GPTQ, &made.tensor) / 4; w++)
                assert_int_equal(word_at(bytes, w), less ? cases[i].first : cases[i].second);
        }
        arena_free(&made.arena);
    }
}

static void test_what_a_layout_refuses(void **state) {
    (void)state;
    QuantSpec spec = {.format = WEIGHT_GROUPED, .block_size = 32, .bits = 4, .scale_type = DTYPE_F16};
    assert_ok(grouped_layout_check(GROUPED_GPTQ, &spec, 8, 64, &error), &error);
    assert_refused(grouped_layout_check(GROUPED_GPTQ, &spec, 12, 64, &error), &error, "multiples of 8, got [12, 64]");
    assert_refused(grouped_layout_check(GROUPED_AWQ, &spec, 12, 64, &error), &error, "a multiple of 8, got 12");
    assert_refused(grouped_layout_check(GROUPED_INT_ROWS, &spec, 8, 64, &error), &error, "a scale a row");
    spec.ordered = 1;
    assert_ok(grouped_layout_check(GROUPED_GPTQ, &spec, 8, 64, &error), &error);
    assert_refused(grouped_layout_check(GROUPED_AWQ, &spec, 8, 64, &error), &error, "no order of columns");
    spec.ordered = 0;
    spec.scale_type = DTYPE_BF16;
    assert_refused(grouped_layout_check(GROUPED_GPTQ, &spec, 8, 64, &error), &error, "F16 scales, not BF16");
    assert_refused(grouped_layout_check(GROUPED_AWQ, &spec, 8, 64, &error), &error, "F16 scales, not BF16");
    spec.bits = 5;
    assert_refused(grouped_layout_check(GROUPED_GPTQ, &spec, 32, 64, &error), &error, "not 5");
    assert_refused(grouped_layout_check(GROUPED_AWQ, &spec, 32, 64, &error), &error, "not 5");
    assert_ok(grouped_layout_check(GROUPED_PACKED, &spec, 7, 64, &error), &error);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layouts),
        cmocka_unit_test(test_known_words),
        cmocka_unit_test(test_what_a_layout_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
