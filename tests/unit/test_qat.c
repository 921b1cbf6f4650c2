/* Training on the quantized weight: operands are what the formats give, gradients are those of the definition, and what is
 * exported computes the same. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/file.h"
#include "core/philox.h"
#include "data/gguf.h"
#include "quant/ggml.h"
#include "tests/support/compare.h"
#include "tests/support/replay.h"
#include "train/commands.h"
#include "train/merge.h"
#include "train/qat.h"
#include "train/qat_scales.h"
#include "train/weights_internal.h"

#define TOKENS 150

static char root[] = "/tmp/nibble-qat-XXXXXX";
static char model[64], adapter[64];
static Error error;

static float number(uint64_t stream, int64_t i) {
    return random_uniform(17, RANDOM_WEIGHTS, stream, (uint64_t)i) * 2.0f - 1.0f;
}

/* One layer of width 256, so that every grid fits; rows that are no multiple of a tile. */
static int make_model(void **state) {
    (void)state;
    static const char arch[] =
        "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_act\": \"silu\", \"hidden_size\": "
        "256, "
        "\"intermediate_size\": 768, \"num_hidden_layers\": 2, \"num_attention_heads\": 24, \"num_key_value_heads\": 3, "
        "\"head_dim\": 32, \"vocab_size\": 300, \"max_position_embeddings\": 256, \"rms_norm_eps\": 1e-5, \"rope_theta\": "
        "10000.0, "
        "\"bos_token_id\": 1, \"eos_token_id\": 2, \"tie_word_embeddings\": false, \"torch_dtype\": \"bfloat16\"}";
    char path[64];
    if (mkdtemp(root) == NULL) return 1;
    (void)snprintf(path, sizeof path, "%s/arch.json", root);
    (void)snprintf(model, sizeof model, "%s/model", root);
    (void)snprintf(adapter, sizeof adapter, "%s/adapter", root);
    if (file_write_atomic(path, arch, sizeof arch - 1, &error) != OK) return 1;
    char *arguments[] = {"synth", "--arch", path, "--out", model, NULL};
    return command_synth(5, arguments, &error) != OK;
}

static int remove_all(void **state) {
    (void)state;
    return folder_remove(root, &error) != OK;
}

static void make_data(ReplayData *data) {
    int32_t ids[TOKENS];
    uint8_t train[TOKENS];
    replay_start(data);
    for (int s = 0; s < 2; s++) {
        for (int t = 0; t < TOKENS / 2; t++) {
            ids[t] = (int32_t)(fabsf(number(3, s * TOKENS + t)) * 299.0f);
            train[t] = t > 0;
        }
        replay_add(data, ids, train, TOKENS / 2);
    }
    replay_end_micro_batch(data);
    replay_end_step(data);
}

typedef struct Case {
    const char *weights, *more, *precision, *base; /* settings */
    uint32_t ggml;
    int nested; /* nf4 */
} Case;

#define F32 "precision=f32"
#define BF16 "precision=bf16"
#define DENSE "method=lora"
#define NF4 "method=qlora"
static const Case cases[] = {
    {"qat.weights=nf4", "qat.double_quant=true", F32, DENSE, 0, 1},
    {"qat.weights=nf4", "qat.double_quant=false", BF16, DENSE, 0, 0},
    {"qat.weights=nf4", "qat.double_quant=true", BF16, NF4, 0, 1},
    {"qat.weights=q4_0", "qat.start_step=0", F32, DENSE, GGML_Q4_0, 0},
    {"qat.weights=q4_0", "qat.start_step=0", BF16, NF4, GGML_Q4_0, 0},
    {"qat.weights=q8_0", "qat.start_step=0", BF16, DENSE, GGML_Q8_0, 0},
    {"qat.weights=q4_k", "qat.start_step=0", BF16, DENSE, GGML_Q4_K, 0},
    {"qat.weights=q4_k", "qat.start_step=0", F32, NF4, GGML_Q4_K, 0},
    {"qat.weights=int4", "qat.group_size=64", F32, DENSE, 0, 0},
    {"qat.weights=int4", "qat.symmetric=false", BF16, DENSE, 0, 0},
    {"qat.weights=int3", "qat.group_size=128", BF16, DENSE, 0, 0},
    {"qat.weights=int2", "qat.group_size=32", F32, NF4, 0, 0},
    {"qat.weights=int8", "qat.symmetric=true", BF16, DENSE, 0, 0},
};
#define CASES ((int)(sizeof cases / sizeof *cases))

/* An engine whose adapters have random A and B, also written as a folder. */
static void open_case(Trainer *trainer, const Case *c, const ReplayData *data, const char *cpu) {
    const char *overrides[] = {"qat.mode=merged", c->weights,      c->more,
                               c->precision,      c->base,         "lora.rank=5",
                               "lora.alpha=7",    "train.lr=1e-3", "train.micro_batch_tokens=256"};
    ReplayOptions options = {.model = model, .cpu = cpu, .overrides = overrides, .override_count = 9, .threads = 2};
    assert_ok(replay_open(trainer, &options, data, &error), &error);
    Engine *engine = &trainer->engine;
    for (int64_t e = 0; e < engine->params.count; e++) {
        const ParamEntry *entry = &engine->params.entries[e];
        for (int64_t i = 0; i < entry->rows * entry->cols; i++)
            engine->state.master[entry->offset + i] = 0.02f * number(5 + (uint64_t)e, i);
    }
    params_refresh_copy(&engine->state, &engine->params, engine->exec.config.act);
    AdapterInfo info = {.base_model = model};
    assert_ok(adapter_write(&engine->adapter, &engine->params, adapter, &engine->model, &info, engine->state.copy,
                            engine->exec.config.act, &error),
              &error);
}

static void open_merge(Merge **merge, const Case *c, Engine *engine) {
    MergeOptions options = {.model = model, .adapters = {adapter}, .weights = {1.0}, .count = 1};
    if (strcmp(c->base, NF4) == 0) {
        options.requantize = 1;
        options.spec = (QuantSpec){.format = WEIGHT_NF4, .double_quant = 1, .block_size = 64};
    }
    assert_ok(merge_open(merge, &options, &engine->backend, engine->pool, &error), &error);
}

/* The merged weight through the real format's bytes, FP32. */
static void through_format(const Case *c, const Engine *engine, Merge *merge, const QatOptions *qat, int64_t rows, int64_t cols,
                           float *w) {
    int64_t bytes;
    if (c->ggml != 0) {
        assert_ok(ggml_bytes(c->ggml, rows, cols, &bytes, &error), &error);
        void *packed = memory_alloc((size_t)bytes);
        assert_ok(ggml_quantize(c->ggml, w, rows, cols, NULL, packed, NULL, &error), &error);
        assert_ok(ggml_dequantize(c->ggml, packed, rows, cols, w, NULL, &error), &error);
        memory_free(packed);
    } else if (qat->grid.grid == FAKE_NF4) { /* as the export to bnb-nf4 writes it */
        QuantSpec spec = {.format = WEIGHT_NF4, .double_quant = c->nested, .block_size = 64};
        QuantizedTensor tensor;
        Arena arena;
        assert_ok(arena_create(&arena, "test", 1 << 20, &error), &error);
        assert_ok(quantized_take(&tensor, &spec, rows, cols, &arena, &error), &error);
        assert_ok(merge_quantize(merge, 1, &tensor, &error), &error);
        WeightView view = quantized_view(&tensor);
        engine->backend.dequantize(&view, 0, rows * cols, w, DTYPE_F32);
        arena_free(&arena);
    } else { /* test_fake_quant.c holds these rows to packed bits */
        for (int64_t r = 0; r < rows; r++)
            assert_int_equal(fake_quant_row(&qat->grid, w + r * cols, cols, w + r * cols, NULL, NULL), 0);
    }
}

static void test_operands(void **state) {
    (void)state;
    ReplayData data;
    make_data(&data);
    for (int n = 0; n < CASES; n++) {
        const Case *c = &cases[n];
        Trainer trainer;
        Merge *merge;
        QatOptions qat;
        open_case(&trainer, c, &data, NULL);
        Engine *engine = &trainer.engine;
        open_merge(&merge, c, engine);
        assert_ok(qat_options(&trainer.config, &qat, &error), &error);
        DType act = engine->exec.config.act;
        for (int32_t id = 0; id < weight_count(&engine->model); id++) {
            if (!weight_is_linear(id)) continue;
            WeightView view;
            assert_ok(engine->source.acquire(engine->source.self, id, PASS_FORWARD, &view, &error), &error);
            int64_t count = view.rows * view.cols;
            float *w = memory_alloc((size_t)count * sizeof *w), *base = memory_alloc((size_t)count * sizeof *base);
            uint8_t *want = memory_alloc((size_t)count * dtype_size(act));
            assert_ok(merge_begin(merge, id, &error), &error);
            assert_ok(merge_rows(merge, 0, view.rows, base, w, &error), &error);
            through_format(c, engine, merge, &qat, view.rows, view.cols, w);
            dtype_convert(want, act, w, DTYPE_F32, count);
            if (memcmp(view.data, want, (size_t)count * dtype_size(act)) != 0)
                fail_msg("%s, %s, %s: the operand of weight %d is not what the format holds", c->weights, c->precision, c->base,
                         (int)id);
            memory_free(w);
            memory_free(base);
            memory_free(want);
        }
        merge_close(merge);
        replay_close(&trainer);
    }
    replay_free(&data);
}

/* dA = s B^T (M . dY^T X), dB = s (M . dY^T X) A^T in double, with the mask of the merged row. */
static void check_gradient(Trainer *trainer, Merge *merge, const QatOptions *qat, const Case *c, int64_t layer,
                           LayerWeight kind) {
    Engine *engine = &trainer->engine;
    const AdapterModule *m = adapter_module(&engine->adapter, layer, kind);
    WeightView view;
    int32_t id = weight_id(layer, kind);
    assert_ok(engine->source.acquire(engine->source.self, id, PASS_BACKWARD, &view, &error), &error);
    int64_t rows = view.rows, cols = view.cols, rank = m->rank;
    DType act = engine->exec.config.act;
    float *dy = memory_alloc((size_t)(TOKENS * rows) * sizeof *dy), *x = memory_alloc((size_t)(TOKENS * cols) * sizeof *x);
    float *w = memory_alloc((size_t)(rows * cols) * sizeof *w), *base = memory_alloc((size_t)(rows * cols) * sizeof *base);
    float *a = memory_alloc((size_t)(rank * cols) * sizeof *a), *b = memory_alloc((size_t)(rows * rank) * sizeof *b);
    double *da = memory_calloc((size_t)(rank * cols), sizeof *da), *db = memory_calloc((size_t)(rows * rank), sizeof *db);
    double *dv = memory_alloc((size_t)cols * sizeof *dv);
    uint8_t *mask = memory_alloc((size_t)cols);
    _Alignas(16) uint8_t scratch[2048];
    for (int64_t i = 0; i < TOKENS * rows; i++)
        dy[i] = bf16_to_float(bf16_from_float(number(40, i)));
    for (int64_t i = 0; i < TOKENS * cols; i++)
        x[i] = bf16_to_float(bf16_from_float(number(41, i)));
    void *dy_act = memory_alloc((size_t)(TOKENS * rows) * sizeof(float)),
         *x_act = memory_alloc((size_t)(TOKENS * cols) * sizeof(float));
    dtype_convert(dy_act, act, dy, DTYPE_F32, TOKENS * rows);
    dtype_convert(x_act, act, x, DTYPE_F32, TOKENS * cols);
    const uint8_t *copy = engine->state.copy;
    dtype_convert(a, DTYPE_F32, copy + (size_t)m->a * dtype_size(act), act, rank * cols);
    dtype_convert(b, DTYPE_F32, copy + (size_t)m->b * dtype_size(act), act, rows * rank);
    assert_ok(merge_begin(merge, id, &error), &error);
    assert_ok(merge_rows(merge, 0, rows, base, w, &error), &error);
    for (int64_t o = 0; o < rows; o++) {
        memset(dv, 0, (size_t)cols * sizeof *dv);
        for (int64_t t = 0; t < TOKENS; t++)
            for (int64_t i = 0; i < cols; i++)
                dv[i] += (double)dy[t * rows + o] * (double)x[t * cols + i];
        memset(mask, 1, (size_t)cols);
        if (qat->grid.grid != FAKE_NF4)
            assert_int_equal(fake_quant_row(&qat->grid, w + o * cols, cols, base, mask, scratch), 0);
        for (int64_t r = 0; r < rank; r++)
            for (int64_t i = 0; i < cols; i++) {
                if (!mask[i]) continue;
                da[r * cols + i] += (double)m->scale * (double)b[o * rank + r] * dv[i];
                db[o * rank + r] += (double)m->scale * (double)a[r * cols + i] * dv[i];
            }
    }
    memset(engine->state.gradient, 0, (size_t)engine->params.elements * sizeof(float));
    Batch batch = {.tokens = TOKENS};
    for (int twice = 0; twice < 2; twice++) /* accumulates */
        assert_ok(engine->source.backward(engine->source.self, id, &engine->exec, &batch, dy_act, 0, x_act, &error), &error);
    for (int64_t i = 0; i < rank * cols; i++)
        da[i] *= 2.0;
    for (int64_t i = 0; i < rows * rank; i++)
        db[i] *= 2.0;
    float *want_a = memory_alloc((size_t)(rank * cols) * sizeof *want_a),
          *want_b = memory_alloc((size_t)(rows * rank) * sizeof *want_b);
    for (int64_t i = 0; i < rank * cols; i++)
        want_a[i] = (float)da[i];
    for (int64_t i = 0; i < rows * rank; i++)
        want_b[i] = (float)db[i];
    assert_close(c->weights, DTYPE_F32, engine->state.gradient + m->a, want_a, rank * cols, 1e-5,
                 "FP32 sums of some 1e5 terms");
    assert_close(c->weights, DTYPE_F32, engine->state.gradient + m->b, want_b, rows * rank, 1e-5, "the same");
    void *all[] = {dy, x, w, base, a, b, da, db, dv, mask, dy_act, x_act, want_a, want_b};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        memory_free(all[i]);
}

static void test_gradients(void **state) {
    (void)state;
    ReplayData data;
    make_data(&data);
    for (int n = 0; n < CASES; n++) {
        Trainer trainer;
        Merge *merge;
        QatOptions qat;
        open_case(&trainer, &cases[n], &data, n % 2 ? "ref" : NULL);
        open_merge(&merge, &cases[n], &trainer.engine);
        assert_ok(qat_options(&trainer.config, &qat, &error), &error);
        check_gradient(&trainer, merge, &qat, &cases[n], 1, LAYER_K);
        check_gradient(&trainer, merge, &qat, &cases[n], 0, LAYER_DOWN);
        merge_close(merge);
        replay_close(&trainer);
    }
    replay_free(&data);
}

/* Before qat.start_step the operand is W + s B A itself. */
static void test_start_step(void **state) {
    (void)state;
    static const Case late = {"qat.weights=int2", "qat.start_step=3", F32, DENSE, 0, 0};
    ReplayData data;
    Trainer trainer;
    Merge *merge;
    make_data(&data);
    open_case(&trainer, &late, &data, NULL);
    Engine *engine = &trainer.engine;
    open_merge(&merge, &late, engine);
    int32_t id = weight_id(1, LAYER_V);
    MergeWeight weight = merge_weight(merge, id);
    size_t bytes = (size_t)(weight.rows * weight.cols) * sizeof(float);
    float *base = memory_alloc(bytes), *w = memory_alloc(bytes);
    assert_ok(merge_begin(merge, id, &error), &error);
    assert_ok(merge_rows(merge, 0, weight.rows, base, w, &error), &error);
    for (int step = 0; step < 5; step++) {
        WeightView view;
        qat_set_step(engine->qat, step);
        assert_ok(engine->source.acquire(engine->source.self, id, PASS_FORWARD, &view, &error), &error);
        assert_int_equal(memcmp(view.data, w, bytes) == 0, step < 3);
    }
    memory_free(base);
    memory_free(w);
    merge_close(merge);
    replay_close(&trainer);
    replay_free(&data);
}

/* The exported folder, read back, gives the training forward's losses to the bit. */
static void test_exported_is_trained(void **state) {
    (void)state;
    static const Case trained[] = {{"qat.weights=nf4", "qat.double_quant=true", F32, DENSE, 0, 1},
                                   {"qat.weights=nf4", "qat.double_quant=true", BF16, DENSE, 0, 1}};
    static const char *const cpus[] = {"ref", NULL};
    ReplayData data;
    char out[64];
    make_data(&data);
    (void)snprintf(out, sizeof out, "%s/exported", root);
    for (int n = 0; n < 2; n++)
        for (int cpu = 0; cpu < 2; cpu++) {
            Trainer trainer;
            float want[TOKENS], got[TOKENS];
            double loss = 0.0, again = 0.0;
            open_case(&trainer, &trained[n], &data, cpus[cpu]);
            assert_ok(replay_evaluate(&trainer, &data, 0, want, &loss, &error), &error);
            replay_close(&trainer);
            char *arguments[] = {"export",   model,   "--adapter", adapter,  "--format",    "bnb-nf4",    "--onto",
                                 "original", "--out", out,         "--json", "--overwrite", "--no-verify"};
            assert_ok(command_export(13, arguments, &error), &error);
            const char *overrides[] = {trained[n].precision, "method=qlora"};
            ReplayOptions options = {
                .model = out, .cpu = cpus[cpu], .overrides = overrides, .override_count = 2, .threads = 2, .frozen = 1};
            assert_ok(replay_open(&trainer, &options, &data, &error), &error);
            assert_ok(replay_evaluate(&trainer, &data, 0, got, &again, &error), &error);
            replay_close(&trainer);
            assert_true(isfinite(loss) && loss > 0.0);
            assert_memory_equal(got, want, (size_t)(2 * (TOKENS / 2 - 1)) * sizeof(float));
        }
    replay_free(&data);
}

/* The adapter in a run's folder, whose config is the case's: what an export looks at. */
static void make_run(const Case *c, const char *run, Trainer *trainer) {
    char path[96], folder[96];
    const char *grid = strchr(c->weights, '=') + 1, *more = strchr(c->more, '.') + 1, *value = strchr(c->more, '=') + 1;
    const char *quote = strspn(value, "0123456789") == strlen(value) || value[0] == 't' || value[0] == 'f' ? "" : "\"";
    char *text = memory_format(
        "{\"model\": {\"path\": \"%s\"}, \"method\": \"%s\", \"precision\": \"%s\", \"data\": {\"path\": \"none.jsonl\"}, "
        "\"lora\": {\"dropout\": 0}, \"qat\": {\"mode\": \"merged\", \"weights\": \"%s\", \"%.*s\": %s%s%s}}",
        model, strchr(c->base, '=') + 1, strchr(c->precision, '=') + 1, grid, (int)(value - 1 - more), more, quote, value,
        quote);
    assert_ok(folder_create(run, &error), &error);
    (void)snprintf(path, sizeof path, "%s/config.json", run);
    assert_ok(file_write_atomic(path, text, strlen(text), &error), &error);
    (void)snprintf(path, sizeof path, "%s/metrics.jsonl", run);
    assert_ok(file_write_atomic(path, "", 0, &error), &error);
    memory_free(text);
    Engine *engine = &trainer->engine;
    AdapterInfo info = {.base_model = model};
    (void)snprintf(folder, sizeof folder, "%s/adapter", run);
    assert_ok(adapter_write(&engine->adapter, &engine->params, folder, &engine->model, &info, engine->state.copy,
                            engine->exec.config.act, &error),
              &error);
    if (engine->scales != NULL) assert_ok(qat_scales_write(engine->qat, folder, &error), &error);
}

/* Runs on integer grids, scales learned or not: exported with no word about the grid, the folder's weights are the trained
 * operands, and its losses those of the training forward, to the bit. */
static void test_exported_integers(void **state) {
    (void)state;
    static const Case trained[] = {{"qat.weights=int4", "qat.group_size=64", F32, DENSE, 0, 0},
                                   {"qat.weights=int4", "qat.symmetric=false", BF16, DENSE, 0, 0},
                                   {"qat.weights=int3", "qat.group_size=128", BF16, NF4, 0, 0},
                                   {"qat.weights=int2", "qat.group_size=32", BF16, DENSE, 0, 0},
                                   {"qat.weights=int8", "qat.symmetric=true", BF16, DENSE, 0, 0},
                                   {"qat.weights=int8", "qat.activations=int8", F32, NF4, 0, 0},
                                   {"qat.weights=int4", "qat.learn_scales=true", BF16, DENSE, 0, 0},
                                   {"qat.weights=int3", "qat.learn_scales=true", F32, DENSE, 0, 0}};
    static const char *const cpus[] = {"ref", NULL};
    ReplayData data;
    char out[64], run[64], from[80];
    make_data(&data);
    (void)snprintf(out, sizeof out, "%s/integers", root);
    (void)snprintf(run, sizeof run, "%s/run", root);
    (void)snprintf(from, sizeof from, "%s/adapter", run);
    for (size_t n = 0; n < sizeof trained / sizeof *trained; n++)
        for (int cpu = 0; cpu < 2; cpu++) {
            const Case *c = &trained[n];
            Trainer trainer;
            float want[TOKENS], got[TOKENS];
            double loss = 0.0, again = 0.0;
            open_case(&trainer, c, &data, cpus[cpu]);
            Engine *engine = &trainer.engine;
            for (int64_t e = adapter_entries(&engine->params); e < engine->params.count; e++) /* theta, around 1 */
                for (int64_t i = 0; i < engine->params.entries[e].rows * engine->params.entries[e].cols; i++)
                    engine->state.master[engine->params.entries[e].offset + i] = 1.0f + 0.2f * number(77, i);
            params_refresh_copy(&engine->state, &engine->params, engine->exec.config.act);
            make_run(c, run, &trainer);
            assert_ok(replay_evaluate(&trainer, &data, 0, want, &loss, &error), &error);
            char *arguments[] = {"export", model, "--adapter", from,         "--format", "compressed-tensors",
                                 "--out",  out,   "--json",    "--overwrite"};
            assert_ok(command_export(10, arguments, &error), &error);
            const char *overrides[] = {c->precision, "method=qlora"};
            ReplayOptions options = {
                .model = out, .cpu = cpus[cpu], .overrides = overrides, .override_count = 2, .threads = 2, .frozen = 1};
            Trainer exported;
            assert_ok(replay_open(&exported, &options, &data, &error), &error);
            for (int32_t id = 0; id < weight_count(&engine->model); id++) {
                if (!weight_is_linear(id)) continue;
                WeightView operand, view = weights_view(exported.engine.weights, id);
                assert_ok(engine->source.acquire(engine->source.self, id, PASS_FORWARD, &operand, &error), &error);
                DType act = engine->exec.config.act;
                size_t bytes = (size_t)(view.rows * view.cols) * dtype_size(act);
                void *values = memory_alloc(bytes);
                engine->backend.dequantize(&view, 0, view.rows * view.cols, values, act);
                if (memcmp(values, operand.data, bytes) != 0)
                    fail_msg("%s, %s, %s: weight %d is not the trained operand", c->weights, c->more, c->precision, (int)id);
                memory_free(values);
            }
            int rounds_activations = strcmp(c->more, "qat.activations=int8") == 0;
            if (!rounds_activations) {
                assert_ok(replay_evaluate(&exported, &data, 0, got, &again, &error), &error);
                assert_true(isfinite(loss) && loss > 0.0);
                assert_memory_equal(got, want, (size_t)(2 * (TOKENS / 2 - 1)) * sizeof(float));
            }
            ModelConfig config;
            assert_ok(model_config_read(out, &config, &error), &error);
            assert_int_equal(config.prequant, rounds_activations ? PREQUANT_INT_ROWS : PREQUANT_PACKED);
            replay_close(&exported);
            replay_close(&trainer);
            assert_ok(folder_remove(run, &error), &error);
        }
    replay_free(&data);
}

/* The tensors of an exported GGUF file are the trained operands, for those that llama.cpp does not reorder. */
static void test_exported_gguf(void **state) {
    (void)state;
    static const Case trained[] = {{"qat.weights=q8_0", "qat.start_step=0", F32, DENSE, GGML_Q8_0, 0},
                                   {"qat.weights=q4_0", "qat.start_step=0", F32, DENSE, GGML_Q4_0, 0},
                                   {"qat.weights=q4_k", "qat.start_step=0", F32, DENSE, GGML_Q4_K, 0}};
    static char *const types[] = {"Q8_0", "Q4_0", "Q4_K_S"};
    static const struct {
        const char *name;
        LayerWeight kind;
    } linears[] = {
        {"blk.0.ffn_up.weight", LAYER_UP}, {"blk.0.ffn_gate.weight", LAYER_GATE}, {"blk.0.attn_output.weight", LAYER_O}};
    ReplayData data;
    char out[64], path[80];
    int compared = 0;
    make_data(&data);
    (void)snprintf(out, sizeof out, "%s/gguf", root);
    (void)snprintf(path, sizeof path, "%s/model.gguf", out);
    for (int n = 0; n < 3; n++) {
        Trainer trainer;
        GgufFile *file;
        open_case(&trainer, &trained[n], &data, NULL);
        char *arguments[] = {"export",   model,   "--adapter", adapter,       "--format", "gguf",        "--onto",
                             "original", "--out", out,         "--gguf-type", types[n],   "--overwrite", "--no-verify"};
        assert_ok(command_export(14, arguments, &error), &error);
        assert_ok(gguf_open(&file, path, &error), &error);
        Engine *engine = &trainer.engine;
        for (size_t i = 0; i < sizeof linears / sizeof *linears; i++) {
            const GgufTensor *tensor = gguf_tensor_find(file, linears[i].name);
            assert_non_null(tensor);
            if (tensor->type->type != trained[n].ggml) continue; /* the mix gives some tensors more bits */
            WeightView view;
            assert_ok(engine->source.acquire(engine->source.self, weight_id(0, linears[i].kind), PASS_FORWARD, &view, &error),
                      &error);
            size_t bytes = (size_t)(view.rows * view.cols) * sizeof(float);
            void *packed = memory_alloc((size_t)tensor->bytes);
            float *values = memory_alloc(bytes);
            assert_ok(gguf_read(file, tensor, 0, packed, (size_t)tensor->bytes, 0, &error), &error);
            assert_ok(ggml_dequantize(tensor->type->type, packed, view.rows, view.cols, values, NULL, &error), &error);
            assert_memory_equal(values, view.data, bytes);
            compared++;
            memory_free(packed);
            memory_free(values);
        }
        gguf_close(file);
        replay_close(&trainer);
    }
    assert_true(compared >= 8);
    replay_free(&data);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_operands),      cmocka_unit_test(test_gradients),
        cmocka_unit_test(test_start_step),    cmocka_unit_test(test_exported_is_trained),
        cmocka_unit_test(test_exported_gguf), cmocka_unit_test(test_exported_integers),
    };
    return cmocka_run_group_tests(tests, make_model, remove_all);
}
