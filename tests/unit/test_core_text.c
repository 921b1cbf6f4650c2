#include "tests/unit/test_core.h"

#include "core/hash.h"
#include "core/text.h"

static void text_grows(void **state) {
    (void)state;
    Text text = {0};
    for (int i = 0; i < 1000; i++)
        text_addf(&text, "%d,", i % 10);
    assert_int_equal(text.length, 2000);
    assert_int_equal(strlen(text.data), 2000);
    assert_memory_equal(text.data + 1996, "8,9,", 4);
    text_clear(&text);
    assert_string_equal(text.data, "");
    text_adds(&text, "ab");
    text_add(&text, "c\0d", 3);
    text_add(&text, "", 0);
    assert_int_equal(text.length, 5);
    assert_memory_equal(text.data, "abc\0d", 6);
    text_free(&text);
    assert_null(text.data);
    text_clear(&text);
    text_free(&text);
}

static void json_case(const char *bytes, size_t length, const char *want) {
    Text text = {0};
    text_add_json_string(&text, bytes, length);
    assert_string_equal(text.data, want);
    text_free(&text);
}

static void json_strings(void **state) {
    (void)state;
    json_case("", 0, "\"\"");
    json_case("a\"b\\c\n\r\t\x01\x1f\x7f/", 12, "\"a\\\"b\\\\c\\n\\r\\t\\u0001\\u001f\x7f/\"");
    json_case("\0", 1, "\"\\u0000\"");
    json_case("\xC3\xA9\xF0\x9F\x98\x80", 6, "\"\xC3\xA9\xF0\x9F\x98\x80\"");
    json_case("\xC3", 1, "\"\xEF\xBF\xBD\"");                                 /* cut short */
    json_case("\xED\xA0\x80", 3, "\"\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\""); /* a surrogate: three bytes, none well-formed */
}

static void utf8_every_code_point(void **state) {
    (void)state;
    int counts[5] = {0};
    for (uint32_t code = 0; code <= 0x110010; code++) {
        char bytes[4];
        int n = utf8_encode(code, bytes);
        int valid = code <= 0x10FFFF && !(code >= 0xD800 && code <= 0xDFFF);
        assert_int_equal(n > 0, valid);
        counts[n]++;
        if (n == 0) continue;
        uint32_t back = 0xFFFFFFFFu;
        assert_int_equal(utf8_decode(bytes, (size_t)n, &back), n);
        assert_int_equal(back, code);
        assert_int_equal(utf8_decode(bytes, (size_t)n - 1, &back), 0);
    }
    assert_int_equal(counts[1], 0x80);
    assert_int_equal(counts[2], 0x800 - 0x80);
    assert_int_equal(counts[3], 0x10000 - 0x800 - 0x800);
    assert_int_equal(counts[4], 0x100000);
}

/* All strings of two bytes, and of three behind each lead byte: the number of well-formed ones is known. */
static void utf8_counts_of_well_formed(void **state) {
    (void)state;
    int two = 0, three = 0;
    uint32_t code;
    for (unsigned a = 0; a < 256; a++)
        for (unsigned b = 0; b < 256; b++) {
            char bytes[3] = {(char)a, (char)b, 0};
            two += utf8_decode(bytes, 2, &code) == 2;
            for (unsigned c = 0; c < 256; c++) {
                bytes[2] = (char)c;
                three += utf8_decode(bytes, 3, &code) == 3;
            }
        }
    assert_int_equal(two, 0x800 - 0x80);
    assert_int_equal(three, 0x10000 - 0x800 - 0x800);
    const char *bad[] = {"\xC0\x80", "\xE0\x9F\xBF", "\xF0\x8F\xBF\xBF", "\xF4\x90\x80\x80", "\xF5\x80\x80\x80",
                         "\x80",     "\xFF"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(utf8_decode(bad[i], strlen(bad[i]), &code), 0);
}

static void formats(void **state) {
    (void)state;
    char out[32];
    assert_string_equal(format_bytes(0, out, sizeof out), "0 B");
    assert_string_equal(format_bytes(1023, out, sizeof out), "1023 B");
    assert_string_equal(format_bytes(1536, out, sizeof out), "1.50 KiB");
    assert_string_equal(format_bytes(1320702444.0, out, sizeof out), "1.23 GiB");
    assert_string_equal(format_bytes(1048575.0, out, sizeof out), "1.00 MiB"); /* never "1024.00 KiB" */
    assert_string_equal(format_duration(12.4, out, sizeof out), "12s");
    assert_string_equal(format_duration(59.6, out, sizeof out), "1m00s");
    assert_string_equal(format_duration(185, out, sizeof out), "3m05s");
    assert_string_equal(format_duration(3720, out, sizeof out), "1h02m");
    assert_string_equal(format_duration((double)NAN, out, sizeof out), "?");
    assert_string_equal(format_duration(-1.0, out, sizeof out), "?");
    char tiny[4];
    assert_string_equal(format_bytes(1536, tiny, sizeof tiny), "1.5");
}

static void hints(void **state) {
    (void)state;
    const char *const keys[] = {"train.lr", "train.steps", "train.epochs", "lora.rank", "quant.block_size"};
    const size_t n = sizeof keys / sizeof *keys;
    assert_string_equal(nearest_word("train.lrs", keys, n), "train.lr");
    assert_string_equal(nearest_word("train.setps", keys, n), "train.steps");
    assert_string_equal(nearest_word("lora.rnak", keys, n), "lora.rank");
    assert_string_equal(nearest_word("quant.blocksize", keys, n), "quant.block_size");
    assert_null(nearest_word("colour", keys, n));
    assert_null(nearest_word("x", keys, n));
    assert_null(nearest_word("", keys, n));
    assert_null(nearest_word("train.lr", keys, 0));
    char longest[4000];
    memset(longest, 'a', sizeof longest - 1);
    longest[sizeof longest - 1] = 0;
    assert_null(nearest_word(longest, keys, n));
    const char *const huge[] = {longest};
    assert_null(nearest_word("aaaa", huge, 1));
    const char *const close[] = {"lr", "rank"};
    assert_string_equal(nearest_word("rl", close, 2), "lr"); /* neighbours swapped */
}

static void clock_goes_forward(void **state) {
    (void)state;
    double a = clock_seconds(), b = clock_seconds();
    assert_true(a > 0.0 && b >= a);
}

/* The empty answer is the one in the xxHash documentation's test vectors; pieces of any size give the one-shot value. */
static void hash_pieces(void **state) {
    (void)state;
    assert_true(hash_bytes("", 0) == 0x2D06800538D394C2u);
    uint8_t data[5000];
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)(i * 131 + i / 256);
    uint64_t whole = hash_bytes(data, sizeof data);
    for (size_t piece = 1; piece < 3000; piece = piece * 3 + 1) {
        Hash hash;
        memset(&hash, 0xEE, sizeof hash);
        hash_init(&hash);
        for (size_t at = 0; at < sizeof data; at += piece)
            hash_update(&hash, data + at, sizeof data - at < piece ? sizeof data - at : piece);
        hash_update(&hash, NULL, 0);
        assert_true(hash_final(&hash) == whole);
        hash_update(&hash, "x", 1);
        assert_true(hash_final(&hash) != whole);
    }
    data[4321] ^= 1;
    assert_true(hash_bytes(data, sizeof data) != whole);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(text_grows),
                                       cmocka_unit_test(json_strings),
                                       cmocka_unit_test(utf8_every_code_point),
                                       cmocka_unit_test(utf8_counts_of_well_formed),
                                       cmocka_unit_test(formats),
                                       cmocka_unit_test(hints),
                                       cmocka_unit_test(clock_goes_forward),
                                       cmocka_unit_test(hash_pieces)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
