/* A pool of threads that runs numbered, independent items.
 *
 * Item i computes the same values whichever thread takes it, so results do not
 * depend on the number of threads. Reductions across items are done afterwards
 * by the caller in index order. Workers spin briefly, then sleep.
 */
#ifndef NIBBLE_CORE_POOL_H
#define NIBBLE_CORE_POOL_H

#include <stddef.h>
#include <stdint.h>

#include "core/error.h"

typedef struct Pool Pool;

/* item in [0, count); worker in [0, pool_threads). */
typedef void PoolWork(void *context, int64_t item, int worker);

/* threads = 0: the processors that affinity and the cgroup's quota leave to this process. */
Status pool_create(Pool **pool, int threads, Error *err);
void pool_free(Pool *pool);         /* NULL is fine */
int pool_threads(const Pool *pool); /* 1 for NULL */
/* Bytes of a processor's own second-level cache, as the machine says; 1 MiB where it does not, and for NULL. Blocks are cut for it,
 * and no result depends on it (a test may have it be something else). */
size_t pool_cache(const Pool *pool);
void pool_assume_cache(Pool *pool, size_t bytes);
/* Runs work(context, i, worker) for every i, and returns when all are done. The caller is worker 0. Allocates nothing.
 * Not reentrant: an item must not call pool_run on the same pool. A NULL pool runs in the caller. */
void pool_run(Pool *pool, PoolWork *work, void *context, int64_t count);

#endif
