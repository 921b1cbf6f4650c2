#include "data/gguf_vocab.h"

#include <string.h>

#define PREFIX "tokenizer.ggml."

static int is(GgufString string, const char *text) {
    return string.length == strlen(text) && memcmp(string.bytes, text, string.length) == 0;
}

static Status optional_string(const GgufFile *file, const char *key, GgufString *out, Error *err) {
    return gguf_find(file, key) != NULL ? gguf_get_string(file, key, out, err) : OK;
}

static Status optional_bool(const GgufFile *file, const char *key, int *out, Error *err) {
    *out = -1;
    return gguf_find(file, key) != NULL ? gguf_get_bool(file, key, out, err) : OK;
}

static Status optional_id(const GgufFile *file, const char *key, int64_t count, int32_t *out, Error *err) {
    uint32_t id;
    *out = -1;
    if (gguf_find(file, key) == NULL) return OK;
    TRY(gguf_get_u32(file, key, &id, err));
    if ((int64_t)id >= count) FAIL("%s: key '%s': want an id below %lld, got %u", gguf_path(file), key, (long long)count, id);
    *out = (int32_t)id;
    return OK;
}

/* An array with one item for each token. */
static Status per_token(const GgufFile *file, const char *key, GgufType type, int64_t count, const GgufValue **out,
                        Error *err) {
    TRY(gguf_get_array(file, key, type, out, err));
    if ((*out)->count != (uint64_t)count)
        FAIL("%s: key '%s': want %lld items, one for each token, got %llu", gguf_path(file), key, (long long)count,
             (unsigned long long)(*out)->count);
    return OK;
}

static Status tokens_read(const GgufFile *file, GgufVocab *vocab, Error *err) {
    const GgufValue *tokens;
    TRY(gguf_get_array(file, PREFIX "tokens", GGUF_STRING, &tokens, err));
    if (tokens->count == 0) FAIL("%s: key '" PREFIX "tokens': want at least one token, got none", gguf_path(file));
    vocab->count = (int64_t)tokens->count; /* at most GGUF_ITEMS_MAX: ids fit int32_t */
    vocab->tokens = tokens->strings;
    if (gguf_find(file, PREFIX "token_type") == NULL) return OK;
    TRY(per_token(file, PREFIX "token_type", GGUF_I32, vocab->count, &vocab->types, err));
    for (int64_t i = 0; i < vocab->count; i++) {
        int32_t type = gguf_item_i32(vocab->types, (uint64_t)i);
        if (type < GGUF_TOKEN_NORMAL || type > GGUF_TOKEN_BYTE)
            FAIL("%s: key '" PREFIX "token_type': token %lld: want 1 to 6, got %d", gguf_path(file), (long long)i, type);
    }
    return OK;
}

static Status merges_read(const GgufFile *file, GgufVocab *vocab, Error *err) {
    const GgufValue *merges;
    TRY(gguf_get_array(file, PREFIX "merges", GGUF_STRING, &merges, err));
    for (uint64_t i = 0; i < merges->count; i++) {
        GgufString merge = merges->strings[i];
        const char *space = merge.length > 2 ? memchr(merge.bytes + 1, ' ', (size_t)merge.length - 2) : NULL;
        if (space == NULL)
            FAIL("%s: key '" PREFIX "merges': merge %llu: want two symbols with a space between them", gguf_path(file),
                 (unsigned long long)i);
    }
    vocab->merges = merges->strings;
    vocab->merge_count = (int64_t)merges->count;
    return OK;
}

static Status model_read(const GgufFile *file, GgufVocab *vocab, Error *err) {
    GgufString model;
    TRY(gguf_get_string(file, PREFIX "model", &model, err));
    vocab->is_spm = is(model, "llama");
    if (!vocab->is_spm && !is(model, "gpt2"))
        FAIL("%s: key '" PREFIX "model': want \"llama\" or \"gpt2\", got \"%.*s\"", gguf_path(file),
             (int)(model.length < 40 ? model.length : 40), model.bytes);
    return OK;
}

Status gguf_vocab_read(const GgufFile *file, GgufVocab *vocab, Error *err) {
    *vocab = (GgufVocab){.pre = {"default", 7}, .chat_template = {"", 0}};
    TRY(model_read(file, vocab, err));
    TRY(tokens_read(file, vocab, err));
    if (vocab->is_spm)
        TRY(per_token(file, PREFIX "scores", GGUF_F32, vocab->count, &vocab->scores, err));
    else
        TRY(merges_read(file, vocab, err));
    TRY(optional_string(file, PREFIX "pre", &vocab->pre, err));
    TRY(optional_string(file, "tokenizer.chat_template", &vocab->chat_template, err));
    TRY(optional_id(file, PREFIX "bos_token_id", vocab->count, &vocab->bos, err));
    TRY(optional_id(file, PREFIX "eos_token_id", vocab->count, &vocab->eos, err));
    TRY(optional_id(file, PREFIX "unknown_token_id", vocab->count, &vocab->unknown, err));
    TRY(optional_id(file, PREFIX "padding_token_id", vocab->count, &vocab->padding, err));
    TRY(optional_bool(file, PREFIX "add_bos_token", &vocab->adds_bos, err));
    TRY(optional_bool(file, PREFIX "add_eos_token", &vocab->adds_eos, err));
    return optional_bool(file, PREFIX "add_space_prefix", &vocab->adds_space_prefix, err);
}
