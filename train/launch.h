/* Starting the ranks of one machine and watching them: --ranks through MPI's mpirun, --gpus as processes of our own.
 *
 *   nibble train --ranks 4 …  ──  mpirun -n 4  ──  nibble train …   (4 of them)
 *   nibble train --gpus 4 …   ──  nibble train …                    (4 of them, RANK, WORLD_SIZE, LOCAL_RANK, MASTER_* set)
 *
 * A signal to the launcher reaches every rank. When one is gone without a word the others are ended and it is named. When the
 * launcher itself is gone, so are the ranks.
 */
#ifndef NIBBLE_TRAIN_LAUNCH_H
#define NIBBLE_TRAIN_LAUNCH_H

#include "core/error.h"
#include "train/comm.h"

/* words: the command's own, without the option that asked for ranks. Returns what the ranks returned, with an empty *err when
 * they have said why. */
Status launch_mpi(int ranks, int argc, char **argv, Error *err);
Status launch_gpus(int ranks, int argc, char **argv, Error *err);
/* Threads of this rank: what was asked, or, for 0, its part of the machine's processors unless the launcher has given each rank its
 * own. */
int launch_threads(const Comm *comm, int64_t asked);
/* argv without `--NAME N` and `--NAME=N`, NULL-terminated; the array is the caller's (memory_free). */
char **launch_words(int argc, char **argv, const char *name, int *count);

#endif
