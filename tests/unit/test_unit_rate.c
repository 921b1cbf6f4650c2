/* The rate of a variant's instruction: there for each that the machine offers, and for no other name. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/ops.h"

static void test_rates(void **state) {
    (void)state;
    static const char *const variants[] = {"avx2", "avx512", "avx512bf16", "amx"};
    Pool *pool;
    assert_int_equal(pool_create(&pool, 2, NULL), OK);
    for (size_t i = 0; i < sizeof variants / sizeof *variants; i++) {
        Backend backend;
        if (cpu_backend(&backend, variants[i], NULL) != OK) {
            print_message("%s: skipped, not offered here\n", variants[i]);
            continue;
        }
        double rate = cpu_unit_rate(backend.variant.linear, pool);
        assert_true(rate > 0.0 && rate < 1e16);
        assert_true(cpu_unit_rate(variants[i], NULL) > 0.0); /* in the caller */
    }
    pool_free(pool);
}

static void test_no_unit(void **state) {
    (void)state;
    assert_true(isnan(cpu_unit_rate("ref", NULL)));
    assert_true(isnan(cpu_unit_rate("avx", NULL)));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rates), cmocka_unit_test(test_no_unit)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
