// Attention backward on the tensor cores, in two kernels that compute the weights anew: one by query for dq, one by key for dk
// and dv. Every sum belongs to one block, so there are no atomics and the bits are the same every time.
//
//   p_ij = exp(scale q_i k_j - lse_i)     ds_ij = p_ij (do_i v_j - delta_i)
//   dq_i = scale sum_j ds_ij k_j          dk_j = scale sum_i ds_ij q_i          dv_j = sum_i p_ij do_i
//
// p and ds are rounded to BF16 for their products.
#include "kernels/cuda/attention.cuh"

static constexpr int WARPS = 4, THREADS = WARPS * 32, ROWS = WARPS * 16;  // rows that a block owns

template <int D>
struct Shape {
    static constexpr int OTHERS = D > 64 ? 32 : 64;  // keys of a step for dq, queries of a step for dk and dv
    static constexpr int STRIDE = Tile<D>::STRIDE;
    static constexpr size_t BYTES = sizeof(bf16) * STRIDE * (2 * ROWS + 4 * OTHERS);
};

// 0: as the compiler likes it; for 32 it would spill a register on sm_90 to fit four blocks.
template <int D>
__global__ void __launch_bounds__(THREADS, D > 32 ? 0 : 3) attention_dq(Attention a) {
    constexpr int KEYS = Shape<D>::OTHERS, STRIDE = Shape<D>::STRIDE, NT = KEYS / 8, DT = D / 8;
    CU_DYN_SHARED(memory);
    bf16 *tile_q = (bf16 *)memory, *tile_do = tile_q + ROWS * STRIDE;
    bf16 *tile_k = tile_do + ROWS * STRIDE, *tile_v = tile_k + 2 * KEYS * STRIDE;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int64_t head = blockIdx.x, kv_head = head / (a.heads / a.kv_heads), tokens = a.batch->tokens;
    int64_t first = (int64_t)(gridDim.y - 1 - blockIdx.y) * ROWS;  // the longest tiles first
    if (first >= tokens) return;
    const bf16 *k = (const bf16 *)a.k + kv_head * a.head_dim, *v = (const bf16 *)a.v + kv_head * a.head_dim;
    int64_t end = first + ROWS < tokens ? first + ROWS : tokens, begin = a.first_keys[first] / KEYS * KEYS;
    Tile<D>::template load<ROWS, THREADS>(tile_q, (const bf16 *)a.q + head * a.head_dim, a.q_pitch, first, tokens, a.head_dim);
    Tile<D>::template load<ROWS, THREADS>(tile_do, (const bf16 *)a.d_o + head * a.head_dim, a.heads * a.head_dim, first, tokens,
                                          a.head_dim);
    auto load = [&](int stage, int64_t key) {
        Tile<D>::template load<KEYS, THREADS>(tile_k + stage * KEYS * STRIDE, k, a.k_pitch, key, tokens, a.head_dim);
        Tile<D>::template load<KEYS, THREADS>(tile_v + stage * KEYS * STRIDE, v, a.v_pitch, key, tokens, a.head_dim);
        cp_async_commit();
    };
    load(0, begin);

    int row = warp * 16;
    int low[2], high[2];  // the keys of the lane's rows; rows that are not there see none
    float lse[2], delta[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int64_t r = first + row + h * 8 + g;
        bool live = r < tokens;
        low[h] = live ? a.first_keys[r] : INT32_MAX, high[h] = (int)r;
        lse[h] = live ? a.lse_in[r * a.heads + head] * LOG2_E : 0.0f, delta[h] = live ? a.delta[r * a.heads + head] : 0.0f;
    }
    float scale = a.scale * LOG2_E, dq[DT][4] = {};
    int stage = 0;
    for (int64_t key = begin; key < end; key += KEYS, stage ^= 1) {
        if (key + KEYS < end)
            load(stage ^ 1, key + KEYS);
        else
            cp_async_commit();
        cp_async_wait<1>();
        __syncthreads();
        const bf16 *now_k = tile_k + stage * KEYS * STRIDE, *now_v = tile_v + stage * KEYS * STRIDE;
        float score[NT][4] = {}, dp[NT][4] = {};
#pragma unroll
        for (int d = 0; d < D; d += 16) {
            uint32_t fq[4], fo[4];
            Tile<D>::rows16(fq, tile_q, row, d);
            Tile<D>::rows16(fo, tile_do, row, d);
#pragma unroll
            for (int n = 0; n < NT; n += 2) {
                uint32_t fb[4];
                Tile<D>::columns16(fb, now_k, n * 8, d);
                mma_m16n8k16(score[n], fq, fb);
                mma_m16n8k16(score[n + 1], fq, fb + 2);
                Tile<D>::columns16(fb, now_v, n * 8, d);
                mma_m16n8k16(dp[n], fo, fb);
                mma_m16n8k16(dp[n + 1], fo, fb + 2);
            }
        }
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int j = (int)key + n * 8 + 2 * t + e % 2;
                bool seen = j >= low[e / 2] && j <= high[e / 2];
                float p = seen ? fast_exp2(score[n][e] * scale - lse[e / 2]) : 0.0f;
                dp[n][e] = p * (dp[n][e] - delta[e / 2]);
            }
#pragma unroll
        for (int n = 0; n < NT; n += 2) {
            uint32_t fa[4];
            as_operand(fa, dp[n], dp[n + 1]);
#pragma unroll
            for (int d = 0; d < DT; d += 2) {
                uint32_t fb[4];
                Tile<D>::transposed16(fb, now_k, n * 8, d * 8);
                mma_m16n8k16(dq[d], fa, fb);
                mma_m16n8k16(dq[d + 1], fa, fb + 2);
            }
        }
        __syncthreads();
    }
    cp_async_wait<0>();
    bf16 *to = (bf16 *)a.dq + head * a.head_dim;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int64_t r = first + row + h * 8 + g;
        if (r >= tokens) continue;
#pragma unroll
        for (int d = 0; d < DT; d++) {
            int c = d * 8 + 2 * t;
            if (c >= a.head_dim) continue;
            *reinterpret_cast<uint32_t *>(to + r * a.dq_pitch + c) =
                pack_bf16(a.scale * dq[d][2 * h], a.scale * dq[d][2 * h + 1]);
        }
    }
}

// What is known of the queries of a step, by stage.
template <int QUERIES>
struct QueryFacts {
    float lse[2][QUERIES], delta[2][QUERIES];
    int32_t first_key[2][QUERIES];
};

// Scores are computed transposed, keys by queries: the weights are then the left operand of dv and dk as they stand.
template <int D>
__global__ void __launch_bounds__(THREADS, D > 32 ? 2 : 3) attention_dkv(Attention a) {
    constexpr int QUERIES = Shape<D>::OTHERS, STRIDE = Shape<D>::STRIDE, NT = QUERIES / 8, DT = D / 8;
    CU_DYN_SHARED(memory);
    CU_SHARED(QueryFacts<QUERIES>, facts, [1]);
    bf16 *tile_k = (bf16 *)memory, *tile_v = tile_k + ROWS * STRIDE;
    bf16 *tile_q = tile_v + ROWS * STRIDE, *tile_do = tile_q + 2 * QUERIES * STRIDE;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int64_t kv_head = blockIdx.x, group = a.heads / a.kv_heads, tokens = a.batch->tokens;
    int64_t first = (int64_t)blockIdx.y * ROWS;  // the first keys have the most queries
    if (first >= tokens) return;
    int64_t last = first + ROWS < tokens ? first + ROWS : tokens, end = query_end(a, last - 1);
    int64_t steps = divide_up(end - first, QUERIES), all = steps * group;
    Tile<D>::template load<ROWS, THREADS>(tile_k, (const bf16 *)a.k + kv_head * a.head_dim, a.k_pitch, first, tokens,
                                          a.head_dim);
    Tile<D>::template load<ROWS, THREADS>(tile_v, (const bf16 *)a.v + kv_head * a.head_dim, a.v_pitch, first, tokens,
                                          a.head_dim);
    auto load = [&](int stage, int64_t step) {
        int64_t head = kv_head * group + step / steps, query = first + step % steps * QUERIES;
        const bf16 *q = (const bf16 *)a.q + head * a.head_dim, *d_o = (const bf16 *)a.d_o + head * a.head_dim;
        Tile<D>::template load<QUERIES, THREADS>(tile_q + stage * QUERIES * STRIDE, q, a.q_pitch, query, end, a.head_dim);
        Tile<D>::template load<QUERIES, THREADS>(tile_do + stage * QUERIES * STRIDE, d_o, a.heads * a.head_dim, query, end,
                                                 a.head_dim);
        cp_async_commit();
        if (threadIdx.x < QUERIES) {
            int64_t r = query + threadIdx.x;
            bool live = r < end;
            facts->lse[stage][threadIdx.x] = live ? a.lse_in[r * a.heads + head] * LOG2_E : 0.0f;
            facts->delta[stage][threadIdx.x] = live ? a.delta[r * a.heads + head] : 0.0f;
            facts->first_key[stage][threadIdx.x] = live ? a.first_keys[r] : INT32_MAX;  // it sees no key
        }
    };
    load(0, 0);

    int row = warp * 16;
    float scale = a.scale * LOG2_E, dk[DT][4] = {}, dv[DT][4] = {};
    int stage = 0;
    for (int64_t step = 0; step < all; step++, stage ^= 1) {
        if (step + 1 < all)
            load(stage ^ 1, step + 1);
        else
            cp_async_commit();
        cp_async_wait<1>();
        __syncthreads();
        const bf16 *now_q = tile_q + stage * QUERIES * STRIDE, *now_do = tile_do + stage * QUERIES * STRIDE;
        int64_t query = first + step % steps * QUERIES;
        float score[NT][4] = {}, dp[NT][4] = {};
#pragma unroll
        for (int d = 0; d < D; d += 16) {
            uint32_t fk[4], fv[4];
            Tile<D>::rows16(fk, tile_k, row, d);
            Tile<D>::rows16(fv, tile_v, row, d);
#pragma unroll
            for (int n = 0; n < NT; n += 2) {
                uint32_t fb[4];
                Tile<D>::columns16(fb, now_q, n * 8, d);
                mma_m16n8k16(score[n], fk, fb);
                mma_m16n8k16(score[n + 1], fk, fb + 2);
                Tile<D>::columns16(fb, now_do, n * 8, d);
                mma_m16n8k16(dp[n], fv, fb);
                mma_m16n8k16(dp[n + 1], fv, fb + 2);
            }
        }
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int i = n * 8 + 2 * t + e % 2;
                int key = (int)first + row + g + e / 2 * 8;
                bool seen = key <= (int)query + i && key >= facts->first_key[stage][i];
                float p = seen ? fast_exp2(score[n][e] * scale - facts->lse[stage][i]) : 0.0f;
                score[n][e] = p;
                dp[n][e] = p * (dp[n][e] - facts->delta[stage][i]);
            }
#pragma unroll
        for (int n = 0; n < NT; n += 2) {
            uint32_t fp[4], fs[4];
            as_operand(fp, score[n], score[n + 1]);
            as_operand(fs, dp[n], dp[n + 1]);
#pragma unroll
            for (int d = 0; d < DT; d += 2) {
                uint32_t fb[4];
                Tile<D>::transposed16(fb, now_do, n * 8, d * 8);
                mma_m16n8k16(dv[d], fp, fb);
                mma_m16n8k16(dv[d + 1], fp, fb + 2);
                Tile<D>::transposed16(fb, now_q, n * 8, d * 8);
                mma_m16n8k16(dk[d], fs, fb);
                mma_m16n8k16(dk[d + 1], fs, fb + 2);
            }
        }
        __syncthreads();
    }
    cp_async_wait<0>();
    bf16 *to_k = (bf16 *)a.dk + kv_head * a.head_dim, *to_v = (bf16 *)a.dv + kv_head * a.head_dim;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int64_t r = first + row + h * 8 + g;
        if (r >= tokens) continue;
#pragma unroll
        for (int d = 0; d < DT; d++) {
            int c = d * 8 + 2 * t;
            if (c >= a.head_dim) continue;
            *reinterpret_cast<uint32_t *>(to_k + r * a.dkv_pitch + c) =
                pack_bf16(a.scale * dk[d][2 * h], a.scale * dk[d][2 * h + 1]);
            *reinterpret_cast<uint32_t *>(to_v + r * a.dkv_pitch + c) = pack_bf16(dv[d][2 * h], dv[d][2 * h + 1]);
        }
    }
}

template <int D>
static cudaError_t launch(const Attention &a, int64_t rows, cudaStream_t stream) {
    unsigned tiles = (unsigned)divide_up(rows, ROWS);
    cudaFuncAttribute limit = cudaFuncAttributeMaxDynamicSharedMemorySize;
    cudaError_t error = cudaFuncSetAttribute(attention_dq<D>, limit, (int)Shape<D>::BYTES);
    if (error == cudaSuccess) error = cudaFuncSetAttribute(attention_dkv<D>, limit, (int)Shape<D>::BYTES);
    if (error != cudaSuccess) return error;
    CU_LAUNCH((attention_dq<D>), dim3((unsigned)a.heads, tiles), THREADS, Shape<D>::BYTES, stream, a);
    CU_LAUNCH((attention_dkv<D>), dim3((unsigned)a.kv_heads, tiles), THREADS, Shape<D>::BYTES, stream, a);
    return cudaGetLastError();
}

cudaError_t attention_backward_tiles(const Attention &a, int64_t rows, cudaStream_t stream) {
    if (a.head_dim <= 32) return launch<32>(a, rows, stream);
    if (a.head_dim <= 64) return launch<64>(a, rows, stream);
    if (a.head_dim <= 96) return launch<96>(a, rows, stream);
    return launch<128>(a, rows, stream);
}
