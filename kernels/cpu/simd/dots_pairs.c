/* A few rows times a weight (generation): dot products of BF16 pairs straight from the weight's bytes, which are read once for
 * up to GROUP rows of x. What bounds this is the memory, as long as decoding keeps up with it.
 *
 * 128 weights of 4 bits are 64 bytes, 32 words of four codes. The products code * absmax of their two halves' blocks, rounded
 * to BF16 as the definition says, make a table of 32 words: a permutation by a word's low five bits looks up one code of each
 * word, whose fifth bit says which half it lies in; shifted by 4, 8 and 12 bits, the words give the other three. So vector j
 * holds every fourth weight, and x is kept that way.
 *
 * However many rows of x or of the weight are worked on at once, an element sums in one order: a sequence's bits are the
 * same alone and beside others.
 */
#include "kernels/cpu/simd/gemm.h"
#include "kernels/ggml_decode.h"

#define UNIT 64   /* weights that surely have one constant */
#define CHUNK 128 /* weights of a step */
#define GROUP 4
#define PARTS 2 /* sums of one element that are formed beside each other */
#define WEIGHT_ROWS 4
#define CONSTANT_ROWS 16 /* rows whose constants are decoded at once */
#define AHEAD 8192       /* bytes between what is read and what is fetched */
/* The same of 4-bit codes: to the second cache early, which has room for more requests than the first, and from there in time. */
#define CODES_AHEAD 4096
#define CODES_FAR_AHEAD 32768

static int is_4bit(const WeightView *w) {
    if (w->format == WEIGHT_GROUPED) return w->bits == 4 && w->group_index == NULL;
    return w->format == WEIGHT_NF4 || w->format == WEIGHT_FP4 || w->format == WEIGHT_INT4;
}

/* Elements of x that lie beside each other. */
static int64_t step_of(const WeightView *w) {
    return is_4bit(w) ? CHUNK : UNIT;
}

/* Rows of x that are worked on together, of so many that are left. */
static int64_t group_of(int64_t rows) {
    return rows >= GROUP ? GROUP : rows >= 2 ? 2 : 1;
}

/* Floats of the scales, or of the zeros, of CONSTANT_ROWS rows; vectors read beyond. */
static int64_t constants_room(int64_t k) {
    return CONSTANT_ROWS * (k / UNIT) + 2 * SIMD_WIDTH;
}

int gemm_dots_pairs_take(const Term *term, int64_t rows, int64_t room) {
    const WeightView *w = term->b.weight;
    if (!operand_is_bf16(&term->a) || term->a.weight != NULL || w == NULL || !operand_is_bf16(&term->b)) return 0;
    if (term->k != w->cols || term->k % UNIT != 0) return 0;
    if (rows * round_up(term->k, step_of(w)) / 2 + 2 * constants_room(term->k) > room) return 0;
    if (w->format == WEIGHT_GGML) return w->ggml_type != GGML_F16;
    if (w->format == WEIGHT_BF16 || w->format == WEIGHT_INT8) return 1;
    return is_4bit(w) && w->block_size % UNIT == 0 && w->cols % w->block_size == 0;
}

typedef struct Dots {
    const WeightView *w;
    int64_t k, x_row, sum_stride; /* x_row: elements of a row of x, completed */
    vf codes;
    float *scale, *zero; /* constants of CONSTANT_ROWS rows of the weight */
} Dots;

/* ---- x ------------------------------------------------------------------------------------------------------------------ */

/* Every fourth of CHUNK elements, four times: first those whose codes lie in a word's low four bits. */
SIMD_INLINE void split_chunk(const __m512i from[4], int high_first, bf16 *to) {
    const __m512i fourth = _mm512_set_epi16(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 60, 56, 52, 48, 44, 40, 36, 32, 28,
                                            24, 20, 16, 12, 8, 4, 0);
    for (int j = 0; j < 4; j++) {
        __m512i index = _mm512_add_epi16(fourth, _mm512_set1_epi16((short)(high_first ? j ^ 1 : j)));
        __m512i low = _mm512_permutex2var_epi16(from[0], index, from[1]);
        __m512i high = _mm512_permutex2var_epi16(from[2], index, from[3]);
        _mm512_storeu_si512(to + j * CHUNK / 4, _mm512_inserti64x4(low, _mm512_castsi512_si256(high), 1));
    }
}

/* x's rows [m0, m0 + rows) in groups, a step of each row of the group after the other, the last one completed by zeros. */
static void read_x(const Operand *x, int64_t m0, int64_t rows, const Dots *d, bf16 *to) {
    const WeightFormat format = d->w->format;
    int split = is_4bit(d->w), high_first = format == WEIGHT_NF4 || format == WEIGHT_FP4;
    int64_t step = step_of(d->w);
    for (int64_t first = 0, group; first < rows; first += group) {
        group = group_of(rows - first);
        for (int64_t m = first; m < first + group; m++) {
            int64_t row = x->rows != NULL ? x->rows[m0 + m] : m0 + m;
            const bf16 *from = (const bf16 *)x->data + row * x->stride;
            bf16 *at = to + first * d->x_row + (m - first) * step;
            for (int64_t i = 0; i < d->k; i += step, at += group * step) {
                __m512i part[4] = {_mm512_loadu_si512(from + i), _mm512_loadu_si512(from + i + 32)};
                if (!split) {
                    _mm512_storeu_si512(at, part[0]);
                    _mm512_storeu_si512(at + 32, part[1]);
                    continue;
                }
                part[2] = part[3] = _mm512_setzero_si512();
                if (i + UNIT < d->k) {
                    part[2] = _mm512_loadu_si512(from + i + 64);
                    part[3] = _mm512_loadu_si512(from + i + 96);
                }
                split_chunk(part, high_first, at);
            }
        }
    }
}

/* ---- 4 bits ------------------------------------------------------------------------------------------------------------- */

/* to[i] = map[codes[i]], 16 at a time: all of the map lies in registers, 32 entries are looked up by a code's low five bits,
 * and the other three choose among eight results. */
static void look_up_bytes(const uint8_t *codes, int64_t count, const float *map, float *to) {
    __m512 part[16];
    SIMD_UNROLL
    for (int i = 0; i < 16; i++)
        part[i] = _mm512_loadu_ps(map + 16 * i);
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) {
        __m512i code = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(codes + i)));
        __mmask16 bit5 = _mm512_test_epi32_mask(code, _mm512_set1_epi32(32));
        __mmask16 bit6 = _mm512_test_epi32_mask(code, _mm512_set1_epi32(64));
        __mmask16 bit7 = _mm512_test_epi32_mask(code, _mm512_set1_epi32(128));
        __m512 four[4];
        SIMD_UNROLL
        for (int j = 0; j < 4; j++)
            four[j] = _mm512_mask_blend_ps(bit5, _mm512_permutex2var_ps(part[4 * j], code, part[4 * j + 1]),
                                           _mm512_permutex2var_ps(part[4 * j + 2], code, part[4 * j + 3]));
        __m512 low = _mm512_mask_blend_ps(bit6, four[0], four[1]), high = _mm512_mask_blend_ps(bit6, four[2], four[3]);
        _mm512_storeu_ps(to + i, _mm512_mask_blend_ps(bit7, low, high));
    }
    for (; i < count; i++)
        to[i] = map[codes[i]];
}

/* absmax of `count` blocks of a nested weight, from `first` on, in place of what was looked up */
static void nested_constants(const WeightView *w, int64_t first, int64_t count, float *out) {
    look_up_bytes(w->nested_codes + first, count, w->nested_map, out);
    for (int64_t i = 0, end; i < count; i = end) {
        int64_t nested = (first + i) / NESTED_BLOCK;
        vf scale = vf_set(w->nested_absmax[nested]), offset = vf_set(w->nested_offset);
        end = least(count, (nested + 1) * NESTED_BLOCK - first);
        int64_t at = i;
        for (; at + SIMD_WIDTH <= end; at += SIMD_WIDTH)
            vf_store(out + at, vf_load(out + at) * scale + offset);
        if (at < end) vf_store_act(out, DTYPE_F32, at, end - at, vf_load(out + at) * scale + offset);
    }
}

/* What the tables of rows [n, n + rows) are made of, for every UNIT of them and once more. zero: grouped integers only. */
static void row_constants(const WeightView *w, int64_t n, int64_t rows, float *scale, float *zero) {
    int64_t per_block = w->block_size / UNIT, count = rows * (w->cols / w->block_size), first = n * (w->cols / w->block_size);
    if (w->nested_codes != NULL && w->format != WEIGHT_GROUPED)
        nested_constants(w, first, count, scale);
    else
        memcpy(scale, w->scales + first, (size_t)count * sizeof *scale);
    for (int64_t i = 0; i < count && w->format == WEIGHT_GROUPED; i++)
        zero[i] = w->zeros != NULL ? (float)w->zeros[first + i] : 8.0f;
    int64_t units = count * per_block;
    for (int64_t u = units - 1; u >= 0 && per_block > 1; u--) { /* from the end: what is copied lies before */
        scale[u] = scale[u / per_block];
        if (w->format == WEIGHT_GROUPED) zero[u] = zero[u / per_block];
    }
    scale[units] = zero[units] = 0.0f;
}

/* One value for each of 16 codes, not yet rounded to BF16. */
SIMD_INLINE vf values_of(const WeightView *w, vf codes, const float *scale, const float *zero, const int grouped) {
    if (grouped) return vf_round_to((codes - vf_set(*zero)) * vf_set(*scale), w->scale_type);
    return codes * vf_set(*scale);
}

/* word & low | upper */
SIMD_INLINE __m512i code_of(__m512i word, __m512i low, __m512i upper) {
    return _mm512_ternarylogic_epi32(word, low, upper, 0xEA);
}

/* a[row of x] += CHUNK weights . x; table: what their codes mean */
SIMD_INLINE void dot_chunk(__m512i words, __m512i table, const bf16 *x, vf a[][PARTS], const int rows) {
    const __m512i low = _mm512_set1_epi16(15), upper = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(16), 1);
    __m512i shifted[4] = {words, _mm512_srli_epi16(words, 4), _mm512_srli_epi16(words, 8), _mm512_srli_epi16(words, 12)};
    SIMD_UNROLL
    for (int j = 0; j < 4; j++) {
        __m512bh weights = (__m512bh)_mm512_permutexvar_epi16(code_of(shifted[j], low, upper), table);
        SIMD_UNROLL
        for (int m = 0; m < rows; m++)
            a[m][j % PARTS] =
                _mm512_dpbf16_ps(a[m][j % PARTS], weights, (__m512bh)_mm512_loadu_si512(x + m * CHUNK + j * CHUNK / 4));
    }
}

/* The same for rows [n, n + across) of the weight, all of k: sum[weight row][row of x][SIMD_WIDTH]. scale, zero: their
 * constants. A last half chunk's other half is zeros in x, whatever its table holds. */
SIMD_INLINE void dot_4bit(const Dots *d, int64_t n, const bf16 *x, const float *scale, const float *zero, float *sum,
                          const int rows, const int across, const int grouped) {
    const WeightView *w = d->w;
    const int64_t k = d->k, units = k / UNIT, row_bytes = k / 2;
    const uint8_t *packed = (const uint8_t *)w->data + n * row_bytes;
    const vf codes = d->codes;
    vf a[WEIGHT_ROWS][GROUP][PARTS];
    SIMD_UNROLL
    for (int r = 0; r < across; r++)
        SIMD_UNROLL
    for (int m = 0; m < rows; m++) {
        a[r][m][0] = vf_load(sum + r * d->sum_stride + m * SIMD_WIDTH);
        a[r][m][1] = vf_zero();
    }
    int64_t u = 0;
    for (; u + 2 <= units; u += 2) {
        SIMD_UNROLL
        for (int r = 0; r < across; r++) {
            const uint8_t *from = packed + r * row_bytes + u * (UNIT / 2);
            const float *s = scale + r * units + u, *z = zero + r * units + u;
            _mm_prefetch((const char *)from + CODES_FAR_AHEAD, _MM_HINT_T1);
            _mm_prefetch((const char *)from + CODES_AHEAD, _MM_HINT_T0);
            __m512i table =
                (__m512i)_mm512_cvtne2ps_pbh(values_of(w, codes, s + 1, z + 1, grouped), values_of(w, codes, s, z, grouped));
            dot_chunk(_mm512_loadu_si512(from), table, x + u * UNIT * rows, a[r], rows);
        }
    }
    if (u < units) {
        SIMD_UNROLL
        for (int r = 0; r < across; r++) {
            __m256i half = _mm256_loadu_si256((const void *)(packed + r * row_bytes + u * (UNIT / 2)));
            vf values = values_of(w, codes, scale + r * units + u, zero + r * units + u, grouped);
            dot_chunk(_mm512_zextsi256_si512(half), (__m512i)_mm512_cvtne2ps_pbh(values, values), x + u * UNIT * rows, a[r],
                      rows);
        }
    }
    SIMD_UNROLL
    for (int r = 0; r < across; r++)
        SIMD_UNROLL
    for (int m = 0; m < rows; m++)
        vf_store(sum + r * d->sum_stride + m * SIMD_WIDTH, a[r][m][0] + a[r][m][1]);
}

/* ---- other weights: 32 at a time, in order -------------------------------------------------------------------------------- */

#define RUN GGML_RUN /* weights of one operand */

enum { RUN_BF16, RUN_INT8, RUN_Q8_0, RUN_GGML };

static int run_kind(const WeightView *w) {
    if (w->format == WEIGHT_BF16) return RUN_BF16;
    if (w->format == WEIGHT_INT8) return RUN_INT8;
    return w->ggml_type == GGML_Q8_0 ? RUN_Q8_0 : RUN_GGML;
}

SIMD_INLINE __m512bh pairs_of(vf low, vf high) {
    return _mm512_cvtne2ps_pbh(high, low);
}

/* Weights [i, i + RUN) of row n. */
SIMD_INLINE __m512bh take_run(const WeightView *w, int64_t n, int64_t k, int64_t i, const int kind) {
    int64_t at = n * k + i;
    if (kind == RUN_BF16) {
        const bf16 *from = (const bf16 *)w->data + at;
        _mm_prefetch((const char *)from + AHEAD, _MM_HINT_T0);
        return (__m512bh)_mm512_loadu_si512(from);
    }
    if (kind == RUN_INT8) {
        const int8_t *from = (const int8_t *)w->data + at;
        vf scale = vf_set(w->scales[n]), decode = vf_set(INT8_DECODE);
        _mm_prefetch((const char *)from + AHEAD, _MM_HINT_T0);
        return pairs_of(vf_load_i8(from) * scale * decode, vf_load_i8(from + SIMD_WIDTH) * scale * decode);
    }
    if (kind == RUN_Q8_0) {
        const GgmlBlockQ8_0 *from = (const GgmlBlockQ8_0 *)w->data + at / RUN;
        vf scale = vf_set(ggml_half(from->d));
        _mm_prefetch((const char *)from + AHEAD, _MM_HINT_T0);
        return pairs_of(vf_load_i8(from->qs) * scale, vf_load_i8(from->qs + SIMD_WIDTH) * scale);
    }
    GgmlRun run;
    ggml_run_take(w->ggml_type, w->data, at / RUN, &run);
    return pairs_of(vf_load_i8(run.codes) * vf_set(run.scale[0]) + vf_set(run.offset[0]),
                    vf_load_i8(run.codes + SIMD_WIDTH) * vf_set(run.scale[1]) + vf_set(run.offset[1]));
}

SIMD_INLINE void dot_runs(const Dots *d, int64_t n, const bf16 *x, float *sum, const int rows, const int across,
                          const int kind) {
    const int64_t k = d->k, sum_stride = d->sum_stride;
    vf a[WEIGHT_ROWS][GROUP][PARTS];
    SIMD_UNROLL
    for (int r = 0; r < across; r++)
        SIMD_UNROLL
    for (int m = 0; m < rows; m++) {
        a[r][m][0] = vf_load(sum + r * sum_stride + m * SIMD_WIDTH);
        a[r][m][1] = vf_zero();
    }
    for (int64_t i = 0; i < k; i += PARTS * RUN) {
        SIMD_UNROLL
        for (int r = 0; r < across; r++)
            SIMD_UNROLL
        for (int j = 0; j < PARTS; j++) {
            __m512bh weights = take_run(d->w, n + r, k, i + j * RUN, kind);
            SIMD_UNROLL
            for (int m = 0; m < rows; m++)
                a[r][m][j] =
                    _mm512_dpbf16_ps(a[r][m][j], weights, (__m512bh)_mm512_loadu_si512(x + i * rows + m * UNIT + j * RUN));
        }
    }
    SIMD_UNROLL
    for (int r = 0; r < across; r++)
        SIMD_UNROLL
    for (int m = 0; m < rows; m++)
        vf_store(sum + r * sum_stride + m * SIMD_WIDTH, a[r][m][0] + a[r][m][1]);
}

/* ---- all ------------------------------------------------------------------------------------------------------------------ */

SIMD_INLINE void dots_across(const Dots *d, int64_t n, int64_t inside, const bf16 *x, float *sum, const int rows,
                             const int across) {
    const WeightView *w = d->w;
    const float *scale = d->scale + inside * (d->k / UNIT), *zero = d->zero + inside * (d->k / UNIT);
    if (w->format == WEIGHT_GROUPED)
        dot_4bit(d, n, x, scale, zero, sum, rows, across, 1);
    else if (is_4bit(w))
        dot_4bit(d, n, x, scale, zero, sum, rows, across, 0);
    else
        switch (run_kind(w)) {
            case RUN_BF16: dot_runs(d, n, x, sum, rows, across, RUN_BF16); break;
            case RUN_INT8: dot_runs(d, n, x, sum, rows, across, RUN_INT8); break;
            case RUN_Q8_0: dot_runs(d, n, x, sum, rows, across, RUN_Q8_0); break;
            default: dot_runs(d, n, x, sum, rows, across, RUN_GGML); break;
        }
}

/* One function each, so that its sums stay in registers. */
#define DOTS(rows, across)                                                                                                \
    __attribute__((noinline)) static void dots_##rows##_##across(const Dots *d, int64_t n, int64_t inside, const bf16 *x, \
                                                                 float *sum) {                                            \
        dots_across(d, n, inside, x, sum, rows, across);                                                                  \
    }
DOTS(1, 4)
DOTS(1, 1)
DOTS(2, 1)
DOTS(2, 2)
DOTS(4, 1)
DOTS(4, 2)

/* Rows n and, where there are two, n + 1 of the weight by all rows of x. */
static void dots_some(const Dots *d, int64_t n, int64_t inside, const bf16 *x, float *sum, int64_t rows, int two) {
    for (int64_t group; rows > 0; rows -= group, x += group * d->x_row, sum += group * SIMD_WIDTH) {
        group = group_of(rows);
        if (group == GROUP) {
            (two ? dots_4_2 : dots_4_1)(d, n, inside, x, sum);
        } else if (group == 2) {
            (two ? dots_2_2 : dots_2_1)(d, n, inside, x, sum);
        } else {
            dots_1_1(d, n, inside, x, sum);
            if (two) dots_1_1(d, n + 1, inside + 1, x, sum + d->sum_stride);
        }
    }
}

void gemm_dots_pairs(const Term *term, int64_t m0, int64_t rows, int64_t n0, int64_t columns, float *room, float *sums) {
    static const float int4_codes[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
    static const float grouped_codes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const WeightView *w = term->b.weight;
    bf16 *x = (bf16 *)(void *)room;
    Dots d = {.w = w, .k = term->k, .x_row = round_up(term->k, step_of(w)), .sum_stride = rows * SIMD_WIDTH};
    d.scale = room + rows * d.x_row / 2;
    d.zero = d.scale + constants_room(d.k);
    if (is_4bit(w))
        d.codes = vf_load(w->format == WEIGHT_INT4 ? int4_codes : w->format == WEIGHT_GROUPED ? grouped_codes : w->codes);
    read_x(&term->a, m0, rows, &d, x);
    for (int64_t n = 0, step; n < columns; n += step) {
        int64_t inside = n % CONSTANT_ROWS;
        float *sum = sums + n * d.sum_stride;
        if (inside == 0 && is_4bit(w)) row_constants(w, n0 + n, least(CONSTANT_ROWS, columns - n), d.scale, d.zero);
        step = rows > 1 ? least(2, columns - n) : n + WEIGHT_ROWS <= columns ? WEIGHT_ROWS : 1; /* they share x */
        if (step == WEIGHT_ROWS)
            dots_1_4(&d, n0 + n, inside, x, sum);
        else
            dots_some(&d, n0 + n, inside, x, sum, rows, step == 2);
    }
}
