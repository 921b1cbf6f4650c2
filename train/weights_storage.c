/* How each weight lies in memory. The plan and the loader run the same code: one with a counting arena. */
#include <string.h>

#include "quant/ggml.h"
#include "train/device_memory.h"
#include "train/weights_internal.h"
#include "train/weights_shard.h"

DType weight_dense_type(int32_t id, DType act, DType file_dtype) {
    if (weight_is_vector(id)) return act;
    if (act == DTYPE_BF16 || file_dtype == DTYPE_BF16) return DTYPE_BF16; /* BF16 values are exact in an F32 run too */
    return DTYPE_F32;
}

static int is_dense_format(WeightFormat format) {
    return format == WEIGHT_F32 || format == WEIGHT_BF16 || format == WEIGHT_F64;
}

/* The type in which a GGUF file has a matrix. */
static uint32_t gguf_type(const ModelConfig *config, int32_t id) {
    if (id == WEIGHT_EMBED) return config->gguf.embedding;
    if (id == WEIGHT_HEAD) return config->gguf.head;
    int32_t at = id - WEIGHT_GLOBALS;
    return config->gguf.linear[at / LAYER_WEIGHTS][at % LAYER_WEIGHTS];
}

/* Blocks stay as they are. F16 stays in an FP32 run, where BF16 would lose bits and FP32 twice the memory, unless it is to be
 * quantized. */
static void decide_gguf(const ModelConfig *config, int32_t id, const WeightOptions *options, WeightEntry *entry) {
    uint32_t type = gguf_type(config, id);
    int is_blocks = ggml_type_info(type)->is_quantized;
    if (is_blocks || config->prequant == PREQUANT_GGUF) entry->quantized = 0;
    if (is_blocks || (type == GGML_F16 && options->act == DTYPE_F32 && !entry->quantized)) entry->ggml = type;
    entry->dense = weight_dense_type(id, options->act,
                                     type == GGML_BF16  ? DTYPE_BF16
                                     : type == GGML_F16 ? DTYPE_F16
                                                        : DTYPE_F32);
}

/* As weights_check decides when it has the tensors. */
static void take_facts(const ModelConfig *config, const WeightOptions *options, int32_t id, WeightEntry *entry) {
    if (options->facts == NULL || id >= options->facts->count || (config->gguf.is_file && !weight_is_vector(id))) return;
    WeightOrigin origin = options->facts->weight[id].origin;
    int is_packed = origin == ORIGIN_BNB4 || origin == ORIGIN_GROUPED;
    if (is_packed) entry->spec = options->facts->weight[id].spec;
    if (is_packed || config->prequant == PREQUANT_BNB_4BIT || prequant_is_grouped(config->prequant))
        entry->quantized = is_packed;
    entry->dense = weight_dense_type(id, options->act, origin == ORIGIN_INT8 ? DTYPE_F32 : options->facts->weight[id].type);
}

static void decide_place(const ModelConfig *config, int32_t id, const WeightPlaces *places, WeightEntry *entry) {
    entry->pinned = id == WEIGHT_EMBED && places->pinned_embedding && !config->tied_embeddings;
    if (!weight_is_linear(id)) return;
    int64_t layer = (id - WEIGHT_GLOBALS) / LAYER_WEIGHTS;
    entry->pinned = layer < places->pinned_layers;
    entry->resident = (entry->quantized || entry->ggml != 0) && layer >= config->layers - places->dense_layers;
}

void weights_decide(const ModelConfig *config, const WeightOptions *options, DType file_dtype, WeightEntry *entries) {
    int32_t count = weight_count(config);
    QuantSpec spec = {.format = options->linear, .double_quant = options->double_quant, .block_size = options->block_size};
    if (config->prequant == PREQUANT_BNB_4BIT)
        spec = (QuantSpec){.format = config->prequant_nf4 ? WEIGHT_NF4 : WEIGHT_FP4,
                           .double_quant = config->prequant_double,
                           .block_size = 64}; /* config.json does not say it; weights_check takes it from the tensors */
    if (prequant_is_grouped(config->prequant)) spec = grouped_spec(config, config->dtype);
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
        if (config->gguf.is_file && !weight_is_vector(id)) decide_gguf(config, id, options, entry);
        take_facts(config, options, id, entry);
        decide_place(config, id, &options->places, entry);
    }
}

/* Adds what an entry took (alignment included) to its kind. */
void weight_add_bytes(int32_t id, const WeightEntry *entry, size_t taken, WeightBytes *bytes) {
    bytes->arena += taken;
    if (weight_is_vector(id)) {
        bytes->norms += taken;
    } else if (!weight_is_linear(id)) {
        *(id == WEIGHT_EMBED ? &bytes->embedding : &bytes->head) += taken;
    } else if (entry->quantized) {
        size_t codes = arena_align(entry->tensor.code_bytes);
        bytes->linear += codes;
        bytes->constants += taken - codes;
    } else {
        bytes->linear += taken;
    }
}

size_t weight_data_bytes(const WeightEntry *entry) {
    int64_t blocks = 0;
    if (entry->ggml == 0) return (size_t)(entry->rows * entry->cols) * dtype_size(entry->dense);
    return ggml_bytes(entry->ggml, entry->rows, entry->cols, &blocks, NULL) == OK ? (size_t)blocks : 0;
}

static Status take_entry(WeightEntry *entry, Arena *arena, Error *err) {
    if (entry->quantized) return quantized_take(&entry->tensor, &entry->spec, entry->rows, entry->cols, arena, err);
    size_t bytes;
    int64_t blocks;
    if (entry->ggml != 0) {
        TRY(ggml_bytes(entry->ggml, entry->rows, entry->cols, &blocks, err));
        return arena_take(arena, (size_t)blocks, &entry->data, err);
    }
    if (entry->rows <= 0 || entry->cols <= 0 || size_mul((size_t)entry->rows, (size_t)entry->cols, &bytes) ||
        size_mul(bytes, dtype_size(entry->dense), &bytes))
        FAIL("a weight of shape [%lld, %lld] is too large", (long long)entry->rows, (long long)entry->cols);
    return arena_take(arena, bytes, &entry->data, err);
}

Status weight_take_entry(const ModelConfig *config, int32_t id, WeightEntry *entry, Arena *arena, Error *err) {
    Status status = take_entry(entry, arena, err);
    if (status != OK) {
        char name[WEIGHT_NAME_MAX];
        int64_t rows, cols;
        (void)weight_describe(config, id, name, sizeof name, &rows, &cols);
        error_prefix(err, "%s", name);
    }
    return status;
}

size_t weight_dense_place(int32_t id, const WeightEntry *entry, DType act, size_t *end) {
    int kind = (id - WEIGHT_GLOBALS) % LAYER_WEIGHTS;
    int follows = kind == LAYER_K || kind == LAYER_V || kind == LAYER_UP;
    size_t at = follows ? *end : arena_align(*end);
    *end = at + (size_t)(entry->rows * entry->cols) * dtype_size(act);
    return at;
}

Status weights_take(const ModelConfig *config, WeightEntry *entries, Arena *arena, Arena *pinned, WeightBytes *bytes,
                    Error *err) {
    memset(bytes, 0, sizeof *bytes);
    for (int32_t id = 0; id < weight_count(config); id++) {
        WeightEntry *entry = &entries[id];
        if (!entry->present) continue;
        Arena *from = entry->pinned ? pinned : arena;
        size_t before = from->used;
        TRY(weight_take_entry(config, id, entry, from, err));
        if (entry->pinned)
            bytes->pinned += from->used - before;
        else
            weight_add_bytes(id, entry, from->used - before, bytes);
    }
    return OK;
}

Status weights_reserve(ModelWeights *weights, const WeightOptions *options, const Backend *backend, Error *err) {
    const ModelConfig *config = &weights->config;
    Arena arena, pinned;
    WeightBytes bytes;
    arena_count(&arena, "weights");
    arena_count(&pinned, "weights in host memory");
    TRY(weights_take(config, weights->entries, &arena, &pinned, &bytes, err));
    TRY(arena_create(&weights->arena, "weights", bytes.arena, err));
    if (bytes.pinned > 0)
        TRY(pinned_arena_create(&weights->pinned, backend, options->exec, "weights in host memory", bytes.pinned, err));
    return weights_take(config, weights->entries, &weights->arena, &weights->pinned, &bytes, err);
}

/* Rows of one staging buffer: as many as fit, and at least one. */
static int64_t stage_rows(const WeightEntry *entry, DType file_dtype) {
    size_t widest = entry->origin == ORIGIN_INT8 ? sizeof(float) : dtype_size(file_dtype);
    int64_t rows = (int64_t)(STAGE_BYTES / widest) / entry->cols;
    return rows < 1 ? 1 : rows > entry->rows ? entry->rows : rows;
}

static size_t stage_bytes(const WeightEntry *entry, DType file_dtype) {
    return (size_t)(stage_rows(entry, file_dtype) * entry->cols) * dtype_size(file_dtype);
}

/* All buffers, and the FP32 constants of the largest double-quantized weight. */
static size_t weights_staging(const WeightEntry *entries, int32_t count, DType file_dtype) {
    size_t largest = 0, constants = 0, grouped = 0;
    for (int32_t id = 0; id < count; id++) {
        const WeightEntry *entry = &entries[id];
        if (!entry->present || entry->ggml != 0) continue; /* blocks are read into their place */
        size_t stage = stage_bytes(entry, file_dtype);
        if (entry->quantized && entry->spec.format == WEIGHT_GROUPED) {
            if (grouped_staging(entry) > grouped) grouped = grouped_staging(entry);
            continue;
        }
        if (stage > largest) largest = stage;
        size_t nested = (size_t)quant_nested_constants(&entry->spec, entry->rows, entry->cols) * sizeof(float);
        if (entry->quantized && nested > constants) constants = nested;
    }
    size_t staged = STAGE_COUNT * largest + constants;
    return staged > grouped ? staged : grouped;
}

Status weights_plan(const ModelConfig *config, const WeightOptions *options, DType file_dtype, WeightBytes *bytes, Error *err) {
    int32_t count = weight_count(config);
    WeightEntry *entries = memory_calloc((size_t)count, sizeof *entries);
    weights_decide(config, options, file_dtype, entries);
    Arena arena, pinned;
    arena_count(&arena, "weights");
    arena_count(&pinned, "weights in host memory");
    WeightShards shards = {.comm = NULL};
    Status status = options->ranks > 1 ? shards_take(config, entries, options->ranks, &arena, &shards, bytes, err)
                                       : weights_take(config, entries, &arena, &pinned, bytes, err);
    for (int32_t id = 0; id < count; id++)
        if (entries[id].resident) (void)weight_dense_place(id, &entries[id], options->act, &bytes->dense);
    bytes->dense = arena_align(bytes->dense);
    memory_free(shards.own);
    memory_free(shards.offsets);
    bytes->staging = weights_staging(entries, count, file_dtype);
    memory_free(entries);
    return status;
}

void weights_formats(const ModelConfig *config, const WeightOptions *options, DType file_dtype, WeightFormat *formats) {
    int32_t count = weight_count(config);
    WeightEntry *entries = memory_calloc((size_t)count, sizeof *entries);
    weights_decide(config, options, file_dtype, entries);
    for (int32_t id = 0; id < count; id++) {
        const WeightEntry *entry = &entries[id == WEIGHT_HEAD && config->tied_embeddings ? WEIGHT_EMBED : id];
        DType dense = entry->resident ? options->act : entry->dense;
        formats[id] = entry->resident || (!entry->quantized && entry->ggml == 0)
                          ? (dense == DTYPE_F32 ? WEIGHT_F32 : WEIGHT_BF16)
                      : entry->quantized ? entry->spec.format
                                         : WEIGHT_GGML;
    }
    memory_free(entries);
}
