/* libnibble_mpi.so: the transport of CPU ranks. Only non-blocking calls after the start, so that waiting stays the caller's. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/comm_plugin.h"

#define UNIT 64 /* counts in MPI are ints: in units of 64 bytes they reach 128 GiB */

typedef struct Peer { /* signs to and from one other rank */
    CommSign out, in;
    MPI_Request sending, receiving;
} Peer;

typedef struct Mpi {
    int rank, size;
    MPI_Comm lane[COMM_LANES], signs;
    MPI_Datatype unit;
    MPI_Request request[COMM_PLUGIN_REQUESTS];
    int used[COMM_PLUGIN_REQUESTS];
    int *counts[COMM_PLUGIN_REQUESTS]; /* [4 * size] of each: MPI reads them until the request is done */
    Peer *peers;                       /* [size] */
} Mpi;

static int refuse(int code, const char *what, char *error) {
    char text[MPI_MAX_ERROR_STRING];
    int length = 0;
    if (MPI_Error_string(code, text, &length) != MPI_SUCCESS) length = 0;
    (void)snprintf(error, COMM_PLUGIN_ERROR, "%s: %.*s", what, length, text);
    return -1;
}

static int say(char *error, const char *text) {
    (void)snprintf(error, COMM_PLUGIN_ERROR, "%s", text);
    return -1;
}

static void mpi_close(void *self, int failed);

static int count_local(CommPlace *place, char *error) {
    MPI_Comm local;
    int code = MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &local);
    if (code != MPI_SUCCESS) return refuse(code, "MPI_Comm_split_type", error);
    MPI_Comm_rank(local, &place->local_rank);
    MPI_Comm_size(local, &place->local_size);
    MPI_Comm_free(&local);
    return 0;
}

static void name_library(CommPlace *place) {
    char text[MPI_MAX_LIBRARY_VERSION_STRING];
    int length = 0;
    if (MPI_Get_library_version(text, &length) != MPI_SUCCESS || length == 0) (void)snprintf(text, sizeof text, "MPI");
    text[strcspn(text, ",\n")] = 0;
    (void)snprintf(place->transport, sizeof place->transport, "MPI (%.80s)", text);
}

static int open_lanes(Mpi *mpi, char *error) {
    int code = MPI_Type_contiguous(UNIT, MPI_BYTE, &mpi->unit);
    if (code == MPI_SUCCESS) code = MPI_Type_commit(&mpi->unit);
    for (int i = 0; i < COMM_LANES && code == MPI_SUCCESS; i++)
        code = MPI_Comm_dup(MPI_COMM_WORLD, &mpi->lane[i]);
    if (code == MPI_SUCCESS) code = MPI_Comm_dup(MPI_COMM_WORLD, &mpi->signs);
    if (code != MPI_SUCCESS) return refuse(code, "MPI_Comm_dup", error);
    for (int i = 0; i < COMM_LANES; i++)
        MPI_Comm_set_errhandler(mpi->lane[i], MPI_ERRORS_RETURN);
    MPI_Comm_set_errhandler(mpi->signs, MPI_ERRORS_RETURN);
    return 0;
}

static int listen_to(Mpi *mpi, int peer) {
    return MPI_Irecv(&mpi->peers[peer].in, (int)sizeof(CommSign), MPI_BYTE, peer, 0, mpi->signs, &mpi->peers[peer].receiving);
}

static int open_signs(Mpi *mpi, char *error) {
    for (int p = 0; p < mpi->size; p++) {
        mpi->peers[p].sending = mpi->peers[p].receiving = MPI_REQUEST_NULL;
        if (p == mpi->rank) continue;
        int code = listen_to(mpi, p);
        if (code != MPI_SUCCESS) return refuse(code, "MPI_Irecv", error);
    }
    return 0;
}

static int mpi_open(void **self, CommPlace *place, char *error) {
    int provided, code = MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided);
    if (code != MPI_SUCCESS) return refuse(code, "MPI_Init_thread", error);
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &place->rank);
    MPI_Comm_size(MPI_COMM_WORLD, &place->size);
    name_library(place);
    Mpi *mpi = calloc(1, sizeof *mpi);
    if (mpi == NULL) return say(error, "out of memory");
    *self = mpi;
    mpi->rank = place->rank;
    mpi->size = place->size;
    mpi->peers = calloc((size_t)place->size, sizeof *mpi->peers);
    if (mpi->peers == NULL) return say(error, "out of memory");
    for (int i = 0; i < COMM_PLUGIN_REQUESTS; i++) {
        mpi->counts[i] = calloc(4 * (size_t)place->size, sizeof(int));
        if (mpi->counts[i] == NULL) return say(error, "out of memory");
    }
    if (count_local(place, error) != 0 || open_lanes(mpi, error) != 0) return -1;
    return open_signs(mpi, error);
}

static void mpi_close(void *self, int failed) {
    Mpi *mpi = self;
    if (!failed) {
        for (int p = 0; p < mpi->size; p++)
            if (mpi->peers[p].receiving != MPI_REQUEST_NULL) {
                MPI_Cancel(&mpi->peers[p].receiving);
                MPI_Request_free(&mpi->peers[p].receiving);
            }
        MPI_Finalize();
    }
    for (int i = 0; i < COMM_PLUGIN_REQUESTS; i++)
        free(mpi->counts[i]);
    if (failed) return; /* the library may still look at the peers' buffers until the process ends */
    free(mpi->peers);
    free(mpi);
}

static int take(Mpi *mpi, char *error) {
    for (int i = 0; i < COMM_PLUGIN_REQUESTS; i++)
        if (!mpi->used[i]) return i;
    (void)say(error, "internal error: too many requests under way");
    return -1;
}

/* Counts and displacements of shares, in the unit that fits; NULL type when none does. */
static MPI_Datatype shares(const Mpi *mpi, size_t total, size_t share, int *counts, int *places) {
    size_t unit = total % UNIT == 0 && share % UNIT == 0 ? UNIT : 1;
    if (share * (size_t)mpi->size / unit > INT32_MAX) return MPI_DATATYPE_NULL;
    for (int r = 0; r < mpi->size; r++) {
        size_t begin = (size_t)r * share < total ? (size_t)r * share : total;
        size_t end = begin + share < total ? begin + share : total;
        counts[r] = (int)((end - begin) / unit);
        places[r] = (int)(begin / unit);
    }
    return unit == UNIT ? mpi->unit : MPI_BYTE;
}

static int started(Mpi *mpi, int slot, int code, const char *what, int *request, char *error) {
    if (code != MPI_SUCCESS) return refuse(code, what, error);
    mpi->used[slot] = 1;
    *request = slot;
    return 0;
}

static int mpi_exchange(void *self, int lane, int host, const void *send, void *receive, size_t total, size_t share,
                        int *request, char *error) {
    (void)host;
    Mpi *mpi = self;
    int slot = take(mpi, error);
    if (slot < 0) return -1;
    int *counts = mpi->counts[slot], *places = counts + mpi->size, *got = places + mpi->size, *at = got + mpi->size;
    MPI_Datatype type = shares(mpi, total, share, counts, places);
    if (type == MPI_DATATYPE_NULL) return say(error, "internal error: a message is too long for MPI's counts");
    for (int r = 0; r < mpi->size; r++) {
        got[r] = counts[mpi->rank];
        at[r] = r * counts[mpi->rank];
    }
    int code = MPI_Ialltoallv(send, counts, places, type, receive, got, at, type, mpi->lane[lane], &mpi->request[slot]);
    return started(mpi, slot, code, "MPI_Ialltoallv", request, error);
}

static int mpi_gather(void *self, int lane, int host, const void *own, void *buffer, size_t total, size_t share, int *request,
                      char *error) {
    (void)host;
    Mpi *mpi = self;
    int slot = take(mpi, error);
    if (slot < 0) return -1;
    int *counts = mpi->counts[slot], *places = counts + mpi->size;
    MPI_Datatype type = shares(mpi, total, share, counts, places);
    if (type == MPI_DATATYPE_NULL) return say(error, "internal error: a message is too long for MPI's counts");
    int code = MPI_Iallgatherv(own == NULL ? MPI_IN_PLACE : own, own == NULL ? 0 : counts[mpi->rank], type, buffer, counts,
                               places, type, mpi->lane[lane], &mpi->request[slot]);
    return started(mpi, slot, code, "MPI_Iallgatherv", request, error);
}

static int mpi_broadcast(void *self, int lane, int host, void *bytes, size_t count, int root, int *request, char *error) {
    (void)host;
    Mpi *mpi = self;
    int slot = take(mpi, error);
    if (slot < 0) return -1;
    if (count > INT32_MAX) return say(error, "internal error: a message is too long for MPI's counts");
    int code = MPI_Ibcast(bytes, (int)count, MPI_BYTE, root, mpi->lane[lane], &mpi->request[slot]);
    return started(mpi, slot, code, "MPI_Ibcast", request, error);
}

static int mpi_test(void *self, int request, int *done, char *error) {
    Mpi *mpi = self;
    int code = MPI_Test(&mpi->request[request], done, MPI_STATUS_IGNORE);
    if (code != MPI_SUCCESS) return refuse(code, "a collective call", error);
    if (*done) mpi->used[request] = 0;
    return 0;
}

static void mpi_send_sign(void *self, const CommSign *sign) {
    Mpi *mpi = self;
    for (int p = 0; p < mpi->size; p++) {
        int done = 1;
        Peer *peer = &mpi->peers[p];
        if (p == mpi->rank || MPI_Test(&peer->sending, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS || !done) continue;
        peer->out = *sign;
        if (MPI_Isend(&peer->out, (int)sizeof peer->out, MPI_BYTE, p, 0, mpi->signs, &peer->sending) != MPI_SUCCESS)
            peer->sending = MPI_REQUEST_NULL;
    }
}

static int mpi_receive_sign(void *self, CommSign *sign) {
    Mpi *mpi = self;
    for (int p = 0; p < mpi->size; p++) {
        int done = 0;
        Peer *peer = &mpi->peers[p];
        if (peer->receiving == MPI_REQUEST_NULL) continue;
        if (MPI_Test(&peer->receiving, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS || !done) continue;
        *sign = peer->in;
        sign->text[sizeof sign->text - 1] = 0;
        sign->rank = p;
        if (listen_to(mpi, p) != MPI_SUCCESS) peer->receiving = MPI_REQUEST_NULL;
        return 1;
    }
    return 0;
}

extern const CommPlugin nibble_comm_plugin;
const CommPlugin nibble_comm_plugin = {.version = COMM_PLUGIN_VERSION,
                                       .build_id = NIBBLE_BUILD_ID,
                                       .open = mpi_open,
                                       .close = mpi_close,
                                       .exchange = mpi_exchange,
                                       .gather = mpi_gather,
                                       .broadcast = mpi_broadcast,
                                       .test = mpi_test,
                                       .send_sign = mpi_send_sign,
                                       .receive_sign = mpi_receive_sign};
