#include "train/ceiling.h"

#include <math.h>
#include <string.h>

#include "core/memory.h"
#include "core/text.h"

#define SIDE 768 /* operands of 2.3 MiB each: out of L1, inside the L2 and L3 of two cores */

double ceiling_gemm(const Backend *backend, const Exec *exec) {
    Exec dense = *exec;
    int narrow = exec->config.act == DTYPE_BF16;
    if (!narrow) dense.config.act = DTYPE_F32;
    WeightFormat format = narrow ? WEIGHT_BF16 : WEIGHT_F32;
    LinearShape shape = {.rows = SIDE, .in = SIDE, .count = 1, .linear = {{.out = SIDE, .format = format}}};
    OpPlan plan;
    if (backend->linear_plan(&dense.config, &shape, &plan, NULL) != OK) return NAN;
    size_t matrix = arena_align((size_t)SIDE * SIDE * sizeof(float));
    Arena arena;
    if (arena_create(&arena, "ceiling", 3 * matrix + arena_align(plan.forward_workspace) + arena_align(plan.saved + 1), NULL) !=
        OK)
        return NAN;
    float *x = (float *)(void *)arena.base, *w = x + matrix / sizeof(float), *y = w + matrix / sizeof(float);
    uint8_t *saved = arena.base + 3 * matrix, *workspace = saved + arena_align(plan.saved + 1);
    for (int64_t i = 0; i < (int64_t)SIDE * SIDE; i++) {
        float value = (float)(i % 7) - 3.0f;
        if (narrow)
            ((bf16 *)(void *)x)[i] = ((bf16 *)(void *)w)[i] = bf16_from_float(value);
        else
            x[i] = w[i] = value;
    }
    Batch batch = {.tokens = SIDE};
    LinearOperand operand = {.weight = {.format = format, .rows = SIDE, .cols = SIDE, .data = w}};
    void *outputs[1] = {y};
    double best = 0.0, end = clock_seconds() + 0.1;
    for (int run = 0; run < 3 || (run < 20 && clock_seconds() < end); run++) {
        double begin = clock_seconds();
        if (backend->linear_forward(&dense, &shape, &batch, x, &operand, outputs, saved, workspace, NULL) != OK) break;
        double seconds = clock_seconds() - begin;
        double rate = 2.0 * SIDE * SIDE * (double)SIDE / seconds;
        if (rate > best) best = rate;
        if (seconds > 1.0) break; /* the plain reference: one run is enough */
    }
    arena_free(&arena);
    return best > 0.0 ? best : NAN;
}
