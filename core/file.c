#include "core/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/memory.h"

/* One read or write call moves at most this much: the kernel's own limit is just under 2 GiB. */
#define TRANSFER_MOST ((size_t)64 << 20)

Status file_open(const char *path, int *fd_out, uint64_t *size, Error *err) {
    *fd_out = -1;
    /* not blocking: a named pipe without a writer must be refused below, not waited for */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0) FAIL("%s: cannot open: %s", path, strerror(errno));
    struct stat info;
    if (fstat(fd, &info) != 0) {
        int code = errno;
        close(fd);
        FAIL("%s: cannot stat: %s", path, strerror(code));
    }
    if (!S_ISREG(info.st_mode)) {
        close(fd);
        FAIL("%s: want a regular file, got %s", path, S_ISDIR(info.st_mode) ? "a folder" : "something else");
    }
    *fd_out = fd;
    if (size != NULL) *size = (uint64_t)info.st_size;
    return OK;
}

Status file_read_at(int fd, const char *path, uint64_t offset, void *out, size_t bytes, Error *err) {
    if (offset > INT64_MAX || bytes > (uint64_t)INT64_MAX - offset)
        FAIL("%s: no file has %zu bytes at offset %llu", path, bytes, (unsigned long long)offset);
    char *to = out;
    for (size_t done = 0; done < bytes;) {
        size_t part = bytes - done < TRANSFER_MOST ? bytes - done : TRANSFER_MOST;
        ssize_t n = pread(fd, to + done, part, (off_t)(offset + done));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) FAIL("%s: cannot read at offset %llu: %s", path, (unsigned long long)(offset + done), strerror(errno));
        if (n == 0)
            FAIL("%s: want %zu bytes at offset %llu, the file ends after %zu of them; is it truncated?", path, bytes,
                 (unsigned long long)offset, done);
        done += (size_t)n;
    }
    return OK;
}

Status file_read(const char *path, size_t limit, char **out, size_t *length, Error *err) {
    *out = NULL;
    if (length != NULL) *length = 0;
    int fd;
    uint64_t size;
    TRY(file_open(path, &fd, &size, err));
    if (size > limit || size >= SIZE_MAX) {
        close(fd);
        FAIL("%s: want at most %zu bytes, got %llu", path, limit, (unsigned long long)size);
    }
    char *data = memory_alloc((size_t)size + 1);
    Status status = file_read_at(fd, path, 0, data, (size_t)size, err);
    close(fd);
    if (status != OK) {
        memory_free(data);
        return status;
    }
    data[size] = 0;
    *out = data;
    if (length != NULL) *length = (size_t)size;
    return OK;
}

/* Plain writes until all is out. Returns an errno, 0 for success. */
static int write_all(int fd, const char *from, size_t length) {
    for (size_t done = 0; done < length;) {
        size_t part = length - done < TRANSFER_MOST ? length - done : TRANSFER_MOST;
        ssize_t n = write(fd, from + done, part);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return errno;
        if (n == 0) return ENOSPC; /* POSIX leaves it open; it is never progress */
        done += (size_t)n;
    }
    return 0;
}

/* One counted write. Near its fault it is made in two parts, so that what a death leaves behind is half a record. */
static Status write_counted(int fd, const char *path, const char *bytes, size_t length, Error *err) {
    size_t before = fault_is_near(FAULT_WRITE) ? length / 2 : 0;
    int code = write_all(fd, bytes, before);
    if (fault_point(FAULT_WRITE)) code = ENOSPC;
    if (code == 0) code = write_all(fd, bytes + before, length - before);
    if (code == ENOSPC || code == EDQUOT) FAIL("%s: cannot write: %s; free some space and try again", path, strerror(code));
    if (code != 0) FAIL("%s: cannot write: %s", path, strerror(code));
    return OK;
}

Status file_append(int fd, const char *path, const void *bytes, size_t length, Error *err) {
    return length == 0 ? OK : write_counted(fd, path, bytes, length, err);
}

/* ---- atomic files ---------------------------------------------------------------------------------------------------- */

#define BUFFER_BYTES ((size_t)64 << 10)

struct AtomicFile {
    char *path, *temporary;
    int fd;
    int failed; /* an earlier write did */
    size_t used;
    char buffer[BUFFER_BYTES];
};

static void atomic_free(AtomicFile *file) {
    memory_free(file->temporary);
    memory_free(file->path);
    memory_free(file);
}

Status atomic_open(AtomicFile **file_out, const char *path, Error *err) {
    *file_out = NULL;
    AtomicFile *file = memory_alloc(sizeof *file);
    file->path = memory_strdup(path);
    file->temporary = memory_format("%s.tmp-%ld", path, (long)getpid());
    file->failed = 0;
    file->used = 0;
    (void)unlink(file->temporary); /* left by a dead process that had our number */
    file->fd = open(file->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (file->fd < 0) {
        (void)error_set(err, ERR_FAILED, "%s: cannot create: %s", file->temporary, strerror(errno));
        atomic_free(file);
        return ERR_FAILED;
    }
    *file_out = file;
    return OK;
}

static Status flush(AtomicFile *file, Error *err) {
    if (file->used == 0) return OK;
    size_t used = file->used;
    file->used = 0;
    Status status = write_counted(file->fd, file->temporary, file->buffer, used, err);
    if (status != OK) file->failed = 1;
    return status;
}

Status atomic_write(AtomicFile *file, const void *bytes, size_t length, Error *err) {
    if (length > BUFFER_BYTES - file->used) TRY(flush(file, err));
    if (length > BUFFER_BYTES) {
        Status status = write_counted(file->fd, file->temporary, bytes, length, err);
        if (status != OK) file->failed = 1;
        return status;
    }
    if (length != 0) memcpy(file->buffer + file->used, bytes, length);
    file->used += length;
    return OK;
}

Status atomic_print(AtomicFile *file, Error *err, const char *format, ...) {
    va_list args;
    va_start(args, format);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (n < 0) {
        file->failed = 1;
        FAIL("%s: cannot format a line to write", file->path);
    }
    char *text = memory_alloc((size_t)n + 1);
    va_start(args, format);
    (void)vsnprintf(text, (size_t)n + 1, format, args);
    va_end(args);
    Status status = atomic_write(file, text, (size_t)n, err);
    memory_free(text);
    return status;
}

/* fsync, counted. Some file systems cannot sync a folder and say EINVAL; nothing better exists there. */
static Status sync_counted(int fd, const char *path, int is_folder, Error *err) {
    (void)fault_point(FAULT_FSYNC);
    while (fsync(fd) != 0) {
        if (errno == EINTR) continue;
        if (is_folder && errno == EINVAL) return OK;
        FAIL("%s: cannot sync to disk: %s", path, strerror(errno));
    }
    return OK;
}

static Status sync_folder(const char *path, Error *err) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) FAIL("%s: cannot open the folder to sync it: %s", path, strerror(errno));
    Status status = sync_counted(fd, path, 1, err);
    close(fd);
    return status;
}

/* The folder that holds path, trailing slashes ignored. */
static char *parent_of(const char *path) {
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/')
        length--;
    while (length > 0 && path[length - 1] != '/')
        length--;
    while (length > 1 && path[length - 1] == '/')
        length--;
    return length == 0 ? memory_strdup(".") : memory_format("%.*s", (int)length, path);
}

static Status rename_and_sync(const char *from, const char *to, Error *err) {
    (void)fault_point(FAULT_RENAME);
    if (rename(from, to) != 0) FAIL("%s: cannot rename to %s: %s", from, to, strerror(errno));
    char *folder = parent_of(to);
    Status status = sync_folder(folder, err);
    memory_free(folder);
    return status;
}

Status atomic_commit(AtomicFile *file, Error *err) {
    Status status = flush(file, err);
    if (status == OK && file->failed) status = error_set(err, ERR_FAILED, "%s: an earlier write failed", file->path);
    if (status == OK) status = sync_counted(file->fd, file->temporary, 0, err);
    if (close(file->fd) != 0 && status == OK)
        status = error_set(err, ERR_FAILED, "%s: cannot close: %s", file->temporary, strerror(errno));
    if (status == OK) status = rename_and_sync(file->temporary, file->path, err);
    if (status != OK) (void)unlink(file->temporary);
    atomic_free(file);
    return status;
}

void atomic_abandon(AtomicFile *file) {
    if (file == NULL) return;
    close(file->fd);
    (void)unlink(file->temporary);
    atomic_free(file);
}

Status file_write_atomic(const char *path, const void *bytes, size_t length, Error *err) {
    AtomicFile *file;
    TRY(atomic_open(&file, path, err));
    Status status = atomic_write(file, bytes, length, err);
    if (status == OK) return atomic_commit(file, err);
    atomic_abandon(file);
    return status;
}

Status folder_publish(const char *temporary, const char *path, Error *err) {
    TRY(sync_folder(temporary, err));
    return rename_and_sync(temporary, path, err);
}

/* Where the file system cannot exchange names: for an instant there is nothing at path, and the old folder is at path.old. */
static Status replace_by_moving_aside(const char *temporary, const char *path, Error *err) {
    char *aside = memory_format("%s.old", path);
    Status status = folder_remove(aside, err);
    if (status == OK) status = rename_and_sync(path, aside, err);
    if (status == OK) status = folder_publish(temporary, path, err);
    if (status == OK) status = folder_remove(aside, err);
    memory_free(aside);
    return status;
}

Status folder_replace(const char *temporary, const char *path, Error *err) {
    if (!file_exists(path)) return folder_publish(temporary, path, err);
    if (!file_is_folder(path)) FAIL("%s: want a folder to replace, got something else", path);
    TRY(sync_folder(temporary, err));
    (void)fault_point(FAULT_RENAME);
    if (renameat2(AT_FDCWD, temporary, AT_FDCWD, path, RENAME_EXCHANGE) != 0) {
        if (errno == EINVAL || errno == ENOSYS) return replace_by_moving_aside(temporary, path, err);
        FAIL("%s: cannot take the place of %s: %s", temporary, path, strerror(errno));
    }
    char *parent = parent_of(path);
    Status status = sync_folder(parent, err); /* before the old one's files go: a power cut must not bring its name back */
    memory_free(parent);
    return status == OK ? folder_remove(temporary, err) : status;
}
