#include "train/signals.h"

#include <signal.h>
#include <string.h>
#include <unistd.h>

static volatile sig_atomic_t pending, waits; /* a signal handler can reach nothing else */
static volatile sig_atomic_t *volatile note;
static int held;

static void on_signal(int number) {
    if (note != NULL) *note = number;
    if (!waits || (number == SIGINT && pending == SIGINT)) _exit(130);
    pending = number;
}

static void install(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    (void)sigaction(SIGINT, &action, NULL);
    (void)sigaction(SIGTERM, &action, NULL);
    (void)sigaction(SIGUSR1, &action, NULL);
}

void signals_install(void) {
    waits = 1;
    install();
}

void signals_note_at(volatile sig_atomic_t *place) {
    note = place;
}

void signals_install_fatal(void) {
    waits = 0;
    install();
}

int signals_pending(void) {
    return held > 0 ? 0 : pending;
}

void signals_hold(int delta) {
    held += delta;
}

void signals_adopt(int number) {
    if (!pending) pending = number;
}

void signals_clear(void) {
    pending = 0;
}

const char *signals_name(int number) {
    return number == SIGINT ? "SIGINT" : number == SIGTERM ? "SIGTERM" : number == SIGUSR1 ? "SIGUSR1" : "a signal";
}
