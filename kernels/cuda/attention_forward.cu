// Attention forward on the tensor cores: tiles of keys, online softmax (Milakov & Gimelshein 2018; Dao 2023, FlashAttention-2).
//
// Four warps take 32 query rows each of one head; keys and values pass through two stages of shared memory. Weights are powers
// of 2, rounded to BF16 for their product with the values; their sum is not rounded.
#include "kernels/cuda/attention.cuh"

static constexpr int WARPS = 4, THREADS = WARPS * 32, MT = 2, QUERIES = WARPS * 16 * MT;
// The base of a row's weights follows the greatest score only when that has grown by so much: weights stay below 2^SLACK, which
// neither FP32 sums nor BF16 weights mind, and most steps need not multiply the results so far.
static constexpr float SLACK = 8.0f;

template <int D>
struct Shape {
    static constexpr int KEYS = D > 64 ? 32 : 64;
    static constexpr int STRIDE = Tile<D>::STRIDE;
    static constexpr size_t BYTES = sizeof(bf16) * STRIDE * (QUERIES + 4 * KEYS);
};

template <int D>
__global__ void __launch_bounds__(THREADS) attention_forward(Attention a) {
    constexpr int KEYS = Shape<D>::KEYS, STRIDE = Shape<D>::STRIDE, NT = KEYS / 8, DT = D / 8;
    CU_DYN_SHARED(memory);
    CU_SHARED(int32_t, first_keys, [QUERIES]);
    bf16 *tile_q = (bf16 *)memory, *tile_k = tile_q + QUERIES * STRIDE, *tile_v = tile_k + 2 * KEYS * STRIDE;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int head = (int)blockIdx.x, kv_head = head / a.group, tokens = (int)a.batch->tokens;
    int first = (int)(gridDim.y - 1 - blockIdx.y) * QUERIES;  // the longest tiles first
    if (first >= tokens) return;
    const bf16 *q = (const bf16 *)a.q + head * a.head_dim, *k = (const bf16 *)a.k + kv_head * a.head_dim;
    const bf16 *v = (const bf16 *)a.v + kv_head * a.head_dim;
    int shift = (int)key_row(a, 0), keys = shift + tokens, last = first + QUERIES < tokens ? first + QUERIES : tokens;

    for (int i = threadIdx.x; i < QUERIES; i += THREADS)
        first_keys[i] = (int32_t)first_key(a, first + i < last ? first + i : last - 1);
    __syncthreads();
    int begin = first_keys[0] / KEYS * KEYS, end = shift + last;
    Tile<D>::template load<QUERIES, THREADS>(tile_q, q, a.q_pitch, first, tokens, a.head_dim);
    auto load = [&](int stage, int key) {
        Tile<D>::template load<KEYS, THREADS>(tile_k + stage * KEYS * STRIDE, k, a.k_pitch, key, keys, a.head_dim);
        Tile<D>::template load<KEYS, THREADS>(tile_v + stage * KEYS * STRIDE, v, a.v_pitch, key, keys, a.head_dim);
        cp_async_commit();
    };
    load(0, begin);

    int row = warp * 16 * MT;
    // the keys that all rows of the warp see, and the last that one of them sees
    int warp_low = first_keys[row + 16 * MT - 1], warp_high = shift + first + row, warp_end = warp_high + 16 * MT;
    float out[MT][DT][4] = {}, base[MT][2], sum[MT][2] = {};  // weights are 2^(score - base)
#pragma unroll
    for (int m = 0; m < MT; m++)
        base[m][0] = base[m][1] = -INFINITY;
    float scale = a.scale * LOG2_E;

    int stage = 0;
    for (int key = begin; key < end; key += KEYS, stage ^= 1) {
        cp_async_wait<0>();
        __syncthreads();  // the keys are there, and nobody reads the other stage any more
        if (key + KEYS < end) load(stage ^ 1, key + KEYS);
        if (key >= warp_end) continue;
        const bf16 *now_k = tile_k + stage * KEYS * STRIDE, *now_v = tile_v + stage * KEYS * STRIDE;
        float score[MT][NT][4] = {};
        Tile<D>::template dot_rows<MT, NT>(score, tile_q, row, now_k);
        if (key < warp_low || key + KEYS - 1 > warp_high) {
            int j = key + 2 * t;
#pragma unroll
            for (int m = 0; m < MT; m++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    int r = m * 16 + h * 8 + g, low = first_keys[row + r], high = warp_high + r;
#pragma unroll
                    for (int n = 0; n < NT; n++)
#pragma unroll
                        for (int e = 0; e < 2; e++) {
                            float &s = score[m][n][2 * h + e];
                            s = (j + n * 8 + e >= low) & (j + n * 8 + e <= high) ? s : -INFINITY;
                        }
                }
        }
        float factor[MT][2];
        bool moves = false;
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float peak = -INFINITY;
#pragma unroll
                for (int n = 0; n < NT; n++)
                    peak = fmaxf(peak, fmaxf(score[m][n][2 * h], score[m][n][2 * h + 1]));
                peak = fmaxf(peak, __shfl_xor_sync(ALL_LANES, peak, 1));
                peak = fmaxf(peak, __shfl_xor_sync(ALL_LANES, peak, 2)) * scale;
                float next = peak > base[m][h] + SLACK ? peak : base[m][h];
                float finite = next == -INFINITY ? 0.0f : next;  // nothing was seen yet
                moves = moves || next != base[m][h];
                factor[m][h] = fast_exp2(base[m][h] - finite);
                base[m][h] = next;
#pragma unroll
                for (int n = 0; n < NT; n++)
#pragma unroll
                    for (int e = 2 * h; e < 2 * h + 2; e++)
                        score[m][n][e] = fast_exp2(score[m][n][e] * scale - finite);
            }
        if (__any_sync(ALL_LANES, moves)) {  // else all factors are 1, or 0 where sums are 0
#pragma unroll
            for (int m = 0; m < MT; m++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    sum[m][h] *= factor[m][h];
#pragma unroll
                    for (int d = 0; d < DT; d++)
                        out[m][d][2 * h] *= factor[m][h], out[m][d][2 * h + 1] *= factor[m][h];
                }
        }
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int n = 0; n < NT; n++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    sum[m][e / 2] += score[m][n][e];
        Tile<D>::template add_weighted<MT, NT>(out, score, now_v);
    }
    bf16 *o = (bf16 *)a.o + head * a.head_dim;
    int64_t pitch = a.heads * a.head_dim;
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float total = sum[m][h];
            total += __shfl_xor_sync(ALL_LANES, total, 1);
            total += __shfl_xor_sync(ALL_LANES, total, 2);
            int64_t r = first + row + m * 16 + h * 8 + g;
            if (r >= tokens) continue;
            float inverse = 1.0f / total;
#pragma unroll
            for (int d = 0; d < DT; d++) {
                int c = d * 8 + 2 * t;
                if (c >= a.head_dim) continue;
                uint32_t pair = pack_bf16(out[m][d][2 * h] * inverse, out[m][d][2 * h + 1] * inverse);
                *reinterpret_cast<uint32_t *>(o + r * pitch + c) = pair;
            }
            if (t == 0 && a.lse != NULL) a.lse[r * a.heads + head] = LN_2 * base[m][h] + logf(total);
        }
}

template <int D>
static cudaError_t launch(const Attention &a, int64_t rows, cudaStream_t stream) {
    dim3 grid((unsigned)a.heads, (unsigned)divide_up(rows, QUERIES));
    cudaError_t error =
        cudaFuncSetAttribute(attention_forward<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)Shape<D>::BYTES);
    if (error != cudaSuccess) return error;
    CU_LAUNCH((attention_forward<D>), grid, THREADS, Shape<D>::BYTES, stream, a);
    return cudaGetLastError();
}

cudaError_t attention_forward_tiles(const Attention &a, int64_t rows, cudaStream_t stream) {
    if (a.head_dim <= 32) return launch<32>(a, rows, stream);
    if (a.head_dim <= 64) return launch<64>(a, rows, stream);
    if (a.head_dim <= 96) return launch<96>(a, rows, stream);
    return launch<128>(a, rows, stream);
}
