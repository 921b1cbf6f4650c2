/* Micro-batches in the order of the run.
 *
 * Micro-batch m of the run is number m - first(e) of the packed epoch e. Sample ids, which dropout masks depend on, are
 * epoch * sequences + sequence: never a slot in a batch. Optimizer step s (from 0) is made of micro-batches
 * s * accumulation … ; only the last step of a run by epochs may have fewer.
 */
#ifndef NIBBLE_TRAIN_BATCHES_H
#define NIBBLE_TRAIN_BATCHES_H

#include <stdint.h>

#include "core/error.h"
#include "core/memory.h"
#include "data/dataset.h"
#include "data/packing.h"
#include "kernels/ops.h"

typedef struct BatchBuffer { /* the arrays of one Batch, of fixed capacity */
    int64_t *starts;
    int32_t *ids, *positions, *rows, *targets;
    uint64_t *samples;
} BatchBuffer;
size_t batch_buffer_bytes(int64_t capacity);
Status batch_buffer_take(BatchBuffer *buffer, Arena *arena, int64_t capacity, Error *err);

/* Fills buffer and *batch with these sequences of the dataset, one after another. sample_base is added to sequence numbers. */
Status batch_fill(Batch *batch, BatchBuffer *buffer, const Dataset *dataset, const int64_t *sequences, int64_t count,
                  uint64_t sample_base, Error *err);

typedef struct BatchStream {
    const Dataset *dataset;
    Packing packing;
    int64_t window;
    uint64_t seed;
    int shuffle;
    PackPlan *plan; /* of the current epoch */
    int64_t epoch;
    int64_t first; /* number in the run of the epoch's first micro-batch */
} BatchStream;
Status batch_stream_open(BatchStream *stream, const Dataset *dataset, Packing packing, int64_t window, uint64_t seed,
                         int shuffle, Error *err);
void batch_stream_close(BatchStream *stream);
/* The sequences of micro-batch m of the run, m not before the current epoch (borrowed until the next call), and its epoch. */
Status batch_stream_get(BatchStream *stream, int64_t m, const int64_t **sequences, int64_t *count, int64_t *epoch, Error *err);
/* Micro-batches in the first `epochs` epochs (a fraction of the last one is rounded down, but at least one in all). */
Status batch_stream_total(const BatchStream *stream, double epochs, int64_t *total, Error *err);
/* Supervised tokens of a list of sequences. */
int64_t batch_supervised(const Dataset *dataset, const int64_t *sequences, int64_t count);

#endif
