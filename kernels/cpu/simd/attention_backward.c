/* Attention, backward: the formulas of the reference, once with blocks of queries (dq), once with blocks of keys (dk, dv).
 *
 * The scores are computed twice, so that every sum belongs to one item and any number of threads gives the same bits. In the
 * pass over keys the scores lie transposed ([keys, queries]), so both passes multiply panels in the same two ways.
 */
#include "kernels/cpu/simd/attention.h"

typedef struct Work {
    DType act;
    const AttentionShape *shape;
    const Batch *batch;
    const void *q, *k, *v, *o, *d_o;
    const float *lse;
    float *delta;
    void *dq, *dk, *dv;
    const int32_t *blocks;
    void *scratch;
} Work;

/* delta = o . d_o of every head of a row */
static void delta_row(void *context, int64_t t, int worker) {
    (void)worker;
    const Work *w = context;
    int64_t dim = w->shape->head_dim;
    for (int64_t row = t * w->shape->heads; row < (t + 1) * w->shape->heads; row++) {
        vf sum = vf_zero();
        for (int64_t d = 0; d < dim; d += SIMD_WIDTH)
            sum = vf_fma(vf_load_act(w->o, w->act, row * dim + d, dim - d), vf_load_act(w->d_o, w->act, row * dim + d, dim - d),
                         sum);
        w->delta[row] = vf_sum(sum);
    }
}

/* scores[0] = p, scores[1] = ds, from scores[0] = q k and scores[1] = do v. The statistics belong to rows (queries down the
 * block) or to columns (queries along the stretch). */
SIMD_INLINE void score_gradients(const Scratch *s, int64_t block, int64_t count, float scale, const Visible *visible,
                                 const int by_row, const int pairs) {
    for (int64_t i = 0; i < block; i++) {
        float *p = s->scores[0] + i * ATTENTION_STRIDE, *ds = s->scores[1] + i * ATTENTION_STRIDE;
        int64_t first = visible->first[i], end = visible->end[i];
        for (int64_t c = 0; c < count; c += SIMD_WIDTH) {
            vf probability = vf_zero(), gradient = vf_zero();
            if (c < end && c + SIMD_WIDTH > first) {
                vf lse = by_row ? vf_set(s->stat[0][i]) : vf_load(s->stat[0] + c);
                vf delta = by_row ? vf_set(s->stat[1][i]) : vf_load(s->stat[1] + c);
                probability = vf_exp(vf_fma(vf_load(p + c), vf_set(scale), -lse));
                gradient = probability * (vf_load(ds + c) - delta);
                if (c < first || c + SIMD_WIDTH > end) {
                    vi seen = lanes_within(c, first, end);
                    probability = vf_select(seen, probability, vf_zero());
                    gradient = vf_select(seen, gradient, vf_zero());
                }
            }
            store_scores(p, c, probability, pairs);
            store_scores(ds, c, gradient, pairs);
        }
    }
}

static void store_sum(const Work *w, const Scratch *s, const float *sum, int64_t block, float scale, void *out, int64_t row,
                      int64_t heads, int64_t head) {
    int64_t dim = w->shape->head_dim;
    for (int64_t i = 0; i < block; i++)
        for (int64_t d = 0; d < dim; d += SIMD_WIDTH)
            vf_store_act(out, w->act, ((row + i) * heads + head) * dim + d, dim - d,
                         vf_load(sum + i * s->sum_stride + d) * vf_set(scale));
}

static void query_item(void *context, int64_t item, int worker) {
    const Work *w = context;
    const AttentionShape *shape = w->shape;
    int64_t dim = shape->head_dim, heads = shape->heads, head = item % heads, row = w->blocks[item / heads];
    int64_t sequence = ref_sequence_of(w->batch, row), start = w->batch->starts[sequence], window = shape->window;
    int64_t block = least(ATTENTION_BLOCK, w->batch->starts[sequence + 1] - row);
    int64_t kv_head = head / (heads / shape->kv_heads);
    Operand q = head_of(w->q, w->act, heads, head, dim), d_o = head_of(w->d_o, w->act, heads, head, dim);
    Operand k = head_of(w->k, w->act, shape->kv_heads, kv_head, dim), v = head_of(w->v, w->act, shape->kv_heads, kv_head, dim);
    Scratch s = attention_scratch(w->scratch, worker, 2, w->act, dim);
    attention_pack(&s, &q, row, block, dim, s.rows[0]);
    attention_pack(&s, &d_o, row, block, dim, s.rows[1]);
    memset(s.sum[0], 0, (size_t)(ATTENTION_BLOCK * s.sum_stride) * sizeof(float));
    for (int64_t i = 0; i < block; i++) {
        s.stat[0][i] = w->lse[(row + i) * heads + head];
        s.stat[1][i] = w->delta[(row + i) * heads + head];
    }
    int64_t end = row + block;
    for (int64_t c0 = window > 0 ? most(start, row - window + 1) : start; c0 < end; c0 += ATTENTION_STRETCH) {
        int64_t count = least(ATTENTION_STRETCH, end - c0);
        Visible visible;
        for (int64_t i = 0; i < block; i++) {
            visible.first[i] = window > 0 ? most(0, row + i - window + 1 - c0) : 0;
            visible.end[i] = least(count, row + i + 1 - c0);
        }
        attention_scores(&s, s.rows[0], block, &k, c0, count, dim, &visible, s.scores[0]);
        attention_scores(&s, s.rows[1], block, &v, c0, count, dim, &visible, s.scores[1]);
        score_gradients(&s, block, count, shape->scale, &visible, 1, s.pairs);
        attention_add(&s, s.scores[1], block, &k, c0, count, dim, &visible, s.sum[0]);
    }
    store_sum(w, &s, s.sum[0], block, shape->scale, w->dq, row, heads, head);
}

/* What one query head adds to dk (sum[1]) and dv (sum[0]) of a block of keys. */
static void add_head(const Work *w, const Scratch *s, int64_t row, int64_t block, int64_t head, int64_t sequence_end) {
    const AttentionShape *shape = w->shape;
    int64_t dim = shape->head_dim, heads = shape->heads, window = shape->window;
    Operand q = head_of(w->q, w->act, heads, head, dim), d_o = head_of(w->d_o, w->act, heads, head, dim);
    int64_t end = window > 0 ? least(sequence_end, row + block - 1 + window) : sequence_end;
    for (int64_t c0 = row; c0 < end; c0 += ATTENTION_STRETCH) {
        int64_t count = least(ATTENTION_STRETCH, end - c0);
        Visible visible;
        for (int64_t i = 0; i < block; i++) {
            visible.first[i] = most(0, row + i - c0);
            visible.end[i] = window > 0 ? least(count, row + i + window - c0) : count;
        }
        for (int64_t c = 0; c < ATTENTION_STRETCH; c++) {
            s->stat[0][c] = c < count ? w->lse[(c0 + c) * heads + head] : 0.0f;
            s->stat[1][c] = c < count ? w->delta[(c0 + c) * heads + head] : 0.0f;
        }
        attention_scores(s, s->rows[0], block, &q, c0, count, dim, &visible, s->scores[0]);
        attention_scores(s, s->rows[1], block, &d_o, c0, count, dim, &visible, s->scores[1]);
        score_gradients(s, block, count, shape->scale, &visible, 0, s->pairs);
        attention_add(s, s->scores[0], block, &d_o, c0, count, dim, &visible, s->sum[0]);
        attention_add(s, s->scores[1], block, &q, c0, count, dim, &visible, s->sum[1]);
    }
}

static void key_item(void *context, int64_t item, int worker) {
    const Work *w = context;
    const AttentionShape *shape = w->shape;
    int64_t dim = shape->head_dim, kv_heads = shape->kv_heads, kv_head = item % kv_heads, row = w->blocks[item / kv_heads];
    int64_t end = w->batch->starts[ref_sequence_of(w->batch, row) + 1], block = least(ATTENTION_BLOCK, end - row);
    int64_t group = shape->heads / kv_heads;
    Operand k = head_of(w->k, w->act, kv_heads, kv_head, dim), v = head_of(w->v, w->act, kv_heads, kv_head, dim);
    Scratch s = attention_scratch(w->scratch, worker, 2, w->act, dim);
    attention_pack(&s, &k, row, block, dim, s.rows[0]);
    attention_pack(&s, &v, row, block, dim, s.rows[1]);
    for (int i = 0; i < 2; i++)
        memset(s.sum[i], 0, (size_t)(ATTENTION_BLOCK * s.sum_stride) * sizeof(float));
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; head++)
        add_head(w, &s, row, block, head, end);
    store_sum(w, &s, s.sum[1], block, shape->scale, w->dk, row, kv_heads, kv_head);
    store_sum(w, &s, s.sum[0], block, 1.0f, w->dv, row, kv_heads, kv_head);
}

Status attention_gradients(const Exec *exec, const AttentionShape *shape, const Batch *batch, const void *q, const void *k,
                           const void *v, const void *o, const void *saved, const void *d_o, void *dq, void *dk, void *dv,
                           void *workspace, Error *err) {
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
                 .d_o = d_o,
                 .lse = saved,
                 .delta = (float *)(void *)((char *)workspace + at.delta),
                 .dq = dq,
                 .dk = dk,
                 .dv = dv,
                 .blocks = workspace,
                 .scratch = (char *)workspace + at.backward_scratch};
    pool_run(exec->pool, delta_row, &work, batch->tokens);
    pool_run(exec->pool, query_item, &work, blocks * shape->heads);
    pool_run(exec->pool, key_item, &work, blocks * shape->kv_heads);
    return OK;
}
