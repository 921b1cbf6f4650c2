#include "kernels/cpu/simd/gemm.h"

void gemm_pack_a(const Operand *a, int64_t m0, int64_t rows, int64_t k0, int64_t k, float *to, int64_t stride) {
    for (int64_t i = 0; i < rows; i++)
        operand_read(a, m0 + i, k0, k, to + i * stride);
    for (int64_t i = rows; i % GEMM_ROWS != 0; i++)
        memset(to + i * stride, 0, (size_t)k * sizeof *to);
}

void gemm_pack_a_turned(const Operand *a, int64_t m0, int64_t rows, int64_t k0, int64_t k, float *turn, int64_t turn_stride,
                        float *to, int64_t stride) {
    for (int64_t p = 0; p < k; p += SIMD_WIDTH) {
        for (int64_t i = 0; i < SIMD_WIDTH; i++) {
            if (p + i < k)
                operand_read(a, k0 + p + i, m0, rows, turn + i * turn_stride);
            else
                memset(turn + i * turn_stride, 0, (size_t)round_up(rows, SIMD_WIDTH) * sizeof *turn);
        }
        for (int64_t i = 0; i < rows; i += SIMD_WIDTH)
            vf_transpose(turn + i, turn_stride, to + i * stride + p, stride);
    }
    for (int64_t i = rows; i % GEMM_ROWS != 0; i++)
        memset(to + i * stride, 0, (size_t)k * sizeof *to);
}

void gemm_pack_b(const Operand *b, int64_t n0, int64_t columns, int64_t k0, int64_t k, int vectors, float *to) {
    int64_t width = (int64_t)vectors * SIMD_WIDTH;
    for (int64_t p = 0; p < k; p++)
        operand_read(b, k0 + p, n0, columns, to + p * width);
}

void gemm_pack_b_turned(const Operand *b, int64_t n0, int64_t columns, int64_t k0, int64_t k, int vectors, float *turn,
                        int64_t turn_stride, float *to) {
    int64_t width = (int64_t)vectors * SIMD_WIDTH;
    for (int64_t v = 0; v < vectors; v++) {
        for (int64_t i = 0; i < SIMD_WIDTH; i++) {
            int64_t n = v * SIMD_WIDTH + i;
            if (n < columns)
                operand_read(b, n0 + n, k0, k, turn + i * turn_stride);
            else
                memset(turn + i * turn_stride, 0, (size_t)round_up(k, SIMD_WIDTH) * sizeof *turn);
        }
        for (int64_t p = 0; p < k; p += SIMD_WIDTH)
            vf_transpose(turn + p, turn_stride, to + p * width + v * SIMD_WIDTH, width);
    }
}
