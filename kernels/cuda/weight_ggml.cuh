// ggml's blocks, eight neighbours at a time: x = scale * code + offset, both rounded, as kernels/ggml_decode.h has them for the
// host; layouts in kernels/ggml_formats.h. Blocks are 2-byte aligned, and blocks never cross rows.
#pragma once
#include "kernels/cuda/common.cuh"
#include "kernels/ggml_formats.h"

// Eight bytes at an even address; byte k in bits 8k and up.
__device__ __forceinline__ uint64_t load_bytes8(const uint8_t *p) {
    const uint16_t *q = reinterpret_cast<const uint16_t *>(p);
    uint32_t low = __ldg(q) | (uint32_t)__ldg(q + 1) << 16, high = __ldg(q + 2) | (uint32_t)__ldg(q + 3) << 16;
    return low | (uint64_t)high << 32;
}

static const uint64_t EVERY_BYTE = 0x0101010101010101ull;

// The bits of `byte` as eight bytes of 0 or 1, lowest first: byte k keeps bit k alone, and 127 more reaches its top bit.
__device__ __forceinline__ uint64_t spread_bits(unsigned byte) {
    uint64_t own = byte * EVERY_BYTE & 0x8040201008040201ull;
    return (own + 127 * EVERY_BYTE) >> 7 & EVERY_BYTE;
}

struct DecodeGgml {
    const uint8_t *data;
    uint32_t type;

    struct Raw {
        uint64_t codes;  // a byte each, not negative
        int bias;
        float scale, offset;
    };
    explicit DecodeGgml(const WeightView *w) : data((const uint8_t *)w->data), type(w->ggml_type) {}

    __device__ static __forceinline__ float half_at(const uint16_t *p) { return to_float(Half{__ldg(p)}); }

    // 32 elements, j of the block
    template <class B>
    __device__ __forceinline__ static Raw nibbles(const B *b, int j, int bias, float offset) {
        uint64_t codes = load_bytes8(b->qs + (j & 15)) >> (j < 16 ? 0 : 4) & 15 * EVERY_BYTE;
        return {codes, bias, half_at(&b->d), offset};
    }
    __device__ __forceinline__ Raw small(int64_t i) const {
        int64_t block = i / GGML_BLOCK;
        int j = (int)(i % GGML_BLOCK);
        if (type == GGML_Q4_0) return nibbles(reinterpret_cast<const GgmlBlockQ4_0 *>(data) + block, j, 8, -0.0f);
        if (type == GGML_Q4_1) {
            const GgmlBlockQ4_1 *b = reinterpret_cast<const GgmlBlockQ4_1 *>(data) + block;
            return nibbles(b, j, 0, half_at(&b->m));
        }
        if (type == GGML_Q5_0) {
            const GgmlBlockQ5_0 *b = reinterpret_cast<const GgmlBlockQ5_0 *>(data) + block;
            Raw raw = nibbles(b, j, 16, -0.0f);
            raw.codes |= spread_bits(__ldg(b->qh + j / 8)) << 4;
            return raw;
        }
        if (type == GGML_Q5_1) {
            const GgmlBlockQ5_1 *b = reinterpret_cast<const GgmlBlockQ5_1 *>(data) + block;
            Raw raw = nibbles(b, j, 0, half_at(&b->m));
            raw.codes |= spread_bits(__ldg(b->qh + j / 8)) << 4;
            return raw;
        }
        const GgmlBlockQ8_0 *b = reinterpret_cast<const GgmlBlockQ8_0 *>(data) + block;
        uint64_t codes = load_bytes8(reinterpret_cast<const uint8_t *>(b->qs) + j);
        return {codes ^ 128 * EVERY_BYTE, 128, half_at(&b->d), -0.0f};  // -128 to 127 become 0 to 255
    }

    // 256 elements: run n of 32, j inside of it
    __device__ __forceinline__ static Raw with_min(uint64_t codes, const uint16_t *d, const uint16_t *dmin, int scale,
                                                   int min) {
        return {codes, 0, mul_rn(half_at(d), (float)scale), -mul_rn(half_at(dmin), (float)min)};
    }
    __device__ __forceinline__ Raw super(int64_t i) const {
        int64_t block = i / GGML_SUPER;
        int n = (int)(i % GGML_SUPER) / 32, j = (int)(i % 32), sixteen = 2 * n + j / 16, scale, min;
        if (type == GGML_Q2_K) {
            const GgmlBlockQ2_K *b = reinterpret_cast<const GgmlBlockQ2_K *>(data) + block;
            uint64_t codes = load_bytes8(b->qs + 32 * (n >> 2) + j) >> 2 * (n & 3) & 3 * EVERY_BYTE;
            unsigned both = __ldg(b->scales + sixteen);
            return with_min(codes, &b->d, &b->dmin, both & 15, both >> 4);
        }
        if (type == GGML_Q3_K) {
            const GgmlBlockQ3_K *b = reinterpret_cast<const GgmlBlockQ3_K *>(data) + block;
            uint64_t codes = load_bytes8(b->qs + 32 * (n >> 2) + j) >> 2 * (n & 3) & 3 * EVERY_BYTE;
            codes |= (load_bytes8(b->hmask + j) >> n & EVERY_BYTE) << 2;
            return {codes, 4, mul_rn(half_at(&b->d), (float)ggml_scale_q3(b->scales, sixteen)), -0.0f};
        }
        if (type == GGML_Q4_K) {
            const GgmlBlockQ4_K *b = reinterpret_cast<const GgmlBlockQ4_K *>(data) + block;
            ggml_scale_min(b->scales, n, &scale, &min);
            return with_min(load_bytes8(b->qs + 32 * (n >> 1) + j) >> 4 * (n & 1) & 15 * EVERY_BYTE, &b->d, &b->dmin, scale,
                            min);
        }
        if (type == GGML_Q5_K) {
            const GgmlBlockQ5_K *b = reinterpret_cast<const GgmlBlockQ5_K *>(data) + block;
            uint64_t codes = load_bytes8(b->qs + 32 * (n >> 1) + j) >> 4 * (n & 1) & 15 * EVERY_BYTE;
            ggml_scale_min(b->scales, n, &scale, &min);
            return with_min(codes | (load_bytes8(b->qh + j) >> n & EVERY_BYTE) << 4, &b->d, &b->dmin, scale, min);
        }
        const GgmlBlockQ6_K *b = reinterpret_cast<const GgmlBlockQ6_K *>(data) + block;
        int half = n >> 2, quarter = n & 3;
        uint64_t codes = load_bytes8(b->ql + 64 * half + 32 * (quarter & 1) + j) >> 4 * (quarter >> 1) & 15 * EVERY_BYTE;
        codes |= (load_bytes8(b->qh + 32 * half + j) >> 2 * quarter & 3 * EVERY_BYTE) << 4;
        return {codes, 32, mul_rn(half_at(&b->d), (float)__ldg(b->scales + sixteen)), -0.0f};
    }

    __device__ void prepare(WeightTables *) const {}
    __device__ __forceinline__ Raw fetch(int64_t i) const { return type >= GGML_Q2_K ? super(i) : small(i); }
    __device__ __forceinline__ static float value(const Raw &raw, int k) {
        int code = (int)(raw.codes >> 8 * k & 255) - raw.bias;
        return add_rn(mul_rn(raw.scale, (float)code), raw.offset);
    }
    __device__ __forceinline__ void decode(const WeightTables *, const Raw &raw, float v[8]) const {
#pragma unroll
        for (int k = 0; k < 8; k++)
            v[k] = value(raw, k);
    }
    __device__ __forceinline__ float one(const WeightTables *, int64_t i) const {
        return value(fetch(i & ~(int64_t)7), (int)(i & 7));
    }
};
