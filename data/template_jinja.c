/* A model's own chat template as a source of segments.
 *
 * What a message says enters the interpreter marked with its message, and the marks stay on their bytes (jinja.h), so the
 * answer is known where it stands; template_spans.c makes spans of messages from them. A template with {% generation %} says
 * itself what is trained. Messages are what transformers' apply_chat_template would hand over: the keys of the data, those
 * that are null left out, reasoning under each of the names that templates read.
 */
#include <string.h>

#include "core/memory.h"
#include "data/template_internal.h"

static Status set_text(JinjaRun *run, JinjaValue dict, const char *key, const char *text, size_t length, int32_t origin,
                       Error *err) {
    JinjaValue value;
    TRY(jinja_text(run, text, length, origin, &value, err));
    return jinja_dict_set(run, dict, key, value, err);
}

static Status set_json(JinjaRun *run, JinjaValue dict, const char *key, const ChatJson *json, int32_t origin, Error *err) {
    JinjaValue value;
    TRY(jinja_json(run, key, json->text, json->length, origin, &value, err));
    return jinja_dict_set(run, dict, key, value, err);
}

/* Everything but the calls. */
static Status set_extra(JinjaRun *run, JinjaValue dict, const ChatExtra *extra, int64_t message, int64_t count, Error *err) {
    const ChatJson *reasoning = NULL;
    for (int f = 0; f < CHAT_FIELDS; f++) {
        const ChatJson *json = &extra->fields[f];
        if (json->text == NULL || f == CHAT_CALLS) continue;
        OriginKind kind = f >= CHAT_REASONING_CONTENT ? ORIGIN_REASONING : ORIGIN_LABEL;
        if (kind == ORIGIN_REASONING && reasoning == NULL) reasoning = json;
        TRY(set_json(run, dict, chat_field_names[f], json, origin_of(kind, message, count), err));
    }
    for (int f = CHAT_REASONING_CONTENT; f <= CHAT_THINKING && reasoning != NULL; f++) {
        if (extra->fields[f].text != NULL) continue;
        TRY(set_json(run, dict, chat_field_names[f], reasoning, origin_of(ORIGIN_REASONING, message, count), err));
    }
    return OK;
}

static Status set_calls(JinjaRun *run, JinjaValue dict, const ChatJson *calls, int32_t origin, Error *err) {
    const char *name = chat_field_names[CHAT_CALLS];
    JinjaValue value;
    TRY(jinja_json_items(run, name, calls->text, calls->length, origin, &value, err));
    return jinja_dict_set(run, dict, name, value, err);
}

static Status make_messages(JinjaRun *run, const Conversation *c, JinjaValue *out, Error *err) {
    int64_t calls = 0;
    TRY(jinja_list(run, c->count, out, err));
    for (int64_t i = 0; i < c->count; i++) {
        const ChatMessage *m = &c->messages[i];
        JinjaValue dict;
        TRY(jinja_dict(run, &dict, err));
        TRY(set_text(run, dict, "role", m->role, strlen(m->role), JINJA_ORIGIN_NONE, err));
        if (m->extra == NULL || !m->extra->no_content)
            TRY(set_text(run, dict, "content", m->content, m->content_length, origin_of(ORIGIN_CONTENT, i, c->count), err));
        if (m->extra != NULL) TRY(set_extra(run, dict, m->extra, i, c->count, err));
        if (chat_has_calls(m)) {
            const ChatJson *json = &m->extra->fields[CHAT_CALLS];
            TRY(set_calls(run, dict, json, origin_of(ORIGIN_CALL, calls, c->count), err));
            calls += json->items;
        }
        TRY(jinja_list_add(run, *out, dict, err));
    }
    return OK;
}

Status template_values(const Layouter *l, const Conversation *c, int add_generation_prompt, JinjaRun *run, JinjaValue *out,
                       Error *err) {
    JinjaValue list;
    TRY(jinja_dict(run, out, err));
    TRY(make_messages(run, c, &list, err));
    TRY(jinja_dict_set(run, *out, "messages", list, err));
    TRY(jinja_dict_set(run, *out, "tools", jinja_none(), err));
    if (c->tools.text != NULL) TRY(set_json(run, *out, "tools", &c->tools, origin_of(ORIGIN_TOOLS, 0, c->count), err));
    TRY(jinja_dict_set(run, *out, "documents", jinja_none(), err));
    TRY(jinja_dict_set(run, *out, "add_generation_prompt", jinja_bool(add_generation_prompt), err));
    if (l->bos[0] != 0) TRY(set_text(run, *out, "bos_token", l->bos, strlen(l->bos), JINJA_ORIGIN_NONE, err));
    if (l->eos[0] != 0) TRY(set_text(run, *out, "eos_token", l->eos, strlen(l->eos), JINJA_ORIGIN_NONE, err));
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
    int assistant = message >= 0 && strcmp(l->conversation->messages[message].role, "assistant") == 0;
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

/* Bytes that the interpreter is given; long conversations may take more. */
static size_t count_bytes(const Conversation *c) {
    size_t bytes = c->tools.length;
    for (int64_t i = 0; i < c->count; i++) {
        bytes += c->messages[i].content_length;
        for (int f = 0; f < CHAT_FIELDS && c->messages[i].extra != NULL; f++)
            bytes += c->messages[i].extra->fields[f].length;
    }
    return bytes;
}

static int64_t count_calls(const Conversation *c) {
    int64_t calls = 0;
    for (int64_t i = 0; i < c->count; i++)
        calls += chat_has_calls(&c->messages[i]) ? c->messages[i].extra->fields[CHAT_CALLS].items : 0;
    return calls;
}

/* Which message each call belongs to. */
static void list_calls(Layouter *l) {
    const Conversation *c = l->conversation;
    l->call_message = memory_alloc((size_t)(l->call_count + 1) * sizeof *l->call_message);
    l->call_count = 0;
    for (int64_t i = 0; i < c->count; i++) {
        int64_t calls = chat_has_calls(&c->messages[i]) ? c->messages[i].extra->fields[CHAT_CALLS].items : 0;
        for (int64_t k = 0; k < calls; k++)
            l->call_message[l->call_count++] = i;
    }
}

static Status render(Layouter *l, int add_generation_prompt, JinjaRun *run, Error *err) {
    JinjaValue values;
    TRY(template_values(l, l->conversation, add_generation_prompt, run, &values, err));
    TRY(jinja_render(l->template->jinja, run, values, &l->text, err));
    TRY(template_find_spans(l, err));
    add_segments(l);
    return OK;
}

Status template_jinja_render_conversation(const TemplateJinja *template, const Conversation *conversation,
                                          int add_generation_prompt, const char *bos, const char *eos, SegmentList *out,
                                          Error *err) {
    Layouter l = {.template = template,
                  .conversation = conversation,
                  .bos = bos,
                  .eos = eos,
                  .limits = JINJA_LIMITS_DEFAULT,
                  .bytes = count_bytes(conversation),
                  .call_count = count_calls(conversation),
                  .out = out};
    if (conversation->count + l.call_count > TEMPLATE_MAX_MESSAGES)
        FAIL("the conversation has more than %d messages and calls", TEMPLATE_MAX_MESSAGES);
    l.limits.memory += l.bytes * 16;
    l.limits.steps += (int64_t)l.bytes;
    JinjaRun *run = jinja_run_create(l.limits);
    list_calls(&l);
    Status status = render(&l, add_generation_prompt, run, err);
    memory_free(l.spans);
    memory_free(l.call_message);
    jinja_run_free(run);
    return status;
}

Status template_jinja_render(const TemplateJinja *template, const ChatMessage *messages, int64_t count,
                             int add_generation_prompt, const char *bos, const char *eos, SegmentList *out, Error *err) {
    Conversation conversation = {.messages = messages, .count = count};
    return template_jinja_render_conversation(template, &conversation, add_generation_prompt, bos, eos, out, err);
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

/* What ends an answer. One whose end is no token would teach a model never to stop. A probe that the template refuses says
 * nothing. */
static Status find_end_of_turn(TemplateJinja *template, const char *bos, const char *eos, Error *err) {
    const ChatMessage probe[] = {{"user", "a", 1, -1, NULL}, {"assistant", "b", 1, -1, NULL}};
    SegmentList list = {0};
    Error unused = {0};
    int answer = 0;
    if (template_jinja_render(template, probe, 2, 0, bos, eos, &list, &unused) == OK) {
        for (int64_t i = 0; i < list.count; i++) {
            const Segment *segment = &list.items[i];
            answer |= segment->message == 1 && !segment->special;
            if (!answer || segment->message != 1 || !segment->special) continue;
            const char *end = template_special_end(template, segment->text, segment->length);
            if (end != NULL && template->end == NULL) template->end = memory_strdup(end);
        }
    }
    segments_free(&list);
    if (!answer || template->end != NULL || jinja_has_generation(template->jinja)) return OK;
    FAIL(
        "the model's chat template ends an answer with none of the tokenizer's special tokens, so that a model would not learn "
        "to stop; choose a built-in template in data.template, or mark what is trained with {%% generation %%}");
}

Status template_jinja_open(TemplateJinja **out, const Tokenizer *tokenizer, const char *bos, const char *eos, Error *err) {
    const char *source = tokenizer_chat_template(tokenizer);
    TemplateJinja *template = memory_calloc(1, sizeof *template);
    Status status = jinja_open(&template->jinja, "the model's chat template", source, strlen(source), err);
    if (status == OK) {
        list_specials(template, tokenizer);
        status = find_end_of_turn(template, bos, eos, err);
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
    memory_free(template->end);
    memory_free(template);
}
