/* A linear group through the plugin's own entries, results and their gradients side by side, against the reference, which has
 * them apart: weights that are one matrix and weights that are not, members with and without adapter or bias. */
#include "kernels/cuda/plugin.h"
#include "quant/quantize.h"
#include "tests/cuda_emu/device.h"

extern const DevicePlugin nibble_device_plugin;

enum { TOKENS = 11, SPARE = 3, IN = 72 };

typedef struct Run {
    int count;
    int64_t out[LINEAR_GROUP_MAX], rank[LINEAR_GROUP_MAX];
    int bias;
    WeightFormat format; /* NF4: dequantized one after another */
    int64_t apart;       /* F32: elements between the members' weights */
    int train;           /* weights and biases too */
} Run;

typedef struct Group {
    const Run *run;
    Backend backend, reference;
    Exec exec, host; /* with a device, and without */
    Scope scope;
    Device device;
    Arena arena;
    Error err;
    Batch batch;
    LinearShape shape;
    LinearOperand operands[LINEAR_GROUP_MAX], there[LINEAR_GROUP_MAX];
} Group;

static const float *vector(Group *g, int64_t count, double scale) {
    return count > 0 ? scope_random(&g->scope, DTYPE_F32, count, scale) : NULL;
}

static const float *carried(Group *g, const float *values, int64_t count) {
    return count > 0 ? device_in_values(&g->device, DTYPE_F32, values, count) : NULL;
}

static void open_weights(Group *g) {
    const Run *run = g->run;
    QuantSpec spec = {.format = WEIGHT_NF4, .block_size = 64};
    int64_t all = 0, at = 0;
    for (int i = 0; i < run->count; i++)
        all += run->out[i] * IN + run->apart;
    float *memory = device_nan(&g->device, DTYPE_F32, all);
    for (int i = 0; i < run->count; i++) {
        int64_t count = run->out[i] * IN;
        LinearOperand *operand = &g->operands[i];
        const float *w = vector(g, count, 0.2);
        if (run->format == WEIGHT_NF4) {
            QuantizedTensor tensor;
            Quantizer *quantizer;
            assert_ok(quantized_take(&tensor, &spec, run->out[i], IN, &g->arena, &g->err), &g->err);
            assert_ok(quantizer_create(&quantizer, &g->reference, NULL, 0, &g->err), &g->err);
            assert_ok(quantize_tensor(quantizer, w, DTYPE_F32, &tensor, &g->err), &g->err);
            quantizer_free(quantizer);
            operand->weight = quantized_view(&tensor);
            g->there[i].weight = device_weight(&g->device, &operand->weight);
        } else {
            operand->weight = (WeightView){.format = WEIGHT_F32, .rows = run->out[i], .cols = IN, .data = w};
            g->there[i].weight = operand->weight;
            g->there[i].weight.data = memory + at;
            assert_cuda(cudaMemcpy(memory + at, w, (size_t)count * sizeof(float), cudaMemcpyHostToDevice));
            at += count + run->apart;
        }
        operand->lora_a = vector(g, run->rank[i] * IN, 0.3);
        operand->lora_b = vector(g, run->rank[i] * run->out[i], 0.3);
        operand->bias = vector(g, run->bias ? run->out[i] : 0, 1.0);
        g->there[i].lora_a = carried(g, operand->lora_a, run->rank[i] * IN);
        g->there[i].lora_b = carried(g, operand->lora_b, run->rank[i] * run->out[i]);
        g->there[i].bias = carried(g, operand->bias, run->bias ? run->out[i] : 0);
    }
}

static void group_open(Group *g, const Run *run) {
    memset(g, 0, sizeof *g);
    g->run = run;
    char name[96];
    int64_t lengths[2] = {7, TOKENS - 7};
    g->host = exec_open(DTYPE_F32, 1);
    g->exec.config = g->host.config;
    cpu_backend_reference(&g->reference);
    g->backend = g->reference;
    nibble_device_plugin.install(&g->backend);
    assert_true(g->backend.joined_groups);
    assert_ok(nibble_device_plugin.open(0, &g->exec.device, name, sizeof name, &g->err), &g->err);
    assert_ok(arena_create(&g->arena, "weights", 1 << 20, &g->err), &g->err);
    g->batch = scope_batch(&g->scope, lengths, 2, 10);
    g->shape = (LinearShape){.rows = TOKENS + SPARE, .in = IN, .count = run->count, .need_dx = 1};
    for (int i = 0; i < run->count; i++)
        g->shape.linear[i] = (LinearSpec){.out = run->out[i],
                                          .format = run->format,
                                          .rank = run->rank[i],
                                          .lora_scale = 0.5f + (float)i,
                                          .dropout = 0.1f,
                                          .dropout_stream = 3u + (uint32_t)i,
                                          .has_bias = run->bias,
                                          .train_weight = run->train,
                                          .train_bias = run->train && run->bias};
    open_weights(g);
}

static void group_close(Group *g) {
    device_close(&g->device);
    nibble_device_plugin.close(g->exec.device);
    arena_free(&g->arena);
    exec_close(&g->host);
    scope_close(&g->scope);
}

typedef struct Gradients {
    LinearGrad grads[LINEAR_GROUP_MAX];
} Gradients;

static void *started(Group *g, int64_t count, int on_device) { /* gradients are accumulated */
    if (count == 0) return NULL;
    void *values = scope_filled(&g->scope, DTYPE_F32, count, 0.5);
    return on_device ? device_out(&g->device, values, (size_t)count * sizeof(float)) : values;
}

static Gradients gradients(Group *g, int on_device) {
    const Run *run = g->run;
    Gradients out;
    for (int i = 0; i < run->count; i++)
        out.grads[i] = (LinearGrad){.weight = started(g, run->train ? run->out[i] * IN : 0, on_device),
                                    .bias = started(g, run->train && run->bias ? run->out[i] : 0, on_device),
                                    .lora_a = started(g, run->rank[i] * IN, on_device),
                                    .lora_b = started(g, run->rank[i] * run->out[i], on_device)};
    return out;
}

static void check(const Run *run) {
    static Group g;
    group_open(&g, run);
    OpPlan plan, host_plan;
    LinearShape joined = g.shape;
    int64_t column = 0, rows = TOKENS + SPARE;
    for (int i = 0; i < run->count; i++)
        joined.stride += run->out[i];
    int64_t stride = joined.stride;
    assert_ok(g.reference.linear_plan(&g.host.config, &g.shape, &host_plan, &g.err), &g.err);
    assert_ok(g.backend.linear_plan(&g.exec.config, &joined, &plan, &g.err), &g.err);
    assert_refused(g.reference.linear_plan(&g.host.config, &joined, &host_plan, &g.err), &g.err, "contiguous");
    assert_ok(g.reference.linear_plan(&g.host.config, &g.shape, &host_plan, &g.err), &g.err);

    const float *x = vector(&g, TOKENS * IN, 1.0), *dy[LINEAR_GROUP_MAX];
    void *y[LINEAR_GROUP_MAX], *dx = scope_nan(&g.scope, DTYPE_F32, TOKENS * IN),
                               *saved = scope_bytes(&g.scope, host_plan.saved);
    float *y_there = device_nan(&g.device, DTYPE_F32, rows * stride),
          *dy_there = device_nan(&g.device, DTYPE_F32, rows * stride);
    void *y_at[LINEAR_GROUP_MAX];
    const void *dy_at[LINEAR_GROUP_MAX];
    for (int i = 0; i < run->count; i++) {
        dy[i] = vector(&g, TOKENS * run->out[i], 1.0);
        y[i] = scope_nan(&g.scope, DTYPE_F32, TOKENS * run->out[i]);
        y_at[i] = y_there + column;
        dy_at[i] = dy_there + column;
        device_put(DTYPE_F32, dy_there + column, stride, dy[i], TOKENS, run->out[i]);
        column += run->out[i];
    }
    void *x_there = device_nan(&g.device, DTYPE_F32, rows * IN), *dx_there = device_nan(&g.device, DTYPE_F32, rows * IN);
    device_put(DTYPE_F32, x_there, IN, x, TOKENS, IN);
    Gradients want = gradients(&g, 0), got = gradients(&g, 1);
    const void *const *dy_host = (const void *const *)dy;
    assert_ok(g.reference.linear_forward(&g.host, &g.shape, &g.batch, x, g.operands, y, saved,
                                         scope_scratch(&g.scope, host_plan.forward_workspace), &g.err),
              &g.err);
    assert_ok(g.reference.linear_backward(&g.host, &g.shape, &g.batch, x, g.operands, saved, dy_host, dx, want.grads,
                                          scope_scratch(&g.scope, host_plan.backward_workspace), &g.err),
              &g.err);

    void *memory = device_out(&g.device, NULL, g.backend.batch_bytes(rows, g.batch.supervised));
    void *saved_there = device_out(&g.device, NULL, plan.saved);
    size_t work = plan.forward_workspace > plan.backward_workspace ? plan.forward_workspace : plan.backward_workspace;
    void *workspace = device_out(&g.device, NULL, work);
    assert_cuda(cudaDeviceSynchronize());
    assert_ok(g.backend.begin(&g.exec, &g.batch, rows, g.batch.supervised, 0, 1, memory, &g.err), &g.err);
    assert_ok(g.backend.linear_forward(&g.exec, &joined, &g.batch, x_there, g.there, y_at, saved_there, workspace, &g.err),
              &g.err);
    assert_ok(g.backend.linear_backward(&g.exec, &joined, &g.batch, x_there, g.there, saved_there, dy_at, dx_there, got.grads,
                                        workspace, &g.err),
              &g.err);
    const char *reason = "FP32 sums in another order";
    device_compare("dx", DTYPE_F32, dx_there, dx, TOKENS * IN, 0, 1e-5, reason);
    for (int i = 0; i < run->count; i++) {
        int64_t out = run->out[i], rank = run->rank[i];
        device_compare("y", DTYPE_F32, device_take(&g.device, DTYPE_F32, y_at[i], stride, TOKENS, out), y[i], TOKENS * out, 0,
                       1e-5, reason);
        if (rank > 0) device_compare("dA", DTYPE_F32, got.grads[i].lora_a, want.grads[i].lora_a, rank * IN, 0, 1e-5, reason);
        if (rank > 0) device_compare("dB", DTYPE_F32, got.grads[i].lora_b, want.grads[i].lora_b, rank * out, 0, 1e-5, reason);
        if (!run->train) continue;
        device_compare("dW", DTYPE_F32, got.grads[i].weight, want.grads[i].weight, out * IN, 0, 1e-5, reason);
        if (run->bias) device_compare("dbias", DTYPE_F32, got.grads[i].bias, want.grads[i].bias, out, 0, 1e-5, reason);
    }
    group_close(&g);
}

static void multiplies_side_by_side(void **state) {
    (void)state;
    static const Run runs[] = {
        {3, {64, 32, 32}, {8, 8, 8}, 0, WEIGHT_NF4, 0, 0},
        {3, {64, 32, 32}, {8, 0, 8}, 0, WEIGHT_NF4, 0, 0}, /* k has nothing to add: it begins as zero */
        {3, {37, 5, 9}, {3, 0, 0}, 1, WEIGHT_NF4, 0, 0},
        {2, {101, 101}, {0, 0}, 0, WEIGHT_NF4, 0, 0}, /* nothing is begun */
        {2, {101, 101}, {4, 4}, 0, WEIGHT_F32, 0, 0}, /* one matrix as they lie */
        {2, {101, 101}, {4, 0}, 0, WEIGHT_F32, 7, 0}, /* two */
        {3, {64, 32, 32}, {0, 0, 0}, 1, WEIGHT_F32, 0, 1},
        {3, {24, 7, 7}, {0, 0, 0}, 1, WEIGHT_F32, 16, 1},
        {3, {24, 7, 7}, {0, 0, 0}, 0, WEIGHT_F32, 0, 1},
    };
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++)
        check(&runs[i]);
}

static void refuses(void **state) {
    (void)state;
    Backend backend;
    Error err = {0};
    OpPlan plan;
    ExecConfig config = {.act = DTYPE_BF16, .threads = 1};
    cpu_backend_reference(&backend);
    nibble_device_plugin.install(&backend);
    LinearSpec member = {.out = 8, .format = WEIGHT_NF4};
    LinearShape shape = {.rows = 4, .in = 8, .count = 2, .linear = {member, member}, .stride = 24};
    assert_refused(backend.linear_plan(&config, &shape, &plan, &err), &err, "a joined group of 16 columns");
    AttentionShape attention = {.rows = 4, .heads = 2, .kv_heads = 1, .head_dim = 8, .scale = 1.0f, .v_stride = 33};
    assert_refused(backend.attention_plan(&config, &attention, &plan, &err), &err, "an even number");
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(multiplies_side_by_side), cmocka_unit_test(refuses)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
