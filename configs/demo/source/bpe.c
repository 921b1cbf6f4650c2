#include "bpe.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

enum { BYTES = 256, WORDS_MAX = 8192, WORD_BYTES = 32, VOCABULARY_MAX = 1024 };

typedef struct Word {
    int symbols[WORD_BYTES], length;
    long count;
} Word;

typedef struct Token {
    char bytes[WORD_BYTES + 1];
    int left, right; /* what it was merged from */
} Token;

struct Bpe {
    Word words[WORDS_MAX];
    int word_count;
    Token tokens[VOCABULARY_MAX];
    int token_count;
};

Bpe *bpe_create(void) {
    Bpe *bpe = calloc(1, sizeof *bpe);
    if (bpe == NULL) abort();
    return bpe;
}

void bpe_free(Bpe *bpe) {
    free(bpe);
}

static void count_word(Bpe *bpe, const char *bytes, int length) {
    Word word = {.length = length, .count = 1};
    if (length > WORD_BYTES) abort();
    for (int i = 0; i < length; i++)
        word.symbols[i] = (unsigned char)bytes[i];
    for (int w = 0; w < bpe->word_count; w++) {
        Word *known = &bpe->words[w];
        if (known->length != length || memcmp(known->symbols, word.symbols, (size_t)length * sizeof(int)) != 0) continue;
        known->count++;
        return;
    }
    if (bpe->word_count == WORDS_MAX) abort();
    bpe->words[bpe->word_count++] = word;
}

/* Words are letters with the space before them; everything else is one symbol each and nothing to merge. */
void bpe_count(Bpe *bpe, const char *text) {
    while (*text) {
        const char *begin = text;
        if (*text == ' ') text++;
        while (isalpha((unsigned char)*text))
            text++;
        if (text - begin > 1) count_word(bpe, begin, (int)(text - begin));
        if (text == begin) text++;
    }
}

/* The most frequent pair; of equals the one with the least left, then right symbol. 0: none is left. */
static long best_pair(const Bpe *bpe, int *left, int *right) {
    static long counts[VOCABULARY_MAX][VOCABULARY_MAX];
    memset(counts, 0, sizeof counts);
    for (int w = 0; w < bpe->word_count; w++)
        for (int i = 0; i + 1 < bpe->words[w].length; i++)
            counts[bpe->words[w].symbols[i]][bpe->words[w].symbols[i + 1]] += bpe->words[w].count;
    long best = 0;
    for (int a = 0; a < bpe->token_count; a++)
        for (int b = 0; b < bpe->token_count; b++)
            if (counts[a][b] > best) {
                best = counts[a][b];
                *left = a;
                *right = b;
            }
    return best;
}

static void merge(Word *word, int left, int right, int merged) {
    int kept = 0;
    for (int i = 0; i < word->length; i++) {
        int pair = i + 1 < word->length && word->symbols[i] == left && word->symbols[i + 1] == right;
        word->symbols[kept++] = pair ? merged : word->symbols[i];
        i += pair;
    }
    word->length = kept;
}

void bpe_learn(Bpe *bpe, int vocabulary) {
    if (vocabulary > VOCABULARY_MAX) abort();
    for (int byte = 0; byte < BYTES; byte++)
        bpe->tokens[byte].bytes[0] = (char)byte;
    bpe->token_count = BYTES;
    int left = 0, right = 0;
    while (bpe->token_count < vocabulary - 1 && best_pair(bpe, &left, &right) > 0) {
        Token *token = &bpe->tokens[bpe->token_count];
        token->left = left;
        token->right = right;
        const char *first = bpe->tokens[left].bytes, *second = bpe->tokens[right].bytes;
        size_t length = strlen(first); /* both together are part of a word of at most WORD_BYTES */
        memcpy(token->bytes, first, length);
        memcpy(token->bytes + length, second, strlen(second) + 1);
        for (int w = 0; w < bpe->word_count; w++)
            merge(&bpe->words[w], left, right, bpe->token_count);
        bpe->token_count++;
    }
}

/* ---- tokenizer.json ---------------------------------------------------------------------------------------------------- */

/* A byte as GPT-2 writes it: printable Latin-1 for itself, the others in order from code point 256 on. Source: openai/gpt-2,
 * encoder.py, bytes_to_unicode. */
static void print_byte(FILE *file, int byte) {
    int code = byte, others = 0;
    for (int b = 0; b <= byte; b++) {
        int itself = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        if (b == byte && !itself) code = BYTES + others;
        others += !itself;
    }
    if (code == '"' || code == '\\')
        fprintf(file, "\\%c", code);
    else if (code < 128)
        fputc(code, file);
    else
        fprintf(file, "\\u%04x", (unsigned)code);
}

static void print_token(const Bpe *bpe, int id, FILE *file) {
    if (id < BYTES) {
        print_byte(file, id);
        return;
    }
    for (const char *c = bpe->tokens[id].bytes; *c; c++)
        print_byte(file, (unsigned char)*c);
}

void bpe_print(const Bpe *bpe, FILE *file) {
    static const char byte_level[] =
        "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, \"use_regex\": true}";
    int end = bpe->token_count;
    fprintf(file,
            "{\n \"version\": \"1.0\",\n \"truncation\": null,\n \"padding\": null,\n"
            " \"added_tokens\": [{\"id\": %d, \"content\": \"<|end|>\", \"single_word\": false, \"lstrip\": false, "
            "\"rstrip\": false, \"normalized\": false, \"special\": true}],\n"
            " \"normalizer\": null,\n \"pre_tokenizer\": %s,\n \"post_processor\": null,\n \"decoder\": %s,\n",
            end, byte_level, byte_level);
    fputs(
        " \"model\": {\"type\": \"BPE\", \"dropout\": null, \"unk_token\": null, \"continuing_subword_prefix\": null, "
        "\"end_of_word_suffix\": null, \"fuse_unk\": false, \"byte_fallback\": false,\n  \"vocab\": {\n",
        file);
    for (int id = 0; id < end; id++) {
        fputs("   \"", file);
        print_token(bpe, id, file);
        fprintf(file, "\": %d,\n", id);
    }
    fprintf(file, "   \"<|end|>\": %d\n  },\n  \"merges\": [\n", end);
    for (int id = BYTES; id < end; id++) {
        fputs("   \"", file);
        print_token(bpe, bpe->tokens[id].left, file);
        fputc(' ', file);
        print_token(bpe, bpe->tokens[id].right, file);
        fputs(id + 1 < end ? "\",\n" : "\"\n", file);
    }
    fputs("  ]\n }\n}\n", file);
}
