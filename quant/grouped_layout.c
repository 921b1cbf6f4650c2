#include "quant/grouped_layout.h"

#include <string.h>

static const uint8_t awq_order[8] = {0, 2, 4, 6, 1, 3, 5, 7}; /* output of nibble i */

static int64_t groups_of(const QuantizedTensor *t) {
    return t->blocks / t->rows;
}

static int64_t words(int64_t values, int bits) {
    return (values * bits + 31) / 32;
}

static int is_transposed(GroupedLayout layout) {
    return layout == GROUPED_GPTQ || layout == GROUPED_AWQ;
}

static Status check_gptq(const QuantSpec *spec, int64_t rows, int64_t cols, Error *err) {
    int bits = spec->bits;
    if (bits != 2 && bits != 3 && bits != 4 && bits != 8) FAIL("gptq has 2, 3, 4 or 8 bits, not %d", bits);
    if (cols * bits % 32 != 0 || rows * bits % 32 != 0)
        FAIL("gptq packs whole 32-bit words: want inputs and outputs that are multiples of %d, got [%lld, %lld]",
             bits == 3 ? 32 : 32 / bits, (long long)rows, (long long)cols);
    if (spec->scale_type != DTYPE_F16) FAIL("gptq has F16 scales, not %s", dtype_name(spec->scale_type));
    return OK;
}

static Status check_awq(const QuantSpec *spec, int64_t rows, Error *err) {
    if (spec->bits != 4) FAIL("awq has 4 bits, not %d", spec->bits);
    if (spec->ordered) FAIL("awq has no order of columns; gptq and compressed-tensors have one");
    if (rows % 8 != 0) FAIL("awq packs eight outputs into a word: want a multiple of 8, got %lld", (long long)rows);
    if (spec->scale_type != DTYPE_F16) FAIL("awq has F16 scales, not %s", dtype_name(spec->scale_type));
    return OK;
}

Status grouped_layout_check(GroupedLayout layout, const QuantSpec *spec, int64_t rows, int64_t cols, Error *err) {
    TRY(quant_check(spec, rows, cols, err));
    if (layout == GROUPED_GPTQ) return check_gptq(spec, rows, cols, err);
    if (layout == GROUPED_AWQ) return check_awq(spec, rows, err);
    if (layout == GROUPED_INT_ROWS && (spec->bits != 8 || spec->block_size != 0 || spec->ordered))
        FAIL("int-quantized has 8 bits and a scale a row");
    return OK;
}

int64_t grouped_lines(GroupedLayout layout, const QuantizedTensor *t) {
    return layout == GROUPED_GPTQ ? words(t->cols, t->spec.bits) : layout == GROUPED_AWQ ? t->cols : t->rows;
}

int64_t grouped_line_bytes(GroupedLayout layout, const QuantizedTensor *t) {
    return layout == GROUPED_GPTQ     ? t->rows * 4
           : layout == GROUPED_AWQ    ? t->rows / 8 * 4
           : layout == GROUPED_PACKED ? grouped_row_bytes(t->cols, t->spec.bits)
                                      : t->cols;
}

/* ---- codes ----------------------------------------------------------------------------------------------------------------- */

static void awq_in(QuantizedTensor *t, int64_t first, int64_t count, const uint8_t *lines, int64_t row, int64_t rows) {
    int64_t stride = grouped_row_bytes(t->cols, 4), line = t->rows / 8 * 4;
    for (int64_t c = row / 8; c < (row + rows) / 8; c++)
        for (int i = 0; i < 8; i++) {
            uint8_t *codes = t->codes + (8 * c + awq_order[i]) * stride;
            const uint8_t *from = lines + 4 * c + i / 2;
            int shift = 4 * (i % 2);
            for (int64_t k = 0; k < count; k++) {
                int64_t column = first + k;
                int high = column % 2 != 0, code = from[k * line] >> shift & 15;
                codes[column / 2] = (uint8_t)(high ? (codes[column / 2] & 15) | code << 4 : (codes[column / 2] & 0xF0) | code);
            }
        }
}

static void awq_out(const QuantizedTensor *t, int64_t first, int64_t count, uint8_t *lines) {
    int64_t stride = grouped_row_bytes(t->cols, 4), line = t->rows / 8 * 4;
    memset(lines, 0, (size_t)(count * line));
    for (int64_t c = 0; c < t->rows / 8; c++)
        for (int i = 0; i < 8; i++) {
            const uint8_t *codes = t->codes + (8 * c + awq_order[i]) * stride;
            uint8_t *to = lines + 4 * c + i / 2;
            for (int64_t k = 0; k < count; k++)
                to[k * line] = (uint8_t)(to[k * line] | grouped_code(codes, 4, first + k) << 4 * (i % 2));
        }
}

/* The same words the other way round. */
static void gptq_in(QuantizedTensor *t, int64_t first, int64_t count, const uint8_t *lines, int64_t row, int64_t rows) {
    int64_t stride = grouped_row_bytes(t->cols, t->spec.bits);
    for (int64_t o = row; o < row + rows; o++)
        for (int64_t k = 0; k < count; k++)
            memcpy(t->codes + o * stride + (first + k) * 4, lines + (k * t->rows + o) * 4, 4);
}

static void gptq_out(const QuantizedTensor *t, int64_t first, int64_t count, uint8_t *lines) {
    int64_t stride = grouped_row_bytes(t->cols, t->spec.bits);
    for (int64_t o = 0; o < t->rows; o++)
        for (int64_t k = 0; k < count; k++)
            memcpy(lines + (k * t->rows + o) * 4, t->codes + o * stride + (first + k) * 4, 4);
}

/* I8 and an unsigned byte around 128 differ in the highest bit. */
static void flip(uint8_t *to, const uint8_t *from, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        to[i] = from[i] ^ 0x80;
}

void grouped_codes_in(GroupedLayout layout, QuantizedTensor *t, int64_t first, int64_t count, const uint8_t *lines, int64_t row,
                      int64_t rows) {
    int64_t stride = grouped_row_bytes(t->cols, t->spec.bits);
    switch (layout) {
        case GROUPED_GPTQ: gptq_in(t, first, count, lines, row, rows); break;
        case GROUPED_AWQ: awq_in(t, first, count, lines, row, rows); break;
        case GROUPED_PACKED: memcpy(t->codes + first * stride, lines, (size_t)(count * stride)); break;
        case GROUPED_INT_ROWS:
            for (int64_t r = 0; r < count; r++) {
                memset(t->codes + (first + r + 1) * stride - 4, 0, 4);
                flip(t->codes + (first + r) * stride, lines + r * t->cols, t->cols);
            }
            break;
    }
}

void grouped_codes_out(GroupedLayout layout, const QuantizedTensor *t, int64_t first, int64_t count, uint8_t *lines) {
    int64_t stride = grouped_row_bytes(t->cols, t->spec.bits);
    switch (layout) {
        case GROUPED_GPTQ: gptq_out(t, first, count, lines); break;
        case GROUPED_AWQ: awq_out(t, first, count, lines); break;
        case GROUPED_PACKED: memcpy(lines, t->codes + first * stride, (size_t)(count * stride)); break;
        case GROUPED_INT_ROWS:
            for (int64_t r = 0; r < count; r++)
                flip(lines + r * t->cols, t->codes + (first + r) * stride, t->cols);
            break;
    }
}

/* ---- zero points ----------------------------------------------------------------------------------------------------------- */

int64_t grouped_zero_bytes(GroupedLayout layout, const QuantizedTensor *t) {
    return layout == GROUPED_INT_ROWS ? t->rows : words(t->rows, t->spec.bits) * 4 * groups_of(t);
}

/* Where bit b of a group's stream of outputs lies. */
static int64_t stream_byte(GroupedLayout layout, const QuantizedTensor *t, int64_t group, int64_t bit) {
    int64_t word = bit / 32, in_word = bit % 32 / 8;
    int64_t at = is_transposed(layout) ? group * words(t->rows, t->spec.bits) + word : word * groups_of(t) + group;
    return at * 4 + in_word;
}

/* The first bit of an output's zero point in its group's stream. */
static int64_t zero_bit(GroupedLayout layout, int bits, int64_t row) {
    static const uint8_t nibble[8] = {0, 4, 1, 5, 2, 6, 3, 7}; /* of output j: the inverse of awq_order */
    return layout == GROUPED_AWQ ? row / 8 * 32 + 4 * nibble[row % 8] : row * bits;
}

/* Word w of a group's stream of outputs. */
static uint32_t stream_word(GroupedLayout layout, const QuantizedTensor *t, int64_t group, int64_t w, const uint8_t *bytes) {
    uint32_t word;
    memcpy(&word, bytes + stream_byte(layout, t, group, 32 * w), sizeof word);
    return word;
}

static int get_zero(GroupedLayout layout, const QuantizedTensor *t, int64_t row, int64_t group, const uint8_t *bytes) {
    int64_t first = zero_bit(layout, t->spec.bits, row), w = first / 32;
    int shift = (int)(first % 32), bits = t->spec.bits;
    uint32_t code = stream_word(layout, t, group, w, bytes) >> shift;
    if (shift + bits > 32) code |= stream_word(layout, t, group, w + 1, bytes) << (32 - shift);
    return (int)(code & ((1u << bits) - 1u));
}

static void put_zero(GroupedLayout layout, const QuantizedTensor *t, int64_t row, int64_t group, int code, uint8_t *bytes) {
    int64_t first = zero_bit(layout, t->spec.bits, row);
    for (int b = 0; b < t->spec.bits; b++) {
        uint8_t *byte = &bytes[stream_byte(layout, t, group, first + b)];
        *byte = (uint8_t)(*byte | (code >> b & 1) << (first + b) % 8);
    }
}

void grouped_zeros_in(GroupedLayout layout, const QuantizedTensor *t, int stored_less, const uint8_t *bytes, int64_t row,
                      int64_t rows, uint8_t *zeros) {
    int64_t groups = groups_of(t);
    int mask = (1 << t->spec.bits) - 1;
    if (layout == GROUPED_INT_ROWS) {
        flip(zeros + row, bytes + row, rows);
        return;
    }
    for (int64_t r = row; r < row + rows; r++)
        for (int64_t g = 0; g < groups; g++)
            zeros[r * groups + g] = (uint8_t)((get_zero(layout, t, r, g, bytes) + stored_less) & mask);
}

void grouped_zeros_out(GroupedLayout layout, const QuantizedTensor *t, int stored_less, uint8_t *bytes) {
    int64_t groups = groups_of(t);
    int center = 1 << (t->spec.bits - 1), mask = (1 << t->spec.bits) - 1;
    memset(bytes, 0, (size_t)grouped_zero_bytes(layout, t));
    for (int64_t r = 0; r < t->rows; r++)
        for (int64_t g = 0; g < groups; g++) {
            int zero = ((t->zeros != NULL ? t->zeros[r * groups + g] : center) - stored_less) & mask;
            if (layout == GROUPED_INT_ROWS)
                bytes[r] = (uint8_t)(zero ^ 0x80);
            else
                put_zero(layout, t, r, g, zero, bytes);
        }
}

/* ---- scales ---------------------------------------------------------------------------------------------------------------- */

static int64_t scale_place(GroupedLayout layout, const QuantizedTensor *t, int64_t row, int64_t group) {
    return is_transposed(layout) ? group * t->rows + row : row * groups_of(t) + group;
}

void grouped_scales_in(GroupedLayout layout, const QuantizedTensor *t, const void *bytes, int64_t row, int64_t rows) {
    size_t size = dtype_size(t->spec.scale_type);
    int64_t groups = groups_of(t);
    const uint8_t *from = bytes;
    if (!is_transposed(layout)) {
        dtype_convert(t->scales + row * groups, DTYPE_F32, from + (size_t)(row * groups) * size, t->spec.scale_type,
                      rows * groups);
        return;
    }
    for (int64_t g = 0; g < groups; g++)
        for (int64_t r = row; r < row + rows; r++)
            dtype_convert(&t->scales[r * groups + g], DTYPE_F32, from + (size_t)(g * t->rows + r) * size, t->spec.scale_type,
                          1);
}

void grouped_scales_out(GroupedLayout layout, const QuantizedTensor *t, void *bytes) {
    size_t size = dtype_size(t->spec.scale_type);
    int64_t groups = groups_of(t);
    for (int64_t r = 0; r < t->rows; r++)
        for (int64_t g = 0; g < groups; g++)
            dtype_convert((uint8_t *)bytes + (size_t)scale_place(layout, t, r, g) * size, t->spec.scale_type,
                          &t->scales[r * groups + g], DTYPE_F32, 1);
}
