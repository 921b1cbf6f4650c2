/* Device buffers of a kernel's test, the same on the emulator and on a GPU.
 *
 * An input is exactly as large as its values, so that the race build sees a read beyond them. An output lies between
 * canaries, and is NaN (all bits one) until a kernel writes it.
 */
#ifndef NIBBLE_TESTS_CUDA_EMU_DEVICE_H
#define NIBBLE_TESTS_CUDA_EMU_DEVICE_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "core/memory.h"
#include "kernels/cuda/launch.h"
#include "kernels/ggml_decode.h"
#include "tests/support/compare.h"
#include "tests/support/scope.h"

#define DEVICE_BUFFERS 256
#define DEVICE_CANARY 256
#define DEVICE_CANARY_BYTE 0xA5

typedef struct Device {
    struct {
        uint8_t *memory;
        size_t bytes;
        int output;
    } buffer[DEVICE_BUFFERS];
    int buffers;
} Device;

#define assert_cuda(call) assert_int_equal(call, cudaSuccess)

static inline void *device_in(Device *device, const void *values, size_t bytes) {
    assert_true(device->buffers < DEVICE_BUFFERS);
    void *memory = NULL;
    assert_cuda(cudaMalloc(&memory, bytes > 0 ? bytes : 1));
    if (bytes > 0) assert_cuda(cudaMemcpy(memory, values, bytes, cudaMemcpyHostToDevice));
    assert_cuda(cudaDeviceSynchronize()); /* a stream that does not wait for the default one may read it next */
    device->buffer[device->buffers].memory = memory;
    device->buffer[device->buffers++].bytes = bytes;
    return memory;
}

/* values: what it starts with, or NULL for NaN */
static inline void *device_out(Device *device, const void *values, size_t bytes) {
    assert_true(device->buffers < DEVICE_BUFFERS);
    uint8_t *memory = NULL;
    assert_cuda(cudaMalloc((void **)&memory, bytes + 2 * DEVICE_CANARY));
    assert_cuda(cudaMemset(memory, DEVICE_CANARY_BYTE, bytes + 2 * DEVICE_CANARY));
    if (values == NULL) assert_cuda(cudaMemset(memory + DEVICE_CANARY, 0xFF, bytes));
    if (values != NULL) assert_cuda(cudaMemcpy(memory + DEVICE_CANARY, values, bytes, cudaMemcpyHostToDevice));
    assert_cuda(cudaDeviceSynchronize());
    device->buffer[device->buffers].memory = memory;
    device->buffer[device->buffers].output = 1;
    device->buffer[device->buffers++].bytes = bytes;
    return memory + DEVICE_CANARY;
}

/* Waits, and copies the first bytes of a buffer back. */
static inline void device_read(void *values, const void *from, size_t bytes) {
    assert_cuda(cudaDeviceSynchronize());
    assert_cuda(cudaMemcpy(values, from, bytes, cudaMemcpyDeviceToHost));
}

/* Waits, fails the test when a canary was overwritten, and frees everything. */
static inline void device_close(Device *device) {
    assert_cuda(cudaDeviceSynchronize());
    for (int i = 0; i < device->buffers; i++) {
        uint8_t *memory = device->buffer[i].memory, canary[2][DEVICE_CANARY];
        if (device->buffer[i].output) {
            device_read(canary[0], memory, DEVICE_CANARY);
            device_read(canary[1], memory + DEVICE_CANARY + device->buffer[i].bytes, DEVICE_CANARY);
            for (int c = 0; c < DEVICE_CANARY; c++) {
                assert_int_equal(canary[0][c], DEVICE_CANARY_BYTE);
                assert_int_equal(canary[1][c], DEVICE_CANARY_BYTE);
            }
        }
        assert_cuda(cudaFree(memory));
    }
    device->buffers = 0;
}

static inline void *device_in_values(Device *device, DType type, const void *values, int64_t count) {
    return device_in(device, values, (size_t)count * dtype_size(type));
}

static inline void *device_nan(Device *device, DType type, int64_t count) {
    return device_out(device, NULL, (size_t)count * dtype_size(type));
}

/* Compares the first `count` elements of an output with want (assert_close), and holds that the `beyond` after them are still
 * NaN. */
static inline void device_compare(const char *what, DType type, const void *from, const void *want, int64_t count,
                                  int64_t beyond, double tolerance, const char *reason) {
    size_t bytes = (size_t)count * dtype_size(type), more = (size_t)beyond * dtype_size(type);
    uint8_t *got = memory_alloc(bytes + more + 1);
    device_read(got, from, bytes + more);
    assert_close(what, type, got, want, count, tolerance, reason);
    assert_untouched(what, got + bytes, more);
    memory_free(got);
}

/* ---- members of a joined buffer, whose rows are `stride` elements apart ----
 * It begins as NaN (device_nan); members are put there, a kernel runs, members are taken away again, and what is left must be NaN:
 * a kernel that reads its neighbours gets NaN, and one that writes them is found. */
static inline void *device_member(DType type, void *buffer, int64_t column) {
    return (uint8_t *)buffer + (size_t)column * dtype_size(type);
}

static inline void device_put(DType type, void *member, int64_t stride, const void *values, int64_t rows, int64_t columns) {
    size_t row = (size_t)columns * dtype_size(type), pitch = (size_t)stride * dtype_size(type);
    assert_cuda(cudaDeviceSynchronize());
    for (int64_t t = 0; t < rows; t++)
        assert_cuda(cudaMemcpy((uint8_t *)member + (size_t)t * pitch, (const uint8_t *)values + (size_t)t * row, row,
                               cudaMemcpyHostToDevice));
    assert_cuda(cudaDeviceSynchronize());
}

/* A contiguous copy of the member, which becomes NaN. */
static inline void *device_take(Device *device, DType type, void *member, int64_t stride, int64_t rows, int64_t columns) {
    size_t row = (size_t)columns * dtype_size(type), pitch = (size_t)stride * dtype_size(type);
    uint8_t *copy = device_nan(device, type, rows * columns);
    assert_cuda(cudaDeviceSynchronize());
    for (int64_t t = 0; t < rows; t++) {
        uint8_t *at = (uint8_t *)member + (size_t)t * pitch;
        assert_cuda(cudaMemcpy(copy + (size_t)t * row, at, row, cudaMemcpyDeviceToDevice));
        assert_cuda(cudaMemset(at, 0xFF, row));
    }
    assert_cuda(cudaDeviceSynchronize());
    return copy;
}

static inline void device_is_nan(const char *what, DType type, const void *buffer, int64_t count) {
    device_compare(what, type, buffer, NULL, 0, count, 0.0, "");
}

/* A copy of a batch; `past` rows are cached. */
static inline const DeviceBatch *device_batch(Device *device, const Batch *batch, int64_t past) {
    size_t tokens = (size_t)batch->tokens, supervised = (size_t)batch->supervised;
    DeviceBatch copy = {.tokens = batch->tokens,
                        .sequences = batch->sequences,
                        .supervised = batch->supervised,
                        .past = past,
                        .seed = batch->seed,
                        .grad_scale = batch->grad_scale,
                        .dropout = batch->dropout,
                        .starts = device_in(device, batch->starts, (size_t)(batch->sequences + 1) * sizeof *batch->starts),
                        .ids = device_in(device, batch->ids, tokens * sizeof *batch->ids),
                        .positions = device_in(device, batch->positions, tokens * sizeof *batch->positions),
                        .samples = device_in(device, batch->samples, tokens * sizeof *batch->samples),
                        .rows = device_in(device, batch->rows, supervised * sizeof *batch->rows),
                        .targets = device_in(device, batch->targets, supervised * sizeof *batch->targets)};
    return device_in(device, &copy, sizeof copy);
}

/* A copy of a weight: the view of it there. */
static inline WeightView device_weight(Device *device, const WeightView *weight) {
    int64_t count = weight->rows * weight->cols, blocks = 0;
    WeightView copy = *weight;
    size_t bytes = (size_t)(count + 1) / 2;
    if (weight->format == WEIGHT_F32) bytes = (size_t)count * sizeof(float);
    if (weight->format == WEIGHT_BF16) bytes = (size_t)count * sizeof(bf16);
    if (weight->format == WEIGHT_INT8) bytes = (size_t)count, blocks = weight->rows;
    if (weight->format == WEIGHT_INT4) blocks = count / weight->block_size;
    if (weight->format == WEIGHT_GROUPED) {
        bytes = (size_t)(weight->rows * grouped_row_bytes(weight->cols, weight->bits));
        blocks = count / weight->block_size;
    }
    if (weight->format == WEIGHT_GGML) {
        int block;
        bytes = (size_t)(count / ggml_block_form(weight->ggml_type, &block));
        bytes *= (size_t)block;
    }
    copy.data = device_in(device, weight->data, bytes);
    if (weight->format == WEIGHT_NF4 || weight->format == WEIGHT_FP4) {
        blocks = weight_blocks(weight->rows, weight->cols, weight->block_size);
        copy.codes = device_in(device, weight->codes, 16 * sizeof(float));
    }
    if (weight->zeros != NULL) copy.zeros = device_in(device, weight->zeros, (size_t)blocks);
    if (weight->group_index != NULL)
        copy.group_index = device_in(device, weight->group_index, (size_t)weight->cols * sizeof *weight->group_index);
    if (weight->scales != NULL) copy.scales = device_in(device, weight->scales, (size_t)blocks * sizeof(float));
    if (weight->nested_codes != NULL) {
        size_t groups = (size_t)(blocks + NESTED_BLOCK - 1) / NESTED_BLOCK;
        copy.nested_codes = device_in(device, weight->nested_codes, (size_t)blocks);
        copy.nested_absmax = device_in(device, weight->nested_absmax, groups * sizeof(float));
        copy.nested_map = device_in(device, weight->nested_map, 256 * sizeof(float));
    }
    return copy;
}

#endif
