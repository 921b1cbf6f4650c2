// Fake quantization of activations: what integer codes of a row's groups would hold; formulas in kernels/ops.h. The bits of the
// CPU's results. A block is a row: first every group's range, then eight columns a thread, which are one byte of the mask.
#include "kernels/cuda/common.cuh"

static constexpr int THREADS = 256, WARPS = THREADS / 32;

struct Grid {  // of one group; scale 0: it holds NaN or Inf
    float scale, zero;
};

struct Codes {
    float low, high, levels;
    float fixed;  // above 0: every group's scale
    bool symmetric, off;
};

__device__ __forceinline__ Grid grid_of(float least, float most, bool finite, const Codes &codes) {
    if (!finite) return {0.0f, 0.0f};
    float size = fmaxf(-least, most);
    float scale = codes.symmetric ? size / (codes.levels / 2.0f) : add_rn(most, -least) / codes.levels;
    if (codes.fixed > 0.0f) scale = codes.fixed;
    if (scale < 0x1p-23f) scale = 0x1p-23f;
    if (!(scale <= 0x1.fffffep127f)) scale = 0x1.fffffep127f;  // most - least overflowed
    float zero = 0.0f;
    if (!codes.symmetric) zero = fminf(fmaxf(codes.low - rintf(least / scale), codes.low), codes.high);
    return {scale, zero};
}

// The range, with 0 in it, of `count` values taken by threads `at`, `at` + step, ...
template <class T>
__device__ __forceinline__ void scan(const T *x, int64_t count, int at, int step, float *least, float *most, int *wrong) {
    for (int64_t i = at; i < count; i += step) {
        float v = to_float(x[i]);
        *least = fminf(*least, v), *most = fmaxf(*most, v);
        *wrong |= !(fabsf(v) <= 0x1.fffffep127f);
    }
    *most = warp_max(*most), *least = -warp_max(-*least);
    *wrong = __any_sync(ALL_LANES, *wrong);
}

template <class T>
__global__ void __launch_bounds__(THREADS)
    fake_rows_forward(const DeviceBatch *__restrict__ batch, int64_t columns, int64_t group, Codes codes, const T *x,
                      int64_t pitch, T *y, uint8_t *__restrict__ saved) {
    CU_DYN_SHARED(memory);
    CU_SHARED(float, parts, [3][WARPS]);
    Grid *grids = (Grid *)memory;
    int64_t t = blockIdx.x, groups = columns / group;
    if (t >= batch->tokens) return;
    const T *row = x + t * pitch;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int64_t bytes = divide_up(columns, 8);
    if (codes.off) {
        for (int64_t c = threadIdx.x; c < columns; c += THREADS)
            y[t * columns + c] = row[c];
        for (int64_t b = threadIdx.x; b < bytes; b += THREADS)
            saved[t * bytes + b] = 0xFF;
        return;
    }
    if (groups >= WARPS) {  // a warp a group
        for (int64_t g = warp; g < groups; g += WARPS) {
            float least = 0.0f, most = 0.0f;
            int wrong = 0;
            scan(row + g * group, group, lane, 32, &least, &most, &wrong);
            if (lane == 0) grids[g] = grid_of(least, most, !wrong, codes);
        }
    } else {  // the block takes one group after another
        for (int64_t g = 0; g < groups; g++) {
            float least = 0.0f, most = 0.0f;
            int wrong = 0;
            scan(row + g * group, group, threadIdx.x, THREADS, &least, &most, &wrong);
            if (lane == 0) parts[0][warp] = least, parts[1][warp] = most, parts[2][warp] = (float)wrong;
            __syncthreads();
            if (threadIdx.x == 0) {
                for (int w = 0; w < WARPS; w++) {
                    least = fminf(least, parts[0][w]), most = fmaxf(most, parts[1][w]);
                    wrong |= parts[2][w] != 0.0f;
                }
                grids[g] = grid_of(least, most, !wrong, codes);
            }
            __syncthreads();
        }
    }
    __syncthreads();
    for (int64_t b = threadIdx.x; b < bytes; b += THREADS) {
        unsigned inside = 0;
        for (int i = 0; i < 8 && b * 8 + i < columns; i++) {
            Grid grid = grids[(b * 8 + i) / group];
            if (grid.scale == 0.0f) {
                y[t * columns + b * 8 + i] = from_float<T>(NAN);
                continue;
            }
            float u = add_rn(rintf(mul_rn(to_float(row[b * 8 + i]), 1.0f / grid.scale)), grid.zero);
            if (u >= codes.low && u <= codes.high) inside |= 1u << i;
            float q = fminf(fmaxf(u, codes.low), codes.high);
            y[t * columns + b * 8 + i] = from_float<T>(mul_rn(q - grid.zero, grid.scale));
        }
        saved[t * bytes + b] = (uint8_t)inside;
    }
}

template <class T>
__global__ void __launch_bounds__(THREADS)
    fake_rows_backward(const DeviceBatch *__restrict__ batch, int64_t columns, int64_t pitch, const uint8_t *__restrict__ saved,
                       const T *dy, T *dx) {
    int64_t t = blockIdx.x, bytes = divide_up(columns, 8);
    if (t >= batch->tokens) return;
    for (int64_t c = threadIdx.x; c < columns; c += THREADS) {
        bool inside = saved[t * bytes + c / 8] >> (c % 8) & 1;
        dx[t * pitch + c] = inside ? dy[t * pitch + c] : from_float<T>(0.0f);
    }
}

static bool is_shape(const FakeRowsShape *s) {
    return s->rows >= 0 && s->rows <= GRID_MAX && s->columns >= 1 && s->group >= 1 && s->columns % s->group == 0 &&
           (s->bits == 0 || (s->bits >= 2 && s->bits <= 8)) && is_pitch(s->stride, s->columns) &&
           is_pitch(s->gradient_stride, s->columns);
}

extern "C" cudaError_t cuda_fake_rows_forward(DType act, const DeviceBatch *batch, const FakeRowsShape *shape, const void *x,
                                              void *y, uint8_t *saved, cudaStream_t stream) {
    int64_t groups = is_shape(shape) ? shape->columns / shape->group : 0;
    if (groups < 1 || groups > CUDA_FAKE_GROUPS_MAX) return cudaErrorInvalidValue;
    if (shape->rows == 0) return cudaSuccess;
    int bits = shape->bits;
    float levels = (float)((1 << bits) - 1), low = bits > 0 ? -(float)(1 << (bits - 1)) : 0.0f;
    Codes codes = {low, low + levels, levels, shape->scale, shape->symmetric != 0, bits == 0};
    WITH_ACT(act, CU_LAUNCH((fake_rows_forward<T>), (unsigned)shape->rows, THREADS, (size_t)groups * sizeof(Grid), stream,
                            batch, shape->columns, shape->group, codes, (const T *)x, pitch_of(shape->stride, shape->columns),
                            (T *)y, saved));
    return cudaGetLastError();
}

extern "C" cudaError_t cuda_fake_rows_backward(DType act, const DeviceBatch *batch, const FakeRowsShape *shape,
                                               const uint8_t *saved, const void *dy, void *dx, cudaStream_t stream) {
    if (!is_shape(shape)) return cudaErrorInvalidValue;
    if (shape->rows == 0) return cudaSuccess;
    WITH_ACT(act, CU_LAUNCH((fake_rows_backward<T>), (unsigned)shape->rows, THREADS, 0, stream, batch, shape->columns,
                            pitch_of(shape->gradient_stride, shape->columns), saved, (const T *)dy, (T *)dx));
    return cudaGetLastError();
}
