/* The one way in which an adapter is added to a row of a weight: merging and training on the merged weight share it to the bit. */
#ifndef NIBBLE_TRAIN_LORA_ROW_H
#define NIBBLE_TRAIN_LORA_ROW_H

#include <stdint.h>

/* x [cols] += scale * (b [rank] A [rank, cols]), FP32; the sum over the rank first, as PEFT multiplies before it scales.
 * delta [cols] is scratch. */
void lora_add_row(const float *b, const float *a, int64_t rank, int64_t cols, float scale, float *delta, float *x);

/* y += factor * x, element by element, product and sum rounded apart. */
void row_add(float *restrict y, const float *restrict x, float factor, int64_t count);
/* x . y in FP32, over 16 lanes that are added in order. */
float row_dot(const float *restrict x, const float *restrict y, int64_t count);

#endif
