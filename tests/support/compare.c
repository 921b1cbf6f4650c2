#include "tests/support/compare.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

double element_of(DType type, const void *values, int64_t i) {
    double value;
    dtype_convert(&value, DTYPE_F64, (const char *)values + (size_t)i * dtype_size(type), type, 1);
    return value;
}

void assert_close(const char *what, DType type, const void *got, const void *want, int64_t count, double tolerance,
                  const char *reason) {
    double largest = 0.0;
    for (int64_t i = 0; i < count; i++)
        largest = fmax(largest, fabs(element_of(type, want, i)));
    double allowed = tolerance * (largest > 0.0 ? largest : 1.0);
    for (int64_t i = 0; i < count; i++) {
        double difference = fabs(element_of(type, got, i) - element_of(type, want, i));
        if (!(difference <= allowed)) {
            fail_msg("%s[%lld]: want %.17g, got %.17g; off by %g, allowed %g (%s)", what, (long long)i,
                     element_of(type, want, i), element_of(type, got, i), difference, allowed, reason);
        }
    }
}

void assert_untouched(const char *what, const void *from, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) {
        if (((const uint8_t *)from)[i] != 0xFF) fail_msg("%s: byte %zu was written", what, i);
    }
}

void assert_ok(Status status, const Error *err) {
    if (status != OK) fail_msg("%s", err->text);
}

void assert_refused(Status status, const Error *err, const char *part) {
    if (status == OK) fail_msg("accepted; want a refusal with \"%s\"", part);
    if (strstr(err->text, part) == NULL) fail_msg("refused with \"%s\"; want \"%s\" in it", err->text, part);
}

void assert_gradient(const char *what, double *values, int64_t count, const double *gradient, double before,
                     Objective *objective, void *context) {
    double largest = 0.0;
    for (int64_t i = 0; i < count; i++)
        largest = fmax(largest, fabs(gradient[i] - before));
    if (!(largest > 0.0)) fail_msg("%s: the gradient is zero or NaN", what);
    int64_t stride = count > 48 ? count / 48 : 1;
    for (int64_t i = 0; i < count; i += stride) {
        const double step = 1e-5;
        double value = values[i];
        values[i] = value + step;
        double above = objective(context);
        values[i] = value - step;
        double below = objective(context);
        values[i] = value;
        double want = (above - below) / (2.0 * step), got = gradient[i] - before;
        /* step^2 f'''/6 and 2^-52 f/step are both about 1e-10 for objectives of size 1 to 10 */
        if (!(fabs(got - want) <= 1e-6 * largest)) {
            fail_msg("%s[%lld]: finite difference %.12g, got %.12g; largest gradient %g", what, (long long)i, want, got,
                     largest);
        }
    }
}

double dot_f64(const double *a, const double *b, int64_t count) {
    double sum = 0.0;
    for (int64_t i = 0; i < count; i++)
        sum += a[i] * b[i];
    return sum;
}
