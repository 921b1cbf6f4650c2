/* The Jinja interpreter: what transformers' environment renders, hostile templates, refusals, and marks that stay. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "core/file.h"
#include "core/memory.h"
#include "core/text.h"
#include "data/jinja.h"
#include "data/json.h"

/* Made by tests/peers/jinja_golden.py; how to remake it stands there. */
#define GOLDEN "tests/golden/jinja.json"
#define ASSETS "../shared/assets/tokenizers/"

typedef struct Row {
    char *source, *file, *variables, *text;
} Row;

static char *take_text(JsonReader *reader, size_t *length) {
    JsonToken token;
    assert_int_equal(json_next(reader, &token, NULL), OK);
    if (token.kind == JSON_NULL) return NULL;
    assert_int_equal(token.kind, JSON_STRING);
    char *text = memory_alloc(token.length + 1);
    memcpy(text, token.text, token.length);
    text[token.length] = 0;
    *length = token.length;
    return text;
}

static void read_row(JsonReader *reader, Row *row) {
    JsonToken token;
    size_t length;
    *row = (Row){0};
    while (json_next(reader, &token, NULL) == OK && token.kind == JSON_KEY) {
        char **field = json_key_is(&token, "source") ? &row->source
                       : json_key_is(&token, "file") ? &row->file
                       : json_key_is(&token, "text") ? &row->text
                                                     : &row->variables;
        *field = take_text(reader, &length);
    }
}

/* The template in a .jinja file or a tokenizer_config.json; NULL when the file is not there. */
static char *read_template(const char *name) {
    char *path = memory_format("%s%s", ASSETS, name), *text = NULL, *template = NULL;
    size_t length;
    if (file_exists(path)) {
        assert_int_equal(file_read(path, (size_t)1 << 24, &text, &length, NULL), OK);
        if (strstr(name, ".json") == NULL) {
            template = text;
            text = NULL;
        }
    }
    if (text != NULL) {
        JsonReader reader;
        JsonToken key;
        json_open(&reader, path, text, length, 1, (JsonLimits){0});
        assert_int_equal(json_next(&reader, &key, NULL), OK);
        while (json_next(&reader, &key, NULL) == OK && key.kind == JSON_KEY && template == NULL) {
            if (json_key_is(&key, "chat_template")) {
                template = take_text(&reader, &length);
            } else {
                assert_int_equal(json_skip(&reader, &key, NULL), OK);
            }
        }
        json_close(&reader);
    }
    memory_free(text);
    memory_free(path);
    return template;
}

/* The rendered text, or NULL with the message in *error. */
static char *render(const char *source, const char *variables, Error *error) {
    Jinja *jinja = NULL;
    JinjaRun *run = jinja_run_create(JINJA_LIMITS_DEFAULT);
    JinjaValue values;
    JinjaText out;
    char *text = NULL;
    assert_int_equal(jinja_json(run, "variables", variables, strlen(variables), 3, &values, error), OK);
    if (jinja_open(&jinja, "template", source, strlen(source), error) == OK &&
        jinja_render(jinja, run, values, &out, error) == OK)
        text = memory_format("%.*s", (int)out.length, out.data);
    jinja_run_free(run);
    jinja_close(jinja);
    return text;
}

/* Length and FNV-1a of a rendered text. */
static char *key_of(char *text) {
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    size_t length = strlen(text);
    for (size_t i = 0; i < length; i++)
        hash = (hash ^ (uint8_t)text[i]) * UINT64_C(0x100000001b3);
    memory_free(text);
    return memory_format("%zu %016llx", length, (unsigned long long)hash);
}

static int check_row(const Row *row, const char *source) {
    Error error = {0};
    char *text = render(source, row->variables != NULL ? row->variables : "{}", &error);
    if (row->file != NULL && text != NULL) text = key_of(text);
    int same = row->text == NULL ? text == NULL : text != NULL && strcmp(text, row->text) == 0;
    if (!same) {
        print_error("%s\n  variables %.300s\n  want %s\n  got  %s\n", row->file != NULL ? row->file : source,
                    row->file != NULL ? row->variables : "", row->text != NULL ? row->text : "(a refusal)",
                    text != NULL ? text : error.text);
    }
    memory_free(text);
    return same;
}

static void test_golden(void **state) {
    (void)state;
    JsonReader reader;
    JsonToken token;
    char *golden;
    size_t length;
    int rows = 0, files = 0, absent = 0, wrong = 0;
    assert_int_equal(file_read(GOLDEN, (size_t)1 << 26, &golden, &length, NULL), OK);
    json_open(&reader, GOLDEN, golden, length, 1, (JsonLimits){0});
    assert_int_equal(json_expect(&reader, JSON_ARRAY_BEGIN, "rows", &token, NULL), OK);
    while (json_next(&reader, &token, NULL) == OK && token.kind == JSON_OBJECT_BEGIN) {
        Row row;
        read_row(&reader, &row);
        char *source = row.file != NULL ? read_template(row.file) : memory_strdup(row.source);
        if (source == NULL) {
            absent++;
        } else {
            wrong += !check_row(&row, source);
            rows += row.file == NULL;
            files += row.file != NULL;
        }
        memory_free(source);
        memory_free(row.source);
        memory_free(row.file);
        memory_free(row.variables);
        memory_free(row.text);
    }
    json_close(&reader);
    memory_free(golden);
    print_message("%d snippets, %d renderings of public templates, %d skipped (not in %s)\n", rows, files, absent, ASSETS);
    assert_int_equal(wrong, 0);
    assert_true(rows >= 350);
    assert_true(files + absent >= 100);
}

static void must_refuse(const char *source, const char *wanted) {
    Error error = {0};
    char *text = render(source, "{\"a\": \"<x>\", \"l\": [1, 2]}", &error);
    if (text != NULL || strstr(error.text, wanted) == NULL)
        fail_msg("%.100s: want a refusal with \"%s\", got %.100s", source, wanted, text != NULL ? text : error.text);
}

static void test_refusals(void **state) {
    (void)state;
    must_refuse("\n\n{% include 'x' %}", "template: line 3: {% include %} is not supported");
    must_refuse("{% extends 'x' %}", "{% extends %}");
    must_refuse("{% call f() %}{% endcall %}", "{% call %}");
    must_refuse("a\n{{ a | wordwrap }}", "line 2: the filter \"wordwrap\" is not supported");
    must_refuse("{{ a is weird }}", "the test \"weird\"");
    must_refuse("{% for x in l recursive %}{% endfor %}", "recursive loop");
    must_refuse("{{ f(*l) }}", "unpacked arguments");
    must_refuse("{{ a.encode() }}", "the method encode of a string");
    must_refuse("{{ '%s' % a }}", "formatting a string");
    must_refuse("{{ (a | safe) + '<' }}", "safe or escape made");
    must_refuse("{{ a | e | upper }}", "marked safe");
    must_refuse("{% break %}", "outside of a loop");
    must_refuse("{% if a %}", "want endif, got the template's end");
    must_refuse("{% endif %}", "want a statement");
    must_refuse("{{ a", "{{ has no end }}");
    must_refuse("{{ 'a }}", "a string has no end");
    must_refuse("{# a", "a comment");
    must_refuse("{% raw %}", "{% endraw %}");
    must_refuse("{{ a ! b }}", "the character \"!\"");
    must_refuse("{{ (a] }}", "closes no bracket");
    must_refuse("{{ 99999999999999999999 }}", "does not fit 64 bits");
    must_refuse("{{ 9223372036854775807 + 1 }}", "does not fit 64 bits");
    must_refuse("{{ 2 ** 64 }}", "does not fit 64 bits");
    must_refuse("\xFF", "not UTF-8");
    must_refuse("x\n{{ missing.y }}", "line 2: \"missing\" is undefined");
    must_refuse("{{ l.__class__.x }}", "undefined");
    must_refuse("{% set x.y = 1 %}", "only attributes of a namespace");
    must_refuse("{{ raise_exception('because') }}", "refuses the conversation: because");
}

/* Each of these would run for ages, or take all memory, if nothing counted. */
static void test_hostile(void **state) {
    (void)state;
    must_refuse("{{ range(10**9) | length }}", "range is longer than");
    must_refuse("{{ 'a' * 10**9 }}", "more than");
    must_refuse("{{ ([1] * 10**9) | length }}", "more than");
    must_refuse("{{ ('a' * 10**6) * 10**6 }}", "more than");
    must_refuse("{{ 'a' * -1 }}{{ '' * 10**12 }}{{ x.y }}", "undefined");
    must_refuse(
        "{% set r = range(100000) %}{% for a in r %}{% for b in r %}{% for c in r %}{% endfor %}{% endfor %}{% endfor %}",
        "more than");
    must_refuse("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "nests deeper");
    must_refuse("{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}", "nests deeper");
    must_refuse("{% set ns = namespace(s='ab') %}{% for i in range(99999) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
                "more than");
    must_refuse("{% set ns = namespace(l=[1]) %}{% for i in range(99999) %}{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l }}",
                "nests deeper");
    must_refuse(
        "{% set ns = namespace(s='ab') %}{% for i in range(99999) %}{% set ns.s = ns.s.replace('', 'ab') %}{% endfor %}",
        "more than");
    must_refuse("{{ range(99999) | sort(reverse=true) | first }}{{ range(99999) | map('string') | unique | list | length }}",
                "more than");
    Text deep = {0};
    for (int i = 0; i < 100000; i++)
        text_adds(&deep, "(");
    char *source = memory_format("{{ %s", deep.data);
    must_refuse(source, "brackets inside of each other");
    memory_free(source);
    text_clear(&deep);
    for (int i = 0; i < 10000; i++)
        text_adds(&deep, "{% if a %}");
    must_refuse(deep.data, "nesting");
    text_clear(&deep);
    text_adds(&deep, "{{ a");
    for (int i = 0; i < 10000; i++)
        text_adds(&deep, " + a");
    text_adds(&deep, " }}");
    must_refuse(deep.data, "operators in a row");
    text_clear(&deep);
    text_adds(&deep, "{{ ");
    for (int i = 0; i < 10000; i++)
        text_adds(&deep, "not ");
    text_adds(&deep, "a }}");
    must_refuse(deep.data, "nesting");
    text_clear(&deep);
    for (int i = 0; i < 3000; i++)
        text_addf(&deep, "{{ a%d }}", i);
    must_refuse(deep.data, "different names");
    text_free(&deep);
}

/* What bytes of the output come from "a" (marked), as brackets around them. */
static char *marked(const char *source, const char *a) {
    Jinja *jinja;
    JinjaRun *run = jinja_run_create(JINJA_LIMITS_DEFAULT);
    JinjaValue variables, value;
    JinjaText out;
    Text text = {0};
    Error error;
    if (jinja_open(&jinja, "template", source, strlen(source), &error) != OK) fail_msg("%s", error.text);
    assert_int_equal(jinja_dict(run, &variables, &error), OK);
    assert_int_equal(jinja_text(run, a, strlen(a), 5, &value, &error), OK);
    assert_int_equal(jinja_dict_set(run, variables, "a", value, &error), OK);
    if (jinja_render(jinja, run, variables, &out, &error) != OK) fail_msg("%s", error.text);
    text_adds(&text, "");
    for (size_t i = 0, at = 0; i <= out.mark_count; i++) {
        size_t begin = i < out.mark_count ? out.marks[i].begin : out.length;
        text_add(&text, out.data + at, begin - at);
        if (i == out.mark_count) break;
        const JinjaMark *mark = &out.marks[i];
        assert_true(mark->end >= mark->begin && mark->end <= out.length);
        text_adds(&text, mark->generated ? mark->origin == 5 ? "<" : "{" : "[");
        text_add(&text, out.data + mark->begin, mark->end - mark->begin);
        text_adds(&text, mark->generated ? mark->origin == 5 ? ">" : "}" : "]");
        at = mark->end;
    }
    jinja_run_free(run);
    jinja_close(jinja);
    return text.data;
}

static void test_marks(void **state) {
    (void)state;
    static const char *const rows[][3] = {
        {"x{{ a }}y", "hi", "x[hi]y"},
        {"x{{ a }}y", "", "x[]y"},
        {"{{ 'x' + a + 'y' }}", "hi", "x[hi]y"},
        {"{{ 'x' ~ a | trim ~ 'y' }}", "  hi ", "x[hi]y"},
        {"{{ 'x' ~ a | trim ~ 'y' }}", "  ", "x[]y"},
        {"{{ a.strip() }}{{ a.lstrip('h') }}", "hi", "[hii]"},
        {"{{ a.split('|')[-1] }}", "no|yes", "[yes]"},
        {"{{ a.split('|')[-1] }}", "no|", "[]"},
        {"{{ a | replace('-', '+') }}", "a-b", "[a]+[b]"},
        {"{{ a | upper }}{{ a[1:3] }}{{ a[::-1] }}", "abc", "[ABCbccba]"},
        {"{{ [a, 'x'] | join('-') }}", "hi", "[hi]-x"},
        {"{{ a | tojson }}", "h\"i", "\"[h\\\"i]\""},
        {"{{ [a] }}", "hi", "['[hi]']"},
        {"{{ a | indent }}", "h\ni", "[h]\n    [i]"},
        {"{% set x %}<{{ a }}>{% endset %}{{ x }}", "hi", "<[hi]>"},
        {"{% macro f(b) %}<{{ b }}>{% endmacro %}{{ f(a) }}", "hi", "<[hi]>"},
        {"{% for c in a %}{{ c }},{% endfor %}", "hi", "[h],[i],"},
        {"{{ {'k': a}.k }}{{ {'k': a}['k'] * 2 }}", "hi", "[hihihi]"},
        {"u {% generation %}x{{ a }}y{% endgeneration %} v", "hi", "u {x}<hi>{y} v"},
        {"{% generation %}{% endgeneration %}v", "hi", "{}v"},
        {"{% macro f() %}{% generation %}{{ a }}{% endgeneration %}{% endmacro %}-{{ f() }}", "hi", "-<hi>"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char *got = marked(rows[i][0], rows[i][1]);
        if (strcmp(got, rows[i][2]) != 0) print_error("%s\n", rows[i][0]);
        assert_string_equal(got, rows[i][2]);
        memory_free(got);
    }
}

static void test_date_is_pinned(void **state) {
    (void)state;
    Error error;
    char *text = render("{{ strftime_now('%d %b %Y') }}|{{ strftime_now('%Y-%m-%d %A %j') }}", "{}", &error);
    assert_string_equal(text, JINJA_DATE "|2024-07-26 Friday 208");
    memory_free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_golden), cmocka_unit_test(test_refusals),
                                       cmocka_unit_test(test_hostile), cmocka_unit_test(test_marks),
                                       cmocka_unit_test(test_date_is_pinned)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
