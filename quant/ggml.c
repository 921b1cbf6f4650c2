/* ggml's types by number and name, and whole matrices through the quantizers of rows. */
#include "quant/ggml.h"

#include <float.h>
#include <math.h>
#include <stdatomic.h>
#include <string.h>
#include <strings.h>

#include "core/dtype.h"
#include "kernels/ggml_decode.h"
#include "quant/ggml_internal.h"

/* Sizes: ggml 0.25.3, gguf-py/gguf/constants.py. {type, name, block, bytes, is_float, is_codec, is_quantized} */
static const GgmlTypeInfo types[] = {{GGML_F32, "F32", 1, 4, 1, 1, 0},
                                     {GGML_F16, "F16", 1, 2, 1, 1, 0},
                                     {GGML_Q4_0, "Q4_0", 32, 18, 0, 1, 1},
                                     {GGML_Q4_1, "Q4_1", 32, 20, 0, 1, 1},
                                     {GGML_Q5_0, "Q5_0", 32, 22, 0, 1, 1},
                                     {GGML_Q5_1, "Q5_1", 32, 24, 0, 1, 1},
                                     {GGML_Q8_0, "Q8_0", 32, 34, 0, 1, 1},
                                     {9, "Q8_1", 32, 36, 0, 0, 1},
                                     {GGML_Q2_K, "Q2_K", 256, 84, 0, 1, 1},
                                     {GGML_Q3_K, "Q3_K", 256, 110, 0, 1, 1},
                                     {GGML_Q4_K, "Q4_K", 256, 144, 0, 1, 1},
                                     {GGML_Q5_K, "Q5_K", 256, 176, 0, 1, 1},
                                     {GGML_Q6_K, "Q6_K", 256, 210, 0, 1, 1},
                                     {15, "Q8_K", 256, 292, 0, 0, 1},
                                     {16, "IQ2_XXS", 256, 66, 0, 0, 1},
                                     {17, "IQ2_XS", 256, 74, 0, 0, 1},
                                     {18, "IQ3_XXS", 256, 98, 0, 0, 1},
                                     {19, "IQ1_S", 256, 50, 0, 0, 1},
                                     {20, "IQ4_NL", 32, 18, 0, 0, 1},
                                     {21, "IQ3_S", 256, 110, 0, 0, 1},
                                     {22, "IQ2_S", 256, 82, 0, 0, 1},
                                     {23, "IQ4_XS", 256, 136, 0, 0, 1},
                                     {24, "I8", 1, 1, 0, 0, 0},
                                     {25, "I16", 1, 2, 0, 0, 0},
                                     {GGML_I32, "I32", 1, 4, 0, 0, 0},
                                     {27, "I64", 1, 8, 0, 0, 0},
                                     {28, "F64", 1, 8, 1, 0, 0},
                                     {29, "IQ1_M", 256, 56, 0, 0, 1},
                                     {GGML_BF16, "BF16", 1, 2, 1, 1, 0},
                                     {34, "TQ1_0", 256, 54, 0, 0, 1},
                                     {35, "TQ2_0", 256, 66, 0, 0, 1},
                                     {39, "MXFP4", 32, 17, 0, 0, 1},
                                     {40, "NVFP4", 64, 36, 0, 0, 1},
                                     {41, "Q1_0", 128, 18, 0, 0, 1},
                                     {42, "Q2_0", 64, 18, 0, 0, 1}};

#define TYPES (sizeof types / sizeof *types)

const GgmlTypeInfo *ggml_type_info(uint32_t type) {
    for (size_t i = 0; i < TYPES; i++)
        if (types[i].type == type) return &types[i];
    return NULL;
}

const GgmlTypeInfo *ggml_type_named(const char *name) {
    for (size_t i = 0; i < TYPES; i++)
        if (strcasecmp(types[i].name, name) == 0) return &types[i];
    return NULL;
}

Status ggml_bytes(uint32_t type, int64_t rows, int64_t cols, int64_t *bytes, Error *err) {
    const GgmlTypeInfo *info = ggml_type_info(type);
    int64_t row;
    if (info == NULL) FAIL("ggml type %u: is not known", type);
    if (rows < 0 || cols < 0 || cols % info->block != 0)
        FAIL("%s: want rows of a multiple of %d elements, got [%lld, %lld]; take a type with smaller blocks", info->name,
             info->block, (long long)rows, (long long)cols);
    if (__builtin_mul_overflow(cols / info->block, (int64_t)info->bytes, &row) || __builtin_mul_overflow(row, rows, bytes))
        FAIL("%s: [%lld, %lld] is too large", info->name, (long long)rows, (long long)cols);
    return OK;
}

/* ---- types without blocks -------------------------------------------------------------------------------------------------- */

static void quantize_f32(const float *x, int64_t cols, const float *importance, void *out) {
    (void)importance;
    memcpy(out, x, (size_t)cols * sizeof *x);
}

static void quantize_f16(const float *x, int64_t cols, const float *importance, void *out) {
    (void)importance;
    dtype_convert(out, DTYPE_F16, x, DTYPE_F32, cols);
}

static void quantize_bf16(const float *x, int64_t cols, const float *importance, void *out) {
    (void)importance;
    dtype_convert(out, DTYPE_BF16, x, DTYPE_F32, cols);
}

void ggml_dequantize_row(uint32_t type, const void *data, int64_t cols, float *x) {
    switch (type) {
        case GGML_F32: memcpy(x, data, (size_t)cols * sizeof *x); return;
        case GGML_F16: dtype_convert(x, DTYPE_F32, data, DTYPE_F16, cols); return;
        case GGML_BF16: dtype_convert(x, DTYPE_F32, data, DTYPE_BF16, cols); return;
        default: break;
    }
    for (int64_t i = 0; i < cols; i += GGML_RUN)
        ggml_decode_run(type, data, i / GGML_RUN, x + i);
}

typedef struct Codec {
    uint32_t type;
    GgmlQuantizeRow *quantize;
    int is_searched;                /* reads the importance */
    int half_offset[2], half_count; /* where the halves of a block are: they must be finite */
    int reach;                      /* the largest value is so many times the largest half; 0: any */
} Codec;

static const Codec codecs[] = {{GGML_F32, quantize_f32, 0, {0, 0}, 0, 0},
                               {GGML_F16, quantize_f16, 0, {0, 0}, 1, 0},
                               {GGML_BF16, quantize_bf16, 0, {0, 0}, 0, 0},
                               {GGML_Q4_0, ggml_quantize_q4_0, 1, {0, 0}, 1, 8},
                               {GGML_Q4_1, ggml_quantize_q4_1, 1, {0, 2}, 2, 16},
                               {GGML_Q5_0, ggml_quantize_q5_0, 1, {0, 0}, 1, 16},
                               {GGML_Q5_1, ggml_quantize_q5_1, 1, {0, 2}, 2, 32},
                               {GGML_Q8_0, ggml_quantize_q8_0, 0, {0, 0}, 1, 127},
                               {GGML_Q2_K, ggml_quantize_q2_k, 1, {80, 82}, 2, 45},
                               {GGML_Q3_K, ggml_quantize_q3_k, 1, {108, 0}, 1, 128},
                               {GGML_Q4_K, ggml_quantize_q4_k, 1, {0, 2}, 2, 945},
                               {GGML_Q5_K, ggml_quantize_q5_k, 1, {0, 2}, 2, 1953},
                               {GGML_Q6_K, ggml_quantize_q6_k, 1, {208, 0}, 1, 4096}};

static Status codec_find(uint32_t type, const Codec **codec, const GgmlTypeInfo **info, Error *err) {
    *info = ggml_type_info(type);
    if (*info == NULL) FAIL("ggml type %u: is not known", type);
    for (size_t i = 0; i < sizeof codecs / sizeof *codecs; i++)
        if (codecs[i].type == type) {
            *codec = &codecs[i];
            return OK;
        }
    FAIL("ggml type %s: is not supported; want F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1 or Q2_K to Q6_K", (*info)->name);
}

/* ---- matrices -------------------------------------------------------------------------------------------------------------- */

typedef struct Job {
    const Codec *codec;
    const GgmlTypeInfo *info;
    const float *from, *importance;
    float *to;
    uint8_t *data; /* written by quantizing, only read by dequantizing */
    int64_t cols, row_bytes;
    _Atomic int64_t refused; /* the first row that is not finite or becomes so; rows when there is none */
} Job;

#define HALF_MAX 65520.0f    /* and all above round to Inf */
#define IMPORTANCE_MAX 1e12f /* with values inside of the types' reach no sum of the searches overflows */

/* Finite, and not so large that the sums of a search could overflow and leave a zero scale behind. */
static int row_is_sound(const Codec *codec, const float *x, int64_t cols) {
    float most = codec->reach > 0 ? (float)codec->reach * HALF_MAX : FLT_MAX;
    int sound = 1;
    for (int64_t i = 0; i < cols; i++)
        sound &= fabsf(x[i]) <= most;
    return sound;
}

static int half_is_finite(const uint8_t *bytes, uint16_t exponent) {
    uint16_t half;
    memcpy(&half, bytes, sizeof half);
    return (half & exponent) != exponent;
}

/* No scale, or value of a 16-bit type, has become Inf or NaN. */
static int data_is_finite(const Codec *codec, const GgmlTypeInfo *info, const uint8_t *data, int64_t bytes) {
    if (codec->type == GGML_BF16) {
        for (int64_t at = 0; at < bytes; at += 2)
            if (!half_is_finite(data + at, 0x7F80)) return 0;
        return 1;
    }
    for (int64_t at = 0; at < bytes; at += info->bytes)
        for (int i = 0; i < codec->half_count; i++)
            if (!half_is_finite(data + at + codec->half_offset[i], 0x7C00)) return 0;
    return 1;
}

static void refuse_row(Job *job, int64_t row) {
    int64_t first = atomic_load(&job->refused);
    while (row < first && !atomic_compare_exchange_weak(&job->refused, &first, row)) {
    }
}

static void quantize_row(void *context, int64_t row, int worker) {
    (void)worker;
    Job *job = context;
    const float *x = job->from + row * job->cols;
    uint8_t *out = job->data + row * job->row_bytes;
    if (!row_is_sound(job->codec, x, job->cols)) {
        refuse_row(job, row);
        return;
    }
    job->codec->quantize(x, job->cols, job->importance, out);
    if (!data_is_finite(job->codec, job->info, out, job->row_bytes)) refuse_row(job, row);
}

static void dequantize_row(void *context, int64_t row, int worker) {
    (void)worker;
    Job *job = context;
    ggml_dequantize_row(job->codec->type, job->data + row * job->row_bytes, job->cols, job->to + row * job->cols);
}

static Status refusal(const Job *job, int64_t row, Error *err) {
    const float *x = job->from + row * job->cols;
    float largest = 0.0f;
    for (int64_t i = 0; i < job->cols; i++) {
        if (!isfinite(x[i]))
            FAIL("%s: want finite values, got %f in row %lld, column %lld", job->info->name, (double)x[i], (long long)row,
                 (long long)i);
        if (fabsf(x[i]) > largest) largest = fabsf(x[i]);
    }
    FAIL("%s: row %lld: values up to %g do not fit the type's range (scales are 16-bit floats); keep this tensor in F32",
         job->info->name, (long long)row, (double)largest);
}

static Status importance_check(const GgmlTypeInfo *info, const float *importance, int64_t cols, Error *err) {
    for (int64_t i = 0; i < cols; i++)
        if (!(importance[i] >= 0.0f && importance[i] <= IMPORTANCE_MAX))
            FAIL("%s: importance of column %lld: want a number from 0 to %g, got %g", info->name, (long long)i,
                 (double)IMPORTANCE_MAX, (double)importance[i]);
    return OK;
}

Status ggml_quantize(uint32_t type, const float *x, int64_t rows, int64_t cols, const float *importance, void *out, Pool *pool,
                     Error *err) {
    int64_t bytes;
    Job job = {.from = x, .data = out, .cols = cols, .refused = rows};
    TRY(codec_find(type, &job.codec, &job.info, err));
    TRY(ggml_bytes(type, rows, cols, &bytes, err));
    if (rows == 0) return OK;
    job.row_bytes = bytes / rows;
    if (importance != NULL && job.codec->is_searched) {
        TRY(importance_check(job.info, importance, cols, err));
        job.importance = importance;
    }
    pool_run(pool, quantize_row, &job, rows);
    int64_t refused = atomic_load(&job.refused);
    return refused < rows ? refusal(&job, refused, err) : OK;
}

Status ggml_dequantize(uint32_t type, const void *data, int64_t rows, int64_t cols, float *x, Pool *pool, Error *err) {
    int64_t bytes;
    /* data is written by quantize_row alone. */
    Job job = {.to = x, .data = (uint8_t *)(uintptr_t)data, .cols = cols};
    TRY(codec_find(type, &job.codec, &job.info, err));
    TRY(ggml_bytes(type, rows, cols, &bytes, err));
    if (rows == 0) return OK;
    job.row_bytes = bytes / rows;
    pool_run(pool, dequantize_row, &job, rows);
    return OK;
}

int64_t ggml_find_nonfinite(uint32_t type, const void *data, int64_t count) {
    const Codec *codec;
    const GgmlTypeInfo *info;
    if (codec_find(type, &codec, &info, NULL) != OK) return -1;
    const uint8_t *bytes = data;
    for (int64_t i = 0; i < count; i++, bytes += info->bytes) {
        float value;
        if (type == GGML_F32) memcpy(&value, bytes, sizeof value);
        if (type == GGML_F32 ? !isfinite(value) : !data_is_finite(codec, info, bytes, info->bytes)) return i;
    }
    return -1;
}
