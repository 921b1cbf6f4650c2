/* Linear group: every weight format, adapter, mask and gradient against the reference, on sizes around the tiles. */
#include "tests/unit/test_simd.h"

typedef struct Member {
    WeightFormat format;
    int32_t block;
    int nested;
    int64_t out, rank;
    float dropout;
    int bias, train;
} Member;

typedef struct Case {
    DType act;
    int64_t capacity, tokens, in;
    int count, need_dx;
    Member member[LINEAR_GROUP_MAX];
} Case;

/* Inputs of both sides, made once. */
typedef struct Inputs {
    LinearShape shape;
    TestBatch batch;
    void *x;
    TestWeight weight[LINEAR_GROUP_MAX];
    LinearOperand operand[LINEAR_GROUP_MAX];
    void *bias[LINEAR_GROUP_MAX], *a[LINEAR_GROUP_MAX], *b[LINEAR_GROUP_MAX], *dy[LINEAR_GROUP_MAX];
    float *start[LINEAR_GROUP_MAX][4]; /* gradients before the call: weight, bias, lora_a, lora_b */
} Inputs;

static int64_t gradient_size(const LinearShape *shape, int i, int which) {
    const LinearSpec *s = &shape->linear[i];
    const int64_t sizes[4] = {s->out * shape->in, s->out, s->rank * shape->in, s->rank * s->out};
    return sizes[which];
}

static Inputs make_inputs(Random *r, const Case *c) {
    Inputs in = {.shape = {.rows = c->capacity, .in = c->in, .count = c->count, .need_dx = c->need_dx}};
    in.batch = random_batch(r, c->tokens, 7, 50);
    in.x = random_values(r, c->act, c->capacity * c->in, 1.0f);
    for (int i = 0; i < c->count; i++) {
        const Member *m = &c->member[i];
        in.shape.linear[i] = (LinearSpec){.out = m->out,
                                          .format = m->format,
                                          .rank = m->rank,
                                          .lora_scale = (i + c->count) % 2 != 0 ? 2.0f : 1.7f, /* exact in BF16, or not */
                                          .dropout = m->dropout,
                                          .dropout_stream = (uint32_t)(3 + i),
                                          .has_bias = m->bias,
                                          .train_weight = m->train,
                                          .train_bias = m->train && m->bias};
        in.weight[i] = random_weight(r, m->format, m->out, c->in, m->block, m->nested);
        in.bias[i] = random_values(r, c->act, m->out, 1.0f);
        in.a[i] = random_values(r, c->act, m->rank * c->in, 0.3f);
        in.b[i] = random_values(r, c->act, m->rank * m->out, 0.3f);
        in.dy[i] = random_values(r, c->act, c->capacity * m->out, 1.0f);
        in.operand[i] = (LinearOperand){.weight = in.weight[i].view,
                                        .bias = m->bias ? in.bias[i] : NULL,
                                        .lora_a = m->rank > 0 ? in.a[i] : NULL,
                                        .lora_b = m->rank > 0 ? in.b[i] : NULL};
        for (int g = 0; g < 4; g++)
            in.start[i][g] = random_values(r, DTYPE_F32, gradient_size(&in.shape, i, g), 1.0f);
    }
    return in;
}

static void free_inputs(Inputs *in) {
    batch_free(&in->batch);
    free(in->x);
    for (int i = 0; i < in->shape.count; i++) {
        weight_free(&in->weight[i]);
        free(in->bias[i]);
        free(in->a[i]);
        free(in->b[i]);
        free(in->dy[i]);
        for (int g = 0; g < 4; g++)
            free(in->start[i][g]);
    }
}

typedef struct Outputs {
    void *y[LINEAR_GROUP_MAX], *dx;
    float *gradient[LINEAR_GROUP_MAX][4];
} Outputs;

static Outputs run(const Backend *backend, const Case *c, const Inputs *in, int threads) {
    Outputs out = {0};
    Exec exec = exec_of(c->act, threads);
    const LinearShape *shape = &in->shape;
    OpPlan plan;
    assert_ok(backend->linear_plan(&exec.config, shape, &plan, err));
    void *saved = buffer(plan.saved), *forward = buffer(plan.forward_workspace), *backward = buffer(plan.backward_workspace);
    LinearGrad grads[LINEAR_GROUP_MAX];
    for (int i = 0; i < shape->count; i++) {
        const Member *m = &c->member[i];
        out.y[i] = buffer((size_t)(c->capacity * m->out) * dtype_size(c->act));
        for (int g = 0; g < 4; g++)
            out.gradient[i][g] = copy_of(in->start[i][g], (size_t)gradient_size(shape, i, g) * sizeof(float));
        grads[i] = (LinearGrad){.weight = m->train ? out.gradient[i][0] : NULL,
                                .bias = m->train && m->bias ? out.gradient[i][1] : NULL,
                                .lora_a = m->rank > 0 ? out.gradient[i][2] : NULL,
                                .lora_b = m->rank > 0 ? out.gradient[i][3] : NULL};
    }
    out.dx = buffer((size_t)(c->capacity * c->in) * dtype_size(c->act));
    assert_ok(backend->linear_forward(&exec, shape, &in->batch.batch, in->x, in->operand, out.y, saved, forward, err));
    assert_ok(backend->linear_backward(&exec, shape, &in->batch.batch, in->x, in->operand, saved, (const void *const *)in->dy,
                                       out.dx, grads, backward, err));
    free(saved);
    free(forward);
    free(backward);
    pool_free(exec.pool);
    return out;
}

static void free_outputs(Outputs *out, int count) {
    for (int i = 0; i < count; i++) {
        free(out->y[i]);
        for (int g = 0; g < 4; g++)
            free(out->gradient[i][g]);
    }
    free(out->dx);
}

/* dA comes from ds as two BF16 numbers a value: 16 bits, 2^-17 of it, and less where many rows are summed. */
#define SPLIT_BF16 8e-6

/* s is rounded to BF16 before it goes into y and dB: a tie there moves a whole row by 2^-9 of the adapter's part. */
static void compare(const Case *c, const Inputs *in, const Outputs *got, const Outputs *want) {
    static const char *const names[4] = {"dW", "dbias", "dA", "dB"};
    double tolerance = reduction_tolerance(c->act);
    for (int i = 0; i < c->count; i++) {
        assert_close("y", c->act, got->y[i], want->y[i], c->tokens * c->member[i].out, tolerance);
        for (int g = 0; g < 4; g++)
            assert_close(names[g], DTYPE_F32, got->gradient[i][g], want->gradient[i][g], gradient_size(&in->shape, i, g),
                         g == 3                           ? tolerance
                         : g == 2 && c->act == DTYPE_BF16 ? SPLIT_BF16
                                                          : REDUCTION_F32);
        size_t used = (size_t)(c->tokens * c->member[i].out) * dtype_size(c->act);
        size_t all = (size_t)(c->capacity * c->member[i].out) * dtype_size(c->act);
        for (size_t k = used; k < all; k++)
            assert_int_equal(((const uint8_t *)got->y[i])[k], 0xFF); /* rows beyond: untouched */
    }
    if (c->need_dx) assert_close("dx", c->act, got->dx, want->dx, c->tokens * c->in, tolerance);
}

static void assert_same_bits(const Case *c, const Inputs *in, const Outputs *a, const Outputs *b) {
    for (int i = 0; i < c->count; i++) {
        assert_memory_equal(a->y[i], b->y[i], (size_t)(c->tokens * c->member[i].out) * dtype_size(c->act));
        for (int g = 0; g < 4; g++)
            assert_memory_equal(a->gradient[i][g], b->gradient[i][g], (size_t)gradient_size(&in->shape, i, g) * sizeof(float));
    }
    if (c->need_dx) assert_memory_equal(a->dx, b->dx, (size_t)(c->tokens * c->in) * dtype_size(c->act));
}

static void check_case(const Backend *ref, const Backend *simd, Random *r, const Case *c) {
    Inputs in = make_inputs(r, c);
    Outputs want = run(ref, c, &in, 2), one = run(simd, c, &in, 1);
    compare(c, &in, &one, &want);
    const int threads[] = {2, 3, 8};
    for (size_t i = 0; i < sizeof threads / sizeof *threads; i++) {
        Outputs more = run(simd, c, &in, threads[i]);
        assert_same_bits(c, &in, &more, &one);
        free_outputs(&more, c->count);
    }
    free_outputs(&one, c->count);
    free_outputs(&want, c->count);
    free_inputs(&in);
}

/* Each format alone; 71 and 37 make NF4 blocks cross rows, nibbles start odd, and tails of every kind. */
static void formats(const Backend *ref, const Backend *simd, const char *name) {
    assert_string_equal(simd->variant.linear, name);
    static const Member members[] = {
        {.format = WEIGHT_F32},
        {.format = WEIGHT_BF16},
        {.format = WEIGHT_NF4, .block = 64},
        {.format = WEIGHT_NF4, .block = 32, .nested = 1},
        {.format = WEIGHT_FP4, .block = 4096},
        {.format = WEIGHT_FP4, .block = 128, .nested = 1},
        {.format = WEIGHT_INT8},
    };
    static const int64_t sizes[][3] = {{1, 1, 1}, {5, 71, 37}, {13, 256, 64}, {9, 257, 65}, {31, 300, 131}, {97, 64, 17}};
    Random r = {0};
    for (size_t m = 0; m < sizeof members / sizeof *members; m++)
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
            for (int act = 0; act < 2; act++) {
                Case c = {.act = act ? DTYPE_BF16 : DTYPE_F32,
                          .capacity = sizes[s][0] + 2,
                          .tokens = sizes[s][0],
                          .in = sizes[s][1],
                          .count = 1,
                          .need_dx = 1,
                          .member = {members[m]}};
                c.member[0].out = sizes[s][2];
                check_case(ref, simd, &r, &c);
            }
}

static void formats_int4(const Backend *ref, const Backend *simd, const char *name) {
    (void)name;
    Random r = {1000000};
    for (int act = 0; act < 2; act++)
        for (int32_t group = 32; group <= 128; group *= 2) {
            Case c = {.act = act ? DTYPE_BF16 : DTYPE_F32,
                      .capacity = 11,
                      .tokens = 11,
                      .in = 384,
                      .count = 1,
                      .need_dx = 1,
                      .member = {{.format = WEIGHT_INT4, .block = group, .out = 35}}};
            check_case(ref, simd, &r, &c);
        }
}

/* A GGUF file's own blocks, whole and cut by panels, F32 and BF16. */
static void blocks(const Backend *ref, const Backend *simd, const char *name) {
    (void)name;
    static const int types[] = {GGML_F16,  GGML_Q4_0, GGML_Q4_1, GGML_Q5_0, GGML_Q5_1, GGML_Q8_0,
                                GGML_Q2_K, GGML_Q3_K, GGML_Q4_K, GGML_Q5_K, GGML_Q6_K};
    Random r = {5000000};
    for (size_t t = 0; t < sizeof types / sizeof *types; t++)
        for (int act = 0; act < 2; act++)
            for (int64_t tokens = 2; tokens <= 22; tokens += t % 2 == 0 ? 5 : 10) {
                Case c = {.act = act ? DTYPE_BF16 : DTYPE_F32,
                          .capacity = tokens,
                          .tokens = tokens,
                          .in = types[t] == GGML_F16   ? 139
                                : types[t] < GGML_Q2_K ? 352
                                                       : 512,
                          .count = 1,
                          .need_dx = 1,
                          .member = {{.format = WEIGHT_GGML, .nested = types[t], .out = 67, .rank = 8}}};
                check_case(ref, simd, &r, &c);
            }
}

/* Generation: so few rows that products are dot products, over whole blocks and not. */
static void few_rows(const Backend *ref, const Backend *simd, const char *name) {
    (void)name;
    static const int64_t widths[] = {128, 192, 640}; /* 192: a half is left of what 4-bit codes are taken in */
    static const Member members[] = {{.format = WEIGHT_BF16},
                                     {.format = WEIGHT_NF4, .block = 64, .nested = 1},
                                     {.format = WEIGHT_NF4, .block = 128},
                                     {.format = WEIGHT_FP4, .block = 64},
                                     {.format = WEIGHT_NF4, .block = 32},
                                     {.format = WEIGHT_INT8},
                                     {.format = WEIGHT_INT4, .block = 64},
                                     {.format = WEIGHT_INT4, .block = 128},
                                     {.format = WEIGHT_GGML, .nested = GGML_Q4_0},
                                     {.format = WEIGHT_GGML, .nested = GGML_Q5_1},
                                     {.format = WEIGHT_GGML, .nested = GGML_Q8_0},
                                     {.format = WEIGHT_GROUPED, .block = 64, .nested = 4 + GROUPED_ZEROS + GROUPED_F16},
                                     {.format = WEIGHT_GROUPED, .block = 128, .nested = 4 + GROUPED_BF16},
                                     {.format = WEIGHT_GROUPED, .block = 32, .nested = 3 + GROUPED_ORDERED}};
    Random r = {4000000};
    for (size_t m = 0; m < sizeof members / sizeof *members; m++)
        for (int64_t tokens = 1; tokens <= 9; tokens++)
            for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
                Case c = {.act = DTYPE_BF16,
                          .capacity = tokens,
                          .tokens = tokens,
                          .in = widths[i],
                          .count = 1,
                          .member = {members[m]}};
                int by_rows = c.member[0].format == WEIGHT_INT4 || c.member[0].format == WEIGHT_GROUPED;
                if (by_rows && c.in % c.member[0].block != 0) continue;
                c.member[0].out = 67;
                c.member[0].rank = tokens % 2 == 0 ? 8 : 0;
                check_case(ref, simd, &r, &c);
            }
}

/* A row's bits are the same alone and beside as many others as dot products are taken for: sequences that are generated
 * together give what they give alone. */
static void rows_alone(const Backend *ref, const Backend *simd, const char *name) {
    (void)ref;
    static const Member members[] = {{.format = WEIGHT_NF4, .block = 64, .nested = 1, .out = 37, .rank = 8},
                                     {.format = WEIGHT_BF16, .out = 37, .bias = 1},
                                     {.format = WEIGHT_INT8, .out = 37},
                                     {.format = WEIGHT_GGML, .nested = GGML_Q8_0, .out = 37}};
    Random r = {5000000};
    for (size_t m = 0; m < sizeof members / sizeof *members; m++)
        for (int64_t tokens = 2; tokens <= 8; tokens++) {
            Case c = {.act = DTYPE_BF16, .capacity = tokens, .tokens = tokens, .in = 192, .count = 1, .member = {members[m]}};
            Inputs all = make_inputs(&r, &c);
            Outputs together = run(simd, &c, &all, 2);
            for (int64_t t = 0; t < tokens; t++) {
                int64_t starts[2] = {0, 1};
                Inputs one = all;
                one.x = (bf16 *)all.x + t * c.in;
                one.batch.batch.tokens = one.batch.batch.sequences = 1;
                one.batch.batch.starts = starts;
                Outputs alone = run(simd, &c, &one, 2);
                if (memcmp(alone.y[0], (bf16 *)together.y[0] + t * 37, 37 * sizeof(bf16)) != 0)
                    fail_msg("%s: member %zu: row %lld of %lld differs from the same alone", name, m, (long long)t,
                             (long long)tokens);
                free_outputs(&alone, 1);
            }
            free_outputs(&together, 1);
            free_inputs(&all);
        }
}

/* Groups with adapters, dropout, biases and trained weights together. */
static void groups(const Backend *ref, const Backend *simd, const char *name) {
    (void)name;
    Random r = {2000000};
    for (int act = 0; act < 2; act++) {
        DType type = act ? DTYPE_BF16 : DTYPE_F32;
        static const int64_t tokens[] = {1, 8, 67};
        for (size_t t = 0; t < sizeof tokens / sizeof *tokens; t++) {
            Case qkv = {.act = type,
                        .capacity = tokens[t] + 3,
                        .tokens = tokens[t],
                        .in = 139,
                        .count = 3,
                        .need_dx = 1,
                        .member = {{.format = WEIGHT_NF4, .block = 64, .nested = 1, .out = 96, .rank = 7, .dropout = 0.25f},
                                   {.format = WEIGHT_NF4, .block = 64, .out = 33, .rank = 16, .bias = 1},
                                   {.format = WEIGHT_BF16, .out = 33, .bias = 1, .train = 1}}};
            check_case(ref, simd, &r, &qkv);
            Case full = {.act = type,
                         .capacity = tokens[t],
                         .tokens = tokens[t],
                         .in = 64,
                         .count = 2,
                         .member = {{.format = act ? WEIGHT_BF16 : WEIGHT_F32, .out = 130, .bias = 1, .train = 1},
                                    {.format = WEIGHT_INT8, .out = 5, .rank = 65, .dropout = 0.5f}}};
            check_case(ref, simd, &r, &full);
        }
    }
}

/* Longer than a block of the contraction in every product, and more rows than a tile has. */
static void large(const Backend *ref, const Backend *simd, const char *name) {
    (void)name;
    Random r = {3000000};
    Case c = {.act = DTYPE_BF16,
              .capacity = 401,
              .tokens = 401,
              .in = 523,
              .count = 2,
              .need_dx = 1,
              .member = {{.format = WEIGHT_NF4, .block = 64, .nested = 1, .out = 300, .rank = 8, .dropout = 0.1f, .train = 1},
                         {.format = WEIGHT_BF16, .out = 270, .rank = 4}}};
    check_case(ref, simd, &r, &c);
    c.act = DTYPE_F32;
    check_case(ref, simd, &r, &c);
}

/* Rows beyond the tallest tile of any unit, with adapters whose rows are packed for them: short, and too long for a tall tile. */
static void tall(const Backend *ref, const Backend *simd, const char *name) {
    (void)name;
    Random r = {5000000};
    static const int64_t tokens[] = {575, 1040};
    for (int i = 0; i < 2; i++) {
        Case c = {.act = DTYPE_BF16,
                  .capacity = tokens[i],
                  .tokens = tokens[i],
                  .in = 96,
                  .count = 3,
                  .need_dx = 1,
                  .member = {{.format = WEIGHT_NF4, .block = 64, .nested = 1, .out = 80, .rank = 16},
                             {.format = WEIGHT_NF4, .block = 64, .out = 72, .rank = 5},
                             {.format = WEIGHT_BF16, .out = 130, .rank = 200}}};
        check_case(ref, simd, &r, &c);
    }
}

static void refusals(const Backend *ref, const Backend *simd, const char *name) {
    (void)ref;
    (void)name;
    OpPlan plan;
    Error err;
    ExecConfig config = {.act = DTYPE_F64, .threads = 1};
    LinearShape shape = {.rows = 1, .in = 1, .count = 1, .linear = {{.out = 1, .format = WEIGHT_F32}}};
    assert_int_not_equal(simd->linear_plan(&config, &shape, &plan, &err), OK);
    config.act = DTYPE_F32;
    assert_int_equal(simd->linear_plan(&config, &shape, &plan, &err), OK);
    shape.count = 4;
    assert_int_not_equal(simd->linear_plan(&config, &shape, &plan, &err), OK);
    shape.count = 1;
    shape.linear[0].dropout = NAN;
    assert_int_not_equal(simd->linear_plan(&config, &shape, &plan, &err), OK);
}

#define TEST(check)                          \
    static void test_##check(void **state) { \
        (void)state;                         \
        each_tiled_variant(check);           \
    }
TEST(formats)
TEST(formats_int4)
TEST(blocks)
TEST(few_rows)
TEST(rows_alone)
TEST(groups)
TEST(large)
TEST(tall)
TEST(refusals)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_formats),  cmocka_unit_test(test_formats_int4), cmocka_unit_test(test_blocks),
        cmocka_unit_test(test_few_rows), cmocka_unit_test(test_rows_alone),   cmocka_unit_test(test_groups),
        cmocka_unit_test(test_large),    cmocka_unit_test(test_tall),         cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
