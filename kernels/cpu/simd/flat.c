/* What runs over flat arrays: AdamW, sums of squares, the search for NaN and Inf. Plain loops that the compiler turns into
 * vectors; AdamW is computed in double as the reference does, and gives the reference's bits. */
#include <math.h>

#include "kernels/cpu/simd/entries.h"

#define PART 4096 /* elements of an item */
#define LANES 16  /* partial sums */

typedef struct AdamWork {
    DType act;
    int64_t count;
    float *master, *m, *v;
    const float *grad;
    void *copy;
    AdamStep step;
    double correction1, correction2_root;
} AdamWork;

SIMD_INLINE void adamw_loop(const AdamWork *w, int64_t first, int64_t count) {
    float *restrict master = w->master + first, *restrict m_state = w->m + first, *restrict v_state = w->v + first;
    const float *restrict grad = w->grad + first;
    const AdamStep step = w->step;
    const double keep = 1.0 - step.lr * step.weight_decay, rate = step.lr / w->correction1, root = w->correction2_root;
    for (int64_t i = 0; i < count; i++) {
        double g = step.clip * (double)grad[i];
        double p = (double)master[i] * keep;
        double m = step.beta1 * (double)m_state[i] + (1.0 - step.beta1) * g;
        double v = step.beta2 * (double)v_state[i] + (1.0 - step.beta2) * g * g;
        p -= rate * m / (sqrt(v) / root + step.epsilon);
        m_state[i] = (float)m;
        v_state[i] = (float)v;
        master[i] = (float)p;
    }
}

static void adamw_part(void *context, int64_t item, int worker) {
    (void)worker;
    const AdamWork *w = context;
    int64_t first = item * PART, end = least(w->count, first + PART);
    adamw_loop(w, first, end - first);
    if (w->copy == NULL) return;
    for (int64_t i = first; i < end; i += SIMD_WIDTH)
        vf_store_act(w->copy, w->act, i, end - i, vf_load_act(w->master, DTYPE_F32, i, end - i));
}

static void adamw(const Exec *exec, int64_t count, float *master, float *m, float *v, const float *grad, void *copy,
                  const AdamStep *step) {
    AdamWork work = {.act = exec->config.act,
                     .count = count,
                     .master = master,
                     .m = m,
                     .v = v,
                     .grad = grad,
                     .copy = copy,
                     .step = *step,
                     .correction1 = 1.0 - pow(step->beta1, (double)step->step),
                     .correction2_root = sqrt(1.0 - pow(step->beta2, (double)step->step))};
    pool_run(exec->pool, adamw_part, &work, (count + PART - 1) / PART);
}

/* The number of parts is fixed, so the order of additions is the same on any number of threads. */
#define PARTS 64

typedef struct SumWork {
    const float *x;
    int64_t count;
    double part[PARTS];
} SumWork;

static void sum_part(void *context, int64_t item, int worker) {
    (void)worker;
    SumWork *w = context;
    int64_t length = (w->count + PARTS - 1) / PARTS, i = item * length, end = least(w->count, i + length);
    double lane[LANES] = {0}, sum = 0.0;
    for (; i + LANES <= end; i += LANES)
        for (int64_t k = 0; k < LANES; k++)
            lane[k] += (double)w->x[i + k] * (double)w->x[i + k];
    for (; i < end; i++)
        sum += (double)w->x[i] * (double)w->x[i];
    for (int k = 0; k < LANES; k++)
        sum += lane[k];
    w->part[item] = sum;
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

/* Whether any of 512 or fewer values has an exponent of all ones. */
static int any_nonfinite(DType act, const void *values, int64_t first, int64_t end) {
    unsigned found = 0;
    if (act == DTYPE_BF16) {
        const bf16 *x = values;
        for (int64_t i = first; i < end; i++)
            found |= (x[i] & 0x7F80u) == 0x7F80u;
        return found != 0;
    }
    for (int64_t i = first; i < end; i++) {
        uint32_t bits;
        memcpy(&bits, (const float *)values + i, sizeof bits);
        found |= (bits & 0x7F800000u) == 0x7F800000u;
    }
    return found != 0;
}

static void find_part(void *context, int64_t item, int worker) {
    (void)worker;
    FindWork *w = context;
    int64_t length = (w->count + PARTS - 1) / PARTS, end = least(w->count, (item + 1) * length);
    w->found[item] = -1;
    for (int64_t first = item * length; first < end; first += 512) {
        if (!any_nonfinite(w->act, w->values, first, least(end, first + 512))) continue;
        int64_t i = first;
        while (!any_nonfinite(w->act, w->values, i, i + 1))
            i++;
        w->found[item] = i;
        return;
    }
}

static int64_t find_nonfinite(const Exec *exec, const void *activation, int64_t rows, int64_t columns) {
    FindWork work = {.act = exec->config.act, .values = activation, .count = rows * columns};
    pool_run(exec->pool, find_part, &work, PARTS);
    for (int i = 0; i < PARTS; i++)
        if (work.found[i] >= 0) return work.found[i];
    return -1;
}

void simd_flat(Backend *backend) {
    backend->adamw = adamw;
    backend->sum_squares = sum_squares;
    backend->find_nonfinite = find_nonfinite;
    backend->variant.adamw = SIMD_VARIANT;
}
