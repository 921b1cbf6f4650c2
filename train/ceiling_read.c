/* The memory's read bandwidth: sums of a buffer that no cache holds. */
#include <string.h>
#include <unistd.h>

#include "core/text.h"
#include "train/ceiling.h"

#define LEAST ((size_t)512 << 20)
#define MOST ((size_t)2 << 30)
#define PART ((size_t)1 << 20) /* what a thread takes at once: long runs of one thread, even ends */

typedef uint64_t Line __attribute__((vector_size(64), may_alias));

typedef struct Reading {
    const uint8_t *from;
    _Atomic uint64_t sum; /* so that nothing is left out */
} Reading;

/* Four lines a turn into four sums: what bounds it is the memory, in the widest registers that there are. */
static inline __attribute__((always_inline)) void read_part(Reading *reading, int64_t item) {
    const Line *line = (const void *)(reading->from + (size_t)item * PART);
    Line sum[4] = {{0}};
    for (size_t i = 0; i < PART / sizeof *line; i += 4)
        for (int j = 0; j < 4; j++)
            sum[j] += line[i + (size_t)j];
    sum[0] += sum[1] + sum[2] + sum[3];
    for (int lane = 0; lane < 8; lane++)
        reading->sum += sum[0][lane];
}

static void read_plain(void *context, int64_t item, int worker) {
    (void)worker;
    read_part(context, item);
}

#ifdef __x86_64__
__attribute__((target("avx512f"))) static void read_512(void *context, int64_t item, int worker) {
    (void)worker;
    read_part(context, item);
}
__attribute__((target("avx2"))) static void read_256(void *context, int64_t item, int worker) {
    (void)worker;
    read_part(context, item);
}
static PoolWork *reader(void) {
    if (__builtin_cpu_supports("avx512f")) return read_512;
    return __builtin_cpu_supports("avx2") ? read_256 : read_plain;
}
#else
static PoolWork *reader(void) {
    return read_plain;
}
#endif

Status ceiling_memory(Arena *buffer, Error *err) {
    long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
    size_t bytes = cache > 0 ? 8 * (size_t)cache : LEAST, left = memory_available() / 8;
    bytes = bytes < LEAST ? LEAST : bytes > MOST ? MOST : bytes;
    if (bytes > left) bytes = left;
    bytes = bytes / PART * PART;
    if (bytes == 0) FAIL("the read bandwidth cannot be measured: %zu bytes of memory are left for it", left);
    TRY(arena_create(buffer, "read bandwidth", bytes, err));
    memset(buffer->base, 1, bytes);
    return OK;
}

double ceiling_read(Pool *pool, const Arena *buffer) {
    Reading reading = {.from = buffer->base};
    double begin = clock_seconds();
    pool_run(pool, reader(), &reading, (int64_t)(buffer->capacity / PART));
    return (double)buffer->capacity / (clock_seconds() - begin);
}
