/* tokenizer.json: parsing, closing, and the small questions about a tokenizer. */
#include <string.h>

#include "core/hash.h"
#include "core/memory.h"
#include "data/tokenizer_internal.h"

static Status read_section(Components *components, const Section *section, JsonReader *reader, Error *err) {
    Tree *tree;
    if (components->count) FAIL("%s: '%s' is there twice", reader->what, section->name);
    TRY(tree_read(reader, &tree, err));
    Status status = components_parse(components, section, tree, err);
    if (status != OK) error_prefix(err, "%s", reader->what);
    tree_free(tree);
    return status;
}

static Status check_version(JsonReader *reader, Error *err) {
    JsonToken token;
    TRY(json_expect(reader, JSON_STRING, "version", &token, err));
    if (token.length != 3 || memcmp(token.text, "1.0", 3) != 0)
        FAIL("%s: version: want 1.0, got '%.*s'", reader->what, (int)(token.length < 40 ? token.length : 40), token.text);
    return OK;
}

/* "truncation" and "padding" are settings of some earlier run, not part of the vocabulary: left alone. */
static Status read_sections(Tokenizer *t, JsonReader *reader, Error *err) {
    JsonToken key;
    int has_model = 0;
    TRY(json_expect(reader, JSON_OBJECT_BEGIN, "the file", &key, err));
    for (;;) {
        TRY(json_next(reader, &key, err));
        if (key.kind == JSON_OBJECT_END) break;
        if (json_key_is(&key, "version")) {
            TRY(check_version(reader, err));
        } else if (json_key_is(&key, "added_tokens")) {
            TRY(added_parse(&t->added, reader, err));
        } else if (json_key_is(&key, "normalizer")) {
            TRY(read_section(&t->normalizer, &section_normalizer, reader, err));
        } else if (json_key_is(&key, "pre_tokenizer")) {
            TRY(read_section(&t->pre_tokenizer, &section_pre_tokenizer, reader, err));
        } else if (json_key_is(&key, "post_processor")) {
            TRY(read_section(&t->post_processor, &section_post_processor, reader, err));
        } else if (json_key_is(&key, "decoder")) {
            TRY(read_section(&t->decoder, &section_decoder, reader, err));
        } else if (json_key_is(&key, "model")) {
            if (has_model++) FAIL("%s: 'model' is there twice", t->path);
            TRY(model_parse(t, reader, t->path, err));
        } else {
            TRY(json_skip(reader, &key, err));
        }
    }
    if (!has_model) FAIL("%s: want a tokenizer.json with a 'model', got none", t->path);
    return json_expect(reader, JSON_END, "the end of the file", &key, err);
}

Status tokenizer_finish(Tokenizer *t, Error *err) {
    TRY(added_index(&t->added, t, t->path, err));
    t->size = t->vocab.ids;
    if (t->added.count && t->added.list[t->added.count - 1].id >= t->size)
        t->size = (int64_t)t->added.list[t->added.count - 1].id + 1;
    for (size_t i = 0; i < t->post_processor.count; i++) {
        const Component *component = &t->post_processor.list[i];
        TRY(component->kind->process(component->state, &t->around, err));
    }
    for (size_t i = 0; i < t->around.before_count + t->around.after_count; i++) {
        int32_t id = i < t->around.before_count ? t->around.before[i] : t->around.after[i - t->around.before_count];
        if (id >= t->size) FAIL("%s: post_processor: id %d is not in the vocabulary of %lld", t->path, id, (long long)t->size);
    }
    return OK;
}

Tokenizer *tokenizer_new(const char *path, const char *bytes, size_t length) {
    Tokenizer *t = memory_calloc(1, sizeof *t);
    t->bos = t->eos = t->pad = -1;
    t->path = memory_strdup(path);
    t->hash = hash_bytes(bytes, length);
    return t;
}

Status tokenizer_parse(Tokenizer **tokenizer, const char *path, const char *text, size_t length, Error *err) {
    Tokenizer *t = tokenizer_new(path, text, length);
    JsonReader reader;
    json_open(&reader, t->path, text, length, 1, (JsonLimits){.depth = 32, .string_bytes = TOKENIZER_STRING_LIMIT});
    Status status = read_sections(t, &reader, err);
    json_close(&reader);
    if (status == OK) status = tokenizer_finish(t, err);
    if (status != OK) {
        tokenizer_close(t);
        t = NULL;
    }
    *tokenizer = t;
    return status;
}

void tokenizer_close(Tokenizer *t) {
    if (t == NULL) return;
    memory_free(t->path);
    vocab_free(&t->vocab);
    added_free(&t->added);
    components_free(&t->normalizer);
    components_free(&t->pre_tokenizer);
    components_free(&t->post_processor);
    components_free(&t->decoder);
    bpe_free(&t->bpe);
    unigram_free(t->unigram);
    memory_free(t->around.before);
    memory_free(t->around.after);
    memory_free(t->chat_template);
    memory_free(t);
}

const char *tokenizer_form(const Tokenizer *tokenizer) {
    return tokenizer->form != NULL ? tokenizer->form : "tokenizer.json";
}

int64_t tokenizer_vocab_size(const Tokenizer *tokenizer) {
    return tokenizer->size;
}

int32_t tokenizer_token_id(const Tokenizer *tokenizer, const char *content) {
    const AddedToken *added = added_named(&tokenizer->added, content);
    return added ? added->id : vocab_find(&tokenizer->vocab, content, strlen(content));
}

const char *tokenizer_token(const Tokenizer *tokenizer, int32_t id) {
    const AddedToken *added = added_find(&tokenizer->added, id);
    size_t length;
    return added ? added->content : vocab_text(&tokenizer->vocab, id, &length);
}

int tokenizer_is_special(const Tokenizer *tokenizer, int32_t id) {
    const AddedToken *added = added_find(&tokenizer->added, id);
    return added != NULL && added->special;
}

int32_t tokenizer_bos(const Tokenizer *tokenizer) {
    return tokenizer->bos;
}
int32_t tokenizer_eos(const Tokenizer *tokenizer) {
    return tokenizer->eos;
}
int32_t tokenizer_pad(const Tokenizer *tokenizer) {
    return tokenizer->pad;
}

int tokenizer_adds_bos(const Tokenizer *tokenizer) {
    return tokenizer->bos >= 0 && tokenizer->around.before_count && tokenizer->around.before[0] == tokenizer->bos;
}

const char *tokenizer_chat_template(const Tokenizer *tokenizer) {
    return tokenizer->chat_template;
}
uint64_t tokenizer_hash(const Tokenizer *tokenizer) {
    return tokenizer->hash;
}
