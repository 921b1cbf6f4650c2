/* Buffers of one test case, with canaries on both sides and NaN inside.
 *
 * A buffer that is not given values starts as NaN in every type (all bits one),
 * so what an operation forgets to write, or reads before writing, shows. The
 * values are drawn from a counter that starts anew with each scope: two scopes
 * that ask for the same buffers in the same order hold the same values.
 */
#ifndef NIBBLE_TESTS_SUPPORT_SCOPE_H
#define NIBBLE_TESTS_SUPPORT_SCOPE_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/ops.h"

#define SCOPE_BLOCKS 128

typedef struct ScopeBlock {
    uint8_t *memory; /* canary, data, canary */
    size_t bytes;
    int scratch; /* not compared by scope_assert_same */
} ScopeBlock;

typedef struct Scope {
    ScopeBlock block[SCOPE_BLOCKS];
    int blocks;
    uint64_t draws;
} Scope;

/* bytes of NaN; 64-byte aligned */
void *scope_bytes(Scope *scope, size_t bytes);
/* The same for workspaces: contents are not part of a result. */
void *scope_scratch(Scope *scope, size_t bytes);
/* count elements of NaN, of one value, or uniform in [-scale, scale] */
void *scope_nan(Scope *scope, DType type, int64_t count);
void *scope_filled(Scope *scope, DType type, int64_t count, double value);
void *scope_random(Scope *scope, DType type, int64_t count, double scale);
/* Index drawn from [0, limit). */
int32_t scope_draw(Scope *scope, int32_t limit);

/* A random weight in any format; nested only for NF4 and FP4. Values are of the size of a layer's weights. */
WeightView scope_weight(Scope *scope, WeightFormat format, int64_t rows, int64_t cols, int32_t block_size, int nested);

/* Sequences of these lengths back to back; positions from 0; two of three rows supervised. */
Batch scope_batch(Scope *scope, const int64_t *lengths, int64_t sequences, int32_t vocab);
/* One sequence of the batch as a batch of its own (rows are numbered from 0 again). */
Batch scope_batch_part(Scope *scope, const Batch *batch, int64_t sequence);

/* Fails the test when two scopes differ in any byte of any buffer that is not scratch. */
void scope_assert_same(const Scope *a, const Scope *b);
/* Fails the test when a canary was overwritten; frees everything. */
void scope_close(Scope *scope);

Exec exec_open(DType act, int threads);
void exec_close(Exec *exec);

#endif
