// Gated activation, element for element: y = g * sigmoid(z) * up, and its backward, which may write over what it read.
#include "kernels/cuda/common.cuh"

enum { THREADS = 256 };

// A block takes a part of a row; a row has `parts` of them.
struct Rows {
    int64_t width;
    int64_t pitch, gradient_pitch;  // of gate and up, of their gradients; y and dy are contiguous
    uint32_t parts;
};

// The thread's place: row, and the first of N columns; false where there is none.
template <int N>
__device__ __forceinline__ bool place_of(const DeviceBatch *batch, const Rows &rows, int64_t *row, int64_t *column) {
    *row = blockIdx.x / rows.parts;
    *column = ((int64_t)(blockIdx.x % rows.parts) * THREADS + threadIdx.x) * N;
    return *row < batch->tokens && *column < rows.width;
}

// sigmoid(z(g)), and z'(g).
template <GateKind KIND>
__device__ __forceinline__ float gate_of(float g, float *slope) {
    float z = g;
    *slope = 1.0f;
    if (KIND == GATE_GELU_TANH) {
        float within = fminf(fmaxf(g, -(float)GELU_FLAT), (float)GELU_FLAT), square = within * within;
        z = (float)GELU_SLOPE * within * (1.0f + (float)GELU_CUBE * square);
        *slope = (float)GELU_SLOPE * (1.0f + (float)(3.0 * GELU_CUBE) * square);
    }
    return 1.0f / (1.0f + expf(-z));
}

template <class T, int N, GateKind KIND>
__global__ void __launch_bounds__(THREADS)
    gate_forward(const DeviceBatch *__restrict__ batch, Rows rows, const T *gate, const T *up, T *y) {
    int64_t row, column;
    if (!place_of<N>(batch, rows, &row, &column)) return;
    float g[N], u[N];
    load_n<N>(gate + row * rows.pitch + column, g);
    load_n<N>(up + row * rows.pitch + column, u);
#pragma unroll
    for (int k = 0; k < N; k++) {
        float slope, s = gate_of<KIND>(g[k], &slope);
        u[k] *= g[k] * s;
    }
    store_n<N>(y + row * rows.width + column, u);
}

template <class T, int N, GateKind KIND>
__global__ void __launch_bounds__(THREADS) gate_backward(const DeviceBatch *__restrict__ batch, Rows rows, const T *gate,
                                                         const T *up, const T *dy, T *d_gate, T *d_up) {
    int64_t row, column;
    if (!place_of<N>(batch, rows, &row, &column)) return;
    float g[N], u[N], d[N];
    load_n<N>(gate + row * rows.pitch + column, g);
    load_n<N>(up + row * rows.pitch + column, u);
    load_n<N>(dy + row * rows.width + column, d);
#pragma unroll
    for (int k = 0; k < N; k++) {
        float slope, s = gate_of<KIND>(g[k], &slope), du = d[k] * g[k] * s;
        g[k] = d[k] * u[k] * s * (1.0f + g[k] * (1.0f - s) * slope);
        u[k] = du;
    }
    store_n<N>(d_gate + row * rows.gradient_pitch + column, g);
    store_n<N>(d_up + row * rows.gradient_pitch + column, u);
}

static bool is_shape(const GateShape *s) {
    return s->rows >= 0 && s->width >= 0 && is_pitch(s->stride, s->width) && is_pitch(s->gradient_stride, s->width);
}

static bool has_vectors(const GateShape *s) {
    return (s->width | s->stride | s->gradient_stride) % VEC == 0;
}

// The blocks of a launch; 0: none, less: too many.
static int64_t cut(const GateShape *s, bool vectors, Rows *rows) {
    int64_t parts = divide_up(s->width, THREADS * (vectors ? VEC : 1));
    if (parts > GRID_MAX || (parts > 0 && s->rows > GRID_MAX / parts)) return -1;
    *rows = {s->width, pitch_of(s->stride, s->width), pitch_of(s->gradient_stride, s->width), (uint32_t)parts};
    return s->rows * parts;
}

extern "C" cudaError_t cuda_gate_forward(DType act, const DeviceBatch *batch, const GateShape *shape, const void *gate,
                                         const void *up, void *y, cudaStream_t stream) {
    bool vectors = has_vectors(shape) && all_aligned(gate, up, y);
    Rows rows;
    int64_t blocks = is_shape(shape) ? cut(shape, vectors, &rows) : -1;
    if (blocks < 0) return cudaErrorInvalidValue;
    if (blocks == 0) return cudaSuccess;
#define FORWARD(N, KIND)                                                                                                     \
    CU_LAUNCH((gate_forward<T, N, KIND>), (unsigned)blocks, THREADS, 0, stream, batch, rows, (const T *)gate, (const T *)up, \
              (T *)y)
    bool gelu = shape->kind == GATE_GELU_TANH;
    WITH_ACT(act, {
        if (vectors && gelu)
            FORWARD(VEC, GATE_GELU_TANH);
        else if (vectors)
            FORWARD(VEC, GATE_SILU);
        else if (gelu)
            FORWARD(1, GATE_GELU_TANH);
        else
            FORWARD(1, GATE_SILU);
    });
    return cudaGetLastError();
}

extern "C" cudaError_t cuda_gate_backward(DType act, const DeviceBatch *batch, const GateShape *shape, const void *gate,
                                          const void *up, const void *dy, void *d_gate, void *d_up, cudaStream_t stream) {
    bool vectors = has_vectors(shape) && all_aligned(gate, up, dy, d_gate, d_up);
    Rows rows;
    int64_t blocks = is_shape(shape) ? cut(shape, vectors, &rows) : -1;
    if (blocks < 0) return cudaErrorInvalidValue;
    if (blocks == 0) return cudaSuccess;
#define BACKWARD(N, KIND)                                                                                                     \
    CU_LAUNCH((gate_backward<T, N, KIND>), (unsigned)blocks, THREADS, 0, stream, batch, rows, (const T *)gate, (const T *)up, \
              (const T *)dy, (T *)d_gate, (T *)d_up)
    bool gelu = shape->kind == GATE_GELU_TANH;
    WITH_ACT(act, {
        if (vectors && gelu)
            BACKWARD(VEC, GATE_GELU_TANH);
        else if (vectors)
            BACKWARD(VEC, GATE_SILU);
        else if (gelu)
            BACKWARD(1, GATE_GELU_TANH);
        else
            BACKWARD(1, GATE_SILU);
    });
    return cudaGetLastError();
}
