#include "train/launch.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "core/log.h"
#include "core/memory.h"
#include "core/pool.h"
#include "core/text.h"
#include "train/comm.h"
#include "train/rank_board.h"
#include "train/signals.h"

#define GRACE_S 2.0    /* the same for --gpus */
#define LAST_WORDS "2" /* seconds that a rank has to end after SIGTERM: enough to say what it knows, not to save */

char **launch_words(int argc, char **argv, const char *name, int *count) {
    char **words = memory_calloc((size_t)argc + 1, sizeof *words);
    size_t length = strlen(name);
    *count = 0;
    for (int i = 0; i < argc; i++) {
        int ours = strncmp(argv[i], "--", 2) == 0 && strncmp(argv[i] + 2, name, length) == 0;
        if (ours && argv[i][2 + length] == '=') continue;
        if (ours && argv[i][2 + length] == 0) {
            i++;
            continue;
        }
        words[(*count)++] = argv[i];
    }
    return words;
}

int launch_threads(const Comm *comm, int64_t asked) {
    if (asked > 0 || comm == NULL) return (int)asked;
    cpu_set_t set;
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) < online) return 0;
    Pool *pool;
    if (pool_create(&pool, 0, NULL) != OK) return 1;
    int all = pool_threads(pool) / comm_local_size(comm);
    pool_free(pool);
    return all > 1 ? all : 1;
}

/* ---- children --------------------------------------------------------------------------------------------------------------------- */

/* In a process group of its own: Ctrl-C reaches the launcher alone, which passes it on. Dies with the launcher. */
static Status start(char *const *words, pid_t *child, Error *err) {
    pid_t parent = getpid();
    *child = fork();
    if (*child < 0) FAIL("cannot start a process: %s", strerror(errno));
    if (*child > 0) return OK;
    (void)setpgid(0, 0);
    (void)prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(1);
    (void)execvp(words[0], words);
    fprintf(stderr, "nibble: error: cannot run %s: %s\n", words[0], strerror(errno));
    _exit(127);
}

static char *own_path(void) {
    char path[4096];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
    if (length <= 0) return memory_strdup("nibble");
    path[length] = 0;
    return memory_strdup(path);
}

/* ---- what became of the ranks -------------------------------------------------------------------------------------------------- */

/* The rank that went first without a word: it runs, it was sent no signal, and it is gone. */
static int find_dead(const RankBoard *board) {
    for (int r = 0; r < board->size; r++)
        if (board->notes[r].state == RANK_RUNS && board->notes[r].signal == 0) return r;
    return -1;
}

static Status verdict(const RankBoard *board, int interrupted, const char *starter, int code, Error *err) {
    int dead = find_dead(board), absent = 0;
    Status worst = OK;
    for (int r = 0; r < board->size; r++) {
        const RankNote *note = &board->notes[r];
        absent += note->state == RANK_ABSENT;
        if (note->state == RANK_ENDED && (worst == OK || note->status == ERR_FAILED)) worst = (Status)note->status;
    }
    if (interrupted && (dead < 0 || worst == ERR_INTERRUPTED)) {
        error_set(err, ERR_INTERRUPTED, "%s", "");
        return ERR_INTERRUPTED;
    }
    if (dead >= 0 && worst != ERR_USAGE) {
        const RankNote *note = &board->notes[dead];
        FAIL("rank %d (process %d) died at step %lld, %s; the other ranks were ended. Go on with --resume", dead,
             (int)note->pid, (long long)note->step, note->phase);
    }
    if (absent == board->size) FAIL("%s started no rank (exit status %d); what it said stands above", starter, code);
    if (worst == OK && code != 0) FAIL("%s left with exit status %d", starter, code);
    (void)error_set(err, worst, "%s", ""); /* the ranks have said why */
    return worst;
}

/* ---- --ranks ----------------------------------------------------------------------------------------------------------------------- */

static void set_default(const char *name, const char *value) {
    (void)setenv(name, value, 0);
}

/* What Open MPI needs to start more ranks than there are processors, in a container as root, each on all of them. Another MPI
 * does not look at these. */
static void set_open_mpi(void) {
    set_default("OMPI_ALLOW_RUN_AS_ROOT", "1");
    set_default("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    set_default("OMPI_MCA_rmaps_base_oversubscribe", "1");
    set_default("OMPI_MCA_hwloc_base_binding_policy", "none");
    set_default("OMPI_MCA_odls_base_sigkill_timeout", LAST_WORDS);
    set_default("OMPI_MCA_btl_vader_single_copy_mechanism", "none"); /* would read the memory of ranks that are gone */
    set_default("OMPI_MCA_orte_execute_quiet", "1");                 /* ranks and launcher say why themselves */
}

#define LOOK_NS 20000000   /* between looks at the children */
#define EMPTY_HANDED_S 5.0 /* that a starter may live on when all of its ranks are gone */

static void pass_on(pid_t child, int *passed_on) {
    (void)kill(child, *passed_on ? SIGTERM : SIGUSR1);
    *passed_on = 1;
    signals_clear();
}

static int all_gone(const RankBoard *board) {
    for (int r = 0; r < board->size; r++) {
        const RankNote *note = &board->notes[r];
        if (note->state == RANK_ABSENT || (kill(note->pid, 0) == 0 || errno != ESRCH)) return 0;
    }
    return 1;
}

/* The first signal asks the ranks to save and stop (mpirun hands SIGUSR1 on to all of them, and takes others for itself); the
 * second ends them. An mpirun that does not notice that its ranks are gone is ended. */
static int wait_for_mpirun(const RankBoard *board, pid_t child, int *interrupted) {
    int code = 0, passed_on = 0;
    double gone = 0.0;
    for (;;) {
        pid_t got = waitpid(child, &code, WNOHANG);
        if (got == child) return WIFEXITED(code) ? WEXITSTATUS(code) : 128 + WTERMSIG(code);
        if (got < 0 && errno != EINTR) return 1;
        if (signals_pending()) {
            *interrupted = 1;
            pass_on(child, &passed_on);
        }
        if (!all_gone(board))
            gone = 0.0;
        else if (gone == 0.0)
            gone = clock_seconds();
        else if (clock_seconds() - gone > EMPTY_HANDED_S)
            (void)kill(child, SIGKILL);
        (void)nanosleep(&(struct timespec){0, LOOK_NS}, NULL);
    }
}

static Status run_mpi(const RankBoard *board, int argc, char **argv, Error *err) {
    const char *mpirun = getenv("NIBBLE_MPIRUN");
    if (mpirun == NULL) mpirun = "mpirun";
    char number[16];
    (void)snprintf(number, sizeof number, "%d", board->size);
    char **words = memory_calloc((size_t)argc + 5, sizeof *words);
    char *program = own_path();
    int count = 0, interrupted = 0;
    words[count++] = (char *)(uintptr_t)mpirun;
    words[count++] = (char *)(uintptr_t) "-n";
    words[count++] = number;
    words[count++] = program;
    for (int i = 0; i < argc; i++)
        words[count++] = argv[i];
    set_open_mpi();
    pid_t child;
    Status status = start(words, &child, err);
    if (status == OK) {
        int code = wait_for_mpirun(board, child, &interrupted);
        status = verdict(board, interrupted, mpirun, code, err);
    }
    memory_free(words);
    memory_free(program);
    return status;
}

static Status refuse_inside(const char *option, Error *err) {
    CommLaunch launch;
    TRY(comm_launch_read(&launch, err));
    if (launch.size > 1)
        FAIL_USAGE("%s starts ranks, and %s has started this one already (rank %d of %d); leave one of them out", option,
                   launch.by, launch.rank, launch.size);
    return OK;
}

Status launch_mpi(int ranks, int argc, char **argv, Error *err) {
    RankBoard board;
    TRY(refuse_inside("--ranks", err));
    TRY(rank_board_create(&board, ranks, err));
    signals_install();
    Status status = run_mpi(&board, argc, argv, err);
    rank_board_remove(&board);
    return status;
}

/* ---- --gpus ------------------------------------------------------------------------------------------------------------------------ */

/* A port that is free now, for rank 0 to meet the others at. */
static Status free_port(int *port, Error *err) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {.s_addr = htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof address;
    int file = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int ok = file >= 0 && bind(file, (struct sockaddr *)&address, length) == 0 &&
             getsockname(file, (struct sockaddr *)&address, &length) == 0;
    int code = errno;
    if (file >= 0) (void)close(file);
    if (!ok) FAIL("cannot find a free port for the ranks to meet at: %s", strerror(code));
    *port = ntohs(address.sin_port);
    return OK;
}

static void set_number(const char *name, int value) {
    char text[16];
    (void)snprintf(text, sizeof text, "%d", value);
    (void)setenv(name, text, 1);
}

static void end_others(const RankBoard *board, const pid_t *children, int signal) {
    for (int r = 0; r < board->size; r++)
        if (children[r] > 0) (void)kill(children[r], signal);
}

/* A rank that left in bad order: a signal ended it, or it says that it failed. */
static int went_badly(int code) {
    return WIFSIGNALED(code) || (WEXITSTATUS(code) != OK && WEXITSTATUS(code) != ERR_INTERRUPTED);
}

/* Waits for all; when one goes badly the others have as long as mpirun would give them. */
static int watch(const RankBoard *board, pid_t *children, int *interrupted) {
    int left = board->size, worst = 0;
    double bad = 0.0;
    while (left > 0) {
        int code;
        pid_t got = waitpid(-1, &code, WNOHANG);
        for (int r = 0; r < board->size && got > 0; r++) {
            if (children[r] != got) continue;
            children[r] = 0;
            left--;
            if (WIFEXITED(code) && WEXITSTATUS(code) > worst) worst = WEXITSTATUS(code);
            if (!went_badly(code) || bad > 0.0) continue;
            bad = clock_seconds();
            end_others(board, children, SIGTERM);
        }
        if (signals_pending()) {
            end_others(board, children, *interrupted ? SIGKILL : signals_pending());
            *interrupted = 1;
            signals_clear();
        }
        if (bad > 0.0 && clock_seconds() - bad > GRACE_S) end_others(board, children, SIGKILL);
        if (got <= 0) (void)nanosleep(&(struct timespec){0, LOOK_NS}, NULL);
    }
    return worst;
}

static Status run_gpus(const RankBoard *board, int argc, char **argv, Error *err) {
    int port, interrupted = 0;
    TRY(free_port(&port, err));
    (void)setenv("MASTER_ADDR", "127.0.0.1", 1);
    set_number("MASTER_PORT", port);
    set_number("WORLD_SIZE", board->size);
    set_number("LOCAL_WORLD_SIZE", board->size);
    char **words = memory_calloc((size_t)argc + 2, sizeof *words);
    pid_t *children = memory_calloc((size_t)board->size, sizeof *children);
    words[0] = own_path();
    memcpy(words + 1, argv, (size_t)argc * sizeof *words);
    Status status = OK;
    for (int r = 0; r < board->size && status == OK; r++) {
        set_number("RANK", r);
        set_number("LOCAL_RANK", r);
        status = start(words, &children[r], err);
    }
    if (status != OK) end_others(board, children, SIGKILL);
    int code = watch(board, children, &interrupted);
    if (status == OK) status = verdict(board, interrupted, "--gpus", code, err);
    memory_free(words[0]);
    memory_free(words);
    memory_free(children);
    return status;
}

Status launch_gpus(int ranks, int argc, char **argv, Error *err) {
    RankBoard board;
    TRY(refuse_inside("--gpus", err));
    TRY(rank_board_create(&board, ranks, err));
    signals_install();
    Status status = run_gpus(&board, argc, argv, err);
    rank_board_remove(&board);
    return status;
}
