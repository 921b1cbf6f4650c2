/* What ggml.c and the quantizers of its types share. Not for other folders' use. */
#ifndef NIBBLE_QUANT_GGML_INTERNAL_H
#define NIBBLE_QUANT_GGML_INTERNAL_H

#include <stdint.h>
#include <string.h>

#include "quant/ggml.h"

/* One row: cols is a multiple of the type's block; importance is NULL or [cols]. Values are finite. */
typedef void GgmlQuantizeRow(const float *x, int64_t cols, const float *importance, void *out);

GgmlQuantizeRow ggml_quantize_q4_0, ggml_quantize_q4_1, ggml_quantize_q5_0, ggml_quantize_q5_1, ggml_quantize_q8_0;
GgmlQuantizeRow ggml_quantize_q2_k, ggml_quantize_q3_k, ggml_quantize_q4_k, ggml_quantize_q5_k, ggml_quantize_q6_k;

/* One row back, of any type that ggml_dequantize takes. */
void ggml_dequantize_row(uint32_t type, const void *data, int64_t cols, float *x);

/* Nearest integer, ties to even, of |value| < 2^22, by the sum with 1.5 * 2^23. Beyond that (and for Inf and NaN, which the
 * searches produce from denormal blocks) it gives the low bits of that sum, as the reference does. */
static inline int ggml_nearest(float value) {
    float sum = value + 12582912.0f;
    uint32_t bits;
    memcpy(&bits, &sum, sizeof bits);
    return (int)(bits & 0x007FFFFFu) - 0x00400000;
}

static inline int ggml_clamp(int value, int low, int high) {
    return value < low ? low : value > high ? high : value;
}

/* ---- searches for codes and the scale that goes with them ------------------------------------------------------------------ */

/* Many sub-blocks at a time (ggml_lanes.c): n values (16 or 32) of each of `lanes` sub-blocks, element i of sub-block k at [i][k];
 * codes [lanes, n]. */
#define GGML_LANES 8
#define GGML_SEARCH_MAX 32

/* x [lanes, n] to out [n]; lanes beyond repeat the first. */
void ggml_lanes_spread(int n, int lanes, const float *x, float (*out)[GGML_LANES]);

/* x ~ scale * (code - levels), code in [0, 2 * levels): tries 19 scales around -levels / (the value of largest magnitude) and
 * keeps the one that explains most. weights NULL: x^2. Scale and all codes are 0 where |x| < 1e-15. */
void ggml_search_signed(int n, int lanes, int levels, const float (*x)[GGML_LANES], const float (*weights)[GGML_LANES],
                        uint8_t *codes, float *scales);

typedef struct GgmlMinSearch {
    int levels;        /* the largest code */
    float first, step; /* trials: (first + step * i + levels) / (max - min), i = 0 ... steps */
    int steps;
    int is_absolute; /* the error is |difference|, not its square */
} GgmlMinSearch;

/* x ~ scale * code - min, code in [0, levels], min >= 0. */
void ggml_search_min(const GgmlMinSearch *search, int n, int lanes, const float (*x)[GGML_LANES],
                     const float (*weights)[GGML_LANES], uint8_t *codes, float *scales, float *mins);

/* codes[i] = clamp(nearest((x[i] + shift) / d), low, high) + offset; n a multiple of 4. */
void ggml_codes(int n, const float *x, float shift, float d, int low, int high, int offset, uint8_t *codes);

/* One group at a time (ggml_search.c), n <= 32. The form of ggml_search_signed with weights x^2, improved one code at a time: at most
 * five rounds. */
float ggml_search_signed_descent(int n, int levels, const float *x, uint8_t *codes);

/* x ~ scale * code for x >= 0, code in [0, levels]: the scales and mins of a super-block. */
float ggml_search_positive(int n, int levels, const float *x, const float *weights, uint8_t *codes);

#endif
