/* The memory checker. Kernels compiled with -fsanitize=thread call __tsan_read and __tsan_write at every access; these
 * definitions take the place of libtsan, which is not linked. Reported, whatever the schedule happened to be:
 *   races       two threads touch a byte, one writes, and no __syncthreads or __syncwarp lies between
 *   bounds      outside the shared array or device allocation; host memory touched by a kernel
 *   uninit      shared or device memory read before anyone wrote it
 *   alignment   a vector access not aligned to its size (a fault on a GPU, silent on x86)
 * Shadow: for every byte the last write and the last reads, each stamped with the block instance, the count of block
 * barriers and the lane's clock in a 32-lane vector clock of its warp. */
#include "tests/cuda_emu/emulator.h"

#include <link.h>
#include <unistd.h>
#include <sys/mman.h>
#include <vector>

namespace emu {
enum { F_ATOMIC = 1, F_WARP = 2, F_MANY = 4 }; /* F_WARP: several lanes of one warp; F_MANY: several warps or blocks */
struct Acc {
    uint32_t inst, epoch, clk, pc;
    uint16_t tid, flags;
};
struct Cell {
    Acc w, r;
};
static Cell *sh_shadow, *dev_shadow;
static unsigned char *sh_lo, *sh_hi;
static uint32_t first_inst = 1, epoch;
static uint32_t vc[32][32][32];
struct Range {
    unsigned char *p;
    size_t n;
};
static std::vector<Range> slots;
static unsigned char *exe_lo, *exe_hi;
static unsigned char *cached_base;
static size_t cached_size;
static const size_t DEV_BYTES = (size_t)8 << 30; /* of the arena that is shadowed */

static int phdr_cb(struct dl_phdr_info *i, size_t, void *) {
    for (int k = 0; k < i->dlpi_phnum; k++)
        if (i->dlpi_phdr[k].p_type == PT_LOAD) {
            unsigned char *lo = (unsigned char *)i->dlpi_addr + i->dlpi_phdr[k].p_vaddr, *hi = lo + i->dlpi_phdr[k].p_memsz;
            if (!exe_lo || lo < exe_lo) exe_lo = lo;
            if (hi > exe_hi) exe_hi = hi;
        }
    return 1; /* the first object is the program itself */
}
static void setup() {
    void *lo, *hi;
    shared_range(&lo, &hi);
    sh_lo = (unsigned char *)lo, sh_hi = (unsigned char *)hi;
    auto map = [](size_t n) {
        return (Cell *)mmap(0, n * sizeof(Cell), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    };
    sh_shadow = map((size_t)(sh_hi - sh_lo));
    if (!dev_shadow) dev_shadow = map(DEV_BYTES);
    dl_iterate_phdr(phdr_cb, 0);
}

static const char *where(uint32_t pc, char *buf, size_t n) {
    char cmd[300];
    snprintf(cmd, sizeof cmd, "addr2line -i -s -e /proc/%d/exe %#x 2>/dev/null", (int)getpid(), pc - 1);
    FILE *f = popen(cmd, "r");
    snprintf(buf, n, "+%#x", pc);
    if (f) {
        char t[200];
        while (fgets(t, sizeof t, f)) /* innermost inlined frame first; the first one in a .cu file is wanted */
            if (t[0] != '?') {
                t[strcspn(t, "\n (")] = 0, snprintf(buf, n, "%s", t);
                if (strstr(t, ".cu:")) break;
            }
        pclose(f);
    }
    return buf;
}

static bool ordered(const Acc &a) { /* is this earlier access ordered before the running thread? */
    if (a.inst < first_inst) return true;
    if (a.inst != blk.inst) return false;
    if (a.epoch < epoch) return true;
    if (a.flags & F_MANY) return false;
    if (a.tid >> 5 != cur->warp) return false;
    uint32_t(*v)[32] = vc[cur->warp];
    if (a.flags & F_WARP) {
        for (int j = 0; j < 32; j++)
            if (j != cur->lane && v[cur->lane][j] < a.clk) return false;
        return true;
    }
    return a.tid == cur->linear || v[cur->lane][a.tid & 31] >= a.clk;
}
[[noreturn]] static void race(const Acc &a, bool a_write, const void *p, bool write, uint32_t pc, bool shared) {
    char b1[220], b2[220], who[60];
    if (a.flags & F_MANY)
        snprintf(who, sizeof who, "several threads");
    else if (a.inst != blk.inst)
        snprintf(who, sizeof who, "thread %d of another block", a.tid);
    else
        snprintf(who, sizeof who, "thread %d", a.tid);
    fail("race on %s memory %p: %s at %s, against an unordered %s by %s at %s", shared ? "shared" : "device", p,
         write ? "write" : "read", where(pc, b1, sizeof b1), a_write ? "write" : "read", who, where(a.pc, b2, sizeof b2));
}

static void check(const void *addr, size_t n, bool write, bool atomic, const void *ret, bool aligned_type) {
    if (!cur || !arg_lo) return;
    unsigned char *p = (unsigned char *)addr;
    uint32_t pc = (uint32_t)((unsigned char *)ret - exe_lo);
    bool shared = p >= sh_lo && p < sh_hi, dev = !shared && arena_contains(p);
    char b[220];
    if (!shared && !dev) {
        if (on_fiber_stack(p) || (p >= exe_lo && p < exe_hi)) return;
        if (p >= (unsigned char *)arg_lo && p < (unsigned char *)arg_lo + arg_size) return;
        fail("%s of host memory %p at %s", write ? "write" : "read", addr, where(pc, b, sizeof b));
    }
    if (aligned_type && (uintptr_t)p % n)
        fail("misaligned %zu-byte %s at %p at %s", n, write ? "write" : "read", addr, where(pc, b, sizeof b));
    Cell *c;
    if (shared) {
        bool ok = false;
        for (auto &s : slots)
            ok |= p >= s.p && p + n <= s.p + s.n;
        if (!ok)
            fail("%zu-byte %s out of the bounds of any shared array at %s", n, write ? "write" : "read",
                 where(pc, b, sizeof b));
        c = sh_shadow + (p - sh_lo);
    } else {
        if (!(p >= cached_base && p < cached_base + cached_size) && !find_alloc(p, &cached_base, &cached_size)) cached_size = 0;
        if (!cached_size || p + n > cached_base + cached_size) {
            cached_size = 0;
            fail("%zu-byte %s at %p outside any device allocation at %s", n, write ? "write" : "read", addr,
                 where(pc, b, sizeof b));
        }
        if ((size_t)(p - arena_base()) + n > DEV_BYTES) return;
        c = dev_shadow + (p - arena_base());
    }
    Acc me = {
        blk.inst, epoch, vc[cur->warp][cur->lane][cur->lane], pc, (uint16_t)cur->linear, (uint16_t)(atomic ? F_ATOMIC : 0)};
    for (size_t i = 0; i < n; i++, c++) {
        if (shared ? c->w.inst != blk.inst : c->w.inst == 0) {
            if (!write || atomic)
                fail("read of uninitialised %s memory %p at %s", shared ? "shared" : "device", (void *)(p + i),
                     where(pc, b, sizeof b));
        } else if (!ordered(c->w) && !(atomic && c->w.flags & F_ATOMIC)) {
            race(c->w, true, p + i, write, pc, shared);
        }
        if (write) {
            if (c->r.inst >= first_inst && !(shared && c->r.inst != blk.inst) && !ordered(c->r))
                race(c->r, false, p + i, true, pc, shared);
            c->w = me;
        } else if (!c->r.inst || (shared && c->r.inst != blk.inst) || ordered(c->r)) {
            c->r = me;
        } else if (c->r.inst == blk.inst && c->r.tid >> 5 == cur->warp && !(c->r.flags & F_MANY)) {
            c->r.flags |= F_WARP;
            if (me.clk > c->r.clk) c->r.clk = me.clk;
        } else {
            c->r.flags = F_MANY, c->r.epoch = epoch;
            if (c->r.inst != blk.inst) c->r.inst = blk.inst, c->r.epoch = ~0u; /* readers in several blocks: never ordered */
        }
    }
}
static void hook(const void *p, size_t n, int w, int a, const void *pc) {
    check(p, n, w, a, pc, false);
}
} /* namespace emu */
using namespace emu;

void emu_race_launch() {
    if (!sh_shadow) setup(), set_access_hook(hook);
    first_inst = (blk.inst ? blk.inst : 1) + 1; /* everything before this launch is ordered before it */
    cached_size = 0;
}
void emu_race_block(uint32_t, int nth) {
    epoch = 0;
    slots.clear();
    for (int w = 0; w * 32 < nth; w++) {
        memset(vc[w], 0, sizeof vc[w]);
        for (int l = 0; l < 32; l++)
            vc[w][l][l] = 1;
    }
}
void emu_race_block_sync() {
    epoch++;
}
void emu_race_warp_sync(int w, unsigned mask) {
    uint32_t j[32] = {};
    for (int i = 0; i < 32; i++)
        if (mask >> i & 1)
            for (int k = 0; k < 32; k++)
                if (vc[w][i][k] > j[k]) j[k] = vc[w][i][k];
    for (int i = 0; i < 32; i++)
        if (mask >> i & 1) memcpy(vc[w][i], j, sizeof j), vc[w][i][i]++;
}
void emu_race_shared_alloc(void *p, size_t n) {
    slots.push_back(Range{(unsigned char *)p, n});
}
void emu_race_host_write(void *p, size_t n) {
    if (!dev_shadow)
        dev_shadow = (Cell *)mmap(0, DEV_BYTES * sizeof(Cell), PROT_READ | PROT_WRITE,
                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    size_t o = (size_t)((unsigned char *)p - arena_base());
    Acc a = {};
    a.inst = 1; /* before any launch: block instances count from 2 */
    for (size_t i = 0; i < n && o + i < DEV_BYTES; i++)
        dev_shadow[o + i].w = a, dev_shadow[o + i].r = Acc{};
}

#define RA __builtin_return_address(0)
#define RW(n)                                            \
    extern "C" void __tsan_read##n(void *p) {            \
        check(p, n, false, false, RA, true);             \
    }                                                    \
    extern "C" void __tsan_write##n(void *p) {           \
        check(p, n, true, false, RA, true);              \
    }                                                    \
    extern "C" void __tsan_unaligned_read##n(void *p) {  \
        check(p, n, false, false, RA, false);            \
    }                                                    \
    extern "C" void __tsan_unaligned_write##n(void *p) { \
        check(p, n, true, false, RA, false);             \
    }                                                    \
    extern "C" void __tsan_volatile_read##n(void *p) {   \
        check(p, n, false, false, RA, true);             \
    }                                                    \
    extern "C" void __tsan_volatile_write##n(void *p) {  \
        check(p, n, true, false, RA, true);              \
    }
RW(1) RW(2) RW(4) RW(8) RW(16) extern "C" void __tsan_init(void) {}
extern "C" void __tsan_func_entry(void *) {}
extern "C" void __tsan_func_exit(void) {}
extern "C" void __tsan_read_range(void *p, size_t n) {
    check(p, n, false, false, RA, false);
}
extern "C" void __tsan_write_range(void *p, size_t n) {
    check(p, n, true, false, RA, false);
}
extern "C" void __tsan_vptr_update(void **, void *) {}
extern "C" void __tsan_vptr_read(void **) {}
extern "C" void *__tsan_memcpy(void *d, const void *s, size_t n) {
    check(s, n, false, false, RA, false), check(d, n, true, false, RA, false);
    return memcpy(d, s, n);
}
extern "C" void *__tsan_memset(void *d, int v, size_t n) {
    check(d, n, true, false, RA, false);
    return memset(d, v, n);
}
extern "C" void *__tsan_memmove(void *d, const void *s, size_t n) {
    check(s, n, false, false, RA, false), check(d, n, true, false, RA, false);
    return memmove(d, s, n);
}
