/* 4-bit codes decoded to BF16 numbers, 32 at a time: the block's 16 products, rounded to BF16 as the definition says
 * (kernels/formats.h), make a table of words, which a permutation looks up by the codes.
 */
#ifndef NIBBLE_KERNELS_CPU_SIMD_CODE_WORDS_H
#define NIBBLE_KERNELS_CPU_SIMD_CODE_WORDS_H

#include "kernels/cpu/simd/simd.h"
#include "kernels/formats.h"

SIMD_INLINE int is_4bit(const WeightView *w) {
    if (w->format == WEIGHT_GROUPED) return w->bits == 4 && w->group_index == NULL;
    return w->format == WEIGHT_NF4 || w->format == WEIGHT_FP4 || w->format == WEIGHT_INT4;
}

SIMD_INLINE int low_nibble_first(const WeightView *w) {
    return w->format == WEIGHT_INT4 || w->format == WEIGHT_GROUPED;
}

/* What a code stands for before the block's constants. */
SIMD_INLINE vf code_values(const WeightView *w) {
    static const float int4_codes[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
    static const float grouped_codes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return vf_load(w->format == WEIGHT_INT4 ? int4_codes : w->format == WEIGHT_GROUPED ? grouped_codes : w->codes);
}

/* The 16 values of a block, not yet rounded to BF16. */
SIMD_INLINE vf block_values(const WeightView *w, int64_t block, vf codes) {
    if (w->format == WEIGHT_GROUPED) {
        vf zero = vf_set(w->zeros != NULL ? (float)w->zeros[block] : 8.0f);
        return vf_round_to((codes - zero) * vf_set(w->scales[block]), w->scale_type);
    }
    return codes * vf_set(w->format == WEIGHT_INT4 ? w->scales[block] : weight_absmax(w, block));
}

/* The same as words, twice: a permutation's fifth index bit then does not matter. */
SIMD_INLINE __m512i block_words(const WeightView *w, int64_t block, vf codes) {
    return _mm512_broadcast_i64x4(_mm512_cvtepi32_epi16((__m512i)vu_bf16_bits(block_values(w, block, codes))));
}

/* 32 neighbours from 16 bytes, in order; high_first: a byte's earlier element is its high nibble. A 32-bit lane is a byte: the
 * earlier element's code in the low word's low bits, the later one's in the high word's. */
SIMD_INLINE __m512i words_of(const uint8_t *packed, __m512i table, const int high_first) {
    __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)packed));
    __m512i index = high_first ? _mm512_or_si512(_mm512_srli_epi32(bytes, 4), _mm512_slli_epi32(bytes, 16))
                               : _mm512_or_si512(bytes, _mm512_slli_epi32(bytes, 12));
    return _mm512_permutexvar_epi16(index, table);
}

#endif
