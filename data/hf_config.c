#include "data/hf_config.h"

#include <float.h>
#include <stdio.h>
#include <string.h>

#include "core/file.h"
#include "core/memory.h"
#include "data/gguf_model.h"
#include "data/hf_config_fields.h"
#include "data/hf_config_grouped.h"
#include "data/json.h"

#define CONFIG_MAX_BYTES ((size_t)1 << 20)
#define CONFIG_DEPTH 16

/* Caps on dimensions: far above any model, and low enough that no sum of products of them overflows 63 bits (the largest
 * product is layers * 4 * hidden * heads * head_dim < 2^57). */
#define HIDDEN_MAX ((int64_t)1 << 20)
#define INTERMEDIATE_MAX ((int64_t)1 << 22)
#define HEADS_MAX ((int64_t)1 << 16)
#define VOCAB_MAX ((int64_t)1 << 24)
#define CONTEXT_MAX ((int64_t)1 << 31)

typedef enum WindowRule { WINDOW_NEVER, WINDOW_ALL_LAYERS, WINDOW_UPPER_LAYERS } WindowRule;

/* What a family's class in transformers assumes for keys that a file leaves out. */
typedef struct Family {
    const char *model_type, *architecture;
    int64_t kv_heads; /* 0: as many as heads */
    int64_t head_dim; /* 0: hidden_size / num_attention_heads */
    int64_t context;
    WindowRule window;
    int reads_attention_bias, reads_mlp_bias, always_qkv_bias, qk_norm;
} Family;

/* Source: transformers, models/{llama,mistral,qwen2,qwen3}/configuration_*.py and modeling_*.py. */
static const Family families[] = {
    {"llama", "LlamaForCausalLM", 0, 0, 2048, WINDOW_NEVER, 1, 1, 0, 0},
    {"mistral", "MistralForCausalLM", 8, 0, 131072, WINDOW_ALL_LAYERS, 0, 0, 0, 0},
    {"qwen2", "Qwen2ForCausalLM", 32, 0, 32768, WINDOW_UPPER_LAYERS, 0, 0, 1, 0},
    {"qwen3", "Qwen3ForCausalLM", 32, 128, 32768, WINDOW_UPPER_LAYERS, 1, 0, 0, 1},
};
#define SLIDING_WINDOW_DEFAULT 4096
#define MAX_WINDOW_LAYERS_DEFAULT 28

#define FAIL_KEY(root, key, format, ...) FAIL("%s: %s: " format, (root)->what, key, __VA_ARGS__)

/* ---- what is refused ----------------------------------------------------------------------------------------------- */

/* Keys of other architectures that would change the computation, and the value with which they do not (NONE: only null,
 * false or 0). */
#define NONE 0.0
static const struct {
    const char *key;
    double neutral;
} changing[] = {
    {"pretraining_tp", 1},
    {"attn_logit_softcapping", NONE},
    {"final_logit_softcapping", NONE},
    {"num_experts", NONE},
    {"num_local_experts", NONE},
    {"n_routed_experts", NONE},
    {"num_experts_per_tok", NONE},
    {"moe_intermediate_size", NONE},
    {"embedding_multiplier", 1},
    {"residual_multiplier", 1},
    {"attention_multiplier", NONE},
    {"query_pre_attn_scalar", NONE},
    {"logits_scaling", 1},
    {"logit_scale", 1},
    {"scale_emb", 1},
    {"scale_depth", NONE},
    {"no_rope_layers", NONE},
    {"no_rope_layer_interval", NONE},
    {"clip_qkv", NONE},
    {"use_qk_norm", NONE},
    {"qk_layernorm", NONE},
    {"use_mrope", NONE},
    {"rope_interleaved", NONE},
    {"attn_temperature_tuning", NONE},
    {"attention_chunk_size", NONE},
    {"add_cross_attention", NONE},
    {"is_encoder_decoder", NONE},
    {"q_lora_rank", NONE},
    {"kv_lora_rank", NONE},
    {"text_config", NONE},
    {"vision_config", NONE},
    {"audio_config", NONE},
    {"compression_config", NONE},
    {"hidden_activation", NONE},
};

static Status changing_keys_check(const ConfigObject *root, Error *err) {
    char text[96];
    for (size_t i = 0; i < sizeof changing / sizeof *changing; i++) {
        const cJSON *value = NULL;
        TRY(field_value(root, changing[i].key, &value, err));
        if (value == NULL || cJSON_IsFalse(value)) continue;
        if (cJSON_IsNumber(value) && (value->valuedouble == changing[i].neutral || value->valuedouble == 0)) continue;
        if (cJSON_IsArray(value) && value->child == NULL) continue;
        FAIL_KEY(root, changing[i].key, "%s is not supported: it changes the computation", field_shown(value, text));
    }
    return OK;
}

static Status family_find(const ConfigObject *root, const Family **family, ModelConfig *config, Error *err) {
    const char *name = NULL;
    const size_t count = sizeof families / sizeof *families;
    TRY(field_string(root, "model_type", &name, err));
    if (name == NULL)
        FAIL_KEY(root, "model_type", "missing; is this a model's config.json? supported are %s",
                 "llama, mistral, qwen2, qwen3");
    *family = families;
    while (*family < families + count && strcmp((*family)->model_type, name) != 0)
        (*family)++;
    if (*family == families + count)
        FAIL_KEY(root, "model_type", "'%.64s' is not supported; supported are llama, mistral, qwen2, qwen3", name);
    (void)snprintf(config->model_type, sizeof config->model_type, "%s", name);
    (void)snprintf(config->architecture, sizeof config->architecture, "%s", (*family)->architecture);
    const cJSON *list = NULL;
    char text[96];
    TRY(field_value(root, "architectures", &list, err));
    if (list == NULL) return OK;
    const cJSON *first = cJSON_IsArray(list) ? list->child : list;
    if (first == NULL) return OK;
    if (!cJSON_IsString(first) || first->next != NULL || strcmp(first->valuestring, (*family)->architecture) != 0)
        FAIL_KEY(root, "architectures", "want [\"%s\"] with model_type '%s', got %s", (*family)->architecture, name,
                 field_shown(first, text));
    return OK;
}

/* Names of transformers' activations.ACT2FN. Its "gelu" is the exact one, by erf. */
static Status activation_find(const ConfigObject *root, ModelConfig *config, Error *err) {
    const char *name = NULL;
    TRY(field_string(root, "hidden_act", &name, err));
    if (name == NULL || strcmp(name, "silu") == 0 || strcmp(name, "swish") == 0) return OK;
    config->gelu_gate = strcmp(name, "gelu_pytorch_tanh") == 0 || strcmp(name, "gelu_new") == 0;
    if (!config->gelu_gate)
        FAIL_KEY(root, "hidden_act", "'%.64s' is not supported; supported are silu, gelu_pytorch_tanh, gelu_new", name);
    return OK;
}

/* ---- dimensions ---------------------------------------------------------------------------------------------------- */

static Status required_integer(const ConfigObject *root, const char *key, int64_t maximum, int64_t *out, Error *err) {
    TRY(field_integer(root, key, 1, maximum, 0, out, err));
    if (*out == 0) FAIL_KEY(root, key, "missing; want an integer from 1 to %lld", (long long)maximum);
    return OK;
}

static Status heads_parse(const ConfigObject *root, const Family *family, ModelConfig *config, Error *err) {
    TRY(required_integer(root, "num_attention_heads", HEADS_MAX, &config->heads, err));
    /* A null means one per head in every family; an absent key means the class's default. */
    const cJSON *value = NULL;
    TRY(field_find(root, "num_key_value_heads", &value, err));
    int64_t fallback = value == NULL && family->kv_heads != 0 ? family->kv_heads : config->heads;
    TRY(field_integer(root, "num_key_value_heads", 1, HEADS_MAX, fallback, &config->kv_heads, err));
    if (config->heads % config->kv_heads != 0)
        FAIL_KEY(root, "num_key_value_heads", "want a divisor of num_attention_heads (%lld), got %lld",
                 (long long)config->heads, (long long)config->kv_heads);
    TRY(field_find(root, "head_dim", &value, err));
    fallback = value == NULL ? family->head_dim : 0;
    TRY(field_integer(root, "head_dim", 1, 2 * ROPE_MAX_PAIRS, fallback, &config->head_dim, err));
    if (config->head_dim == 0 && config->hidden % config->heads != 0)
        FAIL_KEY(root, "hidden_size", "want a multiple of num_attention_heads (%lld) where head_dim is absent, got %lld",
                 (long long)config->heads, (long long)config->hidden);
    if (config->head_dim == 0) config->head_dim = config->hidden / config->heads;
    if (config->head_dim % 2 != 0 || config->head_dim > 2 * ROPE_MAX_PAIRS)
        FAIL_KEY(root, "head_dim", "want an even number from 2 to %d, got %lld", 2 * ROPE_MAX_PAIRS,
                 (long long)config->head_dim);
    return OK;
}

static Status dimensions_parse(const ConfigObject *root, const Family *family, ModelConfig *config, Error *err) {
    TRY(required_integer(root, "num_hidden_layers", MODEL_MAX_LAYERS, &config->layers, err));
    TRY(required_integer(root, "hidden_size", HIDDEN_MAX, &config->hidden, err));
    TRY(required_integer(root, "intermediate_size", INTERMEDIATE_MAX, &config->intermediate, err));
    TRY(required_integer(root, "vocab_size", VOCAB_MAX, &config->vocab, err));
    TRY(field_integer(root, "max_position_embeddings", 1, CONTEXT_MAX, family->context, &config->context, err));
    TRY(field_number(root, "rms_norm_eps", 1e-12, 0.1, 1e-6, &config->rms_eps, err));
    return heads_parse(root, family, config, err);
}

static Status biases_parse(const ConfigObject *root, const Family *family, ModelConfig *config, Error *err) {
    int attention = 0, mlp = 0;
    TRY(field_bool(root, "attention_bias", 0, &attention, err));
    TRY(field_bool(root, "mlp_bias", 0, &mlp, err));
    if (attention && !family->reads_attention_bias && !family->always_qkv_bias)
        FAIL_KEY(root, "attention_bias", "true is not supported with model_type '%s'", family->model_type);
    if (mlp && !family->reads_mlp_bias)
        FAIL_KEY(root, "mlp_bias", "true is not supported with model_type '%s'", family->model_type);
    config->qkv_bias = family->always_qkv_bias || attention;
    config->o_bias = family->always_qkv_bias ? 0 : attention;
    config->mlp_bias = mlp;
    config->qk_norm = family->qk_norm;
    return field_bool(root, "tie_word_embeddings", 0, &config->tied_embeddings, err);
}

/* ---- sliding windows ----------------------------------------------------------------------------------------------- */

/* layer_types decides for Qwen; the other classes do not read it, so there it may only say what they do anyway. */
static Status layer_types_apply(const ConfigObject *root, const Family *family, int64_t window, ModelConfig *config,
                                Error *err) {
    const cJSON *list = NULL, *item;
    char text[96];
    TRY(field_value(root, "layer_types", &list, err));
    if (list == NULL) return OK;
    if (!cJSON_IsArray(list) || cJSON_GetArraySize(list) != (int)config->layers)
        FAIL_KEY(root, "layer_types", "want a list of num_hidden_layers (%lld) names, got %s of %d", (long long)config->layers,
                 field_shown(list, text), cJSON_GetArraySize(list));
    int64_t layer = 0;
    cJSON_ArrayForEach(item, list) {
        int sliding = cJSON_IsString(item) && strcmp(item->valuestring, "sliding_attention") == 0;
        if (!sliding && !(cJSON_IsString(item) && strcmp(item->valuestring, "full_attention") == 0))
            FAIL_KEY(root, "layer_types", "layer %lld: want 'full_attention' or 'sliding_attention', got %s", (long long)layer,
                     field_shown(item, text));
        if (sliding && window == 0)
            FAIL_KEY(root, "layer_types", "layer %lld is 'sliding_attention', but no sliding window is in use",
                     (long long)layer);
        if (family->window != WINDOW_UPPER_LAYERS && sliding != (config->window[layer] != 0))
            FAIL_KEY(root, "layer_types", "layer %lld is %s, which model_type '%s' does not do with this sliding_window",
                     (long long)layer, field_shown(item, text), family->model_type);
        config->window[layer++] = sliding ? window : 0;
    }
    return OK;
}

static Status windows_parse(const ConfigObject *root, const Family *family, ModelConfig *config, Error *err) {
    int64_t window = 0, first = 0;
    int use = family->window == WINDOW_ALL_LAYERS;
    if (family->window == WINDOW_UPPER_LAYERS) {
        TRY(field_bool(root, "use_sliding_window", 0, &use, err));
        TRY(field_integer(root, "max_window_layers", 0, INT32_MAX, MAX_WINDOW_LAYERS_DEFAULT, &first, err));
    }
    if (use) {
        const cJSON *value = NULL;
        TRY(field_find(root, "sliding_window", &value, err));
        TRY(field_integer(root, "sliding_window", 1, CONTEXT_MAX, value == NULL ? SLIDING_WINDOW_DEFAULT : 0, &window, err));
    }
    for (int64_t layer = 0; layer < config->layers; layer++)
        config->window[layer] = layer >= first ? window : 0;
    return layer_types_apply(root, family, window, config, err);
}

/* ---- tokens, element type, quantization ---------------------------------------------------------------------------- */

static Status token_ids_parse(const ConfigObject *root, ModelConfig *config, Error *err) {
    char text[96];
    const cJSON *value = NULL, *item;
    TRY(field_integer(root, "bos_token_id", -1, config->vocab - 1, -1, &config->bos_id, err));
    TRY(field_value(root, "eos_token_id", &value, err));
    if (value == NULL) return OK;
    int is_list = cJSON_IsArray(value);
    for (item = is_list ? value->child : value; item != NULL; item = is_list ? item->next : NULL) {
        double id = cJSON_IsNumber(item) ? item->valuedouble : -1;
        if (!(id >= 0 && id < (double)config->vocab) || (double)(int64_t)id != id)
            FAIL_KEY(root, "eos_token_id", "want integers from 0 to %lld, got %s", (long long)config->vocab - 1,
                     field_shown(item, text));
        if (config->eos_count == MODEL_MAX_EOS) FAIL_KEY(root, "eos_token_id", "want at most %d ids, got more", MODEL_MAX_EOS);
        config->eos_ids[config->eos_count++] = (int64_t)id;
    }
    return OK;
}

static Status dtype_parse(const ConfigObject *root, ModelConfig *config, Error *err) {
    const char *name = NULL;
    TRY(field_string(root, "dtype", &name, err));
    if (name == NULL) TRY(field_string(root, "torch_dtype", &name, err));
    if (name == NULL || strcmp(name, "float32") == 0)
        config->dtype = DTYPE_F32;
    else if (strcmp(name, "bfloat16") == 0)
        config->dtype = DTYPE_BF16;
    else if (strcmp(name, "float16") == 0)
        config->dtype = DTYPE_F16;
    else
        FAIL_KEY(root, "dtype", "want float32, bfloat16 or float16, got '%.64s'", name);
    return OK;
}

static Status bnb_4bit_parse(const ConfigObject *quant, ModelConfig *config, Error *err) {
    const char *type = NULL, *storage = NULL;
    TRY(field_string(quant, "bnb_4bit_quant_type", &type, err));
    TRY(field_string(quant, "bnb_4bit_quant_storage", &storage, err));
    /* transformers' default for a missing type is fp4, not nf4. */
    if (type != NULL && strcmp(type, "nf4") != 0 && strcmp(type, "fp4") != 0)
        FAIL("%s: %sbnb_4bit_quant_type: want nf4 or fp4, got '%.64s'", quant->what, quant->prefix, type);
    /* The same bytes under another type; what reads the tensors takes any of these. */
    static const char *const storages[] = {"uint8", "bfloat16", "float16", "float32"};
    size_t known = 0;
    while (storage != NULL && known < 4 && strcmp(storage, storages[known]) != 0)
        known++;
    if (known == 4)
        FAIL("%s: %sbnb_4bit_quant_storage: '%.64s' is not supported; supported are uint8, bfloat16, float16, float32",
             quant->what, quant->prefix, storage);
    config->prequant = PREQUANT_BNB_4BIT;
    config->prequant_nf4 = type != NULL && strcmp(type, "nf4") == 0;
    return field_bool(quant, "bnb_4bit_use_double_quant", 0, &config->prequant_double, err);
}

Status activation_quant_parse(const char *activations, const char *kv_cache, ActivationQuant *out, Error *err) {
    *out = (ActivationQuant){0};
    if (activations != NULL && strcmp(activations, "none") != 0) {
        out->fixed = strcmp(activations, "int8-static") == 0;
        out->symmetric = out->fixed || strcmp(activations, "int8") == 0;
        if (!out->symmetric && strcmp(activations, "int8-asymmetric") != 0)
            FAIL_USAGE("activations: want none, int8, int8-asymmetric or int8-static, got \"%.60s\"", activations);
        out->bits = 8;
    }
    if (kv_cache == NULL || strcmp(kv_cache, "none") == 0) return OK;
    out->kv_bits = strcmp(kv_cache, "int8") == 0 ? 8 : 4;
    if (out->kv_bits == 4 && strcmp(kv_cache, "int4") != 0)
        FAIL_USAGE("key/value cache: want none, int8 or int4, got \"%.60s\"", kv_cache);
    return OK;
}

const char *activation_quant_inputs(const ActivationQuant *quant) {
    return quant->bits == 0 ? "none" : quant->fixed ? "int8-static" : quant->symmetric ? "int8" : "int8-asymmetric";
}

const char *activation_quant_cache(const ActivationQuant *quant) {
    return quant->kv_bits == 0 ? "none" : quant->kv_bits == 8 ? "int8" : "int4";
}

static Status ranges_parse(const ConfigObject *root, ModelConfig *config, Error *err) {
    const cJSON *list, *item;
    int64_t count = 0, wanted = 4 * config->layers;
    TRY(field_value(root, "nibble_ranges", &list, err));
    if (list == NULL || !cJSON_IsArray(list) || cJSON_GetArraySize(list) != (int)wanted)
        FAIL_KEY(root, "nibble_ranges", "want a list of %lld scales, as nibble_activations says int8-static",
                 (long long)wanted);
    cJSON_ArrayForEach(item, list) {
        float scale = cJSON_IsNumber(item) ? (float)item->valuedouble : 0.0f;
        if (!(scale > 0.0f && scale <= FLT_MAX))
            FAIL_KEY(root, "nibble_ranges", "scale %lld: want a number above 0", (long long)count);
        config->ranges[count++] = scale;
    }
    return OK;
}

static Status activations_parse(const ConfigObject *root, ModelConfig *config, Error *err) {
    const char *inputs, *cache;
    TRY(field_string(root, "nibble_activations", &inputs, err));
    TRY(field_string(root, "nibble_kv_cache", &cache, err));
    if (inputs == NULL && config->grouped.int8_activations != 0) /* compressed-tensors says it its own way */
        inputs = config->grouped.int8_activations == 1 ? "int8" : "int8-asymmetric";
    if (activation_quant_parse(inputs, cache, &config->activations, err) == OK)
        return config->activations.fixed ? ranges_parse(root, config, err) : OK;
    error_prefix(err, "%s: nibble's own key", root->what);
    if (err != NULL) err->status = ERR_FAILED;
    return ERR_FAILED;
}

static Status quantization_parse(const ConfigObject *root, ModelConfig *config, Error *err) {
    ConfigObject quant;
    const char *method = NULL;
    TRY(field_object(root, "quantization_config", "quantization_config.", &quant, err));
    if (quant.json == NULL) return OK;
    int four = 0, eight = 0, own_four = 0, own_eight = 0;
    TRY(field_string(&quant, "quant_method", &method, err));
    if (method != NULL && grouped_config_known(method)) return grouped_config_parse(&quant, method, config, err);
    /* Early files have no quant_method; then load_in_* tells. transformers saves both spellings. */
    if (method != NULL && strcmp(method, "bitsandbytes") != 0)
        FAIL(
            "%s: %squant_method: '%.64s' is not supported; supported are bitsandbytes, gptq, awq, compressed-tensors, or the "
            "original 16-bit model",
            quant.what, quant.prefix, method);
    TRY(field_bool(&quant, "load_in_4bit", 0, &four, err));
    TRY(field_bool(&quant, "load_in_8bit", 0, &eight, err));
    TRY(field_bool(&quant, "_load_in_4bit", 0, &own_four, err));
    TRY(field_bool(&quant, "_load_in_8bit", 0, &own_eight, err));
    four |= own_four;
    eight |= own_eight;
    if (four == eight)
        FAIL("%s: quantization_config: want one of load_in_4bit and load_in_8bit, got %s", quant.what,
             four ? "both" : "neither");
    if (four) return bnb_4bit_parse(&quant, config, err);
    config->prequant = PREQUANT_BNB_8BIT;
    return OK;
}

/* ---- the whole ----------------------------------------------------------------------------------------------------- */

/* No overflow: see the caps. */
static int64_t parameters_count(const ModelConfig *config) {
    const int64_t D = config->hidden, F = config->intermediate, Q = config->heads * config->head_dim;
    const int64_t KV = config->kv_heads * config->head_dim;
    int64_t layer = D * Q + 2 * D * KV + Q * D + 3 * D * F + 2 * D;
    if (config->qkv_bias) layer += Q + 2 * KV;
    if (config->o_bias) layer += D;
    if (config->mlp_bias) layer += 2 * F + D;
    if (config->qk_norm) layer += 2 * config->head_dim;
    return config->layers * layer + D + config->vocab * D * (config->tied_embeddings ? 1 : 2);
}

static Status root_parse(const ConfigObject *root, ModelConfig *config, Error *err) {
    const Family *family = NULL;
    TRY(family_find(root, &family, config, err));
    TRY(changing_keys_check(root, err));
    TRY(activation_find(root, config, err));
    TRY(dimensions_parse(root, family, config, err));
    TRY(biases_parse(root, family, config, err));
    TRY(windows_parse(root, family, config, err));
    TRY(rope_parse(root, config, err));
    TRY(token_ids_parse(root, config, err));
    TRY(dtype_parse(root, config, err));
    TRY(quantization_parse(root, config, err));
    TRY(activations_parse(root, config, err));
    config->parameters = parameters_count(config);
    return OK;
}

/* One strict pass before cJSON, which recurses and is lenient, sees the text: syntax, UTF-8, depth, an object. */
static Status text_check(const char *what, const char *text, size_t length, Error *err) {
    if (length > CONFIG_MAX_BYTES) FAIL("%s: want at most %zu bytes, got %zu", what, CONFIG_MAX_BYTES, length);
    JsonReader reader;
    JsonToken token;
    json_open(&reader, what, text, length, 1, (JsonLimits){.depth = CONFIG_DEPTH});
    Status status = json_expect(&reader, JSON_OBJECT_BEGIN, "the config", &token, err);
    while (status == OK && token.kind != JSON_END)
        status = json_next(&reader, &token, err);
    json_close(&reader);
    return status;
}

Status model_config_parse(const char *what, const char *text, size_t length, ModelConfig *config, Error *err) {
    memset(config, 0, sizeof *config);
    TRY(text_check(what, text, length, err));
    cJSON *json = cJSON_ParseWithLength(text, length);
    if (json == NULL) FAIL("%s: not read as JSON, perhaps for a number of more than 60 digits", what);
    ConfigObject root = {.what = what, .prefix = "", .json = json};
    Status status = root_parse(&root, config, err);
    cJSON_Delete(json);
    return status;
}

Status model_config_read(const char *path, ModelConfig *config, Error *err) {
    if (gguf_is_file(path)) return gguf_config_read(path, config, err);
    char *file = file_is_folder(path) ? path_join(path, "config.json") : memory_strdup(path);
    char *text = NULL;
    size_t length = 0;
    Status status = file_read(file, CONFIG_MAX_BYTES, &text, &length, err);
    if (status == OK) status = model_config_parse(file, text, length, config, err);
    memory_free(text);
    memory_free(file);
    return status;
}
