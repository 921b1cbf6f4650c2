/* PEFT folders that are not what they should be: each is refused with a message that names the trouble. */
#include <unistd.h>

#include "core/file.h"
#include "core/memory.h"
#include "core/text.h"
#include "tests/support/model_folder.h"
#include "tests/support/scratch.h"
#include "tests/unit/test_core.h"
#include "train/adapter.h"

static ModelConfig model;

static char *read_bytes(const char *name, size_t *length) {
    char *path = scratch_path(name), *bytes;
    Error err = {0};
    assert_int_equal(file_read(path, (size_t)1 << 24, &bytes, length, &err), OK);
    memory_free(path);
    return bytes;
}

/* good/: rank 4 on q_proj and v_proj of both layers, values as they are drawn at the start. */
static void write_good(void) {
    static const char text[] = "{\"lora\": {\"rank\": 4, \"alpha\": 8, \"target_modules\": [\"q_proj\", \"v_proj\"]}}";
    Config config;
    Adapter adapter = {0};
    ParamSet params = {0};
    Error err = {0};
    scratch_write("config.json", text, sizeof text - 1);
    char *path = scratch_path("config.json"), *good = scratch_path("good");
    assert_int_equal(config_load(&config, path, NULL, 0, &err), OK);
    assert_int_equal(adapter_create(&adapter, &params, &config, &model, &err), OK);
    float *values = memory_calloc((size_t)params.elements, sizeof *values);
    adapter_init(&params, 7, values);
    AdapterInfo info = {.base_model = "base", .dropout = 0.1};
    assert_int_equal(adapter_write(&adapter, &params, good, &model, &info, values, DTYPE_F32, &err), OK);
    memory_free(values);
    adapter_free(&adapter);
    params_free(&params);
    config_free(&config);
    memory_free(good);
    memory_free(path);
}

static int prepare(void **state) {
    (void)state;
    static const char text[] = TINY_CONFIG("llama", "");
    Error err = {0};
    if (scratch_make(state) != 0) return -1;
    if (model_config_parse("config.json", text, sizeof text - 1, &model, &err) != OK) return -1;
    write_good();
    return 0;
}

/* Structure and values of FOLDER/name, as generate and eval read them. */
static Status read_adapter(const char *name, const ModelConfig *base, Error *err) {
    Adapter adapter = {0};
    ParamSet params = {0};
    char *path = scratch_path(name);
    Status status = adapter_read(&adapter, &params, path, base, err);
    if (status == OK) {
        float *values = memory_calloc((size_t)params.elements, sizeof *values);
        status = adapter_read_values(&adapter, &params, path, base, values, err);
        memory_free(values);
    }
    adapter_free(&adapter);
    params_free(&params);
    memory_free(path);
    return status;
}

static void the_good_one_is_read(void **state) {
    (void)state;
    Error err = {0};
    assert_int_equal(read_adapter("good", &model, &err), OK);
}

/* bad/ is good/ with the first `from` of one file replaced by `to`. */
static void make_bad(const char *file, const char *from, const char *to) {
    static const char *const names[] = {"adapter_config.json", "adapter_model.safetensors"};
    Error err = {0};
    char *bad = scratch_path("bad");
    assert_int_equal(folder_remove(bad, &err), OK);
    assert_int_equal(folder_create(bad, &err), OK);
    for (int i = 0; i < 2; i++) {
        char *source = path_join("good", names[i]), *target = path_join("bad", names[i]);
        size_t length, at = 0;
        char *bytes = read_bytes(source, &length);
        if (strcmp(file, names[i]) == 0) {
            size_t count = strlen(from);
            while (at + count <= length && memcmp(bytes + at, from, count) != 0)
                at++;
            assert_true(at + count <= length); /* a case whose text is not there would test nothing */
            Text text = {0};
            text_add(&text, bytes, at);
            text_adds(&text, to);
            text_add(&text, bytes + at + count, length - at - count);
            scratch_write(target, text.data, text.length);
            text_free(&text);
        } else {
            scratch_write(target, bytes, length);
        }
        memory_free(bytes);
        memory_free(source);
        memory_free(target);
    }
    memory_free(bad);
}

static void assert_refused(const char *what, const ModelConfig *base, const char *message) {
    Error err = {0};
    Status status = read_adapter("bad", base, &err);
    if (status != ERR_FAILED || strstr(err.text, message) == NULL)
        fail_msg("%s: want status 1 and \"%s\", got %d: %s", what, message, (int)status, err.text);
    assert_non_null(strstr(err.text, scratch_folder())); /* which adapter */
}

#define CONFIG "adapter_config.json"
#define MODEL "adapter_model.safetensors"

static void malformed_texts_are_refused(void **state) {
    (void)state;
    static const struct {
        const char *file, *from, *to, *message;
    } cases[] = {
        {CONFIG, "{", "[", "adapter_config.json"},
        {CONFIG, "{", "{{", "adapter_config.json"},
        {CONFIG, "\"bias\"", "bias", "adapter_config.json"},
        {CONFIG, "\"LORA\"", "\"IA3\"", "IA3"},
        {CONFIG, "\"LORA\"", "1", "peft_type"},
        {CONFIG, "\"peft_type\"", "\"peft_kind\"", "peft_type is missing"},
        {CONFIG, "\"bias\": \"none\"", "\"bias\": \"all\"", "bias \"all\""},
        {CONFIG, "\"r\": 4", "\"r\": \"four\"", "r: "},
        {CONFIG, "\"r\": 4", "\"r\": 0", "r: "},
        {CONFIG, "\"r\": 4", "\"r\": 99999999999999999999", "r: "},
        {CONFIG, "\"lora_alpha\": 8", "\"lora_alpha\": -8", "lora_alpha"},
        {CONFIG, "\"lora_alpha\": 8", "\"lora_alpha\": null", "lora_alpha"},
        {CONFIG, "\"lora_alpha\": 8", "\"lora_alpha\": 1e999", "too large for a double"},
        {CONFIG, "\"lora_alpha\": 8", "\"lora_alpha\": 1e300", "alpha"},
        {CONFIG, "\"use_dora\": false", "\"use_dora\": true", "use_dora"},
        {CONFIG, "\"fan_in_fan_out\": false", "\"fan_in_fan_out\": true", "fan_in_fan_out"},
        {CONFIG, "\"modules_to_save\": null", "\"modules_to_save\": [\"lm_head\"]", "modules_to_save"},
        {CONFIG, "\"alpha_pattern\": {}", "\"alpha_pattern\": 3", "alpha_pattern"},
        {CONFIG, "\"alpha_pattern\": {}", "\"alpha_pattern\": {\"((\": 3}", "alpha_pattern"},
        {CONFIG, "\"alpha_pattern\": {}", "\"alpha_pattern\": {\"q_proj\": 0}", "alpha"},
        {CONFIG, "\"alpha_pattern\": {}", "\"alpha_pattern\": {\"q_proj\": -1}", "alpha"},
        {CONFIG, "\"alpha_pattern\": {}", "\"alpha_pattern\": {\"(a*)*b|(.*.*)*x\": 1}", "too long"},
        {CONFIG, "\"alpha_pattern\": {}", "\"x\":[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]", "deep"},
        {CONFIG, "\"use_rslora\": false", "\"use_rslora\": 1", "use_rslora"},
        {MODEL, "layers.0.self_attn.q_proj.lora_A", "layers.0.self_attn.q_prof.lora_A", "one is missing"},
        {MODEL, "layers.0.self_attn.q_proj.lora_A", "layers.9.self_attn.q_proj.lora_A", "one is missing"},
        {MODEL, "q_proj.lora_A", "q_proj.lora_C", "one is missing"},
        {MODEL, "\"shape\":[4,64]", "\"shape\":[8,32]", "want ["},
        {MODEL, "\"shape\":[4,64]", "\"shape\":[5,64]", "lora_A"},
        {MODEL, "\"dtype\":\"F32\",\"shape\":[4,64]", "\"dtype\":\"I32\",\"shape\":[4,64]", "I32"},
        {MODEL, "\"dtype\":\"F32\"", "\"dtype\":\"F99\"", "F99"},
        {MODEL, "\"data_offsets\":[0,", "\"data_offsets\":[1,", "adapter_model.safetensors"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char what[128];
        (void)snprintf(what, sizeof what, "case %zu, %s for %s", i, cases[i].to, cases[i].from);
        make_bad(cases[i].file, cases[i].from, cases[i].to);
        assert_refused(what, &model, cases[i].message);
    }
}

/* Cut at every length: no prefix of either file is an adapter. */
static void truncated_files_are_refused(void **state) {
    (void)state;
    static const char *const names[] = {CONFIG, MODEL};
    for (int f = 0; f < 2; f++) {
        size_t length;
        char *source = path_join("good", names[f]), *target = path_join("bad", names[f]);
        char *bytes = read_bytes(source, &length);
        size_t stride = length / 97 + 1, kept = f == 0 ? 3 : 1; /* the last brace and line end of a text may be one of two */
        make_bad(CONFIG, "{", "{");
        for (size_t cut = 0; cut + kept <= length; cut += stride) {
            scratch_write(target, bytes, cut);
            assert_refused("a truncated file", &model, names[f] == NULL ? "" : "adapter");
        }
        memory_free(bytes);
        memory_free(source);
        memory_free(target);
    }
}

static void missing_files_are_refused(void **state) {
    (void)state;
    static const char *const names[] = {"bad/" CONFIG, "bad/" MODEL};
    for (int f = 0; f < 2; f++) {
        make_bad(CONFIG, "{", "{");
        char *path = scratch_path(names[f]);
        assert_int_equal(unlink(path), 0);
        assert_refused(names[f], &model, "adapter");
        memory_free(path);
    }
}

/* The last number of the file becomes NaN, then Inf. */
static void numbers_that_are_not_finite_are_refused(void **state) {
    (void)state;
    static const uint32_t patterns[] = {0x7FC00000u, 0x7F800000u, 0xFF800000u};
    for (int p = 0; p < 3; p++) {
        make_bad(CONFIG, "{", "{");
        size_t length;
        char *bytes = read_bytes("bad/" MODEL, &length);
        memcpy(bytes + length - 4, &patterns[p], 4);
        scratch_write("bad/" MODEL, bytes, length);
        assert_refused("a number that is not finite", &model, "NaN or Inf");
        memory_free(bytes);
    }
}

/* Every byte of the header, each with one bit flipped: read or refused, never a crash; the values never reach past the file. */
static void flipped_bits_do_no_harm(void **state) {
    (void)state;
    make_bad(CONFIG, "{", "{");
    size_t length, refused = 0;
    char *bytes = read_bytes("bad/" MODEL, &length);
    uint64_t header;
    memcpy(&header, bytes, sizeof header);
    for (size_t at = 0; at < 8 + header; at++) {
        char flipped = (char)(1 << at % 8);
        bytes[at] ^= flipped;
        scratch_write("bad/" MODEL, bytes, length);
        Error err = {0};
        Status status = read_adapter("bad", &model, &err);
        assert_true(status == OK || (status == ERR_FAILED && err.text[0] != 0));
        refused += status != OK;
        bytes[at] ^= flipped;
    }
    assert_true(refused > header / 2); /* most of a header is names, shapes and offsets */
    memory_free(bytes);
}

static void adapters_of_other_models_are_refused(void **state) {
    (void)state;
    static const struct {
        const char *text, *message;
    } others[] = {
        {"{\"model_type\":\"llama\",\"hidden_size\":64,\"intermediate_size\":96,\"num_attention_heads\":4,"
         "\"num_key_value_heads\":2,\"num_hidden_layers\":1,\"vocab_size\":40,\"max_position_embeddings\":128,"
         "\"rms_norm_eps\":1e-05,\"hidden_act\":\"silu\"}",
         "layers.1."},
        {"{\"model_type\":\"llama\",\"hidden_size\":128,\"intermediate_size\":96,\"num_attention_heads\":8,"
         "\"num_key_value_heads\":4,\"num_hidden_layers\":2,\"vocab_size\":40,\"max_position_embeddings\":128,"
         "\"rms_norm_eps\":1e-05,\"hidden_act\":\"silu\"}",
         "does the adapter belong to this base model?"},
    };
    make_bad(CONFIG, "{", "{");
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        ModelConfig other;
        Error err = {0};
        assert_int_equal(model_config_parse("config.json", others[i].text, strlen(others[i].text), &other, &err), OK);
        assert_refused("another model", &other, others[i].message);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_good_one_is_read),
                                       cmocka_unit_test(malformed_texts_are_refused),
                                       cmocka_unit_test(truncated_files_are_refused),
                                       cmocka_unit_test(missing_files_are_refused),
                                       cmocka_unit_test(numbers_that_are_not_finite_are_refused),
                                       cmocka_unit_test(flipped_bits_do_no_harm),
                                       cmocka_unit_test(adapters_of_other_models_are_refused)};
    return cmocka_run_group_tests(tests, prepare, scratch_remove);
}
