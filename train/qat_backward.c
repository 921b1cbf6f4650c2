/* Gradients of A and B through the mask, a tile of rows at a time:
 *
 *   dV = dY[:, tile]^T X;  dV = M . dV;  dB[tile] += s dV A^T;  dA += s B[tile]^T dV
 */
#include <string.h>

#include "train/lora_row.h"
#include "train/qat_internal.h"

#define COLUMNS 256 /* of dA, one item each */

typedef struct Tile {
    Qat *qat;
    const QatLinear *linear;
    const void *dy;
    int64_t first, count, tokens;
} Tile;

/* CPU activations are row-major (kernels/ops.h). */
static void gather_item(void *context, int64_t token, int worker) {
    (void)worker;
    Tile *tile = context;
    size_t element = dtype_size(tile->qat->shape.exec.act);
    memcpy((uint8_t *)tile->qat->memory.dy + (size_t)(token * tile->count) * element,
           (const uint8_t *)tile->dy + (size_t)(token * tile->linear->rows + tile->first) * element,
           (size_t)tile->count * element);
}

/* d(theta) += share * s0 / sqrt(values * greatest code) * sum of dV * d(FQ)/ds over the group */
static void add_scale_gradients(const Qat *qat, const QatLinear *linear, int64_t row, const QatWorker *w, const float *dv) {
    int64_t values = linear->cols / linear->groups;
    float *d_theta = qat->params->gradient + linear->theta + row * linear->groups;
    for (int64_t g = 0; g < linear->groups; g++)
        d_theta[g] += qat->share * w->chain[g] * row_dot(dv + g * values, w->slope + g * values, values);
}

/* Masks a row of dV, then adds its products with the rows of A to dB. */
static void row_item(void *context, int64_t item, int worker) {
    Tile *tile = context;
    const Qat *qat = tile->qat;
    const QatLinear *linear = tile->linear;
    const FakeQuant *grid = &qat->shape.options.grid;
    QatWorker *w = &qat->memory.workers[worker];
    int64_t cols = linear->cols, row = tile->first + item;
    float *dv = qat->memory.tile + item * cols;
    if (qat->share > 0.0f && (fake_quant_clips(grid) || linear->theta >= 0)) {
        qat_merge_row(qat, linear, row, worker, w->base);
        (void)qat_fake_row(qat, linear, worker, w->base, w->mask, w->slope); /* the forward pass has checked the row */
        if (linear->theta >= 0) add_scale_gradients(qat, linear, row, w, dv);
        float clipped = 1.0f - qat->share;
        for (int64_t c = 0; c < cols; c++)
            if (!w->mask[c]) dv[c] *= clipped;
    }
    if (linear->rank == 0) return;
    float *db = qat->params->gradient + linear->b + row * linear->rank;
    for (int64_t r = 0; r < linear->rank; r++)
        db[r] += linear->scale * row_dot(dv, qat->memory.a + r * cols, cols);
}

static void column_item(void *context, int64_t item, int worker) {
    Tile *tile = context;
    const Qat *qat = tile->qat;
    const QatLinear *linear = tile->linear;
    int64_t cols = linear->cols, rank = linear->rank, first = item * COLUMNS;
    int64_t count = cols - first < COLUMNS ? cols - first : COLUMNS;
    float *b = qat->memory.workers[worker].b;
    DType act = qat->shape.exec.act;
    for (int64_t i = 0; i < tile->count; i++) {
        const float *dv = qat->memory.tile + i * cols + first;
        const uint8_t *from =
            (const uint8_t *)qat->params->copy + (size_t)(linear->b + (tile->first + i) * rank) * dtype_size(act);
        dtype_convert(b, DTYPE_F32, from, act, rank);
        for (int64_t r = 0; r < rank; r++)
            row_add(qat->params->gradient + linear->a + r * cols + first, dv, linear->scale * b[r], count);
    }
}

static Status form_tile(Tile *tile, const Exec *exec, const Batch *batch, const void *x, Error *err) {
    Qat *qat = tile->qat;
    const QatLinear *linear = tile->linear;
    LinearShape shape = qat_tile_shape(qat->shape.rows, linear->cols, tile->count, qat->shape.exec.act);
    DType act = qat->shape.exec.act;
    const uint8_t *slot = qat->memory.slot[linear->kind]; /* holds the operand: the tape gives it back after this */
    LinearOperand operand = {.weight = {.format = act == DTYPE_F32 ? WEIGHT_F32 : WEIGHT_BF16,
                                        .rows = tile->count,
                                        .cols = linear->cols,
                                        .data = slot + (size_t)(tile->first * linear->cols) * dtype_size(act)}};
    LinearGrad gradient = {.weight = qat->memory.tile};
    const void *dy = qat->memory.dy;
    pool_run(qat->pool, gather_item, tile, tile->tokens);
    memset(qat->memory.tile, 0, (size_t)(tile->count * linear->cols) * sizeof(float));
    return qat->shape.backend->linear_backward(exec, &shape, batch, x, &operand, NULL, &dy, NULL, &gradient,
                                               qat->memory.workspace, err);
}

Status qat_backward(void *self, int32_t weight, const Exec *exec, const Batch *batch, const void *dy, int64_t stride,
                    const void *x, Error *err) {
    Qat *qat = self;
    QatLinear linear;
    if (!qat_linear(qat, weight, &linear) || (linear.rank == 0 && linear.theta < 0)) return OK;
    if (qat->shape.backend->on_device) return qat_device_backward(qat, &linear, batch, dy, stride, x, err);
    qat_prepare(qat, &linear);
    Tile tile = {.qat = qat, .linear = &linear, .dy = dy, .tokens = batch->tokens};
    for (tile.first = 0; tile.first < linear.rows; tile.first += QAT_TILE) {
        tile.count = linear.rows - tile.first < QAT_TILE ? linear.rows - tile.first : QAT_TILE;
        TRY(form_tile(&tile, exec, batch, x, err));
        pool_run(qat->pool, row_item, &tile, tile.count);
        if (linear.rank > 0) pool_run(qat->pool, column_item, &tile, (linear.cols + COLUMNS - 1) / COLUMNS);
    }
    return OK;
}
