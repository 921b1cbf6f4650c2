/* Ranges of integer groups that are narrower than from the least value to the greatest: what lies outside is cut, the rest gets
 * finer steps.
 *
 *   CLIP_MSE         of the ranges (1 - i / CLIP_GRID) (lo, hi), i = 0 ... CLIP_STEPS - 1, the one with the least sum of
 *                    importance (x - Q(x))^2; the widest of equals (as GPTQ's quantizer searches, with its exponent 2.4 made 2)
 *   CLIP_PERCENTILE  symmetric: the percentile of |x|; else the percentiles of x from both ends. Linear between order
 *                    statistics, as numpy.percentile
 *
 * Source: Frantar et al. 2022 (GPTQ), its code's Quantizer.find_params (AutoGPTQ at 9f7d3707, quantization/quantizer.py).
 */
#ifndef NIBBLE_QUANT_CLIP_H
#define NIBBLE_QUANT_CLIP_H

#include "quant/group_int.h"

#define CLIP_GRID 100
#define CLIP_STEPS 80
#define CLIP_USUAL_PERCENTILE 99.0

typedef enum ClipMethod { CLIP_NONE, CLIP_MSE, CLIP_PERCENTILE } ClipMethod;

typedef struct Clip {
    ClipMethod method;
    double percentile; /* PERCENTILE: above 50, at most 100 */
} Clip;

/* Scale and zero of one group. importance [count] (MSE; NULL: all alike). scratch [count] (PERCENTILE; may be NULL otherwise). */
void clip_scale(const Clip *clip, const GroupInt *grid, const float *x, int64_t count, const float *importance, float *scale,
                uint8_t *zero, float *scratch);
/* group_int_quantize_row with such ranges. importance [cols] or NULL; scratch [cols]. */
int clip_quantize_row(const Clip *clip, GroupIntTensor *tensor, int64_t row, const float *x, const float *importance,
                      float *scratch);

#endif
