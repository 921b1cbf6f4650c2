#include "tests/support/scope.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/philox.h"
#include "kernels/ggml_formats.h"

#define CANARY_BYTES 64
#define CANARY 0xA5

static void *block_open(Scope *scope, size_t bytes, int scratch) {
    assert_true(scope->blocks < SCOPE_BLOCKS);
    size_t whole = (2 * CANARY_BYTES + bytes + 63) / 64 * 64;
    uint8_t *memory = aligned_alloc(64, whole);
    assert_non_null(memory);
    memset(memory, CANARY, whole);
    memset(memory + CANARY_BYTES, 0xFF, bytes);
    scope->block[scope->blocks++] = (ScopeBlock){memory, bytes, scratch};
    return memory + CANARY_BYTES;
}

void *scope_bytes(Scope *scope, size_t bytes) {
    return block_open(scope, bytes, 0);
}

void *scope_scratch(Scope *scope, size_t bytes) {
    return block_open(scope, bytes, 1);
}

void *scope_nan(Scope *scope, DType type, int64_t count) {
    return scope_bytes(scope, (size_t)count * dtype_size(type));
}

void *scope_filled(Scope *scope, DType type, int64_t count, double value) {
    void *values = scope_nan(scope, type, count);
    for (int64_t i = 0; i < count; i++) {
        dtype_convert((char *)values + (size_t)i * dtype_size(type), type, &value, DTYPE_F64, 1);
    }
    return values;
}

void *scope_random(Scope *scope, DType type, int64_t count, double scale) {
    void *values = scope_nan(scope, type, count);
    uint64_t draw = scope->draws++;
    for (int64_t i = 0; i < count; i++) {
        /* rounded to BF16, so that runs of every type can start from the same values */
        float value = bf16_round((float)(scale * (2.0 * (double)random_uniform(1, RANDOM_TEST, draw, (uint64_t)i) - 1.0)));
        dtype_convert((char *)values + (size_t)i * dtype_size(type), type, &value, DTYPE_F32, 1);
    }
    return values;
}

int32_t scope_draw(Scope *scope, int32_t limit) {
    return (int32_t)(random_uniform(2, RANDOM_TEST, 0, scope->draws++) * (float)limit);
}

static void four_bit_parts(Scope *scope, WeightView *view, int nested) {
    static const float nf4[16] = NF4_CODES, fp4[16] = FP4_CODES;
    int64_t blocks = weight_blocks(view->rows, view->cols, view->block_size);
    float *codes = scope_nan(scope, DTYPE_F32, 16);
    memcpy(codes, view->format == WEIGHT_NF4 ? nf4 : fp4, sizeof nf4);
    view->codes = codes;
    if (!nested) {
        float *scales = scope_random(scope, DTYPE_F32, blocks, 0.1);
        for (int64_t b = 0; b < blocks; b++)
            scales[b] = 0.2f + scales[b];
        view->scales = scales;
        return;
    }
    uint8_t *nested_codes = scope_bytes(scope, (size_t)blocks);
    for (int64_t b = 0; b < blocks; b++)
        nested_codes[b] = (uint8_t)scope_draw(scope, 256);
    float *map = scope_nan(scope, DTYPE_F32, 256);
    for (int i = 0; i < 256; i++)
        map[i] = (float)(i - 127) / 128.0f;
    view->nested_codes = nested_codes;
    view->nested_map = map;
    view->nested_absmax = scope_filled(scope, DTYPE_F32, (blocks + NESTED_BLOCK - 1) / NESTED_BLOCK, 0.0625);
    view->nested_offset = 0.21f;
}

WeightView scope_weight(Scope *scope, WeightFormat format, int64_t rows, int64_t cols, int32_t block_size, int nested) {
    WeightView view = {.format = format, .rows = rows, .cols = cols, .block_size = block_size};
    int64_t count = rows * cols;
    if (format == WEIGHT_F32 || format == WEIGHT_BF16 || format == WEIGHT_F64) {
        DType type = format == WEIGHT_F32 ? DTYPE_F32 : format == WEIGHT_BF16 ? DTYPE_BF16 : DTYPE_F64;
        view.data = scope_random(scope, type, count, 0.3);
        return view;
    }
    if (format == WEIGHT_GROUPED) {
        view.bits = 4;
        view.scale_type = DTYPE_F16;
        view.scales = scope_filled(scope, DTYPE_F32, count / block_size, 0.03125);
    }
    if (format == WEIGHT_GGML) { /* Q8_0 */
        GgmlBlockQ8_0 *blocks = scope_bytes(scope, (size_t)(count / GGML_BLOCK) * sizeof *blocks);
        for (int64_t b = 0; b < count / GGML_BLOCK; b++) {
            blocks[b].d = f16_from_float((float)(1 + scope_draw(scope, 64)) / 8192.0f);
            for (int j = 0; j < GGML_BLOCK; j++)
                blocks[b].qs[j] = (int8_t)scope_draw(scope, 256);
        }
        view.ggml_type = GGML_Q8_0;
        view.data = blocks;
        return view;
    }
    int64_t bytes = format == WEIGHT_GROUPED ? rows * grouped_row_bytes(cols, 4)
                    : format == WEIGHT_INT8  ? count
                                             : (count + 1) / 2;
    uint8_t *data = scope_bytes(scope, (size_t)bytes);
    for (int64_t i = 0; i < bytes; i++)
        data[i] = (uint8_t)scope_draw(scope, 256);
    view.data = data;
    if (format == WEIGHT_INT8) view.scales = scope_filled(scope, DTYPE_F32, rows, 0.3);
    if (format == WEIGHT_INT4) view.scales = scope_filled(scope, DTYPE_F32, count / block_size, 0.04);
    if (format == WEIGHT_NF4 || format == WEIGHT_FP4) four_bit_parts(scope, &view, nested);
    return view;
}

Batch scope_batch(Scope *scope, const int64_t *lengths, int64_t sequences, int32_t vocab) {
    int64_t tokens = 0;
    int64_t *starts = scope_bytes(scope, (size_t)(sequences + 1) * sizeof *starts);
    for (int64_t s = 0; s < sequences; s++) {
        starts[s] = tokens;
        tokens += lengths[s];
    }
    starts[sequences] = tokens;
    size_t rows32 = (size_t)tokens * sizeof(int32_t);
    int32_t *ids = scope_bytes(scope, rows32), *positions = scope_bytes(scope, rows32);
    int32_t *rows = scope_bytes(scope, rows32), *targets = scope_bytes(scope, rows32);
    uint64_t *samples = scope_bytes(scope, (size_t)tokens * sizeof *samples);
    Batch batch = {.tokens = tokens,
                   .sequences = sequences,
                   .starts = starts,
                   .ids = ids,
                   .positions = positions,
                   .samples = samples,
                   .rows = rows,
                   .targets = targets,
                   .grad_scale = 0.125f,
                   .seed = 1234,
                   .dropout = 1};
    for (int64_t s = 0; s < sequences; s++) {
        for (int64_t t = starts[s]; t < starts[s + 1]; t++) {
            ids[t] = scope_draw(scope, vocab);
            positions[t] = (int32_t)(t - starts[s]);
            samples[t] = (uint64_t)(100 + s);
            if (t % 3 == 1) continue;
            rows[batch.supervised] = (int32_t)t;
            targets[batch.supervised++] = scope_draw(scope, vocab);
        }
    }
    return batch;
}

Batch scope_batch_part(Scope *scope, const Batch *batch, int64_t sequence) {
    int64_t first = batch->starts[sequence], end = batch->starts[sequence + 1];
    Batch part = *batch;
    int64_t *starts = scope_bytes(scope, 2 * sizeof *starts);
    int32_t *rows = scope_bytes(scope, (size_t)batch->supervised * sizeof *rows);
    starts[0] = 0;
    starts[1] = end - first;
    part.tokens = end - first;
    part.sequences = 1;
    part.starts = starts;
    part.ids += first;
    part.positions += first;
    part.samples += first;
    part.supervised = 0;
    for (int64_t j = 0; j < batch->supervised; j++) {
        if (batch->rows[j] < first || batch->rows[j] >= end) continue;
        if (part.supervised == 0) part.targets = batch->targets + j;
        rows[part.supervised++] = (int32_t)(batch->rows[j] - first);
    }
    part.rows = rows;
    return part;
}

void scope_assert_same(const Scope *a, const Scope *b) {
    assert_int_equal(a->blocks, b->blocks);
    for (int i = 0; i < a->blocks; i++) {
        if (a->block[i].scratch) continue; /* its size may depend on the threads */
        assert_int_equal(a->block[i].bytes, b->block[i].bytes);
        assert_memory_equal(a->block[i].memory + CANARY_BYTES, b->block[i].memory + CANARY_BYTES, a->block[i].bytes);
    }
}

void scope_close(Scope *scope) {
    for (int i = 0; i < scope->blocks; i++) {
        ScopeBlock *block = &scope->block[i];
        for (size_t c = 0; c < CANARY_BYTES; c++) {
            assert_int_equal(block->memory[c], CANARY);
            assert_int_equal(block->memory[CANARY_BYTES + block->bytes + c], CANARY);
        }
        free(block->memory);
    }
    *scope = (Scope){0};
}

Exec exec_open(DType act, int threads) {
    Exec exec = {.config = {.act = act, .threads = threads}};
    Error err;
    if (threads > 1) assert_int_equal(pool_create(&exec.pool, threads, &err), OK);
    return exec;
}

void exec_close(Exec *exec) {
    pool_free(exec->pool);
    *exec = (Exec){0};
}
