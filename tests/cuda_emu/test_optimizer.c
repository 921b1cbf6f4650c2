/* AdamW to the reference's bits; gradient norm, clip factor, the watch for NaN, casts. */
#include "core/memory.h"
#include "tests/cuda_emu/device.h"

static void check_adamw(DType act, int64_t count, int steps, int64_t shift, double clip_device) {
    Scope scope = {0};
    Device device = {0};
    Backend reference;
    cpu_backend_reference(&reference);
    Exec exec = exec_open(act, 1);
    int64_t whole = count + shift;
    float *state[3];
    char *there[3];
    for (int i = 0; i < 3; i++) {
        state[i] = scope_random(&scope, DTYPE_F32, whole, i == 2 ? 0.0 : 0.5);
        there[i] = device_out(&device, state[i], (size_t)whole * sizeof(float));
    }
    void *copy = scope_nan(&scope, act, whole);
    char *dev_copy = device_nan(&device, act, whole);
    double *dev_clip = device_out(&device, &clip_device, sizeof clip_device);
    for (int64_t t = 1; t <= steps; t++) {
        float *grad = scope_random(&scope, DTYPE_F32, whole, 0.01);
        char *dev_grad = device_in_values(&device, DTYPE_F32, grad, whole);
        AdamStep step = {1e-3, 0.9, 0.999, 1e-8, t % 2 ? 0.1 : 0.0, 0.75, t}, with_clip = step;
        with_clip.clip = step.clip * clip_device;
        reference.adamw(&exec, count, state[0] + shift, state[1] + shift, state[2] + shift, grad + shift,
                        (char *)copy + (size_t)shift * dtype_size(act), &with_clip);
        size_t at = (size_t)shift * sizeof(float);
        assert_cuda(cuda_adamw(count, (float *)(there[0] + at), (float *)(there[1] + at), (float *)(there[2] + at),
                               (float *)(dev_grad + at), dev_copy + (size_t)shift * dtype_size(act), act, &step, dev_clip, 0));
    }
    for (int i = 0; i < 3; i++)
        device_compare("state", DTYPE_F32, there[i], state[i], whole, 0, 0.0, "the same operations in double");
    device_compare("copy", act, dev_copy + (size_t)shift * dtype_size(act), (char *)copy + (size_t)shift * dtype_size(act),
                   count, 0, 0.0, "the master, rounded");
    exec_close(&exec);
    device_close(&device);
    scope_close(&scope);
}

static void updates(void **state) {
    (void)state;
    static const int64_t counts[] = {1, 3, 4, 1023, 1024, 1025, 5003};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        check_adamw(DTYPE_BF16, counts[i], 3, 0, 1.0);
        check_adamw(DTYPE_F32, counts[i], 2, 0, 0.5);
    }
    check_adamw(DTYPE_BF16, 1000, 2, 1, 1.0);
}

/* A gradient with NaN changes nothing. */
static void skips(void **state) {
    (void)state;
    Scope scope = {0};
    Device device = {0};
    enum { COUNT = 2050 };
    const float *values = scope_random(&scope, DTYPE_F32, COUNT, 1.0);
    float *grad = scope_random(&scope, DTYPE_F32, COUNT, 1.0);
    grad[77] = NAN;
    float *there[3];
    for (int i = 0; i < 3; i++)
        there[i] = device_out(&device, values, COUNT * sizeof(float));
    const float *dev_grad = device_in_values(&device, DTYPE_F32, grad, COUNT);
    double *partials = device_nan(&device, DTYPE_F64, cuda_sum_squares_partials(COUNT));
    double *sum = device_nan(&device, DTYPE_F64, 1), *clip = device_nan(&device, DTYPE_F64, 1);
    bf16 *copy = device_nan(&device, DTYPE_BF16, COUNT);
    AdamStep step = {1e-3, 0.9, 0.999, 1e-8, 0.1, 1.0, 1};
    assert_cuda(cuda_sum_squares(COUNT, dev_grad, partials, sum, 0));
    assert_cuda(cuda_clip_factor(sum, 1.0, clip, 0));
    assert_cuda(cuda_adamw(COUNT, there[0], there[1], there[2], dev_grad, copy, DTYPE_BF16, &step, clip, 0));
    for (int i = 0; i < 3; i++)
        device_compare("state", DTYPE_F32, there[i], values, COUNT, 0, 0.0, "not written");
    uint64_t start = CUDA_ALL_FINITE, place;
    uint64_t *first = device_out(&device, &start, sizeof start);
    assert_cuda(cuda_find_nonfinite(DTYPE_F32, COUNT, dev_grad, first, 0));
    device_read(&place, first, sizeof place);
    assert_int_equal(place, 77);
    device_close(&device);
    scope_close(&scope);
}

static void measures(void **state) {
    (void)state;
    static const int64_t counts[] = {0, 1, 255, 257, 32767, 32768, 32769, 100003};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        Scope scope = {0};
        Device device = {0};
        int64_t count = counts[i], parts = cuda_sum_squares_partials(count);
        const float *x = scope_random(&scope, DTYPE_F32, count + 1, 2.0);
        double want = 0.0, got, clip, *partials = device_nan(&device, DTYPE_F64, parts);
        for (int64_t e = 0; e < count; e++)
            want += (double)x[e] * (double)x[e];
        double *sum = device_nan(&device, DTYPE_F64, 1), *factor = device_nan(&device, DTYPE_F64, 1);
        assert_cuda(cuda_sum_squares(count, device_in_values(&device, DTYPE_F32, x, count), partials, sum, 0));
        device_read(&got, sum, sizeof got);
        assert_close("sum of squares", DTYPE_F64, &got, &want, 1, 1e-13, "sums in double");
        const double limits[] = {0.0, 0.5, 1e9};
        for (int l = 0; l < 3; l++) {
            double norm = sqrt(want), expected = limits[l] > 0.0 && limits[l] < norm + 1e-6 ? limits[l] / (norm + 1e-6) : 1.0;
            assert_cuda(cuda_clip_factor(sum, limits[l], factor, 0));
            device_read(&clip, factor, sizeof clip);
            assert_close("clip", DTYPE_F64, &clip, &expected, 1, 1e-12, "one square root and one quotient in double");
        }
        device_close(&device);
        scope_close(&scope);
    }
}

static void watches(void **state) {
    (void)state;
    static const int64_t counts[] = {1, 8, 17, 2048, 4999};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        for (int t = 0; t < 2; t++) {
            Scope scope = {0};
            Device device = {0};
            DType type = t ? DTYPE_BF16 : DTYPE_F32;
            int64_t count = counts[i];
            uint64_t start = CUDA_ALL_FINITE, place;
            uint64_t *first = device_out(&device, &start, sizeof start);
            void *x = scope_random(&scope, type, count, 2.0);
            assert_cuda(cuda_find_nonfinite(type, count, device_in_values(&device, type, x, count), first, 0));
            device_read(&place, first, sizeof place);
            assert_true(place == CUDA_ALL_FINITE);
            float wrong = t ? INFINITY : NAN;
            dtype_convert((char *)x + (size_t)(count - 1) * dtype_size(type), type, &wrong, DTYPE_F32, 1);
            dtype_convert((char *)x + (size_t)(count / 2) * dtype_size(type), type, &wrong, DTYPE_F32, 1);
            assert_cuda(cuda_find_nonfinite(type, count, device_in_values(&device, type, x, count), first, 0));
            device_read(&place, first, sizeof place);
            assert_int_equal(place, count / 2);
            device_close(&device);
            scope_close(&scope);
        }
    }
}

static void casts(void **state) {
    (void)state;
    static const int64_t counts[] = {1, 7, 8, 2047, 2048, 2049, 4999};
    static const DType types[] = {DTYPE_F32, DTYPE_BF16};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        for (int pair = 0; pair < 4; pair++) {
            Scope scope = {0};
            Device device = {0};
            DType from = types[pair / 2], to = types[pair % 2];
            float *exact = scope_random(&scope, DTYPE_F32, counts[i], 3.0);
            for (int64_t e = 0; e < counts[i]; e++)
                exact[e] *= 1.0f + (float)e * 0x1p-20f;
            void *values = scope_nan(&scope, from, counts[i]), *want = scope_nan(&scope, to, counts[i]);
            dtype_convert(values, from, exact, DTYPE_F32, counts[i]);
            dtype_convert(want, to, values, from, counts[i]);
            void *there = device_nan(&device, to, counts[i] + 5);
            assert_cuda(cuda_cast(counts[i], device_in_values(&device, from, values, counts[i]), from, there, to, 0));
            device_compare("cast", to, there, want, counts[i], 5, 0.0, "rounded to nearest, ties to even");
            device_close(&device);
            scope_close(&scope);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(updates), cmocka_unit_test(skips), cmocka_unit_test(measures),
                                       cmocka_unit_test(watches), cmocka_unit_test(casts)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
