/* How a job starts and ends
 *
 *   gate (one atomic word):  [ generation : 32 | open : 1 | inside : 31 ]
 *
 * The caller writes the job's fields, then sets the gate to "next generation, open, nobody inside". A worker enters by
 * adding one to an open gate of a generation that it has not seen, takes items until there are none, and leaves by
 * subtracting one. The caller works too; when the items are gone it closes the gate and waits until nobody is inside. So a
 * worker that wakes late finds a closed gate and touches nothing, and a short job never waits for a sleeper to wake.
 */
#include "core/pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "core/cgroup.h"
#include "core/memory.h"
#include "core/text.h"

#define POOL_MOST 1024
#define CACHE_ASSUMED 1048576
#define CACHE_LEAST 131072 /* what is less or more is not a second-level cache that a processor has */
#define CACHE_MOST 67108864
#define GATE_OPEN ((uint64_t)1 << 31)
#define GATE_INSIDE (GATE_OPEN - 1)
#define GATE_GENERATION ((uint64_t)1 << 32)
/* Longer than the gap between two operations of a step, shorter than a time slice. */
#define SPIN_SECONDS 30e-6

typedef struct Worker {
    Pool *pool;
    pthread_t thread;
    int number;
} Worker;

struct Pool {
    _Atomic uint64_t gate;
    char apart_gate[64];  /* spinners read the gate while workers write the counter */
    _Atomic int64_t next; /* first item that nobody took yet */
    char apart_next[64];
    PoolWork *work;
    void *context;
    int64_t count;
    int64_t grab; /* items taken at once */
    int threads;  /* with the caller */
    int started;  /* workers that exist */
    size_t cache;
    Worker *workers;
    pthread_mutex_t mutex; /* only for sleeping */
    pthread_cond_t wake;   /* the gate opened, or the pool stops */
    pthread_cond_t empty;  /* the last worker left while the caller sleeps */
    _Atomic int sleeping;  /* workers in wake */
    _Atomic int waiting;   /* the caller is in empty */
    _Atomic int stop;
};

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Whether the spinner should go on; looks at the clock every 32 turns. */
static int spin(unsigned *turn, double *until) {
    relax();
    if (++*turn % 32 != 0) return 1;
    double now = clock_seconds();
    if (*turn == 32) *until = now + SPIN_SECONDS;
    return now < *until;
}

static void take_items(Pool *pool, int worker) {
    int64_t count = pool->count, grab = pool->grab;
    for (;;) {
        int64_t first = atomic_fetch_add_explicit(&pool->next, grab, memory_order_relaxed);
        if (first >= count) return;
        int64_t end = count - first < grab ? count : first + grab;
        for (int64_t item = first; item < end; item++)
            pool->work(pool->context, item, worker);
    }
}

static int gate_is_new(uint64_t gate, uint64_t seen) {
    return (gate & GATE_OPEN) != 0 && gate >> 32 != seen;
}

/* Waits for an open gate of another generation than *seen and enters; 0 when the pool stops. */
static int enter(Pool *pool, uint64_t *seen) {
    unsigned turn = 0;
    double until = 0.0;
    for (;;) {
        uint64_t gate = atomic_load(&pool->gate);
        while (gate_is_new(gate, *seen))
            if (atomic_compare_exchange_weak(&pool->gate, &gate, gate + 1)) {
                *seen = gate >> 32;
                return 1;
            }
        if (atomic_load(&pool->stop)) return 0;
        if (spin(&turn, &until)) continue;
        pthread_mutex_lock(&pool->mutex);
        atomic_fetch_add(&pool->sleeping, 1); /* before the last look at the gate: the opener looks the other way round */
        while (!gate_is_new(atomic_load(&pool->gate), *seen) && !atomic_load(&pool->stop))
            pthread_cond_wait(&pool->wake, &pool->mutex);
        atomic_fetch_sub(&pool->sleeping, 1);
        pthread_mutex_unlock(&pool->mutex);
        turn = 0;
    }
}

static void leave(Pool *pool) {
    uint64_t before = atomic_fetch_sub(&pool->gate, 1);
    if ((before & GATE_INSIDE) == 1 && atomic_load(&pool->waiting)) {
        pthread_mutex_lock(&pool->mutex);
        pthread_cond_signal(&pool->empty);
        pthread_mutex_unlock(&pool->mutex);
    }
}

static void *worker_main(void *argument) {
    Worker *worker = argument;
    uint64_t seen = 0;
    while (enter(worker->pool, &seen)) {
        take_items(worker->pool, worker->number);
        leave(worker->pool);
    }
    return NULL;
}

/* Processors that affinity and quota leave to this process. */
static int default_threads(void) {
    long configured = sysconf(_SC_NPROCESSORS_CONF);
    int processors = configured > CPU_SETSIZE ? (int)configured : CPU_SETSIZE;
    cpu_set_t *set = CPU_ALLOC((size_t)processors);
    int allowed = 0;
    if (set != NULL && sched_getaffinity(0, CPU_ALLOC_SIZE((size_t)processors), set) == 0)
        allowed = CPU_COUNT_S(CPU_ALLOC_SIZE((size_t)processors), set);
    if (set != NULL) CPU_FREE(set);
    if (allowed < 1) allowed = (int)sysconf(_SC_NPROCESSORS_ONLN);
    double quota = cgroup_processors();
    if (quota > 0.0 && quota < allowed) allowed = (int)(quota + 0.99); /* a broken processor is worth a thread */
    return allowed < 1 ? 1 : allowed > POOL_MOST ? POOL_MOST : allowed;
}

/* Signals are the main thread's: workers start with all of them blocked. */
static Status start_workers(Pool *pool, Error *err) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int code = 0;
    for (int i = 1; i < pool->threads && code == 0; i++) {
        Worker *worker = &pool->workers[i - 1];
        *worker = (Worker){.pool = pool, .number = i};
        code = pthread_create(&worker->thread, NULL, worker_main, worker);
        if (code == 0) pool->started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (code != 0)
        FAIL("cannot start thread %d of %d: %s; try fewer with --threads", pool->started + 2, pool->threads, strerror(code));
    return OK;
}

/* Of one processor, also where several share it. */
static size_t second_level_cache(void) {
    long bytes = -1;
#ifdef _SC_LEVEL2_CACHE_SIZE
    bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    return bytes < CACHE_LEAST || bytes > CACHE_MOST ? CACHE_ASSUMED : (size_t)bytes;
}

Status pool_create(Pool **pool_out, int threads, Error *err) {
    *pool_out = NULL;
    if (threads < 0 || threads > POOL_MOST) FAIL("threads: want 1 to %d (0: as many as there are), got %d", POOL_MOST, threads);
    if (threads == 0) threads = default_threads();
    Pool *pool = memory_calloc(1, sizeof *pool);
    pool->threads = threads;
    pool->cache = second_level_cache();
    pool->workers = memory_calloc((size_t)threads, sizeof *pool->workers);
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pthread_cond_init(&pool->empty, NULL);
    Status status = start_workers(pool, err);
    if (status != OK) {
        pool_free(pool);
        return status;
    }
    *pool_out = pool;
    return OK;
}

void pool_free(Pool *pool) {
    if (pool == NULL) return;
    pthread_mutex_lock(&pool->mutex);
    atomic_store(&pool->stop, 1);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
    for (int i = 0; i < pool->started; i++)
        pthread_join(pool->workers[i].thread, NULL);
    pthread_cond_destroy(&pool->empty);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->mutex);
    memory_free(pool->workers);
    memory_free(pool);
}

size_t pool_cache(const Pool *pool) {
    return pool == NULL ? CACHE_ASSUMED : pool->cache;
}

void pool_assume_cache(Pool *pool, size_t bytes) {
    pool->cache = bytes;
}

int pool_threads(const Pool *pool) {
    return pool == NULL ? 1 : pool->threads;
}

static void open_gate(Pool *pool) {
    uint64_t generation = (atomic_load(&pool->gate) >> 32) + 1;
    if (generation > UINT32_MAX || generation == 0) generation = 1; /* 0 is what a new worker has seen */
    atomic_store(&pool->gate, generation * GATE_GENERATION | GATE_OPEN);
    if (atomic_load(&pool->sleeping) == 0) return;
    pthread_mutex_lock(&pool->mutex);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
}

static void close_gate(Pool *pool) {
    uint64_t gate = atomic_fetch_and(&pool->gate, ~GATE_OPEN);
    unsigned turn = 0;
    double until = 0.0;
    while ((gate & GATE_INSIDE) != 0 && spin(&turn, &until))
        gate = atomic_load(&pool->gate);
    if ((gate & GATE_INSIDE) == 0) return;
    pthread_mutex_lock(&pool->mutex);
    atomic_store(&pool->waiting, 1);
    while ((atomic_load(&pool->gate) & GATE_INSIDE) != 0)
        pthread_cond_wait(&pool->empty, &pool->mutex);
    atomic_store(&pool->waiting, 0);
    pthread_mutex_unlock(&pool->mutex);
}

void pool_run(Pool *pool, PoolWork *work, void *context, int64_t count) {
    if (pool == NULL || pool->threads == 1 || count <= 1) {
        for (int64_t item = 0; item < count; item++)
            work(context, item, 0);
        return;
    }
    pool->work = work;
    pool->context = context;
    pool->count = count;
    pool->grab = count / ((int64_t)pool->threads * 32); /* fewer visits to the counter; the tail stays even */
    if (pool->grab < 1) pool->grab = 1;
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    open_gate(pool);
    take_items(pool, 0);
    close_gate(pool);
}
