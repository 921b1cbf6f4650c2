#include "train/weights_shard.h"

#include <string.h>

#include "train/device_memory.h"

/* ---- storage ----------------------------------------------------------------------------------------------------------------------- */

static Status take_layer(const ModelConfig *config, WeightEntry *entries, int64_t layer, uint8_t *slot, size_t *bytes,
                         Error *err) {
    Arena packed = {.name = "a packed layer", .base = slot, .capacity = SIZE_MAX};
    for (int kind = 0; kind < LAYER_LINEARS; kind++) {
        WeightEntry *entry = &entries[weight_id(layer, (LayerWeight)kind)];
        if (entry->present) TRY(weight_take_entry(config, weight_id(layer, (LayerWeight)kind), entry, &packed, err));
    }
    *bytes = packed.used;
    return OK;
}

static Status take_bytes(Arena *arena, size_t count, uint8_t **out, Error *err) {
    void *place;
    TRY(arena_take(arena, count, &place, err));
    *out = place;
    return OK;
}

Status shards_take(const ModelConfig *config, WeightEntry *entries, int ranks, Arena *arena, WeightShards *shards,
                   WeightBytes *bytes, Error *err) {
    memset(bytes, 0, sizeof *bytes);
    for (int32_t id = 0; id < weight_count(config); id++) {
        if (!entries[id].present || weight_is_linear(id)) continue;
        size_t before = arena->used;
        TRY(weight_take_entry(config, id, &entries[id], arena, err));
        weight_add_bytes(id, &entries[id], arena->used - before, bytes);
    }
    size_t largest = 0;
    for (int64_t layer = 0; layer < config->layers; layer++) {
        size_t packed;
        TRY(take_layer(config, entries, layer, NULL, &packed, err));
        if (packed > largest) largest = packed;
    }
    size_t before = arena->used;
    shards->ranks = ranks;
    shards->layers = config->layers;
    shards->share = comm_share(largest, ranks);
    if (shards->own == NULL) {
        shards->own = memory_calloc((size_t)config->layers, sizeof *shards->own);
        shards->offsets = memory_calloc((size_t)config->layers * LAYER_LINEARS, sizeof *shards->offsets);
    }
    for (int64_t layer = 0; layer < config->layers; layer++)
        TRY(take_bytes(arena, shards->share, &shards->own[layer], err));
    bytes->linear = arena->used - before;
    before = arena->used;
    for (int i = 0; i < SHARD_SLOTS; i++) {
        TRY(take_bytes(arena, shards->share * (size_t)ranks, &shards->slot[i], err));
        shards->held[i] = -1;
    }
    bytes->gathered = arena->used - before;
    bytes->arena += bytes->linear + bytes->gathered;
    for (int64_t layer = 0; layer < config->layers; layer++)
        TRY(take_layer(config, entries, layer, shards->slot[0], &largest, err));
    shards->layer = -1;
    return OK;
}

void shards_free(WeightShards *shards) {
    if (shards == NULL) return;
    memory_free(shards->own);
    memory_free(shards->offsets);
    memory_free(shards);
}

/* ---- loading ----------------------------------------------------------------------------------------------------------------------- */

typedef struct ShardReader {
    const TensorFiles *files;
    ModelWeights *weights;
    WeightShards *shards;
    const Backend *backend;
    Pool *pool;
    WeightEntry *copy; /* of the entries, in which only what is read now is present */
} ShardReader;

static int is_on_device(const ShardReader *reader) {
    return reader->weights->mirror.base != NULL;
}

/* Where the backend has what the host's arena has at p. */
static uint8_t *there(const ShardReader *reader, uint8_t *p) {
    return mirror_at(&reader->weights->mirror, &reader->weights->arena, p);
}

/* The linears of a layer; -1: all that is no linear. */
static Status read_some(ShardReader *reader, int64_t layer, Error *err) {
    ModelWeights *weights = reader->weights;
    int32_t first = weight_id(layer, (LayerWeight)0);
    memcpy(reader->copy, weights->entries, (size_t)weights->count * sizeof *reader->copy);
    for (int32_t id = 0; id < weights->count; id++) {
        int ours = layer < 0 ? !weight_is_linear(id) : weight_is_linear(id) && id >= first && id < first + LAYER_WEIGHTS;
        if (!ours) reader->copy[id].present = 0;
    }
    return weights_read(reader->files, &weights->config, reader->copy, is_on_device(reader) ? weights : NULL, reader->backend,
                        reader->pool, err);
}

/* This rank's layer of the round into slot 0. */
static Status read_layer(ShardReader *reader, int64_t layer, Error *err) {
    WeightShards *shards = reader->shards;
    const ModelWeights *weights = reader->weights;
    size_t bytes = shards->share * (size_t)shards->ranks;
    if (is_on_device(reader))
        TRY(reader->backend->fill(weights->exec, there(reader, shards->slot[0]), 0, bytes, err));
    else
        memset(shards->slot[0], 0, bytes);
    if (layer >= shards->layers) return OK;
    TRY(read_some(reader, layer, err));
    for (int kind = 0; kind < LAYER_LINEARS; kind++)
        shards->offsets[layer * LAYER_LINEARS + kind] = reader->copy[weight_id(layer, (LayerWeight)kind)].tensor.nested_offset;
    return OK;
}

/* The layers of a round, of which every rank has one in slot 0. */
static Status deal(ShardReader *reader, int64_t first, Error *err) {
    WeightShards *shards = reader->shards;
    size_t share = shards->share, total = share * (size_t)shards->ranks;
    TRY(comm_exchange(shards->comm, shards->slot[0], shards->slot[1], total, share, COMM_STATE, err));
    for (int64_t r = 0; r < shards->ranks && first + r < shards->layers; r++)
        memcpy(shards->own[first + r], shards->slot[1] + (size_t)r * share, share);
    return OK;
}

/* The same on devices: each layer passes by all ranks, through slot 1 of those that have it not, and each keeps its share. */
static Status deal_there(ShardReader *reader, int64_t first, Error *err) {
    WeightShards *shards = reader->shards;
    size_t share = shards->share, total = share * (size_t)shards->ranks;
    int rank = comm_rank(shards->comm);
    for (int r = 0; r < shards->ranks && first + r < shards->layers; r++) {
        uint8_t *passing = there(reader, shards->slot[r == rank ? 0 : 1]);
        TRY(comm_broadcast(shards->comm, COMM_DEVICE, passing, total, r, COMM_STATE, err));
        TRY(reader->backend->copy_within(reader->weights->exec, there(reader, shards->own[first + r]),
                                         passing + (size_t)rank * share, share, err));
    }
    return OK;
}

Status shards_read(const TensorFiles *files, ModelWeights *weights, const Backend *backend, Pool *pool, Error *err) {
    WeightShards *shards = weights->shards;
    ShardReader reader = {.files = files, .weights = weights, .shards = shards, .backend = backend, .pool = pool};
    reader.copy = memory_alloc((size_t)weights->count * sizeof *reader.copy);
    Status status = read_some(&reader, -1, err);
    for (int64_t first = 0; first < shards->layers && status == OK; first += shards->ranks) {
        status = read_layer(&reader, first + comm_rank(shards->comm), err);
        if (status == OK) status = is_on_device(&reader) ? deal_there(&reader, first, err) : deal(&reader, first, err);
    }
    memory_free(reader.copy);
    TRY(status); /* each offset is 0 on all ranks but one: sums are exact */
    return comm_sum(shards->comm, shards->offsets, shards->layers * LAYER_LINEARS, COMM_F32, COMM_STATE, err);
}

/* ---- gathering --------------------------------------------------------------------------------------------------------------------- */

static int slot_of(const WeightShards *shards, int64_t layer) {
    for (int i = 0; i < SHARD_SLOTS; i++)
        if (shards->held[i] == layer) return i;
    return -1;
}

/* The layer in use and the next two: upwards, turning at the last layer, in a forward pass; else downwards. */
static int window(const WeightShards *shards, int64_t layer, Pass pass, int64_t out[SHARD_SLOTS]) {
    int64_t last = shards->layers - 1;
    int count = 0;
    for (int64_t i = 0; i < SHARD_SLOTS; i++) {
        int64_t next = pass == PASS_FORWARD ? layer + i : layer - i;
        if (next > last) next = layer - (i - (last - layer)); /* back from the top, below the layer in use */
        if (next >= 0) out[count++] = next;
    }
    return count;
}

static Status gather_into(WeightShards *shards, int slot, int64_t layer, Error *err) {
    TRY(comm_wait(shards->comm, &shards->work[slot], err));
    shards->held[slot] = layer;
    shards->gathered++;
    return comm_gather_start(shards->comm, &shards->work[slot], COMM_DEVICE,
                             mirror_at(shards->mirror, shards->arena, shards->own[layer]),
                             mirror_at(shards->mirror, shards->arena, shards->slot[slot]),
                             shards->share * (size_t)shards->ranks, shards->share, COMM_BASE, err);
}

static int is_among(int64_t layer, const int64_t *list, int count) {
    for (int i = 0; i < count; i++)
        if (list[i] == layer) return 1;
    return 0;
}

static Status fetch_window(WeightShards *shards, int64_t layer, Pass pass, Error *err) {
    int64_t wanted[SHARD_SLOTS];
    int count = window(shards, layer, pass, wanted);
    for (int i = 0; i < count; i++) {
        if (slot_of(shards, wanted[i]) >= 0) continue;
        int slot = 0;
        while (slot + 1 < SHARD_SLOTS && is_among(shards->held[slot], wanted, count))
            slot++;
        TRY(gather_into(shards, slot, wanted[i], err));
    }
    return OK;
}

Status shards_need(WeightShards *shards, int64_t layer, Pass pass, ptrdiff_t *shift, Error *err) {
    if (pass == PASS_RECOMPUTE) pass = PASS_BACKWARD;
    if (layer != shards->layer || pass != shards->pass) TRY(fetch_window(shards, layer, pass, err));
    shards->layer = layer;
    shards->pass = pass;
    int slot = slot_of(shards, layer);
    TRY(comm_wait(shards->comm, &shards->work[slot], err));
    *shift = shards->slot[slot] - shards->slot[0];
    return OK;
}

/* What lies in slot 0 for the loader lies `shift` further on now; tables that are not in it stay where they are. */
static void *moved(const WeightShards *shards, const void *pointer, ptrdiff_t shift) {
    uintptr_t at = (uintptr_t)pointer, base = (uintptr_t)shards->slot[0];
    int inside = pointer != NULL && at - base < shards->share * (size_t)shards->ranks;
    return (void *)(inside ? at + (uintptr_t)shift : at);
}

#define MOVE(field) tensor->field = moved(shards, tensor->field, shift)

void shards_moved(const WeightShards *shards, const WeightEntry *entry, int32_t id, ptrdiff_t shift, QuantizedTensor *tensor,
                  const void **data) {
    int64_t layer = (id - WEIGHT_GLOBALS) / LAYER_WEIGHTS;
    *data = moved(shards, entry->data, shift);
    *tensor = entry->tensor;
    MOVE(codes);
    MOVE(code_table);
    MOVE(scales);
    MOVE(nested_codes);
    MOVE(nested_absmax);
    MOVE(nested_map);
    MOVE(zeros);
    MOVE(group_index);
    tensor->nested_offset = shards->offsets[layer * LAYER_LINEARS + (id - WEIGHT_GLOBALS) % LAYER_WEIGHTS];
}

/* ---- a pass without a micro-batch ------------------------------------------------------------------------------------------------ */

static Status visit(WeightShards *shards, int64_t layer, Pass pass, const ShardWalk *walk, Error *err) {
    ptrdiff_t shift;
    TRY(shards_need(shards, layer, pass, &shift, err));
    return walk->layer_done != NULL ? walk->layer_done(walk->self, (int32_t)layer, pass, err) : OK;
}

Status shards_walk(WeightShards *shards, int64_t first, Pass pass, int with_backward, const ShardWalk *walk, Error *err) {
    if (pass == PASS_FORWARD) {
        for (int64_t layer = first; layer < shards->layers; layer++)
            TRY(visit(shards, layer, PASS_FORWARD, walk, err));
        first = shards->layers - 1;
    }
    for (int64_t layer = first; layer >= 0 && with_backward; layer--)
        TRY(visit(shards, layer, PASS_BACKWARD, walk, err));
    return OK;
}
