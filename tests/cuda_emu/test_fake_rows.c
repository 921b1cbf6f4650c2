/* Fake quantization of activations on the device: the reference's bits, and NaN where a group holds NaN or Inf. */
#include "core/memory.h"
#include "tests/cuda_emu/device.h"

enum { SPARE = 2 };

static void check_fixed(DType act, int64_t tokens, int64_t columns, int64_t group, int bits, int symmetric, int broken,
                        float scale, int64_t gap) {
    Scope scope = {0};
    Device device = {0};
    Backend reference;
    Error err = {0};
    cpu_backend_reference(&reference);
    Exec exec = exec_open(act, 1);
    int64_t count = tokens * columns, bytes = (columns + 7) / 8;
    Batch batch = scope_batch(&scope, &tokens, 1, 10);
    FakeRowsShape shape = {.rows = tokens + SPARE,
                           .columns = columns,
                           .group = group,
                           .bits = bits,
                           .symmetric = symmetric,
                           .scale = scale},
                  planned = shape;
    OpPlan plan;
    if (bits == 0) planned.bits = 8;
    assert_ok(reference.fake_rows_plan(&exec.config, &planned, &plan, &err), &err);
    float *values = scope_random(&scope, DTYPE_F32, count, 4.0);
    for (int64_t i = 0; i < count; i++) {
        if (i / group % 5 == 1) values[i] = fabsf(values[i]) + 1.0f;
        if (i / group % 5 == 2) values[i] = 0.0f;
        if (i / group % 5 == 3) values[i] *= 0x1p-30f;
        if (broken && i / group % 7 == 4 && i % group == group / 2) values[i] = i % 2 ? NAN : INFINITY;
    }
    void *x = scope_nan(&scope, act, count), *y = scope_nan(&scope, act, count), *dx = scope_nan(&scope, act, count);
    dtype_convert(x, act, values, DTYPE_F32, count);
    const void *dy = scope_random(&scope, act, count, 1.0);
    uint8_t *saved = scope_bytes(&scope, plan.saved);
    assert_ok(
        reference.fake_rows_forward(&exec, &shape, &batch, x, y, saved, scope_scratch(&scope, plan.forward_workspace), &err),
        &err);
    assert_ok(reference.fake_rows_backward(&exec, &shape, &batch, saved, dy, dx, &err), &err);

    const DeviceBatch *there = device_batch(&device, &batch, 0);
    size_t element = dtype_size(act);
    int64_t rows = tokens + SPARE, stride = gap > 0 ? columns + gap : 0;
    void *dev_x = device_in_values(&device, act, x, count), *joined = device_nan(&device, act, rows * stride);
    void *dev_y = device_nan(&device, act, count + SPARE * columns),
         *dev_dx = device_nan(&device, act, count + SPARE * columns);
    uint8_t *dev_saved = device_out(&device, NULL, (size_t)((tokens + SPARE) * bytes));
    assert_cuda(cudaMemcpy(dev_dx, dy, (size_t)count * element, cudaMemcpyHostToDevice));
    if (gap > 0) {
        dev_x = device_member(act, joined, gap);
        device_put(act, dev_x, stride, x, tokens, columns);
        shape.stride = shape.gradient_stride = stride;
    }
    assert_cuda(cuda_fake_rows_forward(act, there, &shape, dev_x, dev_y, dev_saved, 0));
    if (gap > 0) {
        (void)device_take(&device, act, dev_x, stride, rows, columns);
        dev_dx = dev_x;
        device_put(act, dev_dx, stride, dy, tokens, columns);
    }
    assert_cuda(cuda_fake_rows_backward(act, there, &shape, dev_saved, dev_dx, dev_dx, 0));
    if (gap > 0) dev_dx = device_take(&device, act, dev_dx, stride, rows, columns);
    device_is_nan("beside it", act, joined, rows * stride);
    uint8_t *mask = memory_alloc((size_t)((tokens + SPARE) * bytes));
    device_read(mask, dev_saved, (size_t)((tokens + SPARE) * bytes));
    assert_memory_equal(mask, saved, (size_t)(tokens * bytes));
    assert_untouched("mask", mask + tokens * bytes, (size_t)(SPARE * bytes));
    char *got = memory_alloc((size_t)count * element);
    device_read(got, dev_y, (size_t)count * element);
    for (int64_t i = 0; i < count; i++) {
        double want = element_of(act, y, i), have = element_of(act, got, i);
        if (!(want == have || (isnan(want) && isnan(have))))
            fail_msg("element %lld: want %.9g, got %.9g", (long long)i, want, have);
    }
    device_compare("dx", act, dev_dx, dx, count, SPARE * columns, 0.0, "copies and zeros");
    memory_free(mask);
    memory_free(got);
    exec_close(&exec);
    device_close(&device);
    scope_close(&scope);
}

static void check(DType act, int64_t tokens, int64_t columns, int64_t group, int bits, int symmetric, int broken) {
    check_fixed(act, tokens, columns, group, bits, symmetric, broken, 0.0f, 0);
    check_fixed(act, tokens, columns, group, bits, symmetric, broken, 0.0f, 5);
}

static void quantizes_rows(void **state) {
    (void)state;
    for (int kind = 0; kind < 8; kind++) {
        DType act = kind & 1 ? DTYPE_BF16 : DTYPE_F32;
        int symmetric = kind >> 1 & 1, broken = kind >> 2;
        check(act, 1, 1, 1, 8, symmetric, broken);
        check(act, 3, 7, 7, 4, symmetric, broken);
        check(act, 5, 96, 32, 8, symmetric, broken);
        check(act, 9, 264, 8, 2, symmetric, broken);
        check(act, 4, 255, 5, 3, symmetric, broken);
        check(act, 2, 2056, 2056, 8, symmetric, broken);
        check(act, 2, 4096, 128, 6, symmetric, broken);
    }
}

static void takes_a_fixed_scale_or_none(void **state) {
    (void)state;
    for (int kind = 0; kind < 4; kind++) {
        DType act = kind & 1 ? DTYPE_BF16 : DTYPE_F32;
        check_fixed(act, 3, 72, 72, 8, 1, kind >> 1, 0.02f, 0); /* values up to 4: some are cut */
        check_fixed(act, 3, 72, 8, 4, 1, kind >> 1, 0.7f, 24);
        check(act, 3, 77, 7, 0, 1, kind >> 1); /* left out: copies */
    }
}

static void refuses(void **state) {
    (void)state;
    FakeRowsShape uneven = {.rows = 1, .columns = 10, .group = 3, .bits = 8, .symmetric = 1},
                  wide = {.rows = 1, .columns = 8194, .group = 2, .bits = 8, .symmetric = 1},
                  deep = {.rows = 1, .columns = 8, .group = 8, .bits = 9, .symmetric = 1};
    assert_int_equal(cuda_fake_rows_forward(DTYPE_F32, NULL, &uneven, NULL, NULL, NULL, 0), cudaErrorInvalidValue);
    assert_int_equal(cuda_fake_rows_forward(DTYPE_F32, NULL, &wide, NULL, NULL, NULL, 0), cudaErrorInvalidValue);
    assert_int_equal(cuda_fake_rows_forward(DTYPE_F32, NULL, &deep, NULL, NULL, NULL, 0), cudaErrorInvalidValue);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(quantizes_rows), cmocka_unit_test(takes_a_fixed_scale_or_none),
                                       cmocka_unit_test(refuses)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
