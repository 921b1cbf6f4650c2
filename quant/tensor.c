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

static Status grouped_check(const QuantSpec *spec, int64_t rows, int64_t cols, Error *err) {
    GroupInt grid = quant_spec_grid(spec);
    TRY(group_int_check(&grid, rows, cols, err));
    if (spec->block_size % 8 != 0) FAIL("integer groups: want a multiple of 8 columns, got %d", (int)spec->block_size);
    if (cols > INT32_MAX) FAIL("integer groups: rows of %lld are too long", (long long)cols);
    return OK;
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
        case WEIGHT_GROUPED: return grouped_check(spec, rows, cols, err);
        case WEIGHT_F32:
        case WEIGHT_BF16:
        case WEIGHT_F64:
        case WEIGHT_GGML:
        case WEIGHT_FORMATS: break;
    }
    FAIL("a weight is quantized to nf4, fp4, int8, int4 or grouped integers, not to %s",
         spec->format < WEIGHT_FORMATS ? name : "this");
}

static int64_t count_constants(const QuantSpec *spec, int64_t rows, int64_t cols) {
    int by_row = spec->format == WEIGHT_INT8 || (spec->format == WEIGHT_GROUPED && spec->block_size == 0);
    return by_row ? rows : weight_blocks(rows, cols, spec->block_size);
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

static Status take_grouped(QuantizedTensor *tensor, Arena *arena, Error *err) {
    TRY(take_floats(arena, tensor->blocks, &tensor->scales, err));
    if (tensor->spec.zeros) TRY(take_bytes(arena, (size_t)tensor->blocks, &tensor->zeros, err));
    if (!tensor->spec.ordered) return OK;
    void *place;
    TRY(arena_take(arena, (size_t)tensor->cols * sizeof *tensor->group_index, &place, err));
    tensor->group_index = place;
    return OK;
}

Status quantized_take(QuantizedTensor *tensor, const QuantSpec *spec, int64_t rows, int64_t cols, Arena *arena, Error *err) {
    TRY(quant_check(spec, rows, cols, err));
    memset(tensor, 0, sizeof *tensor);
    tensor->spec = *spec;
    tensor->rows = rows;
    tensor->cols = cols;
    tensor->blocks = count_constants(spec, rows, cols);
    tensor->code_bytes = spec->format == WEIGHT_INT8      ? (size_t)(rows * cols)
                         : spec->format == WEIGHT_GROUPED ? (size_t)(rows * grouped_row_bytes(cols, spec->bits))
                                                          : (size_t)((rows * cols + 1) / 2);
    TRY(take_bytes(arena, tensor->code_bytes, &tensor->codes, err));
    if (is_4bit_blockwise(spec->format)) TRY(take_floats(arena, 16, &tensor->code_table, err));
    if (spec->format == WEIGHT_GROUPED) return take_grouped(tensor, arena, err);
    if (!spec->double_quant) return take_floats(arena, tensor->blocks, &tensor->scales, err);
    tensor->nested_blocks = (tensor->blocks + NESTED_BLOCK - 1) / NESTED_BLOCK;
    TRY(take_bytes(arena, (size_t)tensor->blocks, &tensor->nested_codes, err));
    TRY(take_floats(arena, tensor->nested_blocks, &tensor->nested_absmax, err));
    return take_floats(arena, DYNAMIC_MAP_ENTRIES, &tensor->nested_map, err);
}

int quant_spec_equal(const QuantSpec *a, const QuantSpec *b) {
    if (a->format != b->format || a->double_quant != b->double_quant || a->block_size != b->block_size) return 0;
    if (a->format != WEIGHT_GROUPED) return 1;
    return a->bits == b->bits && a->zeros == b->zeros && a->ordered == b->ordered && a->scale_type == b->scale_type;
}

QuantSpec quant_spec_grouped(const GroupInt *grid) {
    return (QuantSpec){.format = WEIGHT_GROUPED,
                       .block_size = (int32_t)grid->group,
                       .bits = grid->bits,
                       .zeros = !grid->symmetric,
                       .scale_type = grid->scale_type};
}

GroupInt quant_spec_grid(const QuantSpec *spec) {
    return (GroupInt){.bits = spec->bits, .symmetric = !spec->zeros, .group = spec->block_size, .scale_type = spec->scale_type};
}

static int stores(const QuantizedTensor *tensor, const GroupIntTensor *from) {
    const QuantSpec *spec = &tensor->spec;
    const GroupInt *grid = &from->grid;
    return spec->format == WEIGHT_GROUPED && spec->bits == grid->bits && spec->block_size == grid->group &&
           spec->scale_type == grid->scale_type && spec->ordered == (from->g_idx != NULL) &&
           (spec->zeros || from->zeros == NULL) && tensor->rows == from->rows && tensor->cols == from->cols;
}

Status quantized_store(QuantizedTensor *tensor, const GroupIntTensor *from, Error *err) {
    if (!stores(tensor, from)) FAIL("the codes that were decided on do not have the grid, shape or order of what is stored");
    int bits = tensor->spec.bits;
    int64_t stride = grouped_row_bytes(tensor->cols, bits), used = group_int_packed_bytes(bits, tensor->cols);
    for (int64_t r = 0; r < tensor->rows; r++) {
        group_int_pack(bits, from->codes + r * tensor->cols, tensor->cols, tensor->codes + r * stride);
        memset(tensor->codes + r * stride + used, 0, (size_t)(stride - used));
    }
    memcpy(tensor->scales, from->scales, (size_t)tensor->blocks * sizeof *tensor->scales);
    if (tensor->zeros != NULL && from->zeros != NULL)
        memcpy(tensor->zeros, from->zeros, (size_t)tensor->blocks);
    else if (tensor->zeros != NULL)
        memset(tensor->zeros, 1 << (bits - 1), (size_t)tensor->blocks);
    if (from->g_idx != NULL) memcpy(tensor->group_index, from->g_idx, (size_t)tensor->cols * sizeof *from->g_idx);
    return OK;
}

WeightView quantized_view(const QuantizedTensor *tensor) {
    int by_row = tensor->spec.format == WEIGHT_GROUPED && tensor->spec.block_size == 0;
    return (WeightView){.format = tensor->spec.format,
                        .rows = tensor->rows,
                        .cols = tensor->cols,
                        .data = tensor->codes,
                        .scales = tensor->scales,
                        .block_size = by_row ? (int32_t)tensor->cols : tensor->spec.block_size,
                        .codes = tensor->code_table,
                        .nested_codes = tensor->nested_codes,
                        .nested_absmax = tensor->nested_absmax,
                        .nested_map = tensor->nested_map,
                        .nested_offset = tensor->nested_offset,
                        .bits = tensor->spec.bits,
                        .scale_type = tensor->spec.scale_type,
                        .zeros = tensor->zeros,
                        .group_index = tensor->group_index};
}
