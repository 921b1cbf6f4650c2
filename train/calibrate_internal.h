/* What the parts of the calibration share.
 *
 *   calibrate.c           the order of things, what was found
 *   calibrate_data.c      sequences, batches, the first h
 *   calibrate_inputs.c    sums over the inputs of linears
 *   calibrate_layer.c     one layer forward (calibrate_layer.h)
 *   calibrate_quantize.c  GPTQ and AWQ of one layer
 */
#ifndef NIBBLE_TRAIN_CALIBRATE_INTERNAL_H
#define NIBBLE_TRAIN_CALIBRATE_INTERNAL_H

#include "data/dataset.h"
#include "quant/output_error.h"
#include "train/batches.h"
#include "train/calibrate.h"
#include "train/calibrate_layer.h"

/* ---- data --------------------------------------------------------------------------------------------------------------------- */

typedef struct CalibrationData {
    Tokenizer *tokenizer;
    Dataset dataset;
    int64_t *sequences; /* [count]: the chosen ones */
    int64_t count, tokens, longest;
    int64_t batches;
    int64_t *batch; /* [batches + 1]: the first sequence of each */
    int64_t *row;   /* [batches + 1]: its first row of h */
    int64_t rows;   /* of the largest batch */
    Arena arena;
    BatchBuffer buffer;
} CalibrationData;

Status calibration_data_open(CalibrationData *data, const CalibrationOptions *options, const ModelConfig *model, Error *err);
void calibration_data_close(CalibrationData *data);
/* Batch b, valid until the next call. */
Status calibration_data_batch(CalibrationData *data, int64_t b, Batch *batch, Error *err);
/* Overwrites h [tokens, hidden] with the tokens' rows of the embedding. */
Status calibration_data_embed(CalibrationData *data, Merge *merge, float *h, Error *err);

/* ---- inputs ------------------------------------------------------------------------------------------------------------------- */

typedef struct InputSums {
    int64_t rows; /* of the largest batch */
    int64_t cols, tokens;
    float *hessian;          /* sum of x x^T, [cols, cols]; NULL: not wanted */
    double *sizes, *squares; /* sums of |x| and of x^2, [cols] */
    float *mean;             /* [cols]: of |x|, after input_sums_finish */
} InputSums;

void input_sums_clear(InputSums *sums);
/* workspace: of input_sums_workspace bytes. */
Status input_sums_add(InputSums *sums, const Backend *backend, const Exec *exec, const Batch *batch, const float *x,
                      void *workspace, Error *err);
Status input_sums_workspace(const Backend *backend, const ExecConfig *config, int64_t rows, int64_t cols, size_t *bytes,
                            Error *err);
void input_sums_finish(InputSums *sums);

/* ---- what was found ----------------------------------------------------------------------------------------------------------- */

typedef struct Found { /* of one linear */
    int64_t rows, cols, groups;
    uint8_t *packed, *zeros; /* packed codes; zeros [rows, groups] or NULL */
    float *scales;           /* [rows, groups] */
    int32_t *g_idx;          /* [cols] or NULL */
    float *importance;       /* [cols] or NULL */
    float *columns, *divide; /* AWQ: s of its columns, what its rows were divided by; or NULL */
    CalibrationError error;
} Found;

struct Calibration {
    CalibrationOptions options;
    ModelConfig model;
    int64_t sequences, tokens;
    Found *found;   /* [layers, LAYER_LINEARS] */
    float **vector; /* [weight_count]: AWQ's norms and biases */
};

static inline Found *found_of(const Calibration *calibration, int64_t layer, LayerWeight kind) {
    return &calibration->found[layer * LAYER_LINEARS + (int64_t)kind];
}

/* ---- at work ------------------------------------------------------------------------------------------------------------------ */

typedef struct Calibrator {
    Calibration *result;
    const CalibrationOptions *options;
    const ModelConfig *model;
    Merge *merge;
    const Backend *backend;
    Exec exec;
    CalibrationData data;
    LayerRun *run;
    OutputError *errors;
    Arena arena;
    float *h; /* [tokens, hidden] */
    LayerValues values;
    InputSums sums[LAYER_INPUTS]; /* GPTQ: their matrices are the same memory */
    void *workspace;
    float *original; /* AWQ: a linear as it was, for reports; [largest] */
} Calibrator;

/* Runs the layer over all batches up to `last`; adds to the sums of inputs that `wanted` has a bit for. */
Status calibrator_pass(Calibrator *c, int64_t layer, LayerInput last, unsigned wanted, Error *err);

/* Replaces the layer's values by what was found for them. */
Status calibrate_gptq_layer(Calibrator *c, int64_t layer, Error *err);
Status calibrate_awq_layer(Calibrator *c, int64_t layer, Error *err);

#endif
