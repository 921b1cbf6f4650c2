/* Whole tensors: every format, every way of slicing, every source type. */
#include "tests/unit/test_core.h"

#include "core/memory.h"
#include "core/philox.h"
#include "quant/double_quant.h"
#include "quant/quantize.h"
#include "tests/support/compare.h"

typedef struct Made {
    Arena arena;
    QuantizedTensor tensor;
} Made;

static Backend backend;

static int open_backend(void **state) {
    (void)state;
    Error err = {0};
    return cpu_backend(&backend, NULL, &err) == OK ? 0 : -1;
}

static float *random_weight(int64_t rows, int64_t cols, float scale) {
    float *x = memory_alloc((size_t)(rows * cols) * sizeof(float));
    for (int64_t i = 0; i < rows * cols; i++)
        x[i] = bf16_round((random_uniform(7, RANDOM_TEST, 0, (uint64_t)i) - 0.5f) * scale);
    return x;
}

static void take(Made *made, const QuantSpec *spec, int64_t rows, int64_t cols) {
    Error err = {0};
    Arena count;
    arena_count(&count, "count");
    assert_ok(quantized_take(&made->tensor, spec, rows, cols, &count, &err), &err);
    assert_ok(arena_create(&made->arena, "tensor", count.used, &err), &err);
    assert_ok(quantized_take(&made->tensor, spec, rows, cols, &made->arena, &err), &err);
    assert_int_equal(made->arena.used, count.used);
    memset(made->arena.base, 0xA5, made->arena.used);
}

/* Quantizes x given as slices of `slice` rows of this type by this many threads. */
static void make(Made *made, const QuantSpec *spec, const float *x, int64_t rows, int64_t cols, DType type, int64_t slice,
                 int threads) {
    Error err = {0};
    Pool *pool;
    Quantizer *quantizer;
    take(made, spec, rows, cols);
    assert_ok(pool_create(&pool, threads, &err), &err);
    assert_ok(quantizer_create(&quantizer, &backend, pool, quant_nested_constants(spec, rows, cols), &err), &err);
    uint8_t *source = memory_alloc((size_t)(rows * cols) * dtype_size(type));
    dtype_convert(source, type, x, DTYPE_F32, rows * cols);
    assert_ok(quantizer_begin(quantizer, &made->tensor, &err), &err);
    for (int64_t row = 0; row < rows; row += slice) {
        int64_t count = rows - row < slice ? rows - row : slice;
        assert_ok(quantizer_rows(quantizer, source + (size_t)(row * cols) * dtype_size(type), type, count, &err), &err);
    }
    assert_ok(quantizer_finish(quantizer, &err), &err);
    memory_free(source);
    quantizer_free(quantizer);
    pool_free(pool);
}

static const QuantSpec specs[] = {
    {.format = WEIGHT_NF4, .block_size = 64},
    {.format = WEIGHT_NF4, .double_quant = 1, .block_size = 64},
    {.format = WEIGHT_FP4, .block_size = 32},
    {.format = WEIGHT_FP4, .double_quant = 1, .block_size = 4096},
    {.format = WEIGHT_INT8},
    {.format = WEIGHT_INT4, .block_size = 32},
    {.format = WEIGHT_GROUPED, .block_size = 32, .bits = 4, .zeros = 1, .scale_type = DTYPE_F16},
    {.format = WEIGHT_GROUPED, .bits = 3, .scale_type = DTYPE_BF16},
};

static void test_slices_and_threads_change_nothing(void **state) {
    (void)state;
    static const int64_t shapes[][2] = {{1, 32}, {3, 96}, {7, 160}, {65, 608}, {2, 40992}};
    for (size_t s = 0; s < sizeof specs / sizeof *specs; s++)
        for (size_t k = 0; k < sizeof shapes / sizeof *shapes; k++) {
            int64_t rows = shapes[k][0], cols = shapes[k][1];
            float *x = random_weight(rows, cols, 0.1f);
            Made whole, sliced;
            make(&whole, &specs[s], x, rows, cols, DTYPE_F32, rows, 1);
            for (int64_t slice = 1; slice <= rows; slice = slice * 2 + 1) {
                make(&sliced, &specs[s], x, rows, cols, slice % 4 == 3 ? DTYPE_F32 : DTYPE_BF16, slice, 3);
                assert_int_equal(sliced.arena.used, whole.arena.used);
                assert_memory_equal(sliced.arena.base, whole.arena.base, whole.arena.used);
                assert_true(sliced.tensor.nested_offset == whole.tensor.nested_offset);
                arena_free(&sliced.arena);
            }
            arena_free(&whole.arena);
            memory_free(x);
        }
}

/* Rounding while streaming gives the codes and constants of group_int_quantize_row; storing what was decided elsewhere gives
 * the same bytes, and both decode to the values of the grid. */
static void test_grouped_definition(void **state) {
    (void)state;
    static const GroupInt grids[] = {{.bits = 4, .symmetric = 1, .group = 32, .scale_type = DTYPE_F16},
                                     {.bits = 3, .group = 64, .scale_type = DTYPE_BF16},
                                     {.bits = 2, .group = 8, .scale_type = DTYPE_F32},
                                     {.bits = 8, .symmetric = 1, .scale_type = DTYPE_BF16},
                                     {.bits = 5, .scale_type = DTYPE_F16}};
    for (size_t g = 0; g < sizeof grids / sizeof *grids; g++)
        for (int wide = 0; wide < 2; wide++) {
            int64_t rows = 3, cols = wide ? 40960 : 192;
            float *x = random_weight(rows, cols, 0.1f), *got = memory_alloc((size_t)cols * sizeof *got),
                  *want = memory_alloc((size_t)cols * sizeof *want);
            QuantSpec spec = quant_spec_grouped(&grids[g]);
            GroupIntTensor plain;
            Made made, stored;
            Error err = {0};
            make(&made, &spec, x, rows, cols, DTYPE_BF16, 2, 2);
            take(&stored, &spec, rows, cols);
            assert_ok(group_int_alloc(&plain, &grids[g], rows, cols, &err), &err);
            for (int64_t r = 0; r < rows; r++)
                assert_int_equal(group_int_quantize_row(&plain, r, x + r * cols), 0);
            assert_ok(quantized_store(&stored.tensor, &plain, &err), &err);
            assert_memory_equal(stored.arena.base, made.arena.base, made.arena.used);
            WeightView view = quantized_view(&made.tensor);
            for (int64_t r = 0; r < rows; r++) {
                backend.dequantize(&view, r * cols, cols, got, DTYPE_F32);
                group_int_dequantize_row(&plain, r, want);
                assert_memory_equal(got, want, (size_t)cols * sizeof *want);
            }
            plain.grid.bits++;
            assert_refused(quantized_store(&stored.tensor, &plain, &err), &err, "do not have the grid");
            plain.grid.bits--;
            group_int_free(&plain);
            arena_free(&made.arena);
            arena_free(&stored.arena);
            memory_free(x);
            memory_free(got);
            memory_free(want);
        }
}

/* Columns in any order: a tensor that a quantizer made so. */
static void test_grouped_order_is_stored(void **state) {
    (void)state;
    GroupInt grid = {.bits = 4, .group = 32, .scale_type = DTYPE_F16};
    GroupIntTensor plain;
    Error err = {0};
    float *x = random_weight(2, 96, 0.1f), got[96], want[96];
    assert_ok(group_int_alloc(&plain, &grid, 2, 96, &err), &err);
    for (int64_t r = 0; r < 2; r++)
        assert_int_equal(group_int_quantize_row(&plain, r, x + r * 96), 0);
    plain.g_idx = memory_alloc(96 * sizeof *plain.g_idx);
    for (int c = 0; c < 96; c++)
        plain.g_idx[c] = c * 7 % 3;
    QuantSpec spec = quant_spec_grouped(&grid);
    spec.ordered = 1;
    Made made;
    Quantizer *quantizer;
    take(&made, &spec, 2, 96);
    assert_ok(quantized_store(&made.tensor, &plain, &err), &err);
    WeightView view = quantized_view(&made.tensor);
    for (int64_t r = 0; r < 2; r++) {
        backend.dequantize(&view, r * 96, 96, got, DTYPE_F32);
        group_int_dequantize_row(&plain, r, want);
        assert_memory_equal(got, want, sizeof want);
    }
    assert_ok(quantizer_create(&quantizer, &backend, NULL, 0, &err), &err);
    assert_refused(quantizer_begin(quantizer, &made.tensor, &err), &err, "another order");
    quantizer_free(quantizer);
    arena_free(&made.arena);
    group_int_free(&plain);
    memory_free(x);
}

/* Widths that no block size divides: blocks cross rows and slices. */
static void test_any_width(void **state) {
    (void)state;
    static const int64_t widths[] = {1, 31, 43, 63, 65, 172, 4097};
    for (size_t w = 0; w < sizeof widths / sizeof *widths; w++) {
        int64_t rows = 9, cols = widths[w], n = rows * cols;
        float *x = random_weight(rows, cols, 2.0f);
        uint8_t *codes = memory_alloc((size_t)(n + 1) / 2);
        float *absmax = memory_alloc((size_t)(n / 64 + 1) * sizeof(float));
        assert_int_equal(backend.quantize_4bit(WEIGHT_NF4, x, n, 64, codes, absmax), -1);
        for (int64_t slice = 1; slice <= rows; slice += 4) {
            Made made;
            make(&made, &specs[0], x, rows, cols, DTYPE_BF16, slice, 2);
            assert_memory_equal(made.tensor.codes, codes, (size_t)(n + 1) / 2);
            assert_memory_equal(made.tensor.scales, absmax, (size_t)made.tensor.blocks * sizeof(float));
            arena_free(&made.arena);
        }
        memory_free(codes);
        memory_free(absmax);
        memory_free(x);
    }
}

static float *decode(const Made *made) {
    WeightView view = quantized_view(&made->tensor);
    float *out = memory_alloc((size_t)(view.rows * view.cols) * sizeof(float));
    backend.dequantize(&view, 0, view.rows * view.cols, out, DTYPE_F32);
    return out;
}

static void test_int8_definition(void **state) {
    (void)state;
    int64_t rows = 5, cols = 20000;
    float *x = random_weight(rows, cols, 3.0f);
    memset(x + cols, 0, (size_t)cols * sizeof(float)); /* a zero row */
    for (int64_t i = 0; i < cols; i++)
        x[2 * cols + i] *= 1e-39f; /* a row below what a reciprocal can scale */
    Made made;
    make(&made, &specs[4], x, rows, cols, DTYPE_F32, 2, 2);
    float *w = decode(&made);
    for (int64_t r = 0; r < rows; r++) {
        float most = 0.0f;
        for (int64_t i = 0; i < cols; i++)
            most = fmaxf(most, fabsf(x[r * cols + i]));
        assert_true(made.tensor.scales[r] == most);
        for (int64_t i = 0; i < cols; i++) {
            float want = x[r * cols + i];
            if (r == 1) assert_int_equal(((int8_t *)made.tensor.codes)[r * cols + i], 0);
            /* half a step, plus FP32 rounding of the three factors; the tiny row is below 1e-36 in all */
            assert_true(fabsf(w[r * cols + i] - want) <= most / 254.0f * 1.0001f + (r == 2 ? 1e-36f : 0.0f));
        }
    }
    arena_free(&made.arena);
    memory_free(w);
    memory_free(x);
}

static void test_int4_definition(void **state) {
    (void)state;
    for (int32_t group = 32; group <= 128; group *= 2) {
        QuantSpec spec = {.format = WEIGHT_INT4, .block_size = group};
        int64_t rows = 3, cols = 256;
        float *x = random_weight(rows, cols, 3.0f);
        memset(x + cols, 0, (size_t)group * sizeof(float));
        Made made;
        make(&made, &spec, x, rows, cols, DTYPE_F32, 1, 1);
        float *w = decode(&made);
        for (int64_t g = 0; g < rows * cols / group; g++) {
            float most = 0.0f, scale = made.tensor.scales[g];
            for (int64_t i = g * group; i < (g + 1) * group; i++)
                most = fmaxf(most, fabsf(x[i]));
            assert_true(scale == most / 7.5f);
            for (int64_t i = g * group; i < (g + 1) * group; i++) {
                uint8_t byte = made.tensor.codes[i / 2];
                int code = (i % 2 == 0 ? byte & 15 : byte >> 4) - 8;
                assert_true(w[i] == (float)code * scale);
                /* half a step; the positive end is clamped from 8 to 7, half a step as well */
                assert_true(fabsf(w[i] - x[i]) <= 0.5001f * scale);
            }
        }
        arena_free(&made.arena);
        memory_free(w);
        memory_free(x);
    }
}

static void test_nested_decodes_near(void **state) {
    (void)state;
    int64_t rows = 64, cols = 600;
    float *x = random_weight(rows, cols, 0.1f);
    Made plain, nested;
    make(&plain, &specs[0], x, rows, cols, DTYPE_F32, rows, 1);
    make(&nested, &specs[1], x, rows, cols, DTYPE_F32, 5, 2);
    assert_memory_equal(plain.tensor.codes, nested.tensor.codes, plain.tensor.code_bytes);
    WeightView view = quantized_view(&nested.tensor);
    for (int64_t b = 0; b < plain.tensor.blocks; b++) {
        float spread = nested.tensor.nested_absmax[b / NESTED_BLOCK];
        /* the map's widest step is 0.9/64, so half of it from the nearest entry */
        assert_true(fabsf(weight_absmax(&view, b) - plain.tensor.scales[b]) <= 0.0071f * spread);
    }
    arena_free(&plain.arena);
    arena_free(&nested.arena);
    memory_free(x);
}

static void test_equal_constants_nest_to_zero(void **state) {
    (void)state;
    float absmax[300], nested_absmax[2], map[DYNAMIC_MAP_ENTRIES];
    uint8_t codes[300];
    for (int i = 0; i < 300; i++)
        absmax[i] = 0.125f;
    dynamic_map(map);
    double_quantize(NULL, absmax, 300, double_quant_offset(absmax, 300), map, codes, nested_absmax);
    for (int i = 0; i < 300; i++)
        assert_int_equal(codes[i], 127);
    assert_true(nested_absmax[0] == 0.0f && nested_absmax[1] == 0.0f);
}

static void test_nonfinite_is_refused_by_place(void **state) {
    (void)state;
    for (size_t s = 0; s < sizeof specs / sizeof *specs; s++) {
        int64_t rows = 40, cols = 1056;
        float *x = random_weight(rows, cols, 1.0f);
        x[31 * cols + 17] = NAN;
        x[35 * cols + 900] = -INFINITY;
        Error err = {0};
        Made made;
        Quantizer *quantizer;
        take(&made, &specs[s], rows, cols);
        assert_ok(quantizer_create(&quantizer, &backend, NULL, quant_nested_constants(&specs[s], rows, cols), &err), &err);
        assert_refused(quantize_tensor(quantizer, x, DTYPE_F32, &made.tensor, &err), &err, "row 31, column 17 is NaN or Inf");
        quantizer_free(quantizer);
        arena_free(&made.arena);
        memory_free(x);
    }
}

static void test_refusals(void **state) {
    (void)state;
    static const struct {
        QuantSpec spec;
        int64_t rows, cols;
        const char *says;
    } cases[] = {
        {{.format = WEIGHT_INT4, .block_size = 64}, 4, 96, "groups of 64 do not divide the width 96; a block_size of 32 does"},
        {{.format = WEIGHT_INT4, .block_size = 32},
         4,
         172,
         "groups of 32 do not divide the width 172; no group of 32, 64 or 128 does"},
        {{.format = WEIGHT_INT4, .block_size = 48}, 4, 96, "want 32, 64 or 128, got 48"},
        {{.format = WEIGHT_NF4, .block_size = 16}, 4, 96, "nf4: block_size: want a power of two from 32 to 4096, got 16"},
        {{.format = WEIGHT_FP4, .double_quant = 1, .block_size = 96}, 4, 96, "fp4: block_size"},
        {{.format = WEIGHT_NF4, .block_size = 8192}, 4, 96, "got 8192"},
        {{.format = WEIGHT_INT8, .double_quant = 1}, 4, 96, "int8 has no double quantization"},
        {{.format = WEIGHT_INT4, .double_quant = 1, .block_size = 32}, 4, 96, "int4 has no double quantization"},
        {{.format = WEIGHT_BF16, .block_size = 32}, 4, 96, "not to bf16"},
        {{.format = WEIGHT_GROUPED, .block_size = 12, .bits = 4}, 4, 96, "a multiple of 8 columns, got 12"},
        {{.format = WEIGHT_GROUPED, .block_size = 64, .bits = 4}, 4, 96, "groups of 64 do not divide"},
        {{.format = WEIGHT_GROUPED, .block_size = 32, .bits = 1}, 4, 96, "2 to 8 bits"},
        {{.format = WEIGHT_NF4, .block_size = 64}, 0, 96, "shape [0, 96]"},
        {{.format = WEIGHT_NF4, .block_size = 64}, INT64_MAX / 2, 3, "shape ["},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Error err = {0};
        assert_refused(quant_check(&cases[i].spec, cases[i].rows, cases[i].cols, &err), &err, cases[i].says);
    }
}

static void test_wrong_number_of_rows(void **state) {
    (void)state;
    Error err = {0};
    Made made;
    Quantizer *quantizer;
    float x[8 * 64] = {0};
    take(&made, &specs[0], 4, 64);
    assert_ok(quantizer_create(&quantizer, &backend, NULL, 0, &err), &err);
    assert_ok(quantizer_begin(quantizer, &made.tensor, &err), &err);
    assert_ok(quantizer_rows(quantizer, x, DTYPE_F32, 3, &err), &err);
    assert_refused(quantizer_finish(quantizer, &err), &err, "got 3 of 4 rows");
    assert_refused(quantizer_rows(quantizer, x, DTYPE_F32, 2, &err), &err, "2 rows after 3 of 4");
    assert_refused(quantizer_rows(quantizer, x, DTYPE_I8, 1, &err), &err, "not from I8");
    arena_free(&made.arena);
    take(&made, &specs[1], 4, 64);
    assert_refused(quantizer_begin(quantizer, &made.tensor, &err), &err, "constants do not fit");
    arena_free(&made.arena);
    quantizer_free(quantizer);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_slices_and_threads_change_nothing),
        cmocka_unit_test(test_grouped_definition),
        cmocka_unit_test(test_grouped_order_is_stored),
        cmocka_unit_test(test_any_width),
        cmocka_unit_test(test_int8_definition),
        cmocka_unit_test(test_int4_definition),
        cmocka_unit_test(test_nested_decodes_near),
        cmocka_unit_test(test_equal_constants_nest_to_zero),
        cmocka_unit_test(test_nonfinite_is_refused_by_place),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_wrong_number_of_rows),
    };
    return cmocka_run_group_tests(tests, open_backend, NULL);
}
