// Double quantization of 4-bit constants: offset, nested codes and nested absmax; formulas in quant/double_quant.h.
#include "kernels/cuda/common.cuh"

static constexpr int STAGE = 2048, THREADS = 512;

// The exponent of the lowest bit that is set in x > 0.
__device__ __forceinline__ int lowest_bit(float x) {
    uint32_t bits = __float_as_uint(x), exponent = bits >> 23, mantissa = (bits & 0x7fffffu) | (exponent > 0 ? 0x800000u : 0u);
    return (int)(exponent > 0 ? exponent : 1) - 150 + __ffs((int)mantissa) - 1;
}

// The sum in index order: one thread adds, while the others bring the next values. The same in every thread.
__device__ __forceinline__ double sum_in_order(const float *absmax, int64_t blocks, float (*stage)[STAGE], double *result) {
    double sum = 0.0;
    int64_t steps = divide_up(blocks, STAGE);
    for (int64_t s = 0; s <= steps; s++) {
        if (s < steps) {
            for (int i = threadIdx.x; i < STAGE; i += THREADS) {
                int64_t b = s * STAGE + i;
                stage[s % 2][i] = b < blocks ? absmax[b] : 0.0f;  // + 0.0 changes no sum of magnitudes
            }
        }
        if (threadIdx.x == 0 && s > 0) {
#pragma unroll 8
            for (int i = 0; i < STAGE; i++)
                sum += (double)stage[(s - 1) % 2][i];
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) *result = sum;
    __syncthreads();
    return *result;
}

// The contract is a sum in index order, rounded at each step. Where no step can round, because all values are multiples of
// 2^low and no sum reaches 2^(low + 53), any order gives the same, so all threads add: nearly always for BF16 checkpoints.
__global__ void __launch_bounds__(THREADS)
    double_quant_offset(const float *__restrict__ absmax, int64_t blocks, float *__restrict__ offset) {
    CU_SHARED(float, stage, [2][STAGE]);
    CU_SHARED(double, parts, [32]);
    CU_SHARED(int, lows, [THREADS / 32]);
    double sum = 0.0;
    int low = 1000;
    for (int64_t b = threadIdx.x; b < blocks; b += THREADS) {
        float x = absmax[b];
        sum += (double)x;
        if (x > 0.0f) low = min(low, lowest_bit(x));
    }
#pragma unroll
    for (int step = 16; step > 0; step >>= 1)
        low = min(low, __shfl_xor_sync(ALL_LANES, low, step));
    if (threadIdx.x % 32 == 0) lows[threadIdx.x / 32] = low;
    sum = block_sum(sum, parts);
    for (int w = 0; w < THREADS / 32; w++)
        low = min(low, lows[w]);
    // if a sum was rounded it is still less than 2^-20 off, so half of the bound leaves no doubt
    if (!(sum < ldexp(1.0, low + 52))) sum = sum_in_order(absmax, blocks, stage, parts);
    if (threadIdx.x == 0) *offset = blocks > 0 ? (float)(sum / (double)blocks) : 0.0f;
}

// How many midpoints of neighbouring entries lie strictly below y: the nearest entry, a tie to the lower.
__device__ __forceinline__ uint8_t nearest_entry(const float *bounds, float y) {
    int low = 0, high = 255;
    while (low < high) {
        int middle = (low + high) / 2;
        if (bounds[middle] < y)
            low = middle + 1;
        else
            high = middle;
    }
    return (uint8_t)low;
}

// A block of threads is a group of 256 constants.
__global__ void __launch_bounds__(NESTED_BLOCK)
    double_quantize(const float *__restrict__ absmax, int64_t blocks, const float *__restrict__ offset,
                    const float *__restrict__ map, uint8_t *__restrict__ codes, float *__restrict__ nested_absmax) {
    CU_SHARED(float, bounds, [255]);
    CU_SHARED(float, parts, [NESTED_BLOCK / 32]);
    int t = threadIdx.x;
    int64_t begin = (int64_t)blockIdx.x * NESTED_BLOCK, count = blocks - begin < NESTED_BLOCK ? blocks - begin : NESTED_BLOCK;
    if (t < 255) bounds[t] = add_rn(map[t], map[t + 1]) / 2.0f;
    float z = t < count ? add_rn(absmax[begin + t], -*offset) : 0.0f;
    float most = warp_max(fabsf(z));
    if (t % 32 == 0) parts[t / 32] = most;
    __syncthreads();
    most = 0.0f;
    for (int w = 0; w < NESTED_BLOCK / 32; w++)
        most = fmaxf(most, parts[w]);
    float floored = most < ABSMAX_FLOOR ? ABSMAX_FLOOR : most;
    bool is_short = count < NESTED_BLOCK;
    if (t < count) {
        float y = is_short ? z / floored : mul_rn(z, 1.0f / floored);
        codes[begin + t] = nearest_entry(bounds, y < -1.0f ? -1.0f : y > 1.0f ? 1.0f : y);
    }
    if (t == 0) nested_absmax[blockIdx.x] = is_short && most > 0.0f ? floored : most;
}

extern "C" cudaError_t cuda_double_quant_offset(const float *absmax, int64_t blocks, float *offset, cudaStream_t stream) {
    if (blocks < 0) return cudaErrorInvalidValue;
    CU_LAUNCH(double_quant_offset, 1, THREADS, 0, stream, absmax, blocks, offset);
    return cudaGetLastError();
}

extern "C" cudaError_t cuda_double_quantize(const float *absmax, int64_t blocks, const float *offset, const float *map,
                                            uint8_t *codes, float *nested_absmax, cudaStream_t stream) {
    int64_t groups = divide_up(blocks, NESTED_BLOCK);
    if (blocks < 0 || groups > GRID_MAX) return cudaErrorInvalidValue;
    if (blocks == 0) return cudaSuccess;
    CU_LAUNCH(double_quantize, (unsigned)groups, NESTED_BLOCK, 0, stream, absmax, blocks, offset, map, codes, nested_absmax);
    return cudaGetLastError();
}
