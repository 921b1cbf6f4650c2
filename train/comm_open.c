/* Finding a transport, and the beginning and the end of the ranks. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/memory.h"
#include "core/text.h"
#include "train/comm_internal.h"
#include "train/signals.h"

/* ---- the plugin ------------------------------------------------------------------------------------------------------------ */

/* Beside the program, or where `make install` puts it; NIBBLE_PLUGINS names another folder. */
static void *find_library(const char *name, char *tried, size_t capacity) {
    char program[4096], path[4352];
    const char *folder = getenv("NIBBLE_PLUGINS");
    tried[0] = 0;
    ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    if (length < 0) length = 0;
    program[length] = 0;
    char *slash = strrchr(program, '/');
    if (slash != NULL) *slash = 0;
    const char *const places[][2] = {{folder, ""}, {program, ""}, {program, "/../lib/nibble"}, {program, "/../lib"}};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        if (places[i][0] == NULL) continue;
        (void)snprintf(path, sizeof path, "%.4000s%s/%s", places[i][0], places[i][1], name);
        /* global: MPI's own plugins look for its symbols */
        void *library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
        if (library != NULL) return library;
        const char *why = dlerror();
        size_t used = strlen(tried);
        (void)snprintf(tried + used, capacity - used, "%s%.300s", used ? "; " : "", why != NULL ? why : path);
        if (folder != NULL) break;
    }
    return NULL;
}

Status comm_load(Comm *comm, const char *name, Error *err) {
    char tried[1024];
    comm->library = find_library(name, tried, sizeof tried);
    if (comm->library == NULL)
        FAIL("%s cannot be loaded, and ranks talk through it (%s); `make` builds it where it finds the library, and says so",
             name, tried);
    comm->plugin = dlsym(comm->library, COMM_PLUGIN_SYMBOL);
    if (comm->plugin == NULL) FAIL("%s does not export %s: it is no plugin of nibble's", name, COMM_PLUGIN_SYMBOL);
    if (comm->plugin->version != COMM_PLUGIN_VERSION || strcmp(comm->plugin->build_id, NIBBLE_BUILD_ID) != 0)
        FAIL("%s is of another build (%s) than this program (%s); build both with one `make`", name,
             comm->plugin->version == COMM_PLUGIN_VERSION ? comm->plugin->build_id : "another interface", NIBBLE_BUILD_ID);
    return OK;
}

/* ---- beginning --------------------------------------------------------------------------------------------------------------- */

static void comm_free(Comm *comm) {
    if (comm->bootstrap != NULL) comm_free(comm->bootstrap);
    /* the library stays loaded: an MPI library does not survive being taken out */
    memory_free(comm->heard);
    memory_free(comm->lost);
    memory_free(comm->staging);
    memory_free(comm->slot_used);
    memory_free(comm->own);
    memory_free(comm);
}

static Status join(Comm *comm, Error *err) {
    char error[COMM_PLUGIN_ERROR] = "";
    int wanted = comm->place.size;
    if (comm->plugin->open(&comm->self, &comm->place, error) != 0) FAIL("ranks cannot be joined: %s", error);
    if (comm->place.size != wanted)
        FAIL(
            "the launcher says that there are %d ranks, %s says %d: this program was built with another MPI than the one that "
            "starts it",
            wanted, comm->place.transport, comm->place.size);
    size_t size = (size_t)wanted;
    comm->heard = memory_calloc(size, sizeof *comm->heard);
    comm->lost = memory_calloc(size, 1);
    comm->own = memory_alloc(size * comm_share(COMM_OWN_PIECE, wanted));
    return OK;
}

static Comm *comm_create(const CommPlace *place) {
    Comm *comm = memory_calloc_aligned(_Alignof(Comm), sizeof *comm);
    comm->timeout = 120.0;
    comm->phase = "start";
    comm->place = *place;
    return comm;
}

static Status open_transport(Comm **out, const CommPlace *place, const char *library, Error *err) {
    Comm *comm = comm_create(place);
    Status status = comm_load(comm, library, err);
    if (status == OK) status = join(comm, err);
    if (status != OK)
        comm_free(comm);
    else
        *out = comm;
    return status;
}

/* ---- GPU ranks ------------------------------------------------------------------------------------------------------------------- */

/* Each rank sees one GPU, unless its launcher has seen to that: the one of its number among those that are visible. */
static Status see_one_device(int local_rank, Error *err) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    char one[64];
    if (visible == NULL || visible[0] == 0) {
        (void)snprintf(one, sizeof one, "%d", local_rank);
    } else {
        if (strchr(visible, ',') == NULL) return OK;
        for (int i = 0; i < local_rank && visible != NULL; i++) {
            visible = strchr(visible, ',');
            if (visible != NULL) visible++;
        }
        if (visible == NULL)
            FAIL_USAGE("CUDA_VISIBLE_DEVICES names fewer GPUs than this machine has ranks: there is none for local rank %d",
                       local_rank);
        (void)snprintf(one, sizeof one, "%.*s", (int)strcspn(visible, ","), visible);
    }
    if (setenv("CUDA_VISIBLE_DEVICES", one, 1) != 0) FAIL("out of memory");
    return OK;
}

/* Through MPI, which started them: they also hear of each other through it. */
static Status meet_through_mpi(Comm *comm, Error *err) {
    char error[COMM_PLUGIN_ERROR] = "";
    TRY(open_transport(&comm->bootstrap, &comm->place, "libnibble_mpi.so", err));
    comm->place.local_rank = comm->bootstrap->place.local_rank;
    comm->place.local_size = comm->bootstrap->place.local_size;
    int failed = comm->place.rank == 0 && comm->plugin->make_id(comm->place.id, error) != 0;
    TRY(comm_agree(comm->bootstrap, failed ? error_set(err, ERR_FAILED, "%s", error) : OK, err));
    comm->place.has_id = 1;
    return comm_broadcast(comm->bootstrap, COMM_HOST, comm->place.id, sizeof comm->place.id, 0, COMM_CONTROL, err);
}

/* GPU ranks find each other at rank 0's address where they are given one, as torchrun and our own launcher do. */
static Status meet(Comm *comm, int mpi, Error *err) {
    const char *address = getenv("MASTER_ADDR"), *port = getenv("MASTER_PORT");
    int given = address != NULL && port != NULL;
    if (mpi && !given) return meet_through_mpi(comm, err);
    if (comm->place.size == 1 || getenv("NCCL_COMM_ID") != NULL) return OK;
    if (!given)
        FAIL_USAGE("GPU ranks want MASTER_ADDR and MASTER_PORT, the address of rank 0, as torchrun and --gpus set them");
    char id[320];
    (void)snprintf(id, sizeof id, "%.255s:%.10s", address, port);
    if (setenv("NCCL_COMM_ID", id, 1) != 0) FAIL("out of memory");
    return OK;
}

static Status open_devices(Comm *comm, const CommLaunch *launch, const char *device, Error *err) {
    char library[64];
    (void)snprintf(library, sizeof library, "libnibble_%.20s.so", device);
    TRY(comm_load(comm, library, err));
    TRY(meet(comm, launch->mpi, err));
    TRY(see_one_device(comm->place.local_rank, err));
    return join(comm, err);
}

/* ---- beginning ------------------------------------------------------------------------------------------------------------------- */

static Status open_as(Comm *comm, const CommLaunch *launch, const char *device, Error *err) {
    int is_device = device != NULL && (strcmp(device, "cuda") == 0 || strcmp(device, "emu") == 0);
    if (is_device) return open_devices(comm, launch, device, err);
    if (!launch->mpi && launch->size > 1)
        FAIL_USAGE(
            "%s says that this is rank %d of %d. CPU ranks talk through MPI, which it does not start; use mpirun -n %d, "
            "srun --mpi=pmix, or --ranks %d; GPU ranks want --device cuda",
            launch->by, launch->rank, launch->size, launch->size, launch->size);
    TRY(comm_load(comm, "libnibble_mpi.so", err));
    return join(comm, err);
}

static void note_start(Comm *comm) {
    comm->board = rank_board_notes(comm->place.size);
    if (comm->board == NULL) return;
    comm->note = &comm->board[comm->place.rank];
    comm->note->pid = (int32_t)getpid();
    comm_set_place(comm, 0, "start");
    comm->note->state = RANK_RUNS;
    signals_note_at(&comm->note->signal);
}

Status comm_open(Comm **out, const char *device, Error *err) {
    CommLaunch launch;
    *out = NULL;
    TRY(comm_launch_read(&launch, err));
    if (launch.size == 1 && getenv("NIBBLE_JOIN_ALONE") == NULL) return OK;
    CommPlace place = {.rank = launch.rank,
                       .size = launch.size,
                       .local_rank = launch.local_rank,
                       .local_size = launch.local_size > 0 ? launch.local_size : 1};
    Comm *comm = comm_create(&place);
    note_start(comm);
    Status status = open_as(comm, &launch, device, err);
    if (status != OK) {
        comm_set_end(comm, status);
        comm_free(comm);
        return status;
    }
    *out = comm;
    return OK;
}

Status comm_attach(Comm *comm, void *device, Error *err) {
    char error[COMM_PLUGIN_ERROR] = "";
    if (comm == NULL || device == NULL) return OK;
    if (comm->plugin->attach == NULL)
        FAIL("%s works in the host's memory only: ranks that compute on a device want device cuda on all of them",
             comm->place.transport);
    if (comm->plugin->attach(comm->self, device, error) != 0) FAIL("%s: %s", comm->place.transport, error);
    return OK;
}

Status comm_reserve(Comm *comm, int sums, size_t bytes, Error *err) {
    if (comm == NULL || comm->plugin->sum != NULL) return OK;
    if (comm->staging != NULL) FAIL("internal error: comm_reserve is called twice");
    comm->slots = sums;
    comm->slot_bytes = (size_t)comm->place.size * comm_share(bytes, comm->place.size);
    comm->staging = memory_alloc((size_t)sums * comm->slot_bytes);
    comm->slot_used = memory_calloc((size_t)sums, 1);
    return OK;
}

size_t comm_reserved_bytes(int size, int sums, size_t bytes) {
    return size > 1 ? (size_t)sums * (size_t)size * comm_share(bytes, size) : 0;
}

/* ---- end ----------------------------------------------------------------------------------------------------------------------- */

#define LAST_WORDS_S 0.25 /* for the reason to leave this process before it does */

static void say_why(Comm *comm, const char *failure) {
    comm->leaving = (CommSign){.kind = COMM_SIGN_LEAVES, .rank = comm->place.rank, .step = comm->step};
    (void)snprintf(comm->leaving.text, sizeof comm->leaving.text, "%s", failure);
    const CommPlugin *plugin = comm->bootstrap != NULL ? comm->bootstrap->plugin : comm->plugin;
    void *self = comm->bootstrap != NULL ? comm->bootstrap->self : comm->self;
    if (plugin->send_sign == NULL) return;
    plugin->send_sign(self, &comm->leaving);
    for (double end = clock_seconds() + LAST_WORDS_S; clock_seconds() < end;) {
        CommSign sign;
        (void)plugin->receive_sign(self, &sign); /* lets the library work */
        struct timespec pause = {0, 1000000};
        (void)nanosleep(&pause, NULL);
    }
}

void comm_close(Comm *comm, const char *failure) {
    if (comm == NULL) return;
    Error ignored;
    if (failure == NULL && !comm->broken && comm_barrier(comm, &ignored) == OK) {
        comm->plugin->close(comm->self, 0);
        if (comm->bootstrap != NULL) comm->bootstrap->plugin->close(comm->bootstrap->self, 0);
        comm_free(comm);
        return;
    }
    if (failure != NULL) say_why(comm, failure);
    comm->plugin->close(comm->self, 1);
    if (comm->bootstrap != NULL) comm->bootstrap->plugin->close(comm->bootstrap->self, 1);
    comm_free(comm);
}

/* ---- facts ----------------------------------------------------------------------------------------------------------------------- */

int comm_rank(const Comm *comm) {
    return comm == NULL ? 0 : comm->place.rank;
}

int comm_size(const Comm *comm) {
    return comm == NULL ? 1 : comm->place.size;
}

int comm_local_rank(const Comm *comm) {
    return comm == NULL ? 0 : comm->place.local_rank;
}

int comm_local_size(const Comm *comm) {
    return comm == NULL ? 1 : comm->place.local_size;
}

const char *comm_transport(const Comm *comm) {
    return comm == NULL ? "none" : comm->place.transport;
}

int comm_speaks(const Comm *comm) {
    for (int r = 0; r < comm_rank(comm); r++)
        if (!comm->lost[r]) return 0;
    return 1;
}

void comm_set_timeout(Comm *comm, double seconds) {
    if (comm != NULL) comm->timeout = seconds;
}

void comm_set_place(Comm *comm, int64_t step, const char *phase) {
    if (comm == NULL) return;
    comm->step = step;
    comm->phase = phase;
    if (comm->note == NULL) return;
    comm->note->beat = clock_seconds();
    comm->note->step = step;
    (void)snprintf(comm->note->phase, sizeof comm->note->phase, "%s", phase);
}

void comm_set_end(Comm *comm, Status status) {
    if (comm == NULL || comm->note == NULL) return;
    comm->note->status = (int32_t)status;
    comm->note->state = RANK_ENDED;
}

uint64_t comm_sent(const Comm *comm, CommPurpose purpose) {
    return comm == NULL ? 0 : comm->sent[purpose];
}
