/* Mistakes of host code that the emulated runtime shows: with EMU_STREAMS=lazy and EMU_PROTECT=1 every one of them, and in
 * every mode none in the right twin. Each runs in a child. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/cuda_emu/bugs.h"

static const int deadly[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
enum { N = 4096, BYTES = N * (int)sizeof(float) };

typedef struct Host {
    float *pinned, *back, *a, *b;
    cudaStream_t one, two;
} Host;

static int set_up(Host *h) {
    if (cudaMallocHost((void **)&h->pinned, BYTES) || cudaMallocHost((void **)&h->back, BYTES)) return 0;
    if (cudaMalloc((void **)&h->a, BYTES) || cudaMalloc((void **)&h->b, BYTES)) return 0;
    if (cudaStreamCreateWithFlags(&h->one, cudaStreamNonBlocking)) return 0;
    if (cudaStreamCreateWithFlags(&h->two, cudaStreamNonBlocking)) return 0;
    for (int i = 0; i < N; i++)
        h->pinned[i] = 3, h->back[i] = -7;
    return 1;
}
static int good(const Host *h) { /* 3, doubled, everywhere */
    for (int i = 0; i < N; i++)
        if (!(h->back[i] == 6)) return 0;
    return 1;
}
static void upload(Host *h, cudaStream_t stream) {
    (void)cudaMemcpyAsync(h->a, h->pinned, BYTES, cudaMemcpyHostToDevice, stream);
}
static void work(Host *h, cudaStream_t stream) {
    (void)doubled(h->a, h->b, N, stream);
    (void)cudaMemcpyAsync(h->back, h->b, BYTES, cudaMemcpyDeviceToHost, stream);
}

static int read_without_waiting(Host *h, int right) {
    upload(h, h->one);
    work(h, h->one);
    if (right) (void)cudaStreamSynchronize(h->one);
    return good(h);
}
static int no_event(Host *h, int right) {
    cudaEvent_t event;
    (void)cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    upload(h, h->one);
    (void)cudaEventRecord(event, h->one);
    if (right) (void)cudaStreamWaitEvent(h->two, event, 0);
    work(h, h->two);
    (void)cudaStreamSynchronize(h->two);
    return good(h);
}
static int staging_reused(Host *h, int right) {
    upload(h, h->one);
    if (right) (void)cudaStreamSynchronize(h->one);
    memset(h->pinned, 0, BYTES); /* the next batch */
    work(h, h->one);
    (void)cudaStreamSynchronize(h->one);
    return good(h);
}
static int host_reads_device(Host *h, int right) {
    (void)cudaMemcpy(h->a, h->pinned, BYTES, cudaMemcpyHostToDevice);
    if (right) {
        (void)cudaMemcpy(h->back, h->a, BYTES, cudaMemcpyDeviceToHost);
    } else {
        memcpy(h->back, h->a, BYTES);
    }
    return h->back[5] == 3;
}
static int copy_too_long(Host *h, int right) {
    size_t bytes = right ? BYTES : BYTES + 4;
    return !cudaMemset(h->b, 0, BYTES) && !cudaMemcpy(h->a, h->b, bytes, cudaMemcpyDeviceToDevice);
}
static int wrong_direction(Host *h, int right) {
    return !cudaMemcpy(h->a, h->pinned, BYTES, right ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost);
}
static int used_after_free(Host *h, int right) {
    (void)cudaMemcpy(h->a, h->pinned, BYTES, cudaMemcpyHostToDevice);
    if (!right) (void)cudaFree(h->a);
    work(h, h->one);
    return !cudaStreamSynchronize(h->one) && good(h);
}

static int pending_taken_for_an_error(Host *h, int right) { /* of the launch after it */
    cudaEvent_t event;
    (void)cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    upload(h, h->one);
    (void)cudaEventRecord(event, h->one);
    if (cudaEventQuery(event) == cudaErrorNotReady && right) (void)cudaGetLastError();
    return doubled(h->a, h->b, N, h->one) == cudaSuccess;
}
static int pinned_nothing_freed(Host *h, int right) {
    (void)h;
    return right || cudaFreeHost(NULL) == cudaSuccess;
}

typedef struct Mistake {
    const char *name;
    int (*run)(Host *h, int right);
    int eager; /* shown without lazy streams and protected memory, too */
} Mistake;
static const Mistake mistakes[] = {
    {"a result read without waiting", read_without_waiting, 0}, {"no event between two streams", no_event, 0},
    {"a staging buffer reused too early", staging_reused, 0},   {"the host reads device memory", host_reads_device, 0},
    {"a device copy that is too long", copy_too_long, 1},       {"a copy in the wrong direction", wrong_direction, 1},
    {"device memory used after free", used_after_free, 1},      {"an event that is not ready", pending_taken_for_an_error, 0},
    {"no pinned memory freed", pinned_nothing_freed, 1},
};

/* 0: ran well, 1: shown, -1: no child. */
static int run(const Mistake *mistake, int right) {
    (void)fflush(stdout);
    pid_t child = fork();
    if (child < 0) return -1;
    if (child == 0) {
        for (size_t i = 0; i < sizeof deadly / sizeof *deadly; i++)
            (void)signal(deadly[i], SIG_DFL); /* cmocka would go on with the next test */
        Host host;
        if (!freopen("/dev/null", "w", stderr) || !set_up(&host)) _exit(77);
        _exit(mistake->run(&host, right) ? 0 : 1);
    }
    int status = 0;
    if (waitpid(child, &status, 0) != child || (WIFEXITED(status) && WEXITSTATUS(status) == 77)) return -1;
    return status != 0;
}

static void host_mistakes(void **state) {
    (void)state;
    const char *streams = getenv("EMU_STREAMS");
    int strict = streams && !strcmp(streams, "lazy") && getenv("EMU_PROTECT");
    for (size_t i = 0; i < sizeof mistakes / sizeof *mistakes; i++) {
        print_message("%s\n", mistakes[i].name);
        assert_int_equal(run(&mistakes[i], 1), 0);
        if (strict || mistakes[i].eager) assert_int_equal(run(&mistakes[i], 0), 1);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(host_mistakes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
