/* What the data set tests share: a folder of their own, a small byte-level tokenizer, and reading in one line. */
#ifndef NIBBLE_TESTS_UNIT_TEST_DATASET_H
#define NIBBLE_TESTS_UNIT_TEST_DATASET_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/file.h"
#include "core/memory.h"
#include "core/philox.h"
#include "core/text.h"
#include "data/dataset.h"
#include "data/json.h"
#include "tests/support/scratch.h"

/* 256 bytes (id = byte), two merges, then added tokens; "<tool>" is not special. */
enum { ID_HI = 256, ID_BC, ID_BOS, ID_EOS, ID_START, ID_END, ID_TOOL, ID_COUNT };
static const char *const id_spelling[] = {"Hi", "bc", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<tool>"};

#define CHATML                                                                                                              \
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}" \
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"

/* As scratch_write, but not synced to the disk: there are hundreds. */
static void write_text(const char *name, const char *text, size_t length) {
    char *path = scratch_path(name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, length, file), length);
    assert_int_equal(fclose(file), 0);
    memory_free(path);
}

/* GPT-2's stand-in character for a byte. */
static uint32_t stand_in(unsigned byte) {
    unsigned shown = 0;
    for (unsigned b = 0; b <= byte; b++) {
        int is_self = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        if (b == byte) return is_self ? byte : 256 + shown;
        shown += !is_self;
    }
    return 0;
}

/* Added tokens from id ID_BOS on, "<s>" and "</s>" first; all but "<tool>" are special. settings: more of tokenizer_config.json. */
static Tokenizer *make_special_tokenizer(const char *const *added, int count, int adds_bos, const char *chat_template,
                                         const char *settings) {
    Text json = {0}, config = {0};
    char character[4];
    text_adds(&json, "{\"version\":\"1.0\",\"added_tokens\":[");
    for (int i = 0; i < count; i++) {
        text_addf(&json, "%s{\"id\":%d,\"content\":", i > 0 ? "," : "", ID_BOS + i);
        text_add_json_string(&json, added[i], strlen(added[i]));
        text_addf(&json, ",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":false,\"special\":%s}",
                  strcmp(added[i], "<tool>") != 0 ? "true" : "false");
    }
    text_adds(&json,
              "],\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,"
              "\"trim_offsets\":true,\"use_regex\":true},\"post_processor\":");
    text_adds(&json, adds_bos
                         ? "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\",\"type_id\":0}},"
                           "{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],\"pair\":[],\"special_tokens\":{\"<s>\":{\"id\":"
                           "\"<s>\",\"ids\":[258],\"tokens\":[\"<s>\"]}}}"
                         : "null");
    text_adds(&json,
              ",\"decoder\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true,\"use_regex\":true},"
              "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,\"continuing_subword_prefix\":null,"
              "\"end_of_word_suffix\":null,\"fuse_unk\":false,\"byte_fallback\":false,\"vocab\":{");
    for (unsigned byte = 0; byte < 256; byte++) {
        text_add_json_string(&json, character, (size_t)utf8_encode(stand_in(byte), character));
        text_addf(&json, ":%u,", byte);
    }
    text_adds(&json, "\"Hi\":256,\"bc\":257},\"merges\":[\"H i\",\"b c\"]}}");
    text_addf(&config, "{\"bos_token\":\"<s>\",\"eos_token\":\"</s>\"%s", settings);
    if (chat_template != NULL) {
        text_adds(&config, ",\"chat_template\":");
        text_add_json_string(&config, chat_template, strlen(chat_template));
    }
    text_adds(&config, "}");
    write_text("tokenizer.json", json.data, json.length);
    write_text("tokenizer_config.json", config.data, config.length);
    Tokenizer *tokenizer = NULL;
    Error error = {0};
    if (tokenizer_open(&tokenizer, scratch_folder(), &error) != OK) fail_msg("%s", error.text);
    text_free(&json);
    text_free(&config);
    return tokenizer;
}

__attribute__((unused)) static Tokenizer *make_tokenizer(int adds_bos, const char *chat_template) {
    return make_special_tokenizer(&id_spelling[ID_BOS - ID_HI], ID_COUNT - ID_BOS, adds_bos, chat_template, "");
}

/* Writes `text` as file `name` and reads it; options->path is set here. */
static Status read_text(const char *name, const char *text, DatasetOptions options, Dataset *out, Error *error) {
    write_text(name, text, strlen(text));
    char *path = scratch_path(name);
    options.path = path;
    Status status = dataset_read(&options, out, error);
    memory_free(path);
    return status;
}

__attribute__((unused)) static Dataset must_read(const char *name, const char *text, DatasetOptions options) {
    Dataset d;
    Error error = {0};
    if (read_text(name, text, options, &d, &error) != OK) fail_msg("%s", error.text);
    return d;
}

__attribute__((unused)) static void must_fail(const char *name, const char *text, DatasetOptions options, const char *wanted) {
    Dataset d;
    Error error = {0};
    if (read_text(name, text, options, &d, &error) == OK) fail_msg("was read, but want \"%s\": %s", wanted, text);
    if (strstr(error.text, wanted) == NULL) fail_msg("\"%s\" is not in: %s", wanted, error.text);
    assert_null(d.ids);
}

__attribute__((unused)) static DatasetOptions defaults(const Tokenizer *tokenizer) {
    return (DatasetOptions){.template_name = "auto", .max_length = 4096, .tokenizer = tokenizer, .eos_id = -1};
}

/* The text of sequence i; only its trained tokens when `trained`. */
__attribute__((unused)) static char *spell(const Dataset *d, int64_t i, int trained) {
    Text text = {0};
    text_add(&text, "", 0);
    for (int64_t t = d->start[i]; t < d->start[i + 1]; t++) {
        if (trained && !d->train[t]) continue;
        char byte = (char)d->ids[t];
        if (d->ids[t] < 256)
            text_add(&text, &byte, 1);
        else
            text_adds(&text, id_spelling[d->ids[t] - ID_HI]);
    }
    return text.data;
}

__attribute__((unused)) static void check_spelled(const Dataset *d, int64_t i, const char *all, const char *trained) {
    char *whole = spell(d, i, 0), *targets = spell(d, i, 1);
    assert_string_equal(whole, all);
    assert_string_equal(targets, trained);
    memory_free(whole);
    memory_free(targets);
}

#endif
