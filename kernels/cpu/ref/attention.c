/* Causal grouped-query attention over packed sequences, forward, uncached and cached:
 *
 *   s_j = scale * q k_j    over the keys j that the query may see
 *   o   = sum_j exp(s_j - lse) v_j,    lse = log sum_j exp(s_j)
 */
#include "kernels/cpu/ref/attention.h"

#include <math.h>
#include <string.h>

Status ref_attention_layout(const ExecConfig *config, const AttentionShape *shape, AttentionLayout *layout, Error *err) {
    TRY(ref_check_config("attention", config, err));
    TRY(ref_check_dimension("attention", "rows", shape->rows, err));
    TRY(ref_check_dimension("attention", "heads", shape->heads, err));
    TRY(ref_check_dimension("attention", "key/value heads", shape->kv_heads, err));
    TRY(ref_check_dimension("attention", "head size", shape->head_dim, err));
    if (shape->head_dim % 2 != 0) FAIL("attention: head size: want an even number, got %lld", (long long)shape->head_dim);
    if (shape->heads % shape->kv_heads != 0) {
        FAIL("attention: heads: want a multiple of the %lld key/value heads, got %lld", (long long)shape->kv_heads,
             (long long)shape->heads);
    }
    if (shape->window < 0) FAIL("attention: window: want 0 (none) or more, got %lld", (long long)shape->window);
    if (!isfinite(shape->scale)) FAIL("attention: scale: want a finite number, got %g", (double)shape->scale);
    TRY(ref_check_stride("attention", shape->q_stride | shape->k_stride | shape->v_stride | shape->gradient_stride, err));
    size_t output = 0, width = 0;
    TRY(ref_region(&width, NULL, "attention", shape->heads, shape->head_dim, 1, err));
    TRY(ref_region(&output, NULL, "attention", shape->rows, (int64_t)width, sizeof(double), err));
    *layout = (AttentionLayout){.forward_doubles = shape->rows + 2 * shape->head_dim, .backward_doubles = 4 * shape->head_dim};
    TRY(ref_region(&layout->plan.saved, NULL, "attention", shape->rows, shape->heads, dtype_size(ref_wide(config->act)), err));
    TRY(ref_region(&layout->plan.forward_workspace, NULL, "attention", config->threads, layout->forward_doubles, sizeof(double),
                   err));
    size_t backward = 0;
    TRY(ref_region(&backward, NULL, "attention", shape->rows, shape->heads, sizeof(double), err));
    TRY(ref_region(&backward, &layout->scratch, "attention", config->threads, layout->backward_doubles, sizeof(double), err));
    layout->plan.backward_workspace = backward;
    return OK;
}

Status ref_attention_check(const AttentionShape *shape, const Batch *batch, Error *err) {
    TRY(ref_check_tokens("attention", batch, shape->rows, err));
    int whole = batch->starts[0] == 0 && batch->starts[batch->sequences] == batch->tokens;
    for (int64_t s = 0; s < batch->sequences && whole; s++)
        whole = batch->starts[s] < batch->starts[s + 1];
    if (!whole) FAIL("attention: the starts of the %lld sequences do not cut the batch up", (long long)batch->sequences);
    return OK;
}

int64_t ref_sequence_of(const Batch *batch, int64_t row) {
    int64_t low = 0, high = batch->sequences;
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        if (batch->starts[middle] <= row) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

static Status attention_plan(const ExecConfig *config, const AttentionShape *shape, OpPlan *plan, Error *err) {
    AttentionLayout layout;
    TRY(ref_attention_layout(config, shape, &layout, err));
    *plan = layout.plan;
    return OK;
}

typedef struct ForwardWork {
    DType act;
    const AttentionShape *shape;
    const AttentionLayout *layout;
    const Batch *batch;
    const void *q, *k, *v;
    void *o, *lse, *workspace;
    int64_t past; /* rows of k and v before the first query; used when cached */
    int cached;
} ForwardWork;

/* o of one query head over the keys [first, last], all in k's row numbers; returns the log-sum-exp */
static double attend(const ForwardWork *work, int64_t query, int64_t head, int64_t first, int64_t last, double *scratch) {
    DType act = work->act;
    const AttentionShape *shape = work->shape;
    int64_t dim = shape->head_dim, kv_head = head / (shape->heads / shape->kv_heads);
    double *q = scratch, *o = q + dim, *p = o + dim;
    ref_load_row(act, ref_at(act, work->q, (query * shape->heads + head) * dim), dim, q);
    double largest = -INFINITY, sum = 0.0;
    for (int64_t j = first; j <= last; j++) {
        const void *k = ref_at(act, work->k, (j * shape->kv_heads + kv_head) * dim);
        p[j - first] = (double)shape->scale * ref_dot(act, k, q, dim);
        largest = fmax(largest, p[j - first]);
    }
    memset(o, 0, (size_t)dim * sizeof *o);
    for (int64_t j = first; j <= last; j++) {
        double weight = exp(p[j - first] - largest);
        sum += weight;
        ref_accumulate(act, o, weight, ref_at(act, work->v, (j * shape->kv_heads + kv_head) * dim), dim);
    }
    for (int64_t d = 0; d < dim; d++)
        ref_store(act, work->o, (query * shape->heads + head) * dim + d, o[d] / sum);
    return largest + log(sum);
}

static void forward_row(void *context, int64_t t, int worker) {
    ForwardWork *work = context;
    const AttentionShape *shape = work->shape;
    int64_t start = work->cached ? 0 : work->batch->starts[ref_sequence_of(work->batch, t)];
    int64_t last = work->past + t;
    if (work->cached && work->batch->parts != NULL) {
        start = work->batch->parts[t].first;
        last = start + work->batch->parts[t].past;
    }
    int64_t first = shape->window > 0 ? ref_max(start, last - shape->window + 1) : start;
    double *scratch = ref_scratch(work->workspace, 0, worker, work->layout->forward_doubles);
    for (int64_t head = 0; head < shape->heads; head++) {
        double lse = attend(work, t, head, first, last, scratch);
        if (!work->cached) ref_store(ref_wide(work->act), work->lse, t * shape->heads + head, lse);
    }
}

static Status attention_forward(const Exec *exec, const AttentionShape *shape, const Batch *batch, const void *q, const void *k,
                                const void *v, void *o, void *saved, void *workspace, Error *err) {
    AttentionLayout layout;
    TRY(ref_attention_layout(&exec->config, shape, &layout, err));
    TRY(ref_attention_check(shape, batch, err));
    ForwardWork work = {.act = exec->config.act,
                        .shape = shape,
                        .layout = &layout,
                        .batch = batch,
                        .q = q,
                        .k = k,
                        .v = v,
                        .o = o,
                        .lse = saved,
                        .workspace = workspace};
    pool_run(exec->pool, forward_row, &work, batch->tokens);
    return OK;
}

static Status append_parts(DType act, const AttentionShape *shape, const Batch *batch, const void *k, const void *v,
                           const KvLayer *cache, Error *err) {
    int64_t width = shape->kv_heads * shape->head_dim;
    size_t bytes = (size_t)width * dtype_size(act);
    if (batch->tokens != batch->sequences)
        FAIL("attention: cached: want one row of each of %lld sequences, got %lld", (long long)batch->sequences,
             (long long)batch->tokens);
    for (int64_t t = 0; t < batch->tokens; t++) {
        const CachePart *part = &batch->parts[t];
        if (part->first < 0 || part->past < 0 || part->past >= shape->rows)
            FAIL("attention: a token after %lld does not fit in a cache of %lld rows; ask for fewer tokens",
                 (long long)part->past, (long long)shape->rows);
        int64_t at = (part->first + part->past) * width;
        memcpy(ref_at_mutable(act, cache->k, at), ref_at(act, k, t * width), bytes);
        memcpy(ref_at_mutable(act, cache->v, at), ref_at(act, v, t * width), bytes);
    }
    return OK;
}

Status ref_attention_append(DType act, const AttentionShape *shape, const Batch *batch, const void *k, const void *v,
                            const KvLayer *cache, int64_t past, Error *err) {
    if (batch->parts != NULL) return append_parts(act, shape, batch, k, v, cache, err);
    if (batch->sequences != 1) FAIL("attention: cached: want one sequence, got %lld", (long long)batch->sequences);
    if (past < 0 || past > shape->rows - batch->tokens) {
        FAIL("attention: %lld tokens after %lld do not fit in a cache of %lld rows; ask for fewer tokens",
             (long long)batch->tokens, (long long)past, (long long)shape->rows);
    }
    int64_t width = shape->kv_heads * shape->head_dim;
    size_t bytes = (size_t)(batch->tokens * width) * dtype_size(act);
    memcpy(ref_at_mutable(act, cache->k, past * width), k, bytes);
    memcpy(ref_at_mutable(act, cache->v, past * width), v, bytes);
    return OK;
}

static Status attention_cached(const Exec *exec, const AttentionShape *shape, const Batch *batch, const void *q, const void *k,
                               const void *v, const KvLayer *cache, int64_t past, void *o, void *workspace, Error *err) {
    AttentionLayout layout;
    TRY(ref_attention_layout(&exec->config, shape, &layout, err));
    TRY(ref_attention_check(shape, batch, err));
    TRY(ref_attention_append(exec->config.act, shape, batch, k, v, cache, past, err));
    ForwardWork work = {.act = exec->config.act,
                        .shape = shape,
                        .layout = &layout,
                        .batch = batch,
                        .q = q,
                        .k = cache->k,
                        .v = cache->v,
                        .o = o,
                        .workspace = workspace,
                        .past = past,
                        .cached = 1};
    pool_run(exec->pool, forward_row, &work, batch->tokens);
    return OK;
}

void ref_attention(Backend *backend) {
    backend->attention_plan = attention_plan;
    backend->attention_forward = attention_forward;
    backend->attention_backward = ref_attention_backward;
    backend->attention_cached = attention_cached;
    backend->variant.attention = "ref";
}
