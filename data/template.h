/* Chat and instruction templates that are built in, chosen by name or recognised.
 *
 * A rendered conversation is a list of segments; each says whether it is
 * trained and whether its special tokens are to be parsed. A model's own Jinja,
 * interpreted (jinja.h), is another source of segments behind the same type.
 */
#ifndef NIBBLE_DATA_TEMPLATE_H
#define NIBBLE_DATA_TEMPLATE_H

#include <stddef.h>
#include <stdint.h>

#include "core/error.h"
#include "data/tokenizer.h"

/* What a message may have beside role and content, under the keys that templates know. */
typedef enum ChatField {
    CHAT_NAME,
    CHAT_CALL_ID,
    CHAT_CALLS,
    CHAT_REASONING_CONTENT,
    CHAT_THINKING,
    CHAT_REASONING,
    CHAT_FIELDS
} ChatField;
extern const char *const chat_field_names[CHAT_FIELDS]; /* name, tool_call_id, tool_calls, reasoning_content, ... */
typedef struct ChatJson {
    char *text; /* one JSON value; NULL: absent */
    size_t length;
    int64_t items; /* of a list of definitions or calls */
} ChatJson;
typedef struct ChatExtra {
    ChatJson fields[CHAT_FIELDS]; /* CHAT_CALLS: a list of objects, not empty */
    int no_content;               /* the message has no key "content" */
} ChatExtra;

typedef struct ChatMessage {
    const char *role; /* system, user, assistant; tool, function, ipython; for "alpaca" also "input", the user's second part */
    const char *content;
    size_t content_length;
    int train;              /* -1: decided by train_on; 0 or 1: the record's own flag */
    const ChatExtra *extra; /* NULL: nothing else */
} ChatMessage;

typedef struct Conversation {
    const ChatMessage *messages;
    int64_t count;
    ChatJson tools; /* a list of objects, not empty; or absent */
} Conversation;
/* Whether a message is a tool's result, and whether it calls tools. */
int chat_is_result(const ChatMessage *message);
int chat_has_calls(const ChatMessage *message);
/* Whether there are definitions, calls or results of tools in it: then only a model's own template can render it. */
int chat_uses_tools(const Conversation *conversation);

typedef struct Segment {
    char *text;
    size_t length;
    int assistant; /* belongs to an assistant's turn, its end-of-turn included */
    int message;   /* index of the message it renders (its end-of-turn included), -1 for framing */
    int special;   /* control text of the template: special tokens in it are parsed; content is not */
} Segment;

typedef struct SegmentList {
    Segment *items;
    int64_t count, capacity;
} SegmentList;
void segments_clear(SegmentList *list);
void segments_free(SegmentList *list);

/* Names of the built-in templates, NULL-terminated. Exact forms: the table in template_chat.c. */
extern const char *const template_names[];
int template_exists(const char *name);
/* Whether an answer's end is no text of the template ("alpaca", "plain"), so that the EOS id is appended to it. */
int template_appends_eos(const char *name);
/* Whether an end of answer is the tokenizer's EOS, in the template's text or appended. */
int template_needs_eos(const char *name);
/* The control token that ends an answer of this built-in where that is not EOS, or NULL. */
const char *template_end_token(const char *name);
/* The built-in that renders the same text as this Jinja source, or NULL when it is not recognised: the source must be
 * byte for byte one of the published ones (line ends aside), since anything less would be a guess. */
const char *template_recognise(const char *jinja);
/* Renders; appends to *out. add_generation_prompt: ends with what opens an assistant's turn. bos/eos: the tokenizer's
 * spellings ("" when none). Fails on roles and tool calls that the template has no place for. */
Status template_render(const char *name, const ChatMessage *messages, int64_t count, int add_generation_prompt, const char *bos,
                       const char *eos, SegmentList *out, Error *err);

/* The tokenizer's own chat template, interpreted; immutable, may be used from many threads. Keeps nothing of the tokenizer.
 * Fails where it cannot be interpreted, and where an answer's end would not be a special token. */
#define TEMPLATE_MODEL "model" /* what it is called where a template's name is shown */
typedef struct TemplateJinja TemplateJinja;
Status template_jinja_open(TemplateJinja **out, const Tokenizer *tokenizer, const char *bos, const char *eos, Error *err);
void template_jinja_close(TemplateJinja *template);
/* As template_render; bos, eos "": undefined in the template. Fails too when a message's text stands in several places. */
Status template_jinja_render(const TemplateJinja *template, const ChatMessage *messages, int64_t count,
                             int add_generation_prompt, const char *bos, const char *eos, SegmentList *out, Error *err);
/* The same with tools. Fails where the template leaves out tools, calls or results, and where it cannot be decided
 * (template_spans.c) which bytes of an answer with calls or reasoning the model itself has to write. */
Status template_jinja_render_conversation(const TemplateJinja *template, const Conversation *conversation,
                                          int add_generation_prompt, const char *bos, const char *eos, SegmentList *out,
                                          Error *err);

#endif
