/* What a step on a device spends besides computing: dequantizing its weights, and waiting for the host. */
#include "train/bench_step_device.h"

#include "core/text.h"
#include "train/device_memory.h"
#include "train/weights.h"

#define CALLS 10

typedef struct Dense {
    const Engine *engine;
    Arena arena;
    Batch none; /* no tokens: a linear then only makes its weight dense */
    int64_t rows;
} Dense;

static Status plan_of(const Dense *d, const WeightView *weight, LinearShape *shape, OpPlan *plan, Error *err) {
    *shape = (LinearShape){
        .rows = d->rows, .in = weight->cols, .count = 1, .linear = {{.out = weight->rows, .format = weight->format}}};
    return d->engine->backend.linear_plan(&d->engine->exec.config, shape, plan, err);
}

static Status time_weight(Dense *d, int32_t id, double *seconds, Error *err) {
    const Engine *engine = d->engine;
    const Backend *backend = &engine->backend;
    LinearShape shape;
    OpPlan plan;
    LinearOperand operand = {0};
    size_t batch = backend->batch_bytes(d->rows, 1);
    TRY(engine->base.acquire(engine->base.self, id, PASS_FORWARD, &operand.weight, err));
    TRY(plan_of(d, &operand.weight, &shape, &plan, err));
    void *memory, *workspace, *y;
    TRY(device_arena_create(&d->arena, backend, &engine->exec, "dequantization",
                            arena_align(batch) + arena_align(plan.forward_workspace) + arena_align(1), err));
    TRY(arena_take(&d->arena, batch, &memory, err));
    TRY(arena_take(&d->arena, plan.forward_workspace, &workspace, err));
    TRY(arena_take(&d->arena, 1, &y, err));
    TRY(backend->begin(&engine->exec, &d->none, d->rows, 1, 0, 0, memory, err));
    double begin = 0.0;
    for (int call = 0; call <= CALLS; call++) { /* the first one warms up */
        TRY(backend->linear_forward(&engine->exec, &shape, &d->none, y, &operand, &y, NULL, workspace, err));
        if (call == 0) TRY(backend->finish(&engine->exec, err));
        if (call == 0) begin = clock_seconds();
    }
    TRY(backend->finish(&engine->exec, err));
    *seconds += (clock_seconds() - begin) / CALLS;
    device_arena_free(&d->arena, backend, &engine->exec);
    return OK;
}

Status bench_dequantization(const Engine *engine, int64_t rows, double *seconds, Error *err) {
    static const int64_t no_sequences[1] = {0};
    Dense d = {.engine = engine, .none = {.starts = no_sequences}, .rows = rows};
    Status status = OK;
    *seconds = 0.0;
    if (!engine->backend.on_device || engine->weights == NULL) return OK;
    for (int k = 0; k < LAYER_LINEARS && status == OK; k++)
        status = time_weight(&d, weight_id(0, (LayerWeight)k), seconds, err);
    if (status != OK) device_arena_free(&d.arena, &engine->backend, &engine->exec);
    *seconds *= (double)engine->model.layers;
    return status;
}

double bench_idle(const Engine *engine) {
    return engine->backend.idle_seconds != NULL ? engine->backend.idle_seconds(&engine->exec) : 0.0;
}

Status bench_device_in_use(const Engine *engine, size_t *bytes, Error *err) {
    size_t left, total;
    *bytes = 0;
    if (!engine->backend.on_device) return OK;
    TRY(engine->backend.memory_left(&engine->exec, &left, &total, err));
    *bytes = total - left;
    return OK;
}
