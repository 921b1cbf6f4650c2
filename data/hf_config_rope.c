/* RoPE keys of a config.json, in both spellings:
 *
 *   v4   "rope_theta": 5e5, "rope_scaling": {"rope_type" or "type": "llama3", …} or null
 *   v5   "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, …}
 *
 * Precedence and defaults are those of transformers' modeling_rope_utils (RotaryEmbeddingConfigMixin). A key inside of the
 * object that is not known here is refused: it is there to change the frequencies.
 */
#include <float.h>
#include <math.h>
#include <string.h>

#include "data/hf_config_fields.h"

#define THETA_DEFAULT 10000.0
#define CONTEXT_MAX ((int64_t)1 << 40)
#define FACTOR_MAX 1e9

static const char *const rope_names[] = {"default", "linear", "dynamic", "llama3", "yarn", "longrope"};

static Status keys_check(const ConfigObject *rope, Error *err) {
    static const char *const known[] = {"rope_type",        "type",
                                        "rope_theta",       "partial_rotary_factor",
                                        "factor",           "low_freq_factor",
                                        "high_freq_factor", "original_max_position_embeddings",
                                        "beta_fast",        "beta_slow",
                                        "attention_factor", "mscale",
                                        "mscale_all_dim",   "truncate",
                                        "short_factor",     "long_factor",
                                        "finetuned"}; /* a remark in early YaRN configs, without effect */
    const cJSON *item;
    cJSON_ArrayForEach(item, rope->json) {
        size_t i = 0;
        while (i < sizeof known / sizeof *known && strcmp(known[i], item->string) != 0)
            i++;
        if (i == sizeof known / sizeof *known && !cJSON_IsNull(item))
            FAIL("%s: %s%.64s: not supported: a RoPE that is not the same for all layers, or a scaling nobody here knows",
                 rope->what, rope->prefix, item->string);
    }
    return OK;
}

static Status type_parse(const ConfigObject *rope, RopeType *type, Error *err) {
    const char *name = NULL;
    if (rope->json != NULL) TRY(field_string(rope, "rope_type", &name, err));
    if (rope->json != NULL && name == NULL) TRY(field_string(rope, "type", &name, err));
    *type = ROPE_DEFAULT;
    if (name == NULL) return OK;
    for (int i = 0; i < (int)(sizeof rope_names / sizeof *rope_names); i++)
        if (strcmp(name, rope_names[i]) == 0) {
            *type = (RopeType)i;
            return OK;
        }
    FAIL("%s: %srope_type: '%.64s' is not supported; supported are default, linear, dynamic, llama3, yarn, longrope",
         rope->what, rope->prefix, name);
}

/* A number that the type cannot do without. */
static Status required_number(const ConfigObject *rope, const char *type, const char *key, double minimum, double maximum,
                              double *out, Error *err) {
    TRY(field_number(rope, key, minimum, maximum, NAN, out, err));
    if (isnan(*out)) FAIL("%s: %s%s: missing, rope_type '%s' needs it", rope->what, rope->prefix, key, type);
    return OK;
}

static Status factors_parse(const ConfigObject *rope, const char *key, int count, float *out, Error *err) {
    const cJSON *list = NULL, *item;
    char text[96];
    TRY(field_value(rope, key, &list, err));
    int n = cJSON_IsArray(list) ? cJSON_GetArraySize(list) : -1;
    if (n < 0)
        FAIL("%s: %s%s: want a list of %d numbers, got %s", rope->what, rope->prefix, key, count, field_shown(list, text));
    if (n != count) FAIL("%s: %s%s: want %d numbers (half of head_dim), got %d", rope->what, rope->prefix, key, count, n);
    cJSON_ArrayForEach(item, list) {
        double value = cJSON_IsNumber(item) ? item->valuedouble : NAN;
        if (!(value > 1e-9 && value < FACTOR_MAX))
            FAIL("%s: %s%s: want positive numbers, got %s", rope->what, rope->prefix, key, field_shown(item, text));
        *out++ = (float)value;
    }
    return OK;
}

static Status original_context_parse(const ConfigObject *root, const ConfigObject *rope, ModelConfig *config, Error *err) {
    static const char key[] = "original_max_position_embeddings";
    TRY(field_integer(rope, key, 2, CONTEXT_MAX, config->context, &config->rope.original_context, err));
    TRY(field_integer(root, key, 2, CONTEXT_MAX, config->rope.original_context, &config->rope.original_context, err));
    if (config->rope.original_context < 2)
        FAIL("%s: %s%s: want at least 2, got %lld from max_position_embeddings", rope->what, rope->prefix, key,
             (long long)config->rope.original_context);
    return OK;
}

static Status llama3_parse(const ConfigObject *rope, RopeConfig *out, Error *err) {
    TRY(required_number(rope, "llama3", "factor", 1, FACTOR_MAX, &out->factor, err));
    TRY(required_number(rope, "llama3", "low_freq_factor", 1e-6, FACTOR_MAX, &out->low_freq_factor, err));
    TRY(required_number(rope, "llama3", "high_freq_factor", 1e-6, FACTOR_MAX, &out->high_freq_factor, err));
    if (out->high_freq_factor <= out->low_freq_factor)
        FAIL("%s: %shigh_freq_factor: want more than low_freq_factor (%g), got %g", rope->what, rope->prefix,
             out->low_freq_factor, out->high_freq_factor);
    return OK;
}

static Status attention_factor_parse(const ConfigObject *rope, RopeConfig *out, Error *err) {
    return field_number(rope, "attention_factor", 1e-6, FACTOR_MAX, 0, &out->attention_factor, err);
}

static Status yarn_parse(const ConfigObject *rope, RopeConfig *out, Error *err) {
    TRY(attention_factor_parse(rope, out, err));
    TRY(field_number(rope, "beta_fast", 0, FACTOR_MAX, 0, &out->beta_fast, err));
    TRY(field_number(rope, "beta_slow", 0, FACTOR_MAX, 0, &out->beta_slow, err));
    if (out->beta_fast == 0) out->beta_fast = 32; /* as the reference: zero means absent */
    if (out->beta_slow == 0) out->beta_slow = 1;
    TRY(field_number(rope, "mscale", 0, FACTOR_MAX, 0, &out->mscale, err));
    TRY(field_number(rope, "mscale_all_dim", 0, FACTOR_MAX, 0, &out->mscale_all_dim, err));
    return field_bool(rope, "truncate", 1, &out->truncate, err);
}

static Status longrope_parse(const ConfigObject *rope, int pairs, RopeConfig *out, Error *err) {
    TRY(attention_factor_parse(rope, out, err));
    out->factors = pairs;
    TRY(factors_parse(rope, "short_factor", pairs, out->short_factor, err));
    return factors_parse(rope, "long_factor", pairs, out->long_factor, err);
}

static Status scaling_parse(const ConfigObject *root, const ConfigObject *rope, ModelConfig *config, Error *err) {
    RopeConfig *out = &config->rope;
    if (out->type == ROPE_DEFAULT) return OK;
    if (out->type == ROPE_LINEAR || out->type == ROPE_DYNAMIC)
        return required_number(rope, rope_names[out->type], "factor", 1, FACTOR_MAX, &out->factor, err);
    TRY(original_context_parse(root, rope, config, err));
    if (out->type == ROPE_LLAMA3) return llama3_parse(rope, out, err);
    /* yarn and longrope: without a factor it is the ratio of the contexts. */
    double ratio = (double)config->context / (double)out->original_context;
    TRY(field_number(rope, "factor", 1, FACTOR_MAX, ratio, &out->factor, err));
    if (out->type == ROPE_YARN) return yarn_parse(rope, out, err);
    return longrope_parse(rope, (int)(config->head_dim / 2), out, err);
}

Status rope_parse(const ConfigObject *root, ModelConfig *config, Error *err) {
    ConfigObject rope;
    double partial = 1, theta = THETA_DEFAULT;
    TRY(field_object(root, "rope_scaling", "rope_scaling.", &rope, err));
    if (rope.json == NULL || rope.json->child == NULL)
        TRY(field_object(root, "rope_parameters", "rope_parameters.", &rope, err));
    TRY(field_number(root, "rope_theta", 1.001, 1e30, THETA_DEFAULT, &theta, err));
    TRY(field_number(root, "partial_rotary_factor", -FLT_MAX, FLT_MAX, 1, &partial, err));
    config->rope = (RopeConfig){.theta = theta};
    if (rope.json != NULL) {
        TRY(keys_check(&rope, err));
        TRY(field_number(&rope, "rope_theta", 1.001, 1e30, theta, &config->rope.theta, err));
        TRY(field_number(&rope, "partial_rotary_factor", -FLT_MAX, FLT_MAX, partial, &partial, err));
    }
    if (partial != 1)
        FAIL("%s: partial_rotary_factor: want 1 (partly rotated heads are not supported), got %g", root->what, partial);
    TRY(type_parse(&rope, &config->rope.type, err));
    return scaling_parse(root, &rope, config, err);
}
