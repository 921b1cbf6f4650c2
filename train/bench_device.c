/* nibble bench dequant | gemm | attention | loss | optimizer: an operation of a model's shape through the backend's own entries,
 * beside the copy bandwidth and the largest BF16 product that the same run measures. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/text.h"
#include "quant/quantize.h"
#include "train/bench.h"
#include "train/ceiling.h"
#include "train/device_memory.h"
#include "train/engine.h"

#define REPEATS 5
#define RUN_SECONDS 5e-3
#define MOST_CALLS 100
#define COPY_MOST ((size_t)1 << 30)

typedef struct DeviceBench {
    const BenchOptions *options;
    ModelConfig model;
    Device device;
    Pool *pool;
    Exec exec;
    Arena arena;
    Batch batch;
    int32_t *ids, *positions, *rows;
    uint64_t *samples;
    double copy, peak; /* bytes and FLOP a second */
    Text *out;
    int lines;
} DeviceBench;

static const Backend *backend_of(const DeviceBench *b) {
    return &b->device.backend;
}

/* ---- memory ------------------------------------------------------------------------------------------------------------- */

/* Bytes of BF16 values in [-1, 1), the same 64 KiB again and again. */
static Status take_values(DeviceBench *b, size_t bytes, void **out, Error *err) {
    enum { BLOCK = 32768 };
    bf16 *block = memory_alloc(BLOCK * sizeof *block);
    uint32_t state = 1;
    for (int i = 0; i < BLOCK; i++) {
        state = state * 1664525u + 1013904223u;
        block[i] = bf16_from_float((float)(state >> 8) / 8388608.0f - 1.0f);
    }
    Status status = arena_take(&b->arena, bytes, out, err);
    for (size_t done = 0; status == OK && done < bytes; done += BLOCK * sizeof *block) {
        size_t count = bytes - done < BLOCK * sizeof *block ? bytes - done : BLOCK * sizeof *block;
        status = backend_of(b)->copy_in(&b->exec, (uint8_t *)*out + done, block, count, err);
    }
    memory_free(block);
    return status;
}

static Status fresh_arena(DeviceBench *b, size_t bytes, Error *err) {
    device_arena_free(&b->arena, backend_of(b), &b->exec);
    return device_arena_create(&b->arena, backend_of(b), &b->exec, "benchmark", bytes, err);
}

static Status begin(DeviceBench *b, Error *err) {
    void *memory;
    int64_t tokens = b->batch.tokens;
    TRY(arena_take(&b->arena, backend_of(b)->batch_bytes(tokens, tokens), &memory, err));
    return backend_of(b)->begin(&b->exec, &b->batch, tokens, tokens, 0, 0, memory, err);
}

/* ---- timing ------------------------------------------------------------------------------------------------------------- */

typedef Status Work(DeviceBench *b, void *context, Error *err);

/* Seconds of `calls` calls that the host does not wait between. */
static Status time_calls(DeviceBench *b, Work *work, void *context, int calls, double *seconds, Error *err) {
    double start = clock_seconds();
    for (int i = 0; i < calls; i++)
        TRY(work(b, context, err));
    TRY(backend_of(b)->finish(&b->exec, err));
    *seconds = clock_seconds() - start;
    return OK;
}

/* Seconds of one call: the best of some runs of as many calls as take a few milliseconds. */
static Status time_work(DeviceBench *b, Work *work, void *context, double *seconds, Error *err) {
    double now, best = INFINITY;
    TRY(time_calls(b, work, context, 1, &now, err)); /* warms up */
    TRY(time_calls(b, work, context, 1, &now, err));
    int calls = now > RUN_SECONDS ? 1 : now * MOST_CALLS < RUN_SECONDS ? MOST_CALLS : (int)(RUN_SECONDS / now);
    for (int i = 0; i < REPEATS; i++) {
        TRY(time_calls(b, work, context, calls, &now, err));
        if (now < best) best = now;
    }
    *seconds = best / calls;
    return OK;
}

static void print_line(DeviceBench *b, const char *name, double seconds, double amount, int is_flops) {
    double rate = amount / seconds, ceiling = is_flops ? b->peak : b->copy;
    if (b->options->json) {
        text_addf(b->out, "%s{\"name\": \"%s\", \"seconds\": %.6g, \"%s\": %.6g", b->lines > 0 ? ", " : "", name, seconds,
                  is_flops ? "flops_per_second" : "bytes_per_second", rate);
        if (isfinite(ceiling)) text_addf(b->out, ", \"fraction\": %.4f", rate / ceiling);
        text_adds(b->out, "}");
    } else {
        text_addf(b->out, "  %-28s %10.3f ms %10.2f %s", name, 1e3 * seconds, rate / (is_flops ? 1e12 : 1e9),
                  is_flops ? "TFLOP/s" : "GB/s");
        if (isfinite(ceiling)) text_addf(b->out, " %6.1f %% of %s", 100.0 * rate / ceiling, is_flops ? "peak" : "copying");
        text_adds(b->out, "\n");
    }
    b->lines++;
}

/* ---- ceilings ----------------------------------------------------------------------------------------------------------- */

typedef struct Copy {
    void *to, *from;
    size_t bytes;
} Copy;

static Status copy_once(DeviceBench *b, void *context, Error *err) {
    const Copy *copy = context;
    return backend_of(b)->copy_within(&b->exec, copy->to, copy->from, copy->bytes, err);
}

static Status measure_ceilings(DeviceBench *b, Error *err) {
    size_t left, total;
    TRY(backend_of(b)->memory_left(&b->exec, &left, &total, err));
    Copy copy = {.bytes = left / 64 < COPY_MOST ? arena_align(left / 64) : COPY_MOST};
    double seconds;
    TRY(fresh_arena(b, 2 * copy.bytes, err));
    TRY(take_values(b, copy.bytes, &copy.from, err));
    TRY(take_values(b, copy.bytes, &copy.to, err));
    TRY(time_work(b, copy_once, &copy, &seconds, err));
    b->copy = 2.0 * (double)copy.bytes / seconds; /* read and written */
    b->peak = ceiling_gemm(backend_of(b), &b->exec);
    return OK;
}

/* ---- products and dequantization ------------------------------------------------------------------------------------------- */

typedef struct Linear {
    LinearShape shape;
    OpPlan plan;
    LinearOperand operand;
    Batch batch;
    void *x, *y, *saved, *workspace;
} Linear;

static Status linear_once(DeviceBench *b, void *context, Error *err) {
    Linear *l = context;
    return backend_of(b)->linear_forward(&b->exec, &l->shape, &l->batch, l->x, &l->operand, &l->y, l->saved, l->workspace, err);
}

/* A linear's weight of random codes; double-quantized where the format can be. */
static Status take_weight(DeviceBench *b, WeightFormat format, int64_t rows, int64_t cols, WeightView *view, size_t *bytes,
                          Error *err) {
    if (format == WEIGHT_BF16) {
        *view = (WeightView){.format = format, .rows = rows, .cols = cols};
        void *data;
        *bytes = (size_t)(rows * cols) * sizeof(bf16);
        TRY(take_values(b, *bytes, &data, err));
        view->data = data;
        return OK;
    }
    QuantSpec spec = {.format = format, .double_quant = format == WEIGHT_NF4 || format == WEIGHT_FP4, .block_size = 64};
    QuantizedTensor tensor;
    size_t before = b->arena.used;
    TRY(quantized_take(&tensor, &spec, rows, cols, &b->arena, err));
    *bytes = b->arena.used - before;
    *view = quantized_view(&tensor);
    return backend_of(b)->fill(&b->exec, b->arena.base + before, 0x3C, *bytes, err); /* small finite constants */
}

static Status bench_linear(DeviceBench *b, const char *name, WeightFormat format, int64_t out, int64_t in, int64_t tokens,
                           Error *err) {
    size_t dense = arena_align((size_t)(out * in) * sizeof(bf16)), weight_bytes;
    Linear l = {.shape = {.rows = b->batch.tokens, .in = in, .count = 1, .linear = {{.out = out, .format = format}}},
                .batch = b->batch};
    l.batch.tokens = tokens; /* 0: nothing is multiplied, and the weight is only dequantized */
    TRY(backend_of(b)->linear_plan(&b->exec.config, &l.shape, &l.plan, err));
    size_t x = arena_align((size_t)(b->batch.tokens * in) * sizeof(bf16));
    size_t y = arena_align((size_t)(b->batch.tokens * out) * sizeof(bf16));
    size_t batch = arena_align(backend_of(b)->batch_bytes(b->batch.tokens, b->batch.tokens));
    TRY(fresh_arena(b, 2 * dense + x + y + batch + arena_align(l.plan.forward_workspace) + ((size_t)1 << 20), err));
    TRY(take_weight(b, format, out, in, &l.operand.weight, &weight_bytes, err));
    TRY(take_values(b, x, &l.x, err));
    TRY(take_values(b, y, &l.y, err));
    TRY(arena_take(&b->arena, l.plan.forward_workspace, &l.workspace, err));
    TRY(begin(b, err));
    double seconds;
    TRY(time_work(b, linear_once, &l, &seconds, err));
    if (tokens == 0)
        print_line(b, name, seconds, (double)weight_bytes + (double)(out * in) * sizeof(bf16), 0);
    else
        print_line(b, name, seconds, 2.0 * (double)tokens * (double)out * (double)in, 1);
    return OK;
}

static Status bench_linears(DeviceBench *b, int only_dequantize, Error *err) {
    static const struct {
        const char *name;
        WeightFormat format;
    } formats[] = {{"nf4, nested", WEIGHT_NF4}, {"fp4, nested", WEIGHT_FP4}, {"int8", WEIGHT_INT8}, {"int4", WEIGHT_INT4}};
    const ModelConfig *c = &b->model;
    if (only_dequantize) {
        for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
            TRY(bench_linear(b, formats[i].name, formats[i].format, c->intermediate, c->hidden, 0, err));
        return OK;
    }
    int64_t width = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim, tokens = b->batch.tokens;
    TRY(bench_linear(b, "q_proj", WEIGHT_BF16, width, c->hidden, tokens, err));
    TRY(bench_linear(b, "k_proj", WEIGHT_BF16, kv, c->hidden, tokens, err));
    TRY(bench_linear(b, "q, k, v", WEIGHT_BF16, width + 2 * kv, c->hidden, tokens, err));
    TRY(bench_linear(b, "gate_proj", WEIGHT_BF16, c->intermediate, c->hidden, tokens, err));
    TRY(bench_linear(b, "gate, up", WEIGHT_BF16, 2 * c->intermediate, c->hidden, tokens, err));
    TRY(bench_linear(b, "down_proj", WEIGHT_BF16, c->hidden, c->intermediate, tokens, err));
    return bench_linear(b, "gate_proj from nf4", WEIGHT_NF4, c->intermediate, c->hidden, tokens, err);
}

/* ---- attention ---------------------------------------------------------------------------------------------------------- */

typedef struct Attention {
    AttentionShape shape;
    OpPlan plan;
    void *q, *k, *v, *o, *saved, *d_o, *dq, *dk, *dv, *workspace;
} Attention;

static Status attention_once(DeviceBench *b, void *context, Error *err) {
    Attention *a = context;
    return backend_of(b)->attention_forward(&b->exec, &a->shape, &b->batch, a->q, a->k, a->v, a->o, a->saved, a->workspace,
                                            err);
}

static Status attention_back_once(DeviceBench *b, void *context, Error *err) {
    Attention *a = context;
    return backend_of(b)->attention_backward(&b->exec, &a->shape, &b->batch, a->q, a->k, a->v, a->o, a->saved, a->d_o, a->dq,
                                             a->dk, a->dv, a->workspace, err);
}

static Status bench_attention(DeviceBench *b, Error *err) {
    const ModelConfig *c = &b->model;
    int64_t tokens = b->batch.tokens, width = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
    Attention a = {.shape = {.rows = tokens,
                             .heads = c->heads,
                             .kv_heads = c->kv_heads,
                             .head_dim = c->head_dim,
                             .scale = (float)(1.0 / sqrt((double)c->head_dim))}};
    TRY(backend_of(b)->attention_plan(&b->exec.config, &a.shape, &a.plan, err));
    size_t wide = arena_align((size_t)(tokens * width) * sizeof(bf16)),
           narrow = arena_align((size_t)(tokens * kv) * sizeof(bf16));
    size_t batch = arena_align(backend_of(b)->batch_bytes(tokens, tokens));
    TRY(fresh_arena(b, 4 * wide + 4 * narrow + arena_align(a.plan.saved) + arena_align(a.plan.backward_workspace) + batch,
                    err));
    void **const wides[] = {&a.q, &a.o, &a.d_o, &a.dq}, **const narrows[] = {&a.k, &a.v, &a.dk, &a.dv};
    for (int i = 0; i < 4; i++) {
        TRY(take_values(b, wide, wides[i], err));
        TRY(take_values(b, narrow, narrows[i], err));
    }
    TRY(arena_take(&b->arena, a.plan.saved, &a.saved, err));
    TRY(arena_take(&b->arena, a.plan.backward_workspace, &a.workspace, err));
    TRY(begin(b, err));
    double seconds, forward = 0.0;
    for (int64_t s = 0; s < b->batch.sequences; s++) { /* two products over half of each square */
        double length = (double)(b->batch.starts[s + 1] - b->batch.starts[s]);
        forward += 2.0 * length * length * (double)width;
    }
    TRY(time_work(b, attention_once, &a, &seconds, err));
    print_line(b, "attention forward", seconds, forward, 1);
    TRY(time_work(b, attention_back_once, &a, &seconds, err));
    print_line(b, "attention backward", seconds, 2.5 * forward, 1);
    return OK;
}

/* ---- head and loss, optimizer ------------------------------------------------------------------------------------------------ */

typedef struct Head {
    HeadShape shape;
    OpPlan plan;
    WeightView weight;
    void *x, *dx, *workspace;
    double loss;
} Head;

static Status head_once(DeviceBench *b, void *context, Error *err) {
    Head *h = context;
    return backend_of(b)->head_loss(&b->exec, &h->shape, &b->batch, h->x, &h->weight, &h->loss, NULL, h->dx, NULL, h->workspace,
                                    err);
}

static Status bench_loss(DeviceBench *b, Error *err) {
    const ModelConfig *c = &b->model;
    int64_t tokens = b->batch.tokens;
    Head h = {
        .shape = {
            .rows = tokens, .hidden = c->hidden, .vocab = c->vocab, .supervised = tokens, .format = WEIGHT_BF16, .need_dx = 1}};
    TRY(backend_of(b)->head_plan(&b->exec.config, &h.shape, &h.plan, err));
    size_t x = arena_align((size_t)(tokens * c->hidden) * sizeof(bf16)), bytes;
    size_t weight = arena_align((size_t)(c->vocab * c->hidden) * sizeof(bf16));
    size_t batch = arena_align(backend_of(b)->batch_bytes(tokens, tokens));
    TRY(fresh_arena(b, 2 * x + weight + arena_align(h.plan.forward_workspace) + batch, err));
    TRY(take_weight(b, WEIGHT_BF16, c->vocab, c->hidden, &h.weight, &bytes, err));
    TRY(take_values(b, x, &h.x, err));
    TRY(take_values(b, x, &h.dx, err));
    TRY(arena_take(&b->arena, h.plan.forward_workspace, &h.workspace, err));
    TRY(begin(b, err));
    double seconds;
    TRY(time_work(b, head_once, &h, &seconds, err));
    print_line(b, "head, loss and gradient", seconds, 4.0 * (double)tokens * (double)c->hidden * (double)c->vocab, 1);
    return OK;
}

typedef struct Flat {
    int64_t count;
    void *buffer[5]; /* master, m, v, gradient, copy */
} Flat;

static Status adamw_once(DeviceBench *b, void *context, Error *err) {
    (void)err;
    Flat *f = context;
    AdamStep step = {.lr = 1e-4, .beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8, .clip = 1.0, .step = 1};
    backend_of(b)->adamw(&b->exec, f->count, f->buffer[0], f->buffer[1], f->buffer[2], f->buffer[3], f->buffer[4], &step);
    return OK;
}

static Status norm_once(DeviceBench *b, void *context, Error *err) {
    const Flat *f = context;
    if (!(backend_of(b)->sum_squares(&b->exec, f->count, f->buffer[3]) >= 0.0)) FAIL("the norm is not a number");
    return OK;
}

/* The parameters of adapters on every linear. */
static Status bench_optimizer(DeviceBench *b, Error *err) {
    const ModelConfig *c = &b->model;
    int64_t width = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
    int64_t sides = 2 * (c->hidden + width) + 2 * (c->hidden + kv) + 3 * (c->hidden + c->intermediate);
    Flat f = {.count = (b->options->rank > 0 ? b->options->rank : 16) * c->layers * sides};
    size_t flat = arena_align((size_t)f.count * sizeof(float));
    TRY(fresh_arena(b, 5 * flat, err));
    for (int i = 0; i < 5; i++) {
        TRY(arena_take(&b->arena, flat, &f.buffer[i], err));
        TRY(backend_of(b)->fill(&b->exec, f.buffer[i], 0x38, flat, err)); /* 4.4e-5 */
    }
    double seconds;
    TRY(time_work(b, adamw_once, &f, &seconds, err));
    print_line(b, "adamw", seconds, 30.0 * (double)f.count, 0); /* 16 bytes read, 14 written */
    TRY(time_work(b, norm_once, &f, &seconds, err));
    print_line(b, "global norm", seconds, 4.0 * (double)f.count, 0);
    return OK;
}

/* ---- the whole ------------------------------------------------------------------------------------------------------------ */

static void fill_batch(DeviceBench *b) {
    int64_t tokens = b->options->tokens, length = b->options->length > 0 ? b->options->length : tokens < 512 ? tokens : 512;
    int64_t sequences = (tokens + length - 1) / length;
    int64_t *starts = memory_calloc((size_t)sequences + 1, sizeof *starts);
    b->ids = memory_calloc((size_t)tokens, sizeof *b->ids);
    b->positions = memory_calloc((size_t)tokens, sizeof *b->positions);
    b->rows = memory_calloc((size_t)tokens, sizeof *b->rows);
    b->samples = memory_calloc((size_t)tokens, sizeof *b->samples);
    for (int64_t t = 0; t < tokens; t++) {
        b->ids[t] = (int32_t)(t * 7919 % b->model.vocab);
        b->positions[t] = (int32_t)(t % length);
        b->rows[t] = (int32_t)t;
    }
    for (int64_t s = 0; s <= sequences; s++)
        starts[s] = s * length < tokens ? s * length : tokens;
    b->batch = (Batch){.tokens = tokens,
                       .sequences = sequences,
                       .starts = starts,
                       .ids = b->ids,
                       .positions = b->positions,
                       .samples = b->samples,
                       .supervised = tokens,
                       .rows = b->rows,
                       .targets = b->ids,
                       .grad_scale = 1.0f / (float)tokens};
}

static Status run_bench(DeviceBench *b, Error *err) {
    const BenchOptions *o = b->options;
    TRY(model_config_read(o->arch, &b->model, err));
    TRY(device_open(&b->device, o->device != NULL ? o->device : "cuda", NULL, err));
    if (!backend_of(b)->on_device) FAIL_USAGE("bench %s measures a device: %s", o->kind, b->device.reason);
    TRY(pool_create(&b->pool, (int)o->threads, err));
    b->exec =
        (Exec){.config = {.act = DTYPE_BF16, .threads = pool_threads(b->pool)}, .pool = b->pool, .device = b->device.context};
    fill_batch(b);
    TRY(measure_ceilings(b, err));
    if (o->json)
        text_addf(b->out, "{\"device\": \"%s\", \"copy_bytes_per_second\": %.6g, \"gemm_flops\": %.6g, \"results\": [",
                  b->device.name, b->copy, isfinite(b->peak) ? b->peak : 0.0);
    else
        text_addf(b->out, "%s: copies %.1f GB/s, BF16 products %.2f TFLOP/s; %lld tokens\n", b->device.name, b->copy / 1e9,
                  b->peak / 1e12, (long long)o->tokens);
    if (strcmp(o->kind, "dequant") == 0) TRY(bench_linears(b, 1, err));
    if (strcmp(o->kind, "gemm") == 0) TRY(bench_linears(b, 0, err));
    if (strcmp(o->kind, "attention") == 0) TRY(bench_attention(b, err));
    if (strcmp(o->kind, "loss") == 0) TRY(bench_loss(b, err));
    if (strcmp(o->kind, "optimizer") == 0) TRY(bench_optimizer(b, err));
    text_adds(b->out, o->json ? "]}\n" : "");
    return OK;
}

Status bench_device(const BenchOptions *options, Text *out, Error *err) {
    DeviceBench *b = memory_calloc(1, sizeof *b);
    b->options = options;
    b->out = out;
    Status status = run_bench(b, err);
    if (b->device.context != NULL) device_arena_free(&b->arena, backend_of(b), &b->exec);
    memory_free((void *)(uintptr_t)b->batch.starts);
    memory_free(b->ids);
    memory_free(b->positions);
    memory_free(b->rows);
    memory_free(b->samples);
    pool_free(b->pool);
    device_close(&b->device);
    memory_free(b);
    return status;
}
