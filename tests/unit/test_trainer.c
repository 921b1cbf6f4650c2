/* The run from inside: the base that is never written, and what a run does when it was. */
#include "core/file.h"
#include "core/memory.h"
#include "tests/support/tiny_run.h"
#include "tests/unit/test_core.h"

static const char *const few_steps[TINY_RUN_OVERRIDES] = {"train.steps=3", "train.samples=0"};

static int adapter_exists(const Trainer *trainer) {
    char *path = path_join(trainer->config.output.path, "adapter");
    int there = file_exists(path);
    memory_free(path);
    return there;
}

static void the_base_is_never_written(void **state) {
    (void)state;
    static const char *const types[] = {"quant.type=\"nf4\"", "quant.type=\"fp4\"", "quant.type=\"int8\"",
                                        "quant.type=\"int4\"", "method=\"lora\""};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        Error err = {0};
        const char *const overrides[TINY_RUN_OVERRIDES] = {types[i], "train.steps=3", "train.samples=1"};
        Trainer *trainer = tiny_run_open(overrides, 2);
        assert_non_null(trainer);
        uint64_t before = weights_hash(trainer->engine.weights);
        assert_true(before != 0);
        assert_int_equal(trainer_run(trainer, &err), OK);
        assert_int_equal(trainer->progress.optimizer_steps, 3);
        assert_int_equal(weights_hash(trainer->engine.weights), before);
        assert_true(adapter_exists(trainer));
        trainer_close(trainer);
        memory_free(trainer);
    }
}

/* One bit of one weight, as a bad memory cell or a stray pointer would change it. */
static void a_written_base_is_noticed(void **state) {
    (void)state;
    Error err = {0};
    Trainer *trainer = tiny_run_open(few_steps, 2);
    assert_non_null(trainer);
    WeightView view = weights_view(trainer->engine.weights, weight_id(1, LAYER_DOWN));
    ((uint8_t *)(uintptr_t)view.data)[17] ^= 4;
    assert_int_equal(trainer_run(trainer, &err), ERR_FAILED);
    assert_non_null(strstr(err.text, "the base weights changed"));
    assert_false(adapter_exists(trainer));
    trainer_close(trainer);
    memory_free(trainer);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_base_is_never_written),
                                       cmocka_unit_test(a_written_base_is_noticed)};
    return cmocka_run_group_tests(tests, tiny_run_prepare, tiny_run_clean);
}
