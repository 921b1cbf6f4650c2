/* One record to ids and a mask.
 *
 * The whole rendered text is tokenized at once, as the model will see it, and a token is trained when it begins inside a
 * trained segment: a token that straddles the border from prompt to answer could not be produced after the prompt and
 * is not trained; one that straddles the end of an answer is. Special tokens are parsed in the template's own text only.
 * When a content spells one ("<|im_end|>" typed by a user), the text is cut at the template's special tokens and what
 * lies between is tokenized with no special tokens at all.
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

/* A special token that is spelled out in the text it covers, at least partly in a content. */
static int content_spells_special(const EncodeRules *rules, const EncodeScratch *s) {
    int64_t segment = 0;
    for (int64_t t = 0; t < s->tokens.count; t++) {
        int32_t begin = s->tokens.begin[t], end = s->tokens.end[t];
        if (begin >= end || !tokenizer_is_special(rules->tokenizer, s->tokens.ids[t])) continue;
        const char *spelling = tokenizer_token(rules->tokenizer, s->tokens.ids[t]);
        if (spelling == NULL || memmem(s->text.data + begin, (size_t)(end - begin), spelling, strlen(spelling)) == NULL)
            continue;
        segment = segment_of(s, begin, segment);
        for (int64_t i = segment; i < s->segments.count && (i == segment || s->ends[i - 1] < end); i++) {
            if (!s->segments.items[i].special) return 1;
        }
    }
    return 0;
}

/* Appends the tokens of text[from, to) without parsing special tokens, at their place in the whole text. */
static Status encode_between(const EncodeRules *rules, EncodeScratch *s, size_t from, size_t to, int add_special, Error *err) {
    int64_t first = s->tokens.count;
    TRY(tokenizer_encode(rules->tokenizer, s->text.data + from, to - from, add_special, 0, &s->tokens, err));
    for (int64_t t = first; t < s->tokens.count; t++) {
        s->tokens.begin[t] += (int32_t)from;
        s->tokens.end[t] += (int32_t)from;
    }
    return OK;
}

typedef struct ControlToken {
    int32_t id;
    size_t begin, end;
} ControlToken;

/* The special tokens of the control segments, in order: *out is memory_free'd by the caller. */
static Status find_control_tokens(const EncodeRules *rules, const EncodeScratch *s, ControlToken **out, size_t *count,
                                  Error *err) {
    TokenBuffer buffer = {0};
    Status status = OK;
    size_t capacity = 0;
    *out = NULL;
    *count = 0;
    for (int64_t i = 0; i < s->segments.count; i++) {
        const Segment *segment = &s->segments.items[i];
        if (!segment->special) continue;
        buffer.count = 0;
        TRY_GOTO(tokenizer_encode(rules->tokenizer, segment->text, segment->length, 0, 1, &buffer, err));
        size_t base = (size_t)s->ends[i] - segment->length;
        for (int64_t t = 0; t < buffer.count; t++) {
            const char *spelling = tokenizer_token(rules->tokenizer, buffer.ids[t]);
            size_t length = (size_t)(buffer.end[t] - buffer.begin[t]);
            if (spelling == NULL || !tokenizer_is_special(rules->tokenizer, buffer.ids[t]) || length == 0 ||
                memmem(segment->text + buffer.begin[t], length, spelling, strlen(spelling)) == NULL) {
                continue;
            }
            if (*count == capacity) {
                capacity = capacity * 2 + 16;
                *out = memory_resize(*out, capacity * sizeof **out);
            }
            (*out)[(*count)++] = (ControlToken){buffer.ids[t], base + (size_t)buffer.begin[t], base + (size_t)buffer.end[t]};
        }
    }
done:
    token_buffer_free(&buffer);
    return status;
}

/* Makes room for one more token in a buffer. */
static void push_token(TokenBuffer *buffer, ControlToken token) {
    if (buffer->count == buffer->capacity) {
        buffer->capacity = buffer->capacity * 2 + 16;
        buffer->ids = memory_resize(buffer->ids, (size_t)buffer->capacity * sizeof *buffer->ids);
        buffer->begin = memory_resize(buffer->begin, (size_t)buffer->capacity * sizeof *buffer->begin);
        buffer->end = memory_resize(buffer->end, (size_t)buffer->capacity * sizeof *buffer->end);
    }
    buffer->ids[buffer->count] = token.id;
    buffer->begin[buffer->count] = (int32_t)token.begin;
    buffer->end[buffer->count++] = (int32_t)token.end;
}

static Status encode_piecewise(const EncodeRules *rules, EncodeScratch *s, int add_bos, Error *err) {
    ControlToken *control = NULL;
    size_t count = 0, at = 0;
    Status status = OK;
    s->tokens.count = 0;
    TRY_GOTO(find_control_tokens(rules, s, &control, &count, err));
    if (add_bos && tokenizer_adds_bos(rules->tokenizer)) push_token(&s->tokens, (ControlToken){rules->bos_id, 0, 0});
    for (size_t i = 0; i <= count; i++) {
        size_t stop = i < count ? control[i].begin : s->text.length;
        if (stop > at) TRY_GOTO(encode_between(rules, s, at, stop, 0, err));
        if (i < count) {
            push_token(&s->tokens, control[i]);
            at = control[i].end;
        }
    }
done:
    memory_free(control);
    return status;
}

static int begins_with(const Text *text, const char *prefix) {
    size_t n = strlen(prefix);
    return n > 0 && text->length >= n && memcmp(text->data, prefix, n) == 0;
}

static Status tokenize(const EncodeRules *rules, EncodeScratch *s, Error *err) {
    /* A rendered text that writes BOS itself gets no second one. */
    int writes_bos = s->segments.items[0].special && begins_with(&s->text, rules->bos);
    s->tokens.count = 0;
    TRY(tokenizer_encode(rules->tokenizer, s->text.data, s->text.length, !writes_bos, 1, &s->tokens, err));
    if (content_spells_special(rules, s)) return encode_piecewise(rules, s, !writes_bos, err);
    return OK;
}

/* What a post-processor put around the text: special, and standing for none of it. */
static int is_added_around(const EncodeRules *rules, const TokenBuffer *tokens, int64_t t) {
    return tokens->begin[t] >= tokens->end[t] && tokenizer_is_special(rules->tokenizer, tokens->ids[t]);
}

Status encode_conversation(const EncodeRules *rules, EncodeScratch *s, Encoded *out, Error *err) {
    out->count = 0;
    out->truncated = 0;
    segments_clear(&s->segments);
    TRY(template_render(rules->template_name, s->record.messages, s->record.count, 0, rules->bos, rules->eos, &s->segments,
                        err));
    if (s->segments.count == 0) return OK;
    TRY(join_segments(rules, s, err));
    TRY(tokenize(rules, s, err));
    int64_t last = find_last_assistant(&s->record);
    int appends = template_appends_eos(rules->template_name) && last >= 0 && last == s->record.count - 1;
    int eos_wanted = appends && message_wanted(rules, &s->record, last, last);
    int64_t count = s->tokens.count, segment = 0;
    /* A post-processor's own EOS, or one that the record already ends with, takes the place of ours. */
    if (appends && count > 0 && s->tokens.ids[count - 1] == rules->eos_id) count--;
    for (int64_t t = 0; t < count; t++) {
        segment = segment_of(s, s->tokens.begin[t], segment);
        push(out, s->tokens.ids[t], s->wanted[segment] && !is_added_around(rules, &s->tokens, t));
    }
    if (appends) push(out, rules->eos_id, eos_wanted);
    if (out->count > rules->max_length) {
        out->count = rules->max_length;
        out->truncated = 1;
    }
    if (out->count > 0) out->train[0] = 0;
    return OK;
}

/* A document is its author's own rendering: special tokens in it are parsed, and EOS ends it. Every token is trained. */
Status encode_text(const EncodeRules *rules, EncodeScratch *s, Encoded *out, Error *err) {
    const char *text = s->record.text;
    size_t length = s->record.text_length, bos = strlen(rules->bos);
    out->count = 0;
    out->truncated = 0;
    if (length == 0) return OK;
    if (length > RENDERED_MAX_BYTES) FAIL("the document is longer than %zu MiB", RENDERED_MAX_BYTES >> 20);
    int writes_bos = bos > 0 && length >= bos && memcmp(text, rules->bos, bos) == 0;
    s->tokens.count = 0;
    TRY(tokenizer_encode(rules->tokenizer, text, length, !writes_bos, 1, &s->tokens, err));
    for (int64_t t = 0; t < s->tokens.count; t++)
        push(out, s->tokens.ids[t], 1);
    if (out->count == 0 || out->ids[out->count - 1] != rules->eos_id) push(out, rules->eos_id, 1);
    out->train[0] = 0;
    return OK;
}
