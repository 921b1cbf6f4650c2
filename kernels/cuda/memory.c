/* Device memory for arenas, and copies. */
#include "kernels/cuda/context.h"

static Status memory_take(const Exec *exec, const char *what, size_t bytes, void **out, Error *err) {
    CudaContext *context = context_of(exec);
    cudaError_t code = cudaMalloc(out, bytes);
    if (code == cudaSuccess) return OK;
    (void)cudaGetLastError();
    size_t left = 0, total = 0;
    (void)cudaMemGetInfo(&left, &total);
    FAIL("device %d (%s): %s: %zu bytes do not fit, %zu of %zu are free (%s); a smaller train.micro_batch_tokens needs less",
         context->index, context->name, what, bytes, left, total, cudaGetErrorName(code));
}

static void memory_give(const Exec *exec, void *memory) {
    (void)exec;
    (void)cudaFree(memory);
}

static Status memory_left(const Exec *exec, size_t *left, size_t *total, Error *err) {
    CUDA_TRY(context_of(exec), cudaMemGetInfo(left, total));
    return OK;
}

static Status copy(const Exec *exec, void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, Error *err) {
    CudaContext *context = context_of(exec);
    TRY(cuda_failed(context, err));
    if (bytes == 0) return OK;
    CUDA_TRY(context, cudaMemcpyAsync(to, from, bytes, kind, context->stream));
    CUDA_TRY(context, cudaStreamSynchronize(context->stream));
    return OK;
}

static Status copy_in(const Exec *exec, void *to, const void *from, size_t bytes, Error *err) {
    return copy(exec, to, from, bytes, cudaMemcpyHostToDevice, err);
}

static Status copy_out(const Exec *exec, void *to, const void *from, size_t bytes, Error *err) {
    return copy(exec, to, from, bytes, cudaMemcpyDeviceToHost, err);
}

static Status fill(const Exec *exec, void *to, int byte, size_t bytes, Error *err) {
    CudaContext *context = context_of(exec);
    TRY(cuda_failed(context, err));
    if (bytes > 0) CUDA_TRY(context, cudaMemsetAsync(to, byte, bytes, context->stream));
    return OK;
}

static Status random_bytes(const Exec *exec, void *to, size_t bytes, uint64_t seed, Error *err) {
    CudaContext *context = context_of(exec);
    CUDA_TRY(context, cuda_random_bytes(to, (int64_t)bytes, seed, context->stream));
    return OK;
}

static Status copy_within(const Exec *exec, void *to, const void *from, size_t bytes, Error *err) {
    CudaContext *context = context_of(exec);
    CUDA_TRY(context, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, context->stream));
    return OK;
}

static size_t activation_bytes(DType act, int64_t rows, int64_t columns) {
    return (size_t)(rows * columns) * dtype_size(act);
}

void cuda_install_memory(Backend *backend) {
    backend->memory_take = memory_take;
    backend->memory_give = memory_give;
    backend->memory_left = memory_left;
    backend->copy_in = copy_in;
    backend->copy_out = copy_out;
    backend->fill = fill;
    backend->copy_within = copy_within;
    backend->random_bytes = random_bytes;
    backend->activation_bytes = activation_bytes;
}
