/* The table of layouts, detection by keys, and what the layouts share. */
#include "data/layout.h"

#include <string.h>

#include "core/memory.h"
#include "core/text.h"

static const Layout *const layouts[] = {&layout_messages, &layout_alpaca, &layout_prompt_completion, &layout_text};
#define LAYOUTS (sizeof layouts / sizeof layouts[0])

const Layout *layout_find(DataLayout id) {
    for (size_t i = 0; i < LAYOUTS; i++) {
        if (layouts[i]->id == id) return layouts[i];
    }
    return NULL;
}

const char *layout_name(DataLayout layout) {
    const Layout *found = layout_find(layout);
    return found == NULL ? "auto" : found->name;
}

void record_clear(Record *record) {
    for (int64_t i = 0; i < record->count; i++)
        memory_free((char *)record->messages[i].content);
    record->count = 0;
    memory_free(record->text);
    record->text = NULL;
    record->text_length = 0;
}

void record_free(Record *record) {
    record_clear(record);
    memory_free(record->messages);
    *record = (Record){0};
}

void record_add(Record *record, const char *role, char *content, size_t length, int train) {
    if (record->count == record->capacity) {
        record->capacity = record->capacity < 8 ? 8 : record->capacity * 2;
        record->messages = memory_resize(record->messages, (size_t)record->capacity * sizeof *record->messages);
    }
    record->messages[record->count++] =
        (ChatMessage){.role = role, .content = content, .content_length = length, .train = train};
}

void record_join_input(Record *record) {
    int64_t kept = 0;
    for (int64_t i = 0; i < record->count; i++) {
        ChatMessage *m = &record->messages[i];
        if (kept == 0 || strcmp(m->role, "input") != 0) {
            record->messages[kept++] = *m;
            continue;
        }
        ChatMessage *user = &record->messages[kept - 1];
        if (m->content_length > 0) {
            size_t length = user->content_length + 1 + m->content_length;
            char *joined = memory_resize((char *)user->content, length);
            joined[user->content_length] = '\n';
            memcpy(joined + user->content_length + 1, m->content, m->content_length);
            user->content = joined;
            user->content_length = length;
        }
        memory_free((char *)m->content);
    }
    record->count = kept;
}

Status field_read(JsonReader *reader, const char *name, Field *field, Error *err) {
    if (field->seen)
        FAIL("%s: line %lld: the key \"%s\" stands twice in one record", reader->what, (long long)reader->line, name);
    JsonToken token;
    TRY(json_next(reader, &token, err));
    if (token.kind == JSON_NULL) return OK;
    field->seen = 1;
    if (token.kind != JSON_STRING) {
        FAIL("%s: line %lld: %s: want a string, got %s", reader->what, (long long)token.line, name, json_kind_name(token.kind));
    }
    field->text = memory_alloc(token.length);
    memcpy(field->text, token.text, token.length);
    field->length = token.length;
    return OK;
}

void field_free(Field *field) {
    memory_free(field->text);
    *field = (Field){0};
}

Status field_want(const JsonReader *reader, const char *name, const Field *field, Error *err) {
    if (!field->seen) FAIL("%s: line %lld: the record has no \"%s\"", reader->what, (long long)reader->line, name);
    return OK;
}

static const JsonLimits record_limits = {.depth = JSON_MAX_DEPTH, .string_bytes = RECORD_MAX_BYTES};

/* Layouts that are known by their keys and not read, with what to do instead. */
static const struct {
    const char *key, *advice;
} unsupported[] = {
    {"conversations",
     "this looks like ShareGPT, which is not supported: rename conversations/from/value to messages/role/content, "
     "human to user, gpt to assistant"},
    {"chosen", "this looks like preference data, which is not supported: keep the chosen answers, as prompt and completion"},
};

Status layout_detect(const char *what, const char *text, size_t length, int64_t line, const Layout **layout, Error *err) {
    JsonReader reader;
    JsonToken token;
    Text keys = {0};
    int has[LAYOUTS][LAYOUT_KEYS] = {{0}};
    const char *advice = NULL;
    Status status = OK;
    *layout = NULL;
    json_open(&reader, what, text, length, line, record_limits);
    TRY_GOTO(json_expect(&reader, JSON_OBJECT_BEGIN, "a record", &token, err));
    for (;;) {
        TRY_GOTO(json_next(&reader, &token, err));
        if (token.kind != JSON_KEY) break;
        if (keys.length < 400)
            text_addf(&keys, "%s\"%.*s\"", keys.length > 0 ? ", " : "", (int)(token.length < 60 ? token.length : 60),
                      token.text);
        for (size_t l = 0; l < LAYOUTS; l++) {
            for (int k = 0; k < LAYOUT_KEYS && layouts[l]->keys[k] != NULL; k++)
                has[l][k] |= json_key_is(&token, layouts[l]->keys[k]);
        }
        for (size_t u = 0; u < sizeof unsupported / sizeof unsupported[0]; u++) {
            if (json_key_is(&token, unsupported[u].key)) advice = unsupported[u].advice;
        }
        TRY_GOTO(json_skip(&reader, &token, err));
    }
    for (size_t l = 0; l < LAYOUTS && *layout == NULL && advice == NULL; l++) {
        int all = 1;
        for (int k = 0; k < LAYOUT_KEYS && layouts[l]->keys[k] != NULL; k++)
            all &= has[l][k];
        if (all) *layout = layouts[l];
    }
    if (*layout == NULL) {
        status = error_set(err, ERR_FAILED, "%s: line %lld: cannot tell the layout from the keys %s: %s", what, (long long)line,
                           keys.length > 0 ? keys.data : "(none)",
                           advice != NULL
                               ? advice
                               : "want \"messages\", or \"instruction\" and \"output\", or \"prompt\" and \"completion\", or "
                                 "\"text\"");
    }
done:
    json_close(&reader);
    text_free(&keys);
    return status;
}

Status layout_read_record(const Layout *layout, const char *what, const char *text, size_t length, int64_t line, Record *record,
                          Error *err) {
    JsonReader reader;
    JsonToken token;
    Status status = OK;
    json_open(&reader, what, text, length, line, record_limits);
    TRY_GOTO(json_expect(&reader, JSON_OBJECT_BEGIN, "a record", &token, err));
    TRY_GOTO(layout->read(&reader, record, err));
    TRY_GOTO(json_expect(&reader, JSON_END, "what follows a record", &token, err));
done:
    json_close(&reader);
    return status;
}
