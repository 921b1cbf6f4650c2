// What the attention kernels share: arguments, which keys a row sees, tiles in shared memory and their fragments.
//
// Rows of all sequences lie back to back, and tiles are cut from them without regard to sequences: row t sees the keys
// [first_key(t), key_row(t)], and both ends rise with t. A tile that lies across a border just masks more.
#pragma once
#include "kernels/cuda/common.cuh"
#include "kernels/cuda/cu_mma.h"

// What backward knows of a query row of one head. A row that is not there has zeros, and a first key beyond all keys.
struct alignas(8) RowFacts {
    float lse;  // in the base of 2 for the tiles
    float minus_delta;
};
static constexpr int FACT_ROWS = 64;

struct Attention {
    const DeviceBatch *batch;
    const void *q, *k, *v;  // [rows, H*D], [keys, K*D]; elements from row to row:
    int64_t q_pitch, k_pitch, v_pitch, dq_pitch, dkv_pitch;
    void *o;
    float *lse;  // [rows, H], or NULL
    // backward, by attention_prepare: rows are padded to a multiple of FACT_ROWS
    const void *d_o;
    const RowFacts *facts;      // [H, fact_rows]
    const int32_t *first_keys;  // [fact_rows]
    int64_t fact_rows;
    void *dq, *dk, *dv;
    int64_t heads, kv_heads, head_dim, window;
    int group;  // query heads of a key head
    float scale;
    bool cached;  // keys are a cache's rows; query t is at row batch->past + t of one sequence
};

__device__ __forceinline__ int64_t sequence_of(const DeviceBatch *batch, int64_t t) {
    int64_t low = 0, high = batch->sequences;
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (batch->starts[middle] <= t)
            low = middle;
        else
            high = middle;
    }
    return low;
}

__device__ __forceinline__ int64_t key_row(const Attention &a, int64_t t) {
    return a.cached ? a.batch->past + t : t;
}

__device__ __forceinline__ int64_t first_key(const Attention &a, int64_t t) {
    int64_t start = a.cached ? 0 : a.batch->starts[sequence_of(a.batch, t)], edge = key_row(a, t) - a.window + 1;
    return a.window > 0 && edge > start ? edge : start;
}

// Rows past the last query that sees key j (uncached).
__device__ __forceinline__ int64_t query_end(const Attention &a, int64_t j) {
    int64_t end = a.batch->starts[sequence_of(a.batch, j) + 1], edge = j + a.window;
    return a.window > 0 && edge < end ? edge : end;
}

static const float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;

// Sums of a product as the A operand of the next: columns 16k..16k+15 of 16 rows.
__device__ __forceinline__ void as_operand(uint32_t a[4], const float left[4], const float right[4]) {
    a[0] = pack_bf16(left[0], left[1]), a[1] = pack_bf16(left[2], left[3]);
    a[2] = pack_bf16(right[0], right[1]), a[3] = pack_bf16(right[2], right[3]);
}

// A tile is ROWS rows of D BF16, D a multiple of 16, with rows padded by one 16-byte access: ldmatrix meets no bank twice.
template <int D>
struct Tile {
    static constexpr int STRIDE = D + 8;

    // Rows [first, first + ROWS) of a matrix whose rows are `pitch` apart; rows from `end` on, and columns from head_dim on,
    // become zero.
    template <int ROWS, int THREADS>
    __device__ __forceinline__ static void load(bf16 *tile, const bf16 *from, int64_t pitch, int first, int end,
                                                int64_t head_dim) {
        constexpr int STEP = THREADS / (D <= 32 ? 4 : D <= 64 ? 8 : 16);  // rows that the threads take at once
        static_assert(ROWS % STEP == 0, "whole steps");
        int row = threadIdx.x / (D / 8), c = threadIdx.x % (D / 8) * 8;
        if (STEP * (D / 8) < THREADS && row >= STEP) return;
        int left = c < head_dim ? end - first - row : 0;
        const bf16 *at = from + (int64_t)(first + row) * pitch + c;
#pragma unroll 1  // the addresses of all copies at once would take registers that the products want
        for (int i = 0; i < ROWS; i += STEP, at += STEP * pitch)
            cp_async16(tile + (row + i) * STRIDE + c, i < left ? at : from, i < left);
    }
    // A operand: rows row..row+15, k..k+15
    __device__ __forceinline__ static void rows16(uint32_t a[4], const bf16 *tile, int row, int k) {
        int lane = threadIdx.x % 32;
        ldmatrix_x4(a, tile + (row + lane % 16) * STRIDE + k + lane / 16 * 8);
    }
    // B operands whose columns n are rows of the tile, n..n+15, k..k+15: b[0..1] and b[2..3]
    __device__ __forceinline__ static void columns16(uint32_t b[4], const bf16 *tile, int n, int k) {
        int lane = threadIdx.x % 32;
        ldmatrix_x4(b, tile + (n + lane % 8 + lane / 16 * 8) * STRIDE + k + lane / 8 % 2 * 8);
    }
    // B operands whose k are rows of the tile, k..k+15, n..n+15
    __device__ __forceinline__ static void transposed16(uint32_t b[4], const bf16 *tile, int k, int n) {
        int lane = threadIdx.x % 32;
        ldmatrix_x4_trans(b, tile + (k + lane % 16) * STRIDE + n + lane / 16 * 8);
    }

    // A warp has 16 MT rows: an operand of `right` that was read once from shared memory serves MT products. That memory's
    // bandwidth is what binds where MT is 1.
    //
    // sum[i][j] += left[row + i] . right[j], for the first 8 NT rows of right
    template <int MT, int NT>
    __device__ __forceinline__ static void dot_rows(float sum[MT][NT][4], const bf16 *left, int row, const bf16 *right) {
#pragma unroll
        for (int d = 0; d < D; d += 16) {
            uint32_t fa[MT][4];
#pragma unroll
            for (int m = 0; m < MT; m++)
                rows16(fa[m], left, row + m * 16, d);
#pragma unroll
            for (int n = 0; n < NT; n += 2) {
                uint32_t fb[4];
                columns16(fb, right, n * 8, d);
#pragma unroll
                for (int m = 0; m < MT; m++) {
                    mma_m16n8k16(sum[m][n], fa[m], fb);
                    mma_m16n8k16(sum[m][n + 1], fa[m], fb + 2);
                }
            }
        }
    }
    // sum[i] += sum_j weight[i][j] right[j], weights rounded to BF16
    template <int MT, int NT>
    __device__ __forceinline__ static void add_weighted(float sum[MT][D / 8][4], const float weight[MT][NT][4],
                                                        const bf16 *right) {
#pragma unroll
        for (int n = 0; n < NT; n += 2) {
            uint32_t fa[MT][4];
#pragma unroll
            for (int m = 0; m < MT; m++)
                as_operand(fa[m], weight[m][n], weight[m][n + 1]);
#pragma unroll
            for (int d = 0; d < D / 8; d += 2) {
                uint32_t fb[4];
                transposed16(fb, right, n * 8, d * 8);
#pragma unroll
                for (int m = 0; m < MT; m++) {
                    mma_m16n8k16(sum[m][d], fa[m], fb);
                    mma_m16n8k16(sum[m][d + 1], fa[m], fb + 2);
                }
            }
        }
    }
};

// Launchers of the parts, in their own files. The tensor-core path takes BF16 with head_dim % 8 == 0 up to 128.
cudaError_t attention_forward_tiles(const Attention &a, int64_t rows, cudaStream_t stream);
cudaError_t attention_backward_tiles(const Attention &a, int64_t rows, cudaStream_t stream);
cudaError_t attention_forward_plain(DType act, const Attention &a, int64_t rows, cudaStream_t stream);
cudaError_t attention_backward_plain(DType act, const Attention &a, int64_t rows, cudaStream_t stream);
