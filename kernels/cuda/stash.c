/* Values on their way to pinned host memory and back, on a stream of their own.
 *
 *   stream   ... | makes a | what reads a ... | wait done(a) | what writes over a ...
 *   copies         wait begun | a to the host | done(a)        wait begun | b from the host | done(b) ...
 *
 * One stream for both ways: what comes back has left before. Both waits are events, so a capture of the stream takes the copies
 * along.
 */
#include "kernels/cuda/context.h"

Status cuda_stash_open(CudaContext *context, Error *err) {
    CUDA_TRY(context, cudaStreamCreateWithFlags(&context->copies, cudaStreamNonBlocking));
    for (int i = 0; i < COPIES_MAX; i++)
        CUDA_TRY(context, cudaEventCreateWithFlags(&context->copying[i].done, cudaEventDisableTiming));
    return OK;
}

void cuda_stash_close(CudaContext *context) {
    if (context->copies != NULL) (void)cudaStreamDestroy(context->copies);
    for (int i = 0; i < COPIES_MAX; i++)
        if (context->copying[i].done != NULL) (void)cudaEventDestroy(context->copying[i].done);
}

Status cuda_stash_reset(CudaContext *context, Error *err) {
    int left = 0;
    for (int i = 0; i < COPIES_MAX; i++) {
        left |= context->copying[i].memory != NULL;
        context->copying[i].memory = NULL;
    }
    if (left) CUDA_TRY(context, cudaStreamSynchronize(context->copies));
    return OK;
}

static Status start(CudaContext *context, void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, Error *err) {
    CudaCopy *copy = NULL;
    for (int i = 0; i < COPIES_MAX && copy == NULL; i++)
        if (context->copying[i].memory == NULL) copy = &context->copying[i];
    if (copy == NULL) FAIL("internal error: more than %d values are on their way to host memory or back", COPIES_MAX);
    CUDA_TRY(context, cudaEventRecord(context->begun, context->stream));
    CUDA_TRY(context, cudaStreamWaitEvent(context->copies, context->begun, 0));
    copy->memory = kind == cudaMemcpyDeviceToHost ? from : to;
    CUDA_TRY(context, cudaMemcpyAsync(to, from, bytes, kind, context->copies));
    CUDA_TRY(context, cudaEventRecord(copy->done, context->copies));
    return OK;
}

static Status stash(const Exec *exec, void *host, const void *from, size_t bytes, Error *err) {
    return start(context_of(exec), host, from, bytes, cudaMemcpyDeviceToHost, err);
}

static Status fetch(const Exec *exec, void *to, const void *host, size_t bytes, Error *err) {
    return start(context_of(exec), to, host, bytes, cudaMemcpyHostToDevice, err);
}

static Status settle(const Exec *exec, const void *memory, Error *err) {
    CudaContext *context = context_of(exec);
    for (int i = 0; i < COPIES_MAX; i++) {
        if (context->copying[i].memory != memory) continue;
        context->copying[i].memory = NULL;
        CUDA_TRY(context, cudaStreamWaitEvent(context->stream, context->copying[i].done, 0));
        return OK;
    }
    FAIL("internal error: nothing was copied from or to what is waited for");
}

void cuda_install_stash(Backend *backend) {
    backend->stash = stash;
    backend->fetch = fetch;
    backend->settle = settle;
}
