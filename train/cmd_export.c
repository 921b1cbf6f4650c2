/* nibble export: adapters merged into a model, or a model in another format, with a proof of what was written.
 *
 *   OUT.tmp-<pid>: weights, config, tokenizer -> read back, compared -> export_report.json -> renamed to OUT
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "core/file.h"
#include "core/log.h"
#include "train/calibrate.h"
#include "train/commands.h"
#include "train/export.h"
#include "train/export_gguf.h"
#include "train/model.h"
#include "train/qat_ranges.h"
#include "train/export_grouped.h"
#include "train/output_folder.h"
#include "train/signals.h"
#include "train/weights.h"

static const CommandHelp help = {
    .usage = "nibble export MODEL [--adapter DIR]... --format FORMAT --out DIR [options]",
    .summary =
        "Merges adapters into a model (a folder or a GGUF file) and writes it: W + sum of weight x scale x B A in FP32, "
        "rounded "
        "once.\n"
        "Formats: hf (safetensors as transformers reads them), bnb-nf4 (quantized as transformers with bitsandbytes reads "
        "it),\n"
        "gptq, awq and compressed-tensors (grouped integers as GPTQModel, AutoAWQ and vLLM read them; --bits, --group),\n"
        "peft (the adapter itself, normalised), gguf (DIR/model.gguf, as llama.cpp reads it), lora-gguf (DIR/adapter.gguf). "
        "The result is read back and compared with the FP32 merge; export_report.json\n"
        "says what survived, and with --eval what became of a file's loss.",
    .example =
        "nibble export models/TinyLlama-1.1B --adapter runs/first/adapter --format hf --out models/first --eval "
        "held_out.jsonl\n"
        "nibble export models/TinyLlama-1.1B --adapter runs/first/adapter --format bnb-nf4 --out models/first-nf4\n"
        "nibble export models/TinyLlama-1.1B --adapter runs/first/adapter --format gguf --gguf-type Q4_K_M --out models/gguf\n"
        "nibble export models/TinyLlama-1.1B --format compressed-tensors --bits 4 --group 128 --out models/tiny-w4a16\n"
        "nibble export models/TinyLlama-1.1B --format gptq --calibration train.jsonl --act-order --out models/tiny-gptq\n"
        "nibble export BASE --adapter a:0.7 --adapter b:0.3 --format hf --out models/both\n"
        "nibble export models/base.Q4_K_M.gguf --adapter runs/first/adapter --format gguf --out models/first-gguf",
};

/* ---- options -------------------------------------------------------------------------------------------------------------- */

typedef struct FormatInfo {
    const char *name;
    ExportFormat format;
    int is_adapter;
    Status (*write)(Export *export, const char *folder, Error *err);
    const ExportReader *reader; /* NULL: a model folder that merge_open reads */
    int no_eval;                /* nibble cannot run the result yet */
} FormatInfo;

static const FormatInfo formats[] = {
    {"hf", EXPORT_HF, 0, export_hf_write, NULL, 0},
    {"bnb-nf4", EXPORT_NF4, 0, export_nf4_write, NULL, 0},
    {"peft", EXPORT_PEFT, 1, export_peft_write, NULL, 1},
    {"gguf", EXPORT_GGUF, 0, export_gguf_write, &export_gguf_reader, 0},
    {"lora-gguf", EXPORT_LORA_GGUF, 1, export_lora_gguf_write, NULL, 1},
    {"gptq", EXPORT_GPTQ, 0, export_grouped_write, NULL, 0},
    {"awq", EXPORT_AWQ, 0, export_grouped_write, NULL, 0},
    {"compressed-tensors", EXPORT_COMPRESSED, 0, export_grouped_write, NULL, 0},
};
#define FORMATS "hf, bnb-nf4, gptq, awq, compressed-tensors, peft, gguf or lora-gguf"

static const FormatInfo *format_info(ExportFormat format) {
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        if (formats[i].format == format) return &formats[i];
    return NULL;
}

const ExportReader *export_reader(const Export *export) {
    return format_info(export->options->format)->reader;
}

static Status check_format(ExportOptions *o, Error *err) {
    if (o->format_name == NULL) FAIL_USAGE("want --format " FORMATS);
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        if (strcmp(o->format_name, formats[i].name) == 0) {
            o->format = formats[i].format;
            o->is_adapter = formats[i].is_adapter;
            return OK;
        }
    FAIL_USAGE("--format: want " FORMATS ", got \"%.60s\"", o->format_name);
}

static Status check_gguf(const ExportOptions *o, const GgufMix **mix, Error *err) {
    if (o->gguf_type != NULL && o->format != EXPORT_GGUF) FAIL_USAGE("--gguf-type belongs to --format gguf");
    if (o->gguf_embeddings != NULL) {
        static const char *const types[] = {"F32", "F16", "BF16", "Q8_0"};
        size_t i = 0;
        if (o->format != EXPORT_GGUF) FAIL_USAGE("--gguf-embeddings belongs to --format gguf");
        while (i < 4 && strcasecmp(types[i], o->gguf_embeddings) != 0)
            i++;
        if (i == 4) FAIL_USAGE("--gguf-embeddings: want F32, F16, BF16 or Q8_0, got \"%.40s\"", o->gguf_embeddings);
    }
    if (o->format == EXPORT_GGUF) TRY(gguf_mix_named(o->gguf_type, mix, err));
    if (o->eval != NULL && format_info(o->format)->no_eval && !o->is_adapter)
        FAIL_USAGE("--eval: the model in format %s cannot be run here; leave --eval out", o->format_name);
    return OK;
}

static Status check_dtype(ExportOptions *o, Error *err) {
    static const struct {
        const char *name;
        DType type;
    } types[] = {{"bf16", DTYPE_BF16}, {"f16", DTYPE_F16}, {"f32", DTYPE_F32}};
    if (o->dtype_name == NULL) return OK;
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (strcmp(o->dtype_name, types[i].name) == 0) {
            o->dtype = types[i].type;
            o->dtype_given = 1;
        }
    if (!o->dtype_given) FAIL_USAGE("--dtype: want bf16, f16 or f32, got \"%.60s\"", o->dtype_name);
    if (o->format == EXPORT_NF4) FAIL_USAGE("--dtype: bnb-nf4 quantizes the linears and copies the rest; leave --dtype out");
    if (o->format == EXPORT_GGUF || o->format == EXPORT_LORA_GGUF)
        FAIL_USAGE("--dtype: %s", o->is_adapter ? "lora-gguf is written in F32; leave --dtype out" : "gguf takes --gguf-type");
    return OK;
}

/* "DIR:0.7", unless there is a folder of that name. */
static Status take_adapter(ExportOptions *o, int i, const char **weight, Error *err) {
    const char *item = o->adapters.items[i], *colon = strrchr(item, ':');
    if (colon == NULL || colon == item || file_exists(item)) return OK;
    if (*weight != NULL) FAIL_USAGE("--adapter %s has a weight of its own; leave --weight out", item);
    *weight = colon + 1;
    o->adapters.items[i] = o->paths[i] = memory_format("%.*s", (int)(colon - item), item);
    return OK;
}

static Status check_adapters(ExportOptions *o, MergeOptions *merging, Error *err) {
    if (o->adapters.count > MERGE_MAX_ADAPTERS)
        FAIL_USAGE("--adapter: want at most %d, got %d", MERGE_MAX_ADAPTERS, o->adapters.count);
    if (o->weights.count != 0 && o->weights.count != o->adapters.count)
        FAIL_USAGE("--weight: want one for each of the %d adapters, in their order, got %d", o->adapters.count,
                   o->weights.count);
    merging->model = o->model;
    merging->count = o->adapters.count;
    for (int i = 0; i < o->adapters.count; i++) {
        const char *text = o->weights.count > 0 ? o->weights.items[i] : NULL;
        merging->weights[i] = 1.0;
        TRY(take_adapter(o, i, &text, err));
        merging->adapters[i] = o->adapters.items[i];
        if (text == NULL) continue;
        char *end;
        merging->weights[i] = strtod(text, &end);
        if (end == text || *end != 0 || !(fabs(merging->weights[i]) <= 1e6))
            FAIL_USAGE("weight of %s: want a number of at most 1e6, got \"%.60s\"", merging->adapters[i], text);
    }
    return OK;
}

static Status check_peft(const ExportOptions *o, Error *err) {
    if (!o->is_adapter) return OK;
    if (o->adapters.count != 1)
        FAIL_USAGE("--format %s: want one --adapter, got %d; several can be merged into a model (--format hf)", o->format_name,
                   o->adapters.count);
    if (o->weights.count != 0 || o->onto != NULL || o->eval != NULL)
        FAIL_USAGE("--format %s merges nothing; --weight, --onto and --eval do not apply", o->format_name);
    return OK;
}

static Status check_options(ExportOptions *o, MergeOptions *merging, const GgufMix **mix, Error *err) {
    TRY(check_format(o, err));
    TRY(check_gguf(o, mix, err));
    TRY(export_calibrate_check(o, err));
    TRY(check_dtype(o, err));
    TRY(export_grouped_check(o, err));
    if (o->shard_size < 0 || o->shard_size > 1000000)
        FAIL_USAGE("--shard-size: want 1 to 1000000 million bytes, got %lld", (long long)o->shard_size);
    if (o->shard_size != 0 && o->format != EXPORT_HF && !export_is_grouped(o->format))
        FAIL_USAGE("--shard-size belongs to --format hf, gptq, awq and compressed-tensors");
    if (o->out == NULL) FAIL_USAGE("want --out DIR");
    if (o->onto != NULL && strcmp(o->onto, "original") != 0 && strcmp(o->onto, "dequantized") != 0)
        FAIL_USAGE("--onto: want original or dequantized, got \"%.60s\"", o->onto);
    if (o->no_verify && o->eval != NULL) FAIL_USAGE("--eval is part of the verification; leave --no-verify out");
    if (o->threads < 0 || o->threads > 1024) FAIL_USAGE("--threads: want 0 (all) to 1024, got %lld", (long long)o->threads);
    TRY(check_peft(o, err));
    return check_adapters(o, merging, err);
}

/* What an export reads must outlive it. */
static Status check_outside(const ExportOptions *o, const char *input, Error *err) {
    if (output_folder_holds(o->out, input))
        FAIL_USAGE("--out: %s holds %s, which is read; choose another folder", o->out, input);
    return OK;
}

/* A folder that --overwrite may replace: a model's, or an adapter's. */
static Status check_out(const ExportOptions *o, Error *err) {
    TRY(check_outside(o, o->model, err));
    TRY(check_outside(o, o->eval, err));
    TRY(check_outside(o, o->calibration, err));
    for (int i = 0; i < o->adapters.count; i++)
        TRY(check_outside(o, o->adapters.items[i], err));
    if (!o->is_adapter && o->format != EXPORT_GGUF) return output_folder_check(o->out, o->overwrite, err);
    if (folder_is_empty(o->out)) return OK;
    if (!o->overwrite) FAIL_USAGE("%s: is not empty; give --overwrite to replace it", o->out);
    const char *mark = o->format == EXPORT_PEFT   ? "adapter_config.json"
                       : o->format == EXPORT_GGUF ? EXPORT_GGUF_FILE
                                                  : EXPORT_LORA_GGUF_FILE;
    char *marked = path_join(o->out, mark);
    int is_ours = file_exists(marked);
    memory_free(marked);
    if (!is_ours) FAIL_USAGE("%s: has no %s; --overwrite replaces folders of this format only", o->out, mark);
    return OK;
}

/* ---- the work ------------------------------------------------------------------------------------------------------------- */

/* The format of what is written: the grid that the run trained on, else the base's own where it is NF4 already or the run's was,
 * else the usual one. */
static Status choose_spec(Export *export, Error *err) {
    const QuantSpec usual = {.format = WEIGHT_NF4, .double_quant = 1, .block_size = 64};
    MergeWeight first = merge_weight(export->merge, weight_id(0, LAYER_Q));
    export->spec = first.decoded && first.spec.format == WEIGHT_NF4 ? first.spec : usual;
    if (export->trained_grid.format == WEIGHT_NF4) export->spec = export->trained_grid;
    return export_is_grouped(export->options->format) ? export_grouped_choose(export, err) : OK;
}

static void count_linears(Export *export) {
    for (int64_t layer = 0; layer < merge_model(export->merge)->layers; layer++)
        for (int kind = 0; kind < LAYER_LINEARS; kind++) {
            export->linears++;
            export->adapted += merge_weight(export->merge, weight_id(layer, (LayerWeight)kind)).adapted;
        }
}

Status export_interrupted(Error *err) {
    if (!signals_pending()) return OK;
    return error_set(err, ERR_INTERRUPTED, "interrupted; nothing was written");
}

/* What activations were rounded to in training, into config.json where that does not say it yet; what it says already is the
 * same, or was asked for. */
static Status note_rounding(const Export *export, const char *folder, Error *err) {
    const ActivationQuant *rounding = &export->rounding;
    if (export->options->format == EXPORT_GGUF) return OK;
    ModelConfig written;
    TRY(model_config_read(folder, &written, err));
    const ActivationQuant *said = &written.activations;
    int same_cache = rounding->kv_bits == said->kv_bits;
    if (memcmp(rounding, said, sizeof *said) == 0 || (export->options->activations != NULL && same_cache)) return OK;
    ActivationQuant source = merge_model(export->merge)->activations;
    if ((source.bits != 0 || source.kv_bits != 0) && memcmp(rounding, &source, sizeof source) != 0)
        FAIL(
            "%s says that activations are rounded otherwise than the adapter was trained with; remove nibble_activations and "
            "nibble_kv_cache from its config.json",
            export->options->model);
    Text member = {0};
    text_addf(&member, "\"nibble_activations\": \"%s\",\n  \"nibble_kv_cache\": \"%s\"", activation_quant_inputs(rounding),
              activation_quant_cache(rounding));
    if (rounding->fixed) {
        text_adds(&member, ",\n  \"nibble_ranges\": ");
        qat_ranges_print(export->ranges, merge_model(export->merge)->layers * RANGES_PER_LAYER, &member);
    }
    Status status = output_folder_add_to_config(folder, member.data, err);
    text_free(&member);
    return status;
}

static Status fill(void *context, const char *folder, Error *err) {
    Export *export = context;
    const ExportOptions *o = export->options;
    TRY(format_info(o->format)->write(export, folder, err));
    if (o->is_adapter) return export_report_write(export, folder, err);
    TRY(note_rounding(export, folder, err));
    if (!o->no_verify) {
        TRY(export_proof_weights(export, folder, err));
        TRY(export_proof_eval(export, folder, err));
    }
    TRY(export_interrupted(err));
    return export_report_write(export, folder, err);
}

static Status run(Export *export, Error *err) {
    const ExportOptions *o = export->options;
    TRY(cpu_backend(&export->backend, getenv("NIBBLE_CPU"), err));
    TRY(pool_create(&export->pool, (int)o->threads, err));
    if (!o->is_adapter) {
        TRY(export_choose_base(export, err));
        if (o->format == EXPORT_GGUF) TRY(export_gguf_choose(export, err));
        log_info("merging onto %s: %s", export->onto, export->reason);
        TRY(merge_open(&export->merge, &export->merging, &export->backend, export->pool, err));
        TRY(choose_spec(export, err));
        count_linears(export);
        TRY(export_calibrate(export, err));
    }
    TRY(output_folder_write(o->out, o->overwrite, fill, export, err));
    export_proof_warn(export);
    Text out = {0};
    if (o->json)
        export_report_json(export, &out);
    else
        export_report_table(export, &out);
    (void)fwrite(out.data, 1, out.length, stdout);
    text_free(&out);
    return OK;
}

Status command_export(int argc, char **argv, Error *err) {
    ExportOptions o = {0};
    const OptionSpec specs[] = {
        {"adapter", OPTION_LIST, "DIR",
         "a PEFT folder (or GGUF adapter) to merge, for example runs/first/adapter; DIR:W merges W times it", &o.adapters},
        {"weight", OPTION_LIST, "W", "factor of an adapter, in their order; left out: 1", &o.weights},
        {"format", OPTION_STRING, "FORMAT", FORMATS, &o.format_name},
        {"out", OPTION_STRING, "DIR", "the folder to write", &o.out},
        {"onto", OPTION_STRING, "BASE", "original or dequantized; left out: what the run trained on", &o.onto},
        {"dtype", OPTION_STRING, "TYPE", "bf16, f16 or f32 (hf, peft); left out: as it is stored", &o.dtype_name},
        {"gguf-type", OPTION_STRING, "TYPE", "Q4_K_M (left out), F16, Q8_0, ...; a wrong one lists all", &o.gguf_type},
        {"gguf-embeddings", OPTION_STRING, "TYPE",
         "F32, F16, BF16 or Q8_0 for embedding and head; left out: as llama.cpp mixes", &o.gguf_embeddings},
        {"quantizer", OPTION_STRING, "NAME",
         "gptq, awq, compressed-tensors: rtn (left out), mse, percentile, or with --calibration gptq or awq", &o.quantizer},
        {"calibration", OPTION_STRING, "FILE", "data to run through the model: what its inputs are decides how it is rounded",
         &o.calibration},
        {"calibration-samples", OPTION_INTEGER, "N", "sequences of it; left out: 128", &o.calibration_samples},
        {"calibration-tokens", OPTION_INTEGER, "N", "tokens of each at most; left out: 512", &o.calibration_tokens},
        {"act-order", OPTION_FLAG, NULL, "gptq: columns with the largest inputs first", &o.act_order},
        {"static-groups", OPTION_FLAG, NULL, "gptq: scales from the weights as they are given", &o.static_groups},
        {"damping", OPTION_NUMBER, "X", "gptq: added to the inputs' matrix, times its mean diagonal; left out: 0.01",
         &o.damping},
        {"percentile", OPTION_NUMBER, "P", "percentile: where ranges are cut; left out: 99", &o.percentile},
        {"bits", OPTION_INTEGER, "N", "gptq (2, 3, 4, 8), awq (4), compressed-tensors (2 to 8); left out: 4", &o.bits},
        {"group", OPTION_INTEGER, "N", "columns that share a scale, -1: a row; left out: 128, 64 or 32, as widths allow",
         &o.group},
        {"sym", OPTION_FLAG, NULL, "no zero points (gptq, compressed-tensors unless --asym)", &o.symmetric},
        {"asym", OPTION_FLAG, NULL, "zero points (awq unless --sym)", &o.asymmetric},
        {"activations", OPTION_STRING, "TYPE", "compressed-tensors: int8 writes W8A8, served with int8 per token",
         &o.activations},
        {"shard-size", OPTION_INTEGER, "N",
         "hf, gptq, awq, compressed-tensors: files of at most N million bytes; left out: 5000", &o.shard_size},
        {"eval", OPTION_STRING, "FILE", "loss and most likely tokens before and after, on this file", &o.eval},
        {"no-verify", OPTION_FLAG, NULL, "do not read the result back", &o.no_verify},
        {"threads", OPTION_INTEGER, "N", "threads; 0: all that this process may use", &o.threads},
        {"overwrite", OPTION_FLAG, NULL, "replace DIR when it is not empty", &o.overwrite},
        {"json", OPTION_FLAG, NULL, "print the report as JSON", &o.json},
    };
    int count, helped;
    TRY(options_parse(argc, argv, &help, specs, sizeof specs / sizeof *specs, &o.model, 1, 1, &count, &helped, err));
    if (helped) return OK;
    Export export = {.options = &o};
    Status status = check_options(&o, &export.merging, &export.gguf, err);
    if (status == OK) status = check_out(&o, err);
    signals_install();
    if (status == OK) status = run(&export, err);
    for (int i = 0; i < MERGE_MAX_ADAPTERS; i++)
        memory_free(o.paths[i]);
    export_proof_free(&export.proof);
    calibration_free(export.calibration);
    merge_close(export.merge);
    memory_free(export.ranges);
    pool_free(export.pool);
    return status;
}
