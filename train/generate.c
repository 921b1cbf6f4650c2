#include "train/generate.h"

#include "train/device_memory.h"

#include <string.h>

#include "train/signals.h"

struct Generator {
    Engine *engine;
    Tape *tape;
    int64_t capacity, chunk, logit_rows;
    Arena rows_there; /* the cache, where the backend wants it */
    Arena arena;      /* the rest */
    KvLayer *cache;   /* [layers] */
    float *logits;    /* [logit_rows, vocab] */
    float *last;      /* [vocab]: of the last row held */
    int32_t *held;    /* [capacity]: the tokens whose rows the cache holds; `past` of them */
    int32_t *order;   /* [vocab] */
    int32_t *positions, *rows;
    int64_t past;
    double *profile; /* borrowed, or NULL */
};

static size_t cache_bytes(const ModelConfig *model, DType act, int64_t capacity) {
    return arena_align((size_t)(capacity * model->kv_heads * model->head_dim) * dtype_size(act));
}

size_t generator_bytes(const ModelConfig *model, DType act, int64_t capacity, int64_t logit_rows) {
    return 2 * (size_t)model->layers * cache_bytes(model, act, capacity) +
           arena_align((size_t)(logit_rows * model->vocab) * sizeof(float)) +
           2 * arena_align((size_t)model->vocab * sizeof(int32_t)) + 3 * arena_align((size_t)capacity * sizeof(int32_t));
}

static Status take_memory(Generator *g, const ModelConfig *model, DType act, Error *err) {
    size_t layers = 2 * (size_t)model->layers * cache_bytes(model, act, g->capacity);
    const Engine *engine = g->engine;
    TRY(device_arena_create(&g->rows_there, &engine->backend, &engine->exec, "key/value cache", layers, err));
    TRY(arena_create(&g->arena, "logits", generator_bytes(model, act, g->capacity, g->logit_rows) - layers, err));
    for (int64_t layer = 0; layer < model->layers; layer++) {
        TRY(arena_take(&g->rows_there, cache_bytes(model, act, g->capacity), &g->cache[layer].k, err));
        TRY(arena_take(&g->rows_there, cache_bytes(model, act, g->capacity), &g->cache[layer].v, err));
    }
    void *logits, *last, *order, *positions, *rows, *held;
    TRY(arena_take(&g->arena, (size_t)(g->logit_rows * model->vocab) * sizeof(float), &logits, err));
    TRY(arena_take(&g->arena, (size_t)model->vocab * sizeof(float), &last, err));
    TRY(arena_take(&g->arena, (size_t)model->vocab * sizeof(int32_t), &order, err));
    TRY(arena_take(&g->arena, (size_t)g->capacity * sizeof(int32_t), &positions, err));
    TRY(arena_take(&g->arena, (size_t)g->capacity * sizeof(int32_t), &rows, err));
    TRY(arena_take(&g->arena, (size_t)g->capacity * sizeof(int32_t), &held, err));
    g->logits = logits;
    g->last = last;
    g->held = held;
    g->order = order;
    g->positions = positions;
    g->rows = rows;
    return OK;
}

Status generator_create(Generator **generator, Engine *engine, int64_t capacity, int64_t chunk, int64_t logit_rows,
                        Error *err) {
    Generator *g = memory_calloc(1, sizeof *g);
    g->engine = engine;
    g->capacity = capacity;
    g->chunk = chunk;
    g->logit_rows = logit_rows;
    g->cache = memory_calloc((size_t)engine->model.layers, sizeof *g->cache);
    Status status = take_memory(g, &engine->model, engine->exec.config.act, err);
    if (status == OK) status = engine_tape(engine, TAPE_GENERATE, RECOMPUTE_NONE, chunk, logit_rows, capacity, &g->tape, err);
    if (status != OK) {
        generator_free(g);
        g = NULL;
    }
    *generator = g;
    return status;
}

Tape *generator_tape(Generator *generator) {
    return generator->tape;
}

size_t generator_device_bytes(const Generator *generator) {
    return generator->engine->backend.on_device ? generator->rows_there.capacity : 0;
}

void generator_profile(Generator *generator, double *seconds) {
    generator->profile = seconds;
}

void generator_free(Generator *generator) {
    if (generator == NULL) return;
    tape_free(generator->tape);
    device_arena_free(&generator->rows_there, &generator->engine->backend, &generator->engine->exec);
    arena_free(&generator->arena);
    memory_free(generator->cache);
    memory_free(generator);
}

/* Runs ids [count] (at most a chunk) at the cache's end. wanted: how many of the last rows' logits are needed. */
static Status run_rows(Generator *g, const int32_t *ids, int64_t count, int64_t wanted, float *logits, Error *err) {
    int64_t starts[2] = {0, count};
    for (int64_t i = 0; i < count; i++)
        g->positions[i] = (int32_t)(g->past + i);
    for (int64_t i = 0; i < wanted; i++)
        g->rows[i] = (int32_t)(count - wanted + i);
    Batch batch = {.tokens = count,
                   .sequences = 1,
                   .starts = starts,
                   .ids = ids,
                   .positions = g->positions,
                   .supervised = wanted,
                   .rows = g->rows};
    TapeRun run = engine_run(g->engine, &batch);
    run.logits = logits;
    run.cache = g->cache;
    run.past = g->past;
    run.profile = g->profile;
    TRY(tape_run(g->tape, &run, err));
    memcpy(g->held + g->past, ids, (size_t)count * sizeof *ids);
    g->past += count;
    return OK;
}

/* The prompt's rows behind the first `kept`, which the cache holds; the logits of the last. */
static Status run_prompt(Generator *g, const int32_t *prompt, int64_t count, int64_t kept, Error *err) {
    g->past = kept;
    for (int64_t done = kept; done < count;) {
        int64_t rows = count - done < g->chunk ? count - done : g->chunk;
        TRY(run_rows(g, prompt + done, rows, done + rows == count ? 1 : 0, g->last, err));
        done += rows;
    }
    return OK;
}

/* How many rows stay; never all, since the last one's logits are wanted. */
static int64_t kept_rows(const Generator *g, const int32_t *ids, int64_t count) {
    int64_t kept = 0;
    while (kept < g->past && kept < count - 1 && g->held[kept] == ids[kept])
        kept++;
    return kept;
}

static int is_stop(const SampleOptions *options, int32_t id) {
    for (int i = 0; i < options->stop_count; i++)
        if (options->stop_ids[i] == id) return 1;
    return 0;
}

static Status check_ids(const Generator *g, const int32_t *ids, int64_t count, Error *err) {
    if (count < 1) FAIL("the prompt is empty: give at least one token");
    if (count > g->capacity)
        FAIL("the prompt has %lld tokens and the model takes %lld", (long long)count, (long long)g->capacity);
    for (int64_t i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= g->engine->model.vocab)
            FAIL("token %d is not in the model's vocabulary of %lld", ids[i], (long long)g->engine->model.vocab);
    return OK;
}

Status generate(Generator *g, const int32_t *prompt, int64_t count, const SampleOptions *options, GenerateCallback *callback,
                void *context, int64_t *generated, Error *err) {
    *generated = 0;
    TRY(check_ids(g, prompt, count, err));
    TRY(run_prompt(g, prompt, count, options->reuse ? kept_rows(g, prompt, count) : 0, err));
    for (;;) {
        if (*generated == options->max_new_tokens) return OK;
        int32_t id = sample_token(g->last, g->order, g->engine->model.vocab, &options->spec, (uint64_t)g->past);
        if (is_stop(options, id)) return OK;
        (*generated)++;
        if (callback(context, id) || g->past == g->capacity || signals_pending()) return OK;
        if (*generated == options->max_new_tokens) return OK;
        TRY(run_rows(g, &id, 1, 1, g->last, err));
    }
}

Status generator_logits(Generator *g, const int32_t *ids, int64_t count, float *logits, Error *err) {
    TRY(check_ids(g, ids, count, err));
    g->past = 0;
    int64_t step = g->chunk < g->logit_rows ? g->chunk : g->logit_rows;
    for (int64_t done = 0; done < count;) {
        int64_t rows = count - done < step ? count - done : step;
        TRY(run_rows(g, ids + done, rows, rows, logits + done * g->engine->model.vocab, err));
        done += rows;
    }
    g->past = 0; /* the last row's logits are the caller's: nothing to go on from */
    return OK;
}

Status generator_prefill(Generator *g, const int32_t *ids, int64_t count, const float **logits, Error *err) {
    TRY(check_ids(g, ids, count, err));
    *logits = g->last;
    if (g->past == count && memcmp(g->held, ids, (size_t)count * sizeof *ids) == 0) return OK;
    return run_prompt(g, ids, count, kept_rows(g, ids, count), err);
}

Status generator_look_ahead(Generator *g, const int32_t *ids, int64_t count, const float **logits, Error *err) {
    *logits = g->logits;
    if (count == 0) return OK;
    TRY(check_ids(g, ids, count, err));
    if (count > g->logit_rows || g->past + count > g->capacity)
        FAIL("%lld tokens ahead of %lld: there is room for %lld and logits of %lld", (long long)count, (long long)g->past,
             (long long)(g->capacity - g->past), (long long)g->logit_rows);
    int64_t past = g->past;
    Status status = run_rows(g, ids, count, count, g->logits, err);
    g->past = past;
    return status;
}
