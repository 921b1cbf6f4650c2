// Attention backward on the tensor cores, in two kernels that compute the weights anew: one by query for dq, one by key for dk
// and dv. Every sum belongs to one block, so there are no atomics and the bits are the same every time.
//
//   p_ij = exp(scale q_i k_j - lse_i)     ds_ij = p_ij (do_i v_j - delta_i)
//   dq_i = scale sum_j ds_ij k_j          dk_j = scale sum_i ds_ij q_i          dv_j = sum_i p_ij do_i
//
// p and ds are rounded to BF16 for their products. Sums of do v begin at -delta.
#include "kernels/cuda/attention.cuh"

static constexpr int WARPS = 4, THREADS = WARPS * 32;

template <int D>
struct QueryShape {  // of attention_dq
    static constexpr int MT = 2, QUERIES = WARPS * 16 * MT, KEYS = 32;
    static constexpr int STRIDE = Tile<D>::STRIDE;
    static constexpr size_t BYTES = sizeof(bf16) * STRIDE * (2 * QUERIES + 3 * KEYS);
};

// Values have one stage of shared memory and keys two: they fit the 99 KiB of sm_86, sm_89 and sm_120 so. The values of the
// next step come while the keys are multiplied.
template <int D>
__global__ void __launch_bounds__(THREADS) attention_dq(Attention a) {
    using Shape = QueryShape<D>;
    constexpr int QUERIES = Shape::QUERIES, KEYS = Shape::KEYS, STRIDE = Shape::STRIDE, MT = Shape::MT;
    constexpr int NT = KEYS / 8, DT = D / 8;
    CU_DYN_SHARED(memory);
    CU_SHARED(RowFacts, facts, [QUERIES]);
    bf16 *tile_q = (bf16 *)memory, *tile_do = tile_q + QUERIES * STRIDE;
    bf16 *tile_k = tile_do + QUERIES * STRIDE, *tile_v = tile_k + 2 * KEYS * STRIDE;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int head = (int)blockIdx.x, kv_head = head / a.group, tokens = (int)a.batch->tokens;
    int first = (int)(gridDim.y - 1 - blockIdx.y) * QUERIES;  // the longest tiles first
    if (first >= tokens) return;
    const bf16 *k = (const bf16 *)a.k + kv_head * a.head_dim, *v = (const bf16 *)a.v + kv_head * a.head_dim;
    int last = first + QUERIES < tokens ? first + QUERIES : tokens, begin = a.first_keys[first] / KEYS * KEYS;
    Tile<D>::template load<QUERIES, THREADS>(tile_q, (const bf16 *)a.q + head * a.head_dim, a.q_pitch, first, tokens,
                                             a.head_dim);
    Tile<D>::template load<QUERIES, THREADS>(tile_do, (const bf16 *)a.d_o + head * a.head_dim, a.heads * a.head_dim, first,
                                             tokens, a.head_dim);
    auto load_k = [&](int stage, int key) {
        Tile<D>::template load<KEYS, THREADS>(tile_k + stage * KEYS * STRIDE, k, a.k_pitch, key, tokens, a.head_dim);
        cp_async_commit();
    };
    auto load_v = [&](int key) {
        Tile<D>::template load<KEYS, THREADS>(tile_v, v, a.v_pitch, key, tokens, a.head_dim);
        cp_async_commit();
    };
    load_k(0, begin);
    load_v(begin);
    for (int i = threadIdx.x; i < QUERIES; i += THREADS)
        facts[i] = first + i < tokens ? a.facts[head * a.fact_rows + first + i] : RowFacts{0.0f, 0.0f};

    int row = warp * 16 * MT;
    // the keys that all rows of the warp see, and the last that one of them sees
    int warp_high = first + row, warp_end = warp_high + 16 * MT;
    int warp_low = a.first_keys[warp_end <= tokens ? warp_end - 1 : tokens - 1];
    float scale = a.scale * LOG2_E, dq[MT][DT][4] = {};
    int stage = 0;
    for (int key = begin; key < last; key += KEYS, stage ^= 1) {
        const bf16 *now_k = tile_k + stage * KEYS * STRIDE;
        bool seeing = key < warp_end, more = key + KEYS < last;
        float score[MT][NT][4] = {}, ds[MT][NT][4];
        cp_async_wait<0>();
        __syncthreads();  // keys and values are there, and nobody reads the other stage any more
        if (more) load_k(stage ^ 1, key + KEYS);
        if (seeing) {
#pragma unroll
            for (int m = 0; m < MT; m++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    float minus_delta = facts[row + m * 16 + h * 8 + g].minus_delta;
#pragma unroll
                    for (int n = 0; n < NT; n++)
                        ds[m][n][2 * h] = ds[m][n][2 * h + 1] = minus_delta;
                }
            Tile<D>::template dot_rows<MT, NT>(ds, tile_do, row, tile_v);
        }
        __syncthreads();  // nobody reads the values any more
        if (more) load_v(key + KEYS);
        if (!seeing) continue;
        Tile<D>::template dot_rows<MT, NT>(score, tile_q, row, now_k);
        if (key < warp_low || key + KEYS - 1 > warp_high) {
            int j = key + 2 * t;
#pragma unroll
            for (int m = 0; m < MT; m++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    int high = warp_high + m * 16 + h * 8 + g, low = a.first_keys[high < tokens ? high : tokens - 1];
#pragma unroll
                    for (int n = 0; n < NT; n++)
#pragma unroll
                        for (int e = 0; e < 2; e++) {
                            float &s = score[m][n][2 * h + e];
                            s = (j + n * 8 + e >= low) & (j + n * 8 + e <= high) ? s : -INFINITY;
                        }
                }
        }
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float lse = facts[row + m * 16 + h * 8 + g].lse;
#pragma unroll
                for (int n = 0; n < NT; n++)
#pragma unroll
                    for (int e = 2 * h; e < 2 * h + 2; e++)
                        ds[m][n][e] *= fast_exp2(score[m][n][e] * scale - lse);
            }
        Tile<D>::template add_weighted<MT, NT>(dq, ds, now_k);
    }
    bf16 *to = (bf16 *)a.dq + head * a.head_dim;
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int64_t r = first + row + m * 16 + h * 8 + g;
            if (r >= tokens) continue;
#pragma unroll
            for (int d = 0; d < DT; d++) {
                int c = d * 8 + 2 * t;
                if (c >= a.head_dim) continue;
                *reinterpret_cast<uint32_t *>(to + r * a.dq_pitch + c) =
                    pack_bf16(a.scale * dq[m][d][2 * h], a.scale * dq[m][d][2 * h + 1]);
            }
        }
}

template <int D>
struct KeyShape {  // of attention_dkv
    static constexpr int KEYS = WARPS * 16, QUERIES = 64;
    static constexpr int STRIDE = Tile<D>::STRIDE;
    static constexpr size_t BYTES = sizeof(bf16) * STRIDE * 4 * QUERIES;
    static_assert(QUERIES == FACT_ROWS && KEYS <= QUERIES, "facts are read in whole steps, keys and values lie in the stages");
};

// What is known of the queries of a step, by stage.
struct alignas(16) StepFacts {
    RowFacts row[2][FACT_ROWS];
    int32_t first_key[2][FACT_ROWS];
};

// Scores are computed transposed, keys by queries: the weights are then the left operand of dv and dk as they stand. A warp has
// 16 keys, whose rows of k and v stay in registers: two sums of two tiles each would take all of them at 128 columns.
template <int D>
__global__ void __launch_bounds__(THREADS, D > 32 ? 2 : 3) attention_dkv(Attention a) {
    using Shape = KeyShape<D>;
    constexpr int KEYS = Shape::KEYS, QUERIES = Shape::QUERIES, STRIDE = Shape::STRIDE, DT = D / 8;
    CU_DYN_SHARED(memory);
    CU_SHARED(StepFacts, facts, [1]);
    bf16 *tile_q = (bf16 *)memory, *tile_do = tile_q + 2 * QUERIES * STRIDE;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int kv_head = (int)blockIdx.x, tokens = (int)a.batch->tokens;
    int first = (int)blockIdx.y * KEYS;  // the first keys have the most queries
    if (first >= tokens) return;
    int end = (int)query_end(a, (first + KEYS < tokens ? first + KEYS : tokens) - 1);
    int row = warp * 16;
    uint32_t fk[D / 16][4], fv[D / 16][4];
    Tile<D>::template load<KEYS, THREADS>(tile_q, (const bf16 *)a.k + kv_head * a.head_dim, a.k_pitch, first, tokens,
                                          a.head_dim);
    Tile<D>::template load<KEYS, THREADS>(tile_do, (const bf16 *)a.v + kv_head * a.head_dim, a.v_pitch, first, tokens,
                                          a.head_dim);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
#pragma unroll
    for (int d = 0; d < D; d += 16) {
        Tile<D>::rows16(fk[d / 16], tile_q, row, d);
        Tile<D>::rows16(fv[d / 16], tile_do, row, d);
    }
    __syncthreads();
    auto load = [&](int stage, int head, int query) {
        const bf16 *q = (const bf16 *)a.q + head * a.head_dim, *d_o = (const bf16 *)a.d_o + head * a.head_dim;
        Tile<D>::template load<QUERIES, THREADS>(tile_q + stage * QUERIES * STRIDE, q, a.q_pitch, query, end, a.head_dim);
        Tile<D>::template load<QUERIES, THREADS>(tile_do + stage * QUERIES * STRIDE, d_o, a.heads * a.head_dim, query, end,
                                                 a.head_dim);
        int i = threadIdx.x;
        if (i < QUERIES / 2)
            cp_async16(&facts->row[stage][2 * i], a.facts + head * a.fact_rows + query + 2 * i, true);
        else if (i < QUERIES / 2 + QUERIES / 4)
            cp_async16(&facts->first_key[stage][4 * i - 2 * QUERIES], a.first_keys + query + 4 * i - 2 * QUERIES, true);
        cp_async_commit();
    };
    int head = kv_head * a.group, heads = head + a.group, query = first;  // of the step that is loaded next
    load(0, head, query);

    float scale = a.scale * LOG2_E, dk[DT][4] = {}, dv[DT][4] = {};
    for (int stage = 0; head < heads; stage ^= 1) {
        cp_async_wait<0>();
        __syncthreads();  // the queries are there, and nobody reads the other stage any more
        int ahead = query - first - row, there = end - query < QUERIES ? end - query : QUERIES;
        query += QUERIES;
        if (query >= end) query = first, head++;
        if (head < heads) load(stage ^ 1, head, query);
#pragma unroll 1
        for (int i = ahead < 0 ? -ahead : 0; i < there; i += 16) {  // 16 queries, from the first that sees a key of the warp on
            const bf16 *now_q = tile_q + (stage * QUERIES + i) * STRIDE, *now_do = tile_do + (stage * QUERIES + i) * STRIDE;
            float score[2][4] = {}, dp[2][4];
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int e = 0; e < 2; e++)
                    dp[n][e] = dp[n][e + 2] = facts->row[stage][i + n * 8 + 2 * t + e].minus_delta;
#pragma unroll
            for (int d = 0; d < D; d += 16) {
                uint32_t fb[4];
                Tile<D>::columns16(fb, now_q, 0, d);
                mma_m16n8k16(score[0], fk[d / 16], fb);
                mma_m16n8k16(score[1], fk[d / 16], fb + 2);
                Tile<D>::columns16(fb, now_do, 0, d);
                mma_m16n8k16(dp[0], fv[d / 16], fb);
                mma_m16n8k16(dp[1], fv[d / 16], fb + 2);
            }
            if (ahead + i < 15 || first + row < facts->first_key[stage][i + 15]) {
                int key = first + row + g;
#pragma unroll
                for (int n = 0; n < 2; n++) {
                    int at = i + n * 8 + 2 * t;
                    int low[2] = {facts->first_key[stage][at], facts->first_key[stage][at + 1]};
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        bool seen = (g + e / 2 * 8 <= ahead + at + e % 2) & (key + e / 2 * 8 >= low[e % 2]);
                        score[n][e] = seen ? score[n][e] : -INFINITY;
                    }
                }
            }
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float lse = facts->row[stage][i + n * 8 + 2 * t + e].lse;
                    score[n][e] = fast_exp2(score[n][e] * scale - lse), dp[n][e] *= score[n][e];
                    score[n][e + 2] = fast_exp2(score[n][e + 2] * scale - lse), dp[n][e + 2] *= score[n][e + 2];
                }
            uint32_t fp[4], fs[4];
            as_operand(fp, score[0], score[1]);
            as_operand(fs, dp[0], dp[1]);
#pragma unroll
            for (int d = 0; d < DT; d += 2) {
                uint32_t fb[4];
                Tile<D>::transposed16(fb, now_do, 0, d * 8);
                mma_m16n8k16(dv[d], fp, fb);
                mma_m16n8k16(dv[d + 1], fp, fb + 2);
                Tile<D>::transposed16(fb, now_q, 0, d * 8);
                mma_m16n8k16(dk[d], fs, fb);
                mma_m16n8k16(dk[d + 1], fs, fb + 2);
            }
        }
    }
    bf16 *to_k = (bf16 *)a.dk + kv_head * a.head_dim, *to_v = (bf16 *)a.dv + kv_head * a.head_dim;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int64_t r = first + row + h * 8 + g;
        if (r >= a.batch->tokens) continue;
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
    using Query = QueryShape<D>;
    using Key = KeyShape<D>;
    cudaFuncAttribute limit = cudaFuncAttributeMaxDynamicSharedMemorySize;
    cudaError_t error = cudaFuncSetAttribute(attention_dq<D>, limit, (int)Query::BYTES);
    if (error == cudaSuccess) error = cudaFuncSetAttribute(attention_dkv<D>, limit, (int)Key::BYTES);
    if (error != cudaSuccess) return error;
    dim3 by_query((unsigned)a.heads, (unsigned)divide_up(rows, Query::QUERIES));
    dim3 by_key((unsigned)a.kv_heads, (unsigned)divide_up(rows, Key::KEYS));
    CU_LAUNCH((attention_dq<D>), by_query, THREADS, Query::BYTES, stream, a);
    CU_LAUNCH((attention_dkv<D>), by_key, THREADS, Key::BYTES, stream, a);
    return cudaGetLastError();
}

cudaError_t attention_backward_tiles(const Attention &a, int64_t rows, cudaStream_t stream) {
    if (a.head_dim <= 32) return launch<32>(a, rows, stream);
    if (a.head_dim <= 64) return launch<64>(a, rows, stream);
    if (a.head_dim <= 96) return launch<96>(a, rows, stream);
    return launch<128>(a, rows, stream);
}
