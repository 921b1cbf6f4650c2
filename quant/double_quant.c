#include "quant/double_quant.h"

#include <math.h>

#include "kernels/formats.h"

/* Edge j of n equal parts of [0.1, 1] in FP32. torch.linspace counts from the nearer end, and its product and sum are
 * fused: both show in the last bit. */
static float linspace_edge(int n, int j) {
    const float start = 0.1f, end = 1.0f;
    float step = (end - start) / (float)n;
    if (j < (n + 1) / 2) return fmaf(step, (float)j, start);
    return fmaf(-step, (float)(n - j), end);
}

void dynamic_map(float map[DYNAMIC_MAP_ENTRIES]) {
    static const float decades[7] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f};
    for (int i = 0; i < 7; i++) {
        int parts = 1 << i;
        for (int k = 0; k < parts; k++) {
            float centre = (linspace_edge(parts, k) + linspace_edge(parts, k + 1)) / 2.0f;
            float value = decades[i] * centre;
            map[128 + (parts - 1) + k] = value;
            map[126 - (parts - 1) - k] = -value;
        }
    }
    map[127] = 0.0f;
    map[255] = 1.0f;
}

float double_quant_offset(const float *absmax, int64_t blocks) {
    if (blocks == 0) return 0.0f;
    double sum = 0.0;
    for (int64_t b = 0; b < blocks; b++)
        sum += (double)absmax[b];
    return (float)(sum / (double)blocks);
}

typedef struct DoubleJob {
    const float *absmax;
    int64_t blocks;
    float offset;
    const float *bounds; /* [255] midpoints of neighbouring entries */
    uint8_t *codes;
    float *nested_absmax;
} DoubleJob;

/* How many bounds lie strictly below y: the index of the nearest entry. */
static uint8_t nearest_entry(const float *bounds, float y) {
    int low = 0, high = DYNAMIC_MAP_ENTRIES - 1;
    while (low < high) {
        int middle = (low + high) / 2;
        if (bounds[middle] < y)
            low = middle + 1;
        else
            high = middle;
    }
    return (uint8_t)low;
}

static float clamp_unit(float y) {
    return y < -1.0f ? -1.0f : y > 1.0f ? 1.0f : y;
}

static void quantize_group(void *context, int64_t group, int worker) {
    (void)worker;
    const DoubleJob *job = context;
    int64_t first = group * NESTED_BLOCK;
    int64_t count = job->blocks - first < NESTED_BLOCK ? job->blocks - first : NESTED_BLOCK;
    float most = 0.0f;
    for (int64_t b = 0; b < count; b++) {
        float size = fabsf(job->absmax[first + b] - job->offset);
        if (size > most) most = size;
    }
    int is_short = count < NESTED_BLOCK;
    float floored = most < ABSMAX_FLOOR ? ABSMAX_FLOOR : most;
    float reciprocal = 1.0f / floored;
    for (int64_t b = 0; b < count; b++) {
        float z = job->absmax[first + b] - job->offset;
        float y = is_short ? z / floored : z * reciprocal;
        job->codes[first + b] = nearest_entry(job->bounds, clamp_unit(y));
    }
    job->nested_absmax[group] = is_short && most > 0.0f ? floored : most;
}

void double_quantize(Pool *pool, const float *absmax, int64_t blocks, float offset, const float map[DYNAMIC_MAP_ENTRIES],
                     uint8_t *codes, float *nested_absmax) {
    float bounds[DYNAMIC_MAP_ENTRIES - 1];
    for (int i = 0; i < DYNAMIC_MAP_ENTRIES - 1; i++)
        bounds[i] = (map[i] + map[i + 1]) / 2.0f;
    DoubleJob job = {
        .absmax = absmax, .blocks = blocks, .offset = offset, .bounds = bounds, .codes = codes, .nested_absmax = nested_absmax};
    pool_run(pool, quantize_group, &job, (blocks + NESTED_BLOCK - 1) / NESTED_BLOCK);
}
