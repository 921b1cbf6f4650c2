/* Command-line options in the GNU long style, from one table a command: parsing, --help and messages agree. */
#ifndef NIBBLE_TRAIN_OPTIONS_H
#define NIBBLE_TRAIN_OPTIONS_H

#include <stdint.h>

#include "core/error.h"

typedef enum OptionKind { OPTION_FLAG, OPTION_STRING, OPTION_INTEGER, OPTION_NUMBER, OPTION_LIST } OptionKind;

#define OPTION_LIST_MAX 64
typedef struct OptionList {
    const char *items[OPTION_LIST_MAX];
    int count;
} OptionList;

typedef struct OptionSpec {
    const char *name; /* without the dashes */
    OptionKind kind;
    const char *argument; /* what --help calls the value; NULL for flags */
    const char *help;
    void *value; /* int *, const char **, int64_t *, double *, OptionList *: holds the default */
} OptionSpec;

typedef struct CommandHelp {
    const char *usage; /* "nibble train CONFIG.json [options]" */
    const char *summary;
    const char *example; /* one or more whole lines */
} CommandHelp;

/* Parses `--name value`, `--name=value`, `--`, and positionals (at least min, at most max of them, into positionals).
 * --help prints and sets *helped. An unknown option fails with ERR_USAGE and the nearest known one. */
Status options_parse(int argc, char **argv, const CommandHelp *help, const OptionSpec *specs, int spec_count,
                     const char **positionals, int min, int max, int *positional_count, int *helped, Error *err);

#endif
