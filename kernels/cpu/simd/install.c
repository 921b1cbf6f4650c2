/* The one symbol that the dispatcher sees. */
#include "kernels/cpu/simd.h"

#include "kernels/cpu/simd/entries.h"

#define cpu_simd SIMD_SYMBOL(cpu_simd)

/* With pairs only the products are compiled again: the rest is the plain AVX-512's, which was installed before. With tiles
 * only the large ones: attention's are too small for them. */
void cpu_simd(Backend *backend) {
    simd_linear(backend);
    simd_head(backend);
#ifndef SIMD_TILES
    simd_attention(backend);
#endif
#ifndef __AVX512BF16__
    simd_norm(backend);
    simd_rope(backend);
    simd_gate(backend);
    simd_embed(backend);
    simd_flat(backend);
    simd_quantize(backend);
#endif
}
