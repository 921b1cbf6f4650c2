/* Layouts: what the keys of a dataset's record mean. One file per layout; the table is in layout.c.
 *
 * A layout turns one JSON object into a Record: messages, or one text. It reads
 * only; templates, tokens and masks come afterwards and are the same for all.
 */
#ifndef NIBBLE_DATA_LAYOUT_H
#define NIBBLE_DATA_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

#include "core/error.h"
#include "data/dataset.h"
#include "data/json.h"
#include "data/template.h"

#define LAYOUT_KEYS 4
#define RECORD_MAX_BYTES ((size_t)256 << 20) /* one record, and one decoded string in it */

/* Strings and extras are owned by the record; roles are constants. */
typedef struct Record {
    ChatMessage *messages;
    int64_t count, capacity;
    ChatJson tools; /* definitions of functions, for the whole conversation */
    char *text;     /* LAYOUT_TEXT: the document */
    size_t text_length;
} Record;

void record_clear(Record *record); /* frees the strings, keeps the array */
void record_free(Record *record);
/* Takes over `content`. role is one of "system", "user", "assistant", "input", "tool", "function", "ipython". */
void record_add(Record *record, const char *role, char *content, size_t length, int train);
/* The same for a message with more than that: takes over what is in `extra`, and leaves it empty. */
void record_add_extra(Record *record, const char *role, char *content, size_t length, int train, ChatExtra *extra);
/* For templates without a place for alpaca's input: user + "\n" + input become one user message (LLaMA-Factory's rule). */
void record_join_input(Record *record);

typedef struct Layout {
    DataLayout id;
    const char *name;              /* as data.layout spells it */
    const char *keys[LAYOUT_KEYS]; /* a record that has all of these is of this layout; NULL ends */
    const char
        *default_template;   /* without a chat template in the tokenizer; NULL: what suits the vocabulary, with a warning */
    int uses_model_template; /* "auto" takes the model's own chat template where there is one */
    /* The reader stands behind the object's opening brace; reads up to and including the closing one. */
    Status (*read)(JsonReader *reader, Record *record, Error *err);
} Layout;

extern const Layout layout_alpaca, layout_response, layout_messages, layout_sharegpt, layout_prompt_completion,
    layout_question_answer, layout_preference, layout_text;

const Layout *layout_find(DataLayout id); /* NULL for LAYOUT_AUTO and LAYOUT_MIXED */
/* The layout that the keys of this record point to. Fails, listing keys and layouts, when there is none. */
Status layout_detect(const char *what, const char *text, size_t length, int64_t line, const Layout **layout, Error *err);
/* Parses one record; nothing may follow the object. */
Status layout_read_record(const Layout *layout, const char *what, const char *text, size_t length, int64_t line, Record *record,
                          Error *err);

/* One string field of a record: found at most once, null counts as absent. */
typedef struct Field {
    char *text; /* owned until it is moved into a record */
    size_t length;
    int seen;
} Field;
Status field_take(const JsonToken *token, Field *field); /* copies a string's bytes; does not look at seen */
Status field_read(JsonReader *reader, const char *name, Field *field, Error *err);
void field_free(Field *field);
Status field_want(const JsonReader *reader, const char *name, const Field *field, Error *err); /* fails when absent */
/* A record that is two strings: the user's and the assistant's message. Other keys are skipped. */
Status pair_read(JsonReader *reader, const char *const names[2], Record *record, Error *err);

/* ---- layout_messages.c, for the layouts with messages in them; roles and contents in either spelling ---- */
/* One message, behind its opening brace. */
Status messages_read_one(JsonReader *reader, Record *record, Error *err);
/* The rest of a list of them, behind its opening bracket. */
Status messages_read_items(JsonReader *reader, const char *name, Record *record, Error *err);
/* A whole list, into a record without messages. */
Status messages_read_list(JsonReader *reader, const char *name, Record *record, Error *err);
/* ---- layout_tools.c: values stand behind the key; null, "", [] and "[]" leave *out absent ---- */
/* Definitions or calls of functions: a list of objects, one object, or a string that holds either. wraps: bare functions
 * (`name` at the top) become {"type": "function", "function": …}. */
Status tools_read(JsonReader *reader, const char *what, int wraps, ChatJson *out, Error *err);
/* The same from a text, which is no JSON string of the reader any more. */
Status tools_parse(const JsonReader *reader, const char *what, const char *text, size_t length, int wraps, ChatJson *out,
                   Error *err);
/* The value of a key of chat_field_names; *known = 0 and nothing is read when it is another. */
Status extra_read(JsonReader *reader, const JsonToken *key, ChatExtra *extra, int *known, Error *err);
void extra_clear(ChatExtra *extra);
int extra_is_empty(const ChatExtra *extra);
void chat_json_free(ChatJson *json);

/* ---- layout_messages.c again ---- */
/* The value of any other key beside messages: skipped, unless leaving it out would change what the record means. */
Status messages_read_other(JsonReader *reader, const JsonToken *key, Error *err);

#endif
