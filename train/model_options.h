/* What the commands that run a model share: its options on the command line, opening it, and where an answer ends. */
#ifndef NIBBLE_TRAIN_MODEL_OPTIONS_H
#define NIBBLE_TRAIN_MODEL_OPTIONS_H

#include "data/tokenizer.h"
#include "train/engine.h"
#include "train/options.h"

typedef struct ModelOptions {
    const char *device, *adapter, *quant, *precision, *activations, *kv_cache, *head;
    int no_double_quant;
    int64_t threads;
    Comm *comm; /* of the engine, or NULL */
} ModelOptions;
#define MODEL_OPTIONS_DEFAULT \
    { .device = "auto", .quant = "none", .head = "none", .precision = "bf16" }

/* Entries of an OptionSpec table. */
#define MODEL_OPTION_SPECS(o)                                                                                                  \
    {"adapter", OPTION_STRING, "DIR", "a PEFT folder, for example runs/first/adapter, or a GGUF adapter", &(o)->adapter},      \
        {"quant", OPTION_STRING, "TYPE", "quantize on load: none, nf4, fp4, int8 or int4", &(o)->quant},                       \
        {"head", OPTION_STRING, "TYPE", "output head: none (as it is), or q8_0: half the bytes a generated token reads of it", \
         &(o)->head},                                                                                                          \
        {"activations", OPTION_STRING, "TYPE", "inputs of linears: none, int8, int8-asymmetric; else as the model says",       \
         &(o)->activations},                                                                                                   \
        {"kv-cache", OPTION_STRING, "TYPE", "keys and values: none, int8, int4; else as the model says", &(o)->kv_cache},      \
        {"no-double-quant", OPTION_FLAG, NULL, "keep the blocks' constants in FP32 (nf4, fp4)", &(o)->no_double_quant},        \
        {"precision", OPTION_STRING, "TYPE", "bf16 or f32 (nothing is rounded to BF16)", &(o)->precision},                     \
        {"device", OPTION_STRING, "NAME", "auto, cpu, cuda or emu", &(o)->device}, {                                           \
        "threads", OPTION_INTEGER, "N", "threads; 0: all that this process may use", &(o)->threads                             \
    }

/* Refuses wrong values, and a folder that is a run's or is quantized already where --quant is given; reads the model's
 * config.json. No weight is read. */
Status model_options_check(const ModelOptions *options, const char *folder, ModelConfig *model, Error *err);
/* How the base lies in memory (block size 64). */
WeightOptions model_options_weights(const ModelOptions *options);
/* Opens the engine with nothing trained. extra: bytes that the command will take on top of the weights; fails with both
 * figures when the machine has less left. */
Status model_options_open(Engine *engine, const ModelOptions *options, const char *folder, const ModelConfig *model,
                          size_t extra, Error *err);

#define STOP_IDS_MAX (MODEL_MAX_EOS + 2)
/* The tokenizer's EOS and the model's; returns how many. */
int model_stop_ids(const Tokenizer *tokenizer, const ModelConfig *model, int32_t ids[STOP_IDS_MAX]);

#endif
