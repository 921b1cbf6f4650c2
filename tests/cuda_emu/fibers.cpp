/* CUDA threads on fibers, one block after another on one operating-system thread. A thread gets a fiber only when its turn
 * comes, and one that ends starts the next on the same stack: a kernel that never waits runs as a plain loop. */
#include "tests/cuda_emu/emulator.h"

#include <algorithm>
#include <cstdarg>
#include <mutex>
#include <sys/mman.h>

__attribute__((weak)) void emu_race_launch() {}
__attribute__((weak)) void emu_race_block(uint32_t, int) {}
__attribute__((weak)) void emu_race_block_sync() {}
__attribute__((weak)) void emu_race_warp_sync(int, unsigned) {}
__attribute__((weak)) void emu_race_shared_alloc(void *, size_t) {}
__attribute__((weak)) void emu_race_host_write(void *, size_t) {}

/* void emu_switch(void **save_sp, void *to_sp): the whole context is the callee-saved registers.
 * (Leaving by a jump instead of ret is faster in a bare ping-pong but 40% slower here: all fibers
 * wait at the same call sites, so the return predictor is right, and the jump unbalances it.) */
asm(".text\n.globl emu_switch\n.type emu_switch,@function\nemu_switch:\n"
    "  push %rbp\n  push %rbx\n  push %r12\n  push %r13\n  push %r14\n  push %r15\n"
    "  mov %rsp,(%rdi)\n  mov %rsi,%rsp\n"
    "  pop %r15\n  pop %r14\n  pop %r13\n  pop %r12\n  pop %rbx\n  pop %rbp\n  ret\n"
    ".size emu_switch,.-emu_switch\n");
extern "C" void emu_switch(void **save_sp, void *to_sp);

namespace emu {
Thread *cur;
Block blk;
const void *arg_lo;
size_t arg_size;
Thread th[MAX_THREADS];
Warp warps[MAX_THREADS / 32];
std::vector<CpAsync> cpq[MAX_THREADS];
uint32_t cpgroup[MAX_THREADS];
int nth, alive, in_barrier, bar_kind, bar_val, bar_result;
const char *bar_f;
int bar_l;
static std::vector<Fiber *> &free_fibers = *new std::vector<Fiber *>, &all_fibers = *new std::vector<Fiber *>; /* never freed */
static void *main_sp, *main_fake;
static const void *main_lo;
static size_t main_size;
static bool failed;
static const std::function<void()> *kernel_fn;
static const char *kernel_name;
static uint32_t inst_counter = 1;
static std::recursive_mutex launch_mu;
static void fiber_main();
static Fiber *get_fiber() {
    if (free_fibers.empty()) {
        Fiber *f = new Fiber;
        f->lo = (unsigned char *)mmap(0, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        mprotect(f->lo, 4096, PROT_NONE); /* a kernel that overruns its stack faults */
        all_fibers.push_back(f);
        return f;
    }
    Fiber *f = free_fibers.back();
    free_fibers.pop_back();
#if EMU_ASAN
    __asan_unpoison_memory_region(f->lo + STACK - 8192, 8192); /* the frames it was last left in */
#endif
    return f;
}
static void *fresh_sp(Fiber *f) {
    void **sp = (void **)(f->lo + STACK);
    *--sp = 0; /* a return address no one uses; fiber_main is entered as if called */
    *--sp = (void *)fiber_main;
    for (int i = 0; i < 6; i++)
        *--sp = 0;
    return sp;
}
/* Leave the running context for thread t (or the launcher when t is null). `gone`: never to return. */
void go(void **save, void **fake_save, Thread *t, bool gone) {
    void *to;
    const void *lo = main_lo;
    size_t size = main_size;
    if (t) {
        if (t->state == UNSTARTED) {
            Fiber *f = get_fiber();
            t->fiber = f;
            t->sp = fresh_sp(f);
        }
        t->state = RUNNABLE;
        cur = t;
        to = t->sp, lo = ((Fiber *)t->fiber)->lo + 4096, size = STACK - 4096;
    } else {
        to = main_sp;
    }
#if EMU_ASAN
    __sanitizer_start_switch_fiber(gone ? nullptr : fake_save, lo, size);
#else
    (void)lo, (void)size, (void)fake_save, (void)gone;
#endif
    emu_switch(save, to);
#if EMU_ASAN
    __sanitizer_finish_switch_fiber(*fake_save, nullptr, nullptr);
#endif
}

static void report_stuck() {
    fprintf(stderr, "cuda_emu: kernel %s, block (%u,%u,%u): no thread can go on; waiting:\n", kernel_name, blk.bid.x, blk.bid.y,
            blk.bid.z);
    int shown = 0;
    for (int i = 0; i < nth && shown < 8; i++)
        if (th[i].state == IN_BARRIER || th[i].state == IN_WARP)
            if (i == 0 || th[i].state != th[i - 1].state || th[i].l != th[i - 1].l)
                fprintf(stderr, "  from thread %d: %s at %s:%d\n", i,
                        th[i].state == IN_BARRIER ? "__syncthreads" : "warp collective", th[i].f, th[i].l),
                    shown++;
}

void fail(const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    fprintf(stderr, "cuda_emu: error in kernel %s", kernel_name ? kernel_name : "?");
    if (cur)
        fprintf(stderr, ", block (%u,%u,%u) thread (%u,%u,%u)", blk.bid.x, blk.bid.y, blk.bid.z, cur->tid.x, cur->tid.y,
                cur->tid.z);
    fprintf(stderr, ": ");
    vfprintf(stderr, fmt, ap);
    fprintf(stderr, "\n");
    va_end(ap);
    if (!cur || getenv("EMU_ABORT")) abort();
    failed = true;
    void *dummy;
    Thread *me = cur;
    go(&dummy, &me->asan_fake, nullptr, true);
    abort();
}

/* Switch away from the waiting thread `cur`; returns when it has been made ready and picked. */
void wait_here(int state, const char *f, int l) {
    Thread *me = cur;
    me->state = state, me->f = f, me->l = l;
    int n = pick();
    if (n < 0) {
        report_stuck();
        fail("deadlock: divergent barrier or collective");
    }
    if (&th[n] != me) go(&me->sp, &me->asan_fake, &th[n], false);
    me->state = RUNNABLE;
}

static void thread_exit() {
    Thread *me = cur;
    me->state = EXITED;
    alive--;
    Warp &w = warps[me->warp];
    w.alive &= ~(1u << me->lane);
    if (!cpq[me->linear].empty()) fail("thread exits with cp.async copies not waited for");
    if (in_barrier) {
        me->state = RUNNABLE;
        fail("thread exits while %d others wait in __syncthreads at %s:%d (barrier not reached by all threads)", in_barrier,
             bar_f, bar_l);
    }
    check_warp(w, me->warp * 32);
}
static void fiber_main() {
#if EMU_ASAN
    __sanitizer_finish_switch_fiber(nullptr, main_lo ? nullptr : &main_lo, main_size ? nullptr : &main_size);
#endif
    for (;;) {
        Fiber *self = (Fiber *)cur->fiber;
        arg_lo = nullptr;
        (*kernel_fn)();
        thread_exit();
        int n = pick();
        void *dummy, *dummy_fake;
        if (n < 0) {
            if (alive) {
                report_stuck();
                fail("deadlock: divergent barrier or collective");
            }
            free_fibers.push_back(self);
            go(&dummy, &dummy_fake, nullptr, true);
        }
        if (th[n].state == UNSTARTED) { /* no switch: the next thread runs on this same stack */
            th[n].fiber = self;
            th[n].state = RUNNABLE;
            cur = &th[n];
            continue;
        }
        free_fibers.push_back(self);
        go(&dummy, &dummy_fake, &th[n], true);
    }
}

/* ---- running a grid ---- */
static void run_block(uint3 bid, size_t smem) {
    blk.bid = bid;
    blk.inst = ++inst_counter;
    emu_race_block(blk.inst, nth);
    shared_start(smem);
    alive = nth, in_barrier = 0;
    clear_ready(nth);
    for (int w = 0; w * 32 < nth; w++) {
        int n = nth - w * 32;
        warps[w].alive = n >= 32 ? 0xffffffffu : (1u << n) - 1;
        warps[w].npend = 0;
    }
    for (int i = 0; i < nth; i++) {
        th[i].state = UNSTARTED;
        if (!cpq[i].empty()) cpq[i].clear();
        cpgroup[i] = 0;
    }
    for (int i = 0; i < nth; i++)
        make_ready(policy == REV ? nth - 1 - i : i);
    go(&main_sp, &main_fake, &th[pick()], false);
    cur = nullptr;
    if (failed) { /* stacks of abandoned threads */
        free_fibers = all_fibers;
#if EMU_ASAN
        for (Fiber *f : all_fibers)
            __asan_unpoison_memory_region(f->lo + 4096, STACK - 4096);
#endif
    }
}

cudaError_t run_grid(const char *name, dim3 g, dim3 b, size_t smem, const std::function<void()> &fn) {
    std::lock_guard<std::recursive_mutex> lock(launch_mu);
    if (policy < 0) read_policy();
    kernel_name = name, kernel_fn = &fn, failed = false, main_lo = nullptr, main_size = 0;
    nth = (int)(b.x * b.y * b.z);
    blk.bdim = b, blk.gdim = g;
    for (int i = 0; i < nth; i++) {
        unsigned u = (unsigned)i;
        th[i].tid = uint3{u % b.x, u / b.x % b.y, u / b.x / b.y};
        th[i].linear = i, th[i].lane = i & 31, th[i].warp = i >> 5;
    }
    uint64_t n = (uint64_t)g.x * g.y * g.z, mul = 1, add = 0;
    if (policy >= RAND && n > 1) { /* blocks in an affine pseudo-random order */
        add = rng() % n;
        do
            mul = rng() % n | 1;
        while (std::__gcd(mul, n) != 1);
    }
    if (policy == REV) mul = n - 1, add = n - 1;
    emu_race_launch();
    for (uint64_t k = 0; k < n && !failed; k++) {
        uint64_t i = (uint64_t)(((unsigned __int128)k * mul + add) % n);
        run_block(uint3{(unsigned)(i % g.x), (unsigned)(i / g.x % g.y), (unsigned)(i / g.x / g.y)}, smem);
    }
    return failed ? cudaErrorLaunchFailure : cudaSuccess;
}
bool on_fiber_stack(const void *p) {
    if (!cur) return false;
    unsigned char *lo = ((Fiber *)cur->fiber)->lo;
    return (unsigned char *)p >= lo && (unsigned char *)p < lo + STACK;
}
const char *current_kernel() {
    return kernel_name;
}
} /* namespace emu */
