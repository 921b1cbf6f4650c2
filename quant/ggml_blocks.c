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

/* weights[j] = importance * sqrt(sigma2 + x^2), sigma2: the row's mean square. */
static float mean_square(const float *x, int64_t cols) {
    float sum = 0.0f;
    for (int64_t i = 0; i < cols; i++)
        sum += x[i] * x[i];
    return sum / (float)cols;
}

static void weigh(const float *x, const float *importance, float sigma2, float *weights) {
    for (int j = 0; j < GGML_BLOCK; j++)
        weights[j] = importance[j] * sqrtf(sigma2 + x[j] * x[j]);
}

/* The scale and codes of each block of a row, whichever way they are found. */
static float block_symmetric(const float *x, const float *importance, float sigma2, int levels, uint8_t *codes) {
    float weights[GGML_BLOCK];
    if (importance == NULL) return codes_symmetric(x, levels, codes);
    weigh(x, importance, sigma2, weights);
    return ggml_search_signed(GGML_BLOCK, levels, x, weights, codes);
}

static float block_offset(const float *x, const float *importance, float sigma2, int levels, uint8_t *codes, float *m) {
    float weights[GGML_BLOCK];
    if (importance == NULL) return codes_offset(x, levels, codes, m);
    weigh(x, importance, sigma2, weights);
    GgmlMinSearch search = {.levels = levels, .first = -0.9f, .step = 0.05f, .steps = 36};
    float d = ggml_search_min(&search, GGML_BLOCK, x, weights, codes, m);
    *m = -*m;
    return d;
}

static const float *at(const float *importance, int64_t i) {
    return importance != NULL ? importance + i : NULL;
}

/* ---- rows ---------------------------------------------------------------------------------------------------------------- */

void ggml_quantize_q4_0(const float *x, int64_t cols, const float *importance, void *out) {
    GgmlBlockQ4_0 *block = out;
    uint8_t codes[GGML_BLOCK];
    float sigma2 = importance != NULL ? mean_square(x, cols) : 0.0f;
    for (int64_t i = 0; i < cols; i += GGML_BLOCK, block++) {
        block->d = f16_from_float(block_symmetric(x + i, at(importance, i), sigma2, 8, codes));
        pack_low(codes, block->qs);
    }
}

void ggml_quantize_q4_1(const float *x, int64_t cols, const float *importance, void *out) {
    GgmlBlockQ4_1 *block = out;
    uint8_t codes[GGML_BLOCK];
    float m, sigma2 = importance != NULL ? mean_square(x, cols) : 0.0f;
    for (int64_t i = 0; i < cols; i += GGML_BLOCK, block++) {
        block->d = f16_from_float(block_offset(x + i, at(importance, i), sigma2, 15, codes, &m));
        block->m = f16_from_float(m);
        pack_low(codes, block->qs);
    }
}

void ggml_quantize_q5_0(const float *x, int64_t cols, const float *importance, void *out) {
    GgmlBlockQ5_0 *block = out;
    uint8_t codes[GGML_BLOCK];
    float sigma2 = importance != NULL ? mean_square(x, cols) : 0.0f;
    for (int64_t i = 0; i < cols; i += GGML_BLOCK, block++) {
        block->d = f16_from_float(block_symmetric(x + i, at(importance, i), sigma2, 16, codes));
        pack_low(codes, block->qs);
        pack_fifth(codes, block->qh);
    }
}

void ggml_quantize_q5_1(const float *x, int64_t cols, const float *importance, void *out) {
    GgmlBlockQ5_1 *block = out;
    uint8_t codes[GGML_BLOCK];
    float m, sigma2 = importance != NULL ? mean_square(x, cols) : 0.0f;
    for (int64_t i = 0; i < cols; i += GGML_BLOCK, block++) {
        block->d = f16_from_float(block_offset(x + i, at(importance, i), sigma2, 31, codes, &m));
        block->m = f16_from_float(m);
        pack_low(codes, block->qs);
        pack_fifth(codes, block->qh);
    }
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
