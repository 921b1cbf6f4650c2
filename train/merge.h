/* A base model with adapters added in: W' = W + sum_i w_i s_i B_i A_i, row by row in FP32, never a whole weight.
 *
 *   files -> base rows (dense, or decoded from 4 or 8 bits) -> + adapters -> the caller rounds once
 *
 * A DoRA adapter, which is merged alone, gives W' = (m / n) (W + s B A) with n the norm of each row of the bracket (Liu et
 * al. 2024; PEFT's lora/dora.py). The base is what the folder holds (ORIGINAL), or what a quantized run has seen: every
 * linear quantized as `requantize` says and decoded again. A pre-quantized folder is decoded in any case.
 *
 * Memory: the adapters in FP32, slabs of MERGE_SLAB_BYTES, and, where the base is quantized, the one weight at hand in that
 * format. Rows are spread over the pool; the number of threads changes no bit.
 */
#ifndef NIBBLE_TRAIN_MERGE_H
#define NIBBLE_TRAIN_MERGE_H

#include <stdint.h>

#include "core/error.h"
#include "core/pool.h"
#include "data/hf_config.h"
#include "data/safetensors.h"
#include "kernels/ops.h"
#include "quant/quantize.h"

#define MERGE_MAX_ADAPTERS 16
#define MERGE_SLAB_BYTES ((size_t)8 << 20) /* of FP32 rows; at least one row */

typedef struct MergeOptions {
    const char *model;
    const char *adapters[MERGE_MAX_ADAPTERS]; /* PEFT folders */
    double weights[MERGE_MAX_ADAPTERS];
    int count; /* 0: the base alone */
    int requantize;
    QuantSpec spec; /* where requantize */
} MergeOptions;

typedef struct Merge Merge;

/* Checks the folder and every adapter (shapes, presence, finite values). backend and pool are borrowed. */
Status merge_open(Merge **out, const MergeOptions *options, const Backend *backend, Pool *pool, Error *err);
void merge_close(Merge *merge); /* NULL is fine */

const ModelConfig *merge_model(const Merge *merge);
const TensorFiles *merge_files(const Merge *merge);
int merge_has_dora(const Merge *merge);

typedef struct MergeWeight {
    int present;
    int64_t rows, cols;     /* vectors: [1, n] */
    const TensorInfo *file; /* its own tensor; packed codes where quantized */
    int decoded;            /* the base's rows come out of a quantized format */
    int folder_quantized;   /* and the file itself is quantized (4 or 8 bits) */
    int adapted;            /* some adapter changes it */
    QuantSpec spec;         /* where decoded from 4 bits or requantized */
} MergeWeight;
/* id: a weight's number (train/weights.h). */
MergeWeight merge_weight(const Merge *merge, int32_t id);
/* The weight whose own tensor this is; -1 for none. */
int32_t merge_weight_of(const Merge *merge, const TensorInfo *tensor);

/* Makes one weight the one at hand: loads it, or quantizes it, where its base is quantized. */
Status merge_begin(Merge *merge, int32_t id, Error *err);
int64_t merge_slab_rows(const Merge *merge, int32_t id);
/* Rows [first, first + count), count at most a slab's, of the weight at hand, FP32 row-major: the base's into `base`, with the
 * adapters into `merged` (NULL: not wanted). */
Status merge_rows(Merge *merge, int64_t first, int64_t count, float *base, float *merged, Error *err);
/* The weight at hand, with or without adapters, into storage that quantized_take gave. Where nothing is added and the base is
 * quantized the same way already, its codes and constants are copied: no value passes through floats. */
Status merge_quantize(Merge *merge, int with_adapters, QuantizedTensor *tensor, Error *err);

#endif
