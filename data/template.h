/* Chat and instruction templates that are built in, chosen by name or recognised.
 *
 * A rendered conversation is a list of segments; each says whether it is
 * trained and whether its special tokens are to be parsed. (Interpreting a
 * model's own Jinja is another source of segments behind the same type.)
 */
#ifndef NIBBLE_DATA_TEMPLATE_H
#define NIBBLE_DATA_TEMPLATE_H

#include <stddef.h>
#include <stdint.h>

#include "core/error.h"

typedef struct ChatMessage {
    const char *role; /* system, user, assistant */
    const char *content;
    size_t content_length;
    int train; /* -1: decided by train_on; 0 or 1: the record's own flag */
} ChatMessage;

typedef struct Segment {
    char *text;
    size_t length;
    int assistant; /* belongs to an assistant's turn, its end-of-turn included */
    int message;   /* index of the message it renders, -1 for framing */
    int special;   /* control text of the template: special tokens in it are parsed; content is not */
} Segment;

typedef struct SegmentList {
    Segment *items;
    int64_t count, capacity;
} SegmentList;
void segments_clear(SegmentList *list);
void segments_free(SegmentList *list);

/* Names: "chatml", "llama3", "llama2", "mistral", "zephyr", "alpaca", "plain". NULL-terminated. */
extern const char *const template_names[];
/* The built-in that renders the same text as this Jinja source, or NULL when it is not recognised. bos: the BOS text. */
const char *template_recognise(const char *jinja);
/* Renders. add_generation_prompt: ends with what opens an assistant's turn. bos/eos: the tokenizer's spellings ("" when none). */
Status template_render(const char *name, const ChatMessage *messages, int64_t count, int add_generation_prompt, const char *bos,
                       const char *eos, SegmentList *out, Error *err);

#endif
