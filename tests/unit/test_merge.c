/* Merged rows against the formula in double, bases that are quantized and decoded, DoRA, and what is refused. */
#include "core/file.h"
#include "core/memory.h"
#include "data/safetensors.h"
#include "tests/support/model_folder.h"
#include "tests/support/scratch.h"
#include "tests/unit/test_core.h"
#include "train/adapter.h"
#include "train/merge.h"

static ModelConfig model;
static Backend backend;
static Pool *pool;
static char *base_folder;

#define RANK 3
#define SCALE 2.0 /* alpha 6 over rank 3 */

/* A PEFT folder with rank 3 on q_proj and down_proj of both layers; B is random too, so that every row changes. */
static char *write_adapter(const char *name, uint64_t seed) {
    static const char text[] = "{\"lora\": {\"rank\": 3, \"alpha\": 6, \"target_modules\": [\"q_proj\", \"down_proj\"]}}";
    Config config;
    Adapter adapter = {0};
    ParamSet params = {0};
    Error err = {0};
    scratch_write("config.json", text, sizeof text - 1);
    char *path = scratch_path("config.json"), *folder = scratch_path(name);
    assert_int_equal(config_load(&config, path, NULL, 0, &err), OK);
    assert_int_equal(adapter_create(&adapter, &params, &config, &model, &err), OK);
    float *values = memory_calloc((size_t)params.elements, sizeof *values);
    adapter_init(&params, seed, values);
    for (int64_t e = 0; e < params.count; e++)
        for (int64_t i = 0; params.entries[e].role == PARAM_LORA_B && i < params.entries[e].rows * RANK; i++)
            values[params.entries[e].offset + i] = 0.01f * (float)((i * 7 + (int64_t)seed + e) % 11 - 5);
    AdapterInfo info = {.base_model = "base", .dropout = 0.0};
    assert_int_equal(adapter_write(&adapter, &params, folder, &model, &info, values, DTYPE_F32, &err), OK);
    memory_free(values);
    adapter_free(&adapter);
    params_free(&params);
    config_free(&config);
    memory_free(path);
    return folder;
}

static int prepare(void **state) {
    static const char text[] = TINY_CONFIG("llama", ",\"torch_dtype\":\"bfloat16\"");
    Error err = {0};
    if (scratch_make(state) != 0) return -1;
    if (model_config_parse("config.json", text, sizeof text - 1, &model, &err) != OK) return -1;
    if (cpu_backend(&backend, NULL, &err) != OK || pool_create(&pool, 3, &err) != OK) return -1;
    base_folder = scratch_path("base");
    model_folder_write(base_folder, text, DTYPE_BF16);
    return 0;
}

static int clean(void **state) {
    pool_free(pool);
    memory_free(base_folder);
    return scratch_remove(state);
}

static Merge *open_merge(const MergeOptions *options) {
    Merge *merge;
    Error err = {0};
    Status status = merge_open(&merge, options, &backend, pool, &err);
    if (status != OK) fail_msg("%s", err.text);
    return merge;
}

/* All rows of a weight, in slices of `step`. */
static void read_rows(Merge *merge, int32_t id, int64_t step, float *base, float *merged) {
    Error err = {0};
    MergeWeight weight = merge_weight(merge, id);
    assert_int_equal(merge_begin(merge, id, &err), OK);
    for (int64_t first = 0; first < weight.rows; first += step) {
        int64_t count = weight.rows - first < step ? weight.rows - first : step;
        assert_int_equal(merge_rows(merge, first, count, base + first * weight.cols,
                                    merged == NULL ? NULL : merged + first * weight.cols, &err),
                         OK);
    }
}

static float *values_of(const char *folder, const char *name) {
    TensorFiles *files;
    Error err = {0};
    assert_int_equal(tensors_open(&files, folder, "adapter_model", &err), OK);
    const TensorInfo *tensor = tensors_find(files, name);
    assert_non_null(tensor);
    float *out = memory_alloc((size_t)tensor->bytes);
    assert_int_equal(tensors_read(files, tensor, 0, out, (size_t)tensor->bytes, 0, &err), OK);
    tensors_close(files);
    return out;
}

#define Q_NAME "base_model.model.model.layers.1.self_attn.q_proj"

/* out += weight * SCALE * B A of layer 1's q_proj, in double. */
static void add_expected(const char *folder, double weight, double *out) {
    float *a = values_of(folder, Q_NAME ".lora_A.weight"), *b = values_of(folder, Q_NAME ".lora_B.weight");
    for (int64_t row = 0; row < 64; row++)
        for (int64_t col = 0; col < 64; col++)
            for (int64_t r = 0; r < RANK; r++)
                out[row * 64 + col] += weight * SCALE * (double)b[row * RANK + r] * (double)a[r * 64 + col];
    memory_free(a);
    memory_free(b);
}

static void rows_are_the_formula(void **state) {
    (void)state;
    char *one = write_adapter("one", 1), *two = write_adapter("two", 2);
    MergeOptions options = {.model = base_folder, .adapters = {one, two}, .weights = {0.75, -1.5}, .count = 2};
    Merge *merge = open_merge(&options);
    int32_t id = weight_id(1, LAYER_Q);
    float *base = memory_alloc(64 * 64 * sizeof *base), *merged = memory_alloc(64 * 64 * sizeof *merged);
    float *again = memory_alloc(64 * 64 * sizeof *again);
    float *want = model_folder_values(&model, id, DTYPE_BF16);
    double expected[64 * 64];
    read_rows(merge, id, 64, base, merged);
    assert_memory_equal(base, want, 64 * 64 * sizeof *base);
    for (int i = 0; i < 64 * 64; i++)
        expected[i] = (double)want[i];
    add_expected(one, 0.75, expected);
    add_expected(two, -1.5, expected);
    for (int i = 0; i < 64 * 64; i++)
        assert_true(fabs((double)merged[i] - expected[i]) <= 5e-8); /* a few roundings of FP32 numbers below 0.2 */
    read_rows(merge, id, 7, base, again);
    assert_memory_equal(merged, again, 64 * 64 * sizeof *merged); /* slices change no bit */
    assert_true(merge_weight(merge, id).adapted);
    assert_false(merge_weight(merge, weight_id(1, LAYER_K)).adapted);
    merge_close(merge);
    memory_free(want);
    memory_free(base);
    memory_free(merged);
    memory_free(again);
    memory_free(one);
    memory_free(two);
}

/* A dequantized base is what the quantizer makes of the folder's values. */
static void quantized_base(void **state) {
    (void)state;
    const QuantSpec specs[] = {{.format = WEIGHT_NF4, .double_quant = 1, .block_size = 64},
                               {.format = WEIGHT_FP4, .block_size = 32},
                               {.format = WEIGHT_INT8},
                               {.format = WEIGHT_INT4, .block_size = 32}};
    int32_t id = weight_id(0, LAYER_DOWN); /* [64, 96] */
    float *values = model_folder_values(&model, id, DTYPE_BF16), *base = memory_alloc(64 * 96 * sizeof *base);
    float *want = memory_alloc(64 * 96 * sizeof *want);
    for (size_t s = 0; s < sizeof specs / sizeof *specs; s++) {
        Error err = {0};
        Arena arena;
        QuantizedTensor direct, passed;
        Quantizer *quantizer;
        assert_int_equal(arena_create(&arena, "test", 1 << 20, &err), OK);
        assert_int_equal(quantized_take(&direct, &specs[s], 64, 96, &arena, &err), OK);
        assert_int_equal(quantized_take(&passed, &specs[s], 64, 96, &arena, &err), OK);
        assert_int_equal(quantizer_create(&quantizer, &backend, pool, 4096, &err), OK);
        assert_int_equal(quantize_tensor(quantizer, values, DTYPE_F32, &direct, &err), OK);
        WeightView view = quantized_view(&direct);
        backend.dequantize(&view, 0, 64 * 96, want, DTYPE_F32);
        MergeOptions options = {.model = base_folder, .requantize = 1, .spec = specs[s]};
        Merge *merge = open_merge(&options);
        assert_true(merge_weight(merge, id).decoded);
        read_rows(merge, id, 5, base, NULL);
        assert_memory_equal(base, want, 64 * 96 * sizeof *base);
        assert_int_equal(merge_quantize(merge, 0, &passed, &err), OK); /* nothing is added: the same codes and constants */
        assert_memory_equal(passed.codes, direct.codes, direct.code_bytes);
        if (direct.scales != NULL) assert_memory_equal(passed.scales, direct.scales, (size_t)direct.blocks * sizeof(float));
        if (direct.nested_codes != NULL) assert_memory_equal(passed.nested_codes, direct.nested_codes, (size_t)direct.blocks);
        merge_close(merge);
        quantizer_free(quantizer);
        arena_free(&arena);
    }
    memory_free(values);
    memory_free(base);
    memory_free(want);
}

/* ---- DoRA ---------------------------------------------------------------------------------------------------------------- */

typedef struct Dora {
    const TensorSpec *specs;
    const TensorFiles *files;
    float zero_at; /* magnitude of the first row of layer 1's q_proj */
} Dora;

static Status produce_dora(void *context, const TensorSpec *spec, TensorWriter *writer, Error *err) {
    const Dora *dora = context;
    float values[4096] = {0};
    const TensorInfo *tensor = tensors_find(dora->files, spec->name);
    if (tensor != NULL) {
        TRY(tensors_read(dora->files, tensor, 0, values, (size_t)tensor->bytes, 0, err));
        return tensor_write_bytes(writer, values, (size_t)tensor->bytes, err);
    }
    for (int64_t i = 0; i < spec->shape[0]; i++)
        values[i] = 0.5f + 0.01f * (float)i;
    if (strstr(spec->name, "layers.1.self_attn.q_proj") != NULL) values[0] = dora->zero_at;
    return tensor_write_bytes(writer, values, (size_t)spec->shape[0] * sizeof *values, err);
}

/* The adapter with a magnitude of 0.5 + row / 100 on every module. */
static char *write_dora(const char *name, const char *from, float first, int64_t rows) {
    static const char config[] = "{\"peft_type\": \"LORA\", \"r\": 3, \"lora_alpha\": 6, \"use_dora\": true}";
    Error err = {0};
    TensorFiles *files;
    char *folder = scratch_path(name), *path = path_join(folder, "adapter_model.safetensors"), names[4][128];
    char *config_path = path_join(folder, "adapter_config.json");
    TensorSpec specs[16] = {0};
    int64_t count = 0;
    assert_int_equal(folder_create(folder, &err), OK);
    assert_int_equal(tensors_open(&files, from, "adapter_model", &err), OK);
    for (int64_t i = 0; i < tensors_count(files); i++) {
        const TensorInfo *tensor = tensors_get(files, i);
        specs[count] = (TensorSpec){.name = tensor->name, .dtype = tensor->dtype, .ndim = tensor->ndim};
        memcpy(specs[count++].shape, tensor->shape, sizeof tensor->shape);
    }
    for (int i = 0; i < 4; i++) {
        (void)snprintf(names[i], sizeof names[i], "base_model.model.model.layers.%d.%s.lora_magnitude_vector", i / 2,
                       i % 2 == 0 ? "self_attn.q_proj" : "mlp.down_proj");
        specs[count++] = (TensorSpec){.name = names[i], .dtype = DTYPE_F32, .ndim = 1, .shape = {rows}};
    }
    Dora dora = {specs, files, first};
    assert_int_equal(tensors_write(path, specs, count, NULL, produce_dora, &dora, &err), OK);
    assert_int_equal(file_write_atomic(config_path, config, sizeof config - 1, &err), OK);
    tensors_close(files);
    memory_free(config_path);
    memory_free(path);
    return folder;
}

static void dora_sets_the_norms(void **state) {
    (void)state;
    char *plain = write_adapter("plain", 3), *dora = write_dora("dora", plain, 0.5f, 64);
    float *base = memory_alloc(64 * 64 * sizeof *base), *merged = memory_alloc(64 * 64 * sizeof *merged);
    float *lora = memory_alloc(64 * 64 * sizeof *lora);
    MergeOptions options = {.model = base_folder, .adapters = {plain}, .weights = {1.0}, .count = 1};
    Merge *merge = open_merge(&options);
    read_rows(merge, weight_id(1, LAYER_Q), 64, base, lora);
    merge_close(merge);
    options.adapters[0] = dora;
    merge = open_merge(&options);
    assert_true(merge_has_dora(merge));
    read_rows(merge, weight_id(1, LAYER_Q), 64, base, merged);
    merge_close(merge);
    for (int row = 0; row < 64; row++) {
        double norm = 0.0, lora_norm = 0.0, dot = 0.0, want = 0.5 + 0.01 * row;
        for (int c = 0; c < 64; c++) {
            norm += (double)merged[row * 64 + c] * (double)merged[row * 64 + c];
            lora_norm += (double)lora[row * 64 + c] * (double)lora[row * 64 + c];
            dot += (double)merged[row * 64 + c] * (double)lora[row * 64 + c];
        }
        assert_true(fabs(sqrt(norm) - want) <= 1e-6 * want);           /* FP32 roundings of 64 products */
        assert_true(fabs(dot / sqrt(norm * lora_norm) - 1.0) <= 1e-6); /* the direction is LoRA's */
    }
    memory_free(base);
    memory_free(merged);
    memory_free(lora);
    memory_free(plain);
    memory_free(dora);
}

static void expect_refusal(const MergeOptions *options, const char *message) {
    Merge *merge;
    Error err = {0};
    assert_int_equal(merge_open(&merge, options, &backend, pool, &err), ERR_FAILED);
    assert_null(merge);
    if (strstr(err.text, message) == NULL) fail_msg("want \"%s\" in \"%s\"", message, err.text);
}

static void refusals(void **state) {
    (void)state;
    char *plain = write_adapter("plain4", 4);
    char *dora = write_dora("dora4", plain, 0.5f, 64), *wrong = write_dora("wrong", plain, 0.5f, 63);
    char *nan_folder = write_dora("nan", plain, NAN, 64);
    MergeOptions options = {.model = base_folder, .adapters = {dora, plain}, .weights = {1.0, 1.0}, .count = 2};
    expect_refusal(&options, "merged alone");
    options.count = 1;
    options.weights[0] = 0.5;
    expect_refusal(&options, "with weight 1");
    options.weights[0] = 1.0;
    options.adapters[0] = wrong;
    expect_refusal(&options, "lora_magnitude_vector: want [64]");
    options.adapters[0] = nan_folder;
    expect_refusal(&options, "NaN or Inf");
    options.adapters[0] = "/nowhere";
    expect_refusal(&options, "/nowhere");
    Adapter adapter = {0}; /* training, eval and generate still refuse DoRA by name */
    ParamSet params = {0};
    Error err = {0};
    assert_int_equal(adapter_read(&adapter, &params, dora, &model, &err), ERR_FAILED);
    assert_non_null(strstr(err.text, "use_dora"));
    adapter_free(&adapter);
    params_free(&params);
    memory_free(plain);
    memory_free(dora);
    memory_free(wrong);
    memory_free(nan_folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_are_the_formula),
        cmocka_unit_test(quantized_base),
        cmocka_unit_test(dora_sets_the_norms),
        cmocka_unit_test(refusals),
    };
    return cmocka_run_group_tests(tests, prepare, clean);
}
