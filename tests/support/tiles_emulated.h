/* AMX's tile instructions in plain C, under the names of the compilers' intrinsics, so that the source that uses them runs
 * where there are none. Included before anything else (-include). Formulas: Intel 64 and IA-32 Architectures Software
 * Developer's Manual, TDPBF16PS: even and odd products are summed apart, along k, and added to the destination.
 */
#ifndef NIBBLE_TESTS_SUPPORT_TILES_EMULATED_H
#define NIBBLE_TESTS_SUPPORT_TILES_EMULATED_H

#include <assert.h>
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct EmulatedTiles {
    int configured;
    float tile[8][16][16];
} EmulatedTiles;
static _Thread_local EmulatedTiles emulated_tiles;

static inline void emulated_config(const void *shapes) {
    const uint8_t *bytes = (const uint8_t *)shapes;
    assert(bytes[0] == 1);
    for (int i = 0; i < 8; i++)
        assert(bytes[16 + 2 * i] == 64 && bytes[17 + 2 * i] == 0 && bytes[48 + i] == 16); /* the only shape that is used */
    memset(&emulated_tiles, 0xFF, sizeof emulated_tiles); /* NaN: a tile that is read before it is loaded shows */
    emulated_tiles.configured = 1;
}

static inline void emulated_release(void) {
    emulated_tiles.configured = 0;
}

static inline void emulated_load(int tile, const void *from, size_t stride) {
    assert(emulated_tiles.configured);
    for (size_t row = 0; row < 16; row++)
        memcpy(emulated_tiles.tile[tile][row], (const uint8_t *)from + row * stride, 64);
}

static inline void emulated_store(int tile, void *to, size_t stride) {
    assert(emulated_tiles.configured);
    for (size_t row = 0; row < 16; row++)
        memcpy((uint8_t *)to + row * stride, emulated_tiles.tile[tile][row], 64);
}

static inline float emulated_half(float pair, int high) {
    uint32_t bits;
    float out;
    memcpy(&bits, &pair, sizeof bits);
    bits = high ? bits & 0xFFFF0000u : bits << 16;
    memcpy(&out, &bits, sizeof out);
    return out;
}

static inline void emulated_product(int to, int a, int b) {
    assert(emulated_tiles.configured);
    for (int m = 0; m < 16; m++)
        for (int n = 0; n < 16; n++) {
            float even = 0.0f, odd = 0.0f;
            for (int k = 0; k < 16; k++) {
                float x = emulated_tiles.tile[a][m][k], y = emulated_tiles.tile[b][k][n];
                even += emulated_half(x, 0) * emulated_half(y, 0);
                odd += emulated_half(x, 1) * emulated_half(y, 1);
            }
            emulated_tiles.tile[to][m][n] += even + odd;
        }
}

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig(shapes) emulated_config(shapes)
#define _tile_release() emulated_release()
#define _tile_loadd(tile, from, stride) emulated_load(tile, from, stride)
#define _tile_stored(tile, to, stride) emulated_store(tile, to, stride)
#define _tile_dpbf16ps(to, a, b) emulated_product(to, a, b)

#endif
