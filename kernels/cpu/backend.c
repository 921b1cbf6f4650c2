/* The CPU's table of operations: the reference in every entry, then what the processor can do better over it. */
#include "kernels/ops.h"

#include <stdatomic.h>
#include <string.h>

#include "kernels/cpu/ref/ref.h"
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

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

typedef enum CpuLevel { CPU_REF, CPU_AVX2, CPU_AVX512, CPU_AVX512BF16, CPU_AMX, CPU_LEVELS } CpuLevel;
static const char *const level_names[CPU_LEVELS] = {"ref", "avx2", "avx512", "avx512bf16", "amx"};

#if CPU_HAS_SIMD
#define XSAVE_TILES 18       /* the state component of tile data; 17 is that of its configuration */
#define REQUEST_STATE 0x1023 /* ARCH_REQ_XCOMP_PERM of arch_prctl (Linux 5.16) */

/* AMX-TILE and AMX-BF16 (leaf 7, EDX bits 24 and 22), saved by the operating system, which gives tile data only to a process
 * that has asked. */
static int has_tiles(void) {
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d >> 22 & 1) == 0 || (d >> 24 & 1) == 0) return 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c >> 27 & 1) == 0) return 0; /* OSXSAVE */
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low >> 17 & 3) != 3) return 0;
    return syscall(SYS_arch_prctl, REQUEST_STATE, XSAVE_TILES) == 0;
}
#endif

/* What CPUID offers and the operating system saves on a switch: the builtin looks at XCR0 too. */
static CpuLevel cpu_level(void) {
#if CPU_HAS_SIMD
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    int avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (avx2 && avx512 && __builtin_cpu_supports("avx512bf16")) return has_tiles() ? CPU_AMX : CPU_AVX512BF16;
    if (avx2 && avx512) return CPU_AVX512;
    if (avx2) return CPU_AVX2;
#endif
    return CPU_REF;
}

/* What is used where nothing is asked for: tiles and pairs only where they are worth it. Measured ratios are near 0.5 or near 2, so
 * that the choice does not change from run to run. */
static CpuLevel measured_choice(CpuLevel best) {
#if CPU_HAS_SIMD
    if (best == CPU_AMX && cpu_tiles_advantage_amx() > 1.2) return CPU_AMX;
    if (best >= CPU_AVX512BF16 && cpu_pairs_advantage_avx512bf16() > 1.2) return CPU_AVX512BF16;
    if (best >= CPU_AVX512BF16) return CPU_AVX512;
#endif
    return best;
}

/* Once a process: on a busy machine a probe can come out differently, and a run must have the kernels that it was planned with. */
static CpuLevel cpu_choice(CpuLevel best) {
    static _Atomic int chosen = -1;
    int choice = atomic_load(&chosen);
    if (choice >= 0) return (CpuLevel)choice;
    int measured = (int)measured_choice(best), none = -1;
    return atomic_compare_exchange_strong(&chosen, &none, measured) ? (CpuLevel)measured : (CpuLevel)none;
}

Status cpu_backend(Backend *backend, const char *force, Error *err) {
    CpuLevel best = cpu_level(), level = CPU_REF;
    if (force == NULL) {
        level = cpu_choice(best);
    } else {
        while (level < CPU_LEVELS && strcmp(force, level_names[level]) != 0)
            level++;
        if (level == CPU_LEVELS) FAIL("CPU kernels: want ref, avx2, avx512, avx512bf16 or amx, got \"%s\"", force);
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
    if (level >= CPU_AMX) cpu_simd_amx(backend);
#endif
    return OK;
}
