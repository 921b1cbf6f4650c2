/* nibble plan: what a run takes and how fast it may be, from the config and the model's shape. No weight is read. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/memory.h"
#include "core/text.h"
#include "data/gguf_model.h"
#include "train/ceiling.h"
#include "train/commands.h"
#include "train/options.h"
#include "train/run_plan.h"

#define ASSUMED_FRACTION 0.5 /* of the machine's product rate that a whole step reaches: an assumption, printed as one */
#define PLAN_RANKS_MAX 65536
enum { LARGEST_KINDS = 4 }; /* settings of train.recompute that are tried; the last on a device only */
#define SEARCH_MIN 128
#define SEARCH_MAX ((int64_t)1 << 20)

static const CommandHelp help = {
    .usage = "nibble plan CONFIG.json [options]",
    .summary =
        "Prints the memory of a run by kind, what fits, and the speed to expect. The shape comes from --arch, else from\n"
        "model.path, else from model.arch. Exit status 0 also for a run that does not fit: `nibble train` refuses it.",
    .example =
        "nibble plan configs/train/llama-3.1-8b.json --memory 16GiB\n"
        "nibble plan configs/train/tinyllama.json --set train.micro_batch_tokens=8192 --json",
};

typedef struct PlanOptions {
    OptionList set;
    const char *arch, *device, *memory;
    int64_t threads, ranks;
    int json;
} PlanOptions;

typedef struct Report {
    const char *config_path, *shape_path;
    Config config;
    ModelConfig model;
    WeightFacts *facts; /* NULL: there is only a shape */
    Device device;      /* loaded, not opened */
    Backend backend;
    int threads, ranks;
    size_t limit;
    RunPlan plan;
    int fits;
    int64_t largest[LARGEST_KINDS];                   /* micro_batch_tokens that fits; 0: none does */
    double gemm_peak, tokens_per_second, run_seconds; /* NaN: unknown; run_seconds: of a run by steps */
} Report;

/* ---- input --------------------------------------------------------------------------------------------------------------- */

static Status load_config(Report *r, const PlanOptions *o, const char *path, Error *err) {
    if (o->device != NULL) TRY(device_check_name(o->device, err));
    if (o->threads < 0 || o->threads > 1024) FAIL_USAGE("--threads: want 0 (all) to 1024, got %lld", (long long)o->threads);
    const char *overrides[OPTION_LIST_MAX + 1];
    char memory[96];
    int count = 0;
    for (; count < o->set.count; count++)
        overrides[count] = o->set.items[count];
    if (o->memory != NULL) {
        (void)snprintf(memory, sizeof memory, "train.memory=\"%s\"", o->memory);
        overrides[count++] = memory;
    }
    return config_load(&r->config, path, overrides, count, err);
}

static int is_model(const char *folder) {
    if (gguf_is_file(folder)) return 1;
    char *path = path_join(folder, "config.json");
    int found = file_exists(path);
    memory_free(path);
    return found;
}

static Status find_shape(Report *r, const PlanOptions *o, Error *err) {
    const char *folder = r->config.model.path, *arch = r->config.model.arch;
    if (o->arch != NULL)
        r->shape_path = o->arch;
    else if (folder != NULL && is_model(folder))
        r->shape_path = folder;
    else if (arch != NULL)
        r->shape_path = arch;
    else
        FAIL_USAGE("%s has no config.json and model.arch is not set; give --arch FILE (shapes lie in configs/arch)",
                   folder != NULL && folder[0] != 0 ? folder : "model.path");
    TRY(model_config_read(r->shape_path, &r->model, err));
    /* of tensors that cannot be loaded, and of none at all, there is a plan as well: what config.json says */
    if (r->shape_path == folder && weights_facts(&r->facts, folder, &r->model, NULL) != OK) r->facts = NULL;
    return OK;
}

/* ---- what fits ----------------------------------------------------------------------------------------------------------- */

static char recompute_names[LARGEST_KINDS][8] = {"none", "light", "layers", "host"};

static int largest_kinds(const Report *r) {
    return r->backend.on_device ? LARGEST_KINDS : LARGEST_KINDS - 1;
}

/* Whether a run fits that has no more than the embedding, and with "host" the layers' inputs, in pinned host memory. */
static Status fits_with(const Report *r, int kind, int64_t tokens, int *fits, Error *err) {
    Config config = r->config; /* shares its strings; nothing of it is freed */
    RunPlan plan;
    config.train.recompute = recompute_names[kind];
    config.train.micro_batch_tokens = tokens;
    if (config.train.dequantized_layers == CONFIG_AUTO) config.train.dequantized_layers = 0;
    return run_plan_choose(&config, &r->model, r->facts, &r->backend, r->threads, r->ranks, r->limit, HOST_EMBEDDING, &plan,
                           fits, err);
}

/* As the trainer decides. */
static Status plan_run(Report *r, Error *err) {
    TRY(run_window_choose(&r->config, &r->model, r->facts, &r->backend, r->threads, r->ranks, r->limit, err));
    return run_plan_choose(&r->config, &r->model, r->facts, &r->backend, r->threads, r->ranks, r->limit, HOST_WEIGHTS, &r->plan,
                           &r->fits, err);
}

/* 128, 192, 256, 384, 512, … the last that fits. */
static Status find_largest(const Report *r, int kind, int64_t *largest, Error *err) {
    *largest = 0;
    for (int64_t power = SEARCH_MIN; power <= SEARCH_MAX; power *= 2)
        for (int64_t tokens = power; tokens < 2 * power; tokens += power / 2) {
            int fits;
            if (r->config.data.max_length != CONFIG_AUTO && tokens < r->config.data.max_length) continue;
            TRY(fits_with(r, kind, tokens, &fits, err));
            if (!fits) return OK;
            *largest = tokens;
        }
    return OK;
}

static Status measure(Report *r, const PlanOptions *o, Error *err) {
    Pool *pool;
    TRY(pool_create(&pool, (int)o->threads, err));
    Exec exec = {.config = {.act = DTYPE_F32, .threads = pool_threads(pool)}, .pool = pool};
    r->threads = exec.config.threads;
    r->gemm_peak = r->backend.on_device ? NAN : ceiling_gemm(&r->backend, &exec);
    pool_free(pool);
    return OK;
}

static Status fill_report(Report *r, const PlanOptions *o, const char *path, Error *err) {
    r->config_path = path;
    if (o->ranks < 0 || o->ranks > PLAN_RANKS_MAX)
        FAIL_USAGE("--ranks: want 1 to %d, got %lld", PLAN_RANKS_MAX, (long long)o->ranks);
    r->ranks = o->ranks > 0 ? (int)o->ranks : 1;
    TRY(load_config(r, o, path, err));
    TRY(find_shape(r, o, err));
    TRY(device_for_plan(&r->device, o->device, getenv("NIBBLE_CPU"), err));
    r->backend = r->device.backend;
    if (r->backend.on_device && strcmp(r->config.train.memory, "auto") == 0)
        FAIL_USAGE("--device %s: say what the device has, for example --memory 80GiB", o->device);
    TRY(run_memory_limit(&r->config, NULL, &r->limit, err));
    TRY(measure(r, o, err));
    TRY(plan_run(r, err));
    for (int kind = 0; kind < largest_kinds(r); kind++)
        TRY(find_largest(r, kind, &r->largest[kind], err));
    r->tokens_per_second = ASSUMED_FRACTION * r->gemm_peak / r->plan.flops_per_token;
    double step = (double)(r->config.train.micro_batch_tokens * r->config.train.gradient_accumulation);
    r->run_seconds = r->config.train.steps > 0 ? (double)r->config.train.steps * step / r->tokens_per_second : NAN;
    return OK;
}

/* ---- output -------------------------------------------------------------------------------------------------------------- */

static void print_fit(const Report *r, Text *out) {
    char need[32], have[32];
    text_addf(out, "\n%s: needs %s and %s are %s\n", r->fits ? "fits" : "does not fit",
              format_bytes((double)r->plan.peak, need, sizeof need), format_bytes((double)r->limit, have, sizeof have),
              strcmp(r->config.train.memory, "auto") == 0 ? "left on this machine" : "allowed by train.memory");
    if (r->plan.choice[0] != 0) text_addf(out, "chosen for it: %s\n", r->plan.choice);
    static const char *const names[LARGEST_KINDS] = {"keeping everything", "recomputing norms and gates", "recomputing layers",
                                                     "recomputing layers, inputs in pinned memory"};
    for (int i = 0; i < largest_kinds(r); i++) {
        if (r->largest[i] > 0)
            text_addf(out, "largest train.micro_batch_tokens, %s: %lld%s\n", names[i], (long long)r->largest[i],
                      r->largest[i] >= SEARCH_MAX ? " or more" : "");
        else
            text_addf(out, "largest train.micro_batch_tokens, %s: none fits\n", names[i]);
    }
}

static const char *base_type(const Report *r, const char *otherwise) {
    if (strcmp(r->config.method, "qlora") != 0) return otherwise;
    return r->model.prequant == PREQUANT_GGUF ? "gguf" : r->config.quant.type;
}

static void print_sent(const char *name, uint64_t bytes, Text *out) {
    char text[32];
    if (bytes > 0)
        text_addf(out, "  %-34s %12s  %llu bytes\n", name, format_bytes((double)bytes, text, sizeof text),
                  (unsigned long long)bytes);
}

/* Of rank 0, which sends most; every rank receives about as much. */
static void print_ranks(const Report *r, Text *out) {
    const RunPlan *p = &r->plan;
    if (p->ranks == 1) return;
    text_addf(out, "\nranks                 %d; a step has %lld rounds of micro-batches; each rank sends in it\n", p->ranks,
              (long long)p->rounds);
    print_sent("sums of gradients", p->sent[COMM_GRADIENTS], out);
    print_sent("layers of the base", p->sent[COMM_BASE], out);
    print_sent("what it has stepped", p->sent[COMM_TRAINED], out);
    print_sent("losses and signals", p->sent[COMM_CONTROL], out);
}

static void print_text(const Report *r, Text *out) {
    const Config *c = &r->config;
    char time[32];
    text_addf(out, "%s: method %s, %s base, precision %s, %lld tokens a micro-batch, %lld micro-batches a step\n",
              r->config_path, c->method, base_type(r, "16-bit"), c->precision, (long long)c->train.micro_batch_tokens,
              (long long)c->train.gradient_accumulation);
    text_addf(out, "%s: %s, %lld layers, hidden %lld, vocabulary %lld, %.3f billion parameters\n\n", r->shape_path,
              r->model.model_type, (long long)r->model.layers, (long long)r->model.hidden, (long long)r->model.vocab,
              (double)r->model.parameters / 1e9);
    run_plan_print(&r->plan, out);
    print_fit(r, out);
    print_ranks(r, out);
    text_addf(out, "\ntrained numbers       %lld (%.3f %% of the model)\n", (long long)r->plan.trained,
              100.0 * (double)r->plan.trained / (double)r->model.parameters);
    text_addf(out, "work                  %.3f GFLOP a token (sequences of %lld tokens on average)\n",
              r->plan.flops_per_token / 1e9, (long long)(r->plan.max_length / 2));
    if (!isfinite(r->gemm_peak)) {
        text_adds(out, "expected speed        unknown: the product rate could not be measured\n");
        return;
    }
    text_addf(out, "dense products        %.1f GFLOP/s measured here (%s, %d threads)\n", r->gemm_peak / 1e9,
              r->backend.variant.linear, r->threads);
    text_addf(out, "expected speed        %.1f tokens/s, assuming that a step reaches %.0f %% of that\n", r->tokens_per_second,
              100.0 * ASSUMED_FRACTION);
    if (isfinite(r->run_seconds))
        text_addf(out, "expected time         %s for %lld steps\n", format_duration(r->run_seconds, time, sizeof time),
                  (long long)c->train.steps);
}

static void json_bytes(Text *out, const char *name, size_t bytes) {
    text_addf(out, "\"%s\": %zu, ", name, bytes);
}

static void json_number(Text *out, const char *name, double value) {
    if (isfinite(value))
        text_addf(out, "\"%s\": %.6g", name, value);
    else
        text_addf(out, "\"%s\": null", name);
}

static void print_json(const Report *r, Text *out) {
    const RunPlan *p = &r->plan;
    text_adds(out, "{\"config\": ");
    text_add_json_string(out, r->config_path, strlen(r->config_path));
    text_adds(out, ", \"shape\": ");
    text_add_json_string(out, r->shape_path, strlen(r->shape_path));
    text_addf(out, ", \"method\": \"%s\", \"quant\": \"%s\", \"parameters\": %lld, \"bytes\": {", r->config.method,
              base_type(r, "none"), (long long)r->model.parameters);
    json_bytes(out, "linear", p->weights.linear);
    json_bytes(out, "constants", p->weights.constants);
    json_bytes(out, "embedding", p->weights.embedding);
    json_bytes(out, "head", p->weights.head);
    json_bytes(out, "norms", p->weights.norms);
    json_bytes(out, "base", p->weights.arena);
    json_bytes(out, "trained", p->adapters);
    json_bytes(out, "optimizer", p->optimizer);
    json_bytes(out, "activations", p->activations);
    json_bytes(out, "rope", p->rope);
    json_bytes(out, "micro_batches", p->buffers);
    json_bytes(out, "cache", p->cache);
    json_bytes(out, "gathered", p->weights.gathered);
    json_bytes(out, "sums", p->sums);
    json_bytes(out, "dequantized_layers", p->weights.dense);
    json_bytes(out, "pinned_host", p->weights.pinned);
    json_bytes(out, "pinned_inputs", p->train.stash);
    json_bytes(out, "total", p->total);
    text_addf(out, "\"peak\": %zu}, \"memory\": %zu, \"fits\": %s, \"recompute\": \"%s\", ", p->peak, r->limit,
              r->fits ? "true" : "false", recompute_names[p->recompute]);
    text_addf(out,
              "\"dequantized_layers\": %lld, \"pinned_embedding\": %s, \"pinned_layers\": %lld, \"stashed_layers\": %lld, ",
              (long long)p->places.dense_layers, p->places.pinned_embedding ? "true" : "false",
              (long long)p->places.pinned_layers, (long long)p->stashed_layers);
    text_addf(out, "\"micro_batch_tokens\": %lld, \"largest_micro_batch_tokens\": {",
              (long long)r->config.train.micro_batch_tokens);
    for (int i = 0; i < largest_kinds(r); i++)
        text_addf(out, "%s\"%s\": %lld", i > 0 ? ", " : "", recompute_names[i], (long long)r->largest[i]);
    text_adds(out, "}, ");
    text_addf(out, "\"trained\": %lld, \"max_length\": %lld, \"flops_per_token\": %.6g, \"threads\": %d, ",
              (long long)p->trained, (long long)p->max_length, p->flops_per_token, r->threads);
    text_addf(
        out, "\"ranks\": %d, \"sent_in_a_step\": {\"gradients\": %llu, \"base\": %llu, \"control\": %llu, \"stepped\": %llu}, ",
        p->ranks, (unsigned long long)p->sent[COMM_GRADIENTS], (unsigned long long)p->sent[COMM_BASE],
        (unsigned long long)p->sent[COMM_CONTROL], (unsigned long long)p->sent[COMM_TRAINED]);
    json_number(out, "gemm_flops", r->gemm_peak);
    text_addf(out, ", \"assumed_fraction\": %g, ", ASSUMED_FRACTION);
    json_number(out, "tokens_per_second", r->tokens_per_second);
    text_adds(out, ", ");
    json_number(out, "run_seconds", r->run_seconds);
    text_adds(out, "}\n");
}

Status command_plan(int argc, char **argv, Error *err) {
    PlanOptions o = {.device = NULL};
    const OptionSpec specs[] = {
        {"set", OPTION_LIST, "KEY=VALUE", "sets a config key", &o.set},
        {"arch", OPTION_STRING, "FILE", "a Hugging Face config.json, or a folder with one: the shape", &o.arch},
        {"device", OPTION_STRING, "NAME", "cpu, cuda or emu; no such device is needed, only its plugin", &o.device},
        {"memory", OPTION_STRING, "SIZE", "what the run may take, for example 16GiB; left out: train.memory", &o.memory},
        {"threads", OPTION_INTEGER, "N", "threads; 0: all that this process may use", &o.threads},
        {"ranks", OPTION_INTEGER, "N", "the plan of one of N ranks, and what they send each other", &o.ranks},
        {"json", OPTION_FLAG, NULL, "print the plan as JSON", &o.json},
    };
    const char *path;
    int count, helped;
    TRY(options_parse(argc, argv, &help, specs, sizeof specs / sizeof *specs, &path, 1, 1, &count, &helped, err));
    if (helped) return OK;
    Report *report = memory_calloc(1, sizeof *report);
    Text out = {0};
    Status status = fill_report(report, &o, path, err);
    if (status == OK) {
        if (o.json)
            print_json(report, &out);
        else
            print_text(report, &out);
        (void)fwrite(out.data, 1, out.length, stdout);
    }
    text_free(&out);
    config_free(&report->config);
    weights_facts_free(report->facts);
    memory_free(report);
    return status;
}
