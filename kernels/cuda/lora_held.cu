// lora_up and lora_dx for BF16 in whole vectors, without dropout, where few ranks meet: a warp reads its 32 columns of B (or of all
// members' A) once and holds them in registers while 128 rows go by. What is left of a row is its 16-byte store and little more.
//
// The contraction is permuted: lane (g, t) takes ranks 4t .. 4t + 3 of 16 as k = 2t, 2t + 1, 2t + 8, 2t + 9, so that both operands come in
// single accesses. Columns are permuted as in lora_wide.cu.
#include "kernels/cuda/lora_held.cuh"

enum { WARPS = 8, COLUMNS = 32 * WARPS, ROWS = 128, RANKS = 16 };

// Rows 0 and 8 from `to` on, of which the first `left` exist.
__device__ __forceinline__ void store_rows(bf16 *to, int64_t pitch, int left, const float sum[4][4], float scale,
                                           const float offset[8]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float v[8];
#pragma unroll
        for (int i = 0; i < 8; i++)
            v[i] = offset[i] + scale * sum[i / 2][half * 2 + i % 2];
        if (left > 8 * half) store8(to + 8 * half * pitch, v);
    }
}

template <int TILES>
__global__ void __launch_bounds__(WARPS * 32, 2)
    lora_up_held(const DeviceBatch *__restrict__ batch, const bf16 *__restrict__ s, const bf16 *__restrict__ b,
                 const bf16 *__restrict__ bias, int64_t rank, float scale, int64_t columns, bf16 *__restrict__ y,
                 int64_t pitch) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int64_t base = (int64_t)blockIdx.x * COLUMNS + threadIdx.x / 32 * 32, column = base + 8 * t, tokens = batch->tokens;
    int64_t row = (int64_t)blockIdx.y * ROWS + g;
    if (base >= columns || row - g >= tokens) return;  // whole warps leave together
    auto quad = [=](const bf16 *from, int tile, bool there) {
        return there && tile * RANKS + 4 * t < rank ? *reinterpret_cast<const uint2 *>(from + tile * RANKS) : make_uint2(0, 0);
    };
    const bf16 *upper = s + row * rank + 4 * t, *lower = upper + 8 * rank;
    uint2 w[TILES][4], rows[TILES][2];
    float offset[8] = {};
#pragma unroll
    for (int i = 0; i < TILES; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int64_t n = base + 8 * (g / 2) + 2 * j + g % 2;
            w[i][j] = quad(b + n * rank + 4 * t, i, n < columns);
        }
        rows[i][0] = quad(upper, i, row < tokens), rows[i][1] = quad(lower, i, row + 8 < tokens);
    }
    if (bias != NULL && column < columns) load8(bias + column, offset);
    int left = (int)(tokens - row < ROWS - g ? tokens - row : ROWS - g);  // rows of the block from this lane's on
    bf16 *to = y + row * pitch + column;
#pragma unroll 1
    for (; left + g > 0; left -= 16, to += 16 * pitch) {
        float sum[4][4] = {};
        upper += 16 * rank, lower += 16 * rank;
#pragma unroll
        for (int i = 0; i < TILES; i++) {
            uint32_t a[4] = {rows[i][0].x, rows[i][1].x, rows[i][0].y, rows[i][1].y};
            rows[i][0] = quad(upper, i, left > 16), rows[i][1] = quad(lower, i, left > 24);  // on their way meanwhile
#pragma unroll
            for (int j = 0; j < 4; j++) {
                uint32_t both[2] = {w[i][j].x, w[i][j].y};
                mma_m16n8k16(sum[j], a, both);
            }
        }
        if (column < columns) store_rows(to, pitch, left, sum, scale, offset);
    }
}

struct HeldTile {
    const float *ds;  // [rows, rank]
    const bf16 *a;    // [rank, columns]
    int32_t rank, first;
    float scale;
};
struct HeldTiles {
    HeldTile tile[HELD_TILES];
};

template <int TILES>
__global__ void __launch_bounds__(WARPS * 32, 2)
    lora_dx_held(const DeviceBatch *__restrict__ batch, HeldTiles tiles, int64_t columns, bf16 *__restrict__ dx) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int64_t base = (int64_t)blockIdx.x * COLUMNS + threadIdx.x / 32 * 32, column = base + 8 * t, tokens = batch->tokens;
    int64_t row = (int64_t)blockIdx.y * ROWS + g;
    if (base >= columns || row - g >= tokens) return;
    uint32_t w[TILES][4][2];
    unsigned halves = g % 2 != 0 ? 0x7632 : 0x5410;  // of two words the high ones, or the low ones
#pragma unroll
    for (int i = 0; i < TILES; i++) {
        const HeldTile &tile = tiles.tile[i];
        uint32_t words[4][4];
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int64_t k = tile.first + 4 * t + e, n = base + 8 * (g / 2);
            uint4 q = k < tile.rank && n < columns ? cu_load16(tile.a + k * columns + n) : make_uint4(0, 0, 0, 0);
            words[e][0] = q.x, words[e][1] = q.y, words[e][2] = q.z, words[e][3] = q.w;
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
            w[i][j][0] = __byte_perm(words[0][j], words[1][j], halves);
            w[i][j][1] = __byte_perm(words[2][j], words[3][j], halves);
        }
    }
    const float *upper[TILES], offset[8] = {};
#pragma unroll
    for (int i = 0; i < TILES; i++)
        upper[i] = tiles.tile[i].ds + row * tiles.tile[i].rank + tiles.tile[i].first + 4 * t;
    int left = (int)(tokens - row < ROWS - g ? tokens - row : ROWS - g);
    bf16 *to = dx + row * columns + column;
#pragma unroll 1
    for (; left + g > 0; left -= 16, to += 16 * columns) {
        float sum[4][4] = {}, quad[TILES][2][4];
#pragma unroll
        for (int i = 0; i < TILES; i++) {
            const HeldTile &tile = tiles.tile[i];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float *q = quad[i][half];
                q[0] = q[1] = q[2] = q[3] = 0.0f;
                if (left > 8 * half && tile.first + 4 * t < tile.rank) load4(upper[i] + 8 * half * tile.rank, q);
            }
            upper[i] += 16 * tile.rank;
        }
#pragma unroll
        for (int i = 0; i < TILES; i++) {
            uint32_t high[4], low[4];
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const float *q = quad[i][e % 2] + e / 2 * 2;
                SplitPair pair = split_pair(q[0] * tiles.tile[i].scale, q[1] * tiles.tile[i].scale);
                high[e] = pair.high, low[e] = pair.low;
            }
#pragma unroll
            for (int j = 0; j < 4; j++) {
                mma_m16n8k16(sum[j], high, w[i][j]);
                mma_m16n8k16(sum[j], low, w[i][j]);
            }
        }
        if (column < columns) store_rows(to, columns, left, sum, 1.0f, offset);
    }
}

// Ranks that come in single accesses, in at most HELD_TILES tiles.
static int64_t tiles_of(int64_t rank) {
    return rank % 4 == 0 ? divide_up(rank, RANKS) : HELD_TILES + 1;
}
static dim3 grid_of(int64_t rows, int64_t columns) {
    return dim3((unsigned)divide_up(columns, COLUMNS), (unsigned)divide_up(rows, ROWS));
}

bool launch_up_held(const DeviceBatch *batch, int64_t rows, const LinearSpec *spec, const void *s, const void *b,
                    const void *bias, void *y, int64_t pitch, cudaStream_t stream) {
    int64_t tiles = tiles_of(spec->rank);
    if (tiles < 1 || tiles > HELD_TILES || (spec->out | pitch) % VEC != 0 || !all_aligned(y, s, b, bias)) return false;
#define UP(TILES)                                                                                                              \
    CU_LAUNCH((lora_up_held<TILES>), grid_of(rows, spec->out), WARPS * 32, 0, stream, batch, (const bf16 *)s, (const bf16 *)b, \
              (const bf16 *)bias, spec->rank, spec->lora_scale, spec->out, (bf16 *)y, pitch)
    switch (tiles) {
        case 1: UP(1); break;
        case 2: UP(2); break;
        case 3: UP(3); break;
        default: UP(4); break;
    }
    return true;
}

bool launch_dx_held(const DeviceBatch *batch, const LinearShape *shape, const float *const *ds, const void *const *lora_a,
                    void *dx, cudaStream_t stream) {
    HeldTiles held = {};
    int64_t count = 0;
    bool fits = shape->in % VEC == 0 && is_aligned(dx);
    for (int i = 0; i < shape->count && fits; i++) {
        const LinearSpec *spec = &shape->linear[i];
        int64_t tiles = tiles_of(spec->rank);
        fits = spec->dropout == 0.0f && count + tiles <= HELD_TILES;
        if (!fits || tiles == 0) continue;
        fits = all_aligned(ds[i], (const float *)lora_a[i]);
        for (int64_t k = 0; k < tiles; k++)
            held.tile[count++] = {ds[i], (const bf16 *)lora_a[i], (int32_t)spec->rank, (int32_t)(k * RANKS), spec->lora_scale};
    }
    if (!fits || count == 0) return false;
#define DX(TILES) \
    CU_LAUNCH((lora_dx_held<TILES>), grid_of(shape->rows, shape->in), WARPS * 32, 0, stream, batch, held, shape->in, (bf16 *)dx)
    switch (count) {
        case 1: DX(1); break;
        case 2: DX(2); break;
        case 3: DX(3); break;
        default: DX(4); break;
    }
    return true;
}
