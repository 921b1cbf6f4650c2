/* The learning rate of every step against the formulas, and the factor of clipping. */
#include <math.h>

#include "tests/unit/test_core.h"
#include "train/optimizer.h"

/* Rounding of a few operations in double. */
static void assert_near(double got, double want) {
    if (!(fabs(got - want) <= 1e-15 * fabs(want) + 1e-18)) fail_msg("want %.17g, got %.17g", want, got);
}

static Config config_of(const char *schedule, double warmup) {
    Config config = {0};
    config.train.schedule = (char *)(uintptr_t)schedule;
    config.train.lr = 2e-4;
    config.train.warmup = warmup;
    config.train.min_lr_ratio = 0.1;
    config.train.decay_ratio = 0.25;
    return config;
}

static void warm_up_in_parts_and_in_steps(void **state) {
    (void)state;
    static const struct {
        double warmup;
        int64_t steps, want;
    } cases[] = {{0.0, 40, 0}, {0.1, 40, 4}, {0.03, 40, 2}, {0.03, 1, 1}, {1.0, 40, 1}, {7.0, 40, 7}, {100.0, 40, 40}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        Config config = config_of("constant", cases[i].warmup);
        assert_int_equal(schedule_warmup_steps(&config, cases[i].steps), cases[i].want);
        for (int64_t step = 0; step < cases[i].steps; step++) {
            double part = step < cases[i].want ? (double)(step + 1) / (double)cases[i].want : 1.0;
            assert_near(schedule_lr(&config, step, cases[i].steps), 2e-4 * part);
        }
    }
}

static void every_schedule_follows_its_formula(void **state) {
    (void)state;
    const int64_t steps = 40, warm = 4, decay = 10;
    Config linear = config_of("linear", 0.1), cosine = config_of("cosine", 0.1), wsd = config_of("wsd", 0.1);
    for (int64_t step = 0; step < steps; step++) {
        double up = (double)(step + 1) / (double)warm, p = (double)(step - warm) / (double)(steps - warm);
        double q = (double)(step - (steps - decay)) / (double)decay;
        assert_near(schedule_lr(&linear, step, steps), 2e-4 * (step < warm ? up : 1.0 - 0.9 * p));
        assert_near(schedule_lr(&cosine, step, steps),
                    2e-4 * (step < warm ? up : 0.1 + 0.9 * (1.0 + cos(3.14159265358979323846 * p)) / 2.0));
        assert_near(schedule_lr(&wsd, step, steps), 2e-4 * (step < warm ? up : q < 0.0 ? 1.0 : 1.0 - 0.9 * q));
    }
}

static void clipping(void **state) {
    (void)state;
    assert_near(clip_factor(0.5, 1.0), 1.0);
    assert_near(clip_factor(4.0, 1.0), 1.0 / (4.0 + 1e-6)); /* as torch.nn.utils.clip_grad_norm_ */
    assert_near(clip_factor(4.0, 0.0), 1.0);
    assert_near(clip_factor(0.0, 1.0), 1.0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(warm_up_in_parts_and_in_steps),
                                       cmocka_unit_test(every_schedule_follows_its_formula), cmocka_unit_test(clipping)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
