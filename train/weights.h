/* The frozen base model in memory: a Hugging Face folder as a weight source.
 *
 * Loading is streamed: a reader thread fills bounded staging buffers with pread while the pool quantizes, so the peak is the
 * resident size plus one layer plus 10 %. Every tensor's presence, shape and type is checked against the ModelConfig before
 * anything is read; NaN and Inf are refused by tensor name. The loaded bytes are never written again.
 *
 * Storage. method qlora: the layers' linear weights in the configured quantized format (a pre-quantized bitsandbytes NF4 or
 * FP4 folder keeps its own bytes); lora and full: dense, BF16, or F32 when the run is F32 and the file is F32 or F16.
 * Embedding and head stay 16 bit (F32 in an F32 run from an F32 or F16 file). Norm weights and biases are held in the run's
 * activation type.
 */
#ifndef NIBBLE_TRAIN_WEIGHTS_H
#define NIBBLE_TRAIN_WEIGHTS_H

#include <stdint.h>

#include "autograd/weight_source.h"
#include "core/error.h"
#include "core/pool.h"
#include "data/hf_config.h"
#include "kernels/ops.h"
#include "train/comm.h"

/* Numbers of the weights: global ones, then a fixed stride per layer. */
enum { WEIGHT_EMBED, WEIGHT_FINAL_NORM, WEIGHT_HEAD, WEIGHT_GLOBALS };
typedef enum LayerWeight {
    LAYER_Q, /* the seven linears, in the order in which adapters are numbered */
    LAYER_K,
    LAYER_V,
    LAYER_O,
    LAYER_GATE,
    LAYER_UP,
    LAYER_DOWN,
    LAYER_LINEARS,
    LAYER_Q_BIAS = LAYER_LINEARS,
    LAYER_K_BIAS,
    LAYER_V_BIAS,
    LAYER_O_BIAS,
    LAYER_GATE_BIAS,
    LAYER_UP_BIAS,
    LAYER_DOWN_BIAS,
    LAYER_INPUT_NORM,
    LAYER_POST_NORM,
    LAYER_Q_NORM,
    LAYER_K_NORM,
    LAYER_WEIGHTS
} LayerWeight;

static inline int32_t weight_id(int64_t layer, LayerWeight kind) {
    return WEIGHT_GLOBALS + (int32_t)layer * LAYER_WEIGHTS + (int32_t)kind;
}
int32_t weight_count(const ModelConfig *config);
/* Hugging Face name ("model.layers.3.self_attn.q_proj.weight") into a caller's buffer, and the shape (vectors: [1, n]). Returns
 * 0 when this model has no such weight (no bias, no q/k norm; a tied head is the embedding under another number). */
int weight_describe(const ModelConfig *config, int32_t id, char *name, size_t capacity, int64_t *rows, int64_t *cols);

/* What does not lie on the device as it is stored. The bits of a run do not depend on it. */
typedef struct WeightPlaces {
    int pinned_embedding;  /* in pinned host memory, unless it is the head too */
    int64_t pinned_layers; /* linears of so many first layers: the same; they are read there, a product ahead of their own */
    int64_t dense_layers;  /* linears of so many last layers: on the device, and dequantized once for all beside that */
} WeightPlaces;

/* What a folder's tensors are where config.json says it otherwise, or not at all: types, sizes of blocks, linears that were not quantized
 * with the others. */
typedef struct WeightFacts WeightFacts;
/* From the headers, and what describes each packed tensor. Fails where weights_load would fail before it reads a weight. */
Status weights_facts(WeightFacts **out, const char *folder, const ModelConfig *config, Error *err);
void weights_facts_free(WeightFacts *facts); /* NULL is fine */

typedef struct WeightOptions {
    DType act;           /* F32 or BF16: the run's precision */
    WeightFormat linear; /* NF4, FP4, INT8, INT4, or BF16 / F32 for dense (the file's type then decides as above) */
    int double_quant;
    int32_t block_size;       /* NF4, FP4, INT4 */
    int linears_only;         /* leave out embedding, head, norms and biases (nibble quantize copies those) */
    int ranks;                /* the layers' linears are split over so many; 0, 1: not */
    Comm *comm;               /* the ranks, where weights are loaded */
    const WeightFacts *facts; /* for plans; NULL: the tensors are what the config says */
    /* on a device */
    const Exec *exec; /* the device's, where weights are loaded; NULL: the CPU's */
    WeightPlaces places;
} WeightOptions;

/* Exact bytes by kind, from the config and the facts. file_dtype: what the folder's dense tensors are stored in, without facts. */
typedef struct WeightBytes {
    size_t linear, constants, embedding, head, norms; /* head 0 when tied; constants: scales, absmax, nested parts */
    size_t gathered;                                  /* of a split base: room for three whole layers */
    size_t pinned, dense;                             /* WeightPlaces: host memory; dequantized layers on the device */
    size_t arena;                                     /* what loading reserves for them, alignment included */
    size_t staging;                                   /* loading's own buffers on top, gone afterwards */
} WeightBytes;
Status weights_plan(const ModelConfig *config, const WeightOptions *options, DType file_dtype, WeightBytes *bytes, Error *err);
/* How the backend will find each weight [weight_count] once it is loaded. */
void weights_formats(const ModelConfig *config, const WeightOptions *options, DType file_dtype, WeightFormat *formats);

typedef struct ModelWeights ModelWeights;
/* backend: the CPU's, or that of options->exec, to which the weights go as they are read (train/weights_stream.c says when not:
 * then the CPU holds them, and weights_to_device copies). Both are borrowed for the weights' life. Logs what a reader should know (an INT8 folder was
 * dequantized; a pre-quantized folder overrides the config's type). */
Status weights_load(ModelWeights **out, const char *folder, const ModelConfig *config, const WeightOptions *options,
                    const Backend *backend, Pool *pool, Error *err);
/* Made up from the seed, at full speed and without a file, for measurements. */
Status weights_random(ModelWeights **out, const ModelConfig *config, const WeightOptions *options, const Backend *backend,
                      uint64_t seed, Error *err);
void weights_free(ModelWeights *weights); /* NULL is fine */
/* From here on the head (a tied one too; not the embedding) is a Q8_0 copy of what was loaded, whose own memory is given back.
 * Refused on a device, and where the head is blocks already. */
Status weights_quantize_head(ModelWeights *weights, Pool *pool, Error *err);
int weights_has_small_head(const ModelWeights *weights);
/* The frozen weight as it lies in memory; valid as long as the weights. rows 0 when the model has none. */
WeightView weights_view(const ModelWeights *weights, int32_t id);
/* What is not on the backend's device yet goes there, when it has one, and the host's copy is dropped: views then point there.
 * backend and exec are borrowed for the weights' life. */
Status weights_to_device(ModelWeights *weights, const Backend *backend, const Exec *exec, Error *err);
/* Bytes on the device; 0 on the CPU. Bytes of pinned host memory. */
size_t weights_device_bytes(const ModelWeights *weights);
size_t weights_pinned_bytes(const ModelWeights *weights);
/* Bytes of layers that stay dequantized. */
size_t weights_dense_bytes(const ModelWeights *weights);
/* The same of a weight that does not stay dequantized, for the host to read; *copy is to be freed (NULL: it lies in host memory). */
Status weights_host_view(const ModelWeights *weights, int32_t id, WeightView *view, void **copy, Error *err);
/* A source that hands these views out. */
WeightSource weights_source(ModelWeights *weights);
/* XXH3 over all bytes in a fixed order, read back from a device or gathered from all ranks, who all call (0 when that fails). */
uint64_t weights_hash(const ModelWeights *weights);
/* Whether the layers' linears lie split over the ranks; 0 for NULL. */
int weights_are_split(const ModelWeights *weights);
/* A split base: what a rank without a micro-batch does in a pass, and, after a tape stopped early, the rest of that pass.
 * layer_done (may be NULL): as TapeRun.segment_done. Nothing to do otherwise. */
typedef Status WeightsLayerDone(void *self, int32_t layer, Pass pass, Error *err);
Status weights_idle_pass(ModelWeights *weights, int with_backward, WeightsLayerDone *layer_done, void *self, Error *err);
Status weights_finish_pass(ModelWeights *weights, int with_backward, Error *err);
/* Bytes that a rank sends for a split base in a training step of `rounds` micro-batches on each rank, once three layers are at
 * hand: after another training step. 0 otherwise. */
uint64_t weights_step_bytes(const WeightBytes *bytes, int64_t layers, int ranks, int64_t rounds);
/* What a folder of grouped integers calls itself: "gptq, 4 bits, groups of 128, symmetric". Returns out. */
const char *grouped_config_text(const ModelConfig *config, char *out, size_t capacity);
/* Format of the layers' linears as loaded (a pre-quantized folder may differ from the options). */
WeightFormat weights_linear_format(const ModelWeights *weights);
size_t weights_bytes(const ModelWeights *weights);

#endif
