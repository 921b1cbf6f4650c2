/* preference pairs: {"chosen", "rejected"}, each a string, one message, or a list of messages, behind a prompt that is a
 * string ("prompt", or "instruction" and "input"), a list ("conversations", "messages"), or the part that two lists share.
 *
 * A pair is read and checked; what trains on pairs is not there yet, so dataset_read refuses the file once all of it was
 * read. The record keeps the prompt and the chosen answer. */
#include <string.h>

#include "core/memory.h"
#include "data/layout.h"

typedef struct Pair {
    Record prompt, side[2]; /* chosen, rejected */
} Pair;

static const char *const sides[2] = {"chosen", "rejected"};

/* A string, a message or a list of messages. A string is the assistant's, or, for prompts, the user's. */
static Status read_turns(JsonReader *reader, const char *name, const char *role, Record *out, Error *err) {
    JsonToken token;
    TRY(json_next(reader, &token, err));
    if (token.kind == JSON_NULL) return OK;
    if (out->count > 0)
        FAIL("%s: line %lld: the key \"%s\" stands twice, or beside another prompt", reader->what, (long long)token.line, name);
    if (token.kind == JSON_OBJECT_BEGIN) return messages_read_one(reader, out, err);
    if (token.kind == JSON_ARRAY_BEGIN) return messages_read_items(reader, name, out, err);
    if (token.kind != JSON_STRING) {
        FAIL("%s: line %lld: %s: want a string, a message or a list of messages, got %s", reader->what, (long long)token.line,
             name, json_kind_name(token.kind));
    }
    Field field = {0};
    TRY(field_take(&token, &field));
    record_add(out, role, field.text, field.length, -1);
    return OK;
}

static Status read_fields(JsonReader *reader, Pair *pair, Error *err) {
    static const char *const prompts[] = {"prompt", "conversations", "messages", "instruction"};
    JsonToken token;
    for (;;) {
        TRY(json_next(reader, &token, err));
        if (token.kind == JSON_OBJECT_END) return OK;
        int s = 0, p = 0;
        while (s < 2 && !json_key_is(&token, sides[s]))
            s++;
        while (p < 4 && !json_key_is(&token, prompts[p]))
            p++;
        if (s < 2) {
            TRY(read_turns(reader, sides[s], "assistant", &pair->side[s], err));
        } else if (p < 4) {
            TRY(read_turns(reader, prompts[p], "user", &pair->prompt, err));
        } else {
            TRY(json_skip(reader, &token, err));
        }
    }
}

static int same_calls(const ChatMessage *a, const ChatMessage *b) {
    int calls = chat_has_calls(a);
    if (!calls || !chat_has_calls(b)) return calls == chat_has_calls(b);
    return strcmp(a->extra->fields[CHAT_CALLS].text, b->extra->fields[CHAT_CALLS].text) == 0;
}

static int same_message(const ChatMessage *a, const ChatMessage *b) {
    return same_calls(a, b) && strcmp(a->role, b->role) == 0 && a->content_length == b->content_length &&
           (a->content_length == 0 || memcmp(a->content, b->content, a->content_length) == 0);
}

static Status check_side(const JsonReader *reader, const Record *side, const char *name, Error *err) {
    if (side->count == 0) FAIL("%s: line %lld: the pair has no \"%s\"", reader->what, (long long)reader->line, name);
    const ChatMessage *last = &side->messages[side->count - 1];
    if (strcmp(last->role, "assistant") != 0)
        FAIL("%s: line %lld: %s: want an answer of the assistant at its end, got a message of the %s", reader->what,
             (long long)reader->line, name, last->role);
    if (last->content_length == 0 && !chat_has_calls(last))
        FAIL("%s: line %lld: %s: the answer is empty", reader->what, (long long)reader->line, name);
    return OK;
}

static Status check_pair(const JsonReader *reader, const Pair *pair, Error *err) {
    const Record *a = &pair->side[0], *b = &pair->side[1];
    int64_t shared = 0, least = a->count < b->count ? a->count : b->count;
    for (int s = 0; s < 2; s++)
        TRY(check_side(reader, &pair->side[s], sides[s], err));
    while (shared < least && same_message(&a->messages[shared], &b->messages[shared]))
        shared++;
    if (shared == a->count || shared == b->count)
        FAIL("%s: line %lld: chosen and rejected are the same, or one is the other's beginning", reader->what,
             (long long)reader->line);
    if (pair->prompt.count == 0 && shared == 0)
        FAIL("%s: line %lld: the pair has no prompt, and chosen and rejected share no beginning", reader->what,
             (long long)reader->line);
    return OK;
}

static void move_messages(Record *to, Record *from) {
    for (int64_t i = 0; i < from->count; i++) {
        ChatMessage *m = &from->messages[i];
        char *content = (char *)m->content;
        m->content = NULL;
        record_add(to, m->role, content, m->content_length, m->train);
        to->messages[to->count - 1].extra = m->extra;
        m->extra = NULL;
    }
}

static Status read_preference(JsonReader *reader, Record *record, Error *err) {
    Pair pair = {0};
    Status status = OK;
    TRY_GOTO(read_fields(reader, &pair, err));
    TRY_GOTO(check_pair(reader, &pair, err));
    move_messages(record, &pair.prompt);
    move_messages(record, &pair.side[0]);
done:
    record_free(&pair.prompt);
    record_free(&pair.side[0]);
    record_free(&pair.side[1]);
    return status;
}

const Layout layout_preference = {.id = LAYOUT_PREFERENCE,
                                  .name = "preference",
                                  .keys = {"chosen", "rejected"},
                                  .default_template = NULL,
                                  .uses_model_template = 1,
                                  .read = read_preference};
