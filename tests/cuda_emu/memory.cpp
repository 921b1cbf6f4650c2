/* Shared memory of the running block and atomic operations. */
#include "tests/cuda_emu/emulator.h"

#include <sys/mman.h>

namespace emu {
/* ---- shared memory ---- */
static unsigned char *sh_base;
static size_t sh_used, sh_static;
size_t shared_limit;
static void map_shared() {
    if (sh_base) return;
    sh_base = (unsigned char *)mmap(0, 4 * SHARED_MAX, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}
static unsigned char *sh_alloc(size_t n, size_t align, size_t odd) {
    size_t o = ((sh_used + RED + align - 1) & ~(align - 1)) + odd;
    sh_used = o + n;
    unsigned char *p = sh_base + o;
#if EMU_ASAN
    __asan_unpoison_memory_region(p, n);
#endif
    memset(p, 0xFF, n); /* NaN: what was never written reads as poison */
    emu_race_shared_alloc(p, n);
    return p;
}
void shared_start(size_t dynamic_bytes) {
    map_shared();
    sh_used = sh_static = 0;
#if EMU_ASAN
    __asan_poison_memory_region(sh_base, 4 * SHARED_MAX);
#endif
    blk.dyn = sh_alloc(dynamic_bytes, 128, 0);
    blk.dyn_size = dynamic_bytes;
}
void *shared_new(Slot &s, size_t n, size_t align, const char *name) {
    if (!cur) abort();
    sh_static += n;
    if (sh_static > 48 * 1024) fail("static shared memory over 48 KiB at %s", name);
    if (sh_static + blk.dyn_size > shared_limit)
        fail("static and dynamic shared memory over %zu bytes at %s", shared_limit, name);
    s.ptr = sh_alloc(n, 2 * align, align); /* no more aligned than its type, as nvcc promises no more */
    s.inst = blk.inst;
    return s.ptr;
}
bool is_shared(const void *p, size_t n) {
    return (unsigned char *)p >= sh_base && (unsigned char *)p + n <= sh_base + sh_used;
}
void shared_range(void **lo, void **hi) {
    map_shared();
    *lo = sh_base, *hi = sh_base + 4 * SHARED_MAX;
}
static void (*access_hook)(const void *, size_t, int, int, const void *);
void set_access_hook(void (*h)(const void *, size_t, int, int, const void *)) {
    access_hook = h;
}
void access(const void *p, size_t n, int w, int a, const void *pc) {
    if (access_hook) access_hook(p, n, w, a, pc ? pc : __builtin_return_address(0));
}

/* ---- atomics: one OS thread runs all CUDA threads, so plain updates are atomic ---- */
uint32_t atomic_u32(int op, void *p, uint32_t v, uint32_t cmp) {
    if ((uintptr_t)p & 3) fail("misaligned atomic at %p", p);
    access(p, 4, 1, 1, __builtin_return_address(0));
    uint32_t *q = (uint32_t *)p, old = *q;
    switch (op) {
        case A_ADD: *q = old + v; break;
        case A_MIN: *q = v < old ? v : old; break;
        case A_MAX: *q = v > old ? v : old; break;
        case A_IMIN: *q = (int)v < (int)old ? v : old; break;
        case A_IMAX: *q = (int)v > (int)old ? v : old; break;
        case A_EXCH: *q = v; break;
        case A_CAS: *q = old == cmp ? v : old; break;
        case A_AND: *q = old & v; break;
        case A_OR: *q = old | v; break;
        case A_XOR: *q = old ^ v; break;
        case A_INC: *q = old >= v ? 0 : old + 1; break;
        case A_FADD: *q = bits<uint32_t>(bits<float>(old) + bits<float>(v)); break;
        case A_BF2ADD: {
            auto a = bits<__nv_bfloat162>(old), b = bits<__nv_bfloat162>(v);
            __nv_bfloat162 r;
            r.x = __float2bfloat16(__bfloat162float(a.x) + __bfloat162float(b.x));
            r.y = __float2bfloat16(__bfloat162float(a.y) + __bfloat162float(b.y));
            *q = bits<uint32_t>(r);
            break;
        }
    }
    return old;
}
uint64_t atomic_u64(int op, void *p, uint64_t v, uint64_t cmp) {
    if ((uintptr_t)p & 7) fail("misaligned atomic at %p", p);
    access(p, 8, 1, 1, __builtin_return_address(0));
    uint64_t *q = (uint64_t *)p, old = *q;
    if (op == A_ADD) *q = old + v;
    if (op == A_MIN) *q = v < old ? v : old;
    if (op == A_EXCH) *q = v;
    if (op == A_CAS) *q = old == cmp ? v : old;
    return old;
}

} /* namespace emu */
