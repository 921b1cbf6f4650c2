/* What the pieces of train/qat*.c share. */
#ifndef NIBBLE_TRAIN_QAT_INTERNAL_H
#define NIBBLE_TRAIN_QAT_INTERNAL_H

#include "quant/quantize.h"
#include "train/qat.h"

typedef struct QatWorker { /* rows of one thread, as wide as the widest linear */
    float *base, *delta, *b;
    float *scales, *chain; /* learned: s, and ds0-part of the chain rule: s0 / sqrt(values * greatest code) */
    float *slope;
    uint8_t *mask;
    void *scratch;
} QatWorker;

/* What lies in the arena. */
typedef struct QatMemory {
    void *slot[LAYER_LINEARS]; /* operands, type act; linears that are never held together share their memory */
    float *first;              /* SCALES_MSE, SCALES_BASE: s0 of every group, [layers, first_layer]; where the arena is */
    int64_t first_kind[LAYER_LINEARS], first_layer;
    float *tile;        /* FP32 [QAT_TILE, widest in] */
    float *a;           /* FP32 copy of the adapter's A at hand */
    QatWorker *workers; /* [threads] */
    void *dy;           /* act [rows, QAT_TILE] */
    void *workspace;    /* of the tile's product; on a device, of its entries */
    float *nested_map;  /* on a device: [256] of NF4's constants */
    float *scales;      /* on a device: scales of a linear on their way to a file */
    void *nf4;          /* the largest weight's codes and constants */
    size_t nf4_bytes;
} QatMemory;

struct Qat {
    QatShape shape;
    ModelWeights *weights;
    const ParamState *params;
    Pool *pool;
    float share; /* of the quantized weight in an operand, 0 to 1 */
    Arena arena;
    QatMemory memory;
    Quantizer *quantizer; /* NF4 */
    size_t quantizer_bytes;
};

/* A linear of a layer by its weight number. */
typedef struct QatLinear {
    int32_t id;
    LayerWeight kind;
    int64_t rows, cols;
    WeightView base;
    int64_t rank; /* of the adapter that is merged in; 0: none */
    float scale;
    int64_t a, b;   /* offsets in the flat buffers */
    int64_t theta;  /* learned scales: offset, -1 where not learned */
    int64_t first;  /* where its scales lie in QatMemory.first, -1 where they are made anew */
    int64_t groups; /* scales in a row, of either kind */
} QatLinear;

/* Whether scales are not made anew in each step. */
static inline int qat_options_keep_scales(const QatOptions *options) {
    return options->learn_scales || options->scales != SCALES_ABSMAX;
}
/* 0 when the number is not a linear of a layer. */
int qat_linear(const Qat *qat, int32_t id, QatLinear *linear);
/* Copies A to FP32 where there is an adapter. */
void qat_prepare(Qat *qat, const QatLinear *linear);
/* Row `row` of W in FP32 into the worker's base, and its learned scales into scales and chain. */
void qat_base_row(const Qat *qat, const QatLinear *linear, int64_t row, int worker);
/* Fake-quantizes a row of V in place; mask and slope as fake_quant_row and fake_quant_row_scaled take them. The worker's scales are
 * those of the row. */
int qat_fake_row(const Qat *qat, const QatLinear *linear, int worker, float *row, uint8_t *mask, float *slope);
/* Row `row` of W + s B A in FP32 into out. */
void qat_merge_row(const Qat *qat, const QatLinear *linear, int64_t row, int worker, float *out);
/* Overwrites the linear's slot with its operand. */
Status qat_forward(Qat *qat, const QatLinear *linear, Error *err);
/* WeightSource.backward. */
Status qat_backward(void *self, int32_t weight, const Exec *exec, const Batch *batch, const void *dy, int64_t stride,
                    const void *x, Error *err);

/* The same on a device (train/qat_device.c): what of the options it has not, memory, and the two passes. */
typedef struct QatDeviceBytes {
    size_t workspace, scales;
} QatDeviceBytes;
Status qat_device_check(const QatOptions *options, Error *err);
Status qat_device_measure(const QatShape *shape, LayerWeight kind, int64_t rows, int64_t cols, QatDeviceBytes *bytes,
                          Error *err);
Status qat_device_take(const QatDeviceBytes *bytes, Arena *arena, QatMemory *memory, Error *err);
Status qat_device_open(Qat *qat, Error *err);
Status qat_device_forward(Qat *qat, const QatLinear *linear, Error *err);
Status qat_device_backward(Qat *qat, const QatLinear *linear, const Batch *batch, const void *dy, int64_t stride, const void *x,
                           Error *err);
/* Scales of a linear as they are now, [rows, groups], to the host. */
Status qat_device_scales(const Qat *qat, const QatLinear *linear, float *scales, Error *err);
/* The product that forms a tile of dV. */
LinearShape qat_tile_shape(int64_t rows, int64_t in, int64_t out, DType act);

#endif
