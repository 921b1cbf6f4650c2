/* NF4 and FP4 codes, byte for byte those of the reference (kernels/cpu/ref/quantize4.c has the rules); and decoding. */
#include "kernels/cpu/simd/entries.h"
#include "kernels/cpu/simd/operand.h"

static const float nf4_thresholds[15] = NF4_THRESHOLDS;
static const float fp4_thresholds[15] = FP4_THRESHOLDS;
static const uint8_t fp4_order[16] = FP4_ORDER;
static const uint8_t nf4_order[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

/* Largest magnitude as bits: for floats without their sign the order of the bits is the order of the values, and everything
 * that is not finite comes after everything that is. */
static uint32_t largest_bits(const float *x, int64_t count) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        bits &= 0x7FFFFFFFu;
        largest = bits > largest ? bits : largest;
    }
    return largest;
}

static int64_t first_nonfinite(const float *x, int64_t count) {
    int64_t i = 0;
    while (i < count && largest_bits(x + i, 1) < 0x7F800000u)
        i++;
    return i;
}

/* Codes of a block; the lanes past its end encode 0, and are what an odd tail's last nibble takes. */
static void encode_block(const float *x, int64_t count, float divisor, int divide, const float *thresholds,
                         const uint8_t *order, uint8_t *codes) {
    float reciprocal = 1.0f / divisor;
    for (int64_t i = 0; i < count; i += SIMD_WIDTH) {
        vf value = vf_load_act(x, DTYPE_F32, i, count - i);
        vf y = divide ? value / vf_set(divisor) : value * vf_set(reciprocal);
        vi below = {0};
        SIMD_UNROLL
        for (int t = 0; t < 15; t++)
            below -= (vi)(y > vf_set(thresholds[t]));
        int32_t n[SIMD_WIDTH];
        memcpy(n, &below, sizeof n);
        int64_t bytes = least(SIMD_WIDTH, count - i + 1) / 2;
        for (int64_t b = 0; b < bytes; b++)
            codes[i / 2 + b] = (uint8_t)(order[n[2 * b]] << 4 | order[n[2 * b + 1]]);
    }
}

static int64_t quantize_4bit(WeightFormat format, const float *x, int64_t values, int64_t block_size, uint8_t *codes,
                             float *absmax) {
    const float *thresholds = format == WEIGHT_NF4 ? nf4_thresholds : fp4_thresholds;
    const uint8_t *order = format == WEIGHT_NF4 ? nf4_order : fp4_order;
    for (int64_t first = 0; first < values; first += block_size) {
        int64_t count = least(block_size, values - first);
        uint32_t bits = largest_bits(x + first, count);
        if (bits >= 0x7F800000u) return first + first_nonfinite(x + first, count);
        float largest;
        memcpy(&largest, &bits, sizeof largest);
        float divisor = largest > ABSMAX_FLOOR ? largest : ABSMAX_FLOOR;
        int tail = count < block_size;
        encode_block(x + first, count, divisor, tail, thresholds, order, codes + first / 2);
        absmax[first / block_size] = tail && largest > 0.0f ? divisor : largest;
    }
    return -1;
}

/* F64, on either side, is the reference's. */
static void dequantize(const WeightView *weight, int64_t first, int64_t count, void *out, DType out_type) {
    if (weight->format == WEIGHT_F64 || out_type == DTYPE_F64) {
        Backend reference = {0};
        ref_dequantize(&reference);
        reference.dequantize(weight, first, count, out, out_type);
        return;
    }
    float values[256];
    for (int64_t done = 0; done < count;) {
        int64_t run = least(256, count - done);
        if (weight->format == WEIGHT_INT8) run = least(run, weight->cols - (first + done) % weight->cols);
        weight_read(weight, out_type, first + done, run, values);
        for (int64_t i = 0; i < run; i += SIMD_WIDTH)
            vf_store_act(out, out_type, done + i, run - i, vf_load(values + i));
        done += run;
    }
}

void simd_quantize(Backend *backend) {
    backend->quantize_4bit = quantize_4bit;
    backend->dequantize = dequantize;
    backend->variant.quantize = SIMD_VARIANT;
}
