/* The launchers of our CUDA kernels: one C function a launch (or a short fixed sequence of launches) on a stream.
 *
 * Formulas, shapes and roundings are those of kernels/ops.h; this header says what a launcher adds to them. Every pointer is
 * to device memory unless said otherwise; structs of shapes, and a WeightView (whose pointers are the device's), lie on the
 * host and are read during the call. Activations are row-major, with the shape's strides, of type `act`: DTYPE_BF16 or DTYPE_F32. Outputs are
 * OVERWRITTEN, gradients of parameters (FP32) ACCUMULATED. Nothing allocates or waits; every launcher may be captured.
 *
 * Graphs. A captured launch has its arguments for ever, so what varies from micro-batch to micro-batch is read on the
 * device from a DeviceBatch at a fixed address. `rows` is the capacity, from which the grid is made; a kernel works on the
 * first batch->tokens (or supervised) rows and touches none beyond them. The host checks ids, positions, rows and targets
 * before it copies them: kernels do not.
 *
 * Determinism. No floating-point atomics; every sum has an order fixed by the shapes.
 *
 * Errors: cudaErrorInvalidValue for a shape or type that the kernel does not do (each is named below), else what the launch
 * itself returned (cudaGetLastError). A zero-sized shape launches nothing and succeeds.
 */
#ifndef NIBBLE_KERNELS_CUDA_LAUNCH_H
#define NIBBLE_KERNELS_CUDA_LAUNCH_H

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

#include "core/dtype.h"
#include "kernels/formats.h"
#include "kernels/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A Batch (kernels/ops.h) in device memory: the scalars, and the addresses of its arrays there. */
typedef struct DeviceBatch {
    int64_t tokens, sequences, supervised;
    int64_t past; /* rows of the cache before the first query; read by the cached launchers alone */
    uint64_t seed;
    float grad_scale;
    int32_t dropout;
    const int64_t *starts;    /* [sequences + 1] */
    const int32_t *ids;       /* [tokens] */
    const int32_t *positions; /* [tokens] */
    const uint64_t *samples;  /* [tokens] */
    const int32_t *rows;      /* [supervised] */
    const int32_t *targets;   /* [supervised] */
} DeviceBatch;

/* ---- weights -------------------------------------------------------------------------------------------------------- */

/* Elements [first, first+count) of the flattened weight into out[0..count), F32 or BF16 (rounded once). Any format but F64;
 * equal to the CPU's bits. Fastest when first is a multiple of 8 and data and out are aligned to 16 bytes. */
cudaError_t cuda_dequantize(const WeightView *weight, int64_t first, int64_t count, void *out, DType out_type,
                            cudaStream_t stream);

/* Where a quantizer saw NaN or Inf: the least index, kept at *bad, which starts as CUDA_ALL_FINITE. */
#define CUDA_ALL_FINITE UINT64_MAX

/* NF4 or FP4 as Backend.quantize_4bit: x [values] of type F32, BF16 or F16; codes [(values + 1) / 2], absmax
 * [ceil(values / block_size)], block_size a power of two from 32 to 4096. `first` is added to the index put into *bad. */
cudaError_t cuda_quantize_4bit(WeightFormat format, const void *x, DType x_type, int64_t values, int64_t block_size,
                               uint8_t *codes, float *absmax, int64_t first, uint64_t *bad, cudaStream_t stream);
/* *offset = the mean of absmax [blocks], summed in double in index order (0 for none). */
cudaError_t cuda_double_quant_offset(const float *absmax, int64_t blocks, float *offset, cudaStream_t stream);
/* codes [blocks], nested_absmax [ceil(blocks / 256)], as quant/double_quant.h; offset [1], map [256] ascending. */
cudaError_t cuda_double_quantize(const float *absmax, int64_t blocks, const float *offset, const float *map, uint8_t *codes,
                                 float *nested_absmax, cudaStream_t stream);
/* INT8: codes [rows, cols], scales [rows]. */
cudaError_t cuda_quantize_int8(const void *x, DType x_type, int64_t rows, int64_t cols, int8_t *codes, float *scales,
                               int64_t first, uint64_t *bad, cudaStream_t stream);
/* INT4: codes [values / 2], scales [values / group], group 32, 64 or 128 and a divisor of values. */
cudaError_t cuda_quantize_int4(const void *x, DType x_type, int64_t values, int64_t group, uint8_t *codes, float *scales,
                               int64_t first, uint64_t *bad, cudaStream_t stream);

/* Grouped integers (quant/grouped_layout.h): lines [first, first + count) of a file into rows of codes [rows, row_bytes], of which
 * nothing else is touched. lines [count, rows] words of GPTQ; nibbles: [count, rows / 8] words of AWQ, first a multiple of 8; a last
 * word that they fill in part is filled with zeros. row_bytes is a multiple of 4, codes and lines are aligned to it. */
cudaError_t cuda_group_lines(const uint32_t *lines, int nibbles, int64_t rows, int64_t first, int64_t count, void *codes,
                             int64_t row_bytes, cudaStream_t stream);

/* Random bytes: word i of 8 (little endian) is SplitMix64's i-th output from `seed`. to: aligned to 16. */
cudaError_t cuda_random_bytes(void *to, int64_t bytes, uint64_t seed, cudaStream_t stream);

/* ---- embedding ------------------------------------------------------------------------------------------------------ */

cudaError_t cuda_embed_forward(DType act, const DeviceBatch *batch, int64_t rows, const WeightView *table, void *y,
                               cudaStream_t stream);
/* d_table [vocab, hidden] += dy by id; rows of one id are added in row order. */
cudaError_t cuda_embed_backward(DType act, const DeviceBatch *batch, int64_t rows, int64_t hidden, const void *dy,
                                float *d_table, cudaStream_t stream);

/* ---- add + RMSNorm: hidden up to 16,384 in multiples of 8 at aligned addresses, else up to 4,096 ----------------- */

/* x and sum are NULL without addition; rstd FP32 [rows] is what ops.h calls `saved`. sum may be residual or x. */
cudaError_t cuda_norm_forward(DType act, const DeviceBatch *batch, const NormShape *shape, const void *residual, const void *x,
                              const void *weight, void *sum, void *y, float *rstd, cudaStream_t stream);
/* d_sum may be NULL (zero); d_residual may be d_sum or dy. */
cudaError_t cuda_norm_backward(DType act, const DeviceBatch *batch, const NormShape *shape, const void *sum, const void *weight,
                               const float *rstd, const void *dy, const void *d_sum, void *d_residual, cudaStream_t stream);
/* d_weight [hidden] += column sums of dy * n. To be launched before dy is overwritten. */
cudaError_t cuda_norm_weight_grad(DType act, const DeviceBatch *batch, const NormShape *shape, const void *sum,
                                  const float *rstd, const void *dy, float *d_weight, cudaStream_t stream);

/* ---- q/k norm + RoPE: head_dim even --------------------------------------------------------------------------------- */

/* roots FP32 [rows, H + K] with norm; else it and the weights are NULL. Outputs may lie over their inputs. */
cudaError_t cuda_rope_forward(DType act, const DeviceBatch *batch, const RopeShape *shape, const float *cosine,
                              const float *sine, const void *q, const void *k, const void *q_weight, const void *k_weight,
                              void *rq, void *rk, float *roots, cudaStream_t stream);
/* dq may be drq and dk may be drk. */
cudaError_t cuda_rope_backward(DType act, const DeviceBatch *batch, const RopeShape *shape, const float *cosine,
                               const float *sine, const void *q, const void *k, const void *q_weight, const void *k_weight,
                               const float *roots, const void *drq, const void *drk, void *dq, void *dk, cudaStream_t stream);
/* The norm's weights, [D] each; to be launched before dq and dk are written over drq and drk. */
cudaError_t cuda_rope_weight_grad(DType act, const DeviceBatch *batch, const RopeShape *shape, const float *cosine,
                                  const float *sine, const void *q, const void *k, const float *roots, const void *drq,
                                  const void *drk, float *dq_weight, float *dk_weight, cudaStream_t stream);

/* ---- linear group: what is not the large product --------------------------------------------------------------------
 * Members without adapter are skipped; arrays have shape->count entries. The order that rounds least:
 *   forward   lora_down, then for each member lora_up (writes bias + update) and the product accumulated over it (beta = 1)
 *   backward  lora_ds, lora_dx (writes the adapters' part of dx), the products over it (beta = 1), lora_da, lora_db */

/* s_i [rows, R_i] = dropout_i(x) A_i^T, rounded to act; x [rows, in] is read once for all members. */
cudaError_t cuda_lora_down(DType act, const DeviceBatch *batch, const LinearShape *shape, const void *x,
                           const void *const *lora_a, void *const *s, cudaStream_t stream);
/* y [rows, out] = bias + scale s B^T of one member; without bias and adapter it is zero. stride: of y; 0: contiguous. */
cudaError_t cuda_lora_up(DType act, const DeviceBatch *batch, int64_t rows, const LinearSpec *spec, const void *s,
                         const void *lora_b, const void *bias, void *y, int64_t stride, cudaStream_t stream);
/* ds_i FP32 [rows, R_i] = dy_i B_i */
cudaError_t cuda_lora_ds(DType act, const DeviceBatch *batch, const LinearShape *shape, const void *const *dy,
                         const void *const *lora_b, float *const *ds, cudaStream_t stream);
/* dx [rows, in] = sum_i scale_i mask_i(ds_i A_i); zero without adapters. */
cudaError_t cuda_lora_dx(DType act, const DeviceBatch *batch, const LinearShape *shape, const float *const *ds,
                         const void *const *lora_a, void *dx, cudaStream_t stream);
/* dA_i [R_i, in] += scale_i ds_i^T dropout_i(x); members whose d_a is NULL are skipped. */
cudaError_t cuda_lora_da(DType act, const DeviceBatch *batch, const LinearShape *shape, const void *x, const float *const *ds,
                         float *const *d_a, cudaStream_t stream);
/* dB_i [out_i, R_i] += scale_i dy_i^T s_i; members whose d_b is NULL are skipped. */
cudaError_t cuda_lora_db(DType act, const DeviceBatch *batch, const LinearShape *shape, const void *const *dy,
                         const void *const *s, float *const *d_b, cudaStream_t stream);
/* sums [columns] += column sums of x [rows, columns] (dbias). stride: of x; 0: contiguous. */
cudaError_t cuda_column_sums(DType act, const DeviceBatch *batch, int64_t rows, int64_t columns, const void *x, int64_t stride,
                             float *sums, cudaStream_t stream);
/* Sets the rows of x [rows, columns] that are not in use to zero, for products that sum over rows (dW). */
cudaError_t cuda_zero_tail(DType act, const DeviceBatch *batch, int64_t rows, int64_t columns, void *x, int64_t stride,
                           cudaStream_t stream);

/* ---- attention: head_dim even, up to CUDA_HEAD_DIM_MAX --------------------------------------------------------------
 * BF16 with head_dim a multiple of 8 up to 128 runs on the tensor cores; the rest on a plain path. Up to 4,194,240 rows. */
#define CUDA_HEAD_DIM_MAX 512

/* lse FP32 [rows, H] */
cudaError_t cuda_attention_forward(DType act, const DeviceBatch *batch, const AttentionShape *shape, const void *q,
                                   const void *k, const void *v, void *o, float *lse, cudaStream_t stream);
/* workspace of cuda_attention_backward: two FP32 facts of every row and head, and the first visible key of every row, int32; rows
 * are padded to a multiple of 64. */
size_t cuda_attention_workspace(const AttentionShape *shape);
cudaError_t cuda_attention_backward(DType act, const DeviceBatch *batch, const AttentionShape *shape, const void *q,
                                    const void *k, const void *v, const void *o, const float *lse, const void *d_o, void *dq,
                                    void *dk, void *dv, void *workspace, cudaStream_t stream);
/* Copies the rows of k and v [query_rows, K*D] into the cache from row batch->past on. */
cudaError_t cuda_cache_append(DType act, const DeviceBatch *batch, const AttentionShape *shape, int64_t query_rows,
                              const void *k, const void *v, void *k_cache, void *v_cache, cudaStream_t stream);
/* Queries [query_rows, H*D] at the cache's rows past, past + 1, ...; the cache holds past + tokens rows of one sequence.
 * shape->rows is the cache's capacity. */
cudaError_t cuda_attention_cached(DType act, const DeviceBatch *batch, const AttentionShape *shape, int64_t query_rows,
                                  const void *q, const void *k_cache, const void *v_cache, void *o, cudaStream_t stream);

/* ---- gated activation ----------------------------------------------------------------------------------------------- */

cudaError_t cuda_gate_forward(DType act, const DeviceBatch *batch, const GateShape *shape, const void *gate, const void *up,
                              void *y, cudaStream_t stream);
/* d_gate and d_up may be the buffers of gate, up or dy. */
cudaError_t cuda_gate_backward(DType act, const DeviceBatch *batch, const GateShape *shape, const void *gate, const void *up,
                               const void *dy, void *d_gate, void *d_up, cudaStream_t stream);

/* ---- fake quantization of activations ------------------------------------------------------------------------------- */
#define CUDA_FAKE_GROUPS_MAX 4096 /* a row */

/* The CPU's bits (a NaN may be another NaN). saved: a bit per value, rows of ceil(columns / 8) bytes. y may be x. A fixed scale is
 * part of the launch. */
cudaError_t cuda_fake_rows_forward(DType act, const DeviceBatch *batch, const FakeRowsShape *shape, const void *x, void *y,
                                   uint8_t *saved, cudaStream_t stream);
/* dx may be dy. */
cudaError_t cuda_fake_rows_backward(DType act, const DeviceBatch *batch, const FakeRowsShape *shape, const uint8_t *saved,
                                    const void *dy, void *dx, cudaStream_t stream);

/* ---- fake quantization of weights, rows of V in FP32 at a time (kernels/ops.h) ---------------------------------------------- */

/* v [rows, cols] += scale * (b [rows, rank] A [rank, cols]), with the bits of train/lora_row.h. */
cudaError_t cuda_add_update(DType act, int64_t rows, int64_t cols, int64_t rank, float scale, const void *lora_a,
                            const void *lora_b, float *v, cudaStream_t stream);
/* INT, Q4_0 and Q8_0. out [rows, cols] of type act = v + share * (FQ(v) - v). scales [rows, groups], or NULL: from v. A value that
 * is not finite, before or after, puts `first` plus its index into *bad, which keeps the least. */
cudaError_t cuda_fake_weight(DType act, const FakeQuant *grid, int64_t rows, int64_t cols, const float *v, const float *scales,
                             float share, void *out, uint64_t first, uint64_t *bad, cudaStream_t stream);
/* dv [rows, cols] *= 1 - share where the grid has clipped; with d_theta [rows, groups], which takes scales and chain, that is
 * accumulated. */
cudaError_t cuda_fake_weight_mask(const FakeQuant *grid, int64_t rows, int64_t cols, const float *v, const float *scales,
                                  const float *chain, float share, float *dv, float *d_theta, cudaStream_t stream);
/* Scales [rows, groups] of symmetric integers that are not made of V: known (NULL: those of the base's values w [rows, cols]) times
 * theta (NULL: 1), and what their gradient is multiplied by. */
cudaError_t cuda_fake_scales(const FakeQuant *grid, int64_t rows, int64_t cols, const float *w, const float *known,
                             const float *theta, float *scales, float *chain, cudaStream_t stream);
/* Elements [first, first + count) of an NF4 weight, whose nested offset lies on the device, into out[0 .. count); with v, blended. */
cudaError_t cuda_nf4_values(DType act, const WeightView *weight, const float *offset, int64_t first, int64_t count,
                            const float *v, float share, void *out, cudaStream_t stream);
/* to[i] = from[i] * factor */
cudaError_t cuda_scale_to_float(DType act, int64_t count, const void *from, float factor, float *to, cudaStream_t stream);

/* ---- head + loss: around two products of a chunk --------------------------------------------------------------------
 * A chunk is supervised rows [first, first + count); rows of it at or beyond batch->supervised count as zero rows, without
 * loss. gather, product (FP32 logits), cross_entropy, product(s) with the gradient in place, scatter. */

/* out [count, hidden] = x[rows[first + j]], zero beyond the supervised rows */
cudaError_t cuda_gather_rows(DType act, const DeviceBatch *batch, int64_t first, int64_t count, int64_t hidden, const void *x,
                             void *out, cudaStream_t stream);
/* dx[rows[first + j]] = in [count, hidden]; other rows of dx are not touched (clear it before the first chunk). */
cudaError_t cuda_scatter_rows(DType act, const DeviceBatch *batch, int64_t first, int64_t count, int64_t hidden, const void *in,
                              void *dx, cudaStream_t stream);
/* logits FP32 [count, vocab] to nll[first + j] (FP32, by supervised row) and, when want_gradient is set, in place to
 * grad_scale * (softmax - onehot) of type act: a row keeps its place, so the gradient's leading dimension is vocab in F32
 * and 2 * vocab in BF16. */
cudaError_t cuda_cross_entropy(DType act, const DeviceBatch *batch, int64_t first, int64_t count, int64_t vocab, void *logits,
                               float *nll, int want_gradient, cudaStream_t stream);
/* The same towards a teacher's distribution: its logits FP32 [count, vocab]; nll[first + j] = sum q (log q - log p), gradient
 * grad_scale * (p - q). */
cudaError_t cuda_distillation(DType act, const DeviceBatch *batch, int64_t first, int64_t count, int64_t vocab, void *logits,
                              const float *teacher, float *nll, int want_gradient, cudaStream_t stream);
/* *loss_sum += sum of nll [supervised] in double. `supervised` is the capacity. */
cudaError_t cuda_loss_sum(const DeviceBatch *batch, int64_t supervised, const float *nll, double *loss_sum,
                          cudaStream_t stream);

/* ---- optimizer ------------------------------------------------------------------------------------------------------ */

/* clip: double [1] on the device, a factor on top of step->clip, or NULL. A clip that is not finite leaves everything as it
 * is: the step of a gradient with NaN is skipped. copy of type act, or NULL. The state is updated in double, as the
 * reference does, and rounded once. */
cudaError_t cuda_adamw(int64_t count, float *master, float *m, float *v, const float *grad, void *copy, DType act,
                       const AdamStep *step, const double *clip, cudaStream_t stream);
/* *sum = sum of squares of x [count] in double. partials: double [cuda_sum_squares_partials(count)], scratch. */
int64_t cuda_sum_squares_partials(int64_t count);
cudaError_t cuda_sum_squares(int64_t count, const float *x, double *partials, double *sum, cudaStream_t stream);
/* *clip = min(1, max_norm / (sqrt(*sum) + 1e-6)), as torch clips; NaN when the norm is not finite.
 * max_norm 0: no clipping, but still NaN for such a norm. */
cudaError_t cuda_clip_factor(const double *sum, double max_norm, double *clip, cudaStream_t stream);
/* *first = the least index of a NaN or Inf in values [count] of type F32 or BF16, else what it was (CUDA_ALL_FINITE). */
cudaError_t cuda_find_nonfinite(DType type, int64_t count, const void *values, uint64_t *first, cudaStream_t stream);
/* to[i] = from[i] rounded; F32 or BF16 on either side. from may be to only when the types are equal. */
cudaError_t cuda_cast(int64_t count, const void *from, DType from_type, void *to, DType to_type, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
