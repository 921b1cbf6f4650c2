/* Several sequences beside each other: the tokens that each of them gives alone, with every CPU variant, whatever their lengths
 * and ends, with more of them than fit at once. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/memory.h"
#include "tests/support/scratch.h"
#include "train/engine.h"
#include "train/generate.h"

enum { VOCAB = 131, JOBS = 13, LONGEST = 40, CAPACITY = 48 };

static const char config[] =
    "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_act\": \"silu\", "
    "\"hidden_size\": 64, \"intermediate_size\": 192, \"num_hidden_layers\": 2, "
    "\"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"vocab_size\": 131, "
    "\"max_position_embeddings\": 64, \"rms_norm_eps\": 1e-05, \"rope_theta\": 10000.0, "
    "\"tie_word_embeddings\": false, \"torch_dtype\": \"bfloat16\"}";

typedef struct Heard {
    int32_t ids[LONGEST];
    int64_t count, enough; /* enough: the callback stops there */
} Heard;

static int hear(void *context, int32_t id) {
    Heard *heard = context;
    heard->ids[heard->count++] = id;
    return heard->count == heard->enough;
}

/* Prompts of different lengths; ends by length, by a stop token, by the callback and by the cache. */
static void make_jobs(GenerateJob *jobs, Heard *heard, int32_t prompts[JOBS][CAPACITY], const int32_t *stop) {
    for (int j = 0; j < JOBS; j++) {
        int length = 1 + (j * 7) % 23;
        for (int i = 0; i < length; i++)
            prompts[j][i] = (j * 37 + i * 11 + 5) % VOCAB;
        heard[j] = (Heard){.enough = j % 5 == 3 ? 4 : -1};
        jobs[j] = (GenerateJob){.prompt = prompts[j],
                                .count = length,
                                .options = {.spec = {.temperature = j % 2 ? 0.8 : 0.0, .top_p = 1.0, .seed = (uint64_t)j},
                                            .max_new_tokens = j == 6 ? LONGEST : 2 + (j * 5) % 17,
                                            .stop_ids = stop,
                                            .stop_count = j % 3 == 1},
                                .callback = hear,
                                .context = &heard[j]};
    }
}

static void check_variant(const char *cpu, DType act, WeightFormat format) {
    static int32_t prompts[JOBS][CAPACITY];
    const int32_t stop = 17;
    Error err = {0};
    Engine engine;
    char *path = scratch_path("config.json");
    scratch_write("config.json", config, strlen(config));
    EngineOptions options = {.model = path,
                             .act = act,
                             .threads = 2,
                             .cpu = cpu,
                             .weights = {.act = act, .linear = format, .double_quant = format == WEIGHT_NF4, .block_size = 64},
                             .random_weights = 1,
                             .method = METHOD_FROZEN,
                             .seed = 11};
    assert_int_equal(engine_open(&engine, &options, &err), OK);
    assert_int_equal(generator_beside(&engine.model, act, CAPACITY, JOBS), GENERATE_BESIDE);
    Generator *alone, *beside;
    assert_int_equal(generator_create(&alone, &engine, CAPACITY, 16, 1, &err), OK);
    assert_int_equal(generator_create_beside(&beside, &engine, CAPACITY, 16, 1, GENERATE_BESIDE, &err), OK);
    Tape *tapes[] = {generator_tape(alone), generator_tape(beside)};
    assert_int_equal(engine_reserve(&engine, tapes, 2, CAPACITY, CAPACITY, &err), OK);
    GenerateJob jobs[JOBS], again[JOBS];
    Heard want[JOBS], got[JOBS];
    make_jobs(jobs, want, prompts, &stop);
    make_jobs(again, got, prompts, &stop);
    assert_int_equal(generate_all(alone, jobs, JOBS, &err), OK); /* one at a time */
    assert_int_equal(generate_all(beside, again, JOBS, &err), OK);
    int64_t longest = 0;
    for (int j = 0; j < JOBS; j++) {
        assert_int_equal(again[j].generated, jobs[j].generated);
        assert_int_equal(got[j].count, want[j].count);
        assert_memory_equal(got[j].ids, want[j].ids, (size_t)want[j].count * sizeof(int32_t));
        if (want[j].count > longest) longest = want[j].count;
    }
    assert_true(longest > 16); /* or next to nothing was compared */
    /* what follows on the same generator starts from nothing */
    const float *logits;
    assert_int_equal(generator_prefill(beside, prompts[4], 6, &logits, &err), OK);
    generator_free(alone);
    generator_free(beside);
    engine_close(&engine);
    memory_free(path);
}

static void test_same_tokens(void **state) {
    (void)state;
    static const char *const variants[] = {"ref", "avx2", "avx512", "avx512bf16", "amx"};
    for (size_t v = 0; v < sizeof variants / sizeof *variants; v++) {
        Backend backend;
        Error err = {0};
        if (cpu_backend(&backend, variants[v], &err) != OK) {
            printf("skipped: %s\n", err.text);
            continue;
        }
        check_variant(variants[v], DTYPE_BF16, WEIGHT_NF4);
        check_variant(variants[v], DTYPE_BF16, WEIGHT_BF16);
        check_variant(variants[v], DTYPE_F32, WEIGHT_INT8);
    }
}

/* As many as the memory for it allows, and never none. */
static void test_how_many(void **state) {
    (void)state;
    ModelConfig model = {.layers = 32, .kv_heads = 8, .head_dim = 128};
    assert_int_equal(generator_beside(&model, DTYPE_BF16, 1024, 100), 4); /* 128 MiB each */
    assert_int_equal(generator_beside(&model, DTYPE_BF16, 8192, 100), 1);
    assert_int_equal(generator_beside(&model, DTYPE_BF16, 16, 3), 3);
    assert_int_equal(generator_beside(&model, DTYPE_BF16, 2, 8), 2);
    assert_int_equal(generator_beside(&model, DTYPE_BF16, 16, 0), 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_same_tokens), cmocka_unit_test(test_how_many)};
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
