/* Everything that running a model needs, opened once and shared by train, eval and generate: the config of the model, its
 * frozen weights, adapters or trained weights, tapes with their one arena, the RoPE table, threads.
 */
#ifndef NIBBLE_TRAIN_ENGINE_H
#define NIBBLE_TRAIN_ENGINE_H

#include <stdint.h>

#include "autograd/tape.h"
#include "core/pool.h"
#include "train/adapter.h"
#include "train/comm.h"
#include "train/config.h"
#include "train/device.h"
#include "train/model.h"
#include "train/params.h"
#include "train/qat.h"
#include "train/weights.h"

typedef enum Method { METHOD_FROZEN, METHOD_LORA, METHOD_FULL } Method; /* FROZEN: nothing is trained (eval, generate) */

typedef struct EngineOptions {
    const char *model;   /* folder */
    const char *adapter; /* PEFT folder to apply, or NULL */
    DType act;           /* DTYPE_BF16 or DTYPE_F32 */
    int threads;         /* 0: what the machine gives */
    const char *cpu;     /* forced CPU variant, or NULL */
    const char *device;  /* auto, cpu, cuda or emu; NULL: cpu */
    WeightOptions weights;
    int small_head; /* METHOD_FROZEN: the output head in Q8_0 */
    size_t needs,
        needs_beside; /* bytes of the weights where they are computed with, and of the rest on the CPU: more than are left are refused; 0: not checked */
    Method method;
    int random_weights; /* made from the seed instead of read (the folder needs only config.json); METHOD_FULL: to train from */
    uint64_t seed;
    const ActivationQuant *rounding; /* instead of what the model says; NULL: that */
    const Config *config;            /* METHOD_LORA: what adapters to make; NULL otherwise */
    Comm *comm;                      /* NULL: one rank */
    int optimizer;                   /* allocate gradients and moments */
} EngineOptions;

typedef struct Engine {
    ModelConfig model;
    Comm *comm; /* borrowed; NULL: one rank */
    Device device;
    Backend backend; /* the device's */
    Pool *pool;
    Exec exec;
    Method method;
    ModelWeights *weights; /* NULL for METHOD_FULL: everything lies in params */
    QatMode qat_mode;
    ActivationQuant activations;
    float *ranges;   /* activations.fixed: scales [layers * RANGES_PER_LAYER]; NULL: none, or not found yet */
    int64_t *scales; /* learned scales of fake quantization (train/qat_scales.h), or NULL */
    Qat *qat;        /* NULL without; then `source` is its own */
    WeightSource source;
    WeightSource base; /* without fake quantization: what a teacher computes with */
    int distill;       /* TRAIN tapes have room for a teacher */
    Adapter adapter;   /* modules NULL: none */
    ParamSet params;
    ParamState state;
    int64_t *weight_gradient; /* METHOD_FULL: offsets per weight number */
    RopeMemory rope;
    Arena rope_mirror;
    Arena arena;            /* of the tapes, which never run at the same time */
    int64_t stashed_layers; /* TRAIN tapes: recomputed layers whose inputs lie in pinned host memory */
    Arena stash;            /* that memory */
    uint64_t weights_hash;  /* of the frozen bytes as loaded */
} Engine;

Status engine_open(Engine *engine, const EngineOptions *options, Error *err);
void engine_close(Engine *engine);

/* What the engine's shape is for model_record. */
ModelShape engine_shape(const Engine *engine);
/* Records a tape of the engine's model. */
Status engine_tape(Engine *engine, TapeMode mode, Recompute recompute, int64_t rows, int64_t supervised, int64_t cache_rows,
                   Tape **tape, Error *err);
/* The frozen base alone, no adapter, nothing rounded: a forward pass up to the head's input (TapeRun.final). */
Status engine_teacher_tape(Engine *engine, int64_t rows, Tape **tape, Error *err);
/* Runs it: *out, activation [batch->tokens, hidden], is overwritten. */
Status engine_teach(const Engine *engine, const Tape *teacher, const Batch *batch, void *out, Error *err);
/* After the tapes are recorded: the arena of the largest, and the RoPE table for `positions` positions, scaled for sequences of
 * up to `longest` tokens. With a device, everything loaded is copied there, and the host keeps no weights. */
Status engine_reserve(Engine *engine, Tape *const *tapes, int count, int64_t positions, int64_t longest, Error *err);
/* Parameters to the device after the host has changed them, and back before it reads them; nothing to do on the CPU. */
Status engine_store_params(Engine *engine, Error *err);
Status engine_fetch_params(Engine *engine, Error *err);
Status engine_clear_gradients(Engine *engine, Error *err);
/* What a rank does while others run a forward pass and it has no micro-batch: its part in gathering a sharded base. */
Status engine_idle_pass(const Engine *engine, Error *err);
/* Bytes of the arenas on the device; 0 on the CPU. */
size_t engine_device_bytes(const Engine *engine);
/* Whether passes are recorded and replayed, where nothing is to be done between their layers: on a device that holds the whole
 * base. */
int engine_records(const Engine *engine);
/* The common part of a TapeRun. */
TapeRun engine_run(const Engine *engine, const Batch *batch);

/* Activation type that "precision" means; "auto" is BF16. */
DType precision_type(const char *precision);
/* From config: storage of the base weights. */
Status weight_options_from_config(const Config *config, WeightOptions *options, Error *err);
/* Dense weights' format in memory, from the run's type and the files' type. */
WeightFormat dense_format(DType act, DType file);
/* All weights of the model as trained parameters (method full); *offsets has weight_count entries. */
Status full_params(ParamSet *set, const ModelConfig *model, int64_t **offsets, Error *err);

#endif
