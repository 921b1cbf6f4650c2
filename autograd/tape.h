/* The tape: a model's fusion units recorded once, planned once, and replayed every step.
 *
 * Recording. tape_* calls append nodes; each takes tensors that earlier nodes made and says what it makes. A forward node
 * brings its own backward: what that reads (inputs, outputs, `saved`) is known per kind. Every tensor has at most one
 * consumer, so no gradient is ever summed from two places; where a value is needed twice (the residual stream, q/k/v) the
 * fusion unit does it inside. Recording a second consumer is an error.
 *
 * Planning. tape_finish() lays out the schedule
 *
 *     forward of every node, head with loss and its gradient | for each segment, last to first: [recompute] backward
 *
 * and gives every value, saved area, gradient and workspace an offset in one arena from the instructions between which it
 * lives. With RECOMPUTE_LIGHT results of norms and gates are made again just before what reads them in the backward pass. With
 * RECOMPUTE_LAYERS only a layer's input (the residual sum) survives the forward pass; the layer is run again before its
 * backward. A node whose outputs leave its layer is not run again: what its backward needs is kept. On a device the inputs of the
 * first layers may wait in host memory (`stashed`): they leave when they were made, and come back a layer ahead.
 * Nothing here touches memory: a tape can be planned for a device that is not there.
 *
 * Replaying. tape_run() walks the schedule with the arena's base address. It allocates nothing.
 */
#ifndef NIBBLE_AUTOGRAD_TAPE_H
#define NIBBLE_AUTOGRAD_TAPE_H

#include <stddef.h>
#include <stdint.h>

#include "autograd/weight_source.h"
#include "core/error.h"
#include "kernels/ops.h"

typedef struct Tape Tape;
typedef int32_t TensorId; /* a recorded tensor; TENSOR_NONE where there is none */
#define TENSOR_NONE (-1)

typedef enum TapeMode {
    TAPE_TRAIN,   /* forward, loss, backward */
    TAPE_EVAL,    /* forward and loss */
    TAPE_GENERATE /* forward of one sequence through a key/value cache, logits of chosen rows */
} TapeMode;

/* LIGHT: norms and gates, whose results are large beside their work (Chen et al. 2016), just before what reads them. */
typedef enum Recompute { RECOMPUTE_NONE, RECOMPUTE_LIGHT, RECOMPUTE_LAYERS } Recompute;

typedef struct TapeOptions {
    const Backend *backend; /* copied */
    ExecConfig exec;
    TapeMode mode;
    Recompute recompute;
    int64_t
        stashed;  /* RECOMPUTE_LAYERS: of so many layers from the first on the input lies in host memory (never of the last) */
    int64_t rows; /* capacity of a micro-batch in tokens */
    int64_t supervised; /* capacity in rows with a loss (or, generating, with logits) */
    int distill;        /* TRAIN: batches may have a teacher */
    int64_t cache_rows; /* GENERATE: capacity of the cache */
} TapeOptions;

/* A weight as the source numbers it. gradient: offset (in elements) of its gradient in the flat gradient buffer, -1: frozen.
 * derived: a linear's weight that the source makes out of parameters; its gradients are the source's own affair (backward). */
typedef struct WeightRef {
    int32_t weight;
    int derived;
    int64_t gradient;
} WeightRef;
#define WEIGHT_NONE ((WeightRef){-1, 0, -1})
#define WEIGHT_FROZEN(number) ((WeightRef){(number), 0, -1})

/* One member of a linear group. spec.train_weight, train_bias and has_bias are derived from the references. lora_a and
 * lora_b are offsets (in elements) into the flat parameter and gradient buffers, read when spec.rank > 0. */
typedef struct TapeLinear {
    LinearSpec spec;
    WeightRef weight, bias;
    int64_t lora_a, lora_b;
} TapeLinear;

Status tape_create(Tape **tape, const TapeOptions *options, Error *err);
void tape_free(Tape *tape);

/* Nodes recorded from here on belong to this recomputation segment; -1 (the start) is never recomputed. */
void tape_segment(Tape *tape, int32_t segment);

/* name: for messages and profiles, e.g. "layers.3.mlp.down_proj"; at most 63 bytes are kept. */
Status tape_embed(Tape *tape, const char *name, WeightRef table, int64_t vocab, int64_t hidden, TensorId *y, Error *err);
/* x may be TENSOR_NONE: *sum then is another name of residual. */
Status tape_norm(Tape *tape, const char *name, TensorId residual, TensorId x, WeightRef weight, double epsilon, TensorId *sum,
                 TensorId *y, Error *err);
Status tape_linear(Tape *tape, const char *name, TensorId x, const TapeLinear *members, int count, TensorId *y, Error *err);
/* q_norm, k_norm: WEIGHT_NONE without q/k norm. */
Status tape_rope(Tape *tape, const char *name, TensorId q, TensorId k, const RopeShape *shape, WeightRef q_norm,
                 WeightRef k_norm, TensorId *rq, TensorId *rk, Error *err);
/* layer: which cache entry belongs to it. shape->rows is filled in. */
Status tape_attention(Tape *tape, const char *name, int32_t layer, TensorId q, TensorId k, TensorId v,
                      const AttentionShape *shape, TensorId *o, Error *err);
Status tape_gate(Tape *tape, const char *name, GateKind kind, TensorId gate, TensorId up, TensorId *y, Error *err);
/* Every value of x becomes what an integer code would hold; shape->rows and columns are filled in. range: which of a run's ranges
 * belongs to it; -1: a scale per group. */
Status tape_fake_rows(Tape *tape, const char *name, TensorId x, const FakeRowsShape *shape, int64_t range, TensorId *y,
                      Error *err);
/* Ends the tape: loss (TRAIN, EVAL) or logits (GENERATE). */
Status tape_head(Tape *tape, const char *name, TensorId x, WeightRef weight, WeightFormat format, int64_t vocab, Error *err);

/* Plans. After it nothing more can be recorded. */
Status tape_finish(Tape *tape, Error *err);

typedef struct TapePlan {
    size_t arena;    /* bytes of the arena */
    size_t stash;    /* bytes of pinned host memory beside it, */
    int64_t stashed; /* for the inputs of so many layers */
    size_t batch;    /* of these: the micro-batch itself, where a device has it in memory of its own */
    /* what lives at the fullest instant, by kind; their sum is at most arena (the rest is fragmentation) */
    size_t activations, saved, gradients, workspace;
    const char *peak_node; /* what runs at that instant */
    int64_t instructions;
} TapePlan;
void tape_plan(const Tape *tape, TapePlan *plan);

/* Where the first NaN or Inf came from. */
typedef struct TapeFault {
    int found;
    char text[160]; /* "forward of layers.3.mlp.down_proj" */
} TapeFault;

typedef struct TapeRun {
    const Exec *exec;
    const Batch *batch;
    const WeightSource *weights;
    RopeTable rope;
    void *arena;          /* at least TapePlan.arena bytes, 64-byte aligned */
    void *stash;          /* TapePlan.stash bytes of Backend.pinned_take; NULL where that is 0 */
    const void *params;   /* flat compute copies, type act; NULL when nothing is trained */
    void *gradients;      /* flat FP32 gradients, accumulated (F64 in an F64 run); TRAIN */
    double *loss_sum;     /* accumulated; TRAIN and EVAL */
    float *nll;           /* [supervised] or NULL */
    void *logits;         /* GENERATE: FP32 [batch->supervised, vocab] */
    const KvLayer *cache; /* GENERATE: [layers] */
    int64_t past;         /* GENERATE: rows already in the cache */
    void *final;          /* EVAL: not NULL: the head only copies its input here (the backend's memory), and computes nothing */
    const float *ranges;  /* scales of the fake_rows that have a range; NULL: a scale per group there too */
    /* Not NULL: called with what those would round, rows of type act in host memory, instead of rounding it. */
    void (*observe)(void *self, int64_t range, const void *x, DType act, int64_t values);
    void *observe_self;
    /* Which of a backend's recordings of this tape belongs to it: what else than the arguments above the calls depend on, from 0 on;
     * -1: nothing is recorded or replayed. */
    int recording;
    int unrounded;    /* fake quantization of activations is left out (a schedule's first steps) */
    TapeFault *watch; /* not NULL: check every output, stop at the first that is not finite (slow) */
    double *profile;  /* not NULL: seconds are added per instruction, [TapePlan.instructions] */
    /* not NULL: called when all of a segment (-1: what belongs to none) is done in the forward pass, and again when its
     * gradients are complete in the backward pass, where a recomputation has gone before */
    Status (*segment_done)(void *self, int32_t segment, Pass pass, Error *err);
    void *segment_self;
} TapeRun;
Status tape_run(const Tape *tape, const TapeRun *run, Error *err);

/* The recorded program, for `inspect` and benchmarks: name, kind and pass of instruction i. */
typedef struct TapeInstruction {
    const char *name, *kind;
    Pass pass;
} TapeInstruction;
TapeInstruction tape_instruction(const Tape *tape, int64_t index);

#endif
