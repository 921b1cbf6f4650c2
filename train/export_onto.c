/* Which base: what the run trained on, unless the command line says otherwise. */
#include <stdio.h>
#include <string.h>

#include "core/file.h"
#include "train/config.h"
#include "train/engine.h"
#include "train/export.h"
#include "train/qat.h"
#include "train/qat_ranges.h"

typedef struct TrainedOn {
    int known;
    int quantized;
    QuantSpec spec;
    QuantSpec grid; /* of quantization-aware training on nf4 or integers; else all 0 */
    int scales;     /* learned, or searched for */
    ActivationQuant activations;
    const char *gguf, *embeddings; /* trained as ggml blocks: their type, and that of embedding and head */
} TrainedOn;

static const QuantSpec usual = {.format = WEIGHT_NF4, .double_quant = 1, .block_size = 64};

/* "runs/first/adapter/" -> "runs/first" */
static char *parent_folder(const char *path) {
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/')
        length--;
    while (length > 0 && path[length - 1] != '/')
        length--;
    if (length == 0) return memory_strdup(".");
    while (length > 1 && path[length - 1] == '/')
        length--;
    return memory_format("%.*s", (int)length, path);
}

static void trained_on_integers(const QatOptions *qat, TrainedOn *out) {
    const FakeQuant *grid = &qat->grid;
    GroupInt integers = {
        .bits = grid->bits, .symmetric = grid->symmetric, .group = grid->group, .scale_type = grid->scale_type};
    out->grid = quant_spec_grouped(&integers);
    out->scales = (qat->learn_scales || qat->scales != SCALES_ABSMAX) && qat->mode == QAT_MERGED;
}

static void trained_on_blocks(const Config *config, const QatOptions *qat, TrainedOn *out) {
    FakeGrid grid = qat->grid.grid;
    out->gguf = grid == FAKE_Q4_0 ? "Q4_0" : grid == FAKE_Q8_0 ? "Q8_0" : grid == FAKE_Q4_K ? "Q4_K" : NULL;
    out->embeddings = out->gguf == NULL ? NULL : precision_type(config->precision) == DTYPE_F32 ? "F32" : "BF16";
}

/* From the config of the run in whose folder the adapter lies, if it lies in one. */
static Status trained_on(const char *adapter, const ModelConfig *model, TrainedOn *out, Error *err) {
    *out = (TrainedOn){.activations = model->activations};
    char *run = parent_folder(adapter), *config_path = path_join(run, "config.json"),
         *metrics = path_join(run, "metrics.jsonl");
    int is_run = file_exists(config_path) && file_exists(metrics);
    Status status = OK;
    if (is_run) {
        Config config;
        WeightOptions weights;
        QatOptions qat;
        status = config_load(&config, config_path, NULL, 0, err);
        if (status == OK) {
            status = weight_options_from_config(&config, &weights, err);
            out->known = 1;
            out->quantized = strcmp(config.method, "qlora") == 0;
            if (status == OK && out->quantized)
                out->spec = (QuantSpec){
                    .format = weights.linear, .double_quant = weights.double_quant, .block_size = weights.block_size};
            if (status == OK) status = qat_options(&config, &qat, err);
            if (status == OK && qat.mode != QAT_NONE) trained_on_blocks(&config, &qat, out);
            if (status == OK) status = qat_activations(&config, model, &out->activations, err);
            if (status == OK && qat.mode != QAT_NONE && qat.grid.grid == FAKE_NF4)
                out->grid =
                    (QuantSpec){.format = WEIGHT_NF4, .double_quant = qat.grid.double_quant, .block_size = qat.grid.block_size};
            if (status == OK && qat.mode != QAT_NONE && qat.grid.grid == FAKE_INT) trained_on_integers(&qat, out);
            config_free(&config);
        }
        if (status != OK) {
            error_prefix(err, "%s lies in a run folder whose config cannot be read", adapter);
            if (err != NULL) err->status = ERR_FAILED;
            status = ERR_FAILED;
        }
    }
    memory_free(metrics);
    memory_free(config_path);
    memory_free(run);
    return status;
}

static int same(const TrainedOn *a, const TrainedOn *b) {
    if (a->known != b->known || a->quantized != b->quantized) return 0;
    if (!a->quantized) return 1;
    return a->spec.format == b->spec.format && a->spec.double_quant == b->spec.double_quant &&
           a->spec.block_size == b->spec.block_size;
}

static const char *spec_text(const QuantSpec *spec, char *out, size_t capacity) {
    const char *nested = spec->double_quant ? " with double quantization" : "";
    if (spec->format == WEIGHT_INT8)
        (void)snprintf(out, capacity, "int8");
    else
        (void)snprintf(out, capacity, "%s%s, blocks of %d", weight_format_name(spec->format), nested, (int)spec->block_size);
    return out;
}

/* A 16- or 32-bit folder. */
static Status choose(Export *export, const TrainedOn *run, Error *err) {
    const ExportOptions *o = export->options;
    const char *asked = o->onto;
    char text[96];
    int quantized = asked != NULL ? strcmp(asked, "dequantized") == 0 : run->known && run->quantized;
    (void)err;
    export->onto = quantized ? "dequantized" : "original";
    export->merging.requantize = quantized;
    export->merging.spec = run->quantized ? run->spec : usual;
    (void)spec_text(&export->merging.spec, text, sizeof text);
    const char *why = asked != NULL ? "as --onto says" : "as the run trained";
    if (quantized)
        (void)snprintf(export->reason, sizeof export->reason, "the base quantized to %s and decoded again, %s%s", text, why,
                       asked != NULL && !run->quantized ? " (no qlora run says how; this is the default)" : "");
    else if (asked == NULL && !run->known)
        (void)snprintf(export->reason, sizeof export->reason,
                       "the folder's own weights: %s; --onto dequantized merges onto what a quantized run has seen",
                       o->adapters.count > 0 ? "the adapter lies in no run folder" : "nothing is merged");
    else
        (void)snprintf(export->reason, sizeof export->reason, "the folder's own weights, %s%s", why,
                       run->quantized ? " (the run trained on a quantized base, which is another model)" : "");
    return OK;
}

/* Scales of fixed ranges: those that lie beside the adapter, or the base's own. */
static Status take_ranges(Export *export, const char *adapter, const ModelConfig *model, Error *err) {
    int64_t count = model->layers * RANGES_PER_LAYER;
    if (!export->rounding.fixed) return OK;
    if (export->ranges == NULL) export->ranges = memory_alloc((size_t)count * sizeof *export->ranges);
    if (adapter != NULL && !model->activations.fixed) return qat_ranges_read(adapter, count, export->ranges, err);
    memcpy(export->ranges, model->ranges, (size_t)count * sizeof *export->ranges);
    return OK;
}

Status export_choose_base(Export *export, Error *err) {
    const ExportOptions *o = export->options;
    TrainedOn run = {0};
    ModelConfig model;
    TRY(model_config_read(o->model, &model, err));
    export->rounding = model.activations;
    TRY(take_ranges(export, NULL, &model, err));
    for (int i = 0; i < o->adapters.count; i++) {
        TrainedOn other;
        TRY(trained_on(o->adapters.items[i], &model, &other, err));
        if (i > 0 && !same(&run, &other) && (o->onto == NULL || strcmp(o->onto, "dequantized") == 0))
            FAIL_USAGE("%s and %s were trained on differently stored bases; give --onto original", o->adapters.items[0],
                       o->adapters.items[i]);
        run = i == 0 ? other : run;
        export->trained_grid = run.grid;
        export->trained_scales = run.scales;
        export->rounding = run.activations;
        export->trained_gguf = run.gguf;
        export->embeddings = run.embeddings;
        TRY(take_ranges(export, o->adapters.items[i], &model, err));
    }
    if (model.prequant == PREQUANT_NONE) return choose(export, &run, err);
    if (o->onto != NULL && strcmp(o->onto, "original") == 0)
        FAIL_USAGE("--onto original: %s is quantized; give the 16-bit model it was made from, or --onto dequantized", o->model);
    export->onto = "dequantized";
    int int8 = model.prequant == PREQUANT_BNB_8BIT;
    export->merging.requantize = int8 && run.quantized; /* such a folder is decoded, then quantized, when a run loads it */
    export->merging.spec = run.spec;
    char text[96];
    (void)snprintf(export->reason, sizeof export->reason, "the folder is quantized; its weights are decoded%s%s",
                   export->merging.requantize ? ", quantized and decoded again as the run did: " : "",
                   export->merging.requantize ? spec_text(&run.spec, text, sizeof text) : "");
    return OK;
}
