#include "kernels/cpu/simd/operand.h"

#include "core/philox.h"
#include "kernels/ggml_decode.h"

/* ---- dropout: Philox on 64-bit lanes, one lane for four features ---------------------------------------------------- */

#define LANES (SIMD_WIDTH / 2)

typedef struct Block4 {
    vq word[4];
} Block4;

/* As philox4x32; each 64-bit lane holds one 32-bit word in its low half. */
SIMD_INLINE Block4 philox_lanes(Block4 c, uint32_t key0, uint32_t key1) {
    const vq low = (vq){0} + 0xFFFFFFFFu;
    for (int round = 0; round < 10; round++) {
        vq p0 = vq_mul32(c.word[0], (vq){0} + 0xD2511F53u), p1 = vq_mul32(c.word[2], (vq){0} + 0xCD9E8D57u);
        vq n0 = (p1 >> 32) ^ c.word[1] ^ (uint64_t)key0, n2 = (p0 >> 32) ^ c.word[3] ^ (uint64_t)key1;
        c.word[1] = p1 & low;
        c.word[3] = p0 & low;
        c.word[0] = n0;
        c.word[2] = n2;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return c;
}

/* 1/(1-p) or 0 for features [4 * group, 4 * group + 4 * LANES) */
static void dropout_factors(const DropoutMask *mask, int64_t row, uint32_t group, float out[4 * LANES]) {
    const Batch *batch = mask->batch;
    uint64_t seed = batch->seed ^ ((uint64_t)mask->stream * 0x9E3779B97F4A7C15u); /* as dropout_block in core/philox.h */
    uint64_t sample = batch->samples[row];
    vq lane = {0};
    for (int i = 0; i < LANES; i++)
        lane[i] = (uint64_t)i;
    Block4 c = {{lane + (uint64_t)group, (vq){0} + (uint32_t)batch->positions[row], (vq){0} + (uint32_t)sample,
                 (vq){0} + (sample >> 32)}};
    c = philox_lanes(c, (uint32_t)seed ^ ((uint32_t)RANDOM_DROPOUT * 0x85EBCA6Bu), (uint32_t)(seed >> 32));
    uint32_t words[4][SIMD_WIDTH];
    for (int w = 0; w < 4; w++)
        memcpy(words[w], &c.word[w], sizeof words[w]);
    for (int i = 0; i < LANES; i++)
        for (int w = 0; w < 4; w++)
            out[4 * i + w] = words[w][2 * i] >= mask->threshold ? mask->scale : 0.0f;
}

void dropout_apply(const DropoutMask *mask, int64_t row, int64_t column, int64_t count, float *values) {
    float factors[4 * LANES];
    for (int64_t done = 0; done < count; done += 4 * LANES) {
        dropout_factors(mask, row, (uint32_t)((column + done) / 4), factors);
        int64_t left = count - done < 4 * LANES ? count - done : 4 * LANES;
        for (int64_t i = 0; i < left; i++)
            values[done + i] *= factors[i];
    }
}

/* ---- quantized weights -------------------------------------------------------------------------------------------------- */

SIMD_INLINE float round_one(float x, DType to) {
    return to == DTYPE_BF16 ? bf16_round(x) : x;
}

/* SIMD_WIDTH bytes' worth of 4-bit indices from SIMD_WIDTH/2 bytes; only the low four bits of a lane count. */
SIMD_INLINE vi nibbles_high_first(const uint8_t *p) {
    vq bytes = vq_load_u8(p);
    return (vi)((bytes >> 4) | (bytes << 32));
}
SIMD_INLINE vi nibbles_low_first(const uint8_t *p) {
    vq bytes = vq_load_u8(p);
    return (vi)(bytes | (bytes << 28));
}

/* `count` codes from flat element `first` on, all of one block: looked up in the block's table. */
SIMD_INLINE void look_up(const uint8_t *packed, int64_t first, int64_t count, Table16 table, const float *scalar,
                         int high_first, float *out) {
    int64_t i = 0;
    int even = high_first ? 4 : 0; /* shift of an even element's nibble */
    if ((first & 1) != 0 && count > 0) {
        out[0] = scalar[(packed[first >> 1] >> (4 - even)) & 15];
        i = 1;
    }
    for (; i + SIMD_WIDTH <= count; i += SIMD_WIDTH) {
        const uint8_t *p = packed + ((first + i) >> 1);
        vf_store(out + i, table16_look(table, high_first ? nibbles_high_first(p) : nibbles_low_first(p)));
    }
    for (; i < count; i++) {
        int shift = ((first + i) & 1) != 0 ? 4 - even : even;
        out[i] = scalar[(packed[(first + i) >> 1] >> shift) & 15];
    }
}

SIMD_INLINE void table16_store(float *p, Table16 t) {
#if SIMD_WIDTH == 16
    vf_store(p, t.all);
#else
    vf_store(p, t.low);
    vf_store(p + 8, t.high);
#endif
}

/* The rounding happens once in the table of a block, not once an element. */
static void read_4bit(const WeightView *w, DType round_to, int64_t first, int64_t count, float *out) {
    static const float int4_codes[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
    int int4 = w->format == WEIGHT_INT4;
    Table16 codes = table16_load(int4 ? int4_codes : w->codes);
    int64_t size = w->block_size, block = first / size, inside = first % size;
    for (int64_t done = 0; done < count; block++, inside = 0) {
        int64_t run = size - inside < count - done ? size - inside : count - done;
        Table16 table = table16_scale(codes, int4 ? w->scales[block] : weight_absmax(w, block));
        if (round_to == DTYPE_BF16) table = table16_round_bf16(table);
        float scalar[16];
        table16_store(scalar, table);
        if (int4)
            look_up(w->data, first + done, run, table, scalar, 0, out + done);
        else
            look_up(w->data, first + done, run, table, scalar, 1, out + done);
        done += run;
    }
}

/* (u - zero) * scale, u in [0, 16), rounded to scale_type */
SIMD_INLINE Table16 table16_grouped(float zero, float scale, DType scale_type) {
    static const float count[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    float values[16];
    for (int i = 0; i < 16; i += SIMD_WIDTH)
        vf_store(values + i, vf_round_to((vf_load(count + i) - vf_set(zero)) * vf_set(scale), scale_type));
    return table16_load(values);
}

/* Four bits, groups in order: a table for each group. `count` elements of one row. */
static void read_grouped4(const WeightView *w, DType round_to, int64_t row, int64_t column, int64_t count, float *out) {
    const uint8_t *packed = (const uint8_t *)w->data + row * grouped_row_bytes(w->cols, 4);
    int64_t size = w->block_size, at = row * (w->cols / size) + column / size, inside = column % size;
    for (int64_t done = 0; done < count; at++, inside = 0) {
        int64_t run = least(size - inside, count - done);
        Table16 table = table16_grouped(w->zeros != NULL ? (float)w->zeros[at] : 8.0f, w->scales[at], w->scale_type);
        if (round_to == DTYPE_BF16) table = table16_round_bf16(table);
        float scalar[16];
        table16_store(scalar, table);
        look_up(packed, column + done, run, table, scalar, 0, out + done);
        done += run;
    }
}

#define GROUPED_PART 64

/* Any bits, groups in any order: codes and constants of up to GROUPED_PART elements of one row, then one product each. */
static void read_grouped_part(const WeightView *w, DType round_to, int64_t row, int64_t column, int64_t count, float *out) {
    const uint8_t *packed = (const uint8_t *)w->data + row * grouped_row_bytes(w->cols, w->bits);
    int64_t first = row * (w->cols / w->block_size);
    int center = 1 << (w->bits - 1);
    float code[GROUPED_PART], scale[GROUPED_PART];
    for (int64_t i = 0; i < count; i++) {
        int64_t c = column + i, at = first + (w->group_index != NULL ? w->group_index[c] : c / w->block_size);
        scale[i] = w->scales[at];
        code[i] = (float)(grouped_code(packed, w->bits, c) - (w->zeros != NULL ? w->zeros[at] : center));
    }
    for (int64_t i = count; i < GROUPED_PART; i++)
        code[i] = scale[i] = 0.0f;
    for (int64_t i = 0; i < count; i += SIMD_WIDTH) {
        vf x = vf_round_to(vf_load(code + i) * vf_load(scale + i), w->scale_type);
        vf_store(code + i, round_to == DTYPE_BF16 ? vf_round_bf16(x) : x);
    }
    memcpy(out, code, (size_t)count * sizeof *out);
}

static void read_grouped(const WeightView *w, DType round_to, int64_t first, int64_t count, float *out) {
    int by_table = w->bits == 4 && w->group_index == NULL;
    for (int64_t done = 0, run; done < count; done += run) {
        int64_t row = (first + done) / w->cols, column = (first + done) % w->cols;
        run = least(w->cols - column, count - done);
        if (!by_table) run = least(run, GROUPED_PART);
        if (by_table)
            read_grouped4(w, round_to, row, column, run, out + done);
        else
            read_grouped_part(w, round_to, row, column, run, out + done);
    }
}

static void read_int8(const WeightView *w, DType round_to, int64_t first, int64_t count, float *out) {
    const int8_t *q = (const int8_t *)w->data + first;
    float scale = w->scales[first / w->cols];
    int64_t i = 0;
    for (; i + SIMD_WIDTH <= count; i += SIMD_WIDTH) {
        vf x = vf_load_i8(q + i) * vf_set(scale) * vf_set(INT8_DECODE);
        vf_store(out + i, round_to == DTYPE_BF16 ? vf_round_bf16(x) : x);
    }
    for (; i < count; i++)
        out[i] = round_one((float)q[i] * scale * INT8_DECODE, round_to);
}

static void read_dense(const void *data, DType type, int64_t first, int64_t count, float *out) {
    int64_t i = 0;
    if (type == DTYPE_BF16)
        for (; i + SIMD_WIDTH <= count; i += SIMD_WIDTH)
            vf_store(out + i, vf_load_bf16((const bf16 *)data + first + i));
    else
        for (; i + SIMD_WIDTH <= count; i += SIMD_WIDTH)
            vf_store(out + i, vf_load((const float *)data + first + i));
    if (i < count) vf_store(out + i, vf_load_act(data, type, first + i, count - i));
}

static void round_all(float *x, int64_t count) {
    for (int64_t i = 0; i < count; i += SIMD_WIDTH)
        vf_store(x + i, vf_round_bf16(vf_load(x + i)));
}

static void read_f16(const WeightView *w, int64_t first, int64_t count, float *out) {
    const f16 *from = (const f16 *)w->data + first;
    int64_t i = 0;
    for (; i + 8 <= count; i += 8)
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const void *)(from + i))));
    for (; i < count; i++)
        out[i] = _cvtsh_ss(from[i]);
}

/* Codes become vectors; a run's scale and offset hold for 16 elements. */
SIMD_INLINE void decode_run(const WeightView *w, int64_t index, float out[GGML_RUN]) {
    GgmlRun run;
    ggml_run_take(w->ggml_type, w->data, index, &run);
    for (int i = 0; i < GGML_RUN; i += SIMD_WIDTH)
        vf_store(out + i, vf_load_i8(run.codes + i) * vf_set(run.scale[i / 16]) + vf_set(run.offset[i / 16]));
}

static void read_ggml(const WeightView *w, int64_t first, int64_t count, float *out) {
    if (w->ggml_type == GGML_F16) {
        read_f16(w, first, count, out);
        return;
    }
    float part[GGML_RUN];
    for (int64_t done = 0; done < count;) {
        int64_t at = first + done, inside = at % GGML_RUN, some = least(GGML_RUN - inside, count - done);
        if (some == GGML_RUN) {
            decode_run(w, at / GGML_RUN, out + done);
        } else {
            decode_run(w, at / GGML_RUN, part);
            memcpy(out + done, part + inside, (size_t)some * sizeof *out);
        }
        done += some;
    }
}

void weight_read(const WeightView *weight, DType round_to, int64_t first, int64_t count, float *out) {
    switch (weight->format) {
        case WEIGHT_NF4:
        case WEIGHT_FP4:
        case WEIGHT_INT4: read_4bit(weight, round_to, first, count, out); break;
        case WEIGHT_INT8: read_int8(weight, round_to, first, count, out); break;
        case WEIGHT_GROUPED: read_grouped(weight, round_to, first, count, out); break;
        case WEIGHT_GGML: read_ggml(weight, first, count, out); break;
        case WEIGHT_BF16: read_dense(weight->data, DTYPE_BF16, first, count, out); return;
        default: /* F32: plans refuse the rest */
            read_dense(weight->data, DTYPE_F32, first, count, out);
            if (round_to == DTYPE_BF16) round_all(out, count);
            return;
    }
    for (int64_t i = count; i % SIMD_WIDTH != 0; i++)
        out[i] = 0.0f;
    if (weight->format == WEIGHT_GGML && round_to == DTYPE_BF16) round_all(out, count);
}

void operand_read(const Operand *o, int64_t row, int64_t column, int64_t count, float *out) {
    if (o->rows != NULL) row = o->rows[row];
    if (o->weight != NULL)
        weight_read(o->weight, o->round_to, row * o->weight->cols + column, count, out);
    else
        read_dense(o->data, o->type, row * o->stride + column, count, out);
    if (o->mask != NULL) dropout_apply(o->mask, row, column, count, out);
    if (o->scale != 1.0f)
        for (int64_t i = 0; i < count; i += SIMD_WIDTH)
            vf_store(out + i, vf_load(out + i) * vf_set(o->scale));
}
