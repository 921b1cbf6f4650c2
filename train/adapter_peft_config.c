/* adapter_config.json: what PEFT's LoraConfig means for a forward pass. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <float.h>
#include <math.h>
#include <pcre2.h>
#include <stdio.h>
#include <string.h>

#include "core/file.h"
#include "core/text.h"
#include "data/json.h"
#include "train/adapter_internal.h"
#include "train/adapter_peft.h"

#define CONFIG_LIMIT ((size_t)1 << 20)
#define PATTERNS_MAX 1024

typedef struct AlphaPattern {
    char *key;
    double alpha;
} AlphaPattern;

typedef struct PeftConfig {
    double alpha;
    int64_t rank;
    int rslora, dora;
    AlphaPattern patterns[PATTERNS_MAX];
    int pattern_count;
} PeftConfig;

/* Keys that change the computation when they are anything but "off". */
static const char *const refused_when_set[] = {"lora_bias",
                                               "use_qalora",
                                               "fan_in_fan_out",
                                               "modules_to_save",
                                               "layer_replication",
                                               "target_parameters",
                                               "trainable_token_indices",
                                               "alora_invocation_tokens",
                                               "arrow_config",
                                               "use_bdlora",
                                               "kasa_config"};

static int is_off(const JsonToken *value) {
    return value->kind == JSON_NULL || value->kind == JSON_FALSE;
}

static Status read_alpha_pattern(JsonReader *reader, PeftConfig *config, Error *err) {
    JsonToken token;
    TRY(json_expect(reader, JSON_OBJECT_BEGIN, "alpha_pattern", &token, err));
    for (;;) {
        TRY(json_next(reader, &token, err));
        if (token.kind == JSON_OBJECT_END) return OK;
        if (config->pattern_count == PATTERNS_MAX) FAIL("alpha_pattern has more than %d entries", PATTERNS_MAX);
        AlphaPattern *pattern = &config->patterns[config->pattern_count++];
        pattern->key = memory_format("%.*s", (int)token.length, token.text);
        TRY(json_get_number(reader, "alpha_pattern", &pattern->alpha, err));
    }
}

/* An empty list or object, or null, is off too; anything else is refused. */
static Status refuse_set(JsonReader *reader, const char *key, Error *err) {
    JsonToken value, next;
    TRY(json_next(reader, &value, err));
    if (is_off(&value)) return OK;
    if (value.kind == JSON_ARRAY_BEGIN || value.kind == JSON_OBJECT_BEGIN) {
        TRY(json_next(reader, &next, err));
        if (next.kind == JSON_ARRAY_END || next.kind == JSON_OBJECT_END) return OK;
    }
    FAIL("adapter_config.json: %s is set, which is not supported", key);
}

static Status read_choice(JsonReader *reader, const char *key, const char *wanted, Error *err) {
    char *text;
    size_t length;
    TRY(json_get_string(reader, key, &text, &length, err));
    int same = strcmp(text, wanted) == 0;
    Status status = OK;
    if (!same)
        status = error_set(err, ERR_FAILED, "adapter_config.json: %s \"%s\" is not supported; want \"%s\"", key, text, wanted);
    memory_free(text);
    return status;
}

static Status read_dora(JsonReader *reader, int *dora, Error *err) {
    JsonToken value;
    TRY(json_next(reader, &value, err));
    *dora = value.kind == JSON_TRUE;
    if (*dora || is_off(&value)) return OK;
    FAIL("adapter_config.json: use_dora: want true or false, got %s", json_kind_name(value.kind));
}

static Status read_key(JsonReader *reader, const JsonToken *key, PeftConfig *config, int *has_type, Error *err) {
    if (json_key_is(key, "peft_type")) {
        *has_type = 1;
        return read_choice(reader, "peft_type", "LORA", err);
    }
    if (json_key_is(key, "bias")) return read_choice(reader, "bias", "none", err);
    if (json_key_is(key, "r")) return json_get_integer(reader, "r", 1, 65536, &config->rank, err);
    if (json_key_is(key, "lora_alpha")) return json_get_number(reader, "lora_alpha", &config->alpha, err);
    if (json_key_is(key, "use_rslora")) return json_get_bool(reader, "use_rslora", &config->rslora, err);
    if (json_key_is(key, "use_dora")) return read_dora(reader, &config->dora, err);
    if (json_key_is(key, "alpha_pattern")) return read_alpha_pattern(reader, config, err);
    for (size_t i = 0; i < sizeof refused_when_set / sizeof refused_when_set[0]; i++)
        if (json_key_is(key, refused_when_set[i])) return refuse_set(reader, refused_when_set[i], err);
    return json_skip(reader, key, err);
}

static Status parse(const char *path, const char *text, size_t length, PeftConfig *config, Error *err) {
    JsonReader reader;
    JsonToken token;
    int has_type = 0;
    json_open(&reader, path, text, length, 1, (JsonLimits){.depth = 16, .string_bytes = 1 << 16});
    Status status = json_expect(&reader, JSON_OBJECT_BEGIN, "adapter_config.json", &token, err);
    while (status == OK) {
        status = json_next(&reader, &token, err);
        if (status != OK || token.kind == JSON_OBJECT_END) break;
        status = read_key(&reader, &token, config, &has_type, err);
    }
    json_close(&reader);
    TRY(status);
    if (!has_type) FAIL("%s: peft_type is missing; want \"LORA\"", path);
    if (!(config->alpha > 0.0) || !isfinite(config->alpha))
        FAIL("%s: lora_alpha must be positive, got %g", path, config->alpha);
    return OK;
}

/* PEFT: the first key for which the module's path matches (.*\.)?(key)$ . */
static Status matches(const char *key, const char *path, int *yes, Error *err) {
    char *pattern = memory_format("^(.*\\.)?(%s)$", key);
    int code;
    PCRE2_SIZE at;
    pcre2_code *regex = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF, &code, &at, NULL);
    memory_free(pattern);
    if (regex == NULL) FAIL("adapter_config.json: alpha_pattern \"%s\" is not a regular expression that can be read", key);
    pcre2_match_data *data = pcre2_match_data_create_from_pattern(regex, NULL);
    pcre2_match_context *context = pcre2_match_context_create(NULL);
    (void)pcre2_set_match_limit(context, 100000);
    int count = pcre2_match(regex, (PCRE2_SPTR)path, strlen(path), 0, 0, data, context);
    pcre2_match_context_free(context);
    pcre2_match_data_free(data);
    pcre2_code_free(regex);
    if (count < 0 && count != PCRE2_ERROR_NOMATCH)
        FAIL("adapter_config.json: alpha_pattern \"%s\" takes too long to match", key);
    *yes = count > 0;
    return OK;
}

static Status set_scales(Adapter *adapter, const PeftConfig *config, const ModelConfig *model, Error *err) {
    adapter->rslora = config->rslora;
    adapter->dora = config->dora;
    for (int64_t layer = 0; layer < adapter->layers; layer++)
        for (int kind = 0; kind < LAYER_LINEARS; kind++) {
            AdapterModule *module = adapter_module(adapter, layer, (LayerWeight)kind);
            if (module->rank == 0) continue;
            char path[256];
            adapter_tensor_name(model, layer, (LayerWeight)kind, "", path, sizeof path);
            module->alpha = config->alpha;
            for (int p = 0; p < config->pattern_count; p++) {
                int yes;
                TRY(matches(config->patterns[p].key, path + sizeof "base_model.model." - 1, &yes, err));
                if (!yes) continue;
                module->alpha = config->patterns[p].alpha;
                break;
            }
            double rank = (double)module->rank, scale = module->alpha / (config->rslora ? sqrt(rank) : rank);
            if (!(scale > 0.0 && scale <= FLT_MAX))
                FAIL("adapter_config.json: an alpha of %g with rank %lld is not possible; want a positive scale", module->alpha,
                     (long long)module->rank);
            module->scale = (float)scale;
        }
    return OK;
}

Status adapter_config_apply(Adapter *adapter, const char *folder, const ModelConfig *model, Error *err) {
    char *path = path_join(folder, "adapter_config.json"), *text = NULL;
    size_t length = 0;
    PeftConfig *config = memory_calloc(1, sizeof *config);
    config->alpha = 8.0; /* PEFT's default */
    Status status = file_read(path, CONFIG_LIMIT, &text, &length, err);
    if (status == OK) status = parse(path, text, length, config, err);
    if (status == OK) status = set_scales(adapter, config, model, err);
    for (int p = 0; p < config->pattern_count; p++)
        memory_free(config->patterns[p].key);
    memory_free(config);
    memory_free(text);
    memory_free(path);
    return status;
}

/* ---- writing ---------------------------------------------------------------------------------------------------------------- */

typedef struct Common {
    int64_t rank;
    double alpha;
    int uses[LAYER_LINEARS];
    int differs;     /* modules of several ranks or alphas */
    int some_layers; /* not every layer has the same modules */
} Common;

static Common common_of(const Adapter *adapter) {
    Common common = {0};
    for (int64_t layer = 0; layer < adapter->layers; layer++)
        for (int kind = 0; kind < LAYER_LINEARS; kind++) {
            const AdapterModule *module = adapter_module(adapter, layer, (LayerWeight)kind);
            if (module->rank == 0) continue;
            common.uses[kind] = 1;
            if (common.rank == 0) {
                common.rank = module->rank;
                common.alpha = module->alpha;
            }
            if (module->rank != common.rank || module->alpha != common.alpha) common.differs = 1;
        }
    for (int64_t layer = 0; layer < adapter->layers; layer++)
        for (int kind = 0; kind < LAYER_LINEARS; kind++)
            if (common.uses[kind] && adapter_module(adapter, layer, (LayerWeight)kind)->rank == 0) common.some_layers = 1;
    return common;
}

static void add_path(Text *out, int64_t layer, int kind) {
    const char *parent = kind < LAYER_GATE ? "self_attn" : "mlp";
    text_addf(out, "model.layers.%lld.%s.%s", (long long)layer, parent, adapter_module_names[kind]);
}

static void add_pattern(Text *out, const Adapter *adapter, const Common *common, int alpha) {
    int count = 0;
    text_adds(out, "{");
    for (int64_t layer = 0; common->differs && layer < adapter->layers; layer++)
        for (int kind = 0; kind < LAYER_LINEARS; kind++) {
            const AdapterModule *module = adapter_module(adapter, layer, (LayerWeight)kind);
            int other = alpha ? module->alpha != common->alpha : module->rank != common->rank;
            if (module->rank == 0 || !other) continue;
            text_adds(out, count++ ? ",\n    \"" : "\n    \"");
            add_path(out, layer, kind);
            if (alpha)
                text_addf(out, "\": %.17g", module->alpha);
            else
                text_addf(out, "\": %lld", (long long)module->rank);
        }
    text_adds(out, count ? "\n  }" : "}");
}

static void add_targets(Text *out, const Adapter *adapter, const Common *common) {
    int count = 0;
    text_adds(out, "[");
    for (int kind = 0; kind < LAYER_LINEARS && !common->some_layers; kind++)
        if (common->uses[kind]) text_addf(out, "%s\n    \"%s\"", count++ ? "," : "", adapter_module_names[kind]);
    for (int64_t layer = 0; layer < adapter->layers && common->some_layers; layer++) /* only some layers: whole paths */
        for (int kind = 0; kind < LAYER_LINEARS; kind++) {
            if (adapter_module(adapter, layer, (LayerWeight)kind)->rank == 0) continue;
            text_adds(out, count++ ? ",\n    \"" : "\n    \"");
            add_path(out, layer, kind);
            text_adds(out, "\"");
        }
    text_adds(out, "\n  ]");
}

Status adapter_config_write(const Adapter *adapter, const char *folder, const AdapterInfo *info, Error *err) {
    Common common = common_of(adapter);
    Text out = {0};
    text_adds(&out, "{\n  \"alpha_pattern\": ");
    add_pattern(&out, adapter, &common, 1);
    text_adds(&out, ",\n  \"base_model_name_or_path\": ");
    text_add_json_string(&out, info->base_model, strlen(info->base_model));
    text_adds(&out, ",\n  \"bias\": \"none\",\n  \"fan_in_fan_out\": false,\n  \"inference_mode\": true");
    text_adds(&out, ",\n  \"init_lora_weights\": true,\n  \"layers_pattern\": null,\n  \"layers_to_transform\": null");
    text_addf(&out, ",\n  \"lora_alpha\": %.17g,\n  \"lora_dropout\": %.17g", common.alpha, info->dropout);
    text_addf(&out, ",\n  \"modules_to_save\": null,\n  \"peft_type\": \"LORA\",\n  \"r\": %lld", (long long)common.rank);
    text_adds(&out, ",\n  \"rank_pattern\": ");
    add_pattern(&out, adapter, &common, 0);
    text_adds(&out, ",\n  \"target_modules\": ");
    add_targets(&out, adapter, &common);
    text_addf(&out, ",\n  \"task_type\": \"CAUSAL_LM\",\n  \"use_dora\": false,\n  \"use_rslora\": %s\n}\n",
              adapter->rslora ? "true" : "false");
    char *path = path_join(folder, "adapter_config.json");
    Status status = file_write_atomic(path, out.data, out.length, err);
    memory_free(path);
    text_free(&out);
    return status;
}
