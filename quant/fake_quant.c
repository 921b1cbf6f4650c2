#include "quant/fake_quant.h"

#include <math.h>

#include "quant/ggml_internal.h"
#include "quant/quantize.h"

Status fake_quant_check(const FakeQuant *fake, int64_t rows, int64_t cols, Error *err) {
    int64_t bytes;
    if (rows <= 0 || cols <= 0) FAIL("cannot quantize a [%lld, %lld] weight", (long long)rows, (long long)cols);
    switch (fake->grid) {
        case FAKE_INT:
            if (fake->bits < 2 || fake->bits > 8) FAIL("integer codes have 2 to 8 bits, got %d", fake->bits);
            if (fake->group < 0 || (fake->group > 0 && cols % fake->group != 0))
                FAIL("groups of %lld do not divide rows of %lld; take a smaller group", (long long)fake->group,
                     (long long)cols);
            return OK;
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

static float round_to(float value, DType type) {
    return type == DTYPE_BF16 ? bf16_to_float(bf16_from_float(value)) : value;
}

typedef struct IntScale {
    float scale, zero, low, high;
} IntScale;

static IntScale int_scale(const FakeQuant *fake, const float *x, int64_t count) {
    float least = 0.0f, most = 0.0f, levels = (float)((1 << fake->bits) - 1);
    for (int64_t i = 0; i < count; i++) {
        if (x[i] < least) least = x[i];
        if (x[i] > most) most = x[i];
    }
    IntScale s = {.low = -(float)(1 << (fake->bits - 1)), .high = (float)((1 << (fake->bits - 1)) - 1)};
    float size = -least > most ? -least : most;
    s.scale = round_to(fake->symmetric ? size / (levels / 2.0f) : (most - least) / levels, fake->scale_type);
    if (s.scale == 0.0f) s.scale = fake->scale_type == DTYPE_BF16 ? 0x1p-7f : 0x1p-23f;
    if (fake->symmetric) return s;
    float zero = rintf(s.low - least / s.scale);
    s.zero = zero < s.low ? s.low : zero > s.high ? s.high : zero;
    return s;
}

static void int_group(const FakeQuant *fake, const float *x, int64_t count, float *out, uint8_t *mask) {
    IntScale s = int_scale(fake, x, count);
    for (int64_t i = 0; i < count; i++) {
        float q = rintf(x[i] / s.scale + s.zero);
        if (mask != NULL) mask[i] = q >= s.low && q <= s.high;
        q = q < s.low ? s.low : q > s.high ? s.high : q;
        out[i] = round_to((float)(int)(q - s.zero) * s.scale, fake->scale_type); /* a code has no -0 */
    }
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
        ggml_dequantize_q4_0(scratch, cols, out);
    } else if (grid == FAKE_Q8_0) {
        ggml_quantize_q8_0(x, cols, NULL, scratch);
        if (mask != NULL) memset(mask, 1, (size_t)cols);
        ggml_dequantize_q8_0(scratch, cols, out);
    } else {
        ggml_quantize_q4_k(x, cols, NULL, scratch);
        if (mask != NULL) mask_q4_k(x, cols, scratch, mask);
        ggml_dequantize_q4_k(scratch, cols, out);
    }
    return all_finite(out, cols) ? 0 : -1; /* a 16-bit scale became Inf */
}

int fake_quant_row(const FakeQuant *fake, const float *x, int64_t cols, float *out, uint8_t *mask, void *scratch) {
    if (!all_finite(x, cols)) return -1;
    if (fake->grid != FAKE_INT) return ggml_row(fake->grid, x, cols, out, mask, scratch);
    int64_t group = fake->group > 0 ? fake->group : cols;
    for (int64_t g = 0; g < cols; g += group)
        int_group(fake, x + g, group, out + g, mask != NULL ? mask + g : NULL);
    return all_finite(out, cols) ? 0 : -1;
}
