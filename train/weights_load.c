/* From the files into the storage.
 *
 *   reader thread    pread -> stage 0, 1, 2, 0, …            in the order in which the tensors lie in the files
 *   caller + pool    stage -> codes and constants, or converted values (weights_parts.c)
 *
 * Both sides walk the same list of pieces (whole lines of one tensor, at most STAGE_BYTES), so only two counters pass between
 * them. For a device, stages are slots of pinned memory, and the caller starts copies and kernels (weights_stream.c). What stays
 * as it is in the file, and lies in host memory, is read into its place, and only looked at there.
 */
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "train/weights_internal.h"

typedef struct Piece {
    int32_t place; /* in parts[] */
    int64_t line, lines;
} Piece;

typedef struct Loader {
    WeightEntry *entries;
    WeightPart *parts; /* by place in the files */
    int32_t part_count;
    PartWork work;
    Quantizer *quantizer;
    WeightStream *stream; /* NULL: everything is done here */
    uint8_t *scratch;     /* for what is only checked */

    pthread_mutex_t mutex;
    pthread_cond_t changed;
    uint8_t *stages[STREAM_SLOTS];
    int stage_count;
    size_t stage_bytes;      /* wanted of a piece */
    int64_t filled, emptied; /* pieces, ever */
    int cancelled;           /* the caller gave up */
    Status read_status;
    Error read_error;
} Loader;

/* The next piece after *piece; 0 after the last. Starts from {0, 0, 0}. */
static int next_piece(const Loader *loader, Piece *piece) {
    piece->line += piece->lines;
    if (piece->place < loader->part_count && piece->line == loader->parts[piece->place].lines && piece->lines > 0) {
        piece->place++;
        piece->line = 0;
    }
    if (piece->place == loader->part_count) return 0;
    const WeightPart *part = &loader->parts[piece->place];
    int64_t lines = part_lines(part, loader->stage_bytes);
    piece->lines = part->lines - piece->line < lines ? part->lines - piece->line : lines;
    return 1;
}

/* Where piece `number` is read to. */
static uint8_t *room(const Loader *loader, const Piece *piece, int64_t number) {
    const WeightPart *part = &loader->parts[piece->place];
    int is_here = loader->stream == NULL || loader->entries[part->id].pinned;
    if (is_here && part_is_in_place(part)) return (uint8_t *)part->to + (size_t)piece->line * part->line_bytes;
    return loader->stages[number % loader->stage_count];
}

/* ---- reader thread ---- */

static Status read_piece(const Loader *loader, const Piece *piece, uint8_t *to, Error *err) {
    const WeightPart *part = &loader->parts[piece->place];
    return tensors_read(loader->work.files, part->file, (uint64_t)piece->line * part->line_bytes, to,
                        (size_t)piece->lines * part->line_bytes, loader->work.drop_cache, err);
}

static void *reader_main(void *argument) {
    Loader *loader = argument;
    Piece piece = {0};
    Status status = OK;
    for (int64_t number = 0; status == OK && next_piece(loader, &piece); number++) {
        pthread_mutex_lock(&loader->mutex);
        while (number - loader->emptied >= loader->stage_count && !loader->cancelled)
            pthread_cond_wait(&loader->changed, &loader->mutex);
        int stop = loader->cancelled;
        pthread_mutex_unlock(&loader->mutex);
        if (stop) break;
        Error error = {0};
        status = read_piece(loader, &piece, room(loader, &piece, number), &error);
        pthread_mutex_lock(&loader->mutex);
        if (status == OK)
            loader->filled = number + 1;
        else
            loader->read_error = error;
        loader->read_status = status;
        pthread_cond_broadcast(&loader->changed);
        pthread_mutex_unlock(&loader->mutex);
    }
    return NULL;
}

/* Waits until piece `number` is in its stage. */
static Status wait_filled(Loader *loader, int64_t number, Error *err) {
    pthread_mutex_lock(&loader->mutex);
    while (loader->filled <= number && loader->read_status == OK)
        pthread_cond_wait(&loader->changed, &loader->mutex);
    int ready = loader->filled > number;
    pthread_mutex_unlock(&loader->mutex);
    if (ready) return OK;
    return error_set(err, loader->read_status, "%s", loader->read_error.text);
}

static void mark_emptied(Loader *loader) {
    pthread_mutex_lock(&loader->mutex);
    loader->emptied++;
    pthread_cond_broadcast(&loader->changed);
    pthread_mutex_unlock(&loader->mutex);
}

/* ---- the work on a piece ---- */

static Status process_piece(Loader *loader, const Piece *piece, const uint8_t *raw, Error *err) {
    const WeightPart *part = &loader->parts[piece->place];
    WeightEntry *entry = &loader->entries[part->id];
    if (part->kind == PART_WORDS) {
        grouped_words_in(&loader->work, entry, piece->line, piece->lines, raw);
        return OK;
    }
    void *to = part->to == NULL ? loader->scratch : (uint8_t *)part->to + (size_t)piece->line * part->made;
    TRY(part_make(&loader->work, part, entry, piece->line, piece->lines, raw, to, err));
    if (!part->quantize) return OK;
    if (piece->line == 0) TRY(quantizer_begin(loader->quantizer, &entry->tensor, err));
    int decoded = part->kind == PART_INT8;
    TRY(quantizer_rows(loader->quantizer, decoded ? loader->scratch : raw, decoded ? DTYPE_F32 : part->file->dtype,
                       piece->lines, err));
    return piece->line + piece->lines == part->lines ? quantizer_finish(loader->quantizer, err) : OK;
}

static Status process_all(Loader *loader, Error *err) {
    Piece piece = {0};
    for (int64_t number = 0; next_piece(loader, &piece); number++) {
        TRY(wait_filled(loader, number, err));
        int slot = (int)(number % loader->stage_count);
        const uint8_t *raw = room(loader, &piece, number);
        Status status = loader->stream != NULL
                            ? stream_piece(loader->stream, piece.place, piece.line, piece.lines, slot, raw, err)
                            : process_piece(loader, &piece, raw, err);
        if (status != OK) {
            error_prefix(err, "%s", loader->parts[piece.place].file->name);
            return status;
        }
        /* the device works on this one while the one before it becomes free */
        if (loader->stream != NULL && number > 0)
            TRY(stream_wait(loader->stream, (int)((number - 1) % loader->stage_count), err));
        if (loader->stream == NULL || number > 0) mark_emptied(loader);
    }
    return loader->stream != NULL ? stream_finish(loader->stream, err) : OK;
}

/* ---- the whole ---- */

static int compare_places(const void *a, const void *b) {
    const TensorInfo *x = ((const WeightPart *)a)->file, *y = ((const WeightPart *)b)->file;
    if (x->file != y->file) return x->file < y->file ? -1 : 1;
    return (x->offset > y->offset) - (x->offset < y->offset);
}

static Status run_threads(Loader *loader, Error *err) {
    pthread_t reader;
    sigset_t all, before;
    sigfillset(&all); /* signals are the main thread's */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int code = pthread_create(&reader, NULL, reader_main, loader);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (code != 0) FAIL("cannot start the reader thread: %s", strerror(code));
    Status status = process_all(loader, err);
    pthread_mutex_lock(&loader->mutex);
    loader->cancelled = 1;
    pthread_cond_broadcast(&loader->changed);
    pthread_mutex_unlock(&loader->mutex);
    pthread_join(reader, NULL);
    return status;
}

/* Pages of a model that is large for this machine are not worth pushing everything else out. */
static int should_drop_cache(const TensorFiles *files) {
    uint64_t total = 0;
    for (int64_t i = 0; i < tensors_count(files); i++)
        total += tensors_get(files, i)->bytes;
    return total > memory_available() / 2;
}

static void list_parts(Loader *loader, const ModelConfig *config) {
    int32_t count = weight_count(config);
    loader->parts = memory_calloc((size_t)count, WEIGHT_TENSORS * sizeof *loader->parts);
    for (int32_t id = 0; id < count; id++) {
        WeightEntry *entry = &loader->entries[id];
        if (!entry->present) continue;
        if (entry->origin == ORIGIN_BNB4) entry->tensor.nested_offset = entry->nested_offset;
        loader->part_count +=
            weight_parts(config, id, entry, loader->stage_count == STREAM_SLOTS, loader->parts + loader->part_count);
    }
    qsort(loader->parts, (size_t)loader->part_count, sizeof *loader->parts, compare_places);
}

static Status take_buffers(Loader *loader, const Backend *backend, Error *err) {
    size_t stage = 0, scratch = 0;
    int64_t constants = 0;
    for (int32_t i = 0; i < loader->part_count; i++) {
        const WeightPart *part = &loader->parts[i];
        const WeightEntry *entry = &loader->entries[part->id];
        size_t lines = (size_t)part_lines(part, STAGE_BYTES);
        int64_t nested = part->quantize ? quant_nested_constants(&entry->spec, entry->rows, entry->cols) : 0;
        if (!part_is_in_place(part) && lines * part->line_bytes > stage) stage = lines * part->line_bytes;
        if (part->to == NULL && lines * part->made > scratch) scratch = lines * part->made;
        if (nested > constants) constants = nested;
    }
    for (int i = 0; i < STAGE_COUNT; i++)
        loader->stages[i] = memory_alloc(stage);
    loader->scratch = memory_alloc(scratch);
    return quantizer_create(&loader->quantizer, backend, loader->work.pool, constants, err);
}

static Status take_slots(Loader *loader, ModelWeights *weights, Error *err) {
    TRY(stream_open(&loader->stream, weights, loader->entries, loader->parts, loader->part_count, &loader->work, err));
    for (int i = 0; i < STREAM_SLOTS; i++)
        loader->stages[i] = stream_slot(loader->stream, i);
    return OK;
}

Status weights_read(const TensorFiles *files, const ModelConfig *config, WeightEntry *entries, ModelWeights *streamed,
                    const Backend *backend, Pool *pool, Error *err) {
    Loader loader = {.entries = entries,
                     .work = {.files = files, .config = config, .pool = pool, .drop_cache = should_drop_cache(files)},
                     .stage_count = streamed != NULL ? STREAM_SLOTS : STAGE_COUNT,
                     .stage_bytes = streamed != NULL ? SLOT_BYTES : STAGE_BYTES};
    pthread_mutex_init(&loader.mutex, NULL);
    pthread_cond_init(&loader.changed, NULL);
    Status status;
    list_parts(&loader, config);
    part_work_take(&loader.work, entries, loader.parts, loader.part_count, loader.stage_bytes);
    TRY_GOTO(streamed != NULL ? take_slots(&loader, streamed, err) : take_buffers(&loader, backend, err));
    TRY_GOTO(run_threads(&loader, err));
done:
    quantizer_free(loader.quantizer);
    stream_close(loader.stream);
    for (int i = 0; i < STAGE_COUNT && streamed == NULL; i++)
        memory_free(loader.stages[i]);
    memory_free(loader.scratch);
    part_work_free(&loader.work);
    memory_free(loader.parts);
    pthread_cond_destroy(&loader.changed);
    pthread_mutex_destroy(&loader.mutex);
    return status;
}
