/* The subcommands of the binary. Each parses its own options (train/options.h), prints results to stdout and messages to
 * stderr, and returns the exit status. `argv[0]` is the command's name. */
#ifndef NIBBLE_TRAIN_COMMANDS_H
#define NIBBLE_TRAIN_COMMANDS_H

#include "core/error.h"

#define NIBBLE_VERSION "0.1.0"

Status command_train(int argc, char **argv, Error *err);
Status command_quantize(int argc, char **argv, Error *err);
Status command_export(int argc, char **argv, Error *err);
Status command_eval(int argc, char **argv, Error *err);
Status command_chat(int argc, char **argv, Error *err);
Status command_generate(int argc, char **argv, Error *err);
Status command_plan(int argc, char **argv, Error *err);
Status command_inspect(int argc, char **argv, Error *err);
Status command_synth(int argc, char **argv, Error *err);
Status command_bench(int argc, char **argv, Error *err);
Status command_compare(int argc, char **argv, Error *err);
Status command_distill_data(int argc, char **argv, Error *err);
Status command_config(int argc, char **argv, Error *err);

#endif
