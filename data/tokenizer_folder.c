/* Which file of a folder is its tokenizer: tokenizer.json, else tokenizer.model, else vocab.json with merges.txt. A GGUF file has
 * one inside. */
#include <string.h>

#include "core/file.h"
#include "core/hash.h"
#include "core/memory.h"
#include "data/gguf_model.h"
#include "data/sentencepiece.h"

/* As JSON strings. */
const char *const split_llama3 =
    "\"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}{1,3}| "
    "?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|"
    "\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+\"";
const char *const split_qwen2 =
    "\"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|"
    "\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+\"";

Status components_add(Components *components, const Section *section, const char *json, Error *err) {
    JsonReader reader;
    Tree *tree;
    json_open(&reader, section->name, json, strlen(json), 1,
              (JsonLimits){.depth = 16, .string_bytes = TOKENIZER_CONTENT_LIMIT});
    Status status = tree_read(&reader, &tree, err);
    if (status == OK) {
        status = components_parse(components, section, tree, err);
        tree_free(tree);
    }
    json_close(&reader);
    return status;
}

/* ---- vocab.json and merges.txt: the class of tokenizer_config.json says what happens before the merges ---- */
static Status add_gpt2(Tokenizer *t, const TokenizerSettings *settings, Error *err) {
    char *level = memory_format("{\"type\": \"ByteLevel\", \"add_prefix_space\": %s, \"use_regex\": true}",
                                settings->add_prefix_space == 1 ? "true" : "false");
    Status status = components_add(&t->pre_tokenizer, &section_pre_tokenizer, level, err);
    memory_free(level);
    return status;
}

static Status add_qwen2(Tokenizer *t, const TokenizerSettings *settings, Error *err) {
    TRY(components_add(&t->normalizer, &section_normalizer, "{\"type\": \"NFC\"}", err));
    char *split = memory_format("{\"type\": \"Split\", \"pattern\": {\"Regex\": %s}, \"behavior\": \"Isolated\"}", split_qwen2);
    Status status = components_add(&t->pre_tokenizer, &section_pre_tokenizer, split, err);
    memory_free(split);
    TRY(status);
    char *level = memory_format("{\"type\": \"ByteLevel\", \"add_prefix_space\": %s, \"use_regex\": false}",
                                settings->add_prefix_space == 1 ? "true" : "false");
    status = components_add(&t->pre_tokenizer, &section_pre_tokenizer, level, err);
    memory_free(level);
    return status;
}

static const struct {
    const char *class;
    Status (*add)(Tokenizer *t, const TokenizerSettings *settings, Error *err);
} classes[] = {{"GPT2Tokenizer", add_gpt2}, {"Qwen2Tokenizer", add_qwen2}};

static Status add_class(Tokenizer *t, const TokenizerSettings *settings, Error *err) {
    for (size_t i = 0; settings->class != NULL && i < sizeof classes / sizeof *classes; i++) {
        if (strcmp(classes[i].class, settings->class) != 0) continue;
        TRY(classes[i].add(t, settings, err));
        return components_add(&t->decoder, &section_decoder, "{\"type\": \"ByteLevel\"}", err);
    }
    FAIL(
        "%s: vocab.json and merges.txt are read as tokenizer_config.json's tokenizer_class says; supported: GPT2Tokenizer, "
        "Qwen2Tokenizer; got %s%.80s%s",
        t->path, settings->class ? "'" : "", settings->class ? settings->class : "none", settings->class ? "'" : "");
}

static Status pair_build(Tokenizer *t, const TokenizerSettings *settings, const char *vocab, size_t vocab_length,
                         const char *merges, size_t merges_length, Error *err) {
    TRY(add_class(t, settings, err));
    TRY(model_parse_files(t, t->path, vocab, vocab_length, merges, merges_length, err));
    TRY(settings_apply(settings, t, err));
    TRY(tokenizer_finish(t, err));
    t->bos = settings->roles[ROLE_BOS] ? tokenizer_token_id(t, settings->roles[ROLE_BOS]) : -1;
    if (t->bos >= 0 && settings->add_bos == 1) surround_add(&t->around, t->bos, 0);
    return OK;
}

static Status pair_open(Tokenizer **tokenizer, const char *folder, const char *path, const TokenizerSettings *settings,
                        Error *err) {
    char *merges_path = path_join(folder, "merges.txt"), *vocab = NULL, *merges = NULL;
    size_t vocab_length, merges_length;
    Status status = file_read(path, TOKENIZER_FILE_LIMIT, &vocab, &vocab_length, err);
    if (status == OK) status = file_read(merges_path, TOKENIZER_FILE_LIMIT, &merges, &merges_length, err);
    if (status == OK) {
        Tokenizer *t = *tokenizer = tokenizer_new(path, vocab, vocab_length);
        t->hash = t->hash * 31 + hash_bytes(merges, merges_length);
        status = pair_build(t, settings, vocab, vocab_length, merges, merges_length, err);
    }
    memory_free(vocab);
    memory_free(merges);
    memory_free(merges_path);
    return status;
}

/* ---- the choice ---- */
typedef enum Form { FORM_JSON, FORM_MODEL, FORM_PAIR, FORM_GGUF } Form;

/* A file by its name; a folder by the first form that it has. */
static Status find_file(const char *path, char **folder, char **file, Form *form, Error *err) {
    static const char *const names[] = {"tokenizer.json", "tokenizer.model", "vocab.json"};
    if (!file_is_folder(path)) {
        const char *slash = strrchr(path, '/');
        *folder = slash ? memory_format("%.*s", (int)(slash - path) + 1, path) : memory_strdup(".");
        *file = memory_strdup(path);
        const char *name = slash ? slash + 1 : path;
        *form = gguf_is_file(path) ? FORM_GGUF : strstr(name, ".model") != NULL ? FORM_MODEL : FORM_JSON;
        return OK;
    }
    *folder = memory_strdup(path);
    for (int i = 0; i < 3; i++) {
        *file = path_join(path, names[i]);
        *form = (Form)i;
        if (file_exists(*file)) return OK;
        memory_free(*file);
        *file = NULL;
    }
    *form = FORM_GGUF;
    if (gguf_is_file(path)) {
        *file = memory_strdup(path);
        return OK;
    }
    FAIL(
        "%s: want a tokenizer: tokenizer.json, tokenizer.model (SentencePiece or tiktoken), or vocab.json with merges.txt; got "
        "none of them",
        path);
}

static Status open_form(Tokenizer **tokenizer, Form form, const char *folder, const char *file, Error *err) {
    TokenizerSettings settings = {0};
    char *text = NULL;
    size_t length;
    if (form == FORM_GGUF) return tokenizer_gguf_open(tokenizer, file, err);
    Status status = form == FORM_JSON ? OK : settings_read(&settings, folder, err);
    if (status == OK && form == FORM_PAIR)
        status = pair_open(tokenizer, folder, file, &settings, err);
    else if (status == OK)
        status = file_read(file, TOKENIZER_FILE_LIMIT, &text, &length, err);
    if (status == OK && form == FORM_JSON) status = tokenizer_parse(tokenizer, file, text, length, err);
    if (status == OK && form == FORM_MODEL) status = tokenizer_model_parse(tokenizer, file, text, length, &settings, err);
    memory_free(text);
    settings_free(&settings);
    return status;
}

static const char *form_text(Form form, const Tokenizer *t) {
    switch (form) {
        case FORM_JSON: return "tokenizer.json";
        case FORM_PAIR: return "vocab.json with merges.txt";
        case FORM_GGUF: return t->is_sentencepiece ? "GGUF, SentencePiece BPE" : "GGUF, byte-level BPE";
        case FORM_MODEL: break;
    }
    if (!t->is_sentencepiece) return "tiktoken tokenizer.model";
    return t->unigram != NULL ? "SentencePiece tokenizer.model, unigram" : "SentencePiece tokenizer.model, BPE";
}

Status tokenizer_open(Tokenizer **tokenizer, const char *path, Error *err) {
    char *folder = NULL, *file = NULL;
    Form form;
    *tokenizer = NULL;
    Status status = find_file(path, &folder, &file, &form, err);
    if (status == OK) status = open_form(tokenizer, form, folder, file, err);
    if (status == OK) (*tokenizer)->form = form_text(form, *tokenizer);
    if (status == OK && form != FORM_GGUF) status = tokenizer_config_read(*tokenizer, folder, err); /* it is in the file */
    memory_free(file);
    memory_free(folder);
    if (status != OK) {
        tokenizer_close(*tokenizer);
        *tokenizer = NULL;
    }
    return status;
}
