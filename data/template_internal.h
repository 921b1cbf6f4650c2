/* Inside of the models' own chat templates: what template_jinja.c renders and template_spans.c takes apart. */
#ifndef NIBBLE_DATA_TEMPLATE_INTERNAL_H
#define NIBBLE_DATA_TEMPLATE_INTERNAL_H

#include "data/jinja.h"
#include "data/template.h"

struct TemplateJinja {
    Jinja *jinja;
    char **specials; /* spellings of the tokenizer's special tokens */
    int64_t special_count;
    char *end; /* of them, what ends an ordinary answer; NULL: the template could not be asked */
};

/* Where marked bytes come from: a kind and a message in one number, or a call, counted over the whole conversation. Names, ids
 * and definitions are nobody's: their special tokens are not parsed, and that is all. */
typedef enum OriginKind { ORIGIN_CONTENT, ORIGIN_REASONING, ORIGIN_LABEL, ORIGIN_TOOLS, ORIGIN_CALL } OriginKind;
static inline int32_t origin_of(OriginKind kind, int64_t message_or_call, int64_t count) {
    return (int32_t)((int64_t)kind * (count + 1) + message_or_call);
}
static inline OriginKind origin_kind(int32_t origin, int64_t count) {
    int64_t kind = origin / (count + 1);
    return kind < ORIGIN_CALL ? (OriginKind)kind : ORIGIN_CALL;
}
static inline int64_t origin_call(int32_t origin, int64_t count) {
    return origin - (int64_t)ORIGIN_CALL * (count + 1);
}
#define TEMPLATE_MAX_MESSAGES (INT32_MAX / 8) /* with all calls, so that origins fit */

typedef struct Span { /* of a message in the rendered text */
    size_t begin, end;
    int64_t message;
    int is_whole; /* its end of turn is in it already */
} Span;

typedef struct Layouter {
    const TemplateJinja *template;
    const Conversation *conversation;
    const char *bos, *eos;
    JinjaLimits limits;
    size_t bytes;          /* of the conversation */
    int64_t *call_message; /* of each call */
    int64_t call_count;
    JinjaText text;
    Span *spans; /* in order, apart */
    int64_t span_count;
    SegmentList *out;
} Layouter;

/* ---- template_jinja.c ---- */
/* The variables of a rendering. */
Status template_values(const Layouter *l, const Conversation *conversation, int add_generation_prompt, JinjaRun *run,
                       JinjaValue *out, Error *err);

/* ---- template_spans.c ---- */
/* Behind the first special token in [begin, end), or `begin` when there is none. */
size_t template_end_of_turn(const Layouter *l, size_t begin, size_t end);
/* The longest special token that the text ends with, or NULL. */
const char *template_special_end(const TemplateJinja *template, const char *text, size_t length);
/* Fills in l->spans from l->text. */
Status template_find_spans(Layouter *l, Error *err);

#endif
