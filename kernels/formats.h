/* Byte layouts and code tables of quantized weights: once, for C and CUDA.
 *
 * NF4, FP4 (bitsandbytes; thresholds are the FP32 midpoints of its code tables):
 *   the weight [out, in] is flattened row-major, cut into blocks of block_size
 *   consecutive elements (blocks cross rows when in % block_size != 0), each
 *   with absmax[b] = max|w|. Element 2k is the HIGH nibble of byte k.
 *   w = code[q] * absmax[b], product in FP32, then one rounding to the compute type.
 * Double quantization: absmax itself becomes 8 bits in blocks of 256 around an offset:
 *   absmax[b] = map[q[b]] * nested_absmax[b / 256] + offset, product rounded, then sum rounded (no FMA).
 * INT8: one scale a row, SCB[o] = max|w[o,:]|; q = RNE(w * ((1 / SCB) * 127)); w = (q * SCB) * (1/127), FP32.
 * INT4: groups of 32, 64 or 128 along `in`, symmetric: scale = amax / 7.5, q = clamp(RNE(w / scale), -8, 7);
 *   stored as q + 8, element 2k in the LOW nibble of byte k (as compressed-tensors packs it); w = q * scale.
 * GROUPED: b bits (2 to 8), unsigned, code i of a row at bit b * i of a stream read from the low bit of the first byte on, rows
 *   padded to 32-bit words; a group of columns (column / block_size, or group_index[column]) has an FP32 scale that scale_type
 *   holds and a zero point; w = (u - zero) * scale, product in FP32, rounded to scale_type (GPTQ, AWQ, compressed-tensors).
 * GGML: the blocks of a GGUF file as they are, row after row; each weight has its own type (kernels/ggml_formats.h).
 */
#ifndef NIBBLE_KERNELS_FORMATS_H
#define NIBBLE_KERNELS_FORMATS_H

#include <stddef.h>
#include <stdint.h>

#include "core/dtype.h"

typedef enum WeightFormat {
    WEIGHT_F32,
    WEIGHT_BF16,
    WEIGHT_F64, /* reference tests only */
    WEIGHT_NF4,
    WEIGHT_FP4,
    WEIGHT_INT8,
    WEIGHT_INT4,
    WEIGHT_GGML,
    WEIGHT_GROUPED,
    WEIGHT_FORMATS
} WeightFormat;

#define NESTED_BLOCK 256
#define INT8_DECODE 7.874015718698502e-3f /* 1/127, as bitsandbytes spells it */

#define NF4_CODES                                                                                                            \
    {                                                                                                                        \
        -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f,                     \
            -0.18477343022823334f, -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f,                  \
            0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f \
    }

/* Both 4-bit formats: the n-th lowest value is chosen for threshold[n-1] < y <= threshold[n] (a tie goes down); each
 * threshold is the FP32 midpoint of its neighbours. Every one is written as the FP32 number that it is: bitsandbytes' CUDA
 * sources spell exact midpoints, and four of those (0, 8, 12, 14) round to the neighbouring FP32 number when read as floats. */
#define NF4_THRESHOLDS                                                                                                    \
    {                                                                                                                     \
        -0.8480963706970215f, -0.6106328964233398f, -0.4599952697753906f, -0.33967941999435425f, -0.23460739850997925f,   \
            -0.13791173696517944f, -0.045525018125772476f, 0.03979014977812767f, 0.120255246758461f, 0.2035212516784668f, \
            0.2920137643814087f, 0.3893125355243683f, 0.5016634464263916f, 0.6427869200706482f, 0.8614784479141235f       \
    }

/* Bit 3 is the sign, the low bits are no magnitude order. Both zeros are written +0, as bitsandbytes' own table has them. */
#define FP4_CODES                                                                                                             \
    {                                                                                                                         \
        0.0f, 0.0052083334885537624f, 0.6666666865348816f, 1.0f, 0.3333333432674408f, 0.5f, 0.1666666716337204f, 0.25f, 0.0f, \
            -0.0052083334885537624f, -0.6666666865348816f, -1.0f, -0.3333333432674408f, -0.5f, -0.1666666716337204f, -0.25f   \
    }

/* Codes from the lowest value to the highest, and the borders between them, as bitsandbytes' Python "default" backend has
 * them: y in (0, 0.0026] becomes code 8 and y in (-0.0026, 0] code 0; both decode to 0. (Its CUDA kernel compares |y| with
 * rounded literals instead, so ties, tiny values and values within an ulp of a border differ there.) */
#define FP4_ORDER \
    { 11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3 }
#define FP4_THRESHOLDS                                                                                                \
    {                                                                                                                 \
        -0.8333333730697632f, -0.5833333730697632f, -0.4166666865348816f, -0.2916666865348816f, -0.2083333432674408f, \
            -0.0859375f, -0.0026041667442768812f, 0.0f, 0.0026041667442768812f, 0.0859375f, 0.2083333432674408f,      \
            0.2916666865348816f, 0.4166666865348816f, 0.5833333730697632f, 0.8333333730697632f                        \
    }

/* bitsandbytes scales a block by no less than this absmax. */
#define ABSMAX_FLOOR 1e-38f

/* A weight as an operand: a matrix [rows = out, cols = in], borrowed. Quantized formats use the fields they need. */
typedef struct WeightView {
    WeightFormat format;
    int64_t rows, cols;
    const void *data;    /* F32, BF16, F64: row-major; NF4, FP4, INT4: packed nibbles; INT8: int8 row-major; GGML: blocks */
    const float *scales; /* NF4, FP4: absmax per block (NULL when nested); INT8: [rows]; INT4: [rows, cols/block_size] */
    int32_t block_size;  /* NF4, FP4: 32..4096; INT4: 32, 64, 128; GROUPED: columns of a group, a divisor of cols */
    const float *codes;  /* NF4, FP4: the 16 values (from the file when pre-quantized) */
    const uint8_t *nested_codes; /* double quantization: [blocks] */
    const float *nested_absmax;  /* [ceil(blocks/256)] */
    const float *nested_map;     /* [256] */
    float nested_offset;
    uint32_t ggml_type; /* GGML: a GgmlType, F16 or one with blocks */
    /* GROUPED; scales are [rows, cols/block_size] */
    int32_t bits;
    DType scale_type;           /* F32, BF16 or F16 */
    const uint8_t *zeros;       /* as scales; NULL: 2^(bits-1) everywhere */
    const int32_t *group_index; /* [cols]; NULL: column / block_size */
} WeightView;

/* Grids of fake quantization; what they are: quant/fake_quant.h. */
typedef enum FakeGrid { FAKE_INT, FAKE_Q4_0, FAKE_Q8_0, FAKE_Q4_K, FAKE_NF4 } FakeGrid;

typedef struct FakeQuant {
    FakeGrid grid;
    int bits;           /* INT: 2 to 8 */
    int symmetric;      /* INT */
    int64_t group;      /* INT: values that share a scale; 0: a row */
    DType scale_type;   /* INT: F32, BF16 or F16 */
    int double_quant;   /* NF4 */
    int32_t block_size; /* NF4 */
} FakeQuant;

static inline int64_t weight_blocks(int64_t rows, int64_t cols, int64_t block_size) {
    return (rows * cols + block_size - 1) / block_size;
}

/* FP32 absmax of block b of an NF4 or FP4 weight, nested or not. */
static inline float weight_absmax(const WeightView *weight, int64_t block) {
    if (weight->nested_codes == NULL) return weight->scales[block];
    float product = weight->nested_map[weight->nested_codes[block]] * weight->nested_absmax[block / NESTED_BLOCK];
    return product + weight->nested_offset;
}

/* Bytes of a row of GROUPED codes. */
static inline int64_t grouped_row_bytes(int64_t cols, int bits) {
    return (cols * bits + 31) / 32 * 4;
}

/* Code of a column of a row of GROUPED codes. */
static inline int grouped_code(const uint8_t *row, int bits, int64_t column) {
    int64_t bit = column * bits;
    int shift = (int)(bit % 8), word = row[bit / 8] >> shift;
    if (shift + bits > 8) word |= row[bit / 8 + 1] << (8 - shift);
    return word & ((1 << bits) - 1);
}

/* "f32", "bf16", "nf4" … */
static inline const char *weight_format_name(WeightFormat format) {
    static const char *const names[WEIGHT_FORMATS] = {
        "f32", "bf16", "f64", "nf4", "fp4", "int8", "int4", "ggml", "grouped integers"};
    return names[format];
}

#endif
