/* A matrix as one side of a product: rows that can be read as FP32, whatever they are stored as.
 *
 * A weight is decoded as kernels/formats.h says and, in a BF16 run, rounded to BF16 once: exactly what the reference
 * multiplies with.
 */
#ifndef NIBBLE_KERNELS_CPU_SIMD_OPERAND_H
#define NIBBLE_KERNELS_CPU_SIMD_OPERAND_H

#include "kernels/cpu/simd/simd.h"
#include "kernels/ops.h"

#define dropout_apply SIMD_SYMBOL(dropout_apply)
#define operand_read SIMD_SYMBOL(operand_read)
#define weight_read SIMD_SYMBOL(weight_read)

/* The mask of one adapter over the rows of a batch. */
typedef struct DropoutMask {
    const Batch *batch;
    uint32_t stream, threshold;
    float scale; /* 1 / (1 - p) */
} DropoutMask;

/* values[i] *= mask(row, column + i), i < count; column is a multiple of 4. */
void dropout_apply(const DropoutMask *mask, int64_t row, int64_t column, int64_t count, float *values);

typedef struct Operand {
    const void *data;         /* type [.., stride]; unused with weight */
    DType type;               /* F32 or BF16 */
    int64_t stride;           /* elements from row to row */
    const WeightView *weight; /* instead of data */
    DType round_to;           /* what a weight is rounded to */
    const int32_t *rows;      /* row r is found at rows[r]; NULL: at r */
    const DropoutMask *mask;  /* multiplied in; NULL: none */
    float scale;              /* multiplied in unless 1 */
} Operand;

/* out[0, count) = elements [column, column + count) of the row; then zeros up to a multiple of SIMD_WIDTH, for which there
 * must be room. With a mask, column is a multiple of 4. */
void operand_read(const Operand *operand, int64_t row, int64_t column, int64_t count, float *out);

/* A power of two, by which BF16 numbers are multiplied without rounding; nothing so large or small that it could matter. */
SIMD_INLINE int is_exact_scale(float scale) {
    union {
        float value;
        uint32_t bits;
    } s = {scale};
    return (s.bits & 0x007FFFFFu) == 0 && scale >= 0.015625f && scale <= 64.0f;
}

/* Whether every element is a BF16 number. */
SIMD_INLINE int operand_is_bf16(const Operand *o) {
    if (o->mask != NULL || !is_exact_scale(o->scale)) return 0;
    if (o->weight != NULL) return o->round_to == DTYPE_BF16 || o->weight->format == WEIGHT_BF16;
    return o->type == DTYPE_BF16;
}

/* Elements [first, first + count) of the flattened weight (within one row for INT8 and INT4), with the same surplus. */
void weight_read(const WeightView *weight, DType round_to, int64_t first, int64_t count, float *out);

#endif
