/* The written weights, read back by the loader's own code, against the FP32 merge.
 *
 * M = W + Delta: the merge in FP32. X: what was written. Q(W): the base without adapters, written the same way (rounded, or
 * quantized). Sums are in double, row by row in order, whatever the number of threads.
 */
#include <math.h>
#include <string.h>

#include "core/log.h"
#include "core/memory.h"
#include "train/export.h"
#include "train/export_grouped.h"
#include "train/weights.h"

#define LITTLE 0.5 /* of the change: less has mostly vanished */

typedef struct Sums {
    double error, merged, base, delta, projection, noise;
} Sums;

typedef struct Proof {
    Export *export;
    Merge *written;
    const ExportReader *reader; /* instead of written; NULL */
    void *reading;
    const Backend *backend;
    float *base, *merged, *got, *alone; /* one slab each; alone: Q(W) */
    int64_t rows;                       /* of a slab */
    Sums *sums;                         /* [most rows] */
    /* the slab at hand */
    int64_t cols;
    int adapted;
} Proof;

static void row_sums(void *context, int64_t row, int worker) {
    const Proof *p = context;
    (void)worker;
    const float *w = p->base + row * p->cols, *m = (p->adapted ? p->merged : p->base) + row * p->cols;
    const float *x = p->got + row * p->cols, *q = p->alone + row * p->cols;
    Sums s = {0};
    for (int64_t c = 0; c < p->cols; c++) {
        double error = (double)x[c] - (double)m[c];
        s.error += error * error;
        s.merged += (double)m[c] * (double)m[c];
        s.base += (double)w[c] * (double)w[c];
        if (!p->adapted) continue;
        double delta = (double)m[c] - (double)w[c], moved = (double)x[c] - (double)q[c];
        s.delta += delta * delta;
        s.projection += moved * delta;
        s.noise += (moved - delta) * (moved - delta);
    }
    p->sums[row] = s;
}

static int is_quantized(const Export *export) {
    return export->options->format == EXPORT_NF4 || export_is_grouped(export->options->format);
}

/* Q(W) of one adapted weight, whole where it is quantized. */
typedef struct Alone {
    Arena arena;
    QuantizedTensor tensor;
} Alone;

static Status alone_begin(const Proof *p, const MergeWeight *weight, Alone *alone, Error *err) {
    Arena counted;
    arena_count(&counted, "one weight");
    TRY(quantized_take(&alone->tensor, &p->export->spec, weight->rows, weight->cols, &counted, err));
    TRY(arena_create(&alone->arena, "one weight", counted.used, err));
    TRY(quantized_take(&alone->tensor, &p->export->spec, weight->rows, weight->cols, &alone->arena, err));
    return merge_quantize(p->export->merge, 0, &alone->tensor, err);
}

static void round_through(float *values, DType type, int64_t count, const float *from) {
    uint16_t bits[256];
    if (type == DTYPE_F32) {
        memcpy(values, from, (size_t)count * sizeof *values);
        return;
    }
    for (int64_t at = 0; at < count; at += 256) {
        int64_t some = count - at < 256 ? count - at : 256;
        dtype_convert(bits, type, from + at, DTYPE_F32, some);
        dtype_convert(values + at, DTYPE_F32, bits, type, some);
    }
}

/* Q(W) where a calibration decided on the codes: rounded to nearest, for it would take another calibration to know. */
static void nearest_row(void *context, int64_t row, int worker) {
    const Proof *p = context;
    (void)worker;
    GroupInt grid = quant_spec_grid(&p->export->spec);
    int64_t group = group_int_columns(&grid, p->cols);
    for (int64_t first = row * p->cols; first < (row + 1) * p->cols; first += group) {
        float scale;
        uint8_t zero;
        group_int_scale_of(&grid, p->base + first, group, &scale, &zero);
        for (int64_t c = first; c < first + group; c++)
            p->alone[c] =
                group_int_value(group_int_code(grid.bits, p->base[c], scale, zero, NULL), scale, zero, grid.scale_type);
    }
}

static Status prove_slab(Proof *p, int32_t id, const MergeWeight *weight, const Alone *alone, int64_t first, int64_t count,
                         Error *err) {
    TRY(merge_rows(p->export->merge, first, count, p->base, weight->adapted ? p->merged : NULL, err));
    export_transform(p->export, id, first, count, weight->cols, p->base);
    if (weight->adapted) export_transform(p->export, id, first, count, weight->cols, p->merged);
    if (p->reader != NULL)
        TRY(p->reader->rows(p->reading, id, weight->cols, first, count, p->got, err));
    else
        TRY(merge_rows(p->written, first, count, p->got, NULL, err));
    if (weight->adapted && p->reader != NULL) {
        TRY(p->reader->alone(p->reading, id, weight->cols, count, p->base, p->alone, err));
    } else if (weight->adapted && export_is_calibrated(p->export)) {
        p->cols = weight->cols;
        pool_run(p->export->pool, nearest_row, p, count);
    } else if (weight->adapted && alone->tensor.rows > 0) {
        WeightView view = quantized_view(&alone->tensor);
        p->backend->dequantize(&view, first * weight->cols, count * weight->cols, p->alone, DTYPE_F32);
    } else if (weight->adapted) {
        round_through(p->alone, export_hf_type(p->export, weight->file, id), count * weight->cols, p->base);
    }
    p->cols = weight->cols;
    p->adapted = weight->adapted;
    pool_run(p->export->pool, row_sums, p, count);
    return OK;
}

static double ratio(double numerator, double denominator) {
    return denominator > 0.0 ? numerator / denominator : numerator > 0.0 ? INFINITY : 0.0;
}

static Status prove_weight(Proof *p, int32_t id, WeightProof *out, Error *err) {
    Export *export = p->export;
    MergeWeight weight = merge_weight(export->merge, id);
    int64_t rows = merge_slab_rows(export->merge, id);
    Alone alone = {0};
    Sums total = {0};
    Status status;
    TRY_GOTO(merge_begin(export->merge, id, err));
    if (p->reader == NULL) TRY_GOTO(merge_begin(p->written, id, err));
    if (weight.adapted && is_quantized(export) && !export_is_calibrated(export)) TRY_GOTO(alone_begin(p, &weight, &alone, err));
    for (int64_t first = 0; first < weight.rows; first += rows) {
        int64_t count = weight.rows - first < rows ? weight.rows - first : rows;
        TRY_GOTO(prove_slab(p, id, &weight, &alone, first, count, err));
        for (int64_t r = 0; r < count; r++) {
            total.error += p->sums[r].error;
            total.merged += p->sums[r].merged;
            total.base += p->sums[r].base;
            total.delta += p->sums[r].delta;
            total.projection += p->sums[r].projection;
            total.noise += p->sums[r].noise;
        }
    }
    *out = (WeightProof){.id = id,
                         .adapted = weight.adapted && total.delta > 0.0,
                         .error = sqrt(ratio(total.error, total.merged)),
                         .surviving = total.delta > 0.0 ? total.projection / total.delta : NAN,
                         .noise = total.delta > 0.0 ? sqrt(total.noise / total.delta) : NAN,
                         .delta = sqrt(ratio(total.delta, total.base)),
                         .projection = total.projection,
                         .delta_squares = total.delta};
done:
    arena_free(&alone.arena);
    return status;
}

static void take_buffers(Proof *p) {
    int64_t values = 0, rows = 1;
    for (int32_t id = 0; id < weight_count(merge_model(p->export->merge)); id++) {
        MergeWeight weight = merge_weight(p->export->merge, id);
        if (!weight.present) continue;
        int64_t slab = merge_slab_rows(p->export->merge, id);
        if (slab * weight.cols > values) values = slab * weight.cols;
        if (slab > rows) rows = slab;
    }
    p->base = memory_alloc((size_t)values * sizeof(float));
    p->merged = memory_alloc((size_t)values * sizeof(float));
    p->got = memory_alloc((size_t)values * sizeof(float));
    p->alone = memory_calloc((size_t)values, sizeof(float));
    p->sums = memory_alloc((size_t)rows * sizeof *p->sums);
}

static void sum_up(ExportProof *proof) {
    double projection = 0.0, delta = 0.0;
    for (int32_t i = 0; i < proof->count; i++) {
        const WeightProof *w = &proof->weights[i];
        if (w->error > proof->worst_error) proof->worst_error = w->error;
        if (!w->adapted) continue;
        projection += w->projection;
        delta += w->delta_squares;
        if (!(w->surviving >= LITTLE)) proof->vanished++;
    }
    proof->surviving = delta > 0.0 ? projection / delta : NAN;
}

Status export_proof_weights(Export *export, const char *folder, Error *err) {
    Proof p = {.export = export, .backend = &export->backend, .reader = export_reader(export)};
    MergeOptions written = {.model = folder};
    int32_t count = weight_count(merge_model(export->merge));
    Status status;
    if (p.reader != NULL)
        TRY_GOTO(p.reader->open(export, folder, &p.reading, err));
    else
        TRY_GOTO(merge_open(&p.written, &written, &export->backend, export->pool, err));
    take_buffers(&p);
    export->proof.weights = memory_calloc((size_t)count, sizeof *export->proof.weights);
    for (int32_t id = 0; id < count; id++) {
        if (!merge_weight(export->merge, id).present) continue;
        TRY_GOTO(export_interrupted(err));
        TRY_GOTO(prove_weight(&p, id, &export->proof.weights[export->proof.count++], err));
    }
    sum_up(&export->proof);
done:
    if (status == ERR_FAILED) error_prefix(err, "reading the export back");
    if (p.reader != NULL) p.reader->close(p.reading);
    merge_close(p.written);
    memory_free(p.base);
    memory_free(p.merged);
    memory_free(p.got);
    memory_free(p.alone);
    memory_free(p.sums);
    return status;
}

void export_proof_free(ExportProof *proof) {
    for (int i = 0; i < EVAL_ROLES; i++)
        memory_free(proof->runs[i].argmax);
    memory_free(proof->weights);
    memset(proof, 0, sizeof *proof);
}

void export_proof_warn(const Export *export) {
    const ExportProof *proof = &export->proof;
    int32_t adapted = 0;
    for (int32_t i = 0; i < proof->count; i++)
        adapted += proof->weights[i].adapted;
    if (proof->vanished == 0) return;
    log_warning("THE MERGE HAS MOSTLY VANISHED in %d of %d adapted weights: of the whole change %.1f %% is in what was written",
                (int)proof->vanished, (int)adapted, 100.0 * proof->surviving);
    if (export->options->format != EXPORT_HF)
        log_warning(
            "the format's steps are larger than the adapter's change. Serve the base with the adapter beside it (--format "
            "peft), or write 16 bits (--format hf)%s",
            strcmp(export->onto, "dequantized") == 0 && !merge_weight(export->merge, weight_id(0, LAYER_Q)).folder_quantized
                ? ", or merge onto the original weights (--onto original)"
                : "");
    else
        log_warning(
            "the adapter's change is smaller than half a step of the written type. Write --dtype f32, or serve the base "
            "with the adapter beside it (--format peft)");
}
