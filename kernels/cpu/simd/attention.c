/* Attention, forward: online softmax (Milakov & Gimelshein 2018) over stretches of keys.
 *
 *   m' = max(m, max s)   l' = l e^(m - m') + sum e^(s - m')   o' = o e^(m - m') + e^(s - m') v       o / l,  lse = m + log l
 */
#include "kernels/cpu/simd/attention.h"

#include <math.h>

typedef struct Work {
    DType act;
    const AttentionShape *shape;
    const Batch *batch;
    const void *q, *k, *v;
    void *o;
    float *lse;
    const int32_t *blocks;
    void *scratch;
    int64_t past; /* query row t stands at key row t + past */
} Work;

/* Largest scale * score of a row among the visible ones. */
static float row_largest(const float *scores, int64_t first, int64_t end, float scale) {
    vf largest = vf_set(-INFINITY);
    for (int64_t c = first / SIMD_WIDTH * SIMD_WIDTH; c < end; c += SIMD_WIDTH) {
        vf x = vf_load(scores + c) * vf_set(scale);
        if (c < first || c + SIMD_WIDTH > end) x = vf_select(lanes_within(c, first, end), x, vf_set(-INFINITY));
        largest = vf_max(largest, x);
    }
    return vf_largest(largest);
}

/* scores = e^(scale * score - largest), zero where not visible; returns the sum, of what is not rounded yet. */
SIMD_INLINE float row_exp(float *scores, int64_t count, int64_t first, int64_t end, float scale, float largest,
                          const int pairs) {
    vf sum = vf_zero();
    for (int64_t c = 0; c < count; c += SIMD_WIDTH) {
        vf p = vf_zero();
        if (c < end && c + SIMD_WIDTH > first) {
            p = vf_exp(vf_fma(vf_load(scores + c), vf_set(scale), vf_set(-largest)));
            if (c < first || c + SIMD_WIDTH > end) p = vf_select(lanes_within(c, first, end), p, vf_zero());
            sum += p;
        }
        store_scores(scores, c, p, pairs);
    }
    return vf_sum(sum);
}

/* One stretch's softmax; stat[0] is m, stat[1] is l. */
static void soften(const Scratch *s, int64_t block, int64_t count, float scale, const Visible *visible) {
    for (int64_t i = 0; i < block; i++) {
        float *scores = s->scores[0] + i * ATTENTION_STRIDE;
        int64_t first = visible->first[i], end = visible->end[i];
        if (first >= end) {
            memset(scores, 0, (size_t)round_up(count, SIMD_WIDTH) * sizeof *scores);
            continue;
        }
        float before = s->stat[0][i];
        float largest = row_largest(scores, first, end, scale);
        if (largest < before) largest = before;
        float shrink = before == -INFINITY ? 0.0f : expf(before - largest);
        s->stat[0][i] = largest;
        s->stat[1][i] = s->stat[1][i] * shrink + row_exp(scores, count, first, end, scale, largest, s->pairs);
        if (shrink == 1.0f) continue;
        float *sum = s->sum[0] + i * s->sum_stride;
        for (int64_t d = 0; d < s->sum_stride; d += SIMD_WIDTH)
            vf_store(sum + d, vf_load(sum + d) * vf_set(shrink));
    }
}

static void finish(const Work *w, const Scratch *s, int64_t row, int64_t block, int64_t head) {
    int64_t dim = w->shape->head_dim;
    for (int64_t i = 0; i < block; i++) {
        int64_t at = (row + i) * w->shape->heads + head;
        vf inverse = vf_set(1.0f / s->stat[1][i]);
        for (int64_t d = 0; d < dim; d += SIMD_WIDTH)
            vf_store_act(w->o, w->act, at * dim + d, dim - d, vf_load(s->sum[0] + i * s->sum_stride + d) * inverse);
        if (w->lse != NULL) w->lse[at] = s->stat[0][i] + logf(s->stat[1][i]);
    }
}

static void forward_item(void *context, int64_t item, int worker) {
    const Work *w = context;
    const AttentionShape *shape = w->shape;
    int64_t dim = shape->head_dim, head = item % shape->heads, row = w->blocks[item / shape->heads];
    int64_t sequence = ref_sequence_of(w->batch, row), start = w->batch->starts[sequence];
    int64_t block = least(ATTENTION_BLOCK, w->batch->starts[sequence + 1] - row), window = shape->window;
    int64_t kv_head = head / (shape->heads / shape->kv_heads);
    Operand q = head_of(w->q, w->act, shape->heads, head, dim), k = head_of(w->k, w->act, shape->kv_heads, kv_head, dim);
    Operand v = head_of(w->v, w->act, shape->kv_heads, kv_head, dim);
    Scratch s = attention_scratch(w->scratch, worker, 1, w->act, dim);
    attention_pack(&s, &q, row, block, dim, s.rows[0]);
    memset(s.sum[0], 0, (size_t)(ATTENTION_BLOCK * s.sum_stride) * sizeof(float));
    for (int64_t i = 0; i < block; i++) {
        s.stat[0][i] = -INFINITY;
        s.stat[1][i] = 0.0f;
    }
    int64_t end = row + block + w->past, c0 = window > 0 ? most(start, row + w->past - window + 1) : start;
    for (; c0 < end; c0 += ATTENTION_STRETCH) {
        int64_t count = least(ATTENTION_STRETCH, end - c0);
        Visible visible;
        for (int64_t i = 0; i < block; i++) {
            int64_t place = row + i + w->past;
            visible.first[i] = window > 0 ? most(0, place - window + 1 - c0) : 0;
            visible.end[i] = least(count, place + 1 - c0);
        }
        attention_scores(&s, s.rows[0], block, &k, c0, count, dim, &visible, s.scores[0]);
        soften(&s, block, count, shape->scale, &visible);
        attention_add(&s, s.scores[0], block, &v, c0, count, dim, &visible, s.sum[0]);
    }
    finish(w, &s, row, block, head);
}

static Status attention_plan(const ExecConfig *config, const AttentionShape *shape, OpPlan *plan, Error *err) {
    AttentionPlaces at;
    TRY(attention_places(config, shape, &at, err));
    *plan = at.plan;
    return OK;
}

static Status attention_forward(const Exec *exec, const AttentionShape *shape, const Batch *batch, const void *q, const void *k,
                                const void *v, void *o, void *saved, void *workspace, Error *err) {
    AttentionPlaces at;
    TRY(attention_places(&exec->config, shape, &at, err));
    TRY(ref_attention_check(shape, batch, err));
    int64_t blocks = attention_cut(batch, workspace);
    Work work = {.act = exec->config.act,
                 .shape = shape,
                 .batch = batch,
                 .q = q,
                 .k = k,
                 .v = v,
                 .o = o,
                 .lse = saved,
                 .blocks = workspace,
                 .scratch = (char *)workspace + at.forward_scratch};
    pool_run(exec->pool, forward_item, &work, blocks * shape->heads);
    return OK;
}

/* One sequence's rows over a cache that holds them already. */
static void over_cache(const Exec *exec, const AttentionShape *shape, const Batch *batch, const void *q, const KvLayer *cache,
                       int64_t past, void *o, void *workspace, const AttentionPlaces *at) {
    Work work = {.act = exec->config.act,
                 .shape = shape,
                 .batch = batch,
                 .q = q,
                 .k = cache->k,
                 .v = cache->v,
                 .o = o,
                 .blocks = workspace,
                 .scratch = (char *)workspace + at->forward_scratch,
                 .past = past};
    pool_run(exec->pool, forward_item, &work, attention_cut(batch, workspace) * shape->heads);
}

static Status attention_cached(const Exec *exec, const AttentionShape *shape, const Batch *batch, const void *q, const void *k,
                               const void *v, const KvLayer *cache, int64_t past, void *o, void *workspace, Error *err) {
    AttentionPlaces at;
    DType act = exec->config.act;
    TRY(attention_places(&exec->config, shape, &at, err));
    TRY(ref_attention_check(shape, batch, err));
    TRY(ref_attention_append(act, shape, batch, k, v, cache, past, err));
    CachePart whole = {.past = past};
    const CachePart *parts = batch->parts != NULL ? batch->parts : &whole;
    if (batch->parts == NULL && batch->tokens > 1) {
        over_cache(exec, shape, batch, q, cache, past, o, workspace, &at);
        return OK;
    }
    if (attention_one(exec, shape, parts, batch->tokens, q, cache, o, (char *)workspace + at.forward_scratch)) return OK;
    int64_t starts[] = {0, 1}, width = shape->kv_heads * shape->head_dim, q_width = shape->heads * shape->head_dim;
    Batch one = {.tokens = 1, .sequences = 1, .starts = starts};
    for (int64_t t = 0; t < batch->tokens; t++) {
        KvLayer part = {ref_at_mutable(act, cache->k, parts[t].first * width),
                        ref_at_mutable(act, cache->v, parts[t].first * width)};
        over_cache(exec, shape, &one, ref_at(act, q, t * q_width), &part, parts[t].past, ref_at_mutable(act, o, t * q_width),
                   workspace, &at);
    }
    return OK;
}

void simd_attention(Backend *backend) {
    backend->attention_plan = attention_plan;
    backend->attention_forward = attention_forward;
    backend->attention_backward = attention_gradients;
    backend->attention_cached = attention_cached;
    backend->variant.attention = SIMD_VARIANT;
}
