/* Status codes and error text.
 *
 * Every function that can fail returns a Status: 0 is success in the whole
 * program, and the value of a failure is the exit status that main() would
 * leave with. The text says what, wanted, got, and what to try. A failure is
 * written once, where it is found, with FAIL; callers pass it up with TRY and
 * may put a context in front of it with error_prefix. Only train/main.c exits.
 */
#ifndef NIBBLE_CORE_ERROR_H
#define NIBBLE_CORE_ERROR_H

typedef enum Status {
    OK = 0,
    ERR_FAILED = 1,       /* the work failed */
    ERR_USAGE = 2,        /* the command line or the config is wrong */
    ERR_INTERRUPTED = 130 /* a signal ended the run after it saved */
} Status;

typedef struct Error {
    Status status;
    char text[2048];
} Error;

/* Fills *err (which may be NULL) and returns status. Overwrites older text. */
Status error_set(Error *err, Status status, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Puts "<formatted>: " in front of the text already in *err. */
void error_prefix(Error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Return a failure from a function that has an `Error *err` in scope. The constant is repeated so that a compiler sees, without
 * knowing error_set, that what a caller tests is not OK. */
#define FAIL(...) return (void)error_set(err, ERR_FAILED, __VA_ARGS__), ERR_FAILED
#define FAIL_USAGE(...) return (void)error_set(err, ERR_USAGE, __VA_ARGS__), ERR_USAGE

/* Pass a failure up. */
#define TRY(expression)                            \
    do {                                           \
        Status try_status_ = (expression);         \
        if (try_status_ != OK) return try_status_; \
    } while (0)

/* Pass a failure to the owner's one cleanup block: needs `Status status` and a label `done`. */
#define TRY_GOTO(expression)         \
    do {                             \
        status = (expression);       \
        if (status != OK) goto done; \
    } while (0)

#endif
