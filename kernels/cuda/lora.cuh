// What the adapters' kernels share: operands of tensor-core products straight from global memory, and dropout.
//
// A product with few columns is bound by reading its wide operand, which is read once, 16 bytes a lane. Sums do not depend on
// the order of k as long as both operands have the same one, so lane (g, t) takes the eight neighbours 8t .. 8t + 7 of a row
// as what the fragment layout calls k = 2t, 2t + 1, 2t + 8, 2t + 9 of two products.
#pragma once
#include "core/philox.h"
#include "kernels/cuda/common.cuh"
#include "kernels/cuda/cu_mma.h"

struct Dropout {
    uint32_t stream, threshold;  // threshold 0: none
    float factor;                // 1 / (1 - p)
};

static inline Dropout dropout_of(const LinearSpec *spec) {
    return {spec->dropout_stream, spec->dropout > 0.0f ? dropout_threshold(spec->dropout) : 0u,
            (float)(1.0 / (1.0 - (double)spec->dropout))};
}

// A row as dropout sees it.
struct Token {
    uint64_t sample;
    uint32_t position;
};

__device__ __forceinline__ bool is_dropping(const DeviceBatch *batch, const Dropout &d) {
    return batch->dropout != 0 && d.threshold != 0;
}

// Bit i is set when feature first + i is kept; first is a multiple of 4.
__device__ __forceinline__ unsigned keep8(uint64_t seed, const Dropout &d, const Token &token, int64_t first) {
    unsigned keep = 0;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint32_t numbers[4];
        dropout_block(seed, d.stream, token.sample, token.position, (uint32_t)(first / 4) + half, numbers);
#pragma unroll
        for (int i = 0; i < 4; i++)
            keep |= (unsigned)(numbers[i] >= d.threshold) << (4 * half + i);
    }
    return keep;
}

// The pair of BF16 in `pair` with the elements that bits 0 and 1 of keep do not name set to zero.
__device__ __forceinline__ uint32_t keep_pair(uint32_t pair, unsigned keep) {
    return pair & ((keep & 1 ? 0x0000ffffu : 0u) | (keep & 2 ? 0xffff0000u : 0u));
}
__device__ __forceinline__ uint4 keep_eight(const uint4 &v, unsigned keep) {
    return make_uint4(keep_pair(v.x, keep), keep_pair(v.y, keep >> 2), keep_pair(v.z, keep >> 4), keep_pair(v.w, keep >> 6));
}

// Eight neighbours of a row from `p` on, of which the first `valid` exist (all or none where rows are ALIGNED).
template <bool ALIGNED>
__device__ __forceinline__ uint4 load_eight(const bf16 *p, int64_t valid) {
    if constexpr (ALIGNED) {
        return valid > 0 ? *reinterpret_cast<const uint4 *>(p) : make_uint4(0, 0, 0, 0);
    } else {
        uint32_t v[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t low = 2 * i < valid ? p[2 * i] : 0, high = 2 * i + 1 < valid ? p[2 * i + 1] : 0;
            v[i] = low | high << 16;
        }
        return make_uint4(v[0], v[1], v[2], v[3]);
    }
}

// Eight elements `stride` apart.
__device__ __forceinline__ uint4 load_eight_strided(const bf16 *p, int64_t stride, int64_t valid) {
    uint32_t v[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t low = 2 * i < valid ? p[2 * i * stride] : 0, high = 2 * i + 1 < valid ? p[(2 * i + 1) * stride] : 0;
        v[i] = low | high << 16;
    }
    return make_uint4(v[0], v[1], v[2], v[3]);
}

// Elements 0 and `stride` of p as a pair; those that do not exist are zero.
__device__ __forceinline__ uint32_t load_pair(const bf16 *p, int64_t stride, int64_t valid) {
    uint32_t low = valid > 0 ? p[0] : 0, high = valid > 1 ? p[stride] : 0;
    return low | high << 16;
}

// FP32 values as the sum of two BF16: with both, a product is as exact as one with 16 bits of mantissa.
struct SplitPair {
    uint32_t high, low;
};
__device__ __forceinline__ SplitPair split_pair(float a, float b) {
    uint32_t high = pack_bf16(a, b);
    return {high, pack_bf16(a - low_half(high), b - high_half(high))};
}
