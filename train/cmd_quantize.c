/* nibble quantize: a model folder with its linears in bitsandbytes' formats, which transformers and this program load.
 *
 *   linears              codes and constants, quant_state (4 bit), or SCB (LLM.int8)
 *   everything else      the source's bytes, unchanged: embedding, head, norms, biases, tokenizer, generation settings
 *   config.json          the source's text with a quantization_config added at its end
 */
#include <stdio.h>
#include <string.h>

#include "core/log.h"
#include "core/text.h"
#include "train/commands.h"
#include "train/options.h"
#include "train/output_folder.h"
#include "train/quantize_folder.h"

typedef struct Options {
    const char *device, *type, *out;
    int no_double_quant, overwrite, json;
    int64_t block_size, threads; /* block_size 0: not given */
} Options;

static Status check_options(const Options *options, QuantSpec *spec, Error *err) {
    int int8 = strcmp(options->type, "int8") == 0, fp4 = strcmp(options->type, "fp4") == 0;
    if (!int8 && !fp4 && strcmp(options->type, "nf4") != 0)
        FAIL_USAGE("--type: want nf4, fp4 or int8, got \"%.60s\" (int4 has no bitsandbytes folder)", options->type);
    if (options->out == NULL) FAIL_USAGE("want --out DIR");
    if (int8 && options->no_double_quant) FAIL_USAGE("--no-double-quant: int8 has no double quantization");
    if (int8 && options->block_size != 0) FAIL_USAGE("--block-size: int8 has one scale a row, no blocks");
    if (options->block_size < 0 || options->block_size > 4096)
        FAIL_USAGE("--block-size: want a power of two from 32 to 4096, got %lld", (long long)options->block_size);
    if (strcmp(options->device, "auto") != 0 && strcmp(options->device, "cpu") != 0)
        FAIL_USAGE("--device %.60s is not supported yet: this build runs on cpu", options->device);
    if (options->threads < 0 || options->threads > 1024)
        FAIL_USAGE("--threads: want 0 to 1024, got %lld", (long long)options->threads);
    *spec = (QuantSpec){.format = int8  ? WEIGHT_INT8
                                  : fp4 ? WEIGHT_FP4
                                        : WEIGHT_NF4,
                        .double_quant = !int8 && !options->no_double_quant,
                        .block_size = options->block_size == 0 ? 64 : (int32_t)options->block_size};
    if (quant_check(spec, 1, 1, err) == OK) return OK;
    return err == NULL ? ERR_USAGE : (err->status = ERR_USAGE);
}

static void print_result(const Options *options, const char *model, const QuantSpec *spec, const QuantizedFolder *folder) {
    char before[32], after[32];
    if (options->json) {
        Text text = {0};
        text_adds(&text, "{\"model\": ");
        text_add_json_string(&text, model, strlen(model));
        text_adds(&text, ", \"out\": ");
        text_add_json_string(&text, options->out, strlen(options->out));
        text_addf(&text, ", \"type\": \"%s\", \"double_quant\": %s", options->type, spec->double_quant ? "true" : "false");
        if (spec->format != WEIGHT_INT8) text_addf(&text, ", \"block_size\": %d", (int)spec->block_size);
        text_addf(&text, ", \"linears\": %lld, \"bytes_before\": %llu, \"bytes\": %llu}", (long long)folder->linears,
                  (unsigned long long)folder->bytes_before, (unsigned long long)folder->bytes);
        puts(text.data);
        text_free(&text);
        return;
    }
    printf("%s: %lld linears in %s%s, %s instead of %s\n", options->out, (long long)folder->linears, options->type,
           spec->double_quant ? " with double quantization" : "", format_bytes((double)folder->bytes, after, sizeof after),
           format_bytes((double)folder->bytes_before, before, sizeof before));
}

typedef struct Job {
    const char *model;
    const QuantSpec *spec;
    Backend backend;
    Pool *pool;
    QuantizedFolder result;
} Job;

static Status fill(void *context, const char *folder, Error *err) {
    Job *job = context;
    return quantize_folder(job->model, folder, job->spec, &job->backend, job->pool, &job->result, err);
}

static Status run(const Options *options, const char *model, const QuantSpec *spec, Error *err) {
    Job job = {.model = model, .spec = spec};
    TRY(cpu_backend(&job.backend, NULL, err));
    TRY(pool_create(&job.pool, (int)options->threads, err));
    Status status = output_folder_write(options->out, options->overwrite, fill, &job, err);
    if (status == OK) print_result(options, model, spec, &job.result);
    pool_free(job.pool);
    return status;
}

Status command_quantize(int argc, char **argv, Error *err) {
    Options options = {.device = "auto", .type = "nf4"};
    const char *model = NULL;
    int count, helped;
    const OptionSpec specs[] = {
        {"out", OPTION_STRING, "DIR", "the folder to write", &options.out},
        {"type", OPTION_STRING, "TYPE", "nf4, fp4 or int8", &options.type},
        {"no-double-quant", OPTION_FLAG, NULL, "keep the blocks' constants in FP32 (nf4, fp4)", &options.no_double_quant},
        {"block-size", OPTION_INTEGER, "N", "32 to 4096, a power of two; left out: 64 (nf4, fp4)", &options.block_size},
        {"device", OPTION_STRING, "NAME", "auto or cpu", &options.device},
        {"threads", OPTION_INTEGER, "N", "threads; 0: all that this process may use", &options.threads},
        {"overwrite", OPTION_FLAG, NULL, "replace DIR when it is not empty", &options.overwrite},
        {"json", OPTION_FLAG, NULL, "print the result as JSON", &options.json},
    };
    const CommandHelp help = {
        .usage = "nibble quantize MODEL --out DIR [options]",
        .summary = "Writes a pre-quantized model folder that transformers with bitsandbytes loads.",
        .example = "nibble quantize models/Llama-3.1-8B --out models/Llama-3.1-8B-nf4",
    };
    TRY(options_parse(argc, argv, &help, specs, sizeof specs / sizeof *specs, &model, 1, 1, &count, &helped, err));
    if (helped) return OK;
    QuantSpec spec;
    TRY(check_options(&options, &spec, err));
    TRY(output_folder_check(options.out, options.overwrite, err));
    return run(&options, model, &spec, err);
}
