/* Ceilings that are kept on disk, per processor: a run that starts while the machine is busy measures too low a one, so the best
 * that was ever measured counts.
 *
 * $XDG_CACHE_HOME/nibble/ceilings, or ~/.cache/nibble/ceilings: a line "RATE VARIANT TYPE THREADS PROCESSOR" each (FLOP/s, or
 * bytes/s with "memory read"), rewritten whole. A file that cannot be read or written is as good as none.
 */
#ifndef NIBBLE_TRAIN_CEILING_STORE_H
#define NIBBLE_TRAIN_CEILING_STORE_H

/* The best of what was kept and `measured` (NaN: nothing was), which is kept where it is better. */
double ceiling_best(const char *variant, const char *type, int threads, double measured);

#endif
