/* The types with blocks of 32: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.
 * Source: ggml 0.25.3 src/ggml-quants.c, quantize_row_*_ref and quantize_row_*_impl. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "core/dtype.h"
#include "quant/ggml_internal.h"

#define HALF (GGML_BLOCK / 2)

/* Toward zero. What does not fit an int (denormal scales give Inf and NaN here) is 0, as x86's conversion leaves it in its low
 * byte. */
static int truncate_code(float value) {
    return fabsf(value) < 2147483648.0f ? (int)value : 0;
}

static int at_most(int value, int most) {
    return value < most ? value : most;
}

/* ---- packing ------------------------------------------------------------------------------------------------------------- */

static void pack_low(const uint8_t *codes, uint8_t *qs) {
    for (int j = 0; j < HALF; j++)
        qs[j] = (uint8_t)((codes[j] & 15) | (codes[j + HALF] & 15) << 4);
}

static void pack_fifth(const uint8_t *codes, uint8_t *qh) {
    memset(qh, 0, 4);
    for (int j = 0; j < GGML_BLOCK; j++)
        qh[j / 8] = (uint8_t)(qh[j / 8] | ((codes[j] >> 4) & 1) << j % 8);
}

/* ---- codes of one block ---------------------------------------------------------------------------------------------------- */

/* Around zero: the value of largest magnitude becomes code 0, so the scale has its sign turned. */
static float codes_symmetric(const float *x, int levels, uint8_t *codes) {
    float largest = 0.0f, value = 0.0f;
    for (int j = 0; j < GGML_BLOCK; j++)
        if (largest < fabsf(x[j])) {
            largest = fabsf(x[j]);
            value = x[j];
        }
    float d = value / (float)-levels, inverse = d != 0.0f ? 1.0f / d : 0.0f;
    for (int j = 0; j < GGML_BLOCK; j++)
        codes[j] = (uint8_t)at_most((int8_t)truncate_code(x[j] * inverse + ((float)levels + 0.5f)), 2 * levels - 1);
    return d;
}

/* From the least value upwards. */
static float codes_offset(const float *x, int levels, uint8_t *codes, float *m) {
    float min = FLT_MAX, max = -FLT_MAX;
    for (int j = 0; j < GGML_BLOCK; j++) {
        if (x[j] < min) min = x[j];
        if (x[j] > max) max = x[j];
    }
    float d = (max - min) / (float)levels, inverse = d != 0.0f ? 1.0f / d : 0.0f;
    for (int j = 0; j < GGML_BLOCK; j++) {
        int code = truncate_code((x[j] - min) * inverse + 0.5f);
        codes[j] = (uint8_t)(levels == 15 ? at_most((int8_t)code, levels) : code);
    }
    *m = min;
    return d;
}

/* Some blocks of a row before they are packed. */
typedef struct Chunk {
    int count;
    uint8_t codes[GGML_LANES * GGML_BLOCK];
    float d[GGML_LANES], m[GGML_LANES];
} Chunk;

/* weights = importance * sqrt(sigma2 + x^2), sigma2: the row's mean square. */
static float mean_square(const float *x, int64_t cols) {
    float sum = 0.0f;
    for (int64_t i = 0; i < cols; i++)
        sum += x[i] * x[i];
    return sum / (float)cols;
}

static void weigh(const float (*x)[GGML_LANES], float sigma2, float (*weights)[GGML_LANES]) {
    for (int i = 0; i < GGML_BLOCK; i++)
        for (int lane = 0; lane < GGML_LANES; lane++)
            weights[i][lane] *= sqrtf(sigma2 + x[i][lane] * x[i][lane]);
}

/* Scale and codes of each block, whichever way they are found. */
static void chunk_find(const float *x, const float *importance, float sigma2, int levels, int has_offset, Chunk *chunk) {
    if (importance == NULL) {
        for (int k = 0; k < chunk->count; k++) {
            const float *block = x + k * GGML_BLOCK;
            uint8_t *codes = chunk->codes + k * GGML_BLOCK;
            chunk->d[k] = has_offset ? codes_offset(block, levels, codes, &chunk->m[k]) : codes_symmetric(block, levels, codes);
        }
        return;
    }
    float lanes[GGML_BLOCK][GGML_LANES], weights[GGML_BLOCK][GGML_LANES];
    GgmlMinSearch search = {.levels = levels, .first = -0.9f, .step = 0.05f, .steps = 36};
    ggml_lanes_spread(GGML_BLOCK, chunk->count, x, lanes);
    ggml_lanes_spread(GGML_BLOCK, chunk->count, importance, weights);
    weigh(lanes, sigma2, weights);
    if (!has_offset) {
        ggml_search_signed(GGML_BLOCK, chunk->count, levels, lanes, weights, chunk->codes, chunk->d);
        return;
    }
    ggml_search_min(&search, GGML_BLOCK, chunk->count, lanes, weights, chunk->codes, chunk->d, chunk->m);
    for (int k = 0; k < chunk->count; k++)
        chunk->m[k] = -chunk->m[k];
}

/* ---- rows ---------------------------------------------------------------------------------------------------------------- */

typedef struct BlockForm {
    int levels, has_offset;
} BlockForm;

/* Calls pack for every block of a row, in order. */
static void row_each(BlockForm form, const float *x, int64_t cols, const float *importance, uint8_t *out, size_t bytes,
                     void (*pack)(const uint8_t *codes, float d, float m, void *out)) {
    Chunk chunk;
    float sigma2 = importance != NULL ? mean_square(x, cols) : 0.0f;
    for (int64_t i = 0; i < cols; i += GGML_LANES * GGML_BLOCK) {
        int64_t blocks = (cols - i) / GGML_BLOCK;
        chunk.count = blocks < GGML_LANES ? (int)blocks : GGML_LANES;
        chunk_find(x + i, importance != NULL ? importance + i : NULL, sigma2, form.levels, form.has_offset, &chunk);
        for (int k = 0; k < chunk.count; k++, out += bytes)
            pack(chunk.codes + k * GGML_BLOCK, chunk.d[k], form.has_offset ? chunk.m[k] : 0.0f, out);
    }
}

static void pack_q4_0(const uint8_t *codes, float d, float m, void *out) {
    (void)m;
    GgmlBlockQ4_0 *block = out;
    block->d = f16_from_float(d);
    pack_low(codes, block->qs);
}

static void pack_q4_1(const uint8_t *codes, float d, float m, void *out) {
    GgmlBlockQ4_1 *block = out;
    block->d = f16_from_float(d);
    block->m = f16_from_float(m);
    pack_low(codes, block->qs);
}

static void pack_q5_0(const uint8_t *codes, float d, float m, void *out) {
    (void)m;
    GgmlBlockQ5_0 *block = out;
    block->d = f16_from_float(d);
    pack_low(codes, block->qs);
    pack_fifth(codes, block->qh);
}

static void pack_q5_1(const uint8_t *codes, float d, float m, void *out) {
    GgmlBlockQ5_1 *block = out;
    block->d = f16_from_float(d);
    block->m = f16_from_float(m);
    pack_low(codes, block->qs);
    pack_fifth(codes, block->qh);
}

void ggml_quantize_q4_0(const float *x, int64_t cols, const float *importance, void *out) {
    row_each((BlockForm){8, 0}, x, cols, importance, out, sizeof(GgmlBlockQ4_0), pack_q4_0);
}

void ggml_quantize_q4_1(const float *x, int64_t cols, const float *importance, void *out) {
    row_each((BlockForm){15, 1}, x, cols, importance, out, sizeof(GgmlBlockQ4_1), pack_q4_1);
}

void ggml_quantize_q5_0(const float *x, int64_t cols, const float *importance, void *out) {
    row_each((BlockForm){16, 0}, x, cols, importance, out, sizeof(GgmlBlockQ5_0), pack_q5_0);
}

void ggml_quantize_q5_1(const float *x, int64_t cols, const float *importance, void *out) {
    row_each((BlockForm){31, 1}, x, cols, importance, out, sizeof(GgmlBlockQ5_1), pack_q5_1);
}

/* The importance is not used: eight bits leave nothing to search for. */
void ggml_quantize_q8_0(const float *x, int64_t cols, const float *importance, void *out) {
    (void)importance;
    GgmlBlockQ8_0 *block = out;
    for (int64_t i = 0; i < cols; i += GGML_BLOCK, block++) {
        float largest = 0.0f;
        for (int j = 0; j < GGML_BLOCK; j++)
            largest = largest > fabsf(x[i + j]) ? largest : fabsf(x[i + j]);
        float d = largest / 127.0f, inverse = d != 0.0f ? 1.0f / d : 0.0f;
        block->d = f16_from_float(d);
        for (int j = 0; j < GGML_BLOCK; j++)
            block->qs[j] = (int8_t)truncate_code(roundf(x[i + j] * inverse));
    }
}
