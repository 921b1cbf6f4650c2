#include "train/device_memory.h"

#include <string.h>

Status device_arena_create(Arena *arena, const Backend *backend, const Exec *exec, const char *name, size_t bytes, Error *err) {
    if (!backend->on_device) return arena_create(arena, name, bytes, err);
    *arena = (Arena){.name = name};
    size_t capacity = arena_align(bytes ? bytes : 1);
    void *base;
    TRY(backend->memory_take(exec, name, capacity, &base, err));
    arena->base = base;
    arena->capacity = capacity;
    return OK;
}

void device_arena_free(Arena *arena, const Backend *backend, const Exec *exec) {
    if (!backend->on_device) {
        arena_free(arena);
        return;
    }
    if (arena->base != NULL) backend->memory_give(exec, arena->base);
    memset(arena, 0, sizeof *arena);
}

Status pinned_arena_create(Arena *arena, const Backend *backend, const Exec *exec, const char *name, size_t bytes, Error *err) {
    *arena = (Arena){.name = name};
    size_t capacity = arena_align(bytes ? bytes : 1);
    void *base;
    TRY(backend->pinned_take(exec, name, capacity, &base, err));
    arena->base = base;
    arena->capacity = capacity;
    return OK;
}

void pinned_arena_free(Arena *arena, const Backend *backend, const Exec *exec) {
    if (arena->base != NULL) backend->pinned_give(exec, arena->base);
    memset(arena, 0, sizeof *arena);
}

Status mirror_create(Arena *mirror, const Arena *host, const Backend *backend, const Exec *exec, Error *err) {
    memset(mirror, 0, sizeof *mirror);
    if (!backend->on_device || host->base == NULL) return OK;
    TRY(device_arena_create(mirror, backend, exec, host->name, host->capacity, err));
    mirror->used = host->used;
    return mirror_store(mirror, host, backend, exec, err);
}

Status mirror_store(const Arena *mirror, const Arena *host, const Backend *backend, const Exec *exec, Error *err) {
    return mirror->base == NULL ? OK : backend->copy_in(exec, mirror->base, host->base, host->used, err);
}

Status mirror_fetch(const Arena *mirror, Arena *host, const Backend *backend, const Exec *exec, Error *err) {
    return mirror->base == NULL ? OK : backend->copy_out(exec, host->base, mirror->base, host->used, err);
}

Status device_clear(void *memory, size_t bytes, const Backend *backend, const Exec *exec, Error *err) {
    if (backend->on_device) return backend->fill(exec, memory, 0, bytes, err);
    memset(memory, 0, bytes);
    return OK;
}
