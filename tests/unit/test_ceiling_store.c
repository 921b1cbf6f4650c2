/* Ceilings on disk: the best counts, per kind; what is wrong in the file, or cannot be written, is no harm. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/file.h"
#include "core/memory.h"
#include "tests/support/scratch.h"
#include "train/ceiling_store.h"

static void write_file(const char *text) {
    char *path = user_cache_path("ceilings");
    assert_int_equal(file_write_atomic(path, text, strlen(text), NULL), OK);
    memory_free(path);
}

static void test_best(void **state) {
    (void)state;
    assert_int_equal(setenv("XDG_CACHE_HOME", scratch_folder(), 1), 0);
    assert_true(isnan(ceiling_best("avx2", "f32", 2, NAN)));
    assert_true(ceiling_best("avx2", "f32", 2, 5e10) == 5e10);
    assert_true(ceiling_best("avx2", "f32", 2, 4e10) == 5e10); /* a busy machine */
    assert_true(ceiling_best("avx2", "f32", 2, NAN) == 5e10);
    assert_true(ceiling_best("avx2", "f32", 2, 6e10) == 6e10);
    assert_true(ceiling_best("avx2", "f32", 1, 3e10) == 3e10); /* other threads, types and variants are others */
    assert_true(ceiling_best("avx2", "bf16", 2, 2e10) == 2e10);
    assert_true(ceiling_best("avx512", "f32", 2, 1e10) == 1e10);
    assert_true(ceiling_best("avx2", "f32", 2, NAN) == 6e10);
    assert_true(ceiling_best("avx2", "bf16", 2, NAN) == 2e10);
}

static void test_damage(void **state) {
    (void)state;
    char *home = scratch_path("damage");
    assert_int_equal(setenv("XDG_CACHE_HOME", home, 1), 0);
    memory_free(home);
    assert_true(ceiling_best("avx2", "f32", 2, 5e10) == 5e10);
    static const char *const texts[] = {"",
                                        "\n\n",
                                        "nonsense",
                                        "1e10",
                                        "1e10 ",
                                        "-3 avx2 F32 2 x\n",
                                        "inf avx2 F32 2 x\n",
                                        "1e300 avx2 F32 2 x\n",
                                        "nan avx2 F32 2 x"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        write_file(texts[i]);
        assert_true(ceiling_best("avx2", "f32", 2, 1e10) == 1e10);
        assert_true(ceiling_best("avx2", "f32", 2, NAN) == 1e10);
    }
    char *path = user_cache_path("ceilings"); /* a folder in the file's place */
    assert_int_equal(remove(path), 0);
    assert_int_equal(folder_create(path, NULL), OK);
    assert_true(ceiling_best("avx2", "f32", 2, 1e10) == 1e10);
    memory_free(path);
    assert_int_equal(setenv("XDG_CACHE_HOME", "relative", 1), 0);
    assert_int_equal(unsetenv("HOME"), 0);
    assert_true(ceiling_best("avx2", "f32", 2, 1e10) == 1e10);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_best), cmocka_unit_test(test_damage)};
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
