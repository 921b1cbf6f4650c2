/* Shapes and storage of quantized weights. */
#include <string.h>

#include "quant/double_quant.h"
#include "quant/quantize.h"

static int is_power_of_two(int32_t x) {
    return x > 0 && (x & (x - 1)) == 0;
}

static int is_4bit_blockwise(WeightFormat format) {
    return format == WEIGHT_NF4 || format == WEIGHT_FP4;
}

const float *quant_code_table(WeightFormat format) {
    static const float nf4[16] = NF4_CODES, fp4[16] = FP4_CODES;
    return format == WEIGHT_FP4 ? fp4 : nf4;
}

Status quant_check(const QuantSpec *spec, int64_t rows, int64_t cols, Error *err) {
    const char *name = weight_format_name(spec->format);
    int64_t values;
    if (rows <= 0 || cols <= 0 || __builtin_mul_overflow(rows, cols, &values) || values > INT64_MAX / 8)
        FAIL("cannot quantize a weight of shape [%lld, %lld]", (long long)rows, (long long)cols);
    if (spec->double_quant && !is_4bit_blockwise(spec->format))
        FAIL("%s has no double quantization: want nf4 or fp4, or double_quant false", name);
    switch (spec->format) {
        case WEIGHT_NF4:
        case WEIGHT_FP4:
            if (!is_power_of_two(spec->block_size) || spec->block_size < 32 || spec->block_size > 4096)
                FAIL("%s: block_size: want a power of two from 32 to 4096, got %d", name, (int)spec->block_size);
            return OK;
        case WEIGHT_INT4:
            if (spec->block_size != 32 && spec->block_size != 64 && spec->block_size != 128)
                FAIL("int4: block_size: want 32, 64 or 128, got %d", (int)spec->block_size);
            if (cols % spec->block_size != 0)
                FAIL_USAGE("int4: groups of %d do not divide the width %lld; %s, and nf4 takes any width",
                           (int)spec->block_size, (long long)cols,
                           cols % 64 == 0   ? "a block_size of 64 or 32 does"
                           : cols % 32 == 0 ? "a block_size of 32 does"
                                            : "no group of 32, 64 or 128 does");
            return OK;
        case WEIGHT_INT8: return OK;
        case WEIGHT_F32:
        case WEIGHT_BF16:
        case WEIGHT_F64:
        case WEIGHT_GGML:
        case WEIGHT_FORMATS: break;
    }
    FAIL("a weight is quantized to nf4, fp4, int8 or int4, not to %s", spec->format < WEIGHT_FORMATS ? name : "this");
}

static int64_t count_constants(const QuantSpec *spec, int64_t rows, int64_t cols) {
    return spec->format == WEIGHT_INT8 ? rows : weight_blocks(rows, cols, spec->block_size);
}

int64_t quant_nested_constants(const QuantSpec *spec, int64_t rows, int64_t cols) {
    return spec->double_quant ? count_constants(spec, rows, cols) : 0;
}

static Status take_floats(Arena *arena, int64_t count, float **out, Error *err) {
    void *place;
    TRY(arena_take(arena, (size_t)count * sizeof(float), &place, err));
    *out = place;
    return OK;
}

static Status take_bytes(Arena *arena, size_t count, uint8_t **out, Error *err) {
    void *place;
    TRY(arena_take(arena, count, &place, err));
    *out = place;
    return OK;
}

Status quantized_take(QuantizedTensor *tensor, const QuantSpec *spec, int64_t rows, int64_t cols, Arena *arena, Error *err) {
    TRY(quant_check(spec, rows, cols, err));
    memset(tensor, 0, sizeof *tensor);
    tensor->spec = *spec;
    tensor->rows = rows;
    tensor->cols = cols;
    tensor->blocks = count_constants(spec, rows, cols);
    tensor->code_bytes = spec->format == WEIGHT_INT8 ? (size_t)(rows * cols) : (size_t)((rows * cols + 1) / 2);
    TRY(take_bytes(arena, tensor->code_bytes, &tensor->codes, err));
    if (is_4bit_blockwise(spec->format)) TRY(take_floats(arena, 16, &tensor->code_table, err));
    if (!spec->double_quant) return take_floats(arena, tensor->blocks, &tensor->scales, err);
    tensor->nested_blocks = (tensor->blocks + NESTED_BLOCK - 1) / NESTED_BLOCK;
    TRY(take_bytes(arena, (size_t)tensor->blocks, &tensor->nested_codes, err));
    TRY(take_floats(arena, tensor->nested_blocks, &tensor->nested_absmax, err));
    return take_floats(arena, DYNAMIC_MAP_ENTRIES, &tensor->nested_map, err);
}

WeightView quantized_view(const QuantizedTensor *tensor) {
    return (WeightView){.format = tensor->spec.format,
                        .rows = tensor->rows,
                        .cols = tensor->cols,
                        .data = tensor->codes,
                        .scales = tensor->scales,
                        .block_size = tensor->spec.block_size,
                        .codes = tensor->code_table,
                        .nested_codes = tensor->nested_codes,
                        .nested_absmax = tensor->nested_absmax,
                        .nested_map = tensor->nested_map,
                        .nested_offset = tensor->nested_offset};
}
