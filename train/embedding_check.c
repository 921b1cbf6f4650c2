#include "train/embedding_check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/dtype.h"
#include "core/hash.h"
#include "core/memory.h"
#include "kernels/ggml_decode.h"

#define NEAR_ZERO 1e-3 /* of the root mean square norm: trained rows of one model lie within a factor of ten of each other */

typedef struct Row {
    uint64_t hash;
    double squares;
    int32_t id;
} Row;

static size_t row_bytes(const WeightView *e) {
    int bytes;
    if (e->format == WEIGHT_GGML) {
        int values = ggml_block_form(e->ggml_type, &bytes);
        return (size_t)(e->cols / values) * (size_t)bytes;
    }
    return (size_t)e->cols * (e->format == WEIGHT_F32 ? sizeof(float) : sizeof(bf16));
}

static const uint8_t *row_at(const WeightView *e, int32_t id) {
    return (const uint8_t *)e->data + (size_t)id * row_bytes(e);
}

static double sum_squares(const WeightView *e, int32_t id) {
    const void *row = row_at(e, id);
    double sum = 0.0;
    float run[GGML_RUN];
    int is_blocks = e->format == WEIGHT_GGML && e->ggml_type != GGML_F16;
    for (int64_t i = 0; i < e->cols; i++) {
        if (is_blocks && i % GGML_RUN == 0) ggml_decode_run(e->ggml_type, row, i / GGML_RUN, run);
        double x = is_blocks                  ? run[i % GGML_RUN]
                   : e->format == WEIGHT_F32  ? ((const float *)row)[i]
                   : e->format == WEIGHT_GGML ? f16_to_float(((const f16 *)row)[i])
                                              : bf16_to_float(((const bf16 *)row)[i]);
        sum += x * x;
    }
    return sum;
}

/* By hash, then by id, so that the first of equal rows has the least id. */
static int compare_rows(const void *a, const void *b) {
    const Row *x = a, *y = b;
    if (x->hash != y->hash) return x->hash < y->hash ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

static int64_t collect(const WeightView *e, const int32_t *ids, int64_t count, Row *rows) {
    uint8_t *seen = memory_calloc((size_t)e->rows, 1);
    int64_t used = 0;
    for (int64_t i = 0; i < count; i++) {
        if (seen[ids[i]]) continue;
        seen[ids[i]] = 1;
        rows[used++] = (Row){hash_bytes(row_at(e, ids[i]), row_bytes(e)), sum_squares(e, ids[i]), ids[i]};
    }
    memory_free(seen);
    return used;
}

static void note(EmbeddingFaults *faults, int32_t id, int32_t equal_to) {
    if (faults->example >= 0 && faults->example <= id) return;
    faults->example = id;
    faults->equal_to = equal_to;
}

EmbeddingFaults embedding_check(const WeightView *embedding, const int32_t *ids, int64_t count) {
    EmbeddingFaults faults = {.example = -1, .equal_to = -1};
    Row *rows = memory_calloc((size_t)(count < embedding->rows ? count : embedding->rows) + 1, sizeof *rows);
    int64_t used = collect(embedding, ids, count, rows), first = 0;
    double sum = 0.0;
    for (int64_t i = 0; i < used; i++)
        sum += rows[i].squares;
    double least = NEAR_ZERO * NEAR_ZERO * sum / (double)(used > 0 ? used : 1);
    qsort(rows, (size_t)used, sizeof *rows, compare_rows);
    for (int64_t i = 0; i < used; i++) {
        if (rows[i].hash != rows[first].hash) first = i;
        if (rows[i].squares <= least) {
            faults.zero++;
            note(&faults, rows[i].id, -1);
        } else if (i > first &&
                   memcmp(row_at(embedding, rows[i].id), row_at(embedding, rows[first].id), row_bytes(embedding)) == 0) {
            faults.equal++;
            note(&faults, rows[i].id, rows[first].id);
        }
    }
    faults.used = used;
    memory_free(rows);
    return faults;
}
