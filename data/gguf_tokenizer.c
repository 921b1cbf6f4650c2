#include "data/gguf_tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/log.h"
#include "core/memory.h"
#include "data/gguf_vocab.h"
#include "data/tokenizer_internal.h"

#define KEY(name) "tokenizer.ggml." name

/* ---- which pre-tokenizer --------------------------------------------------------------------------------------------------- */

#define LLAMA3_SPLIT                                                           \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| " \
    "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!"                      \
    "\\S)|\\s+"
#define QWEN2_SPLIT                                                       \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| " \
    "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

typedef struct Cuts {
    const char *regex; /* the only Split; NULL */
    int splits, digits, individual, byte_level, gpt2_regex, prefix_space, other;
} Cuts;

static int is_true(const Tree *object, const char *key, int fallback) {
    const Tree *value = tree_get(object, key);
    return value == NULL ? fallback : value->kind == JSON_TRUE;
}

static void count_cut(const Tree *step, Cuts *cuts) {
    const Tree *type = tree_get(step, "type");
    const char *name = type != NULL && type->text != NULL ? type->text : "";
    if (strcmp(name, "Split") == 0) {
        const Tree *pattern = tree_get(step, "pattern"), *regex = tree_get(pattern, "Regex");
        cuts->splits++;
        cuts->regex = regex != NULL ? regex->text : NULL;
    } else if (strcmp(name, "Digits") == 0) {
        cuts->digits++;
        cuts->individual = is_true(step, "individual_digits", 0);
    } else if (strcmp(name, "ByteLevel") == 0) {
        cuts->byte_level++;
        cuts->gpt2_regex = is_true(step, "use_regex", 1);
        cuts->prefix_space = is_true(step, "add_prefix_space", 1);
    } else {
        cuts->other++;
    }
}

static const char *pre_of(const Cuts *cuts, int ignores_merges) {
    if (cuts->other > 0 || cuts->byte_level != 1 || cuts->prefix_space || cuts->splits > 1 || cuts->digits > 1) return NULL;
    if (cuts->splits == 0 && cuts->gpt2_regex) return cuts->digits == 0 ? "gpt-2" : cuts->individual ? "smollm" : NULL;
    if (cuts->splits == 0 || cuts->gpt2_regex || cuts->digits > 0 || cuts->regex == NULL) return NULL;
    if (strcmp(cuts->regex, LLAMA3_SPLIT) == 0) return ignores_merges ? "llama-bpe" : "smaug-bpe";
    if (strcmp(cuts->regex, QWEN2_SPLIT) == 0) return ignores_merges ? NULL : "qwen2";
    return NULL;
}

/* The value of "pre_tokenizer" in a tokenizer.json. */
static Status read_cuts(const char *path, const char *text, size_t length, Tree **out, Error *err) {
    JsonReader reader;
    JsonToken token;
    Status status = OK;
    *out = NULL;
    json_open(&reader, path, text, length, 1, (JsonLimits){.string_bytes = TOKENIZER_STRING_LIMIT});
    TRY_GOTO(json_expect(&reader, JSON_OBJECT_BEGIN, "tokenizer", &token, err));
    for (;;) {
        TRY_GOTO(json_next(&reader, &token, err));
        if (token.kind != JSON_KEY) break;
        if (*out == NULL && json_key_is(&token, "pre_tokenizer"))
            TRY_GOTO(tree_read(&reader, out, err));
        else
            TRY_GOTO(json_skip(&reader, &token, err));
    }
done:
    json_close(&reader);
    return status;
}

static Status find_pre(const Tokenizer *t, const char *folder, const char **pre, Error *err) {
    char *path = file_is_folder(folder) ? path_join(folder, "tokenizer.json") : memory_strdup(folder), *text = NULL;
    size_t length;
    Tree *tree = NULL;
    Cuts cuts = {0};
    Status status = OK;
    if (!file_exists(path)) {
        status = error_set(err, ERR_FAILED, "%s: is absent; the pre-tokenizer of a GGUF file is recognised by it", path);
        goto done;
    }
    TRY_GOTO(file_read(path, TOKENIZER_FILE_LIMIT, &text, &length, err));
    TRY_GOTO(read_cuts(path, text, length, &tree, err));
    const Tree *steps = tree_get(tree, "pretokenizers");
    if (steps == NULL && tree != NULL) count_cut(tree, &cuts);
    for (const Tree *step = steps != NULL ? steps->first : NULL; step != NULL; step = step->next)
        count_cut(step, &cuts);
    *pre = pre_of(&cuts, t->bpe.ignore_merges);
    if (*pre == NULL)
        status = error_set(err, ERR_FAILED,
                           "%s: llama.cpp has no pre-tokenizer that is known to cut like this one%s%.200s; use --format hf",
                           path, cuts.regex != NULL ? ": " : "", cuts.regex != NULL ? cuts.regex : "");
done:
    tree_free(tree);
    memory_free(text);
    memory_free(path);
    return status;
}

/* ---- tokens ---------------------------------------------------------------------------------------------------------------- */

typedef struct Words {
    int64_t count;
    int is_spm;
    GgufString *tokens;
    int32_t *types;
    float *scores;
    char *holes; /* their names, HOLE_BYTES each */
} Words;
#define HOLE_BYTES 24
#define HOLE_SCORE (-10000.0f)
#define ADDED_SCORE (-1000.0f)

static void words_take(Words *w, const Tokenizer *t) {
    w->tokens = memory_calloc((size_t)w->count, sizeof *w->tokens);
    w->types = memory_calloc((size_t)w->count, sizeof *w->types);
    w->scores = memory_calloc((size_t)w->count, sizeof *w->scores);
    w->holes = memory_calloc((size_t)w->count, HOLE_BYTES);
    for (int64_t id = 0; id < w->count; id++) {
        const AddedToken *added = added_find(&t->added, (int32_t)id);
        size_t length = 0;
        const char *text = added != NULL ? added->content : vocab_text(&t->vocab, id, &length);
        if (added != NULL) length = added->length;
        w->types[id] = added == NULL ? GGUF_TOKEN_NORMAL : added->special ? GGUF_TOKEN_CONTROL : GGUF_TOKEN_USER;
        if (added != NULL) w->scores[id] = ADDED_SCORE;
        if (text == NULL) {
            char *name = w->holes + id * HOLE_BYTES;
            length = (size_t)snprintf(name, HOLE_BYTES, "[PAD%lld]", (long long)id);
            text = name;
            w->types[id] = GGUF_TOKEN_UNUSED;
            w->scores[id] = HOLE_SCORE;
        }
        w->tokens[id] = (GgufString){text, length};
    }
    for (int byte = 0; w->is_spm && byte < 256; byte++)
        if (t->bpe.bytes[byte] >= 0 && t->bpe.bytes[byte] < w->count) w->types[t->bpe.bytes[byte]] = GGUF_TOKEN_BYTE;
    if (w->is_spm && t->bpe.unk >= 0 && t->bpe.unk < w->count) w->types[t->bpe.unk] = GGUF_TOKEN_UNKNOWN;
}

static void words_free(Words *w) {
    memory_free(w->tokens);
    memory_free(w->types);
    memory_free(w->scores);
    memory_free(w->holes);
}

static int by_rank(const void *a, const void *b) {
    const MergeSlot *x = *(const MergeSlot *const *)a, *y = *(const MergeSlot *const *)b;
    return x->rank < y->rank ? -1 : x->rank > y->rank;
}

/* All merges in order; the caller frees the list. */
static const MergeSlot **sorted_merges(const Bpe *bpe, size_t *count) {
    const MergeSlot **list = memory_calloc(bpe->mask + 1, sizeof(*list));
    *count = 0;
    for (size_t i = 0; bpe->slots != NULL && i <= bpe->mask; i++)
        if (bpe->slots[i].left >= 0) list[(*count)++] = &bpe->slots[i];
    qsort(list, *count, sizeof *list, by_rank);
    return list;
}

static void score_words(Words *w, const MergeSlot *const *merges, size_t count) {
    float rank = 0.0f;
    char *seen = memory_calloc((size_t)w->count, 1);
    for (size_t i = 0; i < count; i++) {
        int32_t id = merges[i]->merged;
        if (id < 0 || id >= w->count || seen[id]) continue;
        seen[id] = 1;
        w->scores[id] = -(rank += 1.0f); /* exact: at most 2^22 tokens */
    }
    memory_free(seen);
}

static Status put_merges(GgufWriter *writer, const Words *w, const MergeSlot *const *merges, size_t count, Error *err) {
    GgufString *strings = memory_calloc(count + 1, sizeof *strings);
    size_t *ends = memory_calloc(count + 1, sizeof *ends);
    Text all = {0};
    for (size_t i = 0; i < count; i++) {
        const GgufString *left = &w->tokens[merges[i]->left], *right = &w->tokens[merges[i]->right];
        text_add(&all, left->bytes, (size_t)left->length);
        text_add(&all, " ", 1);
        text_add(&all, right->bytes, (size_t)right->length);
        ends[i + 1] = all.length;
    }
    for (size_t i = 0; i < count; i++)
        strings[i] = (GgufString){all.data + ends[i], ends[i + 1] - ends[i]};
    Status status = gguf_put_array(writer, KEY("merges"), GGUF_STRING, strings, count, err);
    text_free(&all);
    memory_free(ends);
    memory_free(strings);
    return status;
}

/* ---- the keys -------------------------------------------------------------------------------------------------------------- */

static Status put_id(GgufWriter *writer, const char *key, int32_t id, int64_t count, Error *err) {
    return id < 0 || id >= count ? OK : gguf_put_u32(writer, key, (uint32_t)id, err);
}

/* Whether a space is put in front of a text: seen in what becomes of one. llama.cpp also puts it in front of a space. */
static Status adds_space(const Tokenizer *t, int *adds, Error *err) {
    TokenBuffer ids = {0}, spaced = {0};
    Status status = tokenizer_encode(t, "a", 1, 0, 0, &ids, err);
    if (status == OK) status = tokenizer_encode(t, " a", 2, 0, 0, &spaced, err);
    const char *first = status == OK && ids.count > 0 ? tokenizer_token(t, ids.ids[0]) : NULL;
    *adds = first != NULL && strncmp(first, "\xE2\x96\x81", 3) == 0;
    if (*adds && spaced.count == ids.count && memcmp(ids.ids, spaced.ids, (size_t)ids.count * sizeof *ids.ids) == 0)
        log_warning(
            "%s: adds no space in front of a text that begins with one; llama.cpp does, so such texts get one more token there",
            t->path);
    token_buffer_free(&ids);
    token_buffer_free(&spaced);
    return status;
}

static Status put_model(GgufWriter *writer, const Tokenizer *t, const char *folder, Words *w, Error *err) {
    size_t count;
    const MergeSlot **merges = sorted_merges(&t->bpe, &count);
    const char *pre = "default";
    int space;
    Status status = OK;
    if (!w->is_spm) TRY_GOTO(find_pre(t, folder, &pre, err));
    TRY_GOTO(gguf_put_text(writer, KEY("model"), w->is_spm ? "llama" : "gpt2", err));
    TRY_GOTO(gguf_put_text(writer, KEY("pre"), pre, err));
    TRY_GOTO(gguf_put_array(writer, KEY("tokens"), GGUF_STRING, w->tokens, (uint64_t)w->count, err));
    TRY_GOTO(gguf_put_array(writer, KEY("token_type"), GGUF_I32, w->types, (uint64_t)w->count, err));
    if (w->is_spm) {
        score_words(w, merges, count);
        TRY_GOTO(gguf_put_array(writer, KEY("scores"), GGUF_F32, w->scores, (uint64_t)w->count, err));
        TRY_GOTO(adds_space(t, &space, err));
        TRY_GOTO(gguf_put_bool(writer, KEY("add_space_prefix"), space, err));
    } else {
        TRY_GOTO(put_merges(writer, w, merges, count, err));
    }
done:
    memory_free(merges);
    return status;
}

static int is_byte_level(const Tokenizer *t) {
    for (size_t i = 0; i < t->pre_tokenizer.count; i++)
        if (t->pre_tokenizer.list[i].kind == &pre_tokenizer_byte_level) return 1;
    return 0;
}

Status gguf_put_tokenizer(GgufWriter *writer, const Tokenizer *t, const char *folder, int64_t vocab, int32_t eos, Error *err) {
    Words words = {.count = vocab, .is_spm = !is_byte_level(t)};
    const char *chat = tokenizer_chat_template(t);
    int32_t bos = tokenizer_bos(t), stop = tokenizer_eos(t) >= 0 ? tokenizer_eos(t) : eos;
    if (t->unigram != NULL) FAIL("%s: a Unigram tokenizer has no equal in llama.cpp's llama models; use --format hf", t->path);
    if (words.is_spm && !t->bpe.byte_fallback)
        FAIL("%s: want byte-level BPE or BPE with byte fallback for a GGUF file; use --format hf", t->path);
    if (t->size > vocab)
        FAIL("%s: want ids below the %lld rows of the embedding, got %lld", t->path, (long long)vocab, (long long)t->size - 1);
    words_take(&words, t);
    Status status;
    TRY_GOTO(put_model(writer, t, folder, &words, err));
    TRY_GOTO(put_id(writer, KEY("bos_token_id"), bos, vocab, err));
    TRY_GOTO(put_id(writer, KEY("eos_token_id"), stop, vocab, err));
    TRY_GOTO(put_id(writer, KEY("padding_token_id"), tokenizer_pad(t), vocab, err));
    if (words.is_spm) TRY_GOTO(put_id(writer, KEY("unknown_token_id"), t->bpe.unk, vocab, err));
    TRY_GOTO(gguf_put_bool(writer, KEY("add_bos_token"), tokenizer_adds_bos(t), err));
    TRY_GOTO(gguf_put_bool(writer, KEY("add_eos_token"), t->around.after_count > 0, err));
    if (chat != NULL) TRY_GOTO(gguf_put_text(writer, "tokenizer.chat_template", chat, err));
done:
    words_free(&words);
    return status;
}

Status gguf_copy_tokenizer(GgufWriter *writer, const char *path, Error *err) {
    GgufFile *file;
    TRY(gguf_open(&file, path, err));
    Status status = OK;
    for (int64_t i = 0; i < gguf_value_count(file) && status == OK; i++) {
        const GgufValue *value = gguf_value(file, i);
        const void *items = value->type == GGUF_STRING ? (const void *)value->strings : value->items;
        if (strncmp(value->key, "tokenizer.", strlen("tokenizer.")) != 0) continue;
        status = value->is_array ? gguf_put_array(writer, value->key, value->type, items, value->count, err)
                                 : gguf_put(writer, value->key, value->type, items, err);
    }
    gguf_close(file);
    return status;
}
