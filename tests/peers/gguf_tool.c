/* What gguf_files.py runs: data/gguf.h on whole files.
 *
 *   gguf_tool list FILE     every key and tensor as lines of JSON; a tensor with the XXH3 (64 bits) of its data
 *   gguf_tool write FILE    keys of every type and a tensor of every type that can be quantized, [3, 256], x_i = sin(i) * i / 700
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/file.h"
#include "core/hash.h"
#include "core/memory.h"
#include "data/gguf.h"

#define ROWS 3
#define COLS 256

static void list_value(const GgufValue *value, Text *out) {
    text_clear(out);
    text_addf(out, "{\"key\": ");
    text_add_json_string(out, value->key, strlen(value->key));
    text_addf(out, ", \"type\": \"%s\", \"is_array\": %s, \"items\": [", gguf_type_name(value->type),
              value->is_array ? "true" : "false");
    for (uint64_t i = 0; i < value->count; i++) {
        if (i > 0) text_adds(out, ", ");
        gguf_item_text(value, i, SIZE_MAX, out);
    }
    (void)printf("%s]}\n", out->data);
}

static Status list_tensor(const GgufFile *file, const GgufTensor *tensor, Error *err) {
    uint8_t *bytes = memory_alloc((size_t)tensor->bytes);
    Status status = gguf_read(file, tensor, 0, bytes, (size_t)tensor->bytes, 1, err);
    if (status == OK)
        (void)printf(
            "{\"tensor\": \"%s\", \"type\": \"%s\", \"shape\": [%lld, %lld, %lld, %lld], \"ndim\": %d, \"hash\": "
            "\"%016llx\"}\n",
            tensor->name, tensor->type->name, (long long)tensor->ne[0], (long long)tensor->ne[1], (long long)tensor->ne[2],
            (long long)tensor->ne[3], tensor->ndim, (unsigned long long)hash_bytes(bytes, (size_t)tensor->bytes));
    memory_free(bytes);
    return status;
}

static Status list(const char *path, Error *err) {
    GgufFile *file;
    Text text = {0};
    TRY(gguf_open(&file, path, err));
    for (int64_t i = 0; i < gguf_value_count(file); i++)
        list_value(gguf_value(file, i), &text);
    Status status = OK;
    for (int64_t i = 0; i < gguf_tensor_count(file) && status == OK; i++)
        status = list_tensor(file, gguf_tensor(file, i), err);
    text_free(&text);
    gguf_close(file);
    return status;
}

/* ---- writing --------------------------------------------------------------------------------------------------------------- */

static Status produce(void *context, const GgufTensor *tensor, GgufWriter *writer, Error *err) {
    (void)context;
    float x[ROWS * COLS];
    uint8_t blocks[sizeof x];
    for (int i = 0; i < ROWS * COLS; i++)
        x[i] = (float)(sin(i) * i / 700.0);
    TRY(ggml_quantize(tensor->type->type, x, ROWS, COLS, NULL, blocks, NULL, err));
    return gguf_write_bytes(writer, blocks, (size_t)tensor->bytes, err);
}

static Status declare(GgufWriter *writer, Error *err) {
    static const GgufType types[] = {GGUF_U8,  GGUF_I8,  GGUF_U16, GGUF_I16, GGUF_U32, GGUF_I32,
                                     GGUF_F32, GGUF_U64, GGUF_I64, GGUF_F64, GGUF_BOOL};
    static const double numbers[2] = {0.1, -3.7}; /* their bytes: what each type makes of them */
    static const uint8_t truths[2] = {1, 0};
    static const GgufString strings[3] = {{"one", 3}, {"", 0}, {"\xe2\x96\x81 two\n", 8}};
    TRY(gguf_put_text(writer, "general.architecture", "llama", err));
    TRY(gguf_put_u32(writer, "general.quantization_version", 2, err));
    TRY(gguf_put_u32(writer, "general.alignment", 64, err));
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        char key[32];
        const void *items = types[i] == GGUF_BOOL ? (const void *)truths : (const void *)numbers;
        (void)snprintf(key, sizeof key, "one.%s", gguf_type_name(types[i]));
        TRY(gguf_put(writer, key, types[i], items, err));
        (void)snprintf(key, sizeof key, "many.%s", gguf_type_name(types[i]));
        TRY(gguf_put_array(writer, key, types[i], items, 2, err));
    }
    TRY(gguf_put_array(writer, "many.string", GGUF_STRING, strings, 3, err));
    for (uint32_t type = 0; type < 64; type++) {
        const GgmlTypeInfo *info = ggml_type_info(type);
        char name[32];
        if (info == NULL || !info->is_codec) continue;
        (void)snprintf(name, sizeof name, "blk.0.%s.weight", info->name);
        TRY(gguf_add_tensor(writer, name, type, 2, (const int64_t[]){COLS, ROWS}, err));
    }
    return OK;
}

static Status write_sample(const char *path, Error *err) {
    GgufWriter *writer = gguf_writer_create(path);
    Status status = declare(writer, err);
    if (status == OK) status = gguf_writer_write(writer, produce, NULL, err);
    gguf_writer_free(writer);
    return status;
}

int main(int argc, char **argv) {
    Error err = {0};
    if (argc != 3 || (strcmp(argv[1], "list") != 0 && strcmp(argv[1], "write") != 0)) {
        (void)fprintf(stderr, "usage: see the top of tests/peers/gguf_tool.c\n");
        return 2;
    }
    Status status = strcmp(argv[1], "list") == 0 ? list(argv[2], &err) : write_sample(argv[2], &err);
    if (status == OK) return 0;
    (void)fprintf(stderr, "%s\n", err.text);
    return 1;
}
