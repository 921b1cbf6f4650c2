/* messages: {"messages": [{"role", "content", "train": bool or "weight": 0|1}, …]}, and the reader of such lists, which
 * ShareGPT's spelling (from, value) and preference pairs share. A content is a string or a list of text parts. Tools and
 * parts that are not text are refused by name. */
#include <string.h>

#include "core/memory.h"
#include "data/layout.h"

typedef struct Message {
    Field content;
    const char *role;
    int train;
} Message;

static Status read_role(JsonReader *reader, const char *name, Message *message, Error *err) {
    static const struct {
        const char *name, *role; /* role NULL: tools */
    } roles[] = {{"system", "system"}, {"user", "user"},    {"human", "user"},          {"assistant", "assistant"},
                 {"gpt", "assistant"}, {"tool", NULL},      {"observation", NULL},      {"function_call", NULL},
                 {"function", NULL},   {"tool_call", NULL}, {"function_response", NULL}};
    JsonToken token;
    TRY(json_expect(reader, JSON_STRING, name, &token, err));
    if (message->role != NULL) FAIL("%s: line %lld: a message has two roles", reader->what, (long long)token.line);
    for (size_t i = 0; i < sizeof roles / sizeof roles[0]; i++) {
        if (!json_key_is(&token, roles[i].name)) continue;
        if (roles[i].role == NULL) {
            FAIL(
                "%s: line %lld: the role \"%s\" is not supported: messages of tools have no place in the templates; remove the "
                "record",
                reader->what, (long long)token.line, roles[i].name);
        }
        message->role = roles[i].role;
        return OK;
    }
    FAIL("%s: line %lld: the role \"%.*s\" is not supported: want system, user or assistant (or ShareGPT's human and gpt)",
         reader->what, (long long)token.line, (int)(token.length < 40 ? token.length : 40), token.text);
}

static Status read_train(JsonReader *reader, const char *name, Message *message, Error *err) {
    JsonToken token;
    TRY(json_next(reader, &token, err));
    int is_flag = token.kind == JSON_TRUE || token.kind == JSON_FALSE;
    int is_number = token.kind == JSON_INTEGER || token.kind == JSON_NUMBER;
    if (token.kind == JSON_NULL) return OK;
    if (!(is_flag || (is_number && (token.number == 0 || token.number == 1)))) {
        FAIL("%s: line %lld: %s: want true, false, 0 or 1 (a message is trained or it is not)", reader->what,
             (long long)token.line, name);
    }
    int train = is_flag ? token.kind == JSON_TRUE : token.number == 1;
    if (message->train >= 0 && message->train != train) {
        FAIL("%s: line %lld: %s: an earlier key of the message says the opposite", reader->what, (long long)token.line, name);
    }
    message->train = train;
    return OK;
}

/* ---- content ------------------------------------------------------------------------------------------------------------- */

static Status read_part_fields(JsonReader *reader, int *is_text, Field *text, Error *err) {
    JsonToken token;
    for (;;) {
        TRY(json_next(reader, &token, err));
        if (token.kind == JSON_OBJECT_END) return OK;
        if (json_key_is(&token, "type")) {
            TRY(json_expect(reader, JSON_STRING, "content[].type", &token, err));
            if (!json_key_is(&token, "text")) {
                FAIL("%s: line %lld: content: parts of the type \"%.*s\" are not supported; only text is trained", reader->what,
                     (long long)token.line, (int)(token.length < 40 ? token.length : 40), token.text);
            }
            *is_text = 1;
        } else if (json_key_is(&token, "text") || json_key_is(&token, "value")) {
            TRY(field_read(reader, "content[].text", text, err));
        } else {
            TRY(json_skip(reader, &token, err));
        }
    }
}

static Status read_part(JsonReader *reader, Field *content, Error *err) {
    Field text = {0};
    int is_text = 0;
    Status status = OK;
    TRY_GOTO(read_part_fields(reader, &is_text, &text, err));
    if (!is_text || !text.seen) {
        status = error_set(err, ERR_FAILED, "%s: line %lld: content: want parts {\"type\": \"text\", \"text\": \"…\"}",
                           reader->what, (long long)reader->line);
        goto done;
    }
    if (text.length > RECORD_MAX_BYTES - content->length) {
        status = error_set(err, ERR_FAILED, "%s: line %lld: content: its parts are longer than %zu MiB together", reader->what,
                           (long long)reader->line, RECORD_MAX_BYTES >> 20);
        goto done;
    }
    content->text = memory_resize(content->text, content->length + text.length + 1);
    if (text.length > 0) memcpy(content->text + content->length, text.text, text.length);
    content->length += text.length;
done:
    field_free(&text);
    return status;
}

/* A string, null (as absent), or a list of text parts, which are joined as they are. */
static Status read_content(JsonReader *reader, const char *name, Field *content, Error *err) {
    JsonToken token;
    if (content->seen)
        FAIL("%s: line %lld: the key \"%s\" stands twice in one record", reader->what, (long long)reader->line, name);
    TRY(json_next(reader, &token, err));
    if (token.kind == JSON_NULL) return OK;
    content->seen = 1;
    if (token.kind == JSON_STRING) return field_take(&token, content);
    if (token.kind != JSON_ARRAY_BEGIN) {
        FAIL("%s: line %lld: %s: want a string or a list of text parts, got %s", reader->what, (long long)token.line, name,
             json_kind_name(token.kind));
    }
    content->text = memory_alloc(1);
    for (;;) {
        TRY(json_next(reader, &token, err));
        if (token.kind == JSON_ARRAY_END) return OK;
        if (token.kind != JSON_OBJECT_BEGIN) {
            FAIL("%s: line %lld: %s: want a string or a list of text parts, got a list with %s", reader->what,
                 (long long)token.line, name, json_kind_name(token.kind));
        }
        TRY(read_part(reader, content, err));
    }
}

/* ---- other keys ---------------------------------------------------------------------------------------------------------- */

/* Keys whose value would have to be rendered; null, "" and [] mean nothing, and so does "[]", as LLaMA-Factory writes it. */
static Status refuse_value(JsonReader *reader, const char *name, Error *err) {
    JsonToken token;
    TRY(json_next(reader, &token, err));
    if (token.kind == JSON_NULL) return OK;
    if (token.kind == JSON_STRING && (token.length == 0 || json_key_is(&token, "[]"))) return OK;
    if (token.kind == JSON_ARRAY_BEGIN) {
        TRY(json_next(reader, &token, err));
        if (token.kind == JSON_ARRAY_END) return OK;
    }
    FAIL("%s: line %lld: \"%s\" is not supported: remove the record, or write the call into the message's content",
         reader->what, (long long)token.line, name);
}

Status messages_read_other(JsonReader *reader, const JsonToken *key, Error *err) {
    static const char *const tools[] = {"tool_calls", "function_call", "tool_call_id", "tools", "functions"};
    for (size_t i = 0; i < sizeof tools / sizeof tools[0]; i++) {
        if (json_key_is(key, tools[i])) return refuse_value(reader, tools[i], err);
    }
    if (!json_key_is(key, "label") && !json_key_is(key, "kto_tag")) return json_skip(reader, key, err);
    JsonToken token;
    TRY(json_next(reader, &token, err));
    if (token.kind != JSON_TRUE && token.kind != JSON_FALSE) return json_skip(reader, &token, err);
    FAIL(
        "%s: line %lld: a true or false \"label\" marks good and bad answers (KTO), and preference training has not landed: "
        "keep the good answers and remove the key",
        reader->what, (long long)token.line);
}

static Status read_fields(JsonReader *reader, Message *message, Error *err) {
    static const char *const flags[] = {"train", "weight", "loss_weight"};
    JsonToken token;
    for (;;) {
        TRY(json_next(reader, &token, err));
        if (token.kind == JSON_OBJECT_END) break;
        int f = 0;
        while (f < 3 && !json_key_is(&token, flags[f]))
            f++;
        if (f < 3) {
            TRY(read_train(reader, flags[f], message, err));
        } else if (json_key_is(&token, "role")) {
            TRY(read_role(reader, "role", message, err));
        } else if (json_key_is(&token, "from")) {
            TRY(read_role(reader, "from", message, err));
        } else if (json_key_is(&token, "content")) {
            TRY(read_content(reader, "content", &message->content, err));
        } else if (json_key_is(&token, "value")) {
            TRY(read_content(reader, "value", &message->content, err));
        } else {
            TRY(messages_read_other(reader, &token, err));
        }
    }
    if (message->role == NULL) FAIL("%s: line %lld: a message has no \"role\"", reader->what, (long long)reader->line);
    return field_want(reader, "content", &message->content, err);
}

Status messages_read_one(JsonReader *reader, Record *record, Error *err) {
    Message message = {.train = -1};
    Status status = read_fields(reader, &message, err);
    if (status != OK) {
        field_free(&message.content);
        return status;
    }
    record_add(record, message.role, message.content.text, message.content.length, message.train);
    return OK;
}

Status messages_read_items(JsonReader *reader, const char *name, Record *record, Error *err) {
    JsonToken token;
    for (;;) {
        TRY(json_next(reader, &token, err));
        if (token.kind == JSON_ARRAY_END) return OK;
        if (token.kind != JSON_OBJECT_BEGIN) {
            FAIL("%s: line %lld: %s: want objects, got %s", reader->what, (long long)token.line, name,
                 json_kind_name(token.kind));
        }
        TRY(messages_read_one(reader, record, err));
    }
}

Status messages_read_list(JsonReader *reader, const char *name, Record *record, Error *err) {
    JsonToken token;
    TRY(json_expect(reader, JSON_ARRAY_BEGIN, name, &token, err));
    if (record->count > 0) FAIL("%s: line %lld: the key \"%s\" stands twice", reader->what, (long long)token.line, name);
    return messages_read_items(reader, name, record, err);
}

/* ---- the layout ---------------------------------------------------------------------------------------------------------- */

static Status read_messages(JsonReader *reader, Record *record, Error *err) {
    JsonToken token;
    for (;;) {
        TRY(json_next(reader, &token, err));
        if (token.kind == JSON_OBJECT_END) break;
        if (json_key_is(&token, "messages")) {
            TRY(messages_read_list(reader, "messages", record, err));
        } else {
            TRY(messages_read_other(reader, &token, err));
        }
    }
    if (record->count == 0) FAIL("%s: line %lld: the record has no messages", reader->what, (long long)reader->line);
    return OK;
}

const Layout layout_messages = {.id = LAYOUT_MESSAGES,
                                .name = "messages",
                                .keys = {"messages"},
                                .default_template = NULL,
                                .uses_model_template = 1,
                                .read = read_messages};
