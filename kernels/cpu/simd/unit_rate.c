/* The instruction that this instruction set multiplies with, from registers alone: what no product can be faster than. */
#include "kernels/cpu/simd.h"
#include "kernels/cpu/simd/gemm.h"

#ifdef SIMD_TILES

#define TILE_FLOPS (2.0 * 16 * 16 * 32) /* TDPBF16PS */
#define TILE_SHARE 8                    /* one of theirs takes as long as some of the others */

double SIMD_SYMBOL(cpu_unit_flops)(int64_t rounds) {
    gemm_tiles_begin(); /* clears them */
    int64_t done = rounds / TILE_SHARE + 1;
    for (int64_t round = 0; round < done; round++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    gemm_tiles_end();
    return 4.0 * TILE_FLOPS * (double)done;
}

#else

#define CHAINS 12 /* independent sums: two a cycle of latency up to six */

/* A value that the compiler cannot know, so that the loop is not folded. */
SIMD_INLINE vf opaque(vf x) {
    __asm__ volatile("" : "+v"(x));
    return x;
}

#ifdef __AVX512BF16__
#define LANE_FLOPS 4.0
SIMD_INLINE vf multiply_add(vf factor, vf sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)factor, (__m512bh)factor);
}
#else
#define LANE_FLOPS 2.0
SIMD_INLINE vf multiply_add(vf factor, vf sum) {
    return vf_fma(factor, factor, sum);
}
#endif

double SIMD_SYMBOL(cpu_unit_flops)(int64_t rounds) {
    vf sum[CHAINS], factor = opaque(vf_zero());
    SIMD_UNROLL
    for (int i = 0; i < CHAINS; i++)
        sum[i] = opaque(vf_zero());
    for (int64_t round = 0; round < rounds; round++) {
        SIMD_UNROLL
        for (int i = 0; i < CHAINS; i++)
            sum[i] = opaque(multiply_add(factor, sum[i]));
    }
    return LANE_FLOPS * SIMD_WIDTH * CHAINS * (double)rounds;
}

#endif
