/* GPTQ and AWQ of one layer, and what they did to the outputs. */
#include <math.h>
#include <string.h>

#include "quant/awq.h"
#include "train/calibrate_internal.h"

/* ---- how far the outputs are off ----------------------------------------------------------------------------------------------- */

typedef enum DifferenceKind { DIFFERENCE_WHOLE, DIFFERENCE_NEAREST, DIFFERENCE_FOUND } DifferenceKind;

typedef struct Difference {
    DifferenceKind kind;
    const float *w;
    const GroupIntTensor *tensor; /* of NEAREST: its grid */
    const float *divide;          /* what rows of w and tensor were divided by, or NULL */
    int64_t cols;
} Difference;

static void nearest_row(const GroupInt *grid, const float *w, int64_t cols, float *out) {
    int64_t group = group_int_columns(grid, cols);
    for (int64_t first = 0; first < cols; first += group) {
        float scale;
        uint8_t zero;
        group_int_scale_of(grid, w + first, group, &scale, &zero);
        for (int64_t c = first; c < first + group; c++)
            out[c] = group_int_value(group_int_code(grid->bits, w[c], scale, zero, NULL), scale, zero, grid->scale_type);
    }
}

static void difference_row(void *context, int64_t row, float *d, float *scratch) {
    const Difference *job = context;
    const float *w = job->w + row * job->cols;
    float factor = job->divide != NULL ? job->divide[row] : 1.0f;
    memset(scratch, 0, (size_t)job->cols * sizeof *scratch);
    if (job->kind == DIFFERENCE_NEAREST) nearest_row(&job->tensor->grid, w, job->cols, scratch);
    if (job->kind == DIFFERENCE_FOUND) group_int_dequantize_row(job->tensor, row, scratch);
    for (int64_t c = 0; c < job->cols; c++)
        d[c] = (w[c] - scratch[c]) * factor;
}

static Status outputs(const Calibrator *c, const InputSums *sums, DifferenceKind kind, const float *w,
                      const GroupIntTensor *tensor, const float *divide, double *sum, Error *err) {
    Difference job = {.kind = kind, .w = w, .tensor = tensor, .divide = divide, .cols = sums->cols};
    return output_error_sum(c->errors, sums->hessian, tensor->rows, sums->cols, difference_row, &job, sum, err);
}

static double relative(double error, double whole) {
    return whole > 0.0 && error > 0.0 ? sqrt(error / whole) : 0.0; /* rounding of the sums may leave less than nothing */
}

/* ---- keeping, and going on with, what was found --------------------------------------------------------------------------------- */

static void keep(Found *found, GroupIntTensor *tensor) {
    int64_t count = tensor->rows * tensor->cols;
    found->rows = tensor->rows;
    found->cols = tensor->cols;
    found->groups = tensor->groups;
    found->packed = memory_alloc((size_t)group_int_packed_bytes(tensor->grid.bits, count));
    group_int_pack(tensor->grid.bits, tensor->codes, count, found->packed);
    found->scales = tensor->scales;
    found->zeros = tensor->zeros;
    found->g_idx = tensor->g_idx;
    memory_free(tensor->codes);
    memset(tensor, 0, sizeof *tensor);
}

typedef struct Decode {
    const GroupIntTensor *tensor;
    float *w;
} Decode;

static void decode_item(void *context, int64_t row, int worker) {
    (void)worker;
    const Decode *job = context;
    group_int_dequantize_row(job->tensor, row, job->w + row * job->tensor->cols);
}

/* The tensor becomes the layer's weight, and a result. */
static void adopt(Calibrator *c, int64_t layer, LayerWeight kind, GroupIntTensor *tensor) {
    Decode job = {.tensor = tensor, .w = c->values.weight[kind]};
    pool_run(c->exec.pool, decode_item, &job, tensor->rows);
    keep(found_of(c->result, layer, kind), tensor);
}

static Status start_tensor(const Calibrator *c, int64_t layer, LayerWeight kind, GroupIntTensor *tensor, Error *err) {
    MergeWeight weight = merge_weight(c->merge, weight_id(layer, kind));
    Status status = group_int_alloc(tensor, &c->options->grid, weight.rows, weight.cols, err);
    if (status != OK) error_prefix(err, "%s", weight.file->name);
    return status;
}

/* ---- GPTQ ------------------------------------------------------------------------------------------------------------------------ */

static Status gptq_linear(Calibrator *c, int64_t layer, LayerWeight kind, const InputSums *sums, const GptqFactor *factor,
                          Error *err) {
    const float *w = c->values.weight[kind];
    GroupIntTensor tensor = {0};
    double whole, nearest, found;
    Status status;
    TRY_GOTO(start_tensor(c, layer, kind, &tensor, err));
    TRY_GOTO(outputs(c, sums, DIFFERENCE_WHOLE, w, &tensor, NULL, &whole, err));
    TRY_GOTO(outputs(c, sums, DIFFERENCE_NEAREST, w, &tensor, NULL, &nearest, err));
    status = gptq_quantize(factor, &c->options->gptq, w, &tensor, c->exec.pool, err);
    if (status != OK) error_prefix(err, "%s", merge_weight(c->merge, weight_id(layer, kind)).file->name);
    if (status == OK) status = outputs(c, sums, DIFFERENCE_FOUND, w, &tensor, NULL, &found, err);
    if (status != OK) goto done;
    found_of(c->result, layer, kind)->error = (CalibrationError){relative(found, whole), relative(nearest, whole)};
    adopt(c, layer, kind, &tensor);
done:
    group_int_free(&tensor);
    return status;
}

Status calibrate_gptq_layer(Calibrator *c, int64_t layer, Error *err) {
    for (int input = 0; input < LAYER_INPUTS; input++) {
        InputSums *sums = &c->sums[input];
        GptqFactor factor;
        int count;
        LayerWeight first = layer_input_linears((LayerInput)input, &count);
        TRY(calibrator_pass(c, layer, (LayerInput)input, 1u << input, err));
        Status status =
            gptq_factor(&factor, sums->hessian, sums->cols, c->options->damping, c->options->act_order, c->exec.pool, err);
        if (status != OK) error_prefix(err, "%s", merge_weight(c->merge, weight_id(layer, first)).file->name);
        for (int i = 0; i < count && status == OK; i++)
            status = gptq_linear(c, layer, (LayerWeight)((int)first + i), sums, &factor, err);
        gptq_factor_free(&factor);
        TRY(status);
    }
    return OK;
}

/* ---- AWQ ------------------------------------------------------------------------------------------------------------------------- */

/* What makes an input, and can be divided: a norm, or the rows of the linear before it. */
static int maker_of(const ModelConfig *model, LayerInput input, LayerWeight *maker) {
    switch (input) {
        case INPUT_ATTENTION: *maker = LAYER_INPUT_NORM; return 1;
        case INPUT_OUTPUT: *maker = LAYER_V; return model->heads == model->kv_heads; /* else a row serves several columns */
        case INPUT_MLP: *maker = LAYER_POST_NORM; return 1;
        case INPUT_DOWN: *maker = LAYER_UP; return 1;
        case LAYER_INPUTS: break;
    }
    return 0;
}

/* A norm or a bias divided by s, as it will be written. */
static void divide_vector(Calibrator *c, int64_t layer, LayerWeight kind, const float *s, int64_t count) {
    float *values = c->values.weight[kind];
    if (values == NULL) return;
    for (int64_t i = 0; i < count; i++)
        values[i] = group_int_round(values[i] / s[i], c->options->vectors);
    float *kept = memory_alloc((size_t)count * sizeof *kept);
    memcpy(kept, values, (size_t)count * sizeof *kept);
    c->result->vector[weight_id(layer, kind)] = kept;
}

static void fold(Calibrator *c, int64_t layer, LayerWeight maker, const float *s, int64_t count) {
    if (maker >= LAYER_LINEARS) {
        divide_vector(c, layer, maker, s, count);
        return;
    }
    Found *found = found_of(c->result, layer, maker);
    MergeWeight weight = merge_weight(c->merge, weight_id(layer, maker));
    for (int64_t r = 0; r < count; r++)
        for (int64_t i = 0; i < weight.cols; i++)
            c->values.weight[maker][r * weight.cols + i] /= s[r];
    divide_vector(c, layer, (LayerWeight)(maker + LAYER_Q_BIAS), s, count);
    found->divide = memory_alloc((size_t)count * sizeof *found->divide);
    memcpy(found->divide, s, (size_t)count * sizeof *found->divide);
}

static AwqGroup group_of(const Calibrator *c, int64_t layer, LayerInput input) {
    InputSums sums = c->sums[input];
    AwqGroup group = {.cols = sums.cols, .hessian = sums.hessian, .mean_inputs = sums.mean};
    LayerWeight first = layer_input_linears(input, &group.count);
    for (int i = 0; i < group.count; i++) {
        int kind = (int)first + i;
        group.linear[i].w = c->values.weight[kind];
        group.linear[i].rows = merge_weight(c->merge, weight_id(layer, (LayerWeight)kind)).rows;
    }
    return group;
}

/* Finds and applies the scales of one input. */
static Status scale_input(Calibrator *c, int64_t layer, LayerInput input, Error *err) {
    AwqGroup group = group_of(c, layer, input);
    LayerWeight maker, first = layer_input_linears(input, &group.count);
    AwqFound result;
    if (!maker_of(c->model, input, &maker)) return OK;
    float *s = memory_alloc((size_t)group.cols * sizeof *s);
    Status status = awq_search(&c->options->grid, &group, c->errors, s, &result, err);
    if (status == OK) {
        awq_scale_columns(&group, s, c->exec.pool);
        fold(c, layer, maker, s, group.cols);
        for (int i = 0; i < group.count; i++) {
            Found *found = found_of(c->result, layer, (LayerWeight)((int)first + i));
            found->columns = memory_alloc((size_t)group.cols * sizeof *found->columns);
            memcpy(found->columns, s, (size_t)group.cols * sizeof *found->columns);
        }
    }
    memory_free(s);
    return status;
}

/* Before anything is scaled. */
static Status measure_nearest(Calibrator *c, int64_t layer, LayerInput input, double whole[], Error *err) {
    int count;
    LayerWeight first = layer_input_linears(input, &count);
    for (int kind = (int)first; kind < (int)first + count; kind++) {
        GroupIntTensor shape = {.grid = c->options->grid};
        double nearest;
        shape.rows = merge_weight(c->merge, weight_id(layer, (LayerWeight)kind)).rows;
        TRY(outputs(c, &c->sums[input], DIFFERENCE_WHOLE, c->values.weight[kind], &shape, NULL, &whole[kind], err));
        TRY(outputs(c, &c->sums[input], DIFFERENCE_NEAREST, c->values.weight[kind], &shape, NULL, &nearest, err));
        found_of(c->result, layer, (LayerWeight)kind)->error.nearest = relative(nearest, whole[kind]);
    }
    return OK;
}

static Status awq_linear(Calibrator *c, int64_t layer, LayerWeight kind, const InputSums *sums, double whole, Error *err) {
    Found *result = found_of(c->result, layer, kind);
    const float *w = c->values.weight[kind];
    int clips = !c->options->no_clip && kind != LAYER_Q && kind != LAYER_K;
    GroupIntTensor tensor = {0};
    double found;
    Status status;
    TRY_GOTO(start_tensor(c, layer, kind, &tensor, err));
    status = awq_quantize(w, sums->hessian, clips, &tensor, c->exec.pool, err);
    if (status != OK) error_prefix(err, "%s", merge_weight(c->merge, weight_id(layer, kind)).file->name);
    if (status == OK) status = outputs(c, sums, DIFFERENCE_FOUND, w, &tensor, result->divide, &found, err);
    if (status != OK) goto done;
    result->error.found = relative(found, whole);
    adopt(c, layer, kind, &tensor);
done:
    group_int_free(&tensor);
    return status;
}

Status calibrate_awq_layer(Calibrator *c, int64_t layer, Error *err) {
    double whole[LAYER_LINEARS];
    TRY(calibrator_pass(c, layer, INPUT_DOWN, (1u << LAYER_INPUTS) - 1u, err));
    for (int input = 0; input < LAYER_INPUTS; input++)
        TRY(measure_nearest(c, layer, (LayerInput)input, whole, err));
    for (int input = 0; input < LAYER_INPUTS; input++)
        TRY(scale_input(c, layer, (LayerInput)input, err));
    for (int input = 0; input < LAYER_INPUTS; input++) {
        int count;
        LayerWeight first = layer_input_linears((LayerInput)input, &count);
        for (int kind = (int)first; kind < (int)first + count; kind++)
            TRY(awq_linear(c, layer, (LayerWeight)kind, &c->sums[input], whole[kind], err));
    }
    return OK;
}
