/* Attention, backward. With p_ij = exp(scale q_i k_j - lse_i) and delta_i = o_i do_i:
 *
 *   ds_ij = p_ij (do_i v_j - delta_i)
 *   dq_i = scale sum_j ds_ij k_j        dk_j = scale sum_i ds_ij q_i        dv_j = sum_i p_ij do_i
 *
 * The scores are computed twice, once by query and once by key, so that every
 * sum belongs to one item; dk and dv sum over the query heads of their group.
 */
#include "kernels/cpu/ref/attention.h"

#include <math.h>
#include <string.h>

typedef struct BackwardWork {
    DType act;
    const AttentionShape *shape;
    const AttentionLayout *layout;
    const Batch *batch;
    const void *q, *k, *v, *o, *lse, *d_o;
    void *dq, *dk, *dv, *workspace;
    double *delta;
} BackwardWork;

static double *scratch_of(const BackwardWork *work, int worker) {
    return ref_scratch(work->workspace, work->layout->scratch, worker, work->layout->backward_doubles);
}

static void store_row(const BackwardWork *work, void *out, int64_t first, double scale, const double *values) {
    for (int64_t d = 0; d < work->shape->head_dim; d++)
        ref_store(work->act, out, first + d, scale * values[d]);
}

/* dq of one row, and its delta */
static void query_row(void *context, int64_t i, int worker) {
    BackwardWork *work = context;
    DType act = work->act;
    const AttentionShape *shape = work->shape;
    int64_t dim = shape->head_dim, group = shape->heads / shape->kv_heads;
    int64_t start = work->batch->starts[ref_sequence_of(work->batch, i)];
    int64_t first = shape->window > 0 ? ref_max(start, i - shape->window + 1) : start;
    double *q = scratch_of(work, worker), *d_o = q + dim, *dq = d_o + dim;
    for (int64_t head = 0; head < shape->heads; head++) {
        int64_t row = i * shape->heads + head;
        ref_load_row(act, ref_at(act, work->q, row * dim), dim, q);
        ref_load_row(act, ref_at(act, work->d_o, row * dim), dim, d_o);
        double delta = ref_dot(act, ref_at(act, work->o, row * dim), d_o, dim);
        double lse = ref_load(ref_wide(act), work->lse, row);
        work->delta[row] = delta;
        memset(dq, 0, (size_t)dim * sizeof *dq);
        for (int64_t j = first; j <= i; j++) {
            int64_t key = (j * shape->kv_heads + head / group) * dim;
            double p = exp((double)shape->scale * ref_dot(act, ref_at(act, work->k, key), q, dim) - lse);
            double dp = ref_dot(act, ref_at(act, work->v, key), d_o, dim);
            ref_accumulate(act, dq, p * (dp - delta), ref_at(act, work->k, key), dim);
        }
        store_row(work, work->dq, row * dim, (double)shape->scale, dq);
    }
}

/* dk and dv of one row */
static void key_row(void *context, int64_t j, int worker) {
    BackwardWork *work = context;
    DType act = work->act;
    const AttentionShape *shape = work->shape;
    int64_t dim = shape->head_dim, group = shape->heads / shape->kv_heads;
    int64_t end = work->batch->starts[ref_sequence_of(work->batch, j) + 1];
    if (shape->window > 0) end = ref_min(end, j + shape->window);
    double *k = scratch_of(work, worker), *v = k + dim, *dk = v + dim, *dv = dk + dim;
    for (int64_t kv_head = 0; kv_head < shape->kv_heads; kv_head++) {
        int64_t key = (j * shape->kv_heads + kv_head) * dim;
        ref_load_row(act, ref_at(act, work->k, key), dim, k);
        ref_load_row(act, ref_at(act, work->v, key), dim, v);
        memset(dk, 0, (size_t)(2 * dim) * sizeof *dk);
        for (int64_t i = j; i < end; i++) {
            for (int64_t head = kv_head * group; head < (kv_head + 1) * group; head++) {
                int64_t row = i * shape->heads + head;
                const void *q = ref_at(act, work->q, row * dim), *d_o = ref_at(act, work->d_o, row * dim);
                double p = exp((double)shape->scale * ref_dot(act, q, k, dim) - ref_load(ref_wide(act), work->lse, row));
                double dp = ref_dot(act, d_o, v, dim);
                ref_accumulate(act, dv, p, d_o, dim);
                ref_accumulate(act, dk, p * (dp - work->delta[row]), q, dim);
            }
        }
        store_row(work, work->dk, key, (double)shape->scale, dk);
        store_row(work, work->dv, key, 1.0, dv);
    }
}

Status ref_attention_backward(const Exec *exec, const AttentionShape *shape, const Batch *batch, const void *q, const void *k,
                              const void *v, const void *o, const void *saved, const void *d_o, void *dq, void *dk, void *dv,
                              void *workspace, Error *err) {
    AttentionLayout layout;
    TRY(ref_attention_layout(&exec->config, shape, &layout, err));
    TRY(ref_attention_check(shape, batch, err));
    BackwardWork work = {.act = exec->config.act,
                         .shape = shape,
                         .layout = &layout,
                         .batch = batch,
                         .q = q,
                         .k = k,
                         .v = v,
                         .o = o,
                         .lse = saved,
                         .d_o = d_o,
                         .dq = dq,
                         .dk = dk,
                         .dv = dv,
                         .workspace = workspace,
                         .delta = workspace};
    pool_run(exec->pool, query_row, &work, batch->tokens);
    pool_run(exec->pool, key_row, &work, batch->tokens);
    return OK;
}
