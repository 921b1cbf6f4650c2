/* Filters over single values, and the tests. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "data/jinja_internal.h"

/* ---- filters ------------------------------------------------------------------------------------------------------------- */

static Status filter_length(JinjaRun *run, JinjaValue value, JinjaValue *out) {
    int64_t length = 0;
    if (value.kind == V_STRING) {
        TRY(run_steps(run, string_of(value)->length));
        length = string_count(string_of(value));
    } else if (value.kind == V_LIST) {
        length = list_of(value)->count;
    } else if (value.kind == V_DICT) {
        length = dict_of(value)->count;
    } else if (value.kind != V_UNDEFINED) {
        REFUSE(run, "a %s has no length", value_type(value));
    }
    *out = value_integer(length);
    return OK;
}

static Status take_style_text(JinjaRun *run, JinjaValue value, const String **out) {
    if (value.kind != V_STRING) REFUSE(run, "tojson: separators are two strings");
    *out = string_of(value);
    return OK;
}

static Status take_separators(JinjaRun *run, JinjaValue value, JsonStyle *style) {
    if (value.kind == V_UNDEFINED || value.kind == V_NONE) return OK;
    if (value.kind != V_LIST || list_of(value)->count != 2) REFUSE(run, "tojson: separators are two strings");
    TRY(take_style_text(run, list_of(value)->items[0], &style->between));
    return take_style_text(run, list_of(value)->items[1], &style->colon);
}

static Status filter_tojson(JinjaRun *run, JinjaValue value, Arguments arguments, JinjaValue *out) {
    JinjaValue bound[4], indent;
    static const String comma = {.data = ",", .length = 1}, comma_space = {.data = ", ", .length = 2},
                        colon = {.data = ": ", .length = 2};
    JsonStyle style = {.between = &comma_space, .colon = &colon};
    Builder b = {0};
    int64_t width;
    TRY(arguments_bind(run, "tojson", arguments, "ensure_ascii indent separators sort_keys", 0, bound));
    TRY(value_truth(run, bound[0], &style.ascii));
    TRY(value_truth(run, bound[3], &style.sorts));
    if (bound[1].kind == V_STRING) {
        style.indent = string_of(bound[1]);
    } else if (value_integral(bound[1], &width)) {
        if (width > 64) REFUSE(run, "tojson: an indent over 64 is not supported");
        TRY(value_string(run, "                                                                ", &indent));
        ((String *)indent.pointer)->length = width < 0 ? 0 : (size_t)width;
        style.indent = string_of(indent);
    }
    if (style.indent != NULL) style.between = &comma;
    TRY(take_separators(run, bound[2], &style));
    TRY(build_json(run, &b, value, &style, 0));
    return build_done(run, &b, out);
}

static Status filter_default(JinjaRun *run, JinjaValue value, Arguments arguments, JinjaValue *out) {
    JinjaValue bound[2];
    int any_false, truth;
    TRY(arguments_bind(run, "default", arguments, "default_value boolean", 0, bound));
    TRY(value_truth(run, bound[1], &any_false));
    TRY(value_truth(run, value, &truth));
    *out = value;
    if (value.kind != V_UNDEFINED && !(any_false && !truth)) return OK;
    *out = bound[0];
    return bound[0].kind == V_UNDEFINED && arguments.given->count == 0 ? value_string(run, "", out) : OK;
}

/* A whole string as a number; 0 when it is none. */
static int parse_number(const String *s, double *out) {
    char text[64], *end;
    size_t begin = 0, n = s->length;
    while (begin < n && is_python_space((uint8_t)s->data[begin]) && (uint8_t)s->data[begin] < 0x80)
        begin++;
    while (n > begin && is_python_space((uint8_t)s->data[n - 1]) && (uint8_t)s->data[n - 1] < 0x80)
        n--;
    if (n == begin || n - begin >= sizeof text || strspn(s->data + begin, "+-0123456789.eE") < n - begin) return 0;
    memcpy(text, s->data + begin, n - begin);
    text[n - begin] = 0;
    *out = strtod(text, &end);
    return *end == 0 && end != text;
}

static Status filter_int(JinjaRun *run, JinjaValue value, Arguments arguments, JinjaValue *out) {
    JinjaValue bound[2];
    double number = 0;
    TRY(arguments_bind(run, "int", arguments, "default base", 0, bound));
    if (bound[1].kind != V_UNDEFINED) REFUSE(run, "int with a base is not supported");
    if (value_integral(value, &out->integer)) {
        *out = value_integer(out->integer);
        return OK;
    }
    int is_number = value.kind == V_STRING ? parse_number(string_of(value), &number) : value_number(value, &number);
    if (is_number && fabs(number) > 9007199254740992.0) REFUSE(run, "int of a number over 2^53 is not supported");
    if (is_number && isnan(number)) is_number = 0;
    *out = is_number ? value_integer((int64_t)number) : bound[0].kind == V_UNDEFINED ? value_integer(0) : bound[0];
    return OK;
}

static Status filter_float(JinjaRun *run, JinjaValue value, Arguments arguments, JinjaValue *out) {
    JinjaValue fallback;
    double number = 0;
    TRY(arguments_bind(run, "float", arguments, "default", 0, &fallback));
    int is_number = value.kind == V_STRING ? parse_number(string_of(value), &number) : value_number(value, &number);
    *out = is_number ? value_float(number) : fallback.kind == V_UNDEFINED ? value_float(0) : fallback;
    return OK;
}

static Status filter_indent(JinjaRun *run, const String *s, Arguments arguments, JinjaValue *out) {
    JinjaValue bound[3], unit;
    int64_t width = 4;
    int first, blank;
    List *lines;
    Builder b = {0}, space = {0};
    TRY(arguments_bind(run, "indent", arguments, "width first blank", 0, bound));
    TRY(value_truth(run, bound[1], &first));
    TRY(value_truth(run, bound[2], &blank));
    if (bound[0].kind == V_STRING) {
        unit = bound[0];
    } else {
        if (bound[0].kind != V_UNDEFINED && !value_integral(bound[0], &width)) REFUSE(run, "indent wants a width");
        for (int64_t i = 0; i < width; i++)
            TRY(build_text(run, &space, " "));
        TRY(build_done(run, &space, &unit));
    }
    Builder whole = {0};
    JinjaValue text;
    TRY(build_string(run, &whole, s));
    TRY(build_text(run, &whole, "\n"));
    TRY(build_done(run, &whole, &text));
    TRY(string_lines(run, string_of(text), &lines));
    for (int64_t i = 0; i < lines->count; i++) {
        const String *line = string_of(lines->items[i]);
        if (i > 0) TRY(build_text(run, &b, "\n"));
        if (i == 0 ? first : (blank || line->length > 0)) TRY(build_string(run, &b, string_of(unit)));
        TRY(build_string(run, &b, line));
    }
    return build_done(run, &b, out);
}

static Status filter_safe(JinjaRun *run, const String *s, int escapes, JinjaValue *out) {
    Builder b = {0};
    for (size_t at = 0; at < s->length; at++) {
        static const char special[] = "&<>'\"";
        static const char *const escaped[] = {"&amp;", "&lt;", "&gt;", "&#39;", "&#34;"};
        const char *found = escapes && !s->is_safe && s->data[at] != 0 ? strchr(special, s->data[at]) : NULL;
        TRY(run_steps(run, 0));
        for (const char *p = found != NULL ? escaped[found - special] : ""; *p != 0; p++)
            TRY(build_code(run, &b, (uint8_t)*p, s, at));
        if (found == NULL) TRY(build_slice(run, &b, s, at, at + 1));
    }
    if (s->length == 0) TRY(build_string(run, &b, s));
    TRY(build_done(run, &b, out));
    ((String *)out->pointer)->is_safe = 1;
    return OK;
}

static Status filter_text(JinjaRun *run, const char *name, const String *s, Arguments arguments, JinjaValue *out) {
    JinjaValue bound[3];
    int64_t most = -1;
    if (strcmp(name, "trim") == 0) {
        TRY(arguments_bind(run, name, arguments, "chars", 0, bound));
        if (bound[0].kind != V_UNDEFINED && bound[0].kind != V_NONE && bound[0].kind != V_STRING)
            REFUSE(run, "trim wants characters");
        return string_strip(run, s, bound[0].kind == V_STRING ? string_of(bound[0]) : NULL, 3, out);
    }
    if (strcmp(name, "replace") == 0) {
        TRY(arguments_bind(run, name, arguments, "old new count", 2, bound));
        TRY(value_text(run, bound[0], &bound[0]));
        TRY(value_text(run, bound[1], &bound[1]));
        if (bound[2].kind != V_UNDEFINED && bound[2].kind != V_NONE && !value_integral(bound[2], &most))
            REFUSE(run, "replace: count wants an integer");
        return string_replace(run, s, string_of(bound[0]), string_of(bound[1]), most, out);
    }
    if (strcmp(name, "indent") == 0) return filter_indent(run, s, arguments, out);
    TRY(arguments_bind(run, name, arguments, "", 0, NULL));
    if (strcmp(name, "safe") == 0) return filter_safe(run, s, 0, out);
    if (strcmp(name, "escape") == 0 || strcmp(name, "e") == 0) return filter_safe(run, s, 1, out);
    return string_case(run, s,
                       strcmp(name, "upper") == 0   ? CASE_UPPER
                       : strcmp(name, "lower") == 0 ? CASE_LOWER
                       : strcmp(name, "title") == 0 ? CASE_TITLE_FILTER
                                                    : CASE_CAPITALIZE,
                       out);
}

static Status filter_absolute(JinjaRun *run, JinjaValue value, JinjaValue *out) {
    int64_t integer;
    if (value.kind == V_FLOAT) {
        *out = value_float(fabs(value.number));
        return OK;
    }
    if (!value_integral(value, &integer) || integer == INT64_MIN)
        REFUSE(run, "abs wants a number, got a %s", value_type(value));
    *out = value_integer(integer < 0 ? -integer : integer);
    return OK;
}

static const char value_filters[] = " length count tojson default d string int float abs ";
static const char text_filters[] = " trim replace indent safe escape e upper lower title capitalize ";

int filter_exists(const char *name) {
    return is_word(value_filters, name) || is_word(text_filters, name) || filter_list_exists(name);
}

Status filter_apply(JinjaRun *run, const char *name, JinjaValue value, Arguments arguments, JinjaValue *out) {
    int known;
    TRY(run_enter(run));
    int is_safe = value.kind == V_STRING && string_of(value)->is_safe;
    if (is_safe && !is_word(" safe escape e string length count default d ", name))
        REFUSE(run, "the filter %s on text that is marked safe is not supported", name);
    TRY(filter_list_apply(run, name, value, arguments, out, &known));
    run->depth--;
    if (known) return OK;
    if (is_word(text_filters, name)) {
        JinjaValue text;
        TRY(value_text(run, value, &text));
        return filter_text(run, name, string_of(text), arguments, out);
    }
    if (strcmp(name, "tojson") == 0) return filter_tojson(run, value, arguments, out);
    if (strcmp(name, "default") == 0 || strcmp(name, "d") == 0) return filter_default(run, value, arguments, out);
    if (strcmp(name, "int") == 0) return filter_int(run, value, arguments, out);
    if (strcmp(name, "float") == 0) return filter_float(run, value, arguments, out);
    TRY(arguments_bind(run, name, arguments, "", 0, NULL));
    if (strcmp(name, "string") == 0) return value_text(run, value, out);
    if (strcmp(name, "abs") == 0) return filter_absolute(run, value, out);
    return filter_length(run, value, out);
}

/* ---- tests --------------------------------------------------------------------------------------------------------------- */

static const char kind_tests[] =
    " defined undefined none string number integer float boolean true false mapping sequence iterable callable ";
static const char compare_tests[] = " eq equalto == ne != lt lessthan < le <= gt greaterthan > ge >= sameas in divisibleby ";
static const char other_tests[] = " odd even lower upper ";

int test_exists(const char *name) {
    return is_word(kind_tests, name) || is_word(compare_tests, name) || is_word(other_tests, name);
}

static int test_kind(const char *name, JinjaValue value) {
    int kind = value.kind;
    if (strcmp(name, "defined") == 0) return kind != V_UNDEFINED;
    if (strcmp(name, "undefined") == 0) return kind == V_UNDEFINED;
    if (strcmp(name, "none") == 0) return kind == V_NONE;
    if (strcmp(name, "string") == 0) return kind == V_STRING;
    if (strcmp(name, "number") == 0) return kind == V_INTEGER || kind == V_FLOAT || kind == V_BOOL;
    if (strcmp(name, "integer") == 0) return kind == V_INTEGER;
    if (strcmp(name, "float") == 0) return kind == V_FLOAT;
    if (strcmp(name, "boolean") == 0) return kind == V_BOOL;
    if (strcmp(name, "true") == 0) return kind == V_BOOL && value.integer;
    if (strcmp(name, "false") == 0) return kind == V_BOOL && !value.integer;
    if (strcmp(name, "mapping") == 0) return kind == V_DICT;
    if (strcmp(name, "callable") == 0)
        return kind == V_MACRO || kind == V_METHOD || kind == V_FUNCTION || kind == V_LOOP || kind == V_UNDEFINED;
    int indexed = kind == V_STRING || kind == V_DICT || kind == V_UNDEFINED;
    if (strcmp(name, "sequence") == 0) return indexed || (kind == V_LIST && value.form <= FORM_RANGE);
    return indexed || kind == V_LIST || kind == V_GENERATOR || kind == V_LOOP;
}

static Status test_compare(JinjaRun *run, const char *name, JinjaValue value, JinjaValue other, int *out) {
    int64_t a, b;
    int order;
    if (strcmp(name, "in") == 0) return evaluate_contains(run, value, other, out);
    if (strcmp(name, "divisibleby") == 0) {
        if (!value_integral(value, &a) || !value_integral(other, &b) || b == 0)
            REFUSE(run, "divisibleby wants integers, not 0");
        *out = b == -1 || a % b == 0;
        return OK;
    }
    if (strcmp(name, "sameas") == 0) {
        if (value.kind > V_BOOL || other.kind > V_BOOL) REFUSE(run, "sameas is supported for true, false and none only");
        *out = value.kind == other.kind && (value.kind != V_BOOL || value.integer == other.integer);
        return OK;
    }
    int equality = is_word(" eq equalto == ", name), inequality = is_word(" ne != ", name);
    if (equality || inequality) {
        TRY(value_equal(run, value, other, out));
        *out ^= inequality;
        return OK;
    }
    TRY(value_order(run, value, other, &order));
    *out = is_word(" lt lessthan < ", name)      ? order < 0
           : is_word(" gt greaterthan > ", name) ? order > 0
           : is_word(" le <= ", name)            ? order <= 0
                                                 : order >= 0;
    return OK;
}

/* Whether all ASCII letters have that case and there is one; other letters are refused. */
static Status test_case(JinjaRun *run, int upper, JinjaValue value, int *out) {
    TRY(value_text(run, value, &value));
    const String *s = string_of(value);
    int letters = 0, others = 0;
    TRY(run_steps(run, s->length));
    for (size_t i = 0; i < s->length; i++) {
        char c = s->data[i];
        if ((uint8_t)c >= 0x80) REFUSE(run, "the tests lower and upper are supported for ASCII only");
        letters += upper ? c >= 'A' && c <= 'Z' : c >= 'a' && c <= 'z';
        others += upper ? c >= 'a' && c <= 'z' : c >= 'A' && c <= 'Z';
    }
    *out = letters > 0 && others == 0;
    return OK;
}

Status test_apply(JinjaRun *run, const char *name, JinjaValue value, Arguments arguments, int *out) {
    JinjaValue other;
    int64_t integer;
    if (is_word(compare_tests, name)) {
        TRY(arguments_bind(run, name, arguments, "other", 1, &other));
        return test_compare(run, name, value, other, out);
    }
    TRY(arguments_bind(run, name, arguments, "", 0, NULL));
    if (is_word(kind_tests, name)) {
        *out = test_kind(name, value);
        return OK;
    }
    if (strcmp(name, "lower") == 0 || strcmp(name, "upper") == 0) return test_case(run, name[0] == 'u', value, out);
    if (!value_integral(value, &integer)) REFUSE(run, "%s wants an integer, got a %s", name, value_type(value));
    *out = (integer % 2 != 0) == (name[0] == 'o');
    return OK;
}
