/* Operands of quantization-aware training, made a tile of rows at a time on the stream, in order with everything else:
 *
 *   V      W decoded to FP32, then + scale * B A                        [tile, cols]
 *   forward            INT, Q4_0, Q8_0: V through the grid into the operand's rows
 *                      NF4: codes and constants of V, tile by tile; nested constants of the whole; then values, tile by tile
 *   backward           dV = dy[:, tile]^T x;  dV = M . dV;  dB[tile] += dV (s A)^T;  dA += (s B[tile])^T dV
 *
 *   workspace          V | scales, chain (scaled) | NF4: codes, absmax, nested codes, nested absmax, offset | backward: dV, sA, sB
 */
#include "kernels/cuda/context.h"

#define TILE_BYTES ((size_t)64 << 20) /* of V */
#define TILE_ROWS 64                  /* a multiple of every NF4 block, whatever the width */

typedef struct FakeLayout {
    int64_t tile, groups; /* rows; scales in a row */
    size_t v, scales, chain, codes, absmax, nested_codes, nested_absmax, offset;
    size_t dv, a, b;
    OpPlan plan;
} FakeLayout;

static size_t put(size_t *end, int64_t count, size_t size) {
    size_t at = *end;
    *end = align_up(at + (size_t)count * size);
    return at;
}

static FakeLayout layout_of(const FakeWeightShape *shape) {
    const FakeQuant *grid = &shape->grid;
    int64_t fits = (int64_t)(TILE_BYTES / sizeof(float)) / shape->cols / TILE_ROWS * TILE_ROWS,
            values = shape->rows * shape->cols;
    if (shape->tile > 0) fits = shape->tile;
    FakeLayout layout = {.tile = fits < TILE_ROWS ? TILE_ROWS : fits,
                         .groups = grid->group > 0 ? shape->cols / grid->group : 1};
    if (layout.tile > shape->rows) layout.tile = shape->rows;
    size_t end = 0;
    layout.v = put(&end, layout.tile * shape->cols, sizeof(float));
    layout.scales = put(&end, shape->scaled ? layout.tile * layout.groups : 0, sizeof(float));
    layout.chain = put(&end, shape->scaled ? layout.tile * layout.groups : 0, sizeof(float));
    size_t shared = end;
    if (grid->grid == FAKE_NF4) {
        int64_t blocks = weight_blocks(shape->rows, shape->cols, grid->block_size);
        layout.codes = put(&end, (values + 1) / 2, 1);
        layout.absmax = put(&end, blocks, sizeof(float));
        layout.nested_codes = put(&end, blocks, 1);
        layout.nested_absmax = put(&end, (blocks + NESTED_BLOCK - 1) / NESTED_BLOCK, sizeof(float));
        layout.offset = put(&end, 1, sizeof(float));
    }
    layout.plan.forward_workspace = end;
    end = shared;
    layout.dv = put(&end, layout.tile * shape->cols, sizeof(float));
    layout.a = put(&end, shape->rank * shape->cols, sizeof(float));
    layout.b = put(&end, shape->rank * shape->rows, sizeof(float));
    layout.plan.backward_workspace = end;
    return layout;
}

static Status fake_weight_plan(const ExecConfig *config, const FakeWeightShape *shape, OpPlan *plan, Error *err) {
    const FakeQuant *grid = &shape->grid;
    TRY(cuda_check_act("fake quantization", config, err));
    TRY(cuda_check_size("fake quantization", "rows", shape->rows, err));
    TRY(cuda_check_size("fake quantization", "columns", shape->cols, err));
    if (grid->grid == FAKE_Q4_K) FAIL("fake quantization to q4_k is the CPU's only");
    if (grid->grid == FAKE_NF4 && TILE_ROWS * shape->cols % grid->block_size != 0)
        FAIL("fake quantization: blocks of %d do not end with %d rows of %lld", (int)grid->block_size, TILE_ROWS,
             (long long)shape->cols);
    *plan = layout_of(shape).plan;
    return OK;
}

typedef struct FakeWork {
    CudaContext *context;
    DType act;
    const FakeWeightShape *shape;
    const FakeWeightOperand *operand;
    FakeLayout layout;
    uint8_t *workspace;
    int64_t first, count; /* rows of the tile at hand */
} FakeWork;

static FakeWork open_work(const Exec *exec, const FakeWeightShape *shape, const FakeWeightOperand *operand, void *workspace) {
    context_of(exec)->fakes = 1;
    return (FakeWork){.context = context_of(exec),
                      .act = exec->config.act,
                      .shape = shape,
                      .operand = operand,
                      .layout = layout_of(shape),
                      .workspace = workspace};
}

static float *floats_at(const FakeWork *work, size_t offset) {
    return (float *)(void *)(work->workspace + offset);
}

static int next_tile(FakeWork *work) {
    work->first += work->count;
    int64_t left = work->shape->rows - work->first;
    work->count = left < work->layout.tile ? left : work->layout.tile;
    return work->count > 0;
}

/* What *bad holds for the tile's first value: layer, linear, flat index. */
#define FAULT_LINEAR 44
#define FAULT_LAYER 48
static uint64_t fault_first(const FakeWork *work) {
    const FakeWeightShape *shape = work->shape;
    return (uint64_t)shape->layer << FAULT_LAYER | (uint64_t)shape->linear << FAULT_LINEAR |
           (uint64_t)(work->first * shape->cols);
}

Status cuda_fake_weight_fault(CudaContext *context, uint64_t fault, Error *err) {
    static const char *const linears[] = {"q_proj",    "k_proj",  "v_proj",    "o_proj",
                                          "gate_proj", "up_proj", "down_proj", "linear"};
    if (fault == CUDA_ALL_FINITE) return OK;
    CUDA_TRY(context, cudaMemsetAsync(&context->scalars[SCALAR_FAULT], 0xFF, sizeof(uint64_t), context->stream));
    unsigned linear = (unsigned)(fault >> FAULT_LINEAR & 15);
    FAIL(
        "%s of layer %llu: value %llu with its adapter is NaN, Inf, or one that qat.weights cannot hold; take a smaller "
        "train.lr",
        linears[linear < 7 ? linear : 7], (unsigned long long)(fault >> FAULT_LAYER),
        (unsigned long long)(fault & (((uint64_t)1 << FAULT_LINEAR) - 1)));
}

/* A number a group: those of the tile. */
static const float *of_tile(const FakeWork *work, const float *numbers) {
    return numbers == NULL ? NULL : numbers + work->first * work->layout.groups;
}

/* V of the tile, and its scales where they are not made of V. */
static Status form_values(const FakeWork *work, Error *err) {
    const FakeWeightShape *shape = work->shape;
    const FakeWeightOperand *operand = work->operand;
    const FakeLayout *layout = &work->layout;
    cudaStream_t stream = work->context->stream;
    float *v = floats_at(work, layout->v);
    CUDA_TRY(work->context,
             cuda_dequantize(&operand->base, work->first * shape->cols, work->count * shape->cols, v, DTYPE_F32, stream));
    if (shape->scaled)
        CUDA_TRY(work->context, cuda_fake_scales(&shape->grid, work->count, shape->cols, v, of_tile(work, operand->first),
                                                 of_tile(work, operand->theta), floats_at(work, layout->scales),
                                                 floats_at(work, layout->chain), stream));
    if (shape->rank == 0) return OK;
    const uint8_t *b = (const uint8_t *)operand->lora_b + (size_t)(work->first * shape->rank) * dtype_size(work->act);
    CUDA_TRY(work->context, cuda_add_update(work->act, work->count, shape->cols, shape->rank, shape->lora_scale,
                                            operand->lora_a, b, v, stream));
    return OK;
}

static void *rows_of_out(const FakeWork *work, void *out) {
    return (uint8_t *)out + (size_t)(work->first * work->shape->cols) * dtype_size(work->act);
}

/* ---- NF4 ---- */

static WeightView nf4_view(const FakeWork *work) {
    const FakeWeightShape *shape = work->shape;
    const FakeLayout *layout = &work->layout;
    WeightView view = {.format = WEIGHT_NF4,
                       .rows = shape->rows,
                       .cols = shape->cols,
                       .data = work->workspace + layout->codes,
                       .scales = floats_at(work, layout->absmax),
                       .block_size = shape->grid.block_size};
    if (!shape->grid.double_quant) return view;
    view.nested_codes = work->workspace + layout->nested_codes;
    view.nested_absmax = floats_at(work, layout->nested_absmax);
    view.nested_map = work->operand->nested_map;
    return view;
}

static Status encode_tile(const FakeWork *work, Error *err) {
    const FakeWeightShape *shape = work->shape;
    int64_t first = work->first * shape->cols;
    CUDA_TRY(work->context,
             cuda_quantize_4bit(WEIGHT_NF4, floats_at(work, work->layout.v), DTYPE_F32, work->count * shape->cols,
                                shape->grid.block_size, work->workspace + work->layout.codes + first / 2,
                                floats_at(work, work->layout.absmax) + first / shape->grid.block_size,
                                (int64_t)fault_first(work), &work->context->scalars[SCALAR_FAULT], work->context->stream));
    return OK;
}

static Status forward_nf4(FakeWork *work, void *out, Error *err) {
    const FakeWeightShape *shape = work->shape;
    CudaContext *context = work->context;
    const FakeLayout *layout = &work->layout;
    float *v = floats_at(work, layout->v), *absmax = floats_at(work, layout->absmax), *offset = floats_at(work, layout->offset);
    int64_t blocks = weight_blocks(shape->rows, shape->cols, shape->grid.block_size);
    while (next_tile(work)) {
        TRY(form_values(work, err));
        TRY(encode_tile(work, err));
    }
    if (shape->grid.double_quant) {
        CUDA_TRY(context, cuda_double_quant_offset(absmax, blocks, offset, context->stream));
        CUDA_TRY(context,
                 cuda_double_quantize(absmax, blocks, offset, work->operand->nested_map, work->workspace + layout->nested_codes,
                                      floats_at(work, layout->nested_absmax), context->stream));
    }
    WeightView view = nf4_view(work);
    int whole = shape->share >= 1.0f || layout->tile == shape->rows; /* V is not wanted again, or still there */
    if (whole) {
        CUDA_TRY(context, cuda_nf4_values(work->act, &view, offset, 0, shape->rows * shape->cols,
                                          shape->share < 1.0f ? v : NULL, shape->share, out, context->stream));
        return OK;
    }
    for (work->first = work->count = 0; next_tile(work);) {
        TRY(form_values(work, err));
        CUDA_TRY(context, cuda_nf4_values(work->act, &view, offset, work->first * shape->cols, work->count * shape->cols, v,
                                          shape->share, rows_of_out(work, out), context->stream));
    }
    return OK;
}

/* ---- the entries ---- */

static Status forward_tile(const FakeWork *work, void *out, Error *err) {
    const FakeWeightShape *shape = work->shape;
    const FakeLayout *layout = &work->layout;
    CudaContext *context = work->context;
    float *v = floats_at(work, layout->v);
    TRY(form_values(work, err));
    if (shape->share > 0.0f)
        CUDA_TRY(context,
                 cuda_fake_weight(work->act, &shape->grid, work->count, shape->cols, v,
                                  shape->scaled ? floats_at(work, layout->scales) : NULL, shape->share, rows_of_out(work, out),
                                  fault_first(work), &context->scalars[SCALAR_FAULT], context->stream));
    else
        CUDA_TRY(context,
                 cuda_cast(work->count * shape->cols, v, DTYPE_F32, rows_of_out(work, out), work->act, context->stream));
    return OK;
}

static Status fake_weight_forward(const Exec *exec, const FakeWeightShape *shape, const FakeWeightOperand *operand, void *out,
                                  void *workspace, Error *err) {
    FakeWork work = open_work(exec, shape, operand, workspace);
    if (shape->grid.grid == FAKE_NF4 && shape->share > 0.0f) return forward_nf4(&work, out, err);
    while (next_tile(&work))
        TRY(forward_tile(&work, out, err));
    return OK;
}

static int clips(const FakeWeightShape *shape) {
    return shape->share > 0.0f && (shape->grid.grid == FAKE_INT || shape->grid.grid == FAKE_Q4_0);
}

/* dV of the tile behind the mask. */
static Status form_gradient(const FakeWork *work, const Batch *batch, const void *dy, int64_t stride, const void *x,
                            const FakeWeightGrad *grads, Error *err) {
    const FakeWeightShape *shape = work->shape;
    const FakeLayout *layout = &work->layout;
    CudaContext *context = work->context;
    Product product = {.m = work->count,
                       .n = shape->cols,
                       .k = rows_of(context, batch, context->capacity),
                       .a = (const uint8_t *)dy + (size_t)work->first * dtype_size(work->act),
                       .lda = stride > 0 ? stride : shape->rows,
                       .b = x,
                       .c = floats_at(work, layout->dv),
                       .in = work->act,
                       .out = DTYPE_F32};
    TRY(product_tn(context, &product, err));
    if (!clips(shape)) return OK;
    TRY(form_values(work, err));
    const float *scales = shape->scaled ? floats_at(work, layout->scales) : NULL;
    float *d_theta = grads->theta != NULL ? grads->theta + work->first * layout->groups : NULL;
    CUDA_TRY(context, cuda_fake_weight_mask(&shape->grid, work->count, shape->cols, floats_at(work, layout->v), scales,
                                            floats_at(work, layout->chain), shape->share, floats_at(work, layout->dv), d_theta,
                                            context->stream));
    return OK;
}

static Status add_gradients(const FakeWork *work, const FakeWeightGrad *grads, Error *err) {
    const FakeWeightShape *shape = work->shape;
    const FakeLayout *layout = &work->layout;
    Product db = {.m = work->count,
                  .n = shape->rank,
                  .k = shape->cols,
                  .a = floats_at(work, layout->dv),
                  .lda = shape->cols,
                  .b = floats_at(work, layout->a),
                  .c = grads->lora_b + work->first * shape->rank,
                  .in = DTYPE_F32,
                  .out = DTYPE_F32,
                  .beta = 1.0f};
    Product da = {.m = shape->rank,
                  .n = shape->cols,
                  .k = work->count,
                  .a = floats_at(work, layout->b) + work->first * shape->rank,
                  .lda = shape->rank,
                  .b = floats_at(work, layout->dv),
                  .c = grads->lora_a,
                  .in = DTYPE_F32,
                  .out = DTYPE_F32,
                  .beta = 1.0f};
    TRY(product_nt(work->context, &db, err));
    return product_tn(work->context, &da, err);
}

static Status fake_weight_backward(const Exec *exec, const FakeWeightShape *shape, const FakeWeightOperand *operand,
                                   const Batch *batch, const void *dy, int64_t stride, const void *x,
                                   const FakeWeightGrad *grads, void *workspace, Error *err) {
    FakeWork work = open_work(exec, shape, operand, workspace);
    CudaContext *context = work.context;
    if (context->whole) { /* the product sums over rows: nothing may be found in those that are not in use */
        CUDA_TRY(context, cuda_zero_tail(work.act, context->batch, context->capacity, shape->cols, (void *)(uintptr_t)x, 0,
                                         context->stream));
        CUDA_TRY(context, cuda_zero_tail(work.act, context->batch, context->capacity, shape->rows, (void *)(uintptr_t)dy,
                                         stride, context->stream));
    }
    if (shape->rank > 0) {
        CUDA_TRY(context, cuda_scale_to_float(work.act, shape->rank * shape->cols, operand->lora_a, shape->lora_scale,
                                              floats_at(&work, work.layout.a), context->stream));
        CUDA_TRY(context, cuda_scale_to_float(work.act, shape->rank * shape->rows, operand->lora_b, shape->lora_scale,
                                              floats_at(&work, work.layout.b), context->stream));
    }
    while (next_tile(&work)) {
        TRY(form_gradient(&work, batch, dy, stride, x, grads, err));
        if (shape->rank > 0) TRY(add_gradients(&work, grads, err));
    }
    return OK;
}

static Status fake_weight_scales(const Exec *exec, const FakeWeightShape *shape, const FakeWeightOperand *operand,
                                 float *scales, void *workspace, Error *err) {
    FakeWork work = open_work(exec, shape, operand, workspace);
    while (next_tile(&work)) {
        TRY(form_values(&work, err));
        CUDA_TRY(work.context, cudaMemcpyAsync(scales + work.first * work.layout.groups, floats_at(&work, work.layout.scales),
                                               (size_t)(work.count * work.layout.groups) * sizeof(float),
                                               cudaMemcpyDeviceToDevice, work.context->stream));
    }
    return OK;
}

void cuda_install_fake_weight(Backend *backend) {
    backend->fake_weight_plan = fake_weight_plan;
    backend->fake_weight_forward = fake_weight_forward;
    backend->fake_weight_backward = fake_weight_backward;
    backend->fake_weight_scales = fake_weight_scales;
}
