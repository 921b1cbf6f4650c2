/* q/k norm + rotary position embedding (Su et al. 2021), pairs (i, i + D/2):
 *
 *   y[i]       = x[i] cos - x[i + D/2] sin        dx[i]       = dy[i] cos + dy[i + D/2] sin
 *   y[i + D/2] = x[i + D/2] cos + x[i] sin        dx[i + D/2] = dy[i + D/2] cos - dy[i] sin
 *
 * where x is q or k, or with norm round(round(q * rstd) * weight).
 */
#include "kernels/cpu/ref/ref.h"

#include <math.h>

/* One of q and k. */
typedef struct Side {
    int64_t heads, first_root; /* of the H + K reciprocal roots of a row */
    const void *x, *weight, *dy;
    void *y, *dx, *d_weight;
} Side;

typedef struct RopeWork {
    DType act;
    const RopeShape *shape;
    const Batch *batch;
    const RopeTable *table;
    const void *roots_read;
    void *roots;
    Side side[2];
} RopeWork;

Status ref_rope_plan(const ExecConfig *config, const RopeShape *shape, OpPlan *plan, Error *err) {
    TRY(ref_check_config("rope", config, err));
    TRY(ref_check_dimension("rope", "rows", shape->rows, err));
    TRY(ref_check_dimension("rope", "heads", shape->heads, err));
    TRY(ref_check_dimension("rope", "key/value heads", shape->kv_heads, err));
    TRY(ref_check_dimension("rope", "head size", shape->head_dim, err));
    TRY(ref_check_dimension("rope", "rows of the table", shape->table_rows, err));
    if (shape->head_dim % 2 != 0) FAIL("rope: head size: want an even number, got %lld", (long long)shape->head_dim);
    if (shape->has_norm && !(shape->epsilon >= 0.0)) FAIL("rope: epsilon: want 0 or more, got %g", shape->epsilon);
    TRY(ref_check_stride("rope", shape->stride | shape->out_stride | shape->gradient_stride, err));
    size_t output = 0, row = 0;
    int64_t heads = shape->heads + shape->kv_heads;
    TRY(ref_region(&row, NULL, "rope", heads, shape->head_dim, 1, err));
    TRY(ref_region(&output, NULL, "rope", shape->rows, (int64_t)row, sizeof(double), err));
    *plan = (OpPlan){0};
    if (!shape->has_norm) return OK;
    return ref_region(&plan->saved, NULL, "rope", shape->rows, heads, dtype_size(ref_wide(config->act)), err);
}

Status ref_rope_check(const RopeShape *shape, const Batch *batch, Error *err) {
    TRY(ref_check_tokens("rope", batch, shape->rows, err));
    for (int64_t t = 0; t < batch->tokens; t++) {
        if (batch->positions[t] < 0 || batch->positions[t] >= shape->table_rows) {
            FAIL("rope: row %lld: position: want 0 to %lld, got %d; the sequence is longer than the table", (long long)t,
                 (long long)shape->table_rows - 1, batch->positions[t]);
        }
    }
    return OK;
}

/* Element i of head `head` at `base`, normed when there is a norm. */
static double operand(const RopeWork *work, const Side *side, int64_t base, int64_t i, double rstd) {
    double x = ref_load(work->act, side->x, base + i);
    if (!work->shape->has_norm) return x;
    return ref_round(work->act, ref_round(work->act, x * rstd) * ref_load(work->act, side->weight, i));
}

static void forward_head(RopeWork *work, const Side *side, int64_t t, int64_t head) {
    DType act = work->act, wide = ref_wide(act);
    int64_t dim = work->shape->head_dim, half = dim / 2, base = (t * side->heads + head) * dim;
    double rstd = 1.0;
    if (work->shape->has_norm) {
        double squares = 0.0;
        for (int64_t i = 0; i < dim; i++)
            squares += ref_load(act, side->x, base + i) * ref_load(act, side->x, base + i);
        rstd = ref_round(wide, 1.0 / sqrt(squares / (double)dim + work->shape->epsilon));
        ref_store(wide, work->roots, t * (work->shape->heads + work->shape->kv_heads) + side->first_root + head, rstd);
    }
    for (int64_t i = 0; i < half; i++) {
        double cosine = (double)work->table->cosine[work->batch->positions[t] * half + i];
        double sine = (double)work->table->sine[work->batch->positions[t] * half + i];
        double a = operand(work, side, base, i, rstd), b = operand(work, side, base, i + half, rstd);
        ref_store(act, side->y, base + i, a * cosine - b * sine);
        ref_store(act, side->y, base + i + half, b * cosine + a * sine);
    }
}

static void forward_row(void *context, int64_t t, int worker) {
    (void)worker;
    RopeWork *work = context;
    for (int s = 0; s < 2; s++) {
        for (int64_t head = 0; head < work->side[s].heads; head++)
            forward_head(work, &work->side[s], t, head);
    }
}

static Status rope_forward(const Exec *exec, const RopeShape *shape, const Batch *batch, const RopeTable *table, const void *q,
                           const void *k, const void *q_weight, const void *k_weight, void *rq, void *rk, void *saved,
                           void *workspace, Error *err) {
    (void)workspace;
    TRY(ref_rope_check(shape, batch, err));
    RopeWork work = {.act = exec->config.act,
                     .shape = shape,
                     .batch = batch,
                     .table = table,
                     .roots = saved,
                     .side = {{.heads = shape->heads, .x = q, .weight = q_weight, .y = rq},
                              {.heads = shape->kv_heads, .first_root = shape->heads, .x = k, .weight = k_weight, .y = rk}}};
    pool_run(exec->pool, forward_row, &work, batch->tokens);
    return OK;
}

/* The pair of gradients behind the rotation. */
static void unrotate(const RopeWork *work, const Side *side, int64_t t, int64_t base, int64_t i, double *da, double *db) {
    int64_t half = work->shape->head_dim / 2;
    double cosine = (double)work->table->cosine[work->batch->positions[t] * half + i];
    double sine = (double)work->table->sine[work->batch->positions[t] * half + i];
    double dy_a = ref_load(work->act, side->dy, base + i), dy_b = ref_load(work->act, side->dy, base + i + half);
    *da = dy_a * cosine + dy_b * sine;
    *db = dy_b * cosine - dy_a * sine;
}

static double root_of(const RopeWork *work, const Side *side, int64_t t, int64_t head) {
    int64_t heads = work->shape->heads + work->shape->kv_heads;
    return ref_load(ref_wide(work->act), work->roots_read, t * heads + side->first_root + head);
}

static void backward_head(RopeWork *work, const Side *side, int64_t t, int64_t head) {
    DType act = work->act;
    int64_t dim = work->shape->head_dim, half = dim / 2, base = (t * side->heads + head) * dim;
    double rstd = 1.0, mean = 0.0, da, db;
    if (work->shape->has_norm) {
        rstd = root_of(work, side, t, head);
        for (int64_t i = 0; i < half; i++) {
            unrotate(work, side, t, base, i, &da, &db);
            mean += da * ref_load(act, side->weight, i) * ref_load(act, side->x, base + i) * rstd;
            mean += db * ref_load(act, side->weight, i + half) * ref_load(act, side->x, base + i + half) * rstd;
        }
        mean /= (double)dim;
    }
    for (int64_t i = 0; i < half; i++) {
        unrotate(work, side, t, base, i, &da, &db);
        if (work->shape->has_norm) {
            double na = ref_load(act, side->x, base + i) * rstd, nb = ref_load(act, side->x, base + i + half) * rstd;
            da = rstd * (da * ref_load(act, side->weight, i) - na * mean);
            db = rstd * (db * ref_load(act, side->weight, i + half) - nb * mean);
        }
        ref_store(act, side->dx, base + i, da);
        ref_store(act, side->dx, base + i + half, db);
    }
}

static void backward_row(void *context, int64_t t, int worker) {
    (void)worker;
    RopeWork *work = context;
    for (int s = 0; s < 2; s++) {
        for (int64_t head = 0; head < work->side[s].heads; head++)
            backward_head(work, &work->side[s], t, head);
    }
}

/* d_weight[i] and d_weight[i + D/2] of both sides, over all rows and heads */
static void backward_weight(void *context, int64_t i, int worker) {
    (void)worker;
    RopeWork *work = context;
    DType act = work->act;
    int64_t dim = work->shape->head_dim, half = dim / 2;
    for (int s = 0; s < 2; s++) {
        const Side *side = &work->side[s];
        double sum_a = 0.0, sum_b = 0.0, da, db;
        for (int64_t t = 0; t < work->batch->tokens; t++) {
            for (int64_t head = 0; head < side->heads; head++) {
                int64_t base = (t * side->heads + head) * dim;
                double rstd = root_of(work, side, t, head);
                unrotate(work, side, t, base, i, &da, &db);
                sum_a += da * ref_round(act, ref_load(act, side->x, base + i) * rstd);
                sum_b += db * ref_round(act, ref_load(act, side->x, base + i + half) * rstd);
            }
        }
        ref_add(ref_wide(act), side->d_weight, i, sum_a);
        ref_add(ref_wide(act), side->d_weight, i + half, sum_b);
    }
}

static Status rope_backward(const Exec *exec, const RopeShape *shape, const Batch *batch, const RopeTable *table, const void *q,
                            const void *k, const void *q_weight, const void *k_weight, const void *saved, const void *drq,
                            const void *drk, void *dq, void *dk, void *dq_weight, void *dk_weight, void *workspace,
                            Error *err) {
    (void)workspace;
    TRY(ref_rope_check(shape, batch, err));
    RopeWork work = {.act = exec->config.act,
                     .shape = shape,
                     .batch = batch,
                     .table = table,
                     .roots_read = saved,
                     .side = {{.heads = shape->heads, .x = q, .weight = q_weight, .dy = drq, .dx = dq, .d_weight = dq_weight},
                              {.heads = shape->kv_heads,
                               .first_root = shape->heads,
                               .x = k,
                               .weight = k_weight,
                               .dy = drk,
                               .dx = dk,
                               .d_weight = dk_weight}}};
    /* first the weights: dq may lie over drq */
    if (shape->has_norm && shape->train_norm) pool_run(exec->pool, backward_weight, &work, shape->head_dim / 2);
    pool_run(exec->pool, backward_row, &work, batch->tokens);
    return OK;
}

void ref_rope(Backend *backend) {
    backend->rope_plan = ref_rope_plan;
    backend->rope_forward = rope_forward;
    backend->rope_backward = rope_backward;
    backend->variant.rope = "ref";
}
