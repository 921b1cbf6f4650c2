#include "train/device.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/memory.h"
#include "kernels/cuda/plugin.h"

Status device_check_name(const char *name, Error *err) {
    static const char *const names[] = {"auto", "cpu", "cuda", "emu"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(name, names[i]) == 0) return OK;
    FAIL_USAGE("--device: want auto, cpu, cuda or emu, got \"%.60s\"", name);
}

/* Beside the program, or where `make install` puts it; NIBBLE_PLUGINS names another folder. */
static void *find_library(const char *name, char *tried, size_t capacity) {
    char program[4096], path[4352];
    const char *folder = getenv("NIBBLE_PLUGINS");
    tried[0] = 0;
    ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    program[length < 0 ? 0 : length] = 0;
    char *slash = strrchr(program, '/');
    if (slash != NULL) *slash = 0;
    const char *const places[][2] = {{folder, ""}, {program, ""}, {program, "/../lib/nibble"}, {program, "/../lib"}};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        if (places[i][0] == NULL) continue;
        (void)snprintf(path, sizeof path, "%.4000s%s/%s", places[i][0], places[i][1], name);
        if (folder == NULL && access(path, F_OK) != 0) continue;
        void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL); /* stays: CUDA does not like to be unloaded */
        if (library != NULL) return library;
        const char *why = dlerror();
        (void)snprintf(tried, capacity, "%.400s", why != NULL ? why : path);
        return NULL;
    }
    return NULL;
}

static Status load(Device *device, const char *name, Error *err) {
    char library_name[64], why[512];
    (void)snprintf(library_name, sizeof library_name, "libnibble_%s.so", name);
    void *library = find_library(library_name, why, sizeof why);
    device->absent = library == NULL && why[0] == 0;
    if (library == NULL)
        FAIL("device %s: %s %s%s%s; `make %s` builds it where the CUDA toolkit is", name, library_name,
             why[0] != 0 ? "cannot be loaded (" : "is not there", why, why[0] != 0 ? ")" : "", name);
    device->plugin = dlsym(library, DEVICE_PLUGIN_SYMBOL);
    if (device->plugin == NULL)
        FAIL("device %s: %s does not export %s: it is no plugin of nibble's", name, library_name, DEVICE_PLUGIN_SYMBOL);
    if (device->plugin->version != DEVICE_PLUGIN_VERSION || strcmp(device->plugin->build_id, NIBBLE_DEVICE_ID) != 0)
        FAIL("device %s: %s is of another build than this program; build both with `make all %s`", name, library_name, name);
    device->plugin->install(&device->backend);
    return OK;
}

static Status load_and_open(Device *device, const char *name, Error *err) {
    char own[96];
    TRY(load(device, name, err));
    TRY(device->plugin->open(0, &device->context, own, sizeof own, err));
    (void)snprintf(device->name, sizeof device->name, "%s: %s", name, own);
    return OK;
}

Status device_open(Device *device, const char *name, const char *cpu_variant, Error *err) {
    memset(device, 0, sizeof *device);
    if (name == NULL) name = "cpu";
    TRY(device_check_name(name, err));
    TRY(cpu_backend(&device->backend, cpu_variant, err));
    (void)snprintf(device->name, sizeof device->name, "cpu");
    if (strcmp(name, "cpu") == 0) return OK;
    if (strcmp(name, "auto") != 0) return load_and_open(device, name, err);
    Device cpu = *device;
    Error why = {0};
    if (load_and_open(device, "cuda", &why) == OK) return OK;
    int absent = device->absent;
    *device = cpu;
    device->absent = absent;
    (void)snprintf(device->reason, sizeof device->reason, "%.590s", why.text);
    return OK;
}

Status device_for_plan(Device *device, const char *name, const char *cpu_variant, Error *err) {
    TRY(device_open(device, "cpu", cpu_variant, err));
    if (name == NULL || strcmp(name, "cpu") == 0 || strcmp(name, "auto") == 0) return OK;
    return load(device, name, err);
}

void device_close(Device *device) {
    if (device->context != NULL) device->plugin->close(device->context);
    memset(device, 0, sizeof *device);
}

Status device_memory_left(const Device *device, size_t *bytes, Error *err) {
    Exec exec = {.device = device->context};
    size_t total;
    if (device->backend.on_device) return device->backend.memory_left(&exec, bytes, &total, err);
    *bytes = memory_available();
    return OK;
}
