/* Products and factors of dense matrices that the calibrated quantizers need. Row-major; every result is the same on any number
 * of threads. */
#ifndef NIBBLE_QUANT_FACTOR_H
#define NIBBLE_QUANT_FACTOR_H

#include <stdint.h>

#include "core/error.h"
#include "core/pool.h"

/* c [rows, cols] -= a [rows, depth] b [depth, cols]; *_stride: elements from one row to the next. Every element's sum runs over
 * depth in order. */
void subtract_product_f32(int64_t rows, int64_t cols, int64_t depth, const float *a, int64_t a_stride, const float *b,
                          int64_t b_stride, float *c, int64_t c_stride);
void subtract_product_f64(int64_t rows, int64_t cols, int64_t depth, const double *a, int64_t a_stride, const double *b,
                          int64_t b_stride, double *c, int64_t c_stride);

/* Overwrites the symmetric positive definite h [n, n] with the upper triangular U (zeros below) for which h^-1 = U^T U: what a
 * Cholesky factorization of the inverse gives, from one factorization and one triangular inverse, without the inverse. With J
 * the reversal of rows and columns, J h J = L L^T gives h = (J L J) (J L J)^T and U = J L^-1 J. Fails, naming the pivot, when h
 * is not positive definite. Takes 64 n doubles beside h. */
Status inverse_factor(double *h, int64_t n, Pool *pool, Error *err);

#endif
