#include "train/model.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct Recorder {
    Tape *tape;
    const ModelShape *shape;
    const ModelConfig *config;
    int64_t positions; /* a sequence is shorter than this */
    DType act;
} Recorder;

static const char *const linear_names[LAYER_LINEARS] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                                        "self_attn.o_proj", "mlp.gate_proj",    "mlp.up_proj",
                                                        "mlp.down_proj"};

static WeightRef ref_of(const Recorder *r, int32_t id) {
    int64_t rows, cols;
    if (!weight_describe(r->config, id, NULL, 0, &rows, &cols)) return WEIGHT_NONE;
    return (WeightRef){id, 0, r->shape->weight_gradient == NULL ? -1 : r->shape->weight_gradient[id]};
}

static WeightFormat format_of(const Recorder *r, int32_t id, WeightFormat otherwise) {
    if (r->shape->weights != NULL) return weights_view(r->shape->weights, id).format;
    return r->shape->formats != NULL ? r->shape->formats[id] : otherwise;
}

static TapeLinear member(const Recorder *r, int64_t layer, LayerWeight kind) {
    int32_t id = weight_id(layer, kind);
    int64_t rows = 0, cols = 0;
    (void)weight_describe(r->config, id, NULL, 0, &rows, &cols);
    WeightFormat format = format_of(r, id, r->shape->linear);
    if (r->shape->qat != QAT_NONE) format = r->act == DTYPE_F32 ? WEIGHT_F32 : WEIGHT_BF16;
    TapeLinear out = {.spec = {.out = rows, .format = format},
                      .weight = ref_of(r, id),
                      .bias = ref_of(r, weight_id(layer, (LayerWeight)(kind + LAYER_Q_BIAS))),
                      .lora_a = -1,
                      .lora_b = -1};
    out.weight.derived = r->shape->learn_scales;
    const Adapter *adapter = r->shape->adapter;
    if (adapter == NULL) return out;
    const AdapterModule *module = adapter_module(adapter, layer, kind);
    if (r->shape->qat == QAT_MERGED) {
        out.weight.derived |= module->rank > 0;
        return out;
    }
    out.spec.rank = module->rank;
    out.spec.lora_scale = module->scale;
    out.spec.dropout = adapter->dropout;
    out.spec.dropout_stream = (uint32_t)(layer * LAYER_LINEARS + (int64_t)kind);
    out.lora_a = module->a;
    out.lora_b = module->b;
    return out;
}

/* *x becomes a rounded copy of itself where bits is not 0: a scale per `group` values of a token. */
static Status fake_rows(const Recorder *r, const char *name, int bits, int symmetric, int64_t group, int64_t range, TensorId *x,
                        Error *err) {
    if (bits == 0) return OK;
    char full[80];
    (void)snprintf(full, sizeof full, "%s.codes", name);
    FakeRowsShape shape = {.group = group, .bits = bits, .symmetric = symmetric};
    return tape_fake_rows(r->tape, full, *x, &shape, range, x, err);
}

static Status linear_group(const Recorder *r, int64_t layer, const char *name, LayerWeight first, int count, TensorId x,
                           TensorId *y, Error *err) {
    TapeLinear members[LINEAR_GROUP_MAX];
    for (int i = 0; i < count; i++)
        members[i] = member(r, layer, (LayerWeight)((int)first + i));
    char full[64];
    int64_t rows, cols = 0;
    const ActivationQuant *round = &r->shape->activations;
    (void)snprintf(full, sizeof full, "layers.%lld.%s", (long long)layer, name);
    (void)weight_describe(r->config, weight_id(layer, first), NULL, 0, &rows, &cols);
    int64_t range = round->fixed ? model_range(layer, first) : -1;
    TRY(fake_rows(r, full, round->bits, round->symmetric, cols, range, &x, err));
    return tape_linear(r->tape, full, x, members, count, y, err);
}

static Status record_layer(const Recorder *r, int64_t layer, TensorId *residual, TensorId *x, Error *err) {
    const ModelConfig *c = r->config;
    char name[64];
    TensorId n, qkv[3], q, k, o, gate_up[2], activated;
    tape_segment(r->tape, (int32_t)layer);
    (void)snprintf(name, sizeof name, "layers.%lld.input_layernorm", (long long)layer);
    TRY(tape_norm(r->tape, name, *residual, *x, ref_of(r, weight_id(layer, LAYER_INPUT_NORM)), c->rms_eps, residual, &n, err));
    TRY(linear_group(r, layer, "self_attn.qkv_proj", LAYER_Q, 3, n, qkv, err));
    RopeShape rope = {
        .heads = c->heads, .kv_heads = c->kv_heads, .head_dim = c->head_dim, .table_rows = r->positions, .epsilon = c->rms_eps};
    (void)snprintf(name, sizeof name, "layers.%lld.self_attn.rope", (long long)layer);
    TRY(tape_rope(r->tape, name, qkv[0], qkv[1], &rope, ref_of(r, weight_id(layer, LAYER_Q_NORM)),
                  ref_of(r, weight_id(layer, LAYER_K_NORM)), &q, &k, err));
    TensorId v = qkv[2];
    int kv_bits = r->shape->activations.kv_bits;
    (void)snprintf(name, sizeof name, "layers.%lld.self_attn.key", (long long)layer);
    TRY(fake_rows(r, name, kv_bits, 1, c->head_dim, -1, &k, err));
    (void)snprintf(name, sizeof name, "layers.%lld.self_attn.value", (long long)layer);
    TRY(fake_rows(r, name, kv_bits, 1, c->head_dim, -1, &v, err));
    AttentionShape attention = {.heads = c->heads,
                                .kv_heads = c->kv_heads,
                                .head_dim = c->head_dim,
                                .window = c->window[layer],
                                .scale = (float)(1.0 / sqrt((double)c->head_dim))};
    (void)snprintf(name, sizeof name, "layers.%lld.self_attn.attention", (long long)layer);
    TRY(tape_attention(r->tape, name, (int32_t)layer, q, k, v, &attention, &o, err));
    TRY(linear_group(r, layer, linear_names[LAYER_O], LAYER_O, 1, o, x, err));
    (void)snprintf(name, sizeof name, "layers.%lld.post_attention_layernorm", (long long)layer);
    TRY(tape_norm(r->tape, name, *residual, *x, ref_of(r, weight_id(layer, LAYER_POST_NORM)), c->rms_eps, residual, &n, err));
    TRY(linear_group(r, layer, "mlp.gate_up_proj", LAYER_GATE, 2, n, gate_up, err));
    (void)snprintf(name, sizeof name, "layers.%lld.mlp.act", (long long)layer);
    TRY(tape_gate(r->tape, name, c->gelu_gate ? GATE_GELU_TANH : GATE_SILU, gate_up[0], gate_up[1], &activated, err));
    return linear_group(r, layer, linear_names[LAYER_DOWN], LAYER_DOWN, 1, activated, x, err);
}

static Status record_all(const Recorder *r, Error *err) {
    const ModelConfig *c = r->config;
    TensorId residual, x = TENSOR_NONE, sum, n;
    tape_segment(r->tape, -1);
    WeightRef table = ref_of(r, WEIGHT_EMBED);
    TRY(tape_embed(r->tape, "embed_tokens", table, c->vocab, c->hidden, &residual, err));
    for (int64_t layer = 0; layer < c->layers; layer++)
        TRY(record_layer(r, layer, &residual, &x, err));
    tape_segment(r->tape, -1);
    TRY(tape_norm(r->tape, "norm", residual, x, ref_of(r, WEIGHT_FINAL_NORM), c->rms_eps, &sum, &n, err));
    WeightRef head = c->tied_embeddings ? table : ref_of(r, WEIGHT_HEAD);
    if (r->shape->weights != NULL && weights_has_small_head(r->shape->weights)) head = WEIGHT_FROZEN(WEIGHT_HEAD);
    TRY(tape_head(r->tape, "lm_head", n, head, format_of(r, WEIGHT_HEAD, r->shape->dense), c->vocab, err));
    return tape_finish(r->tape, err);
}

Status model_record(Tape **tape, const ModelShape *shape, const TapeOptions *options, Error *err) {
    *tape = NULL;
    Recorder recorder = {.shape = shape,
                         .config = shape->config,
                         .act = options->exec.act,
                         .positions = options->mode == TAPE_GENERATE ? options->cache_rows : options->rows};
    TRY(tape_create(&recorder.tape, options, err));
    Status status = record_all(&recorder, err);
    if (status != OK) {
        tape_free(recorder.tape);
        return status;
    }
    *tape = recorder.tape;
    return OK;
}

size_t rope_memory_bytes(const ModelConfig *config, int64_t rows) {
    return 2 * arena_align((size_t)(rows * config->head_dim / 2) * sizeof(float));
}

Status rope_memory_create(RopeMemory *rope, const ModelConfig *config, int64_t rows, int64_t longest, Error *err) {
    memset(rope, 0, sizeof *rope);
    double inverse[ROPE_MAX_PAIRS], factor;
    TRY(rope_frequencies(config, longest, inverse, &factor, err));
    TRY(arena_create(&rope->arena, "rope tables", rope_memory_bytes(config, rows), err));
    int64_t pairs = config->head_dim / 2;
    void *cosine, *sine;
    TRY(arena_take(&rope->arena, (size_t)(rows * pairs) * sizeof(float), &cosine, err));
    TRY(arena_take(&rope->arena, (size_t)(rows * pairs) * sizeof(float), &sine, err));
    for (int64_t position = 0; position < rows; position++)
        for (int64_t i = 0; i < pairs; i++) {
            double angle = (double)position * inverse[i];
            ((float *)cosine)[position * pairs + i] = (float)(cos(angle) * factor);
            ((float *)sine)[position * pairs + i] = (float)(sin(angle) * factor);
        }
    rope->table = (RopeTable){cosine, sine};
    rope->rows = rows;
    return OK;
}

void rope_memory_free(RopeMemory *rope) {
    arena_free(&rope->arena);
    memset(rope, 0, sizeof *rope);
}

double model_flops_per_token(const ModelConfig *config, double sequence, int full, int recompute) {
    const ModelConfig *c = config;
    double attention_width = (double)(c->heads * c->head_dim), kv_width = (double)(c->kv_heads * c->head_dim);
    double hidden = (double)c->hidden;
    double linear = hidden * (2.0 * attention_width + 2.0 * kv_width + 3.0 * (double)c->intermediate);
    double layers = (double)c->layers, head = hidden * (double)c->vocab;
    /* scores and values: 2 products of 2 FLOPs over half of the square (causal); the backward has five products instead of two */
    double attention = 2.0 * sequence * attention_width;
    double forward = layers * (2.0 * linear + attention) + 2.0 * head;
    double backward = layers * ((full ? 4.0 : 2.0) * linear + 2.5 * attention) + (full ? 4.0 : 2.0) * head;
    return forward + backward + (recompute ? layers * (2.0 * linear + attention) : 0.0);
}
