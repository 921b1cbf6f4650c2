/* What this machine's units reach at their best, for the fraction in the training line. */
#ifndef NIBBLE_TRAIN_CEILING_H
#define NIBBLE_TRAIN_CEILING_H

#include "core/memory.h"
#include "kernels/ops.h"

/* FLOP/s of the best of several short runs of a cache-friendly dense product in the precision of exec (BF16 or
 * FP32; FP32 for F64) on all its threads (about 0.1 s), or of
 * what earlier runs on this processor kept (train/ceiling_store.h); NaN when it cannot be measured. */
double ceiling_gemm(const Backend *backend, const Exec *exec);
/* The same of three runs in this moment, for what is measured beside it; nothing is kept. */
double ceiling_now(const Backend *backend, const Exec *exec);

/* A buffer many times the size of the last cache (512 MiB to 2 GiB, an eighth of the memory left at most), for the next. */
Status ceiling_memory(Arena *buffer, Error *err);
/* Bytes/s of reading all of it once, cut among the pool's threads. */
double ceiling_read(Pool *pool, const Arena *buffer);

#endif
