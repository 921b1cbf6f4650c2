#include "train/replicas.h"

#include <stdio.h>
#include <string.h>

#include "core/hash.h"
#include "core/memory.h"

#define BUCKET_BYTES ((size_t)8 << 20) /* at most, but for a single layer's; far above a message's latency */
#define BUCKETS_WANTED 8               /* of a small model: something to overlap */
#define SUMS_UNDER_WAY 4

typedef struct Bucket {
    int64_t begin, end; /* elements of the flat buffers */
    int64_t layer;      /* complete when the backward pass of this layer is; -1: at the end */
} Bucket;

struct Replicas {
    Comm *comm;
    const ParamSet *params;
    ParamState *state;
    int64_t elements;
    Bucket *buckets;
    int count, started;
    CommWork sums[SUMS_UNDER_WAY];
    CommWork vote;
    int64_t *votes; /* [size] */
    int vote_open;
};

/* ---- buckets -------------------------------------------------------------------------------------------------------------------- */

static int64_t layer_of(const ParamEntry *entry) {
    if (entry->role != PARAM_WEIGHT) return entry->layer;
    return entry->weight < WEIGHT_GLOBALS ? -1 : (entry->weight - WEIGHT_GLOBALS) / LAYER_WEIGHTS;
}

static int64_t bucket_elements(const ParamSet *params) {
    int64_t most = (int64_t)(BUCKET_BYTES / sizeof(float)), some = params->elements / BUCKETS_WANTED + 1;
    return some < most ? some : most;
}

/* Cuts [begin, end), whose gradients are complete with `layer`, from behind. */
static int cut(Bucket *buckets, int count, int64_t begin, int64_t end, int64_t layer, int64_t most) {
    while (end > begin) {
        int64_t from = end - begin > most ? end - most : begin;
        if (buckets != NULL) buckets[count] = (Bucket){from, end, layer};
        count++;
        end = from;
    }
    return count;
}

/* Entries lie in the order of the layers, global ones first. From the last layer down: layers are joined until there are
 * enough elements, longer ones are cut. buckets NULL: only counts. */
static int make_buckets(const ParamSet *params, Bucket *buckets) {
    int64_t least = bucket_elements(params), most = (int64_t)(BUCKET_BYTES / sizeof(float));
    int64_t end = params->elements, lowest = INT64_MAX;
    int count = 0;
    for (int64_t e = params->count - 1; e >= 0; e--) {
        int64_t layer = layer_of(&params->entries[e]), begin = params->entries[e].offset;
        if (layer < lowest) lowest = layer;
        int last_of_layer = e == 0 || layer_of(&params->entries[e - 1]) != layer;
        if (!last_of_layer || (end - begin < least && e > 0)) continue;
        count = cut(buckets, count, begin, end, lowest, most);
        end = begin;
        lowest = INT64_MAX;
    }
    return count;
}

static size_t largest_bucket(const ParamSet *params) {
    int count = make_buckets(params, NULL);
    Bucket *buckets = memory_alloc((size_t)count * sizeof *buckets);
    int64_t most = 0;
    (void)make_buckets(params, buckets);
    for (int b = 0; b < count; b++)
        if (buckets[b].end - buckets[b].begin > most) most = buckets[b].end - buckets[b].begin;
    memory_free(buckets);
    return (size_t)most * sizeof(float);
}

size_t replicas_bytes(const ParamSet *params, int64_t micro_batches, int size) {
    if (size == 1) return 0;
    return comm_reserved_bytes(size, SUMS_UNDER_WAY, largest_bucket(params)) + (size_t)micro_batches * sizeof(double);
}

uint64_t replicas_step_bytes(const ParamSet *params, int rank, int size) {
    uint64_t bytes = 0;
    if (size == 1) return 0;
    int count = make_buckets(params, NULL);
    Bucket *buckets = memory_alloc((size_t)count * sizeof *buckets);
    (void)make_buckets(params, buckets);
    for (int b = 0; b < count; b++)
        bytes += comm_sum_bytes(rank, size, buckets[b].end - buckets[b].begin, COMM_F32);
    memory_free(buckets);
    return bytes;
}

uint64_t replicas_control_bytes(int64_t micro_batches, int rank, int size) {
    uint64_t rounds = (uint64_t)((micro_batches + size - 1) / size), votes = rounds + 1; /* and one before the optimizer */
    if (size == 1) return 0;
    return comm_sum_bytes(rank, size, micro_batches, COMM_F64) + votes * sizeof(int64_t) * (uint64_t)(size - 1);
}

Status replicas_open(Replicas **out, Comm *comm, const ParamSet *params, ParamState *state, int64_t micro_batches, Error *err) {
    *out = NULL;
    (void)micro_batches;
    if (comm == NULL) return OK;
    Replicas *replicas = memory_calloc(1, sizeof *replicas);
    replicas->comm = comm;
    replicas->params = params;
    replicas->state = state;
    replicas->elements = params->elements;
    replicas->count = make_buckets(params, NULL);
    replicas->buckets = memory_alloc((size_t)replicas->count * sizeof *replicas->buckets);
    (void)make_buckets(params, replicas->buckets);
    replicas->votes = memory_calloc((size_t)comm_size(comm), sizeof *replicas->votes);
    Status status = comm_reserve(comm, SUMS_UNDER_WAY, largest_bucket(params), err);
    if (status != OK) {
        replicas_free(replicas);
        return status;
    }
    *out = replicas;
    return OK;
}

void replicas_free(Replicas *replicas) {
    if (replicas == NULL) return;
    memory_free(replicas->buckets);
    memory_free(replicas->votes);
    memory_free(replicas);
}

/* ---- a step ----------------------------------------------------------------------------------------------------------------------- */

void replicas_begin(Replicas *replicas) {
    if (replicas != NULL) replicas->started = 0;
}

/* Bucket b uses sum b mod SUMS_UNDER_WAY, once its last one is done. */
static Status start_next(Replicas *replicas, Error *err) {
    const Bucket *bucket = &replicas->buckets[replicas->started];
    CommWork *work = &replicas->sums[replicas->started % SUMS_UNDER_WAY];
    TRY(comm_wait(replicas->comm, work, err));
    TRY(comm_sum_start(replicas->comm, work, COMM_DEVICE,
                       params_there(replicas->state, replicas->state->gradient + bucket->begin), bucket->end - bucket->begin,
                       COMM_F32, COMM_GRADIENTS, err));
    replicas->started++;
    return OK;
}

Status replicas_layer_done(Replicas *replicas, int64_t layer, Error *err) {
    if (replicas == NULL) return OK;
    while (replicas->started < replicas->count && replicas->buckets[replicas->started].layer >= layer)
        TRY(start_next(replicas, err));
    return comm_poll(replicas->comm, err);
}

Status replicas_finish(Replicas *replicas, double *losses, int64_t count, Error *err) {
    if (replicas == NULL) return OK;
    TRY(replicas_layer_done(replicas, -1, err));
    for (int i = 0; i < SUMS_UNDER_WAY; i++)
        TRY(comm_wait(replicas->comm, &replicas->sums[i], err));
    return comm_sum(replicas->comm, losses, count, COMM_F64, COMM_CONTROL, err);
}

/* ---- what is agreed --------------------------------------------------------------------------------------------------------------- */

static Status close_vote(Replicas *replicas, int *agreed, Error *err) {
    *agreed = 0;
    if (!replicas->vote_open) return OK;
    TRY(comm_wait(replicas->comm, &replicas->vote, err));
    replicas->vote_open = 0;
    for (int r = 0; r < comm_size(replicas->comm); r++)
        if (replicas->votes[r] > *agreed) *agreed = (int)replicas->votes[r];
    return OK;
}

Status replicas_vote(Replicas *replicas, int own, int *agreed, Error *err) {
    *agreed = own;
    if (replicas == NULL) return OK;
    size_t share = sizeof *replicas->votes;
    TRY(close_vote(replicas, agreed, err));
    if (*agreed != 0) return OK;
    replicas->votes[comm_rank(replicas->comm)] = own;
    TRY(comm_gather_start(replicas->comm, &replicas->vote, COMM_HOST, NULL, replicas->votes,
                          share * (size_t)comm_size(replicas->comm), share, COMM_CONTROL, err));
    replicas->vote_open = 1;
    return OK;
}

Status replicas_vote_now(Replicas *replicas, int own, int *agreed, Error *err) {
    *agreed = own;
    if (replicas == NULL) return OK;
    TRY(close_vote(replicas, agreed, err));
    int64_t value = own > *agreed ? own : *agreed;
    TRY(comm_max(replicas->comm, &value, err));
    *agreed = (int)value;
    return OK;
}

Status replicas_check(Replicas *replicas, int64_t step, Error *err) {
    if (replicas == NULL) return OK;
    uint64_t *hashes = (uint64_t *)replicas->votes;
    int size = comm_size(replicas->comm), rank = comm_rank(replicas->comm);
    int agreed;
    TRY(close_vote(replicas, &agreed, err));
    hashes[rank] = hash_bytes(replicas->state->master, (size_t)replicas->elements * sizeof(float));
    TRY(comm_gather(replicas->comm, hashes, sizeof *hashes, COMM_CONTROL, err));
    for (int r = 1; r < size; r++)
        if (hashes[r] != hashes[0]) {
            comm_share_failure(replicas->comm);
            FAIL(
                "after step %lld the trained numbers of rank %d are not those of rank 0 (XXH3 %016llx, %016llx): one of the "
                "machines computes or remembers wrongly; the last checkpoint is older than that or equal on all ranks",
                (long long)step, r, (unsigned long long)hashes[r], (unsigned long long)hashes[0]);
        }
    return OK;
}

/* ---- a split optimizer -------------------------------------------------------------------------------------------------------------- */

static int is_split(const Replicas *replicas) {
    return replicas != NULL && replicas->params->ranks > 1;
}

Status replicas_gather_trained(Replicas *replicas, DType act, Error *err) {
    if (!is_split(replicas)) return OK;
    const ParamState *state = replicas->state;
    size_t share = (size_t)params_share(replicas->params), ranks = (size_t)replicas->params->ranks;
    void *const parts[2] = {params_there(state, state->master), params_there(state, state->copy)};
    const size_t widths[2] = {sizeof(float), dtype_size(act)};
    for (int i = 0; i < 2; i++)
        TRY(comm_gather_start(replicas->comm, &replicas->sums[i], COMM_DEVICE, NULL, parts[i], share * ranks * widths[i],
                              share * widths[i], COMM_TRAINED, err));
    for (int i = 0; i < 2; i++)
        TRY(comm_wait(replicas->comm, &replicas->sums[i], err));
    return OK;
}

uint64_t replicas_trained_bytes(const ParamSet *params, DType act, int size) {
    if (params->ranks < 2) return 0;
    return (uint64_t)params_share(params) * (sizeof(float) + dtype_size(act)) * (uint64_t)(size - 1);
}

void replicas_whole_state(const Replicas *replicas, const ParamState *state, ParamState *whole) {
    *whole = *state;
    if (!is_split(replicas) || comm_rank(replicas->comm) != 0) return;
    whole->m = memory_calloc((size_t)replicas->elements, sizeof(float));
    whole->v = memory_calloc((size_t)replicas->elements, sizeof(float));
}

void replicas_whole_free(const ParamState *state, ParamState *whole) {
    if (whole->m != state->m) memory_free(whole->m);
    if (whole->v != state->v) memory_free(whole->v);
}

int replicas_save_together(const Replicas *replicas) {
    return is_split(replicas);
}

/* Every rank's share of one moment to rank 0, or rank 0's whole to their owners, through a piece at a time. */
static Status pass_moments(Replicas *replicas, float *own, float *whole, int to_owners, Error *err) {
    enum { PIECE = 1 << 18 };
    int64_t share = params_share(replicas->params), rank = comm_rank(replicas->comm);
    float *piece = memory_alloc(PIECE * sizeof *piece);
    Status status = OK;
    for (int64_t at = 0; at < replicas->elements && status == OK;) {
        int64_t owner = at / share, count = replicas->elements - at < PIECE ? replicas->elements - at : PIECE;
        if (at + count > (owner + 1) * share) count = (owner + 1) * share - at;
        size_t bytes = (size_t)count * sizeof *piece;
        int64_t root = to_owners ? 0 : owner, target = to_owners ? owner : 0, in_own = at - owner * share;
        if (rank == root) memcpy(piece, to_owners ? &whole[at] : &own[in_own], bytes);
        status = comm_broadcast(replicas->comm, COMM_HOST, piece, bytes, (int)root, COMM_STATE, err);
        if (rank == target) memcpy(to_owners ? &own[in_own] : &whole[at], piece, bytes);
        at += count;
    }
    memory_free(piece);
    return status;
}

Status replicas_collect_moments(Replicas *replicas, const ParamState *state, ParamState *whole, Error *err) {
    replicas_whole_state(replicas, state, whole);
    if (!is_split(replicas)) return OK;
    TRY(pass_moments(replicas, state->m, whole->m, 0, err));
    return pass_moments(replicas, state->v, whole->v, 0, err);
}

Status replicas_share_state(Replicas *replicas, const ParamState *whole, CheckpointState *progress, Error *err) {
    if (replicas == NULL) return OK;
    const ParamState *state = replicas->state;
    size_t bytes = (size_t)replicas->elements * sizeof(float);
    TRY(comm_broadcast(replicas->comm, COMM_HOST, progress, sizeof *progress, 0, COMM_STATE, err));
    TRY(comm_broadcast(replicas->comm, COMM_HOST, state->master, bytes, 0, COMM_STATE, err));
    if (is_split(replicas)) {
        TRY(pass_moments(replicas, state->m, whole->m, 1, err));
        return pass_moments(replicas, state->v, whole->v, 1, err);
    }
    TRY(comm_broadcast(replicas->comm, COMM_HOST, state->m, bytes, 0, COMM_STATE, err));
    return comm_broadcast(replicas->comm, COMM_HOST, state->v, bytes, 0, COMM_STATE, err);
}
