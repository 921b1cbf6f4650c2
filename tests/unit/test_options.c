/* Command-line options: values, their places, and the words of a refusal. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "train/options.h"

typedef struct Parsed {
    int flag, helped, count;
    const char *text, *positionals[2];
    int64_t integer;
    double number;
    OptionList list;
    Error err;
    Status status;
} Parsed;

/* words: the command line after the command's name, split at spaces. */
static Parsed *parse(Parsed *parsed, const char *words) {
    static char buffer[256]; /* values point into it */
    static char name[] = "demo";
    char *argv[32] = {name};
    int argc = 1;
    memset(parsed, 0, sizeof *parsed);
    parsed->text = "default";
    parsed->integer = 3;
    (void)snprintf(buffer, sizeof buffer, "%s", words);
    for (char *rest = buffer, *word; (word = strsep(&rest, " ")) != NULL;)
        if (*word != 0) argv[argc++] = word;
    const OptionSpec specs[] = {
        {"flag", OPTION_FLAG, NULL, "a flag", &parsed->flag},
        {"text", OPTION_STRING, "TEXT", "a text", &parsed->text},
        {"count", OPTION_INTEGER, "N", "an integer", &parsed->integer},
        {"ratio", OPTION_NUMBER, "X", "a number", &parsed->number},
        {"set", OPTION_LIST, "K=V", "a list", &parsed->list},
    };
    const CommandHelp help = {"nibble demo FILE [FILE]", "Demonstrates.", "nibble demo x\nnibble demo y"};
    parsed->status =
        options_parse(argc, argv, &help, specs, 5, parsed->positionals, 1, 2, &parsed->count, &parsed->helped, &parsed->err);
    return parsed;
}

static void test_values(void **state) {
    (void)state;
    Parsed p;
    assert_int_equal(parse(&p, "--flag a --text=b=c --count -5 --ratio 1e-3 --set x=1 --set=y=2 b")->status, OK);
    assert_int_equal(p.flag, 1);
    assert_string_equal(p.text, "b=c");
    assert_int_equal(p.integer, -5);
    assert_true(p.number == 1e-3);
    assert_int_equal(p.list.count, 2);
    assert_string_equal(p.list.items[0], "x=1");
    assert_string_equal(p.list.items[1], "y=2");
    assert_int_equal(p.count, 2);
    assert_string_equal(p.positionals[0], "a");
    assert_string_equal(p.positionals[1], "b");
}

static void test_defaults_stay(void **state) {
    (void)state;
    Parsed p;
    assert_int_equal(parse(&p, "a")->status, OK);
    assert_int_equal(p.flag, 0);
    assert_string_equal(p.text, "default");
    assert_int_equal(p.integer, 3);
}

static void test_double_dash(void **state) {
    (void)state;
    Parsed p;
    assert_int_equal(parse(&p, "-- --flag -x")->status, OK);
    assert_int_equal(p.flag, 0);
    assert_string_equal(p.positionals[0], "--flag");
    assert_string_equal(p.positionals[1], "-x");
    assert_int_equal(parse(&p, "-")->status, OK); /* a lone dash is a name, as everywhere */
    assert_string_equal(p.positionals[0], "-");
    assert_int_equal(parse(&p, "-- --help")->helped, 0);
}

static void test_refusals(void **state) {
    (void)state;
    static const struct {
        const char *words, *message;
    } cases[] = {
        {"a --falg", "no option --falg; did you mean --flag?"},
        {"a --hepl", "did you mean --help?"},
        {"a --completely-different", "`nibble demo --help` lists them"},
        {"a -f", "no option -f"},
        {"a --flag=1", "--flag takes no value, got \"1\""},
        {"a --text", "--text: want a value (TEXT)"},
        {"a --count x", "--count: want a whole number, got \"x\""},
        {"a --count 1.5", "--count: want a whole number"},
        {"a --count 99999999999999999999", "--count: want a whole number"},
        {"a --count=", "--count: want a whole number, got \"\""},
        {"a --ratio 1e-3x", "--ratio: want a number"},
        {"a --ratio nan", "--ratio: want a number"},
        {"a --ratio 1e999", "--ratio: want a number"},
        {"", "want 1 argument, got 0; usage: nibble demo FILE"},
        {"a b c", "\"c\" is one argument too many"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Parsed p;
        parse(&p, cases[i].words);
        if (p.status != ERR_USAGE || strstr(p.err.text, cases[i].message) == NULL)
            fail_msg("demo %s: status %d, message: %s", cases[i].words, (int)p.status, p.err.text);
    }
}

static void test_list_is_bounded(void **state) {
    (void)state;
    char name[] = "demo", option[] = "--set", value[] = "x";
    char *argv[2 * OPTION_LIST_MAX + 3] = {name};
    OptionList list = {0};
    const OptionSpec spec = {"set", OPTION_LIST, NULL, "a list", &list};
    const CommandHelp help = {"nibble demo", "Demonstrates.", NULL};
    int count, helped, argc = 2 * OPTION_LIST_MAX + 3;
    Error err = {0};
    for (int i = 1; i < argc; i += 2) {
        argv[i] = option;
        argv[i + 1] = value;
    }
    assert_int_equal(options_parse(argc - 2, argv, &help, &spec, 1, NULL, 0, 0, &count, &helped, &err), OK);
    assert_int_equal(list.count, OPTION_LIST_MAX);
    assert_int_equal(options_parse(argc, argv, &help, &spec, 1, NULL, 0, 0, &count, &helped, &err), ERR_USAGE);
}

static void test_help(void **state) {
    (void)state;
    Parsed p;
    assert_int_equal(parse(&p, "--unknown --help")->status, OK); /* help wins over mistakes */
    assert_int_equal(p.helped, 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),   cmocka_unit_test(test_defaults_stay),   cmocka_unit_test(test_double_dash),
        cmocka_unit_test(test_refusals), cmocka_unit_test(test_list_is_bounded), cmocka_unit_test(test_help),
    };
    return cmocka_run_group_tests_name("options", tests, NULL, NULL);
}
