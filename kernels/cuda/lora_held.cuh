// lora_up and lora_dx with their narrow weights in registers (lora_held.cu): BF16, no dropout, ranks that are multiples of 4, widths that
// are whole vectors. Each says whether it was launched; else the kernels of lora_wide.cu take it.
#pragma once
#include "kernels/cuda/lora.cuh"

static const int HELD_TILES = 4;  // of 16 ranks, of all members together

bool launch_up_held(const DeviceBatch *batch, int64_t rows, const LinearSpec *spec, const void *s, const void *b,
                    const void *bias, void *y, int64_t pitch, cudaStream_t stream);
bool launch_dx_held(const DeviceBatch *batch, const LinearShape *shape, const float *const *ds, const void *const *lora_a,
                    void *dx, cudaStream_t stream);
