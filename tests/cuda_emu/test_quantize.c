/* NF4, FP4 (with double quantization), INT8 and INT4 on the device: the bytes of the CPU's quantizer. */
#include "quant/quantize.h"

#include "core/pool.h"
#include "quant/double_quant.h"
#include "tests/cuda_emu/device.h"

typedef struct Case {
    WeightFormat format;
    int64_t rows, cols;
    int32_t block;
    int nested;
} Case;

/* Values of a checkpoint's type; a few blocks of zeros and some tiny values among them. */
static void *source(Scope *scope, DType type, int64_t count) {
    float *values = scope_random(scope, DTYPE_F32, count, 0.2);
    for (int64_t i = 0; i < count; i++) {
        if (i % 640 >= 576) values[i] = 0.0f;
        if (i % 97 == 0) values[i] *= 0x1p-12f;
        if (i % 1024 > 960) values[i] *= 0x1p-125f;
    }
    void *out = scope_nan(scope, type, count);
    dtype_convert(out, type, values, DTYPE_F32, count);
    return out;
}

static void same(const char *what, const void *want, const void *from, size_t bytes) {
    uint8_t *got = memory_alloc(bytes > 0 ? bytes : 1);
    device_read(got, from, bytes);
    if (memcmp(got, want, bytes) != 0) fail_msg("%s differ", what);
    memory_free(got);
}

static void check(const Case *c, DType type) {
    Scope scope = {0};
    Device device = {0};
    Backend reference;
    Error err = {0};
    cpu_backend_reference(&reference);
    QuantSpec spec = {.format = c->format, .double_quant = c->nested, .block_size = c->block};
    int64_t count = c->rows * c->cols;
    const void *x = source(&scope, type, count);
    QuantizedTensor tensor;
    Arena arena = {0};
    Quantizer *quantizer;
    assert_ok(arena_create(&arena, "tensor", 1 << 22, &err), &err);
    assert_ok(quantized_take(&tensor, &spec, c->rows, c->cols, &arena, &err), &err);
    assert_ok(quantizer_create(&quantizer, &reference, NULL, quant_nested_constants(&spec, c->rows, c->cols), &err), &err);
    assert_ok(quantize_tensor(quantizer, x, type, &tensor, &err), &err);

    uint64_t all_finite = CUDA_ALL_FINITE;
    void *there = device_in_values(&device, type, x, count);
    uint64_t *bad = device_out(&device, &all_finite, sizeof all_finite);
    uint8_t *codes = device_out(&device, NULL, tensor.code_bytes);
    float *scales = device_nan(&device, DTYPE_F32, tensor.blocks);
    if (c->format == WEIGHT_INT8) {
        assert_cuda(cuda_quantize_int8(there, type, c->rows, c->cols, (int8_t *)codes, scales, 0, bad, 0));
    } else if (c->format == WEIGHT_INT4) {
        assert_cuda(cuda_quantize_int4(there, type, count, c->block, codes, scales, 0, bad, 0));
    } else {
        assert_cuda(cuda_quantize_4bit(c->format, there, type, count, c->block, codes, scales, 0, bad, 0));
    }
    same("codes", tensor.codes, codes, tensor.code_bytes);
    same("reports of values that are not finite", &all_finite, bad, sizeof all_finite);
    if (!c->nested) same("scales", tensor.scales, scales, (size_t)tensor.blocks * sizeof(float));
    if (c->nested) {
        float *map = device_in_values(&device, DTYPE_F32, tensor.nested_map, 256);
        float *offset = device_nan(&device, DTYPE_F32, 1);
        uint8_t *nested_codes = device_out(&device, NULL, (size_t)tensor.blocks);
        float *nested_absmax = device_nan(&device, DTYPE_F32, tensor.nested_blocks);
        assert_cuda(cuda_double_quant_offset(scales, tensor.blocks, offset, 0));
        assert_cuda(cuda_double_quantize(scales, tensor.blocks, offset, map, nested_codes, nested_absmax, 0));
        same("offsets", &tensor.nested_offset, offset, sizeof(float));
        same("nested codes", tensor.nested_codes, nested_codes, (size_t)tensor.blocks);
        same("nested constants", tensor.nested_absmax, nested_absmax, (size_t)tensor.nested_blocks * sizeof(float));
    }
    quantizer_free(quantizer);
    arena_free(&arena);
    device_close(&device);
    scope_close(&scope);
}

static void quantizes(void **state) {
    (void)state;
    static const Case cases[] = {{WEIGHT_NF4, 1, 1, 64, 0},    {WEIGHT_NF4, 1, 63, 64, 1},     {WEIGHT_NF4, 1, 64, 64, 1},
                                 {WEIGHT_NF4, 5, 13, 64, 1},   {WEIGHT_NF4, 128, 128, 64, 1},  {WEIGHT_NF4, 127, 131, 64, 1},
                                 {WEIGHT_NF4, 3, 1367, 32, 0}, {WEIGHT_NF4, 2, 4096, 4096, 0}, {WEIGHT_NF4, 200, 256, 64, 1},
                                 {WEIGHT_FP4, 33, 65, 64, 1},  {WEIGHT_FP4, 64, 64, 128, 0},   {WEIGHT_INT8, 1, 1, 0, 0},
                                 {WEIGHT_INT8, 7, 257, 0, 0},  {WEIGHT_INT8, 3, 2048, 0, 0},   {WEIGHT_INT4, 1, 32, 32, 0},
                                 {WEIGHT_INT4, 9, 192, 64, 0}, {WEIGHT_INT4, 3, 1152, 128, 0}};
    static const DType types[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int t = 0; t < 3; t++)
            check(&cases[i], types[t]);
    }
}

/* More than the constants that the offset's kernel stages at a time; BF16 values, whose sum is exact in any order, and values so
 * different that it is not. */
static void sums_many_constants(void **state) {
    (void)state;
    static const int64_t counts[] = {0, 1, 511, 513, 2047, 2048, 2049, 6007};
    for (size_t i = 0; i < 2 * sizeof counts / sizeof *counts; i++) {
        Scope scope = {0};
        Device device = {0};
        int64_t count = counts[i / 2];
        float *absmax = scope_random(&scope, DTYPE_F32, count + 1, 0.5);
        for (int64_t b = 0; b < count; b++) {
            absmax[b] = fabsf(absmax[b]);
            if (i % 2) absmax[b] = absmax[b] * (b % 7 == 0 ? 0x1p-30f : 1.0f) + 0x1p-40f;
            if (b % 100 == 50) absmax[b] = 0.0f;
        }
        float want = double_quant_offset(absmax, count);
        float *offset = device_nan(&device, DTYPE_F32, 1);
        assert_cuda(cuda_double_quant_offset(device_in_values(&device, DTYPE_F32, absmax, count), count, offset, 0));
        same("offsets", &want, offset, sizeof want);
        device_close(&device);
        scope_close(&scope);
    }
}

static void reports_what_is_not_finite(void **state) {
    (void)state;
    enum { COUNT = 4096 };
    static const int64_t places[] = {0, 63, 64, 1111, COUNT - 1};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        Scope scope = {0};
        Device device = {0};
        float *x = scope_random(&scope, DTYPE_F32, COUNT, 1.0);
        x[places[i]] = i % 2 ? NAN : -INFINITY;
        if (places[i] + 70 < COUNT) x[places[i] + 70] = NAN;
        const float *there = device_in_values(&device, DTYPE_F32, x, COUNT);
        uint8_t *codes = device_out(&device, NULL, COUNT);
        float *scales = device_nan(&device, DTYPE_F32, COUNT / 32);
        for (int kind = 0; kind < 3; kind++) {
            uint64_t start = CUDA_ALL_FINITE, want = 1000u + (uint64_t)places[i];
            uint64_t *bad = device_out(&device, &start, sizeof start);
            if (kind == 0)
                assert_cuda(cuda_quantize_4bit(WEIGHT_NF4, there, DTYPE_F32, COUNT, 64, codes, scales, 1000, bad, 0));
            if (kind == 1) assert_cuda(cuda_quantize_int8(there, DTYPE_F32, 8, 512, (int8_t *)codes, scales, 1000, bad, 0));
            if (kind == 2) assert_cuda(cuda_quantize_int4(there, DTYPE_F32, COUNT, 32, codes, scales, 1000, bad, 0));
            same("places", &want, bad, sizeof want);
        }
        device_close(&device);
        scope_close(&scope);
    }
}

static void refuses(void **state) {
    (void)state;
    assert_int_equal(cuda_quantize_4bit(WEIGHT_INT8, NULL, DTYPE_F32, 64, 64, NULL, NULL, 0, NULL, 0), cudaErrorInvalidValue);
    assert_int_equal(cuda_quantize_4bit(WEIGHT_NF4, NULL, DTYPE_F32, 64, 48, NULL, NULL, 0, NULL, 0), cudaErrorInvalidValue);
    assert_int_equal(cuda_quantize_4bit(WEIGHT_NF4, NULL, DTYPE_F64, 64, 64, NULL, NULL, 0, NULL, 0), cudaErrorInvalidValue);
    assert_int_equal(cuda_quantize_int4(NULL, DTYPE_F32, 65, 64, NULL, NULL, 0, NULL, 0), cudaErrorInvalidValue);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(quantizes), cmocka_unit_test(sums_many_constants),
                                       cmocka_unit_test(reports_what_is_not_finite), cmocka_unit_test(refuses)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
