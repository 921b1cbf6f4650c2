/* The program: finds the subcommand, prints the error, and is the only place that exits. */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/text.h"
#include "train/comm.h"
#include "train/commands.h"

typedef struct Command {
    const char *name;
    Status (*run)(int argc, char **argv, Error *err);
    const char *summary;
    int alone; /* as one of several ranks it would do the same work again, over the others' files */
} Command;

static const Command commands[] = {
    {"train", command_train, "fine-tune a model as a config says; writes a run folder", 0},
    {"quantize", command_quantize, "a Hugging Face folder to a 4-bit or 8-bit one that transformers loads", 1},
    {"export", command_export, "merge adapters, write another format, and say what survived", 1},
    {"eval", command_eval, "loss and perplexity of a model on a file", 0},
    {"generate", command_generate, "continue a prompt", 1},
    {"chat", command_chat, "talk to a model", 1},
    {"plan", command_plan, "memory and speed of a run, without weights", 0},
    {"inspect", command_inspect, "what is in a model, an adapter, a checkpoint or the data", 0},
    {"compare", command_compare, "quantization experiments under one harness", 1},
    {"distill-data", command_distill_data, "text sampled from a model", 1},
    {"synth", command_synth, "a model folder of any shape with random weights", 1},
    {"bench", command_bench, "kernels and whole steps against the machine's own limits", 0},
    {"config", command_config, "the JSON Schema, the defaults, a check without running", 0},
};
enum { COMMAND_COUNT = sizeof commands / sizeof *commands };

static void print_usage(FILE *file) {
    fprintf(file, "usage: nibble COMMAND [arguments]\n\nFine-tunes large language models with QLoRA.\n\ncommands:\n");
    for (int i = 0; i < COMMAND_COUNT; i++)
        fprintf(file, "  %-14s%s\n", commands[i].name, commands[i].summary);
    fprintf(
        file,
        "\n`nibble COMMAND --help` shows the options of one, with an example.\n"
        "Exit status: 0 done, 1 the work failed, 2 the command line or the config is wrong, 130 interrupted after saving.\n");
}

static Status find_command(const char *name, const Command **command, Error *err) {
    const char *names[COMMAND_COUNT];
    for (int i = 0; i < COMMAND_COUNT; i++) {
        names[i] = commands[i].name;
        if (strcmp(names[i], name) != 0) continue;
        *command = &commands[i];
        return OK;
    }
    const char *near = nearest_word(name, names, COMMAND_COUNT);
    if (near != NULL) FAIL_USAGE("\"%.60s\" is not a command; did you mean `nibble %s`?", name, near);
    FAIL_USAGE("\"%.60s\" is not a command; `nibble --help` lists them", name);
}

static Status refuse_ranks(const char *command, Error *err) {
    CommLaunch launch;
    TRY(comm_launch_read(&launch, err));
    if (launch.size == 1) return OK;
    FAIL_USAGE("nibble %s runs as one process, and this is rank %d of %d (%s's environment variables): leave the launcher out",
               command, launch.rank, launch.size, launch.by);
}

static Status dispatch(int argc, char **argv, Error *err) {
    static char help_option[] = "--help";
    const Command *command = NULL;
    const char *word = argc > 1 ? argv[1] : NULL;
    if (word == NULL) {
        print_usage(stderr);
        FAIL_USAGE("want a command, got none");
    }
    if (strcmp(word, "--version") == 0) {
        printf("nibble %s\n", NIBBLE_VERSION);
        return OK;
    }
    int is_help = strcmp(word, "help") == 0;
    if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0 || (is_help && argc == 2)) {
        print_usage(stdout);
        return OK;
    }
    TRY(find_command(is_help ? argv[2] : word, &command, err));
    if (command->alone && !is_help) TRY(refuse_ranks(command->name, err));
    if (!is_help) return command->run(argc - 1, argv + 1, err);
    char *arguments[] = {argv[2], help_option, NULL};
    return command->run(2, arguments, err);
}

/* A file that is opened while 0, 1 or 2 is closed would get that number, and messages would be written into it. */
static void open_standard_streams(void) {
    int fd;
    do
        fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd <= 2);
    if (fd > 2) (void)close(fd);
}

/* Results that did not reach their reader are a failure, a full disk above all; a reader that left needs no message. The
 * errno of the write that failed may be long gone, so a pipe without a reader is recognised by poll. */
static Status flush_results(Status status, Error *err) {
    if (fflush(stdout) == 0 && !ferror(stdout)) return status;
    if (status != OK) return status;
    struct pollfd output = {.fd = STDOUT_FILENO, .events = POLLOUT};
    if (poll(&output, 1, 0) == 1 && (output.revents & POLLERR) != 0) return ERR_FAILED;
    return error_set(err, ERR_FAILED, "cannot write the results to standard output; is the disk full?");
}

int main(int argc, char **argv) {
    Error err = {0};
    open_standard_streams();
    /* A run must not die in the middle of a step because the reader of its output did: writes fail instead. */
    (void)signal(SIGPIPE, SIG_IGN);
    Status status = flush_results(dispatch(argc, argv, &err), &err);
    if (status != OK && err.text[0] != 0) fprintf(stderr, "nibble: error: %s\n", err.text);
    return (int)status;
}
