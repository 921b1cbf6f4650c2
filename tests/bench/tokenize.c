/* Encodes a text file piece by piece and prints the throughput; tests/bench/tokenize.py runs it beside the `tokenizers` package.
 *
 *   tokenize TOKENIZER TEXT PIECE_BYTES SECONDS
 *
 * Every pass encodes the whole text in pieces that end at a line. Printed: MB/s of the best pass, tokens of one pass. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/file.h"
#include "core/memory.h"
#include "core/text.h"
#include "data/tokenizer.h"

static void check(Status status, const Error *err) {
    if (status == OK) return;
    fprintf(stderr, "tokenize: %s\n", err->text);
    exit(1);
}

/* End of the piece that starts at `at`: the first line end after `size` bytes. */
static size_t piece_end(const char *text, size_t length, size_t at, size_t size) {
    if (length - at <= size) return length;
    const char *line = memchr(text + at + size, '\n', length - at - size);
    return line ? (size_t)(line - text) + 1 : length;
}

/* Of this process, which has one thread: other work on the machine counts less. */
static double processor_seconds(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int main(int argc, char **argv) {
    if (argc != 5) {
        fprintf(stderr, "usage: tokenize TOKENIZER TEXT PIECE_BYTES SECONDS\n");
        return 2;
    }
    Tokenizer *tokenizer;
    Error err;
    char *text;
    size_t length, size = strtoul(argv[3], NULL, 10);
    double seconds = strtod(argv[4], NULL), best = 0, spent = 0;
    check(tokenizer_open(&tokenizer, argv[1], &err), &err);
    check(file_read(argv[2], (size_t)1 << 30, &text, &length, &err), &err);
    TokenBuffer tokens = {0};
    while (spent < seconds) {
        double start = processor_seconds();
        tokens.count = 0;
        for (size_t at = 0, end; at < length; at = end) {
            end = piece_end(text, length, at, size);
            check(tokenizer_encode(tokenizer, text + at, end - at, 0, 1, &tokens, &err), &err);
        }
        double took = processor_seconds() - start, rate = (double)length / 1e6 / took;
        if (rate > best) best = rate;
        spent += took;
    }
    printf("%.3f %lld\n", best, (long long)tokens.count);
    token_buffer_free(&tokens);
    tokenizer_close(tokenizer);
    memory_free(text);
    return 0;
}
