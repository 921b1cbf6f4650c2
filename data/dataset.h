/* Datasets: records in a file to sequences of ids with a mask of what is trained.
 *
 * Segments are tokenized knowing which of them is trained, so that a mask is
 * never guessed back from ids. Label at position t is token t (the loss shifts
 * by one), so the first token of a sequence is never a target. EOS belongs to
 * the trained answer. Never a second BOS.
 */
#ifndef NIBBLE_DATA_DATASET_H
#define NIBBLE_DATA_DATASET_H

#include <stddef.h>
#include <stdint.h>

#include "core/error.h"
#include "core/pool.h"
#include "data/tokenizer.h"

typedef enum DataLayout { LAYOUT_AUTO, LAYOUT_ALPACA, LAYOUT_MESSAGES, LAYOUT_PROMPT_COMPLETION, LAYOUT_TEXT } DataLayout;
typedef enum TrainOn { TRAIN_ON_ASSISTANT, TRAIN_ON_ALL, TRAIN_ON_LAST } TrainOn;
typedef enum OnError { ON_ERROR_FAIL, ON_ERROR_SKIP } OnError;

typedef struct DatasetOptions {
    const char *path;
    DataLayout layout;
    const char *template_name; /* "auto": the model's own, else by layout; or a built-in name (template.h) */
    TrainOn train_on;
    OnError on_error;
    int64_t max_length; /* of one sequence; longer plain text is split, longer conversations are truncated on the right */
    const Tokenizer *tokenizer;
    int32_t eos_id;     /* what ends an answer; -1: the tokenizer's */
    int open_documents; /* plain text: no EOS after a document, for models that know no end (TinyStories) */
    Pool *pool;         /* NULL: one thread */
} DatasetOptions;

/* All sequences back to back: sequence i owns tokens [start[i], start[i+1]). */
typedef struct Dataset {
    int64_t count, tokens;
    int64_t *start;  /* count + 1 */
    int32_t *ids;    /* tokens */
    uint8_t *train;  /* tokens: 1 where the token is a target; never at a sequence's first token */
    int64_t *record; /* count: the record a sequence comes from (1-based line, or element of a JSON array) */
    /* what happened, for the reports */
    DataLayout layout;
    char template_name[32];
    int64_t records, skipped_bad, skipped_untrained, truncated, split, trained_tokens, longest;
    uint64_t hash;    /* of ids and masks in order */
    char *first_skip; /* why the first bad record was skipped; NULL when none was */
} Dataset;

/* Reads and tokenizes everything. JSONL, JSON array, or plain text by extension and first byte. Fails, naming file and
 * line, on a bad record unless on_error is skip; fails when nothing in the data is trained. */
Status dataset_read(const DatasetOptions *options, Dataset *out, Error *err);
void dataset_free(Dataset *dataset);
const char *layout_name(DataLayout layout);

/* Splits off floor(fraction*count + 0.5) sequences (at least 1 when fraction > 0 and count > 1, never all) for evaluation:
 * those with the least random number by (seed, record). Both keep file order. Records that were split into several
 * sequences stay together: one that is larger than what is still wanted is passed over, and only when no record fits
 * (one long text) does the evaluation get the last sequences of one. Both keep the file's counts of records and of what was
 * skipped, cut or split. */
Status dataset_split(const Dataset *all, double fraction, uint64_t seed, Dataset *train, Dataset *held_out, Error *err);

#endif
