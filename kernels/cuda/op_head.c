/* Head and loss by chunks of supervised rows: gather, logits in FP32, loss and gradient in place, products, scatter.
 *
 *   workspace    dense weight (where it is not dense already) | gathered x | logits FP32, then their gradient | dx of the chunk
 *                | where there may be a teacher: its logits FP32
 */
#include "kernels/cuda/context.h"

typedef struct HeadLayout {
    int64_t chunk;
    size_t gathered, logits, dx, teacher;
    OpPlan plan;
} HeadLayout;

#define CHUNK_TILE 128
#define CHUNK_MOST 1024

/* Both products of a chunk read the whole weight, so on a device 65 rows (32 MiB of logits of 128,256 words) are bound by that, at a
 * third of the products' rate. A quarter of the rows, in whole tiles and up to 1,024, is bound by the products, and takes about what
 * the backward pass of a layer takes later. */
static int64_t chunk_rows(const HeadShape *shape) {
    int64_t rows = head_chunk_rows(shape->vocab), quarter = (shape->supervised + 3) / 4;
    if (rows > CHUNK_TILE) rows -= rows % CHUNK_TILE;
    quarter = (quarter + CHUNK_TILE - 1) / CHUNK_TILE * CHUNK_TILE;
    if (rows < quarter) rows = quarter;
    if (rows > CHUNK_MOST) rows = CHUNK_MOST;
    return rows < shape->supervised ? rows : shape->supervised;
}

static HeadLayout layout_of(DType act, const HeadShape *shape) {
    HeadLayout layout = {.chunk = chunk_rows(shape)};
    size_t rows = align_up((size_t)(layout.chunk * shape->hidden) * dtype_size(act));
    layout.gathered = is_dense_as(shape->format, act) ? 0 : align_up((size_t)(shape->vocab * shape->hidden) * dtype_size(act));
    layout.logits = layout.gathered + rows;
    layout.dx = layout.logits + align_up((size_t)(layout.chunk * shape->vocab) * sizeof(float));
    layout.teacher = layout.dx + rows;
    size_t logits = layout.dx - layout.logits;
    layout.plan.forward_workspace = layout.teacher + (shape->distill ? logits : 0);
    return layout;
}

static Status head_plan(const ExecConfig *config, const HeadShape *shape, OpPlan *plan, Error *err) {
    TRY(cuda_check_act("head", config, err));
    TRY(cuda_check_size("head", "rows", shape->rows, err));
    TRY(cuda_check_size("head", "hidden", shape->hidden, err));
    TRY(cuda_check_size("head", "2 * vocab", 2 * shape->vocab, err)); /* the gradient's leading dimension */
    TRY(cuda_check_format("head", shape->format, err));
    *plan = layout_of(config->act, shape).plan;
    return OK;
}

/* What the kernels do not check. */
static Status check_batch(const HeadShape *shape, const Batch *batch, int with_targets, Error *err) {
    if (batch->teacher != NULL && !shape->distill) FAIL("head: there is a teacher, and the shape has no room for one");
    if (batch->supervised < 0 || batch->supervised > shape->supervised)
        FAIL("head: supervised rows: want 0 to %lld, got %lld", (long long)shape->supervised, (long long)batch->supervised);
    for (int64_t j = 0; j < batch->supervised; j++) {
        int32_t before = j > 0 ? batch->rows[j - 1] : -1;
        if (batch->rows[j] <= before || batch->rows[j] >= batch->tokens)
            FAIL("head: supervised row %lld: want a row from %d to %lld, got %d", (long long)j, before + 1,
                 (long long)batch->tokens - 1, batch->rows[j]);
        if (with_targets && (batch->targets[j] < 0 || batch->targets[j] >= shape->vocab))
            FAIL("head: supervised row %lld: target: want 0 to %lld, got %d; does the tokenizer belong to this model?",
                 (long long)j, (long long)shape->vocab - 1, batch->targets[j]);
    }
    return OK;
}

typedef struct HeadWork {
    CudaContext *context;
    DType act;
    const HeadShape *shape;
    HeadLayout layout;
    const void *x, *dense;
    uint8_t *workspace;
    int64_t first, count; /* the chunk at hand */
} HeadWork;

static Status open_work(HeadWork *work, const Exec *exec, const HeadShape *shape, const void *x, const WeightView *weight,
                        void *workspace, Error *err) {
    *work = (HeadWork){.context = context_of(exec),
                       .act = exec->config.act,
                       .shape = shape,
                       .layout = layout_of(exec->config.act, shape),
                       .x = x,
                       .dense = weight->data,
                       .workspace = workspace};
    if (weight->format != shape->format || weight->rows != shape->vocab || weight->cols != shape->hidden)
        FAIL("head: the weight is [%lld, %lld], planned was [%lld, %lld]", (long long)weight->rows, (long long)weight->cols,
             (long long)shape->vocab, (long long)shape->hidden);
    if (is_dense_as(weight->format, work->act)) return OK;
    work->dense = workspace;
    CUDA_TRY(work->context,
             cuda_dequantize(weight, 0, weight->rows * weight->cols, workspace, work->act, work->context->stream));
    return OK;
}

/* FP32 logits of the chunk's rows of x, at an offset of the workspace. What was gathered stays there. */
static Status chunk_logits(HeadWork *work, const void *x, size_t logits, Error *err) {
    CudaContext *context = work->context;
    const HeadShape *shape = work->shape;
    void *gathered = work->workspace + work->layout.gathered;
    CUDA_TRY(context, cuda_gather_rows(work->act, context->batch, work->first, work->count, shape->hidden, x, gathered,
                                       context->stream));
    Product product = {.m = work->count,
                       .n = shape->vocab,
                       .k = shape->hidden,
                       .a = gathered,
                       .lda = shape->hidden,
                       .b = work->dense,
                       .c = work->workspace + logits,
                       .in = work->act,
                       .out = DTYPE_F32};
    return product_nt(context, &product, err);
}

/* The chunk's losses, and the gradient of its logits in their place. */
static Status chunk_losses(HeadWork *work, const void *teacher, int want_gradient, Error *err) {
    CudaContext *context = work->context;
    const HeadLayout *layout = &work->layout;
    void *logits = work->workspace + layout->logits;
    float *theirs = (float *)(void *)(work->workspace + layout->teacher);
    if (teacher != NULL) TRY(chunk_logits(work, teacher, layout->teacher, err));
    TRY(chunk_logits(work, work->x, layout->logits, err));
    if (teacher != NULL)
        CUDA_TRY(context, cuda_distillation(work->act, context->batch, work->first, work->count, work->shape->vocab, logits,
                                            theirs, context->nll_there, want_gradient, context->stream));
    else
        CUDA_TRY(context, cuda_cross_entropy(work->act, context->batch, work->first, work->count, work->shape->vocab, logits,
                                             context->nll_there, want_gradient, context->stream));
    return OK;
}

static Status chunk_gradients(HeadWork *work, void *dx, void *d_weight, Error *err) {
    CudaContext *context = work->context;
    const HeadShape *shape = work->shape;
    int64_t stride = work->act == DTYPE_BF16 ? 2 * shape->vocab : shape->vocab;
    Product product = {.m = work->count,
                       .n = shape->hidden,
                       .k = shape->vocab,
                       .a = work->workspace + work->layout.logits,
                       .lda = stride,
                       .b = work->dense,
                       .c = work->workspace + work->layout.dx,
                       .in = work->act,
                       .out = work->act};
    if (dx != NULL) {
        TRY(product_nn(context, &product, err));
        CUDA_TRY(context, cuda_scatter_rows(work->act, context->batch, work->first, work->count, shape->hidden, product.c, dx,
                                            context->stream));
    }
    if (d_weight == NULL) return OK;
    product.m = shape->vocab;
    product.k = work->count;
    product.b = work->workspace + work->layout.gathered;
    product.c = d_weight;
    product.out = DTYPE_F32;
    product.beta = 1.0f;
    return product_tn(context, &product, err);
}

static Status head_loss(const Exec *exec, const HeadShape *shape, const Batch *batch, const void *x, const WeightView *weight,
                        double *loss_sum, float *nll, void *dx, void *d_weight, void *workspace, Error *err) {
    HeadWork work;
    TRY(check_batch(shape, batch, 1, err));
    TRY(open_work(&work, exec, shape, x, weight, workspace, err));
    CudaContext *context = work.context;
    if (dx != NULL)
        CUDA_TRY(context,
                 cudaMemsetAsync(dx, 0, (size_t)(shape->rows * shape->hidden) * dtype_size(work.act), context->stream));
    for (work.first = 0; work.first < batch->supervised; work.first += work.layout.chunk) {
        int64_t left = batch->supervised - work.first;
        work.count = left < work.layout.chunk ? left : work.layout.chunk;
        TRY(chunk_losses(&work, batch->teacher, dx != NULL || d_weight != NULL, err));
        TRY(chunk_gradients(&work, dx, d_weight, err));
    }
    if (batch->supervised > 0)
        CUDA_TRY(context,
                 cuda_loss_sum(context->batch, shape->supervised, context->nll_there, context->loss_there, context->stream));
    context->loss_sum = loss_sum;
    context->nll = nll;
    context->nll_count = batch->supervised;
    return OK;
}

static Status head_logits(const Exec *exec, const HeadShape *shape, const Batch *batch, const void *x, const WeightView *weight,
                          void *logits, void *workspace, Error *err) {
    HeadWork work;
    TRY(check_batch(shape, batch, 0, err));
    TRY(open_work(&work, exec, shape, x, weight, workspace, err));
    for (work.first = 0; work.first < batch->supervised; work.first += work.layout.chunk) {
        int64_t left = batch->supervised - work.first;
        work.count = left < work.layout.chunk ? left : work.layout.chunk;
        TRY(chunk_logits(&work, work.x, work.layout.logits, err));
        CUDA_TRY(work.context, cudaMemcpyAsync((float *)logits + work.first * shape->vocab, work.workspace + work.layout.logits,
                                               (size_t)(work.count * shape->vocab) * sizeof(float), cudaMemcpyDeviceToHost,
                                               work.context->stream));
    }
    return OK;
}

void cuda_install_head(Backend *backend) {
    backend->head_plan = head_plan;
    backend->head_loss = head_loss;
    backend->head_logits = head_logits;
    backend->variant.head = "cuda";
}
