/* Weights quantized where they will lie: what the reader left in pinned memory is copied to a slot on the device, and the kernels
 * make codes and constants of it there (or put codes in their places, where a file has them in another order; what it has in ours is
 * copied at once). One stream has both in order; the reader fills other slots meanwhile.
 *
 * Constants that will be quantized themselves are FP32 in a buffer of their own until the last part of their weight has come.
 */
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/context.h"

enum { TABLE_NF4 = 0, TABLE_FP4 = 16, TABLE_MAP = 32, MAP_ENTRIES = 256, TABLE_END = TABLE_MAP + MAP_ENTRIES };

static Status pinned_take(const Exec *exec, const char *what, size_t bytes, void **out, Error *err) {
    CudaContext *context = context_of(exec);
    cudaError_t code = cudaMallocHost(out, bytes);
    if (code == cudaSuccess) return OK;
    (void)cudaGetLastError();
    FAIL("device %d (%s): %s: %zu bytes of host memory cannot be pinned: %s", context->index, context->name, what, bytes,
         cudaGetErrorName(code));
}

static void pinned_give(const Exec *exec, void *memory) {
    (void)exec;
    cuda_give_pinned(memory);
}

static void load_free(CudaLoad *load) {
    (void)cudaFree(load->slots);
    (void)cudaFree(load->constants);
    (void)cudaFree(load->offsets);
    (void)cudaFree(load->bad);
    cuda_give_pinned(load->tables);
    for (int i = 0; i < LOAD_SLOTS_MAX; i++)
        if (load->done[i] != NULL) (void)cudaEventDestroy(load->done[i]);
    memset(load, 0, sizeof *load);
}

static Status take(CudaContext *context, size_t bytes, void *out, Error *err) {
    void *memory;
    CUDA_TRY(context, cudaMalloc(&memory, bytes > 0 ? bytes : 1));
    memcpy(out, &memory, sizeof memory); /* whatever pointer it is */
    return OK;
}

static Status take_buffers(CudaContext *context, CudaLoad *load, Error *err) {
    const LoadPlan *plan = &load->plan;
    size_t weights = (size_t)plan->weights;
    void *memory;
    TRY(take(context, (size_t)plan->slots * plan->slot_bytes, &load->slots, err));
    TRY(take(context, (size_t)plan->constants * sizeof(float), &load->constants, err));
    TRY(take(context, weights * sizeof(float), &load->offsets, err));
    TRY(take(context, weights * sizeof(uint64_t), &load->bad, err));
    CUDA_TRY(context, cudaMemsetAsync(load->offsets, 0, weights * sizeof(float), context->stream));
    CUDA_TRY(context, cudaMemsetAsync(load->bad, 0xFF, weights * sizeof(uint64_t), context->stream)); /* CUDA_ALL_FINITE */
    CUDA_TRY(context, cudaMallocHost(&memory, TABLE_END * sizeof(float)));
    load->tables = memory;
    for (int i = 0; i < plan->slots; i++)
        CUDA_TRY(context, cudaEventCreateWithFlags(&load->done[i], cudaEventDisableTiming));
    static const float nf4[16] = NF4_CODES, fp4[16] = FP4_CODES;
    memcpy(load->tables + TABLE_NF4, nf4, sizeof nf4);
    memcpy(load->tables + TABLE_FP4, fp4, sizeof fp4);
    memcpy(load->tables + TABLE_MAP, plan->nested_map, MAP_ENTRIES * sizeof(float));
    return OK;
}

static Status load_begin(const Exec *exec, const LoadPlan *plan, Error *err) {
    CudaContext *context = context_of(exec);
    CudaLoad *load = &context->load;
    if (load->slots != NULL) FAIL("internal error: weights are being loaded already");
    if (plan->slots < 1 || plan->slots > LOAD_SLOTS_MAX || plan->weights < 1)
        FAIL("internal error: loading %d weights through %d slots", (int)plan->weights, plan->slots);
    load->plan = *plan;
    Status status = take_buffers(context, load, err);
    if (status != OK) load_free(load);
    return status;
}

/* The tables that belong to a weight, which are the same for all of a format. */
static Status copy_tables(CudaContext *context, const WeightView *to, Error *err) {
    const float *tables = context->load.tables, *codes = tables + (to->format == WEIGHT_FP4 ? TABLE_FP4 : TABLE_NF4);
    if (to->format != WEIGHT_NF4 && to->format != WEIGHT_FP4) return OK;
    CUDA_TRY(context,
             cudaMemcpyAsync((void *)(uintptr_t)to->codes, codes, 16 * sizeof(float), cudaMemcpyDefault, context->stream));
    if (to->nested_codes == NULL) return OK;
    CUDA_TRY(context, cudaMemcpyAsync((void *)(uintptr_t)to->nested_map, tables + TABLE_MAP, MAP_ENTRIES * sizeof(float),
                                      cudaMemcpyDefault, context->stream));
    return OK;
}

static Status nest(CudaContext *context, const LoadPart *part, Error *err) {
    const WeightView *to = part->to;
    CudaLoad *load = &context->load;
    int64_t blocks = weight_blocks(to->rows, to->cols, to->block_size);
    float *offset = load->offsets + part->weight;
    CUDA_TRY(context, cuda_double_quant_offset(load->constants, blocks, offset, context->stream));
    CUDA_TRY(context,
             cuda_double_quantize(load->constants, blocks, offset, to->nested_map, (uint8_t *)(uintptr_t)to->nested_codes,
                                  (float *)(uintptr_t)to->nested_absmax, context->stream));
    return OK;
}

static Status quantize(CudaContext *context, const LoadPart *part, const void *x, Error *err) {
    const WeightView *to = part->to;
    CudaLoad *load = &context->load;
    uint8_t *codes = (uint8_t *)(uintptr_t)to->data;
    float *constants = to->nested_codes != NULL ? load->constants : (float *)(uintptr_t)to->scales;
    uint64_t *bad = load->bad + part->weight;
    if (to->format == WEIGHT_INT8) {
        int64_t row = part->first / to->cols;
        CUDA_TRY(context, cuda_quantize_int8(x, part->type, part->values / to->cols, to->cols, (int8_t *)codes + part->first,
                                             constants + row, part->first, bad, context->stream));
    } else if (to->format == WEIGHT_INT4) {
        CUDA_TRY(context, cuda_quantize_int4(x, part->type, part->values, to->block_size, codes + part->first / 2,
                                             constants + part->first / to->block_size, part->first, bad, context->stream));
    } else {
        CUDA_TRY(context, cuda_quantize_4bit(to->format, x, part->type, part->values, to->block_size, codes + part->first / 2,
                                             constants + part->first / to->block_size, part->first, bad, context->stream));
    }
    return OK;
}

static Status load_part(const Exec *exec, const LoadPart *part, Error *err) {
    CudaContext *context = context_of(exec);
    CudaLoad *load = &context->load;
    const WeightView *to = part->to;
    size_t bytes = (size_t)part->values * dtype_size(part->type);
    int64_t unit = to->format == WEIGHT_INT8 ? to->cols : to->block_size;
    if (part->slot < 0 || part->slot >= load->plan.slots || bytes > load->plan.slot_bytes || part->first % unit != 0 ||
        part->weight >= load->plan.weights)
        FAIL("internal error: a part of %zu bytes from element %lld on does not suit the load", bytes, (long long)part->first);
    uint8_t *there = load->slots + (size_t)part->slot * load->plan.slot_bytes;
    if (part->first == 0) TRY(copy_tables(context, to, err));
    CUDA_TRY(context, cudaMemcpyAsync(there, part->from, bytes, cudaMemcpyHostToDevice, context->stream));
    CUDA_TRY(context, cudaEventRecord(load->done[part->slot], context->stream)); /* the host's side is free from here on */
    TRY(quantize(context, part, there, err));
    int last = part->first + part->values == to->rows * to->cols;
    return last && to->nested_codes != NULL ? nest(context, part, err) : OK;
}

static Status load_lines(const Exec *exec, const LoadLines *lines, Error *err) {
    CudaContext *context = context_of(exec);
    CudaLoad *load = &context->load;
    const WeightView *to = lines->to;
    int64_t words = lines->nibbles ? to->rows / 8 : to->rows;
    size_t bytes = (size_t)(lines->count * words) * sizeof(uint32_t);
    if (lines->slot < 0 || lines->slot >= load->plan.slots || bytes > load->plan.slot_bytes)
        FAIL("internal error: %lld lines of %lld words do not suit the load", (long long)lines->count, (long long)words);
    uint32_t *there = (uint32_t *)(void *)(load->slots + (size_t)lines->slot * load->plan.slot_bytes);
    CUDA_TRY(context, cudaMemcpyAsync(there, lines->from, bytes, cudaMemcpyHostToDevice, context->stream));
    CUDA_TRY(context, cudaEventRecord(load->done[lines->slot], context->stream));
    CUDA_TRY(context, cuda_group_lines(there, lines->nibbles, to->rows, lines->first, lines->count, (void *)(uintptr_t)to->data,
                                       grouped_row_bytes(to->cols, to->bits), context->stream));
    return OK;
}

static Status load_copy(const Exec *exec, void *to, const void *from, size_t bytes, int slot, Error *err) {
    CudaContext *context = context_of(exec);
    CUDA_TRY(context, cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, context->stream));
    CUDA_TRY(context, cudaEventRecord(context->load.done[slot], context->stream));
    return OK;
}

static Status load_wait(const Exec *exec, int slot, Error *err) {
    CUDA_TRY(context_of(exec), cudaEventSynchronize(context_of(exec)->load.done[slot]));
    return OK;
}

static Status fetch_results(CudaContext *context, float *offsets, int64_t *bad, Error *err) {
    CudaLoad *load = &context->load;
    size_t weights = (size_t)load->plan.weights;
    CUDA_TRY(context, cudaStreamSynchronize(context->stream));
    if (offsets != NULL)
        CUDA_TRY(context,
                 cudaMemcpyAsync(offsets, load->offsets, weights * sizeof(float), cudaMemcpyDeviceToHost, context->stream));
    if (bad != NULL) /* CUDA_ALL_FINITE becomes -1 */
        CUDA_TRY(context, cudaMemcpyAsync(bad, load->bad, weights * sizeof(uint64_t), cudaMemcpyDeviceToHost, context->stream));
    CUDA_TRY(context, cudaStreamSynchronize(context->stream));
    return OK;
}

static Status load_end(const Exec *exec, float *offsets, int64_t *bad, Error *err) {
    CudaContext *context = context_of(exec);
    Status status = fetch_results(context, offsets, bad, err);
    load_free(&context->load);
    return status;
}

void cuda_install_load(Backend *backend) {
    backend->pinned_take = pinned_take;
    backend->pinned_give = pinned_give;
    backend->load_begin = load_begin;
    backend->load_part = load_part;
    backend->load_lines = load_lines;
    backend->load_copy = load_copy;
    backend->load_wait = load_wait;
    backend->load_end = load_end;
}
