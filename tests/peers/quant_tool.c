/* Quantizes what a script sends: requests on stdin, replies on stdout, little-endian binary, until stdin ends.
 *
 *   request   i32 op, then by op
 *   'q'       i32 format, double_quant, block_size, source type, slice rows; i64 rows, cols; the values
 *             reply: codes; then absmax (f32), or nested: f32 offset, nested codes, nested_absmax; then all values as f32
 *   'd'       i64 blocks; f32 offset; f32 absmax [blocks]     reply: codes [blocks], nested_absmax
 *   'f'       i32 length, a model folder's path      reply: per linear i32 name length, name, i64 rows, cols, f32 values; i32 0
 *   'm'                                                       reply: f32 map [256]
 *
 * Built by the scripts that use it (build_tool in nf4_exactness.py).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "quant/double_quant.h"
#include "quant/quantize.h"
#include "train/weights.h"

static void need(void *out, size_t bytes) {
    if (fread(out, 1, bytes, stdin) != bytes) {
        fprintf(stderr, "quant_tool: the request ends early\n");
        exit(1);
    }
}

static void reply(const void *bytes, size_t count) {
    if (fwrite(bytes, 1, count, stdout) != count) exit(1);
}

static void check(Status status, const Error *err) {
    if (status == OK) return;
    fprintf(stderr, "quant_tool: %s\n", err->text);
    exit(1);
}

static void answer_quantize(const Backend *backend, Pool *pool) {
    Error err = {0};
    int32_t head[5];
    int64_t shape[2];
    need(head, sizeof head);
    need(shape, sizeof shape);
    QuantSpec spec = {.format = (WeightFormat)head[0], .double_quant = head[1], .block_size = head[2]};
    DType type = (DType)head[3];
    int64_t slice = head[4], rows = shape[0], cols = shape[1];
    size_t row_bytes = (size_t)cols * dtype_size(type);
    uint8_t *values = memory_alloc((size_t)rows * row_bytes);
    need(values, (size_t)rows * row_bytes);

    Arena count, arena;
    QuantizedTensor tensor;
    arena_count(&count, "count");
    check(quantized_take(&tensor, &spec, rows, cols, &count, &err), &err);
    check(arena_create(&arena, "tensor", count.used, &err), &err);
    check(quantized_take(&tensor, &spec, rows, cols, &arena, &err), &err);
    Quantizer *quantizer;
    check(quantizer_create(&quantizer, backend, pool, quant_nested_constants(&spec, rows, cols), &err), &err);
    check(quantizer_begin(quantizer, &tensor, &err), &err);
    for (int64_t row = 0; row < rows; row += slice)
        check(quantizer_rows(quantizer, values + (size_t)row * row_bytes, type, rows - row < slice ? rows - row : slice, &err),
              &err);
    check(quantizer_finish(quantizer, &err), &err);

    reply(tensor.codes, tensor.code_bytes);
    if (spec.double_quant) {
        reply(&tensor.nested_offset, sizeof tensor.nested_offset);
        reply(tensor.nested_codes, (size_t)tensor.blocks);
        reply(tensor.nested_absmax, (size_t)tensor.nested_blocks * sizeof(float));
    } else {
        reply(tensor.scales, (size_t)tensor.blocks * sizeof(float));
    }
    float *decoded = memory_alloc((size_t)(rows * cols) * sizeof(float));
    WeightView view = quantized_view(&tensor);
    backend->dequantize(&view, 0, rows * cols, decoded, DTYPE_F32);
    reply(decoded, (size_t)(rows * cols) * sizeof(float));
    memory_free(decoded);
    memory_free(values);
    quantizer_free(quantizer);
    arena_free(&arena);
}

static void answer_double(Pool *pool) {
    int64_t blocks;
    float offset, map[DYNAMIC_MAP_ENTRIES];
    need(&blocks, sizeof blocks);
    need(&offset, sizeof offset);
    int64_t groups = (blocks + NESTED_BLOCK - 1) / NESTED_BLOCK;
    float *absmax = memory_alloc((size_t)blocks * sizeof(float)), *nested = memory_alloc((size_t)groups * sizeof(float));
    uint8_t *codes = memory_alloc((size_t)blocks);
    need(absmax, (size_t)blocks * sizeof(float));
    dynamic_map(map);
    double_quantize(pool, absmax, blocks, offset, map, codes, nested);
    reply(codes, (size_t)blocks);
    reply(nested, (size_t)groups * sizeof(float));
    memory_free(absmax);
    memory_free(nested);
    memory_free(codes);
}

/* Loads a pre-quantized folder as a run does and decodes every linear. */
static void answer_folder(const Backend *backend, Pool *pool) {
    Error err = {0};
    int32_t length;
    char path[4096] = "";
    need(&length, sizeof length);
    if (length < 0 || length >= (int32_t)sizeof path) exit(1);
    need(path, (size_t)length);
    ModelConfig config;
    ModelWeights *weights;
    WeightOptions options = {.act = DTYPE_F32, .linear = WEIGHT_F32};
    check(model_config_read(path, &config, &err), &err);
    check(weights_load(&weights, path, &config, &options, backend, pool, &err), &err);
    for (int64_t layer = 0; layer < config.layers; layer++)
        for (int kind = 0; kind < LAYER_LINEARS; kind++) {
            char name[192];
            int64_t shape[2];
            int32_t id = weight_id(layer, (LayerWeight)kind);
            (void)weight_describe(&config, id, name, sizeof name, &shape[0], &shape[1]);
            WeightView view = weights_view(weights, id);
            size_t bytes = (size_t)(view.rows * view.cols) * sizeof(float);
            float *decoded = memory_alloc(bytes);
            backend->dequantize(&view, 0, view.rows * view.cols, decoded, DTYPE_F32);
            int32_t name_length = (int32_t)strlen(name);
            reply(&name_length, sizeof name_length);
            reply(name, strlen(name));
            reply(shape, sizeof shape);
            reply(decoded, bytes);
            memory_free(decoded);
        }
    int32_t end = 0;
    reply(&end, sizeof end);
    weights_free(weights);
}

int main(int argc, char **argv) {
    Error err = {0};
    Backend backend;
    Pool *pool;
    check(cpu_backend(&backend, argc > 1 ? argv[1] : NULL, &err), &err);
    check(pool_create(&pool, 0, &err), &err);
    for (int32_t op; fread(&op, sizeof op, 1, stdin) == 1; fflush(stdout)) {
        float map[DYNAMIC_MAP_ENTRIES];
        if (op == 'q') {
            answer_quantize(&backend, pool);
        } else if (op == 'd') {
            answer_double(pool);
        } else if (op == 'f') {
            answer_folder(&backend, pool);
        } else {
            dynamic_map(map);
            reply(map, sizeof map);
        }
    }
    pool_free(pool);
    return 0;
}
