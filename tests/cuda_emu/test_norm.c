/* Add + RMSNorm and its gradients on the device against the reference. */
#include "tests/cuda_emu/device.h"

enum { SPARE = 3 }; /* rows of capacity that the batch does not use */

typedef struct Run {
    DType act;
    int64_t tokens, hidden;
    int has_x, with_d_sum;
} Run;

static double tolerance(DType act) {
    return act == DTYPE_BF16 ? 0x1p-6 : 1e-5;
}
static const char *reason = "two BF16 roundings may each fall to the neighbour; FP32 sums of up to 4,800 products";

static void check(const Run *run) {
    Scope scope = {0};
    Device device = {0};
    Backend reference;
    Error err = {0};
    cpu_backend_reference(&reference);
    Exec exec = exec_open(run->act, 1);
    int64_t length = run->tokens, count = run->tokens * run->hidden, spare = SPARE * run->hidden;
    Batch batch = scope_batch(&scope, &length, 1, 10);
    NormShape shape = {
        .rows = run->tokens + SPARE, .hidden = run->hidden, .epsilon = 1e-5, .has_x = run->has_x, .train = 1, .need_dx = 1};
    OpPlan plan;
    assert_ok(reference.norm_plan(&exec.config, &shape, &plan, &err), &err);
    const void *residual = scope_random(&scope, run->act, count, 2.0), *x = scope_random(&scope, run->act, count, 1.0);
    const void *weight = scope_random(&scope, run->act, run->hidden, 1.5), *dy = scope_random(&scope, run->act, count, 1.0);
    const void *d_sum = scope_random(&scope, run->act, count, 1.0);
    void *sum = scope_nan(&scope, run->act, count), *y = scope_nan(&scope, run->act, count);
    float *rstd = scope_scratch(&scope, plan.saved);
    void *d_residual = scope_nan(&scope, run->act, count);
    float *d_weight = scope_filled(&scope, DTYPE_F32, run->hidden, 0.25);
    const void *start = scope_filled(&scope, DTYPE_F32, run->hidden, 0.25);
    assert_ok(reference.norm_forward(&exec, &shape, &batch, residual, x, weight, sum, y, rstd, NULL, &err), &err);
    const void *normed = run->has_x ? sum : residual;
    assert_ok(reference.norm_backward(&exec, &shape, &batch, normed, weight, rstd, dy, run->with_d_sum ? d_sum : NULL,
                                      d_residual, d_weight, NULL, &err),
              &err);

    const DeviceBatch *there = device_batch(&device, &batch, 0);
    const void *dev_residual = device_in_values(&device, run->act, residual, count);
    const void *dev_x = run->has_x ? device_in_values(&device, run->act, x, count) : NULL;
    const void *dev_weight = device_in_values(&device, run->act, weight, run->hidden);
    void *dev_sum = run->has_x ? device_nan(&device, run->act, count + spare) : NULL;
    void *dev_y = device_nan(&device, run->act, count + spare);
    float *dev_rstd = device_nan(&device, DTYPE_F32, run->tokens + SPARE);
    assert_cuda(cuda_norm_forward(run->act, there, &shape, dev_residual, dev_x, dev_weight, dev_sum, dev_y, dev_rstd, 0));
    if (run->has_x) device_compare("sum", run->act, dev_sum, sum, count, spare, 0x1p-9, "one addition, rounded alike");
    device_compare("y", run->act, dev_y, y, count, spare, tolerance(run->act), reason);
    device_compare("rstd", DTYPE_F32, dev_rstd, rstd, run->tokens, SPARE, 1e-5, "FP32 sum of squares");

    const void *dev_normed = device_in_values(&device, run->act, normed, count);
    const float *dev_roots = device_in_values(&device, DTYPE_F32, rstd, run->tokens);
    const void *dev_dy = device_in_values(&device, run->act, dy, count);
    /* the gradient of the sum lies where the gradient of the residual goes */
    void *dev_d = device_nan(&device, run->act, count + spare);
    if (run->with_d_sum) assert_cuda(cudaMemcpy(dev_d, d_sum, (size_t)count * dtype_size(run->act), cudaMemcpyHostToDevice));
    float *dev_d_weight = device_out(&device, start, (size_t)run->hidden * sizeof(float));
    assert_cuda(cuda_norm_weight_grad(run->act, there, &shape, dev_normed, dev_roots, dev_dy, dev_d_weight, 0));
    assert_cuda(cuda_norm_backward(run->act, there, &shape, dev_normed, dev_weight, dev_roots, dev_dy,
                                   run->with_d_sum ? dev_d : NULL, dev_d, 0));
    device_compare("d_residual", run->act, dev_d, d_residual, count, spare, tolerance(run->act), reason);
    device_compare("d_weight", DTYPE_F32, dev_d_weight, d_weight, run->hidden, 0, 1e-5, "FP32 sums over rows");
    exec_close(&exec);
    device_close(&device);
    scope_close(&scope);
}

static void norms(void **state) {
    (void)state;
    static const int64_t widths[] = {1, 7, 8, 64, 264, 1024, 1031, 4800}, rows[] = {1, 5, 33};
    for (size_t w = 0; w < sizeof widths / sizeof *widths; w++) {
        for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
            for (int kind = 0; kind < 4; kind++) {
                if (widths[w] > 1024 && (r != 1 || widths[w] % 8 != 0) && kind != 3) continue;
                int with_d_sum = kind / 2 || widths[w] == 1; /* of one column nothing is left but d_sum */
                Run run = {kind % 2 ? DTYPE_BF16 : DTYPE_F32, rows[r], widths[w], kind / 2, with_d_sum};
                check(&run);
            }
        }
    }
}

/* The widths of Qwen2.5 0.5B, Llama-3 8B and 70B, and the widest. */
static void norms_in_real_shapes(void **state) {
    (void)state;
    static const int64_t widths[] = {896, 4096, 8192, 16384};
    for (size_t w = 0; w < sizeof widths / sizeof *widths; w++)
        check(&(Run){DTYPE_BF16, 3, widths[w], 1, 1});
}

static void refuses(void **state) {
    (void)state;
    NormShape wide = {.rows = 1, .hidden = 4097, .epsilon = 1e-5}, none = {.rows = 1, .hidden = 0};
    assert_int_equal(cuda_norm_forward(DTYPE_BF16, NULL, &wide, NULL, NULL, NULL, NULL, NULL, NULL, 0), cudaErrorInvalidValue);
    assert_int_equal(cuda_norm_forward(DTYPE_BF16, NULL, &none, NULL, NULL, NULL, NULL, NULL, NULL, 0), cudaErrorInvalidValue);
    wide.hidden = 4096;
    assert_int_equal(cuda_norm_forward(DTYPE_F64, NULL, &wide, NULL, NULL, NULL, NULL, NULL, NULL, 0), cudaErrorInvalidValue);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(norms), cmocka_unit_test(norms_in_real_shapes),
                                       cmocka_unit_test(refuses)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
