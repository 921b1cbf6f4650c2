/* Combinations of keys that need no file: what does not work together is refused by name, and so is what would have no
 * effect. A key counts as given when it does not hold its default, so that a resolved config reads back. */
#include <math.h>
#include <string.h>

#include "core/memory.h"
#include "train/config_table.h"

static int is(const char *value, const char *word) {
    return strcmp(value, word) == 0;
}

static int is_given(const ConfigLoader *loader, int index) {
    const ConfigSource *source = &loader->source[index];
    if (source->line == 0 && source->override == NULL) return 0;
    Text text = {0};
    config_print_value(loader->config, &config_keys[index], &text);
    const char *fallback = config_keys[index].fallback;
    /* the only default that prints otherwise than it is written: a name alone is a list of one */
    int is_default = strcmp(text.data, fallback) == 0;
    if (!is_default) {
        cJSON *value = cJSON_Parse(fallback);
        Config other = {0};
        Text printed = {0};
        if (value != NULL && config_store(&other, &config_keys[index], value, "default", NULL) == OK) {
            config_print_value(&other, &config_keys[index], &printed);
            is_default = strcmp(text.data, printed.data) == 0;
        }
        config_clear(&other, &config_keys[index]);
        text_free(&printed);
        cJSON_Delete(value);
    }
    text_free(&text);
    return !is_default;
}

/* The place where the key got its value: what a message about it starts with. */
static const char *place(const ConfigLoader *loader, const char *path, char *out, size_t capacity) {
    return config_source_name(loader, &loader->source[config_key_find(path)], out, capacity);
}

static Status refuse_section(const ConfigLoader *loader, const char *section, const char *reason, Error *err) {
    size_t length = strlen(section);
    for (int i = 0; i < config_key_count; i++) {
        char where[512];
        const char *path = config_keys[i].path;
        if (config_section_length(path) != length || strncmp(path, section, length) != 0 || !is_given(loader, i)) continue;
        FAIL_USAGE("%s: %s has no effect: %s", config_source_name(loader, &loader->source[i], where, sizeof where), path,
                   reason);
    }
    return OK;
}

static Status refuse_key(const ConfigLoader *loader, const char *path, const char *reason, Error *err) {
    char where[512];
    if (is_given(loader, config_key_find(path)))
        FAIL_USAGE("%s: %s has no effect: %s", place(loader, path, where, sizeof where), path, reason);
    return OK;
}

static Status check_quant(ConfigLoader *loader, Error *err) {
    Config *config = loader->config;
    char where[512];
    int64_t block = config->quant.block_size;
    int is_int4 = is(config->quant.type, "int4"), is_int8 = is(config->quant.type, "int8");
    place(loader, "quant.block_size", where, sizeof where);
    if ((block & (block - 1)) != 0)
        FAIL_USAGE("%s: quant.block_size: want a power of two from 32 to 4096, got %lld", where, (long long)block);
    if (is_int4 && block > 128)
        FAIL_USAGE("%s: quant.block_size: int4 has groups of 32, 64 or 128, got %lld", where, (long long)block);
    if (is_int8) TRY(refuse_key(loader, "quant.block_size", "int8 has one scale for each row", err));
    /* true is the default and speaks of block constants, which these types do not have: settled, not refused, so that
     * changing quant.type alone is enough */
    if (is_int4 || is_int8) config->quant.double_quant = 0;
    return OK;
}

static Status check_method(ConfigLoader *loader, Error *err) {
    const Config *config = loader->config;
    if (is(config->method, "qlora")) TRY(check_quant(loader, err));
    if (is(config->method, "lora"))
        TRY(refuse_section(loader, "quant", "method lora keeps the base in 16 bits; method qlora quantizes it", err));
    if (is(config->method, "full")) {
        TRY(refuse_section(loader, "quant", "method full trains every parameter and quantizes nothing", err));
        TRY(refuse_section(loader, "lora", "method full trains every parameter and has no adapters", err));
    } else {
        TRY(refuse_key(loader, "train.init", "adapters need the model's own weights; only method full starts at random", err));
    }
    return OK;
}

static Status check_data(ConfigLoader *loader, Error *err) {
    const Config *config = loader->config;
    char where[512];
    int64_t longest = config->data.max_length, window = config->train.micro_batch_tokens;
    if (longest != CONFIG_AUTO && window != CONFIG_AUTO && longest > window)
        FAIL_USAGE(
            "%s: data.max_length: %lld tokens do not fit into train.micro_batch_tokens (%lld); raise that, lower this, "
            "or leave it at \"auto\"",
            place(loader, "data.max_length", where, sizeof where), (long long)longest, (long long)window);
    if (config->data.eval_path != NULL && config->data.eval_fraction > 0.0)
        TRY(refuse_key(loader, "data.eval_fraction", "data.eval_path is given, so nothing is held out of data.path", err));
    if (config->train.save_best && config->data.eval_path == NULL && !(config->data.eval_fraction > 0.0))
        FAIL_USAGE("%s: train.save_best needs an evaluation; give data.eval_path or a data.eval_fraction above 0",
                   place(loader, "train.save_best", where, sizeof where));
    return OK;
}

static Status check_train(ConfigLoader *loader, Error *err) {
    const Config *config = loader->config;
    char where[512];
    double warmup = config->train.warmup;
    place(loader, "train.warmup", where, sizeof where);
    if (warmup >= 1.0 && warmup != floor(warmup))
        FAIL_USAGE("%s: train.warmup: below 1 it is a part of the run, from 1 on a whole number of steps; got %.17g", where,
                   warmup);
    if (config->train.steps > 0 && warmup >= 1.0 && warmup > (double)config->train.steps)
        FAIL_USAGE("%s: train.warmup: %.17g steps are more than the run's train.steps (%lld)", where, warmup,
                   (long long)config->train.steps);
    if (is(config->train.loss, "distill") && !is(config->method, "lora"))
        FAIL_USAGE("%s: the teacher is the frozen base in 16 bits, and method %s has none; take method lora",
                   place(loader, "train.loss", where, sizeof where), config->method);
    if (is(config->train.loss, "distill") && is(config->qat.mode, "none"))
        FAIL_USAGE("%s: distill brings a quantized model back to the base; without qat.mode the base is its own best student",
                   place(loader, "train.loss", where, sizeof where));
    if (is(config->train.schedule, "constant"))
        TRY(refuse_key(loader, "train.min_lr_ratio", "train.schedule is constant", err));
    if (!is(config->train.schedule, "wsd"))
        TRY(refuse_key(loader, "train.decay_ratio", "only train.schedule wsd has a decay of its own", err));
    else if (warmup < 1.0 && warmup + config->train.decay_ratio > 1.0)
        FAIL_USAGE("%s: train.warmup and train.decay_ratio together are more than the whole run (%.17g + %.17g)", where, warmup,
                   config->train.decay_ratio);
    if (!is(config->train.memory, "auto")) {
        uint64_t bytes;
        if (config_parse_bytes(config->train.memory, &bytes, err) != OK) {
            error_prefix(err, "%s: train.memory", place(loader, "train.memory", where, sizeof where));
            return ERR_USAGE;
        }
    }
    return OK;
}

static Status check_qat(ConfigLoader *loader, Error *err) {
    const Config *config = loader->config;
    char where[512];
    const char *grid = config->qat.weights;
    int64_t group = config->qat.group_size;
    int merged = is(config->qat.mode, "merged");
    if (is(config->qat.mode, "none")) return refuse_section(loader, "qat", "qat.mode is none", err);
    place(loader, "qat.mode", where, sizeof where);
    if (is(config->method, "full"))
        FAIL_USAGE("%s: qat.mode %s and method full do not go together; take method lora or qlora", where, config->qat.mode);
    if (merged && config->lora.dropout > 0.0)
        FAIL_USAGE(
            "%s: qat.mode merged and lora.dropout above 0 do not go together: the adapter is part of the weight and has no "
            "input of its own; set lora.dropout to 0, or take qat.mode separate",
            where);
    int groups = is(grid, "int2") || is(grid, "int3") || is(grid, "int4");
    if (!groups) TRY(refuse_key(loader, "qat.group_size", "only qat.weights int2, int3 and int4 have groups", err));
    if (group != 32 && group != 64 && group != 128)
        FAIL_USAGE("%s: qat.group_size: want 32, 64 or 128, got %lld", place(loader, "qat.group_size", where, sizeof where),
                   (long long)group);
    if (!groups && !is(grid, "int8"))
        TRY(refuse_key(loader, "qat.symmetric", "only the integer grids have zero points to choose", err));
    if (!is(grid, "nf4")) TRY(refuse_key(loader, "qat.double_quant", "only qat.weights nf4 has block constants", err));
    int symmetric = (groups || is(grid, "int8")) && config->qat.symmetric;
    if (config->qat.learn_scales && !symmetric)
        FAIL_USAGE("%s: scales can be learned for symmetric integer grids only (qat.weights int2, int3, int4, int8)",
                   place(loader, "qat.learn_scales", where, sizeof where));
    if (!is(config->qat.scales, "absmax") && !symmetric)
        FAIL_USAGE("%s: scales can be searched for symmetric integer grids only (qat.weights int2, int3, int4, int8)",
                   place(loader, "qat.scales", where, sizeof where));
    if (!is(config->qat.activations, "int8-static")) {
        TRY(refuse_key(loader, "qat.ranges", "only qat.activations int8-static has fixed ranges", err));
        TRY(refuse_key(loader, "qat.range_batches", "only qat.activations int8-static has fixed ranges", err));
    }
    if (!is(config->qat.ranges, "percentile") && !is(config->qat.ranges, "std"))
        TRY(refuse_key(loader, "qat.range_value", "only qat.ranges percentile and std take a value", err));
    int64_t steps = config->train.steps;
    if (steps > 0 && config->qat.start_step >= steps)
        FAIL_USAGE("%s: qat.start_step: the run has %lld steps, so none of them would be quantized",
                   place(loader, "qat.start_step", where, sizeof where), (long long)steps);
    return OK;
}

static Status check_distributed(ConfigLoader *loader, Error *err) {
    const Config *config = loader->config;
    if (!config->distributed.shard_base) return OK;
    if (is(config->method, "full"))
        TRY(refuse_key(loader, "distributed.shard_base", "method full has no frozen base to split", err));
    if (!is(config->qat.mode, "none")) {
        char where[512];
        FAIL_USAGE(
            "%s: distributed.shard_base and qat.mode %s do not go together yet: a layer's weights are decoded and quantized "
            "from the whole base; leave one of them out",
            place(loader, "distributed.shard_base", where, sizeof where), config->qat.mode);
    }
    return OK;
}

Status config_check(ConfigLoader *loader, Error *err) {
    TRY(check_distributed(loader, err));
    TRY(check_method(loader, err));
    TRY(check_qat(loader, err));
    TRY(check_data(loader, err));
    return check_train(loader, err);
}
