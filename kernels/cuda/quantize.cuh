// What the quantizers share: values of a checkpoint's types, and the report of a value that is not finite.
#pragma once
#include "kernels/cuda/common.cuh"

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
