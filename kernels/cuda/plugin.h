/* The table that libnibble_cuda.so and libnibble_emu.so export under the name nibble_device_plugin.
 *
 * Both are made from kernels/cuda/: the first by nvcc with the CUDA runtime and cuBLAS, the second by g++ with the emulator of
 * tests/cuda_emu, for machines without a GPU. The program itself links neither. No CUDA type is named here.
 */
#ifndef NIBBLE_KERNELS_CUDA_PLUGIN_H
#define NIBBLE_KERNELS_CUDA_PLUGIN_H

#include <stddef.h>
#include <stdint.h>

#include "core/error.h"
#include "kernels/ops.h"

#define DEVICE_PLUGIN_VERSION 1u
#define DEVICE_PLUGIN_SYMBOL "nibble_device_plugin"

/* Of the headers that both sides are made from: a plugin of another build is refused. */
#ifndef NIBBLE_DEVICE_ID
#define NIBBLE_DEVICE_ID "unknown"
#endif

typedef struct DevicePlugin {
    uint32_t version; /* first, for all times */
    const char *build_id;
    /* Opens device `index`: *context is what Exec.device must be, name what people call it. Refuses devices that cannot
     * compute in BF16 (older than sm_80), and says what is missing where there is none. */
    Status (*open)(int index, void **context, char *name, size_t capacity, Error *err);
    void (*close)(void *context);
    /* Overwrites the entries of a CPU backend with the device's; those that it does not have refuse in their plan. */
    void (*install)(Backend *backend);
} DevicePlugin;

#endif
