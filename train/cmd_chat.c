/* nibble chat: a conversation in the terminal, or line by line through a pipe. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/log.h"
#include "core/memory.h"
#include "core/text.h"
#include "train/chat_prompt.h"
#include "train/commands.h"
#include "train/generate.h"
#include "train/model_options.h"
#include "train/signals.h"

#define CONTEXT_USUAL 4096

typedef struct Options {
    ModelOptions model;
    const char *template_name, *system;
    int64_t max_tokens, top_k, seed, context;
    double temperature, top_p;
} Options;

static const CommandHelp help = {
    .usage = "nibble chat MODEL [options]",
    .summary =
        "Talks to a model (a folder or a GGUF file) through its own chat template. A line is a message; /reset forgets the "
        "conversation, /system TEXT "
        "sets\n"
        "the system message and starts anew, /help lists these, /exit (or the end of input) leaves. Ctrl-C stops an answer, "
        "and\n"
        "leaves where nothing is being answered. From a pipe every line is answered in turn. When the context is full, the "
        "oldest\n"
        "exchanges are dropped, which is said.",
    .example =
        "nibble chat models/Qwen2.5-0.5B-Instruct --quant nf4\n"
        "nibble chat models/TinyLlama-1.1B --adapter runs/first/adapter --template zephyr --system 'Be brief.'",
};

/* Messages own their text; the first may be the system's. */
typedef struct Chat {
    const Options *options;
    ModelConfig model;
    Engine engine;
    Tokenizer *tokenizer;
    ChatPrompt prompt;
    Generator *generator;
    int64_t capacity;
    ChatMessage *messages;
    int64_t count;
    int has_system, terminal;
    int32_t stops[STOP_IDS_MAX + 1];
    int stop_count;
    uint64_t turns;
} Chat;

static Status check_options(const Options *o, Error *err) {
    TRY(chat_prompt_check(o->template_name, err));
    if (o->max_tokens < 1) FAIL_USAGE("--max-tokens: want at least 1, got %lld", (long long)o->max_tokens);
    if (o->context < 0) FAIL_USAGE("--context: want a positive number, got %lld", (long long)o->context);
    if (o->temperature < 0.0) FAIL_USAGE("--temperature: want 0 (greedy) or more, got %g", o->temperature);
    if (o->top_k < 0) FAIL_USAGE("--top-k: want 0 (all) or more, got %lld", (long long)o->top_k);
    if (!(o->top_p > 0.0 && o->top_p <= 1.0)) FAIL_USAGE("--top-p: want more than 0 and at most 1, got %g", o->top_p);
    if (o->temperature == 0.0 && (o->top_k != 0 || o->top_p != 1.0))
        FAIL_USAGE("--top-k and --top-p choose among random draws, and temperature 0 draws none");
    if (o->seed < 0) FAIL_USAGE("--seed: want at least 0, got %lld", (long long)o->seed);
    return OK;
}

/* ---- the conversation ---------------------------------------------------------------------------------------------------- */

static void add_message(Chat *chat, const char *role, const char *text, size_t length) {
    char *copy = memory_alloc(length + 1);
    memcpy(copy, text, length);
    copy[length] = 0;
    chat->messages = memory_resize(chat->messages, (size_t)(chat->count + 1) * sizeof *chat->messages);
    chat->messages[chat->count++] = (ChatMessage){role, copy, length, -1, NULL};
}

static void drop_messages(Chat *chat, int64_t first, int64_t count) {
    for (int64_t i = first; i < first + count; i++)
        memory_free((char *)chat->messages[i].content);
    memmove(chat->messages + first, chat->messages + first + count,
            (size_t)(chat->count - first - count) * sizeof *chat->messages);
    chat->count -= count;
}

static void begin(Chat *chat, const char *system) {
    drop_messages(chat, 0, chat->count);
    chat->has_system = system != NULL && *system != 0;
    if (chat->has_system) add_message(chat, "system", system, strlen(system));
}

/* The prompt of the conversation so far; its oldest exchanges are dropped until an answer of some length has room. */
static Status fit(Chat *chat, TokenBuffer *tokens, Error *err) {
    int64_t wanted = chat->options->max_tokens < chat->capacity / 4 ? chat->options->max_tokens : chat->capacity / 4,
            dropped = 0;
    for (;;) {
        tokens->count = 0;
        TRY(chat_prompt_encode(&chat->prompt, chat->messages, chat->count, tokens, err));
        if (tokens->count + wanted <= chat->capacity || chat->count <= chat->has_system + 1) break;
        drop_messages(chat, chat->has_system, 2);
        dropped++;
    }
    if (dropped > 0)
        log_warning("the context of %lld tokens is full: %lld of the oldest exchanges are forgotten", (long long)chat->capacity,
                    (long long)dropped);
    if (tokens->count >= chat->capacity)
        FAIL("the message is %lld tokens with its template, and the context is %lld; say it shorter, or give --context",
             (long long)tokens->count, (long long)chat->capacity);
    return OK;
}

/* ---- an answer ----------------------------------------------------------------------------------------------------------- */

typedef struct Answer {
    TokenStream *stream;
    Text text;
    Status status;
    Error *err;
} Answer;

static void emit(Answer *answer, const char *text, size_t length) {
    text_add(&answer->text, text, length);
    if (length == 0) return;
    (void)fwrite(text, 1, length, stdout);
    (void)fflush(stdout);
}

static int on_token(void *context, int32_t id) {
    Answer *answer = context;
    const char *text;
    size_t length;
    answer->status = token_stream_next(answer->stream, id, &text, &length, answer->err);
    if (answer->status != OK) return 1;
    emit(answer, text, length);
    return ferror(stdout);
}

/* The prompt goes through the stream first, so that a space at the border is neither lost nor doubled. */
static Status write_answer(Chat *chat, const TokenBuffer *tokens, Answer *answer, Error *err) {
    const Options *o = chat->options;
    SampleOptions sample = {
        .spec = {.temperature = o->temperature, .top_k = o->top_k, .top_p = o->top_p, .seed = (uint64_t)o->seed + chat->turns},
        .max_new_tokens = o->max_tokens,
        .stop_ids = chat->stops,
        .stop_count = chat->stop_count,
        .reuse = 1};
    const char *text;
    size_t length;
    int64_t generated;
    TRY(token_stream_open(&answer->stream, chat->tokenizer, err));
    for (int64_t i = 0; i < tokens->count; i++)
        TRY(token_stream_next(answer->stream, tokens->ids[i], &text, &length, err));
    TRY(generate(chat->generator, tokens->ids, tokens->count, &sample, on_token, answer, &generated, err));
    TRY(answer->status);
    TRY(token_stream_flush(answer->stream, &text, &length, err));
    emit(answer, text, length);
    (void)fputc('\n', stdout);
    (void)fflush(stdout);
    if (generated == o->max_tokens) log_info("(cut after --max-tokens %lld)", (long long)o->max_tokens);
    return OK;
}

static Status answer_message(Chat *chat, Error *err) {
    TokenBuffer tokens = {0};
    Answer answer = {.err = err};
    Status status = fit(chat, &tokens, err);
    signals_install();
    if (status == OK) status = write_answer(chat, &tokens, &answer, err);
    int stopped = signals_pending();
    signals_clear();
    signals_install_fatal();
    if (status == OK) {
        add_message(chat, "assistant", answer.text.data != NULL ? answer.text.data : "", answer.text.length);
        chat->turns++;
    }
    token_stream_close(answer.stream);
    text_free(&answer.text);
    token_buffer_free(&tokens);
    if (status == OK && stopped != 0 && strcmp(signals_name(stopped), "SIGINT") != 0)
        return error_set(err, ERR_INTERRUPTED, "%s", signals_name(stopped));
    return status;
}

/* ---- lines --------------------------------------------------------------------------------------------------------------- */

/* A command of ours; *leave: /exit. */
static void obey(Chat *chat, const char *line, int *leave) {
    if (strcmp(line, "/exit") == 0 || strcmp(line, "/quit") == 0) {
        *leave = 1;
    } else if (strcmp(line, "/reset") == 0) {
        drop_messages(chat, chat->has_system, chat->count - chat->has_system);
        log_info("forgotten");
    } else if (strncmp(line, "/system", 7) == 0 && (line[7] == ' ' || line[7] == 0)) {
        begin(chat, line[7] == ' ' ? line + 8 : NULL);
        log_info(chat->has_system ? "a new conversation with this system message"
                                  : "a new conversation without a system message");
    } else {
        if (strcmp(line, "/help") != 0) log_warning("%.40s is no command", line);
        log_info("/reset forgets, /system TEXT starts anew with a system message, /exit leaves");
    }
}

static Status take_line(Chat *chat, const char *line, size_t length, int *leave, Error *err) {
    if (length == 0) return OK;
    if (line[0] == '/') {
        obey(chat, line, leave);
        return OK;
    }
    add_message(chat, "user", line, length);
    Status status = answer_message(chat, err);
    if (status == ERR_FAILED && chat->terminal) { /* one message that does not fit ends no conversation */
        log_warning("%s", err->text);
        drop_messages(chat, chat->count - 1, 1);
        return OK;
    }
    return status;
}

static Status talk(Chat *chat, Error *err) {
    char *line = NULL;
    size_t room = 0;
    Status status = OK;
    for (int leave = 0; status == OK && !leave;) {
        if (chat->terminal) {
            (void)fputs("> ", stdout);
            (void)fflush(stdout);
        }
        ssize_t length = getline(&line, &room, stdin);
        if (length < 0) break;
        while (length > 0 && (line[length - 1] == '\n' || line[length - 1] == '\r'))
            line[--length] = 0;
        status = take_line(chat, line, (size_t)length, &leave, err);
        if (ferror(stdout)) break;
    }
    free(line); /* getline's own */
    return status;
}

/* ---- the command --------------------------------------------------------------------------------------------------------- */

static Status open_chat(Chat *chat, const char *folder, Error *err) {
    const Options *o = chat->options;
    TRY(model_options_check(&o->model, folder, &chat->model, err));
    TRY(tokenizer_open(&chat->tokenizer, folder, err));
    TRY(chat_prompt_open(&chat->prompt, o->template_name, chat->tokenizer, err));
    int64_t context = chat->model.context;
    if (o->context > context)
        FAIL_USAGE("--context: the model takes %lld tokens, got %lld", (long long)context, (long long)o->context);
    chat->capacity = o->context > 0 ? o->context : context < CONTEXT_USUAL ? context : CONTEXT_USUAL;
    int64_t chunk = chat->capacity < GENERATE_CHUNK ? chat->capacity : GENERATE_CHUNK;
    size_t cache = generator_bytes(&chat->model, precision_type(o->model.precision), chat->capacity, 1);
    TRY(model_options_open(&chat->engine, &o->model, folder, &chat->model, cache, err));
    TRY(generator_create(&chat->generator, &chat->engine, chat->capacity, chunk, 1, err));
    Tape *tape = generator_tape(chat->generator);
    TRY(engine_reserve(&chat->engine, &tape, 1, chat->capacity, chat->capacity, err));
    chat->stop_count = model_stop_ids(chat->tokenizer, &chat->model, chat->stops);
    if (chat->prompt.end >= 0) chat->stops[chat->stop_count++] = chat->prompt.end;
    chat->terminal = isatty(STDIN_FILENO);
    begin(chat, o->system);
    log_info("template %s, %lld tokens of context; /help lists commands", chat->prompt.name, (long long)chat->capacity);
    return OK;
}

static void chat_free(Chat *chat) {
    drop_messages(chat, 0, chat->count);
    memory_free(chat->messages);
    generator_free(chat->generator);
    engine_close(&chat->engine);
    chat_prompt_close(&chat->prompt);
    tokenizer_close(chat->tokenizer);
    memory_free(chat);
}

Status command_chat(int argc, char **argv, Error *err) {
    Options o = {
        .model = MODEL_OPTIONS_DEFAULT, .template_name = TEMPLATE_MODEL, .max_tokens = 1024, .top_p = 1.0, .seed = 1234};
    const OptionSpec specs[] = {
        {"template", OPTION_STRING, "NAME", "\"model\" (its own) or a built-in chat template", &o.template_name},
        {"system", OPTION_STRING, "TEXT", "a system message", &o.system},
        {"context", OPTION_INTEGER, "N", "tokens that are remembered; left out: the model's, at most 4096", &o.context},
        {"max-tokens", OPTION_INTEGER, "N", "tokens of an answer at most", &o.max_tokens},
        {"temperature", OPTION_NUMBER, "T", "0: greedy", &o.temperature},
        {"top-k", OPTION_INTEGER, "K", "draw among the K likeliest; 0: all", &o.top_k},
        {"top-p", OPTION_NUMBER, "P", "draw among the likeliest that make up P", &o.top_p},
        {"seed", OPTION_INTEGER, "N", "decides the draws", &o.seed},
        MODEL_OPTION_SPECS(&o.model),
    };
    const char *folder;
    int count, helped;
    TRY(options_parse(argc, argv, &help, specs, sizeof specs / sizeof *specs, &folder, 1, 1, &count, &helped, err));
    if (helped) return OK;
    TRY(check_options(&o, err));
    signals_install_fatal();
    Chat *chat = memory_calloc(1, sizeof *chat);
    chat->options = &o;
    Status status = open_chat(chat, folder, err);
    if (status == OK) status = talk(chat, err);
    chat_free(chat);
    return status;
}
