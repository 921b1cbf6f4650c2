/* A second copy of the output head in Q8_0: a generated token then reads half of its bytes. */
#include <sys/mman.h>
#include <unistd.h>

#include "quant/ggml.h"
#include "train/weights_internal.h"

#define PART_ROWS 256 /* of the head in FP32 at once */

/* The dense head is read no more: its pages go back, as far as nothing else lies on them. */
static void drop_pages(const WeightEntry *entry) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), from = (uintptr_t)entry->data, end = from + weight_data_bytes(entry);
    from = (from + page - 1) / page * page;
    end = end / page * page;
    if (from < end) (void)madvise((void *)from, end - from, MADV_DONTNEED);
}

static Status quantize_rows(const ModelWeights *weights, const WeightView *head, Pool *pool, float *part, Error *err) {
    int64_t row_bytes = 0;
    TRY(ggml_bytes(GGML_Q8_0, 1, head->cols, &row_bytes, err));
    for (int64_t row = 0; row < head->rows; row += PART_ROWS) {
        int64_t rows = head->rows - row < PART_ROWS ? head->rows - row : PART_ROWS;
        weights->backend->dequantize(head, row * head->cols, rows * head->cols, part, DTYPE_F32);
        TRY(ggml_quantize(GGML_Q8_0, part, rows, head->cols, NULL, weights->small_head.base + row * row_bytes, pool, err));
    }
    return OK;
}

static Status make_small_head(ModelWeights *weights, Pool *pool, Error *err) {
    WeightView head = weights_view(weights, WEIGHT_HEAD);
    if (weights->backend->on_device) FAIL_USAGE("only the CPU has it; use --device cpu");
    if (head.format == WEIGHT_GGML && head.ggml_type != GGML_F16)
        FAIL_USAGE("the model's head is %s already; leave --head out", ggml_type_info(head.ggml_type)->name);
    int64_t bytes;
    TRY(ggml_bytes(GGML_Q8_0, head.rows, head.cols, &bytes, err));
    TRY(arena_create(&weights->small_head, "output head in Q8_0", (size_t)bytes, err));
    float *part = memory_alloc((size_t)(PART_ROWS * head.cols) * sizeof *part);
    Status status = quantize_rows(weights, &head, pool, part, err);
    memory_free(part);
    if (status != OK) arena_free(&weights->small_head); /* or the head's view would lead there */
    return status;
}

Status weights_quantize_head(ModelWeights *weights, Pool *pool, Error *err) {
    Status status = make_small_head(weights, pool, err);
    if (status != OK) {
        error_prefix(err, "--head q8_0");
        return status;
    }
    if (!weights->config.tied_embeddings) drop_pages(&weights->entries[WEIGHT_HEAD]);
    return OK;
}

int weights_has_small_head(const ModelWeights *weights) {
    return weights->small_head.base != NULL;
}
