/* Gated activation: y = g * sigmoid(z) * up. */
#include "kernels/cpu/ref/ref.h"

#include <math.h>

typedef struct GateWork {
    DType act;
    GateKind kind;
    int64_t width;
    const void *gate, *up, *dy;
    void *y, *d_gate, *d_up;
} GateWork;

/* sigmoid(z(g)), and z'(g). */
static double gate_of(GateKind kind, double g, double *slope) {
    double z = g;
    *slope = 1.0;
    if (kind == GATE_GELU_TANH) {
        double within = fmin(fmax(g, -GELU_FLAT), GELU_FLAT), square = within * within;
        z = GELU_SLOPE * within * (1.0 + GELU_CUBE * square);
        *slope = GELU_SLOPE * (1.0 + 3.0 * GELU_CUBE * square);
    }
    return 1.0 / (1.0 + exp(-z));
}

Status ref_gate_plan(const ExecConfig *config, const GateShape *shape, OpPlan *plan, Error *err) {
    TRY(ref_check_config("gate", config, err));
    TRY(ref_check_dimension("gate", "rows", shape->rows, err));
    TRY(ref_check_dimension("gate", "width", shape->width, err));
    TRY(ref_check_stride("gate", shape->stride | shape->gradient_stride, err));
    if (shape->kind != GATE_SILU && shape->kind != GATE_GELU_TANH) FAIL("gate: no activation has number %d", (int)shape->kind);
    size_t output = 0;
    TRY(ref_region(&output, NULL, "gate", shape->rows, shape->width, dtype_size(config->act), err));
    *plan = (OpPlan){0};
    return OK;
}

static void forward_row(void *context, int64_t t, int worker) {
    (void)worker;
    GateWork *work = context;
    for (int64_t i = t * work->width; i < (t + 1) * work->width; i++) {
        double g = ref_load(work->act, work->gate, i), slope;
        ref_store(work->act, work->y, i, g * gate_of(work->kind, g, &slope) * ref_load(work->act, work->up, i));
    }
}

static Status gate_forward(const Exec *exec, const GateShape *shape, const Batch *batch, const void *gate, const void *up,
                           void *y, Error *err) {
    TRY(ref_check_tokens("gate", batch, shape->rows, err));
    GateWork work = {.act = exec->config.act, .kind = shape->kind, .width = shape->width, .gate = gate, .up = up, .y = y};
    pool_run(exec->pool, forward_row, &work, batch->tokens);
    return OK;
}

static void backward_row(void *context, int64_t t, int worker) {
    (void)worker;
    GateWork *work = context;
    for (int64_t i = t * work->width; i < (t + 1) * work->width; i++) {
        double g = ref_load(work->act, work->gate, i);
        double u = ref_load(work->act, work->up, i);
        double dy = ref_load(work->act, work->dy, i);
        double slope, s = gate_of(work->kind, g, &slope);
        ref_store(work->act, work->d_gate, i, dy * u * s * (1.0 + g * (1.0 - s) * slope));
        ref_store(work->act, work->d_up, i, dy * g * s);
    }
}

static Status gate_backward(const Exec *exec, const GateShape *shape, const Batch *batch, const void *gate, const void *up,
                            const void *dy, void *d_gate, void *d_up, Error *err) {
    TRY(ref_check_tokens("gate", batch, shape->rows, err));
    GateWork work = {.act = exec->config.act,
                     .kind = shape->kind,
                     .width = shape->width,
                     .gate = gate,
                     .up = up,
                     .dy = dy,
                     .d_gate = d_gate,
                     .d_up = d_up};
    pool_run(exec->pool, backward_row, &work, batch->tokens);
    return OK;
}

void ref_gate(Backend *backend) {
    backend->gate_plan = ref_gate_plan;
    backend->gate_forward = gate_forward;
    backend->gate_backward = gate_backward;
    backend->variant.gate = "ref";
}
