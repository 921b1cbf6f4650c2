/* Any weight format to F32, BF16 or F64; formulas and byte layouts in kernels/formats.h. */
#include "kernels/cpu/ref/ref.h"
#include "kernels/ggml_decode.h"

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

static float grouped_value(const WeightView *weight, int64_t i) {
    int64_t row = i / weight->cols, column = i % weight->cols, groups = weight->cols / weight->block_size;
    int64_t group = weight->group_index != NULL ? weight->group_index[column] : column / weight->block_size;
    int64_t at = row * groups + group;
    int zero = weight->zeros != NULL ? weight->zeros[at] : 1 << (weight->bits - 1);
    int code =
        grouped_code((const uint8_t *)weight->data + row * grouped_row_bytes(weight->cols, weight->bits), weight->bits, column);
    float value = (float)(code - zero) * weight->scales[at];
    return weight->scale_type == DTYPE_BF16  ? bf16_round(value)
           : weight->scale_type == DTYPE_F16 ? f16_to_float(f16_from_float(value))
                                             : value;
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
        case WEIGHT_GROUPED: return (double)grouped_value(weight, i);
        case WEIGHT_BF16: return ref_load(DTYPE_BF16, weight->data, i);
        case WEIGHT_F32: return ref_load(DTYPE_F32, weight->data, i);
        case WEIGHT_GGML: return (double)f16_to_float(((const f16 *)weight->data)[i]); /* with blocks: ggml_part */
        default: return ref_load(DTYPE_F64, weight->data, i);
    }
}

/* Up to 32 elements from `first` on that share a run of ggml's blocks; returns how many. */
static int64_t ggml_part(const WeightView *weight, int64_t first, int64_t count, float out[GGML_RUN]) {
    float run[GGML_RUN];
    int64_t inside = first % GGML_RUN, part = ref_min(GGML_RUN - inside, count);
    ggml_decode_run(weight->ggml_type, weight->data, first / GGML_RUN, run);
    memcpy(out, run + inside, (size_t)part * sizeof *out);
    return part;
}

static int has_ggml_blocks(const WeightView *weight) {
    return weight->format == WEIGHT_GGML && weight->ggml_type != GGML_F16;
}

static void dequantize(const WeightView *weight, int64_t first, int64_t count, void *out, DType out_type) {
    float part[GGML_RUN];
    for (int64_t i = 0, some; has_ggml_blocks(weight) && i < count; i += some) {
        some = ggml_part(weight, first + i, count - i, part);
        for (int64_t j = 0; j < some; j++)
            ref_store(out_type, out, i + j, (double)part[j]);
    }
    for (int64_t i = 0; !has_ggml_blocks(weight) && i < count; i++)
        ref_store(out_type, out, i, element(weight, first + i));
}

void ref_load_weight(const WeightView *weight, int64_t first, int64_t count, DType act, double *out) {
    float part[GGML_RUN];
    for (int64_t i = 0, some; has_ggml_blocks(weight) && i < count; i += some) {
        some = ggml_part(weight, first + i, count - i, part);
        for (int64_t j = 0; j < some; j++)
            out[i + j] = ref_round(act, (double)part[j]);
    }
    for (int64_t i = 0; !has_ggml_blocks(weight) && i < count; i++)
        out[i] = ref_round(act, element(weight, first + i));
}

void ref_dequantize(Backend *backend) {
    backend->dequantize = dequantize;
}
