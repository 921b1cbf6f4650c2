/* Known answers from the Random123 distribution (kat_vectors, philox4x32-10), and what the project builds on the block. */
#include "tests/unit/test_core.h"

#include "core/philox.h"

static void check(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1, const uint32_t want[4]) {
    uint32_t counter[4] = {c0, c1, c2, c3}, got[4];
    philox4x32(counter, k0, k1, got);
    assert_memory_equal(got, want, sizeof got);
}

static void known_answers(void **state) {
    (void)state;
    const uint32_t m = 0xFFFFFFFFu;
    check(0, 0, 0, 0, 0, 0, (const uint32_t[4]){0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u});
    check(m, m, m, m, m, m, (const uint32_t[4]){0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu});
    check(0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u, 0xa4093822u, 0x299f31d0u,
          (const uint32_t[4]){0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u});
}

/* Every one of seed, purpose, a and b, in both halves, must matter. */
static void streams_differ(void **state) {
    (void)state;
    uint32_t base[4], other[4];
    random_block(7, RANDOM_TEST, 3, 5, base);
    const struct {
        uint64_t seed;
        RandomPurpose purpose;
        uint64_t a, b;
    } cases[] = {{8, RANDOM_TEST, 3, 5},
                 {7 + (1ull << 32), RANDOM_TEST, 3, 5},
                 {7, RANDOM_ORDER, 3, 5},
                 {7, RANDOM_TEST, 4, 5},
                 {7, RANDOM_TEST, 3 + (1ull << 32), 5},
                 {7, RANDOM_TEST, 3, 6},
                 {7, RANDOM_TEST, 3, 5 + (1ull << 32)}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        random_block(cases[i].seed, cases[i].purpose, cases[i].a, cases[i].b, other);
        assert_memory_not_equal(base, other, sizeof base);
    }
    random_block(7, RANDOM_TEST, 3, 5, other);
    assert_memory_equal(base, other, sizeof base);
}

static void uniform_is_in_range_and_even(void **state) {
    (void)state;
    assert_true(random_unit(0) == 0.0f);
    assert_true(random_unit(0xFFFFFFFFu) < 1.0f);
    double sum = 0.0;
    const int n = 1 << 16;
    for (int i = 0; i < n; i++) {
        float u = random_uniform(1, RANDOM_TEST, 0, (uint64_t)i);
        assert_true(u >= 0.0f && u < 1.0f);
        sum += (double)u;
    }
    double sigma = 1.0 / sqrt(12.0 * n);
    assert_true(fabs(sum / n - 0.5) <= 5.0 * sigma); /* seeded; five deviations of the mean of n uniforms */
}

static void dropout_rate_and_masks(void **state) {
    (void)state;
    assert_int_equal(dropout_threshold(0.0f), 0);
    assert_int_equal(dropout_threshold(0.5f), 0x80000000u);
    const int n = 1 << 16;
    const uint32_t threshold = dropout_threshold(0.25f);
    int kept = 0, differ_stream = 0, differ_sample = 0;
    for (int i = 0; i < n; i++) {
        uint32_t position = (uint32_t)i / 64, feature = (uint32_t)i % 64;
        int keep = dropout_keep(9, 1, 11, position, feature, threshold);
        assert_true(dropout_keep(9, 1, 11, position, feature, 0)); /* p = 0 drops nothing */
        kept += keep;
        differ_stream += keep != dropout_keep(9, 2, 11, position, feature, threshold);
        differ_sample += keep != dropout_keep(9, 1, 12, position, feature, threshold);
    }
    /* seeded; six deviations of a binomial: 0.75 kept, and 2 * 0.75 * 0.25 of the places differ between two masks */
    assert_true(fabs((double)kept / n - 0.75) <= 6.0 * sqrt(0.75 * 0.25 / n));
    assert_true(fabs((double)differ_stream / n - 0.375) <= 6.0 * sqrt(0.375 * 0.625 / n));
    assert_true(fabs((double)differ_sample / n - 0.375) <= 6.0 * sqrt(0.375 * 0.625 / n));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(known_answers), cmocka_unit_test(streams_differ),
                                       cmocka_unit_test(uniform_is_in_range_and_even),
                                       cmocka_unit_test(dropout_rate_and_masks)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
