/* Types, names and row order of GGUF exports: train/export_gguf_mix.h, train/gguf_names.h. Expected types were read off
 * llama.cpp's llama_tensor_get_type (llama-cpp-python 0.3.36). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "quant/ggml.h"
#include "train/export_gguf_mix.h"
#include "train/gguf_names.h"
#include "train/weights.h"

static ModelConfig model(const char *type, int64_t layers) {
    ModelConfig c = {
        .layers = layers, .hidden = 256, .intermediate = 512, .heads = 4, .kv_heads = 2, .head_dim = 8, .vocab = 32};
    memcpy(c.model_type, type, strlen(type));
    c.qk_norm = strcmp(type, "qwen3") == 0;
    return c;
}

static uint32_t chosen(const char *mix_name, const ModelConfig *c, int32_t id, int64_t cols) {
    const GgufMix *mix;
    Error err = {0};
    assert_int_equal(gguf_mix_named(mix_name, &mix, &err), OK);
    return gguf_mix_type(mix, c, id, cols, 0);
}

static void more_bits_where_llama_cpp_gives_them(void **state) {
    (void)state;
    ModelConfig c = model("llama", 16);
    static const int more[16] = {1, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1, 1, 1}; /* 16 / 8 = 2; every third from 4; 14 on */
    for (int64_t l = 0; l < 16; l++) {
        assert_int_equal(chosen("Q4_K_M", &c, weight_id(l, LAYER_V), 256), more[l] ? GGML_Q6_K : GGML_Q4_K);
        assert_int_equal(chosen("Q5_K_M", &c, weight_id(l, LAYER_DOWN), 512), more[l] ? GGML_Q6_K : GGML_Q5_K);
        assert_int_equal(chosen("Q4_K_S", &c, weight_id(l, LAYER_V), 256), l < 4 ? GGML_Q5_K : GGML_Q4_K);
        assert_int_equal(chosen("Q4_K_S", &c, weight_id(l, LAYER_DOWN), 512), l < 2 ? GGML_Q5_K : GGML_Q4_K);
        assert_int_equal(chosen("Q3_K_M", &c, weight_id(l, LAYER_V), 256), l < 2 ? GGML_Q5_K : GGML_Q4_K);
        assert_int_equal(chosen("Q3_K_M", &c, weight_id(l, LAYER_DOWN), 512), l < 1 ? GGML_Q5_K : GGML_Q4_K);
        assert_int_equal(chosen("Q2_K", &c, weight_id(l, LAYER_O), 256), GGML_Q3_K);
        assert_int_equal(chosen("Q4_K_M", &c, weight_id(l, LAYER_Q), 256), GGML_Q4_K);
    }
}

static void embeddings_and_vectors(void **state) {
    (void)state;
    ModelConfig c = model("qwen2", 2);
    assert_int_equal(chosen("Q4_K_M", &c, WEIGHT_EMBED, 256), GGML_Q4_K);
    assert_int_equal(chosen("Q4_K_M", &c, WEIGHT_HEAD, 256), GGML_Q6_K);
    assert_int_equal(chosen("Q4_0", &c, WEIGHT_HEAD, 256), GGML_Q6_K);
    assert_int_equal(chosen("Q8_0", &c, WEIGHT_HEAD, 256), GGML_Q8_0);
    assert_int_equal(chosen("F16", &c, WEIGHT_HEAD, 256), GGML_F16);
    assert_int_equal(chosen("F16", &c, WEIGHT_FINAL_NORM, 256), GGML_F32);
    assert_int_equal(chosen("Q4_0", &c, weight_id(0, LAYER_Q_BIAS), 256), GGML_F32);
    c.tied_embeddings = 1;
    assert_int_equal(chosen("Q4_K_M", &c, WEIGHT_EMBED, 256), GGML_Q6_K);
}

static void widths_that_do_not_fit(void **state) {
    (void)state;
    ModelConfig c = model("llama", 2);
    c.layers = 16;
    int32_t q = weight_id(5, LAYER_Q);
    assert_int_equal(chosen("Q2_K", &c, q, 288), GGML_Q4_0);
    assert_int_equal(chosen("Q3_K", &c, q, 288), GGML_Q4_0);
    assert_int_equal(chosen("Q4_K", &c, q, 288), GGML_Q5_0);
    assert_int_equal(chosen("Q5_K", &c, q, 288), GGML_Q5_1);
    assert_int_equal(chosen("Q6_K", &c, q, 288), GGML_Q8_0);
    assert_int_equal(chosen("Q4_K", &c, q, 40), GGML_F16);
    assert_int_equal(chosen("Q8_0", &c, q, 40), GGML_F16);
    assert_int_equal(chosen("Q4_K_M", &c, WEIGHT_HEAD, 288), GGML_Q8_0);
}

static void unknown_types_are_refused(void **state) {
    (void)state;
    const GgufMix *mix;
    Error err = {0};
    assert_int_equal(gguf_mix_named("Q9_K", &mix, &err), ERR_USAGE);
    assert_non_null(strstr(err.text, "Q5_K_M"));
    assert_int_equal(gguf_mix_named(NULL, &mix, &err), OK);
    assert_string_equal(mix->name, "Q4_K_M");
}

static void names(void **state) {
    (void)state;
    ModelConfig c = model("llama", 3);
    char name[GGUF_WEIGHT_NAME_MAX];
    assert_true(gguf_weight_name(&c, weight_id(2, LAYER_DOWN), name));
    assert_string_equal(name, "blk.2.ffn_down.weight");
    assert_true(gguf_weight_name(&c, weight_id(0, LAYER_POST_NORM), name));
    assert_string_equal(name, "blk.0.ffn_norm.weight");
    assert_false(gguf_weight_name(&c, weight_id(0, LAYER_Q_NORM), name));
    assert_true(gguf_weight_name(&c, WEIGHT_HEAD, name));
    c.tied_embeddings = 1;
    assert_false(gguf_weight_name(&c, WEIGHT_HEAD, name));
}

static void rows_of_a_head_are_interleaved(void **state) {
    (void)state;
    ModelConfig llama = model("mistral", 1), qwen = model("qwen2", 1);
    static const int64_t want[8] = {0, 2, 4, 6, 1, 3, 5, 7};
    for (int64_t r = 0; r < 16; r++) {
        assert_int_equal(gguf_file_row(&llama, weight_id(0, LAYER_K), r), r / 8 * 8 + want[r % 8]);
        assert_int_equal(gguf_file_row(&llama, weight_id(0, LAYER_V), r), r);
        assert_int_equal(gguf_file_row(&qwen, weight_id(0, LAYER_Q), r), r);
    }
}

static void what_llama_cpp_cannot_compute_is_refused(void **state) {
    (void)state;
    const char *architecture;
    Error err = {0};
    ModelConfig c = model("mistral", 1);
    assert_int_equal(gguf_architecture(&c, &architecture, &err), OK);
    assert_string_equal(architecture, "llama");
    c.rope.type = ROPE_DYNAMIC;
    assert_int_equal(gguf_architecture(&c, &architecture, &err), ERR_FAILED);
    assert_non_null(strstr(err.text, "dynamic"));
    c = model("qwen2", 1);
    c.mlp_bias = 1;
    assert_int_equal(gguf_architecture(&c, &architecture, &err), ERR_FAILED);
    c = model("gemma", 1);
    assert_int_equal(gguf_architecture(&c, &architecture, &err), ERR_FAILED);
    assert_non_null(strstr(err.text, "gemma"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(more_bits_where_llama_cpp_gives_them),
        cmocka_unit_test(embeddings_and_vectors),
        cmocka_unit_test(widths_that_do_not_fit),
        cmocka_unit_test(unknown_types_are_refused),
        cmocka_unit_test(names),
        cmocka_unit_test(rows_of_a_head_are_interleaved),
        cmocka_unit_test(what_llama_cpp_cannot_compute_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
