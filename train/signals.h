/* SIGINT, SIGTERM and SIGUSR1 ask the run to save and stop; a second SIGINT ends the process at once. While a run is being
 * prepared there is nothing to save yet: then any of the three ends the process at once, with the same status 130.
 */
#ifndef NIBBLE_TRAIN_SIGNALS_H
#define NIBBLE_TRAIN_SIGNALS_H

#include <signal.h>

/* From now on they wait until signals_pending is asked. */
void signals_install(void);
/* Also notes the number of a signal there; NULL: no longer. */
void signals_note_at(volatile sig_atomic_t *place);
/* From now on, until signals_install, they end the process with status 130. */
void signals_install_fatal(void);
/* 0, or the number of the signal that asked to stop. */
int signals_pending(void);
/* +1, -1; nests. Meanwhile a signal waits, and signals_pending says 0. */
void signals_hold(int delta);
/* A signal that another rank got. */
void signals_adopt(int number);
/* Forgets the signal that asked, once it was obeyed. */
void signals_clear(void);
const char *signals_name(int number);

#endif
