// Head and loss around the products of a chunk: rows gathered, cross-entropy with its gradient in place, rows scattered.
#include "kernels/cuda/common.cuh"

enum { THREADS = 256 };
static const unsigned ROW_THREADS = 1024;

// Supervised rows that a chunk from `first` on has, in a DeviceBatch on the device.
__device__ __forceinline__ bool is_supervised(const DeviceBatch *batch, int64_t first, int64_t j) {
    return first + j < batch->supervised;
}

template <class T, int N>
__global__ void __launch_bounds__(THREADS) gather_rows(const DeviceBatch *__restrict__ batch, int64_t first, int64_t hidden,
                                                       const T *__restrict__ x, T *__restrict__ out) {
    int64_t j = blockIdx.x;
    bool live = is_supervised(batch, first, j);
    int64_t from = live ? batch->rows[first + j] * hidden : 0;
    for (int64_t c = (int64_t)threadIdx.x * N; c < hidden; c += THREADS * N) {
        float v[N] = {};
        if (live) load_n<N>(x + from + c, v);
        store_n<N>(out + j * hidden + c, v);
    }
}

template <class T, int N>
__global__ void __launch_bounds__(THREADS) scatter_rows(const DeviceBatch *__restrict__ batch, int64_t first, int64_t hidden,
                                                        const T *__restrict__ in, T *__restrict__ dx) {
    int64_t j = blockIdx.x;
    if (!is_supervised(batch, first, j)) return;
    int64_t to = batch->rows[first + j] * hidden;
    for (int64_t c = (int64_t)threadIdx.x * N; c < hidden; c += THREADS * N) {
        float v[N];
        load_n<N>(in + j * hidden + c, v);
        store_n<N>(dx + to + c, v);
    }
}

// Four logits a vector.
enum { QUAD = 4 };
template <int N>
__device__ __forceinline__ void load_logits(const float *z, float v[N]) {
    if constexpr (N == QUAD)
        load4(z, v);
    else
        v[0] = z[0];
}
template <int N, class T>
__device__ __forceinline__ void store_gradient(T *dz, const float v[N]) {
    if constexpr (N == QUAD)
        store4(dz, v);
    else
        dz[0] = from_float<T>(v[0]);
}

template <class T>
__device__ __forceinline__ float exponential(float x) {
    return sizeof(T) == 2 ? __expf(x) : expf(x);
}

// The largest logit of a row and the sum of exp(z - largest), in every thread: one pass over the row.
template <class T, int N>
__device__ __forceinline__ void row_statistics(const float *z, int64_t vocab, float *parts, float *largest, float *sum) {
    float most = -INFINITY, total = 0.0f;
    for (int64_t v = (int64_t)threadIdx.x * N; v < vocab; v += (int64_t)blockDim.x * N) {
        float a[N], peak = most;
        load_logits<N>(z + v, a);
#pragma unroll
        for (int i = 0; i < N; i++)
            peak = fmaxf(peak, a[i]);
        if (peak > most) total *= exponential<T>(most - peak), most = peak;
#pragma unroll
        for (int i = 0; i < N; i++)
            total += exponential<T>(a[i] - most);
    }
    float row_most = warp_max(most);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = row_most;
    __syncthreads();
    row_most = parts[0];
    for (unsigned w = 1; w < blockDim.x / 32; w++)
        row_most = fmaxf(row_most, parts[w]);
    *largest = row_most;
    *sum = block_sum(total == 0.0f ? 0.0f : total * exponential<T>(most - row_most), parts);  // NaN stays NaN
}

// A block is a row. A BF16 gradient takes half of its logits' place: what step s writes lies behind everything that steps
// up to s have read, so a barrier between the reads and the writes of a step is enough (the target's logit is read before).
template <class T, int N>
__global__ void __launch_bounds__(ROW_THREADS)
    cross_entropy(const DeviceBatch *__restrict__ batch, int64_t first, int64_t vocab, float *logits, float *__restrict__ nll,
                  int want_gradient) {
    CU_SHARED(float, parts, [32]);
    int64_t j = blockIdx.x;
    float *z = logits + j * vocab;
    T *dz = reinterpret_cast<T *>(z);
    bool live = is_supervised(batch, first, j);
    float log_sum = 0.0f, scale = batch->grad_scale;
    int64_t target = live ? batch->targets[first + j] : -1;
    if (live) {
        float largest, sum;
        row_statistics<T, N>(z, vocab, parts, &largest, &sum);
        log_sum = largest + logf(sum);
        if (threadIdx.x == 0) nll[first + j] = log_sum - z[target];
    }
    if (!want_gradient) return;
    int64_t step = (int64_t)blockDim.x * N;
    for (int64_t begin = 0; begin < vocab; begin += step) {
        int64_t v = begin + (int64_t)threadIdx.x * N;
        float a[N] = {};
        if (live && v < vocab) {
            load_logits<N>(z + v, a);
#pragma unroll
            for (int i = 0; i < N; i++)
                a[i] = scale * (exponential<T>(a[i] - log_sum) - (v + i == target ? 1.0f : 0.0f));
        }
        __syncthreads();
        if (v < vocab) store_gradient<N>(dz + v, a);
    }
}

// The same with a teacher's distribution q in the target's place: nll = sum q (log q - log p), gradient scale (p - q). One pass
// after the statistics does both; what a BF16 gradient overwrites lies behind what was read, as above.
template <class T, int N>
__global__ void __launch_bounds__(ROW_THREADS, 1)
    distillation(const DeviceBatch *__restrict__ batch, int64_t first, int64_t vocab, float *logits,
                 const float *__restrict__ teacher, float *__restrict__ nll, int want_gradient) {
    CU_SHARED(float, parts, [32]);
    int64_t j = blockIdx.x;
    float *z = logits + j * vocab;
    const float *t = teacher + j * vocab;
    T *dz = reinterpret_cast<T *>(z);
    bool live = is_supervised(batch, first, j);
    float log_sum = 0.0f, teacher_log_sum = 0.0f, divergence = 0.0f, scale = batch->grad_scale;
    if (live) {
        float largest, sum;
        row_statistics<T, N>(z, vocab, parts, &largest, &sum);
        log_sum = largest + logf(sum);
        __syncthreads();
        row_statistics<T, N>(t, vocab, parts, &largest, &sum);
        teacher_log_sum = largest + logf(sum);
    }
    int64_t step = (int64_t)blockDim.x * N;
    for (int64_t begin = 0; begin < vocab; begin += step) {
        int64_t v = begin + (int64_t)threadIdx.x * N;
        float a[N] = {}, b[N];
        if (live && v < vocab) {
            load_logits<N>(z + v, a);
            load_logits<N>(t + v, b);
#pragma unroll
            for (int i = 0; i < N; i++) {
                float q = exponential<T>(b[i] - teacher_log_sum);
                divergence += q * ((b[i] - teacher_log_sum) - (a[i] - log_sum));
                a[i] = scale * (exponential<T>(a[i] - log_sum) - q);
            }
        }
        if (!want_gradient) continue;
        __syncthreads();
        if (v < vocab) store_gradient<N>(dz + v, a);
    }
    divergence = block_sum(divergence, parts);
    if (live && threadIdx.x == 0) nll[first + j] = divergence;
}

// One block; a fixed order for a given capacity.
__global__ void __launch_bounds__(THREADS)
    sum_losses(const DeviceBatch *__restrict__ batch, const float *__restrict__ nll, double *loss_sum) {
    CU_SHARED(double, parts, [32]);
    double sum = 0.0;
    for (int64_t j = threadIdx.x; j < batch->supervised; j += THREADS)
        sum += (double)nll[j];
    sum = block_sum(sum, parts);
    if (threadIdx.x == 0) *loss_sum += sum;
}

static bool is_chunk(int64_t first, int64_t count, int64_t width) {
    return first >= 0 && count >= 0 && count <= GRID_MAX && width >= 1;
}

extern "C" cudaError_t cuda_gather_rows(DType act, const DeviceBatch *batch, int64_t first, int64_t count, int64_t hidden,
                                        const void *x, void *out, cudaStream_t stream) {
    if (!is_chunk(first, count, hidden)) return cudaErrorInvalidValue;
    if (count == 0) return cudaSuccess;
    bool vectors = hidden % VEC == 0 && all_aligned(x, out);
#define GATHER(N) \
    CU_LAUNCH((gather_rows<T, N>), (unsigned)count, THREADS, 0, stream, batch, first, hidden, (const T *)x, (T *)out)
    WITH_ACT(act, {
        if (vectors)
            GATHER(VEC);
        else
            GATHER(1);
    });
    return cudaGetLastError();
}

extern "C" cudaError_t cuda_scatter_rows(DType act, const DeviceBatch *batch, int64_t first, int64_t count, int64_t hidden,
                                         const void *in, void *dx, cudaStream_t stream) {
    if (!is_chunk(first, count, hidden)) return cudaErrorInvalidValue;
    if (count == 0) return cudaSuccess;
    bool vectors = hidden % VEC == 0 && all_aligned(in, dx);
#define SCATTER(N) \
    CU_LAUNCH((scatter_rows<T, N>), (unsigned)count, THREADS, 0, stream, batch, first, hidden, (const T *)in, (T *)dx)
    WITH_ACT(act, {
        if (vectors)
            SCATTER(VEC);
        else
            SCATTER(1);
    });
    return cudaGetLastError();
}

static unsigned row_threads(int64_t vocab, bool vectors) {
    int64_t wanted = divide_up(divide_up(vocab, vectors ? QUAD : 1), 32) * 32;
    return wanted < ROW_THREADS ? (unsigned)wanted : ROW_THREADS;
}

extern "C" cudaError_t cuda_cross_entropy(DType act, const DeviceBatch *batch, int64_t first, int64_t count, int64_t vocab,
                                          void *logits, float *nll, int want_gradient, cudaStream_t stream) {
    if (!is_chunk(first, count, vocab)) return cudaErrorInvalidValue;
    if (count == 0) return cudaSuccess;
    bool vectors = vocab % QUAD == 0 && is_aligned(logits);
    unsigned threads = row_threads(vocab, vectors);
#define LOSS(N)                                                                                                      \
    CU_LAUNCH((cross_entropy<T, N>), (unsigned)count, threads, 0, stream, batch, first, vocab, (float *)logits, nll, \
              want_gradient)
    WITH_ACT(act, {
        if (vectors)
            LOSS(QUAD);
        else
            LOSS(1);
    });
    return cudaGetLastError();
}

extern "C" cudaError_t cuda_distillation(DType act, const DeviceBatch *batch, int64_t first, int64_t count, int64_t vocab,
                                         void *logits, const float *teacher, float *nll, int want_gradient,
                                         cudaStream_t stream) {
    if (!is_chunk(first, count, vocab)) return cudaErrorInvalidValue;
    if (count == 0) return cudaSuccess;
    bool vectors = vocab % QUAD == 0 && all_aligned(logits, teacher);
    unsigned threads = row_threads(vocab, vectors);
#define DISTILL(N)                                                                                                           \
    CU_LAUNCH((distillation<T, N>), (unsigned)count, threads, 0, stream, batch, first, vocab, (float *)logits, teacher, nll, \
              want_gradient)
    WITH_ACT(act, {
        if (vectors)
            DISTILL(QUAD);
        else
            DISTILL(1);
    });
    return cudaGetLastError();
}

extern "C" cudaError_t cuda_loss_sum(const DeviceBatch *batch, int64_t supervised, const float *nll, double *loss_sum,
                                     cudaStream_t stream) {
    if (supervised < 0) return cudaErrorInvalidValue;
    CU_LAUNCH(sum_losses, 1, THREADS, 0, stream, batch, nll, loss_sum);
    return cudaGetLastError();
}
