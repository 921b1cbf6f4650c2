/* Every weight format to F32 and BF16 on the device: the bits of the CPU reference. */
#include "tests/cuda_emu/device.h"

typedef struct Case {
    WeightFormat format;
    int64_t rows, cols;
    int32_t block;
    int nested;
} Case;

/* Elements [first, first + count), at an output that starts `shift` elements off an aligned address. */
static void check_weight(Scope *scope, const WeightView *weight, DType type, int64_t first, int64_t count, int64_t shift) {
    Device device = {0};
    Backend reference;
    cpu_backend_reference(&reference);
    WeightView there = device_weight(&device, weight);
    void *want = scope_nan(scope, type, count), *got = scope_nan(scope, type, count);
    reference.dequantize(weight, first, count, want, type);
    char *out = device_nan(&device, type, count + shift);
    assert_cuda(cuda_dequantize(&there, first, count, out + (size_t)shift * dtype_size(type), type, 0));
    device_read(got, out + (size_t)shift * dtype_size(type), (size_t)count * dtype_size(type));
    assert_memory_equal(got, want, (size_t)count * dtype_size(type));
    device_close(&device);
}

static void check(const Case *c, DType type, int64_t first, int64_t count, int64_t shift) {
    Scope scope = {0};
    WeightView weight = scope_weight(&scope, c->format, c->rows, c->cols, c->block, c->nested);
    check_weight(&scope, &weight, type, first, count, shift);
    scope_close(&scope);
}

/* All of it, the second half, one element, and at an odd address; both types. */
static void check_parts(Scope *scope, const WeightView *weight) {
    int64_t count = weight->rows * weight->cols;
    for (int t = 0; t < 2; t++) {
        DType type = t ? DTYPE_BF16 : DTYPE_F32;
        check_weight(scope, weight, type, 0, count, 0);
        check_weight(scope, weight, type, count / 2, count - count / 2, 0);
        check_weight(scope, weight, type, count / 3, 1, 0);
        check_weight(scope, weight, type, 0, count, 1);
    }
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
        Scope scope = {0};
        WeightView weight = scope_weight(&scope, c->format, c->rows, c->cols, c->block, c->nested);
        check_parts(&scope, &weight);
        scope_close(&scope);
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

/* ---- integers of 2 to 8 bits in groups ---- */

typedef struct Grouped {
    int bits;
    int64_t rows, cols, group;
    DType scale_type;
    int zeros, ordered;
} Grouped;

static uint8_t *random_bytes(Scope *scope, int64_t count) {
    uint8_t *bytes = scope_bytes(scope, (size_t)count);
    for (int64_t i = 0; i < count; i++)
        bytes[i] = (uint8_t)scope_draw(scope, 256);
    return bytes;
}

static void check_grouped(const Grouped *c) {
    Scope scope = {0};
    int64_t groups = c->cols / c->group;
    float *scales = scope_random(&scope, DTYPE_F32, c->rows * groups, 3e-5), *exact = scales;
    for (int64_t i = 0; i < c->rows * groups; i++)
        exact[i] = c->scale_type == DTYPE_BF16 ? bf16_round(scales[i])
                   : c->scale_type == DTYPE_F16
                       ? f16_to_float(f16_from_float(scales[i])) /* products among the subnormal, too */
                       : scales[i];
    WeightView weight = {.format = WEIGHT_GROUPED,
                         .rows = c->rows,
                         .cols = c->cols,
                         .block_size = (int32_t)c->group,
                         .bits = c->bits,
                         .scale_type = c->scale_type,
                         .scales = exact,
                         .data = random_bytes(&scope, c->rows * grouped_row_bytes(c->cols, c->bits))};
    uint8_t *zeros = random_bytes(&scope, c->rows * groups);
    int32_t *index = scope_bytes(&scope, (size_t)c->cols * sizeof *index);
    for (int64_t i = 0; i < c->rows * groups; i++)
        zeros[i] &= (uint8_t)((1 << c->bits) - 1);
    for (int64_t i = 0; i < c->cols; i++)
        index[i] = scope_draw(&scope, (int32_t)groups);
    if (c->zeros) weight.zeros = zeros;
    if (c->ordered) weight.group_index = index;
    check_parts(&scope, &weight);
    scope_close(&scope);
}

static void dequantizes_groups(void **state) {
    (void)state;
    static const Grouped cases[] = {
        {4, 5, 96, 32, DTYPE_F16, 0, 0},   {4, 33, 256, 128, DTYPE_BF16, 1, 0}, {4, 7, 128, 128, DTYPE_F16, 1, 1},
        {2, 3, 64, 32, DTYPE_F32, 1, 0},   {3, 9, 96, 32, DTYPE_F16, 1, 0},     {3, 4, 40, 40, DTYPE_F32, 0, 0},
        {5, 3, 72, 24, DTYPE_BF16, 0, 0},  {6, 3, 64, 64, DTYPE_F16, 1, 1},     {7, 2, 56, 8, DTYPE_F32, 1, 0},
        {8, 6, 120, 120, DTYPE_F16, 0, 0}, {8, 3, 37, 37, DTYPE_F32, 1, 0},     {3, 5, 21, 7, DTYPE_BF16, 1, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_grouped(&cases[i]);
}

/* ---- ggml's blocks ---- */

/* Every type, with any codes and 6-bit scales, and finite halves of either sign, the subnormal among them. */
static void check_ggml(uint32_t type, int64_t rows, int64_t cols, int first_half, int second_half) {
    Scope scope = {0};
    int bytes;
    int64_t blocks = rows * cols / ggml_block_form(type, &bytes);
    uint8_t *data = random_bytes(&scope, blocks * bytes);
    const int at[2] = {first_half, second_half};
    for (int64_t b = 0; b < blocks; b++)
        for (int h = 0; h < 2; h++) {
            uint16_t bits = (uint16_t)(scope_draw(&scope, 2) << 15 | scope_draw(&scope, 0x7c00));
            if (at[h] >= 0) memcpy(data + b * bytes + at[h], &bits, sizeof bits);
        }
    WeightView weight = {.format = WEIGHT_GGML, .rows = rows, .cols = cols, .data = data, .ggml_type = type};
    check_parts(&scope, &weight);
    scope_close(&scope);
}

static void dequantizes_blocks(void **state) {
    (void)state;
    for (int64_t rows = 1; rows <= 9; rows += 4) {
        check_ggml(GGML_Q4_0, rows, 96, 0, -1);
        check_ggml(GGML_Q4_1, rows, 64, 0, 2);
        check_ggml(GGML_Q5_0, rows, 32, 0, -1);
        check_ggml(GGML_Q5_1, rows, 160, 0, 2);
        check_ggml(GGML_Q8_0, rows, 96, 0, -1);
        check_ggml(GGML_Q2_K, rows, 256, 80, 82);
        check_ggml(GGML_Q3_K, rows, 512, 108, -1);
        check_ggml(GGML_Q4_K, rows, 256, 0, 2);
        check_ggml(GGML_Q5_K, rows, 768, 0, 2);
        check_ggml(GGML_Q6_K, rows, 512, 208, -1);
        check_ggml(GGML_F16, rows, 51, 0, -1);
        check_ggml(GGML_F16, rows, 64, 0, -1);
    }
}

static void refuses(void **state) {
    (void)state;
    WeightView weight = {.format = WEIGHT_F64, .rows = 1, .cols = 1};
    char out[8];
    assert_int_equal(cuda_dequantize(&weight, 0, 1, out, DTYPE_F32, 0), cudaErrorInvalidValue);
    weight.format = WEIGHT_GGML;
    weight.ggml_type = GGML_I32;
    assert_int_equal(cuda_dequantize(&weight, 0, 1, out, DTYPE_F32, 0), cudaErrorInvalidValue);
    weight.format = WEIGHT_F32;
    assert_int_equal(cuda_dequantize(&weight, 0, 1, out, DTYPE_F16, 0), cudaErrorInvalidValue);
    assert_int_equal(cuda_dequantize(&weight, -1, 1, out, DTYPE_F32, 0), cudaErrorInvalidValue);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(dequantizes), cmocka_unit_test(dequantizes_around_a_tile),
                                       cmocka_unit_test(dequantizes_groups), cmocka_unit_test(dequantizes_blocks),
                                       cmocka_unit_test(refuses)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
