/* config.json: families and their defaults, what is refused, and the RoPE frequencies of every scaling. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/file.h"
#include "core/memory.h"
#include "data/hf_config.h"

#define DIMS "\"hidden_size\":64,\"intermediate_size\":96,\"num_hidden_layers\":4,\"num_attention_heads\":4,\"vocab_size\":1000"
#define LLAMA "\"model_type\":\"llama\"," DIMS ",\"num_key_value_heads\":2,\"max_position_embeddings\":2048"
#define MISTRAL "\"model_type\":\"mistral\"," DIMS ",\"num_key_value_heads\":2"
#define QWEN2 "\"model_type\":\"qwen2\"," DIMS ",\"num_key_value_heads\":2"
#define QWEN3 "\"model_type\":\"qwen3\"," DIMS ",\"num_key_value_heads\":2"

static ModelConfig parsed(const char *text) {
    ModelConfig config;
    Error err = {0};
    Status status = model_config_parse("config.json", text, strlen(text), &config, &err);
    if (status != OK) fail_msg("%s: %s", text, err.text);
    return config;
}

/* ---- families ------------------------------------------------------------------------------------------------------ */

static void test_llama_defaults(void **state) {
    (void)state;
    ModelConfig config = parsed("{\"model_type\":\"llama\"," DIMS "}");
    assert_string_equal(config.model_type, "llama");
    assert_string_equal(config.architecture, "LlamaForCausalLM");
    assert_int_equal(config.kv_heads, 4);
    assert_int_equal(config.head_dim, 16);
    assert_int_equal(config.context, 2048);
    assert_true(config.rms_eps == 1e-6);
    assert_int_equal(config.rope.type, ROPE_DEFAULT);
    assert_true(config.rope.theta == 10000.0);
    assert_int_equal(config.qkv_bias + config.o_bias + config.mlp_bias + config.qk_norm + config.tied_embeddings, 0);
    assert_int_equal(config.bos_id, -1);
    assert_int_equal(config.eos_count, 0);
    assert_int_equal(config.dtype, DTYPE_F32);
    assert_int_equal(config.prequant, PREQUANT_NONE);
    for (int i = 0; i < 4; i++)
        assert_int_equal(config.window[i], 0);
}

static void test_llama_options(void **state) {
    (void)state;
    ModelConfig config =
        parsed("{" LLAMA
               ",\"attention_bias\":true,\"mlp_bias\":true,\"head_dim\":32,\"tie_word_embeddings\":true,"
               "\"eos_token_id\":[5,6,7],\"bos_token_id\":1,\"torch_dtype\":\"bfloat16\",\"rms_norm_eps\":1e-5,"
               "\"pretraining_tp\":1,\"attention_dropout\":0.1,\"sliding_window\":16,\"use_cache\":false,"
               "\"architectures\":[\"LlamaForCausalLM\"],\"some_unknown_key\":{\"x\":[1]}}");
    assert_true(config.qkv_bias && config.o_bias && config.mlp_bias && config.tied_embeddings);
    assert_int_equal(config.head_dim, 32);
    assert_int_equal(config.eos_count, 3);
    assert_int_equal(config.eos_ids[2], 7);
    assert_int_equal(config.bos_id, 1);
    assert_int_equal(config.dtype, DTYPE_BF16);
    assert_int_equal(config.window[0], 0); /* the class does not read sliding_window */
    config = parsed("{" LLAMA ",\"dtype\":\"float16\",\"eos_token_id\":9,\"head_dim\":null}");
    assert_int_equal(config.dtype, DTYPE_F16);
    assert_int_equal(config.eos_count, 1);
    assert_int_equal(config.head_dim, 16);
}

static void test_mistral_windows(void **state) {
    (void)state;
    ModelConfig config = parsed(
        "{\"model_type\":\"mistral\",\"hidden_size\":64,\"intermediate_size\":96,\"num_hidden_layers\":2,"
        "\"num_attention_heads\":16,\"vocab_size\":10}");
    assert_int_equal(config.kv_heads, 8); /* the class's defaults for absent keys */
    assert_int_equal(config.window[1], 4096);
    assert_int_equal(config.context, 131072);
    config = parsed("{" MISTRAL ",\"sliding_window\":null}");
    assert_int_equal(config.window[0], 0);
    config = parsed("{" MISTRAL
                    ",\"sliding_window\":128,\"layer_types\":[\"sliding_attention\",\"sliding_attention\","
                    "\"sliding_attention\",\"sliding_attention\"]}");
    for (int i = 0; i < 4; i++)
        assert_int_equal(config.window[i], 128);
}

static void test_null_kv_heads(void **state) {
    (void)state;
    ModelConfig config = parsed("{\"model_type\":\"mistral\"," DIMS ",\"num_key_value_heads\":null}");
    assert_int_equal(config.kv_heads, 4);
}

static void test_qwen2(void **state) {
    (void)state;
    ModelConfig config = parsed("{" QWEN2 ",\"use_mrope\":false,\"sliding_window\":131072,\"max_window_layers\":2}");
    assert_true(config.qkv_bias && !config.o_bias && !config.mlp_bias && !config.qk_norm);
    assert_int_equal(config.window[3], 0);
    config = parsed("{" QWEN2 ",\"use_sliding_window\":true,\"sliding_window\":8,\"max_window_layers\":3}");
    assert_int_equal(config.window[2], 0);
    assert_int_equal(config.window[3], 8);
    config = parsed("{" QWEN2
                    ",\"use_sliding_window\":true,\"sliding_window\":8,\"max_window_layers\":3,"
                    "\"layer_types\":[\"sliding_attention\",\"full_attention\",\"sliding_attention\",\"full_attention\"]}");
    assert_int_equal(config.window[0], 8);
    assert_int_equal(config.window[1], 0);
    assert_int_equal(config.window[3], 0);
}

static void test_qwen3(void **state) {
    (void)state;
    ModelConfig config = parsed("{" QWEN3 "}");
    assert_true(config.qk_norm && !config.qkv_bias && !config.o_bias);
    assert_int_equal(config.head_dim, 128);
    config = parsed("{" QWEN3 ",\"attention_bias\":true,\"head_dim\":64}");
    assert_true(config.qkv_bias && config.o_bias);
    assert_int_equal(config.head_dim, 64);
}

/* Counts of transformers 5.23.0: AutoModelForCausalLM.from_config on the meta device, sum of p.numel(). */
static void test_parameters(void **state) {
    (void)state;
    static const struct {
        const char *text;
        int64_t parameters;
    } cases[] = {
        {"{\"model_type\":\"llama\",\"vocab_size\":128256,\"hidden_size\":4096,\"intermediate_size\":14336,"
         "\"num_hidden_layers\":32,\"num_attention_heads\":32,\"num_key_value_heads\":8}",
         8030261248},
        {"{\"model_type\":\"llama\",\"vocab_size\":1000,\"hidden_size\":64,\"intermediate_size\":96,\"num_hidden_layers\":3,"
         "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"head_dim\":32,\"attention_bias\":true,\"mlp_bias\":true}",
         259200},
        {"{\"model_type\":\"mistral\",\"vocab_size\":32000,\"hidden_size\":4096,\"intermediate_size\":14336,"
         "\"num_hidden_layers\":32,\"num_attention_heads\":32}",
         7241732096},
        {"{\"model_type\":\"qwen2\",\"vocab_size\":151936,\"hidden_size\":896,\"intermediate_size\":4864,"
         "\"num_hidden_layers\":24,\"num_attention_heads\":14,\"num_key_value_heads\":2,\"tie_word_embeddings\":true}",
         494032768},
        {"{\"model_type\":\"qwen3\",\"vocab_size\":151936,\"hidden_size\":1024,\"intermediate_size\":3072,"
         "\"num_hidden_layers\":28,\"num_attention_heads\":16,\"num_key_value_heads\":8,\"tie_word_embeddings\":true}",
         596049920},
        {"{\"model_type\":\"qwen3\",\"vocab_size\":1000,\"hidden_size\":64,\"intermediate_size\":96,\"num_hidden_layers\":2,"
         "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"attention_bias\":true}",
         364480},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(parsed(cases[i].text).parameters, cases[i].parameters);
}

static void test_quantization(void **state) {
    (void)state;
    ModelConfig config =
        parsed("{" LLAMA ",\"quantization_config\":{\"quant_method\":\"bitsandbytes\",\"load_in_4bit\":true}}");
    assert_int_equal(config.prequant, PREQUANT_BNB_4BIT);
    assert_int_equal(config.prequant_nf4, 0); /* a missing type means fp4 */
    assert_int_equal(config.prequant_double, 0);
    config = parsed("{" LLAMA
                    ",\"quantization_config\":{\"_load_in_4bit\":true,\"_load_in_8bit\":false,\"load_in_4bit\":true,"
                    "\"bnb_4bit_quant_type\":\"nf4\",\"bnb_4bit_use_double_quant\":true,\"bnb_4bit_quant_storage\":\"uint8\","
                    "\"llm_int8_skip_modules\":[\"lm_head\"],\"llm_int8_threshold\":6.0}}");
    assert_true(config.prequant_nf4 && config.prequant_double);
    config = parsed("{" LLAMA ",\"quantization_config\":{\"quant_method\":\"bitsandbytes\",\"load_in_8bit\":true}}");
    assert_int_equal(config.prequant, PREQUANT_BNB_8BIT);
    assert_int_equal(parsed("{" LLAMA ",\"quantization_config\":null}").prequant, PREQUANT_NONE);
}

#define QUANT(text) "{" LLAMA ",\"quantization_config\":{" text "}}"
#define GPTQ "\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":128"
#define AWQ "\"quant_method\":\"awq\",\"bits\":4,\"group_size\":64"
#define COMPRESSED(format, weights)                                                                                           \
    "\"quant_method\":\"compressed-tensors\",\"format\":\"" format "\",\"config_groups\":{\"group_0\":{\"weights\":{" weights \
    "}}}"
#define PACKED "\"num_bits\":4,\"strategy\":\"group\",\"group_size\":32"

static void assert_grouped(const char *text, QuantMethod method, GroupedConfig want) {
    ModelConfig config = parsed(text);
    assert_int_equal(config.prequant, method);
    assert_int_equal(config.grouped.bits, want.bits);
    assert_int_equal(config.grouped.group, want.group);
    assert_int_equal(config.grouped.zeros, want.zeros);
    assert_int_equal(config.grouped.ordered, want.ordered);
    assert_int_equal(config.grouped.zero_offset, want.zero_offset);
    assert_int_equal(config.grouped.int8_activations, want.int8_activations);
}

static void test_grouped_integers(void **state) {
    (void)state;
    assert_grouped(QUANT(GPTQ), PREQUANT_GPTQ, (GroupedConfig){.bits = 4, .group = 128, .zero_offset = 1});
    assert_grouped(QUANT(GPTQ ",\"desc_act\":true,\"sym\":false,\"checkpoint_format\":\"gptq_v2\",\"lm_head\":false,"
                              "\"dynamic\":{},\"static_groups\":false,\"pack_dtype\":\"int32\",\"meta\":{\"x\":1}"),
                   PREQUANT_GPTQ, (GroupedConfig){.bits = 4, .group = 128, .zeros = 1, .ordered = 1});
    assert_grouped(QUANT("\"quant_method\":\"gptq\",\"bits\":3,\"group_size\":-1,\"desc_act\":true"), PREQUANT_GPTQ,
                   (GroupedConfig){.bits = 3, .zero_offset = 1}); /* one group: no order */
    assert_grouped(QUANT(AWQ ",\"version\":\"GEMM\",\"zero_point\":true,\"modules_to_not_convert\":null"), PREQUANT_AWQ,
                   (GroupedConfig){.bits = 4, .group = 64, .zeros = 1});
    assert_grouped(QUANT("\"quant_method\":\"awq\",\"w_bit\":4,\"q_group_size\":128"), PREQUANT_AWQ,
                   (GroupedConfig){.bits = 4, .group = 128, .zeros = 1});
    assert_grouped(QUANT(COMPRESSED("pack-quantized", PACKED ",\"type\":\"int\",\"symmetric\":true,\"actorder\":null")),
                   PREQUANT_PACKED, (GroupedConfig){.bits = 4, .group = 32});
    assert_grouped(QUANT(COMPRESSED("pack-quantized", PACKED ",\"symmetric\":false,\"actorder\":\"group\"")), PREQUANT_PACKED,
                   (GroupedConfig){.bits = 4, .group = 32, .zeros = 1, .ordered = 1});
    assert_grouped(QUANT(COMPRESSED("pack-quantized", "\"num_bits\":3,\"strategy\":\"channel\",\"actorder\":\"weight\"")),
                   PREQUANT_PACKED, (GroupedConfig){.bits = 3});
    assert_grouped(QUANT("\"quant_method\":\"compressed-tensors\",\"format\":\"int-quantized\",\"sparsity_config\":{},"
                         "\"quantization_status\":\"compressed\",\"config_groups\":{\"group_0\":{\"weights\":{\"num_bits\":8,"
                         "\"strategy\":\"channel\"},\"input_activations\":{\"num_bits\":8,\"type\":\"int\",\"dynamic\":true,"
                         "\"strategy\":\"token\"},\"output_activations\":null}},\"kv_cache_scheme\":null"),
                   PREQUANT_INT_ROWS, (GroupedConfig){.bits = 8, .int8_activations = 1});
}

/* ---- refusals ------------------------------------------------------------------------------------------------------ */

static const struct {
    const char *text, *words; /* words separated by '|' */
} hostile[] = {
    {"", "want a value"},
    {"[]", "want an object, got an array"},
    {"{" LLAMA "}}", "want nothing after"},
    {"{" LLAMA ",}", "want a key"},
    {QUANT("\"quant_method\":\"gptq\",\"group_size\":128"), "bits|got 0"},
    {QUANT("\"quant_method\":\"gptq\",\"bits\":5,\"group_size\":128"), "bits: want 2, 3, 4 or 8, got 5"},
    {QUANT("\"quant_method\":\"gptq\",\"bits\":4"), "group_size is missing"},
    {QUANT("\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":0"), "group_size|got 0"},
    {QUANT("\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":12"), "a multiple of 8, got 12"},
    {QUANT("\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":-3"), "group_size|got -3"},
    {QUANT("\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":1e300"), "group_size|want an integer"},
    {QUANT("\"quant_method\":\"gptq\",\"bits\":\"4\",\"group_size\":128"), "bits|got '4'"},
    {QUANT(GPTQ ",\"bits\":4"), "bits|twice"},
    {QUANT(GPTQ ",\"sym\":1"), "sym|true or false"},
    {QUANT(GPTQ ",\"checkpoint_format\":\"marlin\""), "checkpoint_format|'marlin' is not supported"},
    {QUANT(GPTQ ",\"format\":\"bitblas\""), "format|'bitblas' is not supported"},
    {QUANT(GPTQ ",\"is_marlin_format\":true"), "Marlin"},
    {QUANT(GPTQ ",\"lm_head\":true"), "a quantized head"},
    {QUANT(GPTQ ",\"dynamic\":{\"-:q_proj\":{}}"), "differ between modules"},
    {QUANT(GPTQ ",\"pack_dtype\":\"int16\""), "pack_dtype|int16"},
    {QUANT("\"quant_method\":\"awq\",\"bits\":8,\"group_size\":64"), "bits: want 4, got 8"},
    {QUANT(AWQ ",\"version\":\"gemv\""), "version|'gemv' is not supported"},
    {QUANT(AWQ ",\"zero_point\":false"), "zero_point: want true"},
    {QUANT(AWQ ",\"backend\":\"llm-awq\""), "backend|'llm-awq'"},
    {QUANT("\"quant_method\":\"compressed-tensors\""), "format is missing"},
    {QUANT("\"quant_method\":\"compressed-tensors\",\"format\":\"float-quantized\""), "'float-quantized' is not supported"},
    {QUANT("\"quant_method\":\"compressed-tensors\",\"format\":\"pack-quantized\",\"config_groups\":[]"), "want an object"},
    {QUANT("\"quant_method\":\"compressed-tensors\",\"format\":\"pack-quantized\",\"config_groups\":{}"), "want one group"},
    {QUANT("\"quant_method\":\"compressed-tensors\",\"format\":\"pack-quantized\",\"config_groups\":{\"a\":{},\"b\":{}}"),
     "want one group"},
    {QUANT("\"quant_method\":\"compressed-tensors\",\"format\":\"pack-quantized\",\"config_groups\":{\"a\":null}"),
     "want an object in it"},
    {QUANT("\"quant_method\":\"compressed-tensors\",\"format\":\"pack-quantized\",\"config_groups\":{\"a\":{}}"),
     "weights.|is missing"},
    {QUANT(COMPRESSED("pack-quantized", "\"num_bits\":9,\"strategy\":\"channel\"")), "num_bits: want 2 to 8, got 9"},
    {QUANT(COMPRESSED("int-quantized", "\"num_bits\":4,\"strategy\":\"channel\"")), "num_bits: want 8, got 4"},
    {QUANT(COMPRESSED("int-quantized", "\"num_bits\":8,\"strategy\":\"group\",\"group_size\":32")), "want channel"},
    {QUANT(COMPRESSED("pack-quantized", "\"num_bits\":4,\"strategy\":\"tensor\"")), "strategy|'tensor'"},
    {QUANT(COMPRESSED("pack-quantized", "\"num_bits\":4,\"strategy\":\"group\"")), "a group_size"},
    {QUANT(COMPRESSED("pack-quantized", "\"num_bits\":4")), "strategy: want group or channel"},
    {QUANT(COMPRESSED("pack-quantized", PACKED ",\"type\":\"float\"")), "type|'float'"},
    {QUANT(COMPRESSED("pack-quantized", PACKED ",\"dynamic\":true")), "dynamic scales"},
    {QUANT(COMPRESSED("pack-quantized", PACKED ",\"actorder\":\"sideways\"")), "actorder|'sideways'"},
    {QUANT(COMPRESSED("pack-quantized", PACKED) ",\"kv_cache_scheme\":{\"num_bits\":8}"), "key/value cache"},
    {QUANT(COMPRESSED("pack-quantized", PACKED) ",\"transform_config\":{\"a\":1}"), "transforms"},
    {QUANT(COMPRESSED("pack-quantized", PACKED) ",\"quantization_status\":\"frozen\""), "'frozen' is not supported"},
    {QUANT(COMPRESSED("pack-quantized", PACKED) ",\"sparsity_config\":{\"format\":\"sparse-24\"}"), "'sparse-24'"},
    {QUANT("\"quant_method\":\"compressed-tensors\",\"format\":\"int-quantized\",\"config_groups\":{\"a\":{\"weights\":{"
           "\"num_bits\":8,\"strategy\":\"channel\"},\"input_activations\":{\"num_bits\":8,\"strategy\":\"tensor\"}}}"),
     "dynamic int8 per token"},
    {"{" LLAMA ",\"x\":[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]}", "nested deeper"},
    {"{" LLAMA ",\"x\":\"\\uD800\"}", "lone surrogate"},
    {"{}", "model_type|missing|llama, mistral, qwen2, qwen3"},
    {"{\"model_type\":7}", "model_type|want a string|got 7"},
    {"{\"model_type\":\"gemma2\"}", "model_type|'gemma2' is not supported"},
    {"{\"model_type\":\"Llama\"}", "'Llama' is not supported"},
    {"{" LLAMA ",\"model_type\":\"llama\"}", "model_type|twice"},
    {"{" LLAMA ",\"hidden_size\":64}", "hidden_size|twice"},
    {"{" LLAMA ",\"architectures\":[\"LlamaForSequenceClassification\"]}", "architectures|LlamaForCausalLM|Classification"},
    {"{" LLAMA ",\"architectures\":[\"MistralForCausalLM\"]}", "architectures|'MistralForCausalLM'"},
    {"{\"model_type\":\"llama\"}", "num_hidden_layers|missing"},
    {"{\"model_type\":\"llama\",\"num_hidden_layers\":\"4\"}", "num_hidden_layers|want an integer|got '4'"},
    {"{\"model_type\":\"llama\",\"num_hidden_layers\":0}", "num_hidden_layers|from 1 to 512|got 0"},
    {"{\"model_type\":\"llama\",\"num_hidden_layers\":513}", "num_hidden_layers|from 1 to 512|got 513"},
    {"{\"model_type\":\"llama\",\"num_hidden_layers\":2.5}", "num_hidden_layers|got 2.5"},
    {"{\"model_type\":\"llama\",\"num_hidden_layers\":-1}", "num_hidden_layers|got -1"},
    {"{\"model_type\":\"llama\",\"num_hidden_layers\":1,\"hidden_size\":9223372036854775807}", "hidden_size|to 1048576"},
    {"{\"model_type\":\"llama\",\"num_hidden_layers\":1,\"hidden_size\":64,\"intermediate_size\":1,\"vocab_size\":1e300}",
     "vocab_size"},
    {"{\"model_type\":\"llama\"," DIMS ",\"num_key_value_heads\":3}",
     "num_key_value_heads|divisor of num_attention_heads (4)|got 3"},
    {"{\"model_type\":\"llama\"," DIMS ",\"num_key_value_heads\":8}", "num_key_value_heads|divisor"},
    {"{\"model_type\":\"llama\"," DIMS ",\"num_key_value_heads\":0}", "num_key_value_heads|from 1"},
    {"{\"model_type\":\"qwen2\"," DIMS "}", "num_key_value_heads|got 32"},
    {"{" LLAMA ",\"head_dim\":15}", "head_dim|even|got 15"},
    {"{" LLAMA ",\"head_dim\":514}", "head_dim|to 512|got 514"},
    {"{\"model_type\":\"llama\",\"num_hidden_layers\":1,\"hidden_size\":65,\"intermediate_size\":1,\"vocab_size\":9,"
     "\"num_attention_heads\":4}",
     "hidden_size|multiple of num_attention_heads (4)|got 65"},
    {"{\"model_type\":\"llama\",\"num_hidden_layers\":1,\"hidden_size\":4096,\"intermediate_size\":1,\"vocab_size\":9,"
     "\"num_attention_heads\":4}",
     "head_dim|to 512|got 1024"},
    {"{" LLAMA ",\"rms_norm_eps\":0}", "rms_norm_eps|got 0"},
    {"{" LLAMA ",\"rms_norm_eps\":-1e-5}", "rms_norm_eps"},
    {"{" LLAMA ",\"hidden_act\":\"gelu\"}", "hidden_act|'gelu'|silu, gelu_pytorch_tanh"},
    {"{" LLAMA ",\"hidden_activation\":\"gelu_pytorch_tanh\"}", "hidden_activation|changes the computation"},
    {"{" LLAMA ",\"pretraining_tp\":2}", "pretraining_tp|2 is not supported"},
    {"{" LLAMA ",\"attn_logit_softcapping\":50.0}", "attn_logit_softcapping|50"},
    {"{" LLAMA ",\"final_logit_softcapping\":30.0}", "final_logit_softcapping"},
    {"{" LLAMA ",\"num_local_experts\":8}", "num_local_experts|8"},
    {"{" QWEN3 ",\"num_experts\":128}", "num_experts|128"},
    {"{" LLAMA ",\"rope_interleaved\":true}", "rope_interleaved|true"},
    {"{" LLAMA ",\"vision_config\":{}}", "vision_config|an object"},
    {"{" LLAMA ",\"residual_multiplier\":0.22}", "residual_multiplier|0.22"},
    {"{" LLAMA ",\"attention_bias\":1}", "attention_bias|true or false|got 1"},
    {"{" MISTRAL ",\"attention_bias\":true}", "attention_bias|'mistral'"},
    {"{" QWEN2 ",\"mlp_bias\":true}", "mlp_bias|'qwen2'"},
    {"{" LLAMA ",\"tie_word_embeddings\":\"yes\"}", "tie_word_embeddings|got 'yes'"},
    {"{" MISTRAL ",\"sliding_window\":0}", "sliding_window|got 0"},
    {"{" MISTRAL ",\"sliding_window\":64,\"layer_types\":[\"full_attention\",\"full_attention\",\"full_attention\","
     "\"full_attention\"]}",
     "layer_types|layer 0|'mistral'"},
    {"{" LLAMA ",\"layer_types\":[\"full_attention\",\"sliding_attention\",\"full_attention\",\"full_attention\"]}",
     "layer_types|layer 1|no sliding window"},
    {"{" QWEN2 ",\"layer_types\":[\"full_attention\"]}", "layer_types|num_hidden_layers (4)|of 1"},
    {"{" QWEN2 ",\"layer_types\":[\"full_attention\",\"linear_attention\",\"full_attention\",\"full_attention\"]}",
     "layer_types|layer 1|'linear_attention'"},
    {"{" LLAMA ",\"eos_token_id\":1000}", "eos_token_id|999|got 1000"},
    {"{" LLAMA ",\"eos_token_id\":[1,\"2\"]}", "eos_token_id|got '2'"},
    {"{" LLAMA ",\"eos_token_id\":[1,2,3,4,5,6,7,8,9]}", "eos_token_id|at most 8"},
    {"{" LLAMA ",\"bos_token_id\":1000}", "bos_token_id|got 1000"},
    {"{" LLAMA ",\"torch_dtype\":\"float64\"}", "dtype|'float64'"},
    {"{" LLAMA ",\"quantization_config\":{\"quant_method\":\"hqq\",\"bits\":4}}", "quantization_config.quant_method|'hqq'"},
    {"{" LLAMA ",\"quantization_config\":{\"quant_method\":\"torchao\"}}", "'torchao'"},
    {"{" LLAMA ",\"quantization_config\":{}}", "load_in_4bit|neither"},
    {"{" LLAMA ",\"quantization_config\":{\"load_in_4bit\":true,\"load_in_8bit\":true}}", "both"},
    {"{" LLAMA ",\"quantization_config\":{\"load_in_4bit\":true,\"bnb_4bit_quant_type\":\"nf3\"}}",
     "bnb_4bit_quant_type|'nf3'"},
    {"{" LLAMA ",\"quantization_config\":{\"load_in_4bit\":true,\"bnb_4bit_quant_storage\":\"int64\"}}",
     "bnb_4bit_quant_storage|'int64'"},
    {"{" LLAMA ",\"rope_theta\":0}", "rope_theta|got 0"},
    {"{" LLAMA ",\"rope_theta\":\"big\"}", "rope_theta|got 'big'"},
    {"{" LLAMA ",\"rope_scaling\":4}", "rope_scaling|want an object, got 4"},
    {"{" LLAMA ",\"rope_scaling\":{\"type\":\"su\"}}", "rope_scaling.rope_type|'su'|longrope"},
    {"{" LLAMA ",\"rope_scaling\":{\"type\":\"default\",\"mrope_section\":[1,2]}}", "rope_scaling.mrope_section"},
    {"{" LLAMA ",\"rope_parameters\":{\"full_attention\":{\"rope_type\":\"default\"}}}", "rope_parameters.full_attention"},
    {"{" LLAMA ",\"partial_rotary_factor\":0.5}", "partial_rotary_factor|0.5"},
    {"{" LLAMA ",\"rope_parameters\":{\"partial_rotary_factor\":0.25}}", "partial_rotary_factor|0.25"},
    {"{" LLAMA ",\"rope_scaling\":{\"type\":\"linear\"}}", "rope_scaling.factor|missing|'linear'"},
    {"{" LLAMA ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":0.5}}", "rope_scaling.factor|got 0.5"},
    {"{" LLAMA ",\"rope_scaling\":{\"type\":\"llama3\",\"factor\":8,\"low_freq_factor\":1}}",
     "high_freq_factor|missing|'llama3'"},
    {"{" LLAMA ",\"rope_scaling\":{\"type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,\"high_freq_factor\":4}}",
     "high_freq_factor|more than low_freq_factor"},
    {"{" LLAMA ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":8,\"original_max_position_embeddings\":0}}",
     "original_max_position_embeddings|got 0"},
    {"{" LLAMA ",\"rope_scaling\":{\"type\":\"longrope\",\"original_max_position_embeddings\":512}}", "short_factor|list of 8"},
    {"{" LLAMA ",\"rope_scaling\":{\"type\":\"longrope\",\"short_factor\":[1,1,1]}}", "short_factor|want 8|got 3"},
    {"{" LLAMA ",\"rope_scaling\":{\"type\":\"longrope\",\"short_factor\":[1,1,1,1,1,1,1,0]}}", "short_factor|positive|got 0"},
};

static void test_refusals(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof hostile / sizeof *hostile; i++) {
        static ModelConfig config;
        Error err = {0};
        size_t length = strlen(hostile[i].text);
        char *exact = memory_alloc(length); /* so that the address sanitizer sees a read past the end */
        memcpy(exact, hostile[i].text, length);
        Status status = model_config_parse("dir/config.json", exact, length, &config, &err);
        memory_free(exact);
        if (status != ERR_FAILED) fail_msg("%s: want a refusal, got %d", hostile[i].text, status);
        if (strstr(err.text, "dir/config.json: ") != err.text) fail_msg("want the file's name first, got '%s'", err.text);
        char *copy = memory_strdup(hostile[i].words), *rest = NULL;
        for (char *word = strtok_r(copy, "|", &rest); word != NULL; word = strtok_r(NULL, "|", &rest))
            if (strstr(err.text, word) == NULL) fail_msg("%s: want '%s', got '%s'", hostile[i].text, word, err.text);
        memory_free(copy);
    }
}

static void test_large_text_is_refused(void **state) {
    (void)state;
    size_t length = ((size_t)1 << 20) + 1;
    char *text = memory_alloc(length);
    memset(text, ' ', length);
    ModelConfig config;
    Error err = {0};
    assert_int_equal(model_config_parse("big", text, length, &config, &err), ERR_FAILED);
    assert_non_null(strstr(err.text, "at most 1048576 bytes"));
    memory_free(text);
}

/* ---- RoPE ---------------------------------------------------------------------------------------------------------- */

/* Values of transformers 5.23.0, printed by tests/peers/rope_values.py. They are FP32 results of FP32 arithmetic: theta^x
 * with x rounded to FP32 is off by ln(theta) * x * 2^-24, and a few more roundings of 2^-24 follow; for theta = 1e6 that is
 * (13.8 + 4) * 6e-8 = 1.1e-6. Ours are double. */
#define ROPE_TOLERANCE 1.1e-6

#define LONGROPE                                                                                                  \
    "\"type\":\"longrope\",\"short_factor\":[1.0,1.05,1.1,1.3,1.6,2.0,2.5,3.0],\"long_factor\":[1.0,1.5,2.5,5.0," \
    "10.0,20.0,35.0,60.0],\"original_max_position_embeddings\":4096"

static const struct {
    const char *name;
    int head_dim, context;
    const char *rope; /* the rest of the config */
    int64_t longest;
    double inverse[16], attention_factor;
} ropes[] = {
    {"linear",
     16,
     2048,
     "\"rope_theta\":10000.0,\"rope_scaling\":{\"type\":\"linear\",\"factor\":4.0}",
     2048,
     {0.25, 0.079056941, 0.0250000004, 0.00790569466, 0.00249999994, 0.000790569466, 0.000250000012, 7.90569466e-05},
     1},
    {"dynamic, within the context",
     16,
     2048,
     "\"rope_parameters\":{\"rope_type\":\"dynamic\",\"factor\":4.0,\"rope_theta\":10000}",
     100,
     {1, 0.316227764, 0.100000001, 0.0316227786, 0.00999999978, 0.00316227786, 0.00100000005, 0.000316227786},
     1},
    {"dynamic, 8192",
     16,
     2048,
     "\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":4.0}",
     8192,
     {1, 0.219212472, 0.0480541028, 0.0105340583, 0.00230919686, 0.000506204728, 0.000110966386, 2.43252125e-05},
     1},
    {"llama3",
     16,
     131072,
     "\"rope_theta\":500000.0,\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":1.0,"
     "\"high_freq_factor\":4.0,\"original_max_position_embeddings\":8192}",
     131072,
     {1, 0.193922758, 0.0376060307, 0.00729266508, 0.000524846022, 3.42810235e-05, 6.64786967e-06, 1.28917316e-06},
     1},
    {"llama3, short",
     16,
     2048,
     "\"rope_parameters\":{\"rope_theta\":10000.0,\"rope_type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":1.0,"
     "\"high_freq_factor\":4.0,\"original_max_position_embeddings\":128}",
     2048,
     {1, 0.316227764, 0.0427511781, 0.00395284733, 0.00124999997, 0.000395284733, 0.000125000006, 3.95284733e-05},
     1},
    {"yarn",
     32,
     131072,
     "\"rope_theta\":1000000.0,\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4.0,\"original_max_position_embeddings\":32768}",
     131072,
     {1, 0.421696514, 0.177827939, 0.0749894157, 0.0316227786, 0.0133352149, 0.00477990136, 0.00165996165, 0.000549999997,
      0.000168678584, 4.44569851e-05, 1.87473561e-05, 7.90569356e-06, 3.33380353e-06, 1.40585337e-06, 5.92843435e-07},
     1.1386294361119891},
    {"yarn, not truncated",
     32,
     8192,
     "\"rope_parameters\":{\"rope_type\":\"yarn\",\"factor\":16.0,\"original_max_position_embeddings\":512,"
     "\"truncate\":false,\"beta_fast\":16.0,\"beta_slow\":2.0,\"finetuned\":true}",
     8192,
     {1, 0.562341332, 0.316227764, 0.169884473, 0.0695804954, 0.0245337859, 0.00558944233, 0.00111142464, 0.000624999986,
      0.000351463328, 0.000197642366, 0.000111142464, 6.2500003e-05, 3.51463314e-05, 1.97642366e-05, 1.11142463e-05},
     1.2772588722239782},
    {"yarn, mscale",
     16,
     163840,
     "\"rope_scaling\":{\"type\":\"yarn\",\"factor\":40,\"original_max_position_embeddings\":4096,\"mscale\":1.0,"
     "\"mscale_all_dim\":0.8}",
     1,
     {1, 0.316227764, 0.100000001, 0.0239147246, 0.00512499968, 0.000849862176, 2.49999994e-05, 7.90569447e-06},
     1.0569662567531275},
    {"yarn, attention_factor",
     16,
     163840,
     "\"original_max_position_embeddings\":4096,\"rope_scaling\":{\"type\":\"yarn\",\"attention_factor\":1.25}",
     1, /* the factor is the ratio of the contexts, 40 */
     {1, 0.316227764, 0.100000001, 0.0239147246, 0.00512499968, 0.000849862176, 2.49999994e-05, 7.90569447e-06},
     1.25},
    {"longrope, short",
     16,
     131072,
     "\"rope_scaling\":{" LONGROPE "}",
     4096,
     {1, 0.301169306, 0.0909090936, 0.0243252143, 0.00625000009, 0.00158113893, 0.00039999999, 0.000105409257},
     1.1902380714238083},
    {"longrope, long",
     16,
     131072,
     "\"rope_scaling\":{" LONGROPE "}",
     4097,
     {1, 0.210818499, 0.0399999991, 0.00632455572, 0.00100000005, 0.000158113893, 2.85714286e-05, 5.27046268e-06},
     1.1902380714238083},
    {"longrope, factor",
     16,
     131072,
     "\"rope_scaling\":{" LONGROPE ",\"factor\":8.0}",
     100,
     {1, 0.301169306, 0.0909090936, 0.0243252143, 0.00625000009, 0.00158113893, 0.00039999999, 0.000105409257},
     1.1180339887498949},
};

static void test_rope_types(void **state) {
    (void)state;
    for (size_t t = 0; t < sizeof ropes / sizeof *ropes; t++) {
        char *text = memory_format("{\"model_type\":\"llama\"," DIMS ",\"head_dim\":%d,\"max_position_embeddings\":%d,%s}",
                                   ropes[t].head_dim, ropes[t].context, ropes[t].rope);
        ModelConfig config = parsed(text);
        memory_free(text);
        double inverse[16], factor = 0;
        Error err = {0};
        assert_int_equal(rope_frequencies(&config, ropes[t].longest, inverse, &factor, &err), OK);
        for (int i = 0; i < ropes[t].head_dim / 2; i++)
            if (!(fabs(inverse[i] / ropes[t].inverse[i] - 1) <= ROPE_TOLERANCE))
                fail_msg("%s: pair %d: want %.9g, got %.9g", ropes[t].name, i, ropes[t].inverse[i], inverse[i]);
        /* The reference computes it in double too: only the order of operations may differ. */
        if (!(fabs(factor - ropes[t].attention_factor) <= 1e-14)) fail_msg("%s: attention factor %.17g", ropes[t].name, factor);
    }
}

/* inv / inv' of the real Llama 3.1 and 3.2 shapes, computed independently in double and rounded to 7 digits. */
static void test_llama3_check_values(void **state) {
    (void)state;
    static const struct {
        int head_dim, keep, divide; /* up to pair `keep` unchanged, from pair `divide` on divided by the factor */
        double factor, ratio[8];
    } cases[] = {
        {128, 28, 35, 8, {1.207484, 1.553415, 2.026313, 2.694530, 3.684253, 5.257327}},
        {64, 14, 18, 32, {1.651329, 3.292262, 9.666729}},
    };
    for (size_t c = 0; c < 2; c++) {
        char *text = memory_format("{" LLAMA
                                   ",\"head_dim\":%d,\"rope_theta\":500000.0,\"rope_scaling\":{\"rope_type\":\"llama3\","
                                   "\"factor\":%g,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,"
                                   "\"original_max_position_embeddings\":8192}}",
                                   cases[c].head_dim, cases[c].factor);
        ModelConfig config = parsed(text);
        memory_free(text);
        double inverse[64], factor = 0;
        Error err = {0};
        assert_int_equal(rope_frequencies(&config, 0, inverse, &factor, &err), OK);
        assert_true(factor == 1);
        for (int i = 0; i < cases[c].head_dim / 2; i++) {
            double plain = pow(500000.0, -2.0 * i / cases[c].head_dim);
            double want = i <= cases[c].keep     ? 1
                          : i >= cases[c].divide ? cases[c].factor
                                                 : cases[c].ratio[i - cases[c].keep - 1];
            if (!(fabs(plain / inverse[i] - want) <= 6e-7)) /* half a unit of the values' last digit, and a little */
                fail_msg("head_dim %d, pair %d: want %.7g, got %.7g", cases[c].head_dim, i, want, plain / inverse[i]);
        }
    }
}

static void test_rope_refuses(void **state) {
    (void)state;
    double inverse[ROPE_MAX_PAIRS], factor = 0;
    Error err = {0};
    ModelConfig config = parsed("{" LLAMA ",\"head_dim\":2,\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2}}");
    assert_int_equal(rope_frequencies(&config, 0, inverse, &factor, &err), ERR_FAILED);
    assert_non_null(strstr(err.text, "'dynamic'"));
    config.head_dim = 3;
    assert_int_equal(rope_frequencies(&config, 0, inverse, &factor, &err), ERR_FAILED);
    assert_non_null(strstr(err.text, "even"));
}

/* ---- real files ---------------------------------------------------------------------------------------------------- */

static void test_real_models(void **state) {
    (void)state;
    static const struct {
        const char *path;
        int64_t layers, hidden, head_dim, kv_heads, parameters;
        DType dtype;
    } cases[] = {
        {"../shared/assets/models/stories260K/hf", 5, 64, 8, 4, 260032, DTYPE_F32},
        {"../shared/assets/models/stories260K/hf-bf16/config.json", 5, 64, 8, 4, 260032, DTYPE_BF16},
        {"../shared/assets/models/stories3M/hf", 6, 192, 32, 2, 3148224, DTYPE_F32},
        {"../shared/assets/models/stories3M/hf-bf16", 6, 192, 32, 2, 3148224, DTYPE_BF16},
    };
    int found = 0;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (!file_exists(cases[i].path)) continue;
        found++;
        ModelConfig config;
        Error err = {0};
        if (model_config_read(cases[i].path, &config, &err) != OK) fail_msg("%s", err.text);
        assert_int_equal(config.layers, cases[i].layers);
        assert_int_equal(config.hidden, cases[i].hidden);
        assert_int_equal(config.head_dim, cases[i].head_dim);
        assert_int_equal(config.kv_heads, cases[i].kv_heads);
        assert_int_equal(config.parameters, cases[i].parameters);
        assert_int_equal(config.dtype, cases[i].dtype);
        assert_true(config.tied_embeddings && config.rms_eps == 1e-5 && config.bos_id == 1 && config.eos_ids[0] == 2);
    }
    if (found == 0) {
        print_message("skipped: ../shared/assets/models is not there\n");
        skip();
    }
}

static void test_missing_file_is_named(void **state) {
    (void)state;
    ModelConfig config;
    Error err = {0};
    assert_int_equal(model_config_read("/nonexistent/config.json", &config, &err), ERR_FAILED);
    assert_non_null(strstr(err.text, "/nonexistent/config.json"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama_defaults),
        cmocka_unit_test(test_llama_options),
        cmocka_unit_test(test_mistral_windows),
        cmocka_unit_test(test_null_kv_heads),
        cmocka_unit_test(test_qwen2),
        cmocka_unit_test(test_qwen3),
        cmocka_unit_test(test_parameters),
        cmocka_unit_test(test_quantization),
        cmocka_unit_test(test_grouped_integers),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_large_text_is_refused),
        cmocka_unit_test(test_rope_types),
        cmocka_unit_test(test_llama3_check_values),
        cmocka_unit_test(test_rope_refuses),
        cmocka_unit_test(test_real_models),
        cmocka_unit_test(test_missing_file_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
