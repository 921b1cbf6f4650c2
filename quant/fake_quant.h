/* Fake quantization of rows: every value becomes what packing it into a real format and unpacking it again gives, to the bit.
 *
 *   integer groups   b bits (2 to 8) along `in`, one scale (and zero point) a group or a row: quant/group_int.h, whose code
 *                    this runs (compressed-tensors' pack-quantized and int-quantized)
 *   Q4_0, Q8_0, Q4_K  ggml's blocks (quant/ggml.h)
 *
 * The straight-through estimator (Bengio et al. 2013) passes a gradient where the unclamped integer lies in the range and
 * nothing where it was clamped; scales and zero points are constants. Q8_0 clamps nothing; a Q4_K sub-block whose scale is 0
 * decides no integer and passes all. NF4 is quantized a whole weight at a time (quant/quantize.h) and clamps nothing.
 */
#ifndef NIBBLE_QUANT_FAKE_QUANT_H
#define NIBBLE_QUANT_FAKE_QUANT_H

#include <stddef.h>
#include <stdint.h>

#include "core/error.h"
#include "kernels/formats.h"

/* Whether a [rows, cols] weight has this grid; names what does not fit. */
Status fake_quant_check(const FakeQuant *fake, int64_t rows, int64_t cols, Error *err);
/* Whether some gradient may be masked. */
int fake_quant_clips(const FakeQuant *fake);
/* Scratch of one fake_quant_row call. */
size_t fake_quant_scratch(const FakeQuant *fake, int64_t cols);
/* One row of a grid other than NF4, cols as fake_quant_check took it. Overwrites out [cols] and, where not NULL, mask [cols] (1:
 * the gradient passes). out may be x. Returns 0, or -1 when a value is NaN or Inf or too large for the format (what is
 * written then is unspecified). Touches only its arguments: rows may run on any thread. scratch: 16-byte aligned. */
int fake_quant_row(const FakeQuant *fake, const float *x, int64_t cols, float *out, uint8_t *mask, void *scratch);

/* The same for symmetric integers with the scales [groups] that are given, as scale_type holds them (not 0). Where not NULL, slope
 * [cols] is overwritten with the derivative of each value in its scale (LSQ, Esser et al. 2020): RNE(x / s) - x / s inside of
 * the range, its nearer end outside. */
int fake_quant_row_scaled(const FakeQuant *fake, const float *x, int64_t cols, const float *scales, float *out, uint8_t *mask,
                          float *slope);

#endif
