/* The configuration of a run: one table of keys gives the parser, the schema, the defaults and the help.
 *
 * A config is JSON with comments. An unknown key, a wrong type or a value out of range fails with ERR_USAGE and names the
 * key, the line and the nearest known key. A key whose feature is not there yet is refused as not supported yet unless it
 * holds its default. Strings are owned by the Config.
 */
#ifndef NIBBLE_TRAIN_CONFIG_H
#define NIBBLE_TRAIN_CONFIG_H

#include <stdint.h>

#include "core/error.h"
#include "core/text.h"

#define CONFIG_MAX_TARGETS 32
#define CONFIG_MAX_PATHS 64
#define CONFIG_AUTO (-1) /* integers that may be "auto" */

typedef struct ConfigPath {
    char *path; /* a file or a pattern */
    double weight;
} ConfigPath;

typedef struct Config {
    char *device;    /* auto | cpu | cuda | emu */
    char *precision; /* auto | bf16 | f32 */
    int64_t seed;
    struct {
        char *path;
        char *arch; /* a config.json-like shape file that `plan` uses when path is not there; null */
    } model;
    char *method; /* qlora | lora | full */
    struct {
        char *type; /* nf4 | fp4 | int8 | int4 */
        int double_quant;
        int64_t block_size; /* nf4, fp4: 32..4096, a power of two; int4: 32, 64, 128 */
    } quant;
    struct {
        int64_t rank;
        double alpha, dropout;
        int use_rslora;
        char *target_modules[CONFIG_MAX_TARGETS]; /* a string or a list; "all-linear", or q_proj … */
        int64_t target_count;
        int64_t layers[512]; /* layers that get adapters; empty: all */
        int64_t layer_count;
        char *init; /* a folder with an adapter to start from, or null: PEFT's init */
    } lora;
    struct {
        ConfigPath path[CONFIG_MAX_PATHS];
        int64_t path_count;
        char *eval_path; /* null: a part of path */
        double eval_fraction;
        char *layout, *template_name, *train_on, *packing, *on_error, *too_long; /* template_name is the key data.template */
        int64_t max_length;                                                      /* CONFIG_AUTO, or tokens */
        char *cache;                                                             /* auto | off | a folder */
        int document_eos; /* plain text: EOS ends a document, and is trained */
    } data;
    struct {
        int64_t steps; /* 0: by epochs */
        double epochs, lr, min_lr_ratio, warmup, decay_ratio, weight_decay, beta1, beta2, epsilon, max_grad_norm;
        char *loss;                 /* cross_entropy | distill */
        char *schedule;             /* constant | linear | cosine | wsd */
        int64_t micro_batch_tokens; /* CONFIG_AUTO until the plan is made, or tokens */
        int64_t gradient_accumulation, eval_every, save_every, keep_last, max_bad_steps;
        double save_minutes; /* 0: by steps only */
        int save_best;
        char *recompute;            /* auto | none | layers | host */
        int64_t dequantized_layers; /* CONFIG_AUTO, or how many */
        char *memory;               /* auto | a size such as "16GiB" */
        char *init;                 /* method full: "model" or "random" (weights drawn from the seed) */
        int64_t samples;            /* prompts shown before and after in the report */
    } train;
    struct {
        char *mode;         /* none | merged | separate */
        char *weights;      /* the grid */
        int64_t group_size; /* int2, int3, int4 */
        int symmetric, double_quant;
        int64_t start_step, ramp_steps, range_batches;
        double range_value;
        char *ranges;
        char *scales, *activations, *kv_cache;
        int learn_scales;
    } qat;
    struct {
        int shard_base, shard_optimizer;
        double timeout_s;
        int64_t check_every; /* steps between comparisons of what the ranks hold; 0: only at the end */
    } distributed;
    struct {
        char *path;
        int overwrite;
    } output;
} Config;

/* Defaults, then the file, then `key=value` overrides in order (values as JSON; a bare word is a string). `path` NULL:
 * defaults only. Checks every key and every combination that needs no file. */
Status config_load(Config *config, const char *path, const char *const *overrides, int override_count, Error *err);
/* The same from a text in memory (a checkpoint's copy of its config); `what` stands in messages for the file's name. */
Status config_load_text(Config *config, const char *what, const char *text, size_t length, const char *const *overrides,
                        int override_count, Error *err);
void config_free(Config *config);
/* The resolved config as JSON text, every key present; reading it back gives the same Config. */
void config_print(const Config *config, Text *out);
void config_print_schema(Text *out);   /* JSON Schema, draft 2020-12 */
void config_print_defaults(Text *out); /* JSON with each key's help as a comment */
/* data.path in one line, for people: "a.jsonl", or "a.jsonl, b*.txt (weight 0.5)". */
void config_print_paths(const Config *config, Text *out);
/* "16GiB", "800MB", "1e9" as bytes. */
Status config_parse_bytes(const char *text, uint64_t *bytes, Error *err);

#endif
