/* Logits, adapter gradients and a loss curve against what transformers and PEFT gave (tests/golden/parity). */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/file.h"
#include "data/safetensors.h"
#include "tests/support/compare.h"
#include "tests/support/replay.h"
#include "train/device_memory.h"

#define GOLDEN "tests/golden/parity/"

static Error error;

static const char *const models[] = {"llama_gqa",
                                     "llama_tied_mha",
                                     "llama3_rope",
                                     "llama_linear_rope",
                                     "llama_dynamic_rope",
                                     "llama_yarn_rope",
                                     "llama_biases_odd",
                                     "mistral_window",
                                     "qwen2",
                                     "qwen2_window",
                                     "qwen3",
                                     "llama_gelu"};
static const char *const variants[] = {"ref", "avx2", "avx512", "avx512bf16", "amx"};
#define VARIANTS (replay_device() != NULL ? 1 : sizeof variants / sizeof *variants)

/* On a device there is one, without a name. */
static const char *variant_at(size_t i) {
    return replay_device() != NULL ? NULL : variants[i];
}

static const char *named(const char *variant) {
    return variant != NULL ? variant : replay_device();
}

static int available(const char *variant) {
    Backend backend;
    Error ignored;
    if (variant == NULL) return 1;
    if (cpu_backend(&backend, variant, &ignored) == OK) return 1;
    print_message("skipped on this machine: %s\n", variant);
    return 0;
}

typedef struct Case {
    char *folder, *adapter, *batches;
    ReplayData data;
    ReplayOptions options;
    TensorFiles *golden;
} Case;

static Case case_open(const char *name, const char *adapter, const char *batches) {
    Case c = {.folder = memory_format(GOLDEN "%s", name)};
    c.adapter = path_join(c.folder, adapter);
    c.batches = path_join(c.folder, batches);
    char *golden = path_join(c.folder, "golden.safetensors");
    assert_ok(tensors_open(&c.golden, golden, NULL, &error), &error);
    memory_free(golden);
    assert_ok(replay_read(&c.data, c.batches, &error), &error);
    c.options = (ReplayOptions){.model = c.folder, .adapter = c.adapter, .threads = 2};
    return c;
}

static void case_close(Case *c) {
    tensors_close(c->golden);
    replay_free(&c->data);
    memory_free(c->folder);
    memory_free(c->adapter);
    memory_free(c->batches);
}

static float *golden_values(const Case *c, const char *name, int64_t count) {
    const TensorInfo *info = tensors_find(c->golden, name);
    if (info == NULL) fail_msg("%s: the golden file has no %s", c->folder, name);
    assert_int_equal(info->dtype, DTYPE_F32);
    assert_int_equal(info->bytes, (size_t)count * sizeof(float));
    float *values = memory_alloc((size_t)info->bytes);
    assert_ok(tensors_read(c->golden, info, 0, values, (size_t)info->bytes, 0, &error), &error);
    return values;
}

static void check_logits(const char *name, const char *variant) {
    static const char *const overrides[] = {"method=lora"};
    Case c = case_open(name, "adapter", "batches");
    Trainer trainer;
    c.options.frozen = 1;
    c.options.cpu = variant;
    c.options.overrides = overrides;
    c.options.override_count = 1;
    assert_ok(replay_open(&trainer, &c.options, &c.data, &error), &error);
    Engine *engine = &trainer.engine;
    Generator *generator;
    const int64_t chunk = 6; /* so that sequences go through the cache in pieces */
    assert_ok(generator_create(&generator, engine, c.data.data.longest, chunk, chunk, &error), &error);
    device_arena_free(&engine->arena, &engine->backend, &engine->exec); /* reserved again, for another tape */
    device_arena_free(&engine->rope_mirror, &engine->backend, &engine->exec);
    device_arena_free(&engine->state.mirror, &engine->backend, &engine->exec);
    rope_memory_free(&engine->rope);
    Tape *tape = generator_tape(generator);
    assert_ok(engine_reserve(engine, &tape, 1, c.data.data.longest, c.data.data.longest, &error), &error);
    for (int64_t s = 0; s < c.data.data.count; s++) {
        int64_t begin = c.data.data.start[s], count = c.data.data.start[s + 1] - begin, numbers = count * engine->model.vocab;
        char tensor[32];
        (void)snprintf(tensor, sizeof tensor, "logits.%lld", (long long)s);
        float *want = golden_values(&c, tensor, numbers), *got = memory_alloc((size_t)numbers * sizeof *got);
        assert_ok(generator_logits(generator, c.data.data.ids + begin, count, got, &error), &error);
        double worst = 0.0;
        for (int64_t i = 0; i < numbers; i++)
            if (!(fabs((double)got[i] - (double)want[i]) <= worst)) worst = fabs((double)got[i] - (double)want[i]);
        if (!(worst <= 1e-4)) /* sums in another order, through two layers: 1e-5 is seen */
            fail_msg("%s %s: logits of sequence %lld are %g off", name, named(variant), (long long)s, worst);
        memory_free(want);
        memory_free(got);
    }
    generator_free(generator);
    replay_close(&trainer);
    case_close(&c);
}

static void check_gradients(const char *name, const char *variant, const char *recompute) {
    const char *overrides[] = {"method=lora", "train.lr=0", recompute};
    Case c = case_open(name, "adapter", "batches");
    Trainer trainer;
    StepResult result;
    c.options.cpu = variant;
    c.options.overrides = overrides;
    c.options.override_count = 3;
    assert_ok(replay_open(&trainer, &c.options, &c.data, &error), &error);
    assert_ok(replay_step(&trainer, &c.data, 0, &result, &error), &error);
    float *loss = golden_values(&c, "loss", 1);
    if (!(fabs(result.loss - (double)*loss) <= 1e-5 * (double)*loss)) /* the golden loss is one FP32 sum */
        fail_msg("%s %s: loss %.9g, want %.9g", name, named(variant), result.loss, (double)*loss);
    memory_free(loss);
    const Engine *engine = &trainer.engine;
    assert_int_equal(engine->params.count, 2 * LAYER_LINEARS * engine->model.layers);
    for (int64_t e = 0; e < engine->params.count; e++) {
        const ParamEntry *entry = &engine->params.entries[e];
        char parameter[256];
        int64_t numbers = entry->rows * entry->cols;
        params_name(&engine->params, &engine->model, e, parameter, sizeof parameter);
        float *want = golden_values(&c, parameter, numbers);
        const float *got = engine->state.gradient + entry->offset;
        double off = 0.0, norm = 0.0;
        for (int64_t i = 0; i < numbers; i++) {
            off += ((double)got[i] - (double)want[i]) * ((double)got[i] - (double)want[i]);
            norm += (double)want[i] * (double)want[i];
        }
        if (!(sqrt(off) <= 1e-4 * sqrt(norm))) /* FP32 sums in another order: 5e-6 is seen */
            fail_msg("%s %s: gradient of %s is %g of its norm off", name, named(variant), parameter, sqrt(off / norm));
        memory_free(want);
    }
    replay_close(&trainer);
    case_close(&c);
}

static void test_logits(void **state) {
    (void)state;
    for (size_t v = 0; v < VARIANTS; v++)
        for (size_t m = 0; available(variant_at(v)) && m < sizeof models / sizeof *models; m++)
            check_logits(models[m], variant_at(v));
}

static void test_gradients(void **state) {
    (void)state;
    for (size_t v = 0; v < VARIANTS; v++)
        for (size_t m = 0; available(variant_at(v)) && m < sizeof models / sizeof *models; m++) {
            check_gradients(models[m], variant_at(v), "train.recompute=none");
            check_gradients(models[m], variant_at(v), "train.recompute=layers");
        }
}

/* 50 steps on an NF4 base; the batches come round again every four. */
static void check_curve(const char *variant) {
    static const char *const overrides[] = {"quant.type=nf4", "quant.double_quant=false", "train.lr=3e-3",
                                            "train.weight_decay=0.01", "train.max_grad_norm=1"};
    Case c = case_open("llama_gqa", "curve-adapter", "curve-batches");
    Trainer trainer;
    StepResult result;
    char *path = path_join(c.folder, "curve"), *text;
    size_t length;
    assert_ok(file_read(path, 1 << 16, &text, &length, &error), &error);
    c.options.cpu = variant;
    c.options.overrides = overrides;
    c.options.override_count = 5;
    assert_ok(replay_open(&trainer, &c.options, &c.data, &error), &error);
    uint64_t hash = weights_hash(trainer.engine.weights);
    char *next = text;
    int64_t step = 0;
    double first = 0.0;
    for (;; step++) {
        char *end;
        double want = strtod(next, &end);
        if (end == next) break;
        next = end;
        assert_ok(replay_step(&trainer, &c.data, step % c.data.steps, &result, &error), &error);
        if (step == 0) first = result.loss;
        if (!(fabs(result.loss - want) <= 1e-3)) /* what training parity asks for */
            fail_msg("%s: loss of step %lld is %.9g, want %.9g", named(variant), (long long)step, result.loss, want);
    }
    assert_int_equal(step, 50);
    assert_true(result.loss < first - 1.0);
    assert_true(weights_hash(trainer.engine.weights) == hash);
    memory_free(text);
    memory_free(path);
    replay_close(&trainer);
    case_close(&c);
}

static void test_curve(void **state) {
    (void)state;
    for (size_t v = 0; v < VARIANTS; v++)
        if (available(variant_at(v))) check_curve(variant_at(v));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_logits),
        cmocka_unit_test(test_gradients),
        cmocka_unit_test(test_curve),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
