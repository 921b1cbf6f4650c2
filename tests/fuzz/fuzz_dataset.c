/* A data file's bytes: the first two choose layout, template, what is trained, the form and the limits, the rest is the file. The
 * template "auto" is a model's own, which knows tools and reasoning. What is accepted must be whole: masks that never begin a sequence, ids in the vocabulary, lengths in bounds, and the same again
 * with bad records left out. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "core/file.h"
#include "core/memory.h"
#include "data/dataset.h"
#include "data/packing.h"
#include "data/template.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define VOCABULARY "tests/golden/tokenizer_llama2_style.json"

/* Definitions stand at the last question, so that a conversation's beginning is not rendered as it is in the whole. */
static const char config[] =
    "{\"bos_token\":\"<s>\",\"eos_token\":\"</s>\",\"chat_template\":\"{% set users = messages | selectattr('role', 'equalto', "
    "'user') | list %}{% for m in messages %}{% if tools and m == users[-1] %}[T]{{ tools | tojson }}{% endif %}<{{ m.role }}>"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content or '' }}{% for c in "
    "m.tool_calls "
    "or [] %}<call>{{ (c.function or c).name }}{{ (c.function or c).arguments | tojson }}{% endfor %}{% if m.name %}{{ m.name "
    "}}"
    "{% endif %}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}\"}";

static void fail(const char *message) {
    fprintf(stderr, "%s (run from the repository's root)\n", message);
    abort();
}

static void copy_vocabulary(const char *path) {
    char *text;
    size_t length;
    Error err;
    if (file_read(VOCABULARY, (size_t)64 << 20, &text, &length, &err) != OK ||
        file_write_atomic(path, text, length, &err) != OK)
        fail(err.text);
    memory_free(text);
}

/* A model's folder, made for the time of opening it. */
static Tokenizer *open_folder(void) {
    char folder[64], vocabulary[96], settings[96];
    Tokenizer *tokenizer;
    Error err;
    snprintf(folder, sizeof folder, "/tmp/nibble-fuzz-model-%ld", (long)getpid());
    snprintf(vocabulary, sizeof vocabulary, "%s/tokenizer.json", folder);
    snprintf(settings, sizeof settings, "%s/tokenizer_config.json", folder);
    if (folder_create(folder, &err) != OK) fail(err.text);
    copy_vocabulary(vocabulary);
    if (file_write_atomic(settings, config, sizeof config - 1, &err) != OK) fail(err.text);
    if (tokenizer_open(&tokenizer, folder, &err) != OK) fail(err.text);
    unlink(vocabulary);
    unlink(settings);
    rmdir(folder);
    return tokenizer;
}

/* Both are opened once for the process. */
static Tokenizer *open_tokenizer(int with_template) {
    static Tokenizer *tokenizers[2];
    Error err;
    if (tokenizers[0] == NULL) {
        if (tokenizer_open(&tokenizers[0], VOCABULARY, &err) != OK) fail(err.text);
        tokenizers[1] = open_folder();
    }
    return tokenizers[with_template];
}

static void check(const Dataset *d, const DatasetOptions *options) {
    int64_t vocab = tokenizer_vocab_size(options->tokenizer);
    if (d->count <= 0 || d->start[0] != 0 || d->start[d->count] != d->tokens) abort();
    for (int64_t i = 0; i < d->count; i++) {
        int64_t length = d->start[i + 1] - d->start[i];
        if (length < 2 || length > options->max_length || d->train[d->start[i]] != 0) abort();
        for (int64_t t = d->start[i]; t < d->start[i + 1]; t++) {
            if (d->ids[t] < 0 || d->ids[t] >= vocab || d->train[t] > 1) abort();
        }
    }
}

static void split_and_pack(const Dataset *d, int64_t window) {
    Dataset train, held;
    PackPlan *plan = NULL;
    Error err;
    if (dataset_split(d, 0.3, 1, &train, &held, &err) != OK) abort();
    if (train.count + held.count != d->count || train.count == 0) abort();
    train.files[0].weight = 1.5; /* half of the sequences twice */
    if (pack_epoch(&plan, &train, PACKING_BEST_FIT, window, 1, 0, 1, &err) != OK) abort();
    int64_t packed = 0;
    for (int64_t w = 0; w < pack_count(plan); w++) {
        const int64_t *sequences;
        int64_t count;
        pack_get(plan, w, &sequences, &count);
        packed += count;
    }
    if (packed != (3 * train.count + 1) / 2) abort();
    pack_free(plan);
    dataset_free(&train);
    dataset_free(&held);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char path[64];
    Dataset d;
    Error err;
    if (size < 2) return 0;
    static const char *const forms[] = {".jsonl", ".csv", ".tsv", ".jsonl.gz", ".csv.zst", ".txt.zst"};
    int templates = 0;
    while (template_names[templates] != NULL)
        templates++;
    int choice = data[1] % (templates + 1), rest = data[1] / (templates + 1);
    snprintf(path, sizeof path, "/tmp/nibble-fuzz-dataset-%ld%s", (long)getpid(), data[0] & 1 ? ".txt" : forms[rest % 6]);
    FILE *file = fopen(path, "wb");
    if (file == NULL || fwrite(data + 2, 1, size - 2, file) != size - 2 || fclose(file) != 0) abort();
    DatasetOptions options = {.path = path,
                              .layout = (DataLayout)((data[0] >> 1) % LAYOUT_MIXED),
                              .template_name = choice == templates ? "auto" : template_names[choice],
                              .train_on = (TrainOn)((data[0] >> 4) % 3),
                              .on_error = ON_ERROR_FAIL,
                              .too_long = (TooLong)(rest / 6 % 4),
                              .max_length = 2 + (data[0] >> 6) * 20,
                              .tokenizer = open_tokenizer(choice == templates),
                              .eos_id = 2};
    for (int skips = 0; skips < 2; skips++) {
        options.on_error = skips ? ON_ERROR_SKIP : ON_ERROR_FAIL;
        if (dataset_read(&options, &d, &err) != OK) continue;
        check(&d, &options);
        split_and_pack(&d, options.max_length);
        dataset_free(&d);
    }
    unlink(path);
    return 0;
}
