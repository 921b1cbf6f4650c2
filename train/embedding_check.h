/* Tokens of the data whose embeddings look as if the base had never been trained on them: an adapter leaves embeddings as they
 * are, so a chat template whose tokens the base does not know stays noise to it (unslothai/unsloth#1056, pytorch/torchtune#2429).
 */
#ifndef NIBBLE_TRAIN_EMBEDDING_CHECK_H
#define NIBBLE_TRAIN_EMBEDDING_CHECK_H

#include <stdint.h>

#include "kernels/formats.h"

typedef struct EmbeddingFaults {
    int64_t used;     /* different tokens in the data */
    int64_t zero;     /* of them, how many have less than a thousandth of the usual norm */
    int64_t equal;    /* how many others have the same row as one before them */
    int32_t example;  /* the least id of either kind; -1: none */
    int32_t equal_to; /* the token that the example equals; -1: it is near zero */
} EmbeddingFaults;

/* embedding: F32, BF16 or ggml's types, [vocabulary, width]; ids[count] lie in it. */
EmbeddingFaults embedding_check(const WeightView *embedding, const int32_t *ids, int64_t count);

#endif
