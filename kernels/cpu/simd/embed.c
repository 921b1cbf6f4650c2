/* Embedding: rows decoded as the linear group decodes its weights. */
#include "kernels/cpu/simd/entries.h"
#include "kernels/cpu/simd/operand.h"

#define PART 256 /* elements decoded at once */

typedef struct Work {
    DType act;
    int64_t hidden;
    const Batch *batch;
    const WeightView *table;
    const void *dy;
    void *y;
    float *d_table;
} Work;

static Status embed_plan(const ExecConfig *config, const EmbedShape *shape, OpPlan *plan, Error *err) {
    TRY(simd_check_config("embed", config, err));
    return ref_embed_plan(config, shape, plan, err);
}

static void forward_row(void *context, int64_t t, int worker) {
    (void)worker;
    const Work *w = context;
    float values[PART];
    for (int64_t c0 = 0; c0 < w->hidden; c0 += PART) {
        int64_t count = least(PART, w->hidden - c0);
        weight_read(w->table, w->act, w->batch->ids[t] * w->hidden + c0, count, values);
        for (int64_t c = 0; c < count; c += SIMD_WIDTH)
            vf_store_act(w->y, w->act, t * w->hidden + c0 + c, count - c, vf_load(values + c));
    }
}

static Status embed_forward(const Exec *exec, const EmbedShape *shape, const Batch *batch, const WeightView *table, void *y,
                            Error *err) {
    TRY(ref_embed_check(shape, batch, err));
    TRY(ref_check_format("embed", table->format, exec->config.act, err));
    TRY(ref_check_weight("embed", table, table->format, shape->vocab, shape->hidden, err));
    Work work = {.act = exec->config.act, .hidden = shape->hidden, .batch = batch, .table = table, .y = y};
    pool_run(exec->pool, forward_row, &work, batch->tokens);
    return OK;
}

/* Items are columns: two rows with the same id add to the same place, in row order. */
static void backward_columns(void *context, int64_t item, int worker) {
    (void)worker;
    const Work *w = context;
    int64_t end = least(w->hidden, (item + 1) * REF_COLUMNS);
    for (int64_t t = 0; t < w->batch->tokens; t++)
        for (int64_t c = item * REF_COLUMNS; c < end; c += SIMD_WIDTH) {
            int64_t at = w->batch->ids[t] * w->hidden + c;
            vf sum = vf_load_act(w->d_table, DTYPE_F32, at, end - c) + vf_load_act(w->dy, w->act, t * w->hidden + c, end - c);
            vf_store_act(w->d_table, DTYPE_F32, at, end - c, sum);
        }
}

static Status embed_backward(const Exec *exec, const EmbedShape *shape, const Batch *batch, const void *dy, void *d_table,
                             void *workspace, Error *err) {
    (void)workspace;
    if (!shape->train) return OK;
    TRY(ref_embed_check(shape, batch, err));
    Work work = {.act = exec->config.act, .hidden = shape->hidden, .batch = batch, .dy = dy, .d_table = d_table};
    pool_run(exec->pool, backward_columns, &work, ref_column_items(shape->hidden));
    return OK;
}

void simd_embed(Backend *backend) {
    backend->embed_plan = embed_plan;
    backend->embed_forward = embed_forward;
    backend->embed_backward = embed_backward;
}
