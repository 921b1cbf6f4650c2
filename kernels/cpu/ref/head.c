/* Output head and loss, in chunks of supervised rows, so that the logits never exist whole:
 *
 *   z_j = x[rows[j]] W^T      nll_j = log sum_v exp(z_jv) - z_j[target]
 *   dz_j = grad_scale (softmax(z_j) - onehot)      dx[rows[j]] = dz_j W      dW += sum_j dz_j^T x[rows[j]]
 */
#include "kernels/cpu/ref/ref.h"

#include <math.h>
#include <string.h>

typedef struct HeadLayout {
    int64_t chunk;       /* supervised rows whose logits exist at a time */
    int64_t doubles;     /* scratch of one worker */
    size_t nll, scratch; /* after the logits, double [chunk, V], and as many of the teacher's */
    size_t teacher;
    OpPlan plan;
} HeadLayout;

typedef struct HeadWork {
    DType act;
    const HeadShape *shape;
    const HeadLayout *layout;
    const Batch *batch;
    const void *x;
    const WeightView *weight;
    void *dx, *d_weight, *workspace;
    double *logits, *nll, *teacher;
    int64_t first, count; /* the chunk in hand */
} HeadWork;

static Status head_layout(const ExecConfig *config, const HeadShape *shape, HeadLayout *layout, Error *err) {
    TRY(ref_check_config("head", config, err));
    TRY(ref_check_dimension("head", "rows", shape->rows, err));
    TRY(ref_check_dimension("head", "hidden", shape->hidden, err));
    TRY(ref_check_dimension("head", "vocab", shape->vocab, err));
    TRY(ref_check_dimension("head", "supervised rows", shape->supervised, err));
    TRY(ref_check_format("head", shape->format, config->act, err));
    size_t bytes = 0;
    TRY(ref_region(&bytes, NULL, "head", shape->rows, shape->hidden, sizeof(double), err));
    TRY(ref_region(&bytes, NULL, "head", shape->vocab, shape->hidden, sizeof(double), err));
    TRY(ref_region(&bytes, NULL, "head", shape->supervised, shape->vocab, sizeof(double), err));
    *layout = (HeadLayout){.chunk = ref_min(head_chunk_rows(shape->vocab), shape->supervised)};
    layout->doubles = ref_max(shape->hidden, (layout->chunk + 1) * REF_COLUMNS);
    size_t total = 0;
    TRY(ref_region(&total, NULL, "head", layout->chunk, shape->vocab, sizeof(double), err));
    TRY(ref_region(&total, &layout->teacher, "head", shape->distill ? layout->chunk : 0, shape->vocab, sizeof(double), err));
    TRY(ref_region(&total, &layout->nll, "head", layout->chunk, 1, sizeof(double), err));
    TRY(ref_region(&total, &layout->scratch, "head", config->threads, layout->doubles, sizeof(double), err));
    layout->plan.forward_workspace = total;
    return OK;
}

static Status head_plan(const ExecConfig *config, const HeadShape *shape, OpPlan *plan, Error *err) {
    HeadLayout layout;
    TRY(head_layout(config, shape, &layout, err));
    *plan = layout.plan;
    return OK;
}

Status ref_head_check(const HeadShape *shape, const Batch *batch, const WeightView *weight, int with_targets, Error *err) {
    if (batch->teacher != NULL && !shape->distill) FAIL("head: there is a teacher, and the shape has no room for one");
    TRY(ref_check_tokens("head", batch, shape->rows, err));
    TRY(ref_check_weight("head", weight, shape->format, shape->vocab, shape->hidden, err));
    if (batch->supervised < 0 || batch->supervised > shape->supervised) {
        FAIL("head: supervised rows: want 0 to %lld, got %lld", (long long)shape->supervised, (long long)batch->supervised);
    }
    for (int64_t j = 0; j < batch->supervised; j++) {
        int32_t before = j > 0 ? batch->rows[j - 1] : -1;
        if (batch->rows[j] <= before || batch->rows[j] >= batch->tokens) {
            FAIL("head: supervised row %lld: want a row from %d to %lld, got %d", (long long)j, before + 1,
                 (long long)batch->tokens - 1, batch->rows[j]);
        }
        if (with_targets && (batch->targets[j] < 0 || batch->targets[j] >= shape->vocab)) {
            FAIL("head: supervised row %lld: target: want 0 to %lld, got %d; does the tokenizer belong to this model?",
                 (long long)j, (long long)shape->vocab - 1, batch->targets[j]);
        }
    }
    return OK;
}

static HeadWork work_of(const Exec *exec, const HeadShape *shape, const HeadLayout *layout, const Batch *batch, const void *x,
                        const WeightView *weight, void *workspace) {
    return (HeadWork){.act = exec->config.act,
                      .shape = shape,
                      .layout = layout,
                      .batch = batch,
                      .x = x,
                      .weight = weight,
                      .workspace = workspace,
                      .logits = workspace,
                      .teacher = batch->teacher == NULL ? NULL : (double *)((char *)workspace + layout->teacher),
                      .nll = (double *)((char *)workspace + layout->nll)};
}

static double *scratch_of(const HeadWork *work, int worker) {
    return ref_scratch(work->workspace, work->layout->scratch, worker, work->layout->doubles);
}

/* z[:,v] of the chunk */
static void logits_word(void *context, int64_t v, int worker) {
    HeadWork *work = context;
    int64_t hidden = work->shape->hidden;
    double *w = scratch_of(work, worker);
    ref_load_weight(work->weight, v * hidden, hidden, work->act, w);
    for (int64_t j = 0; j < work->count; j++) {
        const void *x = ref_at(work->act, work->x, work->batch->rows[work->first + j] * hidden);
        work->logits[j * work->shape->vocab + v] = ref_dot(work->act, x, w, hidden);
        if (work->teacher == NULL) continue;
        const void *from = ref_at(work->act, work->batch->teacher, work->batch->rows[work->first + j] * hidden);
        work->teacher[j * work->shape->vocab + v] = ref_dot(work->act, from, w, hidden);
    }
}

static double log_sum_exp(const double *z, int64_t count) {
    double largest = -INFINITY, sum = 0.0;
    for (int64_t v = 0; v < count; v++)
        largest = fmax(largest, z[v]);
    for (int64_t v = 0; v < count; v++)
        sum += exp(z[v] - largest);
    return largest + log(sum);
}

/* The same with the teacher's distribution in the target's place. */
static void distill_row(HeadWork *work, int64_t j) {
    int64_t vocab = work->shape->vocab;
    double *z = work->logits + j * vocab, *t = work->teacher + j * vocab, divergence = 0.0;
    double lse = log_sum_exp(z, vocab), teacher_lse = log_sum_exp(t, vocab), scale = (double)work->batch->grad_scale;
    for (int64_t v = 0; v < vocab; v++) {
        double q = exp(t[v] - teacher_lse);
        divergence += q * ((t[v] - teacher_lse) - (z[v] - lse));
        z[v] = scale * (exp(z[v] - lse) - q);
    }
    work->nll[j] = divergence;
}

/* nll_j, and dz_j over z_j when gradients are wanted */
static void loss_row(void *context, int64_t j, int worker) {
    (void)worker;
    HeadWork *work = context;
    int64_t vocab = work->shape->vocab;
    if (work->teacher != NULL) {
        distill_row(work, j);
        return;
    }
    double *z = work->logits + j * vocab;
    int32_t target = work->batch->targets[work->first + j];
    double lse = log_sum_exp(z, vocab);
    work->nll[j] = lse - z[target];
    double scale = (double)work->batch->grad_scale;
    for (int64_t v = 0; v < vocab; v++)
        z[v] = scale * (exp(z[v] - lse) - (v == target ? 1.0 : 0.0));
}

static void input_columns(void *context, int64_t item, int worker) {
    HeadWork *work = context;
    int64_t hidden = work->shape->hidden, vocab = work->shape->vocab;
    int64_t first = item * REF_COLUMNS, count = ref_min(REF_COLUMNS, hidden - first);
    double *sum = scratch_of(work, worker), *w = sum + work->count * REF_COLUMNS;
    memset(sum, 0, (size_t)(work->count * REF_COLUMNS) * sizeof *sum);
    for (int64_t v = 0; v < vocab; v++) {
        ref_load_weight(work->weight, v * hidden + first, count, work->act, w);
        for (int64_t j = 0; j < work->count; j++) {
            ref_accumulate(DTYPE_F64, sum + j * REF_COLUMNS, work->logits[j * vocab + v], w, count);
        }
    }
    for (int64_t j = 0; j < work->count; j++) {
        int64_t row = work->batch->rows[work->first + j] * hidden + first;
        for (int64_t c = 0; c < count; c++)
            ref_store(work->act, work->dx, row + c, sum[j * REF_COLUMNS + c]);
    }
}

static void weight_word(void *context, int64_t v, int worker) {
    HeadWork *work = context;
    int64_t hidden = work->shape->hidden;
    double *sum = scratch_of(work, worker);
    memset(sum, 0, (size_t)hidden * sizeof *sum);
    for (int64_t j = 0; j < work->count; j++) {
        const void *x = ref_at(work->act, work->x, work->batch->rows[work->first + j] * hidden);
        ref_accumulate(work->act, sum, work->logits[j * work->shape->vocab + v], x, hidden);
    }
    for (int64_t c = 0; c < hidden; c++)
        ref_add(ref_wide(work->act), work->d_weight, v * hidden + c, sum[c]);
}

static Status head_loss(const Exec *exec, const HeadShape *shape, const Batch *batch, const void *x, const WeightView *weight,
                        double *loss_sum, float *nll, void *dx, void *d_weight, void *workspace, Error *err) {
    HeadLayout layout;
    TRY(head_layout(&exec->config, shape, &layout, err));
    TRY(ref_head_check(shape, batch, weight, 1, err));
    HeadWork work = work_of(exec, shape, &layout, batch, x, weight, workspace);
    work.dx = dx;
    work.d_weight = d_weight;
    if (shape->need_dx) memset(dx, 0, (size_t)(batch->tokens * shape->hidden) * dtype_size(work.act));
    double loss = 0.0;
    for (work.first = 0; work.first < batch->supervised; work.first += layout.chunk) {
        work.count = ref_min(layout.chunk, batch->supervised - work.first);
        pool_run(exec->pool, logits_word, &work, shape->vocab);
        pool_run(exec->pool, loss_row, &work, work.count);
        if (shape->need_dx) pool_run(exec->pool, input_columns, &work, ref_column_items(shape->hidden));
        if (shape->train_weight) pool_run(exec->pool, weight_word, &work, shape->vocab);
        for (int64_t j = 0; j < work.count; j++) {
            loss += work.nll[j];
            if (nll != NULL) nll[work.first + j] = (float)work.nll[j];
        }
    }
    *loss_sum += loss;
    return OK;
}

static Status head_logits(const Exec *exec, const HeadShape *shape, const Batch *batch, const void *x, const WeightView *weight,
                          void *logits, void *workspace, Error *err) {
    HeadLayout layout;
    TRY(head_layout(&exec->config, shape, &layout, err));
    TRY(ref_head_check(shape, batch, weight, 0, err));
    HeadWork work = work_of(exec, shape, &layout, batch, x, weight, workspace);
    DType wide = ref_wide(work.act);
    for (work.first = 0; work.first < batch->supervised; work.first += layout.chunk) {
        work.count = ref_min(layout.chunk, batch->supervised - work.first);
        pool_run(exec->pool, logits_word, &work, shape->vocab);
        dtype_convert(ref_at_mutable(wide, logits, work.first * shape->vocab), wide, work.logits, DTYPE_F64,
                      work.count * shape->vocab);
    }
    return OK;
}

void ref_head(Backend *backend) {
    backend->head_plan = head_plan;
    backend->head_loss = head_loss;
    backend->head_logits = head_logits;
    backend->variant.head = "ref";
}
