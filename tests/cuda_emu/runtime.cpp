/* The CUDA runtime's C interface over host memory: linked in place of libcudart.
 *
 * Device memory is one reserved arena, so a device pointer is recognisable and never reused, NaN-filled when allocated, and
 * (EMU_PROTECT=1) unreadable by host code. EMU_STREAMS=lazy queues asynchronous work until something waits for it, so that
 * a missing synchronisation shows, ahead only that of the stream created first, whose work others then must wait for; the default
 * runs everything at once. EMU_DEVICE_MEM: bytes of the device. */
#include "tests/cuda_emu/runtime.h"

#include <map>
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
/* EMU_CAPABILITY: 90 unless it says otherwise. */
static int capability() {
    const char *e = getenv("EMU_CAPABILITY");
    return e ? atoi(e) : 90;
}
/* Shared memory that a block may opt in to: the CUDA programming guide's table of compute capabilities. */
int shared_most() {
    int c = capability();
    return 1024 * (c < 80 ? 64 : c == 80 || c == 87 ? 163 : c < 90 || c >= 120 ? 99 : 227);
}
int dynamic_limit(const void *kernel) {
    auto it = dyn_limit.find(kernel);
    return it == dyn_limit.end() ? 48 * 1024 : it->second;
}
std::recursive_mutex mu;
bool protect, lazy, ahead;

static size_t device_total() {
    const char *e = getenv("EMU_DEVICE_MEM");
    return e ? strtoull(e, 0, 10) : (size_t)8 << 30;
}
void start() {
    if (arena) return;
    arena = (unsigned char *)mmap(0, ARENA, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    protect = getenv("EMU_PROTECT") != nullptr;
    const char *s = getenv("EMU_STREAMS");
    ahead = s && !strcmp(s, "ahead");
    lazy = ahead || (s && !strcmp(s, "lazy"));
}
Open::Open() {
    if (protect && depth++ == 0 && arena_used) mprotect(arena, arena_used, PROT_READ | PROT_WRITE);
}
Open::~Open() {
    if (protect && --depth == 0 && arena_used) mprotect(arena, arena_used, PROT_NONE);
}
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
cudaError_t err(cudaError_t e) {
    if (e) emu_last_error = e;
    return e;
}
} /* namespace emu */
using namespace emu;

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
API cudaGetDeviceProperties(cudaDeviceProp *p, int) {
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "emulated on the CPU");
    p->major = capability() / 10, p->minor = capability() % 10, p->multiProcessorCount = 4, p->warpSize = 32,
    p->totalGlobalMem = device_total();
    p->sharedMemPerBlock = 48 * 1024, p->sharedMemPerBlockOptin = (size_t)shared_most(), p->maxThreadsPerBlock = 1024;
    return cudaSuccess;
}
API cudaDeviceGetAttribute(int *v, cudaDeviceAttr a, int) {
    *v = a == cudaDevAttrMultiProcessorCount            ? 4
         : a == cudaDevAttrComputeCapabilityMajor       ? capability() / 10
         : a == cudaDevAttrComputeCapabilityMinor       ? capability() % 10
         : a == cudaDevAttrMaxSharedMemoryPerBlockOptin ? shared_most()
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
    if (cudaError_t e = forbid_capture("cudaMalloc")) return e;
    *p = nullptr;
    if (n == 0) return cudaSuccess;
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
    if (cudaError_t e = forbid_capture("cudaFree")) return e;
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
    if (cudaError_t e = forbid_capture("cudaHostAlloc")) return e;
    if (posix_memalign(p, 4096, n ? n : 1)) return err(cudaErrorMemoryAllocation);
    pinned[(unsigned char *)*p] = n;
    return cudaSuccess;
}
API cudaMallocHost(void **p, size_t n) {
    return cudaHostAlloc(p, n, 0);
}
API cudaFreeHost(void *p) {
    LOCK;
    if (cudaError_t e = forbid_capture("cudaFreeHost")) return e;
    drain_all();
    if (!pinned.erase((unsigned char *)p)) return err(cudaErrorInvalidValue);
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
    count(!arena_contains(s) ? "copy in, bytes" : arena_contains(d) ? "copy within, bytes" : "copy out, bytes", n);
    memcpy(d, s, n);
    if (arena_contains(d)) emu_race_host_write(d, n);
}
API cudaMemcpyAsync(void *d, const void *s, size_t n, cudaMemcpyKind k, cudaStream_t st) {
    LOCK;
    if (!kind_ok(d, s, k) || !range_ok(d, n) || !range_ok(s, n)) {
        fprintf(stderr, "cuda_emu: cudaMemcpy %p <- %p, %zu bytes: wrong direction or out of bounds\n", d, s, n);
        return err(cudaErrorInvalidValue);
    }
    if (is_captured(st) && ((!arena_contains(s) && !is_pinned(s)) || (!arena_contains(d) && !is_pinned(d))))
        return forbid_capture("a copy of pageable memory");
    if (lazy && !arena_contains(s) && !is_pinned(s)) { /* pageable source: staged before the call returns */
        auto *tmp = new std::vector<unsigned char>((unsigned char *)s, (unsigned char *)s + n);
        submit(st, [=] {
            copy_now(d, tmp->data(), n);
            delete tmp;
        });
    } else {
        submit(st, [=] { copy_now(d, s, n); });
    }
    if (lazy && !arena_contains(d) && !is_pinned(d)) wait_stream(st); /* pageable target: synchronous */
    return cudaSuccess;
}
API cudaMemcpy(void *d, const void *s, size_t n, cudaMemcpyKind k) {
    LOCK;
    if (cudaError_t e = forbid_capture("cudaMemcpy")) return e;
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
API cudaFuncSetAttribute(const void *f, cudaFuncAttribute a, int v) {
    LOCK;
    if (a == cudaFuncAttributeMaxDynamicSharedMemorySize) {
        if (v > shared_most()) return err(cudaErrorInvalidValue);
        dyn_limit[f] = v;
    }
    return cudaSuccess;
}
/* For the library stubs: is [p, p+n) inside one device allocation? Marks it initialised if written. */
extern "C" int cuda_emu_device_range(const void *p, size_t n, int write) {
    LOCK;
    if (!arena_contains(p) || !range_ok(p, n)) return 0;
    if (write) emu_race_host_write((void *)p, n);
    return 1;
}
