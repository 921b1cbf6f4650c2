#include "train/run_folder.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/file.h"
#include "core/hash.h"
#include "core/log.h"
#include "core/memory.h"
#include "data/data_files.h"
#include "train/output_folder.h"

/* Keys that change what is shown, kept or planned, but no number of the run. */
static const char *const free_keys[] = {"data.cache",
                                        "output.path",
                                        "output.overwrite",
                                        "train.eval_every",
                                        "train.save_every",
                                        "train.save_minutes",
                                        "train.keep_last",
                                        "train.save_best",
                                        "train.samples",
                                        "train.recompute",
                                        "train.memory",
                                        "train.dequantized_layers",
                                        "model.arch",
                                        "device",
                                        "distributed.timeout_s",
                                        "train.max_bad_steps",
                                        "distributed.check_every",
                                        "distributed.shard_base",
                                        "distributed.shard_optimizer"};

static int has(const char *folder, const char *name) {
    char *path = path_join(folder, name);
    int there = file_exists(path);
    memory_free(path);
    return there;
}

/* The config as "section.key" lines with the free keys left out: what is compared and hashed. */
static void deciding_lines(const Config *config, Text *out) {
    Text all = {0};
    char section[64] = "";
    config_print(config, &all);
    for (char *line = strtok(all.data, "\n"); line != NULL; line = strtok(NULL, "\n")) {
        const char *open = strchr(line, '"');
        if (open == NULL) {
            if (strchr(line, '}') != NULL) section[0] = 0;
            continue;
        }
        const char *close = strchr(open + 1, '"');
        if (close == NULL) continue;
        char key[160];
        (void)snprintf(key, sizeof key, "%s%s%.*s", section, section[0] ? "." : "", (int)(close - open - 1), open + 1);
        size_t end = strlen(line);
        if (end > 0 && line[end - 1] == '{') {
            (void)snprintf(section, sizeof section, "%.63s", key);
            continue;
        }
        int ignored = 0;
        for (size_t i = 0; i < sizeof free_keys / sizeof free_keys[0]; i++)
            ignored |= strcmp(free_keys[i], key) == 0;
        if (ignored) continue;
        while (end > 0 && (line[end - 1] == ',' || line[end - 1] == ' '))
            end--;
        text_addf(out, "%s%.*s\n", key, (int)(line + end - close - 1), close + 1);
    }
    text_free(&all);
}

uint64_t run_config_hash(const Config *config) {
    Text lines = {0};
    deciding_lines(config, &lines);
    uint64_t hash = hash_bytes(lines.data, lines.length);
    text_free(&lines);
    return hash;
}

/* The lines of `a` that `b` does not have, as a list of "key: value". */
static void add_missing(const Text *a, const Text *b, Text *out) {
    for (const char *line = a->data; line != NULL && *line != 0;) {
        const char *end = strchr(line, '\n');
        size_t length = (size_t)(end - line) + 1;
        int there = 0;
        for (const char *other = b->data; other != NULL && *other != 0; other = strchr(other, '\n') + 1)
            if (strncmp(other, line, length) == 0) there = 1;
        if (!there) text_addf(out, "%s%.*s", out->length ? "; " : "", (int)(length - 1), line);
        line = end + 1;
    }
}

static Status check_same(const Config *config, Error *err) {
    char *path = path_join(config->output.path, "config.json");
    Config old;
    Status status = config_load(&old, path, NULL, 0, err);
    if (status == OK) {
        Text now = {0}, then = {0}, differing = {0};
        deciding_lines(config, &now);
        deciding_lines(&old, &then);
        add_missing(&then, &now, &differing);
        if (differing.length > 0)
            status = error_set(err, ERR_USAGE,
                               "--resume: the config differs from the run's own %s, where it says %s; put those back, or start "
                               "a new run in another output.path",
                               path, differing.data);
        text_free(&now);
        text_free(&then);
        text_free(&differing);
        config_free(&old);
    }
    memory_free(path);
    return status;
}

/* Whether everything in the folder is what a run that was killed in its first moment leaves: config.json half written. */
static int is_newborn(const char *path) {
    DIR *folder = opendir(path);
    if (folder == NULL) return 0;
    int newborn = 1;
    for (struct dirent *entry; newborn && (entry = readdir(folder)) != NULL;)
        newborn = strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0 ||
                  strncmp(entry->d_name, "config.json.tmp-", sizeof "config.json.tmp-" - 1) == 0;
    closedir(folder);
    return newborn;
}

/* A config.json that reads as a run's, or that lies beside a run's files (an older version's may not read). */
static int is_run(const char *path) {
    if (!has(path, "config.json")) return 0;
    if (has(path, "metrics.jsonl") || has(path, "checkpoints")) return 1;
    char *file = path_join(path, "config.json");
    Config config;
    Error ignored;
    Status status = config_load(&config, file, NULL, 0, &ignored);
    if (status == OK) config_free(&config);
    memory_free(file);
    return status == OK;
}

/* Whether a folder can be made at path, as far as can be seen without making it: what exists of the path is a folder. */
static Status check_place(const char *path, Error *err) {
    char *part = memory_strdup(path);
    char *slash;
    while (!file_exists(part) && (slash = strrchr(part, '/')) != NULL)
        *slash = 0;
    Status status = OK;
    if (part[0] != 0 && file_exists(part) && !file_is_folder(part))
        status = error_set(err, ERR_USAGE, "output.path: %s is not a folder", part);
    memory_free(part);
    return status;
}

/* What a run reads must outlive the overwriting of its folder. */
static Status check_outside(const char *key, const char *input, const char *folder, Error *err) {
    if (output_folder_holds(folder, input)) FAIL_USAGE("output.path: overwriting %s would remove %s, %s", folder, key, input);
    return OK;
}

/* The same for every file of a pattern. One that matches nothing is left to the reader of the data. */
static Status check_files_outside(const char *key, const char *pattern, const char *folder, Error *err) {
    DataFiles files;
    Status status = OK;
    if (pattern == NULL || data_files_expand(pattern, &files, NULL) != OK) return OK;
    for (int64_t i = 0; i < files.count && status == OK; i++)
        status = check_outside(key, files.names[i], folder, err);
    data_files_free(&files);
    return status;
}

Status run_folder_check(const Config *config, int resume, Error *err) {
    const char *path = config->output.path;
    TRY(check_place(path, err));
    if (!file_exists(path) || folder_is_empty(path) || is_newborn(path)) return OK;
    if (resume && has(path, "config.json")) return check_same(config, err);
    if (resume) FAIL_USAGE("--resume: output.path: %s has files but no config.json; it is not a run's folder", path);
    if (!config->output.overwrite)
        FAIL_USAGE("output.path: %s is not empty; go on with --resume, replace it with --overwrite, or choose another folder",
                   path);
    if (!is_run(path))
        FAIL_USAGE("output.path: %s does not look like a run's folder, so it is not overwritten; remove it by hand", path);
    TRY(check_outside("model.path", config->model.path, path, err));
    for (int64_t i = 0; i < config->data.path_count; i++)
        TRY(check_files_outside("data.path", config->data.path[i].path, path, err));
    return check_files_outside("data.eval_path", config->data.eval_path, path, err);
}

/* Under another name first: a kill in the middle leaves no folder that is half a run. */
static Status remove_run(const char *path, Error *err) {
    char *aside = memory_format("%s.tmp-%ld", path, (long)getpid());
    Status status = folder_remove(aside, err);
    if (status == OK) status = folder_publish(path, aside, err);
    if (status == OK) status = folder_remove(aside, err);
    memory_free(aside);
    return status;
}

/* What a killed run was writing: files and folders NAME.tmp-PID. Nothing else in a run's folder is named so. */
static Status remove_leftovers(const char *path, Error *err) {
    DIR *folder = opendir(path);
    if (folder == NULL) FAIL("%s: cannot read the folder: %s", path, strerror(errno));
    Status status = OK;
    for (struct dirent *entry; status == OK && (entry = readdir(folder)) != NULL;) {
        if (strstr(entry->d_name, ".tmp-") == NULL) continue;
        char *name = path_join(path, entry->d_name);
        if (unlink(name) != 0) status = folder_remove(name, err);
        memory_free(name);
    }
    closedir(folder);
    return status;
}

Status run_folder_open(const Config *config, int resume, Error *err) {
    const char *folder = config->output.path;
    if (resume && has(folder, "config.json")) return remove_leftovers(folder, err);
    if (!resume && !folder_is_empty(folder) && !is_newborn(folder)) TRY(remove_run(folder, err));
    TRY(folder_create(folder, err));
    TRY(remove_leftovers(folder, err)); /* of a run that was killed before it had a config.json */
    char *path = path_join(folder, "config.json");
    Text text = {0};
    config_print(config, &text);
    Status status = file_write_atomic(path, text.data, text.length, err);
    text_free(&text);
    memory_free(path);
    return status;
}
