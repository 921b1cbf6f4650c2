/* Files that are never seen half done, by dying at every write, sync and rename that the code makes.
 *
 * Faults come from the environment, once per process, so the program runs itself again as the one that dies. */
#include "tests/unit/test_core.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/file.h"
#include "core/memory.h"

enum { BLOCK = 70000, BLOCKS = 3 }; /* larger than the buffer, so that some writes bypass it */

static char root[] = "/tmp/nibble-test-file-XXXXXX";

/* ---- the process that dies --------------------------------------------------------------------------------------------- */

static Status write_new(const char *path, Error *err) {
    static char block[BLOCK];
    memset(block, 'n', sizeof block);
    AtomicFile *file;
    TRY(atomic_open(&file, path, err));
    Status status = OK;
    for (int i = 0; i < BLOCKS && status == OK; i++) {
        status = atomic_print(file, err, "<%d>", i);
        if (status == OK) status = atomic_write(file, block, sizeof block, err);
    }
    if (status == OK) return atomic_commit(file, err);
    atomic_abandon(file);
    return status;
}

static Status publish_new(const char *path, Error *err) {
    char *temporary = memory_format("%s.part", path);
    char *first = path_join(temporary, "first"), *second = path_join(temporary, "second");
    Status status = folder_create(temporary, err);
    if (status == OK) status = file_write_atomic(first, "1", 1, err);
    if (status == OK) status = file_write_atomic(second, "22", 2, err);
    if (status == OK) status = folder_replace(temporary, path, err);
    memory_free(second);
    memory_free(first);
    memory_free(temporary);
    return status;
}

static Status append_lines(const char *path, Error *err) {
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (fd < 0) FAIL("%s: cannot open", path);
    Status status = OK;
    for (int i = 0; i < 3 && status == OK; i++)
        status = file_append(fd, path, "0123456789\n", 11, err);
    close(fd);
    return status;
}

static int child_main(char **argv) {
    Error err = {0};
    Status status = strcmp(argv[1], "file") == 0     ? write_new(argv[2], &err)
                    : strcmp(argv[1], "folder") == 0 ? publish_new(argv[2], &err)
                                                     : append_lines(argv[2], &err);
    for (int i = 0; i < 4; i++)
        (void)fault_point(FAULT_STEP);
    if (status != OK && strstr(err.text, "No space left on device") == NULL) return 99;
    return (int)status;
}

/* ---- the one that watches ---------------------------------------------------------------------------------------------- */

/* The wait status of this program doing `what` to `path` under a fault. */
static int run_child(const char *what, const char *path, const char *fault) {
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        (void)setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
        setenv("NIBBLE_FAULT", fault, 1);
        if (freopen("/dev/null", "w", stderr) == NULL) _exit(98);
        execl("/proc/self/exe", "test_core_file", what, path, (char *)NULL);
        _exit(97);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    return status;
}

static char *in_root(const char *name) {
    return path_join(root, name);
}

/* Entries of the folder whose name contains `part`. */
static int count_entries(const char *part) {
    DIR *folder = opendir(root);
    assert_non_null(folder);
    int count = 0;
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;)
        count += entry->d_name[0] != '.' && strstr(entry->d_name, part) != NULL;
    closedir(folder);
    return count;
}

static void assert_new(const char *data, size_t length) {
    assert_int_equal(length, BLOCKS * (BLOCK + 3));
    for (int i = 0; i < BLOCKS; i++) {
        const char *block = data + i * (BLOCK + 3);
        assert_int_equal(block[1], '0' + i);
        for (int j = 3; j < BLOCK + 3; j++)
            assert_int_equal(block[j], 'n');
    }
}

static void clean(void) {
    Error err;
    assert_int_equal(folder_remove(root, &err), OK);
    assert_int_equal(folder_create(root, &err), OK);
}

/* Dies at every point of a kind in turn; returns how many there were. The file is the old one or the new one, whole. */
static int kill_file_at_every(const char *kind) {
    char *path = in_root("target");
    int points = 0;
    for (;; points++) {
        Error err;
        clean();
        assert_int_equal(file_write_atomic(path, "old", 3, &err), OK);
        char fault[64];
        (void)snprintf(fault, sizeof fault, "kill@%s:%d", kind, points + 1);
        int status = run_child("file", path, fault);
        char *data;
        size_t length;
        assert_int_equal(file_read(path, 1 << 20, &data, &length, &err), OK);
        if (length == 3)
            assert_memory_equal(data, "old", 4);
        else
            assert_new(data, length);
        memory_free(data);
        if (WIFEXITED(status)) {
            assert_int_equal(WEXITSTATUS(status), 0);
            assert_int_equal(length != 3, 1);
            assert_int_equal(count_entries(".tmp-"), 0);
            break;
        }
        assert_int_equal(WTERMSIG(status), SIGKILL);
        /* before the rename the old file is there with the torn temporary beside it */
        int renamed = strcmp(kind, "fsync") == 0 && points == 1;
        assert_int_equal(length != 3, renamed);
        assert_int_equal(count_entries(".tmp-"), !renamed);
    }
    memory_free(path);
    return points;
}

static void killed_at_every_point(void **state) {
    (void)state;
    assert_int_equal(kill_file_at_every("write"), 6); /* buffer, block: three times */
    assert_int_equal(kill_file_at_every("fsync"), 2); /* the file, its folder */
    assert_int_equal(kill_file_at_every("rename"), 1);
    char *path = in_root("target");
    assert_int_equal(WTERMSIG(run_child("file", path, "kill@step:4")), SIGKILL);
    assert_int_equal(run_child("file", path, "kill@step:5"), 0);
    memory_free(path);
}

static void full_disk_loses_nothing(void **state) {
    (void)state;
    char *path = in_root("target");
    for (int n = 1; n <= 7; n++) {
        Error err;
        clean();
        assert_int_equal(file_write_atomic(path, "old", 3, &err), OK);
        char fault[64];
        (void)snprintf(fault, sizeof fault, "enospc@write:%d", n);
        int status = run_child("file", path, fault);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), n <= 6 ? 1 : 0);
        assert_int_equal(count_entries(".tmp-"), 0); /* the room is given back */
        char *data;
        size_t length;
        assert_int_equal(file_read(path, 1 << 20, &data, &length, &err), OK);
        if (n <= 6)
            assert_string_equal(data, "old");
        else
            assert_new(data, length);
        memory_free(data);
    }
    memory_free(path);
}

static void folder_is_published_whole(void **state) {
    (void)state;
    char *path = in_root("target");
    const char *const kinds[] = {"write", "fsync", "rename"};
    const int expected[] = {2, 6, 3};
    for (size_t k = 0; k < 3; k++) {
        int points = 0;
        for (;; points++) {
            clean();
            char fault[64];
            (void)snprintf(fault, sizeof fault, "kill@%s:%d", kinds[k], points + 1);
            int status = run_child("folder", path, fault);
            if (file_exists(path)) {
                Error err;
                char *second = path_join(path, "second"), *data;
                assert_int_equal(file_read(second, 10, &data, NULL, &err), OK);
                assert_string_equal(data, "22");
                memory_free(data);
                memory_free(second);
            }
            if (WIFEXITED(status)) break;
            assert_int_equal(WTERMSIG(status), SIGKILL);
        }
        assert_int_equal(points, expected[k]);
        assert_true(file_is_folder(path));
    }
    memory_free(path);
}

/* Dies at every step of taking an older folder's place: a reader finds the old one or the new one, whole. */
static void folder_is_replaced_whole(void **state) {
    (void)state;
    char *path = in_root("target"), *second = in_root("target/second"), *data;
    const char *const kinds[] = {"write", "fsync", "rename"};
    const int expected[] = {2, 6, 3};
    for (size_t k = 0; k < 3; k++) {
        int points = 0, is_new = 0;
        for (;; points++) {
            Error err;
            clean();
            assert_int_equal(folder_create(path, &err), OK);
            assert_int_equal(file_write_atomic(second, "old", 3, &err), OK);
            char fault[64];
            (void)snprintf(fault, sizeof fault, "kill@%s:%d", kinds[k], points + 1);
            int status = run_child("folder", path, fault);
            assert_int_equal(file_read(second, 10, &data, NULL, &err), OK);
            is_new = strcmp(data, "22") == 0;
            assert_true(is_new || strcmp(data, "old") == 0);
            memory_free(data);
            if (WIFEXITED(status)) break;
            assert_int_equal(WTERMSIG(status), SIGKILL);
        }
        assert_int_equal(points, expected[k]);
        assert_true(is_new);
        assert_int_equal(count_entries(".part"), 0);
    }
    memory_free(second);
    memory_free(path);
}

static void append_is_torn_in_the_middle_only(void **state) {
    (void)state;
    clean();
    char *path = in_root("log"), *data;
    Error err;
    assert_int_equal(WTERMSIG(run_child("append", path, "kill@write:2")), SIGKILL);
    assert_int_equal(file_read(path, 100, &data, NULL, &err), OK);
    assert_string_equal(data, "0123456789\n01234");
    memory_free(data);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(WEXITSTATUS(run_child("append", path, "enospc@write:3")), 1);
    assert_int_equal(file_read(path, 100, &data, NULL, &err), OK);
    assert_string_equal(data, "0123456789\n0123456789\n01234");
    memory_free(data);
    memory_free(path);
}

static void misspelt_fault_is_not_ignored(void **state) {
    (void)state;
    const char *const bad[] = {"kill@write",      "kill@write:",   "kill@write:0", "kill@wriet:1",
                               "enospc@rename:1", "kill@write:1x", "die@write:1"};
    char *path = in_root("target");
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        int status = run_child("file", path, bad[i]);
        assert_true(WIFSIGNALED(status));
        assert_int_equal(WTERMSIG(status), SIGABRT);
    }
    assert_int_equal(run_child("file", path, ""), 0);
    memory_free(path);
}

static void reading(void **state) {
    (void)state;
    clean();
    Error err;
    char *path = in_root("data"), *missing = in_root("missing"), *fifo = in_root("fifo"), *data = path;
    size_t length = 9;
    assert_int_equal(file_write_atomic(path, "a\0bcd", 5, &err), OK);
    assert_int_equal(file_read(path, 5, &data, &length, &err), OK);
    assert_int_equal(length, 5);
    assert_memory_equal(data, "a\0bcd", 6);
    memory_free(data);
    assert_int_equal(file_read(path, 4, &data, &length, &err), ERR_FAILED);
    assert_null(data);
    assert_non_null(strstr(err.text, "want at most 4 bytes, got 5"));
    assert_int_equal(file_read(missing, 4, &data, &length, &err), ERR_FAILED);
    assert_non_null(strstr(err.text, "No such file"));
    assert_int_equal(file_read(root, 4, &data, &length, &err), ERR_FAILED);
    assert_non_null(strstr(err.text, "a folder"));
    assert_int_equal(mkfifo(fifo, 0600), 0);
    assert_int_equal(file_read(fifo, 4, &data, &length, &err), ERR_FAILED); /* returns: nobody will ever write to it */
    int fd;
    uint64_t size;
    char piece[8];
    assert_int_equal(file_open(path, &fd, &size, &err), OK);
    assert_int_equal(size, 5);
    assert_int_equal(file_read_at(fd, path, 2, piece, 3, &err), OK);
    assert_memory_equal(piece, "bcd", 3);
    assert_int_equal(file_read_at(fd, path, 3, piece, 3, &err), ERR_FAILED);
    assert_non_null(strstr(err.text, "truncated"));
    assert_int_equal(file_read_at(fd, path, UINT64_MAX, piece, 1, &err), ERR_FAILED);
    assert_int_equal(file_read_at(fd, path, INT64_MAX - 1, piece, 8, &err), ERR_FAILED);
    close(fd);
    memory_free(fifo);
    memory_free(missing);
    memory_free(path);
}

static void writing_where_it_cannot(void **state) {
    (void)state;
    clean();
    Error err;
    char *path = in_root("no/such/folder/file"), *folder = in_root("folder"), *inner = in_root("folder/x");
    assert_int_equal(file_write_atomic(path, "x", 1, &err), ERR_FAILED);
    assert_non_null(strstr(err.text, "cannot create"));
    assert_int_equal(folder_create(folder, &err), OK);
    assert_int_equal(file_write_atomic(inner, "x", 1, &err), OK);
    assert_int_equal(file_write_atomic(folder, "x", 1, &err), ERR_FAILED); /* a folder is in the way of the rename */
    assert_int_equal(count_entries(".tmp-"), 0);
    AtomicFile *file;
    assert_int_equal(atomic_open(&file, inner, &err), OK);
    assert_int_equal(atomic_write(file, "yy", 2, &err), OK);
    atomic_abandon(file);
    atomic_abandon(NULL);
    char *data;
    assert_int_equal(file_read(inner, 10, &data, NULL, &err), OK);
    assert_string_equal(data, "x");
    memory_free(data);
    memory_free(inner);
    memory_free(folder);
    memory_free(path);
}

static void folders(void **state) {
    (void)state;
    clean();
    Error err;
    char *deep = in_root("a/b//c/"), *a = in_root("a"), *file = in_root("a/b/file"), *link_path = in_root("a/link");
    char *outside = in_root("outside"), *kept = in_root("outside/kept"), *below_file = in_root("a/b/file/x");
    assert_true(folder_is_empty(a)); /* absent */
    assert_int_equal(folder_create(deep, &err), OK);
    assert_int_equal(folder_create(deep, &err), OK);
    assert_true(file_is_folder(deep));
    assert_true(folder_is_empty(deep));
    assert_false(folder_is_empty(a));
    assert_int_equal(folder_create(outside, &err), OK);
    assert_int_equal(file_write_atomic(kept, "k", 1, &err), OK);
    assert_int_equal(file_write_atomic(file, "f", 1, &err), OK);
    assert_int_equal(symlink(outside, link_path), 0);
    assert_false(file_is_folder(file));
    assert_int_equal(folder_create(file, &err), ERR_FAILED);
    assert_int_equal(folder_create(below_file, &err), ERR_FAILED);
    assert_int_equal(folder_publish(outside, a, &err), ERR_FAILED); /* not empty */
    assert_int_equal(folder_remove(a, &err), OK);
    assert_false(file_exists(a));
    assert_true(file_exists(kept)); /* a link is removed, not followed */
    assert_int_equal(folder_remove(a, &err), OK);
    assert_int_equal(folder_remove(kept, &err), ERR_FAILED); /* not a folder */
    assert_int_equal(folder_create(a, &err), OK);
    assert_int_equal(folder_publish(outside, a, &err), OK); /* onto an empty one */
    assert_false(file_exists(outside));
    char *joined = path_join("x/", "y"), *plain = path_join("x", "y"), *bare = path_join("", "y");
    assert_string_equal(joined, "x/y");
    assert_string_equal(plain, "x/y");
    assert_string_equal(bare, "y");
    char *all[] = {deep, a, file, link_path, outside, kept, below_file, joined, plain, bare};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        memory_free(all[i]);
}

static int make_root(void **state) {
    (void)state;
    return mkdtemp(root) == NULL;
}

static int remove_root(void **state) {
    (void)state;
    return folder_remove(root, NULL) != OK;
}

int main(int argc, char **argv) {
    if (argc == 3) return child_main(argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reading),
        cmocka_unit_test(writing_where_it_cannot),
        cmocka_unit_test(folders),
        cmocka_unit_test(killed_at_every_point),
        cmocka_unit_test(full_disk_loses_nothing),
        cmocka_unit_test(folder_is_published_whole),
        cmocka_unit_test(folder_is_replaced_whole),
        cmocka_unit_test(append_is_torn_in_the_middle_only),
        cmocka_unit_test(misspelt_fault_is_not_ignored),
    };
    return cmocka_run_group_tests(tests, make_root, remove_root);
}
