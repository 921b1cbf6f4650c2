/* Choosing a token from logits. */
#ifndef NIBBLE_TRAIN_SAMPLE_H
#define NIBBLE_TRAIN_SAMPLE_H

#include <stdint.h>

typedef struct SampleSpec {
    double temperature; /* 0: greedy, the lowest id wins a tie */
    int64_t top_k;      /* 0: all */
    double top_p;       /* 1: all; else the smallest set of the likeliest tokens whose probability reaches it */
    uint64_t seed;
} SampleSpec;

/* logits [vocab] are overwritten; order [vocab] is scratch. The draw is a function of (seed, position). */
int32_t sample_token(float *logits, int32_t *order, int64_t vocab, const SampleSpec *spec, uint64_t position);

#endif
