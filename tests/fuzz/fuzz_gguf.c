/* A whole GGUF file: its header is parsed and, where it is accepted, every value is printed, every tensor is read, and those of
 * the types that can be decoded are decoded and quantized again; its tokenizer is looked for.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/memory.h"
#include "data/gguf_vocab.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define DECODED_MAX 65536

static void print_values(const GgufFile *file) {
    for (int64_t i = 0; i < gguf_value_count(file); i++) {
        const GgufValue *value = gguf_value(file, i);
        Text text = {0};
        if (gguf_find(file, value->key) != value) abort();
        for (uint64_t k = 0; k < value->count; k++) {
            text_clear(&text);
            gguf_item_text(value, k, 40, &text);
        }
        text_free(&text);
    }
}

static void decode(const GgufTensor *tensor, const uint8_t *bytes) {
    Error err;
    int64_t cols = tensor->ne[0], rows = tensor->ne[1] * tensor->ne[2] * tensor->ne[3];
    if (!tensor->type->is_codec || cols == 0 || rows == 0 || cols > DECODED_MAX / rows) return;
    float *x = memory_alloc((size_t)(rows * cols) * sizeof *x);
    uint8_t *again = memory_alloc((size_t)tensor->bytes);
    if (ggml_dequantize(tensor->type->type, bytes, rows, cols, x, NULL, &err) != OK) abort();
    (void)ggml_quantize(tensor->type->type, x, rows, cols, NULL, again, NULL, &err);
    memory_free(again);
    memory_free(x);
}

static void read_tensors(const GgufFile *file, uint64_t most) {
    Error err;
    uint64_t total = 0;
    for (int64_t i = 0; i < gguf_tensor_count(file); i++) {
        const GgufTensor *tensor = gguf_tensor(file, i);
        if (gguf_tensor_find(file, tensor->name) != tensor) abort();
        total += tensor->bytes;
        if (total > most) abort();
        uint8_t *out = memory_alloc((size_t)tensor->bytes);
        if (gguf_read(file, tensor, 0, out, (size_t)tensor->bytes, 0, &err) != OK) abort();
        decode(tensor, out);
        memory_free(out);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    int fd = memfd_create("fuzz", 0);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size) abort();
    char path[64];
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    GgufFile *file;
    Error err;
    if (gguf_open(&file, path, &err) == OK) {
        GgufVocab vocab;
        print_values(file);
        (void)gguf_vocab_read(file, &vocab, &err);
        read_tensors(file, size);
        gguf_close(file);
    }
    (void)close(fd);
    return 0;
}
