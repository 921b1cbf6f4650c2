/* The head's two ways: through chunks of logits (head.c), or without logits in memory (head_flash.c). */
#ifndef NIBBLE_KERNELS_CPU_SIMD_HEAD_H
#define NIBBLE_KERNELS_CPU_SIMD_HEAD_H

#include "kernels/cpu/simd/entries.h"
#include "kernels/cpu/simd/gemm.h"

#if GEMM_PAIRS
#define head_flash_takes SIMD_SYMBOL(head_flash_takes)
#define head_flash_plan SIMD_SYMBOL(head_flash_plan)
#define head_flash_loss SIMD_SYMBOL(head_flash_loss)

/* Whether head_loss of this shape goes without logits: a frozen head without a teacher, in a BF16 run. */
int head_flash_takes(const ExecConfig *config, const HeadShape *shape);
Status head_flash_plan(const ExecConfig *config, const HeadShape *shape, OpPlan *plan, Error *err);
/* As head_loss; the rows of dx (NULL: no gradient) without loss are the caller's. */
Status head_flash_loss(const Exec *exec, const HeadShape *shape, const Batch *batch, const void *x, const WeightView *weight,
                       double *loss_sum, float *nll, void *dx, void *workspace, Error *err);
#endif

#endif
