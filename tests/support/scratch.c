#include "tests/support/scratch.h"

#include <stdlib.h>

#include "core/file.h"
#include "core/memory.h"
#include "tests/support/compare.h"

static char folder[] = "/tmp/nibble-test-XXXXXX";

int scratch_make(void **state) {
    (void)state;
    return mkdtemp(folder) == NULL;
}

int scratch_remove(void **state) {
    (void)state;
    return folder_remove(folder, NULL) != OK;
}

const char *scratch_folder(void) {
    return folder;
}

char *scratch_path(const char *name) {
    return path_join(folder, name);
}

void scratch_write(const char *name, const void *bytes, size_t length) {
    Error err;
    char *path = scratch_path(name);
    assert_ok(file_write_atomic(path, bytes, length, &err), &err);
    memory_free(path);
}
