/* The "model" section: read in one pass, then built. Merges may stand before the vocabulary they refer to, so they are
 * kept as strings until the end. */
#include <string.h>

#include "core/memory.h"
#include "data/tokenizer_internal.h"

#define MERGES_LIMIT ((size_t)1 << 23)

typedef struct MergeText {
    size_t left, right;
    uint32_t left_length, right_length;
} MergeText;

typedef struct ModelFile {
    const char *path;
    char *type, *unk, *prefix, *suffix;
    int has_vocab, has_merges, vocab_is_list;
    double dropout;
    Text bytes; /* of the merges */
    MergeText *merges;
    size_t merges_count, merges_capacity;
} ModelFile;

static void model_file_free(ModelFile *file) {
    memory_free(file->type);
    memory_free(file->unk);
    memory_free(file->prefix);
    memory_free(file->suffix);
    text_free(&file->bytes);
    memory_free(file->merges);
}

static Status read_vocab(Tokenizer *tokenizer, ModelFile *file, JsonReader *reader, Error *err) {
    JsonToken token;
    TRY(json_next(reader, &token, err));
    if (token.kind == JSON_ARRAY_BEGIN) { /* another type of model; named at the end */
        file->vocab_is_list = 1;
        return json_skip(reader, &token, err);
    }
    if (token.kind != JSON_OBJECT_BEGIN || file->has_vocab)
        FAIL("%s: model.vocab: want one object, got %s", file->path, json_kind_name(token.kind));
    file->has_vocab = 1;
    for (;;) {
        TRY(json_next(reader, &token, err));
        if (token.kind == JSON_OBJECT_END) return OK;
        Vocab *vocab = &tokenizer->vocab;
        vocab_add(vocab, token.text, token.length, 0);
        if (vocab->bytes_length > TOKENIZER_FILE_LIMIT || (int64_t)vocab->count > TOKENIZER_ID_LIMIT)
            FAIL("%s: model.vocab: want at most %lld tokens", file->path, (long long)TOKENIZER_ID_LIMIT);
        int64_t id;
        TRY(json_get_integer(reader, "model.vocab: id", 0, TOKENIZER_ID_LIMIT - 1, &id, err));
        vocab->entries[vocab->count - 1].id = (int32_t)id;
        if (id >= vocab->ids) vocab->ids = id + 1;
    }
}

static Status add_merge(ModelFile *file, const char *left, size_t left_length, const char *right, size_t right_length,
                        Error *err) {
    if (file->merges_count == MERGES_LIMIT) FAIL("%s: model.merges: want at most %zu, got more", file->path, MERGES_LIMIT);
    if (file->merges_count == file->merges_capacity) {
        file->merges_capacity = file->merges_capacity ? file->merges_capacity * 2 : 1024;
        file->merges = memory_resize(file->merges, file->merges_capacity * sizeof *file->merges);
    }
    MergeText *merge = &file->merges[file->merges_count++];
    *merge = (MergeText){.left = file->bytes.length,
                         .left_length = (uint32_t)left_length,
                         .right = file->bytes.length + left_length,
                         .right_length = (uint32_t)right_length};
    text_add(&file->bytes, left, left_length);
    text_add(&file->bytes, right, right_length);
    return OK;
}

/* "left right": exactly one space. */
static Status add_spelled_merge(ModelFile *file, const JsonToken *token, Error *err) {
    if (token->length >= 8 && memcmp(token->text, "#version", 8) == 0) return OK;
    const char *space = memchr(token->text, ' ', token->length);
    size_t left = space ? (size_t)(space - token->text) : 0;
    if (space == NULL || memchr(space + 1, ' ', token->length - left - 1) != NULL)
        FAIL("%s: line %lld: model.merges: want two tokens with one space between, got '%.*s'", file->path,
             (long long)token->line, (int)(token->length < 80 ? token->length : 80), token->text);
    return add_merge(file, token->text, left, space + 1, token->length - left - 1, err);
}

/* ["left", "right"], after the bracket. */
static Status add_paired_merge(ModelFile *file, JsonReader *reader, Error *err) {
    char *left = NULL, *right = NULL;
    size_t left_length, right_length;
    JsonToken end;
    Status status = json_get_string(reader, "model.merges: left token", &left, &left_length, err);
    if (status == OK) status = json_get_string(reader, "model.merges: right token", &right, &right_length, err);
    if (status == OK) status = json_expect(reader, JSON_ARRAY_END, "model.merges: end of a pair", &end, err);
    if (status == OK) status = add_merge(file, left, left_length, right, right_length, err);
    memory_free(left);
    memory_free(right);
    return status;
}

static Status read_merges(ModelFile *file, JsonReader *reader, Error *err) {
    JsonToken token;
    TRY(json_next(reader, &token, err));
    if (token.kind != JSON_ARRAY_BEGIN || file->has_merges)
        FAIL("%s: model.merges: want one list, got %s", file->path, json_kind_name(token.kind));
    file->has_merges = 1;
    for (;;) {
        TRY(json_next(reader, &token, err));
        if (token.kind == JSON_ARRAY_END) return OK;
        if (token.kind == JSON_STRING)
            TRY(add_spelled_merge(file, &token, err));
        else if (token.kind == JSON_ARRAY_BEGIN)
            TRY(add_paired_merge(file, reader, err));
        else
            FAIL("%s: line %lld: model.merges: want strings or pairs, got %s", file->path, (long long)token.line,
                 json_kind_name(token.kind));
    }
}

/* A string or null; an empty string counts as null. */
static Status read_optional(JsonReader *reader, const char *name, char **out, Error *err) {
    JsonToken token;
    TRY(json_next(reader, &token, err));
    memory_free(*out);
    *out = NULL;
    if (token.kind == JSON_NULL) return OK;
    if (token.kind != JSON_STRING)
        FAIL("%s: %s: want a string or null, got %s", reader->what, name, json_kind_name(token.kind));
    if (token.length == 0) return OK;
    *out = memory_alloc(token.length + 1);
    memcpy(*out, token.text, token.length);
    (*out)[token.length] = 0;
    return OK;
}

static Status read_flag(JsonReader *reader, const char *name, int *out, Error *err) {
    JsonToken token;
    TRY(json_next(reader, &token, err));
    if (token.kind != JSON_TRUE && token.kind != JSON_FALSE && token.kind != JSON_NULL)
        FAIL("%s: %s: want true or false, got %s", reader->what, name, json_kind_name(token.kind));
    *out = token.kind == JSON_TRUE;
    return OK;
}

static Status read_dropout(ModelFile *file, JsonReader *reader, Error *err) {
    JsonToken token;
    TRY(json_next(reader, &token, err));
    if (token.kind == JSON_NULL) return OK;
    if (token.kind != JSON_INTEGER && token.kind != JSON_NUMBER)
        FAIL("%s: model.dropout: want a number or null, got %s", file->path, json_kind_name(token.kind));
    file->dropout = token.number;
    return OK;
}

static Status read_model(Tokenizer *tokenizer, ModelFile *file, JsonReader *reader, Error *err) {
    JsonToken key;
    Bpe *bpe = &tokenizer->bpe;
    TRY(json_expect(reader, JSON_OBJECT_BEGIN, "model", &key, err));
    for (;;) {
        TRY(json_next(reader, &key, err));
        if (key.kind == JSON_OBJECT_END) return OK;
        if (json_key_is(&key, "type"))
            TRY(read_optional(reader, "model.type", &file->type, err));
        else if (json_key_is(&key, "vocab"))
            TRY(read_vocab(tokenizer, file, reader, err));
        else if (json_key_is(&key, "merges"))
            TRY(read_merges(file, reader, err));
        else if (json_key_is(&key, "unk_token"))
            TRY(read_optional(reader, "model.unk_token", &file->unk, err));
        else if (json_key_is(&key, "continuing_subword_prefix"))
            TRY(read_optional(reader, "model.continuing_subword_prefix", &file->prefix, err));
        else if (json_key_is(&key, "end_of_word_suffix"))
            TRY(read_optional(reader, "model.end_of_word_suffix", &file->suffix, err));
        else if (json_key_is(&key, "dropout"))
            TRY(read_dropout(file, reader, err));
        else if (json_key_is(&key, "fuse_unk"))
            TRY(read_flag(reader, "model.fuse_unk", &bpe->fuse_unk, err));
        else if (json_key_is(&key, "byte_fallback"))
            TRY(read_flag(reader, "model.byte_fallback", &bpe->byte_fallback, err));
        else if (json_key_is(&key, "ignore_merges"))
            TRY(read_flag(reader, "model.ignore_merges", &bpe->ignore_merges, err));
        else
            TRY(json_skip(reader, &key, err));
    }
}

static Status check_supported(const ModelFile *file, Error *err) {
    if (file->type != NULL && strcmp(file->type, "BPE") != 0)
        FAIL("%s: model.type '%.80s' is not supported; supported: BPE", file->path, file->type);
    if (file->vocab_is_list) FAIL("%s: model.vocab: want an object, got a list (a Unigram model is not supported)", file->path);
    if (!file->has_vocab || !file->has_merges) FAIL("%s: model: want both vocab and merges", file->path);
    if (file->prefix) FAIL("%s: model.continuing_subword_prefix '%.80s' is not supported", file->path, file->prefix);
    if (file->suffix) FAIL("%s: model.end_of_word_suffix '%.80s' is not supported", file->path, file->suffix);
    if (!(file->dropout == 0)) FAIL("%s: model.dropout %g is not supported; it makes ids random", file->path, file->dropout);
    return OK;
}

static Status merge_token(const Tokenizer *tokenizer, const ModelFile *file, size_t rank, const char *text, size_t length,
                          int32_t *id, Error *err) {
    *id = vocab_find(&tokenizer->vocab, text, length);
    if (*id < 0)
        FAIL("%s: model.merges: number %zu needs the token '%.*s', which is not in model.vocab", file->path, rank,
             (int)(length < 80 ? length : 80), text);
    return OK;
}

static Status build_merges(Tokenizer *tokenizer, const ModelFile *file, Error *err) {
    Bpe *bpe = &tokenizer->bpe;
    size_t size = 16;
    while (size < file->merges_count * 2)
        size *= 2;
    bpe->slots = memory_alloc(size * sizeof *bpe->slots);
    bpe->mask = size - 1;
    for (size_t i = 0; i < size; i++)
        bpe->slots[i].left = -1;
    for (size_t rank = 0; rank < file->merges_count; rank++) {
        const MergeText *merge = &file->merges[rank];
        const char *left = file->bytes.data + merge->left;
        int32_t left_id, right_id, merged;
        TRY(merge_token(tokenizer, file, rank, left, merge->left_length, &left_id, err));
        TRY(merge_token(tokenizer, file, rank, left + merge->left_length, merge->right_length, &right_id, err));
        TRY(merge_token(tokenizer, file, rank, left, (size_t)merge->left_length + merge->right_length, &merged, err));
        /* A pair that stands twice keeps the later rank, as in the reference. */
        *bpe_slot(bpe, left_id, right_id) =
            (MergeSlot){.left = left_id, .right = right_id, .rank = (uint32_t)rank, .merged = merged};
    }
    return OK;
}

/* See bpe_encode. A known `▁` also ends the wait of an unknown character, so nothing else crosses the cut. */
static int merges_keep_words_apart(const Tokenizer *tokenizer, const ModelFile *file) {
    if (tokenizer->bpe.ignore_merges || vocab_find(&tokenizer->vocab, "\xE2\x96\x81", 3) < 0) return 0;
    for (size_t rank = 0; rank < file->merges_count; rank++) {
        const MergeText *merge = &file->merges[rank];
        const char *token = file->bytes.data + merge->left;
        size_t length = (size_t)merge->left_length + merge->right_length;
        for (size_t at = 1; at + 3 <= length; at++)
            if (word_starts_at(token, 0, at)) return 0;
    }
    return 1;
}

static Status find_unknown(Tokenizer *tokenizer, const ModelFile *file, Error *err) {
    tokenizer->bpe.unk = -1;
    if (file->unk == NULL) return OK;
    tokenizer->bpe.unk = vocab_find(&tokenizer->vocab, file->unk, strlen(file->unk));
    if (tokenizer->bpe.unk < 0) FAIL("%s: model.unk_token '%.80s' is not in model.vocab", file->path, file->unk);
    return OK;
}

static Status build_model(Tokenizer *tokenizer, const ModelFile *file, Error *err) {
    TRY(check_supported(file, err));
    TRY(vocab_index(&tokenizer->vocab, file->path, err));
    TRY(build_merges(tokenizer, file, err));
    TRY(find_unknown(tokenizer, file, err));
    tokenizer->bpe.words_apart = merges_keep_words_apart(tokenizer, file);
    bpe_find_bytes(tokenizer);
    return OK;
}

Status model_parse(Tokenizer *tokenizer, JsonReader *reader, const char *path, Error *err) {
    ModelFile file = {.path = path};
    Status status = read_model(tokenizer, &file, reader, err);
    if (status == OK) status = build_model(tokenizer, &file, err);
    model_file_free(&file);
    return status;
}

/* merges.txt: "left right" per line; the first may be a "#version" line, which is skipped as in the reference. */
static Status read_merge_lines(ModelFile *file, const char *text, size_t length, Error *err) {
    JsonToken line = {.kind = JSON_STRING};
    for (size_t at = 0; at < length; at += line.length + 1) {
        const char *end = memchr(text + at, '\n', length - at);
        line.line++;
        line.text = text + at;
        line.length = end ? (size_t)(end - line.text) : length - at;
        JsonToken trimmed = line;
        if (trimmed.length && trimmed.text[trimmed.length - 1] == '\r') trimmed.length--;
        if (trimmed.length) TRY(add_spelled_merge(file, &trimmed, err));
    }
    file->has_merges = 1;
    return OK;
}

Status model_parse_merges(Tokenizer *tokenizer, const char *path, const char *merges, size_t length, Error *err) {
    ModelFile file = {.path = path, .has_vocab = 1};
    Status status = read_merge_lines(&file, merges, length, err);
    if (status == OK) status = build_model(tokenizer, &file, err);
    model_file_free(&file);
    return status;
}

Status model_parse_files(Tokenizer *tokenizer, const char *path, const char *vocab, size_t vocab_length, const char *merges,
                         size_t merges_length, Error *err) {
    ModelFile file = {.path = path};
    JsonReader reader;
    JsonToken end;
    json_open(&reader, path, vocab, vocab_length, 1, (JsonLimits){.depth = 2, .string_bytes = TOKENIZER_STRING_LIMIT});
    Status status = read_vocab(tokenizer, &file, &reader, err);
    if (status == OK) status = json_expect(&reader, JSON_END, "the end of the file", &end, err);
    json_close(&reader);
    if (status == OK) status = read_merge_lines(&file, merges, merges_length, err);
    if (status == OK) status = build_model(tokenizer, &file, err);
    model_file_free(&file);
    return status;
}
