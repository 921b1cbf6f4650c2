/* Super-blocks with a signed scale for each sub-block of 16: Q3_K, Q6_K.
 * Source: ggml 0.25.3 src/ggml-quants.c, quantize_row_q{3,6}_K_ref and _impl. */
#include <math.h>
#include <string.h>

#include "core/dtype.h"
#include "quant/ggml_internal.h"

#define SUB 16
#define SUB_BLOCKS (GGML_SUPER / SUB)

/* Codes again, with the scales as they are stored: codes[i] = nearest(x / (d * scale)) + levels. Where the factor is 0 the codes of
 * the search stay. */
static void requantize(f16 d_all, const int *scales, int levels, const float *x, uint8_t *codes) {
    for (int j = 0; j < SUB_BLOCKS; j++) {
        float d = f16_to_float(d_all) * (float)scales[j];
        if (d == 0.0f) continue;
        ggml_codes(SUB, x + j * SUB, 0.0f, d, -levels, levels - 1, levels, codes + j * SUB);
    }
}

/* The scale of the largest magnitude, the first of equals. */
static float largest_scale(const float *scales) {
    float largest = 0.0f, value = 0.0f;
    for (int j = 0; j < SUB_BLOCKS; j++)
        if (fabsf(scales[j]) > largest) {
            largest = fabsf(scales[j]);
            value = scales[j];
        }
    return value;
}

/* ---- Q3_K ---------------------------------------------------------------------------------------------------------------- */

/* Scale codes in [0, 64), 32 standing for 0; returns d. */
static float q3_scales_plain(const float *x, uint8_t *codes, uint8_t *scale_codes) {
    float scales[SUB_BLOCKS];
    for (int j = 0; j < SUB_BLOCKS; j++)
        scales[j] = ggml_search_signed_descent(SUB, 4, x + j * SUB, codes + j * SUB);
    float most = largest_scale(scales);
    memset(scale_codes, 0, SUB_BLOCKS); /* of an empty super-block: not 32, for nothing is written over them */
    if (most == 0.0f) return 0.0f;
    float inverse = -32.0f / most;
    for (int j = 0; j < SUB_BLOCKS; j++)
        scale_codes[j] = (uint8_t)(ggml_clamp((int8_t)ggml_nearest(inverse * scales[j]), -32, 31) + 32);
    return 1.0f / inverse;
}

static float q3_scales_weighted(const float *x, const float *importance, uint8_t *codes, uint8_t *scale_codes) {
    float scales[SUB_BLOCKS], totals[SUB_BLOCKS], lanes[SUB][GGML_LANES], weights[SUB][GGML_LANES], d;
    float sum = 0.0f;
    for (int i = 0; i < GGML_SUPER; i++)
        sum += x[i] * x[i];
    float sigma2 = 2.0f * sum / (float)GGML_SUPER;
    memset(totals, 0, sizeof totals);
    for (int j = 0; j < SUB_BLOCKS; j += GGML_LANES) {
        ggml_lanes_spread(SUB, GGML_LANES, x + j * SUB, lanes);
        ggml_lanes_spread(SUB, GGML_LANES, importance + j * SUB, weights);
        for (int i = 0; i < SUB; i++)
            for (int lane = 0; lane < GGML_LANES; lane++) {
                weights[i][lane] *= sqrtf(sigma2 + lanes[i][lane] * lanes[i][lane]);
                totals[j + lane] += weights[i][lane];
            }
        ggml_search_signed(SUB, GGML_LANES, 4, lanes, weights, codes + j * SUB, scales + j);
    }
    ggml_lanes_spread(SUB_BLOCKS, 1, scales, lanes);
    ggml_lanes_spread(SUB_BLOCKS, 1, totals, weights);
    ggml_search_signed(SUB_BLOCKS, 1, 32, lanes, weights, scale_codes, &d);
    return d;
}

static void q3_pack(const uint8_t *codes, const uint8_t *scale_codes, GgmlBlockQ3_K *block) {
    memset(block->scales, 0, sizeof block->scales);
    memset(block->hmask, 0, sizeof block->hmask);
    for (int j = 0; j < SUB_BLOCKS; j++) {
        uint8_t *low = &block->scales[j % 8], *high = &block->scales[8 + j % 4];
        *low = (uint8_t)(*low | (scale_codes[j] & 15) << (j < 8 ? 0 : 4));
        *high = (uint8_t)(*high | (scale_codes[j] >> 4) << 2 * (j / 4));
    }
    for (int i = 0; i < GGML_SUPER; i++)
        block->hmask[i % 32] = (uint8_t)(block->hmask[i % 32] | (codes[i] >> 2) << i / 32);
    for (int i = 0; i < 64; i++) {
        const uint8_t *c = codes + i / 32 * 128 + i % 32;
        block->qs[i] = (uint8_t)((c[0] & 3) | (c[32] & 3) << 2 | (c[64] & 3) << 4 | (c[96] & 3) << 6);
    }
}

void ggml_quantize_q3_k(const float *x, int64_t cols, const float *importance, void *out) {
    GgmlBlockQ3_K *block = out;
    for (int64_t i = 0; i < cols; i += GGML_SUPER, block++) {
        uint8_t codes[GGML_SUPER], scale_codes[SUB_BLOCKS];
        int scales[SUB_BLOCKS];
        block->d = f16_from_float(importance == NULL ? q3_scales_plain(x + i, codes, scale_codes)
                                                     : q3_scales_weighted(x + i, importance + i, codes, scale_codes));
        for (int j = 0; j < SUB_BLOCKS; j++)
            scales[j] = scale_codes[j] - 32;
        requantize(block->d, scales, 4, x + i, codes);
        q3_pack(codes, scale_codes, block);
    }
}

/* ---- Q6_K ---------------------------------------------------------------------------------------------------------------- */

static void q6_pack(const uint8_t *codes, GgmlBlockQ6_K *block) {
    for (int h = 0; h < 2; h++) {
        const uint8_t *c = codes + 128 * h;
        for (int l = 0; l < 64; l++)
            block->ql[64 * h + l] = (uint8_t)((c[l] & 15) | (c[l + 64] & 15) << 4);
        for (int l = 0; l < 32; l++)
            block->qh[32 * h + l] =
                (uint8_t)(c[l] >> 4 | (c[l + 32] >> 4) << 2 | (c[l + 64] >> 4) << 4 | (c[l + 96] >> 4) << 6);
    }
}

void ggml_quantize_q6_k(const float *x, int64_t cols, const float *importance, void *out) {
    GgmlBlockQ6_K *block = out;
    for (int64_t i = 0; i < cols; i += GGML_SUPER, block++) {
        uint8_t codes[GGML_SUPER];
        float scales[SUB_BLOCKS];
        int stored[SUB_BLOCKS];
        for (int j = 0; j < SUB_BLOCKS; j += GGML_LANES) {
            float lanes[SUB][GGML_LANES], weights[SUB][GGML_LANES];
            ggml_lanes_spread(SUB, GGML_LANES, x + i + j * SUB, lanes);
            if (importance != NULL) ggml_lanes_spread(SUB, GGML_LANES, importance + i + j * SUB, weights);
            ggml_search_signed(SUB, GGML_LANES, 32, lanes, importance != NULL ? weights : NULL, codes + j * SUB, scales + j);
        }
        float most = largest_scale(scales);
        if (fabsf(most) < 1e-15f) {
            memset(block, 0, sizeof *block);
            continue;
        }
        float inverse = -128.0f / most;
        block->d = f16_from_float(1.0f / inverse);
        for (int j = 0; j < SUB_BLOCKS; j++) {
            int scale = ggml_nearest(inverse * scales[j]);
            block->scales[j] = (int8_t)(scale < 127 ? scale : 127);
            stored[j] = block->scales[j];
        }
        requantize(block->d, stored, 32, x + i, codes);
        q6_pack(codes, block);
    }
}
