#include "kernels/cpu/simd/gemm.h"

#include "core/memory.h"

#define A_FLOATS (GEMM_TILE_ROWS * GEMM_K_STRIDE)
#define B_FLOATS (GEMM_K * GEMM_COLUMNS)
/* SIMD_WIDTH rows before they are transposed: along k, or along a tile's rows */
#define TURN_STRIDE (GEMM_TILE_ROWS + 16)
#define TURN_FLOATS (SIMD_WIDTH * TURN_STRIDE)
#define C_FLOATS (GEMM_TILE_ROWS * GEMM_TILE_COLUMNS)

_Static_assert(GEMM_TALL_ROWS *GEMM_COLUMNS <= C_FLOATS, "a tall tile fits");

typedef struct Buffers {
    float *a, *b, *turn, *c, *masked;
} Buffers;

static size_t thread_floats(int with_mask) {
    return (size_t)A_FLOATS + B_FLOATS + TURN_FLOATS + (size_t)C_FLOATS * (with_mask ? 2 : 1);
}

size_t gemm_workspace(int threads, int with_mask) {
    return (size_t)threads * thread_floats(with_mask) * sizeof(float);
}

static Buffers buffers_of(void *workspace, int worker, int with_mask) {
    float *at = (float *)workspace + (size_t)worker * thread_floats(with_mask);
    Buffers buf = {.a = at, .b = at + A_FLOATS};
    buf.turn = buf.b + B_FLOATS;
    buf.c = buf.turn + TURN_FLOATS;
    buf.masked = buf.c + C_FLOATS; /* exists only with_mask */
    return buf;
}

/* ---- one tile ----------------------------------------------------------------------------------------------------------- */

typedef struct Tile {
    int64_t m0, rows, n0, columns;
    int64_t stride; /* of c */
} Tile;

static int64_t pieces(int64_t whole, int64_t piece) {
    return (whole + piece - 1) / piece;
}

/* The contraction in blocks of about one length: every block is a pass over C. */
static int64_t block_length(int64_t k, int64_t longest) {
    return k <= longest ? longest : round_up(pieces(k, pieces(k, longest)), 32);
}

/* Rows of A panels along k (in pairs: half as many) are so far apart: a tall tile's are short (takes_tall). */
static int64_t k_stride(int64_t k) {
    return round_up(least(k, GEMM_K), 16) + 16;
}

#if GEMM_PAIRS
static void kernel_of_pairs(const float *a, int64_t a_stride, const float *b, float *c, int64_t c_stride, int64_t pairs,
                            int vectors) {
#if GEMM_TILES
    gemm_kernel_tiles(a, a_stride, b, c, c_stride, round_up(pairs, SIMD_WIDTH), vectors);
#else
    gemm_kernel_pairs(a, a_stride, b, c, c_stride, pairs, vectors);
#endif
}

/* Whether A lies in memory as its panels would: whole pairs (with tiles, whole tiles of them) along dense rows. */
static int is_direct(const Term *term) {
    const Operand *a = &term->a;
    return !term->a_rows_are_k && a->weight == NULL && a->rows == NULL && a->scale == 1.0f && operand_is_bf16(a) &&
           operand_is_bf16(&term->b) && a->stride % 2 == 0 && term->k % (GEMM_TILES ? 2 * SIMD_WIDTH : 2) == 0;
}

/* Rows [i, i + GEMM_PANEL_ROWS) of a tile: where they lie, or packed. Packed are all panels, or the last one that is not whole. */
typedef struct Panels {
    const float *direct; /* row 0 at this block of k */
    int64_t stride;
    int64_t whole; /* rows of whole panels that are read in place */
    const float *packed;
    int64_t packed_stride;
} Panels;

static Panels panels_of(const Term *term, const Tile *tile, const Buffers *buf, int64_t k0, int64_t k) {
    Panels panels = {.packed = buf->a, .packed_stride = k_stride((k + 1) / 2)};
    if (is_direct(term)) {
        panels.direct = (const float *)(const void *)((const bf16 *)term->a.data + tile->m0 * term->a.stride + k0);
        panels.stride = term->a.stride / 2;
        panels.whole = tile->rows / GEMM_PANEL_ROWS * GEMM_PANEL_ROWS;
    }
    if (term->a_rows_are_k)
        gemm_pairs_pack_a_turned(&term->a, tile->m0, tile->rows, k0, k, buf->turn, TURN_STRIDE, buf->a, panels.packed_stride);
    else if (panels.whole < tile->rows)
        gemm_pairs_pack_a(&term->a, tile->m0 + panels.whole, tile->rows - panels.whole, k0, k, buf->a, panels.packed_stride);
    return panels;
}

static void add_term_pairs(const Term *term, const Tile *tile, const Buffers *buf, float *c) {
    int64_t length = block_length(term->k, GEMM_PAIRS_K);
    for (int64_t k0 = 0; k0 < term->k; k0 += length) {
        int64_t k = least(length, term->k - k0), pairs = (k + 1) / 2;
        Panels a = panels_of(term, tile, buf, k0, k);
        for (int64_t n = 0; n < tile->columns; n += GEMM_COLUMNS) {
            int64_t columns = least(GEMM_COLUMNS, tile->columns - n);
            int vectors = (int)((columns + SIMD_WIDTH - 1) / SIMD_WIDTH);
            if (term->b_rows_are_n)
                gemm_pairs_pack_b_turned(&term->b, tile->n0 + n, columns, k0, k, vectors, buf->turn, TURN_STRIDE, buf->b);
            else
                gemm_pairs_pack_b(&term->b, tile->n0 + n, columns, k0, k, vectors, buf->b);
            for (int64_t i = 0; i < a.whole; i += GEMM_PANEL_ROWS)
                kernel_of_pairs(a.direct + i * a.stride, a.stride, buf->b, c + i * tile->stride + n, tile->stride, pairs,
                                vectors);
            for (int64_t i = a.whole; i < tile->rows; i += GEMM_PANEL_ROWS)
                kernel_of_pairs(a.packed + (i - a.whole) * a.packed_stride, a.packed_stride, buf->b, c + i * tile->stride + n,
                                tile->stride, pairs, vectors);
        }
    }
}
#endif

/* c [rows up to GEMM_ROWS, with tiles to GEMM_PANEL_ROWS][stride] += A B */
static void add_term(const Term *term, const Tile *tile, const Buffers *buf, float *c) {
#if GEMM_PAIRS
    if (operand_is_bf16(&term->a) && operand_is_bf16(&term->b)) {
        add_term_pairs(term, tile, buf, c);
        return;
    }
#endif
    int64_t stride = k_stride(term->k);
    int64_t length = block_length(term->k, GEMM_K);
    for (int64_t k0 = 0; k0 < term->k; k0 += length) {
        int64_t k = least(length, term->k - k0);
        if (term->a_rows_are_k)
            gemm_pack_a_turned(&term->a, tile->m0, tile->rows, k0, k, buf->turn, TURN_STRIDE, buf->a, stride);
        else
            gemm_pack_a(&term->a, tile->m0, tile->rows, k0, k, buf->a, stride);
        for (int64_t n = 0; n < tile->columns; n += GEMM_COLUMNS) {
            int64_t columns = least(GEMM_COLUMNS, tile->columns - n);
            int vectors = (int)((columns + SIMD_WIDTH - 1) / SIMD_WIDTH);
            if (term->b_rows_are_n)
                gemm_pack_b_turned(&term->b, tile->n0 + n, columns, k0, k, vectors, buf->turn, TURN_STRIDE, buf->b);
            else
                gemm_pack_b(&term->b, tile->n0 + n, columns, k0, k, vectors, buf->b);
            for (int64_t i = 0; i < tile->rows; i += GEMM_ROWS)
                gemm_kernel(buf->a + i * stride, stride, buf->b, c + i * tile->stride + n, tile->stride, k, vectors);
        }
    }
}

static void clear(const Tile *tile, float *c) {
    size_t bytes = (size_t)round_up(tile->columns, SIMD_WIDTH) * sizeof *c;
    for (int64_t i = 0; i < most(round_up(tile->rows, GEMM_ROWS), round_up(tile->rows, GEMM_PANEL_ROWS)); i++)
        memset(c + i * tile->stride, 0, bytes);
}

static void add_masked(const Term *term, const Tile *tile, float *masked, float *c) {
    for (int64_t i = 0; i < tile->rows; i++) {
        float *from = masked + i * tile->stride, *to = c + i * tile->stride;
        dropout_apply(term->mask, tile->m0 + i, tile->n0, tile->columns, from);
        for (int64_t n = 0; n < tile->columns; n++)
            to[n] += from[n];
    }
}

static void write_row(const Product *p, int64_t m, int64_t n0, int64_t columns, const float *c) {
    int64_t row = p->out_rows != NULL ? p->out_rows[m] : m;
    if (p->out_transposed) {
        float *to = (float *)p->out + n0 * p->out_stride + row;
        for (int64_t n = 0; n < columns; n++)
            to[n * p->out_stride] += c[n];
        return;
    }
    int64_t at = row * p->out_stride + n0;
    for (int64_t n = 0; n < columns; n += SIMD_WIDTH) {
        vf x = vf_load(c + n);
        if (p->split_scale != 0.0f) {
            x *= vf_set(p->split_scale);
            vf high = vf_round_bf16(x);
            vf_store_act(p->out, DTYPE_BF16, at + n, columns - n, high);
            vf_store_act(p->out, DTYPE_BF16, at + p->n + n, columns - n, x - high);
            continue;
        }
        if (p->bias != NULL) x += vf_load_act(p->bias, p->out_type, n0 + n, columns - n);
        if (p->accumulate) x += vf_load_act(p->out, DTYPE_F32, at + n, columns - n);
        vf_store_act(p->out, p->out_type, at + n, columns - n, x);
    }
}

void gemm_add_tile(const Term *term, int64_t m0, int64_t rows, int64_t n0, int64_t columns, float *c, int64_t stride,
                   void *workspace, int worker) {
    Tile tile = {.m0 = m0, .rows = rows, .n0 = n0, .columns = columns, .stride = stride};
    Buffers buf = buffers_of(workspace, worker, 0);
#if GEMM_TILES
    gemm_tiles_begin();
#endif
    add_term(term, &tile, &buf, c);
#if GEMM_TILES
    gemm_tiles_end();
#endif
}

float *gemm_tile_memory(void *workspace, int worker) {
    return buffers_of(workspace, worker, 0).c;
}

static void run_tile(const Product *p, const Tile *tile, const Buffers *buf) {
#if GEMM_TILES
    gemm_tiles_begin();
#endif
    clear(tile, buf->c);
    for (int t = 0; t < p->terms; t++) {
        const Term *term = &p->term[t];
        if (term->mask == NULL) {
            add_term(term, tile, buf, buf->c);
            continue;
        }
        clear(tile, buf->masked);
        add_term(term, tile, buf, buf->masked);
        add_masked(term, tile, buf->masked, buf->c);
    }
#if GEMM_TILES
    gemm_tiles_end();
#endif
    for (int64_t i = 0; i < tile->rows; i++)
        write_row(p, tile->m0 + i, tile->n0, tile->columns, buf->c + i * tile->stride);
}

/* ---- a few rows: dot products ------------------------------------------------------------------------------------------ */

/* sum[n][m] (a vector each) += B's row n . A's row m over all of k */
static void add_term_dots(const Term *term, const Tile *tile, const Buffers *buf) {
#if GEMM_PAIRS
    if (term->a.scale == 1.0f && gemm_dots_pairs_take(term, tile->rows, A_FLOATS)) {
        gemm_dots_pairs(term, tile->m0, tile->rows, tile->n0, tile->columns, buf->a, buf->c);
        return;
    }
#endif
    for (int64_t k0 = 0; k0 < term->k; k0 += GEMM_K) {
        int64_t k = least(GEMM_K, term->k - k0);
        for (int64_t m = 0; m < tile->rows; m++)
            operand_read(&term->a, tile->m0 + m, k0, k, buf->a + m * GEMM_K_STRIDE);
        for (int64_t n = 0; n < tile->columns; n++) {
            operand_read(&term->b, tile->n0 + n, k0, k, buf->turn);
            float *sum = buf->c + n * tile->rows * SIMD_WIDTH;
            for (int64_t m = 0; m < tile->rows; m++, sum += SIMD_WIDTH) {
                const float *row = buf->a + m * GEMM_K_STRIDE;
                vf even = vf_load(sum), odd = vf_zero();
                int64_t p = 0;
                for (; p + SIMD_WIDTH < k; p += 2 * SIMD_WIDTH) {
                    even = vf_fma(vf_load(row + p), vf_load(buf->turn + p), even);
                    odd = vf_fma(vf_load(row + p + SIMD_WIDTH), vf_load(buf->turn + p + SIMD_WIDTH), odd);
                }
                if (p < k) even = vf_fma(vf_load(row + p), vf_load(buf->turn + p), even);
                vf_store(sum, even + odd);
            }
        }
    }
}

static void run_dots(const Product *p, const Tile *tile, const Buffers *buf) {
    float row[GEMM_TILE_COLUMNS];
    memset(buf->c, 0, (size_t)(tile->rows * tile->columns * SIMD_WIDTH) * sizeof(float));
    for (int t = 0; t < p->terms; t++)
        add_term_dots(&p->term[t], tile, buf);
    for (int64_t m = 0; m < tile->rows; m++) {
        for (int64_t n = 0; n < tile->columns; n++)
            row[n] = vf_sum(vf_load(buf->c + (n * tile->rows + m) * SIMD_WIDTH));
        for (int64_t n = tile->columns; n % SIMD_WIDTH != 0; n++)
            row[n] = 0.0f;
        write_row(p, tile->m0 + m, tile->n0, tile->columns, row);
    }
}

static int takes_dots(const Product *p) {
    if (p->m > GEMM_DOT_ROWS) return 0;
    for (int t = 0; t < p->terms; t++)
        if (p->term[t].a_rows_are_k || !p->term[t].b_rows_are_n || p->term[t].mask != NULL) return 0;
    return 1;
}

/* ---- sharing among the threads ----------------------------------------------------------------------------------------- */

typedef struct Grid {
    int dots;
    int64_t tile_rows, tile_columns, across; /* tiles in a row of tiles */
    int64_t stride;
    int64_t first; /* number of this product's first tile */
} Grid;

typedef struct Job {
    const Product *products;
    int count, with_mask;
    Grid grid[GEMM_GROUP_MAX];
    void *workspace;
} Job;

/* Rows of A and C that stay in the second-level cache beside a panel of B, a tenth of it left to others. */
static int64_t rows_in_cache(const Exec *exec, int64_t row_bytes, int64_t most_rows) {
    int64_t room = (int64_t)(pool_cache(exec->pool) / 10 * 9) - B_FLOATS * (int64_t)sizeof(float);
    int64_t rows = room / row_bytes / GEMM_PANEL_ROWS * GEMM_PANEL_ROWS;
    return least(most_rows, most(rows, round_up(96, GEMM_PANEL_ROWS)));
}

int64_t gemm_tile_rows(const Exec *exec) {
    return rows_in_cache(exec, (GEMM_K + GEMM_TILE_COLUMNS) * (int64_t)sizeof(float), GEMM_TILE_ROWS);
}

#if GEMM_PAIRS
/* Whether tiles can be tall and narrow: what A's panels would need is in place, or short enough for a tall tile to pack. */
static int takes_tall(const Product *p) {
    if (!is_direct(&p->term[0])) return 0;
    for (int t = 1; t < p->terms; t++)
        if (!is_direct(&p->term[t]) && (p->term[t].a_rows_are_k || k_stride(p->term[t].k) * GEMM_TALL_ROWS > A_FLOATS))
            return 0;
    return 1;
}

/* One panel of B wide, so that B is decoded as seldom as can be; as many rows as give the threads equal shares. */
static int64_t tall_grid(const Exec *exec, const Product *p, Grid *grid) {
    int64_t tallest =
        rows_in_cache(exec, GEMM_K * 2 * (int64_t)sizeof(bf16) + GEMM_COLUMNS * (int64_t)sizeof(float), GEMM_TALL_ROWS);
    int64_t across = pieces(p->n, GEMM_COLUMNS), best = 0, best_cost = 0, threads = exec->config.threads;
    for (int64_t cuts = pieces(p->m, tallest), tried = 0; tried < 8; cuts++, tried++) {
        int64_t rows = round_up(pieces(p->m, cuts), GEMM_PANEL_ROWS), items = pieces(p->m, rows) * across;
        int64_t cost = pieces(items, threads) * (rows + GEMM_PACKING_ROWS);
        if (best == 0 || cost < best_cost) {
            best = rows;
            best_cost = cost;
        }
    }
    grid->tile_rows = best;
    grid->tile_columns = grid->stride = GEMM_COLUMNS;
    grid->across = across;
    return pieces(p->m, best) * across;
}
#endif

/* Tiles as large as the buffers, or smaller where every thread would not get a few. */
static int64_t choose_grid(const Exec *exec, const Product *p, Grid *grid) {
    if (p->m <= 0 || p->n <= 0) return 0;
    grid->dots = takes_dots(p);
#if GEMM_PAIRS
    if (!grid->dots && takes_tall(p)) return tall_grid(exec, p, grid);
#endif
    int64_t threads = exec->config.threads, tallest = p->rows_meet ? GEMM_TILE_ROWS : gemm_tile_rows(exec);
    int64_t rows = round_up(pieces(p->m, pieces(p->m, tallest)), GEMM_PANEL_ROWS), columns = GEMM_TILE_COLUMNS;
    if (grid->dots) columns = 256; /* long runs of the weight's memory for a thread, and a few for each */
    int64_t want = threads > 1 ? 4 * threads : 1;
    while (columns > GEMM_COLUMNS && pieces(p->m, rows) * pieces(p->n, columns) < want)
        columns /= 2;
    while (rows > 64 && !p->rows_meet && pieces(p->m, rows) * pieces(p->n, columns) < want)
        rows = round_up(rows / 2, GEMM_PANEL_ROWS);
    grid->tile_rows = rows;
    grid->tile_columns = columns;
    grid->stride = GEMM_TILE_COLUMNS;
    grid->across = pieces(p->n, columns);
    return pieces(p->m, rows) * grid->across;
}

static void run_item(void *context, int64_t item, int worker) {
    const Job *job = context;
    int i = job->count - 1;
    while (item < job->grid[i].first)
        i--;
    const Product *p = &job->products[i];
    const Grid *grid = &job->grid[i];
    int64_t number = item - grid->first;
    Tile tile = {.m0 = number / grid->across * grid->tile_rows, .n0 = number % grid->across * grid->tile_columns};
    tile.stride = grid->stride;
    tile.rows = least(grid->tile_rows, p->m - tile.m0);
    tile.columns = least(grid->tile_columns, p->n - tile.n0);
    Buffers buf = buffers_of(job->workspace, worker, job->with_mask);
    if (grid->dots)
        run_dots(p, &tile, &buf);
    else
        run_tile(p, &tile, &buf);
}

void gemm_run(const Exec *exec, const Product *products, int count, void *workspace) {
    Job job = {.products = products, .count = count, .workspace = workspace};
    int64_t items = 0;
    for (int i = 0; i < count; i++) {
        for (int t = 0; t < products[i].terms; t++)
            if (products[i].term[t].mask != NULL) job.with_mask = 1;
        job.grid[i].first = items;
        items += choose_grid(exec, &products[i], &job.grid[i]);
    }
    pool_run(exec->pool, run_item, &job, items);
}
