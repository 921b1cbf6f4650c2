/* Metadata of a GGUF file as the config.json that means the same. */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "data/gguf_model.h"

#define ROPE_FREQS "rope_freqs.weight"

typedef struct Meta {
    const GgufFile *file;
    char architecture[16];
    char key[128];
} Meta;

static const char *key(Meta *m, const char *name) {
    (void)snprintf(m->key, sizeof m->key, "%s.%s", m->architecture, name);
    return m->key;
}

static int has(Meta *m, const char *name) {
    return gguf_find(m->file, key(m, name)) != NULL;
}

/* An integer of any width: writers differ. otherwise < 0: the key must be there. */
static Status count_of(Meta *m, const char *name, int64_t otherwise, int64_t *out, Error *err) {
    const GgufValue *value = gguf_find(m->file, key(m, name));
    if (value == NULL && otherwise >= 0) {
        *out = otherwise;
        return OK;
    }
    if (value != NULL && value->is_array)
        FAIL("%s: key '%s': want one number, got an array: layers that differ are not supported", gguf_path(m->file), m->key);
    uint32_t number;
    TRY(gguf_get_u32(m->file, m->key, &number, err));
    *out = number;
    return OK;
}

static Status number_of(Meta *m, const char *name, float otherwise, float *out, Error *err) {
    *out = otherwise;
    return has(m, name) ? gguf_get_f32(m->file, m->key, out, err) : OK;
}

/* The shortest decimal that reads as this FP32 number. */
static void put_float(Text *out, const char *name, float value) {
    char text[40];
    for (int digits = 6; digits <= 9; digits++) {
        (void)snprintf(text, sizeof text, "%.*g", digits, (double)value);
        if (strtof(text, NULL) == value) break;
    }
    text_addf(out, ", \"%s\": %s%s", name, text, strpbrk(text, ".en") == NULL ? ".0" : "");
}

static void put_count(Text *out, const char *name, int64_t value) {
    text_addf(out, ", \"%s\": %lld", name, (long long)value);
}

/* ---- what may be there ------------------------------------------------------------------------------------------------------- */

static Status read_architecture(Meta *m, Error *err) {
    GgufString name;
    const char *path = gguf_path(m->file);
    TRY(gguf_get_string(m->file, "general.architecture", &name, err));
    static const char *const known[] = {"llama", "qwen2", "qwen3"};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (name.length == strlen(known[i]) && memcmp(name.bytes, known[i], (size_t)name.length) == 0) {
            (void)snprintf(m->architecture, sizeof m->architecture, "%s", known[i]);
            GgufString type;
            if (gguf_find(m->file, "general.type") == NULL) return OK;
            TRY(gguf_get_string(m->file, "general.type", &type, err));
            if (type.length == 5 && memcmp(type.bytes, "model", 5) == 0) return OK;
            FAIL("%s: want a model, got general.type \"%.*s\"; give it as --adapter, with the model that it was trained on",
                 path, (int)(type.length < 40 ? type.length : 40), type.bytes);
        }
    FAIL("%s: general.architecture: want llama, qwen2 or qwen3, got \"%.*s\"", path, (int)(name.length < 40 ? name.length : 40),
         name.bytes);
}

/* Keys of the architecture that are read here, or change nothing. */
static const char *const known_keys[] = {"context_length",
                                         "embedding_length",
                                         "block_count",
                                         "feed_forward_length",
                                         "vocab_size",
                                         "tensor_data_layout",
                                         "attention.head_count",
                                         "attention.head_count_kv",
                                         "attention.key_length",
                                         "attention.value_length",
                                         "attention.layer_norm_rms_epsilon",
                                         "attention.sliding_window", /* llama.cpp reads none for these architectures */
                                         "rope.dimension_count",
                                         "rope.freq_base",
                                         "rope.scale_linear",
                                         "rope.scaling.type",
                                         "rope.scaling.factor",
                                         "rope.scaling.original_context_length",
                                         "rope.scaling.finetuned"};

static Status check_keys(const Meta *m, Error *err) {
    size_t length = strlen(m->architecture);
    for (int64_t i = 0; i < gguf_value_count(m->file); i++) {
        const char *name = gguf_value(m->file, i)->key;
        if (strncmp(name, m->architecture, length) != 0 || name[length] != '.') continue;
        size_t k = 0;
        while (k < sizeof known_keys / sizeof *known_keys && strcmp(name + length + 1, known_keys[k]) != 0)
            k++;
        if (k == sizeof known_keys / sizeof *known_keys)
            FAIL("%s: key '%.120s' is not known here and may change the computation; such a model is not supported",
                 gguf_path(m->file), name);
    }
    return OK;
}

static Status check_splits(const Meta *m, Error *err) {
    const GgufValue *count = gguf_find(m->file, "split.count");
    if (count == NULL || count->items == NULL) return OK;
    uint16_t parts = 0;
    if (count->type == GGUF_U16) memcpy(&parts, count->items, sizeof parts);
    if (parts == 1) return OK;
    FAIL("%s: is one of several parts of a model; join them with llama-gguf-split --merge", gguf_path(m->file));
}

/* ---- RoPE ------------------------------------------------------------------------------------------------------------------ */

static Status read_factors(const Meta *m, const GgufTensor *tensor, int64_t pairs, float *factors, Error *err) {
    const char *path = gguf_path(m->file);
    if (tensor->type->type != GGML_F32 || tensor->ndim != 1 || tensor->ne[0] != pairs || pairs > ROPE_MAX_PAIRS)
        FAIL("%s: tensor '" ROPE_FREQS "': want %lld F32 values, got %lld of %s", path, (long long)pairs,
             (long long)tensor->ne[0], tensor->type->name);
    TRY(gguf_read(m->file, tensor, 0, factors, (size_t)pairs * sizeof *factors, 0, err));
    for (int64_t i = 0; i < pairs; i++)
        if (!(factors[i] > 1e-6f && factors[i] < 1e6f))
            FAIL("%s: tensor '" ROPE_FREQS "': value %lld: want a number from 1e-6 to 1e6, got %g", path, (long long)i,
                 (double)factors[i]);
    return OK;
}

/* Llama 3's rule has made the factors with these numbers. */
static int is_llama3(const float *factors, int64_t pairs, float theta, double factor, int64_t original) {
    ModelConfig *config = memory_calloc(1, sizeof *config);
    double scaled[ROPE_MAX_PAIRS], plain[ROPE_MAX_PAIRS], attention;
    config->head_dim = 2 * pairs;
    config->rope = (RopeConfig){.theta = (double)theta};
    int same = rope_frequencies(config, 1, plain, &attention, NULL) == OK;
    config->rope = (RopeConfig){.type = ROPE_LLAMA3,
                                .theta = (double)theta,
                                .factor = factor,
                                .low_freq_factor = 1.0,
                                .high_freq_factor = 4.0,
                                .original_context = original};
    same = same && rope_frequencies(config, 1, scaled, &attention, NULL) == OK;
    for (int64_t i = 0; i < pairs && same; i++)
        same = fabs(plain[i] / scaled[i] / (double)factors[i] - 1.0) < 2e-6; /* a few roundings of FP32 */
    memory_free(config);
    return same;
}

/* Factors that no rule explains are longrope's, the same for every length. */
static void put_factors(Text *out, const float *factors, int64_t pairs, float theta, int64_t context) {
    for (int64_t original = 512; original <= 131072; original *= 2)
        if (is_llama3(factors, pairs, theta, (double)factors[pairs - 1], original)) {
            text_adds(out,
                      ", \"rope_scaling\": {\"rope_type\": \"llama3\", \"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0");
            put_float(out, "factor", factors[pairs - 1]);
            put_count(out, "original_max_position_embeddings", original);
            text_adds(out, "}");
            return;
        }
    text_adds(out, ", \"rope_scaling\": {\"rope_type\": \"longrope\", \"attention_factor\": 1.0, \"factor\": 1.0");
    put_count(out, "original_max_position_embeddings", context < 2 ? 2 : context);
    for (int list = 0; list < 2; list++) {
        text_addf(out, ", \"%s_factor\": [", list == 0 ? "short" : "long");
        for (int64_t i = 0; i < pairs; i++)
            text_addf(out, "%s%.9g", i > 0 ? ", " : "", (double)factors[i]);
        text_adds(out, "]");
    }
    text_adds(out, "}");
}

static int string_is(GgufString string, const char *text) {
    return string.length == strlen(text) && memcmp(string.bytes, text, (size_t)string.length) == 0;
}

static Status put_scaling(Meta *m, Text *out, int64_t context, Error *err) {
    GgufString type = {"linear", 6};
    float factor, linear;
    int64_t original;
    TRY(number_of(m, "rope.scale_linear", 0.0f, &linear, err));
    TRY(number_of(m, "rope.scaling.factor", linear, &factor, err));
    if (has(m, "rope.scaling.type")) TRY(gguf_get_string(m->file, m->key, &type, err));
    TRY(count_of(m, "rope.scaling.original_context_length", context, &original, err));
    if (string_is(type, "none") || factor == 0.0f || factor == 1.0f) return OK;
    int is_yarn = string_is(type, "yarn");
    if (!is_yarn && !string_is(type, "linear"))
        FAIL("%s: rope.scaling.type: want none, linear or yarn, got \"%.*s\"", gguf_path(m->file),
             (int)(type.length < 40 ? type.length : 40), type.bytes);
    if (!(factor >= 1.0f && factor <= 1e9f))
        FAIL("%s: rope.scaling.factor: want 1 to 1e9, got %g", gguf_path(m->file), (double)factor);
    text_addf(out, ", \"rope_scaling\": {\"rope_type\": \"%s\"", is_yarn ? "yarn" : "linear");
    put_float(out, "factor", factor);
    if (is_yarn) put_count(out, "original_max_position_embeddings", original);
    text_adds(out, "}");
    return OK;
}

static Status put_rope(Meta *m, Text *out, int64_t head, int64_t context, Error *err) {
    float theta, factors[ROPE_MAX_PAIRS];
    int64_t rotated;
    const GgufTensor *freqs = gguf_tensor_find(m->file, ROPE_FREQS);
    TRY(number_of(m, "rope.freq_base", 10000.0f, &theta, err));
    TRY(count_of(m, "rope.dimension_count", head, &rotated, err));
    if (rotated != head)
        FAIL("%s: rope.dimension_count: want the head size %lld, got %lld: heads that are rotated in part are not supported",
             gguf_path(m->file), (long long)head, (long long)rotated);
    put_float(out, "rope_theta", theta);
    if (freqs == NULL) return put_scaling(m, out, context, err);
    if (has(m, "rope.scaling.type") || has(m, "rope.scaling.factor") || has(m, "rope.scale_linear"))
        FAIL("%s: has both tensor '" ROPE_FREQS "' and %s; such a model is not supported", gguf_path(m->file), m->key);
    TRY(read_factors(m, freqs, head / 2, factors, err));
    put_factors(out, factors, head / 2, theta, context);
    return OK;
}

/* ---- the text -------------------------------------------------------------------------------------------------------------- */

static Status put_sizes(Meta *m, Text *out, int64_t *head, int64_t *context, Error *err) {
    int64_t hidden, layers, inner, heads, kv_heads, values;
    TRY(count_of(m, "embedding_length", -1, &hidden, err));
    TRY(count_of(m, "block_count", -1, &layers, err));
    TRY(count_of(m, "feed_forward_length", -1, &inner, err));
    TRY(count_of(m, "attention.head_count", -1, &heads, err));
    TRY(count_of(m, "attention.head_count_kv", heads, &kv_heads, err));
    TRY(count_of(m, "context_length", -1, context, err));
    if (heads == 0) FAIL("%s: attention.head_count: want at least 1, got 0", gguf_path(m->file));
    TRY(count_of(m, "attention.key_length", hidden / heads, head, err));
    TRY(count_of(m, "attention.value_length", *head, &values, err));
    if (values != *head)
        FAIL("%s: attention.value_length: want key_length's %lld, got %lld", gguf_path(m->file), (long long)*head,
             (long long)values);
    if (*head < 2 || *head % 2 != 0 || *head > 2 * ROPE_MAX_PAIRS)
        FAIL("%s: want an even head size from 2 to %d, got %lld", gguf_path(m->file), 2 * ROPE_MAX_PAIRS, (long long)*head);
    put_count(out, "hidden_size", hidden);
    put_count(out, "intermediate_size", inner);
    put_count(out, "num_hidden_layers", layers);
    put_count(out, "num_attention_heads", heads);
    put_count(out, "num_key_value_heads", kv_heads);
    put_count(out, "head_dim", *head);
    put_count(out, "max_position_embeddings", *context);
    return OK;
}

static Status put_token_ids(Meta *m, Text *out, int64_t vocab, Error *err) {
    static const char *const keys[] = {"tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"};
    static const char *const names[] = {"bos_token_id", "eos_token_id"};
    for (int i = 0; i < 2; i++) {
        uint32_t id;
        if (gguf_find(m->file, keys[i]) == NULL) continue;
        TRY(gguf_get_u32(m->file, keys[i], &id, err));
        if ((int64_t)id >= vocab)
            FAIL("%s: %s: want less than %lld, got %u", gguf_path(m->file), keys[i], (long long)vocab, id);
        put_count(out, names[i], id);
    }
    return OK;
}

/* Of most of the weights; what is quantized counts as BF16, the type that exports give it. */
static const char *torch_type(const GgufFile *file) {
    const GgufTensor *q = gguf_tensor_find(file, "blk.0.attn_q.weight");
    uint32_t type = q != NULL ? q->type->type : GGML_BF16;
    return type == GGML_F32 ? "float32" : type == GGML_F16 ? "float16" : "bfloat16";
}

/* nibble's own: what activations are rounded to. */
static Status put_rounding(const GgufFile *file, const char *key, const char *name, Text *out, Error *err) {
    GgufString word;
    if (gguf_find(file, key) == NULL) return OK;
    TRY(gguf_get_string(file, key, &word, err));
    text_addf(out, ", \"%s\": ", name);
    text_add_json_string(out, word.bytes, (size_t)word.length);
    return OK;
}

static Status put_ranges(const GgufFile *file, Text *out, Error *err) {
    const GgufValue *value = gguf_find(file, "nibble.ranges");
    if (value == NULL) return OK;
    if (!value->is_array || value->type != GGUF_F32)
        FAIL("%s: key 'nibble.ranges': want a list of FP32 numbers", gguf_path(file));
    text_adds(out, ", \"nibble_ranges\": [");
    for (uint64_t i = 0; i < value->count; i++) {
        float scale;
        memcpy(&scale, value->items + i * sizeof scale, sizeof scale);
        if (!(scale > 0.0f && scale <= FLT_MAX)) FAIL("%s: key 'nibble.ranges': want numbers above 0", gguf_path(file));
        text_addf(out, "%s%.9g", i > 0 ? ", " : "", (double)scale);
    }
    text_adds(out, "]");
    return OK;
}

Status gguf_config_text(const GgufFile *file, Text *out, Error *err) {
    Meta m = {.file = file};
    const GgufTensor *embed = gguf_tensor_find(file, "token_embd.weight");
    int64_t head, context;
    float epsilon;
    TRY(read_architecture(&m, err));
    TRY(check_keys(&m, err));
    TRY(check_splits(&m, err));
    if (embed == NULL || embed->ndim != 2) FAIL("%s: want a matrix token_embd.weight, got none", gguf_path(file));
    int is_llama = strcmp(m.architecture, "llama") == 0;
    text_addf(out, "{\"model_type\": \"%s\", \"architectures\": [\"%sForCausalLM\"], \"hidden_act\": \"silu\"", m.architecture,
              is_llama                               ? "Llama"
              : strcmp(m.architecture, "qwen2") == 0 ? "Qwen2"
                                                     : "Qwen3");
    TRY(put_sizes(&m, out, &head, &context, err));
    put_count(out, "vocab_size", embed->ne[1]);
    TRY(count_of(&m, "context_length", -1, &context, err));
    if (!has(&m, "attention.layer_norm_rms_epsilon")) FAIL("%s: key '%s' is missing", gguf_path(file), m.key);
    TRY(gguf_get_f32(file, m.key, &epsilon, err));
    put_float(out, "rms_norm_eps", epsilon);
    TRY(put_rope(&m, out, head, context, err));
    TRY(put_token_ids(&m, out, embed->ne[1], err));
    if (is_llama && gguf_tensor_find(file, "blk.0.attn_q.bias") != NULL) text_adds(out, ", \"attention_bias\": true");
    if (is_llama && gguf_tensor_find(file, "blk.0.ffn_up.bias") != NULL) text_adds(out, ", \"mlp_bias\": true");
    TRY(put_rounding(file, "nibble.activations", "nibble_activations", out, err));
    TRY(put_rounding(file, "nibble.kv_cache", "nibble_kv_cache", out, err));
    TRY(put_ranges(file, out, err));
    text_addf(out, ", \"tie_word_embeddings\": %s, \"torch_dtype\": \"%s\"}\n",
              gguf_tensor_find(file, "output.weight") == NULL ? "true" : "false", torch_type(file));
    return OK;
}

/* ---- the config with its types --------------------------------------------------------------------------------------------- */

static uint8_t type_of(const GgufFile *file, const char *name, int64_t layer) {
    char full[GGUF_NAME_MAX + 1];
    if (layer < 0)
        (void)snprintf(full, sizeof full, "%s.weight", name);
    else
        (void)snprintf(full, sizeof full, "blk.%lld.%s.weight", (long long)layer, name);
    const GgufTensor *tensor = gguf_tensor_find(file, full);
    return tensor != NULL ? (uint8_t)tensor->type->type : (uint8_t)GGML_F32; /* the loader names what is missing */
}

static void read_types(const GgufFile *file, ModelConfig *config) {
    static const char *const parts[GGUF_LINEARS] = {"attn_q",   "attn_k", "attn_v",  "attn_output",
                                                    "ffn_gate", "ffn_up", "ffn_down"};
    config->gguf.is_file = 1;
    config->gguf.embedding = type_of(file, "token_embd", -1);
    config->gguf.head = type_of(file, "output", -1);
    for (int64_t layer = 0; layer < config->layers; layer++)
        for (int i = 0; i < GGUF_LINEARS; i++) {
            uint8_t type = config->gguf.linear[layer][i] = type_of(file, parts[i], layer);
            if (ggml_type_info(type)->is_quantized) config->prequant = PREQUANT_GGUF;
        }
}

Status gguf_config_read(const char *path, ModelConfig *config, Error *err) {
    GgufFile *file = NULL;
    Text text = {0};
    Status status;
    TRY_GOTO(gguf_open(&file, path, err));
    TRY_GOTO(gguf_config_text(file, &text, err));
    TRY_GOTO(model_config_parse(path, text.data, text.length, config, err));
    read_types(file, config);
done:
    text_free(&text);
    gguf_close(file);
    return status;
}
