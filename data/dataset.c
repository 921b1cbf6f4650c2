/* Reading a data set: batches of records (dataset_batches.c), tokenized side by side, appended in file order.
 *
 * Memory is a few batches and the result. Nothing depends on the number of threads: an item writes only its own slot, and
 * slots are looked at in order.
 */
#include "data/dataset.h"

#include <string.h>
#include <sys/stat.h>

#include "core/log.h"
#include "core/memory.h"
#include "data/data_files.h"
#include "data/dataset_internal.h"

#define PROGRESS_SECONDS 5.0

typedef struct Run {
    const DatasetOptions *options;
    const char *path; /* of the file being read */
    int64_t numbers;  /* of records in the files before; last_number is the last one in this file */
    int64_t last_number;
    const Layout *layout; /* NULL until a record of the file showed it */
    EncodeRules rules;
    BatchReader reader;
    const RecordBatch *batch; /* being tokenized */
    Slot *slots;              /* of its records */
    EncodeScratch *scratch;   /* per worker */
    int workers;
    uint64_t bytes_before, bytes_total; /* on disk: of the files before this one; of all */
    double begin, reported;             /* clock */
    CacheWriter *writer;                /* NULL: the sequences go to out */
    SkipKinds skips;
    Dataset *out;
} Run;

static Status encode_slot(const Run *run, const Slot *slot, EncodeScratch *scratch, Encoded *encoded, Error *err) {
    const char *text = run->batch->text.data + slot->offset;
    const char *path = run->path;
    record_clear(&scratch->record);
    if (run->reader.file.form == FORM_DOCUMENTS) {
        scratch->record.text = memory_alloc(slot->length);
        memcpy(scratch->record.text, text, slot->length);
        scratch->record.text_length = slot->length;
    } else {
        TRY(layout_read_record(run->layout, path, text, slot->length, slot->line, &scratch->record, err));
    }
    if (run->layout->id == LAYOUT_PREFERENCE) return OK; /* valid, and all there is to do with it */
    if (strcmp(run->rules.template_name, "alpaca") != 0) record_join_input(&scratch->record);
    Status status = run->layout->id == LAYOUT_TEXT ? encode_text(&run->rules, scratch, encoded, err)
                                                   : encode_conversation(&run->rules, scratch, encoded, err);
    if (status != OK) error_prefix(err, "%s: line %lld", path, (long long)slot->line);
    return status;
}

static void encode_item(void *context, int64_t item, int worker) {
    Run *run = context;
    Slot *slot = &run->slots[item];
    Error error = {0};
    const Layout *unused = NULL;
    if (slot->reason != NULL) return;
    slot->status = run->layout == NULL ? layout_detect(run->path, run->batch->text.data + slot->offset, slot->length,
                                                       slot->line, &unused, &error)
                                       : encode_slot(run, slot, &run->scratch[worker], &slot->encoded, &error);
    if (slot->status != OK) slot->reason = memory_strdup(error.text);
}

static Status append_piece(const Run *run, const Encoded *e, int64_t at, int64_t count, int64_t record, Error *err) {
    Dataset *out = run->out;
    if (run->writer == NULL) {
        dataset_append(out, e->ids + at, e->train + at, count, record);
        return OK;
    }
    out->count++;
    out->tokens += count;
    out->files[out->file_count - 1].count++;
    return cache_writer_append(run->writer, e->ids + at, e->train + at, count, record, err);
}

/* Long text goes into pieces of max_length. A piece starts with the last token of the piece before it, because a first
 * token is no target: so every token but the document's first is trained exactly once. Only the first piece has BOS. */
static Status append_encoded(const Run *run, const Slot *slot, Error *err) {
    Dataset *out = run->out;
    const Encoded *e = &slot->encoded;
    int64_t trained = 0, longest = run->options->max_length;
    out->with_tools += e->tools;
    out->truncated += e->truncated;
    out->dropped += e->dropped;
    if (e->dropped) return OK;
    for (int64_t t = 0; t < e->count; t++)
        trained += e->train[t];
    if (trained == 0) {
        out->skipped_untrained++;
        return OK;
    }
    out->split += e->count > longest;
    for (int64_t at = 0; at == 0 || at + 1 < e->count; at += longest - 1) {
        int64_t left = e->count - at;
        TRY(append_piece(run, e, at, left < longest ? left : longest, run->numbers + slot->number, err));
    }
    return OK;
}

static Status collect_slot(Run *run, Slot *slot, Error *err) {
    Dataset *out = run->out;
    out->records++;
    out->files[out->file_count - 1].records++;
    if (slot->status == OK) return append_encoded(run, slot, err);
    if (run->options->on_error == ON_ERROR_FAIL) {
        return error_set(err, slot->status, "%s (set data.on_error to \"skip\" to leave out bad records)", slot->reason);
    }
    out->skipped_bad++;
    skips_add(&run->skips, slot->reason);
    slot->reason = NULL;
    return OK;
}

/* "chatml, qwen2.5, …" */
static void list_templates(Text *text) {
    for (int i = 0; template_names[i] != NULL; i++)
        text_addf(text, "%s%s", i > 0 ? ", " : "", template_names[i]);
}

static Status refuse_template(const Run *run, const char *reason, Error *err) {
    Text names = {0};
    list_templates(&names);
    (void)error_set(err, ERR_USAGE, "data.template: %s; choose one of %s (layout \"%s\" of %s)", reason, names.data,
                    run->layout->name, run->path);
    text_free(&names);
    return ERR_USAGE;
}

/* Conversations for a model that was never taught any: chatml where its marks are tokens, else zephyr, whose turns end with the
 * EOS token that every model has. Said aloud, because whoever talks to the model later has to write the same. */
static const char *template_for_base(const Run *run) {
    const Tokenizer *tokenizer = run->options->tokenizer;
    int marks = tokenizer_token_id(tokenizer, "<|im_start|>") >= 0 && tokenizer_token_id(tokenizer, "<|im_end|>") >= 0;
    const char *name = marks ? "chatml" : "zephyr";
    Text names = {0};
    list_templates(&names);
    log_warning(
        "%s: the tokenizer has no chat template; conversations are written as \"%s\". data.template chooses another: %s",
        run->path, name, names.data);
    text_free(&names);
    return name;
}

static Status choose_template(const Run *run, const char **name, Error *err) {
    const char *wanted = run->options->template_name;
    int is_auto = wanted == NULL || strcmp(wanted, "auto") == 0;
    const char *jinja = tokenizer_chat_template(run->options->tokenizer);
    if (run->layout->id == LAYOUT_TEXT) {
        if (!is_auto && strcmp(wanted, "plain") != 0) {
            FAIL_USAGE("data.template: \"%s\" has nothing to render in plain text (%s); set it to \"auto\"", wanted, run->path);
        }
        *name = "plain";
        return OK;
    }
    int is_model = !is_auto && strcmp(wanted, TEMPLATE_MODEL) == 0;
    if (is_model && jinja == NULL) return refuse_template(run, "the model has no chat template of its own", err);
    if (!is_auto && !is_model) {
        if (!template_exists(wanted)) return refuse_template(run, "there is no such built-in template", err);
        *name = wanted;
        return OK;
    }
    if (is_model || (run->layout->uses_model_template && jinja != NULL)) {
        *name = template_recognise(jinja);
        if (*name == NULL) *name = TEMPLATE_MODEL;
        return OK;
    }
    *name = run->layout->default_template;
    if (*name == NULL) *name = template_for_base(run);
    return OK;
}

static const char *spelling(const Tokenizer *tokenizer, int32_t id) {
    const char *text = id < 0 ? NULL : tokenizer_token(tokenizer, id);
    return text == NULL ? "" : text;
}

/* The model's own template, where it is what was chosen; also where a built-in was recognised in it, which renders the same but
 * for tools. There it need not open: records with tools are refused then, and others need nothing of it. */
static Status open_template(Run *run, Error *err) {
    EncodeRules *rules = &run->rules;
    const char *wanted = run->options->template_name;
    int is_auto = wanted == NULL || strcmp(wanted, "auto") == 0, is_model = strcmp(rules->template_name, TEMPLATE_MODEL) == 0;
    int is_own = (is_auto && run->layout->uses_model_template) || (!is_auto && strcmp(wanted, TEMPLATE_MODEL) == 0);
    Error reason = {0};
    if (!is_model && is_own && tokenizer_chat_template(rules->tokenizer) != NULL)
        (void)template_jinja_open(&rules->tools_jinja, rules->tokenizer, rules->bos, rules->eos, &reason);
    if (!is_model) return OK;
    if (template_jinja_open(&rules->jinja, rules->tokenizer, rules->bos, rules->eos, &reason) == OK) return OK;
    return refuse_template(run, reason.text, err);
}

static Status name_file(Run *run) {
    DatasetFile *file = &run->out->files[run->out->file_count - 1];
    file->layout = run->layout->id;
    if (run->rules.template_name != NULL)
        strncpy(file->template_name, run->rules.template_name, sizeof file->template_name - 1);
    return OK;
}

static Status set_too_long(Run *run, Error *err) {
    int is_text = run->layout->id == LAYOUT_TEXT;
    if (run->rules.too_long == TOO_LONG_AUTO) run->rules.too_long = is_text ? TOO_LONG_SPLIT : TOO_LONG_TRUNCATE;
    if (run->rules.too_long != TOO_LONG_SPLIT || is_text) return OK;
    FAIL_USAGE(
        "data.too_long: \"split\" is for plain text, and %s has the layout \"%s\", whose pieces would lose their "
        "question; choose truncate or drop",
        run->path, run->layout->name);
}

/* Once the layout is known: the template, and the tokens that begin and end. */
static Status set_rules(Run *run, Error *err) {
    const DatasetOptions *o = run->options;
    EncodeRules *rules = &run->rules;
    *rules = (EncodeRules){.tokenizer = o->tokenizer,
                           .bos_id = tokenizer_bos(o->tokenizer),
                           .eos_id = o->eos_id >= 0 ? o->eos_id : tokenizer_eos(o->tokenizer),
                           .open_documents = o->open_documents,
                           .train_on = o->train_on,
                           .max_length = o->max_length,
                           .too_long = o->too_long};
    if (run->layout->id == LAYOUT_PREFERENCE) return name_file(run);
    TRY(set_too_long(run, err));
    TRY(choose_template(run, &rules->template_name, err));
    rules->bos = spelling(o->tokenizer, rules->bos_id);
    rules->eos = spelling(o->tokenizer, rules->eos_id);
    TRY(open_template(run, err));
    if (rules->eos_id >= tokenizer_vocab_size(o->tokenizer)) {
        FAIL("the EOS id %d is outside of the tokenizer's vocabulary of %lld", rules->eos_id,
             (long long)tokenizer_vocab_size(o->tokenizer));
    }
    if (rules->eos_id < 0 && template_needs_eos(rules->template_name)) {
        FAIL(
            "the tokenizer names no EOS token, and the template \"%s\" needs one to end an answer; add eos_token to "
            "tokenizer_config.json",
            rules->template_name);
    }
    return name_file(run);
}

/* The first record that is one decides. */
static Status find_layout(Run *run, Error *err) {
    if (run->reader.file.form == FORM_DOCUMENTS) {
        if (run->options->layout != LAYOUT_AUTO && run->options->layout != LAYOUT_TEXT) {
            FAIL_USAGE("data.layout: \"%s\" wants JSON records, and %s is a plain text file", layout_name(run->options->layout),
                       run->path);
        }
        run->layout = &layout_text;
    } else {
        run->layout = layout_find(run->options->layout);
    }
    for (int64_t i = 0; i < run->batch->count && run->layout == NULL; i++) {
        const Slot *slot = &run->slots[i];
        if (slot->reason != NULL) continue;
        Status status =
            layout_detect(run->path, run->batch->text.data + slot->offset, slot->length, slot->line, &run->layout, err);
        if (status != OK && run->options->on_error == ON_ERROR_FAIL) return status;
    }
    return run->layout == NULL ? OK : set_rules(run, err);
}

static void report_progress(Run *run) {
    double now = clock_seconds(), seconds = now - run->begin;
    if (now - run->reported < PROGRESS_SECONDS) return;
    char done[32], total[32], left[32];
    double bytes = (double)(run->bytes_before + run->batch->consumed), part = bytes / (double)run->bytes_total;
    if (!(part > 0.0 && part <= 1.0)) return; /* a file grew while it was read */
    run->reported = now;
    log_info("tokenizing: %s of %s (%.0f %%), %lld records, %lld tokens, %.0f tokens/s, %s left",
             format_bytes(bytes, done, sizeof done), format_bytes((double)run->bytes_total, total, sizeof total), 100.0 * part,
             (long long)run->out->records, (long long)run->out->tokens, (double)run->out->tokens / seconds,
             format_duration(seconds / part - seconds, left, sizeof left));
}

static Status read_batches(Run *run, Error *err) {
    for (;;) {
        TRY(batch_reader_next(&run->reader, &run->batch, err));
        if (run->batch->count == 0) return OK;
        run->slots = run->batch->slots;
        if (run->layout == NULL) TRY(find_layout(run, err));
        pool_run(run->options->pool, encode_item, run, run->batch->count);
        for (int64_t i = 0; i < run->batch->count; i++)
            TRY(collect_slot(run, &run->slots[i], err));
        run->last_number = run->slots[run->batch->count - 1].number;
        report_progress(run);
    }
}

/* ---- all files ----------------------------------------------------------------------------------------------------------- */

static Status check_result(const DatasetOptions *options, const Dataset *d, Error *err) {
    const char *path = d->files[0].path, *more = d->file_count > 1 ? " (and the files after it)" : "";
    for (int64_t f = 0; f < d->file_count; f++) {
        if (d->files[f].layout != LAYOUT_PREFERENCE) continue;
        FAIL(
            "%s: preference pairs (chosen and rejected): %lld records are read and valid, %lld bad ones were skipped; "
            "preference training has not landed. To train on the chosen answers, write them as messages, or prompt and "
            "completion",
            d->files[f].path, (long long)(d->files[f].records - (d->file_count == 1 ? d->skipped_bad : 0)),
            (long long)d->skipped_bad);
    }
    if (d->count > 0) return OK;
    if (d->records == 0) FAIL("%s%s: there are no records in it", path, more);
    FAIL(
        "%s%s: nothing in it is trained: of %lld records %lld were bad%s%.*s%s, %lld were dropped for their length, and %lld "
        "had "
        "no trained token (%lld of them or others were cut at data.max_length %lld; raise it if answers come late, and look at "
        "data.train_on and at empty texts)",
        path, more, (long long)d->records, (long long)d->skipped_bad, d->skip_reasons != NULL ? " (" : "",
        d->skip_reasons != NULL ? (int)strcspn(d->skip_reasons, "\n") : 0, d->skip_reasons != NULL ? d->skip_reasons : "",
        d->skip_reasons != NULL ? ")" : "", (long long)d->dropped, (long long)d->skipped_untrained, (long long)d->truncated,
        (long long)options->max_length);
}

static Status read_file(Run *run, const DatasetFile *file, Error *err) {
    run->path = file->path;
    run->layout = NULL;
    run->rules = (EncodeRules){0};
    run->numbers += run->last_number;
    run->last_number = 0;
    dataset_add_file(run->out, file->path, file->weight);
    TRY(batch_reader_open(&run->reader, file->path, run->options->pool != NULL, err));
    Status status = read_batches(run, err);
    run->bytes_before += run->reader.file.source.size;
    template_jinja_close(run->rules.jinja);
    template_jinja_close(run->rules.tools_jinja);
    batch_reader_close(&run->reader);
    return status;
}

static Status list_source(const DatasetSource *source, Dataset *out, Error *err) {
    DataFiles files;
    Status status = OK;
    if (!(source->weight > 0 && source->weight <= DATASET_WEIGHT_MAX))
        FAIL_USAGE("data.path: %s: want a weight above 0 and at most %d, got %g", source->path, DATASET_WEIGHT_MAX,
                   source->weight);
    TRY(data_files_expand(source->path, &files, err));
    for (int64_t i = 0; i < files.count && status == OK; i++) {
        for (int64_t f = 0; f < out->file_count && status == OK; f++) {
            if (strcmp(out->files[f].path, files.names[i]) == 0)
                status =
                    error_set(err, ERR_USAGE, "data.path: %s is named twice; a weight makes it count more", files.names[i]);
        }
        if (status == OK) dataset_add_file(out, files.names[i], source->weight);
    }
    data_files_free(&files);
    return status;
}

Status dataset_list_files(const DatasetOptions *options, Dataset *out, Error *err) {
    DatasetSource only = {options->path, 1};
    if (options->sources == NULL) return list_source(&only, out, err);
    for (int64_t s = 0; s < options->source_count; s++)
        TRY(list_source(&options->sources[s], out, err));
    return OK;
}

uint64_t dataset_file_bytes(const Dataset *names) {
    uint64_t total = 0;
    for (int64_t f = 0; f < names->file_count; f++) {
        struct stat info;
        if (stat(names->files[f].path, &info) == 0 && info.st_size > 0) total += (uint64_t)info.st_size;
    }
    return total;
}

Status dataset_read_into(const DatasetOptions *options, Dataset *out, CacheWriter *writer, Error *err) {
    Run run = {.options = options, .out = out, .writer = writer, .workers = pool_threads(options->pool)};
    Dataset names = {0};
    Status status = OK;
    *out = (Dataset){0};
    if (options->max_length < 2)
        FAIL_USAGE("data.max_length: want at least 2 tokens, got %lld", (long long)options->max_length);
    run.scratch = memory_calloc((size_t)run.workers, sizeof *run.scratch);
    TRY_GOTO(dataset_list_files(options, &names, err));
    run.bytes_total = dataset_file_bytes(&names);
    run.begin = run.reported = clock_seconds();
    for (int64_t f = 0; f < names.file_count; f++)
        TRY_GOTO(read_file(&run, &names.files[f], err));
    out->skip_reasons = skips_print(&run.skips);
    TRY_GOTO(check_result(options, out, err));
done:
    skips_free(&run.skips);
    for (int w = 0; w < run.workers; w++)
        encode_scratch_free(&run.scratch[w]);
    memory_free(run.scratch);
    dataset_free(&names);
    if (status != OK) dataset_free(out);
    return status;
}

Status dataset_read(const DatasetOptions *options, Dataset *out, Error *err) {
    if (options->cache != NULL) return dataset_read_cached(options, out, err);
    TRY(dataset_read_into(options, out, NULL, err));
    dataset_name_layout(out);
    dataset_finish(out);
    return OK;
}
