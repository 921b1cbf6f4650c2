/* safetensors: the format's checks on hostile files, shards, and what our writer leaves for others to read. */
#include <fcntl.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/file.h"
#include "core/memory.h"
#include "core/text.h"
#include "data/safetensors.h"
#include "tests/support/scratch.h"

/* The header's length, the header, `data_bytes` bytes that count up. */
static void write_tensors(const char *name, const char *header, size_t data_bytes) {
    size_t length = strlen(header);
    unsigned char *bytes = memory_alloc(8 + length + data_bytes);
    for (size_t i = 0; i < 8; i++)
        bytes[i] = (unsigned char)((uint64_t)length >> (8 * i));
    memcpy(bytes + 8, header, length);
    for (size_t i = 0; i < data_bytes; i++)
        bytes[8 + length + i] = (unsigned char)i;
    scratch_write(name, bytes, 8 + length + data_bytes);
    memory_free(bytes);
}

/* Opening must fail with this status and name all of `words` (separated by '|'). */
static void expect_refused(const char *path, const char *words) {
    TensorFiles *files = NULL;
    Error err = {0};
    Status status = tensors_open(&files, path, NULL, &err);
    if (status != ERR_FAILED) fail_msg("want a refusal with '%s', got status %d '%s'", words, status, err.text);
    assert_null(files);
    char *copy = memory_strdup(words), *rest = NULL;
    for (char *word = strtok_r(copy, "|", &rest); word != NULL; word = strtok_r(NULL, "|", &rest))
        if (strstr(err.text, word) == NULL) fail_msg("want '%s' in the message, got '%s'", word, err.text);
    memory_free(copy);
}

#define T_A "\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}"

static const struct {
    const char *header;
    size_t data;
    const char *words;
} hostile[] = {
    {"", 0, "want a value, got the end of the text"},
    {"[]", 0, "header: want an object, got an array"},
    {"{", 0, "want a key"},
    {"{" T_A, 8, "want ',' or '}'"},
    {"{" T_A ",}", 8, "want a key"},
    {"{" T_A "}x", 8, "want nothing after"},
    {"{" T_A "}\x01", 8, "want nothing after"},
    {"{\"\xFF\":1}", 0, "ill-formed UTF-8"},
    {"{\"a\":1}", 0, "a: want an object, got an integer"},
    {"{\"a\":{}}", 0, "'a'|dtype is missing"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 0, "'a'|data_offsets is missing"},
    {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}}", 8, "'a'|shape is missing"},
    {"{\"a\":{\"dtype\":\"F31\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "'a'|dtype|F31"},
    {"{\"a\":{\"dtype\":\"F4\",\"shape\":[2],\"data_offsets\":[0,1]}}", 1, "'a'|dtype|got 'F4'"},
    {"{\"a\":{\"dtype\":\"f32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "'a'|dtype|got 'f32'"},
    {"{\"a\":{\"dtype\":32,\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "dtype: want a string, got an integer"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":2,\"data_offsets\":[0,8]}}", 8, "shape: want an array"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2.0],\"data_offsets\":[0,8]}}", 8, "'a'|shape|a number"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]}}", 8, "'a'|shape|outside"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-0],\"data_offsets\":[0,0]}}", 0, "'a'|shape|outside"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[18446744073709551615],\"data_offsets\":[0,8]}}", 8, "'a'|shape|outside"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[18446744073709551618],\"data_offsets\":[0,8]}}", 8, "'a'|shape|a number"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[\"2\"],\"data_offsets\":[0,8]}}", 8, "'a'|shape|a string"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[[2]],\"data_offsets\":[0,8]}}", 8, "nested deeper"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,2],\"data_offsets\":[0,8]}}", 8, "'a'|at most 8 dimensions"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0, "'a'|overflows"},
    {"{\"a\":{\"dtype\":\"F64\",\"shape\":[2305843009213693952],\"data_offsets\":[0,0]}}", 0, "'a'|overflows"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4611686018427387904,4,0],\"data_offsets\":[0,0]}}", 0, "'a'|overflows"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0]}}", 8, "'a'|data_offsets|the end of an array"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8,9]}}", 8, "'a'|data_offsets|third"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[-1,7]}}", 8, "'a'|data_offsets|negative"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8e0]}}", 8, "'a'|data_offsets|a number"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}", 8, "'a'|END >= BEGIN"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4, "'a'|want 8 bytes|got 4"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}", 12, "'a'|want BEGIN 0|got 4"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,18446744073709551615]}}", 8, "'a'|want 8 bytes"},
    {"{" T_A "}", 7, "want 8 bytes of tensor data|got 7|truncated"},
    {"{" T_A "}", 9, "want 8 bytes of tensor data|got 9|trailing"},
    {"{}", 1, "want 0 bytes of tensor data"},
    {"{" T_A "," T_A "}", 8, "'a'|appears twice"},
    {"{" T_A ",\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8, "'b'|no overlaps"},
    {"{" T_A ",\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[12,16]}}", 16, "'b'|no holes"},
    {"{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "'a'|dtype appears twice"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"strides\":[1],\"data_offsets\":[0,1]}}", 1, "'a'|unknown field 'strides'"},
    {"{\"a\\u0000b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "control character"},
    {"{\"a\\u001b[2J\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "control character 0x1B"},
    {"{\"__metadata__\":{\"format\":1}}", 0, "__metadata__|'format'|want a string, got an integer"},
    {"{\"__metadata__\":{\"format\":null}}", 0, "__metadata__|want a string, got null"},
    {"{\"__metadata__\":[]}", 0, "__metadata__: want an object"},
    {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, "__metadata__ appears twice"},
};

static void test_hostile_headers(void **state) {
    (void)state;
    char *path = scratch_path("bad.safetensors");
    for (size_t i = 0; i < sizeof hostile / sizeof *hostile; i++) {
        write_tensors("bad.safetensors", hostile[i].header, hostile[i].data);
        expect_refused(path, "bad.safetensors");
        expect_refused(path, hostile[i].words);
    }
    memory_free(path);
}

static void test_hostile_lengths(void **state) {
    (void)state;
    static const struct {
        unsigned char bytes[10];
        size_t length;
        const char *words;
    } cases[] = {
        {{0}, 0, "at least 8 bytes|a file of 0"},
        {{2, 0, 0, 0, 0, 0, 0}, 7, "at least 8 bytes|a file of 7"},
        {{0}, 8, "want a value, got the end of the text"},
        {{3, 0, 0, 0, 0, 0, 0, 0, '{', '}'}, 10, "header length|got 3|truncated"},
        {{1, 0xE1, 0xF5, 0x05, 0, 0, 0, 0, '{', '}'}, 10, "header length|100000000|got 100000001"},
        {{0, 0xE1, 0xF5, 0x05, 0, 0, 0, 0, '{', '}'}, 10, "header length|got 100000000|truncated"},
        {{0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, '{', '}'}, 10, "header length|got 18446744073709551615"},
        {{0xF8, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F, '{', '}'}, 10, "header length"},
    };
    char *path = scratch_path("short.safetensors");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        scratch_write("short.safetensors", cases[i].bytes, cases[i].length);
        expect_refused(path, cases[i].words);
    }
    memory_free(path);
}

static void test_long_name_and_many_names(void **state) {
    (void)state;
    Text text = {0};
    text_adds(&text, "{\"");
    for (int i = 0; i < 1025; i++)
        text_adds(&text, "n");
    text_adds(&text, "\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}");
    write_tensors("long.safetensors", text.data, 1);
    char *path = scratch_path("long.safetensors");
    expect_refused(path, "at most 1024 bytes, got 1025");
    text_clear(&text);
    for (int i = 0; i < 5000; i++)
        text_addf(&text, "%s\"t%d\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[%d,%d]}", i ? "," : "{", i, 4999 - i,
                  5000 - i);
    text_adds(&text, "}");
    write_tensors("long.safetensors", text.data, 5000);
    TensorFiles *files = NULL;
    Error err = {0};
    if (tensors_open(&files, path, NULL, &err) != OK) fail_msg("%s", err.text);
    assert_int_equal(tensors_count(files), 5000);
    for (int i = 0; i < 5000; i++) {
        char name[16];
        unsigned char byte = 0;
        (void)snprintf(name, sizeof name, "t%d", i);
        const TensorInfo *tensor = tensors_find(files, name);
        assert_non_null(tensor);
        assert_string_equal(tensor->name, name);
        assert_int_equal(tensors_read(files, tensor, 0, &byte, 1, 0, &err), OK);
        assert_int_equal(byte, (4999 - i) & 0xFF);
    }
    assert_string_equal(tensors_get(files, 0)->name, "t4999"); /* offset order, not header order */
    assert_null(tensors_find(files, "t5000"));
    tensors_close(files);
    text_free(&text);
    memory_free(path);
}

static void test_accepts_odd_but_legal(void **state) {
    (void)state;
    /* White space around, a scalar, empty tensors at the same offset as others, odd alignment, escapes in names, metadata. */
    static const char header[] =
        " \n{\"__metadata__\":{\"k\":\"v\",\"k\":\"w\",\"x\":\"\"},"
        "\"z\":{\"data_offsets\":[1,5],\"shape\":[],\"dtype\":\"F32\"},"
        "\"e\":{\"dtype\":\"F64\",\"shape\":[3,0],\"data_offsets\":[1,1]},"
        "\"by\\u0074e\":{\"dtype\":\"U8\",\"shape\":[1,1],\"data_offsets\":[0,1]}}  ";
    write_tensors("odd.safetensors", header, 5);
    char *path = scratch_path("odd.safetensors");
    TensorFiles *files = NULL;
    Error err = {0};
    if (tensors_open(&files, path, NULL, &err) != OK) fail_msg("%s", err.text);
    assert_int_equal(tensors_count(files), 3);
    assert_string_equal(tensors_get(files, 0)->name, "byte");
    assert_string_equal(tensors_get(files, 1)->name, "e");
    const TensorInfo *z = tensors_find(files, "z");
    assert_int_equal(z->ndim, 0);
    assert_int_equal(z->bytes, 4);
    unsigned char data[4] = {0};
    assert_int_equal(tensors_read(files, z, 0, data, 4, 1, &err), OK);
    assert_memory_equal(data, "\1\2\3\4", 4);
    assert_int_equal(tensors_read(files, z, 3, data, 1, 1, &err), OK);
    assert_int_equal(data[0], 4);
    assert_int_equal(tensors_read(files, z, 1, data, 4, 0, &err), ERR_FAILED);
    assert_non_null(strstr(err.text, "'z'"));
    assert_int_equal(tensors_read(files, z, UINT64_MAX, data, 4, 0, &err), ERR_FAILED);
    assert_string_equal(tensors_metadata(files, "k"), "w");
    assert_string_equal(tensors_metadata(files, "x"), "");
    assert_null(tensors_metadata(files, "nothing"));
    tensors_close(files);
    memory_free(path);
}

/* ---- shards -------------------------------------------------------------------------------------------------------- */

static void test_hostile_index(void **state) {
    (void)state;
    static const struct {
        const char *index, *words;
    } cases[] = {
        {"", "want a value, got the end of the text"},
        {"{}", "weight_map is missing"},
        {"{\"weight_map\":{}}", "weight_map is empty"},
        {"{\"weight_map\":[]}", "weight_map: want an object"},
        {"{\"weight_map\":{\"a\":1}}", "a: want a string"},
        {"{\"weight_map\":{\"a\":\"../one.safetensors\"}}", "'a'|plain file name|../one"},
        {"{\"weight_map\":{\"a\":\"/etc/passwd\"}}", "'a'|plain file name|/etc/passwd"},
        {"{\"weight_map\":{\"a\":\"x\\\\one.safetensors\"}}", "'a'|plain file name"},
        {"{\"weight_map\":{\"a\":\"..\"}}", "'a'|plain file name"},
        {"{\"weight_map\":{\"a\":\"\"}}", "'a'|plain file name"},
        {"{\"weight_map\":{\"a\":\"one.safetensors\\u0000x\"}}", "'a'|plain file name"},
        {"{\"weight_map\":{\"a\":\"gone.safetensors\"}}", "'a'|gone.safetensors"},
        {"{\"weight_map\":{\"a\":\"one.safetensors\",\"q\":\"one.safetensors\"}}", "'q'|is not in|one.safetensors"},
        {"{\"weight_map\":{\"a\":\"one.safetensors\",\"a\":\"one.safetensors\"}}", "'a' appears twice"},
        {"{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"again.safetensors\"}}", "'a' is also in"},
        {"{\"weight_map\":{\"b\":\"one.safetensors\",\"a\":\"two.safetensors\"}}", "'b'|is not in|one.safetensors"},
        {"{\"weight_map\":{\"c\":\"one.safetensors\",\"a\":\"two.safetensors\"}}", "'c'|want it in|one.safetensors|two"},
        {"{\"weight_map\":{\"a\":\"bad.safetensors\"}}", "'a'|bad.safetensors|at least 8 bytes"},
        {"{\"weight_map\":{\"a\":\"one.safetensors\"},\"weight_map\":{}}", "weight_map appears twice"},
        {"{\"weight_map\":{\"a\":\"one.safetensors\"}}]", "want nothing after"},
    };
    Error err = {0};
    char *model = scratch_path("sharded"), *index = scratch_path("sharded/model.safetensors.index.json");
    assert_int_equal(folder_create(model, &err), OK);
    expect_refused(model, "neither");
    write_tensors("sharded/one.safetensors", "{" T_A "}", 8);
    write_tensors("sharded/again.safetensors", "{" T_A "}", 8);
    write_tensors("sharded/two.safetensors", "{\"c\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8);
    scratch_write("sharded/bad.safetensors", "", 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        scratch_write("sharded/model.safetensors.index.json", cases[i].index, strlen(cases[i].index));
        expect_refused(model, cases[i].words);
    }
    memory_free(model);
    memory_free(index);
}

static void test_missing_path_is_named(void **state) {
    (void)state;
    char *path = scratch_path("nowhere.safetensors");
    expect_refused(path, "nowhere.safetensors");
    memory_free(path);
}

/* ---- writing ------------------------------------------------------------------------------------------------------- */

typedef struct Source {
    int pieces;      /* how many calls of tensor_write_bytes per tensor */
    int extra;       /* bytes too many (or, when negative, too few) for the tensor named "b" */
    char order[256]; /* names as they were asked for */
} Source;

/* Byte i of tensor NAME is NAME[0] + i. */
static Status produce(void *context, const TensorSpec *spec, TensorWriter *writer, Error *err) {
    Source *source = context;
    (void)strncat(source->order, spec->name, sizeof source->order - strlen(source->order) - 1);
    int64_t bytes = (int64_t)dtype_size(spec->dtype);
    for (int i = 0; i < spec->ndim; i++)
        bytes *= spec->shape[i];
    if (strcmp(spec->name, "b") == 0) bytes += source->extra;
    for (int64_t i = 0, step = 1 + bytes / source->pieces; i < bytes; i += step) {
        unsigned char block[256];
        int64_t n = bytes - i < step ? bytes - i : step;
        assert_true(n <= 256);
        for (int64_t k = 0; k < n; k++)
            block[k] = (unsigned char)(spec->name[0] + i + k);
        TRY(tensor_write_bytes(writer, block, (size_t)n, err));
    }
    return OK;
}

static const TensorSpec specs[] = {
    {"b", DTYPE_BF16, 2, {3, 5}}, {"a", DTYPE_BF16, 1, {7}}, {"u", DTYPE_U8, 1, {5}},
    {"f", DTYPE_F32, 2, {4, 2}},  {"s", DTYPE_I64, 0, {0}},  {"e", DTYPE_F32, 2, {0, 9}},
};
#define SPECS ((int64_t)(sizeof specs / sizeof *specs))

static void check_written(const TensorFiles *files) {
    Error err = {0};
    assert_int_equal(tensors_count(files), SPECS);
    for (int64_t t = 0; t < SPECS; t++) {
        const TensorInfo *tensor = tensors_find(files, specs[t].name);
        assert_non_null(tensor);
        assert_int_equal(tensor->dtype, specs[t].dtype);
        assert_int_equal(tensor->ndim, specs[t].ndim);
        for (int i = 0; i < tensor->ndim; i++)
            assert_int_equal(tensor->shape[i], specs[t].shape[i]);
        assert_int_equal(tensor->offset % dtype_size(tensor->dtype), 0); /* the order makes every tensor aligned */
        unsigned char data[64];
        assert_int_equal(tensors_read(files, tensor, 0, data, (size_t)tensor->bytes, 0, &err), OK);
        for (uint64_t i = 0; i < tensor->bytes; i++)
            assert_int_equal(data[i], (specs[t].name[0] + (int)i) & 0xFF);
    }
}

static void test_write_one_file(void **state) {
    (void)state;
    static const char *const metadata[] = {"who", "a \"test\"\n", NULL};
    Source source = {.pieces = 3};
    Error err = {0};
    char *path = scratch_path("out.safetensors");
    if (tensors_write(path, specs, SPECS, metadata, produce, &source, &err) != OK) fail_msg("%s", err.text);
    assert_string_equal(source.order, "sefabu"); /* I64, F32 by name, BF16 by name, U8 */
    char *bytes = NULL;
    size_t length = 0;
    assert_int_equal(file_read(path, 4096, &bytes, &length, &err), OK);
    assert_int_equal(bytes[0] % 8, 0); /* the data starts on a multiple of 8 */
    assert_memory_equal(bytes + 8, "{\"__metadata__\":{\"format\":\"pt\"", 30);
    memory_free(bytes);
    TensorFiles *files = NULL;
    if (tensors_open(&files, path, NULL, &err) != OK) fail_msg("%s", err.text);
    check_written(files);
    assert_string_equal(tensors_metadata(files, "format"), "pt");
    assert_string_equal(tensors_metadata(files, "who"), "a \"test\"\n");
    tensors_close(files);
    memory_free(path);
}

static void test_failed_write_leaves_nothing(void **state) {
    (void)state;
    static const TensorSpec twice[] = {{"a", DTYPE_U8, 1, {1}}, {"a", DTYPE_F32, 1, {1}}};
    static const TensorSpec huge[] = {{"a", DTYPE_F32, 2, {INT64_MAX, 2}}};
    static const TensorSpec named[] = {{"__metadata__", DTYPE_U8, 1, {1}}};
    static const char *const format[] = {"format", "tf", NULL};
    Error err = {0};
    char *path = scratch_path("never.safetensors");
    for (int extra = -1; extra <= 1; extra += 2) {
        Source source = {.pieces = 2, .extra = extra};
        assert_int_equal(tensors_write(path, specs, SPECS, NULL, produce, &source, &err), ERR_FAILED);
        assert_non_null(strstr(err.text, "tensor 'b': want 30 bytes"));
    }
    Source source = {.pieces = 1};
    assert_int_equal(tensors_write(path, twice, 2, NULL, produce, &source, &err), ERR_FAILED);
    assert_non_null(strstr(err.text, "'a' is to be written twice"));
    assert_int_equal(tensors_write(path, huge, 1, NULL, produce, &source, &err), ERR_FAILED);
    assert_non_null(strstr(err.text, "too large"));
    assert_int_equal(tensors_write(path, named, 1, NULL, produce, &source, &err), ERR_FAILED);
    assert_int_equal(tensors_write(path, specs, SPECS, format, produce, &source, &err), ERR_FAILED);
    assert_non_null(strstr(err.text, "'format'"));
    assert_false(file_exists(path));
    memory_free(path);
}

static void test_write_sharded(void **state) {
    (void)state;
    Source source = {.pieces = 1};
    Error err = {0};
    char *model = scratch_path("written"), *index = scratch_path("written/model.safetensors.index.json");
    assert_int_equal(folder_create(model, &err), OK);
    /* Bytes in order: b 30, a 14, u 5, f 32, s 8, e 0. Limit 20: b alone, a + u, f alone, s + e. The index numbers them. */
    if (tensors_write_sharded(model, NULL, 20, specs, SPECS, produce, &source, &err) != OK) fail_msg("%s", err.text);
    char *text = NULL;
    size_t length = 0;
    assert_int_equal(file_read(index, 4096, &text, &length, &err), OK);
    assert_string_equal(
        text,
        "{\n  \"metadata\": {\n    \"total_parameters\": 36,\n    \"total_size\": 89\n  },\n  \"weight_map\": {\n"
        "    \"a\": \"model-00002-of-00004.safetensors\",\n"
        "    \"b\": \"model-00001-of-00004.safetensors\",\n"
        "    \"e\": \"model-00004-of-00004.safetensors\",\n"
        "    \"f\": \"model-00003-of-00004.safetensors\",\n"
        "    \"s\": \"model-00004-of-00004.safetensors\",\n"
        "    \"u\": \"model-00002-of-00004.safetensors\"\n  }\n}\n");
    memory_free(text);
    TensorFiles *files = NULL;
    if (tensors_open(&files, model, NULL, &err) != OK) fail_msg("%s", err.text);
    check_written(files);
    const char *first = tensors_file_name(files, tensors_find(files, "b")->file);
    assert_non_null(strstr(first, "written/model-00001-of-00004.safetensors"));
    tensors_close(files);
    memory_free(model);
    memory_free(index);
}

static void test_one_shard_needs_no_index(void **state) {
    (void)state;
    Source source = {.pieces = 1};
    Error err = {0};
    char *model = scratch_path("single"), *index = scratch_path("single/adapter_model.safetensors.index.json");
    assert_int_equal(folder_create(model, &err), OK);
    assert_int_equal(tensors_write_sharded(model, "adapter_model", 89, specs, SPECS, produce, &source, &err), OK);
    assert_false(file_exists(index));
    TensorFiles *files = NULL;
    if (tensors_open(&files, model, "adapter_model", &err) != OK) fail_msg("%s", err.text);
    check_written(files);
    tensors_close(files);
    expect_refused(model, "model.safetensors|neither");
    memory_free(model);
    memory_free(index);
}

/* ---- real files ---------------------------------------------------------------------------------------------------- */

static void test_real_models(void **state) {
    (void)state;
    static const struct {
        const char *path, *stem, *tensor;
        DType dtype;
        int64_t rows, columns, elements; /* elements of the whole file, 0: not compared */
    } cases[] = {
        /* Elements: the parameter counts in the assets' README. */
        {"../shared/assets/models/stories260K/hf", NULL, "model.embed_tokens.weight", DTYPE_F32, 512, 64, 260032},
        {"../shared/assets/models/stories260K/hf-bf16", NULL, "model.embed_tokens.weight", DTYPE_BF16, 512, 64, 260032},
        {"../shared/assets/models/stories3M/hf", NULL, "model.layers.5.mlp.down_proj.weight", DTYPE_F32, 192, 512, 3148224},
        {"../shared/assets/models/lora-adapter-qwen2.5-0.5b", "adapter_model",
         "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", DTYPE_F32, 0, 896, 0},
    };
    int found = 0;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (!file_exists(cases[i].path)) continue;
        found++;
        TensorFiles *files = NULL;
        Error err = {0};
        if (tensors_open(&files, cases[i].path, cases[i].stem, &err) != OK) fail_msg("%s", err.text);
        const TensorInfo *tensor = tensors_find(files, cases[i].tensor);
        assert_non_null(tensor);
        assert_int_equal(tensor->dtype, cases[i].dtype);
        assert_int_equal(tensor->ndim, 2);
        if (cases[i].rows > 0) assert_int_equal(tensor->shape[0], cases[i].rows);
        assert_int_equal(tensor->shape[1], cases[i].columns);
        int64_t elements = 0;
        for (int64_t t = 0; t < tensors_count(files); t++)
            elements += (int64_t)(tensors_get(files, t)->bytes / dtype_size(tensors_get(files, t)->dtype));
        if (cases[i].elements > 0) assert_int_equal(elements, cases[i].elements);
        unsigned char *data = memory_alloc((size_t)tensor->bytes);
        assert_int_equal(tensors_read(files, tensor, 0, data, (size_t)tensor->bytes, 1, &err), OK);
        memory_free(data);
        tensors_close(files);
    }
    if (found == 0) {
        print_message("skipped: ../shared/assets/models is not there\n");
        skip();
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hostile_headers),
        cmocka_unit_test(test_hostile_lengths),
        cmocka_unit_test(test_long_name_and_many_names),
        cmocka_unit_test(test_accepts_odd_but_legal),
        cmocka_unit_test(test_hostile_index),
        cmocka_unit_test(test_missing_path_is_named),
        cmocka_unit_test(test_write_one_file),
        cmocka_unit_test(test_failed_write_leaves_nothing),
        cmocka_unit_test(test_write_sharded),
        cmocka_unit_test(test_one_shard_needs_no_index),
        cmocka_unit_test(test_real_models),
    };
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
