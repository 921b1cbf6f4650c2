/* Embedding, norm, RoPE, attention, gate and rounding: each is a launch or two. */
#include "kernels/cuda/context.h"

/* ---- checks of plans ------------------------------------------------------------------------------------------------- */

Status cuda_check_act(const char *op, const ExecConfig *config, Error *err) {
    if (config->act == DTYPE_BF16 || config->act == DTYPE_F32) return OK;
    FAIL("%s: a device computes in BF16 or F32", op);
}

Status cuda_check_format(const char *op, WeightFormat format, Error *err) {
    switch (format) {
        case WEIGHT_F32:
        case WEIGHT_BF16:
        case WEIGHT_NF4:
        case WEIGHT_FP4:
        case WEIGHT_INT8:
        case WEIGHT_INT4:
        case WEIGHT_GGML:
        case WEIGHT_GROUPED: return OK;
        default: FAIL("%s: weights of type %s are for the CPU's reference only", op, weight_format_name(format));
    }
}

Status cuda_check_size(const char *op, const char *what, int64_t value, Error *err) {
    if (value >= 0 && value <= INT32_MAX) return OK;
    FAIL("%s: %s: want at most %d, got %lld", op, what, INT32_MAX, (long long)value);
}

static Status check_rows(const char *op, const ExecConfig *config, int64_t rows, OpPlan *plan, Error *err) {
    *plan = (OpPlan){0};
    TRY(cuda_check_act(op, config, err));
    return cuda_check_size(op, "rows", rows, err);
}

/* ---- embedding ------------------------------------------------------------------------------------------------------- */

static Status embed_plan(const ExecConfig *config, const EmbedShape *shape, OpPlan *plan, Error *err) {
    return check_rows("embedding", config, shape->rows, plan, err);
}

static Status embed_forward(const Exec *exec, const EmbedShape *shape, const Batch *batch, const WeightView *table, void *y,
                            Error *err) {
    CudaContext *context = context_of(exec);
    context->id_limit = shape->vocab;
    TRY(cuda_check_rows(batch, shape->vocab, 0, err));
    CUDA_TRY(context, cuda_embed_forward(exec->config.act, context->batch, shape->rows, table, y, context->stream));
    return OK;
}

static Status embed_backward(const Exec *exec, const EmbedShape *shape, const Batch *batch, const void *dy, void *d_table,
                             void *workspace, Error *err) {
    (void)batch, (void)workspace;
    CudaContext *context = context_of(exec);
    CUDA_TRY(context,
             cuda_embed_backward(exec->config.act, context->batch, shape->rows, shape->hidden, dy, d_table, context->stream));
    return OK;
}

/* ---- add + RMSNorm --------------------------------------------------------------------------------------------------- */

static Status norm_plan(const ExecConfig *config, const NormShape *shape, OpPlan *plan, Error *err) {
    TRY(check_rows("norm", config, shape->rows, plan, err));
    plan->saved = (size_t)shape->rows * sizeof(float);
    return OK;
}

static Status norm_forward(const Exec *exec, const NormShape *shape, const Batch *batch, const void *residual, const void *x,
                           const void *weight, void *sum, void *y, void *saved, void *workspace, Error *err) {
    (void)batch, (void)workspace;
    CudaContext *context = context_of(exec);
    CUDA_TRY(context,
             cuda_norm_forward(exec->config.act, context->batch, shape, residual, x, weight, sum, y, saved, context->stream));
    return OK;
}

static Status norm_backward(const Exec *exec, const NormShape *shape, const Batch *batch, const void *sum, const void *weight,
                            const void *saved, const void *dy, const void *d_sum, void *d_residual, void *d_weight,
                            void *workspace, Error *err) {
    (void)batch, (void)workspace;
    CudaContext *context = context_of(exec);
    DType act = exec->config.act;
    if (d_weight != NULL)
        CUDA_TRY(context, cuda_norm_weight_grad(act, context->batch, shape, sum, saved, dy, d_weight, context->stream));
    if (d_residual != NULL)
        CUDA_TRY(context,
                 cuda_norm_backward(act, context->batch, shape, sum, weight, saved, dy, d_sum, d_residual, context->stream));
    return OK;
}

/* ---- RoPE ------------------------------------------------------------------------------------------------------------ */

static Status rope_plan(const ExecConfig *config, const RopeShape *shape, OpPlan *plan, Error *err) {
    TRY(check_rows("rope", config, shape->rows, plan, err));
    if (shape->has_norm) plan->saved = (size_t)(shape->rows * (shape->heads + shape->kv_heads)) * sizeof(float);
    return OK;
}

static Status rope_forward(const Exec *exec, const RopeShape *shape, const Batch *batch, const RopeTable *table, const void *q,
                           const void *k, const void *q_weight, const void *k_weight, void *rq, void *rk, void *saved,
                           void *workspace, Error *err) {
    (void)workspace;
    CudaContext *context = context_of(exec);
    if (context->position_limit != shape->table_rows) { /* the same for all layers of a tape */
        context->position_limit = shape->table_rows;
        TRY(cuda_check_rows(batch, 0, shape->table_rows, err));
    }
    CUDA_TRY(context, cuda_rope_forward(exec->config.act, context->batch, shape, table->cosine, table->sine, q, k, q_weight,
                                        k_weight, rq, rk, shape->has_norm ? saved : NULL, context->stream));
    return OK;
}

static Status rope_backward(const Exec *exec, const RopeShape *shape, const Batch *batch, const RopeTable *table, const void *q,
                            const void *k, const void *q_weight, const void *k_weight, const void *saved, const void *drq,
                            const void *drk, void *dq, void *dk, void *dq_weight, void *dk_weight, void *workspace,
                            Error *err) {
    (void)batch, (void)workspace;
    CudaContext *context = context_of(exec);
    DType act = exec->config.act;
    const float *roots = shape->has_norm ? saved : NULL;
    if (dq_weight != NULL)
        CUDA_TRY(context, cuda_rope_weight_grad(act, context->batch, shape, table->cosine, table->sine, q, k, roots, drq, drk,
                                                dq_weight, dk_weight, context->stream));
    CUDA_TRY(context, cuda_rope_backward(act, context->batch, shape, table->cosine, table->sine, q, k, q_weight, k_weight,
                                         roots, drq, drk, dq, dk, context->stream));
    return OK;
}

/* ---- attention ------------------------------------------------------------------------------------------------------- */

static Status attention_plan(const ExecConfig *config, const AttentionShape *shape, OpPlan *plan, Error *err) {
    TRY(check_rows("attention", config, shape->rows, plan, err));
    if (shape->head_dim % 2 != 0 || shape->head_dim > CUDA_HEAD_DIM_MAX)
        FAIL("attention: head size: want an even number up to %d, got %lld", CUDA_HEAD_DIM_MAX, (long long)shape->head_dim);
    if ((shape->q_stride | shape->k_stride | shape->v_stride | shape->gradient_stride) % 2 != 0)
        FAIL("attention: rows of q, k and v want an even number of elements from one to the next");
    plan->saved = (size_t)(shape->rows * shape->heads) * sizeof(float);
    plan->backward_workspace = cuda_attention_workspace(shape);
    return OK;
}

static Status attention_forward(const Exec *exec, const AttentionShape *shape, const Batch *batch, const void *q, const void *k,
                                const void *v, void *o, void *saved, void *workspace, Error *err) {
    (void)batch, (void)workspace;
    CudaContext *context = context_of(exec);
    CUDA_TRY(context, cuda_attention_forward(exec->config.act, context->batch, shape, q, k, v, o, saved, context->stream));
    return OK;
}

static Status attention_backward(const Exec *exec, const AttentionShape *shape, const Batch *batch, const void *q,
                                 const void *k, const void *v, const void *o, const void *saved, const void *d_o, void *dq,
                                 void *dk, void *dv, void *workspace, Error *err) {
    (void)batch;
    CudaContext *context = context_of(exec);
    CUDA_TRY(context, cuda_attention_backward(exec->config.act, context->batch, shape, q, k, v, o, saved, d_o, dq, dk, dv,
                                              workspace, context->stream));
    return OK;
}

static Status attention_cached(const Exec *exec, const AttentionShape *shape, const Batch *batch, const void *q, const void *k,
                               const void *v, const KvLayer *cache, int64_t past, void *o, void *workspace, Error *err) {
    (void)past, (void)workspace; /* past came with begin */
    CudaContext *context = context_of(exec);
    DType act = exec->config.act;
    CUDA_TRY(context, cuda_cache_append(act, context->batch, shape, batch->tokens, k, v, cache->k, cache->v, context->stream));
    CUDA_TRY(context,
             cuda_attention_cached(act, context->batch, shape, batch->tokens, q, cache->k, cache->v, o, context->stream));
    return OK;
}

/* ---- gated activation ------------------------------------------------------------------------------------------------ */

static Status gate_plan(const ExecConfig *config, const GateShape *shape, OpPlan *plan, Error *err) {
    return check_rows("gate", config, shape->rows, plan, err);
}

static Status gate_forward(const Exec *exec, const GateShape *shape, const Batch *batch, const void *gate, const void *up,
                           void *y, Error *err) {
    (void)batch;
    CudaContext *context = context_of(exec);
    CUDA_TRY(context, cuda_gate_forward(exec->config.act, context->batch, shape, gate, up, y, context->stream));
    return OK;
}

static Status gate_backward(const Exec *exec, const GateShape *shape, const Batch *batch, const void *gate, const void *up,
                            const void *dy, void *d_gate, void *d_up, Error *err) {
    (void)batch;
    CudaContext *context = context_of(exec);
    CUDA_TRY(context, cuda_gate_backward(exec->config.act, context->batch, shape, gate, up, dy, d_gate, d_up, context->stream));
    return OK;
}

/* ---- fake quantization of activations -------------------------------------------------------------------------------- */

static Status fake_rows_plan(const ExecConfig *config, const FakeRowsShape *shape, OpPlan *plan, Error *err) {
    TRY(check_rows("fake quantization", config, shape->rows, plan, err));
    TRY(cuda_check_size("fake quantization", "columns", shape->columns, err));
    if (shape->group <= 0 || shape->columns % shape->group != 0)
        FAIL("fake quantization: groups of %lld do not divide %lld columns", (long long)shape->group,
             (long long)shape->columns);
    if (shape->columns / shape->group > CUDA_FAKE_GROUPS_MAX)
        FAIL("fake quantization: a device rounds at most %d groups a row, got %lld", CUDA_FAKE_GROUPS_MAX,
             (long long)(shape->columns / shape->group));
    if (shape->bits < 2 || shape->bits > 8) FAIL("fake quantization: codes have 2 to 8 bits, got %d", shape->bits);
    plan->saved = (size_t)shape->rows * (size_t)((shape->columns + 7) / 8);
    return OK;
}

static Status fake_rows_forward(const Exec *exec, const FakeRowsShape *shape, const Batch *batch, const void *x, void *y,
                                void *saved, void *workspace, Error *err) {
    (void)batch, (void)workspace;
    CudaContext *context = context_of(exec);
    CUDA_TRY(context, cuda_fake_rows_forward(exec->config.act, context->batch, shape, x, y, saved, context->stream));
    return OK;
}

static Status fake_rows_backward(const Exec *exec, const FakeRowsShape *shape, const Batch *batch, const void *saved,
                                 const void *dy, void *dx, Error *err) {
    (void)batch;
    CudaContext *context = context_of(exec);
    CUDA_TRY(context, cuda_fake_rows_backward(exec->config.act, context->batch, shape, saved, dy, dx, context->stream));
    return OK;
}

void cuda_install_layers(Backend *backend) {
    backend->embed_plan = embed_plan;
    backend->embed_forward = embed_forward;
    backend->embed_backward = embed_backward;
    backend->norm_plan = norm_plan;
    backend->norm_forward = norm_forward;
    backend->norm_backward = norm_backward;
    backend->rope_plan = rope_plan;
    backend->rope_forward = rope_forward;
    backend->rope_backward = rope_backward;
    backend->attention_plan = attention_plan;
    backend->attention_forward = attention_forward;
    backend->attention_backward = attention_backward;
    backend->attention_cached = attention_cached;
    backend->gate_plan = gate_plan;
    backend->gate_forward = gate_forward;
    backend->gate_backward = gate_backward;
    backend->fake_rows_plan = fake_rows_plan;
    backend->fake_rows_forward = fake_rows_forward;
    backend->fake_rows_backward = fake_rows_backward;
    backend->variant.norm = backend->variant.rope = backend->variant.attention = backend->variant.gate = "cuda";
}
