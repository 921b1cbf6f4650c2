/* A model's own chat template as a source of segments.
 *
 * Contents enter the interpreter marked with their message's index, and the marks stay on their bytes, so the answer is
 * known where it stands:
 *
 *   <|im_start|>assistant\n  Hello  <|im_end|>  \n<|im_start|>user\n …
 *   framing                  marked   end of turn  framing
 *
 * A message owns the bytes from its first marked one to its last, what the template writes between them, and what follows
 * up to and including the first special token: that is what ends the turn. A space right before an answer belongs to it
 * (SentencePiece makes it part of the answer's first token). A template with {% generation %} says itself what is
 * trained.
 */
#include <string.h>

#include "core/memory.h"
#include "data/jinja.h"
#include "data/template.h"

struct TemplateJinja {
    Jinja *jinja;
    char **specials; /* spellings of the tokenizer's special tokens */
    int64_t special_count;
};

typedef struct Span { /* of a message in the rendered text */
    size_t begin, end;
    int64_t message; /* -1: none */
} Span;

typedef struct Layouter {
    const TemplateJinja *template;
    const ChatMessage *messages;
    int64_t count;
    JinjaText text;
    Span *spans; /* in order, apart */
    int64_t span_count;
    SegmentList *out;
} Layouter;

static Status set_text(JinjaRun *run, JinjaValue dict, const char *key, const char *text, size_t length, int32_t origin,
                       Error *err) {
    JinjaValue value;
    TRY(jinja_text(run, text, length, origin, &value, err));
    return jinja_dict_set(run, dict, key, value, err);
}

static Status make_messages(JinjaRun *run, const ChatMessage *messages, int64_t count, JinjaValue *out, Error *err) {
    TRY(jinja_list(run, count, out, err));
    for (int64_t i = 0; i < count; i++) {
        const ChatMessage *m = &messages[i];
        JinjaValue dict;
        TRY(jinja_dict(run, &dict, err));
        TRY(set_text(run, dict, "role", m->role, strlen(m->role), JINJA_ORIGIN_NONE, err));
        TRY(set_text(run, dict, "content", m->content, m->content_length, (int32_t)i, err));
        TRY(jinja_list_add(run, *out, dict, err));
    }
    return OK;
}

/* As apply_chat_template passes them: tokens that do not exist are undefined, tools and documents are none. */
static Status make_variables(JinjaRun *run, const ChatMessage *messages, int64_t count, int add_generation_prompt,
                             const char *bos, const char *eos, JinjaValue *out, Error *err) {
    JinjaValue list;
    TRY(jinja_dict(run, out, err));
    TRY(make_messages(run, messages, count, &list, err));
    TRY(jinja_dict_set(run, *out, "messages", list, err));
    TRY(jinja_dict_set(run, *out, "tools", jinja_none(), err));
    TRY(jinja_dict_set(run, *out, "documents", jinja_none(), err));
    TRY(jinja_dict_set(run, *out, "add_generation_prompt", jinja_bool(add_generation_prompt), err));
    if (bos[0] != 0) TRY(set_text(run, *out, "bos_token", bos, strlen(bos), JINJA_ORIGIN_NONE, err));
    if (eos[0] != 0) TRY(set_text(run, *out, "eos_token", eos, strlen(eos), JINJA_ORIGIN_NONE, err));
    return OK;
}

/* ---- whose bytes are whose ----------------------------------------------------------------------------------------------- */

/* Behind the first special token in [begin, end), or `begin` when there is none. */
static size_t end_of_turn(const Layouter *l, size_t begin, size_t end) {
    for (size_t at = begin; at < end; at++) {
        size_t longest = 0;
        for (int64_t i = 0; i < l->template->special_count; i++) {
            const char *special = l->template->specials[i];
            if (special[0] != l->text.data[at]) continue;
            size_t n = strlen(special);
            if (n > longest && n <= end - at && memcmp(special, l->text.data + at, n) == 0) longest = n;
        }
        if (longest > 0) return at + longest;
    }
    return begin;
}

static Status refuse_twice(int64_t message, Error *err) {
    FAIL(
        "the model's chat template writes message %lld in several places, so that what is to be trained is ambiguous; choose a "
        "built-in template in data.template",
        (long long)message + 1);
}

/* One span a message, from the marks: empty marks count only where a message has no other. */
static Status find_spans(Layouter *l, Error *err) {
    uint8_t *has_bytes = memory_calloc((size_t)l->count + 1, 1), *seen = memory_calloc((size_t)l->count + 1, 1);
    Status status = OK;
    for (size_t i = 0; i < l->text.mark_count; i++) {
        const JinjaMark *mark = &l->text.marks[i];
        if (mark->origin >= 0 && mark->end > mark->begin) has_bytes[mark->origin] = 1;
    }
    for (size_t i = 0; i < l->text.mark_count && status == OK; i++) {
        const JinjaMark *mark = &l->text.marks[i];
        if (mark->origin < 0 || (mark->end == mark->begin && has_bytes[mark->origin])) continue;
        if (l->span_count > 0 && l->spans[l->span_count - 1].message == mark->origin) {
            l->spans[l->span_count - 1].end = mark->end;
            continue;
        }
        int is_answer = strcmp(l->messages[mark->origin].role, "assistant") == 0 || l->messages[mark->origin].train == 1;
        if (seen[mark->origin] && mark->end == mark->begin) continue;
        if (seen[mark->origin] && is_answer) status = refuse_twice(mark->origin, err);
        seen[mark->origin] = 1;
        l->spans[l->span_count++] = (Span){mark->begin, mark->end, mark->origin};
    }
    memory_free(has_bytes);
    memory_free(seen);
    return status;
}

/* Adds the end of turn behind each span, and the space before an answer. */
static void widen_spans(Layouter *l) {
    for (int64_t i = 0; i < l->span_count; i++) {
        Span *span = &l->spans[i];
        size_t next = i + 1 < l->span_count ? l->spans[i + 1].begin : l->text.length;
        size_t before = i > 0 ? l->spans[i - 1].end : 0;
        int is_answer = strcmp(l->messages[span->message].role, "assistant") == 0;
        span->end = end_of_turn(l, span->end, next);
        if (is_answer && span->begin > before + 1 && l->text.data[span->begin - 1] == ' ' &&
            l->text.data[span->begin - 2] > ' ')
            span->begin--;
    }
}

/* What {% generation %} marked, neighbours as one; other messages have no spans: their text is framing and content. */
static Status find_generated(Layouter *l, Error *err) {
    int64_t answer = -1;
    for (size_t i = 0; i < l->text.mark_count;) {
        if (!l->text.marks[i].generated) {
            i++;
            continue;
        }
        Span span = {l->text.marks[i].begin, l->text.marks[i].end, -1};
        for (; i < l->text.mark_count && l->text.marks[i].generated && l->text.marks[i].begin <= span.end; i++) {
            const JinjaMark *mark = &l->text.marks[i];
            span.end = mark->end;
            if (mark->origin >= 0 && span.message < 0) span.message = mark->origin;
        }
        if (span.message < 0) { /* no content inside: the next answer in turn */
            do
                answer++;
            while (answer < l->count && strcmp(l->messages[answer].role, "assistant") != 0);
            span.message = answer;
        }
        if (span.message >= l->count) {
            FAIL(
                "the model's chat template has a {%% generation %%} block that belongs to no assistant's message; choose a "
                "built-in "
                "template in data.template");
        }
        answer = span.message;
        l->spans[l->span_count++] = span;
    }
    return OK;
}

/* ---- segments ------------------------------------------------------------------------------------------------------------ */

static void add_segment(Layouter *l, size_t begin, size_t end, int64_t message, int special) {
    if (begin == end) return;
    SegmentList *list = l->out;
    if (list->count == list->capacity) {
        list->capacity = list->capacity < 16 ? 16 : list->capacity * 2;
        list->items = memory_resize(list->items, (size_t)list->capacity * sizeof *list->items);
    }
    char *copy = memory_alloc(end - begin);
    memcpy(copy, l->text.data + begin, end - begin);
    int assistant = message >= 0 && strcmp(l->messages[message].role, "assistant") == 0;
    list->items[list->count++] =
        (Segment){.text = copy, .length = end - begin, .assistant = assistant, .message = (int)message, .special = special};
}

/* [begin, end), cut where contents begin and end. *mark is the first mark that may lie in it. */
static void add_range(Layouter *l, size_t begin, size_t end, int64_t message, size_t *mark) {
    for (; *mark < l->text.mark_count && begin < end; ++*mark) {
        const JinjaMark *m = &l->text.marks[*mark];
        if (m->begin >= end) break;
        if (m->origin >= 0 && m->end > begin) {
            size_t from = m->begin > begin ? m->begin : begin, to = m->end < end ? m->end : end;
            add_segment(l, begin, from, message, 1);
            add_segment(l, from, to, message, 0);
            begin = to;
        }
        if (m->end > end) break;
    }
    add_segment(l, begin, end, message, 1);
}

static void add_segments(Layouter *l) {
    size_t at = 0, mark = 0;
    for (int64_t i = 0; i < l->span_count; i++) {
        add_range(l, at, l->spans[i].begin, -1, &mark);
        add_range(l, l->spans[i].begin, l->spans[i].end, l->spans[i].message, &mark);
        at = l->spans[i].end;
    }
    add_range(l, at, l->text.length, -1, &mark);
}

Status template_jinja_render(const TemplateJinja *template, const ChatMessage *messages, int64_t count,
                             int add_generation_prompt, const char *bos, const char *eos, SegmentList *out, Error *err) {
    Layouter l = {.template = template, .messages = messages, .count = count, .out = out};
    JinjaLimits limits = JINJA_LIMITS_DEFAULT;
    JinjaValue variables;
    for (int64_t i = 0; i < count; i++) { /* long conversations may take more */
        limits.memory += messages[i].content_length * 16;
        limits.steps += (int64_t)messages[i].content_length;
    }
    JinjaRun *run = jinja_run_create(limits);
    Status status = make_variables(run, messages, count, add_generation_prompt, bos, eos, &variables, err);
    if (status == OK) status = jinja_render(template->jinja, run, variables, &l.text, err);
    if (status == OK) {
        l.spans = memory_calloc(l.text.mark_count + 1, sizeof *l.spans);
        int marked = jinja_has_generation(template->jinja);
        status = marked ? find_generated(&l, err) : find_spans(&l, err);
        if (status == OK && !marked) widen_spans(&l);
        if (status == OK) add_segments(&l);
        memory_free(l.spans);
    }
    jinja_run_free(run);
    return status;
}

/* ---- opening ------------------------------------------------------------------------------------------------------------- */

static void list_specials(TemplateJinja *template, const Tokenizer *tokenizer) {
    int64_t size = tokenizer_vocab_size(tokenizer), capacity = 0;
    for (int64_t id = 0; id < size; id++) {
        const char *spelling = tokenizer_is_special(tokenizer, (int32_t)id) ? tokenizer_token(tokenizer, (int32_t)id) : NULL;
        if (spelling == NULL || spelling[0] == 0) continue;
        if (template->special_count == capacity) {
            capacity = capacity < 16 ? 16 : capacity * 2;
            template->specials = memory_resize(template->specials, (size_t)capacity * sizeof *template->specials);
        }
        template->specials[template->special_count++] = memory_strdup(spelling);
    }
}

/* An answer whose end is no token would teach a model never to stop. A probe that the template refuses says nothing. */
static Status check_end_of_turn(const TemplateJinja *template, const char *bos, const char *eos, Error *err) {
    const ChatMessage probe[] = {{"user", "a", 1, -1}, {"assistant", "b", 1, -1}};
    SegmentList list = {0};
    Error unused = {0};
    int answer = 0, ended = 0;
    if (template_jinja_render(template, probe, 2, 0, bos, eos, &list, &unused) == OK) {
        for (int64_t i = 0; i < list.count; i++) {
            answer |= list.items[i].message == 1 && !list.items[i].special;
            ended |= answer && list.items[i].message == 1 && list.items[i].special;
        }
    }
    segments_free(&list);
    if (!answer || ended || jinja_has_generation(template->jinja)) return OK;
    FAIL(
        "the model's chat template ends an answer with none of the tokenizer's special tokens, so that a model would not learn "
        "to "
        "stop; choose a built-in template in data.template, or mark what is trained with {%% generation %%}");
}

Status template_jinja_open(TemplateJinja **out, const Tokenizer *tokenizer, const char *bos, const char *eos, Error *err) {
    const char *source = tokenizer_chat_template(tokenizer);
    TemplateJinja *template = memory_calloc(1, sizeof *template);
    Status status = jinja_open(&template->jinja, "the model's chat template", source, strlen(source), err);
    if (status == OK) {
        list_specials(template, tokenizer);
        status = check_end_of_turn(template, bos, eos, err);
    }
    if (status != OK) {
        template_jinja_close(template);
        template = NULL;
    }
    *out = template;
    return status;
}

void template_jinja_close(TemplateJinja *template) {
    if (template == NULL) return;
    jinja_close(template->jinja);
    for (int64_t i = 0; i < template->special_count; i++)
        memory_free(template->specials[i]);
    memory_free(template->specials);
    memory_free(template);
}
