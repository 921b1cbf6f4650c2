/* The optimizer, the norm and the NaN watch. What they return to the host is waited for. */
#include <math.h>

#include "kernels/cuda/context.h"

/* These entries have no status: the next one that has reports what they ran into. */
static void keep_failure(CudaContext *context, const char *call, cudaError_t code) {
    if (code == cudaSuccess || context->failed != cudaSuccess) return;
    context->failed = code;
    context->failed_call = call;
}

static void adamw(const Exec *exec, int64_t count, float *master, float *m, float *v, const float *grad, void *copy,
                  const AdamStep *step) {
    CudaContext *context = context_of(exec);
    cudaError_t code = cuda_work(context);
    if (code == cudaSuccess) code = cuda_adamw(count, master, m, v, grad, copy, exec->config.act, step, NULL, context->stream);
    keep_failure(context, "cuda_adamw", code);
}

/* Device memory for the partial sums, as large as the largest set of parameters asked for. */
static cudaError_t grow_partials(CudaContext *context, int64_t wanted) {
    if (wanted <= context->partials_capacity) return cudaSuccess;
    (void)cudaFree(context->partials);
    context->partials = NULL;
    context->partials_capacity = 0;
    void *memory;
    cudaError_t code = cudaMalloc(&memory, (size_t)wanted * sizeof(double));
    if (code != cudaSuccess) return code;
    context->partials = memory;
    context->partials_capacity = wanted;
    return cudaSuccess;
}

static cudaError_t read_scalar(CudaContext *context, int which) {
    cudaError_t code = cudaMemcpyAsync(context->pinned + which, context->scalars + which, sizeof(uint64_t),
                                       cudaMemcpyDeviceToHost, context->stream);
    return code == cudaSuccess ? cuda_wait(context) : code;
}

/* NaN when the device failed: no step is taken with it. */
static double sum_squares(const Exec *exec, int64_t count, const float *x) {
    CudaContext *context = context_of(exec);
    double *sum = (double *)(void *)(context->scalars + SCALAR_SUM);
    cudaError_t code = cuda_work(context);
    if (code == cudaSuccess) code = grow_partials(context, cuda_sum_squares_partials(count));
    if (code == cudaSuccess) code = cuda_sum_squares(count, x, context->partials, sum, context->stream);
    if (code == cudaSuccess) code = read_scalar(context, SCALAR_SUM);
    keep_failure(context, "cuda_sum_squares", code);
    return code == cudaSuccess ? *(double *)(void *)(context->pinned + SCALAR_SUM) : (double)NAN;
}

/* 0 when the device failed, so that somebody looks. */
static int64_t find_nonfinite(const Exec *exec, const void *activation, int64_t rows, int64_t columns) {
    CudaContext *context = context_of(exec);
    uint64_t *there = context->scalars + SCALAR_NONFINITE;
    cudaError_t code = cudaMemsetAsync(there, 0xFF, sizeof *there, context->stream);
    if (code == cudaSuccess) code = cuda_find_nonfinite(exec->config.act, rows * columns, activation, there, context->stream);
    if (code == cudaSuccess) code = read_scalar(context, SCALAR_NONFINITE);
    keep_failure(context, "cuda_find_nonfinite", code);
    if (code != cudaSuccess) return 0;
    uint64_t first = context->pinned[SCALAR_NONFINITE];
    return first == CUDA_ALL_FINITE ? -1 : (int64_t)first;
}

void cuda_install_flat(Backend *backend) {
    backend->adamw = adamw;
    backend->sum_squares = sum_squares;
    backend->find_nonfinite = find_nonfinite;
    backend->variant.adamw = "cuda";
}
