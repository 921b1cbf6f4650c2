/* Rows on their way to a device, which quantizes them where they will lie.
 *
 *   reader thread   pread -> slot 0, 1, 2, 3, 0, ...       (weights_load.c)
 *   caller          starts the copy and the kernels, or converts dense rows and starts their copy; waits for the slot before
 *   device          slot -> codes, constants
 *
 * Offsets of nested constants and places of NaN are read back once, at the end.
 */
#include <string.h>

#include "quant/double_quant.h"
#include "train/device_memory.h"
#include "train/weights_internal.h"

#define SLOT_BYTES ((size_t)8 << 20) /* a third of a millisecond of PCIe */
#define SLOT_MOST ((size_t)64 << 20) /* for rows that are longer, or whose blocks end only after many of them */

struct WeightStream {
    ModelWeights *weights;
    const int32_t *order;
    int32_t count;
    Pool *pool;
    Arena pinned;
    uint8_t *slots[STREAM_SLOTS], *converted[STREAM_SLOTS];
    int begun;
    float *offsets; /* [count] */
    int64_t *bad;   /* [count] */
};

static int64_t greatest_divisor(int64_t a, int64_t b) {
    while (b != 0) {
        int64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

/* Rows after which a block ends as well. */
static int64_t whole_rows(const WeightEntry *entry) {
    if (!entry->quantized || entry->spec.format == WEIGHT_INT8) return 1;
    int64_t block = entry->spec.block_size, rows = block / greatest_divisor(block, entry->cols);
    return rows < entry->rows ? rows : entry->rows; /* the last block may be short */
}

static size_t row_bytes(const WeightEntry *entry) {
    return (size_t)entry->cols * dtype_size(entry->file->dtype);
}

int64_t stream_rows(const WeightEntry *entry) {
    int64_t unit = whole_rows(entry), rows = (int64_t)(SLOT_BYTES / row_bytes(entry)) / unit * unit;
    return rows < unit ? unit : rows > entry->rows ? entry->rows : rows;
}

static size_t slot_bytes(const WeightEntry *entry) {
    return (size_t)stream_rows(entry) * row_bytes(entry);
}

int stream_suits(const WeightEntry *entries, int32_t count) {
    for (int32_t id = 0; id < count; id++) {
        const WeightEntry *entry = &entries[id];
        if (!entry->present) continue;
        if (entry->origin != ORIGIN_DENSE || slot_bytes(entry) > SLOT_MOST) return 0;
        if (entry->quantized && entry->spec.format == WEIGHT_GROUPED) return 0;
    }
    return 1;
}

static const WeightEntry *entry_at(const WeightStream *stream, int32_t place) {
    return &stream->weights->entries[stream->order[place]];
}

static Status take_slots(WeightStream *stream, size_t slot, size_t converted, Error *err) {
    const ModelWeights *w = stream->weights;
    size_t bytes = STREAM_SLOTS * (arena_align(slot) + arena_align(converted));
    TRY(pinned_arena_create(&stream->pinned, w->backend, w->exec, "weights on their way", bytes, err));
    for (int i = 0; i < STREAM_SLOTS; i++) {
        void *memory;
        TRY(arena_take(&stream->pinned, slot, &memory, err));
        stream->slots[i] = memory;
        TRY(arena_take(&stream->pinned, converted, &memory, err));
        stream->converted[i] = memory;
    }
    return OK;
}

static Status begin(WeightStream *stream, Error *err) {
    const ModelWeights *w = stream->weights;
    size_t slot = 1, converted = 1;
    int64_t constants = 0;
    for (int32_t place = 0; place < stream->count; place++) {
        const WeightEntry *entry = entry_at(stream, place);
        size_t bytes = slot_bytes(entry), dense = (size_t)(stream_rows(entry) * entry->cols) * dtype_size(entry->dense);
        int64_t nested = entry->quantized ? quant_nested_constants(&entry->spec, entry->rows, entry->cols) : 0;
        if (bytes > slot) slot = bytes;
        if (!entry->quantized && !entry->pinned && dense > converted) converted = dense;
        if (nested > constants) constants = nested;
    }
    float map[DYNAMIC_MAP_ENTRIES];
    dynamic_map(map);
    LoadPlan plan = {
        .slots = STREAM_SLOTS, .slot_bytes = slot, .constants = constants, .weights = stream->count, .nested_map = map};
    TRY(take_slots(stream, slot, converted, err));
    TRY(w->backend->load_begin(w->exec, &plan, err));
    stream->begun = 1;
    return OK;
}

Status stream_open(WeightStream **out, ModelWeights *weights, const int32_t *order, int32_t count, Pool *pool, Error *err) {
    WeightStream *stream = *out = memory_calloc(1, sizeof *stream);
    stream->weights = weights;
    stream->order = order;
    stream->count = count;
    stream->pool = pool;
    stream->offsets = memory_calloc((size_t)count + 1, sizeof *stream->offsets);
    stream->bad = memory_calloc((size_t)count + 1, sizeof *stream->bad);
    return begin(stream, err);
}

void *stream_slot(const WeightStream *stream, int slot) {
    return stream->slots[slot];
}

static Status dense_part(WeightStream *stream, const WeightEntry *entry, int64_t row, int64_t rows, int slot, Error *err) {
    const ModelWeights *w = stream->weights;
    size_t first = (size_t)(row * entry->cols) * dtype_size(entry->dense);
    size_t bytes = (size_t)(rows * entry->cols) * dtype_size(entry->dense);
    void *to = entry->pinned ? (uint8_t *)entry->data + first : stream->converted[slot];
    TRY(weight_convert_rows(stream->pool, entry, stream->slots[slot], entry->file->dtype, row, rows, to, err));
    if (entry->pinned) return OK;
    void *there = (uint8_t *)mirror_at(&w->mirror, &w->arena, entry->data) + first;
    return w->backend->load_copy(w->exec, there, to, bytes, slot, err);
}

Status stream_part(WeightStream *stream, int32_t place, int64_t row, int64_t rows, int slot, Error *err) {
    const ModelWeights *w = stream->weights;
    const WeightEntry *entry = entry_at(stream, place);
    if (!entry->quantized) return dense_part(stream, entry, row, rows, slot, err);
    WeightView view = weight_stored_view(w, entry);
    LoadPart part = {.to = &view,
                     .weight = place,
                     .slot = slot,
                     .from = stream->slots[slot],
                     .type = entry->file->dtype,
                     .first = row * entry->cols,
                     .values = rows * entry->cols};
    return w->backend->load_part(w->exec, &part, err);
}

Status stream_wait(WeightStream *stream, int slot, Error *err) {
    return stream->weights->backend->load_wait(stream->weights->exec, slot, err);
}

Status stream_finish(WeightStream *stream, Error *err) {
    const ModelWeights *w = stream->weights;
    stream->begun = 0;
    TRY(w->backend->load_end(w->exec, stream->offsets, stream->bad, err));
    for (int32_t place = 0; place < stream->count; place++) {
        WeightEntry *entry = &stream->weights->entries[stream->order[place]];
        int64_t bad = stream->bad[place];
        if (entry->quantized) entry->tensor.nested_offset = stream->offsets[place];
        if (bad >= 0)
            FAIL("%s: row %lld, column %lld is NaN or Inf; a weight must be finite", entry->file->name,
                 (long long)(bad / entry->cols), (long long)(bad % entry->cols));
    }
    return OK;
}

void stream_close(WeightStream *stream) {
    if (stream == NULL) return;
    const ModelWeights *w = stream->weights;
    if (stream->begun) (void)w->backend->load_end(w->exec, NULL, NULL, NULL);
    pinned_arena_free(&stream->pinned, w->backend, w->exec);
    memory_free(stream->offsets);
    memory_free(stream->bad);
    memory_free(stream);
}
