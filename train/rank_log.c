#include "train/rank_log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/log.h"
#include "core/memory.h"

void rank_log_begin(RankLog *log, const Comm *comm, int show_all) {
    memset(log, 0, sizeof *log);
    if (comm == NULL) return;
    log_rank(comm_rank(comm), comm_rank(comm) == 0 || show_all);
    log->early = open_memstream(&log->kept, &log->kept_bytes);
    log_copy_to(log->early);
}

Status rank_log_open(RankLog *log, const Comm *comm, const char *run, Error *err) {
    if (comm == NULL) return OK;
    char *folder = path_join(run, "logs"), *path = memory_format("%s/rank-%d.log", folder, comm_rank(comm));
    Status status = folder_create(folder, err);
    if (status == OK) {
        log->file = fopen(path, "ae");
        if (log->file == NULL) status = error_set(err, ERR_FAILED, "%s: cannot open it for writing: %s", path, strerror(errno));
    }
    if (status == OK) {
        log_copy_to(log->file);
        if (log->early != NULL) {
            (void)fclose(log->early);
            log->early = NULL;
            (void)fwrite(log->kept, 1, log->kept_bytes, log->file);
            (void)fflush(log->file);
        }
    }
    memory_free(folder);
    memory_free(path);
    return status;
}

void rank_log_close(RankLog *log) {
    log_copy_to(NULL);
    if (log->early != NULL) (void)fclose(log->early);
    if (log->file != NULL) (void)fclose(log->file);
    free(log->kept); /* open_memstream's */
    memset(log, 0, sizeof *log);
}
