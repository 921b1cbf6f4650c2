/* Numbers in answers, as the gsm8k suite compares them; names of suites. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "core/memory.h"
#include "tests/support/compare.h"
#include "train/suite.h"

static void expect(const char *text, int flexible, const char *want) {
    char *got = suite_number(text, flexible);
    if (want == NULL ? got != NULL : got == NULL || strcmp(got, want) != 0)
        fail_msg("\"%s\" (%s): want %s, got %s", text, flexible ? "last number" : "behind ####", want != NULL ? want : "none",
                 got != NULL ? got : "none");
    memory_free(got);
}

static void test_strict(void **state) {
    (void)state;
    expect("2 + 2 = 4\n#### 4", 0, "4");
    expect("#### 1,234,567", 0, "1234567");
    expect("#### -3.50", 0, "-3.50");
    expect("#### $18.", 0, "18");
    expect("####    7 apples", 0, "7");
    expect("#### 1\n#### 2", 0, "2"); /* the last mark */
    expect("the answer is 4", 0, NULL);
    expect("#### none", 0, NULL);
    expect("#### ,.", 0, NULL);
    expect("####", 0, NULL);
    expect("", 0, NULL);
}

static void test_flexible(void **state) {
    (void)state;
    expect("first 3, then 1,000.", 1, "1000");
    expect("it falls by -12", 1, "-12");
    expect("from 5-7", 1, "-7");
    expect("9 and -", 1, "9"); /* what has no digit is no number */
    expect("no number. at, all-", 1, NULL);
    expect("", 1, NULL);
}

static void test_names(void **state) {
    (void)state;
    char *name = NULL;
    const char *path = NULL;
    Error err;
    assert_ok(suite_parse("mmlu:some/folder", NULL, &name, &path, &err), &err);
    assert_string_equal(name, "mmlu");
    assert_string_equal(path, "some/folder");
    memory_free(name);
    assert_ok(suite_parse("gsm8k", "x.jsonl", &name, &path, &err), &err);
    assert_string_equal(path, "x.jsonl");
    memory_free(name);
    assert_refused(suite_parse("gsm8k:a", "b", &name, &path, &err), &err, "give one");
    memory_free(name);
    assert_refused(suite_parse("gsm8k:", NULL, &name, &path, &err), &err, "where is its data");
    memory_free(name);
    assert_refused(suite_parse("arc:a", NULL, &name, &path, &err), &err, "want mmlu or gsm8k");
    memory_free(name);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_strict), cmocka_unit_test(test_flexible),
                                       cmocka_unit_test(test_names)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
