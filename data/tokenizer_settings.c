/* What stands beside a tokenizer that is no tokenizer.json: which class reads it, which tokens are added, what is put around a
 * text. tokenizer_config.json counts first, then special_tokens_map.json for roles, then added_tokens.json for tokens. */
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/hash.h"
#include "core/memory.h"
#include "data/sentencepiece.h"

#define SETTINGS_LIMIT ((size_t)16 << 20)

static Status read_flag(JsonReader *reader, const char *name, int *out, Error *err) {
    JsonToken token;
    TRY(json_next(reader, &token, err));
    if (token.kind == JSON_NULL) return OK;
    if (token.kind != JSON_TRUE && token.kind != JSON_FALSE)
        FAIL("%s: %s: want true or false, got %s", reader->what, name, json_kind_name(token.kind));
    *out = token.kind == JSON_TRUE;
    return OK;
}

static Status read_class(TokenizerSettings *settings, JsonReader *reader, Error *err) {
    Tree *value;
    TRY(tree_read(reader, &value, err));
    if (value->kind == JSON_STRING) {
        memory_free(settings->class);
        settings->class = memory_strdup(value->text);
        size_t length = strlen(settings->class);
        if (length > 4 && strcmp(settings->class + length - 4, "Fast") == 0) settings->class[length - 4] = 0;
    }
    tree_free(value);
    return OK;
}

/* "<s>" or {"content": "<s>", …}; NULL for anything else. */
static const Tree *content_of(const Tree *value) {
    const Tree *content = value->kind == JSON_OBJECT_BEGIN ? tree_get(value, "content") : value;
    return content != NULL && content->kind == JSON_STRING ? content : NULL;
}

static Status read_role(TokenizerSettings *settings, SettingsRole role, JsonReader *reader, Error *err) {
    Tree *value;
    TRY(tree_read(reader, &value, err));
    const Tree *content = content_of(value);
    if (content != NULL && settings->roles[role] == NULL) settings->roles[role] = memory_strdup(content->text);
    tree_free(value);
    return OK;
}

static Status read_specials(TokenizerSettings *settings, JsonReader *reader, Error *err) {
    Tree *value;
    TRY(tree_read(reader, &value, err));
    Status status = OK;
    for (const Tree *item = value->kind == JSON_ARRAY_BEGIN ? value->first : NULL; item && status == OK; item = item->next) {
        const Tree *content = content_of(item);
        if (content == NULL) continue;
        AddedToken token = {.content = content->text, .length = content->length};
        status = added_add(&settings->specials, &token, reader->what, err);
    }
    tree_free(value);
    return status;
}

/* {"128000": {"content": …, flags}, …} */
static Status read_added_one(TokenizerSettings *settings, const Tree *item, const char *path, Error *err) {
    char *end;
    long long id = strtoll(item->key, &end, 10);
    const char *what = "added_tokens_decoder";
    if (*item->key == 0 || *end || id < 0 || id >= TOKENIZER_ID_LIMIT)
        FAIL("%s: %s: want ids from 0 to %lld as keys, got '%.40s'", path, what, (long long)TOKENIZER_ID_LIMIT - 1, item->key);
    const Tree *content;
    TRY(tree_string(item, "content", what, &content, err));
    AddedToken token = {.content = content->text, .length = content->length, .id = (int32_t)id};
    TRY(tree_flag(item, "single_word", 0, what, &token.single_word, err));
    TRY(tree_flag(item, "lstrip", 0, what, &token.lstrip, err));
    TRY(tree_flag(item, "rstrip", 0, what, &token.rstrip, err));
    TRY(tree_flag(item, "normalized", 0, what, &token.normalized, err));
    TRY(tree_flag(item, "special", 0, what, &token.special, err));
    return added_add(&settings->added, &token, path, err);
}

static Status read_added(TokenizerSettings *settings, JsonReader *reader, Error *err) {
    Tree *value;
    TRY(tree_read(reader, &value, err));
    Status status = OK;
    for (const Tree *item = value->kind == JSON_OBJECT_BEGIN ? value->first : NULL; item && status == OK; item = item->next)
        status = read_added_one(settings, item, reader->what, err);
    tree_free(value);
    return status;
}

static Status read_config(TokenizerSettings *settings, JsonReader *reader, Error *err) {
    static const char *const roles[ROLES] = {"bos_token", "eos_token", "unk_token", "pad_token"};
    JsonToken key;
    TRY(json_expect(reader, JSON_OBJECT_BEGIN, "the file", &key, err));
    for (;;) {
        TRY(json_next(reader, &key, err));
        if (key.kind == JSON_OBJECT_END) return OK;
        int role = 0;
        while (role < ROLES && !json_key_is(&key, roles[role]))
            role++;
        if (role < ROLES)
            TRY(read_role(settings, (SettingsRole)role, reader, err));
        else if (json_key_is(&key, "tokenizer_class"))
            TRY(read_class(settings, reader, err));
        else if (json_key_is(&key, "additional_special_tokens"))
            TRY(read_specials(settings, reader, err));
        else if (json_key_is(&key, "added_tokens_decoder"))
            TRY(read_added(settings, reader, err));
        else if (json_key_is(&key, "add_bos_token"))
            TRY(read_flag(reader, "add_bos_token", &settings->add_bos, err));
        else if (json_key_is(&key, "add_eos_token"))
            TRY(read_flag(reader, "add_eos_token", &settings->add_eos, err));
        else if (json_key_is(&key, "add_prefix_space"))
            TRY(read_flag(reader, "add_prefix_space", &settings->add_prefix_space, err));
        else if (json_key_is(&key, "legacy"))
            TRY(read_flag(reader, "legacy", &settings->legacy, err));
        else
            TRY(json_skip(reader, &key, err));
    }
}

static int has_id(const AddedTokens *added, int64_t id) {
    for (size_t i = 0; i < added->count; i++)
        if (added->list[i].id == id) return 1;
    return 0;
}

/* Whether the folder calls the token special. */
static int is_special(const TokenizerSettings *settings, const char *content) {
    for (int role = 0; role < ROLES; role++)
        if (settings->roles[role] != NULL && strcmp(settings->roles[role], content) == 0) return 1;
    return added_named(&settings->specials, content) != NULL;
}

/* added_tokens.json: {"content": id, …} */
static Status read_added_file(TokenizerSettings *settings, JsonReader *reader, Error *err) {
    Tree *value;
    TRY(tree_read(reader, &value, err));
    Status status = OK;
    for (const Tree *item = value->kind == JSON_OBJECT_BEGIN ? value->first : NULL; item && status == OK; item = item->next) {
        if (item->kind != JSON_INTEGER || item->integer < 0 || item->integer >= TOKENIZER_ID_LIMIT) {
            status = error_set(err, ERR_FAILED, "%s: '%.80s': want an id from 0 to %lld", reader->what, item->key,
                               (long long)TOKENIZER_ID_LIMIT - 1);
        } else if (!has_id(&settings->added, item->integer)) {
            AddedToken token = {.content = item->key,
                                .length = strlen(item->key),
                                .id = (int32_t)item->integer,
                                .special = is_special(settings, item->key)};
            status = added_add(&settings->added, &token, reader->what, err);
        }
    }
    tree_free(value);
    return status;
}

typedef Status (*ReadSettings)(TokenizerSettings *settings, JsonReader *reader, Error *err);

static Status read_file(TokenizerSettings *settings, const char *folder, const char *name, ReadSettings read, Error *err) {
    char *path = path_join(folder, name), *text = NULL;
    size_t length;
    Status status = OK;
    if (file_exists(path)) status = file_read(path, SETTINGS_LIMIT, &text, &length, err);
    if (text != NULL && status == OK) {
        JsonReader reader;
        json_open(&reader, path, text, length, 1, (JsonLimits){.depth = 32, .string_bytes = TOKENIZER_STRING_LIMIT});
        status = read(settings, &reader, err);
        if (status == OK) {
            JsonToken end;
            status = json_expect(&reader, JSON_END, "the end of the file", &end, err);
        }
        json_close(&reader);
    }
    memory_free(text);
    memory_free(path);
    return status;
}

Status settings_read(TokenizerSettings *settings, const char *folder, Error *err) {
    *settings = (TokenizerSettings){.add_bos = -1, .add_eos = -1, .legacy = -1, .add_prefix_space = -1};
    TRY(read_file(settings, folder, "tokenizer_config.json", read_config, err));
    TRY(read_file(settings, folder, "special_tokens_map.json", read_config, err));
    return read_file(settings, folder, "added_tokens.json", read_added_file, err);
}

void settings_free(TokenizerSettings *settings) {
    memory_free(settings->class);
    for (int role = 0; role < ROLES; role++)
        memory_free(settings->roles[role]);
    added_free(&settings->added);
    added_free(&settings->specials);
}

int settings_class_is(const TokenizerSettings *settings, const char *const *names) {
    for (; *names != NULL; names++)
        if (settings->class != NULL && strcmp(settings->class, *names) == 0) return 1;
    return 0;
}

Status settings_apply(const TokenizerSettings *settings, Tokenizer *t, Error *err) {
    for (size_t i = 0; i < settings->added.count; i++)
        TRY(added_add(&t->added, &settings->added.list[i], t->path, err));
    for (int role = 0; role < ROLES; role++) {
        const char *content = settings->roles[role];
        int32_t id = content ? vocab_find(&t->vocab, content, strlen(content)) : -1;
        if (id < 0 || has_id(&t->added, id)) continue;
        AddedToken token = {.content = settings->roles[role], .length = strlen(content), .id = id, .special = 1};
        TRY(added_add(&t->added, &token, t->path, err));
    }
    Text all = {0};
    text_addf(&all, "%016llx %s %d %d %d %d", (unsigned long long)t->hash, settings->class ? settings->class : "",
              settings->add_bos, settings->add_eos, settings->legacy, settings->add_prefix_space);
    for (int role = 0; role < ROLES; role++)
        text_addf(&all, " %zu %s", settings->roles[role] ? strlen(settings->roles[role]) : 0,
                  settings->roles[role] ? settings->roles[role] : "");
    for (size_t i = 0; i < t->added.count; i++) {
        const AddedToken *a = &t->added.list[i];
        text_addf(&all, " %d %d%d%d%d%d %zu ", a->id, a->single_word, a->lstrip, a->rstrip, a->normalized, a->special,
                  a->length);
        text_add(&all, a->content, a->length);
    }
    t->hash = hash_bytes(all.data, all.length);
    text_free(&all);
    return OK;
}
