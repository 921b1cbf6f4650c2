/* Grouped integers as the files of GPTQ, AWQ and compressed-tensors lay them out, for a weight [rows = out, cols = in].
 *
 *   layout    codes                                   zero points                                scales
 *   GPTQ      I32 [cols*b/32, rows]                   I32 [groups, rows*b/32]                    [groups, rows]
 *             word (i, o): inputs of output o,        bit stream along the outputs;
 *             bit stream from the low bit on          the first format stores z - 1
 *   AWQ       I32 [cols, rows/8], 4 bits              I32 [groups, rows/8]                       [groups, rows]
 *             nibble i of a word: output 8c + [0, 2, 4, 6, 1, 3, 5, 7][i], both
 *   PACKED    I32 [rows, ceil(cols*b/32)]             I32 [ceil(rows*b/32), groups]              [rows, groups]
 *             bit stream along the inputs             bit stream along the outputs
 *   INT_ROWS  I8 [rows, cols], u - 128                I8 [rows, 1], z - 128                      [rows, 1]
 *
 * A QuantizedTensor's own rows are PACKED's; GPTQ's codes are the same words transposed. Nothing here passes through floats but
 * scales, which go from their 16-bit type to FP32 and back without change.
 *
 * Sources: AutoGPTQ@9f7d3707 nn_modules/qlinear, GPTQModel@f4c327a1; AutoAWQ@88e4c76b modules/linear/gemm.py;
 * compressed-tensors@ac8e2ba8 compressors/pack_quantized and naive_quantized.
 */
#ifndef NIBBLE_QUANT_GROUPED_LAYOUT_H
#define NIBBLE_QUANT_GROUPED_LAYOUT_H

#include "quant/quantize.h"

typedef enum GroupedLayout { GROUPED_GPTQ, GROUPED_AWQ, GROUPED_PACKED, GROUPED_INT_ROWS } GroupedLayout;

/* Whether a weight of this shape and spec can be written so; names what does not fit. */
Status grouped_layout_check(GroupedLayout layout, const QuantSpec *spec, int64_t rows, int64_t cols, Error *err);

/* The codes' tensor in the file: [lines, line bytes]. */
int64_t grouped_lines(GroupedLayout layout, const QuantizedTensor *tensor);
int64_t grouped_line_bytes(GroupedLayout layout, const QuantizedTensor *tensor);
/* Lines [first, first + count) of the file into the codes of the weight's rows [row, row + rows); the rows of a word or of a
 * nibble's word belong together: row and rows are multiples of 8. Several calls may run at once on different rows. For PACKED and
 * INT_ROWS a line is a row, and row and rows are not read. */
void grouped_codes_in(GroupedLayout layout, QuantizedTensor *tensor, int64_t first, int64_t count, const uint8_t *lines,
                      int64_t row, int64_t rows);
/* The other way round: overwrites lines. */
void grouped_codes_out(GroupedLayout layout, const QuantizedTensor *tensor, int64_t first, int64_t count, uint8_t *lines);

/* The zero points of rows [row, row + rows) out of all of the file, grouped_zero_bytes long, one code a byte into zeros [all rows,
 * groups]. stored_less: what the file stores is less than the zero point by this (modulo 2^bits). */
int64_t grouped_zero_bytes(GroupedLayout layout, const QuantizedTensor *tensor);
void grouped_zeros_in(GroupedLayout layout, const QuantizedTensor *tensor, int stored_less, const uint8_t *bytes, int64_t row,
                      int64_t rows, uint8_t *zeros);
/* From the tensor (2^(bits-1) where it has none): overwrites bytes. */
void grouped_zeros_out(GroupedLayout layout, const QuantizedTensor *tensor, int stored_less, uint8_t *bytes);

/* All scales of the file, of the spec's type; in: those of rows [row, row + rows) into tensor->scales. */
void grouped_scales_in(GroupedLayout layout, const QuantizedTensor *tensor, const void *bytes, int64_t row, int64_t rows);
void grouped_scales_out(GroupedLayout layout, const QuantizedTensor *tensor, void *bytes);

#endif
