#include "core/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Both format aside first: the arguments may point into the text that is being replaced. */

Status error_set(Error *err, Status status, const char *format, ...) {
    if (err == NULL) return status;
    char text[sizeof err->text];
    va_list args;
    va_start(args, format);
    (void)vsnprintf(text, sizeof text, format, args);
    va_end(args);
    err->status = status;
    memcpy(err->text, text, strlen(text) + 1);
    return status;
}

void error_prefix(Error *err, const char *format, ...) {
    if (err == NULL) return;
    char text[sizeof err->text];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (n >= 0 && (size_t)n < sizeof text - 2) {
        size_t used = (size_t)n;
        memcpy(text + used, ": ", 2);
        used += 2;
        size_t kept = strnlen(err->text, sizeof text - used - 1);
        memcpy(text + used, err->text, kept);
        text[used + kept] = 0;
    }
    memcpy(err->text, text, strlen(text) + 1);
}
