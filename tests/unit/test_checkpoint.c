/* Checkpoints: bit-equal when whole, recognised when not, and never lost to a death or a full disk.
 *
 * Faults come from the environment, once per process, so the program runs itself again as the one that dies. */
#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zstd.h>

#include <cmocka.h>

#include "core/file.h"
#include "core/hash.h"
#include "core/memory.h"
#include "core/philox.h"
#include "tests/support/compare.h"
#include "train/checkpoint.h"
#include "train/checkpoint_internal.h"

enum { ELEMENTS = 60007 }; /* no multiple of any piece; 704 KiB of noise, so that several pieces are written */

static char run[] = "/tmp/nibble-test-checkpoint-XXXXXX";

typedef struct Params {
    ParamState state;
} Params;

/* Noise that does not shrink, NaNs and denormals among it; another seed, other numbers. seed 0: all bytes 0x55. */
static Params params_create(uint32_t seed) {
    Params params = {0};
    float **buffers[3] = {&params.state.master, &params.state.m, &params.state.v};
    for (uint32_t b = 0; b < 3; b++) {
        uint32_t *bits = memory_alloc(ELEMENTS * sizeof *bits);
        memset(bits, 0x55, ELEMENTS * sizeof *bits);
        for (uint32_t i = 0; seed != 0 && i < ELEMENTS; i++)
            bits[i] = (uint32_t)hash_bytes(&(uint32_t[3]){seed, b, i}, 12);
        *buffers[b] = (float *)bits;
    }
    return params;
}

static void params_destroy(Params *params) {
    memory_free(params->state.master);
    memory_free(params->state.m);
    memory_free(params->state.v);
}

static void assert_same_params(const Params *a, const Params *b) {
    assert_memory_equal(a->state.master, b->state.master, ELEMENTS * sizeof(float));
    assert_memory_equal(a->state.m, b->state.m, ELEMENTS * sizeof(float));
    assert_memory_equal(a->state.v, b->state.v, ELEMENTS * sizeof(float));
}

static CheckpointState state_of(int64_t step) {
    return (CheckpointState){.step = step,
                             .micro_batches = 8 * step,
                             .optimizer_steps = step - 1,
                             .bad_steps = 1,
                             .tokens = 4096 * step,
                             .trained_tokens = 1234 * step,
                             .seconds = 0.1 + (double)step / 3.0,
                             .first_eval = 2.7182818284590452,
                             .best_eval = NAN,
                             .best_step = -1,
                             .last_eval = -1,
                             .data_hash = 0xFEDCBA9876543210u,
                             .weights_hash = 1,
                             .config_hash = UINT64_MAX,
                             .elements = ELEMENTS};
}

static void save(int64_t step) {
    Error err;
    Params params = params_create((uint32_t)step);
    CheckpointState state = state_of(step);
    assert_ok(checkpoint_save(run, &state, &params.state, &err), &err);
    params_destroy(&params);
}

static void clean(void) {
    Error err;
    assert_ok(folder_remove(run, &err), &err);
    assert_ok(folder_create(run, &err), &err);
}

static char *in_step(int64_t step, const char *name) {
    return memory_format("%s/checkpoints/step-%lld%s%s", run, (long long)step, name[0] ? "/" : "", name);
}

/* Loads and wants `step` (-1: nothing, and the parameters as they were) with a skipped line that contains `why`. */
static void assert_loads(int64_t step, const char *why) {
    Error err = {0};
    Params got = params_create(0), want = params_create(step < 0 ? 0 : (uint32_t)step);
    CheckpointState state;
    Text skipped = {0};
    int found;
    memset(&state, 0xAA, sizeof state);
    assert_ok(checkpoint_load(run, ELEMENTS, &state, &got.state, &found, &skipped, &err), &err);
    assert_int_equal(found, step >= 0);
    assert_same_params(&got, &want);
    if (step >= 0) {
        CheckpointState wanted = state_of(step);
        assert_int_equal(state.step, step);
        assert_int_equal(state.micro_batches, wanted.micro_batches);
        assert_int_equal(state.optimizer_steps, wanted.optimizer_steps);
        assert_int_equal(state.bad_steps, 1);
        assert_int_equal(state.tokens, wanted.tokens);
        assert_int_equal(state.trained_tokens, wanted.trained_tokens);
        assert_memory_equal(&state.seconds, &wanted.seconds, sizeof(double));
        assert_memory_equal(&state.first_eval, &wanted.first_eval, sizeof(double));
        assert_true(isnan(state.best_eval));
        assert_int_equal(state.best_step, -1);
        assert_true(state.data_hash == wanted.data_hash && state.weights_hash == 1 && state.config_hash == UINT64_MAX);
        assert_int_equal(state.elements, ELEMENTS);
    }
    if (why == NULL)
        assert_int_equal(skipped.length, 0);
    else if (skipped.data == NULL || strstr(skipped.data, why) == NULL)
        fail_msg("want \"%s\" among the reasons, got: %s", why, skipped.data ? skipped.data : "none");
    text_free(&skipped);
    params_destroy(&want);
    params_destroy(&got);
}

/* Entries of RUN/checkpoints. */
static int count_checkpoints(void) {
    char *path = path_join(run, "checkpoints");
    DIR *folder = opendir(path);
    memory_free(path);
    int count = 0;
    if (folder == NULL) return 0;
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;)
        count += entry->d_name[0] != '.';
    closedir(folder);
    return count;
}

static char *read_all(const char *path, size_t *length) {
    Error err;
    char *data;
    assert_ok(file_read(path, (size_t)1 << 24, &data, length, &err), &err);
    return data;
}

static void write_all(const char *path, const char *data, size_t length) {
    Error err;
    assert_ok(file_write_atomic(path, data, length, &err), &err);
}

/* ---- whole ones ------------------------------------------------------------------------------------------------------------- */

static void round_trip_is_bit_equal(void **state) {
    (void)state;
    clean();
    assert_loads(-1, NULL); /* no folder yet */
    save(7);
    assert_loads(7, NULL);
    save(10);
    save(9); /* names are numbers: 10 is newer than 9; but a save of 9 says that 10 was passed over */
    assert_loads(9, NULL);
    save(100);
    assert_loads(100, NULL);
    assert_int_equal(count_checkpoints(), 3);
    save(100); /* the same step again takes its own place */
    assert_loads(100, NULL);
    assert_int_equal(count_checkpoints(), 3);
    CheckpointState got;
    Error err;
    char *folder = in_step(100, "");
    assert_ok(checkpoint_inspect(folder, &got, &err), &err);
    assert_int_equal(got.step, 100);
    memory_free(folder);
}

static void empty_parameters_are_fine(void **state) {
    (void)state;
    clean();
    Error err;
    float none = 0.0f;
    ParamState params = {.master = &none, .m = &none, .v = &none};
    CheckpointState saved = state_of(3), got;
    saved.elements = 0;
    int found;
    Text skipped = {0};
    assert_ok(checkpoint_save(run, &saved, &params, &err), &err);
    assert_ok(checkpoint_load(run, 0, &got, &params, &found, &skipped, &err), &err);
    assert_int_equal(found, 1);
    text_free(&skipped);
}

static void another_shape_is_refused(void **state) {
    (void)state;
    clean();
    save(5);
    Error err;
    Params got = params_create(0), want = params_create(0);
    CheckpointState loaded;
    Text skipped = {0};
    int found;
    assert_refused(checkpoint_load(run, ELEMENTS - 1, &loaded, &got.state, &found, &skipped, &err), &err,
                   "belongs to another model or config");
    assert_same_params(&got, &want);
    text_free(&skipped);
    params_destroy(&want);
    params_destroy(&got);
}

static void pruning_keeps_the_newest(void **state) {
    (void)state;
    clean();
    Error err;
    assert_ok(checkpoint_prune(run, 2, -1, &err), &err); /* nothing there */
    const int64_t steps[] = {2, 9, 10, 99, 100};
    for (size_t i = 0; i < 5; i++)
        save(steps[i]);
    assert_ok(checkpoint_prune(run, 2, 9, &err), &err);
    assert_int_equal(count_checkpoints(), 3);
    for (size_t i = 0; i < 5; i++) {
        char *folder = in_step(steps[i], "");
        assert_int_equal(file_is_folder(folder), steps[i] == 9 || steps[i] >= 99);
        memory_free(folder);
    }
    assert_ok(checkpoint_prune(run, 1, -1, &err), &err);
    assert_int_equal(count_checkpoints(), 1);
    assert_loads(100, NULL);
}

static void leftovers_are_cleared(void **state) {
    (void)state;
    Error err;
    clean();
    save(4);
    char *half = in_step(6, ".tmp-123"), *aside = memory_format("%s/checkpoints/step-4.old", run);
    half[strlen(half) - strlen("/.tmp-123")] = 0;
    char *half_folder = memory_format("%s.tmp-123", half), *place = in_step(4, "");
    assert_ok(folder_create(half_folder, &err), &err);
    assert_ok(folder_create(aside, &err), &err);
    assert_loads(4, NULL);
    assert_int_equal(count_checkpoints(), 1);
    assert_int_equal(rename(place, aside), 0); /* died between moving the old one aside and putting the new one there */
    assert_loads(4, NULL);
    assert_int_equal(count_checkpoints(), 1);
    memory_free(place);
    memory_free(half_folder);
    memory_free(aside);
    memory_free(half);
}

/* ---- damage ----------------------------------------------------------------------------------------------------------------- */

typedef struct Damage {
    const char *file, *why; /* why: in the reason that is given */
    enum { CUT, APPEND, FLIP, REMOVE, EMPTY, FOLDER } kind;
    double where; /* of the file's length */
} Damage;

static void spoil(const char *path, const Damage *damage) {
    Error err;
    size_t length;
    char *data = read_all(path, &length);
    size_t at = (size_t)(damage->where * (double)length);
    if (at >= length) at = length - 1;
    char *longer = memory_alloc(length + 1);
    memcpy(longer, data, length);
    longer[length] = 0;
    switch (damage->kind) {
        case CUT: write_all(path, data, at); break;
        case APPEND: write_all(path, longer, length + 1); break;
        case EMPTY: write_all(path, "", 0); break;
        case FLIP:
            longer[at] = (char)(longer[at] ^ 4);
            write_all(path, longer, length);
            break;
        case REMOVE: assert_int_equal(unlink(path), 0); break;
        case FOLDER:
            assert_int_equal(unlink(path), 0);
            assert_ok(folder_create(path, &err), &err);
            break;
    }
    memory_free(longer);
    memory_free(data);
}

static void damage_is_passed_over(void **state) {
    (void)state;
    static const Damage damages[] = {
        {"params.zst", "step-20: params.zst: want", CUT, 0.5},  {"params.zst", "step-20: params.zst: want", CUT, 1.0},
        {"params.zst", "step-20: params.zst: want", APPEND, 0}, {"params.zst", "step-20: params.zst: want", EMPTY, 0},
        {"params.zst", "step-20: params.zst: ", FLIP, 0.0},     {"params.zst", "step-20: params.zst: ", FLIP, 0.00001},
        {"params.zst", "step-20: params.zst: ", FLIP, 0.3},     {"params.zst", "step-20: params.zst: ", FLIP, 0.7},
        {"params.zst", "step-20: params.zst: ", FLIP, 1.0},     {"params.zst", "No such file", REMOVE, 0},
        {"params.zst", "want a regular file", FOLDER, 0},       {"state.json", "step-20: state.json: ", CUT, 0.5},
        {"state.json", "step-20: state.json: ", EMPTY, 0},      {"state.json", "step-20: state.json: ", APPEND, 0},
        {"state.json", "step-20: state.json: ", FLIP, 0.2},     {"state.json", "No such file", REMOVE, 0},
        {"state.json", "want a regular file", FOLDER, 0},
    };
    for (size_t i = 0; i < sizeof damages / sizeof damages[0]; i++) {
        clean();
        save(10);
        save(20);
        char *path = in_step(20, damages[i].file);
        spoil(path, &damages[i]);
        assert_loads(10, damages[i].why);
        memory_free(path);
    }
}

static void every_flipped_bit_of_the_state_shows(void **state) {
    (void)state;
    clean();
    save(20);
    char *path = in_step(20, "state.json"), *folder = in_step(20, "");
    size_t length;
    char *data = read_all(path, &length);
    for (size_t bit = 0; bit < 8 * length; bit++) {
        CheckpointState got;
        CheckpointFile file;
        Error err;
        data[bit / 8] = (char)(data[bit / 8] ^ 1 << bit % 8);
        uint64_t claimed = 0;
        size_t covered = 0;
        Status status = checkpoint_state_parse("state.json", data, length, &got, &file, &claimed, &covered, &err);
        if (status == OK && hash_bytes(data, covered) == claimed) fail_msg("bit %zu does not show", bit);
        data[bit / 8] = (char)(data[bit / 8] ^ 1 << bit % 8);
    }
    memory_free(data);
    memory_free(folder);
    memory_free(path);
}

static void renamed_and_foreign_names(void **state) {
    (void)state;
    Error err;
    clean();
    save(10);
    char *from = in_step(10, ""), *to = in_step(30, "");
    save(20);
    assert_int_equal(rename(from, to), 0);
    assert_loads(20, "step-30: state.json: it is of step 10; was the folder renamed?");
    /* none of these is a checkpoint's name */
    static const char *const names[] = {"step-", "step-x", "step-007", "step-+9", "step--1", "step-99999999999999999999",
                                        "other"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char *path = memory_format("%s/checkpoints/%s", run, names[i]);
        assert_ok(folder_create(path, &err), &err);
        memory_free(path);
    }
    char *file = in_step(40, "");
    write_all(file, "x", 1);
    assert_loads(20, "step-40: not a folder");
    memory_free(file);
    memory_free(to);
    memory_free(from);
}

static void all_damaged_leaves_everything_as_it_was(void **state) {
    (void)state;
    clean();
    save(10);
    save(20);
    const Damage flip = {"params.zst", "", FLIP, 0.99}; /* late: most of it decompresses */
    for (int64_t step = 10; step <= 20; step += 10) {
        char *path = in_step(step, flip.file);
        spoil(path, &flip);
        memory_free(path);
    }
    assert_loads(-1, "step-10: params.zst: cannot decompress: Restored data doesn't match checksum");
    save(5); /* and the run that starts again is not pruned in favour of them */
    Error err;
    assert_ok(checkpoint_prune(run, 1, -1, &err), &err);
    assert_loads(5, NULL);
}

/* A params.zst and a state.json that agree with each other, but not with what they promise. */
static void put_hostile(const void *bytes, size_t length, int64_t elements) {
    CheckpointState state = state_of(20);
    state.elements = elements;
    char *params = in_step(20, "params.zst"), *path = in_step(20, "state.json");
    CheckpointFile file = {length, hash_bytes(bytes, length)};
    Text text = {0};
    checkpoint_state_print(&state, &file, &text);
    write_all(params, bytes, length);
    write_all(path, text.data, text.length);
    text_free(&text);
    memory_free(path);
    memory_free(params);
}

static void consistent_but_hostile_params(void **state) {
    (void)state;
    clean();
    save(10);
    save(20);
    size_t bytes = (size_t)3 * ELEMENTS * 4, room = ZSTD_compressBound(bytes + 64);
    char *zeros = memory_calloc(bytes + 64, 1), *packed = memory_alloc(room + 64);
    size_t length = ZSTD_compress(packed, room, zeros, bytes - 4, 1);
    put_hostile(packed, length, ELEMENTS);
    assert_loads(10, "bytes of numbers, got");
    length = ZSTD_compress(packed, room, zeros, bytes + 4, 1);
    put_hostile(packed, length, ELEMENTS);
    assert_loads(10, "bytes of numbers, got more");
    length = ZSTD_compress(packed, room, zeros, bytes, 1);
    memcpy(packed + length, packed, 16); /* a second frame begins */
    put_hostile(packed, length + 16, ELEMENTS);
    assert_loads(10, "something follows");
    put_hostile(packed, length - 3, ELEMENTS);
    assert_loads(10, "step-20: params.zst: want");
    put_hostile("", 0, ELEMENTS);
    assert_loads(10, "step-20: params.zst: want");
    put_hostile("not zstd at all", 15, ELEMENTS);
    assert_loads(10, "cannot decompress");
    put_hostile(packed, length, CHECKPOINT_MAX_ELEMENTS); /* nothing of that size may be allocated */
    assert_loads(10, "bytes of numbers, got");
    ZSTD_CCtx *wide = ZSTD_createCCtx(); /* a window of 128 MiB would be allocated by a trusting reader */
    ZSTD_CCtx_setParameter(wide, ZSTD_c_windowLog, 27);
    ZSTD_CCtx_setParameter(wide, ZSTD_c_contentSizeFlag, 0);
    ZSTD_inBuffer in = {zeros, bytes, 0};
    ZSTD_outBuffer out = {packed, room, 0};
    while (in.pos < in.size)
        assert_false(ZSTD_isError(ZSTD_compressStream2(wide, &out, &in, ZSTD_e_continue)));
    assert_int_equal(ZSTD_compressStream2(wide, &out, &in, ZSTD_e_end), 0);
    put_hostile(packed, out.pos, ELEMENTS);
    assert_loads(10, "too much memory");
    ZSTD_freeCCtx(wide);
    memory_free(packed);
    memory_free(zeros);
}

static void hostile_states(void **state) {
    (void)state;
    CheckpointState good = state_of(20);
    Text text = {0};
    checkpoint_state_print(&good, &(CheckpointFile){99, 7}, &text);
    static const struct {
        const char *from, *to, *why;
    } cases[] = {
        {"\"version\": 1", "\"version\": 2", "version"},
        {"\"step\": 20", "\"step\": -1", "step"},
        {"\"step\": 20", "\"step\": 20.5", "step"},
        {"\"step\": 20", "\"step\": \"20\"", "step"},
        {"\"step\": 20", "\"step\": 99999999999999999999", "step"},
        {"\"step\": 20", "\"step\": 20, \"step\": 20", "want the key \"micro_batches\""},
        {"\"step\": 20,", "", "want the key \"step\""},
        {"\"step\"", "\"stride\"", "want the key \"step\""},
        {"\"best_step\": -1", "\"best_step\": -2", "best_step"},
        {"\"best_eval\": null", "\"best_eval\": NaN", "state.json"},
        {"\"best_eval\": null", "\"best_eval\": true", "best_eval"},
        {"\"best_eval\": null", "\"best_eval\": 1e999", "state.json"},
        {"\"best_eval\": null", "\"best_eval\": [[[[[[[[[[1]]]]]]]]]]", "nested deeper"},
        {"\"fedcba9876543210\"", "\"FEDCBA9876543210\"", "16 hexadecimal digits"},
        {"\"fedcba9876543210\"", "\"fedcba987654321\"", "16 hexadecimal digits"},
        {"\"fedcba9876543210\"", "123", "data_hash"},
        {"\"elements\": 60007", "\"elements\": 9223372036854775807", "want at most"},
        {"\"params_bytes\": 99", "\"params_bytes\": -99", "params_bytes"},
        {"}\n", "}\n{}", "state.json"},
        {"}\n", "", "state.json"},
        {"{", "[", "state.json"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const char *at = strstr(text.data, cases[i].from);
        assert_non_null(at);
        char *changed = memory_format("%.*s%s%s", (int)(at - text.data), text.data, cases[i].to, at + strlen(cases[i].from));
        CheckpointState got;
        CheckpointFile file;
        uint64_t claimed;
        size_t covered;
        Error err;
        assert_refused(checkpoint_state_parse("state.json", changed, strlen(changed), &got, &file, &claimed, &covered, &err),
                       &err, cases[i].why);
        memory_free(changed);
    }
    text_free(&text);
}

static void huge_states_are_not_read(void **state) {
    (void)state;
    clean();
    save(10);
    save(20);
    size_t length = CHECKPOINT_STATE_LIMIT + 1;
    char *path = in_step(20, "state.json"), *data = memory_alloc(length);
    memset(data, ' ', length);
    write_all(path, data, length);
    assert_loads(10, "want at most");
    memory_free(data);
    memory_free(path);
}

/* ---- deaths and full disks -------------------------------------------------------------------------------------------------- */

static int child_main(char **argv) {
    Error err;
    Params params = params_create((uint32_t)atoi(argv[2]));
    CheckpointState state = state_of(atoi(argv[2]));
    Status status = checkpoint_save(argv[1], &state, &params.state, &err);
    params_destroy(&params);
    return (int)status;
}

static int save_under(const char *fault, int64_t step) {
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        char number[24];
        (void)snprintf(number, sizeof number, "%lld", (long long)step);
        (void)setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
        setenv("NIBBLE_FAULT", fault, 1);
        execl("/proc/self/exe", "test_checkpoint", run, number, (char *)NULL);
        _exit(97);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    return status;
}

/* Dies at every point of a kind in turn while step `step` is saved beside step 10, until none is left. */
static int kill_at_every(const char *kind, int64_t step) {
    for (int points = 1;; points++) {
        clean();
        save(10);
        char fault[64];
        (void)snprintf(fault, sizeof fault, "kill@%s:%d", kind, points);
        int status = save_under(fault, step);
        char *place = in_step(step, "");
        int published = step == 10 || file_is_folder(place);
        memory_free(place);
        if (WIFEXITED(status)) {
            assert_int_equal(WEXITSTATUS(status), 0);
            assert_loads(step, NULL);
            return points - 1;
        }
        assert_int_equal(WTERMSIG(status), SIGKILL);
        assert_loads(published ? step : 10, NULL); /* the older one, or the new one whole */
        save(step + 1);                            /* and what was left behind is in nobody's way */
        assert_loads(step + 1, NULL);
    }
}

static void a_death_at_any_point_leaves_the_older_one(void **state) {
    (void)state;
    /* pieces of params.zst (720084 bytes of noise: 5 of 128 KiB, then the rest), state.json */
    int writes = kill_at_every("write", 20);
    if (writes < 6) fail_msg("want several writes to die at, got %d", writes);
    assert_int_equal(kill_at_every("fsync", 20), 6);  /* both files and after each its folder; the folder, and its parent */
    assert_int_equal(kill_at_every("rename", 20), 3); /* both files; the folder */
    assert_int_equal(kill_at_every("rename", 10), 3); /* saving a step again */
    assert_int_equal(kill_at_every("fsync", 10), 6);
}

static void a_full_disk_loses_nothing(void **state) {
    (void)state;
    for (int n = 1;; n++) {
        clean();
        save(10);
        char fault[64];
        (void)snprintf(fault, sizeof fault, "enospc@write:%d", n);
        int status = save_under(fault, 20);
        assert_true(WIFEXITED(status));
        if (WEXITSTATUS(status) == 0) {
            assert_true(n > 6);
            assert_loads(20, NULL);
            return;
        }
        assert_int_equal(WEXITSTATUS(status), 1);
        assert_int_equal(count_checkpoints(), 1); /* the room is given back */
        assert_loads(10, NULL);
    }
}

static int setup(void **state) {
    (void)state;
    return mkdtemp(run) == NULL;
}

static int teardown(void **state) {
    (void)state;
    Error err;
    return (int)folder_remove(run, &err);
}

int main(int argc, char **argv) {
    if (argc == 3) return child_main(argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trip_is_bit_equal),
        cmocka_unit_test(empty_parameters_are_fine),
        cmocka_unit_test(another_shape_is_refused),
        cmocka_unit_test(pruning_keeps_the_newest),
        cmocka_unit_test(leftovers_are_cleared),
        cmocka_unit_test(damage_is_passed_over),
        cmocka_unit_test(every_flipped_bit_of_the_state_shows),
        cmocka_unit_test(renamed_and_foreign_names),
        cmocka_unit_test(all_damaged_leaves_everything_as_it_was),
        cmocka_unit_test(consistent_but_hostile_params),
        cmocka_unit_test(hostile_states),
        cmocka_unit_test(huge_states_are_not_read),
        cmocka_unit_test(a_death_at_any_point_leaves_the_older_one),
        cmocka_unit_test(a_full_disk_loses_nothing),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
