/* The run folder: opened new, overwritten only when asked, or resumed. */
#ifndef NIBBLE_TRAIN_RUN_FOLDER_H
#define NIBBLE_TRAIN_RUN_FOLDER_H

#include <stdint.h>

#include "train/config.h"

/* Decides before anything heavy happens. A folder that is not empty needs resume or overwrite; either is refused for a folder
 * that is not a run's. A resume wants what decides the numbers to be the same as in the folder's config.json, and names the keys
 * that differ. Nothing is written. */
Status run_folder_check(const Config *config, int resume, Error *err);
/* Makes the folder (emptied when overwriting) and writes config.json; a resumed run has both, and loses what a kill left half written. */
Status run_folder_open(const Config *config, int resume, Error *err);
/* A hash of what decides the numbers of a run: all keys but where it writes, how often it saves and evaluates, and memory. */
uint64_t run_config_hash(const Config *config);

#endif
