/* What ggml_blocks.py runs: quant/ggml.h on files of raw numbers.
 *
 *   ggml_tool quantize TYPE ROWS COLS FLOATS OUT THREADS [IMPORTANCE]
 *   ggml_tool dequantize TYPE ROWS COLS BLOCKS OUT THREADS
 *
 * FLOATS and IMPORTANCE are FP32 as they lie in memory.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/memory.h"
#include "quant/ggml.h"

#define INPUT_MAX ((size_t)1 << 31)

static Status read_exactly(const char *path, int64_t bytes, char **out, Error *err) {
    size_t length;
    TRY(file_read(path, INPUT_MAX, out, &length, err));
    if ((int64_t)length != bytes) FAIL("%s: want %lld bytes, got %zu", path, (long long)bytes, length);
    return OK;
}

static Status convert(char **argv, int has_importance, Error *err) {
    const GgmlTypeInfo *info = ggml_type_named(argv[2]);
    int64_t rows = atoll(argv[3]), cols = atoll(argv[4]), block_bytes;
    int quantizes = strcmp(argv[1], "quantize") == 0;
    if (info == NULL) FAIL("%s: no such type", argv[2]);
    TRY(ggml_bytes(info->type, rows, cols, &block_bytes, err));
    int64_t float_bytes = rows * cols * (int64_t)sizeof(float);
    char *in = NULL, *importance = NULL, *out = memory_alloc((size_t)(quantizes ? block_bytes : float_bytes));
    Pool *pool = NULL;
    Status status;
    TRY_GOTO(pool_create(&pool, atoi(argv[7]), err));
    TRY_GOTO(read_exactly(argv[5], quantizes ? float_bytes : block_bytes, &in, err));
    if (has_importance) TRY_GOTO(read_exactly(argv[8], cols * (int64_t)sizeof(float), &importance, err));
    if (quantizes)
        TRY_GOTO(ggml_quantize(info->type, (const float *)in, rows, cols, (const float *)importance, out, pool, err));
    else
        TRY_GOTO(ggml_dequantize(info->type, in, rows, cols, (float *)out, pool, err));
    TRY_GOTO(file_write_atomic(argv[6], out, (size_t)(quantizes ? block_bytes : float_bytes), err));
done:
    pool_free(pool);
    memory_free(importance);
    memory_free(in);
    memory_free(out);
    return status;
}

int main(int argc, char **argv) {
    Error err = {0};
    int known = argc >= 8 && argc <= 9 && (strcmp(argv[1], "quantize") == 0 || strcmp(argv[1], "dequantize") == 0);
    if (!known) {
        (void)fprintf(stderr, "usage: see the top of tests/peers/ggml_tool.c\n");
        return 2;
    }
    if (convert(argv, argc == 9, &err) == OK) return 0;
    (void)fprintf(stderr, "%s\n", err.text);
    return 1;
}
