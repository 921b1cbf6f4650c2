/* Codes of GPTQ and AWQ put where the rows have them: the CPU's bytes, in parts, with nothing else touched. */
#include "quant/grouped_layout.h"
#include "tests/cuda_emu/device.h"

typedef struct Case {
    GroupedLayout layout;
    int bits;
    int64_t rows, cols;
    int64_t at_once; /* lines of a part */
} Case;

#define CANARY 0xA5

static void check(const Case *c) {
    Scope scope = {0};
    Device device = {0};
    Arena arena = {0};
    Error err = {0};
    QuantSpec spec = {.format = WEIGHT_GROUPED, .bits = c->bits, .scale_type = DTYPE_F16};
    QuantizedTensor want;
    assert_ok(arena_create(&arena, "tensor", 1 << 22, &err), &err);
    assert_ok(quantized_take(&want, &spec, c->rows, c->cols, &arena, &err), &err);
    int64_t lines = grouped_lines(c->layout, &want), line = grouped_line_bytes(c->layout, &want);
    int64_t row_bytes = grouped_row_bytes(c->cols, c->bits);
    int nibbles = c->layout == GROUPED_AWQ;
    uint8_t *file = memory_alloc((size_t)(lines * line)), *codes = memory_alloc(want.code_bytes + 64);
    uint64_t state = 88172645463325252u;
    for (int64_t i = 0; i < lines * line; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        file[i] = (uint8_t)(state >> 40);
    }
    memset(codes, CANARY, want.code_bytes + 64);
    uint8_t *there = device_out(&device, codes, want.code_bytes + 64);
    for (int64_t first = 0; first < lines; first += c->at_once) {
        int64_t count = lines - first < c->at_once ? lines - first : c->at_once;
        const uint32_t *part = device_out(&device, file + first * line, (size_t)(count * line));
        assert_cuda(cuda_group_lines(part, nibbles, c->rows, first, count, there, row_bytes, 0));
        grouped_codes_in(c->layout, &want, first, count, file + first * line, 0, c->rows);
        /* up to here the CPU's, and behind it what was there */
        int64_t done = nibbles ? (first + count + 7) / 8 * 4 : (first + count) * 4;
        device_read(codes, there, want.code_bytes + 64);
        for (int64_t r = 0; r < c->rows; r++) {
            assert_memory_equal(codes + r * row_bytes, want.codes + r * row_bytes, (size_t)done);
            for (int64_t b = done; b < row_bytes; b++)
                assert_int_equal(codes[r * row_bytes + b], CANARY);
        }
    }
    for (int i = 0; i < 64; i++)
        assert_int_equal(codes[want.code_bytes + (size_t)i], CANARY);
    memory_free(file);
    memory_free(codes);
    arena_free(&arena);
    device_close(&device);
    scope_close(&scope);
}

static void puts_codes_in_place(void **state) {
    (void)state;
    static const Case cases[] = {
        {GROUPED_GPTQ, 4, 8, 8, 1},      {GROUPED_GPTQ, 4, 32, 256, 32}, {GROUPED_GPTQ, 4, 40, 264, 31},
        {GROUPED_GPTQ, 2, 16, 1040, 33}, {GROUPED_GPTQ, 3, 96, 352, 7},  {GROUPED_GPTQ, 8, 4, 132, 200},
        {GROUPED_GPTQ, 8, 260, 44, 11},  {GROUPED_AWQ, 4, 8, 1, 8},      {GROUPED_AWQ, 4, 8, 8, 8},
        {GROUPED_AWQ, 4, 256, 64, 64},   {GROUPED_AWQ, 4, 264, 131, 72}, {GROUPED_AWQ, 4, 248, 127, 128},
        {GROUPED_AWQ, 4, 1032, 60, 8},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check(&cases[i]);
}

static void refuses_what_does_not_fit(void **state) {
    (void)state;
    Device device = {0};
    uint32_t *memory = device_out(&device, NULL, 4096);
    assert_cuda(cuda_group_lines(memory, 0, 8, 0, 0, memory, 4, 0)); /* nothing to do */
    assert_int_equal(cuda_group_lines(memory, 1, 12, 0, 8, memory, 4, 0), cudaErrorInvalidValue);
    assert_int_equal(cuda_group_lines(memory, 1, 8, 4, 4, memory, 4, 0), cudaErrorInvalidValue);
    assert_int_equal(cuda_group_lines(memory, 1, 8, 0, 9, memory, 4, 0), cudaErrorInvalidValue);
    assert_int_equal(cuda_group_lines(memory, 0, 8, 1, 1, memory, 4, 0), cudaErrorInvalidValue);
    device_close(&device);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(puts_codes_in_place),
        cmocka_unit_test(refuses_what_does_not_fit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
