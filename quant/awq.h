/* AWQ (Lin et al. 2023): input columns that carry large activations are multiplied before rounding, and whatever makes those
 * activations is divided by the same.
 *
 *   s_c = max(mean |x_c|^alpha, 1e-4), divided by sqrt(max s * min s);   alpha = 0, 1/20 ... 19/20
 *   kept: the alpha with the least error of the outputs, sum over inputs of |(Q(W s) / s - W) x|^2, the least alpha of equals
 *
 * Linears that read the same input share s. The errors are taken from H = sum of x x^T (output_error.h), so no input is run again.
 * Afterwards each group's range may be cut (Q and K excepted, as their products are sensitive to it):
 *
 *   (1 - i / 20) (lo, hi), i = 0 ... 9: the one with the least d H_gg d^T over the group's own columns; the widest of equals
 *
 * Source: Lin et al. 2023; AutoAWQ at 88e4c76b, awq/quantize/quantizer.py (its grids; the paper's s without the weights' share).
 */
#ifndef NIBBLE_QUANT_AWQ_H
#define NIBBLE_QUANT_AWQ_H

#include "quant/group_int.h"
#include "quant/output_error.h"

#define AWQ_STEPS 20
#define AWQ_CLIP_GRID 20
#define AWQ_CLIP_STEPS 10
#define AWQ_MEMBERS 3

/* Linears with one input. */
typedef struct AwqGroup {
    int count;
    struct {
        float *w; /* [rows, cols] */
        int64_t rows;
    } linear[AWQ_MEMBERS];
    int64_t cols;
    float *hessian;     /* [cols, cols], whole, aligned to 64 bytes */
    float *mean_inputs; /* [cols]: mean of |x| */
} AwqGroup;

typedef struct AwqFound {
    double alpha;
    double error, plain; /* squared error of the outputs with s, and with all s = 1 */
} AwqFound;

/* Overwrites s [cols]. Every weight must be finite; a range that scale_type cannot hold counts as an infinite error. */
Status awq_search(const GroupInt *grid, const AwqGroup *group, OutputError *error, float *s, AwqFound *found, Error *err);
/* Columns of every weight times s; hessian and mean_inputs as of inputs divided by s. */
void awq_scale_columns(const AwqGroup *group, const float *s, Pool *pool);

/* Codes of w [rows, cols], with or without the search for clipped ranges, into a tensor that group_int_alloc made. hessian as above,
 * belonging to w as it is. Names a row whose values do not fit. */
Status awq_quantize(const float *w, const float *hessian, int clips, GroupIntTensor *tensor, Pool *pool, Error *err);

#endif
