/* Messages for people, to stderr. Results go to stdout and never through here. */
#ifndef NIBBLE_CORE_LOG_H
#define NIBBLE_CORE_LOG_H

#include <stdio.h>

/* A line for the user: "nibble: <text>". */
void log_info(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* A line that starts with "nibble: warning: ". */
void log_warning(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Only into the copy. */
void log_note(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* This process is one of several ranks: lines start with "rank N: " unless N is 0, and reach stderr only when shown. */
void log_rank(int rank, int shown);
/* Redirects copies of every line into a file as well (NULL: stop). The stream stays the caller's. */
void log_copy_to(FILE *file);

#endif
