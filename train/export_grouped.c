#include "train/export_grouped.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "core/file.h"
#include "core/log.h"
#include "core/memory.h"
#include "train/calibrate.h"
#include "train/qat_scales.h"
#include "train/weights.h"

int export_is_grouped(ExportFormat format) {
    return format == EXPORT_GPTQ || format == EXPORT_AWQ || format == EXPORT_COMPRESSED;
}

static int is_linear(int32_t id) {
    return id >= WEIGHT_GLOBALS && (id - WEIGHT_GLOBALS) % LAYER_WEIGHTS < LAYER_LINEARS;
}

/* ---- options --------------------------------------------------------------------------------------------------------------- */

Status export_grouped_check(const ExportOptions *o, Error *err) {
    int grouped = export_is_grouped(o->format);
    if (!grouped && (o->bits != 0 || o->group != 0 || o->symmetric || o->asymmetric || o->activations != NULL))
        FAIL_USAGE("--bits, --group, --sym, --asym and --activations belong to --format gptq, awq and compressed-tensors");
    if (!grouped) return OK;
    if (o->bits != 0 && o->format == EXPORT_AWQ && o->bits != 4) FAIL_USAGE("--bits: awq has 4, got %lld", (long long)o->bits);
    if (o->bits != 0 && o->format == EXPORT_GPTQ && o->bits != 2 && o->bits != 3 && o->bits != 4 && o->bits != 8)
        FAIL_USAGE("--bits: gptq has 2, 3, 4 and 8, got %lld", (long long)o->bits);
    if (o->bits != 0 && (o->bits < 2 || o->bits > 8)) FAIL_USAGE("--bits: want 2 to 8, got %lld", (long long)o->bits);
    if (o->group != 0 && o->group != -1 && (o->group < 0 || o->group > (1 << 20) || o->group % 8 != 0))
        FAIL_USAGE("--group: want -1 (a row) or a multiple of 8, got %lld", (long long)o->group);
    if (o->symmetric && o->asymmetric) FAIL_USAGE("--sym and --asym contradict each other");
    if (o->dtype_given) FAIL_USAGE("--dtype: %s quantizes the linears and copies the rest; leave --dtype out", o->format_name);
    if (o->activations == NULL || strcmp(o->activations, "none") == 0) return OK;
    if (strcmp(o->activations, "int8") != 0) FAIL_USAGE("--activations: want int8 or none, got \"%.60s\"", o->activations);
    if (o->format != EXPORT_COMPRESSED || (o->bits != 0 && o->bits != 8) || o->group > 0)
        FAIL_USAGE("--activations int8 belongs to --format compressed-tensors with --bits 8 and --group -1");
    return OK;
}

/* ---- the grid -------------------------------------------------------------------------------------------------------------- */

/* The largest usual group that divides every linear's width; 0: none does. */
static int32_t usual_group(const Export *export) {
    for (int32_t group = 128; group >= 32; group /= 2) {
        int divides = 1;
        for (int32_t id = WEIGHT_GLOBALS; id < weight_count(merge_model(export->merge)); id++)
            if (is_linear(id)) divides &= merge_weight(export->merge, id).cols % group == 0;
        if (divides) return group;
    }
    return 0;
}

static QuantSpec usual_spec(const Export *export) {
    return (QuantSpec){.format = WEIGHT_GROUPED,
                       .bits = 4,
                       .block_size = usual_group(export),
                       .zeros = export->options->format == EXPORT_AWQ,
                       .scale_type = merge_model(export->merge)->dtype};
}

/* Where columns have an order, only what is copied keeps it. */
static int same_grid(QuantSpec a, QuantSpec b) {
    a.ordered = b.ordered = 0;
    return quant_spec_equal(&a, &b);
}

static void warn_about_grid(const Export *export) {
    if (export->trained_grid.format != WEIGHT_GROUPED || same_grid(export->trained_grid, export->spec)) return;
    log_warning(
        "the run trained on another grid (%d bits, groups of %d, scales in %s), so its weights are rounded again; --format "
        "compressed-tensors without further options keeps what was trained",
        export->trained_grid.bits, (int)export->trained_grid.block_size, dtype_name(export->trained_grid.scale_type));
}

Status export_grouped_choose(Export *export, Error *err) {
    const ExportOptions *o = export->options;
    MergeWeight first = merge_weight(export->merge, weight_id(0, LAYER_Q));
    int own = first.folder_quantized && first.spec.format == WEIGHT_GROUPED;
    int trained = export->trained_grid.format == WEIGHT_GROUPED;
    QuantSpec spec = trained ? export->trained_grid : own ? first.spec : usual_spec(export);
    int by_token = o->activations != NULL
                       ? strcmp(o->activations, "int8") == 0
                       : export->rounding.bits == 8 && export->rounding.symmetric && o->format == EXPORT_COMPRESSED;
    spec.ordered = 0;
    if (o->bits != 0) spec.bits = (int)o->bits;
    if (o->group != 0) spec.block_size = o->group == -1 ? 0 : (int32_t)o->group;
    if (o->activations != NULL && by_token) spec.bits = 8, spec.block_size = 0;
    if (o->symmetric) spec.zeros = 0;
    if (o->asymmetric) spec.zeros = 1;
    if (o->format != EXPORT_COMPRESSED) spec.scale_type = DTYPE_F16;
    if (o->format == EXPORT_AWQ) spec.bits = 4;
    export->spec = spec;
    export->spec.keep_scales =
        !trained || !same_grid(export->trained_grid, spec); /* a trained grid is made as it was trained */
    export->int8_activations = by_token && spec.bits == 8 && spec.block_size == 0;
    if (o->format == EXPORT_COMPRESSED && own && merge_model(export->merge)->grouped.int8_activations &&
        o->activations == NULL && same_grid(spec, first.spec))
        export->int8_activations = 1;
    char groups[40] = "a scale a row";
    if (spec.block_size > 0) (void)snprintf(groups, sizeof groups, "groups of %d", (int)spec.block_size);
    (void)snprintf(export->spec_text, sizeof export->spec_text, "int%d, %s, %s%s", spec.bits, groups,
                   spec.zeros ? "with zero points" : "symmetric", export->int8_activations ? ", int8 activations" : "");
    warn_about_grid(export);
    for (int32_t id = 0; id < weight_count(merge_model(export->merge)); id++) {
        MergeWeight weight = merge_weight(export->merge, id);
        Status status = OK;
        if (weight.present && is_linear(id))
            status = grouped_layout_check(export_grouped_layout(export), &spec, weight.rows, weight.cols, err);
        else if (weight.present && weight.folder_quantized)
            FAIL("%s is quantized, which no %s folder has; use --format hf or gguf", weight.file->name, o->format_name);
        if (status == OK) continue;
        error_prefix(err, "%s", weight.file->name);
        return status;
    }
    return OK;
}

GroupedLayout export_grouped_layout(const Export *export) {
    switch (export->options->format) {
        case EXPORT_GPTQ: return GROUPED_GPTQ;
        case EXPORT_AWQ: return GROUPED_AWQ;
        default: return export->int8_activations ? GROUPED_INT_ROWS : GROUPED_PACKED;
    }
}

/* ---- codes ----------------------------------------------------------------------------------------------------------------- */

typedef struct Codes {
    Export *export;
    Arena arena;
    QuantizedTensor *tensors; /* by number */
    TensorFiles *learned;     /* scales of the run; NULL: none */
    float *base, *merged;     /* one slab each, where scales are given */
    int64_t slab;             /* values */
} Codes;

/* Its own spec where it is copied, so that an order of columns stays; a module that its folder left out stays out. */
static Status take_one(Codes *c, int32_t id, Arena *arena, Error *err) {
    const Export *export = c->export;
    MergeWeight weight = merge_weight(export->merge, id);
    if (!weight.present || !is_linear(id)) return OK;
    int grouped_folder = prequant_is_grouped(merge_model(export->merge)->prequant);
    if (grouped_folder && !weight.folder_quantized && !weight.adapted) return OK;
    QuantSpec written = export->spec;
    written.ordered = export_is_ordered(export, weight.cols);
    int copied = c->learned == NULL && !weight.adapted && weight.folder_quantized && same_grid(weight.spec, export->spec);
    const QuantSpec *spec = copied ? &weight.spec : &written;
    TRY(grouped_layout_check(export_grouped_layout(export), spec, weight.rows, weight.cols, err));
    return quantized_take(&c->tensors[id], spec, weight.rows, weight.cols, arena, err);
}

static Status take(Codes *c, Arena *arena, Error *err) {
    for (int32_t id = 0; id < weight_count(merge_model(c->export->merge)); id++)
        TRY(take_one(c, id, arena, err));
    return OK;
}

typedef struct ScaledRows {
    QuantizedTensor *tensor;
    const float *values;
    int64_t first;
    uint8_t *codes;
    _Atomic int bad;
} ScaledRows;

static void scaled_row(void *context, int64_t item, int worker) {
    (void)worker;
    ScaledRows *job = context;
    QuantizedTensor *t = job->tensor;
    GroupInt grid = quant_spec_grid(&t->spec);
    int64_t row = job->first + item, stride = grouped_row_bytes(t->cols, t->spec.bits);
    const float *x = job->values + item * t->cols;
    uint8_t *codes = job->codes + item * t->cols, *packed = t->codes + row * stride;
    for (int64_t c = 0; c < t->cols; c++)
        if (!(x[c] - x[c] == 0.0f)) {
            atomic_store(&job->bad, 1);
            return;
        }
    group_int_quantize_given_scales(&grid, x, t->cols, t->scales + row * (t->blocks / t->rows), NULL, NULL, codes);
    memset(packed + stride - 4, 0, 4);
    group_int_pack(t->spec.bits, codes, t->cols, packed);
}

/* The scales that the run learned, and the merge's codes for them. */
static Status quantize_scaled(Codes *c, int32_t id, Error *err) {
    Merge *merge = c->export->merge;
    QuantizedTensor *t = &c->tensors[id];
    char name[224], weight_name[192];
    int64_t rows, cols, slab = merge_slab_rows(merge, id);
    (void)weight_describe(merge_model(merge), id, weight_name, sizeof weight_name, &rows, &cols);
    (void)snprintf(name, sizeof name, "%s_scale", weight_name);
    const TensorInfo *scales = tensors_find(c->learned, name);
    if (scales == NULL || scales->dtype != DTYPE_F32 || scales->bytes != (uint64_t)t->blocks * sizeof(float))
        FAIL("%s: %s is missing or has another shape or type than the run's grid", QAT_SCALES_FILE, name);
    TRY(tensors_read(c->learned, scales, 0, t->scales, (size_t)scales->bytes, 0, err));
    for (int64_t i = 0; i < t->blocks; i++)
        if (!(t->scales[i] > 0.0f) || group_int_round(t->scales[i], t->spec.scale_type) != t->scales[i])
            FAIL("%s: %s: scale %lld is not positive, or is no %s number", QAT_SCALES_FILE, name, (long long)i,
                 dtype_name(t->spec.scale_type));
    uint8_t *codes = memory_alloc((size_t)(slab * cols));
    Status status = OK;
    for (int64_t first = 0; first < rows && status == OK; first += slab) {
        int64_t count = rows - first < slab ? rows - first : slab;
        int adapted = merge_weight(merge, id).adapted;
        status = merge_rows(merge, first, count, c->base, adapted ? c->merged : NULL, err);
        if (status != OK) break;
        ScaledRows job = {.tensor = t, .values = adapted ? c->merged : c->base, .first = first, .codes = codes};
        pool_run(c->export->pool, scaled_row, &job, count);
        if (job.bad)
            status = error_set(err, ERR_FAILED, "%s: rows from %lld on hold NaN or Inf", weight_name, (long long)first);
    }
    memory_free(codes);
    return status;
}

static Status open_learned(Codes *c, Error *err) {
    const Export *export = c->export;
    if (!export->trained_scales || !same_grid(export->spec, export->trained_grid)) return OK;
    const MergeOptions *m = &export->merging;
    if (m->count != 1 || m->weights[0] != 1.0)
        FAIL("scales were learned with one adapter as it is; merge it alone, with weight 1");
    char *path = path_join(m->adapters[0], QAT_SCALES_FILE);
    Status status = tensors_open(&c->learned, path, NULL, err);
    memory_free(path);
    TRY(status);
    size_t values = MERGE_SLAB_BYTES / sizeof(float);
    for (int32_t id = WEIGHT_GLOBALS; id < weight_count(merge_model(export->merge)); id++)
        if (is_linear(id) && (size_t)merge_weight(export->merge, id).cols > values)
            values = (size_t)merge_weight(export->merge, id).cols;
    c->base = memory_alloc(values * sizeof *c->base);
    c->merged = memory_alloc(values * sizeof *c->merged);
    return OK;
}

static Status quantize_all(Codes *c, Error *err) {
    Arena counted;
    arena_count(&counted, "quantized weights");
    TRY(open_learned(c, err));
    TRY(take(c, &counted, err));
    TRY(arena_create(&c->arena, "quantized weights", counted.used, err));
    TRY(take(c, &c->arena, err));
    for (int32_t id = 0; id < weight_count(merge_model(c->export->merge)); id++) {
        if (c->tensors[id].rows == 0) continue;
        TRY(export_interrupted(err));
        TRY(merge_begin(c->export->merge, id, err));
        Status status =
            c->learned != NULL ? quantize_scaled(c, id, err) : export_quantize_linear(c->export, id, &c->tensors[id], err);
        if (status != OK) {
            error_prefix(err, "%s", merge_weight(c->export->merge, id).file->name);
            return status;
        }
    }
    return OK;
}

Status export_grouped_write(Export *export, const char *folder, Error *err) {
    Codes c = {.export = export};
    c.tensors = memory_calloc((size_t)weight_count(merge_model(export->merge)), sizeof *c.tensors);
    Status status = quantize_all(&c, err);
    GroupedFolder grouped = {.export = export, .tensors = c.tensors};
    if (export_is_calibrated(export)) grouped.vectors = calibration_vectors(export->calibration);
    if (status == OK) status = export_grouped_folder(&grouped, folder, err);
    tensors_close(c.learned);
    arena_free(&c.arena);
    memory_free(c.base);
    memory_free(c.merged);
    memory_free(c.tensors);
    return status;
}
