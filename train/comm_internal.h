/* What the parts of the ranks share.
 *
 *   comm_launch.c   what the environment says
 *   comm_open.c     finding and loading a transport, beginning and end
 *   comm.c          collective calls, counting
 *   comm_wait.c     progress, time limits, signs of life
 */
#ifndef NIBBLE_TRAIN_COMM_INTERNAL_H
#define NIBBLE_TRAIN_COMM_INTERNAL_H

#include "train/comm.h"
#include "core/comm_plugin.h"
#include "train/rank_board.h"

#define COMM_OWN_PIECE ((size_t)1 << 20) /* of comm_sum */

enum { WORK_IDLE, WORK_EXCHANGE, WORK_LAST }; /* CommWork.stage; LAST: done when its request is */

typedef struct Comm {
    void *library, *self;
    struct Comm *bootstrap; /* MPI, where it started GPU ranks: they find each other, and hear of each other, through it */
    const CommPlugin *plugin;
    CommPlace place;
    double timeout;
    int64_t step;
    const char *phase;
    RankNote *board; /* of all ranks, on the launcher's board, or NULL */
    RankNote *note;  /* on the launcher's board, or NULL */
    /* signs of life */
    double *heard; /* [size] clock of the last one */
    char *lost;    /* [size] */
    double last_sign, signal_seen;
    int told;   /* another rank tells people why */
    int broken; /* a call failed for good: the ranks are no longer together */
    CommSign leaving;
    /* work under way, in the order of its start */
    CommWork *first;
    uint8_t *staging, *own; /* own: comm_sum's */
    char *slot_used;
    int slots;
    size_t slot_bytes;
    uint64_t sent[COMM_PURPOSES];
} Comm;

Status comm_load(Comm *comm, const char *name, Error *err);

#endif
