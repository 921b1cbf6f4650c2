/* The table of layouts, in the order in which they are recognised, detection by keys, and what the layouts share. */
#include "data/layout.h"

#include <string.h>

#include "core/memory.h"
#include "core/text.h"

static const Layout *const layouts[] = {&layout_preference, &layout_messages,          &layout_sharegpt,        &layout_alpaca,
                                        &layout_response,   &layout_prompt_completion, &layout_question_answer, &layout_text};
#define LAYOUTS (sizeof layouts / sizeof layouts[0])

const Layout *layout_find(DataLayout id) {
    for (size_t i = 0; i < LAYOUTS; i++) {
        if (layouts[i]->id == id) return layouts[i];
    }
    return NULL;
}

const char *layout_name(DataLayout layout) {
    const Layout *found = layout_find(layout);
    if (found != NULL) return found->name;
    return layout == LAYOUT_MIXED ? "mixed" : "auto";
}

DataLayout layout_by_name(const char *name) {
    for (size_t i = 0; i < LAYOUTS; i++) {
        if (strcmp(layouts[i]->name, name) == 0) return layouts[i]->id;
    }
    return LAYOUT_AUTO;
}

static void extra_free(const ChatExtra *extra) {
    ChatExtra *owned = (ChatExtra *)extra;
    if (owned == NULL) return;
    extra_clear(owned);
    memory_free(owned);
}

void record_clear(Record *record) {
    for (int64_t i = 0; i < record->count; i++) {
        memory_free((char *)record->messages[i].content);
        extra_free(record->messages[i].extra);
    }
    record->count = 0;
    chat_json_free(&record->tools);
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

void record_add_extra(Record *record, const char *role, char *content, size_t length, int train, ChatExtra *extra) {
    record_add(record, role, content, length, train);
    if (extra_is_empty(extra)) return;
    ChatExtra *owned = memory_alloc(sizeof *owned);
    *owned = *extra;
    *extra = (ChatExtra){0};
    record->messages[record->count - 1].extra = owned;
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

Status field_take(const JsonToken *token, Field *field) {
    field->text = memory_alloc(token->length + 1);
    memcpy(field->text, token->text, token->length);
    field->length = token->length;
    return OK;
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
    return field_take(&token, field);
}

void field_free(Field *field) {
    memory_free(field->text);
    *field = (Field){0};
}

Status field_want(const JsonReader *reader, const char *name, const Field *field, Error *err) {
    if (!field->seen) FAIL("%s: line %lld: the record has no \"%s\"", reader->what, (long long)reader->line, name);
    return OK;
}

static Status read_pair_fields(JsonReader *reader, const char *const names[2], Field fields[2], Error *err) {
    JsonToken token;
    for (;;) {
        TRY(json_next(reader, &token, err));
        if (token.kind == JSON_OBJECT_END) break;
        int f = 0;
        while (f < 2 && !json_key_is(&token, names[f]))
            f++;
        if (f < 2) {
            TRY(field_read(reader, names[f], &fields[f], err));
        } else {
            TRY(json_skip(reader, &token, err));
        }
    }
    for (int f = 0; f < 2; f++)
        TRY(field_want(reader, names[f], &fields[f], err));
    return OK;
}

Status pair_read(JsonReader *reader, const char *const names[2], Record *record, Error *err) {
    static const char *const roles[2] = {"user", "assistant"};
    Field fields[2] = {{0}};
    Status status = read_pair_fields(reader, names, fields, err);
    for (int f = 0; f < 2; f++) {
        if (status == OK) {
            record_add(record, roles[f], fields[f].text, fields[f].length, -1);
            fields[f].text = NULL;
        }
        field_free(&fields[f]);
    }
    return status;
}

static const JsonLimits record_limits = {.depth = JSON_MAX_DEPTH, .string_bytes = RECORD_MAX_BYTES};

/* Layouts that are known by their keys and not read, with what to do instead. */
static const struct {
    const char *key, *advice;
} unsupported[] = {
    {"kto_tag",
     "\"kto_tag\" marks good and bad answers, and preference training has not landed: keep the good answers and "
     "remove the key"},
    {"choice0",
     "these are multiple-choice questions (MMLU), which have no text to train on; write the answer out, as question "
     "and answer"},
    {"choices",
     "these are multiple-choice questions, which have no text to train on; write the answer out, as question and "
     "answer"},
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
        status = error_set(
            err, ERR_FAILED, "%s: line %lld: cannot tell the layout from the keys %s: %s", what, (long long)line,
            keys.length > 0 ? keys.data : "(none)",
            advice != NULL ? advice
                           : "want \"messages\", or \"conversations\", or \"instruction\" and \"output\" (or \"response\"), or "
                             "\"prompt\" and \"completion\", or \"question\" and \"answer\", or \"chosen\" and "
                             "\"rejected\", or \"text\"");
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
