/* nibble compare */
#include <stdio.h>

#include "core/file.h"
#include "core/memory.h"
#include "train/commands.h"
#include "train/compare.h"
#include "train/options.h"
#include "train/signals.h"

static const CommandHelp help = {
    .usage = "nibble compare EXPERIMENT.json [options]",
    .summary =
        "Trains and rounds the arms of an experiment under one harness; writes compare.json and compare.html beside the "
        "runs. Called again it goes on where it was.",
    .example = "nibble compare configs/experiments/stories3m.json",
};

static Status write_results(const Compare *compare, const Text *json, Error *err) {
    Text page = {0};
    char *json_path = path_join(compare->output, "compare.json"), *page_path = path_join(compare->output, "compare.html");
    compare_html(compare, &page);
    Status status = file_write_atomic(json_path, json->data, json->length, err);
    if (status == OK) status = file_write_atomic(page_path, page.data, page.length, err);
    memory_free(json_path);
    memory_free(page_path);
    text_free(&page);
    return status;
}

Status command_compare(int argc, char **argv, Error *err) {
    int as_json = 0, positionals, helped;
    int64_t threads = 0;
    const char *path;
    const OptionSpec specs[] = {
        {"json", OPTION_FLAG, NULL, "prints the results as JSON", &as_json},
        {"threads", OPTION_INTEGER, "N", "threads; 0: all that this process may use", &threads},
    };
    TRY(options_parse(argc, argv, &help, specs, (int)(sizeof specs / sizeof *specs), &path, 1, 1, &positionals, &helped, err));
    if (helped) return OK;
    if (threads < 0 || threads > 1024) FAIL_USAGE("--threads: want 0 (all) to 1024, got %lld", (long long)threads);
    signals_install_fatal();
    Compare *compare = memory_calloc(1, sizeof *compare);
    Text json = {0}, table = {0};
    Status status = compare_read(compare, path, err);
    if (status == OK) status = folder_create(compare->output, err);
    if (status == OK) status = compare_run(compare, (int)threads, err);
    if (status == OK) {
        compare_json(compare, &json);
        compare_table(compare, &table);
        status = write_results(compare, &json, err);
        const Text *shown = as_json ? &json : &table;
        (void)fwrite(shown->data, 1, shown->length, stdout);
    }
    text_free(&json);
    text_free(&table);
    compare_free(compare);
    memory_free(compare);
    return status;
}
