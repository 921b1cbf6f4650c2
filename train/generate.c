#include "train/generate.h"

#include "train/device_memory.h"

#include <string.h>

#include "train/signals.h"

struct Generator {
    Engine *engine;
    Tape *tape;
    int64_t capacity, chunk, logit_rows, sequences;
    Arena rows_there; /* the cache, where the backend wants it */
    Arena arena;      /* the rest */
    KvLayer *cache;   /* [sequences][layers]: each one's part */
    int64_t part;     /* whose part run_rows works on */
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
    int64_t all = g->capacity * g->sequences;
    size_t part = (size_t)(g->capacity * model->kv_heads * model->head_dim) * dtype_size(act);
    size_t layers = 2 * (size_t)model->layers * cache_bytes(model, act, all);
    const Engine *engine = g->engine;
    TRY(device_arena_create(&g->rows_there, &engine->backend, &engine->exec, "key/value cache", layers, err));
    TRY(arena_create(&g->arena, "logits", generator_bytes(model, act, all, g->logit_rows) - layers, err));
    for (int64_t layer = 0; layer < model->layers; layer++) {
        TRY(arena_take(&g->rows_there, cache_bytes(model, act, all), &g->cache[layer].k, err));
        TRY(arena_take(&g->rows_there, cache_bytes(model, act, all), &g->cache[layer].v, err));
        for (int64_t s = 1; s < g->sequences; s++)
            g->cache[s * model->layers + layer] =
                (KvLayer){(uint8_t *)g->cache[layer].k + (size_t)s * part, (uint8_t *)g->cache[layer].v + (size_t)s * part};
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

int64_t generator_beside(const ModelConfig *model, DType act, int64_t capacity, int64_t wanted) {
    int64_t most = wanted < GENERATE_BESIDE ? wanted : GENERATE_BESIDE;
    size_t each = 2 * (size_t)model->layers * cache_bytes(model, act, capacity);
    int64_t room = (int64_t)(((size_t)512 << 20) / (each > 0 ? each : 1));
    if (most > room) most = room;
    if (most > capacity) most = capacity; /* rows of a tape */
    return most < 1 ? 1 : most;
}

Status generator_create_beside(Generator **generator, Engine *engine, int64_t capacity, int64_t chunk, int64_t logit_rows,
                               int64_t sequences, Error *err) {
    Generator *g = memory_calloc(1, sizeof *g);
    if (engine->backend.on_device) sequences = 1;
    g->engine = engine;
    g->capacity = capacity;
    g->chunk = chunk > sequences ? chunk : sequences;
    g->logit_rows = logit_rows > sequences ? logit_rows : sequences;
    g->sequences = sequences;
    g->cache = memory_calloc((size_t)(engine->model.layers * sequences), sizeof *g->cache);
    Status status = take_memory(g, &engine->model, engine->exec.config.act, err);
    if (status == OK)
        status = engine_tape(engine, TAPE_GENERATE, RECOMPUTE_NONE, g->chunk, g->logit_rows, capacity, &g->tape, err);
    if (status != OK) {
        generator_free(g);
        g = NULL;
    }
    *generator = g;
    return status;
}

Status generator_create(Generator **generator, Engine *engine, int64_t capacity, int64_t chunk, int64_t logit_rows,
                        Error *err) {
    return generator_create_beside(generator, engine, capacity, chunk, logit_rows, 1, err);
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
    run.cache = g->cache + g->part * g->engine->model.layers;
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

/* ---- several beside each other ------------------------------------------------------------------------------------------- */

/* A job that is being worked on, in a part of the cache of its own. */
typedef struct Seat {
    GenerateJob *job;
    int64_t part, past;
    int32_t id; /* the token that goes through the model next */
} Seat;

/* What the logits of the last row mean for a job; whether seat->id is to go through the model. */
static int take_token(const Generator *g, Seat *seat, float *logits) {
    GenerateJob *job = seat->job;
    if (job->generated == job->options.max_new_tokens) return 0;
    seat->id = sample_token(logits, g->order, g->engine->model.vocab, &job->options.spec, (uint64_t)seat->past);
    if (is_stop(&job->options, seat->id)) return 0;
    job->generated++;
    if (job->callback(job->context, seat->id) || seat->past == g->capacity || signals_pending()) return 0;
    return job->generated < job->options.max_new_tokens;
}

/* The prompt alone, into a part of the cache; *goes_on: there is a token to go through the model. */
static Status seat_job(Generator *g, GenerateJob *job, Seat *seat, int *goes_on, Error *err) {
    seat->job = job;
    job->generated = 0;
    TRY(check_ids(g, job->prompt, job->count, err));
    g->part = seat->part;
    TRY(run_prompt(g, job->prompt, job->count, 0, err));
    seat->past = g->past;
    *goes_on = take_token(g, seat, g->last);
    return OK;
}

/* One row of each of the seats. */
static Status run_seats(Generator *g, const Seat *seats, int64_t count, Error *err) {
    int32_t ids[GENERATE_BESIDE];
    int64_t starts[GENERATE_BESIDE + 1] = {0};
    CachePart parts[GENERATE_BESIDE];
    for (int64_t i = 0; i < count; i++) {
        ids[i] = seats[i].id;
        g->positions[i] = (int32_t)seats[i].past;
        g->rows[i] = (int32_t)i;
        starts[i + 1] = i + 1;
        parts[i] = (CachePart){.first = seats[i].part * g->capacity, .past = seats[i].past};
    }
    Batch batch = {.tokens = count,
                   .sequences = count,
                   .starts = starts,
                   .ids = ids,
                   .positions = g->positions,
                   .supervised = count,
                   .rows = g->rows,
                   .parts = parts};
    TapeRun run = engine_run(g->engine, &batch);
    run.logits = g->logits;
    run.cache = g->cache;
    run.profile = g->profile;
    return tape_run(g->tape, &run, err);
}

static Status run_jobs(Generator *g, GenerateJob *jobs, int64_t count, Error *err) {
    Seat seats[GENERATE_BESIDE];
    int64_t seated = 0, next = 0, vocab = g->engine->model.vocab;
    for (int64_t i = 0; i < g->sequences; i++)
        seats[i].part = i; /* those behind the seated ones are free */
    while (!signals_pending()) {
        while (seated < g->sequences && next < count) {
            int goes_on;
            TRY(seat_job(g, &jobs[next++], &seats[seated], &goes_on, err));
            seated += goes_on;
        }
        if (seated == 0) return OK;
        TRY(run_seats(g, seats, seated, err));
        int64_t kept = 0;
        for (int64_t i = 0; i < seated; i++) {
            Seat seat = seats[i];
            seat.past++;
            int goes_on = take_token(g, &seat, g->logits + i * vocab);
            seats[i] = seats[kept]; /* its part becomes free where the job has ended */
            seats[goes_on ? kept : i] = seat;
            if (!goes_on) continue;
            kept++;
        }
        seated = kept;
    }
    return OK;
}

Status generate_all(Generator *g, GenerateJob *jobs, int64_t count, Error *err) {
    Status status = OK;
    if (g->sequences == 1) {
        for (int64_t i = 0; i < count && status == OK && !signals_pending(); i++)
            status = generate(g, jobs[i].prompt, jobs[i].count, &jobs[i].options, jobs[i].callback, jobs[i].context,
                              &jobs[i].generated, err);
        return status;
    }
    status = run_jobs(g, jobs, count, err);
    g->part = g->past = 0; /* nothing that a next call could go on from */
    return status;
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
