/* Random bytes: SplitMix64's words, to the last byte and not beyond. */
#include "tests/cuda_emu/device.h"

static uint64_t next_word(uint64_t *state) {
    uint64_t z = *state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

/* The published first outputs from seed 0: what this file compares with is SplitMix64. */
static void is_splitmix(void **state) {
    (void)state;
    uint64_t seed = 0;
    assert_true(next_word(&seed) == 0xE220A8397B1DCDAFu);
    assert_true(next_word(&seed) == 0x6E789E6AA1B965F4u);
    assert_true(next_word(&seed) == 0x06C45D188009454Fu);
}

static void writes_words(void **state) {
    (void)state;
    static const int64_t sizes[] = {0, 1, 7, 8, 9, 15, 16, 17, 31, 4095, 4096, 4097, 100003};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        Device device = {0};
        size_t bytes = (size_t)sizes[s];
        uint8_t *got = memory_alloc(bytes + 1), *there = device_out(&device, NULL, bytes);
        uint64_t seed = 42 + s;
        assert_cuda(cuda_random_bytes(there, (int64_t)bytes, seed, 0));
        device_read(got, there, bytes);
        for (size_t i = 0; i < bytes; i += 8) {
            uint64_t word = next_word(&seed);
            for (size_t k = i; k < bytes && k < i + 8; k++)
                assert_int_equal(got[k], (uint8_t)(word >> (8 * (k - i))));
        }
        memory_free(got);
        device_close(&device);
    }
}

static void refuses(void **state) {
    (void)state;
    assert_int_equal(cuda_random_bytes((void *)(uintptr_t)24, 16, 1, 0), cudaErrorInvalidValue);
    assert_int_equal(cuda_random_bytes(NULL, -1, 1, 0), cudaErrorInvalidValue);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(is_splitmix), cmocka_unit_test(writes_words),
                                       cmocka_unit_test(refuses)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
