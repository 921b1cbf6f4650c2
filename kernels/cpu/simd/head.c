/* Head and loss: for every chunk of supervised rows three products (logits, dx, dW) around a softmax.
 *
 * workspace: [ logits FP32 chunk x V | the teacher's, where the shape distills | nll double chunk | products' ]
 * The logits of a chunk turn in place into grad_scale * (softmax - onehot), which is what both gradients multiply with. Where
 * BF16 pairs are multiplied and the run is BF16, they are rounded to BF16 on the way and lie in the first half of each row:
 * an error of 2^-9 a term, as large as that of storing dx.
 */
#include <math.h>

#include "kernels/cpu/simd/head.h"

typedef struct Layout {
    int64_t chunk; /* rows */
    size_t teacher, nll, gemm, total;
} Layout;

static Status layout_of(const ExecConfig *config, const HeadShape *shape, Layout *at, Error *err) {
    int64_t chunk = head_chunk_rows(shape->vocab);
    *at = (Layout){.chunk = chunk < shape->supervised ? chunk : shape->supervised};
    TRY(ref_region(&at->total, NULL, "head", at->chunk, shape->vocab, sizeof(float), err));
    TRY(ref_region(&at->total, &at->teacher, "head", shape->distill ? at->chunk : 0, shape->vocab, sizeof(float), err));
    TRY(ref_region(&at->total, &at->nll, "head", at->chunk, 1, sizeof(double), err));
    at->gemm = at->total;
    at->total += gemm_workspace(config->threads, 0);
    return OK;
}

static Status head_plan(const ExecConfig *config, const HeadShape *shape, OpPlan *plan, Error *err) {
    TRY(simd_check_config("head", config, err));
    TRY(ref_check_dimension("head", "rows", shape->rows, err));
    TRY(ref_check_dimension("head", "hidden", shape->hidden, err));
    TRY(ref_check_dimension("head", "vocab", shape->vocab, err));
    TRY(ref_check_format("head", shape->format, config->act, err));
    if (shape->supervised < 0 || shape->supervised > shape->rows)
        FAIL("head: supervised rows: want 0 to %lld, got %lld", (long long)shape->rows, (long long)shape->supervised);
    Layout at;
    size_t output = 0;
    TRY(ref_region(&output, NULL, "head", shape->rows, shape->hidden, dtype_size(config->act), err));
    TRY(ref_region(&output, NULL, "head", shape->vocab, shape->hidden, sizeof(float), err));
    TRY(layout_of(config, shape, &at, err));
#if GEMM_PAIRS
    if (head_flash_takes(config, shape)) return head_flash_plan(config, shape, plan, err);
#endif
    *plan = (OpPlan){.forward_workspace = at.total};
    return OK;
}

/* logits[j] = x[rows[first + j]] W^T */
static Product logits_product(const Exec *exec, const HeadShape *shape, const Batch *batch, int64_t first, int64_t count,
                              const void *x, const WeightView *weight, float *logits) {
    DType act = exec->config.act;
    return (Product){
        .m = count,
        .n = shape->vocab,
        .terms = 1,
        .term = {{.a = {.data = x, .type = act, .stride = shape->hidden, .rows = batch->rows + first, .scale = 1.0f},
                  .b = {.weight = weight, .round_to = act, .scale = 1.0f},
                  .b_rows_are_n = 1,
                  .k = shape->hidden}},
        .out = logits,
        .out_type = DTYPE_F32,
        .out_stride = shape->vocab};
}

typedef struct SoftmaxWork {
    float *logits, *teacher; /* teacher: NULL without */
    double *nll;
    const int32_t *targets;
    int64_t vocab;
    float grad_scale;
    int gradient, narrow; /* narrow: the gradient becomes BF16 */
} SoftmaxWork;

static int narrows(const Exec *exec) {
    return GEMM_PAIRS && exec->config.act == DTYPE_BF16;
}

static float row_largest(const float *z, int64_t count) {
    vf most = vf_set(-INFINITY);
    int64_t v = 0;
    for (; v + SIMD_WIDTH <= count; v += SIMD_WIDTH)
        most = vf_max(most, vf_load(z + v));
    float largest = vf_largest(most);
    for (; v < count; v++)
        largest = z[v] > largest ? z[v] : largest;
    return largest;
}

/* z = e^(z - largest); returns the sum. FP32 within 512 values, double across. */
static double row_exp(float *z, int64_t count, float largest) {
    double sum = 0.0;
    for (int64_t v0 = 0; v0 < count; v0 += 512) {
        vf part = vf_zero();
        int64_t end = v0 + 512 < count ? v0 + 512 : count;
        for (int64_t v = v0; v < end; v += SIMD_WIDTH) {
            vf e = vf_exp(vf_load_act(z, DTYPE_F32, v, end - v) - vf_set(largest));
            vf_store_act(z, DTYPE_F32, v, end - v, e);
            part += vf_load_act(z, DTYPE_F32, v, end - v); /* the lanes past the end are zero again */
        }
        sum += (double)vf_sum(part);
    }
    return sum;
}

/* sum of e^(t - largest) (t - z), with t left as e^(t - largest); *sum: of the exponentials. FP32 within 512 values. */
static double teacher_exp(float *t, const float *z, int64_t count, float largest, double *sum) {
    double weighted = 0.0;
    *sum = 0.0;
    for (int64_t v0 = 0; v0 < count; v0 += 512) {
        vf part = vf_zero(), product = vf_zero();
        int64_t end = v0 + 512 < count ? v0 + 512 : count;
        for (int64_t v = v0; v < end; v += SIMD_WIDTH) {
            vf from = vf_load_act(t, DTYPE_F32, v, end - v), e = vf_exp(from - vf_set(largest));
            vf_store_act(t, DTYPE_F32, v, end - v, e);
            e = vf_load_act(t, DTYPE_F32, v, end - v); /* the lanes past the end are zero again */
            part += e;
            product += e * (from - vf_load_act(z, DTYPE_F32, v, end - v));
        }
        *sum += (double)vf_sum(part);
        weighted += (double)vf_sum(product);
    }
    return weighted;
}

/* nll = sum_v q (log q - log p); z = grad_scale (p - q) */
static void distill_row(const SoftmaxWork *w, int64_t j) {
    float *z = w->logits + j * w->vocab, *t = w->teacher + j * w->vocab;
    float largest = row_largest(z, w->vocab), teacher_largest = row_largest(t, w->vocab);
    double teacher_sum, weighted = teacher_exp(t, z, w->vocab, teacher_largest, &teacher_sum);
    double sum = row_exp(z, w->vocab, largest);
    w->nll[j] = weighted / teacher_sum + ((double)largest + log(sum)) - ((double)teacher_largest + log(teacher_sum));
    if (!w->gradient) return;
    vf scale = vf_set((float)((double)w->grad_scale / sum)),
       teacher_scale = vf_set((float)((double)w->grad_scale / teacher_sum));
    DType type = w->narrow ? DTYPE_BF16 : DTYPE_F32;
    for (int64_t v = 0; v < w->vocab; v += SIMD_WIDTH)
        vf_store_act(
            z, type, v, w->vocab - v,
            vf_load_act(z, DTYPE_F32, v, w->vocab - v) * scale - vf_load_act(t, DTYPE_F32, v, w->vocab - v) * teacher_scale);
}

static void softmax_row(void *context, int64_t j, int worker) {
    (void)worker;
    const SoftmaxWork *w = context;
    if (w->teacher != NULL) {
        distill_row(w, j);
        return;
    }
    float *z = w->logits + j * w->vocab;
    int32_t target = w->targets[j];
    float largest = row_largest(z, w->vocab), wanted = z[target];
    double sum = row_exp(z, w->vocab, largest);
    w->nll[j] = (double)largest - (double)wanted + log(sum);
    if (!w->gradient) return;
    float scale = (float)((double)w->grad_scale / sum);
    /* the target's own entry is a difference of near equals when the model is sure: formed in double */
    float own = (float)((double)w->grad_scale * ((double)z[target] / sum - 1.0));
    DType type = w->narrow ? DTYPE_BF16 : DTYPE_F32;
    for (int64_t v = 0; v < w->vocab; v += SIMD_WIDTH) /* a narrow store lies behind what is still to be read */
        vf_store_act(z, type, v, w->vocab - v, vf_load_act(z, DTYPE_F32, v, w->vocab - v) * vf_set(scale));
    if (w->narrow)
        ((bf16 *)(void *)z)[target] = bf16_from_float(own);
    else
        z[target] = own;
}

/* dx[rows[j]] = p[j] W;  dW += p^T x */
static void gradients(const Exec *exec, const HeadShape *shape, const Batch *batch, int64_t first, int64_t count, const void *x,
                      const WeightView *weight, const float *p, void *dx, void *d_weight, void *workspace) {
    DType act = exec->config.act;
    Operand x_rows = {.data = x, .type = act, .stride = shape->hidden, .rows = batch->rows + first, .scale = 1.0f};
    Operand p_rows = {.data = p, .type = DTYPE_F32, .stride = shape->vocab, .scale = 1.0f};
    if (narrows(exec)) {
        p_rows.type = DTYPE_BF16;
        p_rows.stride = 2 * shape->vocab;
    }
    Product products[2];
    int products_count = 0;
    if (dx != NULL)
        products[products_count++] =
            (Product){.m = count,
                      .n = shape->hidden,
                      .terms = 1,
                      .term = {{.a = p_rows, .b = {.weight = weight, .round_to = act, .scale = 1.0f}, .k = shape->vocab}},
                      .out = dx,
                      .out_type = act,
                      .out_stride = shape->hidden,
                      .out_rows = batch->rows + first};
    if (d_weight != NULL)
        products[products_count++] = (Product){.m = shape->vocab,
                                               .n = shape->hidden,
                                               .terms = 1,
                                               .term = {{.a = p_rows, .b = x_rows, .a_rows_are_k = 1, .k = count}},
                                               .out = d_weight,
                                               .out_type = DTYPE_F32,
                                               .out_stride = shape->hidden,
                                               .accumulate = 1};
    gemm_run(exec, products, products_count, workspace);
}

static Status head_loss(const Exec *exec, const HeadShape *shape, const Batch *batch, const void *x, const WeightView *weight,
                        double *loss_sum, float *nll, void *dx, void *d_weight, void *workspace, Error *err) {
    TRY(ref_head_check(shape, batch, weight, 1, err));
    Layout at;
    TRY(layout_of(&exec->config, shape, &at, err));
    float *logits = workspace, *teacher = NULL;
    if (batch->teacher != NULL) teacher = (float *)(void *)((char *)workspace + at.teacher);
    double *row_nll = (double *)(void *)((char *)workspace + at.nll);
    void *gemm = (char *)workspace + at.gemm;
    if (!shape->need_dx) dx = NULL;
    if (!shape->train_weight) d_weight = NULL;
    if (dx != NULL) memset(dx, 0, (size_t)(batch->tokens * shape->hidden) * dtype_size(exec->config.act));
#if GEMM_PAIRS
    if (head_flash_takes(&exec->config, shape))
        return head_flash_loss(exec, shape, batch, x, weight, loss_sum, nll, dx, workspace, err);
#endif
    for (int64_t first = 0; first < batch->supervised; first += at.chunk) {
        int64_t count = batch->supervised - first < at.chunk ? batch->supervised - first : at.chunk;
        Product product = logits_product(exec, shape, batch, first, count, x, weight, logits);
        gemm_run(exec, &product, 1, gemm);
        if (teacher != NULL) {
            product = logits_product(exec, shape, batch, first, count, batch->teacher, weight, teacher);
            gemm_run(exec, &product, 1, gemm);
        }
        SoftmaxWork work = {.logits = logits,
                            .teacher = teacher,
                            .nll = row_nll,
                            .targets = batch->targets + first,
                            .vocab = shape->vocab,
                            .grad_scale = batch->grad_scale,
                            .gradient = dx != NULL || d_weight != NULL,
                            .narrow = narrows(exec)};
        pool_run(exec->pool, softmax_row, &work, count);
        for (int64_t j = 0; j < count; j++) {
            *loss_sum += row_nll[j];
            if (nll != NULL) nll[first + j] = (float)row_nll[j];
        }
        if (work.gradient) gradients(exec, shape, batch, first, count, x, weight, logits, dx, d_weight, gemm);
    }
    return OK;
}

static Status head_logits(const Exec *exec, const HeadShape *shape, const Batch *batch, const void *x, const WeightView *weight,
                          void *logits, void *workspace, Error *err) {
    TRY(ref_head_check(shape, batch, weight, 0, err));
    Layout at;
    TRY(layout_of(&exec->config, shape, &at, err));
    void *gemm = (char *)workspace + at.gemm;
#if GEMM_PAIRS
    if (head_flash_takes(&exec->config, shape)) gemm = workspace; /* planned without logits; its end is the products' as well */
#endif
    Product product = logits_product(exec, shape, batch, 0, batch->supervised, x, weight, logits);
    gemm_run(exec, &product, 1, gemm);
    return OK;
}

void simd_head(Backend *backend) {
    backend->head_plan = head_plan;
    backend->head_loss = head_loss;
    backend->head_logits = head_logits;
    backend->variant.head = SIMD_VARIANT;
}
