// Weights of any format as FP32 operands, eight neighbours at a time or one; formulas in kernels/formats.h.
//
// A decoder is made on the host from a WeightView. fetch() starts the loads of elements i..i+7, i a multiple of 8, and waits for
// none of them, so that a thread can have several in flight; prepare() fills the block's tables (all threads call it, then a
// barrier follows); decode() makes values of what was fetched; one() is a single element.
#pragma once
#include "kernels/cuda/common.cuh"

struct WeightTables {
    float code[16];
    float nested[256];
};

#include "kernels/cuda/weight_ggml.cuh"

template <bool NESTED>
struct Decode4 {  // NF4, FP4
    const uint8_t *data;
    const float *scales, *codes;
    const uint8_t *nested_codes;
    const float *nested_absmax, *nested_map;
    float nested_offset;
    int shift;  // log2 of the block size

    struct Raw {
        uint32_t word;
        float absmax;  // nested: of the block of constants
        uint8_t nested_code;
    };
    explicit Decode4(const WeightView *w)
        : data((const uint8_t *)w->data),
          scales(w->scales),
          codes(w->codes),
          nested_codes(w->nested_codes),
          nested_absmax(w->nested_absmax),
          nested_map(w->nested_map),
          nested_offset(w->nested_offset),
          shift(__builtin_ctz((unsigned)w->block_size)) {}

    __device__ void prepare(WeightTables *t) const {
        for (unsigned i = threadIdx.x; i < 16; i += blockDim.x)
            t->code[i] = codes[i];
        if (NESTED) {
            for (unsigned i = threadIdx.x; i < 256; i += blockDim.x)
                t->nested[i] = nested_map[i];
        }
    }
    __device__ __forceinline__ Raw with_constant(uint32_t word, int64_t i) const {
        uint64_t block = (uint64_t)i >> shift;
        if (!NESTED) return {word, __ldg(scales + block), 0};
        return {word, __ldg(nested_absmax + block / NESTED_BLOCK), __ldg(nested_codes + block)};
    }
    __device__ __forceinline__ Raw fetch(int64_t i) const {
        return with_constant(__ldg(reinterpret_cast<const uint32_t *>(data) + (uint64_t)i / 8), i);
    }
    __device__ __forceinline__ float absmax_of(const WeightTables *t, const Raw &raw) const {
        return NESTED ? add_rn(mul_rn(t->nested[raw.nested_code], raw.absmax), nested_offset) : raw.absmax;
    }
    __device__ __forceinline__ void decode(const WeightTables *t, const Raw &raw, float v[8]) const {
        float absmax = absmax_of(t, raw);
#pragma unroll
        for (int b = 0; b < 4; b++) {  // the even element lies in the high nibble
            v[2 * b] = mul_rn(t->code[raw.word >> (8 * b + 4) & 15], absmax);
            v[2 * b + 1] = mul_rn(t->code[raw.word >> (8 * b) & 15], absmax);
        }
    }
    __device__ __forceinline__ float one(const WeightTables *t, int64_t i) const {
        uint32_t byte = __ldg(data + i / 2);
        return mul_rn(t->code[i % 2 == 0 ? byte >> 4 : byte & 15], absmax_of(t, with_constant(byte, i)));
    }
};

struct DecodeInt4 {
    const uint8_t *data;
    const float *scales;
    int shift;

    struct Raw {
        uint32_t word;
        float scale;
    };
    explicit DecodeInt4(const WeightView *w)
        : data((const uint8_t *)w->data), scales(w->scales), shift(__builtin_ctz((unsigned)w->block_size)) {}

    __device__ void prepare(WeightTables *) const {}
    __device__ __forceinline__ Raw fetch(int64_t i) const {
        return {__ldg(reinterpret_cast<const uint32_t *>(data) + i / 8), __ldg(scales + (i >> shift))};
    }
    __device__ __forceinline__ void decode(const WeightTables *, const Raw &raw, float v[8]) const {
#pragma unroll
        for (int k = 0; k < 8; k++)  // the even element lies in the low nibble
            v[k] = mul_rn((float)((int)(raw.word >> (4 * k) & 15) - 8), raw.scale);
    }
    __device__ __forceinline__ float one(const WeightTables *, int64_t i) const {
        int byte = __ldg(data + i / 2);
        return mul_rn((float)((i % 2 == 0 ? byte & 15 : byte >> 4) - 8), __ldg(scales + (i >> shift)));
    }
};

struct DecodeInt8 {  // eight neighbours lie in one row: cols is a multiple of 8 where fetch() is used
    const int8_t *data;
    const float *scales;
    int64_t cols;

    struct Raw {
        uint2 words;
        float scale;
    };
    explicit DecodeInt8(const WeightView *w) : data((const int8_t *)w->data), scales(w->scales), cols(w->cols) {}

    __device__ void prepare(WeightTables *) const {}
    __device__ __forceinline__ Raw fetch(int64_t i) const {
        return {__ldg(reinterpret_cast<const uint2 *>(data + i)), __ldg(scales + i / cols)};
    }
    __device__ __forceinline__ void decode(const WeightTables *, const Raw &raw, float v[8]) const {
#pragma unroll
        for (int k = 0; k < 8; k++) {
            int code = (int8_t)((k < 4 ? raw.words.x : raw.words.y) >> (8 * (k % 4)) & 255);
            v[k] = mul_rn(mul_rn((float)code, raw.scale), INT8_DECODE);
        }
    }
    __device__ __forceinline__ float one(const WeightTables *, int64_t i) const {
        return mul_rn(mul_rn((float)__ldg(data + i), __ldg(scales + i / cols)), INT8_DECODE);
    }
};

struct DecodeGrouped {  // eight codes of `bits` are `bits` bytes; with fetch() they have one group, and rows are multiples of 8
    const uint8_t *data, *zeros;
    const float *scales;
    const int32_t *group_index;
    int64_t cols, row_bytes, groups;
    int block_size, bits;
    DType scale_type;

    struct Raw {
        uint64_t codes;
        int zero;
        float scale;
    };
    explicit DecodeGrouped(const WeightView *w)
        : data((const uint8_t *)w->data),
          zeros(w->zeros),
          scales(w->scales),
          group_index(w->group_index),
          cols(w->cols),
          row_bytes(grouped_row_bytes(w->cols, w->bits)),
          groups(w->cols / w->block_size),
          block_size(w->block_size),
          bits(w->bits),
          scale_type(w->scale_type) {}

    __device__ void prepare(WeightTables *) const {}
    __device__ __forceinline__ Raw grid_of(int64_t row, int64_t column) const {
        int64_t at = row * groups + (group_index != NULL ? __ldg(group_index + column) : column / block_size);
        return {0, zeros != NULL ? (int)__ldg(zeros + at) : 1 << (bits - 1), __ldg(scales + at)};
    }
    __device__ __forceinline__ Raw fetch(int64_t i) const {
        int64_t row = i / cols, column = i % cols;
        const uint8_t *from = data + row * row_bytes + column / 8 * bits;
        Raw raw = grid_of(row, column);
        if (bits == 4) {
            raw.codes = __ldg(reinterpret_cast<const uint32_t *>(from));
        } else {
            for (int b = 0; b < bits; b++)
                raw.codes |= (uint64_t)__ldg(from + b) << 8 * b;
        }
        return raw;
    }
    __device__ __forceinline__ float value(const Raw &raw, int k) const {
        int code = (int)(raw.codes >> k * bits & ((1u << bits) - 1));
        return round_to(mul_rn((float)(code - raw.zero), raw.scale), scale_type);
    }
    __device__ __forceinline__ void decode(const WeightTables *, const Raw &raw, float v[8]) const {
#pragma unroll
        for (int k = 0; k < 8; k++)
            v[k] = value(raw, k);
    }
    __device__ __forceinline__ float one(const WeightTables *, int64_t i) const {
        int64_t row = i / cols, column = i % cols, bit = column * bits;
        const uint8_t *from = data + row * row_bytes + bit / 8;
        int shift = (int)(bit % 8);
        Raw raw = grid_of(row, column);
        raw.codes = __ldg(from) >> shift;
        if (shift + bits > 8) raw.codes |= (uint64_t)__ldg(from + 1) << (8 - shift);
        return value(raw, 0);
    }
};

template <class F>
struct DecodePlain {  // F32, BF16
    const F *data;

    struct Raw {
        float v[8];
    };
    explicit DecodePlain(const WeightView *w) : data((const F *)w->data) {}

    __device__ void prepare(WeightTables *) const {}
    __device__ __forceinline__ Raw fetch(int64_t i) const {
        Raw raw;
        load8(data + i, raw.v);
        return raw;
    }
    __device__ __forceinline__ void decode(const WeightTables *, const Raw &raw, float v[8]) const {
#pragma unroll
        for (int k = 0; k < 8; k++)
            v[k] = raw.v[k];
    }
    __device__ __forceinline__ float one(const WeightTables *, int64_t i) const {
        return to_float(data[i]);
    }
};

struct DecodeHalf {  // converted late: 16 bytes are in flight, not 32
    const Half *data;

    struct Raw {
        uint4 words;
    };
    explicit DecodeHalf(const WeightView *w) : data((const Half *)w->data) {}

    __device__ void prepare(WeightTables *) const {}
    __device__ __forceinline__ Raw fetch(int64_t i) const { return {__ldg(reinterpret_cast<const uint4 *>(data + i))}; }
    __device__ __forceinline__ void decode(const WeightTables *, const Raw &raw, float v[8]) const {
        const uint32_t words[4] = {raw.words.x, raw.words.y, raw.words.z, raw.words.w};
#pragma unroll
        for (int k = 0; k < 8; k++)
            v[k] = to_float(Half{(uint16_t)(words[k / 2] >> 16 * (k % 2))});
    }
    __device__ __forceinline__ float one(const WeightTables *, int64_t i) const {
        return to_float(data[i]);
    }
};

// Whether fetch() works for this weight: aligned addresses, and rows that groups of eight do not cross.
static inline bool weight_has_vectors(const WeightView *w) {
    if (w->format == WEIGHT_INT8 && w->cols % VEC != 0) return false;
    if (w->format == WEIGHT_GROUPED && (w->cols % VEC != 0 || w->block_size % VEC != 0 || w->group_index != NULL)) return false;
    return is_aligned(w->data);
}

static inline bool ggml_is_blocks(uint32_t type) {
    return (type >= GGML_Q4_0 && type <= GGML_Q4_1) || (type >= GGML_Q5_0 && type <= GGML_Q8_0) ||
           (type >= GGML_Q2_K && type <= GGML_Q6_K);
}

// Runs the statements with `decoder` of the weight's format; returns cudaErrorInvalidValue for one that is unknown.
#define WITH_DECODER(w, ...)                                                       \
    do {                                                                           \
        if ((w)->format == WEIGHT_NF4 || (w)->format == WEIGHT_FP4) {              \
            if ((w)->nested_codes != NULL) {                                       \
                Decode4<true> decoder(w);                                          \
                __VA_ARGS__;                                                       \
            } else {                                                               \
                Decode4<false> decoder(w);                                         \
                __VA_ARGS__;                                                       \
            }                                                                      \
        } else if ((w)->format == WEIGHT_INT4) {                                   \
            DecodeInt4 decoder(w);                                                 \
            __VA_ARGS__;                                                           \
        } else if ((w)->format == WEIGHT_INT8) {                                   \
            DecodeInt8 decoder(w);                                                 \
            __VA_ARGS__;                                                           \
        } else if ((w)->format == WEIGHT_BF16) {                                   \
            DecodePlain<bf16> decoder(w);                                          \
            __VA_ARGS__;                                                           \
        } else if ((w)->format == WEIGHT_F32) {                                    \
            DecodePlain<float> decoder(w);                                         \
            __VA_ARGS__;                                                           \
        } else if ((w)->format == WEIGHT_GROUPED) {                                \
            DecodeGrouped decoder(w);                                              \
            __VA_ARGS__;                                                           \
        } else if ((w)->format == WEIGHT_GGML && (w)->ggml_type == GGML_F16) {     \
            DecodeHalf decoder(w);                                                 \
            __VA_ARGS__;                                                           \
        } else if ((w)->format == WEIGHT_GGML && ggml_is_blocks((w)->ggml_type)) { \
            DecodeGgml decoder(w);                                                 \
            __VA_ARGS__;                                                           \
        } else {                                                                   \
            return cudaErrorInvalidValue;                                          \
        }                                                                          \
    } while (0)
