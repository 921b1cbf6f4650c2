/* Fake quantization of activations, a row at a time in FP32. */
#include "kernels/cpu/ref/ref.h"

#include <math.h>
#include <string.h>

#define LANES 16 /* of a running minimum and maximum, so that a compiler can keep them in vectors */
#define ROUND 0x1.8p23f
#define FAR 0x1p20f

typedef struct FakeWork {
    DType act;
    FakeRowsShape shape;
    const void *x;
    void *y;
    uint8_t *saved;
    float *rows; /* one per worker */
} FakeWork;

static int64_t mask_bytes(const FakeRowsShape *shape) {
    return (shape->columns + 7) / 8;
}

static Status plan(const ExecConfig *config, const FakeRowsShape *shape, OpPlan *plan, Error *err) {
    TRY(ref_check_config("fake quantization", config, err));
    TRY(ref_check_dimension("fake quantization", "rows", shape->rows, err));
    TRY(ref_check_dimension("fake quantization", "columns", shape->columns, err));
    if (shape->group <= 0 || shape->columns % shape->group != 0)
        FAIL("fake quantization: groups of %lld do not divide %lld columns", (long long)shape->group,
             (long long)shape->columns);
    if (shape->bits < 2 || shape->bits > 8) FAIL("fake quantization: codes have 2 to 8 bits, got %d", shape->bits);
    TRY(ref_check_stride("fake quantization", shape->stride | shape->gradient_stride, err));
    *plan = (OpPlan){0};
    TRY(ref_region(&plan->saved, NULL, "fake quantization", shape->rows, mask_bytes(shape), 1, err));
    return ref_region(&plan->forward_workspace, NULL, "fake quantization", config->threads, shape->columns, sizeof(float), err);
}

/* Round to nearest even of |v| < 2^22: adding 1.5 * 2^23 leaves no bits below 1. */
static inline float nearest(float v) {
    return (v + ROUND) - ROUND;
}

typedef struct Range {
    float least, most;
    int finite;
} Range;

/* With 0 in it. */
static Range range_of(const float *x, int64_t count) {
    float low[LANES] = {0}, high[LANES] = {0}, check[LANES] = {0};
    Range range = {0};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int k = 0; k < LANES; k++) {
            low[k] = x[i + k] < low[k] ? x[i + k] : low[k];
            high[k] = x[i + k] > high[k] ? x[i + k] : high[k];
            check[k] += x[i + k] * 0.0f; /* NaN after any NaN or Inf */
        }
    for (int k = 0; i < count; i++, k++) {
        low[k] = x[i] < low[k] ? x[i] : low[k];
        high[k] = x[i] > high[k] ? x[i] : high[k];
        check[k] += x[i] * 0.0f;
    }
    range.finite = 1;
    for (int k = 0; k < LANES; k++) {
        if (low[k] < range.least) range.least = low[k];
        if (high[k] > range.most) range.most = high[k];
        if (check[k] != 0.0f) range.finite = 0;
    }
    return range;
}

/* x becomes y; inside: 1 where the code was in range. */
static void fake_group(const FakeRowsShape *shape, float *x, int64_t count, uint8_t *saved, int64_t first) {
    Range range = range_of(x, count);
    if (!range.finite) {
        for (int64_t i = 0; i < count; i++)
            x[i] = NAN;
        return;
    }
    float levels = (float)((1 << shape->bits) - 1), low = -(float)(1 << (shape->bits - 1)), high = low + levels;
    float size = -range.least > range.most ? -range.least : range.most;
    float scale = shape->symmetric ? size / (levels / 2.0f) : (range.most - range.least) / levels;
    if (shape->scale > 0.0f) scale = shape->scale;
    if (scale < 0x1p-23f) scale = 0x1p-23f;
    if (!(scale - scale == 0.0f)) scale = 0x1.fffffep127f; /* hi - lo overflowed */
    float zero = 0.0f, inverse = 1.0f / scale;
    if (!shape->symmetric) {
        zero = low - nearest(range.least / scale);
        zero = zero < low ? low : zero > high ? high : zero;
    }
    for (int64_t i = 0; i < count; i++) {
        float steps = x[i] * inverse; /* beyond every code it need not be exact, but small enough for nearest() */
        steps = steps < -FAR ? -FAR : steps > FAR ? FAR : steps;
        float u = nearest(steps) + zero;
        if (u >= low && u <= high) saved[(first + i) / 8] |= (uint8_t)(1 << (first + i) % 8);
        float q = u < low ? low : u > high ? high : u;
        x[i] = (q - zero) * scale;
    }
}

static void forward_row(void *context, int64_t t, int worker) {
    FakeWork *work = context;
    const FakeRowsShape *shape = &work->shape;
    float *row = work->rows + (int64_t)worker * shape->columns;
    uint8_t *saved = work->saved + t * mask_bytes(shape);
    dtype_convert(row, DTYPE_F32, ref_at(work->act, work->x, t * shape->columns), work->act, shape->columns);
    memset(saved, shape->bits == 0 ? 0xFF : 0, (size_t)mask_bytes(shape));
    for (int64_t g = 0; g < shape->columns && shape->bits > 0; g += shape->group)
        fake_group(shape, row + g, shape->group, saved, g);
    dtype_convert(ref_at_mutable(work->act, work->y, t * shape->columns), work->act, row, DTYPE_F32, shape->columns);
}

static Status forward(const Exec *exec, const FakeRowsShape *shape, const Batch *batch, const void *x, void *y, void *saved,
                      void *workspace, Error *err) {
    TRY(ref_check_tokens("fake quantization", batch, shape->rows, err));
    FakeWork work = {.act = exec->config.act, .shape = *shape, .x = x, .y = y, .saved = saved, .rows = workspace};
    pool_run(exec->pool, forward_row, &work, batch->tokens);
    return OK;
}

static void backward_row(void *context, int64_t t, int worker) {
    (void)worker;
    FakeWork *work = context;
    int64_t columns = work->shape.columns;
    const uint8_t *saved = work->saved + t * mask_bytes(&work->shape);
    size_t element = dtype_size(work->act);
    const uint8_t *dy = ref_at(work->act, work->x, t * columns);
    uint8_t *dx = ref_at_mutable(work->act, work->y, t * columns);
    if (dx != dy) memcpy(dx, dy, (size_t)columns * element);
    for (int64_t c = 0; c < columns; c++)
        if (!(saved[c / 8] >> c % 8 & 1)) memset(dx + (size_t)c * element, 0, element);
}

static Status backward(const Exec *exec, const FakeRowsShape *shape, const Batch *batch, const void *saved, const void *dy,
                       void *dx, Error *err) {
    TRY(ref_check_tokens("fake quantization", batch, shape->rows, err));
    FakeWork work = {.act = exec->config.act, .shape = *shape, .x = dy, .y = dx, .saved = (uint8_t *)(uintptr_t)saved};
    pool_run(exec->pool, backward_row, &work, batch->tokens);
    return OK;
}

void ref_fake_rows(Backend *backend) {
    backend->fake_rows_plan = plan;
    backend->fake_rows_forward = forward;
    backend->fake_rows_backward = backward;
}
