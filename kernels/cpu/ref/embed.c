/* Embedding: y[t,:] = table[ids[t],:]; d_table[ids[t],:] += dy[t,:]. */
#include "kernels/cpu/ref/ref.h"

typedef struct EmbedWork {
    DType act;
    const EmbedShape *shape;
    const Batch *batch;
    const WeightView *table;
    const void *dy;
    void *y, *d_table;
} EmbedWork;

Status ref_embed_plan(const ExecConfig *config, const EmbedShape *shape, OpPlan *plan, Error *err) {
    TRY(ref_check_config("embed", config, err));
    TRY(ref_check_dimension("embed", "rows", shape->rows, err));
    TRY(ref_check_dimension("embed", "vocab", shape->vocab, err));
    TRY(ref_check_dimension("embed", "hidden", shape->hidden, err));
    size_t output = 0;
    TRY(ref_region(&output, NULL, "embed", shape->rows, shape->hidden, dtype_size(config->act), err));
    *plan = (OpPlan){0};
    return OK;
}

Status ref_embed_check(const EmbedShape *shape, const Batch *batch, Error *err) {
    TRY(ref_check_tokens("embed", batch, shape->rows, err));
    for (int64_t t = 0; t < batch->tokens; t++) {
        if (batch->ids[t] < 0 || batch->ids[t] >= shape->vocab) {
            FAIL("embed: row %lld: token id: want 0 to %lld, got %d; does the tokenizer belong to this model?", (long long)t,
                 (long long)shape->vocab - 1, batch->ids[t]);
        }
    }
    return OK;
}

static void forward_row(void *context, int64_t t, int worker) {
    (void)worker;
    EmbedWork *work = context;
    int64_t hidden = work->shape->hidden;
    double value;
    for (int64_t c = 0; c < hidden; c++) {
        ref_load_weight(work->table, work->batch->ids[t] * hidden + c, 1, work->act, &value);
        ref_store(work->act, work->y, t * hidden + c, value);
    }
}

static Status embed_forward(const Exec *exec, const EmbedShape *shape, const Batch *batch, const WeightView *table, void *y,
                            Error *err) {
    TRY(ref_embed_check(shape, batch, err));
    TRY(ref_check_format("embed", table->format, exec->config.act, err));
    TRY(ref_check_weight("embed", table, table->format, shape->vocab, shape->hidden, err));
    EmbedWork work = {.act = exec->config.act, .shape = shape, .batch = batch, .table = table, .y = y};
    pool_run(exec->pool, forward_row, &work, batch->tokens);
    return OK;
}

/* Items are columns: two rows with the same id add to the same place, in row order. */
static void backward_columns(void *context, int64_t item, int worker) {
    (void)worker;
    EmbedWork *work = context;
    int64_t hidden = work->shape->hidden;
    int64_t first = item * REF_COLUMNS, end = ref_min(first + REF_COLUMNS, hidden);
    for (int64_t t = 0; t < work->batch->tokens; t++) {
        for (int64_t c = first; c < end; c++) {
            ref_add(ref_wide(work->act), work->d_table, work->batch->ids[t] * hidden + c,
                    ref_load(work->act, work->dy, t * hidden + c));
        }
    }
}

static Status embed_backward(const Exec *exec, const EmbedShape *shape, const Batch *batch, const void *dy, void *d_table,
                             void *workspace, Error *err) {
    (void)workspace;
    if (!shape->train) return OK;
    TRY(ref_embed_check(shape, batch, err));
    EmbedWork work = {.act = exec->config.act, .shape = shape, .batch = batch, .dy = dy, .d_table = d_table};
    pool_run(exec->pool, backward_columns, &work, ref_column_items(shape->hidden));
    return OK;
}

void ref_embed(Backend *backend) {
    backend->embed_plan = ref_embed_plan;
    backend->embed_forward = embed_forward;
    backend->embed_backward = embed_backward;
}
