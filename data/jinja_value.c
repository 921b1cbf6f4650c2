/* Values: memory, truth, equality, order, lists, dicts. Python's rules. */
#include <math.h>
#include <string.h>

#include "core/memory.h"
#include "data/jinja_internal.h"
#include "data/json.h"

#define BLOCK_BYTES ((size_t)64 << 10)

struct JinjaBlock {
    JinjaBlock *next;
    size_t used, capacity;
    _Alignas(16) char data[];
};

void *jinja_take(JinjaMemory *memory, size_t bytes) {
    if (bytes > memory->limit || memory->used + (bytes + 15) > memory->limit) return NULL;
    bytes = (bytes + 15) & ~(size_t)15;
    JinjaBlock *block = memory->blocks;
    if (block == NULL || block->capacity - block->used < bytes) {
        size_t capacity = bytes > BLOCK_BYTES ? bytes : BLOCK_BYTES;
        block = memory_alloc(sizeof *block + capacity);
        *block = (JinjaBlock){.next = memory->blocks, .capacity = capacity};
        memory->blocks = block;
    }
    void *at = block->data + block->used;
    block->used += bytes;
    memory->used += bytes;
    return memset(at, 0, bytes);
}

void jinja_memory_free(JinjaMemory *memory) {
    for (JinjaBlock *block = memory->blocks, *next; block != NULL; block = next) {
        next = block->next;
        memory_free(block);
    }
    memory->blocks = NULL;
    memory->used = 0;
}

void jinja_memory_clear(JinjaMemory *memory) {
    JinjaBlock *kept = NULL;
    for (JinjaBlock *block = memory->blocks, *next; block != NULL; block = next) {
        next = block->next;
        if (kept == NULL && block->capacity == BLOCK_BYTES) {
            kept = block;
        } else {
            memory_free(block);
        }
    }
    if (kept != NULL) {
        kept->next = NULL;
        kept->used = 0;
    }
    memory->blocks = kept;
    memory->used = 0;
}

JinjaRun *jinja_run_create(JinjaLimits limits) {
    JinjaRun *run = memory_calloc(1, sizeof *run);
    run->limits = limits;
    run->memory.limit = limits.memory;
    return run;
}

void jinja_run_clear(JinjaRun *run) {
    jinja_memory_clear(&run->memory);
}

int64_t jinja_run_steps(const JinjaRun *run) {
    return run->steps;
}

void jinja_run_free(JinjaRun *run) {
    if (run == NULL) return;
    jinja_memory_free(&run->memory);
    memory_free(run);
}

Status run_take(JinjaRun *run, size_t bytes, void *out) {
    void *memory = jinja_take(&run->memory, bytes);
    if (memory == NULL) REFUSE(run, "the template needs more than %zu MiB of memory", run->memory.limit >> 20);
    memcpy(out, &memory, sizeof memory);
    return OK;
}

Status run_steps(JinjaRun *run, size_t bytes) {
    run->steps += 1 + (int64_t)(bytes / 64);
    if (run->steps > run->limits.steps) REFUSE(run, "the template takes more than %lld steps", (long long)run->limits.steps);
    return OK;
}

Status run_enter(JinjaRun *run) {
    if (++run->depth > JINJA_RUN_DEPTH) REFUSE(run, "the template nests deeper than %d levels", JINJA_RUN_DEPTH);
    return run_steps(run, 0);
}

/* ---- making -------------------------------------------------------------------------------------------------------------- */

JinjaValue value_pointer(int kind, int form, const void *pointer) {
    return (JinjaValue){.kind = (uint8_t)kind, .form = (uint8_t)form, .pointer = pointer};
}

JinjaValue value_undefined(const char *name) {
    return (JinjaValue){.kind = V_UNDEFINED, .name = name};
}

JinjaValue value_integer(int64_t integer) {
    return (JinjaValue){.kind = V_INTEGER, .integer = integer};
}

JinjaValue value_float(double number) {
    return (JinjaValue){.kind = V_FLOAT, .number = number};
}

JinjaValue jinja_none(void) {
    return (JinjaValue){.kind = V_NONE};
}

JinjaValue jinja_bool(int value) {
    return (JinjaValue){.kind = V_BOOL, .integer = value != 0};
}

Status value_string(JinjaRun *run, const char *text, JinjaValue *out) {
    String *s;
    TRY(run_take(run, sizeof *s, &s));
    *s = (String){.data = text, .length = strlen(text)};
    *out = value_pointer(V_STRING, 0, s);
    return OK;
}

Status jinja_text(JinjaRun *run, const char *text, size_t length, int32_t origin, JinjaValue *out, Error *err) {
    String *s;
    char *copy;
    JinjaMark *mark;
    run->err = err;
    TRY(run_take(run, sizeof *s, &s));
    TRY(run_take(run, length + 1, &copy));
    memcpy(copy, text, length);
    *s = (String){.data = copy, .length = length};
    if (origin != JINJA_ORIGIN_NONE) {
        TRY(run_take(run, sizeof *mark, &mark));
        *mark = (JinjaMark){0, length, origin, 0};
        s->marks = mark;
        s->mark_count = 1;
    }
    *out = value_pointer(V_STRING, 0, s);
    return OK;
}

Status list_new(JinjaRun *run, int64_t capacity, List **out) {
    List *list;
    TRY(run_take(run, sizeof *list, &list));
    if (capacity > 0) TRY(run_take(run, (size_t)capacity * sizeof *list->items, &list->items));
    list->capacity = capacity;
    *out = list;
    return OK;
}

Status list_push(JinjaRun *run, List *list, JinjaValue item) {
    if (list->count == list->capacity) {
        int64_t capacity = list->capacity < 4 ? 8 : list->capacity * 2;
        JinjaValue *items;
        TRY(run_take(run, (size_t)capacity * sizeof *items, &items));
        if (list->count > 0) memcpy(items, list->items, (size_t)list->count * sizeof *items);
        list->items = items;
        list->capacity = capacity;
    }
    list->items[list->count++] = item;
    return OK;
}

Status dict_new(JinjaRun *run, Dict **out) {
    return run_take(run, sizeof **out, out);
}

static Status dict_index(JinjaRun *run, const Dict *dict, JinjaValue key, int64_t *at) {
    int equal = 0;
    if (key.kind == V_LIST && key.form != FORM_TUPLE) REFUSE(run, "a %s cannot be a key of a dict", value_type(key));
    if (key.kind == V_DICT || key.kind == V_NAMESPACE) REFUSE(run, "a %s cannot be a key of a dict", value_type(key));
    TRY(run_steps(run, (size_t)dict->count * 8));
    for (*at = 0; *at < dict->count; ++*at) {
        TRY(value_equal(run, dict->keys[*at], key, &equal));
        if (equal) return OK;
    }
    *at = -1;
    return OK;
}

Status dict_find(JinjaRun *run, const Dict *dict, JinjaValue key, JinjaValue *out, int *found) {
    int64_t at;
    TRY(dict_index(run, dict, key, &at));
    *found = at >= 0;
    if (at >= 0) *out = dict->values[at];
    return OK;
}

Status dict_put(JinjaRun *run, Dict *dict, JinjaValue key, JinjaValue value) {
    int64_t at;
    TRY(dict_index(run, dict, key, &at));
    if (at >= 0) {
        dict->values[at] = value;
        return OK;
    }
    if (dict->count == dict->capacity) {
        int64_t capacity = dict->capacity < 4 ? 8 : dict->capacity * 2;
        JinjaValue *both;
        TRY(run_take(run, 2 * (size_t)capacity * sizeof *both, &both));
        if (dict->count > 0) {
            memcpy(both, dict->keys, (size_t)dict->count * sizeof *both);
            memcpy(both + capacity, dict->values, (size_t)dict->count * sizeof *both);
        }
        dict->keys = both;
        dict->values = both + capacity;
        dict->capacity = capacity;
    }
    dict->keys[dict->count] = key;
    dict->values[dict->count++] = value;
    return OK;
}

Status generator_new(JinjaRun *run, const List *list, JinjaValue *out) {
    Generator *generator;
    TRY(run_take(run, sizeof *generator, &generator));
    generator->list = list;
    *out = value_pointer(V_GENERATOR, 0, generator);
    return OK;
}

Status jinja_list(JinjaRun *run, int64_t capacity, JinjaValue *out, Error *err) {
    List *list;
    run->err = err;
    TRY(list_new(run, capacity, &list));
    *out = value_pointer(V_LIST, FORM_LIST, list);
    return OK;
}

Status jinja_list_add(JinjaRun *run, JinjaValue list, JinjaValue item, Error *err) {
    run->err = err;
    return list_push(run, (List *)list.pointer, item);
}

Status jinja_dict(JinjaRun *run, JinjaValue *out, Error *err) {
    Dict *dict;
    run->err = err;
    TRY(dict_new(run, &dict));
    *out = value_pointer(V_DICT, 0, dict);
    return OK;
}

Status jinja_dict_set(JinjaRun *run, JinjaValue dict, const char *key, JinjaValue value, Error *err) {
    JinjaValue name;
    run->err = err;
    TRY(value_string(run, key, &name));
    return dict_put(run, dict_of(dict), name, value);
}

/* ---- from JSON ----------------------------------------------------------------------------------------------------------- */

typedef struct Level {
    JinjaValue container, key;
} Level;

static Status json_scalar(JinjaRun *run, const JsonToken *token, int32_t origin, JinjaValue *out, Error *err) {
    switch (token->kind) {
        case JSON_STRING: return jinja_text(run, token->text, token->length, origin, out, err);
        case JSON_INTEGER:
            if (!token->is_negative && token->unsigned_integer > INT64_MAX) FAIL("an integer in it does not fit 64 bits");
            *out = value_integer(token->integer);
            return OK;
        case JSON_NUMBER: *out = value_float(token->number); return OK;
        case JSON_TRUE:
        case JSON_FALSE: *out = jinja_bool(token->kind == JSON_TRUE); return OK;
        default: *out = jinja_none(); return OK;
    }
}

static Status json_store(JinjaRun *run, Level *level, JinjaValue value) {
    if (level->container.kind == V_LIST) return list_push(run, (List *)level->container.pointer, value);
    return dict_put(run, dict_of(level->container), level->key, value);
}

/* step: how much greater the origin is with each item of the outermost list. */
static Status json_build(JinjaRun *run, JsonReader *reader, int32_t origin, int32_t step, JinjaValue *out, Error *err) {
    Level levels[JSON_MAX_DEPTH + 1];
    int depth = 0;
    origin -= step;
    for (JsonToken token;;) {
        JinjaValue value = {0};
        TRY(json_next(reader, &token, err));
        if (token.kind == JSON_END) return OK;
        if (token.kind == JSON_KEY) {
            TRY(jinja_text(run, token.text, token.length, origin, &levels[depth - 1].key, err));
            continue;
        }
        if (token.kind == JSON_OBJECT_END || token.kind == JSON_ARRAY_END) {
            depth--;
            continue;
        }
        int opens = token.kind == JSON_OBJECT_BEGIN || token.kind == JSON_ARRAY_BEGIN;
        if (depth == 1) origin += step;
        if (token.kind == JSON_OBJECT_BEGIN) TRY(jinja_dict(run, &value, err));
        if (token.kind == JSON_ARRAY_BEGIN) TRY(jinja_list(run, 0, &value, err));
        if (!opens) TRY(json_scalar(run, &token, origin, &value, err));
        if (depth > 0) TRY(json_store(run, &levels[depth - 1], value));
        if (depth == 0) *out = value;
        if (opens) levels[depth++] = (Level){.container = value};
    }
}

static Status from_json(JinjaRun *run, const char *what, const char *text, size_t length, int32_t origin, int32_t step,
                        JinjaValue *out, Error *err) {
    JsonReader reader;
    run->err = err;
    run->steps = 0;
    json_open(&reader, what, text, length, 1, (JsonLimits){.depth = 32});
    Status status = json_build(run, &reader, origin, step, out, err);
    json_close(&reader);
    return status;
}

Status jinja_json(JinjaRun *run, const char *what, const char *text, size_t length, int32_t origin, JinjaValue *out,
                  Error *err) {
    return from_json(run, what, text, length, origin, 0, out, err);
}

Status jinja_json_items(JinjaRun *run, const char *what, const char *text, size_t length, int32_t origin, JinjaValue *out,
                        Error *err) {
    return from_json(run, what, text, length, origin, 1, out, err);
}

/* ---- reading ------------------------------------------------------------------------------------------------------------- */

const String *string_of(JinjaValue value) {
    return value.pointer;
}

const List *list_of(JinjaValue value) {
    return value.pointer;
}

Dict *dict_of(JinjaValue value) {
    return (Dict *)value.pointer;
}

const char *value_type(JinjaValue value) {
    static const char *const names[] = {"undefined", "none",      "bool",      "integer", "float",  "string",   "list",
                                        "dict",      "namespace", "generator", "macro",   "method", "function", "loop"};
    return value.kind == V_LIST && value.form == FORM_TUPLE ? "tuple" : names[value.kind];
}

int value_is_string(JinjaValue value, const char *text) {
    if (value.kind != V_STRING) return 0;
    const String *s = string_of(value);
    return s->length == strlen(text) && memcmp(s->data, text, s->length) == 0;
}

int value_integral(JinjaValue value, int64_t *out) {
    if (value.kind != V_INTEGER && value.kind != V_BOOL) return 0;
    *out = value.integer;
    return 1;
}

int value_number(JinjaValue value, double *out) {
    if (value.kind == V_FLOAT) {
        *out = value.number;
        return 1;
    }
    if (value.kind != V_INTEGER && value.kind != V_BOOL) return 0;
    *out = (double)value.integer;
    return 1;
}

Status value_truth(JinjaRun *run, JinjaValue value, int *out) {
    (void)run;
    switch (value.kind) {
        case V_UNDEFINED:
        case V_NONE: *out = 0; return OK;
        case V_BOOL:
        case V_INTEGER: *out = value.integer != 0; return OK;
        case V_FLOAT: *out = value.number != 0.0; return OK;
        case V_STRING: *out = string_of(value)->length > 0; return OK;
        case V_LIST: *out = list_of(value)->count > 0; return OK;
        case V_DICT: *out = dict_of(value)->count > 0; return OK;
        default: *out = 1; return OK; /* V_LOOP has a length of at least 1 */
    }
}

static Status lists_equal(JinjaRun *run, const List *a, const List *b, int *out) {
    *out = a->count == b->count;
    for (int64_t i = 0; *out && i < a->count; i++)
        TRY(value_equal(run, a->items[i], b->items[i], out));
    return OK;
}

static Status dicts_equal(JinjaRun *run, const Dict *a, const Dict *b, int *out) {
    *out = a->count == b->count;
    for (int64_t i = 0; *out && i < a->count; i++) {
        JinjaValue other = {0};
        int found;
        TRY(dict_find(run, b, a->keys[i], &other, &found));
        *out = found;
        if (found) TRY(value_equal(run, a->values[i], other, out));
    }
    return OK;
}

Status value_equal(JinjaRun *run, JinjaValue a, JinjaValue b, int *out) {
    double x, y;
    int64_t i, j;
    TRY(run_enter(run));
    *out = 0;
    if (value_integral(a, &i) && value_integral(b, &j)) {
        *out = i == j;
    } else if (value_number(a, &x) && value_number(b, &y)) {
        *out = x == y;
    } else if (a.kind != b.kind) {
        *out = 0;
    } else if (a.kind == V_STRING) {
        const String *s = string_of(a), *t = string_of(b);
        *out = s->length == t->length && memcmp(s->data, t->data, s->length) == 0;
        if (s->length == t->length) TRY(run_steps(run, s->length));
    } else if (a.kind == V_LIST) {
        if (a.form > FORM_TUPLE || b.form > FORM_TUPLE) REFUSE(run, "comparing ranges and dict views is not supported");
        if (a.form == b.form) TRY(lists_equal(run, list_of(a), list_of(b), out));
    } else if (a.kind == V_DICT) {
        TRY(dicts_equal(run, dict_of(a), dict_of(b), out));
    } else {
        *out = a.kind == V_UNDEFINED || a.kind == V_NONE || a.pointer == b.pointer;
    }
    run->depth--;
    return OK;
}

static Status lists_order(JinjaRun *run, const List *a, const List *b, int *out) {
    for (int64_t i = 0; i < a->count && i < b->count; i++) {
        int equal = 0;
        TRY(value_equal(run, a->items[i], b->items[i], &equal));
        if (!equal) return value_order(run, a->items[i], b->items[i], out);
    }
    *out = (a->count > b->count) - (a->count < b->count);
    return OK;
}

Status value_order(JinjaRun *run, JinjaValue a, JinjaValue b, int *out) {
    double x = 0, y = 0;
    int64_t i, j;
    TRY(run_enter(run));
    if (value_integral(a, &i) && value_integral(b, &j)) {
        *out = (i > j) - (i < j);
    } else if (value_number(a, &x) && value_number(b, &y)) {
        if (isnan(x) || isnan(y)) REFUSE(run, "comparing with a number that is none (NaN) is not supported");
        *out = (x > y) - (x < y);
    } else if (a.kind == V_STRING && b.kind == V_STRING) {
        const String *s = string_of(a), *t = string_of(b);
        size_t n = s->length < t->length ? s->length : t->length;
        TRY(run_steps(run, n));
        int order = n == 0 ? 0 : memcmp(s->data, t->data, n);
        *out = order != 0 ? (order > 0) - (order < 0) : (s->length > t->length) - (s->length < t->length);
    } else if (a.kind == V_LIST && b.kind == V_LIST && a.form == b.form && a.form <= FORM_TUPLE) {
        TRY(lists_order(run, list_of(a), list_of(b), out));
    } else {
        REFUSE(run, "%s and %s have no order", value_type(a), value_type(b));
    }
    run->depth--;
    return OK;
}

static Status string_items(JinjaRun *run, const String *s, List **out) {
    TRY(list_new(run, 0, out));
    for (size_t at = 0; at < s->length;) {
        uint32_t code;
        JinjaValue item;
        size_t n = string_next(s, at, &code);
        TRY(run_steps(run, 0));
        TRY(string_slice(run, s, at, at + n, &item));
        TRY(list_push(run, *out, item));
        at += n;
    }
    return OK;
}

Status value_items(JinjaRun *run, JinjaValue value, const List **out) {
    List *list;
    Dict *dict;
    Generator *generator;
    switch (value.kind) {
        case V_LIST: *out = list_of(value); return run_steps(run, (size_t)list_of(value)->count);
        case V_UNDEFINED:
            TRY(list_new(run, 0, &list));
            *out = list;
            return OK;
        case V_STRING:
            TRY(string_items(run, string_of(value), &list));
            *out = list;
            return OK;
        case V_DICT:
            dict = dict_of(value);
            TRY(run_steps(run, (size_t)dict->count));
            TRY(run_take(run, sizeof *list, &list));
            *list = (List){.items = dict->keys, .count = dict->count, .capacity = dict->count};
            *out = list;
            return OK;
        case V_GENERATOR:
            generator = (Generator *)value.pointer;
            TRY(run_take(run, sizeof *list, &list));
            list->count = list->capacity = generator->list->count - generator->at;
            if (list->count > 0) list->items = generator->list->items + generator->at;
            generator->at = generator->list->count;
            *out = list;
            return run_steps(run, (size_t)list->count);
        default:
            if (value.kind == V_NONE) REFUSE(run, "none cannot be iterated over");
            REFUSE(run, "a %s cannot be iterated over", value_type(value));
    }
}
