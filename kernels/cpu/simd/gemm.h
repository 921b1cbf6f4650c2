/* Matrix products for the linear group, the head and nothing else that is not a plain product.
 *
 *   C[m,n] = sum over terms of mask_t(A_t[m,k] B_t[k,n]),  then + bias, rounded once or added to an FP32 gradient
 *
 * The structure is Goto and van de Geijn's (2008): a tile of C stays with one thread; for every block of the contraction
 * the thread packs its rows of A, then one panel of B at a time, and a register-blocked kernel runs over both.
 *
 *   tile of C [TILE_ROWS, TILE_COLUMNS] FP32; or [TALL_ROWS, one panel], where A's rows are BF16 pairs as they lie in memory
 *     A panels: GEMM_ROWS rows each, every row contiguous along k (stride GEMM_K_STRIDE: rows start in different cache sets)
 *     B panel:  [k][GEMM_COLUMNS], in L1/L2
 *
 * Operands are decoded while they are packed, so a quantized weight never exists in a wider type in memory. Threads share
 * tiles, never the contraction, and an element of C sums in one order whatever the tile: results do not depend on the
 * number of threads. Products of a few rows (generation) take dot products straight from the weight's rows instead.
 */
#ifndef NIBBLE_KERNELS_CPU_SIMD_GEMM_H
#define NIBBLE_KERNELS_CPU_SIMD_GEMM_H

#include "kernels/cpu/simd/operand.h"

/* Dot products of BF16 pairs: an instruction set of its own (VDPBF16PS), for terms whose two operands are BF16 numbers. */
#ifdef __AVX512BF16__
#define GEMM_PAIRS 1
#else
#define GEMM_PAIRS 0
#endif

/* Products of whole tiles (AMX): 16 rows by 16 columns, 32 deep, of the same pairs. */
#ifdef SIMD_TILES
#define GEMM_TILES 1
#else
#define GEMM_TILES 0
#endif

#define gemm_run SIMD_SYMBOL(gemm_run)
#define gemm_kernel SIMD_SYMBOL(gemm_kernel)
#define gemm_workspace SIMD_SYMBOL(gemm_workspace)
#define gemm_pack_a SIMD_SYMBOL(gemm_pack_a)
#define gemm_pack_a_turned SIMD_SYMBOL(gemm_pack_a_turned)
#define gemm_pack_b SIMD_SYMBOL(gemm_pack_b)
#define gemm_pack_b_turned SIMD_SYMBOL(gemm_pack_b_turned)
#define gemm_kernel_pairs SIMD_SYMBOL(gemm_kernel_pairs)
#define gemm_tiles_begin SIMD_SYMBOL(gemm_tiles_begin)
#define gemm_tiles_end SIMD_SYMBOL(gemm_tiles_end)
#define gemm_kernel_tiles SIMD_SYMBOL(gemm_kernel_tiles)
#define gemm_dots_pairs SIMD_SYMBOL(gemm_dots_pairs)
#define gemm_dots_pairs_take SIMD_SYMBOL(gemm_dots_pairs_take)
#define gemm_pairs_pack_a SIMD_SYMBOL(gemm_pairs_pack_a)
#define gemm_pairs_pack_a_turned SIMD_SYMBOL(gemm_pairs_pack_a_turned)
#define gemm_pairs_pack_b SIMD_SYMBOL(gemm_pairs_pack_b)
#define gemm_pairs_pack_b_turned SIMD_SYMBOL(gemm_pairs_pack_b_turned)

#define GEMM_ROWS 6
#define GEMM_PANEL_ROWS (GEMM_TILES ? 32 : GEMM_ROWS) /* panels of pairs are completed to so many rows by zeros */
#define GEMM_VECTORS (SIMD_WIDTH == 16 ? 4 : 2)
#define GEMM_COLUMNS (GEMM_VECTORS * SIMD_WIDTH)
#define GEMM_K 320 /* longest block of the contraction */
#define GEMM_K_STRIDE (GEMM_K + 16)
#define GEMM_TILE_ROWS 384
#define GEMM_TILE_COLUMNS 256
/* Rows of a tile that is one panel of B wide, where A needs no packing: a multiple of GEMM_PANEL_ROWS;
 * fewer where the cache is small. */
#define GEMM_TALL_ROWS (GEMM_TILES ? 1024 : 576)
/* A panel of B is packed in the time that so many rows are multiplied with it. */
#define GEMM_PACKING_ROWS (GEMM_TILES ? 128 : 48)
#define GEMM_TERMS 6
#define GEMM_DOT_ROWS 8 /* at most so many rows take dot products */

typedef struct Term {
    Operand a, b;
    int a_rows_are_k; /* a is stored [k, m], else [m, k] */
    int b_rows_are_n; /* b is stored [n, k] (a weight in the forward direction), else [k, n] */
    int64_t k;
    const DropoutMask *mask; /* of the term's result (row m, column n); NULL: none */
} Term;

typedef struct Product {
    int64_t m, n;
    int terms;
    Term term[GEMM_TERMS];
    const void *bias; /* type out_type [n], or NULL */
    void *out;
    DType out_type;          /* F32 or BF16 */
    int64_t out_stride;      /* elements from row to row */
    const int32_t *out_rows; /* row m goes to out_rows[m]; NULL: m */
    int accumulate;          /* F32 out: added to */
    int out_transposed;      /* element (m, n) goes to [n][m]; accumulating only */
    int rows_meet;           /* out_rows names a row more than once: m, at most GEMM_TILE_ROWS, stays in one tile */
    float split_scale;       /* not 0: BF16 out [m][2n]: x = split_scale * c as the nearest BF16 number, then as x minus that */
} Product;

#define GEMM_GROUP_MAX 10 /* products of one call */

/* Bytes of workspace of one call; with_mask when any term has a mask. */
size_t gemm_workspace(int threads, int with_mask);

#define gemm_add_tile SIMD_SYMBOL(gemm_add_tile)
/* c [rows up to GEMM_PANEL_ROWS][stride] += rows [m0, ..) and columns [n0, ..) of a term without a mask; rows is at most
 * GEMM_TILE_ROWS. workspace: as for gemm_run, of which gemm_tile_memory is not touched. */
void gemm_add_tile(const Term *term, int64_t m0, int64_t rows, int64_t n0, int64_t columns, float *c, int64_t stride,
                   void *workspace, int worker);
/* As many rows of a tile, at most GEMM_TILE_ROWS, as the processor's cache is good for. */
#define gemm_tile_rows SIMD_SYMBOL(gemm_tile_rows)
int64_t gemm_tile_rows(const Exec *exec);
/* GEMM_TILE_ROWS * GEMM_TILE_COLUMNS floats of a worker's, which a tile of C may be. */
#define gemm_tile_memory SIMD_SYMBOL(gemm_tile_memory)
float *gemm_tile_memory(void *workspace, int worker);

/* Independent products at once (they share the threads). Nothing is done for m or n of 0. */
void gemm_run(const Exec *exec, const Product *products, int count, void *workspace);

/* ---- the parts, for attention, whose products have something between them ---- */

/* c[GEMM_ROWS][vectors * SIMD_WIDTH] += a panel [GEMM_ROWS][k] x b panel [k][vectors * SIMD_WIDTH]; a's rows are a_stride
 * apart. */
void gemm_kernel(const float *a, int64_t a_stride, const float *b, float *c, int64_t c_stride, int64_t k, int vectors);

/* Rows [m0, m0 + rows) of A over [k0, k0 + k), each contiguous along k, `stride` (at least k up to SIMD_WIDTH) apart; rows
 * up to a multiple of GEMM_ROWS are zeros. */
void gemm_pack_a(const Operand *a, int64_t m0, int64_t rows, int64_t k0, int64_t k, float *to, int64_t stride);
/* The same when A's rows run along k. turn: SIMD_WIDTH rows, turn_stride (at least rows up to SIMD_WIDTH) apart. `to` has
 * room for rows up to a multiple of SIMD_WIDTH. */
void gemm_pack_a_turned(const Operand *a, int64_t m0, int64_t rows, int64_t k0, int64_t k, float *turn, int64_t turn_stride,
                        float *to, int64_t stride);
/* Columns [n0, n0 + columns) of B over [k0, k0 + k) as one panel [k][vectors * SIMD_WIDTH]; surplus columns are zeros. */
void gemm_pack_b(const Operand *b, int64_t n0, int64_t columns, int64_t k0, int64_t k, int vectors, float *to);
/* The same when B's rows are n. turn_stride is at least k up to SIMD_WIDTH; the panel has room for as many rows. */
void gemm_pack_b_turned(const Operand *b, int64_t n0, int64_t columns, int64_t k0, int64_t k, int vectors, float *turn,
                        int64_t turn_stride, float *to);

#if GEMM_PAIRS
/* ---- the same with pairs: two BF16 numbers of neighbouring k, the earlier in the low half, where one float was ----
 * k and k0 count elements, strides and rows of panels count pairs; an odd k is completed by a zero, and with tiles pairs are
 * to a multiple of SIMD_WIDTH; rows are to GEMM_PANEL_ROWS. k is at most GEMM_PAIRS_K. */
#define GEMM_PAIRS_K (2 * GEMM_K)
void gemm_kernel_pairs(const float *a, int64_t a_stride, const float *b, float *c, int64_t c_stride, int64_t pairs,
                       int vectors);
void gemm_pairs_pack_a(const Operand *a, int64_t m0, int64_t rows, int64_t k0, int64_t k, float *to, int64_t stride);
void gemm_pairs_pack_a_turned(const Operand *a, int64_t m0, int64_t rows, int64_t k0, int64_t k, float *turn,
                              int64_t turn_stride, float *to, int64_t stride);
void gemm_pairs_pack_b(const Operand *b, int64_t n0, int64_t columns, int64_t k0, int64_t k, int vectors, float *to);
void gemm_pairs_pack_b_turned(const Operand *b, int64_t n0, int64_t columns, int64_t k0, int64_t k, int vectors, float *turn,
                              int64_t turn_stride, float *to);

/* x as BF16 operands of such products, which take subnormal numbers for zeros anyway. */
SIMD_INLINE void store_operands(bf16 *to, vf x) {
    _mm256_storeu_si256((void *)to, (__m256i)_mm512_cvtneps_pbh(x));
}

#if GEMM_TILES
/* Between the two this thread's tile registers hold the kernel's shapes. */
void gemm_tiles_begin(void);
void gemm_tiles_end(void);
/* As gemm_kernel_pairs with GEMM_PANEL_ROWS rows; pairs is a multiple of SIMD_WIDTH, completed by zeros in both panels. */
void gemm_kernel_tiles(const float *a, int64_t a_stride, const float *b, float *c, int64_t c_stride, int64_t pairs,
                       int vectors);
#endif

/* Whether a term of `rows` rows can take the next; room: floats that it may use. */
int gemm_dots_pairs_take(const Term *term, int64_t rows, int64_t room);
/* sums[n][m] (a vector each) += B's row n0 + n . A's row m0 + m. */
void gemm_dots_pairs(const Term *term, int64_t m0, int64_t rows, int64_t n0, int64_t columns, float *room, float *sums);
#endif

#endif
