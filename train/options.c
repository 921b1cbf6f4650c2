#include "train/options.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/text.h"

#define HELP_COLUMN 30
#define OPTIONS_MAX 64

static const char *kind_default_argument(OptionKind kind) {
    switch (kind) {
        case OPTION_INTEGER:
        case OPTION_NUMBER: return "N";
        case OPTION_STRING:
        case OPTION_LIST: return "TEXT";
        case OPTION_FLAG: break;
    }
    return NULL;
}

static void print_default(const OptionSpec *spec) {
    const char *const *text = spec->value;
    const int64_t *integer = spec->value;
    const double *number = spec->value;
    if (spec->kind == OPTION_STRING && *text != NULL) printf(" [default: %s]", *text);
    if (spec->kind == OPTION_INTEGER && *integer > 0) printf(" [default: %lld]", (long long)*integer);
    if (spec->kind == OPTION_NUMBER && *number > 0.0) printf(" [default: %g]", *number);
    if (spec->kind == OPTION_LIST) printf(" (repeatable)");
}

static void print_help(const CommandHelp *help, const OptionSpec *specs, int spec_count) {
    printf("usage: %s\n\n%s\n\noptions:\n", help->usage, help->summary);
    for (int i = 0; i < spec_count; i++) {
        const char *argument = specs[i].argument != NULL ? specs[i].argument : kind_default_argument(specs[i].kind);
        int width = printf("  --%s%s%s", specs[i].name, argument == NULL ? "" : " ", argument == NULL ? "" : argument);
        if (width >= HELP_COLUMN)
            printf("\n%*s", HELP_COLUMN, "");
        else
            printf("%*s", HELP_COLUMN - width, "");
        printf("%s", specs[i].help);
        print_default(&specs[i]);
        printf("\n");
    }
    printf("  --help%*sthis text\n", HELP_COLUMN - 8, "");
    if (help->example == NULL) return;
    printf("\nexample:\n");
    for (const char *line = help->example; *line != 0;) {
        size_t length = strcspn(line, "\n");
        printf("  %.*s\n", (int)length, line);
        line += length + (line[length] != 0);
    }
}

static Status fail_unknown(const char *command, const char *name, size_t length, const OptionSpec *specs, int spec_count,
                           Error *err) {
    const char *names[OPTIONS_MAX + 1];
    char word[64];
    size_t count = 0;
    for (int i = 0; i < spec_count && i < OPTIONS_MAX; i++)
        names[count++] = specs[i].name;
    names[count++] = "help";
    (void)snprintf(word, sizeof word, "%.*s", (int)length, name);
    const char *near = nearest_word(word, names, count);
    if (near != NULL) FAIL_USAGE("nibble %s has no option --%s; did you mean --%s?", command, word, near);
    FAIL_USAGE("nibble %s has no option --%s; `nibble %s --help` lists them", command, word, command);
}

static Status store_value(const OptionSpec *spec, const char *text, Error *err) {
    char *end = NULL;
    errno = 0;
    switch (spec->kind) {
        case OPTION_FLAG: FAIL_USAGE("--%s takes no value, got \"%.60s\"", spec->name, text);
        case OPTION_STRING: *(const char **)spec->value = text; return OK;
        case OPTION_INTEGER: {
            long long value = strtoll(text, &end, 10);
            if (end == text || *end != 0 || errno != 0)
                FAIL_USAGE("--%s: want a whole number, got \"%.60s\"", spec->name, text);
            *(int64_t *)spec->value = value;
            return OK;
        }
        case OPTION_NUMBER: {
            double value = strtod(text, &end);
            if (end == text || *end != 0 || !isfinite(value))
                FAIL_USAGE("--%s: want a number, got \"%.60s\"", spec->name, text);
            *(double *)spec->value = value;
            return OK;
        }
        case OPTION_LIST: {
            OptionList *list = spec->value;
            if (list->count == OPTION_LIST_MAX) FAIL_USAGE("--%s: given more than %d times", spec->name, OPTION_LIST_MAX);
            list->items[list->count++] = text;
            return OK;
        }
    }
    FAIL("--%s: its table names a kind of option that does not exist", spec->name);
}

/* argv[*at] is --name or --name=value; moves *at over a value that stands by itself. */
static Status parse_option(int argc, char **argv, int *at, const OptionSpec *specs, int spec_count, Error *err) {
    const char *name = argv[*at] + 2;
    size_t length = strcspn(name, "=");
    const OptionSpec *spec = NULL;
    for (int i = 0; i < spec_count && spec == NULL; i++)
        if (strlen(specs[i].name) == length && strncmp(specs[i].name, name, length) == 0) spec = &specs[i];
    if (spec == NULL) return fail_unknown(argv[0], name, length, specs, spec_count, err);
    if (name[length] == '=') return store_value(spec, name + length + 1, err);
    if (spec->kind == OPTION_FLAG) {
        *(int *)spec->value = 1;
        return OK;
    }
    if (*at + 1 >= argc) {
        const char *argument = spec->argument != NULL ? spec->argument : kind_default_argument(spec->kind);
        FAIL_USAGE("--%s: want a value (%s) after it, got the end of the command line", spec->name, argument);
    }
    return store_value(spec, argv[++*at], err);
}

static int asks_for_help(int argc, char **argv) {
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) return 1;
    return 0;
}

Status options_parse(int argc, char **argv, const CommandHelp *help, const OptionSpec *specs, int spec_count,
                     const char **positionals, int min, int max, int *positional_count, int *helped, Error *err) {
    int count = 0, only_positionals = 0;
    *helped = asks_for_help(argc, argv);
    *positional_count = 0;
    if (*helped) {
        print_help(help, specs, spec_count);
        return OK;
    }
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i];
        if (!only_positionals && strcmp(word, "--") == 0) {
            only_positionals = 1;
        } else if (!only_positionals && strncmp(word, "--", 2) == 0) {
            TRY(parse_option(argc, argv, &i, specs, spec_count, err));
        } else if (!only_positionals && word[0] == '-' && word[1] != 0) {
            FAIL_USAGE("nibble %s has no option %.60s; options are long (--name), `nibble %s --help` lists them", argv[0], word,
                       argv[0]);
        } else if (count == max) {
            FAIL_USAGE("nibble %s: \"%.200s\" is one argument too many; usage: %s", argv[0], word, help->usage);
        } else {
            positionals[count++] = word;
        }
    }
    *positional_count = count;
    if (count < min)
        FAIL_USAGE("nibble %s: want %d argument%s, got %d; usage: %s", argv[0], min, min == 1 ? "" : "s", count, help->usage);
    return OK;
}
