/* Shows what the library computes, so that a script can compare it with another program.
 *
 *   probe logits MODEL BATCHES OUT         logits.N [tokens, vocab] and nll.N [supervised] of every sequence
 *   probe gradients MODEL BATCHES OUT      the loss of step 0 on stdout, the gradient of every trained parameter in OUT
 *   probe train MODEL BATCHES OUT          every step's loss on stdout, the adapter in folder OUT
 *   probe dense MODEL OUT                  the weights as products see them, F32, under their Hugging Face names
 *   probe adapter MODEL OUT                an adapter by the config, B random as well, in folder OUT
 *   probe read-adapter CONFIG ADAPTER      how many adapters a PEFT folder holds for a config.json
 *
 * Options: --adapter DIR, --cpu ref|avx2|avx512, --threads N, --set key=value (repeatable, as in a config; precision is f32
 * if not said). BATCHES: tests/support/replay.h. OUT: a safetensors file, if not a folder.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/philox.h"
#include "data/safetensors.h"
#include "tests/support/replay.h"

#define SETTINGS_MAX 48

typedef struct Arguments {
    const char *positional[4];
    int count;
    const char *settings[SETTINGS_MAX];
    ReplayOptions options;
} Arguments;

static Error error;

static void check(Status status) {
    if (status == OK) return;
    fprintf(stderr, "probe: %s\n", error.text);
    exit((int)status);
}

static void usage(const char *why) {
    fprintf(stderr, "probe: %s; see the head of tests/peers/probe.c\n", why);
    exit(2);
}

static Arguments parse(int argc, char **argv) {
    Arguments a = {.options = {.threads = 2}};
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "--", 2) != 0) {
            if (a.count == 4) usage("too many arguments");
            a.positional[a.count++] = argv[i];
            continue;
        }
        if (i + 1 == argc) usage("an option wants a value");
        const char *option = argv[i], *value = argv[++i];
        if (strcmp(option, "--adapter") == 0) {
            a.options.adapter = value;
        } else if (strcmp(option, "--cpu") == 0) {
            a.options.cpu = value;
        } else if (strcmp(option, "--threads") == 0) {
            a.options.threads = atoi(value);
        } else if (strcmp(option, "--set") == 0 && a.options.override_count < SETTINGS_MAX) {
            a.settings[a.options.override_count++] = value;
        } else {
            usage("an unknown option, or too many");
        }
    }
    return a;
}

/* ---- named tensors to a file ----------------------------------------------------------------------------------------- */

typedef struct Tensors {
    TensorSpec *specs;
    float **values;
    int64_t count;
} Tensors;

static float *tensor_new(Tensors *tensors, char *name, int64_t rows, int64_t cols) {
    size_t count = (size_t)tensors->count + 1;
    tensors->specs = memory_resize(tensors->specs, count * sizeof *tensors->specs);
    tensors->values = memory_resize(tensors->values, count * sizeof *tensors->values);
    tensors->specs[count - 1] = (TensorSpec){.name = name, .dtype = DTYPE_F32, .ndim = rows > 0 ? 2 : 1};
    tensors->specs[count - 1].shape[0] = rows > 0 ? rows : cols;
    tensors->specs[count - 1].shape[1] = cols;
    int64_t numbers = (rows > 0 ? rows : 1) * cols;
    tensors->count++;
    return tensors->values[count - 1] = memory_alloc((size_t)numbers * sizeof(float));
}

static Status produce(void *context, const TensorSpec *spec, TensorWriter *writer, Error *err) {
    const Tensors *tensors = context;
    for (int64_t i = 0; i < tensors->count; i++) {
        const TensorSpec *own = &tensors->specs[i];
        if (strcmp(own->name, spec->name) != 0) continue;
        int64_t numbers = own->shape[0] * (own->ndim > 1 ? own->shape[1] : 1);
        return tensor_write_bytes(writer, tensors->values[i], (size_t)numbers * sizeof(float), err);
    }
    FAIL("no values for %s", spec->name);
}

static void tensors_save(Tensors *tensors, const char *path) {
    check(tensors_write(path, tensors->specs, tensors->count, NULL, produce, tensors, &error));
    for (int64_t i = 0; i < tensors->count; i++) {
        memory_free((void *)(uintptr_t)tensors->specs[i].name);
        memory_free(tensors->values[i]);
    }
    memory_free(tensors->specs);
    memory_free(tensors->values);
}

/* ---- commands ---------------------------------------------------------------------------------------------------------- */

static void add_logits(Trainer *trainer, const Dataset *data, Tensors *out) {
    Engine *engine = &trainer->engine;
    const int64_t chunk = 7; /* so that most sequences go through the cache in several pieces */
    Generator *generator;
    check(generator_create(&generator, engine, data->longest, chunk, chunk, &error));
    arena_free(&engine->arena);
    rope_memory_free(&engine->rope);
    Tape *tape = generator_tape(generator);
    check(engine_reserve(engine, &tape, 1, data->longest, data->longest, &error));
    for (int64_t s = 0; s < data->count; s++) {
        int64_t begin = data->start[s], count = data->start[s + 1] - begin;
        float *logits = tensor_new(out, memory_format("logits.%lld", (long long)s), count, engine->model.vocab);
        check(generator_logits(generator, data->ids + begin, count, logits, &error));
    }
    generator_free(generator);
}

/* The same through packed micro-batches, without a cache. */
static void add_nll(Trainer *trainer, const ReplayData *data, Tensors *out) {
    float *nll = memory_alloc((size_t)data->data.tokens * sizeof *nll);
    for (int64_t m = 0; m < data->micro_batches; m++) {
        double sum = 0.0;
        check(replay_evaluate(trainer, data, m, nll, &sum, &error));
        const float *next = nll;
        for (int64_t s = data->micro_batch[m]; s < data->micro_batch[m + 1]; s++) {
            int64_t supervised = batch_supervised(&data->data, &s, 1);
            if (supervised == 0) continue;
            float *values = tensor_new(out, memory_format("nll.%lld", (long long)s), 0, supervised);
            memcpy(values, next, (size_t)supervised * sizeof *values);
            next += supervised;
        }
    }
    memory_free(nll);
}

static void command_logits(Arguments *a) {
    ReplayData data;
    Trainer trainer;
    Tensors out = {0};
    a->options.frozen = 1;
    check(replay_read(&data, a->positional[2], &error));
    check(replay_open(&trainer, &a->options, &data, &error));
    add_nll(&trainer, &data, &out);
    add_logits(&trainer, &data.data, &out);
    tensors_save(&out, a->positional[3]);
    replay_close(&trainer);
    replay_free(&data);
}

static void command_gradients(Arguments *a) {
    ReplayData data;
    Trainer trainer;
    StepResult result;
    Tensors out = {0};
    check(replay_read(&data, a->positional[2], &error));
    check(replay_open(&trainer, &a->options, &data, &error));
    check(replay_step(&trainer, &data, 0, &result, &error));
    printf("%.9g %.9g\n", result.loss, result.grad_norm);
    const Engine *engine = &trainer.engine;
    for (int64_t e = 0; e < engine->params.count; e++) {
        const ParamEntry *entry = &engine->params.entries[e];
        char name[256];
        params_name(&engine->params, &engine->model, e, name, sizeof name);
        float *values = tensor_new(&out, memory_strdup(name), entry->rows, entry->cols);
        memcpy(values, engine->state.gradient + entry->offset, (size_t)(entry->rows * entry->cols) * sizeof(float));
    }
    tensors_save(&out, a->positional[3]);
    replay_close(&trainer);
    replay_free(&data);
}

static void write_adapter(const Trainer *trainer, const char *folder) {
    const Engine *engine = &trainer->engine;
    AdapterInfo info = {.base_model = "base", .dropout = trainer->config.lora.dropout};
    check(adapter_write(&engine->adapter, &engine->params, folder, &engine->model, &info, engine->state.copy,
                        engine->exec.config.act, &error));
}

static void command_train(Arguments *a) {
    ReplayData data;
    Trainer trainer;
    check(replay_read(&data, a->positional[2], &error));
    check(replay_open(&trainer, &a->options, &data, &error));
    for (int64_t step = 0; step < data.steps; step++) {
        StepResult result;
        check(replay_step(&trainer, &data, step, &result, &error));
        printf("%.9g %.9g\n", result.loss, result.grad_norm);
    }
    if (weights_hash(trainer.engine.weights) != trainer.engine.weights_hash) usage("the frozen weights have changed");
    write_adapter(&trainer, a->positional[3]);
    replay_close(&trainer);
    replay_free(&data);
}

/* The least data that an engine can be opened for. */
static void open_bare(Arguments *a, Trainer *trainer, ReplayData *data) {
    const int32_t ids[2] = {0, 0};
    const uint8_t train[2] = {0, 1};
    replay_start(data);
    replay_add(data, ids, train, 2);
    replay_end_step(data);
    check(replay_open(trainer, &a->options, data, &error));
}

static void command_dense(Arguments *a) {
    Trainer trainer;
    ReplayData data;
    Tensors out = {0};
    a->options.frozen = 1;
    open_bare(a, &trainer, &data);
    const Engine *engine = &trainer.engine;
    for (int32_t id = 0; id < weight_count(&engine->model); id++) {
        char name[256];
        int64_t rows, cols;
        if (!weight_describe(&engine->model, id, name, sizeof name, &rows, &cols)) continue;
        if (id == WEIGHT_HEAD && engine->model.tied_embeddings) continue;
        WeightView view = weights_view(engine->weights, id);
        int vector = rows == 1 && id != WEIGHT_EMBED && id != WEIGHT_HEAD;
        float *values = tensor_new(&out, memory_strdup(name), vector ? 0 : rows, cols);
        engine->backend.dequantize(&view, 0, rows * cols, values, DTYPE_F32);
    }
    tensors_save(&out, a->positional[2]);
    replay_close(&trainer);
    replay_free(&data);
}

static void command_adapter(Arguments *a) {
    Trainer trainer;
    ReplayData data;
    open_bare(a, &trainer, &data);
    Engine *engine = &trainer.engine;
    for (int64_t e = 0; e < engine->params.count; e++) {
        const ParamEntry *entry = &engine->params.entries[e];
        if (entry->role != PARAM_LORA_B) continue;
        for (int64_t i = 0; i < entry->rows * entry->cols; i++)
            engine->state.master[entry->offset + i] = 0.2f * random_uniform(7, RANDOM_WEIGHTS, (uint64_t)e, (uint64_t)i) - 0.1f;
    }
    params_refresh_copy(&engine->state, &engine->params, engine->exec.config.act);
    write_adapter(&trainer, a->positional[2]);
    replay_close(&trainer);
    replay_free(&data);
}

static void command_read_adapter(Arguments *a) {
    ModelConfig config;
    Adapter adapter;
    ParamSet params = {0};
    check(model_config_read(a->positional[1], &config, &error));
    check(adapter_read(&adapter, &params, a->positional[2], &config, &error));
    float *values = memory_alloc((size_t)params.elements * sizeof *values);
    check(adapter_read_values(&adapter, &params, a->positional[2], &config, values, &error));
    double scale = 0.0;
    for (int64_t i = 0; i < adapter.layers * LAYER_LINEARS; i++)
        if (adapter.modules[i].rank > 0) scale = (double)adapter.modules[i].scale;
    printf("%lld matrices, %lld numbers, scale %g\n", (long long)params.count, (long long)params.trained, scale);
    memory_free(values);
    params_free(&params);
    adapter_free(&adapter);
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        int arguments;
        void (*run)(Arguments *a);
    } commands[] = {{"logits", 4, command_logits},   {"gradients", 4, command_gradients},
                    {"train", 4, command_train},     {"dense", 3, command_dense},
                    {"adapter", 3, command_adapter}, {"read-adapter", 3, command_read_adapter}};
    Arguments a = parse(argc, argv);
    a.options.overrides = a.settings;
    a.options.model = a.positional[1];
    for (size_t i = 0; a.count > 0 && i < sizeof commands / sizeof commands[0]; i++) {
        if (strcmp(a.positional[0], commands[i].name) != 0) continue;
        if (a.count != commands[i].arguments) usage("wrong number of arguments");
        commands[i].run(&a);
        return 0;
    }
    usage("an unknown command");
}
