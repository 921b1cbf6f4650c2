/* A data file's bytes: the first two choose layout, template, what is trained, the form and the limits, the rest is the file. What is
 * accepted must be whole: masks that never begin a sequence, ids in the vocabulary, lengths in bounds, and the same again
 * with bad records left out. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "data/dataset.h"
#include "data/packing.h"
#include "data/template.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static Tokenizer *open_tokenizer(void) {
    static Tokenizer *tokenizer; /* opened once for the process */
    Error err;
    if (tokenizer == NULL && tokenizer_open(&tokenizer, "tests/golden/tokenizer_llama2_style.json", &err) != OK) {
        fprintf(stderr, "%s (run from the repository's root)\n", err.text);
        abort();
    }
    return tokenizer;
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
                              .tokenizer = open_tokenizer(),
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
