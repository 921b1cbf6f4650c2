#include "train/ceiling.h"

#include <math.h>
#include <string.h>

#include "core/text.h"
#include "train/ceiling_store.h"
#include "train/device_memory.h"

#define SIDE 768         /* operands of 2.3 MiB each: out of L1, inside the L2 and L3 of two cores */
#define SIDE_DEVICE 8192 /* for what does the first in less than a millisecond */

/* Values in [-1, 1) that are exact in BF16, for both operands. Random ones: a device that multiplies small integers again and again
 * draws less power, and runs at a clock that no training step reaches. */
static void fill(void *matrix, int64_t count, DType act) {
    uint32_t state = 1;
    for (int64_t i = 0; i < count; i++) {
        state = state * 1664525u + 1013904223u;
        float value = (float)(state >> 24) / 128.0f - 1.0f;
        if (act == DTYPE_BF16)
            ((bf16 *)matrix)[i] = bf16_from_float(value);
        else
            ((float *)matrix)[i] = value;
    }
}

typedef struct Ceiling {
    const Backend *backend;
    Exec exec;
    LinearShape shape;
    OpPlan plan;
    size_t matrix; /* bytes of one */
} Ceiling;

#define RUNS_LEAST 3
#define RUNS_MOST 20

static Status measure(const Ceiling *c, uint8_t *memory, int runs, double *best) {
    Batch batch = {.tokens = c->shape.rows};
    LinearOperand operand = {
        .weight = {.format = c->shape.linear[0].format, .rows = c->shape.in, .cols = c->shape.in, .data = memory + c->matrix}};
    void *outputs[1] = {memory + 2 * c->matrix};
    uint8_t *saved = memory + 3 * c->matrix, *workspace = saved + arena_align(c->plan.saved + 1);
    double side = (double)c->shape.in, end = clock_seconds() + 0.1;
    for (int run = 0; run < RUNS_LEAST || (run < runs && clock_seconds() < end); run++) {
        double begin = clock_seconds();
        TRY(c->backend->linear_forward(&c->exec, &c->shape, &batch, memory, &operand, outputs, saved, workspace, NULL));
        if (c->backend->finish != NULL) TRY(c->backend->finish(&c->exec, NULL));
        double seconds = clock_seconds() - begin, rate = 2.0 * side * side * side / seconds;
        if (rate > *best) *best = rate;
        if (seconds > 1.0) break; /* the plain reference: one run is enough */
    }
    return OK;
}

/* FLOP/s of a square product, 0 when it cannot be had. */
static double rate_of(const Backend *backend, const Exec *exec, int64_t side, int runs) {
    DType act = exec->config.act == DTYPE_BF16 ? DTYPE_BF16 : DTYPE_F32;
    Ceiling c = {.backend = backend,
                 .exec = *exec,
                 .shape = {.rows = side,
                           .in = side,
                           .count = 1,
                           .linear = {{.out = side, .format = act == DTYPE_BF16 ? WEIGHT_BF16 : WEIGHT_F32}}},
                 .matrix = arena_align((size_t)(side * side) * sizeof(float))};
    c.exec.config.act = act;
    if (backend->linear_plan(&c.exec.config, &c.shape, &c.plan, NULL) != OK) return 0.0;
    Arena host, there;
    size_t bytes = 3 * c.matrix + arena_align(c.plan.forward_workspace) + arena_align(c.plan.saved + 1);
    if (arena_create(&host, "ceiling", bytes, NULL) != OK) return 0.0;
    host.used = 2 * c.matrix; /* what a device is given */
    fill(host.base, side * side, act);
    fill(host.base + c.matrix, side * side, act);
    double best = 0.0;
    if (mirror_create(&there, &host, backend, exec, NULL) == OK) {
        if (measure(&c, mirror_at(&there, &host, host.base), runs, &best) != OK) best = 0.0;
        if (backend->on_device) device_arena_free(&there, backend, exec);
    }
    arena_free(&host);
    return best;
}

double ceiling_gemm(const Backend *backend, const Exec *exec) {
    double best = rate_of(backend, exec, SIDE, RUNS_MOST);
    if (backend->on_device && best > 2.0 * SIDE * SIDE * (double)SIDE / 1e-3) {
        double large = rate_of(backend, exec, SIDE_DEVICE, RUNS_MOST);
        if (large > best) best = large;
    }
    if (!(best > 0.0)) best = NAN;
    DType act = exec->config.act == DTYPE_BF16 ? DTYPE_BF16 : DTYPE_F32;
    return backend->on_device ? best : ceiling_best(backend->variant.linear, dtype_name(act), exec->config.threads, best);
}

double ceiling_now(const Backend *backend, const Exec *exec) {
    double rate = rate_of(backend, exec, SIDE, RUNS_LEAST);
    return rate > 0.0 ? rate : NAN;
}
