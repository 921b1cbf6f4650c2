/* Arenas where the backend wants them, and copies of host arenas there.
 *
 *   host    | master | m | v | gradient | copy |      what loading, checkpoints and exports see
 *   mirror  | master | m | v | gradient | copy |      what the entries of the backend see, at the same offsets
 *
 * On the CPU there is no mirror (base NULL): both are the host's arena, and every function here is free.
 */
#ifndef NIBBLE_TRAIN_DEVICE_MEMORY_H
#define NIBBLE_TRAIN_DEVICE_MEMORY_H

#include "core/memory.h"
#include "kernels/ops.h"

/* An arena for the backend's entries: the device's memory, or arena_create on the CPU. */
Status device_arena_create(Arena *arena, const Backend *backend, const Exec *exec, const char *name, size_t bytes, Error *err);
void device_arena_free(Arena *arena, const Backend *backend, const Exec *exec);

/* A copy of the host's arena, of the same capacity. Overwrites *mirror; all zero on the CPU. */
Status mirror_create(Arena *mirror, const Arena *host, const Backend *backend, const Exec *exec, Error *err);
/* The bytes in use, host to device and back. */
Status mirror_store(const Arena *mirror, const Arena *host, const Backend *backend, const Exec *exec, Error *err);
Status mirror_fetch(const Arena *mirror, Arena *host, const Backend *backend, const Exec *exec, Error *err);
/* Where the entries find what the host has at `pointer` (NULL stays NULL). */
static inline void *mirror_at(const Arena *mirror, const Arena *host, const void *pointer) {
    if (mirror->base == NULL || pointer == NULL) return (void *)(uintptr_t)pointer;
    return mirror->base + ((const uint8_t *)pointer - host->base);
}

/* Host memory that a device reads and copies from as it lies (Backend.pinned_take). The backend has memory of its own. */
Status pinned_arena_create(Arena *arena, const Backend *backend, const Exec *exec, const char *name, size_t bytes, Error *err);
void pinned_arena_free(Arena *arena, const Backend *backend, const Exec *exec);

/* Zeroes `bytes` where the entries find them. */
Status device_clear(void *memory, size_t bytes, const Backend *backend, const Exec *exec, Error *err);

#endif
