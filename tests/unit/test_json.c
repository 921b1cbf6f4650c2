/* The pull parser: what it accepts, what it refuses, and the exact values in between. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/memory.h"
#include "data/json.h"

/* The text in a block of exactly its size, so that the address sanitizer sees a read past its end. */
static char *exact_copy(const char *text, size_t length) {
    char *copy = memory_alloc(length);
    memcpy(copy, text, length);
    return copy;
}

/* Reads all tokens; writes a trace of one character per token. */
static Status trace(const char *text, size_t length, JsonLimits limits, char *out, size_t capacity, Error *err) {
    static const char letters[] = "$O}A]KSINTFZ";
    char *copy = exact_copy(text, length);
    JsonReader reader;
    json_open(&reader, "test", copy, length, 1, limits);
    Status status;
    size_t n = 0;
    JsonToken token;
    do {
        status = json_next(&reader, &token, err);
        if (status != OK) break;
        assert_true(n + 1 < capacity);
        out[n++] = letters[token.kind];
    } while (token.kind != JSON_END);
    out[n] = 0;
    json_close(&reader);
    memory_free(copy);
    return status;
}

static void test_accepts(void **state) {
    (void)state;
    static const struct {
        const char *text, *tokens;
    } cases[] = {
        {"{}", "O}$"},
        {" \t\r\n[ ] ", "A]$"},
        {"null", "Z$"},
        {"true", "T$"},
        {"false", "F$"},
        {"\"\"", "S$"},
        {"0", "I$"},
        {"-0", "I$"},
        {"-0.5e+10", "N$"},
        {"1E5", "N$"},
        {"[1,2.0,-3,1e2]", "AININ]$"},
        {"{\"a\":[{},[]],\"b\":{\"c\":null}}", "OKAO}A]]KOKZ}}$"},
        {"18446744073709551615", "I$"},
        {"18446744073709551616", "N$"},
        {"-9223372036854775808", "I$"},
        {"-9223372036854775809", "N$"},
        {"\"\\u0000\\\"\\\\\\/\\b\\f\\n\\r\\t\\uD83D\\uDE00\"", "S$"},
        {"\"\xF4\x8F\xBF\xBF\x7F\"", "S$"},
        {"{\"a\":1,\"a\":2}", "OKIKI}$"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char out[64];
        Error err = {0};
        Status status = trace(cases[i].text, strlen(cases[i].text), (JsonLimits){0}, out, sizeof out, &err);
        if (status != OK) fail_msg("%s: %s", cases[i].text, err.text);
        assert_string_equal(out, cases[i].tokens);
    }
}

static void test_refuses(void **state) {
    (void)state;
    static const struct {
        const char *text, *words;
    } cases[] = {
        {"", "want a value, got the end"},
        {" ", "want a value"},
        {"{", "want a key"},
        {"[", "want a value"},
        {"[1", "want ',' or ']'"},
        {"[1,]", "want a value, got ']'"},
        {"[,1]", "want a value, got ','"},
        {"[1 2]", "want ',' or ']', got '2'"},
        {"{\"a\":1,}", "want a key in double quotes, got '}'"},
        {"{\"a\" 1}", "want ':'"},
        {"{\"a\":}", "want a value, got '}'"},
        {"{a:1}", "want a key in double quotes, got 'a'"},
        {"{\"a\":1]", "want ',' or '}', got ']'"},
        {"[1}", "want ',' or ']', got '}'"},
        {"{1:2}", "want a key"},
        {"]", "want a value, got ']'"},
        {"1 1", "want nothing after the value, got '1'"},
        {"{}}", "want nothing after the value"},
        {"truf", "not true"},
        {"nul", "not null"},
        {"truex", "want nothing after the value"},
        {"True", "want a value, got 'T'"},
        {"NaN", "want a value"},
        {"Infinity", "want a value"},
        {"-Infinity", "digit after '-'"},
        {"-", "digit after '-'"},
        {"+1", "want a value, got '+'"},
        {"01", "must not start with 0"},
        {"-00", "must not start with 0"},
        {".5", "want a value, got '.'"},
        {"1.", "digit after '.'"},
        {"1.e5", "digit after '.'"},
        {"1e", "digit in its exponent"},
        {"1e+", "digit in its exponent"},
        {"0x10", "want nothing after"},
        {"1e999", "too large for a double"},
        {"'a'", "want a value"},
        {"\"", "no closing quote"},
        {"\"abc", "no closing quote"},
        {"\"abc\\", "inside an escape"},
        {"\"abc\\\"", "no closing quote"},
        {"\"\\x41\"", "unknown escape"},
        {"\"\\\xC3\xA9\"", "unknown escape"},
        {"\"\\u12\"", "four hexadecimal digits"},
        {"\"\\u12G4\"", "four hexadecimal digits"},
        {"\"\\uD800\"", "lone surrogate"},
        {"\"\\uDC00\"", "lone surrogate"},
        {"\"\\uD800\\u0041\"", "lone surrogate"},
        {"\"\\uD800\\\"", "no closing quote"},
        {"\"a\nb\"", "control character 0x0A"},
        {"\"12345678\x1F\"", "control character 0x1F"},
        {"\"\xC0\xAF\"", "ill-formed UTF-8"},
        {"\"\xED\xA0\x80\"", "ill-formed UTF-8"},
        {"\"\xF4\x90\x80\x80\"", "ill-formed UTF-8"},
        {"\"\xE2\x82\"", "ill-formed UTF-8"},
        {"\"\x80\"", "ill-formed UTF-8"},
        {"\xEF\xBB\xBF{}", "byte order mark"},
        {"[1] // x", "want nothing after"},
        {"/**/1", "want a value"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char out[64];
        Error err = {0};
        Status status = trace(cases[i].text, strlen(cases[i].text), (JsonLimits){0}, out, sizeof out, &err);
        if (status != ERR_FAILED || strstr(err.text, cases[i].words) == NULL)
            fail_msg("%s: want '%s', got status %d, '%s'", cases[i].text, cases[i].words, status, err.text);
    }
}

static void test_zero_byte_is_refused(void **state) {
    (void)state;
    static const char texts[][4] = {{'"', 0, '"', 0}, {'[', 0, ']', 0}, {'1', 0, ' ', ' '}};
    for (size_t i = 0; i < 3; i++) {
        char out[8];
        Error err = {0};
        assert_int_equal(trace(texts[i], 3, (JsonLimits){0}, out, sizeof out, &err), ERR_FAILED);
    }
}

static JsonToken only_token(JsonReader *reader, const char *text) {
    json_open(reader, "test", text, strlen(text), 1, (JsonLimits){0});
    JsonToken token;
    Error err = {0};
    Status status = json_next(reader, &token, &err);
    if (status != OK) fail_msg("%s", err.text);
    return token;
}

static void test_integers_are_exact(void **state) {
    (void)state;
    JsonReader reader;
    JsonToken token = only_token(&reader, "9007199254740993");
    assert_true(token.kind == JSON_INTEGER && token.integer == 9007199254740993);
    token = only_token(&reader, "-9223372036854775808");
    assert_true(token.integer == INT64_MIN && token.is_negative);
    token = only_token(&reader, "18446744073709551615");
    assert_true(token.unsigned_integer == UINT64_MAX && token.integer == INT64_MAX && !token.is_negative);
    assert_true(token.number == 18446744073709551616.0);
    token = only_token(&reader, "-0");
    assert_true(token.kind == JSON_INTEGER && token.is_negative && token.integer == 0 && signbit(token.number));
}

static void test_numbers_are_nearest(void **state) {
    (void)state;
    static const char *const texts[] = {
        "0.1", "1e-5", "1e-400", "5e-324", "1.7976931348623157e308", "-2.5", "123456789.125", "100000000000000000000000"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        JsonReader reader;
        JsonToken token = only_token(&reader, texts[i]);
        assert_int_equal(token.kind, JSON_NUMBER);
        assert_true(token.number == strtod(texts[i], NULL));
    }
}

static void test_long_number(void **state) {
    (void)state;
    char text[3000], out[8];
    Error err = {0};
    memset(text, '1', sizeof text);
    assert_int_equal(trace(text, 300, (JsonLimits){0}, out, sizeof out, &err), OK);
    assert_string_equal(out, "N$");
    assert_int_equal(trace(text, sizeof text, (JsonLimits){0}, out, sizeof out, &err), ERR_FAILED);
    assert_non_null(strstr(err.text, "longer than 1024"));
}

static void test_strings_decode(void **state) {
    (void)state;
    static const struct {
        const char *text, *want;
        size_t length;
    } cases[] = {
        {"\"plain text of some length\"", "plain text of some length", 25},
        {"\"a\\u00e9\\u20AC\\ud83d\\ude00z\"", "a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80z", 11},
        {"\"\\n\\t\\\"\\\\\\/\"", "\n\t\"\\/", 5},
        {"\"x\\u0000y\"", "x\0y", 3},
        {"\"12345678\\n12345678\"", "12345678\n12345678", 17},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        JsonReader reader;
        JsonToken token = only_token(&reader, cases[i].text);
        assert_int_equal(token.length, cases[i].length);
        assert_memory_equal(token.text, cases[i].want, cases[i].length);
        json_close(&reader);
    }
}

static void test_string_without_escapes_is_not_copied(void **state) {
    (void)state;
    static const char text[] = "\"no copy \xC3\xA9 here\"";
    JsonReader reader;
    JsonToken token = only_token(&reader, text);
    assert_ptr_equal(token.text, text + 1);
    assert_null(reader.scratch);
}

/* Every special byte at every place of the eight-byte steps. */
static void test_fast_path_finds_every_byte(void **state) {
    (void)state;
    static const unsigned char special[] = {'"', '\\', 0x00, 0x1F, 0x0A, 0x80, 0xC3, 0xFF};
    static const unsigned char plain[] = {' ', '!', '#', '[', ']', 0x7F, 'a'};
    for (size_t s = 0; s < sizeof special; s++)
        for (size_t p = 0; p < sizeof plain; p++)
            for (size_t at = 0; at < 20; at++) {
                char text[32], out[8];
                Error err = {0};
                text[0] = '"';
                memset(text + 1, plain[p], 20);
                text[21] = '"';
                text[1 + at] = (char)special[s];
                Status status = trace(text, 22, (JsonLimits){0}, out, sizeof out, &err);
                if (special[s] == '"' && at == 19) continue; /* the string, then an unterminated one: also refused */
                if (status == OK) fail_msg("byte 0x%02X among 0x%02X at %zu was accepted", special[s], plain[p], at);
            }
    for (size_t p = 0; p < sizeof plain; p++)
        for (size_t length = 0; length < 30; length++) {
            char text[32], out[8];
            Error err = {0};
            memset(text, plain[p], sizeof text);
            text[0] = text[1 + length] = '"';
            assert_int_equal(trace(text, length + 2, (JsonLimits){0}, out, sizeof out, &err), OK);
        }
}

static void test_depth(void **state) {
    (void)state;
    char text[200], out[256];
    Error err = {0};
    memset(text, '[', 64);
    memset(text + 64, ']', 64);
    assert_int_equal(trace(text, 128, (JsonLimits){0}, out, sizeof out, &err), OK);
    memset(text, '[', 65);
    memset(text + 65, ']', 65);
    assert_int_equal(trace(text, 130, (JsonLimits){0}, out, sizeof out, &err), ERR_FAILED);
    assert_non_null(strstr(err.text, "deeper than the 64"));
    assert_int_equal(trace("[[]]", 4, (JsonLimits){.depth = 2}, out, sizeof out, &err), OK);
    assert_int_equal(trace("[[[]]]", 6, (JsonLimits){.depth = 2}, out, sizeof out, &err), ERR_FAILED);
}

static void test_string_limit(void **state) {
    (void)state;
    char out[8];
    Error err = {0};
    JsonLimits limits = {.string_bytes = 4};
    assert_int_equal(trace("\"1234\"", 6, limits, out, sizeof out, &err), OK);
    assert_int_equal(trace("\"12345\"", 7, limits, out, sizeof out, &err), ERR_FAILED);
    assert_int_equal(trace("\"\\u0031\\u0032\\u0033\\u0034\"", 26, limits, out, sizeof out, &err), OK);
    assert_int_equal(trace("\"\\u0031\\u0032\\u0033\\u0034\\u0035\"", 32, limits, out, sizeof out, &err), ERR_FAILED);
    assert_int_equal(trace("{\"12345\":1}", 11, limits, out, sizeof out, &err), ERR_FAILED);
}

static void test_lines_and_depths(void **state) {
    (void)state;
    static const char text[] = "{\n\"a\": [1,\n\n2],\n\"b\"\n:\n3}\n";
    static const struct {
        JsonKind kind;
        int line, depth;
    } want[] = {{JSON_OBJECT_BEGIN, 10, 0}, {JSON_KEY, 11, 1},       {JSON_ARRAY_BEGIN, 11, 1}, {JSON_INTEGER, 11, 2},
                {JSON_INTEGER, 13, 2},      {JSON_ARRAY_END, 13, 1}, {JSON_KEY, 14, 1},         {JSON_INTEGER, 16, 1},
                {JSON_OBJECT_END, 16, 0},   {JSON_END, 17, 0},       {JSON_END, 17, 0}};
    JsonReader reader;
    Error err = {0};
    json_open(&reader, "test", text, sizeof text - 1, 10, (JsonLimits){0});
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        JsonToken token;
        assert_int_equal(json_next(&reader, &token, &err), OK);
        assert_int_equal(token.kind, want[i].kind);
        assert_int_equal(token.line, want[i].line);
        assert_int_equal(token.depth, want[i].depth);
    }
    json_close(&reader);
}

static void test_skip(void **state) {
    (void)state;
    static const char text[] = "{\"a\":{\"x\":[1,{\"y\":[]}]},\"b\":7,\"c\":[[],[1]],\"d\":1}";
    JsonReader reader;
    JsonToken token;
    Error err = {0};
    json_open(&reader, "test", text, sizeof text - 1, 1, (JsonLimits){0});
    assert_int_equal(json_next(&reader, &token, &err), OK);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(json_expect(&reader, JSON_KEY, "key", &token, &err), OK);
        assert_true(token.text[0] == 'a' + i);
        if (i == 2) assert_int_equal(json_next(&reader, &token, &err), OK); /* skip from the BEGIN instead of the key */
        assert_int_equal(json_skip(&reader, &token, &err), OK);
    }
    assert_int_equal(json_expect(&reader, JSON_OBJECT_END, "end", &token, &err), OK);
    assert_int_equal(json_expect(&reader, JSON_END, "end", &token, &err), OK);
    json_close(&reader);
}

static void test_conveniences(void **state) {
    (void)state;
    static const char text[] = "[\"x\",5,300,18446744073709551615,1.5,2,true,null]";
    JsonReader reader;
    JsonToken token;
    Error err = {0};
    char *string = NULL;
    size_t length = 0;
    int64_t integer = 0;
    double number = 0;
    int flag = 0;
    json_open(&reader, "conf", text, sizeof text - 1, 1, (JsonLimits){0});
    assert_int_equal(json_expect(&reader, JSON_ARRAY_BEGIN, "list", &token, &err), OK);
    assert_int_equal(json_get_string(&reader, "s", &string, &length, &err), OK);
    assert_string_equal(string, "x");
    assert_int_equal(length, 1);
    memory_free(string);
    assert_int_equal(json_get_integer(&reader, "five", 0, 10, &integer, &err), OK);
    assert_int_equal(integer, 5);
    assert_int_equal(json_get_integer(&reader, "big", 0, 10, &integer, &err), ERR_FAILED);
    assert_string_equal(err.text, "conf: line 1: big: want an integer from 0 to 10, got 300");
    assert_int_equal(json_get_integer(&reader, "huge", INT64_MIN, INT64_MAX, &integer, &err), ERR_FAILED);
    assert_non_null(strstr(err.text, "got 18446744073709551615"));
    assert_int_equal(json_get_number(&reader, "n", &number, &err), OK);
    assert_true(number == 1.5);
    assert_int_equal(json_get_number(&reader, "n", &number, &err), OK);
    assert_true(number == 2.0);
    assert_int_equal(json_get_bool(&reader, "b", &flag, &err), OK);
    assert_int_equal(flag, 1);
    assert_int_equal(json_get_bool(&reader, "b", &flag, &err), ERR_FAILED);
    assert_string_equal(err.text, "conf: line 1: b: want true or false, got null");
    assert_int_equal(json_get_number(&reader, "n", &number, &err), ERR_FAILED);
    assert_non_null(strstr(err.text, "want a number, got the end of an array"));
    json_close(&reader);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_accepts),
        cmocka_unit_test(test_refuses),
        cmocka_unit_test(test_zero_byte_is_refused),
        cmocka_unit_test(test_integers_are_exact),
        cmocka_unit_test(test_numbers_are_nearest),
        cmocka_unit_test(test_long_number),
        cmocka_unit_test(test_strings_decode),
        cmocka_unit_test(test_string_without_escapes_is_not_copied),
        cmocka_unit_test(test_fast_path_finds_every_byte),
        cmocka_unit_test(test_depth),
        cmocka_unit_test(test_string_limit),
        cmocka_unit_test(test_lines_and_depths),
        cmocka_unit_test(test_skip),
        cmocka_unit_test(test_conveniences),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
