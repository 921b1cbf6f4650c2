/* Batches of records, read ahead of the threads that tokenize them. */
#include <string.h>

#include "core/memory.h"
#include "data/dataset_internal.h"

#define BATCH_BYTES ((size_t)4 << 20)
#define BATCHES (BATCHES_AHEAD + 1)

static void clear_batch(RecordBatch *batch) {
    for (int64_t i = 0; i < batch->count; i++) {
        encoded_free(&batch->slots[i].encoded);
        memory_free(batch->slots[i].reason);
    }
    batch->count = 0;
    text_clear(&batch->text);
}

static Status fill_batch(RecordFile *file, RecordBatch *batch, Error *err) {
    RecordBytes bytes;
    int found = 1;
    if (batch->slots == NULL) batch->slots = memory_calloc(BATCH_RECORDS, sizeof *batch->slots);
    text_add(&batch->text, "", 0);
    while (batch->count < BATCH_RECORDS && batch->text.length < BATCH_BYTES) {
        TRY(record_file_next(file, &bytes, &found, err));
        if (!found) break;
        Slot *slot = &batch->slots[batch->count++];
        *slot = (Slot){.offset = batch->text.length, .length = bytes.length, .line = bytes.line, .number = bytes.number};
        if (bytes.bad != NULL) {
            slot->status = ERR_FAILED;
            slot->reason = memory_format("%s: line %lld: %s", file->path, (long long)bytes.line, bytes.bad);
        }
        text_add(&batch->text, bytes.text, bytes.length);
    }
    batch->consumed = file->source.offset;
    return OK;
}

/* Whether there is nothing behind this batch. */
static int is_last(const RecordBatch *batch) {
    return batch->status != OK || batch->count == 0;
}

static void read_one(BatchReader *reader, RecordBatch *batch) {
    clear_batch(batch);
    batch->status = fill_batch(&reader->file, batch, &batch->error);
}

static void *read_ahead(void *context) {
    BatchReader *reader = context;
    for (int last = 0; !last;) {
        pthread_mutex_lock(&reader->mutex);
        while (!reader->stop && reader->filled - reader->taken == BATCHES_AHEAD)
            pthread_cond_wait(&reader->changed, &reader->mutex);
        RecordBatch *batch = reader->stop ? NULL : &reader->batches[reader->filled % BATCHES];
        pthread_mutex_unlock(&reader->mutex);
        if (batch == NULL) return NULL;
        read_one(reader, batch);
        last = is_last(batch);
        pthread_mutex_lock(&reader->mutex);
        reader->filled++;
        pthread_cond_signal(&reader->changed);
        pthread_mutex_unlock(&reader->mutex);
    }
    return NULL;
}

Status batch_reader_open(BatchReader *reader, const char *path, int threaded, Error *err) {
    *reader = (BatchReader){0};
    TRY(record_file_open(&reader->file, path, err));
    if (!threaded) return OK;
    pthread_mutex_init(&reader->mutex, NULL);
    pthread_cond_init(&reader->changed, NULL);
    reader->threaded = pthread_create(&reader->thread, NULL, read_ahead, reader) == 0; /* else it reads without one */
    return OK;
}

Status batch_reader_next(BatchReader *reader, const RecordBatch **out, Error *err) {
    RecordBatch *batch = &reader->batches[reader->taken % BATCHES];
    if (reader->threaded) {
        pthread_mutex_lock(&reader->mutex);
        while (reader->filled == reader->taken)
            pthread_cond_wait(&reader->changed, &reader->mutex);
        reader->taken++;
        pthread_cond_signal(&reader->changed);
        pthread_mutex_unlock(&reader->mutex);
    } else {
        read_one(reader, batch);
        reader->taken++;
    }
    if (batch->status != OK) {
        if (err != NULL) *err = batch->error;
        return batch->status;
    }
    *out = batch;
    return OK;
}

void batch_reader_close(BatchReader *reader) {
    if (reader->threaded) {
        pthread_mutex_lock(&reader->mutex);
        reader->stop = 1;
        pthread_cond_signal(&reader->changed);
        pthread_mutex_unlock(&reader->mutex);
        pthread_join(reader->thread, NULL);
        pthread_mutex_destroy(&reader->mutex);
        pthread_cond_destroy(&reader->changed);
    }
    for (int b = 0; b < BATCHES; b++) {
        clear_batch(&reader->batches[b]);
        memory_free(reader->batches[b].slots);
        text_free(&reader->batches[b].text);
    }
    record_file_close(&reader->file);
}
