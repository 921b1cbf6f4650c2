/* Model folders with one thing wrong: each is refused by the tensor's name, and none crashes; on its way to the device that
 * NIBBLE_TEST_DEVICE names as well. */
#include "tests/support/scratch.h"
#include "tests/unit/test_core.h"

#include <unistd.h>

#include "core/file.h"
#include "core/memory.h"
#include "tests/support/compare.h"
#include "tests/support/model_folder.h"
#include "tests/support/other_device.h"
#include "train/quantize_folder.h"
#include "train/weights.h"

static Backend backend;
static Device device;
static Exec exec;
static char *dense, *nested, *plain, *int8;

#define CONFIG TINY_CONFIG("llama", ",\"tie_word_embeddings\":false,\"torch_dtype\":\"float32\"")

static void quantize(const char *to, const QuantSpec *spec) {
    Error err = {0};
    assert_ok(quantize_folder(dense, to, spec, &backend, NULL, &(QuantizedFolder){0}, &err), &err);
}

static int open_all(void **state) {
    Error err = {0};
    if (scratch_make(state) != 0 || cpu_backend(&backend, NULL, &err) != OK) return 1;
    assert_ok(other_device_open(&device, &exec, DTYPE_BF16, &err), &err);
    dense = scratch_path("dense");
    nested = scratch_path("nested");
    plain = scratch_path("plain");
    int8 = scratch_path("int8");
    model_folder_write(dense, CONFIG, DTYPE_F32);
    quantize(nested, &(QuantSpec){.format = WEIGHT_NF4, .double_quant = 1, .block_size = 64});
    quantize(plain, &(QuantSpec){.format = WEIGHT_FP4, .block_size = 32});
    quantize(int8, &(QuantSpec){.format = WEIGHT_INT8});
    return 0;
}

static int remove_all(void **state) {
    memory_free(dense);
    memory_free(nested);
    memory_free(plain);
    memory_free(int8);
    device_close(&device);
    return scratch_remove(state);
}

static Status try_load(const char *folder, const WeightOptions *asked, Error *err) {
    WeightOptions options = *asked;
    ModelConfig config;
    ModelWeights *weights = NULL;
    Pool *pool;
    TRY(model_config_read(folder, &config, err));
    TRY(pool_create(&pool, 2, err));
    if (device.backend.on_device) options.exec = &exec;
    Status status = weights_load(&weights, folder, &config, &options, &device.backend, pool, err);
    assert_int_equal(weights != NULL, status == OK);
    weights_free(weights);
    pool_free(pool);
    return status;
}

static const WeightOptions nf4 = {.act = DTYPE_BF16, .linear = WEIGHT_NF4, .double_quant = 1, .block_size = 64},
                           bf16_dense = {.act = DTYPE_BF16, .linear = WEIGHT_BF16, .double_quant = 0, .block_size = 0};

/* says NULL: loads. */
static void check(const char *from, const Mutation *mutation, const WeightOptions *options, const char *says) {
    Error err = {0};
    char *folder = scratch_path("mutated");
    model_folder_mutate(from, folder, mutation);
    Status status = try_load(folder, options, &err);
    if (says == NULL) {
        assert_ok(status, &err);
    } else {
        assert_refused(status, &err, says);
        assert_refused(status, &err, folder); /* which folder, too */
        assert_int_equal(status, ERR_FAILED);
    }
    assert_ok(folder_remove(folder, &err), &err);
    memory_free(folder);
}

static const float nan_value = NAN;
static const float infinity = -INFINITY;
static const float huge = 3.4e38f;

#define NOTHING \
    { .change = CHANGE_NOTHING }
#define DROP(name) \
    { .change = CHANGE_DROP, .tensor = name }
#define ADD(name) \
    { .change = CHANGE_ADD, .tensor = name }
#define BYTES(name, from, size, at) \
    { .change = CHANGE_BYTES, .tensor = name, .bytes = from, .count = size, .offset = at }

static void test_dense_folders(void **state) {
    (void)state;
    static const struct {
        Mutation mutation;
        const char *says;
    } cases[] = {
        {NOTHING, NULL},
        {DROP("layers.1.self_attn.k_proj.weight"), "model.layers.1.self_attn.k_proj.weight is missing; check"},
        {DROP("norm.weight"), "is missing (and 4 more)"},
        {DROP("lm_head.weight"), "tie_word_embeddings"},
        {{.change = CHANGE_SHAPE,
          .tensor = "layers.1.self_attn.k_proj.weight",
          .dtype = DTYPE_F32,
          .ndim = 2,
          .shape = {16, 64}},
         "model.layers.1.self_attn.k_proj.weight: want [32, 64], got [16, 64]; check num_key_value_heads"},
        {{.change = CHANGE_SHAPE, .tensor = "layers.0.mlp.up_proj.weight", .dtype = DTYPE_F32, .ndim = 2, .shape = {64, 96}},
         "model.layers.0.mlp.up_proj.weight: want [96, 64], got [64, 96]; check intermediate_size"},
        {{.change = CHANGE_SHAPE, .tensor = "embed_tokens.weight", .dtype = DTYPE_F32, .ndim = 1, .shape = {2560}},
         "want [40, 64], got [2560]"},
        {{.change = CHANGE_SHAPE, .tensor = "model.norm.weight", .dtype = DTYPE_F32, .ndim = 2, .shape = {1, 64}},
         "want [64], got [1, 64]"},
        {{.change = CHANGE_SHAPE, .tensor = "model.norm.weight", .dtype = DTYPE_F32, .ndim = 0}, "want [64], got []"},
        {{.change = CHANGE_SHAPE, .tensor = "layers.0.mlp.down_proj.weight", .dtype = DTYPE_U8, .ndim = 2, .shape = {64, 96}},
         "model.layers.0.mlp.down_proj.weight: want F32, BF16 or F16, got U8"},
        {{.change = CHANGE_SHAPE, .tensor = "layers.0.mlp.down_proj.weight", .dtype = DTYPE_I8, .ndim = 2, .shape = {64, 96}},
         "got I8"},
        {{.change = CHANGE_SHAPE, .tensor = "layers.0.mlp.down_proj.weight", .dtype = DTYPE_I32, .ndim = 2, .shape = {64, 96}},
         "got I32"},
        {ADD("model.layers.0.self_attn.q_proj.bias"), "unexpected tensor model.layers.0.self_attn.q_proj.bias"},
        {ADD("model.layers.0.self_attn.q_proj.lora_A.weight"), "looks like an adapter"},
        {ADD("model.vision_tower.x"), "vision models are not supported"},
        {ADD("model.layers.2.input_layernorm.weight"), "check num_hidden_layers"},
        {ADD("transformer.wte.weight"), "unexpected tensor transformer.wte.weight"},
        {ADD("model.layers.0.self_attn.rotary_emb.inv_freq"), NULL},
        {BYTES("layers.1.mlp.gate_proj.weight", &nan_value, 4, 4 * (95 * 64 + 63)),
         "model.layers.1.mlp.gate_proj.weight: row 95, column 63 is NaN or Inf"},
        {BYTES("layers.1.mlp.gate_proj.weight", &infinity, 4, 0), "gate_proj.weight: row 0, column 0 is NaN or Inf"},
        {BYTES("model.norm.weight", &nan_value, 4, 4 * 7), "model.norm.weight: row 0, column 7 is NaN or Inf"},
        {BYTES("embed_tokens.weight", &infinity, 4, 4 * 65), "model.embed_tokens.weight: row 1, column 1 is NaN"},
        {BYTES("embed_tokens.weight", &huge, 4, 0), "row 0, column 0 is NaN or Inf in BF16"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        check(dense, &cases[i].mutation, &nf4, cases[i].says);
        check(dense, &cases[i].mutation, &bf16_dense, cases[i].says);
    }
}

static void test_group_that_does_not_divide(void **state) {
    (void)state;
    WeightOptions options = {.act = DTYPE_F32, .linear = WEIGHT_INT4, .double_quant = 0, .block_size = 128};
    Error err = {0};
    Status status = try_load(dense, &options, &err);
    assert_refused(
        status, &err,
        "model.layers.0.self_attn.q_proj.weight: int4: groups of 128 do not divide the width 64; a block_size of 64");
    assert_int_equal(status, ERR_USAGE); /* the config's mistake, not the folder's */
}

#define STATE "layers.0.mlp.up_proj.weight.quant_state.bitsandbytes__nf4"
#define BLOB(text) .change = CHANGE_DATA, .tensor = STATE, .bytes = text, .count = sizeof(text) - 1
#define PLAIN "\"quant_type\":\"nf4\",\"blocksize\":64,\"dtype\":\"float32\",\"shape\":[96,64]"
#define NESTED ",\"nested_blocksize\":256,\"nested_dtype\":\"float32\",\"nested_offset\":0.09"

static void test_quant_state(void **state) {
    (void)state;
    static char deep[3000], long_blob[5000];
    memset(deep, '[', sizeof deep);
    memset(long_blob, ' ', sizeof long_blob);
    const struct {
        Mutation mutation;
        const char *says;
    } cases[] = {
        {NOTHING, NULL},
        {{BLOB("{" PLAIN NESTED "}")}, NULL},
        {{BLOB("")}, "want 1 to 4096 bytes of U8, got 0"},
        {{BLOB("{")}, STATE},
        {{BLOB("null")}, STATE},
        {{BLOB("{}")}, "not all of them are there"},
        {{BLOB("{" PLAIN "}")}, "and the nested ones: not all of them are there"},
        {{BLOB("{" PLAIN NESTED "} x")}, STATE},
        {{BLOB("{" PLAIN NESTED ",\"extra\":1}")}, "unknown key 'extra'"},
        {{BLOB("{" PLAIN NESTED ",\"blocksize\":64}")}, "'blocksize' stands there twice"},
        {{BLOB("{\"quant_type\":\"fp4\",\"blocksize\":64,\"dtype\":\"float32\",\"shape\":[96,64]" NESTED "}")}, "got fp4"},
        {{BLOB("{\"quant_type\":\"int4\",\"blocksize\":64}")}, "'int4' is not supported"},
        {{BLOB("{\"quant_type\":4}")}, "quant_type"},
        {{BLOB("{\"quant_type\":\"nf4\",\"blocksize\":0}")}, "blocksize"},
        {{BLOB("{\"quant_type\":\"nf4\",\"blocksize\":-64}")}, "blocksize"},
        {{BLOB("{\"quant_type\":\"nf4\",\"blocksize\":99999999999999999999}")}, "blocksize"},
        {{BLOB("{\"quant_type\":\"nf4\",\"blocksize\":96,\"dtype\":\"float32\",\"shape\":[96,64]" NESTED "}")},
         "want a power of two from 32 to 4096, got 96"},
        {{BLOB("{\"quant_type\":\"nf4\",\"blocksize\":32,\"dtype\":\"float32\",\"shape\":[96,64]" NESTED "}")},
         "model.layers.0.mlp.up_proj.weight.absmax: want 192 values of U8, got 96"},
        {{BLOB("{\"quant_type\":\"nf4\",\"blocksize\":64,\"dtype\":\"complex64\"}")}, "'complex64' is not supported"},
        {{BLOB("{\"quant_type\":\"nf4\",\"blocksize\":64,\"dtype\":\"float32\",\"shape\":[64,96]" NESTED "}")},
         "shape: want [96, 64], got [64, 96]"},
        {{BLOB("{\"shape\":[96]}")}, "shape"},
        {{BLOB("{\"shape\":[96,64,1]}")}, "shape"},
        {{BLOB("{\"shape\":[4294967392,64]}")}, "shape"},
        {{BLOB("{\"shape\":[[96],64]}")}, "nested deeper"},
        {{BLOB("{" PLAIN ",\"nested_blocksize\":64,\"nested_dtype\":\"float32\",\"nested_offset\":0.09}")},
         "nested_blocksize: want 256, got 64"},
        {{BLOB("{" PLAIN ",\"nested_blocksize\":256,\"nested_dtype\":\"float16\",\"nested_offset\":0.09}")}, "'float16'"},
        {{BLOB("{" PLAIN ",\"nested_blocksize\":256,\"nested_dtype\":\"float32\",\"nested_offset\":1e39}")}, "nested_offset"},
        {{BLOB("{" PLAIN ",\"nested_blocksize\":256,\"nested_dtype\":\"float32\",\"nested_offset\":NaN}")}, STATE},
        {{BLOB("{" PLAIN ",\"nested_blocksize\":256,\"nested_dtype\":\"float32\",\"nested_offset\":\"0\"}")}, "nested_offset"},
        {{BLOB("\xff\xfe{}")}, STATE},
        {{BLOB("{\"\\ud800\":1}")}, STATE},
        {{.change = CHANGE_DATA, .tensor = STATE, .bytes = deep, .count = sizeof deep}, STATE},
        {{.change = CHANGE_DATA, .tensor = STATE, .bytes = long_blob, .count = sizeof long_blob},
         "want 1 to 4096 bytes of U8, got 5000"},
        {{.change = CHANGE_SHAPE, .tensor = STATE, .dtype = DTYPE_I8, .ndim = 1, .shape = {40}}, "of I8"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check(nested, &cases[i].mutation, &nf4, cases[i].says);
}

static void test_quantized_parts(void **state) {
    (void)state;
#define UP "layers.0.mlp.up_proj.weight"
    static const struct {
        int is_nested;
        Mutation mutation;
        const char *says;
    } cases[] = {
        {1, DROP(UP), "model." UP " is missing"},
        {1, DROP(STATE), "want [96, 64], got [3072, 1]"},
        {1, DROP(UP ".absmax"), "model." UP ".absmax is missing"},
        {1, DROP(UP ".quant_map"), "model." UP ".quant_map is missing"},
        {1, DROP(UP ".nested_quant_map"), ".nested_quant_map is missing"},
        {1, DROP(UP ".nested_absmax"), "nested values without a nested_absmax tensor"},
        {1,
         {.change = CHANGE_SHAPE, .tensor = UP, .dtype = DTYPE_U8, .ndim = 2, .shape = {3071, 1}},
         "want 3072 bytes of packed codes, got 3071"},
        {1, {.change = CHANGE_SHAPE, .tensor = UP, .dtype = DTYPE_U8, .ndim = 2, .shape = {1, 3072}}, "one column"},
        {1, {.change = CHANGE_SHAPE, .tensor = UP, .dtype = DTYPE_U8, .ndim = 1, .shape = {3072}}, "one column"},
        {1,
         {.change = CHANGE_SHAPE, .tensor = UP, .dtype = DTYPE_BF16, .ndim = 2, .shape = {1536, 1}},
         NULL}, /* quant_storage bfloat16 */
        {1,
         {.change = CHANGE_SHAPE, .tensor = UP ".absmax", .dtype = DTYPE_U8, .ndim = 1, .shape = {95}},
         "want 96 values of U8, got 95 bytes"},
        {1,
         {.change = CHANGE_SHAPE, .tensor = UP ".absmax", .dtype = DTYPE_F32, .ndim = 1, .shape = {24}},
         "want 96 values of U8, got 96 bytes of F32"},
        {1,
         {.change = CHANGE_SHAPE, .tensor = UP ".quant_map", .dtype = DTYPE_F32, .ndim = 1, .shape = {15}},
         "want 16 values of F32"},
        {1,
         {.change = CHANGE_SHAPE, .tensor = UP ".nested_quant_map", .dtype = DTYPE_BF16, .ndim = 1, .shape = {256}},
         "want 256 values of F32"},
        {1, BYTES(UP ".quant_map", &nan_value, 4, 8), "model." UP ".quant_map: value 2 is NaN or Inf"},
        {1, BYTES(UP ".nested_absmax", &infinity, 4, 0), ".nested_absmax: value 0 is NaN or Inf"},
        {1, BYTES(UP ".nested_quant_map", &nan_value, 4, 4 * 255), ".nested_quant_map: value 255 is NaN or Inf"},
        {0, NOTHING, NULL},
        {0, BYTES(UP ".absmax", &nan_value, 4, 4 * 3), "model." UP ".absmax: value 3 is NaN or Inf"},
        {0,
         {.change = CHANGE_SHAPE, .tensor = UP ".absmax", .dtype = DTYPE_F32, .ndim = 1, .shape = {191}},
         "want 192 values of F32"},
        {0, ADD("model." UP ".nested_absmax"), "nested"},
        {0, ADD("model." UP ".nested_quant_map"), "unexpected tensor model." UP ".nested_quant_map"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check(cases[i].is_nested ? nested : plain, &cases[i].mutation, &nf4, cases[i].says);
}

static void test_int8_parts(void **state) {
    (void)state;
    static const uint8_t one = 1;
    static const struct {
        Mutation mutation;
        const char *says;
    } cases[] = {
        {NOTHING, NULL},
        {DROP("layers.0.mlp.up_proj.weight_format"), NULL},
        {DROP("layers.0.mlp.up_proj.SCB"), "model.layers.0.mlp.up_proj.weight: want F32, BF16 or F16, got I8"},
        {{.change = CHANGE_SHAPE, .tensor = "layers.0.mlp.up_proj.SCB", .dtype = DTYPE_F32, .ndim = 1, .shape = {95}},
         "SCB: want 96 values of F32"},
        {{.change = CHANGE_SHAPE, .tensor = "layers.0.mlp.up_proj.SCB", .dtype = DTYPE_BF16, .ndim = 1, .shape = {96}},
         "of BF16"},
        {{.change = CHANGE_SHAPE, .tensor = "layers.0.mlp.up_proj.weight", .dtype = DTYPE_I8, .ndim = 2, .shape = {95, 64}},
         "got [95, 64]"},
        {BYTES("layers.0.mlp.up_proj.weight_format", &one, 1, 0), "weight_format: want 0 (rows), got 1"},
        {BYTES("layers.0.mlp.up_proj.SCB", &nan_value, 4, 4 * 9), "up_proj.weight: row 9, column 0 is NaN or Inf"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        check(int8, &cases[i].mutation, &nf4, cases[i].says);
        check(int8, &cases[i].mutation, &bf16_dense, cases[i].says);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dense_folders), cmocka_unit_test(test_group_that_does_not_divide),
        cmocka_unit_test(test_quant_state),   cmocka_unit_test(test_quantized_parts),
        cmocka_unit_test(test_int8_parts),
    };
    return cmocka_run_group_tests(tests, open_all, remove_all);
}
