/* What the reference operations share: element access, checked sizes, rows spread over threads.
 *
 * Every sum is kept in double, whatever the activation type, and rounded once
 * where the contract says so; that makes this the more exact of two results.
 * Every value is computed by one item of a pool_run, in an order that does not
 * depend on the number of threads.
 */
#ifndef NIBBLE_KERNELS_CPU_REF_REF_H
#define NIBBLE_KERNELS_CPU_REF_REF_H

#include "core/error.h"
#include "core/pool.h"
#include "kernels/ops.h"

/* The widest dimension: rows, ids and positions are 32-bit in a Batch. */
#define REF_DIMENSION_MAX INT64_C(2147483647)
/* Columns that one item of a column-wise sum takes. */
#define REF_COLUMNS 64

/* Type of statistics, parameter gradients and logits. */
static inline DType ref_wide(DType act) {
    return act == DTYPE_F64 ? DTYPE_F64 : DTYPE_F32;
}

static inline double ref_load(DType type, const void *values, int64_t i) {
    if (type == DTYPE_F32) return (double)((const float *)values)[i];
    if (type == DTYPE_BF16) return (double)bf16_to_float(((const bf16 *)values)[i]);
    return ((const double *)values)[i];
}

static inline void ref_store(DType type, void *values, int64_t i, double value) {
    if (type == DTYPE_F32) {
        ((float *)values)[i] = (float)value;
    } else if (type == DTYPE_BF16) {
        ((bf16 *)values)[i] = bf16_from_float((float)value);
    } else {
        ((double *)values)[i] = value;
    }
}

/* value as it would be read back after a store */
static inline double ref_round(DType type, double value) {
    if (type == DTYPE_F32) return (double)(float)value;
    if (type == DTYPE_BF16) return (double)bf16_round((float)value);
    return value;
}

static inline void ref_add(DType type, void *values, int64_t i, double value) {
    ref_store(type, values, i, ref_load(type, values, i) + value);
}

/* Element `i` onwards of an array of `type`. */
static inline const void *ref_at(DType type, const void *values, int64_t i) {
    return (const char *)values + (size_t)i * dtype_size(type);
}
static inline void *ref_at_mutable(DType type, void *values, int64_t i) {
    return (char *)values + (size_t)i * dtype_size(type);
}

/* out[i] = values[i] */
void ref_load_row(DType type, const void *values, int64_t count, double *out);
/* sum_i a[i] * b[i], in four interleaved partial sums */
double ref_dot(DType type, const void *a, const double *b, int64_t count);
/* sum[i] += scale * values[i] */
void ref_accumulate(DType type, double *sum, double scale, const void *values, int64_t count);
/* Elements [first, first + count) of a weight as operands of type act. */
void ref_load_weight(const WeightView *weight, int64_t first, int64_t count, DType act, double *out);

/* Bytes of a region inside `workspace` or `saved`: adds a*b elements of `element` bytes to *total, aligned, and puts the
 * region's offset into *offset (which may be NULL). Fails when the sum does not fit in a size_t. */
Status ref_region(size_t *total, size_t *offset, const char *op, int64_t a, int64_t b, size_t element, Error *err);

/* Fails unless 1 <= value <= REF_DIMENSION_MAX. */
Status ref_check_dimension(const char *op, const char *name, int64_t value, Error *err);
/* Fails unless a shape's stride is 0: activations are contiguous here. */
Status ref_check_stride(const char *op, int64_t stride, Error *err);
/* Fails unless the activation type is one the reference computes in and threads is positive. */
Status ref_check_config(const char *op, const ExecConfig *config, Error *err);
/* Fails when a batch has more rows than the buffers. */
Status ref_check_tokens(const char *op, const Batch *batch, int64_t rows, Error *err);
/* Fails unless the reference can use a weight [rows, cols] of this format in an `act` run. */
Status ref_check_format(const char *op, WeightFormat format, DType act, Error *err);
/* Fails unless the view is a [rows, cols] weight of `format` with all that the format needs. */
Status ref_check_weight(const char *op, const WeightView *weight, WeightFormat format, int64_t rows, int64_t cols, Error *err);

/* Plans and checks that hold for every CPU variant: shapes the entry takes, batches that fit the shapes. */
Status ref_embed_plan(const ExecConfig *config, const EmbedShape *shape, OpPlan *plan, Error *err);
Status ref_gate_plan(const ExecConfig *config, const GateShape *shape, OpPlan *plan, Error *err);
Status ref_norm_plan(const ExecConfig *config, const NormShape *shape, OpPlan *plan, Error *err);
Status ref_rope_plan(const ExecConfig *config, const RopeShape *shape, OpPlan *plan, Error *err);
Status ref_embed_check(const EmbedShape *shape, const Batch *batch, Error *err);
Status ref_rope_check(const RopeShape *shape, const Batch *batch, Error *err);
Status ref_head_check(const HeadShape *shape, const Batch *batch, const WeightView *weight, int with_targets, Error *err);

/* The scratch of one worker: each has `doubles` of them, one after another from `offset`. */
static inline double *ref_scratch(void *workspace, size_t offset, int worker, int64_t doubles) {
    return (double *)((char *)workspace + offset) + (int64_t)worker * doubles;
}

static inline int64_t ref_max(int64_t a, int64_t b) {
    return a > b ? a : b;
}
static inline int64_t ref_min(int64_t a, int64_t b) {
    return a < b ? a : b;
}
static inline int64_t ref_column_items(int64_t columns) {
    return (columns + REF_COLUMNS - 1) / REF_COLUMNS;
}

/* The entries: each file fills its own. */
void ref_embed(Backend *backend);
void ref_norm(Backend *backend);
void ref_linear(Backend *backend);
void ref_rope(Backend *backend);
void ref_attention(Backend *backend);
void ref_gate(Backend *backend);
void ref_fake_rows(Backend *backend);
void ref_head(Backend *backend);
void ref_adamw(Backend *backend);
void ref_check(Backend *backend);
void ref_quantize4(Backend *backend);
void ref_dequantize(Backend *backend);
void ref_layout(Backend *backend);

#endif
