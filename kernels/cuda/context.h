/* One opened device and what its entries share. Private to the plugins. */
#ifndef NIBBLE_KERNELS_CUDA_CONTEXT_H
#define NIBBLE_KERNELS_CUDA_CONTEXT_H

#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include "kernels/cuda/launch.h"
#include "kernels/ops.h"

/* One part of a tape, recorded (graph.c). */
typedef struct CudaGraph {
    const void *key[PART_KEYS];
    int part;
    int seen; /* times it was asked for; 0: this entry is free */
    cudaGraphExec_t exec;
    int64_t id_limit, position_limit; /* what a replay checks on the host, as the entries do */
} CudaGraph;
#define GRAPHS_MAX 12

/* A group's weights on their way to being dense (stage.c). */
typedef struct CudaStage {
    const void *memory; /* NULL: nothing, or the main stream waits for it already */
    cudaEvent_t ready;
} CudaStage;
#define STAGES_MAX 2

/* A value on its way to host memory or back (stash.c). */
typedef struct CudaCopy {
    const void *memory; /* on the device; NULL: nothing, or the main stream waits for it already */
    cudaEvent_t done;
} CudaCopy;
#define COPIES_MAX 2

/* Weights being loaded (load.c). */
#define LOAD_SLOTS_MAX 8
typedef struct CudaLoad {
    LoadPlan plan;
    uint8_t *slots;   /* device: [plan.slots, plan.slot_bytes] */
    float *constants; /* device: FP32 constants of the nested weight at hand */
    float *offsets;   /* device: [plan.weights] */
    uint64_t *bad;    /* device: [plan.weights] */
    float *tables;    /* pinned: NF4's and FP4's 16 values, the nested map */
    cudaEvent_t done[LOAD_SLOTS_MAX];
} CudaLoad;

typedef struct CudaContext {
    int index;
    char name[96];
    int capability;      /* 90: 9.0 */
    cudaStream_t stream; /* everything of a run, in order, but for what goes ahead */
    cudaStream_t side;   /* weights made dense ahead of their products */
    cudaEvent_t begun;   /* on `stream`: what side, or copies, waits for */
    CudaStage stages[STAGES_MAX];
    cudaStream_t copies; /* values that leave the device and come back */
    CudaCopy copying[COPIES_MAX];
    cublasHandle_t blas;
    void *blas_workspace;
    /* results on their way to the host */
    uint64_t *scalars;         /* device, SCALARS of 8 bytes */
    uint64_t *pinned;          /* the same for the host to read */
    double *partials;          /* scratch of the norm, grown to the largest set of parameters before the first step */
    int64_t partials_capacity; /* doubles */
    /* when the device ran out of work and got some again, twice: one pair is read while the other is written */
    cudaEvent_t idle_events[2][2];
    int idle_pair, idle_waits; /* idle_waits: nothing was given since the last wait */
    int idle_whole;            /* the pair has both */
    double idle_seconds;
    /* the micro-batch under way */
    const DeviceBatch *batch;
    const Batch *host_batch;
    double *loss_there; /* device */
    float *nll_there;   /* device, [supervised capacity] */
    double *loss_sum;   /* the caller's; NULL: no loss was computed since begin */
    float *nll;
    int64_t nll_count;
    int64_t capacity;                 /* rows that begin was told */
    int whole;                        /* products take all rows of the capacity, so that their shapes never change */
    int64_t id_limit, position_limit; /* what the embedding and RoPE of this micro-batch took; 0: neither has run */
    CudaGraph graphs[GRAPHS_MAX], *capturing;
    CudaLoad load;
    cudaError_t failed; /* in an entry without a status */
    const char *failed_call;
    int fakes; /* weights are fake-quantized: SCALAR_FAULT is to be looked at */
    /* pinned copy of the micro-batch; grown when a larger capacity comes */
    uint8_t *staging;
    size_t staging_bytes;
} CudaContext;

/* SCALAR_FAULT: where fake quantization met a value that its grid cannot hold; CUDA_ALL_FINITE: nowhere. */
enum { SCALAR_SUM, SCALAR_NONFINITE, SCALAR_FAULT, SCALARS = 8 };

static inline CudaContext *context_of(const Exec *exec) {
    return exec->device;
}

/* The host waits for all that the stream has; the entry after it says that there is work again (idle.c). */
cudaError_t cuda_wait(CudaContext *context);
cudaError_t cuda_work(CudaContext *context);
void cuda_idle_free(CudaContext *context);
void cuda_install_idle(Backend *backend);

/* A message with the call, the device and CUDA's own words. */
Status cuda_failure(const CudaContext *context, const char *call, cudaError_t code, Error *err);
Status cublas_failure(const CudaContext *context, const char *call, cublasStatus_t code, Error *err);

/* What an entry without a status ran into, which the next one that has a status says; and forgets it. */
Status cuda_failed(CudaContext *context, Error *err);
/* Frees pinned memory; NULL is nothing, which CUDA's documentation says of device memory alone. */
static inline void cuda_give_pinned(void *memory) {
    if (memory != NULL) (void)cudaFreeHost(memory);
}

#define CUDA_TRY(context, call)                                                                \
    do {                                                                                       \
        cudaError_t cuda_code_ = (call);                                                       \
        if (cuda_code_ != cudaSuccess) return cuda_failure((context), #call, cuda_code_, err); \
    } while (0)

/* What each file installs. */
void cuda_install_memory(Backend *backend);
void cuda_install_batch(Backend *backend);
void cuda_install_linear(Backend *backend);
void cuda_install_stage(Backend *backend);
void cuda_install_stash(Backend *backend);
void cuda_install_load(Backend *backend);
void cuda_install_head(Backend *backend);
void cuda_install_fake_weight(Backend *backend);
/* After a wait: what SCALAR_FAULT, copied to pinned memory before it, says; and forgets it. */
Status cuda_fake_weight_fault(CudaContext *context, uint64_t fault, Error *err);
void cuda_install_layers(Backend *backend);
void cuda_install_flat(Backend *backend);
void cuda_install_graphs(Backend *backend);
void cuda_graphs_free(CudaContext *context);
/* Weights ahead of their products (stage.c). */
Status cuda_stage_open(CudaContext *context, Error *err);
void cuda_stage_close(CudaContext *context);
/* The stream waits for the weights in `memory`, or (NULL) for all that are under way. Once is enough. */
Status cuda_stage_wait(CudaContext *context, const void *memory, Error *err);
/* Forgets what a run that failed has left. */
Status cuda_stage_reset(CudaContext *context, Error *err);
/* Values in host memory (stash.c). */
Status cuda_stash_open(CudaContext *context, Error *err);
void cuda_stash_close(CudaContext *context);
Status cuda_stash_reset(CudaContext *context, Error *err);
/* Members' dense weights side by side, those that are not dense already: offsets (0 for others), and the bytes of all. */
size_t cuda_dense_layout(DType act, const LinearShape *shape, size_t offsets[LINEAR_GROUP_MAX]);
/* Fills that in order of `stream`. */
Status cuda_make_dense(CudaContext *context, DType act, const LinearShape *shape, const LinearOperand *operands, void *memory,
                       cudaStream_t stream, Error *err);
/* Rows of a product. */
static inline int64_t rows_of(const CudaContext *context, const Batch *batch, int64_t capacity) {
    return context->whole ? capacity : batch->tokens;
}
/* ids and positions below their limits (0: not checked). */
Status cuda_check_rows(const Batch *batch, int64_t ids, int64_t positions, Error *err);

/* Shared checks of plans. */
Status cuda_check_act(const char *op, const ExecConfig *config, Error *err);
Status cuda_check_format(const char *op, WeightFormat format, Error *err);
/* A dimension that cuBLAS and grids take. */
Status cuda_check_size(const char *op, const char *what, int64_t value, Error *err);
/* Whether a product can read the weight as it lies. */
static inline int is_dense_as(WeightFormat format, DType act) {
    return format == (act == DTYPE_BF16 ? WEIGHT_BF16 : WEIGHT_F32);
}
static inline size_t align_up(size_t bytes) {
    return (bytes + 255u) & ~(size_t)255u;
}

/* Products of row-major matrices through cuBLAS, FP32 inside; beta 0 (C is not read) or 1.
 * product_nt   C [m, n] = A [m, k] B [n, k]^T       y = x W^T
 * product_nn   C [m, n] = A [m, k] B [k, n]         dx = dy W
 * product_tn   C [m, n] = A [k, m]^T B [k, n]       dW = dy^T x
 * lda, ldc: elements from row to row of A, of C (0: n). */
typedef struct Product {
    int64_t m, n, k;
    const void *a, *b;
    int64_t lda, ldc;
    void *c;
    DType in, out;
    float beta;
} Product;
Status product_nt(CudaContext *context, const Product *product, Error *err);
Status product_nn(CudaContext *context, const Product *product, Error *err);
Status product_tn(CudaContext *context, const Product *product, Error *err);

#endif
