/* Adapters from a config, and their first values. */
#include "train/adapter.h"

#include <math.h>
#include <string.h>

#include "core/philox.h"
#include "train/adapter_internal.h"

const char *const adapter_module_names[LAYER_LINEARS] = {"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                                         "gate_proj", "up_proj", "down_proj"};

void adapter_free(Adapter *adapter) {
    memory_free(adapter->modules);
    memset(adapter, 0, sizeof *adapter);
}

int64_t adapter_entries(const ParamSet *params) {
    int64_t count = params->count;
    while (count > 0 && params->entries[count - 1].role == PARAM_SCALE)
        count--;
    return count;
}

void adapter_reserve(Adapter *adapter, const ModelConfig *model) {
    adapter->layers = model->layers;
    adapter->modules = memory_calloc((size_t)(model->layers * LAYER_LINEARS), sizeof *adapter->modules);
}

void adapter_place(Adapter *adapter, ParamSet *params, const ModelConfig *model) {
    for (int64_t layer = 0; layer < adapter->layers; layer++)
        for (int kind = 0; kind < LAYER_LINEARS; kind++) {
            AdapterModule *module = adapter_module(adapter, layer, (LayerWeight)kind);
            int64_t rows = 0, cols = 0;
            module->a = module->b = -1;
            if (module->rank == 0) continue;
            (void)weight_describe(model, weight_id(layer, (LayerWeight)kind), NULL, 0, &rows, &cols);
            ParamEntry entry = {.role = PARAM_LORA_A,
                                .layer = layer,
                                .module = (LayerWeight)kind,
                                .weight = -1,
                                .rows = module->rank,
                                .cols = cols,
                                .decay = 1};
            module->a = params_add(params, entry);
            entry.role = PARAM_LORA_B;
            entry.rows = rows;
            entry.cols = module->rank;
            module->b = params_add(params, entry);
        }
}

static Status wanted_modules(const Config *config, int wanted[LAYER_LINEARS], Error *err) {
    memset(wanted, 0, LAYER_LINEARS * sizeof *wanted);
    for (int64_t t = 0; t < config->lora.target_count; t++) {
        const char *name = config->lora.target_modules[t];
        int known = 0;
        for (int kind = 0; kind < LAYER_LINEARS; kind++)
            if (strcmp(name, "all-linear") == 0 || strcmp(name, adapter_module_names[kind]) == 0) known = wanted[kind] = 1;
        if (!known)
            FAIL_USAGE(
                "lora.target_modules: this model has no linear \"%s\"; there are q_proj, k_proj, v_proj, o_proj, "
                "gate_proj, up_proj, down_proj, or \"all-linear\"",
                name);
    }
    if (config->lora.target_count == 0) FAIL_USAGE("lora.target_modules: the list is empty, nothing would be trained");
    return OK;
}

Status adapter_create(Adapter *adapter, ParamSet *params, const Config *config, const ModelConfig *model, Error *err) {
    memset(adapter, 0, sizeof *adapter);
    int wanted[LAYER_LINEARS];
    TRY(wanted_modules(config, wanted, err));
    for (int64_t i = 0; i < config->lora.layer_count; i++)
        if (config->lora.layers[i] < 0 || config->lora.layers[i] >= model->layers)
            FAIL_USAGE("lora.layers: the model has layers 0 to %lld, got %lld", (long long)model->layers - 1,
                       (long long)config->lora.layers[i]);
    adapter_reserve(adapter, model);
    adapter->dropout = (float)config->lora.dropout;
    adapter->rslora = config->lora.use_rslora;
    double rank = (double)config->lora.rank;
    double scale = config->lora.alpha / (config->lora.use_rslora ? sqrt(rank) : rank);
    for (int64_t layer = 0; layer < model->layers; layer++) {
        int chosen = config->lora.layer_count == 0;
        for (int64_t i = 0; i < config->lora.layer_count; i++)
            chosen |= config->lora.layers[i] == layer;
        for (int kind = 0; chosen && kind < LAYER_LINEARS; kind++)
            if (wanted[kind])
                *adapter_module(adapter, layer, (LayerWeight)kind) =
                    (AdapterModule){.rank = config->lora.rank, .scale = (float)scale, .alpha = config->lora.alpha};
    }
    adapter_place(adapter, params, model);
    return OK;
}

void adapter_init(const ParamSet *params, uint64_t seed, float *master) {
    for (int64_t e = 0; e < adapter_entries(params); e++) {
        const ParamEntry *entry = &params->entries[e];
        float *out = master + entry->offset;
        int64_t count = entry->rows * entry->cols;
        if (entry->role != PARAM_LORA_A) {
            memset(out, 0, (size_t)count * sizeof *out);
            continue;
        }
        double bound = 1.0 / sqrt((double)entry->cols);
        uint64_t module = (uint64_t)(entry->layer * LAYER_LINEARS + (int64_t)entry->module);
        for (int64_t i = 0; i < count; i++) {
            double u = (double)random_uniform(seed, RANDOM_ADAPTER_INIT, module, (uint64_t)i);
            out[i] = (float)((2.0 * u - 1.0) * bound);
        }
    }
}
