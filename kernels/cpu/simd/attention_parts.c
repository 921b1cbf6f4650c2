#include "kernels/cpu/simd/attention.h"

static int64_t panel_floats(int64_t dim) {
    return most(round_up(dim, SIMD_WIDTH), ATTENTION_STRETCH) * GEMM_COLUMNS;
}

/* Rows start in different sets of the cache, and at the line. */
static int64_t row_stride_of(int64_t dim) {
    return round_up(dim, 16) + 16;
}

int64_t attention_thread_floats(int sides, int64_t dim) {
    int64_t pair = ATTENTION_BLOCK * (row_stride_of(dim) + ATTENTION_STRIDE + round_up(dim, 16));
    return sides * pair + panel_floats(dim) + SIMD_WIDTH * row_stride_of(dim) + 2 * ATTENTION_STRETCH;
}

Scratch attention_scratch(void *workspace, int worker, int sides, DType act, int64_t dim) {
    Scratch s = {.row_stride = row_stride_of(dim), .sum_stride = round_up(dim, 16), .pairs = GEMM_PAIRS && act == DTYPE_BF16};
    float *at = (float *)workspace + worker * attention_thread_floats(sides, dim);
    for (int i = 0; i < sides; i++) {
        s.rows[i] = at;
        s.scores[i] = s.rows[i] + ATTENTION_BLOCK * s.row_stride;
        s.sum[i] = s.scores[i] + ATTENTION_BLOCK * ATTENTION_STRIDE;
        at = s.sum[i] + ATTENTION_BLOCK * s.sum_stride;
    }
    s.panel = at;
    s.turn = s.panel + panel_floats(dim);
    s.stat[0] = s.turn + SIMD_WIDTH * s.row_stride;
    s.stat[1] = s.stat[0] + ATTENTION_STRETCH;
    return s;
}

Status attention_places(const ExecConfig *config, const AttentionShape *shape, AttentionPlaces *at, Error *err) {
    AttentionLayout checks;
    TRY(simd_check_config("attention", config, err));
    TRY(ref_attention_layout(config, shape, &checks, err));
    *at = (AttentionPlaces){0};
    size_t blocks = 0;
    TRY(ref_region(&at->plan.saved, NULL, "attention", shape->rows, shape->heads, sizeof(float), err));
    TRY(ref_region(&blocks, NULL, "attention", shape->rows, 1, sizeof(int32_t), err));
    at->plan.forward_workspace = at->plan.backward_workspace = blocks;
    TRY(ref_region(&at->plan.forward_workspace, &at->forward_scratch, "attention", config->threads,
                   attention_thread_floats(1, shape->head_dim), sizeof(float), err));
    TRY(ref_region(&at->plan.backward_workspace, &at->delta, "attention", shape->rows, shape->heads, sizeof(float), err));
    return ref_region(&at->plan.backward_workspace, &at->backward_scratch, "attention", config->threads,
                      attention_thread_floats(2, shape->head_dim), sizeof(float), err);
}

int64_t attention_cut(const Batch *batch, int32_t *first_rows) {
    int64_t blocks = 0;
    for (int64_t s = 0; s < batch->sequences; s++)
        for (int64_t row = batch->starts[s]; row < batch->starts[s + 1]; row += ATTENTION_BLOCK)
            first_rows[blocks++] = (int32_t)row;
    return blocks;
}

/* Whether any of the rows of a panel sees anything of [from, to). */
static int panel_sees(const Visible *visible, int64_t row, int64_t block, int64_t from, int64_t to) {
    for (int64_t i = row; i < least(row + GEMM_ROWS, block); i++)
        if (most(visible->first[i], from) < least(visible->end[i], to)) return 1;
    return 0;
}

void attention_pack(const Scratch *s, const Operand *rows, int64_t row, int64_t block, int64_t dim, float *to) {
#if GEMM_PAIRS
    if (s->pairs) {
        gemm_pairs_pack_a(rows, row, block, 0, dim, to, s->row_stride);
        return;
    }
#endif
    gemm_pack_a(rows, row, block, 0, dim, to, s->row_stride);
}

/* Columns [n0, n0 + width) of (stretch)^T, or of the stretch, as a B panel; then products with it. */
static void pack_stretch_turned(const Scratch *s, const Operand *columns, int64_t n0, int64_t width, int64_t dim, int vectors) {
#if GEMM_PAIRS
    if (s->pairs) {
        gemm_pairs_pack_b_turned(columns, n0, width, 0, dim, vectors, s->turn, s->row_stride, s->panel);
        return;
    }
#endif
    gemm_pack_b_turned(columns, n0, width, 0, dim, vectors, s->turn, s->row_stride, s->panel);
}

static void pack_stretch(const Scratch *s, const Operand *columns, int64_t n0, int64_t width, int64_t c0, int64_t count,
                         int vectors) {
#if GEMM_PAIRS
    if (s->pairs) {
        gemm_pairs_pack_b(columns, n0, width, c0, count, vectors, s->panel);
        return;
    }
#endif
    gemm_pack_b(columns, n0, width, c0, count, vectors, s->panel);
}

static void multiply(const Scratch *s, const float *a, int64_t a_stride, float *c, int64_t c_stride, int64_t k, int vectors) {
#if GEMM_PAIRS
    if (s->pairs) {
        gemm_kernel_pairs(a, a_stride, s->panel, c, c_stride, (k + 1) / 2, vectors);
        return;
    }
#endif
    gemm_kernel(a, a_stride, s->panel, c, c_stride, k, vectors);
}

void attention_scores(const Scratch *s, const float *rows, int64_t block, const Operand *columns, int64_t c0, int64_t count,
                      int64_t dim, const Visible *visible, float *scores) {
    size_t bytes = (size_t)round_up(count, SIMD_WIDTH) * sizeof *scores;
    for (int64_t i = 0; i < round_up(block, GEMM_ROWS); i++)
        memset(scores + i * ATTENTION_STRIDE, 0, bytes);
    for (int64_t n = 0; n < count; n += GEMM_COLUMNS) {
        int64_t width = least(GEMM_COLUMNS, count - n);
        int vectors = (int)((width + SIMD_WIDTH - 1) / SIMD_WIDTH);
        pack_stretch_turned(s, columns, c0 + n, width, dim, vectors);
        for (int64_t i = 0; i < block; i += GEMM_ROWS)
            if (panel_sees(visible, i, block, n, n + width))
                multiply(s, rows + i * s->row_stride, s->row_stride, scores + i * ATTENTION_STRIDE + n, ATTENTION_STRIDE, dim,
                         vectors);
    }
}

void attention_add(const Scratch *s, const float *scores, int64_t block, const Operand *columns, int64_t c0, int64_t count,
                   int64_t dim, const Visible *visible, float *sum) {
    for (int64_t d = 0; d < dim; d += GEMM_COLUMNS) {
        int64_t width = least(GEMM_COLUMNS, dim - d);
        int vectors = (int)((width + SIMD_WIDTH - 1) / SIMD_WIDTH);
        pack_stretch(s, columns, d, width, c0, count, vectors);
        for (int64_t i = 0; i < block; i += GEMM_ROWS)
            if (panel_sees(visible, i, block, 0, count))
                multiply(s, scores + i * ATTENTION_STRIDE, ATTENTION_STRIDE, sum + i * s->sum_stride + d, s->sum_stride, count,
                         vectors);
    }
}
