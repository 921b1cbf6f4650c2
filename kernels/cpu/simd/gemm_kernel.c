/* The loop that does the work: a block of C in registers, one row of B a step.
 *
 * Two FMAs a cycle of latency four need eight chains; there are rows * vectors = 24 (AVX2: 12), which leave registers for a
 * row of B and one broadcast. Every index into the block is a constant and nothing is a loop: clang keeps an array in
 * registers only then.
 */
#include "kernels/cpu/simd/gemm.h"

_Static_assert(GEMM_ROWS == 6, "the block is spelled out row by row");

typedef struct Row {
    vf v[4]; /* the first `vectors` count */
} Row;

SIMD_INLINE Row row_load(const float *p, const int vectors) {
    Row r = {{vf_load(p), vf_zero(), vf_zero(), vf_zero()}};
    if (vectors > 1) r.v[1] = vf_load(p + SIMD_WIDTH);
    if (vectors > 2) r.v[2] = vf_load(p + 2 * SIMD_WIDTH);
    if (vectors > 3) r.v[3] = vf_load(p + 3 * SIMD_WIDTH);
    return r;
}

/* c + a b, or with pairs c + a.low b.low + a.high b.high */
SIMD_INLINE vf multiply_add(vf a, vf b, vf c, const int pairs) {
#if GEMM_PAIRS
    if (pairs) return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b);
#endif
    (void)pairs;
    return vf_fma(a, b, c);
}

SIMD_INLINE Row row_fma(Row sum, float a, Row b, const int vectors, const int pairs) {
    vf factor = vf_set(a);
    sum.v[0] = multiply_add(factor, b.v[0], sum.v[0], pairs);
    if (vectors > 1) sum.v[1] = multiply_add(factor, b.v[1], sum.v[1], pairs);
    if (vectors > 2) sum.v[2] = multiply_add(factor, b.v[2], sum.v[2], pairs);
    if (vectors > 3) sum.v[3] = multiply_add(factor, b.v[3], sum.v[3], pairs);
    return sum;
}

SIMD_INLINE void row_add_to(float *p, Row sum, const int vectors) {
    vf_store(p, vf_load(p) + sum.v[0]);
    if (vectors > 1) vf_store(p + SIMD_WIDTH, vf_load(p + SIMD_WIDTH) + sum.v[1]);
    if (vectors > 2) vf_store(p + 2 * SIMD_WIDTH, vf_load(p + 2 * SIMD_WIDTH) + sum.v[2]);
    if (vectors > 3) vf_store(p + 3 * SIMD_WIDTH, vf_load(p + 3 * SIMD_WIDTH) + sum.v[3]);
}

SIMD_INLINE void kernel_body(const float *restrict a, int64_t a_stride, const float *restrict b, float *restrict c,
                             int64_t c_stride, int64_t k, const int vectors, const int pairs) {
    const Row zero = {{vf_zero(), vf_zero(), vf_zero(), vf_zero()}};
    Row sum0 = zero, sum1 = zero, sum2 = zero, sum3 = zero, sum4 = zero, sum5 = zero;
    const float *a3 = a + 3 * a_stride;
    for (int i = 0; i < GEMM_ROWS; i++) /* C is touched at the end: it arrives meanwhile */
        for (int v = 0; v < vectors; v++)
            _mm_prefetch((const char *)(c + i * c_stride + v * SIMD_WIDTH), _MM_HINT_T0);
    for (int64_t p = 0; p < k; p++) {
        Row row = row_load(b + p * vectors * SIMD_WIDTH, vectors);
        sum0 = row_fma(sum0, a[p], row, vectors, pairs);
        sum1 = row_fma(sum1, a[a_stride + p], row, vectors, pairs);
        sum2 = row_fma(sum2, a[2 * a_stride + p], row, vectors, pairs);
        sum3 = row_fma(sum3, a3[p], row, vectors, pairs);
        sum4 = row_fma(sum4, a3[a_stride + p], row, vectors, pairs);
        sum5 = row_fma(sum5, a3[2 * a_stride + p], row, vectors, pairs);
    }
    row_add_to(c, sum0, vectors);
    row_add_to(c + c_stride, sum1, vectors);
    row_add_to(c + 2 * c_stride, sum2, vectors);
    row_add_to(c + 3 * c_stride, sum3, vectors);
    row_add_to(c + 4 * c_stride, sum4, vectors);
    row_add_to(c + 5 * c_stride, sum5, vectors);
}

/* One vector wide: the odd steps have sums of their own, or six chains would wait for each other. */
SIMD_INLINE void kernel_narrow(const float *restrict a, int64_t a_stride, const float *restrict b, float *restrict c,
                               int64_t c_stride, int64_t k, const int pairs) {
    vf even[GEMM_ROWS], odd[GEMM_ROWS];
    SIMD_UNROLL
    for (int i = 0; i < GEMM_ROWS; i++)
        even[i] = odd[i] = vf_zero();
    int64_t p = 0;
    for (; p + 1 < k; p += 2) {
        vf row = vf_load(b + p * SIMD_WIDTH), next = vf_load(b + (p + 1) * SIMD_WIDTH);
        SIMD_UNROLL
        for (int i = 0; i < GEMM_ROWS; i++) {
            even[i] = multiply_add(vf_set(a[i * a_stride + p]), row, even[i], pairs);
            odd[i] = multiply_add(vf_set(a[i * a_stride + p + 1]), next, odd[i], pairs);
        }
    }
    SIMD_UNROLL
    for (int i = 0; i < GEMM_ROWS; i++) {
        if (p < k) even[i] = multiply_add(vf_set(a[i * a_stride + p]), vf_load(b + p * SIMD_WIDTH), even[i], pairs);
        vf_store(c + i * c_stride, vf_load(c + i * c_stride) + (even[i] + odd[i]));
    }
}

SIMD_INLINE void kernel_of(const float *a, int64_t a_stride, const float *b, float *c, int64_t c_stride, int64_t k, int vectors,
                           const int pairs) {
    switch (vectors) {
        case 1: kernel_narrow(a, a_stride, b, c, c_stride, k, pairs); break;
#if SIMD_WIDTH == 16
        case 2: kernel_body(a, a_stride, b, c, c_stride, k, 2, pairs); break;
        case 3: kernel_body(a, a_stride, b, c, c_stride, k, 3, pairs); break;
#endif
        default: kernel_body(a, a_stride, b, c, c_stride, k, GEMM_VECTORS, pairs); break;
    }
}

void gemm_kernel(const float *a, int64_t a_stride, const float *b, float *c, int64_t c_stride, int64_t k, int vectors) {
    kernel_of(a, a_stride, b, c, c_stride, k, vectors, 0);
}

#if GEMM_PAIRS
void gemm_kernel_pairs(const float *a, int64_t a_stride, const float *b, float *c, int64_t c_stride, int64_t pairs,
                       int vectors) {
    kernel_of(a, a_stride, b, c, c_stride, pairs, vectors, 1);
}
#endif
