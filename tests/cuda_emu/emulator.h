/* What the parts of the emulator share. Private to tests/cuda_emu; kernels see cuda_emu.h only. */
#ifndef NIBBLE_TESTS_CUDA_EMU_EMULATOR_H
#define NIBBLE_TESTS_CUDA_EMU_EMULATOR_H

#include "tests/cuda_emu/cuda_emu.h"

#include <vector>

#if EMU_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

/* The checker's side of the seam: race.cpp defines these; without it the weak, empty ones of fibers.cpp are linked. */
void emu_race_launch();
void emu_race_block(uint32_t inst, int nthreads);
void emu_race_block_sync();
void emu_race_warp_sync(int warp, unsigned mask);
void emu_race_shared_alloc(void *p, size_t n);
void emu_race_host_write(void *p, size_t n); /* device memory that a copy, a fill or a library has defined */

namespace emu {

enum { UNSTARTED, RUNNABLE, IN_BARRIER, IN_WARP, EXITED };
enum { MAX_THREADS = 1024, SHARED_MAX = 227 * 1024, RED = 64, STACK = EMU_ASAN ? 256 * 1024 : 64 * 1024 };

struct Fiber {
    unsigned char *lo;
};
struct Pending { /* a warp collective that some lanes have reached */
    unsigned mask, arrived;
    int kind, p;
    const char *f, *what;
    int l;
    wide_fn fn;
};
struct Warp {
    unsigned alive;
    int npend;
    Pending pend[32];
};
struct CpAsync {
    void *dst;
    const void *src;
    uint32_t n, src_n, group;
};

/* the running block (fibers.cpp) */
extern Thread th[MAX_THREADS];
extern Warp warps[MAX_THREADS / 32];
extern std::vector<CpAsync> cpq[MAX_THREADS];
extern uint32_t cpgroup[MAX_THREADS];
extern int nth, alive, in_barrier, bar_kind, bar_val, bar_result;
extern const char *bar_f;
extern int bar_l;
/* Leaves the running context for thread t, or for the launcher when t is null; gone: never to return. */
void go(void **save, void **fake_save, Thread *t, bool gone);
/* Leaves the waiting thread; returns when somebody made it ready and the policy picked it. */
void wait_here(int state, const char *f, int l);
bool on_fiber_stack(const void *p);
const char *current_kernel();
cudaError_t run_grid(const char *name, dim3 g, dim3 b, size_t smem, const std::function<void()> &fn);

/* the policy (scheduler.cpp) */
enum { SEQ, REV, RAND, PRIO };
extern int policy;
uint64_t rng();
void read_policy();
void new_ranks(int n);
void make_ready(int i);
int pick(); /* -1: nobody is ready */
void clear_ready(int n);

/* meetings (collectives.cpp) */
void release_barrier();
void check_warp(Warp &w, int base); /* after an exit: did that complete a collective? */

/* memory (memory.cpp, runtime.cpp) */
extern size_t shared_limit; /* of the running kernel, static and dynamic together */
void shared_start(size_t dynamic_bytes);
void shared_range(void **lo, void **hi);
void set_access_hook(void (*h)(const void *, size_t, int, int, const void *));
bool arena_contains(const void *p);
unsigned char *arena_base();
bool find_alloc(const void *p, unsigned char **base, size_t *size); /* the live device allocation that holds p */
}  // namespace emu

#endif
