/* q/k norm + rotation; formulas and the order of casts as in the reference. Vectors run along the first half of a head, the
 * second half beside it. */
#include <math.h>

#include "kernels/cpu/simd/entries.h"

/* One of q and k. */
typedef struct Side {
    int64_t heads, first_root; /* of the H + K reciprocal roots of a row */
    const void *x, *weight, *dy;
    void *y, *dx;
    float *d_weight;
} Side;

typedef struct Work {
    DType act;
    const RopeShape *shape;
    const Batch *batch;
    const RopeTable *table;
    float *roots;
    const float *roots_read;
    Side side[2];
} Work;

static Status rope_plan(const ExecConfig *config, const RopeShape *shape, OpPlan *plan, Error *err) {
    TRY(simd_check_config("rope", config, err));
    return ref_rope_plan(config, shape, plan, err);
}

SIMD_INLINE vf round_to(DType act, vf x) {
    return act == DTYPE_BF16 ? vf_round_bf16(x) : x;
}

/* Elements i and i + D/2 onwards of one array; `left` of each exist. */
typedef struct Pair {
    vf a, b;
} Pair;
SIMD_INLINE Pair pair_load(const void *x, DType act, int64_t base, int64_t i, int64_t half) {
    return (Pair){vf_load_act(x, act, base + i, half - i), vf_load_act(x, act, base + half + i, half - i)};
}
SIMD_INLINE void pair_store(void *x, DType act, int64_t base, int64_t i, int64_t half, Pair p) {
    vf_store_act(x, act, base + i, half - i, p.a);
    vf_store_act(x, act, base + half + i, half - i, p.b);
}

/* Cosine and sine of a row. */
SIMD_INLINE Pair angles(const Work *w, int64_t t, int64_t i, int64_t half) {
    int64_t at = w->batch->positions[t] * half + i;
    return (Pair){vf_load_act(w->table->cosine, DTYPE_F32, at, half - i), vf_load_act(w->table->sine, DTYPE_F32, at, half - i)};
}

static int64_t root_place(const Work *w, const Side *side, int64_t t, int64_t head) {
    return t * (w->shape->heads + w->shape->kv_heads) + side->first_root + head;
}

static float root_of_head(const Work *w, const Side *side, int64_t base) {
    int64_t dim = w->shape->head_dim;
    vf squares = vf_zero();
    for (int64_t i = 0; i < dim; i += SIMD_WIDTH) {
        vf x = vf_load_act(side->x, w->act, base + i, dim - i);
        squares = vf_fma(x, x, squares);
    }
    return (float)(1.0 / sqrt((double)vf_sum(squares) / (double)dim + w->shape->epsilon));
}

static void forward_head(const Work *w, const Side *side, int64_t t, int64_t head) {
    DType act = w->act;
    int64_t dim = w->shape->head_dim, half = dim / 2, base = (t * side->heads + head) * dim;
    vf rstd = vf_set(1.0f);
    if (w->shape->has_norm) {
        float root = root_of_head(w, side, base);
        w->roots[root_place(w, side, t, head)] = root;
        rstd = vf_set(root);
    }
    for (int64_t i = 0; i < half; i += SIMD_WIDTH) {
        Pair x = pair_load(side->x, act, base, i, half), angle = angles(w, t, i, half);
        if (w->shape->has_norm) {
            Pair weight = pair_load(side->weight, act, 0, i, half);
            x.a = round_to(act, round_to(act, x.a * rstd) * weight.a);
            x.b = round_to(act, round_to(act, x.b * rstd) * weight.b);
        }
        pair_store(side->y, act, base, i, half, (Pair){x.a * angle.a - x.b * angle.b, x.b * angle.a + x.a * angle.b});
    }
}

static void forward_row(void *context, int64_t t, int worker) {
    (void)worker;
    const Work *w = context;
    for (int s = 0; s < 2; s++)
        for (int64_t head = 0; head < w->side[s].heads; head++)
            forward_head(w, &w->side[s], t, head);
}

static Status rope_forward(const Exec *exec, const RopeShape *shape, const Batch *batch, const RopeTable *table, const void *q,
                           const void *k, const void *q_weight, const void *k_weight, void *rq, void *rk, void *saved,
                           void *workspace, Error *err) {
    (void)workspace;
    TRY(ref_rope_check(shape, batch, err));
    Work work = {.act = exec->config.act,
                 .shape = shape,
                 .batch = batch,
                 .table = table,
                 .roots = saved,
                 .side = {{.heads = shape->heads, .x = q, .weight = q_weight, .y = rq},
                          {.heads = shape->kv_heads, .first_root = shape->heads, .x = k, .weight = k_weight, .y = rk}}};
    pool_run(exec->pool, forward_row, &work, batch->tokens);
    return OK;
}

/* The gradients behind the rotation. */
SIMD_INLINE Pair unrotate(const Work *w, const Side *side, int64_t t, int64_t base, int64_t i, int64_t half) {
    Pair dy = pair_load(side->dy, w->act, base, i, half), angle = angles(w, t, i, half);
    return (Pair){dy.a * angle.a + dy.b * angle.b, dy.b * angle.a - dy.a * angle.b};
}

/* mean(dn * n) of a head with norm */
static float norm_mean(const Work *w, const Side *side, int64_t t, int64_t base, vf rstd) {
    int64_t dim = w->shape->head_dim, half = dim / 2;
    vf sum = vf_zero();
    for (int64_t i = 0; i < half; i += SIMD_WIDTH) {
        Pair d = unrotate(w, side, t, base, i, half), weight = pair_load(side->weight, w->act, 0, i, half);
        Pair x = pair_load(side->x, w->act, base, i, half);
        sum = vf_fma(d.a * weight.a, x.a * rstd, sum);
        sum = vf_fma(d.b * weight.b, x.b * rstd, sum);
    }
    return vf_sum(sum) / (float)dim;
}

static void backward_head(const Work *w, const Side *side, int64_t t, int64_t head) {
    DType act = w->act;
    int64_t dim = w->shape->head_dim, half = dim / 2, base = (t * side->heads + head) * dim;
    vf rstd = vf_set(1.0f), mean = vf_zero();
    if (w->shape->has_norm) {
        rstd = vf_set(w->roots_read[root_place(w, side, t, head)]);
        mean = vf_set(norm_mean(w, side, t, base, rstd));
    }
    for (int64_t i = 0; i < half; i += SIMD_WIDTH) {
        Pair d = unrotate(w, side, t, base, i, half);
        if (w->shape->has_norm) {
            Pair weight = pair_load(side->weight, act, 0, i, half), x = pair_load(side->x, act, base, i, half);
            d.a = rstd * (d.a * weight.a - x.a * rstd * mean);
            d.b = rstd * (d.b * weight.b - x.b * rstd * mean);
        }
        pair_store(side->dx, act, base, i, half, d);
    }
}

static void backward_row(void *context, int64_t t, int worker) {
    (void)worker;
    const Work *w = context;
    for (int s = 0; s < 2; s++)
        for (int64_t head = 0; head < w->side[s].heads; head++)
            backward_head(w, &w->side[s], t, head);
}

/* d_weight of one vector of pairs of one side: sums of 64 rows, then the sum of those */
static void backward_weight(void *context, int64_t item, int worker) {
    (void)worker;
    const Work *w = context;
    const Side *side = &w->side[item % 2];
    DType act = w->act;
    int64_t dim = w->shape->head_dim, half = dim / 2, i = item / 2 * SIMD_WIDTH;
    Pair total = {vf_zero(), vf_zero()};
    for (int64_t t0 = 0; t0 < w->batch->tokens; t0 += 64) {
        Pair part = {vf_zero(), vf_zero()};
        for (int64_t t = t0; t < least(w->batch->tokens, t0 + 64); t++)
            for (int64_t head = 0; head < side->heads; head++) {
                int64_t base = (t * side->heads + head) * dim;
                vf rstd = vf_set(w->roots_read[root_place(w, side, t, head)]);
                Pair d = unrotate(w, side, t, base, i, half), x = pair_load(side->x, act, base, i, half);
                part.a = vf_fma(d.a, round_to(act, x.a * rstd), part.a);
                part.b = vf_fma(d.b, round_to(act, x.b * rstd), part.b);
            }
        total.a += part.a;
        total.b += part.b;
    }
    Pair before = pair_load(side->d_weight, DTYPE_F32, 0, i, half);
    pair_store(side->d_weight, DTYPE_F32, 0, i, half, (Pair){before.a + total.a, before.b + total.b});
}

static Status rope_backward(const Exec *exec, const RopeShape *shape, const Batch *batch, const RopeTable *table, const void *q,
                            const void *k, const void *q_weight, const void *k_weight, const void *saved, const void *drq,
                            const void *drk, void *dq, void *dk, void *dq_weight, void *dk_weight, void *workspace,
                            Error *err) {
    (void)workspace;
    TRY(ref_rope_check(shape, batch, err));
    Work work = {.act = exec->config.act,
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
    int64_t vectors = (shape->head_dim / 2 + SIMD_WIDTH - 1) / SIMD_WIDTH;
    /* first the weights: dq may lie over drq */
    if (shape->has_norm && shape->train_norm) pool_run(exec->pool, backward_weight, &work, 2 * vectors);
    pool_run(exec->pool, backward_row, &work, batch->tokens);
    return OK;
}

void simd_rope(Backend *backend) {
    backend->rope_plan = rope_plan;
    backend->rope_forward = rope_forward;
    backend->rope_backward = rope_backward;
    backend->variant.rope = SIMD_VARIANT;
}
