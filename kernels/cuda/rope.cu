// q/k norm + RoPE, forward and backward; formulas in kernels/cpu/ref/rope.c. A block is a row; a warp takes its heads in turn.
// A lane reads and writes only the pairs (i, i + D/2) that are its own, so results may lie over what they are made of.
#include "kernels/cuda/common.cuh"

enum { WARPS = 8 };

// Elements from row to row.
struct Pitch {
    int64_t q, k;
};

// q and k of a row, one head after another.
struct Heads {
    int64_t heads, kv_heads, head_dim;
    const void *q, *k;                // inputs of forward
    const void *q_weight, *k_weight;  // of the norm
    const void *dq_in, *dk_in;        // gradients of the outputs
    void *q_out, *k_out;
    Pitch in, gradient, out;
};

struct Angles {
    const float *cosine, *sine;  // [table_rows, D/2]
};

template <class T>
struct Head {
    const T *x, *dy, *weight;
    T *out;
};

template <class T>
__device__ __forceinline__ Head<T> head_of(const Heads &h, int64_t t, int64_t head) {
    bool is_k = head >= h.heads;
    int64_t at = (is_k ? head - h.heads : head) * h.head_dim;
    auto from = [=](const void *q, const void *k, const Pitch &pitch) {  // some are not there
        const T *base = (const T *)(is_k ? k : q);
        return base != NULL ? base + t * (is_k ? pitch.k : pitch.q) + at : NULL;
    };
    return {from(h.q, h.k, h.in), from(h.dq_in, h.dk_in, h.gradient), (const T *)(is_k ? h.k_weight : h.q_weight),
            (T *)from(h.q_out, h.k_out, h.out)};
}

template <class T, int N, bool NORM>
__global__ void __launch_bounds__(WARPS * 32)
    rope_forward(const DeviceBatch *__restrict__ batch, Heads h, Angles table, float epsilon, float *__restrict__ roots) {
    int64_t t = blockIdx.x, half = h.head_dim / 2, all = h.heads + h.kv_heads;
    if (t >= batch->tokens) return;
    const float *cosine = table.cosine + batch->positions[t] * half, *sine = table.sine + batch->positions[t] * half;
    int lane = threadIdx.x % 32;
    for (int64_t head = threadIdx.x / 32; head < all; head += WARPS) {
        Head<T> one = head_of<T>(h, t, head);
        float root = 1.0f;
        if (NORM) {
            float squares = 0.0f;
            for (int64_t i = lane * N; i < half; i += 32 * N) {
                float a[N], b[N];
                load_n<N>(one.x + i, a);
                load_n<N>(one.x + half + i, b);
#pragma unroll
                for (int e = 0; e < N; e++)
                    squares += a[e] * a[e] + b[e] * b[e];
            }
            root = 1.0f / sqrtf(warp_sum(squares) / (float)h.head_dim + epsilon);
            if (lane == 0) roots[t * all + head] = root;
        }
        for (int64_t i = lane * N; i < half; i += 32 * N) {
            float a[N], b[N], c[N], s[N];
            load_n<N>(one.x + i, a);
            load_n<N>(one.x + half + i, b);
            load_n<N>(cosine + i, c);
            load_n<N>(sine + i, s);
            if (NORM) {
                float wa[N], wb[N];
                load_n<N>(one.weight + i, wa);
                load_n<N>(one.weight + half + i, wb);
#pragma unroll
                for (int e = 0; e < N; e++) {
                    a[e] = round_to<T>(round_to<T>(a[e] * root) * wa[e]);
                    b[e] = round_to<T>(round_to<T>(b[e] * root) * wb[e]);
                }
            }
            float ya[N], yb[N];
#pragma unroll
            for (int e = 0; e < N; e++) {
                ya[e] = a[e] * c[e] - b[e] * s[e];
                yb[e] = b[e] * c[e] + a[e] * s[e];
            }
            store_n<N>(one.out + i, ya);
            store_n<N>(one.out + half + i, yb);
        }
    }
}

// The gradients behind the rotation of N pairs.
template <int N, class T>
__device__ __forceinline__ void unrotate(const T *dy, const float *cosine, const float *sine, int64_t i, int64_t half,
                                         float da[N], float db[N]) {
    float a[N], b[N], c[N], s[N];
    load_n<N>(dy + i, a);
    load_n<N>(dy + half + i, b);
    load_n<N>(cosine + i, c);
    load_n<N>(sine + i, s);
#pragma unroll
    for (int e = 0; e < N; e++) {
        da[e] = a[e] * c[e] + b[e] * s[e];
        db[e] = b[e] * c[e] - a[e] * s[e];
    }
}

template <class T, int N, bool NORM>
__global__ void __launch_bounds__(WARPS * 32)
    rope_backward(const DeviceBatch *__restrict__ batch, Heads h, Angles table, const float *__restrict__ roots) {
    int64_t t = blockIdx.x, half = h.head_dim / 2, all = h.heads + h.kv_heads;
    if (t >= batch->tokens) return;
    const float *cosine = table.cosine + batch->positions[t] * half, *sine = table.sine + batch->positions[t] * half;
    int lane = threadIdx.x % 32;
    for (int64_t head = threadIdx.x / 32; head < all; head += WARPS) {
        Head<T> one = head_of<T>(h, t, head);
        float da[N], db[N], xa[N], xb[N], wa[N], wb[N], root = 1.0f, mean = 0.0f;
        if (NORM) {
            root = roots[t * all + head];
            for (int64_t i = lane * N; i < half; i += 32 * N) {
                unrotate<N>(one.dy, cosine, sine, i, half, da, db);
                load_n<N>(one.x + i, xa);
                load_n<N>(one.x + half + i, xb);
                load_n<N>(one.weight + i, wa);
                load_n<N>(one.weight + half + i, wb);
#pragma unroll
                for (int e = 0; e < N; e++)
                    mean += (da[e] * wa[e] * xa[e] + db[e] * wb[e] * xb[e]) * root;
            }
            mean = warp_sum(mean) / (float)h.head_dim;
        }
        for (int64_t i = lane * N; i < half; i += 32 * N) {
            unrotate<N>(one.dy, cosine, sine, i, half, da, db);
            if (NORM) {
                load_n<N>(one.x + i, xa);
                load_n<N>(one.x + half + i, xb);
                load_n<N>(one.weight + i, wa);
                load_n<N>(one.weight + half + i, wb);
#pragma unroll
                for (int e = 0; e < N; e++) {
                    da[e] = root * (da[e] * wa[e] - xa[e] * root * mean);
                    db[e] = root * (db[e] * wb[e] - xb[e] * root * mean);
                }
            }
            store_n<N>(one.out + i, da);
            store_n<N>(one.out + half + i, db);
        }
    }
}

enum { PAIRS = 4, ROW_LANES = 128 };

// d_weight[i], d_weight[i + D/2] of q (blockIdx.y 0) or k (1) over all rows and heads; four pairs a block.
template <class T>
__global__ void __launch_bounds__(PAIRS *ROW_LANES)
    rope_weight_grad(const DeviceBatch *__restrict__ batch, Heads h, Angles table, const float *__restrict__ roots,
                     float *__restrict__ dq_weight, float *__restrict__ dk_weight) {
    CU_SHARED(float, parts, [2][ROW_LANES][PAIRS]);
    int pair = threadIdx.x % PAIRS, lane = threadIdx.x / PAIRS;
    bool is_k = blockIdx.y == 1;
    int64_t half = h.head_dim / 2, i = (int64_t)blockIdx.x * PAIRS + pair, all = h.heads + h.kv_heads;
    int64_t heads = is_k ? h.kv_heads : h.heads, first = is_k ? h.heads : 0;
    float sum_a = 0.0f, sum_b = 0.0f;
    if (i < half) {
        for (int64_t j = lane; j < batch->tokens * heads; j += ROW_LANES) {
            int64_t t = j / heads, head = first + j % heads, angle = batch->positions[t] * half;
            Head<T> one = head_of<T>(h, t, head);
            float da[1], db[1], root = roots[t * all + head];
            unrotate<1>(one.dy, table.cosine + angle, table.sine + angle, i, half, da, db);
            sum_a += da[0] * round_to<T>(to_float(one.x[i]) * root);
            sum_b += db[0] * round_to<T>(to_float(one.x[i + half]) * root);
        }
    }
    parts[0][lane][pair] = sum_a;
    parts[1][lane][pair] = sum_b;
    __syncthreads();
    for (int step = ROW_LANES / 2; step > 0; step /= 2) {
        if (lane < step) {
            parts[0][lane][pair] += parts[0][lane + step][pair];
            parts[1][lane][pair] += parts[1][lane + step][pair];
        }
        __syncthreads();
    }
    float *out = is_k ? dk_weight : dq_weight;
    if (lane == 0 && i < half) {
        out[i] += parts[0][0][pair];
        out[i + half] += parts[1][0][pair];
    }
}

static bool is_shape(const RopeShape *s) {
    int64_t width = s->heads * s->head_dim;
    return s->rows >= 0 && s->rows <= GRID_MAX && s->heads >= 1 && s->kv_heads >= 0 && s->head_dim >= 2 &&
           s->head_dim % 2 == 0 && is_pitch(s->stride, width) && is_pitch(s->out_stride, width) &&
           is_pitch(s->gradient_stride, width);
}

static Pitch pitch_of_heads(const RopeShape *s, int64_t stride) {
    return {pitch_of(stride, s->heads * s->head_dim), pitch_of(stride, s->kv_heads * s->head_dim)};
}

template <class... P>
static bool are_pairs(const P *...p) {
    return ((((uintptr_t)p & 3) == 0) && ...);
}

// Pairs of two neighbours: every row of what is given starts at an even element.
template <class... P>
static bool has_pairs(const RopeShape *s, const P *...p) {
    return s->head_dim % 4 == 0 && (s->stride | s->out_stride | s->gradient_stride) % 2 == 0 && are_pairs(p...);
}

extern "C" cudaError_t cuda_rope_forward(DType act, const DeviceBatch *batch, const RopeShape *shape, const float *cosine,
                                         const float *sine, const void *q, const void *k, const void *q_weight,
                                         const void *k_weight, void *rq, void *rk, float *roots, cudaStream_t stream) {
    if (!is_shape(shape)) return cudaErrorInvalidValue;
    if (shape->rows == 0) return cudaSuccess;
    Heads heads = {shape->heads,
                   shape->kv_heads,
                   shape->head_dim,
                   q,
                   k,
                   q_weight,
                   k_weight,
                   NULL,
                   NULL,
                   rq,
                   rk,
                   pitch_of_heads(shape, shape->stride),
                   {},
                   pitch_of_heads(shape, shape->out_stride)};
    Angles angles = {cosine, sine};
    bool pairs = has_pairs(shape, q, k, rq, rk);
#define FORWARD(N, NORM)                                                                                      \
    CU_LAUNCH((rope_forward<T, N, NORM>), (unsigned)shape->rows, WARPS * 32, 0, stream, batch, heads, angles, \
              (float)shape->epsilon, roots)
    WITH_ACT(act, {
        if (pairs && shape->has_norm)
            FORWARD(2, true);
        else if (pairs)
            FORWARD(2, false);
        else if (shape->has_norm)
            FORWARD(1, true);
        else
            FORWARD(1, false);
    });
    return cudaGetLastError();
}

extern "C" cudaError_t cuda_rope_backward(DType act, const DeviceBatch *batch, const RopeShape *shape, const float *cosine,
                                          const float *sine, const void *q, const void *k, const void *q_weight,
                                          const void *k_weight, const float *roots, const void *drq, const void *drk, void *dq,
                                          void *dk, cudaStream_t stream) {
    if (!is_shape(shape)) return cudaErrorInvalidValue;
    if (shape->rows == 0) return cudaSuccess;
    Heads heads = {shape->heads,
                   shape->kv_heads,
                   shape->head_dim,
                   q,
                   k,
                   q_weight,
                   k_weight,
                   drq,
                   drk,
                   dq,
                   dk,
                   pitch_of_heads(shape, shape->stride),
                   pitch_of_heads(shape, shape->gradient_stride),
                   pitch_of_heads(shape, shape->gradient_stride)};
    Angles angles = {cosine, sine};
    bool pairs = has_pairs(shape, q, k, drq, drk, dq, dk);
#define BACKWARD(N, NORM) \
    CU_LAUNCH((rope_backward<T, N, NORM>), (unsigned)shape->rows, WARPS * 32, 0, stream, batch, heads, angles, roots)
    WITH_ACT(act, {
        if (pairs && shape->has_norm)
            BACKWARD(2, true);
        else if (pairs)
            BACKWARD(2, false);
        else if (shape->has_norm)
            BACKWARD(1, true);
        else
            BACKWARD(1, false);
    });
    return cudaGetLastError();
}

extern "C" cudaError_t cuda_rope_weight_grad(DType act, const DeviceBatch *batch, const RopeShape *shape, const float *cosine,
                                             const float *sine, const void *q, const void *k, const float *roots,
                                             const void *drq, const void *drk, float *dq_weight, float *dk_weight,
                                             cudaStream_t stream) {
    if (!is_shape(shape) || !shape->has_norm) return cudaErrorInvalidValue;
    if (shape->rows == 0) return cudaSuccess;
    Heads heads = {shape->heads,
                   shape->kv_heads,
                   shape->head_dim,
                   q,
                   k,
                   NULL,
                   NULL,
                   drq,
                   drk,
                   NULL,
                   NULL,
                   pitch_of_heads(shape, shape->stride),
                   pitch_of_heads(shape, shape->gradient_stride),
                   {}};
    Angles angles = {cosine, sine};
    dim3 grid((unsigned)divide_up(shape->head_dim / 2, PAIRS), 2);
    WITH_ACT(act, CU_LAUNCH((rope_weight_grad<T>), grid, PAIRS * ROW_LANES, 0, stream, batch, heads, angles, roots, dq_weight,
                            dk_weight));
    return cudaGetLastError();
}
