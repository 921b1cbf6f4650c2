/* A GGUF file as a model: data/gguf_model.h, and the weights that are loaded from one. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "core/memory.h"
#include "data/gguf_model.h"
#include "tests/support/compare.h"
#include "tests/support/scratch.h"
#include "train/gguf_names.h"
#include "train/merge.h"
#include "train/weights.h"

enum { HIDDEN = 256, HEAD = 32, HEADS = 8, KV_HEADS = 4, INNER = 512, VOCAB = 40, CONTEXT = 64 };

static Error err;

/* What a test changes of the file that write_file makes. */
typedef struct Change {
    const char *architecture;
    uint32_t type;       /* of the linears; q and down are Q6_K where it is Q4_K */
    int tied, biases;    /* biases: of q, k and v */
    const char *extra;   /* one more key "llama.<extra>": u32 1 */
    const char *scaling; /* rope.scaling.type with factor 2 and original context 32 */
    int factors;         /* 1: rope_freqs of Llama 3.1's rule; 2: others */
    const char *rename;  /* the tensor with this name gets another */
    int heads_array, is_adapter;
} Change;

static float value_at(const char *name, int64_t i) {
    uint32_t h = 2166136261u;
    for (const char *c = name; *c != 0; c++)
        h = (h ^ (uint8_t)*c) * 16777619u;
    h = (h ^ (uint32_t)i) * 2654435761u;
    h ^= h >> 15;
    return (float)((h * 2246822519u) >> 8) / 16777216.0f - 0.5f;
}

static double llama3_factor(int64_t pair) {
    double inverse = pow(10000.0, -2.0 * (double)pair / HEAD), wavelength = 2 * M_PI / inverse;
    if (wavelength > 512.0) return 8.0;
    if (wavelength < 128.0) return 1.0;
    double smooth = (512.0 / wavelength - 1.0) / 3.0;
    return 1.0 / ((1.0 - smooth) / 8.0 + smooth);
}

static Status produce(void *context, const GgufTensor *tensor, GgufWriter *writer, Error *error) {
    const Change *change = context;
    int64_t cols = tensor->ne[0], rows = tensor->ne[1];
    float *x = memory_alloc((size_t)(rows * cols) * sizeof *x);
    for (int64_t i = 0; i < rows * cols; i++)
        x[i] = strcmp(tensor->name, "rope_freqs.weight") != 0 ? value_at(tensor->name, i)
               : change->factors == 1                         ? (float)llama3_factor(i)
                                                              : 1.0f + (float)i;
    void *data = memory_alloc((size_t)tensor->bytes);
    Status status = ggml_quantize(tensor->type->type, x, rows, cols, NULL, data, NULL, error);
    if (status == OK) status = gguf_write_bytes(writer, data, (size_t)tensor->bytes, error);
    memory_free(data);
    memory_free(x);
    return status;
}

static void put_keys(GgufWriter *w, const Change *c) {
    char key[64];
    const struct {
        const char *name;
        uint32_t value;
    } counts[] = {{"context_length", CONTEXT},    {"embedding_length", HIDDEN},          {"block_count", 1},
                  {"feed_forward_length", INNER}, {"attention.head_count_kv", KV_HEADS}, {"rope.dimension_count", HEAD}};
    assert_ok(gguf_put_text(w, "general.architecture", c->architecture, &err), &err);
    assert_ok(gguf_put_text(w, "general.type", c->is_adapter ? "adapter" : "model", &err), &err);
    assert_ok(gguf_put_u32(w, "general.quantization_version", 2, &err), &err);
#define KEY(text) (snprintf(key, sizeof key, "%s.%s", c->architecture, text), key)
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        assert_ok(gguf_put_u32(w, KEY(counts[i].name), counts[i].value, &err), &err);
    const uint32_t heads[1] = {HEADS};
    if (c->heads_array)
        assert_ok(gguf_put_array(w, KEY("attention.head_count"), GGUF_U32, heads, 1, &err), &err);
    else
        assert_ok(gguf_put_u32(w, KEY("attention.head_count"), HEADS, &err), &err);
    assert_ok(gguf_put_f32(w, KEY("attention.layer_norm_rms_epsilon"), 1e-5f, &err), &err);
    if (c->extra != NULL) assert_ok(gguf_put_u32(w, KEY(c->extra), 1, &err), &err);
    if (c->scaling == NULL) return;
    assert_ok(gguf_put_text(w, KEY("rope.scaling.type"), c->scaling, &err), &err);
    assert_ok(gguf_put_f32(w, KEY("rope.scaling.factor"), 2.0f, &err), &err);
    assert_ok(gguf_put_u32(w, KEY("rope.scaling.original_context_length"), 32, &err), &err);
#undef KEY
}

static void add(GgufWriter *w, const Change *c, const char *name, uint32_t type, int64_t cols, int64_t rows) {
    int64_t ne[2] = {cols, rows};
    if (c->rename != NULL && strcmp(name, c->rename) == 0) name = "blk.0.ffn_exps.weight";
    assert_ok(gguf_add_tensor(w, name, type, rows == 0 ? 1 : 2, ne, &err), &err);
}

static char *write_file(const char *name, const Change *given) {
    Change c = *given;
    if (c.architecture == NULL) c.architecture = "llama";
    char *path = scratch_path(name);
    GgufWriter *w = gguf_writer_create(path);
    uint32_t more = c.type == GGML_Q4_K ? GGML_Q6_K : c.type;
    put_keys(w, &c);
    if (c.factors) add(w, &c, "rope_freqs.weight", GGML_F32, HEAD / 2, 0);
    add(w, &c, "token_embd.weight", more, HIDDEN, VOCAB);
    add(w, &c, "output_norm.weight", GGML_F32, HIDDEN, 0);
    if (!c.tied) add(w, &c, "output.weight", c.type, HIDDEN, VOCAB);
    add(w, &c, "blk.0.attn_norm.weight", GGML_F32, HIDDEN, 0);
    add(w, &c, "blk.0.ffn_norm.weight", GGML_F32, HIDDEN, 0);
    add(w, &c, "blk.0.attn_q.weight", more, HIDDEN, HEADS * HEAD);
    add(w, &c, "blk.0.attn_k.weight", c.type, HIDDEN, KV_HEADS * HEAD);
    add(w, &c, "blk.0.attn_v.weight", c.type, HIDDEN, KV_HEADS * HEAD);
    add(w, &c, "blk.0.attn_output.weight", c.type, HEADS * HEAD, HIDDEN);
    add(w, &c, "blk.0.ffn_gate.weight", c.type, HIDDEN, INNER);
    add(w, &c, "blk.0.ffn_up.weight", c.type, HIDDEN, INNER);
    add(w, &c, "blk.0.ffn_down.weight", more, INNER, HIDDEN);
    if (c.biases) {
        add(w, &c, "blk.0.attn_q.bias", GGML_F32, HEADS * HEAD, 0);
        add(w, &c, "blk.0.attn_k.bias", GGML_F32, KV_HEADS * HEAD, 0);
        add(w, &c, "blk.0.attn_v.bias", GGML_F32, KV_HEADS * HEAD, 0);
    }
    assert_ok(gguf_writer_write(w, produce, &c, &err), &err);
    gguf_writer_free(w);
    return path;
}

static ModelConfig config_of(const Change *change) {
    static ModelConfig config;
    char *path = write_file("config.gguf", change);
    assert_ok(model_config_read(path, &config, &err), &err);
    memory_free(path);
    return config;
}

/* ---- the config ------------------------------------------------------------------------------------------------------------ */

static void test_config(void **state) {
    (void)state;
    ModelConfig c = config_of(&(Change){.type = GGML_Q4_K});
    assert_string_equal(c.model_type, "llama");
    assert_int_equal(c.hidden, HIDDEN);
    assert_int_equal(c.intermediate, INNER);
    assert_int_equal(c.layers, 1);
    assert_int_equal(c.heads, HEADS);
    assert_int_equal(c.kv_heads, KV_HEADS);
    assert_int_equal(c.head_dim, HEAD);
    assert_int_equal(c.vocab, VOCAB);
    assert_int_equal(c.context, CONTEXT);
    assert_true(c.rms_eps == 1e-5); /* the shortest decimal of the file's FP32 number */
    assert_int_equal(c.prequant, PREQUANT_GGUF);
    assert_int_equal(c.dtype, DTYPE_BF16);
    assert_false(c.tied_embeddings || c.qkv_bias);
    assert_true(c.gguf.is_file);
    assert_int_equal(c.gguf.embedding, GGML_Q6_K);
    assert_int_equal(c.gguf.head, GGML_Q4_K);
    assert_int_equal(c.gguf.linear[0][LAYER_Q], GGML_Q6_K);
    assert_int_equal(c.gguf.linear[0][LAYER_UP], GGML_Q4_K);
    c = config_of(&(Change){.type = GGML_F16, .tied = 1});
    assert_true(c.tied_embeddings);
    assert_int_equal(c.prequant, PREQUANT_NONE);
    assert_int_equal(c.dtype, DTYPE_F16);
    c = config_of(&(Change){.architecture = "qwen2", .biases = 1});
    assert_string_equal(c.architecture, "Qwen2ForCausalLM");
    assert_true(c.qkv_bias && !c.o_bias);
    assert_int_equal(c.dtype, DTYPE_F32);
}

static void test_rope(void **state) {
    (void)state;
    ModelConfig c = config_of(&(Change){.scaling = "linear"});
    assert_int_equal(c.rope.type, ROPE_LINEAR);
    assert_true(c.rope.factor == 2.0 && c.rope.theta == 10000.0);
    c = config_of(&(Change){.scaling = "yarn"});
    assert_int_equal(c.rope.type, ROPE_YARN);
    assert_int_equal(c.rope.original_context, 32);
    assert_int_equal(config_of(&(Change){.scaling = "none"}).rope.type, ROPE_DEFAULT);
    c = config_of(&(Change){.factors = 1});
    assert_int_equal(c.rope.type, ROPE_LLAMA3);
    assert_true(c.rope.factor == 8.0 && c.rope.low_freq_factor == 1.0 && c.rope.high_freq_factor == 4.0);
    assert_int_equal(c.rope.original_context, 512);
    c = config_of(&(Change){.factors = 2});
    assert_int_equal(c.rope.type, ROPE_LONGROPE);
    assert_true(gguf_has_rope_factors(&c.rope)); /* so that an export writes the tensor again */
    double scaled[HEAD / 2], attention;
    for (int64_t longest = CONTEXT; longest <= 8 * CONTEXT; longest *= 8) {
        assert_ok(rope_frequencies(&c, longest, scaled, &attention, &err), &err);
        assert_true(attention == 1.0);
        for (int i = 0; i < HEAD / 2; i++) {
            double want = pow(10000.0, -2.0 * i / HEAD) / (1.0 + i);
            assert_true(fabs(scaled[i] / want - 1.0) < 1e-12); /* doubles, a few roundings */
        }
    }
}

static void refused(const char *why, Change change) {
    ModelConfig config;
    TensorFiles *files = NULL;
    char *path = write_file("refused.gguf", &change);
    Status status = model_config_read(path, &config, &err);
    if (status == OK) status = tensors_open(&files, path, NULL, &err);
    tensors_close(files);
    assert_refused(status, &err, why);
    memory_free(path);
}

static void test_refused(void **state) {
    (void)state;
    refused("want llama, qwen2 or qwen3, got \"gemma2\"", (Change){.architecture = "gemma2"});
    refused("'llama.expert_count' is not known here", (Change){.extra = "expert_count"});
    refused("'llama.attention.clamp_kqv' is not known here", (Change){.extra = "attention.clamp_kqv"});
    refused("key 'llama.attention.head_count': want one number, got an array", (Change){.heads_array = 1});
    refused("general.type \"adapter\"", (Change){.is_adapter = 1});
    refused("rope.scaling.type: want none, linear or yarn", (Change){.scaling = "longrope"});
    refused("has both tensor 'rope_freqs.weight'", (Change){.scaling = "linear", .factors = 1});
    refused("want a matrix token_embd.weight", (Change){.rename = "token_embd.weight"});
    refused("tensor 'blk.0.ffn_exps.weight': this architecture has no such weight", (Change){.rename = "blk.0.ffn_up.weight"});
}

/* ---- names and rows -------------------------------------------------------------------------------------------------------- */

static void test_names(void **state) {
    (void)state;
    char hf[GGUF_HF_NAME_MAX], gguf[GGUF_WEIGHT_NAME_MAX], want[192];
    ModelConfig c = {.layers = 12, .heads = 2, .kv_heads = 2, .head_dim = 8, .hidden = 16, .intermediate = 16, .vocab = 4};
    c.qkv_bias = c.o_bias = c.mlp_bias = c.qk_norm = 1;
    int64_t rows, cols;
    for (int32_t id = 0; id < weight_count(&c); id++) {
        assert_true(weight_describe(&c, id, want, sizeof want, &rows, &cols));
        assert_true(gguf_weight_name(&c, id, gguf) && gguf_hf_name(gguf, hf));
        assert_string_equal(hf, want);
    }
    static const char *const none[] = {"rope_freqs.weight",
                                       "blk.1.attn_q",
                                       "blk.x.attn_q.weight",
                                       "blk.1.attn_q.scale",
                                       "blk.-1.attn_q.weight",
                                       "blk.600.attn_q.weight",
                                       "blk.1attn_q.weight",
                                       "output",
                                       ""};
    for (size_t i = 0; i < sizeof none / sizeof *none; i++)
        assert_false(gguf_hf_name(none[i], hf));
}

/* Rows of Q and K, values of their biases: any range of bytes is that of the rows in their own order. */
static void test_rows(void **state) {
    (void)state;
    static const char *const parts[][2] = {{"model.layers.0.self_attn.q_proj.weight", "blk.0.attn_q.weight"},
                                           {"model.layers.0.self_attn.k_proj.weight", "blk.0.attn_k.weight"},
                                           {"model.layers.0.self_attn.k_proj.bias", "blk.0.attn_k.bias"},
                                           {"model.layers.0.self_attn.v_proj.weight", "blk.0.attn_v.weight"}};
    for (int arch = 0; arch < 2; arch++) {
        char *path =
            write_file("rows.gguf", &(Change){.architecture = arch ? "qwen2" : "llama", .type = GGML_Q4_K, .biases = 1});
        TensorFiles *files;
        GgufFile *file;
        assert_ok(tensors_open(&files, path, NULL, &err), &err);
        assert_ok(gguf_open(&file, path, &err), &err);
        for (size_t p = 0; p < sizeof parts / sizeof *parts; p++) {
            const TensorInfo *tensor = tensors_find(files, parts[p][0]);
            const GgufTensor *source = gguf_tensor_find(file, parts[p][1]);
            assert_non_null(tensor);
            size_t bytes = (size_t)tensor->bytes, row = bytes / (size_t)tensor->shape[0];
            uint8_t *raw = memory_alloc(bytes), *want = memory_alloc(bytes), *got = memory_alloc(bytes);
            assert_ok(gguf_read(file, source, 0, raw, bytes, 0, &err), &err);
            for (int64_t r = 0; r < tensor->shape[0]; r++) {
                int64_t inside = r % HEAD, at = r - inside + 2 * (inside % (HEAD / 2)) + inside / (HEAD / 2);
                memcpy(want + (size_t)r * row, raw + (size_t)(arch == 0 && p < 3 ? at : r) * row, row);
            }
            size_t ranges[][2] = {{0, bytes}, {1, 1}, {row - 1, 2}, {HEAD * row - 3, row + 7}, {bytes - 5, 5}, {bytes, 0}};
            for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++) {
                assert_ok(tensors_read(files, tensor, ranges[i][0], got, ranges[i][1], 0, &err), &err);
                assert_memory_equal(got, want + ranges[i][0], ranges[i][1]);
            }
            assert_refused(tensors_read(files, tensor, bytes - 1, got, 2, 0, &err), &err, "bytes at");
            memory_free(raw);
            memory_free(want);
            memory_free(got);
        }
        gguf_close(file);
        tensors_close(files);
        memory_free(path);
    }
}

/* ---- weights --------------------------------------------------------------------------------------------------------------- */

static float *decoded(const GgufFile *file, const char *name, int64_t *values) {
    const GgufTensor *tensor = gguf_tensor_find(file, name);
    assert_non_null(tensor);
    *values = tensor->ne[0] * tensor->ne[1];
    void *raw = memory_alloc((size_t)tensor->bytes);
    float *x = memory_alloc((size_t)*values * sizeof *x);
    assert_ok(gguf_read(file, tensor, 0, raw, (size_t)tensor->bytes, 0, &err), &err);
    assert_ok(ggml_dequantize(tensor->type->type, raw, tensor->ne[1], tensor->ne[0], x, NULL, &err), &err);
    memory_free(raw);
    return x;
}

/* Every type: views decode to the file's values, memory is the file's, and a plan knows it beforehand. */
static void test_loaded(void **state) {
    (void)state;
    static const uint32_t types[] = {GGML_F32,  GGML_F16,  GGML_BF16, GGML_Q8_0, GGML_Q4_0, GGML_Q4_1, GGML_Q5_0,
                                     GGML_Q5_1, GGML_Q2_K, GGML_Q3_K, GGML_Q4_K, GGML_Q5_K, GGML_Q6_K};
    Backend backend;
    assert_ok(cpu_backend(&backend, NULL, &err), &err);
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        Change change = {.type = types[t]};
        char *path = write_file("loaded.gguf", &change);
        ModelConfig config;
        ModelWeights *weights;
        WeightBytes plan;
        GgufFile *file;
        WeightOptions options = {.act = DTYPE_F32, .linear = WEIGHT_F32, .block_size = 64};
        int is_quantized = ggml_type_info(types[t])->is_quantized;
        if (is_quantized) options.linear = WEIGHT_NF4; /* what is quantized stays as it is */
        assert_ok(model_config_read(path, &config, &err), &err);
        assert_ok(weights_plan(&config, &options, config.dtype, &plan, &err), &err);
        assert_ok(weights_load(&weights, path, &config, &options, &backend, NULL, &err), &err);
        assert_int_equal(plan.arena, weights_bytes(weights));
        assert_ok(gguf_open(&file, path, &err), &err);
        uint64_t stored = 0;
        for (int64_t i = 0; i < gguf_tensor_count(file); i++)
            stored += gguf_tensor(file, i)->bytes;
        assert_true(weights_bytes(weights) <= stored + 14 * 64); /* each of 14 tensors is aligned to 64 bytes */
        for (int32_t id = 0; id < weight_count(&config); id++) {
            char name[GGUF_WEIGHT_NAME_MAX];
            if (!gguf_weight_name(&config, id, name)) continue;
            int64_t values;
            float *want = decoded(file, name, &values);
            WeightView view = weights_view(weights, id);
            float *got = memory_alloc((size_t)values * sizeof *got);
            backend.dequantize(&view, 0, values, got, DTYPE_F32);
            for (int64_t r = 0; r < view.rows; r++) {
                int64_t at = gguf_file_row(&config, id, r) * view.cols;
                assert_memory_equal(got + r * view.cols, want + at, (size_t)view.cols * sizeof *got);
            }
            assert_true(!is_quantized || view.rows == 1 || view.format == WEIGHT_GGML);
            memory_free(got);
            memory_free(want);
        }
        gguf_close(file);
        weights_free(weights);
        memory_free(path);
    }
}

/* A base of a 16-bit GGUF file can be quantized as a folder's can; a quantized one gives its rows to a merge. */
static void test_quantized_and_merged(void **state) {
    (void)state;
    Backend backend;
    ModelConfig config;
    ModelWeights *weights;
    Pool *pool;
    assert_ok(cpu_backend(&backend, NULL, &err), &err);
    assert_ok(pool_create(&pool, 2, &err), &err);
    char *path = write_file("half.gguf", &(Change){.type = GGML_F16});
    WeightOptions options = {.act = DTYPE_F32, .linear = WEIGHT_NF4, .double_quant = 1, .block_size = 64};
    assert_ok(model_config_read(path, &config, &err), &err);
    assert_ok(weights_load(&weights, path, &config, &options, &backend, pool, &err), &err);
    assert_int_equal(weights_linear_format(weights), WEIGHT_NF4);
    assert_int_equal(weights_view(weights, WEIGHT_EMBED).format, WEIGHT_GGML); /* F16 in an FP32 run */
    weights_free(weights);
    memory_free(path);

    path = write_file("blocks.gguf", &(Change){.type = GGML_Q4_K});
    MergeOptions merging = {.model = path};
    Merge *merge;
    options.linear = WEIGHT_F32;
    assert_ok(model_config_read(path, &config, &err), &err);
    assert_ok(weights_load(&weights, path, &config, &options, &backend, pool, &err), &err);
    assert_ok(merge_open(&merge, &merging, &backend, pool, &err), &err);
    static float want[INNER * HIDDEN], got[INNER * HIDDEN];
    for (int32_t id = 0; id < weight_count(&config); id++) {
        MergeWeight weight = merge_weight(merge, id);
        WeightView view = weights_view(weights, id);
        if (!weight.present) continue;
        assert_ok(merge_begin(merge, id, &err), &err);
        assert_ok(merge_rows(merge, 0, weight.rows, got, NULL, &err), &err);
        backend.dequantize(&view, 0, weight.rows * weight.cols, want, DTYPE_F32);
        assert_memory_equal(got, want, (size_t)(weight.rows * weight.cols) * sizeof *got);
        assert_int_equal(weight.decoded, weight.rows > 1);
    }
    merge_close(merge);
    weights_free(weights);
    pool_free(pool);
    memory_free(path);
}

/* A scale that is NaN or Inf is refused by the tensor's name. */
static void test_nonfinite(void **state) {
    (void)state;
    Backend backend;
    ModelConfig config;
    ModelWeights *weights;
    GgufFile *file;
    char *path = write_file("bad.gguf", &(Change){.type = GGML_Q8_0});
    assert_ok(cpu_backend(&backend, NULL, &err), &err);
    assert_ok(gguf_open(&file, path, &err), &err);
    long at = (long)gguf_tensor_find(file, "blk.0.ffn_up.weight")->offset + 3 * 34;
    gguf_close(file);
    FILE *out = fopen(path, "r+b");
    assert_non_null(out);
    assert_int_equal(fseek(out, at, SEEK_SET), 0);
    assert_int_equal(fwrite("\x00\x7c", 1, 2, out), 2);
    assert_int_equal(fclose(out), 0);
    WeightOptions options = {.act = DTYPE_F32, .linear = WEIGHT_F32, .block_size = 64};
    assert_ok(model_config_read(path, &config, &err), &err);
    assert_refused(weights_load(&weights, path, &config, &options, &backend, NULL, &err), &err,
                   "mlp.up_proj.weight: block 3 of Q8_0");
    memory_free(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_config),    cmocka_unit_test(test_rope),
        cmocka_unit_test(test_refused),   cmocka_unit_test(test_names),
        cmocka_unit_test(test_rows),      cmocka_unit_test(test_loaded),
        cmocka_unit_test(test_nonfinite), cmocka_unit_test(test_quantized_and_merged),
    };
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
