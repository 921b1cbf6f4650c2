/* Benchmarks by name: questions with few-shot prompts, asked of a model through its key/value cache.
 *
 *   mmlu   multiple choice (Hendrycks 2021): DIR/test/SUBJECT_test.csv, shots from DIR/dev/SUBJECT_dev.csv; the log-likelihood
 *          of " A" .. " D" after "Answer:", the largest is the model's choice
 *   gsm8k  grade-school mathematics (Cobbe 2021): FILE.jsonl, or DIR/test*.jsonl with shots from DIR/train*.jsonl; a greedy
 *          answer whose number behind "####" is compared, and, apart from that, its last number
 *
 * A prompt that does not fit into the context loses shots from the front; one that does not fit without any is cut at its
 * front, keeping the BOS, and counted. Everything is deterministic.
 */
#ifndef NIBBLE_TRAIN_SUITE_H
#define NIBBLE_TRAIN_SUITE_H

#include <stdio.h>

#include "core/text.h"
#include "data/tokenizer.h"
#include "train/generate.h"

typedef struct SuiteOptions {
    const char *name, *path; /* "mmlu" or "gsm8k"; the data */
    int64_t shots;           /* -1: five */
    int64_t limit;           /* the first questions of each subject or file; 0: all */
    const char *details;     /* JSON lines, one a question; NULL: none */
    int json;
} SuiteOptions;

#define SUITE_CHOICES 4
#define SUITE_ANSWER_TOKENS 320 /* a greedy answer is at most so long */
#define SUITE_OPTION_TOKENS 8   /* an option is at most so long */

/* "NAME:PATH", or NAME with `data`; the name is checked. *name is memory_free, *path points into it or is `data`. */
Status suite_parse(const char *suite, const char *data, char **name, const char **path, Error *err);

/* One question, as tokens. */
typedef struct SuiteItem {
    int64_t subject, index; /* index: in its file */
    int64_t shots;          /* that are left */
    int cut;                /* the prompt lost its front */
    int32_t *ids;           /* prompt */
    int64_t count;
    int32_t *option[SUITE_CHOICES]; /* multiple choice: what is scored */
    int64_t option_count[SUITE_CHOICES];
    int answer;   /* the right option */
    char *number; /* gsm8k: the right number */
    /* results */
    double loglik[SUITE_CHOICES];
    int choice, strict, flexible;
    char *text;
} SuiteItem;

typedef struct Suite {
    int is_choice;
    char **subjects;
    int64_t subject_count;
    SuiteItem *items;
    int64_t count, capacity; /* of items */
    int64_t shots;           /* that a prompt with room has */
    int64_t longest;         /* tokens of a prompt and what follows it */
    double seconds;
} Suite;

/* Reads the data and makes the prompts, for a context of so many tokens. suite_free also after a failure. */
Status suite_open(Suite *suite, const SuiteOptions *options, const Tokenizer *tokenizer, int64_t context, Error *err);
/* Asks. generator: room for `longest` tokens and logits of SUITE_OPTION_TOKENS rows. stops end an answer. */
Status suite_ask(Suite *suite, const SuiteOptions *options, Generator *generator, const Tokenizer *tokenizer, int64_t vocab,
                 const int32_t *stops, int stop_count, Error *err);
/* A table, or with options->json the fields of a JSON object (no braces). */
void suite_print(const Suite *suite, const SuiteOptions *options, Text *out);
void suite_free(Suite *suite);

/* ---- private to the suite files ---- */

/* A new item of a suite, zeroed; valid until the next. */
SuiteItem *suite_add(Suite *suite);
int64_t suite_subject(Suite *suite, const char *name, size_t length);
/* The prompt of the text and its shots: head, shots [shot_count], question; shots are dropped until `room` more tokens fit. */
typedef struct SuitePrompt {
    const char *head;
    const Text *shots;
    int64_t shot_count;
    const char *question;
    int64_t room;
} SuitePrompt;
Status suite_encode(SuiteItem *item, const SuitePrompt *prompt, const Tokenizer *tokenizer, int64_t context, Error *err);
Status suite_open_mmlu(Suite *suite, const SuiteOptions *options, const Tokenizer *tokenizer, int64_t context, Error *err);
Status suite_open_gsm8k(Suite *suite, const SuiteOptions *options, const Tokenizer *tokenizer, int64_t context, Error *err);
/* The number behind the last "####", or, flexible, the last number: digits, sign and point, without commas; NULL when there is
 * none. memory_free. */
char *suite_number(const char *text, int flexible);

#endif
