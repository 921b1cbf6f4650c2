/* The tape: its recording rules, what its areas may share, and that a run touches nothing else. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "autograd/tape_internal.h"
#include "core/file.h"
#include "tests/support/compare.h"
#include "tests/support/replay.h"

#define MODELS "tests/golden/parity/"
#define CANARY 4096

static Error error;

/* ---- a small tape by hand: embed, norm, linear, head ----------------------------------------------------------------- */

enum { ROWS = 6, VOCAB = 11, HIDDEN = 8 };
enum { W_TABLE, W_NORM, W_LINEAR, W_HEAD, W_COUNT };

typedef struct Source {
    float values[W_COUNT][VOCAB * HIDDEN];
    int taken[W_COUNT], given[W_COUNT], backward_calls;
    int fails; /* this weight is refused */
} Source;

static Status source_acquire(void *self, int32_t weight, Pass pass, WeightView *view, Error *err) {
    (void)pass;
    Source *s = self;
    if (weight == s->fails) FAIL("weight %d is not there", weight);
    int64_t rows = weight == W_NORM ? 1 : weight == W_LINEAR ? HIDDEN : VOCAB;
    *view = (WeightView){.format = WEIGHT_F32, .rows = rows, .cols = HIDDEN, .data = s->values[weight]};
    s->taken[weight]++;
    return OK;
}

static void source_release(void *self, int32_t weight, Pass pass) {
    (void)pass;
    ((Source *)self)->given[weight]++;
}

static Status source_backward(void *self, int32_t weight, const Exec *exec, const Batch *batch, const void *dy, int64_t stride,
                              const void *x, Error *err) {
    Source *s = self;
    (void)exec;
    (void)stride;
    (void)err;
    assert_int_equal(weight, W_LINEAR);
    for (int64_t i = 0; i < batch->tokens * HIDDEN; i++)
        assert_true(isfinite(((const float *)dy)[i]) && isfinite(((const float *)x)[i]));
    s->backward_calls++;
    return OK;
}

static void fill_source(Source *s) {
    memset(s, 0, sizeof *s);
    s->fails = -1;
    for (int w = 0; w < W_COUNT; w++)
        for (int i = 0; i < VOCAB * HIDDEN; i++)
            s->values[w][i] = (float)((i * 37 + w * 11) % 23 - 11) / 16.0f;
}

static Tape *start(TapeMode mode, Backend *backend) {
    cpu_backend_reference(backend);
    TapeOptions options = {.backend = backend, .exec = {DTYPE_F32, 1}, .mode = mode, .rows = ROWS, .supervised = ROWS};
    Tape *tape;
    assert_ok(tape_create(&tape, &options, &error), &error);
    return tape;
}

static TapeLinear plain_linear(int derived) {
    TapeLinear linear = {.spec = {.out = HIDDEN, .format = WEIGHT_F32}, .weight = {W_LINEAR, derived, -1}};
    linear.bias = WEIGHT_NONE;
    return linear;
}

static Tape *small_tape(int derived) {
    Backend backend;
    Tape *tape = start(derived ? TAPE_TRAIN : TAPE_EVAL, &backend);
    TensorId x, sum, n, y;
    TapeLinear linear = plain_linear(derived);
    assert_ok(tape_embed(tape, "table", WEIGHT_FROZEN(W_TABLE), VOCAB, HIDDEN, &x, &error), &error);
    assert_ok(tape_norm(tape, "norm", x, TENSOR_NONE, WEIGHT_FROZEN(W_NORM), 1e-5, &sum, &n, &error), &error);
    assert_ok(tape_linear(tape, "middle", n, &linear, 1, &y, &error), &error);
    assert_ok(tape_head(tape, "head", y, WEIGHT_FROZEN(W_HEAD), WEIGHT_F32, VOCAB, &error), &error);
    assert_ok(tape_finish(tape, &error), &error);
    return tape;
}

static Status run_small(const Tape *tape, Source *source, int with_backward, float scale, TapeFault *fault) {
    const int64_t starts[] = {0, 4, 5};
    const int32_t ids[] = {1, 2, 3, 4, 5}, positions[] = {0, 1, 2, 3, 0}, rows[] = {0, 2}, targets[] = {2, 9};
    const uint64_t samples[5] = {0};
    Batch batch = {.tokens = 5,
                   .sequences = 2,
                   .starts = starts,
                   .ids = ids,
                   .positions = positions,
                   .samples = samples,
                   .supervised = 2,
                   .rows = rows,
                   .targets = targets,
                   .grad_scale = scale};
    WeightSource handed = {.self = source,
                           .acquire = source_acquire,
                           .release = source_release,
                           .backward = with_backward ? source_backward : NULL};
    Exec exec = {.config = {DTYPE_F32, 1}};
    TapePlan plan;
    tape_plan(tape, &plan);
    Arena arena;
    assert_ok(arena_create(&arena, "arena", plan.arena, &error), &error);
    memset(arena.base, 0xFF, plan.arena);
    double loss = 0.0;
    TapeRun run = {.exec = &exec, .batch = &batch, .weights = &handed, .arena = arena.base, .loss_sum = &loss, .watch = fault};
    Status status = tape_run(tape, &run, &error);
    if (status == OK && fault == NULL) assert_true(isfinite(loss) && loss > 0.0);
    arena_free(&arena);
    return status;
}

static void test_one_consumer(void **state) {
    (void)state;
    Backend backend;
    TensorId x, y, z;
    TapeLinear linear = plain_linear(0);
    Tape *tape = start(TAPE_EVAL, &backend);
    assert_ok(tape_embed(tape, "table", WEIGHT_FROZEN(W_TABLE), VOCAB, HIDDEN, &x, &error), &error);
    assert_ok(tape_linear(tape, "first", x, &linear, 1, &y, &error), &error);
    assert_refused(tape_linear(tape, "second", x, &linear, 1, &z, &error), &error, "already feeds first");
    assert_refused(tape_gate(tape, "gate", GATE_SILU, y, y, &z, &error), &error, "one consumer");
    assert_refused(tape_linear(tape, "third", 99, &linear, 1, &z, &error), &error, "not a tensor");
    tape_free(tape);
}

/* ---- joined groups: a backend that plans with strides ---------------------------------------------------------------- */

static Status plan_linear(const ExecConfig *config, const LinearShape *shape, OpPlan *plan, Error *err) {
    (void)config, (void)shape, (void)err;
    *plan = (OpPlan){0};
    return OK;
}
static Status plan_rope(const ExecConfig *config, const RopeShape *shape, OpPlan *plan, Error *err) {
    (void)config, (void)shape, (void)err;
    *plan = (OpPlan){0};
    return OK;
}
static Status plan_attention(const ExecConfig *config, const AttentionShape *shape, OpPlan *plan, Error *err) {
    (void)config, (void)shape, (void)err;
    *plan = (OpPlan){0};
    return OK;
}
static Status plan_gate(const ExecConfig *config, const GateShape *shape, OpPlan *plan, Error *err) {
    (void)config, (void)shape, (void)err;
    *plan = (OpPlan){0};
    return OK;
}
static Status plan_fake(const ExecConfig *config, const FakeRowsShape *shape, OpPlan *plan, Error *err) {
    (void)config, (void)shape, (void)err;
    *plan = (OpPlan){0};
    return OK;
}

static Tape *start_joined(Recompute recompute) {
    Backend backend;
    cpu_backend_reference(&backend);
    backend.joined_groups = 1;
    backend.linear_plan = plan_linear;
    backend.rope_plan = plan_rope;
    backend.attention_plan = plan_attention;
    backend.gate_plan = plan_gate;
    backend.fake_rows_plan = plan_fake;
    TapeOptions options = {.backend = &backend,
                           .exec = {DTYPE_F32, 1},
                           .mode = TAPE_TRAIN,
                           .recompute = recompute,
                           .rows = ROWS,
                           .supervised = ROWS};
    Tape *tape;
    assert_ok(tape_create(&tape, &options, &error), &error);
    return tape;
}

typedef struct Layer {
    TensorId table, qkv[3], rq, rk, v, o, gate_up[2], act;
} Layer;

/* q, k, v | RoPE | attention | gate, up | activation | head; with norm: of q and k; rounded: v passes through fake_rows */
static Layer record_joined(Tape *tape, int norm, int rounded) {
    Layer l;
    TapeLinear members[3];
    for (int i = 0; i < 3; i++) {
        members[i] = plain_linear(0);
        members[i].spec.out = i == 0 ? 2 * HIDDEN : HIDDEN;
        members[i].spec.rank = 1;
    }
    RopeShape rope = {.heads = 2, .kv_heads = 1, .head_dim = HIDDEN, .table_rows = ROWS};
    AttentionShape attention = {.heads = 2, .kv_heads = 1, .head_dim = HIDDEN, .scale = 1.0f};
    FakeRowsShape codes = {.group = HIDDEN, .bits = 8, .symmetric = 1};
    WeightRef weight = norm ? WEIGHT_FROZEN(W_NORM) : WEIGHT_NONE;
    assert_ok(tape_embed(tape, "table", WEIGHT_FROZEN(W_TABLE), VOCAB, HIDDEN, &l.table, &error), &error);
    tape_segment(tape, 0);
    assert_ok(tape_linear(tape, "qkv", l.table, members, 3, l.qkv, &error), &error);
    assert_ok(tape_rope(tape, "rope", l.qkv[0], l.qkv[1], &rope, weight, weight, &l.rq, &l.rk, &error), &error);
    l.v = l.qkv[2];
    if (rounded) assert_ok(tape_fake_rows(tape, "codes", l.qkv[2], &codes, -1, &l.v, &error), &error);
    assert_ok(tape_attention(tape, "attention", 0, l.rq, l.rk, l.v, &attention, &l.o, &error), &error);
    assert_ok(tape_linear(tape, "gate_up", l.o, members + 1, 2, l.gate_up, &error), &error);
    assert_ok(tape_gate(tape, "act", GATE_SILU, l.gate_up[0], l.gate_up[1], &l.act, &error), &error);
    tape_segment(tape, -1);
    assert_ok(tape_head(tape, "head", l.act, WEIGHT_FROZEN(W_HEAD), WEIGHT_F32, VOCAB, &error), &error);
    assert_ok(tape_finish(tape, &error), &error);
    return l;
}

static const Node *node_of(const Tape *tape, TensorId id) {
    return &tape->nodes[tape->tensors[id].producer];
}

static void check_joined(Recompute recompute, int norm, int rounded) {
    Tape *tape = start_joined(recompute);
    Layer l = record_joined(tape, norm, rounded);
    const Tensor *t = tape->tensors;
    const int64_t stride = 4 * HIDDEN;
    int again = recompute == RECOMPUTE_LAYERS;
    assert_int_equal(node_of(tape, l.qkv[0])->shape.linear.stride, stride);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(t[l.qkv[i]].stride, stride);
        assert_int_equal(t[l.qkv[i]].column, i == 0 ? 0 : (i + 1) * HIDDEN);
        assert_int_equal(t[l.qkv[i]].area[0], t[l.qkv[0]].area[0]);
        assert_int_equal(t[l.qkv[i]].area[1], t[l.qkv[0]].area[1]);
        assert_int_equal(t[l.qkv[i]].gradient, t[l.qkv[0]].gradient);
    }
    assert_int_equal(t[l.qkv[0]].area[1] >= 0, again);
    assert_true(tape->areas[t[l.qkv[0]].area[0]].bytes >= ROWS * (size_t)stride * sizeof(float));
    /* RoPE in place unless its backward wants what it read; gradients in place always */
    const RopeShape *rope = &node_of(tape, l.rq)->shape.rope;
    assert_int_equal(rope->stride, stride);
    assert_int_equal(rope->gradient_stride, stride);
    assert_int_equal(rope->out_stride, norm ? 0 : stride);
    assert_int_equal(tape_root(tape, l.rk), norm ? l.rk : l.qkv[1]);
    assert_int_equal(node_of(tape, l.rq)->rerun, again);
    assert_int_equal(t[l.rq].gradient, t[l.qkv[0]].gradient);
    assert_int_equal(t[l.v].gradient, t[l.qkv[0]].gradient);
    const AttentionShape *attention = &node_of(tape, l.o)->shape.attention;
    assert_int_equal(attention->q_stride, norm ? 0 : stride);
    assert_int_equal(attention->k_stride, norm ? 0 : stride);
    assert_int_equal(attention->v_stride, rounded ? 0 : stride);
    assert_int_equal(attention->gradient_stride, stride);
    /* the gradients of gate and up lie where gate and up lay */
    assert_int_equal(node_of(tape, l.act)->shape.gate.stride, 2 * HIDDEN);
    assert_int_equal(t[l.gate_up[0]].gradient, t[l.gate_up[0]].area[again]);
    assert_int_equal(t[l.gate_up[1]].gradient, t[l.gate_up[0]].area[again]);
    assert_int_not_equal(t[l.act].gradient, t[l.gate_up[0]].gradient);
    tape_free(tape);
}

static void test_joined_groups(void **state) {
    (void)state;
    for (int kind = 0; kind < 8; kind++)
        check_joined(kind & 1 ? RECOMPUTE_LAYERS : RECOMPUTE_NONE, kind >> 1 & 1, kind >> 2);
    Tape *tape = start_joined(RECOMPUTE_NONE);
    TensorId x, y[2], z, sum;
    TapeLinear members[2] = {plain_linear(0), plain_linear(0)};
    assert_ok(tape_embed(tape, "table", WEIGHT_FROZEN(W_TABLE), VOCAB, HIDDEN, &x, &error), &error);
    assert_ok(tape_linear(tape, "two", x, members, 2, y, &error), &error);
    assert_refused(tape_norm(tape, "norm", y[0], TENSOR_NONE, WEIGHT_FROZEN(W_NORM), 1e-5, &sum, &z, &error), &error,
                   "side by side");
    tape_free(tape);
    members[1] = plain_linear(1); /* its gradient goes to a source, contiguous */
    tape = start_joined(RECOMPUTE_NONE);
    assert_ok(tape_embed(tape, "table", WEIGHT_FROZEN(W_TABLE), VOCAB, HIDDEN, &x, &error), &error);
    assert_ok(tape_linear(tape, "two", x, members, 2, y, &error), &error);
    assert_int_equal(tape->nodes[1].shape.linear.stride, 0);
    tape_free(tape);
}

static void test_incomplete(void **state) {
    (void)state;
    Backend backend;
    TensorId x, y;
    TapeLinear linear = plain_linear(0);
    Tape *tape = start(TAPE_TRAIN, &backend);
    assert_ok(tape_embed(tape, "table", WEIGHT_FROZEN(W_TABLE), VOCAB, HIDDEN, &x, &error), &error);
    assert_refused(tape_finish(tape, &error), &error, "no head");
    assert_ok(tape_linear(tape, "middle", x, &linear, 1, &y, &error), &error);
    assert_refused(tape_head(tape, "head", y, WEIGHT_FROZEN(W_HEAD), WEIGHT_F32, VOCAB, &error), &error, "nothing");
    tape_free(tape);

    tape = small_tape(0);
    assert_refused(tape_embed(tape, "late", WEIGHT_FROZEN(W_TABLE), VOCAB, HIDDEN, &x, &error), &error, "complete");
    assert_refused(tape_finish(tape, &error), &error, "already finished");
    tape_free(tape);
}

static void test_derived_weight(void **state) {
    (void)state;
    Source source;
    Tape *tape = small_tape(1);
    fill_source(&source);
    assert_ok(run_small(tape, &source, 1, 0.5f, NULL), &error);
    assert_int_equal(source.backward_calls, 1);
    assert_int_equal(source.taken[W_LINEAR], 2); /* forward and backward */
    assert_memory_equal(source.taken, source.given, sizeof source.taken);
    assert_refused(run_small(tape, &source, 0, 0.5f, NULL), &error, "backward"); /* a source that cannot */
    fill_source(&source);
    source.fails = W_LINEAR;
    assert_refused(run_small(tape, &source, 1, 0.5f, NULL), &error, "middle: weight 2 is not there");
    assert_memory_equal(source.taken, source.given, sizeof source.taken);
    tape_free(tape);
}

static void test_watch(void **state) {
    (void)state;
    Source source;
    TapeFault fault = {.found = 0};
    Tape *tape = small_tape(1);
    fill_source(&source);
    fault.found = 0;
    assert_ok(run_small(tape, &source, 1, 0.5f, &fault), &error);
    assert_int_equal(fault.found, 0);
    source.values[W_LINEAR][3] = INFINITY;
    assert_ok(run_small(tape, &source, 1, 0.5f, &fault), &error);
    assert_int_equal(fault.found, 1);
    assert_string_equal(fault.text, "forward of middle");
    fill_source(&source);
    fault.found = 0;
    source.values[W_TABLE][2 * HIDDEN] = NAN; /* an id of the batch: the first op that makes it, not the next that reads it */
    assert_ok(run_small(tape, &source, 1, 0.5f, &fault), &error);
    assert_string_equal(fault.text, "forward of table");
    fill_source(&source);
    fault.found = 0;
    assert_ok(run_small(tape, &source, 1, INFINITY, &fault), &error);
    assert_string_equal(fault.text, "forward of head"); /* the head's gradient comes with its loss */
    tape_free(tape);
}

/* ---- the tapes of whole models ---------------------------------------------------------------------------------------- */

static void check_layout(const Tape *tape) {
    TapePlan plan;
    tape_plan(tape, &plan);
    size_t top = 0;
    for (int32_t a = 0; a < tape->area_count; a++) {
        const Area *one = &tape->areas[a];
        assert_true(one->first <= one->last && one->last < tape->instruction_count);
        assert_int_equal(one->offset % ARENA_ALIGN, 0);
        if (one->offset + one->bytes > top) top = one->offset + one->bytes;
        for (int32_t b = 0; b < a; b++) {
            const Area *other = &tape->areas[b];
            int together = one->first <= other->last && other->first <= one->last;
            int overlap = one->offset < other->offset + other->bytes && other->offset < one->offset + one->bytes;
            if (together && overlap) fail_msg("areas %d and %d live together and overlap", a, b);
        }
    }
    assert_int_equal(top, plan.arena); /* what is planned is what is used */
    assert_true(plan.activations + plan.saved + plan.gradients + plan.workspace <= plan.arena);
    assert_int_equal(plan.instructions, tape->instruction_count);
}

/* Fills everything that no area carries from an earlier instruction into instruction `at` with NaN. */
static void poison(const Tape *tape, int32_t at, uint8_t *arena, uint8_t *keep) {
    memset(keep, 0, tape->plan.arena);
    for (int32_t a = 0; a < tape->area_count; a++)
        if (tape->areas[a].first < at && at <= tape->areas[a].last)
            memset(keep + tape->areas[a].offset, 1, tape->areas[a].bytes);
    for (size_t i = 0; i < tape->plan.arena; i++)
        if (!keep[i]) arena[i] = 0xFF;
}

static void check_lifetimes(Trainer *trainer, const Tape *tape, const Batch *batch) {
    Engine *engine = &trainer->engine;
    size_t bytes = (size_t)engine->params.elements * sizeof(float), size = tape->plan.arena;
    float *gradient = engine->state.gradient, *plain = memory_alloc(bytes);
    uint8_t *keep = memory_alloc(size);
    Arena arena;
    double plain_loss = 0.0, loss = 0.0;
    assert_ok(arena_create(&arena, "poisoned", size + CANARY, &error), &error);
    memset(arena.base + size, 0xA5, CANARY);
    TapeRun run = engine_run(engine, batch);
    run.arena = arena.base;
    memset(gradient, 0, bytes);
    run.loss_sum = &plain_loss;
    memset(arena.base, 0, size);
    assert_ok(tape_run(tape, &run, &error), &error);
    memcpy(plain, gradient, bytes);
    memset(gradient, 0, bytes);
    run.loss_sum = &loss;
    for (int32_t at = 0; at < tape->instruction_count; at++) {
        Tape one = *tape; /* a schedule of one instruction */
        one.instructions += at;
        one.instruction_count = 1;
        poison(tape, at, arena.base, keep);
        assert_ok(tape_run(&one, &run, &error), &error);
    }
    assert_true(loss == plain_loss && isfinite(loss) && loss > 0.0);
    assert_memory_equal(gradient, plain, bytes);
    for (size_t i = 0; i < CANARY; i++)
        assert_int_equal(arena.base[size + i], 0xA5);
    arena_free(&arena);
    memory_free(keep);
    memory_free(plain);
}

static void check_model(const char *model, const char *const *overrides, int count, const char *cpu) {
    ReplayData data;
    Trainer trainer;
    char *folder = memory_format(MODELS "%s", model), *batches = path_join(folder, "batches");
    assert_ok(replay_read(&data, batches, &error), &error);
    ReplayOptions options = {.model = folder, .cpu = cpu, .overrides = overrides, .override_count = count, .threads = 2};
    assert_ok(replay_open(&trainer, &options, &data, &error), &error);
    check_layout(trainer.train_tape);
    check_layout(trainer.eval_tape);
    Batch batch = {.grad_scale = 0.1f, .seed = 1, .dropout = 1};
    const int64_t sequences[] = {0, 1};
    assert_int_equal(batch_fill(&batch, &trainer.batch, &data.data, sequences, 2, 0, NULL), OK);
    check_lifetimes(&trainer, trainer.train_tape, &batch);
    TapePlan train, eval;
    tape_plan(trainer.train_tape, &train);
    tape_plan(trainer.eval_tape, &eval);
    assert_true(eval.arena < train.arena);
    replay_close(&trainer);
    replay_free(&data);
    memory_free(batches);
    memory_free(folder);
}

static void test_lifetimes(void **state) {
    (void)state;
    static const char *const models[] = {"llama_gqa", "llama_biases_odd", "qwen2_window", "qwen3"};
    static const char *const recomputes[] = {"train.recompute=none", "train.recompute=light", "train.recompute=layers"};
    static const char *const cpus[] = {"ref", NULL};
    for (size_t m = 0; m < sizeof models / sizeof *models; m++)
        for (int r = 0; r < 3; r++)
            for (int c = 0; c < 2; c++) {
                const char *all[] = {recomputes[r], "method=lora", "lora.dropout=0.3"};
                check_model(models[m], all, 3, cpus[c]);
                const char *part[] = {recomputes[r], "lora.layers=[1]", "lora.target_modules=v_proj"};
                check_model(models[m], part, 3, cpus[c]);
                const char *mlp[] = {recomputes[r], "lora.layers=[0]", "lora.target_modules=down_proj"};
                check_model(models[m], mlp, 3, cpus[c]);
                const char *full[] = {recomputes[r], "method=full"};
                check_model(models[m], full, 2, cpus[c]);
            }
}

/* ---- checkpoints in host memory ---------------------------------------------------------------------------------------- */

/* Copies as a device may make them: at once, or as late as it is allowed to. */
static struct Copies {
    int late, settled;
    struct {
        void *to;
        const void *from, *there;
        size_t bytes;
    } under_way[2];
} copies;

static Status start_copy(void *to, const void *from, const void *there, size_t bytes, Error *err) {
    for (int i = 0; i < 2; i++) {
        if (copies.under_way[i].there != NULL) continue;
        copies.under_way[i].to = to;
        copies.under_way[i].from = from;
        copies.under_way[i].there = there;
        copies.under_way[i].bytes = bytes;
        if (!copies.late) memcpy(to, from, bytes);
        return OK;
    }
    FAIL("three copies at a time");
}

static Status copy_to_host(const Exec *exec, void *host, const void *from, size_t bytes, Error *err) {
    (void)exec;
    return start_copy(host, from, from, bytes, err);
}

static Status copy_to_device(const Exec *exec, void *to, const void *host, size_t bytes, Error *err) {
    (void)exec;
    return start_copy(to, host, to, bytes, err);
}

static Status settle_copy(const Exec *exec, const void *memory, Error *err) {
    (void)exec;
    for (int i = 0; i < 2; i++) {
        if (copies.under_way[i].there != memory) continue;
        if (copies.late) memcpy(copies.under_way[i].to, copies.under_way[i].from, copies.under_way[i].bytes);
        copies.under_way[i].there = NULL;
        copies.settled++;
        return OK;
    }
    FAIL("nothing is on its way there");
}

static void offer_host_memory(Backend *backend) {
    backend->stash = copy_to_host;
    backend->fetch = copy_to_device;
    backend->settle = settle_copy;
}

static void check_stashed(Trainer *trainer, const Batch *batch, const Tape *plain, int64_t layers, int64_t wanted) {
    Engine *engine = &trainer->engine;
    size_t bytes = (size_t)engine->params.elements * sizeof(float);
    float *expected = memory_alloc(bytes);
    memcpy(expected, engine->state.gradient, bytes);
    Tape *tape;
    TapePlan plan, other;
    int64_t rows = plain->options.rows;
    engine->stashed_layers = layers;
    assert_ok(engine_tape(engine, TAPE_TRAIN, RECOMPUTE_LAYERS, rows, rows, 0, &tape, &error), &error);
    tape_plan(tape, &plan);
    tape_plan(plain, &other);
    check_layout(tape);
    assert_int_equal(plan.stashed, wanted);
    assert_int_equal(plan.stash > 0, wanted > 0);
    assert_true(plan.arena <= other.arena);
    uint8_t *host = memory_alloc(plan.stash + CANARY);
    memset(host, 0xFF, plan.stash + CANARY);
    engine->stash.base = wanted > 0 ? host : NULL;
    for (copies.late = 0; copies.late < 2; copies.late++) {
        copies.settled = 0;
        check_lifetimes(trainer, tape, batch);
        assert_int_equal(copies.settled, 4 * wanted); /* two runs, there and back */
        assert_memory_equal(engine->state.gradient, expected, bytes);
    }
    for (size_t i = 0; i < CANARY; i++)
        assert_int_equal(host[plan.stash + i], 0xFF);
    engine->stash.base = NULL;
    if (wanted > 0) { /* memory that was planned is asked for */
        TapeRun run = engine_run(engine, batch);
        assert_int_equal(tape_run(tape, &run, &error), ERR_FAILED);
        assert_non_null(strstr(error.text, "without"));
    }
    tape_free(tape);
    memory_free(host);
    memory_free(expected);
}

static void test_host_memory(void **state) {
    (void)state;
    static const struct {
        const char *model, *setting;
        int64_t layers, wanted;
    } cases[] = {
        {"qwen2_window", "method=lora", INT64_MAX, 2}, /* three layers: all but the last */
        {"qwen2_window", "method=lora", 1, 1},
        {"qwen2_window", "method=full", INT64_MAX, 2},
        {"qwen2_window", "lora.layers=[1]", INT64_MAX, 1}, /* the first has no backward pass */
        {"qwen2_window", "lora.layers=[2]", INT64_MAX, 0},
        {"llama_gqa", "method=lora", 5, 1},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        ReplayData data;
        Trainer trainer;
        char *folder = memory_format(MODELS "%s", cases[c].model), *batches = path_join(folder, "batches");
        const char *overrides[] = {"train.recompute=layers", cases[c].setting};
        assert_ok(replay_read(&data, batches, &error), &error);
        ReplayOptions options = {.model = folder, .cpu = "ref", .overrides = overrides, .override_count = 2, .threads = 1};
        assert_ok(replay_open(&trainer, &options, &data, &error), &error);
        Batch batch = {.grad_scale = 0.1f, .seed = 1, .dropout = 1};
        const int64_t sequences[] = {0, 1};
        assert_int_equal(batch_fill(&batch, &trainer.batch, &data.data, sequences, 2, 0, NULL), OK);
        trainer.engine.stashed_layers = 1;
        Tape *none = NULL;
        assert_int_equal(engine_tape(&trainer.engine, TAPE_TRAIN, RECOMPUTE_LAYERS, 8, 8, 0, &none, &error), ERR_FAILED);
        assert_non_null(strstr(error.text, "host memory"));
        check_lifetimes(&trainer, trainer.train_tape, &batch);
        offer_host_memory(&trainer.engine.backend);
        check_stashed(&trainer, &batch, trainer.train_tape, cases[c].layers, cases[c].wanted);
        replay_close(&trainer);
        replay_free(&data);
        memory_free(batches);
        memory_free(folder);
    }
}

/* What recomputed layers leave on the device does not grow with their number. */
static void test_host_memory_grows(void **state) {
    (void)state;
    ModelConfig *model = memory_alloc(sizeof *model);
    Backend backend;
    size_t arena[2][2];
    cpu_backend_reference(&backend);
    offer_host_memory(&backend);
    assert_ok(model_config_read("configs/arch/llama-3-8b.json", model, &error), &error);
    int64_t rows = 1024;
    size_t input = backend.activation_bytes(DTYPE_BF16, rows, model->hidden);
    for (int host = 0; host < 2; host++)
        for (int half = 0; half < 2; half++) {
            model->layers = half ? 16 : 32;
            int64_t *trained = memory_calloc((size_t)weight_count(model), sizeof *trained);
            ModelShape shape = {.config = model, .linear = WEIGHT_NF4, .dense = WEIGHT_BF16, .weight_gradient = trained};
            for (int32_t id = 0; id < weight_count(model); id++)
                trained[id] = id == weight_id(0, LAYER_INPUT_NORM) ? 0 : -1;
            TapeOptions options = {.backend = &backend,
                                   .exec = {DTYPE_BF16, 1},
                                   .mode = TAPE_TRAIN,
                                   .recompute = RECOMPUTE_LAYERS,
                                   .stashed = host ? INT64_MAX : 0,
                                   .rows = rows,
                                   .supervised = rows};
            Tape *tape;
            TapePlan plan;
            assert_ok(model_record(&tape, &shape, &options, &error), &error);
            tape_plan(tape, &plan);
            arena[host][half] = plan.arena;
            assert_int_equal(plan.stash, host ? (size_t)(model->layers - 1) * input : 0);
            tape_free(tape);
            memory_free(trained);
        }
    assert_true(arena[0][0] - arena[0][1] >= 15 * input);
    assert_true(arena[1][0] - arena[1][1] < input / 64); /* a few bytes a layer that down_proj keeps for its backward */
    assert_true(arena[0][0] - arena[1][0] >=
                29 * input); /* of 32 inputs two are there, and a few more beside them in the forward pass */
    memory_free(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_consumer), cmocka_unit_test(test_joined_groups),
        cmocka_unit_test(test_incomplete),   cmocka_unit_test(test_derived_weight),
        cmocka_unit_test(test_watch),        cmocka_unit_test(test_lifetimes),
        cmocka_unit_test(test_host_memory),  cmocka_unit_test(test_host_memory_grows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
