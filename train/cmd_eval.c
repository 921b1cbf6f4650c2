/* nibble eval: loss, perplexity, exact match, and logits for comparisons. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/log.h"
#include "core/memory.h"
#include "core/text.h"
#include "data/packing.h"
#include "data/safetensors.h"
#include "train/comm.h"
#include "train/commands.h"
#include "train/eval_options.h"
#include "train/evaluate.h"
#include "train/exact_match.h"
#include "train/launch.h"
#include "train/perplexity.h"
#include "train/signals.h"
#include "train/suite.h"

#define WHOLE_DOCUMENTS ((int64_t)1 << 30) /* max_length that cuts nothing */
#define ROWS_USUAL 2048

static const CommandHelp help = {
    .usage = "nibble eval MODEL --data FILE | --suite NAME:PATH [options]",
    .summary =
        "Loss of a model (a folder or a GGUF file) on a file. Conversations: mean over the supervised tokens, as in training. "
        "Plain text:\n"
        "sliding-window perplexity; windows of --window tokens start at every --stride tokens and each token of a document\n"
        "but its first is scored once, with the context that its window gives (windows that do not overlap leave out their\n"
        "first tokens; the end-of-text token is not scored). With --max-length plain text is cut into pieces and ended as in\n"
        "training. --exact-match: greedy answers compared with the data's, surrounding white space aside.\n"
        "--suite mmlu:FOLDER: multiple choice by log-likelihood; --suite gsm8k:FILE: greedy answers, their numbers compared.\n"
        "--logits OUT.safetensors --ids 1,2,3: the FP32 tensor \"logits\" [tokens, vocabulary] of a sequence.\n"
        "Ranks that mpirun, srun or torchrun start share the work of a loss or perplexity.",
    .example =
        "nibble eval models/TinyLlama-1.1B --data wikitext2_raw_test.txt --window 2048 --stride 512 --quant nf4\n"
        "nibble eval models/TinyLlama-1.1B --adapter runs/first/adapter --data test.jsonl --exact-match --limit 100",
};

typedef struct Evaluation {
    const EvalOptions *options;
    const char *folder;
    ModelConfig model;
    Tokenizer *tokenizer;
    Dataset data;
    Engine engine;
    Tape *tape;
    Generator *generator;
    PackPlan *plan;
    Arena buffers;
    BatchBuffer buffer;
    int64_t max_length, window, stride, rows; /* window 0: loss as in training */
    EvalResult result;
    ExactMatch match;
} Evaluation;

/* ---- data ---------------------------------------------------------------------------------------------------------------- */

static Status read_data(Evaluation *e, int64_t max_length, int open_documents, Error *err) {
    const EvalOptions *o = e->options;
    DatasetOptions options = {.path = o->data,
                              .layout = o->data_layout,
                              .template_name = o->template_name,
                              .train_on = o->data_train_on,
                              .max_length = max_length,
                              .tokenizer = e->tokenizer,
                              .eos_id = tokenizer_eos(e->tokenizer),
                              .open_documents = open_documents};
    if (options.eos_id < 0 && e->model.eos_count > 0) options.eos_id = (int32_t)e->model.eos_ids[0];
    dataset_free(&e->data);
    e->max_length = max_length;
    TRY(dataset_read(&options, &e->data, err));
    for (int64_t t = 0; t < e->data.tokens; t++)
        if (e->data.ids[t] < 0 || e->data.ids[t] >= e->model.vocab)
            FAIL("%s: token %d is not in the model's vocabulary of %lld; the tokenizer does not belong to this model", o->data,
                 e->data.ids[t], (long long)e->model.vocab);
    return OK;
}

/* Which of the modes applies depends on the layout, which the file may decide: it is read whole, then cut if it must be. */
static Status open_data(Evaluation *e, Error *err) {
    const EvalOptions *o = e->options;
    int64_t context = e->model.context, usual = context < ROWS_USUAL ? context : ROWS_USUAL;
    if (o->max_length != 0) return read_data(e, o->max_length, o->no_document_eos, err);
    TRY(read_data(e, WHOLE_DOCUMENTS, 1, err));
    int text = e->data.layout == LAYOUT_TEXT;
    if (o->exact_match) {
        if (text) FAIL_USAGE("--exact-match: %s is plain text, which has no answers", o->data);
        return OK;
    }
    if (text) {
        e->window = o->window != 0 ? o->window : usual;
        e->stride = o->stride != 0 ? o->stride : e->window / 2;
        if (e->stride > e->window)
            FAIL_USAGE("--stride: want at most the window of %lld, so that no token is left out, got %lld",
                       (long long)e->window, (long long)e->stride);
        if (e->window > context)
            log_warning("windows of %lld tokens are longer than the model's context of %lld", (long long)e->window,
                        (long long)context);
        return OK;
    }
    if (o->window != 0 || o->stride != 0)
        FAIL_USAGE("--window and --stride slide over plain text, and %s holds %s records; use --max-length", o->data,
                   layout_name(e->data.layout));
    if (e->data.longest <= usual) {
        e->max_length = usual;
        return OK;
    }
    return read_data(e, usual, 0, err);
}

static Status take_buffer(Evaluation *e, Error *err) {
    TRY(arena_create(&e->buffers, "micro-batches", batch_buffer_bytes(e->rows), err));
    return batch_buffer_take(&e->buffer, &e->buffers, e->rows, err);
}

/* ---- modes --------------------------------------------------------------------------------------------------------------- */

static Status run_loss(Evaluation *e, Error *err) {
    const EvalOptions *o = e->options;
    int64_t needed = e->window > 0 ? e->window : e->max_length;
    int64_t usual = e->model.context < ROWS_USUAL ? e->model.context : ROWS_USUAL;
    e->rows = needed > usual ? needed : usual;
    TRY(model_options_open(&e->engine, &o->model, e->folder, &e->model, 0, err));
    TRY(engine_tape(&e->engine, TAPE_EVAL, RECOMPUTE_NONE, e->rows, e->rows, 0, &e->tape, err));
    TRY(engine_reserve(&e->engine, &e->tape, 1, e->rows, needed, err));
    TRY(take_buffer(e, err));
    if (e->window > 0)
        return perplexity_sliding(&e->engine, e->tape, &e->data, e->window, e->stride, e->rows, &e->buffer, &e->result, err);
    TRY(pack_epoch(&e->plan, &e->data, PACKING_BEST_FIT, e->rows, 0, 0, 0, err));
    return evaluate(&e->engine, e->tape, &e->data, e->plan, &e->buffer, &e->result, err);
}

static Status open_generator(Evaluation *e, int64_t capacity, int64_t logit_rows, int64_t sequences, Error *err) {
    const EvalOptions *o = e->options;
    int64_t chunk = capacity < GENERATE_CHUNK ? capacity : GENERATE_CHUNK;
    if (logit_rows > chunk) logit_rows = chunk;
    DType act = precision_type(o->model.precision);
    int64_t beside = generator_beside(&e->model, act, capacity, sequences);
    size_t cache = generator_bytes(&e->model, act, capacity * beside, logit_rows + beside);
    TRY(model_options_open(&e->engine, &o->model, e->folder, &e->model, cache, err));
    TRY(generator_create_beside(&e->generator, &e->engine, capacity, chunk, logit_rows, beside, err));
    Tape *tape = generator_tape(e->generator);
    return engine_reserve(&e->engine, &tape, 1, capacity, capacity, err);
}

static Status run_exact_match(Evaluation *e, Error *err) {
    int64_t limit = e->options->limit;
    int64_t capacity = exact_match_capacity(&e->data, limit, e->model.context);
    TRY(open_generator(e, capacity, 1, e->data.count, err));
    return exact_match(e->generator, &e->model, e->tokenizer, &e->data, limit, capacity, e->options->show, &e->match, err);
}

typedef struct LogitsFile {
    const float *logits;
    size_t bytes;
} LogitsFile;

static Status produce_logits(void *context, const TensorSpec *spec, TensorWriter *writer, Error *err) {
    const LogitsFile *file = context;
    (void)spec;
    return tensor_write_bytes(writer, file->logits, file->bytes, err);
}

static Status write_logits(Evaluation *e, const int32_t *ids, int64_t count, Error *err) {
    size_t bytes = (size_t)count * (size_t)e->model.vocab * sizeof(float);
    Arena arena;
    TRY(open_generator(e, count, count, 1, err));
    TRY(arena_create(&arena, "logits", bytes, err));
    LogitsFile file = {(const float *)(void *)arena.base, bytes};
    TensorSpec spec = {.name = "logits", .dtype = DTYPE_F32, .ndim = 2, .shape = {count, e->model.vocab}};
    Status status = generator_logits(e->generator, ids, count, (float *)(void *)arena.base, err);
    if (status == OK) status = tensors_write(e->options->logits, &spec, 1, NULL, produce_logits, &file, err);
    arena_free(&arena);
    return status;
}

static Status run_logits(Evaluation *e, Error *err) {
    int32_t *ids = NULL;
    int64_t count;
    Status status = eval_options_ids(e->options, &e->model, &ids, &count, err);
    if (status == OK) status = write_logits(e, ids, count, err);
    if (status == OK) log_info("%s: logits [%lld, %lld]", e->options->logits, (long long)count, (long long)e->model.vocab);
    memory_free(ids);
    return status;
}

/* ---- results ------------------------------------------------------------------------------------------------------------- */

static void json_text(Text *out, const char *key, const char *value) {
    text_addf(out, "\"%s\": ", key);
    text_add_json_string(out, value, strlen(value));
    text_adds(out, ", ");
}

static void json_common(const Evaluation *e, Text *out) {
    json_text(out, "model", e->folder);
    if (e->options->model.adapter != NULL) json_text(out, "adapter", e->options->model.adapter);
    json_text(out, "data", e->options->data);
    json_text(out, "layout", layout_name(e->data.layout));
    json_text(out, "template", e->data.template_name);
    json_text(out, "quant", e->options->model.quant);
    json_text(out, "precision", e->options->model.precision);
    text_addf(out, "\"records\": %lld, \"sequences\": %lld, \"truncated\": %lld, ", (long long)e->data.records,
              (long long)e->data.count, (long long)e->data.truncated);
}

static void print_loss(const Evaluation *e, Text *out) {
    const EvalResult *r = &e->result;
    double rate = r->seconds > 0.0 ? (double)r->tokens / r->seconds : 0.0;
    if (e->options->json) {
        text_adds(out, "{");
        json_common(e, out);
        if (e->window > 0)
            text_addf(out, "\"window\": %lld, \"stride\": %lld, ", (long long)e->window, (long long)e->stride);
        else
            text_addf(out, "\"max_length\": %lld, ", (long long)e->max_length);
        text_addf(out,
                  "\"loss\": %.9g, \"perplexity\": %.9g, \"tokens\": %lld, \"seconds\": %.4f, \"tokens_per_second\": %.3f}\n",
                  r->loss, exp(r->loss), (long long)r->tokens, r->seconds, rate);
        return;
    }
    text_addf(out, "data         %s (layout %s, template %s)\n", e->options->data, layout_name(e->data.layout),
              e->data.template_name);
    if (e->window > 0)
        text_addf(out, "windows      %lld tokens, every %lld\n", (long long)e->window, (long long)e->stride);
    else
        text_addf(out, "max length   %lld (%lld of %lld sequences cut)\n", (long long)e->max_length,
                  (long long)e->data.truncated, (long long)e->data.count);
    text_addf(out, "sequences    %lld\ntokens       %lld scored\nloss         %.6f\nperplexity   %.4f\n",
              (long long)e->data.count, (long long)r->tokens, r->loss, exp(r->loss));
    text_addf(out, "seconds      %.2f (%.0f tokens/s)\n", r->seconds, rate);
}

static void print_mistakes(const Evaluation *e, Text *out) {
    const ExactMatch *m = &e->match;
    for (int64_t i = 0; i < m->mistake_count; i++) {
        const ExactMatchMistake *x = &m->mistakes[i];
        if (!e->options->json) {
            text_addf(out, "\n--- record %lld\n%s\n--- want\n%s\n--- got\n%s\n", (long long)x->record, x->prompt, x->want,
                      x->got);
            continue;
        }
        text_addf(out, "%s{\"record\": %lld, ", i > 0 ? ", " : "", (long long)x->record);
        json_text(out, "prompt", x->prompt);
        json_text(out, "want", x->want);
        text_adds(out, "\"got\": ");
        text_add_json_string(out, x->got, strlen(x->got));
        text_adds(out, "}");
    }
}

static void print_match(const Evaluation *e, Text *out) {
    const ExactMatch *m = &e->match;
    double rate = (double)m->matched / (double)m->records;
    if (e->options->json) {
        text_adds(out, "{");
        json_common(e, out);
        text_addf(out, "\"exact_match\": %.9g, \"matched\": %lld, \"scored\": %lld, \"too_long\": %lld, \"generated\": %lld, ",
                  rate, (long long)m->matched, (long long)m->records, (long long)m->too_long, (long long)m->generated);
        text_addf(out, "\"seconds\": %.4f, \"mistakes\": [", m->seconds);
        print_mistakes(e, out);
        text_adds(out, "]}\n");
        return;
    }
    text_addf(out, "data         %s (layout %s, template %s)\n", e->options->data, layout_name(e->data.layout),
              e->data.template_name);
    text_addf(out, "exact match  %.4f (%lld of %lld)\n", rate, (long long)m->matched, (long long)m->records);
    if (m->too_long > 0) text_addf(out, "left out     %lld records that do not fit into the context\n", (long long)m->too_long);
    text_addf(out, "seconds      %.2f (%lld tokens generated)\n", m->seconds, (long long)m->generated);
    print_mistakes(e, out);
}

/* ---- the command --------------------------------------------------------------------------------------------------------- */

static void evaluation_free(Evaluation *e) {
    exact_match_free(&e->match);
    pack_free(e->plan);
    arena_free(&e->buffers);
    tape_free(e->tape);
    generator_free(e->generator);
    engine_close(&e->engine);
    dataset_free(&e->data);
    tokenizer_close(e->tokenizer);
    memory_free(e);
}

static Status ask_suite(Evaluation *e, Suite *suite, const SuiteOptions *options, Text *out, Error *err) {
    int32_t stops[STOP_IDS_MAX];
    TRY(suite_open(suite, options, e->tokenizer, e->model.context, err));
    TRY(open_generator(e, suite->longest, SUITE_OPTION_TOKENS, 1, err));
    int stop_count = model_stop_ids(e->tokenizer, &e->model, stops);
    TRY(suite_ask(suite, options, e->generator, e->tokenizer, e->model.vocab, stops, stop_count, err));
    if (options->json) {
        text_adds(out, "{");
        json_text(out, "model", e->folder);
        if (e->options->model.adapter != NULL) json_text(out, "adapter", e->options->model.adapter);
        json_text(out, "data", options->path);
        json_text(out, "quant", e->options->model.quant);
        json_text(out, "precision", e->options->model.precision);
    }
    suite_print(suite, options, out);
    if (options->json) text_adds(out, "}\n");
    return OK;
}

static Status run_suite(Evaluation *e, Text *out, Error *err) {
    const EvalOptions *o = e->options;
    SuiteOptions options = {.shots = o->shots, .limit = o->limit, .details = o->details, .json = o->json};
    Suite suite = {0};
    char *name = NULL;
    Status status = suite_parse(o->suite, o->data, &name, &options.path, err);
    options.name = name;
    if (status == OK) status = ask_suite(e, &suite, &options, out, err);
    suite_free(&suite);
    memory_free(name);
    return status;
}

/* Only a loss is a sum over micro-batches that ranks can share. */
static Status check_ranks(const EvalOptions *o, Error *err) {
    const char *mode = o->logits != NULL ? "--logits" : o->suite != NULL ? "--suite" : "--exact-match";
    if (comm_size(o->model.comm) == 1 || (o->logits == NULL && o->suite == NULL && !o->exact_match)) return OK;
    FAIL_USAGE("%s runs as one process, and this is rank %d of %d: leave the launcher out", mode, comm_rank(o->model.comm),
               comm_size(o->model.comm));
}

static Status run_evaluation(Evaluation *e, Text *out, Error *err) {
    const EvalOptions *o = e->options;
    TRY(check_ranks(o, err));
    TRY(model_options_check(&o->model, e->folder, &e->model, err));
    if (o->logits != NULL) return run_logits(e, err);
    TRY(tokenizer_open(&e->tokenizer, e->folder, err));
    if (o->suite != NULL) return run_suite(e, out, err);
    TRY(open_data(e, err));
    if (o->exact_match) {
        TRY(run_exact_match(e, err));
        if (e->match.records == 0)
            FAIL("%s: no record fits into the model's context of %lld", o->data, (long long)e->model.context);
        print_match(e, out);
        return OK;
    }
    TRY(run_loss(e, err));
    if (!isfinite(e->result.loss)) FAIL("%s: the loss is not finite; the model or its quantization is broken", o->data);
    print_loss(e, out);
    return OK;
}

#define PATIENCE_S 1800.0 /* with a rank that reads a model more slowly than others */

static Status evaluate_all(const EvalOptions *o, const char *folder, Error *err) {
    Evaluation *e = memory_calloc(1, sizeof *e);
    e->options = o;
    e->folder = folder;
    Text out = {0};
    Status status = run_evaluation(e, &out, err);
    if (status == OK && out.length > 0 && comm_rank(o->model.comm) == 0) (void)fwrite(out.data, 1, out.length, stdout);
    text_free(&out);
    evaluation_free(e);
    return status;
}

/* As one process, or as one of the ranks that a launcher started: rank 0 speaks. */
static Status run_command(EvalOptions *o, const char *folder, Error *err) {
    Comm *comm;
    int is_device = strcmp(o->model.device, "cuda") == 0 || strcmp(o->model.device, "emu") == 0;
    TRY(comm_open(&comm, is_device ? o->model.device : NULL, err));
    signals_install();
    o->model.comm = comm;
    o->model.threads = launch_threads(comm, o->model.threads);
    comm_set_timeout(comm, PATIENCE_S);
    comm_set_place(comm, 0, "evaluation");
    if (comm != NULL) log_rank(comm_rank(comm), comm_rank(comm) == 0);
    Status status = evaluate_all(o, folder, err);
    if (comm_told(comm) && err != NULL) err->text[0] = 0;
    comm_set_end(comm, status);
    comm_close(comm, status == OK || status == ERR_INTERRUPTED ? NULL : err != NULL ? err->text : "");
    return status;
}

Status command_eval(int argc, char **argv, Error *err) {
    EvalOptions o = {.model = MODEL_OPTIONS_DEFAULT, .shots = -1};
    const OptionSpec specs[] = {
        {"data", OPTION_STRING, "FILE", "JSONL, JSON, CSV or plain text, also .gz, .zst or a pattern", &o.data},
        {"layout", OPTION_STRING, "NAME", "auto, alpaca, messages, sharegpt, prompt_completion, question_answer or text",
         &o.layout},
        {"template", OPTION_STRING, "NAME", "auto, \"model\" (its own) or a built-in chat template", &o.template_name},
        {"train-on", OPTION_STRING, "WHAT", "which tokens count: assistant, all or last", &o.train_on},
        {"max-length", OPTION_INTEGER, "N", "cut sequences there; left out: the context, at most 2048", &o.max_length},
        {"window", OPTION_INTEGER, "N", "plain text: tokens of a window; left out: the context, at most 2048", &o.window},
        {"stride", OPTION_INTEGER, "N", "plain text: tokens between windows; left out: half a window", &o.stride},
        {"no-document-eos", OPTION_FLAG, NULL, "with --max-length: documents have no end-of-text token", &o.no_document_eos},
        {"exact-match", OPTION_FLAG, NULL, "generate the answers and compare them", &o.exact_match},
        {"limit", OPTION_INTEGER, "N", "--exact-match, --suite: the first N records, or questions of a subject", &o.limit},
        {"show", OPTION_INTEGER, "N", "--exact-match: print N wrong answers", &o.show},
        {"logits", OPTION_STRING, "FILE", "write the logits of --ids there (safetensors)", &o.logits},
        {"ids", OPTION_STRING, "LIST", "token ids with commas between them", &o.ids},
        {"suite", OPTION_STRING, "NAME:PATH", "a benchmark: mmlu:FOLDER or gsm8k:FILE; PATH may stand in --data", &o.suite},
        {"shots", OPTION_INTEGER, "K", "--suite: examples in front of a question [default: 5]", &o.shots},
        {"details", OPTION_STRING, "FILE", "--suite: a JSON line for every question", &o.details},
        MODEL_OPTION_SPECS(&o.model),
        {"json", OPTION_FLAG, NULL, "print the result as JSON", &o.json},
    };
    const char *folder;
    int count, helped;
    TRY(options_parse(argc, argv, &help, specs, sizeof specs / sizeof *specs, &folder, 1, 1, &count, &helped, err));
    if (helped) return OK;
    TRY(eval_options_check(&o, err));
    return run_command(&o, folder, err);
}
