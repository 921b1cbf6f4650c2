/* LoRA files of llama.cpp as adapters: values in their places, and what is refused. */
#include <math.h>

#include "core/file.h"
#include "core/memory.h"
#include "data/gguf.h"
#include "tests/support/model_folder.h"
#include "tests/support/scratch.h"
#include "tests/unit/test_core.h"
#include "train/adapter_gguf.h"
#include "train/gguf_names.h"

enum { RANK = 32, HIDDEN = 64 }; /* a rank that a block of Q8_0 fits */

static ModelConfig model;

/* What a case changes of the file: on q_proj and down_proj of layer 1. */
typedef struct Wrong {
    const char *type, *kind, *architecture, *drop, *rename, *alora;
    float alpha;       /* 0: 16; -2: none; -3: written as 0 */
    int64_t more_cols; /* of every A */
    int is_nan;
    uint32_t stored; /* ggml type */
} Wrong;

static const struct Matrix {
    const char *name;
    int64_t rows, cols;
} matrices[] = {{"blk.1.attn_q.weight.lora_a", RANK, HIDDEN},
                {"blk.1.attn_q.weight.lora_b", HIDDEN, RANK},
                {"blk.1.ffn_down.weight.lora_a", RANK, 96},
                {"blk.1.ffn_down.weight.lora_b", HIDDEN, RANK}};

/* Whole numbers up to 127 in every block, so that Q8_0 with its scale of 1 holds them. */
static float value_at(int matrix, int64_t i) {
    return i % 32 == 0 ? 127.0f : (float)((i * 7 + matrix * 31) % 255 - 127);
}

static Status produce(void *context, const GgufTensor *tensor, GgufWriter *writer, Error *err) {
    const Wrong *change = context;
    int64_t count = tensor->ne[0] * tensor->ne[1];
    int matrix = 0;
    while (matrix < 3 && strcmp(matrices[matrix].name, tensor->name) != 0)
        matrix++;
    float *x = memory_alloc((size_t)count * sizeof *x);
    for (int64_t i = 0; i < count; i++)
        x[i] = value_at(matrix, i);
    if (change->is_nan) x[count - 1] = NAN;
    uint8_t *bytes = memory_alloc((size_t)tensor->bytes);
    Status status = OK;
    if (tensor->type->type == GGML_F32)
        memcpy(bytes, x, (size_t)tensor->bytes);
    else
        status = ggml_quantize(tensor->type->type, x, tensor->ne[1], tensor->ne[0], NULL, bytes, NULL, err);
    if (status == OK) status = gguf_write_bytes(writer, bytes, (size_t)tensor->bytes, err);
    memory_free(bytes);
    memory_free(x);
    return status;
}

static void write_file(const char *path, Wrong change) {
    Error err = {0};
    GgufWriter *writer = gguf_writer_create(path);
    const char *architecture = change.architecture != NULL ? change.architecture : "llama";
    float alpha = change.alpha > 0.0f ? change.alpha : change.alpha < -2.5f ? 0.0f : 16.0f;
    assert_int_equal(gguf_put_text(writer, "general.architecture", architecture, &err), OK);
    assert_int_equal(gguf_put_text(writer, "general.type", change.type != NULL ? change.type : "adapter", &err), OK);
    assert_int_equal(gguf_put_u32(writer, "general.quantization_version", 2, &err), OK);
    assert_int_equal(gguf_put_text(writer, "adapter.type", change.kind != NULL ? change.kind : "lora", &err), OK);
    if (change.alora != NULL) assert_int_equal(gguf_put_text(writer, change.alora, "x", &err), OK);
    if (change.alpha != -2.0f) assert_int_equal(gguf_put_f32(writer, "adapter.lora.alpha", alpha, &err), OK);
    for (int m = 0; m < 4; m++) {
        const char *name = matrices[m].name;
        if (change.drop != NULL && strcmp(change.drop, name) == 0) continue;
        if (change.rename != NULL && m == 0) name = change.rename;
        int64_t ne[2] = {matrices[m].cols + (m % 2 == 0 ? change.more_cols : 0), matrices[m].rows};
        assert_int_equal(gguf_add_tensor(writer, name, change.stored, 2, ne, &err), OK);
    }
    assert_int_equal(gguf_writer_write(writer, produce, &change, &err), OK);
    gguf_writer_free(writer);
}

static Status read_file(const char *path, const ModelConfig *base, Adapter *adapter, float **values, ParamSet *params,
                        Error *err) {
    *adapter = (Adapter){0};
    *params = (ParamSet){0};
    *values = NULL;
    TRY(adapter_read(adapter, params, path, base, err));
    *values = memory_calloc((size_t)params->elements, sizeof **values);
    return adapter_read_values(adapter, params, path, base, *values, err);
}

/* Written as q8_0 or F32, given as the file or its folder: the same values, B of q_proj with its rows in the model's order. */
static void assert_good(const char *path, const ModelConfig *base, double alpha) {
    Adapter adapter;
    ParamSet params;
    float *values;
    Error err = {0};
    if (read_file(path, base, &adapter, &values, &params, &err) != OK) fail_msg("%s", err.text);
    assert_int_equal(params.count, 4);
    for (int64_t e = 0; e < params.count; e++) {
        const ParamEntry *entry = &params.entries[e];
        int is_b = entry->role == PARAM_LORA_B, matrix = (entry->module == LAYER_DOWN ? 2 : 0) + is_b;
        assert_int_equal(entry->layer, 1);
        assert_int_equal(entry->rows, matrices[matrix].rows);
        for (int64_t r = 0; r < entry->rows; r++) {
            int64_t at = is_b ? gguf_file_row(base, weight_id(1, entry->module), r) : r;
            for (int64_t c = 0; c < entry->cols; c++)
                assert_float_equal(values[entry->offset + r * entry->cols + c], value_at(matrix, at * entry->cols + c),
                                   0); /* exact */
        }
    }
    const AdapterModule *module = adapter_module(&adapter, 1, LAYER_Q);
    assert_int_equal(module->rank, RANK);
    assert_float_equal(module->scale, alpha / RANK, 0); /* a power of two */
    memory_free(values);
    adapter_free(&adapter);
    params_free(&params);
}

static void good_files_are_read(void **state) {
    (void)state;
    Error err = {0};
    char *folder = scratch_path("folder"), *file = path_join(folder, ADAPTER_GGUF_FILE);
    assert_int_equal(folder_create(folder, &err), OK);
    for (int i = 0; i < 3; i++) {
        static const Wrong changes[] = {{.stored = GGML_F32}, {.stored = GGML_Q8_0}, {.stored = GGML_F16, .alpha = -3.0f}};
        write_file(file, changes[i]);
        assert_true(adapter_is_gguf(folder) && adapter_is_gguf(file));
        assert_good(file, &model, i == 2 ? RANK : 16.0); /* an alpha of 0 is a scale of 1 */
        assert_good(folder, &model, i == 2 ? RANK : 16.0);
    }
    scratch_write("folder/adapter_config.json", "{}", 2);
    assert_false(adapter_is_gguf(folder)); /* PEFT's comes first */
    memory_free(file);
    memory_free(folder);
}

static void other_files_are_refused(void **state) {
    (void)state;
    static const struct {
        Wrong change;
        const char *message;
    } cases[] = {
        {{.type = "model"}, "general.type: want \"adapter\", got \"model\""},
        {{.kind = "control_vector"}, "adapter.type: want \"lora\""},
        {{.architecture = "qwen2"}, "general.architecture: want \"llama\", got \"qwen2\""},
        {{.alora = "adapter.alora.invocation_tokens"}, "adapter.alora.invocation_tokens"},
        {{.alpha = -2.0f}, "adapter.lora.alpha"},
        {{.alpha = INFINITY}, "adapter.lora.alpha"},
        {{.drop = "blk.1.attn_q.weight.lora_a"}, "one is missing"},
        {{.drop = "blk.1.ffn_down.weight.lora_b"}, "one is missing"},
        {{.rename = "blk.2.attn_q.weight.lora_a"}, "one is missing"},
        {{.more_cols = 32}, "does the adapter belong"},
        {{.is_nan = 1}, "NaN or Inf"},
    };
    char *path = scratch_path("bad.gguf");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Adapter adapter;
        ParamSet params;
        float *values;
        Error err = {0};
        write_file(path, cases[i].change);
        Status status = read_file(path, &model, &adapter, &values, &params, &err);
        if (status == OK || strstr(err.text, cases[i].message) == NULL)
            fail_msg("want \"%s\", got %d: %s", cases[i].message, (int)status, err.text);
        assert_non_null(strstr(err.text, "bad.gguf"));
        memory_free(values);
        adapter_free(&adapter);
        params_free(&params);
    }
    memory_free(path);
}

/* A matrix of a weight that has no adapter here: nothing is left out silently. */
static void unknown_matrices_are_refused(void **state) {
    (void)state;
    Error err = {0};
    int64_t ne[2] = {HIDDEN, RANK};
    char *path = scratch_path("unknown.gguf");
    GgufWriter *writer = gguf_writer_create(path);
    Wrong change = {0};
    Adapter adapter = {0};
    ParamSet params = {0};
    assert_int_equal(gguf_put_text(writer, "general.architecture", "llama", &err), OK);
    assert_int_equal(gguf_put_text(writer, "general.type", "adapter", &err), OK);
    assert_int_equal(gguf_put_text(writer, "adapter.type", "lora", &err), OK);
    assert_int_equal(gguf_put_f32(writer, "adapter.lora.alpha", 1.0f, &err), OK);
    assert_int_equal(gguf_add_tensor(writer, "token_embd.weight.lora_a", GGML_F32, 2, ne, &err), OK);
    assert_int_equal(gguf_writer_write(writer, produce, &change, &err), OK);
    gguf_writer_free(writer);
    assert_int_equal(adapter_read(&adapter, &params, path, &model, &err), ERR_FAILED);
    assert_non_null(strstr(err.text, "token_embd.weight.lora_a is not a LoRA matrix"));
    adapter_free(&adapter);
    params_free(&params);
    memory_free(path);
}

static int prepare(void **state) {
    static const char text[] = TINY_CONFIG("llama", "");
    Error err = {0};
    if (scratch_make(state) != 0) return -1;
    return model_config_parse("config.json", text, sizeof text - 1, &model, &err) == OK ? 0 : -1;
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(good_files_are_read), cmocka_unit_test(other_files_are_refused),
                                       cmocka_unit_test(unknown_matrices_are_refused)};
    return cmocka_run_group_tests(tests, prepare, scratch_remove);
}
