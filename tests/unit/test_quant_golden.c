/* Codes, constants and nested constants against files that bitsandbytes made: every byte. */
#include "tests/unit/test_core.h"

#include "core/file.h"
#include "core/memory.h"
#include "quant/double_quant.h"
#include "quant/quantize.h"
#include "tests/support/compare.h"

/* Made by tests/peers/nf4_exactness.py --golden (its docstring has the layout) with bitsandbytes 0.50.2's Python `default`
 * backend and torch 2.15 on one thread. */
#define GOLDEN "tests/golden/quant_4bit.bin"

typedef struct Cursor {
    const char *at, *end;
} Cursor;

static const void *take(Cursor *cursor, size_t bytes) {
    assert_true((size_t)(cursor->end - cursor->at) >= bytes);
    const void *out = cursor->at;
    cursor->at += bytes;
    return out;
}

static float *take_floats(Cursor *cursor, int64_t count) {
    size_t bytes = (size_t)count * sizeof(float);
    return memcpy(memory_alloc(bytes), take(cursor, bytes), bytes);
}

static void check_bytes(const char *what, int number, const void *got, const void *want, size_t bytes) {
    for (size_t i = 0; i < bytes; i++)
        if (((const uint8_t *)got)[i] != ((const uint8_t *)want)[i])
            fail_msg("case %d: %s: byte %zu of %zu differs", number, what, i, bytes);
}

static void check_case(Cursor *cursor, int number, const Backend *backend, const float *map) {
    int32_t head[2];
    int64_t n;
    memcpy(head, take(cursor, sizeof head), sizeof head);
    memcpy(&n, take(cursor, sizeof n), sizeof n);
    int64_t block = head[1], blocks = (n + block - 1) / block, groups = (blocks + NESTED_BLOCK - 1) / NESTED_BLOCK;
    float *x = take_floats(cursor, n);
    const void *want_codes = take(cursor, (size_t)(n + 1) / 2);
    float *want_absmax = take_floats(cursor, blocks), *offset = take_floats(cursor, 1);
    const void *want_nested = take(cursor, (size_t)blocks);
    float *want_nested_absmax = take_floats(cursor, groups);

    uint8_t *codes = memory_alloc((size_t)(n + 1) / 2), *nested = memory_alloc((size_t)blocks);
    float *absmax = memory_alloc((size_t)blocks * sizeof(float)), *nested_absmax = memory_alloc((size_t)groups * sizeof(float));
    assert_int_equal(backend->quantize_4bit((WeightFormat)head[0], x, n, block, codes, absmax), -1);
    check_bytes("codes", number, codes, want_codes, (size_t)(n + 1) / 2);
    check_bytes("absmax", number, absmax, want_absmax, (size_t)blocks * sizeof(float));
    double_quantize(NULL, absmax, blocks, offset[0], map, nested, nested_absmax);
    check_bytes("nested codes", number, nested, want_nested, (size_t)blocks);
    check_bytes("nested absmax", number, nested_absmax, want_nested_absmax, (size_t)groups * sizeof(float));
    memory_free(x);
    memory_free(want_absmax);
    memory_free(offset);
    memory_free(want_nested_absmax);
    memory_free(codes);
    memory_free(nested);
    memory_free(absmax);
    memory_free(nested_absmax);
}

static void check_backend(const Backend *backend) {
    Error err = {0};
    char *text;
    size_t length;
    assert_ok(file_read(GOLDEN, 1 << 20, &text, &length, &err), &err);
    Cursor cursor = {text, text + length};
    assert_memory_equal(take(&cursor, 4), "NBQ1", 4);
    int32_t count;
    memcpy(&count, take(&cursor, sizeof count), sizeof count);
    assert_true(count > 30);
    float map[DYNAMIC_MAP_ENTRIES];
    dynamic_map(map);
    assert_memory_equal(map, take(&cursor, sizeof map), sizeof map);
    for (int32_t i = 0; i < count; i++)
        check_case(&cursor, i, backend, map);
    assert_true(cursor.at == cursor.end);
    memory_free(text);
}

static void test_reference(void **state) {
    (void)state;
    Backend backend;
    cpu_backend_reference(&backend);
    assert_string_equal(backend.variant.quantize, "ref");
    check_backend(&backend);
}

static void test_best(void **state) {
    (void)state;
    Error err = {0};
    Backend backend;
    assert_ok(cpu_backend(&backend, NULL, &err), &err);
    print_message("quantize: %s\n", backend.variant.quantize);
    check_backend(&backend);
}

/* The example of formats.md's round-trip list: x_j = (j - 40) * 0.01. */
static void test_worked_example(void **state) {
    (void)state;
    float x[64], absmax;
    uint8_t codes[32];
    for (int j = 0; j < 64; j++)
        x[j] = (float)((j - 40) * 0.01);
    Backend backend;
    cpu_backend_reference(&backend);
    assert_int_equal(backend.quantize_4bit(WEIGHT_NF4, x, 64, 64, codes, &absmax), -1);
    assert_true(absmax == 0.4f);
    char hex[65] = "";
    for (int k = 0; k < 32; k++)
        (void)snprintf(hex + 2 * k, 3, "%02x", codes[k]);
    assert_string_equal(hex, "0000000111111111222222333334444555566667778889999aaabbbbcccccddd");
}

static void test_map_samples(void **state) {
    (void)state;
    float map[DYNAMIC_MAP_ENTRIES];
    dynamic_map(map);
    for (int i = 1; i < DYNAMIC_MAP_ENTRIES; i++)
        assert_true(map[i] > map[i - 1]);
    static const struct {
        int index;
        float value;
    } samples[] = {{0, -0.99296874f}, {1, -0.97890627f},  {63, -0.10703126f}, {64, -0.09859375f},
                   {126, -5.5e-7f},   {128, 5.5e-7f},     {129, 3.25e-6f},    {131, 2.125e-5f},
                   {135, 1.5625e-4f}, {192, 0.12109375f}, {254, 0.99296874f}};
    for (size_t i = 0; i < sizeof samples / sizeof *samples; i++) {
        float error = fabsf(map[samples[i].index] - samples[i].value);
        assert_true(error <= 1.2e-7f * fabsf(samples[i].value)); /* they are printed with 8 digits: one ulp */
    }
    assert_true(map[127] == 0.0f && map[255] == 1.0f);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_reference), cmocka_unit_test(test_best),
                                       cmocka_unit_test(test_worked_example), cmocka_unit_test(test_map_samples)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
