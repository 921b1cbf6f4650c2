/* nibble bench linear: the CPU's products with frozen weights by themselves, Y = X W^T and dX = dY W, as a share of the rate of
 * dense products and of the same products with BF16 weights.
 *
 * Rounds alternate between a dense product (ceiling_now) and some milliseconds of each kind of weight, so that all see the same
 * machine. Ratios are taken within a round; medians count. Each call is given the next of so many copies of its weight that they
 * fill twice the last cache: a weight comes from memory, as in a model, where other layers come between two of its turns.
 * Activations are the same in every call, as those of a model were written just before.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "train/bench.h"
#include "train/ceiling.h"
#include "train/ceiling_store.h"
#include "train/engine.h"
#include "train/weights_internal.h"

#define COLUMNS_MAX 4
#define GROUPS_MAX 6
#define SAMPLE_SECONDS 5e-3
#define CALLS_MOST 64
#define WARM_UP 4
#define COLD_LEAST ((size_t)64 << 20)
#define COLD_MOST ((size_t)512 << 20)

/* Linears that read the same input. */
typedef struct Group {
    const char *name;
    int64_t in, out[LINEAR_GROUP_MAX];
    int count;
} Group;

/* A kind of weight, and its copies for the group at hand. */
typedef struct Column {
    char name[40];
    int dense;
    QuantSpec spec;
    int64_t rank;
    Arena arena;
    int64_t copies, next;
    LinearOperand *operands; /* [copies, members] */
    OpPlan plan;
    int calls;                                    /* of a sample */
    double *rate, *fraction, *of_unit, *of_dense; /* [rounds] */
} Column;

typedef struct LinearBench {
    const BenchOptions *options;
    Backend backend;
    Pool *pool;
    Exec exec, peak; /* peak: in the type that these kernels multiply in */
    Group groups[GROUPS_MAX];
    int group_count;
    Column columns[COLUMNS_MAX];
    int column_count;
    int64_t tokens_list[2];
    int tokens_count;
    size_t cold; /* bytes of a weight's copies */
    /* of the group and the number of tokens at hand */
    const Group *group;
    int64_t tokens;
    Arena buffers;
    void *x, *dx, *y[LINEAR_GROUP_MAX], *dy[LINEAR_GROUP_MAX], *saved, *workspace;
    LinearGrad grads[LINEAR_GROUP_MAX];
    uint64_t random;
    double *peaks, *units; /* every ceiling of the run */
    int64_t peak_count;
    int has_unit; /* not the plain reference */
    int lines;
    Text *out;
} LinearBench;

/* ---- what is measured ---------------------------------------------------------------------------------------------------- */

static Status choose_groups(LinearBench *b, Error *err) {
    static const int64_t sizes[][2] = {{576, 576}, {576, 1536}, {1536, 576}, {2048, 2048}, {2048, 5632}, {5632, 2048}};
    if (b->options->arch == NULL) {
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
            b->groups[b->group_count++] = (Group){.name = "", .in = sizes[i][0], .out = {sizes[i][1]}, .count = 1};
        return OK;
    }
    ModelConfig model;
    TRY(model_config_read(b->options->arch, &model, err));
    int64_t heads = model.heads * model.head_dim, kv = model.kv_heads * model.head_dim;
    b->groups[0] = (Group){"q,k,v", model.hidden, {heads, kv, kv}, 3};
    b->groups[1] = (Group){"o", heads, {model.hidden}, 1};
    b->groups[2] = (Group){"gate,up", model.hidden, {model.intermediate, model.intermediate}, 2};
    b->groups[3] = (Group){"down", model.intermediate, {model.hidden}, 1};
    b->group_count = 4;
    return OK;
}

static void add_column(LinearBench *b, int dense, QuantSpec spec, int64_t rank) {
    Column *c = &b->columns[b->column_count++];
    *c = (Column){.dense = dense, .spec = spec, .rank = rank};
    int length = snprintf(c->name, sizeof c->name, "%s%s", weight_format_name(dense ? WEIGHT_BF16 : spec.format),
                          !dense && spec.double_quant ? "+dq" : "");
    if (rank > 0) (void)snprintf(c->name + length, sizeof c->name - (size_t)length, ", rank %lld", (long long)rank);
}

/* BF16; NF4 with and without double quantization, or what --set asks for; with an adapter, the last of these again. */
static Status choose_columns(LinearBench *b, Error *err) {
    const BenchOptions *o = b->options;
    Config config = {0};
    WeightOptions weights;
    Status status = config_load(&config, NULL, o->overrides, o->override_count, err);
    if (status == OK) status = weight_options_from_config(&config, &weights, err);
    config_free(&config);
    TRY(status);
    QuantSpec spec = {.format = weights.linear, .double_quant = weights.double_quant, .block_size = weights.block_size};
    QuantSpec plain = spec;
    plain.double_quant = 0;
    add_column(b, 1, spec, 0);
    if (o->override_count == 0) add_column(b, 0, plain, 0);
    add_column(b, 0, spec, 0);
    if (o->rank > 0) add_column(b, 0, spec, o->rank);
    for (int i = 0; i < b->column_count; i++) {
        Column *c = &b->columns[i];
        double **rates[] = {&c->rate, &c->fraction, &c->of_unit, &c->of_dense};
        for (size_t k = 0; k < sizeof rates / sizeof *rates; k++)
            *rates[k] = memory_alloc((size_t)o->steps * sizeof **rates[k]);
    }
    return OK;
}

/* Of the caches that this processor shares, which CPUID alone does not say: some give the sum over a package. 0: unknown. */
static size_t last_cache(void) {
    FILE *file = fopen("/sys/devices/system/cpu/cpu0/cache/index3/size", "re");
    unsigned kib = 0;
    if (file == NULL) return 0;
    if (fscanf(file, "%8uK", &kib) != 1) kib = 0;
    (void)fclose(file);
    return (size_t)kib << 10;
}

static size_t cold_bytes(void) {
    size_t bytes = 2 * last_cache(), left = memory_available() / 8;
    bytes = bytes < COLD_LEAST ? COLD_LEAST : bytes > COLD_MOST ? COLD_MOST : bytes;
    return bytes < left ? bytes : left;
}

/* ---- weights ------------------------------------------------------------------------------------------------------------- */

static Status take_weight(LinearBench *b, Column *c, int64_t rows, LinearOperand *operand, Error *err) {
    int64_t cols = b->group->in, values = rows * cols;
    if (c->dense) {
        void *data;
        TRY(arena_take(&c->arena, (size_t)values * sizeof(bf16), &data, err));
        if (data != NULL) weights_random_values(&b->random, values, data);
        operand->weight = (WeightView){.format = WEIGHT_BF16, .rows = rows, .cols = cols, .data = data};
        return OK;
    }
    QuantizedTensor tensor;
    TRY(quantized_take(&tensor, &c->spec, rows, cols, &c->arena, err));
    if (tensor.codes != NULL) weights_random_codes(&b->random, &tensor);
    operand->weight = quantized_view(&tensor);
    return OK;
}

static Status take_values(LinearBench *b, Arena *arena, int64_t count, void **out, Error *err) {
    TRY(arena_take(arena, (size_t)count * sizeof(bf16), out, err));
    if (*out != NULL) weights_random_values(&b->random, count, *out);
    return OK;
}

static Status take_copy(LinearBench *b, Column *c, LinearOperand *operands, Error *err) {
    for (int i = 0; i < b->group->count; i++) {
        void *lora[2] = {NULL, NULL};
        operands[i] = (LinearOperand){0};
        TRY(take_weight(b, c, b->group->out[i], &operands[i], err));
        if (c->rank == 0) continue;
        TRY(take_values(b, &c->arena, c->rank * b->group->in, &lora[0], err));
        TRY(take_values(b, &c->arena, c->rank * b->group->out[i], &lora[1], err));
        operands[i].lora_a = lora[0];
        operands[i].lora_b = lora[1];
    }
    return OK;
}

static void free_weights(Column *c) {
    arena_free(&c->arena);
    memory_free(c->operands);
    c->operands = NULL;
}

/* Bytes of one copy. */
static Status count_copy(LinearBench *b, Column *c, size_t *bytes, Error *err) {
    LinearOperand once[LINEAR_GROUP_MAX];
    if (!c->dense)
        for (int i = 0; i < b->group->count; i++)
            TRY(quant_check(&c->spec, b->group->out[i], b->group->in, err));
    arena_count(&c->arena, "weights");
    TRY(take_copy(b, c, once, err));
    *bytes = c->arena.used;
    return OK;
}

static int64_t copies_of(const LinearBench *b, size_t bytes) {
    return (int64_t)(b->cold / bytes) + 1;
}

static Status make_weights(LinearBench *b, Column *c, Error *err) {
    size_t bytes;
    TRY(count_copy(b, c, &bytes, err));
    c->copies = copies_of(b, bytes);
    c->next = 0;
    TRY(arena_create(&c->arena, "weights", (size_t)c->copies * bytes, err));
    c->operands = memory_alloc((size_t)(c->copies * b->group->count) * sizeof *c->operands);
    for (int64_t i = 0; i < c->copies; i++)
        TRY(take_copy(b, c, c->operands + i * b->group->count, err));
    return OK;
}

/* ---- activations --------------------------------------------------------------------------------------------------------- */

static int64_t outputs(const Group *group) {
    int64_t sum = 0;
    for (int i = 0; i < group->count; i++)
        sum += group->out[i];
    return sum;
}

static int is_joined(const LinearBench *b) {
    return b->backend.joined_groups && b->group->count > 1;
}

static LinearShape shape_of(const LinearBench *b, const Column *c) {
    LinearShape shape = {.rows = b->tokens,
                         .in = b->group->in,
                         .count = b->group->count,
                         .need_dx = 1,
                         .stride = is_joined(b) ? outputs(b->group) : 0};
    for (int i = 0; i < shape.count; i++)
        shape.linear[i] = (LinearSpec){
            .out = b->group->out[i], .format = c->dense ? WEIGHT_BF16 : c->spec.format, .rank = c->rank, .lora_scale = 2.0f};
    return shape;
}

static Status take_gradients(LinearBench *b, Error *err) {
    int64_t rank = b->columns[b->column_count - 1].rank;
    for (int i = 0; i < b->group->count && rank > 0; i++) {
        size_t bytes[2] = {(size_t)(rank * b->group->in) * sizeof(float), (size_t)(rank * b->group->out[i]) * sizeof(float)};
        TRY(arena_take(&b->buffers, bytes[0], &b->grads[i].lora_a, err));
        TRY(arena_take(&b->buffers, bytes[1], &b->grads[i].lora_b, err));
        if (b->grads[i].lora_a == NULL) continue;
        memset(b->grads[i].lora_a, 0, bytes[0]);
        memset(b->grads[i].lora_b, 0, bytes[1]);
    }
    return OK;
}

/* For all columns; from a counting arena, and then the same from a real one. */
static Status take_buffers(LinearBench *b, Error *err) {
    size_t saved = 1, workspace = 1;
    int64_t before = 0, inputs = b->tokens * b->group->in, results = b->tokens * outputs(b->group);
    for (int i = 0; i < b->column_count; i++) {
        Column *c = &b->columns[i];
        LinearShape shape = shape_of(b, c);
        TRY(b->backend.linear_plan(&b->exec.config, &shape, &c->plan, err));
        if (c->plan.saved > saved) saved = c->plan.saved;
        if (c->plan.forward_workspace > workspace) workspace = c->plan.forward_workspace;
        if (c->plan.backward_workspace > workspace) workspace = c->plan.backward_workspace;
    }
    TRY(take_values(b, &b->buffers, inputs, &b->x, err));
    TRY(take_values(b, &b->buffers, inputs, &b->dx, err));
    TRY(take_values(b, &b->buffers, results, &b->y[0], err));
    TRY(take_values(b, &b->buffers, results, &b->dy[0], err));
    for (int i = 1; i < b->group->count && b->y[0] != NULL; i++) {
        before += (is_joined(b) ? 1 : b->tokens) * b->group->out[i - 1];
        b->y[i] = (bf16 *)b->y[0] + before;
        b->dy[i] = (bf16 *)b->dy[0] + before;
    }
    TRY(arena_take(&b->buffers, saved, &b->saved, err));
    TRY(arena_take(&b->buffers, workspace, &b->workspace, err));
    return take_gradients(b, err);
}

static Status make_buffers(LinearBench *b, Error *err) {
    arena_count(&b->buffers, "activations");
    TRY(take_buffers(b, err));
    TRY(arena_create(&b->buffers, "activations", b->buffers.used, err));
    return take_buffers(b, err);
}

/* Before anything is measured: all of it is written at once, so it must fit. */
static Status check_memory(LinearBench *b, Error *err) {
    size_t left = memory_available(), all = 0, bytes;
    char want[32], have[32];
    for (int i = 0; i < b->column_count; i++) {
        TRY(count_copy(b, &b->columns[i], &bytes, err));
        all += bytes * (size_t)copies_of(b, bytes);
    }
    arena_count(&b->buffers, "activations");
    TRY(take_buffers(b, err));
    all += b->buffers.used;
    if (all > left)
        FAIL("bench linear: %lld tokens, %lld inputs and %lld outputs take %s, and %s are left; fewer --tokens would fit",
             (long long)b->tokens, (long long)b->group->in, (long long)outputs(b->group),
             format_bytes((double)all, want, sizeof want), format_bytes((double)left, have, sizeof have));
    return OK;
}

/* ---- measuring ----------------------------------------------------------------------------------------------------------- */

static Status run_calls(LinearBench *b, Column *c, int backward, int calls, double *seconds, Error *err) {
    LinearShape shape = shape_of(b, c);
    Batch batch = {.tokens = b->tokens};
    double begin = clock_seconds();
    for (int i = 0; i < calls; i++, c->next = (c->next + 1) % c->copies) {
        const LinearOperand *operands = c->operands + c->next * b->group->count;
        if (backward)
            TRY(b->backend.linear_backward(&b->exec, &shape, &batch, b->x, operands, b->saved, (const void *const *)b->dy,
                                           b->dx, b->grads, b->workspace, err));
        else
            TRY(b->backend.linear_forward(&b->exec, &shape, &batch, b->x, operands, b->y, b->saved, b->workspace, err));
    }
    *seconds = clock_seconds() - begin;
    return OK;
}

/* How many calls make a sample, by the time of one. Forward also fills `saved` for backward. */
static Status warm_up(LinearBench *b, int backward, Error *err) {
    for (int i = 0; i < b->column_count; i++) {
        Column *c = &b->columns[i];
        double seconds, least = INFINITY;
        TRY(run_calls(b, c, 0, 1, &seconds, err));
        for (int run = 0; run < WARM_UP; run++) { /* one that was interrupted would make samples too short */
            TRY(run_calls(b, c, backward, 1, &seconds, err));
            least = fmin(least, seconds);
        }
        double calls = ceil(SAMPLE_SECONDS / fmax(least, 1e-9));
        c->calls = (int)fmin(fmax(calls, 1.0), CALLS_MOST);
    }
    return OK;
}

/* Every other round in the other order. FLOPs of an adapter are not counted. */
static Status run_round(LinearBench *b, int backward, int64_t round, Error *err) {
    double flops = 2.0 * (double)b->tokens * (double)b->group->in * (double)outputs(b->group);
    double peak = ceiling_now(&b->backend, &b->peak), unit = cpu_unit_rate(b->backend.variant.linear, b->pool);
    if (!isfinite(peak)) FAIL("the rate of dense products could not be measured");
    b->peaks[b->peak_count] = peak;
    b->units[b->peak_count++] = unit;
    for (int i = 0; i < b->column_count; i++) {
        Column *c = &b->columns[round % 2 == 0 ? i : b->column_count - 1 - i];
        double seconds;
        TRY(run_calls(b, c, backward, c->calls, &seconds, err));
        c->rate[round] = flops * c->calls / seconds;
        c->fraction[round] = c->rate[round] / peak;
        c->of_unit[round] = c->rate[round] / unit;
    }
    for (int i = 0; i < b->column_count; i++)
        b->columns[i].of_dense[round] = b->columns[i].rate[round] / b->columns[0].rate[round];
    return OK;
}

/* ---- results ------------------------------------------------------------------------------------------------------------- */

static void shape_name(const Group *group, char *out, size_t capacity) {
    int at = snprintf(out, capacity, "%s%s%lld -> %lld", group->name, *group->name != 0 ? " " : "", (long long)group->in,
                      (long long)group->out[0]);
    for (int i = 1; i < group->count && (size_t)at < capacity; i++)
        at += snprintf(out + at, capacity - (size_t)at, "+%lld", (long long)group->out[i]);
}

static void print_json_line(LinearBench *b, int backward) {
    const Group *group = b->group;
    int64_t rounds = b->options->steps;
    text_addf(b->out, "%s{\"name\": \"%s\", \"tokens\": %lld, \"in\": %lld, \"out\": [", b->lines > 0 ? ", " : "", group->name,
              (long long)b->tokens, (long long)group->in);
    for (int i = 0; i < group->count; i++)
        text_addf(b->out, "%s%lld", i > 0 ? ", " : "", (long long)group->out[i]);
    text_addf(b->out, "], \"pass\": \"%s\", \"weights\": [", backward ? "backward" : "forward");
    for (int i = 0; i < b->column_count; i++) {
        Column *c = &b->columns[i];
        text_addf(b->out, "%s{\"weight\": \"%s\", \"rank\": %lld, \"copies\": %lld, ", i > 0 ? ", " : "", c->name,
                  (long long)c->rank, (long long)c->copies);
        text_addf(b->out, "\"flops_per_second\": %.6g, \"fraction\": %.4f, ", bench_median(c->rate, rounds),
                  bench_median(c->fraction, rounds));
        if (b->has_unit) text_addf(b->out, "\"of_unit\": %.4f, ", bench_median(c->of_unit, rounds));
        text_addf(b->out, "\"of_bf16\": %.4f}", bench_median(c->of_dense, rounds));
    }
    text_adds(b->out, "]}");
}

static void print_line(LinearBench *b, int backward) {
    char name[96];
    int64_t rounds = b->options->steps;
    shape_name(b->group, name, sizeof name);
    text_addf(b->out, "%6lld  %-30s %-8s", (long long)b->tokens, name, backward ? "backward" : "forward");
    for (int i = 0; i < b->column_count; i++) {
        Column *c = &b->columns[i];
        text_addf(b->out, " %9.1f %5.1f", bench_median(c->rate, rounds) / 1e9, 100.0 * bench_median(c->fraction, rounds));
        if (b->has_unit) text_addf(b->out, " %5.1f", 100.0 * bench_median(c->of_unit, rounds));
        if (i > 0) text_addf(b->out, " %5.2f", bench_median(c->of_dense, rounds));
    }
    text_adds(b->out, "\n");
}

static void print_head(LinearBench *b) {
    text_addf(b->out, "%-46s", "");
    for (int i = 0; i < b->column_count; i++)
        text_addf(b->out, " %*s", (i > 0 ? 21 : 15) + (b->has_unit ? 6 : 0), b->columns[i].name);
    text_addf(b->out, "\n%6s  %-30s %-8s", "tokens", "shape", "pass");
    for (int i = 0; i < b->column_count; i++)
        text_addf(b->out, " %9s %5s%s%s", "GFLOP/s", "dense", b->has_unit ? "  unit" : "", i > 0 ? " /bf16" : "");
    text_adds(b->out, "\n");
}

static void print_foot(LinearBench *b) {
    double peak = bench_median(b->peaks, b->peak_count);
    const char *type = dtype_name(b->peak.config.act), *variant = b->backend.variant.linear;
    int threads = b->exec.config.threads;
    double best = ceiling_best(variant, type, threads, NAN);
    if (b->options->json) {
        text_addf(b->out, "], \"variant\": \"%s\", \"threads\": %d, \"rounds\": %lld, \"cold_bytes\": %zu, ", variant, threads,
                  (long long)b->options->steps, b->cold);
        text_addf(b->out, "\"ceiling\": {\"type\": \"%s\", \"flops_per_second\": %.6g", type, peak);
        if (isfinite(best)) text_addf(b->out, ", \"best\": %.6g", best);
        if (b->has_unit) text_addf(b->out, ", \"unit\": %.6g", bench_median(b->units, b->peak_count));
        text_adds(b->out, "}}\n");
        return;
    }
    text_addf(b->out, "\n%s, %d threads; medians of %lld rounds\n", variant, threads, (long long)b->options->steps);
    text_addf(b->out, "dense: %% of dense %s products of the same round, %.1f GFLOP/s", type, peak / 1e9);
    if (isfinite(best)) text_addf(b->out, " (best ever: %.1f)", best / 1e9);
    if (b->has_unit)
        text_addf(b->out, "\nunit: %% of the unit's instruction from registers, %.1f GFLOP/s",
                  bench_median(b->units, b->peak_count) / 1e9);
    text_addf(b->out, "\nEach call takes the next of so many copies of its weight that they fill %zu MiB.\n", b->cold >> 20);
}

/* ---- the whole ----------------------------------------------------------------------------------------------------------- */

static Status measure_pass(LinearBench *b, int backward, Error *err) {
    TRY(warm_up(b, backward, err));
    for (int64_t round = 0; round < b->options->steps; round++)
        TRY(run_round(b, backward, round, err));
    if (b->options->json)
        print_json_line(b, backward);
    else
        print_line(b, backward);
    b->lines++;
    return OK;
}

static Status measure_group(LinearBench *b, Error *err) {
    for (int i = 0; i < b->column_count; i++)
        TRY(make_weights(b, &b->columns[i], err));
    for (int i = 0; i < b->tokens_count; i++) {
        b->tokens = b->tokens_list[i];
        Status status = make_buffers(b, err);
        if (status == OK) status = measure_pass(b, 0, err);
        if (status == OK) status = measure_pass(b, 1, err);
        arena_free(&b->buffers);
        TRY(status);
    }
    for (int i = 0; i < b->column_count; i++)
        free_weights(&b->columns[i]);
    return OK;
}

static Status run_bench(LinearBench *b, Error *err) {
    const BenchOptions *o = b->options;
    TRY(cpu_backend(&b->backend, getenv("NIBBLE_CPU"), err));
    TRY(choose_groups(b, err));
    TRY(choose_columns(b, err));
    TRY(pool_create(&b->pool, (int)o->threads, err));
    b->exec = b->peak = (Exec){.config = {.act = DTYPE_BF16, .threads = pool_threads(b->pool)}, .pool = b->pool};
    const char *variant = b->backend.variant.linear;
    if (strcmp(variant, "amx") != 0 && strcmp(variant, "avx512bf16") != 0) b->peak.config.act = DTYPE_F32;
    b->has_unit = isfinite(cpu_unit_rate(variant, b->pool));
    b->cold = cold_bytes();
    b->peaks = memory_alloc((size_t)(GROUPS_MAX * 4 * o->steps) * sizeof *b->peaks);
    b->units = memory_alloc((size_t)(GROUPS_MAX * 4 * o->steps) * sizeof *b->units);
    b->tokens_count = o->tokens > 0 ? 1 : 2;
    b->tokens_list[0] = o->tokens > 0 ? o->tokens : 512;
    b->tokens_list[1] = 1024;
    if (o->json)
        text_adds(b->out, "{\"results\": [");
    else
        print_head(b);
    for (int i = 0; i < b->group_count; i++) {
        b->group = &b->groups[i];
        b->tokens = b->tokens_list[b->tokens_count - 1];
        TRY(check_memory(b, err));
    }
    for (int i = 0; i < b->group_count; i++) {
        b->group = &b->groups[i];
        TRY(measure_group(b, err));
    }
    print_foot(b);
    return OK;
}

Status bench_cpu_linear(const BenchOptions *options, Text *out, Error *err) {
    LinearBench *b = memory_calloc(1, sizeof *b);
    b->options = options;
    b->out = out;
    b->random = 1;
    Status status = run_bench(b, err);
    for (int i = 0; i < b->column_count; i++) {
        Column *c = &b->columns[i];
        free_weights(c);
        memory_free(c->rate);
        memory_free(c->fraction);
        memory_free(c->of_unit);
        memory_free(c->of_dense);
    }
    memory_free(b->peaks);
    memory_free(b->units);
    pool_free(b->pool);
    memory_free(b);
    return status;
}
