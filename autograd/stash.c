/* Checkpoints that wait for the backward pass in host memory.
 *
 *   forward    | layer 0      | layer 1        | layer 2 ...      a checkpoint leaves while its layer runs; its memory is given
 *   copies       out 0 -------> out 1 -------->                   back when the next layer begins
 *
 *   backward   | layer 3 again, backward | layer 2 again, ... |   a layer's comes back while the layer after it runs, into
 *   copies       in 2 -------------------> in 1 ------------->    memory of its own: two of them are there at a time
 *
 * The last layer's would have to come back as soon as it left, so it stays.
 */
#include "autograd/tape_internal.h"
#include "core/memory.h"

static size_t checkpoint_bytes(const Tape *tape) {
    return arena_align(value_bytes(tape, &tape->tensors[tape->checkpoints[0].tensor]));
}

/* The sum (or the embedding) that the first norm of a segment leaves for its second run; TENSOR_NONE where there is none. */
static TensorId checkpoint_of(const Tape *tape, int32_t begin, int32_t end) {
    int any = 0;
    for (int32_t n = begin; n < end; n++)
        any |= tape->nodes[n].need_backward;
    const Node *node = &tape->nodes[begin];
    if (!any || !node->rerun || node->kind != NODE_NORM) return TENSOR_NONE;
    TensorId root = tape_root(tape, node->out[0]);
    return tape->tensors[root].kept ? root : TENSOR_NONE;
}

void stash_plan(Tape *tape) {
    if (tape->options.stashed <= 0) return;
    tape->checkpoints = memory_alloc((size_t)tape->node_count * sizeof *tape->checkpoints);
    for (int32_t begin = 0, end; begin < tape->node_count; begin = end) {
        int32_t segment = tape->nodes[begin].segment;
        for (end = begin + 1; end < tape->node_count && tape->nodes[end].segment == segment;)
            end++;
        TensorId tensor = checkpoint_of(tape, begin, end);
        if (tensor != TENSOR_NONE) tape->checkpoints[tape->checkpoint_count++] = (Checkpoint){segment, tensor};
    }
    int64_t most = tape->checkpoint_count - 1;
    tape->stashed = (int32_t)(tape->options.stashed < most ? tape->options.stashed : most);
    if (tape->stashed <= 0) tape->stashed = 0;
    for (int32_t k = 0; k < tape->stashed; k++)
        tape->tensors[tape->checkpoints[k].tensor].stashed = 1;
    tape->plan.stashed = tape->stashed;
    if (tape->stashed > 0) tape->plan.stash = (size_t)tape->stashed * checkpoint_bytes(tape);
}

/* Number of the checkpoint whose segment begins with an instruction, or -1. */
static int32_t begun_here(const Tape *tape, const Instruction *instruction, int32_t at) {
    int32_t segment = tape->nodes[instruction->node].segment;
    if (at > 0) {
        const Instruction *before = &tape->instructions[at - 1];
        if (before->pass == instruction->pass && tape->nodes[before->node].segment == segment) return -1;
    }
    for (int32_t k = 0; k < tape->checkpoint_count; k++)
        if (tape->checkpoints[k].segment == segment) return k;
    return -1;
}

void stash_schedule(Tape *tape, Instruction *instruction, int32_t at) {
    instruction->settle = instruction->fetch = instruction->stash = -1;
    if (tape->stashed == 0 || instruction->pass == PASS_BACKWARD) return;
    int32_t k = begun_here(tape, instruction, at), before = k - 1 < tape->stashed ? k - 1 : -1;
    if (instruction->pass == PASS_RECOMPUTE) {
        if (k < tape->stashed) instruction->settle = k;
        if (k < 0 || before < 0) return;
        Tensor *tensor = &tape->tensors[tape->checkpoints[before].tensor];
        instruction->fetch = before;
        tensor->area[1] = new_area(tape, value_bytes(tape, tensor), AREA_VALUE, at);
        return;
    }
    if (k > 0 && before >= 0) {
        instruction->settle = before;
        read_area(tape, tape->tensors[tape->checkpoints[before].tensor].area[0], at);
    }
    for (int32_t c = 0; c < tape->stashed; c++)
        if (tape->tensors[tape->checkpoints[c].tensor].producer == instruction->node) instruction->stash = c;
}

/* ---- running --------------------------------------------------------------------------------------------------------- */

static void *on_device(const Tape *tape, const TapeRun *run, int32_t number, Pass pass) {
    int32_t area = tape->tensors[tape->checkpoints[number].tensor].area[pass != PASS_FORWARD];
    return (uint8_t *)run->arena + tape->areas[area].offset;
}

static void *in_host_memory(const Tape *tape, const TapeRun *run, int32_t number) {
    return (uint8_t *)run->stash + (size_t)number * checkpoint_bytes(tape);
}

Status stash_before(const Tape *tape, const TapeRun *run, const Instruction *instruction, Error *err) {
    const Backend *backend = &tape->backend;
    int32_t settle = instruction->settle, fetch = instruction->fetch;
    if (settle >= 0) TRY(backend->settle(run->exec, on_device(tape, run, settle, instruction->pass), err));
    if (fetch >= 0)
        TRY(backend->fetch(run->exec, on_device(tape, run, fetch, instruction->pass), in_host_memory(tape, run, fetch),
                           checkpoint_bytes(tape), err));
    return OK;
}

Status stash_after(const Tape *tape, const TapeRun *run, const Instruction *instruction, Error *err) {
    int32_t stash = instruction->stash;
    if (stash < 0) return OK;
    return tape->backend.stash(run->exec, in_host_memory(tape, run, stash), on_device(tape, run, stash, PASS_FORWARD),
                               checkpoint_bytes(tape), err);
}
