#include "quant/fake_quant.h"

#include <math.h>

#include "quant/ggml_internal.h"
#include "quant/group_int.h"
#include "quant/quantize.h"

static GroupInt int_grid(const FakeQuant *fake) {
    return (GroupInt){.bits = fake->bits, .symmetric = fake->symmetric, .group = fake->group, .scale_type = fake->scale_type};
}

Status fake_quant_check(const FakeQuant *fake, int64_t rows, int64_t cols, Error *err) {
    int64_t bytes;
    GroupInt grid;
    if (rows <= 0 || cols <= 0) FAIL("cannot quantize a [%lld, %lld] weight", (long long)rows, (long long)cols);
    switch (fake->grid) {
        case FAKE_INT: grid = int_grid(fake); return group_int_check(&grid, rows, cols, err);
        case FAKE_Q4_0: return ggml_bytes(GGML_Q4_0, rows, cols, &bytes, err);
        case FAKE_Q8_0: return ggml_bytes(GGML_Q8_0, rows, cols, &bytes, err);
        case FAKE_Q4_K: return ggml_bytes(GGML_Q4_K, rows, cols, &bytes, err);
        case FAKE_NF4: break;
    }
    QuantSpec spec = {.format = WEIGHT_NF4, .double_quant = fake->double_quant, .block_size = fake->block_size};
    return quant_check(&spec, rows, cols, err);
}

int fake_quant_clips(const FakeQuant *fake) {
    return fake->grid == FAKE_INT || fake->grid == FAKE_Q4_0 || fake->grid == FAKE_Q4_K;
}

size_t fake_quant_scratch(const FakeQuant *fake, int64_t cols) {
    switch (fake->grid) {
        case FAKE_Q4_0: return (size_t)(cols / GGML_BLOCK) * sizeof(GgmlBlockQ4_0);
        case FAKE_Q8_0: return (size_t)(cols / GGML_BLOCK) * sizeof(GgmlBlockQ8_0);
        case FAKE_Q4_K: return (size_t)(cols / GGML_SUPER) * sizeof(GgmlBlockQ4_K);
        case FAKE_INT:
        case FAKE_NF4: break;
    }
    return 0;
}

static int all_finite(const float *x, int64_t count) {
    int finite = 1;
    for (int64_t i = 0; i < count; i++)
        finite &= isfinite(x[i]) != 0;
    return finite;
}

/* ---- integer groups -------------------------------------------------------------------------------------------------------- */

static void int_group(const GroupInt *grid, const float *x, int64_t count, float *out, uint8_t *mask) {
    int bits = grid->bits;
    DType type = grid->scale_type;
    float scale;
    uint8_t zero;
    group_int_scale_of(grid, x, count, &scale, &zero);
    for (int64_t i = 0; i < count; i++) {
        uint8_t clipped, code = group_int_code(bits, x[i], scale, zero, &clipped);
        if (mask != NULL) mask[i] = !clipped;
        out[i] = group_int_value(code, scale, zero, type);
    }
}

int fake_quant_row_scaled(const FakeQuant *fake, const float *x, int64_t cols, const float *scales, float *out, uint8_t *mask,
                          float *slope) {
    if (!all_finite(x, cols)) return -1;
    int64_t group = fake->group > 0 ? fake->group : cols;
    uint8_t zero = (uint8_t)(1 << (fake->bits - 1));
    for (int64_t i = 0; i < cols; i++) {
        float scale = scales[i / group], steps = x[i] / scale;
        uint8_t clipped, code = group_int_code(fake->bits, x[i], scale, zero, &clipped);
        if (mask != NULL) mask[i] = !clipped;
        if (slope != NULL) slope[i] = (float)((int)code - (int)zero) - (clipped ? 0.0f : steps);
        out[i] = group_int_value(code, scale, zero, fake->scale_type);
    }
    return all_finite(out, cols) ? 0 : -1;
}

/* ---- ggml's blocks --------------------------------------------------------------------------------------------------------- */

/* Q4_0 takes -8 from the value of largest magnitude, so the far end of the other side can need +8, which is cut to +7. */
static void mask_q4_0(const float *x, int64_t cols, uint8_t *mask) {
    for (int64_t b = 0; b < cols; b += GGML_BLOCK) {
        float largest = 0.0f, value = 0.0f;
        for (int64_t i = b; i < b + GGML_BLOCK; i++)
            if (largest < fabsf(x[i])) {
                largest = fabsf(x[i]);
                value = x[i];
            }
        float d = value / -8.0f, inverse = d != 0.0f ? 1.0f / d : 0.0f;
        for (int64_t i = b; i < b + GGML_BLOCK; i++)
            mask[i] = !(x[i] * inverse + 8.5f >= 16.0f);
    }
}

static void mask_q4_k(const float *x, int64_t cols, const GgmlBlockQ4_K *block, uint8_t *mask) {
    for (int64_t i = 0; i < cols; i += 32) {
        const GgmlBlockQ4_K *super = block + i / GGML_SUPER;
        int scale, min;
        ggml_scale_min(super->scales, (int)(i % GGML_SUPER / 32), &scale, &min);
        float d = f16_to_float(super->d) * (float)scale, m = f16_to_float(super->dmin) * (float)min;
        for (int64_t k = i; k < i + 32; k++) {
            int code = d == 0.0f ? 0 : ggml_nearest((x[k] + m) / d);
            mask[k] = code >= 0 && code <= 15;
        }
    }
}

/* The mask before the values: out may be x. */
static int ggml_row(FakeGrid grid, const float *x, int64_t cols, float *out, uint8_t *mask, void *scratch) {
    if (grid == FAKE_Q4_0) {
        ggml_quantize_q4_0(x, cols, NULL, scratch);
        if (mask != NULL) mask_q4_0(x, cols, mask);
        ggml_dequantize_row(GGML_Q4_0, scratch, cols, out);
    } else if (grid == FAKE_Q8_0) {
        ggml_quantize_q8_0(x, cols, NULL, scratch);
        if (mask != NULL) memset(mask, 1, (size_t)cols);
        ggml_dequantize_row(GGML_Q8_0, scratch, cols, out);
    } else {
        ggml_quantize_q4_k(x, cols, NULL, scratch);
        if (mask != NULL) mask_q4_k(x, cols, scratch, mask);
        ggml_dequantize_row(GGML_Q4_K, scratch, cols, out);
    }
    return all_finite(out, cols) ? 0 : -1; /* a 16-bit scale became Inf */
}

int fake_quant_row(const FakeQuant *fake, const float *x, int64_t cols, float *out, uint8_t *mask, void *scratch) {
    if (!all_finite(x, cols)) return -1;
    if (fake->grid != FAKE_INT) return ggml_row(fake->grid, x, cols, out, mask, scratch);
    GroupInt grid = int_grid(fake);
    int64_t group = group_int_columns(&grid, cols);
    for (int64_t g = 0; g < cols; g += group)
        int_group(&grid, x + g, group, out + g, mask != NULL ? mask + g : NULL);
    return all_finite(out, cols) ? 0 : -1;
}
