/* What stands beside tokenizer.json: the roles of special tokens and the chat template.
 * tokenizer_config.json counts first, special_tokens_map.json for roles it does not give; a chat_template.jinja counts
 * before the template in tokenizer_config.json, as in transformers. */
#include <string.h>

#include "core/file.h"
#include "core/memory.h"
#include "data/tokenizer_internal.h"

#define CONFIG_LIMIT ((size_t)16 << 20)

/* "<s>" or {"content": "<s>", …}; anything else (null, a list) gives no token. */
static Status read_role(Tokenizer *tokenizer, JsonReader *reader, int32_t *id, Error *err) {
    Tree *value;
    TRY(tree_read(reader, &value, err));
    const Tree *content = value->kind == JSON_OBJECT_BEGIN ? tree_get(value, "content") : value;
    if (content != NULL && content->kind == JSON_STRING) *id = tokenizer_token_id(tokenizer, content->text);
    tree_free(value);
    return OK;
}

/* A string, or a list of {"name", "template"} of which "default" counts. */
static Status read_template(Tokenizer *tokenizer, JsonReader *reader, Error *err) {
    Tree *value;
    TRY(tree_read(reader, &value, err));
    const Tree *template = value->kind == JSON_STRING ? value : NULL;
    for (const Tree *item = value->kind == JSON_ARRAY_BEGIN ? value->first : NULL; item != NULL; item = item->next) {
        const Tree *name = tree_get(item, "name");
        if (name != NULL && name->kind == JSON_STRING && strcmp(name->text, "default") == 0)
            template = tree_get(item, "template");
    }
    if (template != NULL && template->kind == JSON_STRING && tokenizer->chat_template == NULL)
        tokenizer->chat_template = memory_strdup(template->text);
    tree_free(value);
    return OK;
}

static Status read_config(Tokenizer *tokenizer, JsonReader *reader, int with_template, Error *err) {
    JsonToken key;
    int32_t ignored, bos = tokenizer->bos, eos = tokenizer->eos, pad = tokenizer->pad;
    TRY(json_expect(reader, JSON_OBJECT_BEGIN, "the file", &key, err));
    for (;;) {
        TRY(json_next(reader, &key, err));
        if (key.kind == JSON_OBJECT_END) return OK;
        if (json_key_is(&key, "bos_token"))
            TRY(read_role(tokenizer, reader, bos < 0 ? &tokenizer->bos : &ignored, err));
        else if (json_key_is(&key, "eos_token"))
            TRY(read_role(tokenizer, reader, eos < 0 ? &tokenizer->eos : &ignored, err));
        else if (json_key_is(&key, "pad_token"))
            TRY(read_role(tokenizer, reader, pad < 0 ? &tokenizer->pad : &ignored, err));
        else if (with_template && json_key_is(&key, "chat_template"))
            TRY(read_template(tokenizer, reader, err));
        else
            TRY(json_skip(reader, &key, err));
    }
}

static Status read_file(Tokenizer *tokenizer, const char *folder, const char *name, int with_template, Error *err) {
    char *path = path_join(folder, name), *text = NULL;
    size_t length;
    Status status = OK;
    if (file_exists(path)) {
        status = file_read(path, CONFIG_LIMIT, &text, &length, err);
        if (status == OK) {
            JsonReader reader;
            json_open(&reader, path, text, length, 1, (JsonLimits){.depth = 32, .string_bytes = TOKENIZER_STRING_LIMIT});
            status = read_config(tokenizer, &reader, with_template, err);
            json_close(&reader);
        }
    }
    memory_free(text);
    memory_free(path);
    return status;
}

Status tokenizer_config_read(Tokenizer *tokenizer, const char *folder, Error *err) {
    char *path = path_join(folder, "chat_template.jinja");
    size_t length;
    Status status = OK;
    if (file_exists(path)) status = file_read(path, CONFIG_LIMIT, &tokenizer->chat_template, &length, err);
    memory_free(path);
    TRY(status);
    TRY(read_file(tokenizer, folder, "tokenizer_config.json", 1, err));
    return read_file(tokenizer, folder, "special_tokens_map.json", 0, err);
}
