/* What must not change a training step: how the global batch is cut up, recomputation, threads; and what must stay as it is. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/philox.h"
#include "tests/support/compare.h"
#include "tests/support/replay.h"

#define SEQUENCES 8
/* Widths of 32 and 64: INT4 wants whole groups. */
#define MODEL "tests/golden/parity/llama_tied_mha"

static Error error;

typedef struct Arrangement {
    int per_micro_batch; /* sequences packed together */
    int threads;
    const char *recompute;
    const char *cpu;     /* NULL: the best, or the device */
    const char *adapter; /* NULL: B starts as zero */
} Arrangement;

#define ADAPTER_FOLDER MODEL "/adapter" /* B is not zero: every gradient counts in step 0 */

typedef struct Base {
    const char *setting[6];
} Base;

#define ADAPTER "lora.dropout=0.25", "lora.rank=5"
/* Rounded activations are not among them: a sum in another order may round to the next integer. */
static const Base bases[] = {
    {{"method=lora", ADAPTER}},
    {{ADAPTER, "quant.type=nf4", "quant.double_quant=false"}},
    {{ADAPTER, "quant.type=nf4"}},
    {{ADAPTER, "quant.type=fp4"}},
    {{ADAPTER, "quant.type=int8"}},
    {{ADAPTER, "quant.type=int4", "quant.block_size=32"}},
    {{"method=full"}},
    {{"method=lora", "lora.rank=5", "qat.mode=merged", "qat.weights=int4"}},
    {{"method=lora", "lora.rank=5", "qat.mode=merged", "qat.weights=nf4"}},
    {{"method=lora", "lora.rank=5", "qat.mode=merged", "qat.weights=int3", "qat.learn_scales=true"}},
    {{"lora.rank=5", "qat.mode=merged", "qat.weights=q4_0"}},
    {{ADAPTER, "qat.mode=separate", "qat.weights=int3", "qat.symmetric=false"}},
    {{"method=lora", "lora.rank=5", "qat.mode=merged", "qat.weights=int3", "qat.learn_scales=true", "qat.scales=mse"}},
};
#define ON_DEVICE 12 /* searched scales are for the CPU only */
#define BASES (replay_device() != NULL ? ON_DEVICE : (int)(sizeof bases / sizeof *bases))

/* Ragged: lengths 1 to 23, one sequence without a trained token, one of a single token. */
static void make_data(ReplayData *data, int per_micro_batch, int steps) {
    static const int64_t lengths[SEQUENCES] = {5, 23, 1, 9, 17, 2, 12, 20};
    replay_start(data);
    for (int step = 0; step < steps; step++) {
        for (int s = 0; s < SEQUENCES; s++) {
            int32_t ids[32];
            uint8_t train[32];
            for (int64_t t = 0; t < lengths[s]; t++) {
                uint64_t index = (uint64_t)((step * SEQUENCES + s) * 32 + t);
                ids[t] = (int32_t)(random_uniform(3, RANDOM_WEIGHTS, 0, index) * 96.0f);
                train[t] = t > 0 && s != 3 && random_uniform(4, RANDOM_WEIGHTS, 0, index) < 0.6f;
            }
            replay_add(data, ids, train, lengths[s]);
            if ((s + 1) % per_micro_batch == 0) replay_end_micro_batch(data);
        }
        replay_end_step(data);
    }
}

typedef struct Run {
    double loss[3];
    float *gradient; /* of the first step */
    float *master;   /* after the last */
    int64_t elements;
} Run;

static void check_norms(const Trainer *trainer, int step) {
    const Engine *engine = &trainer->engine;
    for (int64_t e = 0; e < engine->params.count; e++) {
        const ParamEntry *entry = &engine->params.entries[e];
        if (entry->role == PARAM_WEIGHT || (entry->role == PARAM_LORA_A && step == 0)) continue; /* B is 0 in step 0 */
        double norm = 0.0;
        for (int64_t i = 0; i < entry->rows * entry->cols; i++)
            norm += fabs((double)engine->state.gradient[entry->offset + i]);
        if (!(norm > 0.0)) {
            char name[256];
            params_name(&engine->params, &engine->model, e, name, sizeof name);
            fail_msg("step %d: %s has no gradient", step, name);
        }
    }
}

static Run run(const Base *base, const Arrangement *a, int steps) {
    const char *overrides[10] = {"train.lr=1e-3", "train.max_grad_norm=1", a->recompute};
    int settings = 3;
    for (int i = 0; i < 6 && base->setting[i] != NULL; i++)
        overrides[settings++] = base->setting[i];
    ReplayData data;
    Trainer trainer;
    make_data(&data, a->per_micro_batch, steps);
    int full = strcmp(base->setting[0], "method=full") == 0;
    ReplayOptions options = {.model = MODEL,
                             .adapter = full ? NULL : a->adapter,
                             .cpu = a->cpu,
                             .overrides = overrides,
                             .override_count = settings,
                             .threads = a->threads};
    assert_ok(replay_open(&trainer, &options, &data, &error), &error);
    uint64_t hash = trainer.engine.weights != NULL ? weights_hash(trainer.engine.weights) : 0;
    Run out = {.elements = trainer.engine.params.elements};
    size_t bytes = (size_t)out.elements * sizeof(float);
    out.gradient = memory_alloc(bytes);
    out.master = memory_alloc(bytes);
    for (int step = 0; step < steps; step++) {
        StepResult result;
        assert_ok(replay_step(&trainer, &data, step, &result, &error), &error);
        assert_false(result.bad);
        assert_true(result.grad_norm > 0.0);
        out.loss[step] = result.loss;
        if (step == 0) memcpy(out.gradient, trainer.engine.state.gradient, bytes);
        check_norms(&trainer, a->adapter != NULL ? 1 : step);
    }
    memcpy(out.master, trainer.engine.state.master, bytes);
    if (trainer.engine.weights != NULL) assert_true(weights_hash(trainer.engine.weights) == hash); /* the base is frozen */
    replay_close(&trainer);
    replay_free(&data);
    return out;
}

static void run_free(Run *r) {
    memory_free(r->gradient);
    memory_free(r->master);
}

static void assert_near(const char *what, const Run *got, const Run *want) {
    assert_int_equal(got->elements, want->elements);
    double loss = fabs(got->loss[0] - want->loss[0]) / want->loss[0], off = 0.0, norm = 0.0;
    for (int64_t i = 0; i < want->elements; i++) {
        double d = (double)got->gradient[i] - (double)want->gradient[i];
        off += d * d;
        norm += (double)want->gradient[i] * (double)want->gradient[i];
    }
    print_message("%s: loss %.2g, gradient %.2g apart\n", what, loss, sqrt(off / norm));
    if (!(loss <= 1e-6)) fail_msg("%s: losses differ by %g", what, loss); /* the design's bound: FP32 sums regrouped */
    if (!(sqrt(off) <= 1e-5 * sqrt(norm))) fail_msg("%s: gradients differ by %g", what, sqrt(off / norm)); /* the same */
}

static void assert_same(const char *what, const Run *got, const Run *want, int steps) {
    size_t bytes = (size_t)want->elements * sizeof(float);
    if (memcmp(got->loss, want->loss, (size_t)steps * sizeof(double)) != 0) fail_msg("%s: losses differ", what);
    if (memcmp(got->gradient, want->gradient, bytes) != 0) fail_msg("%s: gradients differ", what);
    if (memcmp(got->master, want->master, bytes) != 0) fail_msg("%s: parameters differ", what);
}

static const char *const none = "train.recompute=none", *const light = "train.recompute=light",
                         *const layers = "train.recompute=layers";

static void test_cutting(void **state) {
    (void)state;
    for (int b = 0; b < BASES; b++) {
        Run whole = run(&bases[b], &(Arrangement){SEQUENCES, 2, none, NULL, ADAPTER_FOLDER}, 1);
        for (int per = 1; per < SEQUENCES; per *= 2) {
            Run cut = run(&bases[b], &(Arrangement){per, 2, none, NULL, ADAPTER_FOLDER}, 1);
            assert_near("8 sequences in one micro-batch, or in several", &cut, &whole);
            run_free(&cut);
        }
        run_free(&whole);
    }
}

/* The reference and the vector backend draw the same dropout masks: the same step up to regrouped sums. */
static void test_backends(void **state) {
    (void)state;
    for (int b = 0; b < BASES; b++) {
        Run reference = run(&bases[b], &(Arrangement){SEQUENCES, 2, none, "ref", ADAPTER_FOLDER}, 1);
        Run best = run(&bases[b], &(Arrangement){SEQUENCES, 2, none, NULL, ADAPTER_FOLDER}, 1);
        assert_near("the reference and the best backend", &best, &reference);
        run_free(&reference);
        run_free(&best);
    }
}

static void test_dropout_is_on(void **state) {
    (void)state;
    Base changed = bases[2];
    Run a = run(&changed, &(Arrangement){SEQUENCES, 1, none, NULL, NULL}, 2);
    changed.setting[0] = "lora.dropout=0";
    Run b = run(&changed, &(Arrangement){SEQUENCES, 1, none, NULL, NULL}, 2);
    assert_true(a.loss[0] == b.loss[0]); /* B is 0: the masks show in the gradient */
    assert_memory_not_equal(a.gradient, b.gradient, (size_t)a.elements * sizeof(float));
    run_free(&a);
    run_free(&b);
}

/* From PEFT's init: B has a gradient in the first step, A from the second on; checked in run(). */
static void test_every_adapter_learns(void **state) {
    (void)state;
    for (int b = 0; b < BASES; b++) {
        Run r = run(&bases[b], &(Arrangement){2, 2, none, NULL, NULL}, 2);
        assert_true(r.loss[0] > 0.0);
        run_free(&r);
    }
}

static void test_recompute(void **state) {
    (void)state;
    for (int b = 0; b < BASES; b++) {
        Run kept = run(&bases[b], &(Arrangement){2, 2, none, NULL, ADAPTER_FOLDER}, 3);
        Run some = run(&bases[b], &(Arrangement){2, 2, light, NULL, ADAPTER_FOLDER}, 3);
        Run again = run(&bases[b], &(Arrangement){2, 2, layers, NULL, ADAPTER_FOLDER}, 3);
        assert_same("light", &some, &kept, 3);
        assert_same("layers", &again, &kept, 3);
        run_free(&kept);
        run_free(&some);
        run_free(&again);
    }
}

static void test_threads(void **state) {
    (void)state;
    if (replay_device() != NULL) {
        print_message("skipped: the device's work has no threads\n");
        skip();
    }
    static const char *const cpus[] = {"ref", NULL, ADAPTER_FOLDER};
    static const int threads[] = {2, 3, 8};
    for (int b = 0; b < BASES; b++)
        for (int c = 0; c < 2; c++) {
            Run one = run(&bases[b], &(Arrangement){4, 1, layers, cpus[c], ADAPTER_FOLDER}, 3);
            for (int t = 0; t < 3; t++) {
                Run many = run(&bases[b], &(Arrangement){4, threads[t], layers, cpus[c], ADAPTER_FOLDER}, 3);
                assert_same("threads", &many, &one, 3);
                run_free(&many);
            }
            run_free(&one);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cutting),       cmocka_unit_test(test_backends),
        cmocka_unit_test(test_dropout_is_on), cmocka_unit_test(test_every_adapter_learns),
        cmocka_unit_test(test_recompute),     cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
