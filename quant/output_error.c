#include "quant/output_error.h"

#include "core/memory.h"

#define SLAB 256 /* rows of D at a time */

struct OutputError {
    const Backend *backend;
    const Exec *exec;
    int64_t max_cols;
    Arena arena;
    float *d, *product; /* [SLAB, max_cols] */
    float *scratch;     /* [threads, 2 max_cols] */
    void *workspace;
    size_t workspace_bytes;
    double sums[SLAB];
    /* the slab at hand */
    OutputErrorRow *row;
    void *context;
    int64_t first, cols;
};

static LinearShape product_shape(int64_t cols) {
    return (LinearShape){.rows = SLAB, .in = cols, .count = 1, .linear[0] = {.out = cols, .format = WEIGHT_F32}};
}

static Status take(OutputError *e, size_t workspace, Arena *arena, Error *err) {
    size_t slab = (size_t)(SLAB * e->max_cols) * sizeof(float);
    void *d, *product, *scratch;
    TRY(arena_take(arena, slab, &d, err));
    TRY(arena_take(arena, slab, &product, err));
    TRY(arena_take(arena, (size_t)(e->exec->config.threads * 2 * e->max_cols) * sizeof(float), &scratch, err));
    TRY(arena_take(arena, workspace, &e->workspace, err));
    e->d = d;
    e->product = product;
    e->scratch = scratch;
    return OK;
}

static Status open_memory(OutputError *e, Error *err) {
    LinearShape shape = product_shape(e->max_cols);
    OpPlan plan;
    Arena count;
    TRY(e->backend->linear_plan(&e->exec->config, &shape, &plan, err));
    e->workspace_bytes = plan.forward_workspace;
    arena_count(&count, "output errors");
    TRY(take(e, plan.forward_workspace, &count, err));
    TRY(arena_create(&e->arena, "output errors", count.used, err));
    return take(e, plan.forward_workspace, &e->arena, err);
}

Status output_error_create(OutputError **out, const Backend *backend, const Exec *exec, int64_t max_cols, Error *err) {
    OutputError *e = memory_calloc(1, sizeof *e);
    e->backend = backend;
    e->exec = exec;
    e->max_cols = max_cols;
    Status status = open_memory(e, err);
    if (status != OK) {
        output_error_free(e);
        e = NULL;
    }
    *out = e;
    return status;
}

void output_error_free(OutputError *error) {
    if (error == NULL) return;
    arena_free(&error->arena);
    memory_free(error);
}

static void fill_item(void *context, int64_t item, int worker) {
    const OutputError *e = context;
    e->row(e->context, e->first + item, e->d + item * e->cols, e->scratch + worker * 2 * e->max_cols);
}

static void sum_item(void *context, int64_t item, int worker) {
    (void)worker;
    OutputError *e = context;
    const float *d = e->d + item * e->cols, *product = e->product + item * e->cols;
    double sum = 0.0;
    for (int64_t c = 0; c < e->cols; c++)
        sum += (double)d[c] * (double)product[c];
    e->sums[item] = sum;
}

Status output_error_sum(OutputError *error, const float *hessian, int64_t rows, int64_t cols, OutputErrorRow *row,
                        void *context, double *sum, Error *err) {
    const LinearShape shape = product_shape(cols);
    const LinearOperand operand = {.weight = {.format = WEIGHT_F32, .rows = cols, .cols = cols, .data = hessian}};
    OpPlan plan;
    TRY(error->backend->linear_plan(&error->exec->config, &shape, &plan, err));
    if (cols > error->max_cols || plan.forward_workspace > error->workspace_bytes)
        FAIL("output errors of %lld inputs do not fit room for %lld", (long long)cols, (long long)error->max_cols);
    *sum = 0.0;
    error->row = row;
    error->context = context;
    error->cols = cols;
    for (error->first = 0; error->first < rows; error->first += SLAB) {
        int64_t count = rows - error->first < SLAB ? rows - error->first : SLAB;
        const Batch batch = {.tokens = count};
        void *y = error->product;
        pool_run(error->exec->pool, fill_item, error, count);
        TRY(error->backend->linear_forward(error->exec, &shape, &batch, error->d, &operand, &y, NULL, error->workspace, err));
        pool_run(error->exec->pool, sum_item, error, count);
        for (int64_t r = 0; r < count; r++)
            *sum += error->sums[r];
    }
    return OK;
}
