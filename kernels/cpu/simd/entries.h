/* What the files of this folder share beside vectors and products: checks, and who fills which entries. */
#ifndef NIBBLE_KERNELS_CPU_SIMD_ENTRIES_H
#define NIBBLE_KERNELS_CPU_SIMD_ENTRIES_H

#include "kernels/cpu/ref/ref.h"
#include "kernels/cpu/simd/simd.h"

#define simd_linear SIMD_SYMBOL(simd_linear)
#define simd_head SIMD_SYMBOL(simd_head)
#define simd_attention SIMD_SYMBOL(simd_attention)

void simd_linear(Backend *backend);
void simd_head(Backend *backend);
void simd_attention(Backend *backend);

/* As ref_check_config, and no F64: only the reference computes in it. */
static inline Status simd_check_config(const char *op, const ExecConfig *config, Error *err) {
    TRY(ref_check_config(op, config, err));
    if (config->act == DTYPE_F64)
        FAIL("%s: the %s kernels compute in F32 and BF16, got F64; use the reference", op, SIMD_VARIANT);
    return OK;
}

#endif
