/* The one symbol that the dispatcher sees. */
#include "kernels/cpu/simd.h"

#include "kernels/cpu/simd/entries.h"

#define cpu_simd SIMD_SYMBOL(cpu_simd)

void cpu_simd(Backend *backend) {
    simd_linear(backend);
    simd_head(backend);
    simd_attention(backend);
}
