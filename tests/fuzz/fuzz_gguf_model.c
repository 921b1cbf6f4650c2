/* A whole GGUF file as MODEL: what nibble does with one before it computes. The config that stands for its metadata, the tensors
 * under their names with their rows in order, the tokenizer and the files that an export would write of it, the weights. And as an adapter.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/memory.h"
#include "data/gguf_model.h"
#include "data/tokenizer.h"
#include "tests/support/model_folder.h"
#include "train/adapter.h"
#include "train/weights.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Every tensor by halves, which is as a whole. */
static void read_tensors(const TensorFiles *files, uint64_t most) {
    Error err;
    uint64_t total = 0;
    for (int64_t i = 0; i < tensors_count(files); i++) {
        const TensorInfo *tensor = tensors_get(files, i);
        size_t bytes = (size_t)tensor->bytes, half = bytes / 2;
        if (tensors_find(files, tensor->name) != tensor) abort();
        total += tensor->bytes;
        if (total > most) abort();
        uint8_t *whole = memory_alloc(2 * bytes), *parts = whole + bytes;
        if (tensors_read(files, tensor, 0, whole, bytes, 0, &err) != OK) abort();
        if (tensors_read(files, tensor, 0, parts, half, 0, &err) != OK) abort();
        if (tensors_read(files, tensor, half, parts + half, bytes - half, 0, &err) != OK) abort();
        if (memcmp(whole, parts, bytes) != 0) abort();
        memory_free(whole);
    }
}

/* The text that an export writes as config.json means the same config. */
static void check_config(const char *path, const ModelConfig *config) {
    Error err;
    GgufFile *file;
    Text text = {0};
    ModelConfig *again = memory_alloc(sizeof *again);
    if (gguf_open(&file, path, &err) != OK || gguf_config_text(file, &text, &err) != OK) abort();
    if (model_config_parse("config", text.data, text.length, again, &err) != OK) abort();
    if (again->hidden != config->hidden || again->rope.theta != config->rope.theta) abort();
    gguf_close(file);
    text_free(&text);
    memory_free(again);
}

static void load(const char *path, const ModelConfig *config, WeightFormat linear) {
    Error err;
    Backend backend;
    ModelWeights *weights;
    WeightOptions options = {.act = DTYPE_F32, .linear = linear, .block_size = 64};
    WeightBytes plan;
    cpu_backend_reference(&backend);
    if (weights_load(&weights, path, config, &options, &backend, NULL, &err) != OK) return;
    if (weights_plan(config, &options, config->dtype, &plan, &err) != OK || plan.arena != weights_bytes(weights)) abort();
    for (int32_t id = 0; id < weight_count(config); id++) {
        WeightView view = weights_view(weights, id);
        float value;
        if (view.rows == 0) continue;
        backend.dequantize(&view, view.rows * view.cols - 1, 1, &value, DTYPE_F32);
        if (!(value - value == 0.0f)) abort(); /* NaN and Inf were to be refused */
    }
    weights_free(weights);
}

static void tokenize(const char *path) {
    Error err;
    Tokenizer *tokenizer;
    GgufFile *file;
    GgufTokenizerFiles files;
    if (tokenizer_open(&tokenizer, path, &err) == OK) {
        TokenBuffer ids = {0};
        (void)tokenizer_encode(tokenizer, "a b  c1\n", 8, 1, 1, &ids, &err);
        token_buffer_free(&ids);
        tokenizer_close(tokenizer);
    }
    if (gguf_open(&file, path, &err) != OK) return;
    (void)gguf_tokenizer_files(file, &files, &err);
    gguf_tokenizer_files_free(&files);
    gguf_close(file);
}

/* As an adapter of a small model. */
static void adapt(const char *path) {
    static const char text[] = TINY_CONFIG("llama", "");
    Error err;
    Adapter adapter = {0};
    ParamSet params = {0};
    ModelConfig *model = memory_alloc(sizeof *model);
    if (model_config_parse("config", text, sizeof text - 1, model, &err) != OK) abort();
    if (gguf_is_file(path) && adapter_read(&adapter, &params, path, model, &err) == OK) {
        float *values = memory_calloc((size_t)params.elements, sizeof *values);
        (void)adapter_read_values(&adapter, &params, path, model, values, &err);
        memory_free(values);
    }
    adapter_free(&adapter);
    params_free(&params);
    memory_free(model);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    int fd = memfd_create("fuzz", 0);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size) abort();
    char path[64];
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    ModelConfig *config = memory_alloc(sizeof *config);
    TensorFiles *files;
    Error err;
    if (gguf_is_file(path) && model_config_read(path, config, &err) == OK) {
        check_config(path, config);
        if (tensors_open(&files, path, NULL, &err) == OK) {
            read_tensors(files, size);
            tensors_close(files);
            load(path, config, WEIGHT_F32);
            load(path, config, WEIGHT_NF4);
        }
    }
    tokenize(path);
    adapt(path);
    memory_free(config);
    (void)close(fd);
    return 0;
}
