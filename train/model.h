/* The decoder-only transformer of the Llama family, recorded on a tape.
 *
 *   h = embed(ids)
 *   per layer: n = rmsnorm(h += x); q,k,v = linear(n); rope; o = attention; x = linear(o)
 *              n = rmsnorm(h += x); gate,up = linear(n); x = linear(silu(gate) * up)
 *   loss or logits = head(rmsnorm(h += x))
 */
#ifndef NIBBLE_TRAIN_MODEL_H
#define NIBBLE_TRAIN_MODEL_H

#include <stdint.h>

#include "autograd/tape.h"
#include "core/memory.h"
#include "data/hf_config.h"
#include "train/params.h"
#include "train/weights.h"

/* Adapters of one model: which linears have one, how large, and where its numbers lie in the flat buffers. */
typedef struct AdapterModule {
    int64_t rank; /* 0: none */
    float scale;  /* alpha / rank, or alpha / sqrt(rank) */
    double alpha;
    int64_t a, b; /* offsets in elements */
} AdapterModule;

typedef struct Adapter {
    int64_t layers;
    AdapterModule *modules; /* [layers * LAYER_LINEARS] */
    float dropout;
    int rslora;
    int dora; /* has magnitudes: merged by export, refused everywhere else */
} Adapter;
static inline AdapterModule *adapter_module(const Adapter *adapter, int64_t layer, LayerWeight kind) {
    return &adapter->modules[layer * LAYER_LINEARS + (int64_t)kind];
}

/* Quantization-aware training (train/qat.h): linears take dense operands from a source that makes them. */
typedef enum QatMode { QAT_NONE, QAT_SEPARATE, QAT_MERGED } QatMode;

/* Inputs of a layer's linears, and which a linear group, named by its first member, reads: ranges of fixed scales are numbered so. */
enum { RANGES_PER_LAYER = 4 };
static inline int64_t model_range(int64_t layer, LayerWeight first) {
    int input = first == LAYER_Q ? 0 : first == LAYER_O ? 1 : first == LAYER_GATE ? 2 : 3;
    return layer * RANGES_PER_LAYER + input;
}

typedef struct ModelShape {
    const ModelConfig *config;
    WeightFormat linear;         /* of the layers' linears, where weights is NULL */
    const WeightFormat *formats; /* there: of each weight, as it will be loaded; NULL: all as `linear` and `dense` say */
    const ModelWeights *weights; /* loaded: each linear has its own format (a pre-quantized folder may mix them) */
    WeightFormat dense;          /* of embedding and head */
    const Adapter *adapter;      /* NULL: none */
    QatMode qat;                 /* MERGED: adapters are part of the operands */
    int learn_scales;            /* operands have trained parameters of their own, with an adapter or without */
    ActivationQuant activations;
    const int64_t *weight_gradient; /* method full: per weight number, offset in the flat buffers or -1; NULL: frozen */
} ModelShape;

/* Records and finishes. The RoPE table of a run must have options->rows rows (GENERATE: cache_rows). */
Status model_record(Tape **tape, const ModelShape *shape, const TapeOptions *options, Error *err);

/* Cosine and sine for positions 0..rows-1, FP32, attention factor included; `longest`: the longest sequence of the run, which
 * dynamic and longrope scaling depend on. */
typedef struct RopeMemory {
    RopeTable table;
    int64_t rows;
    Arena arena;
} RopeMemory;
size_t rope_memory_bytes(const ModelConfig *config, int64_t rows);
Status rope_memory_create(RopeMemory *rope, const ModelConfig *config, int64_t rows, int64_t longest, Error *err);
void rope_memory_free(RopeMemory *rope);

/* FLOPs of the products of one token: forward, and backward with (full) or without weight gradients; attention at the mean
 * length `sequence`. For the speed line. */
double model_flops_per_token(const ModelConfig *config, double sequence, int full, int recompute);

#endif
