/* What a run computes on: the CPU, or a device through a plugin (kernels/cuda/plugin.h).
 *
 *   cpu    the CPU's kernels
 *   cuda   libnibble_cuda.so, or a failure that says what is missing
 *   auto   cuda where it can be had, else the CPU with one line that says why
 *   emu    libnibble_emu.so: the CUDA kernels on an emulated device, for tests
 */
#ifndef NIBBLE_TRAIN_DEVICE_H
#define NIBBLE_TRAIN_DEVICE_H

#include <stddef.h>

#include "core/error.h"
#include "kernels/ops.h"

typedef struct DevicePlugin DevicePlugin;

typedef struct Device {
    Backend backend;
    void *context; /* for Exec.device; NULL on the CPU */
    const DevicePlugin *plugin;
    char name[128];   /* "cpu", "cuda: NVIDIA H100 80GB HBM3", "emu: ..." */
    char reason[600]; /* auto on the CPU: why there is no other device; else empty */
    int absent;       /* because there is no plugin: nobody expects another device */
} Device;

Status device_check_name(const char *name, Error *err);
/* name NULL: cpu. cpu_variant: forced CPU kernels, or NULL. Overwrites *device. */
Status device_open(Device *device, const char *name, const char *cpu_variant, Error *err);
/* Only the backend, whose plan entries need no device: nothing is opened, no other entry may be called. auto is cpu here. */
Status device_for_plan(Device *device, const char *name, const char *cpu_variant, Error *err);
void device_close(Device *device); /* all zero is fine */
/* Bytes that are free there; on the CPU what this process may still take. */
Status device_memory_left(const Device *device, size_t *bytes, Error *err);

#endif
