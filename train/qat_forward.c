/* Operands: W + s B A, row by row, through the grid, into the run's activation type. */
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "train/lora_row.h"
#include "quant/group_int.h"
#include "train/qat_internal.h"
#include "train/qat_scales.h"

static DType act_of(const Qat *qat) {
    return qat->shape.exec.act;
}

static const void *param_at(const Qat *qat, int64_t offset) {
    return (const uint8_t *)qat->params->copy + (size_t)offset * dtype_size(act_of(qat));
}

void qat_prepare(Qat *qat, const QatLinear *linear) {
    if (linear->rank == 0) return;
    dtype_convert(qat->memory.a, DTYPE_F32, param_at(qat, linear->a), act_of(qat), linear->rank * linear->cols);
}

void qat_base_row(const Qat *qat, const QatLinear *linear, int64_t row, int worker) {
    QatWorker *w = &qat->memory.workers[worker];
    qat->shape.backend->dequantize(&linear->base, row * linear->cols, linear->cols, w->base, DTYPE_F32);
    if (linear->groups == 0) return;
    const FakeQuant *grid = &qat->shape.options.grid;
    const float *theta = linear->theta < 0 ? NULL : qat->params->master + linear->theta + row * linear->groups;
    int64_t values = linear->cols / linear->groups;
    GroupInt exact = {.bits = grid->bits, .symmetric = 1, .group = grid->group, .scale_type = DTYPE_F32};
    float root = sqrtf((float)values * (float)((1 << (grid->bits - 1)) - 1));
    for (int64_t g = 0; g < linear->groups; g++) {
        float first, factor = theta == NULL ? 1.0f : theta[g] > QAT_THETA_LEAST ? theta[g] : QAT_THETA_LEAST;
        uint8_t zero;
        if (linear->first < 0)
            group_int_scale_of(&exact, w->base + g * values, values, &first, &zero);
        else
            first = qat->memory.first[linear->first + row * linear->groups + g];
        float scale = group_int_round(first * factor, grid->scale_type);
        w->scales[g] = scale == 0.0f ? 0x1p-23f : scale;
        w->chain[g] = first / root;
    }
}

int qat_fake_row(const Qat *qat, const QatLinear *linear, int worker, float *row, uint8_t *mask, float *slope) {
    const QatWorker *w = &qat->memory.workers[worker];
    const FakeQuant *grid = &qat->shape.options.grid;
    if (linear->groups > 0) return fake_quant_row_scaled(grid, row, linear->cols, w->scales, row, mask, slope);
    return fake_quant_row(grid, row, linear->cols, row, mask, w->scratch);
}

void qat_merge_row(const Qat *qat, const QatLinear *linear, int64_t row, int worker, float *out) {
    QatWorker *w = &qat->memory.workers[worker];
    qat_base_row(qat, linear, row, worker);
    if (out != w->base) memcpy(out, w->base, (size_t)linear->cols * sizeof *out);
    if (linear->rank == 0) return;
    dtype_convert(w->b, DTYPE_F32, param_at(qat, linear->b + row * linear->rank), act_of(qat), linear->rank);
    lora_add_row(w->b, qat->memory.a, linear->rank, linear->cols, linear->scale, w->delta, out);
}

typedef struct Job {
    Qat *qat;
    const QatLinear *linear;
    int64_t first; /* NF4: row of the tile */
    WeightView packed;
    _Atomic int64_t bad; /* the first row that the grid cannot hold, or rows */
} Job;

static void note_bad(Job *job, int64_t row) {
    int64_t seen = atomic_load(&job->bad);
    while (row < seen && !atomic_compare_exchange_weak(&job->bad, &seen, row)) {
    }
}

static Status check(const Job *job, Error *err) {
    if (atomic_load(&job->bad) == job->linear->rows) return OK;
    char name[160];
    int64_t rows, cols;
    (void)weight_describe(job->qat->shape.model, job->linear->id, name, sizeof name, &rows, &cols);
    FAIL("%s: row %lld with its adapter holds NaN, Inf, or values that qat.weights cannot hold; take a smaller train.lr", name,
         (long long)job->bad);
}

static void *slot_row(const Job *job, int64_t row) {
    return (uint8_t *)job->qat->memory.slot[job->linear->kind] +
           (size_t)(row * job->linear->cols) * dtype_size(act_of(job->qat));
}

/* quantized = exact + share * (quantized - exact) */
static void blend(float *quantized, const float *exact, float share, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        quantized[i] = exact[i] + share * (quantized[i] - exact[i]);
}

static void row_item(void *context, int64_t row, int worker) {
    Job *job = context;
    const Qat *qat = job->qat;
    QatWorker *w = &qat->memory.workers[worker];
    int64_t cols = job->linear->cols;
    qat_merge_row(qat, job->linear, row, worker, w->base);
    if (qat->share > 0.0f) {
        if (qat->share < 1.0f) memcpy(w->delta, w->base, (size_t)cols * sizeof *w->delta);
        if (qat_fake_row(qat, job->linear, worker, w->base, NULL, NULL) != 0) note_bad(job, row);
        if (qat->share < 1.0f) blend(w->base, w->delta, qat->share, cols);
    }
    dtype_convert(slot_row(job, row), act_of(qat), w->base, DTYPE_F32, cols);
}

/* ---- NF4: blocks cross rows, and one offset belongs to the whole weight ---------------------------------------------------- */

static void tile_item(void *context, int64_t item, int worker) {
    Job *job = context;
    qat_merge_row(job->qat, job->linear, job->first + item, worker, job->qat->memory.tile + item * job->linear->cols);
}

static void unpack_item(void *context, int64_t row, int worker) {
    Job *job = context;
    const Qat *qat = job->qat;
    int64_t cols = job->linear->cols;
    if (qat->share < 1.0f) { /* the adapter's sum is formed in delta: it is free again once the row is merged */
        QatWorker *w = &qat->memory.workers[worker];
        qat_merge_row(qat, job->linear, row, worker, w->base);
        qat->shape.backend->dequantize(&job->packed, row * cols, cols, w->delta, DTYPE_F32);
        blend(w->delta, w->base, qat->share, cols);
        dtype_convert(slot_row(job, row), act_of(qat), w->delta, DTYPE_F32, cols);
        return;
    }
    job->qat->shape.backend->dequantize(&job->packed, row * cols, cols, slot_row(job, row), act_of(job->qat));
}

static Status forward_nf4(Job *job, Error *err) {
    Qat *qat = job->qat;
    const QatLinear *linear = job->linear;
    const FakeQuant *grid = &qat->shape.options.grid;
    QuantSpec spec = {.format = WEIGHT_NF4, .double_quant = grid->double_quant, .block_size = grid->block_size};
    Arena arena = {.name = "one weight", .base = qat->memory.nf4, .capacity = qat->memory.nf4_bytes};
    QuantizedTensor tensor;
    TRY(quantized_take(&tensor, &spec, linear->rows, linear->cols, &arena, err));
    TRY(quantizer_begin(qat->quantizer, &tensor, err));
    for (job->first = 0; job->first < linear->rows; job->first += QAT_TILE) {
        int64_t count = linear->rows - job->first < QAT_TILE ? linear->rows - job->first : QAT_TILE;
        pool_run(qat->pool, tile_item, job, count);
        TRY(quantizer_rows(qat->quantizer, qat->memory.tile, DTYPE_F32, count, err));
    }
    TRY(quantizer_finish(qat->quantizer, err));
    job->packed = quantized_view(&tensor);
    pool_run(qat->pool, unpack_item, job, linear->rows);
    return OK;
}

Status qat_forward(Qat *qat, const QatLinear *linear, Error *err) {
    Job job = {.qat = qat, .linear = linear, .bad = linear->rows};
    if (qat->share > 0.0f && qat->shape.options.grid.grid == FAKE_NF4) return forward_nf4(&job, err);
    pool_run(qat->pool, row_item, &job, linear->rows);
    return check(&job, err);
}
