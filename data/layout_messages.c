/* messages: {"messages": [{"role", "content", "train": bool or "weight": 0|1, …}, …], "tools"}, and the reader of such lists,
 * which ShareGPT's spelling (from, value) and preference pairs share. A content is a string or a list of text parts. Calls of
 * tools stand in a message's "tool_calls", or are the content of a turn of their own ("function_call"); their results have a role
 * of their own. Parts that are not text are refused by name. */
#include <string.h>

#include "core/memory.h"
#include "data/layout.h"

typedef struct Message {
    Field content;
    const char *role;
    int is_call; /* the content is the call */
    int train;
    ChatExtra extra;
} Message;

static Status read_role(JsonReader *reader, const char *name, Message *message, Error *err) {
    static const struct {
        const char *name, *role; /* role NULL: the assistant's, with a call for its content */
    } roles[] = {{"system", "system"},
                 {"user", "user"},
                 {"human", "user"},
                 {"assistant", "assistant"},
                 {"gpt", "assistant"},
                 {"tool", "tool"},
                 {"function", "function"},
                 {"ipython", "ipython"},
                 {"observation", "tool"},
                 {"tool_response", "tool"},
                 {"function_response", "tool"},
                 {"function_call", NULL},
                 {"tool_call", NULL}};
    JsonToken token;
    TRY(json_expect(reader, JSON_STRING, name, &token, err));
    if (message->role != NULL) FAIL("%s: line %lld: a message has two roles", reader->what, (long long)token.line);
    for (size_t i = 0; i < sizeof roles / sizeof roles[0]; i++) {
        if (!json_key_is(&token, roles[i].name)) continue;
        message->is_call = roles[i].role == NULL;
        message->role = message->is_call ? "assistant" : roles[i].role;
        return OK;
    }
    FAIL(
        "%s: line %lld: the role \"%.*s\" is not supported: want system, user, assistant, tool, function or ipython (or "
        "ShareGPT's human, gpt, function_call and observation)",
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
    FAIL(
        "%s: line %lld: \"%s\" is not supported: write definitions as \"tools\" of the record, calls as \"tool_calls\" of a "
        "message",
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

/* A key's value, behind the key. */
static Status read_field(JsonReader *reader, const JsonToken *key, Message *message, Error *err) {
    static const char *const flags[] = {"train", "weight", "loss_weight"};
    int known = 0, f = 0;
    while (f < 3 && !json_key_is(key, flags[f]))
        f++;
    if (f < 3) return read_train(reader, flags[f], message, err);
    if (json_key_is(key, "role")) return read_role(reader, "role", message, err);
    if (json_key_is(key, "from")) return read_role(reader, "from", message, err);
    if (json_key_is(key, "content")) return read_content(reader, "content", &message->content, err);
    if (json_key_is(key, "value")) return read_content(reader, "value", &message->content, err);
    TRY(extra_read(reader, key, &message->extra, &known, err));
    return known ? OK : messages_read_other(reader, key, err);
}

/* A turn that is a call: its content becomes the calls, and is empty. */
static Status take_call(const JsonReader *reader, Message *message, Error *err) {
    ChatJson *calls = &message->extra.fields[CHAT_CALLS];
    if (calls->text != NULL)
        FAIL("%s: line %lld: a message of the role \"function_call\" has \"tool_calls\" too", reader->what,
             (long long)reader->line);
    TRY(tools_parse(reader, "a function_call", message->content.text, message->content.length, 1, calls, err));
    if (calls->text == NULL) FAIL("%s: line %lld: a function_call calls nothing", reader->what, (long long)reader->line);
    message->content.length = 0;
    return OK;
}

static Status check_message(const JsonReader *reader, Message *message, Error *err) {
    int calls = message->extra.fields[CHAT_CALLS].text != NULL;
    if (message->role == NULL) FAIL("%s: line %lld: a message has no \"role\"", reader->what, (long long)reader->line);
    if (calls && strcmp(message->role, "assistant") != 0)
        FAIL("%s: line %lld: a message of the role \"%s\" has \"tool_calls\"; only the assistant calls tools", reader->what,
             (long long)reader->line, message->role);
    if (!calls || message->content.seen) TRY(field_want(reader, "content", &message->content, err));
    if (message->is_call) return take_call(reader, message, err);
    if (message->content.seen) return OK;
    message->extra.no_content = 1;
    message->content.text = memory_alloc(1);
    return OK;
}

static Status read_fields(JsonReader *reader, Message *message, Error *err) {
    JsonToken token;
    for (;;) {
        TRY(json_next(reader, &token, err));
        if (token.kind == JSON_OBJECT_END) return check_message(reader, message, err);
        TRY(read_field(reader, &token, message, err));
    }
}

Status messages_read_one(JsonReader *reader, Record *record, Error *err) {
    Message message = {.train = -1};
    Status status = read_fields(reader, &message, err);
    if (status != OK) {
        field_free(&message.content);
        extra_clear(&message.extra);
        return status;
    }
    record_add_extra(record, message.role, message.content.text, message.content.length, message.train, &message.extra);
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
        } else if (json_key_is(&token, "tools")) {
            TRY(tools_read(reader, "tools", 0, &record->tools, err));
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
