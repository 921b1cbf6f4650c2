/* nibble distill-data: training text sampled from the model itself (LLM-QAT, Liu et al. 2023, section 3.1): a random first token, a
 * few most likely ones, the rest drawn from the model's distribution. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "core/file.h"
#include "core/log.h"
#include "core/memory.h"
#include "core/philox.h"
#include "core/text.h"
#include "train/commands.h"
#include "train/generate.h"
#include "train/model_options.h"
#include "train/signals.h"

#define FILE_LIMIT ((size_t)16 << 30) /* of what --resume reads */
#define START_TRIES 10000
#define REPORT_SECONDS 10.0

typedef struct Options {
    ModelOptions model;
    const char *out;
    int64_t samples, max_tokens, greedy, top_k, seed;
    double temperature, top_p;
    int resume, overwrite;
} Options;

static const CommandHelp help = {
    .usage = "nibble distill-data MODEL --out FILE.jsonl [options]",
    .summary =
        "Samples text from a model, for training without data: quantization-aware, or with train.loss distill. Each sample\n"
        "begins with the tokenizer's BOS and a token drawn from the whole vocabulary, goes on with --greedy most likely\n"
        "tokens, and then draws from the model until its end of text or --max-tokens. A line {\"text\": …} is appended per\n"
        "sample; sample i depends on --seed and i alone, so --resume goes on where a file ends.",
    .example =
        "nibble distill-data models/TinyLlama-1.1B --out self.jsonl --samples 2000 --max-tokens 512\n"
        "nibble train config.json --set data.path=self.jsonl --set qat.mode=merged --set train.loss=distill",
};

static Status check_options(const Options *o, Error *err) {
    if (o->out == NULL) FAIL_USAGE("want --out FILE.jsonl");
    if (o->samples < 1) FAIL_USAGE("--samples: want at least 1, got %lld", (long long)o->samples);
    if (o->greedy < 0) FAIL_USAGE("--greedy: want 0 or more, got %lld", (long long)o->greedy);
    if (o->max_tokens < o->greedy + 2)
        FAIL_USAGE("--max-tokens: want room for the first token, %lld likely ones and a drawn one, got %lld",
                   (long long)o->greedy, (long long)o->max_tokens);
    if (!(o->temperature > 0.0)) FAIL_USAGE("--temperature: want more than 0, got %g", o->temperature);
    if (o->top_k < 0) FAIL_USAGE("--top-k: want 0 (all) or more, got %lld", (long long)o->top_k);
    if (!(o->top_p > 0.0 && o->top_p <= 1.0)) FAIL_USAGE("--top-p: want more than 0 and at most 1, got %g", o->top_p);
    if (o->seed < 0) FAIL_USAGE("--seed: want at least 0, got %lld", (long long)o->seed);
    if (o->resume && o->overwrite) FAIL_USAGE("--resume and --overwrite contradict each other; give one");
    if (file_is_folder(o->out)) FAIL_USAGE("--out: %s is a folder", o->out);
    if (!o->resume && !o->overwrite && file_exists(o->out))
        FAIL_USAGE("--out: %s exists; give --resume to go on, or --overwrite", o->out);
    return OK;
}

typedef struct Sampler {
    const Options *options;
    ModelConfig model;
    Engine engine;
    Tokenizer *tokenizer;
    Generator *generator;
    TokenBuffer begin; /* BOS, where the tokenizer puts one in front */
    int32_t stops[STOP_IDS_MAX];
    int stop_count;
    int32_t *ids; /* of the sample at hand */
    int64_t count, tokens;
    int fd;
} Sampler;

static void sampler_free(Sampler *s) {
    if (s->fd >= 0) (void)close(s->fd);
    memory_free(s->ids);
    generator_free(s->generator);
    engine_close(&s->engine);
    token_buffer_free(&s->begin);
    tokenizer_close(s->tokenizer);
    memory_free(s);
}

static Status open_sampler(Sampler *s, const char *folder, Error *err) {
    const Options *o = s->options;
    TRY(model_options_check(&o->model, folder, &s->model, err));
    TRY(tokenizer_open(&s->tokenizer, folder, err));
    TRY(tokenizer_encode(s->tokenizer, "", 0, 1, 0, &s->begin, err));
    if (s->begin.count > 0 && s->begin.ids[s->begin.count - 1] == tokenizer_eos(s->tokenizer)) s->begin.count--;
    int64_t capacity = s->begin.count + o->max_tokens;
    if (capacity > s->model.context)
        FAIL_USAGE("--max-tokens: the model takes %lld tokens, got %lld", (long long)s->model.context, (long long)capacity);
    int64_t chunk = s->begin.count + 1;
    TRY(model_options_open(&s->engine, &o->model, folder, &s->model,
                           generator_bytes(&s->model, precision_type(o->model.precision), capacity, 1), err));
    TRY(generator_create(&s->generator, &s->engine, capacity, chunk, 1, err));
    Tape *tape = generator_tape(s->generator);
    TRY(engine_reserve(&s->engine, &tape, 1, capacity, capacity, err));
    s->stop_count = model_stop_ids(s->tokenizer, &s->model, s->stops);
    s->ids = memory_alloc((size_t)(capacity + 1) * sizeof *s->ids);
    return OK;
}

/* ---- one sample ------------------------------------------------------------------------------------------------------------ */

/* Text of its own: not special, and whole characters. */
static int can_start(const Sampler *s, int32_t id) {
    Error ignored;
    char *text;
    size_t length;
    if (tokenizer_is_special(s->tokenizer, id)) return 0;
    if (tokenizer_decode(s->tokenizer, &id, 1, 1, &text, &length, &ignored) != OK) return 0;
    int good = length > 0 && strstr(text, "\xEF\xBF\xBD") == NULL;
    memory_free(text);
    return good;
}

static Status draw_start(const Sampler *s, uint64_t seed, int32_t *id, Error *err) {
    int64_t vocab = tokenizer_vocab_size(s->tokenizer);
    if (vocab > s->model.vocab) vocab = s->model.vocab;
    for (uint64_t i = 0; i < START_TRIES; i++) {
        uint32_t counter[4] = {(uint32_t)i, 0, 0, 1}, words[4];
        philox4x32(counter, (uint32_t)seed, (uint32_t)(seed >> 32), words);
        *id = (int32_t)((uint64_t)words[0] * (uint64_t)vocab >> 32);
        if (can_start(s, *id)) return OK;
    }
    FAIL("no token of the vocabulary is text of its own");
}

static int on_token(void *context, int32_t id) {
    Sampler *s = context;
    s->ids[s->count++] = id;
    return signals_pending();
}

static Status extend(Sampler *s, SampleSpec spec, int64_t most, int64_t *added, Error *err) {
    SampleOptions sample = {.spec = spec,
                            .max_new_tokens = most,
                            .stop_ids = s->stops,
                            .stop_count = s->stop_count,
                            .reuse = s->count > s->begin.count + 1};
    return generate(s->generator, s->ids, s->count, &sample, on_token, s, added, err);
}

static Status sample_text(Sampler *s, int64_t index, Error *err) {
    const Options *o = s->options;
    uint32_t counter[4] = {(uint32_t)index, (uint32_t)(index >> 32), 0, 0}, words[4];
    philox4x32(counter, (uint32_t)o->seed, (uint32_t)(o->seed >> 32), words);
    uint64_t seed = (uint64_t)words[1] << 32 | words[0]; /* of this sample alone */
    SampleSpec drawn = {.temperature = o->temperature, .top_k = o->top_k, .top_p = o->top_p, .seed = seed};
    memcpy(s->ids, s->begin.ids, (size_t)s->begin.count * sizeof *s->ids);
    s->count = s->begin.count + 1;
    TRY(draw_start(s, seed, &s->ids[s->count - 1], err));
    int64_t added = o->greedy, drew = 0;
    if (o->greedy > 0) TRY(extend(s, (SampleSpec){.top_p = 1.0}, o->greedy, &added, err));
    if (added == o->greedy) TRY(extend(s, drawn, o->max_tokens - 1 - o->greedy, &drew, err));
    s->tokens += 1 + added + drew;
    return OK;
}

static Status append_text(Sampler *s, Error *err) {
    char *text;
    size_t length;
    Text line = {0};
    TRY(tokenizer_decode(s->tokenizer, s->ids, s->count, 1, &text, &length, err));
    text_adds(&line, "{\"text\": ");
    text_add_json_string(&line, text, length);
    text_adds(&line, "}\n");
    Status status = file_append(s->fd, s->options->out, line.data, line.length, err);
    text_free(&line);
    memory_free(text);
    return status;
}

/* ---- the file -------------------------------------------------------------------------------------------------------------- */

/* Opens it for appending; *done: lines that are there. A last line without its end is cut off. */
static Status open_file(Sampler *s, int64_t *done, Error *err) {
    const Options *o = s->options;
    char *text = NULL;
    size_t length = 0, whole = 0;
    *done = 0;
    if (o->resume && file_exists(o->out)) TRY(file_read(o->out, FILE_LIMIT, &text, &length, err));
    for (size_t i = 0; i < length; i++) {
        if (text[i] != '\n') continue;
        whole = i + 1;
        (*done)++;
    }
    memory_free(text);
    s->fd = open(o->out, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (s->fd < 0 || ftruncate(s->fd, (off_t)whole) != 0) FAIL("%s: cannot be written: %s", o->out, strerror(errno));
    return OK;
}

static Status run(Sampler *s, Error *err) {
    const Options *o = s->options;
    int64_t done;
    TRY(open_file(s, &done, err));
    if (done > 0) log_info("--resume: %s has %lld samples", o->out, (long long)done);
    double begin = clock_seconds(), reported = begin;
    for (int64_t i = done; i < o->samples; i++) {
        TRY(sample_text(s, i, err));
        if (signals_pending())
            return error_set(err, ERR_INTERRUPTED, "interrupted after %lld samples; --resume goes on", (long long)i);
        TRY(append_text(s, err));
        double now = clock_seconds();
        if (now - reported < REPORT_SECONDS && i + 1 < o->samples) continue;
        reported = now;
        log_info("%lld of %lld samples, %lld tokens, %.1f tokens/s", (long long)(i + 1), (long long)o->samples,
                 (long long)s->tokens, (double)s->tokens / (now - begin));
    }
    if (fsync(s->fd) != 0) FAIL("%s: cannot be synced: %s", o->out, strerror(errno));
    return OK;
}

Status command_distill_data(int argc, char **argv, Error *err) {
    Options o = {.model = MODEL_OPTIONS_DEFAULT,
                 .samples = 1000,
                 .max_tokens = 256,
                 .greedy = 4,
                 .temperature = 1.0,
                 .top_p = 1.0,
                 .seed = 1234};
    const OptionSpec specs[] = {
        {"out", OPTION_STRING, "FILE", "the JSONL file", &o.out},
        {"samples", OPTION_INTEGER, "N", "lines", &o.samples},
        {"max-tokens", OPTION_INTEGER, "N", "of a sample, its first one included", &o.max_tokens},
        {"greedy", OPTION_INTEGER, "N", "most likely tokens after the first", &o.greedy},
        {"temperature", OPTION_NUMBER, "T", "of the draws", &o.temperature},
        {"top-k", OPTION_INTEGER, "K", "draw among the K likeliest; 0: all", &o.top_k},
        {"top-p", OPTION_NUMBER, "P", "draw among the likeliest that make up P", &o.top_p},
        {"seed", OPTION_INTEGER, "N", "decides the draws", &o.seed},
        {"resume", OPTION_FLAG, NULL, "go on where the file ends", &o.resume},
        {"overwrite", OPTION_FLAG, NULL, "start the file anew", &o.overwrite},
        MODEL_OPTION_SPECS(&o.model),
    };
    const char *folder;
    int count, helped;
    TRY(options_parse(argc, argv, &help, specs, sizeof specs / sizeof *specs, &folder, 1, 1, &count, &helped, err));
    if (helped) return OK;
    TRY(check_options(&o, err));
    signals_install();
    Sampler *sampler = memory_calloc(1, sizeof *sampler);
    sampler->options = &o;
    sampler->fd = -1;
    Status status = open_sampler(sampler, folder, err);
    if (status == OK) status = run(sampler, err);
    sampler_free(sampler);
    return status;
}
