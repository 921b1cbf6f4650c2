/* nibble inspect --data and --step: what is trained in the data, as the trainer itself reads, splits and packs it. */
#include <string.h>

#include "core/file.h"
#include "core/log.h"
#include "core/memory.h"
#include "train/checkpoint.h"
#include "train/inspect.h"
#include "train/trainer.h"

/* ---- one example --------------------------------------------------------------------------------------------------------- */

static void mark(const InspectOutput *out, Text *text, int trained) {
    if (out->colour)
        text_adds(text, trained ? "\033[32m" : "\033[0m");
    else
        text_adds(text, trained ? "[[" : "]]");
}

/* For people: what would move a terminal's cursor, or worse, is shown as \xNN. Data are not to be trusted. */
static void add_shown(const InspectOutput *out, Text *text, const char *part, size_t length) {
    for (size_t i = 0, size; i < length; i += size) {
        uint32_t code = 0;
        int known = utf8_decode(part + i, length - i, &code);
        size = known > 0 ? (size_t)known : 1;
        int is_control = known > 0 && ((code < 0x20 && code != '\n' && code != '\t') || (code >= 0x7F && code < 0xA0));
        if (is_control && !out->json)
            text_addf(text, "\\x%02X", (unsigned)code);
        else
            text_add(text, part + i, size);
    }
}

static void add_special(const InspectOutput *out, Text *text, const char *spelled) {
    text_adds(text, out->colour ? "\033[1m" : "");
    text_adds(text, spelled);
    text_adds(text, out->colour ? "\033[22m" : "");
}

/* The sequence's text; special tokens as they are spelled (bold on a terminal, unlike the same spelling in somebody's text),
 * trained stretches marked. A character of several tokens appears with its last one, and bytes that may still become one with
 * the token after them. */
static Status add_marked(const InspectOutput *out, Text *text, const Tokenizer *tokenizer, const int32_t *ids,
                         const uint8_t *train, int64_t count, Error *err) {
    TokenStream *stream;
    const char *part;
    size_t length;
    int open = 0;
    TRY(token_stream_open(&stream, tokenizer, err));
    Status status = OK;
    for (int64_t t = 0; t < count && status == OK; t++) {
        if ((train[t] != 0) != open) mark(out, text, open = !open);
        status = token_stream_next(stream, ids[t], &part, &length, err);
        if (status == OK) add_shown(out, text, part, length);
        const char *spelled = tokenizer_is_special(tokenizer, ids[t]) ? tokenizer_token(tokenizer, ids[t]) : NULL;
        if (spelled != NULL) add_special(out, text, spelled);
    }
    if (status == OK) status = token_stream_flush(stream, &part, &length, err);
    if (status == OK) add_shown(out, text, part, length);
    if (open) mark(out, text, 0);
    token_stream_close(stream);
    return status;
}

static Status add_example(InspectOutput *out, const Trainer *trainer, int64_t sequence, int first, Error *err) {
    const Dataset *data = &trainer->train_data;
    int64_t count = data->start[sequence + 1] - data->start[sequence], trained = dataset_sequence_trained(data, sequence);
    const int32_t *ids;
    const uint8_t *train;
    Text marked = {0};
    TRY(dataset_sequence(data, sequence, &ids, &train, err));
    Status status = add_marked(out, &marked, trainer->tokenizer, ids, train, count, err);
    const char *text = marked.data != NULL ? marked.data : "";
    if (status == OK && !out->json)
        text_addf(&out->text, "--- sequence %lld, record %lld: %lld tokens, %lld trained\n%s\n", (long long)sequence,
                  (long long)data->record[sequence], (long long)count, (long long)trained, text);
    if (status == OK && out->json) {
        text_addf(&out->text,
                  "%s{\"sequence\": %lld, \"record\": %lld, \"tokens\": %lld, \"trained\": %lld, \"text\": ", first ? "" : ", ",
                  (long long)sequence, (long long)data->record[sequence], (long long)count, (long long)trained);
        text_add_json_string(&out->text, text, marked.length);
        text_adds(&out->text, ", \"ids\": [");
        for (int64_t t = 0; t < count; t++)
            text_addf(&out->text, "%s%d", t > 0 ? ", " : "", ids[t]);
        text_adds(&out->text, "], \"train\": [");
        for (int64_t t = 0; t < count; t++)
            text_addf(&out->text, "%s%d", t > 0 ? ", " : "", train[t] != 0);
        text_adds(&out->text, "]}");
    }
    text_free(&marked);
    return status;
}

/* ---- figures ------------------------------------------------------------------------------------------------------------- */

/* How many sequences have a length up to 2, 4, 8, …; the last entry that is not zero holds the longest. */
static void add_lengths(InspectOutput *out, const Dataset *data) {
    int64_t buckets[40] = {0};
    int last = 0;
    for (int64_t s = 0; s < data->count; s++) {
        int64_t length = data->start[s + 1] - data->start[s];
        int bucket = 0;
        while (bucket < 39 && ((int64_t)2 << bucket) < length)
            bucket++;
        buckets[bucket]++;
        if (bucket > last) last = bucket;
    }
    inspect_key(out, "lengths");
    text_adds(&out->text, out->json ? "[" : "\n");
    for (int b = 0, first = 1; b <= last; b++) {
        if (buckets[b] == 0) continue;
        if (out->json)
            text_addf(&out->text, "%s{\"up_to\": %lld, \"sequences\": %lld}", first ? "" : ", ", (long long)2 << b,
                      (long long)buckets[b]);
        else
            text_addf(&out->text, "  up to %-8lld %8lld  %.*s\n", (long long)2 << b, (long long)buckets[b],
                      (int)(50 * buckets[b] / data->count), "##################################################");
        first = 0;
    }
    text_adds(&out->text, out->json ? "]" : "");
}

/* One a line in the data set's text. */
static void add_reasons(InspectOutput *out, const char *lines) {
    inspect_key(out, "skip_reasons");
    text_adds(&out->text, out->json ? "[" : "\n");
    for (const char *line = lines; *line != 0;) {
        size_t length = strcspn(line, "\n");
        text_adds(&out->text, out->json ? (line > lines ? ", " : "") : "  ");
        if (out->json)
            text_add_json_string(&out->text, line, length);
        else
            text_add(&out->text, line, length);
        text_adds(&out->text, out->json ? "" : "\n");
        line += length + (line[length] != 0);
    }
    text_adds(&out->text, out->json ? "]" : "");
}

static void add_figures(InspectOutput *out, const Trainer *trainer) {
    const Dataset *data = &trainer->train_data;
    Text name = {0};
    config_print_paths(&trainer->config, &name);
    inspect_string(out, "data", name.data);
    text_free(&name);
    inspect_string(out, "layout", layout_name(data->layout));
    inspect_string(out, "template", data->template_name);
    inspect_string(out, "train_on", trainer->config.data.train_on);
    inspect_integer(out, "records", data->records);
    inspect_integer(out, "records_with_tools", data->with_tools);
    inspect_integer(out, "sequences", data->count);
    inspect_integer(out, "held_out_sequences", trainer->eval_data.count);
    inspect_integer(out, "tokens", data->tokens);
    inspect_integer(out, "trained_tokens", data->trained_tokens);
    inspect_integer(out, "longest", data->longest);
    inspect_integer(out, "truncated", data->truncated);
    inspect_integer(out, "split", data->split);
    inspect_integer(out, "dropped", data->dropped);
    inspect_integer(out, "skipped_bad", data->skipped_bad);
    if (data->skip_reasons != NULL) add_reasons(out, data->skip_reasons);
    inspect_integer(out, "skipped_untrained", data->skipped_untrained);
    inspect_integer(out, "micro_batches", pack_count(trainer->stream.plan));
    inspect_number(out, "packing_fill", pack_fill(trainer->stream.plan));
    inspect_integer(out, "steps", trainer->steps);
    add_lengths(out, data);
}

/* ---- the data of a run --------------------------------------------------------------------------------------------------- */

static Status open_data(Trainer *trainer, const char *config, const char *const *overrides, int override_count, int threads,
                        Error *err) {
    trainer->config_path = config;
    TRY(config_load(&trainer->config, config, overrides, override_count, err));
    ModelConfig *model = memory_alloc(sizeof *model);
    Pool *pool = NULL;
    Status status = model_config_read(trainer->config.model.path, model, err);
    if (status == OK) status = pool_create(&pool, threads, err);
    if (status == OK) status = trainer_open_data(trainer, model, pool, err);
    pool_free(pool);
    memory_free(model);
    return status;
}

static Status show_data(InspectOutput *out, const Trainer *trainer, Error *err) {
    int64_t count = out->count < trainer->train_data.count ? out->count : trainer->train_data.count;
    add_figures(out, trainer);
    inspect_key(out, "examples");
    text_adds(&out->text, out->json ? "[" : "\n");
    for (int64_t s = 0; s < count; s++)
        TRY(add_example(out, trainer, s, s == 0, err));
    text_adds(&out->text, out->json ? "]" : "");
    return OK;
}

Status inspect_data(InspectOutput *out, const char *config, const char *const *overrides, int override_count, int threads,
                    Error *err) {
    Trainer *trainer = memory_calloc(1, sizeof *trainer);
    Status status = open_data(trainer, config, overrides, override_count, threads, err);
    if (status == OK) status = show_data(out, trainer, err);
    trainer_close(trainer);
    memory_free(trainer);
    return status;
}

static Status show_step(InspectOutput *out, Trainer *trainer, int64_t step, Error *err) {
    int64_t accumulation = trainer->config.train.gradient_accumulation;
    if (step < 1 || step > trainer->steps)
        FAIL_USAGE("--step: the run has steps 1 to %lld, got %lld", (long long)trainer->steps, (long long)step);
    int64_t first = (step - 1) * accumulation, end = first + accumulation;
    if (end > trainer->total_micro_batches) end = trainer->total_micro_batches;
    inspect_integer(out, "step", step);
    inspect_key(out, "micro_batches");
    text_adds(&out->text, out->json ? "[" : "\n");
    for (int64_t m = first; m < end; m++) {
        const int64_t *sequences;
        int64_t count, epoch;
        TRY(batch_stream_get(&trainer->stream, m, &sequences, &count, &epoch, err));
        if (out->json)
            text_addf(&out->text, "%s{\"number\": %lld, \"epoch\": %lld, \"examples\": [", m > first ? ", " : "", (long long)m,
                      (long long)epoch);
        else
            text_addf(&out->text, "=== micro-batch %lld (epoch %lld): %lld sequences\n", (long long)m, (long long)epoch,
                      (long long)count);
        for (int64_t s = 0; s < count; s++)
            TRY(add_example(out, trainer, sequences[s], s == 0, err));
        text_adds(&out->text, out->json ? "]}" : "");
    }
    text_adds(&out->text, out->json ? "]" : "");
    return OK;
}

/* Files may have changed since: then the run's examples cannot be shown any more, and others must not stand for them. */
static Status want_same_data(const Trainer *trainer, const char *run, Error *err) {
    CheckpointState state;
    int found = 0;
    TRY(checkpoint_peek(run, &state, &found, err));
    if (!found) log_warning("%s: it has no checkpoint; whether its data are still the same cannot be said", run);
    if (found && state.data_hash != trainer_data_hash(trainer))
        FAIL("%s: its data are not what they were in the run (files, tokenizer or template changed)", run);
    return OK;
}

Status inspect_step(InspectOutput *out, const char *run, int64_t step, int threads, Error *err) {
    char *path = path_join(run, "config.json");
    Trainer *trainer = memory_calloc(1, sizeof *trainer);
    Status status = open_data(trainer, path, NULL, 0, threads, err);
    if (status == OK) status = want_same_data(trainer, run, err);
    if (status == OK) status = show_step(out, trainer, step, err);
    trainer_close(trainer);
    memory_free(trainer);
    memory_free(path);
    return status;
}
