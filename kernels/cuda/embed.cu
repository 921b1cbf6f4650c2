// Embedding: rows of a table of any format, decoded on the way; and the table's gradient.
#include "kernels/cuda/weight.cuh"

enum { THREADS = 256 };

template <class D, class T, int N>
__global__ void __launch_bounds__(THREADS)
    embed_forward(D decoder, const DeviceBatch *__restrict__ batch, int64_t hidden, T *__restrict__ y) {
    CU_SHARED(WeightTables, tables, [1]);
    int64_t t = blockIdx.x;
    if (t >= batch->tokens) return;
    decoder.prepare(tables);
    __syncthreads();
    int64_t from = batch->ids[t] * hidden;
    for (int64_t c = (int64_t)threadIdx.x * N; c < hidden; c += THREADS * N) {
        float v[N];
        if constexpr (N == VEC) {
            typename D::Raw raw = decoder.fetch(from + c);
            decoder.decode(tables, raw, v);
        } else {
            v[0] = decoder.one(tables, from + c);
        }
        store_n<N>(y + t * hidden + c, v);
    }
}

// A block is a row. The first row of an id adds the rows of that id in their order, so no two blocks meet.
template <class T>
__global__ void __launch_bounds__(THREADS) embed_backward(const DeviceBatch *__restrict__ batch, int64_t hidden,
                                                          const T *__restrict__ dy, float *__restrict__ d_table) {
    CU_SHARED(uint8_t, same, [THREADS]);
    int64_t t = blockIdx.x, tokens = batch->tokens;
    if (t >= tokens) return;
    const int32_t *ids = batch->ids;
    int32_t id = ids[t];
    int seen = 0;
    for (int64_t u = threadIdx.x; u < t; u += THREADS)
        seen |= ids[u] == id;
    if (__syncthreads_or(seen)) return;
    float *row = d_table + id * hidden;
    for (int64_t begin = t; begin < tokens; begin += THREADS) {
        int64_t u = begin + threadIdx.x;
        same[threadIdx.x] = u < tokens && ids[u] == id;
        if (__syncthreads_or(same[threadIdx.x])) {
            for (int64_t c = threadIdx.x; c < hidden; c += THREADS) {
                float sum = row[c];
#pragma unroll 4
                for (int i = 0; i < THREADS; i++) {
                    if (same[i]) sum += to_float(dy[(begin + i) * hidden + c]);
                }
                row[c] = sum;
            }
        }
        __syncthreads();
    }
}

template <class T, class D>
static cudaError_t forward(const D &decoder, const DeviceBatch *batch, int64_t rows, int64_t hidden, T *y, bool vectors,
                           cudaStream_t stream) {
    if (vectors)
        CU_LAUNCH((embed_forward<D, T, VEC>), (unsigned)rows, THREADS, 0, stream, decoder, batch, hidden, y);
    else
        CU_LAUNCH((embed_forward<D, T, 1>), (unsigned)rows, THREADS, 0, stream, decoder, batch, hidden, y);
    return cudaGetLastError();
}

extern "C" cudaError_t cuda_embed_forward(DType act, const DeviceBatch *batch, int64_t rows, const WeightView *table, void *y,
                                          cudaStream_t stream) {
    if (rows < 0 || rows > GRID_MAX) return cudaErrorInvalidValue;
    if (rows == 0) return cudaSuccess;
    bool vectors = table->cols % VEC == 0 && weight_has_vectors(table) && is_aligned(y);
    WITH_DECODER(table, WITH_ACT(act, return forward<T>(decoder, batch, rows, table->cols, (T *)y, vectors, stream)));
}

extern "C" cudaError_t cuda_embed_backward(DType act, const DeviceBatch *batch, int64_t rows, int64_t hidden, const void *dy,
                                           float *d_table, cudaStream_t stream) {
    if (rows < 0 || rows > GRID_MAX) return cudaErrorInvalidValue;
    if (rows == 0) return cudaSuccess;
    WITH_ACT(act, CU_LAUNCH((embed_backward<T>), (unsigned)rows, THREADS, 0, stream, batch, hidden, (const T *)dy, d_table));
    return cudaGetLastError();
}
