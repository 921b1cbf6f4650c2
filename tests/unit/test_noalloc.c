/* Between the start of the first micro-batch and the end of the optimizer step nothing is allocated: malloc and its kin are
 * counted in the whole process, libraries included, and the address space must not grow. */
#include <fcntl.h>
#include <stdatomic.h>
#include <unistd.h>

#include "tests/unit/test_core.h"

#include "core/memory.h"
#include "tests/support/tiny_run.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define OWN_MALLOC 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define OWN_MALLOC 0
#endif
#endif
#if !defined(OWN_MALLOC) && defined(__GLIBC__)
#define OWN_MALLOC 1
#elif !defined(OWN_MALLOC)
#define OWN_MALLOC 0
#endif

static _Atomic int counting;
static _Atomic long allocations;

#if OWN_MALLOC
/* glibc's own names of what is replaced here for the whole process (its manual, "Replacing malloc"). */
extern void *__libc_malloc(size_t bytes);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *old, size_t bytes);
extern void *__libc_memalign(size_t alignment, size_t bytes);

static void note(void) {
    if (atomic_load(&counting)) atomic_fetch_add(&allocations, 1);
}

void *malloc(size_t bytes) {
    note();
    return __libc_malloc(bytes);
}

void *calloc(size_t count, size_t size) {
    note();
    return __libc_calloc(count, size);
}

void *realloc(void *old, size_t bytes) {
    note();
    return __libc_realloc(old, bytes);
}

void *aligned_alloc(size_t alignment, size_t bytes) {
    note();
    return __libc_memalign(alignment, bytes);
}

int posix_memalign(void **out, size_t alignment, size_t bytes) {
    note();
    *out = __libc_memalign(alignment, bytes);
    return *out == NULL ? 12 : 0; /* ENOMEM */
}
#endif

/* Pages of the address space, read without allocating; any mmap, brk or new thread changes it. */
static long address_space(void) {
    char text[128];
    int fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    text[n > 0 ? n : 0] = 0;
    return strtol(text, NULL, 10);
}

typedef struct Case {
    const char *name;
    const char *overrides[TINY_RUN_OVERRIDES];
    int threads;
} Case;

/* Steps of one run, across the end of an epoch: micro-batches of all sizes come. */
static void run_case(const Case *c) {
    Error err = {0};
    Status status;
    Trainer *trainer = tiny_run_open(c->overrides, c->threads);
    if (trainer == NULL) print_error("%s\n", c->name);
    assert_non_null(trainer);
    int64_t supervised = 0;
    for (int step = 0; step < 12; step++) {
        StepResult result;
        assert_int_equal(trainer_gather(trainer, &err), OK);
        long before = address_space();
        atomic_store(&allocations, 0);
        atomic_store(&counting, 1);
        status = trainer_step(trainer, &result, &err);
        atomic_store(&counting, 0);
        assert_int_equal(status, OK);
        assert_int_equal(result.bad, 0);
        assert_int_equal(atomic_load(&allocations), 0);
        assert_int_equal(address_space(), before);
        assert_true(result.grad_norm > 0.0);
        supervised += trainer->step.supervised;
    }
    assert_int_equal(trainer->progress.step, 12);
    assert_int_equal(trainer->progress.trained_tokens, supervised);
    assert_true(trainer->stream.epoch > 0);
    trainer_close(trainer);
    memory_free(trainer);
}

static void nothing_is_allocated(void **state) {
    (void)state;
    static const Case cases[] = {
        {"defaults", {NULL}, 2},
        {"one thread", {NULL}, 1},
        {"layers recomputed, dropout", {"train.recompute=\"layers\"", "lora.dropout=0.1"}, 3},
        {"f32", {"precision=\"f32\""}, 2},
        {"f32, layers recomputed", {"precision=\"f32\"", "train.recompute=\"layers\""}, 2},
        {"fp4", {"quant.type=\"fp4\""}, 2},
        {"int8", {"quant.type=\"int8\"", "train.recompute=\"layers\""}, 2},
        {"int4", {"quant.type=\"int4\""}, 2},
        {"a 16-bit base", {"method=\"lora\""}, 2},
        {"full training", {"method=\"full\""}, 2},
        {"full training, layers recomputed, f32", {"method=\"full\"", "train.recompute=\"layers\"", "precision=\"f32\""}, 3},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        run_case(&cases[i]);
}

/* The counters see what they are there for. */
static void the_counters_count(void **state) {
    (void)state;
    if (!OWN_MALLOC) {
        print_message("skipped: malloc belongs to the sanitizer or to another C library; only the address space is watched\n");
        skip();
    }
    atomic_store(&allocations, 0);
    atomic_store(&counting, 1);
    char *volatile text = memory_strdup("counted");
    char *volatile zeros = calloc(3, 5);
    text = realloc(text, 4096);
    FILE *file = fopen("/dev/null", "re"); /* inside the C library */
    atomic_store(&counting, 0);
    assert_true(atomic_load(&allocations) >= 4);
    fclose(file);
    free(zeros);
    free(text);
    long before = address_space();
    Arena arena;
    Error err;
    assert_int_equal(arena_create(&arena, "test", (size_t)1 << 20, &err), OK);
    assert_true(before > 0 && address_space() > before);
    arena_free(&arena);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_counters_count), cmocka_unit_test(nothing_is_allocated)};
    return cmocka_run_group_tests(tests, tiny_run_prepare, tiny_run_clean);
}
