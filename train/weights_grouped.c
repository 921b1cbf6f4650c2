/* Grouped integers in a folder of GPTQ, AWQ or compressed-tensors (layouts: quant/grouped_layout.h).
 *
 *   GPTQ       X.qweight         X.qzeros              X.scales        X.g_idx [in]
 *   AWQ        X.qweight         X.qzeros              X.scales
 *   PACKED     X.weight_packed   X.weight_zero_point   X.weight_scale  X.weight_g_idx [in], X.weight_shape [2]
 *   INT_ROWS   X.weight          X.weight_zero_point   X.weight_scale
 *
 * Codes stay the integers that they are; only their places change. config.json says which of the zero points and orders there
 * are, and what contradicts it is refused. A module without these tensors was left out on purpose and is dense.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "quant/grouped_layout.h"
#include "train/weights_internal.h"

static GroupedLayout layout_of(const ModelConfig *config) {
    return config->prequant == PREQUANT_GPTQ     ? GROUPED_GPTQ
           : config->prequant == PREQUANT_AWQ    ? GROUPED_AWQ
           : config->prequant == PREQUANT_PACKED ? GROUPED_PACKED
                                                 : GROUPED_INT_ROWS;
}

QuantSpec grouped_spec(const ModelConfig *config, DType scale_type) {
    const GroupedConfig *g = &config->grouped;
    return (QuantSpec){.format = WEIGHT_GROUPED,
                       .block_size = (int32_t)g->group,
                       .bits = g->bits,
                       .zeros = g->zeros,
                       .ordered = g->ordered,
                       .scale_type = scale_type};
}

const char *grouped_config_text(const ModelConfig *config, char *out, size_t capacity) {
    static const char *const names[] = {
        [GROUPED_GPTQ] = "gptq",
        [GROUPED_AWQ] = "awq",
        [GROUPED_PACKED] = "compressed-tensors pack-quantized",
        [GROUPED_INT_ROWS] = "compressed-tensors int-quantized",
    };
    const GroupedConfig *g = &config->grouped;
    char groups[40] = "a scale a row";
    if (g->group > 0) (void)snprintf(groups, sizeof groups, "groups of %lld", (long long)g->group);
    (void)snprintf(out, capacity, "%s, %d bits, %s, %s%s", names[layout_of(config)], g->bits, groups,
                   g->zeros ? "with zero points" : "symmetric", g->ordered ? ", columns ordered" : "");
    return out;
}

/* "….q_proj.weight" and suffix -> "….q_proj<suffix>" */
static const TensorInfo *find_part(const TensorFiles *files, const char *name, const char *suffix, char *full,
                                   size_t capacity) {
    (void)snprintf(full, capacity, "%.*s%s", (int)(strlen(name) - strlen(".weight")), name, suffix);
    return tensors_find(files, full);
}

const TensorInfo *grouped_codes(const TensorFiles *files, const ModelConfig *config, const char *name) {
    char full[WEIGHT_NAME_MAX + 32];
    if (!prequant_is_grouped(config->prequant) || config->prequant == PREQUANT_INT_ROWS) return NULL;
    return find_part(files, name, config->prequant == PREQUANT_PACKED ? ".weight_packed" : ".qweight", full, sizeof full);
}

/* ---- finding --------------------------------------------------------------------------------------------------------------- */

/* The part `suffix` of a weight with this shape; second 1 may be left out. type DTYPE_COUNT: F32, BF16 or F16. */
static Status want_part(WeightCheck *check, const char *name, const char *suffix, DType type, int64_t first, int64_t second,
                        const TensorInfo **out, Error *err) {
    char full[WEIGHT_NAME_MAX + 32];
    const TensorInfo *tensor = find_part(check->files, name, suffix, full, sizeof full);
    if (tensor == NULL) FAIL("%s is missing", full);
    int is_type = type == DTYPE_COUNT ? tensor->dtype == DTYPE_F32 || tensor->dtype == DTYPE_BF16 || tensor->dtype == DTYPE_F16
                                      : tensor->dtype == type;
    int is_shape = (tensor->ndim == 2 && tensor->shape[0] == first && tensor->shape[1] == second) ||
                   (tensor->ndim == 1 && tensor->shape[0] == first && second == 1);
    if (!is_type || !is_shape)
        FAIL("%s: want %s [%lld, %lld], got %s with %d dimensions, %llu bytes; check quantization_config in config.json", full,
             type == DTYPE_COUNT ? "F32, BF16 or F16" : dtype_name(type), (long long)first, (long long)second,
             dtype_name(tensor->dtype), tensor->ndim, (unsigned long long)tensor->bytes);
    check->used[check->used_count++] = tensor;
    *out = tensor;
    return OK;
}

/* [out, in], I64 or I32 */
static Status check_shape_tensor(WeightCheck *check, const char *name, const WeightEntry *entry, Error *err) {
    char full[WEIGHT_NAME_MAX + 32];
    const TensorInfo *tensor = find_part(check->files, name, ".weight_shape", full, sizeof full);
    int64_t shape[2];
    int32_t narrow[2];
    if (tensor == NULL) return OK; /* config.json says it */
    int wide = tensor->dtype == DTYPE_I64;
    if ((!wide && tensor->dtype != DTYPE_I32) || tensor->bytes != 2 * dtype_size(tensor->dtype))
        FAIL("%s: want two values of I64 or I32", full);
    TRY(tensors_read(check->files, tensor, 0, wide ? (void *)shape : (void *)narrow, (size_t)tensor->bytes, 0, err));
    for (int d = 0; d < 2 && !wide; d++)
        shape[d] = narrow[d];
    if (shape[0] != entry->rows || shape[1] != entry->cols)
        FAIL("%s: want [%lld, %lld], got [%lld, %lld]", full, (long long)entry->rows, (long long)entry->cols,
             (long long)shape[0], (long long)shape[1]);
    check->used[check->used_count++] = tensor;
    return OK;
}

/* Old AutoGPTQ writes biases of zeros for modules that have none. */
static Status check_bias(WeightCheck *check, const char *name, int32_t id, Error *err) {
    char full[WEIGHT_NAME_MAX + 32], bias[WEIGHT_NAME_MAX];
    uint8_t bytes[4096];
    int64_t rows, cols;
    const TensorInfo *tensor = find_part(check->files, name, ".bias", full, sizeof full);
    if (tensor == NULL || weight_describe(check->config, id + LAYER_Q_BIAS - LAYER_Q, bias, sizeof bias, &rows, &cols))
        return OK;
    for (uint64_t at = 0; at < tensor->bytes; at += sizeof bytes) {
        uint64_t rest = tensor->bytes - at;
        size_t count = rest < sizeof bytes ? (size_t)rest : sizeof bytes;
        TRY(tensors_read(check->files, tensor, at, bytes, count, 0, err));
        for (size_t i = 0; i < count; i++)
            if (bytes[i] != 0) FAIL("%s: config.json says that there is no such bias, and this one is not zero", full);
    }
    check->used[check->used_count++] = tensor;
    return OK;
}

static Status find_transposed(WeightCheck *check, const char *name, WeightEntry *entry, Error *err) {
    const GroupedConfig *g = &check->config->grouped;
    int64_t groups = g->group > 0 ? entry->cols / g->group : 1;
    int gptq = check->config->prequant == PREQUANT_GPTQ;
    if (entry->rows * g->bits % 32 != 0 || (gptq && entry->cols * g->bits % 32 != 0))
        FAIL("%s: [%lld, %lld] in %d bits does not fill whole words", name, (long long)entry->rows, (long long)entry->cols,
             g->bits);
    int64_t packed = entry->rows * g->bits / 32, lines = gptq ? entry->cols * g->bits / 32 : entry->cols;
    check->used_count--; /* it was counted before its shape was checked */
    TRY(want_part(check, name, ".qweight", DTYPE_I32, lines, gptq ? entry->rows : packed, &entry->file, err));
    TRY(want_part(check, name, ".qzeros", DTYPE_I32, groups, packed, &entry->zeros, err));
    TRY(want_part(check, name, ".scales", DTYPE_COUNT, groups, entry->rows, &entry->scales, err));
    char full[WEIGHT_NAME_MAX + 32];
    int has_order = find_part(check->files, name, ".g_idx", full, sizeof full) != NULL;
    if (gptq && (has_order || g->ordered)) TRY(want_part(check, name, ".g_idx", DTYPE_I32, entry->cols, 1, &entry->order, err));
    return OK;
}

static Status find_compressed(WeightCheck *check, const char *name, WeightEntry *entry, Error *err) {
    const GroupedConfig *g = &check->config->grouped;
    int64_t groups = g->group > 0 ? entry->cols / g->group : 1;
    int packed = check->config->prequant == PREQUANT_PACKED;
    check->used_count--;
    if (packed)
        TRY(want_part(check, name, ".weight_packed", DTYPE_I32, entry->rows, grouped_row_bytes(entry->cols, g->bits) / 4,
                      &entry->file, err));
    else
        TRY(want_part(check, name, ".weight", DTYPE_I8, entry->rows, entry->cols, &entry->file, err));
    TRY(want_part(check, name, ".weight_scale", DTYPE_COUNT, entry->rows, groups, &entry->scales, err));
    if (packed) TRY(check_shape_tensor(check, name, entry, err));
    if (g->zeros && packed)
        TRY(want_part(check, name, ".weight_zero_point", DTYPE_I32, (entry->rows * g->bits + 31) / 32, groups, &entry->zeros,
                      err));
    else if (g->zeros)
        TRY(want_part(check, name, ".weight_zero_point", DTYPE_I8, entry->rows, 1, &entry->zeros, err));
    if (!g->ordered) return OK;
    return want_part(check, name, ".weight_g_idx", DTYPE_I32, entry->cols, 1, &entry->order, err);
}

Status grouped_find(WeightCheck *check, const char *name, int32_t id, WeightEntry *entry, int *found, Error *err) {
    QuantMethod method = check->config->prequant;
    size_t length = strlen(entry->file->name);
    int is_plain = length > 7 && strcmp(entry->file->name + length - 7, ".weight") == 0;
    *found = prequant_is_grouped(method) && (method == PREQUANT_INT_ROWS ? entry->file->dtype == DTYPE_I8 : !is_plain);
    if (!*found) return OK;
    entry->spec = grouped_spec(check->config, DTYPE_F16);
    TRY(quant_check(&entry->spec, entry->rows, entry->cols, err));
    if (method == PREQUANT_GPTQ || method == PREQUANT_AWQ)
        TRY(find_transposed(check, name, entry, err));
    else
        TRY(find_compressed(check, name, entry, err));
    entry->spec.scale_type = entry->scales->dtype;
    entry->origin = ORIGIN_GROUPED;
    entry->quantized = 1;
    return check_bias(check, name, id, err);
}

/* ---- reading --------------------------------------------------------------------------------------------------------------- */

#define ROWS_AN_ITEM 64 /* of the weight: one item of the pool */

static size_t most(size_t a, size_t b) {
    return a > b ? a : b;
}

/* Lines whose codes share words of the weight. */
static int64_t lines_together(GroupedLayout layout) {
    return layout == GROUPED_AWQ ? 8 : 1;
}

static WeightPart codes_part(const ModelConfig *config, int32_t id, const WeightEntry *entry) {
    const QuantizedTensor *t = &entry->tensor;
    GroupedLayout layout = layout_of(config);
    WeightPart part = {.kind = layout == GROUPED_PACKED     ? PART_BYTES
                               : layout == GROUPED_INT_ROWS ? PART_SIGNED
                                                            : PART_WORDS,
                       .id = id,
                       .file = entry->file,
                       .lines = grouped_lines(layout, t),
                       .unit = lines_together(layout),
                       .line_bytes = (size_t)grouped_line_bytes(layout, t),
                       .to = t->codes};
    part.made = layout == GROUPED_INT_ROWS ? (size_t)grouped_row_bytes(t->cols, t->spec.bits) : part.line_bytes;
    part.widest = most(part.line_bytes, part.made);
    return part;
}

/* All of a tensor at once. */
static WeightPart whole_part(PartKind kind, int32_t id, const TensorInfo *file, size_t made, void *to) {
    size_t bytes = (size_t)file->bytes;
    return (WeightPart){.kind = kind,
                        .id = id,
                        .file = file,
                        .lines = 1,
                        .unit = 1,
                        .line_bytes = bytes,
                        .made = made,
                        .widest = most(bytes, made),
                        .to = to};
}

int grouped_parts(const ModelConfig *config, int32_t id, const WeightEntry *entry, WeightPart *out) {
    const QuantizedTensor *t = &entry->tensor;
    int count = 0;
    out[count++] = codes_part(config, id, entry);
    out[count++] = whole_part(PART_SCALES, id, entry->scales, (size_t)t->blocks * sizeof(float), t->scales);
    if (entry->zeros != NULL) out[count++] = whole_part(PART_ZEROS, id, entry->zeros, (size_t)t->blocks, t->zeros);
    if (entry->order != NULL)
        out[count++] = whole_part(PART_ORDER, id, entry->order, (size_t)entry->order->bytes, t->group_index);
    return count;
}

size_t grouped_staging(const WeightEntry *entry) {
    int64_t groups = entry->spec.block_size > 0 ? entry->cols / entry->spec.block_size : 1;
    size_t constants = (size_t)(entry->rows * groups) * sizeof(float), codes = (size_t)(entry->rows * entry->cols);
    size_t line = (size_t)(most((size_t)entry->rows, (size_t)entry->cols)) * sizeof(int32_t);
    return most(most(codes < STAGE_BYTES ? codes : STAGE_BYTES, constants), line);
}

/* Items of the pool: rows of the weight. */
typedef struct Rows {
    GroupedLayout layout;
    QuantizedTensor tensor; /* its pointers lead where the results are wanted */
    int64_t first, count;   /* lines of codes */
    int stored_less;
    const uint8_t *raw;
    uint8_t *zeros;
    _Atomic int64_t bad; /* the first row with a scale that is not finite */
} Rows;

static int64_t rows_of(const Rows *job, int64_t item) {
    int64_t rest = job->tensor.rows - item * ROWS_AN_ITEM;
    return rest < ROWS_AN_ITEM ? rest : ROWS_AN_ITEM;
}

static void words_item(void *context, int64_t item, int worker) {
    (void)worker;
    Rows *job = context;
    grouped_codes_in(job->layout, &job->tensor, job->first, job->count, job->raw, item * ROWS_AN_ITEM, rows_of(job, item));
}

static void scales_item(void *context, int64_t item, int worker) {
    (void)worker;
    Rows *job = context;
    int64_t groups = job->tensor.blocks / job->tensor.rows, row = item * ROWS_AN_ITEM, rows = rows_of(job, item);
    grouped_scales_in(job->layout, &job->tensor, job->raw, row, rows);
    for (int64_t i = row * groups; i < (row + rows) * groups; i++) {
        if (isfinite(job->tensor.scales[i])) continue;
        keep_least(&job->bad, i / groups);
        return;
    }
}

static void zeros_item(void *context, int64_t item, int worker) {
    (void)worker;
    Rows *job = context;
    grouped_zeros_in(job->layout, &job->tensor, job->stored_less, job->raw, item * ROWS_AN_ITEM, rows_of(job, item),
                     job->zeros);
}

static void run_rows(Pool *pool, PoolWork *item, Rows *job) {
    pool_run(pool, item, job, (job->tensor.rows + ROWS_AN_ITEM - 1) / ROWS_AN_ITEM);
}

void grouped_words_in(PartWork *work, const WeightEntry *entry, int64_t line, int64_t lines, const void *raw) {
    Rows job = {.layout = layout_of(work->config), .tensor = entry->tensor, .first = line, .count = lines, .raw = raw};
    run_rows(work->pool, words_item, &job);
}

static Status make_scales(PartWork *work, const WeightEntry *entry, const void *raw, float *to, Error *err) {
    Rows job = {.layout = layout_of(work->config), .tensor = entry->tensor, .raw = raw, .bad = INT64_MAX};
    job.tensor.scales = to;
    run_rows(work->pool, scales_item, &job);
    if (job.bad != INT64_MAX) FAIL("the scale of row %lld is NaN or Inf", (long long)job.bad);
    return OK;
}

/* Where config.json says symmetric, GPTQ's zero points must be the ones that readers assume without looking. */
static Status make_zeros(PartWork *work, const WeightEntry *entry, const void *raw, uint8_t *to, Error *err) {
    const QuantizedTensor *t = &entry->tensor;
    int less = work->config->grouped.zero_offset, middle = 1 << (t->spec.bits - 1);
    Rows job = {.layout = layout_of(work->config), .tensor = *t, .stored_less = less, .raw = raw, .zeros = to};
    run_rows(work->pool, zeros_item, &job);
    if (t->zeros != NULL) return OK;
    for (int64_t i = 0; i < t->blocks; i++)
        if (to[i] != middle)
            FAIL("config.json says sym, and a zero point is %d instead of %d; set sym to false, or checkpoint_format to %s",
                 to[i], middle, less ? "gptq_v2" : "gptq");
    return OK;
}

static Status make_order(const WeightEntry *entry, const void *raw, void *to, Error *err) {
    const QuantizedTensor *t = &entry->tensor;
    int64_t groups = t->blocks / t->rows, group = t->cols / groups;
    const uint8_t *bytes = raw;
    for (int64_t c = 0; c < t->cols; c++) {
        int32_t index;
        memcpy(&index, bytes + (size_t)c * sizeof index, sizeof index);
        if (index < 0 || index >= groups)
            FAIL("column %lld: want a group from 0 to %lld, got %ld", (long long)c, (long long)groups - 1, (long)index);
        if (t->group_index == NULL && index != c / group)
            FAIL("column %lld is in group %ld, and config.json says desc_act false; set it to true", (long long)c, (long)index);
    }
    if (t->group_index != NULL) memcpy(to, raw, (size_t)t->cols * sizeof *t->group_index);
    return OK;
}

Status grouped_make(PartWork *work, const WeightPart *part, const WeightEntry *entry, int64_t lines, const void *raw, void *to,
                    Error *err) {
    if (part->kind == PART_SCALES) return make_scales(work, entry, raw, to, err);
    if (part->kind == PART_ZEROS) return make_zeros(work, entry, raw, to, err);
    if (part->kind == PART_ORDER) return make_order(entry, raw, to, err);
    QuantizedTensor here = entry->tensor; /* rows of I8 */
    here.codes = to;
    here.rows = lines;
    grouped_codes_in(layout_of(work->config), &here, 0, lines, raw, 0, lines);
    return OK;
}
