/* What is read of the files: the tensors of every weight, cut into lines, and the work that the host does on them.
 *
 *   kind            a line in the file                         what becomes of it
 *   PART_VALUES     a row of F32, BF16 or F16                  quantized, or converted to the dense type
 *   PART_INT8       a row of LLM.int8 codes                    decoded to FP32, then the same
 *   PART_BYTES      a byte                                     stays what it is
 *   PART_FLOATS     an F32 constant                            stays what it is, if finite
 *   PART_BLOCKS     a ggml block                               stays what it is, if its scales are finite
 *   PART_WORDS      GPTQ's or AWQ's words of all outputs       spread over the rows of the weight
 *   PART_SIGNED     a row of I8 codes                          unsigned, padded
 *   PART_SCALES     all scales of a weight                     FP32, by rows
 *   PART_ZEROS      all its zero points                        a byte each, by rows; or compared with the ones that are assumed
 *   PART_ORDER      all its columns' groups                    stays what it is, if they are groups
 */
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "quant/ggml.h"
#include "train/weights_internal.h"

/* ---- what there is --------------------------------------------------------------------------------------------------------- */

static WeightPart bytes_part(PartKind kind, int32_t id, const TensorInfo *file, size_t line_bytes, void *to) {
    return (WeightPart){.kind = kind,
                        .id = id,
                        .file = file,
                        .lines = (int64_t)(file->bytes / line_bytes),
                        .unit = 1,
                        .line_bytes = line_bytes,
                        .made = line_bytes,
                        .widest = line_bytes,
                        .to = to};
}

static int bnb4_parts(int32_t id, const WeightEntry *entry, WeightPart *out) {
    const QuantizedTensor *t = &entry->tensor;
    int count = 0;
    out[count++] = bytes_part(PART_BYTES, id, entry->file, 1, t->codes);
    out[count++] = bytes_part(PART_FLOATS, id, entry->map, sizeof(float), t->code_table);
    if (!entry->spec.double_quant) {
        out[count++] = bytes_part(PART_FLOATS, id, entry->scales, sizeof(float), t->scales);
        return count;
    }
    out[count++] = bytes_part(PART_BYTES, id, entry->scales, 1, t->nested_codes);
    out[count++] = bytes_part(PART_FLOATS, id, entry->nested_absmax, sizeof(float), t->nested_absmax);
    out[count++] = bytes_part(PART_FLOATS, id, entry->nested_map, sizeof(float), t->nested_map);
    return count;
}

static int64_t greatest_divisor(int64_t a, int64_t b) {
    while (b != 0) {
        int64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

/* Rows after which a block ends as well. */
static int64_t whole_rows(const WeightEntry *entry) {
    if (!entry->quantized || entry->spec.format == WEIGHT_INT8) return 1;
    int64_t block = entry->spec.block_size, rows = block / greatest_divisor(block, entry->cols);
    return rows < entry->rows ? rows : entry->rows; /* the last block may be short */
}

static WeightPart rows_part(int32_t id, const WeightEntry *entry, int whole_blocks) {
    size_t cols = (size_t)entry->cols, decoded = cols * sizeof(float), made = cols * dtype_size(entry->dense);
    int is_int8 = entry->origin == ORIGIN_INT8;
    WeightPart part = {.kind = is_int8 ? PART_INT8 : PART_VALUES,
                       .id = id,
                       .file = entry->file,
                       .lines = entry->rows,
                       .unit = whole_blocks ? whole_rows(entry) : 1,
                       .line_bytes = cols * dtype_size(entry->file->dtype),
                       .quantize = entry->quantized,
                       .to = entry->quantized ? NULL : entry->data};
    part.made = !entry->quantized ? made : is_int8 ? decoded : 0; /* else they are taken as they were read */
    part.widest = is_int8 ? decoded : part.line_bytes;
    return part;
}

int weight_parts(const ModelConfig *config, int32_t id, const WeightEntry *entry, int whole_blocks,
                 WeightPart out[WEIGHT_TENSORS]) {
    switch (entry->origin) {
        case ORIGIN_BNB4: return bnb4_parts(id, entry, out);
        case ORIGIN_GROUPED: return grouped_parts(config, id, entry, out);
        case ORIGIN_GGML:
            out[0] = bytes_part(PART_BLOCKS, id, entry->file, ggml_type_info(entry->ggml)->bytes, entry->data);
            return 1;
        case ORIGIN_DENSE:
        case ORIGIN_INT8: break;
    }
    out[0] = rows_part(id, entry, whole_blocks);
    return 1;
}

int64_t part_lines(const WeightPart *part, size_t bytes) {
    int64_t lines = (int64_t)(bytes / part->widest) / part->unit * part->unit;
    return lines < part->unit ? part->unit : lines > part->lines ? part->lines : lines;
}

int part_is_in_place(const WeightPart *part) {
    return (part->kind == PART_BYTES || part->kind == PART_FLOATS || part->kind == PART_BLOCKS) && part->to != NULL;
}

/* ---- values that are not finite -------------------------------------------------------------------------------------------- */

#define CHECK_BLOCKS 16384

typedef struct Check {
    uint32_t ggml; /* GGML_F32: floats */
    const uint8_t *data;
    int64_t count;
    size_t size;
    _Atomic int64_t bad;
} Check;

void keep_least(_Atomic int64_t *least, int64_t value) {
    int64_t seen = atomic_load(least);
    while (value < seen && !atomic_compare_exchange_weak(least, &seen, value)) {
    }
}

static void check_item(void *context, int64_t item, int worker) {
    (void)worker;
    Check *job = context;
    int64_t first = item * CHECK_BLOCKS, count = job->count - first < CHECK_BLOCKS ? job->count - first : CHECK_BLOCKS;
    int64_t bad = ggml_find_nonfinite(job->ggml, job->data + (size_t)first * job->size, count);
    if (bad >= 0) keep_least(&job->bad, first + bad);
}

/* The first block (or float) of `count` whose scale is NaN or Inf; -1: none. */
static int64_t first_bad(Pool *pool, uint32_t ggml, const void *data, int64_t count, size_t size) {
    Check job = {.ggml = ggml, .data = data, .count = count, .size = size, .bad = INT64_MAX};
    pool_run(pool, check_item, &job, (count + CHECK_BLOCKS - 1) / CHECK_BLOCKS);
    return job.bad == INT64_MAX ? -1 : job.bad;
}

/* ---- numbers of 16 and 32 bits --------------------------------------------------------------------------------------------- */

#define CONVERT_VALUES 65536

typedef struct Convert {
    const uint8_t *from;
    uint8_t *to;
    DType from_type, to_type;
    int64_t values;
    _Atomic int64_t bad;
} Convert;

static int64_t first_nonfinite(const uint8_t *values, DType type, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        if (type == DTYPE_BF16) {
            uint16_t half;
            memcpy(&half, values + 2 * i, 2);
            bits = (uint32_t)half << 16;
        } else {
            memcpy(&bits, values + 4 * i, 4);
        }
        if ((bits & 0x7F800000u) == 0x7F800000u) return i;
    }
    return -1;
}

static void convert_item(void *context, int64_t item, int worker) {
    (void)worker;
    Convert *job = context;
    int64_t first = item * CONVERT_VALUES;
    int64_t count = job->values - first < CONVERT_VALUES ? job->values - first : CONVERT_VALUES;
    uint8_t *to = job->to + (size_t)first * dtype_size(job->to_type);
    dtype_convert(to, job->to_type, job->from + (size_t)first * dtype_size(job->from_type), job->from_type, count);
    int64_t bad = first_nonfinite(to, job->to_type, count);
    if (bad >= 0) keep_least(&job->bad, first + bad);
}

/* Rows of type `type`, from `row` on, as the entry's dense type. */
static Status convert_rows(Pool *pool, const WeightEntry *entry, const void *rows, DType type, int64_t row, int64_t count,
                           void *to, Error *err) {
    int64_t first = row * entry->cols;
    Convert job = {
        .from = rows, .to = to, .from_type = type, .to_type = entry->dense, .values = count * entry->cols, .bad = INT64_MAX};
    pool_run(pool, convert_item, &job, (job.values + CONVERT_VALUES - 1) / CONVERT_VALUES);
    if (job.bad == INT64_MAX) return OK;
    int64_t at = first + job.bad;
    FAIL("row %lld, column %lld is NaN or Inf%s; a weight must be finite", (long long)(at / entry->cols),
         (long long)(at % entry->cols), entry->dense == DTYPE_BF16 ? " in BF16" : "");
}

/* ---- LLM.int8 -------------------------------------------------------------------------------------------------------------- */

typedef struct Decode {
    const int8_t *codes;
    const float *scales;
    float *out;
    int64_t cols;
} Decode;

static void decode_row(void *context, int64_t row, int worker) {
    (void)worker;
    const Decode *job = context;
    const int8_t *codes = job->codes + row * job->cols;
    float *out = job->out + row * job->cols;
    for (int64_t i = 0; i < job->cols; i++)
        out[i] = (float)codes[i] * job->scales[row] * INT8_DECODE;
}

static Status decode_rows(PartWork *work, const WeightEntry *entry, int64_t row, int64_t rows, const void *raw, float *out,
                          Error *err) {
    if (row == 0)
        TRY(tensors_read(work->files, entry->scales, 0, work->row_scales, (size_t)entry->rows * sizeof(float), work->drop_cache,
                         err));
    Decode job = {.codes = raw, .scales = work->row_scales + row, .out = out, .cols = entry->cols};
    pool_run(work->pool, decode_row, &job, rows);
    return OK;
}

/* ---- any ------------------------------------------------------------------------------------------------------------------- */

static Status make_rows(PartWork *work, const WeightPart *part, const WeightEntry *entry, int64_t line, int64_t lines,
                        const void *raw, void *to, Error *err) {
    DType type = entry->file->dtype;
    if (part->kind == PART_INT8) {
        float *decoded = part->quantize ? to : work->decoded;
        TRY(decode_rows(work, entry, line, lines, raw, decoded, err));
        raw = decoded;
        type = DTYPE_F32;
    }
    return part->quantize ? OK : convert_rows(work->pool, entry, raw, type, line, lines, to, err);
}

Status part_make(PartWork *work, const WeightPart *part, const WeightEntry *entry, int64_t line, int64_t lines, const void *raw,
                 void *to, Error *err) {
    int64_t bad;
    switch (part->kind) {
        case PART_VALUES:
        case PART_INT8: return make_rows(work, part, entry, line, lines, raw, to, err);
        case PART_BYTES:
        case PART_WORDS: return OK;
        case PART_FLOATS:
            bad = first_bad(work->pool, GGML_F32, raw, lines, sizeof(float));
            if (bad >= 0) FAIL("value %lld is NaN or Inf", (long long)(line + bad));
            return OK;
        case PART_BLOCKS:
            bad = first_bad(work->pool, entry->ggml, raw, lines, part->line_bytes);
            if (bad >= 0)
                FAIL("block %lld of %s has a scale that is NaN or Inf", (long long)(line + bad),
                     ggml_type_info(entry->ggml)->name);
            return OK;
        case PART_SIGNED:
        case PART_SCALES:
        case PART_ZEROS:
        case PART_ORDER: break;
    }
    return grouped_make(work, part, entry, lines, raw, to, err);
}

/* ---- one weight on its own -------------------------------------------------------------------------------------------------- */

static Status read_part(PartWork *work, const WeightPart *part, const WeightEntry *entry, uint8_t *stage, Error *err) {
    int64_t at_once = part_lines(part, STAGE_BYTES);
    for (int64_t line = 0; line < part->lines; line += at_once) {
        int64_t lines = part->lines - line < at_once ? part->lines - line : at_once;
        uint8_t *to =
            part->to == NULL ? stage + (size_t)at_once * part->line_bytes : (uint8_t *)part->to + (size_t)line * part->made;
        uint8_t *raw = part_is_in_place(part) ? to : stage;
        TRY(tensors_read(work->files, part->file, (uint64_t)line * part->line_bytes, raw, (size_t)lines * part->line_bytes,
                         work->drop_cache, err));
        TRY(part_make(work, part, entry, line, lines, raw, to, err));
        if (part->kind == PART_WORDS) grouped_words_in(work, entry, line, lines, raw);
    }
    return OK;
}

Status weight_read_packed(PartWork *work, int32_t id, WeightEntry *entry, Error *err) {
    WeightPart parts[WEIGHT_TENSORS];
    int count = weight_parts(work->config, id, entry, 0, parts);
    if (entry->origin == ORIGIN_BNB4) entry->tensor.nested_offset = entry->nested_offset;
    Status status = OK;
    for (int i = 0; i < count && status == OK; i++) {
        size_t lines = (size_t)part_lines(&parts[i], STAGE_BYTES);
        uint8_t *stage = memory_alloc(lines * (parts[i].line_bytes + parts[i].made));
        status = read_part(work, &parts[i], entry, stage, err);
        if (status != OK) error_prefix(err, "%s", parts[i].file->name);
        memory_free(stage);
    }
    return status;
}

/* ---- what the work needs --------------------------------------------------------------------------------------------------- */

void part_work_take(PartWork *work, const WeightEntry *entries, const WeightPart *parts, int32_t count, size_t bytes) {
    size_t decoded = 0, scales = 0;
    for (int32_t i = 0; i < count; i++) {
        if (parts[i].kind != PART_INT8) continue;
        const WeightEntry *entry = &entries[parts[i].id];
        size_t values = parts[i].quantize ? 0 : (size_t)(part_lines(&parts[i], bytes) * entry->cols);
        if (values > decoded) decoded = values;
        if ((size_t)entry->rows > scales) scales = (size_t)entry->rows;
    }
    work->decoded = memory_alloc(decoded * sizeof(float));
    work->row_scales = memory_alloc(scales * sizeof(float));
}

void part_work_free(PartWork *work) {
    memory_free(work->decoded);
    memory_free(work->row_scales);
}
