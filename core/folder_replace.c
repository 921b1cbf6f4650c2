#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "core/file.h"
#include "core/memory.h"

Status folder_replace(const char *temporary, const char *path, Error *err) {
    if (!file_exists(path)) return folder_publish(temporary, path, err);
    (void)fault_point(FAULT_RENAME);
#ifdef RENAME_EXCHANGE
    if (renameat2(AT_FDCWD, temporary, AT_FDCWD, path, RENAME_EXCHANGE) == 0) return folder_remove(temporary, err);
    if (errno != EINVAL && errno != ENOSYS) FAIL("%s: cannot take the place of %s: %s", temporary, path, strerror(errno));
#endif
    char *aside = memory_format("%s.old", path);
    Status status = folder_remove(aside, err);
    if (status == OK && rename(path, aside) != 0)
        status = error_set(err, ERR_FAILED, "%s: cannot be moved aside: %s", path, strerror(errno));
    if (status == OK) status = folder_publish(temporary, path, err);
    if (status == OK) status = folder_remove(aside, err);
    memory_free(aside);
    return status;
}
