/* What is trained: adapters or whole weights, as ranges of flat buffers.
 *
 *   master, m, v, gradient : FP32 [elements]        copy : act [elements], what the forward pass reads
 *
 * Every entry starts at a multiple of PARAM_ALIGN elements; the gaps stay zero in all buffers. Where the optimizer is split over
 * N ranks, m and v hold rank r's share of the elements only, [r S, (r + 1) S), and the other buffers have room for N shares.
 */
#ifndef NIBBLE_TRAIN_PARAMS_H
#define NIBBLE_TRAIN_PARAMS_H

#include <stdint.h>

#include "core/memory.h"
#include "kernels/ops.h"
#include "train/weights.h"

#define PARAM_ALIGN 16

typedef enum ParamRole { PARAM_LORA_A, PARAM_LORA_B, PARAM_WEIGHT, PARAM_SCALE } ParamRole;

typedef struct ParamEntry {
    ParamRole role;
    int64_t layer;      /* adapters and scales: where they belong */
    LayerWeight module; /* adapters and scales: LAYER_Q … LAYER_DOWN */
    int32_t weight;     /* PARAM_WEIGHT: its number (train/weights.h) */
    int64_t offset, rows, cols;
    int decay; /* weight decay applies */
} ParamEntry;

typedef struct ParamSet {
    ParamEntry *entries;
    int64_t count, capacity;
    int64_t elements; /* of the flat buffers, gaps included */
    int64_t trained;  /* numbers that are trained, gaps not counted */
    int ranks, rank;  /* that the optimizer is split over, and which of them this is; ranks 0, 1: it is whole */
} ParamSet;

/* Elements whose moments a rank has: all of them, or a share, the same for every rank. */
int64_t params_share(const ParamSet *set);

/* Appends an entry (its offset is filled in) and returns the offset. */
int64_t params_add(ParamSet *set, ParamEntry entry);
void params_free(ParamSet *set);
/* "model.layers.3.self_attn.q_proj.lora_A" or the Hugging Face name of the weight. */
void params_name(const ParamSet *set, const ModelConfig *config, int64_t index, char *out, size_t capacity);

/* Pointers are the host's; with a device, what is true lies in `mirror` (train/device_memory.h) at the same offsets. */
typedef struct ParamState {
    float *master, *m, *v, *gradient;
    void *copy;
    Arena arena, mirror;
} ParamState;

/* Bytes of the arena that params_state_create makes. */
size_t params_state_bytes(const ParamSet *set, DType act, int optimizer);
/* All zero. optimizer 0: only what the forward pass needs (copy and master). */
Status params_state_create(ParamState *state, const ParamSet *set, DType act, int optimizer, Error *err);
void params_state_free(ParamState *state); /* after its mirror is freed */
/* Where the backend's entries find what the host has at `pointer`. */
void *params_there(const ParamState *state, const void *pointer);
/* copy = master rounded. */
void params_refresh_copy(ParamState *state, const ParamSet *set, DType act);

#endif
