/* tiktoken's files: one token per line, base64 of its bytes, a space, its rank, which is its id.
 * Tokens are spelled as ByteLevel spells them, so that the rest is a byte-level tokenizer of the usual kind. Which pattern and
 * special tokens belong to the ranks is not in the file: Llama 3's (llama/tokenizer.py), or the folder's added tokens. */
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "data/sentencepiece.h"

#define TIKTOKEN_LINE 2048
#define LLAMA3_SPECIALS 256

static int base64_digit(char c) {
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* Returns the number of bytes, 0 when ill-formed or empty. */
static size_t base64_decode(const char *text, size_t length, uint8_t *out) {
    if (length == 0 || length % 4) return 0;
    size_t padding = text[length - 1] != '=' ? 0 : text[length - 2] == '=' ? 2 : 1, n = 0;
    for (size_t i = 0; i < length; i += 4) {
        uint32_t bits = 0;
        for (size_t j = 0; j < 4; j++) {
            int digit = i + j >= length - padding ? 0 : base64_digit(text[i + j]);
            if (digit < 0) return 0;
            bits = bits << 6 | (uint32_t)digit;
        }
        size_t bytes = i + 4 == length ? 3 - padding : 3;
        if (bits & ((1u << 8 * (3 - bytes)) - 1)) return 0; /* left-over bits */
        for (size_t j = 0; j < bytes; j++)
            out[n++] = (uint8_t)(bits >> (16 - 8 * j));
    }
    return n;
}

static Status read_line(Tokenizer *t, const char *line, size_t length, size_t number, Error *err) {
    uint8_t bytes[TIKTOKEN_LINE];
    const char *space = memchr(line, ' ', length);
    size_t n = space && length <= TIKTOKEN_LINE ? base64_decode(line, (size_t)(space - line), bytes) : 0;
    if (n == 0)
        FAIL("%s: line %zu: want base64, a space and a rank, got '%.*s'", t->path, number, (int)(length < 60 ? length : 60),
             line);
    int64_t rank = 0;
    size_t at = (size_t)(space - line) + 1;
    if (at == length) rank = -1;
    for (; at < length && rank >= 0; at++)
        rank = line[at] >= '0' && line[at] <= '9' && rank < TOKENIZER_ID_LIMIT ? rank * 10 + (line[at] - '0') : -1;
    if (rank < 0 || rank >= TOKENIZER_ID_LIMIT)
        FAIL("%s: line %zu: want a rank from 0 to %lld", t->path, number, (long long)TOKENIZER_ID_LIMIT - 1);
    char spelled[2 * TIKTOKEN_LINE + 4];
    size_t m = 0;
    for (size_t i = 0; i < n; i++)
        m += (size_t)utf8_encode(byte_level_code(bytes[i]), spelled + m);
    vocab_add(&t->vocab, spelled, m, (int32_t)rank);
    return OK;
}

static Status read_lines(Tokenizer *t, const char *text, size_t length, Error *err) {
    size_t number = 0;
    for (size_t at = 0, n; at < length; at += n + 1) {
        const char *end = memchr(text + at, '\n', length - at);
        n = end ? (size_t)(end - text) - at : length - at;
        size_t line = n && text[at + n - 1] == '\r' ? n - 1 : n;
        if (line) TRY(read_line(t, text + at, line, ++number, err));
    }
    TRY(vocab_index(&t->vocab, t->path, err));
    for (int byte = 0; byte < 256; byte++) {
        char spelled[4];
        size_t n = (size_t)utf8_encode(byte_level_code((uint8_t)byte), spelled);
        if (vocab_find(&t->vocab, spelled, n) < 0) FAIL("%s: want a rank for every byte, got none for byte %d", t->path, byte);
    }
    return OK;
}

static Status build_merges(Tokenizer *t, Error *err) {
    uint32_t *ranks = memory_alloc((size_t)t->vocab.ids * sizeof *ranks);
    for (int64_t id = 0; id < t->vocab.ids; id++)
        ranks[id] = (uint32_t)id;
    t->bpe.unk = -1;
    t->bpe.ignore_merges = 1;
    Status status = bpe_derive_merges(t, ranks, t->path, err);
    memory_free(ranks);
    return status;
}

/* Llama 3's 256 special tokens, behind the ranks. */
static Status add_llama3_tokens(Tokenizer *t, Error *err) {
    static const char *const named[LLAMA3_SPECIALS] = {[0] = "<|begin_of_text|>",
                                                       [1] = "<|end_of_text|>",
                                                       [6] = "<|start_header_id|>",
                                                       [7] = "<|end_header_id|>",
                                                       [9] = "<|eot_id|>"};
    int reserved = 0;
    for (int i = 0; i < LLAMA3_SPECIALS; i++) {
        char name[48];
        if (named[i] != NULL)
            snprintf(name, sizeof name, "%s", named[i]);
        else
            snprintf(name, sizeof name, "<|reserved_special_token_%d|>", reserved++);
        AddedToken token = {.content = name, .length = strlen(name), .id = (int32_t)t->vocab.ids + i, .special = 1};
        TRY(added_add(&t->added, &token, t->path, err));
    }
    return OK;
}

static Status check_class(const Tokenizer *t, const TokenizerSettings *settings, Error *err) {
    static const char *const known[] = {"PreTrainedTokenizer", "LlamaTokenizer", "TokenizersBackend", NULL};
    if (settings->class != NULL && !settings_class_is(settings, known))
        FAIL(
            "%s: tokenizer_class '%.80s' with tiktoken ranks is not supported; supported: Llama 3's (PreTrainedTokenizerFast); "
            "or save the tokenizer as tokenizer.json",
            t->path, settings->class);
    return OK;
}

static Status build(Tokenizer *t, const char *text, size_t length, const TokenizerSettings *settings, Error *err) {
    TRY(check_class(t, settings, err));
    TRY(read_lines(t, text, length, err));
    TRY(build_merges(t, err));
    char *split = memory_format(
        "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\", \"pattern\": {\"Regex\": %s}, "
        "\"behavior\": \"Isolated\"}, {\"type\": \"ByteLevel\", \"add_prefix_space\": false, "
        "\"use_regex\": false}]}",
        split_llama3);
    Status status = components_add(&t->pre_tokenizer, &section_pre_tokenizer, split, err);
    memory_free(split);
    TRY(status);
    TRY(components_add(&t->decoder, &section_decoder, "{\"type\": \"ByteLevel\"}", err));
    if (settings->added.count == 0) TRY(add_llama3_tokens(t, err));
    TRY(settings_apply(settings, t, err));
    TRY(tokenizer_finish(t, err));
    const char *bos = settings->roles[ROLE_BOS], *eos = settings->roles[ROLE_EOS];
    t->bos = tokenizer_token_id(t, bos ? bos : "<|begin_of_text|>");
    t->eos = tokenizer_token_id(t, eos ? eos : "<|end_of_text|>");
    if (t->bos >= 0 && settings->add_bos != 0) surround_add(&t->around, t->bos, 0);
    if (t->eos >= 0 && settings->add_eos == 1) surround_add(&t->around, t->eos, 1);
    return OK;
}

Status tiktoken_parse(Tokenizer **tokenizer, const char *path, const char *text, size_t length,
                      const TokenizerSettings *settings, Error *err) {
    Tokenizer *t = *tokenizer = tokenizer_new(path, text, length);
    Status status = build(t, text, length, settings, err);
    if (status != OK) {
        tokenizer_close(t);
        *tokenizer = NULL;
    }
    return status;
}

Status tokenizer_model_parse(Tokenizer **tokenizer, const char *path, const char *bytes, size_t length,
                             const TokenizerSettings *settings, Error *err) {
    if (length && base64_digit(bytes[0]) >= 0) return tiktoken_parse(tokenizer, path, bytes, length, settings, err);
    return sentencepiece_parse(tokenizer, path, bytes, length, settings, err);
}
