/* LoRA adapters: made from a config, read from and written to PEFT folders, and read from llama.cpp's LoRA files.
 *
 * A PEFT folder is adapter_config.json + adapter_model.safetensors; names are
 * "base_model.model." + module path + ".lora_A.weight" [r, in] / ".lora_B.weight" [out, r]. What is written are exactly the
 * values that the forward pass uses (the copy in the run's activation type).
 */
#ifndef NIBBLE_TRAIN_ADAPTER_H
#define NIBBLE_TRAIN_ADAPTER_H

#include "core/error.h"
#include "train/config.h"
#include "train/model.h"
#include "train/params.h"

/* Which linears get an adapter, by config (target_modules by name or "all-linear", layers, rank, alpha, rsLoRA, dropout), and
 * where they lie: A then B per module, layer by layer in the order of LayerWeight. Fails with ERR_USAGE on a name that no
 * linear of this model has, listing those there are. */
Status adapter_create(Adapter *adapter, ParamSet *params, const Config *config, const ModelConfig *model, Error *err);
/* The same from a PEFT folder: ranks from the tensors' shapes, scales from r, lora_alpha, use_rslora, rank_pattern and
 * alpha_pattern. Refused by name: DoRA, lora_bias, modules_to_save, bias other than "none", embeddings, fan_in_fan_out,
 * anything else that would change the computation. dropout is 0. folder may also be a GGUF file with a LoRA adapter, or a folder
 * with one (adapter_gguf.h), here and in what follows. */
Status adapter_read(Adapter *adapter, ParamSet *params, const char *folder, const ModelConfig *model, Error *err);
/* The same, but a DoRA adapter is accepted (adapter->dora). */
Status adapter_read_for_merge(Adapter *adapter, ParamSet *params, const char *folder, const ModelConfig *model, Error *err);
/* DoRA: lora_magnitude_vector of every module, FP32 [out]; *magnitudes [layers * LAYER_LINEARS] with NULL where a module has no
 * adapter. The caller frees each and the list, also after a failure. */
Status adapter_read_magnitudes(const Adapter *adapter, const char *folder, const ModelConfig *model, float ***magnitudes,
                               Error *err);
/* Values of a PEFT folder into master (FP32 [params->elements]); every tensor must be there, with this shape, and no other. */
Status adapter_read_values(const Adapter *adapter, const ParamSet *params, const char *folder, const ModelConfig *model,
                           float *master, Error *err);
/* PEFT's init: A uniform in +-1/sqrt(in) (kaiming_uniform with a = sqrt(5)), B zero. A function of (seed, module, element). */
void adapter_init(const ParamSet *params, uint64_t seed, float *master);

typedef struct AdapterInfo {
    const char *base_model; /* base_model_name_or_path */
    double dropout;
    /* Writes what else belongs into the folder before it is published; NULL: nothing. */
    Status (*extra)(void *context, const char *folder, Error *err);
    void *context;
} AdapterInfo;
/* Writes FOLDER atomically (an older one is replaced whole). values: flat, type act; tensors are F32 or BF16 as act. Modules
 * of different rank or alpha are written with rank_pattern and alpha_pattern. */
Status adapter_write(const Adapter *adapter, const ParamSet *params, const char *folder, const ModelConfig *model,
                     const AdapterInfo *info, const void *values, DType act, Error *err);
/* Entries of params that are adapters': they come first, learned scales (train/qat.h) after them. */
int64_t adapter_entries(const ParamSet *params);
void adapter_free(Adapter *adapter);

#endif
