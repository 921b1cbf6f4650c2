/* The CUDA runtime's C interface over host memory: linked in place of libcudart.
 *
 * Device memory is one reserved arena, so a device pointer is recognisable and never reused, NaN-filled when allocated, and
 * (EMU_PROTECT=1) unreadable by host code. EMU_STREAMS=lazy queues asynchronous work until something waits for it, so that
 * a missing synchronisation shows; the default runs everything at once. EMU_DEVICE_MEM: bytes of the device. */
#include "tests/cuda_emu/emulator.h"

#include <deque>
#include <list>
#include <map>
#include <mutex>
#include <set>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

#if EMU_ASAN
#define POISON(p, n) __asan_poison_memory_region(p, n)
#define UNPOISON(p, n) __asan_unpoison_memory_region(p, n)
#else
#define POISON(p, n) ((void)0)
#define UNPOISON(p, n) ((void)0)
#endif

cudaError_t emu_last_error;

namespace emu {
static const size_t ARENA = (size_t)256 << 30;
static unsigned char *arena;
static size_t arena_used, live_bytes;
static std::map<unsigned char *, size_t> live;
static std::map<unsigned char *, size_t> pinned;
static std::map<const void *, int> dyn_limit;
static std::recursive_mutex mu;
static bool protect, lazy;

static size_t device_total() {
    const char *e = getenv("EMU_DEVICE_MEM");
    return e ? strtoull(e, 0, 10) : (size_t)8 << 30;
}
static void init() {
    if (arena) return;
    arena = (unsigned char *)mmap(0, ARENA, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    protect = getenv("EMU_PROTECT") != nullptr;
    const char *s = getenv("EMU_STREAMS");
    lazy = s && !strcmp(s, "lazy");
}
struct Open { /* device memory is accessible while one of these lives */
    Open() {
        if (protect && depth++ == 0 && arena_used) mprotect(arena, arena_used, PROT_READ | PROT_WRITE);
    }
    ~Open() {
        if (protect && --depth == 0 && arena_used) mprotect(arena, arena_used, PROT_NONE);
    }
    static int depth;
};
int Open::depth;

bool arena_contains(const void *p) {
    return (unsigned char *)p >= arena && (unsigned char *)p < arena + ARENA;
}
unsigned char *arena_base() {
    return arena;
}
/* The live allocation holding p, or null. */
bool find_alloc(const void *p, unsigned char **base, size_t *size) {
    auto it = live.upper_bound((unsigned char *)p);
    if (it == live.begin()) return false;
    --it;
    if ((unsigned char *)p >= it->first + it->second) return false;
    *base = it->first, *size = it->second;
    return true;
}
static bool range_ok(const void *p, size_t n) { /* a device pointer must lie inside one allocation */
    unsigned char *b;
    size_t s;
    if (!arena_contains(p)) return true;
    return find_alloc(p, &b, &s) && (unsigned char *)p + n <= b + s;
}
static bool is_pinned(const void *p) {
    auto it = pinned.upper_bound((unsigned char *)p);
    if (it == pinned.begin()) return false;
    --it;
    return (unsigned char *)p < it->first + it->second;
}
static cudaError_t err(cudaError_t e) {
    if (e) emu_last_error = e;
    return e;
}
} /* namespace emu */
using namespace emu;

struct CUstream_st {
    std::deque<std::function<void()>> q;
    uint64_t done = 0, put = 0;
    bool draining = false;
};
struct CUevent_st {
    CUstream_st *s = nullptr;
    uint64_t at = 0;
    struct timespec t;
};
static CUstream_st default_stream;
static std::set<CUstream_st *> streams;
static void drain(CUstream_st *s, uint64_t upto) {
    while (s->done < upto && !s->q.empty()) {
        auto f = std::move(s->q.front());
        s->q.pop_front();
        f();
        s->done++;
    }
}
static CUstream_st *real(cudaStream_t s) {
    return s ? s : &default_stream;
}
static void submit(cudaStream_t cs, std::function<void()> f) {
    CUstream_st *s = real(cs);
    if (!lazy) {
        f();
        return;
    }
    s->q.push_back(std::move(f));
    s->put++;
}
static void drain_all() {
    drain(&default_stream, default_stream.put);
    for (auto *s : streams)
        drain(s, s->put);
}

namespace emu {
void launch_impl(const char *name, dim3 g, dim3 b, size_t smem, cudaStream_t s, const void *func, std::function<void()> fn) {
    std::lock_guard<std::recursive_mutex> l(mu);
    init();
    size_t threads = (size_t)b.x * b.y * b.z;
    auto it = dyn_limit.find(func);
    size_t limit = it == dyn_limit.end() ? 48 * 1024 : (size_t)it->second;
    if (!threads || threads > 1024 || b.z > 64 || !g.x || !g.y || !g.z || g.x > 0x7fffffffu || g.y > 65535 || g.z > 65535 ||
        smem > limit) {
        fprintf(stderr, "cuda_emu: launch of %s refused: grid (%u,%u,%u) block (%u,%u,%u) smem %zu (limit %zu)\n", name, g.x,
                g.y, g.z, b.x, b.y, b.z, smem, limit);
        err(cudaErrorInvalidConfiguration);
        return;
    }
    submit(s, [=] {
        Open o;
        err(run_grid(name, g, b, smem, fn));
    });
}
} /* namespace emu */

#define API extern "C" cudaError_t
#define LOCK                                         \
    std::lock_guard<std::recursive_mutex> lock_(mu); \
    init()
API cudaGetDeviceCount(int *n) {
    *n = 1;
    return cudaSuccess;
}
API cudaSetDevice(int d) {
    return d ? err(cudaErrorInvalidDevice) : cudaSuccess;
}
API cudaGetDevice(int *d) {
    *d = 0;
    return cudaSuccess;
}
/* EMU_CAPABILITY: 90 unless it says otherwise. */
static int capability() {
    const char *e = getenv("EMU_CAPABILITY");
    return e ? atoi(e) : 90;
}
API cudaGetDeviceProperties(cudaDeviceProp *p, int) {
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "emulated on the CPU");
    p->major = capability() / 10, p->minor = capability() % 10, p->multiProcessorCount = 4, p->warpSize = 32,
    p->totalGlobalMem = device_total();
    p->sharedMemPerBlock = 48 * 1024, p->sharedMemPerBlockOptin = 227 * 1024, p->maxThreadsPerBlock = 1024;
    return cudaSuccess;
}
API cudaDeviceGetAttribute(int *v, cudaDeviceAttr a, int) {
    *v = a == cudaDevAttrMultiProcessorCount            ? 4
         : a == cudaDevAttrComputeCapabilityMajor       ? capability() / 10
         : a == cudaDevAttrComputeCapabilityMinor       ? capability() % 10
         : a == cudaDevAttrMaxSharedMemoryPerBlockOptin ? 227 * 1024
                                                        : 0;
    return cudaSuccess;
}
API cudaRuntimeGetVersion(int *v) {
    *v = CUDART_VERSION;
    return cudaSuccess;
}
API cudaDriverGetVersion(int *v) {
    *v = CUDART_VERSION;
    return cudaSuccess;
}
API cudaMemGetInfo(size_t *f, size_t *t) {
    LOCK;
    *t = device_total();
    *f = *t - live_bytes;
    return cudaSuccess;
}
API cudaGetLastError(void) {
    cudaError_t e = emu_last_error;
    emu_last_error = cudaSuccess;
    return e;
}
API cudaPeekAtLastError(void) {
    return emu_last_error;
}
extern "C" const char *cudaGetErrorString(cudaError_t e) {
    static char b[40];
    snprintf(b, sizeof b, "emulated CUDA error %d", (int)e);
    return e ? b : "no error";
}
extern "C" const char *cudaGetErrorName(cudaError_t e) {
    return cudaGetErrorString(e);
}

API cudaMalloc(void **p, size_t n) {
    LOCK;
    *p = nullptr;
    if (live_bytes + n > device_total()) return err(cudaErrorMemoryAllocation);
    size_t room = ((n + 511) & ~(size_t)511) + 4096; /* at least a page of nothing between two allocations */
    room = (room + 4095) & ~(size_t)4095;
    if (arena_used + room > ARENA) return err(cudaErrorMemoryAllocation);
    unsigned char *a = arena + arena_used;
    mprotect(a, room, PROT_READ | PROT_WRITE);
    if (n) memset(a, 0xFF, n);
    POISON(a, room);
    UNPOISON(a, n);
    arena_used += room, live_bytes += n;
    live[a] = n;
    if (protect && Open::depth == 0) mprotect(a, room, PROT_NONE);
    *p = a;
    return cudaSuccess;
}
API cudaFree(void *p) {
    LOCK;
    drain_all();
    if (!p) return cudaSuccess;
    auto it = live.find((unsigned char *)p);
    if (it == live.end()) return err(cudaErrorInvalidValue);
    live_bytes -= it->second;
    size_t room = (it->second + 4095) & ~(size_t)4095;
    POISON(p, it->second);
    mprotect(p, room, PROT_NONE); /* a use after free faults */
    madvise(p, room, MADV_DONTNEED);
    live.erase(it);
    return cudaSuccess;
}
API cudaMallocAsync(void **p, size_t n, cudaStream_t) {
    return cudaMalloc(p, n);
}
API cudaFreeAsync(void *p, cudaStream_t) {
    return cudaFree(p);
}
API cudaHostAlloc(void **p, size_t n, unsigned) {
    LOCK;
    if (posix_memalign(p, 4096, n ? n : 1)) return err(cudaErrorMemoryAllocation);
    pinned[(unsigned char *)*p] = n;
    return cudaSuccess;
}
API cudaMallocHost(void **p, size_t n) {
    return cudaHostAlloc(p, n, 0);
}
API cudaFreeHost(void *p) {
    LOCK;
    drain_all();
    if (p && !pinned.erase((unsigned char *)p)) return err(cudaErrorInvalidValue);
    free(p);
    return cudaSuccess;
}
static bool kind_ok(const void *d, const void *s, cudaMemcpyKind k) {
    bool dd = arena_contains(d), sd = arena_contains(s);
    if (k == cudaMemcpyHostToDevice) return dd && !sd;
    if (k == cudaMemcpyDeviceToHost) return !dd && sd;
    if (k == cudaMemcpyDeviceToDevice) return dd && sd;
    if (k == cudaMemcpyHostToHost) return !dd && !sd;
    return true;
}
static void copy_now(void *d, const void *s, size_t n) {
    Open o;
    memcpy(d, s, n);
    if (arena_contains(d)) emu_race_host_write(d, n);
}
API cudaMemcpyAsync(void *d, const void *s, size_t n, cudaMemcpyKind k, cudaStream_t st) {
    LOCK;
    if (!kind_ok(d, s, k) || !range_ok(d, n) || !range_ok(s, n)) {
        fprintf(stderr, "cuda_emu: cudaMemcpy %p <- %p, %zu bytes: wrong direction or out of bounds\n", d, s, n);
        return err(cudaErrorInvalidValue);
    }
    if (lazy && !arena_contains(s) && !is_pinned(s)) { /* pageable source: staged before the call returns */
        auto *tmp = new std::vector<unsigned char>((unsigned char *)s, (unsigned char *)s + n);
        submit(st, [=] {
            copy_now(d, tmp->data(), n);
            delete tmp;
        });
    } else {
        submit(st, [=] { copy_now(d, s, n); });
    }
    if (lazy && !arena_contains(d) && !is_pinned(d)) drain(real(st), real(st)->put); /* pageable target: synchronous */
    return cudaSuccess;
}
API cudaMemcpy(void *d, const void *s, size_t n, cudaMemcpyKind k) {
    LOCK;
    drain_all(); /* legacy default stream */
    cudaError_t e = cudaMemcpyAsync(d, s, n, k, nullptr);
    drain_all();
    return e;
}
API cudaMemsetAsync(void *d, int v, size_t n, cudaStream_t st) {
    LOCK;
    if (!arena_contains(d) || !range_ok(d, n)) return err(cudaErrorInvalidValue);
    submit(st, [=] {
        Open o;
        memset(d, v, n);
        emu_race_host_write(d, n);
    });
    return cudaSuccess;
}
API cudaMemset(void *d, int v, size_t n) {
    return cudaMemsetAsync(d, v, n, nullptr);
}
API cudaStreamCreateWithFlags(cudaStream_t *s, unsigned) {
    LOCK;
    *s = new CUstream_st;
    streams.insert(*s);
    return cudaSuccess;
}
API cudaStreamCreate(cudaStream_t *s) {
    return cudaStreamCreateWithFlags(s, 0);
}
API cudaStreamSynchronize(cudaStream_t s) {
    LOCK;
    drain(real(s), real(s)->put);
    return emu_last_error;
}
API cudaStreamDestroy(cudaStream_t s) {
    LOCK;
    drain(s, s->put);
    streams.erase(s);
    delete s;
    return cudaSuccess;
}
API cudaDeviceSynchronize(void) {
    LOCK;
    drain_all();
    return emu_last_error;
}
API cudaEventCreateWithFlags(cudaEvent_t *e, unsigned) {
    *e = new CUevent_st;
    return cudaSuccess;
}
API cudaEventCreate(cudaEvent_t *e) {
    return cudaEventCreateWithFlags(e, 0);
}
API cudaEventDestroy(cudaEvent_t e) {
    delete e;
    return cudaSuccess;
}
API cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
    LOCK;
    e->s = real(s), e->at = e->s->put;
    clock_gettime(CLOCK_MONOTONIC, &e->t);
    return cudaSuccess;
}
API cudaEventSynchronize(cudaEvent_t e) {
    LOCK;
    if (e->s) drain(e->s, e->at);
    return emu_last_error;
}
API cudaEventQuery(cudaEvent_t e) {
    LOCK;
    return !e->s || e->s->done >= e->at ? cudaSuccess : cudaErrorNotReady;
}
API cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned) {
    LOCK;
    CUstream_st *o = e->s;
    uint64_t at = e->at;
    if (o) submit(s, [=] { drain(o, at); });
    return cudaSuccess;
}
API cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) {
    *ms = (float)((double)(b->t.tv_sec - a->t.tv_sec) * 1e3 + (double)(b->t.tv_nsec - a->t.tv_nsec) * 1e-6);
    return cudaSuccess;
}
API cudaFuncSetAttribute(const void *f, cudaFuncAttribute a, int v) {
    LOCK;
    if (a == cudaFuncAttributeMaxDynamicSharedMemorySize) {
        if (v > 227 * 1024) return err(cudaErrorInvalidValue);
        dyn_limit[f] = v;
    }
    return cudaSuccess;
}
API cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t fn, void *arg) {
    LOCK;
    submit(s, [=] {
        Open o;
        fn(arg);
    }); /* our own library stubs also run here, so device memory is open */
    return cudaSuccess;
}
API cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
    return err(cudaErrorNotSupported);
}
/* For the library stubs: is [p, p+n) inside one device allocation? Marks it initialised if written. */
extern "C" int cuda_emu_device_range(const void *p, size_t n, int write) {
    LOCK;
    if (!arena_contains(p) || !range_ok(p, n)) return 0;
    if (write) emu_race_host_write((void *)p, n);
    return 1;
}
