#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"

/* Process-wide by nature: the environment is, and so is a death. */
static pthread_once_t parsed = PTHREAD_ONCE_INIT;
static struct {
    int armed, is_kill;
    FaultKind kind;
    uint64_t at;
} plan;
static _Atomic uint64_t counts[FAULT_KINDS];

static void parse(void) {
    const char *text = getenv("NIBBLE_FAULT");
    if (text == NULL || text[0] == 0) return;
    static const char *const kinds[FAULT_KINDS] = {"write", "fsync", "rename", "step"};
    char action[8], kind[8], after;
    unsigned long long at;
    if (sscanf(text, "%7[a-z]@%7[a-z]:%llu%c", action, kind, &at, &after) == 3 && at > 0) {
        plan.at = at;
        plan.is_kill = strcmp(action, "kill") == 0;
        for (int i = 0; i < FAULT_KINDS; i++)
            if (strcmp(kind, kinds[i]) == 0) {
                plan.kind = (FaultKind)i;
                plan.armed = plan.is_kill || (strcmp(action, "enospc") == 0 && i == FAULT_WRITE);
            }
    }
    if (!plan.armed) {
        fprintf(stderr, "nibble: NIBBLE_FAULT: want kill@(write|fsync|rename|step):N or enospc@write:N, got \"%s\"\n", text);
        abort();
    }
}

int fault_is_near(FaultKind kind) {
    pthread_once(&parsed, parse);
    return plan.armed && plan.kind == kind && atomic_load(&counts[kind]) + 1 >= plan.at;
}

int fault_point(FaultKind kind) {
    pthread_once(&parsed, parse);
    uint64_t number = atomic_fetch_add(&counts[kind], 1) + 1;
    if (!plan.armed || plan.kind != kind || number < plan.at) return 0;
    if (!plan.is_kill) return 1;
    if (number == plan.at) (void)raise(SIGKILL);
    return 0;
}

uint64_t fault_count(FaultKind kind) {
    return atomic_load(&counts[kind]);
}
