/* A whole safetensors file: its header is parsed and, where it is accepted, every tensor is read. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/memory.h"
#include "data/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void read_all(const TensorFiles *files, size_t size) {
    Error err;
    uint64_t total = 0;
    for (int64_t i = 0; i < tensors_count(files); i++) {
        const TensorInfo *tensor = tensors_get(files, i);
        if (tensors_find(files, tensor->name) != tensor) abort();
        total += tensor->bytes;
        if (total > size) abort();
        uint8_t *out = memory_alloc((size_t)tensor->bytes);
        if (tensors_read(files, tensor, 0, out, (size_t)tensor->bytes, 0, &err) != OK) abort();
        memory_free(out);
    }
    (void)tensors_metadata(files, "format");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    int fd = memfd_create("fuzz", 0);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size) abort();
    char path[64];
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    TensorFiles *files = NULL;
    Error err;
    if (tensors_open(&files, path, NULL, &err) == OK) read_all(files, size);
    tensors_close(files);
    (void)close(fd);
    return 0;
}
