// Attention: the launchers, what backward computes once for its kernels, and the cache's rows.
#include "kernels/cuda/attention.cuh"

enum { WARPS = 8 };

// The facts of every row and head (delta = o . do, a warp a head; lse times `unit`), and the first key of every row.
template <class T>
__global__ void __launch_bounds__(WARPS * 32)
    attention_prepare(Attention a, const T *__restrict__ o, const float *__restrict__ lse, float unit,
                      RowFacts *__restrict__ facts, int32_t *__restrict__ first_keys) {
    int64_t t = blockIdx.x, pitch = a.heads * a.head_dim;
    bool live = t < a.batch->tokens;
    if (threadIdx.x == 0) first_keys[t] = live ? (int32_t)first_key(a, t) : INT32_MAX;
    for (int64_t head = threadIdx.x / 32; head < a.heads; head += WARPS) {
        const T *left = o + t * pitch + head * a.head_dim, *right = (const T *)a.d_o + t * pitch + head * a.head_dim;
        float sum = 0.0f;
        for (int64_t d = 2 * (threadIdx.x % 32); live && d < a.head_dim; d += 64) {
            float x[2], y[2];
            load_n<2>(left + d, x);
            load_n<2>(right + d, y);
            sum += x[0] * y[0] + x[1] * y[1];
        }
        sum = warp_sum(sum);
        if (threadIdx.x % 32 == 0)
            facts[head * a.fact_rows + t] = {live ? lse[t * a.heads + head] * unit : 0.0f, live ? -sum : 0.0f};
    }
}

template <class T>
__global__ void __launch_bounds__(256)
    cache_append(const DeviceBatch *__restrict__ batch, int64_t width, const T *__restrict__ k, int64_t k_pitch,
                 const T *__restrict__ v, int64_t v_pitch, T *__restrict__ k_cache, T *__restrict__ v_cache) {
    int64_t t = blockIdx.x, to = (batch->past + t) * width;
    if (t >= batch->tokens) return;
    for (int64_t c = threadIdx.x; c < width; c += 256) {
        k_cache[to + c] = k[t * k_pitch + c];
        v_cache[to + c] = v[t * v_pitch + c];
    }
}

static bool is_shape(const AttentionShape *s, int64_t rows) {
    return rows >= 0 && rows <= 65535 * (int64_t)64 && s->heads >= 1 && s->heads <= 65535 && s->kv_heads >= 1 &&
           s->heads % s->kv_heads == 0 && s->head_dim >= 2 && s->head_dim % 2 == 0 && s->head_dim <= CUDA_HEAD_DIM_MAX &&
           s->window >= 0 && is_pitch(s->q_stride, s->heads * s->head_dim) &&
           is_pitch(s->k_stride, s->kv_heads * s->head_dim) && is_pitch(s->v_stride, s->kv_heads * s->head_dim) &&
           is_pitch(s->gradient_stride, s->heads * s->head_dim) &&
           (s->q_stride | s->k_stride | s->v_stride | s->gradient_stride) % 2 == 0;
}

static Attention arguments(const DeviceBatch *batch, const AttentionShape *s) {
    Attention a = {};
    a.batch = batch;
    a.heads = s->heads, a.kv_heads = s->kv_heads, a.head_dim = s->head_dim, a.window = s->window, a.scale = s->scale;
    a.group = (int)(s->heads / s->kv_heads);
    int64_t width = s->heads * s->head_dim, kv_width = s->kv_heads * s->head_dim;
    a.q_pitch = pitch_of(s->q_stride, width), a.k_pitch = pitch_of(s->k_stride, kv_width);
    a.v_pitch = pitch_of(s->v_stride, kv_width);
    a.dq_pitch = pitch_of(s->gradient_stride, width), a.dkv_pitch = pitch_of(s->gradient_stride, kv_width);
    return a;
}

static bool has_tiles(DType act, const AttentionShape *s) {
    return act == DTYPE_BF16 && s->head_dim % VEC == 0 && s->head_dim <= 128 && s->scale > 0.0f &&
           (s->q_stride | s->k_stride | s->v_stride) % VEC == 0;
}

static cudaError_t forward(DType act, const AttentionShape *shape, const Attention &a, int64_t rows, cudaStream_t stream) {
    if (rows == 0) return cudaSuccess;
    if (has_tiles(act, shape) && all_aligned(a.q, a.k, a.v)) return attention_forward_tiles(a, rows, stream);
    return attention_forward_plain(act, a, rows, stream);
}

extern "C" cudaError_t cuda_attention_forward(DType act, const DeviceBatch *batch, const AttentionShape *shape, const void *q,
                                              const void *k, const void *v, void *o, float *lse, cudaStream_t stream) {
    if (!is_shape(shape, shape->rows)) return cudaErrorInvalidValue;
    Attention a = arguments(batch, shape);
    a.q = q, a.k = k, a.v = v, a.o = o, a.lse = lse;
    return forward(act, shape, a, shape->rows, stream);
}

static int64_t fact_rows(const AttentionShape *shape) {
    return divide_up(shape->rows, FACT_ROWS) * FACT_ROWS;
}

extern "C" size_t cuda_attention_workspace(const AttentionShape *shape) {
    return (size_t)fact_rows(shape) * ((size_t)shape->heads * sizeof(RowFacts) + sizeof(int32_t));
}

extern "C" cudaError_t cuda_attention_backward(DType act, const DeviceBatch *batch, const AttentionShape *shape, const void *q,
                                               const void *k, const void *v, const void *o, const float *lse, const void *d_o,
                                               void *dq, void *dk, void *dv, void *workspace, cudaStream_t stream) {
    if (!is_shape(shape, shape->rows)) return cudaErrorInvalidValue;
    if (shape->rows == 0) return cudaSuccess;
    Attention a = arguments(batch, shape);
    a.fact_rows = fact_rows(shape);
    RowFacts *facts = (RowFacts *)workspace;
    int32_t *first_keys = (int32_t *)(facts + a.fact_rows * shape->heads);
    a.q = q, a.k = k, a.v = v, a.d_o = d_o, a.facts = facts, a.first_keys = first_keys;
    a.dq = dq, a.dk = dk, a.dv = dv;
    bool tiles = has_tiles(act, shape) && all_aligned(q, k, v, d_o, workspace);
    WITH_ACT(act, CU_LAUNCH((attention_prepare<T>), (unsigned)a.fact_rows, WARPS * 32, 0, stream, a, (const T *)o, lse,
                            tiles ? LOG2_E : 1.0f, facts, first_keys));
    cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) return error;
    return tiles ? attention_backward_tiles(a, shape->rows, stream) : attention_backward_plain(act, a, shape->rows, stream);
}

extern "C" cudaError_t cuda_cache_append(DType act, const DeviceBatch *batch, const AttentionShape *shape, int64_t query_rows,
                                         const void *k, const void *v, void *k_cache, void *v_cache, cudaStream_t stream) {
    if (!is_shape(shape, query_rows)) return cudaErrorInvalidValue;
    if (query_rows == 0) return cudaSuccess;
    int64_t width = shape->kv_heads * shape->head_dim;
    WITH_ACT(act, CU_LAUNCH((cache_append<T>), (unsigned)query_rows, 256, 0, stream, batch, width, (const T *)k,
                            pitch_of(shape->k_stride, width), (const T *)v, pitch_of(shape->v_stride, width), (T *)k_cache,
                            (T *)v_cache));
    return cudaGetLastError();
}

extern "C" cudaError_t cuda_attention_cached(DType act, const DeviceBatch *batch, const AttentionShape *shape,
                                             int64_t query_rows, const void *q, const void *k_cache, const void *v_cache,
                                             void *o, cudaStream_t stream) {
    if (!is_shape(shape, query_rows)) return cudaErrorInvalidValue;
    Attention a = arguments(batch, shape);
    a.q = q, a.k = k_cache, a.v = v_cache, a.o = o, a.cached = true;
    a.k_pitch = a.v_pitch = shape->kv_heads * shape->head_dim;
    return forward(act, shape, a, query_rows, stream);
}
