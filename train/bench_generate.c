/* nibble bench generate: tokens a second of one sequence, and what share of the memory's read bandwidth they make of the bytes
 * that a token reads.
 *
 * Rounds alternate between reading a buffer (ceiling_read) and generating, so that both see the same machine; the medians count.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "quant/ggml.h"
#include "train/bench.h"
#include "train/ceiling.h"
#include "train/ceiling_store.h"
#include "train/generate.h"

#define ROUND_TOKENS 17 /* the first one's time is not counted: it runs a row of the prompt again */
#define KINDS_MAX 16

typedef struct Clock {
    double first, last;
    int64_t tokens;
    int32_t *ids; /* what was generated goes here */
} Clock;

typedef struct TokenBytes {
    double linear, constants, head, norms, cache;
} TokenBytes;

typedef struct KindSeconds {
    const char *kind;
    double seconds;
} KindSeconds;

typedef struct GenerateBench {
    const BenchOptions *options;
    Engine engine;
    Generator *generator;
    Arena memory; /* what is read for the bandwidth */
    int32_t *ids;
    int64_t count;         /* of ids */
    double *tokens, *read; /* [rounds]: tokens a second, bytes a second */
    double *fraction;      /* [rounds] */
    double steps, rows;    /* timed, and the rows of the cache that they read, all together */
    TokenBytes bytes;
    double best_read; /* ever measured with so many threads */
    KindSeconds kinds[KINDS_MAX];
    int kind_count;
} GenerateBench;

static double bytes_of(const TokenBytes *b) {
    return b->linear + b->constants + b->head + b->norms + b->cache;
}

/* ---- what a token reads -------------------------------------------------------------------------------------------------- */

static void add_weight(const WeightView *w, double *codes, double *constants) {
    double values = (double)(w->rows * w->cols), groups = w->block_size > 0 ? values / (double)w->block_size : 0.0;
    switch (w->format) {
        case WEIGHT_F32: *codes += 4.0 * values; break;
        case WEIGHT_BF16: *codes += 2.0 * values; break;
        case WEIGHT_NF4:
        case WEIGHT_FP4:
            *codes += values / 2.0;
            *constants += w->nested_codes != NULL ? groups + 4.0 * groups / NESTED_BLOCK : 4.0 * groups;
            break;
        case WEIGHT_INT8:
            *codes += values;
            *constants += 4.0 * (double)w->rows;
            break;
        case WEIGHT_INT4:
            *codes += values / 2.0;
            *constants += 4.0 * groups;
            break;
        case WEIGHT_GROUPED:
            *codes += (double)(w->rows * grouped_row_bytes(w->cols, w->bits));
            *constants += (w->zeros != NULL ? 5.0 : 4.0) * groups;
            break;
        case WEIGHT_GGML: {
            const GgmlTypeInfo *type = ggml_type_info(w->ggml_type);
            *codes += values / (double)type->block * (double)type->bytes;
            break;
        }
        default: break;
    }
}

static void count_bytes(GenerateBench *b) {
    const Engine *engine = &b->engine;
    const ModelConfig *model = &engine->model;
    TokenBytes *bytes = &b->bytes;
    double act = (double)dtype_size(engine->exec.config.act);
    for (int32_t id = WEIGHT_GLOBALS; id < weight_count(model); id++) {
        WeightView view = weights_view(engine->weights, id);
        int linear = (id - WEIGHT_GLOBALS) % LAYER_WEIGHTS < LAYER_LINEARS;
        if (view.rows > 0) add_weight(&view, linear ? &bytes->linear : &bytes->norms, &bytes->constants);
    }
    WeightView head = weights_view(engine->weights, WEIGHT_HEAD), norm = weights_view(engine->weights, WEIGHT_FINAL_NORM);
    add_weight(&head, &bytes->head, &bytes->head);
    add_weight(&norm, &bytes->norms, &bytes->norms);
    bytes->cache = (double)b->options->sequences * b->rows / b->steps * 2.0 * act *
                   (double)(model->layers * model->kv_heads * model->head_dim);
}

/* ---- measuring ----------------------------------------------------------------------------------------------------------- */

static int on_token(void *context, int32_t id) {
    Clock *clock = context;
    clock->last = clock_seconds();
    if (clock->tokens == 0) clock->first = clock->last;
    clock->ids[clock->tokens++] = id;
    return 0;
}

/* Several sequences from the same prompt; counted from where the last one has been prepared. */
static Status run_round_beside(GenerateBench *b, double *rate, Error *err) {
    GenerateJob jobs[GENERATE_BESIDE];
    Clock clocks[GENERATE_BESIDE] = {{0}};
    int32_t ids[GENERATE_BESIDE][ROUND_TOKENS];
    int64_t count = b->options->sequences;
    for (int64_t s = 0; s < count; s++) {
        clocks[s].ids = ids[s];
        jobs[s] = (GenerateJob){.prompt = b->ids,
                                .count = b->count,
                                .options = {.spec = {.top_p = 1.0}, .max_new_tokens = ROUND_TOKENS},
                                .callback = on_token,
                                .context = &clocks[s]};
    }
    TRY(generate_all(b->generator, jobs, count, err));
    if (clocks[count - 1].tokens != ROUND_TOKENS) return error_set(err, ERR_INTERRUPTED, "bench generate: interrupted");
    for (int64_t i = 1; i < ROUND_TOKENS; i++, b->steps += 1.0)
        b->rows += (double)(b->count + i);
    *rate = (double)(count * (ROUND_TOKENS - 1)) / (clocks[count - 1].last - clocks[count - 1].first);
    return OK;
}

/* ROUND_TOKENS more; *rate: a second, of all but the first. */
static Status run_round(GenerateBench *b, double *rate, Error *err) {
    if (b->options->sequences > 1) return run_round_beside(b, rate, err);
    Clock clock = {.ids = b->ids + b->count};
    SampleOptions sample = {.spec = {.top_p = 1.0}, .max_new_tokens = ROUND_TOKENS, .reuse = 1};
    int64_t generated;
    TRY(generate(b->generator, b->ids, b->count, &sample, on_token, &clock, &generated, err));
    if (generated != ROUND_TOKENS) return error_set(err, ERR_INTERRUPTED, "bench generate: interrupted");
    for (int64_t i = 1; i < ROUND_TOKENS; i++, b->steps += 1.0)
        b->rows += (double)(b->count + i);
    b->count += ROUND_TOKENS;
    *rate = (double)(ROUND_TOKENS - 1) / (clock.last - clock.first);
    return OK;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median(double *values, int64_t count) {
    qsort(values, (size_t)count, sizeof *values, by_value);
    return count % 2 != 0 ? values[count / 2] : 0.5 * (values[count / 2 - 1] + values[count / 2]);
}

static int by_time(const void *a, const void *b) {
    double x = ((const KindSeconds *)a)->seconds, y = ((const KindSeconds *)b)->seconds;
    return (x < y) - (x > y);
}

/* One more round, by kind of operation. */
static Status profile_round(GenerateBench *b, Error *err) {
    TapePlan plan;
    tape_plan(generator_tape(b->generator), &plan);
    double *seconds = memory_calloc((size_t)plan.instructions, sizeof *seconds), rate;
    generator_profile(b->generator, seconds);
    Status status = run_round(b, &rate, err);
    generator_profile(b->generator, NULL);
    for (int64_t i = 0; i < plan.instructions; i++) {
        const char *kind = tape_instruction(generator_tape(b->generator), i).kind;
        int at = 0;
        while (at < b->kind_count && strcmp(b->kinds[at].kind, kind) != 0)
            at++;
        if (at == KINDS_MAX) continue;
        if (at == b->kind_count) b->kinds[b->kind_count++] = (KindSeconds){.kind = kind};
        b->kinds[at].seconds += seconds[i] / ROUND_TOKENS;
    }
    qsort(b->kinds, (size_t)b->kind_count, sizeof b->kinds[0], by_time);
    memory_free(seconds);
    return status;
}

static Status measure(GenerateBench *b, Error *err) {
    double rate;
    TRY(run_round(b, &rate, err)); /* warms up, and fills the cache with the prompt */
    (void)ceiling_read(b->engine.pool, &b->memory);
    if (b->options->sequences == 1) TRY(profile_round(b, err)); /* a round beside others has their prompts in it */
    b->steps = b->rows = 0.0;
    for (int64_t r = 0; r < b->options->steps; r++) {
        double before = ceiling_read(b->engine.pool, &b->memory);
        TRY(run_round(b, &b->tokens[r], err));
        double after = ceiling_read(b->engine.pool, &b->memory);
        b->read[r] = 0.5 * (before + after);
    }
    count_bytes(b);
    for (int64_t r = 0; r < b->options->steps; r++) {
        b->fraction[r] = b->tokens[r] / (double)b->options->sequences * bytes_of(&b->bytes) / b->read[r];
        b->best_read = ceiling_best("memory", "read", b->engine.exec.config.threads, b->read[r]);
    }
    return OK;
}

/* ---- results ------------------------------------------------------------------------------------------------------------- */

static void print_result(GenerateBench *b, const Config *config, Text *out) {
    const BenchOptions *o = b->options;
    const char *model = o->model != NULL ? o->model : o->arch, *variant = b->engine.backend.variant.linear;
    const char *quant = strcmp(config->method, "qlora") == 0 ? config->quant.type : "none";
    double tokens = bench_median(b->tokens, o->steps), read = bench_median(b->read, o->steps);
    double fraction = bench_median(b->fraction, o->steps);
    double all = 0.0, bytes = bytes_of(&b->bytes);
    int threads = b->engine.exec.config.threads;
    for (int i = 0; i < b->kind_count; i++)
        all += b->kinds[i].seconds;
    if (o->json) {
        text_adds(out, "{\"model\": ");
        text_add_json_string(out, model, strlen(model));
        text_addf(out,
                  ", \"quant\": \"%s\", \"variant\": \"%s\", \"threads\": %d, \"sequences\": %lld, \"rounds\": %lld, \"rows\": "
                  "%.0f, ",
                  quant, variant, threads, (long long)o->sequences, (long long)o->steps, b->rows / b->steps);
        text_addf(out, "\"tokens_per_second\": %.6g, \"bytes_per_step\": %.0f, \"bytes\": {", tokens, bytes);
        text_addf(out, "\"codes\": %.0f, \"constants\": %.0f, \"head\": %.0f, \"cache\": %.0f, \"norms\": %.0f}, ",
                  b->bytes.linear, b->bytes.constants, b->bytes.head, b->bytes.cache, b->bytes.norms);
        text_addf(out, "\"read_bandwidth\": %.6g, \"best_read_bandwidth\": %.6g, \"fraction\": %.4f, \"kinds\": [", read,
                  b->best_read, fraction);
        for (int i = 0; i < b->kind_count; i++)
            text_addf(out, "%s{\"kind\": \"%s\", \"seconds\": %.6g, \"share\": %.4f}", i > 0 ? ", " : "", b->kinds[i].kind,
                      b->kinds[i].seconds, b->kinds[i].seconds / all);
        text_adds(out, "]}\n");
        return;
    }
    text_addf(out, "%s: base %s, %s, %d threads; %lld sequence%s of %.0f tokens, medians of %lld rounds\n", model, quant,
              variant, threads, (long long)o->sequences, o->sequences > 1 ? "s" : "", b->rows / b->steps, (long long)o->steps);
    text_addf(out, "speed          %.1f tokens/s\n%s %.1f MB: codes %.1f, constants %.1f, head %.1f, ", tokens,
              o->sequences > 1 ? "a step reads  " : "a token reads ", bytes / 1e6, b->bytes.linear / 1e6,
              b->bytes.constants / 1e6, b->bytes.head / 1e6);
    text_addf(
        out, "keys and values %.1f, norms %.1f\nthat makes     %.1f GB/s, %.1f %% of the %.1f GB/s that the same threads ",
        b->bytes.cache / 1e6, b->bytes.norms / 1e6, tokens / (double)o->sequences * bytes / 1e9, 100.0 * fraction, read / 1e9);
    text_addf(out, "read (best ever: %.1f GB/s)\n\n", b->best_read / 1e9);
    for (int i = 0; i < b->kind_count; i++)
        text_addf(out, "  %-10s %9.3f ms %6.1f %%\n", b->kinds[i].kind, 1e3 * b->kinds[i].seconds,
                  100.0 * b->kinds[i].seconds / all);
}

/* ---- the whole ----------------------------------------------------------------------------------------------------------- */

static Status open_generator(GenerateBench *b, const Config *config, Error *err) {
    const BenchOptions *o = b->options;
    EngineOptions options = {.model = o->arch != NULL ? o->arch : o->model,
                             .act = precision_type(config->precision),
                             .threads = (int)o->threads,
                             .cpu = getenv("NIBBLE_CPU"),
                             .device = "cpu",
                             .random_weights = o->arch != NULL,
                             .small_head = strcmp(o->head, "q8_0") == 0,
                             .method = METHOD_FROZEN,
                             .seed = (uint64_t)config->seed};
    TRY(weight_options_from_config(config, &options.weights, err));
    TRY(engine_open(&b->engine, &options, err));
    int64_t prompt = o->tokens, capacity = prompt + (o->steps + 2) * ROUND_TOKENS;
    if (capacity > b->engine.model.context)
        FAIL_USAGE("--tokens %lld and --steps %lld: %lld tokens are generated from there, and the model takes %lld",
                   (long long)prompt, (long long)o->steps, (long long)(capacity - prompt), (long long)b->engine.model.context);
    int64_t chunk = prompt < GENERATE_CHUNK ? prompt : GENERATE_CHUNK;
    TRY(generator_create_beside(&b->generator, &b->engine, capacity, chunk, 1, o->sequences, err));
    Tape *tape = generator_tape(b->generator);
    TRY(engine_reserve(&b->engine, &tape, 1, capacity, capacity, err));
    b->ids = memory_alloc((size_t)capacity * sizeof *b->ids);
    for (b->count = 0; b->count < prompt; b->count++)
        b->ids[b->count] = (int32_t)((b->count * 7919 + 13) % b->engine.model.vocab);
    b->tokens = memory_alloc((size_t)o->steps * sizeof *b->tokens);
    b->read = memory_alloc((size_t)o->steps * sizeof *b->read);
    b->fraction = memory_alloc((size_t)o->steps * sizeof *b->fraction);
    return ceiling_memory(&b->memory, err);
}

Status bench_generate(const BenchOptions *options, Text *out, Error *err) {
    Config config = {0};
    GenerateBench *b = memory_calloc(1, sizeof *b);
    b->options = options;
    Status status = config_load(&config, NULL, options->overrides, options->override_count, err);
    if (status == OK) status = open_generator(b, &config, err);
    if (status == OK) status = measure(b, err);
    if (status == OK) print_result(b, &config, out);
    generator_free(b->generator);
    engine_close(&b->engine);
    arena_free(&b->memory);
    config_free(&config);
    memory_free(b->ids);
    memory_free(b->tokens);
    memory_free(b->read);
    memory_free(b->fraction);
    memory_free(b);
    return status;
}
