/* Linear group, backward, with ds_i = dy_i B_i:
 *
 *   dx     = sum_i dy_i W_i + scale_i * mask_i(ds_i A_i)
 *   dA_i  += scale_i ds_i^T dropout_i(x)        dB_i    += scale_i dy_i^T s_i
 *   dW_i  += dy_i^T x                           dbias_i += column sums of dy_i
 */
#include "kernels/cpu/ref/linear.h"

#include <string.h>

static double *ds_of(const LinearWork *work, int member) {
    return (double *)((char *)work->workspace + work->layout->ds[member]);
}

static double *scratch_of(const LinearWork *work, int worker) {
    return ref_scratch(work->workspace, work->layout->scratch, worker, work->layout->backward_doubles);
}

/* ds[t,:] = dy[t,:] B */
static void adapter_row(void *context, int64_t t, int worker) {
    (void)worker;
    LinearWork *work = context;
    const LinearSpec *spec = &work->shape->linear[work->member];
    const void *b = work->operands[work->member].lora_b;
    double *ds = ds_of(work, work->member) + t * spec->rank;
    memset(ds, 0, (size_t)spec->rank * sizeof *ds);
    for (int64_t o = 0; o < spec->out; o++) {
        double dy = ref_load(work->act, work->dy[work->member], t * spec->out + o);
        ref_accumulate(work->act, ds, dy, ref_at(work->act, b, o * spec->rank), spec->rank);
    }
}

/* sum[t,:] += dy_i[t,:] W_i, then the adapter's part, for a block of columns */
static void input_member(LinearWork *work, int64_t first, int64_t count, double *sum, double *block) {
    DType act = work->act;
    const LinearSpec *spec = &work->shape->linear[work->member];
    const LinearOperand *operand = &work->operands[work->member];
    int64_t in = work->shape->in, tokens = work->batch->tokens;
    for (int64_t o = 0; o < spec->out; o++) {
        ref_load_weight(&operand->weight, o * in + first, count, act, block);
        for (int64_t t = 0; t < tokens; t++) {
            double dy = ref_load(act, work->dy[work->member], t * spec->out + o);
            ref_accumulate(DTYPE_F64, sum + t * REF_COLUMNS, dy, block, count);
        }
    }
    if (spec->rank == 0) return;
    const double *ds = ds_of(work, work->member);
    for (int64_t t = 0; t < tokens; t++) {
        memset(block, 0, (size_t)count * sizeof *block);
        for (int64_t r = 0; r < spec->rank; r++) {
            ref_accumulate(act, block, ds[t * spec->rank + r], ref_at(act, operand->lora_a, r * in + first), count);
        }
        ref_linear_mask(work, t, first, count, block);
        ref_accumulate(DTYPE_F64, sum + t * REF_COLUMNS, (double)spec->lora_scale, block, count);
    }
}

static void input_columns(void *context, int64_t item, int worker) {
    LinearWork work = *(const LinearWork *)context; /* own copy: the member in hand changes */
    int64_t in = work.shape->in, tokens = work.batch->tokens;
    int64_t first = item * REF_COLUMNS, count = ref_min(REF_COLUMNS, in - first);
    double *sum = scratch_of(&work, worker), *block = sum + work.shape->rows * REF_COLUMNS;
    memset(sum, 0, (size_t)(tokens * REF_COLUMNS) * sizeof *sum);
    for (work.member = 0; work.member < work.shape->count; work.member++) {
        input_member(&work, first, count, sum, block);
    }
    for (int64_t t = 0; t < tokens; t++) {
        for (int64_t c = 0; c < count; c++)
            ref_store(work.act, work.dx, t * in + first + c, sum[t * REF_COLUMNS + c]);
    }
}

/* dA[:,block of columns] */
static void lora_a_columns(void *context, int64_t item, int worker) {
    LinearWork *work = context;
    const LinearSpec *spec = &work->shape->linear[work->member];
    int64_t in = work->shape->in, rank = spec->rank;
    int64_t first = item * REF_COLUMNS, count = ref_min(REF_COLUMNS, in - first);
    const double *ds = ds_of(work, work->member);
    double *sum = scratch_of(work, worker), *x = sum + rank * REF_COLUMNS;
    memset(sum, 0, (size_t)(rank * REF_COLUMNS) * sizeof *sum);
    for (int64_t t = 0; t < work->batch->tokens; t++) {
        ref_linear_dropped(work, t, first, count, x);
        for (int64_t r = 0; r < rank; r++) {
            ref_accumulate(DTYPE_F64, sum + r * REF_COLUMNS, ds[t * rank + r], x, count);
        }
    }
    for (int64_t r = 0; r < rank; r++) {
        for (int64_t c = 0; c < count; c++) {
            ref_add(ref_wide(work->act), work->grads[work->member].lora_a, r * in + first + c,
                    (double)spec->lora_scale * sum[r * REF_COLUMNS + c]);
        }
    }
}

/* dB[o,:] */
static void lora_b_feature(void *context, int64_t o, int worker) {
    LinearWork *work = context;
    DType act = work->act;
    const LinearSpec *spec = &work->shape->linear[work->member];
    const void *s = (const char *)work->saved_read + work->layout->s[work->member];
    double *sum = scratch_of(work, worker);
    memset(sum, 0, (size_t)spec->rank * sizeof *sum);
    for (int64_t t = 0; t < work->batch->tokens; t++) {
        double dy = ref_load(act, work->dy[work->member], t * spec->out + o);
        ref_accumulate(act, sum, dy, ref_at(act, s, t * spec->rank), spec->rank);
    }
    for (int64_t r = 0; r < spec->rank; r++) {
        ref_add(ref_wide(act), work->grads[work->member].lora_b, o * spec->rank + r, (double)spec->lora_scale * sum[r]);
    }
}

/* dW[o,:] */
static void weight_feature(void *context, int64_t o, int worker) {
    LinearWork *work = context;
    DType act = work->act;
    int64_t in = work->shape->in, out = work->shape->linear[work->member].out;
    double *sum = scratch_of(work, worker);
    memset(sum, 0, (size_t)in * sizeof *sum);
    for (int64_t t = 0; t < work->batch->tokens; t++) {
        ref_accumulate(act, sum, ref_load(act, work->dy[work->member], t * out + o), ref_at(act, work->x, t * in), in);
    }
    for (int64_t c = 0; c < in; c++)
        ref_add(ref_wide(act), work->grads[work->member].weight, o * in + c, sum[c]);
}

/* dbias[o] */
static void bias_feature(void *context, int64_t o, int worker) {
    (void)worker;
    LinearWork *work = context;
    int64_t out = work->shape->linear[work->member].out;
    double sum = 0.0;
    for (int64_t t = 0; t < work->batch->tokens; t++)
        sum += ref_load(work->act, work->dy[work->member], t * out + o);
    ref_add(ref_wide(work->act), work->grads[work->member].bias, o, sum);
}

Status ref_linear_backward(const Exec *exec, const LinearShape *shape, const Batch *batch, const void *x,
                           const LinearOperand *operands, const void *saved, const void *const *dy, void *dx,
                           const LinearGrad *grads, void *workspace, Error *err) {
    LinearLayout layout;
    TRY(ref_linear_layout(&exec->config, shape, &layout, err));
    TRY(ref_linear_check(exec, shape, batch, operands, err));
    LinearWork work = {.act = exec->config.act,
                       .shape = shape,
                       .layout = &layout,
                       .batch = batch,
                       .x = x,
                       .operands = operands,
                       .dy = dy,
                       .grads = grads,
                       .saved_read = saved,
                       .dx = dx,
                       .workspace = workspace};
    for (work.member = 0; work.member < shape->count; work.member++) {
        const LinearSpec *spec = &shape->linear[work.member];
        const LinearGrad *grad = &grads[work.member];
        if (spec->rank > 0) pool_run(exec->pool, adapter_row, &work, batch->tokens);
        if (spec->rank > 0 && grad->lora_a != NULL) pool_run(exec->pool, lora_a_columns, &work, ref_column_items(shape->in));
        if (spec->rank > 0 && grad->lora_b != NULL) pool_run(exec->pool, lora_b_feature, &work, spec->out);
        if (spec->train_weight) pool_run(exec->pool, weight_feature, &work, spec->out);
        if (spec->train_bias) pool_run(exec->pool, bias_feature, &work, spec->out);
    }
    if (shape->need_dx) pool_run(exec->pool, input_columns, &work, ref_column_items(shape->in));
    return OK;
}
