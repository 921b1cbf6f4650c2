/* The table that a transport's shared object exports under the name nibble_comm_plugin: libnibble_mpi.so (host memory), and
 * libnibble_cuda.so with NCCL (device memory).
 *
 * A plugin only moves bytes; sums, waiting, time limits and messages are train/comm.c's. It links nothing of nibble's.
 * Lanes are orders of their own: calls on one lane match by their order, calls on different lanes do not wait for each other.
 * host: the memory is the host's also where the transport works in a device's. A start gives a request number; it is done when `test` says so, once, and the number is free again.
 * Functions return 0, or -1 after writing a reason into error [COMM_PLUGIN_ERROR].
 */
#ifndef NIBBLE_CORE_COMM_PLUGIN_H
#define NIBBLE_CORE_COMM_PLUGIN_H

#include <stddef.h>
#include <stdint.h>

#define COMM_PLUGIN_VERSION 1u
#define COMM_PLUGIN_SYMBOL "nibble_comm_plugin"
#define COMM_PLUGIN_ERROR 512
#define COMM_PLUGIN_REQUESTS 64 /* under way at the same time */
#define COMM_LANES 2

/* Of the sources that both sides are made from: a plugin of another build is refused. */
#ifndef NIBBLE_BUILD_ID
#define NIBBLE_BUILD_ID "unknown"
#endif

typedef struct CommPlace {
    int rank, size, local_rank, local_size; /* in: what the environment says; out: what the transport says */
    char transport[96];                     /* out: its name and version, for people */
    char id[128];                           /* in: what make_id gave on rank 0, where has_id */
    int has_id;
} CommPlace;

/* What ranks tell each other beside the collective calls. */
typedef struct CommSign {
    int32_t kind; /* COMM_SIGN_* */
    int32_t rank;
    int64_t step;
    char text[240]; /* the phase; for a rank that leaves, why */
} CommSign;
enum { COMM_SIGN_ALIVE, COMM_SIGN_LEAVES };

typedef struct CommPlugin {
    uint32_t version; /* first, for all times */
    const char *build_id;
    /* What all ranks need to find each other, on rank 0; NULL: open finds them by itself. */
    int (*make_id)(char id[128], char *error);
    int (*open)(void **self, CommPlace *place, char *error);
    void (*close)(void *self, int failed); /* failed: the peers may be gone, wait for nothing */
    /* The device's context (Exec.device) whose work comes before what is started, and after what is done; NULL: there is none. */
    int (*attach)(void *self, void *device, char *error);
    /* total bytes in shares; receive gets this rank's share of everybody, size of them one after another */
    int (*exchange)(void *self, int lane, int host, const void *send, void *receive, size_t total, size_t share, int *request,
                    char *error);
    /* total bytes in shares; this rank's own is taken from `own`, or is in its place already (NULL) */
    int (*gather)(void *self, int lane, int host, const void *own, void *buffer, size_t total, size_t share, int *request,
                  char *error);
    int (*broadcast)(void *self, int lane, int host, void *bytes, size_t count, int root, int *request, char *error);
    /* Sums in place; is_double: 8-byte numbers. NULL: made of exchange and gather. */
    int (*sum)(void *self, int lane, int host, void *values, int64_t count, int is_double, int *request, char *error);
    int (*test)(void *self, int request, int *done, char *error);
    /* To every other rank that took the last one; never waits. NULL: there is no way. */
    void (*send_sign)(void *self, const CommSign *sign);
    /* 1 when one came. */
    int (*receive_sign)(void *self, CommSign *sign);
} CommPlugin;

#endif
