/* What a template finds without being given it: functions, and the methods of strings, dicts and lists. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "data/jinja_internal.h"

static const char *const functions[] = {"range", "dict", "namespace", "raise_exception", "strftime_now", NULL};

int global_find(const char *name, JinjaValue *out) {
    for (int i = 0; functions[i] != NULL; i++) {
        if (strcmp(functions[i], name) != 0) continue;
        *out = (JinjaValue){.kind = V_FUNCTION, .name = functions[i]};
        return 1;
    }
    return 0;
}

static Status call_range(JinjaRun *run, Arguments arguments, JinjaValue *out) {
    JinjaValue bound[3];
    int64_t begin = 0, end, step = 1;
    List *list;
    TRY(arguments_bind(run, "range", arguments, "start stop step", 1, bound));
    int one = bound[1].kind == V_UNDEFINED;
    if (!value_integral(bound[one ? 0 : 1], &end) || (!one && !value_integral(bound[0], &begin)) ||
        (bound[2].kind != V_UNDEFINED && !value_integral(bound[2], &step)))
        REFUSE(run, "range wants integers");
    if (step == 0) REFUSE(run, "range: the step is 0");
    TRY(list_new(run, 0, &list));
    for (int64_t at = begin; step > 0 ? at < end : at > end;) {
        if (list->count == JINJA_RANGE_MAX) REFUSE(run, "a range is longer than %d", JINJA_RANGE_MAX);
        TRY(list_push(run, list, value_integer(at)));
        if (__builtin_add_overflow(at, step, &at)) break;
    }
    *out = value_pointer(V_LIST, FORM_RANGE, list);
    return OK;
}

/* dict(other, a=1) and namespace(other, a=1) */
static Status call_dict(JinjaRun *run, const char *name, int kind, Arguments arguments, JinjaValue *out) {
    Dict *dict;
    TRY(dict_new(run, &dict));
    if (arguments.given->count > 1) REFUSE(run, "%s takes one argument without a name", name);
    if (arguments.given->count == 1) {
        JinjaValue from = arguments.given->items[0];
        if (from.kind != V_DICT) REFUSE(run, "%s of a %s is not supported", name, value_type(from));
        for (int64_t i = 0; i < dict_of(from)->count; i++)
            TRY(dict_put(run, dict, dict_of(from)->keys[i], dict_of(from)->values[i]));
    }
    for (int64_t i = 0; i < arguments.named->count; i++)
        TRY(dict_put(run, dict, arguments.named->keys[i], arguments.named->values[i]));
    *out = value_pointer(kind, 0, dict);
    return OK;
}

static Status call_raise(JinjaRun *run, Arguments arguments) {
    JinjaValue text;
    TRY(arguments_bind(run, "raise_exception", arguments, "message", 1, &text));
    TRY(value_text(run, text, &text));
    int length = (int)(string_of(text)->length < 500 ? string_of(text)->length : 500);
    REFUSE(run, "the chat template refuses the conversation: %.*s", length, string_of(text)->data);
}

static Status call_date(JinjaRun *run, Arguments arguments, JinjaValue *out) {
    struct tm day = {.tm_mday = 26, .tm_mon = 6, .tm_year = 124, .tm_wday = 5, .tm_yday = 207}; /* JINJA_DATE */
    JinjaValue format;
    char text[256], *pattern;
    TRY(arguments_bind(run, "strftime_now", arguments, "format", 1, &format));
    if (format.kind != V_STRING || string_of(format)->length > 100) REFUSE(run, "strftime_now wants a short format");
    const String *s = string_of(format);
    TRY(run_take(run, s->length + 1, &pattern));
    memcpy(pattern, s->data, s->length);
    for (const char *p = strchr(pattern, '%'); p != NULL; p = strchr(p + 2, '%')) {
        if (p[1] == 0 || strchr("aAbBdHIjmMpSUwWyY%", p[1]) == NULL)
            REFUSE(run, "strftime_now: the format %%%c is not supported", p[1] != 0 ? p[1] : ' ');
    }
    size_t length = strftime(text, sizeof text, pattern, &day);
    return jinja_text(run, text, length, JINJA_ORIGIN_NONE, out, run->err);
}

Status global_call(JinjaRun *run, const char *name, Arguments arguments, JinjaValue *out) {
    if (strcmp(name, "range") == 0) return call_range(run, arguments, out);
    if (strcmp(name, "dict") == 0) return call_dict(run, name, V_DICT, arguments, out);
    if (strcmp(name, "namespace") == 0) return call_dict(run, name, V_NAMESPACE, arguments, out);
    if (strcmp(name, "raise_exception") == 0) return call_raise(run, arguments);
    return call_date(run, arguments, out);
}

/* ---- methods ------------------------------------------------------------------------------------------------------------- */

/* Every public method of Python's types: those that are not interpreted are refused when they are called. */
static const char string_methods[] =
    " capitalize casefold center count encode endswith expandtabs find format format_map index isalnum isalpha isascii "
    "isdecimal "
    "isdigit isidentifier islower isnumeric isprintable isspace istitle isupper join ljust lower lstrip maketrans partition "
    "removeprefix removesuffix replace rfind rindex rjust rpartition rsplit rstrip split splitlines startswith strip swapcase "
    "title translate upper zfill ";
static const char dict_methods[] = " clear copy fromkeys get items keys pop popitem setdefault update values ";
static const char list_methods[] = " append clear copy count extend index insert pop remove reverse sort ";
static const char tuple_methods[] = " count index ";

int is_word(const char *words, const char *word) {
    size_t n = strlen(word);
    for (const char *at = strstr(words, word); n > 0 && at != NULL; at = strstr(at + 1, word)) {
        if (at > words && at[-1] == ' ' && at[n] == ' ') return strchr(word, ' ') == NULL;
    }
    return 0;
}

int method_exists(JinjaValue value, const char *name) {
    const char *all = value.kind == V_STRING                             ? string_methods
                      : value.kind == V_DICT                             ? dict_methods
                      : value.kind == V_LIST && value.form == FORM_LIST  ? list_methods
                      : value.kind == V_LIST && value.form == FORM_TUPLE ? tuple_methods
                                                                         : "";
    return is_word(all, name);
}

static Status want_string(JinjaRun *run, const char *what, JinjaValue value) {
    if (value.kind != V_STRING) REFUSE(run, "%s wants a string, got a %s", what, value_type(value));
    return OK;
}

static Status call_strip(JinjaRun *run, const String *s, int sides, Arguments arguments, JinjaValue *out) {
    JinjaValue chars;
    TRY(arguments_bind(run, "strip", arguments, "chars", 0, &chars));
    if (chars.kind == V_UNDEFINED || chars.kind == V_NONE) return string_strip(run, s, NULL, sides, out);
    TRY(want_string(run, "strip", chars));
    return string_strip(run, s, string_of(chars), sides, out);
}

static Status call_split(JinjaRun *run, const String *s, int from_right, Arguments arguments, JinjaValue *out) {
    JinjaValue bound[2];
    int64_t most = -1;
    TRY(arguments_bind(run, "split", arguments, "sep maxsplit", 0, bound));
    if (bound[1].kind != V_UNDEFINED && !value_integral(bound[1], &most)) REFUSE(run, "split: maxsplit wants an integer");
    if (bound[0].kind == V_UNDEFINED || bound[0].kind == V_NONE) return string_split(run, s, NULL, most, from_right, out);
    TRY(want_string(run, "split", bound[0]));
    return string_split(run, s, string_of(bound[0]), most, from_right, out);
}

static int has_affix(const String *s, const String *affix, int at_end) {
    return s->length >= affix->length &&
           memcmp(s->data + (at_end ? s->length - affix->length : 0), affix->data, affix->length) == 0;
}

static Status call_affix(JinjaRun *run, const String *s, int at_end, Arguments arguments, JinjaValue *out) {
    JinjaValue affix;
    int holds = 0;
    TRY(arguments_bind(run, at_end ? "endswith" : "startswith", arguments, "prefix", 1, &affix));
    if (affix.kind == V_LIST && affix.form == FORM_TUPLE) {
        for (int64_t i = 0; i < list_of(affix)->count; i++) {
            TRY(want_string(run, "startswith", list_of(affix)->items[i]));
            holds |= has_affix(s, string_of(list_of(affix)->items[i]), at_end);
        }
    } else {
        TRY(want_string(run, at_end ? "endswith" : "startswith", affix));
        holds = has_affix(s, string_of(affix), at_end);
    }
    *out = jinja_bool(holds);
    return OK;
}

static Status call_remove(JinjaRun *run, const String *s, int at_end, Arguments arguments, JinjaValue *out) {
    JinjaValue affix;
    TRY(arguments_bind(run, "removeprefix", arguments, "prefix", 1, &affix));
    TRY(want_string(run, "removeprefix", affix));
    size_t n = has_affix(s, string_of(affix), at_end) ? string_of(affix)->length : 0;
    return string_slice(run, s, at_end ? 0 : n, at_end ? s->length - n : s->length, out);
}

static Status call_replace(JinjaRun *run, const String *s, Arguments arguments, JinjaValue *out) {
    JinjaValue bound[3];
    int64_t most = -1;
    TRY(arguments_bind(run, "replace", arguments, "old new count", 2, bound));
    TRY(want_string(run, "replace", bound[0]));
    TRY(want_string(run, "replace", bound[1]));
    if (bound[2].kind != V_UNDEFINED && !value_integral(bound[2], &most)) REFUSE(run, "replace: count wants an integer");
    return string_replace(run, s, string_of(bound[0]), string_of(bound[1]), most, out);
}

/* find, rfind and count, in characters */
static Status call_find(JinjaRun *run, const String *s, char which, Arguments arguments, JinjaValue *out) {
    JinjaValue part;
    TRY(arguments_bind(run, "find", arguments, "sub", 1, &part));
    TRY(want_string(run, "find", part));
    TRY(run_steps(run, s->length * 4));
    const String *sub = string_of(part);
    int64_t found = -1, count = 0;
    size_t at = 0;
    if (sub->length == 0) {
        *out = value_integer(which == 'f' ? 0 : string_count(s) + (which == 'c'));
        return OK;
    }
    for (int64_t next; (next = string_find(s, sub, at)) >= 0; at = (size_t)next + (which == 'r' ? 1 : sub->length)) {
        found = next;
        count++;
        if (which == 'f') break;
    }
    if (found > 0) found = string_count(&(String){.data = s->data, .length = (size_t)found});
    *out = value_integer(which == 'c' ? count : found);
    return OK;
}

static Status string_method(JinjaRun *run, const String *s, const char *name, Arguments arguments, JinjaValue *out) {
    static const struct {
        const char *name;
        LetterCase to;
    } cases[] = {{"upper", CASE_UPPER}, {"lower", CASE_LOWER}, {"capitalize", CASE_CAPITALIZE}, {"title", CASE_TITLE_METHOD}};
    JinjaValue value;
    List *lines;
    const List *items;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        if (strcmp(name, cases[i].name) != 0) continue;
        TRY(arguments_bind(run, name, arguments, "", 0, NULL));
        return string_case(run, s, cases[i].to, out);
    }
    if (strcmp(name, "strip") == 0) return call_strip(run, s, 3, arguments, out);
    if (strcmp(name, "lstrip") == 0) return call_strip(run, s, 1, arguments, out);
    if (strcmp(name, "rstrip") == 0) return call_strip(run, s, 2, arguments, out);
    if (strcmp(name, "split") == 0) return call_split(run, s, 0, arguments, out);
    if (strcmp(name, "rsplit") == 0) return call_split(run, s, 1, arguments, out);
    if (strcmp(name, "startswith") == 0) return call_affix(run, s, 0, arguments, out);
    if (strcmp(name, "endswith") == 0) return call_affix(run, s, 1, arguments, out);
    if (strcmp(name, "removeprefix") == 0) return call_remove(run, s, 0, arguments, out);
    if (strcmp(name, "removesuffix") == 0) return call_remove(run, s, 1, arguments, out);
    if (strcmp(name, "replace") == 0) return call_replace(run, s, arguments, out);
    if (strcmp(name, "find") == 0) return call_find(run, s, 'f', arguments, out);
    if (strcmp(name, "rfind") == 0) return call_find(run, s, 'r', arguments, out);
    if (strcmp(name, "count") == 0) return call_find(run, s, 'c', arguments, out);
    if (strcmp(name, "join") == 0) {
        TRY(arguments_bind(run, name, arguments, "iterable", 1, &value));
        TRY(value_items(run, value, &items));
        return string_join(run, s, items, 0, out);
    }
    if (strcmp(name, "splitlines") == 0) {
        TRY(arguments_bind(run, name, arguments, "", 0, NULL));
        TRY(string_lines(run, s, &lines));
        *out = value_pointer(V_LIST, FORM_LIST, lines);
        return OK;
    }
    REFUSE(run, "the method %s of a string is not supported in a chat template", name);
}

static Status dict_pairs(JinjaRun *run, const Dict *dict, List **out) {
    TRY(list_new(run, dict->count, out));
    for (int64_t i = 0; i < dict->count; i++) {
        List *pair;
        TRY(list_new(run, 2, &pair));
        TRY(list_push(run, pair, dict->keys[i]));
        TRY(list_push(run, pair, dict->values[i]));
        TRY(list_push(run, *out, value_pointer(V_LIST, FORM_TUPLE, pair)));
    }
    return OK;
}

static Status dict_method(JinjaRun *run, const Dict *dict, const char *name, Arguments arguments, JinjaValue *out) {
    JinjaValue bound[2];
    List *list;
    int found;
    if (strcmp(name, "get") == 0) {
        TRY(arguments_bind(run, name, arguments, "key default", 1, bound));
        *out = arguments.given->count > 1 ? bound[1] : jinja_none();
        return dict_find(run, dict, bound[0], out, &found);
    }
    if (strcmp(name, "items") == 0) {
        TRY(arguments_bind(run, name, arguments, "", 0, NULL));
        TRY(dict_pairs(run, dict, &list));
        *out = value_pointer(V_LIST, FORM_ITEMS, list);
        return OK;
    }
    int keys = strcmp(name, "keys") == 0;
    if (keys || strcmp(name, "values") == 0) {
        TRY(arguments_bind(run, name, arguments, "", 0, NULL));
        TRY(run_take(run, sizeof *list, &list));
        *list = (List){keys ? dict->keys : dict->values, dict->count, dict->count};
        *out = value_pointer(V_LIST, keys ? FORM_KEYS : FORM_VALUES, list);
        return OK;
    }
    if (strcmp(name, "copy") == 0) return call_dict(run, name, V_DICT, (Arguments){&(List){0}, dict}, out);
    REFUSE(run, "the method %s of a dict is not supported in a chat template (values cannot be changed)", name);
}

Status method_call(JinjaRun *run, const Method *method, Arguments arguments, JinjaValue *out) {
    JinjaValue item;
    if (method->self.kind == V_STRING) {
        if (string_of(method->self)->is_safe) REFUSE(run, "methods of text that is marked safe are not supported");
        return string_method(run, string_of(method->self), method->name, arguments, out);
    }
    if (method->self.kind == V_DICT) return dict_method(run, dict_of(method->self), method->name, arguments, out);
    if (strcmp(method->name, "count") == 0) {
        int64_t count = 0;
        TRY(arguments_bind(run, "count", arguments, "value", 1, &item));
        for (int64_t i = 0; i < list_of(method->self)->count; i++) {
            int equal;
            TRY(value_equal(run, list_of(method->self)->items[i], item, &equal));
            count += equal;
        }
        *out = value_integer(count);
        return OK;
    }
    REFUSE(run, "the method %s of a list is not supported in a chat template (values cannot be changed)", method->name);
}
