/* Every weight format to F32 and BF16 on the device: the bits of the CPU reference. */
#include "tests/cuda_emu/device.h"

typedef struct Case {
    WeightFormat format;
    int64_t rows, cols;
    int32_t block;
    int nested;
} Case;

/* Elements [first, first + count), at an output that starts `shift` elements off an aligned address. */
static void check(const Case *c, DType type, int64_t first, int64_t count, int64_t shift) {
    Scope scope = {0};
    Device device = {0};
    Backend reference;
    cpu_backend_reference(&reference);
    WeightView weight = scope_weight(&scope, c->format, c->rows, c->cols, c->block, c->nested);
    WeightView there = device_weight(&device, &weight);
    void *want = scope_nan(&scope, type, count), *got = scope_nan(&scope, type, count);
    reference.dequantize(&weight, first, count, want, type);
    char *out = device_nan(&device, type, count + shift);
    assert_cuda(cuda_dequantize(&there, first, count, out + (size_t)shift * dtype_size(type), type, 0));
    device_read(got, out + (size_t)shift * dtype_size(type), (size_t)count * dtype_size(type));
    assert_memory_equal(got, want, (size_t)count * dtype_size(type));
    device_close(&device);
    scope_close(&scope);
}

static void dequantizes(void **state) {
    (void)state;
    static const Case cases[] = {{WEIGHT_NF4, 1, 1, 64, 0},    {WEIGHT_NF4, 3, 21, 64, 0},    {WEIGHT_NF4, 64, 129, 64, 1},
                                 {WEIGHT_NF4, 37, 512, 64, 1}, {WEIGHT_NF4, 8, 1031, 32, 0},  {WEIGHT_NF4, 4, 4096, 4096, 1},
                                 {WEIGHT_FP4, 16, 257, 64, 0}, {WEIGHT_FP4, 16, 256, 128, 1}, {WEIGHT_INT8, 5, 7, 0, 0},
                                 {WEIGHT_INT8, 33, 264, 0, 0}, {WEIGHT_INT4, 9, 96, 32, 0},   {WEIGHT_INT4, 17, 256, 128, 0},
                                 {WEIGHT_BF16, 5, 77, 0, 0},   {WEIGHT_BF16, 32, 64, 0, 0},   {WEIGHT_F32, 3, 11, 0, 0},
                                 {WEIGHT_F32, 32, 72, 0, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const Case *c = &cases[i];
        int64_t count = c->rows * c->cols;
        for (int t = 0; t < 2; t++) {
            DType type = t ? DTYPE_BF16 : DTYPE_F32;
            check(c, type, 0, count, 0);
            check(c, type, count / 2, count - count / 2, 0);
            check(c, type, count / 3, 1, 0);
            check(c, type, 0, count, 1);
        }
    }
}

/* Around the number of weights that a block of threads takes (8192), and a prime. */
static void dequantizes_around_a_tile(void **state) {
    (void)state;
    static const int64_t counts[] = {8191, 8192, 8193, 16381, 2048, 2047, 8, 9, 7};
    Case c = {WEIGHT_NF4, 8, 2048, 64, 1};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        check(&c, DTYPE_BF16, 0, counts[i], 0);
    check(&c, DTYPE_BF16, 64, 8192, 0);
    check(&c, DTYPE_BF16, 3, 8192, 0);
    check(&(Case){WEIGHT_NF4, 128, 896, 64, 1}, DTYPE_BF16, 0, 128 * 896, 0);   /* k of Qwen2.5 0.5B */
    check(&(Case){WEIGHT_NF4, 32, 14336, 64, 1}, DTYPE_BF16, 0, 32 * 14336, 0); /* rows of Llama-3 8B's down */
}

static void refuses(void **state) {
    (void)state;
    WeightView weight = {.format = WEIGHT_F64, .rows = 1, .cols = 1};
    char out[8];
    assert_int_equal(cuda_dequantize(&weight, 0, 1, out, DTYPE_F32, 0), cudaErrorInvalidValue);
    weight.format = WEIGHT_F32;
    assert_int_equal(cuda_dequantize(&weight, 0, 1, out, DTYPE_F16, 0), cudaErrorInvalidValue);
    assert_int_equal(cuda_dequantize(&weight, -1, 1, out, DTYPE_F32, 0), cudaErrorInvalidValue);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(dequantizes), cmocka_unit_test(dequantizes_around_a_tile),
                                       cmocka_unit_test(refuses)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
