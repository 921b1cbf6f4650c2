/* The linear group: every part is a product of kernels/cpu/simd/gemm.h, and what does not depend on another part shares one
 * round over the threads. */
#include "core/philox.h"
#include "kernels/cpu/simd/entries.h"
#include "kernels/cpu/simd/gemm.h"

#define SPLIT_RANK_MAX (GEMM_TILE_ROWS / 2)

typedef struct Layout {
    size_t s[LINEAR_GROUP_MAX], saved;
    size_t ds[LINEAR_GROUP_MAX], gemm, backward; /* gemm: where ds ends */
    int with_mask;
} Layout;

static Status layout_of(const ExecConfig *config, const LinearShape *shape, Layout *at, Error *err) {
    *at = (Layout){0};
    for (int i = 0; i < shape->count; i++) {
        const LinearSpec *spec = &shape->linear[i];
        TRY(ref_region(&at->saved, &at->s[i], "linear", shape->rows, spec->rank, dtype_size(config->act), err));
        TRY(ref_region(&at->gemm, &at->ds[i], "linear", shape->rows, spec->rank, sizeof(float), err));
        if (spec->rank > 0 && spec->dropout > 0.0f) at->with_mask = 1;
    }
    at->backward = at->gemm + gemm_workspace(config->threads, at->with_mask);
    return OK;
}

static Status check_spec(const ExecConfig *config, const LinearShape *shape, const LinearSpec *spec, Error *err) {
    size_t output = 0;
    TRY(ref_check_dimension("linear", "outputs", spec->out, err));
    TRY(ref_check_format("linear", spec->format, config->act, err));
    TRY(ref_region(&output, NULL, "linear", shape->rows, spec->out, dtype_size(config->act), err));
    if (spec->rank < 0 || spec->rank > REF_DIMENSION_MAX)
        FAIL("linear: adapter rank: want 0 to %lld, got %lld", (long long)REF_DIMENSION_MAX, (long long)spec->rank);
    if (!(spec->dropout >= 0.0f && spec->dropout < 1.0f))
        FAIL("linear: adapter dropout: want 0 up to but not including 1, got %g", (double)spec->dropout);
    return OK;
}

static Status linear_plan(const ExecConfig *config, const LinearShape *shape, OpPlan *plan, Error *err) {
    TRY(simd_check_config("linear", config, err));
    TRY(ref_check_dimension("linear", "rows", shape->rows, err));
    TRY(ref_check_dimension("linear", "inputs", shape->in, err));
    if (shape->count < 1 || shape->count > LINEAR_GROUP_MAX)
        FAIL("linear: members of a group: want 1 to %d, got %d", LINEAR_GROUP_MAX, shape->count);
    TRY(ref_check_stride("linear", shape->stride, err));
    for (int i = 0; i < shape->count; i++)
        TRY(check_spec(config, shape, &shape->linear[i], err));
    Layout at;
    TRY(layout_of(config, shape, &at, err));
    *plan =
        (OpPlan){.saved = at.saved, .forward_workspace = gemm_workspace(config->threads, 0), .backward_workspace = at.backward};
    return OK;
}

/* What every part of one call looks up. */
typedef struct Call {
    DType act;
    const LinearShape *shape;
    const Batch *batch;
    const LinearOperand *operands;
    DropoutMask masks[LINEAR_GROUP_MAX];
    int masked[LINEAR_GROUP_MAX];
    int split[LINEAR_GROUP_MAX]; /* ds, scaled, is kept as two BF16 numbers a value, whose products take pairs */
    int32_t twice[LINEAR_GROUP_MAX][2 * SPLIT_RANK_MAX]; /* 0 to R - 1, and again */
    Layout at;
} Call;

static int takes_split(const Call *call, int i) {
    const LinearSpec *spec = &call->shape->linear[i];
    return GEMM_PAIRS && call->act == DTYPE_BF16 && spec->rank > 0 && spec->rank <= SPLIT_RANK_MAX &&
           spec->lora_scale != 0.0f && !call->masked[i];
}

static Status call_begin(Call *call, const Exec *exec, const LinearShape *shape, const Batch *batch,
                         const LinearOperand *operands, Error *err) {
    *call = (Call){.act = exec->config.act, .shape = shape, .batch = batch, .operands = operands};
    TRY(ref_check_tokens("linear", batch, shape->rows, err));
    TRY(layout_of(&exec->config, shape, &call->at, err));
    for (int i = 0; i < shape->count; i++) {
        const LinearSpec *spec = &shape->linear[i];
        TRY(ref_check_weight("linear", &operands[i].weight, spec->format, spec->out, shape->in, err));
        call->masked[i] = spec->rank > 0 && spec->dropout > 0.0f && batch->dropout;
        call->masks[i] = (DropoutMask){.batch = batch,
                                       .stream = spec->dropout_stream,
                                       .threshold = dropout_threshold(spec->dropout),
                                       .scale = (float)(1.0 / (1.0 - (double)spec->dropout))};
        call->split[i] = takes_split(call, i);
        for (int64_t k = 0; call->split[i] && k < 2 * spec->rank; k++)
            call->twice[i][k] = (int32_t)(k % spec->rank);
    }
    return OK;
}

static const DropoutMask *mask_of(const Call *call, int i) {
    return call->masked[i] ? &call->masks[i] : NULL;
}

static Operand dense(const void *data, DType type, int64_t stride, float scale) {
    return (Operand){.data = data, .type = type, .stride = stride, .scale = scale};
}

static Operand weight_of(const Call *call, int i) {
    return (Operand){.weight = &call->operands[i].weight, .round_to = call->act, .scale = 1.0f};
}

static Operand masked_x(const Call *call, const void *x, int i) {
    Operand operand = dense(x, call->act, call->shape->in, 1.0f);
    operand.mask = mask_of(call, i);
    return operand;
}

/* s_i = dropout_i(x) A_i^T */
static Product down_projection(const Call *call, int i, const void *x, void *saved) {
    int64_t in = call->shape->in, rank = call->shape->linear[i].rank;
    return (Product){.m = call->batch->tokens,
                     .n = rank,
                     .terms = 1,
                     .term = {{.a = masked_x(call, x, i),
                               .b = dense(call->operands[i].lora_a, call->act, in, 1.0f),
                               .b_rows_are_n = 1,
                               .k = in}},
                     .out = (char *)saved + call->at.s[i],
                     .out_type = call->act,
                     .out_stride = rank};
}

/* y_i = x W_i^T + scale_i s_i B_i^T + bias_i */
static Product output(const Call *call, int i, const void *x, const void *saved, void *y) {
    const LinearSpec *spec = &call->shape->linear[i];
    int64_t in = call->shape->in;
    Product p = {.m = call->batch->tokens,
                 .n = spec->out,
                 .terms = 1,
                 .term = {{.a = dense(x, call->act, in, 1.0f), .b = weight_of(call, i), .b_rows_are_n = 1, .k = in}},
                 .bias = spec->has_bias ? call->operands[i].bias : NULL,
                 .out = y,
                 .out_type = call->act,
                 .out_stride = spec->out};
    if (spec->rank > 0)
        p.term[p.terms++] = (Term){.a = dense((const char *)saved + call->at.s[i], call->act, spec->rank, spec->lora_scale),
                                   .b = dense(call->operands[i].lora_b, call->act, spec->rank, 1.0f),
                                   .b_rows_are_n = 1,
                                   .k = spec->rank};
    return p;
}

static Status linear_forward(const Exec *exec, const LinearShape *shape, const Batch *batch, const void *x,
                             const LinearOperand *operands, void *const *y, void *saved, void *workspace, Error *err) {
    Call call;
    TRY(call_begin(&call, exec, shape, batch, operands, err));
    Product products[LINEAR_GROUP_MAX];
    int count = 0;
    for (int i = 0; i < shape->count; i++)
        if (shape->linear[i].rank > 0) products[count++] = down_projection(&call, i, x, saved);
    if (count > 0) gemm_run(exec, products, count, workspace);
    for (int i = 0; i < shape->count; i++)
        products[i] = output(&call, i, x, saved, y[i]);
    gemm_run(exec, products, shape->count, workspace);
    return OK;
}

/* ---- backward ----------------------------------------------------------------------------------------------------------- */

/* ds_i = dy_i B_i: FP32 without the scale; or split: [rows, 2R], scale_i ds_i rounded to BF16, then what that leaves. */
static Product adapter_gradient(const Call *call, int i, const void *dy, void *workspace) {
    const LinearSpec *spec = &call->shape->linear[i];
    return (Product){.m = call->batch->tokens,
                     .n = spec->rank,
                     .terms = 1,
                     .term = {{.a = dense(dy, call->act, spec->out, 1.0f),
                               .b = dense(call->operands[i].lora_b, call->act, spec->rank, 1.0f),
                               .k = spec->out}},
                     .out = (char *)workspace + call->at.ds[i],
                     .out_type = call->split[i] ? DTYPE_BF16 : DTYPE_F32,
                     .out_stride = spec->rank * (call->split[i] ? 2 : 1),
                     .split_scale = call->split[i] ? spec->lora_scale : 0.0f};
}

static Operand scaled_ds(const Call *call, int i, const void *workspace) {
    const LinearSpec *spec = &call->shape->linear[i];
    const char *ds = (const char *)workspace + call->at.ds[i];
    return call->split[i] ? dense(ds, DTYPE_BF16, 2 * spec->rank, 1.0f) : dense(ds, DTYPE_F32, spec->rank, spec->lora_scale);
}

/* mask_i(scale_i ds_i A_i); split, A_i's rows meet both halves. */
static Term adapter_term(const Call *call, int i, const void *workspace) {
    const LinearSpec *spec = &call->shape->linear[i];
    Term term = {.a = scaled_ds(call, i, workspace),
                 .b = dense(call->operands[i].lora_a, call->act, call->shape->in, 1.0f),
                 .k = spec->rank,
                 .mask = mask_of(call, i)};
    if (call->split[i]) {
        term.b.rows = call->twice[i];
        term.k = 2 * spec->rank;
    }
    return term;
}

/* dx = sum_i dy_i W_i + mask_i(scale_i ds_i A_i) */
static Product input_gradient(const Call *call, const void *const *dy, const void *workspace, void *dx) {
    int64_t in = call->shape->in;
    Product p = {.m = call->batch->tokens, .n = in, .out = dx, .out_type = call->act, .out_stride = in};
    for (int i = 0; i < call->shape->count; i++) {
        const LinearSpec *spec = &call->shape->linear[i];
        p.term[p.terms++] = (Term){.a = dense(dy[i], call->act, spec->out, 1.0f), .b = weight_of(call, i), .k = spec->out};
        if (spec->rank > 0) p.term[p.terms++] = adapter_term(call, i, workspace);
    }
    return p;
}

/* grad [m, n] += a^T b, both operands [tokens, ..] */
static Product parameter_gradient(const Call *call, Operand a, int64_t m, Operand b, int64_t n, void *grad) {
    return (Product){.m = m,
                     .n = n,
                     .terms = 1,
                     .term = {{.a = a, .b = b, .a_rows_are_k = 1, .k = call->batch->tokens}},
                     .out = grad,
                     .out_type = DTYPE_F32,
                     .out_stride = n,
                     .accumulate = 1};
}

/* dB_i [out, R] is formed as its transpose: the long side then lies along the vectors. */
static int member_gradients(const Call *call, int i, const void *x, const void *saved, const void *dy, const LinearGrad *grad,
                            const void *workspace, Product *products) {
    const LinearSpec *spec = &call->shape->linear[i];
    int64_t in = call->shape->in;
    int count = 0;
    Operand dy_i = dense(dy, call->act, spec->out, 1.0f);
    if (spec->rank > 0 && grad->lora_a != NULL) {
        Product *p = &products[count++];
        int64_t rows = call->split[i] ? 2 * spec->rank : spec->rank;
        *p = parameter_gradient(call, scaled_ds(call, i, workspace), rows, masked_x(call, x, i), in, grad->lora_a);
        if (call->split[i]) p->out_rows = call->twice[i];
        p->rows_meet = call->split[i];
    }
    if (spec->rank > 0 && grad->lora_b != NULL) {
        Operand s = dense((const char *)saved + call->at.s[i], call->act, spec->rank, spec->lora_scale);
        Product *p = &products[count++];
        *p = parameter_gradient(call, s, spec->rank, dy_i, spec->out, grad->lora_b);
        p->out_stride = spec->rank;
        p->out_transposed = 1;
    }
    if (spec->train_weight && grad->weight != NULL)
        products[count++] = parameter_gradient(call, dy_i, spec->out, dense(x, call->act, in, 1.0f), in, grad->weight);
    return count;
}

typedef struct BiasWork {
    DType act;
    const void *dy;
    float *grad;
    int64_t rows, out;
} BiasWork;

/* Sums of 256 rows, then the sum of those: FP32 error stays that of a few hundred additions. */
static void bias_columns(void *context, int64_t item, int worker) {
    (void)worker;
    const BiasWork *w = context;
    int64_t first = item * SIMD_WIDTH, count = w->out - first;
    vf total = vf_zero();
    for (int64_t t0 = 0; t0 < w->rows; t0 += 256) {
        vf sum = vf_zero();
        for (int64_t t = t0; t < w->rows && t < t0 + 256; t++)
            sum += vf_load_act(w->dy, w->act, t * w->out + first, count);
        total += sum;
    }
    vf_store_act(w->grad, DTYPE_F32, first, count, vf_load_act(w->grad, DTYPE_F32, first, count) + total);
}

static Status linear_backward(const Exec *exec, const LinearShape *shape, const Batch *batch, const void *x,
                              const LinearOperand *operands, const void *saved, const void *const *dy, void *dx,
                              const LinearGrad *grads, void *workspace, Error *err) {
    Call call;
    TRY(call_begin(&call, exec, shape, batch, operands, err));
    void *gemm = (char *)workspace + call.at.gemm;
    Product products[GEMM_GROUP_MAX];
    int count = 0;
    for (int i = 0; i < shape->count; i++)
        if (shape->linear[i].rank > 0) products[count++] = adapter_gradient(&call, i, dy[i], workspace);
    if (count > 0) gemm_run(exec, products, count, gemm);
    count = 0;
    if (shape->need_dx) products[count++] = input_gradient(&call, dy, workspace, dx);
    for (int i = 0; i < shape->count; i++)
        count += member_gradients(&call, i, x, saved, dy[i], &grads[i], workspace, products + count);
    if (count > 0) gemm_run(exec, products, count, gemm);
    for (int i = 0; i < shape->count; i++) {
        const LinearSpec *spec = &shape->linear[i];
        if (!spec->train_bias || grads[i].bias == NULL) continue;
        BiasWork work = {.act = call.act, .dy = dy[i], .grad = grads[i].bias, .rows = batch->tokens, .out = spec->out};
        pool_run(exec->pool, bias_columns, &work, (spec->out + SIMD_WIDTH - 1) / SIMD_WIDTH);
    }
    return OK;
}

void simd_linear(Backend *backend) {
    backend->linear_plan = linear_plan;
    backend->linear_forward = linear_forward;
    backend->linear_backward = linear_backward;
    backend->variant.linear = SIMD_VARIANT;
}
