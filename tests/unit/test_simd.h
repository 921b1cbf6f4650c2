/* What the tests of the vector kernels share: variants, seeded data in guarded buffers, weights of every format, measures.
 *
 * Reductions differ from the reference (which sums in double) by FP32 rounding: with K terms in blocks of up to 320 the relative
 * norm of the error stays below about 2^-24 * sqrt(320) ~ 1e-6. Where the result is BF16, both sides round nearly the same
 * value: they differ by one ulp (2^-7 of the value at most) where it lies near a tie, and not elsewhere.
 */
#ifndef NIBBLE_TESTS_UNIT_TEST_SIMD_H
#define NIBBLE_TESTS_UNIT_TEST_SIMD_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/memory.h"
#include "core/philox.h"
#include "core/pool.h"
#include "kernels/cpu/simd.h"
#include "kernels/ops.h"
#include "quant/ggml.h"

/* Relative norm of an F32 reduction's error: blocks of 320 FP32 additions (see above), times a few for cancellation. */
#define REDUCTION_F32 4e-6
/* Relative norm in BF16: a few percent of the values lie one ulp (2^-8 of themselves) apart. */
#define REDUCTION_BF16 1.5e-3

typedef struct Variant {
    const char *name;
    void (*install)(Backend *backend);
    int present;
} Variant;

#define SIMD_VARIANTS 5

#if defined(__x86_64__)
static inline void install_pairs(Backend *backend) {
    cpu_simd_avx512(backend);
    cpu_simd_avx512bf16(backend);
}
static inline void install_tiles(Backend *backend) {
    install_pairs(backend);
    cpu_simd_amx(backend);
}
/* The tiles' source with their instructions in plain C (tests/support/tiles_emulated.h), for processors without them. */
void cpu_simd_amx_emulated(Backend *backend);
static inline void install_emulated_tiles(Backend *backend) {
    install_pairs(backend);
    cpu_simd_amx_emulated(backend);
}
static inline int simd_variants(Variant variants[SIMD_VARIANTS]) {
    Backend tiles;
    Error reason;
    variants[0] = (Variant){"avx2", cpu_simd_avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")};
    variants[1] = (Variant){"avx512", cpu_simd_avx512,
                            __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")};
    variants[2] = (Variant){"avx512bf16", install_pairs, variants[1].present && __builtin_cpu_supports("avx512bf16")};
    variants[3] = (Variant){"amx", install_tiles, cpu_backend(&tiles, "amx", &reason) == OK};
    variants[4] = (Variant){"amx_emulated", install_emulated_tiles, variants[2].present};
    for (int i = 0; i < SIMD_VARIANTS; i++)
        if (!variants[i].present) printf("skipped: this processor has no %s\n", variants[i].name);
    return SIMD_VARIANTS;
}
#else
static inline int simd_variants(Variant variants[SIMD_VARIANTS]) {
    (void)variants;
    printf("skipped: vector kernels exist for x86-64 only\n");
    return 0;
}
#endif

/* Runs a check on every variant that this processor has; skips where there is none. products: how many of those
 * that bring only products are among them. */
typedef void VariantCheck(const Backend *ref, const Backend *simd, const char *name);
static inline void each_variant_of(VariantCheck *check, int products) {
    Variant variants[SIMD_VARIANTS];
    int count = simd_variants(variants), ran = 0;
    for (int i = 0; i < count; i++) {
        if (!variants[i].present || i >= 2 + products) continue;
        Backend ref = {0}, simd;
        cpu_backend_reference(&ref);
        simd = ref;
        variants[i].install(&simd);
        check(&ref, &simd, variants[i].name);
        ran++;
    }
    if (ran == 0) skip();
}
static inline void each_variant(VariantCheck *check) {
    each_variant_of(check, 0);
}
/* Also what avx512bf16 has of its own. */
static inline void each_product_variant(VariantCheck *check) {
    each_variant_of(check, 1);
}
/* And amx. */
static inline void each_tiled_variant(VariantCheck *check) {
    each_variant_of(check, SIMD_VARIANTS);
}

/* ---- data ---------------------------------------------------------------------------------------------------------- */

typedef struct Random {
    uint64_t index;
} Random;
static inline uint32_t random_bits(Random *r) {
    uint32_t block[4];
    random_block(20240229, RANDOM_TEST, 0, r->index++, block);
    return block[0];
}
static inline float random_float(Random *r) {
    return 2.0f * random_unit(random_bits(r)) - 1.0f;
}
static inline int64_t random_below(Random *r, int64_t bound) {
    return (int64_t)(random_bits(r) % (uint32_t)bound);
}

/* Exactly `bytes`, filled with NaN of either type (0xFF), so that a sanitizer sees every step beyond the end and a value
 * that was not written shows. */
static inline void *buffer(size_t bytes) {
    void *p = NULL;
    assert_int_equal(posix_memalign(&p, 64, bytes > 0 ? bytes : 64), 0);
    memset(p, 0xFF, bytes > 0 ? bytes : 64);
    return p;
}

static inline double value_at(DType type, const void *x, int64_t i) {
    return type == DTYPE_BF16 ? (double)bf16_to_float(((const bf16 *)x)[i]) : (double)((const float *)x)[i];
}

static inline void *random_values(Random *r, DType type, int64_t count, float scale) {
    void *x = buffer((size_t)count * dtype_size(type));
    for (int64_t i = 0; i < count; i++) {
        float value = scale * random_float(r);
        if (type == DTYPE_BF16)
            ((bf16 *)x)[i] = bf16_from_float(value);
        else
            ((float *)x)[i] = value;
    }
    return x;
}

static inline void *copy_of(const void *x, size_t bytes) {
    void *p = buffer(bytes);
    if (bytes > 0) memcpy(p, x, bytes);
    return p;
}

/* ||a - b|| / ||b||; NaN anywhere gives NaN, which fails !(error <= tolerance). */
static inline double relative_norm(DType type, const void *a, const void *b, int64_t count) {
    double difference = 0.0, norm = 0.0;
    for (int64_t i = 0; i < count; i++) {
        double x = value_at(type, a, i), y = value_at(type, b, i);
        difference += (x - y) * (x - y);
        norm += y * y;
    }
    return norm > 0.0 ? sqrt(difference / norm) : sqrt(difference);
}

static inline void assert_close(const char *what, DType type, const void *a, const void *b, int64_t count, double tolerance) {
    double error = relative_norm(type, a, b, count);
    if (!(error <= tolerance)) {
        int64_t worst = 0;
        double most = -1.0;
        for (int64_t i = 0; i < count; i++) {
            double d = fabs(value_at(type, a, i) - value_at(type, b, i));
            if (!(d <= most)) {
                most = d;
                worst = i;
                if (isnan(d)) break;
            }
        }
        fail_msg("%s: relative norm of the difference %g > %g; worst at %lld: got %.9g, want %.9g", what, error, tolerance,
                 (long long)worst, value_at(type, a, worst), value_at(type, b, worst));
    }
}

static inline double reduction_tolerance(DType act) {
    return act == DTYPE_BF16 ? REDUCTION_BF16 : REDUCTION_F32;
}

/* ---- weights ------------------------------------------------------------------------------------------------------- */

static const float test_nf4_codes[16] = NF4_CODES;

typedef struct TestWeight {
    WeightView view;
    void *parts[4];
} TestWeight;

/* What `nested` says of grouped integers: bits, and what else they have. */
enum { GROUPED_BITS = 15, GROUPED_ZEROS = 16, GROUPED_ORDERED = 32, GROUPED_F16 = 64, GROUPED_BF16 = 128 };

static inline TestWeight random_grouped(Random *r, int64_t rows, int64_t cols, int32_t block, int what) {
    int bits = what & GROUPED_BITS;
    TestWeight w = {.view = {.format = WEIGHT_GROUPED, .rows = rows, .cols = cols, .block_size = block, .bits = bits}};
    int64_t bytes = rows * grouped_row_bytes(cols, bits), groups = cols / block;
    uint8_t *data = buffer((size_t)bytes), *zeros = buffer((size_t)(rows * groups));
    float *scales = random_values(r, DTYPE_F32, rows * groups, 0.1f);
    int32_t *order = buffer((size_t)cols * sizeof *order);
    for (int64_t i = 0; i < bytes; i++)
        data[i] = (uint8_t)random_bits(r);
    for (int64_t i = 0; i < rows * groups; i++) {
        zeros[i] = (uint8_t)(random_bits(r) & ((1u << bits) - 1u));
        if (what & GROUPED_F16) scales[i] = f16_to_float(f16_from_float(scales[i]));
        if (what & GROUPED_BF16) scales[i] = bf16_round(scales[i]);
    }
    for (int64_t i = 0; i < cols; i++)
        order[i] = (int32_t)random_below(r, groups);
    w.view.scale_type = what & GROUPED_F16 ? DTYPE_F16 : what & GROUPED_BF16 ? DTYPE_BF16 : DTYPE_F32;
    w.view.data = w.parts[0] = data;
    w.view.scales = w.parts[1] = scales;
    w.parts[2] = zeros;
    w.parts[3] = order;
    if (what & GROUPED_ZEROS) w.view.zeros = zeros;
    if (what & GROUPED_ORDERED) w.view.group_index = order;
    return w;
}

/* Blocks of the ggml type `type`, from random values: scales are finite. */
static inline TestWeight random_ggml(Random *r, int64_t rows, int64_t cols, int type) {
    TestWeight w = {.view = {.format = WEIGHT_GGML, .rows = rows, .cols = cols, .ggml_type = (uint32_t)type}};
    int64_t bytes;
    float *x = random_values(r, DTYPE_F32, rows * cols, 0.5f);
    assert_int_equal(ggml_bytes((uint32_t)type, rows, cols, &bytes, NULL), OK);
    w.view.data = w.parts[0] = buffer((size_t)bytes);
    assert_int_equal(ggml_quantize((uint32_t)type, x, rows, cols, NULL, w.parts[0], NULL, NULL), OK);
    free(x);
    return w;
}

/* Random bits of the format: every code, every scale of its own; nested for NF4 and FP4 when asked. */
static inline TestWeight random_weight(Random *r, WeightFormat format, int64_t rows, int64_t cols, int32_t block, int nested) {
    if (format == WEIGHT_GROUPED) return random_grouped(r, rows, cols, block, nested);
    if (format == WEIGHT_GGML) return random_ggml(r, rows, cols, nested);
    TestWeight w = {.view = {.format = format, .rows = rows, .cols = cols, .block_size = block}};
    int64_t count = rows * cols, blocks = block > 0 ? weight_blocks(rows, cols, block) : rows;
    if (format == WEIGHT_F32 || format == WEIGHT_BF16) {
        w.view.data = w.parts[0] = random_values(r, format == WEIGHT_F32 ? DTYPE_F32 : DTYPE_BF16, count, 0.5f);
        return w;
    }
    size_t bytes = (size_t)(format == WEIGHT_INT8 ? count : (count + 1) / 2);
    uint8_t *data = buffer(bytes);
    for (size_t i = 0; i < bytes; i++)
        data[i] = (uint8_t)random_bits(r);
    w.view.data = w.parts[0] = data;
    w.view.codes = test_nf4_codes;
    if (!nested) {
        float *scales = random_values(r, DTYPE_F32, format == WEIGHT_INT8 ? rows : blocks, 0.1f);
        w.view.scales = w.parts[1] = scales;
        return w;
    }
    uint8_t *codes = buffer((size_t)blocks);
    for (int64_t i = 0; i < blocks; i++)
        codes[i] = (uint8_t)random_bits(r);
    w.view.nested_codes = w.parts[1] = codes;
    w.view.nested_absmax = w.parts[2] = random_values(r, DTYPE_F32, (blocks + NESTED_BLOCK - 1) / NESTED_BLOCK, 0.1f);
    w.view.nested_map = w.parts[3] = random_values(r, DTYPE_F32, 256, 1.0f);
    w.view.nested_offset = 0.2f;
    return w;
}

static inline void weight_free(TestWeight *w) {
    for (int i = 0; i < 4; i++)
        free(w->parts[i]);
}

/* ---- batches ------------------------------------------------------------------------------------------------------- */

typedef struct TestBatch {
    Batch batch;
    int64_t *starts;
    int32_t *ids, *positions, *rows, *targets;
    uint64_t *samples;
} TestBatch;

/* Sequences of random lengths, each up to `longest`, filling `tokens` rows; about two rows of three are supervised. */
static inline TestBatch random_batch(Random *r, int64_t tokens, int64_t longest, int64_t vocab) {
    TestBatch b = {0};
    size_t n = (size_t)tokens;
    b.starts = buffer((n + 1) * sizeof *b.starts);
    b.ids = buffer(n * sizeof *b.ids);
    b.positions = buffer(n * sizeof *b.positions);
    b.rows = buffer(n * sizeof *b.rows);
    b.targets = buffer(n * sizeof *b.targets);
    b.samples = buffer(n * sizeof *b.samples);
    int64_t sequences = 0, supervised = 0;
    b.starts[0] = 0;
    for (int64_t t = 0; t < tokens;) {
        int64_t length = 1 + random_below(r, longest);
        if (length > tokens - t) length = tokens - t;
        for (int64_t i = 0; i < length; i++, t++) {
            b.ids[t] = (int32_t)random_below(r, vocab);
            b.positions[t] = (int32_t)i;
            b.samples[t] = (uint64_t)sequences + ((uint64_t)5 << 33);
            if (random_below(r, 3) == 0) continue;
            b.rows[supervised] = (int32_t)t;
            b.targets[supervised++] = (int32_t)random_below(r, vocab);
        }
        b.starts[++sequences] = t;
    }
    b.batch = (Batch){.tokens = tokens,
                      .sequences = sequences,
                      .starts = b.starts,
                      .ids = b.ids,
                      .positions = b.positions,
                      .samples = b.samples,
                      .supervised = supervised,
                      .rows = b.rows,
                      .targets = b.targets,
                      .grad_scale = 0.125f,
                      .seed = 0x123456789ABCDEFull,
                      .dropout = 1};
    return b;
}

static inline void batch_free(TestBatch *b) {
    free(b->starts);
    free(b->ids);
    free(b->positions);
    free(b->rows);
    free(b->targets);
    free(b->samples);
}

/* ---- threads ------------------------------------------------------------------------------------------------------- */

static inline Exec exec_of(DType act, int threads) {
    Exec exec = {.config = {.act = act, .threads = threads}};
    Error err;
    assert_int_equal(pool_create(&exec.pool, threads, &err), OK);
    if (threads > 1) pool_assume_cache(exec.pool, threads % 2 != 0 ? 131072 : 4194304); /* bits depend on neither */
    return exec;
}

#define assert_ok(expression)                              \
    do {                                                   \
        Error *err_ = &(Error){.text = ""};                \
        Error *err = err_;                                 \
        if ((expression) != OK) fail_msg("%s", err->text); \
    } while (0)

#endif
