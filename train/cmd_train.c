/* nibble train */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "core/log.h"
#include "core/memory.h"
#include "train/commands.h"
#include "train/comm.h"
#include "train/device.h"
#include "train/launch.h"
#include "train/options.h"
#include "train/rank_log.h"
#include "train/signals.h"
#include "train/trainer.h"

static const CommandHelp help = {
    .usage = "nibble train CONFIG.json [options]",
    .summary = "Trains, and writes a run folder: adapter/, checkpoints/, metrics.jsonl, report.html.",
    .example =
        "nibble train configs/train/tinyllama.json --set train.lr=1e-4 --set output.path=runs/second\n"
        "nibble train configs/train/tinyllama.json --resume\n"
        "nibble train configs/train/llama-3.1-8b.json --gpus 8\n"
        "mpirun -n 4 nibble train configs/train/tinyllama.json --device cpu",
};

#define RANKS_MAX 1024 /* of one machine */

typedef struct TrainOptions {
    OptionList set;
    int resume, overwrite, log_all;
    const char *device;
    int64_t threads, gpus, ranks;
} TrainOptions;

static Status check_options(const TrainOptions *options, Error *err) {
    if (options->gpus < 0 || options->gpus > RANKS_MAX)
        FAIL_USAGE("--gpus: want 1 to %d, got %lld", RANKS_MAX, (long long)options->gpus);
    if (options->gpus > 0 && options->ranks > 0)
        FAIL_USAGE("--gpus starts ranks on GPUs and --ranks on the CPU; give one of them");
    if (options->ranks < 0 || options->ranks > RANKS_MAX)
        FAIL_USAGE("--ranks: want 1 to %d, got %lld", RANKS_MAX, (long long)options->ranks);
    if (options->threads < 0 || options->threads > 1024)
        FAIL_USAGE("--threads: want 0 (all) to 1024, got %lld", (long long)options->threads);
    if (options->resume && options->overwrite) FAIL_USAGE("--resume and --overwrite contradict each other; give one");
    return OK;
}

/* --device; --gpus means CUDA where it says nothing else. NULL: what the config says. */
static const char *device_name(const TrainOptions *options) {
    const char *name = options->device;
    return options->gpus > 0 && (name == NULL || strcmp(name, "auto") == 0) ? "cuda" : name;
}

/* --set, --device and --overwrite as one list of overrides. */
static int collect(const TrainOptions *options, const char **list, char *device, size_t capacity) {
    int count = 0;
    for (int i = 0; i < options->set.count; i++)
        list[count++] = options->set.items[i];
    if (device_name(options) != NULL) {
        (void)snprintf(device, capacity, "device=\"%.40s\"", device_name(options));
        list[count++] = device;
    }
    if (options->overwrite) list[count++] = "output.overwrite=true";
    return count;
}

static Status launch(const TrainOptions *options, int argc, char **argv, Error *err) {
    int count;
    char **words = launch_words(argc, argv, "ranks", &count);
    Status status = launch_mpi((int)options->ranks, count, words, err);
    memory_free(words);
    return status;
}

/* One process a GPU. That there is one is found out here, once, and not by every rank. */
static Status launch_on_gpus(const TrainOptions *options, int argc, char **argv, Error *err) {
    int count;
    Device device;
    char option[64];
    const char *name = device_name(options);
    if (strcmp(name, "cpu") == 0) FAIL_USAGE("--gpus and --device cpu contradict each other; --ranks starts CPU ranks");
    TRY(device_open(&device, name, NULL, err));
    device_close(&device);
    char **others = launch_words(argc, argv, "gpus", &count);
    char **words = launch_words(count, others, "device", &count);
    words = memory_resize(words, ((size_t)count + 2) * sizeof *words);
    (void)snprintf(option, sizeof option, "--device=%.40s", name);
    words[count++] = option;
    words[count] = NULL;
    Status status = launch_gpus((int)options->gpus, count, words, err);
    memory_free(words);
    memory_free(others);
    return status;
}

static Status run(const TrainOptions *options, Comm *comm, const char *path, const char *const *overrides, int count,
                  Error *err) {
    RankLog log;
    Trainer *trainer = memory_calloc(1, sizeof *trainer);
    rank_log_begin(&log, comm, options->log_all);
    if (comm != NULL)
        log_info("rank %d of %d, number %d of %d on this machine, through %s", comm_rank(comm), comm_size(comm),
                 comm_local_rank(comm), comm_local_size(comm), comm_transport(comm));
    Status status =
        trainer_open_rank(trainer, comm, path, overrides, count, options->resume, launch_threads(comm, options->threads), err);
    if (status == OK) status = rank_log_open(&log, comm, trainer->config.output.path, err);
    if (status == OK) status = trainer_run(trainer, err);
    if (status != OK && err != NULL && comm != NULL) log_note("ended: %s", err->text);
    int told = comm_told(comm);
    comm_set_end(comm, status);
    /* before the memory goes that a transport may still read and write */
    comm_close(comm, status == OK || status == ERR_INTERRUPTED ? NULL : err != NULL ? err->text : "");
    trainer_close(trainer);
    memory_free(trainer);
    if (told && err != NULL) err->text[0] = 0; /* once is enough */
    rank_log_close(&log);
    return status;
}

/* The device that the config asks for: GPU ranks talk through NCCL. What is wrong in it is said when all ranks are together. */
static const char *device_of(const char *path, const char *const *overrides, int count) {
    static const char *const devices[] = {"cuda", "emu"};
    const char *device = NULL;
    Config config;
    if (config_load(&config, path, overrides, count, NULL) != OK) return NULL;
    for (size_t i = 0; i < sizeof devices / sizeof *devices; i++)
        if (strcmp(config.device, devices[i]) == 0) device = devices[i];
    config_free(&config);
    return device;
}

Status command_train(int argc, char **argv, Error *err) {
    TrainOptions options = {0};
    const OptionSpec specs[] = {
        {"set", OPTION_LIST, "KEY=VALUE", "sets a config key", &options.set},
        {"resume", OPTION_FLAG, NULL, "goes on from the newest valid checkpoint of the run folder", &options.resume},
        {"overwrite", OPTION_FLAG, NULL, "replaces an earlier run in the same folder", &options.overwrite},
        {"device", OPTION_STRING, "NAME", "auto, cpu, cuda or emu", &options.device},
        {"threads", OPTION_INTEGER, "N", "threads; 0: all that this process may use", &options.threads},
        {"gpus", OPTION_INTEGER, "N", "GPUs of this machine, a rank on each, through NCCL", &options.gpus},
        {"ranks", OPTION_INTEGER, "N", "CPU ranks on this machine, through MPI's mpirun", &options.ranks},
        {"log-all", OPTION_FLAG, NULL, "shows the messages of all ranks, not only of rank 0", &options.log_all},
    };
    const char *path;
    int positionals, helped;
    TRY(options_parse(argc, argv, &help, specs, (int)(sizeof specs / sizeof specs[0]), &path, 1, 1, &positionals, &helped,
                      err));
    if (helped) return OK;
    TRY(check_options(&options, err));
    if (options.ranks > 1) return launch(&options, argc, argv, err);
    if (options.gpus > 1) return launch_on_gpus(&options, argc, argv, err);
    const char *overrides[OPTION_LIST_MAX + 2];
    char device[64];
    int count = collect(&options, overrides, device, sizeof device);
    Comm *comm;
    signals_install_fatal();
    TRY(comm_open(&comm, device_of(path, overrides, count), err));
    return run(&options, comm, path, overrides, count, err);
}
