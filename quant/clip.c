#include "quant/clip.h"

#include <stdlib.h>
#include <string.h>

static double squared_error(const GroupInt *grid, const float *x, int64_t count, const float *importance, float scale,
                            uint8_t zero) {
    double sum = 0.0;
    for (int64_t i = 0; i < count; i++) {
        float value = group_int_value(group_int_code(grid->bits, x[i], scale, zero, NULL), scale, zero, grid->scale_type);
        double difference = (double)x[i] - (double)value;
        sum += (importance != NULL ? (double)importance[i] : 1.0) * difference * difference;
    }
    return sum;
}

static void extent(const float *x, int64_t count, float *least, float *most) {
    *least = *most = 0.0f;
    for (int64_t i = 0; i < count; i++) {
        if (x[i] < *least) *least = x[i];
        if (x[i] > *most) *most = x[i];
    }
}

static void search_mse(const GroupInt *grid, const float *x, int64_t count, const float *importance, float *scale,
                       uint8_t *zero) {
    float least, most;
    extent(x, count, &least, &most);
    double best = INFINITY;
    for (int step = 0; step < CLIP_STEPS; step++) {
        float part = 1.0f - (float)step / (float)CLIP_GRID, trial;
        uint8_t trial_zero;
        group_int_scale(grid, part * least, part * most, &trial, &trial_zero);
        double error = squared_error(grid, x, count, importance, trial, trial_zero);
        if (step > 0 && !(error < best)) continue;
        best = error;
        *scale = trial;
        *zero = trial_zero;
    }
}

static int compare_floats(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* sorted [count], ascending. */
static float percentile_of(const float *sorted, int64_t count, double percentile) {
    double at = percentile / 100.0 * (double)(count - 1);
    int64_t below = (int64_t)at;
    if (below >= count - 1) return sorted[count - 1];
    double part = at - (double)below;
    return (float)((1.0 - part) * (double)sorted[below] + part * (double)sorted[below + 1]);
}

static void take_percentile(const Clip *clip, const GroupInt *grid, const float *x, int64_t count, float *scale, uint8_t *zero,
                            float *sorted) {
    for (int64_t i = 0; i < count; i++)
        sorted[i] = grid->symmetric ? fabsf(x[i]) : x[i];
    qsort(sorted, (size_t)count, sizeof *sorted, compare_floats);
    float high = percentile_of(sorted, count, clip->percentile);
    float low = grid->symmetric ? -high : percentile_of(sorted, count, 100.0 - clip->percentile);
    group_int_scale(grid, low, high, scale, zero);
}

void clip_scale(const Clip *clip, const GroupInt *grid, const float *x, int64_t count, const float *importance, float *scale,
                uint8_t *zero, float *scratch) {
    switch (clip->method) {
        case CLIP_NONE: group_int_scale_of(grid, x, count, scale, zero); return;
        case CLIP_MSE: search_mse(grid, x, count, importance, scale, zero); return;
        case CLIP_PERCENTILE: take_percentile(clip, grid, x, count, scale, zero, scratch); return;
    }
}

int clip_quantize_row(const Clip *clip, GroupIntTensor *tensor, int64_t row, const float *x, const float *importance,
                      float *scratch) {
    const GroupInt *grid = &tensor->grid;
    int64_t cols = tensor->cols, group = group_int_columns(grid, cols), first = row * tensor->groups;
    int finite = 1;
    for (int64_t i = 0; i < cols; i++)
        finite &= isfinite(x[i]) != 0;
    if (!finite) return -1;
    for (int64_t g = 0; g < tensor->groups; g++) {
        uint8_t zero;
        float scale;
        clip_scale(clip, grid, x + g * group, group, importance != NULL ? importance + g * group : NULL, &scale, &zero,
                   scratch);
        if (!isfinite(scale)) return -1;
        tensor->scales[first + g] = scale;
        if (tensor->zeros != NULL) tensor->zeros[first + g] = zero;
        group_int_quantize_given_scale(grid, x + g * group, group, scale, zero, tensor->codes + row * cols + g * group);
    }
    return 0;
}
