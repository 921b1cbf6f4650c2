/* The CPU's table of operations: the reference in every entry, then what the processor can do better over it. */
#include "kernels/ops.h"

#include <string.h>

#include "kernels/cpu/ref/ref.h"
#if defined(__x86_64__)
#include "kernels/cpu/simd.h"
#define CPU_HAS_SIMD 1
#else
#define CPU_HAS_SIMD 0
#endif

void cpu_backend_reference(Backend *backend) {
    *backend = (Backend){.name = "cpu"};
    ref_layout(backend);
    ref_embed(backend);
    ref_norm(backend);
    ref_linear(backend);
    ref_rope(backend);
    ref_attention(backend);
    ref_gate(backend);
    ref_fake_rows(backend);
    ref_head(backend);
    ref_adamw(backend);
    ref_check(backend);
    ref_quantize4(backend);
    ref_dequantize(backend);
}

typedef enum CpuLevel { CPU_REF, CPU_AVX2, CPU_AVX512, CPU_AVX512BF16, CPU_LEVELS } CpuLevel;
static const char *const level_names[CPU_LEVELS] = {"ref", "avx2", "avx512", "avx512bf16"};

/* What CPUID offers and the operating system saves on a switch: the builtin looks at XCR0 too. */
static CpuLevel cpu_level(void) {
#if CPU_HAS_SIMD
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    int avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (avx2 && avx512) return __builtin_cpu_supports("avx512bf16") ? CPU_AVX512BF16 : CPU_AVX512;
    if (avx2) return CPU_AVX2;
#endif
    return CPU_REF;
}

/* What is used where nothing is asked for: pairs only where they are worth it. Measured ratios are near 0.5 or near 2, so
 * that the choice does not change from run to run. */
static CpuLevel cpu_choice(CpuLevel best) {
#if CPU_HAS_SIMD
    if (best == CPU_AVX512BF16 && !(cpu_pairs_advantage_avx512bf16() > 1.2)) return CPU_AVX512;
#endif
    return best;
}

Status cpu_backend(Backend *backend, const char *force, Error *err) {
    CpuLevel best = cpu_level(), level = CPU_REF;
    if (force == NULL) {
        level = cpu_choice(best);
    } else {
        while (level < CPU_LEVELS && strcmp(force, level_names[level]) != 0)
            level++;
        if (level == CPU_LEVELS) FAIL("CPU kernels: want ref, avx2, avx512 or avx512bf16, got \"%s\"", force);
        if (level > best) {
            FAIL("CPU kernels: %s was asked for, this machine offers %s at most; leave the choice out to use that", force,
                 level_names[best]);
        }
    }
    cpu_backend_reference(backend);
#if CPU_HAS_SIMD
    if (level >= CPU_AVX2) cpu_simd_avx2(backend);
    if (level >= CPU_AVX512) cpu_simd_avx512(backend);
    if (level >= CPU_AVX512BF16) cpu_simd_avx512bf16(backend);
#endif
    return OK;
}
