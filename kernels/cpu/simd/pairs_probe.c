/* Whether a dot product of BF16 pairs does more than a fused multiply-add here: twice as much on some processors, half as much
 * on others, and CPUID does not say. */
#include "core/text.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/simd/simd.h"

#define CHAINS 12 /* independent sums: two a cycle of latency up to six */
#define ROUNDS 4000
#define TRIALS 5

/* A value that the compiler cannot know, so that the loop is not folded. */
SIMD_INLINE vf opaque(vf x) {
    __asm__ volatile("" : "+v"(x));
    return x;
}

SIMD_INLINE double seconds_of(const int pairs) {
    vf sum[CHAINS], factor = opaque(vf_set(0.0f));
    SIMD_UNROLL
    for (int i = 0; i < CHAINS; i++)
        sum[i] = opaque(vf_zero());
    double begin = clock_seconds();
    for (int round = 0; round < ROUNDS; round++) {
        SIMD_UNROLL
        for (int i = 0; i < CHAINS; i++)
            sum[i] = pairs ? _mm512_dpbf16_ps(sum[i], (__m512bh)factor, (__m512bh)factor) : vf_fma(factor, factor, sum[i]);
        SIMD_UNROLL
        for (int i = 0; i < CHAINS; i++)
            sum[i] = opaque(sum[i]);
    }
    return clock_seconds() - begin;
}

double cpu_pairs_advantage_avx512bf16(void) {
    double fma = 1.0, pairs = 1.0;
    for (int i = 0; i < TRIALS; i++) { /* the best of each: what else runs on the machine only slows */
        double a = seconds_of(0), b = seconds_of(1);
        fma = i == 0 || a < fma ? a : fma;
        pairs = i == 0 || b < pairs ? b : pairs;
    }
    return 2.0 * fma / pairs;
}
