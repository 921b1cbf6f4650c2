/* Expressions: nodes to values. */
#include <math.h>
#include <string.h>

#include "data/jinja_internal.h"

Status arguments_bind(JinjaRun *run, const char *what, Arguments arguments, const char *names, int least, JinjaValue *out) {
    int count = 0, given = (int)arguments.given->count, taken = 0;
    for (const char *name = names; *name != 0; count++) {
        size_t n = strcspn(name, " ");
        out[count] = value_undefined(what);
        if (count < given) out[count] = arguments.given->items[count];
        for (int64_t i = 0; i < arguments.named->count; i++) {
            const String *key = string_of(arguments.named->keys[i]);
            if (key->length != n || memcmp(key->data, name, n) != 0) continue;
            if (count < given) REFUSE(run, "%s: the argument %.*s is given twice", what, (int)n, name);
            out[count] = arguments.named->values[i];
            taken++;
        }
        if (count < least && count >= given && out[count].kind == V_UNDEFINED)
            REFUSE(run, "%s: the argument %.*s is missing", what, (int)n, name);
        name += n + (name[n] == ' ');
    }
    if (given > count) REFUSE(run, "%s takes %d arguments, got %d", what, count, given);
    if (taken < arguments.named->count)
        REFUSE(run, "%s: an argument's name is not one of: %s", what, count > 0 ? names : "none");
    return OK;
}

Status evaluate_arguments(JinjaRun *run, const Node *node, const Frame *frame, Arguments *out) {
    List *given;
    Dict *named;
    JinjaValue value, name;
    TRY(list_new(run, 0, &given));
    TRY(dict_new(run, &named));
    for (const Node *n = node->items; n != NULL; n = n->next) {
        TRY(jinja_evaluate(run, n, frame, &value));
        TRY(list_push(run, given, value));
    }
    for (const Node *n = node->more; n != NULL; n = n->next) {
        TRY(jinja_evaluate(run, n->a, frame, &value));
        TRY(value_string(run, n->text, &name));
        TRY(dict_put(run, named, name, value));
    }
    *out = (Arguments){given, named};
    return OK;
}

/* ---- arithmetic ---------------------------------------------------------------------------------------------------------- */

static Status integer_power(JinjaRun *run, int64_t a, int64_t b, JinjaValue *out) {
    int64_t result = 1;
    if (b < 0) {
        if (a == 0) REFUSE(run, "0 has no negative power");
        *out = value_float(pow((double)a, (double)b));
        return OK;
    }
    for (int64_t i = 0; i < b && a != 0 && a != 1; i++) {
        if (a == -1) {
            result = b % 2 == 0 ? 1 : -1;
            break;
        }
        if (__builtin_mul_overflow(result, a, &result)) REFUSE(run, "a power does not fit 64 bits");
    }
    *out = value_integer(b > 0 && (a == 0 || a == 1) ? a : result);
    return OK;
}

static Status integer_binary(JinjaRun *run, int32_t code, int64_t a, int64_t b, JinjaValue *out) {
    int64_t result = 0;
    int over = 0;
    if (code == '/' || code == '%' || code == OPERATOR2('/', '/')) {
        if (b == 0) REFUSE(run, "division by zero");
        if (a == INT64_MIN && b == -1) REFUSE(run, "an integer does not fit 64 bits");
    }
    switch (code) {
        case '+': over = __builtin_add_overflow(a, b, &result); break;
        case '-': over = __builtin_sub_overflow(a, b, &result); break;
        case '*': over = __builtin_mul_overflow(a, b, &result); break;
        case '/': *out = value_float((double)a / (double)b); return OK;
        case '%': result = a % b != 0 && (a % b < 0) != (b < 0) ? a % b + b : a % b; break;
        case OPERATOR2('/', '/'): result = a / b - (a % b != 0 && (a % b < 0) != (b < 0)); break;
        default: return integer_power(run, a, b, out);
    }
    if (over) REFUSE(run, "an integer does not fit 64 bits");
    *out = value_integer(result);
    return OK;
}

static Status float_binary(JinjaRun *run, int32_t code, double a, double b, JinjaValue *out) {
    double result = 0;
    if ((code == '/' || code == '%' || code == OPERATOR2('/', '/')) && b == 0.0) REFUSE(run, "division by zero");
    double rest = code == '%' || code == OPERATOR2('/', '/') ? fmod(a, b) : 0;
    int other_sign = rest != 0.0 && (rest < 0) != (b < 0);
    switch (code) {
        case '+': result = a + b; break;
        case '-': result = a - b; break;
        case '*': result = a * b; break;
        case '/': result = a / b; break;
        case '%': result = rest == 0.0 ? copysign(0.0, b) : other_sign ? rest + b : rest; break;
        case OPERATOR2('/', '/'): result = floor((a - (other_sign ? rest + b : rest)) / b + 0.5); break;
        default:
            result = pow(a, b);
            if (!isfinite(result) || (a < 0 && b != floor(b))) REFUSE(run, "a power is no number");
    }
    *out = value_float(result);
    return OK;
}

static Status repeat(JinjaRun *run, JinjaValue value, int64_t times, JinjaValue *out) {
    Builder b = {0};
    List *list;
    if (value.kind == V_STRING) {
        for (int64_t i = 0; i < times && string_of(value)->length > 0; i++)
            TRY(build_string(run, &b, string_of(value)));
        return build_done(run, &b, out);
    }
    TRY(list_new(run, 0, &list));
    for (int64_t i = 0; i < times && list_of(value)->count > 0; i++) {
        TRY(run_steps(run, (size_t)list_of(value)->count * 16));
        for (int64_t j = 0; j < list_of(value)->count; j++)
            TRY(list_push(run, list, list_of(value)->items[j]));
    }
    *out = value_pointer(V_LIST, value.form, list);
    return OK;
}

static Status add_sequences(JinjaRun *run, JinjaValue a, JinjaValue b, JinjaValue *out) {
    Builder builder = {0};
    List *list;
    if (a.kind == V_STRING) {
        if (string_of(a)->is_safe || string_of(b)->is_safe)
            REFUSE(run, "joining text to what the filter safe or escape made is not supported (it would be escaped)");
        TRY(build_string(run, &builder, string_of(a)));
        TRY(build_string(run, &builder, string_of(b)));
        return build_done(run, &builder, out);
    }
    TRY(list_new(run, list_of(a)->count + list_of(b)->count, &list));
    for (int64_t i = 0; i < list_of(a)->count; i++)
        TRY(list_push(run, list, list_of(a)->items[i]));
    for (int64_t i = 0; i < list_of(b)->count; i++)
        TRY(list_push(run, list, list_of(b)->items[i]));
    *out = value_pointer(V_LIST, a.form, list);
    return OK;
}

static int is_repeatable(JinjaValue value) {
    return (value.kind == V_STRING && !string_of(value)->is_safe) || (value.kind == V_LIST && value.form <= FORM_TUPLE);
}

Status evaluate_binary(JinjaRun *run, int32_t code, JinjaValue a, JinjaValue b, JinjaValue *out) {
    int64_t i, j;
    double x, y;
    if (a.kind == V_UNDEFINED || b.kind == V_UNDEFINED) {
        const char *name = a.kind == V_UNDEFINED ? a.name : b.name;
        REFUSE(run, "\"%.60s\" is undefined", name != NULL ? name : "a value");
    }
    if (value_integral(a, &i) && value_integral(b, &j)) return integer_binary(run, code, i, j, out);
    if (value_number(a, &x) && value_number(b, &y)) return float_binary(run, code, x, y, out);
    if (code == '+' && a.kind == b.kind &&
        (a.kind == V_STRING || (a.kind == V_LIST && a.form == b.form && a.form <= FORM_TUPLE)))
        return add_sequences(run, a, b, out);
    if (code == '*' && is_repeatable(a) && value_integral(b, &i)) return repeat(run, a, i, out);
    if (code == '*' && is_repeatable(b) && value_integral(a, &i)) return repeat(run, b, i, out);
    if (code == '%' && a.kind == V_STRING) REFUSE(run, "formatting a string with %% is not supported");
    REFUSE(run, "\"%c\" does not take a %s and a %s", (char)(code & 0xFF), value_type(a), value_type(b));
}

Status evaluate_contains(JinjaRun *run, JinjaValue item, JinjaValue container, int *out) {
    const List *list;
    JinjaValue unused;
    *out = 0;
    if (container.kind == V_DICT) return dict_find(run, dict_of(container), item, &unused, out);
    if (container.kind == V_STRING) {
        if (item.kind != V_STRING) REFUSE(run, "\"in\" a string wants a string, got a %s", value_type(item));
        *out = string_find(string_of(container), string_of(item), 0) >= 0;
        return run_steps(run, string_of(container)->length);
    }
    TRY(value_items(run, container, &list));
    for (int64_t i = 0; i < list->count && !*out; i++)
        TRY(value_equal(run, item, list->items[i], out));
    return OK;
}

/* ---- subscripts ---------------------------------------------------------------------------------------------------------- */

static Status string_index(JinjaRun *run, const String *s, int64_t index, JinjaValue *out) {
    int64_t count = string_count(s);
    uint32_t code;
    size_t at = 0;
    TRY(run_steps(run, s->length * 4));
    if (index < 0) index += count;
    if (index < 0 || index >= count) return OK;
    for (; index > 0; index--)
        at += string_next(s, at, &code);
    return string_slice(run, s, at, at + string_next(s, at, &code), out);
}

Status value_item(JinjaRun *run, JinjaValue value, JinjaValue key, JinjaValue *out) {
    int64_t index;
    int found = 0;
    *out = value_undefined("an item");
    if (value.kind == V_UNDEFINED) REFUSE(run, "\"%.60s\" is undefined", value.name != NULL ? value.name : "a value");
    if (value.kind == V_DICT) {
        if (key.kind != V_LIST && key.kind != V_DICT) TRY(dict_find(run, dict_of(value), key, out, &found));
        if (found) return OK;
    } else if (value.kind == V_LIST && value.form <= FORM_RANGE && value_integral(key, &index)) {
        if (index < 0) index += list_of(value)->count;
        if (index >= 0 && index < list_of(value)->count) *out = list_of(value)->items[index];
        return OK;
    } else if (value.kind == V_STRING && value_integral(key, &index)) {
        return string_index(run, string_of(value), index, out);
    }
    if (key.kind != V_STRING) return OK;
    JinjaValue name;
    Builder b = {0};
    TRY(build_string(run, &b, string_of(key)));
    TRY(build_bytes(run, &b, "", 1));
    TRY(build_done(run, &b, &name));
    if (value.kind == V_DICT && !method_exists(value, string_of(name)->data)) return OK;
    return value_attribute(run, value, string_of(name)->data, out);
}

static Status slice_bound(JinjaRun *run, JinjaValue value, int64_t absent, int64_t count, int64_t step, int64_t *out) {
    if (value.kind == V_NONE) {
        *out = absent;
        return OK;
    }
    if (!value_integral(value, out)) REFUSE(run, "a slice wants integers, got a %s", value_type(value));
    if (*out < 0) *out += count;
    int64_t least = step < 0 ? -1 : 0, most = step < 0 ? count - 1 : count;
    if (*out < least) *out = least;
    if (*out > most) *out = most;
    return OK;
}

static Status slice_string(JinjaRun *run, const String *s, const JinjaValue bounds[3], JinjaValue *out) {
    int64_t begin, end, count = string_count(s);
    uint32_t code;
    size_t from = 0;
    TRY(run_steps(run, s->length * 4));
    TRY(slice_bound(run, bounds[0], 0, count, 1, &begin));
    TRY(slice_bound(run, bounds[1], count, count, 1, &end));
    for (int64_t i = 0; i < begin; i++)
        from += string_next(s, from, &code);
    size_t to = from;
    for (int64_t i = begin; i < end; i++)
        to += string_next(s, to, &code);
    return string_slice(run, s, from, to, out);
}

Status value_slice(JinjaRun *run, JinjaValue value, const JinjaValue bounds[3], JinjaValue *out) {
    int64_t begin, end, step = 1;
    const List *items;
    List *list;
    if (value.kind == V_UNDEFINED) REFUSE(run, "\"%.60s\" is undefined", value.name != NULL ? value.name : "a value");
    if (value.kind != V_STRING && !(value.kind == V_LIST && value.form <= FORM_RANGE)) {
        *out = value_undefined("a slice");
        return OK;
    }
    if (bounds[2].kind != V_NONE && !value_integral(bounds[2], &step)) REFUSE(run, "a slice's step wants an integer");
    if (step == 0 || step < -INT32_MAX || step > INT32_MAX) REFUSE(run, "a slice's step cannot be %lld", (long long)step);
    if (value.kind == V_STRING && step == 1) return slice_string(run, string_of(value), bounds, out);
    TRY(value_items(run, value, &items));
    TRY(slice_bound(run, bounds[0], step < 0 ? items->count - 1 : 0, items->count, step, &begin));
    TRY(slice_bound(run, bounds[1], step < 0 ? -1 : items->count, items->count, step, &end));
    TRY(list_new(run, 0, &list));
    for (int64_t i = begin; step < 0 ? i > end : i < end; i += step)
        TRY(list_push(run, list, items->items[i]));
    if (value.kind == V_LIST) {
        *out = value_pointer(V_LIST, value.form, list);
        return OK;
    }
    if (list->count == 0) return string_slice(run, string_of(value), 0, 0, out);
    return string_join(run, &(String){.data = ""}, list, 0, out);
}

static Status loop_attribute(JinjaRun *run, const Loop *loop, const char *name, JinjaValue *out) {
    int64_t i = loop->index, n = loop->list->count;
    const struct {
        const char *name;
        JinjaValue value;
    } all[] = {{"index", value_integer(i + 1)},
               {"index0", value_integer(i)},
               {"first", jinja_bool(i == 0)},
               {"last", jinja_bool(i == n - 1)},
               {"length", value_integer(n)},
               {"revindex", value_integer(n - i)},
               {"revindex0", value_integer(n - i - 1)},
               {"depth", value_integer(1)},
               {"depth0", value_integer(0)},
               {"previtem", i > 0 ? loop->list->items[i - 1] : value_undefined("loop.previtem")},
               {"nextitem", i + 1 < n ? loop->list->items[i + 1] : value_undefined("loop.nextitem")}};
    for (size_t k = 0; k < sizeof all / sizeof all[0]; k++) {
        if (strcmp(name, all[k].name) != 0) continue;
        *out = all[k].value;
        return OK;
    }
    REFUSE(run, "loop.%.60s is not supported", name);
}

Status value_attribute(JinjaRun *run, JinjaValue value, const char *name, JinjaValue *out) {
    JinjaValue key;
    Method *method;
    int found;
    *out = value_undefined(name);
    if (value.kind == V_UNDEFINED)
        REFUSE(run, "\"%.60s\" is undefined and has no attribute \"%.60s\"", value.name != NULL ? value.name : "a value", name);
    if (value.kind == V_LOOP) return loop_attribute(run, value.pointer, name, out);
    if (method_exists(value, name)) {
        TRY(run_take(run, sizeof *method, &method));
        *method = (Method){value, name};
        *out = value_pointer(V_METHOD, 0, method);
        return OK;
    }
    if (value.kind == V_DICT || value.kind == V_NAMESPACE) {
        TRY(value_string(run, name, &key));
        return dict_find(run, dict_of(value), key, out, &found);
    }
    return OK;
}

/* ---- names, calls, operators ----------------------------------------------------------------------------------------------- */

static Status find_name(const Frame *frame, const char *name, JinjaValue *out) {
    for (; frame != NULL; frame = frame->parent) {
        for (const Variable *v = frame->variables; v != NULL; v = v->next) {
            if (v->name != name) continue;
            *out = v->value;
            return OK;
        }
    }
    if (!global_find(name, out)) *out = value_undefined(name);
    return OK;
}

Status value_call(JinjaRun *run, JinjaValue value, Arguments arguments, JinjaValue *out) {
    switch (value.kind) {
        case V_MACRO: return macro_call(run, value.pointer, arguments, out);
        case V_METHOD: return method_call(run, value.pointer, arguments, out);
        case V_FUNCTION: return global_call(run, value.name, arguments, out);
        case V_UNDEFINED:
            REFUSE(run, "\"%.60s\" is undefined and cannot be called", value.name != NULL ? value.name : "a value");
        case V_LOOP: REFUSE(run, "a recursive loop is not supported in a chat template");
        default: REFUSE(run, "a %s cannot be called", value_type(value));
    }
}

static Status compare(JinjaRun *run, int32_t code, JinjaValue a, JinjaValue b, int *out) {
    int order;
    if (code == OPERATOR2('=', '=') || code == OPERATOR2('!', '=')) {
        TRY(value_equal(run, a, b, out));
        *out ^= code == OPERATOR2('!', '=');
        return OK;
    }
    if (code == 'i' || code == 'n') {
        TRY(evaluate_contains(run, a, b, out));
        *out ^= code == 'n';
        return OK;
    }
    TRY(value_order(run, a, b, &order));
    *out = code == '<' ? order < 0 : code == '>' ? order > 0 : code == OPERATOR2('<', '=') ? order <= 0 : order >= 0;
    return OK;
}

static Status evaluate_compare(JinjaRun *run, const Node *node, const Frame *frame, JinjaValue *out) {
    JinjaValue left, right;
    int holds = 1;
    TRY(jinja_evaluate(run, node->a, frame, &left));
    for (const Node *n = node->items; n != NULL && holds; n = n->next, left = right) {
        TRY(jinja_evaluate(run, n->a, frame, &right));
        TRY(compare(run, n->code, left, right, &holds));
    }
    *out = jinja_bool(holds);
    return OK;
}

static Status evaluate_list(JinjaRun *run, const Node *node, const Frame *frame, JinjaValue *out) {
    List *list;
    JinjaValue value;
    TRY(list_new(run, 0, &list));
    for (const Node *n = node->items; n != NULL; n = n->next) {
        TRY(jinja_evaluate(run, n, frame, &value));
        TRY(list_push(run, list, value));
    }
    *out = value_pointer(V_LIST, node->kind == E_TUPLE ? FORM_TUPLE : FORM_LIST, list);
    return OK;
}

static Status evaluate_dict(JinjaRun *run, const Node *node, const Frame *frame, JinjaValue *out) {
    Dict *dict;
    JinjaValue key, value;
    TRY(dict_new(run, &dict));
    for (const Node *n = node->items; n != NULL; n = n->next->next) {
        TRY(jinja_evaluate(run, n, frame, &key));
        TRY(jinja_evaluate(run, n->next, frame, &value));
        TRY(dict_put(run, dict, key, value));
    }
    *out = value_pointer(V_DICT, 0, dict);
    return OK;
}

static Status evaluate_item(JinjaRun *run, const Node *node, const Frame *frame, JinjaValue *out) {
    JinjaValue value, key, bounds[3] = {jinja_none(), jinja_none(), jinja_none()};
    const Node *slice = node->b;
    TRY(jinja_evaluate(run, node->a, frame, &value));
    if (slice->kind != E_SLICE) {
        TRY(jinja_evaluate(run, slice, frame, &key));
        return value_item(run, value, key, out);
    }
    const Node *parts[3] = {slice->a, slice->b, slice->c};
    for (int i = 0; i < 3; i++) {
        if (parts[i] != NULL) TRY(jinja_evaluate(run, parts[i], frame, &bounds[i]));
    }
    return value_slice(run, value, bounds, out);
}

static Status evaluate_sign(JinjaRun *run, const Node *node, const Frame *frame, JinjaValue *out) {
    JinjaValue value;
    int64_t integer;
    TRY(jinja_evaluate(run, node->a, frame, &value));
    if (value.kind == V_FLOAT) {
        *out = value_float(node->kind == E_NEGATE ? -value.number : value.number);
        return OK;
    }
    if (!value_integral(value, &integer)) REFUSE(run, "a sign wants a number, got a %s", value_type(value));
    if (integer == INT64_MIN) REFUSE(run, "an integer does not fit 64 bits");
    *out = value_integer(node->kind == E_NEGATE ? -integer : integer);
    return OK;
}

static Status evaluate_concat(JinjaRun *run, const Node *node, const Frame *frame, JinjaValue *out) {
    Builder b = {0};
    JinjaValue value;
    for (const Node *n = node->items; n != NULL; n = n->next) {
        TRY(jinja_evaluate(run, n, frame, &value));
        TRY(build_value(run, &b, value));
    }
    return build_done(run, &b, out);
}

static Status evaluate_logic(JinjaRun *run, const Node *node, const Frame *frame, JinjaValue *out) {
    int truth;
    TRY(jinja_evaluate(run, node->a, frame, out));
    TRY(value_truth(run, *out, &truth));
    if (node->kind == E_NOT) {
        *out = jinja_bool(!truth);
        return OK;
    }
    if (node->kind == E_CONDITION) {
        if (truth) return jinja_evaluate(run, node->b, frame, out);
        if (node->c != NULL) return jinja_evaluate(run, node->c, frame, out);
        *out = value_undefined("an if without else");
        return OK;
    }
    return truth == (node->kind == E_AND) ? jinja_evaluate(run, node->b, frame, out) : OK;
}

static Status evaluate_applied(JinjaRun *run, const Node *node, const Frame *frame, JinjaValue *out) {
    Arguments arguments;
    JinjaValue value;
    int holds;
    TRY(jinja_evaluate(run, node->a, frame, &value));
    TRY(evaluate_arguments(run, node, frame, &arguments));
    if (node->kind == E_CALL) return value_call(run, value, arguments, out);
    if (node->kind == E_FILTER) return filter_apply(run, node->text, value, arguments, out);
    TRY(test_apply(run, node->text, value, arguments, &holds));
    *out = jinja_bool(holds);
    return OK;
}

static Status evaluate_text(JinjaRun *run, const Node *node, JinjaValue *out) {
    String *s;
    TRY(run_take(run, sizeof *s, &s));
    *s = (String){.data = node->text, .length = node->length};
    *out = value_pointer(V_STRING, 0, s);
    return OK;
}

static Status evaluate_kind(JinjaRun *run, const Node *node, const Frame *frame, JinjaValue *out) {
    JinjaValue a, b;
    switch (node->kind) {
        case E_STRING: return evaluate_text(run, node, out);
        case E_INTEGER: *out = value_integer(node->integer); return OK;
        case E_FLOAT: *out = value_float(node->number); return OK;
        case E_TRUE:
        case E_FALSE: *out = jinja_bool(node->kind == E_TRUE); return OK;
        case E_NONE: *out = jinja_none(); return OK;
        case E_NAME: return find_name(frame, node->text, out);
        case E_LIST:
        case E_TUPLE: return evaluate_list(run, node, frame, out);
        case E_DICT: return evaluate_dict(run, node, frame, out);
        case E_ITEM: return evaluate_item(run, node, frame, out);
        case E_ATTRIBUTE: TRY(jinja_evaluate(run, node->a, frame, &a)); return value_attribute(run, a, node->text, out);
        case E_CALL:
        case E_FILTER:
        case E_TEST: return evaluate_applied(run, node, frame, out);
        case E_NEGATE:
        case E_PLUS: return evaluate_sign(run, node, frame, out);
        case E_BINARY:
            TRY(jinja_evaluate(run, node->a, frame, &a));
            TRY(jinja_evaluate(run, node->b, frame, &b));
            return evaluate_binary(run, node->code, a, b, out);
        case E_COMPARE: return evaluate_compare(run, node, frame, out);
        case E_CONCAT: return evaluate_concat(run, node, frame, out);
        default: return evaluate_logic(run, node, frame, out);
    }
}

Status jinja_evaluate(JinjaRun *run, const Node *node, const Frame *frame, JinjaValue *out) {
    run->line = node->line;
    TRY(run_enter(run));
    TRY(evaluate_kind(run, node, frame, out));
    run->depth--;
    run->line = node->line;
    return OK;
}
