#include "train/model_options.h"

#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/memory.h"
#include "core/text.h"

static const struct {
    const char *name;
    WeightFormat format;
} quant_types[] = {
    {"none", WEIGHT_BF16}, {"nf4", WEIGHT_NF4}, {"fp4", WEIGHT_FP4}, {"int8", WEIGHT_INT8}, {"int4", WEIGHT_INT4}};
enum { QUANT_TYPES = sizeof quant_types / sizeof *quant_types };

static int find_quant(const char *name) {
    int i = 0;
    while (i < QUANT_TYPES && strcmp(quant_types[i].name, name) != 0)
        i++;
    return i;
}

static int has_double_quant(WeightFormat format) {
    return format == WEIGHT_NF4 || format == WEIGHT_FP4;
}

static int has_small_head(const ModelOptions *options) {
    return strcmp(options->head, "q8_0") == 0;
}

static int has_file(const char *folder, const char *name) {
    char *path = path_join(folder, name);
    int found = file_exists(path);
    memory_free(path);
    return found;
}

Status model_options_check(const ModelOptions *options, const char *folder, ModelConfig *model, Error *err) {
    int type = find_quant(options->quant);
    if (type == QUANT_TYPES) FAIL_USAGE("--quant: want none, nf4, fp4, int8 or int4, got \"%.60s\"", options->quant);
    if (options->no_double_quant && !has_double_quant(quant_types[type].format))
        FAIL_USAGE("--no-double-quant: --quant %s has no double quantization", options->quant);
    if (strcmp(options->precision, "bf16") != 0 && strcmp(options->precision, "f32") != 0)
        FAIL_USAGE("--precision: want bf16 or f32, got \"%.60s\"", options->precision);
    if (strcmp(options->head, "none") != 0 && strcmp(options->head, "q8_0") != 0)
        FAIL_USAGE("--head: want none or q8_0, got \"%.60s\"", options->head);
    TRY(device_check_name(options->device, err));
    if (options->threads < 0 || options->threads > 1024)
        FAIL_USAGE("--threads: want 0 (all) to 1024, got %lld", (long long)options->threads);
    if (has_file(folder, "metrics.jsonl") && has_file(folder, "adapter"))
        FAIL_USAGE("%s: is a run folder; give the base model, and --adapter %s/adapter", folder, folder);
    if (options->adapter != NULL && has_file(options->adapter, "metrics.jsonl") && has_file(options->adapter, "adapter"))
        FAIL_USAGE("--adapter %s: is a run folder; give --adapter %s/adapter", options->adapter, options->adapter);
    TRY(model_config_read(folder, model, err));
    if (model->prequant != PREQUANT_NONE && type != 0)
        FAIL_USAGE("--quant %s: %s is quantized already; leave --quant out to use it as it is", options->quant, folder);
    ActivationQuant rounding;
    Status status = activation_quant_parse(options->activations, options->kv_cache, &rounding, err);
    if (status != OK) error_prefix(err, options->activations != NULL ? "--activations, --kv-cache" : "--kv-cache");
    return status;
}

/* What the model says, where an option does not. */
static ActivationQuant rounding_of(const ModelOptions *options, const ModelConfig *model) {
    ActivationQuant asked = {0}, out = model->activations;
    (void)activation_quant_parse(options->activations, options->kv_cache, &asked, NULL); /* checked before */
    if (options->activations != NULL) {
        out.bits = asked.bits;
        out.symmetric = asked.symmetric;
        out.fixed = asked.fixed;
    }
    if (options->kv_cache != NULL) out.kv_bits = asked.kv_bits;
    return out;
}

WeightOptions model_options_weights(const ModelOptions *options) {
    WeightFormat linear = quant_types[find_quant(options->quant)].format;
    return (WeightOptions){.act = precision_type(options->precision),
                           .linear = linear,
                           .double_quant = has_double_quant(linear) && !options->no_double_quant,
                           .block_size = 64};
}

Status model_options_open(Engine *engine, const ModelOptions *options, const char *folder, const ModelConfig *model,
                          size_t extra, Error *err) {
    ActivationQuant rounding = rounding_of(options, model);
    EngineOptions open = {.model = folder,
                          .adapter = options->adapter,
                          .act = precision_type(options->precision),
                          .threads = (int)options->threads,
                          .cpu = getenv("NIBBLE_CPU"),
                          .device = options->device,
                          .weights = model_options_weights(options),
                          .rounding = &rounding,
                          .comm = options->comm,
                          .method = METHOD_FROZEN};
    open.small_head = has_small_head(options);
    WeightBytes bytes;
    TRY(weights_plan(model, &open.weights, model->dtype, &bytes, err));
    open.needs = bytes.arena + (open.small_head ? (size_t)(model->vocab * model->hidden) / 32 * 34 : 0);
    open.needs_beside = bytes.staging > extra ? bytes.staging : extra;
    memset(engine, 0, sizeof *engine);
    TRY(engine_open(engine, &open, err));
    return comm_attach(options->comm, engine->device.context, err);
}

int model_stop_ids(const Tokenizer *tokenizer, const ModelConfig *model, int32_t ids[STOP_IDS_MAX]) {
    int count = 0;
    if (tokenizer_eos(tokenizer) >= 0) ids[count++] = tokenizer_eos(tokenizer);
    for (int i = 0; i < model->eos_count; i++)
        ids[count++] = (int32_t)model->eos_ids[i];
    return count;
}
