/* Comparisons that say what differed, how much was allowed, and why. */
#ifndef NIBBLE_TESTS_SUPPORT_COMPARE_H
#define NIBBLE_TESTS_SUPPORT_COMPARE_H

#include <stdint.h>

#include "core/dtype.h"
#include "core/error.h"

/* max |got - want| <= tolerance * max |want| (or tolerance itself when want is all zero); NaN fails. */
void assert_close(const char *what, DType type, const void *got, const void *want, int64_t count, double tolerance,
                  const char *reason);
/* Every byte is still the NaN fill of a scope. */
void assert_untouched(const char *what, const void *from, size_t bytes);
/* A status of OK, or the error's text as the failure. */
void assert_ok(Status status, const Error *err);
/* A failure whose text contains `part`. */
void assert_refused(Status status, const Error *err, const char *part);

/* Element i as a double. */
double element_of(DType type, const void *values, int64_t i);

/* A scalar function of the values that a test perturbs. */
typedef double Objective(void *context);
/* Compares gradient[i] - before with the central difference of the objective in values[i], for up to 48 elements spread over
 * all of them, relative to the largest gradient. values are restored. */
void assert_gradient(const char *what, double *values, int64_t count, const double *gradient, double before,
                     Objective *objective, void *context);
/* sum_i a[i] * b[i], plainly */
double dot_f64(const double *a, const double *b, int64_t count);

#endif
