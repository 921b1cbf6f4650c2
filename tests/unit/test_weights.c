/* Loading a base model: what is held, in which type, that the plan is exact, and that nothing but the file decides a byte. */
#include "tests/support/scratch.h"
#include "tests/unit/test_core.h"

#include <unistd.h>

#include "core/file.h"
#include "core/memory.h"
#include "data/safetensors.h"
#include "tests/support/compare.h"
#include "tests/support/model_folder.h"
#include "train/quantize_folder.h"
#include "train/weights.h"

static Backend backend;

static int open_all(void **state) {
    Error err = {0};
    return scratch_make(state) != 0 || cpu_backend(&backend, NULL, &err) != OK;
}

static ModelWeights *load(const char *folder, const WeightOptions *options, int threads, ModelConfig *config) {
    Error err = {0};
    Pool *pool;
    ModelWeights *weights;
    assert_ok(model_config_read(folder, config, &err), &err);
    assert_ok(pool_create(&pool, threads, &err), &err);
    assert_ok(weights_load(&weights, folder, config, options, &backend, pool, &err), &err);
    pool_free(pool);
    return weights;
}

static const char *const configs[] = {
    TINY_CONFIG("llama", ",\"tie_word_embeddings\":false,\"torch_dtype\":\"float32\""),
    TINY_CONFIG("llama", ",\"tie_word_embeddings\":true,\"attention_bias\":true,\"mlp_bias\":true,\"dtype\":\"bfloat16\""),
    TINY_CONFIG("qwen2", ",\"tie_word_embeddings\":true,\"torch_dtype\":\"bfloat16\""),
    TINY_CONFIG("qwen3", ",\"head_dim\":24,\"tie_word_embeddings\":false,\"torch_dtype\":\"float16\""),
};
static const DType config_types[] = {DTYPE_F32, DTYPE_BF16, DTYPE_BF16, DTYPE_F16};

static const WeightOptions loads[] = {{.act = DTYPE_F32, .linear = WEIGHT_F32, .double_quant = 0, .block_size = 0},
                                      {.act = DTYPE_BF16, .linear = WEIGHT_BF16, .double_quant = 0, .block_size = 0},
                                      {.act = DTYPE_F32, .linear = WEIGHT_NF4, .double_quant = 1, .block_size = 64},
                                      {.act = DTYPE_BF16, .linear = WEIGHT_NF4, .double_quant = 0, .block_size = 32},
                                      {.act = DTYPE_BF16, .linear = WEIGHT_FP4, .double_quant = 1, .block_size = 128},
                                      {.act = DTYPE_F32, .linear = WEIGHT_INT8, .double_quant = 0, .block_size = 0},
                                      {.act = DTYPE_BF16, .linear = WEIGHT_INT4, .double_quant = 0, .block_size = 32}};

static int is_linear(int32_t id) {
    return id >= WEIGHT_GLOBALS && (id - WEIGHT_GLOBALS) % LAYER_WEIGHTS < LAYER_LINEARS;
}

/* A weight that is held dense must be the file's values in this type, bit for bit. */
static void check_dense(const WeightView *view, const float *values, int32_t id, DType act, DType file_type) {
    int is_vector = view->rows == 1;
    DType want = is_vector ? act : act == DTYPE_BF16 || file_type == DTYPE_BF16 ? DTYPE_BF16 : DTYPE_F32;
    assert_int_equal(view->format, want == DTYPE_BF16 ? WEIGHT_BF16 : WEIGHT_F32);
    size_t bytes = (size_t)(view->rows * view->cols) * dtype_size(want);
    void *expected = memory_alloc(bytes);
    dtype_convert(expected, want, values, DTYPE_F32, view->rows * view->cols);
    if (memcmp(view->data, expected, bytes) != 0) fail_msg("weight %d differs", (int)id);
    memory_free(expected);
}

/* A quantized weight must be what quantizing the file's values in one go gives. */
static void check_quantized(const WeightView *view, const float *values, const WeightOptions *options) {
    Error err = {0};
    QuantSpec spec = {.format = options->linear, .double_quant = options->double_quant, .block_size = options->block_size};
    QuantizedTensor tensor;
    Quantizer *quantizer;
    Arena arena;
    assert_ok(arena_create(&arena, "expected", 1 << 20, &err), &err);
    assert_ok(quantized_take(&tensor, &spec, view->rows, view->cols, &arena, &err), &err);
    assert_ok(quantizer_create(&quantizer, &backend, NULL, quant_nested_constants(&spec, view->rows, view->cols), &err), &err);
    assert_ok(quantize_tensor(quantizer, values, DTYPE_F32, &tensor, &err), &err);
    assert_int_equal(view->format, spec.format);
    assert_memory_equal(view->data, tensor.codes, tensor.code_bytes);
    if (spec.double_quant) {
        assert_memory_equal(view->nested_codes, tensor.nested_codes, (size_t)tensor.blocks);
        assert_memory_equal(view->nested_absmax, tensor.nested_absmax, (size_t)tensor.nested_blocks * sizeof(float));
        assert_true(view->nested_offset == tensor.nested_offset);
    } else {
        assert_memory_equal(view->scales, tensor.scales, (size_t)tensor.blocks * sizeof(float));
    }
    quantizer_free(quantizer);
    arena_free(&arena);
}

static void test_every_weight_of_every_kind(void **state) {
    (void)state;
    for (size_t c = 0; c < sizeof configs / sizeof *configs; c++) {
        char *folder = scratch_path("every");
        DType file_type = config_types[c];
        model_folder_write(folder, configs[c], file_type);
        for (size_t o = 0; o < sizeof loads / sizeof *loads; o++) {
            ModelConfig config;
            ModelWeights *weights = load(folder, &loads[o], 2, &config);
            for (int32_t id = 0; id < weight_count(&config); id++) {
                char name[192];
                int64_t rows, cols;
                WeightView view = weights_view(weights, id);
                if (!weight_describe(&config, id, name, sizeof name, &rows, &cols)) {
                    if (id != WEIGHT_HEAD) assert_int_equal(view.rows, 0);
                    continue;
                }
                assert_true(view.rows == rows && view.cols == cols);
                float *values = model_folder_values(&config, id, file_type);
                if (is_linear(id) && loads[o].linear != WEIGHT_F32 && loads[o].linear != WEIGHT_BF16)
                    check_quantized(&view, values, &loads[o]);
                else
                    check_dense(&view, values, id, loads[o].act, file_type);
                memory_free(values);
            }
            WeightView head = weights_view(weights, WEIGHT_HEAD), embed = weights_view(weights, WEIGHT_EMBED);
            assert_int_equal(head.data == embed.data, config.tied_embeddings);
            weights_free(weights);
        }
        memory_free(folder);
    }
}

static void test_plan_is_exact(void **state) {
    (void)state;
    for (size_t c = 0; c < sizeof configs / sizeof *configs; c++) {
        char *folder = scratch_path("plan");
        model_folder_write(folder, configs[c], config_types[c]);
        for (size_t o = 0; o < sizeof loads / sizeof *loads; o++) {
            Error err = {0};
            ModelConfig config;
            ModelWeights *weights = load(folder, &loads[o], 1, &config);
            WeightBytes bytes;
            assert_ok(weights_plan(&config, &loads[o], config.dtype, &bytes, &err), &err);
            assert_int_equal(bytes.arena, weights_bytes(weights));
            assert_int_equal(bytes.linear + bytes.constants + bytes.embedding + bytes.head + bytes.norms, bytes.arena);
            assert_int_equal(bytes.head == 0, config.tied_embeddings);
            weights_free(weights);
        }
        memory_free(folder);
    }
}

/* With the folder's facts the plan is exact whatever config.json says of types, and every format is foreseen. */
static void check_facts(const char *folder, const ModelConfig *config, const ModelWeights *weights, WeightOptions options) {
    Error err = {0};
    WeightFacts *facts;
    WeightBytes bytes;
    WeightFormat *formats = memory_calloc((size_t)weight_count(config), sizeof *formats);
    assert_ok(weights_facts(&facts, folder, config, &err), &err);
    options.facts = facts;
    assert_ok(weights_plan(config, &options, config->dtype, &bytes, &err), &err);
    weights_formats(config, &options, config->dtype, formats);
    assert_int_equal(bytes.arena, weights_bytes(weights));
    for (int32_t id = 0; id < weight_count(config); id++) {
        WeightView view = weights_view(weights, id);
        if (view.rows > 0) assert_int_equal(formats[id], view.format);
    }
    weights_facts_free(facts);
    memory_free(formats);
}

static void test_facts_beside_the_config(void **state) {
    (void)state;
    static const DType types[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};
    char *folder = scratch_path("facts"), *mixed = scratch_path("mixed");
    for (size_t c = 0; c < sizeof configs / sizeof *configs; c++)
        for (size_t t = 0; t < 3; t++) {
            model_folder_write(folder, configs[c], types[t]);
            /* one tensor of another type: any values, but finite ones */
            Mutation mutation = {.change = CHANGE_SHAPE,
                                 .tensor = "layers.1.mlp.up_proj.weight",
                                 .dtype = DTYPE_F16,
                                 .ndim = 2,
                                 .shape = {96, 64}};
            if (types[t] == DTYPE_BF16) model_folder_mutate(folder, mixed, &mutation);
            for (size_t o = 0; o < sizeof loads / sizeof *loads; o++) {
                ModelConfig config;
                ModelWeights *weights = load(folder, &loads[o], 1, &config);
                check_facts(folder, &config, weights, loads[o]);
                weights_free(weights);
                if (types[t] != DTYPE_BF16) continue;
                weights = load(mixed, &loads[o], 1, &config);
                check_facts(mixed, &config, weights, loads[o]);
                weights_free(weights);
            }
        }
    memory_free(folder);
    memory_free(mixed);
}

static void test_threads_change_nothing(void **state) {
    (void)state;
    char *folder = scratch_path("threads");
    model_folder_write(folder, configs[0], DTYPE_F32);
    for (size_t o = 0; o < sizeof loads / sizeof *loads; o++) {
        ModelConfig config;
        ModelWeights *one = load(folder, &loads[o], 1, &config), *four = load(folder, &loads[o], 4, &config);
        uint64_t hash = weights_hash(one);
        assert_true(hash == weights_hash(four));
        ((uint8_t *)(uintptr_t)weights_view(four, weight_id(1, LAYER_DOWN)).data)[5] ^= 16;
        assert_false(hash == weights_hash(four)); /* one bit shows */
        weights_free(one);
        weights_free(four);
    }
    memory_free(folder);
}

static void test_source_hands_out_views_without_allocating(void **state) {
    (void)state;
    char *folder = scratch_path("source");
    model_folder_write(folder, configs[2], DTYPE_BF16);
    Error err = {0};
    ModelConfig config;
    ModelWeights *weights = load(folder, &loads[2], 1, &config);
    WeightSource source = weights_source(weights);
    WeightView view;
    memory_forbid(1);
    for (int32_t id = 0; id < weight_count(&config); id++) {
        WeightView want = weights_view(weights, id);
        Status status = source.acquire(source.self, id, PASS_FORWARD, &view, &err);
        assert_int_equal(status == OK, want.rows > 0);
        assert_true(view.data == want.data);
        if (status == OK) source.release(source.self, id, PASS_FORWARD);
    }
    memory_forbid(-1);
    assert_refused(source.acquire(source.self, -1, PASS_BACKWARD, &view, &err), &err, "no weight number -1");
    assert_int_equal(weights_linear_format(weights), WEIGHT_NF4);
    weights_free(weights);
    memory_free(folder);
}

static void quantize(const char *from, const char *to, const QuantSpec *spec) {
    Error err = {0};
    QuantizedFolder result;
    assert_ok(quantize_folder(from, to, spec, &backend, NULL, &result, &err), &err);
    assert_int_equal(result.linears, 14);
    assert_true(result.bytes < result.bytes_before);
}

/* What `nibble quantize` wrote loads as the same bytes that quantizing at load time gives. */
static void test_prequantized_equals_quantized(void **state) {
    (void)state;
    static const QuantSpec specs[] = {{.format = WEIGHT_NF4, .block_size = 64},
                                      {.format = WEIGHT_NF4, .double_quant = 1, .block_size = 64},
                                      {.format = WEIGHT_FP4, .block_size = 64},
                                      {.format = WEIGHT_FP4, .double_quant = 1, .block_size = 64},
                                      {.format = WEIGHT_NF4, .double_quant = 1, .block_size = 256}};
    char *dense = scratch_path("dense"), *folder = scratch_path("prequantized");
    model_folder_write(dense, configs[0], DTYPE_F32);
    for (size_t s = 0; s < sizeof specs / sizeof *specs; s++) {
        Error err = {0};
        WeightOptions options = {.act = DTYPE_F32,
                                 .linear = specs[s].format,
                                 .double_quant = specs[s].double_quant,
                                 .block_size = specs[s].block_size};
        WeightOptions other = {
            .act = DTYPE_F32, .linear = WEIGHT_INT8, .double_quant = 0, .block_size = 0}; /* the folder decides */
        ModelConfig config, prequantized;
        quantize(dense, folder, &specs[s]);
        ModelWeights *fresh = load(dense, &options, 1, &config), *read = load(folder, &other, 2, &prequantized);
        assert_true(weights_hash(fresh) == weights_hash(read));
        assert_int_equal(weights_linear_format(read), specs[s].format);
        assert_int_equal(weights_view(read, weight_id(0, LAYER_K)).block_size, specs[s].block_size);
        WeightBytes bytes;
        assert_ok(weights_plan(&prequantized, &other, DTYPE_F32, &bytes, &err), &err);
        if (specs[s].block_size == 64) assert_int_equal(bytes.arena, weights_bytes(read)); /* 64 is what a config implies */
        check_facts(folder, &prequantized, read, other);
        assert_refused(quantize_folder(folder, dense, &specs[s], &backend, NULL, &(QuantizedFolder){0}, &err), &err,
                       "quantized already");
        weights_free(fresh);
        weights_free(read);
        assert_ok(folder_remove(folder, &err), &err);
    }
    memory_free(dense);
    memory_free(folder);
}

static void test_int8_folder_loads_dequantized(void **state) {
    (void)state;
    char *dense = scratch_path("dense8"), *folder = scratch_path("int8");
    model_folder_write(dense, configs[0], DTYPE_F32);
    quantize(dense, folder, &(QuantSpec){.format = WEIGHT_INT8});
    ModelConfig config;
    ModelWeights *original = load(dense, &loads[5], 1, &config); /* int8 at load time */
    for (size_t o = 0; o < sizeof loads / sizeof *loads; o++) {
        Error err = {0};
        ModelWeights *weights = load(folder, &loads[o], 2, &config);
        WeightBytes bytes;
        assert_ok(weights_plan(&config, &loads[o], config.dtype, &bytes, &err), &err);
        assert_int_equal(bytes.arena, weights_bytes(weights));
        for (int kind = 0; kind < LAYER_LINEARS; kind++) {
            int32_t id = weight_id(1, (LayerWeight)kind);
            WeightView view = weights_view(weights, id), int8 = weights_view(original, id);
            int64_t count = view.rows * view.cols;
            float *values = memory_alloc((size_t)count * sizeof(float));
            backend.dequantize(&int8, 0, count, values, DTYPE_F32);
            if (loads[o].linear == WEIGHT_F32 || loads[o].linear == WEIGHT_BF16)
                check_dense(&view, values, id, loads[o].act, DTYPE_F32);
            else
                check_quantized(&view, values, &loads[o]);
            memory_free(values);
        }
        weights_free(weights);
    }
    weights_free(original);
    memory_free(dense);
    memory_free(folder);
}

static void test_linears_only(void **state) {
    (void)state;
    char *folder = scratch_path("linears");
    model_folder_write(folder, configs[1], DTYPE_BF16);
    WeightOptions options = loads[2];
    options.linears_only = 1;
    ModelConfig config;
    ModelWeights *weights = load(folder, &options, 1, &config);
    for (int32_t id = 0; id < weight_count(&config); id++)
        assert_int_equal(weights_view(weights, id).rows > 0, is_linear(id));
    weights_free(weights);
    memory_free(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_weight_of_every_kind),
        cmocka_unit_test(test_plan_is_exact),
        cmocka_unit_test(test_facts_beside_the_config),
        cmocka_unit_test(test_threads_change_nothing),
        cmocka_unit_test(test_source_hands_out_views_without_allocating),
        cmocka_unit_test(test_prequantized_equals_quantized),
        cmocka_unit_test(test_int8_folder_loads_dequantized),
        cmocka_unit_test(test_linears_only),
    };
    return cmocka_run_group_tests(tests, open_all, scratch_remove);
}
