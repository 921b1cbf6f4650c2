/* The token cache: the same data as without it, found again, built once, damage seen, nothing half done. */
#include "tests/unit/test_dataset.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "data/cache.h"
#include "data/packing.h"
#include "train/batches.h"

/* Ragged records, some of them bad, empty or too long; several frames of the cache. */
static void make_records(Text *out, int count, int seed) {
    for (int i = 0; i < count; i++) {
        unsigned random = (unsigned)(i + seed) * 2654435761u;
        if (i % 97 == 13)
            text_adds(out, "{\"prompt\": 1}\n");
        else
            text_addf(out, "{\"prompt\":\"Hi %d\",\"completion\":\"%.*s\"}\n", i, (int)(random >> 8) % 180,
                      "bc Hi bc bc a Hi bc d eee f Hi Hi bc gg hhh bc Hi iii bc jjjj k bc ll mm bc Hi nn bc oo pp bc qq Hi rr "
                      "bc ss tt bc Hi uu vv bc ww xx bc yy zz Hi bc 00 11 bc 22 33 Hi bc 44 55 66 bc 77");
    }
}

static DatasetOptions cached_options(const Tokenizer *tokenizer, const char *root) {
    DatasetOptions options = defaults(tokenizer);
    options.on_error = ON_ERROR_SKIP;
    options.max_length = 96;
    options.cache = root;
    return options;
}

static Dataset must_open(DatasetOptions options, const char *path) {
    Dataset d;
    Error error = {0};
    options.path = path;
    if (dataset_read(&options, &d, &error) != OK) fail_msg("%s", error.text);
    return d;
}

static void check_equal(const Dataset *a, const Dataset *b) {
    assert_int_equal(a->count, b->count);
    assert_int_equal(a->tokens, b->tokens);
    assert_true(a->hash == b->hash);
    assert_int_equal(a->records, b->records);
    assert_int_equal(a->skipped_bad, b->skipped_bad);
    assert_int_equal(a->skipped_untrained, b->skipped_untrained);
    assert_int_equal(a->truncated, b->truncated);
    assert_int_equal(a->trained_tokens, b->trained_tokens);
    assert_int_equal(a->longest, b->longest);
    assert_int_equal(a->layout, b->layout);
    assert_string_equal(a->template_name, b->template_name);
    assert_int_equal(a->skip_reasons == NULL, b->skip_reasons == NULL);
    if (a->skip_reasons != NULL) assert_string_equal(a->skip_reasons, b->skip_reasons);
    assert_memory_equal(a->start, b->start, ((size_t)a->count + 1) * sizeof *a->start);
    assert_memory_equal(a->record, b->record, (size_t)a->count * sizeof *a->record);
    for (int64_t i = a->count; i-- > 0;) { /* backwards: no frame is where the reader left it */
        const int32_t *x, *y;
        const uint8_t *m, *n;
        size_t length = (size_t)(a->start[i + 1] - a->start[i]);
        assert_int_equal(dataset_sequence(a, i, &x, &m, NULL), OK);
        assert_int_equal(dataset_sequence(b, i, &y, &n, NULL), OK);
        assert_memory_equal(x, y, length * sizeof *x);
        assert_memory_equal(m, n, length);
        assert_int_equal(dataset_sequence_trained(a, i), dataset_sequence_trained(b, i));
    }
}

/* Micro-batches of two epochs, byte for byte. */
static void check_batches(const Dataset *a, const Dataset *b, Packing packing) {
    enum { WINDOW = 512 };
    Arena arena;
    BatchBuffer buffer[2];
    BatchStream stream[2];
    assert_int_equal(arena_create(&arena, "test", 2 * batch_buffer_bytes(WINDOW), NULL), OK);
    const Dataset *data[2] = {a, b};
    for (int s = 0; s < 2; s++) {
        assert_int_equal(batch_buffer_take(&buffer[s], &arena, WINDOW, NULL), OK);
        assert_int_equal(batch_stream_open(&stream[s], data[s], packing, WINDOW, 9, 1, NULL), OK);
    }
    int64_t total = 2 * pack_count(stream[0].plan);
    for (int64_t m = 0; m < total; m++) {
        Batch batch[2] = {0};
        for (int s = 0; s < 2; s++) {
            const int64_t *sequences;
            int64_t count, epoch;
            assert_int_equal(batch_stream_get(&stream[s], m, &sequences, &count, &epoch, NULL), OK);
            assert_int_equal(batch_fill(&batch[s], &buffer[s], data[s], sequences, count, (uint64_t)epoch, NULL), OK);
        }
        size_t n = (size_t)batch[0].tokens, k = (size_t)batch[0].supervised;
        assert_int_equal(batch[0].tokens, batch[1].tokens);
        assert_int_equal(batch[0].supervised, batch[1].supervised);
        assert_int_equal(batch[0].sequences, batch[1].sequences);
        assert_memory_equal(batch[0].starts, batch[1].starts, ((size_t)batch[0].sequences + 1) * sizeof(int64_t));
        assert_memory_equal(batch[0].ids, batch[1].ids, n * sizeof(int32_t));
        assert_memory_equal(batch[0].positions, batch[1].positions, n * sizeof(int32_t));
        assert_memory_equal(batch[0].samples, batch[1].samples, n * sizeof(uint64_t));
        assert_memory_equal(batch[0].rows, batch[1].rows, k * sizeof(int32_t));
        assert_memory_equal(batch[0].targets, batch[1].targets, k * sizeof(int32_t));
    }
    for (int s = 0; s < 2; s++)
        batch_stream_close(&stream[s]);
    arena_free(&arena);
}

/* A fresh root for each test, the records in a file, and the data set without a cache. */
typedef struct Fixture {
    Tokenizer *tokenizer;
    char *root, *path;
    Dataset plain;
} Fixture;

static Fixture fixture_open(const char *name, int records) {
    Fixture f = {make_tokenizer(1, NULL), scratch_path(name), NULL, {0}};
    Text text = {0};
    char *file = memory_format("%s.jsonl", name);
    make_records(&text, records, 1);
    scratch_write(file, text.data, text.length);
    f.path = scratch_path(file);
    f.plain = must_open(cached_options(f.tokenizer, NULL), f.path);
    memory_free(file);
    text_free(&text);
    return f;
}

static void fixture_close(Fixture *f) {
    dataset_free(&f->plain);
    tokenizer_close(f->tokenizer);
    memory_free(f->root);
    memory_free(f->path);
}

/* Entries of a folder with this ending, or all; the first one's path in *first (memory_free). */
static int count_entries(const char *folder, const char *ending, char **first) {
    DIR *list = opendir(folder);
    int count = 0;
    assert_non_null(list);
    for (struct dirent *entry; (entry = readdir(list)) != NULL;) {
        size_t n = strlen(entry->d_name), m = strlen(ending);
        if (entry->d_name[0] == '.' || n < m || strcmp(entry->d_name + n - m, ending) != 0) continue;
        if (first != NULL && count == 0) *first = path_join(folder, entry->d_name);
        count++;
    }
    closedir(list);
    return count;
}

/* The only cache in the root. */
static char *cache_folder(const char *root) {
    char *lock = NULL;
    assert_int_equal(count_entries(root, ".lock", &lock), 1);
    lock[strlen(lock) - strlen(".lock")] = 0;
    return lock;
}

static ino_t inode_of(const char *folder, const char *name) {
    char *path = path_join(folder, name);
    struct stat info;
    assert_int_equal(stat(path, &info), 0);
    memory_free(path);
    return info.st_ino;
}

static void test_same_as_without(void **state) {
    (void)state;
    Fixture f = fixture_open("same", 3000);
    Pool *pool;
    assert_int_equal(pool_create(&pool, 3, NULL), OK);
    DatasetOptions options = cached_options(f.tokenizer, f.root);
    options.pool = pool;
    Dataset built = must_open(options, f.path);
    assert_true(built.cache != NULL && built.ids == NULL);
    assert_true(built.tokens > 2 * 65536); /* several frames */
    check_equal(&f.plain, &built);
    check_batches(&f.plain, &built, PACKING_BEST_FIT);
    check_batches(&f.plain, &built, PACKING_NONE);
    char *folder = cache_folder(f.root);
    ino_t inode = inode_of(folder, "meta");
    Dataset again = must_open(options, f.path);
    check_equal(&f.plain, &again);
    assert_true(inode_of(folder, "meta") == inode); /* found, not built again */
    dataset_free(&built);
    check_equal(&f.plain, &again);
    dataset_free(&again);
    memory_free(folder);
    pool_free(pool);
    fixture_close(&f);
}

static void test_split(void **state) {
    (void)state;
    Fixture f = fixture_open("split", 1500);
    Dataset all = must_open(cached_options(f.tokenizer, f.root), f.path), parts[2][2];
    const Dataset *whole[2] = {&f.plain, &all};
    for (int s = 0; s < 2; s++)
        assert_int_equal(dataset_split(whole[s], 0.1, 7, &parts[s][0], &parts[s][1], NULL), OK);
    dataset_free(&all); /* the parts keep the cache */
    for (int part = 0; part < 2; part++) {
        check_equal(&parts[0][part], &parts[1][part]);
        check_batches(&parts[0][part], &parts[1][part], PACKING_BEST_FIT);
    }
    for (int s = 0; s < 2; s++) {
        dataset_free(&parts[s][0]);
        dataset_free(&parts[s][1]);
    }
    fixture_close(&f);
}

/* Everything that decides the tokens decides the place; weights do not. */
static void test_key(void **state) {
    (void)state;
    Fixture f = fixture_open("key", 200);
    DatasetFile file = {.path = f.path, .weight = 1};
    DatasetOptions base = cached_options(f.tokenizer, f.root);
    Tokenizer *other = make_tokenizer(0, CHATML);
    uint64_t keys[16];
    int count = 0;
    assert_int_equal(folder_create(f.root, NULL), OK);
    DatasetOptions changed[9];
    for (int i = 0; i < 9; i++)
        changed[i] = base;
    changed[1].max_length = 97;
    changed[2].train_on = TRAIN_ON_ALL;
    changed[3].template_name = "chatml";
    changed[4].tokenizer = other;
    changed[5].layout = LAYOUT_PROMPT_COMPLETION;
    changed[6].too_long = TOO_LONG_DROP;
    changed[7].on_error = ON_ERROR_FAIL;
    changed[8].open_documents = 1;
    for (int i = 0; i < 9; i++)
        assert_int_equal(cache_key(f.root, &changed[i], &file, 1, &keys[count++], NULL), OK);
    uint64_t same;
    file.weight = 2;
    assert_int_equal(cache_key(f.root, &base, &file, 1, &same, NULL), OK);
    assert_true(same == keys[0]);
    Text text = {0}; /* as many bytes, another content, at once: no time stamp is trusted so soon */
    make_records(&text, 200, 1);
    text.data[text.length - 4] ^= 1;
    scratch_write("key.jsonl", text.data, text.length);
    assert_int_equal(cache_key(f.root, &base, &file, 1, &keys[count++], NULL), OK);
    for (int i = 0; i < count; i++)
        for (int j = 0; j < i; j++)
            assert_true(keys[i] != keys[j]);
    text_free(&text);
    tokenizer_close(other);
    fixture_close(&f);
}

static void test_weights(void **state) {
    (void)state;
    Fixture f = fixture_open("weights", 200);
    DatasetSource source = {f.path, 2.5};
    DatasetOptions options = cached_options(f.tokenizer, NULL);
    Dataset d = must_open(cached_options(f.tokenizer, f.root), f.path), plain, weighted;
    options.sources = &source;
    options.source_count = 1;
    assert_int_equal(dataset_read(&options, &plain, NULL), OK);
    options.cache = f.root;
    assert_int_equal(dataset_read(&options, &weighted, NULL), OK);
    assert_int_equal(count_entries(f.root, ".lock", NULL), 1); /* one cache for both */
    assert_true(weighted.hash == plain.hash && weighted.hash != d.hash);
    check_batches(&plain, &weighted, PACKING_BEST_FIT);
    dataset_free(&d);
    dataset_free(&plain);
    dataset_free(&weighted);
    fixture_close(&f);
}

/* One byte changed in the middle of the file, or the file cut there. */
static void damage(const char *folder, const char *name, int cut) {
    char *path = path_join(folder, name);
    struct stat info;
    uint8_t byte = 0;
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0 && fstat(fd, &info) == 0);
    if (cut) {
        assert_int_equal(ftruncate(fd, info.st_size / 2), 0);
    } else {
        assert_int_equal(pread(fd, &byte, 1, info.st_size / 2), 1);
        byte ^= 0x20;
        assert_int_equal(pwrite(fd, &byte, 1, info.st_size / 2), 1);
    }
    close(fd);
    memory_free(path);
}

static void test_damage_is_rebuilt(void **state) {
    (void)state;
    Fixture f = fixture_open("damage", 400);
    DatasetOptions options = cached_options(f.tokenizer, f.root);
    Dataset d = must_open(options, f.path);
    dataset_free(&d);
    char *folder = cache_folder(f.root);
    static const char *const names[] = {"meta", "starts", "records", "hashes", "trained", "used", "frames"};
    for (size_t i = 0; i < 2 * sizeof names / sizeof *names + 1; i++) {
        const char *name = i / 2 < sizeof names / sizeof *names ? names[i / 2] : "shard-00000";
        damage(folder, name, i % 2 == 1 || name[1] == 'h');
        ino_t inode = inode_of(folder, "meta");
        d = must_open(options, f.path);
        assert_true(inode_of(folder, "meta") != inode);
        check_equal(&f.plain, &d);
        dataset_free(&d);
    }
    memory_free(folder);
    fixture_close(&f);
}

/* A shard's contents are looked at when they are wanted: the run ends with a message, and the next one builds. */
static void test_damaged_frame(void **state) {
    (void)state;
    Fixture f = fixture_open("frame", 400);
    DatasetOptions options = cached_options(f.tokenizer, f.root);
    Dataset d = must_open(options, f.path);
    dataset_free(&d);
    char *folder = cache_folder(f.root);
    damage(folder, "shard-00000", 0);
    d = must_open(options, f.path);
    const int32_t *ids;
    const uint8_t *train;
    Error error = {0};
    int failed = 0;
    for (int64_t i = 0; i < d.count; i++)
        failed |= dataset_sequence(&d, i, &ids, &train, &error) != OK;
    assert_true(failed);
    assert_non_null(strstr(error.text, "shard 0 of the token cache is damaged (it does not match its checksum)"));
    dataset_free(&d);
    d = must_open(options, f.path);
    check_equal(&f.plain, &d);
    dataset_free(&d);
    memory_free(folder);
    fixture_close(&f);
}

/* Killed at every write, sync and rename: never a cache that opens half done, and the next process finds or builds a whole one. */
static void test_killed(void **state) {
    (void)state;
    static const char *const kinds[] = {"write", "fsync", "rename"};
    Fixture f = fixture_open("killed", 300);
    DatasetOptions options = cached_options(f.tokenizer, f.root);
    options.path = f.path;
    int kills = 0;
    for (size_t k = 0; k < 3; k++) {
        for (int at = 1, killed = 1; killed; at++) {
            Error error = {0};
            char fault[32];
            assert_int_equal(folder_remove(f.root, &error), OK);
            snprintf(fault, sizeof fault, "kill@%s:%d", kinds[k], at);
            pid_t child = fork();
            if (child == 0) { /* a new program: the fault is read once in a process */
                setenv("NIBBLE_FAULT", fault, 1);
                execl("/proc/self/exe", "test_cache", scratch_folder(), f.root, f.path, (char *)NULL);
                _exit(4);
            }
            int status = 0;
            assert_int_equal(waitpid(child, &status, 0), child);
            killed = WIFSIGNALED(status);
            kills += killed;
            assert_true(killed ? WTERMSIG(status) == SIGKILL : WEXITSTATUS(status) == 0);
            assert_true(at < 100);
            Dataset d = must_open(options, f.path);
            assert_true(d.hash == f.plain.hash);
            dataset_free(&d);
            char *folder = cache_folder(f.root), *name = strrchr(folder, '/') + 1;
            DIR *list = opendir(f.root);
            for (struct dirent *entry; (entry = readdir(list)) != NULL;)
                assert_true(strstr(entry->d_name, ".tmp-") == NULL || strncmp(entry->d_name, name, 16) != 0);
            closedir(list);
            memory_free(folder);
        }
    }
    print_message("killed %d times\n", kills);
    assert_true(kills >= 25); /* nine files are each written, synced and renamed; then the folder */
    fixture_close(&f);
}

/* Several processes at once: one builds, the others wait for it, and all have the same. */
static void test_processes(void **state) {
    (void)state;
    enum { PROCESSES = 5 };
    Fixture f = fixture_open("ranks", 1500);
    DatasetOptions options = cached_options(f.tokenizer, f.root);
    options.path = f.path;
    pid_t children[PROCESSES];
    for (int p = 0; p < PROCESSES; p++) {
        children[p] = fork();
        if (children[p] != 0) continue;
        Dataset d;
        _exit(dataset_read(&options, &d, NULL) == OK && d.hash == f.plain.hash ? 0 : 1);
    }
    for (int p = 0; p < PROCESSES; p++) {
        int status = 1;
        assert_int_equal(waitpid(children[p], &status, 0), children[p]);
        assert_int_equal(status, 0);
    }
    assert_int_equal(count_entries(f.root, ".lock", NULL), 1);
    fixture_close(&f);
}

/* What is wrong with the data is said, and leaves no cache. */
static void test_bad_data(void **state) {
    (void)state;
    Fixture f = fixture_open("bad", 200);
    DatasetOptions options = cached_options(f.tokenizer, f.root);
    options.on_error = ON_ERROR_FAIL;
    options.path = f.path;
    Dataset d;
    Error error = {0};
    assert_int_equal(dataset_read(&options, &d, &error), ERR_FAILED);
    assert_non_null(strstr(error.text, "line 14"));
    char *folder = cache_folder(f.root);
    assert_false(file_exists(folder));
    memory_free(folder);
    options.path = "no such file.jsonl";
    assert_int_equal(dataset_read(&options, &d, &error), ERR_FAILED);
    fixture_close(&f);
}

static void test_root(void **state) {
    (void)state;
    Fixture f = fixture_open("root", 20);
    DatasetOptions options = cached_options(f.tokenizer, NULL);
    char *root = NULL;
    options.path = f.path;
    assert_int_equal(dataset_cache_root(&options, "off", &root, NULL), OK);
    assert_null(root);
    assert_int_equal(dataset_cache_root(&options, "auto", &root, NULL), OK);
    assert_null(root); /* small */
    assert_int_equal(dataset_cache_root(&options, "somewhere", &root, NULL), OK);
    assert_string_equal(root, "somewhere");
    memory_free(root);
    assert_int_equal(truncate(f.path, (off_t)DATASET_CACHE_BYTES), 0);
    setenv("XDG_CACHE_HOME", scratch_folder(), 1);
    assert_int_equal(dataset_cache_root(&options, "auto", &root, NULL), OK);
    char *want = scratch_path("nibble/tokens");
    assert_string_equal(root, want);
    memory_free(want);
    memory_free(root);
    fixture_close(&f);
}

/* With arguments: only reads a data set through a cache. */
static int read_and_exit(char **words) {
    Tokenizer *tokenizer = NULL;
    Dataset d;
    if (tokenizer_open(&tokenizer, words[1], NULL) != OK) return 3;
    DatasetOptions options = cached_options(tokenizer, words[2]);
    options.path = words[3];
    if (dataset_read(&options, &d, NULL) != OK) return 3;
    dataset_free(&d);
    tokenizer_close(tokenizer);
    return 0;
}

int main(int argc, char **argv) {
    if (argc == 4) return read_and_exit(argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_as_without),
        cmocka_unit_test(test_split),
        cmocka_unit_test(test_key),
        cmocka_unit_test(test_weights),
        cmocka_unit_test(test_damage_is_rebuilt),
        cmocka_unit_test(test_damaged_frame),
        cmocka_unit_test(test_killed),
        cmocka_unit_test(test_processes),
        cmocka_unit_test(test_bad_data),
        cmocka_unit_test(test_root),
    };
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
