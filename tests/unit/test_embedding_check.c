/* Tokens whose embeddings look untrained are found, and trained ones are not. */
#include "core/dtype.h"
#include "core/memory.h"
#include "tests/unit/test_core.h"
#include "train/embedding_check.h"

enum { ROWS = 8, COLS = 16 };

static void fill(float *rows) {
    for (int i = 0; i < ROWS * COLS; i++)
        rows[i] = (float)((i * 37) % 101 - 50) / 100.0f;
}

static EmbeddingFaults check(const float *rows, WeightFormat format) {
    static const int32_t ids[] = {7, 1, 2, 2, 3, 5, 7, 6, 1}; /* neither 0 nor 4 */
    bf16 narrow[ROWS * COLS];
    for (int i = 0; i < ROWS * COLS; i++)
        narrow[i] = bf16_from_float(rows[i]);
    WeightView view = {.format = format, .rows = ROWS, .cols = COLS};
    view.data = format == WEIGHT_F32 ? (const void *)rows : narrow;
    return embedding_check(&view, ids, sizeof ids / sizeof ids[0]);
}

static void finds_them(void **state) {
    (void)state;
    static const WeightFormat formats[] = {WEIGHT_F32, WEIGHT_BF16};
    for (int f = 0; f < 2; f++) {
        float rows[ROWS * COLS];
        fill(rows);
        memset(rows, 0, COLS * sizeof *rows);                          /* 0: not in the data */
        memcpy(rows + 4 * COLS, rows + 5 * COLS, COLS * sizeof *rows); /* 4: not in the data either */
        for (int i = 0; i < COLS; i++)
            rows[1 * COLS + i] *= 0.02f; /* small, but trained */
        EmbeddingFaults faults = check(rows, formats[f]);
        assert_int_equal(faults.used, 6);
        assert_int_equal(faults.zero + faults.equal, 0);
        assert_int_equal(faults.example, -1);

        memcpy(rows + 6 * COLS, rows + 5 * COLS, COLS * sizeof *rows);
        memcpy(rows + 7 * COLS, rows + 5 * COLS, COLS * sizeof *rows);
        faults = check(rows, formats[f]);
        assert_int_equal(faults.equal, 2);
        assert_int_equal(faults.zero, 0);
        assert_int_equal(faults.example, 6);
        assert_int_equal(faults.equal_to, 5);

        for (int i = 0; i < COLS; i++)
            rows[3 * COLS + i] = 1e-6f;
        faults = check(rows, formats[f]);
        assert_int_equal(faults.zero, 1);
        assert_int_equal(faults.equal, 2);
        assert_int_equal(faults.example, 3);
        assert_int_equal(faults.equal_to, -1);
    }
}

static void an_empty_model_is_all_zero(void **state) {
    (void)state;
    float rows[ROWS * COLS] = {0};
    EmbeddingFaults faults = check(rows, WEIGHT_F32);
    assert_int_equal(faults.zero, 6);
    assert_int_equal(faults.equal, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(finds_them), cmocka_unit_test(an_empty_model_is_all_zero)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
