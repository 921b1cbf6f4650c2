/* Weights on their way through the plugin's own entries: made dense ahead of their products, in order and captured; and loaded in
 * parts through pinned slots, to the bytes of the CPU's quantizer. */
#include "kernels/cuda/plugin.h"
#include "quant/double_quant.h"
#include "quant/quantize.h"
#include "tests/cuda_emu/device.h"

extern const DevicePlugin nibble_device_plugin;

typedef struct Opened {
    Backend backend, reference;
    Exec exec;
    Scope scope;
    Error err;
} Opened;

static void opened_open(Opened *o) {
    *o = (Opened){.exec = {.config = {.act = DTYPE_F32, .threads = 1}}};
    char name[96];
    cpu_backend_reference(&o->reference);
    o->backend = o->reference;
    nibble_device_plugin.install(&o->backend);
    assert_ok(nibble_device_plugin.open(0, &o->exec.device, name, sizeof name, &o->err), &o->err);
}

static void opened_close(Opened *o) {
    nibble_device_plugin.close(o->exec.device);
    scope_close(&o->scope);
}

/* A weight of random values, quantized by the CPU. */
static QuantizedTensor quantized(Opened *o, const QuantSpec *spec, const void *x, DType type, int64_t rows, int64_t cols,
                                 Arena *arena) {
    QuantizedTensor tensor;
    Quantizer *quantizer;
    assert_ok(quantized_take(&tensor, spec, rows, cols, arena, &o->err), &o->err);
    assert_ok(quantizer_create(&quantizer, &o->reference, NULL, quant_nested_constants(spec, rows, cols), &o->err), &o->err);
    assert_ok(quantize_tensor(quantizer, x, type, &tensor, &o->err), &o->err);
    quantizer_free(quantizer);
    return tensor;
}

/* ---- ahead of products ---- */

enum { ROWS = 9, IN = 64, OUT = 40, GROUPS = 3 };

typedef struct Ahead {
    Opened opened;
    Device device;
    LinearShape shape;
    OpPlan plan;
    LinearOperand operands[GROUPS][2];
    void *x, *y[GROUPS][2], *memory[GROUPS], *workspace, *batch_memory;
    Batch batch;
} Ahead;

static void ahead_open(Ahead *a, Arena *arena) {
    memset(a, 0, sizeof *a);
    Opened *o = &a->opened;
    opened_open(o);
    QuantSpec spec = {.format = WEIGHT_NF4, .double_quant = 1, .block_size = 64};
    LinearSpec member = {.out = OUT, .format = WEIGHT_NF4};
    int64_t lengths[1] = {ROWS};
    a->batch = scope_batch(&o->scope, lengths, 1, 10);
    a->shape = (LinearShape){.rows = ROWS, .in = IN, .count = 2, .linear = {member, member}};
    assert_ok(o->backend.linear_plan(&o->exec.config, &a->shape, &a->plan, &o->err), &o->err);
    assert_int_equal(a->plan.staged, 2 * OUT * IN * sizeof(float));
    assert_int_equal(a->plan.forward_workspace, a->plan.staged);
    a->x = device_in_values(&a->device, DTYPE_F32, scope_random(&o->scope, DTYPE_F32, ROWS * IN, 1.0), ROWS * IN);
    a->workspace = device_out(&a->device, NULL, a->plan.forward_workspace);
    a->batch_memory = device_out(&a->device, NULL, o->backend.batch_bytes(ROWS, a->batch.supervised));
    for (int g = 0; g < GROUPS; g++) {
        uint8_t *both = device_out(&a->device, NULL, 2 * ROWS * OUT * sizeof(float));
        a->memory[g] = device_out(&a->device, NULL, a->plan.staged);
        for (int i = 0; i < 2; i++) {
            const void *w = scope_random(&o->scope, DTYPE_F32, OUT * IN, 0.2);
            QuantizedTensor tensor = quantized(o, &spec, w, DTYPE_F32, OUT, IN, arena);
            WeightView view = quantized_view(&tensor);
            a->operands[g][i].weight = device_weight(&a->device, &view);
            a->y[g][i] = both + (size_t)(i * ROWS * OUT) * sizeof(float);
        }
    }
    assert_cuda(cudaDeviceSynchronize());
    assert_ok(o->backend.begin(&o->exec, &a->batch, ROWS, a->batch.supervised, 0, 1, a->batch_memory, &o->err), &o->err);
}

static void ahead_close(Ahead *a) {
    device_close(&a->device);
    opened_close(&a->opened);
}

static void multiply(Ahead *a, int g, void *staged) {
    Opened *o = &a->opened;
    for (int i = 0; i < 2; i++)
        a->operands[g][i].staged = staged;
    assert_ok(o->backend.linear_forward(&o->exec, &a->shape, &a->batch, a->x, a->operands[g], a->y[g], NULL,
                                        staged == NULL ? a->workspace : NULL, &o->err),
              &o->err);
}

static void stage(Ahead *a, int g) {
    Opened *o = &a->opened;
    assert_ok(o->backend.stage(&o->exec, &a->shape, a->operands[g], a->memory[g], &o->err), &o->err);
}

/* All groups, each made ready while the one before it is multiplied. */
static void run_ahead(Ahead *a) {
    stage(a, 0);
    for (int g = 0; g < GROUPS; g++) {
        if (g + 1 < GROUPS) stage(a, g + 1);
        multiply(a, g, a->memory[g]);
    }
}

static void read_results(Ahead *a, float *out) {
    for (int g = 0; g < GROUPS; g++)
        device_read(out + g * 2 * ROWS * OUT, a->y[g][0], 2 * ROWS * OUT * sizeof(float));
}

static void spoil(Ahead *a) {
    for (int g = 0; g < GROUPS; g++) {
        assert_cuda(cudaMemset(a->y[g][0], 0xFF, 2 * ROWS * OUT * sizeof(float)));
        assert_cuda(cudaMemset(a->memory[g], 0xFF, a->plan.staged));
    }
    assert_cuda(cudaDeviceSynchronize());
}

static void test_ahead(void **state) {
    (void)state;
    Ahead *a = memory_alloc(sizeof *a);
    Arena arena = {0};
    Error err = {0};
    assert_ok(arena_create(&arena, "weights", 1 << 20, &err), &err);
    ahead_open(a, &arena);
    Opened *o = &a->opened;
    static float want[GROUPS * 2 * ROWS * OUT], got[GROUPS * 2 * ROWS * OUT];
    for (int g = 0; g < GROUPS; g++)
        multiply(a, g, NULL);
    read_results(a, want);
    for (int i = 0; i < GROUPS * 2 * ROWS * OUT; i++)
        assert_true(want[i] - want[i] == 0.0f);
    spoil(a);
    run_ahead(a);
    read_results(a, got);
    assert_memory_equal(got, want, sizeof want);
    /* as it comes, captured, replayed */
    const void *const key[PART_KEYS] = {a};
    for (int run = 0; run < 3; run++) {
        int done;
        spoil(a);
        assert_ok(o->backend.part_begin(&o->exec, key, 0, &done, &o->err), &o->err);
        assert_int_equal(done, run == 2);
        if (!done) {
            run_ahead(a);
            assert_ok(o->backend.part_end(&o->exec, &o->err), &o->err);
        }
        read_results(a, got);
        assert_memory_equal(got, want, sizeof want);
    }
    /* what fails while it is captured is dropped: it comes again, is captured again */
    for (int run = 0; run < 4; run++) {
        int done;
        spoil(a);
        assert_ok(o->backend.part_begin(&o->exec, key, 2, &done, &o->err), &o->err);
        assert_int_equal(done, run == 3);
        if (run == 1) {
            stage(a, 0);
            assert_ok(o->backend.part_end(&o->exec, NULL), &o->err);
            assert_ok(o->backend.begin(&o->exec, &a->batch, ROWS, a->batch.supervised, 0, 1, a->batch_memory, &o->err),
                      &o->err);
            continue;
        }
        if (!done) {
            run_ahead(a);
            assert_ok(o->backend.part_end(&o->exec, &o->err), &o->err);
        }
        read_results(a, got);
        assert_memory_equal(got, want, sizeof want);
    }
    /* made ready outside, used inside */
    for (int run = 0; run < 3; run++) {
        int done;
        spoil(a);
        stage(a, 0);
        assert_ok(o->backend.part_begin(&o->exec, key, 1, &done, &o->err), &o->err);
        if (!done) {
            multiply(a, 0, a->memory[0]);
            assert_ok(o->backend.part_end(&o->exec, &o->err), &o->err);
        }
        device_read(got, a->y[0][0], 2 * ROWS * OUT * sizeof(float));
        assert_memory_equal(got, want, 2 * ROWS * OUT * sizeof(float));
    }
    ahead_close(a);
    arena_free(&arena);
    memory_free(a);
}

static void test_at_most_two(void **state) {
    (void)state;
    Ahead *a = memory_alloc(sizeof *a);
    Arena arena = {0};
    Error err = {0};
    assert_ok(arena_create(&arena, "weights", 1 << 20, &err), &err);
    ahead_open(a, &arena);
    Opened *o = &a->opened;
    stage(a, 0);
    stage(a, 1);
    assert_int_equal(o->backend.stage(&o->exec, &a->shape, a->operands[2], a->memory[2], &o->err), ERR_FAILED);
    /* what a failed run leaves is forgotten */
    assert_ok(o->backend.begin(&o->exec, &a->batch, ROWS, a->batch.supervised, 0, 1, a->batch_memory, &o->err), &o->err);
    run_ahead(a);
    ahead_close(a);
    arena_free(&arena);
    memory_free(a);
}

/* ---- loading ---- */

typedef struct Load {
    QuantSpec spec;
    DType type;
    int64_t rows, cols, part; /* rows of a part */
} Load;

static void same(const char *what, const void *want, const void *from, size_t bytes) {
    uint8_t *got = memory_alloc(bytes > 0 ? bytes : 1);
    device_read(got, from, bytes);
    if (memcmp(got, want, bytes) != 0) fail_msg("%s differ", what);
    memory_free(got);
}

/* One weight in parts through two slots; bad: an element that is made NaN, or -1. */
static void load_weight(Opened *o, const Load *load, int64_t bad) {
    Arena arena = {0};
    Device device = {0};
    int64_t count = load->rows * load->cols;
    uint8_t *x = scope_random(&o->scope, load->type, count, 0.2);
    size_t size = dtype_size(load->type), slot_bytes = (size_t)(load->part * load->cols) * size;
    assert_ok(arena_create(&arena, "weight", 1 << 20, &o->err), &o->err);
    QuantizedTensor tensor = quantized(o, &load->spec, x, load->type, load->rows, load->cols, &arena);
    if (bad >= 0) memset(x + (size_t)bad * size, 0xFF, size);

    WeightView want = quantized_view(&tensor), to = want;
    to.data = device_out(&device, NULL, tensor.code_bytes);
    if (want.codes != NULL) to.codes = device_nan(&device, DTYPE_F32, 16);
    if (want.scales != NULL) to.scales = device_nan(&device, DTYPE_F32, tensor.blocks);
    if (want.nested_codes != NULL) {
        to.nested_codes = device_out(&device, NULL, (size_t)tensor.blocks);
        to.nested_absmax = device_nan(&device, DTYPE_F32, tensor.nested_blocks);
        to.nested_map = device_nan(&device, DTYPE_F32, 256);
    }
    float map[DYNAMIC_MAP_ENTRIES], offset = 1.0f;
    int64_t found = 0;
    dynamic_map(map);
    LoadPlan plan = {.slots = 2, .slot_bytes = slot_bytes, .constants = tensor.blocks, .weights = 1, .nested_map = map};
    uint8_t *slots[2];
    for (int s = 0; s < 2; s++) {
        void *memory;
        assert_ok(o->backend.pinned_take(&o->exec, "slot", slot_bytes, &memory, &o->err), &o->err);
        slots[s] = memory;
    }
    assert_cuda(cudaDeviceSynchronize()); /* the plugin's streams do not wait for these copies and fills */
    assert_ok(o->backend.load_begin(&o->exec, &plan, &o->err), &o->err);
    for (int64_t row = 0, number = 0; row < load->rows; row += load->part, number++) {
        int slot = (int)(number % 2);
        int64_t rows = load->rows - row < load->part ? load->rows - row : load->part;
        LoadPart part = {.to = &to,
                         .slot = slot,
                         .from = slots[slot],
                         .type = load->type,
                         .first = row * load->cols,
                         .values = rows * load->cols};
        assert_ok(o->backend.load_wait(&o->exec, slot, &o->err), &o->err);
        memcpy(slots[slot], x + (size_t)part.first * size, (size_t)part.values * size);
        assert_ok(o->backend.load_part(&o->exec, &part, &o->err), &o->err);
    }
    assert_ok(o->backend.load_end(&o->exec, &offset, &found, &o->err), &o->err);
    assert_int_equal(found, bad);
    if (bad < 0) {
        same("codes", want.data, to.data, tensor.code_bytes);
        if (want.codes != NULL) same("the code table", want.codes, to.codes, 16 * sizeof(float));
        if (want.scales != NULL) same("scales", want.scales, to.scales, (size_t)tensor.blocks * sizeof(float));
        if (want.nested_codes != NULL) {
            same("nested codes", want.nested_codes, to.nested_codes, (size_t)tensor.blocks);
            same("nested constants", want.nested_absmax, to.nested_absmax, (size_t)tensor.nested_blocks * sizeof(float));
            same("the nested map", want.nested_map, to.nested_map, 256 * sizeof(float));
            assert_memory_equal(&offset, &want.nested_offset, sizeof offset);
        }
    }
    for (int s = 0; s < 2; s++)
        o->backend.pinned_give(&o->exec, slots[s]);
    device_close(&device);
    arena_free(&arena);
}

static void test_load(void **state) {
    (void)state;
    static const Load loads[] = {
        {{.format = WEIGHT_NF4, .double_quant = 1, .block_size = 64}, DTYPE_BF16, 37, 96, 4}, /* parts end where blocks do */
        {{.format = WEIGHT_NF4, .double_quant = 1, .block_size = 64}, DTYPE_F32, 70, 257, 64},
        {{.format = WEIGHT_FP4, .block_size = 64}, DTYPE_F16, 5, 64, 1},
        {{.format = WEIGHT_INT8}, DTYPE_BF16, 7, 51, 2},
        {{.format = WEIGHT_INT4, .block_size = 32}, DTYPE_F32, 6, 96, 4},
    };
    Opened opened;
    opened_open(&opened);
    for (size_t i = 0; i < sizeof loads / sizeof *loads; i++) {
        load_weight(&opened, &loads[i], -1);
        load_weight(&opened, &loads[i], loads[i].rows * loads[i].cols - 3);
    }
    opened_close(&opened);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ahead),
        cmocka_unit_test(test_at_most_two),
        cmocka_unit_test(test_load),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
