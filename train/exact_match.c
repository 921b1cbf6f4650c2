#include "train/exact_match.h"

#include <string.h>

#include "core/memory.h"
#include "core/text.h"
#include "train/model_options.h"
#include "train/signals.h"

#define SPARE 16 /* tokens that an answer may be longer than twice the wanted one */

typedef struct Question {
    const int32_t *ids;
    int64_t prompt, wanted; /* tokens: the answer lies behind the prompt */
} Question;

static Question question_of(const Dataset *dataset, int64_t sequence) {
    int64_t begin = dataset->start[sequence], length = dataset->start[sequence + 1] - begin, prompt = 0;
    while (prompt < length && !dataset->train[begin + prompt])
        prompt++;
    return (Question){dataset->ids + begin, prompt, length - prompt};
}

static int64_t question_rows(const Question *q) {
    return q->prompt + 2 * q->wanted + SPARE;
}

static int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t record_limit(const Dataset *dataset, int64_t limit) {
    return limit > 0 ? least(limit, dataset->count) : dataset->count;
}

int64_t exact_match_capacity(const Dataset *dataset, int64_t limit, int64_t context) {
    int64_t most = 1;
    for (int64_t s = 0; s < record_limit(dataset, limit); s++) {
        Question q = question_of(dataset, s);
        if (question_rows(&q) > most) most = question_rows(&q);
    }
    return least(most, context);
}

typedef struct Answer {
    int32_t *ids;
    int64_t count, capacity;
} Answer;

static int collect(void *context, int32_t id) {
    Answer *answer = context;
    answer->ids[answer->count++] = id;
    return answer->count == answer->capacity;
}

static char *strip(char *text, size_t length) {
    size_t begin = 0;
    while (begin < length && strchr(" \t\r\n", text[begin]) != NULL && text[begin] != 0)
        begin++;
    while (length > begin && strchr(" \t\r\n", text[length - 1]) != NULL && text[length - 1] != 0)
        length--;
    memmove(text, text + begin, length - begin);
    text[length - begin] = 0;
    return text;
}

static Status decode(const Tokenizer *tokenizer, const int32_t *ids, int64_t count, char **text, Error *err) {
    size_t length;
    TRY(tokenizer_decode(tokenizer, ids, count, 1, text, &length, err));
    (void)strip(*text, length);
    return OK;
}

static Status compare(const Tokenizer *tokenizer, const Dataset *dataset, int64_t sequence, const Question *q,
                      const Answer *answer, int64_t show, ExactMatch *result, Error *err) {
    char *want = NULL, *got = NULL, *prompt = NULL;
    size_t length;
    Status status = decode(tokenizer, q->ids + q->prompt, q->wanted, &want, err);
    if (status == OK) status = decode(tokenizer, answer->ids, answer->count, &got, err);
    int equal = status == OK && strcmp(want, got) == 0;
    if (status == OK && !equal && result->mistake_count < show)
        status = tokenizer_decode(tokenizer, q->ids, q->prompt, 0, &prompt, &length, err);
    if (prompt != NULL && status == OK) {
        result->mistakes = memory_resize(result->mistakes, (size_t)(result->mistake_count + 1) * sizeof *result->mistakes);
        result->mistakes[result->mistake_count++] = (ExactMatchMistake){dataset->record[sequence], prompt, want, got};
        prompt = want = got = NULL;
    }
    result->matched += equal;
    memory_free(prompt);
    memory_free(want);
    memory_free(got);
    return status;
}

#define AT_ONCE 64 /* questions whose answers are kept until they are compared */

typedef struct Asked {
    int64_t sequence[AT_ONCE];
    Question question[AT_ONCE];
    Answer answer[AT_ONCE];
    int32_t stops[AT_ONCE][STOP_IDS_MAX];
    GenerateJob job[AT_ONCE];
    int64_t count;
} Asked;

static void add_question(Asked *asked, const ModelConfig *model, const Tokenizer *tokenizer, int64_t sequence,
                         const Question *q, int64_t capacity) {
    int64_t at = asked->count++;
    int32_t *stops = asked->stops[at];
    int stop_count = model_stop_ids(tokenizer, model, stops);
    for (int64_t t = 0; t < q->wanted; t++) {
        if (!tokenizer_is_special(tokenizer, q->ids[q->prompt + t])) continue;
        stops[stop_count++] = q->ids[q->prompt + t];
        break;
    }
    int64_t longest = least(2 * q->wanted + SPARE, capacity - q->prompt + 1);
    asked->sequence[at] = sequence;
    asked->question[at] = *q;
    asked->answer[at] = (Answer){.ids = memory_alloc((size_t)longest * sizeof(int32_t)), .capacity = longest};
    asked->job[at] = (GenerateJob){
        .prompt = asked->question[at].ids,
        .count = q->prompt,
        .options = {.spec = {.top_p = 1.0}, .max_new_tokens = longest, .stop_ids = stops, .stop_count = stop_count},
        .callback = collect,
        .context = &asked->answer[at]};
}

/* Answers what was asked, and counts. */
static Status answer_all(Generator *generator, const Tokenizer *tokenizer, const Dataset *dataset, Asked *asked, int64_t show,
                         ExactMatch *result, Error *err) {
    Status status = generate_all(generator, asked->job, asked->count, err);
    if (status == OK && signals_pending()) status = error_set(err, ERR_INTERRUPTED, "interrupted during evaluation");
    for (int64_t i = 0; i < asked->count; i++) {
        const Answer *answer = &asked->answer[i];
        if (status == OK)
            status = compare(tokenizer, dataset, asked->sequence[i], &asked->question[i], answer, show, result, err);
        result->generated += answer->count;
        result->records += status == OK;
        memory_free(answer->ids);
    }
    asked->count = 0;
    return status;
}

Status exact_match(Generator *generator, const ModelConfig *model, const Tokenizer *tokenizer, const Dataset *dataset,
                   int64_t limit, int64_t capacity, int64_t show, ExactMatch *result, Error *err) {
    double begin = clock_seconds();
    *result = (ExactMatch){.records = 0};
    int64_t count = record_limit(dataset, limit);
    Asked *asked = memory_calloc(1, sizeof *asked);
    Status status = OK;
    for (int64_t s = 0; s < count && status == OK; s++) {
        Question q = question_of(dataset, s);
        if (q.prompt < 1 || q.prompt + q.wanted > capacity)
            result->too_long++;
        else
            add_question(asked, model, tokenizer, s, &q, capacity);
        if (asked->count == AT_ONCE) status = answer_all(generator, tokenizer, dataset, asked, show, result, err);
    }
    if (status == OK) status = answer_all(generator, tokenizer, dataset, asked, show, result, err);
    memory_free(asked);
    result->seconds = clock_seconds() - begin;
    return status;
}

void exact_match_free(ExactMatch *result) {
    for (int64_t i = 0; i < result->mistake_count; i++) {
        memory_free(result->mistakes[i].prompt);
        memory_free(result->mistakes[i].want);
        memory_free(result->mistakes[i].got);
    }
    memory_free(result->mistakes);
    *result = (ExactMatch){.records = 0};
}
