/* Folders of grouped integers: what the exports write is what the loader reads and what the grid says, a copy is a copy, and a
 * folder with one thing wrong is refused by the tensor's name. */
#include "tests/support/scratch.h"
#include "tests/unit/test_core.h"

#include "core/file.h"
#include "core/memory.h"
#include "quant/fake_quant.h"
#include "tests/support/compare.h"
#include "tests/support/model_folder.h"
#include "tests/support/other_device.h"
#include "train/commands.h"
#include "train/merge.h"
#include "train/weights_internal.h"

#define CONFIG TINY_CONFIG("qwen2", ",\"tie_word_embeddings\":false,\"torch_dtype\":\"bfloat16\"")

static Backend backend;
static Device device; /* for what is refused: that of NIBBLE_TEST_DEVICE */
static Exec exec;
static Error error;
static char *dense;

typedef struct Variant {
    char *name, *format, *options[4];
    FakeQuant grid;
} Variant;

#define INT(b, s, g, type) \
    { .grid = FAKE_INT, .bits = b, .symmetric = s, .group = g, .scale_type = type }
static const Variant variants[] = {
    {"gptq", "gptq", {"--sym"}, INT(4, 1, 32, DTYPE_F16)},
    {"gptq-zeros", "gptq", {"--asym", "--group", "16"}, INT(4, 0, 16, DTYPE_F16)},
    {"gptq-3", "gptq", {"--bits", "3", "--group", "32"}, INT(3, 1, 32, DTYPE_F16)},
    {"gptq-2", "gptq", {"--bits", "2", "--asym"}, INT(2, 0, 32, DTYPE_F16)},
    {"gptq-8", "gptq", {"--bits", "8", "--group", "-1"}, INT(8, 1, 0, DTYPE_F16)},
    {"awq", "awq", {"--asym"}, INT(4, 0, 32, DTYPE_F16)},
    {"awq-symmetric", "awq", {"--sym", "--group", "-1"}, INT(4, 1, 0, DTYPE_F16)},
    {"packed", "compressed-tensors", {"--sym"}, INT(4, 1, 32, DTYPE_BF16)},
    {"packed-zeros", "compressed-tensors", {"--asym", "--bits", "3"}, INT(3, 0, 32, DTYPE_BF16)},
    {"packed-rows", "compressed-tensors", {"--bits", "7", "--group", "-1"}, INT(7, 1, 0, DTYPE_BF16)},
    {"int8", "compressed-tensors", {"--activations", "int8"}, INT(8, 1, 0, DTYPE_BF16)},
    {"int8-zeros", "compressed-tensors", {"--activations", "int8", "--asym"}, INT(8, 0, 0, DTYPE_BF16)},
};
#define VARIANTS (sizeof variants / sizeof *variants)

static void export_to(char *from, char *to, char *format, char *const options[4]) {
    char *arguments[16] = {"export", from, "--format", format, "--out", to, "--json", "--no-verify", "--overwrite"};
    int count = 9;
    for (int i = 0; options != NULL && i < 4 && options[i] != NULL; i++)
        arguments[count++] = options[i];
    assert_ok(command_export(count, arguments, &error), &error);
}

static int open_all(void **state) {
    if (scratch_make(state) != 0 || cpu_backend(&backend, NULL, &error) != OK) return 1;
    assert_ok(other_device_open(&device, &exec, DTYPE_BF16, &error), &error);
    dense = scratch_path("dense");
    model_folder_write(dense, CONFIG, DTYPE_BF16);
    for (size_t v = 0; v < VARIANTS; v++) {
        char *folder = scratch_path(variants[v].name);
        export_to(dense, folder, variants[v].format, variants[v].options);
        memory_free(folder);
    }
    return 0;
}

static int remove_all(void **state) {
    memory_free(dense);
    device_close(&device);
    return scratch_remove(state);
}

static Status try_load(const char *folder, DType act, int there, ModelWeights **weights, Error *err) {
    ModelConfig config;
    Pool *pool;
    WeightOptions options = {.act = act, .linear = act == DTYPE_F32 ? WEIGHT_F32 : WEIGHT_BF16, .block_size = 64};
    *weights = NULL;
    TRY(model_config_read(folder, &config, err));
    TRY(pool_create(&pool, 2, err));
    if (there && device.backend.on_device) options.exec = &exec;
    Status status = weights_load(weights, folder, &config, &options, there ? &device.backend : &backend, pool, err);
    pool_free(pool);
    return status;
}

/* Every linear of a loaded folder is the source's weight through the grid. */
static void test_what_is_read_is_the_grid(void **state) {
    (void)state;
    ModelConfig source;
    assert_ok(model_config_read(dense, &source, &error), &error);
    for (size_t v = 0; v < VARIANTS; v++) {
        const Variant *variant = &variants[v];
        char *folder = scratch_path(variant->name);
        ModelWeights *weights;
        ModelConfig config;
        WeightBytes bytes;
        WeightOptions options = {.act = DTYPE_F32, .linear = WEIGHT_F32, .block_size = 64};
        assert_ok(try_load(folder, DTYPE_F32, 0, &weights, &error), &error);
        assert_ok(model_config_read(folder, &config, &error), &error);
        assert_true(prequant_is_grouped(config.prequant));
        assert_ok(weights_plan(&config, &options, DTYPE_BF16, &bytes, &error), &error);
        assert_int_equal(bytes.arena, weights_bytes(weights));
        for (int32_t id = 0; id < weight_count(&source); id++) {
            WeightView view = weights_view(weights, id);
            if (view.rows == 0) continue;
            float *want = model_folder_values(&source, id, DTYPE_BF16);
            float *got = memory_alloc((size_t)(view.rows * view.cols) * sizeof *got);
            backend.dequantize(&view, 0, view.rows * view.cols, got, DTYPE_F32);
            assert_int_equal(view.format == WEIGHT_GROUPED, weight_is_linear(id));
            for (int64_t r = 0; weight_is_linear(id) && r < view.rows; r++)
                assert_int_equal(
                    fake_quant_row(&variant->grid, want + r * view.cols, view.cols, want + r * view.cols, NULL, NULL), 0);
            if (memcmp(got, want, (size_t)(view.rows * view.cols) * sizeof *got) != 0)
                fail_msg("%s: weight %d", variant->name, (int)id);
            memory_free(want);
            memory_free(got);
        }
        weights_free(weights);
        memory_free(folder);
    }
}

static void assert_same_file(const char *a, const char *b, const char *file) {
    char *one = path_join(a, file), *two = path_join(b, file), *x, *y;
    size_t n, m;
    assert_ok(file_read(one, 1 << 24, &x, &n, &error), &error);
    assert_ok(file_read(two, 1 << 24, &y, &m, &error), &error);
    if (n != m || memcmp(x, y, n) != 0) fail_msg("%s and %s differ", one, two);
    memory_free(one);
    memory_free(two);
    memory_free(x);
    memory_free(y);
}

/* An unmodified folder written in its own format: the same bytes, config.json included. */
static void test_copies(void **state) {
    (void)state;
    char *copy = scratch_path("copy");
    for (size_t v = 0; v < VARIANTS; v++) {
        char *folder = scratch_path(variants[v].name);
        export_to(folder, copy, variants[v].format, NULL);
        assert_same_file(folder, copy, "model.safetensors");
        assert_same_file(folder, copy, "config.json");
        memory_free(folder);
    }
    memory_free(copy);
}

static Merge *open_merge(const char *folder, Pool *pool) {
    Merge *merge;
    MergeOptions options = {.model = folder};
    assert_ok(merge_open(&merge, &options, &backend, pool, &error), &error);
    return merge;
}

/* Two folders decode to the same values. */
static void assert_same_values(const char *a, const char *b) {
    Pool *pool;
    assert_ok(pool_create(&pool, 2, &error), &error);
    Merge *one = open_merge(a, pool), *two = open_merge(b, pool);
    for (int32_t id = 0; id < weight_count(merge_model(one)); id++) {
        MergeWeight weight = merge_weight(one, id);
        if (!weight.present) continue;
        size_t count = (size_t)(weight.rows * weight.cols);
        float *x = memory_alloc(count * sizeof *x), *y = memory_alloc(count * sizeof *y);
        assert_ok(merge_begin(one, id, &error), &error);
        assert_ok(merge_begin(two, id, &error), &error);
        assert_ok(merge_rows(one, 0, weight.rows, x, NULL, &error), &error);
        assert_ok(merge_rows(two, 0, weight.rows, y, NULL, &error), &error);
        assert_memory_equal(x, y, count * sizeof *x);
        memory_free(x);
        memory_free(y);
    }
    merge_close(one);
    merge_close(two);
    pool_free(pool);
}

/* Codes go from one layout to another where it holds the same grid, and to 32-bit floats as what they decode to. */
static void test_other_layouts(void **state) {
    (void)state;
    static char *const pairs[][2] = {
        {"gptq", "awq"}, {"awq", "gptq"}, {"gptq-zeros", "compressed-tensors"}, {"awq", "compressed-tensors"}};
    static char *const f32[4] = {"--dtype", "f32"};
    char *other = scratch_path("other");
    for (size_t p = 0; p < 4; p++) {
        char *folder = scratch_path(pairs[p][0]);
        export_to(folder, other, pairs[p][1], NULL);
        assert_same_values(folder, other);
        memory_free(folder);
    }
    for (size_t v = 0; v < VARIANTS; v++) {
        char *folder = scratch_path(variants[v].name);
        export_to(folder, other, "hf", f32);
        assert_same_values(folder, other);
        memory_free(folder);
    }
    memory_free(other);
}

/* ---- one thing changed --------------------------------------------------------------------------------------------------- */

static void replace_in_config(const char *folder, const char *from, const char *to) {
    char *path = path_join(folder, "config.json"), *text;
    size_t length;
    assert_ok(file_read(path, 1 << 20, &text, &length, &error), &error);
    char *at = memmem(text, length, from, strlen(from));
    assert_non_null(at);
    char *changed = memory_format("%.*s%s%.*s", (int)(at - text), text, to, (int)(length - (size_t)(at - text) - strlen(from)),
                                  at + strlen(from));
    assert_ok(file_write_atomic(path, changed, strlen(changed), &error), &error);
    memory_free(changed);
    memory_free(text);
    memory_free(path);
}

/* says NULL: loads. */
static void check(const char *name, const Mutation *mutation, const char *from, const char *to, const char *says) {
    char *folder = scratch_path("mutated"), *source = scratch_path(name);
    ModelWeights *weights;
    model_folder_mutate(source, folder, mutation);
    if (from != NULL) replace_in_config(folder, from, to);
    Status status = try_load(folder, DTYPE_BF16, 1, &weights, &error);
    if (says == NULL)
        assert_ok(status, &error);
    else
        assert_refused(status, &error, says);
    weights_free(weights);
    assert_ok(folder_remove(folder, &error), &error);
    memory_free(folder);
    memory_free(source);
}

#define NOTHING \
    { .change = CHANGE_NOTHING }
#define DROP(name) \
    { .change = CHANGE_DROP, .tensor = name }
#define ADD(name) \
    { .change = CHANGE_ADD, .tensor = name }
#define SHAPE(name, type, rows, cols)                                                             \
    {                                                                                             \
        .change = CHANGE_SHAPE, .tensor = name, .dtype = type, .ndim = 2, .shape = { rows, cols } \
    }
#define BYTES(name, from, size, at) \
    { .change = CHANGE_BYTES, .tensor = name, .bytes = from, .count = size, .offset = at }

static void test_one_thing_wrong(void **state) {
    (void)state;
    static const uint16_t half_nan = 0x7E00, half_inf = 0x7C00, bf16_nan = 0x7FC0;
    static const int32_t far_group = 2, below = -1, other_group = 1, most = INT32_MAX;
    static const uint8_t zero = 0x76;
    static const int64_t shape = 65;
    static const struct {
        const char *folder;
        Mutation mutation;
        const char *from, *to, *says;
    } cases[] = {
        {"gptq", NOTHING, NULL, NULL, NULL},
        {"gptq", DROP("layers.1.mlp.up_proj.qweight"), NULL, NULL, "model.layers.1.mlp.up_proj.weight is missing"},
        {"gptq", DROP("layers.1.mlp.up_proj.qzeros"), NULL, NULL, "up_proj.qzeros is missing"},
        {"gptq", DROP("layers.1.mlp.up_proj.scales"), NULL, NULL, "up_proj.scales is missing"},
        {"gptq", DROP("layers.1.mlp.up_proj.g_idx"), NULL, NULL, NULL},
        {"gptq", DROP("layers.1.mlp.up_proj.g_idx"), "\"desc_act\": false", "\"desc_act\": true", "up_proj.g_idx is missing"},
        {"gptq", SHAPE("layers.1.mlp.up_proj.qweight", DTYPE_I32, 96, 8), NULL, NULL, "up_proj.qweight: want I32 [8, 96]"},
        {"gptq", SHAPE("layers.1.mlp.up_proj.qweight", DTYPE_F32, 8, 96), NULL, NULL, "got F32"},
        {"gptq", SHAPE("layers.1.mlp.up_proj.qzeros", DTYPE_I32, 12, 2), NULL, NULL, "up_proj.qzeros: want I32 [2, 12]"},
        {"gptq", SHAPE("layers.1.mlp.up_proj.scales", DTYPE_U8, 2, 192), NULL, NULL, "want F32, BF16 or F16 [2, 96]"},
        {"gptq", SHAPE("layers.1.mlp.up_proj.scales", DTYPE_F16, 1, 96), NULL, NULL, "up_proj.scales: want"},
        {"gptq", BYTES("layers.1.mlp.up_proj.scales", &half_nan, 2, 0), NULL, NULL, "the scale of row 0 is NaN or Inf"},
        {"gptq", BYTES("layers.1.mlp.up_proj.scales", &half_inf, 2, 2 * 95), NULL, NULL, "the scale of row 95 is NaN or Inf"},
        {"gptq", BYTES("layers.1.mlp.up_proj.g_idx", &far_group, 4, 0), NULL, NULL,
         "column 0: want a group from 0 to 1, got 2"},
        {"gptq", BYTES("layers.1.mlp.up_proj.g_idx", &below, 4, 4), NULL, NULL, "column 1: want a group from 0 to 1, got -1"},
        {"gptq", BYTES("layers.1.mlp.up_proj.g_idx", &most, 4, 4 * 63), NULL, NULL, "column 63"},
        {"gptq", BYTES("layers.1.mlp.up_proj.g_idx", &other_group, 4, 8), NULL, NULL,
         "column 2 is in group 1, and config.json"},
        {"gptq", BYTES("layers.1.mlp.up_proj.g_idx", &other_group, 4, 8), "\"desc_act\": false", "\"desc_act\": true", NULL},
        {"gptq", BYTES("layers.1.mlp.up_proj.g_idx", &far_group, 4, 0), "\"desc_act\": false", "\"desc_act\": true", "got 2"},
        {"gptq", BYTES("layers.1.mlp.up_proj.qzeros", &zero, 1, 0), NULL, NULL, "a zero point is 7 instead of 8"},
        {"gptq", NOTHING, "\"checkpoint_format\": \"gptq\"", "\"checkpoint_format\": \"gptq_v2\"", "checkpoint_format to gptq"},
        {"gptq", NOTHING, "\"group_size\": 32", "\"group_size\": 64", "want I32 [1, 8]"},
        {"gptq", NOTHING, "\"group_size\": 32", "\"group_size\": 40", "groups of 40 do not divide rows of 64"},
        {"gptq", NOTHING, "\"bits\": 4", "\"bits\": 8", "qweight: want I32 [16, 64]"},
        {"gptq", NOTHING, "\"bits\": 4", "\"bits\": 7", "bits: want 2, 3, 4 or 8"},
        {"gptq", NOTHING, "\"quant_method\": \"gptq\"", "\"quant_method\": \"awq\"", "qweight: want I32 [64, 8]"},
        {"gptq", ADD("model.layers.0.mlp.up_proj.weight"), NULL, NULL, "up_proj.weight"},
        {"gptq", ADD("model.layers.0.mlp.extra"), NULL, NULL, "unexpected tensor"},
        {"gptq-zeros", NOTHING, "\"sym\": false", "\"sym\": true", "a zero point is"},
        {"awq", NOTHING, NULL, NULL, NULL},
        {"awq", DROP("layers.0.self_attn.o_proj.qzeros"), NULL, NULL, "o_proj.qzeros is missing"},
        {"awq", SHAPE("layers.0.self_attn.o_proj.qweight", DTYPE_I32, 8, 64), NULL, NULL, "o_proj.qweight: want I32 [64, 8]"},
        {"awq", BYTES("layers.0.self_attn.o_proj.scales", &half_nan, 2, 2), NULL, NULL, "the scale of row 1 is NaN or Inf"},
        {"awq", NOTHING, "\"version\": \"gemm\"", "\"version\": \"gemv\"", "'gemv' is not supported"},
        {"packed", NOTHING, NULL, NULL, NULL},
        {"packed", DROP("layers.0.self_attn.k_proj.weight_scale"), NULL, NULL, "k_proj.weight_scale is missing"},
        {"packed", DROP("layers.0.self_attn.k_proj.weight_shape"), NULL, NULL, NULL},
        {"packed", BYTES("layers.0.self_attn.k_proj.weight_shape", &shape, 8, 8), NULL, NULL, "want [32, 64], got [32, 65]"},
        {"packed", SHAPE("layers.0.self_attn.k_proj.weight_shape", DTYPE_U8, 4, 4), NULL, NULL, "two values of I64 or I32"},
        {"packed", BYTES("layers.0.self_attn.k_proj.weight_scale", &bf16_nan, 2, 6), NULL, NULL, "the scale of row 1 is NaN"},
        {"packed", NOTHING, "\"symmetric\": true", "\"symmetric\": false", "weight_zero_point is missing"},
        {"packed", NOTHING, "\"actorder\": null", "\"actorder\": \"group\"", "weight_g_idx is missing"},
        {"packed", NOTHING, "\"format\": \"pack-quantized\"", "\"format\": \"marlin-24\"", "'marlin-24' is not supported"},
        {"packed", SHAPE("layers.0.self_attn.k_proj.weight_packed", DTYPE_I32, 8, 32), NULL, NULL, "want I32 [32, 8]"},
        {"packed-zeros", SHAPE("layers.0.mlp.up_proj.weight_zero_point", DTYPE_I32, 2, 9), NULL, NULL, "want I32 [9, 2]"},
        {"int8", NOTHING, NULL, NULL, NULL},
        {"int8", DROP("layers.0.mlp.up_proj.weight_scale"), NULL, NULL, "up_proj.weight_scale is missing"},
        {"int8", SHAPE("layers.0.mlp.up_proj.weight", DTYPE_I8, 64, 96), NULL, NULL, "want I8 [96, 64]"},
        {"int8-zeros", DROP("layers.0.mlp.up_proj.weight_zero_point"), NULL, NULL, "weight_zero_point is missing"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check(cases[i].folder, &cases[i].mutation, cases[i].from, cases[i].to, cases[i].says);
}

/* Old AutoGPTQ gives every module a bias; zeros are none. */
static void test_biases_of_zeros(void **state) {
    (void)state;
    static const float one = 1.0f;
    check("gptq", &(Mutation)ADD("model.layers.0.mlp.up_proj.bias"), NULL, NULL, NULL);
    char *zeros = scratch_path("zeros"), *source = scratch_path("gptq");
    model_folder_mutate(source, zeros, &(Mutation)ADD("model.layers.0.mlp.up_proj.bias"));
    check("zeros", &(Mutation)BYTES("up_proj.bias", &one, 4, 0), NULL, NULL, "there is no such bias, and this one is not zero");
    memory_free(zeros);
    memory_free(source);
}

/* Columns in another order: read, copied, and written as the layout that has such orders; the one that has none rounds again. */
static void test_ordered_columns(void **state) {
    (void)state;
    int32_t order[64];
    for (int c = 0; c < 64; c++)
        order[c] = c * 7 % 64 / 32;
    char *source = scratch_path("gptq-zeros"), *ordered = scratch_path("ordered"), *copy = scratch_path("copied"),
         *packed = scratch_path("ordered-packed");
    Mutation mutation = BYTES("layers.0.mlp.up_proj.g_idx", order, sizeof order, 0);
    model_folder_mutate(source, ordered, &mutation);
    replace_in_config(ordered, "\"desc_act\": false", "\"desc_act\": true");
    ModelWeights *weights;
    assert_ok(try_load(ordered, DTYPE_F32, 0, &weights, &error), &error);
    WeightView view = weights_view(weights, weight_id(0, LAYER_UP));
    assert_non_null(view.group_index);
    float got[64];
    for (int64_t r = 0; r < view.rows; r++) {
        backend.dequantize(&view, r * 64, 64, got, DTYPE_F32);
        for (int64_t c = 0; c < 64; c++) {
            int64_t at = r * 4 + order[c];
            uint8_t code = (uint8_t)grouped_code((const uint8_t *)view.data + r * 32, 4, c);
            float want = group_int_value(code, view.scales[at], view.zeros[at], DTYPE_F16);
            assert_memory_equal(&got[c], &want, sizeof want);
        }
    }
    weights_free(weights);
    export_to(ordered, copy, "gptq", NULL);
    assert_same_file(ordered, copy, "model.safetensors");
    export_to(ordered, packed, "compressed-tensors", NULL);
    assert_same_values(ordered, packed);
    export_to(packed, copy, "gptq", NULL);
    assert_same_file(ordered, copy, "model.safetensors");
    char *arguments[] = {"export", ordered, "--format", "awq", "--out", copy, "--no-verify", "--overwrite"};
    assert_refused(command_export(8, arguments, &error), &error, "awq has no order of columns");
    memory_free(source);
    memory_free(ordered);
    memory_free(copy);
    memory_free(packed);
}

/* Options that contradict the format or each other. */
static void test_options(void **state) {
    (void)state;
    static const struct {
        char *format, *options[4];
        const char *says;
    } cases[] = {
        {"gptq", {"--bits", "5"}, "--bits: gptq has 2, 3, 4 and 8, got 5"},
        {"awq", {"--bits", "8"}, "--bits: awq has 4, got 8"},
        {"compressed-tensors", {"--bits", "9"}, "--bits: want 2 to 8, got 9"},
        {"gptq", {"--group", "12"}, "--group: want -1 (a row) or a multiple of 8, got 12"},
        {"gptq", {"--group", "-2"}, "--group: want -1"},
        {"gptq", {"--group", "128"}, "groups of 128 do not divide rows of 64"},
        {"gptq", {"--sym", "--asym"}, "--sym and --asym contradict"},
        {"gptq", {"--dtype", "f32"}, "leave --dtype out"},
        {"gptq", {"--activations", "int8"}, "belongs to --format compressed-tensors"},
        {"compressed-tensors", {"--activations", "int4"}, "want int8 or none"},
        {"compressed-tensors", {"--activations", "int8", "--bits", "4"}, "with --bits 8 and --group -1"},
        {"hf", {"--bits", "4"}, "belong to --format gptq, awq and compressed-tensors"},
        {"bnb-nf4", {"--group", "64"}, "belong to --format gptq, awq and compressed-tensors"},
    };
    char *out = scratch_path("refused");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *arguments[12] = {"export", dense, "--format", cases[i].format, "--out", out};
        int count = 6;
        for (int k = 0; k < 4 && cases[i].options[k] != NULL; k++)
            arguments[count++] = cases[i].options[k];
        assert_refused(command_export(count, arguments, &error), &error, cases[i].says);
        assert_false(file_exists(out)); /* nothing that looks complete */
    }
    memory_free(out);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_is_read_is_the_grid),
        cmocka_unit_test(test_copies),
        cmocka_unit_test(test_other_layouts),
        cmocka_unit_test(test_one_thing_wrong),
        cmocka_unit_test(test_biases_of_zeros),
        cmocka_unit_test(test_ordered_columns),
        cmocka_unit_test(test_options),
    };
    return cmocka_run_group_tests(tests, open_all, remove_all);
}
