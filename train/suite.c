#include "train/suite.h"

#include <math.h>
#include <string.h>

#include "core/file.h"
#include "core/log.h"
#include "core/memory.h"
#include "train/signals.h"

Status suite_parse(const char *suite, const char *data, char **name, const char **path, Error *err) {
    static const char *const names[] = {"mmlu", "gsm8k"};
    *name = memory_strdup(suite);
    char *colon = strchr(*name, ':');
    if (colon != NULL) *colon = 0;
    int known = 0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        known |= strcmp(*name, names[i]) == 0;
    if (!known) FAIL_USAGE("--suite: want mmlu or gsm8k, got \"%.60s\"", *name);
    if (colon != NULL && data != NULL) FAIL_USAGE("--suite names its data behind the colon, and --data names it too; give one");
    *path = colon != NULL ? colon + 1 : data;
    if (*path == NULL || **path == 0)
        FAIL_USAGE(
            "--suite %s: where is its data? Give --suite %s:PATH (mmlu: a folder with test/ and dev/; gsm8k: a .jsonl file, "
            "or a folder with test*.jsonl and train*.jsonl)",
            *name, *name);
    return OK;
}

/* ---- items --------------------------------------------------------------------------------------------------------------- */

SuiteItem *suite_add(Suite *suite) {
    if (suite->count == suite->capacity) {
        suite->capacity = suite->capacity == 0 ? 256 : 2 * suite->capacity;
        suite->items = memory_resize(suite->items, (size_t)suite->capacity * sizeof *suite->items);
    }
    SuiteItem *item = &suite->items[suite->count++];
    *item = (SuiteItem){.subject = suite->subject_count - 1};
    return item;
}

int64_t suite_subject(Suite *suite, const char *name, size_t length) {
    suite->subjects = memory_resize(suite->subjects, (size_t)(suite->subject_count + 1) * sizeof *suite->subjects);
    char *copy = memory_alloc(length + 1);
    memcpy(copy, name, length);
    copy[length] = 0;
    suite->subjects[suite->subject_count] = copy;
    return suite->subject_count++;
}

void suite_free(Suite *suite) {
    for (int64_t i = 0; i < suite->count; i++) {
        SuiteItem *item = &suite->items[i];
        memory_free(item->ids);
        for (int c = 0; c < SUITE_CHOICES; c++)
            memory_free(item->option[c]);
        memory_free(item->number);
        memory_free(item->text);
    }
    for (int64_t i = 0; i < suite->subject_count; i++)
        memory_free(suite->subjects[i]);
    memory_free(suite->subjects);
    memory_free(suite->items);
    *suite = (Suite){0};
}

/* ---- prompts ------------------------------------------------------------------------------------------------------------- */

static void take(SuiteItem *item, const TokenBuffer *tokens) {
    memory_free(item->ids);
    item->count = tokens->count;
    item->ids = memory_alloc((size_t)(tokens->count + 1) * sizeof *item->ids);
    memcpy(item->ids, tokens->ids, (size_t)tokens->count * sizeof *item->ids);
}

/* Keeps a BOS and the last tokens. */
static void cut_front(SuiteItem *item, int64_t room, int32_t bos) {
    int64_t kept = bos >= 0 && item->count > 0 && item->ids[0] == bos ? 1 : 0;
    int64_t drop = item->count - room;
    if (drop <= 0 || room <= kept) return;
    memmove(item->ids + kept, item->ids + kept + drop, (size_t)(item->count - kept - drop) * sizeof *item->ids);
    item->count -= drop;
    item->cut = 1;
}

Status suite_encode(SuiteItem *item, const SuitePrompt *prompt, const Tokenizer *tokenizer, int64_t context, Error *err) {
    TokenBuffer tokens = {0};
    Text text = {0};
    Status status = OK;
    for (int64_t first = 0; status == OK; first++) {
        text_clear(&text);
        text_adds(&text, prompt->head);
        for (int64_t s = first; s < prompt->shot_count; s++)
            text_add(&text, prompt->shots[s].data, prompt->shots[s].length);
        text_adds(&text, prompt->question);
        tokens.count = 0;
        status = tokenizer_encode(tokenizer, text.data, text.length, 1, 0, &tokens, err);
        item->shots = prompt->shot_count - first;
        if (tokens.count + prompt->room <= context || first >= prompt->shot_count) break;
    }
    if (status == OK) {
        take(item, &tokens);
        cut_front(item, context - prompt->room, tokenizer_bos(tokenizer));
    }
    text_free(&text);
    token_buffer_free(&tokens);
    return status;
}

Status suite_open(Suite *suite, const SuiteOptions *options, const Tokenizer *tokenizer, int64_t context, Error *err) {
    *suite = (Suite){.is_choice = strcmp(options->name, "mmlu") == 0};
    if (context <= SUITE_OPTION_TOKENS + 1)
        FAIL("--suite: the model's context of %lld tokens is too short for a question", (long long)context);
    TRY(suite->is_choice ? suite_open_mmlu(suite, options, tokenizer, context, err)
                         : suite_open_gsm8k(suite, options, tokenizer, context, err));
    if (suite->count == 0) FAIL("%s: no question was found", options->path);
    for (int64_t i = 0; i < suite->count; i++) {
        const SuiteItem *item = &suite->items[i];
        int64_t room = suite->is_choice ? SUITE_OPTION_TOKENS : SUITE_ANSWER_TOKENS;
        int64_t tokens = item->count + room < context ? item->count + room : context;
        if (tokens > suite->longest) suite->longest = tokens;
    }
    return OK;
}

/* ---- asking -------------------------------------------------------------------------------------------------------------- */

static double log_probability(const float *logits, int64_t vocab, int32_t id) {
    double largest = -INFINITY, sum = 0.0;
    for (int64_t v = 0; v < vocab; v++)
        largest = (double)logits[v] > largest ? (double)logits[v] : largest;
    for (int64_t v = 0; v < vocab; v++)
        sum += exp((double)logits[v] - largest);
    return (double)logits[id] - largest - log(sum);
}

static Status ask_choice(SuiteItem *item, Generator *generator, int64_t vocab, Error *err) {
    for (int c = 0; c < SUITE_CHOICES; c++) {
        const float *first, *rest;
        int64_t count = item->option_count[c];
        TRY(generator_prefill(generator, item->ids, item->count, &first, err));
        double sum = log_probability(first, vocab, item->option[c][0]);
        TRY(generator_look_ahead(generator, item->option[c], count - 1, &rest, err));
        for (int64_t t = 1; t < count; t++)
            sum += log_probability(rest + (t - 1) * vocab, vocab, item->option[c][t]);
        item->loglik[c] = sum;
        if (!isfinite(sum))
            FAIL("question %lld: its log-likelihood is not finite; the model is broken", (long long)item->index);
        if (c == 0 || sum > item->loglik[item->choice]) item->choice = c;
    }
    return OK;
}

typedef struct Writing {
    const Tokenizer *tokenizer;
    int32_t ids[SUITE_ANSWER_TOKENS];
    int64_t count;
    char *text;
    Status status;
    Error *err;
} Writing;

/* Ends where the model begins a question of its own. */
static int write_token(void *context, int32_t id) {
    Writing *w = context;
    w->ids[w->count++] = id;
    memory_free(w->text);
    w->text = NULL;
    size_t length;
    w->status = tokenizer_decode(w->tokenizer, w->ids, w->count, 1, &w->text, &length, w->err);
    if (w->status != OK) return 1;
    char *next = strstr(w->text, "Question:");
    if (next != NULL) *next = 0;
    return next != NULL || w->count == SUITE_ANSWER_TOKENS;
}

static Status ask_number(SuiteItem *item, Generator *generator, const Tokenizer *tokenizer, int64_t room, const int32_t *stops,
                         int stop_count, Error *err) {
    Writing w = {.tokenizer = tokenizer, .err = err};
    int64_t left = room - item->count < SUITE_ANSWER_TOKENS ? room - item->count : SUITE_ANSWER_TOKENS, generated;
    SampleOptions greedy = {
        .spec = {.top_p = 1.0}, .max_new_tokens = left, .stop_ids = stops, .stop_count = stop_count, .reuse = 1};
    Status status = generate(generator, item->ids, item->count, &greedy, write_token, &w, &generated, err);
    if (status == OK) status = w.status;
    item->text = w.text != NULL ? w.text : memory_strdup("");
    if (status != OK) return status;
    char *strict = suite_number(item->text, 0), *flexible = suite_number(item->text, 1);
    item->strict = strict != NULL && strcmp(strict, item->number) == 0;
    item->flexible = flexible != NULL && strcmp(flexible, item->number) == 0;
    memory_free(strict);
    memory_free(flexible);
    return OK;
}

static void write_detail(const Suite *suite, const SuiteItem *item, FILE *file) {
    Text line = {0};
    text_adds(&line, "{\"subject\": ");
    text_add_json_string(&line, suite->subjects[item->subject], strlen(suite->subjects[item->subject]));
    text_addf(&line, ", \"index\": %lld, \"prompt_tokens\": %lld, \"shots\": %lld, \"cut\": %s, ", (long long)item->index,
              (long long)item->count, (long long)item->shots, item->cut ? "true" : "false");
    if (suite->is_choice) {
        text_adds(&line, "\"loglik\": [");
        for (int c = 0; c < SUITE_CHOICES; c++)
            text_addf(&line, "%s%.9g", c > 0 ? ", " : "", item->loglik[c]);
        text_addf(&line, "], \"choice\": %d, \"answer\": %d}\n", item->choice, item->answer);
    } else {
        text_adds(&line, "\"answer\": ");
        text_add_json_string(&line, item->number, strlen(item->number));
        text_addf(&line, ", \"strict\": %s, \"flexible\": %s, \"text\": ", item->strict ? "true" : "false",
                  item->flexible ? "true" : "false");
        text_add_json_string(&line, item->text, strlen(item->text));
        text_adds(&line, "}\n");
    }
    (void)fwrite(line.data, 1, line.length, file); /* failures are seen when it is closed */
    text_free(&line);
}

static Status ask_all(Suite *suite, Generator *generator, const Tokenizer *tokenizer, int64_t vocab, const int32_t *stops,
                      int stop_count, FILE *details, Error *err) {
    double begin = clock_seconds(), said = begin;
    for (int64_t i = 0; i < suite->count; i++) {
        SuiteItem *item = &suite->items[i];
        if (signals_pending()) return error_set(err, ERR_INTERRUPTED, "interrupted after %lld questions", (long long)i);
        if (suite->is_choice)
            TRY(ask_choice(item, generator, vocab, err));
        else
            TRY(ask_number(item, generator, tokenizer, suite->longest, stops, stop_count, err));
        if (details != NULL) write_detail(suite, item, details);
        double now = clock_seconds();
        if (now - said < 5.0) continue;
        log_info("%lld of %lld questions, %.1f a second", (long long)i + 1, (long long)suite->count,
                 (double)(i + 1) / (now - begin));
        said = now;
    }
    suite->seconds = clock_seconds() - begin;
    return OK;
}

Status suite_ask(Suite *suite, const SuiteOptions *options, Generator *generator, const Tokenizer *tokenizer, int64_t vocab,
                 const int32_t *stops, int stop_count, Error *err) {
    FILE *details = NULL;
    if (options->details != NULL) {
        details = fopen(options->details, "wb");
        if (details == NULL) FAIL("%s: cannot be written", options->details);
    }
    Status status = ask_all(suite, generator, tokenizer, vocab, stops, stop_count, details, err);
    if (details != NULL) {
        int bad = ferror(details);
        bad |= fclose(details) != 0;
        if (bad && status == OK) FAIL("%s: could not be written whole", options->details);
    }
    return status;
}
