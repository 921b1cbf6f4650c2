/* nibble inspect: what is in a model, an adapter, a checkpoint, a run or the data. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "train/commands.h"
#include "train/inspect.h"
#include "train/options.h"

static const CommandHelp help = {
    .usage = "nibble inspect PATH | --data CONFIG.json | --step N RUN  [options]",
    .summary =
        "PATH: a model folder, a .safetensors or .gguf file, an adapter, a checkpoint or a run folder. --data: the first\n"
        "examples as the trainer sees them; trained tokens stand in [[double brackets]] (on a terminal they are green, and\n"
        "special tokens bold). --step: the examples of one optimizer step of a run, counted from 1 as in metrics.jsonl.",
    .example =
        "nibble inspect models/TinyLlama-1.1B --tensors\n"
        "nibble inspect --data configs/train/tinyllama.json --count 2\n"
        "nibble inspect --step 10 runs/first",
};

typedef struct InspectOptions {
    const char *path, *data;
    OptionList set;
    int64_t step, count, threads; /* step -1: not given */
    int tensors, json;
} InspectOptions;

/* --data takes a config, because what is trained depends on the model; people give it the data. */
static Status refuse_data_file(const char *path, Error *err) {
    static const char *const endings[] = {".jsonl", ".csv", ".tsv", ".txt", ".gz", ".zst", ".parquet"};
    size_t n = strlen(path);
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
        size_t m = strlen(endings[i]);
        if (n > m && strcasecmp(path + n - m, endings[i]) == 0)
            FAIL_USAGE("--data: want a config, which names the model too; give --data CONFIG.json --set data.path=%s", path);
    }
    return OK;
}

static Status check_options(const InspectOptions *o, Error *err) {
    int step = o->step != -1;
    if (o->data == NULL && o->path == NULL) FAIL_USAGE("want a PATH, --data CONFIG.json, or --step N with a run folder");
    if (o->data != NULL && (o->path != NULL || step)) FAIL_USAGE("--data stands alone; leave PATH and --step out");
    if (o->data != NULL) TRY(refuse_data_file(o->data, err));
    if (o->set.count > 0 && o->data == NULL) FAIL_USAGE("--set changes the config of --data; give both");
    if (o->count != 3 && o->data == NULL) FAIL_USAGE("--count belongs to --data");
    if (o->count < 0) FAIL_USAGE("--count: want 0 or more, got %lld", (long long)o->count);
    if (o->tensors && (o->data != NULL || step)) FAIL_USAGE("--tensors lists the tensors of a PATH");
    if (o->threads < 0 || o->threads > 1024) FAIL_USAGE("--threads: want 0 (all) to 1024, got %lld", (long long)o->threads);
    return OK;
}

Status command_inspect(int argc, char **argv, Error *err) {
    InspectOptions o = {.step = -1, .count = 3};
    const OptionSpec specs[] = {
        {"data", OPTION_STRING, "CONFIG", "show the data of this config", &o.data},
        {"set", OPTION_LIST, "KEY=VALUE", "with --data: sets a config key", &o.set},
        {"count", OPTION_INTEGER, "N", "with --data: examples to print", &o.count},
        {"step", OPTION_INTEGER, "N", "the examples of optimizer step N of a run folder", &o.step},
        {"tensors", OPTION_FLAG, NULL, "list every tensor, not only the largest", &o.tensors},
        {"threads", OPTION_INTEGER, "N", "threads; 0: all that this process may use", &o.threads},
        {"json", OPTION_FLAG, NULL, "print one JSON object", &o.json},
    };
    int count, helped;
    TRY(options_parse(argc, argv, &help, specs, sizeof specs / sizeof *specs, &o.path, 0, 1, &count, &helped, err));
    if (helped) return OK;
    TRY(check_options(&o, err));
    InspectOutput out = {.json = o.json,
                         .all_tensors = o.tensors,
                         .count = o.count,
                         .colour = !o.json && isatty(STDOUT_FILENO) && getenv("NO_COLOR") == NULL};
    if (out.json) text_adds(&out.text, "{");
    Status status = o.data != NULL ? inspect_data(&out, o.data, o.set.items, o.set.count, (int)o.threads, err)
                    : o.step != -1 ? inspect_step(&out, o.path, o.step, (int)o.threads, err)
                                   : inspect_path(&out, o.path, err);
    if (out.json) text_adds(&out.text, "}\n");
    if (status == OK) (void)fwrite(out.text.data, 1, out.text.length, stdout);
    text_free(&out.text);
    return status;
}
