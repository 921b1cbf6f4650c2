/* Gated activation: y = g * sigmoid(z) * up. Element for element, so the matrices are taken as flat arrays. */
#include "kernels/cpu/simd/entries.h"

#define PART 4096 /* elements of an item */

typedef struct Work {
    DType act;
    GateKind kind;
    int64_t count;
    const void *gate, *up, *dy;
    void *y, *d_gate, *d_up;
} Work;

static Status gate_plan(const ExecConfig *config, const GateShape *shape, OpPlan *plan, Error *err) {
    TRY(simd_check_config("gate", config, err));
    return ref_gate_plan(config, shape, plan, err);
}

/* sigmoid(z(g)), and z'(g). */
SIMD_INLINE vf gate_of(GateKind kind, vf g, vf *slope) {
    vf one = vf_set(1.0f), z = g;
    *slope = one;
    if (kind == GATE_GELU_TANH) {
        vf flat = vf_set((float)GELU_FLAT), within = -vf_max(-vf_max(g, -flat), -flat), square = within * within;
        z = vf_set((float)GELU_SLOPE) * within * (one + vf_set((float)GELU_CUBE) * square);
        *slope = vf_set((float)GELU_SLOPE) * (one + vf_set((float)(3.0 * GELU_CUBE)) * square);
    }
    return one / (one + vf_exp(-z));
}

static void forward_part(void *context, int64_t item, int worker) {
    (void)worker;
    const Work *w = context;
    int64_t end = least(w->count, (item + 1) * PART);
    for (int64_t i = item * PART; i < end; i += SIMD_WIDTH) {
        vf g = vf_load_act(w->gate, w->act, i, end - i), u = vf_load_act(w->up, w->act, i, end - i), slope;
        vf_store_act(w->y, w->act, i, end - i, g * gate_of(w->kind, g, &slope) * u);
    }
}

static Status gate_forward(const Exec *exec, const GateShape *shape, const Batch *batch, const void *gate, const void *up,
                           void *y, Error *err) {
    TRY(ref_check_tokens("gate", batch, shape->rows, err));
    Work work = {
        .act = exec->config.act, .kind = shape->kind, .count = batch->tokens * shape->width, .gate = gate, .up = up, .y = y};
    pool_run(exec->pool, forward_part, &work, (work.count + PART - 1) / PART);
    return OK;
}

static void backward_part(void *context, int64_t item, int worker) {
    (void)worker;
    const Work *w = context;
    int64_t end = least(w->count, (item + 1) * PART);
    for (int64_t i = item * PART; i < end; i += SIMD_WIDTH) {
        vf g = vf_load_act(w->gate, w->act, i, end - i), u = vf_load_act(w->up, w->act, i, end - i);
        vf dy = vf_load_act(w->dy, w->act, i, end - i), slope, s = gate_of(w->kind, g, &slope);
        vf_store_act(w->d_gate, w->act, i, end - i, dy * u * s * (vf_set(1.0f) + g * (vf_set(1.0f) - s) * slope));
        vf_store_act(w->d_up, w->act, i, end - i, dy * g * s);
    }
}

static Status gate_backward(const Exec *exec, const GateShape *shape, const Batch *batch, const void *gate, const void *up,
                            const void *dy, void *d_gate, void *d_up, Error *err) {
    TRY(ref_check_tokens("gate", batch, shape->rows, err));
    Work work = {.act = exec->config.act,
                 .kind = shape->kind,
                 .count = batch->tokens * shape->width,
                 .gate = gate,
                 .up = up,
                 .dy = dy,
                 .d_gate = d_gate,
                 .d_up = d_up};
    pool_run(exec->pool, backward_part, &work, (work.count + PART - 1) / PART);
    return OK;
}

void simd_gate(Backend *backend) {
    backend->gate_plan = gate_plan;
    backend->gate_forward = gate_forward;
    backend->gate_backward = gate_backward;
    backend->variant.gate = SIMD_VARIANT;
}
