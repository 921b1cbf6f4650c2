/* Inside of the dataset reader: shared by data/dataset*.c and nothing else.
 *
 *   file ── dataset_file.c ──> one record's bytes ── layout*.c ──> messages or text
 *        ── template*.c ──> segments ── dataset_encode.c ──> ids and mask ── dataset.c ──> all sequences
 */
#ifndef NIBBLE_DATA_DATASET_INTERNAL_H
#define NIBBLE_DATA_DATASET_INTERNAL_H

#include <pthread.h>

#include "core/text.h"
#include "data/byte_source.h"
#include "data/cache.h"
#include "data/dataset.h"
#include "data/layout.h"
#include "data/template.h"

/* ---- dataset_file.c ---- */
typedef enum RecordForm { FORM_LINES, FORM_ARRAY, FORM_TABLE, FORM_DOCUMENTS } RecordForm;

/* Hands out one record's bytes after the other; holds no more than the longest record and one read-ahead. */
typedef struct RecordFile {
    const char *path; /* borrowed */
    char *name;       /* path without .gz or .zst */
    ByteSource source;
    RecordForm form;
    char *buffer;
    size_t begin, end, capacity; /* the unread bytes of the buffer */
    int64_t line, record;        /* line of the byte at begin; records handed out */
    int ended;                   /* the source has no more */
    int started, closed;         /* arrays: '[' and ']' were read */
    char delimiter;              /* tables: between fields */
    char **columns;              /* tables: the fields' names, as they stand between the quotes of a JSON key */
    int64_t column_count;
    Text row, bad; /* tables: the row as JSON; what is wrong with it */
} RecordFile;

typedef struct RecordBytes {
    const char *text; /* valid until the next call */
    size_t length;
    int64_t line, number; /* first line in the file; 1-based line (FORM_LINES, FORM_TABLE) or element */
    const char *bad;      /* why this is no record, or NULL; valid until the next call */
} RecordBytes;

/* Refuses files that are not read by name. */
Status record_file_open(RecordFile *file, const char *path, Error *err);
void record_file_close(RecordFile *file);
/* *found = 0 at the end. */
Status record_file_next(RecordFile *file, RecordBytes *bytes, int *found, Error *err);
/* For the forms: makes byte begin + at available; *have = 0 when the file ends before it. */
Status record_file_reach(RecordFile *file, size_t at, int *have, Error *err);
/* Moves the start of what is unread, counting lines. */
void record_file_consume(RecordFile *file, size_t bytes);

/* ---- dataset_table.c: rows of a CSV or TSV file as JSON objects ---- */
Status table_open(RecordFile *file, Error *err); /* reads the first row */
Status table_next(RecordFile *file, RecordBytes *bytes, int *found, Error *err);

/* ---- dataset_skips.c ---- */
#define SKIP_KINDS 6
typedef struct SkipKinds {
    char *reasons[SKIP_KINDS]; /* owned */
    int64_t times[SKIP_KINDS], others;
    int count;
} SkipKinds;
void skips_add(SkipKinds *skips, char *reason); /* takes it over */
char *skips_print(const SkipKinds *skips);      /* a line each; NULL when there are none; memory_free */
void skips_free(SkipKinds *skips);

/* ---- dataset_encode.c ---- */
typedef struct EncodeRules { /* one for the whole data set */
    const Tokenizer *tokenizer;
    const char *template_name, *bos, *eos; /* bos, eos: spellings, "" when none */
    TemplateJinja *jinja;                  /* owned; the model's own template, NULL for a built-in */
    TemplateJinja *tools_jinja; /* owned; the model's own, where a built-in stands for it: for conversations with tools */
    int32_t bos_id, eos_id;
    int open_documents; /* EOS does not end a plain text */
    TrainOn train_on;
    int64_t max_length;
    TooLong too_long; /* never auto */
} EncodeRules;

typedef struct EncodeScratch { /* one per thread */
    Record record;
    SegmentList segments;
    TokenBuffer tokens;
    Text text;
    int64_t *ends;        /* of each segment in text */
    TokenRange *contents; /* in text */
    uint8_t *wanted;      /* per segment: trained */
    int64_t segment_capacity;
} EncodeScratch;
void encode_scratch_free(EncodeScratch *scratch);

/* What one record became. */
typedef struct Encoded {
    int32_t *ids;
    uint8_t *train;
    int64_t count, capacity;
    int truncated, dropped; /* dropped: too long, and count is 0 */
    int tools;              /* the record has definitions, calls or results of tools */
} Encoded;
void encoded_free(Encoded *encoded);

/* scratch->record to ids and a mask, untrained first token included; longer than max_length only for text that is split. */
Status encode_conversation(const EncodeRules *rules, EncodeScratch *scratch, Encoded *out, Error *err);
Status encode_text(const EncodeRules *rules, EncodeScratch *scratch, Encoded *out, Error *err);

/* ---- dataset_batches.c ---- */
#define BATCH_RECORDS 1024

typedef struct Slot {      /* a record of a batch, and what became of it */
    size_t offset, length; /* in the batch's text */
    int64_t line, number;
    Encoded encoded;
    Status status;
    char *reason; /* of a failure; set before encoding: what the reader found to be no record */
} Slot;

typedef struct RecordBatch {
    Text text;
    Slot *slots;
    int64_t count;     /* 0: the file is at its end */
    uint64_t consumed; /* bytes of the file, as it lies on disk, that were read for this batch and those before */
    Status status;     /* of reading; error is set where it is not OK */
    Error error;
} RecordBatch;

/* Reads ahead of whoever takes the batches, in a thread of its own where that is wanted; at most BATCHES_AHEAD are full at once. */
#define BATCHES_AHEAD 2
typedef struct BatchReader {
    RecordFile file;
    RecordBatch batches[BATCHES_AHEAD + 1]; /* batch n lies in n modulo their number */
    int64_t taken, filled;                  /* batches handed out; read */
    int threaded, stop;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
} BatchReader;
Status batch_reader_open(BatchReader *reader, const char *path, int threaded, Error *err);
/* The next batch, valid until the next call; its slots are the caller's to write. Fails where reading did. */
Status batch_reader_next(BatchReader *reader, const RecordBatch **batch, Error *err);
void batch_reader_close(BatchReader *reader);

/* ---- dataset.c ---- */
/* Bytes on disk of the files that exist. */
uint64_t dataset_file_bytes(const Dataset *names);
/* As dataset_read without a cache; the sequences go to `writer` where there is one, and `out` only counts them. */
Status dataset_read_into(const DatasetOptions *options, Dataset *out, CacheWriter *writer, Error *err);
/* Adds the files that the options name, in order, with nothing known of them but path and weight. */
Status dataset_list_files(const DatasetOptions *options, Dataset *out, Error *err);

/* ---- dataset_cached.c ---- */
Status dataset_read_cached(const DatasetOptions *options, Dataset *out, Error *err);

/* ---- dataset_build.c ---- */
/* Appends a sequence; grows with the data. */
void dataset_append(Dataset *dataset, const int32_t *ids, const uint8_t *train, int64_t count, int64_t record);
/* The file whose sequences are appended from here on. */
void dataset_add_file(Dataset *dataset, const char *path, double weight);
/* Fills in layout and template_name from the files. */
void dataset_name_layout(Dataset *dataset);
/* Fills in trained_tokens, longest and hash, and gives back spare memory. */
void dataset_finish(Dataset *dataset);

#endif
