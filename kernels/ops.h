/* The one table of operations.
 *
 * An entry is a fusion unit of a decoder-only transformer. A Backend fills the
 * table; the plain C reference (kernels/cpu/ref) fills every entry, is
 * permanent, and is the definition; faster versions overwrite entries and are
 * tested against it. A fused entry is the composition of its plain parts.
 *
 * Shapes, one alphabet everywhere:
 *   T rows (tokens of a micro-batch)   C hidden        F intermediate   V vocabulary
 *   H query heads   K key/value heads   D head size    R adapter rank
 *
 * Types. Activations, their gradients, compute copies of parameters, norm
 * weights and biases are of the run's activation type `act`: BF16, or F32
 * (nothing is rounded to BF16), or F64 (reference tests only). Sums, softmax,
 * norms, losses and reductions are FP32 or wider; a result is rounded to `act`
 * once. Where FP32 is said of gradients, statistics in `saved`, scratch and
 * logits, it is F64 in an F64 run. A weight of any format is an operand of type
 * `act`: what dequantize() gives for that type. Gradients of parameters are FP32
 * and are always ACCUMULATED; every other output is OVERWRITTEN. Backward passes
 * treat every rounding as the identity.
 *
 * Layout. How an activation [rows, columns] lies in memory belongs to the
 * backend; to_rows and from_rows convert at the edges. Both CPU backends use
 * row-major. Buffers are aligned to 64 bytes.
 *
 * Joined groups. A backend that sets joined_groups has the results of a linear group in one row-major buffer, rows of
 * [q | k | v] or [gate | up], and so their gradients; a member is then a pointer into the first row and a stride, elements
 * from row to row. A shape's stride of 0 says contiguous rows, which is all that other backends take.
 *
 * Rows. plan() is asked with the capacity; run() works on the first
 * batch->tokens rows of each buffer and touches no row beyond them.
 *
 * Memory. No entry allocates. plan() says, for a shape, the bytes that run()
 * takes: `saved` is written by forward and read by backward, `workspace` is
 * scratch of one call (forward and backward are planned apart). Outputs are
 * activation_bytes(rows, columns) each.
 *
 * Errors. run() fails only on what a shape check cannot see before: more rows
 * than the capacity, an id, target, row or position out of range, a weight that
 * is not what the shape says. plan() refuses shapes that the backend cannot do,
 * naming them. Outputs alias inputs only where an entry says that they may.
 *
 * Determinism. The same inputs give the same bits on any number of threads.
 */
#ifndef NIBBLE_KERNELS_OPS_H
#define NIBBLE_KERNELS_OPS_H

#include <stddef.h>
#include <stdint.h>

#include "core/dtype.h"
#include "core/error.h"
#include "core/pool.h"
#include "kernels/formats.h"

typedef struct ExecConfig {
    DType act;   /* BF16 or F32 (F64 in reference tests) */
    int threads; /* workers; workspaces depend on it */
} ExecConfig;

typedef struct Exec {
    ExecConfig config;
    Pool *pool;   /* pool_threads(pool) == config.threads */
    void *device; /* what a backend with memory of its own works with; NULL on the CPU */
} Exec;

/* Where a sequence lies in a cache that several share: rows [first, first + past). */
typedef struct CachePart {
    int64_t first, past;
} CachePart;

/* What varies from micro-batch to micro-batch. All arrays are borrowed. */
typedef struct Batch {
    int64_t tokens;           /* rows in use */
    int64_t sequences;        /* back to back, none empty */
    const int64_t *starts;    /* [sequences + 1], starts[0] = 0, last = tokens */
    const int32_t *ids;       /* [tokens] */
    const int32_t *positions; /* [tokens], from 0 in each sequence (continuing when cached) */
    const uint64_t *samples;  /* [tokens] which sample of the run a row belongs to: index for dropout */
    int64_t supervised;       /* rows with a loss (or whose logits are wanted) */
    const int32_t *rows;      /* [supervised] ascending row numbers: logits of row t predict targets */
    const int32_t *targets;   /* [supervised] */
    const CachePart *parts;   /* [sequences]: one row each of several sequences through a cache (attention_cached); else NULL */
    const void *teacher;      /* the teacher's inputs of the head, an activation [tokens, hidden]; NULL: targets decide */
    float grad_scale;         /* d(loss)/d(sum): 1 / supervised tokens of the whole global batch */
    uint64_t seed;
    int dropout; /* 0 switches dropout off (evaluation) */
} Batch;

typedef struct OpPlan {
    size_t saved;
    size_t forward_workspace;
    size_t backward_workspace;
    size_t staged; /* linear, where the backend has stage(): bytes of either workspace that can be given to it instead */
} OpPlan;

/* ---- embedding: y[t,:] = table[ids[t],:] ----------------------------------------------------------------------------
 * The table may be of any weight format. No workspace is taken by forward. */
typedef struct EmbedShape {
    int64_t rows, vocab, hidden;
    int train; /* backward accumulates d_table */
} EmbedShape;

/* ---- add + RMSNorm (Zhang & Sennrich 2019; Llama's order of casts) --------------------------------------------------
 *   r = residual + x (rounded to act);  n = r * rsqrt(mean(r^2) + eps), rounded to act;  y = n * weight, rounded to act
 * Without x: r = residual and nothing is written to sum. saved: the reciprocal root, FP32 [rows].
 * Backward: d_residual = d_sum + rmsnorm_backward(dy); it is the gradient of residual and of x alike.
 * d_weight += column sums of dy * n, with n as rounded by forward. */
typedef struct NormShape {
    int64_t rows, hidden;
    double epsilon;
    int has_x;   /* there is an x to add */
    int train;   /* backward accumulates d_weight */
    int need_dx; /* 0: only d_weight is wanted */
} NormShape;

/* ---- linear group: y_i = x W_i^T + bias_i + scale_i * dropout_i(x) A_i^T B_i^T --------------------------------------
 * W_i [out_i, in] in any weight format; A_i [R, in], B_i [out_i, R] of type act. x is read once for all members
 * (q,k,v; gate,up). s_i = dropout_i(x) A_i^T is rounded to act and is what `saved` holds, [rows, R_i] one after another.
 * Dropout: element (row, feature) is kept by dropout_keep(seed, stream, samples[row], positions[row], feature) and then
 * scaled by 1/(1-p) (core/philox.h); dropout_i(x) is never rounded, so the factor may be applied to the sums.
 * Backward: dx = sum_i dy_i W_i + scale_i * mask_i(dy_i B_i A_i); dA_i += scale_i (dy_i B_i)^T dropout_i(x);
 * dB_i += scale_i dy_i^T s_i; dW_i += dy_i^T x; dbias_i += column sums of dy_i. ds_i = dy_i B_i stays FP32 in workspace (or two
 * BF16 numbers a value, which hold it to 2^-17). */
#define LINEAR_GROUP_MAX 3
typedef struct LinearSpec {
    int64_t out;
    WeightFormat format;
    int64_t rank; /* 0: no adapter */
    float lora_scale, dropout;
    uint32_t dropout_stream; /* number of the adapter in the model */
    int has_bias, train_weight, train_bias;
} LinearSpec;
typedef struct LinearShape {
    int64_t rows, in;
    int count;
    int need_dx;
    LinearSpec linear[LINEAR_GROUP_MAX];
    int64_t stride; /* of every y and dy: 0, or the columns of all members, which lie in their order */
} LinearShape;
typedef struct LinearOperand {
    WeightView weight;
    const void *bias;            /* act [out], or NULL */
    const void *lora_a, *lora_b; /* act; NULL without adapter */
    const void *staged;          /* what stage() filled for this group, the same in every member; NULL: nothing was staged */
} LinearOperand;
typedef struct LinearGrad { /* FP32 (F64), accumulated; NULL where not trained */
    void *weight, *bias, *lora_a, *lora_b;
} LinearGrad;

/* ---- q/k norm + RoPE ------------------------------------------------------------------------------------------------
 * Per head: optionally RMSNorm over D (weight [D], Qwen3), then rotation of the pairs (i, i + D/2) by the table's angles
 * at positions[row]. Out of place (but see rope_forward): q [T,H*D] -> rq, k [T,K*D] -> rk. The norm rounds as the norm
 * entry does (n, then n * weight); the rotation is FP32 and rounded once.
 * cosine, sine: FP32 [table_rows, D/2], attention factor included. saved: with norm, reciprocal roots FP32 [T, H + K];
 * else nothing. Backward rotates the other way, then the norm's backward (which needs q and k: inputs of forward). */
typedef struct RopeShape {
    int64_t rows, heads, kv_heads, head_dim, table_rows;
    int has_norm, train_norm;
    double epsilon;
    int64_t stride, out_stride, gradient_stride; /* of q and k; of rq and rk; of all gradients */
} RopeShape;
typedef struct RopeTable {
    const float *cosine, *sine;
} RopeTable;

/* ---- causal grouped-query attention over packed sequences -----------------------------------------------------------
 * For each sequence, query head h and key head h / (H/K): o = softmax(scale * q k^T, masked) v. Key j is visible to query
 * i iff j <= i and (window == 0 or j > i - window). Never across a sequence boundary. saved: log-sum-exp FP32 [T, H].
 * Cached: one sequence; rows of k and v are first appended to the cache at row `past`, then attended together with what
 * is there; the cache holds act [capacity, K*D]. With batch->parts, on the CPU: each of the sequences has one row, which goes
 * behind its own part (`past` is not used; every part has room for shape->rows rows), with the bits of the sequence alone. */
typedef struct AttentionShape {
    int64_t rows, heads, kv_heads, head_dim, window;
    float scale;
    int64_t q_stride, k_stride, v_stride;
    int64_t gradient_stride; /* of dq, dk and dv */
} AttentionShape;
typedef struct KvLayer {
    void *k, *v; /* act [capacity, K*D] row-major */
} KvLayer;

/* ---- gated activation: y = f(gate) * up (Shazeer 2020), f(g) = g * sigmoid(z) --------------------------------------------
 * GATE_SILU z = g; GATE_GELU_TANH z = 2 sqrt(2/pi) (g + 0.044715 g^3), which is GELU's approximation by tanh (Hendrycks, Gimpel
 * 2016). |g| counts as 64 at most in this z: the sigmoid is 0 or 1 long before, and a square of g could overflow. */
typedef enum GateKind { GATE_SILU, GATE_GELU_TANH } GateKind;
#define GELU_SLOPE 1.5957691216057308 /* 2 sqrt(2/pi) */
#define GELU_CUBE 0.044715
#define GELU_FLAT 64.0

typedef struct GateShape {
    int64_t rows, width;
    GateKind kind;
    int64_t stride, gradient_stride; /* of gate and up; of d_gate and d_up */
} GateShape;

/* ---- fake quantization of activations: y = what integer codes of x would hold -----------------------------------------
 * Groups of `group` columns of a row have a scale (and a zero point) of their own, from the values at hand. All FP32, as
 * torchao's quant_primitives have it:
 *   symmetric   s = max(amax / ((2^b - 1) / 2), 2^-23); z = 0
 *   asymmetric  lo = min(x, 0), hi = max(x, 0); s = max((hi - lo) / (2^b - 1), 2^-23); z = clamp(-2^(b-1) - RNE(lo / s))
 *   u = RNE(x * (1 / s)) + z; q = clamp(u, -2^(b-1), 2^(b-1) - 1); y = (q - z) * s, rounded to act
 * With a fixed scale (above 0; symmetric), s is that for all values. A group that holds NaN or Inf becomes NaN. saved: a bit per value, 1 where u was in range. Backward (straight-through,
 * Bengio et al. 2013): dx = dy where the bit is 1, else 0; dx may be dy. forward with bits 0: y = x, and every bit is 1. */
typedef struct FakeRowsShape {
    int64_t rows, columns, group; /* group divides columns */
    int bits;                     /* 2 to 8 */
    int symmetric;
    float scale;                     /* 0: of each group, from its values */
    int64_t stride, gradient_stride; /* of x; of dy and dx */
} FakeRowsShape;

/* ---- fake quantization of weights: the operand of a linear in quantization-aware training (train/qat.h) --------------
 *   V = W + lora_scale * (B A), FP32: the sum over the rank first, in order, products and sums rounded apart (train/lora_row.h)
 *   operand = V + share * (FQ(V) - V), rounded to act; FQ: quant/fake_quant.h, its bits
 * scaled: the scale of a group is `first`, or that of W's values, times max(theta, FAKE_THETA_LEAST). Backward, with M the mask and
 * dV = dy^T x: dA += lora_scale B^T (M . dV), dB += lora_scale (M . dV) A^T, dtheta += share * ds. saved is 0.
 * On a device only (NULL elsewhere: train/qat_*.c does it in host memory). Values that the grid cannot hold fail in finish(). */
#define FAKE_THETA_LEAST 0x1p-6f
typedef struct FakeWeightShape {
    int64_t rows, cols;
    FakeQuant grid;
    int64_t rank; /* 0: V is W */
    float lora_scale, share;
    int scaled;
    int64_t tile;          /* rows of V at a time, a multiple of 64; 0: what 64 MiB hold */
    int32_t layer, linear; /* for messages: of the layer's linears, in order */
} FakeWeightShape;
typedef struct FakeWeightOperand {
    WeightView base;
    const void *lora_a, *lora_b; /* act */
    const float *first, *theta;  /* [rows, groups]; scaled; NULL: of W's values; 1 */
    const float *nested_map;     /* [256]; NF4 with double_quant */
} FakeWeightOperand;
typedef struct FakeWeightGrad { /* accumulated; NULL where there is none */
    float *lora_a, *lora_b, *theta;
} FakeWeightGrad;

/* ---- head + loss ----------------------------------------------------------------------------------------------------
 * For supervised row j at row t = rows[j]: logits = x[t] W^T (FP32), nll_j = logsumexp(logits) - logits[targets[j]].
 * *loss_sum (double) is ACCUMULATED with the sum over j in order; nll [supervised] is overwritten when not NULL.
 * In a BF16 run the gradient of the logits may be rounded to BF16 before it is multiplied; the reference keeps FP32.
 * With dx: dx[t] = grad_scale * sum_v (softmax - onehot)_v W_v, zero on rows without loss; dW accumulated when trained.
 * With a teacher (a shape that says distill, and batch->teacher): q = softmax(teacher[t] W^T) takes the target's place, and
 * nll_j = sum_v q_v (log q_v - log p_v), dx[t] = grad_scale * sum_v (p - q)_v W_v (Hinton et al. 2015, temperature 1).
 * Works through chunks of head_chunk_rows supervised rows (a device takes more), so the logits never exist whole. Loss and
 * gradients are one pass: head_loss and head_logits take forward_workspace; saved and backward_workspace are 0. */
typedef struct HeadShape {
    int64_t rows, hidden, vocab;
    int64_t supervised; /* capacity */
    WeightFormat format;
    int need_dx, train_weight;
    int distill; /* there may be a teacher: room for its logits too */
} HeadShape;

/* ---- AdamW over flat buffers (Loshchilov & Hutter 2019, as torch.optim.AdamW) ---------------------------------------
 *   g = clip * grad; p -= lr * wd * p; m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2;
 *   p -= lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)
 * master, m, v, grad FP32 [count]; copy [count] of type act is overwritten with the rounded master (NULL: none). */
typedef struct AdamStep {
    double lr, beta1, beta2, epsilon, weight_decay, clip;
    int64_t step; /* t, from 1 */
} AdamStep;

/* ---- weights on their way to a device (Backend.load_*) ---- */
typedef struct LoadPlan {
    int slots; /* buffers on the way */
    size_t slot_bytes;
    int64_t constants;       /* blocks of the largest nested weight */
    int32_t weights;         /* how many are loaded */
    const float *nested_map; /* [256] */
} LoadPlan;
typedef struct LoadPart {
    const WeightView *to; /* NF4, FP4, INT8 or INT4; where its codes and constants will lie */
    int32_t weight;       /* 0 to LoadPlan.weights - 1 */
    int slot;
    const void *from;      /* pinned; not to be touched until load_wait(slot) */
    DType type;            /* F32, BF16 or F16 */
    int64_t first, values; /* of the flattened weight, in order; first: where a block, group or row begins */
} LoadPart;
/* Codes of grouped integers in a file whose lines are inputs (quant/grouped_layout.h). */
typedef struct LoadLines {
    const WeightView *to; /* GROUPED: its codes are overwritten where these lines belong */
    int nibbles;          /* AWQ's words of eight outputs; else GPTQ's, a word of inputs for every output */
    int64_t first, count; /* lines of the file; nibbles: first is a multiple of 8 */
    int slot;
    const void *from; /* as in LoadPart */
} LoadLines;

/* Which implementation fills an entry, for tests and `bench`: "ref", "avx2", "avx512", "cuda". */
typedef struct BackendVariant {
    const char *linear, *attention, *norm, *rope, *gate, *head, *adamw, *quantize;
} BackendVariant;

#define PART_KEYS 6

typedef struct Backend {
    const char *name;  /* "cpu" */
    int joined_groups; /* see the top */

    size_t (*activation_bytes)(DType act, int64_t rows, int64_t columns);
    void (*to_rows)(const Exec *exec, const void *activation, int64_t rows, int64_t columns, void *row_major);
    void (*from_rows)(const Exec *exec, const void *row_major, int64_t rows, int64_t columns, void *activation);

    Status (*embed_plan)(const ExecConfig *config, const EmbedShape *shape, OpPlan *plan, Error *err);
    Status (*embed_forward)(const Exec *exec, const EmbedShape *shape, const Batch *batch, const WeightView *table, void *y,
                            Error *err);
    Status (*embed_backward)(const Exec *exec, const EmbedShape *shape, const Batch *batch, const void *dy, void *d_table,
                             void *workspace, Error *err);

    Status (*norm_plan)(const ExecConfig *config, const NormShape *shape, OpPlan *plan, Error *err);
    Status (*norm_forward)(const Exec *exec, const NormShape *shape, const Batch *batch, const void *residual, const void *x,
                           const void *weight, void *sum, void *y, void *saved, void *workspace, Error *err);
    /* sum: what forward wrote there (or residual when there was no x). d_sum may be NULL (zero). d_residual may be d_sum. */
    Status (*norm_backward)(const Exec *exec, const NormShape *shape, const Batch *batch, const void *sum, const void *weight,
                            const void *saved, const void *dy, const void *d_sum, void *d_residual, void *d_weight,
                            void *workspace, Error *err);

    Status (*linear_plan)(const ExecConfig *config, const LinearShape *shape, OpPlan *plan, Error *err);
    Status (*linear_forward)(const Exec *exec, const LinearShape *shape, const Batch *batch, const void *x,
                             const LinearOperand *operands, void *const *y, void *saved, void *workspace, Error *err);
    Status (*linear_backward)(const Exec *exec, const LinearShape *shape, const Batch *batch, const void *x,
                              const LinearOperand *operands, const void *saved, const void *const *dy, void *dx,
                              const LinearGrad *grads, void *workspace, Error *err);

    /* Makes the weights of a linear group ready ahead of its turn, after all that was called before and beside what is called
     * next. memory [OpPlan.staged] is touched by nothing else until the group's own entry, which is then given it as `staged`
     * and a workspace without those bytes. Of the operands only the weights are read. At most two groups wait at a time. NULL
     * where nothing is gained. */
    Status (*stage)(const Exec *exec, const LinearShape *shape, const LinearOperand *operands, void *memory, Error *err);

    Status (*rope_plan)(const ExecConfig *config, const RopeShape *shape, OpPlan *plan, Error *err);
    /* In a joined group rq may be q, and rk k. */
    Status (*rope_forward)(const Exec *exec, const RopeShape *shape, const Batch *batch, const RopeTable *table, const void *q,
                           const void *k, const void *q_weight, const void *k_weight, void *rq, void *rk, void *saved,
                           void *workspace, Error *err);
    /* q, k: inputs of forward (NULL without norm). dq may be drq, dk may be drk. */
    Status (*rope_backward)(const Exec *exec, const RopeShape *shape, const Batch *batch, const RopeTable *table, const void *q,
                            const void *k, const void *q_weight, const void *k_weight, const void *saved, const void *drq,
                            const void *drk, void *dq, void *dk, void *dq_weight, void *dk_weight, void *workspace, Error *err);

    Status (*attention_plan)(const ExecConfig *config, const AttentionShape *shape, OpPlan *plan, Error *err);
    Status (*attention_forward)(const Exec *exec, const AttentionShape *shape, const Batch *batch, const void *q, const void *k,
                                const void *v, void *o, void *saved, void *workspace, Error *err);
    Status (*attention_backward)(const Exec *exec, const AttentionShape *shape, const Batch *batch, const void *q,
                                 const void *k, const void *v, const void *o, const void *saved, const void *d_o, void *dq,
                                 void *dk, void *dv, void *workspace, Error *err);
    /* shape->rows = the cache's capacity; workspace as planned for forward of that shape. past + batch->tokens rows must fit;
     * q, k, v, o have batch->tokens rows. The reference gives the bits of one uncached call over the whole sequence. */
    Status (*attention_cached)(const Exec *exec, const AttentionShape *shape, const Batch *batch, const void *q, const void *k,
                               const void *v, const KvLayer *cache, int64_t past, void *o, void *workspace, Error *err);

    Status (*gate_plan)(const ExecConfig *config, const GateShape *shape, OpPlan *plan, Error *err);
    Status (*gate_forward)(const Exec *exec, const GateShape *shape, const Batch *batch, const void *gate, const void *up,
                           void *y, Error *err);
    /* d_gate may be gate's buffer or dy's; d_up likewise: element for element, read before written. */
    Status (*gate_backward)(const Exec *exec, const GateShape *shape, const Batch *batch, const void *gate, const void *up,
                            const void *dy, void *d_gate, void *d_up, Error *err);

    Status (*fake_rows_plan)(const ExecConfig *config, const FakeRowsShape *shape, OpPlan *plan, Error *err);
    Status (*fake_rows_forward)(const Exec *exec, const FakeRowsShape *shape, const Batch *batch, const void *x, void *y,
                                void *saved, void *workspace, Error *err);
    Status (*fake_rows_backward)(const Exec *exec, const FakeRowsShape *shape, const Batch *batch, const void *saved,
                                 const void *dy, void *dx, Error *err);

    Status (*fake_weight_plan)(const ExecConfig *config, const FakeWeightShape *shape, OpPlan *plan, Error *err);
    Status (*fake_weight_forward)(const Exec *exec, const FakeWeightShape *shape, const FakeWeightOperand *operand, void *out,
                                  void *workspace, Error *err);
    /* dy [tokens, rows] with `stride` elements from row to row (0: contiguous), x [tokens, cols]. */
    Status (*fake_weight_backward)(const Exec *exec, const FakeWeightShape *shape, const FakeWeightOperand *operand,
                                   const Batch *batch, const void *dy, int64_t stride, const void *x,
                                   const FakeWeightGrad *grads, void *workspace, Error *err);
    /* scaled: the scales as they are now, FP32 [rows, groups]; workspace as for forward. */
    Status (*fake_weight_scales)(const Exec *exec, const FakeWeightShape *shape, const FakeWeightOperand *operand,
                                 float *scales, void *workspace, Error *err);

    Status (*head_plan)(const ExecConfig *config, const HeadShape *shape, OpPlan *plan, Error *err);
    Status (*head_loss)(const Exec *exec, const HeadShape *shape, const Batch *batch, const void *x, const WeightView *weight,
                        double *loss_sum, float *nll, void *dx, void *d_weight, void *workspace, Error *err);
    /* logits FP32 row-major [supervised, vocab] of the rows in batch->rows; batch->targets is not read. */
    Status (*head_logits)(const Exec *exec, const HeadShape *shape, const Batch *batch, const void *x, const WeightView *weight,
                          void *logits, void *workspace, Error *err);

    void (*adamw)(const Exec *exec, int64_t count, float *master, float *m, float *v, const float *grad, void *copy,
                  const AdamStep *step);
    /* Sum of squares in double, over fixed chunks added in index order. */
    double (*sum_squares)(const Exec *exec, int64_t count, const float *x);
    /* Index of the first NaN or Inf in the first rows*columns values of an activation, -1 when all are finite. */
    int64_t (*find_nonfinite)(const Exec *exec, const void *activation, int64_t rows, int64_t columns);

    /* NF4, FP4: x [values] cut into blocks of block_size; writes codes [(values + 1) / 2] (high nibble first; an unused low
     * nibble is the code of 0) and absmax [ceil(values / block_size)]. A short last block is divided by its absmax where the
     * others are multiplied by the reciprocal, so a tensor given in parts is cut at block borders. Refuses NaN and Inf:
     * returns the index of the first (what is written then is unspecified), else -1. Runs in the caller; quant/ spreads
     * parts over threads and adds double quantization. */
    int64_t (*quantize_4bit)(WeightFormat format, const float *x, int64_t values, int64_t block_size, uint8_t *codes,
                             float *absmax);
    /* Elements [first, first+count) of the flattened weight as F32, BF16 (rounded once) or F64. Any format. In the caller. */
    void (*dequantize)(const WeightView *weight, int64_t first, int64_t count, void *out, DType out_type);

    /* ---- memory ----
     * on_device: what the entries above are given (activations, weights, parameters, tables, the cache; not Batch, loss_sum,
     * nll, logits) lies in memory that the host reaches only through these. On the CPU it is the host's own: on_device is 0
     * and the entries below are NULL; callers go through train/device_memory.h, which knows both. copy_in and copy_out
     * return when the host's side may be used again; fill is in order with the entries. quantize_4bit and dequantize work
     * on host memory in every backend. */
    int on_device;
    Status (*memory_take)(const Exec *exec, const char *what, size_t bytes, void **out, Error *err);
    void (*memory_give)(const Exec *exec, void *memory);
    Status (*memory_left)(const Exec *exec, size_t *left, size_t *total, Error *err);
    Status (*copy_in)(const Exec *exec, void *to, const void *from, size_t bytes, Error *err);
    Status (*copy_out)(const Exec *exec, void *to, const void *from, size_t bytes, Error *err);
    Status (*fill)(const Exec *exec, void *to, int byte, size_t bytes, Error *err);
    /* Host memory that the device copies from without waiting, and that entries may be given as a weight (they read it there). */
    Status (*pinned_take)(const Exec *exec, const char *what, size_t bytes, void **out, Error *err);
    void (*pinned_give)(const Exec *exec, void *memory);
    /* Loading. begin takes buffers; part, lines and copy start work on what lies in pinned memory; wait returns when a slot's latest
     * work is done; end waits for all and gives the buffers back. Results have LoadPlan.weights elements: nested_offset of
     * each weight, and where its first NaN or Inf was (-1: nowhere); both may be NULL, after a failure. */
    Status (*load_begin)(const Exec *exec, const LoadPlan *plan, Error *err);
    Status (*load_part)(const Exec *exec, const LoadPart *part, Error *err);
    Status (*load_lines)(const Exec *exec, const LoadLines *lines, Error *err);
    Status (*load_copy)(const Exec *exec, void *to, const void *from, size_t bytes, int slot, Error *err);
    Status (*load_wait)(const Exec *exec, int slot, Error *err);
    Status (*load_end)(const Exec *exec, float *offsets, int64_t *bad, Error *err);
    /* Random bytes where a device has them, for measurements; `to` is aligned to 16. The same for the same seed. */
    Status (*random_bytes)(const Exec *exec, void *to, size_t bytes, uint64_t seed, Error *err);
    /* All of a weight as type act, in order with the entries. */
    Status (*make_dense)(const Exec *exec, const WeightView *weight, void *to, Error *err);
    Status (*copy_within)(const Exec *exec, void *to, const void *from, size_t bytes, Error *err); /* device to device */
    /* Values that leave the device for a while. stash starts a copy to `host` (pinned), fetch one from there, both after all that was
     * called before and beside what is called next, and one after the other. What is called after settle comes after the copy from
     * or to that memory on the device, which nothing writes until then (nor reads, when fetched). At most two copies are not
     * settled at a time, none at part_end. NULL on the CPU. */
    Status (*stash)(const Exec *exec, void *host, const void *from, size_t bytes, Error *err);
    Status (*fetch)(const Exec *exec, void *to, const void *host, size_t bytes, Error *err);
    Status (*settle)(const Exec *exec, const void *memory, Error *err);
    /* Around the entries of one micro-batch: begin copies the batch to memory [batch_bytes] on the device (past: as in
     * attention_cached); finish waits, adds to loss_sum and fills nll. Between them the host does not wait. whole: entries may
     * work on all `rows` of the capacity where that spares the host something (rows beyond the tokens then hold anything). */
    size_t (*batch_bytes)(int64_t rows, int64_t supervised);
    Status (*begin)(const Exec *exec, const Batch *batch, int64_t rows, int64_t supervised, int64_t past, int whole,
                    void *memory, Error *err);
    Status (*finish)(const Exec *exec, Error *err);
    /* Seconds since it was opened in which a device had done all it was given and waited for begin, adamw or sum_squares. */
    double (*idle_seconds)(const Exec *exec);
    /* Around a run of entries, between begin (with whole) and finish, whose calls are the same in every micro-batch: part_begin
     * either runs what it recorded earlier (*done 1: the entries are not called) or not; then the entries and part_end
     * follow, also after a failure (err NULL: what was recorded is dropped). key: what the calls' arguments depend on. NULL: nothing is recorded. */
    Status (*part_begin)(const Exec *exec, const void *const key[PART_KEYS], int part, int *done, Error *err);
    Status (*part_end)(const Exec *exec, Error *err);

    BackendVariant variant;
} Backend;

/* Supervised rows a chunk of the head's logits has, so that a chunk stays about 32 MiB. */
static inline int64_t head_chunk_rows(int64_t vocab) {
    int64_t rows = (int64_t)8388608 / (vocab > 0 ? vocab : 1);
    return rows < 16 ? 16 : rows > 1024 ? 1024 : rows;
}

/* The reference in every entry. */
void cpu_backend_reference(Backend *backend);
/* The best that CPUID offers, or what `force` names ("ref", "avx2", "avx512"); refuses what the machine lacks. NULL: best. */
Status cpu_backend(Backend *backend, const char *force, Error *err);
/* FLOP/s that no product of this BackendVariant.linear can exceed: its multiply-and-add instruction from registers, on all
 * threads of the pool, in this moment (5 ms). NaN where it has none. Only for what cpu_backend has offered. */
double cpu_unit_rate(const char *variant, Pool *pool);

#endif
