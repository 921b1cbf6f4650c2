/* Tools in records: definitions, calls and what else a message has beside role and content. They stay the JSON that they are, so
 * that a template sees them as the data has them; only their form is checked. Each may also be a string that holds that JSON. */
#include <string.h>

#include "core/memory.h"
#include "core/text.h"
#include "data/layout.h"

static const JsonLimits tool_limits = {.depth = 32, .string_bytes = RECORD_MAX_BYTES};

void chat_json_free(ChatJson *json) {
    memory_free(json->text);
    *json = (ChatJson){0};
}

static void chat_json_set(ChatJson *json, const char *text, size_t length) {
    json->text = memory_alloc(length + 1);
    if (length > 0) memcpy(json->text, text, length);
    json->text[length] = 0;
    json->length = length;
}

/* ---- checking ------------------------------------------------------------------------------------------------------------ */

typedef struct Form {
    int has_function, has_name; /* has_name: at the top, or in "function" */
} Form;

static Status check_name(JsonReader *reader, const char *what, int *has_name, Error *err) {
    JsonToken token;
    TRY(json_next(reader, &token, err));
    *has_name = token.kind == JSON_STRING && token.length > 0;
    if (*has_name) return OK;
    FAIL("%s: line %lld: %s: want a function's name, got %s", reader->what, (long long)token.line, what,
         token.kind == JSON_STRING ? "an empty string" : json_kind_name(token.kind));
}

static Status check_arguments(JsonReader *reader, const char *what, Error *err) {
    JsonToken token;
    TRY(json_next(reader, &token, err));
    if (token.kind == JSON_OBJECT_BEGIN || token.kind == JSON_STRING || token.kind == JSON_NULL)
        return json_skip(reader, &token, err);
    FAIL("%s: line %lld: %s: want arguments as an object, or a string that holds one, got %s", reader->what,
         (long long)token.line, what, json_kind_name(token.kind));
}

static Status check_function(JsonReader *reader, const char *what, Form *form, Error *err) {
    JsonToken token;
    TRY(json_next(reader, &token, err));
    if (token.kind != JSON_OBJECT_BEGIN) {
        FAIL("%s: line %lld: %s: want \"function\" to be an object, got %s", reader->what, (long long)token.line, what,
             json_kind_name(token.kind));
    }
    form->has_function = 1;
    for (;;) {
        TRY(json_next(reader, &token, err));
        if (token.kind == JSON_OBJECT_END) return OK;
        if (json_key_is(&token, "name")) {
            TRY(check_name(reader, what, &form->has_name, err));
        } else if (json_key_is(&token, "arguments")) {
            TRY(check_arguments(reader, what, err));
        } else {
            TRY(json_skip(reader, &token, err));
        }
    }
}

/* One definition or call, behind its brace. */
static Status check_object(JsonReader *reader, const char *what, Form *form, Error *err) {
    JsonToken token;
    for (;;) {
        TRY(json_next(reader, &token, err));
        if (token.kind == JSON_OBJECT_END) break;
        if (json_key_is(&token, "function")) {
            TRY(check_function(reader, what, form, err));
        } else if (json_key_is(&token, "name")) {
            TRY(check_name(reader, what, &form->has_name, err));
        } else if (json_key_is(&token, "arguments")) {
            TRY(check_arguments(reader, what, err));
        } else {
            TRY(json_skip(reader, &token, err));
        }
    }
    if (form->has_name) return OK;
    FAIL("%s: line %lld: %s: want objects {\"type\": \"function\", \"function\": {\"name\": …}}, got one without a name",
         reader->what, (long long)reader->line, what);
}

/* Copies an object's text, in the form that templates expect where the data has the bare function. */
static void add_object(Text *out, const char *text, size_t length, int wraps) {
    text_adds(out, out->length > 1 ? ", " : "");
    if (wraps) text_adds(out, "{\"type\": \"function\", \"function\": ");
    text_add(out, text, length);
    if (wraps) text_adds(out, "}");
}

/* What follows an opening token of a list, or an object alone. */
static Status check_items(JsonReader *reader, const char *what, JsonToken *token, int wraps, Text *out, int64_t *items,
                          Error *err) {
    int is_list = token->kind == JSON_ARRAY_BEGIN;
    text_adds(out, "[");
    for (;;) {
        if (is_list) TRY(json_next(reader, token, err));
        if (token->kind == JSON_ARRAY_END) break;
        if (token->kind != JSON_OBJECT_BEGIN) {
            FAIL("%s: line %lld: %s: want a list of objects, got %s%s", reader->what, (long long)token->line, what,
                 is_list ? "a list with " : "", json_kind_name(token->kind));
        }
        const char *begin = reader->at - 1;
        Form form = {0};
        TRY(check_object(reader, what, &form, err));
        ++*items;
        add_object(out, begin, (size_t)(reader->at - begin), wraps && !form.has_function);
        if (!is_list) break;
    }
    text_adds(out, "]");
    return OK;
}

/* Text that holds a list (or an object) of definitions or calls. Nothing in it: *out stays absent. */
static Status parse_text(const char *name, const char *text, size_t length, int64_t line, const char *what, int wraps,
                         ChatJson *out, Error *err) {
    JsonReader reader;
    JsonToken token;
    Text made = {0};
    int64_t items = 0;
    Status status = OK;
    json_open(&reader, name, text, length, line, tool_limits);
    TRY_GOTO(json_next(&reader, &token, err));
    if (token.kind != JSON_NULL) {
        TRY_GOTO(check_items(&reader, what, &token, wraps, &made, &items, err));
        if (items > 0) chat_json_set(out, made.data, made.length);
        out->items = items;
    }
    TRY_GOTO(json_expect(&reader, JSON_END, what, &token, err));
done:
    json_close(&reader);
    text_free(&made);
    return status;
}

static int is_all_space(const char *text, size_t length) {
    size_t at = 0;
    while (at < length && (text[at] == ' ' || (text[at] >= '\t' && text[at] <= '\r')))
        at++;
    return at == length;
}

Status tools_read(JsonReader *reader, const char *what, int wraps, ChatJson *out, Error *err) {
    const char *begin = reader->at;
    JsonToken token;
    if (out->text != NULL)
        FAIL("%s: line %lld: the key \"%s\" stands twice in one record", reader->what, (long long)reader->line, what);
    int64_t line = reader->line;
    TRY(json_next(reader, &token, err));
    if (token.kind == JSON_NULL) return OK;
    if (token.kind == JSON_STRING) {
        if (is_all_space(token.text, token.length)) return OK;
        return tools_parse(reader, what, token.text, token.length, wraps, out, err);
    }
    TRY(json_skip(reader, &token, err));
    return parse_text(reader->what, begin, (size_t)(reader->at - begin), line, what, wraps, out, err);
}

Status tools_parse(const JsonReader *reader, const char *what, const char *text, size_t length, int wraps, ChatJson *out,
                   Error *err) {
    Error reason = {0};
    if (parse_text("JSON", text, length, 1, what, wraps, out, &reason) == OK) return OK;
    FAIL("%s: line %lld: the text of %s: %s", reader->what, (long long)reader->line, what, reason.text);
}

/* ---- other keys of a message --------------------------------------------------------------------------------------------- */

/* The value as it stands; null counts as absent. */
static Status take_value(JsonReader *reader, ChatJson *out, Error *err) {
    const char *begin = reader->at;
    JsonToken token;
    TRY(json_next(reader, &token, err));
    if (token.kind == JSON_NULL) return OK;
    TRY(json_skip(reader, &token, err));
    chat_json_set(out, begin, (size_t)(reader->at - begin));
    return OK;
}

Status extra_read(JsonReader *reader, const JsonToken *key, ChatExtra *extra, int *known, Error *err) {
    int f = 0;
    while (f < CHAT_FIELDS && !json_key_is(key, chat_field_names[f]))
        f++;
    *known = f < CHAT_FIELDS;
    if (!*known) return OK;
    if (f == CHAT_CALLS) return tools_read(reader, chat_field_names[f], 0, &extra->fields[f], err);
    if (extra->fields[f].text != NULL)
        FAIL("%s: line %lld: the key \"%s\" stands twice in one message", reader->what, (long long)reader->line,
             chat_field_names[f]);
    return take_value(reader, &extra->fields[f], err);
}

void extra_clear(ChatExtra *extra) {
    for (int f = 0; f < CHAT_FIELDS; f++)
        chat_json_free(&extra->fields[f]);
    *extra = (ChatExtra){0};
}

int extra_is_empty(const ChatExtra *extra) {
    for (int f = 0; f < CHAT_FIELDS; f++) {
        if (extra->fields[f].text != NULL) return 0;
    }
    return !extra->no_content;
}
