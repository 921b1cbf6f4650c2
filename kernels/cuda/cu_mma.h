/* The only file with inline PTX. Each wrapper has the PTX body for nvcc and an emulated
 * body for the CPU build; kernels call wrappers and never see asm or 32-bit shared addresses. */
#ifndef NIBBLE_KERNELS_CUDA_CU_MMA_H
#define NIBBLE_KERNELS_CUDA_CU_MMA_H
#include "kernels/cuda/cu.h"

/* D(16x8,f32) += A(16x16,bf16,row) * B(16x8,bf16,col). Fragment layout (PTX ISA, m16n8k16), with
 * g = lane/4, t = lane%4; each 32-bit register holds two bf16, the lower half first:
 *   a[0]: row g,   k 2t..2t+1     a[1]: row g+8, k 2t..      a[2]: row g, k 2t+8..   a[3]: row g+8, k 2t+8..
 *   b[0]: k 2t..2t+1, col g       b[1]: k 2t+8.., col g
 *   c[0..1]: row g, col 2t..2t+1  c[2..3]: row g+8
 * ldmatrix (8x8 matrices of b16, 16-byte rows): lane 8j+i gives the address of row i of matrix j;
 *   register j of lane l gets elements (row l/4, cols 2(l%4), +1) of matrix j, or with .trans the
 *   elements (rows 2(l%4), +1, col l/4). */

#if !CU_EMULATED

__device__ __forceinline__ void mma_m16n8k16(float c[4], const uint32_t a[4], const uint32_t b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void ldmatrix_x4(uint32_t r[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row))
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t r[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row))
                 : "memory");
}
/* Copies 16 bytes to shared memory asynchronously; with ok false it writes zeros and reads nothing. */
__device__ __forceinline__ void cp_async16(void *dst, const void *src, bool ok) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"((uint32_t)__cvta_generic_to_shared(dst)), "l"(src),
                 "r"(ok ? 16 : 0)
                 : "memory");
}
__device__ __forceinline__ void cp_async_commit() {
    asm volatile("cp.async.commit_group;\n" ::: "memory");
}
template <int N>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory");
}
/* 2^x by the special function unit: relative error 2^-22, results below 2^-126 are zero, 2^-inf is 0. */
__device__ __forceinline__ float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
}

#else

namespace emu {
inline float bf16_at(uint32_t r, int half) {
    return bits<float>((half ? r & 0xffff0000u : r << 16));
}
inline void mma_m16n8k16_body(const void *const in[32], void *const out[32]) {
    float A[16][16], B[16][8];
    for (int l = 0; l < 32; l++) {
        const uint32_t *a = (const uint32_t *)in[l], *b = a + 4; /* operands packed a[4], b[2] */
        int g = l >> 2, t = l & 3;
        for (int i = 0; i < 4; i++)
            for (int h = 0; h < 2; h++)
                A[g + (i & 1) * 8][2 * t + (i >> 1) * 8 + h] = bf16_at(a[i], h);
        for (int i = 0; i < 2; i++)
            for (int h = 0; h < 2; h++)
                B[2 * t + i * 8 + h][g] = bf16_at(b[i], h);
    }
    for (int l = 0; l < 32; l++) {
        float *c = (float *)out[l];
        int g = l >> 2, t = l & 3;
        for (int i = 0; i < 4; i++) {
            int r = g + (i >> 1) * 8, n = 2 * t + (i & 1);
            double s = c[i]; /* products are exact; the GPU's own order and truncation are not specified */
            for (int k = 0; k < 16; k++)
                s += (double)A[r][k] * B[k][n];
            c[i] = (float)s;
        }
    }
}
template <bool TRANS>
inline void ldmatrix_x4_body(const void *const in[32], void *const out[32]) {
    for (int l = 0; l < 32; l++)
        for (int j = 0; j < 4; j++) {
            uint32_t v = 0;
            for (int h = 0; h < 2; h++) {
                int row = TRANS ? 2 * (l & 3) + h : l >> 2, col = TRANS ? l >> 2 : 2 * (l & 3) + h;
                v |= (uint32_t)((const uint16_t *)in[8 * j + row])[col] << (16 * h);
            }
            ((uint32_t *)out[l])[j] = v;
        }
}
inline void check_row(const void *row, const char *f, int l) {
    if (!is_shared(row, 16) || ((uintptr_t)row & 15))
        fail("ldmatrix row address %p at %s:%d is not 16 aligned bytes of shared memory", row, f, l);
    access(row, 16, 0, 0);
}
} /* namespace emu */

inline void mma_m16n8k16(float c[4], const uint32_t a[4], const uint32_t b[2], EMU_LOC) {
    uint32_t in[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    emu::warp_wide(emu::mma_m16n8k16_body, in, c, "mma.m16n8k16", EMU_PASS);
}
inline void ldmatrix_x4(uint32_t r[4], const void *row, EMU_LOC) {
    emu::check_row(row, EMU_PASS);
    emu::warp_wide(emu::ldmatrix_x4_body<false>, row, r, "ldmatrix", EMU_PASS);
}
inline void ldmatrix_x4_trans(uint32_t r[4], const void *row, EMU_LOC) {
    emu::check_row(row, EMU_PASS);
    emu::warp_wide(emu::ldmatrix_x4_body<true>, row, r, "ldmatrix.trans", EMU_PASS);
}
inline void cp_async16(void *dst, const void *src, bool ok) {
    emu::cp_async(dst, src, 16, ok ? 16 : 0);
}
inline void cp_async_commit() {
    emu::cp_async_commit();
}
template <int N>
inline void cp_async_wait() {
    emu::cp_async_wait(N);
}

inline float fast_exp2(float x) {
    float y = exp2f(x);
    return y < 0x1p-126f ? 0.0f : y;
}

#endif

#endif
