/* Inside of packing: what packing.c asks where best fit leaves room. */
#ifndef NIBBLE_DATA_PACKING_INTERNAL_H
#define NIBBLE_DATA_PACKING_INTERNAL_H

#include <stdint.h>

/* Packs `count` items into windows of `window` tokens. lengths: in decreasing order, each 1 to `window`. Fills last (per window:
 * its last item) and before (per item: the one before it in its window, -1). Returns the number of windows; `at_most`, with
 * last and before undefined, when no packing in fewer than that many was found. A function of the lengths only. */
int64_t pack_tight(const int64_t *lengths, int64_t count, int64_t window, int64_t at_most, int64_t *last, int64_t *before);

#endif
