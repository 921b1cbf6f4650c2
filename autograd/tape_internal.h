/* What recording, scheduling and replaying share. Private to autograd/. */
#ifndef NIBBLE_AUTOGRAD_TAPE_INTERNAL_H
#define NIBBLE_AUTOGRAD_TAPE_INTERNAL_H

#include "autograd/tape.h"

typedef enum NodeKind {
    NODE_EMBED,
    NODE_NORM,
    NODE_LINEAR,
    NODE_ROPE,
    NODE_ATTENTION,
    NODE_GATE,
    NODE_FAKE_ROWS,
    NODE_HEAD
} NodeKind;

#define NODE_MAX_TENSORS 3

typedef struct Node {
    NodeKind kind;
    char name[64];
    int32_t segment;
    int32_t layer; /* attention: its cache entry */
    int64_t range; /* fake_rows */
    int inputs, outputs;
    TensorId in[NODE_MAX_TENSORS], out[NODE_MAX_TENSORS];
    int need_backward;
    int rerun; /* runs again in the recomputation of its segment, or (light) alone before the backward pass of its reader */
    int light;
    int in_place; /* its results are other names of its inputs, whose memory it overwrites */
    int from_sum; /* norm that, run again, starts from its kept sum instead of adding once more */
    OpPlan plan;
    union {
        EmbedShape embed;
        NormShape norm;
        LinearShape linear;
        RopeShape rope;
        AttentionShape attention;
        GateShape gate;
        FakeRowsShape fake;
        HeadShape head;
    } shape;
    WeightRef weight[LINEAR_GROUP_MAX], bias[LINEAR_GROUP_MAX];
    int64_t lora_a[LINEAR_GROUP_MAX], lora_b[LINEAR_GROUP_MAX];
} Node;

/* Where a planned area lies; index into Tape.areas, -1 for none. */
typedef struct Area {
    size_t bytes, offset;
    int32_t first, last; /* instructions, both included */
    enum { AREA_VALUE, AREA_SAVED, AREA_GRADIENT, AREA_WORKSPACE } kind;
} Area;

typedef struct Tensor {
    int64_t columns;
    int64_t stride, column;     /* a member of a joined group: elements from row to row, and its first; else 0 */
    int32_t producer, consumer; /* nodes; consumer -1: none yet */
    TensorId alias;             /* another name of this tensor's memory, or TENSOR_NONE */
    int requires_grad;
    int kept;         /* survives from the forward pass to the backward pass */
    int stashed;      /* that in host memory */
    int32_t area[2];  /* value: [0] of the forward pass, [1] of the recomputation, or come back from host memory */
    int32_t gradient; /* area */
} Tensor;

typedef struct Instruction {
    int32_t node;
    Pass pass;
    int32_t workspace; /* area, or -1 */
    int32_t staged;    /* area of a linear's weights that the backend makes ready ahead, or -1 */
    int32_t ahead;     /* the instruction whose weights are made ready while this one runs, or -1 */
    /* numbers of checkpoints, or -1 (stash.c) */
    int32_t settle; /* whose copy is complete before this runs */
    int32_t fetch;  /* that starts to come back when this runs */
    int32_t stash;  /* that starts to leave when this has run */
} Instruction;

/* The tensor that a recomputed segment starts from. */
typedef struct Checkpoint {
    int32_t segment;
    TensorId tensor;
} Checkpoint;

struct Tape {
    Backend backend;
    TapeOptions options;
    int32_t segment;
    int finished, has_head;
    Node *nodes;
    int32_t node_count, node_capacity;
    Tensor *tensors;
    int32_t tensor_count, tensor_capacity;
    Instruction *instructions;
    int32_t instruction_count;
    Area *areas;
    int32_t area_count, area_capacity;
    int32_t (*saved)[2];     /* [node_count]: areas of `saved`, per generation as in Tensor.area */
    Checkpoint *checkpoints; /* in order of the forward pass */
    int32_t checkpoint_count;
    int32_t stashed;     /* so many of the first go to host memory */
    size_t batch_offset; /* in the arena: where a backend on a device has the micro-batch */
    TapePlan plan;
};

/* The tensor whose memory this name stands for. */
static inline TensorId tape_root(const Tape *tape, TensorId id) {
    while (tape->tensors[id].alias != TENSOR_NONE)
        id = tape->tensors[id].alias;
    return id;
}

/* Elements from row to row of where a value lies; 0: contiguous. */
static inline int64_t tape_stride(const Tape *tape, TensorId id) {
    return tape->tensors[tape_root(tape, id)].stride;
}

/* The tensor in whose gradient's memory that of `id` lies: RoPE and rounding compute theirs in place. */
static inline TensorId tape_gradient_root(const Tape *tape, TensorId id) {
    for (;;) {
        const Node *producer = &tape->nodes[tape->tensors[id].producer];
        if (producer->kind != NODE_ROPE && producer->kind != NODE_FAKE_ROWS) return id;
        id = producer->in[producer->out[0] == id ? 0 : 1];
    }
}

static inline int64_t tape_gradient_stride(const Tape *tape, TensorId id) {
    return tape->tensors[tape_gradient_root(tape, id)].stride;
}

static inline int tape_recomputed(const Tape *tape, const Node *node) {
    return tape->options.mode == TAPE_TRAIN && tape->options.recompute == RECOMPUTE_LAYERS && node->segment >= 0;
}

/* Which of a tensor's values a pass reads. */
static inline int tape_generation(const Tape *tape, TensorId root, Pass pass) {
    const Tensor *tensor = &tape->tensors[root];
    return pass != PASS_FORWARD && (!tensor->kept || tensor->stashed);
}

/* Which inputs and outputs the backward of a node reads. */
int node_backward_reads_input(const Node *node, int index);
int node_backward_reads_output(const Node *node, int index);

/* Areas as the schedule grows (autograd/schedule.c): a new one that lives at instruction `at`, and one (-1: none) that lives until then. */
int32_t new_area(Tape *tape, size_t bytes, int kind, int32_t at);
void read_area(Tape *tape, int32_t area, int32_t at);
size_t value_bytes(const Tape *tape, const Tensor *tensor);

/* Checkpoints in host memory (autograd/stash.c). plan: after reruns are marked. schedule: an instruction about to be added, before
 * what it reads and writes is. before, after: around the instruction when it runs. */
void stash_plan(Tape *tape);
void stash_schedule(Tape *tape, Instruction *instruction, int32_t at);
Status stash_before(const Tape *tape, const TapeRun *run, const Instruction *instruction, Error *err);
Status stash_after(const Tape *tape, const TapeRun *run, const Instruction *instruction, Error *err);

/* Gives every area an offset; overwrites plan->arena (autograd/layout.c). */
void layout_areas(Area *areas, int32_t count, size_t *arena);

const char *node_kind_name(NodeKind kind);

#endif
