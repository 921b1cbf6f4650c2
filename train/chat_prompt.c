#include "train/chat_prompt.h"

#include <string.h>

#include "core/memory.h"
#include "core/text.h"

Status chat_prompt_check(const char *name, Error *err) {
    if (strcmp(name, TEMPLATE_MODEL) == 0 || template_exists(name)) return OK;
    size_t count = 0;
    while (template_names[count] != NULL)
        count++;
    const char *near = nearest_word(name, template_names, count);
    FAIL_USAGE("--template: \"%.60s\" is not a built-in template, nor \"" TEMPLATE_MODEL
               "\" (the model's own); did you mean %s?",
               name, near != NULL ? near : "chatml");
}

static const char *spelling(const Tokenizer *tokenizer, int32_t id) {
    const char *text = id < 0 ? NULL : tokenizer_token(tokenizer, id);
    return text == NULL ? "" : text;
}

static Status render(const ChatPrompt *p, const ChatMessage *messages, int64_t count, int open_answer, SegmentList *segments,
                     Error *err) {
    const char *bos = spelling(p->tokenizer, tokenizer_bos(p->tokenizer)),
               *eos = spelling(p->tokenizer, tokenizer_eos(p->tokenizer));
    if (p->model != NULL) return template_jinja_render(p->model, messages, count, open_answer, bos, eos, segments, err);
    return template_render(p->name, messages, count, open_answer, bos, eos, segments, err);
}

/* Special tokens are parsed in the template's own text only. */
static Status encode_segments(const Tokenizer *tokenizer, const SegmentList *segments, TokenBuffer *out, Error *err) {
    const char *bos = spelling(tokenizer, tokenizer_bos(tokenizer));
    Text text = {0};
    TokenRange *plain = memory_calloc((size_t)segments->count + 1, sizeof *plain);
    size_t plain_count = 0;
    for (int64_t i = 0; i < segments->count; i++) {
        const Segment *segment = &segments->items[i];
        if (!segment->special && segment->length > 0)
            plain[plain_count++] = (TokenRange){text.length, text.length + segment->length};
        text_add(&text, segment->text, segment->length);
    }
    int writes_bos = segments->count > 0 && segments->items[0].special && bos[0] != 0 && text.length >= strlen(bos) &&
                     memcmp(text.data, bos, strlen(bos)) == 0;
    Status status = tokenizer_encode_guarded(tokenizer, text.data != NULL ? text.data : "", text.length, !writes_bos, plain,
                                             plain_count, out, err);
    memory_free(plain);
    text_free(&text);
    return status;
}

/* The special token behind an answer of a conversation of one question, or -1. */
static Status find_end(ChatPrompt *p, Error *err) {
    const ChatMessage messages[2] = {{"user", "x", 1, -1, NULL}, {"assistant", "y", 1, -1, NULL}};
    SegmentList segments = {0};
    TokenBuffer tokens = {0};
    int answered = 0;
    p->end = -1;
    Status status = render(p, messages, 2, 0, &segments, err);
    for (int64_t i = 0; status == OK && i < segments.count && p->end < 0; i++) {
        const Segment *segment = &segments.items[i];
        if (segment->message == 1 && !segment->special) answered = 1;
        if (!answered || !segment->special) continue;
        tokens.count = 0;
        status = tokenizer_encode(p->tokenizer, segment->text, segment->length, 0, 1, &tokens, err);
        for (int64_t t = 0; status == OK && t < tokens.count && p->end < 0; t++)
            if (tokenizer_is_special(p->tokenizer, tokens.ids[t])) p->end = tokens.ids[t];
    }
    token_buffer_free(&tokens);
    segments_free(&segments);
    return status;
}

Status chat_prompt_open(ChatPrompt *p, const char *name, const Tokenizer *tokenizer, Error *err) {
    *p = (ChatPrompt){.name = name, .tokenizer = tokenizer, .end = -1};
    if (strcmp(name, TEMPLATE_MODEL) == 0) {
        if (tokenizer_chat_template(tokenizer) == NULL)
            FAIL("the model has no chat template of its own; choose a built-in one with --template, for example chatml");
        TRY(template_jinja_open(&p->model, tokenizer, spelling(tokenizer, tokenizer_bos(tokenizer)),
                                spelling(tokenizer, tokenizer_eos(tokenizer)), err));
    }
    Status status = find_end(p, err);
    if (status != OK) chat_prompt_close(p);
    return status;
}

void chat_prompt_close(ChatPrompt *p) {
    template_jinja_close(p->model);
    p->model = NULL;
}

Status chat_prompt_encode(const ChatPrompt *p, const ChatMessage *messages, int64_t count, TokenBuffer *out, Error *err) {
    SegmentList segments = {0};
    Status status = render(p, messages, count, 1, &segments, err);
    if (status == OK) status = encode_segments(p->tokenizer, &segments, out, err);
    segments_free(&segments);
    return status;
}
