#include <stdio.h>
#include <string.h>

#include "core/file.h"
#include "core/memory.h"
#include "core/text.h"
#include "train/synth.h"

typedef struct Special {
    int64_t id;
    char content[24];
} Special;

enum { SPECIALS_MAX = MODEL_MAX_EOS + 1, BYTES = 256 };

/* The code point that stands for a byte in a byte-level vocabulary: printable Latin-1 for itself, the others in order from
 * 256 on. Source: openai/gpt-2, encoder.py, bytes_to_unicode. */
static uint32_t byte_code(int byte) {
    uint32_t others = 0;
    for (int b = 0; b <= byte; b++) {
        int stands_for_itself = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        if (b == byte && stands_for_itself) return (uint32_t)b;
        others += stands_for_itself ? 0 : 1;
    }
    return 256 + others - 1;
}

static void add_special(Special *specials, int *count, int64_t id, const char *content) {
    for (int i = 0; i < *count; i++)
        if (specials[i].id == id) return; /* BOS and EOS may be one token */
    specials[*count].id = id;
    (void)snprintf(specials[(*count)++].content, sizeof specials->content, "%s", content);
}

static const char *special_content(const Special *specials, int count, int64_t id) {
    for (int i = 0; i < count; i++)
        if (specials[i].id == id) return specials[i].content;
    return NULL;
}

static int gather_specials(const ModelConfig *config, Special *specials) {
    int count = 0;
    if (config->bos_id >= 0) add_special(specials, &count, config->bos_id, "<|begin|>");
    for (int i = 0; i < config->eos_count; i++) {
        char content[24];
        (void)snprintf(content, sizeof content, i == 0 ? "<|end|>" : "<|end_%d|>", i);
        add_special(specials, &count, config->eos_ids[i], content);
    }
    return count;
}

static void print_token(Text *text, const char *bytes, size_t length, int64_t id, const char *between) {
    text_adds(text, between);
    text_adds(text, "      ");
    text_add_json_string(text, bytes, length);
    text_addf(text, ": %lld", (long long)id);
}

/* The specials stand in the vocabulary too: readers number added tokens that do not from its end on. */
static void print_vocabulary(Text *text, const Special *specials, int special_count) {
    int64_t id = 0;
    for (int byte = 0; byte < BYTES; byte++, id++) {
        char code[4];
        while (special_content(specials, special_count, id) != NULL)
            id++;
        int n = utf8_encode(byte_code(byte), code);
        print_token(text, code, (size_t)n, id, byte == 0 ? "" : ",\n");
    }
    for (int i = 0; i < special_count; i++)
        print_token(text, specials[i].content, strlen(specials[i].content), specials[i].id, ",\n");
}

static void print_tokenizer(Text *text, const Special *specials, int special_count) {
    text_adds(text, "{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n  \"added_tokens\": [");
    for (int i = 0; i < special_count; i++)
        text_addf(text,
                  "%s\n    {\"id\": %lld, \"content\": \"%s\", \"single_word\": false, \"lstrip\": false, \"rstrip\": false, "
                  "\"normalized\": false, \"special\": true}",
                  i == 0 ? "" : ",", (long long)specials[i].id, specials[i].content);
    text_adds(text, "],\n  \"normalizer\": null,\n");
    text_adds(text,
              "  \"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, "
              "\"use_regex\": true},\n  \"post_processor\": null,\n");
    text_adds(text,
              "  \"decoder\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, "
              "\"use_regex\": true},\n");
    text_adds(text,
              "  \"model\": {\n    \"type\": \"BPE\",\n    \"dropout\": null,\n    \"unk_token\": null,\n"
              "    \"continuing_subword_prefix\": null,\n    \"end_of_word_suffix\": null,\n    \"fuse_unk\": false,\n"
              "    \"byte_fallback\": false,\n    \"vocab\": {\n");
    print_vocabulary(text, specials, special_count);
    text_adds(text, "\n    },\n    \"merges\": []\n  }\n}\n");
}

static void print_settings(Text *text, const ModelConfig *config, const Special *specials, int special_count) {
    text_adds(text, "{\n  \"tokenizer_class\": \"PreTrainedTokenizerFast\",\n  \"clean_up_tokenization_spaces\": false,\n");
    if (config->bos_id >= 0)
        text_addf(text, "  \"bos_token\": \"%s\",\n", special_content(specials, special_count, config->bos_id));
    if (config->eos_count > 0)
        text_addf(text, "  \"eos_token\": \"%s\",\n", special_content(specials, special_count, config->eos_ids[0]));
    text_addf(text, "  \"model_max_length\": %lld\n}\n", (long long)config->context);
}

static Status write_text(const char *folder, const char *name, const Text *text, Error *err) {
    char *path = path_join(folder, name);
    Status status = file_write_atomic(path, text->data, text->length, err);
    memory_free(path);
    return status;
}

Status synth_tokenizer_write(const char *folder, const ModelConfig *config, int *written, Error *err) {
    Special specials[SPECIALS_MAX];
    int count = gather_specials(config, specials);
    *written = config->vocab >= BYTES + count;
    for (int i = 0; i < count; i++)
        *written = *written && specials[i].id < config->vocab;
    if (!*written) return OK;
    Text tokenizer = {0}, settings = {0};
    print_tokenizer(&tokenizer, specials, count);
    print_settings(&settings, config, specials, count);
    Status status = write_text(folder, "tokenizer.json", &tokenizer, err);
    if (status == OK) status = write_text(folder, "tokenizer_config.json", &settings, err);
    text_free(&tokenizer);
    text_free(&settings);
    return status;
}
