#include "quant/gptq.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "quant/factor.h"

#define BLOCK 128 /* columns whose errors are passed on together */
#define TILE 16   /* rows of one item */

/* ---- the factor ------------------------------------------------------------------------------------------------------------ */

typedef struct Ranked {
    float size;
    int32_t column;
} Ranked;

static int compare_ranked(const void *a, const void *b) {
    const Ranked *x = a, *y = b;
    if (x->size != y->size) return x->size < y->size ? 1 : -1;
    return (x->column > y->column) - (x->column < y->column);
}

static void order_columns(GptqFactor *factor, const float *hessian) {
    int64_t n = factor->cols;
    Ranked *ranked = memory_alloc((size_t)n * sizeof *ranked);
    for (int64_t i = 0; i < n; i++)
        ranked[i] = (Ranked){factor->is_dead[i] ? 1.0f : hessian[i * n + i], (int32_t)i};
    qsort(ranked, (size_t)n, sizeof *ranked, compare_ranked);
    factor->perm = memory_alloc((size_t)n * sizeof *factor->perm);
    for (int64_t i = 0; i < n; i++)
        factor->perm[i] = ranked[i].column;
    memory_free(ranked);
}

static int64_t column_at(const GptqFactor *factor, int64_t i) {
    return factor->perm != NULL ? factor->perm[i] : i;
}

/* The damped matrix in the order of the columns. One side of the input is read, so that rounding cannot make it unsymmetric. */
static void damped(const GptqFactor *factor, const float *hessian, double damping, double *h) {
    int64_t n = factor->cols;
    double trace = 0.0;
    for (int64_t i = 0; i < n; i++)
        trace += factor->is_dead[i] ? 1.0 : (double)hessian[i * n + i];
    for (int64_t i = 0; i < n; i++) {
        int64_t a = column_at(factor, i);
        for (int64_t j = 0; j < n; j++) {
            int64_t b = column_at(factor, j);
            h[i * n + j] = (double)hessian[a > b ? a * n + b : b * n + a];
        }
        if (factor->is_dead[a]) h[i * n + i] = 1.0;
        h[i * n + i] += damping * trace / (double)n;
    }
}

Status gptq_factor(GptqFactor *factor, const float *hessian, int64_t cols, double damping, int act_order, Pool *pool,
                   Error *err) {
    *factor = (GptqFactor){.cols = cols};
    if (!(damping > 0.0 && damping <= 1.0)) FAIL("damping: want a number above 0 and at most 1, got %g", damping);
    factor->is_dead = memory_calloc((size_t)cols, 1);
    for (int64_t i = 0; i < cols; i++) {
        float size = hessian[i * cols + i];
        if (!(size >= 0.0f && isfinite(size)))
            FAIL("the inputs of column %lld are not finite numbers (sum of squares %g)", (long long)i, (double)size);
        factor->is_dead[i] = size == 0.0f;
        factor->dead += size == 0.0f;
    }
    if (act_order) order_columns(factor, hessian);
    double *h = memory_alloc((size_t)(cols * cols) * sizeof *h);
    damped(factor, hessian, damping, h);
    Status status = inverse_factor(h, cols, pool, err);
    if (status == OK) {
        factor->u = memory_alloc((size_t)(cols * cols) * sizeof *factor->u);
        for (int64_t i = 0; i < cols * cols; i++)
            factor->u[i] = (float)h[i];
    }
    memory_free(h);
    return status;
}

void gptq_factor_free(GptqFactor *factor) {
    memory_free(factor->u);
    memory_free(factor->perm);
    memory_free(factor->is_dead);
    memset(factor, 0, sizeof *factor);
}

/* ---- columns --------------------------------------------------------------------------------------------------------------- */

typedef struct Job {
    const GptqFactor *factor;
    const GptqOptions *options;
    const float *w;
    GroupIntTensor *tensor;
    int64_t group, block;
    float *scratch; /* [threads, scratch_floats]: a tile in the columns' order, its errors, a group to sort */
    int64_t scratch_floats;
    _Atomic int64_t bad; /* the first row that does not fit, or rows */
} Job;

/* What one item works on. */
typedef struct Tile {
    const Job *job;
    int64_t first, rows; /* of the weight */
    float *w;            /* [rows, cols], columns in order */
    float *errors;       /* [rows, block] */
    float *sorted;       /* [group] */
} Tile;

/* No group may begin inside of a block and end outside: its columns would not have heard of the block's errors. */
static int64_t block_of(int64_t group) {
    if (group <= BLOCK) return BLOCK / group * group;
    int64_t block = BLOCK;
    while (group % block != 0)
        block--;
    return block;
}

static int64_t group_of(const Job *job, int64_t i) {
    return (job->options->static_groups ? column_at(job->factor, i) : i) / job->group;
}

static void find_scale(const Tile *t, int64_t row, int64_t group, const float *x) {
    const Job *job = t->job;
    GroupIntTensor *out = job->tensor;
    int64_t at = (t->first + row) * out->groups + group;
    uint8_t zero;
    clip_scale(&job->options->clip, &out->grid, x, job->group, NULL, &out->scales[at], &zero, t->sorted);
    if (out->zeros != NULL) out->zeros[at] = zero;
}

/* Rounds column i of a row and passes its error on to the rest of the block. */
static void column_step(const Tile *t, int64_t row, int64_t i, int64_t block, int64_t end) {
    const Job *job = t->job;
    GroupIntTensor *out = job->tensor;
    int64_t cols = out->cols, at = (t->first + row) * out->groups + group_of(job, i);
    const float *u = job->factor->u + i * cols;
    float *w = t->w + row * cols;
    uint8_t zero = (uint8_t)(out->zeros != NULL ? out->zeros[at] : 1 << (out->grid.bits - 1));
    uint8_t code = group_int_code(out->grid.bits, w[i], out->scales[at], zero, NULL);
    out->codes[(t->first + row) * cols + column_at(job->factor, i)] = code;
    float error = (w[i] - group_int_value(code, out->scales[at], zero, out->grid.scale_type)) / u[i];
    t->errors[row * job->block + i - block] = error;
    for (int64_t j = i + 1; j < end; j++)
        w[j] -= error * u[j];
}

static void run_blocks(const Tile *t) {
    const Job *job = t->job;
    int64_t cols = job->tensor->cols;
    for (int64_t block = 0; block < cols; block += job->block) {
        int64_t end = cols - block < job->block ? cols : block + job->block;
        for (int64_t i = block; i < end; i++) {
            int starts = !job->options->static_groups && i % job->group == 0;
            for (int64_t row = 0; row < t->rows; row++) {
                if (starts) find_scale(t, row, i / job->group, t->w + row * cols + i);
                column_step(t, row, i, block, end);
            }
        }
        subtract_product_f32(t->rows, cols - end, end - block, t->errors, job->block, job->factor->u + block * cols + end, cols,
                             t->w + end, cols);
    }
}

static int tile_is_sound(const Tile *t) {
    const GroupIntTensor *out = t->job->tensor;
    int64_t cols = out->cols, groups = out->groups;
    for (int64_t i = 0; i < t->rows * cols; i++)
        if (!isfinite(t->w[i])) return 0;
    for (int64_t i = 0; i < t->rows * groups; i++)
        if (!isfinite(out->scales[t->first * groups + i])) return 0;
    return 1;
}

static void tile_item(void *context, int64_t item, int worker) {
    Job *job = context;
    const GptqFactor *factor = job->factor;
    int64_t cols = job->tensor->cols, rows = job->tensor->rows, first = item * TILE;
    float *scratch = job->scratch + worker * job->scratch_floats;
    Tile t = {.job = job,
              .first = first,
              .rows = rows - first < TILE ? rows - first : TILE,
              .w = scratch,
              .errors = scratch + TILE * cols,
              .sorted = scratch + TILE * (cols + job->block)};
    for (int64_t row = 0; row < t.rows; row++) {
        const float *from = job->w + (first + row) * cols;
        if (job->options->static_groups)
            for (int64_t g = 0; g < job->tensor->groups; g++)
                find_scale(&t, row, g, from + g * job->group);
        for (int64_t i = 0; i < cols; i++) {
            int64_t column = column_at(factor, i);
            t.w[row * cols + i] = factor->is_dead[column] ? 0.0f : from[column];
        }
    }
    run_blocks(&t);
    if (!tile_is_sound(&t)) {
        int64_t seen = atomic_load(&job->bad);
        while (first < seen && !atomic_compare_exchange_weak(&job->bad, &seen, first)) {
        }
    }
}

static void set_groups(GroupIntTensor *tensor, const GptqFactor *factor, int64_t group) {
    tensor->g_idx = memory_alloc((size_t)tensor->cols * sizeof *tensor->g_idx);
    for (int64_t i = 0; i < tensor->cols; i++)
        tensor->g_idx[column_at(factor, i)] = (int32_t)(i / group);
}

Status gptq_quantize(const GptqFactor *factor, const GptqOptions *options, const float *w, GroupIntTensor *tensor, Pool *pool,
                     Error *err) {
    int64_t group = group_int_columns(&tensor->grid, tensor->cols);
    if (factor->cols != tensor->cols)
        FAIL("a factor of %lld inputs does not belong to a weight with %lld", (long long)factor->cols, (long long)tensor->cols);
    Job job = {.factor = factor,
               .options = options,
               .w = w,
               .tensor = tensor,
               .group = group,
               .block = block_of(group),
               .bad = tensor->rows};
    job.scratch_floats = TILE * (tensor->cols + job.block) + group;
    job.scratch = memory_alloc((size_t)(pool_threads(pool) * job.scratch_floats) * sizeof(float));
    pool_run(pool, tile_item, &job, (tensor->rows + TILE - 1) / TILE);
    memory_free(job.scratch);
    if (job.bad < tensor->rows)
        FAIL("rows from %lld on: values are not finite or too large for scales of type %s; raise the damping",
             (long long)job.bad, dtype_name(tensor->grid.scale_type));
    if (factor->perm != NULL && !options->static_groups && group < tensor->cols) set_groups(tensor, factor, group);
    return OK;
}
