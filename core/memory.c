#include "core/memory.h"

#include "core/cgroup.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static _Atomic int forbidden; /* process-wide by nature: it guards the process's allocator */

void memory_forbid(int delta) {
    atomic_fetch_add(&forbidden, delta);
}

static void check_allowed(const char *what) {
    if (atomic_load_explicit(&forbidden, memory_order_relaxed) > 0) {
        fprintf(stderr, "nibble: internal error: %s inside a training step\n", what);
        abort();
    }
}

static void *checked(void *pointer, size_t bytes) {
    if (pointer == NULL) {
        fprintf(stderr, "nibble: out of memory: %zu bytes refused by the system\n", bytes);
        abort();
    }
    return pointer;
}

void *memory_alloc(size_t bytes) {
    check_allowed("malloc");
    return checked(malloc(bytes ? bytes : 1), bytes);
}

void *memory_calloc(size_t count, size_t size) {
    check_allowed("calloc");
    return checked(calloc(count ? count : 1, size ? size : 1), count * size);
}

void *memory_calloc_aligned(size_t alignment, size_t size) {
    check_allowed("aligned_alloc");
    size_t bytes = (size / alignment + 1) * alignment; /* a multiple, as C11 asked for at first */
    return memset(checked(aligned_alloc(alignment, bytes), bytes), 0, bytes);
}

void *memory_resize(void *old, size_t bytes) {
    check_allowed("realloc");
    return checked(realloc(old, bytes ? bytes : 1), bytes);
}

char *memory_strdup(const char *text) {
    size_t bytes = strlen(text) + 1;
    return memcpy(memory_alloc(bytes), text, bytes);
}

char *memory_format(const char *format, ...) {
    va_list args;
    va_start(args, format);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    size_t bytes = (size_t)(n < 0 ? 0 : n) + 1;
    char *out = memory_alloc(bytes);
    out[0] = 0;
    va_start(args, format);
    (void)vsnprintf(out, bytes, format, args);
    va_end(args);
    return out;
}

void memory_free(void *pointer) {
    free(pointer);
}

Status arena_create(Arena *arena, const char *name, size_t capacity, Error *err) {
    check_allowed("arena_create");
    memset(arena, 0, sizeof *arena);
    arena->name = name;
    if (capacity > SIZE_MAX / 2) FAIL("%s: cannot reserve %zu bytes of memory", name, capacity);
    capacity = arena_align(capacity ? capacity : 1);
    void *base = mmap(NULL, capacity, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) FAIL("%s: cannot reserve %zu bytes of memory", name, capacity);
    if (capacity >= (size_t)4 << 20) (void)madvise(base, capacity, MADV_HUGEPAGE);
    arena->base = base;
    arena->capacity = capacity;
    return OK;
}

void arena_count(Arena *arena, const char *name) {
    memset(arena, 0, sizeof *arena);
    arena->name = name;
    arena->capacity = SIZE_MAX / 2;
}

void arena_free(Arena *arena) {
    if (arena->base != NULL) (void)munmap(arena->base, arena->capacity);
    memset(arena, 0, sizeof *arena);
}

Status arena_drop(Arena *arena, Error *err) {
    if (arena->base == NULL) return OK;
    /* a fresh mapping over the old one: its pages are gone at once */
    if (mmap(arena->base, arena->capacity, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) ==
        MAP_FAILED)
        FAIL("%s: cannot give %zu bytes of memory back", arena->name, arena->capacity);
    return OK;
}

Status arena_take(Arena *arena, size_t bytes, void **out, Error *err) {
    size_t size = arena_align(bytes);
    if (size < bytes || size > arena->capacity - arena->used)
        FAIL("%s: %zu more bytes do not fit, %zu of %zu are used; the plan was wrong", arena->name, bytes, arena->used,
             arena->capacity);
    *out = arena->base == NULL ? NULL : arena->base + arena->used;
    arena->used += size;
    if (arena->used > arena->high_water) arena->high_water = arena->used;
    return OK;
}

/* The kB behind `key` in a file of "key: value kB" lines, as bytes; 0 when it is not there. */
static size_t read_field(const char *path, const char *key) {
    FILE *file = fopen(path, "re");
    if (file == NULL) return 0;
    char line[256];
    size_t value = 0, length = strlen(key);
    while (fgets(line, sizeof line, file) != NULL)
        if (strncmp(line, key, length) == 0) {
            value = (size_t)strtoull(line + length, NULL, 10);
            break;
        }
    fclose(file);
    return value * 1024u;
}

size_t memory_resident(void) {
    return read_field("/proc/self/status", "VmRSS:");
}

size_t memory_resident_peak(void) {
    return read_field("/proc/self/status", "VmHWM:");
}

size_t memory_available(void) {
    size_t machine = read_field("/proc/meminfo", "MemAvailable:");
    size_t group = cgroup_memory_left();
    if (machine == 0) machine = SIZE_MAX;
    return machine < group ? machine : group;
}
