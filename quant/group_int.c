#include "quant/group_int.h"

#include <string.h>

#include "core/memory.h"

Status group_int_check(const GroupInt *grid, int64_t rows, int64_t cols, Error *err) {
    int64_t values;
    if (rows <= 0 || cols <= 0 || __builtin_mul_overflow(rows, cols, &values) || values > INT64_MAX / 8)
        FAIL("cannot quantize a [%lld, %lld] weight", (long long)rows, (long long)cols);
    if (grid->bits < 2 || grid->bits > 8) FAIL("integer codes have 2 to 8 bits, got %d", grid->bits);
    if (grid->group < 0 || (grid->group > 0 && cols % grid->group != 0))
        FAIL("groups of %lld do not divide rows of %lld; take a smaller group", (long long)grid->group, (long long)cols);
    if (grid->scale_type != DTYPE_F32 && grid->scale_type != DTYPE_BF16 && grid->scale_type != DTYPE_F16)
        FAIL("scales of integer groups are F32, BF16 or F16, not %s", dtype_name(grid->scale_type));
    return OK;
}

Status group_int_alloc(GroupIntTensor *tensor, const GroupInt *grid, int64_t rows, int64_t cols, Error *err) {
    memset(tensor, 0, sizeof *tensor);
    TRY(group_int_check(grid, rows, cols, err));
    tensor->grid = *grid;
    tensor->rows = rows;
    tensor->cols = cols;
    tensor->groups = cols / group_int_columns(grid, cols);
    size_t constants = (size_t)(rows * tensor->groups);
    tensor->codes = memory_alloc((size_t)(rows * cols));
    tensor->scales = memory_alloc(constants * sizeof *tensor->scales);
    tensor->zeros = grid->symmetric ? NULL : memory_alloc(constants);
    return OK;
}

void group_int_free(GroupIntTensor *tensor) {
    memory_free(tensor->codes);
    memory_free(tensor->scales);
    memory_free(tensor->zeros);
    memory_free(tensor->g_idx);
    tensor->codes = tensor->zeros = NULL;
    tensor->scales = NULL;
    tensor->g_idx = NULL;
}

/* ---- scales ---------------------------------------------------------------------------------------------------------------- */

static float epsilon(DType type) {
    return type == DTYPE_BF16 ? 0x1p-7f : type == DTYPE_F16 ? 0x1p-10f : 0x1p-23f;
}

void group_int_scale(const GroupInt *grid, float least, float most, float *scale, uint8_t *zero) {
    float levels = (float)((1 << grid->bits) - 1), center = (float)(1 << (grid->bits - 1));
    if (!(least < 0.0f)) least = 0.0f;
    if (!(most > 0.0f)) most = 0.0f;
    float size = -least > most ? -least : most;
    float s = group_int_round(grid->symmetric ? size / (levels / 2.0f) : (most - least) / levels, grid->scale_type);
    if (s == 0.0f) s = epsilon(grid->scale_type);
    float z = grid->symmetric ? 0.0f : rintf(-center - least / s);
    z = z < -center ? -center : z > center - 1.0f ? center - 1.0f : z;
    *scale = s;
    *zero = (uint8_t)(int)(z + center);
}

void group_int_scale_of(const GroupInt *grid, const float *x, int64_t count, float *scale, uint8_t *zero) {
    float least = 0.0f, most = 0.0f;
    for (int64_t i = 0; i < count; i++) {
        if (x[i] < least) least = x[i];
        if (x[i] > most) most = x[i];
    }
    group_int_scale(grid, least, most, scale, zero);
}

static int lies_on(const GroupInt *grid, const float *x, int64_t count, float scale) {
    uint8_t zero = (uint8_t)(1 << (grid->bits - 1));
    for (int64_t i = 0; i < count; i++) {
        uint8_t code = group_int_code(grid->bits, x[i], scale, zero, NULL);
        if (group_int_value(code, scale, zero, grid->scale_type) != x[i]) return 0;
    }
    return 1;
}

int group_int_found_scale(const GroupInt *grid, const float *x, int64_t count, float *scale) {
    float most = 0.0f;
    for (int64_t i = 0; i < count; i++) {
        if (!isfinite(x[i])) return 0;
        if (fabsf(x[i]) > most) most = fabsf(x[i]);
    }
    if (!grid->symmetric || most == 0.0f) return 0;
    for (int code = 1 << (grid->bits - 1); code > 0; code--) {
        float near = group_int_round(most / (float)code, grid->scale_type);
        /* the greatest value was rounded, too: the scale may be a neighbour, between 3/4 and 3/2 of a last place away */
        double apart = 1.5 * (double)near *
                       (grid->scale_type == DTYPE_BF16  ? 0x1p-8
                        : grid->scale_type == DTYPE_F16 ? 0x1p-11
                                                        : 0x1p-24);
        const float tries[3] = {near, group_int_round((float)((double)near - apart), grid->scale_type),
                                group_int_round((float)((double)near + apart), grid->scale_type)};
        for (int i = 0; i < 3; i++) {
            if (!(tries[i] > 0.0f) || !isfinite(tries[i]) || !lies_on(grid, x, count, tries[i])) continue;
            *scale = tries[i];
            return 1;
        }
    }
    return 0;
}

int group_int_scales(const GroupInt *grid, const float *x, int64_t cols, float *scales, uint8_t *zeros) {
    int64_t group = group_int_columns(grid, cols);
    int finite = 1;
    for (int64_t i = 0; i < cols; i++)
        finite &= isfinite(x[i]) != 0;
    if (!finite) return -1;
    for (int64_t g = 0; g * group < cols; g++) {
        group_int_scale_of(grid, x + g * group, group, &scales[g], &zeros[g]);
        finite &= isfinite(scales[g]) != 0;
    }
    return finite ? 0 : -1;
}

/* ---- codes ----------------------------------------------------------------------------------------------------------------- */

void group_int_quantize_given_scale(const GroupInt *grid, const float *x, int64_t count, float scale, uint8_t zero,
                                    uint8_t *codes) {
    int bits = grid->bits;
    for (int64_t i = 0; i < count; i++)
        codes[i] = group_int_code(bits, x[i], scale, zero, NULL);
}

void group_int_quantize_given_scales(const GroupInt *grid, const float *x, int64_t cols, const float *scales,
                                     const uint8_t *zeros, const int32_t *g_idx, uint8_t *codes) {
    int64_t group = group_int_columns(grid, cols);
    uint8_t center = (uint8_t)(1 << (grid->bits - 1));
    if (g_idx != NULL) {
        for (int64_t c = 0; c < cols; c++)
            codes[c] = group_int_code(grid->bits, x[c], scales[g_idx[c]], zeros != NULL ? zeros[g_idx[c]] : center, NULL);
        return;
    }
    for (int64_t g = 0; g * group < cols; g++)
        group_int_quantize_given_scale(grid, x + g * group, group, scales[g], zeros != NULL ? zeros[g] : center,
                                       codes + g * group);
}

int group_int_quantize_row(GroupIntTensor *tensor, int64_t row, const float *x) {
    const GroupInt *grid = &tensor->grid;
    int64_t cols = tensor->cols, group = group_int_columns(grid, cols), first = row * tensor->groups;
    int finite = 1;
    for (int64_t i = 0; i < cols; i++)
        finite &= isfinite(x[i]) != 0;
    if (!finite) return -1;
    for (int64_t g = 0; g < tensor->groups; g++) {
        uint8_t zero;
        float scale;
        group_int_scale_of(grid, x + g * group, group, &scale, &zero);
        finite &= isfinite(scale) != 0;
        tensor->scales[first + g] = scale;
        if (tensor->zeros != NULL) tensor->zeros[first + g] = zero;
        if (finite)
            group_int_quantize_given_scale(grid, x + g * group, group, scale, zero, tensor->codes + row * cols + g * group);
    }
    return finite ? 0 : -1;
}

void group_int_dequantize_row(const GroupIntTensor *tensor, int64_t row, float *out) {
    const GroupInt *grid = &tensor->grid;
    const uint8_t *codes = tensor->codes + row * tensor->cols;
    int64_t group = group_int_columns(grid, tensor->cols);
    uint8_t center = (uint8_t)(1 << (grid->bits - 1));
    for (int64_t c = 0; c < tensor->cols; c++) {
        int64_t g = row * tensor->groups + (tensor->g_idx != NULL ? tensor->g_idx[c] : c / group);
        out[c] =
            group_int_value(codes[c], tensor->scales[g], tensor->zeros != NULL ? tensor->zeros[g] : center, grid->scale_type);
    }
}

/* ---- packing --------------------------------------------------------------------------------------------------------------- */

void group_int_pack(int bits, const uint8_t *codes, int64_t count, uint8_t *packed) {
    uint32_t held = 0;
    int filled = 0;
    for (int64_t i = 0; i < count; i++) {
        held |= (uint32_t)codes[i] << filled;
        for (filled += bits; filled >= 8; filled -= 8, held >>= 8)
            *packed++ = (uint8_t)held;
    }
    if (filled > 0) *packed = (uint8_t)held;
}

void group_int_unpack(int bits, const uint8_t *packed, int64_t count, uint8_t *codes) {
    uint32_t held = 0, mask = (1u << bits) - 1u;
    int filled = 0;
    for (int64_t i = 0; i < count; i++) {
        for (; filled < bits; filled += 8)
            held |= (uint32_t)*packed++ << filled;
        codes[i] = (uint8_t)(held & mask);
        held >>= bits;
        filled -= bits;
    }
}
