#include "tests/support/model_folder.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/file.h"
#include "core/memory.h"
#include "core/philox.h"
#include "data/safetensors.h"
#include "tests/support/compare.h"
#include "train/weights.h"

float *model_folder_values(const ModelConfig *config, int32_t weight, DType dtype) {
    char name[192];
    int64_t rows, cols;
    assert_true(weight_describe(config, weight, name, sizeof name, &rows, &cols));
    float *values = memory_alloc((size_t)(rows * cols) * sizeof(float));
    for (int64_t i = 0; i < rows * cols; i++) {
        float x = (random_uniform(1, RANDOM_TEST, (uint64_t)weight, (uint64_t)i) - 0.5f) * 0.2f;
        values[i] = dtype == DTYPE_BF16 ? bf16_round(x) : dtype == DTYPE_F16 ? f16_to_float(f16_from_float(x)) : x;
    }
    return values;
}

typedef struct Source {
    const ModelConfig *config;
    DType dtype;
    TensorSpec *specs;
    int32_t *ids;
} Source;

static Status produce_random(void *context, const TensorSpec *spec, TensorWriter *writer, Error *err) {
    const Source *source = context;
    int64_t count = spec->shape[0] * (spec->ndim == 2 ? spec->shape[1] : 1);
    float *values = model_folder_values(source->config, source->ids[spec - source->specs], source->dtype);
    size_t bytes = (size_t)count * dtype_size(source->dtype);
    void *stored = memory_alloc(bytes);
    dtype_convert(stored, source->dtype, values, DTYPE_F32, count);
    Status status = tensor_write_bytes(writer, stored, bytes, err);
    memory_free(stored);
    memory_free(values);
    return status;
}

void model_folder_write(const char *folder, const char *config_json, DType dtype) {
    Error err = {0};
    ModelConfig config;
    assert_ok(folder_create(folder, &err), &err);
    char *path = path_join(folder, "config.json");
    assert_ok(file_write_atomic(path, config_json, strlen(config_json), &err), &err);
    memory_free(path);
    assert_ok(model_config_read(folder, &config, &err), &err);
    int32_t count = weight_count(&config);
    int64_t specs = 0;
    Source source = {.config = &config, .dtype = dtype};
    source.specs = memory_calloc((size_t)count, sizeof *source.specs);
    source.ids = memory_calloc((size_t)count, sizeof *source.ids);
    char(*names)[192] = memory_calloc((size_t)count, sizeof *names);
    for (int32_t id = 0; id < count; id++) {
        int64_t rows, cols;
        if (!weight_describe(&config, id, names[specs], sizeof names[specs], &rows, &cols)) continue;
        int is_vector = rows == 1;
        source.specs[specs] = (TensorSpec){.name = names[specs], .dtype = dtype, .ndim = is_vector ? 1 : 2};
        source.specs[specs].shape[0] = is_vector ? cols : rows;
        source.specs[specs].shape[1] = is_vector ? 0 : cols;
        source.ids[specs++] = id;
    }
    assert_ok(tensors_write_sharded(folder, NULL, 5000000000u, source.specs, specs, produce_random, &source, &err), &err);
    memory_free(names);
    memory_free(source.ids);
    memory_free(source.specs);
}

typedef struct Copy {
    const TensorFiles *files;
    const Mutation *mutation;
} Copy;

static int is_target(const char *name, const Mutation *mutation) {
    if (mutation->change == CHANGE_NOTHING || mutation->change == CHANGE_ADD) return 0;
    size_t n = strlen(name), s = strlen(mutation->tensor);
    return n >= s && strcmp(name + n - s, mutation->tensor) == 0;
}

static Status produce_copy(void *context, const TensorSpec *spec, TensorWriter *writer, Error *err) {
    const Copy *copy = context;
    const Mutation *mutation = copy->mutation;
    const TensorInfo *tensor = tensors_find(copy->files, spec->name);
    if (tensor == NULL) return tensor_write_bytes(writer, "\0\0\0\0", 4, err);
    uint8_t *bytes = memory_alloc((size_t)tensor->bytes);
    assert_ok(tensors_read(copy->files, tensor, 0, bytes, (size_t)tensor->bytes, 0, err), err);
    const void *out = bytes;
    size_t count = (size_t)tensor->bytes;
    if (is_target(spec->name, mutation)) {
        if (mutation->change == CHANGE_BYTES) memcpy(bytes + mutation->offset, mutation->bytes, mutation->count);
        if (mutation->change == CHANGE_DATA) out = mutation->bytes, count = mutation->count;
        if (mutation->change == CHANGE_SHAPE) {
            count = dtype_size(spec->dtype);
            for (int d = 0; d < spec->ndim; d++)
                count *= (size_t)spec->shape[d];
            assert_true(count <= tensor->bytes);
        }
    }
    Status status = tensor_write_bytes(writer, out, count, err);
    memory_free(bytes);
    return status;
}

static void apply(TensorSpec *spec, const Mutation *mutation) {
    if (mutation->change == CHANGE_SHAPE) {
        spec->dtype = mutation->dtype;
        spec->ndim = mutation->ndim;
        memcpy(spec->shape, mutation->shape, sizeof mutation->shape);
    }
    if (mutation->change == CHANGE_DATA) {
        spec->dtype = DTYPE_U8;
        spec->ndim = 1;
        spec->shape[0] = (int64_t)mutation->count;
    }
}

void model_folder_mutate(const char *from, const char *to, const Mutation *mutation) {
    Error err = {0};
    TensorFiles *files;
    char *source = path_join(from, "config.json"), *target = path_join(to, "config.json"), *text;
    size_t length;
    assert_ok(folder_create(to, &err), &err);
    assert_ok(file_read(source, 1 << 20, &text, &length, &err), &err);
    assert_ok(file_write_atomic(target, text, length, &err), &err);
    assert_ok(tensors_open(&files, from, NULL, &err), &err);
    int64_t specs = 0, targets = mutation->change == CHANGE_ADD || mutation->change == CHANGE_NOTHING;
    TensorSpec *list = memory_calloc((size_t)tensors_count(files) + 1, sizeof *list);
    for (int64_t i = 0; i < tensors_count(files); i++) {
        const TensorInfo *tensor = tensors_get(files, i);
        int hit = is_target(tensor->name, mutation);
        targets += hit;
        if (hit && mutation->change == CHANGE_DROP) continue;
        list[specs] = (TensorSpec){.name = tensor->name, .dtype = tensor->dtype, .ndim = tensor->ndim};
        memcpy(list[specs].shape, tensor->shape, sizeof tensor->shape);
        if (hit) apply(&list[specs], mutation);
        specs++;
    }
    if (mutation->change == CHANGE_ADD)
        list[specs++] = (TensorSpec){.name = mutation->tensor, .dtype = DTYPE_F32, .ndim = 1, .shape = {1}};
    assert_true(targets > 0);
    Copy copy = {.files = files, .mutation = mutation};
    char *weights = path_join(to, "model.safetensors");
    assert_ok(tensors_write(weights, list, specs, NULL, produce_copy, &copy, &err), &err);
    tensors_close(files);
    memory_free(list);
    memory_free(weights);
    memory_free(source);
    memory_free(target);
    memory_free(text);
}
