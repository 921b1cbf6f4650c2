#include "data/data_files.h"

#include <glob.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/memory.h"

static int compare_names(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static Status expand_pattern(const char *pattern, DataFiles *files, Error *err) {
    glob_t found = {0};
    int result = glob(pattern, GLOB_NOSORT | GLOB_ERR, NULL, &found);
    Status status = OK;
    if (result == GLOB_NOMATCH) {
        status = error_set(err, ERR_FAILED, "%s: no file matches this pattern", pattern);
    } else if (result != 0) {
        status = error_set(err, ERR_FAILED, "%s: cannot list the files of this pattern: %s", pattern,
                           result == GLOB_NOSPACE ? "out of memory" : "a folder cannot be read");
    } else if (found.gl_pathc > DATA_FILES_MAX) {
        status = error_set(err, ERR_FAILED, "%s: matches %zu files, more than %d; join them into fewer", pattern,
                           found.gl_pathc, DATA_FILES_MAX);
    }
    if (status == OK) {
        files->names = memory_alloc(found.gl_pathc * sizeof *files->names);
        for (size_t i = 0; i < found.gl_pathc; i++)
            files->names[files->count++] = memory_strdup(found.gl_pathv[i]);
        qsort(files->names, (size_t)files->count, sizeof *files->names, compare_names);
    }
    globfree(&found);
    return status;
}

Status data_files_expand(const char *pattern, DataFiles *files, Error *err) {
    *files = (DataFiles){0};
    if (strpbrk(pattern, "*?[") != NULL && !file_exists(pattern)) return expand_pattern(pattern, files, err);
    if (file_is_folder(pattern))
        FAIL("%s: want files, got a folder; name them, or all of a kind: %s%s*.jsonl", pattern, pattern,
             pattern[strlen(pattern) - 1] == '/' ? "" : "/");
    files->names = memory_alloc(sizeof *files->names);
    files->names[files->count++] = memory_strdup(pattern);
    return OK;
}

void data_files_free(DataFiles *files) {
    for (int64_t i = 0; i < files->count; i++)
        memory_free(files->names[i]);
    memory_free(files->names);
    *files = (DataFiles){0};
}
