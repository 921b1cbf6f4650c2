/* nibble train */
#include <stdio.h>
#include <string.h>

#include "core/log.h"
#include "core/memory.h"
#include "train/commands.h"
#include "train/options.h"
#include "train/signals.h"
#include "train/trainer.h"

static const CommandHelp help = {
    .usage = "nibble train CONFIG.json [options]",
    .summary = "Trains, and writes a run folder: adapter/, checkpoints/, metrics.jsonl, report.html.",
    .example =
        "nibble train configs/train/tinyllama.json --set train.lr=1e-4 --set output.path=runs/second\n"
        "nibble train configs/train/tinyllama.json --resume",
};

typedef struct TrainOptions {
    OptionList set;
    int resume, overwrite, log_all;
    const char *device;
    int64_t threads, gpus, ranks;
} TrainOptions;

static Status check_options(const TrainOptions *options, Error *err) {
    if (options->gpus > 0) FAIL_USAGE("--gpus is not supported yet: this build runs on cpu");
    if (options->ranks > 1) FAIL_USAGE("--ranks is not supported yet: this build runs one rank");
    if (options->log_all) FAIL_USAGE("--log-all is not supported yet: there is one rank, and its log is shown");
    if (options->threads < 0 || options->threads > 1024)
        FAIL_USAGE("--threads: want 0 (all) to 1024, got %lld", (long long)options->threads);
    if (options->resume && options->overwrite) FAIL_USAGE("--resume and --overwrite contradict each other; give one");
    return OK;
}

/* --set, --device and --overwrite as one list of overrides. */
static int collect(const TrainOptions *options, const char **list, char *device, size_t capacity) {
    int count = 0;
    for (int i = 0; i < options->set.count; i++)
        list[count++] = options->set.items[i];
    if (options->device != NULL) {
        (void)snprintf(device, capacity, "device=\"%s\"", options->device);
        list[count++] = device;
    }
    if (options->overwrite) list[count++] = "output.overwrite=true";
    return count;
}

Status command_train(int argc, char **argv, Error *err) {
    TrainOptions options = {0};
    const OptionSpec specs[] = {
        {"set", OPTION_LIST, "KEY=VALUE", "sets a config key", &options.set},
        {"resume", OPTION_FLAG, NULL, "goes on from the newest valid checkpoint of the run folder", &options.resume},
        {"overwrite", OPTION_FLAG, NULL, "replaces an earlier run in the same folder", &options.overwrite},
        {"device", OPTION_STRING, "NAME", "auto, cpu, cuda or emu", &options.device},
        {"threads", OPTION_INTEGER, "N", "threads; 0: all that this process may use", &options.threads},
        {"gpus", OPTION_INTEGER, "N", "GPUs of this machine (not supported yet)", &options.gpus},
        {"ranks", OPTION_INTEGER, "N", "CPU ranks on this machine (not supported yet)", &options.ranks},
        {"log-all", OPTION_FLAG, NULL, "shows every rank's log (not supported yet)", &options.log_all},
    };
    const char *path;
    int positionals, helped;
    TRY(options_parse(argc, argv, &help, specs, (int)(sizeof specs / sizeof specs[0]), &path, 1, 1, &positionals, &helped,
                      err));
    if (helped) return OK;
    TRY(check_options(&options, err));
    const char *overrides[OPTION_LIST_MAX + 2];
    char device[64];
    int count = collect(&options, overrides, device, sizeof device);
    signals_install_fatal();
    Trainer *trainer = memory_calloc(1, sizeof *trainer);
    Status status = trainer_open(trainer, path, overrides, count, options.resume, (int)options.threads, err);
    if (status == OK) status = trainer_run(trainer, err);
    trainer_close(trainer);
    memory_free(trainer);
    return status;
}
