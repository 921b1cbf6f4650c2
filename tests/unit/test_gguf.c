/* GGUF files: what the writer writes is what the reader finds, byte for byte where the format fixes the bytes; and its failures. */
#include "tests/unit/test_core.h"

#include "core/file.h"
#include "core/memory.h"
#include "data/gguf.h"
#include "tests/support/compare.h"
#include "tests/support/scratch.h"

/* Tensor data: byte i is i * 7 + the length of the name, in pieces. */
static Status produce(void *context, const GgufTensor *tensor, GgufWriter *writer, Error *err) {
    (void)context;
    for (uint64_t i = 0; i < tensor->bytes; i++) {
        uint8_t byte = (uint8_t)(i * 7 + strlen(tensor->name));
        TRY(gguf_write_bytes(writer, &byte, 1, err));
    }
    return OK;
}

static Status produce_short(void *context, const GgufTensor *tensor, GgufWriter *writer, Error *err) {
    (void)context;
    (void)tensor;
    return gguf_write_bytes(writer, "x", 1, err);
}

static Status produce_long(void *context, const GgufTensor *tensor, GgufWriter *writer, Error *err) {
    TRY(produce(context, tensor, writer, err));
    return gguf_write_bytes(writer, "x", 1, err);
}

static Status produce_failure(void *context, const GgufTensor *tensor, GgufWriter *writer, Error *err) {
    (void)context;
    (void)writer;
    FAIL("no data for %s", tensor->name);
}

static const int8_t i8 = -8;
static const uint8_t u8 = 200;
static const int16_t i16 = -1600;
static const uint16_t u16 = 60000;
static const int32_t i32 = -320000;
static const int64_t i64 = -6400000000;
static const uint64_t u64 = 18000000000000000000u;
static const double f64 = 0.1;
static const int32_t kinds[3] = {1, 6, -3};
static const float scores[2] = {-0.5f, 1e-7f};
static const uint8_t truths[3] = {1, 0, 1};
static const GgufString words[4] = {{"a", 1}, {"", 0}, {"b\0c", 3}, {"\xc3\xa9", 2}};

static void put_all(GgufWriter *w) {
    Error err = {0};
    assert_ok(gguf_put_text(w, "general.architecture", "llama", &err), &err);
    assert_ok(gguf_put_u32(w, "general.quantization_version", 2, &err), &err);
    assert_ok(gguf_put_f32(w, "llama.eps", 1e-5f, &err), &err);
    assert_ok(gguf_put_bool(w, "flag", 5, &err), &err);
    assert_ok(gguf_put(w, "i8", GGUF_I8, &i8, &err), &err);
    assert_ok(gguf_put(w, "u8", GGUF_U8, &u8, &err), &err);
    assert_ok(gguf_put(w, "i16", GGUF_I16, &i16, &err), &err);
    assert_ok(gguf_put(w, "u16", GGUF_U16, &u16, &err), &err);
    assert_ok(gguf_put(w, "i32", GGUF_I32, &i32, &err), &err);
    assert_ok(gguf_put(w, "i64", GGUF_I64, &i64, &err), &err);
    assert_ok(gguf_put(w, "u64", GGUF_U64, &u64, &err), &err);
    assert_ok(gguf_put(w, "f64", GGUF_F64, &f64, &err), &err);
    assert_ok(gguf_put_array(w, "words", GGUF_STRING, words, 4, &err), &err);
    assert_ok(gguf_put_array(w, "kinds", GGUF_I32, kinds, 3, &err), &err);
    assert_ok(gguf_put_array(w, "scores", GGUF_F32, scores, 2, &err), &err);
    assert_ok(gguf_put_array(w, "truths", GGUF_BOOL, truths, 3, &err), &err);
    assert_ok(gguf_put_array(w, "none", GGUF_STRING, NULL, 0, &err), &err);
}

static void add_all(GgufWriter *w) {
    Error err = {0};
    assert_ok(gguf_add_tensor(w, "q.weight", GGML_Q4_0, 2, (const int64_t[]){64, 3}, &err), &err); /* 108 bytes */
    assert_ok(gguf_add_tensor(w, "norm.weight", GGML_F32, 1, (const int64_t[]){5}, &err), &err);
    assert_ok(gguf_add_tensor(w, "k.weight", GGML_Q6_K, 3, (const int64_t[]){256, 1, 2}, &err), &err);
    assert_ok(gguf_add_tensor(w, "empty", GGML_F16, 2, (const int64_t[]){4, 0}, &err), &err);
    assert_ok(gguf_add_tensor(w, "last", GGML_BF16, 4, (const int64_t[]){1, 1, 1, 3}, &err), &err);
}

static void write_all(const char *path) {
    Error err = {0};
    GgufWriter *w = gguf_writer_create(path);
    put_all(w);
    add_all(w);
    assert_ok(gguf_writer_write(w, produce, NULL, &err), &err);
    gguf_writer_free(w);
}

static void check_text(const GgufFile *file, const char *key, uint64_t item, const char *want) {
    Text text = {0};
    const GgufValue *value = gguf_find(file, key);
    assert_non_null(value);
    gguf_item_text(value, item, 4, &text);
    assert_string_equal(text.data, want);
    text_free(&text);
}

static void check_values(const GgufFile *file) {
    assert_int_equal(gguf_value_count(file), 17);
    assert_string_equal(gguf_value(file, 0)->key, "general.architecture");
    check_text(file, "general.architecture", 0, "\"llam\"...");
    check_text(file, "llama.eps", 0, "9.99999975e-06");
    check_text(file, "flag", 0, "true");
    check_text(file, "i8", 0, "-8");
    check_text(file, "u8", 0, "200");
    check_text(file, "i16", 0, "-1600");
    check_text(file, "u16", 0, "60000");
    check_text(file, "i32", 0, "-320000");
    check_text(file, "i64", 0, "-6400000000");
    check_text(file, "u64", 0, "18000000000000000000");
    check_text(file, "f64", 0, "0.10000000000000001");
    check_text(file, "words", 0, "\"a\"");
    check_text(file, "words", 1, "\"\"");
    check_text(file, "words", 2, "\"b\\u0000c\"");
    check_text(file, "kinds", 2, "-3");
    check_text(file, "truths", 1, "false");
    assert_int_equal(gguf_find(file, "none")->count, 0);
    assert_null(gguf_find(file, "absent"));
}

static void check_tensors(const GgufFile *file) {
    Error err = {0};
    uint8_t bytes[512];
    assert_int_equal(gguf_tensor_count(file), 5);
    for (int64_t t = 0; t < 5; t++) {
        const GgufTensor *tensor = gguf_tensor(file, t);
        assert_ptr_equal(gguf_tensor_find(file, tensor->name), tensor);
        assert_int_equal(tensor->offset % GGUF_ALIGNMENT, 0);
        assert_ok(gguf_read(file, tensor, 0, bytes, (size_t)tensor->bytes, 1, &err), &err);
        for (uint64_t i = 0; i < tensor->bytes; i++)
            assert_int_equal(bytes[i], (uint8_t)(i * 7 + strlen(tensor->name)));
        assert_refused(gguf_read(file, tensor, 1, bytes, (size_t)tensor->bytes, 0, &err), &err, "bytes at 1 of it");
    }
    const GgufTensor *k = gguf_tensor_find(file, "k.weight");
    assert_int_equal(k->type->type, GGML_Q6_K);
    assert_int_equal(k->ndim, 3);
    assert_int_equal(k->ne[0] * 1000 + k->ne[1] * 100 + k->ne[2] * 10 + k->ne[3], 256121);
    assert_int_equal(k->bytes, 420);
    assert_null(gguf_tensor_find(file, "k"));
}

static void test_round_trip(void **state) {
    (void)state;
    Error err = {0};
    char *path = scratch_path("all.gguf");
    GgufFile *file;
    write_all(path);
    assert_ok(gguf_open(&file, path, &err), &err);
    assert_string_equal(gguf_path(file), path);
    check_values(file);
    check_tensors(file);
    gguf_close(file);
    memory_free(path);
}

static void test_typed(void **state) {
    (void)state;
    Error err = {0};
    char *path = scratch_path("all.gguf");
    GgufFile *file;
    uint32_t number;
    float real;
    int truth;
    GgufString string;
    const GgufValue *array;
    write_all(path);
    assert_ok(gguf_open(&file, path, &err), &err);
    assert_ok(gguf_get_u32(file, "general.quantization_version", &number, &err), &err);
    assert_int_equal(number, 2);
    assert_ok(gguf_get_f32(file, "llama.eps", &real, &err), &err);
    assert_true(real == 1e-5f);
    assert_ok(gguf_get_bool(file, "flag", &truth, &err), &err);
    assert_int_equal(truth, 1);
    assert_ok(gguf_get_string(file, "general.architecture", &string, &err), &err);
    assert_int_equal(string.length, 5);
    assert_memory_equal(string.bytes, "llama", 5);
    assert_ok(gguf_get_array(file, "scores", GGUF_F32, &array, &err), &err);
    assert_true(gguf_item_f32(array, 1) == 1e-7f);
    assert_ok(gguf_get_array(file, "kinds", GGUF_I32, &array, &err), &err);
    assert_int_equal(gguf_item_i32(array, 2), -3);
    assert_refused(gguf_get_u32(file, "i32", &number, &err), &err, "'i32': want a u32, got a i32");
    assert_refused(gguf_get_f32(file, "scores", &real, &err), &err, "want a f32, got an array of f32");
    assert_refused(gguf_get_array(file, "i32", GGUF_I32, &array, &err), &err, "want an array of i32, got a i32");
    assert_refused(gguf_get_string(file, "absent", &string, &err), &err, "got no such key");
    gguf_close(file);
    memory_free(path);
}

/* The whole of a small file, as the format says it. */
static void test_bytes(void **state) {
    (void)state;
    static const uint8_t want[] = {'G', 'G', 'U', 'F', 3,   0,   0,   0,   1,   0,   0,   0,   0,   0,   0,   0,   2,
                                   0,   0,   0,   0,   0,   0,   0, /* 1 tensor, 2 keys */
                                   17,  0,   0,   0,   0,   0,   0,   0,   'g', 'e', 'n', 'e', 'r', 'a', 'l', '.', 'a',
                                   'l', 'i', 'g', 'n', 'm', 'e', 'n', 't', 4,   0,   0,   0,   8,   0,   0,   0, /* u32 8 */
                                   1,   0,   0,   0,   0,   0,   0,   0,   'a', 9,   0,   0,   0,   8,   0,   0,   0,
                                   1,   0,   0,   0,   0,   0,   0,   0,             /* array of 1 string */
                                   2,   0,   0,   0,   0,   0,   0,   0,   'h', 'i', /* "hi" */
                                   1,   0,   0,   0,   0,   0,   0,   0,   't', 2,   0,   0,   0,   2,   0,   0,   0,
                                   0,   0,   0,   0,   1,   0,   0,   0,   0,   0,   0,   0, /* t [1, 2] */
                                   0,   0,   0,   0,   0,   0,   0,   0,   0,   0,   0,   0, /* F32 at 0 */
                                   0,   0,   0,                                              /* padding to 136 */
                                   1,   8,   15,  22,  29,  36,  43,  50};
    Error err = {0};
    char *path = scratch_path("small.gguf"), *bytes;
    size_t length;
    GgufString hi = {"hi", 2};
    GgufWriter *w = gguf_writer_create(path);
    assert_ok(gguf_put_u32(w, "general.alignment", 8, &err), &err);
    assert_ok(gguf_put_array(w, "a", GGUF_STRING, &hi, 1, &err), &err);
    assert_ok(gguf_add_tensor(w, "t", GGML_F32, 2, (const int64_t[]){2, 1}, &err), &err);
    assert_ok(gguf_writer_write(w, produce, NULL, &err), &err);
    gguf_writer_free(w);
    assert_ok(file_read(path, 4096, &bytes, &length, &err), &err);
    assert_int_equal(length, sizeof want);
    assert_memory_equal(bytes, want, sizeof want);
    memory_free(bytes);
    memory_free(path);
}

static void test_writer_refuses(void **state) {
    (void)state;
    Error err = {0};
    char *path = scratch_path("refused.gguf"), key[GGUF_KEY_MAX + 2];
    const uint32_t odd = 24, small = 4;
    const uint8_t two = 2;
    GgufWriter *w = gguf_writer_create(path);
    memset(key, 'k', sizeof key - 1);
    key[sizeof key - 1] = 0;
    assert_refused(gguf_put_u32(w, "", 1, &err), &err, "want 1 to 65535 bytes");
    assert_refused(gguf_put_u32(w, key, 1, &err), &err, "want 1 to 65535 bytes");
    assert_refused(gguf_put_u32(w, "Key", 1, &err), &err, "[a-z0-9_.]");
    assert_ok(gguf_put_u32(w, "key", 1, &err), &err);
    assert_refused(gguf_put_text(w, "key", "x", &err), &err, "twice");
    assert_refused(gguf_put_array(w, "nested", GGUF_ARRAY, NULL, 0, &err), &err, "arrays of arrays");
    assert_refused(gguf_put(w, "general.alignment", GGUF_U32, &odd, &err), &err, "power of two");
    assert_refused(gguf_put(w, "general.alignment", GGUF_U32, &small, &err), &err, "at least 8");
    assert_refused(gguf_put(w, "general.alignment", GGUF_I32, &i32, &err), &err, "want a u32");
    assert_refused(gguf_put(w, "truth", GGUF_BOOL, &two, &err), &err, "0 or 1");
    assert_refused(gguf_put_array(w, "many", GGUF_U8, &two, GGUF_ITEMS_MAX + 1, &err), &err, "at most");
    key[GGUF_NAME_MAX + 1] = 0;
    assert_refused(gguf_add_tensor(w, key, GGML_F32, 1, (const int64_t[]){1}, &err), &err, "1 to 63 bytes");
    assert_refused(gguf_add_tensor(w, "a\nb", GGML_F32, 1, (const int64_t[]){1}, &err), &err, "no text");
    assert_refused(gguf_add_tensor(w, "t", 36, 1, (const int64_t[]){1}, &err), &err, "type 36 is not known");
    assert_refused(gguf_add_tensor(w, "t", GGML_F32, 5, (const int64_t[]){1, 1, 1, 1, 1}, &err), &err, "1 to 4 dimensions");
    assert_refused(gguf_add_tensor(w, "t", GGML_Q8_0, 2, (const int64_t[]){31, 32}, &err), &err, "multiple of 32");
    assert_refused(gguf_add_tensor(w, "t", GGML_F32, 2, (const int64_t[]){INT64_MAX, 2}, &err), &err, "too large");
    assert_ok(gguf_add_tensor(w, "t", GGML_Q8_0, 1, (const int64_t[]){32}, &err), &err);
    assert_refused(gguf_add_tensor(w, "t", GGML_F32, 1, (const int64_t[]){1}, &err), &err, "twice");
    assert_refused(gguf_writer_write(w, produce, NULL, &err), &err, "general.quantization_version");
    assert_ok(gguf_put_u32(w, "general.quantization_version", 2, &err), &err);
    assert_refused(gguf_writer_write(w, produce_short, NULL, &err), &err, "want 34 bytes, got 1");
    assert_refused(gguf_writer_write(w, produce_long, NULL, &err), &err, "want 34 bytes, got at least 35");
    assert_refused(gguf_writer_write(w, produce_failure, NULL, &err), &err, "no data for t");
    assert_true(folder_is_empty(scratch_folder()) || !file_exists(path));
    assert_ok(gguf_writer_write(w, produce, NULL, &err), &err); /* a failed attempt spoils nothing */
    assert_true(file_exists(path));
    gguf_writer_free(w);
    memory_free(path);
}

/* A file may end right after the last tensor's data, and have no tensors at all. */
static void test_short_files(void **state) {
    (void)state;
    Error err = {0};
    char *path = scratch_path("all.gguf"), *bytes, *cut = scratch_path("cut.gguf");
    size_t length;
    GgufFile *file;
    write_all(path);
    assert_ok(file_read(path, 1 << 20, &bytes, &length, &err), &err);
    scratch_write("cut.gguf", bytes, length - 26); /* "last" has 6 bytes of 32 */
    assert_ok(gguf_open(&file, cut, &err), &err);
    check_tensors(file);
    gguf_close(file);
    for (size_t n = 0; n < length - 26; n++) { /* every truncation */
        scratch_write("cut.gguf", bytes, n);
        if (gguf_open(&file, cut, &err) == OK) fail_msg("accepted %zu bytes of %zu", n, length);
        assert_null(file);
    }
    GgufWriter *w = gguf_writer_create(cut);
    assert_ok(gguf_put_u32(w, "a", 1, &err), &err);
    assert_ok(gguf_writer_write(w, produce, NULL, &err), &err);
    gguf_writer_free(w);
    assert_ok(gguf_open(&file, cut, &err), &err);
    assert_int_equal(gguf_tensor_count(file), 0);
    gguf_close(file);
    memory_free(bytes);
    memory_free(cut);
    memory_free(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_round_trip), cmocka_unit_test(test_typed),
                                       cmocka_unit_test(test_bytes), cmocka_unit_test(test_writer_refuses),
                                       cmocka_unit_test(test_short_files)};
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
