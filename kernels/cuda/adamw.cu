// AdamW over flat buffers, in double from the FP32 state, each operation rounded by itself: the reference's bits.
// 16 bytes are read and 14 (BF16 copy) written a parameter.
#include <math.h>

#include "kernels/cuda/common.cuh"

enum { THREADS = 256, QUAD = 4 };

struct Constants {
    double clip, decay, beta1, rest1, beta2, rest2, rate, root, epsilon;
};

__device__ __forceinline__ double mul(double a, double b) {
#if CU_EMULATED
    return a * b;
#else
    return __dmul_rn(a, b);
#endif
}
__device__ __forceinline__ double add(double a, double b) {
#if CU_EMULATED
    return a + b;
#else
    return __dadd_rn(a, b);
#endif
}

__device__ __forceinline__ void update(const Constants &k, double clip, float &master, float &m, float &v, float grad) {
    double g = mul(clip, (double)grad), p = mul((double)master, k.decay);
    double first = add(mul(k.beta1, (double)m), mul(k.rest1, g));
    double second = add(mul(k.beta2, (double)v), mul(mul(k.rest2, g), g));
    p = add(p, -(mul(k.rate, first) / add(sqrt(second) / k.root, k.epsilon)));
    m = (float)first, v = (float)second, master = (float)p;
}

template <int N>
__device__ __forceinline__ void load_state(const float *p, float v[N]) {
    if constexpr (N == QUAD)
        load4(p, v);
    else
        v[0] = *p;
}
template <int N, class T>
__device__ __forceinline__ void store_state(T *p, const float v[N]) {
    if constexpr (N == QUAD)
        store4(p, v);
    else
        *p = from_float<T>(v[0]);
}

template <class T, int N>
__global__ void __launch_bounds__(THREADS)
    adamw(int64_t count, float *__restrict__ master, float *__restrict__ m, float *__restrict__ v,
          const float *__restrict__ grad, T *__restrict__ copy, Constants k, const double *__restrict__ factor) {
    int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * N;
    if (i >= count) return;
    double clip = k.clip;
    if (factor != NULL) {
        if (!(fabs(*factor) < INFINITY)) return;
        clip = mul(clip, *factor);
    }
    float p[N], first[N], second[N], g[N];
    load_state<N>(master + i, p);
    load_state<N>(m + i, first);
    load_state<N>(v + i, second);
    load_state<N>(grad + i, g);
#pragma unroll
    for (int e = 0; e < N; e++)
        update(k, clip, p[e], first[e], second[e], g[e]);
    store_state<N>(master + i, p);
    store_state<N>(m + i, first);
    store_state<N>(v + i, second);
    if (copy != NULL) store_state<N>(copy + i, p);
}

extern "C" cudaError_t cuda_adamw(int64_t count, float *master, float *m, float *v, const float *grad, void *copy, DType act,
                                  const AdamStep *step, const double *clip, cudaStream_t stream) {
    if (count < 0 || divide_up(count, THREADS) > GRID_MAX) return cudaErrorInvalidValue;
    if (count == 0) return cudaSuccess;
    Constants k = {step->clip,
                   1.0 - step->lr * step->weight_decay,
                   step->beta1,
                   1.0 - step->beta1,
                   step->beta2,
                   1.0 - step->beta2,
                   step->lr / (1.0 - pow(step->beta1, (double)step->step)),
                   sqrt(1.0 - pow(step->beta2, (double)step->step)),
                   step->epsilon};
    int64_t whole = all_aligned(master, m, v, grad, copy) ? count / QUAD * QUAD : 0, rest = count - whole;
    WITH_ACT(act, {
        T *to = (T *)copy, *to_rest = to != NULL ? to + whole : NULL;
        if (whole > 0) {
            CU_LAUNCH((adamw<T, QUAD>), (unsigned)divide_up(whole, THREADS * QUAD), THREADS, 0, stream, whole, master, m, v,
                      grad, to, k, clip);
        }
        if (rest > 0) {
            CU_LAUNCH((adamw<T, 1>), (unsigned)divide_up(rest, THREADS), THREADS, 0, stream, rest, master + whole, m + whole,
                      v + whole, grad + whole, to_rest, k, clip);
        }
    });
    return cudaGetLastError();
}
