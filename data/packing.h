/* Packing: which sequences stand in which micro-batch, in what order.
 *
 * The content and order of a global batch depend on seed and step only. An epoch
 * is shuffled by counter-based random numbers, cut into runs of windows, and
 * packed best-fit-decreasing inside each run, so memory does not grow with the
 * data and any step can be found again without replaying the ones before it in
 * anything but integers.
 */
#ifndef NIBBLE_DATA_PACKING_H
#define NIBBLE_DATA_PACKING_H

#include <stdint.h>

#include "core/error.h"
#include "data/dataset.h"

/* none: one sequence a micro-batch. Shuffled, those of much the same length stand together (32 of 4,096 drawn at random), so that the
 * micro-batches of a step, and the ranks that share it, cost much the same; the groups themselves come in random order. */
typedef enum Packing { PACKING_BEST_FIT, PACKING_NONE } Packing;

typedef struct PackPlan PackPlan;

/* One epoch's micro-batches; a sequence stands in it as often as its file's weight says. window: capacity in tokens (>= every sequence). seed: the run's. */
Status pack_epoch(PackPlan **out, const Dataset *dataset, Packing packing, int64_t window, uint64_t seed, int64_t epoch,
                  int shuffle, Error *err);
void pack_free(PackPlan *plan);
int64_t pack_count(const PackPlan *plan);
/* The sequences of micro-batch i, in order (borrowed). */
void pack_get(const PackPlan *plan, int64_t index, const int64_t **sequences, int64_t *count);
double pack_fill(const PackPlan *plan); /* used tokens / (micro-batches * window) */

#endif
