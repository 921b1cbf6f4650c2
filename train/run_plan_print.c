/* A plan as a table for people. */
#include "train/run_plan.h"

static void line(Text *out, const char *name, size_t bytes, const char *note) {
    char text[32];
    if (bytes == 0) return;
    text_addf(out, "  %-34s %12s  %s\n", name, format_bytes((double)bytes, text, sizeof text), note);
}

void run_plan_print(const RunPlan *plan, Text *out) {
    line(out, "base: linear weights", plan->weights.linear,
         plan->weights.gathered > 0 ? "this rank's share, constants included" : "");
    line(out, "base: room to gather", plan->weights.gathered, "three layers");
    line(out, "base: constants", plan->weights.constants, "");
    line(out, "base: dequantized layers", plan->weights.dense, "");
    line(out, "base: embedding", plan->weights.embedding, "");
    line(out, "base: head", plan->weights.head, "");
    line(out, "base: norms and biases", plan->weights.norms, "");
    line(out, "trained: masters and copies", plan->adapters, "");
    line(out, "trained: gradients and moments", plan->optimizer, "");
    line(out, "activations", plan->activations,
         plan->recompute == RECOMPUTE_NONE    ? "nothing is recomputed"
         : plan->recompute == RECOMPUTE_LIGHT ? "norms and gates are recomputed"
         : plan->stashed_layers > 0           ? "layers are recomputed, some of whose inputs are not here"
                                              : "layers are recomputed");
    line(out, "  kept values", plan->train.activations + plan->train.saved, "");
    line(out, "  their gradients", plan->train.gradients, "");
    line(out, "  workspace", plan->train.workspace, "");
    line(out, "fake quantization", plan->qat, "operands of one linear group, tiles");
    line(out, "the teacher's outputs", plan->teacher, "");
    line(out, "rope tables", plan->rope, "");
    line(out, "micro-batches", plan->buffers, "");
    line(out, "samples: cache and logits", plan->cache, "");
    line(out, "sums over the ranks", plan->sums, "");
    line(out, "total", plan->total, "resident while training");
    line(out, "beside it, in pinned host memory", plan->weights.pinned, "weights");
    line(out, "beside it, in pinned host memory", plan->train.stash, "inputs of layers");
    if (plan->peak > plan->total) line(out, "peak", plan->peak, "while loading");
}
