/* Values as text: Python's str and repr, and json.dumps as transformers' tojson calls it. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

#include "data/jinja_internal.h"

/* The shortest digits that give the same double, in Python's form. */
static void print_float(double number, char out[64]) {
    char digits[40], *mark;
    if (isnan(number) || isinf(number)) {
        (void)snprintf(out, 64, "%s", isnan(number) ? "nan" : number > 0 ? "inf" : "-inf");
        return;
    }
    int precision = 0;
    do
        (void)snprintf(digits, sizeof digits, "%.*e", precision, number);
    while (strtod(digits, NULL) != number && ++precision < 17);
    mark = strchr(digits, 'e');
    int exponent = atoi(mark + 1);
    if (exponent < -4 || exponent >= 16) {
        *mark = 0;
        (void)snprintf(out, 64, "%se%c%02d", digits, exponent < 0 ? '-' : '+', abs(exponent));
    } else {
        int places = precision - exponent;
        (void)snprintf(out, 64, "%.*f", places < 1 ? 1 : places, number);
    }
}

static Status build_number(JinjaRun *run, Builder *b, JinjaValue value, int is_json) {
    char text[64];
    if (value.kind == V_BOOL) {
        return build_text(run, b, is_json ? (value.integer ? "true" : "false") : (value.integer ? "True" : "False"));
    }
    if (value.kind == V_INTEGER) {
        (void)snprintf(text, sizeof text, "%lld", (long long)value.integer);
    } else if (is_json && !isfinite(value.number)) {
        (void)snprintf(text, sizeof text, "%s", isnan(value.number) ? "NaN" : value.number > 0 ? "Infinity" : "-Infinity");
    } else {
        print_float(value.number, text);
    }
    return build_text(run, b, text);
}

static int is_printable(uint32_t code) {
    if (code == ' ') return 1;
    switch (utf8proc_category((utf8proc_int32_t)code)) {
        case UTF8PROC_CATEGORY_CC:
        case UTF8PROC_CATEGORY_CF:
        case UTF8PROC_CATEGORY_CS:
        case UTF8PROC_CATEGORY_CO:
        case UTF8PROC_CATEGORY_CN:
        case UTF8PROC_CATEGORY_ZL:
        case UTF8PROC_CATEGORY_ZP:
        case UTF8PROC_CATEGORY_ZS: return 0;
        default: return 1;
    }
}

static const char *short_escape(uint32_t code, int is_json) {
    switch (code) {
        case '\n': return "\\n";
        case '\r': return "\\r";
        case '\t': return "\\t";
        case '\\': return "\\\\";
        case '\b': return is_json ? "\\b" : NULL;
        case '\f': return is_json ? "\\f" : NULL;
        case '"': return is_json ? "\\\"" : NULL;
        default: return NULL;
    }
}

static void long_escape(uint32_t code, int is_json, char out[16]) {
    if (!is_json) {
        (void)snprintf(out, 16, code < 0x100 ? "\\x%02x" : code < 0x10000 ? "\\u%04x" : "\\U%08x", (unsigned)code);
    } else if (code < 0x10000) {
        (void)snprintf(out, 16, "\\u%04x", (unsigned)code);
    } else {
        (void)snprintf(out, 16, "\\u%04x\\u%04x", (unsigned)(0xD800 + ((code - 0x10000) >> 10)),
                       (unsigned)(0xDC00 + (code & 0x3FF)));
    }
}

/* Stretches without escapes are copied whole; an escape takes the mark of what it stands for. */
static Status build_quoted(JinjaRun *run, Builder *b, const String *s, char quote, int is_json, int ascii) {
    char made[16];
    size_t begin = 0, n;
    uint32_t code;
    TRY(run_steps(run, s->length * 8));
    TRY(build_bytes(run, b, &quote, 1));
    for (size_t at = 0; at < s->length; at += n) {
        n = string_next(s, at, &code);
        const char *escape = short_escape(code, is_json);
        int escapes = escape != NULL || (!is_json && (code == (uint8_t)quote || !is_printable(code))) ||
                      (is_json && (code < 0x20 || (ascii && code > 0x7E)));
        if (!escapes) continue;
        if (at > begin) TRY(build_slice(run, b, s, begin, at));
        if (escape == NULL && code == (uint8_t)quote) escape = "\\'";
        if (escape == NULL) {
            long_escape(code, is_json, made);
            escape = made;
        }
        for (; *escape != 0; escape++)
            TRY(build_code(run, b, (uint8_t)*escape, s, at));
        begin = at + n;
    }
    if (begin < s->length || s->length == 0) TRY(build_slice(run, b, s, begin, s->length));
    return build_bytes(run, b, &quote, 1);
}

static Status repr_items(JinjaRun *run, Builder *b, JinjaValue value) {
    static const char *const opens[] = {"[", "(", "range(", "dict_keys([", "dict_values([", "dict_items(["};
    static const char *const closes[] = {"]", ")", ")", "])", "])", "])"};
    const List *list = list_of(value);
    if (value.form == FORM_RANGE) REFUSE(run, "printing a range is not supported; make it a list");
    TRY(build_text(run, b, opens[value.form]));
    for (int64_t i = 0; i < list->count; i++) {
        if (i > 0) TRY(build_text(run, b, ", "));
        TRY(build_repr(run, b, list->items[i]));
    }
    if (value.form == FORM_TUPLE && list->count == 1) TRY(build_text(run, b, ","));
    return build_text(run, b, closes[value.form]);
}

static Status repr_dict(JinjaRun *run, Builder *b, const Dict *dict) {
    for (int64_t i = 0; i < dict->count; i++) {
        TRY(build_text(run, b, i > 0 ? ", " : "{"));
        TRY(build_repr(run, b, dict->keys[i]));
        TRY(build_text(run, b, ": "));
        TRY(build_repr(run, b, dict->values[i]));
    }
    return build_text(run, b, dict->count == 0 ? "{}" : "}");
}

Status build_repr(JinjaRun *run, Builder *b, JinjaValue value) {
    const String *s;
    TRY(run_enter(run));
    switch (value.kind) {
        case V_UNDEFINED: TRY(build_text(run, b, "Undefined")); break;
        case V_NONE: TRY(build_text(run, b, "None")); break;
        case V_BOOL:
        case V_INTEGER:
        case V_FLOAT: TRY(build_number(run, b, value, 0)); break;
        case V_STRING:
            s = string_of(value);
            if (s->is_safe) REFUSE(run, "printing a list with text that is marked safe is not supported");
            int single = s->length > 0 && memchr(s->data, '\'', s->length) != NULL && memchr(s->data, '"', s->length) == NULL;
            TRY(build_quoted(run, b, s, single ? '"' : '\'', 0, 0));
            break;
        case V_LIST: TRY(repr_items(run, b, value)); break;
        case V_DICT: TRY(repr_dict(run, b, dict_of(value))); break;
        default: REFUSE(run, "a %s cannot be printed", value_type(value));
    }
    run->depth--;
    return OK;
}

Status build_value(JinjaRun *run, Builder *b, JinjaValue value) {
    if (value.kind == V_UNDEFINED) return OK;
    return value.kind == V_STRING ? build_string(run, b, string_of(value)) : build_repr(run, b, value);
}

Status value_text(JinjaRun *run, JinjaValue value, JinjaValue *out) {
    Builder b = {0};
    *out = value;
    if (value.kind == V_STRING) return OK;
    TRY(build_value(run, &b, value));
    return build_done(run, &b, out);
}

/* ---- JSON ---------------------------------------------------------------------------------------------------------------- */

static Status json_line(JinjaRun *run, Builder *b, const JsonStyle *style, int64_t level) {
    if (style->indent == NULL) return OK;
    TRY(build_text(run, b, "\n"));
    for (int64_t i = 0; i < level; i++)
        TRY(build_string(run, b, style->indent));
    return OK;
}

static Status json_list(JinjaRun *run, Builder *b, const List *list, const JsonStyle *style, int64_t level) {
    if (list->count == 0) return build_text(run, b, "[]");
    for (int64_t i = 0; i < list->count; i++) {
        TRY(i == 0 ? build_text(run, b, "[") : build_string(run, b, style->between));
        TRY(json_line(run, b, style, level + 1));
        TRY(build_json(run, b, list->items[i], style, level + 1));
    }
    TRY(json_line(run, b, style, level));
    return build_text(run, b, "]");
}

/* The order of keys: that of insertion, or sorted. */
static Status json_order(JinjaRun *run, const Dict *dict, int sorts, int64_t **out) {
    int64_t *order;
    TRY(run_take(run, (size_t)dict->count * sizeof *order, &order));
    *out = order;
    for (int64_t i = 0; i < dict->count; i++) {
        int64_t at = i;
        for (int before = 1; sorts && at > 0; at--) {
            TRY(value_order(run, dict->keys[order[at - 1]], dict->keys[i], &before));
            if (before <= 0) break;
            order[at] = order[at - 1];
        }
        order[at] = i;
    }
    return OK;
}

static Status json_key(JinjaRun *run, Builder *b, JinjaValue key, const JsonStyle *style) {
    if (key.kind == V_STRING) return build_json(run, b, key, style, 0);
    if (key.kind != V_INTEGER && key.kind != V_BOOL && key.kind != V_NONE && key.kind != V_FLOAT)
        REFUSE(run, "tojson: a %s cannot be a key", value_type(key));
    TRY(build_text(run, b, "\""));
    TRY(build_json(run, b, key, style, 0));
    return build_text(run, b, "\"");
}

static Status json_dict(JinjaRun *run, Builder *b, const Dict *dict, const JsonStyle *style, int64_t level) {
    int64_t *order;
    if (dict->count == 0) return build_text(run, b, "{}");
    TRY(json_order(run, dict, style->sorts, &order));
    for (int64_t i = 0; i < dict->count; i++) {
        TRY(i == 0 ? build_text(run, b, "{") : build_string(run, b, style->between));
        TRY(json_line(run, b, style, level + 1));
        TRY(json_key(run, b, dict->keys[order[i]], style));
        TRY(build_string(run, b, style->colon));
        TRY(build_json(run, b, dict->values[order[i]], style, level + 1));
    }
    TRY(json_line(run, b, style, level));
    return build_text(run, b, "}");
}

Status build_json(JinjaRun *run, Builder *b, JinjaValue value, const JsonStyle *style, int64_t level) {
    TRY(run_enter(run));
    if (value.kind == V_NONE) {
        TRY(build_text(run, b, "null"));
    } else if (value.kind == V_BOOL || value.kind == V_INTEGER || value.kind == V_FLOAT) {
        TRY(build_number(run, b, value, 1));
    } else if (value.kind == V_STRING) {
        TRY(build_quoted(run, b, string_of(value), '"', 1, style->ascii));
    } else if (value.kind == V_LIST && value.form <= FORM_TUPLE) {
        TRY(json_list(run, b, list_of(value), style, level));
    } else if (value.kind == V_DICT) {
        TRY(json_dict(run, b, dict_of(value), style, level));
    } else {
        REFUSE(run, "tojson: a %s is no JSON", value_type(value));
    }
    run->depth--;
    return OK;
}
