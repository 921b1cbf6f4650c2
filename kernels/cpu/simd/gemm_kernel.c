#include "kernels/cpu/simd/gemm.h"

/* Zen 5 and recent Intel cores: two FMAs a cycle of latency four need eight chains; there are rows * vectors = 24 (12). */
SIMD_INLINE void kernel_body(const float *restrict a, int64_t a_stride, const float *restrict b, float *restrict c,
                             int64_t c_stride, int64_t k, const int vectors) {
    vf sum[GEMM_ROWS][GEMM_VECTORS];
    SIMD_UNROLL
    for (int i = 0; i < GEMM_ROWS; i++)
        SIMD_UNROLL
    for (int v = 0; v < vectors; v++)
        sum[i][v] = vf_zero();
    for (int64_t p = 0; p < k; p++) {
        vf column[GEMM_VECTORS];
        SIMD_UNROLL
        for (int v = 0; v < vectors; v++)
            column[v] = vf_load(b + v * SIMD_WIDTH);
        b += vectors * SIMD_WIDTH;
        SIMD_UNROLL
        for (int i = 0; i < GEMM_ROWS; i++) {
            vf row = vf_set(a[i * a_stride + p]);
            SIMD_UNROLL
            for (int v = 0; v < vectors; v++)
                sum[i][v] = vf_fma(row, column[v], sum[i][v]);
        }
    }
    SIMD_UNROLL
    for (int i = 0; i < GEMM_ROWS; i++)
        SIMD_UNROLL
    for (int v = 0; v < vectors; v++) {
        float *place = c + i * c_stride + v * SIMD_WIDTH;
        vf_store(place, vf_load(place) + sum[i][v]);
    }
}

void gemm_kernel(const float *a, int64_t a_stride, const float *b, float *c, int64_t c_stride, int64_t k, int vectors) {
    switch (vectors) {
        case 1: kernel_body(a, a_stride, b, c, c_stride, k, 1); break;
#if SIMD_WIDTH == 16
        case 2: kernel_body(a, a_stride, b, c, c_stride, k, 2); break;
        case 3: kernel_body(a, a_stride, b, c, c_stride, k, 3); break;
#endif
        default: kernel_body(a, a_stride, b, c, c_stride, k, GEMM_VECTORS); break;
    }
}
