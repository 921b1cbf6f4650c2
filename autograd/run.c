/* Replaying a planned tape. */
#include <stdio.h>
#include <string.h>

#include "autograd/tape_internal.h"
#include "core/memory.h"
#include "core/text.h"

typedef struct Step {
    const Tape *tape;
    const TapeRun *run;
    const Node *node;
    Pass pass;
    void *saved, *workspace, *staged;
} Step;

static void *area_at(const Step *step, int32_t area) {
    return area < 0 ? NULL : (uint8_t *)step->run->arena + step->tape->areas[area].offset;
}

/* Where a member of a joined group begins. */
static void *member_at(const Step *step, int32_t area, int64_t column) {
    uint8_t *base = area_at(step, area);
    return base == NULL ? NULL : base + (size_t)column * dtype_size(step->tape->options.exec.act);
}

static void *value(const Step *step, TensorId id) {
    TensorId root = tape_root(step->tape, id);
    const Tensor *tensor = &step->tape->tensors[root];
    return member_at(step, tensor->area[tape_generation(step->tape, root, step->pass)], tensor->column);
}

static void *gradient(const Step *step, TensorId id) {
    return member_at(step, step->tape->tensors[id].gradient, step->tape->tensors[tape_gradient_root(step->tape, id)].column);
}

static const void *param_at(const Step *step, int64_t offset) {
    return (const uint8_t *)step->run->params + (size_t)offset * dtype_size(step->tape->options.exec.act);
}

static void *param_gradient(const Step *step, int64_t offset) {
    if (offset < 0) return NULL;
    size_t element = step->tape->options.exec.act == DTYPE_F64 ? sizeof(double) : sizeof(float);
    return (uint8_t *)step->run->gradients + (size_t)offset * element;
}

/* ---- weights: taken when a node's turn comes, given back after it ------------------------------------------------------ */

static Status acquire(const Step *step, WeightRef ref, WeightView *view, Error *err) {
    memset(view, 0, sizeof *view);
    if (ref.weight < 0) return OK;
    return step->run->weights->acquire(step->run->weights->self, ref.weight, step->pass, view, err);
}

static void release(const Step *step, WeightRef ref) {
    const WeightSource *source = step->run->weights;
    if (ref.weight >= 0 && source->release != NULL) source->release(source->self, ref.weight, step->pass);
}

/* ---- per kind ---------------------------------------------------------------------------------------------------------- */

static Status run_embed(const Step *s, Error *err) {
    const Backend *b = &s->tape->backend;
    const EmbedShape *shape = &s->node->shape.embed;
    if (s->pass == PASS_BACKWARD)
        return b->embed_backward(s->run->exec, shape, s->run->batch, gradient(s, s->node->out[0]),
                                 param_gradient(s, s->node->weight[0].gradient), s->workspace, err);
    WeightView table;
    TRY(acquire(s, s->node->weight[0], &table, err));
    Status status = b->embed_forward(s->run->exec, shape, s->run->batch, &table, value(s, s->node->out[0]), err);
    release(s, s->node->weight[0]);
    return status;
}

static Status run_norm(const Step *s, Error *err) {
    const Backend *b = &s->tape->backend;
    const Node *node = s->node;
    NormShape shape = node->shape.norm;
    WeightView weight;
    TRY(acquire(s, node->weight[0], &weight, err));
    Status status;
    if (s->pass == PASS_BACKWARD) {
        status = b->norm_backward(s->run->exec, &shape, s->run->batch, value(s, node->out[0]), weight.data, s->saved,
                                  gradient(s, node->out[1]), gradient(s, node->out[0]),
                                  shape.need_dx ? gradient(s, node->in[0]) : NULL,
                                  shape.train ? param_gradient(s, node->weight[0].gradient) : NULL, s->workspace, err);
    } else {
        const void *residual, *x = NULL;
        if (s->pass == PASS_RECOMPUTE && node->from_sum) {
            shape.has_x = 0;
            residual = value(s, node->out[0]);
        } else {
            residual = value(s, node->in[0]);
            if (shape.has_x) x = value(s, node->in[1]);
        }
        void *sum = shape.has_x ? value(s, node->out[0]) : NULL;
        status = b->norm_forward(s->run->exec, &shape, s->run->batch, residual, x, weight.data, sum, value(s, node->out[1]),
                                 s->saved, s->workspace, err);
    }
    release(s, node->weight[0]);
    return status;
}

static Status linear_backward(const Step *s, const LinearOperand *operands, Error *err) {
    const Node *node = s->node;
    const LinearShape *shape = &node->shape.linear;
    LinearGrad grads[LINEAR_GROUP_MAX];
    const void *dy[LINEAR_GROUP_MAX];
    memset(grads, 0, sizeof grads);
    const void *x = node_backward_reads_input(node, 0) ? value(s, node->in[0]) : NULL;
    for (int i = 0; i < shape->count; i++) {
        const LinearSpec *spec = &shape->linear[i];
        dy[i] = gradient(s, node->out[i]);
        if (spec->train_weight) grads[i].weight = param_gradient(s, node->weight[i].gradient);
        if (spec->train_bias) grads[i].bias = param_gradient(s, node->bias[i].gradient);
        if (spec->rank > 0) {
            grads[i].lora_a = param_gradient(s, node->lora_a[i]);
            grads[i].lora_b = param_gradient(s, node->lora_b[i]);
        }
        if (!node->weight[i].derived) continue;
        if (s->run->weights->backward == NULL)
            FAIL("its weight is made of parameters, and the weight source has no backward for it");
        TRY(s->run->weights->backward(s->run->weights->self, node->weight[i].weight, s->run->exec, s->run->batch, dy[i],
                                      shape->stride, x, err));
    }
    return s->tape->backend.linear_backward(s->run->exec, shape, s->run->batch, x, operands, s->saved, dy,
                                            shape->need_dx ? gradient(s, node->in[0]) : NULL, grads, s->workspace, err);
}

static Status run_linear(const Step *s, Error *err) {
    const Node *node = s->node;
    const LinearShape *shape = &node->shape.linear;
    LinearOperand operands[LINEAR_GROUP_MAX];
    memset(operands, 0, sizeof operands);
    Status status = OK;
    int taken = 0;
    for (; taken < shape->count && status == OK; taken++) {
        WeightView bias;
        LinearOperand *operand = &operands[taken];
        status = acquire(s, node->weight[taken], &operand->weight, err);
        if (status == OK) {
            status = acquire(s, node->bias[taken], &bias, err);
            if (status == OK)
                operand->bias = bias.data;
            else
                release(s, node->weight[taken]);
        }
        if (status != OK) break;
        if (shape->linear[taken].rank > 0) {
            operand->lora_a = param_at(s, node->lora_a[taken]);
            operand->lora_b = param_at(s, node->lora_b[taken]);
        }
        operand->staged = s->staged;
    }
    if (status == OK && s->pass == PASS_BACKWARD) {
        status = linear_backward(s, operands, err);
    } else if (status == OK) {
        void *y[LINEAR_GROUP_MAX];
        for (int i = 0; i < shape->count; i++)
            y[i] = value(s, node->out[i]);
        status = s->tape->backend.linear_forward(s->run->exec, shape, s->run->batch, value(s, node->in[0]), operands, y,
                                                 s->saved, s->workspace, err);
    }
    for (int i = 0; i < taken; i++) {
        release(s, node->weight[i]);
        release(s, node->bias[i]);
    }
    return status;
}

static Status run_rope(const Step *s, Error *err) {
    const Backend *b = &s->tape->backend;
    const Node *n = s->node;
    const RopeShape *shape = &n->shape.rope;
    WeightView qw, kw;
    TRY(acquire(s, n->weight[0], &qw, err));
    Status status = acquire(s, n->weight[1], &kw, err);
    if (status == OK && s->pass == PASS_BACKWARD) {
        const void *q = shape->has_norm ? value(s, n->in[0]) : NULL, *k = shape->has_norm ? value(s, n->in[1]) : NULL;
        status = b->rope_backward(s->run->exec, shape, s->run->batch, &s->run->rope, q, k, qw.data, kw.data, s->saved,
                                  gradient(s, n->out[0]), gradient(s, n->out[1]), gradient(s, n->in[0]), gradient(s, n->in[1]),
                                  shape->train_norm ? param_gradient(s, n->weight[0].gradient) : NULL,
                                  shape->train_norm ? param_gradient(s, n->weight[1].gradient) : NULL, s->workspace, err);
    } else if (status == OK) {
        status = b->rope_forward(s->run->exec, shape, s->run->batch, &s->run->rope, value(s, n->in[0]), value(s, n->in[1]),
                                 qw.data, kw.data, value(s, n->out[0]), value(s, n->out[1]), s->saved, s->workspace, err);
    }
    release(s, n->weight[0]);
    release(s, n->weight[1]);
    return status;
}

static Status run_attention(const Step *s, Error *err) {
    const Backend *b = &s->tape->backend;
    const Node *n = s->node;
    const AttentionShape *shape = &n->shape.attention;
    const void *q = value(s, n->in[0]), *k = value(s, n->in[1]), *v = value(s, n->in[2]);
    void *o = value(s, n->out[0]);
    if (s->pass == PASS_BACKWARD)
        return b->attention_backward(s->run->exec, shape, s->run->batch, q, k, v, o, s->saved, gradient(s, n->out[0]),
                                     gradient(s, n->in[0]), gradient(s, n->in[1]), gradient(s, n->in[2]), s->workspace, err);
    if (s->tape->options.mode == TAPE_GENERATE)
        return b->attention_cached(s->run->exec, shape, s->run->batch, q, k, v, &s->run->cache[n->layer], s->run->past, o,
                                   s->workspace, err);
    return b->attention_forward(s->run->exec, shape, s->run->batch, q, k, v, o, s->saved, s->workspace, err);
}

static Status run_gate(const Step *s, Error *err) {
    const Backend *b = &s->tape->backend;
    const Node *n = s->node;
    const GateShape *shape = &n->shape.gate;
    const void *gate = value(s, n->in[0]), *up = value(s, n->in[1]);
    if (s->pass == PASS_BACKWARD)
        return b->gate_backward(s->run->exec, shape, s->run->batch, gate, up, gradient(s, n->out[0]), gradient(s, n->in[0]),
                                gradient(s, n->in[1]), err);
    return b->gate_forward(s->run->exec, shape, s->run->batch, gate, up, value(s, n->out[0]), err);
}

static Status observe(const Step *s, const Node *n, int64_t columns, Error *err) {
    const Backend *b = &s->tape->backend;
    DType act = s->tape->options.exec.act;
    int64_t count = s->run->batch->tokens * columns;
    const void *x = value(s, n->in[0]);
    void *copy = NULL;
    Status status = OK;
    if (b->on_device) {
        copy = memory_alloc((size_t)count * dtype_size(act));
        status = b->copy_out(s->run->exec, copy, x, (size_t)count * dtype_size(act), err);
    }
    if (status == OK) s->run->observe(s->run->observe_self, n->range, copy != NULL ? copy : x, act, count);
    memory_free(copy);
    return status;
}

static Status run_fake_rows(const Step *s, Error *err) {
    const Backend *b = &s->tape->backend;
    const Node *n = s->node;
    FakeRowsShape shape = n->shape.fake;
    if (n->range >= 0 && s->run->ranges != NULL) shape.scale = s->run->ranges[n->range];
    if (n->range >= 0 && s->run->observe != NULL && s->pass == PASS_FORWARD) TRY(observe(s, n, shape.columns, err));
    if (s->run->unrounded || s->run->observe != NULL) shape.bits = 0;
    if (s->pass == PASS_BACKWARD)
        return b->fake_rows_backward(s->run->exec, &shape, s->run->batch, s->saved, gradient(s, n->out[0]),
                                     gradient(s, n->in[0]), err);
    return b->fake_rows_forward(s->run->exec, &shape, s->run->batch, value(s, n->in[0]), value(s, n->out[0]), s->saved,
                                s->workspace, err);
}

static Status run_head(const Step *s, Error *err) {
    const Backend *b = &s->tape->backend;
    const Node *n = s->node;
    const HeadShape *shape = &n->shape.head;
    WeightView weight;
    if (s->run->final != NULL) { /* activations are row-major, and rows in use lie first */
        size_t bytes = (size_t)(s->run->batch->tokens * shape->hidden) * dtype_size(s->tape->options.exec.act);
        const void *x = value(s, n->in[0]);
        if (b->on_device) return b->copy_within(s->run->exec, s->run->final, x, bytes, err);
        memcpy(s->run->final, x, bytes);
        return OK;
    }
    TRY(acquire(s, n->weight[0], &weight, err));
    Status status;
    if (s->tape->options.mode == TAPE_GENERATE)
        status =
            b->head_logits(s->run->exec, shape, s->run->batch, value(s, n->in[0]), &weight, s->run->logits, s->workspace, err);
    else
        status = b->head_loss(s->run->exec, shape, s->run->batch, value(s, n->in[0]), &weight, s->run->loss_sum, s->run->nll,
                              shape->need_dx ? gradient(s, n->in[0]) : NULL,
                              shape->train_weight ? param_gradient(s, n->weight[0].gradient) : NULL, s->workspace, err);
    release(s, n->weight[0]);
    return status;
}

static Status run_node(const Step *step, Error *err) {
    switch (step->node->kind) {
        case NODE_EMBED: return run_embed(step, err);
        case NODE_NORM: return run_norm(step, err);
        case NODE_LINEAR: return run_linear(step, err);
        case NODE_ROPE: return run_rope(step, err);
        case NODE_ATTENTION: return run_attention(step, err);
        case NODE_GATE: return run_gate(step, err);
        case NODE_FAKE_ROWS: return run_fake_rows(step, err);
        case NODE_HEAD: return run_head(step, err);
    }
    FAIL("%s: unknown kind of node", step->node->name);
}

/* ---- watching for NaN and Inf ------------------------------------------------------------------------------------------- */

static Status watch(const Step *s, Error *err) {
    static const char *const passes[] = {"forward", "recomputation", "backward"};
    const Node *n = s->node;
    int64_t rows = s->run->batch->tokens;
    int backward = s->pass == PASS_BACKWARD || n->kind == NODE_HEAD; /* the head's gradient comes with its forward */
    int count = backward ? n->inputs : n->outputs;
    if (s->tape->backend.finish != NULL) TRY(s->tape->backend.finish(s->run->exec, err)); /* the loss is there */
    int bad = n->kind == NODE_HEAD && s->run->loss_sum != NULL && !(*s->run->loss_sum - *s->run->loss_sum == 0.0);
    for (int i = 0; i < count && !bad; i++) {
        TensorId id = backward ? n->in[i] : n->out[i];
        const uint8_t *data = backward ? gradient(s, id) : value(s, id);
        if (data == NULL) continue;
        const Tensor *tensor = &s->tape->tensors[backward ? tape_gradient_root(s->tape, id) : tape_root(s->tape, id)];
        int64_t columns = tensor->columns;
        if (tensor->stride != 0) { /* the whole rows that it lies in: all of a group is written at once */
            data -= (size_t)tensor->column * dtype_size(s->tape->options.exec.act);
            columns = tensor->stride;
        }
        bad = s->tape->backend.find_nonfinite(s->run->exec, data, rows, columns) >= 0;
    }
    if (!bad) return OK;
    s->run->watch->found = 1;
    (void)snprintf(s->run->watch->text, sizeof s->run->watch->text, "%s of %s", passes[s->pass], n->name);
    return OK;
}

static Status check_batch(const Tape *tape, const TapeRun *run, Error *err) {
    const Batch *batch = run->batch;
    if (!tape->finished) FAIL("the tape was not finished before it was run");
    if (batch->tokens < 1 || batch->tokens > tape->options.rows)
        FAIL("a micro-batch of %lld tokens does not fit a tape planned for %lld", (long long)batch->tokens,
             (long long)tape->options.rows);
    if (batch->supervised < 0 || batch->supervised > tape->options.supervised)
        FAIL("a micro-batch with %lld supervised rows does not fit a tape planned for %lld", (long long)batch->supervised,
             (long long)tape->options.supervised);
    if (tape->plan.stash > 0 && run->stash == NULL) FAIL("the tape was planned with host memory, and is run without");
    if (batch->parts != NULL && tape->backend.on_device)
        FAIL("several sequences through a cache: only the CPU has that; generate one at a time");
    if (tape->options.mode == TAPE_GENERATE && batch->parts == NULL && run->past + batch->tokens > tape->options.cache_rows)
        FAIL("%lld tokens do not fit a key/value cache of %lld", (long long)(run->past + batch->tokens),
             (long long)tape->options.cache_rows);
    return OK;
}

/* After the last instruction of a segment's forward or backward pass: says so. */
static Status end_segment(const Tape *tape, const TapeRun *run, int32_t at, Error *err) {
    const Instruction *now = &tape->instructions[at];
    int32_t segment = tape->nodes[now->node].segment;
    if (at + 1 < tape->instruction_count) {
        const Instruction *next = now + 1;
        int same_pass = (now->pass == PASS_FORWARD) == (next->pass == PASS_FORWARD);
        if (same_pass && tape->nodes[next->node].segment == segment) return OK;
    }
    return run->segment_done(run->segment_self, segment, now->pass, err);
}

static Step step_of(const Tape *tape, const TapeRun *run, int32_t at) {
    const Instruction *instruction = &tape->instructions[at];
    Step step = {.tape = tape, .run = run, .node = &tape->nodes[instruction->node], .pass = instruction->pass};
    step.saved = area_at(&step, tape->saved[instruction->node][instruction->pass != PASS_FORWARD]);
    step.workspace = area_at(&step, instruction->workspace);
    step.staged = area_at(&step, instruction->staged);
    return step;
}

/* Has the weights of instruction `at` made ready. */
static Status stage(const Tape *tape, const TapeRun *run, int32_t at, Error *err) {
    Step step = step_of(tape, run, at);
    const LinearShape *shape = &step.node->shape.linear;
    LinearOperand operands[LINEAR_GROUP_MAX];
    memset(operands, 0, sizeof operands);
    int taken = 0;
    Status status = OK;
    for (; taken < shape->count && status == OK; taken += status == OK)
        status = acquire(&step, step.node->weight[taken], &operands[taken].weight, err);
    if (status == OK) status = tape->backend.stage(run->exec, shape, operands, step.staged, err);
    for (int i = 0; i < taken; i++)
        release(&step, step.node->weight[i]);
    if (status != OK) error_prefix(err, "%s", step.node->name);
    return status;
}

/* What is to be made ready when instruction `at` begins: the weights of a later one, or its own where they move about. */
static Status stage_from(const Tape *tape, const TapeRun *run, int32_t at, Error *err) {
    const Instruction *instruction = &tape->instructions[at];
    if (!run->weights->fixed) return instruction->staged >= 0 ? stage(tape, run, at, err) : OK;
    return instruction->ahead >= 0 ? stage(tape, run, instruction->ahead, err) : OK;
}

/* Instructions [first, last). */
static Status run_instructions(const Tape *tape, const TapeRun *run, int32_t first, int32_t last, Error *err) {
    const Backend *backend = &tape->backend;
    for (int32_t at = first; at < last; at++) {
        Step step = step_of(tape, run, at);
        TRY(stash_before(tape, run, &tape->instructions[at], err));
        TRY(stage_from(tape, run, at, err));
        double begin = run->profile != NULL ? clock_seconds() : 0.0;
        Status status = run_node(&step, err);
        if (status != OK) {
            error_prefix(err, "%s", step.node->name);
            return status;
        }
        TRY(stash_after(tape, run, &tape->instructions[at], err));
        if (run->profile != NULL) {
            if (backend->finish != NULL) TRY(backend->finish(run->exec, err));
            run->profile[at] += clock_seconds() - begin;
        }
        if (run->watch != NULL) {
            TRY(watch(&step, err));
            if (run->watch->found) return OK;
        }
        if (run->segment_done != NULL) TRY(end_segment(tape, run, at, err));
    }
    return OK;
}

/* The same, from a backend's recording where it has one. */
static Status run_part(const Tape *tape, const TapeRun *run, int part, int32_t first, int32_t last, Error *err) {
    const Backend *backend = &tape->backend;
    /* with its size, so that a tape that was freed is not taken for one that came to lie at its address */
    uintptr_t size = (uintptr_t)tape->plan.arena + ((uintptr_t)tape->instruction_count << 40);
    const void *const key[PART_KEYS] = {tape, run->arena, run->params, run->gradients, run->stash, (const void *)size};
    int done = 0;
    if (first == last) return OK;
    TRY(backend->part_begin(run->exec, key, part + 2 * run->recording, &done, err));
    if (done) return OK;
    Status status = run_instructions(tape, run, first, last, err);
    Status ended = backend->part_end(run->exec, status == OK ? err : NULL);
    return status != OK ? status : ended;
}

/* Everything but the head is the same in every micro-batch: the head's work depends on how many rows have a loss. */
static Status run_parts(const Tape *tape, const TapeRun *run, Error *err) {
    int32_t head = 0;
    while (tape->nodes[tape->instructions[head].node].kind != NODE_HEAD)
        head++;
    TRY(run_part(tape, run, 0, 0, head, err));
    TRY(run_instructions(tape, run, head, head + 1, err));
    return run_part(tape, run, 1, head + 1, tape->instruction_count, err);
}

Status tape_run(const Tape *tape, const TapeRun *run, Error *err) {
    const Backend *backend = &tape->backend;
    int whole = tape->options.mode != TAPE_GENERATE;
    TRY(check_batch(tape, run, err));
    if (backend->begin != NULL)
        TRY(backend->begin(run->exec, run->batch, tape->options.rows, tape->options.supervised, run->past, whole,
                           (uint8_t *)run->arena + tape->batch_offset, err));
    int watched = run->profile != NULL || run->watch != NULL || run->segment_done != NULL || run->observe != NULL ||
                  run->recording < 0; /* between instructions, or never the same twice */
    if (backend->part_begin != NULL && whole && !watched)
        TRY(run_parts(tape, run, err));
    else
        TRY(run_instructions(tape, run, 0, tape->instruction_count, err));
    return backend->finish != NULL ? backend->finish(run->exec, err) : OK;
}
