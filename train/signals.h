/* SIGINT, SIGTERM and SIGUSR1 ask the run to save and stop; a second SIGINT ends the process at once. */
#ifndef NIBBLE_TRAIN_SIGNALS_H
#define NIBBLE_TRAIN_SIGNALS_H

void signals_install(void);
/* 0, or the number of the signal that asked to stop. */
int signals_pending(void);
const char *signals_name(int number);

#endif
