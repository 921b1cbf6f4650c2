/* The one header that a .cu file includes in place of <cuda_runtime.h>. Under nvcc it is a thin veneer over CUDA; compiled as
 * plain C++ it is the emulator of tests/cuda_emu, so that kernels run, and are checked, on machines without a GPU.
 *
 * Three things differ from plain CUDA, because plain C++ cannot parse or express them, and one because nvcc does not keep it:
 *   CU_LAUNCH(kernel, grid, block, smem, stream, args...)   for kernel<<<...>>>(args...)
 *   CU_SHARED(type, name, [dims])                           for __shared__ type name[dims];
 *   CU_DYN_SHARED(name)                                     for extern __shared__ unsigned char name[];
 *   cu_load16, cu_store16                                   for 16 bytes of global memory through a uint4 *
 * nvcc takes a uint4 apart where it looks through it, and does not always put it together again: a warp then writes four bytes of
 * every sixteen, four times. As an instruction of its own it stays one access.
 * A kernel name with commas is put in parentheses: CU_LAUNCH((k<4, 256>), ...). */
#ifndef NIBBLE_KERNELS_CUDA_CU_H
#define NIBBLE_KERNELS_CUDA_CU_H

#include <stddef.h>
#include <stdint.h>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#define CU_LAUNCH(kern, grid, block, smem, stream, ...) kern<<<(grid), (block), (smem), (stream)>>>(__VA_ARGS__)
#define CU_SHARED(type, name, ...) __shared__ type name __VA_ARGS__
#define CU_DYN_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#define CU_EMULATED 0

__device__ __forceinline__ uint4 cu_load16(const void *p) {
    uint4 v;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
    return v;
}
__device__ __forceinline__ void cu_store16(void *p, const uint4 &v) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}
#else
#include <cuda_emu.h> /* tests/cuda_emu, a stand-in for the toolkit and found as one */
#define CU_EMULATED 1
#endif

#endif
