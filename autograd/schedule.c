/* From the recorded nodes to a schedule, lifetimes and the arena's plan. */
#include <string.h>

#include "autograd/tape_internal.h"
#include "core/memory.h"

/* ---- areas ---------------------------------------------------------------------------------------------------------- */

int32_t new_area(Tape *tape, size_t bytes, int kind, int32_t at) {
    if (tape->area_count == tape->area_capacity) {
        tape->area_capacity = tape->area_capacity ? 2 * tape->area_capacity : 256;
        tape->areas = memory_resize(tape->areas, (size_t)tape->area_capacity * sizeof *tape->areas);
    }
    Area *area = &tape->areas[tape->area_count];
    memset(area, 0, sizeof *area);
    area->bytes = arena_align(bytes ? bytes : 1);
    area->first = area->last = at;
    area->kind = (unsigned)kind;
    return tape->area_count++;
}

void read_area(Tape *tape, int32_t area, int32_t at) {
    if (area >= 0 && tape->areas[area].last < at) tape->areas[area].last = at;
}

size_t value_bytes(const Tape *tape, const Tensor *tensor) {
    int64_t columns = tensor->stride != 0 ? tensor->stride : tensor->columns;
    return tape->backend.activation_bytes(tape->options.exec.act, tape->options.rows, columns);
}

static void write_value(Tape *tape, TensorId id, Pass pass, int32_t at) {
    TensorId root = tape_root(tape, id);
    int g = tape_generation(tape, root, pass);
    if (pass == PASS_RECOMPUTE && g == 0) { /* kept, and made again with the same bits because its siblings are needed */
        read_area(tape, tape->tensors[root].area[0], at);
        return;
    }
    TensorId first = tape->nodes[tape->tensors[root].producer].out[0];
    int joined = tape->tensors[root].stride != 0 && first != root; /* one area for all, taken by the first */
    int32_t area =
        joined ? tape->tensors[first].area[g] : new_area(tape, value_bytes(tape, &tape->tensors[root]), AREA_VALUE, at);
    tape->tensors[root].area[g] = area;
}

static void read_value(Tape *tape, TensorId id, Pass pass, int32_t at) {
    TensorId root = tape_root(tape, id);
    read_area(tape, tape->tensors[root].area[tape_generation(tape, root, pass)], at);
}

/* The gradients of a joined group lie in this one area. */
static void join_gradients(Tape *tape, TensorId member, int32_t area) {
    const Node *group = &tape->nodes[tape->tensors[member].producer];
    for (int i = 0; i < group->outputs; i++)
        tape->tensors[group->out[i]].gradient = area;
}

static void write_gradient(Tape *tape, TensorId id, int32_t at) {
    TensorId root = tape_gradient_root(tape, id);
    if (tape->tensors[root].stride == 0) {
        tape->tensors[id].gradient = new_area(tape, value_bytes(tape, &tape->tensors[id]), AREA_GRADIENT, at);
        return;
    }
    if (tape->tensors[root].gradient < 0)
        join_gradients(tape, root, new_area(tape, value_bytes(tape, &tape->tensors[root]), AREA_GRADIENT, at));
    read_area(tape, tape->tensors[root].gradient, at);
    tape->tensors[id].gradient = tape->tensors[root].gradient;
}

/* The gradient of `to` takes over the memory of `from`'s, which is read element by element before it is written. */
static void pass_gradient(Tape *tape, TensorId to, TensorId from, int32_t at) {
    int32_t area = tape->tensors[from].gradient;
    read_area(tape, area, at);
    tape->tensors[to].gradient = area;
}

/* The gradients of gate and up. In a joined group of these two they take the place of the values, which are dead then. */
static void gate_gradients(Tape *tape, const Node *node, int32_t at) {
    const Tensor *gate = &tape->tensors[node->in[0]], *up = &tape->tensors[node->in[1]];
    if (node->shape.gate.gradient_stride == 0) {
        pass_gradient(tape, node->in[0], node->out[0], at);
        write_gradient(tape, node->in[1], at);
    } else if (gate->stride != 0 && gate->producer == up->producer && tape->nodes[gate->producer].outputs == 2) {
        join_gradients(tape, node->in[0], gate->area[tape_generation(tape, node->in[0], PASS_BACKWARD)]);
    } else {
        write_gradient(tape, node->in[0], at);
        write_gradient(tape, node->in[1], at);
    }
}

/* ---- one instruction ------------------------------------------------------------------------------------------------ */

static void plan_forward(Tape *tape, int32_t index, Pass pass, int32_t at) {
    Node *node = &tape->nodes[index];
    int from_sum = pass == PASS_RECOMPUTE && node->from_sum;
    if (from_sum) {
        read_value(tape, node->out[0], pass, at);
    } else {
        for (int i = 0; i < node->inputs; i++)
            read_value(tape, node->in[i], pass, at);
    }
    for (int i = 0; i < node->outputs; i++) {
        int is_there = (i == 0 && from_sum) || tape->tensors[node->out[i]].alias != TENSOR_NONE;
        if (!is_there) write_value(tape, node->out[i], pass, at);
    }
    int keep_saved = pass == PASS_RECOMPUTE || !node->rerun;
    int g = pass == PASS_RECOMPUTE;
    tape->saved[index][g] = new_area(tape, node->plan.saved, AREA_SAVED, at);
    if (keep_saved && !g) tape->saved[index][1] = tape->saved[index][0];
    if (node->kind == NODE_HEAD && node->shape.head.need_dx) write_gradient(tape, node->in[0], at);
}

static void plan_backward(Tape *tape, int32_t index, int32_t at) {
    Node *node = &tape->nodes[index];
    for (int i = 0; i < node->inputs; i++)
        if (node_backward_reads_input(node, i)) read_value(tape, node->in[i], PASS_BACKWARD, at);
    for (int i = 0; i < node->outputs; i++) {
        if (node_backward_reads_output(node, i)) read_value(tape, node->out[i], PASS_BACKWARD, at);
        read_area(tape, tape->tensors[node->out[i]].gradient, at);
    }
    read_area(tape, tape->saved[index][1], at);
    switch (node->kind) {
        case NODE_NORM:
            if (!node->shape.norm.need_dx) break;
            if (tape->tensors[node->out[0]].gradient >= 0)
                pass_gradient(tape, node->in[0], node->out[0], at);
            else
                write_gradient(tape, node->in[0], at);
            if (node->inputs > 1) pass_gradient(tape, node->in[1], node->in[0], at);
            break;
        case NODE_LINEAR:
            if (node->shape.linear.need_dx) write_gradient(tape, node->in[0], at);
            break;
        case NODE_ROPE:
            pass_gradient(tape, node->in[0], node->out[0], at);
            pass_gradient(tape, node->in[1], node->out[1], at);
            break;
        case NODE_ATTENTION:
            for (int i = 0; i < 3; i++)
                write_gradient(tape, node->in[i], at);
            break;
        case NODE_GATE: gate_gradients(tape, node, at); break;
        case NODE_FAKE_ROWS: pass_gradient(tape, node->in[0], node->out[0], at); break;
        case NODE_EMBED:
        case NODE_HEAD: break;
    }
}

/* The weights of a linear are made ready while the linear or the head before it runs, so two groups are in memory at a time. */
static int32_t plan_staged(Tape *tape, const Node *node, Pass pass, int32_t at) {
    int reads = node->kind == NODE_LINEAR && (pass != PASS_BACKWARD || node->shape.linear.need_dx);
    if (!reads || tape->backend.stage == NULL || node->plan.staged == 0) return -1;
    int32_t before = at > 0 ? at - 1 : 0;
    for (; before > 0; before--) {
        NodeKind kind = tape->nodes[tape->instructions[before].node].kind;
        if (kind == NODE_LINEAR || kind == NODE_HEAD) break;
    }
    int32_t area = new_area(tape, node->plan.staged, AREA_WORKSPACE, before);
    read_area(tape, area, at);
    tape->instructions[before].ahead = at;
    return area;
}

static void add_instruction(Tape *tape, int32_t index, Pass pass) {
    const Node *node = &tape->nodes[index];
    int32_t at = tape->instruction_count;
    Instruction next = {.node = index, .pass = pass, .ahead = -1};
    stash_schedule(tape, &next, at);
    if (pass == PASS_BACKWARD)
        plan_backward(tape, index, at);
    else
        plan_forward(tape, index, pass, at);
    size_t workspace = pass == PASS_BACKWARD ? node->plan.backward_workspace : node->plan.forward_workspace;
    Instruction *instruction = &tape->instructions[tape->instruction_count++];
    *instruction = next;
    instruction->staged = plan_staged(tape, node, pass, at);
    if (instruction->staged >= 0) workspace -= node->plan.staged;
    instruction->workspace = workspace ? new_area(tape, workspace, AREA_WORKSPACE, at) : -1;
}

/* Before it, what it reads and was not kept. */
static void add_backward(Tape *tape, int32_t index) {
    const Node *node = &tape->nodes[index];
    for (int i = 0; i < node->inputs; i++) {
        int32_t producer = tape->tensors[node->in[i]].producer;
        if (tape->nodes[producer].light && node_backward_reads_input(node, i)) add_instruction(tape, producer, PASS_RECOMPUTE);
    }
    add_instruction(tape, index, PASS_BACKWARD);
}

/* ---- the whole ------------------------------------------------------------------------------------------------------ */

/* Whether the backward pass reads a tensor in another segment than the one that makes it. */
static int read_across(const Tape *tape, TensorId id) {
    const Tensor *tensor = &tape->tensors[id];
    if (tensor->consumer < 0) return 0;
    const Node *consumer = &tape->nodes[tensor->consumer];
    if (consumer->segment == tape->nodes[tensor->producer].segment) return 0;
    if (consumer->rerun && !consumer->from_sum) return 1;
    for (int i = 0; i < consumer->inputs; i++)
        if (consumer->in[i] == id && node_backward_reads_input(consumer, i)) return 1;
    return 0;
}

/* A norm or a gate runs again by itself when the backward pass reads its result. A norm starts from its sum, which is kept. */
static void mark_light(Tape *tape, Node *node) {
    if (node->kind != NODE_NORM && node->kind != NODE_GATE) return;
    const Tensor *y = &tape->tensors[node->out[node->outputs - 1]];
    if (y->consumer < 0) return;
    const Node *reader = &tape->nodes[y->consumer];
    if (!reader->need_backward || !node_backward_reads_input(reader, 0)) return;
    node->rerun = node->light = 1;
    node->from_sum = node->kind == NODE_NORM && node->shape.norm.has_x;
}

/* A node of a recomputed segment runs again when something in its segment reads what it makes. */
static void mark_reruns(Tape *tape) {
    for (int32_t n = 0; n < tape->node_count; n++) {
        Node *node = &tape->nodes[n];
        if (tape->options.mode == TAPE_TRAIN && tape->options.recompute == RECOMPUTE_LIGHT) mark_light(tape, node);
        if (!tape_recomputed(tape, node)) continue;
        for (int i = 0; i < node->outputs; i++) {
            int32_t consumer = tape->tensors[node->out[i]].consumer;
            if (consumer >= 0 && tape->nodes[consumer].segment == node->segment) node->rerun = 1;
        }
        if (node->in_place) node->rerun = tape->nodes[tape->tensors[node->in[0]].producer].rerun; /* both, or neither */
        for (int i = 0; i < node->inputs; i++)
            if (node->kind == NODE_NORM && node->shape.norm.has_x &&
                tape->nodes[tape->tensors[node->in[i]].producer].segment != node->segment)
                node->from_sum = 1;
    }
    for (int32_t t = 0; t < tape->tensor_count; t++) {
        Tensor *tensor = &tape->tensors[t];
        const Node *producer = &tape->nodes[tensor->producer];
        tensor->kept = !producer->rerun || (producer->from_sum && producer->out[0] == t) || read_across(tape, t);
    }
    for (int32_t t = 0; t < tape->tensor_count; t++) { /* a joined group is kept when one of it is, under any name */
        const Tensor *tensor = &tape->tensors[tape_root(tape, t)];
        const Node *group = &tape->nodes[tensor->producer];
        for (int i = 0; tensor->stride != 0 && tape->tensors[t].kept && i < group->outputs; i++)
            tape->tensors[group->out[i]].kept = 1;
    }
}

static Status check_complete(const Tape *tape, Error *err) {
    if (!tape->has_head) FAIL("the tape has no head: there is nothing to compute");
    for (int32_t t = 0; t < tape->tensor_count; t++) {
        const Node *producer = &tape->nodes[tape->tensors[t].producer];
        int is_sum = producer->kind == NODE_NORM && producer->out[0] == t;
        if (tape->tensors[t].consumer < 0 && !is_sum) FAIL("%s: nothing reads what it computes", producer->name);
    }
    return OK;
}

static void measure_peak(Tape *tape) {
    TapePlan *plan = &tape->plan;
    size_t fullest = 0;
    for (int32_t at = 0; at < tape->instruction_count; at++) {
        size_t by_kind[4] = {0, 0, 0, 0};
        for (int32_t a = 0; a < tape->area_count; a++)
            if (tape->areas[a].first <= at && at <= tape->areas[a].last) by_kind[tape->areas[a].kind] += tape->areas[a].bytes;
        size_t total = by_kind[0] + by_kind[1] + by_kind[2] + by_kind[3];
        if (total <= fullest) continue;
        fullest = total;
        plan->activations = by_kind[AREA_VALUE];
        plan->saved = by_kind[AREA_SAVED];
        plan->gradients = by_kind[AREA_GRADIENT];
        plan->workspace = by_kind[AREA_WORKSPACE];
        plan->peak_node = tape->nodes[tape->instructions[at].node].name;
    }
}

Status tape_finish(Tape *tape, Error *err) {
    if (tape->finished) FAIL("the tape is already finished");
    TRY(check_complete(tape, err));
    mark_reruns(tape);
    stash_plan(tape);
    size_t nodes = (size_t)tape->node_count;
    tape->saved = memory_alloc(nodes * sizeof *tape->saved);
    memset(tape->saved, 0xFF, nodes * sizeof *tape->saved); /* -1 */
    tape->instructions = memory_alloc(3 * nodes * sizeof *tape->instructions);
    for (int32_t n = 0; n < tape->node_count; n++)
        add_instruction(tape, n, PASS_FORWARD);
    if (tape->options.mode == TAPE_TRAIN) {
        for (int32_t end = tape->node_count; end > 0;) {
            int32_t begin = end - 1;
            while (begin > 0 && tape->nodes[begin - 1].segment == tape->nodes[end - 1].segment)
                begin--;
            int any = 0;
            for (int32_t n = begin; n < end; n++)
                any |= tape->nodes[n].need_backward;
            for (int32_t n = begin; any && n < end; n++)
                if (tape->nodes[n].rerun && !tape->nodes[n].light) add_instruction(tape, n, PASS_RECOMPUTE);
            for (int32_t n = end; n-- > begin;)
                if (tape->nodes[n].need_backward) add_backward(tape, n);
            end = begin;
        }
    }
    layout_areas(tape->areas, tape->area_count, &tape->plan.arena);
    tape->batch_offset = tape->plan.arena;
    if (tape->backend.batch_bytes != NULL)
        tape->plan.batch = tape->backend.batch_bytes(tape->options.rows, tape->options.supervised);
    tape->plan.arena += tape->plan.batch;
    tape->plan.instructions = tape->instruction_count;
    measure_peak(tape);
    tape->finished = 1;
    return OK;
}

void tape_plan(const Tape *tape, TapePlan *plan) {
    *plan = tape->plan;
}

TapeInstruction tape_instruction(const Tape *tape, int64_t index) {
    const Instruction *instruction = &tape->instructions[index];
    const Node *node = &tape->nodes[instruction->node];
    return (TapeInstruction){node->name, node_kind_name(node->kind), instruction->pass};
}
