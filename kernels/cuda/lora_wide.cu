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

__global__ void __launch_bounds__(WARPS * 32)
    lora_up(const DeviceBatch *__restrict__ batch, const bf16 *__restrict__ s, const bf16 *__restrict__ b,
            const bf16 *__restrict__ bias, int64_t rank, float scale, int64_t columns, bool aligned, bf16 *__restrict__ y,
            int64_t pitch) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int64_t base = (int64_t)blockIdx.x * COLUMNS + threadIdx.x / 32 * 32, tokens = batch->tokens,
            first = (int64_t)blockIdx.y * ROWS;
    int64_t column = base + 8 * t;
    float offset[8];
#pragma unroll
    for (int i = 0; i < 8; i++)
        offset[i] = bias != NULL && column + i < columns ? to_float(bias[column + i]) : 0.0f;
    for (int64_t row = first; row < first + ROWS && row < tokens; row += 16) {
        float sum[4][4] = {};
        for (int64_t k = 2 * t; k - 2 * t < rank; k += 16) {
            uint32_t a[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int64_t r = row + g + i % 2 * 8, at = k + i / 2 * 8;
                a[i] = load_pair(s + r * rank + at, 1, r < tokens ? rank - at : 0);
            }
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int64_t n = column_of(base, j, g);
                uint32_t w[2];
#pragma unroll
                for (int i = 0; i < 2; i++)
                    w[i] = load_pair(b + n * rank + k + 8 * i, 1, n < columns ? rank - k - 8 * i : 0);
                mma_m16n8k16(sum[j], a, w);
            }
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int64_t r = row + g + half * 8;
            float v[8];
#pragma unroll
            for (int i = 0; i < 8; i++)
                v[i] = offset[i] + scale * sum[i / 2][half * 2 + i % 2];
            store_eight(y + r * pitch + column, v, r < tokens ? columns - column : 0, aligned);
        }
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

__global__ void __launch_bounds__(WARPS * 32)
    lora_dx(const DeviceBatch *__restrict__ batch, DxMembers members, int64_t columns, bool aligned, bf16 *__restrict__ dx) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int64_t base = (int64_t)blockIdx.x * COLUMNS + threadIdx.x / 32 * 32, tokens = batch->tokens,
            first = (int64_t)blockIdx.y * ROWS;
    int64_t column = base + 8 * t;
    for (int64_t row = first; row < first + ROWS && row < tokens; row += 16) {
        float total[2][8] = {};
        for (int i = 0; i < members.count; i++) {
            const DxMember &m = members.member[i];
            const bf16 *from = (const bf16 *)m.a;
            float sum[4][4] = {};
            for (int64_t k = 2 * t; k - 2 * t < m.rank; k += 16) {
                uint32_t high[4], low[4];
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    int64_t r = row + g + e % 2 * 8, at = k + e / 2 * 8, valid = r < tokens ? m.rank - at : 0;
                    const float *ds = m.ds + r * m.rank + at;
                    SplitPair pair = split_pair(valid > 0 ? ds[0] : 0.0f, valid > 1 ? ds[1] : 0.0f);
                    high[e] = pair.high, low[e] = pair.low;
                }
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    int64_t n = column_of(base, j, g);
                    uint32_t w[2];
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        w[e] = load_pair(from + (k + 8 * e) * columns + n, columns, n < columns ? m.rank - k - 8 * e : 0);
                    }
                    mma_m16n8k16(sum[j], high, w);
                    mma_m16n8k16(sum[j], low, w);
                }
            }
            bool dropping = is_dropping(batch, m.dropout);
            float scale = dropping ? m.scale * m.dropout.factor : m.scale;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int64_t r = row + g + half * 8;
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
            int64_t r = row + g + half * 8;
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
    lora_dx_plain(const DeviceBatch *__restrict__ batch, DxMembers members, int64_t columns, float *__restrict__ dx) {
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
        CU_LAUNCH(lora_up, grid, WARPS * 32, 0, stream, batch, (const bf16 *)s, (const bf16 *)lora_b, (const bf16 *)bias,
                  spec->rank, spec->lora_scale, spec->out, (spec->out | pitch) % VEC == 0 && is_aligned(y), (bf16 *)y, pitch);
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
        bool aligned = shape->in % VEC == 0 && is_aligned(dx);
        CU_LAUNCH(lora_dx, grid, WARPS * 32, 0, stream, batch, members, shape->in, aligned, (bf16 *)dx);
    }
    return cudaGetLastError();
}
