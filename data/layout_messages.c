/* messages: {"messages": [{"role", "content", "train": bool or "weight": 0|1}, …]}. Tools and content that is not a
 * string (images, parts) are refused by name. */
#include <string.h>

#include "core/memory.h"
#include "data/layout.h"

typedef struct Message {
    Field content;
    const char *role;
    int train;
} Message;

static Status read_role(JsonReader *reader, Message *message, Error *err) {
    static const char *const roles[] = {"system", "user", "assistant"};
    JsonToken token;
    TRY(json_expect(reader, JSON_STRING, "role", &token, err));
    if (message->role != NULL) FAIL("%s: line %lld: a message has two roles", reader->what, (long long)token.line);
    for (int i = 0; i < 3; i++) {
        if (json_key_is(&token, roles[i])) message->role = roles[i];
    }
    if (message->role == NULL) {
        FAIL("%s: line %lld: the role \"%.*s\" is not supported: want system, user or assistant", reader->what,
             (long long)token.line, (int)(token.length < 40 ? token.length : 40), token.text);
    }
    return OK;
}

static Status read_train(JsonReader *reader, const char *name, Message *message, Error *err) {
    JsonToken token;
    TRY(json_next(reader, &token, err));
    int is_flag = token.kind == JSON_TRUE || token.kind == JSON_FALSE;
    int is_number = token.kind == JSON_INTEGER || token.kind == JSON_NUMBER;
    if (!(is_flag || (is_number && (token.number == 0 || token.number == 1)))) {
        FAIL("%s: line %lld: %s: want true, false, 0 or 1 (a message is trained or it is not)", reader->what,
             (long long)token.line, name);
    }
    message->train = is_flag ? token.kind == JSON_TRUE : token.number == 1;
    return OK;
}

/* Keys whose value would have to be rendered; null and [] mean nothing. */
static Status refuse_value(JsonReader *reader, const char *name, Error *err) {
    JsonToken token;
    TRY(json_next(reader, &token, err));
    if (token.kind == JSON_NULL) return OK;
    if (token.kind == JSON_ARRAY_BEGIN) {
        TRY(json_next(reader, &token, err));
        if (token.kind == JSON_ARRAY_END) return OK;
    }
    FAIL("%s: line %lld: \"%s\" is not supported: remove the record, or write the call into the message's content",
         reader->what, (long long)token.line, name);
}

static const char *const refused[] = {"tool_calls", "function_call", "tool_call_id", "tools", "functions"};

static Status read_other(JsonReader *reader, const JsonToken *key, Error *err) {
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        if (json_key_is(key, refused[i])) return refuse_value(reader, refused[i], err);
    }
    return json_skip(reader, key, err);
}

static Status read_message_fields(JsonReader *reader, Message *message, Error *err) {
    JsonToken token;
    for (;;) {
        TRY(json_next(reader, &token, err));
        if (token.kind == JSON_OBJECT_END) break;
        if (json_key_is(&token, "role")) {
            TRY(read_role(reader, message, err));
        } else if (json_key_is(&token, "content")) {
            TRY(field_read(reader, "content", &message->content, err));
        } else if (json_key_is(&token, "train")) {
            TRY(read_train(reader, "train", message, err));
        } else if (json_key_is(&token, "weight")) {
            TRY(read_train(reader, "weight", message, err));
        } else {
            TRY(read_other(reader, &token, err));
        }
    }
    if (message->role == NULL) FAIL("%s: line %lld: a message has no \"role\"", reader->what, (long long)token.line);
    return field_want(reader, "content", &message->content, err);
}

static Status read_list(JsonReader *reader, Record *record, Error *err) {
    JsonToken token;
    TRY(json_expect(reader, JSON_ARRAY_BEGIN, "messages", &token, err));
    if (record->count > 0) FAIL("%s: line %lld: the key \"messages\" stands twice", reader->what, (long long)token.line);
    for (;;) {
        TRY(json_next(reader, &token, err));
        if (token.kind == JSON_ARRAY_END) return OK;
        if (token.kind != JSON_OBJECT_BEGIN) {
            FAIL("%s: line %lld: messages: want objects, got %s", reader->what, (long long)token.line,
                 json_kind_name(token.kind));
        }
        Message message = {.train = -1};
        Status status = read_message_fields(reader, &message, err);
        if (status != OK) {
            field_free(&message.content);
            return status;
        }
        record_add(record, message.role, message.content.text, message.content.length, message.train);
    }
}

static Status read_messages(JsonReader *reader, Record *record, Error *err) {
    JsonToken token;
    for (;;) {
        TRY(json_next(reader, &token, err));
        if (token.kind == JSON_OBJECT_END) break;
        if (json_key_is(&token, "messages")) {
            TRY(read_list(reader, record, err));
        } else {
            TRY(read_other(reader, &token, err));
        }
    }
    if (record->count == 0) FAIL("%s: line %lld: the record has no messages", reader->what, (long long)token.line);
    return OK;
}

const Layout layout_messages = {.id = LAYOUT_MESSAGES,
                                .name = "messages",
                                .keys = {"messages"},
                                .default_template = NULL,
                                .uses_model_template = 1,
                                .read = read_messages};
