/* Files: bounded reading, and writing that is never seen half done.
 *
 * An AtomicFile is written beside its place as "<path>.tmp-<pid>", synced,
 * renamed, and its folder synced. A folder is published the same way with
 * folder_publish. Every write, fsync and rename is counted through fault_point,
 * so that a test can kill the process, or fill the disk, at the n-th of them:
 *
 *   NIBBLE_FAULT=kill@KIND:N          KIND: write, fsync, rename, step; SIGKILL at the N-th (from 1), a write half done
 *   NIBBLE_FAULT=enospc@write:N       the N-th write and all after it find the disk full, the N-th after half its bytes
 *
 * Any other value aborts the process: a test whose fault is misspelt must not pass.
 */
#ifndef NIBBLE_CORE_FILE_H
#define NIBBLE_CORE_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "core/error.h"

typedef struct AtomicFile AtomicFile;

/* The whole file, with a zero byte after it, in *out (memory_free); refuses more than `limit` bytes. */
Status file_read(const char *path, size_t limit, char **out, size_t *length, Error *err);
/* Exactly `bytes` at `offset`; retried on EINTR; a short file is an error. */
Status file_read_at(int fd, const char *path, uint64_t offset, void *out, size_t bytes, Error *err);
/* Regular files only, for reading; the caller closes. size may be NULL. */
Status file_open(const char *path, int *fd, uint64_t *size, Error *err);

/* A failed write makes the commit fail too. Two threads must not write one path at once. */
Status atomic_open(AtomicFile **file, const char *path, Error *err);
Status atomic_write(AtomicFile *file, const void *bytes, size_t length, Error *err);
Status atomic_print(AtomicFile *file, Error *err, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* Sync, rename over path, sync the folder; frees the file whether or not it succeeds. */
Status atomic_commit(AtomicFile *file, Error *err);
void atomic_abandon(AtomicFile *file); /* removes the temporary; NULL is fine */
/* All of it in one call. */
Status file_write_atomic(const char *path, const void *bytes, size_t length, Error *err);

int file_exists(const char *path); /* anything there */
int file_is_folder(const char *path);
int folder_is_empty(const char *path);              /* also true when nothing is there */
Status folder_create(const char *path, Error *err); /* with parents; fine when it exists */
Status folder_remove(const char *path, Error *err); /* with what is in it; fine when absent */
/* Syncs `temporary` (files in it are already synced), renames it to `path` (which must not exist or be empty), syncs the
 * parent. */
Status folder_publish(const char *temporary, const char *path, Error *err);
/* As folder_publish, but takes the place of whatever folder is at `path`, in one step where the file system can exchange names
 * (else the old one is moved aside first); the old one is then removed. */
Status folder_replace(const char *temporary, const char *path, Error *err);
/* Appends one whole record to a log that is flushed as it goes. */
Status file_append(int fd, const char *path, const void *bytes, size_t length, Error *err);
char *path_join(const char *folder, const char *name); /* memory_free */
/* $XDG_CACHE_HOME/nibble/NAME, or ~/.cache/nibble/NAME (memory_free); NULL where neither variable is an absolute path. */
char *user_cache_path(const char *name);

typedef enum FaultKind { FAULT_WRITE, FAULT_FSYNC, FAULT_RENAME, FAULT_STEP, FAULT_KINDS } FaultKind;
/* Counts; kills the process with SIGKILL at the chosen instant; returns 1 when a full disk is to be played. Thread-safe. */
int fault_point(FaultKind kind);
/* Whether the next point of this kind is the chosen instant or after it: a write is then made in two parts. */
int fault_is_near(FaultKind kind);
/* How many points of a kind were passed so far. */
uint64_t fault_count(FaultKind kind);

#endif
