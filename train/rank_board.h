/* A small shared file in which the processes that one launcher started on this machine note where they are, so that the launcher
 * can say of a rank that is gone without a word who it was and how far it had come. Written with plain stores: what a process
 * that is killed has noted stays.
 */
#ifndef NIBBLE_TRAIN_RANK_BOARD_H
#define NIBBLE_TRAIN_RANK_BOARD_H

#include <signal.h>
#include <stdint.h>

#include "core/error.h"

#define RANK_BOARD_VARIABLE "NIBBLE_RANK_BOARD" /* its path, for the ranks */

typedef enum RankState { RANK_ABSENT, RANK_RUNS, RANK_ENDED } RankState;

typedef struct RankNote {
    int32_t state; /* RankState */
    int32_t pid, status;
    volatile sig_atomic_t signal; /* that it was sent, by the launcher or by MPI's */
    double beat;                  /* clock_seconds of its last sign of life */
    int64_t step;
    char phase[40];
} RankNote;

typedef struct RankBoard {
    RankNote *notes;
    int size;
    char path[64]; /* empty: somebody else's */
} RankBoard;

/* The launcher's, with room for `size` ranks; sets the variable. */
Status rank_board_create(RankBoard *board, int size, Error *err);
void rank_board_remove(RankBoard *board);

/* The notes of all ranks on the board that the variable names; NULL when there is none. They live as long as the process. */
RankNote *rank_board_notes(int size);

#endif
