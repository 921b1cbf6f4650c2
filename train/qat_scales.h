/* Scales of symmetric integer groups that are not made anew from the values in each step: the scale of a group is
 *
 *   s = s0 * max(theta, QAT_THETA_LEAST), rounded to the grid's scale type
 *
 * s0, FP32, belongs to the same group of the frozen base, without the adapter: amax / ((2^b - 1) / 2); or, searched
 * (qat.scales mse), the clipped range with the least squared error (quant/clip.h); or the scale that a base in groups of integers
 * has there (qat.scales gptq). theta is 1, or trained from 1 (LSQ, Esser et
 * al. 2020).
 * So one learning rate serves scales and adapters, nothing but theta is kept, and a run starts on the base's own grid. LSQ's
 * gradient of s, times 1 / sqrt(values of a group * (2^(b-1) - 1)), goes to theta by the chain rule. A group of zeros in the
 * base has the smallest scale and stays there.
 */
#ifndef NIBBLE_TRAIN_QAT_SCALES_H
#define NIBBLE_TRAIN_QAT_SCALES_H

#include "train/qat.h"

#define QAT_THETA_LEAST FAKE_THETA_LEAST
#define QAT_SCALES_FILE "qat_scales.safetensors"

/* Appends theta of every linear of the layers: [rows, groups] each. *offsets [layers * LAYER_LINEARS] is the caller's to free;
 * NULL, and nothing appended, where options says that scales are not learned. Fails where the grid does not fit a linear. */
Status qat_scale_params(const QatOptions *options, const ModelConfig *model, ParamSet *params, int64_t **offsets, Error *err);
/* theta = 1. */
void qat_scale_init(const ParamSet *params, float *master);
/* Whether the model has scales for SCALES_BASE. */
Status qat_scales_check(const QatOptions *options, const ModelConfig *model, Error *err);
/* Fills in QatMemory.first from the base. SCALES_BASE: fails where a linear was left as it was in such a folder. */
Status qat_scales_search(Qat *qat, Error *err);
/* FOLDER/qat_scales.safetensors: "<weight's name>_scale" [rows, groups], FP32: the scales as the operands use them. */
Status qat_scales_write(Qat *qat, const char *folder, Error *err);

#endif
