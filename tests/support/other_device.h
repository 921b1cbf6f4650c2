/* The device that NIBBLE_TEST_DEVICE names (emu, or cuda), for tests of what is not of the CPU alone. tests/e2e/emu.sh runs them so. */
#ifndef NIBBLE_TESTS_SUPPORT_OTHER_DEVICE_H
#define NIBBLE_TESTS_SUPPORT_OTHER_DEVICE_H

#include <stdlib.h>

#include "train/device.h"

static inline const char *other_device_name(void) {
    return getenv("NIBBLE_TEST_DEVICE"); /* NULL: the CPU */
}

/* The device and an Exec for it. On the CPU too: *exec then has no device. */
static inline Status other_device_open(Device *device, Exec *exec, DType act, Error *err) {
    TRY(device_open(device, other_device_name(), NULL, err));
    *exec = (Exec){.config = {.act = act, .threads = 1}, .device = device->context};
    return OK;
}

#endif
