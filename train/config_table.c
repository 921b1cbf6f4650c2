#include "train/config_table.h"

#include <string.h>

#include "data/dataset.h"
#include "data/template.h"

#define LIST(...) ((const char *const[]){__VA_ARGS__, NULL})
#define AT(field) .offset = offsetof(Config, field)
#define COUNT_AT(field) .count_offset = offsetof(Config, field)
#define RANGE(low, high) .minimum = (low), .maximum = (high)
/* The greatest integer up to which a double, which is what the parser hands over, holds every one. */
#define EXACT_MAX 9007199254740991.0
#define TOKENS_MAX 16777216.0 /* of a micro-batch: its positions stay well inside 32 bits */
#define STEPS_MAX 1e9

const ConfigSection config_sections[] = {
    {"model", "The base model."},
    {"quant", "How the frozen base is stored (method qlora)."},
    {"lora", "The adapters (methods qlora and lora)."},
    {"data", "What is trained on."},
    {"train", "The optimizer and the run."},
    {"qat", "Quantization-aware training."},
    {"distributed", "More than one process."},
    {"output", "Where the run folder goes."},
};
const int config_section_count = (int)(sizeof config_sections / sizeof *config_sections);

const ConfigKey config_keys[] = {
    {"device", KEY_CHOICE, AT(device), .fallback = "\"auto\"", .choices = LIST("auto", "cpu", "cuda", "emu"),
     .help = "What computes. auto: the best there is."},
    {"precision", KEY_CHOICE, AT(precision), .fallback = "\"auto\"", .choices = LIST("auto", "bf16", "f32"),
     .help = "Rounding of weights and activations. f32 rounds nothing; auto: bf16."},
    {"seed", KEY_INTEGER, AT(seed), .fallback = "1234", RANGE(0, EXACT_MAX),
     .help = "Decides every random number: order, dropout, adapters, split, samples."},
    {"method", KEY_CHOICE, AT(method), .fallback = "\"qlora\"", .choices = LIST("qlora", "lora", "full"),
     .help = "qlora: adapters on a quantized base; lora: on a 16-bit base; full: every parameter is trained."},

    {"model.path", KEY_STRING, AT(model.path), .fallback = "\"models/Llama-3.1-8B\"",
     .help = "A Hugging Face model folder, or a GGUF file, whose quantized weights stay as they are."},
    {"model.arch", KEY_STRING, AT(model.arch), .fallback = "null", .nullable = 1,
     .help = "A config.json with the model's shape, for `nibble plan` where model.path is not there."},

    {"quant.type", KEY_CHOICE, AT(quant.type), .fallback = "\"nf4\"", .choices = LIST("nf4", "fp4", "int8", "int4"),
     .help = "Code of the frozen base. nf4, fp4: 4-bit floats in blocks; int8: one scale a row; int4: symmetric groups."},
    {"quant.double_quant", KEY_BOOL, AT(quant.double_quant), .fallback = "true",
     .help = "Quantize the block constants of nf4 and fp4 to 8 bits as well (int8 and int4 have none of it)."},
    {"quant.block_size", KEY_INTEGER, AT(quant.block_size), .fallback = "64", RANGE(32, 4096),
     .help = "Weights that share a constant: a power of two; int4: 32, 64 or 128."},

    {"lora.rank", KEY_INTEGER, AT(lora.rank), .fallback = "16", RANGE(1, 4096), .help = "Rank of the adapters."},
    {"lora.alpha", KEY_NUMBER, AT(lora.alpha), .fallback = "32", RANGE(0, 1e6), .above_minimum = 1,
     .help = "The adapter's product is scaled by alpha / rank."},
    {"lora.dropout", KEY_NUMBER, AT(lora.dropout), .fallback = "0.0", RANGE(0, 1), .below_maximum = 1,
     .help = "Probability that a feature of an adapter's input is dropped while training."},
    {"lora.use_rslora", KEY_BOOL, AT(lora.use_rslora), .fallback = "false",
     .help = "Scale by alpha / sqrt(rank) instead (rank-stabilized LoRA)."},
    {"lora.target_modules", KEY_NAMES, AT(lora.target_modules), COUNT_AT(lora.target_count), .fallback = "\"all-linear\"",
     .choices = LIST("all-linear", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
     .help = "The linear layers that get adapters: \"all-linear\", a name, or a list of names."},
    {"lora.layers", KEY_LAYERS, AT(lora.layers), COUNT_AT(lora.layer_count), .fallback = "[]", RANGE(0, CONFIG_MAX_LAYERS - 1),
     .help = "Numbers of the layers that get adapters, counted from 0; empty: all."},
    {"lora.init", KEY_STRING, AT(lora.init), .fallback = "null", .nullable = 1,
     .help = "A folder with an adapter to start from; null: A random, B zero, as PEFT does."},

    {"data.path", KEY_PATHS, AT(data.path), COUNT_AT(data.path_count), .fallback = "\"train.jsonl\"",
     RANGE(0, DATASET_WEIGHT_MAX), .above_minimum = 1,
     .help =
         "A JSONL, JSON, CSV, TSV or text file, also as .gz or .zst; a pattern (\"part-*.jsonl\"); or a list of these and of "
         "{\"path\", \"weight\"}: how often an epoch has each sequence (1: once; 0.5: a random half)."},
    {"data.eval_path", KEY_STRING, AT(data.eval_path), .fallback = "null", .nullable = 1,
     .help = "Another such file or pattern for evaluation; null: a part of data.path is held out."},
    {"data.eval_fraction", KEY_NUMBER, AT(data.eval_fraction), .fallback = "0.02", RANGE(0, 0.5),
     .help = "The part that is held out of data.path; 0: none."},
    {"data.layout", KEY_CHOICE, AT(data.layout), .fallback = "\"auto\"",
     .choices = LIST("auto", "alpaca", "messages", "sharegpt", "prompt_completion", "question_answer", "text", "preference"),
     .help = "What a record looks like; auto: by the fields of each file's first one. preference is read and checked only."},
    {"data.template", KEY_CHOICE, AT(data.template_name), .fallback = "\"auto\"", .automatic = 1, .choices = template_names,
     .help = "The chat template; auto: the model's own, else by the layout and the vocabulary. Tools need the model's own."},
    {"data.train_on", KEY_CHOICE, AT(data.train_on), .fallback = "\"assistant\"", .choices = LIST("assistant", "all", "last"),
     .help = "Which tokens count in the loss: the assistant's turns, everything, or the last turn of the assistant."},
    {"data.max_length", KEY_INTEGER, AT(data.max_length), .fallback = "\"auto\"", RANGE(2, TOKENS_MAX), .automatic = 1,
     .help = "Tokens of one sequence at most. auto: the least of 2048, the model's context and train.micro_batch_tokens."},
    {"data.too_long", KEY_CHOICE, AT(data.too_long), .fallback = "\"auto\"",
     .choices = LIST("auto", "truncate", "split", "drop"),
     .help =
         "Sequences over data.max_length: cut on the right, split (plain text only) or dropped, and counted. auto: split plain "
         "text, truncate the rest."},
    {"data.document_eos", KEY_BOOL, AT(data.document_eos), .fallback = "true",
     .help = "Plain text: end every document with the EOS token, and train it. false suits a base that knows no end."},
    {"data.packing", KEY_CHOICE, AT(data.packing), .fallback = "\"best-fit\"", .choices = LIST("best-fit", "none"),
     .help = "best-fit: several sequences share a micro-batch, each seeing only itself; none: one each, neighbours alike in "
             "length."},
    {"data.on_error", KEY_CHOICE, AT(data.on_error), .fallback = "\"fail\"", .choices = LIST("fail", "skip"),
     .help = "What a bad record does: stop with its line, or be skipped and counted."},
    {"data.cache", KEY_STRING, AT(data.cache), .fallback = "\"auto\"",
     .help =
         "Where tokenized data are kept: a folder; off: in memory, tokenized in every run; auto: $XDG_CACHE_HOME/nibble/tokens "
         "(~/.cache/nibble/tokens) for data of 64 MiB or more, else off."},

    {"train.steps", KEY_INTEGER, AT(train.steps), .fallback = "0", RANGE(0, STEPS_MAX),
     .help = "Optimizer steps; 0: as many as train.epochs takes."},
    {"train.epochs", KEY_NUMBER, AT(train.epochs), .fallback = "1", RANGE(0, 1e6), .above_minimum = 1,
     .help = "Passes over the data, where train.steps is 0."},
    {"train.lr", KEY_NUMBER, AT(train.lr), .fallback = "2e-4", RANGE(0, 10), .help = "Learning rate after the warm-up."},
    {"train.min_lr_ratio", KEY_NUMBER, AT(train.min_lr_ratio), .fallback = "0.0", RANGE(0, 1),
     .help = "The schedule ends at this part of train.lr (not for constant)."},
    {"train.schedule", KEY_CHOICE, AT(train.schedule), .fallback = "\"cosine\"",
     .choices = LIST("constant", "linear", "cosine", "wsd"),
     .help = "Course of the learning rate after the warm-up; wsd: stable, then a linear decay."},
    {"train.warmup", KEY_NUMBER, AT(train.warmup), .fallback = "0.03", RANGE(0, STEPS_MAX),
     .help = "Linear warm-up: below 1 a part of the run, from 1 on a number of steps."},
    {"train.decay_ratio", KEY_NUMBER, AT(train.decay_ratio), .fallback = "0.2", RANGE(0, 1),
     .help = "wsd: the last part of the run, in which the rate decays."},
    {"train.weight_decay", KEY_NUMBER, AT(train.weight_decay), .fallback = "0.0", RANGE(0, 10),
     .help = "Decoupled weight decay of AdamW."},
    {"train.beta1", KEY_NUMBER, AT(train.beta1), .fallback = "0.9", RANGE(0, 1), .below_maximum = 1,
     .help = "AdamW: decay of the first moment."},
    {"train.beta2", KEY_NUMBER, AT(train.beta2), .fallback = "0.999", RANGE(0, 1), .below_maximum = 1,
     .help = "AdamW: decay of the second moment."},
    {"train.epsilon", KEY_NUMBER, AT(train.epsilon), .fallback = "1e-8", RANGE(0, 1), .above_minimum = 1,
     .help = "AdamW: added to the root of the second moment."},
    {"train.max_grad_norm", KEY_NUMBER, AT(train.max_grad_norm), .fallback = "1.0", RANGE(0, 1e9),
     .help = "Gradients are scaled down to this global norm; 0: never."},
    {"train.micro_batch_tokens", KEY_INTEGER, AT(train.micro_batch_tokens), .fallback = "4096", RANGE(8, TOKENS_MAX),
     .automatic = 1,
     .help =
         "Tokens of one micro-batch, which is the packing window. Memory grows with it. auto: the largest power of two up to "
         "8192 that fits (not with several ranks); a step's tokens then depend on the machine."},
    {"train.gradient_accumulation", KEY_INTEGER, AT(train.gradient_accumulation), .fallback = "4", RANGE(1, 65536),
     .help = "Micro-batches of one optimizer step, over all ranks."},
    {"train.eval_every", KEY_INTEGER, AT(train.eval_every), .fallback = "100", RANGE(0, STEPS_MAX),
     .help = "Steps between evaluations; 0: only before the first step and at the end."},
    {"train.save_every", KEY_INTEGER, AT(train.save_every), .fallback = "200", RANGE(0, STEPS_MAX),
     .help = "Steps between checkpoints; 0: only at the end, or by train.save_minutes."},
    {"train.save_minutes", KEY_NUMBER, AT(train.save_minutes), .fallback = "0", RANGE(0, 1e6),
     .help = "Minutes between checkpoints as well; 0: by steps only."},
    {"train.keep_last", KEY_INTEGER, AT(train.keep_last), .fallback = "3", RANGE(1, 10000),
     .help = "Checkpoints that are kept."},
    {"train.save_best", KEY_BOOL, AT(train.save_best), .fallback = "false",
     .help = "Keep the adapter with the least evaluation loss as well."},
    {"train.max_bad_steps", KEY_INTEGER, AT(train.max_bad_steps), .fallback = "5", RANGE(1, 1e6),
     .help = "Steps in a row with a NaN or Inf (each is skipped) after which the run saves and stops."},
    {"train.recompute", KEY_CHOICE, AT(train.recompute), .fallback = "\"auto\"",
     .choices = LIST("auto", "none", "light", "layers", "host"),
     .help =
         "What the backward pass computes again instead of keeping it: light, results of norms and gates; layers, every "
         "activation of a layer; auto: as little as fits. host: as layers, and, beside a device, the layers' inputs wait in "
         "pinned host memory meanwhile. No bit depends on it."},
    {"train.dequantized_layers", KEY_INTEGER, AT(train.dequantized_layers), .fallback = "\"auto\"", RANGE(0, CONFIG_MAX_LAYERS),
     .automatic = 1,
     .help =
         "On a device: layers whose weights stay dequantized beside their packed form. auto: as many as fit when nothing is "
         "recomputed. No bit depends on it."},
    {"train.memory", KEY_STRING, AT(train.memory), .fallback = "\"auto\"",
     .help = "Memory the run may take: a size such as \"16GiB\"; auto: what the machine (or the device) leaves."},
    {"train.init", KEY_CHOICE, AT(train.init), .fallback = "\"model\"", .choices = LIST("model", "random"),
     .help = "Method full: start from the model's weights, or from random ones drawn from the seed."},
    {"train.loss", KEY_CHOICE, AT(train.loss), .fallback = "\"cross_entropy\"", .choices = LIST("cross_entropy", "distill"),
     .help = "distill: the divergence from the base model's own distribution, unquantized and without the adapter, at every "
             "trained token (KL, temperature 1). Evaluations show the cross-entropy in any case."},
    {"train.samples", KEY_INTEGER, AT(train.samples), .fallback = "3", RANGE(0, 100),
     .help = "Held-out prompts whose answers before and after are shown in the report."},

    {"qat.mode", KEY_CHOICE, AT(qat.mode), .fallback = "\"none\"", .choices = LIST("none", "merged", "separate"),
     .help =
         "Train against the low-bit model that will be exported. merged: every linear computes with the quantized sum of base "
         "and adapter; separate: with the quantized base, and the adapter beside it."},
    {"qat.weights", KEY_CHOICE, AT(qat.weights), .fallback = "\"int4\"",
     .choices = LIST("int4", "int3", "int2", "int8", "nf4", "q4_0", "q8_0", "q4_k", "mxfp4", "nvfp4"),
     .pending = LIST("mxfp4", "nvfp4"), .pending_reason = "take int4, nf4 or q4_0",
     .help = "The format that is trained for. int2, int3, int4: groups; int8: one scale a row; nf4; ggml's q4_0, q8_0, q4_k."},
    {"qat.group_size", KEY_INTEGER, AT(qat.group_size), .fallback = "32", RANGE(32, 128),
     .help = "int2, int3, int4: weights that share a scale: 32, 64 or 128."},
    {"qat.symmetric", KEY_BOOL, AT(qat.symmetric), .fallback = "true",
     .help = "Integer grids: ranges around zero; false: with zero points."},
    {"qat.double_quant", KEY_BOOL, AT(qat.double_quant), .fallback = "true",
     .help = "nf4: quantize the block constants as well."},
    {"qat.scales", KEY_CHOICE, AT(qat.scales), .fallback = "\"absmax\"", .choices = LIST("absmax", "mse", "gptq"),
     .help =
         "Where scales come from. absmax: from the weights as they are in each step (q4_k: ggml's search). mse: symmetric "
         "integer grids: the range with the least squared error for the base's own values, found once. gptq: the scales of a "
         "base that is a folder of gptq or compressed-tensors with the same bits and groups: the run starts on its grid."},
    {"qat.learn_scales", KEY_BOOL, AT(qat.learn_scales), .fallback = "false",
     .help = "Symmetric integer grids: train the scales as well (LSQ), each as a factor on the scale of the base's own group."},
    {"qat.activations", KEY_CHOICE, AT(qat.activations), .fallback = "\"none\"",
     .choices = LIST("none", "int8", "int8-asymmetric", "int8-static"),
     .help = "Round the inputs of the layers' linears as well: int8 with a scale per token, from the values at hand; static: "
             "with a "
             "scale per input, found before the first step."},
    {"qat.ranges", KEY_CHOICE, AT(qat.ranges), .fallback = "\"absmax\"", .choices = LIST("absmax", "percentile", "std", "mse"),
     .help = "int8-static: where ranges come from. percentile and std (mean +- k standard deviations) take qat.range_value."},
    {"qat.range_value", KEY_NUMBER, AT(qat.range_value), .fallback = "0", RANGE(0, 100),
     .help = "percentile: how many percent lie inside (0: 99.99); std: k (0: 6)."},
    {"qat.range_batches", KEY_INTEGER, AT(qat.range_batches), .fallback = "8", RANGE(1, 100000),
     .help = "int8-static: micro-batches from the start of the run that are looked at."},
    {"qat.kv_cache", KEY_CHOICE, AT(qat.kv_cache), .fallback = "\"none\"", .choices = LIST("none", "int8", "int4"),
     .help = "Round keys (after RoPE) and values as well: symmetric, a scale per token and head."},
    {"qat.start_step", KEY_INTEGER, AT(qat.start_step), .fallback = "0", RANGE(0, STEPS_MAX),
     .help = "Train unquantized before this step."},
    {"qat.ramp_steps", KEY_INTEGER, AT(qat.ramp_steps), .fallback = "0", RANGE(0, STEPS_MAX),
     .help = "From start_step on, go over to the quantized weights in this many equal parts."},

    {"distributed.shard_base", KEY_BOOL, AT(distributed.shard_base), .fallback = "false",
     .help = "Split the frozen base over the ranks: each holds 1/N of the layers' packed weights and gathers them, two layers "
             "ahead, as they are needed. Changes no number."},
    {"distributed.shard_optimizer", KEY_BOOL, AT(distributed.shard_optimizer), .fallback = "false",
     .help = "Split the optimizer over the ranks: each has the moments of 1/N of what is trained, steps that, and gathers the "
             "rest. Changes no number."},
    {"distributed.timeout_s", KEY_NUMBER, AT(distributed.timeout_s), .fallback = "120", RANGE(1, 86400),
     .help = "Seconds without a sign of life after which a rank is taken for dead, and the others stop."},
    {"distributed.check_every", KEY_INTEGER, AT(distributed.check_every), .fallback = "100", RANGE(0, STEPS_MAX),
     .help = "Steps between comparisons of the trained numbers of all ranks, by hash; 0: only at the end."},

    {"output.path", KEY_STRING, AT(output.path), .fallback = "\"runs/first\"", .help = "The run folder."},
    {"output.overwrite", KEY_BOOL, AT(output.overwrite), .fallback = "false",
     .help = "Replace a run folder that is not empty."},
};
const int config_key_count = (int)(sizeof config_keys / sizeof *config_keys);

_Static_assert(sizeof config_keys / sizeof *config_keys <= CONFIG_KEYS_MAX, "ConfigLoader.source must hold every key");
_Static_assert(sizeof config_sections / sizeof *config_sections <= CONFIG_SECTIONS_MAX, "ConfigLoader.section_line too");
_Static_assert(sizeof((Config *)0)->lora.layers == CONFIG_MAX_LAYERS * sizeof(int64_t), "KEY_LAYERS fills lora.layers");

size_t config_section_length(const char *path) {
    const char *dot = strchr(path, '.');
    return dot == NULL ? 0 : (size_t)(dot - path);
}

const char *config_leaf(const char *path) {
    const char *dot = strchr(path, '.');
    return dot == NULL ? path : dot + 1;
}

int config_key_find(const char *path) {
    for (int i = 0; i < config_key_count; i++)
        if (strcmp(config_keys[i].path, path) == 0) return i;
    return -1;
}
