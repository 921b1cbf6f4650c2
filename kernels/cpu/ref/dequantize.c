/* Any weight format to F32, BF16 or F64; formulas and byte layouts in kernels/formats.h. */
#include "kernels/cpu/ref/ref.h"

static float nibble_high_first(const WeightView *weight, int64_t i) {
    uint8_t byte = ((const uint8_t *)weight->data)[i / 2];
    return weight->codes[i % 2 == 0 ? byte >> 4 : byte & 15];
}

static float int4_value(const WeightView *weight, int64_t i) {
    uint8_t byte = ((const uint8_t *)weight->data)[i / 2];
    int code = (i % 2 == 0 ? byte & 15 : byte >> 4) - 8;
    /* groups do not cross rows, so groups of the flattened weight are groups of its rows */
    return (float)code * weight->scales[i / weight->block_size];
}

static float int8_value(const WeightView *weight, int64_t i) {
    float code = (float)((const int8_t *)weight->data)[i];
    return code * weight->scales[i / weight->cols] * INT8_DECODE;
}

static double element(const WeightView *weight, int64_t i) {
    switch (weight->format) {
        case WEIGHT_NF4:
        case WEIGHT_FP4: return (double)(nibble_high_first(weight, i) * weight_absmax(weight, i / weight->block_size));
        case WEIGHT_INT8: return (double)int8_value(weight, i);
        case WEIGHT_INT4: return (double)int4_value(weight, i);
        case WEIGHT_BF16: return ref_load(DTYPE_BF16, weight->data, i);
        case WEIGHT_F32: return ref_load(DTYPE_F32, weight->data, i);
        default: return ref_load(DTYPE_F64, weight->data, i);
    }
}

static void dequantize(const WeightView *weight, int64_t first, int64_t count, void *out, DType out_type) {
    for (int64_t i = 0; i < count; i++)
        ref_store(out_type, out, i, element(weight, first + i));
}

void ref_load_weight(const WeightView *weight, int64_t first, int64_t count, DType act, double *out) {
    for (int64_t i = 0; i < count; i++)
        out[i] = ref_round(act, element(weight, first + i));
}

void ref_dequantize(Backend *backend) {
    backend->dequantize = dequantize;
}
