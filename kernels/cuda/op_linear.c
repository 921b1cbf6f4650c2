/* Linear groups: weights that are not dense already come dequantized from the side stream (stage.c) or are dequantized into the
 * workspace, cuBLAS multiplies, and our kernels do what belongs to adapters around it (kernels/cuda/launch.h: "linear group").
 *
 * In a joined group the members' results lie side by side and their dense weights one after another, so that forward and dX are
 * one product each; weights that lie elsewhere (a dense base whose sizes do not meet) take one each.
 *
 *   saved               s_i [rows, R_i] of every member with an adapter, one after another
 *   workspace           dense weights, unless they were staged | backward: ds_i FP32 [rows, R_i] of every member
 */
#include "kernels/cuda/context.h"

typedef struct LinearLayout {
    size_t s[LINEAR_GROUP_MAX], ds[LINEAR_GROUP_MAX]; /* offsets; ds: from the end of the dense weights */
    OpPlan plan;
} LinearLayout;

static int any_adapter(const LinearShape *shape) {
    for (int i = 0; i < shape->count; i++)
        if (shape->linear[i].rank > 0) return 1;
    return 0;
}

static LinearLayout layout_of(DType act, const LinearShape *shape) {
    LinearLayout layout = {.plan = {0}};
    size_t unused[LINEAR_GROUP_MAX], dense = cuda_dense_layout(act, shape, unused), saved = 0, ds = 0;
    for (int i = 0; i < shape->count; i++) {
        const LinearSpec *spec = &shape->linear[i];
        layout.s[i] = saved;
        layout.ds[i] = ds;
        saved += align_up((size_t)(shape->rows * spec->rank) * dtype_size(act));
        ds += align_up((size_t)(shape->rows * spec->rank) * sizeof(float));
    }
    layout.plan = (OpPlan){.saved = saved, .forward_workspace = dense, .backward_workspace = dense + ds, .staged = dense};
    return layout;
}

static Status linear_plan(const ExecConfig *config, const LinearShape *shape, OpPlan *plan, Error *err) {
    TRY(cuda_check_act("linear", config, err));
    TRY(cuda_check_size("linear", "rows", shape->rows, err));
    TRY(cuda_check_size("linear", "in", shape->in, err));
    int64_t side_by_side = 0;
    for (int i = 0; i < shape->count; i++) {
        TRY(cuda_check_size("linear", "out", shape->linear[i].out, err));
        TRY(cuda_check_format("linear", shape->linear[i].format, err));
        side_by_side += shape->linear[i].out;
    }
    TRY(cuda_check_size("linear", "columns of the group", side_by_side, err));
    if (shape->stride != 0 && shape->stride != side_by_side)
        FAIL("linear: a joined group of %lld columns, got a stride of %lld", (long long)side_by_side, (long long)shape->stride);
    *plan = layout_of(config->act, shape).plan;
    return OK;
}

static void *at(void *base, size_t offset) {
    return (uint8_t *)base + offset;
}

/* Every member's weight as a dense matrix of type act: itself, what was staged, or what is about to be dequantized into the
 * workspace. */
static void dense_places(DType act, const LinearShape *shape, const LinearOperand *operands, const void *workspace,
                         const void *dense[LINEAR_GROUP_MAX]) {
    const uint8_t *memory = operands[0].staged != NULL ? operands[0].staged : workspace;
    size_t offsets[LINEAR_GROUP_MAX];
    (void)cuda_dense_layout(act, shape, offsets);
    for (int i = 0; i < shape->count; i++)
        dense[i] = is_dense_as(shape->linear[i].format, act) ? operands[i].weight.data : memory + offsets[i];
}

/* From here on they hold what they should. */
static Status fill_dense(CudaContext *context, DType act, const LinearShape *shape, const LinearOperand *operands,
                         void *workspace, Error *err) {
    if (operands[0].staged != NULL) return cuda_stage_wait(context, operands[0].staged, err);
    return cuda_make_dense(context, act, shape, operands, workspace, context->stream, err);
}

/* Whether the group is one matrix [sum of outs, in]: its weights lie one after another, as its results lie side by side. */
static int is_one_matrix(DType act, const LinearShape *shape, const void *const *dense) {
    for (int i = 1; i < shape->count; i++) {
        size_t bytes = (size_t)(shape->linear[i - 1].out * shape->in) * dtype_size(act);
        if ((const uint8_t *)dense[i - 1] + bytes != dense[i]) return 0;
    }
    return shape->stride > 0;
}

/* Elements from row to row of a member's y and dy. */
static int64_t pitch_of(const LinearShape *shape, int i) {
    return shape->stride > 0 ? shape->stride : shape->linear[i].out;
}

static int is_updated(const LinearShape *shape, const LinearOperand *operands, int i) {
    return shape->linear[i].rank > 0 || operands[i].bias != NULL;
}

/* y_i += x W_i^T (or =, where nothing was begun); all members in one call where they are one matrix. */
static Status products(const Exec *exec, const LinearShape *shape, int64_t rows, const void *x, const void *const *dense,
                       const int *begun, void *const *y, int one, Error *err) {
    for (int i = 0; i < (one ? 1 : shape->count); i++) {
        Product product = {.m = rows,
                           .n = one ? shape->stride : shape->linear[i].out,
                           .k = shape->in,
                           .a = x,
                           .lda = shape->in,
                           .b = dense[i],
                           .c = y[i],
                           .ldc = pitch_of(shape, i),
                           .in = exec->config.act,
                           .out = exec->config.act,
                           .beta = begun[i] ? 1.0f : 0.0f};
        TRY(product_nt(context_of(exec), &product, err));
    }
    return OK;
}

static Status linear_forward(const Exec *exec, const LinearShape *shape, const Batch *batch, const void *x,
                             const LinearOperand *operands, void *const *y, void *saved, void *workspace, Error *err) {
    CudaContext *context = context_of(exec);
    DType act = exec->config.act;
    LinearLayout layout = layout_of(act, shape);
    void *s[LINEAR_GROUP_MAX];
    const void *lora_a[LINEAR_GROUP_MAX], *dense[LINEAR_GROUP_MAX];
    int begun[LINEAR_GROUP_MAX], any = 0;
    for (int i = 0; i < shape->count; i++) {
        s[i] = at(saved, layout.s[i]);
        lora_a[i] = operands[i].lora_a;
        begun[i] = is_updated(shape, operands, i);
        any |= begun[i];
    }
    dense_places(act, shape, operands, workspace, dense);
    int one = is_one_matrix(act, shape, dense);
    if (any_adapter(shape)) CUDA_TRY(context, cuda_lora_down(act, context->batch, shape, x, lora_a, s, context->stream));
    for (int i = 0; i < shape->count; i++) {
        begun[i] |= one && any; /* one product is added to all, or to none */
        if (begun[i])
            CUDA_TRY(context, cuda_lora_up(act, context->batch, shape->rows, &shape->linear[i], s[i], operands[i].lora_b,
                                           operands[i].bias, y[i], shape->stride, context->stream));
    }
    TRY(fill_dense(context, act, shape, operands, workspace, err));
    return products(exec, shape, rows_of(context, batch, shape->rows), x, dense, begun, y, one, err);
}

/* A product over rows must find nothing in those that are not in use; x and dy lie in the tape's arena, where nobody reads them
 * there. */
static Status clear_tails(CudaContext *context, DType act, const LinearShape *shape, int i, const void *x, const void *dy,
                          Error *err) {
    int64_t out = shape->linear[i].out;
    CUDA_TRY(context, cuda_zero_tail(act, context->batch, shape->rows, shape->in, (void *)(uintptr_t)x, 0, context->stream));
    CUDA_TRY(context,
             cuda_zero_tail(act, context->batch, shape->rows, out, (void *)(uintptr_t)dy, shape->stride, context->stream));
    return OK;
}

/* Gradients of adapters, biases and trained weights. */
static Status parameter_gradients(const Exec *exec, const LinearShape *shape, const Batch *batch, const void *x,
                                  const void *const *s, const void *const *dy, float *const *ds, const LinearGrad *grads,
                                  Error *err) {
    CudaContext *context = context_of(exec);
    DType act = exec->config.act;
    float *d_a[LINEAR_GROUP_MAX] = {NULL}, *d_b[LINEAR_GROUP_MAX] = {NULL};
    for (int i = 0; i < shape->count; i++) {
        d_a[i] = grads[i].lora_a;
        d_b[i] = grads[i].lora_b;
        if (grads[i].bias != NULL)
            CUDA_TRY(context, cuda_column_sums(act, context->batch, shape->rows, shape->linear[i].out, dy[i], shape->stride,
                                               grads[i].bias, context->stream));
        if (grads[i].weight == NULL) continue;
        if (context->whole) TRY(clear_tails(context, act, shape, i, x, dy[i], err));
        Product product = {.m = shape->linear[i].out,
                           .n = shape->in,
                           .k = rows_of(context, batch, shape->rows),
                           .a = dy[i],
                           .lda = pitch_of(shape, i),
                           .b = x,
                           .c = grads[i].weight,
                           .in = act,
                           .out = DTYPE_F32,
                           .beta = 1.0f};
        TRY(product_tn(context, &product, err));
    }
    if (!any_adapter(shape)) return OK;
    CUDA_TRY(context, cuda_lora_da(act, context->batch, shape, x, (const float *const *)ds, d_a, context->stream));
    CUDA_TRY(context, cuda_lora_db(act, context->batch, shape, dy, s, d_b, context->stream));
    return OK;
}

static Status input_gradient(const Exec *exec, const LinearShape *shape, const Batch *batch, const LinearOperand *operands,
                             const void *const *dy, float *const *ds, void *dx, void *workspace, Error *err) {
    CudaContext *context = context_of(exec);
    DType act = exec->config.act;
    int begun = any_adapter(shape);
    const void *lora_a[LINEAR_GROUP_MAX];
    for (int i = 0; i < shape->count; i++)
        lora_a[i] = operands[i].lora_a;
    if (begun)
        CUDA_TRY(context, cuda_lora_dx(act, context->batch, shape, (const float *const *)ds, lora_a, dx, context->stream));
    const void *dense[LINEAR_GROUP_MAX];
    dense_places(act, shape, operands, workspace, dense);
    TRY(fill_dense(context, act, shape, operands, workspace, err));
    int one = is_one_matrix(act, shape, dense);
    for (int i = 0; i < (one ? 1 : shape->count); i++, begun = 1) {
        Product product = {.m = rows_of(context, batch, shape->rows),
                           .n = shape->in,
                           .k = one ? shape->stride : shape->linear[i].out,
                           .a = dy[i],
                           .lda = pitch_of(shape, i),
                           .b = dense[i],
                           .c = dx,
                           .in = act,
                           .out = act,
                           .beta = begun ? 1.0f : 0.0f};
        TRY(product_nn(context, &product, err));
    }
    return OK;
}

static Status linear_backward(const Exec *exec, const LinearShape *shape, const Batch *batch, const void *x,
                              const LinearOperand *operands, const void *saved, const void *const *dy, void *dx,
                              const LinearGrad *grads, void *workspace, Error *err) {
    CudaContext *context = context_of(exec);
    DType act = exec->config.act;
    LinearLayout layout = layout_of(act, shape);
    const void *s[LINEAR_GROUP_MAX], *lora_b[LINEAR_GROUP_MAX];
    float *ds[LINEAR_GROUP_MAX];
    for (int i = 0; i < shape->count; i++) {
        s[i] = (const uint8_t *)saved + layout.s[i];
        ds[i] = at(workspace, layout.ds[i] + (operands[0].staged == NULL ? layout.plan.staged : 0));
        lora_b[i] = operands[i].lora_b;
    }
    if (any_adapter(shape)) CUDA_TRY(context, cuda_lora_ds(act, context->batch, shape, dy, lora_b, ds, context->stream));
    if (dx != NULL) TRY(input_gradient(exec, shape, batch, operands, dy, ds, dx, workspace, err));
    return parameter_gradients(exec, shape, batch, x, s, dy, ds, grads, err);
}

void cuda_install_linear(Backend *backend) {
    backend->linear_plan = linear_plan;
    backend->linear_forward = linear_forward;
    backend->linear_backward = linear_backward;
    backend->variant.linear = "cuda";
}
