/* One record to ids and a mask.
 *
 * The whole rendered text is tokenized at once, as the model will see it, and a token is trained when it begins inside a
 * trained segment: a token that straddles the border from prompt to answer could not be produced after the prompt and
 * is not trained; one that straddles the end of an answer is. Special tokens are parsed in the template's own text only:
 * a content that spells one ("<|im_end|>" typed by a user) stays text.
 */
#include <string.h>

#include "core/memory.h"
#include "data/dataset_internal.h"

#define RENDERED_MAX_BYTES ((size_t)1 << 29) /* offsets of tokens are int32 */

void encode_scratch_free(EncodeScratch *scratch) {
    record_free(&scratch->record);
    segments_free(&scratch->segments);
    token_buffer_free(&scratch->tokens);
    text_free(&scratch->text);
    memory_free(scratch->ends);
    memory_free(scratch->contents);
    memory_free(scratch->wanted);
    *scratch = (EncodeScratch){0};
}

void encoded_free(Encoded *encoded) {
    memory_free(encoded->ids);
    memory_free(encoded->train);
    *encoded = (Encoded){0};
}

static void push(Encoded *out, int32_t id, int trained) {
    if (out->count == out->capacity) {
        out->capacity = out->capacity < 64 ? 64 : out->capacity * 2;
        out->ids = memory_resize(out->ids, (size_t)out->capacity * sizeof *out->ids);
        out->train = memory_resize(out->train, (size_t)out->capacity);
    }
    out->ids[out->count] = id;
    out->train[out->count++] = trained != 0;
}

/* Whether message i is trained. */
static int message_wanted(const EncodeRules *rules, const Record *record, int64_t last_assistant, int64_t i) {
    const ChatMessage *m = &record->messages[i];
    if (m->train >= 0) return m->train;
    if (rules->train_on == TRAIN_ON_ALL) return 1;
    if (rules->train_on == TRAIN_ON_LAST) return i == last_assistant;
    return strcmp(m->role, "assistant") == 0;
}

static int64_t find_last_assistant(const Record *record) {
    int64_t i = record->count - 1;
    while (i >= 0 && strcmp(record->messages[i].role, "assistant") != 0)
        i--;
    return i;
}

/* Joins the segments, notes where each ends and whether it is trained. */
static Status join_segments(const EncodeRules *rules, EncodeScratch *s, Error *err) {
    const SegmentList *list = &s->segments;
    if (s->segment_capacity < list->count) {
        s->segment_capacity = list->count;
        s->ends = memory_resize(s->ends, (size_t)list->count * sizeof *s->ends);
        s->wanted = memory_resize(s->wanted, (size_t)list->count);
        s->contents = memory_resize(s->contents, (size_t)list->count * sizeof *s->contents);
    }
    int64_t last = find_last_assistant(&s->record);
    text_clear(&s->text);
    for (int64_t i = 0; i < list->count; i++) {
        const Segment *segment = &list->items[i];
        if (segment->length > RENDERED_MAX_BYTES - s->text.length) {
            FAIL("the rendered record is longer than %zu MiB", RENDERED_MAX_BYTES >> 20);
        }
        text_add(&s->text, segment->text, segment->length);
        s->ends[i] = (int64_t)s->text.length;
        s->wanted[i] = segment->message < 0 ? rules->train_on == TRAIN_ON_ALL
                                            : message_wanted(rules, &s->record, last, segment->message) != 0;
    }
    return OK;
}

/* The segment that holds byte `at`; `hint` is where to look first. Positions behind the text belong to the last. */
static int64_t segment_of(const EncodeScratch *s, int64_t at, int64_t hint) {
    while (hint > 0 && s->ends[hint - 1] > at)
        hint--;
    while (hint + 1 < s->segments.count && s->ends[hint] <= at)
        hint++;
    return hint;
}

static int begins_with(const Text *text, const char *prefix) {
    size_t n = strlen(prefix);
    return n > 0 && text->length >= n && memcmp(text->data, prefix, n) == 0;
}

/* The contents' ranges in the joined text, neighbours as one. */
static size_t list_contents(EncodeScratch *s) {
    size_t count = 0, begin = 0;
    for (int64_t i = 0; i < s->segments.count; i++) {
        size_t end = (size_t)s->ends[i];
        if (!s->segments.items[i].special) {
            if (count > 0 && s->contents[count - 1].end == begin)
                s->contents[count - 1].end = end;
            else
                s->contents[count++] = (TokenRange){begin, end};
        }
        begin = end;
    }
    return count;
}

static Status tokenize(const EncodeRules *rules, EncodeScratch *s, Error *err) {
    /* A rendered text that writes BOS itself gets no second one. */
    int writes_bos = s->segments.items[0].special && begins_with(&s->text, rules->bos);
    s->tokens.count = 0;
    return tokenizer_encode_guarded(rules->tokenizer, s->text.data, s->text.length, !writes_bos, s->contents, list_contents(s),
                                    &s->tokens, err);
}

/* What a post-processor put around the text: special, and standing for none of it. */
static int is_added_around(const EncodeRules *rules, const TokenBuffer *tokens, int64_t t) {
    return tokens->begin[t] >= tokens->end[t] && tokenizer_is_special(rules->tokenizer, tokens->ids[t]);
}

/* A post-processor's own EOS, or one that the answer already ends with, takes the place of ours. */
static int ends_with_eos(const EncodeRules *rules, const EncodeScratch *s, int64_t answer) {
    int64_t t = s->tokens.count - 1;
    if (t < 0 || s->tokens.ids[t] != rules->eos_id) return 0;
    if (is_added_around(rules, &s->tokens, t)) return 1;
    return s->segments.items[segment_of(s, s->tokens.begin[t], 0)].message == answer;
}

static void limit_length(const EncodeRules *rules, Encoded *out) {
    if (out->count <= rules->max_length || rules->too_long == TOO_LONG_SPLIT) return;
    out->truncated = rules->too_long == TOO_LONG_TRUNCATE;
    out->dropped = !out->truncated;
    out->count = out->dropped ? 0 : rules->max_length;
}

static Status render(const EncodeRules *rules, const Record *record, int tools, SegmentList *out, Error *err) {
    const TemplateJinja *jinja = rules->jinja != NULL ? rules->jinja : tools ? rules->tools_jinja : NULL;
    Conversation conversation = {record->messages, record->count, record->tools};
    if (jinja != NULL) return template_jinja_render_conversation(jinja, &conversation, 0, rules->bos, rules->eos, out, err);
    if (record->tools.text != NULL) {
        FAIL(
            "the record defines tools, and the built-in template \"%s\" has no form for them; set data.template to \"auto\" "
            "with "
            "a model whose own chat template has one",
            rules->template_name);
    }
    return template_render(rules->template_name, record->messages, record->count, 0, rules->bos, rules->eos, out, err);
}

Status encode_conversation(const EncodeRules *rules, EncodeScratch *s, Encoded *out, Error *err) {
    out->count = 0;
    out->truncated = out->dropped = 0;
    out->tools = chat_uses_tools(&(Conversation){s->record.messages, s->record.count, s->record.tools});
    segments_clear(&s->segments);
    TRY(render(rules, &s->record, out->tools, &s->segments, err));
    if (s->segments.count == 0) return OK;
    TRY(join_segments(rules, s, err));
    TRY(tokenize(rules, s, err));
    int64_t last = find_last_assistant(&s->record);
    int appends = template_appends_eos(rules->template_name) && last >= 0 && last == s->record.count - 1;
    int eos_wanted = appends && message_wanted(rules, &s->record, last, last);
    int64_t count = s->tokens.count, segment = 0;
    if (appends && ends_with_eos(rules, s, last)) count--;
    for (int64_t t = 0; t < count; t++) {
        segment = segment_of(s, s->tokens.begin[t], segment);
        push(out, s->tokens.ids[t], s->wanted[segment] && !is_added_around(rules, &s->tokens, t));
    }
    if (appends) push(out, rules->eos_id, eos_wanted);
    limit_length(rules, out);
    if (out->count > 0) out->train[0] = 0;
    return OK;
}

/* A document is its author's own rendering: special tokens in it are parsed, and EOS ends it unless documents are
 * left open. Every token is trained. */
Status encode_text(const EncodeRules *rules, EncodeScratch *s, Encoded *out, Error *err) {
    const char *text = s->record.text;
    size_t length = s->record.text_length, bos = strlen(rules->bos);
    out->count = 0;
    out->truncated = out->dropped = out->tools = 0;
    if (length == 0) return OK;
    if (length > RENDERED_MAX_BYTES) FAIL("the document is longer than %zu MiB", RENDERED_MAX_BYTES >> 20);
    int writes_bos = bos > 0 && length >= bos && memcmp(text, rules->bos, bos) == 0;
    s->tokens.count = 0;
    TRY(tokenizer_encode(rules->tokenizer, text, length, !writes_bos, 1, &s->tokens, err));
    for (int64_t t = 0; t < s->tokens.count; t++)
        push(out, s->tokens.ids[t], 1);
    int ended = out->count > 0 && out->ids[out->count - 1] == rules->eos_id;
    if (!ended && !rules->open_documents) push(out, rules->eos_id, 1);
    limit_length(rules, out);
    if (out->count > 0) out->train[0] = 0;
    return OK;
}
