/* The loaded base model as a weight source. */
#include "train/weights.h"

#include <string.h>

#include "core/hash.h"
#include "core/log.h"
#include "core/text.h"
#include "quant/ggml.h"
#include "train/device_memory.h"
#include "train/weights_internal.h"
#include "train/weights_shard.h"

static const char *describe_spec(const QuantSpec *spec, char *out, size_t capacity) {
    (void)snprintf(out, capacity, "%s%s, blocks of %d", weight_format_name(spec->format),
                   spec->double_quant ? " with double quantization" : "", (int)spec->block_size);
    return out;
}

/* "169 linears Q4_K, 28 linears Q6_K" */
static void describe_gguf(const ModelConfig *config, Text *out) {
    for (uint32_t type = 0; type < UINT8_MAX; type++) {
        int64_t count = 0;
        for (int64_t layer = 0; layer < config->layers; layer++)
            for (int i = 0; i < GGUF_LINEARS; i++)
                count += config->gguf.linear[layer][i] == type;
        if (count > 0)
            text_addf(out, "%s%lld linears %s", out->length > 0 ? ", " : "", (long long)count, ggml_type_info(type)->name);
    }
}

/* What a reader of the log should know about a folder that was quantized before. */
static void log_origin(const char *folder, const ModelConfig *config, const WeightOptions *options,
                       const WeightEntry *entries) {
    int int8 = 0;
    const WeightEntry *bnb4 = NULL;
    for (int32_t id = 0; id < weight_count(config); id++) {
        if (!entries[id].present) continue;
        if (entries[id].origin == ORIGIN_INT8) int8 = 1;
        if (entries[id].origin == ORIGIN_BNB4 && bnb4 == NULL) bnb4 = &entries[id];
    }
    char text[96];
    if (int8) {
        QuantSpec spec = {.format = options->linear, .double_quant = options->double_quant, .block_size = options->block_size};
        int dense = options->linear == WEIGHT_F32 || options->linear == WEIGHT_BF16;
        log_info("%s is an LLM.int8 folder: its weights are dequantized%s%s", folder, dense ? "" : ", then quantized to ",
                 dense ? "" : describe_spec(&spec, text, sizeof text));
    }
    if (config->prequant == PREQUANT_GGUF) {
        Text types = {0};
        describe_gguf(config, &types);
        log_info("%s stays in its own types: %s", folder, types.data);
        text_free(&types);
    }
    if (prequant_is_grouped(config->prequant)) {
        char grouped[128];
        log_info(
            "%s stays as it is: %s%s", folder, grouped_config_text(config, grouped, sizeof grouped),
            config->grouped.int8_activations ? "; inputs of linears are rounded to int8 per token, as where it is served" : "");
    }
    if (bnb4 == NULL) return;
    const QuantSpec *spec = &bnb4->spec;
    if (spec->format != options->linear || spec->double_quant != options->double_quant ||
        spec->block_size != options->block_size)
        log_info("%s is quantized already and stays as it is: %s", folder, describe_spec(spec, text, sizeof text));
}

Status weights_take_mirror(ModelWeights *weights, const WeightOptions *options, Error *err) {
    if (options->exec == NULL) return OK;
    TRY(device_arena_create(&weights->mirror, weights->backend, options->exec, "weights", weights->arena.capacity, err));
    weights->mirror.used = weights->arena.used;
    return OK;
}

static int streams(const ModelWeights *weights, const WeightOptions *options) {
    return options->exec != NULL && stream_suits(&weights->config, weights->entries);
}

static Status load_shard(ModelWeights *weights, const TensorFiles *files, const WeightOptions *options, const Backend *backend,
                         Pool *pool, Error *err) {
    WeightShards *shards = weights->shards = memory_calloc(1, sizeof *shards);
    Arena count;
    WeightBytes bytes;
    shards->comm = options->comm;
    shards->arena = &weights->arena;
    shards->mirror = &weights->mirror;
    arena_count(&count, "weights");
    TRY(shards_take(&weights->config, weights->entries, options->ranks, &count, shards, &bytes, err));
    TRY(arena_create(&weights->arena, "weights", bytes.arena, err));
    TRY(shards_take(&weights->config, weights->entries, options->ranks, &weights->arena, shards, &bytes, err));
    if (streams(weights, options)) TRY(weights_take_mirror(weights, options, err));
    if (weights->mirror.base != NULL) TRY(comm_attach(options->comm, options->exec->device, err));
    return shards_read(files, weights, backend, pool, err);
}

static Status load_whole(ModelWeights *weights, const TensorFiles *files, const WeightOptions *options, const Backend *backend,
                         Pool *pool, Error *err) {
    TRY(weights_reserve(weights, options, backend, err));
    if (streams(weights, options)) TRY(weights_take_mirror(weights, options, err));
    ModelWeights *streamed = weights->mirror.base != NULL ? weights : NULL;
    return weights_read(files, &weights->config, weights->entries, streamed, backend, pool, err);
}

static Status load(ModelWeights *weights, const TensorFiles *files, const char *folder, const WeightOptions *options,
                   const Backend *backend, Pool *pool, Error *err) {
    const ModelConfig *config = &weights->config;
    weights_decide(config, options, config->dtype, weights->entries);
    TRY(weights_check(files, folder, config, options, weights->entries, err));
    log_origin(folder, config, options, weights->entries);
    Status status = options->ranks > 1 ? load_shard(weights, files, options, backend, pool, err)
                                       : load_whole(weights, files, options, backend, pool, err);
    if (status != OK) error_prefix(err, "%s", folder);
    return status;
}

Status weights_load(ModelWeights **out, const char *folder, const ModelConfig *config, const WeightOptions *options,
                    const Backend *backend, Pool *pool, Error *err) {
    *out = NULL;
    TensorFiles *files = NULL;
    TRY(tensors_open(&files, folder, NULL, err));
    ModelWeights *weights = memory_calloc(1, sizeof *weights);
    weights->config = *config;
    weights->count = weight_count(config);
    weights->act = options->act;
    weights->backend = backend;
    weights->exec = options->exec;
    weights->entries = memory_calloc((size_t)weights->count, sizeof *weights->entries);
    Status status = load(weights, files, folder, options, backend, pool, err);
    tensors_close(files);
    if (status != OK) {
        weights_free(weights);
        return status;
    }
    *out = weights;
    return OK;
}

/* ---- on a device ---- */

static Status make_dense(ModelWeights *weights, Error *err) {
    size_t bytes = 0, end = 0;
    for (int32_t id = 0; id < weights->count; id++)
        if (weights->entries[id].resident) (void)weight_dense_place(id, &weights->entries[id], weights->act, &bytes);
    if (bytes == 0) return OK;
    bytes = arena_align(bytes);
    TRY(device_arena_create(&weights->dense, weights->backend, weights->exec, "dequantized layers", bytes, err));
    void *base;
    TRY(arena_take(&weights->dense, bytes, &base, err));
    for (int32_t id = 0; id < weights->count; id++) {
        WeightEntry *entry = &weights->entries[id];
        if (!entry->resident) continue;
        WeightView view = weight_stored_view(weights, entry);
        entry->dequantized = (uint8_t *)base + weight_dense_place(id, entry, weights->act, &end);
        TRY(weights->backend->make_dense(weights->exec, &view, entry->dequantized, err));
    }
    return OK;
}

Status weights_to_device(ModelWeights *weights, const Backend *backend, const Exec *exec, Error *err) {
    if (!backend->on_device || weights->dense.base != NULL) return OK;
    weights->backend = backend;
    weights->exec = exec;
    if (weights->mirror.base == NULL) TRY(mirror_create(&weights->mirror, &weights->arena, backend, exec, err));
    TRY(arena_drop(&weights->arena, err));
    return make_dense(weights, err);
}

/* Where the entries of the backend find what an entry of ours calls p; tables that are not in the arena stay where they are. */
static const void *there(const ModelWeights *weights, const void *p) {
    const uint8_t *at = p, *base = weights->arena.base;
    if (at < base || at >= base + weights->arena.capacity) return p;
    return mirror_at(&weights->mirror, &weights->arena, p);
}

static WeightView view_there(const ModelWeights *weights, WeightView view) {
    if (weights->mirror.base == NULL) return view;
    view.data = there(weights, view.data);
    view.scales = there(weights, view.scales);
    view.codes = there(weights, view.codes);
    view.nested_codes = there(weights, view.nested_codes);
    view.nested_absmax = there(weights, view.nested_absmax);
    view.nested_map = there(weights, view.nested_map);
    view.zeros = there(weights, view.zeros);
    view.group_index = there(weights, view.group_index);
    return view;
}

/* ---- the interface ---- */

void weights_free(ModelWeights *weights) {
    if (weights == NULL) return;
    if (weights->mirror.base != NULL) device_arena_free(&weights->mirror, weights->backend, weights->exec);
    if (weights->dense.base != NULL) device_arena_free(&weights->dense, weights->backend, weights->exec);
    if (weights->pinned.base != NULL) pinned_arena_free(&weights->pinned, weights->backend, weights->exec);
    arena_free(&weights->small_head);
    arena_free(&weights->arena);
    shards_free(weights->shards);
    memory_free(weights->entries);
    memory_free(weights);
}

static WeightView entry_view(const ModelWeights *weights, const WeightEntry *entry) {
    if (!entry->resident) return weight_stored_view(weights, entry);
    return (WeightView){.format = weights->act == DTYPE_F32 ? WEIGHT_F32 : WEIGHT_BF16,
                        .rows = entry->rows,
                        .cols = entry->cols,
                        .data = entry->dequantized};
}

WeightView weight_stored_view(const ModelWeights *weights, const WeightEntry *entry) {
    if (entry->quantized) return view_there(weights, quantized_view(&entry->tensor));
    WeightFormat dense = entry->dense == DTYPE_BF16 ? WEIGHT_BF16 : WEIGHT_F32;
    return (WeightView){.format = entry->ggml != 0 ? WEIGHT_GGML : dense,
                        .ggml_type = entry->ggml,
                        .rows = entry->rows,
                        .cols = entry->cols,
                        .data = there(weights, entry->data)};
}

/* The head's copy in Q8_0. */
static WeightView small_head_view(const ModelWeights *weights) {
    const WeightEntry *entry = &weights->entries[weights->config.tied_embeddings ? WEIGHT_EMBED : WEIGHT_HEAD];
    return (WeightView){.format = WEIGHT_GGML,
                        .ggml_type = GGML_Q8_0,
                        .rows = entry->rows,
                        .cols = entry->cols,
                        .data = weights->small_head.base};
}

WeightView weights_view(const ModelWeights *weights, int32_t id) {
    if (id == WEIGHT_HEAD && weights->small_head.base != NULL) return small_head_view(weights);
    if (id == WEIGHT_HEAD && weights->config.tied_embeddings) id = WEIGHT_EMBED;
    if (id < 0 || id >= weights->count || !weights->entries[id].present) return (WeightView){0};
    return entry_view(weights, &weights->entries[id]);
}

/* The arrays of a packed weight, one after another in *copy. */
static Status copy_packed(const ModelWeights *weights, const QuantizedTensor *from, WeightView *view, void **copy, Error *err) {
    QuantizedTensor to;
    Arena arena;
    arena_count(&arena, "one weight");
    TRY(quantized_take(&to, &from->spec, from->rows, from->cols, &arena, err));
    size_t bytes = arena.used;
    arena = (Arena){.name = "one weight", .base = memory_alloc(bytes), .capacity = bytes};
    *copy = arena.base;
    TRY(quantized_take(&to, &from->spec, from->rows, from->cols, &arena, err));
    to.nested_offset = from->nested_offset;
    size_t blocks = (size_t)from->blocks;
    const struct {
        void *to;
        const void *from;
        size_t bytes;
    } parts[] = {
        {to.codes, from->codes, from->code_bytes},
        {to.code_table, from->code_table, 16 * sizeof(float)},
        {to.scales, from->scales, blocks * sizeof(float)},
        {to.nested_codes, from->nested_codes, blocks},
        {to.nested_absmax, from->nested_absmax, (size_t)from->nested_blocks * sizeof(float)},
        {to.nested_map, from->nested_map, 256 * sizeof(float)},
        {to.zeros, from->zeros, blocks},
        {to.group_index, from->group_index, (size_t)from->cols * sizeof *from->group_index},
    };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (parts[i].from != NULL)
            TRY(weights->backend->copy_out(weights->exec, parts[i].to, there(weights, parts[i].from), parts[i].bytes, err));
    *view = quantized_view(&to);
    return OK;
}

Status weights_host_view(const ModelWeights *weights, int32_t id, WeightView *view, void **copy, Error *err) {
    *copy = NULL;
    *view = weights_view(weights, id);
    if (weights->mirror.base == NULL || view->data == NULL) return OK;
    const uint8_t *data = view->data, *base = weights->mirror.base;
    if (data < base || data >= base + weights->mirror.capacity) return OK;
    const WeightEntry *entry = &weights->entries[id == WEIGHT_HEAD && weights->config.tied_embeddings ? WEIGHT_EMBED : id];
    Status status;
    if (entry->quantized) {
        status = copy_packed(weights, &entry->tensor, view, copy, err);
    } else {
        size_t bytes = weight_data_bytes(entry);
        view->data = *copy = memory_alloc(bytes);
        status = weights->backend->copy_out(weights->exec, *copy, data, bytes, err);
    }
    if (status == OK) return OK;
    memory_free(*copy);
    *copy = NULL;
    return status;
}

/* An entry as it lies in memory now: a linear of a split base is waited for, and lies where it was gathered. */
static Status entry_now(const ModelWeights *weights, int32_t id, Pass pass, WeightEntry *now, Error *err) {
    ptrdiff_t shift;
    const void *data;
    *now = weights->entries[id];
    if (weights->shards == NULL || !now->present || !weight_is_linear(id)) return OK;
    TRY(shards_need(weights->shards, (id - WEIGHT_GLOBALS) / LAYER_WEIGHTS, pass, &shift, err));
    shards_moved(weights->shards, &weights->entries[id], id, shift, &now->tensor, &data);
    now->data = (void *)(uintptr_t)data;
    return OK;
}

static Status acquire(void *self, int32_t weight, Pass pass, WeightView *view, Error *err) {
    (void)pass;
    *view = weights_view(self, weight);
    if (view->rows == 0) FAIL("the model has no weight number %d", (int)weight);
    return OK;
}

static Status acquire_gathered(void *self, int32_t weight, Pass pass, WeightView *view, Error *err) {
    const ModelWeights *weights = self;
    WeightEntry now;
    if (weight >= 0 && weight < weights->count && weight_is_linear(weight) && weights->entries[weight].present) {
        TRY(entry_now(weights, weight, pass, &now, err));
        *view = entry_view(weights, &now);
        return OK;
    }
    return acquire(self, weight, pass, view, err);
}

static void release(void *self, int32_t weight, Pass pass) {
    (void)self;
    (void)weight;
    (void)pass;
}

WeightSource weights_source(ModelWeights *weights) {
    return (WeightSource){.self = weights,
                          .acquire = weights->shards != NULL ? acquire_gathered : acquire,
                          .release = release,
                          .fixed = weights->shards == NULL};
}

#define HASH_PIECE ((size_t)1 << 20)

/* A sum over the weights' bytes; those on a device pass through `piece`. */
typedef struct WeightsHash {
    Hash hash;
    const ModelWeights *weights;
    uint8_t *piece; /* NULL on the CPU */
    int failed;
} WeightsHash;

static void hash_part(WeightsHash *h, const void *bytes, size_t length) {
    const ModelWeights *w = h->weights;
    if (h->piece == NULL) {
        hash_update(&h->hash, bytes, length);
        return;
    }
    const uint8_t *from = there(w, bytes);
    if (from == bytes) { /* in host memory */
        hash_update(&h->hash, bytes, length);
        return;
    }
    for (size_t done = 0; done < length && !h->failed; done += HASH_PIECE) {
        size_t count = length - done < HASH_PIECE ? length - done : HASH_PIECE;
        h->failed = w->backend->copy_out(w->exec, h->piece, from + done, count, NULL) != OK;
        if (!h->failed) hash_update(&h->hash, h->piece, count);
    }
}

static void hash_tensor(WeightsHash *hash, const QuantizedTensor *t) {
    hash_part(hash, t->codes, t->code_bytes);
    if (t->zeros != NULL) hash_part(hash, t->zeros, (size_t)t->blocks);
    if (t->group_index != NULL) hash_part(hash, t->group_index, (size_t)t->cols * sizeof *t->group_index);
    if (t->code_table != NULL) hash_part(hash, t->code_table, 16 * sizeof(float));
    if (t->scales != NULL) hash_part(hash, t->scales, (size_t)t->blocks * sizeof(float));
    if (t->nested_codes == NULL) return;
    hash_part(hash, t->nested_codes, (size_t)t->blocks);
    hash_part(hash, t->nested_absmax, (size_t)t->nested_blocks * sizeof(float));
    hash_part(hash, t->nested_map, 256 * sizeof(float));
    hash_update(&hash->hash, &t->nested_offset, sizeof t->nested_offset);
}

uint64_t weights_hash(const ModelWeights *weights) {
    WeightsHash *h = memory_calloc_aligned(_Alignof(WeightsHash), sizeof *h);
    h->weights = weights;
    if (weights->mirror.base != NULL) h->piece = memory_alloc(HASH_PIECE);
    hash_init(&h->hash);
    for (int32_t id = 0; id < weights->count; id++) {
        WeightEntry now;
        if (h->failed || !weights->entries[id].present) continue;
        h->failed = entry_now(weights, id, PASS_FORWARD, &now, NULL) != OK;
        if (h->failed) continue;
        if (now.quantized)
            hash_tensor(h, &now.tensor);
        else
            hash_part(h, now.data, weight_data_bytes(&now));
    }
    uint64_t hash = h->failed ? 0 : hash_final(&h->hash);
    memory_free(h->piece);
    memory_free(h);
    return hash;
}

/* ---- a split base ---- */

int weights_are_split(const ModelWeights *weights) {
    return weights != NULL && weights->shards != NULL;
}

Status weights_idle_pass(ModelWeights *weights, int with_backward, WeightsLayerDone *layer_done, void *self, Error *err) {
    ShardWalk walk = {.layer_done = layer_done, .self = self};
    if (weights == NULL || weights->shards == NULL) return OK;
    return shards_walk(weights->shards, 0, PASS_FORWARD, with_backward, &walk, err);
}

Status weights_finish_pass(ModelWeights *weights, int with_backward, Error *err) {
    ShardWalk walk = {.layer_done = NULL};
    if (weights == NULL || weights->shards == NULL) return OK;
    const WeightShards *shards = weights->shards;
    return shards_walk(weights->shards, shards->layer < 0 ? 0 : shards->layer, shards->pass, with_backward, &walk, err);
}

uint64_t weights_step_bytes(const WeightBytes *bytes, int64_t layers, int ranks, int64_t rounds) {
    int64_t sent = layers - SHARD_SLOTS; /* upwards, and as many downwards */
    if (ranks < 2 || bytes->gathered == 0 || sent <= 0) return 0;
    size_t share = bytes->gathered / SHARD_SLOTS / (size_t)ranks;
    return (uint64_t)share * (uint64_t)(ranks - 1) * (uint64_t)(2 * sent) * (uint64_t)rounds;
}

WeightFormat weights_linear_format(const ModelWeights *weights) {
    return weight_stored_view(weights, &weights->entries[weight_id(0, LAYER_Q)]).format;
}

size_t weights_device_bytes(const ModelWeights *weights) {
    return weights->mirror.capacity + weights->dense.capacity;
}

size_t weights_dense_bytes(const ModelWeights *weights) {
    return weights->dense.capacity;
}

size_t weights_pinned_bytes(const ModelWeights *weights) {
    return weights->pinned.capacity;
}

size_t weights_bytes(const ModelWeights *weights) {
    return weights->arena.used + weights->small_head.capacity;
}
