#include "train/calibrate_layer.h"

#include <math.h>
#include <string.h>

typedef struct Shapes {
    NormShape norm;
    LinearShape attention, output, mlp, down;
    RopeShape rope;
    AttentionShape attend;
    GateShape gate;
} Shapes;

struct LayerRun {
    const ModelConfig *config;
    const Backend *backend;
    const Exec *exec;
    int64_t rows;
    Shapes shapes;
    RopeMemory rope;
    Arena arena;
    float *normed, *q, *k, *v, *rq, *rk, *attended, *sum, *added, *gate, *up, *gated; /* FP32 [rows, width of each] */
    void *saved, *workspace;
    size_t saved_bytes, workspace_bytes;
};

LayerWeight layer_input_linears(LayerInput input, int *count) {
    static const struct {
        LayerWeight first;
        int count;
    } linears[LAYER_INPUTS] = {{LAYER_Q, 3}, {LAYER_O, 1}, {LAYER_GATE, 2}, {LAYER_DOWN, 1}};
    *count = linears[input].count;
    return linears[input].first;
}

int64_t layer_input_width(const ModelConfig *config, LayerInput input) {
    switch (input) {
        case INPUT_OUTPUT: return config->heads * config->head_dim;
        case INPUT_DOWN: return config->intermediate;
        case INPUT_ATTENTION:
        case INPUT_MLP:
        case LAYER_INPUTS: break;
    }
    return config->hidden;
}

/* ---- shapes and memory ------------------------------------------------------------------------------------------------------- */

static LinearShape group_shape(const ModelConfig *config, LayerInput input, int64_t rows) {
    LinearShape shape = {.rows = rows, .in = layer_input_width(config, input)};
    LayerWeight first = layer_input_linears(input, &shape.count);
    for (int i = 0; i < shape.count; i++) {
        int32_t id = weight_id(0, (LayerWeight)((int)first + i));
        int64_t out = 0, cols, ignored;
        (void)weight_describe(config, id, NULL, 0, &out, &cols);
        int bias = weight_describe(config, id + (int32_t)LAYER_Q_BIAS, NULL, 0, &ignored, &cols);
        shape.linear[i] = (LinearSpec){.out = out, .format = WEIGHT_F32, .has_bias = bias};
    }
    return shape;
}

static void make_shapes(LayerRun *run, int64_t longest) {
    const ModelConfig *c = run->config;
    Shapes *s = &run->shapes;
    s->norm = (NormShape){.rows = run->rows, .hidden = c->hidden, .epsilon = c->rms_eps};
    s->attention = group_shape(c, INPUT_ATTENTION, run->rows);
    s->output = group_shape(c, INPUT_OUTPUT, run->rows);
    s->mlp = group_shape(c, INPUT_MLP, run->rows);
    s->down = group_shape(c, INPUT_DOWN, run->rows);
    s->rope = (RopeShape){.rows = run->rows,
                          .heads = c->heads,
                          .kv_heads = c->kv_heads,
                          .head_dim = c->head_dim,
                          .table_rows = longest,
                          .has_norm = c->qk_norm,
                          .epsilon = c->rms_eps};
    s->attend = (AttentionShape){.rows = run->rows,
                                 .heads = c->heads,
                                 .kv_heads = c->kv_heads,
                                 .head_dim = c->head_dim,
                                 .scale = (float)(1.0 / sqrt((double)c->head_dim))};
    s->gate = (GateShape){.rows = run->rows, .width = c->intermediate, .kind = c->gelu_gate ? GATE_GELU_TANH : GATE_SILU};
}

static void at_least(LayerRun *run, const OpPlan *plan) {
    if (plan->saved > run->saved_bytes) run->saved_bytes = plan->saved;
    if (plan->forward_workspace > run->workspace_bytes) run->workspace_bytes = plan->forward_workspace;
}

static Status plan(LayerRun *run, Error *err) {
    const Backend *b = run->backend;
    const ExecConfig *config = &run->exec->config;
    Shapes *s = &run->shapes;
    const LinearShape *linears[LAYER_INPUTS] = {&s->attention, &s->output, &s->mlp, &s->down};
    OpPlan p;
    TRY(b->norm_plan(config, &s->norm, &p, err));
    at_least(run, &p);
    for (int i = 0; i < LAYER_INPUTS; i++) {
        TRY(b->linear_plan(config, linears[i], &p, err));
        at_least(run, &p);
    }
    TRY(b->rope_plan(config, &s->rope, &p, err));
    at_least(run, &p);
    for (int64_t layer = 0; layer < run->config->layers; layer++) {
        s->attend.window = run->config->window[layer];
        TRY(b->attention_plan(config, &s->attend, &p, err));
        at_least(run, &p);
    }
    TRY(b->gate_plan(config, &s->gate, &p, err));
    at_least(run, &p);
    return OK;
}

static Status take(LayerRun *run, Arena *arena, Error *err) {
    const ModelConfig *c = run->config;
    int64_t queries = c->heads * c->head_dim, keys = c->kv_heads * c->head_dim;
    const struct {
        float **to;
        int64_t width;
    } buffers[] = {{&run->normed, c->hidden},
                   {&run->q, queries},
                   {&run->k, keys},
                   {&run->v, keys},
                   {&run->rq, queries},
                   {&run->rk, keys},
                   {&run->attended, queries},
                   {&run->sum, c->hidden},
                   {&run->added, c->hidden},
                   {&run->gate, c->intermediate},
                   {&run->up, c->intermediate},
                   {&run->gated, c->intermediate}};
    void *area;
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) {
        TRY(arena_take(arena, (size_t)(run->rows * buffers[i].width) * sizeof(float), &area, err));
        *buffers[i].to = area;
    }
    TRY(arena_take(arena, run->saved_bytes, &run->saved, err));
    return arena_take(arena, run->workspace_bytes, &run->workspace, err);
}

static Status open_memory(LayerRun *run, int64_t longest, Error *err) {
    Arena count;
    make_shapes(run, longest);
    TRY(plan(run, err));
    arena_count(&count, "one layer");
    TRY(take(run, &count, err));
    TRY(arena_create(&run->arena, "one layer", count.used, err));
    TRY(take(run, &run->arena, err));
    return rope_memory_create(&run->rope, run->config, longest, longest, err);
}

Status layer_run_create(LayerRun **out, const ModelConfig *config, const Backend *backend, const Exec *exec, int64_t rows,
                        int64_t longest, Error *err) {
    LayerRun *run = memory_calloc(1, sizeof *run);
    run->config = config;
    run->backend = backend;
    run->exec = exec;
    run->rows = rows;
    Status status = open_memory(run, longest, err);
    if (status != OK) {
        layer_run_free(run);
        run = NULL;
    }
    *out = run;
    return status;
}

void layer_run_free(LayerRun *run) {
    if (run == NULL) return;
    rope_memory_free(&run->rope);
    arena_free(&run->arena);
    memory_free(run);
}

size_t layer_run_bytes(const LayerRun *run) {
    return run->arena.capacity + run->rope.arena.capacity;
}

/* ---- running ----------------------------------------------------------------------------------------------------------------- */

static Status run_linears(const LayerRun *run, const LayerValues *values, const Batch *batch, LayerInput input,
                          const LinearShape *shape, const float *x, void *const *y, Error *err) {
    LinearOperand operands[LINEAR_GROUP_MAX];
    int count;
    LayerWeight first = layer_input_linears(input, &count);
    memset(operands, 0, sizeof operands);
    for (int i = 0; i < count; i++) {
        int kind = (int)first + i;
        operands[i].weight =
            (WeightView){.format = WEIGHT_F32, .rows = shape->linear[i].out, .cols = shape->in, .data = values->weight[kind]};
        operands[i].bias = values->weight[kind + LAYER_Q_BIAS];
    }
    return run->backend->linear_forward(run->exec, shape, batch, x, operands, y, run->saved, run->workspace, err);
}

static Status run_norm(const LayerRun *run, const Batch *batch, const float *x, const float *weight, Error *err) {
    return run->backend->norm_forward(run->exec, &run->shapes.norm, batch, x, NULL, weight, NULL, run->normed, run->saved,
                                      run->workspace, err);
}

static Status run_attention(LayerRun *run, int64_t layer, const LayerValues *values, const Batch *batch, Error *err) {
    const Backend *b = run->backend;
    void *qkv[] = {run->q, run->k, run->v};
    TRY(run_linears(run, values, batch, INPUT_ATTENTION, &run->shapes.attention, run->normed, qkv, err));
    TRY(b->rope_forward(run->exec, &run->shapes.rope, batch, &run->rope.table, run->q, run->k, values->weight[LAYER_Q_NORM],
                        values->weight[LAYER_K_NORM], run->rq, run->rk, run->saved, run->workspace, err));
    run->shapes.attend.window = run->config->window[layer];
    return b->attention_forward(run->exec, &run->shapes.attend, batch, run->rq, run->rk, run->v, run->attended, run->saved,
                                run->workspace, err);
}

/* to [tokens, hidden] = a + b; to may be either. */
static void add(const LayerRun *run, const Batch *batch, float *to, const float *a, const float *b) {
    int64_t count = batch->tokens * run->config->hidden;
    for (int64_t i = 0; i < count; i++)
        to[i] = a[i] + b[i];
}

static Status show(LayerSink *sink, void *context, LayerInput input, const Batch *batch, const float *x, Error *err) {
    return sink != NULL ? sink(context, input, batch, x, err) : OK;
}

Status layer_run(LayerRun *run, int64_t layer, const LayerValues *values, const Batch *batch, float *h, LayerInput last,
                 LayerSink *sink, void *context, Error *err) {
    void *added = run->added, *gate_up[] = {run->gate, run->up};
    TRY(run_norm(run, batch, h, values->weight[LAYER_INPUT_NORM], err));
    TRY(show(sink, context, INPUT_ATTENTION, batch, run->normed, err));
    if (last == INPUT_ATTENTION) return OK;
    TRY(run_attention(run, layer, values, batch, err));
    TRY(show(sink, context, INPUT_OUTPUT, batch, run->attended, err));
    if (last == INPUT_OUTPUT) return OK;
    TRY(run_linears(run, values, batch, INPUT_OUTPUT, &run->shapes.output, run->attended, &added, err));
    add(run, batch, run->sum, h, run->added);
    TRY(run_norm(run, batch, run->sum, values->weight[LAYER_POST_NORM], err));
    TRY(show(sink, context, INPUT_MLP, batch, run->normed, err));
    if (last == INPUT_MLP) return OK;
    TRY(run_linears(run, values, batch, INPUT_MLP, &run->shapes.mlp, run->normed, gate_up, err));
    TRY(run->backend->gate_forward(run->exec, &run->shapes.gate, batch, run->gate, run->up, run->gated, err));
    TRY(show(sink, context, INPUT_DOWN, batch, run->gated, err));
    if (last == INPUT_DOWN) return OK;
    TRY(run_linears(run, values, batch, INPUT_DOWN, &run->shapes.down, run->gated, &added, err));
    add(run, batch, h, run->sum, run->added);
    return OK;
}
