/* Folders that a command or a run leaves behind. They are written beside their place and renamed: one that is there is whole. */
#ifndef NIBBLE_TRAIN_OUTPUT_FOLDER_H
#define NIBBLE_TRAIN_OUTPUT_FOLDER_H

#include "core/dtype.h"
#include "core/error.h"

/* ERR_USAGE unless a model folder may be written at `folder`: nothing or an empty folder is there, or, with `overwrite`, what
 * looks like a model folder (it has a config.json). */
Status output_folder_check(const char *folder, int overwrite, Error *err);

/* Whether `input` (a file or folder; NULL: no) is `folder` or lies in it: what replaces the folder would remove it. */
int output_folder_holds(const char *folder, const char *input);

/* Calls fill for a new folder "<folder>.tmp-<pid>", which then takes the place of `folder`; without `replace` that must still
 * be absent or empty. On failure `folder` is as it was and nothing is left beside it. */
Status output_folder_write(const char *folder, int replace, Status (*fill)(void *context, const char *folder, Error *err),
                           void *context, Error *err);

/* Copies tokenizer, chat template and generation settings, as far as `model` has them. */
Status output_folder_copy_settings(const char *model, const char *folder, Error *err);

/* Writes config.json of `model` into `folder`: as it stands where nothing changes, else with dtype (or torch_dtype, as the source
 * spells it) set to `type` and, with `plain`, without quantization_config. */
Status output_folder_write_config(const char *model, const char *folder, DType type, int plain, Error *err);

/* Puts one more member, "key": value, behind the others of the folder's config.json, which keeps its text. */
Status output_folder_add_to_config(const char *folder, const char *member, Error *err);

#endif
