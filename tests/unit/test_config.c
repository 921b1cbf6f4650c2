/* Configs: what is read, what is refused and in which words, and that everything printed reads back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cjson/cJSON.h>
#include <cmocka.h>

#include "core/memory.h"
#include "data/template.h"
#include "train/config_table.h"

static Status load(Config *config, const char *text, Error *err) {
    return config_load_text(config, "my.json", text, strlen(text), NULL, 0, err);
}

static void load_ok(Config *config, const char *text, const char *const *overrides, int count) {
    Error err = {0};
    if (config_load_text(config, "my.json", text, strlen(text), overrides, count, &err) != OK) fail_msg("%s", err.text);
}

/* Every case: a config, and the parts that its message must have. */
static const struct {
    const char *text, *place, *key, *hint;
} mistakes[] = {
    /* keys */
    {"{\n\"train\": {\n\"lrr\": 1}}", "my.json:3:", "train.lrr is not a key", "did you mean train.lr?"},
    {"{\n\"trian\": {\"lr\": 1}}", "my.json:2:", "trian is not a key", "did you mean train?"},
    {"{\"train\": {\"learning_rate\": 1}}", "my.json:1:", "train.learning_rate is not a key", "did you mean train.lr?"},
    {"{\"lora\": {\"r\": 1}}", "my.json:1:", "lora.r is not a key", "did you mean lora.rank?"},
    {"{\"quant\": {\"frobnicator\": 1}}", "my.json:1:", "quant.frobnicator is not a key",
     "quant.type, quant.double_quant, quant.block_size"},
    {"{\"frobnicator\": 1}", "my.json:1:", "frobnicator is not a key", "device, precision, seed, method, model"},
    {"{\"lr\": 1}", "my.json:1:", "lr is not a key", "did you mean train.lr?"},
    {"{\"model\": {\n\n\"rank\": 8}}", "my.json:3:", "model.rank is not a key", "did you mean lora.rank?"},
    {"{\"lora\": {\"target_module\": \"q_proj\"}}", "my.json:1:", "lora.target_module ", "lora.target_modules?"},
    {"{\"quantization_configuration\": 1}", "my.json:1:", "is not a key", "the keys there are device, precision"},
    {"{\"train.lr\": 1}", "my.json:1:", "train.lr", "inside the section"},
    {"{\"seed\": 1,\n\"seed\": 2}", "my.json:2:", "seed is given twice", "lines 1 and 2"},
    {"{\"train\": {\"lr\": 1,\n\"lr\": 1}}", "my.json:2:", "train.lr is given twice", "lines 1 and 2"},
    {"{\"train\": {},\n\"data\": {},\n\"train\": {}}", "my.json:3:", "train is given twice", "lines 1 and 3"},
    {"{\"train\": 3}", "my.json:1:", "train:", "want an object"},
    /* types */
    {"{\"train\": {\"lr\": \"fast\"}}", "my.json:1:", "train.lr: want a number", "got \"fast\""},
    {"{\"train\": {\"steps\": 1.5}}", "my.json:1:", "train.steps: want a whole number", "got 1.5"},
    {"{\"train\": {\"save_best\": 1}}", "my.json:1:", "train.save_best: want true or false", "got 1"},
    {"{\"model\": {\"path\": null}}", "my.json:1:", "model.path: want a string", "got null"},
    {"{\"model\": {\"path\": \"\"}}", "my.json:1:", "model.path", "not empty"},
    {"{\"lora\": {\"init\": false}}", "my.json:1:", "lora.init: want a string or null", "got false"},
    {"{\"lora\": {\"layers\": 3}}", "my.json:1:", "lora.layers: want a list", "got 3"},
    {"{\"lora\": {\"target_modules\": [1]}}", "my.json:1:", "lora.target_modules", "got 1"},
    {"{\"lora\": {\"target_modules\": []}}", "my.json:1:", "lora.target_modules", "at least one"},
    {"{\"data\": {\"max_length\": \"long\"}}", "my.json:1:", "data.max_length: want a whole number or \"auto\"", "\"long\""},
    /* paths with weights */
    {"{\"data\": {\"path\": 3}}", "my.json:1:", "data.path: want a path", "got 3"},
    {"{\"data\": {\"path\": null}}", "my.json:1:", "data.path: want a path", "got null"},
    {"{\"data\": {\"path\": \"\"}}", "my.json:1:", "data.path: want a path", "got \"\""},
    {"{\"data\": {\"path\": []}}", "my.json:1:", "data.path", "at least one path"},
    {"{\"data\": {\"path\": [[\"a\"]]}}", "my.json:1:", "data.path: want a path", "got [\"a\"]"},
    {"{\"data\": {\"path\": {\"weight\": 2}}}", "my.json:1:", "data.path: want a path", "weight"},
    {"{\"data\": {\"path\": {\"path\": \"a\", \"weigth\": 2}}}", "my.json:1:", "data.path: want \"path\" and \"weight\"",
     "weigth"},
    {"{\"data\": {\"path\": {\"path\": \"a\", \"weight\": \"2\"}}}", "my.json:1:", "data.path: weight: want a number",
     "got \"2\""},
    {"{\"data\": {\"path\": {\"path\": \"a\", \"weight\": 0}}}", "my.json:1:", "data.path: want a value above 0", "got 0"},
    {"{\"data\": {\"path\": {\"path\": \"a\", \"path\": \"b\"}}}", "my.json:1:", "data.path: path is given twice", ""},
    {"{\"data\": {\"path\": [\"a\", {\"path\": \"a\"}]}}", "my.json:1:", "data.path: a is given twice", "weight"},
    /* lines behind a path's own keys stay right */
    {"{\"data\": {\"path\": [{\"path\": \"a\",\n\"weight\": 2}],\n\"packin\": 1}}", "my.json:3:", "data.packin is not a key",
     "data.packing"},
    {"{\"data\": {\"path\": {\"weight\": 2,\n\"path\": \"a\"}},\n\n\"sead\": 1}", "my.json:4:", "sead is not a key",
     "did you mean seed?"},
    /* ranges */
    {"{\"seed\": -1}", "my.json:1:", "seed: want a value of at least 0", "got -1"},
    {"{\"seed\": 9007199254740993}", "my.json:1:", "seed: want", "2^53"},
    {"{\"seed\": 1e400}", "my.json:1:", "seed", "want a whole number"},
    {"{\"lora\": {\"rank\": 0}}", "my.json:1:", "lora.rank: want a value of at least 1", "got 0"},
    {"{\"lora\": {\"dropout\": 1}}", "my.json:1:", "lora.dropout: want a value of at least 0 and below 1", "got 1"},
    {"{\"lora\": {\"alpha\": 0}}", "my.json:1:", "lora.alpha: want a value above 0", "got 0"},
    {"{\"lora\": {\"layers\": [0, 512]}}", "my.json:1:", "lora.layers", "got 512"},
    {"{\"lora\": {\"layers\": [1, 1]}}", "my.json:1:", "lora.layers", "given twice"},
    {"{\"data\": {\"eval_fraction\": 0.6}}", "my.json:1:", "data.eval_fraction", "at most 0.5"},
    {"{\"quant\": {\"block_size\": 100}}", "my.json:1:", "quant.block_size", "power of two"},
    {"{\"train\": {\"warmup\": 2.5}}", "my.json:1:", "train.warmup", "whole number of steps"},
    {"{\"train\": {\"memory\": \"16G\"}}", "my.json:1:", "train.memory", "GiB"},
    {"{\"train\": {\"memory\": \"lots\"}}", "my.json:1:", "train.memory", "16GiB"},
    /* choices */
    {"{\"train\": {\"schedule\": \"cosin\"}}", "my.json:1:", "train.schedule: \"cosin\" is not one of", "did you mean cosine?"},
    {"{\"method\": \"qlora2\"}", "my.json:1:", "method: \"qlora2\"", "did you mean qlora?"},
    {"{\"data\": {\"template\": \"chatlm\"}}", "my.json:1:", "data.template", "did you mean chatml?"},
    {"{\"lora\": {\"target_modules\": [\"q_porj\"]}}", "my.json:1:", "lora.target_modules: \"q_porj\"", "did you mean q_proj?"},
    {"{\"lora\": {\"target_modules\": [\"q_proj\", \"q_proj\"]}}", "my.json:1:", "lora.target_modules", "given twice"},
    {"{\"lora\": {\"target_modules\": [\"q_proj\", \"all-linear\"]}}", "my.json:1:", "lora.target_modules", "stands alone"},
    /* not supported yet */
    {"{\n\"device\": \"gpu\"}", "my.json:2:", "device: \"gpu\"", "cuda"},
    {"{\"qat\": {\"weights\": \"mxfp4\"}}", "my.json:1:", "qat.weights: mxfp4 is not supported yet", "int4"},
    /* combinations */
    {"{\"distributed\": {\"shard_base\": true}, \"method\": \"full\"}", "my.json:1:", "distributed.shard_base has no effect",
     "no frozen base"},
    {"{\"distributed\": {\n\"shard_base\": true}, \"qat\": {\"mode\": \"merged\"}}",
     "my.json:2:", "distributed.shard_base and qat.mode merged do not go together yet", "quantized"},
    {"{\"qat\": {\n\"weights\": \"nf4\"}}", "my.json:2:", "qat.weights has no effect", "qat.mode is none"},
    {"{\"qat\": {\"mode\": \"merged\"}, \"method\": \"full\"}", "my.json:1:", "qat.mode merged and method full", "lora"},
    {"{\"qat\": {\"mode\": \"merged\"}, \"lora\": {\"dropout\": 0.1}}", "my.json:1:", "lora.dropout above 0", "separate"},
    {"{\"qat\": {\"mode\": \"merged\", \"weights\": \"nf4\", \"group_size\": 64}}",
     "my.json:1:", "qat.group_size has no effect", "int4 have groups"},
    {"{\"qat\": {\"mode\": \"merged\", \"group_size\": 48}}", "my.json:1:", "qat.group_size", "32, 64 or 128, got 48"},
    {"{\"qat\": {\"mode\": \"merged\", \"weights\": \"q4_0\", \"symmetric\": false}}",
     "my.json:1:", "qat.symmetric has no effect", "zero points"},
    {"{\"qat\": {\"mode\": \"merged\", \"double_quant\": false}}", "my.json:1:", "qat.double_quant has no effect", "nf4"},
    {"{\"qat\": {\"mode\": \"merged\", \"start_step\": 9}, \"train\": {\"steps\": 9}}", "my.json:1:", "qat.start_step",
     "9 steps"},
    {"{\"data\": {\n\"max_length\": 5000}}", "my.json:2:", "data.max_length", "train.micro_batch_tokens (4096)"},
    {"{\"method\": \"full\", \"lora\": {\n\"rank\": 8}}", "my.json:2:", "lora.rank has no effect", "method full"},
    {"{\"method\": \"full\", \"quant\": {\n\"type\": \"int8\"}}", "my.json:2:", "quant.type has no effect", "method full"},
    {"{\"method\": \"lora\", \"quant\": {\n\"type\": \"fp4\"}}", "my.json:2:", "quant.type has no effect", "method lora"},
    {"{\"train\": {\"init\": \"random\"}}", "my.json:1:", "train.init has no effect", "method full"},
    {"{\"quant\": {\"type\": \"int4\", \"block_size\": 256}}", "my.json:1:", "quant.block_size", "32, 64 or 128"},
    {"{\"quant\": {\"type\": \"int8\", \"block_size\": 128}}", "my.json:1:", "quant.block_size has no effect", "each row"},
    {"{\"data\": {\"eval_path\": \"e\", \"eval_fraction\": 0.1}}", "my.json:1:", "data.eval_fraction has no effect",
     "eval_path"},
    {"{\"data\": {\"eval_fraction\": 0}, \"train\": {\"save_best\": true}}", "my.json:1:", "train.save_best", "evaluation"},
    {"{\"train\": {\"decay_ratio\": 0.5}}", "my.json:1:", "train.decay_ratio has no effect", "wsd"},
    {"{\"train\": {\"schedule\": \"constant\", \"min_lr_ratio\": 0.1}}", "my.json:1:", "train.min_lr_ratio", "constant"},
    {"{\"train\": {\"schedule\": \"wsd\", \"warmup\": 0.5, \"decay_ratio\": 0.6}}", "my.json:1:", "train.decay_ratio",
     "whole run"},
    {"{\"train\": {\"steps\": 10, \"warmup\": 20}}", "my.json:1:", "train.warmup: 20 steps", "train.steps (10)"},
    /* text */
    {"", "my.json:1:", "not valid JSON", ""},
    {"[1]", "my.json:", "a config is a JSON object", ""},
    {"{\"seed\": 1,\n}", "my.json:2:", "not valid JSON", "comma"},
    {"{\"seed\": 1\n\"method\": \"full\"}", "my.json:2:", "not valid JSON", "comma"},
    {"{\"seed\": 1} x", "my.json:1:", "not valid JSON at `x`", ""},
    {"{\n/* no end\n}", "my.json:2:", "comment", "no end"},
    {"{\"seed\": / 1}", "my.json:1:", "a lone /", "comments"},
    {"{\"method\": \"lo\nra\"}", "my.json:1:", "string", "closing quote"},
    {"{\"method\": \"lora", "my.json:1:", "string", "closing quote"},
    {"{\"method\": \"a\x01\"}", "my.json:1:", "control character 1", "escape"},
    {"{\"method\": \"lora\\u0000\"}", "my.json:1:", "zero byte", ""},
    {"{\"method\": \"\xFF\"}", "my.json:1:", "UTF-8", ""},
    {"\x7f\x01"
     "ELF",
     "my.json:1:", "not text", ""},
    {"[[[[[[[[[[1]]]]]]]]]]", "my.json:1:", "nested more than 8 deep", ""},
};

static void test_mistakes(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof mistakes / sizeof *mistakes; i++) {
        Config config;
        Error err = {0};
        Status status = load(&config, mistakes[i].text, &err);
        if (status != ERR_USAGE) fail_msg("%s: want status 2, got %d", mistakes[i].text, (int)status);
        int is_right = strncmp(err.text, mistakes[i].place, strlen(mistakes[i].place)) == 0;
        is_right = is_right && strstr(err.text, mistakes[i].key) != NULL && strstr(err.text, mistakes[i].hint) != NULL;
        if (!is_right) fail_msg("%s: the message is: %s", mistakes[i].text, err.text);
    }
}

/* The same for --set. */
static const struct {
    const char *override, *key, *hint;
} override_mistakes[] = {
    {"train.lrr=1", "--set train.lrr=1: train.lrr is not a key", "did you mean train.lr?"},
    {"train.lr", "want key=value", "train.lr=1e-4"},
    {"=1", "want key=value", ""},
    {"train.lr=fast", "train.lr: want a number", "got \"fast\""},
    {"train.lr=", "train.lr: want a number", "got \"\""},
    {"train.schedule=linaer", "train.schedule", "did you mean linear?"},
    {"train=3", "train: want an object", ""},
    {"train={\"lrr\":1}", "train.lrr is not a key", "train.lr?"},
    {"train={\"lr\":1", "not valid JSON", "train"},
    {"lora.layers=[0,1", "not valid JSON", "lora.layers"},
    {"lora.layers=0,x", "lora.layers: want a whole number", "\"x\""},
    {"lora.target_modules=q_proj,v_porj", "\"v_porj\"", "v_proj"},
    {"seed=[[[[[[[[[1]]]]]]]]]", "nested more than", ""},
    {"device=tpu", "device: \"tpu\"", "cpu"},
};

static void test_override_mistakes(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof override_mistakes / sizeof *override_mistakes; i++) {
        Config config;
        Error err = {0};
        const char *override = override_mistakes[i].override;
        Status status = config_load(&config, NULL, &override, 1, &err);
        if (status != ERR_USAGE) fail_msg("%s: want status 2, got %d", override, (int)status);
        int is_right = strncmp(err.text, "--set ", 6) == 0 && strstr(err.text, override_mistakes[i].key) != NULL &&
                       strstr(err.text, override_mistakes[i].hint) != NULL;
        if (!is_right) fail_msg("%s: the message is: %s", override, err.text);
    }
}

static void test_defaults(void **state) {
    (void)state;
    Config config;
    load_ok(&config, "{}", NULL, 0);
    assert_string_equal(config.device, "auto");
    assert_int_equal(config.seed, 1234);
    assert_string_equal(config.method, "qlora");
    assert_null(config.model.arch);
    assert_string_equal(config.quant.type, "nf4");
    assert_int_equal(config.quant.double_quant, 1);
    assert_int_equal(config.quant.block_size, 64);
    assert_int_equal(config.lora.rank, 16);
    assert_true(config.lora.alpha == 32.0 && config.lora.dropout == 0.0);
    assert_int_equal(config.lora.target_count, 1);
    assert_string_equal(config.lora.target_modules[0], "all-linear");
    assert_int_equal(config.lora.layer_count, 0);
    assert_null(config.data.eval_path);
    assert_true(config.data.eval_fraction == 0.02);
    assert_int_equal(config.data.max_length, CONFIG_AUTO);
    assert_true(config.train.lr == 2e-4 && config.train.epochs == 1.0 && config.train.warmup == 0.03);
    assert_true(config.train.beta1 == 0.9 && config.train.beta2 == 0.999 && config.train.epsilon == 1e-8);
    assert_int_equal(config.train.micro_batch_tokens, 4096);
    assert_int_equal(config.train.gradient_accumulation, 4);
    assert_int_equal(config.output.overwrite, 0);
    config_free(&config);
}

static void test_reading(void **state) {
    (void)state;
    Config config;
    const char *overrides[] = {"train.lr=1e-3",          "output.path=1234", "data.eval_path=null", "lora.layers=0,2",
                               "model={\"path\":\"m\"}", "train.steps=7",    "train.lr=3e-3"};
    load_ok(&config,
            "// first\n{ /* a\n comment */ \"seed\": 9007199254740991, \"method\": \"lora\",\n"
            "\"data\": {\"path\": \"a // b /* c */\\\"\\u00e9\", \"eval_path\": \"x\", \"max_length\": 512},\n"
            "\"lora\": {\"target_modules\": [\"v_proj\", \"q_proj\"], \"layers\": [3]}}",
            overrides, 7);
    assert_true(config.seed == 9007199254740991);
    assert_string_equal(config.data.path[0].path, "a // b /* c */\"\xC3\xA9");
    assert_null(config.data.eval_path);
    assert_int_equal(config.data.max_length, 512);
    assert_int_equal(config.lora.target_count, 2);
    assert_string_equal(config.lora.target_modules[1], "q_proj");
    assert_int_equal(config.lora.layer_count, 2);
    assert_int_equal(config.lora.layers[1], 2);
    assert_string_equal(config.output.path, "1234");
    assert_string_equal(config.model.path, "m");
    assert_true(config.train.lr == 3e-3); /* the last override counts */
    assert_int_equal(config.train.steps, 7);
    config_free(&config);
}

/* Types without double quantization settle it, whatever the default says. */
static void test_double_quant_is_settled(void **state) {
    (void)state;
    static const char *const types[] = {"int8", "int4", "fp4"};
    for (int i = 0; i < 6; i++) {
        Config config;
        char override[32];
        const char *list[] = {override};
        (void)snprintf(override, sizeof override, "quant.type=%s", types[i % 3]);
        load_ok(&config, i < 3 ? "{}" : "{\"quant\": {\"double_quant\": true}}", list, 1);
        assert_int_equal(config.quant.double_quant, i % 3 == 2);
        config_free(&config);
    }
}

static void check_round_trip(const char *const *overrides, int count) {
    Config config, again;
    Text first = {0}, second = {0};
    load_ok(&config, "{}", overrides, count);
    config_print(&config, &first);
    load_ok(&again, first.data, NULL, 0);
    config_print(&again, &second);
    assert_string_equal(first.data, second.data);
    for (int i = 0; i < config_key_count; i++) { /* not only what the printer shows: the fields themselves */
        const char *a = (const char *)&config + config_keys[i].offset, *b = (const char *)&again + config_keys[i].offset;
        if (config_keys[i].kind == KEY_NUMBER) assert_memory_equal(a, b, sizeof(double));
        if (config_keys[i].kind == KEY_INTEGER) assert_memory_equal(a, b, sizeof(int64_t));
        if (config_keys[i].kind == KEY_BOOL) assert_memory_equal(a, b, sizeof(int));
    }
    text_free(&first);
    text_free(&second);
    config_free(&config);
    config_free(&again);
}

static void test_round_trip(void **state) {
    (void)state;
    const char *const odd[] = {"train.lr=0.30000000000000004",
                               "lora.alpha=3.3333333333333335",
                               "train.epsilon=4.9406564584124654e-324",
                               "seed=9007199254740991",
                               "data.path=a\"b\\c\td\xC3\xA9",
                               "lora.target_modules=q_proj,v_proj",
                               "lora.layers=5,0,511",
                               "data.max_length=100",
                               "train.memory=16GiB",
                               "model.arch=x.json",
                               "quant.type=int4",
                               "train.schedule=wsd"};
    const char *const full[] = {"method=full", "train.init=random"};
    const char *const lora[] = {"method=lora", "lora.use_rslora=true"};
    const char *const mixed[] = {
        "data.path=[\"a*.jsonl\", {\"path\": \"b \\\"c\\\".csv\", \"weight\": 0.1}, {\"path\": \"d\"}]"};
    const char *const weighted[] = {"data.path={\"weight\": 2.5, \"path\": \"a\"}"};
    check_round_trip(mixed, 1);
    check_round_trip(weighted, 1);
    check_round_trip(NULL, 0);
    check_round_trip(odd, sizeof odd / sizeof *odd);
    check_round_trip(full, 2);
    check_round_trip(lora, 2);
}

static void test_paths(void **state) {
    (void)state;
    static const struct {
        const char *value, *printed, *shown;
        int64_t count;
    } cases[] = {
        {"a.jsonl", "\"a.jsonl\"", "a.jsonl", 1},
        {"7", "\"7\"", "7", 1},
        {"{\"path\": \"a\", \"weight\": 1}", "\"a\"", "a", 1},
        {"[\"a\"]", "\"a\"", "a", 1},
        {"{\"path\": \"a\", \"weight\": 0.5}", "[{\"path\": \"a\", \"weight\": 0.5}]", "a (weight 0.5)", 1},
        {"[\"b\", {\"path\": \"a\", \"weight\": 3}]", "[\"b\", {\"path\": \"a\", \"weight\": 3}]", "b, a (weight 3)", 2},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Config config;
        Text printed = {0}, shown = {0};
        char *text = memory_format("data.path=%s", cases[i].value);
        const char *list[] = {text};
        load_ok(&config, "{}", list, 1);
        config_print_value(&config, &config_keys[config_key_find("data.path")], &printed);
        config_print_paths(&config, &shown);
        assert_int_equal(config.data.path_count, cases[i].count);
        assert_string_equal(printed.data, cases[i].printed);
        assert_string_equal(shown.data, cases[i].shown);
        config_free(&config);
        text_free(&printed);
        text_free(&shown);
        memory_free(text);
    }
}

/* --defaults is a config that holds the defaults, and mentions every key's help. */
static void test_printed_defaults(void **state) {
    (void)state;
    Text text = {0}, printed = {0}, plain = {0};
    Config config, defaults;
    config_print_defaults(&text);
    load_ok(&config, text.data, NULL, 0);
    load_ok(&defaults, "{}", NULL, 0);
    config_print(&config, &printed);
    config_print(&defaults, &plain);
    assert_string_equal(printed.data, plain.data);
    for (int i = 0; i < config_key_count; i++)
        assert_non_null(strstr(text.data, config_keys[i].help));
    config_free(&config);
    config_free(&defaults);
    text_free(&text);
    text_free(&printed);
    text_free(&plain);
}

/* The schema is JSON, has exactly the table's keys, and every default satisfies its own entry's type or choice. */
static void test_schema(void **state) {
    (void)state;
    Text text = {0};
    config_print_schema(&text);
    cJSON *root = cJSON_ParseWithOpts(text.data, NULL, 1);
    assert_non_null(root);
    assert_string_equal(cJSON_GetObjectItem(root, "$schema")->valuestring, "https://json-schema.org/draft/2020-12/schema");
    int leaves = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, cJSON_GetObjectItem(root, "properties")) {
        const cJSON *nested = cJSON_GetObjectItem(item, "properties");
        leaves += nested == NULL ? 1 : cJSON_GetArraySize(nested);
        if (nested != NULL) assert_true(cJSON_IsFalse(cJSON_GetObjectItem(item, "additionalProperties")));
    }
    assert_int_equal(leaves, config_key_count);
    for (int i = 0; i < config_key_count; i++) {
        char section[32];
        size_t length = config_section_length(config_keys[i].path);
        (void)snprintf(section, sizeof section, "%.*s", (int)length, config_keys[i].path);
        const cJSON *owner = length == 0 ? root : cJSON_GetObjectItem(cJSON_GetObjectItem(root, "properties"), section);
        const cJSON *entry = cJSON_GetObjectItem(cJSON_GetObjectItem(owner, "properties"), config_leaf(config_keys[i].path));
        assert_non_null(entry);
        const cJSON *fallback = cJSON_GetObjectItem(entry, "default"), *choices = cJSON_GetObjectItem(entry, "enum"), *choice;
        assert_non_null(fallback);
        assert_non_null(cJSON_GetObjectItem(entry, "description"));
        int found = choices == NULL;
        cJSON_ArrayForEach(choice, choices) found = found || strcmp(choice->valuestring, fallback->valuestring) == 0;
        assert_true(found);
    }
    cJSON_Delete(root);
    text_free(&text);
}

/* The table itself: paths are unique, sections are known and contiguous, and every template can be chosen. */
static void test_table(void **state) {
    (void)state;
    for (int i = 0; i < config_key_count; i++) {
        assert_int_equal(config_key_find(config_keys[i].path), i);
        assert_true(strlen(config_keys[i].help) > 0 && strlen(config_keys[i].path) < 64);
    }
    for (int i = 0; template_names[i] != NULL; i++) {
        char override[64];
        const char *list[] = {override};
        Config config;
        (void)snprintf(override, sizeof override, "data.template=%s", template_names[i]);
        load_ok(&config, "{}", list, 1);
        assert_string_equal(config.data.template_name, template_names[i]);
        config_free(&config);
    }
}

static void test_bytes(void **state) {
    (void)state;
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {{"1", 1},           {"1e9", 1000000000},  {"16GiB", 17179869184}, {"800MB", 800000000},
                {"1.5 KiB", 1536},  {"2TiB", 1ull << 41}, {"64kB", 64000},        {"7B", 7},
                {"3GB", 3000000000}};
    static const char *const bad[] = {"",    "GiB", "-1",   "16G", "0",      "0.5", "1e300",
                                      "inf", "nan", "0x10", " 16", "16GiBs", "1 6", "5000000TiB"};
    uint64_t bytes;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_int_equal(config_parse_bytes(good[i].text, &bytes, NULL), OK);
        assert_true(bytes == good[i].bytes);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        Error err = {0};
        if (config_parse_bytes(bad[i], &bytes, &err) != ERR_USAGE) fail_msg("\"%s\" was taken for a size", bad[i]);
        assert_non_null(strstr(err.text, bad[i]));
    }
}

static void test_missing_file(void **state) {
    (void)state;
    Config config;
    Error err = {0};
    assert_int_equal(config_load(&config, "no/such/config.json", NULL, 0, &err), ERR_USAGE);
    assert_int_equal(err.status, ERR_USAGE);
    assert_non_null(strstr(err.text, "no/such/config.json"));
    config_free(&config); /* harmless after a failure */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mistakes),
        cmocka_unit_test(test_override_mistakes),
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_reading),
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_paths),
        cmocka_unit_test(test_double_quant_is_settled),
        cmocka_unit_test(test_printed_defaults),
        cmocka_unit_test(test_schema),
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_missing_file),
    };
    return cmocka_run_group_tests_name("config", tests, NULL, NULL);
}
