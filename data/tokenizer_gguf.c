/* The tokenizer inside of a GGUF file, as the model's own tokenizer encodes: llama.cpp's names of pre-tokenizers stand for the
 * families' own normalizers and cuts. Tokens of type CONTROL and UNKNOWN are special, USER tokens are added ones that are not.
 * Source: llama.cpp's src/llama-vocab.cpp; the vectors beside its vocabularies are tests/unit/test_tokenizer_gguf.c's. */
#include <string.h>

#include "core/hash.h"
#include "core/memory.h"
#include "data/gguf_vocab.h"
#include "data/sentencepiece.h"

/* As JSON strings, complete for other readers too. */
#define SPLIT(regex) "{\"type\": \"Split\", \"pattern\": {\"Regex\": " regex "}, \"behavior\": \"Isolated\", \"invert\": false}"
#define SEQUENCE(steps) "{\"type\": \"Sequence\", \"pretokenizers\": [" steps "]}"
#define BYTES_AFTER_SPLIT "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, \"use_regex\": false}"
#define BYTES_AND_SPLIT "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, \"use_regex\": true}"
#define EACH_DIGIT "{\"type\": \"Digits\", \"individual_digits\": true}"
#define DEEPSEEK_CODER                                                              \
    SPLIT("\"[\\\\r\\\\n]\"")                                                       \
    ", " SPLIT("\"\\\\s?\\\\p{L}+\"") ", " SPLIT("\"\\\\s?\\\\p{P}+\"") ", " SPLIT( \
        "\"[\\u4e00-\\u9fa5\\u0800-\\u4e00\\uac00-\\ud7ff]+\"") ", " EACH_DIGIT

typedef struct Pre {
    const char *name, *cuts; /* cuts NULL: `split` */
    const char *const *split;
    const char *normalizer;      /* NULL */
    int ignore_merges, adds_bos; /* adds_bos: where the file says nothing */
} Pre;

static const Pre pres[] = {
    {"gpt-2", BYTES_AND_SPLIT, NULL, NULL, 0, 0},
    {"mpt", BYTES_AND_SPLIT, NULL, "{\"type\": \"NFC\"}", 0, 0},
    {"starcoder", SEQUENCE(EACH_DIGIT ", " BYTES_AND_SPLIT), NULL, NULL, 0, 0},
    {"smollm", SEQUENCE(EACH_DIGIT ", " BYTES_AND_SPLIT), NULL, NULL, 0, 0},
    {"deepseek-coder", SEQUENCE(DEEPSEEK_CODER ", " BYTES_AFTER_SPLIT), NULL, NULL, 0, 0},
    {"llama-bpe", NULL, &split_llama3, NULL, 1, 1},
    {"smaug-bpe", NULL, &split_llama3, NULL, 0, 0},
    {"qwen2", NULL, &split_qwen2, "{\"type\": \"NFC\"}", 0, 0},
};

static Status find_pre(const char *path, const GgufVocab *vocab, const Pre **out, Error *err) {
    Text known = {0};
    *out = NULL;
    for (size_t i = 0; i < sizeof pres / sizeof *pres; i++) {
        text_addf(&known, "%s%s", i > 0 ? ", " : "", pres[i].name);
        if (strlen(pres[i].name) == vocab->pre.length && memcmp(pres[i].name, vocab->pre.bytes, vocab->pre.length) == 0)
            *out = &pres[i];
    }
    Status status = OK;
    if (*out == NULL)
        status = error_set(err, ERR_FAILED, "%s: tokenizer.ggml.pre '%.*s' is not supported; supported: %s", path,
                           (int)(vocab->pre.length < 80 ? vocab->pre.length : 80), vocab->pre.bytes, known.data);
    text_free(&known);
    return status;
}

Status gguf_pre_read(const char *path, const GgufVocab *vocab, GgufPre *out, Error *err) {
    const Pre *pre;
    TRY(find_pre(path, vocab, &pre, err));
    char *cuts =
        pre->cuts != NULL ? memory_strdup(pre->cuts) : memory_format(SEQUENCE(SPLIT("%s") ", " BYTES_AFTER_SPLIT), *pre->split);
    *out = (GgufPre){.cuts = cuts,
                     .normalizer = pre->normalizer,
                     .ignore_merges = pre->ignore_merges,
                     .adds_bos = vocab->adds_bos < 0 ? pre->adds_bos : vocab->adds_bos};
    return OK;
}

static Status add_cuts(Tokenizer *t, const GgufPre *pre, Error *err) {
    if (pre->normalizer != NULL) TRY(components_add(&t->normalizer, &section_normalizer, pre->normalizer, err));
    TRY(components_add(&t->pre_tokenizer, &section_pre_tokenizer, pre->cuts, err));
    return components_add(&t->decoder, &section_decoder, "{\"type\": \"ByteLevel\"}", err);
}

static GgufTokenType type_of(const GgufVocab *vocab, int64_t id) {
    return vocab->types != NULL ? (GgufTokenType)gguf_item_i32(vocab->types, (uint64_t)id) : GGUF_TOKEN_NORMAL;
}

/* Added tokens stay out of the model's vocabulary: what merges make is never one of them. */
static Status add_tokens(Tokenizer *t, const GgufVocab *vocab, Error *err) {
    for (int64_t id = 0; id < vocab->count; id++) {
        GgufString text = vocab->tokens[id];
        GgufTokenType type = type_of(vocab, id);
        if (type == GGUF_TOKEN_UNUSED) continue;
        if (type == GGUF_TOKEN_NORMAL || type == GGUF_TOKEN_BYTE) {
            vocab_add(&t->vocab, text.bytes, text.length, (int32_t)id);
            continue;
        }
        AddedToken token = {.length = text.length, .id = (int32_t)id, .special = type != GGUF_TOKEN_USER};
        token.content = memory_alloc(text.length + 1);
        memcpy(token.content, text.bytes, text.length);
        token.content[text.length] = 0;
        Status status = added_add(&t->added, &token, t->path, err);
        memory_free(token.content);
        TRY(status);
    }
    return OK;
}

static Status add_merges(Tokenizer *t, const GgufVocab *vocab, Error *err) {
    Text lines = {0};
    for (int64_t i = 0; i < vocab->merge_count; i++) {
        text_add(&lines, vocab->merges[i].bytes, vocab->merges[i].length);
        text_add(&lines, "\n", 1);
    }
    Status status = model_parse_merges(t, t->path, lines.data, lines.length, err);
    text_free(&lines);
    return status;
}

static Status build_bpe(Tokenizer *t, const GgufVocab *vocab, const TokenizerSettings *settings, Error *err) {
    GgufPre pre;
    TRY(gguf_pre_read(t->path, vocab, &pre, err));
    Status status = add_cuts(t, &pre, err);
    memory_free(pre.cuts);
    TRY(status);
    TRY(add_tokens(t, vocab, err));
    t->bpe.ignore_merges = pre.ignore_merges;
    TRY(add_merges(t, vocab, err));
    TRY(settings_apply(settings, t, err));
    TRY(tokenizer_finish(t, err));
    if (vocab->bos >= 0 && pre.adds_bos) surround_add(&t->around, vocab->bos, 0);
    if (vocab->eos >= 0 && vocab->adds_eos == 1) surround_add(&t->around, vocab->eos, 1);
    return OK;
}

/* The types have SentencePiece's numbers; more than one UNKNOWN are holes with names, which llama.cpp parses as it does CONTROL. */
static Status build_spm(Tokenizer *t, const GgufVocab *vocab, const TokenizerSettings *settings, Error *err) {
    SpmModel model = {.path = t->path,
                      .count = (size_t)vocab->count,
                      .add_dummy_prefix = vocab->adds_space_prefix != 0,
                      .escape_whitespaces = 1,
                      .unk_surface = {" \xE2\x81\x87 ", 5},
                      .unk = -1};
    int64_t unknown = vocab->unknown;
    model.pieces = memory_calloc(model.count, sizeof *model.pieces);
    for (int64_t id = 0; id < vocab->count; id++) {
        SpmType type = (SpmType)type_of(vocab, id);
        if (unknown < 0 && type == SPM_UNKNOWN) unknown = id;
        if (id == unknown) type = SPM_UNKNOWN;
        if (id != unknown && type == SPM_UNKNOWN) type = SPM_CONTROL;
        if (type == SPM_BYTE) model.byte_fallback = 1;
        model.pieces[id] = (SpmPiece){.text = {vocab->tokens[id].bytes, vocab->tokens[id].length},
                                      .score = gguf_item_f32(vocab->scores, (uint64_t)id),
                                      .type = type};
    }
    Status status = spm_check(&model, err);
    if (status == OK) status = sentencepiece_build(t, &model, settings, err);
    spm_free(&model);
    return status;
}

/* Of all that decides the ids. */
static uint64_t hash_vocab(const GgufVocab *vocab) {
    Hash hash;
    int64_t numbers[] = {vocab->is_spm,
                         vocab->count,
                         vocab->merge_count,
                         vocab->bos,
                         vocab->eos,
                         vocab->unknown,
                         vocab->padding,
                         vocab->adds_bos,
                         vocab->adds_eos,
                         vocab->adds_space_prefix,
                         (int64_t)vocab->pre.length};
    hash_init(&hash);
    hash_update(&hash, numbers, sizeof numbers);
    hash_update(&hash, vocab->pre.bytes, vocab->pre.length);
    for (int64_t i = 0; i < vocab->count + vocab->merge_count; i++) {
        GgufString text = i < vocab->count ? vocab->tokens[i] : vocab->merges[i - vocab->count];
        hash_update(&hash, &text.length, sizeof text.length);
        hash_update(&hash, text.bytes, text.length);
    }
    if (vocab->scores != NULL) hash_update(&hash, vocab->scores->items, (size_t)vocab->count * sizeof(float));
    if (vocab->types != NULL) hash_update(&hash, vocab->types->items, (size_t)vocab->count * sizeof(int32_t));
    return hash_final(&hash);
}

static char *copy_text(GgufString text) {
    return text.length > 0 ? memory_format("%.*s", (int)text.length, text.bytes) : NULL;
}

Status tokenizer_gguf_build(Tokenizer **tokenizer, const char *path, const GgufVocab *vocab, Error *err) {
    *tokenizer = NULL;
    if (vocab->count > TOKENIZER_ID_LIMIT)
        FAIL("%s: want at most %lld tokens, got %lld", path, (long long)TOKENIZER_ID_LIMIT, (long long)vocab->count);
    if (vocab->chat_template.length > TOKENIZER_STRING_LIMIT)
        FAIL("%s: key 'tokenizer.chat_template': want at most %zu bytes, got %llu", path, TOKENIZER_STRING_LIMIT,
             (unsigned long long)vocab->chat_template.length);
    TokenizerSettings settings = {.add_bos = vocab->adds_bos, .add_eos = vocab->adds_eos, .legacy = -1, .add_prefix_space = -1};
    if (vocab->bos >= 0) settings.roles[ROLE_BOS] = copy_text(vocab->tokens[vocab->bos]);
    if (vocab->eos >= 0) settings.roles[ROLE_EOS] = copy_text(vocab->tokens[vocab->eos]);
    Tokenizer *t = tokenizer_new(path, "", 0);
    t->hash = hash_vocab(vocab);
    Status status = vocab->is_spm ? build_spm(t, vocab, &settings, err) : build_bpe(t, vocab, &settings, err);
    settings_free(&settings);
    if (status != OK) {
        tokenizer_close(t);
        return status;
    }
    t->bos = vocab->bos;
    t->eos = vocab->eos;
    t->pad = vocab->padding;
    t->chat_template = copy_text(vocab->chat_template);
    *tokenizer = t;
    return OK;
}

Status tokenizer_gguf_open(Tokenizer **tokenizer, const char *path, Error *err) {
    GgufFile *file;
    GgufVocab vocab;
    *tokenizer = NULL;
    TRY(gguf_open(&file, path, err));
    Status status = gguf_vocab_read(file, &vocab, err);
    if (status == OK) status = tokenizer_gguf_build(tokenizer, path, &vocab, err);
    gguf_close(file);
    return status;
}
