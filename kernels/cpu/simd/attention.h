/* Shared by attention forward and backward.
 *
 * An item of work is a block of at most ATTENTION_BLOCK rows of one sequence under one head (backward by keys: one key/value
 * head). It walks over the rows of the other side, ATTENTION_STRETCH at a time:
 *
 *   scores [block, stretch] = rows x (other side)^T,   something elementwise,   sum [block, D] += scores x (other side)
 *
 * In a BF16 run with GEMM_PAIRS both products multiply pairs: the rows are copied, and what becomes of the scores is rounded
 * to BF16 where it is stored, as flash attention does on GPUs (Dao 2023).
 *
 * Blocks and stretches start at a sequence's own rows, so a sequence gives the same bits wherever it is packed.
 */
#ifndef NIBBLE_KERNELS_CPU_SIMD_ATTENTION_H
#define NIBBLE_KERNELS_CPU_SIMD_ATTENTION_H

#include "kernels/cpu/ref/attention.h"
#include "kernels/cpu/simd/entries.h"
#include "kernels/cpu/simd/gemm.h"

#define ATTENTION_BLOCK 96    /* a multiple of GEMM_ROWS */
#define ATTENTION_STRETCH 128 /* a multiple of GEMM_COLUMNS */
#define ATTENTION_STRIDE (ATTENTION_STRETCH + 16)

#define attention_thread_floats SIMD_SYMBOL(attention_thread_floats)
#define attention_scratch SIMD_SYMBOL(attention_scratch)
#define attention_pack SIMD_SYMBOL(attention_pack)
#define attention_cut SIMD_SYMBOL(attention_cut)
#define attention_scores SIMD_SYMBOL(attention_scores)
#define attention_add SIMD_SYMBOL(attention_add)
#define attention_gradients SIMD_SYMBOL(attention_gradients)
#define attention_one SIMD_SYMBOL(attention_one)

/* One worker's buffers; forward has one of each pair, backward two. */
typedef struct Scratch {
    float *rows[2];   /* [block][row_stride]: A panels */
    float *scores[2]; /* [block][ATTENTION_STRIDE]: results, then A panels */
    float *sum[2];    /* [block][sum_stride] */
    float *panel;     /* a B panel of either product */
    float *turn;
    float *stat[2]; /* [ATTENTION_STRETCH], by row or by column */
    int64_t row_stride, sum_stride;
    int pairs; /* rows are BF16 pairs, and so are scores once they are stored again */
} Scratch;

int64_t attention_thread_floats(int sides, int64_t dim);
Scratch attention_scratch(void *workspace, int worker, int sides, DType act, int64_t dim);

/* Rows [row, row + block) as an A panel. */
void attention_pack(const Scratch *s, const Operand *rows, int64_t row, int64_t block, int64_t dim, float *to);

/* Writes the first row of every block of the batch and returns their number; there are at most `tokens`. */
int64_t attention_cut(const Batch *batch, int32_t *first_rows);

/* Which columns of a stretch each row of a block sees: [first, end). */
typedef struct Visible {
    int64_t first[ATTENTION_BLOCK], end[ATTENTION_BLOCK];
} Visible;

/* scores = rows x columns^T over dim, where something is visible; elsewhere zeros. The stretch is rows [c0, c0 + count) of
 * `columns`. */
void attention_scores(const Scratch *s, const float *rows, int64_t block, const Operand *columns, int64_t c0, int64_t count,
                      int64_t dim, const Visible *visible, float *scores);
/* sum += scores x columns; scores are zero where nothing is visible. */
void attention_add(const Scratch *s, const float *scores, int64_t block, const Operand *columns, int64_t c0, int64_t count,
                   int64_t dim, const Visible *visible, float *sum);

/* Rows of sequences of their own (attention_one.c): o [count, H*D] of q [count, H*D], row t over rows [first, first + past] of the
 * cache, as parts[t] says. scratch: the workers'. Returns 0, with nothing done, where more query heads share a key/value head
 * than the scratch has room for. */
int attention_one(const Exec *exec, const AttentionShape *shape, const CachePart *parts, int64_t count, const void *q,
                  const KvLayer *cache, void *o, void *scratch);

/* Lanes [at, at + SIMD_WIDTH) that lie in [first, end): all ones. */
SIMD_INLINE vi lanes_within(int64_t at, int64_t first, int64_t end) {
    vi lane;
    for (int i = 0; i < SIMD_WIDTH; i++)
        lane[i] = i;
    vi place = lane + (int32_t)at;
    return (vi)(place >= (int32_t)first) & (vi)(place < (int32_t)end);
}

/* Stores scores [c, c + SIMD_WIDTH) of a row, of which those up to c + SIMD_WIDTH have been read: as BF16 they lie behind. */
SIMD_INLINE void store_scores(float *row, int64_t c, vf x, const int pairs) {
#if GEMM_PAIRS
    if (pairs) {
        store_operands((bf16 *)(void *)row + c, x);
        return;
    }
#endif
    (void)pairs;
    vf_store(row + c, x);
}

/* Head `head` of an activation [.., heads * dim]. */
SIMD_INLINE Operand head_of(const void *x, DType act, int64_t heads, int64_t head, int64_t dim) {
    return (Operand){.data = ref_at(act, x, head * dim), .type = act, .stride = heads * dim, .scale = 1.0f};
}

Status attention_gradients(const Exec *exec, const AttentionShape *shape, const Batch *batch, const void *q, const void *k,
                           const void *v, const void *o, const void *saved, const void *d_o, void *dq, void *dk, void *dv,
                           void *workspace, Error *err);

/* Backward workspace: [ blocks int32 rows | delta FP32 rows x H | worker scratch ]; forward's is without delta. */
typedef struct AttentionPlaces {
    size_t delta, forward_scratch, backward_scratch;
    OpPlan plan;
} AttentionPlaces;
#define attention_places SIMD_SYMBOL(attention_places)
Status attention_places(const ExecConfig *config, const AttentionShape *shape, AttentionPlaces *at, Error *err);

#endif
