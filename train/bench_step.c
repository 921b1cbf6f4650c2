/* nibble bench step: tokens a second of an optimizer step, where its time goes, and how near the products come to what this
 * machine's units reach (train/ceiling.h). */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "train/bench.h"
#include "train/batches.h"
#include "train/bench_step_device.h"
#include "train/ceiling.h"
#include "train/engine.h"
#include "train/optimizer.h"
#include "train/run_plan.h"

#define KINDS_MAX 32

typedef struct KindTime {
    const char *kind;
    Pass pass;
    double seconds, flops; /* of one micro-batch; flops 0: not counted */
} KindTime;

typedef struct StepBench {
    const BenchOptions *options;
    Config config;
    Engine engine;
    Tape *tape;
    RunPlan plan;
    Arena buffers;
    BatchBuffer buffer;
    Batch batch;
    int64_t length;
    double loss_sum;
    double best, mean;    /* seconds of a step */
    double peak;          /* FLOP/s */
    double flops;         /* of a step */
    double dequant, idle; /* shares of a step; of a device */
    size_t in_use;        /* bytes of a device */
    KindTime kinds[KINDS_MAX];
    int kind_count;
} StepBench;

/* ---- setting up ---------------------------------------------------------------------------------------------------------- */

/* What is recomputed, and on a device what lies where: as `nibble train` chooses for micro-batches of --tokens. A device's ceiling is
 * measured before, while there is room for it; its kernels are then there as well. */
static Status choose_plan(StepBench *b, const EngineOptions *options, Error *err) {
    ModelConfig *model = memory_alloc(sizeof *model);
    WeightFacts *facts = NULL;
    Device device = {0};
    Pool *pool = NULL;
    size_t limit;
    b->config.train.micro_batch_tokens = b->options->tokens;
    Status status = model_config_read(options->model, model, err);
    if (status == OK && !options->random_weights && options->method != METHOD_FULL)
        status = weights_facts(&facts, options->model, model, err);
    if (status == OK) status = device_open(&device, options->device, options->cpu, err);
    if (status == OK) status = pool_create(&pool, options->threads, err);
    if (status == OK && device.backend.on_device) {
        Exec exec = {.config = {.act = options->act, .threads = pool_threads(pool)}, .pool = pool, .device = device.context};
        b->peak = ceiling_gemm(&device.backend, &exec);
    }
    if (status == OK) status = run_memory_limit(&b->config, &device, &limit, err);
    if (status == OK) status = run_plan(&b->config, model, facts, &device.backend, pool_threads(pool), 1, limit, &b->plan, err);
    pool_free(pool);
    device_close(&device);
    weights_facts_free(facts);
    memory_free(model);
    return status;
}

static Status open_engine(StepBench *b, const char *folder, Error *err) {
    const Config *config = &b->config;
    int full = strcmp(config->method, "full") == 0;
    EngineOptions options = {.model = folder,
                             .act = precision_type(config->precision),
                             .threads = (int)b->options->threads,
                             .cpu = getenv("NIBBLE_CPU"),
                             .device = b->options->device != NULL ? b->options->device : "auto",
                             .random_weights = b->options->arch != NULL,
                             .method = full ? METHOD_FULL : METHOD_LORA,
                             .seed = (uint64_t)config->seed,
                             .config = config,
                             .optimizer = 1};
    TRY(weight_options_from_config(config, &options.weights, err));
    TRY(choose_plan(b, &options, err));
    options.weights.places = b->plan.places;
    TRY(engine_open(&b->engine, &options, err));
    b->engine.stashed_layers = b->plan.stashed_layers;
    int64_t tokens = b->options->tokens;
    TRY(engine_tape(&b->engine, TAPE_TRAIN, b->plan.recompute, tokens, tokens, 0, &b->tape, err));
    return engine_reserve(&b->engine, &b->tape, 1, tokens, tokens, err);
}

/* Sequences of one length, the last one shorter where they do not fill the micro-batch; every token but the first is trained. */
static Status fill_batch(StepBench *b, Error *err) {
    int64_t tokens = b->options->tokens, context = b->engine.model.context, usual = tokens < 512 ? tokens : 512;
    b->length = b->options->length > 0 ? b->options->length : context < usual ? context : usual;
    if (b->length > tokens) FAIL_USAGE("--seq: want at most --tokens %lld, got %lld", (long long)tokens, (long long)b->length);
    TRY(arena_create(&b->buffers, "micro-batch", batch_buffer_bytes(tokens), err));
    TRY(batch_buffer_take(&b->buffer, &b->buffers, tokens, err));
    int64_t sequences = 0, supervised = 0;
    for (int64_t t = 0; t < tokens; t++) {
        int64_t position = t % b->length;
        if (position == 0) b->buffer.starts[sequences++] = t;
        b->buffer.ids[t] = (int32_t)((t * 7919 + 13) % b->engine.model.vocab);
        b->buffer.positions[t] = (int32_t)position;
        b->buffer.samples[t] = (uint64_t)sequences;
        if (position + 1 == b->length || t + 1 == tokens) continue;
        b->buffer.rows[supervised] = (int32_t)t;
        b->buffer.targets[supervised++] = (int32_t)(((t + 1) * 7919 + 13) % b->engine.model.vocab);
    }
    b->buffer.starts[sequences] = tokens;
    b->batch = (Batch){.tokens = tokens,
                       .sequences = sequences,
                       .starts = b->buffer.starts,
                       .ids = b->buffer.ids,
                       .positions = b->buffer.positions,
                       .samples = b->buffer.samples,
                       .supervised = supervised,
                       .rows = b->buffer.rows,
                       .targets = b->buffer.targets,
                       .grad_scale = supervised > 0 ? 1.0f / (float)supervised : 0.0f,
                       .seed = (uint64_t)b->config.seed,
                       .dropout = 1};
    return OK;
}

/* ---- measuring ----------------------------------------------------------------------------------------------------------- */

static Status run_step(StepBench *b, int64_t t, double *profile, double *optimizer_seconds, Error *err) {
    Engine *engine = &b->engine;
    TRY(engine_clear_gradients(engine, err));
    TapeRun run = engine_run(engine, &b->batch);
    run.loss_sum = &b->loss_sum;
    run.profile = profile;
    TRY(tape_run(b->tape, &run, err));
    double begin = clock_seconds();
    double norm = gradient_norm(&engine->exec, &engine->backend, &engine->params, &engine->state);
    optimizer_step(&engine->exec, &engine->backend, &b->config, &engine->params, &engine->state, engine->exec.config.act,
                   b->config.train.lr, clip_factor(norm, b->config.train.max_grad_norm), t);
    *optimizer_seconds = clock_seconds() - begin;
    return OK;
}

static KindTime *kind_entry(StepBench *b, const char *kind, Pass pass) {
    for (int i = 0; i < b->kind_count; i++)
        if (strcmp(b->kinds[i].kind, kind) == 0 && b->kinds[i].pass == pass) return &b->kinds[i];
    if (b->kind_count == KINDS_MAX) return &b->kinds[KINDS_MAX - 1];
    b->kinds[b->kind_count] = (KindTime){.kind = kind, .pass = pass};
    return &b->kinds[b->kind_count++];
}

/* FLOPs as model_flops_per_token counts them, by kind. */
static double kind_flops(const StepBench *b, const char *kind, Pass pass) {
    const ModelConfig *c = &b->engine.model;
    double tokens = (double)b->batch.tokens, layers = (double)c->layers, hidden = (double)c->hidden;
    double width = (double)(c->heads * c->head_dim), kv_width = (double)(c->kv_heads * c->head_dim);
    int full = b->engine.method == METHOD_FULL, backward = pass == PASS_BACKWARD;
    if (strcmp(kind, "linear") == 0) {
        double forward = 2.0 * hidden * (2.0 * width + 2.0 * kv_width + 3.0 * (double)c->intermediate);
        return tokens * layers * forward * (backward && full ? 2.0 : 1.0);
    }
    if (strcmp(kind, "attention") == 0) return tokens * layers * 2.0 * (double)b->length * width * (backward ? 2.5 : 1.0);
    if (strcmp(kind, "head") == 0) return (double)b->batch.supervised * hidden * (double)c->vocab * (full ? 6.0 : 4.0);
    return 0.0;
}

static int by_time(const void *a, const void *b) {
    double x = ((const KindTime *)a)->seconds, y = ((const KindTime *)b)->seconds;
    return (x < y) - (x > y);
}

static void sum_kinds(StepBench *b, const double *profile, int64_t instructions, double optimizer_seconds) {
    for (int64_t i = 0; i < instructions; i++) {
        TapeInstruction instruction = tape_instruction(b->tape, i);
        KindTime *entry = kind_entry(b, instruction.kind, instruction.pass);
        entry->seconds += profile[i];
        entry->flops = kind_flops(b, instruction.kind, instruction.pass);
    }
    kind_entry(b, "optimizer", PASS_BACKWARD)->seconds += optimizer_seconds;
    qsort(b->kinds, (size_t)b->kind_count, sizeof b->kinds[0], by_time);
    for (int i = 0; i < b->kind_count; i++)
        b->flops += b->kinds[i].flops;
}

static Status measure(StepBench *b, Error *err) {
    TapePlan plan;
    tape_plan(b->tape, &plan);
    double optimizer_seconds, sum = 0.0;
    double idle = 0.0, dense;
    if (!b->engine.backend.on_device) b->peak = ceiling_gemm(&b->engine.backend, &b->engine.exec);
    TRY(bench_dequantization(&b->engine, b->options->tokens, &dense, err));
    /* warms up; a device records the second one */
    int64_t warm = b->engine.backend.part_begin != NULL ? 2 : 1;
    for (int64_t s = 0; s < warm + b->options->steps; s++) {
        double begin = clock_seconds();
        TRY(run_step(b, s + 1, NULL, &optimizer_seconds, err));
        double seconds = clock_seconds() - begin;
        if (s + 1 == warm) idle = bench_idle(&b->engine);
        if (s < warm) continue;
        sum += seconds;
        if (s == warm || seconds < b->best) b->best = seconds;
    }
    b->mean = sum / (double)b->options->steps;
    b->idle = (bench_idle(&b->engine) - idle) / sum;
    dense *= 1.0 - (double)b->plan.places.dense_layers / (double)b->engine.model.layers;
    b->dequant = dense * (b->plan.recompute == RECOMPUTE_LAYERS ? 3.0 : 2.0) / b->mean;
    TRY(bench_device_in_use(&b->engine, &b->in_use, err));
    double *profile = memory_calloc((size_t)plan.instructions, sizeof *profile);
    Status status = run_step(b, warm + b->options->steps + 1, profile, &optimizer_seconds, err);
    if (status == OK) sum_kinds(b, profile, plan.instructions, optimizer_seconds);
    memory_free(profile);
    return status;
}

/* ---- results ------------------------------------------------------------------------------------------------------------- */

static const char *pass_name(Pass pass) {
    return pass == PASS_FORWARD ? "forward" : pass == PASS_RECOMPUTE ? "recompute" : "backward";
}

static void print_kinds(const StepBench *b, Text *out) {
    double all = 0.0;
    for (int i = 0; i < b->kind_count; i++)
        all += b->kinds[i].seconds;
    for (int i = 0; i < b->kind_count; i++) {
        const KindTime *k = &b->kinds[i];
        double share = all > 0.0 ? k->seconds / all : 0.0, rate = k->seconds > 0.0 ? k->flops / k->seconds : 0.0;
        int counted = k->flops > 0.0 && isfinite(b->peak);
        const char *pass = strcmp(k->kind, "optimizer") == 0 ? "" : pass_name(k->pass);
        if (b->options->json) {
            text_addf(out, "%s{\"kind\": \"%s\", \"pass\": \"%s\", \"seconds\": %.6g, \"share\": %.4f", i > 0 ? ", " : "",
                      k->kind, pass, k->seconds, share);
            if (counted) text_addf(out, ", \"flops\": %.6g, \"peak_fraction\": %.4f", k->flops, rate / b->peak);
            text_adds(out, "}");
            continue;
        }
        text_addf(out, "  %-10s %-10s %9.2f ms %6.1f %%", k->kind, pass, 1e3 * k->seconds, 100.0 * share);
        if (counted) text_addf(out, " %9.1f GFLOP/s %6.1f %% of peak", rate / 1e9, 100.0 * rate / b->peak);
        text_adds(out, "\n");
    }
}

static void print_result(const StepBench *b, Text *out) {
    const Backend *backend = &b->engine.backend;
    double tokens = (double)b->batch.tokens, rate = b->flops / b->mean;
    const char *quant = strcmp(b->config.method, "qlora") == 0 ? b->config.quant.type : "none";
    const char *model = b->options->model != NULL ? b->options->model : b->options->arch;
    if (b->options->json) {
        text_adds(out, "{\"model\": ");
        text_add_json_string(out, model, strlen(model));
        text_addf(out, ", \"method\": \"%s\", \"quant\": \"%s\", \"variant\": \"%s\", \"threads\": %d, ", b->config.method,
                  quant, backend->variant.linear, b->engine.exec.config.threads);
        text_addf(out, "\"device\": \"%s\", \"device_bytes\": %zu, ", b->engine.device.name, engine_device_bytes(&b->engine));
        if (backend->on_device) text_addf(out, "\"choice\": \"%s\", ", b->plan.choice);
        text_addf(out, "\"tokens\": %lld, \"length\": %lld, \"steps\": %lld, ", (long long)b->batch.tokens,
                  (long long)b->length, (long long)b->options->steps);
        text_addf(out, "\"seconds_mean\": %.6g, \"seconds_best\": %.6g, \"tokens_per_second\": %.6g, \"flops\": %.6g, ",
                  b->mean, b->best, tokens / b->mean, b->flops);
        if (isfinite(b->peak))
            text_addf(out, "\"gemm_flops\": %.6g, \"fraction_of_gemm_peak\": %.4f, ", b->peak, rate / b->peak);
        if (backend->on_device)
            text_addf(out, "\"dequantization_share\": %.4f, \"idle_share\": %.4f, \"peak_bytes\": %zu, ", b->dequant, b->idle,
                      b->in_use);
        text_adds(out, "\"kinds\": [");
        print_kinds(b, out);
        text_adds(out, "]}\n");
        return;
    }
    text_addf(out, "%s: method %s, base %s, %s, %d threads; %lld tokens a step in sequences of %lld\n", model, b->config.method,
              quant, backend->variant.linear, b->engine.exec.config.threads, (long long)b->batch.tokens, (long long)b->length);
    if (backend->on_device) {
        char bytes[32], all[32];
        text_addf(out, "device         %s, %s in its arenas, %s in use at most\n", b->engine.device.name,
                  format_bytes((double)engine_device_bytes(&b->engine), bytes, sizeof bytes),
                  format_bytes((double)b->in_use, all, sizeof all));
        text_addf(out, "chosen         %s\n", b->plan.choice);
        text_addf(out, "dequantization %.1f %% of a step if nothing hid it; idle for the host %.1f %%\n", 100.0 * b->dequant,
                  100.0 * b->idle);
    }
    text_addf(out, "step           %.1f ms (best of %lld: %.1f ms)\nspeed          %.1f tokens/s\n", 1e3 * b->mean,
              (long long)b->options->steps, 1e3 * b->best, tokens / b->mean);
    text_addf(out, "work           %.1f GFLOP/s", rate / 1e9);
    if (isfinite(b->peak))
        text_addf(out, ", %.1f %% of the %.1f GFLOP/s of dense products", 100.0 * rate / b->peak, b->peak / 1e9);
    text_adds(out, "\n\n");
    print_kinds(b, out);
}

/* --rank is --set lora.rank=. */
static Status load_config(StepBench *b, Error *err) {
    const BenchOptions *o = b->options;
    char rank[40];
    if (o->rank == 0) return config_load(&b->config, NULL, o->overrides, o->override_count, err);
    const char **overrides = memory_alloc((size_t)(o->override_count + 1) * sizeof *overrides);
    (void)snprintf(rank, sizeof rank, "lora.rank=%lld", (long long)o->rank);
    for (int i = 0; i < o->override_count; i++)
        overrides[i] = o->overrides[i];
    overrides[o->override_count] = rank;
    Status status = config_load(&b->config, NULL, overrides, o->override_count + 1, err);
    memory_free(overrides);
    return status;
}

static Status run_bench(StepBench *b, Text *out, Error *err) {
    TRY(load_config(b, err));
    TRY(open_engine(b, b->options->arch != NULL ? b->options->arch : b->options->model, err));
    TRY(fill_batch(b, err));
    TRY(measure(b, err));
    print_result(b, out);
    return OK;
}

Status bench_step(const BenchOptions *options, Text *out, Error *err) {
    StepBench *b = memory_calloc(1, sizeof *b);
    b->options = options;
    Status status = run_bench(b, out, err);
    tape_free(b->tape);
    arena_free(&b->buffers);
    engine_close(&b->engine);
    config_free(&b->config);
    memory_free(b);
    return status;
}
