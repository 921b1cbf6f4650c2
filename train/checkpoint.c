/* The folders: RUN/checkpoints/step-N, and what interrupted saves leave beside them (step-N.tmp-PID, step-N.old). */
#include "train/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/file.h"
#include "core/memory.h"
#include "train/checkpoint_internal.h"

/* ---- names ------------------------------------------------------------------------------------------------------------------ */

/* N of "step-N", written as we write it, and what follows it in the name; -1 when the name is none of ours. */
static int64_t step_of(const char *name, const char **rest) {
    static const char stem[] = "step-";
    if (strncmp(name, stem, sizeof stem - 1) != 0) return -1;
    const char *digits = name + sizeof stem - 1, *at = digits;
    int64_t step = 0;
    for (; *at >= '0' && *at <= '9'; at++)
        if (__builtin_mul_overflow(step, 10, &step) || __builtin_add_overflow(step, *at - '0', &step)) return -1;
    if (at == digits || (digits[0] == '0' && at > digits + 1)) return -1;
    *rest = at;
    return step;
}

typedef struct StepList {
    int64_t *steps; /* newest first */
    size_t count, capacity;
} StepList;

static int newest_first(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x < y) - (x > y);
}

static char *step_folder(const char *checkpoints, int64_t step) {
    return memory_format("%s/step-%lld", checkpoints, (long long)step);
}

/* No folder yet is an empty list. */
static Status list_steps(const char *checkpoints, StepList *list, Error *err) {
    memset(list, 0, sizeof *list);
    DIR *folder = opendir(checkpoints);
    if (folder == NULL && errno == ENOENT) return OK;
    if (folder == NULL) FAIL("%s: cannot read the folder: %s", checkpoints, strerror(errno));
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        const char *rest;
        int64_t step = step_of(entry->d_name, &rest);
        if (step < 0 || *rest != 0) continue;
        if (list->count == list->capacity) {
            list->capacity = list->capacity ? 2 * list->capacity : 16;
            list->steps = memory_resize(list->steps, list->capacity * sizeof *list->steps);
        }
        list->steps[list->count++] = step;
    }
    closedir(folder);
    if (list->count > 1) qsort(list->steps, list->count, sizeof *list->steps, newest_first);
    return OK;
}

/* What a save that died left: half-written folders go. An old folder that was moved aside comes back when nothing took its
 * place. */
static Status clean_leftovers(const char *checkpoints, Error *err) {
    DIR *folder = opendir(checkpoints);
    if (folder == NULL && errno == ENOENT) return OK;
    if (folder == NULL) FAIL("%s: cannot read the folder: %s", checkpoints, strerror(errno));
    Status status = OK;
    for (struct dirent *entry; status == OK && (entry = readdir(folder)) != NULL;) {
        const char *rest;
        int64_t step = step_of(entry->d_name, &rest);
        if (step < 0) continue;
        int is_old = strcmp(rest, ".old") == 0;
        if (!is_old && strncmp(rest, ".tmp-", 5) != 0) continue;
        char *path = path_join(checkpoints, entry->d_name), *place = step_folder(checkpoints, step);
        if (is_old && !file_exists(place))
            status = folder_publish(path, place, err);
        else
            status = folder_remove(path, err);
        memory_free(place);
        memory_free(path);
    }
    closedir(folder);
    return status;
}

/* ---- saving ----------------------------------------------------------------------------------------------------------------- */

static Status write_files(const char *folder, const CheckpointState *state, const ParamState *params, Error *err) {
    CheckpointFile file;
    TRY(folder_create(folder, err));
    TRY(checkpoint_params_write(folder, params, state->elements, &file, err));
    Text text = {0};
    checkpoint_state_print(state, &file, &text);
    char *path = path_join(folder, CHECKPOINT_STATE_NAME);
    Status status = file_write_atomic(path, text.data, text.length, err);
    memory_free(path);
    text_free(&text);
    return status;
}

/* A checkpoint beyond the step that was just saved was passed over when the run resumed: it is damaged, and must not count as
 * the newest when old ones are removed. */
static Status remove_newer(const char *checkpoints, int64_t step, Error *err) {
    StepList list;
    Status status = list_steps(checkpoints, &list, err);
    for (size_t i = 0; status == OK && i < list.count && list.steps[i] > step; i++) {
        char *folder = step_folder(checkpoints, list.steps[i]);
        status = folder_remove(folder, err);
        memory_free(folder);
    }
    memory_free(list.steps);
    return status;
}

/* RUN/checkpoints, its name synced too: without it a power cut takes the first checkpoint away whole. */
static Status create_checkpoints(const char *checkpoints, Error *err) {
    if (file_is_folder(checkpoints)) return OK;
    char *temporary = memory_format("%s.tmp", checkpoints);
    Status status = folder_create(temporary, err);
    if (status == OK) status = folder_publish(temporary, checkpoints, err);
    memory_free(temporary);
    return status;
}

Status checkpoint_save(const char *run, const CheckpointState *state, const ParamState *params, Error *err) {
    char *checkpoints = path_join(run, "checkpoints"), *place = step_folder(checkpoints, state->step);
    char *temporary = memory_format("%s.tmp-%ld", place, (long)getpid());
    Status status = create_checkpoints(checkpoints, err);
    if (status == OK) status = folder_remove(temporary, err);
    if (status == OK) status = write_files(temporary, state, params, err);
    if (status == OK) status = folder_replace(temporary, place, err);
    if (status != OK) {
        (void)folder_remove(temporary, NULL); /* what is left of it is room on a disk that may be full */
        error_prefix(err, "cannot save the checkpoint of step %lld; older ones are untouched", (long long)state->step);
    } else {
        status = remove_newer(checkpoints, state->step, err);
    }
    memory_free(temporary);
    memory_free(place);
    memory_free(checkpoints);
    return status;
}

Status checkpoint_prune(const char *run, int64_t keep, int64_t also, Error *err) {
    char *checkpoints = path_join(run, "checkpoints");
    StepList list;
    Status status = list_steps(checkpoints, &list, err);
    size_t first = keep < 1 ? 1 : (size_t)keep;
    for (size_t i = first; status == OK && i < list.count; i++) {
        if (list.steps[i] == also) continue;
        char *folder = step_folder(checkpoints, list.steps[i]);
        status = folder_remove(folder, err);
        memory_free(folder);
    }
    memory_free(list.steps);
    memory_free(checkpoints);
    return status;
}

/* ---- loading ---------------------------------------------------------------------------------------------------------------- */

/* Everything but keeping the numbers. Messages start with the file's name. */
static Status verify(const char *folder, CheckpointState *state, CheckpointFile *file, Error *err) {
    TRY(checkpoint_state_read(folder, state, file, err));
    return checkpoint_params_read(folder, file, state->elements, NULL, err);
}

static Status try_step(const char *folder, int64_t step, CheckpointState *state, CheckpointFile *file, Error *err) {
    if (!file_is_folder(folder)) FAIL("not a folder");
    TRY(verify(folder, state, file, err));
    if (state->step != step)
        FAIL("%s: it is of step %lld; was the folder renamed?", CHECKPOINT_STATE_NAME, (long long)state->step);
    return OK;
}

/* A whole checkpoint of another shape is no damage to step over: it belongs to a run with other parameters. */
static Status take(const char *folder, int64_t elements, const CheckpointState *state, const CheckpointFile *file,
                   ParamState *params, Error *err) {
    if (state->elements != elements)
        FAIL("%s: want %lld trained numbers, got %lld; it belongs to another model or config", folder, (long long)elements,
             (long long)state->elements);
    Status status = checkpoint_params_read(folder, file, elements, params, err);
    if (status != OK) error_prefix(err, "%s changed while it was read", folder);
    return status;
}

Status checkpoint_load(const char *run, int64_t elements, CheckpointState *state, ParamState *params, int *found, Text *skipped,
                       Error *err) {
    *found = 0;
    char *checkpoints = path_join(run, "checkpoints");
    StepList list = {0};
    Status status = clean_leftovers(checkpoints, err);
    if (status == OK) status = list_steps(checkpoints, &list, err);
    for (size_t i = 0; status == OK && !*found && i < list.count; i++) {
        char *folder = step_folder(checkpoints, list.steps[i]);
        CheckpointState candidate;
        CheckpointFile file;
        Error reason = {0};
        if (try_step(folder, list.steps[i], &candidate, &file, &reason) != OK) {
            text_addf(skipped, "step-%lld: %s\n", (long long)list.steps[i], reason.text);
        } else {
            status = take(folder, elements, &candidate, &file, params, err);
            if (status == OK) {
                *state = candidate;
                *found = 1;
            }
        }
        memory_free(folder);
    }
    memory_free(list.steps);
    memory_free(checkpoints);
    return status;
}

Status checkpoint_peek(const char *run, CheckpointState *state, int *found, Error *err) {
    char *checkpoints = path_join(run, "checkpoints");
    StepList list;
    *found = 0;
    Status status = list_steps(checkpoints, &list, err);
    for (size_t i = 0; status == OK && !*found && i < list.count; i++) {
        char *folder = step_folder(checkpoints, list.steps[i]);
        CheckpointFile file;
        *found = checkpoint_state_read(folder, state, &file, NULL) == OK;
        memory_free(folder);
    }
    memory_free(list.steps);
    memory_free(checkpoints);
    return status;
}

Status checkpoint_inspect(const char *folder, CheckpointState *state, Error *err) {
    CheckpointFile file;
    Status status = verify(folder, state, &file, err);
    if (status != OK) error_prefix(err, "%s", folder);
    return status;
}
