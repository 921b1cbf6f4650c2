// Sums over the rows of an activation (the gradient of a bias), and its rows that are not in use set to zero.
#include "kernels/cuda/columns.cuh"

template <class T>
struct Element {
    const T *x;
    int64_t pitch;
    __device__ float operator()(int64_t t, int64_t c) const { return to_float(x[t * pitch + c]); }
};

extern "C" cudaError_t cuda_column_sums(DType act, const DeviceBatch *batch, int64_t rows, int64_t columns, const void *x,
                                        int64_t stride, float *sums, cudaStream_t stream) {
    if (rows < 0 || !is_pitch(stride, columns)) return cudaErrorInvalidValue;
    WITH_ACT(act, {
        Element<T> value = {(const T *)x, pitch_of(stride, columns)};
        return launch_column_sums(value, batch, columns, sums, stream);
    });
}

template <class T>
__global__ void __launch_bounds__(256)
    zero_tail(const DeviceBatch *__restrict__ batch, int64_t columns, int64_t pitch, T *__restrict__ x) {
    int64_t t = blockIdx.x;
    if (t < batch->tokens) return;
    for (int64_t c = threadIdx.x; c < columns; c += 256)
        x[t * pitch + c] = from_float<T>(0.0f);
}

extern "C" cudaError_t cuda_zero_tail(DType act, const DeviceBatch *batch, int64_t rows, int64_t columns, void *x,
                                      int64_t stride, cudaStream_t stream) {
    if (rows < 0 || rows > GRID_MAX || columns < 0 || !is_pitch(stride, columns)) return cudaErrorInvalidValue;
    if (rows == 0 || columns == 0) return cudaSuccess;
    int64_t pitch = pitch_of(stride, columns);
    WITH_ACT(act, CU_LAUNCH((zero_tail<T>), (unsigned)rows, 256, 0, stream, batch, columns, pitch, (T *)x));
    return cudaGetLastError();
}
