/* Collective calls, made of what a transport gives. */
#include "train/comm.h"

#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "train/comm_internal.h"

size_t comm_share(size_t bytes, int size) {
    size_t n = (size_t)size;
    return arena_align((bytes + n - 1) / n);
}

/* Bytes of a rank's own share. */
static size_t own_share(int rank, size_t total, size_t share) {
    size_t begin = (size_t)rank * share;
    if (begin >= total) return 0;
    return total - begin < share ? total - begin : share;
}

uint64_t comm_gather_bytes(int rank, int size, size_t total, size_t share) {
    return (uint64_t)own_share(rank, total, share) * (uint64_t)(size - 1);
}

static size_t width(CommNumber type) {
    return type == COMM_F64 ? sizeof(double) : sizeof(float);
}

uint64_t comm_sum_bytes(int rank, int size, int64_t count, CommNumber type) {
    if (size == 1) return 0;
    size_t total = (size_t)count * width(type), share = comm_share(total, size);
    return (uint64_t)(total - own_share(rank, total, share)) + comm_gather_bytes(rank, size, total, share);
}

/* ---- starts -------------------------------------------------------------------------------------------------------------------- */

static Status transport_failed(Comm *comm, const char *error, Error *err) {
    comm->broken = 1;
    FAIL("%s: %s", comm->place.transport, error);
}

static Status begin(Comm *comm, CommWork *work, CommPurpose purpose, Error *err) {
    if (comm->broken) FAIL("the ranks are no longer together");
    if (work->stage != WORK_IDLE) FAIL("internal error: work is started again before it was waited for");
    *work = (CommWork){.purpose = purpose, .request = -1};
    return OK;
}

static void append(Comm *comm, CommWork *work, int stage) {
    CommWork **link = &comm->first;
    while (*link != NULL)
        link = &(*link)->next;
    work->next = NULL;
    work->stage = stage;
    *link = work;
}

static Status start_sum(Comm *comm, CommWork *work, Error *err) {
    char error[COMM_PLUGIN_ERROR];
    const CommPlugin *plugin = comm->plugin;
    int is_double = work->type == COMM_F64;
    int64_t count = (int64_t)(work->bytes / width(work->type));
    comm->sent[work->purpose] += comm_sum_bytes(comm->place.rank, comm->place.size, count, work->type);
    if (plugin->sum != NULL) {
        if (plugin->sum(comm->self, 0, work->host, work->values, count, is_double, &work->request, error) != 0)
            return transport_failed(comm, error, err);
        append(comm, work, WORK_LAST);
        return OK;
    }
    if (plugin->exchange(comm->self, 0, work->host, work->values, work->received, work->bytes, work->share, &work->request,
                         error) != 0)
        return transport_failed(comm, error, err);
    append(comm, work, WORK_EXCHANGE);
    return OK;
}

static Status prepare_sum(Comm *comm, CommWork *work, void *values, int64_t count, CommNumber type, CommPurpose purpose,
                          Error *err) {
    TRY(begin(comm, work, purpose, err));
    work->values = values;
    work->type = type;
    work->bytes = (size_t)count * width(type);
    work->share = comm_share(work->bytes, comm->place.size);
    return OK;
}

Status comm_sum_start(Comm *comm, CommWork *work, CommMemory memory, void *values, int64_t count, CommNumber type,
                      CommPurpose purpose, Error *err) {
    if (comm == NULL || count == 0) return OK;
    TRY(prepare_sum(comm, work, values, count, type, purpose, err));
    work->host = memory == COMM_HOST;
    if (comm->plugin->sum == NULL) {
        int slot = 0;
        while (slot < comm->slots && comm->slot_used[slot])
            slot++;
        if (slot == comm->slots || work->share * (size_t)comm->place.size > comm->slot_bytes)
            FAIL("internal error: no memory is reserved for a sum of %zu bytes", work->bytes);
        comm->slot_used[slot] = 1;
        work->received = comm->staging + (size_t)slot * comm->slot_bytes;
    }
    return start_sum(comm, work, err);
}

Status comm_gather_start(Comm *comm, CommWork *work, CommMemory memory, const void *own, void *buffer, size_t total,
                         size_t share, CommPurpose purpose, Error *err) {
    char error[COMM_PLUGIN_ERROR];
    if (comm == NULL || total == 0) return OK;
    TRY(begin(comm, work, purpose, err));
    work->values = buffer;
    work->bytes = total;
    work->share = share;
    comm->sent[purpose] += comm_gather_bytes(comm->place.rank, comm->place.size, total, share);
    if (comm->plugin->gather(comm->self, 0, memory == COMM_HOST, own, buffer, total, share, &work->request, error) != 0)
        return transport_failed(comm, error, err);
    append(comm, work, WORK_LAST);
    return OK;
}

/* ---- calls that wait -------------------------------------------------------------------------------------------------------------- */

Status comm_sum(Comm *comm, void *values, int64_t count, CommNumber type, CommPurpose purpose, Error *err) {
    if (comm == NULL) return OK;
    int64_t most = (int64_t)(COMM_OWN_PIECE / width(type));
    for (int64_t first = 0; first < count; first += most) {
        CommWork work = {0};
        int64_t some = count - first < most ? count - first : most;
        TRY(prepare_sum(comm, &work, (uint8_t *)values + (size_t)first * width(type), some, type, purpose, err));
        work.received = comm->own;
        work.host = 1;
        TRY(start_sum(comm, &work, err));
        TRY(comm_wait(comm, &work, err));
    }
    return OK;
}

Status comm_gather(Comm *comm, void *buffer, size_t share, CommPurpose purpose, Error *err) {
    if (comm == NULL) return OK;
    CommWork work = {0};
    TRY(comm_gather_start(comm, &work, COMM_HOST, NULL, buffer, share * (size_t)comm->place.size, share, purpose, err));
    return comm_wait(comm, &work, err);
}

Status comm_exchange(Comm *comm, const void *send, void *receive, size_t total, size_t share, CommPurpose purpose, Error *err) {
    char error[COMM_PLUGIN_ERROR];
    CommWork work = {0};
    if (comm == NULL) return OK;
    TRY(begin(comm, &work, purpose, err));
    comm->sent[purpose] += total - own_share(comm->place.rank, total, share);
    if (comm->plugin->exchange(comm->self, 0, 1, send, receive, total, share, &work.request, error) != 0)
        return transport_failed(comm, error, err);
    append(comm, &work, WORK_LAST);
    return comm_wait(comm, &work, err);
}

Status comm_broadcast(Comm *comm, CommMemory memory, void *bytes, size_t count, int root, CommPurpose purpose, Error *err) {
    char error[COMM_PLUGIN_ERROR];
    if (comm == NULL) return OK;
    for (size_t first = 0; first < count; first += COMM_PIECE) {
        CommWork work = {0};
        size_t some = count - first < COMM_PIECE ? count - first : COMM_PIECE;
        TRY(begin(comm, &work, purpose, err));
        if (comm->place.rank == root) comm->sent[purpose] += (uint64_t)some * (uint64_t)(comm->place.size - 1);
        if (comm->plugin->broadcast(comm->self, 0, memory == COMM_HOST, (uint8_t *)bytes + first, some, root, &work.request,
                                    error) != 0)
            return transport_failed(comm, error, err);
        append(comm, &work, WORK_LAST);
        TRY(comm_wait(comm, &work, err));
    }
    return OK;
}

Status comm_max(Comm *comm, int64_t *value, Error *err) {
    if (comm == NULL) return OK;
    int size = comm->place.size;
    int64_t *all = (int64_t *)comm->own; /* the share of one number is far below its size */
    all[comm->place.rank] = *value;
    TRY(comm_gather(comm, all, sizeof *all, COMM_CONTROL, err));
    for (int r = 0; r < size; r++)
        if (all[r] > *value) *value = all[r];
    return OK;
}

Status comm_barrier(Comm *comm, Error *err) {
    int64_t nothing = 0;
    return comm_max(comm, &nothing, err);
}

Status comm_gather_texts(Comm *comm, const char *own, char *texts, size_t capacity, Error *err) {
    (void)snprintf(texts + (size_t)comm_rank(comm) * capacity, capacity, "%s", own);
    TRY(comm_gather(comm, texts, capacity, COMM_CONTROL, err));
    for (int r = 0; r < comm_size(comm); r++)
        texts[(size_t)(r + 1) * capacity - 1] = 0;
    return OK;
}

Status comm_agree(Comm *comm, Status status, Error *err) {
    if (comm == NULL || comm->broken) return status;
    typedef struct Verdict {
        int32_t status;
        char text[508];
    } Verdict;
    Error ignored;
    Verdict own = {.status = (int32_t)status};
    if (status != OK && err != NULL) (void)snprintf(own.text, sizeof own.text, "%.500s", err->text);
    Verdict *all = (Verdict *)comm->own;
    if ((size_t)comm->place.size * sizeof own > (size_t)comm->place.size * comm_share(COMM_OWN_PIECE, comm->place.size))
        FAIL("internal error: %d ranks are more than their verdicts have room for", comm->place.size);
    all[comm->place.rank] = own;
    Status joined = comm_gather(comm, all, sizeof own, COMM_CONTROL, status == OK ? err : &ignored);
    if (joined != OK) return status != OK ? status : joined;
    for (int r = 0; r < comm->place.size; r++) {
        if (all[r].status == OK) continue;
        comm_share_failure(comm);
        if (r == comm->place.rank) return status; /* its own text is whole */
        all[r].text[sizeof all[r].text - 1] = 0;
        if (r == 0) return error_set(err, (Status)all[r].status, "%s", all[r].text);
        return error_set(err, (Status)all[r].status, "rank %d: %s", r, all[r].text);
    }
    return OK;
}

void comm_share_failure(Comm *comm) {
    if (comm != NULL) comm->told = !comm_speaks(comm);
}

int comm_told(const Comm *comm) {
    return comm != NULL && comm->told;
}
