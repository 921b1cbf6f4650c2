#include "tests/support/replay.h"

#include <stdlib.h>
#include <string.h>

#include "core/file.h"

#define OVERRIDES_MAX 64

/* ---- data ---------------------------------------------------------------------------------------------------------- */

void replay_start(ReplayData *data) {
    memset(data, 0, sizeof *data);
    data->data.start = memory_calloc(1, sizeof *data->data.start);
    data->micro_batch = memory_calloc(1, sizeof *data->micro_batch);
    data->step = memory_calloc(1, sizeof *data->step);
}

void replay_add(ReplayData *data, const int32_t *ids, const uint8_t *train, int64_t count) {
    Dataset *d = &data->data;
    size_t tokens = (size_t)(d->tokens + count);
    d->ids = memory_resize(d->ids, tokens * sizeof *d->ids);
    d->train = memory_resize(d->train, tokens * sizeof *d->train);
    memcpy(d->ids + d->tokens, ids, (size_t)count * sizeof *ids);
    memcpy(d->train + d->tokens, train, (size_t)count * sizeof *train);
    d->start = memory_resize(d->start, (size_t)(d->count + 2) * sizeof *d->start);
    d->tokens += count;
    d->start[++d->count] = d->tokens;
    if (count > d->longest) d->longest = count;
}

static int64_t append(int64_t **list, int64_t count, int64_t value) {
    *list = memory_resize(*list, (size_t)(count + 2) * sizeof **list);
    (*list)[count + 1] = value;
    return count + 1;
}

void replay_end_micro_batch(ReplayData *data) {
    if (data->micro_batch[data->micro_batches] == data->data.count) return;
    data->micro_batches = append(&data->micro_batch, data->micro_batches, data->data.count);
}

void replay_end_step(ReplayData *data) {
    replay_end_micro_batch(data);
    if (data->step[data->steps] == data->micro_batches) return;
    data->steps = append(&data->step, data->steps, data->micro_batches);
}

static void read_line(ReplayData *data, const char *line) {
    if (*line == '-') {
        replay_end_micro_batch(data);
    } else if (*line == '=') {
        replay_end_step(data);
    } else {
        size_t room = strlen(line) / 2 + 1; /* an id and a space take two characters at least */
        int32_t *ids = memory_alloc(room * sizeof *ids);
        uint8_t *train = memory_calloc(room, 1);
        int64_t count = 0;
        for (char *end; *line != 0; line = end) {
            long id = strtol(line, &end, 10);
            if (end == line) break;
            ids[count] = (int32_t)id;
            if (*end == '*') {
                train[count] = 1;
                end++;
            }
            count++;
        }
        if (count > 0) replay_add(data, ids, train, count);
        memory_free(ids);
        memory_free(train);
    }
}

Status replay_read(ReplayData *data, const char *path, Error *err) {
    char *text;
    size_t length;
    replay_start(data);
    TRY(file_read(path, (size_t)1 << 26, &text, &length, err));
    for (char *line = text, *end; line < text + length; line = end + 1) {
        end = strchr(line, '\n');
        if (end == NULL) end = text + length;
        *end = 0;
        read_line(data, line);
    }
    memory_free(text);
    replay_end_step(data);
    if (data->steps == 0) FAIL("%s: no sequences", path);
    return OK;
}

void replay_free(ReplayData *data) {
    memory_free(data->data.start);
    memory_free(data->data.ids);
    memory_free(data->data.train);
    memory_free(data->micro_batch);
    memory_free(data->step);
    memset(data, 0, sizeof *data);
}

const char *replay_device(void) {
    return getenv("NIBBLE_TEST_DEVICE");
}

/* ---- running ------------------------------------------------------------------------------------------------------- */

static Status load_config(Trainer *trainer, const ReplayOptions *options, Error *err) {
    const char *overrides[OVERRIDES_MAX] = {"precision=f32", "train.schedule=constant", "train.warmup=0",
                                            "train.max_grad_norm=0"};
    int count = 4;
    if (options->override_count > OVERRIDES_MAX - count) FAIL("more than %d settings", OVERRIDES_MAX - count);
    for (int i = 0; i < options->override_count; i++)
        overrides[count++] = options->overrides[i];
    return config_load(&trainer->config, NULL, overrides, count, err);
}

static Status open_engine(Trainer *trainer, const ReplayOptions *options, Error *err) {
    const Config *config = &trainer->config;
    int full = strcmp(config->method, "full") == 0;
    EngineOptions engine = {.model = options->model,
                            .adapter = options->adapter,
                            .act = precision_type(config->precision),
                            .threads = options->threads,
                            .cpu = options->cpu,
                            .device = options->cpu == NULL ? replay_device() : NULL,
                            .method = options->frozen ? METHOD_FROZEN
                                      : full          ? METHOD_FULL
                                                      : METHOD_LORA,
                            .seed = (uint64_t)config->seed,
                            .config = config,
                            .optimizer = !options->frozen};
    TRY(weight_options_from_config(config, &engine.weights, err));
    TRY(engine_open(&trainer->engine, &engine, err));
    if (options->adapter != NULL) trainer->engine.adapter.dropout = (float)config->lora.dropout;
    if (trainer->engine.weights != NULL) trainer->engine.weights_hash = weights_hash(trainer->engine.weights);
    return OK;
}

static int64_t micro_batch_tokens(const ReplayData *data, int64_t m) {
    return data->data.start[data->micro_batch[m + 1]] - data->data.start[data->micro_batch[m]];
}

Status replay_open(Trainer *trainer, const ReplayOptions *options, const ReplayData *data, Error *err) {
    memset(trainer, 0, sizeof *trainer);
    TRY(load_config(trainer, options, err));
    TRY(open_engine(trainer, options, err));
    int64_t rows = 1, accumulation = 1;
    for (int64_t m = 0; m < data->micro_batches; m++)
        if (micro_batch_tokens(data, m) > rows) rows = micro_batch_tokens(data, m);
    for (int64_t s = 0; s < data->steps; s++)
        if (data->step[s + 1] - data->step[s] > accumulation) accumulation = data->step[s + 1] - data->step[s];
    Engine *engine = &trainer->engine;
    Recompute recompute = strcmp(trainer->config.train.recompute, "layers") == 0 ? RECOMPUTE_LAYERS : RECOMPUTE_NONE;
    if (!options->frozen) TRY(engine_tape(engine, TAPE_TRAIN, recompute, rows, rows, 0, &trainer->train_tape, err));
    TRY(engine_tape(engine, TAPE_EVAL, RECOMPUTE_NONE, rows, rows, 0, &trainer->eval_tape, err));
    Tape *tapes[] = {trainer->train_tape, trainer->eval_tape};
    TRY(engine_reserve(engine, tapes, 2, rows, data->data.longest, err));
    TRY(arena_create(&trainer->buffers, "batches", batch_buffer_bytes(rows), err));
    TRY(batch_buffer_take(&trainer->batch, &trainer->buffers, rows, err));
    trainer->train_data = data->data;
    trainer->step.sequences = memory_alloc((size_t)data->data.count * sizeof(int64_t));
    trainer->step.begin = memory_alloc((size_t)(accumulation + 1) * sizeof(int64_t));
    trainer->step.epoch = memory_calloc((size_t)accumulation, sizeof(int64_t));
    trainer->losses = memory_calloc((size_t)accumulation, sizeof *trainer->losses);
    trainer->steps = data->steps;
    return OK;
}

Status replay_step(Trainer *trainer, const ReplayData *data, int64_t step, StepResult *result, Error *err) {
    StepSequences *s = &trainer->step;
    s->micro_batches = data->step[step + 1] - data->step[step];
    s->supervised = s->tokens = 0;
    int64_t first = data->micro_batch[data->step[step]];
    for (int64_t k = 0; k <= s->micro_batches; k++)
        s->begin[k] = data->micro_batch[data->step[step] + k] - first;
    for (int64_t i = 0; i < s->begin[s->micro_batches]; i++) {
        s->sequences[i] = first + i;
        s->tokens += data->data.start[first + i + 1] - data->data.start[first + i];
    }
    s->supervised = batch_supervised(&data->data, s->sequences, s->begin[s->micro_batches]);
    TRY(trainer_step(trainer, result, err));
    return engine_fetch_params(&trainer->engine, err);
}

Status replay_evaluate(Trainer *trainer, const ReplayData *data, int64_t m, float *nll, double *loss_sum, Error *err) {
    int64_t first = data->micro_batch[m], count = data->micro_batch[m + 1] - first;
    for (int64_t i = 0; i < count; i++)
        trainer->step.sequences[i] = first + i;
    Batch batch = {.dropout = 0};
    TRY(batch_fill(&batch, &trainer->batch, &data->data, trainer->step.sequences, count, 0, err));
    TapeRun run = engine_run(&trainer->engine, &batch);
    run.nll = nll;
    run.loss_sum = loss_sum;
    return tape_run(trainer->eval_tape, &run, err);
}

void replay_close(Trainer *trainer) {
    tape_free(trainer->train_tape);
    tape_free(trainer->eval_tape);
    arena_free(&trainer->buffers);
    memory_free(trainer->step.sequences);
    memory_free(trainer->step.begin);
    memory_free(trainer->step.epoch);
    memory_free(trainer->losses);
    engine_close(&trainer->engine);
    config_free(&trainer->config);
    memset(trainer, 0, sizeof *trainer);
}
