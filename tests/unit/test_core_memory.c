#include "tests/unit/test_core.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/error.h"
#include "core/memory.h"

static void arena_takes_aligned_pieces(void **state) {
    (void)state;
    Arena arena;
    Error err;
    assert_int_equal(arena_create(&arena, "test", 1000, &err), OK);
    assert_int_equal(arena.capacity, 1024);
    void *a, *b;
    assert_int_equal(arena_take(&arena, 1, &a, &err), OK);
    assert_int_equal(arena_take(&arena, 65, &b, &err), OK);
    assert_int_equal((uintptr_t)a % ARENA_ALIGN, 0);
    assert_ptr_equal(b, (uint8_t *)a + 64);
    assert_int_equal(arena.used, 192);
    memset(arena.base, 1, arena.capacity); /* all of it can be written */
    size_t mark = arena_mark(&arena);
    assert_int_equal(arena_take(&arena, 832, &a, &err), OK);
    arena_reset(&arena, mark);
    assert_int_equal(arena.used, 192);
    assert_int_equal(arena.high_water, 1024);
    arena_free(&arena);
    assert_null(arena.base);
}

static void arena_refuses_what_does_not_fit(void **state) {
    (void)state;
    Arena arena;
    Error err;
    void *piece = &arena;
    assert_int_equal(arena_create(&arena, "small", 128, &err), OK);
    assert_int_equal(arena_take(&arena, 129, &piece, &err), ERR_FAILED);
    assert_non_null(strstr(err.text, "small: 129 more bytes"));
    assert_int_equal(arena_take(&arena, SIZE_MAX, &piece, &err), ERR_FAILED); /* rounding up wraps */
    assert_int_equal(arena_take(&arena, SIZE_MAX - 64, &piece, &err), ERR_FAILED);
    assert_ptr_equal(piece, &arena);
    assert_int_equal(arena.used, 0);
    arena_free(&arena);
    assert_int_equal(arena_create(&arena, "huge", SIZE_MAX, &err), ERR_FAILED);
    assert_int_equal(arena_create(&arena, "huge", SIZE_MAX / 4, &err), ERR_FAILED);
    assert_non_null(strstr(err.text, "huge"));
}

/* A plan made by counting equals what a real arena uses. */
static void counting_equals_taking(void **state) {
    (void)state;
    Arena plan, real;
    Error err;
    void *piece;
    const size_t sizes[] = {1, 64, 63, 4097, 0, 100000};
    arena_count(&plan, "plan");
    for (size_t i = 0; i < 6; i++) {
        assert_int_equal(arena_take(&plan, sizes[i], &piece, &err), OK);
        assert_null(piece);
    }
    assert_int_equal(arena_create(&real, "real", plan.high_water, &err), OK);
    for (size_t i = 0; i < 6; i++)
        assert_int_equal(arena_take(&real, sizes[i], &piece, &err), OK);
    assert_int_equal(real.used, plan.used);
    assert_int_equal(real.used, real.capacity);
    arena_free(&real);
    arena_free(&plan);
}

/* The signal that ends a child which runs `action`; 0 when it lives. */
static int child_signal(void (*action)(void)) {
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        signal(SIGABRT, SIG_DFL); /* cmocka's handler would report a failure */
        (void)setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
        if (freopen("/dev/null", "w", stderr) == NULL) _exit(3);
        action();
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    if (WIFEXITED(status)) assert_int_equal(WEXITSTATUS(status), 0);
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

static void alloc_in_step(void) {
    memory_forbid(+1);
    memory_free(memory_alloc(8));
}

static void alloc_after_step(void) {
    memory_forbid(+1);
    memory_forbid(+1);
    memory_forbid(-1);
    memory_forbid(-1);
    memory_free(memory_alloc(8));
}

static void arena_in_step(void) {
    Arena arena;
    memory_forbid(+1);
    (void)arena_create(&arena, "late", 64, NULL);
}

static void forbidding_aborts(void **state) {
    (void)state;
    assert_int_equal(child_signal(alloc_in_step), SIGABRT);
    assert_int_equal(child_signal(arena_in_step), SIGABRT);
    assert_int_equal(child_signal(alloc_after_step), 0);
}

static void allocation_family(void **state) {
    (void)state;
    void *none = memory_alloc(0);
    assert_non_null(none);
    memory_free(none);
    uint8_t *zeros = memory_calloc(10, 10);
    for (int i = 0; i < 100; i++)
        assert_int_equal(zeros[i], 0);
    zeros[99] = 7;
    zeros = memory_resize(zeros, 200);
    assert_int_equal(zeros[99], 7);
    memory_free(zeros);
    memory_free(NULL);
    char *text = memory_format("%s-%05d", "x", 42), *copy = memory_strdup(text);
    assert_string_equal(copy, "x-00042");
    memory_free(text);
    memory_free(copy);
    size_t out;
    assert_true(size_mul(SIZE_MAX / 2, 3, &out));
    assert_true(size_add(SIZE_MAX, 1, &out));
    assert_false(size_mul(3, 5, &out));
    assert_int_equal(out, 15);
}

static void resident_follows_use(void **state) {
    (void)state;
    const size_t bytes = (size_t)64 << 20;
    size_t before = memory_resident();
    assert_true(before > 0);
    Arena arena;
    Error err;
    assert_int_equal(arena_create(&arena, "pages", bytes, &err), OK);
    memset(arena.base, 1, bytes);
    assert_true(memory_resident() >= before + bytes / 2); /* other pages of the process may leave meanwhile */
    arena_free(&arena);
    assert_true(memory_resident_peak() >= before + bytes / 2);
    assert_true(memory_available() > 0);
}

static void error_text(void **state) {
    (void)state;
    Error err;
    assert_int_equal(error_set(&err, ERR_USAGE, "want %d, got %d", 1, 2), ERR_USAGE);
    assert_int_equal(err.status, ERR_USAGE);
    error_prefix(&err, "file %s", "x");
    assert_string_equal(err.text, "file x: want 1, got 2");
    assert_int_equal(error_set(&err, ERR_FAILED, "again: %s", err.text), ERR_FAILED); /* the text may be its own argument */
    assert_string_equal(err.text, "again: file x: want 1, got 2");
    error_prefix(&err, "%s", err.text);
    assert_string_equal(err.text, "again: file x: want 1, got 2: again: file x: want 1, got 2");
    assert_int_equal(error_set(NULL, ERR_FAILED, "nobody listens"), ERR_FAILED);
    error_prefix(NULL, "nobody");
}

static void error_text_is_cut_not_overrun(void **state) {
    (void)state;
    struct {
        Error err;
        char canary[8];
    } box;
    memset(&box, 'c', sizeof box);
    char *longest = memory_alloc(5000);
    memset(longest, 'a', 4999);
    longest[4999] = 0;
    (void)error_set(&box.err, ERR_FAILED, "%s", longest);
    assert_int_equal(strlen(box.err.text), sizeof box.err.text - 1);
    error_prefix(&box.err, "front");
    assert_int_equal(strlen(box.err.text), sizeof box.err.text - 1);
    assert_memory_equal(box.err.text, "front: aaa", 10);
    error_prefix(&box.err, "%s", longest);
    assert_int_equal(strlen(box.err.text), sizeof box.err.text - 1);
    assert_memory_equal(box.canary, "cccccccc", 8);
    memory_free(longest);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(arena_takes_aligned_pieces),
                                       cmocka_unit_test(arena_refuses_what_does_not_fit),
                                       cmocka_unit_test(counting_equals_taking),
                                       cmocka_unit_test(forbidding_aborts),
                                       cmocka_unit_test(allocation_family),
                                       cmocka_unit_test(resident_follows_use),
                                       cmocka_unit_test(error_text),
                                       cmocka_unit_test(error_text_is_cut_not_overrun)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
