/* How long the device waits for the host: an event at the end of what the host waits for, one at the start of what it gives next.
 *
 *   stream   ... last work | from |   nothing   | to | next work ...
 */
#include "kernels/cuda/context.h"

cudaError_t cuda_wait(CudaContext *context) {
    int last = context->idle_pair, next = !last;
    cudaError_t code = cudaSuccess;
    if (context->idle_events[0][0] == NULL)
        for (int i = 0; i < 4 && code == cudaSuccess; i++)
            code = cudaEventCreate(&context->idle_events[i / 2][i % 2]);
    if (code == cudaSuccess) code = cudaEventRecord(context->idle_events[next][0], context->stream);
    if (code == cudaSuccess) code = cudaStreamSynchronize(context->stream);
    float ms = 0.0f;
    if (code == cudaSuccess && context->idle_whole)
        code = cudaEventElapsedTime(&ms, context->idle_events[last][0], context->idle_events[last][1]);
    context->idle_seconds += (double)ms / 1e3;
    context->idle_pair = next;
    context->idle_whole = 0;
    context->idle_waits = code == cudaSuccess;
    return code;
}

cudaError_t cuda_work(CudaContext *context) {
    if (!context->idle_waits) return cudaSuccess;
    context->idle_waits = 0;
    context->idle_whole = 1;
    return cudaEventRecord(context->idle_events[context->idle_pair][1], context->stream);
}

static double idle_seconds(const Exec *exec) {
    return context_of(exec)->idle_seconds;
}

void cuda_idle_free(CudaContext *context) {
    for (int i = 0; i < 4; i++)
        if (context->idle_events[i / 2][i % 2] != NULL) (void)cudaEventDestroy(context->idle_events[i / 2][i % 2]);
}

void cuda_install_idle(Backend *backend) {
    backend->idle_seconds = idle_seconds;
}
