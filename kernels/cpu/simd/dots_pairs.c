/* A few rows times a weight (generation): dot products of BF16 pairs straight from the weight's bytes, which are read once for
 * up to GROUP rows of x. What bounds this is the memory.
 *
 * 64 weights of a 4-bit block: the block's 16 products code * absmax, rounded to BF16 as the definition says, make a table;
 * 32 bytes become 32 words, a permutation by a word's low five bits looks up the low nibbles (the table is there twice, so
 * the fifth bit does not matter) and, after a shift, the high ones. High nibbles are the even elements (INT4: the odd), so x
 * is kept as even and odd elements of 64.
 */
#include "kernels/cpu/simd/gemm.h"
#include "kernels/ggml_decode.h"

#define BLOCK 64
#define GROUP 4

static int is_4bit(const WeightView *w) {
    if (w->format == WEIGHT_GROUPED) return w->bits == 4 && w->group_index == NULL;
    return w->format == WEIGHT_NF4 || w->format == WEIGHT_FP4 || w->format == WEIGHT_INT4;
}

static int low_nibble_first(const WeightView *w) {
    return w->format == WEIGHT_INT4 || w->format == WEIGHT_GROUPED;
}

/* The 16 values of a block, not yet rounded to BF16. */
SIMD_INLINE vf block_values(const WeightView *w, int64_t block, vf codes) {
    if (w->format == WEIGHT_GROUPED) {
        vf zero = vf_set(w->zeros != NULL ? (float)w->zeros[block] : 8.0f);
        return vf_round_to((codes - zero) * vf_set(w->scales[block]), w->scale_type);
    }
    return codes * vf_set(w->format == WEIGHT_INT4 ? w->scales[block] : weight_absmax(w, block));
}

int gemm_dots_pairs_take(const Term *term, int64_t rows, int64_t room) {
    const WeightView *w = term->b.weight;
    if (!operand_is_bf16(&term->a) || term->a.weight != NULL || w == NULL || !operand_is_bf16(&term->b)) return 0;
    if (term->k != w->cols || term->k % BLOCK != 0 || rows * term->k > 2 * room) return 0;
    if (w->format == WEIGHT_GGML) return w->ggml_type != GGML_F16;
    return w->format == WEIGHT_BF16 || (is_4bit(w) && w->block_size % BLOCK == 0 && w->cols % w->block_size == 0);
}

/* x's rows [m0, m0 + rows) as they lie, or in even and odd elements of every 64. */
static void read_x(const Operand *x, int64_t m0, int64_t rows, int64_t k, int split, bf16 *to) {
    const __m512i even = _mm512_set_epi16(62, 60, 58, 56, 54, 52, 50, 48, 46, 44, 42, 40, 38, 36, 34, 32, 30, 28, 26, 24, 22,
                                          20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const __m512i odd = _mm512_add_epi16(even, _mm512_set1_epi16(1));
    for (int64_t m = 0; m < rows; m++, to += k) {
        int64_t row = x->rows != NULL ? x->rows[m0 + m] : m0 + m;
        const bf16 *from = (const bf16 *)x->data + row * x->stride;
        if (!split) {
            memcpy(to, from, (size_t)k * sizeof *to);
            continue;
        }
        for (int64_t i = 0; i < k; i += BLOCK) {
            __m512i a = _mm512_loadu_si512(from + i), b = _mm512_loadu_si512(from + i + BLOCK / 2);
            _mm512_storeu_si512(to + i, _mm512_permutex2var_epi16(a, even, b));
            _mm512_storeu_si512(to + i + BLOCK / 2, _mm512_permutex2var_epi16(a, odd, b));
        }
    }
}

/* sum[m][SIMD_WIDTH] += row n of the weight . rows of x */
SIMD_INLINE void dot_dense(const WeightView *w, int64_t n, int64_t k, const bf16 *x, float *sum, const int rows) {
    const bf16 *row = (const bf16 *)w->data + n * k;
    vf a[GROUP], b[GROUP];
    SIMD_UNROLL
    for (int m = 0; m < rows; m++) {
        a[m] = vf_load(sum + m * SIMD_WIDTH);
        b[m] = vf_zero();
    }
    for (int64_t i = 0; i < k; i += BLOCK) {
        __m512bh low = (__m512bh)_mm512_loadu_si512(row + i), high = (__m512bh)_mm512_loadu_si512(row + i + BLOCK / 2);
        SIMD_UNROLL
        for (int m = 0; m < rows; m++) {
            a[m] = _mm512_dpbf16_ps(a[m], low, (__m512bh)_mm512_loadu_si512(x + m * k + i));
            b[m] = _mm512_dpbf16_ps(b[m], high, (__m512bh)_mm512_loadu_si512(x + m * k + i + BLOCK / 2));
        }
    }
    SIMD_UNROLL
    for (int m = 0; m < rows; m++)
        vf_store(sum + m * SIMD_WIDTH, a[m] + b[m]);
}

SIMD_INLINE void dot_4bit(const WeightView *w, int64_t n, int64_t k, const bf16 *x, float *sum, vf codes, const int rows) {
    int low_first = low_nibble_first(w);
    const uint8_t *packed = w->data + n * k / 2;
    int64_t block = n * k / w->block_size;
    vf a[GROUP], b[GROUP];
    SIMD_UNROLL
    for (int m = 0; m < rows; m++) {
        a[m] = vf_load(sum + m * SIMD_WIDTH);
        b[m] = vf_zero();
    }
    for (int64_t from = 0; from < k; from += w->block_size, block++) {
        vf products = block_values(w, block, codes);
        __m256i narrow = _mm512_cvtepi32_epi16((__m512i)vu_bf16_bits(products));
        __m512i table = _mm512_broadcast_i64x4(narrow);
        for (int64_t i = from; i < from + w->block_size; i += BLOCK) {
            __m512i bytes = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const void *)(packed + i / 2)));
            __m512bh low = (__m512bh)_mm512_permutexvar_epi16(bytes, table);
            __m512bh high = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(bytes, 4), table);
            __m512bh even = low_first ? low : high, odd = low_first ? high : low;
            SIMD_UNROLL
            for (int m = 0; m < rows; m++) {
                a[m] = _mm512_dpbf16_ps(a[m], even, (__m512bh)_mm512_loadu_si512(x + m * k + i));
                b[m] = _mm512_dpbf16_ps(b[m], odd, (__m512bh)_mm512_loadu_si512(x + m * k + i + BLOCK / 2));
            }
        }
    }
    SIMD_UNROLL
    for (int m = 0; m < rows; m++)
        vf_store(sum + m * SIMD_WIDTH, a[m] + b[m]);
}

/* ggml's blocks: 32 values, rounded to BF16, are one operand. */
SIMD_INLINE void dot_ggml(const WeightView *w, int64_t n, int64_t k, const bf16 *x, float *sum, const int rows) {
    int64_t index = n * k / GGML_RUN;
    vf a[GROUP];
    SIMD_UNROLL
    for (int m = 0; m < rows; m++)
        a[m] = vf_load(sum + m * SIMD_WIDTH);
    for (int64_t i = 0; i < k; i += GGML_RUN, index++) {
        GgmlRun run;
        ggml_run_take(w->ggml_type, w->data, index, &run);
        vf low = vf_load_i8(run.codes) * vf_set(run.scale[0]) + vf_set(run.offset[0]);
        vf high = vf_load_i8(run.codes + SIMD_WIDTH) * vf_set(run.scale[1]) + vf_set(run.offset[1]);
        __m512bh pairs = _mm512_cvtne2ps_pbh(high, low);
        SIMD_UNROLL
        for (int m = 0; m < rows; m++)
            a[m] = _mm512_dpbf16_ps(a[m], pairs, (__m512bh)_mm512_loadu_si512(x + m * k + i));
    }
    SIMD_UNROLL
    for (int m = 0; m < rows; m++)
        vf_store(sum + m * SIMD_WIDTH, a[m]);
}

SIMD_INLINE void dots_of(const WeightView *w, int64_t n, int64_t k, const bf16 *x, float *sum, vf codes, const int rows) {
    if (w->format == WEIGHT_BF16)
        dot_dense(w, n, k, x, sum, rows);
    else if (w->format == WEIGHT_GGML)
        dot_ggml(w, n, k, x, sum, rows);
    else
        dot_4bit(w, n, k, x, sum, codes, rows);
}

void gemm_dots_pairs(const Term *term, int64_t m0, int64_t rows, int64_t n0, int64_t columns, float *room, float *sums) {
    static const float int4_codes[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
    static const float grouped_codes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const WeightView *w = term->b.weight;
    bf16 *x = (bf16 *)(void *)room;
    int64_t k = term->k;
    int in_order = w->format == WEIGHT_BF16 || w->format == WEIGHT_GGML;
    vf codes = in_order ? vf_zero()
                        : vf_load(w->format == WEIGHT_INT4      ? int4_codes
                                  : w->format == WEIGHT_GROUPED ? grouped_codes
                                                                : w->codes);
    read_x(&term->a, m0, rows, k, !in_order, x);
    for (int64_t n = 0; n < columns; n++) {
        float *sum = sums + n * rows * SIMD_WIDTH;
        int64_t m = 0;
        for (; m + GROUP <= rows; m += GROUP)
            dots_of(w, n0 + n, k, x + m * k, sum + m * SIMD_WIDTH, codes, GROUP);
        for (; m < rows; m++)
            dots_of(w, n0 + n, k, x + m * k, sum + m * SIMD_WIDTH, codes, 1);
    }
}
