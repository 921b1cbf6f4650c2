/* Tokenizers against stored results of the `tokenizers` package and of other implementations; offsets, streams, limits. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>
#include <cmocka.h>

#include "core/file.h"
#include "core/memory.h"
#include "core/text.h"
#include "data/tokenizer.h"
#include "tests/support/compare.h"

#define ASSETS "../shared/assets/"

static Tokenizer *open_tokenizer(const char *path) {
    Tokenizer *tokenizer;
    Error err;
    assert_ok(tokenizer_open(&tokenizer, path, &err), &err);
    return tokenizer;
}

static char *read_text(const char *path, size_t *length) {
    char *text;
    Error err;
    assert_ok(file_read(path, (size_t)64 << 20, &text, length, &err), &err);
    return text;
}

static cJSON *read_json(const char *path) {
    size_t length;
    char *text = read_text(path, &length);
    cJSON *json = cJSON_ParseWithLength(text, length);
    assert_non_null(json);
    memory_free(text);
    return json;
}

static int absent(const char *path) {
    if (file_exists(path)) return 0;
    print_message("skipped: %s is not there\n", path);
    return 1;
}

static void assert_ids(const TokenBuffer *got, const cJSON *want, const char *text) {
    int64_t i = 0;
    const cJSON *id;
    cJSON_ArrayForEach(id, want) {
        if (i >= got->count || got->ids[i] != id->valueint)
            fail_msg("'%.60s': token %lld: want %d, got %d", text, (long long)i, id->valueint,
                     i < got->count ? got->ids[i] : -1);
        i++;
    }
    if (i != got->count) fail_msg("'%.60s': want %lld tokens, got %lld", text, (long long)i, (long long)got->count);
}

static void encode(const Tokenizer *tokenizer, const char *text, int special, int parse, TokenBuffer *out) {
    Error err;
    out->count = 0;
    assert_ok(tokenizer_encode(tokenizer, text, strlen(text), special, parse, out, &err), &err);
}

static void assert_decodes(const Tokenizer *tokenizer, const int32_t *ids, int64_t count, int skip, const char *want) {
    Error err;
    char *text;
    size_t length;
    assert_ok(tokenizer_decode(tokenizer, ids, count, skip, &text, &length, &err), &err);
    assert_string_equal(text, want);
    assert_int_equal(length, strlen(want));
    memory_free(text);
}

/* Every supported component, in small tokenizers made and encoded by the package (tests/peers/tokenizer_golden.py). */
static void test_golden(void **state) {
    (void)state;
    cJSON *json = read_json("tests/golden/tokenizer_vectors.json");
    const cJSON *entry, *sample;
    TokenBuffer tokens = {0}; /* shared on purpose: cached words must not leak from one tokenizer to the next */
    int compared = 0;
    cJSON_ArrayForEach(entry, cJSON_GetObjectItem(json, "tokenizers")) {
        char *path = path_join("tests/golden", cJSON_GetObjectItem(entry, "name")->valuestring);
        Tokenizer *tokenizer = open_tokenizer(path);
        cJSON_ArrayForEach(sample, cJSON_GetObjectItem(entry, "texts")) {
            const char *text = cJSON_GetObjectItem(sample, "text")->valuestring;
            encode(tokenizer, text, 1, 1, &tokens);
            assert_ids(&tokens, cJSON_GetObjectItem(sample, "special"), text);
            encode(tokenizer, text, 0, 1, &tokens);
            assert_ids(&tokens, cJSON_GetObjectItem(sample, "ids"), text);
            assert_decodes(tokenizer, tokens.ids, tokens.count, 0, cJSON_GetObjectItem(sample, "decoded")->valuestring);
            compared++;
        }
        tokenizer_close(tokenizer);
        memory_free(path);
    }
    assert_int_equal(compared, 13 * 14);
    token_buffer_free(&tokens);
    cJSON_Delete(json);
}

/* The first 20 stories as reference.json encoded them. */
static void check_stories(const char *model) {
    char *folder = memory_format(ASSETS "models/%s/hf", model),
         *reference = memory_format(ASSETS "models/%s/reference.json", model);
    const char *stories = ASSETS "datasets/pretrain/tinystories_1500.txt";
    if (!absent(folder) && !absent(reference) && !absent(stories)) {
        Tokenizer *tokenizer = open_tokenizer(folder);
        assert_int_equal(tokenizer_bos(tokenizer), 1);
        assert_int_equal(tokenizer_eos(tokenizer), 2);
        assert_true(tokenizer_adds_bos(tokenizer));
        cJSON *json = read_json(reference);
        size_t length;
        char *text = read_text(stories, &length), *at = text;
        const cJSON *ids;
        TokenBuffer tokens = {0};
        cJSON_ArrayForEach(ids, cJSON_GetObjectItem(json, "document_ids")) {
            char *end = strstr(at, "<|endoftext|>");
            assert_non_null(end);
            char *next = end + strlen("<|endoftext|>");
            while (strchr(" \n", *at))
                at++;
            while (end > at && strchr(" \n", end[-1]))
                end--;
            *end = 0;
            encode(tokenizer, at, 1, 1, &tokens);
            if (tokens.count > 512) tokens.count = 512; /* the reference cuts to the context */
            assert_ids(&tokens, ids, at);
            at = next;
        }
        token_buffer_free(&tokens);
        memory_free(text);
        cJSON_Delete(json);
        tokenizer_close(tokenizer);
    }
    memory_free(folder);
    memory_free(reference);
}

static void test_stories(void **state) {
    (void)state;
    check_stories("stories260K");
    check_stories("stories3M");
}

/* llama.cpp's vectors: texts between lines of __ggml_vocab_test__, one line of ids each, without BOS. */
static void check_ggml(const char *folder, const char *name) {
    char *tokenizer_path = memory_format(ASSETS "tokenizers/%s", folder);
    char *input = memory_format(ASSETS "tokenizers/ggml-vocab/ggml-vocab-%s.gguf.inp", name);
    char *output = memory_format(ASSETS "tokenizers/ggml-vocab/ggml-vocab-%s.gguf.out", name);
    if (!absent(tokenizer_path) && !absent(input) && !absent(output)) {
        static const char separator[] = "\n__ggml_vocab_test__\n";
        Tokenizer *tokenizer = open_tokenizer(tokenizer_path);
        size_t length;
        char *texts = read_text(input, &length), *lines = read_text(output, &length), *line = lines;
        TokenBuffer tokens = {0};
        int compared = 0;
        for (char *text = texts, *end; (end = strstr(text, separator)) != NULL; text = end + strlen(separator)) {
            *end = 0;
            encode(tokenizer, text, 0, 0, &tokens);
            for (int64_t i = 0; i < tokens.count; i++)
                assert_int_equal(tokens.ids[i], strtol(line, &line, 10));
            while (*line == ' ')
                line++;
            assert_int_equal(*line, '\n');
            line++;
            compared++;
        }
        assert_int_equal(compared, 46);
        token_buffer_free(&tokens);
        memory_free(texts);
        memory_free(lines);
        tokenizer_close(tokenizer);
    }
    memory_free(tokenizer_path);
    memory_free(input);
    memory_free(output);
}

static void test_ggml_vectors(void **state) {
    (void)state;
    check_ggml("gpt2", "gpt-2");
    check_ggml("tinyllama", "llama-spm");
    check_ggml("phi-3-mini", "phi-3");
    check_ggml("llama2/tokenizer.model", "llama-spm");
    check_ggml("qwen2.5", "qwen2"); /* vocab.json and merges.txt */
}

static void check_transformers(const char *folder, const char *name, int special) {
    const char *path = ASSETS "tokenizers/vectors/hf_tokenizer_tests.json";
    char *tokenizer_path = memory_format(ASSETS "tokenizers/%s", folder);
    if (!absent(path) && !absent(tokenizer_path)) {
        Tokenizer *tokenizer = open_tokenizer(tokenizer_path);
        cJSON *json = read_json(path);
        const cJSON *sample;
        TokenBuffer tokens = {0};
        int compared = 0;
        cJSON_ArrayForEach(sample, cJSON_GetObjectItem(json, name)) {
            const char *text = cJSON_GetObjectItem(sample, "input")->valuestring;
            encode(tokenizer, text, special, 1, &tokens);
            assert_ids(&tokens, cJSON_GetObjectItem(cJSON_GetObjectItem(sample, "encoded"), "input_ids"), text);
            compared++;
        }
        assert_int_equal(compared, 18);
        token_buffer_free(&tokens);
        cJSON_Delete(json);
        tokenizer_close(tokenizer);
    }
    memory_free(tokenizer_path);
}

static void check_long_text(const char *folder, const char *name) {
    char *path = memory_format(ASSETS "tokenizers/vectors/%s", name),
         *tokenizer_path = memory_format(ASSETS "tokenizers/%s", folder);
    if (!absent(path) && !absent(tokenizer_path)) {
        Tokenizer *tokenizer = open_tokenizer(tokenizer_path);
        cJSON *json = read_json(path);
        TokenBuffer tokens = {0};
        const char *text = cJSON_GetObjectItem(json, "text")->valuestring;
        encode(tokenizer, text, 1, 1, &tokens);
        assert_ids(&tokens, cJSON_GetObjectItem(json, "token_ids"), text);
        assert_decodes(tokenizer, tokens.ids, tokens.count, 1, text);
        token_buffer_free(&tokens);
        cJSON_Delete(json);
        tokenizer_close(tokenizer);
    }
    memory_free(path);
    memory_free(tokenizer_path);
}

static void test_transformers_vectors(void **state) {
    (void)state;
    check_transformers("gpt2", "distilgpt2", 0);
    check_transformers("tinyllama", "coreml-projects/Llama-2-7b-chat-coreml", 1);
    check_long_text("gpt2", "gpt2_encoded_tokens.json");
    check_long_text("tinyllama", "llama_encoded.json");
}

/* In order, within the text, and together all of it (nothing in these tokenizers drops text). */
static void check_offsets(const char *path, const char *text) {
    Tokenizer *tokenizer = open_tokenizer(path);
    TokenBuffer tokens = {0};
    encode(tokenizer, text, 0, 1, &tokens);
    int32_t begin = 0, covered = 0;
    for (int64_t i = 0; i < tokens.count; i++) {
        assert_true(tokens.begin[i] >= begin);
        assert_true(tokens.begin[i] <= covered); /* no gap */
        assert_true(tokens.end[i] >= tokens.begin[i] && tokens.end[i] <= (int32_t)strlen(text));
        begin = tokens.begin[i];
        if (tokens.end[i] > covered) covered = tokens.end[i];
    }
    assert_int_equal(covered, strlen(text));
    token_buffer_free(&tokens);
    tokenizer_close(tokenizer);
}

static void test_offsets(void **state) {
    (void)state;
    static const char *const texts[] = {"The miller's cat",
                                        "  two  spaces ",
                                        "e\xCC\x81 \xC3\xA9 \xE1\x84\x80\xE1\x85\xA1 \xEF\xAC\x81",
                                        "\xF0\x9F\x99\x82 12345\n\n",
                                        "bad \xFF\xE2\x98 bytes \xED\xA0\x80!",
                                        "<s>a</s> b"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        check_offsets("tests/golden/tokenizer_llama2_style.json", texts[i]);
        check_offsets("tests/golden/tokenizer_llama3_style.json", texts[i]);
        check_offsets("tests/golden/tokenizer_qwen2_style.json", texts[i]);
        check_offsets("tests/golden/tokenizer_gemma_style.json", texts[i]);
        check_offsets("tests/golden/tokenizer_metaspace_style.json", texts[i]);
    }
}

/* A composed character stands for all that it was made of; a byte token for its own byte. */
static void test_exact_offsets(void **state) {
    (void)state;
    Tokenizer *tokenizer = open_tokenizer("tests/golden/tokenizer_qwen2_style.json");
    TokenBuffer tokens = {0};
    encode(tokenizer, "Me\xCC\x81\xE6\x97\xA5", 0, 1, &tokens); /* M, e + acute = U+00E9, U+65E5 as three bytes */
    int64_t n = tokens.count;
    assert_true(n >= 4);
    assert_int_equal(tokens.begin[0], 0);
    assert_int_equal(tokens.end[n - 1], 7);
    int composed = 0, last = 0;
    for (int64_t i = 0; i < n; i++) {
        composed |= tokens.begin[i] <= 1 && tokens.end[i] == 4;
        last |= tokens.begin[i] == 6 && tokens.end[i] == 7;
    }
    assert_true(composed);
    assert_true(last);
    token_buffer_free(&tokens);
    tokenizer_close(tokenizer);
}

/* As bytes.decode("utf-8", errors="replace"): one U+FFFD per maximal subpart of an ill-formed sequence. */
static void test_ill_formed(void **state) {
    (void)state;
    static const struct {
        const char *bytes, *repaired;
    } cases[] = {
        {"a\xFF\xFE z", "a\xEF\xBF\xBD\xEF\xBF\xBD z"},
        {"\xE2\x98", "\xEF\xBF\xBD"},
        {"\xE2\x98x", "\xEF\xBF\xBDx"},
        {"\xC0\xAF", "\xEF\xBF\xBD\xEF\xBF\xBD"},
        {"\xED\xA0\x80", "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"},
        {"\xF0\x9F\x99|", "\xEF\xBF\xBD|"},
        {"\xF4\x90\x80\x80", "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"},
    };
    Tokenizer *tokenizer = open_tokenizer("tests/golden/tokenizer_llama3_style.json");
    TokenBuffer broken = {0}, repaired = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        encode(tokenizer, cases[i].bytes, 0, 1, &broken);
        encode(tokenizer, cases[i].repaired, 0, 1, &repaired);
        assert_int_equal(broken.count, repaired.count);
        assert_memory_equal(broken.ids, repaired.ids, (size_t)broken.count * sizeof *broken.ids);
    }
    token_buffer_free(&broken);
    token_buffer_free(&repaired);
    tokenizer_close(tokenizer);
}

/* Added tokens in a user's text are text when they are not asked for. */
static void test_plain_text(void **state) {
    (void)state;
    Tokenizer *tokenizer = open_tokenizer("tests/golden/tokenizer_qwen2_style.json");
    int32_t start = tokenizer_token_id(tokenizer, "<|im_start|>");
    assert_int_equal(start, 1);
    assert_true(tokenizer_is_special(tokenizer, start));
    assert_false(tokenizer_is_special(tokenizer, start + 100));
    assert_string_equal(tokenizer_token(tokenizer, start), "<|im_start|>");
    assert_null(tokenizer_token(tokenizer, (int32_t)tokenizer_vocab_size(tokenizer)));
    assert_int_equal(tokenizer_token_id(tokenizer, "no such token"), -1);
    TokenBuffer tokens = {0};
    encode(tokenizer, "<|im_start|>", 0, 1, &tokens);
    assert_int_equal(tokens.count, 1);
    assert_int_equal(tokens.ids[0], start);
    assert_decodes(tokenizer, tokens.ids, 1, 1, "");
    encode(tokenizer, "<|im_start|>", 0, 0, &tokens);
    assert_true(tokens.count > 1);
    for (int64_t i = 0; i < tokens.count; i++)
        assert_int_not_equal(tokens.ids[i], start);
    assert_decodes(tokenizer, tokens.ids, tokens.count, 1, "<|im_start|>");
    token_buffer_free(&tokens);
    tokenizer_close(tokenizer);
}

/* What a stream gives, piece by piece, is well-formed and together what decode gives. */
static void check_stream(const char *path, const char *text, const char *want) {
    Tokenizer *tokenizer = open_tokenizer(path);
    TokenBuffer tokens = {0};
    TokenStream *stream;
    Error err;
    Text all = {0};
    encode(tokenizer, text, 1, 1, &tokens);
    assert_ok(token_stream_open(&stream, tokenizer, &err), &err);
    for (int64_t i = 0; i <= tokens.count; i++) {
        const char *part;
        size_t length;
        assert_ok(i < tokens.count ? token_stream_next(stream, tokens.ids[i], &part, &length, &err)
                                   : token_stream_flush(stream, &part, &length, &err),
                  &err);
        for (size_t at = 0; at < length;) {
            uint32_t code;
            int n = utf8_decode(part + at, length - at, &code);
            assert_true(n > 0);
            at += (size_t)n;
        }
        text_add(&all, part, length);
    }
    assert_string_equal(all.data, want);
    assert_decodes(tokenizer, tokens.ids, tokens.count, 1, want);
    text_free(&all);
    token_stream_close(stream);
    token_buffer_free(&tokens);
    tokenizer_close(tokenizer);
}

static void test_stream(void **state) {
    (void)state;
    const char *text = "The cat \xF0\x9F\x99\x82\xE7\xA3\xA8\xE5\x9D\x8A\xE2\x98\x83, 12!";
    check_stream("tests/golden/tokenizer_llama3_style.json", text, text);
    check_stream("tests/golden/tokenizer_qwen2_style.json", text, text);
    check_stream("tests/golden/tokenizer_llama2_style.json", text, text); /* the space in front comes off once */
    check_stream("tests/golden/tokenizer_llama2_style.json", "  a", "  a");
    check_stream("tests/golden/tokenizer_gemma_style.json", text, text);
}

/* A character that never comes whole is given up only at the end. */
static void test_stream_cut(void **state) {
    (void)state;
    Tokenizer *tokenizer = open_tokenizer("tests/golden/tokenizer_llama2_style.json");
    TokenStream *stream;
    Error err;
    const char *part;
    size_t length;
    assert_ok(token_stream_open(&stream, tokenizer, &err), &err);
    assert_ok(token_stream_next(stream, tokenizer_token_id(tokenizer, "<0xE2>"), &part, &length, &err), &err);
    assert_int_equal(length, 0);
    assert_ok(token_stream_next(stream, tokenizer_token_id(tokenizer, "<0x98>"), &part, &length, &err), &err);
    assert_int_equal(length, 0);
    assert_ok(token_stream_flush(stream, &part, &length, &err), &err);
    assert_string_equal(part, "\xEF\xBF\xBD\xEF\xBF\xBD"); /* ByteFallback: one per byte */
    assert_refused(token_stream_next(stream, -1, &part, &length, &err), &err, "not a token id");
    token_stream_close(stream);
    tokenizer_close(tokenizer);
}

#define MODEL(extra) \
    "{\"model\": {\"type\": \"BPE\", " extra " \"vocab\": {\"a\": 0, \"b\": 1, \"ab\": 2}, \"merges\": [\"a b\"]}"

static void check_refused(const char *json, const char *part) {
    const char *path = "build/test_tokenizer_refused.json";
    Tokenizer *tokenizer;
    Error err;
    assert_ok(file_write_atomic(path, json, strlen(json), &err), &err);
    assert_refused(tokenizer_open(&tokenizer, path, &err), &err, part);
    assert_null(tokenizer);
    remove(path);
}

static void test_refused(void **state) {
    (void)state;
    static const struct {
        const char *json, *part;
    } cases[] = {
        {"", "tokenizer_refused"},
        {"[1, 2]", "file"},
        {"{}", "'model'"},
        {"{\"version\": \"2.0\"}", "1.0"},
        {MODEL("") ", \"normalizer\": {\"type\": \"Nmt\"}}", "normalizer: the type 'Nmt'"},
        {MODEL("") ", \"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"BertPreTokenizer\"}]}}",
         "'BertPreTokenizer'"},
        {MODEL("") ", \"post_processor\": {\"type\": \"RobertaProcessing\"}}", "'RobertaProcessing'"},
        {MODEL("") ", \"decoder\": {\"type\": \"CTC\"}}", "'CTC'"},
        {MODEL("") ", \"decoder\": {\"type\": \"Sequence\", \"decoders\": 3}}", "'decoders'"},
        {MODEL("") ", \"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"(\"}, \"behavior\": \"Isolated\"}}",
         "regular expression"},
        {MODEL(
             "") ", \"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"a{2}+\"}, \"behavior\": \"Isolated\"}}",
         "possessive"},
        {MODEL(
             "") ", \"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"\\\\h\"}, \"behavior\": \"Isolated\"}}",
         "\\h"},
        {MODEL("") ", \"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"String\": \"\"}, \"behavior\": \"Isolated\"}}",
         "empty string"},
        {MODEL("") ", \"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"String\": \"a\"}, \"behavior\": \"Apart\"}}",
         "'Apart'"},
        {MODEL(
             "") ", \"post_processor\": {\"type\": \"TemplateProcessing\", \"single\": [{\"SpecialToken\": {\"id\": \"x\"}}]}}",
         "'x'"},
        {MODEL("") ", \"post_processor\": {\"type\": \"TemplateProcessing\", \"single\": [{\"SpecialToken\": {\"id\": \"x\"}}, "
                   "{\"Sequence\": {\"id\": \"A\"}}], \"special_tokens\": {\"x\": {\"ids\": [7]}}}}",
         "id 7"},
        {MODEL("") ", \"added_tokens\": [{\"id\": 3}]}", "no content"},
        {MODEL("") ", \"added_tokens\": [{\"id\": 1, \"content\": \"ab\"}]}", "'ab' has id 1"},
        {MODEL("") ", \"added_tokens\": [{\"id\": 1, \"content\": \"x\"}]}", "gives to 'b'"},
        {MODEL("") ", \"added_tokens\": [{\"id\": 3, \"content\": \"x\"}, {\"id\": 3, \"content\": \"y\"}]}",
         "id 3 is there twice"},
        {MODEL("") ", \"added_tokens\": [{\"id\": 3, \"content\": \"x\"}, {\"id\": 4, \"content\": \"x\"}]}", "same text"},
        {MODEL("") ", \"added_tokens\": [{\"id\": 3000000000, \"content\": \"x\"}]}", "added_tokens: id"},
        {MODEL("\"dropout\": 0.1,") "}", "dropout"},
        {MODEL("\"end_of_word_suffix\": \"</w>\",") "}", "end_of_word_suffix"},
        {MODEL("\"continuing_subword_prefix\": \"##\",") "}", "continuing_subword_prefix"},
        {MODEL("\"unk_token\": \"<unk>\",") "}", "<unk>"},
        {MODEL(""), "tokenizer_refused"}, /* cut off */
        {MODEL("") "} x", "tokenizer_refused"},
        {"{\"model\": {\"type\": \"Unigram\", \"vocab\": [[\"a\", 0.5]]}}", "'Unigram'"},
        {"{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0}}}", "merges"},
        {"{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"b\": 1}, \"merges\": [\"a b\"]}}", "'ab'"},
        {"{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0}, \"merges\": [\"a  a\"]}}", "one space"},
        {"{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"aa\": 1}, \"merges\": [[\"a\", \"a\", \"a\"]]}}", "merges"},
        {"{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"b\": 0}, \"merges\": []}}", "id 0 belongs to both"},
        {"{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": -1}, \"merges\": []}}", "model.vocab"},
        {"{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 99999999999}, \"merges\": []}}", "model.vocab"},
        {"{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 1.5}, \"merges\": []}}", "model.vocab"},
    };
    Error err;
    assert_ok(folder_create("build", &err), &err);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_refused(cases[i].json, cases[i].part);
    Tokenizer *tokenizer;
    assert_refused(tokenizer_open(&tokenizer, "tests/golden/absent.json", &err), &err, "absent.json");
}

/* Words are merged apart only where no merge reaches over the start of one. */
static void test_merge_over_words(void **state) {
    (void)state;
    static const struct {
        const char *merge, *merged;
        int32_t ids[3];
        int64_t count;
    } cases[] = {{"a \xE2\x96\x81", "a\xE2\x96\x81", {2, 0}, 2}, {"\xE2\x96\x81 a", "\xE2\x96\x81\x61", {0, 2}, 2}};
    const char *path = "build/test_tokenizer_words.json";
    Error err;
    assert_ok(folder_create("build", &err), &err);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *json = memory_format("{\"model\": {\"vocab\": {\"a\": 0, \"\xE2\x96\x81\": 1, \"%s\": 2}, \"merges\": [\"%s\"]}}",
                                   cases[i].merged, cases[i].merge);
        assert_ok(file_write_atomic(path, json, strlen(json), &err), &err);
        Tokenizer *tokenizer = open_tokenizer(path);
        TokenBuffer tokens = {0};
        encode(tokenizer, "a\xE2\x96\x81\x61", 0, 1, &tokens);
        assert_int_equal(tokens.count, cases[i].count);
        assert_memory_equal(tokens.ids, cases[i].ids, (size_t)tokens.count * sizeof *tokens.ids);
        assert_int_equal(tokens.end[tokens.count - 1], 5);
        token_buffer_free(&tokens);
        tokenizer_close(tokenizer);
        memory_free(json);
    }
    remove(path);
}

/* A pattern that backtracks without end is stopped by the match limit and named, not waited for. */
static void test_runaway_pattern(void **state) {
    (void)state;
    const char *json = MODEL("") ", \"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"(a|aa)*(a|aa)*(a|aa)*cb\"}, "
                                 "\"behavior\": \"Isolated\"}}";
    const char *path = "build/test_tokenizer_runaway.json";
    Error err;
    assert_ok(folder_create("build", &err), &err);
    assert_ok(file_write_atomic(path, json, strlen(json), &err), &err);
    Tokenizer *tokenizer = open_tokenizer(path);
    remove(path);
    char text[200];
    memset(text, 'a', sizeof text);
    text[sizeof text - 1] = 'b'; /* or PCRE2 sees at once that nothing can match */
    TokenBuffer tokens = {0};
    assert_refused(tokenizer_encode(tokenizer, text, sizeof text, 0, 1, &tokens, &err), &err, "regular expression");
    assert_int_equal(tokens.count, 0);
    token_buffer_free(&tokens);
    tokenizer_close(tokenizer);
}

/* One word of 10 MB without a cut: quadratic merging would not come back. */
static void test_long_word(void **state) {
    (void)state;
    size_t length = 10000000;
    char *text = memory_alloc(length + 1);
    for (size_t i = 0; i < length; i++)
        text[i] = "themillrsackofu"[(i * 7 + i / 13) % 15];
    text[length] = 0;
    Tokenizer *tokenizer = open_tokenizer("tests/golden/tokenizer_llama2_style.json");
    TokenBuffer tokens = {0};
    encode(tokenizer, text, 0, 1, &tokens);
    assert_true(tokens.count > 1000000 && tokens.count < 10000000);
    assert_decodes(tokenizer, tokens.ids, tokens.count, 1, text);
    token_buffer_free(&tokens);
    tokenizer_close(tokenizer);
    memory_free(text);
}

/* Marks in descending order: reordering them must not cost quadratic time either. */
static void test_many_marks(void **state) {
    (void)state;
    size_t pairs = 500000;
    char *text = memory_alloc(4 * pairs + 2), *want = memory_alloc(4 * pairs + 2);
    text[0] = want[0] = 'x';
    for (size_t i = 0; i < pairs; i++) {
        memcpy(text + 1 + 4 * i, "\xCC\x81\xCC\xA3", 4); /* U+0301 (class 230), U+0323 (class 220) */
        memcpy(want + 1 + 2 * i, "\xCC\xA3", 2);
        memcpy(want + 1 + 2 * (pairs + i), "\xCC\x81", 2);
    }
    text[4 * pairs + 1] = want[4 * pairs + 1] = 0;
    Tokenizer *tokenizer = open_tokenizer("tests/golden/tokenizer_qwen2_style.json");
    TokenBuffer tokens = {0};
    encode(tokenizer, text, 0, 1, &tokens);
    assert_decodes(tokenizer, tokens.ids, tokens.count, 1, want); /* NFC has no x with a dot below: only reordered */
    token_buffer_free(&tokens);
    tokenizer_close(tokenizer);
    memory_free(text);
    memory_free(want);
}

typedef struct Worker {
    const Tokenizer *tokenizer;
    TokenBuffer tokens;
    Status status;
    Error err;
} Worker;

static const char shared_text[] = "The miller's cat weighs 12345 sacks, don't they? \xE7\xA3\xA8\xE5\x9D\x8A  we'll see\n";

static void *work(void *argument) {
    Worker *worker = argument;
    for (int i = 0; i < 200 && worker->status == OK; i++)
        worker->status =
            tokenizer_encode(worker->tokenizer, shared_text, strlen(shared_text), 1, 1, &worker->tokens, &worker->err);
    return NULL;
}

/* One tokenizer, several threads, each its own buffer (run under tsan too). */
static void test_threads(void **state) {
    (void)state;
    Tokenizer *tokenizer = open_tokenizer("tests/golden/tokenizer_llama3_style.json");
    Worker workers[4] = {0};
    pthread_t threads[4];
    TokenBuffer want = {0};
    encode(tokenizer, shared_text, 1, 1, &want);
    for (int i = 0; i < 4; i++) {
        workers[i].tokenizer = tokenizer;
        assert_int_equal(pthread_create(&threads[i], NULL, work, &workers[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        assert_ok(workers[i].status, &workers[i].err);
        assert_int_equal(workers[i].tokens.count, 200 * want.count); /* encode appends */
        for (int64_t t = 0; t < workers[i].tokens.count; t++)
            assert_int_equal(workers[i].tokens.ids[t], want.ids[t % want.count]);
        token_buffer_free(&workers[i].tokens);
    }
    token_buffer_free(&want);
    tokenizer_close(tokenizer);
}

static void write_text(const char *folder, const char *name, const char *text) {
    char *path = path_join(folder, name);
    Error err;
    assert_ok(file_write_atomic(path, text, strlen(text), &err), &err);
    memory_free(path);
}

/* Roles and templates from the files beside tokenizer.json. */
static void test_folder(void **state) {
    (void)state;
    const char *folder = "build/test_tokenizer_folder";
    Error err;
    assert_ok(folder_remove(folder, &err), &err);
    assert_ok(folder_create(folder, &err), &err);
    write_text(folder, "tokenizer.json", MODEL("") "}");
    Tokenizer *tokenizer = open_tokenizer(folder);
    uint64_t hash = tokenizer_hash(tokenizer);
    assert_int_equal(tokenizer_bos(tokenizer), -1);
    assert_null(tokenizer_chat_template(tokenizer));
    assert_false(tokenizer_adds_bos(tokenizer));
    tokenizer_close(tokenizer);
    write_text(folder, "special_tokens_map.json",
               "{\"bos_token\": \"b\", \"eos_token\": {\"content\": \"b\"}, \"pad_token\": \"?\"}");
    write_text(
        folder, "tokenizer_config.json",
        "{\"bos_token\": {\"content\": \"a\", \"lstrip\": false}, \"pad_token\": null, \"chat_template\": [{\"name\": \"rag\", "
        "\"template\": \"R\"}, {\"name\": \"default\", \"template\": \"D\"}]}");
    tokenizer = open_tokenizer(folder);
    assert_int_equal(tokenizer_bos(tokenizer), 0); /* the config counts before the map */
    assert_int_equal(tokenizer_eos(tokenizer), 1);
    assert_int_equal(tokenizer_pad(tokenizer), -1); /* not in the vocabulary */
    assert_string_equal(tokenizer_chat_template(tokenizer), "D");
    assert_true(tokenizer_hash(tokenizer) == hash);
    tokenizer_close(tokenizer);
    write_text(folder, "chat_template.jinja", "J");
    write_text(folder, "tokenizer.json", MODEL("\"ignore_merges\": true,") "}");
    tokenizer = open_tokenizer(folder);
    assert_string_equal(tokenizer_chat_template(tokenizer), "J");
    assert_true(tokenizer_hash(tokenizer) != hash);
    tokenizer_close(tokenizer);
    write_text(folder, "tokenizer_config.json", "{\"bos_token\": ");
    assert_refused(tokenizer_open(&tokenizer, folder, &err), &err, "tokenizer_config.json");
    assert_ok(folder_remove(folder, &err), &err);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),       cmocka_unit_test(test_stories),
        cmocka_unit_test(test_ggml_vectors), cmocka_unit_test(test_transformers_vectors),
        cmocka_unit_test(test_offsets),      cmocka_unit_test(test_exact_offsets),
        cmocka_unit_test(test_ill_formed),   cmocka_unit_test(test_plain_text),
        cmocka_unit_test(test_stream),       cmocka_unit_test(test_stream_cut),
        cmocka_unit_test(test_refused),      cmocka_unit_test(test_runaway_pattern),
        cmocka_unit_test(test_long_word),    cmocka_unit_test(test_many_marks),
        cmocka_unit_test(test_threads),      cmocka_unit_test(test_merge_over_words),
        cmocka_unit_test(test_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
