/* Add + RMSNorm (Zhang & Sennrich 2019), with the casts in the order of Llama:
 *
 *   r = residual + x        rounded
 *   n = r * rstd            rounded,  rstd = 1 / sqrt(mean(r^2) + eps)
 *   y = n * weight          rounded
 *
 * Backward, with dn = dy * weight and r, n not rounded:
 *   dr = rstd * (dn - n * mean(dn * n)) + d_sum
 */
#include "kernels/cpu/ref/ref.h"

#include <math.h>

typedef struct NormWork {
    DType act;
    const NormShape *shape;
    int64_t tokens;
    const void *residual, *x; /* backward: residual is the sum that was normed, x is not used */
    const void *weight, *dy, *d_sum, *saved;
    void *sum, *y, *rstd, *d_residual, *d_weight;
} NormWork;

Status ref_norm_plan(const ExecConfig *config, const NormShape *shape, OpPlan *plan, Error *err) {
    TRY(ref_check_config("norm", config, err));
    TRY(ref_check_dimension("norm", "rows", shape->rows, err));
    TRY(ref_check_dimension("norm", "hidden", shape->hidden, err));
    if (!(shape->epsilon >= 0.0)) FAIL("norm: epsilon: want 0 or more, got %g", shape->epsilon);
    size_t output = 0;
    TRY(ref_region(&output, NULL, "norm", shape->rows, shape->hidden, dtype_size(config->act), err));
    *plan = (OpPlan){0};
    return ref_region(&plan->saved, NULL, "norm", shape->rows, 1, dtype_size(ref_wide(config->act)), err);
}

static double input(const NormWork *work, int64_t i) {
    double r = ref_load(work->act, work->residual, i);
    return work->shape->has_x ? ref_round(work->act, r + ref_load(work->act, work->x, i)) : r;
}

static void forward_row(void *context, int64_t t, int worker) {
    (void)worker;
    NormWork *work = context;
    DType act = work->act, wide = ref_wide(act);
    int64_t hidden = work->shape->hidden, row = t * hidden;
    double squares = 0.0;
    for (int64_t c = 0; c < hidden; c++) {
        double r = input(work, row + c);
        squares += r * r;
    }
    double rstd = ref_round(wide, 1.0 / sqrt(squares / (double)hidden + work->shape->epsilon));
    ref_store(wide, work->rstd, t, rstd);
    for (int64_t c = 0; c < hidden; c++) {
        double r = input(work, row + c);
        double n = ref_round(act, r * rstd);
        if (work->shape->has_x) ref_store(act, work->sum, row + c, r);
        ref_store(act, work->y, row + c, n * ref_load(act, work->weight, c));
    }
}

static Status norm_forward(const Exec *exec, const NormShape *shape, const Batch *batch, const void *residual, const void *x,
                           const void *weight, void *sum, void *y, void *saved, void *workspace, Error *err) {
    (void)workspace;
    TRY(ref_check_tokens("norm", batch, shape->rows, err));
    NormWork work = {.act = exec->config.act,
                     .shape = shape,
                     .residual = residual,
                     .x = x,
                     .weight = weight,
                     .sum = sum,
                     .y = y,
                     .rstd = saved};
    pool_run(exec->pool, forward_row, &work, batch->tokens);
    return OK;
}

static void backward_row(void *context, int64_t t, int worker) {
    (void)worker;
    NormWork *work = context;
    DType act = work->act;
    int64_t hidden = work->shape->hidden, row = t * hidden;
    double rstd = ref_load(ref_wide(act), work->saved, t);
    double mean = 0.0;
    for (int64_t c = 0; c < hidden; c++) {
        double n = ref_load(act, work->residual, row + c) * rstd;
        mean += ref_load(act, work->dy, row + c) * ref_load(act, work->weight, c) * n;
    }
    mean /= (double)hidden;
    for (int64_t c = 0; c < hidden; c++) {
        double n = ref_load(act, work->residual, row + c) * rstd;
        double dn = ref_load(act, work->dy, row + c) * ref_load(act, work->weight, c);
        double d_sum = work->d_sum != NULL ? ref_load(act, work->d_sum, row + c) : 0.0;
        ref_store(act, work->d_residual, row + c, d_sum + rstd * (dn - n * mean));
    }
}

static void backward_weight(void *context, int64_t item, int worker) {
    (void)worker;
    NormWork *work = context;
    DType act = work->act, wide = ref_wide(act);
    int64_t hidden = work->shape->hidden;
    int64_t first = item * REF_COLUMNS, count = ref_min(REF_COLUMNS, hidden - first);
    double sum[REF_COLUMNS] = {0};
    for (int64_t t = 0; t < work->tokens; t++) {
        double rstd = ref_load(wide, work->saved, t);
        for (int64_t c = 0; c < count; c++) {
            int64_t i = t * hidden + first + c;
            sum[c] += ref_load(act, work->dy, i) * ref_round(act, ref_load(act, work->residual, i) * rstd);
        }
    }
    for (int64_t c = 0; c < count; c++)
        ref_add(wide, work->d_weight, first + c, sum[c]);
}

static Status norm_backward(const Exec *exec, const NormShape *shape, const Batch *batch, const void *sum, const void *weight,
                            const void *saved, const void *dy, const void *d_sum, void *d_residual, void *d_weight,
                            void *workspace, Error *err) {
    (void)workspace;
    TRY(ref_check_tokens("norm", batch, shape->rows, err));
    NormWork work = {.act = exec->config.act,
                     .shape = shape,
                     .tokens = batch->tokens,
                     .weight = weight,
                     .dy = dy,
                     .d_sum = d_sum,
                     .saved = saved,
                     .residual = sum,
                     .d_residual = d_residual,
                     .d_weight = d_weight};
    if (shape->train) pool_run(exec->pool, backward_weight, &work, ref_column_items(shape->hidden));
    if (shape->need_dx) pool_run(exec->pool, backward_row, &work, batch->tokens);
    return OK;
}

void ref_norm(Backend *backend) {
    backend->norm_plan = ref_norm_plan;
    backend->norm_forward = norm_forward;
    backend->norm_backward = norm_backward;
    backend->variant.norm = "ref";
}
