#include "train/lora_row.h"

#include <string.h>

#define LANES 16 /* an inner loop of fixed length is vectorized without further flags */

void row_add(float *restrict y, const float *restrict x, float factor, int64_t count) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int k = 0; k < LANES; k++)
            y[i + k] += factor * x[i + k];
    for (; i < count; i++)
        y[i] += factor * x[i];
}

float row_dot(const float *restrict x, const float *restrict y, int64_t count) {
    float lanes[LANES] = {0}, sum = 0.0f;
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int k = 0; k < LANES; k++)
            lanes[k] += x[i + k] * y[i + k];
    for (int k = 0; k < LANES; k++)
        sum += lanes[k];
    for (; i < count; i++)
        sum += x[i] * y[i];
    return sum;
}

void lora_add_row(const float *b, const float *a, int64_t rank, int64_t cols, float scale, float *delta, float *x) {
    memset(delta, 0, (size_t)cols * sizeof *delta);
    for (int64_t r = 0; r < rank; r++)
        row_add(delta, a + r * cols, b[r], cols);
    row_add(x, delta, scale, cols);
}
