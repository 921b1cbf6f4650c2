/* Measurements of a device beside a step (bench_step.c). On the CPU all are 0. */
#ifndef NIBBLE_TRAIN_BENCH_STEP_DEVICE_H
#define NIBBLE_TRAIN_BENCH_STEP_DEVICE_H

#include "train/engine.h"

/* *seconds to make every linear of the model dense once, by those of layer 0 and the number of layers. rows: of a micro-batch. */
Status bench_dequantization(const Engine *engine, int64_t rows, double *seconds, Error *err);
/* Seconds since the device was opened in which it had nothing to do while the host made work for it. */
double bench_idle(const Engine *engine);
/* *bytes of the device's memory in use by all: arenas, libraries, CUDA's context, other programs. */
Status bench_device_in_use(const Engine *engine, size_t *bytes, Error *err);

#endif
