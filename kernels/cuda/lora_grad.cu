// Gradients of the adapters, sums over rows: dA += scale ds^T dropout(x) and dB += scale dy^T s.
//
// A block takes 32 columns of the wide operand (x, dy), its warps take 32 rows at a time in turn through two stages of shared
// memory each, and their sums are added in the order of the warps: no atomics, no second kernel, one reading.
#include "kernels/cuda/lora.cuh"

enum { WARPS = 8, COLUMNS = 32, ROWS = 32, STRIDE = COLUMNS + 8 };

struct WideLayout {
    int64_t columns, pitch, rank;  // pitch: from row to row
    float scale;
    bool by_column;  // the gradient is [columns, rank] (dB), else [rank, columns] (dA)
    Dropout dropout;
};

struct alignas(16) Stage {  // cp.async and ldmatrix want 16 bytes, of which an array of BF16 promises two
    bf16 at[ROWS * STRIDE];
};

// Rows [first, first + ROWS) of the block's columns into a stage.
template <bool ALIGNED>
__device__ __forceinline__ void load_stage(bf16 *stage, const bf16 *x, int64_t first, int64_t tokens, int64_t column,
                                           const WideLayout &layout) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < ROWS * COLUMNS / 8 / 32; i++) {
        int chunk = i * 32 + lane, row = chunk / (COLUMNS / 8), c = chunk % (COLUMNS / 8) * 8;
        bool ok = first + row < tokens && column + c < layout.columns;
        const bf16 *from = x + (first + row) * layout.pitch + column + c;
        if (ALIGNED) {
            cp_async16(stage + row * STRIDE + c, ok ? from : x, ok);
        } else {
            *reinterpret_cast<uint4 *>(stage + row * STRIDE + c) =
                load_eight<false>(from, ok ? layout.columns - column - c : 0);
        }
    }
    cp_async_commit();
}

__device__ __forceinline__ void drop_stage(bf16 *stage, const DeviceBatch *batch, const Dropout &d, int64_t first,
                                           int64_t column) {
    int lane = threadIdx.x % 32;
    for (int i = 0; i < ROWS * COLUMNS / 8 / 32; i++) {
        int chunk = i * 32 + lane, row = chunk / (COLUMNS / 8), c = chunk % (COLUMNS / 8) * 8;
        if (first + row >= batch->tokens) continue;
        Token token = {batch->samples[first + row], (uint32_t)batch->positions[first + row]};
        uint4 *at = reinterpret_cast<uint4 *>(stage + row * STRIDE + c);
        *at = keep_eight(*at, keep8(batch->seed, d, token, column + c));
    }
}

__device__ __forceinline__ SplitPair narrow_pair(const bf16 *p, int64_t stride, int64_t valid) {
    return {load_pair(p, stride, valid), 0};
}
__device__ __forceinline__ SplitPair narrow_pair(const float *p, int64_t stride, int64_t valid) {
    return split_pair(valid > 0 ? p[0] : 0.0f, valid > 1 ? p[stride] : 0.0f);
}

// MR: tiles of 16 ranks that a block takes; blockIdx.y counts them.
template <class Narrow, int MR, bool ALIGNED>
__global__ void __launch_bounds__(WARPS * 32, 1)
    lora_grad(const DeviceBatch *__restrict__ batch, const bf16 *__restrict__ wide, const Narrow *__restrict__ narrow,
              WideLayout layout, float *__restrict__ grad) {
    CU_SHARED(Stage, stages, [WARPS][2]);
    CU_SHARED(float, total, [MR * 16][COLUMNS + 1]);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int64_t column = (int64_t)blockIdx.x * COLUMNS, rank0 = (int64_t)blockIdx.y * (MR * 16), tokens = batch->tokens;
    bool dropping = !layout.by_column && is_dropping(batch, layout.dropout);
    float sum[MR][4][4] = {};
    int now = 0;
    load_stage<ALIGNED>(stages[warp][0].at, wide, warp * ROWS, tokens, column, layout);
    for (int64_t first = warp * ROWS; first < tokens; first += WARPS * ROWS, now ^= 1) {
        load_stage<ALIGNED>(stages[warp][now ^ 1].at, wide, first + WARPS * ROWS, tokens, column, layout);
        cp_async_wait<1>();
        __syncwarp();
        bf16 *stage = stages[warp][now].at;
        if (dropping) {
            drop_stage(stage, batch, layout.dropout, first, column);
            __syncwarp();
        }
#pragma unroll
        for (int k = 0; k < ROWS; k += 16) {
            uint32_t b[2][4];
#pragma unroll
            for (int j = 0; j < 2; j++)
                ldmatrix_x4_trans(b[j], stage + (k + lane % 16) * STRIDE + j * 16 + lane / 16 * 8);
#pragma unroll
            for (int m = 0; m < MR; m++) {
                uint32_t high[4], low[4];
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    int64_t r = rank0 + m * 16 + g + e % 2 * 8, row = first + k + 2 * t + e / 2 * 8;
                    SplitPair pair =
                        narrow_pair(narrow + row * layout.rank + r, layout.rank, r < layout.rank ? tokens - row : 0);
                    high[e] = pair.high, low[e] = pair.low;
                }
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    mma_m16n8k16(sum[m][j], high, &b[j / 2][j % 2 * 2]);
                    if (sizeof(Narrow) == 4) mma_m16n8k16(sum[m][j], low, &b[j / 2][j % 2 * 2]);
                }
            }
        }
        __syncwarp();
    }
    cp_async_wait<0>();
    for (int w = 0; w < WARPS; w++) {
        if (warp == w) {
#pragma unroll
            for (int m = 0; m < MR; m++)
#pragma unroll
                for (int j = 0; j < 4; j++)
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        float *to = &total[m * 16 + g + e / 2 * 8][j * 8 + 2 * t + e % 2];
                        *to = (w > 0 ? *to : 0.0f) + sum[m][j][e];
                    }
        }
        __syncthreads();
    }
    float scale = dropping ? layout.scale * layout.dropout.factor : layout.scale;
    for (int i = threadIdx.x; i < MR * 16 * COLUMNS; i += WARPS * 32) {
        int r = layout.by_column ? i % (MR * 16) : i / COLUMNS, c = layout.by_column ? i / (MR * 16) : i % COLUMNS;
        if (rank0 + r >= layout.rank || column + c >= layout.columns) continue;
        int64_t to = layout.by_column ? (column + c) * layout.rank + rank0 + r : (rank0 + r) * layout.columns + column + c;
        grad[to] += scale * total[r][c];
    }
}

// F32: a thread takes one element of the gradient.
__global__ void __launch_bounds__(256)
    lora_grad_plain(const DeviceBatch *__restrict__ batch, const float *__restrict__ wide, const float *__restrict__ narrow,
                    WideLayout layout, float *__restrict__ grad) {
    int64_t c = (int64_t)blockIdx.x * 256 + threadIdx.x, r = blockIdx.y;
    if (c >= layout.columns) return;
    bool dropping = !layout.by_column && is_dropping(batch, layout.dropout);
    float sum = 0.0f;
    for (int64_t t = 0; t < batch->tokens; t++) {
        if (dropping && !dropout_keep(batch->seed, layout.dropout.stream, batch->samples[t], (uint32_t)batch->positions[t],
                                      (uint32_t)c, layout.dropout.threshold)) {
            continue;
        }
        sum += narrow[t * layout.rank + r] * wide[t * layout.pitch + c];
    }
    float scale = dropping ? layout.scale * layout.dropout.factor : layout.scale;
    grad[layout.by_column ? c * layout.rank + r : r * layout.columns + c] += scale * sum;
}

template <class Narrow, int MR>
static void launch(const DeviceBatch *batch, const void *wide, const void *narrow, const WideLayout &layout, float *grad,
                   cudaStream_t stream) {
    dim3 grid((unsigned)divide_up(layout.columns, COLUMNS), (unsigned)divide_up(layout.rank, MR * 16));
    if ((layout.columns | layout.pitch) % VEC == 0 && is_aligned(wide)) {
        CU_LAUNCH((lora_grad<Narrow, MR, true>), grid, WARPS * 32, 0, stream, batch, (const bf16 *)wide, (const Narrow *)narrow,
                  layout, grad);
    } else {
        CU_LAUNCH((lora_grad<Narrow, MR, false>), grid, WARPS * 32, 0, stream, batch, (const bf16 *)wide,
                  (const Narrow *)narrow, layout, grad);
    }
}

template <class Narrow>
static void gradient(DType act, const DeviceBatch *batch, const void *wide, const void *narrow, const WideLayout &layout,
                     float *grad, cudaStream_t stream) {
    if (act == DTYPE_F32) {
        dim3 grid((unsigned)divide_up(layout.columns, 256), (unsigned)layout.rank);
        CU_LAUNCH(lora_grad_plain, grid, 256, 0, stream, batch, (const float *)wide, (const float *)narrow, layout, grad);
    } else if (layout.rank <= 16) {
        launch<Narrow, 1>(batch, wide, narrow, layout, grad, stream);
    } else {
        launch<Narrow, 2>(batch, wide, narrow, layout, grad, stream);
    }
}

static bool is_shape(const LinearShape *s, DType act) {
    bool fits = s->rows >= 0 && s->in >= 1 && s->count >= 1 && s->count <= LINEAR_GROUP_MAX && is_weight_type(act);
    for (int i = 0; fits && i < s->count; i++) {
        fits = s->linear[i].rank >= 0 && s->linear[i].rank <= 65535 && s->linear[i].out >= 1 && s->linear[i].out <= GRID_MAX &&
               is_pitch(s->stride, s->linear[i].out);
    }
    return fits && s->in <= GRID_MAX;
}

extern "C" cudaError_t cuda_lora_da(DType act, const DeviceBatch *batch, const LinearShape *shape, const void *x,
                                    const float *const *ds, float *const *d_a, cudaStream_t stream) {
    if (!is_shape(shape, act)) return cudaErrorInvalidValue;
    for (int i = 0; i < shape->count && shape->rows > 0; i++) {
        const LinearSpec *spec = &shape->linear[i];
        if (spec->rank == 0 || d_a[i] == NULL) continue;
        WideLayout layout = {shape->in, shape->in, spec->rank, spec->lora_scale, false, dropout_of(spec)};
        gradient<float>(act, batch, x, ds[i], layout, d_a[i], stream);
    }
    return cudaGetLastError();
}

extern "C" cudaError_t cuda_lora_db(DType act, const DeviceBatch *batch, const LinearShape *shape, const void *const *dy,
                                    const void *const *s, float *const *d_b, cudaStream_t stream) {
    if (!is_shape(shape, act)) return cudaErrorInvalidValue;
    for (int i = 0; i < shape->count && shape->rows > 0; i++) {
        const LinearSpec *spec = &shape->linear[i];
        if (spec->rank == 0 || d_b[i] == NULL) continue;
        WideLayout layout = {spec->out, pitch_of(shape->stride, spec->out), spec->rank, spec->lora_scale, true, {}};
        gradient<bf16>(act, batch, dy[i], s[i], layout, d_b[i], stream);
    }
    return cudaGetLastError();
}
