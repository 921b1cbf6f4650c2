/* Slices of rows to codes and constants.
 *
 * A slice is cut into items of ITEM_VALUES values, whole blocks each, which the pool takes in any order; every item
 * converts what it needs to FP32 in its worker's buffer. 4-bit formats see the tensor as one flat row: what is left of a
 * slice after its last whole block waits in `carry` for the next one.
 */
#include "quant/quantize.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "quant/double_quant.h"

#define ITEM_VALUES 16384 /* a multiple of every block size; 64 KiB of FP32 a worker */
#define CARRY_VALUES 4096 /* the largest block */
#define NONE INT64_MAX

struct Quantizer {
    const Backend *backend;
    Pool *pool;
    float *buffers; /* [threads, ITEM_VALUES] */
    float *carry;   /* [CARRY_VALUES] */
    float *absmax;  /* [max_constants]: FP32 constants of a tensor that is to be double-quantized */
    int64_t max_constants;

    QuantizedTensor *tensor;
    int64_t rows_done;
    int64_t encoded;     /* 4-bit: flat values that have their codes */
    int64_t carried;     /* 4-bit: values in carry */
    _Atomic int64_t bad; /* flat index of the first value that is not finite, or NONE */

    const uint8_t *slice; /* the rows of the current call */
    DType type;
    int64_t slice_values; /* from `slice` on */
    int64_t slice_first;  /* flat index of slice[0] */
};

Status quantizer_create(Quantizer **out, const Backend *backend, Pool *pool, int64_t max_constants, Error *err) {
    *out = NULL;
    if (max_constants < 0 || max_constants > INT64_MAX / 8)
        FAIL("cannot quantize with %lld constants a tensor", (long long)max_constants);
    Quantizer *q = memory_calloc(1, sizeof *q);
    q->backend = backend;
    q->pool = pool;
    q->max_constants = max_constants;
    q->buffers = memory_alloc((size_t)pool_threads(pool) * ITEM_VALUES * sizeof(float));
    q->carry = memory_alloc(CARRY_VALUES * sizeof(float));
    q->absmax = memory_alloc((size_t)max_constants * sizeof(float));
    *out = q;
    return OK;
}

size_t quantizer_bytes(int threads, int64_t max_constants) {
    return sizeof(Quantizer) + ((size_t)threads * ITEM_VALUES + CARRY_VALUES + (size_t)max_constants) * sizeof(float);
}

void quantizer_free(Quantizer *q) {
    if (q == NULL) return;
    memory_free(q->buffers);
    memory_free(q->carry);
    memory_free(q->absmax);
    memory_free(q);
}

Status quantizer_begin(Quantizer *q, QuantizedTensor *tensor, Error *err) {
    if (tensor->spec.double_quant && tensor->blocks > q->max_constants)
        FAIL("quantizer: %lld constants do not fit into the %lld that it was made for", (long long)tensor->blocks,
             (long long)q->max_constants);
    if (tensor->spec.ordered) FAIL("quantizer: columns in another order are not made by rounding to nearest");
    q->tensor = tensor;
    q->rows_done = q->encoded = q->carried = 0;
    atomic_store(&q->bad, NONE);
    if (tensor->code_table != NULL) memcpy(tensor->code_table, quant_code_table(tensor->spec.format), 16 * sizeof(float));
    return OK;
}

static void note_bad(Quantizer *q, int64_t index) {
    int64_t seen = atomic_load(&q->bad);
    while (index < seen && !atomic_compare_exchange_weak(&q->bad, &seen, index)) {
    }
}

/* Values [first, first+count) of the slice as FP32: in place, or converted into the buffer. */
static const float *slice_floats(const Quantizer *q, int64_t first, int64_t count, float *buffer) {
    const uint8_t *from = q->slice + (size_t)first * dtype_size(q->type);
    if (q->type == DTYPE_F32 && (uintptr_t)from % sizeof(float) == 0) return (const float *)(const void *)from;
    dtype_convert(buffer, DTYPE_F32, from, q->type, count);
    return buffer;
}

/* ---- NF4, FP4 ---- */

static void encode_4bit(Quantizer *q, const float *x, int64_t values, int64_t first) {
    QuantizedTensor *t = q->tensor;
    float *absmax = t->spec.double_quant ? q->absmax : t->scales;
    int64_t bad = q->backend->quantize_4bit(t->spec.format, x, values, t->spec.block_size, t->codes + first / 2,
                                            absmax + first / t->spec.block_size);
    if (bad >= 0) note_bad(q, first + bad);
}

static void item_4bit(void *context, int64_t item, int worker) {
    Quantizer *q = context;
    int64_t first = item * ITEM_VALUES;
    int64_t count = q->slice_values - first < ITEM_VALUES ? q->slice_values - first : ITEM_VALUES;
    encode_4bit(q, slice_floats(q, first, count, q->buffers + (int64_t)worker * ITEM_VALUES), count, q->slice_first + first);
}

/* Moves up to `most` values from the front of the slice into carry. */
static void carry_over(Quantizer *q, int64_t most) {
    int64_t count = q->slice_values < most ? q->slice_values : most;
    dtype_convert(q->carry + q->carried, DTYPE_F32, q->slice, q->type, count);
    q->carried += count;
    q->slice += (size_t)count * dtype_size(q->type);
    q->slice_values -= count;
}

static void rows_4bit(Quantizer *q) {
    int64_t block = q->tensor->spec.block_size;
    if (q->carried > 0) {
        carry_over(q, block - q->carried);
        if (q->carried < block) return;
        encode_4bit(q, q->carry, block, q->encoded);
        q->encoded += block;
        q->carried = 0;
    }
    int64_t rest = q->slice_values % block, values = q->slice_values - rest;
    q->slice_values = values;
    q->slice_first = q->encoded;
    pool_run(q->pool, item_4bit, q, (values + ITEM_VALUES - 1) / ITEM_VALUES);
    q->encoded += values;
    q->slice += (size_t)values * dtype_size(q->type);
    q->slice_values = rest;
    carry_over(q, block);
}

/* ---- INT8: one scale a row ---- */

/* Rows whose greatest value is below this would need a reciprocal beyond FP32; they are scaled by it and become zeros. */
#define INT8_FLOOR 1e-36f

static void item_int8(void *context, int64_t row, int worker) {
    Quantizer *q = context;
    QuantizedTensor *t = q->tensor;
    float *buffer = q->buffers + (int64_t)worker * ITEM_VALUES;
    int64_t first = row * t->cols, out = q->slice_first + first;
    float most = 0.0f;
    for (int64_t at = 0; at < t->cols; at += ITEM_VALUES) {
        int64_t count = t->cols - at < ITEM_VALUES ? t->cols - at : ITEM_VALUES;
        const float *x = slice_floats(q, first + at, count, buffer);
        for (int64_t i = 0; i < count; i++) {
            float size = fabsf(x[i]);
            if (!isfinite(size)) {
                note_bad(q, out + at + i);
                return;
            }
            if (size > most) most = size;
        }
    }
    t->scales[q->rows_done + row] = most;
    float factor = 1.0f / (most < INT8_FLOOR ? INT8_FLOOR : most) * 127.0f; /* rounded twice, as torch divides a number */
    int8_t *codes = (int8_t *)t->codes + out;
    for (int64_t at = 0; at < t->cols; at += ITEM_VALUES) {
        int64_t count = t->cols - at < ITEM_VALUES ? t->cols - at : ITEM_VALUES;
        const float *x = slice_floats(q, first + at, count, buffer);
        for (int64_t i = 0; i < count; i++)
            codes[at + i] = (int8_t)rintf(x[i] * factor);
    }
}

/* ---- INT4: symmetric groups ---- */

static unsigned int4_code(float x, float scale) {
    if (scale == 0.0f) return 8u;
    float q = rintf(x / scale);
    return (unsigned)((int)(q < -8.0f ? -8.0f : q > 7.0f ? 7.0f : q) + 8);
}

static void item_int4(void *context, int64_t item, int worker) {
    Quantizer *q = context;
    QuantizedTensor *t = q->tensor;
    int64_t group = t->spec.block_size, first = item * ITEM_VALUES;
    int64_t count = q->slice_values - first < ITEM_VALUES ? q->slice_values - first : ITEM_VALUES;
    const float *x = slice_floats(q, first, count, q->buffers + (int64_t)worker * ITEM_VALUES);
    for (int64_t g = 0; g < count; g += group) {
        int64_t at = q->slice_first + first + g;
        float most = 0.0f;
        for (int64_t i = 0; i < group; i++) {
            float size = fabsf(x[g + i]);
            if (!isfinite(size)) {
                note_bad(q, at + i);
                return;
            }
            if (size > most) most = size;
        }
        float scale = most / 7.5f;
        t->scales[at / group] = scale;
        for (int64_t i = 0; i < group; i += 2)
            t->codes[(at + i) / 2] = (uint8_t)(int4_code(x[g + i], scale) | int4_code(x[g + i + 1], scale) << 4);
    }
}

/* ---- grouped integers: rounding to nearest ---- */

#define GROUPED_PART 256 /* codes on their way; their bits fill whole bytes */

typedef struct GroupedRow {
    Quantizer *quantizer;
    GroupInt grid;
    int64_t row, group, columns; /* of the slice; which group; its columns */
    float *buffer;
} GroupedRow;

/* Scale and zero of one group; 0 when a value is not finite or the scale is not. */
static int grouped_scale(const GroupedRow *job, float *scale, uint8_t *zero) {
    Quantizer *q = job->quantizer;
    QuantizedTensor *t = q->tensor;
    float least = 0.0f, most = 0.0f;
    int64_t first = job->row * t->cols + job->group * job->columns;
    for (int64_t at = 0; at < job->columns; at += ITEM_VALUES) {
        int64_t count = job->columns - at < ITEM_VALUES ? job->columns - at : ITEM_VALUES;
        const float *x = slice_floats(q, first + at, count, job->buffer);
        for (int64_t i = 0; i < count; i++) {
            if (!isfinite(x[i])) {
                note_bad(q, q->slice_first + first + at + i);
                return 0;
            }
            if (x[i] < least) least = x[i];
            if (x[i] > most) most = x[i];
        }
    }
    group_int_scale(&job->grid, least, most, scale, zero);
    if (t->spec.keep_scales && job->columns <= ITEM_VALUES)
        (void)group_int_found_scale(&job->grid, slice_floats(q, first, job->columns, job->buffer), job->columns, scale);
    if (!isfinite(*scale)) note_bad(q, q->slice_first + first);
    return isfinite(*scale) != 0;
}

static void grouped_codes(const GroupedRow *job, float scale, uint8_t zero, uint8_t *packed) {
    Quantizer *q = job->quantizer;
    int64_t column = job->group * job->columns, first = job->row * q->tensor->cols + column;
    for (int64_t at = 0; at < job->columns; at += GROUPED_PART) {
        uint8_t codes[GROUPED_PART];
        int64_t count = job->columns - at < GROUPED_PART ? job->columns - at : GROUPED_PART;
        const float *x = slice_floats(q, first + at, count, job->buffer);
        group_int_quantize_given_scale(&job->grid, x, count, scale, zero, codes);
        group_int_pack(job->grid.bits, codes, count, packed + (column + at) * job->grid.bits / 8);
    }
}

static void item_grouped(void *context, int64_t row, int worker) {
    Quantizer *q = context;
    QuantizedTensor *t = q->tensor;
    GroupedRow job = {
        .quantizer = q, .grid = quant_spec_grid(&t->spec), .row = row, .buffer = q->buffers + (int64_t)worker * ITEM_VALUES};
    int64_t stride = grouped_row_bytes(t->cols, t->spec.bits), groups = t->blocks / t->rows;
    uint8_t *packed = t->codes + (q->rows_done + row) * stride;
    job.columns = t->cols / groups;
    memset(packed + stride - 4, 0, 4);
    for (job.group = 0; job.group < groups; job.group++) {
        int64_t at = (q->rows_done + row) * groups + job.group;
        uint8_t zero;
        if (!grouped_scale(&job, &t->scales[at], &zero)) return;
        if (t->zeros != NULL) t->zeros[at] = zero;
        grouped_codes(&job, t->scales[at], zero, packed);
    }
}

/* ---- the stream ---- */

static Status check_finite(Quantizer *q, Error *err) {
    int64_t bad = atomic_load(&q->bad), cols = q->tensor->cols;
    if (bad != NONE)
        FAIL(
            "row %lld, column %lld is NaN or Inf%s; a weight must be finite", (long long)(bad / cols), (long long)(bad % cols),
            q->tensor->spec.format == WEIGHT_GROUPED ? ", or its group needs a scale that the scales' type does not hold" : "");
    return OK;
}

Status quantizer_rows(Quantizer *q, const void *rows, DType type, int64_t count, Error *err) {
    QuantizedTensor *t = q->tensor;
    if (type != DTYPE_F32 && type != DTYPE_BF16 && type != DTYPE_F16)
        FAIL("a weight is quantized from F32, BF16 or F16, not from %s", dtype_name(type));
    if (count < 0 || count > t->rows - q->rows_done)
        FAIL("quantizer: %lld rows after %lld of %lld", (long long)count, (long long)q->rows_done, (long long)t->rows);
    q->slice = rows;
    q->type = type;
    q->slice_values = count * t->cols;
    q->slice_first = q->rows_done * t->cols;
    if (t->spec.format == WEIGHT_INT8)
        pool_run(q->pool, item_int8, q, count);
    else if (t->spec.format == WEIGHT_GROUPED)
        pool_run(q->pool, item_grouped, q, count);
    else if (t->spec.format == WEIGHT_INT4)
        pool_run(q->pool, item_int4, q, (q->slice_values + ITEM_VALUES - 1) / ITEM_VALUES);
    else
        rows_4bit(q);
    q->rows_done += count;
    return check_finite(q, err);
}

Status quantizer_finish(Quantizer *q, Error *err) {
    QuantizedTensor *t = q->tensor;
    if (q->rows_done != t->rows) FAIL("quantizer: got %lld of %lld rows", (long long)q->rows_done, (long long)t->rows);
    if (q->carried > 0) encode_4bit(q, q->carry, q->carried, q->encoded);
    TRY(check_finite(q, err));
    if (!t->spec.double_quant) return OK;
    dynamic_map(t->nested_map);
    t->nested_offset = double_quant_offset(q->absmax, t->blocks);
    double_quantize(q->pool, q->absmax, t->blocks, t->nested_offset, t->nested_map, t->nested_codes, t->nested_absmax);
    return OK;
}

Status quantize_tensor(Quantizer *q, const void *weight, DType type, QuantizedTensor *tensor, Error *err) {
    TRY(quantizer_begin(q, tensor, err));
    TRY(quantizer_rows(q, weight, type, tensor->rows, err));
    return quantizer_finish(q, err);
}
