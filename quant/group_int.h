/* Grouped integers: the grid of compressed-tensors, GPTQ and AWQ folders, and of quantization-aware training (fake_quant.h).
 *
 *   b bits (2 to 8) along `in`; a group of input columns, or a whole row, shares a scale and a zero point
 *   code u in [0, 2^b - 1], zero z in [0, 2^b - 1]   (files that count from -2^(b-1) store the same with an offset)
 *   value = (u - z) * scale, the product in FP32, then rounded to the scale's type
 *
 * Scales from a range, lo = min(x, 0), hi = max(x, 0), in FP32 and rounded to scale_type:
 *   symmetric    scale = max(-lo, hi) / ((2^b - 1) / 2), z = 2^(b-1)
 *   asymmetric   scale = (hi - lo) / (2^b - 1), z = 2^(b-1) + clamp(RNE(-2^(b-1) - lo / scale))
 *   a scale of 0 becomes scale_type's epsilon
 * Codes, counted from c = 2^(b-1) so that the same number is rounded everywhere:
 *   u = c + clamp(RNE(x / scale + (z - c)))
 * These are the formulas of compressed-tensors (quantization/utils/helpers.py, lifecycle/forward.py at ac8e2ba8); GPTQ's
 * symmetric scale, 2 amax / (2^b - 1), is the same number.
 *
 * From quantizer to file. Whatever decides on codes (rounding to nearest, GPTQ, AWQ, clipping) hands over a GroupIntTensor:
 * codes one a byte in the model's own column order, never permuted; scales in FP32 that scale_type holds exactly; zeros one
 * a byte; and, where columns were grouped in another order (act-order), g_idx with the group of every column. The writers
 * only pack it. A GPTQ that permutes columns by perm and quantizes column perm[i] in group i / group therefore writes codes back
 * to column perm[i] and sets g_idx[perm[i]] = i / group; with groups fixed beforehand (static groups) g_idx stays NULL. AWQ
 * multiplies W's columns before it quantizes and divides the norm or the rows before it: what it hands over is the multiplied
 * weight's codes, and the folded tensors apart from this.
 */
#ifndef NIBBLE_QUANT_GROUP_INT_H
#define NIBBLE_QUANT_GROUP_INT_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include "core/dtype.h"
#include "core/error.h"

typedef struct GroupInt {
    int bits; /* 2 to 8 */
    int symmetric;
    int64_t group;    /* columns that share a scale; 0: a row */
    DType scale_type; /* F32, BF16 or F16 */
} GroupInt;

typedef struct GroupIntTensor {
    GroupInt grid;
    int64_t rows, cols;
    int64_t groups; /* of a row */
    uint8_t *codes; /* [rows, cols] */
    float *scales;  /* [rows, groups] */
    uint8_t *zeros; /* [rows, groups]; NULL: 2^(bits-1) everywhere, as a symmetric grid has */
    int32_t *g_idx; /* [cols], each in [0, groups); NULL: column / group */
} GroupIntTensor;

/* Whether a [rows, cols] weight has this grid; names what does not fit. */
Status group_int_check(const GroupInt *grid, int64_t rows, int64_t cols, Error *err);
/* Columns of a group. */
static inline int64_t group_int_columns(const GroupInt *grid, int64_t cols) {
    return grid->group > 0 ? grid->group : cols;
}

/* Storage for a [rows, cols] weight, uncleared; g_idx NULL; zeros NULL where the grid is symmetric. Checks the grid first.
 * group_int_free: of what group_int_alloc made (and of a g_idx that was put there with memory_alloc); leaves NULLs. */
Status group_int_alloc(GroupIntTensor *tensor, const GroupInt *grid, int64_t rows, int64_t cols, Error *err);
void group_int_free(GroupIntTensor *tensor);

/* Scale and zero of the range [least, most] (what is above 0 below or below 0 above counts as 0). The scale may be Inf where
 * scale_type cannot hold it; callers test it. */
void group_int_scale(const GroupInt *grid, float least, float most, float *scale, uint8_t *zero);
/* The same from values: their least and greatest. Of a group, of a row's group or of columns gathered by the caller. */
void group_int_scale_of(const GroupInt *grid, const float *x, int64_t count, float *scale, uint8_t *zero);
/* Whether all of a symmetric group's values are, to the bit, what codes times one scale give; then *scale is that scale. amax / 7.5
 * is not the scale that made them, as no code is 7.5: without this, quantizing what was dequantized would move it. */
int group_int_found_scale(const GroupInt *grid, const float *x, int64_t count, float *scale);
/* Scales and zeros of every group of one row, in column order: overwrites scales [groups] and zeros [groups]. Returns 0, or -1
 * when a value is NaN or Inf, or too large for scale_type. Touches only its arguments, as all below do. */
int group_int_scales(const GroupInt *grid, const float *x, int64_t cols, float *scales, uint8_t *zeros);

/* One code for a scale that is given. *clipped (may be NULL): whether the unclamped integer lay outside of the range. */
static inline uint8_t group_int_code(int bits, float x, float scale, uint8_t zero, uint8_t *clipped) {
    float center = (float)(1 << (bits - 1)), q = rintf(x / scale + ((float)zero - center));
    float low = -center, high = center - 1.0f;
    if (clipped != NULL) *clipped = !(q >= low && q <= high);
    q = !(q >= low) ? low : q > high ? high : q; /* NaN has some code, too */
    return (uint8_t)(int)(q + center);
}

static inline float group_int_round(float value, DType type) {
    return type == DTYPE_BF16 ? bf16_round(value) : type == DTYPE_F16 ? f16_to_float(f16_from_float(value)) : value;
}

/* A code has no -0: u = z gives +0. */
static inline float group_int_value(uint8_t code, float scale, uint8_t zero, DType scale_type) {
    return group_int_round((float)((int)code - (int)zero) * scale, scale_type);
}

/* `count` codes of one group for a scale that is given: overwrites codes [count]. */
void group_int_quantize_given_scale(const GroupInt *grid, const float *x, int64_t count, float scale, uint8_t zero,
                                    uint8_t *codes);
/* A row with scales and zeros [groups] that are given; zeros and g_idx may be NULL. Overwrites codes [cols]. */
void group_int_quantize_given_scales(const GroupInt *grid, const float *x, int64_t cols, const float *scales,
                                     const uint8_t *zeros, const int32_t *g_idx, uint8_t *codes);
/* Rounding to nearest: one row of the tensor (which has no g_idx) from x [cols]. Returns as group_int_scales. */
int group_int_quantize_row(GroupIntTensor *tensor, int64_t row, const float *x);
/* Values of one row: overwrites out [cols]. */
void group_int_dequantize_row(const GroupIntTensor *tensor, int64_t row, float *out);

/* Packing: value i of a row lies at bit b * i of a stream that is read from the low bit of the first byte on; unused bits of the
 * last byte are 0. As 32-bit little-endian words this is every public layout along its own axis (with 3 bits, too: GPTQ's and
 * compressed-tensors' values straddle words). */
static inline int64_t group_int_packed_bytes(int bits, int64_t count) {
    return (count * bits + 7) / 8;
}
/* Overwrites packed [group_int_packed_bytes]; codes are below 2^bits. */
void group_int_pack(int bits, const uint8_t *codes, int64_t count, uint8_t *packed);
void group_int_unpack(int bits, const uint8_t *packed, int64_t count, uint8_t *codes);

#endif
