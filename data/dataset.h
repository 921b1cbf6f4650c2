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

typedef enum DataLayout {
    LAYOUT_AUTO,
    LAYOUT_ALPACA,
    LAYOUT_MESSAGES,
    LAYOUT_PROMPT_COMPLETION,
    LAYOUT_TEXT,
    LAYOUT_SHAREGPT,
    LAYOUT_QUESTION_ANSWER,
    LAYOUT_PREFERENCE, /* read and checked, then refused: there is no training on pairs yet */
    LAYOUT_MIXED       /* a result only: files of several layouts */
} DataLayout;
typedef enum TrainOn { TRAIN_ON_ASSISTANT, TRAIN_ON_ALL, TRAIN_ON_LAST } TrainOn;
/* What becomes of a sequence over max_length. Auto: plain text is split, anything else truncated. */
typedef enum TooLong { TOO_LONG_AUTO, TOO_LONG_TRUNCATE, TOO_LONG_SPLIT, TOO_LONG_DROP } TooLong;
typedef enum OnError { ON_ERROR_FAIL, ON_ERROR_SKIP } OnError;

#define DATASET_WEIGHT_MAX 1000
/* Files to mix: a path or pattern (data_files.h), and how often an epoch has each of their sequences. */
typedef struct DatasetSource {
    const char *path;
    double weight; /* 1: once; 2.5: twice, and half of them, drawn anew each epoch, once more */
} DatasetSource;

typedef struct DatasetOptions {
    const char *path;             /* a path or pattern, where there are no sources */
    const DatasetSource *sources; /* borrowed; NULL: path, with weight 1 */
    int64_t source_count;
    DataLayout layout;
    const char *template_name; /* "auto": the model's own, else by layout; "model": its own; or a built-in name (template.h) */
    TrainOn train_on;
    OnError on_error;
    TooLong too_long;   /* split is for plain text only */
    int64_t max_length; /* of one sequence; see too_long. Truncated is cut on the right */
    const Tokenizer *tokenizer;
    int32_t eos_id;     /* what ends an answer; -1: the tokenizer's */
    int open_documents; /* plain text: no EOS after a document, for models that know no end (TinyStories) */
    Pool *pool;         /* NULL: one thread */
    const char *cache;  /* folder of token caches (cache.h); NULL: tokenize into memory */
} DatasetOptions;

typedef struct DatasetFile {
    char *path;
    DataLayout layout;
    char template_name[32];
    double weight;
    int64_t records, count; /* its sequences follow those of the file before */
} DatasetFile;

/* All sequences back to back: sequence i owns tokens [start[i], start[i+1]). Where they lie in a token cache, ids and train are NULL
 * and dataset_sequence gets them; without DatasetOptions.cache they never are. */
typedef struct Dataset {
    int64_t count, tokens;
    int64_t *start;           /* count + 1 */
    int32_t *ids;             /* tokens */
    uint8_t *train;           /* tokens: 1 where the token is a target; never at a sequence's first token */
    struct TokenCache *cache; /* NULL: in memory */
    int64_t *chosen; /* with a cache: its number of each sequence; NULL: all of them, and start and record are the cache's */
    int64_t *record; /* count: the record a sequence comes from (1-based line, or element of a JSON array); a file's
                        numbers go on where those of the file before end */
    DatasetFile *files;
    int64_t file_count;
    /* what happened, for the reports */
    DataLayout layout; /* LAYOUT_MIXED, "mixed": files differ */
    char template_name[32];
    int64_t records, skipped_bad, skipped_untrained, truncated, split, dropped, trained_tokens, longest;
    int64_t with_tools; /* records with definitions, calls or results of tools */
    uint64_t hash;      /* of the sequences' hashes in order, and of weights other than 1 */
    char *skip_reasons; /* why bad records were skipped: a line for the first of each kind; NULL when none was */
} Dataset;

/* Reads and tokenizes everything, or finds it tokenized in options->cache. JSONL, JSON array, CSV or plain text by extension and first byte, each file with its own
 * layout. Fails, naming file and
 * line, on a bad record unless on_error is skip; fails when nothing in the data is trained. */
Status dataset_read(const DatasetOptions *options, Dataset *out, Error *err);
/* What data.cache means for these options: a folder to put into options->cache (memory_free), or NULL: tokenize into memory.
 * setting: "off"; a folder; "auto": the user's cache folder for data of DATASET_CACHE_BYTES or more on disk. */
#define DATASET_CACHE_BYTES ((uint64_t)64 << 20)
Status dataset_cache_root(const DatasetOptions *options, const char *setting, char **root, Error *err);
void dataset_free(Dataset *dataset);
/* Ids and mask of sequence i, start[i+1] - start[i] of each, valid until the next call for data of the same cache. Fails only when a
 * cache is damaged; allocates nothing; one thread at a time. */
Status dataset_sequence(const Dataset *dataset, int64_t i, const int32_t **ids, const uint8_t **train, Error *err);
/* Its targets. */
int64_t dataset_sequence_trained(const Dataset *dataset, int64_t i);
/* Ids that hold every different token of the data, *count of them, borrowed: all the data in memory; each once, those of the other part
 * of a split too, from a cache. */
const int32_t *dataset_used_ids(const Dataset *dataset, int64_t *count);
/* What the data's hash is made of. */
uint64_t sequence_hash(const int32_t *ids, const uint8_t *train, int64_t count);
/* Whether some file has a weight other than 1. */
int dataset_is_weighted(const Dataset *dataset);
const char *layout_name(DataLayout layout);
/* LAYOUT_AUTO when no layout has this name. */
DataLayout layout_by_name(const char *name);

/* Splits off floor(fraction*count + 0.5) sequences (at least 1 when fraction > 0 and count > 1, never all) for evaluation:
 * those with the least random number by (seed, record). Both keep file order. Records that were split into several
 * sequences stay together: one that is larger than what is still wanted is passed over, and only when no record fits
 * (one long text) does the evaluation get the last sequences of one. The held-out part has weights of 1. Both keep the file's counts of records and of what was
 * skipped, cut or split. */
Status dataset_split(const Dataset *all, double fraction, uint64_t seed, Dataset *train, Dataset *held_out, Error *err);

#endif
