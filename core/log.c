#include "core/log.h"

#include <stdarg.h>

static FILE *copy;          /* the one process-wide sink beside stderr; set once by the program */
static int own_rank, muted; /* which process this is; set once, when it joins others */

static void write_line(const char *prefix, const char *format, va_list args) {
    char line[4096];
    (void)vsnprintf(line, sizeof line, format, args);
    if (!muted && own_rank == 0) fprintf(stderr, "nibble: %s%s\n", prefix, line);
    if (!muted && own_rank > 0) fprintf(stderr, "nibble: rank %d: %s%s\n", own_rank, prefix, line);
    if (copy != NULL) {
        fprintf(copy, "%s%s\n", prefix, line);
        fflush(copy);
    }
}

void log_info(const char *format, ...) {
    va_list args;
    va_start(args, format);
    write_line("", format, args);
    va_end(args);
}

void log_warning(const char *format, ...) {
    va_list args;
    va_start(args, format);
    write_line("warning: ", format, args);
    va_end(args);
}

void log_note(const char *format, ...) {
    char line[4096];
    va_list args;
    if (copy == NULL) return;
    va_start(args, format);
    (void)vsnprintf(line, sizeof line, format, args);
    va_end(args);
    fprintf(copy, "%s\n", line);
    fflush(copy);
}

void log_rank(int rank, int shown) {
    own_rank = rank;
    muted = !shown;
}

void log_copy_to(FILE *file) {
    copy = file;
}
