/* Quantization-aware training: the linears' operands are what the exported model will hold.
 *
 *   merged    operand = FQ(W + s B A); the adapter is no separate branch. Backward, with dV = dY^T X the gradient of the operand and
 *             M the straight-through mask:  dA += s B^T (M . dV)   dB += s (M . dV) A^T, a tile of QAT_TILE rows at a time
 *   separate  operand = FQ(W); the adapter is added beside it, as other trainers do it
 *
 * W is the frozen base as it lies in memory (16-bit, or decoded from its 4 or 8 bits); W + s B A is formed in FP32 with the
 * adapter's compute copies and the arithmetic of train/merge.h, so exporting the adapter packs the very numbers that were
 * trained. Every linear of the layers is quantized, with an adapter or without. An operand is held dense in the run's
 * activation type, one linear group at a time, from acquire to the next group's.
 *
 * Scales of integer groups come from the values at hand, or are learned (train/qat_scales.h). From start_step on the operand goes
 * over from V to FQ(V) in ramp_steps equal parts: V + share (FQ(V) - V); the mask's zeros become 1 - share.
 *
 * Memory: one arena, the same for every step; nothing is allocated between steps. Threads and tiles change no bit. On a device the
 * backend's fake_weight entries make the same operands, bit for bit; q4_k is the CPU's only.
 */
#ifndef NIBBLE_TRAIN_QAT_H
#define NIBBLE_TRAIN_QAT_H

#include <stdint.h>

#include "autograd/weight_source.h"
#include "quant/fake_quant.h"
#include "train/config.h"
#include "train/model.h"
#include "train/params.h"
#include "train/weights.h"

#define QAT_TILE 64 /* rows of a weight's gradient that exist at a time; a multiple of every NF4 block whatever the width */

typedef enum QatScales {
    SCALES_ABSMAX, /* from the values as they are */
    SCALES_MSE,    /* that suit the base's own values best (quant/clip.h), found once */
    SCALES_BASE,   /* those of a base that is in groups of integers itself, as GPTQ has written them */
} QatScales;

typedef struct QatOptions {
    QatMode mode;
    FakeQuant grid;
    int64_t start_step; /* operands are not quantized before it */
    int64_t ramp_steps;
    int learn_scales;
    QatScales scales; /* integer grids */
} QatOptions;

/* What the config's qat section says. */
Status qat_options(const Config *config, QatOptions *options, Error *err);
/* And of activations; without a qat.mode, what the model is to be run with. */
Status qat_activations(const Config *config, const ModelConfig *model, ActivationQuant *out, Error *err);

/* What memory and operands depend on. Borrowed. */
typedef struct QatShape {
    QatOptions options;
    const ModelConfig *model;
    const Adapter *adapter;
    const int64_t *scales; /* learned: offsets of theta, [layers * LAYER_LINEARS]; NULL: not learned */
    const Backend *backend;
    ExecConfig exec;
    const Exec *there; /* a backend with memory of its own; not read by qat_bytes */
    int64_t rows;      /* capacity of a micro-batch */
} QatShape;

/* Bytes that qat_open takes; fails, naming the linear, where the grid does not fit a shape. */
Status qat_bytes(const QatShape *shape, size_t *bytes, Error *err);

typedef struct Qat Qat;
/* weights, params and pool are borrowed; gradients go to params->gradient. */
Status qat_open(Qat **out, const QatShape *shape, ModelWeights *weights, const ParamState *params, Pool *pool, Error *err);
void qat_free(Qat *qat); /* NULL is fine */
size_t qat_taken(const Qat *qat);
WeightSource qat_source(Qat *qat);
/* The step that comes next, counted from 0: decides about start_step. */
void qat_set_step(Qat *qat, int64_t step);
int qat_keeps_scales(const Qat *qat); /* train/qat_scales.h */
int qat_active(const Qat *qat);       /* from start_step on */
/* TapeRun.recording: 0 when all is quantized, 1 before start_step, -1 in between. */
int qat_recording(const Qat *qat);

#endif
