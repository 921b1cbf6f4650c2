// What the kernels share: element access by type, 16-byte vectors, reductions of a fixed order, launch arithmetic.
#pragma once
#include "kernels/cuda/cu.h"
#include "kernels/cuda/launch.h"

// Activations are float or the bits of BF16 (bf16 of core/dtype.h). A kernel is a template over that type.
#define WITH_ACT(act, ...)                \
    do {                                  \
        if ((act) == DTYPE_BF16) {        \
            using T = bf16;               \
            __VA_ARGS__;                  \
        } else if ((act) == DTYPE_F32) {  \
            using T = float;              \
            __VA_ARGS__;                  \
        } else {                          \
            return cudaErrorInvalidValue; \
        }                                 \
    } while (0)

static const int VEC = 8;  // elements of one vector access: 16 bytes of BF16, 32 of F32

__device__ __forceinline__ float to_float(float x) {
    return x;
}
__device__ __forceinline__ float to_float(bf16 x) {
    return __uint_as_float((uint32_t)x << 16);
}

struct Half {  // IEEE binary16, as bits
    uint16_t bits;
};

__device__ __forceinline__ float to_float(Half h) {
    uint32_t sign = (uint32_t)(h.bits & 0x8000u) << 16, magnitude = h.bits & 0x7fffu;
    if (magnitude >= 0x7c00u) return __uint_as_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    if (magnitude < 0x0400u) return __uint_as_float(sign | __float_as_uint((float)magnitude * 0x1p-24f));
    return __uint_as_float(sign | ((magnitude << 13) + 0x38000000u));
}

// As core/dtype.c rounds, for every value.
__device__ __forceinline__ Half half_from_float(float x) {
    uint32_t bits = __float_as_uint(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu, out;
    if (magnitude > 0x7f800000u)
        out = 0x7e00u | (magnitude >> 13 & 0x3ffu);
    else if (magnitude >= 0x477ff000u)  // rounds to or beyond 65520
        out = 0x7c00u;
    else if (magnitude >= 0x38800000u)  // a normal half
        out = (magnitude + 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u) >> 13;
    else  // 2^-1 more aligns the half's last bit with the float's
        out = __float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3f000000u;
    return {(uint16_t)(sign | out)};
}

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
    return __bfloat16_as_ushort(__float2bfloat16_rn(x));
}

// x as it would be read back after a store
template <class T>
__device__ __forceinline__ float round_to(float x) {
    return to_float(from_float<T>(x));
}

// The same for a type that is known when it runs: F32, BF16 or F16.
__device__ __forceinline__ float round_to(float x, DType type) {
    return type == DTYPE_BF16 ? round_to<bf16>(x) : type == DTYPE_F16 ? to_float(half_from_float(x)) : x;
}

__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);  // one instruction for both
    return (uint32_t)__bfloat16_as_ushort(pair.x) | (uint32_t)__bfloat16_as_ushort(pair.y) << 16;
}
__device__ __forceinline__ float low_half(uint32_t pair) {
    return __uint_as_float(pair << 16);
}
__device__ __forceinline__ float high_half(uint32_t pair) {
    return __uint_as_float(pair & 0xffff0000u);
}

// Products and sums that must not be fused: what is compared bit for bit with the CPU.
__device__ __forceinline__ float mul_rn(float a, float b) {
#if CU_EMULATED
    return a * b;
#else
    return __fmul_rn(a, b);
#endif
}
__device__ __forceinline__ float add_rn(float a, float b) {
#if CU_EMULATED
    return a + b;
#else
    return __fadd_rn(a, b);
#endif
}

__device__ __forceinline__ void unpack8(const uint4 &u, float v[8]) {
    v[0] = low_half(u.x), v[1] = high_half(u.x), v[2] = low_half(u.y), v[3] = high_half(u.y);
    v[4] = low_half(u.z), v[5] = high_half(u.z), v[6] = low_half(u.w), v[7] = high_half(u.w);
}
// Four values of FP32; what is stored of BF16 is eight bytes.
__device__ __forceinline__ void load4(const float *p, float v[4]) {
    uint4 q = cu_load16(p);
    v[0] = __uint_as_float(q.x), v[1] = __uint_as_float(q.y), v[2] = __uint_as_float(q.z), v[3] = __uint_as_float(q.w);
}
__device__ __forceinline__ void store4(float *p, const float v[4]) {
    cu_store16(p, make_uint4(__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]), __float_as_uint(v[3])));
}
__device__ __forceinline__ void store4(bf16 *p, const float v[4]) {
    *reinterpret_cast<uint2 *>(p) = make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]));
}

__device__ __forceinline__ void load8(const bf16 *p, float v[8]) {
    unpack8(cu_load16(p), v);
}
__device__ __forceinline__ void load8(const float *p, float v[8]) {
    load4(p, v);
    load4(p + 4, v + 4);
}
__device__ __forceinline__ void store8(bf16 *p, const float v[8]) {
    cu_store16(p, make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])));
}
__device__ __forceinline__ void store8(float *p, const float v[8]) {
    store4(p, v);
    store4(p + 4, v + 4);
}

// N elements: a whole vector, a pair, or one element where widths or addresses do not allow more.
template <int N, class T>
__device__ __forceinline__ void load_n(const T *p, float v[N]) {
    static_assert(N == VEC || N == 2 || N == 1, "no such vector");
    if constexpr (N == VEC) {
        load8(p, v);
    } else if constexpr (N == 2 && sizeof(T) == 2) {
        uint32_t pair = *reinterpret_cast<const uint32_t *>(p);
        v[0] = low_half(pair), v[1] = high_half(pair);
    } else {
#pragma unroll
        for (int i = 0; i < N; i++)
            v[i] = to_float(p[i]);
    }
}
template <int N, class T>
__device__ __forceinline__ void store_n(T *p, const float v[N]) {
    if constexpr (N == VEC) {
        store8(p, v);
    } else if constexpr (N == 2 && sizeof(T) == 2) {
        *reinterpret_cast<uint32_t *>(p) = pack_bf16(v[0], v[1]);
    } else {
#pragma unroll
        for (int i = 0; i < N; i++)
            p[i] = from_float<T>(v[i]);
    }
}

static const unsigned ALL_LANES = 0xffffffffu;

template <class F>
__device__ __forceinline__ F warp_sum(F v) {
#pragma unroll
    for (int step = 16; step > 0; step >>= 1)
        v += __shfl_xor_sync(ALL_LANES, v, step);
    return v;
}
__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
    for (int step = 16; step > 0; step >>= 1)
        v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, step));
    return v;
}

// The sum over a block of whole warps, the same in every thread; `parts` has room for 32 and may be reused at once.
template <class F>
__device__ __forceinline__ F block_sum(F v, F *parts) {
    v = warp_sum(v);
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
    __syncthreads();
    F sum = 0;
    for (unsigned w = 0; w < blockDim.x / 32; w++)
        sum += parts[w];
    return sum;
}

// ---- host side ----

static inline bool is_aligned(const void *p) {
    return ((uintptr_t)p & 15) == 0;
}
template <class... P>
static inline bool all_aligned(const P *...p) {
    return (is_aligned(p) && ...);
}

__host__ __device__ static inline int64_t divide_up(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

// Elements from row to row: a shape's stride, where 0 stands for contiguous rows.
static inline int64_t pitch_of(int64_t stride, int64_t columns) {
    return stride > 0 ? stride : columns;
}
static inline bool is_pitch(int64_t stride, int64_t columns) {
    return stride == 0 || stride >= columns;
}

// Blocks of a grid in one dimension; the device takes 2^31 - 1.
static const int64_t GRID_MAX = 2147483647;

static inline bool is_weight_type(DType type) {
    return type == DTYPE_F32 || type == DTYPE_BF16;
}
