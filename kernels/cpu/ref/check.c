/* Sums of squares and the search for NaN and Inf. */
#include "kernels/cpu/ref/ref.h"

#include <math.h>

/* The number of parts is fixed, so the order of additions is the same on any number of threads. */
#define PARTS 64

typedef struct SumWork {
    const float *x;
    int64_t count;
    double part[PARTS];
} SumWork;

static void sum_part(void *context, int64_t item, int worker) {
    (void)worker;
    SumWork *work = context;
    int64_t length = (work->count + PARTS - 1) / PARTS;
    int64_t end = (item + 1) * length < work->count ? (item + 1) * length : work->count;
    double sum = 0.0;
    for (int64_t i = item * length; i < end; i++)
        sum += (double)work->x[i] * (double)work->x[i];
    work->part[item] = sum;
}

static double sum_squares(const Exec *exec, int64_t count, const float *x) {
    SumWork work = {.x = x, .count = count};
    pool_run(exec->pool, sum_part, &work, PARTS);
    double sum = 0.0;
    for (int i = 0; i < PARTS; i++)
        sum += work.part[i];
    return sum;
}

typedef struct FindWork {
    DType act;
    const void *values;
    int64_t count;
    int64_t found[PARTS];
} FindWork;

static void find_part(void *context, int64_t item, int worker) {
    (void)worker;
    FindWork *work = context;
    int64_t length = (work->count + PARTS - 1) / PARTS;
    int64_t end = (item + 1) * length < work->count ? (item + 1) * length : work->count;
    work->found[item] = -1;
    for (int64_t i = item * length; i < end; i++) {
        if (!isfinite(ref_load(work->act, work->values, i))) {
            work->found[item] = i;
            return;
        }
    }
}

static int64_t find_nonfinite(const Exec *exec, const void *activation, int64_t rows, int64_t columns) {
    FindWork work = {.act = exec->config.act, .values = activation, .count = rows * columns};
    pool_run(exec->pool, find_part, &work, PARTS);
    for (int i = 0; i < PARTS; i++) {
        if (work.found[i] >= 0) return work.found[i];
    }
    return -1;
}

void ref_check(Backend *backend) {
    backend->sum_squares = sum_squares;
    backend->find_nonfinite = find_nonfinite;
}
