/* Shared by the two files of the reference attention. */
#ifndef NIBBLE_KERNELS_CPU_REF_ATTENTION_H
#define NIBBLE_KERNELS_CPU_REF_ATTENTION_H

#include "kernels/cpu/ref/ref.h"

typedef struct AttentionLayout {
    int64_t forward_doubles;  /* of one worker: query, output, one score a key; from offset 0 */
    int64_t backward_doubles; /* of one worker */
    size_t scratch;           /* in the backward workspace, after delta [rows, H] */
    OpPlan plan;
} AttentionLayout;

Status ref_attention_layout(const ExecConfig *config, const AttentionShape *shape, AttentionLayout *layout, Error *err);
/* Fails unless the batch fits and its starts rise from 0 to its tokens. */
Status ref_attention_check(const AttentionShape *shape, const Batch *batch, Error *err);
/* Puts the one sequence of the batch behind the `past` rows of a cache, or the rows of several behind their parts; fails when it does not fit. */
Status ref_attention_append(DType act, const AttentionShape *shape, const Batch *batch, const void *k, const void *v,
                            const KvLayer *cache, int64_t past, Error *err);
/* The sequence that a row belongs to. */
int64_t ref_sequence_of(const Batch *batch, int64_t row);
Status ref_attention_backward(const Exec *exec, const AttentionShape *shape, const Batch *batch, const void *q, const void *k,
                              const void *v, const void *o, const void *saved, const void *d_o, void *dq, void *dk, void *dv,
                              void *workspace, Error *err);

#endif
