// Random bytes for measurements: word i of 8 bytes depends on the seed and i alone.
#include "kernels/cuda/common.cuh"

enum { THREADS = 256, WORDS = 2 };

// SplitMix64's i-th output (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
__device__ __forceinline__ uint64_t word_of(uint64_t seed, uint64_t i) {
    uint64_t z = seed + (i + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

__global__ void __launch_bounds__(THREADS) random_bytes(uint8_t *to, int64_t bytes, uint64_t seed) {
    int64_t pair = (int64_t)blockIdx.x * THREADS + threadIdx.x, at = pair * (WORDS * 8);
    if (at >= bytes) return;
    uint64_t low = word_of(seed, (uint64_t)(WORDS * pair)), high = word_of(seed, (uint64_t)(WORDS * pair + 1));
    if (at + WORDS * 8 <= bytes) {
        cu_store16(to + at, make_uint4((uint32_t)low, (uint32_t)(low >> 32), (uint32_t)high, (uint32_t)(high >> 32)));
        return;
    }
    for (int64_t i = at; i < bytes; i++)
        to[i] = (uint8_t)((i - at < 8 ? low : high) >> (8 * (i % 8)));
}

extern "C" cudaError_t cuda_random_bytes(void *to, int64_t bytes, uint64_t seed, cudaStream_t stream) {
    int64_t blocks = divide_up(bytes, THREADS * WORDS * 8);
    if (bytes < 0 || blocks > GRID_MAX || !all_aligned((const uint8_t *)to)) return cudaErrorInvalidValue;
    if (blocks == 0) return cudaSuccess;
    CU_LAUNCH(random_bytes, (unsigned)blocks, THREADS, 0, stream, (uint8_t *)to, bytes, seed);
    return cudaGetLastError();
}
