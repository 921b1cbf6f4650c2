#include "quant/factor.h"

#include <math.h>
#include <string.h>

#include "core/memory.h"

#define BLOCK 64 /* columns that are factored together */
#define TILE 32  /* rows, or columns, of one item */

/* ---- products: tiles of TILE_ROWS by two vectors stay in registers --------------------------------------------------------- */

typedef float Float4 __attribute__((vector_size(16)));
typedef double Double2 __attribute__((vector_size(16)));
#define TILE_ROWS 4

#define SUBTRACT_PRODUCT(name, real, vector, lanes)                                                                         \
    static void name##_tile(int64_t depth, const real *a, int64_t a_stride, const real *b, int64_t b_stride, real *c,       \
                            int64_t c_stride) {                                                                             \
        vector sum[TILE_ROWS][2], low, high;                                                                                \
        for (int r = 0; r < TILE_ROWS; r++)                                                                                 \
            memcpy(sum[r], c + r * c_stride, sizeof sum[r]);                                                                \
        for (int64_t k = 0; k < depth; k++) {                                                                               \
            memcpy(&low, b + k * b_stride, sizeof low);                                                                     \
            memcpy(&high, b + k * b_stride + (lanes), sizeof high);                                                         \
            for (int r = 0; r < TILE_ROWS; r++) {                                                                           \
                real factor = a[r * a_stride + k];                                                                          \
                sum[r][0] -= factor * low;                                                                                  \
                sum[r][1] -= factor * high;                                                                                 \
            }                                                                                                               \
        }                                                                                                                   \
        for (int r = 0; r < TILE_ROWS; r++)                                                                                 \
            memcpy(c + r * c_stride, sum[r], sizeof sum[r]);                                                                \
    }                                                                                                                       \
    static void name##_edge(int64_t rows, int64_t cols, int64_t depth, const real *a, int64_t a_stride, const real *b,      \
                            int64_t b_stride, real *c, int64_t c_stride) {                                                  \
        for (int64_t r = 0; r < rows; r++)                                                                                  \
            for (int64_t k = 0; k < depth; k++)                                                                             \
                for (int64_t j = 0; j < cols; j++)                                                                          \
                    c[r * c_stride + j] -= a[r * a_stride + k] * b[k * b_stride + j];                                       \
    }                                                                                                                       \
    void name(int64_t rows, int64_t cols, int64_t depth, const real *a, int64_t a_stride, const real *b, int64_t b_stride,  \
              real *c, int64_t c_stride) {                                                                                  \
        int64_t whole_rows = rows - rows % TILE_ROWS, whole_cols = cols - cols % (2 * (lanes));                             \
        for (int64_t j = 0; j < whole_cols; j += 2 * (lanes))                                                               \
            for (int64_t r = 0; r < whole_rows; r += TILE_ROWS)                                                             \
                name##_tile(depth, a + r * a_stride, a_stride, b + j, b_stride, c + r * c_stride + j, c_stride);            \
        name##_edge(whole_rows, cols - whole_cols, depth, a, a_stride, b + whole_cols, b_stride, c + whole_cols, c_stride); \
        name##_edge(rows - whole_rows, cols, depth, a + whole_rows * a_stride, a_stride, b, b_stride,                       \
                    c + whole_rows * c_stride, c_stride);                                                                   \
    }

SUBTRACT_PRODUCT(subtract_product_f32, float, Float4, 4)
SUBTRACT_PRODUCT(subtract_product_f64, double, Double2, 2)

/* ---- Cholesky, lower triangle, a block of columns at a time ----------------------------------------------------------------- */

typedef struct Factor {
    double *h;
    int64_t n;
    int64_t first, count; /* the block at hand */
    double *panel;        /* [BLOCK, n]: the block's columns, transposed; or its rows, copied */
} Factor;

static Status factor_diagonal(const Factor *f, Error *err) {
    for (int64_t i = f->first; i < f->first + f->count; i++) {
        double *row = f->h + i * f->n;
        for (int64_t j = f->first; j <= i; j++) {
            const double *other = f->h + j * f->n;
            double sum = row[j];
            for (int64_t k = f->first; k < j; k++)
                sum -= row[k] * other[k];
            if (j < i) {
                row[j] = sum / other[j];
                continue;
            }
            if (!(sum > 0.0))
                FAIL("the matrix of the inputs is not positive definite (pivot %lld of %lld is %g); raise the damping",
                     (long long)(f->n - 1 - i), (long long)f->n, sum);
            row[i] = sqrt(sum);
        }
    }
    return OK;
}

/* One row below the block: its part in the block's columns, and a copy of that for the products. */
static void panel_item(void *context, int64_t item, int worker) {
    (void)worker;
    const Factor *f = context;
    int64_t i = f->first + f->count + item;
    double *row = f->h + i * f->n + f->first;
    for (int64_t j = 0; j < f->count; j++) {
        const double *other = f->h + (f->first + j) * f->n + f->first;
        double sum = row[j];
        for (int64_t k = 0; k < j; k++)
            sum -= row[k] * other[k];
        row[j] = sum / other[j];
        f->panel[j * f->n + i] = row[j];
    }
}

/* TILE rows below the block: what its columns contribute, up to the diagonal (and a little beyond, which nobody reads). */
static void trailing_item(void *context, int64_t item, int worker) {
    (void)worker;
    const Factor *f = context;
    int64_t below = f->first + f->count, i = below + item * TILE;
    int64_t rows = f->n - i < TILE ? f->n - i : TILE;
    subtract_product_f64(rows, i + rows - below, f->count, f->h + i * f->n + f->first, f->n, f->panel + below, f->n,
                         f->h + i * f->n + below, f->n);
}

static Status factor_lower(Factor *f, Pool *pool, Error *err) {
    for (f->first = 0; f->first < f->n; f->first += BLOCK) {
        f->count = f->n - f->first < BLOCK ? f->n - f->first : BLOCK;
        int64_t rest = f->n - f->first - f->count;
        TRY(factor_diagonal(f, err));
        pool_run(pool, panel_item, f, rest);
        pool_run(pool, trailing_item, f, (rest + TILE - 1) / TILE);
    }
    return OK;
}

/* ---- the inverse of a lower triangle, a block of rows at a time -------------------------------------------------------------- */

/* TILE columns left of the block: X = -L_II^-1 (L_I M), where M, the inverse so far, stands above and the panel holds L_I. */
static void inverse_item(void *context, int64_t item, int worker) {
    (void)worker;
    const Factor *f = context;
    int64_t j = item * TILE, cols = f->first - j < TILE ? f->first - j : TILE;
    double *x = f->h + f->first * f->n + j;
    for (int64_t r = 0; r < f->count; r++)
        memset(x + r * f->n, 0, (size_t)cols * sizeof *x);
    subtract_product_f64(f->count, cols, f->first - j, f->panel + j, f->n, f->h + j * f->n + j, f->n, x, f->n);
    for (int64_t r = 0; r < f->count; r++) {
        const double *l = f->panel + r * f->n + f->first;
        for (int64_t k = 0; k < r; k++)
            for (int64_t c = 0; c < cols; c++)
                x[r * f->n + c] -= l[k] * x[k * f->n + c];
        for (int64_t c = 0; c < cols; c++)
            x[r * f->n + c] /= l[r];
    }
}

static void invert_diagonal(const Factor *f) {
    for (int64_t r = 0; r < f->count; r++) {
        const double *l = f->panel + r * f->n + f->first;
        double *x = f->h + (f->first + r) * f->n + f->first;
        for (int64_t c = 0; c <= r; c++) {
            double sum = c == r ? 1.0 : 0.0;
            for (int64_t k = c; k < r; k++)
                sum -= l[k] * f->h[(f->first + k) * f->n + f->first + c];
            x[c] = sum / l[r];
        }
    }
}

static void clear_above(const Factor *f) {
    for (int64_t i = 0; i < f->n; i++)
        memset(f->h + i * f->n + i + 1, 0, (size_t)(f->n - 1 - i) * sizeof *f->h);
}

static void invert_lower(Factor *f, Pool *pool) {
    clear_above(f);
    for (f->first = 0; f->first < f->n; f->first += BLOCK) {
        f->count = f->n - f->first < BLOCK ? f->n - f->first : BLOCK;
        for (int64_t r = 0; r < f->count; r++)
            memcpy(f->panel + r * f->n, f->h + (f->first + r) * f->n, (size_t)(f->first + f->count) * sizeof *f->h);
        pool_run(pool, inverse_item, f, (f->first + TILE - 1) / TILE);
        invert_diagonal(f);
    }
}

static void reverse(double *h, int64_t count) {
    for (int64_t i = 0, j = count - 1; i < j; i++, j--) {
        double kept = h[i];
        h[i] = h[j];
        h[j] = kept;
    }
}

Status inverse_factor(double *h, int64_t n, Pool *pool, Error *err) {
    Factor f = {.h = h, .n = n, .panel = memory_alloc((size_t)(BLOCK * n) * sizeof *f.panel)};
    reverse(h, n * n);
    Status status = factor_lower(&f, pool, err);
    if (status == OK) {
        invert_lower(&f, pool);
        reverse(h, n * n);
    }
    memory_free(f.panel);
    return status;
}
