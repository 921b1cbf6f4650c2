/* The CPU's table: complete, named, chosen by what the machine offers, refused when it lacks it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "tests/support/compare.h"
#include "tests/support/scope.h"

static void assert_complete(const Backend *b) {
    assert_string_equal(b->name, "cpu");
    assert_true(b->activation_bytes && b->to_rows && b->from_rows);
    assert_true(b->embed_plan && b->embed_forward && b->embed_backward);
    assert_true(b->norm_plan && b->norm_forward && b->norm_backward);
    assert_true(b->linear_plan && b->linear_forward && b->linear_backward);
    assert_true(b->rope_plan && b->rope_forward && b->rope_backward);
    assert_true(b->attention_plan && b->attention_forward && b->attention_backward && b->attention_cached);
    assert_true(b->gate_plan && b->gate_forward && b->gate_backward);
    assert_true(b->head_plan && b->head_loss && b->head_logits);
    assert_true(b->adamw && b->sum_squares && b->find_nonfinite && b->quantize_4bit && b->dequantize);
    const char *const names[8] = {b->variant.linear, b->variant.attention, b->variant.norm,  b->variant.rope,
                                  b->variant.gate,   b->variant.head,      b->variant.adamw, b->variant.quantize};
    for (int i = 0; i < 8; i++)
        assert_non_null(names[i]);
}

static void test_reference(void **state) {
    (void)state;
    Backend reference, forced;
    Error err;
    memset(&reference, 0, sizeof reference);
    memset(&forced, 0, sizeof forced);
    cpu_backend_reference(&reference);
    assert_complete(&reference);
    assert_string_equal(reference.variant.linear, "ref");
    assert_ok(cpu_backend(&forced, "ref", &err), &err);
    assert_memory_equal(&forced, &reference, sizeof forced);
}

static void test_best_and_forced(void **state) {
    (void)state;
    static const char *const levels[4] = {"avx2", "avx512", "avx512bf16", "amx"};
    Backend backend;
    Error err;
    assert_ok(cpu_backend(&backend, NULL, &err), &err);
    assert_complete(&backend);
    for (int i = 0; i < 4; i++) {
        if (cpu_backend(&backend, levels[i], &err) == OK) {
            assert_complete(&backend);
            print_message("%s: linear runs as %s\n", levels[i], backend.variant.linear);
        } else {
            assert_refused(ERR_FAILED, &err, "this machine offers");
        }
    }
    assert_refused(cpu_backend(&backend, "avx1024", &err), &err, "want ref, avx2, avx512, avx512bf16 or amx");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference),
        cmocka_unit_test(test_best_and_forced),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
