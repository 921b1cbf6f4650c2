/* The micro-batch on the device, and its loss on the way back.
 *
 *   | DeviceBatch | loss | starts | samples | ids | positions | rows | targets |  nll  |
 *   '---------------- one copy, from a pinned twin ----------------------------'
 */
#include <string.h>

#include "kernels/cuda/context.h"

typedef struct BatchLayout {
    size_t loss, starts, samples, ids, positions, rows, targets, nll, bytes;
} BatchLayout;

static size_t put(size_t *end, int64_t count, size_t size) {
    size_t at = *end;
    *end = (at + (size_t)count * size + 15u) & ~(size_t)15u;
    return at;
}

static BatchLayout layout_of(int64_t rows, int64_t supervised) {
    size_t end = 0;
    BatchLayout layout;
    (void)put(&end, 1, sizeof(DeviceBatch));
    layout.loss = put(&end, 1, sizeof(double));
    layout.starts = put(&end, rows + 1, sizeof(int64_t));
    layout.samples = put(&end, rows, sizeof(uint64_t));
    layout.ids = put(&end, rows, sizeof(int32_t));
    layout.positions = put(&end, rows, sizeof(int32_t));
    layout.rows = put(&end, supervised, sizeof(int32_t));
    layout.targets = put(&end, supervised, sizeof(int32_t));
    layout.nll = put(&end, supervised, sizeof(float));
    layout.bytes = align_up(end);
    return layout;
}

static size_t batch_bytes(int64_t rows, int64_t supervised) {
    return layout_of(rows, supervised).bytes;
}

static void place(uint8_t *staging, size_t at, const void *from, int64_t count, size_t size) {
    if (from != NULL && count > 0) memcpy(staging + at, from, (size_t)count * size);
}

static Status grow_staging(CudaContext *context, size_t bytes, Error *err) {
    if (bytes <= context->staging_bytes) return OK;
    if (context->staging != NULL) CUDA_TRY(context, cudaFreeHost(context->staging));
    context->staging = NULL;
    context->staging_bytes = 0;
    void *memory;
    CUDA_TRY(context, cudaMallocHost(&memory, bytes));
    context->staging = memory;
    context->staging_bytes = bytes;
    memset(memory, 0, bytes);
    return OK;
}

Status cuda_check_rows(const Batch *batch, int64_t ids, int64_t positions, Error *err) {
    for (int64_t t = 0; t < batch->tokens; t++) {
        if (ids > 0 && (batch->ids[t] < 0 || batch->ids[t] >= ids))
            FAIL("embedding: token %lld: want an id from 0 to %lld, got %d; does the tokenizer belong to this model?",
                 (long long)t, (long long)ids - 1, batch->ids[t]);
        if (positions > 0 && (batch->positions[t] < 0 || batch->positions[t] >= positions))
            FAIL("rope: row %lld: want a position from 0 to %lld, got %d", (long long)t, (long long)positions - 1,
                 batch->positions[t]);
    }
    return OK;
}

static Status begin(const Exec *exec, const Batch *batch, int64_t rows, int64_t supervised, int64_t past, int whole,
                    void *memory, Error *err) {
    CudaContext *context = context_of(exec);
    BatchLayout layout = layout_of(rows, supervised);
    uint8_t *there = memory;
    context->whole = whole;
    context->capacity = rows;
    context->host_batch = batch;
    context->id_limit = context->position_limit = 0;
    TRY(cuda_failed(context, err));
    TRY(grow_staging(context, layout.nll, err));
    TRY(cuda_stage_reset(context, err));
    TRY(cuda_stash_reset(context, err));
    CUDA_TRY(context, cudaStreamSynchronize(context->stream)); /* the pinned twin may still be read */
    DeviceBatch header = {.tokens = batch->tokens,
                          .sequences = batch->sequences,
                          .supervised = batch->supervised,
                          .past = past,
                          .seed = batch->seed,
                          .grad_scale = batch->grad_scale,
                          .dropout = batch->dropout,
                          .starts = (const int64_t *)(const void *)(there + layout.starts),
                          .ids = (const int32_t *)(const void *)(there + layout.ids),
                          .positions = (const int32_t *)(const void *)(there + layout.positions),
                          .samples = (const uint64_t *)(const void *)(there + layout.samples),
                          .rows = (const int32_t *)(const void *)(there + layout.rows),
                          .targets = (const int32_t *)(const void *)(there + layout.targets)};
    uint8_t *staging = context->staging;
    place(staging, 0, &header, 1, sizeof header);
    memset(staging + layout.loss, 0, sizeof(double));
    place(staging, layout.starts, batch->starts, batch->sequences + 1, sizeof *batch->starts);
    place(staging, layout.samples, batch->samples, batch->tokens, sizeof *batch->samples);
    place(staging, layout.ids, batch->ids, batch->tokens, sizeof *batch->ids);
    place(staging, layout.positions, batch->positions, batch->tokens, sizeof *batch->positions);
    place(staging, layout.rows, batch->rows, batch->supervised, sizeof *batch->rows);
    place(staging, layout.targets, batch->targets, batch->supervised, sizeof *batch->targets);
    CUDA_TRY(context, cuda_work(context));
    CUDA_TRY(context, cudaMemcpyAsync(there, staging, layout.nll, cudaMemcpyHostToDevice, context->stream));
    context->batch = memory;
    context->loss_there = (double *)(void *)(there + layout.loss);
    context->nll_there = (float *)(void *)(there + layout.nll);
    context->loss_sum = NULL;
    context->nll = NULL;
    return OK;
}

static Status finish(const Exec *exec, Error *err) {
    CudaContext *context = context_of(exec);
    double *loss_sum = context->loss_sum;
    context->loss_sum = NULL; /* once */
    TRY(cuda_failed(context, err));
    if (loss_sum != NULL)
        CUDA_TRY(context, cudaMemcpyAsync(context->pinned, context->loss_there, sizeof(double), cudaMemcpyDeviceToHost,
                                          context->stream));
    if (loss_sum != NULL && context->nll != NULL && context->nll_count > 0)
        CUDA_TRY(context, cudaMemcpyAsync(context->nll, context->nll_there, (size_t)context->nll_count * sizeof(float),
                                          cudaMemcpyDeviceToHost, context->stream));
    if (context->fakes)
        CUDA_TRY(context, cudaMemcpyAsync(&context->pinned[SCALAR_FAULT], &context->scalars[SCALAR_FAULT], sizeof(uint64_t),
                                          cudaMemcpyDeviceToHost, context->stream));
    CUDA_TRY(context, cuda_wait(context));
    if (context->fakes) TRY(cuda_fake_weight_fault(context, context->pinned[SCALAR_FAULT], err));
    if (loss_sum == NULL) return OK;
    double loss;
    memcpy(&loss, context->pinned, sizeof loss);
    *loss_sum += loss;
    return OK;
}

void cuda_install_batch(Backend *backend) {
    backend->batch_bytes = batch_bytes;
    backend->begin = begin;
    backend->finish = finish;
}
