/* Running a model over calibration data, layer by layer, to decide how its linears are rounded.
 *
 *   tokens -> embedding -> h -> layer 0 -> h -> layer 1 -> ...        h: FP32 [tokens, hidden], overwritten layer after layer
 *
 *   IMPORTANCE  mean square of every input column of every linear, with the weights as they are (what llama.cpp's imatrix holds)
 *   GPTQ        q, k, v; then o; then gate, up; then down, each on inputs that everything before it, already quantized, makes
 *   AWQ         scales for all four inputs of a layer, on inputs that the quantized layers before it make; folded into the norm
 *               before q, k, v and gate, up, into v's rows before o (where there are as many key as query heads), into up's rows
 *               before down; then clipped ranges (not for q and k) and codes
 *
 * The weights are a merge's: base and adapters in FP32, one layer in memory at a time. All arithmetic is FP32 with sums of wider
 * type where DESIGN asks for it; the number of threads changes no bit.
 *
 * Memory: one layer's weights in FP32; h; what one batch of CALIBRATION_ROWS tokens needs inside of a layer; the matrix of the
 * widest input (AWQ: of all four), three times that in FP64 while GPTQ factors it; and what was found so far, in packed bits.
 */
#ifndef NIBBLE_TRAIN_CALIBRATE_H
#define NIBBLE_TRAIN_CALIBRATE_H

#include "quant/gptq.h"
#include "train/merge.h"

#define CALIBRATION_ROWS 2048
#define CALIBRATION_SAMPLES 128 /* where nothing is said */
#define CALIBRATION_TOKENS 512

typedef enum CalibrationMethod { CALIBRATE_IMPORTANCE, CALIBRATE_GPTQ, CALIBRATE_AWQ } CalibrationMethod;

typedef struct CalibrationOptions {
    CalibrationMethod method;
    const char *model;       /* whose tokenizer and template prepare the data */
    const char *data;        /* a file or pattern, any layout that can be trained on */
    int64_t samples, tokens; /* at most so many sequences, spread over the data, of at most so many tokens */
    GroupInt grid;           /* GPTQ, AWQ */
    double damping;          /* GPTQ: of the mean diagonal */
    int act_order;           /* GPTQ */
    GptqOptions gptq;
    DType vectors;                     /* AWQ: what norms and biases will be written in; changed ones are rounded to it */
    int no_clip;                       /* AWQ: leave the ranges whole */
    Status (*interrupted)(Error *err); /* asked between steps */
} CalibrationOptions;

typedef struct Calibration Calibration;

/* merge, backend and pool are borrowed for the call; merge must have no weight at hand that is needed afterwards. */
Status calibration_run(Calibration **out, const CalibrationOptions *options, Merge *merge, const Backend *backend, Pool *pool,
                       Error *err);
void calibration_free(Calibration *calibration); /* NULL is fine */

/* What was seen, for reports. */
int64_t calibration_sequences(const Calibration *calibration);
int64_t calibration_tokens(const Calibration *calibration);

/* IMPORTANCE: [cols] of a linear by its number; NULL for other weights. */
const float *calibration_importance(const Calibration *calibration, int32_t id);
/* GPTQ, AWQ: codes of a linear by its number, into a tensor that group_int_free frees; they are gone from here. */
Status calibration_take_tensor(Calibration *calibration, int32_t id, GroupIntTensor *out, Error *err);
/* AWQ: norm weights and biases by number; [cols] in FP32 (values that `vectors` holds) where changed, else NULL. */
float *const *calibration_vectors(const Calibration *calibration);
/* AWQ: rows [first, first + count) of weight id [count, cols], as in the model, into what the calibrated model has in their place before
 * it is rounded: columns multiplied, rows (of norms and biases: values) divided. Otherwise nothing. */
void calibration_transform(const Calibration *calibration, int32_t id, int64_t first, int64_t count, int64_t cols, float *rows);

/* Of a linear: relative error of its outputs over the data, sqrt(sum |(W - Q) x|^2 / sum |W x|^2), and what rounding to nearest
 * would have had. */
typedef struct CalibrationError {
    double found, nearest;
} CalibrationError;
CalibrationError calibration_error(const Calibration *calibration, int32_t id);

#endif
