/* From the files into the storage.
 *
 *   reader thread    pread -> stage 0, 1, 2, 0, …            in the order in which the tensors lie in the files
 *   caller + pool    stage -> codes and constants, or converted values
 *
 * Both sides walk the same list of pieces (whole rows of one weight, at most STAGE_BYTES), so only two counters pass between
 * them. For a device that quantizes, stages are slots of pinned memory, and the caller only starts the work (weights_stream.c). Pre-quantized 4-bit weights need no work and are read straight into their places first.
 */
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "quant/ggml.h"
#include "train/weights_internal.h"

typedef struct Piece {
    int32_t place; /* in order[] */
    int64_t row, rows;
} Piece;

typedef struct Loader {
    const TensorFiles *files;
    WeightEntry *entries;
    int32_t *order; /* entries that go through the stages, by place in the files */
    int32_t order_count;
    int drop_cache;
    Pool *pool;
    Quantizer *quantizer;
    WeightStream *stream; /* NULL: everything is done here */
    float *scales;        /* SCB of the INT8 weight at hand */
    float *decoded;       /* one stage of INT8 in FP32 */

    pthread_mutex_t mutex;
    pthread_cond_t changed;
    uint8_t *stages[STREAM_SLOTS];
    int stage_count;
    int64_t filled, emptied; /* pieces, ever */
    int cancelled;           /* the caller gave up */
    Status read_status;
    Error read_error;
} Loader;

/* The next piece after *piece; 0 after the last. Starts from {0, 0, 0}. */
static int next_piece(const Loader *loader, Piece *piece) {
    piece->row += piece->rows;
    if (piece->place < loader->order_count && piece->row == loader->entries[loader->order[piece->place]].rows &&
        piece->rows > 0) {
        piece->place++;
        piece->row = 0;
    }
    if (piece->place == loader->order_count) return 0;
    const WeightEntry *entry = &loader->entries[loader->order[piece->place]];
    int64_t rows = loader->stream != NULL ? stream_rows(entry) : stage_rows(entry, entry->file->dtype);
    piece->rows = entry->rows - piece->row < rows ? entry->rows - piece->row : rows;
    return 1;
}

/* ---- reader thread ---- */

static Status read_piece(const Loader *loader, const Piece *piece, uint8_t *stage, Error *err) {
    const WeightEntry *entry = &loader->entries[loader->order[piece->place]];
    size_t row_bytes = (size_t)entry->cols * dtype_size(entry->file->dtype);
    return tensors_read(loader->files, entry->file, (uint64_t)piece->row * row_bytes, stage, (size_t)piece->rows * row_bytes,
                        loader->drop_cache, err);
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
        status = read_piece(loader, &piece, loader->stages[number % loader->stage_count], &error);
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

#define CONVERT_VALUES 65536

typedef struct Convert {
    const uint8_t *from;
    uint8_t *to;
    DType from_type, to_type;
    int64_t values;
    _Atomic int64_t bad;
} Convert;

static int64_t first_nonfinite(const uint8_t *values, DType type, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        if (type == DTYPE_BF16) {
            uint16_t half;
            memcpy(&half, values + 2 * i, 2);
            bits = (uint32_t)half << 16;
        } else {
            memcpy(&bits, values + 4 * i, 4);
        }
        if ((bits & 0x7F800000u) == 0x7F800000u) return i;
    }
    return -1;
}

static void convert_item(void *context, int64_t item, int worker) {
    (void)worker;
    Convert *job = context;
    int64_t first = item * CONVERT_VALUES;
    int64_t count = job->values - first < CONVERT_VALUES ? job->values - first : CONVERT_VALUES;
    uint8_t *to = job->to + (size_t)first * dtype_size(job->to_type);
    dtype_convert(to, job->to_type, job->from + (size_t)first * dtype_size(job->from_type), job->from_type, count);
    int64_t bad = first_nonfinite(to, job->to_type, count);
    if (bad < 0) return;
    bad += first;
    int64_t seen = atomic_load(&job->bad);
    while (bad < seen && !atomic_compare_exchange_weak(&job->bad, &seen, bad)) {
    }
}

Status weight_convert_rows(Pool *pool, const WeightEntry *entry, const void *rows, DType type, int64_t row, int64_t count,
                           void *to, Error *err) {
    int64_t first = row * entry->cols;
    Convert job = {
        .from = rows, .to = to, .from_type = type, .to_type = entry->dense, .values = count * entry->cols, .bad = INT64_MAX};
    pool_run(pool, convert_item, &job, (job.values + CONVERT_VALUES - 1) / CONVERT_VALUES);
    if (job.bad == INT64_MAX) return OK;
    int64_t at = first + job.bad;
    FAIL("row %lld, column %lld is NaN or Inf%s; a weight must be finite", (long long)(at / entry->cols),
         (long long)(at % entry->cols), entry->dense == DTYPE_BF16 ? " in BF16" : "");
}

typedef struct Decode {
    const int8_t *codes;
    const float *scales;
    float *out;
    int64_t cols;
} Decode;

static void decode_row(void *context, int64_t row, int worker) {
    (void)worker;
    const Decode *job = context;
    const int8_t *codes = job->codes + row * job->cols;
    float *out = job->out + row * job->cols;
    for (int64_t i = 0; i < job->cols; i++)
        out[i] = (float)codes[i] * job->scales[row] * INT8_DECODE;
}

static Status process_piece(Loader *loader, const Piece *piece, const uint8_t *stage, Error *err) {
    WeightEntry *entry = &loader->entries[loader->order[piece->place]];
    const void *rows = stage;
    DType type = entry->file->dtype;
    if (entry->origin == ORIGIN_INT8) {
        if (piece->row == 0)
            TRY(tensors_read(loader->files, entry->scales, 0, loader->scales, (size_t)entry->rows * sizeof(float),
                             loader->drop_cache, err));
        Decode job = {
            .codes = (const int8_t *)stage, .scales = loader->scales + piece->row, .out = loader->decoded, .cols = entry->cols};
        pool_run(loader->pool, decode_row, &job, piece->rows);
        rows = loader->decoded;
        type = DTYPE_F32;
    }
    if (!entry->quantized)
        return weight_convert_rows(loader->pool, entry, rows, type, piece->row, piece->rows,
                                   (uint8_t *)entry->data + (size_t)(piece->row * entry->cols) * dtype_size(entry->dense), err);
    if (piece->row == 0) TRY(quantizer_begin(loader->quantizer, &entry->tensor, err));
    TRY(quantizer_rows(loader->quantizer, rows, type, piece->rows, err));
    return piece->row + piece->rows == entry->rows ? quantizer_finish(loader->quantizer, err) : OK;
}

static Status process_all(Loader *loader, Error *err) {
    Piece piece = {0};
    for (int64_t number = 0; next_piece(loader, &piece); number++) {
        TRY(wait_filled(loader, number, err));
        int slot = (int)(number % loader->stage_count);
        Status status = loader->stream != NULL ? stream_part(loader->stream, piece.place, piece.row, piece.rows, slot, err)
                                               : process_piece(loader, &piece, loader->stages[slot], err);
        if (status != OK) {
            error_prefix(err, "%s", loader->entries[loader->order[piece.place]].file->name);
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

/* By file, then offset. */
static int compare_places(const void *a, const void *b, void *context) {
    const WeightEntry *entries = context;
    const TensorInfo *x = entries[*(const int32_t *)a].file, *y = entries[*(const int32_t *)b].file;
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

static Status read_blocks(const Loader *loader, const WeightEntry *entry, Error *err) {
    const TensorInfo *tensor = entry->file;
    for (uint64_t at = 0; at < tensor->bytes;) {
        uint64_t rest = tensor->bytes - at, count = rest < STAGE_BYTES ? rest : STAGE_BYTES;
        TRY(tensors_read(loader->files, tensor, at, (uint8_t *)entry->data + at, (size_t)count, loader->drop_cache, err));
        at += count;
    }
    const GgmlTypeInfo *type = ggml_type_info(entry->ggml);
    int64_t bad = ggml_find_nonfinite(entry->ggml, entry->data, (int64_t)tensor->bytes / type->bytes);
    if (bad >= 0) FAIL("%s: block %lld of %s has a scale that is NaN or Inf", tensor->name, (long long)bad, type->name);
    return OK;
}

static Status read_prequantized(Loader *loader, const ModelConfig *config, int32_t count, Error *err) {
    for (int32_t id = 0; id < count; id++) {
        WeightEntry *entry = &loader->entries[id];
        if (!entry->present) continue;
        if (entry->origin == ORIGIN_BNB4)
            TRY(bnb4_read(loader->files, entry, loader->drop_cache, err));
        else if (entry->origin == ORIGIN_GROUPED)
            TRY(grouped_read(loader->files, config, entry, loader->pool, loader->drop_cache, err));
        else if (entry->origin == ORIGIN_GGML)
            TRY(read_blocks(loader, entry, err));
        else
            loader->order[loader->order_count++] = id;
    }
    return OK;
}

/* Buffers for what order[] needs. */
static Status take_buffers(Loader *loader, const Backend *backend, Error *err) {
    size_t stage = 0, decoded = 0, scales = 0;
    int64_t constants = 0;
    for (int32_t i = 0; i < loader->order_count; i++) {
        const WeightEntry *entry = &loader->entries[loader->order[i]];
        size_t bytes = stage_bytes(entry, entry->file->dtype);
        if (bytes > stage) stage = bytes;
        if (entry->origin == ORIGIN_INT8) {
            size_t values = (size_t)(stage_rows(entry, entry->file->dtype) * entry->cols);
            if (values > decoded) decoded = values;
            if ((size_t)entry->rows > scales) scales = (size_t)entry->rows;
        }
        int64_t nested = entry->quantized ? quant_nested_constants(&entry->spec, entry->rows, entry->cols) : 0;
        if (nested > constants) constants = nested;
    }
    for (int i = 0; i < STAGE_COUNT; i++)
        loader->stages[i] = memory_alloc(stage);
    loader->stage_count = STAGE_COUNT;
    loader->decoded = memory_alloc(decoded * sizeof(float));
    loader->scales = memory_alloc(scales * sizeof(float));
    return quantizer_create(&loader->quantizer, backend, loader->pool, constants, err);
}

static Status take_slots(Loader *loader, ModelWeights *weights, Error *err) {
    TRY(stream_open(&loader->stream, weights, loader->order, loader->order_count, loader->pool, err));
    for (int i = 0; i < STREAM_SLOTS; i++)
        loader->stages[i] = stream_slot(loader->stream, i);
    loader->stage_count = STREAM_SLOTS;
    return OK;
}

Status weights_read(const TensorFiles *files, const ModelConfig *config, WeightEntry *entries, ModelWeights *streamed,
                    const Backend *backend, Pool *pool, Error *err) {
    int32_t count = weight_count(config);
    Loader loader = {.files = files, .entries = entries, .pool = pool, .drop_cache = should_drop_cache(files)};
    loader.order = memory_calloc((size_t)count, sizeof *loader.order);
    pthread_mutex_init(&loader.mutex, NULL);
    pthread_cond_init(&loader.changed, NULL);
    Status status;
    TRY_GOTO(read_prequantized(&loader, config, count, err));
    qsort_r(loader.order, (size_t)loader.order_count, sizeof *loader.order, compare_places, entries);
    TRY_GOTO(streamed != NULL ? take_slots(&loader, streamed, err) : take_buffers(&loader, backend, err));
    TRY_GOTO(run_threads(&loader, err));
done:
    quantizer_free(loader.quantizer);
    stream_close(loader.stream);
    for (int i = 0; i < STAGE_COUNT && streamed == NULL; i++)
        memory_free(loader.stages[i]);
    memory_free(loader.decoded);
    memory_free(loader.scales);
    memory_free(loader.order);
    pthread_cond_destroy(&loader.changed);
    pthread_mutex_destroy(&loader.mutex);
    return status;
}
