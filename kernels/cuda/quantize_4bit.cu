// NF4 and FP4: codes and absmax, byte for byte those of the CPU. A warp quantizes a block; a lane makes whole bytes.
#include "kernels/cuda/quantize.cuh"

enum { WARPS = 8 };

__device__ __constant__ float nf4_thresholds[15] = NF4_THRESHOLDS;
__device__ __constant__ float fp4_thresholds[15] = FP4_THRESHOLDS;
__device__ __constant__ uint8_t fp4_order[16] = FP4_ORDER;

template <bool NF4>
__device__ __forceinline__ unsigned encode(float y) {
    unsigned n = 0;
#pragma unroll
    for (int i = 0; i < 15; i++)
        n += y > (NF4 ? nf4_thresholds[i] : fp4_thresholds[i]);
    return NF4 ? n : fp4_order[n];
}

template <bool NF4, class T>
__global__ void __launch_bounds__(WARPS * 32)
    quantize_4bit(const T *__restrict__ x, int64_t values, int64_t block_size, uint8_t *__restrict__ codes,
                  float *__restrict__ absmax, int64_t first, uint64_t *bad) {
    int lane = threadIdx.x % 32;
    int64_t block = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32, begin = block * block_size;
    if (begin >= values) return;  // whole warps leave together
    int64_t count = values - begin < block_size ? values - begin : block_size;
    float largest = 0.0f;
    int64_t wrong = INT64_MAX;
    for (int64_t i = lane; i < count; i += 32) {
        float v = to_float(x[begin + i]);
        if (!is_finite(v) && i < wrong) wrong = i;
        largest = fmaxf(largest, fabsf(v));
    }
    if (wrong != INT64_MAX) note_bad(bad, first + begin + wrong);
    largest = warp_max(largest);
    float divisor = largest > ABSMAX_FLOOR ? largest : ABSMAX_FLOOR, reciprocal = 1.0f / divisor;
    bool tail = count < block_size;  // divided, where whole blocks are multiplied by the reciprocal
    for (int64_t i = 2 * lane; i < count; i += 64) {
        float a = to_float(x[begin + i]), b = i + 1 < count ? to_float(x[begin + i + 1]) : 0.0f;
        unsigned high = encode<NF4>(tail ? a / divisor : mul_rn(a, reciprocal));
        unsigned low = encode<NF4>(tail ? b / divisor : mul_rn(b, reciprocal));
        codes[(begin + i) / 2] = (uint8_t)(high << 4 | low);
    }
    if (lane == 0) absmax[block] = tail && largest > 0.0f ? divisor : largest;
}

extern "C" cudaError_t cuda_quantize_4bit(WeightFormat format, const void *x, DType x_type, int64_t values, int64_t block_size,
                                          uint8_t *codes, float *absmax, int64_t first, uint64_t *bad, cudaStream_t stream) {
    if (format != WEIGHT_NF4 && format != WEIGHT_FP4) return cudaErrorInvalidValue;
    if (block_size < 32 || block_size > 4096 || (block_size & (block_size - 1)) != 0) return cudaErrorInvalidValue;
    int64_t blocks = divide_up(divide_up(values, block_size), WARPS);
    if (values < 0 || blocks > GRID_MAX) return cudaErrorInvalidValue;
    if (values == 0) return cudaSuccess;
    WITH_SOURCE(x_type, if (format == WEIGHT_NF4) CU_LAUNCH((quantize_4bit<true, T>), (unsigned)blocks, WARPS * 32, 0, stream,
                                                            (const T *)x, values, block_size, codes, absmax, first, bad);
                else CU_LAUNCH((quantize_4bit<false, T>), (unsigned)blocks, WARPS * 32, 0, stream, (const T *)x, values,
                               block_size, codes, absmax, first, bad));
    return cudaGetLastError();
}
