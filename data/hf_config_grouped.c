/* Sources: AutoGPTQ@9f7d3707 quantization/config.py and GPTQModel@f4c327a1; AutoAWQ@88e4c76b; compressed-tensors@ac8e2ba8
 * quantization/quant_config.py and quant_args.py; vLLM's gptq_marlin.py, auto_awq.py and compressed_tensors. Which module is
 * quantized is told by the tensors, so lists of modules are not read. */
#include "data/hf_config_grouped.h"

#include <string.h>
#include <strings.h>

#define GROUP_MAX ((int64_t)1 << 22) /* as intermediate_size */

#define REFUSE(quant, key, value, wanted) \
    FAIL("%s: %s%s: '%.64s' is not supported; supported is %s", (quant)->what, (quant)->prefix, key, value, wanted)

int grouped_config_known(const char *method) {
    return strcmp(method, "gptq") == 0 || strcmp(method, "awq") == 0 || strcmp(method, "compressed-tensors") == 0;
}

/* The first of two spellings that stands there. */
static Status either_integer(const ConfigObject *quant, const char *first, const char *second, int64_t minimum, int64_t maximum,
                             int64_t fallback, int64_t *out, Error *err) {
    const cJSON *value;
    TRY(field_value(quant, first, &value, err));
    return field_integer(quant, value != NULL ? first : second, minimum, maximum, fallback, out, err);
}

/* -1: a row. Absent: `absent`, where that is not negative. */
static Status group_parse(const ConfigObject *quant, const char *first, const char *second, int64_t absent, int64_t *group,
                          Error *err) {
    TRY(either_integer(quant, first, second, -1, GROUP_MAX, -2, group, err));
    if (*group == -2 && absent < 0) FAIL("%s: %s%s is missing", quant->what, quant->prefix, first);
    if (*group < 0) {
        *group = *group == -1 ? 0 : absent;
        return OK;
    }
    if (*group == 0 || *group % 8 != 0)
        FAIL("%s: %s%s: want -1 or a multiple of 8, got %lld", quant->what, quant->prefix, first, (long long)*group);
    return OK;
}

static Status word_is(const ConfigObject *quant, const char *key, const char *const *allowed, const char *wanted,
                      const char **out, Error *err) {
    TRY(field_string(quant, key, out, err));
    if (*out == NULL) return OK;
    for (; *allowed != NULL; allowed++)
        if (strcasecmp(*out, *allowed) == 0) return OK;
    REFUSE(quant, key, *out, wanted);
}

/* Absent, null, false, or an empty object or list: nothing that would change the computation. */
static Status must_be_empty(const ConfigObject *quant, const char *key, const char *what, Error *err) {
    const cJSON *value;
    TRY(field_value(quant, key, &value, err));
    if (value == NULL || cJSON_IsFalse(value) || ((cJSON_IsObject(value) || cJSON_IsArray(value)) && value->child == NULL))
        return OK;
    FAIL("%s: %s%s: %s is not supported", quant->what, quant->prefix, key, what);
}

/* ---- GPTQ ------------------------------------------------------------------------------------------------------------------ */

static Status gptq_parse(const ConfigObject *quant, ModelConfig *config, Error *err) {
    static const char *const formats[] = {"gptq", "gptq_v2", NULL}, *const packs[] = {"int32", "torch.int32", NULL};
    GroupedConfig *grouped = &config->grouped;
    const char *format = NULL, *other = NULL, *pack = NULL;
    int64_t bits;
    int symmetric;
    TRY(field_integer(quant, "bits", 2, 8, 0, &bits, err));
    if (bits != 2 && bits != 3 && bits != 4 && bits != 8)
        FAIL("%s: %sbits: want 2, 3, 4 or 8, got %lld", quant->what, quant->prefix, (long long)bits);
    TRY(group_parse(quant, "group_size", "group_size", -1, &grouped->group, err));
    TRY(field_bool(quant, "desc_act", 0, &grouped->ordered, err));
    TRY(field_bool(quant, "sym", 1, &symmetric, err));
    TRY(word_is(quant, "checkpoint_format", formats, "gptq and gptq_v2", &format, err));
    TRY(word_is(quant, "format", formats, "gptq and gptq_v2", &other, err));
    TRY(word_is(quant, "pack_dtype", packs, "int32", &pack, err));
    TRY(must_be_empty(quant, "is_marlin_format", "a Marlin layout", err));
    TRY(must_be_empty(quant, "lm_head", "a quantized head", err));
    TRY(must_be_empty(quant, "dynamic", "bits or groups that differ between modules", err));
    if (format == NULL) format = other != NULL ? other : "gptq";
    grouped->bits = (int)bits;
    grouped->zeros = !symmetric;
    grouped->zero_offset = strcasecmp(format, "gptq") == 0;
    if (grouped->group == 0) grouped->ordered = 0; /* one group: any order is the same */
    config->prequant = PREQUANT_GPTQ;
    return OK;
}

/* ---- AWQ ------------------------------------------------------------------------------------------------------------------- */

static Status awq_parse(const ConfigObject *quant, ModelConfig *config, Error *err) {
    static const char *const versions[] = {"gemm", NULL}, *const backends[] = {"autoawq", "auto", NULL};
    const char *version = NULL, *backend = NULL;
    int64_t bits;
    int zero_point;
    TRY(either_integer(quant, "bits", "w_bit", 1, 16, 0, &bits, err));
    if (bits != 4) FAIL("%s: %sbits: want 4, got %lld", quant->what, quant->prefix, (long long)bits);
    TRY(group_parse(quant, "group_size", "q_group_size", -1, &config->grouped.group, err));
    TRY(field_bool(quant, "zero_point", 1, &zero_point, err));
    if (!zero_point) FAIL("%s: %szero_point: want true, got false", quant->what, quant->prefix);
    TRY(word_is(quant, "version", versions, "gemm", &version, err));
    TRY(word_is(quant, "backend", backends, "autoawq", &backend, err));
    config->grouped.bits = 4;
    config->grouped.zeros = 1;
    config->prequant = PREQUANT_AWQ;
    return OK;
}

/* ---- compressed-tensors ---------------------------------------------------------------------------------------------------- */

/* Dynamic int8 per token: nothing is stored. */
static Status activations_parse(const ConfigObject *group, GroupedConfig *grouped, Error *err) {
    ConfigObject args;
    const char *type = NULL, *strategy = NULL;
    int64_t bits;
    int dynamic, symmetric;
    TRY(field_object(group, "input_activations", "quantization_config.config_groups.*.input_activations.", &args, err));
    if (args.json == NULL) return OK;
    TRY(field_integer(&args, "num_bits", 1, 64, 8, &bits, err));
    TRY(field_string(&args, "type", &type, err));
    TRY(field_string(&args, "strategy", &strategy, err));
    TRY(field_bool(&args, "dynamic", 0, &dynamic, err));
    TRY(field_bool(&args, "symmetric", 1, &symmetric, err));
    if (bits != 8 || (type != NULL && strcmp(type, "int") != 0) || strategy == NULL || strcmp(strategy, "token") != 0 ||
        !dynamic)
        FAIL("%s: %s want dynamic int8 per token, or null; other quantized activations are not supported", args.what,
             args.prefix);
    grouped->int8_activations = symmetric ? 1 : 2;
    return OK;
}

static Status weights_parse(const ConfigObject *args, int rows_only, GroupedConfig *grouped, Error *err) {
    static const char *const types[] = {"int", NULL}, *const strategies[] = {"group", "channel", NULL};
    static const char *const orders[] = {"group", "weight", "static", "dynamic", NULL};
    const char *type = NULL, *strategy = NULL, *order = NULL;
    int64_t bits;
    int symmetric, dynamic;
    if (args->json == NULL) FAIL("%s: %s is missing", args->what, args->prefix);
    TRY(field_integer(args, "num_bits", 1, 64, 8, &bits, err));
    if (bits < 2 || bits > 8 || (rows_only && bits != 8))
        FAIL("%s: %snum_bits: want %s, got %lld", args->what, args->prefix, rows_only ? "8" : "2 to 8", (long long)bits);
    TRY(word_is(args, "type", types, "int", &type, err));
    TRY(word_is(args, "strategy", strategies, "group and channel", &strategy, err));
    TRY(word_is(args, "actorder", orders, "group and weight", &order, err));
    TRY(field_bool(args, "symmetric", 1, &symmetric, err));
    TRY(field_bool(args, "dynamic", 0, &dynamic, err));
    if (dynamic) FAIL("%s: %sdynamic: weights with dynamic scales are not supported", args->what, args->prefix);
    TRY(group_parse(args, "group_size", "group_size", 0, &grouped->group, err));
    int by_group = strategy != NULL ? strcmp(strategy, "group") == 0 : grouped->group > 0;
    if (strategy == NULL && !by_group) FAIL("%s: %sstrategy: want group or channel, got nothing", args->what, args->prefix);
    if (by_group && (grouped->group == 0 || rows_only))
        FAIL("%s: %sstrategy: want %s", args->what, args->prefix, rows_only ? "channel" : "a group_size beside 'group'");
    if (!by_group) grouped->group = 0;
    grouped->bits = (int)bits;
    grouped->zeros = !symmetric;
    grouped->ordered = by_group && order != NULL && (strcasecmp(order, "group") == 0 || strcasecmp(order, "dynamic") == 0);
    return OK;
}

static Status compressed_parse(const ConfigObject *quant, ModelConfig *config, Error *err) {
    static const char *const formats[] = {"pack-quantized", "int-quantized", NULL}, *const states[] = {"compressed", NULL};
    const char *format = NULL, *state = NULL, *sparse = NULL;
    ConfigObject groups, group, weights, sparsity;
    TRY(word_is(quant, "format", formats, "pack-quantized and int-quantized", &format, err));
    if (format == NULL) FAIL("%s: %sformat is missing", quant->what, quant->prefix);
    TRY(word_is(quant, "quantization_status", states, "compressed", &state, err));
    TRY(must_be_empty(quant, "kv_cache_scheme", "a quantized key/value cache", err));
    TRY(must_be_empty(quant, "transform_config", "a model with transforms", err));
    TRY(field_object(quant, "sparsity_config", "quantization_config.sparsity_config.", &sparsity, err));
    if (sparsity.json != NULL) {
        static const char *const dense[] = {"dense", NULL};
        TRY(word_is(&sparsity, "format", dense, "dense", &sparse, err));
    }
    TRY(field_object(quant, "config_groups", "quantization_config.config_groups.", &groups, err));
    if (groups.json == NULL || groups.json->child == NULL || groups.json->child->next != NULL)
        FAIL("%s: %sconfig_groups: want one group; models that mix settings are not supported", quant->what, quant->prefix);
    TRY(field_object(&groups, groups.json->child->string, "quantization_config.config_groups.*.", &group, err));
    if (group.json == NULL) FAIL("%s: %sconfig_groups: want an object in it, got null", quant->what, quant->prefix);
    int rows_only = strcasecmp(format, "int-quantized") == 0;
    TRY(field_object(&group, "weights", "quantization_config.config_groups.*.weights.", &weights, err));
    TRY(weights_parse(&weights, rows_only, &config->grouped, err));
    TRY(activations_parse(&group, &config->grouped, err));
    TRY(must_be_empty(&group, "output_activations", "quantized outputs", err));
    config->prequant = rows_only ? PREQUANT_INT_ROWS : PREQUANT_PACKED;
    return OK;
}

Status grouped_config_parse(const ConfigObject *quant, const char *method, ModelConfig *config, Error *err) {
    if (strcmp(method, "gptq") == 0) return gptq_parse(quant, config, err);
    if (strcmp(method, "awq") == 0) return awq_parse(quant, config, err);
    return compressed_parse(quant, config, err);
}
