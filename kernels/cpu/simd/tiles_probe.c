/* Whether tiles do more than fused multiply-adds here; some hypervisors offer them and trap. */
#include "core/text.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/simd/gemm.h"

#define ROUNDS 400
#define TRIALS 5
#define PAIRS 256
#define TILE_FLOPS (2.0 * GEMM_PANEL_ROWS * 2 * PAIRS * 32) /* of a call: two vectors of columns */

static double seconds_of_tiles(const float *a, const float *b, float *c) {
    gemm_tiles_begin();
    double begin = clock_seconds();
    for (int round = 0; round < ROUNDS / 32; round++)
        gemm_kernel_tiles(a, PAIRS, b, c, 32, PAIRS, 2);
    double seconds = clock_seconds() - begin;
    gemm_tiles_end();
    return seconds / (ROUNDS / 32);
}

static double seconds_of_floats(const float *a, const float *b, float *c) {
    double begin = clock_seconds();
    for (int round = 0; round < ROUNDS / 32; round++)
        gemm_kernel(a, PAIRS, b, c, 64, PAIRS, GEMM_VECTORS);
    return (clock_seconds() - begin) / (ROUNDS / 32);
}

double SIMD_SYMBOL(cpu_tiles_advantage)(void) {
    static const float a[GEMM_PANEL_ROWS * PAIRS], b[PAIRS * GEMM_COLUMNS];
    float c[GEMM_PANEL_ROWS * GEMM_COLUMNS] = {0};
    double tiles = 1.0, floats = 1.0;
    for (int i = 0; i < TRIALS; i++) { /* the best of each: what else runs on the machine only slows */
        double t = seconds_of_tiles(a, b, c), f = seconds_of_floats(a, b, c);
        tiles = i == 0 || t < tiles ? t : tiles;
        floats = i == 0 || f < floats ? f : floats;
    }
    return TILE_FLOPS / tiles / (2.0 * GEMM_ROWS * GEMM_COLUMNS * PAIRS / floats);
}
