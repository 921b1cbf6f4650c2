/* How the linear group lays out `saved` and its workspaces: shared by plan, forward and backward. */
#ifndef NIBBLE_KERNELS_CPU_REF_LINEAR_H
#define NIBBLE_KERNELS_CPU_REF_LINEAR_H

#include "kernels/cpu/ref/ref.h"

typedef struct LinearLayout {
    size_t s[LINEAR_GROUP_MAX];                /* in saved: s_i, act [rows, R_i] */
    size_t ds[LINEAR_GROUP_MAX];               /* in the backward workspace: ds_i, double [rows, R_i] */
    size_t scratch;                            /* in the backward workspace; forward's scratch starts at 0 */
    int64_t forward_doubles, backward_doubles; /* scratch of one worker */
    OpPlan plan;
} LinearLayout;

Status ref_linear_layout(const ExecConfig *config, const LinearShape *shape, LinearLayout *layout, Error *err);

/* What the items of one member of the group need. */
typedef struct LinearWork {
    DType act;
    const LinearShape *shape;
    const LinearLayout *layout;
    const Batch *batch;
    const void *x;
    const LinearOperand *operands;
    const void *const *dy;
    const LinearGrad *grads;
    const void *saved_read;
    void *const *y;
    void *saved, *workspace, *dx;
    int member;
} LinearWork;

/* out[c] = dropout_i(x)[t, first + c] for the member in hand. */
void ref_linear_dropped(const LinearWork *work, int64_t t, int64_t first, int64_t count, double *out);
/* values[c] *= mask[t, first + c] / (1 - p); first is a multiple of 4, the features of one random block */
void ref_linear_mask(const LinearWork *work, int64_t t, int64_t first, int64_t count, double *values);
Status ref_linear_check(const Exec *exec, const LinearShape *shape, const Batch *batch, const LinearOperand *operands,
                        Error *err);
Status ref_linear_backward(const Exec *exec, const LinearShape *shape, const Batch *batch, const void *x,
                           const LinearOperand *operands, const void *saved, const void *const *dy, void *dx,
                           const LinearGrad *grads, void *workspace, Error *err);

#endif
