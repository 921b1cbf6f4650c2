/* Operands on a device: the backend's entries make them in order with everything else, from the base, the adapter's compute copies
 * and theta as they lie there. Nothing of it passes through the host. */
#include <string.h>

#include "quant/double_quant.h"
#include "train/device_memory.h"
#include "train/qat_internal.h"
#include "train/qat_scales.h"

static int64_t most(int64_t a, int64_t b) {
    return a > b ? a : b;
}

Status qat_device_check(const QatOptions *options, Error *err) {
    if (options->grid.grid == FAKE_Q4_K)
        FAIL_USAGE(
            "qat.weights q4_k: ggml's search for its scales runs on the CPU only so far; on a device take int2, int3, int4, "
            "int8, "
            "nf4, q4_0 or q8_0, or use --device cpu");
    return OK;
}

static FakeWeightShape shape_of(const QatShape *shape, int64_t rows, int64_t cols) {
    return (FakeWeightShape){
        .rows = rows, .cols = cols, .grid = shape->options.grid, .scaled = qat_options_keep_scales(&shape->options)};
}

Status qat_device_measure(const QatShape *shape, LayerWeight kind, int64_t rows, int64_t cols, QatDeviceBytes *bytes,
                          Error *err) {
    FakeWeightShape fake = shape_of(shape, rows, cols);
    OpPlan plan;
    for (int64_t layer = 0; shape->options.mode == QAT_MERGED && layer < shape->model->layers; layer++)
        fake.rank = most(fake.rank, adapter_module(shape->adapter, layer, kind)->rank);
    TRY(shape->backend->fake_weight_plan(&shape->exec, &fake, &plan, err));
    bytes->workspace =
        (size_t)most((int64_t)bytes->workspace, most((int64_t)plan.forward_workspace, (int64_t)plan.backward_workspace));
    int64_t group = shape->options.grid.group > 0 ? shape->options.grid.group : cols;
    if (qat_options_keep_scales(&shape->options))
        bytes->scales = (size_t)most((int64_t)bytes->scales, rows * (cols / group) * (int64_t)sizeof(float));
    return OK;
}

Status qat_device_take(const QatDeviceBytes *bytes, Arena *arena, QatMemory *memory, Error *err) {
    void *map, *scales;
    TRY(arena_take(arena, DYNAMIC_MAP_ENTRIES * sizeof(float), &map, err));
    TRY(arena_take(arena, bytes->scales, &scales, err));
    memory->nested_map = map;
    memory->scales = scales;
    return arena_take(arena, bytes->workspace, &memory->workspace, err);
}

Status qat_device_open(Qat *qat, Error *err) {
    float map[DYNAMIC_MAP_ENTRIES];
    dynamic_map(map);
    return qat->shape.backend->copy_in(qat->shape.there, qat->memory.nested_map, map, sizeof map, err);
}

typedef struct DeviceLinear {
    FakeWeightShape shape;
    FakeWeightOperand operand;
    FakeWeightGrad grads;
} DeviceLinear;

static const void *copy_at(const Qat *qat, int64_t offset) {
    const uint8_t *copy = qat->params->copy;
    return params_there(qat->params, copy + (size_t)offset * dtype_size(qat->shape.exec.act));
}

static float *gradient_at(const Qat *qat, int64_t offset) {
    return params_there(qat->params, qat->params->gradient + offset);
}

static DeviceLinear on_device(const Qat *qat, const QatLinear *linear) {
    DeviceLinear out = {.shape = shape_of(&qat->shape, linear->rows, linear->cols),
                        .operand = {.base = linear->base, .nested_map = qat->memory.nested_map}};
    out.shape.share = qat->share;
    out.shape.layer = (linear->id - WEIGHT_GLOBALS) / LAYER_WEIGHTS;
    out.shape.linear = (int32_t)linear->kind;
    if (linear->first >= 0) out.operand.first = qat->memory.first + linear->first;
    if (linear->theta >= 0) {
        out.operand.theta = params_there(qat->params, qat->params->master + linear->theta);
        out.grads.theta = gradient_at(qat, linear->theta);
    }
    if (linear->rank == 0) return out;
    out.shape.rank = linear->rank;
    out.shape.lora_scale = linear->scale;
    out.operand.lora_a = copy_at(qat, linear->a);
    out.operand.lora_b = copy_at(qat, linear->b);
    out.grads.lora_a = gradient_at(qat, linear->a);
    out.grads.lora_b = gradient_at(qat, linear->b);
    return out;
}

Status qat_device_forward(Qat *qat, const QatLinear *linear, Error *err) {
    DeviceLinear l = on_device(qat, linear);
    return qat->shape.backend->fake_weight_forward(qat->shape.there, &l.shape, &l.operand, qat->memory.slot[linear->kind],
                                                   qat->memory.workspace, err);
}

Status qat_device_backward(Qat *qat, const QatLinear *linear, const Batch *batch, const void *dy, int64_t stride, const void *x,
                           Error *err) {
    DeviceLinear l = on_device(qat, linear);
    return qat->shape.backend->fake_weight_backward(qat->shape.there, &l.shape, &l.operand, batch, dy, stride, x, &l.grads,
                                                    qat->memory.workspace, err);
}

Status qat_device_scales(const Qat *qat, const QatLinear *linear, float *scales, Error *err) {
    const Backend *backend = qat->shape.backend;
    DeviceLinear l = on_device(qat, linear);
    TRY(backend->fake_weight_scales(qat->shape.there, &l.shape, &l.operand, qat->memory.scales, qat->memory.workspace, err));
    return backend->copy_out(qat->shape.there, scales, qat->memory.scales,
                             (size_t)(linear->rows * linear->groups) * sizeof *scales, err);
}
