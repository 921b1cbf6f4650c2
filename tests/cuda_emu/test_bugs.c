/* The planted mistakes: what this build must show is shown, and no fixed twin is accused. EMU_VARIANT is "plain", "asan" or
 * "race". Every mistake runs in a child, because some of them kill it. */
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
enum { N = 128, FINE = 0, ACCUSED_FIXED = 20, REPORTED = 10, DIFFERENT = 11, NO_CHILD = 30 };

static int run(int which, int fixed, float *result) {
    float host[N], *in, *out;
    for (int i = 0; i < N; i++)
        host[i] = (float)(i % 17 + 1);
    if (cudaMalloc((void **)&in, sizeof host) || cudaMalloc((void **)&out, sizeof host)) return 1;
    if (cudaMemcpy(in, host, sizeof host, cudaMemcpyHostToDevice) || cudaMemset(out, 0, sizeof host)) return 1;
    if (bug(which, fixed, in, out, 0) || cudaDeviceSynchronize()) return 1;
    return cudaMemcpy(result, out, sizeof host, cudaMemcpyDeviceToHost) != 0;
}

/* Exit status of a child that runs the fixed twin and then the mistake; a signal counts as a report. */
static int show(int which) {
    (void)fflush(stdout);
    pid_t child = fork();
    if (child < 0) return NO_CHILD;
    if (child == 0) {
        for (size_t i = 0; i < sizeof deadly / sizeof *deadly; i++)
            (void)signal(deadly[i], SIG_DFL); /* cmocka would go on with the next test */
        float good[N], bad[N];
        if (!freopen("/dev/null", "w", stderr)) _exit(NO_CHILD);
        if (run(which, 1, good)) _exit(ACCUSED_FIXED);
        if (run(which, 0, bad)) _exit(REPORTED);
        _exit(memcmp(good, bad, sizeof good) ? DIFFERENT : FINE);
    }
    int status = 0;
    if (waitpid(child, &status, 0) != child) return NO_CHILD;
    return WIFEXITED(status) ? WEXITSTATUS(status) : REPORTED;
}

static void planted(void **state) {
    (void)state;
    BugSeen build = !strcmp(EMU_VARIANT, "race") ? SEEN_CHECKED : !strcmp(EMU_VARIANT, "asan") ? SEEN_SANITIZED : SEEN_PLAIN;
    int wrong = 0, shown = 0;
    for (int i = 0; i < bug_count; i++) {
        int how = show(i);
        assert_int_not_equal(how, NO_CHILD);
        shown += how != FINE && how != ACCUSED_FIXED;
        if (how == ACCUSED_FIXED) print_message("%s: the fixed kernel is accused\n", bugs[i].name), wrong++;
        if (how == FINE && bugs[i].seen <= build) print_message("%s: missed\n", bugs[i].name), wrong++;
    }
    print_message("%d of %d mistakes shown\n", shown, bug_count);
    assert_int_equal(wrong, 0);
    assert_int_equal(bug_count, 25);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(planted)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
