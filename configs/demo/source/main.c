/* world FOLDER [SEED]: writes text.jsonl, train.jsonl, held_out.jsonl and tokenizer.json, always the same bytes. The base was trained on
 * seed 1, which is taken where none is given; other seeds tell the same facts in other words. */
#include "bpe.h"
#include "world.h"

#include <stdlib.h>

enum { DOCUMENTS = 14000, VOCABULARY = 1024 };

static FILE *create(const char *folder, const char *name) {
    char path[4096];
    int length = snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = length > 0 && (size_t)length < sizeof path ? fopen(path, "w") : NULL;
    if (file == NULL) {
        fprintf(stderr, "world: cannot write %s/%s\n", folder, name);
        exit(1);
    }
    return file;
}

static void finish(FILE *file) {
    int bad = ferror(file);
    if (fclose(file) == 0 && !bad) return;
    fputs("world: writing failed; is the disk full?\n", stderr);
    exit(1);
}

int main(int argc, char **argv) {
    char *end = NULL;
    unsigned long long seed = argc == 3 ? strtoull(argv[2], &end, 10) : 1;
    if (argc < 2 || argc > 3 || (end != NULL && (end == argv[2] || *end != '\0'))) {
        fputs("usage: world FOLDER [SEED]\n", stderr);
        return 2;
    }
    FILE *text_file = create(argv[1], "text.jsonl"), *tokenizer = create(argv[1], "tokenizer.json");
    FILE *train = create(argv[1], "train.jsonl"), *held_out = create(argv[1], "held_out.jsonl");
    Bpe *bpe = bpe_create();
    Random random = {seed};
    char text[DOCUMENT_MAX];
    for (int d = 0; d < DOCUMENTS; d++) {
        write_document(&random, text);
        fprintf(text_file, "{\"text\": \"%s\"}\n", text); /* nothing in it needs an escape */
        bpe_count(bpe, text);
    }
    bpe_learn(bpe, VOCABULARY);
    bpe_print(bpe, tokenizer);
    bpe_free(bpe);
    int apart = write_questions(train, held_out);
    finish(text_file);
    finish(tokenizer);
    finish(train);
    finish(held_out);
    if (apart) return 0;
    fputs("world: a held-out question is among those for training\n", stderr);
    return 1;
}
