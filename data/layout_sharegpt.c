/* sharegpt: {"conversations": [{"from": human|gpt|system|function_call|observation, "value"}, …], "system", "tools"}. The
 * messages are read as those of layout_messages.c; a top-level "system" that is not empty comes first. Tools and calls are bare
 * functions, usually as text (LLaMA-Factory's convention). */
#include <string.h>

#include "data/layout.h"

static Status read_fields(JsonReader *reader, Record *record, Field *system, Error *err) {
    JsonToken token;
    for (;;) {
        TRY(json_next(reader, &token, err));
        if (token.kind == JSON_OBJECT_END) return OK;
        if (json_key_is(&token, "conversations")) {
            TRY(messages_read_list(reader, "conversations", record, err));
        } else if (json_key_is(&token, "system")) {
            TRY(field_read(reader, "system", system, err));
        } else if (json_key_is(&token, "tools")) {
            TRY(tools_read(reader, "tools", 1, &record->tools, err));
        } else {
            TRY(messages_read_other(reader, &token, err));
        }
    }
}

/* Moves the system message, which may stand behind the conversation in the file, to the front. */
static void put_first(Record *record, Field *system) {
    record_add(record, "system", system->text, system->length, -1);
    system->text = NULL;
    ChatMessage moved = record->messages[record->count - 1];
    memmove(record->messages + 1, record->messages, (size_t)(record->count - 1) * sizeof moved);
    record->messages[0] = moved;
}

static Status read_sharegpt(JsonReader *reader, Record *record, Error *err) {
    Field system = {0};
    Status status = OK;
    TRY_GOTO(read_fields(reader, record, &system, err));
    if (record->count == 0) {
        status =
            error_set(err, ERR_FAILED, "%s: line %lld: the record has no conversations", reader->what, (long long)reader->line);
    } else if (system.length > 0 && strcmp(record->messages[0].role, "system") == 0) {
        status = error_set(err, ERR_FAILED,
                           "%s: line %lld: the record has two system messages: \"system\", and the first of "
                           "its conversations",
                           reader->what, (long long)reader->line);
    } else if (system.length > 0) {
        put_first(record, &system);
    }
done:
    field_free(&system);
    return status;
}

const Layout layout_sharegpt = {.id = LAYOUT_SHAREGPT,
                                .name = "sharegpt",
                                .keys = {"conversations"},
                                .default_template = NULL,
                                .uses_model_template = 1,
                                .read = read_sharegpt};
