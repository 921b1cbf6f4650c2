/* Super-blocks with a scale and a min for each sub-block: Q2_K, Q4_K, Q5_K.
 * Source: ggml 0.25.3 src/ggml-quants.c, quantize_row_q{2,4,5}_K_ref and _impl. */
#include <math.h>
#include <string.h>

#include "core/dtype.h"
#include "quant/ggml_internal.h"

#define SUB_BLOCKS_MAX 16

/* What differs between the types. */
typedef struct SuperForm {
    int size;       /* elements of a sub-block: 16 or 32 */
    int scale_max;  /* largest code of a scale or a min: 15 or 63 */
    float variance; /* with an importance: sigma2 is so many times the mean square */
    GgmlMinSearch plain, weighted;
} SuperForm;

static const SuperForm q2_form = {.size = 16,
                                  .scale_max = 15,
                                  .variance = 1.0f,
                                  .plain = {.levels = 3, .first = -0.5f, .step = 0.1f, .steps = 15, .is_absolute = 1},
                                  .weighted = {.levels = 3, .first = -0.9f, .step = 0.05f, .steps = 36}};
static const SuperForm q4_form = {.size = 32,
                                  .scale_max = 63,
                                  .variance = 2.0f,
                                  .plain = {.levels = 15, .first = -1.0f, .step = 0.1f, .steps = 20},
                                  .weighted = {.levels = 15, .first = -0.9f, .step = 0.05f, .steps = 36}};
static const SuperForm q5_form = {.size = 32,
                                  .scale_max = 63,
                                  .variance = 2.0f,
                                  .plain = {.levels = 31, .first = -0.5f, .step = 0.1f, .steps = 15},
                                  .weighted = {.levels = 31, .first = -0.9f, .step = 0.05f, .steps = 36}};

/* A super-block before it is packed. */
typedef struct SuperBlock {
    uint8_t codes[GGML_SUPER];
    uint8_t scales[SUB_BLOCKS_MAX], mins[SUB_BLOCKS_MAX];
    f16 d, dmin;
} SuperBlock;

/* Codes of the sub-blocks' scales (or mins) relative to the largest, and the factor. */
static float scales_plain(const SuperForm *form, const float *values, uint8_t *codes) {
    int count = GGML_SUPER / form->size;
    float largest = 0.0f, top = (float)form->scale_max;
    for (int j = 0; j < count; j++)
        if (values[j] > largest) largest = values[j];
    float inverse = largest > 0.0f ? top / largest : 0.0f;
    for (int j = 0; j < count; j++) {
        uint8_t code = (uint8_t)ggml_nearest(inverse * values[j]);
        codes[j] = code < form->scale_max ? code : (uint8_t)form->scale_max;
    }
    return largest / top;
}

/* Of the sub-blocks in the lanes: x [form->size]. */
static void plain_weights(const SuperForm *form, const float (*x)[GGML_LANES], float (*weights)[GGML_LANES]) {
    float base[GGML_LANES] = {0};
    if (form->size == 32) { /* Q2_K weighs by the magnitude alone */
        for (int i = 0; i < 32; i++)
            for (int lane = 0; lane < GGML_LANES; lane++)
                base[lane] += x[i][lane] * x[i][lane];
        for (int lane = 0; lane < GGML_LANES; lane++)
            base[lane] = sqrtf(base[lane] / 32.0f);
    }
    for (int i = 0; i < form->size; i++)
        for (int lane = 0; lane < GGML_LANES; lane++)
            weights[i][lane] = base[lane] + fabsf(x[i][lane]);
}

/* importance [lanes of size], and *totals the sums of the weights. */
static void importance_weights(const SuperForm *form, const float (*x)[GGML_LANES], float sigma2, const float *importance,
                               float (*weights)[GGML_LANES], float *totals) {
    ggml_lanes_spread(form->size, GGML_LANES, importance, weights);
    for (int lane = 0; lane < GGML_LANES; lane++)
        totals[lane] = 0.0f;
    for (int i = 0; i < form->size; i++)
        for (int lane = 0; lane < GGML_LANES; lane++) {
            weights[i][lane] *= sqrtf(sigma2 + x[i][lane] * x[i][lane]);
            totals[lane] += weights[i][lane];
        }
}

static void super_search(const SuperForm *form, const float *x, const float *importance, SuperBlock *out) {
    float lanes[GGML_SEARCH_MAX][GGML_LANES], weights[GGML_SEARCH_MAX][GGML_LANES];
    float scales[SUB_BLOCKS_MAX], mins[SUB_BLOCKS_MAX], totals[SUB_BLOCKS_MAX], sigma2 = 0.0f;
    int count = GGML_SUPER / form->size;
    if (importance != NULL) {
        float sum = 0.0f;
        for (int i = 0; i < GGML_SUPER; i++)
            sum += x[i] * x[i];
        sigma2 = form->variance * sum / (float)GGML_SUPER;
    }
    for (int j = 0; j < count; j += GGML_LANES) {
        int first = j * form->size;
        ggml_lanes_spread(form->size, GGML_LANES, x + first, lanes);
        if (importance != NULL)
            importance_weights(form, lanes, sigma2, importance + first, weights, totals + j);
        else
            plain_weights(form, lanes, weights);
        ggml_search_min(importance != NULL ? &form->weighted : &form->plain, form->size, GGML_LANES, lanes, weights,
                        out->codes + first, scales + j, mins + j);
    }
    if (importance != NULL) {
        out->d = f16_from_float(ggml_search_positive(count, form->scale_max, scales, totals, out->scales));
        out->dmin = f16_from_float(ggml_search_positive(count, form->scale_max, mins, totals, out->mins));
    } else {
        out->d = f16_from_float(scales_plain(form, scales, out->scales));
        out->dmin = f16_from_float(scales_plain(form, mins, out->mins));
    }
}

/* Codes again, with the scales as they are stored. Where a factor is 0 the codes of the search stay: they decode to nothing, but
 * they are bytes of the file. */
static void requantize(const SuperForm *form, const float *x, SuperBlock *out) {
    float d_all = f16_to_float(out->d), min_all = f16_to_float(out->dmin);
    for (int j = 0; j < GGML_SUPER / form->size; j++) {
        float d = d_all * (float)out->scales[j], min = min_all * (float)out->mins[j];
        if (d == 0.0f) continue;
        int first = j * form->size;
        ggml_codes(form->size, x + first, min, d, 0, form->plain.levels, 0, out->codes + first);
    }
}

static void super_quantize(const SuperForm *form, const float *x, const float *importance, SuperBlock *out) {
    super_search(form, x, importance, out);
    requantize(form, x, out);
}

/* ---- packing ------------------------------------------------------------------------------------------------------------- */

static void pack_scales(const SuperBlock *from, uint8_t scales[12]) {
    for (int j = 0; j < 4; j++) {
        int scale = from->scales[j + 4], min = from->mins[j + 4];
        scales[j] = (uint8_t)(from->scales[j] | (scale >> 4) << 6);
        scales[j + 4] = (uint8_t)(from->mins[j] | (min >> 4) << 6);
        scales[j + 8] = (uint8_t)((scale & 15) | (min & 15) << 4);
    }
}

static void pack_nibbles(const uint8_t *codes, uint8_t *qs) {
    for (int i = 0; i < GGML_SUPER / 2; i++) {
        const uint8_t *chunk = codes + i / 32 * 64 + i % 32;
        qs[i] = (uint8_t)((chunk[0] & 15) | (chunk[32] & 15) << 4);
    }
}

static const float *at(const float *importance, int64_t i) {
    return importance != NULL ? importance + i : NULL;
}

void ggml_quantize_q2_k(const float *x, int64_t cols, const float *importance, void *out) {
    GgmlBlockQ2_K *block = out;
    for (int64_t i = 0; i < cols; i += GGML_SUPER, block++) {
        SuperBlock super;
        super_quantize(&q2_form, x + i, at(importance, i), &super);
        block->d = super.d;
        block->dmin = super.dmin;
        for (int j = 0; j < 16; j++)
            block->scales[j] = (uint8_t)(super.scales[j] | super.mins[j] << 4);
        for (int j = 0; j < 64; j++) {
            const uint8_t *c = super.codes + j / 32 * 128 + j % 32;
            block->qs[j] = (uint8_t)(c[0] | c[32] << 2 | c[64] << 4 | c[96] << 6);
        }
    }
}

void ggml_quantize_q4_k(const float *x, int64_t cols, const float *importance, void *out) {
    GgmlBlockQ4_K *block = out;
    for (int64_t i = 0; i < cols; i += GGML_SUPER, block++) {
        SuperBlock super;
        super_quantize(&q4_form, x + i, at(importance, i), &super);
        block->d = super.d;
        block->dmin = super.dmin;
        pack_scales(&super, block->scales);
        pack_nibbles(super.codes, block->qs);
    }
}

void ggml_quantize_q5_k(const float *x, int64_t cols, const float *importance, void *out) {
    GgmlBlockQ5_K *block = out;
    for (int64_t i = 0; i < cols; i += GGML_SUPER, block++) {
        SuperBlock super;
        super_quantize(&q5_form, x + i, at(importance, i), &super);
        block->d = super.d;
        block->dmin = super.dmin;
        pack_scales(&super, block->scales);
        pack_nibbles(super.codes, block->qs);
        memset(block->qh, 0, sizeof block->qh);
        for (int j = 0; j < GGML_SUPER; j++)
            block->qh[j % 32] = (uint8_t)(block->qh[j % 32] | (super.codes[j] >> 4) << j / 32);
    }
}
