/* Weights of a shape without a file, for measurements: random codes and values of a layer's usual size. */
#include <string.h>

#include "train/weights_internal.h"

#define SPREAD 0.02f /* standard deviation of most models' weights */

/* Marsaglia's xorshift64*: the quality of a benchmark's bytes matters little, their speed does. */
static uint64_t next_bits(uint64_t *state) {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 2685821657736338717u;
}

static void random_bytes(uint64_t *state, void *out, size_t bytes) {
    uint8_t *at = out;
    for (; bytes >= sizeof(uint64_t); bytes -= sizeof(uint64_t), at += sizeof(uint64_t)) {
        uint64_t bits = next_bits(state);
        memcpy(at, &bits, sizeof bits);
    }
    uint64_t bits = next_bits(state);
    memcpy(at, &bits, bytes);
}

static void fill_floats(float *out, int64_t count, float value) {
    for (int64_t i = 0; i < count; i++)
        out[i] = value;
}

/* 0.05 is near the absmax of 64 normal values of that spread. */
void weights_random_codes(uint64_t *state, QuantizedTensor *t) {
    random_bytes(state, t->codes, t->code_bytes);
    if (t->code_table != NULL) memcpy(t->code_table, quant_code_table(t->spec.format), 16 * sizeof(float));
    if (t->scales != NULL)
        fill_floats(t->scales, t->blocks,
                    t->spec.format == WEIGHT_INT4   ? SPREAD / 3
                    : t->spec.format == WEIGHT_INT8 ? 3 * SPREAD
                                                    : 0.05f);
    if (t->nested_codes == NULL) return;
    random_bytes(state, t->nested_codes, (size_t)t->blocks);
    fill_floats(t->nested_absmax, t->nested_blocks, 0.02f);
    for (int i = 0; i < 256; i++)
        t->nested_map[i] = (float)(i - 128) / 128.0f;
    t->nested_offset = 0.05f;
}

static float random_value(uint64_t *state) {
    return 1.7320508f * SPREAD * ((float)(next_bits(state) >> 40) / 8388608.0f - 1.0f);
}

void weights_random_values(uint64_t *state, int64_t count, bf16 *out) {
    for (int64_t i = 0; i < count; i++)
        out[i] = bf16_from_float(random_value(state));
}

static void fill_dense(uint64_t *state, int32_t id, WeightEntry *entry) {
    int64_t values = entry->rows * entry->cols;
    int kind = id >= WEIGHT_GLOBALS ? (id - WEIGHT_GLOBALS) % LAYER_WEIGHTS : LAYER_INPUT_NORM;
    int norm = weight_is_vector(id) && kind >= LAYER_INPUT_NORM;
    for (int64_t i = 0; i < values; i++) {
        float drawn = random_value(state), value = weight_is_vector(id) ? (float)norm : drawn;
        if (entry->dense == DTYPE_BF16)
            ((bf16 *)entry->data)[i] = bf16_from_float(value);
        else
            ((float *)entry->data)[i] = value;
    }
}

Status weights_random(ModelWeights **out, const ModelConfig *config, const WeightOptions *options, const Backend *backend,
                      uint64_t seed, Error *err) {
    ModelWeights *weights = memory_calloc(1, sizeof *weights);
    weights->config = *config;
    weights->count = weight_count(config);
    weights->entries = memory_calloc((size_t)weights->count, sizeof *weights->entries);
    weights_decide(config, options, config->dtype, weights->entries);
    weights->act = options->act;
    weights->backend = backend;
    weights->exec = options->exec;
    Status status;
    TRY_GOTO(weights_reserve(weights, options, backend, err));
    uint64_t state = seed * 2 + 1;
    for (int32_t id = 0; id < weights->count; id++) {
        WeightEntry *entry = &weights->entries[id];
        if (entry->present && entry->quantized) weights_random_codes(&state, &entry->tensor);
        if (entry->present && !entry->quantized) fill_dense(&state, id, entry);
    }
    *out = weights;
    return OK;
done:
    weights_free(weights);
    return status;
}
