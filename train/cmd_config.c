/* nibble config: the schema, the defaults, and a check of a config without running it. */
#include <stdio.h>

#include "train/commands.h"
#include "train/config.h"
#include "train/options.h"

static Status check(const char *path, const OptionList *sets, int print, Error *err) {
    Config config;
    TRY(config_load(&config, path, sets->items, sets->count, err));
    if (print) {
        Text text = {0};
        config_print(&config, &text);
        fputs(text.data, stdout);
        text_free(&text);
    } else {
        printf("%s: ok\n", path);
    }
    config_free(&config);
    return OK;
}

Status command_config(int argc, char **argv, Error *err) {
    int schema = 0, defaults = 0, print = 0, positional_count, helped;
    const char *path = NULL;
    OptionList sets = {0};
    const OptionSpec specs[] = {
        {"schema", OPTION_FLAG, NULL, "print the JSON Schema (draft 2020-12) of a config", &schema},
        {"defaults", OPTION_FLAG, NULL, "print every key with its default and what it does", &defaults},
        {"check", OPTION_STRING, "FILE", "check a config; reads no weights and no data", &path},
        {"set", OPTION_LIST, "KEY=VALUE", "override a key of the checked config", &sets},
        {"print", OPTION_FLAG, NULL, "with --check: print the resolved config", &print},
    };
    const CommandHelp help = {
        .usage = "nibble config --schema | --defaults | --check FILE [--set KEY=VALUE]... [--print]",
        .summary = "Describes configs, or checks one without running it.",
        .example = "nibble config --defaults > my.json\nnibble config --check my.json --set train.lr=1e-4",
    };
    TRY(options_parse(argc, argv, &help, specs, sizeof specs / sizeof *specs, NULL, 0, 0, &positional_count, &helped, err));
    if (helped) return OK;
    if (schema + defaults + (path != NULL) != 1) FAIL_USAGE("want one of --schema, --defaults and --check FILE");
    if (path == NULL && (print || sets.count > 0)) FAIL_USAGE("--set and --print work with --check FILE only");
    if (path != NULL) return check(path, &sets, print, err);
    Text text = {0};
    if (schema)
        config_print_schema(&text);
    else
        config_print_defaults(&text);
    fputs(text.data, stdout);
    text_free(&text);
    return OK;
}
