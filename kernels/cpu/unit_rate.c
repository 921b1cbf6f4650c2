/* FLOP/s of the instruction that a variant multiplies with, on all threads of a pool. */
#include <math.h>
#include <string.h>

#include "core/text.h"
#include "kernels/cpu/simd.h"
#include "kernels/ops.h"

#define ROUNDS 400000 /* near a millisecond */
#define TRIALS 5

typedef double UnitFlops(int64_t rounds);

static UnitFlops *unit_of(const char *variant) {
#ifdef __x86_64__
    static const struct {
        const char *variant;
        UnitFlops *run;
    } units[] = {{"avx2", cpu_unit_flops_avx2},
                 {"avx512", cpu_unit_flops_avx512},
                 {"avx512bf16", cpu_unit_flops_avx512bf16},
                 {"amx", cpu_unit_flops_amx}};
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        if (strcmp(variant, units[i].variant) == 0) return units[i].run;
#else
    (void)variant;
#endif
    return NULL;
}

static void run_unit(void *context, int64_t item, int worker) {
    (void)item, (void)worker;
    (void)(*(UnitFlops *const *)context)(ROUNDS);
}

double cpu_unit_rate(const char *variant, Pool *pool) {
    UnitFlops *run = unit_of(variant);
    int threads = pool_threads(pool);
    double least = INFINITY;
    if (run == NULL) return NAN;
    double flops = run(ROUNDS) * threads;
    for (int trial = 0; trial < TRIALS; trial++) { /* the best: what else runs on the machine only slows */
        double begin = clock_seconds();
        pool_run(pool, run_unit, (void *)&run, threads);
        least = fmin(least, clock_seconds() - begin);
    }
    return flops / least;
}
