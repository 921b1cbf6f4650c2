// Attention without tensor cores: F32, and head sizes that the tiles do not take. A warp owns a result row; its lanes take 32
// keys (or queries) at a time for the scores, then 32 head dimensions at a time for the sums.
#include "kernels/cuda/attention.cuh"

enum { WARPS = 4, DIM_MAX = CUDA_HEAD_DIM_MAX, PER_LANE = DIM_MAX / 32 };

template <class T>
__device__ __forceinline__ float dot(const float *a, const T *b, int64_t count) {
    float sum = 0.0f;
    for (int64_t i = 0; i < count; i++)
        sum += a[i] * to_float(b[i]);
    return sum;
}

// Copies a head's row into the warp's part of shared memory.
template <class T>
__device__ __forceinline__ void stage_row(float *to, const T *from, int64_t count) {
    for (int64_t i = threadIdx.x % 32; i < count; i += 32)
        to[i] = to_float(from[i]);
    __syncwarp();
}

// sum[i] += weight_l * row_l[lane + 32 i], over the lanes l that have a row, in their order
template <class T>
__device__ __forceinline__ void add_rows(float sum[PER_LANE], float weight, const T *first, int64_t pitch, int64_t rows,
                                         int64_t head_dim) {
    int lane = threadIdx.x % 32;
    for (int l = 0; l < 32; l++) {
        float w = __shfl_sync(ALL_LANES, weight, l);
        if (l >= rows) continue;
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) {
            int d = lane + 32 * i;
            if (d < head_dim) sum[i] += w * to_float(first[l * pitch + d]);
        }
    }
}

template <class T>
__device__ __forceinline__ void store_row(T *to, const float sum[PER_LANE], float factor, int64_t head_dim) {
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        int d = threadIdx.x % 32 + 32 * i;
        if (d < head_dim) to[d] = from_float<T>(factor * sum[i]);
    }
}

template <class T>
__global__ void __launch_bounds__(WARPS * 32) attention_forward_plain(Attention a) {
    CU_SHARED(float, rows, [WARPS][DIM_MAX]);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int64_t t = blockIdx.x, head = (int64_t)blockIdx.y * WARPS + warp, dim = a.head_dim;
    if (t >= a.batch->tokens || head >= a.heads) return;  // whole warps
    int64_t kv_head = head / a.group;
    const T *k = (const T *)a.k + kv_head * dim, *v = (const T *)a.v + kv_head * dim;
    stage_row(rows[warp], (const T *)a.q + t * a.q_pitch + head * dim, dim);
    float out[PER_LANE] = {}, most = -INFINITY, sum = 0.0f;
    int64_t last = key_row(a, t);
    for (int64_t key = first_key(a, t); key <= last; key += 32) {
        bool seen = key + lane <= last;
        float s = seen ? a.scale * dot(rows[warp], k + (key + lane) * a.k_pitch, dim) : -INFINITY;
        float peak = fmaxf(most, warp_max(s)), factor = expf(most - peak), p = expf(s - peak);
        sum = sum * factor + warp_sum(p), most = peak;
#pragma unroll
        for (int i = 0; i < PER_LANE; i++)
            out[i] *= factor;
        add_rows(out, p, v + key * a.v_pitch, a.v_pitch, last - key + 1, dim);
    }
    store_row((T *)a.o + (t * a.heads + head) * dim, out, 1.0f / sum, dim);
    if (lane == 0 && a.lse != NULL) a.lse[t * a.heads + head] = most + logf(sum);
}

template <class T>
__global__ void __launch_bounds__(WARPS * 32) attention_dq_plain(Attention a) {
    CU_SHARED(float, rows, [WARPS][2][DIM_MAX]);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int64_t t = blockIdx.x, head = (int64_t)blockIdx.y * WARPS + warp, dim = a.head_dim;
    if (t >= a.batch->tokens || head >= a.heads) return;  // whole warps
    int64_t kv_head = head / a.group;
    const T *k = (const T *)a.k + kv_head * dim, *v = (const T *)a.v + kv_head * dim;
    stage_row(rows[warp][0], (const T *)a.q + t * a.q_pitch + head * dim, dim);
    stage_row(rows[warp][1], (const T *)a.d_o + (t * a.heads + head) * dim, dim);
    float dq[PER_LANE] = {};
    const RowFacts &facts = a.facts[head * a.fact_rows + t];
    for (int64_t key = a.first_keys[t]; key <= t; key += 32) {
        float ds = 0.0f;
        if (key + lane <= t) {
            float p = expf(a.scale * dot(rows[warp][0], k + (key + lane) * a.k_pitch, dim) - facts.lse);
            ds = p * (dot(rows[warp][1], v + (key + lane) * a.v_pitch, dim) + facts.minus_delta);
        }
        add_rows(dq, ds, k + key * a.k_pitch, a.k_pitch, t - key + 1, dim);
    }
    store_row((T *)a.dq + t * a.dq_pitch + head * dim, dq, a.scale, dim);
}

template <class T>
__global__ void __launch_bounds__(WARPS * 32, 4) attention_dkv_plain(Attention a) {
    CU_SHARED(float, rows, [WARPS][2][DIM_MAX]);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int64_t j = blockIdx.x, kv_head = (int64_t)blockIdx.y * WARPS + warp, dim = a.head_dim;
    if (j >= a.batch->tokens || kv_head >= a.kv_heads) return;  // whole warps
    int64_t group = a.group, o_pitch = a.heads * dim, end = query_end(a, j);
    stage_row(rows[warp][0], (const T *)a.k + j * a.k_pitch + kv_head * dim, dim);
    stage_row(rows[warp][1], (const T *)a.v + j * a.v_pitch + kv_head * dim, dim);
    float dk[PER_LANE] = {}, dv[PER_LANE] = {};
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; head++) {
        const T *q = (const T *)a.q + head * dim, *d_o = (const T *)a.d_o + head * dim;
        for (int64_t query = j; query < end; query += 32) {
            float p = 0.0f, ds = 0.0f;
            if (query + lane < end) {
                const RowFacts &facts = a.facts[head * a.fact_rows + query + lane];
                p = expf(a.scale * dot(rows[warp][0], q + (query + lane) * a.q_pitch, dim) - facts.lse);
                ds = p * (dot(rows[warp][1], d_o + (query + lane) * o_pitch, dim) + facts.minus_delta);
            }
            add_rows(dv, p, d_o + query * o_pitch, o_pitch, end - query, dim);
            add_rows(dk, ds, q + query * a.q_pitch, a.q_pitch, end - query, dim);
        }
    }
    store_row((T *)a.dk + j * a.dkv_pitch + kv_head * dim, dk, a.scale, dim);
    store_row((T *)a.dv + j * a.dkv_pitch + kv_head * dim, dv, 1.0f, dim);
}

cudaError_t attention_forward_plain(DType act, const Attention &a, int64_t rows, cudaStream_t stream) {
    dim3 grid((unsigned)rows, (unsigned)divide_up(a.heads, WARPS));
    WITH_ACT(act, CU_LAUNCH((attention_forward_plain<T>), grid, WARPS * 32, 0, stream, a));
    return cudaGetLastError();
}

cudaError_t attention_backward_plain(DType act, const Attention &a, int64_t rows, cudaStream_t stream) {
    dim3 by_query((unsigned)rows, (unsigned)divide_up(a.heads, WARPS));
    dim3 by_key((unsigned)rows, (unsigned)divide_up(a.kv_heads, WARPS));
    WITH_ACT(act, {
        CU_LAUNCH((attention_dq_plain<T>), by_query, WARPS * 32, 0, stream, a);
        CU_LAUNCH((attention_dkv_plain<T>), by_key, WARPS * 32, 0, stream, a);
    });
    return cudaGetLastError();
}
