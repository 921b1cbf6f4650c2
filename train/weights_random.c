/* Weights of a shape without a file, for measurements: random codes and values of a layer's usual size. On a device codes are made
 * there, and the host has pieces of the rest. */
#include <string.h>

#include "train/device_memory.h"

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
static float usual_scale(WeightFormat format) {
    return format == WEIGHT_INT4 ? SPREAD / 3 : format == WEIGHT_INT8 ? 3 * SPREAD : 0.05f;
}

#define NESTED_SCALE 0.02f
#define NESTED_OFFSET 0.05f

static void fill_map(float *map) {
    for (int i = 0; i < 256; i++)
        map[i] = (float)(i - 128) / 128.0f;
}

void weights_random_codes(uint64_t *state, QuantizedTensor *t) {
    random_bytes(state, t->codes, t->code_bytes);
    if (t->code_table != NULL) memcpy(t->code_table, quant_code_table(t->spec.format), 16 * sizeof(float));
    if (t->scales != NULL) fill_floats(t->scales, t->blocks, usual_scale(t->spec.format));
    if (t->nested_codes == NULL) return;
    random_bytes(state, t->nested_codes, (size_t)t->blocks);
    fill_floats(t->nested_absmax, t->nested_blocks, NESTED_SCALE);
    fill_map(t->nested_map);
    t->nested_offset = NESTED_OFFSET;
}

static float random_value(uint64_t *state) {
    return 1.7320508f * SPREAD * ((float)(next_bits(state) >> 40) / 8388608.0f - 1.0f);
}

void weights_random_values(uint64_t *state, int64_t count, bf16 *out) {
    for (int64_t i = 0; i < count; i++)
        out[i] = bf16_from_float(random_value(state));
}

/* The next `count` values of a dense weight; vectors hold 1 (norms) or 0 (biases). */
static void fill_dense(uint64_t *state, int32_t id, DType type, int64_t count, void *out) {
    int kind = id >= WEIGHT_GLOBALS ? (id - WEIGHT_GLOBALS) % LAYER_WEIGHTS : LAYER_INPUT_NORM;
    int norm = weight_is_vector(id) && kind >= LAYER_INPUT_NORM;
    for (int64_t i = 0; i < count; i++) {
        float drawn = random_value(state), value = weight_is_vector(id) ? (float)norm : drawn;
        if (type == DTYPE_BF16)
            ((bf16 *)out)[i] = bf16_from_float(value);
        else
            ((float *)out)[i] = value;
    }
}

/* ---- on a device ---- */

/* Where a device has what the host's arena would have at p. */
static void *there(const ModelWeights *w, void *p) {
    return mirror_at(&w->mirror, &w->arena, p);
}

static Status put_floats(const ModelWeights *w, float *to, int64_t count, float value, Error *err) {
    float *values = memory_alloc((size_t)count * sizeof *values);
    fill_floats(values, count, value);
    Status status = w->backend->copy_in(w->exec, there(w, to), values, (size_t)count * sizeof *values, err);
    memory_free(values);
    return status;
}

/* As weights_random_codes, with other bytes. */
static Status put_codes(const ModelWeights *w, uint64_t *state, QuantizedTensor *t, Error *err) {
    const Backend *b = w->backend;
    float map[256];
    TRY(b->random_bytes(w->exec, there(w, t->codes), t->code_bytes, next_bits(state), err));
    if (t->code_table != NULL)
        TRY(b->copy_in(w->exec, there(w, t->code_table), quant_code_table(t->spec.format), 16 * sizeof(float), err));
    if (t->scales != NULL) TRY(put_floats(w, t->scales, t->blocks, usual_scale(t->spec.format), err));
    if (t->nested_codes == NULL) return OK;
    fill_map(map);
    t->nested_offset = NESTED_OFFSET;
    TRY(b->random_bytes(w->exec, there(w, t->nested_codes), (size_t)t->blocks, next_bits(state), err));
    TRY(put_floats(w, t->nested_absmax, t->nested_blocks, NESTED_SCALE, err));
    return b->copy_in(w->exec, there(w, t->nested_map), map, sizeof map, err);
}

#define PIECE (1 << 20) /* values that the host has at a time */

static Status put_dense(const ModelWeights *w, uint64_t *state, int32_t id, const WeightEntry *entry, Error *err) {
    int64_t count = entry->rows * entry->cols;
    size_t size = dtype_size(entry->dense);
    void *piece = memory_alloc(PIECE * size);
    Status status = OK;
    for (int64_t at = 0; at < count && status == OK; at += PIECE) {
        int64_t values = count - at < PIECE ? count - at : PIECE;
        fill_dense(state, id, entry->dense, values, piece);
        status = w->backend->copy_in(w->exec, (uint8_t *)there(w, entry->data) + (size_t)at * size, piece,
                                     (size_t)values * size, err);
    }
    memory_free(piece);
    return status;
}

static Status make_entry(const ModelWeights *w, uint64_t *state, int32_t id, Error *err) {
    WeightEntry *entry = &w->entries[id];
    int is_there = w->mirror.base != NULL && !entry->pinned;
    if (!entry->present) return OK;
    if (entry->quantized && is_there) return put_codes(w, state, &entry->tensor, err);
    if (is_there) return put_dense(w, state, id, entry, err);
    if (entry->quantized)
        weights_random_codes(state, &entry->tensor);
    else
        fill_dense(state, id, entry->dense, entry->rows * entry->cols, entry->data);
    return OK;
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
    TRY_GOTO(weights_take_mirror(weights, options, err));
    uint64_t state = seed * 2 + 1;
    for (int32_t id = 0; id < weights->count; id++)
        TRY_GOTO(make_entry(weights, &state, id, err));
    *out = weights;
    return OK;
done:
    weights_free(weights);
    return status;
}
