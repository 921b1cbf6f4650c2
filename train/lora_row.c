#include "train/lora_row.h"

#include <string.h>

void lora_add_row(const float *b, const float *a, int64_t rank, int64_t cols, float scale, float *delta, float *x) {
    memset(delta, 0, (size_t)cols * sizeof *delta);
    for (int64_t r = 0; r < rank; r++) {
        const float *from = a + r * cols;
        float factor = b[r];
        for (int64_t c = 0; c < cols; c++)
            delta[c] += factor * from[c];
    }
    for (int64_t c = 0; c < cols; c++)
        x[c] += scale * delta[c];
}
