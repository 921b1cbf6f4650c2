// Flat buffers: sum of squares in two stages, the clip factor made of it, the watch for NaN, and casts.
#include <math.h>

#include "kernels/cuda/common.cuh"

enum { THREADS = 256, PART = 32768 };  // elements of a partial sum

__global__ void __launch_bounds__(THREADS)
    square_parts(int64_t count, const float *__restrict__ x, double *__restrict__ partials) {
    CU_SHARED(double, parts, [32]);
    int64_t begin = (int64_t)blockIdx.x * PART, end = begin + PART < count ? begin + PART : count;
    double sum = 0.0;
#pragma unroll 8
    for (int64_t i = begin + threadIdx.x; i < end; i += THREADS)
        sum += (double)x[i] * (double)x[i];
    sum = block_sum(sum, parts);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(THREADS)
    square_total(int64_t count, const double *__restrict__ partials, double *__restrict__ total) {
    CU_SHARED(double, parts, [32]);
    double sum = 0.0;
    for (int64_t i = threadIdx.x; i < count; i += THREADS)
        sum += partials[i];
    sum = block_sum(sum, parts);
    if (threadIdx.x == 0) *total = sum;
}

__global__ void clip_factor(const double *__restrict__ sum, double max_norm, double *__restrict__ clip) {
    double norm = sqrt(*sum), factor = max_norm > 0.0 ? max_norm / (norm + 1e-6) : 1.0;
    *clip = !(norm < INFINITY) ? NAN : factor < 1.0 ? factor : 1.0;
}

__device__ __forceinline__ bool is_finite(float x) {
    return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u;
}

template <class T, int N>
__global__ void __launch_bounds__(THREADS) find_nonfinite(int64_t count, const T *__restrict__ x, unsigned long long *first) {
    for (int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * N; i < count; i += (int64_t)gridDim.x * THREADS * N) {
        float v[N];
        load_n<N>(x + i, v);
#pragma unroll
        for (int e = 0; e < N; e++) {
            if (!is_finite(v[e])) atomicMin(first, (unsigned long long)(i + e));  // integers: the order changes nothing
        }
    }
}

template <class From, class To, int N>
__global__ void __launch_bounds__(THREADS) cast(int64_t count, const From *from, To *to) {
    int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * N;
    if (i >= count) return;
    float v[N];
    load_n<N>(from + i, v);
    store_n<N>(to + i, v);
}

extern "C" int64_t cuda_sum_squares_partials(int64_t count) {
    return count > 0 ? divide_up(count, PART) : 0;
}

extern "C" cudaError_t cuda_sum_squares(int64_t count, const float *x, double *partials, double *sum, cudaStream_t stream) {
    int64_t blocks = cuda_sum_squares_partials(count);
    if (count < 0 || blocks > GRID_MAX) return cudaErrorInvalidValue;
    if (blocks > 0) CU_LAUNCH(square_parts, (unsigned)blocks, THREADS, 0, stream, count, x, partials);
    CU_LAUNCH(square_total, 1, THREADS, 0, stream, blocks, partials, sum);
    return cudaGetLastError();
}

extern "C" cudaError_t cuda_clip_factor(const double *sum, double max_norm, double *clip, cudaStream_t stream) {
    CU_LAUNCH(clip_factor, 1, 1, 0, stream, sum, max_norm, clip);
    return cudaGetLastError();
}

extern "C" cudaError_t cuda_find_nonfinite(DType type, int64_t count, const void *values, uint64_t *first,
                                           cudaStream_t stream) {
    if (count < 0) return cudaErrorInvalidValue;
    if (count == 0) return cudaSuccess;
    bool vectors = is_aligned(values) && count % VEC == 0;
    int64_t blocks = divide_up(count, THREADS * (vectors ? VEC : 1));
    unsigned grid = (unsigned)(blocks < 65535 ? blocks : 65535);
    unsigned long long *least = (unsigned long long *)first;
    WITH_ACT(type, {
        const T *x = (const T *)values;
        if (vectors)
            CU_LAUNCH((find_nonfinite<T, VEC>), grid, THREADS, 0, stream, count, x, least);
        else
            CU_LAUNCH((find_nonfinite<T, 1>), grid, THREADS, 0, stream, count, x, least);
    });
    return cudaGetLastError();
}

template <class From, class To>
static cudaError_t cast_all(int64_t count, const From *from, To *to, cudaStream_t stream) {
    int64_t whole = all_aligned(from, to) ? count / VEC * VEC : 0, rest = count - whole;
    if (divide_up(count, THREADS) > GRID_MAX) return cudaErrorInvalidValue;
    if (whole > 0) {
        CU_LAUNCH((cast<From, To, VEC>), (unsigned)divide_up(whole, THREADS * VEC), THREADS, 0, stream, whole, from, to);
    }
    if (rest > 0) {
        CU_LAUNCH((cast<From, To, 1>), (unsigned)divide_up(rest, THREADS), THREADS, 0, stream, rest, from + whole, to + whole);
    }
    return cudaGetLastError();
}

extern "C" cudaError_t cuda_cast(int64_t count, const void *from, DType from_type, void *to, DType to_type,
                                 cudaStream_t stream) {
    if (count < 0 || !is_weight_type(to_type)) return cudaErrorInvalidValue;
    WITH_ACT(from_type, {
        if (to_type == DTYPE_BF16) return cast_all(count, (const T *)from, (bf16 *)to, stream);
        return cast_all(count, (const T *)from, (float *)to, stream);
    });
}
