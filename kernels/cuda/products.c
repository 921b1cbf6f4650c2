/* cuBLAS reads matrices by columns, so a row-major C = A B is computed as its transpose, C^T = B^T A^T. */
#include "kernels/cuda/context.h"

static Status gemm(CudaContext *context, const Product *p, cublasOperation_t first, int64_t ld_first, cublasOperation_t second,
                   int64_t ld_second, Error *err) {
    const float one = 1.0f;
    cudaDataType in = p->in == DTYPE_BF16 ? CUDA_R_16BF : CUDA_R_32F, out = p->out == DTYPE_BF16 ? CUDA_R_16BF : CUDA_R_32F;
    if (p->m == 0 || p->n == 0) return OK;
    cublasStatus_t code = cublasGemmEx(context->blas, first, second, (int)p->n, (int)p->m, (int)p->k, &one, p->b, in,
                                       (int)ld_first, p->a, in, (int)ld_second, &p->beta, p->c, out,
                                       (int)(p->ldc > 0 ? p->ldc : p->n), CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
    return code == CUBLAS_STATUS_SUCCESS ? OK : cublas_failure(context, "cublasGemmEx", code, err);
}

Status product_nt(CudaContext *context, const Product *p, Error *err) {
    return gemm(context, p, CUBLAS_OP_T, p->k, CUBLAS_OP_N, p->lda, err);
}

Status product_nn(CudaContext *context, const Product *p, Error *err) {
    return gemm(context, p, CUBLAS_OP_N, p->n, CUBLAS_OP_N, p->lda, err);
}

Status product_tn(CudaContext *context, const Product *p, Error *err) {
    return gemm(context, p, CUBLAS_OP_N, p->n, CUBLAS_OP_T, p->lda, err);
}
