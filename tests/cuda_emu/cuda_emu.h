/* CUDA kernels as plain C++ on the CPU, for tests: what a .cu file sees in place of <cuda_runtime.h>.
 *
 * Every CUDA thread is a fiber; fibers switch only inside the calls declared here, so a kernel that never synchronises runs
 * as a plain loop. Types and host functions come from the toolkit's own headers. What is missing here (an intrinsic, an
 * atomic) is added when a kernel needs it; README.md says what is not modelled. */
#ifndef NIBBLE_TESTS_CUDA_EMU_CUDA_EMU_H
#define NIBBLE_TESTS_CUDA_EMU_CUDA_EMU_H
#ifndef __cplusplus
#error "cuda_emu.h is C++ only; host C code includes <cuda_runtime_api.h>"
#endif

/* Predefine what the toolkit's host_defines.h would leave as unknown attributes for g++. */
#define __cluster_dims__(...)
#define __block_size__(...)
#define __shared__ static     // works for quick tests; CU_SHARED is checked and poisoned, so prefer it
#include <cuda_runtime_api.h> /* the toolkit's own C declarations; runtime.cpp has the symbols */
#include <cuda_bf16.h>        // the toolkit's own bf16 type, its host code paths
#include <vector_functions.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>

#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__           /* arguments are copied at the launch and nowhere else */
static constexpr int warpSize = 32; /* not a macro: cudaDeviceProp has a member of that name */

#define EMU_LOC const char *emu_f = __builtin_FILE(), int emu_l = __builtin_LINE()
#define EMU_PASS emu_f, emu_l

#if defined(__SANITIZE_ADDRESS__)
#define EMU_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMU_ASAN 1
#endif
#endif
#ifndef EMU_ASAN
#define EMU_ASAN 0
#endif

namespace emu {

struct Thread { /* one CUDA thread of the running block */
    uint3 tid;
    int linear, lane, warp;
    int state;
    void *sp;      // saved stack pointer while switched out
    void *fiber;   // stack it runs on
    const char *f; /* where it waits */
    int l;
    uint64_t in, out; /* warp collective operands */
    int p0, p1;
    const void *vin; /* wide operands (mma, ldmatrix) */
    void *vout;
    void *asan_fake;
};
struct Block {
    uint3 bid;
    dim3 bdim, gdim;
    uint32_t inst; /* unique per executed block */
    unsigned char *dyn;
    size_t dyn_size;
};
extern Thread *cur; /* running CUDA thread, null on the host */
extern Block blk;
extern const void *arg_lo; /* the launch's copy of its arguments */
extern size_t arg_size;

struct Slot { /* one CU_SHARED declaration */
    uint32_t inst;
    void *ptr;
};
void *shared_new(Slot &, size_t size, size_t align, const char *name);
inline void *shared_get(Slot &s, size_t size, size_t align, const char *name) {
    return s.inst == blk.inst ? s.ptr : shared_new(s, size, align, name);
}
bool is_shared(const void *p, size_t n);
[[noreturn]] void fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void access(const void *p, size_t n, int is_write, int is_atomic,
            const void *pc = nullptr); /* race/memory checker, if linked */

void block_barrier(EMU_LOC);
int block_barrier_red(int kind, int pred, EMU_LOC); /* 0 count, 1 and, 2 or */

enum Kind { SYNCWARP, SHFL_IDX, SHFL_UP, SHFL_DOWN, SHFL_XOR, BALLOT, RED_ADD, RED_MIN, RED_MAX, RED_AND, RED_OR, WIDE };
uint64_t warp_op(Kind, unsigned mask, uint64_t v, int p0, int p1, const char *f, int l);
/* Collective over the full warp on wide operands: fn runs once, when all 32 lanes have arrived. */
typedef void (*wide_fn)(const void *const in[32], void *const out[32]);
void warp_wide(wide_fn, const void *in, void *out, const char *what, const char *f, int l);

void cp_async(void *dst, const void *src, size_t n, size_t src_n);
void cp_async_commit();
void cp_async_wait(int left);

void launch_impl(const char *name, dim3 g, dim3 b, size_t smem, cudaStream_t s, const void *func, std::function<void()> fn);
template <class... P>
struct Call {
    void (*k)(P...);
    std::tuple<std::decay_t<P>...> args;
    void operator()() const {
        arg_lo = this, arg_size = sizeof *this; /* from here on the checker watches */
        std::apply(k, args);
    }
};
template <class... P, class... A>
void launch(const char *name, dim3 g, dim3 b, size_t smem, cudaStream_t s, void (*k)(P...), A &&...a) {
    /* arguments are converted and copied at the call, as CUDA does */
    launch_impl(name, g, b, smem, s, (const void *)k, Call<P...>{k, {static_cast<std::decay_t<P>>(a)...}});
}

uint32_t atomic_u32(int op, void *p, uint32_t v, uint32_t cmp = 0);
uint64_t atomic_u64(int op, void *p, uint64_t v, uint64_t cmp = 0);
enum { A_ADD, A_MIN, A_MAX, A_EXCH, A_CAS, A_AND, A_OR, A_XOR, A_FADD, A_IMIN, A_IMAX, A_BF2ADD, A_INC };

template <class To, class From>
inline To bits(From f) {
    To t{};
    memcpy((void *)&t, &f, sizeof(To) < sizeof(From) ? sizeof(To) : sizeof(From));
    return t;
}
} /* namespace emu */

#define CU_LAUNCH(kern, grid, block, smem, stream, ...) \
    ::emu::launch(#kern, dim3(grid), dim3(block), (smem), (stream), kern, ##__VA_ARGS__)
#define CU_SHARED(type, name, ...)         \
    using emu_t_##name = type __VA_ARGS__; \
    static ::emu::Slot emu_s_##name;       \
    emu_t_##name &name =                   \
        *static_cast<emu_t_##name *>(::emu::shared_get(emu_s_##name, sizeof(emu_t_##name), alignof(emu_t_##name), #name))
#define CU_DYN_SHARED(name) unsigned char *const name = ::emu::blk.dyn

#define threadIdx (::emu::cur->tid)
#define blockIdx (::emu::blk.bid)
#define blockDim (::emu::blk.bdim)
#define gridDim (::emu::blk.gdim)

/* ---- synchronisation ---- */
inline void __syncthreads(EMU_LOC) {
    emu::block_barrier(EMU_PASS);
}
inline int __syncthreads_count(int p, EMU_LOC) {
    return emu::block_barrier_red(0, p, EMU_PASS);
}
inline int __syncthreads_and(int p, EMU_LOC) {
    return emu::block_barrier_red(1, p, EMU_PASS);
}
inline int __syncthreads_or(int p, EMU_LOC) {
    return emu::block_barrier_red(2, p, EMU_PASS);
}
inline void __syncwarp(unsigned m = 0xffffffffu, EMU_LOC) {
    emu::warp_op(emu::SYNCWARP, m, 0, 0, 0, EMU_PASS);
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

/* ---- warp collectives ---- */
#define EMU_SHFL(name, kind, ptype)                                                                       \
    template <class T>                                                                                    \
    inline T name(unsigned m, T v, ptype p, int width = 32, EMU_LOC) {                                    \
        static_assert(sizeof(T) <= 8, "shuffle of a wide type");                                          \
        return emu::bits<T>(emu::warp_op(emu::kind, m, emu::bits<uint64_t>(v), (int)p, width, EMU_PASS)); \
    }
EMU_SHFL(__shfl_sync, SHFL_IDX, int)
EMU_SHFL(__shfl_up_sync, SHFL_UP, unsigned)
EMU_SHFL(__shfl_down_sync, SHFL_DOWN, unsigned)
EMU_SHFL(__shfl_xor_sync, SHFL_XOR, int)
inline unsigned __ballot_sync(unsigned m, int p, EMU_LOC) {
    return (unsigned)emu::warp_op(emu::BALLOT, m, p != 0, 0, 0, EMU_PASS);
}
inline int __any_sync(unsigned m, int p, EMU_LOC) {
    return emu::warp_op(emu::BALLOT, m, p != 0, 1, 0, EMU_PASS) != 0;
}
inline int __all_sync(unsigned m, int p, EMU_LOC) {
    return emu::warp_op(emu::BALLOT, m, p == 0, 2, 0, EMU_PASS) == 0;
}
template <class T>
inline T __reduce_add_sync(unsigned m, T v, EMU_LOC) {
    return (T)emu::warp_op(emu::RED_ADD, m, (uint64_t)(int64_t)v, 0, 0, EMU_PASS);
}
template <class T>
inline T __reduce_min_sync(unsigned m, T v, EMU_LOC) {
    return (T)emu::warp_op(emu::RED_MIN, m, (uint64_t)(int64_t)v, 0, 0, EMU_PASS);
}
template <class T>
inline T __reduce_max_sync(unsigned m, T v, EMU_LOC) {
    return (T)emu::warp_op(emu::RED_MAX, m, (uint64_t)(int64_t)v, 0, 0, EMU_PASS);
}

/* ---- atomics ---- */
inline int atomicAdd(int *p, int v) {
    return (int)emu::atomic_u32(emu::A_ADD, p, (uint32_t)v);
}
inline unsigned atomicAdd(unsigned *p, unsigned v) {
    return emu::atomic_u32(emu::A_ADD, p, v);
}
inline unsigned long long atomicAdd(unsigned long long *p, unsigned long long v) {
    return emu::atomic_u64(emu::A_ADD, p, v);
}
inline float atomicAdd(float *p, float v) {
    return emu::bits<float>(emu::atomic_u32(emu::A_FADD, p, emu::bits<uint32_t>(v)));
}
inline __nv_bfloat162 atomicAdd(__nv_bfloat162 *p, __nv_bfloat162 v) {
    return emu::bits<__nv_bfloat162>(emu::atomic_u32(emu::A_BF2ADD, p, emu::bits<uint32_t>(v)));
}
inline int atomicMax(int *p, int v) {
    return (int)emu::atomic_u32(emu::A_IMAX, p, (uint32_t)v);
}
inline unsigned atomicMax(unsigned *p, unsigned v) {
    return emu::atomic_u32(emu::A_MAX, p, v);
}
inline int atomicMin(int *p, int v) {
    return (int)emu::atomic_u32(emu::A_IMIN, p, (uint32_t)v);
}
inline unsigned long long atomicMin(unsigned long long *p, unsigned long long v) {
    return emu::atomic_u64(emu::A_MIN, p, v);
}
inline unsigned atomicExch(unsigned *p, unsigned v) {
    return emu::atomic_u32(emu::A_EXCH, p, v);
}
inline int atomicExch(int *p, int v) {
    return (int)emu::atomic_u32(emu::A_EXCH, p, (uint32_t)v);
}
inline unsigned atomicCAS(unsigned *p, unsigned c, unsigned v) {
    return emu::atomic_u32(emu::A_CAS, p, v, c);
}
inline int atomicCAS(int *p, int c, int v) {
    return (int)emu::atomic_u32(emu::A_CAS, p, (uint32_t)v, (uint32_t)c);
}
inline unsigned atomicInc(unsigned *p, unsigned v) {
    return emu::atomic_u32(emu::A_INC, p, v);
}

/* ---- maths and bit intrinsics (only what kernels here need; add as used) ---- */
inline float __expf(float x) {
    return expf(x);
}
inline float __logf(float x) {
    return logf(x);
}
inline float __fdividef(float a, float b) {
    return a / b;
}
inline float rsqrtf(float x) {
    return 1.0f / sqrtf(x);
}
inline float __frsqrt_rn(float x) {
    return 1.0f / sqrtf(x);
}
inline float __frcp_rn(float x) {
    return 1.0f / x;
}
inline float __fmaf_rn(float a, float b, float c) {
    return fmaf(a, b, c);
}
inline float __saturatef(float x) {
    return x < 0 ? 0 : x > 1 ? 1 : x;
}
inline int __float_as_int(float x) {
    return emu::bits<int>(x);
}
inline unsigned __float_as_uint(float x) {
    return emu::bits<unsigned>(x);
}
inline float __int_as_float(int x) {
    return emu::bits<float>(x);
}
inline float __uint_as_float(unsigned x) {
    return emu::bits<float>(x);
}
inline int __popc(unsigned x) {
    return __builtin_popcount(x);
}
inline int __clz(int x) {
    return x ? __builtin_clz((unsigned)x) : 32;
}
inline int __ffs(int x) {
    return __builtin_ffs(x);
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned s) {
    uint64_t v = ((uint64_t)b << 32) | a;
    unsigned r = 0;
    for (int i = 0; i < 4; i++)
        r |= (unsigned)((v >> (((s >> (4 * i)) & 7) * 8)) & 0xff) << (8 * i);
    return r;
}
template <class T>
inline T __ldg(const T *p) {
    return *p;
}
template <class T>
inline T __ldcs(const T *p) {
    return *p;
}
template <class T>
inline T __ldcg(const T *p) {
    return *p;
}
template <class T>
inline void __stcs(T *p, T v) {
    *p = v;
}
template <class T>
inline void __stcg(T *p, T v) {
    *p = v;
}
inline uint4 cu_load16(const void *p) {
    return *(const uint4 *)p;
}
inline void cu_store16(void *p, uint4 v) {
    *(uint4 *)p = v;
}
template <class A, class B>
inline std::common_type_t<A, B> min(A a, B b) {
    return a < b ? a : b;
}
template <class A, class B>
inline std::common_type_t<A, B> max(A a, B b) {
    return a > b ? a : b;
}
[[noreturn]] inline void __trap() {
    emu::fail("__trap()");
}

template <class T>
inline cudaError_t cudaFuncSetAttribute(T *f, cudaFuncAttribute a, int v) {
    return ::cudaFuncSetAttribute((const void *)f, a, v);
}

#endif
