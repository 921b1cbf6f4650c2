/* Exact match: greedy answers against a dataset's own.
 *
 * A record's prompt is everything before its first trained token (with train_on "last": before the last answer). The answer is
 * generated greedily until an end of sequence, until a special token that the wanted answer contains (its end of turn), or
 * until it is clearly too long (twice the wanted tokens and 16). Both texts are compared byte for byte after special tokens and
 * surrounding white space are taken away.
 */
#ifndef NIBBLE_TRAIN_EXACT_MATCH_H
#define NIBBLE_TRAIN_EXACT_MATCH_H

#include "data/dataset.h"
#include "data/tokenizer.h"
#include "train/generate.h"

typedef struct ExactMatchMistake {
    int64_t record; /* line or element of the file */
    char *prompt, *want, *got;
} ExactMatchMistake;

typedef struct ExactMatch {
    int64_t records, matched;
    int64_t too_long; /* left out: prompt and answer do not fit into the context */
    int64_t generated;
    double seconds;
    ExactMatchMistake *mistakes; /* the first `show` */
    int64_t mistake_count;
} ExactMatch;

/* Rows of cache that the first `limit` records (0: all) need, at most `context`. */
int64_t exact_match_capacity(const Dataset *dataset, int64_t limit, int64_t context);
/* *result is overwritten; exact_match_free also after a failure. Ends early with ERR_INTERRUPTED when a signal is pending. */
Status exact_match(Generator *generator, const ModelConfig *model, const Tokenizer *tokenizer, const Dataset *dataset,
                   int64_t limit, int64_t capacity, int64_t show, ExactMatch *result, Error *err);
void exact_match_free(ExactMatch *result);

#endif
