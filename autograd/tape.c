/* Recording: nodes, tensors, and the rule that a tensor has one consumer. */
#include "autograd/tape.h"

#include <stdio.h>
#include <string.h>

#include "autograd/tape_internal.h"
#include "core/memory.h"

const char *node_kind_name(NodeKind kind) {
    static const char *const names[] = {"embed", "norm", "linear", "rope", "attention", "gate", "fake_rows", "head"};
    return names[kind];
}

Status tape_create(Tape **tape, const TapeOptions *options, Error *err) {
    if (options->rows <= 0) FAIL("a tape needs a capacity of at least one row, got %lld", (long long)options->rows);
    if (options->supervised < 0 || options->supervised > options->rows)
        FAIL("the capacity for supervised rows must lie in 0..%lld, got %lld", (long long)options->rows,
             (long long)options->supervised);
    if (options->stashed > 0 && options->backend->stash == NULL)
        FAIL("inputs of recomputed layers can lie in host memory only beside a device, and %s has no other memory",
             options->backend->name);
    Tape *t = memory_calloc(1, sizeof *t);
    t->options = *options;
    t->backend = *options->backend;
    t->options.backend = &t->backend;
    t->segment = -1;
    *tape = t;
    return OK;
}

void tape_free(Tape *tape) {
    if (tape == NULL) return;
    memory_free(tape->nodes);
    memory_free(tape->tensors);
    memory_free(tape->instructions);
    memory_free(tape->areas);
    memory_free(tape->saved);
    memory_free(tape->checkpoints);
    memory_free(tape);
}

void tape_segment(Tape *tape, int32_t segment) {
    tape->segment = segment;
}

static Status add_node(Tape *tape, NodeKind kind, const char *name, Node **out, Error *err) {
    if (tape->finished || tape->has_head) FAIL("%s: the tape is complete, nothing more can be recorded", name);
    if (tape->node_count == tape->node_capacity) {
        tape->node_capacity = tape->node_capacity ? 2 * tape->node_capacity : 64;
        tape->nodes = memory_resize(tape->nodes, (size_t)tape->node_capacity * sizeof *tape->nodes);
    }
    Node *node = &tape->nodes[tape->node_count++];
    memset(node, 0, sizeof *node);
    node->kind = kind;
    node->segment = tape->segment;
    (void)snprintf(node->name, sizeof node->name, "%s", name);
    for (int i = 0; i < LINEAR_GROUP_MAX; i++)
        node->weight[i] = node->bias[i] = WEIGHT_NONE;
    *out = node;
    return OK;
}

/* Makes this (the newest) node the one consumer of `id`, which must have the wanted width when that is not 0. */
static Status take_input(Tape *tape, Node *node, TensorId id, int64_t columns, Error *err) {
    if (id < 0 || id >= tape->tensor_count) FAIL("%s: input is not a tensor of this tape", node->name);
    Tensor *tensor = &tape->tensors[id];
    if (tensor->consumer >= 0)
        FAIL("%s: its input already feeds %s; a tensor has one consumer", node->name, tape->nodes[tensor->consumer].name);
    int strided =
        node->kind == NODE_ROPE || node->kind == NODE_ATTENTION || node->kind == NODE_GATE || node->kind == NODE_FAKE_ROWS;
    if (!strided && tape_stride(tape, id) != 0)
        FAIL("%s: %s has its result side by side with others, which only attention, RoPE, a gate and rounding read", node->name,
             tape->nodes[tensor->producer].name);
    if (columns != 0 && tensor->columns != columns)
        FAIL("%s: want an input of %lld columns, got %lld from %s", node->name, (long long)columns, (long long)tensor->columns,
             tape->nodes[tensor->producer].name);
    tensor->consumer = tape->node_count - 1;
    node->in[node->inputs++] = id;
    return OK;
}

static TensorId make_output(Tape *tape, Node *node, int64_t columns, int requires_grad) {
    if (tape->tensor_count == tape->tensor_capacity) {
        tape->tensor_capacity = tape->tensor_capacity ? 2 * tape->tensor_capacity : 128;
        tape->tensors = memory_resize(tape->tensors, (size_t)tape->tensor_capacity * sizeof *tape->tensors);
    }
    TensorId id = tape->tensor_count++;
    tape->tensors[id] = (Tensor){.columns = columns,
                                 .producer = tape->node_count - 1,
                                 .consumer = -1,
                                 .alias = TENSOR_NONE,
                                 .requires_grad = requires_grad,
                                 .area = {-1, -1},
                                 .gradient = -1};
    node->out[node->outputs++] = id;
    return id;
}

static int needs_grad(const Tape *tape, TensorId id) {
    return tape->options.mode == TAPE_TRAIN && tape->tensors[id].requires_grad;
}

static int trained(const Tape *tape, WeightRef ref) {
    return tape->options.mode == TAPE_TRAIN && ref.weight >= 0 && ref.gradient >= 0;
}

Status tape_embed(Tape *tape, const char *name, WeightRef table, int64_t vocab, int64_t hidden, TensorId *y, Error *err) {
    Node *node;
    TRY(add_node(tape, NODE_EMBED, name, &node, err));
    node->weight[0] = table;
    node->shape.embed =
        (EmbedShape){.rows = tape->options.rows, .vocab = vocab, .hidden = hidden, .train = trained(tape, table)};
    node->need_backward = node->shape.embed.train;
    *y = make_output(tape, node, hidden, node->need_backward);
    return tape->backend.embed_plan(&tape->options.exec, &node->shape.embed, &node->plan, err);
}

Status tape_norm(Tape *tape, const char *name, TensorId residual, TensorId x, WeightRef weight, double epsilon, TensorId *sum,
                 TensorId *y, Error *err) {
    Node *node;
    TRY(add_node(tape, NODE_NORM, name, &node, err));
    TRY(take_input(tape, node, residual, 0, err));
    int64_t hidden = tape->tensors[residual].columns;
    if (x != TENSOR_NONE) TRY(take_input(tape, node, x, hidden, err));
    int need_dx = needs_grad(tape, residual) || (x != TENSOR_NONE && needs_grad(tape, x));
    node->weight[0] = weight;
    node->shape.norm = (NormShape){.rows = tape->options.rows,
                                   .hidden = hidden,
                                   .epsilon = epsilon,
                                   .has_x = x != TENSOR_NONE,
                                   .train = trained(tape, weight),
                                   .need_dx = need_dx};
    node->need_backward = need_dx || node->shape.norm.train;
    *sum = make_output(tape, node, hidden, need_dx);
    if (x == TENSOR_NONE) tape->tensors[*sum].alias = residual;
    *y = make_output(tape, node, hidden, node->need_backward);
    return tape->backend.norm_plan(&tape->options.exec, &node->shape.norm, &node->plan, err);
}

Status tape_linear(Tape *tape, const char *name, TensorId x, const TapeLinear *members, int count, TensorId *y, Error *err) {
    Node *node;
    TRY(add_node(tape, NODE_LINEAR, name, &node, err));
    if (count < 1 || count > LINEAR_GROUP_MAX)
        FAIL("%s: a linear group has 1 to %d members, got %d", name, LINEAR_GROUP_MAX, count);
    TRY(take_input(tape, node, x, 0, err));
    LinearShape *shape = &node->shape.linear;
    *shape = (LinearShape){
        .rows = tape->options.rows, .in = tape->tensors[x].columns, .count = count, .need_dx = needs_grad(tape, x)};
    int any = shape->need_dx, joined = tape->backend.joined_groups && count > 1;
    for (int i = 0; i < count; i++) {
        LinearSpec *spec = &shape->linear[i];
        *spec = members[i].spec;
        spec->has_bias = members[i].bias.weight >= 0;
        spec->train_weight = trained(tape, members[i].weight);
        spec->train_bias = trained(tape, members[i].bias);
        node->weight[i] = members[i].weight;
        node->bias[i] = members[i].bias;
        node->lora_a[i] = members[i].lora_a;
        node->lora_b[i] = members[i].lora_b;
        if (spec->train_weight || spec->train_bias || spec->rank > 0 || members[i].weight.derived) any = 1;
        if (members[i].weight.derived) joined = 0; /* its source reads contiguous gradients */
    }
    node->need_backward = any && tape->options.mode == TAPE_TRAIN;
    for (int i = 0; joined && i < count; i++)
        shape->stride += members[i].spec.out;
    int64_t column = 0;
    for (int i = 0; i < count; i++) {
        y[i] = make_output(tape, node, members[i].spec.out, node->need_backward);
        tape->tensors[y[i]].stride = shape->stride;
        tape->tensors[y[i]].column = joined ? column : 0;
        column += members[i].spec.out;
    }
    return tape->backend.linear_plan(&tape->options.exec, shape, &node->plan, err);
}

/* The one stride of all inputs' gradients. */
static Status gradient_stride(const Tape *tape, const Node *node, int64_t *stride, Error *err) {
    *stride = tape_gradient_stride(tape, node->in[0]);
    for (int i = 1; i < node->inputs; i++)
        if (tape_gradient_stride(tape, node->in[i]) != *stride)
            FAIL("%s: its inputs come from different linear groups", node->name);
    return OK;
}

Status tape_rope(Tape *tape, const char *name, TensorId q, TensorId k, const RopeShape *shape, WeightRef q_norm,
                 WeightRef k_norm, TensorId *rq, TensorId *rk, Error *err) {
    Node *node;
    TRY(add_node(tape, NODE_ROPE, name, &node, err));
    TRY(take_input(tape, node, q, shape->heads * shape->head_dim, err));
    TRY(take_input(tape, node, k, shape->kv_heads * shape->head_dim, err));
    node->weight[0] = q_norm;
    node->weight[1] = k_norm;
    RopeShape *own = &node->shape.rope;
    *own = *shape;
    own->rows = tape->options.rows;
    own->has_norm = q_norm.weight >= 0;
    own->train_norm = trained(tape, q_norm);
    own->stride = tape_stride(tape, q);
    if (tape_stride(tape, k) != own->stride) FAIL("%s: q and k come from different linear groups", node->name);
    TRY(gradient_stride(tape, node, &own->gradient_stride, err));
    node->need_backward = needs_grad(tape, q) || needs_grad(tape, k) || own->train_norm;
    *rq = make_output(tape, node, shape->heads * shape->head_dim, node->need_backward);
    *rk = make_output(tape, node, shape->kv_heads * shape->head_dim, node->need_backward);
    /* In place, or q and k would be kept for v's sake. The norm's backward reads them. */
    node->in_place = own->stride > 0 && !own->has_norm && tape->nodes[tape->tensors[q].producer].segment == node->segment;
    if (node->in_place) {
        own->out_stride = own->stride;
        tape->tensors[*rq].alias = q;
        tape->tensors[*rk].alias = k;
    }
    return tape->backend.rope_plan(&tape->options.exec, own, &node->plan, err);
}

Status tape_attention(Tape *tape, const char *name, int32_t layer, TensorId q, TensorId k, TensorId v,
                      const AttentionShape *shape, TensorId *o, Error *err) {
    Node *node;
    TRY(add_node(tape, NODE_ATTENTION, name, &node, err));
    TRY(take_input(tape, node, q, shape->heads * shape->head_dim, err));
    TRY(take_input(tape, node, k, shape->kv_heads * shape->head_dim, err));
    TRY(take_input(tape, node, v, shape->kv_heads * shape->head_dim, err));
    node->layer = layer;
    AttentionShape *own = &node->shape.attention;
    *own = *shape;
    own->q_stride = tape_stride(tape, q);
    own->k_stride = tape_stride(tape, k);
    own->v_stride = tape_stride(tape, v);
    TRY(gradient_stride(tape, node, &own->gradient_stride, err));
    int cached = tape->options.mode == TAPE_GENERATE;
    own->rows = cached ? tape->options.cache_rows : tape->options.rows;
    node->need_backward = needs_grad(tape, q) || needs_grad(tape, k) || needs_grad(tape, v);
    *o = make_output(tape, node, shape->heads * shape->head_dim, node->need_backward);
    return tape->backend.attention_plan(&tape->options.exec, own, &node->plan, err);
}

Status tape_gate(Tape *tape, const char *name, GateKind kind, TensorId gate, TensorId up, TensorId *y, Error *err) {
    Node *node;
    TRY(add_node(tape, NODE_GATE, name, &node, err));
    TRY(take_input(tape, node, gate, 0, err));
    int64_t width = tape->tensors[gate].columns;
    TRY(take_input(tape, node, up, width, err));
    node->shape.gate = (GateShape){.rows = tape->options.rows, .width = width, .kind = kind, .stride = tape_stride(tape, gate)};
    if (tape_stride(tape, up) != node->shape.gate.stride) FAIL("%s: gate and up come from different linear groups", node->name);
    TRY(gradient_stride(tape, node, &node->shape.gate.gradient_stride, err));
    node->need_backward = needs_grad(tape, gate) || needs_grad(tape, up);
    *y = make_output(tape, node, width, node->need_backward);
    return tape->backend.gate_plan(&tape->options.exec, &node->shape.gate, &node->plan, err);
}

Status tape_fake_rows(Tape *tape, const char *name, TensorId x, const FakeRowsShape *shape, int64_t range, TensorId *y,
                      Error *err) {
    Node *node;
    TRY(add_node(tape, NODE_FAKE_ROWS, name, &node, err));
    TRY(take_input(tape, node, x, 0, err));
    int64_t columns = tape->tensors[x].columns;
    node->shape.fake = *shape;
    node->shape.fake.rows = tape->options.rows;
    node->shape.fake.columns = columns;
    node->shape.fake.stride = tape_stride(tape, x);
    node->shape.fake.gradient_stride = tape_gradient_stride(tape, x);
    node->range = range;
    node->need_backward = needs_grad(tape, x);
    *y = make_output(tape, node, columns, node->need_backward);
    return tape->backend.fake_rows_plan(&tape->options.exec, &node->shape.fake, &node->plan, err);
}

Status tape_head(Tape *tape, const char *name, TensorId x, WeightRef weight, WeightFormat format, int64_t vocab, Error *err) {
    Node *node;
    TRY(add_node(tape, NODE_HEAD, name, &node, err));
    TRY(take_input(tape, node, x, 0, err));
    node->weight[0] = weight;
    node->shape.head = (HeadShape){.rows = tape->options.rows,
                                   .hidden = tape->tensors[x].columns,
                                   .vocab = vocab,
                                   .supervised = tape->options.supervised,
                                   .format = format,
                                   .distill = tape->options.distill,
                                   .need_dx = needs_grad(tape, x),
                                   .train_weight = trained(tape, weight)};
    if (tape->options.mode == TAPE_TRAIN && !node->shape.head.need_dx && !node->shape.head.train_weight)
        FAIL("nothing in this model is trained");
    tape->has_head = 1;
    return tape->backend.head_plan(&tape->options.exec, &node->shape.head, &node->plan, err);
}

int node_backward_reads_input(const Node *node, int index) {
    switch (node->kind) {
        case NODE_NORM: return index == 0 && !node->shape.norm.has_x; /* the sum, under the residual's name */
        case NODE_LINEAR:
            for (int i = 0; i < node->shape.linear.count; i++)
                if (node->shape.linear.linear[i].rank > 0 || node->shape.linear.linear[i].train_weight ||
                    node->weight[i].derived)
                    return 1;
            return 0;
        case NODE_ROPE: return node->shape.rope.has_norm;
        case NODE_ATTENTION:
        case NODE_GATE: return 1;
        case NODE_EMBED:
        case NODE_FAKE_ROWS:
        case NODE_HEAD: break;
    }
    return 0;
}

int node_backward_reads_output(const Node *node, int index) {
    if (node->kind == NODE_NORM) return index == 0; /* the sum */
    return node->kind == NODE_ATTENTION;            /* o */
}
