#include "train/output_folder.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/file.h"
#include "core/memory.h"
#include "core/text.h"
#include "data/gguf_model.h"
#include "data/json.h"

#define SETTINGS_LIMIT ((size_t)256 << 20)
#define CONFIG_LIMIT ((size_t)4 << 20)

Status output_folder_check(const char *folder, int overwrite, Error *err) {
    if (folder_is_empty(folder)) return OK;
    if (!overwrite) FAIL_USAGE("%s: is not empty; give --overwrite to replace it", folder);
    char *config = path_join(folder, "config.json");
    int is_model = file_exists(config);
    memory_free(config);
    if (!is_model) FAIL_USAGE("%s: has no config.json; --overwrite replaces model folders only", folder);
    return OK;
}

int output_folder_holds(const char *folder, const char *input) {
    char *inner = input == NULL ? NULL : realpath(input, NULL), *outer = realpath(folder, NULL);
    size_t length = outer == NULL ? 0 : strlen(outer);
    int inside = inner != NULL && outer != NULL && strncmp(inner, outer, length) == 0 &&
                 (inner[length] == 0 || inner[length] == '/' || length == 1);
    free(inner);
    free(outer);
    return inside;
}

Status output_folder_write(const char *folder, int replace, Status (*fill)(void *context, const char *folder, Error *err),
                           void *context, Error *err) {
    size_t length = strlen(folder);
    while (length > 1 && folder[length - 1] == '/')
        length--; /* beside the folder, not in it */
    char *temporary = memory_format("%.*s.tmp-%ld", (int)length, folder, (long)getpid());
    Status status = folder_remove(temporary, err);
    if (status == OK) status = folder_create(temporary, err);
    if (status == OK) status = fill(context, temporary, err);
    if (status == OK) status = replace ? folder_replace(temporary, folder, err) : folder_publish(temporary, folder, err);
    if (status != OK) (void)folder_remove(temporary, NULL);
    memory_free(temporary);
    return status;
}

static Status copy_file(const char *from, const char *to, Error *err) {
    char *bytes = NULL;
    size_t length;
    Status status = file_read(from, SETTINGS_LIMIT, &bytes, &length, err);
    if (status == OK) status = file_write_atomic(to, bytes, length, err);
    memory_free(bytes);
    return status;
}

static Status write_text(const char *folder, const char *name, const Text *text, Error *err) {
    if (text->length == 0) return OK;
    char *path = path_join(folder, name);
    Status status = file_write_atomic(path, text->data, text->length, err);
    memory_free(path);
    return status;
}

/* What a model folder has in files stands inside of a GGUF file. */
static Status write_gguf_settings(const char *model, const char *folder, Error *err) {
    GgufFile *file;
    GgufTokenizerFiles files = {0};
    TRY(gguf_open(&file, model, err));
    Status status;
    TRY_GOTO(gguf_tokenizer_files(file, &files, err));
    TRY_GOTO(write_text(folder, "tokenizer.json", &files.json, err));
    TRY_GOTO(write_text(folder, "tokenizer.model", &files.model, err));
    status = write_text(folder, "tokenizer_config.json", &files.config, err);
done:
    gguf_tokenizer_files_free(&files);
    gguf_close(file);
    return status;
}

Status output_folder_copy_settings(const char *model, const char *folder, Error *err) {
    if (gguf_is_file(model)) return write_gguf_settings(model, folder, err);
    static const char *const names[] = {
        "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
        "vocab.json",     "merges.txt",      "chat_template.jinja",   "chat_template.json",      "generation_config.json"};
    Status status = OK;
    for (size_t i = 0; i < sizeof names / sizeof *names && status == OK; i++) {
        char *from = path_join(model, names[i]), *to = path_join(folder, names[i]);
        if (file_exists(from)) status = copy_file(from, to, err);
        memory_free(from);
        memory_free(to);
    }
    return status;
}

static const char *torch_name(DType type) {
    return type == DTYPE_BF16 ? "bfloat16" : type == DTYPE_F16 ? "float16" : "float32";
}

/* Key by key with the source's own spelling: numbers keep their points, and what nothing changes stays byte for byte. */
static Status rewrite_config(JsonReader *json, DType type, int plain, Text *out, Error *err) {
    JsonToken token;
    int count = 0, typed = 0;
    TRY(json_expect(json, JSON_OBJECT_BEGIN, "config", &token, err));
    text_add(out, json->text, (size_t)(json->at - json->text));
    for (;;) {
        const char *begin = json->at; /* behind '{' or the value before: a comma is still to come */
        TRY(json_next(json, &token, err));
        if (token.kind != JSON_KEY) {
            if (!typed && type != DTYPE_F32) /* FP32 is what readers take where nothing is said */
                text_addf(out, "%s\n  \"torch_dtype\": \"%s\"", count > 0 ? "," : "", torch_name(type));
            text_add(out, begin, (size_t)(json->end - begin));
            return OK;
        }
        int is_type = json_key_is(&token, "dtype") || json_key_is(&token, "torch_dtype");
        int is_left_out = plain && json_key_is(&token, "quantization_config");
        const char *value = json->at + strspn(json->at, " \t\r\n");
        TRY(json_skip(json, &token, err));
        if (is_left_out) continue;
        const char *comma = begin + strspn(begin, " \t\r\n");
        if (*comma == ',') begin = comma + 1;
        if (count++ > 0) text_adds(out, ",");
        text_add(out, begin, (size_t)((is_type ? value : json->at) - begin));
        if (is_type) text_addf(out, "\"%s\"", torch_name(type));
        typed |= is_type;
    }
}

/* config.json, or what stands for it in a GGUF file; memory_free. */
static Status read_config(const char *model, const char *path, char **text, size_t *length, Error *err) {
    GgufFile *file;
    Text written = {0};
    if (!gguf_is_file(model)) return file_read(path, CONFIG_LIMIT, text, length, err);
    TRY(gguf_open(&file, model, err));
    Status status = gguf_config_text(file, &written, err);
    gguf_close(file);
    *text = written.data;
    *length = written.length;
    return status;
}

Status output_folder_write_config(const char *model, const char *folder, DType type, int plain, Error *err) {
    char *from = path_join(model, "config.json"), *to = path_join(folder, "config.json"), *text = NULL;
    size_t length;
    JsonReader json;
    Text out = {0};
    Status status = read_config(model, from, &text, &length, err);
    if (status == OK) {
        json_open(&json, from, text, length, 1, (JsonLimits){0});
        status = rewrite_config(&json, type, plain, &out, err);
        json_close(&json);
    }
    if (status == OK) status = file_write_atomic(to, out.data, out.length, err);
    text_free(&out);
    memory_free(text);
    memory_free(from);
    memory_free(to);
    return status;
}

Status output_folder_add_to_config(const char *folder, const char *member, Error *err) {
    char *path = path_join(folder, "config.json"), *text = NULL;
    size_t length;
    Text written = {0};
    Status status;
    TRY_GOTO(file_read(path, CONFIG_LIMIT, &text, &length, err));
    while (length > 0 && text[length - 1] != '}')
        length--;
    length--; /* it is an object: there is a brace, and before it at least "model_type" */
    while (length > 0 && strchr(" \t\r\n", text[length - 1]) != NULL)
        length--;
    text_add(&written, text, length);
    text_addf(&written, ",\n  %s\n}\n", member);
    TRY_GOTO(file_write_atomic(path, written.data, written.length, err));
done:
    text_free(&written);
    memory_free(text);
    memory_free(path);
    return status;
}
