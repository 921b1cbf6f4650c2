// Products from the rank, [rows, R] to [rows, columns]: y = bias + scale s B^T, and dx = sum_i scale_i mask_i(ds_i A_i).
//
// Bound by writing. A warp takes 16 rows and 32 columns at a time; column n of its tile j is column 8 (n / 2) + 2j + n % 2 of
// the 32, so that a lane ends up with eight neighbours of a row: one 16-byte store.
#include "kernels/cuda/lora_held.cuh"

enum { WARPS = 8, COLUMNS = 32 * WARPS, ROWS = 64 };

__device__ __forceinline__ int64_t column_of(int64_t base, int j, int n) {
    return base + 8 * (n / 2) + 2 * j + n % 2;
}

// Stores eight neighbours, of which the first `valid` exist.
__device__ __forceinline__ void store_eight(bf16 *p, const float v[8], int64_t valid, bool aligned) {
    if (aligned) {
        if (valid > 0) store8(p, v);
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if (i < valid) p[i] = from_float<bf16>(v[i]);
    }
}

// Four neighbours of a row from `p` on, of which the first `valid` exist (all or none with QUADS).
template <bool QUADS>
__device__ __forceinline__ uint2 load_four(const bf16 *p, int64_t valid) {
    if constexpr (QUADS)
        return valid > 0 ? *reinterpret_cast<const uint2 *>(p) : make_uint2(0, 0);
    else
        return make_uint2(load_pair(p, 1, valid), load_pair(p + 2, 1, valid - 2));
}

// k is permuted as in lora.cuh: lane (g, t) reads four neighbours from 4t on and calls them k = 2t, 2t + 1, 2t + 8, 2t + 9. What
// is read of b serves all rows of the block.
template <bool QUADS>
__global__ void __launch_bounds__(WARPS * 32)
    lora_up(const DeviceBatch *__restrict__ batch, const bf16 *__restrict__ s, const bf16 *__restrict__ b,
            const bf16 *__restrict__ bias, int64_t rank, float scale, int64_t columns, bool aligned, bf16 *__restrict__ y,
            int64_t pitch) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int64_t base = (int64_t)blockIdx.x * COLUMNS + threadIdx.x / 32 * 32, tokens = batch->tokens,
            first = (int64_t)blockIdx.y * ROWS;
    if (first >= tokens) return;
    int64_t column = base + 8 * t;
    float sum[ROWS / 16][4][4] = {};
    for (int64_t k = 4 * t; k - 4 * t < rank; k += 16) {
        uint2 w[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int64_t n = column_of(base, j, g);
            w[j] = load_four<QUADS>(b + n * rank + k, n < columns ? rank - k : 0);
        }
#pragma unroll
        for (int m = 0; m < ROWS / 16; m++) {
            uint2 v[2];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int64_t r = first + m * 16 + half * 8 + g;
                v[half] = load_four<QUADS>(s + r * rank + k, r < tokens ? rank - k : 0);
            }
            uint32_t a[4] = {v[0].x, v[1].x, v[0].y, v[1].y};
#pragma unroll
            for (int j = 0; j < 4; j++) {
                uint32_t pair[2] = {w[j].x, w[j].y};
                mma_m16n8k16(sum[m][j], a, pair);
            }
        }
    }
    float offset[8];
#pragma unroll
    for (int i = 0; i < 8; i++)
        offset[i] = bias != NULL && column + i < columns ? to_float(bias[column + i]) : 0.0f;
#pragma unroll
    for (int m = 0; m < ROWS / 16; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int64_t r = first + m * 16 + half * 8 + g;
            float v[8];
#pragma unroll
            for (int i = 0; i < 8; i++)
                v[i] = offset[i] + scale * sum[m][i / 2][half * 2 + i % 2];
            store_eight(y + r * pitch + column, v, r < tokens ? columns - column : 0, aligned);
        }
}

struct DxMember {
    const float *ds;  // [rows, rank]
    const void *a;    // [rank, columns]
    int64_t rank;
    float scale;
    Dropout dropout;
};
struct DxMembers {
    DxMember member[LINEAR_GROUP_MAX];
    int count;
};

// Elements (k, n) and (k + 1, n) of a member's matrix for the four tiles of a lane, n = column_of(base, j, g): with QUADS every
// other one of eight neighbours in both rows.
template <bool QUADS>
__device__ __forceinline__ void load_columns(uint32_t pair[4], const bf16 *a, int k, int rank, int base, int g,
                                             int64_t columns) {
    if constexpr (QUADS) {
        int n = base + 8 * (g / 2);
        uint4 none = make_uint4(0, 0, 0, 0), row[2];
        row[0] = n < columns && k < rank ? *reinterpret_cast<const uint4 *>(a + (int64_t)k * columns + n) : none;
        row[1] = n < columns && k + 1 < rank ? *reinterpret_cast<const uint4 *>(a + (int64_t)(k + 1) * columns + n) : none;
        unsigned which = g % 2 ? 0x7632 : 0x5410;
        pair[0] = __byte_perm(row[0].x, row[1].x, which), pair[1] = __byte_perm(row[0].y, row[1].y, which);
        pair[2] = __byte_perm(row[0].z, row[1].z, which), pair[3] = __byte_perm(row[0].w, row[1].w, which);
    } else {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int n = (int)column_of(base, j, g);
            pair[j] = load_pair(a + (int64_t)k * columns + n, columns, n < columns ? rank - k : 0);
        }
    }
}

// Four neighbours of a row as two pairs of sums of two BF16.
template <bool QUADS>
__device__ __forceinline__ void split_four(SplitPair pair[2], const float *p, int64_t valid) {
    if constexpr (QUADS) {
        float4 v = valid > 0 ? *reinterpret_cast<const float4 *>(p) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        pair[0] = split_pair(v.x, v.y), pair[1] = split_pair(v.z, v.w);
    } else {
#pragma unroll
        for (int i = 0; i < 2; i++)
            pair[i] = split_pair(2 * i < valid ? p[2 * i] : 0.0f, 2 * i + 1 < valid ? p[2 * i + 1] : 0.0f);
    }
}

// QUADS: ranks are multiples of 4, columns of 8, and all matrices aligned.
template <bool QUADS>
__global__ void __launch_bounds__(WARPS * 32)
    lora_dx(const DeviceBatch *__restrict__ batch, const __grid_constant__ DxMembers members, int64_t columns, bool aligned,
            bf16 *__restrict__ dx) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int base = (int)blockIdx.x * COLUMNS + (int)threadIdx.x / 32 * 32, tokens = (int)batch->tokens;
    int first = (int)blockIdx.y * ROWS, column = base + 8 * t;
    for (int row = first; row < first + ROWS && row < tokens; row += 16) {
        float total[2][8] = {};
        for (int i = 0; i < members.count; i++) {
            const DxMember &m = members.member[i];
            float sum[4][4] = {};
            for (int k = 4 * t, rank = (int)m.rank; k - 4 * t < rank; k += 16) {
                uint32_t w[2][4];
#pragma unroll
                for (int e = 0; e < 2; e++)
                    load_columns<QUADS>(w[e], (const bf16 *)m.a, k + 2 * e, rank, base, g, columns);
                SplitPair v[2][2];
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    int r = row + half * 8 + g;
                    split_four<QUADS>(v[half], m.ds + (int64_t)r * rank + k, r < tokens ? rank - k : 0);
                }
                uint32_t high[4] = {v[0][0].high, v[1][0].high, v[0][1].high, v[1][1].high};
                uint32_t low[4] = {v[0][0].low, v[1][0].low, v[0][1].low, v[1][1].low};
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    uint32_t pair[2] = {w[0][j], w[1][j]};
                    mma_m16n8k16(sum[j], high, pair);
                    mma_m16n8k16(sum[j], low, pair);
                }
            }
            bool dropping = is_dropping(batch, m.dropout);
            float scale = dropping ? m.scale * m.dropout.factor : m.scale;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int r = row + half * 8 + g;
                unsigned keep = 255;
                if (dropping && r < tokens) {
                    keep = keep8(batch->seed, m.dropout, {batch->samples[r], (uint32_t)batch->positions[r]}, column);
                }
#pragma unroll
                for (int c = 0; c < 8; c++)
                    total[half][c] += keep >> c & 1 ? scale * sum[c / 2][half * 2 + c % 2] : 0.0f;
            }
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int r = row + half * 8 + g;
            store_eight(dx + r * columns + column, total[half], r < tokens ? columns - column : 0, aligned);
        }
    }
}

// F32: a thread takes one element of the result.
__global__ void __launch_bounds__(256) lora_up_plain(const DeviceBatch *__restrict__ batch, const float *__restrict__ s,
                                                     const float *__restrict__ b, const float *__restrict__ bias, int64_t rank,
                                                     float scale, int64_t columns, float *__restrict__ y, int64_t pitch) {
    int64_t row = blockIdx.x, column = (int64_t)blockIdx.y * 256 + threadIdx.x;
    if (row >= batch->tokens || column >= columns) return;
    float sum = 0.0f;
    for (int64_t r = 0; r < rank; r++)
        sum += s[row * rank + r] * b[column * rank + r];
    y[row * pitch + column] = (bias != NULL ? bias[column] : 0.0f) + scale * sum;
}

__global__ void __launch_bounds__(256)
    lora_dx_plain(const DeviceBatch *__restrict__ batch, const __grid_constant__ DxMembers members, int64_t columns,
                  float *__restrict__ dx) {
    int64_t row = blockIdx.x, column = (int64_t)blockIdx.y * 256 + threadIdx.x;
    if (row >= batch->tokens || column >= columns) return;
    float total = 0.0f;
    for (int i = 0; i < members.count; i++) {
        const DxMember &m = members.member[i];
        bool dropping = is_dropping(batch, m.dropout);
        if (dropping && !dropout_keep(batch->seed, m.dropout.stream, batch->samples[row], (uint32_t)batch->positions[row],
                                      (uint32_t)column, m.dropout.threshold)) {
            continue;
        }
        float sum = 0.0f;
        for (int64_t r = 0; r < m.rank; r++)
            sum += m.ds[row * m.rank + r] * ((const float *)m.a)[r * columns + column];
        total += (dropping ? m.scale * m.dropout.factor : m.scale) * sum;
    }
    dx[row * columns + column] = total;
}

static bool is_grid(int64_t rows, int64_t columns) {
    return rows >= 0 && columns >= 1 && rows <= 65535 * (int64_t)ROWS && divide_up(columns, 256) <= 65535;
}

extern "C" cudaError_t cuda_lora_up(DType act, const DeviceBatch *batch, int64_t rows, const LinearSpec *spec, const void *s,
                                    const void *lora_b, const void *bias, void *y, int64_t stride, cudaStream_t stream) {
    if (!is_grid(rows, spec->out) || spec->rank < 0 || !is_weight_type(act)) return cudaErrorInvalidValue;
    if (!is_pitch(stride, spec->out)) return cudaErrorInvalidValue;
    if (rows == 0) return cudaSuccess;
    int64_t pitch = pitch_of(stride, spec->out);
    if (act == DTYPE_F32) {
        dim3 grid((unsigned)rows, (unsigned)divide_up(spec->out, 256));
        CU_LAUNCH(lora_up_plain, grid, 256, 0, stream, batch, (const float *)s, (const float *)lora_b, (const float *)bias,
                  spec->rank, spec->lora_scale, spec->out, (float *)y, pitch);
    } else if (!launch_up_held(batch, rows, spec, s, lora_b, bias, y, pitch, stream)) {
        dim3 grid((unsigned)divide_up(spec->out, COLUMNS), (unsigned)divide_up(rows, ROWS));
        bool aligned = (spec->out | pitch) % VEC == 0 && is_aligned(y), quads = spec->rank % 4 == 0 && all_aligned(s, lora_b);
        if (quads)
            CU_LAUNCH(lora_up<true>, grid, WARPS * 32, 0, stream, batch, (const bf16 *)s, (const bf16 *)lora_b,
                      (const bf16 *)bias, spec->rank, spec->lora_scale, spec->out, aligned, (bf16 *)y, pitch);
        else
            CU_LAUNCH(lora_up<false>, grid, WARPS * 32, 0, stream, batch, (const bf16 *)s, (const bf16 *)lora_b,
                      (const bf16 *)bias, spec->rank, spec->lora_scale, spec->out, aligned, (bf16 *)y, pitch);
    }
    return cudaGetLastError();
}

extern "C" cudaError_t cuda_lora_dx(DType act, const DeviceBatch *batch, const LinearShape *shape, const float *const *ds,
                                    const void *const *lora_a, void *dx, cudaStream_t stream) {
    if (!is_grid(shape->rows, shape->in) || shape->count < 1 || shape->count > LINEAR_GROUP_MAX) return cudaErrorInvalidValue;
    if (!is_weight_type(act)) return cudaErrorInvalidValue;
    if (shape->rows == 0) return cudaSuccess;
    DxMembers members = {};
    for (int i = 0; i < shape->count; i++) {
        const LinearSpec *spec = &shape->linear[i];
        if (spec->rank > 0)
            members.member[members.count++] = {ds[i], lora_a[i], spec->rank, spec->lora_scale, dropout_of(spec)};
    }
    if (act == DTYPE_F32) {
        dim3 grid((unsigned)shape->rows, (unsigned)divide_up(shape->in, 256));
        CU_LAUNCH(lora_dx_plain, grid, 256, 0, stream, batch, members, shape->in, (float *)dx);
    } else if (!launch_dx_held(batch, shape, ds, lora_a, dx, stream)) {
        dim3 grid((unsigned)divide_up(shape->in, COLUMNS), (unsigned)divide_up(shape->rows, ROWS));
        bool aligned = shape->in % VEC == 0 && is_aligned(dx), quads = shape->in % VEC == 0;
        for (int i = 0; i < members.count; i++)
            quads = quads && members.member[i].rank % 4 == 0 && all_aligned(members.member[i].ds, members.member[i].a);
        if (quads)
            CU_LAUNCH(lora_dx<true>, grid, WARPS * 32, 0, stream, batch, members, shape->in, aligned, (bf16 *)dx);
        else
            CU_LAUNCH(lora_dx<false>, grid, WARPS * 32, 0, stream, batch, members, shape->in, aligned, (bf16 *)dx);
    }
    return cudaGetLastError();
}
