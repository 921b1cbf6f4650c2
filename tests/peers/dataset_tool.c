/* dataset_tool TOKENIZER DATA TEMPLATE TRAIN_ON SCRATCH: every line of a JSONL file as a data set of its own, through dataset_read;
 * for chat_parity.py. Prints a line for each: {"ids": […], "train": […]}, or {"error": "…"}. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/log.h"
#include "core/memory.h"
#include "core/text.h"
#include "data/dataset.h"

#define FILE_LIMIT ((size_t)64 << 20)

static void add_result(Text *out, Status status, const Dataset *d, const Error *error) {
    if (status != OK) {
        text_adds(out, "{\"error\": ");
        text_add_json_string(out, error->text, strlen(error->text));
        text_adds(out, "}\n");
        return;
    }
    text_adds(out, "{\"ids\": [");
    for (int64_t t = 0; t < d->tokens; t++)
        text_addf(out, "%s%d", t > 0 ? ", " : "", d->ids[t]);
    text_adds(out, "], \"train\": [");
    for (int64_t t = 0; t < d->tokens; t++)
        text_addf(out, "%s%d", t > 0 ? ", " : "", d->train[t] != 0);
    text_adds(out, "]}\n");
}

static Status run(char **argv, Text *out, Error *err) {
    char *text = NULL;
    size_t length = 0;
    Tokenizer *tokenizer = NULL;
    DatasetOptions options = {.path = argv[5], .template_name = argv[3], .max_length = 1 << 20, .eos_id = -1};
    Status status = OK;
    options.train_on = strcmp(argv[4], "all") == 0    ? TRAIN_ON_ALL
                       : strcmp(argv[4], "last") == 0 ? TRAIN_ON_LAST
                                                      : TRAIN_ON_ASSISTANT;
    TRY_GOTO(tokenizer_open(&tokenizer, argv[1], err));
    TRY_GOTO(file_read(argv[2], FILE_LIMIT, &text, &length, err));
    options.tokenizer = tokenizer;
    for (size_t at = 0; at < length;) {
        const char *end = memchr(text + at, '\n', length - at);
        size_t n = end == NULL ? length - at : (size_t)(end - text) - at;
        Dataset d = {0};
        Error error = {0};
        TRY_GOTO(file_write_atomic(argv[5], text + at, n, err));
        add_result(out, dataset_read(&options, &d, &error), &d, &error);
        dataset_free(&d);
        at += n + 1;
    }
done:
    memory_free(text);
    tokenizer_close(tokenizer);
    return status;
}

int main(int argc, char **argv) {
    Error error = {0};
    Text out = {0};
    if (argc == 6 && run(argv, &out, &error) == OK) {
        (void)fwrite(out.data, 1, out.length, stdout);
        text_free(&out);
        return EXIT_SUCCESS;
    }
    (void)fprintf(stderr, "%s\n", argc == 6 ? error.text : "usage: dataset_tool TOKENIZER DATA TEMPLATE TRAIN_ON SCRATCH");
    return EXIT_FAILURE;
}
