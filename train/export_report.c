/* export_report.json, and the same for people. */
#include <math.h>
#include <string.h>

#include "core/file.h"
#include "core/memory.h"
#include "train/calibrate.h"
#include "train/export.h"
#include "train/export_gguf_mix.h"
#include "train/export_grouped.h"
#include "train/weights.h"

static const char *const role_names[EVAL_ROLES] = {"live", "merged", "exported"};

/* A number, or null where there is none. */
static void add_number(Text *out, const char *key, double value) {
    if (isfinite(value))
        text_addf(out, "\"%s\": %.9g", key, value);
    else
        text_addf(out, "\"%s\": null", key);
}

static void add_string(Text *out, const char *key, const char *value) {
    text_addf(out, "\"%s\": ", key);
    text_add_json_string(out, value, strlen(value));
}

static void add_adapters(const Export *export, Text *out) {
    text_adds(out, "  \"adapters\": [");
    for (int i = 0; i < export->merging.count; i++) {
        text_adds(out, i > 0 ? ", {" : "{");
        add_string(out, "path", export->merging.adapters[i]);
        text_addf(out, ", \"weight\": %.9g}", export->merging.weights[i]);
    }
    text_adds(out, "],\n");
}

static const char *type_text(const Export *export) {
    if (export->options->format == EXPORT_NF4) return export->spec.double_quant ? "nf4, double quantization" : "nf4";
    if (export_is_grouped(export->options->format)) return export->spec_text;
    if (export->gguf != NULL) return export->gguf->name;
    return dtype_name(export->type);
}

static void weight_name(const Export *export, int32_t id, char *name, size_t capacity) {
    int64_t rows, cols;
    name[0] = 0;
    (void)weight_describe(merge_model(export->merge), id, name, capacity, &rows, &cols);
}

static void add_weights(const Export *export, Text *out) {
    const ExportProof *proof = &export->proof;
    text_adds(out, ",\n  \"weights\": [");
    for (int32_t i = 0; i < proof->count; i++) {
        const WeightProof *w = &proof->weights[i];
        char name[192];
        weight_name(export, w->id, name, sizeof name);
        text_addf(out, "%s\n    {\"name\": \"%s\", ", i > 0 ? "," : "", name);
        add_number(out, "relative_error", w->error);
        if (w->adapted) {
            text_adds(out, ", ");
            add_number(out, "delta", w->delta);
            text_adds(out, ", ");
            add_number(out, "surviving", w->surviving);
            text_adds(out, ", ");
            add_number(out, "noise", w->noise);
        }
        if (export_is_calibrated(export) && calibration_error(export->calibration, w->id).nearest > 0.0) {
            CalibrationError error = calibration_error(export->calibration, w->id);
            text_adds(out, ", ");
            add_number(out, "output_error", error.found);
            text_adds(out, ", ");
            add_number(out, "output_error_nearest", error.nearest);
        }
        text_adds(out, "}");
    }
    text_adds(out, "\n  ]");
}

static void add_eval(const Export *export, Text *out) {
    const ExportProof *proof = &export->proof;
    text_adds(out, ",\n  \"eval\": {");
    add_string(out, "data", export->options->eval);
    text_addf(out, ", \"tokens\": %lld", (long long)proof->tokens);
    for (int i = 0; i < EVAL_ROLES; i++) {
        const EvalRun *run = &proof->runs[i];
        text_addf(out, ",\n    \"%s\": {", role_names[i]);
        if (run->done) {
            add_number(out, "loss", run->loss);
            text_adds(out, ", ");
            add_number(out, "perplexity", exp(run->loss));
            text_adds(out, ", ");
            add_number(out, "argmax_agreement_with_exported", proof->agreement[i]);
        } else {
            add_string(out, "not_run", run->why_not);
        }
        text_adds(out, "}");
    }
    text_adds(out, "\n  }");
}

void export_report_json(const Export *export, Text *out) {
    const ExportOptions *o = export->options;
    const ExportProof *proof = &export->proof;
    text_adds(out, "{\n  ");
    add_string(out, "model", o->model);
    text_adds(out, ",\n");
    add_adapters(export, out);
    text_adds(out, "  ");
    add_string(out, "format", o->format_name);
    text_adds(out, ", ");
    add_string(out, "type", type_text(export));
    text_adds(out, ", ");
    add_string(out, "out", o->out);
    if (!o->is_adapter) {
        text_adds(out, ",\n  ");
        add_string(out, "onto", export->onto);
        text_adds(out, ", ");
        add_string(out, "onto_reason", export->reason);
    }
    if (export_is_grouped(o->format)) {
        text_adds(out, ",\n  ");
        add_string(out, "quantizer", export_quantizer_name(o->quantizing));
    }
    if (export->calibration != NULL) {
        text_adds(out, ",\n  \"calibration\": {");
        add_string(out, "data", o->calibration);
        text_addf(out, ", \"sequences\": %lld, \"tokens\": %lld}", (long long)calibration_sequences(export->calibration),
                  (long long)calibration_tokens(export->calibration));
    }
    text_addf(out, ",\n  \"linears\": %lld, \"adapted\": %lld, \"bytes\": %llu, \"verified\": %s", (long long)export->linears,
              (long long)export->adapted, (unsigned long long)export->bytes, o->no_verify ? "false" : "true");
    if (proof->count > 0) {
        text_adds(out, ",\n  ");
        add_number(out, "worst_relative_error", proof->worst_error);
        text_adds(out, ", ");
        add_number(out, "surviving", proof->surviving);
        text_addf(out, ", \"mostly_vanished\": %d", (int)proof->vanished);
        add_weights(export, out);
    }
    if (proof->tokens > 0) add_eval(export, out);
    text_adds(out, "\n}\n");
}

Status export_report_write(const Export *export, const char *folder, Error *err) {
    Text text = {0};
    export_report_json(export, &text);
    char *path = path_join(folder, "export_report.json");
    Status status = file_write_atomic(path, text.data, text.length, err);
    memory_free(path);
    text_free(&text);
    return status;
}

/* ---- for people ------------------------------------------------------------------------------------------------------------ */

typedef struct KindRow {
    int32_t count, adapted;
    double worst_error, least_surviving, worst_noise, projection, delta_squares;
} KindRow;

static void add_kinds(const Export *export, Text *out) {
    static const char *const names[LAYER_LINEARS + 1] = {"q_proj",    "k_proj",  "v_proj",    "o_proj",
                                                         "gate_proj", "up_proj", "down_proj", "all else"};
    KindRow rows[LAYER_LINEARS + 1] = {0};
    for (int32_t i = 0; i < export->proof.count; i++) {
        const WeightProof *w = &export->proof.weights[i];
        int kind = w->id >= WEIGHT_GLOBALS ? (w->id - WEIGHT_GLOBALS) % LAYER_WEIGHTS : LAYER_LINEARS;
        KindRow *row = &rows[kind < LAYER_LINEARS ? kind : LAYER_LINEARS];
        row->count++;
        row->worst_error = fmax(row->worst_error, w->error);
        if (!w->adapted) continue;
        row->least_surviving = row->adapted++ == 0 ? w->surviving : fmin(row->least_surviving, w->surviving);
        row->worst_noise = fmax(row->worst_noise, w->noise);
        row->projection += w->projection;
        row->delta_squares += w->delta_squares;
    }
    text_addf(out, "\n%-10s %8s %8s %12s %10s %10s %10s\n", "weights", "count", "adapted", "worst error", "surviving", "least",
              "noise");
    for (int kind = 0; kind <= LAYER_LINEARS; kind++) {
        const KindRow *row = &rows[kind];
        text_addf(out, "%-10s %8d %8d %12.3g", names[kind], (int)row->count, (int)row->adapted, row->worst_error);
        if (row->adapted > 0)
            text_addf(out, " %10.4f %10.4f %10.3g", row->projection / row->delta_squares, row->least_surviving,
                      row->worst_noise);
        text_adds(out, "\n");
    }
    text_adds(
        out,
        "error: |written - merge| / |merge|, the merge in FP32; surviving: how much of the adapters' change is in what was "
        "written (1: all),\nthe least of one weight; noise: what rounding adds to the change, in units of it, the worst.\n");
}

static void add_runs(const Export *export, Text *out) {
    const ExportProof *proof = &export->proof;
    text_addf(out, "\n%s, %lld tokens scored\n%-10s %10s %12s %22s\n", export->options->eval, (long long)proof->tokens, "model",
              "loss", "perplexity", "argmax as exported");
    for (int i = 0; i < EVAL_ROLES; i++) {
        const EvalRun *run = &proof->runs[i];
        if (run->done)
            text_addf(out, "%-10s %10.6f %12.4f %20.2f %%\n", role_names[i], run->loss, exp(run->loss),
                      100.0 * proof->agreement[i]);
        else
            text_addf(out, "%-10s not run: %s\n", role_names[i], run->why_not);
    }
}

void export_report_table(const Export *export, Text *out) {
    const ExportOptions *o = export->options;
    char bytes[32];
    text_addf(out, "%s: %s (%s), %s; %lld of %lld linears changed by %d adapter%s\n", o->out, o->format_name, type_text(export),
              format_bytes((double)export->bytes, bytes, sizeof bytes), (long long)export->adapted, (long long)export->linears,
              export->merging.count, export->merging.count == 1 ? "" : "s");
    if (!o->is_adapter) text_addf(out, "onto %s: %s\n", export->onto, export->reason);
    if (o->no_verify) {
        text_adds(out, "not verified (--no-verify)\n");
        return;
    }
    if (o->is_adapter) text_adds(out, "read back: every value and scale equals what was to be written\n");
    if (export->proof.count > 0) add_kinds(export, out);
    if (export->proof.tokens > 0) add_runs(export, out);
}
