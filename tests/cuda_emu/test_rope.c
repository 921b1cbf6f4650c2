/* q/k norm + RoPE and its gradients on the device against the reference; dq and dk are written over drq and drk. */
#include "tests/cuda_emu/device.h"

enum { SPARE = 2, POSITIONS = 40 };

typedef struct Run {
    DType act;
    int64_t tokens, heads, kv_heads, head_dim;
    int norm;
    int64_t gap; /* 0, or columns behind q and k in one buffer; without norm rq and rk are written over them */
} Run;

typedef struct Side {
    int64_t heads, count;
    int64_t column; /* in a joined buffer */
    const void *x, *weight, *dy;
    void *y, *dx;
    float *d_weight;
    const void *dev_weight;
    void *dev_x, *dev_y, *dev_dx;
    float *dev_d_weight;
} Side;

static void open_side(Side *side, Scope *scope, Device *device, const Run *run, int64_t heads) {
    int64_t count = run->tokens * heads * run->head_dim;
    const float *start = scope_filled(scope, DTYPE_F32, run->head_dim, 0.5);
    *side = (Side){.heads = heads,
                   .count = count,
                   .x = scope_random(scope, run->act, count, 2.0),
                   .weight = scope_random(scope, run->act, run->head_dim, 1.5),
                   .dy = scope_random(scope, run->act, count, 1.0),
                   .y = scope_nan(scope, run->act, count),
                   .dx = scope_nan(scope, run->act, count),
                   .d_weight = scope_filled(scope, DTYPE_F32, run->head_dim, 0.5)};
    int64_t spare = SPARE * heads * run->head_dim;
    side->dev_x = device_in_values(device, run->act, side->x, count);
    side->dev_weight = device_in_values(device, run->act, side->weight, run->head_dim);
    side->dev_y = device_nan(device, run->act, count + spare);
    side->dev_dx = device_nan(device, run->act, count + spare);
    assert_cuda(cudaMemcpy(side->dev_dx, side->dy, (size_t)count * dtype_size(run->act), cudaMemcpyHostToDevice));
    side->dev_d_weight = device_out(device, start, (size_t)run->head_dim * sizeof(float));
}

/* Moves what rope reads and writes into joined buffers. */
static void join_side(Side *side, const Run *run, void *values, void *gradients, int64_t stride) {
    int64_t width = side->heads * run->head_dim;
    side->dev_x = device_member(run->act, values, side->column);
    side->dev_dx = device_member(run->act, gradients, side->column);
    if (!run->norm) side->dev_y = side->dev_x;
    device_put(run->act, side->dev_x, stride, side->x, run->tokens, width);
    device_put(run->act, side->dev_dx, stride, side->dy, run->tokens, width);
}

static void part_side(Side *side, Device *device, const Run *run, int64_t stride) {
    int64_t rows = run->tokens + SPARE, width = side->heads * run->head_dim;
    void *x = device_take(device, run->act, side->dev_x, stride, rows, width);
    if (!run->norm) side->dev_y = x;
    side->dev_dx = device_take(device, run->act, side->dev_dx, stride, rows, width);
}

static void compare_side(const Side *side, const Run *run) {
    double tolerance = run->act == DTYPE_BF16 ? 0x1p-6 : 1e-5;
    const char *reason = "BF16 roundings of the norm may fall to the neighbour; FP32 sums over a head";
    int64_t spare = SPARE * side->heads * run->head_dim;
    device_compare("rotated", run->act, side->dev_y, side->y, side->count, spare, tolerance, reason);
    device_compare("gradient", run->act, side->dev_dx, side->dx, side->count, spare, tolerance, reason);
    if (run->norm)
        device_compare("weight's gradient", DTYPE_F32, side->dev_d_weight, side->d_weight, run->head_dim, 0, 1e-5, "FP32 sums");
}

static void check(const Run *run) {
    Scope scope = {0};
    Device device = {0};
    Backend reference;
    Error err = {0};
    cpu_backend_reference(&reference);
    Exec exec = exec_open(run->act, 1);
    int64_t lengths[] = {run->tokens - run->tokens / 3, run->tokens / 3};
    Batch batch = scope_batch(&scope, lengths, lengths[1] > 0 ? 2 : 1, 10);
    RopeShape shape = {.rows = run->tokens + SPARE,
                       .heads = run->heads,
                       .kv_heads = run->kv_heads,
                       .head_dim = run->head_dim,
                       .table_rows = POSITIONS,
                       .has_norm = run->norm,
                       .train_norm = run->norm,
                       .epsilon = 1e-6};
    RopeTable table = {scope_random(&scope, DTYPE_F32, POSITIONS * run->head_dim / 2, 1.0),
                       scope_random(&scope, DTYPE_F32, POSITIONS * run->head_dim / 2, 1.0)};
    int64_t all = run->heads + run->kv_heads;
    float *roots = scope_nan(&scope, DTYPE_F32, (run->tokens + SPARE) * all);
    Side q, k;
    open_side(&q, &scope, &device, run, run->heads);
    open_side(&k, &scope, &device, run, run->kv_heads);
    assert_ok(reference.rope_forward(&exec, &shape, &batch, &table, q.x, k.x, q.weight, k.weight, q.y, k.y, roots, NULL, &err),
              &err);
    assert_ok(reference.rope_backward(&exec, &shape, &batch, &table, q.x, k.x, q.weight, k.weight, roots, q.dy, k.dy, q.dx,
                                      k.dx, q.d_weight, k.d_weight, NULL, &err),
              &err);

    int64_t stride = run->gap > 0 ? all * run->head_dim + run->gap : 0, joined = (run->tokens + SPARE) * stride;
    void *values = device_nan(&device, run->act, joined), *gradients = device_nan(&device, run->act, joined);
    if (run->gap > 0) {
        shape.stride = shape.gradient_stride = stride;
        shape.out_stride = run->norm ? 0 : stride;
        k.column = run->heads * run->head_dim;
        join_side(&q, run, values, gradients, stride);
        join_side(&k, run, values, gradients, stride);
    }
    const DeviceBatch *there = device_batch(&device, &batch, 0);
    const float *cosine = device_in_values(&device, DTYPE_F32, table.cosine, POSITIONS * run->head_dim / 2);
    const float *sine = device_in_values(&device, DTYPE_F32, table.sine, POSITIONS * run->head_dim / 2);
    float *dev_roots = run->norm ? device_nan(&device, DTYPE_F32, (run->tokens + SPARE) * all) : NULL;
    assert_cuda(cuda_rope_forward(run->act, there, &shape, cosine, sine, q.dev_x, k.dev_x, run->norm ? q.dev_weight : NULL,
                                  run->norm ? k.dev_weight : NULL, q.dev_y, k.dev_y, dev_roots, 0));
    const void *qx = run->norm ? q.dev_x : NULL, *kx = run->norm ? k.dev_x : NULL;
    if (run->norm) {
        device_compare("roots", DTYPE_F32, dev_roots, roots, run->tokens * all, SPARE * all, 1e-5, "FP32 sums over a head");
        assert_cuda(cuda_rope_weight_grad(run->act, there, &shape, cosine, sine, qx, kx, dev_roots, q.dev_dx, k.dev_dx,
                                          q.dev_d_weight, k.dev_d_weight, 0));
    }
    assert_cuda(cuda_rope_backward(run->act, there, &shape, cosine, sine, qx, kx, run->norm ? q.dev_weight : NULL,
                                   run->norm ? k.dev_weight : NULL, dev_roots, q.dev_dx, k.dev_dx, q.dev_dx, k.dev_dx, 0));
    if (run->gap > 0) {
        part_side(&q, &device, run, stride);
        part_side(&k, &device, run, stride);
        device_is_nan("beside q and k", run->act, values, joined);
        device_is_nan("beside their gradients", run->act, gradients, joined);
    }
    compare_side(&q, run);
    compare_side(&k, run);
    exec_close(&exec);
    device_close(&device);
    scope_close(&scope);
}

static void rotates(void **state) {
    (void)state;
    static const int64_t dims[] = {2, 6, 16, 64, 96, 128, 130, 256};
    for (size_t d = 0; d < sizeof dims / sizeof *dims; d++) {
        for (int kind = 0; kind < 4; kind++) {
            DType act = kind % 2 ? DTYPE_BF16 : DTYPE_F32;
            check(&(Run){act, 1, 1, 1, dims[d], kind / 2, 0});
            check(&(Run){act, 13, 4, 2, dims[d], kind / 2, 0});
            check(&(Run){act, 13, 4, 2, dims[d], kind / 2, 2 * dims[d]});
            check(&(Run){act, 3, 2, 1, dims[d], kind / 2, 5});
        }
    }
    check(&(Run){DTYPE_BF16, 37, 9, 3, 64, 1, 0});
    check(&(Run){DTYPE_BF16, 5, 32, 8, 128, 1, 1024}); /* Qwen3 8B */
    check(&(Run){DTYPE_BF16, 5, 32, 8, 128, 0, 1024}); /* Llama-3 8B */
}

static void refuses(void **state) {
    (void)state;
    RopeShape narrow = {.rows = 1, .heads = 2, .kv_heads = 1, .head_dim = 4, .table_rows = 1, .stride = 6};
    assert_int_equal(cuda_rope_forward(DTYPE_BF16, NULL, &narrow, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0),
                     cudaErrorInvalidValue);
    RopeShape odd = {.rows = 1, .heads = 1, .kv_heads = 1, .head_dim = 5, .table_rows = 1};
    assert_int_equal(cuda_rope_forward(DTYPE_BF16, NULL, &odd, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0),
                     cudaErrorInvalidValue);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(rotates), cmocka_unit_test(refuses)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
