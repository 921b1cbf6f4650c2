/* Calibration on small random models: the layers run as the tape runs them, folded scales change no output, results do not depend
 * on threads, and every quantizer is better than rounding. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/file.h"
#include "core/philox.h"
#include "tests/support/compare.h"
#include "tests/support/replay.h"
#include "train/calibrate_internal.h"
#include "train/commands.h"

static char root[] = "/tmp/nibble-calibrate-XXXXXX";
static char qwen2[64], llama[64], text[64];
static Error error;

/* Heads as many as key heads where v can be folded; biases; a normed q and k are qwen3's, which the parity tests hold. */
static const char qwen2_arch[] =
    "{\"architectures\": [\"Qwen2ForCausalLM\"], \"model_type\": \"qwen2\", \"hidden_act\": \"silu\", \"hidden_size\": 64, "
    "\"intermediate_size\": 96, \"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"num_key_value_heads\": 4, "
    "\"vocab_size\": "
    "300, \"max_position_embeddings\": 256, \"rms_norm_eps\": 1e-6, \"rope_theta\": 10000.0, \"bos_token_id\": null, "
    "\"eos_token_id\": 2, \"tie_word_embeddings\": true, \"torch_dtype\": \"float32\", \"initializer_range\": 0.1}";
static const char llama_arch[] =
    "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_act\": \"silu\", \"hidden_size\": 64, "
    "\"intermediate_size\": 96, \"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, "
    "\"vocab_size\": "
    "300, \"max_position_embeddings\": 256, \"rms_norm_eps\": 1e-5, \"rope_theta\": 10000.0, \"bos_token_id\": 1, "
    "\"eos_token_id\": 2, \"tie_word_embeddings\": true, \"torch_dtype\": \"float32\", \"initializer_range\": 0.1}";

static int make_model(const char *arch, const char *name, char folder[64]) {
    char path[64];
    (void)snprintf(path, sizeof path, "%s/%s.json", root, name);
    (void)snprintf(folder, 64, "%s/%s", root, name);
    if (file_write_atomic(path, arch, strlen(arch), &error) != OK) return 1;
    char *arguments[] = {"synth", "--arch", path, "--out", folder, NULL};
    return command_synth(5, arguments, &error) != OK;
}

static int make_all(void **state) {
    (void)state;
    Text lines = {0};
    if (mkdtemp(root) == NULL || make_model(qwen2_arch, "qwen2", qwen2) || make_model(llama_arch, "llama", llama)) return 1;
    for (int i = 0; i < 40; i++)
        text_addf(&lines, "{\"text\": \"%d apples and %d pears cost %d crowns on day %d\"}\n", i * 7 % 31, i * 3, i * i,
                  40 - i);
    (void)snprintf(text, sizeof text, "%s/text.jsonl", root);
    Status status = file_write_atomic(text, lines.data, lines.length, &error);
    text_free(&lines);
    return status != OK;
}

static int remove_all(void **state) {
    (void)state;
    return folder_remove(root, &error) != OK;
}

static Status go_on(Error *err) {
    (void)err;
    return OK;
}

static CalibrationOptions options_for(const char *model, CalibrationMethod method) {
    return (CalibrationOptions){.method = method,
                                .model = model,
                                .data = text,
                                .samples = 30,
                                .tokens = 40,
                                .grid = {.bits = 3, .symmetric = 0, .group = 32, .scale_type = DTYPE_F16},
                                .damping = 0.01,
                                .vectors = DTYPE_F32,
                                .interrupted = go_on};
}

typedef struct Base {
    Backend backend;
    Pool *pool;
    Merge *merge;
} Base;

static void base_open(Base *base, const char *model, int threads, const char *cpu) {
    MergeOptions options = {.model = model};
    assert_ok(cpu_backend(&base->backend, cpu, &error), &error);
    assert_ok(pool_create(&base->pool, threads, &error), &error);
    assert_ok(merge_open(&base->merge, &options, &base->backend, base->pool, &error), &error);
}

static void base_close(Base *base) {
    merge_close(base->merge);
    pool_free(base->pool);
}

/* ---- layers --------------------------------------------------------------------------------------------------------------------- */

/* One model's layers on the data, with or without what an AWQ calibration has folded. */
typedef struct Run {
    Base base;
    CalibrationData data;
    Exec exec;
    LayerRun *layers;
    LayerValues values;
    float *h;
} Run;

static void run_open(Run *run, const char *model) {
    memset(run, 0, sizeof *run);
    base_open(&run->base, model, 2, NULL);
    CalibrationOptions options = options_for(model, CALIBRATE_IMPORTANCE);
    const ModelConfig *config = merge_model(run->base.merge);
    run->exec = (Exec){.config = {.act = DTYPE_F32, .threads = 2}, .pool = run->base.pool};
    assert_ok(calibration_data_open(&run->data, &options, config, &error), &error);
    assert_ok(layer_run_create(&run->layers, config, &run->base.backend, &run->exec, run->data.rows, run->data.longest, &error),
              &error);
    run->h = memory_alloc((size_t)(run->data.tokens * config->hidden) * sizeof *run->h);
    assert_ok(calibration_data_embed(&run->data, run->base.merge, run->h, &error), &error);
}

static void run_layers(Run *run, const Calibration *folded) {
    const ModelConfig *config = merge_model(run->base.merge);
    for (int64_t layer = 0; layer < config->layers; layer++) {
        for (int kind = 0; kind < LAYER_WEIGHTS; kind++) {
            int32_t id = weight_id(layer, (LayerWeight)kind);
            MergeWeight weight = merge_weight(run->base.merge, id);
            if (!weight.present) continue;
            float *w = aligned_alloc(64, ((size_t)(weight.rows * weight.cols) * sizeof *w + 63) / 64 * 64);
            assert_ok(merge_begin(run->base.merge, id, &error), &error);
            assert_ok(merge_rows(run->base.merge, 0, weight.rows, w, NULL, &error), &error);
            if (folded != NULL) calibration_transform(folded, id, 0, weight.rows, weight.cols, w);
            run->values.weight[kind] = w;
        }
        for (int64_t b = 0; b < run->data.batches; b++) {
            Batch batch;
            assert_ok(calibration_data_batch(&run->data, b, &batch, &error), &error);
            assert_ok(layer_run(run->layers, layer, &run->values, &batch, run->h + run->data.row[b] * config->hidden,
                                LAYER_INPUTS, NULL, NULL, &error),
                      &error);
        }
        for (int kind = 0; kind < LAYER_WEIGHTS; kind++)
            free(run->values.weight[kind]);
        memset(&run->values, 0, sizeof run->values);
    }
}

static void run_close(Run *run) {
    layer_run_free(run->layers);
    calibration_data_close(&run->data);
    memory_free(run->h);
    base_close(&run->base);
}

/* Negative log-likelihood of `target` after row `row`, from the last h, in double. */
static double likelihood(const Run *run, const float *norm, const float *table, int64_t row, int32_t target) {
    const ModelConfig *config = merge_model(run->base.merge);
    const float *h = run->h + row * config->hidden;
    double squares = 0.0, sum = 0.0, wanted = 0.0;
    for (int64_t c = 0; c < config->hidden; c++)
        squares += (double)h[c] * (double)h[c];
    double scale = 1.0 / sqrt(squares / (double)config->hidden + config->rms_eps);
    for (int64_t v = 0; v < config->vocab; v++) {
        double logit = 0.0;
        for (int64_t c = 0; c < config->hidden; c++)
            logit += (double)h[c] * scale * (double)norm[c] * (double)table[v * config->hidden + c];
        sum += exp(logit);
        if (v == target) wanted = logit;
    }
    return log(sum) - wanted;
}

static float *whole_weight(Merge *merge, int32_t id) {
    MergeWeight weight = merge_weight(merge, id);
    float *w = memory_alloc((size_t)(weight.rows * weight.cols) * sizeof *w);
    assert_ok(merge_begin(merge, id, &error), &error);
    assert_ok(merge_rows(merge, 0, weight.rows, w, NULL, &error), &error);
    return w;
}

/* The same likelihoods as the tape that trains and evaluates. */
static void check_forward(const char *model) {
    Run run;
    ReplayData replay;
    Trainer trainer;
    const char *overrides[] = {"precision=f32", "method=lora", "train.micro_batch_tokens=2048"};
    ReplayOptions options = {.model = model, .overrides = overrides, .override_count = 3, .threads = 2, .frozen = 1};
    run_open(&run, model);
    run_layers(&run, NULL);
    replay_start(&replay);
    for (int64_t i = 0; i < run.data.count; i++) {
        int64_t first = run.data.dataset.start[run.data.sequences[i]], end = run.data.dataset.start[run.data.sequences[i] + 1];
        replay_add(&replay, run.data.dataset.ids + first, run.data.dataset.train + first, end - first);
    }
    replay_end_step(&replay);
    assert_ok(replay_open(&trainer, &options, &replay, &error), &error);
    float *nll = memory_alloc((size_t)run.data.tokens * sizeof *nll), *norm = whole_weight(run.base.merge, WEIGHT_FINAL_NORM);
    float *table = whole_weight(run.base.merge, WEIGHT_EMBED);
    double loss = 0.0;
    assert_ok(replay_evaluate(&trainer, &replay, 0, nll, &loss, &error), &error);
    int64_t row = 0, scored = 0;
    for (int64_t i = 0; i < run.data.count; i++)
        for (int64_t t = run.data.dataset.start[run.data.sequences[i]]; t < run.data.dataset.start[run.data.sequences[i] + 1];
             t++, row++) {
            if (t + 1 == run.data.dataset.start[run.data.sequences[i] + 1] || !run.data.dataset.train[t + 1]) continue;
            double want = likelihood(&run, norm, table, row, run.data.dataset.ids[t + 1]);
            assert_true(fabs((double)nll[scored++] - want) <= 2e-4); /* FP32 logits of about 10, sums of 64 and 96 products */
        }
    assert_true(scored > 500);
    memory_free(nll);
    memory_free(norm);
    memory_free(table);
    replay_close(&trainer);
    replay_free(&replay);
    run_close(&run);
}

static void test_forward(void **state) {
    (void)state;
    check_forward(qwen2);
    check_forward(llama);
}

/* ---- what is found ----------------------------------------------------------------------------------------------------------------- */

static Calibration *calibrated(const CalibrationOptions *options, int threads) {
    Base base;
    Calibration *found;
    base_open(&base, options->model, threads, NULL);
    assert_ok(calibration_run(&found, options, base.merge, &base.backend, base.pool, &error), &error);
    base_close(&base);
    return found;
}

#define LINEARS (2 * LAYER_LINEARS)
static int32_t linear_id(int i) {
    return weight_id(i / LAYER_LINEARS, (LayerWeight)(i % LAYER_LINEARS));
}

/* Scales that are folded into norms, v and up change no output: h is the same. */
static void test_folding(void **state) {
    (void)state;
    for (int m = 0; m < 2; m++) {
        CalibrationOptions options = options_for(m == 0 ? qwen2 : llama, CALIBRATE_AWQ);
        Calibration *found = calibrated(&options, 2);
        Run plain, folded;
        run_open(&plain, options.model);
        run_open(&folded, options.model);
        run_layers(&plain, NULL);
        run_layers(&folded, found);
        int64_t count = plain.data.tokens * merge_model(plain.base.merge)->hidden;
        assert_close("h", DTYPE_F32, folded.h, plain.h, count, 2e-5, "FP32 products rounded in other places");
        int changed = 0;
        for (int i = 0; i < LINEARS; i++) {
            const Found *f = found_of(found, i / LAYER_LINEARS, (LayerWeight)(i % LAYER_LINEARS));
            for (int64_t c = 0; f->columns != NULL && c < f->cols; c++)
                changed += f->columns[c] != 1.0f;
            if (i % LAYER_LINEARS == LAYER_O)
                assert_int_equal(f->columns != NULL, m == 0); /* llama: v's rows serve two heads */
        }
        assert_true(changed > 200);
        run_close(&plain);
        run_close(&folded);
        calibration_free(found);
    }
}

static void assert_same(Calibration *a, Calibration *b) {
    for (int i = 0; i < LINEARS; i++) {
        GroupIntTensor x, y;
        assert_ok(calibration_take_tensor(a, linear_id(i), &x, &error), &error);
        assert_ok(calibration_take_tensor(b, linear_id(i), &y, &error), &error);
        assert_memory_equal(x.codes, y.codes, (size_t)(x.rows * x.cols));
        assert_memory_equal(x.scales, y.scales, (size_t)(x.rows * x.groups) * sizeof *x.scales);
        if (x.g_idx != NULL) assert_memory_equal(x.g_idx, y.g_idx, (size_t)x.cols * sizeof *x.g_idx);
        group_int_free(&x);
        group_int_free(&y);
    }
}

static void test_threads(void **state) {
    (void)state;
    for (int m = 0; m < 4; m++) {
        CalibrationOptions options = options_for(m % 2 ? qwen2 : llama, m < 2 ? CALIBRATE_GPTQ : CALIBRATE_AWQ);
        options.act_order = m == 1;
        Calibration *alone = calibrated(&options, 1), *many = calibrated(&options, 5);
        assert_same(alone, many);
        double error_found = 0.0, error_nearest = 0.0; /* linears that share an input share AWQ's scales: in sum */
        for (int i = 0; i < LINEARS; i++) {
            CalibrationError e = calibration_error(alone, linear_id(i));
            assert_true(e.found > 0.0 && e.nearest > 0.0);
            if (m < 2) assert_true(e.found < e.nearest);
            error_found += e.found * e.found;
            error_nearest += e.nearest * e.nearest;
        }
        assert_true(error_found < error_nearest);
        calibration_free(alone);
        calibration_free(many);
    }
}

/* Mean squares of the inputs, by the sums of a plain run. */
typedef struct Squares {
    double sum[LAYER_INPUTS][96];
    int64_t tokens;
} Squares;

static Status add_squares(void *context, LayerInput input, const Batch *batch, const float *x, Error *err) {
    (void)err;
    Squares *squares = context;
    int64_t cols = input == INPUT_DOWN ? 96 : 64;
    for (int64_t i = 0; i < batch->tokens * cols; i++)
        squares->sum[input][i % cols] += (double)x[i] * (double)x[i];
    if (input == INPUT_ATTENTION) squares->tokens += batch->tokens;
    return OK;
}

static void test_importance(void **state) {
    (void)state;
    CalibrationOptions options = options_for(llama, CALIBRATE_IMPORTANCE);
    Calibration *found = calibrated(&options, 3);
    static Squares squares;
    Run run;
    run_open(&run, llama);
    for (int kind = 0; kind < LAYER_WEIGHTS; kind++) {
        MergeWeight weight = merge_weight(run.base.merge, weight_id(0, (LayerWeight)kind));
        if (!weight.present) continue;
        float *w = aligned_alloc(64, ((size_t)(weight.rows * weight.cols) * sizeof *w + 63) / 64 * 64);
        assert_ok(merge_begin(run.base.merge, weight_id(0, (LayerWeight)kind), &error), &error);
        assert_ok(merge_rows(run.base.merge, 0, weight.rows, w, NULL, &error), &error);
        run.values.weight[kind] = w;
    }
    for (int64_t b = 0; b < run.data.batches; b++) {
        Batch batch;
        assert_ok(calibration_data_batch(&run.data, b, &batch, &error), &error);
        assert_ok(layer_run(run.layers, 0, &run.values, &batch, run.h + run.data.row[b] * 64, INPUT_DOWN, add_squares, &squares,
                            &error),
                  &error);
    }
    for (int input = 0; input < LAYER_INPUTS; input++) {
        int count;
        LayerWeight first = layer_input_linears((LayerInput)input, &count);
        for (int i = 0; i < count; i++) {
            const float *importance = calibration_importance(found, weight_id(0, (LayerWeight)((int)first + i)));
            for (int64_t c = 0; c < layer_input_width(merge_model(run.base.merge), (LayerInput)input); c++)
                assert_true(importance[c] ==
                            (float)(squares.sum[input][c] / (double)squares.tokens)); /* the same sums in order */
        }
    }
    assert_null(calibration_importance(found, WEIGHT_EMBED));
    assert_null(calibration_importance(found, weight_id(0, LAYER_INPUT_NORM)));
    assert_int_equal(calibration_sequences(found), 30);
    assert_int_equal(calibration_tokens(found), squares.tokens);
    for (int kind = 0; kind < LAYER_WEIGHTS; kind++)
        free(run.values.weight[kind]);
    run_close(&run);
    calibration_free(found);
}

static void test_refused(void **state) {
    (void)state;
    Base base;
    Calibration *found;
    base_open(&base, llama, 2, NULL);
    CalibrationOptions options = options_for(llama, CALIBRATE_GPTQ);
    options.grid.group = 64; /* down_proj has 96 inputs */
    assert_refused(calibration_run(&found, &options, base.merge, &base.backend, base.pool, &error), &error, "down_proj");
    assert_null(found);
    options = options_for(llama, CALIBRATE_GPTQ);
    options.damping = -1.0;
    assert_refused(calibration_run(&found, &options, base.merge, &base.backend, base.pool, &error), &error, "damping");
    options.data = "no such file";
    assert_refused(calibration_run(&found, &options, base.merge, &base.backend, base.pool, &error), &error, "no such file");
    base_close(&base);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forward),    cmocka_unit_test(test_folding), cmocka_unit_test(test_threads),
        cmocka_unit_test(test_importance), cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, make_all, remove_all);
}
