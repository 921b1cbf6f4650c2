// What the attention kernels share: arguments, which keys a row sees, tiles in shared memory and their fragments.
//
// Rows of all sequences lie back to back, and tiles are cut from them without regard to sequences: row t sees the keys
// [first_key(t), key_row(t)], and both ends rise with t. A tile that lies across a border just masks more.
#pragma once
#include "kernels/cuda/common.cuh"
#include "kernels/cuda/cu_mma.h"

struct Attention {
    const DeviceBatch *batch;
    const void *q, *k, *v;  // [rows, H*D], [keys, K*D]; elements from row to row:
    int64_t q_pitch, k_pitch, v_pitch, dq_pitch, dkv_pitch;
    void *o;
    float *lse;  // [rows, H], or NULL
    const void *d_o;
    const float *lse_in, *delta;  // backward: [rows, H]
    const int32_t *first_keys;    // backward: [rows]
    void *dq, *dk, *dv;
    int64_t heads, kv_heads, head_dim, window;
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

// A tile is ROWS rows of D BF16, D a multiple of 16, with rows padded by one 16-byte access: ldmatrix meets no bank twice.
template <int D>
struct Tile {
    static constexpr int STRIDE = D + 8;

    // Rows [first, first + ROWS) of a matrix whose rows are `pitch` apart; rows from `end` on, and columns from head_dim on,
    // become zero.
    template <int ROWS, int THREADS>
    __device__ __forceinline__ static void load(bf16 *tile, const bf16 *from, int64_t pitch, int64_t first, int64_t end,
                                                int64_t head_dim) {
#pragma unroll
        for (int i = 0; i < ROWS * (D / 8) / THREADS; i++) {
            int chunk = i * THREADS + threadIdx.x, row = chunk / (D / 8), c = chunk % (D / 8) * 8;
            bool ok = first + row < end && c < head_dim;
            cp_async16(tile + row * STRIDE + c, ok ? from + (first + row) * pitch + c : from, ok);
        }
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
};

// Sums of a product as the A operand of the next: columns 16k..16k+15 of 16 rows.
__device__ __forceinline__ void as_operand(uint32_t a[4], const float left[4], const float right[4]) {
    a[0] = pack_bf16(left[0], left[1]), a[1] = pack_bf16(left[2], left[3]);
    a[2] = pack_bf16(right[0], right[1]), a[3] = pack_bf16(right[2], right[3]);
}

// Launchers of the parts, in their own files. The tensor-core path takes BF16 with head_dim % 8 == 0 up to 128.
cudaError_t attention_forward_tiles(const Attention &a, int64_t rows, cudaStream_t stream);
cudaError_t attention_backward_tiles(const Attention &a, int64_t rows, cudaStream_t stream);
cudaError_t attention_forward_plain(DType act, const Attention &a, int64_t rows, cudaStream_t stream);
cudaError_t attention_backward_plain(DType act, const Attention &a, int64_t rows, cudaStream_t stream);
