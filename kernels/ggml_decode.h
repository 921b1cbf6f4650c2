/* ggml's blocks to FP32, 32 consecutive elements of a row at a time (layouts: kernels/ggml_formats.h).
 *
 * Every format is x = scale * code + offset, scale and offset of 16 elements each, product rounded, then sum rounded: the bits of
 * ggml's dequantize_row_*. An offset of -0 changes no value. One definition for quant/, the reference and the vector kernels,
 * whose compilers vectorize it; tests/unit/test_ggml.c holds it to golden files.
 *
 * Source: ggml 0.25.3 (in llama-cpp-python 0.3.36), src/ggml-quants.c.
 */
#ifndef NIBBLE_KERNELS_GGML_DECODE_H
#define NIBBLE_KERNELS_GGML_DECODE_H

#include <string.h>
#ifdef __F16C__
#include <immintrin.h>
#endif

#include "core/dtype.h"
#include "kernels/ggml_formats.h"

#define GGML_RUN 32

/* Elements and bytes of a block; 0 for types that are not decoded here. */
static inline int ggml_block_form(uint32_t type, int *bytes) {
    switch (type) {
        case GGML_F32: *bytes = 4; return 1;
        case GGML_F16:
        case GGML_BF16: *bytes = 2; return 1;
        case GGML_Q4_0: *bytes = sizeof(GgmlBlockQ4_0); return GGML_BLOCK;
        case GGML_Q4_1: *bytes = sizeof(GgmlBlockQ4_1); return GGML_BLOCK;
        case GGML_Q5_0: *bytes = sizeof(GgmlBlockQ5_0); return GGML_BLOCK;
        case GGML_Q5_1: *bytes = sizeof(GgmlBlockQ5_1); return GGML_BLOCK;
        case GGML_Q8_0: *bytes = sizeof(GgmlBlockQ8_0); return GGML_BLOCK;
        case GGML_Q2_K: *bytes = sizeof(GgmlBlockQ2_K); return GGML_SUPER;
        case GGML_Q3_K: *bytes = sizeof(GgmlBlockQ3_K); return GGML_SUPER;
        case GGML_Q4_K: *bytes = sizeof(GgmlBlockQ4_K); return GGML_SUPER;
        case GGML_Q5_K: *bytes = sizeof(GgmlBlockQ5_K); return GGML_SUPER;
        case GGML_Q6_K: *bytes = sizeof(GgmlBlockQ6_K); return GGML_SUPER;
        default: *bytes = 0; return 0;
    }
}

/* Exact, by the instruction where there is one. */
static inline float ggml_half(uint16_t half) {
#ifdef __F16C__
    return _cvtsh_ss(half);
#else
    return f16_to_float(half);
#endif
}

/* 32 elements before the multiplication. */
typedef struct GgmlRun {
    int8_t codes[GGML_RUN];
    float scale[2], offset[2]; /* of the first and the second 16 */
} GgmlRun;

static inline void ggml_run_scale(GgmlRun *run, float scale, float offset) {
    run->scale[0] = run->scale[1] = scale;
    run->offset[0] = run->offset[1] = offset;
}

static inline void ggml_run_nibbles(GgmlRun *run, const uint8_t *qs, int bias) {
    for (int j = 0; j < 16; j++) {
        run->codes[j] = (int8_t)((qs[j] & 15) - bias);
        run->codes[j + 16] = (int8_t)((qs[j] >> 4) - bias);
    }
}

/* Bits 0 to 7 as bytes of 0 or 16: byte k keeps bit k alone, and 127 more reaches its top bit where that is set. */
static inline uint64_t ggml_spread(uint8_t bits) {
    uint64_t own = bits * 0x0101010101010101u & 0x8040201008040201u;
    return (own + 0x7F7F7F7F7F7F7F7Fu) >> 3 & 0x1010101010101010u;
}

static inline void ggml_run_fifth(GgmlRun *run, const uint8_t qh[4], int bias) {
    for (int j = 0; j < 4; j++) {
        uint64_t codes;
        memcpy(&codes, run->codes + 8 * j, sizeof codes);
        codes |= ggml_spread(qh[j]);
        memcpy(run->codes + 8 * j, &codes, sizeof codes);
    }
    for (int j = 0; j < GGML_RUN; j++)
        run->codes[j] = (int8_t)(run->codes[j] - bias);
}

static inline void ggml_run_small(uint32_t type, const void *data, GgmlRun *run) {
    switch (type) {
        case GGML_Q4_0: {
            const GgmlBlockQ4_0 *b = data;
            ggml_run_scale(run, ggml_half(b->d), -0.0f);
            ggml_run_nibbles(run, b->qs, 8);
            break;
        }
        case GGML_Q4_1: {
            const GgmlBlockQ4_1 *b = data;
            ggml_run_scale(run, ggml_half(b->d), ggml_half(b->m));
            ggml_run_nibbles(run, b->qs, 0);
            break;
        }
        case GGML_Q5_0: {
            const GgmlBlockQ5_0 *b = data;
            ggml_run_scale(run, ggml_half(b->d), -0.0f);
            ggml_run_nibbles(run, b->qs, 0);
            ggml_run_fifth(run, b->qh, 16);
            break;
        }
        case GGML_Q5_1: {
            const GgmlBlockQ5_1 *b = data;
            ggml_run_scale(run, ggml_half(b->d), ggml_half(b->m));
            ggml_run_nibbles(run, b->qs, 0);
            ggml_run_fifth(run, b->qh, 0);
            break;
        }
        default: {
            const GgmlBlockQ8_0 *b = data;
            ggml_run_scale(run, ggml_half(b->d), -0.0f);
            memcpy(run->codes, b->qs, sizeof run->codes);
            break;
        }
    }
}

/* Elements [32 n, 32 n + 32) of a super-block, n in [0, 8). */
static inline void ggml_run_q2(const GgmlBlockQ2_K *b, int n, GgmlRun *run) {
    float d = ggml_half(b->d), min = ggml_half(b->dmin);
    const uint8_t *qs = b->qs + 32 * (n >> 2);
    int shift = 2 * (n & 3);
    for (int j = 0; j < GGML_RUN; j++)
        run->codes[j] = (int8_t)((qs[j] >> shift) & 3);
    for (int h = 0; h < 2; h++) {
        uint8_t scales = b->scales[2 * n + h];
        run->scale[h] = d * (float)(scales & 15);
        run->offset[h] = -(min * (float)(scales >> 4));
    }
}

static inline void ggml_run_q3(const GgmlBlockQ3_K *b, int n, GgmlRun *run) {
    float d = ggml_half(b->d);
    const uint8_t *qs = b->qs + 32 * (n >> 2);
    int shift = 2 * (n & 3);
    for (int j = 0; j < GGML_RUN; j++)
        run->codes[j] = (int8_t)(((qs[j] >> shift) & 3) + 4 * ((b->hmask[j] >> n) & 1) - 4);
    for (int h = 0; h < 2; h++) {
        run->scale[h] = d * (float)ggml_scale_q3(b->scales, 2 * n + h);
        run->offset[h] = -0.0f;
    }
}

static inline void ggml_run_scale_min(GgmlRun *run, uint16_t d, uint16_t dmin, const uint8_t scales[12], int n) {
    int scale, min;
    ggml_scale_min(scales, n, &scale, &min);
    ggml_run_scale(run, ggml_half(d) * (float)scale, -(ggml_half(dmin) * (float)min));
}

static inline void ggml_run_q4(const GgmlBlockQ4_K *b, int n, GgmlRun *run) {
    const uint8_t *qs = b->qs + 32 * (n >> 1);
    int shift = 4 * (n & 1);
    ggml_run_scale_min(run, b->d, b->dmin, b->scales, n);
    for (int j = 0; j < GGML_RUN; j++)
        run->codes[j] = (int8_t)((qs[j] >> shift) & 15);
}

static inline void ggml_run_q5(const GgmlBlockQ5_K *b, int n, GgmlRun *run) {
    const uint8_t *qs = b->qs + 32 * (n >> 1);
    int shift = 4 * (n & 1);
    ggml_run_scale_min(run, b->d, b->dmin, b->scales, n);
    for (int j = 0; j < GGML_RUN; j++)
        run->codes[j] = (int8_t)(((qs[j] >> shift) & 15) | ((b->qh[j] >> n) & 1) << 4);
}

static inline void ggml_run_q6(const GgmlBlockQ6_K *b, int n, GgmlRun *run) {
    int half = n >> 2, quarter = n & 3;
    const uint8_t *ql = b->ql + 64 * half + 32 * (quarter & 1), *qh = b->qh + 32 * half;
    int shift = 4 * (quarter >> 1), high = 2 * quarter;
    float d = ggml_half(b->d);
    for (int j = 0; j < GGML_RUN; j++)
        run->codes[j] = (int8_t)((((ql[j] >> shift) & 15) | ((qh[j] >> high) & 3) << 4) - 32);
    for (int h = 0; h < 2; h++) {
        run->scale[h] = d * (float)b->scales[2 * n + h];
        run->offset[h] = -0.0f;
    }
}

static inline void ggml_run_take(uint32_t type, const uint8_t *data, int64_t index, GgmlRun *run) {
    int64_t super = index >> 3;
    int n = (int)(index & 7), bytes;
    switch (type) {
        case GGML_Q2_K: ggml_run_q2((const GgmlBlockQ2_K *)(const void *)data + super, n, run); return;
        case GGML_Q3_K: ggml_run_q3((const GgmlBlockQ3_K *)(const void *)data + super, n, run); return;
        case GGML_Q4_K: ggml_run_q4((const GgmlBlockQ4_K *)(const void *)data + super, n, run); return;
        case GGML_Q5_K: ggml_run_q5((const GgmlBlockQ5_K *)(const void *)data + super, n, run); return;
        case GGML_Q6_K: ggml_run_q6((const GgmlBlockQ6_K *)(const void *)data + super, n, run); return;
        default: break;
    }
    (void)ggml_block_form(type, &bytes);
    ggml_run_small(type, data + index * bytes, run);
}

/* Overwrites out with elements [32 index, 32 index + 32) of the blocks at data, which is 2-byte aligned; a quantized type that
 * ggml_block_form knows. */
static inline void ggml_decode_run(uint32_t type, const void *data, int64_t index, float out[GGML_RUN]) {
    GgmlRun run;
    ggml_run_take(type, data, index, &run);
    for (int h = 0; h < 2; h++)
        for (int j = 16 * h; j < 16 * h + 16; j++)
            out[j] = run.scale[h] * (float)run.codes[j] + run.offset[h];
}

#endif
