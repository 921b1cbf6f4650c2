/* Sums over the inputs of linears. x x^T is formed by the backend's own product of a weight gradient, dW += dy^T x with dy = x. */
#include <math.h>
#include <string.h>

#include "train/calibrate_internal.h"

#define COLUMNS 64 /* of one item */

void input_sums_clear(InputSums *sums) {
    int64_t cols = sums->cols;
    sums->tokens = 0;
    if (sums->hessian != NULL) memset(sums->hessian, 0, (size_t)(cols * cols) * sizeof *sums->hessian);
    memset(sums->sizes, 0, (size_t)cols * sizeof *sums->sizes);
    memset(sums->squares, 0, (size_t)cols * sizeof *sums->squares);
}

static LinearShape product_shape(int64_t rows, int64_t cols) {
    return (LinearShape){
        .rows = rows, .in = cols, .count = 1, .linear[0] = {.out = cols, .format = WEIGHT_F32, .train_weight = 1}};
}

Status input_sums_workspace(const Backend *backend, const ExecConfig *config, int64_t rows, int64_t cols, size_t *bytes,
                            Error *err) {
    LinearShape shape = product_shape(rows, cols);
    OpPlan plan;
    TRY(backend->linear_plan(config, &shape, &plan, err));
    *bytes = plan.backward_workspace;
    return OK;
}

typedef struct Columns {
    InputSums *sums;
    const float *x;
    int64_t tokens;
} Columns;

static void column_item(void *context, int64_t item, int worker) {
    (void)worker;
    const Columns *job = context;
    int64_t cols = job->sums->cols, first = item * COLUMNS, end = cols - first < COLUMNS ? cols : first + COLUMNS;
    for (int64_t t = 0; t < job->tokens; t++) {
        const float *x = job->x + t * cols;
        for (int64_t c = first; c < end; c++) {
            double value = (double)x[c];
            job->sums->sizes[c] += fabs(value);
            job->sums->squares[c] += value * value;
        }
    }
}

Status input_sums_add(InputSums *sums, const Backend *backend, const Exec *exec, const Batch *batch, const float *x,
                      void *workspace, Error *err) {
    Columns job = {.sums = sums, .x = x, .tokens = batch->tokens};
    pool_run(exec->pool, column_item, &job, (sums->cols + COLUMNS - 1) / COLUMNS);
    sums->tokens += batch->tokens;
    if (sums->hessian == NULL) return OK;
    /* The weight itself is not read: no gradient of the input is wanted. */
    const LinearShape shape = product_shape(sums->rows, sums->cols);
    const LinearOperand operand = {
        .weight = {.format = WEIGHT_F32, .rows = sums->cols, .cols = sums->cols, .data = sums->hessian}};
    const LinearGrad gradient = {.weight = sums->hessian};
    const void *dy = x;
    return backend->linear_backward(exec, &shape, batch, x, &operand, NULL, &dy, NULL, &gradient, workspace, err);
}

void input_sums_finish(InputSums *sums) {
    for (int64_t c = 0; c < sums->cols; c++)
        sums->mean[c] = (float)(sums->sizes[c] / (double)(sums->tokens > 0 ? sums->tokens : 1));
}
