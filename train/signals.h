/* SIGINT, SIGTERM and SIGUSR1 ask the run to save and stop; a second SIGINT ends the process at once. While a run is being
 * prepared there is nothing to save yet: then any of the three ends the process at once, with the same status 130.
 */
#ifndef NIBBLE_TRAIN_SIGNALS_H
#define NIBBLE_TRAIN_SIGNALS_H

/* From now on they wait until signals_pending is asked. */
void signals_install(void);
/* From now on, until signals_install, they end the process with status 130. */
void signals_install_fatal(void);
/* 0, or the number of the signal that asked to stop. */
int signals_pending(void);
/* Forgets the signal that asked, once it was obeyed. */
void signals_clear(void);
const char *signals_name(int number);

#endif
