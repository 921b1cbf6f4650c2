/* Add + RMSNorm; formulas and the order of casts as in the reference. */
#include <math.h>

#include "kernels/cpu/simd/entries.h"

typedef struct Work {
    DType act;
    const NormShape *shape;
    int64_t tokens;
    const void *residual, *x, *weight, *dy, *d_sum;
    const float *saved;
    void *sum, *y, *d_residual;
    float *rstd, *d_weight;
} Work;

static Status norm_plan(const ExecConfig *config, const NormShape *shape, OpPlan *plan, Error *err) {
    TRY(simd_check_config("norm", config, err));
    return ref_norm_plan(config, shape, plan, err);
}

SIMD_INLINE vf round_to(DType act, vf x) {
    return act == DTYPE_BF16 ? vf_round_bf16(x) : x;
}

/* The row that is normed; `at` is its first element. */
SIMD_INLINE vf input(const Work *w, int64_t at, int64_t c, int64_t hidden) {
    vf r = vf_load_act(w->residual, w->act, at + c, hidden - c);
    return w->shape->has_x ? round_to(w->act, r + vf_load_act(w->x, w->act, at + c, hidden - c)) : r;
}

static void forward_row(void *context, int64_t t, int worker) {
    (void)worker;
    const Work *w = context;
    DType act = w->act;
    int64_t hidden = w->shape->hidden, at = t * hidden;
    double squares = 0.0;
    for (int64_t c0 = 0; c0 < hidden; c0 += 512) { /* FP32 within 512 values, double across */
        vf part = vf_zero();
        for (int64_t c = c0; c < least(hidden, c0 + 512); c += SIMD_WIDTH) {
            vf r = input(w, at, c, hidden);
            if (w->shape->has_x) vf_store_act(w->sum, act, at + c, hidden - c, r);
            part = vf_fma(r, r, part);
        }
        squares += (double)vf_sum(part);
    }
    float rstd = (float)(1.0 / sqrt(squares / (double)hidden + w->shape->epsilon));
    w->rstd[t] = rstd;
    const void *row = w->shape->has_x ? w->sum : w->residual;
    for (int64_t c = 0; c < hidden; c += SIMD_WIDTH) {
        vf n = round_to(act, vf_load_act(row, act, at + c, hidden - c) * vf_set(rstd));
        vf_store_act(w->y, act, at + c, hidden - c, n * vf_load_act(w->weight, act, c, hidden - c));
    }
}

static Status norm_forward(const Exec *exec, const NormShape *shape, const Batch *batch, const void *residual, const void *x,
                           const void *weight, void *sum, void *y, void *saved, void *workspace, Error *err) {
    (void)workspace;
    TRY(ref_check_tokens("norm", batch, shape->rows, err));
    Work work = {.act = exec->config.act,
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
    const Work *w = context;
    DType act = w->act;
    int64_t hidden = w->shape->hidden, at = t * hidden;
    vf rstd = vf_set(w->saved[t]);
    double mean = 0.0;
    for (int64_t c0 = 0; c0 < hidden; c0 += 512) {
        vf part = vf_zero();
        for (int64_t c = c0; c < least(hidden, c0 + 512); c += SIMD_WIDTH) {
            vf dn = vf_load_act(w->dy, act, at + c, hidden - c) * vf_load_act(w->weight, act, c, hidden - c);
            part = vf_fma(dn, vf_load_act(w->residual, act, at + c, hidden - c) * rstd, part);
        }
        mean += (double)vf_sum(part);
    }
    vf average = vf_set((float)(mean / (double)hidden));
    for (int64_t c = 0; c < hidden; c += SIMD_WIDTH) {
        vf dn = vf_load_act(w->dy, act, at + c, hidden - c) * vf_load_act(w->weight, act, c, hidden - c);
        vf n = vf_load_act(w->residual, act, at + c, hidden - c) * rstd;
        vf dr = rstd * (dn - n * average);
        if (w->d_sum != NULL) dr += vf_load_act(w->d_sum, act, at + c, hidden - c);
        vf_store_act(w->d_residual, act, at + c, hidden - c, dr);
    }
}

/* d_weight of one vector of columns: sums of 256 rows, then the sum of those */
static void backward_weight(void *context, int64_t item, int worker) {
    (void)worker;
    const Work *w = context;
    int64_t hidden = w->shape->hidden, c = item * SIMD_WIDTH, count = hidden - c;
    vf total = vf_zero();
    for (int64_t t0 = 0; t0 < w->tokens; t0 += 256) {
        vf part = vf_zero();
        for (int64_t t = t0; t < least(w->tokens, t0 + 256); t++) {
            vf n = round_to(w->act, vf_load_act(w->residual, w->act, t * hidden + c, count) * vf_set(w->saved[t]));
            part = vf_fma(vf_load_act(w->dy, w->act, t * hidden + c, count), n, part);
        }
        total += part;
    }
    vf_store_act(w->d_weight, DTYPE_F32, c, count, vf_load_act(w->d_weight, DTYPE_F32, c, count) + total);
}

static Status norm_backward(const Exec *exec, const NormShape *shape, const Batch *batch, const void *sum, const void *weight,
                            const void *saved, const void *dy, const void *d_sum, void *d_residual, void *d_weight,
                            void *workspace, Error *err) {
    (void)workspace;
    TRY(ref_check_tokens("norm", batch, shape->rows, err));
    Work work = {.act = exec->config.act,
                 .shape = shape,
                 .tokens = batch->tokens,
                 .residual = sum,
                 .weight = weight,
                 .dy = dy,
                 .d_sum = d_sum,
                 .saved = saved,
                 .d_residual = d_residual,
                 .d_weight = d_weight};
    if (shape->train) pool_run(exec->pool, backward_weight, &work, (shape->hidden + SIMD_WIDTH - 1) / SIMD_WIDTH);
    if (shape->need_dx) pool_run(exec->pool, backward_row, &work, batch->tokens);
    return OK;
}

void simd_norm(Backend *backend) {
    backend->norm_plan = norm_plan;
    backend->norm_forward = norm_forward;
    backend->norm_backward = norm_backward;
    backend->variant.norm = SIMD_VARIANT;
}
