/* The one header that a .cu file includes in place of <cuda_runtime.h>. Under nvcc it is a thin veneer over CUDA; compiled as
 * plain C++ it is the emulator of tests/cuda_emu, so that kernels run, and are checked, on machines without a GPU.
 *
 * Three things differ from plain CUDA, because plain C++ cannot parse or express them:
 *   CU_LAUNCH(kernel, grid, block, smem, stream, args...)   for kernel<<<...>>>(args...)
 *   CU_SHARED(type, name, [dims])                           for __shared__ type name[dims];
 *   CU_DYN_SHARED(name)                                     for extern __shared__ unsigned char name[];
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
#else
#include <cuda_emu.h> /* tests/cuda_emu, a stand-in for the toolkit and found as one */
#define CU_EMULATED 1
#endif

#endif
