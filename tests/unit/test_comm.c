/* What needs no second process of the ranks: what launchers say, words for the ranks, bytes that calls send, one rank's calls. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/memory.h"
#include "train/comm.h"
#include "train/launch.h"

static const char *const variables[] = {"OMPI_COMM_WORLD_RANK",
                                        "OMPI_COMM_WORLD_SIZE",
                                        "OMPI_COMM_WORLD_LOCAL_RANK",
                                        "OMPI_COMM_WORLD_LOCAL_SIZE",
                                        "PMI_RANK",
                                        "PMI_SIZE",
                                        "PMIX_RANK",
                                        "RANK",
                                        "WORLD_SIZE",
                                        "LOCAL_RANK",
                                        "LOCAL_WORLD_SIZE",
                                        "SLURM_PROCID",
                                        "SLURM_LOCALID",
                                        "SLURM_STEP_NUM_TASKS"};

static int forget_launchers(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof variables / sizeof *variables; i++)
        (void)unsetenv(variables[i]);
    return 0;
}

static void say(const char *name, const char *value) {
    assert_int_equal(setenv(name, value, 1), 0);
}

static void check_launch(const char *by, int mpi, int rank, int size, int local_rank) {
    CommLaunch launch;
    Error err = {0};
    assert_int_equal(comm_launch_read(&launch, &err), OK);
    assert_string_equal(launch.by, by);
    assert_int_equal(launch.mpi, mpi);
    assert_int_equal(launch.rank, rank);
    assert_int_equal(launch.size, size);
    assert_int_equal(launch.local_rank, local_rank);
}

static void launchers_are_read(void **state) {
    check_launch("", 0, 0, 1, 0);
    say("SLURM_PROCID", "5"), say("SLURM_STEP_NUM_TASKS", "8"), say("SLURM_LOCALID", "1");
    check_launch("srun", 0, 5, 8, 1);
    say("RANK", "3"), say("WORLD_SIZE", "16"), say("LOCAL_RANK", "3");
    check_launch("torchrun", 0, 3, 16, 3); /* inside a Slurm step */
    forget_launchers(state);
    say("SLURM_PROCID", "5"), say("SLURM_STEP_NUM_TASKS", "8"), say("SLURM_LOCALID", "1"), say("PMIX_RANK", "5");
    check_launch("srun", 1, 5, 8, 1);
    say("OMPI_COMM_WORLD_RANK", "2"), say("OMPI_COMM_WORLD_SIZE", "4");
    check_launch("mpirun", 1, 2, 4, 0); /* mpirun inside a Slurm job */
    forget_launchers(state);
}

static void wrong_variables_are_refused(void **state) {
    static const char *const wrong[][2] = {{"4", "4"}, {"-1", "4"}, {"two", "4"}, {"1", "4x"}, {"0", "99999999999"}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        CommLaunch launch;
        Error err = {0};
        say("RANK", wrong[i][0]), say("WORLD_SIZE", wrong[i][1]);
        assert_int_equal(comm_launch_read(&launch, &err), ERR_USAGE);
        assert_true(strstr(err.text, "RANK") != NULL || strstr(err.text, "WORLD_SIZE") != NULL);
    }
    forget_launchers(state);
}

static void words_for_the_ranks(void **state) {
    (void)state;
    char *words[] = {"train", "--gpus", "4", "c.json", "--gpus=3", "--gpus-not", "--set", "a=1", NULL};
    int count;
    char **kept = launch_words(8, words, "gpus", &count);
    assert_int_equal(count, 5);
    assert_string_equal(kept[0], "train");
    assert_string_equal(kept[1], "c.json");
    assert_string_equal(kept[2], "--gpus-not");
    assert_string_equal(kept[4], "a=1");
    assert_null(kept[5]);
    memory_free(kept);
}

/* A sum's bytes leave twice, but for a rank's own part of them: 2 (N - 1) / N of them on average, exactly, over all ranks. */
static void bytes_of_a_sum(void **state) {
    (void)state;
    for (int size = 2; size <= 9; size++)
        for (int64_t count = 1; count < 5000; count += 613) {
            uint64_t bytes = (uint64_t)count * sizeof(float), sent = 0;
            for (int rank = 0; rank < size; rank++)
                sent += comm_sum_bytes(rank, size, count, COMM_F32);
            assert_int_equal(sent, 2 * bytes * (uint64_t)(size - 1));
        }
    assert_int_equal(comm_sum_bytes(0, 1, 100, COMM_F64), 0);
    assert_int_equal(comm_share(1000, 4), 256); /* 250, rounded up to 64 */
}

static void one_rank_says_nothing(void **state) {
    (void)state;
    float values[3] = {1.0f, 2.0f, 3.0f};
    int64_t most = 7;
    Error err = {0};
    CommWork work = {0};
    Comm *comm = NULL;
    assert_int_equal(comm_open(&comm, NULL, &err), OK);
    assert_null(comm);
    assert_int_equal(comm_size(comm), 1);
    assert_int_equal(comm_sum(comm, values, 3, COMM_F32, COMM_GRADIENTS, &err), OK);
    assert_int_equal(comm_sum_start(comm, &work, COMM_DEVICE, values, 3, COMM_F32, COMM_GRADIENTS, &err), OK);
    assert_int_equal(comm_wait(comm, &work, &err), OK);
    assert_int_equal(comm_max(comm, &most, &err), OK);
    assert_int_equal(comm_agree(comm, ERR_FAILED, &err), ERR_FAILED);
    assert_true(values[2] == 3.0f && most == 7);
    assert_int_equal(comm_sent(comm, COMM_GRADIENTS), 0);
    comm_close(comm, "nothing");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(launchers_are_read),    cmocka_unit_test(wrong_variables_are_refused),
        cmocka_unit_test(words_for_the_ranks),   cmocka_unit_test(bytes_of_a_sum),
        cmocka_unit_test(one_rank_says_nothing),
    };
    return cmocka_run_group_tests(tests, forget_launchers, NULL);
}
