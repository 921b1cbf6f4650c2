/* Quantized weights made dense on a stream of their own, while the product before theirs runs.
 *
 *   stream   ... | product i ----------------- | ... wait ready(i+1) | product i+1 ---------------- |
 *                | begun                                             | begun
 *   side           wait begun | dequantize i+1 | ready(i+1)            wait begun | dequantize i+2 | ...
 *
 * The memory is the tape's: free from `begun` on, and only product i+1 reads it. Both waits are events, so a capture of the stream
 * takes the side stream along; before a capture begins or is replayed, everything is waited for (graph.c).
 */
#include "kernels/cuda/context.h"

Status cuda_stage_open(CudaContext *context, Error *err) {
    int least, greatest;
    CUDA_TRY(context, cudaDeviceGetStreamPriorityRange(&least, &greatest));
    /* its blocks go before those that a large product has still to start, or they would all come after it */
    CUDA_TRY(context, cudaStreamCreateWithPriority(&context->side, cudaStreamNonBlocking, greatest));
    CUDA_TRY(context, cudaEventCreateWithFlags(&context->begun, cudaEventDisableTiming));
    for (int i = 0; i < STAGES_MAX; i++)
        CUDA_TRY(context, cudaEventCreateWithFlags(&context->stages[i].ready, cudaEventDisableTiming));
    return OK;
}

void cuda_stage_close(CudaContext *context) {
    if (context->side != NULL) (void)cudaStreamDestroy(context->side);
    if (context->begun != NULL) (void)cudaEventDestroy(context->begun);
    for (int i = 0; i < STAGES_MAX; i++)
        if (context->stages[i].ready != NULL) (void)cudaEventDestroy(context->stages[i].ready);
}

Status cuda_stage_wait(CudaContext *context, const void *memory, Error *err) {
    for (int i = 0; i < STAGES_MAX; i++) {
        CudaStage *stage = &context->stages[i];
        if (stage->memory == NULL || (memory != NULL && stage->memory != memory)) continue;
        stage->memory = NULL;
        CUDA_TRY(context, cudaStreamWaitEvent(context->stream, stage->ready, 0));
    }
    return OK;
}

Status cuda_stage_reset(CudaContext *context, Error *err) {
    int left = 0;
    for (int i = 0; i < STAGES_MAX; i++) {
        left |= context->stages[i].memory != NULL;
        context->stages[i].memory = NULL;
    }
    if (left) CUDA_TRY(context, cudaStreamSynchronize(context->side));
    return OK;
}

size_t cuda_dense_layout(DType act, const LinearShape *shape, size_t offsets[LINEAR_GROUP_MAX]) {
    size_t bytes = 0;
    for (int i = 0; i < shape->count; i++) {
        const LinearSpec *spec = &shape->linear[i];
        offsets[i] = 0;
        if (is_dense_as(spec->format, act)) continue;
        offsets[i] = bytes;
        bytes += (size_t)(spec->out * shape->in) * dtype_size(act);
    }
    return align_up(bytes);
}

Status cuda_make_dense(CudaContext *context, DType act, const LinearShape *shape, const LinearOperand *operands, void *memory,
                       cudaStream_t stream, Error *err) {
    size_t offsets[LINEAR_GROUP_MAX];
    (void)cuda_dense_layout(act, shape, offsets);
    for (int i = 0; i < shape->count; i++) {
        const WeightView *weight = &operands[i].weight;
        if (is_dense_as(weight->format, act)) continue;
        CUDA_TRY(context, cuda_dequantize(weight, 0, weight->rows * weight->cols, (uint8_t *)memory + offsets[i], act, stream));
    }
    return OK;
}

static Status stage(const Exec *exec, const LinearShape *shape, const LinearOperand *operands, void *memory, Error *err) {
    CudaContext *context = context_of(exec);
    CudaStage *slot = NULL;
    for (int i = 0; i < STAGES_MAX && slot == NULL; i++)
        if (context->stages[i].memory == NULL) slot = &context->stages[i];
    if (slot == NULL) FAIL("internal error: more than %d groups of weights are made ready at a time", STAGES_MAX);
    CUDA_TRY(context, cudaEventRecord(context->begun, context->stream));
    CUDA_TRY(context, cudaStreamWaitEvent(context->side, context->begun, 0));
    slot->memory = memory;
    TRY(cuda_make_dense(context, exec->config.act, shape, operands, memory, context->side, err));
    CUDA_TRY(context, cudaEventRecord(slot->ready, context->side));
    return OK;
}

static Status make_dense(const Exec *exec, const WeightView *weight, void *to, Error *err) {
    CudaContext *context = context_of(exec);
    CUDA_TRY(context, cuda_dequantize(weight, 0, weight->rows * weight->cols, to, exec->config.act, context->stream));
    return OK;
}

void cuda_install_stage(Backend *backend) {
    backend->make_dense = make_dense;
    backend->stage = stage;
}
