/* Planted mistakes, each with its fixed twin (FIX), to see which check catches what. */
#include "kernels/cuda/cu.h"
#include "kernels/cuda/cu_mma.h"
#include "tests/cuda_emu/bugs.h"

enum { N = 128 }; /* threads a block, and elements in and out */

template <bool FIX>
__global__ void missing_barrier(const float *in, float *out) {
    CU_SHARED(float, s, [N]);
    int t = threadIdx.x;
    s[t] = in[t];
    if (FIX) __syncthreads();
    out[t] = s[N - 1 - t];
}
template <bool FIX>
__global__ void missing_barrier_forward(const float *in, float *out) { /* reads only what lower threads wrote: right in order */
    CU_SHARED(float, s, [N]);
    int t = threadIdx.x;
    s[t] = in[t];
    if (FIX) __syncthreads();
    out[t] = s[t ? t - 1 : 0];
}
template <bool FIX>
__device__ float sum_all(float v) {
    CU_SHARED(float, part, [N / 32]);
    for (int o = 16; o; o >>= 1)
        v += __shfl_xor_sync(~0u, v, o);
    if (FIX) __syncthreads();
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
    __syncthreads();
    float r = 0;
    for (int i = 0; i < N / 32; i++)
        r += part[i];
    return r;
}
template <bool FIX>
__global__ void reused_buffer(const float *in, float *out) { /* second call overwrites what slow threads still read */
    float a = sum_all<FIX>(in[threadIdx.x]);
    float b = sum_all<FIX>(in[threadIdx.x] * 2);
    out[threadIdx.x] = a * 1000 + b;
}
template <bool FIX>
__global__ void divergent_barrier(const float *in, float *out) {
    CU_SHARED(float, s, [N]);
    int t = threadIdx.x;
    s[t] = in[t];
    if (FIX || t < 64) __syncthreads();
    out[t] = s[t ^ 1];
}
template <bool FIX>
__global__ void two_site_barrier(const float *in, float *out) {
    CU_SHARED(float, s, [N]);
    int t = threadIdx.x;
    s[t] = in[t];
    if (FIX) {
        __syncthreads();
    } else {
        if (t & 1)
            __syncthreads();
        else
            __syncthreads();
    }
    out[t] = s[N - 1 - t];
}
template <bool FIX>
__global__ void exit_before_barrier(const float *in, float *out) {
    CU_SHARED(float, s, [N]);
    int t = threadIdx.x;
    if (!FIX && t >= 100) return;
    s[t] = in[t];
    __syncthreads();
    if (t < 100) out[t] = s[99 - t];
}
template <bool FIX>
__global__ void divergent_shuffle(const float *in, float *out) {
    int t = threadIdx.x, lane = t & 31;
    float v = in[t], u = 0;
    if (FIX) {
        u = __shfl_xor_sync(~0u, v, 1);
        if (lane >= 16) u = 0;
    } else if (lane < 16) {
        u = __shfl_xor_sync(~0u, v, 1);
    }
    out[t] = u + __shfl_xor_sync(~0u, v, 2);
}
template <bool FIX>
__global__ void wrong_mask(const float *in, float *out) {
    out[threadIdx.x] = __shfl_xor_sync(FIX ? ~0u : 0xffffu, in[threadIdx.x], 1);
}
template <bool FIX>
__global__ void inactive_source(const float *in, float *out) { /* half a warp asks for lanes that are not there */
    int t = threadIdx.x, lane = t & 31;
    float v = in[t];
    out[t] = 0;
    if (lane < 16) out[t] = __shfl_down_sync(0xffffu, v, FIX ? 8 : 16, FIX ? 16 : 32);
    if (FIX) out[t] = lane < 16 ? out[t] : 0;
}
template <bool FIX>
__global__ void shared_oob(const float *in, float *out) {
    CU_SHARED(float, s, [N]);
    CU_SHARED(float, z, [N]);
    int t = threadIdx.x;
    z[t] = 0;
    s[t] = in[t];
    __syncthreads();
    if (FIX ? t + 1 < N : true) s[t + 1 - (FIX ? 1 : 0)] = s[t] * 1; /* writes s[N] */
    __syncthreads();
    out[t] = z[t];
}
template <bool FIX>
__global__ void dyn_shared_oob(const float *in, float *out) {
    CU_DYN_SHARED(raw);
    float *s = (float *)raw;
    int t = threadIdx.x;
    s[t] = in[t];
    if (!FIX && t == 0) s[N] = 1; /* launched with N floats */
    __syncthreads();
    out[t] = s[t ^ 1];
}
template <bool FIX>
__global__ void global_read_oob(const float *in, float *out) {
    int t = threadIdx.x;
    float nxt = FIX && t == N - 1 ? 0 : in[t + 1];
    out[t] = t == N - 1 ? 0 : nxt;
}
template <bool FIX>
__global__ void global_write_oob(const float *in, float *out) {
    int t = threadIdx.x;
    if (FIX ? t < N - 1 : true) out[t + 1] = in[t];
    if (t == 0) out[0] = 0;
}
template <bool FIX>
__global__ void misaligned_vector(const float *in, float *out) {
    int t = threadIdx.x;
    if (t < 8) {
        float4 v =
            FIX ? make_float4(in[4 * t + 1], in[4 * t + 2], in[4 * t + 3], in[4 * t + 4]) : *(const float4 *)(in + 4 * t + 1);
        out[t] = v.x + v.y + v.z + v.w;
    } else
        out[t] = 0;
}
template <bool FIX>
__global__ void uninit_shared(const float *in, float *out) {
    CU_SHARED(float, s, [N]);
    int t = threadIdx.x;
    if (FIX || t) s[t] = in[t];
    __syncthreads();
    out[t] = fmaxf(s[(t + 1) % N], 0.0f); /* fmaxf hides a NaN */
}
template <bool FIX>
__global__ void lost_update(const float *in, float *out) { /* across blocks */
    int t = threadIdx.x;
    if (FIX)
        atomicAdd(&out[t], in[t]);
    else
        out[t] += in[t];
}
template <bool FIX>
__global__ void lost_update_shared(const float *in, float *out) {
    CU_SHARED(float, s, [1]);
    int t = threadIdx.x;
    if (t == 0) s[0] = 0;
    __syncthreads();
    if (FIX)
        atomicAdd(&s[0], in[t]);
    else
        s[0] += in[t];
    __syncthreads();
    out[t] = s[0];
}
template <bool FIX>
__global__ void no_cp_async_wait(const float *in, float *out) {
    CU_SHARED(float4, s, [N / 4]);
    int t = threadIdx.x;
    if (t < N / 4) cp_async16(&s[t], in + 4 * t, true);
    cp_async_commit();
    if (FIX) cp_async_wait<0>();
    __syncthreads();
    out[t] = ((float *)s)[N - 1 - t];
    if (!FIX) cp_async_wait<0>();
}
template <bool FIX>
__global__ void cp_async_wait_no_barrier(const float *in, float *out) {
    CU_SHARED(float4, s, [N / 4]);
    int t = threadIdx.x;
    if (t < N / 4) cp_async16(&s[t], in + 4 * t, true);
    cp_async_commit();
    cp_async_wait<0>();
    if (FIX) __syncthreads();
    out[t] = ((float *)s)[t];
}
template <bool FIX>
__global__ void cp_async_into_floats(const float *in,
                                     float *out) { /* an array of a type that is less aligned than the copies */
    CU_SHARED(float, floats, [N]);
    CU_SHARED(float4, vectors, [N / 4]);
    int t = threadIdx.x;
    float *s = FIX ? (float *)vectors : floats;
    if (t < N / 4) cp_async16(s + 4 * t, in + 4 * t, true);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    out[t] = s[t ^ 1];
}
template <bool FIX>
__global__ void missing_syncwarp(const float *in, float *out) {
    CU_SHARED(float, s, [N]);
    int t = threadIdx.x;
    s[t] = in[t];
    if (FIX) __syncwarp();
    out[t] = s[t ^ 1];
}
template <bool FIX>
__global__ void shuffle_is_no_fence(const float *in, float *out) { /* relies on shfl to order shared memory */
    CU_SHARED(float, s, [N]);
    int t = threadIdx.x;
    s[t] = in[t];
    float v = __shfl_xor_sync(~0u, in[t], 1);
    if (FIX) __syncwarp();
    out[t] = s[t ^ 1] + v;
}
template <bool FIX>
__global__ void mma_partial_warp(const float *in, float *out) {
    int t = threadIdx.x;
    float c[4] = {in[t], 0, 0, 0};
    uint32_t a[4] = {}, b[2] = {};
    if (FIX || t < 120) mma_m16n8k16(c, a, b);
    out[t] = c[0];
}
template <bool FIX>
__global__ void kernel_reads_host(const float *in, float *out, const float *host) {
    out[threadIdx.x] = (FIX ? in : host)[threadIdx.x];
}
template <bool FIX>
__global__ void block_order(const float *in, float *out) { /* a block uses what another block of the same launch wrote */
    int t = threadIdx.x, b = blockIdx.x;
    if (FIX) {
        if (b == 0) out[t] = in[t] * 2;
    } else if (b == 0)
        out[t] = in[t];
    else
        out[t] = out[t] * 2;
}

extern "C" const Bug bugs[] = {
    {"missing barrier", SEEN_PLAIN},
    {"missing barrier, benign in order", SEEN_CHECKED},
    {"shared buffer reused without barrier", SEEN_CHECKED},
    {"barrier in divergent branch", SEEN_PLAIN},
    {"barrier at two places", SEEN_PLAIN},
    {"exit before barrier", SEEN_PLAIN},
    {"shuffle in divergent branch, full mask", SEEN_PLAIN},
    {"caller not in shuffle mask", SEEN_PLAIN},
    {"shuffle from absent lane", SEEN_PLAIN},
    {"shared array overrun", SEEN_SANITIZED},
    {"dynamic shared overrun", SEEN_SANITIZED},
    {"device read overrun by one", SEEN_SANITIZED},
    {"device write overrun by one", SEEN_SANITIZED},
    {"misaligned float4", SEEN_SANITIZED},
    {"uninitialised shared, NaN hidden", SEEN_PLAIN},
    {"lost update across blocks", SEEN_CHECKED},
    {"lost update in shared", SEEN_CHECKED},
    {"cp.async read before wait", SEEN_PLAIN},
    {"cp.async wait without barrier", SEEN_CHECKED},
    {"missing __syncwarp", SEEN_PLAIN},
    {"shuffle taken for a fence", SEEN_CHECKED},
    {"mma in partial warp", SEEN_PLAIN},
    {"kernel given a host pointer", SEEN_CHECKED},
    {"order between blocks assumed", SEEN_CHECKED},
    {"cp.async into an array of floats", SEEN_PLAIN},
};
extern "C" const int bug_count = sizeof bugs / sizeof *bugs;

#define RUN(kernel, grid, shared, ...)                                                 \
    do {                                                                               \
        if (fixed)                                                                     \
            CU_LAUNCH(kernel<true>, grid, N, shared, stream, in, out, ##__VA_ARGS__);  \
        else                                                                           \
            CU_LAUNCH(kernel<false>, grid, N, shared, stream, in, out, ##__VA_ARGS__); \
    } while (0)
extern "C" cudaError_t bug(int which, int fixed, const float *in, float *out, cudaStream_t stream) {
    switch (which) {
        case 0: RUN(missing_barrier, 1, 0); break;
        case 1: RUN(missing_barrier_forward, 1, 0); break;
        case 2: RUN(reused_buffer, 1, 0); break;
        case 3: RUN(divergent_barrier, 1, 0); break;
        case 4: RUN(two_site_barrier, 1, 0); break;
        case 5: RUN(exit_before_barrier, 1, 0); break;
        case 6: RUN(divergent_shuffle, 1, 0); break;
        case 7: RUN(wrong_mask, 1, 0); break;
        case 8: RUN(inactive_source, 1, 0); break;
        case 9: RUN(shared_oob, 1, 0); break;
        case 10: RUN(dyn_shared_oob, 1, N * 4); break;
        case 11: RUN(global_read_oob, 1, 0); break;
        case 12: RUN(global_write_oob, 1, 0); break;
        case 13: RUN(misaligned_vector, 1, 0); break;
        case 14: RUN(uninit_shared, 1, 0); break;
        case 15: RUN(lost_update, 8, 0); break;
        case 16: RUN(lost_update_shared, 1, 0); break;
        case 17: RUN(no_cp_async_wait, 1, 0); break;
        case 18: RUN(cp_async_wait_no_barrier, 1, 0); break;
        case 19: RUN(missing_syncwarp, 1, 0); break;
        case 20: RUN(shuffle_is_no_fence, 1, 0); break;
        case 21: RUN(mma_partial_warp, 1, 0); break;
        case 22: {
            static float *h; /* kept reachable, so that LeakSanitizer is not what reports it */
            if (!h) h = (float *)malloc(N * sizeof(float));
            cudaMemcpyAsync(h, in, N * sizeof(float), cudaMemcpyDeviceToHost, stream);
            cudaStreamSynchronize(stream);
            RUN(kernel_reads_host, 1, 0, h);
            break;
        }
        case 23: RUN(block_order, 2, 0); break;
        case 24: RUN(cp_async_into_floats, 1, 0); break;
    }
    return cudaGetLastError();
}

/* One warp, registers to and from memory, so that the fragment layouts can be checked against another statement of them. */
__global__ void fragments_kernel(const uint32_t *a, const uint32_t *b, float *c, const uint16_t *tiles, uint32_t *plain,
                                 uint32_t *trans) {
    CU_SHARED(uint4, rows, [4 * 8]);
    uint16_t *s = (uint16_t *)rows;
    int l = threadIdx.x;
    for (int i = l; i < 4 * 64; i += 32)
        s[i] = tiles[i];
    __syncwarp();
    uint32_t fa[4], fb[2], r[4];
    float fc[4];
    for (int i = 0; i < 4; i++)
        fa[i] = a[l * 4 + i], fc[i] = c[l * 4 + i];
    for (int i = 0; i < 2; i++)
        fb[i] = b[l * 2 + i];
    mma_m16n8k16(fc, fa, fb);
    for (int i = 0; i < 4; i++)
        c[l * 4 + i] = fc[i];
    ldmatrix_x4(r, s + l * 8); /* row l%8 of tile l/8 */
    for (int i = 0; i < 4; i++)
        plain[l * 4 + i] = r[i];
    ldmatrix_x4_trans(r, s + l * 8);
    for (int i = 0; i < 4; i++)
        trans[l * 4 + i] = r[i];
}
extern "C" cudaError_t fragments(const uint32_t *a, const uint32_t *b, float *c, const uint16_t *tiles, uint32_t *plain,
                                 uint32_t *trans, cudaStream_t stream) {
    CU_LAUNCH(fragments_kernel, 1, 32, 0, stream, a, b, c, tiles, plain, trans);
    return cudaGetLastError();
}

__global__ void doubled_kernel(const float *x, float *y, int64_t n) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = 2 * x[i];
}
extern "C" cudaError_t doubled(const float *x, float *y, int64_t n, cudaStream_t stream) {
    CU_LAUNCH(doubled_kernel, (unsigned)((n + 255) / 256), 256, 0, stream, x, y, n);
    return cudaGetLastError();
}
