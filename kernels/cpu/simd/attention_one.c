/* Attention of single rows over a cache (generation): all query heads of a key/value head look at a key while it is at hand,
 * so the cache is read once and widened to FP32 once.
 *
 * The online softmax of attention.c over stretches of keys; probabilities stay FP32. A head's arithmetic does not depend on
 * which heads share an item, so more threads than key/value heads cut the query heads among them.
 */
#include <math.h>

#include "kernels/cpu/simd/attention.h"

#define STRETCH 128                              /* keys between two corrections of the sums */
#define HEADS_AT_ONCE (SIMD_WIDTH == 16 ? 4 : 2) /* whose sums are in registers */
#define VECTORS_AT_ONCE 4
#define FETCH_ROWS 64 /* what lies between reading and fetching */

typedef struct Work {
    DType act;
    const AttentionShape *shape;
    const void *q, *k, *v;
    void *o;
    const CachePart *rows;
    int64_t parts, share; /* of a key/value head's query heads: how many items, and heads of one */
    float *scratch;
} Work;

/* Of a worker: rows of `width` = D up to a vector. */
typedef struct Space {
    float *q, *sum; /* [share][width] */
    float *scores;  /* [share][STRETCH] */
    float *rows;    /* keys or values: [width / SIMD_WIDTH][SIMD_WIDTH rows][SIMD_WIDTH] */
    float *largest, *total;
    int64_t width;
} Space;

static int64_t space_floats(int64_t share, int64_t width) {
    return share * (2 * width + STRETCH) + SIMD_WIDTH * width + 2 * round_up(share, SIMD_WIDTH);
}

static Space space_of(const Work *w, int worker) {
    Space s = {.width = round_up(w->shape->head_dim, SIMD_WIDTH)};
    s.q = w->scratch + worker * attention_thread_floats(1, w->shape->head_dim);
    s.sum = s.q + w->share * s.width;
    s.scores = s.sum + w->share * s.width;
    s.rows = s.scores + w->share * STRETCH;
    s.largest = s.rows + SIMD_WIDTH * s.width;
    s.total = s.largest + round_up(w->share, SIMD_WIDTH);
    return s;
}

/* Asks for rows [first, end). */
static void fetch(const void *from, DType act, int64_t stride, int64_t dim, int64_t first, int64_t end) {
    for (int64_t r = first; r < end; r++)
        for (int64_t d = 0; d < dim; d += 64 / (int64_t)dtype_size(act))
            _mm_prefetch((const char *)ref_at(act, from, r * stride + d), _MM_HINT_T0);
}

/* Widens `count` rows, `stride` elements apart; zeros complete them, and the rows up to SIMD_WIDTH. Rows further on are
 * fetched: of a row that many heads share, what one item reads is too short for the processor to see a stream in it. */
static void widen(const void *from, DType act, int64_t stride, int64_t dim, int64_t count, int64_t width, float *to) {
    fetch(from, act, stride, dim, FETCH_ROWS, least(count, FETCH_ROWS + SIMD_WIDTH));
    for (int64_t r = 0; r < SIMD_WIDTH; r++)
        for (int64_t d = 0; d < width; d += SIMD_WIDTH)
            vf_store(to + d * SIMD_WIDTH + r * SIMD_WIDTH,
                     r < count ? vf_load_act(from, act, r * stride + d, dim - d) : vf_zero());
}

/* The sum of each of SIMD_WIDTH vectors: halves of two at a time are added until one vector is left. */
SIMD_INLINE vf sums_of(const vf x[SIMD_WIDTH]) {
#if SIMD_WIDTH == 16
    vf two[8], four[4];
    SIMD_UNROLL
    for (int i = 0; i < 8; i++)
        two[i] = _mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]) + _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]);
    SIMD_UNROLL
    for (int i = 0; i < 4; i++)
        four[i] = (vf)_mm512_unpacklo_pd((__m512d)two[2 * i], (__m512d)two[2 * i + 1]) +
                  (vf)_mm512_unpackhi_pd((__m512d)two[2 * i], (__m512d)two[2 * i + 1]);
    vf low = _mm512_shuffle_f32x4(four[0], four[1], 0x88) + _mm512_shuffle_f32x4(four[0], four[1], 0xDD);
    vf high = _mm512_shuffle_f32x4(four[2], four[3], 0x88) + _mm512_shuffle_f32x4(four[2], four[3], 0xDD);
    return _mm512_shuffle_f32x4(low, high, 0x88) + _mm512_shuffle_f32x4(low, high, 0xDD);
#else
    vf two[4], four[2];
    SIMD_UNROLL
    for (int i = 0; i < 4; i++)
        two[i] = _mm256_unpacklo_ps(x[2 * i], x[2 * i + 1]) + _mm256_unpackhi_ps(x[2 * i], x[2 * i + 1]);
    SIMD_UNROLL
    for (int i = 0; i < 2; i++)
        four[i] = (vf)_mm256_unpacklo_pd((__m256d)two[2 * i], (__m256d)two[2 * i + 1]) +
                  (vf)_mm256_unpackhi_pd((__m256d)two[2 * i], (__m256d)two[2 * i + 1]);
    return _mm256_permute2f128_ps(four[0], four[1], 0x20) + _mm256_permute2f128_ps(four[0], four[1], 0x31);
#endif
}

/* scores = q . SIMD_WIDTH keys */
static void score(const Space *s, const float *q, float *scores) {
    vf sum[SIMD_WIDTH];
    SIMD_UNROLL
    for (int r = 0; r < SIMD_WIDTH; r++)
        sum[r] = vf_zero();
    for (int64_t d = 0; d < s->width; d += SIMD_WIDTH) {
        vf x = vf_load(q + d);
        SIMD_UNROLL
        for (int r = 0; r < SIMD_WIDTH; r++)
            sum[r] = vf_fma(x, vf_load(s->rows + d * SIMD_WIDTH + r * SIMD_WIDTH), sum[r]);
    }
    vf_store(scores, sums_of(sum));
}

/* Scores of `count` keys become e^(scale * score - largest), zeros behind them; sums so far are scaled to the new largest. */
static void soften(const Space *s, int64_t head, int64_t count, float scale) {
    float *scores = s->scores + head * STRETCH, *sum = s->sum + head * s->width;
    int64_t end = round_up(count, SIMD_WIDTH);
    vf high = vf_set(-INFINITY), total = vf_zero();
    for (int64_t c = 0; c < end; c += SIMD_WIDTH) {
        vf x = vf_select(lanes_within(c, 0, count), vf_load(scores + c) * vf_set(scale), vf_set(-INFINITY));
        vf_store(scores + c, x);
        high = vf_max(high, x);
    }
    float before = s->largest[head], largest = vf_largest(high);
    if (largest < before) largest = before;
    for (int64_t c = 0; c < end; c += SIMD_WIDTH) {
        vf p = vf_exp(vf_load(scores + c) - vf_set(largest));
        vf_store(scores + c, p);
        total += p;
    }
    float shrink = before == -INFINITY ? 0.0f : expf(before - largest);
    s->largest[head] = largest;
    s->total[head] = s->total[head] * shrink + vf_sum(total);
    for (int64_t d = 0; d < s->width && shrink != 1.0f; d += SIMD_WIDTH)
        vf_store(sum + d, vf_load(sum + d) * vf_set(shrink));
}

/* sum [heads][width] += p [heads][count] x rows, `vectors` of them from column d on */
SIMD_INLINE void add_block(const Space *s, int64_t head, int64_t c, int64_t count, int64_t d, const int heads,
                           const int vectors) {
    vf a[HEADS_AT_ONCE][VECTORS_AT_ONCE];
    SIMD_UNROLL
    for (int h = 0; h < heads; h++)
        SIMD_UNROLL
    for (int i = 0; i < vectors; i++)
        a[h][i] = vf_load(s->sum + (head + h) * s->width + d + i * SIMD_WIDTH);
    for (int64_t r = 0; r < count; r++) {
        const float *row = s->rows + d * SIMD_WIDTH + r * SIMD_WIDTH;
        SIMD_UNROLL
        for (int h = 0; h < heads; h++) {
            vf p = vf_set(s->scores[(head + h) * STRETCH + c + r]);
            SIMD_UNROLL
            for (int i = 0; i < vectors; i++)
                a[h][i] = vf_fma(p, vf_load(row + i * SIMD_WIDTH * SIMD_WIDTH), a[h][i]);
        }
    }
    SIMD_UNROLL
    for (int h = 0; h < heads; h++)
        SIMD_UNROLL
    for (int i = 0; i < vectors; i++)
        vf_store(s->sum + (head + h) * s->width + d + i * SIMD_WIDTH, a[h][i]);
}

static void add_values(const Space *s, int64_t heads, int64_t c, int64_t count) {
    for (int64_t d = 0, vectors; d < s->width; d += vectors * SIMD_WIDTH) {
        vectors = d + VECTORS_AT_ONCE * SIMD_WIDTH <= s->width ? VECTORS_AT_ONCE : 1;
        int64_t head = 0;
        for (; head + HEADS_AT_ONCE <= heads; head += HEADS_AT_ONCE)
            if (vectors == 1)
                add_block(s, head, c, count, d, HEADS_AT_ONCE, 1);
            else
                add_block(s, head, c, count, d, HEADS_AT_ONCE, VECTORS_AT_ONCE);
        for (; head < heads; head++)
            if (vectors == 1)
                add_block(s, head, c, count, d, 1, 1);
            else
                add_block(s, head, c, count, d, 1, VECTORS_AT_ONCE);
    }
}

static void one_item(void *context, int64_t item, int worker) {
    const Work *w = context;
    const AttentionShape *shape = w->shape;
    Space s = space_of(w, worker);
    int64_t dim = shape->head_dim, group = shape->heads / shape->kv_heads;
    int64_t kv_head = item / w->parts % shape->kv_heads, row = item / w->parts / shape->kv_heads;
    int64_t stride = shape->kv_heads * dim, first = item % w->parts * w->share, heads = least(w->share, group - first);
    int64_t head0 = row * shape->heads + kv_head * group + first, begin = w->rows[row].first,
            end = begin + w->rows[row].past + 1;
    int64_t start = shape->window > 0 ? most(begin, end - shape->window) : begin;
    const void *keys = ref_at(w->act, w->k, kv_head * dim), *values = ref_at(w->act, w->v, kv_head * dim);
    fetch(keys, w->act, stride, dim, start, least(end, start + FETCH_ROWS));
    fetch(values, w->act, stride, dim, start, least(end, start + FETCH_ROWS));
    for (int64_t h = 0; h < heads; h++) {
        s.largest[h] = -INFINITY;
        s.total[h] = 0.0f;
        for (int64_t d = 0; d < s.width; d += SIMD_WIDTH) {
            vf_store(s.q + h * s.width + d, vf_load_act(w->q, w->act, (head0 + h) * dim + d, dim - d));
            vf_store(s.sum + h * s.width + d, vf_zero());
        }
    }
    for (int64_t c0 = start; c0 < end; c0 += STRETCH) {
        int64_t count = least(STRETCH, end - c0);
        for (int64_t c = 0; c < count; c += SIMD_WIDTH) {
            widen(ref_at(w->act, keys, (c0 + c) * stride), w->act, stride, dim, end - c0 - c, s.width, s.rows);
            for (int64_t h = 0; h < heads; h++)
                score(&s, s.q + h * s.width, s.scores + h * STRETCH + c);
        }
        for (int64_t h = 0; h < heads; h++)
            soften(&s, h, count, shape->scale);
        for (int64_t c = 0; c < count; c += SIMD_WIDTH) {
            widen(ref_at(w->act, values, (c0 + c) * stride), w->act, stride, dim, end - c0 - c, s.width, s.rows);
            add_values(&s, heads, c, least(SIMD_WIDTH, count - c));
        }
    }
    for (int64_t h = 0; h < heads; h++)
        for (int64_t d = 0; d < dim; d += SIMD_WIDTH)
            vf_store_act(w->o, w->act, (head0 + h) * dim + d, dim - d,
                         vf_load(s.sum + h * s.width + d) * vf_set(1.0f / s.total[h]));
}

int attention_one(const Exec *exec, const AttentionShape *shape, const CachePart *parts, int64_t count, const void *q,
                  const KvLayer *cache, void *o, void *scratch) {
    int64_t group = shape->heads / shape->kv_heads, heads = count * shape->kv_heads;
    Work work = {.act = exec->config.act,
                 .shape = shape,
                 .q = q,
                 .k = cache->k,
                 .v = cache->v,
                 .o = o,
                 .rows = parts,
                 .share = group,
                 .scratch = scratch};
    while (work.share > 1 && (group + work.share - 1) / work.share * heads < exec->config.threads)
        work.share = (work.share + 1) / 2;
    work.parts = (group + work.share - 1) / work.share;
    if (space_floats(work.share, round_up(shape->head_dim, SIMD_WIDTH)) > attention_thread_floats(1, shape->head_dim)) return 0;
    pool_run(exec->pool, one_item, &work, heads * work.parts);
    return 1;
}
