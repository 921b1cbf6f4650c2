/* Filters over lists: map, select and their kin, sort, unique, join, first, last. */
#include <string.h>

#include "data/jinja_internal.h"

static const char list_filters[] =
    " map select reject selectattr rejectattr list join first last sort unique reverse dictsort items min max sum ";

int filter_list_exists(const char *name) {
    return is_word(list_filters, name);
}

/* "a.b.0", an integer, or undefined for the item itself */
static Status get_path(JinjaRun *run, JinjaValue item, JinjaValue path, JinjaValue *out) {
    *out = item;
    if (path.kind == V_UNDEFINED || path.kind == V_NONE) return OK;
    if (path.kind != V_STRING) return value_item(run, item, path, out);
    JinjaValue parts;
    TRY(string_split(run, string_of(path), &(String){.data = ".", .length = 1}, -1, 0, &parts));
    for (int64_t i = 0; i < list_of(parts)->count; i++) {
        JinjaValue part = list_of(parts)->items[i];
        const String *s = string_of(part);
        int64_t index = 0;
        size_t digits = 0;
        for (; digits < s->length && digits < 9 && s->data[digits] >= '0' && s->data[digits] <= '9'; digits++)
            index = index * 10 + (s->data[digits] - '0');
        if (digits > 0 && digits == s->length) part = value_integer(index);
        TRY(value_item(run, *out, part, out));
    }
    return OK;
}

static Status take_name(JinjaRun *run, JinjaValue value, const char **out) {
    char *name;
    if (value.kind != V_STRING) REFUSE(run, "a filter's or test's name is a string, got a %s", value_type(value));
    TRY(run_take(run, string_of(value)->length + 1, &name));
    memcpy(name, string_of(value)->data, string_of(value)->length);
    *out = name;
    return OK;
}

static Arguments rest_of(Arguments arguments, int64_t from, List *rest) {
    *rest = (List){arguments.given->count > from ? arguments.given->items + from : NULL, arguments.given->count - from, 0};
    if (rest->count < 0) rest->count = 0;
    return (Arguments){rest, arguments.named};
}

static Status filter_map(JinjaRun *run, const List *items, Arguments arguments, List *result) {
    List rest, none = {0};
    JinjaValue bound[2], item;
    const char *name = NULL;
    if (arguments.given->count == 0) {
        TRY(arguments_bind(run, "map", (Arguments){&none, arguments.named}, "attribute default", 1, bound));
    } else {
        TRY(take_name(run, arguments.given->items[0], &name));
        if (!filter_exists(name)) REFUSE(run, "the filter \"%.60s\" is not supported in a chat template", name);
    }
    for (int64_t i = 0; i < items->count; i++) {
        if (name != NULL) {
            TRY(filter_apply(run, name, items->items[i], rest_of(arguments, 1, &rest), &item));
        } else {
            TRY(get_path(run, items->items[i], bound[0], &item));
            if (item.kind == V_UNDEFINED && bound[1].kind != V_UNDEFINED) item = bound[1];
        }
        TRY(list_push(run, result, item));
    }
    return OK;
}

static Status filter_select(JinjaRun *run, const List *items, int by_attribute, int keeps, Arguments arguments, List *result) {
    List rest;
    JinjaValue path = value_undefined(NULL), item;
    const char *name = NULL;
    int64_t used = by_attribute;
    if (by_attribute) {
        if (arguments.given->count == 0) REFUSE(run, "selectattr and rejectattr want an attribute's name");
        path = arguments.given->items[0];
    }
    if (arguments.given->count > used) {
        TRY(take_name(run, arguments.given->items[used++], &name));
        if (!test_exists(name)) REFUSE(run, "the test \"%.60s\" is not supported in a chat template", name);
    }
    for (int64_t i = 0; i < items->count; i++) {
        int holds;
        TRY(get_path(run, items->items[i], path, &item));
        TRY(name != NULL ? test_apply(run, name, item, rest_of(arguments, used, &rest), &holds)
                         : value_truth(run, item, &holds));
        if (holds == keeps) TRY(list_push(run, result, items->items[i]));
    }
    return OK;
}

/* Strings compare in lower case unless told otherwise. */
static Status sort_key(JinjaRun *run, JinjaValue item, JinjaValue path, int exact, JinjaValue *out) {
    if (path.kind == V_STRING && memchr(string_of(path)->data, ',', string_of(path)->length) != NULL)
        REFUSE(run, "sorting by several attributes is not supported");
    TRY(get_path(run, item, path, out));
    return out->kind == V_STRING && !exact ? string_case(run, string_of(*out), CASE_LOWER, out) : OK;
}

/* Stable insertion; steps bound it. */
static Status sort_by(JinjaRun *run, const List *items, const JinjaValue *keys, int backwards, List *result) {
    List *sorted_keys;
    TRY(list_new(run, items->count, &sorted_keys));
    for (int64_t i = 0; i < items->count; i++) {
        int64_t at = i;
        TRY(list_push(run, result, items->items[i]));
        TRY(list_push(run, sorted_keys, keys[i]));
        for (; at > 0; at--) {
            int order;
            TRY(value_order(run, sorted_keys->items[at - 1], keys[i], &order));
            if (backwards ? order >= 0 : order <= 0) break;
            sorted_keys->items[at] = sorted_keys->items[at - 1];
            result->items[at] = result->items[at - 1];
        }
        sorted_keys->items[at] = keys[i];
        result->items[at] = items->items[i];
    }
    return OK;
}

static Status flag(JinjaRun *run, JinjaValue value, int *out) {
    return value_truth(run, value, out);
}

static Status filter_sort(JinjaRun *run, const List *items, JinjaValue reverse, JinjaValue exact, JinjaValue path,
                          List *result) {
    int backwards, is_exact;
    List *keys;
    JinjaValue key;
    TRY(flag(run, reverse, &backwards));
    TRY(flag(run, exact, &is_exact));
    TRY(list_new(run, items->count, &keys));
    for (int64_t i = 0; i < items->count; i++) {
        TRY(sort_key(run, items->items[i], path, is_exact, &key));
        TRY(list_push(run, keys, key));
    }
    return sort_by(run, items, keys->items, backwards, result);
}

static Status filter_unique(JinjaRun *run, const List *items, Arguments arguments, List *result) {
    JinjaValue bound[2], key;
    Dict *seen;
    int exact, found;
    TRY(arguments_bind(run, "unique", arguments, "case_sensitive attribute", 0, bound));
    TRY(flag(run, bound[0], &exact));
    TRY(dict_new(run, &seen));
    for (int64_t i = 0; i < items->count; i++) {
        JinjaValue unused;
        TRY(sort_key(run, items->items[i], bound[1], exact, &key));
        TRY(dict_find(run, seen, key, &unused, &found));
        if (found) continue;
        TRY(dict_put(run, seen, key, jinja_none()));
        TRY(list_push(run, result, items->items[i]));
    }
    return OK;
}

static Status pairs_of(JinjaRun *run, JinjaValue value, List **out) {
    Method method = {value, "items"};
    JinjaValue items;
    List none = {0};
    Dict unnamed = {0};
    TRY(list_new(run, 0, out));
    if (value.kind == V_UNDEFINED) return OK;
    if (value.kind != V_DICT) REFUSE(run, "items and dictsort want a dict, got a %s", value_type(value));
    TRY(method_call(run, &method, (Arguments){&none, &unnamed}, &items));
    **out = *list_of(items);
    return OK;
}

static Status filter_dictsort(JinjaRun *run, JinjaValue value, Arguments arguments, List *result) {
    JinjaValue bound[3];
    List *pairs;
    TRY(arguments_bind(run, "dictsort", arguments, "case_sensitive by reverse", 0, bound));
    TRY(pairs_of(run, value, &pairs));
    int by_value = value_is_string(bound[1], "value");
    return filter_sort(run, pairs, bound[2], bound[0], value_integer(by_value), result);
}

static Status filter_extreme(JinjaRun *run, const List *items, int wanted, Arguments arguments, JinjaValue *out) {
    JinjaValue bound[2], best, key;
    int exact;
    TRY(arguments_bind(run, "min", arguments, "case_sensitive attribute", 0, bound));
    TRY(flag(run, bound[0], &exact));
    *out = value_undefined("an extreme of nothing");
    for (int64_t i = 0; i < items->count; i++) {
        int order = 0;
        TRY(sort_key(run, items->items[i], bound[1], exact, &key));
        if (i > 0) TRY(value_order(run, key, best, &order));
        if (i > 0 && order != wanted) continue;
        best = key;
        *out = items->items[i];
    }
    return OK;
}

static Status filter_sum(JinjaRun *run, const List *items, Arguments arguments, JinjaValue *out) {
    JinjaValue bound[2], item;
    TRY(arguments_bind(run, "sum", arguments, "attribute start", 0, bound));
    *out = bound[1].kind == V_UNDEFINED ? value_integer(0) : bound[1];
    for (int64_t i = 0; i < items->count; i++) {
        TRY(get_path(run, items->items[i], bound[0], &item));
        TRY(evaluate_binary(run, '+', *out, item, out));
    }
    return OK;
}

static Status filter_join(JinjaRun *run, const List *items, Arguments arguments, JinjaValue *out) {
    JinjaValue bound[2], separator, item;
    List *parts;
    TRY(arguments_bind(run, "join", arguments, "d attribute", 0, bound));
    TRY(value_text(run, bound[0], &separator));
    TRY(list_new(run, items->count, &parts));
    for (int64_t i = 0; i < items->count; i++) {
        TRY(get_path(run, items->items[i], bound[1], &item));
        TRY(list_push(run, parts, item));
    }
    return string_join(run, string_of(separator), parts, 1, out);
}

static Status filter_end(JinjaRun *run, JinjaValue value, int last, Arguments arguments, JinjaValue *out) {
    const List *items;
    TRY(arguments_bind(run, last ? "last" : "first", arguments, "", 0, NULL));
    if (last && value.kind == V_GENERATOR) REFUSE(run, "last of a generator is not possible; make it a list");
    TRY(value_items(run, value, &items));
    *out = items->count > 0 ? items->items[last ? items->count - 1 : 0] : value_undefined(last ? "last" : "first");
    return OK;
}

static Status filter_reverse(JinjaRun *run, JinjaValue value, const List *items, List *result, JinjaValue *out) {
    for (int64_t i = items->count - 1; i >= 0; i--)
        TRY(list_push(run, result, items->items[i]));
    return value.kind == V_STRING ? string_join(run, &(String){.data = ""}, result, 0, out) : generator_new(run, result, out);
}

Status filter_list_apply(JinjaRun *run, const char *name, JinjaValue value, Arguments arguments, JinjaValue *out, int *known) {
    const List *items;
    List *result;
    JinjaValue bound[3];
    *known = filter_list_exists(name);
    if (!*known) return OK;
    if (strcmp(name, "first") == 0 || strcmp(name, "last") == 0) return filter_end(run, value, name[0] == 'l', arguments, out);
    TRY(list_new(run, 0, &result));
    *out = value_pointer(V_LIST, FORM_LIST, result);
    if (strcmp(name, "dictsort") == 0) return filter_dictsort(run, value, arguments, result);
    if (strcmp(name, "items") == 0) {
        TRY(arguments_bind(run, name, arguments, "", 0, NULL));
        TRY(pairs_of(run, value, &result));
        return generator_new(run, result, out);
    }
    TRY(value_items(run, value, &items));
    if (strcmp(name, "join") == 0) return filter_join(run, items, arguments, out);
    if (strcmp(name, "sum") == 0) return filter_sum(run, items, arguments, out);
    if (strcmp(name, "min") == 0 || strcmp(name, "max") == 0)
        return filter_extreme(run, items, name[1] == 'i' ? -1 : 1, arguments, out);
    if (strcmp(name, "sort") == 0) {
        TRY(arguments_bind(run, name, arguments, "reverse case_sensitive attribute", 0, bound));
        return filter_sort(run, items, bound[0], bound[1], bound[2], result);
    }
    if (strcmp(name, "reverse") == 0) return filter_reverse(run, value, items, result, out);
    if (strcmp(name, "list") == 0) {
        *result = *items;
        return OK;
    }
    if (strcmp(name, "unique") == 0) {
        TRY(filter_unique(run, items, arguments, result));
    } else if (strcmp(name, "map") == 0) {
        TRY(filter_map(run, items, arguments, result));
    } else {
        int keeps = name[0] == 's', by_attribute = strlen(name) > 6;
        TRY(filter_select(run, items, by_attribute, keeps, arguments, result));
    }
    return generator_new(run, result, out);
}
