/* nibble bench: this machine's limits, and whole steps against them. Timings, never tests. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "train/bench.h"
#include "train/ceiling.h"
#include "train/ceiling_store.h"
#include "train/commands.h"
#include "train/device.h"
#include "train/generate.h"
#include "train/options.h"

#define STEPS 3
#define ROUNDS 9 /* of bench generate and linear */
#define TOKENS 512
#define PROMPT 128
#define READS 5
#define NOT_GIVEN INT64_MIN

static const CommandHelp help = {
    .usage =
        "nibble bench ceiling | cpu | linear | step MODEL | step --arch FILE | generate MODEL | generate --arch FILE | load "
        "MODEL | "
        "dequant, gemm, attention, loss, optimizer --arch FILE  [options]",
    .summary =
        "ceiling: the rate of dense FP32 and BF16 products, of the instruction that they are made of, and of reading memory,\n"
        "on one thread and on all. cpu: the instruction sets that this processor offers and what each operation uses.\n"
        "linear: products with frozen weights on the CPU, forward and backward, in BF16 and NF4 (or what --set quant.* says),\n"
        "as shares of dense products, of the instruction's rate and of BF16 weights, for a table of shapes or those of "
        "--arch.\n"
        "step: tokens a second of an optimizer step and where its time goes, planned as `nibble train` plans.\n"
        "generate: tokens a second of one sequence, the bytes that a token reads, and what share of the memory's read\n"
        "bandwidth that makes. --arch measures a shape with random weights. dequant to optimizer: one\n"
        "operation of that shape on a device, in GB/s or TFLOP/s and as a share of the copy bandwidth or of the largest "
        "product\n"
        "of the same run. load: a model's files into memory, quantized (the device's memory where there is one), as a share "
        "of\n"
        "reading the same files.",
    .example =
        "nibble bench ceiling\n"
        "nibble bench linear --threads 1\n"
        "nibble bench linear --arch configs/arch/smollm-135m.json --rank 16\n"
        "nibble bench step models/TinyLlama-1.1B --tokens 1024 --set lora.rank=32\n"
        "nibble bench step --arch configs/arch/smollm-135m.json --json\n"
        "nibble bench generate --arch configs/arch/tinyllama-1.1b.json --threads 1\n"
        "nibble bench attention --arch configs/arch/llama-3.1-8b.json --seq 4096 --device cuda\n"
        "nibble bench step --arch configs/arch/llama-3-8b.json --seq 4096 --rank 16",
};

/* ---- ceiling ------------------------------------------------------------------------------------------------------------- */

static Status measure_products(const Backend *backend, DType act, int threads, int *used, double *rate, Error *err) {
    Pool *pool;
    TRY(pool_create(&pool, threads, err));
    Exec exec = {.config = {.act = act, .threads = pool_threads(pool)}, .pool = pool};
    *used = exec.config.threads;
    *rate = ceiling_gemm(backend, &exec);
    pool_free(pool);
    if (!isfinite(*rate)) FAIL("the rate of products could not be measured on %d threads", *used);
    return OK;
}

/* Of several, as with products. */
static Status measure_read(int threads, int *used, double *rate, Error *err) {
    Pool *pool;
    Arena memory;
    TRY(pool_create(&pool, threads, err));
    *used = pool_threads(pool);
    *rate = 0.0;
    Status status = ceiling_memory(&memory, err);
    for (int run = 0; run < READS && status == OK; run++)
        *rate = fmax(*rate, ceiling_read(pool, &memory));
    if (status == OK) arena_free(&memory);
    pool_free(pool);
    *rate = ceiling_best("memory", "read", *used, *rate);
    return status;
}

static Status print_read(const BenchOptions *o, Text *out, Error *err) {
    int one, all;
    double single, together;
    TRY(measure_read(1, &one, &single, err));
    TRY(measure_read((int)o->threads, &all, &together, err));
    if (o->json)
        text_addf(out, ", \"read\": {\"one_thread_bytes\": %.6g, \"threads\": %d, \"bytes\": %.6g}", single, all, together);
    else
        text_addf(out, "reading memory\n  1 thread    %10.1f GB/s\n  %d threads   %10.1f GB/s (%.2f times)\n", single / 1e9,
                  all, together / 1e9, together / single);
    return OK;
}

/* The unit itself, which products can only come near to. */
static Status print_unit(const BenchOptions *o, const char *variant, Text *out, Error *err) {
    Pool *pool;
    double single = cpu_unit_rate(variant, NULL);
    if (!isfinite(single)) return OK; /* the plain reference has none */
    TRY(pool_create(&pool, (int)o->threads, err));
    double together = cpu_unit_rate(variant, pool);
    int all = pool_threads(pool);
    pool_free(pool);
    if (o->json)
        text_addf(out, ", \"unit\": {\"one_thread_flops\": %.6g, \"threads\": %d, \"flops\": %.6g}", single, all, together);
    else
        text_addf(out,
                  "the instruction that they are made of, from registers\n  1 thread    %10.1f GFLOP/s\n  %d threads   %10.1f "
                  "GFLOP/s (%.2f times)\n",
                  single / 1e9, all, together / 1e9, together / single);
    return OK;
}

static Status bench_ceiling(const BenchOptions *o, Text *out, Error *err) {
    static const struct {
        const char *name, *key;
        DType act;
    } kinds[] = {{"FP32", "f32", DTYPE_F32}, {"BF16", "bf16", DTYPE_BF16}};
    Backend backend;
    TRY(cpu_backend(&backend, getenv("NIBBLE_CPU"), err));
    if (o->json) text_addf(out, "{\"variant\": \"%s\"", backend.variant.linear);
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        int one, all;
        double single, together;
        TRY(measure_products(&backend, kinds[i].act, 1, &one, &single, err));
        TRY(measure_products(&backend, kinds[i].act, (int)o->threads, &all, &together, err));
        if (o->json)
            text_addf(out, ", \"%s\": {\"one_thread_flops\": %.6g, \"threads\": %d, \"flops\": %.6g}", kinds[i].key, single,
                      all, together);
        else
            text_addf(out, "dense %s products (%s)\n  1 thread    %10.1f GFLOP/s\n  %d threads   %10.1f GFLOP/s (%.2f times)\n",
                      kinds[i].name, backend.variant.linear, single / 1e9, all, together / 1e9, together / single);
    }
    TRY(print_unit(o, backend.variant.linear, out, err));
    TRY(print_read(o, out, err));
    text_adds(out, o->json ? "}\n" : "");
    return OK;
}

/* ---- cpu ----------------------------------------------------------------------------------------------------------------- */

static Status bench_cpu(const BenchOptions *o, Text *out, Error *err) {
    static const char *const variants[] = {"ref", "avx2", "avx512", "avx512bf16", "amx"};
    Backend b;
    TRY(cpu_backend(&b, getenv("NIBBLE_CPU"), err));
    const char *const entries[][2] = {{"linear", b.variant.linear}, {"attention", b.variant.attention},
                                      {"norm", b.variant.norm},     {"rope", b.variant.rope},
                                      {"gate", b.variant.gate},     {"head", b.variant.head},
                                      {"adamw", b.variant.adamw},   {"quantize", b.variant.quantize}};
    text_adds(out, o->json ? "{\"offered\": {" : "offered by this processor\n");
    for (size_t i = 0; i < sizeof variants / sizeof *variants; i++) {
        Backend other;
        Error reason;
        int offered = cpu_backend(&other, variants[i], &reason) == OK;
        if (o->json)
            text_addf(out, "%s\"%s\": %s", i > 0 ? ", " : "", variants[i], offered ? "true" : "false");
        else
            text_addf(out, "  %-10s %s\n", variants[i], offered ? "yes" : "no");
    }
    text_adds(out, o->json ? "}, \"used\": {" : "used by each operation\n");
    for (size_t i = 0; i < sizeof entries / sizeof *entries; i++) {
        if (o->json)
            text_addf(out, "%s\"%s\": \"%s\"", i > 0 ? ", " : "", entries[i][0], entries[i][1]);
        else
            text_addf(out, "  %-10s %s\n", entries[i][0], entries[i][1]);
    }
    Pool *pool;
    TRY(pool_create(&pool, 1, err));
    double cache = (double)pool_cache(pool);
    pool_free(pool);
    char text[32];
    if (o->json)
        text_addf(out, "}, \"second_level_cache\": %.0f}\n", cache);
    else
        text_addf(out, "blocks are cut for a second-level cache of %s\n", format_bytes(cache, text, sizeof text));
    return OK;
}

/* ---- the command --------------------------------------------------------------------------------------------------------- */

/* A key that a step does not depend on would be parsed and ignored. */
static Status check_override(const char *override, Error *err) {
    static const char *const keys[] = {"method=", "precision=",       "seed=",         "quant.",
                                       "lora.",   "train.recompute=", "train.memory=", "train.dequantized_layers="};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (strncmp(override, keys[i], strlen(keys[i])) == 0) return OK;
    FAIL_USAGE(
        "--set %.60s: bench step takes method, precision, seed, quant.*, lora.*, train.recompute, train.memory and "
        "train.dequantized_layers",
        override);
}

static Status check_step(const BenchOptions *o, Error *err) {
    for (int i = 0; i < o->override_count; i++)
        TRY(check_override(o->overrides[i], err));
    if (o->rank < 0 || o->rank > 4096) FAIL_USAGE("--rank: want 1 to 4096, got %lld", (long long)o->rank);
    if ((o->model != NULL) == (o->arch != NULL)) FAIL_USAGE("bench step: want a MODEL folder or --arch FILE, one of them");
    if (o->steps < 1) FAIL_USAGE("--steps: want at least 1, got %lld", (long long)o->steps);
    if (o->tokens < 2 || o->tokens > (int64_t)1 << 20)
        FAIL_USAGE("--tokens: want 2 to 1048576, got %lld", (long long)o->tokens);
    if (o->length != 0 && o->length < 2) FAIL_USAGE("--seq: want at least 2, got %lld", (long long)o->length);
    return OK;
}

static Status check_operation(const BenchOptions *o, Error *err) {
    if (o->arch == NULL || o->model != NULL) FAIL_USAGE("bench %s: want --arch FILE, the shape", o->kind);
    if (o->override_count > 0 || o->steps != STEPS) FAIL_USAGE("bench %s: --set and --steps belong to bench step", o->kind);
    if (o->tokens < 2 || o->tokens > (int64_t)1 << 20)
        FAIL_USAGE("--tokens: want 2 to 1048576, got %lld", (long long)o->tokens);
    if (o->rank != 0 && strcmp(o->kind, "optimizer") != 0)
        FAIL_USAGE("bench %s: --rank belongs to step and optimizer", o->kind);
    if (o->rank < 0 || o->rank > 4096) FAIL_USAGE("--rank: want 1 to 4096, got %lld", (long long)o->rank);
    if (o->length < 0 || o->length > o->tokens) FAIL_USAGE("--seq: want at most --tokens, got %lld", (long long)o->length);
    return OK;
}

static Status check_load(const BenchOptions *o, int64_t tokens, Error *err) {
    static const char *const keys[] = {"method=", "precision=", "quant."};
    if (o->model == NULL || o->arch != NULL) FAIL_USAGE("bench load: want a MODEL, a folder or a .gguf file");
    if (o->steps != STEPS || tokens != 0 || o->length != 0 || o->rank != 0)
        FAIL_USAGE("bench load: --steps, --tokens, --seq and --rank belong to bench step");
    for (int i = 0; i < o->override_count; i++) {
        int known = 0;
        for (size_t k = 0; k < sizeof keys / sizeof *keys; k++)
            known |= strncmp(o->overrides[i], keys[k], strlen(keys[k])) == 0;
        if (!known) FAIL_USAGE("--set %.60s: bench load takes method, precision and quant.*", o->overrides[i]);
    }
    return OK;
}

static Status check_generate(const BenchOptions *o, Error *err) {
    static const char *const keys[] = {"method=", "precision=", "seed=", "quant."};
    for (int i = 0; i < o->override_count; i++) {
        int known = 0;
        for (size_t k = 0; k < sizeof keys / sizeof *keys; k++)
            known |= strncmp(o->overrides[i], keys[k], strlen(keys[k])) == 0;
        if (!known || strcmp(o->overrides[i], "method=full") == 0)
            FAIL_USAGE("--set %.60s: bench generate takes method (qlora or lora), precision, seed and quant.*",
                       o->overrides[i]);
    }
    if ((o->model != NULL) == (o->arch != NULL)) FAIL_USAGE("bench generate: want a MODEL or --arch FILE, one of them");
    if (o->rank != 0 || o->length != 0)
        FAIL_USAGE("bench generate: --rank and --seq belong to other kinds; --tokens: of the prompt");
    if (o->device != NULL && strcmp(o->device, "cpu") != 0 && strcmp(o->device, "auto") != 0)
        FAIL_USAGE("bench generate: --device %.20s is not supported, only cpu", o->device);
    if (o->steps < 1 || o->steps > 100000) FAIL_USAGE("--steps: want 1 to 100000 rounds, got %lld", (long long)o->steps);
    if (o->tokens < 1 || o->tokens > (int64_t)1 << 20)
        FAIL_USAGE("--tokens: want 1 to 1048576, got %lld", (long long)o->tokens);
    return OK;
}

static Status check_linear(const BenchOptions *o, Error *err) {
    for (int i = 0; i < o->override_count; i++)
        if (strncmp(o->overrides[i], "quant.", 6) != 0) FAIL_USAGE("--set %.60s: bench linear takes quant.*", o->overrides[i]);
    if (o->model != NULL) FAIL_USAGE("bench linear: takes no MODEL; --arch FILE: the shapes of a model");
    if (o->device != NULL && strcmp(o->device, "cpu") != 0 && strcmp(o->device, "auto") != 0)
        FAIL_USAGE("bench linear: --device %.20s is not supported, only cpu; a device has `nibble bench gemm`", o->device);
    if (o->length != 0) FAIL_USAGE("bench linear: --seq belongs to other kinds; --tokens: rows of the products");
    if (o->rank < 0 || o->rank > 4096) FAIL_USAGE("--rank: want 0 (no adapter) to 4096, got %lld", (long long)o->rank);
    if (o->steps < 1 || o->steps > 100000) FAIL_USAGE("--steps: want 1 to 100000 rounds, got %lld", (long long)o->steps);
    if (o->tokens < 0 || o->tokens > (int64_t)1 << 20)
        FAIL_USAGE("--tokens: want 1 to 1048576, got %lld", (long long)o->tokens);
    return OK;
}

/* Tokens of a micro-batch: one sequence, where only its length is given. */
static BenchOptions with_defaults(const char *kind, const BenchOptions *options) {
    BenchOptions out = *options;
    int generates = strcmp(kind, "generate") == 0, linear = strcmp(kind, "linear") == 0;
    if (out.steps == NOT_GIVEN) out.steps = generates || linear ? ROUNDS : STEPS;
    if (out.tokens == 0 && generates) out.tokens = PROMPT;
    if (out.tokens == 0 && !linear) out.tokens = out.length > 0 ? out.length : TOKENS;
    return out;
}

static Status run_kind(const char *kind, const BenchOptions *given, Text *out, Error *err) {
    static const char *const kinds[] = {"ceiling", "cpu",  "step",      "load", "generate", "linear",
                                        "dequant", "gemm", "attention", "loss", "optimizer"};
    const BenchOptions sized = with_defaults(kind, given), *o = &sized;
    int step = strcmp(kind, "step") == 0;
    if (strcmp(o->head, "none") != 0 && strcmp(o->head, "q8_0") != 0)
        FAIL_USAGE("--head: want none or q8_0, got \"%.60s\"", o->head);
    if (o->sequences < 1 || o->sequences > GENERATE_BESIDE)
        FAIL_USAGE("--sequences: want 1 to %d, got %lld", GENERATE_BESIDE, (long long)o->sequences);
    if (o->sequences != 1 && strcmp(kind, "generate") != 0) FAIL_USAGE("bench %.20s: --sequences belongs to generate", kind);
    if (strcmp(o->head, "none") != 0 && strcmp(kind, "generate") != 0)
        FAIL_USAGE("bench %.20s: --head belongs to generate", kind);
    if (o->device != NULL) TRY(device_check_name(o->device, err));
    for (size_t i = 6; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(kind, kinds[i]) == 0) {
            TRY(check_operation(o, err));
            return bench_device(o, out, err);
        }
    if (o->threads < 0 || o->threads > 1024) FAIL_USAGE("--threads: want 0 (all) to 1024, got %lld", (long long)o->threads);
    if (step) {
        TRY(check_step(o, err));
        return bench_step(o, out, err);
    }
    if (strcmp(kind, "load") == 0) {
        TRY(check_load(o, given->tokens, err));
        return bench_load(given, out, err);
    }
    if (strcmp(kind, "generate") == 0) {
        TRY(check_generate(o, err));
        return bench_generate(o, out, err);
    }
    if (strcmp(kind, "linear") == 0) {
        TRY(check_linear(o, err));
        return bench_cpu_linear(o, out, err);
    }
    int is_ceiling = strcmp(kind, "ceiling") == 0;
    if (is_ceiling || strcmp(kind, "cpu") == 0) {
        if (o->model != NULL || o->arch != NULL || o->override_count > 0 || o->steps != STEPS || given->tokens != 0 ||
            o->length != 0 || o->rank != 0 || o->device != NULL)
            FAIL_USAGE("bench %s takes only --threads and --json; the rest belongs to `nibble bench step`", kind);
        return is_ceiling ? bench_ceiling(o, out, err) : bench_cpu(o, out, err);
    }
    const char *near = nearest_word(kind, kinds, sizeof kinds / sizeof *kinds);
    FAIL_USAGE(
        "bench \"%.60s\" is not supported yet; there are ceiling, cpu, step, load, generate, linear, dequant, gemm, attention, "
        "loss "
        "and "
        "optimizer%s%s%s",
        kind, near != NULL ? " (did you mean " : "", near != NULL ? near : "", near != NULL ? "?)" : "");
}

Status command_bench(int argc, char **argv, Error *err) {
    BenchOptions o = {.steps = NOT_GIVEN, .head = "none", .sequences = 1};
    OptionList set = {.count = 0};
    const OptionSpec specs[] = {
        {"arch", OPTION_STRING, "FILE", "a Hugging Face config.json, the shape", &o.arch},
        {"device", OPTION_STRING, "NAME", "cpu, cuda, emu or auto; left out: auto, for an operation cuda", &o.device},
        {"head", OPTION_STRING, "TYPE", "generate: the output head as it is (none) or in q8_0", &o.head},
        {"sequences", OPTION_INTEGER, "N", "generate: so many beside each other, 1 to 8", &o.sequences},
        {"set", OPTION_LIST, "KEY=VALUE",
         "step: sets method, precision, seed, quant.*, lora.* or train.recompute; generate: all but the last two; load: "
         "method, precision or quant.*; linear: quant.*",
         &set},
        {"tokens", OPTION_INTEGER, "N",
         "tokens of a micro-batch; left out: one sequence; generate: of the prompt; left out: 128; linear: left "
         "out: 512 and 1,024",
         &o.tokens},
        {"seq", OPTION_INTEGER, "N", "tokens of a sequence; left out: at most 512", &o.length},
        {"rank", OPTION_INTEGER, "N", "step, optimizer: rank of the adapters; left out: 16; linear: left out: none", &o.rank},
        {"steps", OPTION_INTEGER, "N", "how many are timed; left out: step 3, generate and linear 9 rounds", &o.steps},
        {"threads", OPTION_INTEGER, "N", "threads; 0: all that this process may use", &o.threads},
        {"json", OPTION_FLAG, NULL, "print the result as JSON", &o.json},
    };
    const char *words[2] = {NULL, NULL};
    int count, helped;
    TRY(options_parse(argc, argv, &help, specs, sizeof specs / sizeof *specs, words, 1, 2, &count, &helped, err));
    if (helped) return OK;
    o.kind = words[0];
    o.model = count > 1 ? words[1] : NULL;
    o.overrides = set.items;
    o.override_count = set.count;
    Text out = {0};
    Status status = run_kind(words[0], &o, &out, err);
    if (status == OK) (void)fwrite(out.data, 1, out.length, stdout);
    text_free(&out);
    return status;
}
