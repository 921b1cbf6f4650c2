/* Weights on their way to a device.
 *
 *   reader thread   pread -> slot 0, 1, 2, 3, 0, ...       (weights_load.c)
 *   caller          starts the copy and the kernels, or makes of the slot what the device wants and starts that copy (weights_parts.c);
 *                   waits for the slot before
 *   device          slot -> codes, constants
 *
 * The host holds slots, and never a weight. Offsets of nested constants and places of NaN are read back once, at the end.
 */
#include <string.h>

#include "quant/double_quant.h"
#include "train/device_memory.h"
#include "train/weights_internal.h"

struct WeightStream {
    const ModelWeights *weights;
    WeightEntry *entries;
    const WeightPart *parts;
    int32_t count;
    PartWork *work;
    Arena pinned;
    uint8_t *slots[STREAM_SLOTS], *made[STREAM_SLOTS];
    int begun;
    float *offsets; /* [count] */
    int64_t *bad;   /* [count] */
};

/* Bytes of a slot for the largest piece; and of what the host makes of it, 0 where it is taken as it was read. */
static size_t read_bytes(const WeightPart *part) {
    return (size_t)part_lines(part, SLOT_BYTES) * part->line_bytes;
}

static int is_made(const WeightPart *part) {
    int is_quantized_as_read = part->quantize && part->kind == PART_VALUES;
    int stays = part->kind == PART_BYTES || part->kind == PART_FLOATS || part->kind == PART_BLOCKS;
    return !stays && part->kind != PART_WORDS && !is_quantized_as_read;
}

static size_t made_bytes(const WeightPart *part) {
    return is_made(part) ? (size_t)part_lines(part, SLOT_BYTES) * part->made : 0;
}

int stream_suits(const ModelConfig *config, const WeightEntry *entries) {
    for (int32_t id = 0; id < weight_count(config); id++) {
        const WeightEntry *entry = &entries[id];
        WeightPart parts[WEIGHT_TENSORS];
        int count = entry->present ? weight_parts(config, id, entry, 1, parts) : 0;
        for (int i = 0; i < count; i++) {
            if (read_bytes(&parts[i]) > SLOT_MOST || made_bytes(&parts[i]) > SLOT_MOST) return 0;
            if (parts[i].quantize && entry->spec.format == WEIGHT_GROUPED) return 0;
        }
    }
    return 1;
}

static Status take_slots(WeightStream *stream, size_t slot, size_t made, Error *err) {
    const ModelWeights *w = stream->weights;
    size_t bytes = STREAM_SLOTS * (arena_align(slot) + arena_align(made));
    TRY(pinned_arena_create(&stream->pinned, w->backend, w->exec, "weights on their way", bytes, err));
    for (int i = 0; i < STREAM_SLOTS; i++) {
        void *memory;
        TRY(arena_take(&stream->pinned, slot, &memory, err));
        stream->slots[i] = memory;
        TRY(arena_take(&stream->pinned, made, &memory, err));
        stream->made[i] = memory;
    }
    return OK;
}

static Status begin(WeightStream *stream, Error *err) {
    const ModelWeights *w = stream->weights;
    size_t slot = 1, made = 1, work = 1; /* work: what the device has a slot of its own for */
    int64_t constants = 0;
    for (int32_t place = 0; place < stream->count; place++) {
        const WeightPart *part = &stream->parts[place];
        const WeightEntry *entry = &stream->entries[part->id];
        size_t as_read = read_bytes(part), as_made = made_bytes(part), there = as_made > 0 ? as_made : as_read;
        int64_t nested = part->quantize ? quant_nested_constants(&entry->spec, entry->rows, entry->cols) : 0;
        if (as_read > slot) slot = as_read;
        if (as_made > made) made = as_made;
        if ((part->quantize || part->kind == PART_WORDS) && there > work) work = there;
        if (nested > constants) constants = nested;
    }
    float map[DYNAMIC_MAP_ENTRIES];
    dynamic_map(map);
    LoadPlan plan = {
        .slots = STREAM_SLOTS, .slot_bytes = work, .constants = constants, .weights = stream->count, .nested_map = map};
    TRY(take_slots(stream, slot, made, err));
    TRY(w->backend->load_begin(w->exec, &plan, err));
    stream->begun = 1;
    return OK;
}

Status stream_open(WeightStream **out, const ModelWeights *weights, WeightEntry *entries, const WeightPart *parts,
                   int32_t count, PartWork *work, Error *err) {
    WeightStream *stream = *out = memory_calloc(1, sizeof *stream);
    stream->weights = weights;
    stream->entries = entries;
    stream->parts = parts;
    stream->count = count;
    stream->work = work;
    stream->offsets = memory_calloc((size_t)count + 1, sizeof *stream->offsets);
    stream->bad = memory_calloc((size_t)count + 1, sizeof *stream->bad);
    return begin(stream, err);
}

void *stream_slot(const WeightStream *stream, int slot) {
    return stream->slots[slot];
}

/* GPTQ's and AWQ's words: the device spreads them over the rows. */
static Status start_words(const WeightStream *stream, const WeightPart *part, int64_t line, int64_t lines, int slot,
                          const void *raw, Error *err) {
    const ModelWeights *w = stream->weights;
    const WeightEntry *entry = &stream->entries[part->id];
    WeightView view = weight_stored_view(w, entry);
    LoadLines words = {.to = &view, .nibbles = part->unit > 1, .first = line, .count = lines, .slot = slot, .from = raw};
    return w->backend->load_lines(w->exec, &words, err);
}

static Status start_rows(const WeightStream *stream, int32_t place, int64_t row, int64_t rows, int slot, const void *raw,
                         DType type, Error *err) {
    const ModelWeights *w = stream->weights;
    const WeightEntry *entry = &stream->entries[stream->parts[place].id];
    WeightView view = weight_stored_view(w, entry);
    LoadPart part = {.to = &view,
                     .weight = place,
                     .slot = slot,
                     .from = raw,
                     .type = type,
                     .first = row * entry->cols,
                     .values = rows * entry->cols};
    return w->backend->load_part(w->exec, &part, err);
}

Status stream_piece(WeightStream *stream, int32_t place, int64_t line, int64_t lines, int slot, const void *raw, Error *err) {
    const ModelWeights *w = stream->weights;
    const WeightPart *part = &stream->parts[place];
    const WeightEntry *entry = &stream->entries[part->id];
    if (part->kind == PART_WORDS) return start_words(stream, part, line, lines, slot, raw, err);
    size_t at = (size_t)line * part->made;
    int is_here = part->to != NULL && entry->pinned;
    void *made = is_here ? (uint8_t *)part->to + at : stream->made[slot];
    TRY(part_make(stream->work, part, entry, line, lines, raw, made, err));
    const void *from = is_made(part) ? made : raw;
    if (part->quantize)
        return start_rows(stream, place, line, lines, slot, from, part->kind == PART_INT8 ? DTYPE_F32 : part->file->dtype, err);
    if (part->to == NULL || is_here) return OK;
    uint8_t *there = (uint8_t *)mirror_at(&w->mirror, &w->arena, part->to) + at;
    return w->backend->load_copy(w->exec, there, from, (size_t)lines * part->made, slot, err);
}

Status stream_wait(WeightStream *stream, int slot, Error *err) {
    return stream->weights->backend->load_wait(stream->weights->exec, slot, err);
}

Status stream_finish(WeightStream *stream, Error *err) {
    const ModelWeights *w = stream->weights;
    stream->begun = 0;
    TRY(w->backend->load_end(w->exec, stream->offsets, stream->bad, err));
    for (int32_t place = 0; place < stream->count; place++) {
        const WeightPart *part = &stream->parts[place];
        WeightEntry *entry = &stream->entries[part->id];
        int64_t bad = stream->bad[place];
        if (part->quantize) entry->tensor.nested_offset = stream->offsets[place];
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
