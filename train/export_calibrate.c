/* --quantizer and --calibration: what they may be given with, the run over the calibration's data before anything is written, and
 * the codes of a weight by whatever was chosen. */
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "train/calibrate.h"
#include "train/export_grouped.h"
#include "train/weights.h"

static const char *const quantizer_names[] = {[QUANTIZER_NEAREST] = "rtn",
                                              [QUANTIZER_GPTQ] = "gptq",
                                              [QUANTIZER_AWQ] = "awq",
                                              [QUANTIZER_MSE] = "mse",
                                              [QUANTIZER_PERCENTILE] = "percentile"};
#define QUANTIZERS ((int)(sizeof quantizer_names / sizeof *quantizer_names))

const char *export_quantizer_name(Quantizing quantizer) {
    return quantizer_names[quantizer];
}

/* ---- options --------------------------------------------------------------------------------------------------------------- */

static Status check_counts(const ExportOptions *o, Error *err) {
    if (o->calibration == NULL && (o->calibration_samples != 0 || o->calibration_tokens != 0))
        FAIL_USAGE("--calibration-samples and --calibration-tokens belong to --calibration FILE");
    if (o->calibration_samples < 0 || o->calibration_samples > 1000000)
        FAIL_USAGE("--calibration-samples: want 1 to 1000000, got %lld", (long long)o->calibration_samples);
    if (o->calibration_tokens < 0 || o->calibration_tokens > 1000000)
        FAIL_USAGE("--calibration-tokens: want 1 to 1000000, got %lld", (long long)o->calibration_tokens);
    return OK;
}

/* What is taken where nothing is said: the format's own method where there are data for it. */
static Quantizing usual_quantizer(const ExportOptions *o) {
    if (o->calibration == NULL) return QUANTIZER_NEAREST;
    return o->format == EXPORT_AWQ ? QUANTIZER_AWQ : QUANTIZER_GPTQ;
}

static Status choose_quantizer(ExportOptions *o, Error *err) {
    o->quantizing = usual_quantizer(o);
    if (o->quantizer == NULL) return OK;
    for (int i = 0; i < QUANTIZERS; i++)
        if (strcmp(o->quantizer, quantizer_names[i]) == 0) {
            o->quantizing = (Quantizing)i;
            return OK;
        }
    FAIL_USAGE("--quantizer: want rtn, gptq, awq, mse or percentile, got \"%.60s\"", o->quantizer);
}

static Status check_details(const ExportOptions *o, Error *err) {
    int gptq = o->quantizing == QUANTIZER_GPTQ;
    if (!gptq && (o->act_order || o->static_groups || o->damping != 0.0))
        FAIL_USAGE("--act-order, --static-groups and --damping belong to --quantizer gptq");
    if (o->damping != 0.0 && !(o->damping > 0.0 && o->damping <= 1.0))
        FAIL_USAGE("--damping: want a number above 0 and at most 1, got %g", o->damping);
    if (o->act_order && !o->static_groups && o->format == EXPORT_AWQ)
        FAIL_USAGE("--act-order: awq folders have their groups in the columns' own order; add --static-groups");
    if (o->percentile != 0.0 && o->quantizing != QUANTIZER_PERCENTILE)
        FAIL_USAGE("--percentile belongs to --quantizer percentile");
    if (o->percentile != 0.0 && !(o->percentile > 50.0 && o->percentile <= 100.0))
        FAIL_USAGE("--percentile: want a number above 50 and at most 100, got %g", o->percentile);
    return OK;
}

Status export_calibrate_check(ExportOptions *o, Error *err) {
    int details = o->act_order || o->static_groups || o->damping != 0.0 || o->percentile != 0.0;
    TRY(check_counts(o, err));
    if (!export_is_grouped(o->format)) {
        if (o->quantizer != NULL || details)
            FAIL_USAGE("--quantizer and its details belong to --format gptq, awq and compressed-tensors");
        if (o->calibration != NULL && o->format != EXPORT_GGUF)
            FAIL_USAGE("--calibration: format %s rounds without looking at data; leave it out", o->format_name);
        return OK;
    }
    TRY(choose_quantizer(o, err));
    if ((o->quantizing == QUANTIZER_GPTQ || o->quantizing == QUANTIZER_AWQ) && o->calibration == NULL)
        FAIL_USAGE("--quantizer %s looks at what the weights are multiplied with; give --calibration FILE", o->quantizer);
    if ((o->quantizing == QUANTIZER_NEAREST || o->quantizing == QUANTIZER_PERCENTILE) && o->calibration != NULL)
        FAIL_USAGE("--quantizer %s does not look at data; leave --calibration out", o->quantizer);
    return check_details(o, err);
}

/* ---- the run ----------------------------------------------------------------------------------------------------------------- */

static Status check_base(const Export *export, Error *err) {
    const ExportOptions *o = export->options;
    if (!export_is_grouped(o->format) || o->quantizing == QUANTIZER_NEAREST) return OK;
    if (prequant_is_grouped(merge_model(export->merge)->prequant))
        FAIL_USAGE("--quantizer %s: %s holds grouped integers already; quantize the model that they were made from",
                   quantizer_names[o->quantizing], o->model);
    if (export->trained_scales)
        FAIL_USAGE("--quantizer %s: the adapter's run has learned its scales; leave it out", quantizer_names[o->quantizing]);
    return OK;
}

static CalibrationMethod method_of(const ExportOptions *o) {
    if (o->format == EXPORT_GGUF || o->quantizing == QUANTIZER_MSE) return CALIBRATE_IMPORTANCE;
    return o->quantizing == QUANTIZER_AWQ ? CALIBRATE_AWQ : CALIBRATE_GPTQ;
}

Status export_calibrate(Export *export, Error *err) {
    const ExportOptions *o = export->options;
    size_t used = strlen(export->spec_text);
    TRY(check_base(export, err));
    if (o->quantizing != QUANTIZER_NEAREST)
        (void)snprintf(export->spec_text + used, sizeof export->spec_text - used, ", %s", quantizer_names[o->quantizing]);
    if (o->calibration == NULL) return OK;
    MergeWeight norm = merge_weight(export->merge, weight_id(0, LAYER_INPUT_NORM));
    CalibrationOptions options = {.method = method_of(o),
                                  .model = o->model,
                                  .data = o->calibration,
                                  .samples = o->calibration_samples != 0 ? o->calibration_samples : CALIBRATION_SAMPLES,
                                  .tokens = o->calibration_tokens != 0 ? o->calibration_tokens : CALIBRATION_TOKENS,
                                  .damping = o->damping != 0.0 ? o->damping : 0.01,
                                  .act_order = o->act_order,
                                  .gptq = {.static_groups = o->static_groups},
                                  .vectors = norm.file->dtype,
                                  .interrupted = export_interrupted};
    if (export_is_grouped(o->format)) options.grid = quant_spec_grid(&export->spec);
    return calibration_run(&export->calibration, &options, export->merge, &export->backend, export->pool, err);
}

/* ---- codes ------------------------------------------------------------------------------------------------------------------- */

int export_is_calibrated(const Export *export) {
    const ExportOptions *o = export->options;
    return export_is_grouped(o->format) && (o->quantizing == QUANTIZER_GPTQ || o->quantizing == QUANTIZER_AWQ);
}

int export_is_ordered(const Export *export, int64_t cols) {
    const ExportOptions *o = export->options;
    return o->act_order && !o->static_groups && export->spec.block_size > 0 && export->spec.block_size < cols;
}

void export_transform(const Export *export, int32_t id, int64_t first, int64_t count, int64_t cols, float *rows) {
    if (export_is_calibrated(export)) calibration_transform(export->calibration, id, first, count, cols, rows);
}

typedef struct ClippedRows {
    Clip clip;
    GroupIntTensor *tensor;
    const float *values, *importance;
    float *scratch; /* [threads, cols] */
    int64_t first;
    _Atomic int bad;
} ClippedRows;

static void clipped_row(void *context, int64_t item, int worker) {
    ClippedRows *job = context;
    int64_t cols = job->tensor->cols;
    if (clip_quantize_row(&job->clip, job->tensor, job->first + item, job->values + item * cols, job->importance,
                          job->scratch + worker * cols) != 0)
        atomic_store(&job->bad, 1);
}

static Status quantize_clipped(Export *export, int32_t id, GroupIntTensor *tensor, Error *err) {
    const ExportOptions *o = export->options;
    MergeWeight weight = merge_weight(export->merge, id);
    int64_t slab = merge_slab_rows(export->merge, id), values = slab * weight.cols;
    float *rows = memory_alloc((size_t)(2 * values) * sizeof *rows), *merged = rows + values;
    GroupInt grid = quant_spec_grid(&export->spec);
    ClippedRows job = {.clip = {.method = o->quantizing == QUANTIZER_MSE ? CLIP_MSE : CLIP_PERCENTILE,
                                .percentile = o->percentile != 0.0 ? o->percentile : CLIP_USUAL_PERCENTILE},
                       .tensor = tensor,
                       .values = weight.adapted ? merged : rows};
    if (export->calibration != NULL) job.importance = calibration_importance(export->calibration, id);
    job.scratch = memory_alloc((size_t)(pool_threads(export->pool) * weight.cols) * sizeof *job.scratch);
    Status status = group_int_alloc(tensor, &grid, weight.rows, weight.cols, err);
    for (; job.first < weight.rows && status == OK; job.first += slab) {
        int64_t count = weight.rows - job.first < slab ? weight.rows - job.first : slab;
        status = merge_rows(export->merge, job.first, count, rows, weight.adapted ? merged : NULL, err);
        if (status == OK) pool_run(export->pool, clipped_row, &job, count);
        if (job.bad)
            status = error_set(err, ERR_FAILED, "rows from %lld on: a group needs a scale that %s does not hold",
                               (long long)job.first, dtype_name(grid.scale_type));
    }
    memory_free(job.scratch);
    memory_free(rows);
    return status;
}

Status export_quantize_linear(Export *export, int32_t id, QuantizedTensor *out, Error *err) {
    const ExportOptions *o = export->options;
    GroupIntTensor tensor = {0};
    Status status;
    if (o->quantizing == QUANTIZER_NEAREST) return merge_quantize(export->merge, 1, out, err);
    if (export_is_calibrated(export))
        status = calibration_take_tensor(export->calibration, id, &tensor, err);
    else
        status = quantize_clipped(export, id, &tensor, err);
    if (status == OK) status = quantized_store(out, &tensor, err);
    group_int_free(&tensor);
    return status;
}
