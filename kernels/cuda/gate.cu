// Gated activation, element for element: y = silu(gate) * up, and its backward, which may write over what it read.
#include "kernels/cuda/common.cuh"

enum { THREADS = 256 };

__device__ __forceinline__ float sigmoid(float x) {
    return 1.0f / (1.0f + expf(-x));
}

template <class T, int N>
__global__ void __launch_bounds__(THREADS)
    gate_forward(const DeviceBatch *__restrict__ batch, int64_t width, const T *gate, const T *up, T *y) {
    int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * N;
    if (i >= batch->tokens * width) return;
    float g[N], u[N];
    load_n<N>(gate + i, g);
    load_n<N>(up + i, u);
#pragma unroll
    for (int k = 0; k < N; k++)
        u[k] *= g[k] * sigmoid(g[k]);
    store_n<N>(y + i, u);
}

template <class T, int N>
__global__ void __launch_bounds__(THREADS) gate_backward(const DeviceBatch *__restrict__ batch, int64_t width, const T *gate,
                                                         const T *up, const T *dy, T *d_gate, T *d_up) {
    int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * N;
    if (i >= batch->tokens * width) return;
    float g[N], u[N], d[N];
    load_n<N>(gate + i, g);
    load_n<N>(up + i, u);
    load_n<N>(dy + i, d);
#pragma unroll
    for (int k = 0; k < N; k++) {
        float s = sigmoid(g[k]), du = d[k] * g[k] * s;
        g[k] = d[k] * u[k] * s * (1.0f + g[k] * (1.0f - s));
        u[k] = du;
    }
    store_n<N>(d_gate + i, g);
    store_n<N>(d_up + i, u);
}

extern "C" cudaError_t cuda_gate_forward(DType act, const DeviceBatch *batch, const GateShape *shape, const void *gate,
                                         const void *up, void *y, cudaStream_t stream) {
    bool vectors = shape->width % VEC == 0 && all_aligned(gate, up, y);
    int64_t blocks = divide_up(shape->rows * shape->width, THREADS * (vectors ? VEC : 1));
    if (shape->rows < 0 || shape->width < 0 || blocks > GRID_MAX) return cudaErrorInvalidValue;
    if (blocks == 0) return cudaSuccess;
#define FORWARD(N)                                                                                                             \
    CU_LAUNCH((gate_forward<T, N>), (unsigned)blocks, THREADS, 0, stream, batch, shape->width, (const T *)gate, (const T *)up, \
              (T *)y)
    WITH_ACT(act, {
        if (vectors)
            FORWARD(VEC);
        else
            FORWARD(1);
    });
    return cudaGetLastError();
}

extern "C" cudaError_t cuda_gate_backward(DType act, const DeviceBatch *batch, const GateShape *shape, const void *gate,
                                          const void *up, const void *dy, void *d_gate, void *d_up, cudaStream_t stream) {
    bool vectors = shape->width % VEC == 0 && all_aligned(gate, up, dy, d_gate, d_up);
    int64_t blocks = divide_up(shape->rows * shape->width, THREADS * (vectors ? VEC : 1));
    if (shape->rows < 0 || shape->width < 0 || blocks > GRID_MAX) return cudaErrorInvalidValue;
    if (blocks == 0) return cudaSuccess;
#define BACKWARD(N)                                                                                              \
    CU_LAUNCH((gate_backward<T, N>), (unsigned)blocks, THREADS, 0, stream, batch, shape->width, (const T *)gate, \
              (const T *)up, (const T *)dy, (T *)d_gate, (T *)d_up)
    WITH_ACT(act, {
        if (vectors)
            BACKWARD(VEC);
        else
            BACKWARD(1);
    });
    return cudaGetLastError();
}
