/* Operands of quantization-aware training through the plugin's own entries: the bits of the CPU's fake quantizers for every grid, base
 * and share, over the edges of tiles; gradients beside plain sums; values that a grid cannot hold. */
#include "kernels/cuda/plugin.h"
#include "quant/fake_quant.h"
#include "quant/group_int.h"
#include "quant/quantize.h"
#include "tests/cuda_emu/device.h"

extern const DevicePlugin nibble_device_plugin;

#define TOKENS 9

typedef struct Run {
    FakeQuant grid;
    DType act;
    WeightFormat base;
    int64_t rows, cols, rank, tile;
    float share;
    int scaled; /* LEARNED: by theta; KNOWN: s0 was found before */
} Run;
enum { LEARNED = 1, KNOWN = 2 };

typedef struct Case {
    const Run *run;
    Scope scope;
    Device device;
    Backend backend, reference;
    Exec there;
    FakeWeightShape shape;
    WeightView base;
    void *a, *b, *x, *dy; /* host */
    float *theta, *known, *v, *quantized, *slope, *chain, *row;
    uint8_t *mask;
    FakeWeightOperand operand; /* device */
    void *workspace;
} Case;

static int64_t group_of(const Run *run) {
    return run->grid.group > 0 ? run->grid.group : run->cols;
}

/* V, as train/lora_row.c adds. */
static void merge(Case *c) {
    const Run *run = c->run;
    DType act = run->act;
    c->reference.dequantize(&c->base, 0, run->rows * run->cols, c->v, DTYPE_F32);
    for (int64_t i = 0; i < run->rows && run->rank > 0; i++)
        for (int64_t j = 0; j < run->cols; j++) {
            float sum = 0.0f;
            for (int64_t r = 0; r < run->rank; r++)
                sum += (float)element_of(act, c->b, i * run->rank + r) * (float)element_of(act, c->a, r * run->cols + j);
            c->v[i * run->cols + j] += c->shape.lora_scale * sum;
        }
}

static void fake_nf4(Case *c) {
    const Run *run = c->run;
    Error err = {0};
    Arena arena = {0};
    Quantizer *quantizer;
    QuantizedTensor tensor;
    QuantSpec spec = {.format = WEIGHT_NF4, .double_quant = run->grid.double_quant, .block_size = run->grid.block_size};
    assert_ok(arena_create(&arena, "one weight", 1 << 20, &err), &err);
    assert_ok(quantized_take(&tensor, &spec, run->rows, run->cols, &arena, &err), &err);
    assert_ok(quantizer_create(&quantizer, &c->reference, NULL, quant_nested_constants(&spec, run->rows, run->cols), &err),
              &err);
    assert_ok(quantize_tensor(quantizer, c->v, DTYPE_F32, &tensor, &err), &err);
    WeightView view = quantized_view(&tensor);
    c->reference.dequantize(&view, 0, run->rows * run->cols, c->quantized, DTYPE_F32);
    quantizer_free(quantizer);
    arena_free(&arena);
}

/* Scales of a row from the base, what is known and theta (train/qat_scales.h). */
static void kept_scales(Case *c, int64_t row, float *scales) {
    const Run *run = c->run;
    int64_t group = group_of(run), groups = run->cols / group;
    GroupInt exact = {.bits = run->grid.bits, .symmetric = 1, .group = run->grid.group, .scale_type = DTYPE_F32};
    float *w = c->row;
    float root = sqrtf((float)group * (float)((1 << (run->grid.bits - 1)) - 1));
    c->reference.dequantize(&c->base, row * run->cols, run->cols, w, DTYPE_F32);
    for (int64_t g = 0; g < groups; g++) {
        float first, theta = run->scaled & LEARNED ? c->theta[row * groups + g] : 1.0f;
        uint8_t zero;
        group_int_scale_of(&exact, w + g * group, group, &first, &zero);
        if (run->scaled & KNOWN) first = c->known[row * groups + g];
        float scale = group_int_round(first * (theta > FAKE_THETA_LEAST ? theta : FAKE_THETA_LEAST), run->grid.scale_type);
        scales[g] = scale == 0.0f ? 0x1p-23f : scale;
        c->chain[row * groups + g] = first / root;
    }
}

static void fake_rows(Case *c) {
    const Run *run = c->run;
    void *scratch = scope_scratch(&c->scope, fake_quant_scratch(&run->grid, run->cols));
    float *scales = scope_nan(&c->scope, DTYPE_F32, run->cols);
    for (int64_t i = 0; i < run->rows; i++) {
        int64_t at = i * run->cols;
        if (run->scaled) {
            kept_scales(c, i, scales);
            assert_int_equal(
                fake_quant_row_scaled(&run->grid, c->v + at, run->cols, scales, c->quantized + at, c->mask + at, c->slope + at),
                0);
        } else {
            assert_int_equal(fake_quant_row(&run->grid, c->v + at, run->cols, c->quantized + at, c->mask + at, scratch), 0);
        }
    }
}

static const float *nested_map(Case *c) {
    static float map[256];
    Arena arena = {0};
    Error err = {0};
    QuantizedTensor tensor;
    Quantizer *quantizer;
    QuantSpec spec = {.format = WEIGHT_NF4, .double_quant = 1, .block_size = 64};
    float values[64] = {1.0f};
    assert_ok(arena_create(&arena, "one weight", 1 << 16, &err), &err);
    assert_ok(quantized_take(&tensor, &spec, 1, 64, &arena, &err), &err);
    assert_ok(quantizer_create(&quantizer, &c->reference, NULL, 1, &err), &err);
    assert_ok(quantize_tensor(quantizer, values, DTYPE_F32, &tensor, &err), &err);
    memcpy(map, tensor.nested_map, sizeof map);
    quantizer_free(quantizer);
    arena_free(&arena);
    return device_in(&c->device, map, sizeof map);
}

static void case_open(Case *c, const Run *run) {
    Error err = {0};
    OpPlan plan;
    char name[96];
    memset(c, 0, sizeof *c);
    c->run = run;
    int64_t values = run->rows * run->cols, groups = run->rows * (run->cols / group_of(run));
    cpu_backend_reference(&c->reference);
    c->backend = c->reference;
    nibble_device_plugin.install(&c->backend);
    c->there = (Exec){.config = {.act = run->act, .threads = 1}};
    assert_ok(nibble_device_plugin.open(0, &c->there.device, name, sizeof name, &err), &err);
    c->shape = (FakeWeightShape){.rows = run->rows,
                                 .cols = run->cols,
                                 .grid = run->grid,
                                 .rank = run->rank,
                                 .lora_scale = 1.7f,
                                 .share = run->share,
                                 .scaled = run->scaled != 0,
                                 .tile = run->tile,
                                 .layer = 3,
                                 .linear = 4};
    assert_ok(c->backend.fake_weight_plan(&c->there.config, &c->shape, &plan, &err), &err);
    c->base = scope_weight(&c->scope, run->base, run->rows, run->cols, 64, run->base == WEIGHT_NF4);
    c->a = scope_random(&c->scope, run->act, run->rank * run->cols, 0.2);
    c->b = scope_random(&c->scope, run->act, run->rows * run->rank, 0.2);
    c->x = scope_random(&c->scope, run->act, TOKENS * run->cols, 1.0);
    c->dy = scope_random(&c->scope, run->act, TOKENS * (run->rows + 3), 1.0);
    c->theta = scope_random(&c->scope, DTYPE_F32, groups, 0.3);
    for (int64_t g = 0; g < groups; g++)
        c->theta[g] += 0.29f; /* some below the least */
    c->known = scope_random(&c->scope, DTYPE_F32, groups, 0.02);
    for (int64_t g = 0; g < groups; g++)
        c->known[g] = g % 11 == 5 ? 0.0f : 0.06f + fabsf(c->known[g]);
    c->v = scope_nan(&c->scope, DTYPE_F32, values);
    c->quantized = scope_nan(&c->scope, DTYPE_F32, values);
    c->slope = scope_filled(&c->scope, DTYPE_F32, values, 0.0);
    c->chain = scope_nan(&c->scope, DTYPE_F32, groups);
    c->row = scope_nan(&c->scope, DTYPE_F32, run->cols);
    c->mask = scope_bytes(&c->scope, (size_t)values);
    memset(c->mask, 1, (size_t)values);
    merge(c);
    size_t element = dtype_size(run->act);
    c->operand = (FakeWeightOperand){.base = device_weight(&c->device, &c->base),
                                     .lora_a = device_in(&c->device, c->a, (size_t)(run->rank * run->cols) * element),
                                     .lora_b = device_in(&c->device, c->b, (size_t)(run->rank * run->rows) * element),
                                     .theta = device_in(&c->device, c->theta, (size_t)groups * sizeof(float)),
                                     .nested_map = nested_map(c)};
    size_t bytes = plan.forward_workspace > plan.backward_workspace ? plan.forward_workspace : plan.backward_workspace;
    if (run->scaled & KNOWN) c->operand.first = device_in(&c->device, c->known, (size_t)groups * sizeof(float));
    if (!(run->scaled & LEARNED)) c->operand.theta = NULL;
    c->workspace = device_out(&c->device, NULL, bytes);
    assert_cuda(cudaDeviceSynchronize()); /* the plugin's streams do not wait for these copies and fills */
}

static void case_close(Case *c) {
    nibble_device_plugin.close(c->there.device);
    device_close(&c->device);
    scope_close(&c->scope);
}

static void check_forward(Case *c, void *out) {
    const Run *run = c->run;
    Error err = {0};
    int64_t values = run->rows * run->cols;
    void *want = scope_nan(&c->scope, run->act, values), *got = scope_nan(&c->scope, run->act, values);
    float *operand = scope_nan(&c->scope, DTYPE_F32, values);
    if (run->grid.grid == FAKE_NF4)
        fake_nf4(c);
    else
        fake_rows(c);
    for (int64_t i = 0; i < values; i++)
        operand[i] = run->share >= 1.0f ? c->quantized[i] : c->v[i] + run->share * (c->quantized[i] - c->v[i]);
    dtype_convert(want, run->act, run->share > 0.0f ? operand : c->v, DTYPE_F32, values);
    assert_ok(c->backend.fake_weight_forward(&c->there, &c->shape, &c->operand, out, c->workspace, &err), &err);
    assert_ok(c->backend.finish(&c->there, &err), &err);
    device_read(got, out, (size_t)values * dtype_size(run->act));
    assert_memory_equal(got, want, (size_t)values * dtype_size(run->act));
}

/* Gradients by plain sums in double, behind the CPU's masks; what is there already stays in the sum. */
static void check_backward(Case *c) {
    const Run *run = c->run;
    Error err = {0};
    Batch batch;
    int64_t tokens = TOKENS - 2, group = group_of(run), groups = run->rows * (run->cols / group);
    int64_t counts[3] = {run->rank * run->cols, run->rank * run->rows, groups};
    double *want[3];
    float *got[3];
    for (int k = 0; k < 3; k++) {
        want[k] = scope_filled(&c->scope, DTYPE_F64, counts[k], 0.5);
        float *start = scope_filled(&c->scope, DTYPE_F32, counts[k], 0.5);
        got[k] = device_out(&c->device, start, (size_t)counts[k] * sizeof(float));
    }
    for (int64_t i = 0; i < run->rows; i++)
        for (int64_t j = 0; j < run->cols; j++) {
            double dv = 0.0;
            int64_t at = i * run->cols + j;
            for (int64_t t = 0; t < tokens; t++)
                dv += element_of(run->act, c->dy, t * (run->rows + 3) + i) * element_of(run->act, c->x, t * run->cols + j);
            if (run->scaled & LEARNED && run->share > 0.0f)
                want[2][at / group] += (double)run->share * (double)c->chain[at / group] * dv * (double)c->slope[at];
            if (!c->mask[at] && run->share > 0.0f) dv *= 1.0 - (double)run->share;
            for (int64_t r = 0; r < run->rank; r++) {
                double scale = (double)c->shape.lora_scale;
                want[0][r * run->cols + j] += scale * dv * element_of(run->act, c->b, i * run->rank + r);
                want[1][i * run->rank + r] += scale * dv * element_of(run->act, c->a, r * run->cols + j);
            }
        }
    batch = scope_batch(&c->scope, &tokens, 1, 10);
    size_t element = dtype_size(run->act);
    void *memory = device_out(&c->device, NULL, c->backend.batch_bytes(TOKENS, batch.supervised));
    void *x = device_out(&c->device, c->x, (size_t)(TOKENS * run->cols) * element);
    void *dy = device_out(&c->device, c->dy, (size_t)(TOKENS * (run->rows + 3)) * element);
    FakeWeightGrad grads = {got[0], got[1], run->scaled & LEARNED ? got[2] : NULL};
    assert_cuda(cudaDeviceSynchronize());
    assert_ok(c->backend.begin(&c->there, &batch, TOKENS, batch.supervised, 0, 1, memory, &err), &err);
    assert_ok(c->backend.fake_weight_backward(&c->there, &c->shape, &c->operand, &batch, dy, run->rows + 3, x, &grads,
                                              c->workspace, &err),
              &err);
    assert_ok(c->backend.finish(&c->there, &err), &err);
    static const char *const names[] = {"dA", "dB", "dtheta"};
    for (int k = 0; k < (run->scaled & LEARNED ? 3 : 2); k++) {
        if (counts[k] == 0) continue;
        float *narrow = scope_nan(&c->scope, DTYPE_F32, counts[k]);
        dtype_convert(narrow, DTYPE_F32, want[k], DTYPE_F64, counts[k]);
        device_compare(names[k], DTYPE_F32, got[k], narrow, counts[k], 0, 3e-5, "sums in FP32");
    }
}

static void check_scales(Case *c) {
    const Run *run = c->run;
    Error err = {0};
    int64_t groups = run->cols / group_of(run);
    float *want = scope_nan(&c->scope, DTYPE_F32, run->rows * groups),
          *got = scope_nan(&c->scope, DTYPE_F32, run->rows * groups);
    float *there = device_nan(&c->device, DTYPE_F32, run->rows * groups);
    for (int64_t i = 0; i < run->rows; i++)
        kept_scales(c, i, want + i * groups);
    assert_cuda(cudaDeviceSynchronize());
    assert_ok(c->backend.fake_weight_scales(&c->there, &c->shape, &c->operand, there, c->workspace, &err), &err);
    device_read(got, there, (size_t)(run->rows * groups) * sizeof(float));
    assert_memory_equal(got, want, (size_t)(run->rows * groups) * sizeof(float));
}

static void check(const Run *run) {
    Case *c = memory_alloc(sizeof *c);
    case_open(c, run);
    void *out = device_nan(&c->device, run->act, run->rows * run->cols);
    assert_cuda(cudaDeviceSynchronize());
    check_forward(c, out);
    check_backward(c);
    if (run->scaled) check_scales(c);
    case_close(c);
    memory_free(c);
}

#define INT(bits_, symmetric_, group_, type_) \
    { .grid = FAKE_INT, .bits = bits_, .symmetric = symmetric_, .group = group_, .scale_type = type_ }
#define NF4(nested) \
    { .grid = FAKE_NF4, .double_quant = nested, .block_size = 64 }
#define Q4 \
    { .grid = FAKE_Q4_0 }
#define Q8 \
    { .grid = FAKE_Q8_0 }

static void integers(void **state) {
    (void)state;
    static const Run runs[] = {
        {INT(4, 1, 32, DTYPE_BF16), DTYPE_BF16, WEIGHT_BF16, 7, 96, 4, 0, 1.0f, 0},
        {INT(4, 0, 32, DTYPE_BF16), DTYPE_BF16, WEIGHT_BF16, 67, 64, 3, 64, 1.0f, 0},
        {INT(4, 0, 64, DTYPE_F32), DTYPE_F32, WEIGHT_F32, 130, 64, 5, 64, 0.25f, 0},
        {INT(3, 1, 64, DTYPE_F16), DTYPE_F32, WEIGHT_NF4, 9, 128, 2, 0, 1.0f, 0},
        {INT(2, 1, 128, DTYPE_BF16), DTYPE_BF16, WEIGHT_NF4, 5, 256, 16, 0, 0.5f, 0},
        {INT(2, 0, 32, DTYPE_F16), DTYPE_F32, WEIGHT_INT8, 3, 160, 1, 0, 1.0f, 0},
        {INT(8, 1, 0, DTYPE_BF16), DTYPE_BF16, WEIGHT_BF16, 6, 51, 4, 0, 1.0f, 0},
        {INT(8, 0, 0, DTYPE_F32), DTYPE_F32, WEIGHT_F32, 5, 771, 4, 0, 1.0f, 0},
        {INT(8, 1, 0, DTYPE_F32), DTYPE_F32, WEIGHT_BF16, 66, 260, 0, 64, 0.75f, 0},
        {INT(4, 1, 32, DTYPE_F32), DTYPE_F32, WEIGHT_GGML, 4, 64, 7, 0, 0.0f, 0},
    };
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++)
        check(&runs[i]);
}

static void learned(void **state) {
    (void)state;
    static const Run runs[] = {
        {INT(4, 1, 32, DTYPE_BF16), DTYPE_BF16, WEIGHT_BF16, 7, 96, 4, 0, 1.0f, 1},
        {INT(3, 1, 64, DTYPE_F32), DTYPE_F32, WEIGHT_NF4, 67, 128, 3, 64, 0.5f, 1},
        {INT(2, 1, 32, DTYPE_F16), DTYPE_F32, WEIGHT_F32, 5, 32, 0, 0, 1.0f, 1},
        {INT(8, 1, 0, DTYPE_BF16), DTYPE_BF16, WEIGHT_BF16, 3, 771, 2, 0, 1.0f, 1},
    };
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++)
        check(&runs[i]);
}

static void known(void **state) {
    (void)state;
    static const Run runs[] = {
        {INT(4, 1, 32, DTYPE_BF16), DTYPE_BF16, WEIGHT_BF16, 7, 96, 4, 0, 1.0f, KNOWN},
        {INT(3, 1, 64, DTYPE_F32), DTYPE_F32, WEIGHT_NF4, 67, 128, 3, 64, 0.5f, KNOWN | LEARNED},
        {INT(2, 1, 32, DTYPE_F16), DTYPE_F32, WEIGHT_F32, 5, 32, 0, 0, 1.0f, KNOWN | LEARNED},
        {INT(8, 1, 0, DTYPE_BF16), DTYPE_BF16, WEIGHT_BF16, 3, 771, 2, 0, 1.0f, KNOWN},
    };
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++)
        check(&runs[i]);
}

static void blocks(void **state) {
    (void)state;
    static const Run runs[] = {
        {Q4, DTYPE_BF16, WEIGHT_BF16, 7, 96, 4, 0, 1.0f, 0},        {Q4, DTYPE_F32, WEIGHT_NF4, 66, 64, 2, 64, 0.5f, 0},
        {Q8, DTYPE_BF16, WEIGHT_BF16, 5, 32, 3, 0, 1.0f, 0},        {Q8, DTYPE_F32, WEIGHT_F32, 67, 160, 8, 64, 0.25f, 0},
        {NF4(0), DTYPE_F32, WEIGHT_F32, 3, 21, 2, 0, 1.0f, 0},      {NF4(0), DTYPE_BF16, WEIGHT_BF16, 67, 33, 4, 64, 1.0f, 0},
        {NF4(1), DTYPE_BF16, WEIGHT_NF4, 130, 257, 4, 64, 1.0f, 0}, {NF4(1), DTYPE_F32, WEIGHT_F32, 131, 96, 3, 64, 0.5f, 0},
        {NF4(1), DTYPE_BF16, WEIGHT_BF16, 17, 96, 3, 0, 0.5f, 0},   {NF4(1), DTYPE_F32, WEIGHT_F32, 5, 64, 3, 0, 0.0f, 0},
    };
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++)
        check(&runs[i]);
}

/* Groups of zeros, of one value, of tiny ones, with ties for the largest, and of values that lie on a border between codes. */
static void edges(void **state) {
    (void)state;
    static const FakeQuant grids[] = {INT(4, 1, 32, DTYPE_BF16),
                                      INT(4, 0, 32, DTYPE_F32),
                                      INT(2, 0, 32, DTYPE_F16),
                                      INT(8, 1, 0, DTYPE_BF16),
                                      Q4,
                                      Q8,
                                      NF4(1)};
    enum { ROWS = 12, COLS = 64 };
    for (size_t k = 0; k < sizeof grids / sizeof *grids; k++) {
        Run run = {grids[k], DTYPE_F32, WEIGHT_F32, ROWS, COLS, 0, 0, 1.0f, 0};
        Case *c = memory_alloc(sizeof *c);
        case_open(c, &run);
        float *w = scope_nan(&c->scope, DTYPE_F32, ROWS * COLS);
        for (int64_t i = 0; i < ROWS * COLS; i++) {
            int64_t row = i / COLS, j = i % COLS;
            static const float borders[] = {7.5f, 0.5f, -0.5f, 1.5f, -1.5f, -7.5f, 2.5f, -0.0f};
            w[i] = row == 0   ? 0.0f
                   : row == 1 ? -0.0f
                   : row == 2 ? (j == 40 ? -3.0f : 0.0f)
                   : row == 3 ? (float)(j % 3 - 1) * 1e-40f
                   : row == 4 ? (float)(j % 5 - 2) * 1e-30f
                   : row == 5 ? (j % 2 == 0 ? 2.0f : -2.0f)
                   : row == 6 ? borders[j % 8]
                   : row == 7 ? -borders[j % 8]
                   : row == 8 ? 1.0f + (float)j * 0x1p-20f
                   : row == 9 ? -0x1p-24f * (float)(j + 1)
                              : (float)((j * 37 + row) % 101 - 50) * (row == 10 ? 1.0f : 0.02f);
        }
        c->base.data = w;
        c->operand.base = device_weight(&c->device, &c->base);
        merge(c);
        void *out = device_nan(&c->device, DTYPE_F32, ROWS * COLS);
        assert_cuda(cudaDeviceSynchronize());
        check_forward(c, out);
        case_close(c);
        memory_free(c);
    }
}

/* What a grid cannot hold is said once, by its place; and grids that are not here are refused by name. */
static void faults(void **state) {
    (void)state;
    static const Run runs[] = {{INT(4, 1, 32, DTYPE_F16), DTYPE_F32, WEIGHT_F32, 70, 64, 0, 64, 1.0f, 0},
                               {Q8, DTYPE_F32, WEIGHT_F32, 70, 64, 0, 64, 1.0f, 0},
                               {NF4(1), DTYPE_F32, WEIGHT_F32, 70, 64, 0, 64, 1.0f, 0}};
    static const float bad[] = {1e30f, -INFINITY, NAN};
    for (size_t k = 0; k < 3; k++) {
        Case *c = memory_alloc(sizeof *c);
        Error err = {0};
        case_open(c, &runs[k]);
        float *w = scope_random(&c->scope, DTYPE_F32, 70 * 64, 1.0);
        void *out = device_nan(&c->device, DTYPE_F32, 70 * 64);
        w[66 * 64 + 5] = bad[k];
        c->base.data = w;
        c->operand.base = device_weight(&c->device, &c->base);
        assert_cuda(cudaDeviceSynchronize());
        assert_ok(c->backend.fake_weight_forward(&c->there, &c->shape, &c->operand, out, c->workspace, &err), &err);
        assert_refused(c->backend.finish(&c->there, &err), &err, "gate_proj of layer 3: value 42");
        assert_ok(c->backend.finish(&c->there, &err), &err);
        FakeWeightShape other = c->shape;
        OpPlan plan;
        other.grid = (FakeQuant){.grid = FAKE_Q4_K};
        assert_refused(c->backend.fake_weight_plan(&c->there.config, &other, &plan, &err), &err, "q4_k");
        case_close(c);
        memory_free(c);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(integers), cmocka_unit_test(learned), cmocka_unit_test(known),
                                       cmocka_unit_test(blocks),   cmocka_unit_test(edges),   cmocka_unit_test(faults)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
