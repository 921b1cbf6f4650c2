/* What the files of this folder share beside vectors and products: checks, and who fills which entries. */
#ifndef NIBBLE_KERNELS_CPU_SIMD_ENTRIES_H
#define NIBBLE_KERNELS_CPU_SIMD_ENTRIES_H

#include "kernels/cpu/ref/ref.h"
#include "kernels/cpu/simd/simd.h"

#define simd_linear SIMD_SYMBOL(simd_linear)
#define simd_head SIMD_SYMBOL(simd_head)
#define simd_attention SIMD_SYMBOL(simd_attention)
#define simd_norm SIMD_SYMBOL(simd_norm)
#define simd_rope SIMD_SYMBOL(simd_rope)
#define simd_gate SIMD_SYMBOL(simd_gate)
#define simd_embed SIMD_SYMBOL(simd_embed)
#define simd_flat SIMD_SYMBOL(simd_flat)
#define simd_quantize SIMD_SYMBOL(simd_quantize)

void simd_linear(Backend *backend);
void simd_head(Backend *backend);
void simd_attention(Backend *backend);
void simd_norm(Backend *backend);
void simd_rope(Backend *backend);
void simd_gate(Backend *backend);
void simd_embed(Backend *backend);
void simd_flat(Backend *backend);
void simd_quantize(Backend *backend);

/* As ref_check_config, and no F64: only the reference computes in it. */
static inline Status simd_check_config(const char *op, const ExecConfig *config, Error *err) {
    TRY(ref_check_config(op, config, err));
    if (config->act == DTYPE_F64)
        FAIL("%s: the %s kernels compute in F32 and BF16, got F64; use the reference", op, SIMD_VARIANT);
    return OK;
}

#endif
