#include "train/calibrate.h"

#include <math.h>
#include <string.h>

#include "core/log.h"
#include "core/text.h"
#include "train/calibrate_internal.h"

/* ---- memory -------------------------------------------------------------------------------------------------------------------- */

static int has_matrices(const CalibrationOptions *o) {
    return o->method != CALIBRATE_IMPORTANCE;
}

/* One layer's weights: layers are all alike. */
static Status take_values(Calibrator *c, Arena *arena, Error *err) {
    for (int kind = 0; kind < LAYER_WEIGHTS; kind++) {
        MergeWeight weight = merge_weight(c->merge, weight_id(0, (LayerWeight)kind));
        void *area;
        if (!weight.present) continue;
        TRY(arena_take(arena, (size_t)(weight.rows * weight.cols) * sizeof(float), &area, err));
        c->values.weight[kind] = area;
    }
    return OK;
}

static Status take_sums(Calibrator *c, Arena *arena, Error *err) {
    size_t widest = 0, workspace = 0;
    void *shared = NULL, *area;
    for (int input = 0; input < LAYER_INPUTS; input++) {
        InputSums *sums = &c->sums[input];
        size_t bytes;
        sums->rows = c->data.rows;
        sums->cols = layer_input_width(c->model, (LayerInput)input);
        TRY(arena_take(arena, (size_t)sums->cols * sizeof(double), &area, err));
        sums->sizes = area;
        TRY(arena_take(arena, (size_t)sums->cols * sizeof(double), &area, err));
        sums->squares = area;
        TRY(arena_take(arena, (size_t)sums->cols * sizeof(float), &area, err));
        sums->mean = area;
        size_t matrix = (size_t)(sums->cols * sums->cols) * sizeof(float);
        if (matrix > widest) widest = matrix;
        if (c->options->method == CALIBRATE_AWQ) {
            TRY(arena_take(arena, matrix, &area, err));
            sums->hessian = area;
        }
        TRY(input_sums_workspace(c->backend, &c->exec.config, sums->rows, sums->cols, &bytes, err));
        if (bytes > workspace) workspace = bytes;
    }
    if (c->options->method == CALIBRATE_GPTQ) {
        TRY(arena_take(arena, widest, &shared, err));
        for (int input = 0; input < LAYER_INPUTS; input++)
            c->sums[input].hessian = shared;
    }
    return arena_take(arena, has_matrices(c->options) ? workspace : 0, &c->workspace, err);
}

static Status take(Calibrator *c, Arena *arena, Error *err) {
    void *h;
    TRY(arena_take(arena, (size_t)(c->data.tokens * c->model->hidden) * sizeof(float), &h, err));
    c->h = h;
    TRY(take_values(c, arena, err));
    return take_sums(c, arena, err);
}

static int64_t widest_input(const Calibrator *c) {
    int64_t widest = 0;
    for (int input = 0; input < LAYER_INPUTS; input++)
        if (layer_input_width(c->model, (LayerInput)input) > widest) widest = layer_input_width(c->model, (LayerInput)input);
    return widest;
}

/* What is not in the arena: a weight's codes one a byte, GPTQ's factor, and the results of all layers. */
static size_t bytes_beside(const Calibrator *c) {
    size_t largest = 0, all = 0, width = (size_t)widest_input(c);
    if (!has_matrices(c->options)) return 0;
    for (int kind = 0; kind < LAYER_LINEARS; kind++) {
        MergeWeight weight = merge_weight(c->merge, weight_id(0, (LayerWeight)kind));
        size_t values = (size_t)(weight.rows * weight.cols);
        size_t groups = values / (size_t)group_int_columns(&c->options->grid, weight.cols);
        all += values * (size_t)c->options->grid.bits / 8 + groups * (sizeof(float) + 1);
        if (values > largest) largest = values;
    }
    return largest + all * (size_t)c->model->layers + (c->options->method == CALIBRATE_GPTQ ? 12 * width * width : 0);
}

static Status open_memory(Calibrator *c, Error *err) {
    Arena count;
    char want[32], have[32], each[3][32];
    arena_count(&count, "calibration");
    TRY(take(c, &count, err));
    TRY(layer_run_create(&c->run, c->model, c->backend, &c->exec, c->data.rows, c->data.longest, err));
    if (has_matrices(c->options)) TRY(output_error_create(&c->errors, c->backend, &c->exec, widest_input(c), err));
    size_t beside = bytes_beside(c), left = memory_available();
    if (count.used + beside > left)
        FAIL(
            "calibration needs %s and %s are left; take fewer --calibration-samples or --calibration-tokens (%s of it are "
            "activations)",
            format_bytes((double)(count.used + beside), want, sizeof want), format_bytes((double)left, have, sizeof have),
            format_bytes((double)c->data.tokens * (double)c->model->hidden * 4.0, each[0], sizeof each[0]));
    log_info(
        "calibration: %lld sequences, %lld tokens; %s, of which %s activations, %s inside of a layer, %s results and factors",
        (long long)c->data.count, (long long)c->data.tokens,
        format_bytes((double)(count.used + beside + layer_run_bytes(c->run)), want, sizeof want),
        format_bytes((double)c->data.tokens * (double)c->model->hidden * 4.0, each[0], sizeof each[0]),
        format_bytes((double)layer_run_bytes(c->run), each[1], sizeof each[1]),
        format_bytes((double)beside, each[2], sizeof each[2]));
    TRY(arena_create(&c->arena, "calibration", count.used, err));
    return take(c, &c->arena, err);
}

/* ---- layers -------------------------------------------------------------------------------------------------------------------- */

static Status load_weight(Calibrator *c, int32_t id, float *out, Error *err) {
    MergeWeight weight = merge_weight(c->merge, id);
    int64_t slab = merge_slab_rows(c->merge, id);
    float *base = weight.adapted ? memory_alloc((size_t)(slab * weight.cols) * sizeof *base) : NULL;
    Status status = merge_begin(c->merge, id, err);
    for (int64_t first = 0; first < weight.rows && status == OK; first += slab) {
        int64_t count = weight.rows - first < slab ? weight.rows - first : slab;
        float *rows = out + first * weight.cols;
        status = merge_rows(c->merge, first, count, weight.adapted ? base : rows, weight.adapted ? rows : NULL, err);
    }
    memory_free(base);
    return status;
}

static Status load_layer(Calibrator *c, int64_t layer, Error *err) {
    for (int kind = 0; kind < LAYER_WEIGHTS; kind++)
        if (c->values.weight[kind] != NULL)
            TRY(load_weight(c, weight_id(layer, (LayerWeight)kind), c->values.weight[kind], err));
    return OK;
}

typedef struct Sink {
    Calibrator *calibrator;
    unsigned wanted;
} Sink;

static Status add_inputs(void *context, LayerInput input, const Batch *batch, const float *x, Error *err) {
    const Sink *sink = context;
    Calibrator *c = sink->calibrator;
    if (!(sink->wanted >> input & 1u)) return OK;
    return input_sums_add(&c->sums[input], c->backend, &c->exec, batch, x, c->workspace, err);
}

Status calibrator_pass(Calibrator *c, int64_t layer, LayerInput last, unsigned wanted, Error *err) {
    Sink sink = {.calibrator = c, .wanted = wanted};
    for (int input = 0; input < LAYER_INPUTS; input++)
        if (wanted >> input & 1u) input_sums_clear(&c->sums[input]);
    for (int64_t b = 0; b < c->data.batches; b++) {
        Batch batch;
        TRY(c->options->interrupted(err));
        TRY(calibration_data_batch(&c->data, b, &batch, err));
        TRY(layer_run(c->run, layer, &c->values, &batch, c->h + c->data.row[b] * c->model->hidden, last, add_inputs, &sink,
                      err));
    }
    for (int input = 0; input < LAYER_INPUTS; input++)
        if (wanted >> input & 1u) input_sums_finish(&c->sums[input]);
    return OK;
}

static Status importance_layer(Calibrator *c, int64_t layer, Error *err) {
    TRY(calibrator_pass(c, layer, LAYER_INPUTS, (1u << LAYER_INPUTS) - 1u, err));
    for (int input = 0; input < LAYER_INPUTS; input++) {
        const InputSums *sums = &c->sums[input];
        int count;
        LayerWeight first = layer_input_linears((LayerInput)input, &count);
        for (int i = 0; i < count; i++) {
            float *importance = memory_alloc((size_t)sums->cols * sizeof *importance);
            for (int64_t k = 0; k < sums->cols; k++)
                importance[k] = (float)(sums->squares[k] / (double)sums->tokens);
            found_of(c->result, layer, (LayerWeight)((int)first + i))->importance = importance;
        }
    }
    return OK;
}

static void report_layer(const Calibrator *c, int64_t layer) {
    double found = 0.0, nearest = 0.0;
    for (int kind = 0; kind < LAYER_LINEARS; kind++) {
        CalibrationError error = found_of(c->result, layer, (LayerWeight)kind)->error;
        found += error.found * error.found / LAYER_LINEARS;
        nearest += error.nearest * error.nearest / LAYER_LINEARS;
    }
    log_info("layer %lld of %lld: the linears' outputs are off by %.3f %% (rounded to nearest: %.3f %%)", (long long)layer + 1,
             (long long)c->model->layers, 100.0 * sqrt(found), 100.0 * sqrt(nearest));
}

static Status run_layer(Calibrator *c, int64_t layer, Error *err) {
    TRY(load_layer(c, layer, err));
    if (!has_matrices(c->options)) return importance_layer(c, layer, err);
    TRY(c->options->method == CALIBRATE_GPTQ ? calibrate_gptq_layer(c, layer, err) : calibrate_awq_layer(c, layer, err));
    report_layer(c, layer);
    if (layer + 1 == c->model->layers) return OK; /* nobody needs its outputs */
    return calibrator_pass(c, layer, LAYER_INPUTS, 0, err);
}

/* A grid that does not fit is refused before anything is computed. */
static Status check_grid(const Calibrator *c, Error *err) {
    for (int kind = 0; kind < LAYER_LINEARS && has_matrices(c->options); kind++) {
        MergeWeight weight = merge_weight(c->merge, weight_id(0, (LayerWeight)kind));
        Status status = group_int_check(&c->options->grid, weight.rows, weight.cols, err);
        if (status != OK) error_prefix(err, "%s", weight.file->name);
        TRY(status);
    }
    return OK;
}

Status calibration_run(Calibration **out, const CalibrationOptions *options, Merge *merge, const Backend *backend, Pool *pool,
                       Error *err) {
    Calibration *result = memory_calloc(1, sizeof *result);
    Calibrator c = {.result = result,
                    .options = &result->options,
                    .model = &result->model,
                    .merge = merge,
                    .backend = backend,
                    .exec = {.config = {.act = DTYPE_F32, .threads = pool_threads(pool)}, .pool = pool}};
    Status status;
    result->options = *options;
    result->model = *merge_model(merge);
    result->found = memory_calloc((size_t)(c.model->layers * LAYER_LINEARS), sizeof *result->found);
    result->vector = memory_calloc((size_t)weight_count(c.model), sizeof *result->vector);
    TRY_GOTO(check_grid(&c, err));
    TRY_GOTO(calibration_data_open(&c.data, options, c.model, err));
    TRY_GOTO(open_memory(&c, err));
    TRY_GOTO(calibration_data_embed(&c.data, merge, c.h, err));
    for (int64_t layer = 0; layer < c.model->layers; layer++)
        TRY_GOTO(run_layer(&c, layer, err));
    result->sequences = c.data.count;
    result->tokens = c.data.tokens;
done:
    if (status == ERR_FAILED) error_prefix(err, "calibration");
    output_error_free(c.errors);
    layer_run_free(c.run);
    arena_free(&c.arena);
    calibration_data_close(&c.data);
    if (status != OK) {
        calibration_free(result);
        result = NULL;
    }
    *out = result;
    return status;
}

/* ---- results ------------------------------------------------------------------------------------------------------------------- */

void calibration_free(Calibration *calibration) {
    if (calibration == NULL) return;
    for (int64_t i = 0; i < calibration->model.layers * LAYER_LINEARS; i++) {
        Found *found = &calibration->found[i];
        memory_free(found->packed);
        memory_free(found->zeros);
        memory_free(found->scales);
        memory_free(found->g_idx);
        memory_free(found->importance);
        memory_free(found->columns);
        memory_free(found->divide);
    }
    for (int32_t id = 0; id < weight_count(&calibration->model); id++)
        memory_free(calibration->vector[id]);
    memory_free(calibration->vector);
    memory_free(calibration->found);
    memory_free(calibration);
}

int64_t calibration_sequences(const Calibration *calibration) {
    return calibration->sequences;
}

int64_t calibration_tokens(const Calibration *calibration) {
    return calibration->tokens;
}

static Found *found_by_id(const Calibration *calibration, int32_t id) {
    int32_t kind = (id - WEIGHT_GLOBALS) % LAYER_WEIGHTS;
    if (id < WEIGHT_GLOBALS || kind >= LAYER_LINEARS) return NULL;
    return found_of(calibration, (id - WEIGHT_GLOBALS) / LAYER_WEIGHTS, (LayerWeight)kind);
}

const float *calibration_importance(const Calibration *calibration, int32_t id) {
    const Found *found = found_by_id(calibration, id);
    return found != NULL ? found->importance : NULL;
}

CalibrationError calibration_error(const Calibration *calibration, int32_t id) {
    const Found *found = found_by_id(calibration, id);
    return found != NULL ? found->error : (CalibrationError){0};
}

float *const *calibration_vectors(const Calibration *calibration) {
    return calibration->vector;
}

Status calibration_take_tensor(Calibration *calibration, int32_t id, GroupIntTensor *out, Error *err) {
    Found *found = found_by_id(calibration, id);
    if (found == NULL || found->packed == NULL) FAIL("weight %d has no codes of a calibration", (int)id);
    TRY(group_int_alloc(out, &calibration->options.grid, found->rows, found->cols, err));
    group_int_unpack(out->grid.bits, found->packed, found->rows * found->cols, out->codes);
    memory_free(out->scales);
    memory_free(out->zeros);
    out->scales = found->scales;
    out->zeros = found->zeros;
    out->g_idx = found->g_idx;
    memory_free(found->packed);
    found->packed = found->zeros = NULL;
    found->scales = NULL;
    found->g_idx = NULL;
    return OK;
}

void calibration_transform(const Calibration *calibration, int32_t id, int64_t first, int64_t count, int64_t cols,
                           float *rows) {
    const Found *found = found_by_id(calibration, id);
    if (calibration->vector[id] != NULL) { /* what was divided and rounded stands there */
        memcpy(rows, calibration->vector[id], (size_t)cols * sizeof *rows);
        return;
    }
    if (found == NULL) return;
    for (int64_t r = 0; r < count; r++)
        for (int64_t c = 0; c < cols; c++) {
            float value = rows[r * cols + c];
            if (found->columns != NULL) value *= found->columns[c];
            if (found->divide != NULL) value /= found->divide[first + r];
            rows[r * cols + c] = value;
        }
}
