/* Products by AMX: the panels of pairs as they are, as tiles of 16 rows of 64 bytes.
 *
 * A tile of A is 16 rows of 32 neighbours along k; one of B is 16 pairs of k, each in 16 columns: both lie so in the panels.
 * Two by two tiles of C stay in registers over the panel's k, so that every tile that is loaded meets two others (Intel 64 and
 * IA-32 Architectures Optimization Reference Manual, chapter on AMX).
 */
#include "kernels/cpu/simd/gemm.h"

#define SIDE 16 /* rows of a tile, and floats of a row */

_Static_assert(GEMM_PANEL_ROWS == 2 * SIDE, "two tiles of rows");

/* Palette 1: eight tiles of up to 16 rows of 64 bytes. */
typedef struct TileShapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} TileShapes;

void gemm_tiles_begin(void) {
    static const TileShapes shapes = {
        .palette = 1, .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64}, .rows = {16, 16, 16, 16, 16, 16, 16, 16}};
    _tile_loadconfig(&shapes);
}

void gemm_tiles_end(void) {
    _tile_release();
}

/* Registers: C 0 1 / 2 3, A 4 / 5, B 6 7. Strides in bytes. */
static void two_by_two(const float *a, size_t a_stride, const float *b, size_t b_stride, float *c, size_t c_stride,
                       int64_t pairs) {
    const float *a_below = a + SIDE * (a_stride / sizeof *a);
    float *c_below = c + SIDE * (c_stride / sizeof *c);
    _tile_loadd(0, c, c_stride);
    _tile_loadd(1, c + SIDE, c_stride);
    _tile_loadd(2, c_below, c_stride);
    _tile_loadd(3, c_below + SIDE, c_stride);
    for (int64_t p = 0; p < pairs; p += SIDE) {
        const float *row = b + (size_t)p * (b_stride / sizeof *b);
        _tile_loadd(4, a + p, a_stride);
        _tile_loadd(6, row, b_stride);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, row + SIDE, b_stride);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a_below + p, a_stride);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, c_stride);
    _tile_stored(1, c + SIDE, c_stride);
    _tile_stored(2, c_below, c_stride);
    _tile_stored(3, c_below + SIDE, c_stride);
}

static void two_by_one(const float *a, size_t a_stride, const float *b, size_t b_stride, float *c, size_t c_stride,
                       int64_t pairs) {
    const float *a_below = a + SIDE * (a_stride / sizeof *a);
    float *c_below = c + SIDE * (c_stride / sizeof *c);
    _tile_loadd(0, c, c_stride);
    _tile_loadd(2, c_below, c_stride);
    for (int64_t p = 0; p < pairs; p += SIDE) {
        _tile_loadd(4, a + p, a_stride);
        _tile_loadd(5, a_below + p, a_stride);
        _tile_loadd(6, b + (size_t)p * (b_stride / sizeof *b), b_stride);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(2, 5, 6);
    }
    _tile_stored(0, c, c_stride);
    _tile_stored(2, c_below, c_stride);
}

void gemm_kernel_tiles(const float *a, int64_t a_stride, const float *b, float *c, int64_t c_stride, int64_t pairs,
                       int vectors) {
    size_t a_bytes = (size_t)a_stride * sizeof *a, b_bytes = (size_t)vectors * SIDE * sizeof *b;
    size_t c_bytes = (size_t)c_stride * sizeof *c;
    int v = 0;
    for (; v + 1 < vectors; v += 2)
        two_by_two(a, a_bytes, b + v * SIDE, b_bytes, c + v * SIDE, c_bytes, pairs);
    if (v < vectors) two_by_one(a, a_bytes, b + v * SIDE, b_bytes, c + v * SIDE, c_bytes, pairs);
}
