/* Malformed GGUF files: each is refused with a message that names what is wrong.
 *
 * A file is written as words:  u8:N u32:N u64:N  numbers;  s:TEXT  a string with its length;  =TEXT  bytes;  zeros:N;
 * repeat:N:C  N bytes C;  align:N  zeros up to a multiple of N;  control  the byte 1. */
#include "tests/unit/test_core.h"

#include <strings.h>

#include "core/memory.h"
#include "core/text.h"
#include "data/gguf.h"
#include "tests/support/compare.h"
#include "tests/support/scratch.h"

static void add_number(Text *out, uint64_t value, size_t bytes) {
    text_add(out, (const char *)&value, bytes);
}

static void add_fill(Text *out, uint64_t count, char byte) {
    for (uint64_t i = 0; i < count; i++)
        text_add(out, &byte, 1);
}

static void add_word(Text *out, const char *word) {
    const char *colon = strchr(word, ':'), *argument = colon != NULL ? colon + 1 : word;
    char *rest = NULL;
    uint64_t number = strtoull(argument, &rest, 10);
    if (word[0] == '=') {
        text_adds(out, word + 1);
    } else if (strncmp(word, "s:", 2) == 0) {
        add_number(out, strlen(argument), 8);
        text_adds(out, argument);
    } else if (strncmp(word, "u8:", 3) == 0) {
        add_number(out, number, 1);
    } else if (strncmp(word, "u32:", 4) == 0) {
        add_number(out, number, 4);
    } else if (strncmp(word, "u64:", 4) == 0) {
        add_number(out, number, 8);
    } else if (strncmp(word, "zeros:", 6) == 0) {
        add_fill(out, number, 0);
    } else if (strncmp(word, "repeat:", 7) == 0) {
        add_fill(out, number, rest[1]);
    } else if (strncmp(word, "align:", 6) == 0) {
        add_fill(out, (number - out->length % number) % number, 0);
    } else if (strcmp(word, "control") == 0) {
        add_fill(out, 1, 1);
    } else {
        fail_msg("the test's own word '%s' is not known", word);
    }
}

static void write_words(const char *name, const char *words) {
    Text out = {0};
    char *copy = memory_strdup(words), *state = NULL;
    for (char *word = strtok_r(copy, " ", &state); word != NULL; word = strtok_r(NULL, " ", &state))
        add_word(&out, word);
    scratch_write(name, out.data != NULL ? out.data : "", out.length);
    text_free(&out);
    memory_free(copy);
}

#define HEAD "=GGUF u32:3 "
#define ONE_KEY HEAD "u64:0 u64:1 "
#define ONE_TENSOR HEAD "u64:1 u64:0 "
#define TWO_TENSORS HEAD "u64:2 u64:0 "
#define BIG "18446744073709551615"

static const struct {
    const char *words, *message;
} cases[] = {
    {"", "is empty"},
    {"=GG", "the magic: want 4 bytes"},
    {"=GGML u32:3 u64:0 u64:0", "begins with \"GGUF\""},
    {"=GGUF u32:0 u64:0 u64:0", "want GGUF version 3, got 0"},
    {"=GGUF u32:1 u64:0 u64:0", "want GGUF version 3, got 1"},
    {"=GGUF u32:2 u64:0 u64:0", "want GGUF version 3, got 2"},
    {"=GGUF u32:4 u64:0 u64:0", "want GGUF version 3, got 4"},
    {"=GGUF u32:50331648 u64:0 u64:0", "big-endian"},
    {"=GGUF u32:3 u64:0", "the number of keys"},
    {HEAD "u64:" BIG " u64:0", "do not fit in a file"},
    {HEAD "u64:0 u64:" BIG, "do not fit in a file"},
    {HEAD "u64:1000000 u64:0 zeros:1000", "do not fit in a file"},
    /* keys */
    {ONE_KEY "u64:0 u32:4 u32:1 zeros:9", "a key is empty"},
    {ONE_KEY "u64:65536 zeros:66000", "want a string of at most 65535 bytes, got 65536"},
    {ONE_KEY "u64:" BIG " zeros:9", "at most 65535 bytes"},
    {ONE_KEY "u64:200 =abc zeros:9", "a key: want 200 bytes"},
    {ONE_KEY "u64:3 =a control =b u32:4 u32:1", "without control characters"},
    {ONE_KEY "u64:3 =ab zeros:1 u32:4 u32:1", "without control characters"},
    {ONE_KEY "u64:2 =\xc3 =x u32:4 u32:1", "want UTF-8"},
    {HEAD "u64:0 u64:2 s:a u32:4 u32:1 s:a u32:4 u32:1", "key 'a' appears twice"},
    {ONE_KEY "s:a u32:13 u32:1", "got type 13"},
    {ONE_KEY "s:a u32:4294967295 u32:1", "got type 4294967295"},
    {ONE_KEY "s:a u32:7 u8:2", "truth value of 0 or 1, got 2"},
    {ONE_KEY "s:a u32:10 u32:1", "a: want 8 bytes"},
    {ONE_KEY "s:a u32:8 u64:1073741825 zeros:9", "at most 1073741824 bytes, got 1073741825"},
    {ONE_KEY "s:a u32:8 u64:100 zeros:9", "a: want 100 bytes"},
    {ONE_KEY "s:a u32:9 u32:9 u64:1 zeros:16", "not an array of arrays"},
    {ONE_KEY "s:a u32:9 u32:99 u64:1 zeros:16", "got type 99"},
    {ONE_KEY "s:a u32:9 u32:0 u64:1073741825", "at most 1073741824 items"},
    {ONE_KEY "s:a u32:9 u32:12 u64:1073741824 zeros:64", "want 8589934592 bytes"},
    {ONE_KEY "s:a u32:9 u32:8 u64:1073741824 zeros:64", "1073741824 strings do not fit"},
    {ONE_KEY "s:a u32:9 u32:8 u64:2 s:x u64:99", "a: want 99 bytes"},
    {ONE_KEY "s:a u32:9 u32:7 u64:2 u8:1 u8:9", "truth value"},
    {ONE_KEY "s:general.alignment u32:4 u32:0", "want a power of two, got 0"},
    {ONE_KEY "s:general.alignment u32:4 u32:48", "want a power of two, got 48"},
    {ONE_KEY "s:general.alignment u32:5 u32:32", "want a u32, got a i32"},
    {ONE_KEY "s:general.alignment u32:9 u32:4 u64:1 u32:32", "want a u32, got an array"},
    /* tensors */
    {ONE_TENSOR "u64:0 u32:1 u64:1 u32:0 u64:0 zeros:99", "name is empty"},
    {ONE_TENSOR "u64:64 repeat:64:n u32:1 u64:1 u32:0 u64:0 zeros:99", "at most 63 bytes, got 64"},
    {ONE_TENSOR "u64:1 control u32:1 u64:1 u32:0 u64:0 zeros:99", "without control characters"},
    {ONE_TENSOR "s:t u32:5 u64:1 u64:1 u64:1 u64:1 u64:1 u32:0 u64:0 zeros:99", "at most 4 dimensions, got 5"},
    {ONE_TENSOR "s:t u32:4294967295 zeros:99", "at most 4 dimensions"},
    {ONE_TENSOR "s:t u32:1 u64:" BIG " u32:0 u64:0 zeros:99", "less than 2^63"},
    {ONE_TENSOR "s:t u32:2 u64:4294967296 u64:4294967296 u32:0 u64:0 zeros:99", "too large"},
    {ONE_TENSOR "s:t u32:3 u64:0 u64:4294967296 u64:4294967296 u32:0 u64:0 zeros:99", "too large"},
    {ONE_TENSOR "s:t u32:1 u64:9223372036854775807 u32:0 u64:0 zeros:99", "data is too large"},
    {ONE_TENSOR "s:t u32:1 u64:33 u32:2 u64:0 zeros:99", "multiple of 32, got 33"},
    {ONE_TENSOR "s:t u32:0 u32:12 u64:0 zeros:999", "multiple of 256, got 1"},
    {ONE_TENSOR "s:t u32:1 u64:32 u32:4 u64:0 zeros:99", "type 4 is not known or was removed"},
    {ONE_TENSOR "s:t u32:1 u64:32 u32:4294967295 u64:0 zeros:99", "is not known"},
    {ONE_TENSOR "s:t u32:1 u64:8 u32:0 u64:32 align:32 zeros:99", "want offset 0 (behind the tensor before it), got 32"},
    {ONE_TENSOR "s:t u32:1 u64:8 u32:0 u64:" BIG " align:32 zeros:99", "want offset 0"},
    {ONE_TENSOR "s:t u32:1 u64:8 u32:0 u64:0 align:32 zeros:31", "want 32 bytes of data"},
    {ONE_TENSOR "s:t u32:1 u64:2000000000000000000 u32:0 u64:0 zeros:99", "want 8000000000000000000 bytes of data"},
    {TWO_TENSORS "s:t u32:1 u64:1 u32:0 u64:0 s:t u32:1 u64:1 u32:0 u64:32 align:32 zeros:64", "tensor 't' appears twice"},
    {TWO_TENSORS "s:t u32:1 u64:1 u32:0 u64:0 s:u u32:1 u64:1 u32:0 u64:4 align:32 zeros:64", "want offset 32"},
    {TWO_TENSORS "s:t u32:1 u64:1 u32:0 u64:0 s:u u32:1 u64:1 u32:0 u64:0 align:32 zeros:64", "want offset 32"},
    {TWO_TENSORS "s:t u32:1 u64:1 u32:0 u64:0 s:u u32:1 u64:1 u32:0 u64:64 align:32 zeros:99", "want offset 32"},
    {TWO_TENSORS "s:t u32:1 u64:2000000000000000000 u32:0 u64:0 s:u u32:1 u64:2000000000000000000 u32:0 "
                 "u64:8000000000000000000 zeros:99",
     "larger than 2^63"},
    {TWO_TENSORS "s:t u32:1 u64:1 u32:0 u64:0", "a tensor's name"},
};

static void test_refused(void **state) {
    (void)state;
    char *path = scratch_path("bad.gguf");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Error err = {0};
        GgufFile *file = (GgufFile *)(uintptr_t)1;
        write_words("bad.gguf", cases[i].words);
        print_message("%s\n", cases[i].message);
        assert_refused(gguf_open(&file, path, &err), &err, cases[i].message);
        assert_null(file);
        assert_non_null(strstr(err.text, path));
    }
    memory_free(path);
}

/* The same words without the fault are taken. */
static void test_accepted(void **state) {
    (void)state;
    static const char *const good[] = {
        HEAD "u64:0 u64:0",
        ONE_KEY "s:a-B u32:4 u32:1",
        ONE_KEY "s:general.alignment u32:4 u32:1",
        ONE_KEY "s:a u32:9 u32:8 u64:2 s:x s:yz",
        ONE_TENSOR "s:t u32:0 u32:0 u64:0 align:32 zeros:4",
        ONE_TENSOR "u64:63 repeat:63:n u32:1 u64:1 u32:0 u64:0 align:32 zeros:4",
        ONE_TENSOR "s:t u32:1 u64:256 u32:23 u64:0 align:32 zeros:136",
        TWO_TENSORS "s:t u32:1 u64:1 u32:0 u64:0 s:u u32:1 u64:1 u32:0 u64:32 align:32 zeros:36",
    };
    char *path = scratch_path("good.gguf");
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        Error err = {0};
        GgufFile *file;
        write_words("good.gguf", good[i]);
        assert_ok(gguf_open(&file, path, &err), &err);
        gguf_close(file);
    }
    memory_free(path);
}

static void test_not_a_file(void **state) {
    (void)state;
    Error err = {0};
    GgufFile *file;
    assert_refused(gguf_open(&file, scratch_folder(), &err), &err, scratch_folder());
    char *path = scratch_path("absent.gguf");
    assert_refused(gguf_open(&file, path, &err), &err, path);
    memory_free(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_refused), cmocka_unit_test(test_accepted),
                                       cmocka_unit_test(test_not_a_file)};
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
