// INT8, a scale a row (a block of threads each), and INT4, a scale a group (a warp each); formulas in kernels/formats.h.
#include "kernels/cuda/quantize.cuh"

enum { THREADS = 256, WARPS = THREADS / 32 };

// Rows whose greatest value is below this would need a reciprocal beyond FP32; they are scaled by it and become zeros.
#define INT8_FLOOR 1e-36f

template <class T>
__global__ void __launch_bounds__(THREADS) quantize_int8(const T *__restrict__ x, int64_t cols, int8_t *__restrict__ codes,
                                                         float *__restrict__ scales, int64_t first, uint64_t *bad) {
    CU_SHARED(float, parts, [WARPS]);
    int64_t row = blockIdx.x, begin = row * cols, wrong = INT64_MAX;
    float most = 0.0f;
    for (int64_t c = threadIdx.x; c < cols; c += THREADS) {
        float v = to_float(x[begin + c]);
        if (!is_finite(v) && c < wrong) wrong = c;
        most = fmaxf(most, fabsf(v));
    }
    if (wrong != INT64_MAX) note_bad(bad, first + begin + wrong);
    most = warp_max(most);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = most;
    __syncthreads();
    for (int w = 0; w < WARPS; w++)
        most = fmaxf(most, parts[w]);
    float factor = mul_rn(1.0f / (most < INT8_FLOOR ? INT8_FLOOR : most), 127.0f);
    for (int64_t c = threadIdx.x; c < cols; c += THREADS)
        codes[begin + c] = (int8_t)rintf(mul_rn(to_float(x[begin + c]), factor));
    if (threadIdx.x == 0) scales[row] = most;
}

__device__ __forceinline__ unsigned int4_code(float x, float scale) {
    if (scale == 0.0f) return 8u;
    float q = rintf(x / scale);
    return (unsigned)((int)(q < -8.0f ? -8.0f : q > 7.0f ? 7.0f : q) + 8);
}

template <class T>
__global__ void __launch_bounds__(THREADS)
    quantize_int4(const T *__restrict__ x, int64_t groups, int64_t group, uint8_t *__restrict__ codes,
                  float *__restrict__ scales, int64_t first, uint64_t *bad) {
    int lane = threadIdx.x % 32;
    int64_t g = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32, begin = g * group, wrong = INT64_MAX;
    if (g >= groups) return;  // whole warps leave together
    float most = 0.0f;
    for (int64_t i = lane; i < group; i += 32) {
        float v = to_float(x[begin + i]);
        if (!is_finite(v) && i < wrong) wrong = i;
        most = fmaxf(most, fabsf(v));
    }
    if (wrong != INT64_MAX) note_bad(bad, first + begin + wrong);
    float scale = warp_max(most) / 7.5f;
    for (int64_t i = 2 * lane; i < group; i += 64) {
        unsigned low = int4_code(to_float(x[begin + i]), scale), high = int4_code(to_float(x[begin + i + 1]), scale);
        codes[(begin + i) / 2] = (uint8_t)(low | high << 4);
    }
    if (lane == 0) scales[g] = scale;
}

extern "C" cudaError_t cuda_quantize_int8(const void *x, DType x_type, int64_t rows, int64_t cols, int8_t *codes, float *scales,
                                          int64_t first, uint64_t *bad, cudaStream_t stream) {
    if (rows < 0 || cols < 0 || rows > GRID_MAX) return cudaErrorInvalidValue;
    if (rows == 0 || cols == 0) return cudaSuccess;
    WITH_SOURCE(x_type, CU_LAUNCH((quantize_int8<T>), (unsigned)rows, THREADS, 0, stream, (const T *)x, cols, codes, scales,
                                  first, bad));
    return cudaGetLastError();
}

extern "C" cudaError_t cuda_quantize_int4(const void *x, DType x_type, int64_t values, int64_t group, uint8_t *codes,
                                          float *scales, int64_t first, uint64_t *bad, cudaStream_t stream) {
    if ((group != 32 && group != 64 && group != 128) || values < 0 || values % group != 0) return cudaErrorInvalidValue;
    int64_t groups = values / group, blocks = divide_up(groups, WARPS);
    if (blocks > GRID_MAX) return cudaErrorInvalidValue;
    if (groups == 0) return cudaSuccess;
    WITH_SOURCE(x_type, CU_LAUNCH((quantize_int4<T>), (unsigned)blocks, THREADS, 0, stream, (const T *)x, groups, group, codes,
                                  scales, first, bad));
    return cudaGetLastError();
}
