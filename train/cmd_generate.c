/* nibble generate: the continuation of a prompt, whole characters as they come. */
#include <stdio.h>
#include <string.h>

#include "core/file.h"
#include "core/log.h"
#include "core/memory.h"
#include "core/text.h"
#include "train/chat_prompt.h"
#include "train/commands.h"
#include "train/generate.h"
#include "train/model_options.h"
#include "train/signals.h"

#define PROMPT_LIMIT ((size_t)64 << 20)

typedef struct Options {
    ModelOptions model;
    const char *prompt, *prompt_file, *template_name, *system;
    int64_t max_tokens, top_k, seed;
    double temperature, top_p;
    int raw, json;
} Options;

static const CommandHelp help = {
    .usage = "nibble generate MODEL --prompt TEXT [options]",
    .summary =
        "Prints the continuation of a prompt by a model folder or a GGUF file. Without --template the prompt is plain text "
        "(with the BOS that the tokenizer\n"
        "puts in front); with one it is a user's message. Greedy unless --temperature is given. --json prints one object:\n"
        "prompt, text, prompt_tokens, tokens, ids, seconds, tokens_per_second, stop (end, length, context, interrupted).",
    .example =
        "nibble generate models/TinyLlama-1.1B --prompt 'Once upon a time' --max-tokens 100 --temperature 0.8\n"
        "nibble generate models/Qwen2.5-0.5B --adapter runs/first/adapter --template qwen2.5 --prompt 'Who are you?'",
};

static Status check_options(const Options *o, Error *err) {
    if ((o->prompt != NULL) == (o->prompt_file != NULL)) FAIL_USAGE("want one of --prompt TEXT and --prompt-file FILE");
    if (o->max_tokens < 1) FAIL_USAGE("--max-tokens: want at least 1, got %lld", (long long)o->max_tokens);
    if (o->temperature < 0.0) FAIL_USAGE("--temperature: want 0 (greedy) or more, got %g", o->temperature);
    if (o->top_k < 0) FAIL_USAGE("--top-k: want 0 (all) or more, got %lld", (long long)o->top_k);
    if (!(o->top_p > 0.0 && o->top_p <= 1.0)) FAIL_USAGE("--top-p: want more than 0 and at most 1, got %g", o->top_p);
    if (o->temperature == 0.0 && (o->top_k != 0 || o->top_p != 1.0))
        FAIL_USAGE("--top-k and --top-p choose among random draws, and temperature 0 draws none; give --temperature");
    if (o->seed < 0) FAIL_USAGE("--seed: want at least 0, got %lld", (long long)o->seed);
    int has_template = strcmp(o->template_name, "none") != 0;
    if (has_template) TRY(chat_prompt_check(o->template_name, err));
    if (o->raw && has_template) FAIL_USAGE("--raw and --template contradict each other; give one");
    if (o->system != NULL && !has_template) FAIL_USAGE("--system: only a --template has a place for it");
    return OK;
}

/* ---- the prompt ---------------------------------------------------------------------------------------------------------- */

/* chat is closed by the caller, also after a failure. */
static Status encode_prompt(const Options *o, const Tokenizer *tokenizer, ChatPrompt *chat, const char *prompt, size_t length,
                            TokenBuffer *out, Error *err) {
    if (strcmp(o->template_name, "none") == 0) return tokenizer_encode(tokenizer, prompt, length, !o->raw, o->raw, out, err);
    ChatMessage messages[2];
    int64_t count = 0;
    if (o->system != NULL) messages[count++] = (ChatMessage){"system", o->system, strlen(o->system), -1, NULL};
    messages[count++] = (ChatMessage){"user", prompt, length, -1, NULL};
    TRY(chat_prompt_open(chat, o->template_name, tokenizer, err));
    return chat_prompt_encode(chat, messages, count, out, err);
}

/* ---- the answer ---------------------------------------------------------------------------------------------------------- */

typedef struct Answer {
    TokenStream *stream;
    Text text;
    int32_t *ids;
    int64_t count;
    int show;
    Status status;
    Error *err;
} Answer;

static void emit(Answer *answer, const char *text, size_t length) {
    text_add(&answer->text, text, length);
    if (!answer->show || length == 0) return;
    (void)fwrite(text, 1, length, stdout);
    (void)fflush(stdout);
}

static int on_token(void *context, int32_t id) {
    Answer *answer = context;
    const char *text;
    size_t length;
    answer->ids[answer->count++] = id;
    answer->status = token_stream_next(answer->stream, id, &text, &length, answer->err);
    if (answer->status != OK) return 1;
    emit(answer, text, length);
    return ferror(stdout); /* nobody reads any more */
}

static void print_json(const Options *o, const char *prompt, size_t length, int64_t prompt_tokens, const Answer *answer,
                       double seconds, const char *stop) {
    Text out = {0};
    text_adds(&out, "{\"prompt\": ");
    text_add_json_string(&out, prompt, length);
    text_adds(&out, ", \"text\": ");
    text_add_json_string(&out, answer->text.data != NULL ? answer->text.data : "", answer->text.length);
    text_addf(&out, ", \"prompt_tokens\": %lld, \"tokens\": %lld, \"ids\": [", (long long)prompt_tokens,
              (long long)answer->count);
    for (int64_t i = 0; i < answer->count; i++)
        text_addf(&out, "%s%d", i > 0 ? ", " : "", answer->ids[i]);
    text_addf(&out, "], \"seconds\": %.4f, \"tokens_per_second\": %.3f, \"seed\": %lld, \"stop\": \"%s\"}\n", seconds,
              seconds > 0.0 ? (double)answer->count / seconds : 0.0, (long long)o->seed, stop);
    (void)fwrite(out.data, 1, out.length, stdout);
    text_free(&out);
}

/* The prompt goes through the stream first, so that a space at the border is neither lost nor doubled. */
static Status open_stream(Answer *answer, const Tokenizer *tokenizer, const TokenBuffer *prompt, Error *err) {
    const char *text;
    size_t length;
    TRY(token_stream_open(&answer->stream, tokenizer, err));
    for (int64_t i = 0; i < prompt->count; i++)
        TRY(token_stream_next(answer->stream, prompt->ids[i], &text, &length, err));
    return OK;
}

static Status answer_prompt(const Options *o, Generator *generator, int64_t capacity, const TokenBuffer *prompt,
                            const int32_t *stops, int stop_count, Answer *answer, const char **stop, Error *err) {
    SampleOptions sample = {
        .spec = {.temperature = o->temperature, .top_k = o->top_k, .top_p = o->top_p, .seed = (uint64_t)o->seed},
        .max_new_tokens = o->max_tokens,
        .stop_ids = stops,
        .stop_count = stop_count};
    int64_t generated;
    const char *text;
    size_t length;
    TRY(generate(generator, prompt->ids, prompt->count, &sample, on_token, answer, &generated, err));
    TRY(answer->status);
    TRY(token_stream_flush(answer->stream, &text, &length, err));
    emit(answer, text, length);
    if (answer->show) {
        (void)fputc('\n', stdout);
        (void)fflush(stdout); /* before the line on stderr, where both go to one place */
    }
    *stop = signals_pending()                           ? "interrupted"
            : generated == o->max_tokens                ? "length"
            : prompt->count + generated == capacity + 1 ? "context"
                                                        : "end";
    return OK;
}

/* ---- the command --------------------------------------------------------------------------------------------------------- */

typedef struct Generation {
    ModelConfig model;
    Engine engine;
    Tokenizer *tokenizer;
    Generator *generator;
    ChatPrompt chat;
    TokenBuffer tokens;
    Answer answer;
    int64_t capacity;
} Generation;

static void generation_free(Generation *s) {
    token_stream_close(s->answer.stream);
    text_free(&s->answer.text);
    memory_free(s->answer.ids);
    generator_free(s->generator);
    engine_close(&s->engine);
    token_buffer_free(&s->tokens);
    chat_prompt_close(&s->chat);
    tokenizer_close(s->tokenizer);
    memory_free(s);
}

static Status open_generation(Generation *s, const Options *o, const char *folder, const char *prompt, size_t length,
                              Error *err) {
    TRY(model_options_check(&o->model, folder, &s->model, err));
    TRY(tokenizer_open(&s->tokenizer, folder, err));
    TRY(encode_prompt(o, s->tokenizer, &s->chat, prompt, length, &s->tokens, err));
    if (s->tokens.count < 1) FAIL("the prompt is empty and the tokenizer adds no BOS; give at least one character");
    if (s->tokens.count > s->model.context)
        FAIL("the prompt has %lld tokens and the model takes %lld", (long long)s->tokens.count, (long long)s->model.context);
    int64_t room = s->model.context - s->tokens.count;
    s->capacity = s->tokens.count + (o->max_tokens < room ? o->max_tokens : room);
    int64_t chunk = s->tokens.count < GENERATE_CHUNK ? s->tokens.count : GENERATE_CHUNK;
    size_t cache = generator_bytes(&s->model, precision_type(o->model.precision), s->capacity, 1);
    TRY(model_options_open(&s->engine, &o->model, folder, &s->model, cache, err));
    TRY(generator_create(&s->generator, &s->engine, s->capacity, chunk, 1, err));
    Tape *tape = generator_tape(s->generator);
    TRY(engine_reserve(&s->engine, &tape, 1, s->capacity, s->capacity, err));
    s->answer.ids = memory_alloc((size_t)(s->capacity + 1) * sizeof *s->answer.ids);
    s->answer.show = !o->json;
    s->answer.err = err;
    return open_stream(&s->answer, s->tokenizer, &s->tokens, err);
}

static Status run_generation(Generation *s, const Options *o, const char *prompt, size_t length, Error *err) {
    int32_t stops[STOP_IDS_MAX];
    const char *stop;
    int stop_count = model_stop_ids(s->tokenizer, &s->model, stops);
    if (strcmp(o->template_name, "none") != 0 && s->chat.end >= 0) stops[stop_count++] = s->chat.end;
    double begin = clock_seconds();
    TRY(answer_prompt(o, s->generator, s->capacity, &s->tokens, stops, stop_count, &s->answer, &stop, err));
    double seconds = clock_seconds() - begin;
    if (o->json) print_json(o, prompt, length, s->tokens.count, &s->answer, seconds, stop);
    log_info("%lld tokens after %lld in %.2f s (%.1f tokens/s), seed %lld, stop: %s", (long long)s->answer.count,
             (long long)s->tokens.count, seconds, seconds > 0.0 ? (double)s->answer.count / seconds : 0.0, (long long)o->seed,
             stop);
    return signals_pending() ? ERR_INTERRUPTED : OK;
}

Status command_generate(int argc, char **argv, Error *err) {
    Options o = {.model = MODEL_OPTIONS_DEFAULT, .template_name = "none", .max_tokens = 128, .top_p = 1.0, .seed = 1234};
    const OptionSpec specs[] = {
        {"prompt", OPTION_STRING, "TEXT", "what to continue", &o.prompt},
        {"prompt-file", OPTION_STRING, "FILE", "the same, from a file", &o.prompt_file},
        {"template", OPTION_STRING, "NAME", "render the prompt as a user's message: \"model\" (its own template) or a built-in",
         &o.template_name},
        {"system", OPTION_STRING, "TEXT", "a system message, with --template", &o.system},
        {"raw", OPTION_FLAG, NULL, "the prompt is complete: no BOS is added, special tokens in it are parsed", &o.raw},
        {"max-tokens", OPTION_INTEGER, "N", "new tokens at most", &o.max_tokens},
        {"temperature", OPTION_NUMBER, "T", "0: greedy", &o.temperature},
        {"top-k", OPTION_INTEGER, "K", "draw among the K likeliest; 0: all", &o.top_k},
        {"top-p", OPTION_NUMBER, "P", "draw among the likeliest that make up P", &o.top_p},
        {"seed", OPTION_INTEGER, "N", "decides the draws", &o.seed},
        MODEL_OPTION_SPECS(&o.model),
        {"json", OPTION_FLAG, NULL, "print one JSON object at the end instead of text", &o.json},
    };
    const char *folder;
    int count, helped;
    TRY(options_parse(argc, argv, &help, specs, sizeof specs / sizeof *specs, &folder, 1, 1, &count, &helped, err));
    if (helped) return OK;
    TRY(check_options(&o, err));
    char *from_file = NULL;
    size_t length = o.prompt != NULL ? strlen(o.prompt) : 0;
    if (o.prompt_file != NULL) TRY(file_read(o.prompt_file, PROMPT_LIMIT, &from_file, &length, err));
    const char *prompt = from_file != NULL ? from_file : o.prompt;
    signals_install();
    Generation *generation = memory_calloc(1, sizeof *generation);
    Status status = open_generation(generation, &o, folder, prompt, length, err);
    if (status == OK) status = run_generation(generation, &o, prompt, length, err);
    generation_free(generation);
    memory_free(from_file);
    return status;
}
