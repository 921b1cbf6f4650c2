/* Packing for dot products of BF16 pairs: half the floats of gemm_pack.c, each a pair along the contraction.
 *
 * Dense BF16 and 4-bit codes become words at once, 32 elements at a time (code_words.h). Others are read as FP32, whose upper
 * halves are the BF16 numbers, since operand_is_bf16 was asked first.
 */
#include "kernels/cpu/simd/code_words.h"
#include "kernels/cpu/simd/gemm.h"

#define PAIRS SIMD_WIDTH /* a vector holds so many */
#define ELEMENTS (2 * SIMD_WIDTH)
#define ROWS_AHEAD 16 /* of rows that are asked for before they are read */

/* low, high [count]: the elements of neighbouring k. A pair a lane. */
SIMD_INLINE void store_pairs(float *to, vf low, vf high) {
    vu pairs = ((vu)low >> 16) | ((vu)high & 0xFFFF0000u);
    vf_store(to, (vf)pairs);
}

/* to[0, count / 2) = pairs of neighbours in from[0, count); count a multiple of ELEMENTS */
static void narrow(const float *from, int64_t count, float *to) {
    const __m512i odd_words = _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27, 25,
                                               23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    for (int64_t i = 0; i < count; i += ELEMENTS) {
        __m512i low = _mm512_castps_si512(vf_load(from + i)), high = _mm512_castps_si512(vf_load(from + i + SIMD_WIDTH));
        vf_store(to + i / 2, _mm512_castsi512_ps(_mm512_permutex2var_epi16(low, odd_words, high)));
    }
}

/* Whether [first, first + count) of a row are codes whose blocks 32 neighbours never cross. */
static int has_code_words(const Operand *o, int64_t first, int64_t count) {
    const WeightView *w = o->weight;
    return o->scale == 1.0f && w != NULL && is_4bit(w) && w->block_size % ELEMENTS == 0 && w->cols % ELEMENTS == 0 &&
           first % ELEMENTS == 0 && count % ELEMENTS == 0;
}

static const bf16 *dense_row(const Operand *o, int64_t row) {
    if (o->rows != NULL) row = o->rows[row];
    return o->weight == NULL ? (const bf16 *)o->data + row * o->stride : (const bf16 *)o->weight->data + row * o->weight->cols;
}

/* Whether the words lie in memory. */
static int is_dense(const Operand *o) {
    return o->scale == 1.0f && (o->weight == NULL || o->weight->format == WEIGHT_BF16);
}

/* Where a row's codes and constants are. */
typedef struct CodeRow {
    const uint8_t *packed; /* of the row's first element */
    int64_t block, inside; /* of the element to read next: its block, and its place there */
    vf codes;
} CodeRow;

SIMD_INLINE CodeRow code_row(const Operand *o, int64_t row, int64_t column) {
    const WeightView *w = o->weight;
    if (o->rows != NULL) row = o->rows[row];
    int64_t first = w->format == WEIGHT_GROUPED ? row * (w->cols / w->block_size) * w->block_size : row * w->cols;
    const uint8_t *packed = w->data;
    packed += w->format == WEIGHT_GROUPED ? row * grouped_row_bytes(w->cols, 4) : first / 2;
    return (CodeRow){.packed = packed + column / 2,
                     .block = (first + column) / w->block_size,
                     .inside = (first + column) % w->block_size,
                     .codes = code_values(w)};
}

/* to[0, count) words of codes; count a multiple of ELEMENTS */
SIMD_INLINE void decode_row(const Operand *o, int64_t row, int64_t column, int64_t count, bf16 *to, const int high_first) {
    const WeightView *w = o->weight;
    CodeRow at = code_row(o, row, column);
    for (int64_t i = 0; i < count; at.block++, at.inside = 0) {
        __m512i table = block_words(w, at.block, at.codes);
        int64_t end = least(count, i + w->block_size - at.inside);
        for (; i < end; i += ELEMENTS)
            _mm512_storeu_si512(to + i, words_of(at.packed + i / 2, table, high_first));
    }
}

/* One row's pairs over [k0, k0 + k), then zeros up to a multiple of PAIRS. */
static void read_pairs(const Operand *o, int64_t row, int64_t k0, int64_t k, float *to) {
    if (is_dense(o)) {
        memcpy(to, dense_row(o, row) + k0, (size_t)k * sizeof(bf16));
        memset((bf16 *)(void *)to + k, 0, (size_t)(round_up(k, ELEMENTS) - k) * sizeof(bf16));
        return;
    }
    if (has_code_words(o, k0, k)) {
        if (low_nibble_first(o->weight))
            decode_row(o, row, k0, k, (bf16 *)(void *)to, 0);
        else
            decode_row(o, row, k0, k, (bf16 *)(void *)to, 1);
        return;
    }
    float wide[GEMM_PAIRS_K + ELEMENTS];
    operand_read(o, row, k0, k, wide);
    int64_t whole = round_up(k, ELEMENTS);
    for (int64_t i = round_up(k, SIMD_WIDTH); i < whole; i += SIMD_WIDTH)
        vf_store(wide + i, vf_zero());
    narrow(wide, whole, to);
}

/* to[0, 32): pairs of low[i] and high[i] */
SIMD_INLINE void store_interleaved(float *to, __m512i low, __m512i high) {
    const __m512i first = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5,
                                           36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
    _mm512_storeu_si512(to, _mm512_permutex2var_epi16(low, first, high));
    _mm512_storeu_si512(to + SIMD_WIDTH, _mm512_permutex2var_epi16(low, second, high));
}

/* Two rows of codes, count (a multiple of ELEMENTS) columns. Their blocks may begin at different columns. */
SIMD_INLINE void decode_row_pair(const Operand *o, int64_t k, int64_t column, int64_t count, float *to, const int high_first) {
    const WeightView *w = o->weight;
    CodeRow low = code_row(o, k, column), high = code_row(o, k + 1, column);
    __m512i low_table = block_words(w, low.block, low.codes), high_table = block_words(w, high.block, high.codes);
    for (int64_t i = 0;;) {
        store_interleaved(to + i, words_of(low.packed + i / 2, low_table, high_first),
                          words_of(high.packed + i / 2, high_table, high_first));
        if ((i += ELEMENTS) >= count) return;
        if ((low.inside += ELEMENTS) == w->block_size) {
            low.inside = 0;
            low_table = block_words(w, ++low.block, low.codes);
        }
        if ((high.inside += ELEMENTS) == w->block_size) {
            high.inside = 0;
            high_table = block_words(w, ++high.block, high.codes);
        }
    }
}

/* Elements [column, column + count) of rows k and k + 1, paired, up to a multiple of SIMD_WIDTH. last: there is no row k + 1. */
static void read_row_pair(const Operand *o, int64_t k, int last, int64_t column, int64_t count, float *to) {
    if (!last && is_dense(o) && count % ELEMENTS == 0) {
        const bf16 *low = dense_row(o, k) + column, *high = dense_row(o, k + 1) + column;
        for (int64_t i = 0; i < count; i += ELEMENTS)
            store_interleaved(to + i, _mm512_loadu_si512(low + i), _mm512_loadu_si512(high + i));
        return;
    }
    if (!last && !is_dense(o) && has_code_words(o, column, count)) {
        if (low_nibble_first(o->weight))
            decode_row_pair(o, k, column, count, to, 0);
        else
            decode_row_pair(o, k, column, count, to, 1);
        return;
    }
    float low[GEMM_TILE_ROWS + SIMD_WIDTH], high[GEMM_TILE_ROWS + SIMD_WIDTH];
    operand_read(o, k, column, count, low);
    if (!last) operand_read(o, k + 1, column, count, high);
    for (int64_t i = 0; i < count; i += SIMD_WIDTH)
        store_pairs(to + i, vf_load(low + i), last ? vf_zero() : vf_load(high + i));
}

static void zero_rows(int64_t rows, int64_t pairs, float *to, int64_t stride) {
    for (int64_t i = rows; i % GEMM_PANEL_ROWS != 0; i++)
        memset(to + i * stride, 0, (size_t)round_up(pairs, PAIRS) * sizeof *to);
}

void gemm_pairs_pack_a(const Operand *a, int64_t m0, int64_t rows, int64_t k0, int64_t k, float *to, int64_t stride) {
    for (int64_t i = 0; i < rows; i++)
        read_pairs(a, m0 + i, k0, k, to + i * stride);
    zero_rows(rows, (k + 1) / 2, to, stride);
}

void gemm_pairs_pack_a_turned(const Operand *a, int64_t m0, int64_t rows, int64_t k0, int64_t k, float *turn,
                              int64_t turn_stride, float *to, int64_t stride) {
    int64_t pairs = (k + 1) / 2;
    for (int64_t p = 0; p < pairs; p += PAIRS) {
        for (int64_t i = 0; i < PAIRS; i++) {
            int64_t at = 2 * (p + i);
            if (at < k)
                read_row_pair(a, k0 + at, at + 1 == k, m0, rows, turn + i * turn_stride);
            else
                memset(turn + i * turn_stride, 0, (size_t)round_up(rows, SIMD_WIDTH) * sizeof *turn);
        }
        for (int64_t i = 0; i < rows; i += SIMD_WIDTH)
            vf_transpose(turn + i, turn_stride, to + i * stride + p, stride);
    }
    zero_rows(rows, pairs, to, stride);
}

void gemm_pairs_pack_b(const Operand *b, int64_t n0, int64_t columns, int64_t k0, int64_t k, int vectors, float *to) {
    int64_t width = (int64_t)vectors * SIMD_WIDTH;
    int far = is_dense(b) && b->rows == NULL && columns % ELEMENTS == 0; /* a few lines of every row: no prefetcher sees that */
    for (int64_t at = 0; at < k; at += 2) {
        if (far && at + ROWS_AHEAD + 1 < k)
            for (int64_t i = 0; i < columns; i += ELEMENTS) {
                _mm_prefetch((const char *)(dense_row(b, k0 + at + ROWS_AHEAD) + n0 + i), _MM_HINT_T0);
                _mm_prefetch((const char *)(dense_row(b, k0 + at + ROWS_AHEAD + 1) + n0 + i), _MM_HINT_T0);
            }
        read_row_pair(b, k0 + at, at + 1 == k, n0, columns, to + at / 2 * width);
    }
    for (int64_t p = (k + 1) / 2; GEMM_TILES && p % PAIRS != 0; p++)
        memset(to + p * width, 0, (size_t)width * sizeof *to);
}

void gemm_pairs_pack_b_turned(const Operand *b, int64_t n0, int64_t columns, int64_t k0, int64_t k, int vectors, float *turn,
                              int64_t turn_stride, float *to) {
    int64_t width = (int64_t)vectors * SIMD_WIDTH, pairs = round_up(k, ELEMENTS) / 2;
    for (int64_t v = 0; v < vectors; v++) {
        for (int64_t i = 0; i < SIMD_WIDTH; i++) {
            int64_t n = v * SIMD_WIDTH + i;
            if (n < columns)
                read_pairs(b, n0 + n, k0, k, turn + i * turn_stride);
            else
                memset(turn + i * turn_stride, 0, (size_t)pairs * sizeof *turn);
        }
        for (int64_t p = 0; p < pairs; p += PAIRS)
            vf_transpose(turn + p, turn_stride, to + p * width + v * SIMD_WIDTH, width);
    }
}
