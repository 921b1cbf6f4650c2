/* Head and loss of a frozen head in a BF16 run: attention of the supervised rows over the vocabulary, with the head's weight as
 * keys and values (the online softmax of attention.c), so that no logits lie in memory and each weight is decoded once for both
 * products.
 *
 *   of a slab of SLAB words:  z = x W^T   m' = max(m, max z)   l' = l e^(m - m') + sum e^(z - m')   o' = o e^(m - m') + e^(z - m') W
 *   dx = grad_scale (o / l - W[target])
 *
 * e^(z - m') is rounded to BF16 before it meets W; the target's own term, a difference of near equals when the model is sure,
 * is left out of o and added at the end from double.
 *
 * The vocabulary is cut into SLICES whatever the number of threads, and the slices' results are added in order: the same bits.
 * workspace: [ x BF16 chunk x C | o FP32 SLICES x chunk x C | m, l, of each slice and row | z of the target | nll | products' ]
 */
#include <math.h>

#include "kernels/cpu/simd/head.h"

#if GEMM_PAIRS
#define SLICES 4
#define SLAB GEMM_TILE_COLUMNS
#define PARTIAL_BYTES ((int64_t)33554432) /* about so much of o */

typedef struct Layout {
    int64_t chunk, padded; /* rows, and those that products may touch */
    int64_t stride;        /* of a row of o */
    size_t x, o, largest, sum, wanted, nll, gemm, total;
} Layout;

static Status layout_of(const ExecConfig *config, const HeadShape *shape, Layout *at, Error *err) {
    *at = (Layout){.stride = round_up(shape->hidden, SIMD_WIDTH)};
    int64_t chunk = PARTIAL_BYTES / (SLICES * at->stride * (int64_t)sizeof(float));
    at->chunk = least(most(128, least(chunk, 1024)), shape->supervised);
    at->padded = round_up(at->chunk, GEMM_PANEL_ROWS);
    int64_t o_rows = shape->need_dx ? SLICES * at->padded : 0;
    TRY(ref_region(&at->total, &at->x, "head", at->chunk, shape->hidden, sizeof(bf16), err));
    TRY(ref_region(&at->total, &at->o, "head", o_rows, at->stride, sizeof(float), err));
    TRY(ref_region(&at->total, &at->largest, "head", SLICES * at->padded, 1, sizeof(float), err));
    TRY(ref_region(&at->total, &at->sum, "head", SLICES * at->padded, 1, sizeof(double), err));
    TRY(ref_region(&at->total, &at->wanted, "head", at->padded, 1, sizeof(float), err));
    TRY(ref_region(&at->total, &at->nll, "head", at->padded, 1, sizeof(double), err));
    at->gemm = at->total;
    at->total += gemm_workspace(config->threads, 0);
    return OK;
}

int head_flash_takes(const ExecConfig *config, const HeadShape *shape) {
    return config->act == DTYPE_BF16 && !shape->train_weight && !shape->distill && shape->hidden % (2 * SIMD_WIDTH) == 0 &&
           shape->hidden <= GEMM_TILE_ROWS * GEMM_TILE_COLUMNS;
}

Status head_flash_plan(const ExecConfig *config, const HeadShape *shape, OpPlan *plan, Error *err) {
    Layout at;
    TRY(layout_of(config, shape, &at, err));
    *plan = (OpPlan){.forward_workspace = at.total};
    return OK;
}

typedef struct Work {
    const HeadShape *shape;
    const WeightView *weight;
    const Batch *batch;
    Layout at;
    int64_t first, count; /* supervised rows of this chunk */
    int64_t tile_rows, slice_words;
    const bf16 *from; /* the activation */
    bf16 *x, *dx;     /* its supervised rows one after another; dx: NULL where not wanted */
    float *o, *largest, *wanted;
    double *sum, *nll;
    void *gemm;
} Work;

/* One row's slab: z becomes e^(z - m) as BF16, the target's 0; returns what o is to be multiplied by. */
static float soften(float *z, int64_t columns, int64_t target, float *largest, double *sum) {
    vf most_of = vf_set(-INFINITY);
    for (int64_t v = 0; v < columns; v += SIMD_WIDTH)
        most_of = vf_max(most_of, vf_load(z + v));
    float before = *largest, now = vf_largest(most_of);
    if (now < before) now = before;
    vf total = vf_zero();
    for (int64_t v = 0; v < columns; v += SIMD_WIDTH) {
        vf e = vf_exp(vf_load(z + v) - vf_set(now));
        total += e;
        store_operands((bf16 *)(void *)z + v, e); /* behind what is still to be read */
    }
    if (target >= 0 && target < columns) ((bf16 *)(void *)z)[target] = 0;
    float shrink = before == -INFINITY ? 0.0f : expf(before - now);
    *largest = now;
    *sum = *sum * (double)shrink + (double)vf_sum(total);
    return shrink;
}

static void soften_slab(const Work *w, float *z, int64_t m0, int64_t rows, int64_t v0, int64_t columns, int64_t slice,
                        float *o) {
    for (int64_t i = 0; i < rows; i++) {
        float *row = z + i * SLAB;
        int64_t target = w->batch->targets[w->first + m0 + i] - v0, at = slice * w->at.padded + m0 + i;
        if (target >= 0 && target < columns) w->wanted[m0 + i] = row[target];
        for (int64_t v = columns; v % SIMD_WIDTH != 0; v++) /* no words there */
            row[v] = -INFINITY;
        float shrink = soften(row, columns, target, &w->largest[at], &w->sum[at]);
        if (o == NULL || shrink == 1.0f) continue;
        for (int64_t c = 0; c < w->at.stride; c += SIMD_WIDTH)
            vf_store(o + i * w->at.stride + c, vf_load(o + i * w->at.stride + c) * vf_set(shrink));
    }
}

/* Rows of a tile against one slice of the vocabulary. */
static void flash_item(void *context, int64_t item, int worker) {
    const Work *w = context;
    int64_t slice = item % SLICES, m0 = item / SLICES * w->tile_rows, rows = least(w->tile_rows, w->count - m0);
    int64_t hidden = w->shape->hidden, at = slice * w->at.padded + m0, padded = round_up(rows, GEMM_PANEL_ROWS);
    float *z = gemm_tile_memory(w->gemm, worker), *o = w->dx != NULL ? w->o + at * w->at.stride : NULL;
    int32_t words[SLAB];
    for (int64_t i = 0; i < rows; i++) {
        w->largest[at + i] = -INFINITY;
        w->sum[at + i] = 0.0;
    }
    if (o != NULL) memset(o, 0, (size_t)(padded * w->at.stride) * sizeof *o);
    Term scores = {.a = {.data = w->x, .type = DTYPE_BF16, .stride = hidden, .scale = 1.0f},
                   .b = {.weight = w->weight, .round_to = DTYPE_BF16, .scale = 1.0f},
                   .b_rows_are_n = 1,
                   .k = hidden};
    Term mean = {.a = {.data = z, .type = DTYPE_BF16, .stride = 2 * SLAB, .scale = 1.0f}, .b = scores.b};
    mean.b.rows = words;
    int64_t end = least(w->shape->vocab, (slice + 1) * w->slice_words);
    for (int64_t v0 = slice * w->slice_words; v0 < end; v0 += SLAB) {
        int64_t columns = least(SLAB, end - v0);
        memset(z, 0, (size_t)(padded * SLAB) * sizeof *z);
        gemm_add_tile(&scores, m0, rows, v0, columns, z, SLAB, w->gemm, worker);
        soften_slab(w, z, m0, rows, v0, columns, slice, o);
        if (o == NULL) continue;
        for (int64_t i = 0; i < columns; i++)
            words[i] = (int32_t)(v0 + i);
        mean.k = columns;
        gemm_add_tile(&mean, 0, rows, 0, hidden, o, w->at.stride, w->gemm, worker);
    }
}

/* The slices of one row put together. */
static void finish_row(void *context, int64_t j, int worker) {
    const Work *w = context;
    int64_t hidden = w->shape->hidden, padded = w->at.padded;
    float largest = -INFINITY, factor[SLICES];
    for (int s = 0; s < SLICES; s++)
        largest = w->largest[s * padded + j] > largest ? w->largest[s * padded + j] : largest;
    double sum = 0.0, scale = (double)w->batch->grad_scale;
    for (int s = 0; s < SLICES; s++)
        sum += w->sum[s * padded + j] * exp((double)w->largest[s * padded + j] - (double)largest);
    w->nll[j] = (double)largest - (double)w->wanted[j] + log(sum);
    if (w->dx == NULL) return;
    for (int s = 0; s < SLICES; s++)
        factor[s] = (float)(scale * exp((double)w->largest[s * padded + j] - (double)largest) / sum);
    float own = (float)(scale * (exp((double)w->wanted[j] - (double)largest) / sum - 1.0));
    float *row = gemm_tile_memory(w->gemm, worker);
    bf16 *to = w->dx + w->batch->rows[w->first + j] * hidden;
    weight_read(w->weight, DTYPE_BF16, w->batch->targets[w->first + j] * hidden, hidden, row);
    for (int64_t c = 0; c < hidden; c += SIMD_WIDTH) {
        vf x = vf_load(row + c) * vf_set(own);
        for (int s = 0; s < SLICES; s++)
            x += vf_load(w->o + (s * padded + j) * w->at.stride + c) * vf_set(factor[s]);
        vf_store_bf16(to + c, x);
    }
}

static void gather_row(void *context, int64_t j, int worker) {
    (void)worker;
    const Work *w = context;
    int64_t hidden = w->shape->hidden;
    memcpy(w->x + j * hidden, w->from + w->batch->rows[w->first + j] * hidden, (size_t)hidden * sizeof(bf16));
}

/* Row tiles as tall as the buffers, or lower where every thread would not get its share. */
static int64_t choose_rows(const Exec *exec, int64_t count) {
    int64_t threads = exec->config.threads, tallest = gemm_tile_rows(exec);
    int64_t best = 0, best_cost = 0, cuts = (count + tallest - 1) / tallest;
    for (int64_t tried = 0; tried < 16; tried++, cuts++) {
        int64_t rows = round_up((count + cuts - 1) / cuts, GEMM_PANEL_ROWS), items = (count + rows - 1) / rows * SLICES;
        int64_t cost = (items + threads - 1) / threads * (rows + GEMM_PACKING_ROWS);
        if (best == 0 || cost < best_cost) {
            best = rows;
            best_cost = cost;
        }
    }
    return best;
}

Status head_flash_loss(const Exec *exec, const HeadShape *shape, const Batch *batch, const void *x, const WeightView *weight,
                       double *loss_sum, float *nll, void *dx, void *workspace, Error *err) {
    Work w = {.shape = shape, .weight = weight, .batch = batch, .from = x, .dx = dx};
    TRY(layout_of(&exec->config, shape, &w.at, err));
    char *base = workspace;
    w.x = (bf16 *)(void *)(base + w.at.x);
    w.o = (float *)(void *)(base + w.at.o);
    w.largest = (float *)(void *)(base + w.at.largest);
    w.sum = (double *)(void *)(base + w.at.sum);
    w.wanted = (float *)(void *)(base + w.at.wanted);
    w.nll = (double *)(void *)(base + w.at.nll);
    w.gemm = base + w.at.gemm;
    w.slice_words = round_up((shape->vocab + SLICES - 1) / SLICES, SLAB);
    for (w.first = 0; w.first < batch->supervised; w.first += w.count) {
        w.count = least(w.at.chunk, batch->supervised - w.first);
        w.tile_rows = choose_rows(exec, w.count);
        pool_run(exec->pool, gather_row, &w, w.count);
        pool_run(exec->pool, flash_item, &w, (w.count + w.tile_rows - 1) / w.tile_rows * SLICES);
        pool_run(exec->pool, finish_row, &w, w.count);
        for (int64_t j = 0; j < w.count; j++) {
            *loss_sum += w.nll[j];
            if (nll != NULL) nll[w.first + j] = (float)w.nll[j];
        }
    }
    return OK;
}
#endif
