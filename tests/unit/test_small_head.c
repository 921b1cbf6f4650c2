/* The output head in Q8_0: the logits are those of a head that holds the blocks' decoded values, with every CPU variant, for one
 * row and for many, whether the head was tied to the embedding or not. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/memory.h"
#include "quant/ggml.h"
#include "tests/support/scratch.h"
#include "train/engine.h"
#include "train/generate.h"

enum { ROWS = 19, VOCAB = 83, HIDDEN = 64 };

static char *write_config(int tied, int hidden) {
    char text[640];
    (void)snprintf(
        text, sizeof text,
        "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_act\": \"silu\", \"hidden_size\": %d, "
        "\"intermediate_size\": 96, \"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, "
        "\"vocab_size\": %d, \"max_position_embeddings\": 64, \"rms_norm_eps\": 1e-05, \"rope_theta\": 10000.0, "
        "\"tie_word_embeddings\": %s, \"torch_dtype\": \"float32\"}",
        hidden, VOCAB, tied ? "true" : "false");
    const char *name = tied ? "tied.json" : "own.json";
    scratch_write(name, text, strlen(text));
    return scratch_path(name);
}

static Status open_engine(Engine *engine, const char *path, DType act, const char *cpu, int small, Error *err) {
    EngineOptions options = {.model = path,
                             .act = act,
                             .threads = 2,
                             .cpu = cpu,
                             .weights = {.act = act, .linear = WEIGHT_BF16, .block_size = 64},
                             .small_head = small,
                             .random_weights = 1,
                             .method = METHOD_FROZEN,
                             .seed = 5};
    return engine_open(engine, &options, err);
}

static void *writable(const WeightView *view) {
    return (void *)(uintptr_t)view->data;
}

static size_t bytes_of(const WeightView *view) {
    return (size_t)(view->rows * view->cols) * (view->format == WEIGHT_BF16 ? 2 : 4);
}

/* `to`, whose head is its own, gets the weights of `from` and what its head's blocks decode to. */
static void copy_decoded(Engine *to, const Engine *from) {
    WeightView blocks = weights_view(from->weights, WEIGHT_HEAD), head = weights_view(to->weights, WEIGHT_HEAD);
    assert_int_equal(blocks.format, WEIGHT_GGML);
    assert_int_equal(blocks.ggml_type, GGML_Q8_0);
    for (int32_t id = 0; id < weight_count(&to->model); id++) {
        WeightView source = weights_view(from->weights, id), target = weights_view(to->weights, id);
        if (id == WEIGHT_HEAD || target.rows == 0) continue;
        assert_int_equal(source.format, target.format);
        memcpy(writable(&target), source.data, bytes_of(&target));
    }
    DType type = head.format == WEIGHT_BF16 ? DTYPE_BF16 : DTYPE_F32;
    from->backend.dequantize(&blocks, 0, VOCAB * HIDDEN, writable(&head), type);
}

/* Logits of every row: all at once, then the last one alone behind the others. */
static void logits_of(Engine *engine, float *all, float *last) {
    Generator *generator;
    Error err = {0};
    int32_t ids[ROWS];
    const float *row;
    for (int i = 0; i < ROWS; i++)
        ids[i] = (i * 31 + 7) % VOCAB;
    assert_int_equal(generator_create(&generator, engine, ROWS, ROWS, ROWS, &err), OK);
    Tape *tape = generator_tape(generator);
    assert_int_equal(engine_reserve(engine, &tape, 1, ROWS, ROWS, &err), OK);
    assert_int_equal(generator_logits(generator, ids, ROWS, all, &err), OK);
    assert_int_equal(generator_prefill(generator, ids, ROWS - 1, &row, &err), OK);
    assert_int_equal(generator_prefill(generator, ids, ROWS, &row, &err), OK);
    memcpy(last, row, VOCAB * sizeof *last);
    generator_free(generator);
}

static void check_variant(const char *cpu, DType act, int tied) {
    Error err = {0};
    Engine small, decoded;
    static float got[ROWS * VOCAB], want[ROWS * VOCAB], got_last[VOCAB], want_last[VOCAB];
    char *own = write_config(0, HIDDEN), *path = write_config(tied, HIDDEN);
    assert_int_equal(open_engine(&small, path, act, cpu, 1, &err), OK);
    assert_int_equal(open_engine(&decoded, own, act, cpu, 0, &err), OK);
    assert_true(weights_has_small_head(small.weights) && !weights_has_small_head(decoded.weights));
    copy_decoded(&decoded, &small);
    logits_of(&small, got, got_last);
    logits_of(&decoded, want, want_last);
    /* the same numbers are multiplied in the same order, wherever they come from */
    assert_memory_equal(got, want, sizeof got);
    assert_memory_equal(got_last, want_last, sizeof got_last);
    engine_close(&small);
    engine_close(&decoded);
    memory_free(own);
    memory_free(path);
}

static void test_logits(void **state) {
    (void)state;
    static const char *const variants[] = {"ref", "avx2", "avx512", "avx512bf16", "amx"};
    for (size_t v = 0; v < sizeof variants / sizeof *variants; v++) {
        Backend backend;
        Error err = {0};
        if (cpu_backend(&backend, variants[v], &err) != OK) {
            printf("skipped: %s\n", err.text);
            continue;
        }
        for (int tied = 0; tied < 2; tied++) {
            check_variant(variants[v], DTYPE_BF16, tied);
            check_variant(variants[v], DTYPE_F32, tied);
        }
    }
}

/* What is lost: Q8_0 moves a value by at most half a step, 1/254 of its block's largest, besides rounding. */
static void test_near(void **state) {
    (void)state;
    Error err = {0};
    Engine small, whole;
    char *path = write_config(0, HIDDEN);
    assert_int_equal(open_engine(&small, path, DTYPE_F32, "ref", 1, &err), OK);
    assert_int_equal(open_engine(&whole, path, DTYPE_F32, "ref", 0, &err), OK);
    WeightView blocks = weights_view(small.weights, WEIGHT_HEAD), head = weights_view(whole.weights, WEIGHT_HEAD);
    float got[HIDDEN], want[HIDDEN];
    for (int64_t row = 0; row < VOCAB; row++) {
        small.backend.dequantize(&blocks, row * HIDDEN, HIDDEN, got, DTYPE_F32);
        whole.backend.dequantize(&head, row * HIDDEN, HIDDEN, want, DTYPE_F32);
        for (int first = 0; first < HIDDEN; first += 32) {
            float largest = 0.0f;
            for (int i = first; i < first + 32; i++)
                largest = fmaxf(largest, fabsf(want[i]));
            for (int i = first; i < first + 32; i++)
                assert_true(fabsf(got[i] - want[i]) <= largest * (0.5f / 127.0f + 1.0f / 1024.0f)); /* the scale is F16 */
        }
    }
    engine_close(&small);
    engine_close(&whole);
    memory_free(path);
}

static void test_refused(void **state) {
    (void)state;
    Error err = {0};
    Engine engine;
    char *path = write_config(0, 48); /* heads of 12; 48 is no multiple of a block of 32 */
    assert_int_not_equal(open_engine(&engine, path, DTYPE_F32, "ref", 1, &err), OK);
    if (strstr(err.text, "--head q8_0") == NULL) fail_msg("%s", err.text);
    engine_close(&engine);
    memory_free(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_logits), cmocka_unit_test(test_near),
                                       cmocka_unit_test(test_refused)};
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
