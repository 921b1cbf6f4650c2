// Add + RMSNorm, forward and backward. A block is a row, which stays in registers between the sum and the result: every
// value is read once and written once.
#include "kernels/cuda/columns.cuh"

// KEEP vectors of a thread: two, whose loads wait for each other once, or four where a row is wider than a block takes so.
enum { FEW = 2, MANY = 4 };

// Vectors need registers, so their blocks are narrower.
constexpr int threads_max(int n) {
    return n == VEC ? 512 : 1024;
}

template <class T, int N, int KEEP, bool ADD>
__global__ void __launch_bounds__(threads_max(N))
    norm_forward(const DeviceBatch *__restrict__ batch, int64_t hidden, float epsilon, const T *residual, const T *x,
                 const T *__restrict__ weight, T *sum, T *y, float *__restrict__ rstd) {
    CU_SHARED(float, parts, [32]);
    int64_t t = blockIdx.x, row = t * hidden;
    if (t >= batch->tokens) return;
    float r[KEEP][N], squares = 0.0f;
#pragma unroll
    for (int k = 0; k < KEEP; k++) {
        int64_t c = ((int64_t)k * blockDim.x + threadIdx.x) * N;
        if (c >= hidden) break;
        load_n<N>(residual + row + c, r[k]);
        if (ADD) {
            float more[N];
            load_n<N>(x + row + c, more);
#pragma unroll
            for (int i = 0; i < N; i++)
                r[k][i] = round_to<T>(r[k][i] + more[i]);
            store_n<N>(sum + row + c, r[k]);
        }
#pragma unroll
        for (int i = 0; i < N; i++)
            squares += r[k][i] * r[k][i];
    }
    float root = 1.0f / sqrtf(block_sum(squares, parts) / (float)hidden + epsilon);
    if (threadIdx.x == 0) rstd[t] = root;
#pragma unroll
    for (int k = 0; k < KEEP; k++) {
        int64_t c = ((int64_t)k * blockDim.x + threadIdx.x) * N;
        if (c >= hidden) break;
        float w[N];
        load_n<N>(weight + c, w);
#pragma unroll
        for (int i = 0; i < N; i++)
            w[i] *= round_to<T>(r[k][i] * root);
        store_n<N>(y + row + c, w);
    }
}

template <class T, int N, int KEEP>
__global__ void __launch_bounds__(threads_max(N))
    norm_backward(const DeviceBatch *__restrict__ batch, int64_t hidden, const T *__restrict__ sum,
                  const T *__restrict__ weight, const float *__restrict__ rstd, const T *dy, const T *d_sum, T *d_residual) {
    CU_SHARED(float, parts, [32]);
    int64_t t = blockIdx.x, row = t * hidden;
    if (t >= batch->tokens) return;
    float n[KEEP][N], dn[KEEP][N], root = rstd[t], dot = 0.0f;
#pragma unroll
    for (int k = 0; k < KEEP; k++) {
        int64_t c = ((int64_t)k * blockDim.x + threadIdx.x) * N;
        if (c >= hidden) break;
        float w[N];
        load_n<N>(sum + row + c, n[k]);
        load_n<N>(dy + row + c, dn[k]);
        load_n<N>(weight + c, w);
#pragma unroll
        for (int i = 0; i < N; i++) {
            n[k][i] *= root;
            dn[k][i] *= w[i];
            dot += n[k][i] * dn[k][i];
        }
    }
    float mean = block_sum(dot, parts) / (float)hidden;
#pragma unroll
    for (int k = 0; k < KEEP; k++) {
        int64_t c = ((int64_t)k * blockDim.x + threadIdx.x) * N;
        if (c >= hidden) break;
        float out[N] = {};
        if (d_sum != NULL) load_n<N>(d_sum + row + c, out);
#pragma unroll
        for (int i = 0; i < N; i++)
            out[i] += root * (dn[k][i] - n[k][i] * mean);
        store_n<N>(d_residual + row + c, out);
    }
}

template <class T>
struct WeightGrad {
    const T *sum, *dy;
    const float *rstd;
    int64_t hidden;
    __device__ float operator()(int64_t t, int64_t c) const {
        int64_t i = t * hidden + c;
        return to_float(dy[i]) * round_to<T>(to_float(sum[i]) * rstd[t]);
    }
};

// Threads of a row that keep it whole, or 0 when it is too wide.
static unsigned threads_of(int64_t hidden, int n, int keep) {
    int64_t threads = divide_up(divide_up(hidden, (int64_t)n * keep), 32) * 32;
    return threads <= threads_max(n) ? (unsigned)threads : 0;
}

// How a row is cut.
struct Cut {
    unsigned threads;  // 0: it is too wide
    bool vectors, few;
};
static Cut cut_of(int64_t hidden, bool vectors) {
    unsigned few = vectors ? threads_of(hidden, VEC, FEW) : 0;
    return {few > 0 ? few : threads_of(hidden, vectors ? VEC : 1, MANY), vectors, few > 0};
}

extern "C" cudaError_t cuda_norm_forward(DType act, const DeviceBatch *batch, const NormShape *shape, const void *residual,
                                         const void *x, const void *weight, void *sum, void *y, float *rstd,
                                         cudaStream_t stream) {
    int64_t hidden = shape->hidden;
    Cut cut = cut_of(hidden, hidden % VEC == 0 && all_aligned(residual, x, weight, sum, y));
    if (shape->rows < 0 || shape->rows > GRID_MAX || hidden < 1 || cut.threads == 0) return cudaErrorInvalidValue;
    if (shape->rows == 0) return cudaSuccess;
#define FORWARD(N, KEEP)                 \
    do {                                 \
        if (x != NULL)                   \
            FORWARD_ADD(N, KEEP, true);  \
        else                             \
            FORWARD_ADD(N, KEEP, false); \
    } while (0)
#define FORWARD_ADD(N, KEEP, ADD)                                                                            \
    CU_LAUNCH((norm_forward<T, N, KEEP, ADD>), (unsigned)shape->rows, cut.threads, 0, stream, batch, hidden, \
              (float)shape->epsilon, (const T *)residual, (const T *)x, (const T *)weight, (T *)sum, (T *)y, rstd)
    WITH_ACT(act, {
        if (!cut.vectors)
            FORWARD(1, MANY);
        else if (cut.few)
            FORWARD(VEC, FEW);
        else
            FORWARD(VEC, MANY);
    });
    return cudaGetLastError();
}

extern "C" cudaError_t cuda_norm_backward(DType act, const DeviceBatch *batch, const NormShape *shape, const void *sum,
                                          const void *weight, const float *rstd, const void *dy, const void *d_sum,
                                          void *d_residual, cudaStream_t stream) {
    int64_t hidden = shape->hidden;
    Cut cut = cut_of(hidden, hidden % VEC == 0 && all_aligned(sum, weight, dy, d_sum, d_residual));
    if (shape->rows < 0 || shape->rows > GRID_MAX || hidden < 1 || cut.threads == 0) return cudaErrorInvalidValue;
    if (shape->rows == 0) return cudaSuccess;
#define BACKWARD(N, KEEP)                                                                                                \
    CU_LAUNCH((norm_backward<T, N, KEEP>), (unsigned)shape->rows, cut.threads, 0, stream, batch, hidden, (const T *)sum, \
              (const T *)weight, rstd, (const T *)dy, (const T *)d_sum, (T *)d_residual)
    WITH_ACT(act, {
        if (!cut.vectors)
            BACKWARD(1, MANY);
        else if (cut.few)
            BACKWARD(VEC, FEW);
        else
            BACKWARD(VEC, MANY);
    });
    return cudaGetLastError();
}

extern "C" cudaError_t cuda_norm_weight_grad(DType act, const DeviceBatch *batch, const NormShape *shape, const void *sum,
                                             const float *rstd, const void *dy, float *d_weight, cudaStream_t stream) {
    WITH_ACT(act, {
        WeightGrad<T> value = {(const T *)sum, (const T *)dy, rstd, shape->hidden};
        return launch_column_sums(value, batch, shape->hidden, d_weight, stream);
    });
}
