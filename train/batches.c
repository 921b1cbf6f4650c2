#include "train/batches.h"

#include <string.h>

size_t batch_buffer_bytes(int64_t capacity) {
    size_t n = (size_t)capacity;
    return arena_align((n + 1) * sizeof(int64_t)) + 4 * arena_align(n * sizeof(int32_t)) + arena_align(n * sizeof(uint64_t));
}

Status batch_buffer_take(BatchBuffer *buffer, Arena *arena, int64_t capacity, Error *err) {
    size_t n = (size_t)capacity;
    void *area[6];
    size_t bytes[6] = {(n + 1) * sizeof(int64_t), n * sizeof(int32_t), n * sizeof(int32_t),
                       n * sizeof(int32_t),       n * sizeof(int32_t), n * sizeof(uint64_t)};
    for (int i = 0; i < 6; i++) {
        TRY(arena_take(arena, bytes[i], &area[i], err));
        memset(area[i], 0, bytes[i]); /* touched now: no page faults in the first step */
    }
    *buffer = (BatchBuffer){area[0], area[1], area[2], area[3], area[4], area[5]};
    return OK;
}

Status batch_fill(Batch *batch, BatchBuffer *buffer, const Dataset *dataset, const int64_t *sequences, int64_t count,
                  uint64_t sample_base, Error *err) {
    int64_t row = 0, supervised = 0;
    for (int64_t s = 0; s < count; s++) {
        int64_t length = dataset->start[sequences[s] + 1] - dataset->start[sequences[s]];
        const int32_t *ids;
        const uint8_t *train;
        TRY(dataset_sequence(dataset, sequences[s], &ids, &train, err));
        buffer->starts[s] = row;
        for (int64_t t = 0; t < length; t++, row++) {
            buffer->ids[row] = ids[t];
            buffer->positions[row] = (int32_t)t;
            buffer->samples[row] = sample_base + (uint64_t)sequences[s];
            if (t + 1 < length && train[t + 1]) { /* row t predicts token t + 1 */
                buffer->rows[supervised] = (int32_t)row;
                buffer->targets[supervised++] = ids[t + 1];
            }
        }
    }
    buffer->starts[count] = row;
    batch->tokens = row;
    batch->sequences = count;
    batch->starts = buffer->starts;
    batch->ids = buffer->ids;
    batch->positions = buffer->positions;
    batch->samples = buffer->samples;
    batch->supervised = supervised;
    batch->rows = buffer->rows;
    batch->targets = buffer->targets;
    return OK;
}

int64_t batch_supervised(const Dataset *dataset, const int64_t *sequences, int64_t count) {
    int64_t supervised = 0;
    for (int64_t s = 0; s < count; s++)
        supervised += dataset_sequence_trained(dataset, sequences[s]);
    return supervised;
}

static Status open_epoch(BatchStream *stream, int64_t epoch, Error *err) {
    PackPlan *plan;
    TRY(pack_epoch(&plan, stream->dataset, stream->packing, stream->window, stream->seed, epoch, stream->shuffle, err));
    pack_free(stream->plan);
    stream->plan = plan;
    stream->epoch = epoch;
    return OK;
}

Status batch_stream_open(BatchStream *stream, const Dataset *dataset, Packing packing, int64_t window, uint64_t seed,
                         int shuffle, Error *err) {
    *stream = (BatchStream){.dataset = dataset, .packing = packing, .window = window, .seed = seed, .shuffle = shuffle};
    return open_epoch(stream, 0, err);
}

void batch_stream_close(BatchStream *stream) {
    pack_free(stream->plan);
    memset(stream, 0, sizeof *stream);
}

Status batch_stream_get(BatchStream *stream, int64_t m, const int64_t **sequences, int64_t *count, int64_t *epoch, Error *err) {
    if (m < stream->first) FAIL("micro-batch %lld lies before the current epoch", (long long)m);
    while (m - stream->first >= pack_count(stream->plan)) {
        int64_t next = stream->first + pack_count(stream->plan);
        TRY(open_epoch(stream, stream->epoch + 1, err));
        stream->first = next;
    }
    pack_get(stream->plan, m - stream->first, sequences, count);
    *epoch = stream->epoch;
    return OK;
}

Status batch_stream_total(const BatchStream *stream, double epochs, int64_t *total, Error *err) {
    BatchStream walk = {.dataset = stream->dataset,
                        .packing = stream->packing,
                        .window = stream->window,
                        .seed = stream->seed,
                        .shuffle = stream->shuffle};
    *total = 0;
    for (int64_t epoch = 0; (double)epoch < epochs; epoch++) {
        Status status = open_epoch(&walk, epoch, err);
        if (status != OK) {
            batch_stream_close(&walk);
            return status;
        }
        int64_t count = pack_count(walk.plan);
        double share = epochs - (double)epoch; /* of this epoch */
        *total += share >= 1.0 ? count : (int64_t)(share * (double)count);
    }
    batch_stream_close(&walk);
    if (*total < 1) *total = 1;
    return OK;
}
