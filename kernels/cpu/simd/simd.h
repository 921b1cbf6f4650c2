/* Vectors of SIMD_WIDTH floats under one spelling, for the instruction set that SIMD_NAME names.
 *
 * Products and sums are fused only where vf_fma says so (the build has -ffp-contract=off). Every symbol with external
 * linkage goes through SIMD_SYMBOL, so that the objects of the instruction sets link together.
 */
#ifndef NIBBLE_KERNELS_CPU_SIMD_SIMD_H
#define NIBBLE_KERNELS_CPU_SIMD_SIMD_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "core/dtype.h"

#define SIMD_JOIN2(name, isa) name##_##isa
#define SIMD_JOIN(name, isa) SIMD_JOIN2(name, isa)
#define SIMD_SYMBOL(name) SIMD_JOIN(name, SIMD_NAME)
#define SIMD_TEXT2(isa) #isa
#define SIMD_TEXT(isa) SIMD_TEXT2(isa)
#define SIMD_VARIANT SIMD_TEXT(SIMD_NAME)

#define SIMD_INLINE static inline __attribute__((always_inline))

/* Full unrolling of short loops over registers: an array of vectors stays in registers only then. Clang takes minutes for loops
 * that are full of a sanitizer's checks. */
#ifdef __clang__
#if __has_feature(undefined_behavior_sanitizer) || __has_feature(address_sanitizer)
#define SIMD_UNROLL
#else
#define SIMD_UNROLL _Pragma("unroll")
#endif
#else
#define SIMD_UNROLL _Pragma("GCC unroll 16")
#endif

SIMD_INLINE int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}
SIMD_INLINE int64_t most(int64_t a, int64_t b) {
    return a > b ? a : b;
}
SIMD_INLINE int64_t round_up(int64_t x, int64_t unit) {
    return (x + unit - 1) / unit * unit;
}

typedef uint32_t vu __attribute__((vector_size(4 * SIMD_WIDTH), aligned(4 * SIMD_WIDTH)));
typedef int32_t vi __attribute__((vector_size(4 * SIMD_WIDTH)));
typedef uint64_t vq __attribute__((vector_size(4 * SIMD_WIDTH)));

#if SIMD_WIDTH == 16
typedef __m512 vf;
SIMD_INLINE vf vf_load(const float *p) {
    return _mm512_loadu_ps(p);
}
SIMD_INLINE void vf_store(float *p, vf x) {
    _mm512_storeu_ps(p, x);
}
SIMD_INLINE vf vf_set(float x) {
    return _mm512_set1_ps(x);
}
SIMD_INLINE vf vf_zero(void) {
    return _mm512_setzero_ps();
}
SIMD_INLINE vf vf_fma(vf a, vf b, vf c) {
    return _mm512_fmadd_ps(a, b, c);
}
SIMD_INLINE vf vf_max(vf a, vf b) {
    return _mm512_max_ps(a, b);
}
SIMD_INLINE vf vf_sqrt(vf a) {
    return _mm512_sqrt_ps(a);
}
SIMD_INLINE vf vf_round(vf a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
SIMD_INLINE vi vi_from_vf(vf a) {
    return (vi)_mm512_cvtps_epi32(a);
}
SIMD_INLINE vf vf_from_vi(vi a) {
    return _mm512_cvtepi32_ps((__m512i)a);
}
/* where mask (all ones or all zeros in each lane): a, else b */
SIMD_INLINE vf vf_select(vi mask, vf a, vf b) {
    return (vf)((mask & (vi)a) | (~mask & (vi)b));
}
SIMD_INLINE vu vu_load_u16(const uint16_t *p) {
    return (vu)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)p));
}
SIMD_INLINE void vu_store_u16(uint16_t *p, vu x) {
    _mm256_storeu_si256((void *)p, _mm512_cvtepi32_epi16((__m512i)x));
}
SIMD_INLINE vf vf_load_i8(const int8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)p)));
}
/* SIMD_WIDTH / 2 bytes, one a 64-bit lane */
SIMD_INLINE vq vq_load_u8(const uint8_t *p) {
    return (vq)_mm512_cvtepu8_epi64(_mm_loadl_epi64((const void *)p));
}
SIMD_INLINE vq vq_mul32(vq a, vq b) {
    return (vq)_mm512_mul_epu32((__m512i)a, (__m512i)b);
}
/* A table of 16 floats, looked up by the low four bits of each lane. */
typedef struct Table16 {
    vf all;
} Table16;
SIMD_INLINE Table16 table16_load(const float *p) {
    return (Table16){_mm512_loadu_ps(p)};
}
SIMD_INLINE Table16 table16_scale(Table16 t, float s) {
    return (Table16){t.all * vf_set(s)};
}
SIMD_INLINE vf table16_look(Table16 t, vi index) {
    return _mm512_permutexvar_ps((__m512i)index, t.all);
}
SIMD_INLINE float vf_sum(vf x) {
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
#else
typedef __m256 vf;
SIMD_INLINE vf vf_load(const float *p) {
    return _mm256_loadu_ps(p);
}
SIMD_INLINE void vf_store(float *p, vf x) {
    _mm256_storeu_ps(p, x);
}
SIMD_INLINE vf vf_set(float x) {
    return _mm256_set1_ps(x);
}
SIMD_INLINE vf vf_zero(void) {
    return _mm256_setzero_ps();
}
SIMD_INLINE vf vf_fma(vf a, vf b, vf c) {
    return _mm256_fmadd_ps(a, b, c);
}
SIMD_INLINE vf vf_max(vf a, vf b) {
    return _mm256_max_ps(a, b);
}
SIMD_INLINE vf vf_sqrt(vf a) {
    return _mm256_sqrt_ps(a);
}
SIMD_INLINE vf vf_round(vf a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
SIMD_INLINE vi vi_from_vf(vf a) {
    return (vi)_mm256_cvtps_epi32(a);
}
SIMD_INLINE vf vf_from_vi(vi a) {
    return _mm256_cvtepi32_ps((__m256i)a);
}
SIMD_INLINE vf vf_select(vi mask, vf a, vf b) {
    return _mm256_blendv_ps(b, a, (vf)mask);
}
SIMD_INLINE vu vu_load_u16(const uint16_t *p) {
    return (vu)_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)p));
}
SIMD_INLINE void vu_store_u16(uint16_t *p, vu x) {
    __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32((__m256i)x, (__m256i)x), 0xD8);
    _mm_storeu_si128((void *)p, _mm256_castsi256_si128(packed));
}
SIMD_INLINE vf vf_load_i8(const int8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)p)));
}
SIMD_INLINE vq vq_load_u8(const uint8_t *p) {
    int32_t four;
    memcpy(&four, p, sizeof four);
    return (vq)_mm256_cvtepu8_epi64(_mm_cvtsi32_si128(four));
}
SIMD_INLINE vq vq_mul32(vq a, vq b) {
    return (vq)_mm256_mul_epu32((__m256i)a, (__m256i)b);
}
typedef struct Table16 {
    vf low, high;
} Table16;
SIMD_INLINE Table16 table16_load(const float *p) {
    return (Table16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
SIMD_INLINE Table16 table16_scale(Table16 t, float s) {
    return (Table16){t.low * vf_set(s), t.high * vf_set(s)};
}
SIMD_INLINE vf table16_look(Table16 t, vi index) {
    vf low = _mm256_permutevar8x32_ps(t.low, (__m256i)index), high = _mm256_permutevar8x32_ps(t.high, (__m256i)index);
    return _mm256_blendv_ps(low, high, (vf)(index << 28));
}
SIMD_INLINE float vf_sum(vf x) {
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
#endif

SIMD_INLINE float vf_largest(vf x) {
#if SIMD_WIDTH == 16
    __m256 h = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
#else
    __m256 h = x;
#endif
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}

/* bf16 <-> float by integer operations: the same bits as core/dtype.h, NaN included. */
SIMD_INLINE vf vf_load_bf16(const bf16 *p) {
    return (vf)(vu_load_u16(p) << 16);
}
SIMD_INLINE vu vu_bf16_bits(vf x) {
#if SIMD_WIDTH == 16
    __m512i word = _mm512_castps_si512(x), high = _mm512_srli_epi32(word, 16);
    __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    __m512i up = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(word, _mm512_set1_epi32(0x7FFF)), odd), 16);
    return (vu)_mm512_mask_or_epi32(up, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), high, _mm512_set1_epi32(64));
#else
    vu bits = (vu)x;
    vu rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    vu nan = (vu)((vi)(bits & 0x7FFFFFFFu) > (vi)(vu){0} + 0x7F800000);
    return (nan & ((bits >> 16) | 64u)) | (~nan & rounded);
#endif
}
SIMD_INLINE void vf_store_bf16(bf16 *p, vf x) {
    vu_store_u16(p, vu_bf16_bits(x));
}
SIMD_INLINE vf vf_round_bf16(vf x) {
    return (vf)(vu_bf16_bits(x) << 16);
}
SIMD_INLINE vf vf_round_f16(vf x) {
#if SIMD_WIDTH == 16
    return _mm512_cvtph_ps(_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
    return _mm256_cvtph_ps(_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#endif
}
/* To F16, BF16, or not at all. */
SIMD_INLINE vf vf_round_to(vf x, DType type) {
    return type == DTYPE_BF16 ? vf_round_bf16(x) : type == DTYPE_F16 ? vf_round_f16(x) : x;
}
SIMD_INLINE Table16 table16_round_bf16(Table16 t) {
#if SIMD_WIDTH == 16
    return (Table16){vf_round_bf16(t.all)};
#else
    return (Table16){vf_round_bf16(t.low), vf_round_bf16(t.high)};
#endif
}

/* SIMD_WIDTH values of an activation from element `index` on; `count` of them exist, the other lanes are zero. */
SIMD_INLINE vf vf_load_act(const void *x, DType act, int64_t index, int64_t count) {
    if (count >= SIMD_WIDTH)
        return act == DTYPE_BF16 ? vf_load_bf16((const bf16 *)x + index) : vf_load((const float *)x + index);
    if (act == DTYPE_BF16) {
        bf16 part[SIMD_WIDTH] = {0};
        memcpy(part, (const bf16 *)x + index, (size_t)count * sizeof *part);
        return vf_load_bf16(part);
    }
    float part[SIMD_WIDTH] = {0};
    memcpy(part, (const float *)x + index, (size_t)count * sizeof *part);
    return vf_load(part);
}
SIMD_INLINE void vf_store_act(void *x, DType act, int64_t index, int64_t count, vf value) {
    if (act == DTYPE_BF16) {
        if (count >= SIMD_WIDTH) {
            vf_store_bf16((bf16 *)x + index, value);
            return;
        }
        bf16 part[SIMD_WIDTH];
        vf_store_bf16(part, value);
        memcpy((bf16 *)x + index, part, (size_t)count * sizeof *part);
        return;
    }
    if (count >= SIMD_WIDTH) {
        vf_store((float *)x + index, value);
        return;
    }
    float part[SIMD_WIDTH];
    vf_store(part, value);
    memcpy((float *)x + index, part, (size_t)count * sizeof *part);
}

/* e^x within 2 ulp: x = n ln2 + r with |r| <= ln2/2, polynomial in r, exponent bits. 0 below -87.3 (no subnormals), and
 * for -inf; +inf above 88.7; NaN stays NaN. */
SIMD_INLINE vf vf_exp(vf x) {
#if SIMD_WIDTH == 16
    x = _mm512_min_ps(vf_set(100.0f), x); /* inf would meet itself; NaN is the second operand, and stays */
#endif
    vf n = vf_round(x * vf_set(1.44269504088896341f));
    vf r = vf_fma(n, vf_set(-0.693359375f), x);
    r = vf_fma(n, vf_set(2.12194440e-4f), r);
    /* Cephes expf: minimax polynomial of (e^r - 1 - r) / r^2 */
    vf p = vf_set(1.9875691500e-4f);
    p = vf_fma(p, r, vf_set(1.3981999507e-3f));
    p = vf_fma(p, r, vf_set(8.3334519073e-3f));
    p = vf_fma(p, r, vf_set(4.1665795894e-2f));
    p = vf_fma(p, r, vf_set(1.6666665459e-1f));
    p = vf_fma(p, r, vf_set(5.0000001201e-1f));
    p = vf_fma(p * r, r, r) + vf_set(1.0f);
#if SIMD_WIDTH == 16
    return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, vf_set(-87.3f), _CMP_NLT_UQ), p, n);
#else
    vi low = (vi)(x < vf_set(-87.3f)), high = (vi)(x > vf_set(88.72f));
    vi exponent = vi_from_vf(n); /* 128 is 2^127 twice, so that the scale itself does not overflow */
    vi half = exponent >> 1;
    vf scale1 = (vf)((half + 127) << 23), scale2 = (vf)((exponent - half + 127) << 23);
    vf y = p * scale1 * scale2;
    y = vf_select(low, vf_zero(), y);
    return vf_select(high, vf_set(__builtin_inff()), y);
#endif
}

/* W x W block: to[c][r] = from[r][c]; strides in floats. */
SIMD_INLINE void vf_transpose(const float *from, int64_t from_stride, float *to, int64_t to_stride) {
    vf a[SIMD_WIDTH], b[SIMD_WIDTH];
    SIMD_UNROLL
    for (int i = 0; i < SIMD_WIDTH; i++)
        a[i] = vf_load(from + i * from_stride);
#if SIMD_WIDTH == 16
    SIMD_UNROLL
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
    SIMD_UNROLL
    for (int i = 0; i < 16; i += 4) {
        a[i] = (vf)_mm512_unpacklo_pd((__m512d)b[i], (__m512d)b[i + 2]);
        a[i + 1] = (vf)_mm512_unpackhi_pd((__m512d)b[i], (__m512d)b[i + 2]);
        a[i + 2] = (vf)_mm512_unpacklo_pd((__m512d)b[i + 1], (__m512d)b[i + 3]);
        a[i + 3] = (vf)_mm512_unpackhi_pd((__m512d)b[i + 1], (__m512d)b[i + 3]);
    }
    /* a[4g + c]: in 128-bit lane l, rows 4g..4g+3 of column 4l + c */
    SIMD_UNROLL
    for (int c = 0; c < 4; c++) {
        b[c] = _mm512_shuffle_f32x4(a[c], a[4 + c], 0x88);
        b[4 + c] = _mm512_shuffle_f32x4(a[c], a[4 + c], 0xDD);
        b[8 + c] = _mm512_shuffle_f32x4(a[8 + c], a[12 + c], 0x88);
        b[12 + c] = _mm512_shuffle_f32x4(a[8 + c], a[12 + c], 0xDD);
    }
    SIMD_UNROLL
    for (int c = 0; c < 4; c++) {
        vf_store(to + c * to_stride, _mm512_shuffle_f32x4(b[c], b[8 + c], 0x88));
        vf_store(to + (8 + c) * to_stride, _mm512_shuffle_f32x4(b[c], b[8 + c], 0xDD));
        vf_store(to + (4 + c) * to_stride, _mm512_shuffle_f32x4(b[4 + c], b[12 + c], 0x88));
        vf_store(to + (12 + c) * to_stride, _mm512_shuffle_f32x4(b[4 + c], b[12 + c], 0xDD));
    }
#else
    SIMD_UNROLL
    for (int i = 0; i < 8; i += 2) {
        b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    }
    SIMD_UNROLL
    for (int i = 0; i < 8; i += 4) {
        a[i] = (vf)_mm256_unpacklo_pd((__m256d)b[i], (__m256d)b[i + 2]);
        a[i + 1] = (vf)_mm256_unpackhi_pd((__m256d)b[i], (__m256d)b[i + 2]);
        a[i + 2] = (vf)_mm256_unpacklo_pd((__m256d)b[i + 1], (__m256d)b[i + 3]);
        a[i + 3] = (vf)_mm256_unpackhi_pd((__m256d)b[i + 1], (__m256d)b[i + 3]);
    }
    SIMD_UNROLL
    for (int c = 0; c < 4; c++) {
        vf_store(to + c * to_stride, _mm256_permute2f128_ps(a[c], a[4 + c], 0x20));
        vf_store(to + (4 + c) * to_stride, _mm256_permute2f128_ps(a[c], a[4 + c], 0x31));
    }
#endif
}

#endif
