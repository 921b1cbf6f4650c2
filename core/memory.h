/* Checked sizes and the arena.
 *
 *   base                    used             high_water            capacity
 *    |-- live allocations ---|-- free, was used --|-- never touched --|
 *
 * An arena has one lifetime: everything in it goes at once. A counting arena
 * (arena_count) has no memory: it hands out NULL and only measures, so a plan
 * made with it equals the arena that is made from the plan. Allocations are
 * aligned to ARENA_ALIGN and are not cleared.
 *
 * Between the start of a micro-batch and the end of the optimizer step nothing
 * may call malloc. `memory_forbid(1)` turns every allocation made through the
 * functions here into an abort with a message; tests also count malloc itself.
 */
#ifndef NIBBLE_CORE_MEMORY_H
#define NIBBLE_CORE_MEMORY_H

#include <stddef.h>
#include <stdint.h>

#include "core/error.h"

#define ARENA_ALIGN 64u

typedef struct Arena {
    const char *name;
    uint8_t *base; /* NULL for a counting arena */
    size_t capacity;
    size_t used;
    size_t high_water;
} Arena;

/* Pages come from mmap (huge pages advised), so untouched parts cost nothing. */
Status arena_create(Arena *arena, const char *name, size_t capacity, Error *err);
void arena_count(Arena *arena, const char *name);
void arena_free(Arena *arena);
/* Gives the memory back and keeps the addresses: they can be computed with, and no longer read or written. */
Status arena_drop(Arena *arena, Error *err);

/* Overwrites *out with `bytes` of uncleared memory (NULL from a counting arena). */
Status arena_take(Arena *arena, size_t bytes, void **out, Error *err);
static inline size_t arena_mark(const Arena *arena) {
    return arena->used;
}
static inline void arena_reset(Arena *arena, size_t mark) {
    arena->used = mark;
}

/* Rounds up to ARENA_ALIGN. */
static inline size_t arena_align(size_t bytes) {
    return (bytes + ARENA_ALIGN - 1u) & ~(size_t)(ARENA_ALIGN - 1u);
}

/* malloc family for everything outside of the step: abort with a message when the machine is out of memory or when
 * allocation is forbidden. Sizes that come from files are checked before they get here. */
void *memory_alloc(size_t bytes); /* uncleared; 0 bytes gives a valid pointer */
void *memory_calloc(size_t count, size_t size);
/* Cleared. alignment: a power of two, for a type that wants more than malloc gives (a Hash, for one); memory_free. */
void *memory_calloc_aligned(size_t alignment, size_t size);
void *memory_resize(void *old, size_t bytes);
char *memory_strdup(const char *text);
char *memory_format(const char *format, ...) __attribute__((format(printf, 1, 2)));
void memory_free(void *pointer);

/* While forbidden > 0 any memory_* allocation or arena_create aborts. Calls nest: +1 and -1. */
void memory_forbid(int delta);

/* a*b and a+b on sizes; non-zero when the result does not fit. */
static inline int size_mul(size_t a, size_t b, size_t *out) {
    return __builtin_mul_overflow(a, b, out);
}
static inline int size_add(size_t a, size_t b, size_t *out) {
    return __builtin_add_overflow(a, b, out);
}

/* Current and peak resident bytes of this process, from /proc/self/status (0 where that does not exist). */
size_t memory_resident(void);
size_t memory_resident_peak(void);
/* Bytes this process may still take: the least of MemAvailable and what the control group leaves (SIZE_MAX: unknown). */
size_t memory_available(void);

#endif
