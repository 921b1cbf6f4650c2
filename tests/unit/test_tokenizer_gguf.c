/* Tokenizers read from GGUF files: llama.cpp's own vectors, what a file says of BOS and templates, what is refused. */
#include "tests/unit/test_core.h"

#include "core/file.h"
#include "core/memory.h"
#include "core/text.h"
#include "data/gguf_tokenizer.h"
#include "data/tokenizer.h"
#include "tests/support/compare.h"
#include "tests/support/scratch.h"

#define ASSETS "../shared/assets/"
#define VOCABULARIES ASSETS "tokenizers/ggml-vocab/ggml-vocab-"
#define TEXTS 46 /* in each file of vectors */

static int absent(const char *path) {
    if (file_exists(path)) return 0;
    print_message("SKIP: %s is not there\n", path);
    return 1;
}

static Tokenizer *open_tokenizer(const char *path) {
    Tokenizer *tokenizer;
    Error err;
    assert_ok(tokenizer_open(&tokenizer, path, &err), &err);
    return tokenizer;
}

static char *read_text(const char *path) {
    char *text;
    size_t length;
    Error err;
    assert_ok(file_read(path, (size_t)1 << 20, &text, &length, &err), &err);
    return text;
}

static void encode(const Tokenizer *tokenizer, const char *text, int special, TokenBuffer *out) {
    Error err;
    out->count = 0;
    assert_ok(tokenizer_encode(tokenizer, text, strlen(text), special, 1, out, &err), &err);
}

/* Texts between lines of __ggml_vocab_test__, a line of ids for each, without BOS. */
static int check_lines(const char *name, const Tokenizer *tokenizer) {
    static const char separator[] = "\n__ggml_vocab_test__\n";
    char *input = memory_format(VOCABULARIES "%s.gguf.inp", name), *output = memory_format(VOCABULARIES "%s.gguf.out", name);
    char *texts = read_text(input), *lines = read_text(output), *line = lines;
    TokenBuffer tokens = {0};
    int equal = 0;
    for (char *text = texts, *end; (end = strstr(text, separator)) != NULL; text = end + strlen(separator)) {
        *end = 0;
        encode(tokenizer, text, 0, &tokens);
        for (int64_t i = 0; i < tokens.count; i++) {
            long want = strtol(line, &line, 10);
            if (tokens.ids[i] != want)
                fail_msg("%s: text %d '%s': token %lld: want %ld, got %d", name, equal, text, (long long)i, want,
                         tokens.ids[i]);
        }
        while (*line == ' ')
            line++;
        if (*line != '\n') fail_msg("%s: text %d '%s': want more tokens than %lld", name, equal, text, (long long)tokens.count);
        line++;
        equal++;
    }
    assert_int_equal(equal, TEXTS);
    token_buffer_free(&tokens);
    memory_free(texts);
    memory_free(lines);
    memory_free(input);
    memory_free(output);
    return equal;
}

static void test_vectors(void **state) {
    (void)state;
    static const struct {
        const char *name, *tokenizer; /* NULL: the vocabulary in the GGUF file beside the vectors */
    } files[] = {{"deepseek-coder", NULL}, {"gpt-2", NULL},
                 {"llama-spm", NULL},      {"mpt", NULL},
                 {"phi-3", NULL},          {"qwen2", ASSETS "tokenizers/qwen2.5"},
                 {"starcoder", NULL}};
    int count = 0, lines = 0;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char *path = files[i].tokenizer != NULL ? memory_strdup(files[i].tokenizer)
                                                : memory_format(VOCABULARIES "%s.gguf", files[i].name);
        if (!absent(path)) {
            Tokenizer *tokenizer = open_tokenizer(path);
            lines += check_lines(files[i].name, tokenizer);
            count++;
            tokenizer_close(tokenizer);
        }
        memory_free(path);
    }
    if (count == 0) skip();
    print_message("%d files of vectors, %d lines equal\n", count, lines);
}

/* What is said around the text, and the template. */
static void test_roles(void **state) {
    (void)state;
    const char *path = VOCABULARIES "phi-3.gguf";
    if (absent(path)) skip();
    Tokenizer *tokenizer = open_tokenizer(path);
    TokenBuffer tokens = {0};
    assert_int_equal(tokenizer_bos(tokenizer), 1);
    assert_int_equal(tokenizer_eos(tokenizer), 32000);
    assert_int_equal(tokenizer_pad(tokenizer), 32000);
    assert_int_equal(tokenizer_vocab_size(tokenizer), 32064);
    assert_true(tokenizer_adds_bos(tokenizer) && tokenizer_is_special(tokenizer, 32007));
    assert_non_null(strstr(tokenizer_chat_template(tokenizer), "<|assistant|>"));
    encode(tokenizer, "<|user|>\n", 1, &tokens);
    assert_true(tokens.count > 2 && tokens.ids[0] == 1 && tokens.ids[1] == 32010);
    token_buffer_free(&tokens);
    tokenizer_close(tokenizer);
}

/* A tokenizer.json written as GGUF and read again: the same ids. */
static void check_round_trip(const char *json, int64_t vocab) {
    static const char *const texts[] = {"",
                                        " ",
                                        "Hello world",
                                        "  two  spaces",
                                        "don't I'm 12345 x1y",
                                        "\n\n\t \r\n",
                                        "h\xC3\xA9llo \xE4\xBD\xA0\xE5\xA5\xBD \xF0\x9F\x99\x82",
                                        "<s>a</s> b"};
    Error err = {0};
    Tokenizer *first = open_tokenizer(json), *second;
    char *path = scratch_path("round_trip.gguf");
    GgufWriter *writer = gguf_writer_create(path);
    TokenBuffer a = {0}, b = {0};
    assert_ok(gguf_put_tokenizer(writer, first, json, vocab, -1, &err), &err);
    assert_ok(gguf_writer_write(writer, NULL, NULL, &err), &err);
    gguf_writer_free(writer);
    second = open_tokenizer(path);
    assert_int_equal(tokenizer_bos(second), tokenizer_bos(first));
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        encode(first, texts[i], 0, &a);
        encode(second, texts[i], 0, &b);
        assert_int_equal(a.count, b.count);
        if (a.count > 0) assert_memory_equal(a.ids, b.ids, (size_t)a.count * sizeof *a.ids);
    }
    token_buffer_free(&a);
    token_buffer_free(&b);
    tokenizer_close(first);
    tokenizer_close(second);
    memory_free(path);
}

static void test_round_trips(void **state) {
    (void)state;
    static const char *const files[] = {"llama2", "llama3", "qwen2"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char *path = memory_format("tests/golden/tokenizer_%s_style.json", files[i]);
        Tokenizer *tokenizer = open_tokenizer(path);
        int64_t size = tokenizer_vocab_size(tokenizer);
        tokenizer_close(tokenizer);
        check_round_trip(path, size);
        memory_free(path);
    }
}

static const GgufString words[] = {{"<unk>", 5}, {"a", 1}, {"b", 1}, {"ab", 2}, {"", 0}};
static const int32_t types[] = {2, 1, 1, 1, 3}, byte_types[] = {2, 6, 1, 1, 1};
static const float scores[] = {0, -1, -2, -3, -4};
static const GgufString good_merges[] = {{"a b", 3}}, bad_merges[] = {{"a c", 3}};

static Status try_file(const char *model, const char *pre, uint64_t count, const int32_t *kinds, const GgufString *merges,
                       Error *err) {
    char *path = scratch_path("refused.gguf");
    GgufWriter *w = gguf_writer_create(path);
    Tokenizer *tokenizer;
    assert_ok(gguf_put_text(w, "tokenizer.ggml.model", model, err), err);
    if (pre != NULL) assert_ok(gguf_put_text(w, "tokenizer.ggml.pre", pre, err), err);
    assert_ok(gguf_put_array(w, "tokenizer.ggml.tokens", GGUF_STRING, words, count, err), err);
    assert_ok(gguf_put_array(w, "tokenizer.ggml.token_type", GGUF_I32, kinds, count, err), err);
    assert_ok(gguf_put_array(w, "tokenizer.ggml.scores", GGUF_F32, scores, count, err), err);
    assert_ok(gguf_put_array(w, "tokenizer.ggml.merges", GGUF_STRING, merges, 1, err), err);
    assert_ok(gguf_writer_write(w, NULL, NULL, err), err);
    gguf_writer_free(w);
    Status status = tokenizer_open(&tokenizer, path, err);
    tokenizer_close(tokenizer);
    memory_free(path);
    return status;
}

static void test_refused(void **state) {
    (void)state;
    const struct {
        const char *model, *pre;
        uint64_t count;
        const int32_t *types;
        const GgufString *merges;
        const char *message;
    } cases[] = {
        {"gpt2", NULL, 4, types, good_merges, "tokenizer.ggml.pre 'default' is not supported; supported: gpt-2, "},
        {"gpt2", "dbrx", 4, types, good_merges, "tokenizer.ggml.pre 'dbrx' is not supported"},
        {"gpt2", "gpt-2", 4, types, bad_merges, "number 0 needs the token 'c'"},
        {"gpt2", "gpt-2", 5, types, good_merges, "added token 4: want a content of"},
        {"llama", NULL, 5, types, good_merges, "piece 4: want 1 to"},
        {"llama", NULL, 4, byte_types, good_merges, "want byte_fallback and a name like <0x41>"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Error err = {0};
        assert_refused(try_file(cases[i].model, cases[i].pre, cases[i].count, cases[i].types, cases[i].merges, &err), &err,
                       cases[i].message);
    }
    Error err = {0};
    assert_ok(try_file("gpt2", "gpt-2", 4, types, good_merges, &err), &err);
    assert_ok(try_file("llama", NULL, 4, types, good_merges, &err), &err);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_vectors), cmocka_unit_test(test_roles),
                                       cmocka_unit_test(test_round_trips), cmocka_unit_test(test_refused)};
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
