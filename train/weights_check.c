/* The folder's tensors against the config, before anything big is read. Every weight must be there with its shape and a
 * type that we read, and nothing may be there that the computation would leave out. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "train/weights_internal.h"

/* The key of config.json that a wrong shape most likely comes from. */
static const char *shape_key(int32_t id) {
    static const char *const keys[LAYER_WEIGHTS] = {
        [LAYER_Q] = "num_attention_heads or head_dim",
        [LAYER_K] = "num_key_value_heads",
        [LAYER_V] = "num_key_value_heads",
        [LAYER_O] = "num_attention_heads or head_dim",
        [LAYER_GATE] = "intermediate_size",
        [LAYER_UP] = "intermediate_size",
        [LAYER_DOWN] = "intermediate_size",
        [LAYER_Q_BIAS] = "num_attention_heads",
        [LAYER_K_BIAS] = "num_key_value_heads",
        [LAYER_V_BIAS] = "num_key_value_heads",
        [LAYER_Q_NORM] = "head_dim",
        [LAYER_K_NORM] = "head_dim",
    };
    if (id == WEIGHT_EMBED || id == WEIGHT_HEAD) return "vocab_size or hidden_size";
    if (id == WEIGHT_FINAL_NORM) return "hidden_size";
    const char *key = keys[(id - WEIGHT_GLOBALS) % LAYER_WEIGHTS];
    return key == NULL ? "hidden_size" : key;
}

static void format_shape(const TensorInfo *tensor, char *out, size_t capacity) {
    size_t used = 0;
    out[0] = 0;
    for (int d = 0; d < tensor->ndim && used + 24 < capacity; d++)
        used += (size_t)snprintf(out + used, capacity - used, d == 0 ? "%lld" : ", %lld", (long long)tensor->shape[d]);
}

static Status check_shape(int32_t id, const WeightEntry *entry, Error *err) {
    const TensorInfo *tensor = entry->file;
    int vector = weight_is_vector(id);
    int fits = vector ? tensor->ndim == 1 && tensor->shape[0] == entry->cols
                      : tensor->ndim == 2 && tensor->shape[0] == entry->rows && tensor->shape[1] == entry->cols;
    if (fits) return OK;
    char got[256], want[64];
    format_shape(tensor, got, sizeof got);
    if (vector)
        (void)snprintf(want, sizeof want, "%lld", (long long)entry->cols);
    else
        (void)snprintf(want, sizeof want, "%lld, %lld", (long long)entry->rows, (long long)entry->cols);
    FAIL("%s: want [%s], got [%s]; check %s in config.json", tensor->name, want, got, shape_key(id));
}

static int is_float(DType type) {
    return type == DTYPE_F32 || type == DTYPE_BF16 || type == DTYPE_F16;
}

/* A matrix of a GGUF file: the entry has the type that the config found there. */
static Status check_gguf(int32_t id, WeightEntry *entry, Error *err) {
    const TensorInfo *tensor = entry->file;
    TRY(check_shape(id, entry, err));
    int is_same = tensor->ggml != 0 ? tensor->ggml == entry->ggml : entry->ggml == 0 || tensor->dtype == DTYPE_F16;
    if (!is_same || (tensor->ggml == 0 && !is_float(tensor->dtype)))
        FAIL("%s: the file was changed while it is read", tensor->name);
    entry->origin = entry->ggml != 0 ? ORIGIN_GGML : ORIGIN_DENSE;
    return OK;
}

/* Where one weight comes from. */
static Status check_weight(WeightCheck *check, const char *name, int32_t id, WeightEntry *entry, Error *err) {
    int found = 0;
    DType type = entry->file->dtype;
    check->used[check->used_count++] = entry->file;
    if (check->config->gguf.is_file && !weight_is_vector(id)) return check_gguf(id, entry, err);
    if (!weight_is_vector(id)) {
        TRY(bnb4_find(check, name, entry, &found, err));
        if (found) return OK;
    }
    if (weight_is_linear(id)) {
        TRY(grouped_find(check, name, id, entry, &found, err));
        if (found) return OK;
    }
    TRY(check_shape(id, entry, err));
    if (weight_is_linear(id)) TRY(bnb8_find(check, name, entry, &found, err));
    if (!found && !is_float(type))
        FAIL("%s: want F32, BF16 or F16, got %s%s", name, dtype_name(type),
             type == DTYPE_U8 || type == DTYPE_I8 ? "; of quantized folders, those of bitsandbytes are read (nf4, fp4, int8)"
                                                  : "");
    if (check->config->prequant == PREQUANT_BNB_4BIT || prequant_is_grouped(check->config->prequant))
        entry->quantized = entry->resident = 0; /* a module that was left out on purpose */
    entry->dense = weight_dense_type(id, check->options->act, found ? DTYPE_F32 : type);
    return OK;
}

static int ends_with(const char *name, const char *suffix) {
    size_t n = strlen(name), s = strlen(suffix);
    return n >= s && strcmp(name + n - s, suffix) == 0;
}

/* Tensors that are no part of the computation: RoPE tables of old transformers, and the copy of a tied embedding. */
static int is_ignored(const ModelConfig *config, const char *name) {
    if (ends_with(name, "rotary_emb.inv_freq")) return 1;
    return config->tied_embeddings && strncmp(name, "lm_head.weight", strlen("lm_head.weight")) == 0;
}

static const char *unexpected_hint(const char *name) {
    if (strstr(name, "lora_") != NULL) return "this looks like an adapter: give the base model here and the adapter on its own";
    if (strstr(name, "vision") != NULL || strstr(name, "visual") != NULL) return "vision models are not supported";
    if (ends_with(name, ".bias")) return "config.json says there are no such biases; check attention_bias and mlp_bias";
    if (strncmp(name, "model.layers.", 13) == 0) return "check num_hidden_layers and model_type in config.json";
    return "this model_type has no such weight";
}

static int compare_pointers(const void *a, const void *b) {
    uintptr_t x = (uintptr_t) * (const TensorInfo *const *)a, y = (uintptr_t) * (const TensorInfo *const *)b;
    return (x > y) - (x < y);
}

/* Everything in the files must have been used, or be known to be of no use. `used` is sorted in passing. */
static Status check_unexpected(WeightCheck *check, Error *err) {
    size_t count = (size_t)check->used_count;
    qsort(check->used, count, sizeof *check->used, compare_pointers);
    const char *first = NULL;
    int64_t more = 0;
    for (int64_t i = 0; i < tensors_count(check->files); i++) {
        const TensorInfo *tensor = tensors_get(check->files, i);
        if (is_ignored(check->config, tensor->name) ||
            bsearch(&tensor, check->used, count, sizeof *check->used, compare_pointers) != NULL)
            continue;
        if (first == NULL)
            first = tensor->name;
        else
            more++;
    }
    if (first == NULL) return OK;
    char others[40] = "";
    if (more > 0) (void)snprintf(others, sizeof others, " (and %lld more)", (long long)more);
    FAIL("%s: unexpected tensor %.*s%s; %s", check->folder, WEIGHT_NAME_MAX, first, others, unexpected_hint(first));
}

static Status find_all(const TensorFiles *files, const char *folder, const ModelConfig *config, WeightEntry *entries,
                       Error *err) {
    char name[WEIGHT_NAME_MAX], first[WEIGHT_NAME_MAX] = "";
    int64_t rows, cols, missing = 0;
    for (int32_t id = 0; id < weight_count(config); id++) {
        if (!weight_describe(config, id, name, sizeof name, &rows, &cols)) continue;
        entries[id].file = tensors_find(files, name);
        if (entries[id].file == NULL && weight_is_linear(id)) entries[id].file = grouped_codes(files, config, name);
        if (entries[id].file == NULL && missing++ == 0) memcpy(first, name, sizeof first);
    }
    if (missing == 0) return OK;
    if (strcmp(first, "lm_head.weight") == 0)
        FAIL("%s: lm_head.weight is missing, and config.json does not set tie_word_embeddings", folder);
    char others[40] = "";
    if (missing > 1) (void)snprintf(others, sizeof others, " (and %lld more)", (long long)(missing - 1));
    FAIL("%s: %s is missing%s; check num_hidden_layers and model_type in config.json", folder, first, others);
}

Status weights_check(const TensorFiles *files, const char *folder, const ModelConfig *config, const WeightOptions *options,
                     WeightEntry *entries, Error *err) {
    TRY(find_all(files, folder, config, entries, err));
    int32_t count = weight_count(config);
    WeightCheck check = {.files = files, .folder = folder, .config = config, .options = options};
    check.used = memory_calloc((size_t)count, WEIGHT_TENSORS * sizeof *check.used);
    Status status = OK;
    for (int32_t id = 0; id < count && status == OK; id++) {
        WeightEntry *entry = &entries[id];
        if (entry->file == NULL) continue;
        char name[WEIGHT_NAME_MAX];
        (void)weight_describe(config, id, name, sizeof name, &entry->rows, &entry->cols);
        status = check_weight(&check, name, id, entry, err);
        if (status != OK) error_prefix(err, "%s", folder);
    }
    if (status == OK) status = check_unexpected(&check, err);
    memory_free(check.used);
    return status;
}

Status weights_facts(WeightFacts **out, const char *folder, const ModelConfig *config, Error *err) {
    const WeightOptions options = {.act = DTYPE_F32, .linear = WEIGHT_F32, .block_size = 64};
    TensorFiles *files = NULL;
    *out = NULL;
    TRY(tensors_open(&files, folder, NULL, err));
    int32_t count = weight_count(config);
    WeightEntry *entries = memory_calloc((size_t)count, sizeof *entries);
    weights_decide(config, &options, config->dtype, entries);
    Status status = weights_check(files, folder, config, &options, entries, err);
    if (status == OK) {
        WeightFacts *facts = *out = memory_calloc(1, sizeof *facts + (size_t)count * sizeof facts->weight[0]);
        facts->count = count;
        for (int32_t id = 0; id < count; id++) {
            facts->weight[id].origin = entries[id].origin;
            facts->weight[id].type = entries[id].file != NULL ? entries[id].file->dtype : config->dtype;
            facts->weight[id].spec = entries[id].spec;
        }
    }
    memory_free(entries);
    tensors_close(files);
    return status;
}

void weights_facts_free(WeightFacts *facts) {
    memory_free(facts);
}
