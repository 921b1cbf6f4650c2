/* A whole safetensors file: its header is parsed and, where it is accepted, every tensor is read. An input that starts with
 * '{' is also taken as model.safetensors.index.json of a folder with the shards "a" (tensor x) and "b" (tensor y).
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/file.h"
#include "core/memory.h"
#include "data/safetensors.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char folder[] = "/tmp/nibble-fuzz-safetensors-XXXXXX";

static void write_file(const char *name, const void *bytes, size_t length) {
    char *path = path_join(folder, name);
    FILE *file = fopen(path, "wb");
    if (file == NULL || fwrite(bytes, 1, length, file) != length || fclose(file) != 0) abort();
    memory_free(path);
}

static void write_shard(const char *name, const char *tensor) {
    char bytes[128] = {0};
    int n = snprintf(bytes + 8, sizeof bytes - 8, "{\"%s\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", tensor);
    bytes[0] = (char)n;
    write_file(name, bytes, 8 + (size_t)n + 1);
}

static void remove_folder(void) {
    Error err;
    (void)folder_remove(folder, &err);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc;
    (void)argv;
    if (mkdtemp(folder) == NULL) abort();
    write_shard("a", "x");
    write_shard("b", "y");
    return atexit(remove_folder);
}

static void read_all(const TensorFiles *files, uint64_t most) {
    Error err;
    uint64_t total = 0;
    for (int64_t i = 0; i < tensors_count(files); i++) {
        const TensorInfo *tensor = tensors_get(files, i);
        if (tensors_find(files, tensor->name) != tensor) abort();
        total += tensor->bytes;
        if (total > most) abort();
        uint8_t *out = memory_alloc((size_t)tensor->bytes);
        if (tensors_read(files, tensor, 0, out, (size_t)tensor->bytes, 0, &err) != OK) abort();
        memory_free(out);
    }
    (void)tensors_metadata(files, "format");
}

static void try_open(const char *path, uint64_t most) {
    TensorFiles *files = NULL;
    Error err;
    if (tensors_open(&files, path, NULL, &err) == OK) read_all(files, most);
    tensors_close(files);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    int fd = memfd_create("fuzz", 0);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size) abort();
    char path[64];
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    try_open(path, size);
    (void)close(fd);
    if (size > 0 && data[0] == '{') {
        write_file("model.safetensors.index.json", data, size);
        try_open(folder, 2);
    }
    return 0;
}
