/* GPTQ (Frantar et al. 2022): columns are quantized one after another, and what rounding one of them spoils in the layer's output
 * is made good in those that are still to come.
 *
 *   H = 2 sum x x^T over the calibration's inputs x            (the factor 2 cancels everywhere)
 *   dead columns, H_ii = 0: weight 0, H_ii = 1
 *   act-order: columns by descending H_ii, equal ones as they stand
 *   H += damping * mean(diag H) * I;   U upper, H^-1 = U^T U
 *   for column i: w_i -> q_i;   e = (w_i - q_i) / U_ii;   w_j -= e U_ij for j > i
 *
 * in blocks of at most 128 columns whose errors reach the columns beyond together. A group's scale comes from the weights as they
 * stand when its first column's turn comes; with static groups from the weights as they were given. Rows do not depend on each
 * other: they are spread over the pool, and the number of threads changes no bit.
 *
 * Memory: a factor takes 12 cols^2 bytes while it is made and 4 cols^2 afterwards.
 */
#ifndef NIBBLE_QUANT_GPTQ_H
#define NIBBLE_QUANT_GPTQ_H

#include "core/error.h"
#include "core/pool.h"
#include "quant/clip.h"
#include "quant/group_int.h"

typedef struct GptqFactor {
    int64_t cols, dead;
    float *u;      /* [cols, cols], upper; in the order of perm */
    int32_t *perm; /* [cols]: the column that comes i-th; NULL: as they stand */
    uint8_t *is_dead;
} GptqFactor;

/* hessian [cols, cols]: sum of x x^T (any positive multiple); only the diagonal and one side of it is read. 0 < damping <= 1. */
Status gptq_factor(GptqFactor *factor, const float *hessian, int64_t cols, double damping, int act_order, Pool *pool,
                   Error *err);
void gptq_factor_free(GptqFactor *factor);

typedef struct GptqOptions {
    Clip clip; /* how a group's range is found */
    int static_groups;
} GptqOptions;

/* w [rows, cols] of `tensor`, which group_int_alloc made: fills in codes, scales, zeros, and g_idx where columns were ordered and
 * groups are not static. Names a row whose values are not finite, or do not fit the scales' type. */
Status gptq_quantize(const GptqFactor *factor, const GptqOptions *options, const float *w, GroupIntTensor *tensor, Pool *pool,
                     Error *err);

#endif
