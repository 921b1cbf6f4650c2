/* The vector versions of the CPU backend.
 *
 * kernels/cpu/simd is one source, compiled once per instruction set. Each installer overwrites the entries that it has and
 * names itself in Backend.variant. The caller has asked CPUID first: AVX2 and FMA for avx2; AVX-512 F, BW, VL and DQ (with
 * those two) for avx512; AVX512_BF16 on top for avx512bf16, which installs only what multiplies matrices, over avx512; AMX-BF16, and
 * the operating system's permission to use its tiles, for amx, which installs linear layers and the head over avx512bf16. Activations are row-major, F32 or BF16; F64 is refused by plan(). On machines other than x86-64 the
 * functions do not exist.
 */
#ifndef NIBBLE_KERNELS_CPU_SIMD_H
#define NIBBLE_KERNELS_CPU_SIMD_H

#include "kernels/ops.h"

void cpu_simd_avx2(Backend *backend);
void cpu_simd_avx512(Backend *backend);
void cpu_simd_avx512bf16(Backend *backend);
void cpu_simd_amx(Backend *backend);

/* Products a second of BF16 pairs over those of fused multiply-adds, measured in less than a millisecond. */
double cpu_pairs_advantage_avx512bf16(void);
/* The same of tiles. */
double cpu_tiles_advantage_amx(void);

/* Runs the instruction that the products of an instruction set are made of, from registers, about `rounds` times a register;
 * returns the FLOPs done. */
double cpu_unit_flops_avx2(int64_t rounds);
double cpu_unit_flops_avx512(int64_t rounds);
double cpu_unit_flops_avx512bf16(int64_t rounds);
double cpu_unit_flops_amx(int64_t rounds);

#endif
