#include "kernels/cpu/ref/ref.h"

#include "core/memory.h"
#include "kernels/ggml_decode.h"

void ref_load_row(DType type, const void *values, int64_t count, double *out) {
    for (int64_t i = 0; i < count; i++)
        out[i] = ref_load(type, values, i);
}

/* Four partial sums, so that an addition does not wait for the one before it; the order is part of the definition. */
#define DOT(VALUE)                                    \
    do {                                              \
        double sum[4] = {0, 0, 0, 0};                 \
        int64_t i = 0;                                \
        for (; i + 4 <= count; i += 4) {              \
            sum[0] += VALUE(i) * b[i];                \
            sum[1] += VALUE(i + 1) * b[i + 1];        \
            sum[2] += VALUE(i + 2) * b[i + 2];        \
            sum[3] += VALUE(i + 3) * b[i + 3];        \
        }                                             \
        for (; i < count; i++)                        \
            sum[0] += VALUE(i) * b[i];                \
        return (sum[0] + sum[1]) + (sum[2] + sum[3]); \
    } while (0)

double ref_dot(DType type, const void *a, const double *b, int64_t count) {
    if (type == DTYPE_F32) {
        const float *values = a;
#define VALUE_F32(i) ((double)values[i])
        DOT(VALUE_F32);
    }
    if (type == DTYPE_BF16) {
        const bf16 *values = a;
#define VALUE_BF16(i) ((double)bf16_to_float(values[i]))
        DOT(VALUE_BF16);
    }
    const double *values = a;
#define VALUE_F64(i) (values[i])
    DOT(VALUE_F64);
}

void ref_accumulate(DType type, double *sum, double scale, const void *values, int64_t count) {
    if (type == DTYPE_F32) {
        const float *row = values;
        for (int64_t i = 0; i < count; i++)
            sum[i] += scale * (double)row[i];
    } else if (type == DTYPE_BF16) {
        const bf16 *row = values;
        for (int64_t i = 0; i < count; i++)
            sum[i] += scale * (double)bf16_to_float(row[i]);
    } else {
        const double *row = values;
        for (int64_t i = 0; i < count; i++)
            sum[i] += scale * row[i];
    }
}

Status ref_region(size_t *total, size_t *offset, const char *op, int64_t a, int64_t b, size_t element, Error *err) {
    size_t bytes;
    if (offset != NULL) *offset = *total;
    if (size_mul((size_t)a, (size_t)b, &bytes) || size_mul(bytes, element, &bytes) || bytes > SIZE_MAX / 4 ||
        size_add(*total, arena_align(bytes), total)) {
        FAIL("%s: %lld x %lld elements of %zu bytes do not fit in memory; use fewer tokens a micro-batch", op, (long long)a,
             (long long)b, element);
    }
    return OK;
}

Status ref_check_dimension(const char *op, const char *name, int64_t value, Error *err) {
    if (value >= 1 && value <= REF_DIMENSION_MAX) return OK;
    FAIL("%s: %s: want 1 to %lld, got %lld", op, name, (long long)REF_DIMENSION_MAX, (long long)value);
}

Status ref_check_stride(const char *op, int64_t stride, Error *err) {
    if (stride != 0) FAIL("%s: activations are contiguous on the CPU, got a stride of %lld", op, (long long)stride);
    return OK;
}

Status ref_check_config(const char *op, const ExecConfig *config, Error *err) {
    if (config->act != DTYPE_F32 && config->act != DTYPE_BF16 && config->act != DTYPE_F64) {
        FAIL("%s: activations of type %s are not supported; use BF16 or F32", op, dtype_name(config->act));
    }
    if (config->threads < 1) FAIL("%s: threads: want 1 or more, got %d", op, config->threads);
    return OK;
}

Status ref_check_tokens(const char *op, const Batch *batch, int64_t rows, Error *err) {
    if (batch->tokens >= 0 && batch->tokens <= rows) return OK;
    FAIL("%s: the batch has %lld tokens, the buffers hold %lld", op, (long long)batch->tokens, (long long)rows);
}

Status ref_check_format(const char *op, WeightFormat format, DType act, Error *err) {
    if ((int)format < 0 || format >= WEIGHT_FORMATS) FAIL("%s: unknown weight format %d", op, (int)format);
    if (format == WEIGHT_F64 && act != DTYPE_F64) FAIL("%s: f64 weights exist in F64 runs only", op);
    return OK;
}

static int power_of_two_within(int64_t value, int64_t least, int64_t most) {
    return value >= least && value <= most && (value & (value - 1)) == 0;
}

Status ref_check_weight(const char *op, const WeightView *weight, WeightFormat format, int64_t rows, int64_t cols, Error *err) {
    if (weight->format != format || weight->rows != rows || weight->cols != cols) {
        FAIL("%s: weight: want %s [%lld, %lld], got %s [%lld, %lld]", op, weight_format_name(format), (long long)rows,
             (long long)cols, (unsigned)weight->format < WEIGHT_FORMATS ? weight_format_name(weight->format) : "unknown",
             (long long)weight->rows, (long long)weight->cols);
    }
    if (weight->data == NULL) FAIL("%s: weight: no data", op);
    if (format == WEIGHT_NF4 || format == WEIGHT_FP4) {
        if (!power_of_two_within(weight->block_size, 32, 4096)) {
            FAIL("%s: %s block size: want a power of two from 32 to 4096, got %d", op, weight_format_name(format),
                 weight->block_size);
        }
        int nested = weight->nested_codes != NULL && weight->nested_absmax != NULL && weight->nested_map != NULL;
        if (weight->codes == NULL || (!nested && (weight->scales == NULL || weight->nested_codes != NULL))) {
            FAIL("%s: %s weight without its codes or scales", op, weight_format_name(format));
        }
    }
    if (format == WEIGHT_INT4 && (!power_of_two_within(weight->block_size, 32, 128) || cols % weight->block_size != 0)) {
        FAIL("%s: int4 group size: want 32, 64 or 128 and a divisor of the input width %lld, got %d", op, (long long)cols,
             weight->block_size);
    }
    int block, bytes;
    if (format == WEIGHT_GGML) {
        block = ggml_block_form(weight->ggml_type, &bytes);
        if ((block == 1 && weight->ggml_type != GGML_F16) || block == 0 || cols % block != 0) {
            FAIL("%s: ggml type %u: want F16 or a type whose blocks divide the input width %lld", op, weight->ggml_type,
                 (long long)cols);
        }
    }
    if (format == WEIGHT_GROUPED &&
        (weight->bits < 2 || weight->bits > 8 || weight->block_size <= 0 || cols % weight->block_size != 0)) {
        FAIL("%s: grouped integers: want 2 to 8 bits and a group that divides the input width %lld, got %d bits, groups of %d",
             op, (long long)cols, weight->bits, weight->block_size);
    }
    if ((format == WEIGHT_INT4 || format == WEIGHT_INT8 || format == WEIGHT_GROUPED) && weight->scales == NULL) {
        FAIL("%s: %s weight without its scales", op, weight_format_name(format));
    }
    return OK;
}
