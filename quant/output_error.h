/* What a change of a linear's weight does to its outputs, over all the inputs of a calibration at once:
 *
 *   sum over inputs x of |D x|^2 = sum over rows d of D of d H d^T,   H = sum of x x^T
 */
#ifndef NIBBLE_QUANT_OUTPUT_ERROR_H
#define NIBBLE_QUANT_OUTPUT_ERROR_H

#include "core/error.h"
#include "kernels/ops.h"

typedef struct OutputError OutputError;

/* For up to max_cols inputs. backend and exec (F32) are borrowed. Takes about 2 * 256 * max_cols floats and what the product needs. */
Status output_error_create(OutputError **out, const Backend *backend, const Exec *exec, int64_t max_cols, Error *err);
void output_error_free(OutputError *error); /* NULL is fine */

/* Fills one row of D, [cols]: touches nothing else, may run on any thread. scratch [2 * cols] is the thread's own. */
typedef void OutputErrorRow(void *context, int64_t row, float *d, float *scratch);

/* hessian [cols, cols], whole, aligned to 64 bytes. *sum is overwritten, in double, rows added in order. */
Status output_error_sum(OutputError *error, const float *hessian, int64_t rows, int64_t cols, OutputErrorRow *row,
                        void *context, double *sum, Error *err);

#endif
