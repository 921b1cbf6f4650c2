/* Gated activation on the device against the reference; the gradients are written over gate and dy. */
#include "tests/cuda_emu/device.h"

enum { SPARE = 2 };

/* gap: 0, or columns beside gate and up in one buffer, whose gradients are written over them. */
static void check(GateKind kind, DType act, int64_t tokens, int64_t width, int64_t gap) {
    Scope scope = {0};
    Device device = {0};
    Backend reference;
    Error err = {0};
    cpu_backend_reference(&reference);
    Exec exec = exec_open(act, 1);
    int64_t count = tokens * width, spare = SPARE * width;
    Batch batch = scope_batch(&scope, &tokens, 1, 10);
    int64_t rows = tokens + SPARE, stride = gap > 0 ? 2 * width + gap : 0;
    GateShape shape = {.rows = rows, .width = width, .kind = kind};
    const void *gate = scope_random(&scope, act, count, 12.0), *up = scope_random(&scope, act, count, 2.0);
    const void *dy = scope_random(&scope, act, count, 1.0);
    void *y = scope_nan(&scope, act, count), *d_gate = scope_nan(&scope, act, count), *d_up = scope_nan(&scope, act, count);
    assert_ok(reference.gate_forward(&exec, &shape, &batch, gate, up, y, &err), &err);
    assert_ok(reference.gate_backward(&exec, &shape, &batch, gate, up, dy, d_gate, d_up, &err), &err);
    const DeviceBatch *there = device_batch(&device, &batch, 0);
    size_t bytes = (size_t)count * dtype_size(act);
    void *dev_gate = device_nan(&device, act, count + spare), *dev_dy = device_nan(&device, act, count + spare);
    assert_cuda(cudaMemcpy(dev_gate, gate, bytes, cudaMemcpyHostToDevice));
    assert_cuda(cudaMemcpy(dev_dy, dy, bytes, cudaMemcpyHostToDevice));
    void *dev_up = device_in_values(&device, act, up, count), *d_up_there = dev_dy;
    void *dev_y = device_nan(&device, act, count + spare), *joined = device_nan(&device, act, rows * stride);
    if (gap > 0) {
        dev_gate = joined, dev_up = d_up_there = device_member(act, joined, width);
        device_put(act, dev_gate, stride, gate, tokens, width);
        device_put(act, dev_up, stride, up, tokens, width);
        shape.stride = shape.gradient_stride = stride;
    }
    assert_cuda(cuda_gate_forward(act, there, &shape, dev_gate, dev_up, dev_y, 0));
    assert_cuda(cuda_gate_backward(act, there, &shape, dev_gate, dev_up, dev_dy, dev_gate, d_up_there, 0));
    if (gap > 0) {
        dev_gate = device_take(&device, act, dev_gate, stride, rows, width);
        d_up_there = device_take(&device, act, d_up_there, stride, rows, width);
        device_is_nan("beside them", act, joined, rows * stride);
    }
    double tolerance = act == DTYPE_BF16 ? 0x1p-8 : 2e-6;
    const char *reason = "one rounding, which may fall to the neighbour; FP32 exponentials";
    device_compare("y", act, dev_y, y, count, spare, tolerance, reason);
    device_compare("d_gate", act, dev_gate, d_gate, count, spare, tolerance, reason);
    device_compare("d_up", act, d_up_there, d_up, count, spare, tolerance, reason);
    exec_close(&exec);
    device_close(&device);
    scope_close(&scope);
}

static void gates(void **state) {
    (void)state;
    static const int64_t sizes[][2] = {{1, 1},  {3, 7},    {1, 2040}, {1, 2048}, {1, 2056},
                                       {5, 96}, {17, 251}, {31, 344}, {3, 14336}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int kind = GATE_SILU; kind <= GATE_GELU_TANH; kind++) {
            check((GateKind)kind, DTYPE_F32, sizes[i][0], sizes[i][1], 0);
            check((GateKind)kind, DTYPE_BF16, sizes[i][0], sizes[i][1], 0);
            check((GateKind)kind, DTYPE_F32, sizes[i][0], sizes[i][1], 8);
            check((GateKind)kind, DTYPE_BF16, sizes[i][0], sizes[i][1], 8);
            check((GateKind)kind, DTYPE_BF16, sizes[i][0], sizes[i][1], 3);
        }
}

static void refuses(void **state) {
    (void)state;
    GateShape narrow = {.rows = 1, .width = 8, .stride = 7}, long_rows = {.rows = INT32_MAX, .width = 4096};
    assert_int_equal(cuda_gate_forward(DTYPE_BF16, NULL, &narrow, NULL, NULL, NULL, 0), cudaErrorInvalidValue);
    assert_int_equal(cuda_gate_backward(DTYPE_BF16, NULL, &long_rows, NULL, NULL, NULL, NULL, NULL, 0), cudaErrorInvalidValue);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(gates), cmocka_unit_test(refuses)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
