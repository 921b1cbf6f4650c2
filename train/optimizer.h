/* Learning-rate schedules, and one AdamW step over everything that is trained. */
#ifndef NIBBLE_TRAIN_OPTIMIZER_H
#define NIBBLE_TRAIN_OPTIMIZER_H

#include <stdint.h>

#include "train/config.h"
#include "train/params.h"

/* Warm-up steps of a run: train.warmup below 1 is a share of the steps (rounded up), from 1 on a number of steps. */
int64_t schedule_warmup_steps(const Config *config, int64_t steps);
/* Learning rate of step s in [0, steps). Warm-up: lr * (s + 1) / warmup. Then, with p from 0 to 1 over the rest and m =
 * min_lr_ratio: constant; linear 1 - (1 - m) p; cosine m + (1 - m) (1 + cos(pi p)) / 2; wsd: constant, then linear to m over the
 * last decay_ratio of all steps. */
double schedule_lr(const Config *config, int64_t step, int64_t steps);

/* Global norm of the gradients (sum in double in fixed chunks). */
double gradient_norm(const Exec *exec, const Backend *backend, const ParamSet *set, const ParamState *state);
/* Factor that torch's clip_grad_norm_ applies: min(1, max_norm / (norm + 1e-6)); 1 when max_norm is 0. */
double clip_factor(double norm, double max_norm);
/* One AdamW step; t counts from 1. Weight decay applies to the entries that say so. Gradients are left as they are. Where the
 * optimizer is split only this rank's share of masters and copies is stepped: replicas_gather_trained fetches the others'. */
void optimizer_step(const Exec *exec, const Backend *backend, const Config *config, const ParamSet *set, ParamState *state,
                    DType act, double lr, double clip, int64_t t);

#endif
