/* Small model folders on disk: random ones, and copies with one thing wrong. */
#ifndef NIBBLE_TESTS_SUPPORT_MODEL_FOLDER_H
#define NIBBLE_TESTS_SUPPORT_MODEL_FOLDER_H

#include <stddef.h>
#include <stdint.h>

#include "core/dtype.h"
#include "data/hf_config.h"

/* hidden 64, intermediate 96, 4 heads of 16, 2 kv heads, 2 layers, vocabulary 40; `more` is put in front of the closing
 * brace (starts with a comma, or is empty). */
#define TINY_CONFIG(type, more)                                                                                             \
    "{\"model_type\":\"" type                                                                                               \
    "\",\"hidden_size\":64,\"intermediate_size\":96,\"num_attention_heads\":4,"                                             \
    "\"num_key_value_heads\":2,\"num_hidden_layers\":2,\"vocab_size\":40,\"max_position_embeddings\":128,\"rms_norm_eps\":" \
    "1e-05,\"hidden_act\":\"silu\"" more "}"

/* Writes config.json and model.safetensors with every weight that the config wants: uniform in [-0.1, 0.1], numbered by
 * name, so two folders of one shape hold the same values (rounded to dtype). */
void model_folder_write(const char *folder, const char *config_json, DType dtype);
/* The values of one weight as that function draws them, in F32 and rounded to dtype (memory_free). */
float *model_folder_values(const ModelConfig *config, int32_t weight, DType dtype);

typedef enum Change {
    CHANGE_NOTHING,
    CHANGE_DROP,  /* the tensor is not there */
    CHANGE_BYTES, /* these bytes from `offset` on */
    CHANGE_DATA,  /* these are all its bytes: a U8 vector */
    CHANGE_SHAPE, /* another type and shape of the same number of bytes, or fewer: the first ones */
    CHANGE_ADD    /* one more tensor of this full name: F32 [1] */
} Change;

typedef struct Mutation {
    Change change;
    const char *tensor; /* its name's end */
    const void *bytes;
    size_t count;
    uint64_t offset;
    DType dtype;
    int ndim;
    int64_t shape[4];
} Mutation;

/* Copies config.json and the tensors with one change; fails the test when no tensor has the name. */
void model_folder_mutate(const char *from, const char *to, const Mutation *mutation);

#endif
