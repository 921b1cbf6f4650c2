/* Whose bytes are whose in a rendered conversation.
 *
 * Contents, calls and reasoning enter the interpreter marked with their message, and the marks stay on their bytes. A message
 * owns the bytes from its first marked one to its last, what the template writes between them, and what follows up to and
 * including the first special token: that is what ends the turn.
 *
 *   <|im_start|>assistant\n  Hello  <|im_end|>  \n<|im_start|>user\n …
 *   framing                  marked   end of turn  framing
 *
 * Where an answer calls tools, or does not begin with its content's beginning, the template writes more of what the model has to
 * produce, before the first marked byte and behind the last:
 *
 *   <|im_start|>assistant\n  <tool_call>\n{"name": "  f  ", "arguments": {"a": 2}}\n</tool_call><|im_end|>  \n
 *   framing                  template                mk  template                                       end
 *
 * Its begin is where the content of an ordinary answer would begin in its place: the template is asked, by rendering the
 * conversation with such an answer (or with the prompt for one), and believed where the text up to there is the same. Its end is
 * that of the conversation rendered up to it, or the special token that ends ordinary answers. Neither may take in a token that
 * opens a turn. Where this decides nothing the record is refused.
 */
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "data/template_internal.h"

#define PROBE_WORK 4 /* all probes of a conversation may take so many times what a rendering may */

/* ---- special tokens ------------------------------------------------------------------------------------------------------ */

/* The longest special token at `at` that ends by `end`, or NULL. */
static const char *special_at(const Layouter *l, size_t at, size_t end) {
    const char *found = NULL;
    size_t longest = 0;
    for (int64_t i = 0; i < l->template->special_count; i++) {
        const char *special = l->template->specials[i];
        if (special[0] != l->text.data[at]) continue;
        size_t n = strlen(special);
        if (n <= longest || n > end - at || memcmp(special, l->text.data + at, n) != 0) continue;
        longest = n;
        found = special;
    }
    return found;
}

size_t template_end_of_turn(const Layouter *l, size_t begin, size_t end) {
    for (size_t at = begin; at < end; at++) {
        const char *special = special_at(l, at, end);
        if (special != NULL) return at + strlen(special);
    }
    return begin;
}

const char *template_special_end(const TemplateJinja *template, const char *text, size_t length) {
    const char *found = NULL;
    size_t longest = 0;
    for (int64_t i = 0; i < template->special_count; i++) {
        size_t n = strlen(template->specials[i]);
        if (n <= longest || n > length || memcmp(template->specials[i], text + length - n, n) != 0) continue;
        longest = n;
        found = template->specials[i];
    }
    return found;
}

/* ---- marks --------------------------------------------------------------------------------------------------------------- */

/* -1: nobody's. */
static int64_t mark_message(const Layouter *l, const JinjaMark *mark) {
    int64_t count = l->conversation->count;
    if (mark->origin < 0) return -1;
    switch (origin_kind(mark->origin, count)) {
        case ORIGIN_CONTENT:
        case ORIGIN_REASONING: return mark->origin % (count + 1);
        case ORIGIN_CALL: return l->call_message[origin_call(mark->origin, count)];
        default: return -1;
    }
}

static int has_bytes(const JinjaMark *mark) {
    return mark->end > mark->begin && mark->origin >= 0;
}

static int is_blank(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static Status refuse_left_out(const Layouter *l, int64_t message, const char *what, Error *err) {
    FAIL(
        "the model's chat template leaves out %s of message %lld (role %s), so that the model would learn from something else "
        "than the record; remove the record, or write it into the message's content",
        what, (long long)message + 1, l->conversation->messages[message].role);
}

/* Definitions of tools, each call and each result must leave something in the text. */
static Status check_rendered(const Layouter *l, Error *err) {
    const Conversation *c = l->conversation;
    if (!chat_uses_tools(c)) return OK;
    uint8_t *contents = memory_calloc((size_t)c->count + 1, 1), *calls = memory_calloc((size_t)l->call_count + 1, 1);
    int tools = c->tools.text == NULL;
    Status status = OK;
    for (size_t i = 0; i < l->text.mark_count; i++) {
        const JinjaMark *mark = &l->text.marks[i];
        if (!has_bytes(mark)) continue;
        OriginKind kind = origin_kind(mark->origin, c->count);
        if (kind == ORIGIN_TOOLS) tools = 1;
        if (kind == ORIGIN_CONTENT) contents[mark->origin] = 1;
        if (kind == ORIGIN_CALL) calls[origin_call(mark->origin, c->count)] = 1;
    }
    for (int64_t k = 0; k < l->call_count && status == OK; k++) {
        if (!calls[k]) status = refuse_left_out(l, l->call_message[k], "a tool call", err);
    }
    for (int64_t i = 0; i < c->count && status == OK; i++) {
        const ChatMessage *m = &c->messages[i];
        size_t blank = 0;
        while (blank < m->content_length && is_blank(m->content[blank]))
            blank++;
        if (chat_is_result(m) && blank < m->content_length && !contents[i]) status = refuse_left_out(l, i, "the content", err);
    }
    memory_free(contents);
    memory_free(calls);
    if (status == OK && !tools)
        FAIL(
            "the model's chat template has no place for the record's \"tools\": remove them, or choose a model that calls "
            "tools");
    return status;
}

/* ---- asking the template ------------------------------------------------------------------------------------------------- */

typedef enum TurnForm {
    TURN_MARKED, /* from its first mark to its end of turn */
    TURN_OPENED, /* from `begin` */
    TURN_WHOLE   /* [begin, end) */
} TurnForm;

typedef struct Turn {
    TurnForm form;
    size_t begin, end;
    size_t mark; /* its first mark with bytes, or mark_count */
} Turn;

typedef struct Prober {
    const Layouter *l;
    JinjaRun *run;         /* NULL: nothing was asked yet */
    ChatMessage *messages; /* as many as the conversation has */
    int64_t budget;        /* of steps */
    int always;            /* some rendering had the same text up to the answer's first mark: it stands before any answer */
} Prober;

/* What stands around the first mark of a turn. */
typedef struct Place {
    int64_t message;
    size_t mark;  /* the first */
    size_t prev;  /* behind the marked bytes before it */
    size_t first; /* where it begins */
} Place;

/* Renders p->messages[0, count); false when the template refuses, or when enough was tried. */
static int probe(Prober *p, int64_t count, int add_generation_prompt, JinjaText *out) {
    Conversation c = {p->messages, count, p->l->conversation->tools};
    JinjaValue values;
    Error unused;
    if (p->budget <= 0) return 0;
    if (p->run == NULL) p->run = jinja_run_create(p->l->limits);
    jinja_run_clear(p->run);
    int done = template_values(p->l, &c, add_generation_prompt, p->run, &values, &unused) == OK &&
               jinja_render(p->l->template->jinja, p->run, values, out, &unused) == OK;
    p->budget -= jinja_run_steps(p->run) + (int64_t)(p->l->bytes / 16) + count + 1000;
    return done;
}

/* Whether the text up to `at` is the probe's, and `at` lies between what is marked before and the answer's first mark. */
static int agrees(Prober *p, const Place *place, const JinjaText *text, size_t at) {
    size_t same = 0, longest = text->length < place->first ? text->length : place->first;
    while (same < longest && p->l->text.data[same] == text->data[same])
        same++;
    p->always |= same == place->first;
    return at >= place->prev && at <= place->first && at <= same;
}

/* Puts an ordinary answer in place of the messages [message, next), and drops those from `count` on. */
static int64_t replace(Prober *p, const ChatMessage *plain, int64_t message, int64_t next, int64_t count) {
    const ChatMessage *all = p->l->conversation->messages;
    int64_t made = 0;
    for (int64_t i = 0; i < message; i++)
        p->messages[made++] = all[i];
    p->messages[made++] = *plain;
    for (int64_t i = next; i < count; i++)
        p->messages[made++] = all[i];
    return made;
}

static int try_answer(Prober *p, const Place *place, const ChatMessage *plain, int64_t next, int64_t count, size_t *begin) {
    JinjaText text;
    if (!probe(p, replace(p, plain, place->message, next, count), 0, &text)) return 0;
    for (size_t i = 0; i < text.mark_count; i++) {
        if (text.marks[i].origin != place->message || text.marks[i].begin == text.marks[i].end) continue;
        *begin = text.marks[i].begin;
        return agrees(p, place, &text, *begin);
    }
    return 0;
}

/* A template without a prompt for answers says nothing by writing none. */
static int try_prompt(Prober *p, const Place *place, int64_t count, size_t *begin) {
    JinjaText text;
    if (!probe(p, count, 1, &text)) return 0;
    *begin = text.length;
    return agrees(p, place, &text, *begin) && probe(p, count, 0, &text) && text.length < *begin;
}

/* Where an ordinary answer in this place would begin. It stands for the calls and what follows them up to the next question, for
 * the one message, or at the end of the conversation; else the prompt for an answer is asked. Where neither agrees, but what stands
 * before the answer's first marked byte does, that is written before any answer: <think>\n in front of reasoning, say. */
static int find_begin(Prober *p, const Place *place, size_t *begin) {
    const Conversation *c = p->l->conversation;
    const ChatMessage *m = &c->messages[place->message];
    ChatExtra named = {0};
    if (m->extra != NULL) named.fields[CHAT_NAME] = m->extra->fields[CHAT_NAME];
    const ChatMessage plain = {m->role, "x", 1, -1, &named};
    int64_t after = place->message + 1, next = after;
    while (next < c->count && strcmp(c->messages[next].role, "user") != 0)
        next++;
    if (try_answer(p, place, &plain, next, c->count, begin)) return 1;
    if (next != after && try_answer(p, place, &plain, after, c->count, begin)) return 1;
    if (next != c->count && after != c->count && try_answer(p, place, &plain, after, after, begin)) return 1;
    if (try_prompt(p, place, replace(p, &plain, place->message, after, after) - 1, begin)) return 1;
    *begin = place->first;
    return p->always;
}

/* Whether a token stands in what opened the turn: between the end of the turn before, or its last marked byte, and `begin`. */
static int is_opening(const Prober *p, const Place *place, size_t begin, const char *special) {
    const char *text = p->l->text.data, *end = p->l->template->end, *found;
    size_t from = place->prev;
    while (end != NULL && (found = memmem(text + from, begin - from, end, strlen(end))) != NULL)
        from = (size_t)(found - text) + strlen(end);
    return memmem(text + from, begin - from, special, strlen(special)) != NULL;
}

/* Behind the marks of the message that begin before `limit`; *limit comes down to the first mark of anything else. */
static size_t marks_end(const Layouter *l, const Place *place, size_t *limit) {
    size_t last = place->first;
    for (size_t i = place->mark; i < l->text.mark_count && l->text.marks[i].begin < *limit; i++) {
        if (!has_bytes(&l->text.marks[i])) continue;
        if (mark_message(l, &l->text.marks[i]) == place->message)
            last = l->text.marks[i].end;
        else
            *limit = l->text.marks[i].begin;
    }
    return last;
}

/* The conversation rendered up to this message ends with its end of turn, where later messages change nothing before it. */
static int end_of_prefix(Prober *p, const Place *place, size_t begin, size_t *end) {
    const Layouter *l = p->l;
    JinjaText text;
    memcpy(p->messages, l->conversation->messages, (size_t)(place->message + 1) * sizeof *p->messages);
    if (!probe(p, place->message + 1, 0, &text)) return 0;
    if (text.length > l->text.length || memcmp(text.data, l->text.data, text.length) != 0) return 0;
    size_t limit = text.length, last = marks_end(l, place, &limit), at = text.length;
    if (limit < text.length || last > text.length) return 0;
    while (at > last && is_blank(l->text.data[at - 1]))
        at--;
    const char *ending = template_special_end(l->template, l->text.data + last, at - last);
    size_t n = ending == NULL ? 0 : strlen(ending);
    *end = at;
    for (size_t i = last; i + n < at; i++) {
        const char *special = special_at(l, i, at);
        if (special != NULL && is_opening(p, place, begin, special)) return 0;
    }
    return n > 0;
}

/* The token that ends ordinary answers, before anything of another message and any token that opens a turn. */
static int end_by_token(const Prober *p, const Place *place, size_t begin, size_t *end) {
    const Layouter *l = p->l;
    size_t limit = l->text.length, last = marks_end(l, place, &limit);
    for (size_t at = last; at < limit && l->template->end != NULL; at++) {
        const char *special = special_at(l, at, limit);
        if (special == NULL) continue;
        if (strcmp(special, l->template->end) == 0) {
            *end = at + strlen(special);
            return 1;
        }
        if (is_opening(p, place, begin, special)) return 0;
    }
    return 0;
}

/* ---- turns --------------------------------------------------------------------------------------------------------------- */

/* Whether the first marked bytes are the beginning of the content, white space aside. */
static int begins_as_content(const Layouter *l, const JinjaMark *mark, const ChatMessage *m) {
    const char *shown = l->text.data + mark->begin, *content = m->content;
    size_t n = mark->end - mark->begin, left = m->content_length;
    for (; n > 0 && is_blank(*shown); n--)
        shown++;
    for (; left > 0 && is_blank(*content); left--)
        content++;
    return n <= left && memcmp(shown, content, n) == 0;
}

/* Everything around a message that is not trained anyway, up to its neighbours. */
static void claim(const Layouter *l, const Place *place, Turn *turn) {
    size_t limit = l->text.length, last = marks_end(l, place, &limit);
    *turn = (Turn){.form = TURN_WHOLE,
                   .begin = template_end_of_turn(l, place->prev, place->first),
                   .end = template_end_of_turn(l, last, limit),
                   .mark = turn->mark};
}

static Status locate(Prober *p, Turn *turn, int64_t message, Error *err) {
    const Layouter *l = p->l;
    const ChatMessage *m = &l->conversation->messages[message];
    const JinjaMark *mark = &l->text.marks[turn->mark];
    Place place = {.message = message, .mark = turn->mark, .first = mark->begin};
    for (size_t i = turn->mark; i-- > 0 && place.prev == 0;)
        if (has_bytes(&l->text.marks[i])) place.prev = l->text.marks[i].end;
    int whole = chat_has_calls(m),
        known = origin_kind(mark->origin, l->conversation->count) == ORIGIN_CONTENT && begins_as_content(l, mark, m);
    if (known && !whole) return OK;
    size_t begin = mark->begin, end = 0;
    p->always = 0;
    int found = known || find_begin(p, &place, &begin);
    int ended = found && whole && (end_of_prefix(p, &place, begin, &end) || end_by_token(p, &place, begin, &end));
    if (found && (ended || !whole)) {
        *turn = (Turn){.form = whole ? TURN_WHOLE : TURN_OPENED, .begin = begin, .end = end, .mark = turn->mark};
        return OK;
    }
    if (m->train == 0) {
        claim(l, &place, turn);
        return OK;
    }
    if (p->budget <= 0)
        FAIL("message %lld: finding what of it is the model's to write takes too many renderings", (long long)message + 1);
    FAIL(
        "message %lld: where the model's own part of it %s in the rendering of the model's chat template cannot be decided%s; "
        "mark what is trained in the template with {%% generation %%}, or give the message \"train\": false",
        (long long)message + 1, found ? "ends" : "begins",
        found ? " (the template writes no special token that ends the turn behind the calls)" : "");
}

/* Which answers have to be asked for, and their turns. */
static Status find_turns(const Layouter *l, Turn *turns, Error *err) {
    const Conversation *c = l->conversation;
    Prober p = {.l = l, .budget = PROBE_WORK * l->limits.steps};
    Status status = OK;
    for (int64_t i = 0; i < c->count; i++)
        turns[i].mark = l->text.mark_count;
    for (size_t i = l->text.mark_count; i-- > 0;) {
        int64_t message = mark_message(l, &l->text.marks[i]);
        if (message >= 0 && has_bytes(&l->text.marks[i])) turns[message].mark = i;
    }
    p.messages = memory_calloc((size_t)c->count + 1, sizeof *p.messages);
    for (int64_t i = 0; i < c->count && status == OK; i++) {
        if (strcmp(c->messages[i].role, "assistant") != 0 || turns[i].mark == l->text.mark_count) continue;
        status = locate(&p, &turns[i], i, err);
    }
    jinja_run_free(p.run);
    memory_free(p.messages);
    return status;
}

/* ---- spans --------------------------------------------------------------------------------------------------------------- */

static Status refuse_twice(int64_t message, Error *err) {
    FAIL(
        "the model's chat template writes message %lld in several places, so that what is to be trained is ambiguous; choose a "
        "built-in template in data.template",
        (long long)message + 1);
}

/* One span a message, from the marks: empty marks count only where a message has no other. */
static Status add_marked(Layouter *l, const Turn *turns, Error *err) {
    uint8_t *seen = memory_calloc((size_t)l->conversation->count + 1, 1);
    Status status = OK;
    for (size_t i = 0; i < l->text.mark_count && status == OK; i++) {
        const JinjaMark *mark = &l->text.marks[i];
        int64_t m = mark_message(l, mark);
        if (m < 0 || turns[m].form == TURN_WHOLE) continue;
        int is_empty = mark->end == mark->begin;
        if (is_empty && turns[m].mark < l->text.mark_count) continue;
        if (l->span_count > 0 && l->spans[l->span_count - 1].message == m) {
            l->spans[l->span_count - 1].end = mark->end;
            continue;
        }
        const ChatMessage *message = &l->conversation->messages[m];
        int is_answer = strcmp(message->role, "assistant") == 0 || message->train == 1;
        if (seen[m] && is_empty) continue;
        if (seen[m] && is_answer) status = refuse_twice(m, err);
        seen[m] = 1;
        l->spans[l->span_count++] = (Span){turns[m].form == TURN_OPENED ? turns[m].begin : mark->begin, mark->end, m, 0};
    }
    memory_free(seen);
    return status;
}

static int compare_spans(const void *a, const void *b) {
    const Span *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

static Status add_whole(Layouter *l, const Turn *turns, Error *err) {
    int64_t before = l->span_count;
    for (int64_t i = 0; i < l->conversation->count; i++) {
        if (turns[i].form == TURN_WHOLE) l->spans[l->span_count++] = (Span){turns[i].begin, turns[i].end, i, 1};
    }
    if (l->span_count == before) return OK;
    qsort(l->spans, (size_t)l->span_count, sizeof *l->spans, compare_spans);
    for (int64_t i = 1; i < l->span_count; i++) {
        if (l->spans[i].begin < l->spans[i - 1].end) return refuse_twice(l->spans[i].message, err);
    }
    return OK;
}

/* Adds the end of turn behind each span, and the space before an answer. */
static void widen_spans(Layouter *l) {
    size_t mark = 0;
    for (int64_t i = 0; i < l->span_count; i++) {
        Span *span = &l->spans[i];
        size_t next = i + 1 < l->span_count ? l->spans[i + 1].begin : l->text.length;
        size_t before = i > 0 ? l->spans[i - 1].end : 0;
        while (mark < l->text.mark_count && (l->text.marks[mark].begin < span->end || !has_bytes(&l->text.marks[mark])))
            mark++;
        if (mark < l->text.mark_count && l->text.marks[mark].begin < next) next = l->text.marks[mark].begin;
        if (!span->is_whole) span->end = template_end_of_turn(l, span->end, next);
        int is_answer = strcmp(l->conversation->messages[span->message].role, "assistant") == 0;
        if (is_answer && span->begin > before && span->begin > 1 && l->text.data[span->begin - 1] == ' ' &&
            l->text.data[span->begin - 2] > ' ')
            span->begin--;
    }
}

static Status find_marked(Layouter *l, Error *err) {
    Turn *turns = memory_calloc((size_t)l->conversation->count + 1, sizeof *turns);
    Status status = find_turns(l, turns, err);
    if (status == OK) status = add_marked(l, turns, err);
    if (status == OK) status = add_whole(l, turns, err);
    if (status == OK) widen_spans(l);
    memory_free(turns);
    return status;
}

/* What {% generation %} marked, neighbours as one; other messages have no spans: their text is framing and content. */
static Status find_generated(Layouter *l, Error *err) {
    const Conversation *c = l->conversation;
    int64_t answer = -1;
    for (size_t i = 0; i < l->text.mark_count;) {
        if (!l->text.marks[i].generated) {
            i++;
            continue;
        }
        Span span = {l->text.marks[i].begin, l->text.marks[i].end, -1, 1};
        for (; i < l->text.mark_count && l->text.marks[i].generated && l->text.marks[i].begin <= span.end; i++) {
            const JinjaMark *mark = &l->text.marks[i];
            span.end = mark->end;
            if (span.message < 0) span.message = mark_message(l, mark);
        }
        if (span.message < 0) { /* nothing of a message inside: the next answer in turn */
            do
                answer++;
            while (answer < c->count && strcmp(c->messages[answer].role, "assistant") != 0);
            span.message = answer;
        }
        if (span.message >= c->count) {
            FAIL(
                "the model's chat template has a {%% generation %%} block that belongs to no assistant's message; choose a "
                "built-in template in data.template");
        }
        answer = span.message;
        l->spans[l->span_count++] = span;
    }
    return OK;
}

Status template_find_spans(Layouter *l, Error *err) {
    l->spans = memory_calloc(l->text.mark_count + (size_t)l->conversation->count + 1, sizeof *l->spans);
    TRY(check_rendered(l, err));
    return jinja_has_generation(l->template->jinja) ? find_generated(l, err) : find_marked(l, err);
}
