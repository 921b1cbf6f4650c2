/* One folder under /tmp for a test program: made and removed by cmocka's group setup and teardown. */
#ifndef NIBBLE_TESTS_SUPPORT_SCRATCH_H
#define NIBBLE_TESTS_SUPPORT_SCRATCH_H

#include <stddef.h>

int scratch_make(void **state);
int scratch_remove(void **state);
/* The folder; a path in it (memory_free). */
const char *scratch_folder(void);
char *scratch_path(const char *name);
/* A file in it, written at once. */
void scratch_write(const char *name, const void *bytes, size_t length);

#endif
