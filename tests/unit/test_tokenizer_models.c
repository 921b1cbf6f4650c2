/* Tokenizers without a tokenizer.json: SentencePiece models, tiktoken ranks, vocab.json with merges.txt. Against stored results of
 * the `sentencepiece` and `tiktoken` packages, and against damaged and contradictory files. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cjson/cJSON.h>
#include <cmocka.h>

#include "core/file.h"
#include "core/memory.h"
#include "core/text.h"
#include "data/tokenizer.h"
#include "tests/support/compare.h"
#include "tests/support/scratch.h"

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

static void assert_ids(const TokenBuffer *got, const int32_t *want, int64_t count, const char *text) {
    for (int64_t i = 0; i < count && i < got->count; i++)
        if (got->ids[i] != want[i]) fail_msg("'%.60s': token %lld: want %d, got %d", text, (long long)i, want[i], got->ids[i]);
    if (count != got->count) fail_msg("'%.60s': want %lld tokens, got %lld", text, (long long)count, (long long)got->count);
}

static void encode(const Tokenizer *tokenizer, const char *text, int special, int parse, TokenBuffer *out) {
    Error err;
    out->count = 0;
    assert_ok(tokenizer_encode(tokenizer, text, strlen(text), special, parse, out, &err), &err);
}

static void assert_decodes(const Tokenizer *tokenizer, const TokenBuffer *tokens, const char *want) {
    Error err;
    char *text;
    size_t length;
    assert_ok(tokenizer_decode(tokenizer, tokens->ids, tokens->count, 1, &text, &length, &err), &err);
    assert_string_equal(text, want);
    memory_free(text);
}

static void assert_streams(const Tokenizer *tokenizer, const TokenBuffer *tokens, const char *want) {
    TokenStream *stream;
    Error err;
    Text all = {0};
    const char *part;
    size_t length;
    assert_ok(token_stream_open(&stream, tokenizer, &err), &err);
    for (int64_t i = 0; i < tokens->count; i++) {
        assert_ok(token_stream_next(stream, tokens->ids[i], &part, &length, &err), &err);
        text_add(&all, part, length);
    }
    assert_ok(token_stream_flush(stream, &part, &length, &err), &err);
    text_add(&all, part, length);
    assert_string_equal(all.data ? all.data : "", want);
    text_free(&all);
    token_stream_close(stream);
}

/* ---- tests/peers/tokenizer_model_golden.py ---- */
static void check_golden(const cJSON *entry, TokenBuffer *tokens, int *compared) {
    char *path = path_join("tests/golden", cJSON_GetObjectItem(entry, "name")->valuestring);
    Tokenizer *tokenizer = open_tokenizer(path);
    const cJSON *sample;
    cJSON_ArrayForEach(sample, cJSON_GetObjectItem(entry, "texts")) {
        const char *text = cJSON_GetObjectItem(sample, "text")->valuestring;
        const char *decoded = cJSON_GetObjectItem(sample, "decoded")->valuestring;
        const cJSON *ids = cJSON_GetObjectItem(sample, "ids"), *id;
        int32_t want[512];
        int64_t count = 0;
        assert_true(cJSON_GetArraySize(ids) <= 512);
        cJSON_ArrayForEach(id, ids) want[count++] = id->valueint;
        encode(tokenizer, text, 0, 0, tokens);
        assert_ids(tokens, want, count, text);
        assert_decodes(tokenizer, tokens, decoded);
        assert_streams(tokenizer, tokens, decoded);
        for (int64_t i = 0; i < tokens->count; i++) {
            assert_true(tokens->begin[i] >= 0 && tokens->begin[i] <= tokens->end[i]);
            assert_true(tokens->end[i] <= (int32_t)strlen(text));
        }
        (*compared)++;
    }
    tokenizer_close(tokenizer);
    memory_free(path);
}

static void test_golden(void **state) {
    (void)state;
    size_t length;
    char *text = read_text("tests/golden/tokenizer_model_vectors.json", &length);
    cJSON *json = cJSON_ParseWithLength(text, length);
    const cJSON *entry;
    TokenBuffer tokens = {0};
    int compared = 0;
    cJSON_ArrayForEach(entry, cJSON_GetObjectItem(json, "tokenizers")) check_golden(entry, &tokens, &compared);
    assert_int_equal(compared, 4 * 19 + 20);
    token_buffer_free(&tokens);
    cJSON_Delete(json);
    memory_free(text);
}

/* sentencepiece replaces every byte that is no UTF-8, tokenizer.json readers every maximal part. */
static void test_ill_formed(void **state) {
    (void)state;
    Tokenizer *tokenizer = open_tokenizer("tests/golden/tokenizer_spm_bpe.model");
    TokenBuffer broken = {0}, whole = {0};
    encode(tokenizer, "a\xE2\x98 b", 0, 0, &broken);
    encode(tokenizer, "a\xEF\xBF\xBD\xEF\xBF\xBD b", 0, 0, &whole);
    assert_ids(&broken, whole.ids, whole.count, "broken");
    token_buffer_free(&broken);
    token_buffer_free(&whole);
    tokenizer_close(tokenizer);
}

/* One word of a megabyte: also the models that cannot cut at words stay linear. */
static void test_long_word(void **state) {
    (void)state;
    static const char *const names[] = {"spm_bpe", "spm_suffix", "spm_unigram", "spm_unigram_bytes", "tiktoken"};
    size_t length = (size_t)1 << 20;
    char *word = memory_alloc(length + 1);
    for (size_t i = 0; i < length; i++)
        word[i] = "the sack"[i * 7 % 8 == 3 ? 4 : i % 3];
    word[length] = 0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char *path = memory_format("tests/golden/tokenizer_%s.model", names[i]);
        Tokenizer *tokenizer = open_tokenizer(path);
        TokenBuffer tokens = {0};
        encode(tokenizer, word, 0, 0, &tokens);
        assert_true(tokens.count > 1000);
        for (int64_t t = 1; t < tokens.count; t++)
            assert_true(tokens.begin[t] <= tokens.end[t - 1] && tokens.end[t - 1] <= tokens.end[t]);
        assert_int_equal(tokens.begin[0], 0);
        assert_int_equal(tokens.end[tokens.count - 1], length);
        token_buffer_free(&tokens);
        tokenizer_close(tokenizer);
        memory_free(path);
    }
    memory_free(word);
}

/* ---- a SentencePiece model, field by field ---- */
static void add_varint(Text *out, uint64_t value) {
    do {
        char byte = (char)((value & 0x7F) | (value > 0x7F ? 0x80 : 0));
        text_add(out, &byte, 1);
        value >>= 7;
    } while (value);
}

static void add_number(Text *out, unsigned field, uint64_t value) {
    add_varint(out, (uint64_t)field << 3);
    add_varint(out, value);
}

static void add_bytes(Text *out, unsigned field, const char *bytes, size_t length) {
    add_varint(out, (uint64_t)field << 3 | 2);
    add_varint(out, length);
    text_add(out, bytes, length);
}

static void add_piece(Text *out, const char *text, float score, unsigned type) {
    Text piece = {0};
    add_bytes(&piece, 1, text, strlen(text));
    add_varint(&piece, 2 << 3 | 5);
    text_add(&piece, (const char *)&score, sizeof score);
    add_number(&piece, 3, type);
    add_bytes(out, 1, piece.data, piece.length);
    text_free(&piece);
}

static void add_spec(Text *out, unsigned part, unsigned field, uint64_t value) {
    Text spec = {0};
    add_number(&spec, field, value);
    add_bytes(out, part, spec.data, spec.length);
    text_free(&spec);
}

static void add_map(Text *out, const char *bytes, size_t length) {
    Text spec = {0};
    add_bytes(&spec, 2, bytes, length);
    add_bytes(out, 3, spec.data, spec.length);
    text_free(&spec);
}

/* <unk> <s> </s> ▁ a b ab ▁a; bpe */
static void add_base(Text *out) {
    add_piece(out, "<unk>", 0, 2);
    add_piece(out, "<s>", 0, 3);
    add_piece(out, "</s>", 0, 3);
    add_piece(out, "\xE2\x96\x81", -10, 1);
    add_piece(out, "a", -11, 1);
    add_piece(out, "b", -12, 1);
    add_piece(out, "ab", -1, 1);
    add_piece(out,
              "\xE2\x96\x81"
              "a",
              -2, 1);
    add_spec(out, 2, 3, 2);
    add_spec(out, 3, 4, 0);
}

static void check_refused(const char *name, const void *bytes, size_t length, const char *part) {
    scratch_write(name, bytes, length);
    char *path = scratch_path(name);
    Tokenizer *tokenizer;
    Error err;
    assert_refused(tokenizer_open(&tokenizer, path, &err), &err, part);
    assert_null(tokenizer);
    remove(path);
    memory_free(path);
}

static void check_model(Text *model, const char *part) {
    check_refused("tokenizer.model", model->data ? model->data : "", model->length, part);
    text_free(model);
}

#define RAW(bytes) (bytes), sizeof(bytes) - 1

/* Not a protobuf, or not one of this kind. */
static void test_refused_bytes(void **state) {
    (void)state;
    static const struct {
        const char *bytes;
        size_t length;
        const char *part;
    } cases[] = {
        {"", 0, "UNKNOWN"},
        {RAW("\xFF\xFF"), "whole number"},
        {RAW("\x0A"), "whole number"},
        {RAW("\x0A\x05"
             "ab"),
         "only 2 are left"},
        {RAW("\x0A\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01"), "only 0 are left"},
        {RAW("\x08\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01"), "at most 10 bytes"},
        {RAW("\x02\x01"
             "a"),
         "field number 0"},
        {RAW("\x0B\x0C"), "wire type 3"},
        {RAW("\x09"
             "1234"),
         "only 4 are left"},
        {RAW("\x10\x01"), "wire type 2"},                   /* trainer_spec as a number */
        {RAW("\x0A\x03\x15\x00\x00"), "only 2 are left"},   /* a score that is cut off */
        {RAW("\x0A\x04\x10\x01\x18\x01"), "score"},         /* a score as a varint */
        {RAW("\x0A\x02\x08\x01"), "piece: want wire type"}, /* a text as a varint */
        {RAW("\x0A\x02\x18\x00"), "type 0"},
        {RAW("\x0A\x02\x18\x09"), "type 9"},
        {RAW("\x0A\x02\x18\x05"), "1 to 1024 bytes"},
        {RAW("\x0A\x02\x18\x02"), "1 to 1024 bytes"}, /* <unk> without a text */
        {RAW("\x12\x02\x18\x03"), "word"},
        {RAW("\x12\x02\x18\x09"), "model_type 9"},
        {RAW("\x2A\x03\x12\x01x"), "denormalizer_spec"},
        {RAW("\x1A\x01\x18"), "whole number"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_refused("tokenizer.model", cases[i].bytes, cases[i].length, cases[i].part);
}

/* Models that contradict themselves. */
static void test_refused_models(void **state) {
    (void)state;
    Text m = {0};
    add_piece(&m, "a", 0, 1);
    check_model(&m, "got none in 1 pieces");
    add_base(&m);
    add_piece(&m, "<unk2>", 0, 2);
    check_model(&m, "both of type UNKNOWN");
    add_base(&m);
    add_piece(&m, "a", -3, 1);
    check_model(&m, "there twice");
    add_base(&m);
    add_piece(&m, "\xFF", -3, 1);
    check_model(&m, "not UTF-8");
    add_base(&m);
    Text surface = {0};
    add_bytes(&surface, 44, "?\xAE", 2);
    add_bytes(&m, 2, surface.data, surface.length);
    text_free(&surface);
    check_model(&m, "unk_surface is not UTF-8");
    add_base(&m);
    add_piece(&m, "c", NAN, 1);
    check_model(&m, "not finite");
    add_base(&m);
    add_piece(&m, "<0x41>", 0, 6);
    check_model(&m, "of type BYTE");
    add_base(&m);
    add_spec(&m, 2, 35, 1);
    add_piece(&m, "<0x4g>", 0, 6);
    check_model(&m, "of type BYTE");
    add_base(&m);
    add_spec(&m, 2, 35, 1);
    add_piece(&m, "<0x41>", 0, 6);
    check_model(&m, "256 byte pieces, got 1");
    add_base(&m);
    add_piece(&m, "ac", -3, 1);
    check_model(&m, "U+0063");
    add_base(&m);
    add_piece(&m, "ba", 0, 5);
    check_model(&m, "of type UNUSED and can be merged");
    add_base(&m);
    add_map(&m, RAW("\x04"));
    check_model(&m, "precompiled_charsmap");
    add_base(&m);
    add_map(&m, RAW("\xFF\xFF\xFF\xFF"
                    "0000abc\0"));
    check_model(&m, "precompiled_charsmap");
    add_base(&m);
    add_map(&m, RAW("\x04\0\0\0"
                    "0000abc"));
    check_model(&m, "precompiled_charsmap");
    add_base(&m);
    add_map(&m, RAW("\x04\0\0\0"
                    "0000ab\xFF\0"));
    check_model(&m, "not UTF-8");
    char *longest = memory_calloc(1, 1026);
    memset(longest, 'a', 1025);
    add_base(&m);
    add_piece(&m, longest, -3, 1);
    check_model(&m, "got 1025");
    memory_free(longest);
}

/* A trie that points everywhere: bounded, and text is still encoded. */
static void test_wild_charsmap(void **state) {
    (void)state;
    for (unsigned seed = 0; seed < 64; seed++) {
        char map[4 + 256 + 9] = {0};
        uint32_t random = seed * 2654435761u + 1;
        map[1] = 1; /* 256 bytes */
        for (size_t i = 4; i < 4 + 256; i++)
            map[i] = (char)((random = random * 1664525u + 1013904223u) >> 24);
        memcpy(map + 260, "abc\0  \xC3\xA9", 8);
        Text m = {0};
        add_base(&m);
        add_map(&m, map, sizeof map);
        scratch_write("tokenizer.model", m.data, m.length);
        char *path = scratch_path("tokenizer.model");
        Tokenizer *tokenizer = open_tokenizer(path);
        TokenBuffer tokens = {0};
        encode(tokenizer, "ab ab \x01\x02\xC3\xA9 \xF0\x9F\x98\x80", 1, 1, &tokens);
        assert_true(tokens.count > 0);
        token_buffer_free(&tokens);
        tokenizer_close(tokenizer);
        remove(path);
        memory_free(path);
        text_free(&m);
    }
}

/* Pieces of type UNUSED are never given, also where they would be the best. */
static void test_unused(void **state) {
    (void)state;
    Text m = {0};
    add_base(&m);
    add_piece(&m, "<unused0>", 0, 5);
    scratch_write("tokenizer.model", m.data, m.length);
    char *path = scratch_path("tokenizer.model");
    for (uint64_t type = 1; type <= 2; type++) { /* unigram, bpe */
        add_spec(&m, 2, 3, type);
        scratch_write("tokenizer.model", m.data, m.length);
        Tokenizer *tokenizer = open_tokenizer(path);
        TokenBuffer tokens = {0};
        encode(tokenizer, "a<unused0>", 0, 1, &tokens);
        assert_ids(&tokens, (const int32_t[]){7, 0}, 2, "a<unused0>");
        encode(tokenizer, "ab", 0, 1, &tokens);
        assert_ids(&tokens, (const int32_t[]){3, 6}, 2, "ab");
        token_buffer_free(&tokens);
        tokenizer_close(tokenizer);
    }
    remove(path);
    memory_free(path);
    text_free(&m);
}

/* Every prefix of a real model either opens or is refused in words. */
static void test_cut_models(void **state) {
    (void)state;
    static const char *const names[] = {"spm_bpe", "spm_suffix", "spm_unigram", "tiktoken"};
    int refused = 0;
    for (size_t n = 0; n < sizeof names / sizeof *names; n++) {
        char *path = memory_format("tests/golden/tokenizer_%s.model", names[n]), *cut = scratch_path("cut.model");
        size_t length;
        char *bytes = read_text(path, &length);
        for (size_t keep = 0; keep < length; keep += 37) {
            scratch_write("cut.model", bytes, keep);
            Tokenizer *tokenizer;
            Error err = {0};
            if (tokenizer_open(&tokenizer, cut, &err) != OK) {
                assert_non_null(strstr(err.text, "cut.model"));
                refused++;
            } else {
                tokenizer_close(tokenizer);
            }
        }
        remove(cut);
        memory_free(bytes);
        memory_free(path);
        memory_free(cut);
    }
    assert_true(refused > 100);
}

static void test_refused_tiktoken(void **state) {
    (void)state;
    static const struct {
        const char *text, *part;
    } cases[] = {
        {"AA==\n", "line 1"},
        {"AA== \n", "line 1: want a rank"},
        {"AA== 0\nA*== 1\n", "line 2"},
        {"AA= 0\n", "line 1"},
        {"AB== 0\n", "line 1"},  /* bits left over */
        {"==== 0\n", "UNKNOWN"}, /* no base64 digit in front: read as a protobuf */
        {"AA== -1\n", "want a rank from 0"},
        {"AA== 0x1\n", "want a rank from 0"},
        {"AA== 99999999999999999999\n", "want a rank from 0"},
        {"AA== 4194304\n", "want a rank from 0"},
        {"AA== 0\nAA== 1\n", "there twice"},
        {"AA== 0\nAQ== 0\n", "id 0 belongs to both"},
        {"AA== 0\nAQ== 1\n", "none for byte 2"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_refused("tokenizer.model", cases[i].text, strlen(cases[i].text), cases[i].part);
    char *line = memory_calloc(1, 4097);
    memset(line, 'A', 4096);
    memcpy(line + 4090, " 1\n", 4);
    check_refused("tokenizer.model", line, strlen(line), "line 1");
    memory_free(line);
}

/* Ranks need not be dense: holes are ids without text. */
static void test_tiktoken_holes(void **state) {
    (void)state;
    size_t length;
    char *ranks = read_text("tests/golden/tokenizer_tiktoken.model", &length), *path = scratch_path("tokenizer.model");
    Text more = {0};
    text_add(&more, ranks, length);
    text_adds(&more, "\nAAAA 1000\n");
    scratch_write("tokenizer.model", more.data, more.length);
    Tokenizer *tokenizer = open_tokenizer(path);
    assert_int_equal(tokenizer_vocab_size(tokenizer), 1001 + 256);
    assert_null(tokenizer_token(tokenizer, 999));
    assert_non_null(tokenizer_token(tokenizer, 1000));
    tokenizer_close(tokenizer);
    remove(path);
    text_free(&more);
    memory_free(ranks);
    memory_free(path);
}

/* ---- folders ---- */
static void write_text(const char *name, const char *text) {
    scratch_write(name, text, strlen(text));
}

static void drop(const char *name) {
    char *path = scratch_path(name);
    remove(path);
    memory_free(path);
}

static void folder_refused(const char *part) {
    Tokenizer *tokenizer;
    Error err;
    assert_refused(tokenizer_open(&tokenizer, scratch_folder(), &err), &err, part);
    assert_null(tokenizer);
}

static uint64_t folder_encodes(const char *text, int special, const int32_t *want, int64_t count) {
    Tokenizer *tokenizer = open_tokenizer(scratch_folder());
    TokenBuffer tokens = {0};
    encode(tokenizer, text, special, 1, &tokens);
    assert_ids(&tokens, want, count, text);
    uint64_t hash = tokenizer_hash(tokenizer);
    token_buffer_free(&tokens);
    tokenizer_close(tokenizer);
    return hash;
}

#define IDS(...) (const int32_t[]){__VA_ARGS__}, (int64_t)(sizeof((int32_t[]){__VA_ARGS__}) / sizeof(int32_t))

/* What tokenizer_config.json and its companions change. */
static void test_sentencepiece_folder(void **state) {
    (void)state;
    folder_refused("want a tokenizer");
    Text m = {0};
    add_base(&m);
    scratch_write("tokenizer.model", m.data, m.length);
    text_free(&m);
    uint64_t plain = folder_encodes("ab", 1, IDS(1, 3, 6)); /* BOS as Llama's own class; `ab` before `▁a` */
    folder_encodes("a</s>a<unk>", 0, IDS(7, 2, 7, 0));      /* each text between special tokens has its space; <unk> is text */
    write_text("tokenizer_config.json",
               "{\"tokenizer_class\": \"LlamaTokenizerFast\", \"legacy\": false, \"add_eos_token\": true, "
               "\"unk_token\": {\"content\": \"<unk>\"}}");
    uint64_t other = folder_encodes("a</s>a<unk>", 1, IDS(1, 7, 2, 4, 0, 2));
    assert_true(plain != other);
    write_text("tokenizer_config.json", "{\"bos_token\": \"<s>\"}");
    uint64_t first = folder_encodes("ab", 1, IDS(1, 3, 6));
    write_text("tokenizer_config.json", "{\"bos_token\": \"</s>\"}");
    assert_true(first != folder_encodes("ab", 1, IDS(2, 3, 6)));
    write_text("tokenizer_config.json", "{\"add_bos_token\": false, \"bos_token\": \"</s>\", \"chat_template\": \"T\"}");
    write_text("added_tokens.json", "{\"<new>\": 8, \"<more>\": 9}");
    write_text("special_tokens_map.json", "{\"additional_special_tokens\": [\"<more>\"], \"eos_token\": \"<new>\"}");
    folder_encodes("<new>a<more>", 1, IDS(8, 7, 9));
    Tokenizer *tokenizer = open_tokenizer(scratch_folder());
    assert_int_equal(tokenizer_bos(tokenizer), 2);
    assert_int_equal(tokenizer_eos(tokenizer), 8);
    assert_int_equal(tokenizer_vocab_size(tokenizer), 10);
    assert_true(tokenizer_is_special(tokenizer, 8) && tokenizer_is_special(tokenizer, 9));
    assert_string_equal(tokenizer_chat_template(tokenizer), "T");
    tokenizer_close(tokenizer);
    write_text("added_tokens.json", "{\"<new>\": -8}");
    folder_refused("want an id from 0");
    write_text("added_tokens.json", "{\"<new>\": 4}");
    folder_refused("gives to 'a'");
    write_text("added_tokens.json", "[");
    folder_refused("added_tokens.json");
    drop("added_tokens.json");
    drop("special_tokens_map.json");
    write_text("tokenizer_config.json", "{\"added_tokens_decoder\": {\"8x\": {\"content\": \"<new>\"}}}");
    folder_refused("'8x'");
    write_text("tokenizer_config.json", "{\"added_tokens_decoder\": {\"8\": {\"content\": 1}}}");
    folder_refused("content");
    write_text("tokenizer_config.json", "{\"tokenizer_class\": \"XLMRobertaTokenizer\"}");
    folder_refused("'XLMRobertaTokenizer'");
    write_text("tokenizer_config.json", "{\"add_bos_token\": 1}");
    folder_refused("add_bos_token");
    drop("tokenizer_config.json");
    drop("tokenizer.model");
}

/* vocab.json and merges.txt say nothing about the pattern: the class does. */
static void test_pair_folder(void **state) {
    (void)state;
    write_text("vocab.json", "{\"a\": 0, \"b\": 1, \"ab\": 2, \"\xC4\xA0\": 3, \"1\": 4, \"11\": 5, \"<|e|>\": 6}");
    folder_refused("merges.txt");
    write_text("merges.txt", "#version: 0.2\na b\n1 1\n");
    folder_refused("GPT2Tokenizer, Qwen2Tokenizer; got none");
    write_text("tokenizer_config.json", "{\"tokenizer_class\": \"BloomTokenizer\"}");
    folder_refused("'BloomTokenizer'");
    write_text("tokenizer_config.json", "{\"tokenizer_class\": \"GPT2Tokenizer\", \"eos_token\": \"<|e|>\"}");
    folder_encodes("ab 11<|e|>", 1, IDS(2, 3, 5, 6));
    write_text("tokenizer_config.json", "{\"tokenizer_class\": \"Qwen2Tokenizer\", \"eos_token\": \"<|e|>\"}");
    folder_encodes("ab 11<|e|>", 1, IDS(2, 3, 4, 4, 6)); /* one digit at a time */
    Tokenizer *tokenizer = open_tokenizer(scratch_folder());
    assert_int_equal(tokenizer_eos(tokenizer), 6);
    assert_int_equal(tokenizer_bos(tokenizer), -1);
    tokenizer_close(tokenizer);
    write_text("merges.txt", "a b c\n");
    folder_refused("line 1");
    write_text("merges.txt", "a 1\n");
    folder_refused("'a1'");
    write_text("merges.txt", "a b\n");
    write_text("vocab.json", "{\"a\": 0, \"b\": 1, \"ab\": 1}");
    folder_refused("id 1 belongs to both");
    write_text("vocab.json", "[\"a\"]");
    folder_refused("vocab.json");
    write_text("vocab.json", "{\"a\": 0} x");
    folder_refused("vocab.json");
    drop("vocab.json");
    drop("merges.txt");
    drop("tokenizer_config.json");
}

/* Llama 3's list of special tokens where the folder says nothing; the folder's own where it does. */
static void test_tiktoken_folder(void **state) {
    (void)state;
    size_t length;
    char *ranks = read_text("tests/golden/tokenizer_tiktoken.model", &length);
    scratch_write("tokenizer.model", ranks, length);
    memory_free(ranks);
    Tokenizer *tokenizer = open_tokenizer(scratch_folder());
    int32_t base = (int32_t)tokenizer_vocab_size(tokenizer) - 256;
    assert_int_equal(tokenizer_bos(tokenizer), base);
    assert_int_equal(tokenizer_eos(tokenizer), base + 1);
    assert_true(tokenizer_adds_bos(tokenizer));
    assert_int_equal(tokenizer_token_id(tokenizer, "<|eot_id|>"), base + 9);
    assert_int_equal(tokenizer_token_id(tokenizer, "<|reserved_special_token_4|>"), base + 8);
    assert_int_equal(tokenizer_token_id(tokenizer, "<|reserved_special_token_250|>"), base + 255);
    tokenizer_close(tokenizer);
    char *config = memory_format(
        "{\"added_tokens_decoder\": {\"%d\": {\"content\": \"<|x|>\", \"special\": true}}, \"bos_token\": "
        "\"<|x|>\", \"tokenizer_class\": \"PreTrainedTokenizerFast\"}",
        base + 5);
    write_text("tokenizer_config.json", config);
    memory_free(config);
    folder_encodes("<|x|>", 1, IDS(base + 5, base + 5));
    write_text("tokenizer_config.json", "{\"tokenizer_class\": \"QWenTokenizer\"}");
    folder_refused("'QWenTokenizer'");
    drop("tokenizer_config.json");
    drop("tokenizer.model");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_ill_formed),
        cmocka_unit_test(test_long_word),
        cmocka_unit_test(test_refused_bytes),
        cmocka_unit_test(test_refused_models),
        cmocka_unit_test(test_wild_charsmap),
        cmocka_unit_test(test_unused),
        cmocka_unit_test(test_tiktoken_holes),
        cmocka_unit_test(test_cut_models),
        cmocka_unit_test(test_refused_tiktoken),
        cmocka_unit_test(test_sentencepiece_folder),
        cmocka_unit_test(test_pair_folder),
        cmocka_unit_test(test_tiktoken_folder),
    };
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
