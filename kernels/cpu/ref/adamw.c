/* AdamW on flat buffers; the formula stands in kernels/ops.h. Every step is computed in double from the FP32 state. */
#include "kernels/cpu/ref/ref.h"

#include <math.h>

#define PART 4096

typedef struct AdamWork {
    DType act;
    int64_t count;
    float *master, *m, *v;
    const float *grad;
    void *copy;
    const AdamStep *step;
    double correction1, correction2_root;
} AdamWork;

static void adamw_part(void *context, int64_t item, int worker) {
    (void)worker;
    AdamWork *work = context;
    const AdamStep *step = work->step;
    int64_t end = (item + 1) * PART < work->count ? (item + 1) * PART : work->count;
    for (int64_t i = item * PART; i < end; i++) {
        double g = step->clip * (double)work->grad[i];
        double p = (double)work->master[i] * (1.0 - step->lr * step->weight_decay);
        double m = step->beta1 * (double)work->m[i] + (1.0 - step->beta1) * g;
        double v = step->beta2 * (double)work->v[i] + (1.0 - step->beta2) * g * g;
        p -= step->lr / work->correction1 * m / (sqrt(v) / work->correction2_root + step->epsilon);
        work->m[i] = (float)m;
        work->v[i] = (float)v;
        work->master[i] = (float)p;
        if (work->copy != NULL) ref_store(work->act, work->copy, i, (double)(float)p);
    }
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
                     .step = step,
                     .correction1 = 1.0 - pow(step->beta1, (double)step->step),
                     .correction2_root = sqrt(1.0 - pow(step->beta2, (double)step->step))};
    pool_run(exec->pool, adamw_part, &work, (count + PART - 1) / PART);
}

void ref_adamw(Backend *backend) {
    backend->adamw = adamw;
    backend->variant.adamw = "ref";
}
