/* What a run shows and leaves: lines, metrics.jsonl, TensorBoard events; before and after a resume. */
#include "tests/support/scratch.h"
#include "tests/unit/test_reporter.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/ioctl.h>

#include "train/reporter_line.h"
#include "train/tensorboard.h"

static char *in_root(const char *run, const char *name) {
    return memory_format("%s/%s/%s", scratch_folder(), run, name);
}

static char *read_all(const char *run, const char *name, size_t *length) {
    Error err;
    char *path = in_root(run, name), *data;
    size_t bytes;
    assert_ok(file_read(path, (size_t)1 << 26, &data, &bytes, &err), &err);
    memory_free(path);
    if (length != NULL) *length = bytes;
    return data;
}

/* ---- the line --------------------------------------------------------------------------------------------------------------- */

static void the_line_fits(void **state) {
    (void)state;
    StepRecord record = example_step(7, 1000);
    Text line = {0};
    reporter_line(&record, 0, &line);
    assert_non_null(strstr(line.data, "step    7/1000  loss "));
    static const char *const parts[] = {"grad ", "lr 1.99e-04", " tok/s", "61 % of peak", "3.00 GiB", "ETA 5m31s"};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        assert_non_null(strstr(line.data, parts[i]));
    size_t whole = line.length;
    reporter_line(&record, 79, &line); /* nothing is left out in the 80 columns of a usual terminal */
    assert_string_equal(line.data, "7/1000 loss 2.6695 grad 0.718 lr 2e-04 1236 tok/s 61% peak 3.00 GiB ETA 5m31s");
    for (size_t width = 1; width <= whole + 5; width++) {
        reporter_line(&record, width, &line);
        assert_true(line.length <= width);
        assert_int_equal(strlen(line.data), line.length);
        for (size_t i = 0; i < line.length; i++)
            assert_in_range(line.data[i], 0x20, 0x7E);
        assert_int_equal(strstr(line.data, "ETA") != NULL, width >= strlen("step 7/1000 loss 2.8298 ETA 5m31s"));
        assert_int_equal(line.length == whole, width >= whole);
    }
    record = example_step(97, 1000);
    record.peak_fraction = NAN;
    reporter_line(&record, 0, &line);
    assert_non_null(strstr(line.data, "nan skipped"));
    assert_null(strstr(line.data, "peak"));
    text_free(&line);
}

/* Runs `steps` steps with stderr at fd, and puts it back. */
static void run_into(int fd, const char *run, int64_t steps) {
    Error err;
    char *path = memory_format("%s/%s", scratch_folder(), run);
    ReporterFacts facts = example_facts();
    Reporter *reporter;
    fflush(stderr);
    int saved = dup(STDERR_FILENO);
    assert_true(saved >= 0 && dup2(fd, STDERR_FILENO) >= 0);
    Status status = folder_create(path, &err);
    if (status == OK) status = reporter_open(&reporter, path, &facts, -1, &err);
    for (int64_t step = 1; status == OK && step <= steps; step++) {
        StepRecord record = example_step(step, steps);
        status = reporter_step(reporter, &record, &err);
        if (status == OK && step == 5) status = reporter_eval(reporter, step, 1.5, 100, 0.25, 1, &err);
        if (status == OK && step == 6) status = reporter_event(reporter, step, "something happened", &err);
    }
    if (status == OK) status = reporter_close(reporter, &err);
    fflush(stderr);
    assert_true(dup2(saved, STDERR_FILENO) >= 0);
    close(saved);
    memory_free(path);
    assert_ok(status, &err);
}

static int count_of(const char *text, const char *part) {
    int count = 0;
    for (const char *at = text; (at = strstr(at, part)) != NULL; at += strlen(part))
        count++;
    return count;
}

static void plain_lines_are_few(void **state) {
    (void)state;
    char *path = memory_format("%s/plain", scratch_folder());
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    memory_free(path);
    assert_true(fd >= 0);
    run_into(fd, "few", 950); /* every 9th of 950: 105, step 950, and steps 1 to 3 */
    char text[65536] = {0};
    assert_true(pread(fd, text, sizeof text - 1, 0) > 0);
    assert_int_equal(count_of(text, "\n"), 105 + 1 + 3 + 2);
    assert_int_equal(count_of(text, "nibble: step "), 105 + 1 + 3);
    assert_non_null(strstr(text, "nibble: step 950/950"));
    assert_non_null(strstr(text, "nibble: evaluation at step 5: loss 1.5000 on 100 tokens in 0s, the best so far\n"));
    assert_non_null(strstr(text, "nibble: something happened\n"));
    assert_null(strchr(text, '\r'));
    assert_null(strchr(text, '\033'));
    close(fd);
}

static void a_terminal_gets_one_line(void **state) {
    (void)state;
    int terminal = posix_openpt(O_RDWR | O_NOCTTY);
    char *name = terminal >= 0 && grantpt(terminal) == 0 && unlockpt(terminal) == 0 ? ptsname(terminal) : NULL;
    int other = name != NULL ? open(name, O_RDWR | O_NOCTTY) : -1;
    if (other < 0) {
        printf("skipped: this machine lends no pseudo-terminal\n");
        if (terminal >= 0) close(terminal);
        skip();
    }
    assert_int_equal(ioctl(other, TIOCSWINSZ, &(struct winsize){.ws_col = 50, .ws_row = 20}), 0);
    setenv("TERM", "xterm", 1);
    run_into(other, "terminal", 8); /* less than a terminal buffers */
    char text[8192] = {0};
    ssize_t length = read(terminal, text, sizeof text - 1);
    assert_true(length > 0);
    assert_int_equal(count_of(text, "\rstep "), 8);
    assert_int_equal(count_of(text, "\n"), 3); /* evaluation, event, and the end */
    assert_non_null(strstr(text, "\r\033[Knibble: evaluation"));
    for (const char *at = text; (at = strstr(at, "\rstep ")) != NULL; at++) {
        const char *end = strstr(at, "\033[K");
        assert_non_null(end);
        assert_true(end - at - 1 < 50); /* the last column stays free: some terminals wrap there */
    }
    close(other);
    close(terminal);
}

/* ---- metrics ---------------------------------------------------------------------------------------------------------------- */

static void assert_same_double(double a, double b) {
    if (isnan(b) || isinf(b))
        assert_true(isnan(a));
    else
        assert_memory_equal(&a, &b, sizeof a);
}

static void records_come_back_exactly(void **state) {
    (void)state;
    Error err;
    Text line = {0};
    MetricsStrings strings = {0};
    MetricsRecord got;
    for (int64_t step = 1; step <= 200; step++) {
        MetricsRecord record = {.kind = METRICS_STEP, .step = example_step(step, 200)};
        text_clear(&line);
        metrics_print(&record, &line);
        assert_int_equal(line.data[line.length - 1], '\n');
        assert_ok(metrics_parse(line.data, line.length - 1, &strings, &got, &err), &err);
        assert_int_equal(got.kind, METRICS_STEP);
        assert_int_equal(got.step.step, step);
        assert_int_equal(got.step.tokens, 4096);
        assert_int_equal(got.step.trained_tokens, record.step.trained_tokens);
        assert_int_equal(got.step.resident, record.step.resident);
        assert_int_equal(got.step.skipped, record.step.skipped);
        assert_same_double(got.step.loss, record.step.loss);
        assert_same_double(got.step.grad_norm, record.step.grad_norm);
        assert_same_double(got.step.lr, record.step.lr);
        assert_same_double(got.step.seconds, record.step.seconds);
        assert_same_double(got.step.peak_fraction, record.step.peak_fraction);
    }
    MetricsRecord sample = {
        .kind = METRICS_SAMPLE, .after = 1, .prompt = "a\n\"b\"\x01", .written = "bad \xff", .wanted = NULL};
    text_clear(&line);
    metrics_print(&sample, &line);
    assert_ok(metrics_parse(line.data, line.length - 1, &strings, &got, &err), &err);
    assert_int_equal(got.after, 1);
    assert_string_equal(got.prompt, "a\n\"b\"\x01");
    assert_string_equal(got.written, "bad \xEF\xBF\xBD");
    assert_null(got.wanted);
    metrics_strings_free(&strings);
    text_free(&line);
}

static void malformed_lines_are_refused(void **state) {
    (void)state;
    static const char *const lines[] = {
        "",
        "{",
        "{}",
        "[]",
        "{\"kind\":\"step\"}",
        "{\"step\":1}",
        "{\"kind\":\"other\",\"step\":1}",
        "{\"kind\":\"step\",\"step\":-1}",
        "{\"kind\":\"step\",\"step\":1.5}",
        "{\"kind\":\"step\",\"step\":1,\"loss\":\"x\"}",
        "{\"kind\":\"step\",\"step\":1,\"loss\":1e999}",
        "{\"kind\":\"step\",\"step\":1,\"skipped\":1}",
        "{\"kind\":\"step\",\"step\":1} {}",
        "{\"kind\":\"event\",\"step\":1}",
        "{\"kind\":\"sample\",\"step\":1,\"prompt\":\"a\"}",
        "{\"kind\":\"step\",\"step\":1,\"x\":[[[[[[[[1]]]]]]]]}",
    };
    MetricsStrings strings = {0};
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        MetricsRecord record;
        Error err;
        assert_refused(metrics_parse(lines[i], strlen(lines[i]), &strings, &record, &err), &err, "metrics.jsonl");
    }
    MetricsRecord record;
    Error err;
    static const char later[] = "{\"kind\":\"step\",\"step\":1,\"new\":{\"a\":[1]},\"loss\":2}"; /* keys of later versions */
    assert_ok(metrics_parse(later, sizeof later - 1, &strings, &record, &err), &err);
    assert_true(record.step.loss == 2.0);
    metrics_strings_free(&strings);
}

/* Steps first..last with an evaluation every 25 of them. */
static void run_part(const char *run, int64_t resume, int64_t first, int64_t last, int close_it) {
    Error err;
    char *path = memory_format("%s/%s", scratch_folder(), run);
    ReporterFacts facts = example_facts();
    Reporter *reporter;
    assert_ok(folder_create(path, &err), &err);
    assert_ok(reporter_open(&reporter, path, &facts, resume, &err), &err);
    if (first == 1) {
        assert_ok(reporter_sample(reporter, 0, "<prompt>", "\xff<b>", "wanted", &err), &err);
        assert_ok(reporter_eval(reporter, 0, 2.75, 1000, 0.5, 1, &err), &err);
    }
    for (int64_t step = first; step <= last; step++) {
        StepRecord record = example_step(step, 200);
        assert_ok(reporter_step(reporter, &record, &err), &err);
        if (step % 25 == 0) assert_ok(reporter_eval(reporter, step, 2.5 - 0.01 * (double)step, 1000, 0.5, 1, &err), &err);
    }
    if (close_it) assert_ok(reporter_sample(reporter, 1, "<prompt>", "better", "wanted", &err), &err);
    assert_ok(reporter_close(reporter, &err), &err);
    memory_free(path);
}

static void a_resumed_run_leaves_the_same(void **state) {
    (void)state;
    run_part("straight", -1, 1, 200, 1);
    run_part("resumed", -1, 1, 130, 0); /* 31 steps too many */
    char *path = in_root("resumed", METRICS_NAME);
    int fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
    assert_int_equal(write(fd, "garbage\n\xff\n{\"kind\":\"step\",\"st", 28), 28); /* and a record that a kill cut short */
    close(fd);
    run_part("resumed", 99, 100, 200, 1);
    for (int i = 0; i < 2; i++) {
        const char *name = i == 0 ? METRICS_NAME : "report.html";
        size_t a_length, b_length;
        char *a = read_all("straight", name, &a_length), *b = read_all("resumed", name, &b_length);
        assert_int_equal(a_length, b_length);
        assert_memory_equal(a, b, a_length);
        memory_free(a);
        memory_free(b);
    }
    run_part("resumed", -1, 1, 3, 0); /* a new run in the same folder starts anew */
    char *text = read_all("resumed", METRICS_NAME, NULL);
    assert_int_equal(count_of(text, "\n"), 5);
    memory_free(text);
    memory_free(path);
}

static void count_visit(void *context, const MetricsRecord *record) {
    (void)record;
    ++*(int *)context;
}

static void endless_lines_are_dropped(void **state) {
    (void)state;
    Error err;
    char *path = memory_format("%s/long.jsonl", scratch_folder());
    Text text = {0};
    text_adds(&text, "{\"kind\":\"event\",\"step\":1,\"text\":\"kept\"}\n{\"kind\":\"event\",\"step\":1,\"text\":\"");
    size_t begin = text.length;
    char *filler = memory_alloc(METRICS_LINE_LIMIT);
    memset(filler, 'x', METRICS_LINE_LIMIT);
    for (int i = 0; i < 3; i++)
        text_add(&text, filler, METRICS_LINE_LIMIT);
    assert_true(text.length > begin);
    text_adds(&text,
              "\"}\n{\"kind\":\"event\",\"step\":2,\"text\":\"kept\"}\n{\"kind\":\"event\",\"step\":3,\"text\":\"too new\"}\n");
    assert_ok(file_write_atomic(path, text.data, text.length, &err), &err);
    int visited = 0;
    int64_t dropped;
    assert_ok(metrics_cut(path, 2, count_visit, &visited, &dropped, &err), &err);
    assert_int_equal(visited, 2);
    assert_int_equal(dropped, 1);
    memory_free(filler);
    text_free(&text);
    memory_free(path);
}

/* ---- TensorBoard ------------------------------------------------------------------------------------------------------------ */

static void assert_hex(const Text *bytes, const char *want) {
    Text hex = {0};
    for (size_t i = 0; i < bytes->length; i++)
        text_addf(&hex, "%02x", (unsigned)(unsigned char)bytes->data[i]);
    assert_string_equal(hex.data, want);
    text_free(&hex);
}

/* Vectors: RFC 3720 B.4 (32 zero bytes), the check value of CRC-32C, and two records worked out by hand. */
static void events_have_their_exact_bytes(void **state) {
    (void)state;
    static const char zeros[32];
    assert_int_equal(crc32c("123456789", 9), 0xE3069283u);
    assert_int_equal(crc32c_masked("123456789", 9), 0xC78AB0E5u);
    assert_int_equal(crc32c_masked("", 0), 0xA282EAD8u);
    assert_int_equal(crc32c(zeros, sizeof zeros), 0x8A9136AAu);
    Text record = {0};
    tensorboard_record_version(&record, 1.0);
    assert_hex(&record, "1800000000000000a37f4b2209000000000000f03f1a0d627261696e2e4576656e743a3286bf577a");
    text_clear(&record);
    tensorboard_record_scalars(&record, 1.0, 5, &(TensorboardScalar){"loss", 2.5}, 1);
    assert_hex(&record,
               "1a00000000000000129bd82d09000000000000f03f10052a0d0a0b0a046c6f7373150000204"
               "01f0ddde3");
    text_free(&record);
}

static char *event_file(const char *run) {
    char *path = memory_format("%s/%s", scratch_folder(), run), *found = NULL;
    DIR *folder = opendir(path);
    assert_non_null(folder);
    for (struct dirent *entry; found == NULL && (entry = readdir(folder)) != NULL;)
        if (strncmp(entry->d_name, "events.out.tfevents.", 20) == 0) found = memory_strdup(entry->d_name);
    closedir(folder);
    memory_free(path);
    assert_non_null(found);
    return found;
}

static void event_files_are_framed(void **state) {
    (void)state;
    run_part("events", -1, 1, 50, 0);
    char *name = event_file("events");
    size_t length;
    char *data = read_all("events", name, &length);
    int records = 0;
    for (size_t at = 0; at < length; records++) {
        uint64_t bytes;
        uint32_t crc;
        assert_true(length - at >= 16);
        memcpy(&bytes, data + at, 8);
        memcpy(&crc, data + at + 8, 4);
        assert_int_equal(crc, crc32c_masked(data + at, 8));
        assert_true(bytes <= length - at - 16);
        memcpy(&crc, data + at + 12 + bytes, 4);
        assert_int_equal(crc, crc32c_masked(data + at + 12, bytes));
        at += 16 + bytes;
    }
    assert_int_equal(records, 1 + 50 + 3); /* version, steps, evaluations at 0, 25 and 50 */
    memory_free(data);
    memory_free(name);
}

static void a_folder_that_is_not_there_is_an_error(void **state) {
    (void)state;
    Error err;
    ReporterFacts facts = example_facts();
    Reporter *reporter;
    assert_refused(reporter_open(&reporter, "/nonexistent/run", &facts, -1, &err), &err, "/nonexistent/run/metrics.jsonl");
    assert_null(reporter);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_line_fits),
        cmocka_unit_test(plain_lines_are_few),
        cmocka_unit_test(a_terminal_gets_one_line),
        cmocka_unit_test(records_come_back_exactly),
        cmocka_unit_test(malformed_lines_are_refused),
        cmocka_unit_test(a_resumed_run_leaves_the_same),
        cmocka_unit_test(endless_lines_are_dropped),
        cmocka_unit_test(events_have_their_exact_bytes),
        cmocka_unit_test(event_files_are_framed),
        cmocka_unit_test(a_folder_that_is_not_there_is_an_error),
    };
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
