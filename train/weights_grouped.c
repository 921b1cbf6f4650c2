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
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
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

size_t grouped_staging(const WeightEntry *entry) {
    int64_t groups = entry->spec.block_size > 0 ? entry->cols / entry->spec.block_size : 1;
    size_t constants = (size_t)(entry->rows * groups) * sizeof(float);
    return most(most(STAGE_BYTES, constants), (size_t)(most((size_t)entry->rows, (size_t)entry->cols)) * sizeof(int32_t));
}

typedef struct Lines {
    GroupedLayout layout;
    QuantizedTensor *tensor;
    int64_t first, count;
    const uint8_t *lines;
} Lines;

static void lines_item(void *context, int64_t item, int worker) {
    (void)worker;
    const Lines *job = context;
    int64_t row = item * ROWS_AN_ITEM, rest = job->tensor->rows - row;
    grouped_codes_in(job->layout, job->tensor, job->first, job->count, job->lines, row,
                     rest < ROWS_AN_ITEM ? rest : ROWS_AN_ITEM);
}

static Status read_whole(const TensorFiles *files, const TensorInfo *tensor, void *out, int drop_cache, Error *err) {
    for (uint64_t at = 0; at < tensor->bytes;) {
        uint64_t rest = tensor->bytes - at, count = rest < STAGE_BYTES ? rest : STAGE_BYTES;
        TRY(tensors_read(files, tensor, at, (uint8_t *)out + at, (size_t)count, drop_cache, err));
        at += count;
    }
    return OK;
}

static Status read_codes(const TensorFiles *files, WeightEntry *entry, GroupedLayout layout, Pool *pool, int drop_cache,
                         uint8_t *buffer, Error *err) {
    QuantizedTensor *t = &entry->tensor;
    int64_t all = grouped_lines(layout, t), bytes = grouped_line_bytes(layout, t);
    int64_t at_once = (int64_t)STAGE_BYTES / bytes > 0 ? (int64_t)STAGE_BYTES / bytes : 1;
    int by_rows = layout == GROUPED_GPTQ || layout == GROUPED_AWQ;
    for (int64_t first = 0; first < all; first += at_once) {
        int64_t count = all - first < at_once ? all - first : at_once;
        TRY(tensors_read(files, entry->file, (uint64_t)(first * bytes), buffer, (size_t)(count * bytes), drop_cache, err));
        Lines job = {.layout = layout, .tensor = t, .first = first, .count = count, .lines = buffer};
        if (by_rows)
            pool_run(pool, lines_item, &job, (t->rows + ROWS_AN_ITEM - 1) / ROWS_AN_ITEM);
        else
            grouped_codes_in(layout, t, first, count, buffer, 0, t->rows);
    }
    return OK;
}

static Status read_scales(const TensorFiles *files, WeightEntry *entry, GroupedLayout layout, int drop_cache, uint8_t *buffer,
                          Error *err) {
    QuantizedTensor *t = &entry->tensor;
    TRY(read_whole(files, entry->scales, buffer, drop_cache, err));
    grouped_scales_in(layout, t, buffer);
    for (int64_t i = 0; i < t->blocks; i++)
        if (!isfinite(t->scales[i]))
            FAIL("%s: the scale of row %lld is NaN or Inf", entry->scales->name, (long long)(i / (t->blocks / t->rows)));
    return OK;
}

/* Where config.json says symmetric, GPTQ's zero points must be the ones that readers assume without looking. */
static Status read_zeros(const TensorFiles *files, WeightEntry *entry, const ModelConfig *config, int drop_cache,
                         uint8_t *buffer, Error *err) {
    QuantizedTensor *t = &entry->tensor;
    if (entry->zeros == NULL) return OK;
    TRY(read_whole(files, entry->zeros, buffer, drop_cache, err));
    if (t->zeros != NULL) {
        grouped_zeros_in(layout_of(config), t, config->grouped.zero_offset, buffer, t->zeros);
        return OK;
    }
    uint8_t *zeros = memory_alloc((size_t)t->blocks);
    int64_t other = 0;
    grouped_zeros_in(layout_of(config), t, config->grouped.zero_offset, buffer, zeros);
    while (other < t->blocks && zeros[other] == 1 << (t->spec.bits - 1))
        other++;
    int got = other < t->blocks ? zeros[other] : 0;
    memory_free(zeros);
    if (other == t->blocks) return OK;
    FAIL("%s: config.json says sym, and a zero point is %d instead of %d; set sym to false, or checkpoint_format to %s",
         entry->zeros->name, got, 1 << (t->spec.bits - 1), config->grouped.zero_offset ? "gptq_v2" : "gptq");
}

static Status read_order(const TensorFiles *files, WeightEntry *entry, int drop_cache, int32_t *buffer, Error *err) {
    QuantizedTensor *t = &entry->tensor;
    int64_t groups = t->blocks / t->rows, group = t->cols / groups;
    if (entry->order == NULL) return OK;
    TRY(read_whole(files, entry->order, buffer, drop_cache, err));
    for (int64_t c = 0; c < t->cols; c++) {
        if (buffer[c] < 0 || buffer[c] >= groups)
            FAIL("%s: column %lld: want a group from 0 to %lld, got %ld", entry->order->name, (long long)c,
                 (long long)groups - 1, (long)buffer[c]);
        if (t->group_index == NULL && buffer[c] != c / group)
            FAIL("%s: column %lld is in group %ld, and config.json says desc_act false; set it to true", entry->order->name,
                 (long long)c, (long)buffer[c]);
    }
    if (t->group_index != NULL) memcpy(t->group_index, buffer, (size_t)t->cols * sizeof *buffer);
    return OK;
}

Status grouped_read(const TensorFiles *files, const ModelConfig *config, WeightEntry *entry, Pool *pool, int drop_cache,
                    Error *err) {
    GroupedLayout layout = layout_of(config);
    uint8_t *buffer = memory_alloc(grouped_staging(entry));
    Status status;
    TRY_GOTO(read_codes(files, entry, layout, pool, drop_cache, buffer, err));
    TRY_GOTO(read_scales(files, entry, layout, drop_cache, buffer, err));
    TRY_GOTO(read_zeros(files, entry, config, drop_cache, buffer, err));
    TRY_GOTO(read_order(files, entry, drop_cache, (int32_t *)(void *)buffer, err));
done:
    memory_free(buffer);
    return status;
}
