// Fake quantization of weights: rows of V in FP32 to what packing them into a grid and unpacking them again gives, with the CPU's
// bits (quant/group_int.c, quant/ggml_blocks.c); the straight-through masks; learned scales (train/qat_scales.h). Rows lie back to
// back, and groups divide them, so all is a list of groups: a warp takes one, or a block of threads where a group is a whole row.
#include "kernels/cuda/quantize.cuh"
#include "kernels/ggml_formats.h"

static constexpr int THREADS = 256, WARPS = THREADS / 32;

// ---- V = W + scale * B A: four rows and N columns a thread, the sum over the rank in order -------------------------------------

enum { UPDATE_ROWS = 4 };

template <class T, int N>
__global__ void __launch_bounds__(THREADS) add_update(int64_t rows, int64_t cols, int64_t rank, float scale,
                                                      const T *__restrict__ a, const T *__restrict__ b, float *v) {
    int64_t item = (int64_t)blockIdx.x * THREADS + threadIdx.x, vectors = cols / N;
    int64_t row = item / vectors * UPDATE_ROWS, column = item % vectors * N;
    if (row >= rows) return;
    float delta[UPDATE_ROWS][N] = {};
    for (int64_t r = 0; r < rank; r++) {
        float x[N];
        load_n<N>(a + r * cols + column, x);
#pragma unroll
        for (int k = 0; k < UPDATE_ROWS; k++) {
            float y = row + k < rows ? to_float(b[(row + k) * rank + r]) : 0.0f;
#pragma unroll
            for (int i = 0; i < N; i++)
                delta[k][i] = add_rn(delta[k][i], mul_rn(y, x[i]));
        }
    }
#pragma unroll
    for (int k = 0; k < UPDATE_ROWS; k++) {
        if (row + k >= rows) return;
        float *at = v + (row + k) * cols + column, x[N];
        load_n<N>(at, x);
#pragma unroll
        for (int i = 0; i < N; i++)
            x[i] = add_rn(x[i], mul_rn(scale, delta[k][i]));
        store_n<N>(at, x);
    }
}

// exact + share * (quantized - exact)
__device__ __forceinline__ float blend(float quantized, float exact, float share) {
    return share < 1.0f ? add_rn(exact, mul_rn(share, add_rn(quantized, -exact))) : quantized;
}

template <class T>
__device__ __forceinline__ void put(T *out, int64_t at, float quantized, float exact, float share, uint64_t first,
                                    uint64_t *bad) {
    if (!is_finite(exact) || !is_finite(quantized)) note_bad(bad, (int64_t)first + at);
    out[at] = from_float<T>(blend(quantized, exact, share));
}

// ---- integers in groups -----------------------------------------------------------------------------------------------------------

struct IntGrid {
    float levels, center;
    bool symmetric;
    DType type;
};
struct IntScale {
    float scale, zero;  // zero counted as codes are, from 0
};

__device__ __forceinline__ IntScale scale_of(const IntGrid &grid, float least, float most) {
    float size = -least > most ? -least : most;
    float s = round_to(grid.symmetric ? size / (grid.levels / 2.0f) : add_rn(most, -least) / grid.levels, grid.type);
    if (s == 0.0f) s = grid.type == DTYPE_BF16 ? 0x1p-7f : grid.type == DTYPE_F16 ? 0x1p-10f : 0x1p-23f;
    float z = grid.symmetric ? 0.0f : rintf(add_rn(-grid.center, -(least / s)));
    z = z < -grid.center ? -grid.center : z > grid.center - 1.0f ? grid.center - 1.0f : z;
    return {s, z + grid.center};
}

struct IntCode {
    float steps;  // what the code stands for, in scales
    float value;
    bool clipped;
};
__device__ __forceinline__ IntCode code_of(const IntGrid &grid, const IntScale &s, float x) {
    float q = rintf(add_rn(x / s.scale, s.zero - grid.center)), low = -grid.center, high = grid.center - 1.0f;
    bool clipped = !(q >= low && q <= high);
    q = !(q >= low) ? low : q > high ? high : q;
    float steps = q + grid.center - s.zero;
    return {steps, round_to(mul_rn(steps, s.scale), grid.type), clipped};
}

// WIDE: a group is a block of threads, else a warp.
template <bool WIDE>
struct Team {
    static constexpr int SIZE = WIDE ? THREADS : 32;
    __device__ static __forceinline__ int64_t group() {
        return WIDE ? blockIdx.x : (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    }
    __device__ static __forceinline__ int member() { return threadIdx.x % SIZE; }
    __device__ static __forceinline__ float max(float v, float *parts) {
        v = warp_max(v);
        if (!WIDE) return v;
        __syncthreads();
        if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
        __syncthreads();
        for (int w = 0; w < WARPS; w++)
            v = fmaxf(v, parts[w]);
        return v;
    }
    __device__ static __forceinline__ float sum(float v, float *parts) { return WIDE ? block_sum(v, parts) : warp_sum(v); }
    // The range of a group's values, with 0 in it.
    __device__ static __forceinline__ void range(const float *x, int64_t count, float *parts, float *least, float *most) {
        float low = 0.0f, high = 0.0f;
        for (int64_t i = member(); i < count; i += SIZE)
            low = fminf(low, x[i]), high = fmaxf(high, x[i]);
        *least = -max(-low, parts);
        *most = max(high, parts);
    }
};

template <class T, bool WIDE>
__global__ void __launch_bounds__(THREADS)
    fake_int(const float *__restrict__ v, int64_t groups, int64_t group, IntGrid grid, const float *__restrict__ scales,
             float share, T *__restrict__ out, uint64_t first, uint64_t *bad) {
    CU_SHARED(float, parts, [32]);
    using Members = Team<WIDE>;
    int64_t g = Members::group();
    if (g >= groups) return;  // all of a team
    IntScale s = {0.0f, grid.center};
    if (scales != NULL) {
        s.scale = scales[g];
    } else {
        float least, most;
        Members::range(v + g * group, group, parts, &least, &most);
        s = scale_of(grid, least, most);
    }
    for (int64_t i = g * group + Members::member(); i < (g + 1) * group; i += Members::SIZE)
        put(out, i, code_of(grid, s, v[i]).value, v[i], share, first, bad);
}

// dv becomes M . dv, where a zero of M is 1 - share; d_theta += share * chain * sum of dv * (what LSQ takes for dFQ / ds).
template <bool WIDE>
__global__ void __launch_bounds__(THREADS)
    fake_int_backward(const float *__restrict__ v, int64_t groups, int64_t group, IntGrid grid,
                      const float *__restrict__ scales, const float *__restrict__ chain, float share, float *__restrict__ dv,
                      float *__restrict__ d_theta) {
    CU_SHARED(float, parts, [32]);
    using Members = Team<WIDE>;
    int64_t g = Members::group();
    if (g >= groups) return;
    IntScale s = {0.0f, grid.center};
    if (scales != NULL) {
        s.scale = scales[g];
    } else {
        float least, most;
        Members::range(v + g * group, group, parts, &least, &most);
        s = scale_of(grid, least, most);
    }
    float sum = 0.0f;
#pragma unroll 1
    for (int64_t i = g * group + Members::member(); i < (g + 1) * group; i += Members::SIZE) {
        IntCode code = code_of(grid, s, v[i]);
        float d = dv[i];
        sum += d * (code.steps - (code.clipped ? 0.0f : v[i] / s.scale));
        if (code.clipped) dv[i] = d * (1.0f - share);
    }
    if (d_theta == NULL) return;
    sum = Members::sum(sum, parts);
    if (Members::member() == 0) d_theta[g] += share * chain[g] * sum;
}

// w: values of the base. scales: s0 * max(theta, least), s0 known or that of w; chain: s0 / root.
template <bool WIDE>
__global__ void __launch_bounds__(THREADS)
    fake_scales(const float *__restrict__ w, int64_t groups, int64_t group, IntGrid grid, float root,
                const float *__restrict__ known, const float *__restrict__ theta, float *__restrict__ scales,
                float *__restrict__ chain) {
    CU_SHARED(float, parts, [32]);
    using Members = Team<WIDE>;
    int64_t g = Members::group();
    if (g >= groups) return;
    float first, factor = theta == NULL ? 1.0f : theta[g] > FAKE_THETA_LEAST ? theta[g] : FAKE_THETA_LEAST;
    if (known != NULL) {
        first = known[g];
    } else {
        float least, most;
        Members::range(w + g * group, group, parts, &least, &most);
        IntGrid exact = {grid.levels, grid.center, true, DTYPE_F32};
        first = scale_of(exact, least, most).scale;
    }
    float scale = round_to(mul_rn(first, factor), grid.type);
    if (Members::member() != 0) return;
    scales[g] = scale == 0.0f ? 0x1p-23f : scale;
    chain[g] = first / root;
}

// ---- ggml's blocks of 32: a lane a value ---------------------------------------------------------------------------------------

// Toward zero; what does not fit an int is 0 (denormal scales give Inf and NaN here).
__device__ __forceinline__ int truncate_code(float x) {
    return fabsf(x) < 2147483648.0f ? (int)x : 0;
}

struct Q4Block {
    float d, inverse;
};
// The first value of largest magnitude becomes code 0.
__device__ __forceinline__ Q4Block q4_block(float x) {
    float largest = warp_max(fabsf(x));
    unsigned same = __ballot_sync(ALL_LANES, fabsf(x) == largest && largest > 0.0f);
    float value = __shfl_sync(ALL_LANES, x, same != 0 ? __ffs((int)same) - 1 : 0);
    float d = (same != 0 ? value : 0.0f) / -8.0f;
    return {d, d != 0.0f ? 1.0f / d : 0.0f};
}

template <class T, bool Q4>
__global__ void __launch_bounds__(THREADS)
    fake_ggml(const float *__restrict__ v, int64_t blocks, float share, T *__restrict__ out, uint64_t first, uint64_t *bad) {
    int64_t b = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32, i = b * GGML_BLOCK + threadIdx.x % 32;
    if (b >= blocks) return;
    float x = v[i], d;
    int code;
    if constexpr (Q4) {
        Q4Block block = q4_block(x);
        code = (int8_t)truncate_code(add_rn(mul_rn(x, block.inverse), 8.5f));
        code = (uint8_t)(code < 15 ? code : 15) % 16 - 8;
        d = block.d;
    } else {
        d = warp_max(fabsf(x)) / 127.0f;
        code = (int8_t)truncate_code(roundf(mul_rn(x, d != 0.0f ? 1.0f / d : 0.0f)));
    }
    put(out, i, mul_rn(to_float(half_from_float(d)), (float)code), x, share, first, bad);
}

__global__ void __launch_bounds__(THREADS)
    fake_q4_0_backward(const float *__restrict__ v, int64_t blocks, float share, float *__restrict__ dv) {
    int64_t b = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32, i = b * GGML_BLOCK + threadIdx.x % 32;
    if (b >= blocks) return;
    float x = v[i];
    if (add_rn(mul_rn(x, q4_block(x).inverse), 8.5f) >= 16.0f) dv[i] *= 1.0f - share;
}

// ---- NF4: what its codes and constants decode to, the offset of nested ones on the device ------------------------------------------

__device__ __constant__ float nf4_values_of_codes[16] = NF4_CODES;

template <class T>
__global__ void __launch_bounds__(THREADS)
    nf4_values(const uint8_t *__restrict__ codes, const float *__restrict__ absmax, const uint8_t *__restrict__ nested_codes,
               const float *__restrict__ nested_absmax, const float *__restrict__ map, const float *__restrict__ offset,
               int64_t block_size, int64_t first, int64_t count, const float *__restrict__ v, float share,
               T *__restrict__ out) {
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= count) return;
    int64_t at = first + i, block = at / block_size;
    float scale;
    if (nested_codes != NULL)
        scale = add_rn(mul_rn(map[nested_codes[block]], nested_absmax[block / NESTED_BLOCK]), *offset);
    else
        scale = absmax[block];
    unsigned byte = codes[at / 2];
    float value = mul_rn(nf4_values_of_codes[at % 2 == 0 ? byte >> 4 : byte & 15], scale);
    out[i] = from_float<T>(v != NULL ? blend(value, v[i], share) : value);
}

template <class T>
__global__ void __launch_bounds__(THREADS)
    scale_to_float(int64_t count, const T *__restrict__ from, float factor, float *__restrict__ to) {
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < count) to[i] = to_float(from[i]) * factor;
}

// ---- launchers ----------------------------------------------------------------------------------------------------------------

extern "C" cudaError_t cuda_add_update(DType act, int64_t rows, int64_t cols, int64_t rank, float scale, const void *lora_a,
                                       const void *lora_b, float *v, cudaStream_t stream) {
    if (rows < 0 || cols < 1 || rank < 0) return cudaErrorInvalidValue;
    if (rows == 0 || rank == 0) return cudaSuccess;
    bool vectors = cols % VEC == 0 && all_aligned(lora_a, v);
    int64_t items = divide_up(rows, UPDATE_ROWS) * (vectors ? cols / VEC : cols), blocks = divide_up(items, THREADS);
    if (blocks > GRID_MAX) return cudaErrorInvalidValue;
#define UPDATE(N)                                                                                                   \
    CU_LAUNCH((add_update<T, N>), (unsigned)blocks, THREADS, 0, stream, rows, cols, rank, scale, (const T *)lora_a, \
              (const T *)lora_b, v)
    WITH_ACT(act, {
        if (vectors)
            UPDATE(VEC);
        else
            UPDATE(1);
    });
    return cudaGetLastError();
}

static IntGrid int_grid(const FakeQuant *fake) {
    if (fake->grid != FAKE_INT) return {};
    return {(float)((1 << fake->bits) - 1), (float)(1 << (fake->bits - 1)), fake->symmetric != 0, fake->scale_type};
}

// How the groups of some rows are shared out.
struct Groups {
    int64_t size, count;
    unsigned blocks;
    bool wide, fits;
};
static Groups groups_of(const FakeQuant *fake, int64_t rows, int64_t cols) {
    bool is_int = fake->grid == FAKE_INT;
    int64_t size = !is_int ? GGML_BLOCK : fake->group > 0 ? fake->group : cols;
    Groups g = {size, rows * cols / size, 0, is_int && size > 256, false};
    int64_t blocks = g.wide ? g.count : divide_up(g.count, WARPS);
    g.blocks = (unsigned)blocks;
    g.fits = rows >= 0 && cols >= 1 && cols % size == 0 && blocks <= GRID_MAX;
    return g;
}

extern "C" cudaError_t cuda_fake_weight(DType act, const FakeQuant *fake, int64_t rows, int64_t cols, const float *v,
                                        const float *scales, float share, void *out, uint64_t first, uint64_t *bad,
                                        cudaStream_t stream) {
    Groups g = groups_of(fake, rows, cols);
    IntGrid grid = int_grid(fake);
    if (!g.fits) return cudaErrorInvalidValue;
    if (rows == 0) return cudaSuccess;
#define FAKE(...) CU_LAUNCH((__VA_ARGS__), g.blocks, THREADS, 0, stream, v, g.count, share, (T *)out, first, bad)
#define FAKE_GROUPS(WIDE) \
    CU_LAUNCH((fake_int<T, WIDE>), g.blocks, THREADS, 0, stream, v, g.count, g.size, grid, scales, share, (T *)out, first, bad)
    WITH_ACT(act, {
        if (fake->grid == FAKE_Q4_0)
            FAKE(fake_ggml<T, true>);
        else if (fake->grid == FAKE_Q8_0)
            FAKE(fake_ggml<T, false>);
        else if (fake->grid != FAKE_INT)
            return cudaErrorInvalidValue;
        else if (g.wide)
            FAKE_GROUPS(true);
        else
            FAKE_GROUPS(false);
    });
    return cudaGetLastError();
}

extern "C" cudaError_t cuda_fake_weight_mask(const FakeQuant *fake, int64_t rows, int64_t cols, const float *v,
                                             const float *scales, const float *chain, float share, float *dv, float *d_theta,
                                             cudaStream_t stream) {
    Groups g = groups_of(fake, rows, cols);
    IntGrid grid = int_grid(fake);
    if (!g.fits) return cudaErrorInvalidValue;
    if (rows == 0 || fake->grid == FAKE_Q8_0) return cudaSuccess;
#define MASK(WIDE)                                                                                                         \
    CU_LAUNCH((fake_int_backward<WIDE>), g.blocks, THREADS, 0, stream, v, g.count, g.size, grid, scales, chain, share, dv, \
              d_theta)
    if (fake->grid == FAKE_Q4_0)
        CU_LAUNCH(fake_q4_0_backward, g.blocks, THREADS, 0, stream, v, g.count, share, dv);
    else if (fake->grid != FAKE_INT)
        return cudaErrorInvalidValue;
    else if (g.wide)
        MASK(true);
    else
        MASK(false);
    return cudaGetLastError();
}

extern "C" cudaError_t cuda_fake_scales(const FakeQuant *fake, int64_t rows, int64_t cols, const float *w, const float *known,
                                        const float *theta, float *scales, float *chain, cudaStream_t stream) {
    Groups g = groups_of(fake, rows, cols);
    IntGrid grid = int_grid(fake);
    if (!g.fits || fake->grid != FAKE_INT) return cudaErrorInvalidValue;
    if (rows == 0) return cudaSuccess;
    float root = sqrtf((float)g.size * (float)((1 << (fake->bits - 1)) - 1));
#define SCALES(WIDE) \
    CU_LAUNCH((fake_scales<WIDE>), g.blocks, THREADS, 0, stream, w, g.count, g.size, grid, root, known, theta, scales, chain)
    if (g.wide)
        SCALES(true);
    else
        SCALES(false);
    return cudaGetLastError();
}

extern "C" cudaError_t cuda_nf4_values(DType act, const WeightView *weight, const float *offset, int64_t first, int64_t count,
                                       const float *v, float share, void *out, cudaStream_t stream) {
    int64_t blocks = divide_up(count, THREADS);
    if (first < 0 || count < 0 || blocks > GRID_MAX) return cudaErrorInvalidValue;
    if (count == 0) return cudaSuccess;
    WITH_ACT(act, CU_LAUNCH((nf4_values<T>), (unsigned)blocks, THREADS, 0, stream, (const uint8_t *)weight->data,
                            weight->scales, weight->nested_codes, weight->nested_absmax, weight->nested_map, offset,
                            weight->block_size, first, count, v, share, (T *)out));
    return cudaGetLastError();
}

extern "C" cudaError_t cuda_scale_to_float(DType act, int64_t count, const void *from, float factor, float *to,
                                           cudaStream_t stream) {
    int64_t blocks = divide_up(count, THREADS);
    if (count < 0 || blocks > GRID_MAX) return cudaErrorInvalidValue;
    if (count == 0) return cudaSuccess;
    WITH_ACT(act, CU_LAUNCH((scale_to_float<T>), (unsigned)blocks, THREADS, 0, stream, count, (const T *)from, factor, to));
    return cudaGetLastError();
}
