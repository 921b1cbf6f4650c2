/* alpaca: {"instruction", "input" ("" or absent: none), "output"}, and LLaMA-Factory's optional "system" and
 * "history" [["user", "assistant"], …]. Also
 * Dolly's names: "response" for the output, "context" for the input. */
#include <string.h>

#include "core/memory.h"
#include "data/layout.h"

enum { INSTRUCTION, INPUT, OUTPUT, SYSTEM, FIELDS };
static const char *const names[FIELDS] = {"instruction", "input", "output", "system"};
static const char *const other_names[FIELDS] = {NULL, "context", "response", NULL};

/* Moves a field's string into a message. */
static void move(Record *record, const char *role, Field *field) {
    record_add(record, role, field->text, field->length, -1);
    field->text = NULL;
}

static Status read_exchange(JsonReader *reader, Record *history, Error *err) {
    static const char *const roles[2] = {"user", "assistant"};
    for (int i = 0; i < 2; i++) {
        char *text = NULL;
        size_t length = 0;
        TRY(json_get_string(reader, "history[]", &text, &length, err));
        record_add(history, roles[i], text, length, -1);
    }
    JsonToken token;
    return json_expect(reader, JSON_ARRAY_END, "history[]: want two strings, user and assistant", &token, err);
}

static Status read_history(JsonReader *reader, Record *history, Error *err) {
    JsonToken token;
    TRY(json_next(reader, &token, err));
    if (token.kind == JSON_NULL) return OK;
    if (token.kind != JSON_ARRAY_BEGIN || history->count > 0) {
        FAIL("%s: line %lld: history: want one array of pairs, got %s", reader->what, (long long)token.line,
             json_kind_name(token.kind));
    }
    for (;;) {
        TRY(json_next(reader, &token, err));
        if (token.kind == JSON_ARRAY_END) return OK;
        if (token.kind != JSON_ARRAY_BEGIN) {
            FAIL("%s: line %lld: history: want pairs of strings, got %s", reader->what, (long long)token.line,
                 json_kind_name(token.kind));
        }
        TRY(read_exchange(reader, history, err));
    }
}

static Status read_fields(JsonReader *reader, Field *fields, Record *history, Error *err) {
    JsonToken token;
    for (;;) {
        TRY(json_next(reader, &token, err));
        if (token.kind == JSON_OBJECT_END) return OK;
        int f = 0;
        while (f < FIELDS && !json_key_is(&token, names[f]) && !(other_names[f] != NULL && json_key_is(&token, other_names[f])))
            f++;
        if (f < FIELDS) {
            TRY(field_read(reader, names[f], &fields[f], err));
        } else if (json_key_is(&token, "history")) {
            TRY(read_history(reader, history, err));
        } else {
            TRY(json_skip(reader, &token, err));
        }
    }
}

static Status read_alpaca(JsonReader *reader, Record *record, Error *err) {
    Field fields[FIELDS] = {{0}};
    Record history = {0};
    Status status = OK;
    TRY_GOTO(read_fields(reader, fields, &history, err));
    TRY_GOTO(field_want(reader, "instruction", &fields[INSTRUCTION], err));
    TRY_GOTO(field_want(reader, "output", &fields[OUTPUT], err));
    if (fields[SYSTEM].length > 0) move(record, "system", &fields[SYSTEM]);
    for (int64_t i = 0; i < history.count; i++) {
        ChatMessage *m = &history.messages[i];
        char *content = (char *)m->content;
        m->content = NULL;
        record_add(record, m->role, content, m->content_length, -1);
    }
    move(record, "user", &fields[INSTRUCTION]);
    if (fields[INPUT].length > 0) move(record, "input", &fields[INPUT]);
    move(record, "assistant", &fields[OUTPUT]);
done:
    for (int f = 0; f < FIELDS; f++)
        field_free(&fields[f]);
    record_free(&history);
    return status;
}

const Layout layout_alpaca = {.id = LAYOUT_ALPACA,
                              .name = "alpaca",
                              .keys = {"instruction", "output"},
                              .default_template = "alpaca",
                              .uses_model_template = 1,
                              .read = read_alpaca};

/* The same under Dolly's name for the output. */
const Layout layout_response = {.id = LAYOUT_ALPACA,
                                .name = "alpaca",
                                .keys = {"instruction", "response"},
                                .default_template = "alpaca",
                                .uses_model_template = 1,
                                .read = read_alpaca};
