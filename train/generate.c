#include "train/generate.h"

#include <string.h>

#include "train/signals.h"

struct Generator {
    Engine *engine;
    Tape *tape;
    int64_t capacity, chunk, logit_rows;
    Arena arena;
    KvLayer *cache; /* [layers] */
    float *logits;  /* [logit_rows, vocab] */
    int32_t *order; /* [vocab] */
    int32_t *positions, *rows;
    int64_t past;
};

static size_t cache_bytes(const ModelConfig *model, DType act, int64_t capacity) {
    return arena_align((size_t)(capacity * model->kv_heads * model->head_dim) * dtype_size(act));
}

size_t generator_bytes(const ModelConfig *model, DType act, int64_t capacity, int64_t logit_rows) {
    return 2 * (size_t)model->layers * cache_bytes(model, act, capacity) +
           arena_align((size_t)(logit_rows * model->vocab) * sizeof(float)) +
           arena_align((size_t)model->vocab * sizeof(int32_t)) + 2 * arena_align((size_t)capacity * sizeof(int32_t));
}

static Status take_memory(Generator *g, const ModelConfig *model, DType act, Error *err) {
    TRY(arena_create(&g->arena, "key/value cache", generator_bytes(model, act, g->capacity, g->logit_rows), err));
    for (int64_t layer = 0; layer < model->layers; layer++) {
        TRY(arena_take(&g->arena, cache_bytes(model, act, g->capacity), &g->cache[layer].k, err));
        TRY(arena_take(&g->arena, cache_bytes(model, act, g->capacity), &g->cache[layer].v, err));
    }
    void *logits, *order, *positions, *rows;
    TRY(arena_take(&g->arena, (size_t)(g->logit_rows * model->vocab) * sizeof(float), &logits, err));
    TRY(arena_take(&g->arena, (size_t)model->vocab * sizeof(int32_t), &order, err));
    TRY(arena_take(&g->arena, (size_t)g->capacity * sizeof(int32_t), &positions, err));
    TRY(arena_take(&g->arena, (size_t)g->capacity * sizeof(int32_t), &rows, err));
    g->logits = logits;
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

void generator_free(Generator *generator) {
    if (generator == NULL) return;
    tape_free(generator->tape);
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
    TRY(tape_run(g->tape, &run, err));
    g->past += count;
    return OK;
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
    g->past = 0;
    for (int64_t done = 0; done < count;) {
        int64_t rows = count - done < g->chunk ? count - done : g->chunk;
        TRY(run_rows(g, prompt + done, rows, done + rows == count ? 1 : 0, g->logits, err));
        done += rows;
    }
    for (;;) {
        if (*generated == options->max_new_tokens) return OK;
        int32_t id = sample_token(g->logits, g->order, g->engine->model.vocab, &options->spec, (uint64_t)g->past);
        if (is_stop(options, id)) return OK;
        (*generated)++;
        if (callback(context, id) || g->past == g->capacity || signals_pending()) return OK;
        if (*generated == options->max_new_tokens) return OK;
        TRY(run_rows(g, &id, 1, 1, g->logits, err));
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
    return OK;
}
