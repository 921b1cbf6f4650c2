/* Packing: every sequence exactly once, windows not over-full, well filled, and a function of seed and epoch only. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/file.h"
#include "core/memory.h"
#include "core/philox.h"
#include "data/packing.h"
#include "train/batches.h"

#define ASSETS "../shared/assets/"

/* A data set of lengths only. */
static Dataset make(int64_t count, int64_t longest, uint64_t seed) {
    Dataset d = {.count = count};
    d.start = memory_alloc((size_t)(count + 1) * sizeof *d.start);
    d.start[0] = 0;
    for (int64_t i = 0; i < count; i++) {
        float u = random_uniform(seed, RANDOM_TEST, 0, (uint64_t)i);
        int64_t length = 1 + (int64_t)(u * u * (float)longest); /* ragged: many short, few long */
        d.start[i + 1] = d.start[i] + (length > longest ? longest : length);
    }
    d.tokens = d.start[count];
    return d;
}

static int64_t length_of(const Dataset *d, int64_t i) {
    return d->start[i + 1] - d->start[i];
}

static PackPlan *pack(const Dataset *d, Packing packing, int64_t window, uint64_t seed, int64_t epoch, int shuffle) {
    PackPlan *plan = NULL;
    Error error = {0};
    if (pack_epoch(&plan, d, packing, window, seed, epoch, shuffle, &error) != OK) fail_msg("%s", error.text);
    return plan;
}

static void check_cover(const Dataset *d, const PackPlan *plan, int64_t window) {
    uint8_t *seen = memory_calloc((size_t)d->count, 1);
    int64_t total = 0;
    for (int64_t w = 0; w < pack_count(plan); w++) {
        const int64_t *sequences;
        int64_t count, tokens = 0;
        pack_get(plan, w, &sequences, &count);
        assert_true(count > 0);
        for (int64_t i = 0; i < count; i++) {
            assert_in_range(sequences[i], 0, d->count - 1);
            assert_int_equal(seen[sequences[i]]++, 0);
            tokens += length_of(d, sequences[i]);
        }
        assert_true(tokens <= window);
        total += count;
    }
    assert_int_equal(total, d->count);
    memory_free(seen);
}

static void test_exact_cover(void **state) {
    (void)state;
    static const int64_t counts[] = {1, 2, 3, 63, 64, 65, 1000, 4096, 4097, 20011};
    static const int64_t windows[] = {1, 7, 63, 64, 65, 512, 4095, 4096, 4097, 300000};
    for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
        for (size_t w = 0; w < sizeof windows / sizeof windows[0]; w++) {
            int64_t longest = windows[w] < 5000 ? windows[w] : 5000;
            Dataset d = make(counts[c], longest, 11 + c * 10 + w);
            for (int shuffle = 0; shuffle < 2; shuffle++) {
                PackPlan *plan = pack(&d, PACKING_BEST_FIT, windows[w], 5, 1, shuffle);
                check_cover(&d, plan, windows[w]);
                pack_free(plan);
            }
            memory_free(d.start);
        }
    }
}

static void test_fill(void **state) {
    (void)state;
    static const struct {
        int64_t count, longest, window;
    } cases[] = {{20000, 2048, 2048}, {20000, 2048, 4096}, {50000, 300, 2048}, {20000, 512, 16384}, {5000, 500, 2048}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        Dataset d = make(cases[i].count, cases[i].longest, i);
        PackPlan *plan = pack(&d, PACKING_BEST_FIT, cases[i].window, 3, 0, 1);
        check_cover(&d, plan, cases[i].window);
        print_message("%lld sequences up to %lld in windows of %lld: %.3f %% full\n", (long long)cases[i].count,
                      (long long)cases[i].longest, (long long)cases[i].window, 100 * pack_fill(plan));
        assert_true(pack_fill(plan) > 0.98);
        assert_true(pack_fill(plan) <= 1);
        pack_free(plan);
        memory_free(d.start);
    }
}

/* Lengths of 6 to 39 % of the window, as GSM8K has with a small vocabulary: best fit decreasing leaves 1 % there. */
static void test_fill_of_few_each(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 5; seed++) {
        Dataset d = make(3000, 680, seed);
        for (int64_t i = 0, at = 0; i < d.count; i++) {
            int64_t next = d.start[i + 1];
            d.start[i + 1] = d.start[i] + 120 + next - at;
            at = next;
        }
        d.tokens = d.start[d.count];
        PackPlan *plan = pack(&d, PACKING_BEST_FIT, 2048, seed, 0, 1);
        check_cover(&d, plan, 2048);
        assert_true(pack_count(plan) <= (d.tokens + 2047) / 2048 + 2); /* the bound; the last two have what fits nowhere else */
        pack_free(plan);
        memory_free(d.start);
    }
}

/* Nothing is saved by looking twice: two of these never share a window. */
static void test_no_room(void **state) {
    (void)state;
    Dataset d = make(5000, 900, 4);
    for (int64_t i = 0, at = 0; i < d.count; i++) {
        int64_t next = d.start[i + 1];
        d.start[i + 1] = d.start[i] + 1025 + next - at;
        at = next;
    }
    d.tokens = d.start[d.count];
    PackPlan *plan = pack(&d, PACKING_BEST_FIT, 2048, 1, 0, 1);
    check_cover(&d, plan, 2048);
    assert_int_equal(pack_count(plan), 5000);
    pack_free(plan);
    memory_free(d.start);
}

static int same_plan(const PackPlan *a, const PackPlan *b) {
    if (pack_count(a) != pack_count(b)) return 0;
    for (int64_t w = 0; w < pack_count(a); w++) {
        const int64_t *x, *y;
        int64_t n, m;
        pack_get(a, w, &x, &n);
        pack_get(b, w, &y, &m);
        if (n != m || memcmp(x, y, (size_t)n * sizeof *x) != 0) return 0;
    }
    return 1;
}

static void test_deterministic(void **state) {
    (void)state;
    Dataset d = make(9000, 400, 1);
    for (int p = 0; p < 2; p++) {
        Packing packing = p ? PACKING_NONE : PACKING_BEST_FIT;
        PackPlan *a = pack(&d, packing, 512, 42, 3, 1), *b = pack(&d, packing, 512, 42, 3, 1);
        PackPlan *epoch = pack(&d, packing, 512, 42, 4, 1), *seed = pack(&d, packing, 512, 43, 3, 1);
        assert_true(same_plan(a, b));
        assert_false(same_plan(a, epoch));
        assert_false(same_plan(a, seed));
        pack_free(a);
        pack_free(b);
        pack_free(epoch);
        pack_free(seed);
    }
    memory_free(d.start);
}

static void test_none_is_one_each(void **state) {
    (void)state;
    Dataset d = make(500, 100, 9);
    PackPlan *plan = pack(&d, PACKING_NONE, 100, 1, 0, 1), *in_order = pack(&d, PACKING_NONE, 100, 1, 0, 0);
    check_cover(&d, plan, 100);
    assert_int_equal(pack_count(plan), 500);
    int64_t moved = 0;
    for (int64_t w = 0; w < 500; w++) {
        const int64_t *s;
        int64_t n;
        pack_get(plan, w, &s, &n);
        assert_int_equal(n, 1);
        moved += s[0] != w;
        pack_get(in_order, w, &s, &n);
        assert_int_equal(n, 1);
        assert_int_equal(s[0], w);
    }
    assert_true(moved > 450);
    pack_free(plan);
    pack_free(in_order);
    memory_free(d.start);
}

/* Unpacked and shuffled: neighbours are alike in length, and yet long and short mix over the epoch. */
static void test_none_buckets_lengths(void **state) {
    (void)state;
    Dataset d = make(9001, 1024, 6);
    PackPlan *plan = pack(&d, PACKING_NONE, 1024, 8, 2, 1);
    double near = 0, far = 0, sum[2] = {0};
    int64_t before = -1, count = pack_count(plan);
    check_cover(&d, plan, 1024);
    for (int64_t w = 0; w < count; w++) {
        const int64_t *s, *other;
        int64_t n, m;
        pack_get(plan, w, &s, &n);
        pack_get(plan, (w * 7919 + 13) % count, &other, &m);
        int64_t length = length_of(&d, s[0]);
        if (before >= 0) near += (double)llabs(length - before);
        far += (double)llabs(length - length_of(&d, other[0]));
        sum[w >= count / 2] += (double)length;
        before = length;
    }
    /* 4,096 lengths in 128 buckets: neighbours in a bucket differ by under 1 % of the range, and 1 of 32 begins another bucket */
    assert_true(near < 0.1 * far);
    assert_true(sum[0] / sum[1] > 0.8 &&
                sum[0] / sum[1] < 1.25); /* halves of 140 buckets: sd of the ratio 0.9 * sqrt(4 / 281) = 11 % */
    pack_free(plan);
    memory_free(d.start);
}

/* A data set whose ids tell sequence and position apart, with random masks. */
static Dataset make_ids(int64_t count, int64_t longest, uint64_t seed) {
    Dataset d = make(count, longest, seed);
    d.tokens = d.start[count];
    d.ids = memory_alloc((size_t)d.tokens * sizeof *d.ids);
    d.train = memory_alloc((size_t)d.tokens);
    for (int64_t i = 0; i < count; i++) {
        for (int64_t t = d.start[i]; t < d.start[i + 1]; t++) {
            d.ids[t] = (int32_t)t;
            d.train[t] = t > d.start[i] && random_uniform(seed, RANDOM_TEST, 1, (uint64_t)t) < 0.6f;
        }
    }
    return d;
}

/* The rows of one document in a micro-batch: its own tokens, positions from 0, and targets that are its own next tokens. */
static void check_document(const Dataset *d, const Batch *b, int64_t sequence, int64_t row, int64_t *supervised) {
    int64_t begin = d->start[sequence], length = length_of(d, sequence);
    for (int64_t t = 0; t < length; t++) {
        assert_int_equal(b->ids[row + t], begin + t);
        assert_int_equal(b->positions[row + t], t);
        assert_true(b->samples[row + t] == 1000000 + (uint64_t)sequence);
        if (t + 1 == length || !d->train[begin + t + 1]) continue;
        assert_int_equal(b->rows[*supervised], row + t);
        assert_int_equal(b->targets[(*supervised)++], begin + t + 1);
    }
}

/* Attention sees the rows between two starts and nothing else (test_invariance.c holds the kernels to that: packed losses equal
 * unpacked ones). Here: those rows are one document each, positions restart in it, and no target lies in another. */
static void test_nothing_crosses_a_document(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 20; seed++) {
        int64_t window = 64 + (int64_t)seed * 37;
        Dataset d = make_ids(300, window, seed);
        Arena arena;
        BatchBuffer buffer;
        assert_int_equal(arena_create(&arena, "test", batch_buffer_bytes(window), NULL), OK);
        assert_int_equal(batch_buffer_take(&buffer, &arena, window, NULL), OK);
        PackPlan *plan = pack(&d, seed % 4 == 3 ? PACKING_NONE : PACKING_BEST_FIT, window, seed, 0, 1);
        for (int64_t w = 0; w < pack_count(plan); w++) {
            const int64_t *sequences;
            int64_t count, supervised = 0;
            Batch batch = {0};
            pack_get(plan, w, &sequences, &count);
            assert_int_equal(batch_fill(&batch, &buffer, &d, sequences, count, 1000000, NULL), OK);
            assert_int_equal(batch.sequences, count);
            for (int64_t s = 0; s < count; s++) {
                assert_int_equal(batch.starts[s + 1] - batch.starts[s], length_of(&d, sequences[s]));
                check_document(&d, &batch, sequences[s], batch.starts[s], &supervised);
            }
            assert_int_equal(batch.starts[count], batch.tokens);
            assert_int_equal(batch.supervised, supervised);
            assert_int_equal(supervised, batch_supervised(&d, sequences, count));
        }
        pack_free(plan);
        arena_free(&arena);
        memory_free(d.start);
        memory_free(d.ids);
        memory_free(d.train);
    }
}

static void test_fill_of_real_data(void **state) {
    (void)state;
    static const char *const files[] = {"alpaca/alpaca_5000.json", "gsm8k/train_head3000.jsonl",
                                        "pretrain/tinystories_1500.txt"};
    Tokenizer *tokenizer = NULL;
    Error error = {0};
    if (!file_exists(ASSETS "tokenizers/tinyllama/tokenizer.json")) {
        print_message("skipped: " ASSETS " is not here\n");
        skip();
    }
    if (tokenizer_open(&tokenizer, ASSETS "tokenizers/tinyllama", &error) != OK) fail_msg("%s", error.text);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char *path = memory_format(ASSETS "datasets/%s", files[i]);
        DatasetOptions options = {
            .path = path, .template_name = "auto", .max_length = 2048, .tokenizer = tokenizer, .eos_id = -1};
        Dataset d;
        if (dataset_read(&options, &d, &error) != OK) fail_msg("%s", error.text);
        PackPlan *plan = pack(&d, PACKING_BEST_FIT, 2048, 1234, 0, 1);
        print_message("%s: %lld sequences of up to %lld tokens in %lld windows of 2048: %.2f %% full\n", files[i],
                      (long long)d.count, (long long)d.longest, (long long)pack_count(plan), 100 * pack_fill(plan));
        assert_true(pack_fill(plan) >= 0.98);
        pack_free(plan);
        dataset_free(&d);
        memory_free(path);
    }
    tokenizer_close(tokenizer);
}

/* Without shuffling, windows come in the order of their first sequences. */
static void test_unshuffled_order(void **state) {
    (void)state;
    Dataset d = make(3000, 300, 2);
    PackPlan *plan = pack(&d, PACKING_BEST_FIT, 512, 1, 0, 0);
    int64_t before = -1;
    for (int64_t w = 0; w < pack_count(plan); w++) {
        const int64_t *s;
        int64_t n, least = INT64_MAX;
        pack_get(plan, w, &s, &n);
        for (int64_t i = 0; i < n; i++)
            least = s[i] < least ? s[i] : least;
        assert_true(least > before);
        before = least;
    }
    pack_free(plan);
    memory_free(d.start);
}

/* Long and short sequences mix: the mean length in the first half of the steps is that of the second. */
static void test_lengths_mix(void **state) {
    (void)state;
    Dataset d = make(8000, 1024, 4);
    PackPlan *plan = pack(&d, PACKING_BEST_FIT, 1024, 8, 0, 1);
    double sum[2] = {0}, count[2] = {0};
    for (int64_t w = 0; w < pack_count(plan); w++) {
        const int64_t *s;
        int64_t n, half = w >= pack_count(plan) / 2;
        pack_get(plan, w, &s, &n);
        for (int64_t i = 0; i < n; i++)
            sum[half] += (double)length_of(&d, s[i]);
        count[half] += (double)n;
    }
    double ratio = sum[0] / count[0] / (sum[1] / count[1]);
    /* sd of a length here is about 0.9 of the mean; the means of two halves of 4000 differ by 2 % (1 sigma) */
    assert_true(ratio > 0.9 && ratio < 1.1);
    pack_free(plan);
    memory_free(d.start);
}

static void test_refusals(void **state) {
    (void)state;
    PackPlan *plan = NULL;
    Error error = {0};
    Dataset d = make(10, 100, 1), none = {0};
    d.start[10] = d.start[9] + 101;
    assert_int_equal(pack_epoch(&plan, &d, PACKING_BEST_FIT, 100, 1, 0, 1, &error), ERR_FAILED);
    assert_non_null(strstr(error.text, "101 tokens"));
    assert_null(plan);
    assert_int_equal(pack_epoch(&plan, &none, PACKING_BEST_FIT, 100, 1, 0, 1, &error), ERR_FAILED);
    pack_free(NULL);
    memory_free(d.start);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exact_cover),          cmocka_unit_test(test_fill),
        cmocka_unit_test(test_fill_of_few_each),     cmocka_unit_test(test_no_room),
        cmocka_unit_test(test_deterministic),        cmocka_unit_test(test_none_is_one_each),
        cmocka_unit_test(test_none_buckets_lengths), cmocka_unit_test(test_nothing_crosses_a_document),
        cmocka_unit_test(test_fill_of_real_data),    cmocka_unit_test(test_unshuffled_order),
        cmocka_unit_test(test_lengths_mix),          cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
