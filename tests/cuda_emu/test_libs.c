/* The stand-ins for cuBLAS and NCCL, through the libraries' own C interfaces. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>
#include <cublas_v2.h>
#include <cuda_runtime_api.h>
#if EMU_NCCL
#include <nccl.h>
#endif

#include "core/dtype.h"
#include "core/memory.h"

static void *on_device(const void *host, size_t bytes) {
    void *device = NULL;
    if (cudaMalloc(&device, bytes) || cudaMemcpy(device, host, bytes, cudaMemcpyHostToDevice)) return NULL;
    return device;
}

/* Row-major y [T, O] = x [T, I] w [O, I]^T, as a linear layer wants it, through column-major cuBLAS. */
static cublasStatus_t linear(cublasHandle_t handle, const void *x, const void *w, float *y, int T, int I, int O, int lda) {
    const float one = 1, zero = 0;
    return cublasGemmEx(handle, CUBLAS_OP_T, CUBLAS_OP_N, O, T, I, &one, w, CUDA_R_16BF, lda, x, CUDA_R_16BF, I, &zero, y,
                        CUDA_R_32F, O, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
}

static void check_product(const bf16 *x, const bf16 *w, const float *y, int T, int I, int O) {
    for (int t = 0; t < T; t++)
        for (int o = 0; o < O; o++) {
            double want = 0;
            for (int i = 0; i < I; i++)
                want += (double)bf16_to_float(x[t * I + i]) * bf16_to_float(w[o * I + i]);
            /* FP32 sums of at most 48 exact products below 1 */
            assert_true(fabs(want - y[t * O + o]) <= 1e-4);
        }
}

static void product(void **state) {
    (void)state;
    enum { T = 64, I = 48, O = 96 };
    bf16 *x = memory_alloc(T * I * sizeof *x), *w = memory_alloc(O * I * sizeof *w);
    float *y = memory_calloc(T * O, sizeof *y);
    for (int i = 0; i < T * I; i++)
        x[i] = bf16_from_float((float)(i * 37 % 101) / 50 - 1);
    for (int i = 0; i < O * I; i++)
        w[i] = bf16_from_float((float)(i * 53 % 103) / 51 - 1);
    void *dx = on_device(x, T * I * sizeof *x), *dw = on_device(w, O * I * sizeof *w);
    float *dy = on_device(y, T * O * sizeof *y);
    assert_true(dx && dw && dy);
    cublasHandle_t handle;
    cudaStream_t stream;
    assert_int_equal(cudaStreamCreate(&stream), cudaSuccess);
    assert_int_equal(cublasCreate(&handle), CUBLAS_STATUS_SUCCESS);
    assert_int_equal(cublasSetStream(handle, stream), CUBLAS_STATUS_SUCCESS);
    assert_int_equal(linear(handle, dx, dw, dy, T, I, O, I), CUBLAS_STATUS_SUCCESS);
    assert_int_equal(cudaStreamSynchronize(stream), cudaSuccess);
    assert_int_equal(cudaMemcpy(y, dy, T * O * sizeof *y, cudaMemcpyDeviceToHost), cudaSuccess);
    check_product(x, w, y, T, I, O);
    assert_int_equal(linear(handle, dx, dw, dy, T, I, O, I - 1), CUBLAS_STATUS_INVALID_VALUE);
    if (strcmp(EMU_VARIANT, "gpu") != 0) /* one row more than the memory of y has, which cuBLAS would write */
        assert_int_equal(linear(handle, dx, dw, dy, T + 1, I, O, I), CUBLAS_STATUS_INVALID_VALUE);
    assert_int_equal(cublasDestroy(handle), CUBLAS_STATUS_SUCCESS);
    assert_int_equal(cudaStreamDestroy(stream), cudaSuccess);
    (void)cudaFree(dx), (void)cudaFree(dw), (void)cudaFree(dy);
    memory_free(x), memory_free(w), memory_free(y);
}

#if EMU_NCCL
enum { RANKS = 3, COUNT = 300000, NOTICED = 7 };

static int rank_main(int rank, ncclUniqueId id, int mismatch) {
    ncclComm_t comm;
    cudaStream_t stream;
    if (ncclCommInitRank(&comm, RANKS, id, rank) || cudaStreamCreate(&stream)) return 1;
    float *host = memory_alloc(COUNT * sizeof *host);
    for (int i = 0; i < COUNT; i++)
        host[i] = (float)(rank + 1) * (float)(i % 7);
    float *device = on_device(host, COUNT * sizeof *host);
    size_t count = mismatch && rank ? COUNT - 1 : COUNT;
    ncclResult_t called = ncclAllReduce(device, device, count, ncclFloat32, ncclSum, comm, stream), later = ncclSuccess;
    (void)cudaStreamSynchronize(stream);
    (void)ncclCommGetAsyncError(comm, &later);
    if (called || later) return NOTICED;
    if (cudaMemcpy(host, device, COUNT * sizeof *host, cudaMemcpyDeviceToHost)) return 3;
    for (int i = 0; i < COUNT; i++)
        if (!(host[i] == (float)(RANKS * (RANKS + 1) / 2) * (float)(i % 7))) return 2;
    (void)ncclCommDestroy(comm);
    return 0;
}

static void all_reduce(int mismatch, int wanted) {
    ncclUniqueId id;
    assert_int_equal(ncclGetUniqueId(&id), ncclSuccess);
    pid_t child[RANKS];
    for (int rank = 0; rank < RANKS; rank++) {
        child[rank] = fork();
        assert_true(child[rank] >= 0);
        if (child[rank] == 0) _exit(rank_main(rank, id, mismatch));
    }
    for (int rank = 0; rank < RANKS; rank++) {
        int status = 0;
        assert_int_equal(waitpid(child[rank], &status, 0), child[rank]);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), wanted);
    }
}
static void three_ranks_agree(void **state) {
    (void)state;
    all_reduce(0, 0);
}
static void a_wrong_count_is_noticed_on_every_rank(void **state) {
    (void)state;
    all_reduce(1, NOTICED);
}
#endif

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(product),
#if EMU_NCCL
        cmocka_unit_test(three_ranks_agree),
        cmocka_unit_test(a_wrong_count_is_noticed_on_every_rank),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
