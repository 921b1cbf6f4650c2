#include "train/output_folder.h"

#include <string.h>
#include <unistd.h>

#include "core/file.h"
#include "core/memory.h"

#define SETTINGS_LIMIT ((size_t)256 << 20)

Status output_folder_check(const char *folder, int overwrite, Error *err) {
    if (folder_is_empty(folder)) return OK;
    if (!overwrite) FAIL_USAGE("%s: is not empty; give --overwrite to replace it", folder);
    char *config = path_join(folder, "config.json");
    int is_model = file_exists(config);
    memory_free(config);
    if (!is_model) FAIL_USAGE("%s: has no config.json; --overwrite replaces model folders only", folder);
    return OK;
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

Status output_folder_copy_settings(const char *model, const char *folder, Error *err) {
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
