/* Linear group, forward: y_i = x W_i^T + bias_i + scale_i * s_i B_i^T, with s_i = dropout_i(x) A_i^T rounded. */
#include "kernels/cpu/ref/linear.h"

#include "core/philox.h"

static Status check_member(const ExecConfig *config, const LinearSpec *spec, Error *err) {
    TRY(ref_check_dimension("linear", "output width", spec->out, err));
    TRY(ref_check_format("linear", spec->format, config->act, err));
    if (spec->rank < 0 || spec->rank > REF_DIMENSION_MAX) {
        FAIL("linear: adapter rank: want 0 to %lld, got %lld", (long long)REF_DIMENSION_MAX, (long long)spec->rank);
    }
    if (!(spec->dropout >= 0.0f && spec->dropout < 1.0f)) {
        FAIL("linear: dropout: want at least 0 and less than 1, got %g", (double)spec->dropout);
    }
    if (spec->train_bias && !spec->has_bias) FAIL("linear: a bias is to be trained that does not exist");
    return OK;
}

Status ref_linear_layout(const ExecConfig *config, const LinearShape *shape, LinearLayout *layout, Error *err) {
    TRY(ref_check_config("linear", config, err));
    TRY(ref_check_dimension("linear", "rows", shape->rows, err));
    TRY(ref_check_dimension("linear", "input width", shape->in, err));
    if (shape->count < 1 || shape->count > LINEAR_GROUP_MAX) {
        FAIL("linear: members of a group: want 1 to %d, got %d", LINEAR_GROUP_MAX, shape->count);
    }
    TRY(ref_check_stride("linear", shape->stride, err));
    *layout = (LinearLayout){0};
    size_t saved = 0, workspace = 0, output = 0;
    int64_t rank = 0;
    for (int i = 0; i < shape->count; i++) {
        const LinearSpec *spec = &shape->linear[i];
        TRY(check_member(config, spec, err));
        TRY(ref_region(&output, NULL, "linear", shape->rows, spec->out, dtype_size(config->act), err));
        TRY(ref_region(&output, NULL, "linear", spec->out, shape->in, sizeof(double), err));
        TRY(ref_region(&saved, &layout->s[i], "linear", shape->rows, spec->rank, dtype_size(config->act), err));
        TRY(ref_region(&workspace, &layout->ds[i], "linear", shape->rows, spec->rank, sizeof(double), err));
        rank = ref_max(rank, spec->rank);
    }
    int64_t blocks = ref_max(shape->rows, rank) + 1; /* sums of a block of columns, and the block itself */
    layout->forward_doubles = shape->in + rank;
    layout->backward_doubles = ref_max(blocks * REF_COLUMNS, shape->in + rank);
    layout->plan.saved = saved;
    TRY(ref_region(&layout->plan.forward_workspace, NULL, "linear", config->threads, layout->forward_doubles, sizeof(double),
                   err));
    TRY(ref_region(&workspace, &layout->scratch, "linear", config->threads, layout->backward_doubles, sizeof(double), err));
    layout->plan.backward_workspace = workspace;
    return OK;
}

static Status linear_plan(const ExecConfig *config, const LinearShape *shape, OpPlan *plan, Error *err) {
    LinearLayout layout;
    TRY(ref_linear_layout(config, shape, &layout, err));
    *plan = layout.plan;
    return OK;
}

void ref_linear_mask(const LinearWork *work, int64_t t, int64_t first, int64_t count, double *values) {
    const LinearSpec *spec = &work->shape->linear[work->member];
    const Batch *batch = work->batch;
    if (!batch->dropout || !(spec->dropout > 0.0f)) return;
    uint32_t threshold = dropout_threshold(spec->dropout);
    double factor = 1.0 / (1.0 - (double)spec->dropout);
    uint32_t block[4] = {0};
    for (int64_t c = 0; c < count; c++) {
        uint32_t feature = (uint32_t)(first + c);
        if (feature % 4 == 0) {
            dropout_block(batch->seed, spec->dropout_stream, batch->samples[t], (uint32_t)batch->positions[t], feature / 4,
                          block);
        }
        values[c] = block[feature % 4] >= threshold ? values[c] * factor : 0.0;
    }
}

void ref_linear_dropped(const LinearWork *work, int64_t t, int64_t first, int64_t count, double *out) {
    ref_load_row(work->act, ref_at(work->act, work->x, t * work->shape->in + first), count, out);
    ref_linear_mask(work, t, first, count, out);
}

Status ref_linear_check(const Exec *exec, const LinearShape *shape, const Batch *batch, const LinearOperand *operands,
                        Error *err) {
    TRY(ref_check_tokens("linear", batch, shape->rows, err));
    for (int i = 0; i < shape->count; i++) {
        const LinearSpec *spec = &shape->linear[i];
        TRY(ref_check_format("linear", spec->format, exec->config.act, err));
        TRY(ref_check_weight("linear", &operands[i].weight, spec->format, spec->out, shape->in, err));
        if (spec->has_bias && operands[i].bias == NULL) FAIL("linear: member %d: no bias was given", i);
        if (spec->rank > 0 && (operands[i].lora_a == NULL || operands[i].lora_b == NULL)) {
            FAIL("linear: member %d: no adapter was given", i);
        }
    }
    return OK;
}

/* s[t,:] = dropout(x)[t,:] A^T */
static void adapter_row(void *context, int64_t t, int worker) {
    LinearWork *work = context;
    const LinearSpec *spec = &work->shape->linear[work->member];
    int64_t in = work->shape->in;
    const void *a = work->operands[work->member].lora_a;
    void *s = (char *)work->saved + work->layout->s[work->member];
    double *x = ref_scratch(work->workspace, 0, worker, work->layout->forward_doubles);
    ref_linear_dropped(work, t, 0, in, x);
    for (int64_t r = 0; r < spec->rank; r++) {
        ref_store(work->act, s, t * spec->rank + r, ref_dot(work->act, ref_at(work->act, a, r * in), x, in));
    }
}

/* y[:,o]: one row of W serves every token. */
static void output_feature(void *context, int64_t o, int worker) {
    LinearWork *work = context;
    DType act = work->act;
    const LinearSpec *spec = &work->shape->linear[work->member];
    const LinearOperand *operand = &work->operands[work->member];
    int64_t in = work->shape->in, rank = spec->rank;
    const void *s =
        rank > 0 ? (const char *)work->saved + work->layout->s[work->member] : NULL; /* without adapters nothing is saved */
    double *w = ref_scratch(work->workspace, 0, worker, work->layout->forward_doubles);
    double *b = w + in;
    ref_load_weight(&operand->weight, o * in, in, act, w);
    if (rank > 0) ref_load_row(act, ref_at(act, operand->lora_b, o * rank), rank, b);
    double bias = spec->has_bias ? ref_load(act, operand->bias, o) : 0.0;
    for (int64_t t = 0; t < work->batch->tokens; t++) {
        double y = ref_dot(act, ref_at(act, work->x, t * in), w, in) + bias;
        if (rank > 0) y += (double)spec->lora_scale * ref_dot(act, ref_at(act, s, t * rank), b, rank);
        ref_store(act, work->y[work->member], t * spec->out + o, y);
    }
}

static Status linear_forward(const Exec *exec, const LinearShape *shape, const Batch *batch, const void *x,
                             const LinearOperand *operands, void *const *y, void *saved, void *workspace, Error *err) {
    LinearLayout layout;
    TRY(ref_linear_layout(&exec->config, shape, &layout, err));
    TRY(ref_linear_check(exec, shape, batch, operands, err));
    LinearWork work = {.act = exec->config.act,
                       .shape = shape,
                       .layout = &layout,
                       .batch = batch,
                       .x = x,
                       .operands = operands,
                       .y = y,
                       .saved = saved,
                       .workspace = workspace};
    for (work.member = 0; work.member < shape->count; work.member++) {
        if (shape->linear[work.member].rank > 0) pool_run(exec->pool, adapter_row, &work, batch->tokens);
        pool_run(exec->pool, output_feature, &work, shape->linear[work.member].out);
    }
    return OK;
}

void ref_linear(Backend *backend) {
    backend->linear_plan = linear_plan;
    backend->linear_forward = linear_forward;
    backend->linear_backward = ref_linear_backward;
    backend->variant.linear = "ref";
}
