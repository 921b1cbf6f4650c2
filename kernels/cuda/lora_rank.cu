// Products onto the rank, [rows, k] to [rows, R]: s = dropout(x) A^T and ds = dy B.
//
// A block takes 32 rows, its eight warps take steps of 32 along k in turn and their sums are added in the order of the warps.
// Up to eight tiles of eight columns, of all members that read the same rows, share one reading of them; with dropout every
// member sees the rows through a mask of its own, and reads them itself.
#include "kernels/cuda/lora.cuh"

enum { ROWS = 32, WARPS = 8, TILES = 8, STEP = 32 };

struct RankTile {   // eight columns of one member
    const void *w;  // [rank, k], or transposed [k, rank]
    void *out;      // [rows, rank]
    int32_t first, rank;
};
struct RankGroup {
    RankTile tile[TILES];
    int count;
    Dropout dropout;  // of all tiles
};

__device__ __forceinline__ void store_rank(bf16 *out, int64_t i, float v) {
    out[i] = from_float<bf16>(v);
}
__device__ __forceinline__ void store_rank(float *out, int64_t i, float v) {
    out[i] = v;
}

template <class Out, bool TRANSPOSED, bool DROPS, bool ALIGNED>
__global__ void __launch_bounds__(WARPS * 32) rank_product(const DeviceBatch *__restrict__ batch, const bf16 *__restrict__ x,
                                                           int64_t pitch, int64_t k, const __grid_constant__ RankGroup group) {
    CU_SHARED(float, total, [ROWS][TILES * 8 + 1]);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int64_t first = (int64_t)blockIdx.x * ROWS, tokens = batch->tokens;
    if (first >= tokens) return;
    bool dropping = DROPS && is_dropping(batch, group.dropout);
    uint64_t seed = batch->seed;
    Token token[2][2] = {};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int64_t row = first + i * 8 + g;
        if (DROPS && row < tokens) {
            token[i / 2][i % 2] = {batch->samples[row], (uint32_t)batch->positions[row]};
        }
    }
    auto load = [&](uint4 rows[2][2], int64_t at) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int64_t r = first + i * 8 + g;
            rows[i / 2][i % 2] = load_eight<ALIGNED>(x + r * pitch + at, r < tokens ? k - at : 0);
        }
    };
    float sum[2][TILES][4] = {};
    uint4 next[2][2];
    load(next, warp * STEP + 8 * t);
    for (int64_t k0 = warp * STEP + 8 * t; k0 - 8 * t < k; k0 += WARPS * STEP) {
        uint4 row[2][2];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint4 &eight = row[i / 2][i % 2];
            eight = next[i / 2][i % 2];
            if (dropping) eight = keep_eight(eight, keep8(seed, group.dropout, token[i / 2][i % 2], k0));
        }
        load(next, k0 + WARPS * STEP);  // on its way while this step is multiplied
#pragma unroll
        for (int j = 0; j < TILES; j++) {
            if (j >= group.count) continue;
            const RankTile &tile = group.tile[j];
            int64_t n = tile.first + g, valid = n < tile.rank ? k - k0 : 0;
            const bf16 *from = (const bf16 *)tile.w;
            uint4 w = TRANSPOSED ? load_eight_strided(from + k0 * tile.rank + n, tile.rank, valid)
                                 : load_eight<ALIGNED>(from + n * k + k0, valid);
            uint32_t b0[2] = {w.x, w.y}, b1[2] = {w.z, w.w};
#pragma unroll
            for (int m = 0; m < 2; m++) {
                uint32_t a0[4] = {row[m][0].x, row[m][1].x, row[m][0].y, row[m][1].y};
                uint32_t a1[4] = {row[m][0].z, row[m][1].z, row[m][0].w, row[m][1].w};
                mma_m16n8k16(sum[m][j], a0, b0);
                mma_m16n8k16(sum[m][j], a1, b1);
            }
        }
    }
    for (int w = 0; w < WARPS; w++) {
        if (warp == w) {
#pragma unroll
            for (int j = 0; j < TILES; j++) {
                if (j >= group.count) continue;
#pragma unroll
                for (int e = 0; e < 8; e++) {
                    float *to = &total[e / 4 * 16 + g + e % 4 / 2 * 8][j * 8 + 2 * t + e % 2];
                    *to = (w > 0 ? *to : 0.0f) + sum[e / 4][j][e % 4];
                }
            }
        }
        __syncthreads();
    }
    float factor = dropping ? group.dropout.factor : 1.0f;
    for (int i = threadIdx.x; i < ROWS * group.count * 8; i += WARPS * 32) {
        int row = i / (group.count * 8), column = i % (group.count * 8);
        const RankTile &tile = group.tile[column / 8];
        int n = tile.first + column % 8;
        if (first + row >= tokens || n >= tile.rank) continue;
        store_rank((Out *)tile.out, (first + row) * tile.rank + n, total[row][column] * factor);
    }
}

// F32: a warp takes one element of the result.
template <bool TRANSPOSED>
__global__ void __launch_bounds__(WARPS * 32)
    rank_product_plain(const DeviceBatch *__restrict__ batch, const float *__restrict__ x, int64_t pitch, int64_t k,
                       const float *__restrict__ w, int64_t rank, Dropout dropout, float *__restrict__ out) {
    int lane = threadIdx.x % 32;
    int64_t row = blockIdx.x, r = (int64_t)blockIdx.y * WARPS + threadIdx.x / 32;
    if (row >= batch->tokens || r >= rank) return;
    bool dropping = !TRANSPOSED && is_dropping(batch, dropout);
    float sum = 0.0f;
    for (int64_t i = lane; i < k; i += 32) {
        if (dropping && !dropout_keep(batch->seed, dropout.stream, batch->samples[row], (uint32_t)batch->positions[row],
                                      (uint32_t)i, dropout.threshold)) {
            continue;
        }
        sum += x[row * pitch + i] * (TRANSPOSED ? w[i * rank + r] : w[r * k + i]);
    }
    sum = warp_sum(sum);
    if (lane == 0) out[row * rank + r] = dropping ? sum * dropout.factor : sum;
}

// The operand that is read once.
struct Wide {
    const void *data;
    int64_t rows, k, pitch;
};

template <class Out, bool TRANSPOSED, bool DROPS>
static void launch_aligned(const DeviceBatch *batch, const Wide &x, const RankGroup &group, bool aligned, cudaStream_t stream) {
    unsigned blocks = (unsigned)divide_up(x.rows, ROWS);
    if (aligned) {
        CU_LAUNCH((rank_product<Out, TRANSPOSED, DROPS, true>), blocks, WARPS * 32, 0, stream, batch, (const bf16 *)x.data,
                  x.pitch, x.k, group);
    } else {
        CU_LAUNCH((rank_product<Out, TRANSPOSED, DROPS, false>), blocks, WARPS * 32, 0, stream, batch, (const bf16 *)x.data,
                  x.pitch, x.k, group);
    }
}

// Launches what the group has and empties it.
template <class Out, bool TRANSPOSED>
static void launch_group(const DeviceBatch *batch, const Wide &x, RankGroup *group, cudaStream_t stream) {
    if (group->count == 0) return;
    bool aligned = x.k % VEC == 0 && x.pitch % VEC == 0 && is_aligned(x.data);
    for (int j = 0; j < group->count; j++)
        aligned = aligned && (TRANSPOSED || is_aligned(group->tile[j].w));
    if constexpr (TRANSPOSED) {
        launch_aligned<Out, TRANSPOSED, false>(batch, x, *group, aligned, stream);
    } else if (group->dropout.threshold != 0) {
        launch_aligned<Out, TRANSPOSED, true>(batch, x, *group, aligned, stream);
    } else {
        launch_aligned<Out, TRANSPOSED, false>(batch, x, *group, aligned, stream);
    }
    group->count = 0;
}

// Puts the tiles of one member behind those in the group; launches the group when it is full or has another mask.
template <class Out, bool TRANSPOSED>
static void add_member(const DeviceBatch *batch, const Wide &x, const LinearSpec *spec, const void *w, void *out,
                       RankGroup *group, cudaStream_t stream) {
    Dropout dropout = dropout_of(spec);
    bool alone = dropout.threshold != 0 || group->dropout.threshold != 0;
    if (alone) launch_group<Out, TRANSPOSED>(batch, x, group, stream);
    group->dropout = dropout;
    for (int64_t first = 0; first < spec->rank; first += 8) {
        if (group->count == TILES) launch_group<Out, TRANSPOSED>(batch, x, group, stream);
        group->tile[group->count++] = {w, out, (int32_t)first, (int32_t)spec->rank};
    }
}

static bool is_shape(const LinearShape *s) {
    bool fits = s->rows >= 0 && s->rows <= GRID_MAX && s->in >= 1 && s->count >= 1 && s->count <= LINEAR_GROUP_MAX;
    for (int i = 0; fits && i < s->count; i++)
        fits = s->linear[i].rank >= 0 && s->linear[i].rank <= 65535 && is_pitch(s->stride, s->linear[i].out);
    return fits;
}

template <bool TRANSPOSED>
static void launch_plain(const DeviceBatch *batch, const Wide &x, const LinearSpec *spec, const void *w, void *out,
                         cudaStream_t stream) {
    dim3 grid((unsigned)x.rows, (unsigned)divide_up(spec->rank, WARPS));
    CU_LAUNCH((rank_product_plain<TRANSPOSED>), grid, WARPS * 32, 0, stream, batch, (const float *)x.data, x.pitch, x.k,
              (const float *)w, spec->rank, dropout_of(spec), (float *)out);
}

extern "C" cudaError_t cuda_lora_down(DType act, const DeviceBatch *batch, const LinearShape *shape, const void *x,
                                      const void *const *lora_a, void *const *s, cudaStream_t stream) {
    if (!is_shape(shape) || !is_weight_type(act)) return cudaErrorInvalidValue;
    if (shape->rows == 0) return cudaSuccess;
    RankGroup group = {};
    Wide wide = {x, shape->rows, shape->in, shape->in};
    for (int i = 0; i < shape->count; i++) {
        const LinearSpec *spec = &shape->linear[i];
        if (spec->rank == 0) continue;
        if (act == DTYPE_F32) {
            launch_plain<false>(batch, wide, spec, lora_a[i], s[i], stream);
        } else {
            add_member<bf16, false>(batch, wide, spec, lora_a[i], s[i], &group, stream);
        }
    }
    launch_group<bf16, false>(batch, wide, &group, stream);
    return cudaGetLastError();
}

extern "C" cudaError_t cuda_lora_ds(DType act, const DeviceBatch *batch, const LinearShape *shape, const void *const *dy,
                                    const void *const *lora_b, float *const *ds, cudaStream_t stream) {
    if (!is_shape(shape) || !is_weight_type(act)) return cudaErrorInvalidValue;
    if (shape->rows == 0) return cudaSuccess;
    for (int i = 0; i < shape->count; i++) {
        const LinearSpec *spec = &shape->linear[i];
        if (spec->rank == 0) continue;
        Wide wide = {dy[i], shape->rows, spec->out, pitch_of(shape->stride, spec->out)};
        if (act == DTYPE_F32) {
            launch_plain<true>(batch, wide, spec, lora_b[i], ds[i], stream);
            continue;
        }
        RankGroup group = {};
        add_member<float, true>(batch, wide, spec, lora_b[i], ds[i], &group, stream);
        launch_group<float, true>(batch, wide, &group, stream);
    }
    return cudaGetLastError();
}
