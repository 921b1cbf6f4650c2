/* The few cuBLAS calls that nibble makes, on the CPU. Compiled against NVIDIA's own cublas_v2.h, so that signatures cannot
 * drift; linked in place of libcublas. Work goes through the emulated streams, so their order, and capture, hold for it too. */
#include "tests/cuda_emu/runtime.h"

#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

struct cublasContext {
    cudaStream_t stream;
    void *workspace; /* the caller's; null: it would be cuBLAS's own, which a capture would allocate */
};
extern "C" int cuda_emu_device_range(const void *p, size_t n, int write);

static size_t width(cudaDataType t) {
    return t == CUDA_R_32F ? 4 : t == CUDA_R_16BF ? 2 : 0;
}
static float get(const void *p, size_t i, cudaDataType t) {
    if (t == CUDA_R_32F) return ((const float *)p)[i];
    uint32_t u = (uint32_t)((const uint16_t *)p)[i] << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static void put(void *p, size_t i, cudaDataType t, float f) {
    if (t == CUDA_R_32F) {
        ((float *)p)[i] = f;
        return;
    }
    uint32_t u;
    memcpy(&u, &f, 4);
    ((uint16_t *)p)[i] = std::isnan(f) ? 0x7fff : (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

struct Job {
    bool ta, tb;
    int m, n, k, lda, ldb, ldc;
    float alpha, beta;
    const void *a, *b;
    void *c;
    cudaDataType at, bt, ct;
};
/* Column-major C = alpha*op(A)*op(B) + beta*C; op(A) is packed row by row and op(B) column by column. */
static void run(const Job *j) {
    std::vector<float> row((size_t)j->m * (size_t)j->k), acc((size_t)j->m);
    float *A = row.data(), *S = acc.data(); /* A[k][m] */
    for (int l = 0; l < j->k; l++)
        for (int i = 0; i < j->m; i++)
            A[(size_t)l * (size_t)j->m + (size_t)i] =
                get(j->a, j->ta ? (size_t)i * (size_t)j->lda + (size_t)l : (size_t)l * (size_t)j->lda + (size_t)i, j->at);
    for (int n = 0; n < j->n; n++) {
        memset(S, 0, (size_t)j->m * 4);
        for (int l = 0; l < j->k; l++) {
            float v = get(j->b, j->tb ? (size_t)l * (size_t)j->ldb + (size_t)n : (size_t)n * (size_t)j->ldb + (size_t)l, j->bt);
            const float *r = A + (size_t)l * (size_t)j->m;
            for (int i = 0; i < j->m; i++)
                S[i] += r[i] * v;
        }
        for (int i = 0; i < j->m; i++) {
            size_t o = (size_t)n * (size_t)j->ldc + (size_t)i;
            put(j->c, o, j->ct,
                j->alpha * S[i] + (j->beta != 0 ? j->beta * get(j->c, o, j->ct) : 0.0f)); /* beta 0 must not read C */
        }
    }
    for (int n = 0; n < j->n; n++)
        cuda_emu_device_range((char *)j->c + (size_t)n * (size_t)j->ldc * width(j->ct), (size_t)j->m * width(j->ct), 1);
}
static bool matrix_ok(const void *p, cudaDataType t, int rows, int cols, int ld) {
    if (ld < (rows > 1 ? rows : 1)) return false;
    if (!rows || !cols) return true;
    return cuda_emu_device_range(p, ((size_t)(cols - 1) * (size_t)ld + (size_t)rows) * width(t), 0);
}

extern "C" {
cublasStatus_t cublasCreate_v2(cublasHandle_t *h) {
    *h = new cublasContext{nullptr, nullptr};
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasDestroy_v2(cublasHandle_t h) {
    delete h;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetStream_v2(cublasHandle_t h, cudaStream_t s) {
    h->stream = s;
    h->workspace = nullptr; /* as cuBLAS does, whatever the stream */
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t h, void *workspace, size_t bytes) {
    if ((uintptr_t)workspace % 256 != 0 || !cuda_emu_device_range(workspace, bytes, 0)) return CUBLAS_STATUS_INVALID_VALUE;
    h->workspace = workspace;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetMathMode(cublasHandle_t, cublasMath_t) {
    return CUBLAS_STATUS_SUCCESS;
}
const char *cublasGetStatusName(cublasStatus_t s) {
    return s ? "CUBLAS_STATUS_ERROR" : "CUBLAS_STATUS_SUCCESS";
}

cublasStatus_t cublasGemmEx(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k,
                            const void *alpha, const void *A, cudaDataType at, int lda, const void *B, cudaDataType bt, int ldb,
                            const void *beta, void *C, cudaDataType ct, int ldc, cublasComputeType_t comp, cublasGemmAlgo_t) {
    bool t1 = ta != CUBLAS_OP_N, t2 = tb != CUBLAS_OP_N;
    if (m < 0 || n < 0 || k < 0) return CUBLAS_STATUS_INVALID_VALUE;
    if (emu::is_captured(h->stream) && !h->workspace) {
        fprintf(stderr, "cublas stub: a product is captured without a workspace of the caller's\n");
        return CUBLAS_STATUS_ALLOC_FAILED;
    }
    if (!width(at) || at != bt || !width(ct) || comp != CUBLAS_COMPUTE_32F)
        return CUBLAS_STATUS_NOT_SUPPORTED; /* only what is used */
    if (!matrix_ok(A, at, t1 ? k : m, t1 ? m : k, lda) || !matrix_ok(B, bt, t2 ? n : k, t2 ? k : n, ldb) ||
        !matrix_ok(C, ct, m, n, ldc)) {
        fprintf(stderr,
                "cublas stub: matrix outside its allocation, or a leading dimension too small (m %d n %d k %d lda %d ldb %d "
                "ldc %d)\n",
                m, n, k, lda, ldb, ldc);
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    Job job{t1, t2, m, n, k, lda, ldb, ldc, *(const float *)alpha, *(const float *)beta, A, B, C, at, bt, ct};
    emu::submit(h->stream, [job] {
        emu::Open open;
        emu::count("cublas product", 1);
        run(&job);
    });
    return CUBLAS_STATUS_SUCCESS;
}
}
