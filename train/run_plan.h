/* What a run takes in memory, by kind, from the config and the model's shape alone.
 *
 * The figures are the sizes of the arenas that the run makes: plan and arenas are equal to the byte, and the trainer checks it.
 */
#ifndef NIBBLE_TRAIN_RUN_PLAN_H
#define NIBBLE_TRAIN_RUN_PLAN_H

#include "autograd/tape.h"
#include "train/comm.h"
#include "train/config.h"
#include "train/device.h"
#include "train/model.h"
#include "train/weights.h"

typedef struct RunPlan {
    WeightBytes weights;  /* zero for method full */
    size_t adapters;      /* masters and compute copies of what is trained */
    size_t optimizer;     /* moments and gradients */
    size_t activations;   /* arena of the tapes: the largest of train, evaluation, generation */
    TapePlan train, eval; /* what is in it */
    size_t qat;           /* operands and scratch of fake quantization; 0 without */
    size_t teacher;       /* what a teacher gives for a micro-batch; 0 without */
    size_t rope, buffers; /* tables; the arrays of micro-batches */
    size_t cache;         /* key/value cache and logits for samples; 0 without */
    size_t sums;          /* buffers of sums over the ranks; 0 for one */
    int ranks;
    int64_t rounds;               /* micro-batches of a step on a rank, at most */
    uint64_t sent[COMM_PURPOSES]; /* bytes that rank 0, which sends most, sends in a step that follows another */
    size_t total;                 /* resident during training */
    size_t peak;                  /* total, or what loading takes at its worst when that is more */
    int64_t trained;              /* numbers that are trained */
    int64_t max_length, sample_context;
    Recompute recompute;
    int64_t stashed_layers; /* recomputed layers whose inputs lie in pinned host memory (train.stash bytes), the first ones */
    WeightPlaces places;    /* what of the base does not simply lie on the device */
    char choice[320];       /* what was chosen to fit a device's memory; empty on the CPU */
    double flops_per_token; /* products and attention, forward and backward, at mean length max_length / 2 */
} RunPlan;

/* What may lie in pinned host memory beside a device, each with what stands before it; cheapest on the bus first. */
typedef enum HostUse {
    HOST_EMBEDDING,
    HOST_INPUTS, /* of recomputed layers, until their backward pass */
    HOST_WEIGHTS /* packed layers */
} HostUse;

/* The length of one sequence at most: train.max_length, or what "auto" means. */
int64_t run_max_length(const Config *config, const ModelConfig *model);
/* facts: of the folder's tensors; NULL: as the config implies. threads: of the run, workspaces depend on it. ranks: the plan is that of one of them. available: bytes that the run may take
 * (0: no limit). The first of these that fits:
 *
 *   activations are kept; then, on a device, as many dequantized layers as fit too (train.dequantized_layers)
 *   on a device: the same, with the input embedding in pinned host memory
 *   results of norms and gates are recomputed; and so on
 *   layers are recomputed
 *   on a device: the same, with the input embedding in pinned host memory; then the inputs of as few recomputed layers as must be;
 *       then as few packed layers
 *
 * (train.recompute none, light, layers, or host, where the inputs of all layers but the last are there in any case: only those). What lies
 * in host memory passes the bus in every micro-batch: a row of the embedding once, an input once each way (2 bytes for a byte that
 * the device is spared), packed weights three times (in each pass). *fits is overwritten; where nothing fits, *plan is the most frugal. */
Status run_plan_choose(const Config *config, const ModelConfig *model, const WeightFacts *facts, const Backend *backend,
                       int threads, int ranks, size_t available, HostUse most, RunPlan *plan, int *fits, Error *err);
/* The same with all of HostUse; fails where nothing fits, with the plan and the settings that would fit. */
Status run_plan(const Config *config, const ModelConfig *model, const WeightFacts *facts, const Backend *backend, int threads,
                int ranks, size_t available, RunPlan *plan, Error *err);
/* train.micro_batch_tokens "auto" becomes a number: the largest power of two up to 8192 that fits with activations kept (but, at most, norms and gates), if it is
 * 2048 or more, else with layers recomputed (256 at least, and what data.max_length asks for), at last with packed layers in
 * pinned host memory. Nothing to do otherwise. Ranks that have the same `available` choose the same. */
Status run_window_choose(Config *config, const ModelConfig *model, const WeightFacts *facts, const Backend *backend,
                         int threads, int ranks, size_t available, Error *err);
/* Bytes that train.memory allows: "auto" is what the device has left (NULL: this machine), but for what is loaded into it later. */
Status run_memory_limit(const Config *config, const Device *device, size_t *bytes, Error *err);
/* A table for people. */
void run_plan_print(const RunPlan *plan, Text *out);

/* Capacity in micro-batches that a step's lists of sequences need, as bytes of the buffers' arena. */
size_t run_buffer_bytes(const Config *config);

#endif
