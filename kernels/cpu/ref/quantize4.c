/* NF4 and FP4 codes and absmax of consecutive blocks.
 *
 *   full block:   r = 1 / max(absmax, 1e-38);  y = x * r      (a product, not a quotient)
 *   short tail:   y = x / max(absmax, 1e-38)
 *   code: the n-th lowest value, n = how many thresholds lie below y
 *
 * The arithmetic is that of bitsandbytes' Python "default" backend, byte for
 * byte, with one exception: a short tail of zeros has absmax 0 (there 1e-38).
 */
#include "kernels/cpu/ref/ref.h"

#include <math.h>

static const float nf4_thresholds[15] = NF4_THRESHOLDS;
static const float fp4_thresholds[15] = FP4_THRESHOLDS;
static const uint8_t fp4_order[16] = FP4_ORDER;

static unsigned encode(WeightFormat format, float y) {
    const float *thresholds = format == WEIGHT_NF4 ? nf4_thresholds : fp4_thresholds;
    unsigned n = 0;
    while (n < 15 && y > thresholds[n])
        n++;
    return format == WEIGHT_NF4 ? n : fp4_order[n];
}

/* The largest magnitude, or -1 with the index of the first value that is not finite. */
static float block_absmax(const float *x, int64_t count, int64_t *bad) {
    float absmax = 0.0f;
    for (int64_t i = 0; i < count; i++) {
        if (!isfinite(x[i])) {
            *bad = i;
            return -1.0f;
        }
        if (fabsf(x[i]) > absmax) absmax = fabsf(x[i]);
    }
    return absmax;
}

static int64_t quantize_4bit(WeightFormat format, const float *x, int64_t values, int64_t block_size, uint8_t *codes,
                             float *absmax) {
    if (values % 2 != 0) codes[values / 2] = (uint8_t)encode(format, 0.0f);
    for (int64_t first = 0; first < values; first += block_size) {
        int64_t count = values - first < block_size ? values - first : block_size;
        int64_t bad = 0;
        float largest = block_absmax(x + first, count, &bad);
        if (largest < 0.0f) return first + bad;
        float divisor = largest > ABSMAX_FLOOR ? largest : ABSMAX_FLOOR;
        float reciprocal = 1.0f / divisor;
        int tail = count < block_size;
        for (int64_t i = first; i < first + count; i++) {
            unsigned code = encode(format, tail ? x[i] / divisor : x[i] * reciprocal);
            uint8_t *byte = &codes[i / 2];
            *byte = (uint8_t)(i % 2 == 0 ? (code << 4) | (*byte & 15u) : (*byte & 0xF0u) | code);
        }
        absmax[first / block_size] = tail && largest > 0.0f ? divisor : largest;
    }
    return -1;
}

void ref_quantize4(Backend *backend) {
    backend->quantize_4bit = quantize_4bit;
    backend->variant.quantize = "ref";
}
