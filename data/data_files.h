/* From what data.path says to the names of files: a path, or a pattern as the shell knows it (*, ?, [a-z]). */
#ifndef NIBBLE_DATA_DATA_FILES_H
#define NIBBLE_DATA_DATA_FILES_H

#include <stdint.h>

#include "core/error.h"

#define DATA_FILES_MAX 10000

/* Overwritten by data_files_expand; sorted by bytes, whatever the locale and the file system's order. */
typedef struct DataFiles {
    char **names;
    int64_t count;
} DataFiles;

/* A path that exists is itself, even where its name has a pattern's characters; a path without them is itself also when
 * nothing is there (opening it says so). Fails when a pattern matches nothing, or more than DATA_FILES_MAX files. */
Status data_files_expand(const char *pattern, DataFiles *files, Error *err);
void data_files_free(DataFiles *files);

#endif
