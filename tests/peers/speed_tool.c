/* Processor seconds of one thread that NF4 takes for a matrix: speed_tool FLOATS ROWS COLS NESTED. Run by quantizer_speed.py. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "core/file.h"
#include "core/memory.h"
#include "quant/quantize.h"

#define ROUNDS 5

static double processor_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static Status measure(const char *path, int64_t rows, int64_t cols, int nested, double *best, Error *err) {
    const QuantSpec spec = {.format = WEIGHT_NF4, .double_quant = nested, .block_size = 64};
    Backend backend;
    Arena count, arena = {0};
    QuantizedTensor tensor;
    Quantizer *quantizer = NULL;
    char *values = NULL;
    size_t length;
    Status status;
    TRY_GOTO(cpu_backend(&backend, NULL, err));
    TRY_GOTO(file_read(path, (size_t)1 << 31, &values, &length, err));
    status = (int64_t)length == rows * cols * 4 ? OK : error_set(err, ERR_FAILED, "%s: wrong size", path);
    if (status != OK) goto done;
    arena_count(&count, "tensor");
    TRY_GOTO(quantized_take(&tensor, &spec, rows, cols, &count, err));
    TRY_GOTO(arena_create(&arena, "tensor", count.used, err));
    TRY_GOTO(quantized_take(&tensor, &spec, rows, cols, &arena, err));
    TRY_GOTO(quantizer_create(&quantizer, &backend, NULL, quant_nested_constants(&spec, rows, cols), err));
    for (int i = 0; i < ROUNDS; i++) {
        double begin = processor_seconds();
        TRY_GOTO(quantize_tensor(quantizer, values, DTYPE_F32, &tensor, err));
        double taken = processor_seconds() - begin;
        if (i == 0 || taken < *best) *best = taken;
    }
done:
    quantizer_free(quantizer);
    arena_free(&arena);
    memory_free(values);
    return status;
}

int main(int argc, char **argv) {
    Error err = {0};
    double best = 0.0;
    if (argc != 5) return 2;
    if (measure(argv[1], atoll(argv[2]), atoll(argv[3]), atoi(argv[4]), &best, &err) == OK) {
        printf("%.9f\n", best);
        return 0;
    }
    (void)fprintf(stderr, "%s\n", err.text);
    return 1;
}
