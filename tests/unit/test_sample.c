/* Choosing a token: greedy ties, what top-k and top-p keep, and the distribution of the draws. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "train/sample.h"

enum { VOCAB = 8, DRAWS = 20000 };

/* logits are overwritten by a draw: every one gets a copy. */
static int32_t draw(const float *logits, int64_t vocab, SampleSpec spec, uint64_t position) {
    float copy[VOCAB];
    int32_t order[VOCAB];
    assert_true(vocab <= VOCAB);
    memcpy(copy, logits, (size_t)vocab * sizeof *copy);
    return sample_token(copy, order, vocab, &spec, position);
}

static void count_draws(const float *logits, SampleSpec spec, int64_t counts[VOCAB]) {
    memset(counts, 0, VOCAB * sizeof *counts);
    for (uint64_t i = 0; i < DRAWS; i++) {
        int32_t token = draw(logits, VOCAB, spec, i);
        assert_in_range(token, 0, VOCAB - 1);
        counts[token]++;
    }
}

/* Pearson's statistic of counts against probabilities; tokens of probability 0 must not occur. */
static double chi_square(const int64_t counts[VOCAB], const double probability[VOCAB]) {
    double sum = 0.0;
    for (int v = 0; v < VOCAB; v++) {
        double expected = probability[v] * DRAWS;
        if (probability[v] == 0.0) {
            assert_int_equal(counts[v], 0);
            continue;
        }
        sum += ((double)counts[v] - expected) * ((double)counts[v] - expected) / expected;
    }
    return sum;
}

/* softmax(logits / temperature) over the tokens that stay, in double. */
static void softmax(const float logits[VOCAB], double temperature, const int stays[VOCAB], double out[VOCAB]) {
    double sum = 0.0;
    for (int v = 0; v < VOCAB; v++) {
        out[v] = stays[v] ? exp((double)logits[v] / temperature) : 0.0;
        sum += out[v];
    }
    for (int v = 0; v < VOCAB; v++)
        out[v] /= sum;
}

static const float logits_mixed[VOCAB] = {0.5f, 2.0f, -1.0f, 1.5f, 0.0f, 2.5f, 1.0f, -2.0f}; /* order: 5 1 3 6 0 4 2 7 */
static const int all_stay[VOCAB] = {1, 1, 1, 1, 1, 1, 1, 1};

static void test_greedy(void **state) {
    (void)state;
    const float tie[4] = {1.0f, 3.0f, 3.0f, 2.0f}, flat[3] = {0.0f, 0.0f, 0.0f}, one[1] = {-5.0f};
    SampleSpec greedy = {.temperature = 0.0, .top_p = 1.0};
    assert_int_equal(draw(tie, 4, greedy, 0), 1);
    assert_int_equal(draw(flat, 3, greedy, 9), 0);
    assert_int_equal(draw(one, 1, greedy, 0), 0);
    assert_int_equal(draw(logits_mixed, VOCAB, greedy, 3), 5);
}

static void test_one_left(
    void **state) { /* top-k 1, and a top-p that the likeliest token reaches, are greedy at any temperature */
    (void)state;
    const float tie[4] = {1.0f, 3.0f, 3.0f, 2.0f};
    for (uint64_t position = 0; position < 200; position++) {
        assert_int_equal(draw(logits_mixed, VOCAB, (SampleSpec){.temperature = 5.0, .top_k = 1, .top_p = 1.0}, position), 5);
        assert_int_equal(draw(logits_mixed, VOCAB, (SampleSpec){.temperature = 5.0, .top_p = 1e-9}, position), 5);
        assert_int_equal(draw(tie, 4, (SampleSpec){.temperature = 1.0, .top_k = 1, .top_p = 1.0}, position), 1);
    }
}

/* The statistic of 7 degrees of freedom is below 24.3 in 99.9 % of all seeds; of fewer degrees, more often. */
#define CHI_BOUND 24.3

static void test_distribution(void **state) {
    (void)state;
    const double temperatures[3] = {0.5, 1.0, 2.0};
    for (int i = 0; i < 3; i++) {
        int64_t counts[VOCAB];
        double probability[VOCAB];
        count_draws(logits_mixed, (SampleSpec){.temperature = temperatures[i], .top_p = 1.0, .seed = 7}, counts);
        softmax(logits_mixed, temperatures[i], all_stay, probability);
        assert_true(chi_square(counts, probability) <= CHI_BOUND);
    }
}

static void test_wrong_distribution_is_seen(
    void **state) { /* the statistic has teeth: draws at 1 against a temperature of 1.1 */
    (void)state;
    int64_t counts[VOCAB];
    double probability[VOCAB];
    count_draws(logits_mixed, (SampleSpec){.temperature = 1.0, .top_p = 1.0, .seed = 7}, counts);
    softmax(logits_mixed, 1.1, all_stay, probability);
    assert_true(chi_square(counts, probability) > CHI_BOUND);
}

static void test_top_k(void **state) {
    (void)state;
    const int stays[VOCAB] = {0, 1, 0, 1, 0, 1, 0, 0};
    int64_t counts[VOCAB];
    double probability[VOCAB];
    count_draws(logits_mixed, (SampleSpec){.temperature = 1.0, .top_k = 3, .top_p = 1.0, .seed = 11}, counts);
    softmax(logits_mixed, 1.0, stays, probability);
    assert_true(chi_square(counts, probability) <= CHI_BOUND);
}

static void test_top_k_tie(void **state) { /* at the border of top-k the lower id stays */
    (void)state;
    const float tie[VOCAB] = {0.0f, 1.0f, 1.0f, 1.0f, 0.0f, 2.0f, 0.0f, 0.0f};
    const int stays[VOCAB] = {0, 1, 1, 0, 0, 1, 0, 0};
    int64_t counts[VOCAB];
    double probability[VOCAB];
    count_draws(tie, (SampleSpec){.temperature = 1.0, .top_k = 3, .top_p = 1.0, .seed = 5}, counts);
    softmax(tie, 1.0, stays, probability);
    assert_true(chi_square(counts, probability) <= CHI_BOUND);
}

static void test_top_p(void **state) { /* probabilities 0.407 0.247 0.150 …: just below the sum of two, and just above it */
    (void)state;
    const int two[VOCAB] = {0, 1, 0, 0, 0, 1, 0, 0}, three[VOCAB] = {0, 1, 0, 1, 0, 1, 0, 0};
    int64_t counts[VOCAB];
    double all[VOCAB], probability[VOCAB];
    softmax(logits_mixed, 1.0, all_stay, all);
    double pair = all[5] + all[1];
    count_draws(logits_mixed, (SampleSpec){.temperature = 1.0, .top_p = pair - 0.005, .seed = 3}, counts);
    softmax(logits_mixed, 1.0, two, probability);
    assert_true(chi_square(counts, probability) <= CHI_BOUND);
    count_draws(logits_mixed, (SampleSpec){.temperature = 1.0, .top_p = pair + 0.005, .seed = 3}, counts);
    softmax(logits_mixed, 1.0, three, probability);
    assert_true(chi_square(counts, probability) <= CHI_BOUND);
}

static void test_both_cuts(void **state) { /* the tighter of the two holds */
    (void)state;
    const int two[VOCAB] = {0, 1, 0, 0, 0, 1, 0, 0};
    int64_t counts[VOCAB];
    double probability[VOCAB];
    count_draws(logits_mixed, (SampleSpec){.temperature = 1.0, .top_k = 2, .top_p = 0.99, .seed = 3}, counts);
    softmax(logits_mixed, 1.0, two, probability);
    assert_true(chi_square(counts, probability) <= CHI_BOUND);
}

static void test_repeatable(void **state) { /* a draw is a function of seed and position, and differs in both */
    (void)state;
    int same_seed = 0, same_position = 0;
    for (uint64_t i = 0; i < 500; i++) {
        SampleSpec spec = {.temperature = 2.0, .top_p = 1.0, .seed = 1}, other = {.temperature = 2.0, .top_p = 1.0, .seed = 2};
        int32_t token = draw(logits_mixed, VOCAB, spec, i);
        assert_int_equal(token, draw(logits_mixed, VOCAB, spec, i));
        same_seed += token == draw(logits_mixed, VOCAB, other, i);
        same_position += token == draw(logits_mixed, VOCAB, spec, i + 1000);
    }
    assert_true(same_seed < 400 && same_position < 400);
}

static void test_extreme_logits(void **state) { /* no overflow, and what has no probability is never drawn */
    (void)state;
    const float wide[4] = {-3e38f, 3e38f, -INFINITY, 1e30f};
    for (uint64_t i = 0; i < 100; i++) {
        assert_int_equal(draw(wide, 4, (SampleSpec){.temperature = 1.0, .top_p = 1.0, .seed = 1}, i), 1);
        assert_int_equal(draw(wide, 4, (SampleSpec){.temperature = 1.0, .top_k = 3, .top_p = 0.9, .seed = 1}, i), 1);
        assert_int_equal(draw(wide, 4, (SampleSpec){.temperature = 1e-12, .top_p = 1.0, .seed = 1}, i), 1);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_greedy),       cmocka_unit_test(test_one_left),
        cmocka_unit_test(test_distribution), cmocka_unit_test(test_wrong_distribution_is_seen),
        cmocka_unit_test(test_top_k),        cmocka_unit_test(test_top_k_tie),
        cmocka_unit_test(test_top_p),        cmocka_unit_test(test_both_cuts),
        cmocka_unit_test(test_repeatable),   cmocka_unit_test(test_extreme_logits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
