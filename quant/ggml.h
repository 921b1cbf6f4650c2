/* Rows of floats to ggml's blocks and back (layouts: kernels/ggml_formats.h).
 *
 * Quantizing gives the bytes of ggml's reference quantizers, compiled without FMA contraction: every sum runs in index order in
 * FP32. With an importance (mean square of each input column over calibration data, as an imatrix holds it) the weighted
 * searches are used instead. Blocks do not cross rows, so neither slicing nor threads change a byte.
 *
 * Source: ggml 0.25.3 (in llama-cpp-python 0.3.36), src/ggml-quants.c. Bytes are compared by tests/peers/ggml_blocks.py and,
 * from its golden file, by tests/unit/test_ggml.c.
 */
#ifndef NIBBLE_QUANT_GGML_H
#define NIBBLE_QUANT_GGML_H

#include <stdint.h>

#include "core/error.h"
#include "core/pool.h"
#include "kernels/ggml_formats.h"

typedef struct GgmlTypeInfo {
    uint32_t type;
    const char *name; /* "Q4_K" */
    uint16_t block;   /* elements */
    uint16_t bytes;   /* of one block */
    uint8_t is_float; /* F32, F16, BF16, F64 */
    uint8_t is_codec; /* ggml_quantize and ggml_dequantize take it */
    uint8_t is_quantized;
} GgmlTypeInfo;

/* What is known of a type number, or NULL. Types that are only known by size can be listed, not read. */
const GgmlTypeInfo *ggml_type_info(uint32_t type);
/* By name, in either case ("q4_k"), or NULL. */
const GgmlTypeInfo *ggml_type_named(const char *name);

/* Bytes of `rows` rows of `cols` elements; fails where cols is no multiple of the block or the product does not fit int64_t. */
Status ggml_bytes(uint32_t type, int64_t rows, int64_t cols, int64_t *bytes, Error *err);

/* Overwrites out (ggml_bytes of it) with x [rows, cols]. importance [cols], 0 to 1e12, or NULL; not read for F32, F16, BF16, Q8_0. Refused,
 * by row: NaN and Inf, and values that the type cannot hold (a scale, or an F16 or BF16 value, that would round to Inf).
 * out is 2-byte aligned and must not overlap x. pool may be NULL. */
Status ggml_quantize(uint32_t type, const float *x, int64_t rows, int64_t cols, const float *importance, void *out, Pool *pool,
                     Error *err);
/* Overwrites x [rows, cols]. data is 2-byte aligned (4 for F32). Any bytes decode; scales of Inf and NaN give what they give. */
Status ggml_dequantize(uint32_t type, const void *data, int64_t rows, int64_t cols, float *x, Pool *pool, Error *err);
/* The first of `count` blocks (elements of types without blocks) in which a scale (or the value) is Inf or NaN; -1: none. Of all
 * other blocks every value is finite. */
int64_t ggml_find_nonfinite(uint32_t type, const void *data, int64_t count);

#endif
