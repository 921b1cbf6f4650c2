/* One layer of the model on calibration data, outside of any tape: its weights are plain FP32 arrays that a quantizer may replace
 * between two runs.
 *
 *   h -> norm -> [ATTENTION] q, k, v -> rope -> attention -> [OUTPUT] o -> + h -> norm -> [MLP] gate, up -> silu * -> [DOWN] down -> + h
 *
 * In brackets: where the inputs of linears can be looked at.
 */
#ifndef NIBBLE_TRAIN_CALIBRATE_LAYER_H
#define NIBBLE_TRAIN_CALIBRATE_LAYER_H

#include "core/memory.h"
#include "data/hf_config.h"
#include "kernels/ops.h"
#include "train/model.h"
#include "train/weights.h"

typedef enum LayerInput { INPUT_ATTENTION, INPUT_OUTPUT, INPUT_MLP, INPUT_DOWN, LAYER_INPUTS } LayerInput;

/* The linears that read an input: the first, and how many. */
LayerWeight layer_input_linears(LayerInput input, int *count);
/* Its width. */
int64_t layer_input_width(const ModelConfig *config, LayerInput input);

typedef struct LayerValues {
    float *weight[LAYER_WEIGHTS]; /* by LayerWeight, [rows, cols]; NULL: the model has none. Aligned to 64 bytes */
} LayerValues;

/* x: FP32 [batch->tokens, width], the inputs of these linears; valid for the call. */
typedef Status LayerSink(void *context, LayerInput input, const Batch *batch, const float *x, Error *err);

typedef struct LayerRun LayerRun;

/* rows: of the largest batch; longest: of the longest sequence. backend and exec (F32) are borrowed. */
Status layer_run_create(LayerRun **out, const ModelConfig *config, const Backend *backend, const Exec *exec, int64_t rows,
                        int64_t longest, Error *err);
void layer_run_free(LayerRun *run); /* NULL is fine */
size_t layer_run_bytes(const LayerRun *run);

/* Runs layer `layer` on h [batch->tokens, hidden], showing the sink (which may be NULL) its inputs in order, up to and with `last`;
 * LAYER_INPUTS: to the end, and h is overwritten with the layer's output. */
Status layer_run(LayerRun *run, int64_t layer, const LayerValues *values, const Batch *batch, float *h, LayerInput last,
                 LayerSink *sink, void *context, Error *err);

#endif
