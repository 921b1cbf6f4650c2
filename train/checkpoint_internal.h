/* What checkpoint.c (folders), checkpoint_state.c (state.json) and checkpoint_params.c (params.zst) share. */
#ifndef NIBBLE_TRAIN_CHECKPOINT_INTERNAL_H
#define NIBBLE_TRAIN_CHECKPOINT_INTERNAL_H

#include <stddef.h>
#include <stdint.h>

#include "core/error.h"
#include "core/text.h"
#include "train/checkpoint.h"

#define CHECKPOINT_STATE_NAME "state.json"
#define CHECKPOINT_PARAMS_NAME "params.zst"
#define CHECKPOINT_STATE_LIMIT ((size_t)64 << 10)
/* Three flat FP32 buffers must have a size that fits 63 bits. */
#define CHECKPOINT_MAX_ELEMENTS (INT64_MAX / 12)

typedef struct CheckpointFile {
    uint64_t bytes, hash; /* length and XXH3 of params.zst */
} CheckpointFile;

/* state.json, whose last value is the XXH3 of all text before it. */
void checkpoint_state_print(const CheckpointState *state, const CheckpointFile *params, Text *out);
/* Untrusted text. Overwrites *state and *params. `what` names the file in messages. *claimed is the checksum that the text
 * gives for its first *covered bytes; checkpoint_state_read compares it. */
Status checkpoint_state_parse(const char *what, const char *text, size_t length, CheckpointState *state, CheckpointFile *params,
                              uint64_t *claimed, size_t *covered, Error *err);
/* folder/state.json: read, parsed, checksum compared. */
Status checkpoint_state_read(const char *folder, CheckpointState *state, CheckpointFile *params, Error *err);

/* Writes and syncs folder/params.zst: zstd of master, m, v. Overwrites *file. */
Status checkpoint_params_write(const char *folder, const ParamState *params, int64_t elements, CheckpointFile *file,
                               Error *err);
/* Streams folder/params.zst through the decompressor: length, checksum, and exactly 3*elements FP32 numbers. into NULL: only
 * checks; otherwise overwrites master, m and v. Allocates a fixed amount. */
Status checkpoint_params_read(const char *folder, const CheckpointFile *file, int64_t elements, ParamState *into, Error *err);

#endif
