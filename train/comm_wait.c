/* Letting work go on, waiting for it, and noticing who does not take part. */
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "core/log.h"
#include "core/text.h"
#include "train/comm_internal.h"
#include "train/signals.h"

#define SPINS 200             /* polls before sleeping: a processor of one's own is answered within microseconds */
#define SLEEP_NS 50000        /* between polls afterwards: other ranks may need this processor */
#define QUIET_S 0.2           /* a wait shorter than this sends no signs */
#define SIGNAL_PATIENCE_S 0.5 /* after a signal from a launcher that is about to end us: then the missing are named */

/* ---- signs of life -------------------------------------------------------------------------------------------------------------- */

static double sign_period(const Comm *comm) {
    double period = comm->timeout / 8.0;
    return period < 1.0 ? period : 1.0;
}

static void send_sign(Comm *comm) {
    double now = clock_seconds();
    if (now - comm->last_sign < sign_period(comm)) return;
    comm->last_sign = now;
    CommSign sign = {.kind = COMM_SIGN_ALIVE, .rank = comm->place.rank, .step = comm->step};
    (void)snprintf(sign.text, sizeof sign.text, "%s", comm->phase);
    if (comm->note != NULL) comm->note->beat = now;
    const Comm *through = comm->bootstrap != NULL ? comm->bootstrap : comm;
    if (through->plugin->send_sign != NULL) through->plugin->send_sign(through->self, &sign);
}

void comm_tick(Comm *comm) {
    if (comm == NULL || comm->broken) return;
    if (clock_seconds() - comm->last_sign < comm->timeout / 8.0) return;
    send_sign(comm);
}

static Status hear(Comm *comm, Error *err) {
    CommSign sign;
    const Comm *through = comm->bootstrap != NULL ? comm->bootstrap : comm;
    for (int r = 0; comm->board != NULL && r < comm->place.size; r++)
        if (comm->board[r].beat > comm->heard[r]) comm->heard[r] = comm->board[r].beat;
    while (through->plugin->receive_sign != NULL && through->plugin->receive_sign(through->self, &sign)) {
        if (sign.rank < 0 || sign.rank >= comm->place.size) continue;
        comm->heard[sign.rank] = clock_seconds();
        if (sign.kind != COMM_SIGN_LEAVES) continue;
        comm->told = comm->place.rank != 0; /* the one that leaves says why, and rank 0 that it left */
        comm->lost[sign.rank] = 1;
        comm->broken = 1;
        FAIL("rank %d left at step %lld: %s", (int)sign.rank, (long long)sign.step, sign.text);
    }
    return OK;
}

/* "2", "2 and 3", "1, 2 and 3": those not heard of since `since`; returns how many. */
static int name_missing(const Comm *comm, double since, char *out, size_t capacity) {
    int count = 0, named = 0;
    size_t used = 0;
    for (int r = 0; r < comm->place.size; r++)
        count += r != comm->place.rank && comm->heard[r] < since;
    out[0] = 0;
    for (int r = 0; r < comm->place.size; r++) {
        if (r == comm->place.rank || comm->heard[r] >= since || used + 24 > capacity) continue;
        named++;
        used += (size_t)snprintf(out + used, capacity - used, "%s%d", named == 1 ? "" : named == count ? " and " : ", ", r);
    }
    return count;
}

static void mark_missing(Comm *comm, double since) {
    for (int r = 0; r < comm->place.size; r++)
        if (r != comm->place.rank && comm->heard[r] < since) comm->lost[r] = 1;
}

/* GPU ranks of torchrun or plain srun share neither a board nor a second transport. */
static int can_hear(const Comm *comm) {
    return comm->board != NULL || comm->bootstrap != NULL || comm->plugin->send_sign != NULL;
}

static Status check_missing(Comm *comm, double begin, double now, Error *err) {
    if (now - begin <= comm->timeout) return OK;
    if (!can_hear(comm)) {
        comm->broken = 1;
        FAIL(
            "at step %lld, %s: what all ranks do together was not done within %.0f s (distributed.timeout_s): one of them is "
            "dead, hanging, or cut off; logs/ in the run folder has how far each came",
            (long long)comm->step, comm->phase, comm->timeout);
    }
    char names[256];
    double since = now - comm->timeout;
    int count = name_missing(comm, since, names, sizeof names);
    if (count == 0) return OK;
    mark_missing(comm, since);
    comm_share_failure(comm);
    comm->broken = 1;
    FAIL("rank%s %s gave no sign of life for %.0f s (distributed.timeout_s) at step %lld, %s: dead, hanging, or cut off",
         count > 1 ? "s" : "", names, comm->timeout, (long long)comm->step, comm->phase);
}

/* A launcher that lost a rank sends SIGTERM to the others, and SIGKILL soon after: what is known is said before. */
static void speak_before_the_end(Comm *comm, double begin, double now) {
    if (!signals_pending() || comm->signal_seen < 0.0 || !can_hear(comm)) return;
    if (comm->signal_seen == 0.0) comm->signal_seen = now;
    if (now - comm->signal_seen < SIGNAL_PATIENCE_S || now - begin < SIGNAL_PATIENCE_S) return;
    char names[256];
    int count = name_missing(comm, now - SIGNAL_PATIENCE_S - sign_period(comm), names, sizeof names);
    if (count == 0) return;
    mark_missing(comm, now - SIGNAL_PATIENCE_S - sign_period(comm));
    int speaks = comm_speaks(comm);
    if (speaks) log_rank(comm->place.rank, 1);
    log_warning("%s at step %lld, %s, while waiting: no sign of life from rank%s %s", signals_name(signals_pending()),
                (long long)comm->step, comm->phase, count > 1 ? "s" : "", names);
    memset(comm->lost, 0, (size_t)comm->place.size);
    comm->signal_seen = -1.0; /* once */
}

/* ---- progress ------------------------------------------------------------------------------------------------------------------- */

static void add_pieces(const Comm *comm, const CommWork *work) {
    size_t begin = (size_t)comm->place.rank * work->share, bytes = 0;
    if (begin < work->bytes) bytes = work->bytes - begin < work->share ? work->bytes - begin : work->share;
    int size = comm->place.size;
    if (work->type == COMM_F64) {
        int64_t count = (int64_t)(bytes / sizeof(double));
        double *out = (double *)((uint8_t *)work->values + begin);
        const double *in = work->received;
        for (int64_t i = 0; i < count; i++) {
            double sum = in[i];
            for (int r = 1; r < size; r++)
                sum += in[(int64_t)r * count + i];
            out[i] = sum;
        }
        return;
    }
    int64_t count = (int64_t)(bytes / sizeof(float));
    float *out = (float *)((uint8_t *)work->values + begin);
    const float *in = work->received;
    for (int64_t i = 0; i < count; i++) {
        double sum = (double)in[i];
        for (int r = 1; r < size; r++)
            sum += (double)in[(int64_t)r * count + i];
        out[i] = (float)sum; /* rounded once */
    }
}

static void release_slot(Comm *comm, const CommWork *work) {
    for (int i = 0; i < comm->slots; i++)
        if (work->received == comm->staging + (size_t)i * comm->slot_bytes) comm->slot_used[i] = 0;
}

static Status broken(Comm *comm, const char *error, Error *err) {
    comm->broken = 1;
    FAIL("%s: %s (step %lld, %s)", comm->place.transport, error, (long long)comm->step, comm->phase);
}

/* One look at one piece of work; earlier: whether an older sum still exchanges, which must hand round first. */
static Status advance(Comm *comm, CommWork *work, int earlier, Error *err) {
    char error[COMM_PLUGIN_ERROR];
    int done;
    if (work->stage == WORK_EXCHANGE) {
        if (work->request >= 0) {
            if (comm->plugin->test(comm->self, work->request, &done, error) != 0) return broken(comm, error, err);
            if (!done) return OK;
            work->request = -1;
            add_pieces(comm, work);
            release_slot(comm, work);
        }
        if (earlier) return OK;
        if (comm->plugin->gather(comm->self, 1, work->host, NULL, work->values, work->bytes, work->share, &work->request,
                                 error) != 0)
            return broken(comm, error, err);
        work->stage = WORK_LAST;
        return OK;
    }
    if (comm->plugin->test(comm->self, work->request, &done, error) != 0) return broken(comm, error, err);
    if (done) work->stage = WORK_IDLE;
    return OK;
}

Status comm_poll(Comm *comm, Error *err) {
    if (comm == NULL) return OK;
    if (comm->broken) FAIL("the ranks are no longer together");
    int earlier = 0;
    for (CommWork **link = &comm->first; *link != NULL;) {
        CommWork *work = *link;
        TRY(advance(comm, work, earlier, err));
        earlier |= work->stage == WORK_EXCHANGE;
        if (work->stage == WORK_IDLE)
            *link = work->next;
        else
            link = &work->next;
    }
    return OK;
}

Status comm_wait(Comm *comm, CommWork *work, Error *err) {
    if (comm == NULL || work->stage == WORK_IDLE) return OK;
    double begin = clock_seconds();
    for (int64_t polls = 0;; polls++) {
        TRY(comm_poll(comm, err));
        if (work->stage == WORK_IDLE) return OK;
        if (polls < SPINS) {
            (void)sched_yield();
            continue;
        }
        double now = clock_seconds();
        if (now - begin > QUIET_S) {
            send_sign(comm);
            TRY(hear(comm, err));
            TRY(check_missing(comm, begin, now, err));
            speak_before_the_end(comm, begin, now);
        }
        struct timespec pause = {0, SLEEP_NS};
        (void)nanosleep(&pause, NULL);
    }
}
