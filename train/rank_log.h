/* Every rank's log: RUN/logs/rank-R.log. People see rank 0's lines, or all with --log-all.
 *
 * What a rank says before rank 0 has made the run folder is kept in memory and written into the file first. On machines that
 * share no file system each has the logs of its own ranks.
 */
#ifndef NIBBLE_TRAIN_RANK_LOG_H
#define NIBBLE_TRAIN_RANK_LOG_H

#include <stdio.h>

#include "core/error.h"
#include "train/comm.h"

typedef struct RankLog {
    FILE *early, *file;
    char *kept;
    size_t kept_bytes;
} RankLog;

/* One rank: nothing happens, here and below. */
void rank_log_begin(RankLog *log, const Comm *comm, int show_all);
/* The run folder is there. */
Status rank_log_open(RankLog *log, const Comm *comm, const char *run, Error *err);
void rank_log_close(RankLog *log);

#endif
