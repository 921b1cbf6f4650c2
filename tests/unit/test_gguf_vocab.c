/* The tokenizer keys of a GGUF file: what is found, what contradicts itself, and the vocabularies of llama.cpp. */
#include "tests/unit/test_core.h"

#include "core/file.h"
#include "core/memory.h"
#include "data/gguf_vocab.h"
#include "tests/support/compare.h"
#include "tests/support/scratch.h"

#define ASSETS "../shared/assets/tokenizers/ggml-vocab"

static const GgufString tokens[3] = {{"<unk>", 5},
                                     {"a", 1},
                                     {"\xe2\x96\x81"
                                      "a",
                                      4}};
static const float scores[3] = {0.0f, -1.0f, -2.0f};
static const int32_t types[3] = {2, 1, 1}, bad_types[3] = {2, 1, 7};
static const GgufString merges[2] = {{"a b", 3}, {"ab c", 4}}, bad_merges[3] = {{"ab", 2}, {" b", 2}, {"a ", 2}};

typedef struct Sample {
    const char *model;
    uint64_t tokens, scores, types; /* how many; 0: not written */
    const int32_t *type_values;
    const GgufString *merges;
    uint64_t merge_count;
    uint32_t bos;
} Sample;

static Status try_sample(const Sample *sample, GgufVocab *vocab, GgufFile **file, Error *err) {
    char *path = scratch_path("vocab.gguf");
    GgufWriter *w = gguf_writer_create(path);
    if (sample->model != NULL) assert_ok(gguf_put_text(w, "tokenizer.ggml.model", sample->model, err), err);
    assert_ok(gguf_put_array(w, "tokenizer.ggml.tokens", GGUF_STRING, tokens, sample->tokens, err), err);
    if (sample->scores > 0) assert_ok(gguf_put_array(w, "tokenizer.ggml.scores", GGUF_F32, scores, sample->scores, err), err);
    if (sample->types > 0)
        assert_ok(gguf_put_array(w, "tokenizer.ggml.token_type", GGUF_I32, sample->type_values, sample->types, err), err);
    if (sample->merges != NULL)
        assert_ok(gguf_put_array(w, "tokenizer.ggml.merges", GGUF_STRING, sample->merges, sample->merge_count, err), err);
    assert_ok(gguf_put_u32(w, "tokenizer.ggml.bos_token_id", sample->bos, err), err);
    assert_ok(gguf_put_bool(w, "tokenizer.ggml.add_bos_token", 1, err), err);
    assert_ok(gguf_writer_write(w, NULL, NULL, err), err);
    gguf_writer_free(w);
    assert_ok(gguf_open(file, path, err), err);
    memory_free(path);
    return gguf_vocab_read(*file, vocab, err);
}

static void test_both_models(void **state) {
    (void)state;
    Error err = {0};
    GgufFile *file;
    GgufVocab vocab;
    const Sample spm = {"llama", 3, 3, 3, types, NULL, 0, 1}, bpe = {"gpt2", 3, 0, 0, NULL, merges, 2, 2};
    assert_ok(try_sample(&spm, &vocab, &file, &err), &err);
    assert_true(vocab.is_spm && vocab.count == 3 && vocab.merge_count == 0 && vocab.bos == 1 && vocab.eos == -1);
    assert_true(vocab.adds_bos == 1 && vocab.adds_eos == -1 && vocab.chat_template.length == 0);
    assert_memory_equal(vocab.pre.bytes, "default", vocab.pre.length);
    assert_memory_equal(vocab.tokens[2].bytes,
                        "\xe2\x96\x81"
                        "a",
                        4);
    assert_true(gguf_item_f32(vocab.scores, 2) == -2.0f);
    assert_int_equal(gguf_item_i32(vocab.types, 0), GGUF_TOKEN_UNKNOWN);
    gguf_close(file);
    assert_ok(try_sample(&bpe, &vocab, &file, &err), &err);
    assert_true(!vocab.is_spm && vocab.scores == NULL && vocab.types == NULL && vocab.merge_count == 2);
    assert_memory_equal(vocab.merges[1].bytes, "ab c", 4);
    gguf_close(file);
}

static void test_refused(void **state) {
    (void)state;
    const struct {
        Sample sample;
        const char *message;
    } cases[] = {
        {{NULL, 3, 3, 3, types, NULL, 0, 1}, "'tokenizer.ggml.model': want a string, got no such key"},
        {{"bert", 3, 3, 3, types, NULL, 0, 1}, "want \"llama\" or \"gpt2\", got \"bert\""},
        {{"llama", 0, 3, 0, types, NULL, 0, 0}, "want at least one token"},
        {{"llama", 3, 0, 3, types, NULL, 0, 1}, "scores': want an array of f32, got no such key"},
        {{"llama", 3, 2, 3, types, NULL, 0, 1}, "scores': want 3 items, one for each token, got 2"},
        {{"llama", 3, 3, 2, types, NULL, 0, 1}, "token_type': want 3 items, one for each token, got 2"},
        {{"llama", 3, 3, 3, bad_types, NULL, 0, 1}, "token 2: want 1 to 6, got 7"},
        {{"llama", 3, 3, 3, types, NULL, 0, 3}, "bos_token_id': want an id below 3, got 3"},
        {{"gpt2", 3, 0, 3, types, NULL, 0, 1}, "merges': want an array of string, got no such key"},
        {{"gpt2", 3, 0, 3, types, bad_merges, 1, 1}, "merge 0: want two symbols"},
        {{"gpt2", 3, 0, 3, types, bad_merges + 1, 1, 1}, "merge 0: want two symbols"},
        {{"gpt2", 3, 0, 3, types, bad_merges + 2, 1, 1}, "merge 0: want two symbols"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Error err = {0};
        GgufFile *file;
        GgufVocab vocab;
        assert_refused(try_sample(&cases[i].sample, &vocab, &file, &err), &err, cases[i].message);
        gguf_close(file);
    }
}

static void test_assets(void **state) {
    (void)state;
    static const struct {
        const char *name;
        int is_spm;
        int64_t count, merges;
        int32_t bos;
        const char *pre;
    } files[] = {{"gpt-2", 0, 50257, 50000, 50256, "gpt-2"},     {"mpt", 0, 50432, 50009, 0, "mpt"},
                 {"starcoder", 0, 49152, 48872, 0, "starcoder"}, {"llama-spm", 1, 32000, 0, 1, "default"},
                 {"phi-3", 1, 32064, 0, 1, "default"},           {"deepseek-coder", 0, 32256, 31757, 32013, "deepseek-coder"}};
    if (!file_is_folder(ASSETS)) {
        print_message("SKIP: %s is not there\n", ASSETS);
        skip();
    }
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        Error err = {0};
        GgufFile *file;
        GgufVocab vocab;
        char *path = memory_format(ASSETS "/ggml-vocab-%s.gguf", files[i].name);
        assert_ok(gguf_open(&file, path, &err), &err);
        assert_ok(gguf_vocab_read(file, &vocab, &err), &err);
        assert_int_equal(vocab.is_spm, files[i].is_spm);
        assert_int_equal(vocab.count, files[i].count);
        assert_int_equal(vocab.merge_count, files[i].merges);
        assert_int_equal(vocab.bos, files[i].bos);
        assert_int_equal(vocab.pre.length, strlen(files[i].pre));
        assert_memory_equal(vocab.pre.bytes, files[i].pre, strlen(files[i].pre));
        gguf_close(file);
        memory_free(path);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_both_models), cmocka_unit_test(test_refused),
                                       cmocka_unit_test(test_assets)};
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
