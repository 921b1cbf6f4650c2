/* Ranks: what the processes of one run say to each other.
 *
 * One interface; who carries it is decided when the program starts:
 *
 *   one rank   a NULL Comm: every call returns at once
 *   MPI        host memory; libnibble_mpi.so, loaded only when a launcher asks for ranks
 *   NCCL       device memory; in libnibble_cuda.so, which loads NCCL only for GPU ranks
 *
 * Every rank makes the same calls in the same order. Sums are formed in rank order, element by element, on the one rank that
 * owns the element, and handed round: all ranks hold the same bits, on every run.
 *
 *   sum of n numbers on N ranks:   exchange    rank r gets share r from everybody   (N-1)/N of the bytes out
 *                                  add         x0 + x1 + … in rank order
 *                                  gather      share r goes to everybody            (N-1)/N of the bytes out
 *
 * Waiting has an end. A rank that waits, and one that works for long (comm_tick), shows signs of life; a rank of which nothing
 * was heard for the time limit is named, with the step, in the error that its peers return. A rank that fails says so first.
 *
 * Not thread-safe: only the main thread calls. Between comm_reserve and the end nothing is allocated.
 */
#ifndef NIBBLE_TRAIN_COMM_H
#define NIBBLE_TRAIN_COMM_H

#include <stddef.h>
#include <stdint.h>

#include "core/error.h"

typedef struct Comm Comm;

/* Why bytes were sent: counted apart, so that a plan can be checked. */
typedef enum CommPurpose { COMM_CONTROL, COMM_GRADIENTS, COMM_BASE, COMM_TRAINED, COMM_STATE, COMM_PURPOSES } CommPurpose;

/* Where a buffer lies: in the host's memory, or in that of the device that the ranks compute on (the host's too, on the CPU). */
typedef enum CommMemory { COMM_HOST, COMM_DEVICE } CommMemory;

typedef enum CommNumber { COMM_F32, COMM_F64 } CommNumber;

/* ---- beginning and end ----------------------------------------------------------------------------------------------------- */

/* What the environment says about ranks: mpirun, srun, torchrun's variables, or nothing (size 1). */
typedef struct CommLaunch {
    int rank, size, local_rank, local_size; /* local_size 0: unknown */
    const char *by;                         /* "mpirun", "srun", "torchrun", "" */
    int mpi;                                /* an MPI library can take it from here */
} CommLaunch;
Status comm_launch_read(CommLaunch *launch, Error *err);

/* Joins the ranks that the environment names; *out is NULL when there is one, unless NIBBLE_JOIN_ALONE is set (a transport can
 * then be tried on a machine for one). device: "cuda" or "emu", whose ranks talk through
 * NCCL and see one GPU each; anything else, or NULL: MPI. */
Status comm_open(Comm **out, const char *device, Error *err);
/* The opened device (Exec.device) of this rank: sums and gathers wait for what it computes. NULL: none, nothing happens. */
Status comm_attach(Comm *comm, void *device, Error *err);
/* failure NULL: every rank came here, a last barrier is held. Otherwise the others are told why this rank leaves. */
void comm_close(Comm *comm, const char *failure);

int comm_rank(const Comm *comm); /* 0 for NULL */
int comm_size(const Comm *comm); /* 1 for NULL */
/* Number on this machine, and how many there are here. */
int comm_local_rank(const Comm *comm);
int comm_local_size(const Comm *comm);
const char *comm_transport(const Comm *comm); /* "MPI (Open MPI 4.1.4)" */

/* Whether this rank is the one that speaks to people: rank 0, or the lowest that is not lost. */
int comm_speaks(const Comm *comm);

/* Seconds without a sign of life after which a rank is taken for dead. */
void comm_set_timeout(Comm *comm, double seconds);
/* What this process will leave with, for its launcher. */
void comm_set_end(Comm *comm, Status status);
/* Where this rank is, for messages: the step, and a few words without a format ("training"). Borrowed. */
void comm_set_place(Comm *comm, int64_t step, const char *phase);
/* A sign of life from a rank that works for long without calling anything here. Cheap: sends at most every timeout / 8. */
void comm_tick(Comm *comm);

/* ---- collective calls ------------------------------------------------------------------------------------------------------ */

/* values[i] = sum over the ranks, in rank order; overwritten. The same bits on all ranks. */
Status comm_sum(Comm *comm, void *values, int64_t count, CommNumber type, CommPurpose purpose, Error *err);
/* The largest of one integer of every rank. */
Status comm_max(Comm *comm, int64_t *value, Error *err);
/* buffer holds size shares of `share` bytes; rank r's own lies at r * share and is filled in; the others' are overwritten. */
Status comm_gather(Comm *comm, void *buffer, size_t share, CommPurpose purpose, Error *err);
/* send: size shares, one for each rank; receive: everybody's share for this rank, in their order. */
Status comm_exchange(Comm *comm, const void *send, void *receive, size_t total, size_t share, CommPurpose purpose, Error *err);
Status comm_broadcast(Comm *comm, CommMemory memory, void *bytes, size_t count, int root, CommPurpose purpose, Error *err);
Status comm_barrier(Comm *comm, Error *err);
/* Every rank's text (NUL-terminated, cut at capacity - 1); texts: [size][capacity]. */
Status comm_gather_texts(Comm *comm, const char *own, char *texts, size_t capacity, Error *err);
/* Joins results: OK when all ranks say OK; otherwise the failure of the lowest rank that failed, named, on all ranks. *err may
 * hold this rank's own failure. */
Status comm_agree(Comm *comm, Status status, Error *err);
/* A failure that all ranks see alike: one of them tells people. */
void comm_share_failure(Comm *comm);
/* Whether another rank tells people about the last failure. */
int comm_told(const Comm *comm);

/* ---- the same, started now and waited for later ------------------------------------------------------------------------------ */

typedef struct CommWork { /* lives at the caller's; zero before the first start */
    struct CommWork *next;
    int stage; /* 0: idle */
    int request;
    int host;
    CommPurpose purpose;
    void *values, *received;
    size_t bytes, share, size;
    CommNumber type;
} CommWork;

/* The greatest piece that one comm_sum_start takes, in bytes; comm_sum cuts longer ones. */
#define COMM_PIECE ((size_t)32 << 20)
/* Memory for up to `sums` sums under way, of at most `bytes` each. Once, before the first start; comm_sum has its own. */
Status comm_reserve(Comm *comm, int sums, size_t bytes, Error *err);
size_t comm_reserved_bytes(int size, int sums, size_t bytes);

Status comm_sum_start(Comm *comm, CommWork *work, CommMemory memory, void *values, int64_t count, CommNumber type,
                      CommPurpose purpose, Error *err);
/* total bytes in shares of `share` (the last ones shorter or empty); this rank's own is taken from `own`, or, where that is
 * NULL, is in its place already. */
Status comm_gather_start(Comm *comm, CommWork *work, CommMemory memory, const void *own, void *buffer, size_t total,
                         size_t share, CommPurpose purpose, Error *err);
/* Lets what is under way go on, without waiting. */
Status comm_poll(Comm *comm, Error *err);
Status comm_wait(Comm *comm, CommWork *work, Error *err); /* idle: OK */

/* ---- counting ---------------------------------------------------------------------------------------------------------------- */

/* Bytes that this rank has sent, by purpose: what the calls above must move, not what a library adds. */
uint64_t comm_sent(const Comm *comm, CommPurpose purpose);
/* The same for one call, from the numbers alone. */
uint64_t comm_sum_bytes(int rank, int size, int64_t count, CommNumber type);
uint64_t comm_gather_bytes(int rank, int size, size_t total, size_t share);
/* The share of `bytes` that a rank owns in sums and gathers: rounded up to 64. */
size_t comm_share(size_t bytes, int size);

#endif
