// Any weight format to F32 or BF16. Bound by memory: 4-bit codes and nested constants take 0.516 bytes a weight, BF16 two.
//
// A thread reads eight codes (4 bytes of NF4) and writes eight weights (16 bytes of BF16); neighbouring threads have
// neighbouring weights, so that both sides are whole lines. Four such steps (two where what is fetched is large) are in flight
// at a time, and so are the tables.
#include "kernels/cuda/weight.cuh"

enum { THREADS = 256 };

template <class D>
static constexpr int STEPS = sizeof(typename D::Raw) > 16 ? 2 : 4;

template <class D, class T>
__global__ void __launch_bounds__(THREADS) dequantize_vectors(D decoder, int64_t first, int64_t vectors, T *__restrict__ out) {
    CU_SHARED(WeightTables, tables, [1]);
    int64_t at = (int64_t)blockIdx.x * (THREADS * STEPS<D>)+threadIdx.x;
    typename D::Raw raw[STEPS<D>];
#pragma unroll
    for (int s = 0; s < STEPS<D>; s++) {  // behind the end the last once more: without a branch all are on their way at once
        int64_t vector = at + s * THREADS < vectors ? at + s * THREADS : vectors - 1;
        raw[s] = decoder.fetch(first + vector * VEC);
    }
    decoder.prepare(tables);
    __syncthreads();
#pragma unroll
    for (int s = 0; s < STEPS<D>; s++) {
        if (at + s * THREADS >= vectors) return;
        float v[VEC];
        decoder.decode(tables, raw[s], v);
        store8(out + (at + s * THREADS) * VEC, v);
    }
}

template <class D, class T>
__global__ void __launch_bounds__(THREADS) dequantize_elements(D decoder, int64_t first, int64_t count, T *__restrict__ out) {
    CU_SHARED(WeightTables, tables, [1]);
    decoder.prepare(tables);
    __syncthreads();
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < count) out[i] = from_float<T>(decoder.one(tables, first + i));
}

template <class D, class T>
static cudaError_t dequantize(const D &decoder, int64_t first, int64_t count, T *out, bool vectors, cudaStream_t stream) {
    int64_t whole = vectors ? count / VEC : 0, rest = count - whole * VEC;
    if (divide_up(count, THREADS) > GRID_MAX) return cudaErrorInvalidValue;
    if (whole > 0) {
        unsigned blocks = (unsigned)divide_up(whole, THREADS * STEPS<D>);
        CU_LAUNCH((dequantize_vectors<D, T>), blocks, THREADS, 0, stream, decoder, first, whole, out);
    }
    if (rest > 0) {
        unsigned blocks = (unsigned)divide_up(rest, THREADS);
        CU_LAUNCH((dequantize_elements<D, T>), blocks, THREADS, 0, stream, decoder, first + whole * VEC, rest,
                  out + whole * VEC);
    }
    return cudaGetLastError();
}

extern "C" cudaError_t cuda_dequantize(const WeightView *weight, int64_t first, int64_t count, void *out, DType out_type,
                                       cudaStream_t stream) {
    if (first < 0 || count < 0 || !is_weight_type(out_type)) return cudaErrorInvalidValue;
    if (count == 0) return cudaSuccess;
    bool vectors = first % VEC == 0 && weight_has_vectors(weight) && is_aligned(out);
    WITH_DECODER(weight, WITH_ACT(out_type, return dequantize(decoder, first, count, (T *)out, vectors, stream)));
}
