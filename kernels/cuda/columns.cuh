// Column sums of [rows, columns] in a fixed order: a block takes 32 columns, its warps take the rows in turn.
#pragma once
#include "kernels/cuda/common.cuh"

enum { COLUMN_WARPS = 32 };

// out[c] += sum over rows in use of value(row, c)
template <class F>
__global__ void __launch_bounds__(COLUMN_WARPS * 32)
    column_sums(F value, const DeviceBatch *__restrict__ batch, int64_t columns, float *__restrict__ out) {
    CU_SHARED(float, parts, [COLUMN_WARPS][32]);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int64_t c = (int64_t)blockIdx.x * 32 + lane, rows = batch->tokens;
    float sum = 0.0f;
    if (c < columns) {
#pragma unroll 4
        for (int64_t t = warp; t < rows; t += COLUMN_WARPS)
            sum += value(t, c);
    }
    parts[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || c >= columns) return;
    sum = 0.0f;
    for (int w = 0; w < COLUMN_WARPS; w++)
        sum += parts[w][lane];
    out[c] += sum;
}

template <class F>
static cudaError_t launch_column_sums(const F &value, const DeviceBatch *batch, int64_t columns, float *out,
                                      cudaStream_t stream) {
    if (columns < 0 || divide_up(columns, 32) > GRID_MAX) return cudaErrorInvalidValue;
    if (columns == 0) return cudaSuccess;
    CU_LAUNCH((column_sums<F>), (unsigned)divide_up(columns, 32), COLUMN_WARPS * 32, 0, stream, value, batch, columns, out);
    return cudaGetLastError();
}
