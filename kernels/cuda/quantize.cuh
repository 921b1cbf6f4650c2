// What the quantizers share: values of a checkpoint's types as FP32, and the report of a value that is not finite.
#pragma once
#include "kernels/cuda/common.cuh"

struct Half {  // IEEE binary16, as bits
    uint16_t bits;
};

__device__ __forceinline__ float to_float(Half h) {
    uint32_t sign = (uint32_t)(h.bits & 0x8000u) << 16, magnitude = h.bits & 0x7fffu;
    if (magnitude >= 0x7c00u) return __uint_as_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    if (magnitude < 0x0400u) return __uint_as_float(sign | __float_as_uint((float)magnitude * 0x1p-24f));
    return __uint_as_float(sign | ((magnitude << 13) + 0x38000000u));
}

__device__ __forceinline__ bool is_finite(float x) {
    return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u;
}

// Integers only, so the order of the blocks changes nothing.
__device__ __forceinline__ void note_bad(uint64_t *bad, int64_t index) {
    atomicMin(reinterpret_cast<unsigned long long *>(bad), (unsigned long long)index);
}

#define WITH_SOURCE(type, ...)             \
    do {                                   \
        if ((type) == DTYPE_F32) {         \
            using T = float;               \
            __VA_ARGS__;                   \
        } else if ((type) == DTYPE_BF16) { \
            using T = bf16;                \
            __VA_ARGS__;                   \
        } else if ((type) == DTYPE_F16) {  \
            using T = Half;                \
            __VA_ARGS__;                   \
        } else {                           \
            return cudaErrorInvalidValue;  \
        }                                  \
    } while (0)
