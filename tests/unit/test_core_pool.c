#include "tests/unit/test_core.h"

#include <sched.h>
#include <stdatomic.h>

#include "core/philox.h"
#include "core/pool.h"
#include "core/text.h"

enum { MOST = 10007 };

typedef struct Job {
    _Atomic int taken[MOST];
    float out[MOST];
    _Atomic int bad_worker;
    int threads;
    uint64_t round;
} Job;

static void fill(void *context, int64_t item, int worker) {
    Job *job = context;
    if (worker < 0 || worker >= job->threads) atomic_store(&job->bad_worker, 1);
    atomic_fetch_add(&job->taken[item], 1);
    job->out[item] = random_uniform(job->round, RANDOM_TEST, 0, (uint64_t)item);
}

/* Every item once, the right values, and nothing beyond the count: for all numbers of threads and many counts on one pool. */
static void every_item_once(void **state) {
    (void)state;
    static Job job;
    const int64_t counts[] = {0, 1, 2, 3, 7, 64, 65, 1000, MOST};
    for (int threads = 1; threads <= 9; threads += 2) {
        Pool *pool;
        Error err;
        assert_int_equal(pool_create(&pool, threads, &err), OK);
        assert_int_equal(pool_threads(pool), threads);
        for (int repeat = 0; repeat < 20; repeat++)
            for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
                memset(&job, 0, sizeof job);
                job.threads = threads;
                job.round = (uint64_t)repeat;
                pool_run(pool, fill, &job, counts[c]);
                assert_int_equal(atomic_load(&job.bad_worker), 0);
                for (int64_t i = 0; i < MOST; i++) {
                    int inside = i < counts[c];
                    assert_int_equal(atomic_load(&job.taken[i]), inside);
                    float want = inside ? random_uniform(job.round, RANDOM_TEST, 0, (uint64_t)i) : 0.0f;
                    assert_true(job.out[i] == want);
                }
            }
        pool_free(pool);
    }
}

/* Short jobs back to back: what a late worker of one job might do to the next would show here. */
static void reuse_in_quick_succession(void **state) {
    (void)state;
    static Job job;
    Pool *pool;
    Error err;
    assert_int_equal(pool_create(&pool, 4, &err), OK);
    memset(&job, 0, sizeof job);
    job.threads = 4;
    enum { ROUNDS = 20000 };
    for (int round = 0; round < ROUNDS; round++)
        pool_run(pool, fill, &job, 1 + round % 5);
    for (int i = 0; i < 5; i++)
        assert_int_equal(atomic_load(&job.taken[i]), ROUNDS / 5 * (5 - i));
    assert_int_equal(atomic_load(&job.taken[5]), 0);
    pool_free(pool);
}

typedef struct Meeting {
    _Atomic int arrived;
    _Atomic int gave_up;
    int expected;
} Meeting;

/* Returns only when every item is being run at once, so each needs a thread of its own. */
static void meet(void *context, int64_t item, int worker) {
    (void)item, (void)worker;
    Meeting *meeting = context;
    atomic_fetch_add(&meeting->arrived, 1);
    double limit = clock_seconds() + 60.0;
    while (atomic_load(&meeting->arrived) < meeting->expected) {
        if (clock_seconds() > limit) {
            atomic_store(&meeting->gave_up, 1);
            return;
        }
        sched_yield();
    }
}

/* Between meetings the caller is busy for longer than workers spin, so that they are asleep at some of them. */
static void workers_really_run_beside_the_caller(void **state) {
    (void)state;
    Pool *pool;
    Error err;
    assert_int_equal(pool_create(&pool, 3, &err), OK);
    for (int round = 0; round < 200; round++) {
        Meeting meeting = {.expected = 3};
        pool_run(pool, meet, &meeting, 3);
        assert_int_equal(atomic_load(&meeting.arrived), 3);
        assert_int_equal(atomic_load(&meeting.gave_up), 0);
        double busy = clock_seconds() + (round % 2 ? 200e-6 : 0.0);
        while (clock_seconds() < busy) {
        }
    }
    pool_free(pool);
}

static void no_pool_runs_in_the_caller(void **state) {
    (void)state;
    static Job job;
    memset(&job, 0, sizeof job);
    job.threads = 1;
    pool_run(NULL, fill, &job, 10);
    for (int i = 0; i < 11; i++)
        assert_int_equal(atomic_load(&job.taken[i]), i < 10);
    assert_int_equal(atomic_load(&job.bad_worker), 0);
    assert_int_equal(pool_threads(NULL), 1);
    pool_free(NULL);
}

static void default_and_refused_numbers(void **state) {
    (void)state;
    Pool *pool;
    Error err;
    assert_int_equal(pool_create(&pool, 0, &err), OK);
    assert_true(pool_threads(pool) >= 1);
    pool_free(pool);
    assert_int_equal(pool_create(&pool, -1, &err), ERR_FAILED);
    assert_null(pool);
    assert_non_null(strstr(err.text, "got -1"));
    assert_int_equal(pool_create(&pool, 1025, &err), ERR_FAILED);
    assert_null(pool);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_item_once),
        cmocka_unit_test(reuse_in_quick_succession),
        cmocka_unit_test(workers_really_run_beside_the_caller),
        cmocka_unit_test(no_pool_runs_in_the_caller),
        cmocka_unit_test(default_and_refused_numbers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
