/* What nibble inspect prints: a list of named values as lines for people or as the members of one JSON object. */
#ifndef NIBBLE_TRAIN_INSPECT_H
#define NIBBLE_TRAIN_INSPECT_H

#include <stdint.h>

#include "core/error.h"
#include "core/text.h"
#include "data/safetensors.h"

typedef struct InspectOutput {
    Text text;
    int json;
    int members;     /* written so far into the innermost JSON object */
    int all_tensors; /* list every tensor, not only the largest */
    int colour;      /* mark trained tokens with colour, not with brackets */
    int64_t count;   /* examples to print */
} InspectOutput;

/* One named value. key: as JSON spells it ("kv_heads"); for people underscores become spaces. */
void inspect_string(InspectOutput *out, const char *key, const char *value);
void inspect_integer(InspectOutput *out, const char *key, int64_t value);
void inspect_number(InspectOutput *out, const char *key, double value); /* null where not finite */
void inspect_bool(InspectOutput *out, const char *key, int value);
void inspect_size(InspectOutput *out, const char *key, uint64_t bytes);
/* Starts a member whose JSON value the caller appends itself, or a heading for people. */
void inspect_key(InspectOutput *out, const char *key);

/* Counts, types, the largest tensors (inspect_tensors.c). */
Status inspect_tensors(InspectOutput *out, const TensorFiles *files, Error *err);
/* Keys, types, the largest tensors of a GGUF file (inspect_gguf.c). */
Status inspect_gguf(InspectOutput *out, const char *path, Error *err);
/* A folder, a safetensors or a GGUF file, whatever it is (inspect_folder.c). */
Status inspect_path(InspectOutput *out, const char *path, Error *err);
/* The first examples of a config's data, and its figures (inspect_data.c). */
Status inspect_data(InspectOutput *out, const char *config, const char *const *overrides, int override_count, int threads,
                    Error *err);
/* The examples of optimizer step `step` (from 1, as metrics.jsonl counts) of a run folder. */
Status inspect_step(InspectOutput *out, const char *run, int64_t step, int threads, Error *err);

#endif
