/* What this machine's units reach at their best, for the fraction in the training line. */
#ifndef NIBBLE_TRAIN_CEILING_H
#define NIBBLE_TRAIN_CEILING_H

#include "kernels/ops.h"

/* FLOP/s of the best of several short runs of a cache-friendly dense product in the precision of exec (BF16 or
 * FP32; FP32 for F64) on all its threads (about 0.1 s), or of
 * what earlier runs on this processor kept (train/ceiling_store.h); NaN when it cannot be measured. */
double ceiling_gemm(const Backend *backend, const Exec *exec);

#endif
