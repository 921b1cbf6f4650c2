/* Where a product gets its frozen (or trained) weight from.
 *
 * A linear asks a source for its operand when its turn in the schedule comes and gives it back afterwards. Sources are handed
 * down from train/; the tape knows none of them: resident quantized weights, dequantized ones, compute copies of trained
 * parameters, gathered or streamed ones look alike from here. Weights are named by numbers that belong to the source.
 */
#ifndef NIBBLE_AUTOGRAD_WEIGHT_SOURCE_H
#define NIBBLE_AUTOGRAD_WEIGHT_SOURCE_H

#include <stdint.h>

#include "core/error.h"
#include "kernels/formats.h"
#include "kernels/ops.h"

typedef enum Pass { PASS_FORWARD, PASS_RECOMPUTE, PASS_BACKWARD } Pass;

typedef struct WeightSource {
    void *self;
    /* Overwrites *view with the operand; it stays valid until release. Vectors (norm weights, biases) come as one row in the
     * run's activation type. Called from one thread, in schedule order; must not allocate. */
    Status (*acquire)(void *self, int32_t weight, Pass pass, WeightView *view, Error *err);
    void (*release)(void *self, int32_t weight, Pass pass);
    /* Frozen weights keep their place and their bytes as long as the source lives, so they may be read before their turn. */
    int fixed;
    /* For a weight that is a function of parameters (a merged and fake-quantized one): given dy [rows, out], whose
     * rows are `stride` elements apart (0: out), and x [rows, in], accumulates the parameters' gradients in the source's own buffers. NULL in sources whose weights are constants or
     * plain parameters; the tape then forms dW itself where LinearSpec.train_weight says so. */
    Status (*backward)(void *self, int32_t weight, const Exec *exec, const Batch *batch, const void *dy, int64_t stride,
                       const void *x, Error *err);
} WeightSource;

#endif
