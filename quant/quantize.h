/* Whole weights in NF4, FP4, INT8, INT4 and grouped integers, quantized while they are read.
 *
 * A QuantizedTensor is what kernels/formats.h describes, carved out of an arena:
 *
 *   NF4, FP4           codes [ceil(n/2)]   code_table [16]   scales [blocks]
 *   the same, nested   codes [ceil(n/2)]   code_table [16]   nested_codes [blocks]   nested_absmax [ceil(blocks/256)]
 *                      nested_map [256]    nested_offset
 *   INT8               codes [rows, cols]  scales [rows]
 *   INT4               codes [n/2]         scales [rows, cols/block_size]
 *   GROUPED            codes [rows, grouped_row_bytes]   scales, zeros [rows, cols/block_size]   group_index [cols]
 *
 * A Quantizer fills one tensor after another from slices of whole rows, so that
 * no weight ever stands in memory in FP32. 4-bit blocks cross rows and so
 * slices; how a tensor is sliced, and the number of threads, never change a
 * byte. NaN and Inf are refused by their place.
 */
#ifndef NIBBLE_QUANT_QUANTIZE_H
#define NIBBLE_QUANT_QUANTIZE_H

#include <stddef.h>
#include <stdint.h>

#include "core/dtype.h"
#include "core/error.h"
#include "core/memory.h"
#include "core/pool.h"
#include "kernels/formats.h"
#include "kernels/ops.h"
#include "quant/group_int.h"

typedef struct QuantSpec {
    WeightFormat format; /* WEIGHT_NF4, WEIGHT_FP4, WEIGHT_INT8, WEIGHT_INT4, WEIGHT_GROUPED */
    int double_quant;    /* NF4, FP4 only */
    int32_t
        block_size; /* NF4, FP4: 32..4096, a power of two; INT4: 32, 64 or 128; GROUPED: 8n columns, 0: a row; INT8: not read */
    /* GROUPED only */
    int bits;
    int zeros;        /* each group has a zero point of its own */
    int ordered;      /* columns belong to groups in any order; such tensors are read or stored, not quantized here */
    DType scale_type; /* F32, BF16 or F16 */
    int keep_scales;  /* symmetric: values that lie on such a grid already are left on it (group_int_found_scale) */
} QuantSpec;

typedef struct QuantizedTensor {
    QuantSpec spec;
    int64_t rows, cols;
    int64_t blocks; /* constants: blocks of NF4 and FP4, groups of INT4, rows of INT8 */
    size_t code_bytes;
    uint8_t *codes; /* INT8: int8_t */
    float *code_table, *scales;
    uint8_t *nested_codes;
    int64_t nested_blocks;
    float *nested_absmax, *nested_map;
    float nested_offset;
    uint8_t *zeros;       /* NULL: 2^(bits-1) */
    int32_t *group_index; /* NULL: column / group */
} QuantizedTensor;

/* Whether two tensors of these specs hold the same kinds of bytes. */
int quant_spec_equal(const QuantSpec *a, const QuantSpec *b);
/* A grid of grouped integers as a spec, and the other way round. */
QuantSpec quant_spec_grouped(const GroupInt *grid);
GroupInt quant_spec_grid(const QuantSpec *spec);

/* Whether a [rows, cols] weight can be stored so; names what does not fit (a group that does not divide the width). */
Status quant_check(const QuantSpec *spec, int64_t rows, int64_t cols, Error *err);

/* Overwrites *tensor with uncleared storage from the arena; a counting arena gives NULL pointers and the same count. */
Status quantized_take(QuantizedTensor *tensor, const QuantSpec *spec, int64_t rows, int64_t cols, Arena *arena, Error *err);

/* Borrows: valid as long as the arena. */
WeightView quantized_view(const QuantizedTensor *tensor);

/* The format's own 16 values (NF4 or FP4). */
const float *quant_code_table(WeightFormat format);

typedef struct Quantizer Quantizer;

/* The constants of the largest tensor that `spec` double-quantizes, for quantizer_create: 0 when nothing is nested. */
int64_t quant_nested_constants(const QuantSpec *spec, int64_t rows, int64_t cols);

/* backend and pool (NULL: the caller alone) are borrowed. max_constants: see quant_nested_constants. */
Status quantizer_create(Quantizer **out, const Backend *backend, Pool *pool, int64_t max_constants, Error *err);
/* Bytes that it takes. */
size_t quantizer_bytes(int threads, int64_t max_constants);
void quantizer_free(Quantizer *quantizer); /* NULL is fine */

/* Starts over with a tensor that quantized_take filled in; it is complete after quantizer_finish. */
Status quantizer_begin(Quantizer *quantizer, QuantizedTensor *tensor, Error *err);
/* The next `count` whole rows: F32, BF16 or F16, row-major, borrowed for the call. */
Status quantizer_rows(Quantizer *quantizer, const void *rows, DType type, int64_t count, Error *err);
/* The last block and the nested constants; fails unless every row was given. */
Status quantizer_finish(Quantizer *quantizer, Error *err);

/* What a quantizer of grouped integers decided on, packed into storage that quantized_take gave for the same grid, shape and
 * order (a tensor whose spec has zeros takes a source without them: 2^(bits-1) each). */
Status quantized_store(QuantizedTensor *tensor, const GroupIntTensor *from, Error *err);

/* All of it in one call. */
Status quantize_tensor(Quantizer *quantizer, const void *weight, DType type, QuantizedTensor *tensor, Error *err);

#endif
