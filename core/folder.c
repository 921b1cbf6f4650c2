#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/file.h"
#include "core/memory.h"

/* Deeper trees than this are not ours to remove; it also bounds open descriptors and the stack. */
#define DEPTH_MOST 32

int file_exists(const char *path) {
    struct stat info;
    return lstat(path, &info) == 0;
}

int file_is_folder(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

static int is_dots(const char *name) {
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

int folder_is_empty(const char *path) {
    DIR *folder = opendir(path);
    if (folder == NULL) return errno == ENOENT;
    int empty = 1;
    for (struct dirent *entry; empty && (entry = readdir(folder)) != NULL;)
        empty = is_dots(entry->d_name);
    closedir(folder);
    return empty;
}

char *user_cache_path(const char *name) {
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (cache != NULL && cache[0] == '/') return memory_format("%s/nibble/%s", cache, name);
    if (home != NULL && home[0] == '/') return memory_format("%s/.cache/nibble/%s", home, name);
    return NULL;
}

char *path_join(const char *folder, const char *name) {
    size_t length = strlen(folder);
    return memory_format("%s%s%s", folder, length == 0 || folder[length - 1] == '/' ? "" : "/", name);
}

static Status create_one(const char *path, Error *err) {
    if (mkdir(path, 0777) == 0) return OK;
    int code = errno;
    if (file_is_folder(path)) return OK;
    FAIL("%s: cannot create the folder: %s", path, code == EEXIST ? "something else has that name" : strerror(code));
}

Status folder_create(const char *path, Error *err) {
    char *copy = memory_strdup(path);
    Status status = OK;
    for (char *slash = copy[0] == '/' ? copy + 1 : copy; status == OK && (slash = strchr(slash, '/')) != NULL; slash++) {
        *slash = 0;
        if (!file_is_folder(copy)) status = create_one(copy, err); /* existing parents may be read-only */
        *slash = '/';
    }
    if (status == OK) status = create_one(copy, err);
    memory_free(copy);
    return status;
}

/* Takes fd over. Links are removed, never followed. Returns an errno. */
static int empty_folder(int fd, int depth) {
    DIR *folder = depth > DEPTH_MOST ? NULL : fdopendir(fd);
    if (folder == NULL) {
        int code = depth > DEPTH_MOST ? ELOOP : errno;
        close(fd);
        return code;
    }
    int code = 0;
    for (struct dirent *entry; code == 0 && (entry = readdir(folder)) != NULL;) {
        if (is_dots(entry->d_name)) continue;
        if (unlinkat(fd, entry->d_name, 0) == 0) continue;
        code = errno;
        int inner = openat(fd, entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (inner < 0) break; /* no folder: the error of unlinkat stands */
        code = empty_folder(inner, depth + 1);
        if (code == 0 && unlinkat(fd, entry->d_name, AT_REMOVEDIR) != 0) code = errno;
    }
    closedir(folder);
    return code;
}

Status folder_remove(const char *path, Error *err) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT) return OK;
    if (fd < 0) FAIL("%s: cannot open the folder to remove it: %s", path, strerror(errno));
    int code = empty_folder(fd, 0);
    if (code == 0 && rmdir(path) != 0) code = errno;
    if (code != 0) FAIL("%s: cannot remove: %s", path, strerror(code));
    return OK;
}
