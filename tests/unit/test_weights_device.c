/* Folders of every kind on their way to a device: the bytes that the CPU's loader has, nothing of them in host memory, and after a
 * failure no memory and no thread that was not there before. NIBBLE_TEST_DEVICE names the device. */
#include "tests/support/scratch.h"
#include "tests/unit/test_core.h"

#include <dirent.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/file.h"
#include "core/memory.h"
#include "tests/support/compare.h"
#include "tests/support/model_folder.h"
#include "tests/support/other_device.h"
#include "train/commands.h"
#include "train/quantize_folder.h"
#include "train/weights_internal.h"

#define CONFIG TINY_CONFIG("llama", ",\"tie_word_embeddings\":false,\"torch_dtype\":\"bfloat16\"")

static Backend cpu;
static Device device;
static Exec exec;
static Error error;
static char *dense;

/* ---- what is taken and given back ---- */

static Backend counted; /* the device's, with the entries below in the place of its own */
static int64_t device_takes, pinned_takes;

static Status memory_take(const Exec *e, const char *what, size_t bytes, void **out, Error *err) {
    TRY(device.backend.memory_take(e, what, bytes, out, err));
    device_takes++;
    return OK;
}

static void memory_give(const Exec *e, void *memory) {
    device.backend.memory_give(e, memory);
    device_takes--;
}

static Status pinned_take(const Exec *e, const char *what, size_t bytes, void **out, Error *err) {
    TRY(device.backend.pinned_take(e, what, bytes, out, err));
    pinned_takes++;
    return OK;
}

static void pinned_give(const Exec *e, void *memory) {
    device.backend.pinned_give(e, memory);
    pinned_takes--;
}

static int threads(void) {
    int count = 0;
    DIR *tasks = opendir("/proc/self/task");
    if (tasks == NULL) return 0;
    for (struct dirent *entry; (entry = readdir(tasks)) != NULL;)
        count += entry->d_name[0] != '.';
    (void)closedir(tasks);
    return count;
}

/* ---- folders ---- */

typedef struct Folder {
    const char *name, *format; /* export's, or NULL: quantize's */
    const char *options[4];
    QuantSpec spec;
} Folder;

static const Folder folders[] = {
    {.name = "nf4", .spec = {.format = WEIGHT_NF4, .double_quant = 1, .block_size = 64}},
    {.name = "nf4-plain", .spec = {.format = WEIGHT_NF4, .block_size = 32}},
    {.name = "fp4", .spec = {.format = WEIGHT_FP4, .double_quant = 1, .block_size = 128}},
    {.name = "int8", .spec = {.format = WEIGHT_INT8}},
    {.name = "gptq", .format = "gptq", .options = {"--sym"}},
    {.name = "gptq-zeros", .format = "gptq", .options = {"--asym", "--group", "16"}},
    {.name = "gptq-3", .format = "gptq", .options = {"--bits", "3", "--asym"}},
    {.name = "gptq-8", .format = "gptq", .options = {"--bits", "8", "--group", "-1"}},
    {.name = "awq", .format = "awq", .options = {"--asym"}},
    {.name = "awq-rows", .format = "awq", .options = {"--sym", "--group", "-1"}},
    {.name = "packed", .format = "compressed-tensors", .options = {"--asym", "--bits", "3"}},
    {.name = "packed-7", .format = "compressed-tensors", .options = {"--bits", "7", "--group", "-1"}},
    {.name = "w8a8", .format = "compressed-tensors", .options = {"--activations", "int8", "--asym"}},
};
#define FOLDERS (sizeof folders / sizeof *folders)

static void make_folder(const Folder *folder) {
    char *to = scratch_path(folder->name);
    if (folder->format == NULL) {
        assert_ok(quantize_folder(dense, to, &folder->spec, &cpu, NULL, &(QuantizedFolder){0}, &error), &error);
    } else {
        char *words[16] = {"export", dense, "--format", (char *)(uintptr_t)folder->format,
                           "--out",  to,    "--json",   "--no-verify"};
        int count = 8;
        for (int i = 0; i < 4 && folder->options[i] != NULL; i++)
            words[count++] = (char *)(uintptr_t)folder->options[i];
        assert_ok(command_export(count, words, &error), &error);
    }
    memory_free(to);
}

static int open_all(void **state) {
    if (scratch_make(state) != 0 || cpu_backend(&cpu, NULL, &error) != OK) return 1;
    if (other_device_name() == NULL) return 0;
    assert_ok(other_device_open(&device, &exec, DTYPE_BF16, &error), &error);
    counted = device.backend;
    counted.memory_take = memory_take;
    counted.memory_give = memory_give;
    counted.pinned_take = pinned_take;
    counted.pinned_give = pinned_give;
    dense = scratch_path("dense");
    model_folder_write(dense, CONFIG, DTYPE_BF16);
    for (size_t f = 0; f < FOLDERS; f++)
        make_folder(&folders[f]);
    return 0;
}

static int close_all(void **state) {
    memory_free(dense);
    device_close(&device);
    return scratch_remove(state);
}

static int has_no_device(void) {
    if (other_device_name() != NULL) return 0;
    print_message("# NIBBLE_TEST_DEVICE names no device: nothing is loaded to one\n");
    return 1;
}

/* ---- loading ---- */

static Status try_load(const char *path, WeightOptions options, int there, ModelWeights **weights, Error *err) {
    ModelConfig *config = memory_alloc(sizeof *config);
    Pool *pool = NULL;
    *weights = NULL;
    if (there) options.exec = &exec;
    Status status = model_config_read(path, config, err);
    if (status == OK) status = pool_create(&pool, 2, err);
    if (status == OK) status = weights_load(weights, path, config, &options, there ? &counted : &cpu, pool, err);
    pool_free(pool);
    memory_free(config);
    return status;
}

static ModelWeights *load(const char *path, WeightOptions options, int there) {
    ModelWeights *weights;
    assert_ok(try_load(path, options, there, &weights, &error), &error);
    return weights;
}

/* Bytes of the host's arena, where the CPU's loader puts everything, that were ever touched. */
static size_t resident(const Arena *arena) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), pages = (arena->capacity + page - 1) / page, count = 0;
    unsigned char *in_memory = memory_alloc(pages);
    assert_int_equal(mincore(arena->base, arena->capacity, in_memory), 0);
    for (size_t p = 0; p < pages; p++)
        count += in_memory[p] & 1;
    memory_free(in_memory);
    return count * page;
}

/* 0 on a real device, which loads kernels when they are first wanted and has other users. */
static size_t left(void) {
    size_t bytes, total;
    if (strcmp(other_device_name(), "emu") != 0) return 0;
    assert_ok(device.backend.memory_left(&exec, &bytes, &total, &error), &error);
    return bytes;
}

static const WeightPlaces places[] = {
    {0}, {.pinned_embedding = 1, .pinned_layers = 1}, {.pinned_layers = 2}, {.dense_layers = 1}};

static void same_bytes(const char *path, WeightOptions options) {
    ModelWeights *want = load(path, options, 0);
    for (size_t p = 0; p < sizeof places / sizeof *places; p++) {
        options.places = places[p];
        ModelWeights *got = load(path, options, 1);
        if (weights_device_bytes(got) == 0) fail_msg("%s: was not loaded to the device", path);
        if (resident(&got->arena) != 0) fail_msg("%s: the host holds %zu bytes", path, resident(&got->arena));
        if (weights_hash(got) != weights_hash(want)) fail_msg("%s, places %zu: other bytes than the CPU's", path, p);
        assert_ok(weights_to_device(got, &counted, &exec, &error), &error);
        if (weights_hash(got) != weights_hash(want)) fail_msg("%s, places %zu: the bytes changed", path, p);
        weights_free(got);
        assert_int_equal(device_takes, 0);
        assert_int_equal(pinned_takes, 0);
    }
    weights_free(want);
}

static void test_the_same_bytes(void **state) {
    (void)state;
    if (has_no_device()) return;
    for (size_t f = 0; f < FOLDERS; f++) {
        char *path = scratch_path(folders[f].name);
        for (int act = 0; act < 2; act++) {
            DType type = act ? DTYPE_BF16 : DTYPE_F32;
            same_bytes(path, (WeightOptions){.act = type, .linear = act ? WEIGHT_BF16 : WEIGHT_F32, .block_size = 64});
            if (folders[f].spec.format == WEIGHT_INT8) { /* decoded, and quantized again on the device */
                same_bytes(path, (WeightOptions){.act = type, .linear = WEIGHT_NF4, .double_quant = 1, .block_size = 64});
                same_bytes(path, (WeightOptions){.act = type, .linear = WEIGHT_INT4, .block_size = 32});
            }
        }
        memory_free(path);
    }
}

/* Columns in an order of their own. */
static void test_ordered_columns(void **state) {
    (void)state;
    if (has_no_device()) return;
    int32_t order[64];
    for (int c = 0; c < 64; c++)
        order[c] = c * 7 % 64 / 16;
    char *source = scratch_path("gptq-zeros"), *ordered = scratch_path("ordered"), *path = path_join(ordered, "config.json"),
         *text;
    size_t length;
    model_folder_mutate(
        source, ordered,
        &(Mutation){.change = CHANGE_BYTES, .tensor = "layers.0.mlp.up_proj.g_idx", .bytes = order, .count = sizeof order});
    assert_ok(file_read(path, 1 << 20, &text, &length, &error), &error);
    char *at = memmem(text, length, "\"desc_act\": false", 17);
    assert_non_null(at);
    memcpy(at, "\"desc_act\": true ", 17);
    assert_ok(file_write_atomic(path, text, length, &error), &error);
    same_bytes(ordered, (WeightOptions){.act = DTYPE_BF16, .linear = WEIGHT_BF16, .block_size = 64});
    memory_free(text);
    memory_free(path);
    memory_free(source);
    memory_free(ordered);
}

static uint64_t random_hash(const ModelConfig *config, WeightOptions options, uint64_t seed, int on_device) {
    ModelWeights *weights;
    options.exec = on_device ? &exec : NULL;
    if (!on_device) options.places = (WeightPlaces){0};
    assert_ok(weights_random(&weights, config, &options, on_device ? &counted : &cpu, seed, &error), &error);
    if (on_device && weights_device_bytes(weights) == 0) fail_msg("random weights were not made on the device");
    if (on_device) assert_int_equal(resident(&weights->arena), 0);
    uint64_t hash = weights_hash(weights);
    if (on_device) assert_ok(weights_to_device(weights, &counted, &exec, &error), &error);
    assert_true(weights_hash(weights) == hash);
    weights_free(weights);
    assert_int_equal(device_takes, 0);
    assert_int_equal(pinned_takes, 0);
    return hash;
}

/* Without files: made where they will lie, the same for a seed; dense ones are the CPU's. */
static void test_random_weights(void **state) {
    (void)state;
    if (has_no_device()) return;
    static const WeightFormat formats[] = {WEIGHT_NF4, WEIGHT_FP4, WEIGHT_INT8, WEIGHT_INT4, WEIGHT_BF16};
    ModelConfig config;
    assert_ok(model_config_parse("config.json", CONFIG, strlen(CONFIG), &config, &error), &error);
    config.vocab = 20011; /* an embedding of more than one piece */
    for (size_t f = 0; f < sizeof formats / sizeof *formats; f++)
        for (size_t p = 0; p < sizeof places / sizeof *places; p++) {
            WeightOptions options = {.act = DTYPE_BF16,
                                     .linear = formats[f],
                                     .double_quant = formats[f] == WEIGHT_NF4,
                                     .block_size = 32,
                                     .places = places[p]};
            uint64_t hash = random_hash(&config, options, 1, 1);
            assert_true(random_hash(&config, options, 1, 1) == hash);
            assert_true(random_hash(&config, options, 2, 1) != hash);
            if (formats[f] == WEIGHT_BF16) assert_true(random_hash(&config, options, 1, 0) == hash);
        }
}

/* ---- failures ---- */

#define BYTES(name, from, size, at) \
    { .change = CHANGE_BYTES, .tensor = name, .bytes = from, .count = size, .offset = at }

static const float nan_value = NAN;
static const uint16_t half_nan = 0x7E00;
static const int32_t below = -1;

static const struct {
    const char *folder;
    Mutation mutation;
    const char *says;
} wrong[] = {
    {"nf4", BYTES("layers.1.mlp.down_proj.weight.nested_absmax", &nan_value, 4, 0), "nested_absmax: value 0 is NaN or Inf"},
    {"nf4-plain", BYTES("layers.1.mlp.down_proj.weight.absmax", &nan_value, 4, 8), "down_proj.weight.absmax: value 2 is NaN"},
    {"int8", BYTES("layers.1.mlp.down_proj.SCB", &nan_value, 4, 12), "down_proj.weight: row 3, column 0 is NaN or Inf"},
    {"gptq", BYTES("layers.1.mlp.up_proj.scales", &half_nan, 2, 2 * 95), "up_proj.scales: the scale of row 95 is NaN or Inf"},
    {"gptq", BYTES("layers.1.mlp.up_proj.g_idx", &below, 4, 4), "up_proj.g_idx: column 1: want a group"},
    {"awq", BYTES("layers.0.self_attn.o_proj.scales", &half_nan, 2, 2), "o_proj.scales: the scale of row 1 is NaN"},
};

/* Refused by the same words as on the CPU, with nothing left behind. */
static void test_what_is_refused(void **state) {
    (void)state;
    if (has_no_device()) return;
    WeightOptions options = {.act = DTYPE_BF16, .linear = WEIGHT_BF16, .block_size = 64};
    char *folder = scratch_path("wrong");
    for (size_t i = 0; i < 2 * sizeof wrong / sizeof *wrong; i++) {
        char *source = scratch_path(wrong[i / 2].folder);
        ModelWeights *weights;
        Error said = {0};
        model_folder_mutate(source, folder, &wrong[i / 2].mutation);
        int before = threads();
        size_t had = left();
        assert_refused(try_load(folder, options, 0, &weights, &said), &said, wrong[i / 2].says);
        if (i % 2) options.places = (WeightPlaces){.pinned_layers = 2};
        assert_refused(try_load(folder, options, 1, &weights, &error), &error, wrong[i / 2].says);
        assert_string_equal(error.text, said.text);
        assert_null(weights);
        assert_int_equal(threads(), before);
        assert_int_equal(left(), had);
        assert_int_equal(device_takes, 0);
        assert_int_equal(pinned_takes, 0);
        options.places = (WeightPlaces){0};
        assert_ok(folder_remove(folder, &error), &error);
        memory_free(source);
    }
    memory_free(folder);
}

/* Where pinned memory cannot be had. */
static Status pinned_refuse(const Exec *e, const char *what, size_t bytes, void **out, Error *err) {
    (void)e;
    (void)out;
    FAIL("%s: %zu bytes cannot be pinned", what, bytes);
}

static void test_no_pinned_memory(void **state) {
    (void)state;
    if (has_no_device()) return;
    char *path = scratch_path("gptq");
    ModelWeights *weights;
    int before = threads();
    counted.pinned_take = pinned_refuse;
    Status status =
        try_load(path, (WeightOptions){.act = DTYPE_BF16, .linear = WEIGHT_BF16, .block_size = 64}, 1, &weights, &error);
    counted.pinned_take = pinned_take;
    assert_refused(status, &error, "weights on their way: ");
    assert_int_equal(threads(), before);
    assert_int_equal(device_takes, 0);
    assert_int_equal(pinned_takes, 0);
    same_bytes(path, (WeightOptions){.act = DTYPE_BF16, .linear = WEIGHT_BF16, .block_size = 64}); /* and then again */
    memory_free(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_same_bytes),  cmocka_unit_test(test_ordered_columns),  cmocka_unit_test(test_random_weights),
        cmocka_unit_test(test_what_is_refused), cmocka_unit_test(test_no_pinned_memory),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
