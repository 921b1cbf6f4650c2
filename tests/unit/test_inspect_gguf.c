/* nibble inspect on a GGUF file: for people, and as JSON that a parser takes. */
#include "tests/unit/test_core.h"

#include <cjson/cJSON.h>

#include "core/memory.h"
#include "data/gguf.h"
#include "tests/support/compare.h"
#include "tests/support/scratch.h"
#include "train/inspect.h"

static Status produce(void *context, const GgufTensor *tensor, GgufWriter *writer, Error *err) {
    (void)context;
    uint8_t zeros[512] = {0};
    return gguf_write_bytes(writer, zeros, (size_t)tensor->bytes, err);
}

static char *write_sample(void) {
    Error err = {0};
    char *path = scratch_path("sample.gguf");
    int32_t kinds[9] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
    GgufWriter *w = gguf_writer_create(path);
    assert_ok(gguf_put_text(w, "general.name", "a \"name\"\x1b[2J", &err), &err);
    assert_ok(gguf_put_u32(w, "general.quantization_version", 2, &err), &err);
    assert_ok(gguf_put_array(w, "kinds", GGUF_I32, kinds, 9, &err), &err);
    assert_ok(gguf_add_tensor(w, "q", GGML_Q4_K, 2, (const int64_t[]){256, 2}, &err), &err);
    assert_ok(gguf_add_tensor(w, "n", GGML_F32, 1, (const int64_t[]){4}, &err), &err);
    assert_ok(gguf_writer_write(w, produce, NULL, &err), &err);
    gguf_writer_free(w);
    return path;
}

static void test_text(void **state) {
    (void)state;
    Error err = {0};
    char *path = write_sample();
    InspectOutput out = {.all_tensors = 1};
    assert_ok(inspect_path(&out, path, &err), &err);
    assert_non_null(strstr(out.text.data, "gguf"));
    assert_non_null(strstr(out.text.data, "[1, 2, 3, 4, 5, ... 9 in all]"));
    assert_non_null(strstr(out.text.data, "\"a \\\"name\\\"\\u001b[2J\"")); /* nothing reaches the terminal raw */
    assert_null(strchr(out.text.data, 0x1b));
    assert_non_null(strstr(out.text.data, "Q4_K    [2, 256]"));
    text_free(&out.text);
    memory_free(path);
}

static void test_json(void **state) {
    (void)state;
    Error err = {0};
    char *path = write_sample();
    InspectOutput out = {.json = 1};
    text_adds(&out.text, "{");
    assert_ok(inspect_path(&out, path, &err), &err);
    text_adds(&out.text, "}");
    cJSON *json = cJSON_Parse(out.text.data);
    assert_non_null(json);
    assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItem(json, "metadata")), 3);
    assert_true(cJSON_GetNumberValue(cJSON_GetObjectItem(json, "bytes")) == 2 * 144 + 16);
    const cJSON *type = cJSON_GetObjectItem(cJSON_GetObjectItem(json, "types"), "Q4_K");
    assert_true(cJSON_GetNumberValue(cJSON_GetObjectItem(type, "tensors")) == 1);
    assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItem(json, "largest")), 2);
    cJSON_Delete(json);
    text_free(&out.text);
    memory_free(path);
}

static void test_refused(void **state) {
    (void)state;
    Error err = {0};
    char *path = scratch_path("bad.gguf");
    InspectOutput out = {0};
    scratch_write("bad.gguf", "GGUF\3\0\0\0", 8);
    assert_refused(inspect_path(&out, path, &err), &err, "the number of tensors");
    text_free(&out.text);
    memory_free(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_text), cmocka_unit_test(test_json),
                                       cmocka_unit_test(test_refused)};
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
